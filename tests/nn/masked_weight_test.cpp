#include <gtest/gtest.h>
#include <torch/torch.h>

#include "espalier/core/error.h"
#include "espalier/nn/sparse_weight.h"

namespace espalier {
namespace {

std::vector<double> values(const at::Tensor& t) {
  const at::Tensor d = t.detach().to(torch::kDouble).contiguous();
  return {d.data_ptr<double>(), d.data_ptr<double>() + d.numel()};
}
at::Tensor positions(std::vector<std::int64_t> list) { return torch::tensor(list, torch::kInt64); }
at::Tensor leaf(std::vector<double> list) {
  return torch::tensor(list, torch::kDouble).view({2, -1}).set_requires_grad(true);
}
using Doubles = std::vector<double>;

TEST(Reparametrisation, MapsInvertsAndRefuses) {
  const auto w = torch::tensor({0.25, -0.5, 0.0, 4.0}, torch::kDouble);
  for (const double alpha : {1.0, 1.5, 2.0, 4.0}) {
    const Powerprop psi(alpha);
    EXPECT_TRUE(torch::allclose(psi.psi(psi.inverse(w)), w, 1e-14, 1e-14)) << alpha;
  }
  EXPECT_EQ(values(Powerprop(2).inverse(w)), (Doubles{0.5, -0.7071067811865476, 0, 2}));
  EXPECT_EQ(values(Powerprop(3).derivative(torch::tensor({0.0, -2.0}, torch::kDouble))), (Doubles{0, 12}));
  for (const double bad :
       {0.5, 0.0, -1.0, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()})
    EXPECT_THROW(Powerprop p(bad), Error) << bad;
}

TEST(MaskedWeight, IdentityIsTheModelsOwnTensor) {
  auto w = leaf({1, 2, 3, 4});
  auto s = make_masked_weight("w", w, {}, 0);
  EXPECT_TRUE(s->parameter().is_same(w));
  EXPECT_EQ(s->nnz(), 4);
  EXPECT_EQ(values(s->weights()), (Doubles{1, 2, 3, 4}));
}

TEST(MaskedWeight, PowerpropKeepsTheFunctionAtTheStart) {
  auto w = leaf({0.25, -4, 0, 9});
  auto s = make_masked_weight("w", w, Powerprop(2), 0);
  EXPECT_FALSE(s->parameter().is_same(w));
  EXPECT_EQ(values(s->parameter()), (Doubles{0.5, -2, 0, 3}));
  EXPECT_EQ(values(w), (Doubles{0.25, -4, 0, 9}));
}

TEST(MaskedWeight, PullIsTheChainRuleUnderTheMask) {
  auto w = leaf({0.25, -4, 1, 9});
  auto s = make_masked_weight("w", w, Powerprop(2), 0);
  s->rewire({positions({2}), {}, {}, {}});
  w.mutable_grad() = torch::tensor({1.0, 10.0, 100.0, 1000.0}, torch::kDouble).view({2, 2});
  s->pull(0.5);
  // (g + 0.5 w) 2|phi|: (1.125)(1), (8)(4), masked, (1004.5)(6)
  EXPECT_EQ(values(s->parameter().grad()), (Doubles{1.125, 32, 0, 6027}));
  EXPECT_FALSE(w.grad().defined());
}

TEST(MaskedWeight, TargetMovesPhiByTheStepInWTimesTheSlope) {
  auto w = leaf({0.25, -4, 1, 9});
  auto s = make_masked_weight("w", w, Powerprop(2, Update::target), 0);
  s->set_trainable(positions({0, 1, 3}));
  EXPECT_TRUE(s->parameter().is_same(w));
  {
    const torch::NoGradGuard no_grad;
    w.add_(torch::tensor({0.5, 0.25, 7.0, -0.5}, torch::kDouble)
               .view({2, 2}));  // an optimiser's step, and decay on the third
  }
  s->settle();
  // phi + step 2|phi|: 0.5 + 0.5, -2 + 0.25*4, unmoved, 3 - 0.5*6
  EXPECT_EQ(values(s->values()), (Doubles{1, -1, 1, 0}));
  EXPECT_EQ(values(w), (Doubles{1, -1, 1, 0}));
}

TEST(MaskedWeight, RewireDropsGrowsAndReindexes) {
  auto w = leaf({1, 2, 3, 4, 5, 6});
  const auto* impl = w.unsafeGetTensorImpl();
  auto s = make_masked_weight("w", w, {}, 0);
  s->rewire({positions({0, 2, 5}), {}, {}, 3.0});
  EXPECT_EQ(values(w), (Doubles{0, 2, 0, 4, 5, 0}));
  auto momentum = torch::ones({2, 3}, torch::kDouble);
  int changes = 0;
  s->follow([&](const TopologyChange& change) {
    ++changes;
    s->reindex_state(momentum, change);
  });
  s->rewire({positions({1}), positions({1, 5}), torch::tensor({0.5, -0.5}, torch::kDouble), {}});
  EXPECT_EQ(values(w), (Doubles{0, 0.5, 0, 4, 5, -0.5}));
  EXPECT_EQ(s->nnz(), 4);
  EXPECT_EQ(s->active().unsafeGetTensorImpl() == nullptr, false);
  EXPECT_EQ(values(momentum), (Doubles{1, 0, 1, 1, 1, 0}));
  EXPECT_EQ(changes, 1);
  EXPECT_EQ(s->parameter().unsafeGetTensorImpl(), impl);
}

TEST(MaskedWeight, WrongPositionsChangeNothing) {
  auto w = leaf({1, 2, 3, 4});
  auto s = make_masked_weight("w", w, {}, 0);
  s->rewire({positions({0}), {}, {}, {}});
  EXPECT_THROW(s->rewire({positions({1, 0}), {}, {}, {}}), Error);  // not ascending
  EXPECT_THROW(s->rewire({positions({0}), {}, {}, {}}), Error);     // not active
  EXPECT_THROW(s->rewire({positions({4}), {}, {}, {}}), Error);     // outside
  EXPECT_THROW(s->rewire({{}, positions({1}), {}, {}}), Error);     // active already
  EXPECT_THROW(s->rewire({positions({1}), positions({0}), torch::zeros({2}), {}}), Error);
  EXPECT_EQ(values(w), (Doubles{0, 2, 3, 4}));
  EXPECT_EQ(s->nnz(), 3);
}

TEST(MaskedWeight, ArchiveRestoresEveryBit) {
  for (const auto& psi :
       {Reparametrisation(), Reparametrisation(Powerprop(1.7)), Reparametrisation(Powerprop(2, Update::target))}) {
    auto w = torch::randn({5, 7}).set_requires_grad(true);
    auto s = make_masked_weight("w", w, psi, 0);
    s->rewire({positions({1, 2, 30}), {}, {}, {}});
    s->set_trainable(positions({0, 5, 20}));
    NamedTensors saved;
    for (const auto& [name, t] : s->archive()) saved.emplace_back(name, t.clone());
    auto v = torch::randn({5, 7}).set_requires_grad(true);
    auto other = make_masked_weight("w", v, psi, 0);
    other->restore(saved);
    EXPECT_TRUE(torch::equal(v, w));
    EXPECT_TRUE(torch::equal(other->values(), s->values()));
    EXPECT_TRUE(torch::equal(other->active(), s->active()));
    EXPECT_TRUE(torch::equal(other->trainable(), s->trainable()));
  }
}

}  // namespace
}  // namespace espalier
