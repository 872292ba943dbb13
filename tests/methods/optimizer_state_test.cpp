#include "espalier/methods/optimizer_state.h"

#include <gtest/gtest.h>

namespace espalier {
namespace {

const at::Tensor kFactor = torch::tensor({2.0, 0.0, 0.5}, torch::kDouble);

/// The state after two gradients, the parameter at rest.
template <class Optimizer, class Options>
NamedTensors state_after(const Options& options, const at::Tensor& scale, const at::Tensor& factor_at_the_end) {
  const at::Tensor p = torch::tensor({1.0, -2.0, 3.0}, torch::kDouble).set_requires_grad(true);
  Optimizer optimizer({p}, options);
  for (const auto& g :
       {torch::tensor({0.5, 1.5, -1.0}, torch::kDouble), torch::tensor({2.0, -0.25, 1.0}, torch::kDouble)}) {
    p.mutable_grad() = g * scale;
    optimizer.step();
  }
  if (factor_at_the_end.defined()) scale_state(optimizer, p, factor_at_the_end);
  NamedTensors copy;
  for (const auto& [name, t] : save_optimizer(optimizer, {{"p", p}})) copy.emplace_back(name, t.clone());
  return copy;
}

/// What scale_state promises: the state is that of gradients that were given times `factor`.
template <class Optimizer, class Options>
void is_that_of_scaled_gradients(const Options& options, std::size_t tensors) {
  const at::Tensor ones = torch::ones({3}, torch::kDouble);
  const NamedTensors scaled = state_after<Optimizer>(options, ones, kFactor);
  const NamedTensors expected = state_after<Optimizer>(options, kFactor, {});
  ASSERT_EQ(scaled.size(), expected.size());
  std::size_t compared = 0;
  for (std::size_t i = 0; i < scaled.size(); ++i) {
    EXPECT_EQ(scaled[i].first, expected[i].first);
    EXPECT_TRUE(torch::allclose(scaled[i].second, expected[i].second, 1e-15, 0)) << scaled[i].first;
    compared += scaled[i].second.numel() == 3 ? 1 : 0;
  }
  EXPECT_EQ(compared, tensors);
}

TEST(ScaleState, IsTheStateOfScaledGradients) {
  using namespace torch::optim;
  is_that_of_scaled_gradients<SGD>(SGDOptions(0).momentum(0.9), 1);
  is_that_of_scaled_gradients<Adam>(AdamOptions(0).amsgrad(true), 3);
  is_that_of_scaled_gradients<AdamW>(AdamWOptions(0), 2);
  is_that_of_scaled_gradients<RMSprop>(RMSpropOptions(0).centered(true), 2);
  is_that_of_scaled_gradients<Adagrad>(AdagradOptions(0), 1);
}

// Gradients divided by their size: what has been summed up has no more of the scale in it.
TEST(ScaleState, LeavesTheMomentumOfRmspropAlone) {
  const at::Tensor ones = torch::ones({3}, torch::kDouble);
  const auto options = torch::optim::RMSpropOptions(0).momentum(0.9);
  const auto find = [](const NamedTensors& all) {
    for (const auto& [name, t] : all)
      if (name == "p.momentum_buffer") return t;
    return at::Tensor();
  };
  const at::Tensor before = find(state_after<torch::optim::RMSprop>(options, ones, {}));
  ASSERT_TRUE(before.defined());
  EXPECT_TRUE(find(state_after<torch::optim::RMSprop>(options, ones, kFactor)).equal(before));
}

TEST(ScaleState, NothingBeforeTheFirstStep) {
  const at::Tensor p = torch::ones({3}).set_requires_grad(true);
  torch::optim::Adam adam({p}, torch::optim::AdamOptions(0.1));
  scale_state(adam, p, torch::ones({3}));
  EXPECT_TRUE(save_optimizer(adam, {{"p", p}}).empty());
}

}  // namespace
}  // namespace espalier
