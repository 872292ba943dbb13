/// What flows between layers: a plain LibTorch tensor, or batch tiles on the way through sparse layers, of vectors
/// (ops/tiles.h) or of images (ops/images.h). Conversion happens where the kinds of layer meet, so once at each end of
/// a chain. Autograd runs on data().
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
#include <variant>

#include "espalier/ops/images.h"
#include "espalier/ops/tiles.h"

namespace espalier::nn {

class Activation {
 public:
  Activation(at::Tensor plain) : data_(std::move(plain)) {}  // NOLINT: a tensor is one
  Activation(at::Tensor tiles, const ops::TileLayout& layout) : data_(std::move(tiles)), layout_(layout) {}
  Activation(at::Tensor images, const ops::ImageLayout& layout) : data_(std::move(images)), layout_(layout) {}

  bool is_tiled() const { return std::holds_alternative<ops::TileLayout>(layout_); }
  bool is_images() const { return std::holds_alternative<ops::ImageLayout>(layout_); }
  const at::Tensor& data() const { return data_; }
  const ops::TileLayout& tile_layout() const { return std::get<ops::TileLayout>(layout_); }     ///< where is_tiled()
  const ops::ImageLayout& image_layout() const { return std::get<ops::ImageLayout>(layout_); }  ///< where is_images()

  /// [N, F] or [N, C, H, W]
  at::Tensor plain() const;
  /// From [N, F]. Throws Error(usage) for another shape.
  Activation tiled() const;
  /// From [N, C, H, W]; with at least this halo. Throws Error(usage) for another shape.
  Activation images(std::int64_t halo) const;

  /// f applied to each entry where it lies: at::Tensor f(const at::Tensor&), of the same shape, finite for finite
  /// input.
  template <class F>
  Activation map(const F& f) const {
    Activation out = *this;
    out.data_ = f(data_);
    out.restore_halo();
    return out;
  }

 private:
  /// The halo after a function of each entry: it holds f(0).
  void restore_halo();

  at::Tensor data_;
  std::variant<std::monostate, ops::TileLayout, ops::ImageLayout> layout_;
};

}  // namespace espalier::nn
