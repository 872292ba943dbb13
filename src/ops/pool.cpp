#include "espalier/ops/pool.h"

#include <torch/torch.h>

#include <memory>
#include <vector>

#include "ops/image_planes.h"

namespace espalier::ops {
namespace {

using kernels::Pixel;
using kernels::PoolWindow;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Windows over a batch of images, and the layouts before and after.
struct Windows : torch::CustomClassHolder {
  ImageLayout in, out;
  std::vector<PoolWindow> rows, columns;
  std::int64_t divisor = 0;  // of averages; 0: the pixels of each window
};

std::vector<PoolWindow> windows(std::int64_t size, std::int64_t count, std::int64_t kernel, std::int64_t stride,
                                std::int64_t padding) {
  std::vector<PoolWindow> list;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t begin = i * stride - padding;
    list.push_back({std::max<std::int64_t>(0, begin), std::min(size, begin + kernel)});
  }
  return list;
}

c10::intrusive_ptr<Windows> windows_of(const ImageLayout& in, const Pool& pool) {
  auto w = c10::make_intrusive<Windows>();
  w->in = in;
  w->out = pooled(in, pool);
  w->rows = windows(in.height, w->out.height, pool.kernel[0], pool.stride[0], pool.padding[0]);
  w->columns = windows(in.width, w->out.width, pool.kernel[1], pool.stride[1], pool.padding[1]);
  w->divisor = pool.kernel[0] * pool.kernel[1];
  return w;
}

std::vector<PoolWindow> adaptive_windows(std::int64_t size, std::int64_t count) {
  std::vector<PoolWindow> list;
  for (std::int64_t i = 0; i < count; ++i) list.push_back({i * size / count, ((i + 1) * size + count - 1) / count});
  return list;
}

c10::intrusive_ptr<Windows> adaptive_windows_of(const ImageLayout& in, std::array<std::int64_t, 2> size) {
  ESPALIER_CHECK(size[0] >= 1 && size[1] >= 1 && in.height >= 1 && in.width >= 1, ErrorKind::usage,
                 "an adaptive pool of {}x{} images to {}x{}: expected at least 1x1", in.height, in.width, size[0],
                 size[1]);
  auto w = c10::make_intrusive<Windows>();
  w->in = w->out = in;
  w->out.height = size[0];
  w->out.width = size[1];
  w->rows = adaptive_windows(in.height, size[0]);
  w->columns = adaptive_windows(in.width, size[1]);
  return w;
}

c10::IValue saved(const c10::intrusive_ptr<Windows>& w) { return c10::IValue::make_capsule(w); }

struct MaxPool : torch::autograd::Function<MaxPool> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& images, const c10::intrusive_ptr<Windows>& w) {
    const at::Tensor x = images.contiguous();
    at::Tensor y = new_images(w->out, x.options());
    const std::int64_t windows = w->out.height * w->out.width * kImageLanes;  // of a plane
    at::Tensor pixels;
    if (images.requires_grad()) {
      pixels = at::empty({w->out.groups() * w->out.channels * windows},
                         x.options().dtype(x.scalar_type() == at::kFloat ? at::kInt : at::kLong));
    }
    with_type(x, [&](auto zero) {
      using T = decltype(zero);
      const auto& k = kernels::active().images<T>();
      each_plane(w->in, [&](std::int64_t g, std::int64_t c) {
        Pixel<T>* const to =
            pixels.defined() ? static_cast<Pixel<T>*>(pixels.data_ptr()) + (g * w->in.channels + c) * windows : nullptr;
        k.max_pool(x.data_ptr<T>() + w->in.offset(g, c), w->in.image(), w->rows.data(), w->columns.data(),
                   w->out.image(), y.data_ptr<T>() + w->out.offset(g, c), to);
      });
    });
    ctx->save_for_backward({pixels});
    ctx->saved_data["windows"] = saved(w);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const at::Tensor pixels = ctx->get_saved_variables()[0];
    const auto capsule = ctx->saved_data["windows"].toCapsule();
    const auto& w = static_cast<const Windows&>(*capsule);
    const at::Tensor dy = gradients[0].contiguous();
    at::Tensor dx = new_images(w.in, dy.options());
    const std::int64_t windows = w.out.height * w.out.width * kImageLanes;
    with_type(dy, [&](auto zero) {
      using T = decltype(zero);
      const auto& k = kernels::active().images<T>();
      each_plane(w.in, [&](std::int64_t g, std::int64_t c) {
        k.max_pool_gradient(dy.data_ptr<T>() + w.out.offset(g, c),
                            static_cast<const Pixel<T>*>(pixels.data_ptr()) + (g * w.in.channels + c) * windows,
                            w.out.image(), w.rows.data(), w.columns.data(), w.in.image(),
                            dx.data_ptr<T>() + w.in.offset(g, c));
      });
    });
    return {dx, {}};
  }
};

struct AveragePool : torch::autograd::Function<AveragePool> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& images, const c10::intrusive_ptr<Windows>& w) {
    const at::Tensor x = images.contiguous();
    at::Tensor y = new_images(w->out, x.options());
    with_type(x, [&](auto zero) {
      using T = decltype(zero);
      const auto& k = kernels::active().images<T>();
      each_plane(w->in, [&](std::int64_t g, std::int64_t c) {
        k.average_pool(x.data_ptr<T>() + w->in.offset(g, c), w->in.image(), w->rows.data(), w->columns.data(),
                       w->divisor, w->out.image(), y.data_ptr<T>() + w->out.offset(g, c));
      });
    });
    ctx->saved_data["windows"] = saved(w);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto capsule = ctx->saved_data["windows"].toCapsule();
    const auto& w = static_cast<const Windows&>(*capsule);
    const at::Tensor dy = gradients[0].contiguous();
    at::Tensor dx = new_images(w.in, dy.options());
    with_type(dy, [&](auto zero) {
      using T = decltype(zero);
      const auto& k = kernels::active().images<T>();
      each_plane(w.in, [&](std::int64_t g, std::int64_t c) {
        k.average_pool_gradient(dy.data_ptr<T>() + w.out.offset(g, c), w.out.image(), w.rows.data(), w.columns.data(),
                                w.divisor, w.in.image(), dx.data_ptr<T>() + w.in.offset(g, c));
      });
    });
    return {dx, {}};
  }
};

/// The largest of each plane: images of one pixel.
struct Largest : torch::autograd::Function<Largest> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& images, const ImageLayout& layout) {
    const at::Tensor x = images.contiguous();
    at::Tensor y = at::empty({layout.groups() * layout.channels * kImageLanes}, x.options());
    with_type(x, [&](auto zero) {
      using T = decltype(zero);
      const auto& k = kernels::active().images<T>();
      each_plane(layout, [&](std::int64_t g, std::int64_t c) {
        k.largest(x.data_ptr<T>() + layout.offset(g, c), layout.image(),
                  y.data_ptr<T>() + (g * layout.channels + c) * kImageLanes);
      });
    });
    ctx->save_for_backward({x, y});
    ctx->saved_data["layout"] = ops::saved(layout);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto variables = ctx->get_saved_variables();
    const at::Tensor &x = variables[0], &y = variables[1];
    const ImageLayout layout = saved_layout(ctx->saved_data["layout"]);
    const at::Tensor dy = gradients[0].contiguous();
    at::Tensor dx = new_images(layout, x.options());
    with_type(x, [&](auto zero) {
      using T = decltype(zero);
      const auto& k = kernels::active().images<T>();
      each_plane(layout, [&](std::int64_t g, std::int64_t c) {
        const std::int64_t pixel = (g * layout.channels + c) * kImageLanes;
        k.largest_gradient(x.data_ptr<T>() + layout.offset(g, c), layout.image(), y.data_ptr<T>() + pixel,
                           dy.data_ptr<T>() + pixel, dx.data_ptr<T>() + layout.offset(g, c));
      });
    });
    return {dx, {}};
  }
};

}  // namespace

ImageLayout pooled(const ImageLayout& layout, const Pool& pool) {
  ImageLayout out = layout;
  const std::array<std::int64_t*, 2> sizes = {&out.height, &out.width};
  for (std::size_t i = 0; i < 2; ++i) {
    const std::int64_t kernel = pool.kernel[i], stride = pool.stride[i], padding = pool.padding[i];
    ESPALIER_CHECK(stride >= 1 && padding >= 0 && 2 * padding <= kernel && kernel <= *sizes[i] + 2 * padding,
                   ErrorKind::usage,
                   "a pool with kernel {}, stride {} and padding {} on {} pixels: expected a stride of 1 or more, a "
                   "padding of at most half the kernel, a kernel no larger than the padded image",
                   kernel, stride, padding, *sizes[i]);
    *sizes[i] = (*sizes[i] + 2 * padding - kernel) / stride + 1;
  }
  return out;
}

at::Tensor max_pool(const at::Tensor& images, const ImageLayout& layout, const Pool& pool) {
  check_images(images, layout);
  return MaxPool::apply(images, windows_of(layout, pool));
}

at::Tensor average_pool(const at::Tensor& images, const ImageLayout& layout, const Pool& pool) {
  check_images(images, layout);
  return AveragePool::apply(images, windows_of(layout, pool));
}

at::Tensor adaptive_max_pool(const at::Tensor& images, const ImageLayout& layout, std::array<std::int64_t, 2> size) {
  check_images(images, layout);
  return MaxPool::apply(images, adaptive_windows_of(layout, size));
}

at::Tensor adaptive_average_pool(const at::Tensor& images, const ImageLayout& layout,
                                 std::array<std::int64_t, 2> size) {
  check_images(images, layout);
  return AveragePool::apply(images, adaptive_windows_of(layout, size));
}

at::Tensor global_average(const at::Tensor& images, const ImageLayout& layout) {
  check_images(images, layout);
  auto windows = adaptive_windows_of(layout, {1, 1});
  windows->out.halo = 0;
  return flatten(AveragePool::apply(images, windows), windows->out);
}

at::Tensor global_max(const at::Tensor& images, const ImageLayout& layout) {
  check_images(images, layout);
  return flatten(Largest::apply(images, layout), {layout.samples, layout.channels, 1, 1, 0});
}

}  // namespace espalier::ops
