// What holds for every registered method, with every reparametrisation.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <filesystem>

#include "espalier/core/error.h"
#include "espalier/core/random.h"
#include "espalier/methods/allocate.h"
#include "espalier/methods/drop_and_grow.h"
#include "espalier/methods/registry.h"
#include "espalier/methods/sparsifier.h"
#include "espalier/nn/sparse_conv.h"
#include "espalier/nn/sparse_linear.h"

namespace espalier {
namespace {

/// A convolution and a linear layer in either storage.
struct ConvNet : torch::nn::Module {
  explicit ConvNet(bool compressed) {
    torch::manual_seed(3);
    torch::nn::Conv2d convolution(torch::nn::Conv2dOptions(2, 6, 3).padding(1));
    torch::nn::Linear linear(6 * 16, 5);
    if (compressed) {
      sparse_conv = register_module("conv", nn::SparseConv2d(nn::SparseConv2dImpl::from_dense(*convolution)));
      sparse = register_module("fc", nn::SparseLinear(nn::SparseLinearImpl::from_dense(*linear)));
    } else {
      conv = register_module("conv", convolution);
      fc = register_module("fc", linear);
    }
  }
  at::Tensor forward(const at::Tensor& x) {
    const auto images = sparse_conv ? sparse_conv->forward(x) : conv->forward(x);
    const auto features = torch::relu(images).flatten(1);
    return sparse ? sparse->forward(features) : fc->forward(features);
  }
  at::Tensor conv_weight() const { return sparse_conv ? sparse_conv->to_dense() : conv->weight; }
  at::Tensor fc_weight() const { return sparse ? sparse->to_dense() : fc->weight; }
  at::Tensor conv_bias() const { return sparse_conv ? sparse_conv->bias : conv->bias; }
  torch::nn::Conv2d conv{nullptr};
  torch::nn::Linear fc{nullptr};
  nn::SparseConv2d sparse_conv{nullptr};
  nn::SparseLinear sparse{nullptr};
};

struct Case {
  std::string method, distribution;
  double alpha;
  Update update;
  bool compressed;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.method << ", " << c.distribution << ", alpha " << c.alpha; }

class EveryMethod : public ::testing::TestWithParam<Case> {};

void train(ConvNet& net, Sparsifier& s, torch::optim::Optimizer& o, int steps) {
  for (int i = 0; i < steps; ++i) {
    torch::manual_seed(100 + s.clock().step);
    const auto x = torch::randn({8, 2, 4, 4});
    torch::cross_entropy_loss(net.forward(x), torch::arange(8) % 5).backward();
    s.step(o);
  }
}

/// What methods that look before they prune are shown: a dense copy of the network, and batches.
std::shared_ptr<Probe> probe() {
  auto probe = std::make_shared<Probe>();
  probe->network = [] {
    auto copy = std::make_shared<ConvNet>(false);
    return ProbeNetwork{copy, [copy](const at::Tensor& x) { return copy->forward(x); }};
  };
  probe->input = {2, 4, 4};
  probe->wiring = {2, {"conv", "fc"}, {}};
  probe->initializer = "torch-default";
  probe->structure = [](const SparseWeight& w) {  // a fifth of both: 108 and 480 weights
    return torch::tensor(random_subset(w.numel(), w.layer() == 0 ? 22 : 96, RandomStream(1, Purpose::test)),
                         torch::kInt64);
  };
  probe->batch = [](std::int64_t, std::int64_t index) {
    torch::manual_seed(50 + static_cast<std::uint64_t>(index));
    return ProbeBatch{torch::randn({10, 2, 4, 4}), torch::arange(10) % 5};
  };
  return probe;
}

/// Walks end with a whole path: up to one weight more than was asked for, in two layers.
std::int64_t overshoot(const std::string& method) {
  return method.find("phew") != std::string::npos || method == "uniform-walks" ? 1 : 0;
}

/// The sparsity that is asked for; two methods find theirs out.
double asked_of(const std::string& method) { return method == "dense" || method == "str" ? 0 : 0.8; }
bool finds_its_sparsity(const std::string& method) { return method == "str" || method == "soft-deep-r"; }

/// The method, with a change of topology every 7 steps where it says how often.
std::unique_ptr<Method> often(const std::string& name) {
  auto method = make_method(name);
  for (auto& option : describe(*method)) {
    if (option.name == "every") *std::get<Duration*>(option.value) = Duration::steps(7);
  }
  return method;
}

std::unique_ptr<Sparsifier> make(ConvNet& net, const Case& c) {
  return std::make_unique<Sparsifier>(net, often(c.method), Powerprop(c.alpha, c.update),
                                      SparsifierOptions()
                                          .sparsity(asked_of(c.method))
                                          .distribution(c.distribution)
                                          .total_steps(60)
                                          .steps_per_epoch(20)
                                          .probe(probe()));
}

TEST_P(EveryMethod, EndsAtExactlyTheBudgetAndIsRepeatable) {
  const Case& c = GetParam();
  ConvNet a(c.compressed), b(c.compressed);
  auto sa = make(a, c), sb = make(b, c);
  torch::optim::SGD oa(sa->parameters(), torch::optim::SGDOptions(0.05).momentum(0.9));
  torch::optim::SGD ob(sb->parameters(), torch::optim::SGDOptions(0.05).momentum(0.9));
  train(a, *sa, oa, 60);
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  train(b, *sb, ob, 60);
  at::set_num_threads(threads);
  EXPECT_EQ(sa->nnz(), sb->nnz());
  if (!finds_its_sparsity(c.method)) {
    const std::int64_t budget = kept_count(sa->positions(), asked_of(c.method));
    EXPECT_GE(sa->nnz(), budget);
    EXPECT_LE(sa->nnz(), budget + overshoot(c.method));
  }
  for (std::size_t l = 0; l < 2; ++l) {
    EXPECT_TRUE(torch::equal(sa->weights()[l]->active(), sb->weights()[l]->active())) << l;
    // what the layer computes with is zero exactly outside the mask
    const at::Tensor w = l == 0 ? a.conv_weight() : a.fc_weight();
    EXPECT_LE(w.count_nonzero().item<std::int64_t>(), sa->weights()[l]->nnz());
    // no connection that could never move
    if (dynamic_cast<const DropAndGrow*>(&sa->method()) != nullptr) {
      const SparseWeight& weight = *sa->weights()[l];
      EXPECT_TRUE(weight.reparametrisation().derivative(weight.values()).ne(0).all().item<bool>()) << l;
    }
    EXPECT_TRUE(w.isfinite().all().item<bool>());
  }
}

TEST_P(EveryMethod, GoesOnFromItsArchive) {
  const Case& c = GetParam();
  ConvNet a(c.compressed), b(c.compressed);
  auto sa = make(a, c), sb = make(b, c);
  torch::optim::SGD oa(sa->parameters(), torch::optim::SGDOptions(0.05).momentum(0.9));
  torch::optim::SGD ob(sb->parameters(), torch::optim::SGDOptions(0.05).momentum(0.9));
  train(a, *sa, oa, 35);
  sb->restore(sa->archive());
  load_optimizer(ob, sb->named_parameters(), save_optimizer(oa, sa->named_parameters()));
  {
    const torch::NoGradGuard no_grad;
    b.conv_bias().copy_(a.conv_bias());
    (c.compressed ? b.sparse->bias : b.fc->bias).copy_(c.compressed ? a.sparse->bias : a.fc->bias);
  }
  train(a, *sa, oa, 25);
  train(b, *sb, ob, 25);
  EXPECT_TRUE(torch::equal(a.conv_weight(), b.conv_weight()));
  EXPECT_TRUE(torch::equal(a.fc_weight(), b.fc_weight()));
  for (std::size_t l = 0; l < 2; ++l) {
    EXPECT_TRUE(torch::equal(sa->weights()[l]->active(), sb->weights()[l]->active())) << l;
  }
}

TEST_P(EveryMethod, HasAPageInTheDocumentation) {
  EXPECT_TRUE(std::filesystem::exists(std::string(ESPALIER_SOURCE_DIR) + "/docs/methods/" + GetParam().method + ".md"));
}

TEST(MethodsForMaskedStorage, RefuseCompressedWeights) {
  for (const auto& m : known_methods()) {
    if (m.make()->takes_compressed()) continue;
    ConvNet net(true);
    EXPECT_THROW(make(net, {m.name, "uniform", 1.0, Update::gradient, true}), Error) << m.name;
  }
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const auto& m : known_methods())
    for (const char* distribution : {"uniform", "erk", "global"})
      for (const auto& [alpha, update] :
           {std::pair{1.0, Update::gradient}, {1.5, Update::gradient}, {2.0, Update::gradient}, {2.3, Update::target}})
        for (const bool compressed : {false, true}) {
          if (overshoot(m.name) > 0 && distribution == std::string("erk")) continue;  // refused: walks decide
          const bool grows = dynamic_cast<const DropAndGrow*>(m.make().get()) != nullptr;
          if (alpha == 2.0 && (!grows || distribution != std::string("uniform"))) continue;
          // These refuse update = target: their values are not what the layers see.
          const bool hides = m.name == "top-kast" || m.name == "str";
          if ((compressed && !m.make()->takes_compressed()) || (hides && update == Update::target)) continue;
          all.push_back({m.name, distribution, alpha, update, compressed});
        }
  return all;
}
INSTANTIATE_TEST_SUITE_P(Registry, EveryMethod, ::testing::ValuesIn(cases()), [](const auto& p) {
  std::string name = p.param.method + "_" + p.param.distribution + "_" + std::to_string(p.index) +
                     (p.param.compressed ? "_compressed" : "_masked");
  for (char& ch : name) ch = std::isalnum(static_cast<unsigned char>(ch)) != 0 ? ch : '_';
  return name;
});

}  // namespace
}  // namespace espalier
