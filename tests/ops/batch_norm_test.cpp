// Batch norm in batch tiles against torch's on plain tensors, in double; its rounding in float.
#include "espalier/ops/batch_norm.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <functional>

#include "espalier/core/error.h"
#include "ops/tiled_images.h"

namespace espalier::ops {
namespace {

using torch::Tensor;

struct Case {
  Tensor weight, bias, mean, var;
  bool training;
};

std::vector<Case> cases(std::int64_t channels, torch::ScalarType type = torch::kDouble) {
  const auto rand = [&] { return torch::rand({channels}, type); };
  std::vector<Case> list;
  for (const bool training : {true, false})
    list.push_back({rand() - 0.5, rand() - 0.5, rand(), rand() + 0.5, training});
  list.push_back({{}, {}, rand(), rand() + 0.5, true});
  list.push_back({rand(), {}, {}, {}, true});
  return list;
}

Tensor leaf(const Tensor& t) { return t.defined() ? t.clone().requires_grad_() : Tensor(); }
Tensor copy(const Tensor& t) { return t.defined() ? t.clone() : Tensor(); }

/// y, dx, dweight, dbias, running statistics; undefined tensors left out.
std::vector<Tensor> results(const Tensor& y, const Tensor& r, const std::vector<Tensor>& inputs,
                            const std::vector<Tensor>& running) {
  std::vector<Tensor> defined;
  for (const Tensor& t : inputs)
    if (t.defined()) defined.push_back(t);
  std::vector<Tensor> out = {y};
  for (const Tensor& g : torch::autograd::grad({y}, defined, {r})) out.push_back(g);
  for (const Tensor& t : running)
    if (t.defined()) out.push_back(t);
  return out;
}

std::vector<Tensor> of_torch(const Tensor& given, const Tensor& r, const Case& c, double momentum, bool relu) {
  const Tensor x = leaf(given), w = leaf(c.weight), b = leaf(c.bias), m = copy(c.mean), v = copy(c.var);
  const Tensor y = torch::batch_norm(x, w, b, m, v, c.training, momentum, 1e-5, false);
  return results(relu ? torch::relu(y) : y, r, {x, w, b}, {m, v});
}

// Doubles: n values of order 1 are summed with errors of n 1e-16, and everything here is of order 10 at most.
constexpr double kClose = 1e-11;

void expect_close(const std::vector<Tensor>& found, const std::vector<Tensor>& expected, double tolerance = kClose) {
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    EXPECT_LE(largest_difference(found[i], expected[i]), tolerance) << "result " << i;
  }
}

TEST(BatchNorm, OfImagesIsTorchs) {
  for (const Shape& s : kShapes) {
    const Tensor x = images_of(s) * 3 + 2, r = torch::randn_like(x);
    for (const Case& c : cases(s.channels)) {
      for (const bool relu : {false, true}) {
        const auto expected = of_torch(x, r, c, 0.3, relu);

        const Tensor leaf_x = leaf(x), w = leaf(c.weight), b = leaf(c.bias), m = copy(c.mean), v = copy(c.var);
        const ImageLayout layout = image_layout(x, s.halo);
        const Tensor images = with_padding_of(to_images(leaf_x, s.halo), layout, 1e3);
        images.retain_grad();
        const Tensor y = batch_norm(images, layout, {w, b, m, v, c.training, 0.3, 1e-5}, relu);
        EXPECT_TRUE(halo_is_zero(y, layout));
        expect_close(results(from_images(y, layout), r, {leaf_x, w, b}, {m, v}), expected);

        const Tensor dx = torch::autograd::grad(
            {from_images(batch_norm(images, layout, {w, b, copy(c.mean), copy(c.var), c.training, 0.3, 1e-5}, relu),
                         layout)},
            {images}, {r})[0];
        const Tensor valid = from_images(dx, layout);
        EXPECT_TRUE(drawn(dx, layout).equal(expected_tiles(valid, layout)));  // halo and padding lanes: zero
      }
    }
  }
}

TEST(BatchNorm, PlusASummandIsTorchs) {
  for (const Shape& s : kShapes) {
    const Tensor x = images_of(s) * 3 + 2, r = torch::randn_like(x), summand = torch::randn_like(x);
    const ImageLayout layout = image_layout(x, s.halo);
    for (const Case& c : cases(s.channels)) {
      for (const bool relu : {false, true}) {
        std::vector<Tensor> expected;
        {
          const Tensor lx = leaf(x), ls = leaf(summand), w = leaf(c.weight), b = leaf(c.bias), m = copy(c.mean),
                       v = copy(c.var);
          const Tensor y = torch::batch_norm(lx, w, b, m, v, c.training, 0.3, 1e-5, false) + ls;
          expected = results(relu ? torch::relu(y) : y, r, {lx, ls, w, b}, {m, v});
        }
        const Tensor lx = leaf(x), ls = leaf(summand), w = leaf(c.weight), b = leaf(c.bias), m = copy(c.mean),
                     v = copy(c.var);
        const Tensor images = with_padding_of(to_images(lx, s.halo), layout, 1e3);
        const Tensor others = with_padding_of(to_images(ls, s.halo), layout, -1e3);
        const Tensor y = batch_norm_add(images, others, layout, {w, b, m, v, c.training, 0.3, 1e-5}, relu);
        EXPECT_TRUE(halo_is_zero(y, layout));
        expect_close(results(from_images(y, layout), r, {lx, ls, w, b}, {m, v}), expected);

        const auto gradients = torch::autograd::grad(
            {from_images(
                batch_norm_add(images, others, layout, {w, b, copy(c.mean), copy(c.var), c.training, 0.3, 1e-5}, relu),
                layout)},
            {images, others}, {r});
        for (const Tensor& g : gradients) {  // halo and padding lanes: zero
          EXPECT_TRUE(drawn(g, layout).equal(expected_tiles(from_images(g, layout), layout)));
        }
      }
    }
  }
}

TEST(BatchNorm, AForkAddsTheGradientOfTheOtherUse) {
  for (const Shape& s : kShapes) {
    const Tensor nchw = images_of(s);
    const ImageLayout layout = image_layout(nchw, s.halo);
    const Tensor x = to_images(nchw, s.halo).requires_grad_();
    const Tensor r = to_images(torch::randn_like(nchw), s.halo), r_before = r.clone(),
                 dy = to_images(torch::randn_like(nchw), s.halo);
    const BatchNorm norm{torch::rand({s.channels}, torch::kDouble), {}, {}, {}, true, 0.1, 1e-5};
    const Tensor plain = batch_norm(x, layout, norm, true);
    const Tensor expected = torch::autograd::grad({plain}, {x}, {dy})[0];
    const Forked f = batch_norm_fork(x, layout, norm, true);
    EXPECT_TRUE(f.y.equal(plain) && f.x.equal(x));
    for (const bool twice : {false, true}) {
      const Tensor other = twice ? f.x * 2 : f.x;
      const Tensor dx = torch::autograd::grad({f.y, other}, {x}, {dy, r}, true)[0];
      EXPECT_LE(largest_difference(dx, expected + (twice ? 2 : 1) * r), kClose);
      EXPECT_TRUE(r.equal(r_before));
      EXPECT_TRUE(halo_is_zero(dx, layout));
    }
    EXPECT_TRUE(torch::autograd::grad({f.y}, {x}, {dy}, true)[0].equal(expected));
  }
}

/// The backward pass writes over a gradient that nobody else holds, and over no other.
TEST(BatchNorm, WritesOverNoGradientThatSomebodyHolds) {
  torch::manual_seed(5);
  const ImageLayout layout{20, 3, 5, 4, 1};
  const auto run = [&](bool hold, bool relu) {
    torch::manual_seed(6);
    const auto random = [&] { return to_images(torch::randn({20, 3, 5, 4}, torch::kDouble), 1); };
    const Tensor x = random().requires_grad_(), r = random().requires_grad_(), dy = random(), before = dy.clone();
    const BatchNorm norm;
    const Tensor y = batch_norm(x, layout, norm, relu);
    const Tensor z = batch_norm_add(y, r, layout, norm, relu), last = batch_norm(z, layout, norm, relu);
    Tensor at_y, at_z;
    if (hold) {
      y.register_hook([&](const Tensor& g) { at_y = g; });
      z.register_hook([&](const Tensor& g) { at_z = g; });
    }
    last.backward(dy);
    EXPECT_TRUE(dy.equal(before));
    std::vector<Tensor> out = {x.grad(), r.grad()};
    if (hold) {
      // what was seen on the way is still what it was: the gradients from there on follow from it
      out.push_back(torch::autograd::grad({batch_norm(x, layout, norm, relu)}, {x}, {at_y})[0]);
      out.push_back(torch::autograd::grad({batch_norm_add(y.detach(), r, layout, norm, relu)}, {r}, {at_z})[0]);
    }
    return out;
  };
  for (const bool relu : {false, true}) {
    const auto held = run(true, relu), free = run(false, relu);
    expect_close({held[0], held[1], held[2], held[3]}, {free[0], free[1], free[0], free[1]});
    EXPECT_GT(free[0].abs().max().item<double>(), 0);
  }
}

TEST(BatchNorm, OfVectorsIsTorchs) {
  for (const std::int64_t samples : {2, 5, 16, 17, 63, 64, 65, 100, 128, 130}) {
    for (const std::int64_t features : {1, 7}) {
      torch::manual_seed(2);
      const Tensor x = torch::randn({samples, features}, torch::kDouble) * 3 + 2, r = torch::randn_like(x);
      for (const Case& c : cases(features)) {
        for (const bool relu : {false, true}) {
          const Tensor leaf_x = leaf(x), w = leaf(c.weight), b = leaf(c.bias), m = copy(c.mean), v = copy(c.var);
          const TileLayout layout{samples, features};
          const Tensor tiles = to_tiles(leaf_x);
          const Tensor y = batch_norm(tiles, layout, {w, b, m, v, c.training, 0.3, 1e-5}, relu);
          expect_close(results(from_tiles(y, layout), r, {leaf_x, w, b}, {m, v}), of_torch(x, r, c, 0.3, relu));
          const Tensor dy = to_tiles(r);  // zero in padding lanes, and so the gradient of x must be
          const Tensor dtiles = torch::autograd::grad(
              {batch_norm(tiles, layout, {w, b, copy(c.mean), copy(c.var), c.training, 0.3, 1e-5}, relu)}, {tiles},
              {dy})[0];
          EXPECT_TRUE(dtiles.equal(to_tiles(from_tiles(dtiles, layout))));
        }
      }
    }
  }
}

// Along a random direction d: (L(x + h d) - L(x - h d)) / 2h = <dL/dx, d> + O(h^2), with roundings of 1e-16 |L| / h.
TEST(BatchNorm, HasTheGradientOfCentralDifferences) {
  const Shape s{17, 3, 3, 5, 1};
  const Tensor x = images_of(s), r = torch::randn_like(x);
  const ImageLayout layout = image_layout(x, s.halo);
  const Tensor w = torch::tensor({1.5, -0.5, 2.0}, torch::kDouble), b = torch::tensor({0.2, 0.1, -0.3}, torch::kDouble);
  const auto loss = [&](const Tensor& at, const Tensor& weight, const Tensor& bias) {
    return (from_images(batch_norm(to_images(at, s.halo), layout, {weight, bias, {}, {}, true, 0.1, 1e-5}, true),
                        layout) *
            r)
        .sum();
  };
  const Tensor lx = leaf(x), lw = leaf(w), lb = leaf(b);
  loss(lx, lw, lb).backward();
  const double h = 1e-6;
  const auto difference = [&](const Tensor& dx, const Tensor& dw, const Tensor& db) {
    return (loss(x + h * dx, w + h * dw, b + h * db) - loss(x - h * dx, w - h * dw, b - h * db)).item<double>() /
           (2 * h);
  };
  const Tensor dx = torch::randn_like(x), dw = torch::randn_like(w), zero = torch::zeros_like(x),
               none = torch::zeros_like(w);
  EXPECT_NEAR(difference(dx, none, none), (lx.grad() * dx).sum().item<double>(), 1e-6);
  EXPECT_NEAR(difference(zero, dw, none), (lw.grad() * dw).sum().item<double>(), 1e-6);
  EXPECT_NEAR(difference(zero, none, dw), (lb.grad() * dw).sum().item<double>(), 1e-6);
}

// With u = 2^-24: mean and scale are rounded (1 and 2 u), then a difference, a product and a sum: at most
// 4 u (|mean| scale + |y - bias| + |bias|), plus as much again for the double reference's own inputs in float.
TEST(BatchNorm, RoundsLittleInFloat) {
  const Shape s{33, 5, 9, 11, 1};
  const Tensor x = images_of(s, torch::kFloat) * 0.01 + 100;  // a mean of 10,000 deviations
  const Tensor w = torch::rand({s.channels}), b = torch::rand({s.channels});
  const Tensor y =
      from_images(batch_norm(to_images(x, 1), image_layout(x, 1), {w, b, {}, {}, true, 0.1, 1e-5}), image_layout(x, 1));
  const Tensor exact = torch::batch_norm(x.to(torch::kDouble), w.to(torch::kDouble), b.to(torch::kDouble), {}, {}, true,
                                         0.1, 1e-5, false);
  const Tensor scale = w / torch::sqrt(x.to(torch::kDouble).var({0, 2, 3}, false) + 1e-5);
  const Tensor bound = std::ldexp(4.0, -24) * ((100.1 * scale + b).view({1, -1, 1, 1}) + exact.abs());
  EXPECT_TRUE(((y.to(torch::kDouble) - exact).abs() <= bound).all().item<bool>());
  EXPECT_GT(largest_difference(y.to(torch::kDouble), exact), 0);
}

/// |statistics of a batch - exact ones|, each beside its bound. With u = 2^-24 and d = x - guess, up to 32 terms are
/// added in float, so mean d is wrong by 32 u mean |d| and mean d^2 by 34 u mean d^2; a guess that is kept is at most a
/// deviation s off, so mean |d| <= 2^0.5 s and mean d^2 <= 2 s^2. Then mean: 46 u s + u |mean|; variance:
/// 68 u s^2 + 2 s 46 u s + u s^2.
void expect_exact_statistics(const Tensor& x) {
  const std::int64_t channels = x.size(1), n = x.numel() / channels;
  const Tensor mean = torch::zeros({channels}), var = torch::zeros({channels});
  batch_norm(to_images(x, 1), image_layout(x, 1), {{}, {}, mean, var, true, 1.0, 1e-5});
  const Tensor exact_mean = x.to(torch::kDouble).mean({0, 2, 3}), exact_var = x.to(torch::kDouble).var({0, 2, 3}, true);
  ASSERT_GT(n, 1);
  const double u = std::ldexp(1.0, -24);
  EXPECT_TRUE(((mean.to(torch::kDouble) - exact_mean).abs() <= 46 * u * exact_var.sqrt() + u * exact_mean.abs())
                  .all()
                  .item<bool>())
      << mean << exact_mean;
  EXPECT_TRUE(((var.to(torch::kDouble) - exact_var).abs() <= 161 * u * exact_var).all().item<bool>())
      << var << exact_var;
}

TEST(BatchNorm, HasTheStatisticsOfTheBatchInFloat) {
  for (const Shape& s : {Shape{33, 5, 9, 11, 1}, Shape{64, 3, 32, 32, 1}, Shape{5, 2, 7, 100, 1}}) {
    expect_exact_statistics(images_of(s, torch::kFloat));
    expect_exact_statistics(images_of(s, torch::kFloat) * 0.01 + 100);
  }
  expect_exact_statistics(torch::full({16, 2, 8, 8}, 0.1f));
}

// The guess is the mean of a row. If that row is unlike all others, (mean d)^2 is 4,096 times the variance.
TEST(BatchNorm, HasThemIfOneRowIsUnlikeTheOthers) {
  const Tensor x = torch::randn({16, 1, 4097, 1}) * 0.01;
  x.select(2, 2048) += 1000;
  expect_exact_statistics(x);
}

TEST(BatchNorm, LeavesStatisticsAloneWithoutSamples) {
  const Tensor x = torch::zeros({0, 3, 4, 4}).requires_grad_(), w = torch::ones({3}).requires_grad_();
  const Tensor mean = torch::rand({3}), var = torch::rand({3}), mean_before = mean.clone(), var_before = var.clone();
  const ImageLayout layout = image_layout(x, 1);
  const Tensor y = batch_norm(to_images(x, 1), layout, {w, {}, mean, var, true, 0.1, 1e-5}, true);
  EXPECT_EQ(y.numel(), 0);
  from_images(y, layout).sum().backward();
  EXPECT_TRUE(w.grad().equal(torch::zeros({3})));
  EXPECT_TRUE(mean.equal(mean_before) && var.equal(var_before));
}

TEST(BatchNorm, ShowsWhatIsNotFinite) {
  Tensor x = torch::randn({16, 2, 3, 3});
  x[3][1][2][2] = std::nanf("");
  const ImageLayout layout = image_layout(x, 1);
  const Tensor y = from_images(batch_norm(to_images(x, 1), layout, {{}, {}, {}, {}, true, 0.1, 1e-5}, true), layout);
  EXPECT_TRUE(y.select(1, 0).isfinite().all().item<bool>());
  EXPECT_TRUE(y.select(1, 1).isnan().all().item<bool>());
}

TEST(BatchNorm, IsTheSameForAnyNumberOfThreads) {
  const Tensor x = images_of({33, 13, 17, 19, 1}, torch::kFloat);
  const ImageLayout layout = image_layout(x, 1);
  const Tensor r = to_images(torch::randn_like(x), 1);
  with_threads([&] {
    const Tensor images = to_images(x, 1).requires_grad_(), w = torch::ones({13}).requires_grad_(),
                 mean = torch::zeros({13}), var = torch::ones({13});
    const Tensor y = batch_norm(images, layout, {w, {}, mean, var, true, 0.1, 1e-5}, true);
    y.backward(r);
    return std::vector<Tensor>{y.detach(), images.grad(), w.grad(), mean, var};
  });
}

TEST(BatchNorm, RefusesWhatDoesNotFit) {
  const Tensor images = torch::zeros({2 * 4 * 16});
  const ImageLayout layout{3, 2, 2, 2, 0};
  const Tensor two = torch::ones({2}), three = torch::ones({3});
  EXPECT_THROW(batch_norm(images, layout, {three, {}, {}, {}, true}), Error);
  EXPECT_THROW(batch_norm(images, layout, {two.to(torch::kDouble), {}, {}, {}, true}), Error);
  EXPECT_THROW(batch_norm(images, layout, {two, two, {}, {}, false}), Error);
  EXPECT_THROW(batch_norm(images, ImageLayout{3, 2, 2, 3, 0}, {two, two, {}, {}, true}), Error);
  EXPECT_THROW(batch_norm_add(images, images.slice(0, 16), layout, {two, two, {}, {}, true}), Error);
  EXPECT_THROW(batch_norm_add(images, images.to(torch::kDouble), layout, {two, two, {}, {}, true}), Error);
  EXPECT_THROW(batch_norm(torch::zeros({32}), ImageLayout{1, 2, 1, 1, 0}, {two, two, {}, {}, true}), Error);  // 1 value
}

}  // namespace
}  // namespace espalier::ops
