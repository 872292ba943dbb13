#include "espalier/nn/init.h"

#include <ATen/Parallel.h>
#include <torch/torch.h>

#include <cmath>
#include <mutex>

#include "espalier/core/error.h"
#include "espalier/core/random.h"
#include "espalier/nn/compressed_layer.h"

namespace espalier::nn {
namespace {

/// Standard deviation of a standard normal cut at +-2: sqrt(1 - 4 pdf(2) / (2 cdf(2) - 1)).
constexpr double kTruncatedStd = 0.87962566103423978;
constexpr double kTruncation = 2.0;

struct Fans {
  double in, out;
};

Fans fans(at::IntArrayRef shape) {
  ESPALIER_CHECK(shape.size() >= 2, ErrorKind::usage, "initializer: the weight is [{}], expected [out, in, ...]",
                 fmt::join(shape, ", "));
  double receptive_field = 1;
  for (std::size_t i = 2; i < shape.size(); ++i) receptive_field *= static_cast<double>(shape[i]);
  return {static_cast<double>(shape[1]) * receptive_field, static_cast<double>(shape[0]) * receptive_field};
}

enum class Shape { normal, uniform, truncated };
struct Distribution {
  Shape shape;
  double scale;  // standard deviation before a cut, or half the width
};

struct Initializer {
  const char* name;
  Distribution (*distribution)(Fans);
};

const Initializer kInitializers[] = {
    {"kaiming-normal",
     [](Fans f) {
       return Distribution{Shape::normal, std::sqrt(2 / f.in)};
     }},
    {"kaiming-uniform",
     [](Fans f) {
       return Distribution{Shape::uniform, std::sqrt(6 / f.in)};
     }},
    {"xavier-normal",
     [](Fans f) {
       return Distribution{Shape::normal, std::sqrt(2 / (f.in + f.out))};
     }},
    {"xavier-uniform",
     [](Fans f) {
       return Distribution{Shape::uniform, std::sqrt(6 / (f.in + f.out))};
     }},
    {"truncated-normal",
     [](Fans f) {
       return Distribution{Shape::truncated, std::sqrt(1 / f.in) / kTruncatedStd};
     }},
    {"torch-default",
     [](Fans f) {
       return Distribution{Shape::uniform, std::sqrt(1 / f.in)};
     }},
};

const Initializer& find_initializer(const std::string& name) {
  for (const Initializer& i : kInitializers)
    if (name == i.name) return i;
  const auto known = known_initializers();
  fail(ErrorKind::usage, "initializer \"{}\": unknown. Known: {}.{}", name, fmt::join(known, ", "),
       suggestion(name, known));
}

double draw(const Distribution& d, const RandomStream& random, std::uint64_t e) {
  switch (d.shape) {
    case Shape::normal: return d.scale * random.normal_at(e);
    case Shape::uniform: return d.scale * (2 * random.uniform_at(e) - 1);
    case Shape::truncated: break;
  }
  // Drawn again until inside (4.6 % each time). The attempt stands in the upper bits of the index, where no other
  // entry's draws are.
  for (std::uint64_t attempt = 0;; ++attempt) {
    const double z = random.normal_at(e + (attempt << 40));
    if (std::abs(z) <= kTruncation) return d.scale * z;
  }
}

/// No draw is larger in size.
double largest(const Distribution& d) {
  constexpr double kLargestNormal = 8.58;  // RandomStream::normal_at: sqrt(-2 ln 2^-53) = 8.571…
  return d.scale * (d.shape == Shape::uniform ? 1 : d.shape == Shape::truncated ? kTruncation : kLargestNormal);
}

/// Entries at these positions, as `fill` would leave them there.
torch::Tensor draw_at(const torch::Tensor& positions, torch::ScalarType type, const Distribution& d,
                      const RandomStream& random) {
  torch::Tensor values = torch::empty({positions.numel()}, type);
  const torch::Tensor flat = positions.contiguous();
  const auto* const at = flat.data_ptr<std::int64_t>();
  const auto draw_as = [&](auto zero) {
    using T = decltype(zero);
    T* const out = values.data_ptr<T>();
    at::parallel_for(0, values.numel(), 4096, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        out[i] = static_cast<T>(draw(d, random, static_cast<std::uint64_t>(at[i])));
      }
    });
  };
  if (type == torch::kDouble) {
    draw_as(double{});
  } else {
    draw_as(float{});
  }
  return values;
}

enum Part : std::uint64_t { kWeight = 0, kBias = 1, kAgain = 2 };

void fill(torch::Tensor tensor, const Distribution& d, const RandomStream& random) {
  const torch::NoGradGuard no_grad;
  const auto fill_as = [&](auto zero) {
    using T = decltype(zero);
    auto values = torch::empty(tensor.sizes(), c10::CppTypeToScalarType<T>::value);
    T* const out = values.template data_ptr<T>();
    at::parallel_for(0, values.numel(), 4096, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t e = begin; e < end; ++e)
        out[e] = static_cast<T>(draw(d, random, static_cast<std::uint64_t>(e)));
    });
    tensor.copy_(values);  // any device, layout and type
  };
  if (tensor.scalar_type() == torch::kDouble) {
    fill_as(double{});
  } else {
    fill_as(float{});
  }
}

}  // namespace

std::vector<std::string> known_initializers() {
  std::vector<std::string> names;
  for (const Initializer& i : kInitializers) names.emplace_back(i.name);
  return names;
}

void initialize_weight(torch::Tensor weight, const std::string& initializer, std::uint64_t seed, std::uint64_t layer) {
  const Initializer& init = find_initializer(initializer);
  fill(weight, init.distribution(fans(weight.sizes())), RandomStream(seed, Purpose::init, layer, kWeight));
}

torch::Tensor draw_again(const std::vector<std::int64_t>& shape, const torch::Tensor& positions, torch::ScalarType type,
                         const std::string& initializer, std::uint64_t seed, std::uint64_t layer) {
  const Distribution distribution = initializer == "normal" ? Distribution{Shape::normal, 1}
                                                            : find_initializer(initializer).distribution(fans(shape));
  return draw_at(positions, type, distribution, RandomStream(seed, Purpose::init, layer, kAgain));
}

void initialize(torch::nn::Module& model, const std::string& initializer, std::uint64_t seed) {
  find_initializer(initializer);
  const torch::NoGradGuard no_grad;
  std::uint64_t layer = 0;
  const auto set_bias = [&](at::IntArrayRef shape, torch::Tensor bias) {
    if (bias.defined()) {
      if (initializer == "torch-default") {
        fill(bias, {Shape::uniform, std::sqrt(1 / fans(shape).in)}, RandomStream(seed, Purpose::init, layer, kBias));
      } else {
        bias.zero_();
      }
    }
    ++layer;
  };
  const auto set = [&](torch::Tensor weight, torch::Tensor bias) {
    initialize_weight(weight, initializer, seed, layer);
    set_bias(weight.sizes(), bias);
  };
  const auto set_compressed = [&](CompressedLayer& sparse) {
    CompressedWeight& weight = *sparse.weight();
    const Distribution distribution = find_initializer(initializer).distribution(fans(weight.shape()));
    const RandomStream random(seed, Purpose::init, layer, kWeight);
    const auto type = weight.stored_type();
    weight.set_draw([=](const torch::Tensor& positions) { return draw_at(positions, type, distribution, random); },
                    largest(distribution));
    set_bias(weight.shape(), sparse.bias);
  };
  const auto visit = [&](torch::nn::Module& module) {
    if (auto* linear = module.as<torch::nn::LinearImpl>()) {
      set(linear->weight, linear->bias);
    } else if (auto* conv = module.as<torch::nn::Conv2dImpl>()) {
      set(conv->weight, conv->bias);
    } else if (auto* sparse = module.as<CompressedLayer>()) {
      set_compressed(*sparse);
    } else if (auto* norm2 = module.as<torch::nn::BatchNorm2dImpl>()) {
      norm2->reset_parameters();  // weight 1, bias 0, mean 0, variance 1
    } else if (auto* norm1 = module.as<torch::nn::BatchNorm1dImpl>()) {
      norm1->reset_parameters();
    }
  };
  visit(model);  // by reference: it may live on the stack, where modules() must not include it
  for (const auto& module : model.modules(/*include_self=*/false)) visit(*module);
}

KeepDefaultGenerator::KeepDefaultGenerator() : generator_(at::detail::getDefaultCPUGenerator()) {
  const std::lock_guard<std::mutex> lock(generator_.mutex());
  state_ = generator_.get_state();
}

KeepDefaultGenerator::~KeepDefaultGenerator() {
  const std::lock_guard<std::mutex> lock(generator_.mutex());
  generator_.set_state(state_);
}

}  // namespace espalier::nn
