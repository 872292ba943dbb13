/// Batches of images for tests of what works on their batch tiles.
#pragma once

#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>

#include "espalier/ops/images.h"

namespace espalier::ops {

struct Shape {
  std::int64_t samples, channels, height, width, halo;
};
// Ragged and full groups, one channel and several, odd sizes, each halo; images narrower than their halo.
inline const Shape kShapes[] = {{1, 1, 5, 3, 0},  {5, 3, 7, 5, 1},  {16, 1, 4, 4, 2}, {17, 3, 9, 11, 1},
                                {33, 2, 3, 1, 2}, {16, 5, 8, 8, 0}, {70, 4, 6, 7, 1}};

inline torch::Tensor images_of(const Shape& s, torch::ScalarType type = torch::kDouble) {
  torch::manual_seed(1);
  return torch::randn({s.samples, s.channels, s.height, s.width}, type);
}

/// The tiles as the header draws them, each with all of its halo, `border` pixels of it: [groups, C, H + 2 border,
/// W + 2 border, 16].
inline torch::Tensor drawn(const torch::Tensor& images, const ImageLayout& l, std::int64_t border) {
  const std::int64_t row = (l.width + l.halo) * kImageLanes, plane = l.plane() * kImageLanes;
  return images.as_strided({l.groups(), l.channels, l.height + 2 * border, l.width + 2 * border, kImageLanes},
                           {l.channels * plane, plane, row, kImageLanes, 1}, (l.halo - border) * (row + kImageLanes));
}
inline torch::Tensor drawn(const torch::Tensor& images, const ImageLayout& l) { return drawn(images, l, l.halo); }

/// The same, put together by torch, with zeros in padding lanes.
inline torch::Tensor expected_tiles(const torch::Tensor& nchw, const ImageLayout& l) {
  using torch::indexing::Slice;
  torch::Tensor all = torch::zeros({l.groups() * kImageLanes, l.channels, l.height, l.width}, nchw.options());
  all.index_put_({Slice(0, l.samples)}, nchw.detach());
  const auto padded = torch::constant_pad_nd(all, {l.halo, l.halo, l.halo, l.halo});
  return padded.view({l.groups(), kImageLanes, l.channels, l.height + 2 * l.halo, l.width + 2 * l.halo})
      .permute({0, 2, 3, 4, 1})
      .contiguous();
}

/// Adds `what` to the images of padding lanes, where anything finite may stand.
inline torch::Tensor with_padding_of(const torch::Tensor& images, const ImageLayout& l, double what) {
  using torch::indexing::Slice;
  torch::Tensor padding =
      torch::full({l.groups() * kImageLanes, l.channels, l.height, l.width}, what, images.options());
  padding.index_put_({Slice(0, l.samples)}, 0);
  ImageLayout all = l;
  all.samples = l.groups() * kImageLanes;
  torch::Tensor sum = torch::zeros({l.numel()}, images.options());
  all.halo = 0;
  drawn(sum, l, 0).copy_(expected_tiles(padding, all));
  return images + sum;
}

inline bool halo_is_zero(const torch::Tensor& images, const ImageLayout& l) {
  return with_halo(with_halo(images, l, 0), {l.samples, l.channels, l.height, l.width, 0}, l.halo).equal(images);
}

inline double largest_difference(const torch::Tensor& a, const torch::Tensor& b) {
  return a.numel() == 0 ? 0 : (a.detach() - b.detach()).abs().max().item<double>();
}

/// Runs f with 1, 2 and 3 threads and hands each result to `compare` with the first.
inline void with_threads(const std::function<std::vector<torch::Tensor>()>& f) {
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  const auto first = f();
  for (const int n : {2, 3}) {
    at::set_num_threads(n);
    const auto now = f();
    for (std::size_t i = 0; i < first.size(); ++i) EXPECT_TRUE(now[i].equal(first[i])) << i << ", " << n << " threads";
  }
  at::set_num_threads(before);
}

}  // namespace espalier::ops
