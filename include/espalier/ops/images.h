/// Batch tiles of images: how activations lie in memory between sparse convolutions.
///
/// A batch of N images with C channels is cut into groups of 16 images, images innermost, with a border of zeros, the
/// halo, around each channel, which neighbouring rows and channels share: [ceil(N / 16)][C] planes of
/// [halo + H][halo + W][16] entries (kernels::ImagePlane), and a halo below the last one, as one contiguous
/// one-dimensional tensor. A convolution whose padding is at most the halo needs no test for the border.
/// The halo is zero in activations and in gradients alike, with what stands between two planes; every function keeps it
/// so and relies on it, but on nothing between planes that have no halo. What lanes from N on hold is nobody's
/// business, as long as it is finite; their gradients are zero.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "espalier/kernels/images.h"
#include "espalier/ops/tiles.h"

namespace espalier::ops {

using kernels::kImageLanes;

struct ImageLayout {
  std::int64_t samples = 0;  ///< N, without padding
  std::int64_t channels = 0;
  std::int64_t height = 0;  ///< without the halo, like width
  std::int64_t width = 0;
  std::int64_t halo = 0;

  std::int64_t groups() const { return (samples + kImageLanes - 1) / kImageLanes; }
  int valid(std::int64_t group) const;  ///< images in the group
  kernels::ImagePlane image() const { return {height, width, halo}; }
  std::int64_t row() const { return image().row(); }       ///< pixels from a row to the next
  std::int64_t plane() const { return image().pixels(); }  ///< pixels from a channel to the next
  /// Where channel c of group g begins, in entries.
  std::int64_t offset(std::int64_t group, std::int64_t channel) const {
    return (group * channels + channel) * plane() * kImageLanes;
  }
  std::int64_t halo_below() const { return image().halo_below() * kImageLanes; }  ///< entries behind the last channel
  std::int64_t numel() const { return samples == 0 ? 0 : offset(groups(), 0) + halo_below(); }
  TileLayout flat() const { return {samples, channels * height * width}; }  ///< what flatten gives
  bool operator==(const ImageLayout& o) const {
    return samples == o.samples && channels == o.channels && height == o.height && width == o.width && halo == o.halo;
  }
};

/// What a function makes of x, and x for its other use, as in a residual block: the gradient of that use is what the
/// function's own gradient is added to, in place of a sum in a pass of its own.
struct Forked {
  at::Tensor y, x;
};

/// [N, C, H, W] float32 or float64 on the CPU, of any strides -> images [numel]. Differentiable. Throws Error(usage)
/// for anything else and for a negative halo.
at::Tensor to_images(const at::Tensor& nchw, std::int64_t halo);

/// The layout that to_images gives these images.
ImageLayout image_layout(const at::Tensor& nchw, std::int64_t halo);

/// images [numel] -> [N, C, H, W]. Differentiable.
at::Tensor from_images(const at::Tensor& images, const ImageLayout& layout);

/// The same images with another halo; the same tensor where they have it already. Differentiable.
at::Tensor with_halo(const at::Tensor& images, const ImageLayout& layout, std::int64_t halo);

/// The same tensor with a halo of zeros, for functions that map 0 to something else. Differentiable.
at::Tensor clear_halo(const at::Tensor& images, const ImageLayout& layout);

/// a + b, or max(0, a + b), of the same images with a halo each; the result has the larger one. Differentiable.
/// Throws Error(usage) for different images.
at::Tensor add(const at::Tensor& a, const ImageLayout& a_layout, const at::Tensor& b, const ImageLayout& b_layout,
               bool relu = false);

/// The same, written over a where its halo is the larger one: for a tensor that nobody else holds and that no backward
/// pass needs.
at::Tensor add_over(const at::Tensor& a, const ImageLayout& a_layout, const at::Tensor& b, const ImageLayout& b_layout,
                    bool relu = false);

/// images -> vector tiles of [N, C * H * W] (ops/tiles.h), the features in the order of a flattened [N, C, H, W].
/// Differentiable.
at::Tensor flatten(const at::Tensor& images, const ImageLayout& layout);

}  // namespace espalier::ops
