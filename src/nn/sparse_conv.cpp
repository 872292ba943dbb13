#include "espalier/nn/sparse_conv.h"

#include <fmt/format.h>
#include <torch/torch.h>

#include <algorithm>

#include "espalier/core/error.h"
#include "espalier/nn/init.h"

namespace espalier::nn {
namespace {

/// Up to as many, images are taken one by one (docs/kernels.md).
constexpr std::int64_t kFewImages = 8;

kernels::ConvShape shape_of(const torch::nn::Conv2dOptions& o) {
  ESPALIER_CHECK(c10::get_if<torch::enumtype::kZeros>(&o.padding_mode()) != nullptr, ErrorKind::usage,
                 "sparse convolution: pads with zeros only; pad the images before it");
  kernels::ConvShape s;
  s.in = o.in_channels();
  s.out = o.out_channels();
  s.groups = o.groups();
  const auto* padding = c10::get_if<torch::ExpandingArray<2>>(&o.padding());
  const bool same = c10::get_if<torch::enumtype::kSame>(&o.padding()) != nullptr;
  for (std::size_t a = 0; a < 2; ++a) {
    s.kernel[a] = (*o.kernel_size())[a];
    s.stride[a] = (*o.stride())[a];
    s.dilation[a] = (*o.dilation())[a];
    if (padding != nullptr) s.padding[a] = (**padding)[a];
    if (!same) continue;
    const std::int64_t total = s.dilation[a] * (s.kernel[a] - 1);
    ESPALIER_CHECK(
        s.stride[a] == 1 && total % 2 == 0, ErrorKind::usage,
        "sparse convolution: padding \"same\" needs stride 1 and as much padding on both sides; found stride "
        "{}, kernel {}, dilation {}",
        s.stride[a], s.kernel[a], s.dilation[a]);
    s.padding[a] = total / 2;
  }
  return s;
}

/// dL/dw of one use of the layer, by LibTorch's dense gradient of some output channels at a time.
class ConvGradient : public GradientSource {
 public:
  ConvGradient(const kernels::ConvShape& shape, at::Tensor x, at::Tensor dy)
      : shape_(shape), x_(std::move(x)), dy_(std::move(dy)) {}  // [N, C, H, W]
  void add_rows(std::int64_t begin, std::int64_t end, at::Tensor& rows) const override {
    const std::int64_t inputs = shape_.in / shape_.groups, outputs = shape_.out / shape_.groups;
    for (std::int64_t o = begin; o < end;) {
      const std::int64_t group = o / outputs, last = std::min(end, (group + 1) * outputs);
      const at::Tensor like = at::empty({last - o, inputs, shape_.kernel[0], shape_.kernel[1]}, x_.options());
      const at::Tensor gradient = std::get<1>(at::convolution_backward(
          dy_.narrow(1, o, last - o), x_.narrow(1, group * inputs, inputs), like, c10::nullopt, shape_.stride,
          shape_.padding, shape_.dilation, false, {0, 0}, 1, {false, true, false}));
      rows.narrow(0, o - begin, last - o).add_(gradient.reshape({last - o, -1}));
      o = last;
    }
  }

 private:
  kernels::ConvShape shape_;
  at::Tensor x_, dy_;
};

std::vector<std::int64_t> weight_shape(const kernels::ConvShape& s) {
  ops::check_conv(s);
  return {s.out, s.in / s.groups, s.kernel[0], s.kernel[1]};
}

}  // namespace

SparseConv2dImpl::SparseConv2dImpl(const torch::nn::Conv2dOptions& options, at::ScalarType type)
    : SparseConv2dImpl(shape_of(options), options.bias(), type) {}

SparseConv2dImpl::SparseConv2dImpl(const kernels::ConvShape& s, bool with_bias, at::ScalarType type)
    : CompressedLayer("SparseConv2d", std::make_shared<CompressedWeight>("weight", weight_shape(s), type, s),
                      with_bias),
      shape_(s) {}

std::shared_ptr<SparseConv2dImpl> SparseConv2dImpl::from_dense(const torch::nn::Conv2dImpl& dense) {
  const torch::NoGradGuard no_grad;
  const KeepDefaultGenerator untouched;
  const auto& o = dense.options;
  auto options = torch::nn::Conv2dOptions(o.in_channels(), o.out_channels(), o.kernel_size())
                     .stride(o.stride())
                     .dilation(o.dilation())
                     .groups(o.groups())
                     .bias(dense.bias.defined())
                     .padding_mode(o.padding_mode());
  options.padding() = o.padding();
  auto layer = std::make_shared<SparseConv2dImpl>(options, dense.weight.scalar_type());
  layer->weight()->from_dense(dense.weight);
  if (dense.bias.defined()) layer->bias.copy_(dense.bias);
  return layer;
}

std::shared_ptr<CompressedLayer> SparseConv2dImpl::another() const {
  return std::make_shared<SparseConv2dImpl>(shape_, bias.defined(), weight()->stored_type());
}

std::string SparseConv2dImpl::options_text() const {
  const auto pair = [](const kernels::ConvShape::Pair& p) { return fmt::format("[{}, {}]", p[0], p[1]); };
  return fmt::format("{}, {}, kernel_size={}, stride={}, padding={}, dilation={}, groups={}", shape_.in, shape_.out,
                     pair(shape_.kernel), pair(shape_.stride), pair(shape_.padding), pair(shape_.dilation),
                     shape_.groups);
}

bool SparseConv2dImpl::takes_alone(const Activation& x) {
  return !x.is_images() && !x.is_tiled() && x.data().dim() == 4 && x.data().size(0) <= kFewImages &&
         !torch::GradMode::is_enabled();
}

Activation SparseConv2dImpl::compute(const Activation& x) { return convolved(x, false).first; }

std::pair<Activation, Activation> SparseConv2dImpl::fork(const Activation& x) { return convolved(x, true); }

std::pair<Activation, Activation> SparseConv2dImpl::convolved(const Activation& x, bool fork) {
  if (takes_alone(x)) {
    const auto matrix = weight()->matrix();
    const at::Tensor& data = x.data();
    ESPALIER_CHECK(data.size(1) == shape_.in, ErrorKind::usage,
                   "sparse convolution: the images have {} channels, the weight takes {}", data.size(1), shape_.in);
    if (!alone_ || !alone_->serves(matrix.get(), data.size(2), data.size(3))) {
      alone_ = std::make_shared<ops::AlonePlan>(matrix, shape_, data.size(2), data.size(3));
    }
    return {ops::sparse_conv2d_alone(data, *alone_, weight()->forward_values(), bias), x};
  }
  const Activation in = x.images(ops::conv_halo(shape_));
  // First the structure: values of a layer that nobody made sparse are only drawn now.
  const auto matrix = weight()->matrix();
  if (!plan_ || !plan_->serves(matrix.get(), in.image_layout())) {
    plan_ = std::make_shared<ops::ConvPlan>(matrix, shape_, in.image_layout());
  }
  ops::BackwardObserver observer;
  if (weight()->wants_dense_gradient()) {
    observer = [w = std::weak_ptr(weight()), layout = in.image_layout(), out = plan_->output(in.image_layout().samples),
                shape = shape_](const at::Tensor& images, const at::Tensor& dy) {
      if (const auto held = w.lock()) {
        held->add_gradient_source(std::make_shared<ConvGradient>(shape, ops::from_images(images.detach(), layout),
                                                                 ops::from_images(dy.detach(), out)));
      }
    };
  }
  const ops::ImageLayout out = plan_->output(in.image_layout().samples);
  if (fork) {
    auto [y, same] = ops::sparse_conv2d_fork(in.data(), in.image_layout(), plan_, weight()->stored_values(),
                                             weight()->forward_values(), bias, std::move(observer));
    return {{std::move(y), out}, {std::move(same), in.image_layout()}};
  }
  at::Tensor y = ops::sparse_conv2d(in.data(), in.image_layout(), plan_, weight()->stored_values(),
                                    weight()->forward_values(), bias, std::move(observer));
  return {{std::move(y), out}, x};
}

}  // namespace espalier::nn
