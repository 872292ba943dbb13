#include "espalier/methods/sparsifier.h"

#include <gtest/gtest.h>

#include <cmath>
#include <sstream>

#include "espalier/core/error.h"
#include "espalier/methods/dense.h"
#include "espalier/methods/magnitude.h"
#include "espalier/methods/registry.h"
#include "espalier/nn/sparse_conv.h"
#include "espalier/nn/sparse_linear.h"

namespace espalier {
namespace {

struct Mlp : torch::nn::Module {
  explicit Mlp(torch::Dtype type = torch::kFloat) {
    torch::manual_seed(5);
    fc1 = register_module("fc1", torch::nn::Linear(6, 8));
    fc2 = register_module("fc2", torch::nn::Linear(8, 3));
    to(type);
  }
  at::Tensor forward(const at::Tensor& x) { return fc2->forward(torch::tanh(fc1->forward(x))); }
  torch::nn::Linear fc1{nullptr}, fc2{nullptr};
};

at::Tensor inputs(torch::Dtype type) {
  torch::manual_seed(11);
  return torch::randn({16, 6}, type);
}
at::Tensor labels() { return torch::arange(16) % 3; }
at::Tensor loss_of(Mlp& net, torch::Dtype type) {
  return torch::cross_entropy_loss(net.forward(inputs(type)), labels());
}

std::unique_ptr<Sparsifier> sparsifier(Mlp& net, const Reparametrisation& psi, const std::string& method = "dense",
                                       SparsifierOptions options = {}) {
  return std::make_unique<Sparsifier>(net, make_method(method), psi, options.total_steps(100).steps_per_epoch(10));
}

TEST(Matches, StarsAndQuestionMarks) {
  for (const auto& [p, n] :
       {std::pair{"fc1*", "fc1.weight"}, {"*", "x"}, {"*.conv?.weight", "layer1.0.conv2.weight"}, {"a*b*c", "aXbYbc"}})
    EXPECT_TRUE(matches(p, n)) << p << " " << n;
  for (const auto& [p, n] :
       {std::pair{"fc1", "fc1.weight"}, {"", "x"}, {"*.conv?", "conv1"}, {"a*b", "abc"}, {"?", ""}})
    EXPECT_FALSE(matches(p, n)) << p << " " << n;
}

// What reaches the optimiser, against central differences of the loss as a function of phi, in double precision. The
// loss is evaluated by writing w = psi(phi) into the network through plain torch operations, a path of its own.
TEST(Sparsifier, GradientOfPhiAgreesWithCentralDifferencesAlsoAtZero) {
  for (const double alpha : {1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 2.7}) {
    Mlp net(torch::kDouble);
    {
      const torch::NoGradGuard no_grad;
      net.fc1->weight.view({-1})[3] = 0;
      net.fc2->weight.view({-1})[0] = 0;
    }
    auto s = sparsifier(net, Powerprop(alpha));
    loss_of(net, torch::kDouble).backward();
    for (const auto& w : s->weights()) w->pull(0);
    for (std::size_t l = 0; l < 2; ++l) {
      at::Tensor layer = l == 0 ? net.fc1->weight : net.fc2->weight;
      const at::Tensor phi0 = s->weights()[l]->values().view(layer.sizes()).clone();
      const at::Tensor analytic = s->weights()[l]->parameter().grad().clone().view({-1});
      const torch::NoGradGuard no_grad;
      const at::Tensor w0 = layer.clone();
      const double h = 1e-6;
      for (std::int64_t i = 0; i < phi0.numel(); ++i) {
        const auto at_phi = [&](double delta) {
          at::Tensor phi = phi0.clone();
          phi.view({-1})[i] += delta;
          layer.copy_(phi.sign() * phi.abs().pow(alpha));
          return loss_of(net, torch::kDouble).item<double>();
        };
        const double numeric = (at_phi(h) - at_phi(-h)) / (2 * h);
        // Truncation of the difference: at phi = 0 it is of order h^(alpha-1) (the map has no second derivative there).
        const double bound =
            phi0.view({-1})[i].item<double>() == 0 && alpha > 1 && alpha < 3 ? 4 * std::pow(h, alpha - 1) : 2e-8;
        EXPECT_NEAR(analytic[i].item<double>(), numeric, bound) << "alpha " << alpha << " layer " << l << " i " << i;
        if (phi0.view({-1})[i].item<double>() == 0 && alpha > 1) {
          EXPECT_EQ(analytic[i].item<double>(), 0);
        }
        layer.copy_(w0);
      }
    }
  }
}

// Update::target with plain SGD is the gradient update: phi - lr dL/dw psi'(phi); checked against the same central
// differences' chain.
TEST(Sparsifier, TargetAndGradientAgreeForPlainSgd) {
  for (const double alpha : {1.25, 1.5, 2.0, 3.0, 2.7}) {
    Mlp a(torch::kDouble), b(torch::kDouble);
    for (Mlp* net : {&a, &b}) {
      const torch::NoGradGuard no_grad;
      net->fc1->weight.view({-1})[3] = 0;
    }
    auto sa = sparsifier(a, Powerprop(alpha)), sb = sparsifier(b, Powerprop(alpha, Update::target));
    torch::optim::SGD oa(sa->parameters(), 0.1), ob(sb->parameters(), 0.1);
    for (int step = 0; step < 5; ++step) {
      loss_of(a, torch::kDouble).backward();
      loss_of(b, torch::kDouble).backward();
      sa->step(oa);
      sb->step(ob);
    }
    EXPECT_TRUE(torch::allclose(a.fc1->weight, b.fc1->weight, 1e-10, 1e-12)) << alpha;
    EXPECT_EQ(a.fc1->weight.view({-1})[3].item<double>(), 0);
    EXPECT_EQ(b.fc1->weight.view({-1})[3].item<double>(), 0);
  }
}

TEST(Sparsifier, TargetAndGradientDifferWithMomentum) {
  Mlp a(torch::kDouble), b(torch::kDouble);
  auto sa = sparsifier(a, Powerprop(2)), sb = sparsifier(b, Powerprop(2, Update::target));
  torch::optim::SGD oa(sa->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
  torch::optim::SGD ob(sb->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
  for (int step = 0; step < 5; ++step) {
    loss_of(a, torch::kDouble).backward();
    loss_of(b, torch::kDouble).backward();
    sa->step(oa);
    sb->step(ob);
  }
  EXPECT_FALSE(torch::allclose(a.fc1->weight, b.fc1->weight, 1e-6, 1e-8));
}

// Adam's first step has size lr for every phi; the corrected one lr psi'(phi): phi = 0.5 moves by lr, 0.05 by a tenth
// of it.
TEST(Sparsifier, TargetUndoesAdamsNormalisation) {
  auto linear = torch::nn::Linear(torch::nn::LinearOptions(2, 1).bias(false));
  {
    const torch::NoGradGuard no_grad;
    linear->weight.copy_(torch::tensor({{0.25f, 0.0025f}}));
  }
  Sparsifier s(*linear, make_method("dense"), Powerprop(2, Update::target), {});
  torch::optim::Adam adam(s.parameters(), torch::optim::AdamOptions(0.01));
  (linear->forward(torch::ones({1, 2})).sum()).backward();
  s.step(adam);
  const at::Tensor phi = s.weights()[0]->values();
  EXPECT_NEAR(phi[0].item<double>(), 0.5 - 0.01, 1e-6);
  EXPECT_NEAR(phi[1].item<double>(), 0.05 - 0.001, 1e-6);
}

TEST(Sparsifier, AlphaOneIsThePlainNetworkToTheBit) {
  for (const Update update : {Update::gradient, Update::target}) {
    Mlp plain, wrapped;
    auto s = sparsifier(wrapped, Powerprop(1, update));
    torch::optim::SGD op(plain.parameters(), torch::optim::SGDOptions(0.1).momentum(0.9).weight_decay(1e-3));
    torch::optim::SGD ow(s->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9).weight_decay(1e-3));
    for (int step = 0; step < 20; ++step) {
      op.zero_grad();
      loss_of(plain, torch::kFloat).backward();
      op.step();
      loss_of(wrapped, torch::kFloat).backward();
      s->step(ow);
    }
    for (const auto& p : plain.named_parameters())
      EXPECT_TRUE(torch::equal(p.value(), wrapped.named_parameters()[p.key()])) << p.key();
  }
}

// Momentum and weight decay do not know of masks; phi outside M_b must not move by a bit.
TEST(Sparsifier, WhatIsOutsideTheBackwardMaskStaysToTheBit) {
  for (const auto& psi :
       {Reparametrisation(), Reparametrisation(Powerprop(1.5)), Reparametrisation(Powerprop(2, Update::target))}) {
    for (const bool adam : {false, true}) {
      Mlp net;
      auto s = sparsifier(net, psi, "static-random", SparsifierOptions().sparsity(0.4));
      SparseWeight& w = *s->weights()[0];
      std::unique_ptr<torch::optim::Optimizer> optimizer;
      if (adam)
        optimizer =
            std::make_unique<torch::optim::Adam>(s->parameters(), torch::optim::AdamOptions(0.01).weight_decay(0.01));
      else
        optimizer = std::make_unique<torch::optim::SGD>(
            s->parameters(), torch::optim::SGDOptions(0.05).momentum(0.9).weight_decay(0.01));
      for (int step = 0; step < 10; ++step) {  // moments build up everywhere first
        loss_of(net, torch::kFloat).backward();
        s->step(*optimizer);
      }
      const at::Tensor active = w.active();
      const std::int64_t half = active.numel() / 2;
      w.set_trainable(active.slice(0, 0, half));
      const at::Tensor before = w.values().clone(), dense_before = net.fc1->weight.detach().clone();
      for (int step = 0; step < 1000; ++step) {
        loss_of(net, torch::kFloat).backward();
        s->step(*optimizer);
      }
      const at::Tensor after = w.values();
      EXPECT_TRUE(torch::equal(after.slice(0, half), before.slice(0, half)));
      EXPECT_FALSE(torch::equal(after.slice(0, 0, half), before.slice(0, 0, half)));
      at::Tensor inactive = torch::ones({48}, torch::kBool);
      inactive.index_fill_(0, active, false);
      EXPECT_EQ(net.fc1->weight.view({-1}).masked_select(inactive).abs().max().item<float>(), 0.0f);
      EXPECT_EQ(w.nnz(), active.numel());
    }
  }
}

TEST(Sparsifier, DecayActsWhereItIsTold) {
  // No gradient but the decay's: L2 on w adds rate w to dL/dw, so phi moves by -lr rate w psi'(phi); on phi by -lr rate
  // phi.
  const auto moved = [](WeightDecay decay, bool optimizer_decays) {
    auto linear = torch::nn::Linear(torch::nn::LinearOptions(1, 1).bias(false).bias(false));
    {
      const torch::NoGradGuard no_grad;
      linear->weight.fill_(0.25);
    }
    linear->to(torch::kDouble);
    Sparsifier s(*linear, make_method("dense"), Powerprop(2), SparsifierOptions().weight_decay(decay));
    torch::optim::SGD sgd(s.parameters(), torch::optim::SGDOptions(0.1).weight_decay(optimizer_decays ? 0.2 : 0));
    (linear->forward(torch::zeros({1, 1}, torch::kDouble)).sum()).backward();
    s.step(sgd);
    return s.weights()[0]->values()[0].item<double>();
  };
  EXPECT_NEAR(moved({0.2, DecaySpace::w, false}, false), 0.5 - 0.1 * 0.2 * 0.25 * 2 * 0.5, 1e-12);
  EXPECT_NEAR(moved({}, true), 0.5 - 0.1 * 0.2 * 0.5, 1e-12);  // phi, by the optimiser
  EXPECT_NEAR(moved({0.2, DecaySpace::w, true}, false), 0.5 * std::sqrt(1 - 0.1 * 0.2), 1e-12);  // w (1 - lr rate)
}

TEST(Sparsifier, NewbornAndDroppedWeightsHaveNoMomentum) {
  Mlp net;
  auto s = sparsifier(net, {}, "magnitude", SparsifierOptions().sparsity(0.5));  // prunes at step 50
  torch::optim::SGD sgd(s->parameters(), torch::optim::SGDOptions(0.05).momentum(0.9));
  for (int step = 0; step < 50; ++step) {
    loss_of(net, torch::kFloat).backward();
    s->step(sgd);
  }
  EXPECT_EQ(s->nnz(), 36);  // half of 48 + 24
  const auto topology = s->take_topology();
  ASSERT_EQ(topology.size(), 2u);
  EXPECT_EQ(topology[0].dropped + topology[1].dropped, 36);
  for (const auto& w : s->weights()) {
    at::Tensor inactive = torch::ones({w->numel()}, torch::kBool);
    inactive.index_fill_(0, w->active(), false);
    int seen = 0;
    for_each_state(sgd, w->parameter(), [&](const std::string& name, at::Tensor& state) {
      EXPECT_EQ(name, "momentum_buffer");
      EXPECT_EQ(state.view({-1}).masked_select(inactive).abs().max().item<float>(), 0.0f);
      EXPECT_GT(state.abs().max().item<float>(), 0.0f);
      ++seen;
    });
    EXPECT_EQ(seen, 1);
  }
}

/// Two changes of one layer in one step: the second lets go of what the first brought.
struct Twice : Method {
  void after_step(const MethodContext& context) override {
    if (context.clock.step != 3) return;
    SparseWeight& w = *context.weights[0];
    const auto at = [](std::vector<std::int64_t> list) { return torch::tensor(list, torch::kInt64); };
    w.rewire({at({1, 4}), {}, {}, 0.25});
    w.rewire({at({0}), at({1}), torch::ones({1}), 0.5});
  }
};

TEST(Sparsifier, OptimiserStateAndRecordFollowTwoChangesInOneStep) {
  for (const bool compressed : {false, true}) {
    const auto options = torch::nn::LinearOptions(3, 2).bias(false);
    const auto sparse = std::make_shared<nn::SparseLinearImpl>(options);
    const auto dense = std::make_shared<torch::nn::LinearImpl>(options);
    sparse->weight()->from_dense(torch::ones({2, 3}));
    dense->weight.data().fill_(1);
    torch::nn::Module& model = compressed ? static_cast<torch::nn::Module&>(*sparse) : *dense;
    Sparsifier s(model, std::make_unique<Twice>(), {}, {});
    torch::optim::SGD sgd(s.parameters(), torch::optim::SGDOptions(0.01).momentum(0.5));
    for (int step = 0; step < 3; ++step) {
      const auto x = torch::tensor({{1.0F, 2.0F, 3.0F}});
      (compressed ? sparse->forward(x) : dense->forward(x)).sum().backward();
      s.step(sgd);
    }
    // Gradients are 1, 2, 3 in both rows; momentum after three steps is 1.75 of them; 1 is newborn, 0 and 4 are gone.
    const SparseWeight& w = *s.weights()[0];
    EXPECT_TRUE(torch::equal(w.active(), torch::tensor({1, 2, 3, 5}, torch::kInt64)));
    const auto topology = s.take_topology();
    ASSERT_EQ(topology.size(), 1u);
    EXPECT_EQ(topology[0].dropped, 3);
    EXPECT_EQ(topology[0].grown, 1);
    EXPECT_EQ(topology[0].nnz, 4);
    EXPECT_EQ(topology[0].threshold, 0.5);
    int seen = 0;
    for_each_state(sgd, s.parameters()[0], [&](const std::string&, at::Tensor& momentum) {
      ++seen;
      EXPECT_EQ(momentum.numel(), compressed ? 4 : 6);
      EXPECT_EQ(momentum.sum().item<float>(), 1.75F * (3 + 1 + 3));
      EXPECT_EQ(momentum.eq(0).sum().item<std::int64_t>(), compressed ? 1 : 3);
    });
    EXPECT_EQ(seen, 1);
  }
}

// Built by hand of layers as they come, in plain LibTorch: trained, saved and loaded.
TEST(Sparsifier, APlainSequentialOfSparseLayersLearns) {
  torch::manual_seed(3);
  const auto make = [] {
    return torch::nn::Sequential(nn::SparseConv2d(torch::nn::Conv2dOptions(1, 8, 3).padding(1)), torch::nn::ReLU(),
                                 torch::nn::Flatten(), nn::SparseLinear(8 * 64, 64), torch::nn::ReLU(),
                                 torch::nn::Linear(64, 10));
  };
  torch::nn::Sequential net = make();
  Sparsifier sparsifier(*net, make_method("set"), {}, SparsifierOptions().sparsity(0.8).steps_per_epoch(20));
  torch::optim::Adam adam(sparsifier.parameters(), torch::optim::AdamOptions(1e-2));
  const auto images = torch::randn({100, 1, 8, 8}), labels = images.flatten(1).narrow(1, 0, 10).argmax(1);
  std::vector<double> losses;
  for (int step = 0; step < 100; ++step) {
    const auto loss = torch::cross_entropy_loss(net->forward(images), labels);
    losses.push_back(loss.item<double>());
    loss.backward();
    sparsifier.step(adam);
  }
  EXPECT_LT(losses.back(), 0.2 * losses.front());
  std::stringstream file;
  torch::save(net, file);
  torch::nn::Sequential loaded = make();
  torch::load(loaded, file);
  EXPECT_TRUE(loaded->forward(images).equal(net->forward(images)));
}

TEST(Sparsifier, RefusesWhatCannotWork) {
  Mlp net;
  torch::nn::Sequential nothing(torch::nn::ReLU{});
  EXPECT_THROW(Sparsifier(*nothing, make_method("dense"), {}, {}), Error);
  EXPECT_THROW(sparsifier(net, {}, "dense", SparsifierOptions().sparsity(0.5)), Error);
  EXPECT_THROW(sparsifier(net, {}, "static-random"), Error);
  EXPECT_THROW(sparsifier(net, {}, "static-random", SparsifierOptions().sparsity(0.5).dense_layers({"fc9"})), Error);
  EXPECT_THROW(make_method("rigl2"), Error);
  auto s = sparsifier(net, Powerprop(2));
  torch::optim::SGD wrong(net.parameters(), 0.1);
  loss_of(net, torch::kFloat).backward();
  try {
    s->step(wrong);
    FAIL() << "an optimiser over the wrong tensors was accepted";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("sparsifier.parameters()"), std::string::npos);
  }
}

TEST(Sparsifier, DenseLayersKeepEverything) {
  Mlp net;
  auto s = sparsifier(net, {}, "static-random", SparsifierOptions().sparsity(0.5).dense_layers({"fc2"}));
  EXPECT_EQ(s->sparsified().size(), 1u);
  EXPECT_EQ(s->weights()[1]->nnz(), 24);
  EXPECT_EQ(s->nnz(), 24);
}

class KnownOptimizers : public ::testing::TestWithParam<std::string> {};

std::unique_ptr<torch::optim::Optimizer> make(const std::string& name, const std::vector<at::Tensor>& p) {
  using namespace torch::optim;
  if (name == "sgd") return std::make_unique<SGD>(p, SGDOptions(0.05).momentum(0.9));
  if (name == "adam") return std::make_unique<Adam>(p, AdamOptions(0.01).amsgrad(true));
  if (name == "adamw") return std::make_unique<AdamW>(p, AdamWOptions(0.01));
  if (name == "rmsprop") return std::make_unique<RMSprop>(p, RMSpropOptions(0.01).momentum(0.5).centered(true));
  return std::make_unique<Adagrad>(p, AdagradOptions(0.05));
}

// Save, build everything anew, load, go on: the same bits as without the interruption.
TEST_P(KnownOptimizers, GoOnToTheSameBits) {
  const auto steps = [](Mlp& net, Sparsifier& s, torch::optim::Optimizer& o, int n) {
    for (int i = 0; i < n; ++i) {
      loss_of(net, torch::kFloat).backward();
      s.step(o);
    }
  };
  Mlp net;
  auto s = sparsifier(net, Powerprop(1.5), "gradual-magnitude", SparsifierOptions().sparsity(0.7));
  auto o = make(GetParam(), s->parameters());
  steps(net, *s, *o, 40);
  NamedTensors moments, masks, model;
  for (const auto& [n, t] : save_optimizer(*o, s->named_parameters())) moments.emplace_back(n, t.clone());
  for (const auto& [n, t] : s->archive()) masks.emplace_back(n, t.clone());
  for (const auto& p : net.named_parameters()) model.emplace_back(p.key(), p.value().detach().clone());
  steps(net, *s, *o, 60);

  Mlp again;
  {
    const torch::NoGradGuard no_grad;
    for (auto& p : again.parameters()) p.fill_(7);
    for (const auto& [n, t] : model) again.named_parameters()[n].copy_(t);
  }
  auto s2 = sparsifier(again, Powerprop(1.5), "gradual-magnitude", SparsifierOptions().sparsity(0.7));
  auto o2 = make(GetParam(), s2->parameters());
  s2->restore(masks);
  load_optimizer(*o2, s2->named_parameters(), moments);
  steps(again, *s2, *o2, 60);
  for (const auto& p : net.named_parameters())
    EXPECT_TRUE(torch::equal(p.value(), again.named_parameters()[p.key()])) << p.key();
  EXPECT_EQ(s->nnz(), s2->nnz());
  EXPECT_EQ(s->nnz(), 22);  // 72 * 0.3 = 21.6
}
INSTANTIATE_TEST_SUITE_P(All, KnownOptimizers, ::testing::Values("sgd", "adam", "adamw", "rmsprop", "adagrad"),
                         [](const auto& p) { return p.param; });

}  // namespace
}  // namespace espalier
