#include "espalier/kernels/sparse_conv.h"

namespace espalier::kernels {

ConvOffsets conv_offsets(const Compressed& weight, const ConvShape& shape, const Planes& x, const Planes& y) {
  ConvOffsets offsets;
  offsets.forward.resize(static_cast<std::size_t>(weight.nnz()));
  offsets.backward.resize(static_cast<std::size_t>(weight.nnz()));
  const std::int64_t taps = shape.taps(), channels = shape.in / shape.groups, outputs = shape.out / shape.groups;
  each_entry(weight, [&](std::int64_t o, std::int64_t column, std::uint32_t k) {
    const std::int64_t c = o / outputs * channels + column / taps;
    const std::int64_t h = column % taps / shape.kernel[1], w = column % shape.kernel[1];
    offsets.forward[k] = static_cast<std::int32_t>(c * x.plane + h * shape.dilation[0] * x.row + w * shape.dilation[1]);
    offsets.backward[weight.canonical[k]] =
        static_cast<std::int32_t>(o * y.plane + shape.shift(0, h) * y.row + shape.shift(1, w));
  });
  return offsets;
}

}  // namespace espalier::kernels
