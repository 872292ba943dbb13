#include "espalier/nn/activation.h"

#include <torch/torch.h>

namespace espalier::nn {

at::Tensor Activation::plain() const {
  if (is_tiled()) return ops::from_tiles(data_, tile_layout());
  if (is_images()) return ops::from_images(data_, image_layout());
  return data_;
}

Activation Activation::tiled() const {
  if (is_tiled()) return *this;
  const at::Tensor rows = plain();
  at::Tensor tiles = ops::to_tiles(rows);
  return {std::move(tiles), ops::TileLayout{rows.size(0), rows.size(1)}};
}

Activation Activation::images(std::int64_t halo) const {
  if (!is_images()) {
    const at::Tensor nchw = plain();
    return {ops::to_images(nchw, halo), ops::image_layout(nchw, halo)};
  }
  ops::ImageLayout layout = image_layout();
  if (layout.halo >= halo) return *this;
  layout.halo = halo;
  return {ops::with_halo(data_, image_layout(), halo), layout};
}

void Activation::restore_halo() {
  if (!is_images() || image_layout().halo == 0 || data_.numel() == 0) return;
  // The first entry stands in the halo.
  if (data_.detach()[0].item<double>() != 0) data_ = ops::clear_halo(data_, image_layout());
}

}  // namespace espalier::nn
