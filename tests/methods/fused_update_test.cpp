// One pass over a compressed weight against torch's own optimiser on it.
#include "espalier/methods/fused_update.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "espalier/methods/registry.h"
#include "espalier/methods/sparsifier.h"
#include "espalier/nn/sparse_linear.h"

namespace espalier {
namespace {

/// The same optimiser under another class, which the fused pass must leave alone.
template <class Optimizer>
struct Plain : Optimizer {
  using Optimizer::Optimizer;
};

/// The same network with dense layers, as masked storage takes them.
struct DenseNet : torch::nn::Module {
  explicit DenseNet(torch::Dtype type) {
    torch::manual_seed(4);
    for (int l = 0; l < 2; ++l) {
      layers.push_back(register_module("fc" + std::to_string(l), torch::nn::Linear(l == 0 ? 13 : 9, l == 0 ? 9 : 4)));
    }
    to(type);
  }
  at::Tensor forward(const at::Tensor& x) { return layers[1]->forward(torch::tanh(layers[0]->forward(x))); }
  at::Tensor weight(std::size_t l) const { return layers[l]->weight; }
  std::vector<torch::nn::Linear> layers;
};

struct Net : torch::nn::Module {
  at::Tensor weight(std::size_t l) const { return layers[l]->to_dense(); }
  explicit Net(torch::Dtype type) {
    torch::manual_seed(4);
    for (int l = 0; l < 2; ++l) {
      const auto options = torch::nn::LinearOptions(l == 0 ? 13 : 9, l == 0 ? 9 : 4);
      layers.push_back(
          register_module("fc" + std::to_string(l), std::make_shared<nn::SparseLinearImpl>(options, type)));
      layers.back()->weight()->from_dense(torch::randn({options.out_features(), options.in_features()}, type) *
                                          torch::rand({options.out_features(), options.in_features()}).lt(0.4));
    }
  }
  at::Tensor forward(const at::Tensor& x) {
    return layers[1]->compute(layers[0]->compute(x).map([](const at::Tensor& t) { return torch::tanh(t); })).plain();
  }
  std::vector<std::shared_ptr<nn::SparseLinearImpl>> layers;
};

template <class Optimizer, class AnyNet, class Options>
void compare_nets(const Options& options, double alpha, const WeightDecay& decay, const char* what) {
  AnyNet a(torch::kDouble), b(torch::kDouble);
  const auto sparsifier = [&](AnyNet& net) {
    return std::make_unique<Sparsifier>(net, make_method("dense"), Powerprop(alpha),
                                        SparsifierOptions().weight_decay(decay));
  };
  auto sa = sparsifier(a), sb = sparsifier(b);
  Optimizer fused(sa->parameters(), options);
  Plain<Optimizer> plain(sb->parameters(), options);
  const auto x = torch::randn({10, 13}, torch::kDouble);
  const auto y = torch::randn({10, 4}, torch::kDouble);
  for (int step = 0; step < 6; ++step) {
    torch::mse_loss(a.forward(x), y).backward();
    torch::mse_loss(b.forward(x), y).backward();
    sa->step(fused);
    sb->step(plain);
    for (std::size_t l = 0; l < 2; ++l) {
      // A few roundings a step, each relative 1e-16, through slopes of order one.
      EXPECT_TRUE(torch::allclose(a.weight(l), b.weight(l), 1e-12, 1e-14))
          << what << " alpha " << alpha << " step " << step << " layer " << l;
    }
    if (step == 3) {  // the two share their state: go on with the other way
      const auto saved = save_optimizer(fused, sa->named_parameters());
      load_optimizer(plain, sb->named_parameters(), saved);
      sb->restore(sa->archive());
    }
  }
}

template <class Optimizer, class Options>
void compare(const Options& options, double alpha, const WeightDecay& decay, const char* what) {
  compare_nets<Optimizer, Net>(options, alpha, decay, what);
  compare_nets<Optimizer, DenseNet>(options, alpha, decay, what);
}

TEST(FusedUpdate, IsTorchsOptimiser) {
  using namespace torch::optim;
  for (const double alpha : {1.0, 1.5, 2.0, 2.3}) {
    for (const WeightDecay& decay : {WeightDecay{}, WeightDecay{0.01, DecaySpace::w, false}}) {
      compare<SGD>(SGDOptions(0.1), alpha, decay, "sgd");
      compare<SGD>(SGDOptions(0.1).momentum(0.9), alpha, decay, "momentum");
      compare<SGD>(SGDOptions(0.1).momentum(0.9).nesterov(true).weight_decay(0.02), alpha, decay, "nesterov");
      compare<SGD>(SGDOptions(0.1).momentum(0.9).dampening(0.3), alpha, decay, "dampening");
      compare<Adam>(AdamOptions(0.01), alpha, decay, "adam");
      compare<Adam>(AdamOptions(0.01).weight_decay(0.1).betas({0.8, 0.95}), alpha, decay, "adam with decay");
      compare<AdamW>(AdamWOptions(0.01).weight_decay(0.1), alpha, decay, "adamw");
      compare<Adam>(AdamOptions(0.01).amsgrad(true), alpha, decay, "amsgrad");
      compare<RMSprop>(RMSpropOptions(0.01), alpha, decay, "rmsprop");
    }
  }
}

TEST(FusedUpdate, OfAParameterAsItIs) {
  auto bias = torch::tensor({1.0F, 2.0F, 3.0F}).set_requires_grad(true);
  const auto options = torch::optim::SGDOptions(0.5).momentum(0.5);
  torch::optim::SGD sgd({bias}, options);
  Plain<torch::optim::SGD> derived({bias}, options);
  EXPECT_FALSE(fused_update(sgd, bias));  // no gradient yet
  for (int step = 0; step < 2; ++step) {
    const auto product = bias * bias;  // keeps what it needs for its gradient
    bias.mutable_grad() = torch::tensor({2.0F, 4.0F, 0.0F});
    EXPECT_FALSE(fused_update(derived, bias));
    EXPECT_TRUE(fused_update(sgd, bias));
    EXPECT_FALSE(bias.grad().defined());                     // torch's own step passes it over
    EXPECT_THROW(product.sum().backward(), std::exception);  // torch sees that it has changed
    sgd.step();
  }
  // buffers of 2, 4, 0 and then 3, 6, 0
  EXPECT_TRUE(bias.equal(torch::tensor({-1.5F, -3.0F, 3.0F})));
  auto turned = torch::ones({2, 3}).t().set_requires_grad(true), half = torch::ones({2}, torch::kHalf);
  turned.mutable_grad() = torch::ones({3, 2});
  half.set_requires_grad(true).mutable_grad() = torch::ones({2}, torch::kHalf);
  torch::optim::SGD others({turned, half}, options);
  EXPECT_FALSE(fused_update(others, turned));
  EXPECT_FALSE(fused_update(others, half));
}

TEST(FusedUpdate, LeavesWhatItCannotDo) {
  Net net(torch::kFloat);
  Sparsifier s(net, make_method("dense"), Powerprop(2), {});
  auto& weight = *net.layers[0]->weight();
  torch::optim::SGD sgd(s.parameters(), 0.1);
  Plain<torch::optim::SGD> derived(s.parameters(), torch::optim::SGDOptions(0.1));
  EXPECT_FALSE(fused_update(sgd, weight, 0));  // no gradient yet
  net.forward(torch::randn({3, 13})).sum().backward();
  EXPECT_FALSE(fused_update(derived, weight, 0));
  weight.set_trainable(weight.active().slice(0, 0, 5));
  EXPECT_FALSE(fused_update(sgd, weight, 0));  // frozen entries
  weight.set_trainable(weight.active());
  EXPECT_TRUE(fused_update(sgd, weight, 0));
  EXPECT_FALSE(weight.stored_values().grad().defined());
  EXPECT_FALSE(fused_update(sgd, weight, 0));  // consumed
  for (const double alpha : {1.0, 2.0}) {      // masked: only to save what psi costs
    auto w = torch::ones({2, 2}).set_requires_grad(true);
    auto masked = make_masked_weight("m", w, Powerprop(alpha), 0);
    torch::optim::SGD other({masked->parameter()}, 0.1);
    w.mutable_grad() = torch::ones({2, 2});
    EXPECT_EQ(fused_update(other, *masked, 0), alpha > 1);
    w.mutable_grad() = torch::ones({2, 2});
    masked->rewire({torch::tensor({1}, torch::kInt64), {}, {}, {}});
    EXPECT_FALSE(fused_update(other, *masked, 0));
  }
}

}  // namespace
}  // namespace espalier
