// Pools in batch tiles of images against torch's on plain tensors.
#include "espalier/ops/pool.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>
#include <limits>

#include "espalier/core/error.h"
#include "ops/tiled_images.h"

namespace espalier::ops {
namespace {

using torch::Tensor;
using OnImages = std::function<Tensor(const Tensor& images, const ImageLayout& layout)>;
using OnPlain = std::function<Tensor(const Tensor& x)>;

// Windows apart, side by side, overlapping, with padding; wide and high.
const Pool kPools[] = {{{2, 2}, {2, 2}, {0, 0}}, {{3, 3}, {2, 2}, {1, 1}}, {{1, 1}, {1, 1}, {0, 0}},
                       {{3, 2}, {1, 3}, {1, 1}}, {{2, 5}, {3, 2}, {1, 2}}, {{5, 5}, {1, 1}, {2, 2}}};

bool fits(const Shape& s, const Pool& p) {
  return p.kernel[0] <= s.height + 2 * p.padding[0] && p.kernel[1] <= s.width + 2 * p.padding[1];
}

/// y and dx, in tiles and of torch; `out` is the layout of y, tiles of vectors where it is null. Exactly equal where
/// tolerance is 0. Roundings of at most 12 summands of order 1, in double: 1e-14.
void compare(const Shape& s, const OnImages& tiled, const OnPlain& plain, const ImageLayout* out, double tolerance) {
  const Tensor x = (images_of(s) * 4).round().requires_grad_();  // whole numbers: many are equal
  const Tensor expected = plain(x);
  const Tensor r = torch::randn_like(expected);
  const Tensor dx = torch::autograd::grad({expected}, {x}, {r})[0];

  const ImageLayout layout = image_layout(x, s.halo);
  const Tensor images = to_images(x, s.halo);
  const Tensor y = tiled(images, layout);
  if (out != nullptr) {
    EXPECT_TRUE(halo_is_zero(y, *out));
  }
  const Tensor found = out != nullptr ? from_images(y, *out) : from_tiles(y, {expected.size(0), expected.size(1)});
  EXPECT_LE(largest_difference(found, expected), tolerance);
  const Tensor gradient = torch::autograd::grad({found}, {images}, {r})[0];
  EXPECT_LE(largest_difference(from_images(gradient, layout), dx), tolerance == 0 ? 1e-14 : tolerance);
  EXPECT_TRUE(drawn(gradient, layout).equal(expected_tiles(from_images(gradient, layout), layout)));
}

TEST(Pool, LargestOfWindowsIsTorchs) {
  for (const Shape& s : kShapes) {
    for (const Pool& p : kPools) {
      if (!fits(s, p)) continue;
      const ImageLayout out = pooled({s.samples, s.channels, s.height, s.width, s.halo}, p);
      compare(
          s, [&](const Tensor& x, const ImageLayout& l) { return max_pool(x, l, p); },
          [&](const Tensor& x) { return torch::max_pool2d(x, p.kernel, p.stride, p.padding); }, &out, 0);
    }
  }
}

TEST(Pool, AverageOfWindowsIsTorchs) {
  for (const Shape& s : kShapes) {
    for (const Pool& p : kPools) {
      if (!fits(s, p)) continue;
      const ImageLayout out = pooled({s.samples, s.channels, s.height, s.width, s.halo}, p);
      compare(
          s, [&](const Tensor& x, const ImageLayout& l) { return average_pool(x, l, p); },
          [&](const Tensor& x) { return torch::avg_pool2d(x, p.kernel, p.stride, p.padding); }, &out, 1e-14);
    }
  }
}

TEST(Pool, AdaptiveWindowsAreTorchs) {
  for (const Shape& s : kShapes) {
    for (const std::array<std::int64_t, 2> size : {std::array<std::int64_t, 2>{1, 1}, {2, 3}, {7, 1}, {9, 9}}) {
      const ImageLayout out{s.samples, s.channels, size[0], size[1], s.halo};
      compare(
          s, [&](const Tensor& x, const ImageLayout& l) { return adaptive_max_pool(x, l, size); },
          [&](const Tensor& x) { return std::get<0>(torch::adaptive_max_pool2d(x, size)); }, &out, 0);
      compare(
          s, [&](const Tensor& x, const ImageLayout& l) { return adaptive_average_pool(x, l, size); },
          [&](const Tensor& x) { return torch::adaptive_avg_pool2d(x, size); }, &out, 1e-13);
    }
  }
}

TEST(Pool, OfWholeImagesGivesVectors) {
  for (const Shape& s : kShapes) {
    compare(
        s, &global_average,
        [](const Tensor& x) {
          return x.mean({2, 3});
        },
        nullptr, 1e-13);
    compare(
        s, &global_max,
        [](const Tensor& x) {
          return x.amax({2, 3});
        },
        nullptr, 1e-15);
  }
}

TEST(Pool, HandlesSpecialValuesAsTorch) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN(), kInf = std::numeric_limits<double>::infinity();
  Tensor x = images_of({17, 2, 4, 4, 0});
  x[0][0] = -kInf;
  x[1][1][0][1] = kNan;
  x[2][0][3][3] = kInf;
  x[16][1][2][2] = kNan;
  const Pool p{{2, 2}, {2, 2}, {0, 0}};
  const ImageLayout layout = image_layout(x, 1);
  const Tensor y = from_images(max_pool(to_images(x, 1), layout, p), pooled(layout, p));
  EXPECT_TRUE(torch::allclose(y, torch::max_pool2d(x, p.kernel, p.stride), 0, 0, /*equal_nan=*/true));
  EXPECT_EQ(y.isnan().sum().item<int>(), 2);
}

TEST(Pool, IsTheSameForAnyNumberOfThreads) {
  const Tensor x = images_of({33, 7, 17, 19, 1}, torch::kFloat);
  const ImageLayout layout = image_layout(x, 1);
  const Pool p{{3, 3}, {2, 2}, {1, 1}};
  with_threads([&] {
    std::vector<Tensor> results;
    for (const auto pool : {&max_pool, &average_pool}) {
      const Tensor images = to_images(x, 1).requires_grad_();
      const Tensor y = (*pool)(images, layout, p);
      y.pow(2).sum().backward();
      results.push_back(y.detach());
      results.push_back(images.grad());
    }
    for (const auto pool : {&global_max, &global_average}) results.push_back((*pool)(to_images(x, 1), layout));
    return results;
  });
}

TEST(Pool, TakesABatchWithoutImages) {
  const Tensor x = torch::zeros({0, 3, 4, 4}).requires_grad_();
  const ImageLayout layout = image_layout(x, 1);
  const Pool p{{2, 2}, {2, 2}, {0, 0}};
  from_images(max_pool(to_images(x, 1), layout, p), pooled(layout, p)).sum().backward();
  EXPECT_EQ(x.grad().sizes(), x.sizes());
  EXPECT_EQ(global_average(to_images(x, 1), layout).numel(), 0);
}

TEST(Pool, RefusesWindowsThatDoNotFit) {
  const ImageLayout layout{16, 1, 4, 4, 0};
  const Tensor images = torch::zeros({layout.numel()});
  EXPECT_THROW(max_pool(images, layout, {{5, 1}, {1, 1}, {0, 0}}), Error);
  EXPECT_THROW(max_pool(images, layout, {{3, 3}, {1, 1}, {2, 2}}), Error);
  EXPECT_THROW(average_pool(images, layout, {{2, 2}, {0, 1}, {0, 0}}), Error);
  EXPECT_THROW(adaptive_average_pool(images, layout, {0, 1}), Error);
  EXPECT_THROW(global_max(torch::zeros({5}), layout), Error);
}

}  // namespace
}  // namespace espalier::ops
