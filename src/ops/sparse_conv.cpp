#include "espalier/ops/sparse_conv.h"

#include <torch/torch.h>

#include <algorithm>

#include "ops/image_planes.h"
#include "ops/sparse_function.h"

namespace espalier::ops {
namespace {

using kernels::ConvPart;
using kernels::Planes;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kSparseConv = "sparse convolution";

/// Rows of a unit: what threads share out.
constexpr std::int64_t kBand = 4;
/// Partial sums of the gradient of values: one for each part of the images. Their number does not depend on that of
/// threads, so neither does the order of the sum.
constexpr std::int64_t kParts = 8;

template <class T>
constexpr std::int64_t kPixelBytes = kImageLanes * sizeof(T);

Planes planes_of(const ImageLayout& layout) { return {layout.row(), layout.plane()}; }

/// A pixel of the first channel of a group, in entries; halo coordinates may be negative.
std::int64_t pixel(const ImageLayout& layout, std::int64_t group, std::int64_t h, std::int64_t w) {
  return layout.offset(group, 0) + ((h + layout.halo) * layout.row() + w + layout.halo) * kImageLanes;
}

template <class T>
void clear_halo(const ImageLayout& layout, std::int64_t group, T* images) {
  for (std::int64_t c = 0; c < layout.channels; ++c) {
    kernels::active().images<T>().clear_halo(layout.image(), images + layout.offset(group, c));
  }
}

/// f(group, first row, last row, whether these are the group's first) for the bands `begin` to `end` of groups laid end
/// to end.
template <class F>
void each_band(std::int64_t rows, std::int64_t begin, std::int64_t end, const F& f) {
  const std::int64_t bands = (rows + kBand - 1) / kBand;
  for (std::int64_t u = begin; u < end;) {
    const std::int64_t group = u / bands, first = u % bands, last = std::min(bands, first + end - u);
    f(group, first * kBand, std::min(rows, last * kBand), first == 0);
    u += last - first;
  }
}

std::int64_t bands_of(std::int64_t groups, std::int64_t rows) { return groups * ((rows + kBand - 1) / kBand); }

template <class T>
void forward(const ConvPlan& plan, const ImageLayout& in, const T* values, const T* bias, const T* x, T* y) {
  const auto& k = kernels::active().sparse_conv<T>();
  const ConvShape& s = plan.shape();
  const ImageLayout out = plan.output(in.samples);
  const std::int64_t units = bands_of(out.groups(), out.height);
  const ConvShape::Pair window = {s.dilation[0] * (s.kernel[0] - 1) + 1, s.dilation[1] * (s.kernel[1] - 1) + 1};
  const std::int64_t patch =
      kernels::forward_in_patches(s, plan.weight().nnz())
          ? kernels::patch_rows(std::min(s.in, plan.weight().forward.block / s.taps() * s.groups), in.row(),
                                s.stride[0], window[0] - 1, kPixelBytes<T>)
          : 0;
  const std::int64_t work = (plan.weight().nnz() + 2 * s.out) * out.height * out.width * kImageLanes * out.groups();
  const std::int64_t grain = work == 0 ? units : units * kWorthAThread / work;
  at::parallel_for(0, units, std::max<std::int64_t>(1, grain), [&](std::int64_t begin, std::int64_t end) {
    each_band(out.height, begin, end, [&](std::int64_t group, std::int64_t row, std::int64_t row_end, bool first) {
      if (first) clear_halo(out, group, y);
      k.forward(plan.weight().forward, plan.offsets().forward.data(), values, bias, s.stride,
                {planes_of(in), planes_of(out), out.width, row, row_end, patch, s.in, window},
                x + pixel(in, group, -s.padding[0], -s.padding[1]), y + pixel(out, group, 0, 0));
    });
  });
}

/// Input rows or columns of a phase of the stride.
std::int64_t count_of(std::int64_t size, std::int64_t stride, std::int64_t phase) {
  return (size - phase + stride - 1) / stride;
}

/// Each part has images of its own, from all of which it sums up gradients of the values.
template <class T>
void backward(const ConvPlan& plan, const ImageLayout& in, const T* values, const T* x, const T* dy, T* dx, bool add,
              T* dvalues, T* dbias) {
  const auto& k = kernels::active().sparse_conv<T>();
  const ConvShape& s = plan.shape();
  const ImageLayout out = plan.output(in.samples);
  const std::int64_t nnz = plan.weight().nnz();
  const std::int64_t rows = count_of(in.height, s.stride[0], 0);
  const std::int64_t patch =
      kernels::patch_rows(std::min(s.out / s.groups, plan.weight().backward.block), out.row(), 1,
                          (s.dilation[0] * (s.kernel[0] - 1) + s.stride[0] - 1) / s.stride[0], kPixelBytes<T>);
  const std::int64_t units = bands_of(in.groups(), rows), parts = std::min(units, kParts);
  std::vector<T> partial(static_cast<std::size_t>((parts - 1) * nnz));
  const auto sums = [&](std::int64_t part) { return part == 0 ? dvalues : partial.data() + (part - 1) * nnz; };
  std::fill_n(dvalues, nnz, T(0));
  const std::int64_t work = 2 * nnz * out.height * out.width * kImageLanes * out.groups() + in.numel();
  const std::int64_t grain = std::max<std::int64_t>(1, parts * kWorthAThread / work);
  at::parallel_for(0, parts, grain, [&](std::int64_t part_begin, std::int64_t part_end) {
    for (std::int64_t p = part_begin; p < part_end; ++p) {
      const auto band = [&](std::int64_t group, std::int64_t row, std::int64_t row_end, bool first) {
        if (first && dx != nullptr && !add) clear_halo(in, group, dx);
        for (std::int64_t phase = 0; phase < s.phases(); ++phase) {
          const std::int64_t h = phase / s.stride[1], w = phase % s.stride[1];
          const std::int64_t at = pixel(in, group, h, w);
          k.backward(plan.weight().backward, phase, plan.offsets().backward.data(), values, s.stride,
                     {planes_of(in), planes_of(out), count_of(in.width, s.stride[1], w), row,
                      std::min(row_end, count_of(in.height, s.stride[0], h)), patch},
                     x + at, dy + pixel(out, group, 0, 0), dx != nullptr ? dx + at : nullptr, add, sums(p));
        }
      };
      each_band(rows, units * p / parts, units * (p + 1) / parts, band);
    }
  });
  at::parallel_for(0, nnz, kImageGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t p = 1; p < parts; ++p) {
      const T* const from = sums(p);
      for (std::int64_t i = begin; i < end; ++i) dvalues[i] += from[i];
    }
  });
  if (dbias == nullptr) return;
  at::parallel_for(0, s.out, kImageGrain / (out.groups() * out.plane() * kImageLanes) + 1,
                   [&](std::int64_t begin, std::int64_t end) {
                     for (std::int64_t c = begin; c < end; ++c) {
                       double sum = 0;
                       for (std::int64_t group = 0; group < out.groups(); ++group) {
                         sum += k.sum_of(dy + out.offset(group, c), (out.height + out.halo) * out.row() * kImageLanes);
                       }
                       dbias[c] = static_cast<T>(sum);
                     }
                   });
}

struct SparseConv2d : torch::autograd::Function<SparseConv2d> {
  /// The weight's structure outlives a change of topology between forward and backward.
  struct Held : torch::CustomClassHolder {
    std::shared_ptr<const ConvPlan> plan;
    BackwardObserver observer;
  };

  /// y, and x itself where `fork`: what else becomes of it, so that its gradient comes here first.
  static variable_list forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& values,
                               const c10::optional<at::Tensor>& given_bias, const ImageLayout& layout,
                               const std::shared_ptr<const ConvPlan>& plan, const at::Tensor& forward_values,
                               const BackwardObserver& observer, bool fork) {
    const at::Tensor bias = given_bias.value_or(at::Tensor());
    const at::Tensor in = x.contiguous();
    at::Tensor y = new_images(plan->output(layout.samples), x.options());
    conv_forward(*plan, layout, forward_values, bias, in, y);
    ctx->save_for_backward({in, values, bias});
    ctx->saved_data["layout"] = saved(layout);
    ctx->saved_data["input_gradient"] = x.requires_grad();
    auto held = c10::make_intrusive<Held>();
    held->plan = plan;
    held->observer = observer;
    ctx->saved_data["plan"] = c10::IValue::make_capsule(std::move(held));
    if (fork) return {y, x};
    return {y};
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto tensors = ctx->get_saved_variables();
    const at::Tensor &x = tensors[0], &values = tensors[1], &bias = tensors[2];
    const auto held = ctx->saved_data["plan"].toCapsule();
    const ConvPlan& plan = *static_cast<const Held&>(*held).plan;
    const at::Tensor dy = gradients[0].contiguous();
    const ImageLayout layout = saved_layout(ctx->saved_data["layout"]);
    at::Tensor dx;
    const bool add = gradients.size() > 1 && gradients[1].defined();
    if (add) {
      dx = to_add_to(gradients[1]);
    } else if (ctx->saved_data["input_gradient"].toBool()) {
      dx = new_images(layout, x.options());
    }
    at::Tensor dvalues = at::empty_like(values);
    at::Tensor dbias = bias.defined() && bias.requires_grad() ? at::empty_like(bias) : at::Tensor();
    conv_backward(plan, layout, values, x, dy, dx, add, dvalues, dbias);
    const auto& observer = static_cast<const Held&>(*held).observer;
    if (observer) observer(x, dy);
    return differentiable_once({dx, dvalues, dbias, {}, {}, {}, {}, {}}, kSparseConv);
  }
};

}  // namespace

void check_conv(const ConvShape& s) {
  bool positive = s.in > 0 && s.out > 0 && s.groups > 0;
  for (int a = 0; a < 2; ++a) {
    positive = positive && s.kernel[a] > 0 && s.stride[a] > 0 && s.dilation[a] > 0 && s.padding[a] >= 0;
  }
  ESPALIER_CHECK(positive, ErrorKind::usage,
                 "sparse convolution: channels, groups, kernel, stride and dilation must be positive, padding at least "
                 "0; found {} to {} channels in {} groups, kernel {}x{}, stride {}x{}, dilation {}x{}, padding {}x{}",
                 s.in, s.out, s.groups, s.kernel[0], s.kernel[1], s.stride[0], s.stride[1], s.dilation[0],
                 s.dilation[1], s.padding[0], s.padding[1]);
  ESPALIER_CHECK(s.in % s.groups == 0 && s.out % s.groups == 0, ErrorKind::usage,
                 "sparse convolution: groups = {} must divide the channels that come in, {}, and go out, {}", s.groups,
                 s.in, s.out);
  constexpr std::int64_t kMost = 65536;  // indices have 16 bits
  ESPALIER_CHECK(s.in <= kMost && s.out <= kMost && s.taps() <= kMost, ErrorKind::usage,
                 "sparse convolution: at most {} channels and as many taps; found {} to {} channels, kernel {}x{}",
                 kMost, s.in, s.out, s.kernel[0], s.kernel[1]);
}

void check_size(const ConvShape& shape, std::int64_t height, std::int64_t width) {
  ESPALIER_CHECK(shape.output(0, height) > 0 && shape.output(1, width) > 0, ErrorKind::usage,
                 "sparse convolution: images of {}x{} with padding {}x{} are smaller than the kernel, {}x{}{}", height,
                 width, shape.padding[0], shape.padding[1], shape.kernel[0], shape.kernel[1],
                 shape.dilation == ConvShape::Pair{1, 1} ? "" : " with its dilation");
}

std::int64_t conv_halo(const ConvShape& shape) { return std::max(shape.padding[0], shape.padding[1]); }

ConvPlan::ConvPlan(std::shared_ptr<const Compressed> weight, const ConvShape& shape, const ImageLayout& in)
    : weight_(std::move(weight)), shape_(shape), in_(in) {
  ESPALIER_CHECK(in.channels == shape.in, ErrorKind::usage,
                 "sparse convolution: the images have {} channels, the weight takes {}", in.channels, shape.in);
  check_size(shape, in.height, in.width);
  out_ = {0, shape.out, shape.output(0, in.height), shape.output(1, in.width), in.halo};
  ESPALIER_ASSERT(in.halo >= conv_halo(shape));
  // Outputs that do not exist, but that the input pixels at the border ask for.
  const std::int64_t size[2] = {in.height, in.width}, outputs[2] = {out_.height, out_.width};
  for (int a = 0; a < 2; ++a) {
    for (std::int64_t t = 0; t < shape.kernel[a]; ++t) {
      const std::int64_t last = count_of(size[a], shape.stride[a], shape.phase_of(a, t)) - 1;
      out_.halo = std::max({out_.halo, -shape.shift(a, t), last + shape.shift(a, t) - (outputs[a] - 1)});
    }
  }
  constexpr std::int64_t kMost = std::int64_t{1} << 31;  // offsets have 32 bits
  ESPALIER_CHECK(in.channels * in.plane() + in.image().halo_below() < kMost &&
                     out_.channels * out_.plane() + out_.image().halo_below() < kMost,
                 ErrorKind::usage, "sparse convolution: {} channels of {}x{} pixels are too many", in.channels,
                 in.height, in.width);
  offsets_ = kernels::conv_offsets(*weight_, shape, planes_of(in), planes_of(out_));
}

bool ConvPlan::serves(const Compressed* weight, const ImageLayout& in) const {
  ImageLayout same = in;
  same.samples = in_.samples;
  return weight == weight_.get() && same == in_;
}

ImageLayout ConvPlan::output(std::int64_t samples) const {
  ImageLayout out = out_;
  out.samples = samples;
  return out;
}

void conv_forward(const ConvPlan& plan, const ImageLayout& in, const at::Tensor& forward_values, const at::Tensor& bias,
                  const at::Tensor& x, at::Tensor& y) {
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    forward<T>(plan, in, forward_values.data_ptr<T>(), bias.defined() ? bias.data_ptr<T>() : nullptr, x.data_ptr<T>(),
               y.data_ptr<T>());
  });
}

void conv_backward(const ConvPlan& plan, const ImageLayout& in, const at::Tensor& values, const at::Tensor& x,
                   const at::Tensor& dy, at::Tensor& dx, bool add, at::Tensor& dvalues, at::Tensor& dbias) {
  if (in.samples == 0) {  // no group writes the sums
    dvalues.zero_();
    if (dbias.defined()) dbias.zero_();
    return;
  }
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    backward<T>(plan, in, values.data_ptr<T>(), x.data_ptr<T>(), dy.data_ptr<T>(),
                dx.defined() ? dx.data_ptr<T>() : nullptr, add, dvalues.data_ptr<T>(),
                dbias.defined() ? dbias.data_ptr<T>() : nullptr);
  });
}

namespace {

variable_list checked(const at::Tensor& x, const ImageLayout& in, const std::shared_ptr<const ConvPlan>& plan,
                      const at::Tensor& values, const at::Tensor& forward, const at::Tensor& bias,
                      const BackwardObserver& observer, bool fork) {
  check_images(x, in);
  ESPALIER_CHECK(x.scalar_type() == values.scalar_type(), ErrorKind::usage,
                 "sparse convolution: the images are {}, the weight {}; convert one of them",
                 c10::toString(x.scalar_type()), c10::toString(values.scalar_type()));
  check_bias(bias, x, plan->shape().out, kSparseConv);
  ESPALIER_ASSERT(plan->serves(&plan->weight(), in) && values.numel() == plan->weight().nnz() &&
                  forward.numel() == values.numel());
  // An undefined tensor cannot be an input of a function of autograd; an empty optional can.
  const auto optional_bias = bias.defined() ? c10::optional<at::Tensor>(bias) : c10::nullopt;
  return SparseConv2d::apply(x, values, optional_bias, in, plan, forward, observer, fork);
}

}  // namespace

at::Tensor sparse_conv2d(const at::Tensor& x, const ImageLayout& in, std::shared_ptr<const ConvPlan> plan,
                         const at::Tensor& values, const at::Tensor& forward, const at::Tensor& bias,
                         BackwardObserver observer) {
  return checked(x, in, plan, values, forward, bias, observer, false)[0];
}

Forked sparse_conv2d_fork(const at::Tensor& x, const ImageLayout& in, std::shared_ptr<const ConvPlan> plan,
                          const at::Tensor& values, const at::Tensor& forward, const at::Tensor& bias,
                          BackwardObserver observer) {
  variable_list both = checked(x, in, plan, values, forward, bias, observer, true);
  return {both[0], both[1]};
}

}  // namespace espalier::ops
