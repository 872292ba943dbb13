#include "espalier/ops/images.h"

#include <torch/torch.h>

#include "ops/image_planes.h"

namespace espalier::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor tiled(const at::Tensor& nchw, const ImageLayout& layout) {
  // The planes of an image without gaps; images and channels may be anywhere.
  const bool dense = nchw.stride(3) == 1 && nchw.stride(2) == layout.width;
  const at::Tensor from = dense ? nchw : nchw.contiguous();
  at::Tensor images = at::empty({layout.numel()}, nchw.options());
  with_type(nchw, [&](auto zero) {
    using T = decltype(zero);
    const auto& k = kernels::active().images<T>();
    each_plane(layout, [&](std::int64_t g, std::int64_t c) {
      k.to_plane(from.data_ptr<T>() + g * kImageLanes * from.stride(0) + c * from.stride(1), from.stride(0),
                 layout.valid(g), plane_of(layout), images.data_ptr<T>() + layout.offset(g, c));
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
      k.from_plane(from.data_ptr<T>() + layout.offset(g, c), plane_of(layout),
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
  at::Tensor to = at::empty({wanted.numel()}, images.options());
  with_type(images, [&](auto zero) {
    using T = decltype(zero);
    const auto& k = kernels::active().images<T>();
    each_plane(layout, [&](std::int64_t g, std::int64_t c) {
      k.with_halo(from.data_ptr<T>() + layout.offset(g, c), plane_of(layout), halo,
                  to.data_ptr<T>() + wanted.offset(g, c));
    });
  });
  return to;
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

}  // namespace

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

}  // namespace espalier::ops
