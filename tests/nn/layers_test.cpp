// Layers on batch tiles of images and vectors against the same layers of torch on plain tensors.
#include "nn/layers.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "espalier/core/error.h"
#include "ops/tiled_images.h"

namespace espalier::nn {
namespace {

using ops::images_of;
using ops::largest_difference;
using torch::Tensor;

TEST(Activation, GoesBetweenItsKinds) {
  const Tensor x = images_of({17, 3, 5, 4, 0});
  const Activation images = Activation(x).images(1);
  EXPECT_TRUE(images.is_images() && !images.is_tiled());
  EXPECT_EQ(images.image_layout(), (ops::ImageLayout{17, 3, 5, 4, 1}));
  EXPECT_TRUE(images.plain().equal(x));
  EXPECT_EQ(images.images(0).image_layout().halo, 1);  // at least: nothing is copied
  EXPECT_TRUE(images.images(1).data().is_same(images.data()));
  EXPECT_EQ(images.images(2).image_layout().halo, 2);
  EXPECT_TRUE(images.images(2).plain().equal(x));
  EXPECT_THROW(images.tiled(), Error);
  EXPECT_THROW(Activation(x.flatten(1)).images(0), Error);

  const Activation vectors = flatten(images);
  EXPECT_TRUE(vectors.is_tiled() && !vectors.is_images());
  EXPECT_TRUE(vectors.plain().equal(x.flatten(1)));
}

TEST(Activation, KeepsItsHaloZero) {
  const Tensor x = images_of({17, 3, 5, 4, 0});
  for (const std::int64_t halo : {0, 1}) {
    const Activation y = Activation(x).images(halo).map([](const Tensor& t) { return torch::sigmoid(t); });
    EXPECT_TRUE(ops::halo_is_zero(y.data(), y.image_layout()));
    EXPECT_TRUE(y.plain().equal(torch::sigmoid(x)));
  }
  const Activation relu = relu_over(Activation(x).images(1));
  EXPECT_TRUE(relu.plain().equal(torch::relu(x)));
}

template <class Module>
void expect_same_statistics(Module& a, Module& b) {
  EXPECT_LE(largest_difference(a.running_mean, b.running_mean), 1e-14);
  EXPECT_LE(largest_difference(a.running_var, b.running_var), 1e-14);
  EXPECT_TRUE(a.num_batches_tracked.equal(b.num_batches_tracked));
}

// Two batches in training mode and one in evaluation, with every kind of running statistics.
TEST(Layers, BatchNormKeepsTheStatisticsThatTorchKeeps) {
  for (const auto momentum : {c10::optional<double>(0.1), c10::optional<double>()}) {
    for (const bool tracks : {true, false}) {
      const auto options = torch::nn::BatchNormOptions(3).momentum(momentum).track_running_stats(tracks);
      torch::nn::BatchNorm2d plain(options), tiled(options);
      plain->to(torch::kDouble);
      tiled->to(torch::kDouble);
      torch::nn::BatchNorm1d plain1(options), tiled1(options);
      plain1->to(torch::kDouble);
      tiled1->to(torch::kDouble);
      for (const int batch : {0, 1, 2}) {
        const Tensor x = images_of({17, 3, 5, 4, 0}) * (batch + 1) + batch, v = x.select(2, 0).select(2, 0);
        for (auto* module : {&plain, &tiled}) (*module)->train(batch < 2);
        for (auto* module : {&plain1, &tiled1}) (*module)->train(batch < 2);
        const Tensor y = plain->forward(x), y1 = plain1->forward(v);
        EXPECT_LE(largest_difference(batch_norm(*tiled, Activation(x).images(1)).plain(), y), 1e-12);
        EXPECT_LE(largest_difference(batch_norm(*tiled1, Activation(v).tiled()).plain(), y1), 1e-12);
        if (tracks) {
          expect_same_statistics(*tiled, *plain);
          expect_same_statistics(*tiled1, *plain1);
        }
      }
    }
  }
}

TEST(Layers, KeepTheKindThatComesAndComputeTheSame) {
  const Tensor a = images_of({17, 3, 6, 8, 0}), b = torch::randn_like(a);
  const Activation images = Activation(a).images(1), other = Activation(b).images(2);
  const ops::Pool pool{{3, 2}, {2, 2}, {1, 1}};
  struct {
    Activation found;
    Tensor expected;
  } const results[] = {
      {max_pool(images, pool), max_pool(Activation(a), pool).data()},
      {average_pool(images, pool), average_pool(Activation(a), pool).data()},
      {add_over(images, other), a + b},
      {add_relu_over(Activation(a).images(1), Activation(b)), torch::relu(a + b)},
      {global_average(images), a.mean({2, 3})},
      {global_max(images), a.amax({2, 3})},
      {flatten(images), a.flatten(1)},
  };
  for (const auto& r : results) {
    EXPECT_TRUE(r.found.is_images() || r.found.is_tiled());
    EXPECT_LE(largest_difference(r.found.plain(), r.expected), 1e-13);
    EXPECT_EQ(r.found.plain().sizes(), r.expected.sizes());
  }
  EXPECT_TRUE(add_over(Activation(a.clone()), Activation(b)).data().equal(a + b));  // plain stays plain
}

}  // namespace
}  // namespace espalier::nn
