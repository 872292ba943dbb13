/// What flows between layers: a plain LibTorch tensor, or batch tiles (ops/tiles.h) on the way through sparse layers.
/// Conversion happens where the two kinds of layer meet, so once at each end of a chain. Autograd runs on data().
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <utility>

#include "espalier/ops/tiles.h"

namespace espalier::nn {

class Activation {
 public:
  Activation(at::Tensor plain) : data_(std::move(plain)) {}  // NOLINT: a tensor is one
  Activation(at::Tensor tiles, const ops::TileLayout& layout) : data_(std::move(tiles)), layout_(layout) {}

  bool is_tiled() const { return layout_.has_value(); }
  const at::Tensor& data() const { return data_; }
  const ops::TileLayout& layout() const { return *layout_; }  ///< only where is_tiled()

  at::Tensor plain() const { return is_tiled() ? ops::from_tiles(data_, *layout_) : data_; }
  /// From [N, F]. Throws Error(usage) for another shape.
  Activation tiled() const {
    if (is_tiled()) return *this;
    at::Tensor tiles = ops::to_tiles(data_);
    return {std::move(tiles), {data_.size(0), data_.size(1)}};
  }

  /// f applied to each entry where it lies: at::Tensor f(const at::Tensor&), of the same shape, finite for finite
  /// input.
  template <class F>
  Activation map(const F& f) const {
    Activation out = *this;
    out.data_ = f(data_);
    return out;
  }

 private:
  at::Tensor data_;
  std::optional<ops::TileLayout> layout_;
};

}  // namespace espalier::nn
