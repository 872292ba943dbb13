// Another exponent on the same weights (SparseWeight::change_alpha), in both storages.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <limits>

#include "espalier/core/error.h"
#include "methods/storages.h"

namespace espalier {
namespace {

using test::weight_of;

/// What may happen to a weight, relative to it, between a change of alpha and the next settle: phi' is rounded once,
/// which psi' multiplies by alpha'; then psi's own error (docs/methods/powerpropagation.md), and its product's
/// rounding. In double the exponents' rounding counts too, 1 / alpha' and alpha' - 1, each times |log w|, which is
/// below 28 here; and the C library's pow may be off by one unit, two roundings, both ways.
double bound(double alpha, at::ScalarType type) {
  if (type == at::kDouble) return (2 * alpha + 4 + 2 * 28) * 0x1p-53;
  return (alpha + 1) * 0x1p-24 + 4.6e-7 + 4e-8 * alpha;
}

at::Tensor some_weights(at::ScalarType type) {
  torch::manual_seed(3);
  at::Tensor w = torch::randn({23, 17}, torch::kDouble) * 0.2;
  w.masked_fill_(torch::rand({23, 17}) < 0.3, 0);
  w.view({-1})[4] = 1e-12;
  w.view({-1})[5] = -3;
  return w.to(type);
}

struct Case {
  bool compressed;
  at::ScalarType type;
  Update update;
};
class ChangeAlpha : public ::testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(
    Storages, ChangeAlpha,
    ::testing::Values(Case{false, at::kFloat, Update::gradient}, Case{true, at::kFloat, Update::gradient},
                      Case{false, at::kDouble, Update::gradient}, Case{true, at::kDouble, Update::gradient},
                      Case{false, at::kFloat, Update::target}, Case{true, at::kFloat, Update::target}));

TEST_P(ChangeAlpha, LeavesEveryWeightAsItWasToTheBit) {
  const auto [compressed, type, update] = GetParam();
  const auto weight = weight_of(compressed, some_weights(type), Powerprop(1.5, update));
  const at::Tensor before = weight->weights();
  for (const double alpha : {1.3, 2.0, 4.0, 1.01, 16.0, 1.5}) {
    weight->change_alpha(alpha);
    EXPECT_EQ(weight->reparametrisation().alpha(), alpha);
    EXPECT_EQ(weight->reparametrisation().update(), update);
    EXPECT_TRUE(weight->weights().equal(before)) << alpha;
    const at::Tensor w = weight->values().to(torch::kDouble);  // psi in double, by another way than the kernels'
    EXPECT_TRUE(torch::allclose(w.sign() * w.abs().pow(alpha), before.to(torch::kDouble), bound(alpha, type), 0))
        << alpha;
  }
}

TEST_P(ChangeAlpha, AThousandChangesInARowAreNoWorseThanOne) {
  const auto [compressed, type, update] = GetParam();
  const auto weight = weight_of(compressed, some_weights(type), Powerprop(1.2, update));
  const at::Tensor before = weight->weights();
  for (int i = 0; i < 1000; ++i) weight->change_alpha(1.05 + 2.9 * std::abs(std::sin(1.7 * i)));
  EXPECT_TRUE(weight->weights().equal(before));
  weight->change_alpha(3.7);
  weight->settle();
  const at::Tensor after = weight->weights().to(torch::kDouble), was = before.to(torch::kDouble);
  // `target` takes a step towards w from psi(phi): that error times psi'^2; then it rounds phi and forms psi again.
  const at::Tensor slope = weight->reparametrisation().derivative(weight->values().to(torch::kDouble));
  const at::Tensor steps = update == Update::target ? 2 + slope * slope : torch::ones_like(slope);
  EXPECT_TRUE((after - was).abs().le(was.abs() * bound(3.7, type) * steps).all().item<bool>())
      << ((after - was).abs() / was.abs()).max().item<double>();
  if (update == Update::gradient) {
    EXPECT_FALSE(after.equal(was)) << "a phi that is exact would make the bound idle";
  }
}

TEST_P(ChangeAlpha, ZerosStayZerosWithTheirSigns) {
  const auto [compressed, type, update] = GetParam();
  const auto weight = weight_of(compressed, torch::tensor({{0.5, -0.25, 1.0}}, type), Powerprop(2, update));
  test::set_values(*weight, torch::tensor({0.0, -0.0, 0.5}));
  for (const double alpha : {1.1, 8.0, 1.5}) {  // 0 |0|^(negative) would be NaN
    const at::Tensor factor = weight->change_alpha(alpha);
    EXPECT_TRUE(update == Update::target || std::signbit(weight->values()[1].item<double>()));
    weight->settle();
    for (const at::Tensor& t : {weight->values(), weight->weights()}) {
      EXPECT_EQ(t[0].item<double>(), 0) << alpha;
      EXPECT_EQ(t[1].item<double>(), 0);
      EXPECT_GT(t[2].item<double>(), 0);
    }
    if (!factor.defined()) continue;
    EXPECT_TRUE(factor.isfinite().all().item<bool>());
    EXPECT_EQ(factor.count_nonzero().item<std::int64_t>(), 1);
  }
}

TEST_P(ChangeAlpha, GivesTheSlopeOfPhiAgainstTheNewPhi) {
  const auto [compressed, type, update] = GetParam();
  if (type != at::kDouble) GTEST_SKIP() << "differences need double precision";
  const auto weight = weight_of(compressed, some_weights(type), Powerprop(1.5, update));
  for (const double alpha : {2.5, 1.2}) {
    const double from = weight->reparametrisation().alpha();
    const at::Tensor factor = weight->change_alpha(alpha).view({-1});
    // Both in the order of the parameter; masked storage has zeros where nothing is kept.
    const at::Tensor phi = weight->parameter().detach().view({-1}).abs();
    const at::Tensor kept = phi.nonzero().view({-1});
    const at::Tensor x = phi.index_select(0, kept), h = 1e-6 * x;
    const auto old_phi = [&](const at::Tensor& now) { return now.pow(alpha / from); };
    const at::Tensor numeric = (old_phi(x + h) - old_phi(x - h)) / (2 * h);
    EXPECT_TRUE(torch::allclose(factor.index_select(0, kept), numeric, 1e-8, 0)) << alpha;
  }
}

TEST_P(ChangeAlpha, RefusesThePlainNetwork) {
  const auto [compressed, type, update] = GetParam();
  const auto plain = weight_of(compressed, some_weights(type));
  EXPECT_THROW(plain->change_alpha(2), Error);
  const auto weight = weight_of(compressed, some_weights(type), Powerprop(2, update));
  const at::Tensor phi = weight->values();
  for (const double alpha : {1.0, 0.5, std::nan(""), std::numeric_limits<double>::infinity()})
    EXPECT_THROW(weight->change_alpha(alpha), Error) << alpha;
  EXPECT_TRUE(weight->values().equal(phi));
  EXPECT_EQ(weight->reparametrisation().alpha(), 2);
}

TEST_P(ChangeAlpha, FrozenEntriesAreFrozenAtTheirNewPhi) {
  const auto [compressed, type, update] = GetParam();
  const auto weight = weight_of(compressed, torch::tensor({{0.5, -0.25, 1.0}}, type), Powerprop(2, update));
  weight->set_trainable(torch::tensor({2}));
  weight->change_alpha(1.25);
  const at::Tensor phi = weight->values();
  {
    const torch::NoGradGuard no_grad;
    weight->parameter().add_(0.125);  // what an optimiser with momentum might do, also to what is frozen
  }
  weight->settle();
  EXPECT_TRUE(weight->values().slice(0, 0, 2).equal(phi.slice(0, 0, 2)));
  EXPECT_FALSE(weight->values()[2].equal(phi[2]));
}

// Entries whose weight has lost its digits, or is masked, come from phi itself: 0.5 with alpha 2 is 0.5^(1/2) with 4
// (methods.md 13.1).
TEST(ChangeAlphaOfMasks, MapsPhiOutsideThem) {
  for (const bool compressed : {false, true}) {
    const auto weight = weight_of(compressed, torch::tensor({{0.25f, 0.04f, 0.0081f}}), Powerprop(2));
    weight->set_masks(torch::tensor({1}), torch::tensor({0, 1}));
    EXPECT_EQ(weight->weights().numel(), 1);
    const at::Tensor factor = weight->change_alpha(4).view({-1});
    EXPECT_FLOAT_EQ(weight->all_values()[0][0].item<float>(), 0.70710678f);
    EXPECT_FLOAT_EQ(weight->all_values()[0][1].item<float>(), std::sqrt(0.2f));
    EXPECT_FLOAT_EQ(weight->all_values()[0][2].item<float>(), 0.3f);  // neither computes nor learns
    EXPECT_FLOAT_EQ(factor[0].item<float>(), 2 * 0.70710678f);        // (4 / 2) phi'^(4/2 - 1)
  }
}

TEST(ChangeAlphaOfMasked, AWeightThatUnderflowsKeepsItsPhi) {
  const auto weight = make_masked_weight("w", torch::tensor({{0.5f}}), Powerprop(4), 0);
  test::set_values(*weight, torch::tensor({1e-12f}));
  EXPECT_EQ(weight->weights().item<float>(), 0);
  weight->change_alpha(2);
  EXPECT_NEAR(weight->values().item<float>(), 1e-24f, 1e-30);
}

TEST(ChangeAlphaOfCompressed, BeforeAnythingIsStored) {
  CompressedWeight weight("w", {4, 3});
  weight.set_draw([](const at::Tensor& at) { return torch::full({at.numel()}, 0.25f); }, 0.25);
  weight.adopt("w", 0, Powerprop(2));
  weight.change_alpha(4);
  weight.keep(torch::tensor({1, 5}));
  EXPECT_TRUE(torch::allclose(weight.values(), torch::full({2}, std::sqrt(0.5f))));
}

}  // namespace
}  // namespace espalier
