/// Pools in batch tiles of images, equal to torch's on plain tensors. The result has the halo that comes in.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>

#include "espalier/ops/images.h"

namespace espalier::ops {

/// Windows of kernel[0] x kernel[1] pixels, height first, as in torch::max_pool2d; no dilation, no ceil_mode.
struct Pool {
  std::array<std::int64_t, 2> kernel{}, stride{}, padding{};
};

/// The layout of what pools of these images give. Throws Error(usage) for windows that do not fit: a kernel larger than
/// the padded image, a stride below 1, a padding above half the kernel.
ImageLayout pooled(const ImageLayout& layout, const Pool& pool);

/// The gradient goes to the first of equal entries.
at::Tensor max_pool(const at::Tensor& images, const ImageLayout& layout, const Pool& pool);
/// Zeros of the padding count (count_include_pad).
at::Tensor average_pool(const at::Tensor& images, const ImageLayout& layout, const Pool& pool);

/// torch::adaptive_max_pool2d and torch::adaptive_avg_pool2d: `size` windows down and across, each pixel in at least
/// one. The result has the layout of `layout` with this height and width.
at::Tensor adaptive_max_pool(const at::Tensor& images, const ImageLayout& layout, std::array<std::int64_t, 2> size);
at::Tensor adaptive_average_pool(const at::Tensor& images, const ImageLayout& layout, std::array<std::int64_t, 2> size);

// Of whole images, to vector tiles [N, C] (ops/tiles.h).

/// x.mean({2, 3})
at::Tensor global_average(const at::Tensor& images, const ImageLayout& layout);
/// x.amax({2, 3}): the gradient goes to all of the largest entries in equal shares.
at::Tensor global_max(const at::Tensor& images, const ImageLayout& layout);

}  // namespace espalier::ops
