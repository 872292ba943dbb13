#include "espalier/ops/tiles.h"

#include <torch/torch.h>

#include "espalier/core/error.h"
#include "espalier/kernels/dispatch.h"
#include "ops/dispatch_type.h"

namespace espalier::ops {
namespace {

using kernels::kLaneStep;
using kernels::kTileLanes;

/// Features of a tile that a thread takes at least.
constexpr std::int64_t kTileRows = 256;

at::Tensor tiled(const at::Tensor& rows) {
  const TileLayout layout{rows.size(0), rows.size(1)};
  const at::Tensor from = rows.stride(1) == 1 ? rows : rows.contiguous();
  at::Tensor tiles = at::empty({layout.numel()}, rows.options());
  with_type(rows, [&](auto zero) {
    using T = decltype(zero);
    const auto& k = kernels::active().sparse_linear<T>();
    at::parallel_for(0, layout.tiles() * layout.features, kTileRows, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin / layout.features; t * layout.features < end; ++t) {
        k.to_tile(from.data_ptr<T>() + t * kTileLanes * from.stride(0), from.stride(0), layout.valid(t),
                  tiles.data_ptr<T>() + layout.offset(t), layout.lanes(t),
                  std::max<std::int64_t>(0, begin - t * layout.features),
                  std::min(layout.features, end - t * layout.features));
      }
    });
  });
  return tiles;
}

at::Tensor untiled(const at::Tensor& tiles, const TileLayout& layout) {
  const at::Tensor from = tiles.contiguous();
  at::Tensor rows = at::empty({layout.samples, layout.features}, tiles.options());
  with_type(tiles, [&](auto zero) {
    using T = decltype(zero);
    const auto& k = kernels::active().sparse_linear<T>();
    at::parallel_for(0, layout.tiles() * layout.features, kTileRows, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin / layout.features; t * layout.features < end; ++t) {
        k.from_tile(from.data_ptr<T>() + layout.offset(t), layout.lanes(t),
                    rows.data_ptr<T>() + t * kTileLanes * layout.features, layout.features, layout.valid(t),
                    std::max<std::int64_t>(0, begin - t * layout.features),
                    std::min(layout.features, end - t * layout.features));
      }
    });
  });
  return rows;
}

struct ToTiles : torch::autograd::Function<ToTiles> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& rows) {
    ctx->saved_data["samples"] = rows.size(0);
    ctx->saved_data["features"] = rows.size(1);
    return tiled(rows);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list gradients) {
    return {from_tiles(gradients[0], {ctx->saved_data["samples"].toInt(), ctx->saved_data["features"].toInt()})};
  }
};

struct FromTiles : torch::autograd::Function<FromTiles> {
  static at::Tensor forward(torch::autograd::AutogradContext*, const at::Tensor& tiles, const TileLayout& layout) {
    return untiled(tiles, layout);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*,
                                                 torch::autograd::variable_list gradients) {
    return {to_tiles(gradients[0]), {}};
  }
};

}  // namespace

std::int64_t TileLayout::tiles() const { return (samples + kTileLanes - 1) / kTileLanes; }
int TileLayout::valid(std::int64_t tile) const {
  return static_cast<int>(std::min<std::int64_t>(kTileLanes, samples - tile * kTileLanes));
}
int TileLayout::lanes(std::int64_t tile) const { return (valid(tile) + kLaneStep - 1) / kLaneStep * kLaneStep; }
std::int64_t TileLayout::offset(std::int64_t tile) const { return tile * kTileLanes * features; }
std::int64_t TileLayout::numel() const { return (samples + kLaneStep - 1) / kLaneStep * kLaneStep * features; }

at::Tensor to_tiles(const at::Tensor& rows) {
  ESPALIER_CHECK(rows.dim() == 2 && rows.device().is_cpu(), ErrorKind::usage,
                 "tiles are made of a matrix [samples, features] on the CPU; found [{}] on {}",
                 fmt::join(rows.sizes(), ", "), rows.device().str());
  return ToTiles::apply(rows);
}

at::Tensor from_tiles(const at::Tensor& tiles, const TileLayout& layout) {
  ESPALIER_CHECK(tiles.dim() == 1 && tiles.numel() == layout.numel(), ErrorKind::usage,
                 "tiles of {} samples with {} features have {} entries; found {}", layout.samples, layout.features,
                 layout.numel(), tiles.numel());
  return FromTiles::apply(tiles, layout);
}

}  // namespace espalier::ops
