#include "espalier/methods/allocate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <numeric>

#include "espalier/core/error.h"
#include "espalier/nn/models.h"
#include "espalier/nn/network.h"

namespace espalier {
namespace {

using Counts = std::vector<std::int64_t>;
using Shapes = std::vector<Counts>;

const Shapes kLeNet300 = {{300, 784}, {100, 300}, {10, 100}};
const Shapes kSmallConvNet = {{8, 1, 3, 3}, {16, 8, 3, 3}, {10, 64}};

Counts sizes(const Shapes& shapes) {
  Counts n;
  for (const auto& s : shapes) n.push_back(std::accumulate(s.begin(), s.end(), std::int64_t{1}, std::multiplies<>()));
  return n;
}

std::vector<double> densities(const Shapes& shapes, double sparsity, const std::string& distribution) {
  const auto n = sizes(shapes);
  const auto kept = allocate(shapes, n, sparsity, distribution);
  std::vector<double> d;
  for (std::size_t i = 0; i < n.size(); ++i) d.push_back(static_cast<double>(kept[i]) / static_cast<double>(n[i]));
  return d;
}

TEST(KeptCount, RoundsHalvesAwayFromZero) {
  EXPECT_EQ(kept_count(266200, 0.9), 26620);  // (1 - 0.9) * 266200 is a little under in binary
  EXPECT_EQ(kept_count(5, 0.5), 3);
  EXPECT_EQ(kept_count(10, 0), 10);
}

TEST(Apportion, GivesWholeNumbersThatAddUp) {
  // Quotas 69.23, 23.08, 7.69: the remainders give the one left over to the third.
  EXPECT_EQ(apportion(100, {900, 300, 100}, {1000, 1000, 1000}), (Counts{69, 23, 8}));
  // 2.5 and 1.5: rounding each gives 5 (away from zero); the tie goes to the lower index.
  EXPECT_EQ(apportion(4, {5, 3}, {10, 10}), (Counts{3, 1}));
  EXPECT_EQ(apportion(0, {1, 1}, {5, 5}), (Counts{0, 0}));
}

TEST(Apportion, FullEntriesPassTheRestOn) {
  EXPECT_EQ(apportion(10, {8, 1, 1}, {2, 100, 100}), (Counts{2, 4, 4}));
  EXPECT_EQ(apportion(30, {8, 1, 1}, {10, 10, 10}), (Counts{10, 10, 10}));
  EXPECT_EQ(apportion(3, {0, 0}, {2, 2}), (Counts{2, 1}));  // no share at all: by capacity, lower index first
  EXPECT_THROW(apportion(31, {8, 1, 1}, {10, 10, 10}), Error);
}

// Densities worked out from the definition (k_l = eps * weight_l, capped layers redistributed); eps found by hand.
TEST(Allocate, ErkOfLeNet300MatchesHandWorkedDensities) {
  struct Case {
    double sparsity;
    std::vector<double> density;
  };
  for (const Case& c : {Case{0.5, {.434099, 1, 1}},
                        {0.8, {.162241, .469362, 1}},
                        {0.9, {.079568, .230189, 1}},
                        {0.95, {.038484, .111334, .918507}},
                        {0.98, {.015394, .044534, .367403}}}) {
    const auto d = densities(kLeNet300, c.sparsity, "erk");
    const auto n = sizes(kLeNet300);
    for (std::size_t i = 0; i < 3; ++i)
      EXPECT_NEAR(d[i], c.density[i], 1.0 / static_cast<double>(n[i])) << c.sparsity << " " << i;
  }
  // 18714.34 / 6905.66 / 1000: the second has the larger remainder.
  EXPECT_EQ(allocate(kLeNet300, sizes(kLeNet300), 0.9, "erk"), (Counts{18714, 6906, 1000}));
}

TEST(Allocate, ErkAndErOfAConvNetDifferInTheKernel) {
  // 72 + 248.077 + 611.923 = 932 = half of 1864
  EXPECT_EQ(allocate(kSmallConvNet, sizes(kSmallConvNet), 0.5, "erk"), (Counts{72, 248, 612}));
  const auto er = densities(kSmallConvNet, 0.5, "er");
  const std::vector<double> want = {1, .556034, .342888};
  for (std::size_t i = 0; i < 3; ++i) EXPECT_NEAR(er[i], want[i], 1.0 / 640) << i;
  const auto sparse = densities(kSmallConvNet, 0.9, "erk");
  const std::vector<double> want_sparse = {.329132, .041141, .182668};
  for (std::size_t i = 0; i < 3; ++i) EXPECT_NEAR(sparse[i], want_sparse[i], 1.0 / 72) << i;
}

TEST(Allocate, TheBudgetIsExactForEveryDistributionAndSparsity) {
  for (const auto& shapes : {kLeNet300, kSmallConvNet}) {
    const auto n = sizes(shapes);
    const auto total = std::accumulate(n.begin(), n.end(), std::int64_t{0});
    for (const char* distribution : {"uniform", "er", "erk"}) {
      for (double s = 0; s < 1; s += 0.0137) {
        const auto kept = allocate(shapes, n, s, distribution);
        EXPECT_EQ(std::accumulate(kept.begin(), kept.end(), std::int64_t{0}), kept_count(total, s))
            << distribution << " " << s;
        for (std::size_t i = 0; i < n.size(); ++i) {
          EXPECT_GE(kept[i], 0);
          EXPECT_LE(kept[i], n[i]);
        }
      }
    }
  }
}

TEST(Allocate, AnUnknownDistributionIsAnError) {
  EXPECT_THROW(allocate(kLeNet300, sizes(kLeNet300), 0.5, "global"), Error);
}

// ResNet-50 at 224x224, the stride in the 3x3 convolutions: densities and multiply-accumulates that RigL's rule gives
// (Evci et al. 2020), worked out from the 54 shapes with eps found by hand. Counts are whole, so a density is right to
// one weight of its layer and the half of its last printed digit.
TEST(Allocate, ErkOfResNet50MatchesHandWorkedDensities) {
  nn::ModelOptions options;
  options.name = "resnet50";
  const auto network = nn::make_model(options, {3, 224, 224}, 1000, 1, [](const std::string&) { return true; });
  const auto costs = nn::layer_costs(*network);
  Shapes shapes;
  std::vector<std::string> names;
  std::int64_t weights = 0, macs = 0;
  for (const auto& layer : costs) {
    shapes.push_back(layer.weight_shape);
    names.push_back(layer.name);
    weights += layer.weights;
    macs += layer.macs;
  }
  ASSERT_EQ(costs.size(), 54u);
  EXPECT_EQ(weights, 25502912);
  EXPECT_EQ(macs, 4089184256);

  struct Case {
    double sparsity, eps;
    std::size_t dense;
    double mac_ratio;
    std::map<std::string, double> density;
  };
  const std::vector<Case> cases = {{0.5, 0, 32, .7143, {}},
                                   {0.8,
                                    99.56167,
                                    8,
                                    .4138,
                                    {{"conv1", .857195},
                                     {"layer1.0.conv2", .361905},
                                     {"layer1.2.conv2", .361905},
                                     {"layer2.0.conv2", .176901},
                                     {"layer2.1.conv3", .975320},
                                     {"layer2.0.downsample.0", .584888},
                                     {"layer3.0.conv2", .087438},
                                     {"layer3.0.downsample.0", .292064},
                                     {"layer4.0.conv2", .043466},
                                     {"fc", .148176},
                                     {"layer1.0.conv1", 1},
                                     {"layer1.0.conv3", 1},
                                     {"layer1.0.downsample.0", 1},
                                     {"layer2.0.conv1", 1}}},
                                   {0.9,
                                    48.78661,
                                    1,
                                    .2418,
                                    {{"conv1", .420038},
                                     {"layer1.0.conv1", 1},
                                     {"layer1.0.conv2", .177338},
                                     {"layer1.0.conv3", .958819},
                                     {"layer1.1.conv1", .958819},
                                     {"layer2.0.conv1", .574696},
                                     {"layer2.0.conv2", .086684},
                                     {"layer4.2.conv2", .021299},
                                     {"layer4.0.downsample.0", .071511},
                                     {"fc", .072608}}},
                                   {0.95, 24.37213, 0, .1217, {}},
                                   {0.965, 0, 0, .0852, {}},
                                   {0.98, 0, 0, .0487, {}},
                                   {0.99, 0, 0, .0243, {}}};
  const auto n = sizes(shapes);
  for (const Case& c : cases) {
    const auto kept = allocate(shapes, n, c.sparsity, "erk");
    EXPECT_EQ(std::accumulate(kept.begin(), kept.end(), std::int64_t{0}), kept_count(weights, c.sparsity));
    std::size_t dense = 0, found = 0;
    double left = 0, raw_sum = 0, rest = 0;  // rest: RigL rounds the zeros of every layer down before it solves for eps
    for (std::size_t l = 0; l < n.size(); ++l) {
      const auto size = static_cast<double>(n[l]), k = static_cast<double>(kept[l]);
      left += k / size * static_cast<double>(costs[l].macs);
      const double zeros = std::floor(c.sparsity * size);
      if (kept[l] == n[l]) {
        ++dense;
        rest -= zeros;
      } else {  // density = eps (in + out + kh + kw) / size
        rest += size - zeros;
        raw_sum += density_weight(shapes[l], "erk") * size;
      }
      const auto published = c.density.find(names[l]);
      if (published == c.density.end()) continue;
      ++found;
      EXPECT_NEAR(k, published->second * size, 1 + 5e-7 * size) << names[l] << " at " << c.sparsity;
    }
    EXPECT_EQ(found, c.density.size());
    EXPECT_EQ(dense, c.dense) << c.sparsity;
    EXPECT_NEAR(left / static_cast<double>(macs), c.mac_ratio, 5.1e-5) << c.sparsity;
    if (c.eps > 0) {
      EXPECT_NEAR(rest / raw_sum, c.eps, 5.1e-6) << c.sparsity;
    }
  }
  // Uniform, the first convolution dense.
  for (const auto& [sparsity, ratio] : {std::pair{0.8, .2231}, {0.9, .1260}, {0.95, .0774}}) {
    const Shapes rest(shapes.begin() + 1, shapes.end());
    const auto kept = allocate(rest, sizes(rest), sparsity, "uniform");
    auto left = static_cast<double>(costs[0].macs);
    for (std::size_t l = 1; l < n.size(); ++l) {
      left += static_cast<double>(kept[l - 1]) / static_cast<double>(n[l]) * static_cast<double>(costs[l].macs);
    }
    EXPECT_NEAR(left / static_cast<double>(macs), ratio, 5.1e-5) << sparsity;
  }
}

}  // namespace
}  // namespace espalier
