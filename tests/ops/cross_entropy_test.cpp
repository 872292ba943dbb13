#include "espalier/ops/cross_entropy.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <stdexcept>

#include "espalier/core/error.h"

namespace espalier::ops {
namespace {

at::Tensor reference(const at::Tensor& logits, const at::Tensor& labels, double smoothing) {
  return torch::nn::functional::cross_entropy(
      logits, labels, torch::nn::functional::CrossEntropyFuncOptions().label_smoothing(smoothing));
}

TEST(CrossEntropy, IsTorchsInDouble) {
  torch::manual_seed(1);
  for (const double smoothing : {0.0, 0.2}) {
    for (const std::int64_t classes : {2, 10, 37}) {
      const at::Tensor logits = 3 * torch::randn({9, classes}, torch::kDouble);
      const at::Tensor labels = torch::randint(classes, {9}, torch::kInt64);
      at::Tensor a = logits.clone().requires_grad_(), b = logits.clone().requires_grad_();
      const at::Tensor ours = cross_entropy(a, labels, smoothing), theirs = reference(b, labels, smoothing);
      EXPECT_NEAR(ours.item<double>(), theirs.item<double>(), 1e-13);
      // behind other operations: the gradient that arrives is not 1
      (ours * 2.5).backward();
      (theirs * 2.5).backward();
      EXPECT_TRUE(torch::allclose(a.grad(), b.grad(), 1e-12, 1e-15));
    }
  }
}

TEST(CrossEntropy, ItsGradientIsTheSlopeOfTheLoss) {
  torch::manual_seed(2);
  const at::Tensor labels = torch::tensor({0, 4, 2}, torch::kInt64);
  at::Tensor logits = torch::randn({3, 5}, torch::kDouble).requires_grad_();
  cross_entropy(logits, labels, 0.1).backward();
  const double h = 1e-6;
  for (std::int64_t i = 0; i < logits.numel(); ++i) {
    const auto loss_at = [&](double shift) {
      at::Tensor moved = logits.detach().clone();
      moved.view({-1})[i] += shift;
      return cross_entropy(moved, labels, 0.1).item<double>();
    };
    EXPECT_NEAR(logits.grad().view({-1})[i].item<double>(), (loss_at(h) - loss_at(-h)) / (2 * h), 1e-9);
  }
}

TEST(CrossEntropy, TakesASliceOfTheLogitsAndHasTheSameBitsForAnyNumberOfThreads) {
  torch::manual_seed(3);
  const at::Tensor labels = torch::randint(700, {128}, torch::kInt64), all = torch::randn({128, 1000});
  at::Tensor loss, gradient;
  for (const int threads : {1, 2, 3}) {
    at::set_num_threads(threads);
    at::Tensor x = all.clone().requires_grad_();
    const at::Tensor now = cross_entropy(x.slice(1, 100, 800), labels);
    now.backward();
    if (loss.defined()) {
      EXPECT_TRUE(torch::equal(loss, now));
      EXPECT_TRUE(torch::equal(gradient, x.grad()));
    }
    loss = now.detach();
    gradient = x.grad();
  }
  EXPECT_EQ(gradient.slice(1, 0, 100).abs().max().item<float>(), 0);
  EXPECT_NEAR(loss.item<double>(), reference(all.slice(1, 100, 800), labels, 0).item<double>(), 1e-5);
}

TEST(CrossEntropy, OfTilesIsThatOfRows) {
  torch::manual_seed(4);
  const int threads_before = at::get_num_threads();
  for (const std::int64_t samples : {1, 17, 64, 70, 150}) {  // ragged tiles
    for (const auto type : {torch::kFloat, torch::kDouble}) {
      const std::int64_t classes = 333;
      const at::Tensor labels = torch::randint(classes, {samples}, torch::kInt64);
      const at::Tensor x = 3 * torch::randn({samples, classes}, type);
      for (std::int64_t i = 0; i < samples; i += 3) x[i][labels[i].item<std::int64_t>()] = 20;  // right
      if (samples > 60) x[60][0] = 20;                                                          // but for a tie
      const double tolerance = type == torch::kFloat ? 1e-5 : 1e-13;
      at::Tensor of_one_thread;
      for (const int threads : {1, 2, 3}) {
        at::set_num_threads(threads);
        at::Tensor rows = x.clone().requires_grad_(), also = x.clone().requires_grad_();
        std::int64_t correct = -1, correct_too = -1;
        const at::Tensor loss = cross_entropy(rows, labels, 0.1, &correct);
        const TileLayout layout{samples, classes};
        const at::Tensor of_tiles = cross_entropy(to_tiles(also), layout, labels, 0.1, &correct_too);
        (loss * 2).backward();
        (of_tiles * 2).backward();
        EXPECT_NEAR(loss.item<double>(), of_tiles.item<double>(), tolerance) << samples;
        EXPECT_TRUE(torch::allclose(rows.grad(), also.grad(), 0, tolerance)) << samples;
        EXPECT_EQ(correct, x.argmax(1).eq(labels).sum().item<std::int64_t>()) << samples;
        EXPECT_EQ(correct_too, correct) << samples;
        if (threads == 1) of_one_thread = also.grad();
        EXPECT_TRUE(torch::equal(also.grad(), of_one_thread)) << samples << " samples, threads " << threads;
      }
    }
  }
  at::set_num_threads(threads_before);
}

TEST(CrossEntropy, RetainedGraphGivesTheSameGradientTwice) {
  at::Tensor x = torch::tensor({{1.0, 2.0, 3.0}}, torch::kDouble).requires_grad_();
  const at::Tensor loss = cross_entropy(x, torch::tensor({1}, torch::kInt64));
  loss.backward({}, /*retain_graph=*/true);
  const at::Tensor once = x.grad().clone();
  loss.backward();
  EXPECT_TRUE(torch::allclose(x.grad(), 2 * once, 1e-15, 0));
}

TEST(CrossEntropy, RefusesWhatItCannotTake) {
  const at::Tensor logits = torch::randn({2, 3});
  const auto expect = [&](const at::Tensor& x, const at::Tensor& labels, double smoothing, const char* part) {
    try {
      cross_entropy(x, labels, smoothing);
      ADD_FAILURE() << "no error: " << part;
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
    }
  };
  const at::Tensor good = torch::tensor({0, 2}, torch::kInt64);
  expect(logits, torch::tensor({0, 3}, torch::kInt64), 0, "a label is 3; expected 0 to 2");
  expect(logits, torch::tensor({-1, 0}, torch::kInt64), 0, "a label is -1");
  expect(logits, torch::tensor({0}, torch::kInt64), 0, "Long [1]; expected Long [2]");
  expect(logits, good.to(torch::kInt32), 0, "labels are Int [2]");
  expect(logits, good, 1.5, "smoothing = 1.5");
  expect(logits.view({-1}), good, 0, "logits of [6]");
  expect(torch::empty({0, 3}), torch::empty({0}, torch::kInt64), 0, "logits of [0, 3]");
  expect(logits.to(torch::kHalf), good, 0, "float32 and float64; found Half");
  try {
    cross_entropy(torch::randn({47}), {2, 3}, good);
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("tiles of 2 samples with 3 classes have 48 entries"), std::string::npos);
  }
  at::Tensor x = logits.clone().requires_grad_();
  const at::Tensor gradient = torch::autograd::grad({cross_entropy(x, good)}, {x}, {}, true, true)[0];
  EXPECT_THROW(gradient.sum().backward(), std::runtime_error);  // differentiable once
}

}  // namespace
}  // namespace espalier::ops
