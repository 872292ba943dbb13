#include "espalier/methods/rigl.h"

#include <cmath>

#include "espalier/core/error.h"
#include "espalier/methods/registry.h"
#include "espalier/methods/sparsifier.h"
#include "espalier/nn/sparse_linear.h"
#include "methods/storages.h"

namespace espalier {
namespace {

using Numbers = std::vector<std::int64_t>;
using test::numbers;
using test::weight_of;

void set(Method& method, const std::string& name, const std::string& value) {
  for (auto& option : describe(method)) {
    if (option.name != name) continue;
    if (auto* v = std::get_if<double*>(&option.value)) **v = std::stod(value);
    if (auto* v = std::get_if<bool*>(&option.value)) **v = value == "true";
    if (auto* v = std::get_if<std::string*>(&option.value)) **v = value;
    if (auto* v = std::get_if<Duration*>(&option.value)) **v = Duration::parse(value);
    return;
  }
  FAIL() << name;
}

// f(t) = (alpha / 2)(1 + cos(pi t / T_end)), alpha = 0.3, T_end = 25,000; k = int(f n) of 1000.
TEST(RigL, CosineOfThePaper) {
  const std::vector<std::pair<std::int64_t, double>> table = {
      {0, .3}, {6250, .25606602}, {12500, .15}, {18750, .04393398}, {25000, 0}};
  const Numbers k = {300, 256, 150, 43, 0};
  for (std::size_t i = 0; i < table.size(); ++i) {
    const double f = cosine_fraction(0.3, table[i].first, 25000);
    EXPECT_NEAR(f, table[i].second, 5e-9);
    EXPECT_EQ(static_cast<std::int64_t>(f * 1000), k[i]);
  }
}

/// theta = (.5, -.1, .3, 0, 0, 0), the first three active, |g| as given.
struct Six {
  at::Tensor model;
  std::unique_ptr<SparseWeight> w;
  RigL rigl;
  MethodContext context;
  Six(bool compressed, const std::vector<float>& g) {
    w = weight_of(compressed, torch::tensor({0.5f, -0.1f, 0.3f, 0.0f, 0.0f, 0.0f}).view({2, 3}), {}, 0, &model);
    test::give_gradient(*w, model, torch::tensor(g).view({2, 3}));
    set(rigl, "schedule", "constant");
    set(rigl, "fraction", "0.4");  // int(.4 * 3) = 1
    context = {{w.get()}, {100, 1000, 100}, 1, {0.5, "uniform", {}}};
  }
};

TEST(RigL, ADroppedWeightMayBeGrownAgainAndThenNothingHasHappened) {
  for (const bool compressed : {false, true}) {
    Six six(compressed, {.1f, -.9f, .2f, .5f, .8f, .05f});
    test::Change changed(*six.w);
    six.rigl.after_step(six.context);  // drops position 1, whose gradient is the largest of 1, 3, 4, 5
    EXPECT_FALSE(changed.take().has_value());
    EXPECT_EQ(numbers(six.w->active()), (Numbers{0, 1, 2}));
    EXPECT_FLOAT_EQ(six.w->weights()[1].item<float>(), -0.1f);
  }
}

TEST(RigL, GrowsWhereTheGradientIsLargestAtZero) {
  for (const bool compressed : {false, true}) {
    Six six(compressed, {.1f, -.4f, 9.f, .5f, -.8f, .8f});  // position 2 is kept; 4 and 5 tie: the lower
    test::Change changed(*six.w);
    six.rigl.after_step(six.context);
    const auto change = changed.take();
    ASSERT_TRUE(change);
    EXPECT_EQ(numbers(change->dropped), (Numbers{1}));
    EXPECT_EQ(numbers(change->grown), (Numbers{4}));
    EXPECT_EQ(numbers(six.w->active()), (Numbers{0, 2, 4}));
    EXPECT_EQ(six.w->weights()[2].item<float>(), 0.0f);
    EXPECT_NEAR(*change->threshold, 0.3, 1e-7);
  }
}

TEST(RigL, AsksForTheGradientOnlyAtItsChanges) {
  RigL rigl;
  for (const auto& [step, due] :
       {std::pair{99, false}, {100, true}, {101, false}, {700, true}, {750, false}, {800, false}}) {
    const Clock clock{step, 1000, 100};
    EXPECT_EQ(rigl.wants_dense_gradient(clock), due) << step;
    EXPECT_EQ(rigl.replaces_update(clock), due) << step;
  }
  set(rigl, "instead_of_update", "false");
  EXPECT_FALSE(rigl.replaces_update({100, 1000, 100}));
}

struct Net : torch::nn::Module {
  explicit Net(bool compressed) {
    torch::manual_seed(5);
    torch::nn::Linear a(7, 33), b(33, 4);
    if (compressed) {
      sa = register_module("fc1", nn::SparseLinear(nn::SparseLinearImpl::from_dense(*a)));
      sb = register_module("fc2", nn::SparseLinear(nn::SparseLinearImpl::from_dense(*b)));
    } else {
      fa = register_module("fc1", a);
      fb = register_module("fc2", b);
    }
  }
  at::Tensor forward(const at::Tensor& x) {
    return sa ? sb->forward(torch::relu(sa->forward(x))) : fb->forward(torch::relu(fa->forward(x)));
  }
  nn::SparseLinear sa{nullptr}, sb{nullptr};
  torch::nn::Linear fa{nullptr}, fb{nullptr};
};

// Both storages through forward, backward and Sparsifier::step: the same structure. 70 samples: a full tile and a
// ragged one.
TEST(RigL, TheStoragesGrowAlikeInTraining) {
  Net nets[2] = {Net(false), Net(true)};
  std::unique_ptr<Sparsifier> s[2];
  std::unique_ptr<torch::optim::SGD> sgd[2];
  for (int i = 0; i < 2; ++i) {
    auto rigl = std::make_unique<RigL>();
    set(*rigl, "every", "3it");
    s[i] = std::make_unique<Sparsifier>(nets[i], std::move(rigl), Reparametrisation(),
                                        SparsifierOptions().sparsity(0.7).total_steps(60));
    sgd[i] = std::make_unique<torch::optim::SGD>(s[i]->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
  }
  std::int64_t grown = 0;
  for (int step = 0; step < 40; ++step) {
    torch::manual_seed(step);
    const at::Tensor x = torch::randn({70, 7});
    for (int i = 0; i < 2; ++i) {
      torch::cross_entropy_loss(nets[i].forward(x), torch::arange(70) % 4).backward();
      s[i]->step(*sgd[i]);
    }
    for (const auto& l : s[0]->take_topology()) grown += l.grown;
    for (std::size_t l = 0; l < 2; ++l) {
      ASSERT_TRUE(torch::equal(s[0]->weights()[l]->active(), s[1]->weights()[l]->active())) << step << " " << l;
      ASSERT_TRUE(torch::allclose(s[0]->weights()[l]->weights(), s[1]->weights()[l]->weights(), 1e-3, 1e-5)) << step;
    }
  }
  EXPECT_GT(grown, 50);
}

TEST(RigL, AChangeTakesThePlaceOfTheUpdate) {
  for (const bool compressed : {false, true}) {
    Net net(compressed);
    auto rigl = std::make_unique<RigL>();
    set(*rigl, "every", "2it");
    Sparsifier s(net, std::move(rigl), Reparametrisation(), SparsifierOptions().sparsity(0.5).total_steps(60));
    torch::optim::SGD sgd(s.parameters(), torch::optim::SGDOptions(0.1));
    for (int step = 1; step <= 4; ++step) {
      const at::Tensor bias = (compressed ? net.sa->bias : net.fa->bias).detach().clone();
      torch::cross_entropy_loss(net.forward(torch::ones({8, 7})), torch::arange(8) % 4).backward();
      s.step(sgd);
      EXPECT_EQ(torch::equal(bias, compressed ? net.sa->bias : net.fa->bias), step % 2 == 0) << step;
      EXPECT_EQ(s.take_topology().empty(), step % 2 == 1) << step;
    }
  }
}

}  // namespace
}  // namespace espalier
