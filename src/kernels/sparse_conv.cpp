#include "espalier/kernels/sparse_conv.h"

#include <algorithm>

namespace espalier::kernels {
namespace {

/// f(channel, tap row, tap column, output channel, k) for each entry k of the forward side.
template <class F>
void each_tap(const Compressed& weight, const ConvShape& shape, const F& f) {
  const std::int64_t taps = shape.taps(), channels = shape.in / shape.groups, outputs = shape.out / shape.groups;
  each_entry(weight, [&](std::int64_t o, std::int64_t column, std::uint32_t k) {
    const std::int64_t c = o / outputs * channels + column / taps;
    f(c, column % taps / shape.kernel[1], column % shape.kernel[1], o, k);
  });
}

}  // namespace

ConvOffsets conv_offsets(const Compressed& weight, const ConvShape& shape, const Planes& x, const Planes& y) {
  ConvOffsets offsets;
  offsets.forward.resize(static_cast<std::size_t>(weight.nnz()));
  offsets.backward.resize(static_cast<std::size_t>(weight.nnz()));
  each_tap(weight, shape, [&](std::int64_t c, std::int64_t h, std::int64_t w, std::int64_t o, std::uint32_t k) {
    offsets.forward[k] = static_cast<std::int32_t>(c * x.plane + h * shape.dilation[0] * x.row + w * shape.dilation[1]);
    offsets.backward[weight.canonical[k]] =
        static_cast<std::int32_t>(o * y.plane + shape.shift(0, h) * y.row + shape.shift(1, w));
  });
  return offsets;
}

double conv_density(const ConvShape& shape, std::int64_t nnz) {
  return static_cast<double>(nnz) / (static_cast<double>(shape.out) * static_cast<double>(shape.columns()));
}

/// Measured at 80 to 98 % sparsity, 1x1 to 5x5 taps, with AVX-512 on Zen 4 (docs/kernels.md): from some 12 entries a
/// line on, the rectangle is level to 19 % faster; below, and in groups of channels, the patch by up to half.
bool forward_in_patches(const ConvShape& shape, std::int64_t nnz) {
  constexpr double kMany = 12;
  const auto channels = static_cast<double>(std::min<std::int64_t>(16, shape.in));
  return shape.groups > 1 || channels * static_cast<double>(shape.taps()) * conv_density(shape, nnz) < kMany;
}

std::int64_t patch_rows(std::int64_t channels, std::int64_t row, std::int64_t step, std::int64_t beyond,
                        std::int64_t pixel) {
  constexpr std::int64_t kFitsL2 = 768 << 10;  // of a megabyte or more
  return std::max<std::int64_t>(1, (kFitsL2 / (channels * row * pixel) - beyond) / step);
}

AlonePlanes alone_planes(const ConvShape& shape, std::int64_t height, std::int64_t width) {
  AlonePlanes planes;
  planes.height = shape.output(0, height);
  planes.width = shape.output(1, width);
  planes.rows = planes.height + shape.dilation[0] * (shape.kernel[0] - 1) / shape.stride[0];
  planes.row = planes.width + shape.dilation[1] * (shape.kernel[1] - 1) / shape.stride[1];
  const std::int64_t pixels = (planes.height - 1) * planes.row + planes.width;
  planes.blocks = (pixels + kImageLanes - 1) / kImageLanes;
  return planes;
}

std::vector<std::int32_t> alone_offsets(const Compressed& weight, const ConvShape& shape, const AlonePlanes& planes) {
  std::vector<std::int32_t> offsets(static_cast<std::size_t>(weight.nnz()));
  each_tap(weight, shape, [&](std::int64_t c, std::int64_t h, std::int64_t w, std::int64_t, std::uint32_t k) {
    const std::int64_t y = h * shape.dilation[0], x = w * shape.dilation[1];
    const std::int64_t phase = y % shape.stride[0] * shape.stride[1] + x % shape.stride[1];
    offsets[k] = static_cast<std::int32_t>((c * shape.phases() + phase) * planes.plane() +
                                           y / shape.stride[0] * planes.row + x / shape.stride[1]);
  });
  return offsets;
}

}  // namespace espalier::kernels
