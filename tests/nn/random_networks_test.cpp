// Networks drawn at random in both storages, in double precision: outputs, gradients of everything and the statistics
// of batch norm, in training and in evaluation, before and after connections have moved.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <random>

#include "espalier/core/error.h"
#include "espalier/core/random.h"
#include "espalier/kernels/compressed.h"
#include "espalier/nn/compressed_layer.h"
#include "espalier/nn/models.h"

namespace espalier::nn {
namespace {

/// Differences of this share of what is largest are rounding: sums of at most some 10^5 products, a dozen layers one
/// behind the other, and batch norm that divides by 0.3 at least.
constexpr double kRounding = 1e-8;

class RandomNetworks : public ::testing::Test {
 protected:
  int number(int least, int most) { return std::uniform_int_distribution<int>(least, most)(random_); }
  bool one_in(int n) { return number(1, n) == 1; }
  double share() { return std::uniform_real_distribution<double>()(random_); }

  std::string activation() {
    const char* all[] = {"relu", "relu", "relu", "leakyrelu(0.1)", "tanh", "silu"};
    return all[number(0, 5)];
  }

  std::vector<std::string> layers(const InputShape& input) {
    std::vector<std::string> list;
    const auto maybe = [&](int n, const std::string& layer) {
      if (one_in(n)) list.push_back(layer);
    };
    auto channels = static_cast<int>(input.channels);
    for (int l = number(1, 5); l > 0; --l) {
      if (one_in(4)) {
        list.push_back(fmt::format("{}({}, stride={}, padding={})", one_in(2) ? "maxpool" : "avgpool", number(2, 3),
                                   number(1, 2), number(0, 1)));
        continue;
      }
      const int groups = one_in(4) ? channels : channels % 2 == 0 && one_in(4) ? 2 : 1;
      const int out = groups * number(1, groups > 1 ? 3 : 24);
      const auto mostly_one = [&](int other) { return one_in(4) ? number(1, other) : 1; };
      list.push_back(
          fmt::format("conv({}, kernel={}x{}, stride={}x{}, padding={}x{}, dilation={}x{}, groups={}, bias={})", out,
                      number(1, 4), number(1, 4), mostly_one(3), mostly_one(3), number(0, 2), number(0, 2),
                      mostly_one(2), mostly_one(2), groups, one_in(2)));
      channels = out;
      maybe(2, "batchnorm(eps=0.1)");
      maybe(2, activation());
    }
    const char* to_vector[] = {"globalavgpool", "globalmaxpool", "flatten"};
    list.emplace_back(to_vector[number(0, 2)]);
    for (int l = number(0, 3); l > 0; --l) {
      list.push_back(fmt::format("linear({}, bias={})", one_in(4) ? number(300, 900) : number(1, 90), one_in(2)));
      maybe(3, "batchnorm(eps=0.1)");
      maybe(2, activation());
    }
    list.emplace_back("linear(classes)");
    return list;
  }

  /// Positions to keep: few or many, none or all, or with a corner of rows and columns that have none.
  at::Tensor positions(const CompressedWeight& weight) {
    const std::int64_t n = weight.numel(), columns = n / weight.shape()[0];
    const double density = one_in(12) ? 0 : one_in(12) ? 1 : share() * share();
    auto kept = random_subset(n, static_cast<std::int64_t>(density * static_cast<double>(n)),
                              RandomStream(random_(), Purpose::test));
    if (one_in(3)) {
      const std::int64_t row = number(0, static_cast<int>(weight.shape()[0]) - 1),
                         column = number(0, static_cast<int>(columns) - 1);
      const auto in_corner = [&](std::int64_t p) { return p / columns >= row && p % columns >= column; };
      kept.erase(std::remove_if(kept.begin(), kept.end(), in_corner), kept.end());
    }
    return torch::tensor(kept, torch::kInt64);
  }

  static void move_to(CompressedWeight& weight, const at::Tensor& kept) {
    const at::Tensor active = weight.active();
    const at::Tensor drop = active.index({torch::isin(active, kept).logical_not()}),
                     grow = kept.index({torch::isin(kept, active).logical_not()});
    weight.rewire({drop, grow, torch::randn({grow.numel()}, torch::kDouble), {}});
  }

  /// The gradient of a compressed weight, at active(), row by row.
  static at::Tensor gradient(CompressedWeight& weight) {
    kernels::EntryIndices place;
    kernels::row_major(*weight.matrix(), nullptr, &place, 1);
    const std::vector<std::int64_t> order(place.begin(), place.end());
    return weight.parameter().grad().index_select(0, torch::tensor(order, torch::kInt64));
  }

  std::mt19937_64 random_;
};

TEST_F(RandomNetworks, AreTheSameInBothStorages) {
  const int threads = at::get_num_threads();
  int compared = 0;
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    random_.seed(seed);
    torch::manual_seed(seed);
    const InputShape input{number(1, 5), number(4, 20), number(4, 20)};
    ModelOptions options;
    options.name = "layers";
    options.layers = layers(input);
    const std::int64_t classes = number(1, 40);
    SCOPED_TRACE(fmt::format("seed {}, {}: {}", seed, input.text(), fmt::join(options.layers, "; ")));
    const bool some_dense = one_in(3);
    std::shared_ptr<Network> masked, compressed;
    try {
      options.storage = "masked";
      masked = make_model(options, input, classes, seed);
      compressed =
          make_model(options, input, classes, seed, [&](const std::string&) { return !some_dense || one_in(2); });
    } catch (const Error&) {
      continue;  // an image that is too small for what is left of the list
    }
    masked->to(torch::kDouble);
    compressed->to(torch::kDouble);
    auto expected = masked->named_parameters();
    for (auto& [name, p] : plain_parameters(*compressed)) {
      const torch::NoGradGuard no_grad;
      p.add_(torch::randn_like(p), 0.2);  // biases of zero would leave ReLU at its kink where inputs are constant
      expected[name].copy_(p);
    }

    for (const bool moved : {false, true}) {
      for (const auto& item : compressed->named_modules("", /*include_self=*/false)) {
        const auto* layer = item.value()->as<CompressedLayer>();
        if (layer == nullptr) continue;
        const at::Tensor kept = positions(*layer->weight());
        if (moved)
          move_to(*layer->weight(), kept);
        else
          layer->weight()->keep(kept);
        const torch::NoGradGuard no_grad;
        expected[item.key() + ".weight"].copy_(layer->to_dense());
      }
      for (const bool training : {true, false}) {
        masked->train(training);
        compressed->train(training);
        masked->zero_grad();
        compressed->zero_grad();
        const auto images = torch::randn({number(2, 40), input.channels, input.height, input.width}, torch::kDouble);
        const auto x = images.clone().requires_grad_(true), y = images.clone().requires_grad_(true);
        const at::Tensor from = masked->forward(x);
        at::set_num_threads(number(1, 3));
        const at::Tensor found = compressed->forward(y);
        at::set_num_threads(threads);
        const at::Tensor to = torch::randn_like(from);
        from.backward(to);
        found.backward(to);

        double largest = 0;  // of the gradients: those of a bias before batch norm are 0 and what rounding leaves
        for (const auto& p : masked->parameters()) {
          if (p.grad().defined()) largest = std::max(largest, p.grad().abs().max().item<double>());
        }
        const auto compare = [&](const at::Tensor& is, const at::Tensor& should_be, double size,
                                 const std::string& what) {
          ASSERT_EQ(is.sizes(), should_be.sizes()) << what;
          if (is.numel() == 0) return;
          EXPECT_LE((is - should_be).abs().max().item<double>(),
                    kRounding * std::max(size, should_be.abs().max().item<double>()))
              << what << (training ? ", training" : ", evaluation") << (moved ? ", moved" : "");
        };
        compare(found, from, 0, "outputs");
        compare(y.grad(), x.grad(), 0, "gradient of the images");
        for (const auto& item : compressed->named_modules("", /*include_self=*/false)) {
          const auto* layer = item.value()->as<CompressedLayer>();
          if (layer == nullptr) continue;
          const at::Tensor& dense = expected[item.key() + ".weight"].grad();
          compare(gradient(*layer->weight()), dense.view({-1}).index_select(0, layer->weight()->active()), largest,
                  item.key() + ".weight");
        }
        for (const auto& [name, p] : plain_parameters(*compressed))
          compare(p.grad(), expected[name].grad(), largest, name);
        const auto statistics = masked->named_buffers();
        for (const auto& buffer : compressed->named_buffers()) {
          if (buffer.value().is_floating_point()) compare(buffer.value(), statistics[buffer.key()], 0, buffer.key());
        }
        const torch::NoGradGuard no_grad;
        if (training) continue;
        const at::Tensor few = images.narrow(0, 0, std::min<std::int64_t>(images.size(0), number(1, 9)));
        compare(compressed->forward(few), masked->forward(few), 0, "a few images");
        ++compared;
      }
    }
  }
  EXPECT_GE(compared, 80);
}

}  // namespace
}  // namespace espalier::nn
