#include <ATen/Parallel.h>
#include <torch/torch.h>

#include <algorithm>

#include "espalier/core/error.h"
#include "espalier/kernels/dispatch.h"
#include "espalier/ops/sparse_conv.h"
#include "ops/dispatch_type.h"
#include "ops/sparse_function.h"

namespace espalier::ops {
namespace {

using kernels::AlonePlanes;

/// Blocks of 16 pixels that a thread takes at a time: what the kernel holds in registers.
constexpr std::int64_t kStrip = 16;
/// Entries that a thread must move to be worth waking.
constexpr std::int64_t kMoved = 32'768;

/// Pixels of one phase along an axis: [begin, end) of `count` lie in the image, the others in the padding.
struct Inside {
  std::int64_t begin, end, first;  // first: the image's pixel at `begin`
  Inside(std::int64_t count, std::int64_t size, std::int64_t stride, std::int64_t phase, std::int64_t padding) {
    const std::int64_t offset = phase - padding;  // pixel i stands for offset + stride i
    begin = std::min(count, offset < 0 ? (stride - 1 - offset) / stride : 0);
    end = std::clamp((size - offset + stride - 1) / stride, begin, count);
    first = offset + begin * stride;
  }
};

/// A channel, cut into the phases of the stride.
template <class T>
void split(const AlonePlan& plan, const T* channel, T* to) {
  const ConvShape& s = plan.shape();
  const AlonePlanes& planes = plan.planes();
  for (std::int64_t ph = 0; ph < s.stride[0]; ++ph) {
    const Inside rows(planes.rows, plan.height(), s.stride[0], ph, s.padding[0]);
    for (std::int64_t pw = 0; pw < s.stride[1]; ++pw, to += planes.plane()) {
      const Inside columns(planes.row, plan.width(), s.stride[1], pw, s.padding[1]);
      std::fill_n(to, rows.begin * planes.row, T(0));
      for (std::int64_t r = rows.begin; r < rows.end; ++r) {
        const T* from = channel + (rows.first + (r - rows.begin) * s.stride[0]) * plan.width() + columns.first;
        T* const row = to + r * planes.row;
        std::fill(row, row + columns.begin, T(0));
        if (s.stride[1] == 1) {
          std::copy_n(from, columns.end - columns.begin, row + columns.begin);
        } else {
          for (std::int64_t c = columns.begin; c < columns.end; ++c, from += s.stride[1]) row[c] = *from;
        }
        std::fill(row + columns.end, row + planes.row, T(0));
      }
      std::fill(to + rows.end * planes.row, to + planes.plane(), T(0));
    }
  }
}

template <class T>
void forward(const AlonePlan& plan, const T* values, const T* bias, std::int64_t samples, const T* x, T* y) {
  const auto& k = kernels::active().sparse_conv<T>();
  const ConvShape& s = plan.shape();
  const AlonePlanes& planes = plan.planes();
  const std::int64_t in_plane = s.phases() * planes.plane(), out_plane = planes.blocks * kImageLanes;
  const std::int64_t image = s.in * in_plane + kImageLanes;  // the last block reads beyond the last plane
  const auto buffer = [](std::int64_t n) { return std::unique_ptr<T[]>(new T[static_cast<std::size_t>(n)]); };
  const auto split_x = buffer(samples * image), whole_rows = buffer(samples * s.out * out_plane);

  const std::int64_t pixels = plan.height() * plan.width();
  at::parallel_for(0, samples * s.in, kMoved / in_plane + 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t p = begin; p < end; ++p) {
      T* const to = split_x.get() + p / s.in * image + p % s.in * in_plane;
      split(plan, x + p * pixels, to);
      if (p % s.in == s.in - 1) std::fill_n(to + in_plane, kImageLanes, T(0));
    }
  });

  const std::int64_t strips = (planes.blocks + kStrip - 1) / kStrip;
  const std::int64_t work = (plan.weight().nnz() + 2 * s.out) * kStrip * kImageLanes;
  at::parallel_for(0, samples * strips, kWorthAThread / work + 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t u = begin; u < end; ++u) {
      const std::int64_t n = u / strips, strip = u % strips;
      k.forward_alone(plan.weight().forward, plan.offsets().data(), values, bias, planes.blocks * strip / strips,
                      planes.blocks * (strip + 1) / strips, out_plane, split_x.get() + n * image,
                      whole_rows.get() + n * s.out * out_plane);
    }
  });

  at::parallel_for(0, samples * s.out, kMoved / out_plane + 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t p = begin; p < end; ++p) {
      const T* from = whole_rows.get() + p * out_plane;
      T* to = y + p * planes.height * planes.width;
      for (std::int64_t r = 0; r < planes.height; ++r, from += planes.row, to += planes.width) {
        std::copy_n(from, planes.width, to);
      }
    }
  });
}

}  // namespace

AlonePlan::AlonePlan(std::shared_ptr<const Compressed> weight, const ConvShape& shape, std::int64_t height,
                     std::int64_t width)
    : weight_(std::move(weight)), shape_(shape), height_(height), width_(width) {
  check_size(shape, height, width);
  planes_ = kernels::alone_planes(shape, height, width);
  constexpr std::int64_t kMost = std::int64_t{1} << 31;  // offsets have 32 bits
  ESPALIER_CHECK(shape.in * shape.phases() * planes_.plane() < kMost, ErrorKind::usage,
                 "sparse convolution: {} channels of {}x{} pixels are too many", shape.in, height, width);
  offsets_ = kernels::alone_offsets(*weight_, shape, planes_);
}

at::Tensor sparse_conv2d_alone(const at::Tensor& x, const AlonePlan& plan, const at::Tensor& values,
                               const at::Tensor& bias) {
  const ConvShape& s = plan.shape();
  ESPALIER_CHECK(x.dim() == 4 && x.size(1) == s.in && x.device().is_cpu(), ErrorKind::usage,
                 "sparse convolution: expected images [N, {}, H, W] on the CPU; found [{}] on {}", s.in,
                 fmt::join(x.sizes(), ", "), x.device().str());
  ESPALIER_CHECK(x.scalar_type() == values.scalar_type(), ErrorKind::usage,
                 "sparse convolution: the images are {}, the weight {}; convert one of them",
                 c10::toString(x.scalar_type()), c10::toString(values.scalar_type()));
  ESPALIER_ASSERT(x.size(2) == plan.height() && x.size(3) == plan.width() && values.numel() == plan.weight().nnz());
  const at::Tensor from = x.contiguous();
  at::Tensor y = at::empty({x.size(0), s.out, plan.planes().height, plan.planes().width}, x.options());
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    forward<T>(plan, values.data_ptr<T>(), bias.defined() ? bias.data_ptr<T>() : nullptr, x.size(0), from.data_ptr<T>(),
               y.data_ptr<T>());
  });
  return y;
}

}  // namespace espalier::ops
