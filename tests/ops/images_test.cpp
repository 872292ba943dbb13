#include "espalier/ops/images.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "espalier/core/error.h"

namespace espalier::ops {
namespace {

using torch::Tensor;

const auto kDouble = torch::TensorOptions().dtype(torch::kDouble);

struct Shape {
  std::int64_t samples, channels, height, width, halo;
};
// Ragged and full groups, odd sizes, images that are narrower than their halo; a batch without images.
const Shape kShapes[] = {{1, 1, 1, 1, 0},  {5, 3, 7, 5, 1},  {16, 1, 4, 4, 2}, {17, 3, 9, 11, 1},
                         {33, 2, 3, 1, 2}, {16, 5, 8, 8, 0}, {0, 3, 5, 4, 1},  {40, 4, 16, 17, 1}};

Tensor images_of(const Shape& s, torch::ScalarType type = torch::kDouble) {
  torch::manual_seed(1);
  return torch::randn({s.samples, s.channels, s.height, s.width}, type);
}

/// The tiles as the header draws them: [groups, C, H + 2 halo, W + 2 halo, 16].
Tensor drawn(const Tensor& images, const ImageLayout& l) {
  return images.view({l.groups(), l.channels, l.height + 2 * l.halo, l.width + 2 * l.halo, kImageLanes});
}

/// The same, put together by torch.
Tensor expected_tiles(const Tensor& nchw, const ImageLayout& l) {
  using torch::indexing::Slice;
  Tensor all = torch::zeros({l.groups() * kImageLanes, l.channels, l.height, l.width}, nchw.options());
  all.index_put_({Slice(0, l.samples)}, nchw);
  const Tensor padded = torch::constant_pad_nd(all, {l.halo, l.halo, l.halo, l.halo});
  return padded.view({l.groups(), kImageLanes, l.channels, l.height + 2 * l.halo, l.width + 2 * l.halo})
      .permute({0, 2, 3, 4, 1})
      .contiguous();
}

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

TEST(Images, AreTheSameForAnyNumberOfThreads) {
  const Tensor nchw = images_of({40, 9, 33, 35, 0}, torch::kFloat);
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const Tensor images = to_images(nchw, 1);
  for (const int n : {2, 3}) {
    at::set_num_threads(n);
    EXPECT_TRUE(to_images(nchw, 1).equal(images));
    EXPECT_TRUE(from_images(images, image_layout(nchw, 1)).equal(nchw));
  }
  at::set_num_threads(threads);
}

TEST(Images, RefuseWhatIsNoBatchOfImages) {
  EXPECT_THROW(to_images(torch::zeros({3, 4}), 1), Error);
  EXPECT_THROW(to_images(torch::zeros({3, 4, 5, 5}), -1), Error);
  EXPECT_THROW(to_images(torch::zeros({3, 4, 5, 5}, torch::kInt), 1), Error);
  EXPECT_THROW(from_images(torch::zeros({100}), {1, 1, 2, 2, 0}), Error);
  EXPECT_THROW(with_halo(torch::zeros({64}), {1, 1, 2, 2, 0}, -1), Error);
}

}  // namespace
}  // namespace espalier::ops
