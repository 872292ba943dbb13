#include "espalier/data/task_sequence.h"

#include <ATen/Parallel.h>
#include <torch/torch.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "espalier/core/error.h"
#include "espalier/core/random.h"

namespace espalier::data {
namespace {

constexpr double kPi = 3.14159265358979323846;

/// A pixel of the result as a weighted sum of four of the image.
struct Source {
  std::array<std::int64_t, 4> pixel{};
  std::array<double, 4> weight{};
};

std::vector<Source> turned(std::int64_t height, std::int64_t width, double degrees) {
  const double turn = degrees * kPi / 180;
  // Exact at multiples of 90 degrees, where cos(pi / 2) is not 0 in floating point.
  const auto whole = [](double v) { return std::abs(v - std::round(v)) < 1e-12 ? std::round(v) : v; };
  const double c = whole(std::cos(turn)), s = whole(std::sin(turn));
  const double middle_y = static_cast<double>(height - 1) / 2, middle_x = static_cast<double>(width - 1) / 2;
  std::vector<Source> sources(static_cast<std::size_t>(height * width));
  for (std::int64_t y = 0; y < height; ++y) {
    for (std::int64_t x = 0; x < width; ++x) {
      // Where it comes from. Rows count downwards, so what the eye sees turn anticlockwise goes (dx, dy) to
      // (c dx + s dy, c dy - s dx), and this is its inverse.
      const double dx = static_cast<double>(x) - middle_x, dy = static_cast<double>(y) - middle_y;
      const double from_x = c * dx - s * dy + middle_x, from_y = s * dx + c * dy + middle_y;
      const double left = std::floor(from_x), top = std::floor(from_y);
      Source& source = sources[static_cast<std::size_t>(y * width + x)];
      for (std::size_t k = 0; k < 4; ++k) {
        const double px = left + static_cast<double>(k % 2), py = top + static_cast<double>(k / 2);
        const double weight = (1 - std::abs(from_x - px)) * (1 - std::abs(from_y - py));
        if (px < 0 || py < 0 || px >= static_cast<double>(width) || py >= static_cast<double>(height)) continue;
        source.pixel[k] = static_cast<std::int64_t>(py) * width + static_cast<std::int64_t>(px);
        source.weight[k] = weight;
      }
    }
  }
  return sources;
}

torch::Tensor turn_all(const torch::Tensor& images, const std::vector<Source>& sources) {
  const torch::Tensor in = images.contiguous();
  torch::Tensor out = torch::empty_like(in);
  const auto plane = static_cast<std::int64_t>(sources.size());
  const std::uint8_t* from = in.data_ptr<std::uint8_t>();
  std::uint8_t* to = out.data_ptr<std::uint8_t>();
  at::parallel_for(0, plane == 0 ? 0 : in.numel() / plane, 64, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      for (std::int64_t p = 0; p < plane; ++p) {
        const Source& source = sources[static_cast<std::size_t>(p)];
        double sum = 0;
        for (std::size_t k = 0; k < 4; ++k) sum += source.weight[k] * from[i * plane + source.pixel[k]];
        to[i * plane + p] = static_cast<std::uint8_t>(std::lround(std::clamp(sum, 0.0, 255.0)));
      }
    }
  });
  return out;
}

Images of_labels(const Images& images, std::int64_t first, std::int64_t count) {
  const torch::Tensor kept = images.labels.ge(first).logical_and(images.labels.lt(first + count)).nonzero().flatten();
  Images some = images.at(kept);
  some.labels -= first;
  return some;
}

torch::Tensor fit(const torch::Tensor& pixels, std::int64_t channels, std::int64_t height, std::int64_t width) {
  const std::int64_t top = (height - pixels.size(2)) / 2, left = (width - pixels.size(3)) / 2;
  if (channels == pixels.size(1) && height == pixels.size(2) && width == pixels.size(3)) return pixels;
  torch::Tensor out = torch::zeros({pixels.size(0), channels, height, width}, pixels.options());
  out.slice(2, top, top + pixels.size(2)).slice(3, left, left + pixels.size(3)).copy_(pixels);  // one channel: repeated
  return out;
}

}  // namespace

Dataset permuted(Dataset set, std::uint64_t seed, std::int64_t number) {
  ESPALIER_CHECK(number >= 1, ErrorKind::usage, "permuted: task {}; tasks count from 1", number);
  if (number == 1) return set;
  const std::int64_t plane = set.train.pixels.size(2) * set.train.pixels.size(3);
  const auto order = random_permutation(plane, RandomStream(seed, Purpose::task, static_cast<std::uint64_t>(number)));
  set.train.order = set.test.order = torch::tensor(order, torch::kInt64);
  return set;
}

Dataset rotated(Dataset set, double degrees) {
  ESPALIER_CHECK(std::isfinite(degrees), ErrorKind::usage, "rotated: an angle of {} degrees", degrees);
  if (degrees == 0) return set;
  const auto sources = turned(set.train.pixels.size(2), set.train.pixels.size(3), degrees);
  set.train.pixels = turn_all(set.train.pixels, sources);
  set.test.pixels = turn_all(set.test.pixels, sources);
  return set;
}

Dataset of_classes(const Dataset& set, std::int64_t first, std::int64_t count) {
  ESPALIER_CHECK(first >= 0 && count >= 2 && first + count <= set.num_classes(), ErrorKind::usage,
                 "split: classes {} to {} of \"{}\", which has {}; a task needs at least 2 of them", first,
                 first + count - 1, set.name, set.num_classes());
  Dataset part = set;
  part.train = of_labels(set.train, first, count);
  part.test = of_labels(set.test, first, count);
  part.classes.assign(set.classes.begin() + first, set.classes.begin() + first + count);
  return part;
}

Dataset fitted(Dataset set, std::int64_t channels, std::int64_t height, std::int64_t width) {
  const auto& pixels = set.train.pixels;
  ESPALIER_CHECK(
      pixels.size(2) <= height && pixels.size(3) <= width && (pixels.size(1) == channels || pixels.size(1) == 1),
      ErrorKind::usage, "\"{}\" has images of {}x{}x{}, and the network takes {}x{}x{}: they do not fit", set.name,
      pixels.size(1), pixels.size(2), pixels.size(3), channels, height, width);
  set.train.pixels = fit(set.train.pixels, channels, height, width);
  set.test.pixels = fit(set.test.pixels, channels, height, width);
  return set;
}

}  // namespace espalier::data
