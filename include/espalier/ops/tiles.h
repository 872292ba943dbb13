/// Batch tiles: how activations lie in memory between sparse layers.
///
/// A batch of N samples with F features is cut into tiles of 64 samples. In a tile the samples are innermost: feature f
/// of sample s stands at tile[f * lanes + s]. The last tile is padded to a multiple of 16 lanes. All tiles, one after
/// the other, are one contiguous one-dimensional tensor of F * padded(N) entries: functions of single entries (ReLU,
/// sums of two activations) work on it as it is.
/// What padding lanes hold is nobody's business, as long as it is finite; their gradients are zero.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace espalier::ops {

struct TileLayout {
  std::int64_t samples = 0;   ///< N, without padding
  std::int64_t features = 0;  ///< F

  std::int64_t tiles() const;
  int lanes(std::int64_t tile) const;            ///< 64, or fewer in the last tile: a multiple of 16
  int valid(std::int64_t tile) const;            ///< samples in the tile
  std::int64_t offset(std::int64_t tile) const;  ///< of the tile, in entries
  std::int64_t numel() const;                    ///< F * padded(N)
  bool operator==(const TileLayout& o) const { return samples == o.samples && features == o.features; }
};

/// [N, F] float32 or float64 on the CPU -> tiles [numel]. Differentiable. Throws Error(usage) for anything else.
at::Tensor to_tiles(const at::Tensor& rows);

/// tiles [numel] -> [N, F]. Differentiable; padding lanes get zero gradients.
at::Tensor from_tiles(const at::Tensor& tiles, const TileLayout& layout);

}  // namespace espalier::ops
