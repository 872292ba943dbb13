#include "espalier/ops/images.h"

#include <torch/torch.h>

#include <cstring>

#include "espalier/core/large_pages.h"
#include "ops/image_planes.h"

namespace espalier::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor tiled(const at::Tensor& nchw, const ImageLayout& layout) {
  // The planes of an image without gaps; images and channels may be anywhere.
  const bool dense = nchw.stride(3) == 1 && nchw.stride(2) == layout.width;
  const at::Tensor from = dense ? nchw : nchw.contiguous();
  at::Tensor images = new_images(layout, nchw.options());
  with_type(nchw, [&](auto zero) {
    using T = decltype(zero);
    const auto& k = kernels::active().images<T>();
    each_plane(layout, [&](std::int64_t g, std::int64_t c) {
      k.to_plane(from.data_ptr<T>() + g * kImageLanes * from.stride(0) + c * from.stride(1), from.stride(0),
                 layout.valid(g), layout.image(), images.data_ptr<T>() + layout.offset(g, c));
    });
  });
  return images;
}

at::Tensor untiled(const at::Tensor& images, const ImageLayout& layout) {
  const at::Tensor from = images.contiguous();
  at::Tensor nchw = at::empty({layout.samples, layout.channels, layout.height, layout.width}, images.options());
  const std::int64_t area = layout.height * layout.width;
  with_type(images, [&](auto zero) {
    using T = decltype(zero);
    const auto& k = kernels::active().images<T>();
    each_plane(layout, [&](std::int64_t g, std::int64_t c) {
      k.from_plane(from.data_ptr<T>() + layout.offset(g, c), layout.image(),
                   nchw.data_ptr<T>() + (g * kImageLanes * layout.channels + c) * area, layout.channels * area,
                   layout.valid(g));
    });
  });
  return nchw;
}

at::Tensor with_other_halo(const at::Tensor& images, const ImageLayout& layout, std::int64_t halo) {
  const at::Tensor from = images.contiguous();
  ImageLayout wanted = layout;
  wanted.halo = halo;
  at::Tensor to = new_images(wanted, images.options());
  with_type(images, [&](auto zero) {
    using T = decltype(zero);
    const auto& k = kernels::active().images<T>();
    each_plane(layout, [&](std::int64_t g, std::int64_t c) {
      k.with_halo(from.data_ptr<T>() + layout.offset(g, c), layout.image(), halo,
                  to.data_ptr<T>() + wanted.offset(g, c));
    });
  });
  return to;
}

/// Where the 16 images of a group stand in vector tiles of 64: feature 0, and the lanes from a feature to the next.
struct Lanes16 {
  std::int64_t offset, lanes;
};
Lanes16 place_of(std::int64_t group, const TileLayout& tiles) {
  constexpr std::int64_t kGroups = kernels::kTileLanes / kImageLanes;
  const std::int64_t tile = group / kGroups;
  return {tiles.offset(tile) + group % kGroups * kImageLanes, tiles.lanes(tile)};
}

at::Tensor flattened(const at::Tensor& images, const ImageLayout& layout) {
  const at::Tensor from = images.contiguous();
  const TileLayout flat = layout.flat();
  at::Tensor tiles = at::empty({flat.numel()}, images.options());
  with_type(images, [&](auto zero) {
    using T = decltype(zero);
    const auto& k = kernels::active().images<T>();
    each_plane(layout, [&](std::int64_t g, std::int64_t c) {
      const auto [offset, lanes] = place_of(g, flat);
      k.to_features(from.data_ptr<T>() + layout.offset(g, c), layout.image(),
                    tiles.data_ptr<T>() + offset + c * layout.height * layout.width * lanes, lanes);
    });
  });
  return tiles;
}

at::Tensor unflattened(const at::Tensor& tiles, const ImageLayout& layout) {
  const at::Tensor from = tiles.contiguous();
  const TileLayout flat = layout.flat();
  at::Tensor images = new_images(layout, tiles.options());
  with_type(tiles, [&](auto zero) {
    using T = decltype(zero);
    const auto& k = kernels::active().images<T>();
    each_plane(layout, [&](std::int64_t g, std::int64_t c) {
      const auto [offset, lanes] = place_of(g, flat);
      k.from_features(from.data_ptr<T>() + offset + c * layout.height * layout.width * lanes, lanes, layout.image(),
                      images.data_ptr<T>() + layout.offset(g, c));
    });
  });
  return images;
}

struct ToImages : torch::autograd::Function<ToImages> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& nchw, const ImageLayout& layout) {
    ctx->saved_data["layout"] = saved(layout);
    return tiled(nchw, layout);
  }
  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    return {from_images(gradients[0], saved_layout(ctx->saved_data["layout"])), {}};
  }
};

struct FromImages : torch::autograd::Function<FromImages> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& images, const ImageLayout& layout) {
    ctx->saved_data["halo"] = layout.halo;
    return untiled(images, layout);
  }
  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    return {to_images(gradients[0], ctx->saved_data["halo"].toInt()), {}};
  }
};

struct WithHalo : torch::autograd::Function<WithHalo> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& images, const ImageLayout& layout,
                            std::int64_t halo) {
    ctx->saved_data["layout"] = saved(layout);
    ctx->saved_data["halo"] = halo;
    return with_other_halo(images, layout, halo);
  }
  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const ImageLayout layout = saved_layout(ctx->saved_data["layout"]);
    ImageLayout given = layout;
    given.halo = ctx->saved_data["halo"].toInt();
    return {with_halo(gradients[0], given, layout.halo), {}, {}};
  }
};

struct ClearHalo : torch::autograd::Function<ClearHalo> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& images, const ImageLayout& layout) {
    ctx->saved_data["layout"] = saved(layout);
    return with_other_halo(images, layout, layout.halo);
  }
  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    return {clear_halo(gradients[0], saved_layout(ctx->saved_data["layout"])), {}};
  }
};

struct Add : torch::autograd::Function<Add> {
  static at::Tensor forward(AutogradContext* ctx, at::Tensor a, const at::Tensor& b, const ImageLayout& layout,
                            std::int64_t a_halo, std::int64_t b_halo, bool relu, bool over_a) {
    const at::Tensor from_a = a.contiguous(), from_b = b.contiguous();
    ImageLayout la = layout, lb = layout;
    la.halo = a_halo;
    lb.halo = b_halo;
    at::Tensor y = over_a ? a : new_images(layout, a.options());
    if (over_a) ctx->mark_dirty({a});
    with_type(a, [&](auto zero) {
      using T = decltype(zero);
      const auto& k = kernels::active().images<T>();
      each_plane(layout, [&](std::int64_t g, std::int64_t c) {
        k.add(from_a.data_ptr<T>() + la.offset(g, c), a_halo, from_b.data_ptr<T>() + lb.offset(g, c), b_halo,
              layout.image(), relu, y.data_ptr<T>() + layout.offset(g, c));
      });
    });
    if (relu) ctx->save_for_backward({y});
    ctx->saved_data["layout"] = saved(layout);
    ctx->saved_data["halos"] = std::vector<std::int64_t>{a_halo, b_halo};
    return y;
  }
  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    at::Tensor g = gradients[0];
    const auto variables = ctx->get_saved_variables();
    if (!variables.empty()) g = at::threshold_backward(g, variables[0], 0);
    const ImageLayout layout = saved_layout(ctx->saved_data["layout"]);
    const auto halos = ctx->saved_data["halos"].toIntVector();
    return {with_halo(g, layout, halos[0]), with_halo(g, layout, halos[1]), {}, {}, {}, {}, {}};
  }
};

struct Flatten : torch::autograd::Function<Flatten> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& images, const ImageLayout& layout) {
    ctx->saved_data["layout"] = saved(layout);
    return flattened(images, layout);
  }
  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    return {unflattened(gradients[0], saved_layout(ctx->saved_data["layout"])), {}};
  }
};

at::Tensor sum(const at::Tensor& a, const ImageLayout& a_layout, const at::Tensor& b, const ImageLayout& b_layout,
               bool relu, bool may_overwrite) {
  check_images(a, a_layout);
  check_images(b, b_layout);
  ImageLayout layout = a_layout;
  layout.halo = b_layout.halo;
  ESPALIER_CHECK(layout == b_layout && a.scalar_type() == b.scalar_type(), ErrorKind::usage,
                 "a sum of {} images of {}x{}x{} ({}) and {} of {}x{}x{} ({}): expected the same of both",
                 a_layout.samples, a_layout.channels, a_layout.height, a_layout.width, c10::toString(a.scalar_type()),
                 b_layout.samples, b_layout.channels, b_layout.height, b_layout.width, c10::toString(b.scalar_type()));
  layout.halo = std::max(a_layout.halo, b_layout.halo);
  const bool over_a = may_overwrite && layout == a_layout && a.is_contiguous();
  return Add::apply(a, b, layout, a_layout.halo, b_layout.halo, relu, over_a);
}

}  // namespace

at::Tensor new_entries(std::int64_t numel, const at::TensorOptions& options) {
  at::Tensor entries = at::empty({numel}, options);
  want_large_pages(entries.data_ptr(), entries.nbytes());
  return entries;
}

at::Tensor new_images(const ImageLayout& layout, const at::TensorOptions& options) {
  at::Tensor images = new_entries(layout.numel(), options);
  if (layout.samples == 0) return images;
  const auto bytes = static_cast<std::size_t>(layout.halo_below()) * images.element_size();
  std::memset(static_cast<char*>(images.data_ptr()) + images.nbytes() - bytes, 0, bytes);
  return images;
}

int ImageLayout::valid(std::int64_t group) const {
  return static_cast<int>(std::min<std::int64_t>(kImageLanes, samples - group * kImageLanes));
}

ImageLayout image_layout(const at::Tensor& nchw, std::int64_t halo) {
  ESPALIER_CHECK(nchw.dim() == 4 && nchw.device().is_cpu(), ErrorKind::usage,
                 "batch tiles of images are made of a tensor [N, C, H, W] on the CPU; found [{}] on {}",
                 fmt::join(nchw.sizes(), ", "), nchw.device().str());
  ESPALIER_CHECK(halo >= 0, ErrorKind::usage, "the halo of batch tiles is {}; expected 0 or more", halo);
  return {nchw.size(0), nchw.size(1), nchw.size(2), nchw.size(3), halo};
}

at::Tensor to_images(const at::Tensor& nchw, std::int64_t halo) {
  return ToImages::apply(nchw, image_layout(nchw, halo));
}

at::Tensor from_images(const at::Tensor& images, const ImageLayout& layout) {
  check_images(images, layout);
  return FromImages::apply(images, layout);
}

at::Tensor with_halo(const at::Tensor& images, const ImageLayout& layout, std::int64_t halo) {
  check_images(images, layout);
  ESPALIER_CHECK(halo >= 0, ErrorKind::usage, "the halo of batch tiles is {}; expected 0 or more", halo);
  return halo == layout.halo ? images : WithHalo::apply(images, layout, halo);
}

at::Tensor clear_halo(const at::Tensor& images, const ImageLayout& layout) {
  check_images(images, layout);
  return layout.halo == 0 ? images : ClearHalo::apply(images, layout);
}

at::Tensor add(const at::Tensor& a, const ImageLayout& a_layout, const at::Tensor& b, const ImageLayout& b_layout,
               bool relu) {
  return sum(a, a_layout, b, b_layout, relu, false);
}
at::Tensor add_over(const at::Tensor& a, const ImageLayout& a_layout, const at::Tensor& b, const ImageLayout& b_layout,
                    bool relu) {
  return sum(a, a_layout, b, b_layout, relu, true);
}

at::Tensor flatten(const at::Tensor& images, const ImageLayout& layout) {
  check_images(images, layout);
  return Flatten::apply(images, layout);
}

}  // namespace espalier::ops
