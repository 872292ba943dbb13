// Sparse convolutions on images against LibTorch's dense ones in double precision.
#include "espalier/ops/sparse_conv.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "espalier/core/error.h"
#include "espalier/core/random.h"
#include "espalier/ops/sparse_linear.h"

namespace espalier::ops {
namespace {

using torch::Tensor;

struct Case {
  std::int64_t samples;
  ConvShape shape;
  std::int64_t height, width, halo;  ///< halo: beyond what is needed
  double density;
};

const Case kCases[] = {
    {16, {4, 6, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}, 8, 8, 0, 0.5},
    {5, {3, 9, {5, 5}, {1, 1}, {2, 2}, {1, 1}, 1}, 9, 7, 0, 0.3},
    {33, {20, 18, {3, 3}, {2, 2}, {1, 1}, {1, 1}, 1}, 9, 11, 0, 0.1},
    {17, {4, 8, {1, 1}, {2, 2}, {0, 0}, {1, 1}, 1}, 7, 5, 1, 0.5},
    {1, {6, 4, {3, 2}, {1, 3}, {2, 1}, {2, 1}, 2}, 9, 10, 0, 0.6},
    {40, {6, 6, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 6}, 6, 13, 2, 0.7},
    {3, {2, 3, {3, 3}, {1, 1}, {4, 4}, {1, 1}, 1}, 3, 2, 0, 1},
    {16, {2, 3, {7, 1}, {1, 1}, {0, 0}, {1, 1}, 1}, 9, 4, 0, 0},
    {0, {2, 3, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}, 4, 4, 0, 0.5},
};

/// One weight sparse and dense.
struct Weight {
  Weight(const Case& c, torch::ScalarType type) {
    const ConvShape& s = c.shape;
    const std::int64_t n = s.out * s.columns();
    positions = random_subset(n, std::llround(c.density * static_cast<double>(n)), RandomStream(5, Purpose::test));
    compressed = std::make_shared<Compressed>(
        kernels::compress(s, positions.data(), static_cast<std::int64_t>(positions.size()), place, 1));
    values = torch::randn({static_cast<std::int64_t>(positions.size())}, type).set_requires_grad(true);
    forward = torch::empty_like(values, torch::TensorOptions().requires_grad(false));
    refresh_forward(*compressed, values, forward);
  }
  /// Entries in canonical order where they belong in the dense weight.
  Tensor dense(const Tensor& entries, const ConvShape& s) const {
    const auto at = torch::tensor(positions, torch::kInt64);
    const auto from = torch::tensor(std::vector<std::int64_t>(place.begin(), place.end()), torch::kInt64);
    return torch::zeros({s.out * s.columns()}, entries.options())
        .index_put({at}, entries.index_select(0, from))
        .view({s.out, s.in / s.groups, s.kernel[0], s.kernel[1]});
  }
  std::vector<std::int64_t> positions;
  kernels::EntryIndices place;
  std::shared_ptr<Compressed> compressed;
  Tensor values, forward;
};

/// Output, and gradients of x, values and bias, of both.
struct Results {
  Tensor y, dx, dvalues, dbias;
};

Results sparse(const Case& c, const Weight& w, const Tensor& nchw, const Tensor& dy, const Tensor& given_bias) {
  Tensor x = nchw.detach().clone().set_requires_grad(true);
  Tensor values = w.values.detach().clone().set_requires_grad(true);
  Tensor bias = given_bias.detach().clone().set_requires_grad(true);
  const std::int64_t halo = conv_halo(c.shape) + c.halo;
  const ImageLayout in = image_layout(x, halo);
  const auto plan = std::make_shared<ConvPlan>(w.compressed, c.shape, in);
  const Tensor y = sparse_conv2d(to_images(x, halo), in, plan, values, w.forward, bias);
  const Tensor plain = from_images(y, plan->output(in.samples));
  plain.backward(dy);
  return {plain.detach(), x.grad(), values.grad(), bias.grad()};
}

Results dense(const Case& c, const Weight& w, const Tensor& nchw, const Tensor& dy, const Tensor& given_bias) {
  const ConvShape& s = c.shape;
  Tensor x = nchw.detach().to(torch::kDouble).set_requires_grad(true);
  Tensor values = w.values.detach().to(torch::kDouble).set_requires_grad(true);
  Tensor bias = given_bias.detach().to(torch::kDouble).set_requires_grad(true);
  const Tensor y = torch::conv2d(x, w.dense(values, s), bias, s.stride, s.padding, s.dilation, s.groups);
  y.backward(dy.to(torch::kDouble));
  return {y.detach(), x.grad(), values.grad(), bias.grad()};
}

double gamma_of(double n, torch::ScalarType type) {
  const double nu = n * (type == torch::kFloat ? 0x1p-24 : 0x1p-52);  // the reference rounds in double itself
  return nu / (1 - nu);
}

TEST(SparseConv2d, IsTheDenseConvolutionOfTheKeptWeights) {
  for (const auto type : {torch::kFloat, torch::kDouble}) {
    for (const Case& c : kCases) {
      SCOPED_TRACE(::testing::Message() << "samples " << c.samples << ", " << c.shape.in << " to " << c.shape.out);
      torch::manual_seed(3);
      const ConvShape& s = c.shape;
      const Weight w(c, type);
      const Tensor x = torch::randn({c.samples, s.in, c.height, c.width}, type), bias = torch::randn({s.out}, type);
      const Tensor dy = torch::randn({c.samples, s.out, s.output(0, c.height), s.output(1, c.width)}, type);
      const Results found = sparse(c, w, x, dy, bias);
      if (c.samples == 0) {  // LibTorch 1.13 gives no gradients of an empty batch
        EXPECT_EQ(found.y.sizes(), dy.sizes());
        EXPECT_EQ(found.dvalues.abs().sum().item<double>(), 0);
        EXPECT_EQ(found.dbias.abs().sum().item<double>(), 0);
        continue;
      }
      const Results expected = dense(c, w, x, dy, bias);
      // gamma_n |a| |b|: the same sums of sizes.
      Weight sizes = w;
      sizes.values = w.values.detach().abs();
      const Results size = dense(c, sizes, x.abs(), dy.abs(), bias.abs());
      const auto pixels = static_cast<double>(c.samples * dy.size(2) * dy.size(3));
      const auto within = [&](const Tensor& a, const Tensor& b, const Tensor& bound, double terms) {
        ASSERT_EQ(a.sizes(), b.sizes());
        if (a.numel() == 0) return;
        EXPECT_LE(((a.to(torch::kDouble) - b).abs() - gamma_of(terms, type) * bound).max().item<double>(), 0);
      };
      within(found.y, expected.y, size.y, static_cast<double>(s.columns()) + 2);
      within(found.dx, expected.dx, size.dx, static_cast<double>(s.out * s.taps()) + 2);
      within(found.dvalues, expected.dvalues, size.dvalues, pixels + 32);
      within(found.dbias, expected.dbias, size.dbias, pixels + 32);
    }
  }
}

TEST(SparseConv2d, OfImagesAloneIsTheDenseConvolutionToo) {
  const int before = at::get_num_threads();
  for (const auto type : {torch::kFloat, torch::kDouble}) {
    for (const Case& given : kCases) {
      for (const std::int64_t larger : {1, 5}) {  // worth several threads
        Case c = given;
        c.height *= larger;
        c.width *= larger;
        SCOPED_TRACE(::testing::Message() << "samples " << c.samples << ", " << c.shape.in << " to " << c.shape.out);
        torch::manual_seed(3);
        const ConvShape& s = c.shape;
        const Weight w(c, type);
        Weight sizes = w;
        sizes.values = w.values.detach().abs();
        const Tensor x = torch::randn({c.samples, s.in, c.height, c.width}, type), bias = torch::randn({s.out}, type);
        const AlonePlan plan(w.compressed, s, c.height, c.width);
        at::set_num_threads(1);
        const Tensor found = sparse_conv2d_alone(x, plan, w.forward, bias);
        at::set_num_threads(3);
        EXPECT_TRUE(
            sparse_conv2d_alone(x.transpose(2, 3).contiguous().transpose(2, 3), plan, w.forward, bias).equal(found));
        const auto of_torch = [&](const Weight& weight, const Tensor& in, const Tensor& b) {
          return torch::conv2d(in.to(torch::kDouble), weight.dense(weight.values.detach().to(torch::kDouble), s),
                               b.to(torch::kDouble), s.stride, s.padding, s.dilation, s.groups);
        };
        const Tensor expected = of_torch(w, x, bias);
        ASSERT_EQ(found.sizes(), expected.sizes());
        if (found.numel() == 0) continue;
        const Tensor bound =
            gamma_of(static_cast<double>(s.columns()) + 2, type) * of_torch(sizes, x.abs(), bias.abs());
        EXPECT_LE(((found.to(torch::kDouble) - expected).abs() - bound).max().item<double>(), 0);
        EXPECT_TRUE(sparse_conv2d_alone(x, plan, w.forward, {}).allclose(found - bias.view({1, -1, 1, 1}), 1e-4, 1e-5));
      }
    }
  }
  at::set_num_threads(before);
}

TEST(SparseConv2d, AForkAddsTheGradientOfTheOtherUse) {
  for (const Case& c : kCases) {
    if (c.samples == 0) continue;
    torch::manual_seed(6);
    const Weight w(c, torch::kDouble);
    const std::int64_t halo = conv_halo(c.shape) + c.halo;
    const Tensor nchw = torch::randn({c.samples, c.shape.in, c.height, c.width}, torch::kDouble);
    const ImageLayout in = image_layout(nchw, halo);
    const Tensor x = to_images(nchw, halo).set_requires_grad(true);
    const auto plan = std::make_shared<ConvPlan>(w.compressed, c.shape, in);
    const ImageLayout out = plan->output(in.samples);
    const Tensor r = to_images(torch::randn_like(nchw), halo), r_before = r.clone();
    const Tensor dy =
        to_images(torch::randn({c.samples, out.channels, out.height, out.width}, torch::kDouble), out.halo);
    const Tensor plain = sparse_conv2d(x, in, plan, w.values, w.forward, {});
    const auto expected = torch::autograd::grad({plain}, {x, w.values}, {dy});

    Forked f = sparse_conv2d_fork(x, in, plan, w.values, w.forward, {});
    EXPECT_TRUE(f.y.equal(plain) && f.x.equal(x));
    for (const bool twice : {false, true}) {
      // A gradient that somebody else holds, and one of a function in between.
      const Tensor other = twice ? f.x * 2 : f.x;
      const auto found = torch::autograd::grad({f.y, other}, {x, w.values}, {dy, r}, true);
      EXPECT_TRUE(found[0].allclose(expected[0] + (twice ? 2 : 1) * r, 1e-12, 1e-12));
      EXPECT_TRUE(found[1].equal(expected[1]));
      EXPECT_TRUE(r.equal(r_before));
    }
    EXPECT_TRUE(torch::autograd::grad({f.y}, {x}, {dy}, true)[0].equal(expected[0]));  // the other use left out
    const auto alone = torch::autograd::grad({f.x}, {x}, {r}, true);                   // the convolution left out
    EXPECT_TRUE(alone[0].equal(r));
  }
}

TEST(SparseConv2d, GivesTheSameBitsForAnyNumberOfThreads) {
  const int before = at::get_num_threads();
  for (const Case& given : kCases) {
    Case c = given;
    c.height *= 3;  // worth several threads
    c.width *= 3;
    torch::manual_seed(4);
    const Weight w(c, torch::kFloat);
    const Tensor x = torch::randn({c.samples, c.shape.in, c.height, c.width}), bias = torch::randn({c.shape.out});
    const Tensor dy = torch::randn({c.samples, c.shape.out, c.shape.output(0, c.height), c.shape.output(1, c.width)});
    at::set_num_threads(1);
    const Results one = sparse(c, w, x, dy, bias);
    for (const int threads : {2, 3}) {
      at::set_num_threads(threads);
      const Results more = sparse(c, w, x, dy, bias);
      EXPECT_TRUE(more.y.equal(one.y) && more.dx.equal(one.dx) && more.dvalues.equal(one.dvalues) &&
                  more.dbias.equal(one.dbias));
    }
  }
  at::set_num_threads(before);
}

TEST(SparseConv2d, KeepsTheHaloZero) {
  for (const Case& c : kCases) {
    if (c.samples == 0) continue;
    const Weight w(c, torch::kFloat);
    const std::int64_t halo = conv_halo(c.shape) + c.halo;
    const Tensor nchw = torch::randn({c.samples, c.shape.in, c.height, c.width});
    const ImageLayout in = image_layout(nchw, halo);
    Tensor x = to_images(nchw, halo).set_requires_grad(true);
    const auto plan = std::make_shared<ConvPlan>(w.compressed, c.shape, in);
    const ImageLayout out = plan->output(in.samples);
    const Tensor y = sparse_conv2d(x, in, plan, w.values, w.forward, torch::ones({c.shape.out}));
    const Tensor dy = to_images(torch::ones({c.samples, out.channels, out.height, out.width}), out.halo);
    y.backward(dy);
    const auto halo_of = [](const Tensor& images, const ImageLayout& l) {
      const Tensor beside = images - to_images(from_images(images, l), l.halo);
      EXPECT_TRUE(beside.slice(0, l.offset(l.groups(), 0)).eq(0).all().item<bool>());  // below the last channel
      return beside.slice(0, 0, l.offset(l.groups(), 0)).view({l.groups(), -1, kImageLanes});
    };
    // Of lanes without an image, only that they are finite; of the others, that all beside the image is zero.
    EXPECT_TRUE(y.isfinite().all().item<bool>());
    const int last = in.valid(in.groups() - 1);
    EXPECT_EQ(halo_of(y.detach(), out).select(0, out.groups() - 1).slice(1, 0, last).abs().max().item<float>(), 0);
    EXPECT_TRUE((x.grad() - to_images(from_images(x.grad(), in), halo)).abs().max().item<float>() == 0);
  }
}

TEST(SparseConv2d, AgreesWithCentralDifferences) {
  const Case c{3, {2, 3, {3, 3}, {2, 1}, {1, 1}, {1, 1}, 1}, 5, 4, 0, 0.6};
  torch::manual_seed(6);
  const Weight w(c, torch::kDouble);
  const Tensor x = torch::randn({3, 2, 5, 4}, torch::kDouble), bias = torch::randn({3}, torch::kDouble);
  const Tensor dy = torch::randn({3, 3, 3, 4}, torch::kDouble);
  const Results at = sparse(c, w, x, dy, bias);
  const auto loss = [&](const Weight& weight, const Tensor& images) {
    const ImageLayout in = image_layout(images, 1);
    const auto plan = std::make_shared<ConvPlan>(weight.compressed, c.shape, in);
    const Tensor y = sparse_conv2d(to_images(images, 1), in, plan, weight.values, weight.forward, bias);
    return (from_images(y, plan->output(3)) * dy).sum().item<double>();
  };
  constexpr double kStep = 1e-5;  // the map is bilinear: only rounding is left of the difference
  for (std::int64_t k = 0; k < w.values.numel(); ++k) {
    double sides[2];
    for (const int side : {0, 1}) {
      Weight moved = w;
      moved.values = w.values.detach().clone();
      moved.values[k] += side == 0 ? -kStep : kStep;
      moved.forward = torch::empty_like(moved.values);
      refresh_forward(*moved.compressed, moved.values, moved.forward);
      sides[side] = loss(moved, x);
    }
    EXPECT_NEAR((sides[1] - sides[0]) / (2 * kStep), at.dvalues[k].item<double>(), 1e-8);
  }
  for (std::int64_t k = 0; k < x.numel(); ++k) {
    double sides[2];
    for (const int side : {0, 1}) {
      const Tensor moved = x.clone();
      moved.view({-1})[k] += side == 0 ? -kStep : kStep;
      sides[side] = loss(w, moved);
    }
    EXPECT_NEAR((sides[1] - sides[0]) / (2 * kStep), at.dx.view({-1})[k].item<double>(), 1e-8);
  }
}

TEST(SparseConv2d, SecondDerivativesAreErrors) {
  const Case& c = kCases[0];
  const Weight w(c, torch::kFloat);
  const ImageLayout in{c.samples, c.shape.in, c.height, c.width, conv_halo(c.shape)};
  const auto plan = std::make_shared<ConvPlan>(w.compressed, c.shape, in);
  const Tensor x = torch::zeros({in.numel()}).set_requires_grad(true);
  const Tensor loss = sparse_conv2d(x, in, plan, w.values, w.forward, {}).square().sum();
  const auto gradients = torch::autograd::grad({loss}, {x, w.values}, {}, true, /*create_graph=*/true);
  EXPECT_THROW(gradients[0].sum().backward({}, true), std::runtime_error);
  EXPECT_THROW(gradients[1].sum().backward(), std::runtime_error);
}

TEST(SparseConv2d, SaysWhatDoesNotFit) {
  const Case& c = kCases[0];
  const Weight w(c, torch::kFloat);
  const auto message = [](const auto& f) {
    try {
      f();
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  EXPECT_NE(message([&] {
              ConvPlan(w.compressed, c.shape, {1, 5, 8, 8, 1});
            }).find("have 5 channels, the weight takes 4"),
            std::string::npos);
  ConvShape wide = c.shape;
  wide.dilation = {9, 9};
  EXPECT_NE(message([&] {
              ConvPlan(w.compressed, wide, {1, 4, 8, 8, 1});
            }).find("8x8 with padding 1x1 are smaller"),
            std::string::npos);
  const ImageLayout in{16, 4, 8, 8, 1};
  const auto plan = std::make_shared<ConvPlan>(w.compressed, c.shape, in);
  EXPECT_NE(message([&] {
              sparse_conv2d(torch::zeros({in.numel()}, torch::kDouble), in, plan, w.values, w.forward, {});
            }).find("the images are Double, the weight Float"),
            std::string::npos);
  EXPECT_NE(message([&] {
              sparse_conv2d(torch::zeros({in.numel()}), in, plan, w.values, w.forward, torch::zeros({5}));
            }).find("the bias is Float [5] on cpu; expected Float [6]"),
            std::string::npos);
  ConvShape bad = c.shape;
  bad.groups = 3;
  EXPECT_NE(message([&] { check_conv(bad); }).find("groups = 3 must divide"), std::string::npos);
  bad = c.shape;
  bad.stride = {0, 1};
  EXPECT_NE(message([&] { check_conv(bad); }).find("must be positive"), std::string::npos);
}

}  // namespace
}  // namespace espalier::ops
