#include "espalier/nn/init.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

#include "espalier/core/error.h"
#include "espalier/core/random.h"

namespace espalier::nn {
namespace {

torch::Tensor drawn(const std::string& initializer, at::IntArrayRef shape, std::uint64_t seed = 1,
                    std::uint64_t layer = 0) {
  auto weight = torch::full(shape, 99.0, torch::kDouble);
  initialize_weight(weight, initializer, seed, layer);
  return weight;
}

/// Mean 0, variance `variance` and fourth moment `kurtosis` x variance^2, each within five standard errors; `eighth` is
/// E x^8 / variance^4, which the error of the fourth needs.
void expect_moments(const torch::Tensor& w, double variance, double kurtosis, double eighth) {
  const double n = static_cast<double>(w.numel());
  const double m1 = w.mean().item<double>();
  const double m2 = w.pow(2).mean().item<double>() / variance;
  const double m4 = w.pow(4).mean().item<double>() / (variance * variance);
  EXPECT_NEAR(m1, 0, 5 * std::sqrt(variance / n));
  EXPECT_NEAR(m2, 1, 5 * std::sqrt((kurtosis - 1) / n));
  EXPECT_NEAR(m4, kurtosis, 5 * std::sqrt((eighth - kurtosis * kurtosis) / n));
}

// Conv2d weight with 48 inputs in 4 groups, 3x5 kernel: fan_in = 12 x 15 = 180; fan_out = 400 x 15 = 6000.
const std::vector<std::int64_t> kConv = {400, 12, 3, 5};

// Standardised moments E x^4, E x^8: normal 3, 105; uniform 9/5, 9.
TEST(Initializers, NormalOnesHaveTheirVariance) {
  expect_moments(drawn("kaiming-normal", {500, 200}), 2.0 / 200, 3, 105);
  expect_moments(drawn("kaiming-normal", kConv), 2.0 / 180, 3, 105);
  expect_moments(drawn("xavier-normal", {500, 200}), 2.0 / 700, 3, 105);
  expect_moments(drawn("xavier-normal", kConv), 2.0 / 6180, 3, 105);
}

void expect_uniform(const std::string& initializer, at::IntArrayRef shape, double bound) {
  const auto w = drawn(initializer, shape);
  expect_moments(w, bound * bound / 3, 9.0 / 5, 9);
  EXPECT_LE(w.abs().max().item<double>(), bound);
  // Of n draws the largest is below (1 - t) bound with probability (1 - t)^n: e^-20 for t = 20 / n.
  EXPECT_GT(w.abs().max().item<double>(), bound * (1 - 20.0 / static_cast<double>(w.numel())));
}

TEST(Initializers, UniformOnesFillTheirBounds) {
  expect_uniform("kaiming-uniform", {500, 200}, std::sqrt(6.0 / 200));
  expect_uniform("kaiming-uniform", kConv, std::sqrt(6.0 / 180));
  expect_uniform("xavier-uniform", {500, 200}, std::sqrt(6.0 / 700));
  expect_uniform("xavier-uniform", kConv, std::sqrt(6.0 / 6180));
  expect_uniform("torch-default", {500, 200}, std::sqrt(1.0 / 200));
}

TEST(Initializers, TruncatedNormalIsCutAtTwoSigmaAndKeepsItsVariance) {
  const auto w = drawn("truncated-normal", {500, 200});
  const double sigma = std::sqrt(1.0 / 200) / 0.87962566103423978;
  const double largest = w.abs().max().item<double>();
  EXPECT_LE(largest, 2 * sigma);
  // pdf of |z| at the cut: 2 x 0.05399 / 0.9545 = 0.1131 a sigma; none of 100,000 in the last 0.002: e^-22.
  EXPECT_GT(largest, 1.998 * sigma);
  // Moments of a standard normal cut at +-a, by m(k) = (k - 1) m(k - 2) - 2 a^(k-1) pdf(a) / P, P = P(|z| < a).
  const double a = 2, pdf = std::exp(-2.0) / std::sqrt(2 * M_PI), p = std::erf(a / std::sqrt(2.0));
  double moment[5] = {1};
  for (int half = 1; half <= 4; ++half) {
    const int k = 2 * half;
    moment[half] = (k - 1) * moment[half - 1] - 2 * std::pow(a, k - 1) * pdf / p;
  }
  EXPECT_NEAR(std::sqrt(moment[1]), 0.87962566103423978, 1e-14);
  const double v = moment[1];
  expect_moments(w, 1.0 / 200, moment[2] / (v * v), moment[4] / (v * v * v * v));
}

TEST(Initializers, EntriesAreTheNamedStream) {
  const auto w = drawn("kaiming-normal", {3, 8}, 7, 5);
  const RandomStream random(7, Purpose::init, 5);
  for (std::int64_t e = 0; e < 24; ++e)
    EXPECT_EQ(w.flatten()[e].item<double>(), std::sqrt(2.0 / 8) * random.normal_at(static_cast<std::uint64_t>(e)));
}

TEST(Initializers, SeedAndLayerMatter) {
  const auto w = drawn("xavier-uniform", {20, 20}, 1, 0);
  EXPECT_TRUE(w.equal(drawn("xavier-uniform", {20, 20}, 1, 0)));
  EXPECT_FALSE(w.equal(drawn("xavier-uniform", {20, 20}, 2, 0)));
  EXPECT_FALSE(w.equal(drawn("xavier-uniform", {20, 20}, 1, 1)));
}

TEST(Initializers, AnyNumberOfThreadsGivesTheSameBits) {
  const int threads = at::get_num_threads();
  for (const std::string& name : known_initializers()) {
    at::set_num_threads(1);
    const auto one = drawn(name, {300, 201});
    at::set_num_threads(2);
    EXPECT_TRUE(one.equal(drawn(name, {300, 201}))) << name;
  }
  at::set_num_threads(threads);
}

TEST(Initializers, WriteIntoTransposedAndFloatWeights) {
  const auto plain = drawn("kaiming-normal", {30, 20}).to(torch::kFloat);
  auto storage = torch::zeros({20, 30});
  initialize_weight(storage.t(), "kaiming-normal", 1, 0);
  EXPECT_TRUE(storage.t().equal(plain));
}

TEST(Initializers, UnknownNamesAndVectorsAreErrors) {
  auto w = torch::zeros({2, 2});
  try {
    initialize_weight(w, "kaimng-normal", 0, 0);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::usage);
    EXPECT_NE(std::string(e.what()).find("Did you mean \"kaiming-normal\"?"), std::string::npos) << e.what();
  }
  EXPECT_THROW(initialize_weight(torch::zeros({4}), "kaiming-normal", 0, 0), Error);
  EXPECT_TRUE(w.equal(torch::zeros({2, 2})));
}

TEST(Initialize, SetsEveryLayerOfAModel) {
  torch::nn::Sequential model(torch::nn::Conv2d(torch::nn::Conv2dOptions(3, 4, 3)), torch::nn::BatchNorm2d(4),
                              torch::nn::Linear(4, 5), torch::nn::BatchNorm1d(5), torch::nn::Linear(5, 6));
  auto p = model->named_parameters();
  auto b = model->named_buffers();
  {
    const torch::NoGradGuard no_grad;
    for (auto& item : p) item.value().fill_(9);
    b["1.running_mean"].fill_(9);
    b["3.running_var"].fill_(9);
  }
  initialize(*model, "kaiming-normal", 3);
  for (const char* name : {"0.bias", "1.bias", "2.bias", "3.bias", "4.bias"})
    EXPECT_TRUE(p[name].equal(torch::zeros_like(p[name]))) << name;
  for (const char* name : {"1.weight", "3.weight"}) EXPECT_TRUE(p[name].equal(torch::ones_like(p[name]))) << name;
  EXPECT_TRUE(b["1.running_mean"].equal(torch::zeros({4})));
  EXPECT_TRUE(b["3.running_var"].equal(torch::ones({5})));
  std::uint64_t layer = 0;
  for (const char* name : {"0.weight", "2.weight", "4.weight"})
    EXPECT_TRUE(p[name].equal(drawn("kaiming-normal", p[name].sizes(), 3, layer++).to(torch::kFloat))) << name;
}

TEST(Initialize, TakesASingleLayerOnTheStack) {
  torch::nn::LinearImpl layer(8, 3);
  initialize(layer, "xavier-normal", 3);
  EXPECT_TRUE(layer.weight.equal(drawn("xavier-normal", {3, 8}, 3, 0).to(torch::kFloat)));
}

TEST(Initialize, TorchDefaultDrawsBiasesToo) {
  torch::nn::Sequential model(torch::nn::Linear(16, 2000));
  initialize(*model, "torch-default", 3);
  const auto bias = model->named_parameters()["0.bias"].detach().to(torch::kDouble);
  expect_moments(bias, 1.0 / 16 / 3, 9.0 / 5, 9);
  EXPECT_LE(bias.abs().max().item<double>(), 0.25);
  const auto weight = model->named_parameters()["0.weight"].detach().flatten().slice(0, 0, 2000).to(torch::kDouble);
  EXPECT_FALSE(bias.equal(weight));  // a stream of their own
}

}  // namespace
}  // namespace espalier::nn
