#include "espalier/methods/adaptive_alpha.h"

#include <gtest/gtest.h>

#include <cmath>

#include "espalier/core/error.h"
#include "espalier/methods/registry.h"
#include "espalier/methods/sparsifier.h"
#include "espalier/nn/sparse_linear.h"

namespace espalier {
namespace {

using Verdict = AlphaControl::Verdict;

// methods.md, section 2: alpha_0 = 1.2, cr = 1.5, cd = 0.1.
TEST(AlphaControl, FollowsTheTraceOfTheReport) {
  AlphaControl control(1.2, {});
  const struct {
    double signal;
    Verdict verdict;
    double alpha;
    bool slow_start;
  } checks[] = {{0.10, Verdict::increase, 1.3, true},    // nothing to be less than
                {0.20, Verdict::increase, 1.45, true},   // 1 + 1.5 * 0.3
                {0.30, Verdict::increase, 1.675, true},  // 1 + 1.5 * 0.45
                {0.25, Verdict::decrease, 1.45, false},  // 1 + 0.675 / 1.5
                {0.25, Verdict::increase, 1.55, false},  // not less
                {0.40, Verdict::increase, 1.65, false},
                {0.39, Verdict::decrease, 1.433333333333333, false}};  // 1 + 0.65 / 1.5
  for (const auto& c : checks) {
    EXPECT_EQ(control.check(c.signal, std::nullopt), c.verdict) << c.alpha;
    EXPECT_NEAR(control.alpha(), c.alpha, 1e-12);
    EXPECT_EQ(control.slow_start(), c.slow_start) << c.alpha;
  }
}

// The slow start never comes back, however long successes last.
TEST(AlphaControl, OneFailureEndsTheSlowStartForGood) {
  AlphaControl control(1.2, {});
  EXPECT_TRUE(control.slow_start());
  control.check(0.5, {});
  EXPECT_TRUE(control.slow_start());
  control.check(0.4, {});
  EXPECT_FALSE(control.slow_start());
  const double after = control.alpha();
  for (int i = 1; i <= 5; ++i) {
    control.check(0.5, {});
    EXPECT_FALSE(control.slow_start());
    EXPECT_NEAR(control.alpha(), after + 0.1 * i, 1e-12);
  }
}

// In float32 the two shares are one number.
TEST(AlphaControl, OneWeightInABillionCounts) {
  AlphaControl control(1.2, {});
  control.check(123456790.0 / 1e9, {});
  EXPECT_EQ(control.check(123456789.0 / 1e9, {}), Verdict::decrease);
  EXPECT_EQ(static_cast<float>(123456790.0 / 1e9), static_cast<float>(123456789.0 / 1e9));
}

// The same share of more weights is not less: quotients are rounded once, so equal ones are equal.
TEST(AlphaControl, TheSameShareOfAnotherNumberOfWeightsIsNotLess) {
  for (const int n : {3, 7, 49, 235200}) {
    AlphaControl control(1.2, {});
    control.check(1.0 / n, {});
    EXPECT_EQ(control.check(1000.0 / (1000.0 * n), {}), Verdict::increase) << n;
  }
}

// 1 + (alpha - 1) / 1.5 again and again is exactly 1 after some ninety times, and 1 is a fixed point of both ways.
TEST(AlphaControl, NeverGetsStuckAtOne) {
  AdaptiveAlphaOptions options;
  options.alpha_min = 1.05;
  AlphaControl control(1.2, options);
  double signal = 1;
  for (int i = 0; i < 300; ++i) control.check(signal -= 0.001, {});
  EXPECT_EQ(control.alpha(), 1.05);
  control.check(1, {});
  EXPECT_NEAR(control.alpha(), 1.15, 1e-12);
}

TEST(AlphaControl, StaysWithinItsUpperBound) {
  AdaptiveAlphaOptions options;
  options.alpha_max = 2;
  AlphaControl control(1.2, options);
  for (int i = 0; i < 10; ++i) control.check(0.5, {});
  EXPECT_EQ(control.alpha(), 2);
  control.check(0.4, {});
  EXPECT_NEAR(control.alpha(), 1 + 1 / 1.5, 1e-12);
}

TEST(AlphaControl, ALossThatRisesIsAFailureWhereItIsLookedAt) {
  AdaptiveAlphaOptions options;
  options.loss_tolerance = 0.25;
  AlphaControl control(1.2, options);
  EXPECT_EQ(control.check(0.1, 1.0), Verdict::increase);
  EXPECT_EQ(control.check(0.1, 1.25), Verdict::increase);  // at the limit
  EXPECT_EQ(control.check(0.1, 1.2501), Verdict::decrease);
  EXPECT_EQ(control.check(0.1, 0.8), Verdict::increase);
  EXPECT_EQ(control.check(0.1, 1.01), Verdict::decrease);  // above 1.25 * 0.8
  EXPECT_EQ(control.check(0.1, {}), Verdict::increase);
  AlphaControl blind(1.2, {});
  blind.check(0.1, 1.0);
  EXPECT_EQ(blind.check(0.1, 100.0), Verdict::increase);
}

TEST(AlphaControl, RefusesWhereItCouldNotMove) {
  AdaptiveAlphaOptions options;
  EXPECT_THROW(AlphaControl(1, options), Error);
  EXPECT_THROW(AlphaControl(17, options), Error);
  options.alpha_min = 1;
  EXPECT_THROW(AlphaControl(1.2, options), Error);
  options = {};
  options.cr = 1;
  EXPECT_THROW(AlphaControl(1.2, options), Error);
}

TEST(ShareNearZero, IsStrictAlsoInFloat) {
  const at::Tensor w = torch::tensor({0.01f, -0.01f, 0.0099999f, -0.005f, 0.0f, 0.02f, -3.0f, 0.010001f});
  EXPECT_EQ(share_near_zero(w, 0.01), 3.0 / 8);  // 0.01f is below 0.01 as a double
  EXPECT_EQ(share_near_zero(torch::tensor({0.01, -0.01, 0.0099999}, torch::kDouble), 0.01), 1.0 / 3);
  EXPECT_EQ(share_near_zero(torch::empty({0}), 0.01), 0);
}

TEST(EffectiveShareOfZeros, IsTheShareOfZerosWhereTheOthersAreEqual) {
  EXPECT_EQ(effective_share_of_zeros(torch::tensor({2.0f, 0.0f, -2.0f, 2.0f})), 0.25);
  EXPECT_EQ(effective_share_of_zeros(torch::tensor({0.0f, 0.0f, 0.0f, 5.0f})), 0.75);
  EXPECT_EQ(effective_share_of_zeros(torch::tensor({1.0f, 1.0f})), 0);
  EXPECT_EQ(effective_share_of_zeros(torch::zeros({3})), 0);
  const at::Tensor w = torch::tensor({0.5f, -0.125f, 3.0f, 0.25f});
  EXPECT_EQ(effective_share_of_zeros(w), effective_share_of_zeros(w * 1024));  // scale does not count
  EXPECT_NEAR(effective_share_of_zeros(w), 1 - 3.875 * 3.875 / (4 * 9.328125), 1e-15);
}

// ---- in a network --------------------------------------------------------------------------------------------------

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

struct SparseMlp : torch::nn::Module {
  explicit SparseMlp(const Mlp& like) {
    fc1 = register_module("fc1", nn::SparseLinear(nn::SparseLinearImpl::from_dense(*like.fc1)));
    fc2 = register_module("fc2", nn::SparseLinear(nn::SparseLinearImpl::from_dense(*like.fc2)));
  }
  at::Tensor forward(const at::Tensor& x) { return fc2->forward(torch::tanh(fc1->forward(x))); }
  nn::SparseLinear fc1{nullptr}, fc2{nullptr};
};

at::Tensor inputs(torch::Dtype type = torch::kFloat) {
  torch::manual_seed(11);
  return torch::randn({16, 6}, type);
}
at::Tensor labels() { return torch::arange(16) % 3; }

AdaptiveAlphaOptions every(std::int64_t steps) {
  AdaptiveAlphaOptions options;
  options.interval = Duration::steps(static_cast<double>(steps));
  options.epsilon = 0.1;
  return options;
}

template <class Net>
std::unique_ptr<Sparsifier> adaptive(Net& net, const AdaptiveAlphaOptions& options, double alpha = 1.2,
                                     Update update = Update::gradient, const std::string& method = "dense") {
  return std::make_unique<Sparsifier>(net, make_method(method), Powerprop(alpha, update),
                                      SparsifierOptions().total_steps(100).steps_per_epoch(10).adaptive_alpha(options));
}

template <class Net>
void train(Net& net, Sparsifier& sparsifier, torch::optim::Optimizer& optimizer, int steps,
           torch::Dtype type = torch::kFloat) {
  for (int s = 0; s < steps; ++s) {
    const at::Tensor loss = torch::cross_entropy_loss(net.forward(inputs(type)), labels());
    loss.backward();
    sparsifier.observe_loss(loss.item<double>());
    sparsifier.step(optimizer);
  }
}

// The whole of it by hand, in double precision: momentum in phi, a change from 1.2 to 1.3 after three steps, on.
TEST(AdaptiveAlpha, IsPowerpropagationWithMomentumCarriedOverByHand) {
  Mlp net(torch::kDouble), hand(torch::kDouble);
  auto sparsifier = adaptive(net, every(3));
  torch::optim::SGD sgd(sparsifier->parameters(), torch::optim::SGDOptions(0.3).momentum(0.9));
  train(net, *sparsifier, sgd, 5, torch::kDouble);

  std::vector<at::Tensor> phi, buffer, bias_buffer;
  double alpha = 1.2;
  for (auto* fc : {&hand.fc1, &hand.fc2}) {
    const torch::NoGradGuard no_grad;
    phi.push_back((*fc)->weight.sign() * (*fc)->weight.abs().pow(1 / alpha));
    buffer.push_back(torch::zeros_like(phi.back()));
    bias_buffer.push_back(torch::zeros_like((*fc)->bias));
  }
  for (int s = 0; s < 5; ++s) {
    torch::cross_entropy_loss(hand.forward(inputs(torch::kDouble)), labels()).backward();
    const torch::NoGradGuard no_grad;
    if (s == 3) {
      for (std::size_t l = 0; l < 2; ++l) {
        const at::Tensor before = phi[l].clone();
        phi[l] = before.sign() * before.abs().pow(1.2 / 1.3);
        // dphi/dphi' as the quotient of dw/dphi' and dw/dphi
        buffer[l] *= 1.3 * phi[l].abs().pow(0.3) / (1.2 * before.abs().pow(0.2));
      }
      alpha = 1.3;
    }
    std::size_t l = 0;
    for (auto* fc : {&hand.fc1, &hand.fc2}) {
      buffer[l] = 0.9 * buffer[l] + (*fc)->weight.grad() * alpha * phi[l].abs().pow(alpha - 1);
      phi[l] -= 0.3 * buffer[l];
      (*fc)->weight.copy_(phi[l].sign() * phi[l].abs().pow(alpha));
      bias_buffer[l] = 0.9 * bias_buffer[l] + (*fc)->bias.grad();
      (*fc)->bias -= 0.3 * bias_buffer[l];
      (*fc)->weight.mutable_grad() = at::Tensor();
      (*fc)->bias.mutable_grad() = at::Tensor();
      ++l;
    }
  }
  EXPECT_EQ(sparsifier->weights()[0]->reparametrisation().alpha(), 1 + 1.5 * (1.2 - 1));
  EXPECT_TRUE(torch::allclose(net.fc1->weight, hand.fc1->weight, 1e-11, 1e-13));
  EXPECT_TRUE(torch::allclose(net.fc2->weight, hand.fc2->weight, 1e-11, 1e-13));
}

TEST(AdaptiveAlpha, ChangesBetweenStepsAndSaysWhatItSaw) {
  Mlp net;
  auto sparsifier = adaptive(net, every(3));
  const at::Tensor w0 = torch::cat({net.fc1->weight.detach().view({-1}), net.fc2->weight.detach().view({-1})}).clone();
  const auto start = sparsifier->take_alpha_trace();
  ASSERT_TRUE(start);
  EXPECT_TRUE(start->start);
  EXPECT_EQ(start->records.size(), 1u);
  EXPECT_EQ(start->records[0].near_zero, share_near_zero(w0, 0.1));
  EXPECT_FALSE(sparsifier->take_alpha_trace());

  torch::optim::SGD sgd(sparsifier->parameters(), 0.3);
  train(net, *sparsifier, sgd, 3);
  EXPECT_FALSE(sparsifier->take_alpha_trace()) << "the check belongs to the step that follows";
  const at::Tensor w3 = torch::cat({net.fc1->weight.detach().view({-1}), net.fc2->weight.detach().view({-1})}).clone();
  train(net, *sparsifier, sgd, 1);
  const auto trace = sparsifier->take_alpha_trace();
  ASSERT_TRUE(trace);
  EXPECT_EQ(trace->step, 3);
  EXPECT_TRUE(trace->loss);
  EXPECT_EQ(trace->records[0].before, 1.2);
  EXPECT_EQ(trace->records[0].alpha, 1 + 1.5 * (1.2 - 1));
  EXPECT_EQ(trace->records[0].near_zero, share_near_zero(w3, 0.1));
  EXPECT_FALSE(trace->records[0].signal_before);
}

TEST(AdaptiveAlpha, OneLoopForEachWeightWhereAsked) {
  Mlp net;
  AdaptiveAlphaOptions options = every(2);
  options.per = "layer";
  auto sparsifier = adaptive(net, options);
  torch::optim::SGD at_rest(sparsifier->parameters(), 0);
  train(net, *sparsifier, at_rest, 3);  // the first check: both go up
  sparsifier->weights()[1]->shrink(2);  // fewer of its weights are near zero
  train(net, *sparsifier, at_rest, 2);  // the second
  const auto trace = sparsifier->take_alpha_trace();
  ASSERT_TRUE(trace);
  EXPECT_EQ(trace->step, 4);
  ASSERT_EQ(trace->records.size(), 2u);
  EXPECT_EQ(trace->records[0].weight, "fc1.weight");
  EXPECT_EQ(trace->records[0].verdict, Verdict::increase);
  EXPECT_NEAR(trace->records[0].alpha, 1.45, 1e-12);
  EXPECT_EQ(trace->records[1].weight, "fc2.weight");
  EXPECT_EQ(trace->records[1].verdict, Verdict::decrease);
  EXPECT_NEAR(trace->records[1].alpha, 1.2, 1e-12);
  for (std::size_t l = 0; l < 2; ++l) {
    EXPECT_EQ(sparsifier->weights()[l]->reparametrisation().alpha(), trace->records[l].alpha);
  }
}

// The network's function: unchanged to the bit until the next step, and after it, with a learning rate of 0, within the
// rounding of each weight carried through the layers. tanh is no steeper than 1 and no larger than its argument, so
// |f' - f| <= |W2| (r |h_1|') + r |W2| |h| with |h_1|' = |W1| |x| and |h| <= |W1| |x| + |b1|, but for terms of r^2.
TEST(AdaptiveAlpha, AThousandChangesLeaveTheFunctionWithinTheRoundingOfItsWeights) {
  for (const bool compressed : {false, true}) {
    Mlp net;
    SparseMlp sparse(net);
    auto sparsifier = compressed ? adaptive(sparse, every(1000)) : adaptive(net, every(1000));
    const auto f = [&] { return compressed ? sparse.forward(inputs()) : net.forward(inputs()); };
    const auto in_double = [&] {
      Mlp copy(torch::kDouble);
      const torch::NoGradGuard no_grad;
      std::size_t l = 0;
      for (auto* fc : {&copy.fc1, &copy.fc2})
        (*fc)->weight.copy_(sparsifier->weights()[l++]->weights().view((*fc)->weight.sizes()));
      return copy.forward(inputs(torch::kDouble));
    };
    const torch::NoGradGuard no_grad;
    const at::Tensor before = f(), exact_before = in_double();
    for (int i = 0; i < 1000; ++i)
      for (const auto& w : sparsifier->weights()) w->change_alpha(1.01 + 1.5 * std::abs(std::cos(0.3 * i)));
    EXPECT_TRUE(f().equal(before));
    for (const auto& w : sparsifier->weights()) w->change_alpha(2.3);
    for (const auto& w : sparsifier->weights()) w->settle();
    const double r = (2.3 + 1) * 0x1p-24 + 4.6e-7 + 4e-8 * 2.3;
    Mlp n(torch::kDouble);
    const at::Tensor h = torch::matmul(inputs(torch::kDouble).abs(), n.fc1->weight.abs().t());
    const at::Tensor bound = (2 * r + r * r) * 1.0001 * torch::matmul(h + n.fc1->bias.abs(), n.fc2->weight.abs().t());
    EXPECT_TRUE((in_double() - exact_before).abs().le(bound).all().item<bool>());
    EXPECT_FALSE(in_double().equal(exact_before));
  }
}

// A zero has gradient 0 for every alpha > 1, and state that a sign change may have left there goes with it.
TEST(AdaptiveAlpha, NoNaNAtZeroThroughManyChanges) {
  for (const Update update : {Update::gradient, Update::target}) {
    Mlp net;
    {
      const torch::NoGradGuard no_grad;
      net.fc1->weight.view({-1}).slice(0, 0, 20).zero_();
    }
    AdaptiveAlphaOptions options = every(1);
    options.epsilon = 0.5;
    options.alpha_max = 3;
    auto sparsifier = adaptive(net, options, 1.2, update);
    torch::optim::Adam adam(sparsifier->parameters(), 1e-3);
    train(net, *sparsifier, adam, 50);
    EXPECT_TRUE(net.forward(inputs()).isfinite().all().item<bool>());
    EXPECT_EQ(net.fc1->weight.view({-1}).slice(0, 0, 20).count_nonzero().item<std::int64_t>(), 0);
  }
}

template <class Optimizer, class Options>
void resumes(const Options& optim, const AdaptiveAlphaOptions& options, bool compressed, Update update,
             const std::string& method) {
  const auto build = [&](auto& net) { return adaptive(net, options, 1.2, update, method); };
  Mlp like, m1, m2;
  SparseMlp s1(like), s2(like);
  const auto run = [&](auto& whole, auto& later) {
    auto a = build(whole);
    Optimizer oa(a->parameters(), optim);
    train(whole, *a, oa, 8);
    const NamedTensors saved = [&] {
      NamedTensors copy;
      for (const auto& [name, t] : a->archive()) copy.emplace_back(name, t.clone());
      return copy;
    }();
    NamedTensors moments;
    for (const auto& [name, t] : save_optimizer(oa, a->named_parameters())) moments.emplace_back(name, t.clone());
    std::vector<at::Tensor> biases;
    for (const auto& p : a->other_parameters()) biases.push_back(p.detach().clone());
    train(whole, *a, oa, 9);

    auto b = build(later);
    Optimizer ob(b->parameters(), optim);
    b->restore(saved);
    {
      const torch::NoGradGuard no_grad;
      for (std::size_t i = 0; i < biases.size(); ++i) b->other_parameters()[i].copy_(biases[i]);
    }
    load_optimizer(ob, b->named_parameters(), moments);
    train(later, *b, ob, 9);
    const NamedTensors end_a = a->archive(), end_b = b->archive();
    ASSERT_EQ(end_a.size(), end_b.size());
    for (std::size_t i = 0; i < end_a.size(); ++i) {
      EXPECT_EQ(end_a[i].first, end_b[i].first);
      EXPECT_TRUE(end_a[i].second.equal(end_b[i].second)) << end_a[i].first;
    }
    for (std::size_t l = 0; l < 2; ++l) EXPECT_TRUE(a->weights()[l]->weights().equal(b->weights()[l]->weights()));
    EXPECT_NE(a->weights()[0]->reparametrisation().alpha(), 1.2);
  };
  if (compressed)
    run(s1, s2);
  else
    run(m1, m2);
}

TEST(AdaptiveAlpha, ResumesToTheBit) {
  for (const bool compressed : {false, true}) {
    for (const Update update : {Update::gradient, Update::target}) {
      AdaptiveAlphaOptions options = every(4);
      resumes<torch::optim::SGD>(torch::optim::SGDOptions(0.2).momentum(0.9), options, compressed, update, "dense");
      options.per = "layer";
      options.signal = "effective";
      options.loss_tolerance = 0.01;
      options.interval = Duration::steps(3);  // a check half an interval after the moment that is saved
      resumes<torch::optim::Adam>(torch::optim::AdamOptions(0.02), options, compressed, update, "dense");
    }
  }
}

TEST(AdaptiveAlpha, RefusesAStateOfAnotherKind) {
  Mlp a, b, c;
  auto one = adaptive(a, every(2));
  AdaptiveAlphaOptions per_layer = every(2);
  per_layer.per = "layer";
  auto two = adaptive(b, per_layer);
  EXPECT_THROW(two->restore(one->archive()), Error);
  Sparsifier fixed(c, make_method("dense"), Powerprop(1.2), SparsifierOptions());
  EXPECT_THROW(one->restore(fixed.archive()), Error);
}

TEST(AdaptiveAlpha, AsksForAClockThatKnowsTheInterval) {
  Mlp net;
  EXPECT_THROW(
      Sparsifier(net, make_method("dense"), Powerprop(1.2), SparsifierOptions().adaptive_alpha(AdaptiveAlphaOptions())),
      Error);
}

// Decoupled decay of w: each weight shrinks by 1 - lr rate whatever its own alpha is.
TEST(AdaptiveAlpha, DecayOfWIsTheSameForEveryAlpha) {
  Mlp net(torch::kDouble);
  AdaptiveAlphaOptions options = every(1000);
  options.per = "layer";
  Sparsifier s(net, make_method("dense"), Powerprop(1.2),
               SparsifierOptions().adaptive_alpha(options).weight_decay({0.5, DecaySpace::w, true}));
  s.weights()[1]->change_alpha(3);
  const at::Tensor w0 = net.fc1->weight.detach().clone(), w1 = net.fc2->weight.detach().clone();
  torch::optim::SGD sgd(s.parameters(), 0.1);
  s.step(sgd);
  EXPECT_TRUE(torch::allclose(net.fc1->weight, w0 * 0.95, 1e-13, 0));
  EXPECT_TRUE(torch::allclose(net.fc2->weight, w1 * 0.95, 1e-13, 0));
}

}  // namespace
}  // namespace espalier
