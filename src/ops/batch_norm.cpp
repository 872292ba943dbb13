#include "espalier/ops/batch_norm.h"

#include <torch/torch.h>

#include <cmath>
#include <memory>
#include <vector>

#include "ops/image_planes.h"
#include "ops/sparse_function.h"

namespace espalier::ops {
namespace {

using kernels::ChannelPiece;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Where the channels of a batch stand.
struct Channels : torch::CustomClassHolder {
  std::vector<ChannelPiece> pieces;
  std::int64_t count = 0;   // channels
  std::int64_t values = 0;  // of a channel, without padding
  ImageLayout images;       // where there are images: for their halo

  kernels::Channel channel(std::int64_t c) const {
    return {pieces.data(), static_cast<std::int64_t>(pieces.size()), c};
  }
  at::Tensor new_like(const at::Tensor& x) const {
    return images.samples > 0 ? new_images(images, x.options()) : new_entries(x.numel(), x.options());
  }
};

c10::intrusive_ptr<Channels> channels_of(const ImageLayout& l) {
  auto channels = c10::make_intrusive<Channels>();
  channels->count = l.channels;
  channels->values = l.samples * l.height * l.width;
  channels->images = l;
  for (std::int64_t g = 0; g < l.groups(); ++g) {
    channels->pieces.push_back({l.offset(g, 0) + l.image().first() * kImageLanes, l.plane() * kImageLanes, l.height,
                                l.row() * kImageLanes, l.width, l.valid(g)});
  }
  return channels;
}

c10::intrusive_ptr<Channels> channels_of(const TileLayout& l) {
  auto channels = c10::make_intrusive<Channels>();
  channels->count = l.features;
  channels->values = l.samples;
  for (std::int64_t t = 0; t < l.tiles(); ++t) {
    const std::int64_t full = l.valid(t) / kImageLanes, lanes = l.lanes(t);
    const int rest = l.valid(t) % kImageLanes;
    if (full > 0) channels->pieces.push_back({l.offset(t), lanes, 1, 0, full, kImageLanes});
    if (rest > 0) channels->pieces.push_back({l.offset(t) + full * kImageLanes, lanes, 1, 0, 1, rest});
  }
  return channels;
}

/// f(channel) for all, in parallel.
template <class F>
void each_channel(const Channels& channels, const F& f) {
  const std::int64_t grain = kImageGrain / std::max<std::int64_t>(1, channels.values) + 1;
  at::parallel_for(0, channels.count, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t c = begin; c < end; ++c) f(c);
  });
}

template <class T>
void clear_halos(const Channels& channels, std::int64_t c, T* entries) {
  const ImageLayout& l = channels.images;
  for (std::int64_t g = 0; g < l.groups(); ++g) {
    kernels::active().images<T>().clear_halo(l.image(), entries + l.offset(g, c));
  }
}

/// The entry of a channel, or what stands for it where there is no tensor.
template <class T>
T entry(const at::Tensor& of_channels, std::int64_t c, double otherwise) {
  return of_channels.defined() ? of_channels.data_ptr<T>()[c] : static_cast<T>(otherwise);
}

template <class T>
kernels::ChannelScale<T> scale_of(const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& mean,
                                  const at::Tensor& invstd, std::int64_t c, bool relu) {
  return {mean.data_ptr<T>()[c], entry<T>(weight, c, 1) * invstd.data_ptr<T>()[c], entry<T>(bias, c, 0), relu};
}

struct FusedBatchNorm : torch::autograd::Function<FusedBatchNorm> {
  using Optional = c10::optional<at::Tensor>;

  /// y, and x itself where `fork`.
  static variable_list forward(AutogradContext* ctx, const at::Tensor& input, const Optional& weight,
                               const Optional& bias, const Optional& summand, const BatchNorm& norm,
                               const c10::intrusive_ptr<Channels>& channels, bool relu, bool fork) {
    const at::Tensor x = input.contiguous();
    const at::Tensor w = weight ? weight->contiguous() : at::Tensor(), b = bias ? bias->contiguous() : at::Tensor(),
                     other = summand ? summand->contiguous() : at::Tensor();
    at::Tensor y = channels->new_like(x);
    at::Tensor mean = at::empty({channels->count}, x.options()), invstd = at::empty({channels->count}, x.options());
    with_type(x, [&](auto zero) {
      using T = decltype(zero);
      const auto& k = kernels::active().batch_norm<T>();
      each_channel(*channels, [&](std::int64_t c) {
        double m = 0, variance = 0;
        if (norm.training && channels->values > 0) {
          k.moments(x.data_ptr<T>(), channels->channel(c), &m, &variance);
          update_running<T>(norm, c, m, variance, channels->values);
        } else if (!norm.training) {
          m = static_cast<double>(norm.running_mean.data_ptr<T>()[c]);
          variance = static_cast<double>(norm.running_var.data_ptr<T>()[c]);
        }
        mean.data_ptr<T>()[c] = static_cast<T>(m);
        invstd.data_ptr<T>()[c] = static_cast<T>(1 / std::sqrt(variance + norm.eps));
        const auto by = scale_of<T>(w, b, mean, invstd, c, relu);
        if (other.defined())
          k.normalise_add(x.data_ptr<T>(), channels->channel(c), by, other.data_ptr<T>(), y.data_ptr<T>());
        else
          k.normalise(x.data_ptr<T>(), channels->channel(c), by, y.data_ptr<T>());
        clear_halos(*channels, c, y.data_ptr<T>());
      });
    });
    const bool mask_by_y = other.defined() && relu;
    ctx->save_for_backward({x, w, b, mean, invstd, mask_by_y ? y : at::Tensor()});
    ctx->saved_data["channels"] = c10::IValue::make_capsule(channels);
    ctx->saved_data["training"] = norm.training;
    ctx->saved_data["relu"] = relu;
    ctx->saved_data["summand"] = other.defined();
    if (fork) return {y, input};
    return {y};
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &w = saved[1], &b = saved[2], &mean = saved[3], &invstd = saved[4], &y = saved[5];
    const auto capsule = ctx->saved_data["channels"].toCapsule();
    const auto& channels = static_cast<const Channels&>(*capsule);
    const bool training = ctx->saved_data["training"].toBool(), summand = ctx->saved_data["summand"].toBool();
    const bool relu = ctx->saved_data["relu"].toBool() && !summand;  // recomputed from x alone
    // Written over dy where that is possible: new memory would be one more stream, and memory is what bounds this.
    const bool over_dy = may_overwrite(gradients[0]);
    const at::Tensor dy = gradients[0].contiguous();
    const bool add = gradients.size() > 1 && gradients[1].defined(), keeps_g = summand;
    at::Tensor g = !y.defined() || over_dy ? dy : channels.new_like(x);
    at::Tensor dx = add ? to_add_to(gradients[1]) : over_dy && !keeps_g ? dy : channels.new_like(x);
    at::Tensor dweight = at::empty_like(mean), dbias = at::empty_like(mean);
    with_type(x, [&](auto zero) {
      using T = decltype(zero);
      const auto& k = kernels::active().batch_norm<T>();
      each_channel(channels, [&](std::int64_t c) {
        const auto by = scale_of<T>(w, b, mean, invstd, c, relu);
        double sum = 0, product = 0;
        if (y.defined()) {
          k.masked_gradient_sums(x.data_ptr<T>(), y.data_ptr<T>(), dy.data_ptr<T>(), channels.channel(c), by.mean,
                                 g.data_ptr<T>(), &sum, &product);
          if (!over_dy) clear_halos(channels, c, g.data_ptr<T>());
        } else {
          k.gradient_sums(x.data_ptr<T>(), dy.data_ptr<T>(), channels.channel(c), by, &sum, &product);
        }
        const auto inv = static_cast<double>(invstd.data_ptr<T>()[c]), n = static_cast<double>(channels.values);
        dbias.data_ptr<T>()[c] = static_cast<T>(sum);
        dweight.data_ptr<T>()[c] = static_cast<T>(product * inv);
        // dx = (g - mean of g - xhat (mean of g xhat)) scale; statistics that are constants have no gradient.
        const T level = training ? static_cast<T>(sum / n) : T(0);
        const T slope = training ? static_cast<T>(product / n * inv * inv) : T(0);
        k.input_gradient(x.data_ptr<T>(), g.data_ptr<T>(), channels.channel(c), by, level, slope, add,
                         dx.data_ptr<T>());
        if (!add && !dx.is_same(dy)) clear_halos(channels, c, dx.data_ptr<T>());
      });
    });
    return {dx,
            w.defined() ? dweight : at::Tensor(),
            b.defined() ? dbias : at::Tensor(),
            summand ? g : at::Tensor(),
            {},
            {},
            {},
            {}};
  }

  template <class T>
  static void update_running(const BatchNorm& norm, std::int64_t c, double mean, double variance, std::int64_t values) {
    const auto update = [&](const at::Tensor& running, double now) {
      if (!running.defined()) return;
      T& r = running.data_ptr<T>()[c];
      r = static_cast<T>((1 - norm.momentum) * static_cast<double>(r) + norm.momentum * now);
    };
    const auto n = static_cast<double>(values);
    update(norm.running_mean, mean);
    update(norm.running_var, variance * n / (n - 1));
  }
};

variable_list checked(const at::Tensor& x, const c10::intrusive_ptr<Channels>& channels, const BatchNorm& norm,
                      bool relu, const at::Tensor& summand = {}, bool fork = false) {
  for (const at::Tensor* t : {&norm.weight, &norm.bias, &norm.running_mean, &norm.running_var}) {
    ESPALIER_CHECK(!t->defined() || (t->dim() == 1 && t->size(0) == channels->count), ErrorKind::usage,
                   "batch norm: {} channels come in; its weight, bias and statistics are for [{}]", channels->count,
                   fmt::join(t->sizes(), ", "));
    ESPALIER_CHECK(!t->defined() || t->scalar_type() == x.scalar_type(), ErrorKind::usage,
                   "batch norm: the input is {}, its weight, bias or statistics {}; convert one of them",
                   c10::toString(x.scalar_type()), c10::toString(t->scalar_type()));
  }
  for (const at::Tensor* t : {&norm.running_mean, &norm.running_var}) {
    ESPALIER_CHECK(!t->defined() || t->is_contiguous(), ErrorKind::usage,
                   "batch norm: running statistics must be contiguous");
    ESPALIER_CHECK(norm.training || t->defined(), ErrorKind::usage,
                   "batch norm: there are no running statistics to evaluate with; set training");
  }
  ESPALIER_CHECK(!norm.training || channels->values != 1, ErrorKind::usage,
                 "batch norm: one value a channel has no variance to train with; take larger batches or eval()");
  const auto optional = [](const at::Tensor& t) { return t.defined() ? c10::optional<at::Tensor>(t) : c10::nullopt; };
  return FusedBatchNorm::apply(x, optional(norm.weight), optional(norm.bias), optional(summand), norm, channels, relu,
                               fork);
}

}  // namespace

at::Tensor batch_norm(const at::Tensor& images, const ImageLayout& layout, const BatchNorm& norm, bool relu) {
  check_images(images, layout);
  return checked(images, channels_of(layout), norm, relu)[0];
}

Forked batch_norm_fork(const at::Tensor& images, const ImageLayout& layout, const BatchNorm& norm, bool relu) {
  check_images(images, layout);
  const variable_list both = checked(images, channels_of(layout), norm, relu, {}, true);
  return {both[0], both[1]};
}

at::Tensor batch_norm_add(const at::Tensor& images, const at::Tensor& summand, const ImageLayout& layout,
                          const BatchNorm& norm, bool relu) {
  check_images(images, layout);
  check_images(summand, layout);
  ESPALIER_CHECK(summand.scalar_type() == images.scalar_type(), ErrorKind::usage,
                 "batch norm: the input is {}, what is added {}; convert one of them",
                 c10::toString(images.scalar_type()), c10::toString(summand.scalar_type()));
  return checked(images, channels_of(layout), norm, relu, summand)[0];
}

at::Tensor batch_norm(const at::Tensor& tiles, const TileLayout& layout, const BatchNorm& norm, bool relu) {
  ESPALIER_CHECK(tiles.dim() == 1 && tiles.numel() == layout.numel(), ErrorKind::usage,
                 "tiles of {} samples with {} features have {} entries; found {}", layout.samples, layout.features,
                 layout.numel(), tiles.numel());
  return checked(tiles, channels_of(layout), norm, relu)[0];
}

}  // namespace espalier::ops
