#include "espalier/ops/images.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "espalier/core/error.h"
#include "ops/tiled_images.h"

namespace espalier::ops {
namespace {

using torch::Tensor;

TEST(Images, StandWhereTheLayoutSays) {
  for (const Shape& s : kShapes) {
    for (const auto type : {torch::kFloat, torch::kDouble}) {
      const Tensor nchw = images_of(s, type);
      const Tensor images = to_images(nchw, s.halo);
      const ImageLayout layout = image_layout(nchw, s.halo);
      ASSERT_EQ(images.numel(), layout.numel());
      EXPECT_TRUE(drawn(images, layout).equal(expected_tiles(nchw, layout)));
      EXPECT_TRUE(from_images(images, layout).equal(nchw));
    }
  }
}

TEST(Images, ComeFromAnyStrides) {
  const Tensor nchw = images_of({18, 6, 7, 9, 0});
  const Tensor images = to_images(nchw, 1);
  EXPECT_TRUE(to_images(nchw.contiguous(torch::MemoryFormat::ChannelsLast), 1).equal(images));
  using torch::indexing::Slice;
  const Tensor slice = nchw.index({Slice(1, 17), Slice(0, 6, 2), Slice(2, 6), Slice(1, 8)});
  EXPECT_TRUE(to_images(slice, 1).equal(to_images(slice.contiguous(), 1)));
  const Tensor channels = nchw.index({Slice(0, 18, 3), Slice(1, 6, 2)});  // planes without gaps: taken as they are
  EXPECT_TRUE(to_images(channels, 1).equal(to_images(channels.contiguous(), 1)));
  const Tensor same = nchw.slice(0, 0, 1).expand({18, 6, 7, 9});
  EXPECT_TRUE(to_images(same, 1).equal(to_images(same.contiguous(), 1)));
}

TEST(Images, TakeAnotherHalo) {
  for (const Shape& s : kShapes) {
    const Tensor nchw = images_of(s);
    const Tensor images = to_images(nchw, s.halo);
    for (const std::int64_t halo : {0, 1, 3}) {
      EXPECT_TRUE(with_halo(images, image_layout(nchw, s.halo), halo).equal(to_images(nchw, halo)));
    }
  }
}

// Copies are their own derivatives: the gradient of <r, f(x)> is r brought back, and zero where nothing is kept.
TEST(Images, CarryGradientsBack) {
  for (const Shape& s : kShapes) {
    const Tensor nchw = images_of(s).requires_grad_();
    const ImageLayout layout = image_layout(nchw, s.halo);
    const Tensor r = torch::randn_like(nchw);

    const Tensor images = to_images(nchw, s.halo);
    images.retain_grad();
    const Tensor wider = with_halo(images, layout, 2);
    (from_images(wider, image_layout(nchw, 2)) * r).sum().backward();
    EXPECT_TRUE(nchw.grad().equal(r));
    EXPECT_TRUE(drawn(images.grad(), layout).equal(expected_tiles(r, layout)));  // halo and padding lanes: zero
  }
}

TEST(Images, TakeABatchWithoutImages) {
  const Tensor nchw = torch::zeros({0, 3, 5, 4}).requires_grad_();
  const ImageLayout layout = image_layout(nchw, 1);
  const Tensor images = with_halo(to_images(nchw, 1), layout, 2);
  EXPECT_EQ(images.numel(), 0);
  const Tensor back = from_images(images, image_layout(nchw, 2));
  EXPECT_EQ(back.sizes(), nchw.sizes());
  back.sum().backward();
  EXPECT_EQ(nchw.grad().sizes(), nchw.sizes());
}

TEST(Images, LoseWhatAFunctionLeavesInTheHalo) {
  for (const Shape& s : kShapes) {
    const Tensor nchw = images_of(s).requires_grad_();
    const ImageLayout layout = image_layout(nchw, s.halo);
    const Tensor images = to_images(nchw, s.halo);
    images.retain_grad();
    const Tensor y = clear_halo(images + 1, layout);
    EXPECT_TRUE(halo_is_zero(y, layout));
    EXPECT_TRUE(from_images(y, layout).equal(nchw + 1));
    y.sum().backward();
    EXPECT_TRUE(halo_is_zero(images.grad(), layout));
    EXPECT_TRUE(nchw.grad().equal(torch::ones_like(nchw)));
  }
}

TEST(Images, AddWhateverTheirHalos) {
  for (const Shape& s : kShapes) {
    for (const std::int64_t other : {0, 1, 2}) {
      for (const bool relu : {false, true}) {
        const Tensor a = images_of(s).requires_grad_(), b = torch::randn_like(a).requires_grad_();
        const Tensor sum = relu ? torch::relu(a + b) : torch::add(a, b);
        const Tensor r = torch::randn_like(sum);
        const auto expected = torch::autograd::grad({sum}, {a, b}, {r});

        const ImageLayout la = image_layout(a, s.halo), lb = image_layout(b, other);
        const ImageLayout out = image_layout(a, std::max(s.halo, other));
        const Tensor ia = to_images(a, s.halo), ib = to_images(b, other);
        for (const auto sum_of : {&add, &add_over}) {
          // A tensor of its own to be written over; its gradient is that of a.
          const Tensor own = ia.clone();
          const Tensor y = (*sum_of)(own, la, ib, lb, relu);
          EXPECT_EQ(y.is_same(own), sum_of == &add_over && out == la);
          EXPECT_TRUE(from_images(y, out).equal(sum));
          EXPECT_TRUE(halo_is_zero(y, out));
          const auto found = torch::autograd::grad({from_images(y, out)}, {a, b, ia, ib}, {r}, /*retain_graph=*/true);
          EXPECT_TRUE(found[0].equal(expected[0]));
          EXPECT_TRUE(found[1].equal(expected[1]));
          EXPECT_TRUE(drawn(found[2], la).equal(expected_tiles(expected[0], la)));  // halo, padding lanes: zero
          EXPECT_TRUE(drawn(found[3], lb).equal(expected_tiles(expected[1], lb)));
        }
      }
    }
  }
}

TEST(Images, BecomeVectorsInTheOrderOfTorch) {
  for (const Shape& s : kShapes) {
    const Tensor nchw = images_of(s).requires_grad_();
    const ImageLayout layout = image_layout(nchw, s.halo);
    const Tensor images = to_images(nchw, s.halo);
    const Tensor flat = from_tiles(flatten(images, layout), layout.flat());
    EXPECT_TRUE(flat.equal(nchw.flatten(1)));
    EXPECT_TRUE(flatten(images, layout).equal(to_tiles(nchw.flatten(1))));
    const Tensor r = torch::randn_like(flat);
    const auto found = torch::autograd::grad({flat}, {nchw, images}, {r});
    EXPECT_TRUE(found[0].equal(r.view_as(nchw)));
    EXPECT_TRUE(drawn(found[1], layout).equal(expected_tiles(found[0], layout)));
  }
}

TEST(Images, AreTheSameForAnyNumberOfThreads) {
  const Tensor nchw = images_of({40, 9, 33, 35, 1}, torch::kFloat);
  with_threads([&] {
    const Tensor images = to_images(nchw, 1);
    const ImageLayout layout = image_layout(nchw, 1);
    return std::vector<Tensor>{images, from_images(images, layout), with_halo(images, layout, 2),
                               flatten(images, layout), add(images, layout, images, layout, true)};
  });
}

TEST(Images, RefuseWhatIsNoBatchOfImages) {
  EXPECT_THROW(to_images(torch::zeros({3, 4}), 1), Error);
  EXPECT_THROW(to_images(torch::zeros({3, 4, 5, 5}), -1), Error);
  EXPECT_THROW(to_images(torch::zeros({3, 4, 5, 5}, torch::kInt), 1), Error);
  EXPECT_THROW(from_images(torch::zeros({100}), {1, 1, 2, 2, 0}), Error);
  EXPECT_THROW(add(torch::zeros({64}), {1, 1, 2, 2, 0}, torch::zeros({32}), {1, 1, 1, 2, 0}), Error);
  EXPECT_THROW(flatten(torch::zeros({63}), {1, 1, 2, 2, 0}), Error);
  EXPECT_THROW(with_halo(torch::zeros({64}), {1, 1, 2, 2, 0}, -1), Error);
}

}  // namespace
}  // namespace espalier::ops
