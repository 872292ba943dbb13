#include "espalier/methods/soft_threshold.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

#include "espalier/core/error.h"
#include "espalier/methods/optimizer_state.h"
#include "espalier/methods/registry.h"
#include "espalier/methods/sparsifier.h"

namespace espalier {
namespace {

using Doubles = std::vector<double>;

Doubles values(const at::Tensor& t) {
  const at::Tensor d = t.detach().to(torch::kDouble).contiguous();
  return {d.data_ptr<double>(), d.data_ptr<double>() + d.numel()};
}

at::Tensor find(const NamedTensors& tensors, const std::string& name) {
  for (const auto& [key, tensor] : tensors)
    if (key == name) return tensor;
  return {};
}

void set(Method& method, const std::string& name, double value) {
  for (auto& option : describe(method))
    if (option.name == name) **std::get_if<double*>(&option.value) = value;
}

// --- the weight ------------------------------------------------------------------------------------------------------

TEST(SoftThresholdWeight, ShrinksAndForgetsNothing) {
  auto w = torch::tensor({0.5, -0.25, 1.0, -2.0, 0.0, 0.25}, torch::kDouble).view({2, 3}).set_requires_grad(true);
  auto s = make_masked_weight("w", w, {}, 0);
  s->set_soft_threshold(0.25);
  EXPECT_EQ(values(w), (Doubles{0.25, 0, 0.75, -1.75, 0, 0}));  // on the threshold is under it
  EXPECT_EQ(values(s->all_values()), (Doubles{0.5, -0.25, 1, -2, 0, 0.25}));
  EXPECT_EQ(s->nnz(), 3);
  EXPECT_TRUE(torch::equal(s->active(), torch::tensor({0, 2, 3})));
  EXPECT_EQ(values(s->weights()), (Doubles{0.25, 0.75, -1.75}));
  EXPECT_EQ(s->trainable().numel(), 6);
  s->set_soft_threshold(0);
  EXPECT_EQ(values(w), (Doubles{0.5, -0.25, 1, -2, 0, 0.25}));
  EXPECT_EQ(s->nnz(), 5);
}

// The gradient stops where w is zero; the threshold gets - sum sign(w) dL/dw.
TEST(SoftThresholdWeight, ItsGradients) {
  auto w = torch::tensor({0.5, -0.25, 1.0, -2.0}, torch::kDouble).view({2, 2}).set_requires_grad(true);
  auto s = make_masked_weight("w", w, {}, 0);
  EXPECT_EQ(s->soft_threshold_gradient(), 0);
  s->set_soft_threshold(0.3);
  w.mutable_grad() = torch::tensor({{1.0, 10.0}, {100.0, 1000.0}}, torch::kDouble);
  EXPECT_EQ(s->soft_threshold_gradient(), -1 - 100 + 1000);
  s->pull(0);
  EXPECT_EQ(values(s->parameter().grad()), (Doubles{1, 0, 100, 1000}));
}

// The whole of it against central differences in double precision: L = sum c w^2 / 2 with w = S(psi(phi), t).
TEST(SoftThresholdWeight, GradientsAreThoseOfTheFormula) {
  torch::manual_seed(3);
  for (const double alpha : {1.0, 1.5, 2.0}) {
    const at::Tensor c = torch::rand({4, 5}, torch::kDouble);
    const at::Tensor start = torch::randn({4, 5}, torch::kDouble);
    const double t = 0.3;
    const Reparametrisation psi(alpha);
    const auto loss = [&](const at::Tensor& phi, double threshold) {
      const at::Tensor u = psi.psi(phi);
      const at::Tensor w = u.sign() * torch::relu(u.abs() - threshold);
      return (c * w * w / 2).sum().item<double>();
    };
    auto w = start.clone().set_requires_grad(true);
    auto s = make_masked_weight("w", w, psi, 0);
    s->set_soft_threshold(t);
    (c * w * w / 2).sum().backward();
    constexpr double h = 1e-6;
    const at::Tensor phi = s->all_values().clone();
    EXPECT_NEAR(s->soft_threshold_gradient(), (loss(phi, t + h) - loss(phi, t - h)) / (2 * h), 1e-7);
    s->pull(0);
    const at::Tensor g = s->parameter().grad().view({-1});
    std::int64_t zeros = 0;
    for (std::int64_t i = 0; i < 20; ++i) {
      at::Tensor up = phi.clone(), down = phi.clone();
      up.view({-1})[i] += h;
      down.view({-1})[i] -= h;
      const double expected = (loss(up, t) - loss(down, t)) / (2 * h);
      EXPECT_NEAR(g[i].item<double>(), expected, 1e-7) << alpha << " " << i;
      zeros += expected == 0 ? 1 : 0;
    }
    EXPECT_GT(zeros, 0);
    EXPECT_LT(zeros, 20);
  }
}

TEST(SoftThresholdWeight, IsSavedAndRefusesWhatItCannotDo) {
  auto w = torch::tensor({0.5, -0.25, 1.0, -2.0}, torch::kDouble).view({2, 2}).set_requires_grad(true);
  auto s = make_masked_weight("w", w, {}, 0);
  s->set_soft_threshold(0.3);
  auto w2 = torch::zeros({2, 2}, torch::kDouble).set_requires_grad(true);
  auto s2 = make_masked_weight("w", w2, {}, 0);
  const NamedTensors plain = s2->archive();
  s2->restore(s->archive());  // a weight without a threshold takes over what the layer computed with
  EXPECT_TRUE(torch::equal(w2, w));
  EXPECT_TRUE(torch::equal(s2->values(), s->weights()));
  EXPECT_TRUE(torch::equal(s2->trainable(), s->active()));
  s2->set_soft_threshold(0);
  EXPECT_THROW(s2->restore(plain), Error);
  s2->restore(s->archive());
  EXPECT_TRUE(torch::equal(w2, w));
  EXPECT_TRUE(torch::equal(s2->all_values(), s->all_values()));
  EXPECT_TRUE(torch::equal(s2->active(), s->active()));
  auto w3 = torch::ones({2, 2}).set_requires_grad(true);
  EXPECT_THROW(make_masked_weight("w", w3, Powerprop(2, Update::target), 0)->set_soft_threshold(0.1), Error);
}

// --- the method ------------------------------------------------------------------------------------------------------

struct Net : torch::nn::Module {
  Net() {
    fc = register_module("fc", torch::nn::Linear(torch::nn::LinearOptions(3, 2).bias(false)));
    const torch::NoGradGuard no_grad;
    fc->weight.copy_(torch::tensor({{0.9f, -0.6f, 0.1f}, {-0.05f, 0.7f, 0.3f}}));
  }
  torch::nn::Linear fc{nullptr};
};

// One step of SGD by hand: g(s) = 1/4 for s = -ln 3, g' = 3/16.
TEST(SoftThreshold, AStepByHand) {
  Net net;
  auto method = make_method("str");
  set(*method, "s_init", -std::log(3.0));
  Sparsifier sparsifier(net, std::move(method), Reparametrisation(), SparsifierOptions().steps_per_epoch(1));
  EXPECT_EQ(sparsifier.nnz(), 4);
  EXPECT_TRUE(torch::allclose(net.fc->weight, torch::tensor({{0.65f, -0.35f, 0.f}, {0.f, 0.45f, 0.05f}})));
  ASSERT_EQ(sparsifier.parameters().size(), 2u);  // phi and s
  torch::optim::SGD sgd(sparsifier.parameters(), torch::optim::SGDOptions(0.1).weight_decay(0.5));
  net.fc->forward(torch::ones({1, 3})).mul(torch::tensor({{1.f, 2.f}})).sum().backward();  // dL/dw: 1 and 2 a row
  sparsifier.step(sgd);
  // phi <- phi - .1 (dL/dw [w != 0] + .5 phi): every phi decays.
  const std::vector<float> phi = {0.9f, -0.6f, 0.1f, -0.05f, 0.7f, 0.3f}, grad = {1, 1, 0, 0, 2, 2};
  std::vector<float> expected;
  for (std::size_t i = 0; i < 6; ++i) expected.push_back(phi[i] - 0.1f * (grad[i] + 0.5f * phi[i]));
  EXPECT_TRUE(torch::allclose(sparsifier.weights()[0]->all_values().view({-1}), torch::tensor(expected)));
  // dL/ds = g' (- sum sign(w) dL/dw) = 3/16 (-(1 - 1 + 2 + 2)); s decays as well.
  const double s = -std::log(3.0), next = s - 0.1 * (-0.75 + 0.5 * s);
  EXPECT_NEAR(find(sparsifier.archive(), "method.s.fc.weight").item<double>(), next, 1e-6);
  // And the layer computes with the new threshold: .755, -.67, .095, -.0475, .465, .085 less 1 / (1 + exp(-s)) = .2751.
  const double t = 1 / (1 + std::exp(-next));
  EXPECT_NEAR(t, 0.27514, 1e-5);
  EXPECT_NEAR(net.fc->weight[0][0].item<double>(), expected[0] - t, 1e-6);
  EXPECT_NEAR(net.fc->weight[0][1].item<double>(), expected[1] + t, 1e-6);
  EXPECT_EQ(sparsifier.nnz(), 3);
  const auto record = sparsifier.take_topology();
  ASSERT_EQ(record.size(), 1u);
  EXPECT_EQ(record[0].dropped, 1);
  EXPECT_EQ(record[0].grown, 0);
  EXPECT_NEAR(*record[0].threshold, t, 1e-6);
  EXPECT_FALSE(sparsifier.parameters()[1].grad().defined());  // consumed, like every other
}

// Momentum under the threshold is not reset: the optimiser goes on as if nothing were there.
TEST(SoftThreshold, TheOptimisersStateStays) {
  Net net;
  auto method = make_method("str");
  set(*method, "s_init", -std::log(3.0));
  Sparsifier sparsifier(net, std::move(method), Reparametrisation(), SparsifierOptions().steps_per_epoch(1));
  torch::optim::SGD sgd(sparsifier.parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
  for (int i = 0; i < 3; ++i) {
    net.fc->forward(torch::ones({1, 3})).sum().backward();
    sparsifier.step(sgd);
  }
  at::Tensor momentum;
  for (auto& [name, tensor] : save_optimizer(sgd, sparsifier.named_parameters()))
    if (tensor.numel() == 6) momentum = tensor;
  ASSERT_TRUE(momentum.defined());
  // .3 falls under 1/4 in the first step, with a gradient of 1 behind it: .9 and .81 of that are left, and move it.
  EXPECT_EQ(net.fc->weight[1][2].item<float>(), 0);
  EXPECT_FLOAT_EQ(momentum.view({-1})[5].item<float>(), 0.81f);
  EXPECT_NEAR(sparsifier.weights()[0]->all_values()[1][2].item<float>(), 0.3 - 0.1 * (1 + 0.9 + 0.81), 1e-6);
}

// s = -3200, as for ImageNet: exp overflows on the way, and the threshold is zero.
TEST(SoftThreshold, AFarNegativeStartPrunesNothing) {
  Net net;
  auto method = make_method("str");
  set(*method, "s_init", -3200);
  Sparsifier sparsifier(net, std::move(method), Reparametrisation(), SparsifierOptions().steps_per_epoch(1));
  EXPECT_EQ(sparsifier.nnz(), 6);
  torch::optim::SGD sgd(sparsifier.parameters(), 0.1);
  net.fc->forward(torch::ones({1, 3})).sum().backward();
  sparsifier.step(sgd);
  EXPECT_EQ(find(sparsifier.archive(), "method.s.fc.weight").item<double>(), -3200);
  // methods.md 13.5: s = -5 leaves .01 - .0066929 = .0033071.
  const auto w = torch::tensor({{0.01f, -0.005f}}).set_requires_grad(true);
  const auto weight = make_masked_weight("w", w, {}, 0);
  weight->set_soft_threshold(1 / (1 + std::exp(5.0)));
  EXPECT_NEAR(w[0][0].item<double>(), 0.0033071, 5e-8);
  EXPECT_EQ(w[0][1].item<double>(), 0);
}

TEST(SoftThreshold, IsNotToldHowSparse) {
  Net net;
  try {
    Sparsifier sparsifier(net, make_method("str"), Reparametrisation(),
                          SparsifierOptions().steps_per_epoch(1).sparsity(0.9));
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("[optim].weight_decay"), std::string::npos);
  }
}

}  // namespace
}  // namespace espalier
