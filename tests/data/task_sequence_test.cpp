#include "espalier/data/task_sequence.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "espalier/core/error.h"
#include "espalier/data/dataset.h"

namespace espalier::data {
namespace {

Dataset small(std::int64_t side = 4, std::int64_t channels = 1) {
  Dataset set;
  set.name = "small";
  for (Images* images : {&set.train, &set.test}) {
    images->pixels = torch::randint(0, 256, {6, channels, side, side}).to(torch::kUInt8);
    images->labels = torch::tensor({0, 1, 2, 3, 0, 1}, torch::kInt64);
  }
  set.classes = {"a", "b", "c", "d"};
  return set;
}

torch::Tensor shown(const Images& images) {
  const auto channels = static_cast<std::size_t>(images.pixels.size(1));
  LoaderOptions options;
  options.batch_size = images.size();
  std::vector<std::int64_t> all;
  for (std::int64_t i = 0; i < images.size(); ++i) all.push_back(i);
  const Loader loader(images, all, {std::vector<float>(channels, 0), std::vector<float>(channels, 1)}, options);
  return (loader.batch(0, 0).images * 255).round().to(torch::kInt64);
}

TEST(Permuted, TheFirstTaskIsTheDataAsTheyAreAndOthersMoveEveryImageAlike) {
  const Dataset set = small(4, 3);
  const torch::Tensor plain = shown(set.train);
  EXPECT_TRUE(shown(permuted(set, 1, 1).train).equal(plain));
  const Dataset second = permuted(set, 1, 2);
  const torch::Tensor moved = shown(second.train);
  EXPECT_FALSE(moved.equal(plain));
  for (std::int64_t i = 0; i < 6; ++i) {
    for (std::int64_t c = 0; c < 3; ++c) {
      for (std::int64_t p = 0; p < 16; ++p) {
        EXPECT_EQ(moved[i][c].flatten()[p].item<int>(),
                  plain[i][c].flatten()[second.train.order[p].item<std::int64_t>()].item<int>());
      }
    }
  }
  EXPECT_TRUE(second.train.order.equal(second.test.order));
  EXPECT_TRUE(std::get<0>(second.train.order.sort()).equal(torch::arange(16)));
  EXPECT_TRUE(permuted(set, 1, 2).train.order.equal(second.train.order));
  EXPECT_FALSE(permuted(set, 1, 3).train.order.equal(second.train.order));
  EXPECT_FALSE(permuted(set, 2, 2).train.order.equal(second.train.order));
  EXPECT_THROW(permuted(set, 1, 0), Error);
}

TEST(Rotated, QuarterTurnsAreExactAndAnticlockwise) {
  const Dataset set = small(5, 2);
  EXPECT_TRUE(rotated(set, 90).train.pixels.equal(torch::rot90(set.train.pixels, 1, {2, 3})));
  EXPECT_TRUE(rotated(set, 180).test.pixels.equal(torch::rot90(set.test.pixels, 2, {2, 3})));
  EXPECT_TRUE(rotated(set, -90).train.pixels.equal(torch::rot90(set.train.pixels, -1, {2, 3})));
  EXPECT_TRUE(rotated(set, 360).train.pixels.equal(set.train.pixels));
  EXPECT_TRUE(rotated(set, 0).train.pixels.equal(set.train.pixels));
}

TEST(Rotated, InBetweenIsBilinearAndBlackOutside) {
  Dataset set = small(3);
  set.train.pixels = torch::full({1, 1, 3, 3}, 100, torch::kUInt8);
  const torch::Tensor turned = rotated(set, 45).train.pixels.to(torch::kInt64)[0][0];
  EXPECT_EQ(turned[1][1].item<int>(), 100);
  // The corner reads the pixel at distance sqrt 2 above the middle: row 1 - 1.41421 = -0.41421, of which 0.58579 is
  // inside.
  EXPECT_EQ(turned[0][0].item<int>(), 59);
  // The middle of an edge reads inside, between (0, 0) and (1, 1).
  EXPECT_EQ(turned[0][1].item<int>(), 100);
}

TEST(OfClasses, LabelsCountFromZero) {
  const Dataset set = small();
  const Dataset part = of_classes(set, 2, 2);
  EXPECT_TRUE(part.train.labels.equal(torch::tensor({0, 1}, torch::kInt64)));
  EXPECT_TRUE(part.train.pixels.equal(set.train.pixels.slice(0, 2, 4)));
  EXPECT_EQ(part.classes, (std::vector<std::string>{"c", "d"}));
  EXPECT_THROW(of_classes(set, 3, 2), Error);
  EXPECT_THROW(of_classes(set, 0, 1), Error);
}

TEST(Fitted, SmallerImagesStandInTheMiddle) {
  const Dataset set = small(4);
  const Dataset larger = fitted(set, 3, 6, 8);
  EXPECT_EQ(larger.train.pixels.sizes(), (std::vector<std::int64_t>{6, 3, 6, 8}));
  for (std::int64_t c = 0; c < 3; ++c) {
    EXPECT_TRUE(larger.train.pixels.select(1, c).slice(1, 1, 5).slice(2, 2, 6).equal(set.train.pixels.select(1, 0)));
  }
  EXPECT_EQ(larger.train.pixels.sum(torch::kInt64).item<std::int64_t>(),
            3 * set.train.pixels.sum(torch::kInt64).item<std::int64_t>());
  EXPECT_TRUE(fitted(set, 1, 4, 4).train.pixels.equal(set.train.pixels));
  EXPECT_THROW(fitted(set, 1, 3, 4), Error);
  EXPECT_THROW(fitted(small(4, 3), 1, 4, 4), Error);
}

}  // namespace
}  // namespace espalier::data
