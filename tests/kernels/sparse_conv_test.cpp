// Convolutions with a compressed weight against plain loops in double precision, for every instruction set of this CPU.
#include "espalier/kernels/sparse_conv.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "espalier/core/random.h"
#include "espalier/kernels/dispatch.h"
#include "kernels/runnable.h"

namespace espalier::kernels {
namespace {

struct Case {
  ConvShape shape;
  std::int64_t height, width;
  double density;
};

ConvShape conv(std::int64_t in, std::int64_t out, ConvShape::Pair kernel, ConvShape::Pair stride = {1, 1},
               ConvShape::Pair padding = {0, 0}, ConvShape::Pair dilation = {1, 1}, std::int64_t groups = 1) {
  return {in, out, kernel, stride, padding, dilation, groups};
}

// Each kind of blocking; every width of rectangle; strides that leave phases without a tap, and rows without a phase;
// lines of more entries than have their dot products formed at once.
std::vector<Case> cases() {
  std::vector<Case> list = {
      {conv(3, 20, {3, 3}, {1, 1}, {1, 1}), 9, 9, 0.5},
      {conv(40, 35, {3, 3}, {1, 1}, {1, 1}), 6, 5, 0.1},
      {conv(40, 35, {3, 3}, {1, 1}, {1, 1}), 5, 8, 0.05},
      {conv(40, 70, {3, 3}, {1, 1}, {1, 1}), 8, 8, 0.01},
      {conv(4, 6, {3, 3}, {2, 2}, {1, 1}), 9, 7, 0.4},
      {conv(4, 6, {3, 3}, {2, 2}, {1, 1}), 8, 8, 0.4},
      {conv(4, 6, {1, 1}, {2, 2}), 7, 5, 0.5},
      {conv(3, 5, {5, 5}, {3, 2}, {2, 1}), 11, 13, 0.3},
      {conv(3, 5, {2, 4}, {1, 3}, {1, 2}), 6, 10, 0.5},
      {conv(2, 3, {3, 2}, {1, 1}, {2, 0}, {2, 3}), 8, 9, 0.6},
      {conv(2, 3, {3, 3}, {4, 4}, {0, 0}, {3, 3}), 15, 17, 0.8},
      {conv(2, 3, {3, 3}, {1, 1}, {4, 4}), 3, 2, 0.7},
      {conv(8, 12, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 4), 6, 6, 0.5},
      {conv(7, 7, {3, 3}, {2, 1}, {1, 1}, {1, 1}, 7), 9, 10, 0.6},
      {conv(7, 14, {5, 5}, {1, 1}, {2, 2}, {1, 1}, 7), 6, 6, 1},
      {conv(3, 20, {5, 5}, {1, 1}, {2, 2}), 7, 6, 0.9},
      {conv(5, 4, {3, 3}, {1, 1}, {1, 1}), 1, 1, 1},
      {conv(5, 4, {3, 3}, {1, 1}, {1, 1}), 4, 3, 0},
      {conv(1, 1, {1, 1}), 1, 1, 1},
  };
  for (std::int64_t width = 1; width <= 33; ++width)
    list.push_back({conv(2, 3, {3, 3}, {1, 1}, {1, 1}), 5, width, 0.6});
  return list;
}

std::string name_of(const Case& c) {
  const ConvShape& s = c.shape;
  std::string text;
  for (const std::int64_t v : {s.in, s.out, s.kernel[0], s.kernel[1], s.stride[0], s.stride[1], s.padding[0],
                               s.padding[1], s.dilation[0], s.dilation[1], s.groups, c.height, c.width})
    text += std::to_string(v) + " ";
  return text;
}

std::vector<std::int64_t> draw_positions(const Case& c) {
  const auto n = c.shape.out * c.shape.columns();
  auto positions = random_subset(n, std::llround(c.density * static_cast<double>(n)), RandomStream(7, Purpose::test));
  // An output without entries: uneven on purpose.
  if (c.density < 1 && c.shape.out > 4) {
    positions.erase(
        std::remove_if(positions.begin(), positions.end(), [&](std::int64_t p) { return p / c.shape.columns() == 3; }),
        positions.end());
  }
  return positions;
}

/// Images with the layout of the header.
template <class T>
struct Images {
  Images(std::int64_t channels, std::int64_t height, std::int64_t width, std::int64_t halo)
      : c(channels),
        h(height),
        w(width),
        border(halo),
        planes{w + 2 * halo, (h + 2 * halo) * (w + 2 * halo)},
        storage(static_cast<std::size_t>(c * planes.plane * kImageLanes + 16)) {
    const auto at = reinterpret_cast<std::uintptr_t>(storage.data());
    data = storage.data() + (64 - at % 64) % 64 / sizeof(T);
  }
  std::int64_t index(std::int64_t channel, std::int64_t y, std::int64_t x) const {
    return (channel * planes.plane + (y + border) * planes.row + x + border) * kImageLanes;
  }
  T* at(std::int64_t channel, std::int64_t y, std::int64_t x) { return data + index(channel, y, x); }
  bool inside(std::int64_t y, std::int64_t x) const { return y >= 0 && y < h && x >= 0 && x < w; }
  template <class F>
  void each(const F& f) {
    for (std::int64_t k = 0; k < c; ++k)
      for (std::int64_t y = 0; y < h; ++y)
        for (std::int64_t x = 0; x < w; ++x)
          for (std::int64_t s = 0; s < kImageLanes; ++s) f(k, y, x, s);
  }
  std::int64_t c, h, w, border;
  Planes planes;
  std::vector<T> storage;
  T* data;
};

/// u n / (1 - u n): the relative error of a sum of n products, in any order.
template <class T>
double gamma_of(std::int64_t n) {
  const double nu = static_cast<double>(n) * std::numeric_limits<T>::epsilon() / 2;
  return nu / (1 - nu);
}

/// patch_rows: of ConvPart.
template <class T>
void check(const Table& table, const Case& c, std::int64_t patch_rows, bool whole_numbers) {
  SCOPED_TRACE(std::string(table.isa) + (sizeof(T) == 4 ? " float: " : " double: ") + name_of(c) + "patches of " +
               std::to_string(patch_rows));
  const auto& kernels = table.sparse_conv<T>();
  const ConvShape& s = c.shape;
  const std::int64_t oh = s.output(0, c.height), ow = s.output(1, c.width);
  ASSERT_GT(oh, 0);
  ASSERT_GT(ow, 0);
  const auto positions = draw_positions(c);
  const auto nnz = static_cast<std::int64_t>(positions.size());
  kernels::EntryIndices place;
  const Compressed weight = compress(s, positions.data(), nnz, place, 1);

  // A large halo: what may be read beyond the image is checked by the ops, which know how little is needed.
  Images<T> x(s.in, c.height, c.width, 12), y(s.out, oh, ow, 12), dy(s.out, oh, ow, 12),
      dx(s.in, c.height, c.width, 12);
  const RandomStream random(3, Purpose::test);
  std::uint64_t drawn = 0;
  const auto draw = [&] {
    const double u = random.uniform_at(drawn++);
    return static_cast<T>(whole_numbers ? std::floor(9 * u) - 4 : 2 * u - 1);
  };
  x.each([&](auto k, auto h, auto w, auto i) { x.at(k, h, w)[i] = draw(); });
  dy.each([&](auto k, auto h, auto w, auto i) { dy.at(k, h, w)[i] = draw(); });
  std::vector<T> values(static_cast<std::size_t>(nnz)), forward_values(values.size()),
      bias(static_cast<std::size_t>(s.out));
  for (T& v : values) v = draw();
  for (T& v : bias) v = draw();
  for (std::size_t k = 0; k < values.size(); ++k) forward_values[k] = values[weight.canonical[k]];
  std::vector<T> dvalues(values.size(), T(2));  // they are added to
  // So is dx, where asked for: with whole numbers.
  const T dx_before = whole_numbers ? T(3) : T(0);
  dx.each([&](auto k, auto h, auto w, auto i) { dx.at(k, h, w)[i] = whole_numbers ? dx_before : T(99); });

  const ConvOffsets offsets = conv_offsets(weight, s, x.planes, y.planes);
  const std::int64_t cut = oh / 2;  // in two parts, as threads would
  for (const auto& [begin, end] : {std::pair{std::int64_t{0}, cut}, {cut, oh}}) {
    kernels.forward(weight.forward, offsets.forward.data(), forward_values.data(), bias.data(), s.stride,
                    {x.planes, y.planes, ow, begin, end, patch_rows, s.in, s.kernel},
                    x.at(0, -s.padding[0], -s.padding[1]), y.at(0, 0, 0));
  }
  for (std::int64_t phase = 0; phase < s.phases(); ++phase) {
    const std::int64_t ph = phase / s.stride[1], pw = phase % s.stride[1];
    const auto rows = (c.height - ph + s.stride[0] - 1) / s.stride[0];
    const auto columns = (c.width - pw + s.stride[1] - 1) / s.stride[1];
    for (const auto& [begin, end] : {std::pair{std::int64_t{0}, rows / 2}, {rows / 2, rows}}) {
      kernels.backward(weight.backward, phase, offsets.backward.data(), values.data(), s.stride,
                       {x.planes, y.planes, columns, begin, end, patch_rows}, x.at(0, ph, pw), dy.at(0, 0, 0),
                       dx.at(0, ph, pw), whole_numbers, dvalues.data());
    }
  }
  // The first image by itself.
  const AlonePlanes planes = alone_planes(s, c.height, c.width);
  const std::vector<std::int32_t> alone_offset = alone_offsets(weight, s, planes);
  std::vector<T> alone_x, alone_y(static_cast<std::size_t>(s.out * planes.blocks * kImageLanes));
  for (std::int64_t k = 0; k < s.in; ++k) {
    for (std::int64_t phase = 0; phase < s.phases(); ++phase) {
      for (std::int64_t h = 0; h < planes.rows; ++h) {
        for (std::int64_t w = 0; w < planes.row; ++w) {
          const std::int64_t ih = h * s.stride[0] + phase / s.stride[1] - s.padding[0],
                             iw = w * s.stride[1] + phase % s.stride[1] - s.padding[1];
          alone_x.push_back(x.inside(ih, iw) ? *x.at(k, ih, iw) : T(0));
        }
      }
    }
  }
  alone_x.insert(alone_x.end(), kImageLanes, T(0));
  for (const auto& [begin, end] : {std::pair{std::int64_t{0}, planes.blocks / 2}, {planes.blocks / 2, planes.blocks}}) {
    kernels.forward_alone(weight.forward, alone_offset.data(), forward_values.data(), bias.data(), begin, end,
                          planes.blocks * kImageLanes, alone_x.data(), alone_y.data());
  }

  std::vector<T> dvalues_alone(values.size());
  {
    for (std::int64_t phase = 0; phase < s.phases(); ++phase) {
      const std::int64_t ph = phase / s.stride[1], pw = phase % s.stride[1];
      kernels.backward(weight.backward, phase, offsets.backward.data(), values.data(), s.stride,
                       {x.planes, y.planes, (c.width - pw + s.stride[1] - 1) / s.stride[1], 0,
                        (c.height - ph + s.stride[0] - 1) / s.stride[0], patch_rows},
                       x.at(0, ph, pw), dy.at(0, 0, 0), nullptr, false, dvalues_alone.data());
    }
  }

  // f(entry, o, c, y, x of the output, y, x of the input) for each product
  Images<double> y_sum(s.out, oh, ow, 0), y_size(s.out, oh, ow, 0), dx_sum(s.in, c.height, c.width, 0),
      dx_size(s.in, c.height, c.width, 0);
  std::vector<double> dw_sum(values.size()), dw_size(values.size());
  for (std::size_t e = 0; e < positions.size(); ++e) {
    const std::int64_t p = positions[e], o = p / s.columns(), tap = p % s.taps();
    const std::int64_t channel = o / (s.out / s.groups) * (s.in / s.groups) + p % s.columns() / s.taps();
    const double w = values[place[e]];
    for (std::int64_t h = 0; h < oh; ++h) {
      for (std::int64_t v = 0; v < ow; ++v) {
        const std::int64_t ih = h * s.stride[0] + tap / s.kernel[1] * s.dilation[0] - s.padding[0],
                           iw = v * s.stride[1] + tap % s.kernel[1] * s.dilation[1] - s.padding[1];
        if (!x.inside(ih, iw)) continue;
        for (std::int64_t i = 0; i < kImageLanes; ++i) {
          const double a = x.at(channel, ih, iw)[i], g = dy.at(o, h, v)[i];
          y_sum.at(o, h, v)[i] += w * a;
          y_size.at(o, h, v)[i] += std::abs(w * a);
          dx_sum.at(channel, ih, iw)[i] += w * g;
          dx_size.at(channel, ih, iw)[i] += std::abs(w * g);
          dw_sum[place[e]] += a * g;
          dw_size[place[e]] += std::abs(a * g);
        }
      }
    }
  }
  const std::int64_t most = std::max(s.columns(), s.out * s.taps()) + 2;
  const auto expect_near = [&](double found, double expected, double size, std::int64_t n) {
    const double bound = whole_numbers ? 0 : gamma_of<T>(n) * size;
    // The reference's own error is 2^-53 for double: as much again for its sums.
    EXPECT_LE(std::abs(found - expected), sizeof(T) == 8 ? 2 * bound : bound * (1 + 1e-6));
  };
  bool good = true;
  y_sum.each([&](auto o, auto h, auto w, auto i) {
    if (!good) return;
    const double b = bias[static_cast<std::size_t>(o)];
    expect_near(y.at(o, h, w)[i], y_sum.at(o, h, w)[i] + b, y_size.at(o, h, w)[i] + std::abs(b), most);
    if (i == 0) {
      const auto at = static_cast<std::size_t>(o * planes.blocks * kImageLanes + h * planes.row + w);
      expect_near(alone_y[at], y_sum.at(o, h, w)[i] + b, y_size.at(o, h, w)[i] + std::abs(b), most);
    }
    good = !::testing::Test::HasFailure();
  });
  dx_sum.each([&](auto k, auto h, auto w, auto i) {
    if (!good) return;
    expect_near(dx.at(k, h, w)[i], dx_before + dx_sum.at(k, h, w)[i], dx_size.at(k, h, w)[i], most);
    good = !::testing::Test::HasFailure();
  });
  for (std::size_t k = 0; k < values.size() && good; ++k) {
    expect_near(dvalues[k], dw_sum[k] + 2, dw_size[k] + 2, oh * ow * kImageLanes + 2);
    expect_near(dvalues_alone[k], dw_sum[k], dw_size[k], oh * ow * kImageLanes + 2);
    good = !::testing::Test::HasFailure();
  }
  // Nothing outside the image was written.
  double outside = 0;
  for (Images<T>* images : {&y, &dx}) {
    for (std::int64_t k = 0; k < images->c; ++k)
      for (std::int64_t h = -12; h < images->h + 12; ++h)
        for (std::int64_t w = -12; w < images->w + 12; ++w)
          for (std::int64_t i = 0; i < kImageLanes; ++i)
            if (!images->inside(h, w)) outside = std::max(outside, std::abs(double(images->at(k, h, w)[i])));
  }
  EXPECT_EQ(outside, 0);
}

constexpr std::int64_t kPatchRows[] = {0, 2, 100};  // single rectangles (backward: a row); several patches; one

TEST(SparseConv, IsWithinTheRoundingBound) {
  for (const Table* table : runnable()) {
    for (const Case& c : cases()) {
      for (const std::int64_t patch_rows : kPatchRows) {
        check<float>(*table, c, patch_rows, false);
        check<double>(*table, c, patch_rows, false);
        if (HasFailure()) return;
      }
    }
  }
}

TEST(SparseConv, IsExactForSmallWholeNumbers) {
  for (const Table* table : runnable()) {
    for (const Case& c : cases()) {
      for (const std::int64_t patch_rows : kPatchRows) {
        check<float>(*table, c, patch_rows, true);
        check<double>(*table, c, patch_rows, true);
        if (HasFailure()) return;
      }
    }
  }
}

TEST(SparseConv, CompressionFindsEveryPositionAgain) {
  for (const Case& c : cases()) {
    const auto positions = draw_positions(c);
    kernels::EntryIndices place, place2;
    for (const int threads : {1, 3}) {
      const Compressed weight =
          compress(c.shape, positions.data(), static_cast<std::int64_t>(positions.size()), place, threads);
      auto sorted = place;
      std::sort(sorted.begin(), sorted.end());
      for (std::size_t k = 0; k < sorted.size(); ++k) ASSERT_EQ(sorted[k], k);  // each place once
      std::vector<std::int64_t> found;
      row_major(weight, found, place2, threads);
      EXPECT_EQ(found, positions);
      EXPECT_EQ(place2, place);
    }
  }
}

TEST(SparseConv, SumsALongRowInAFixedOrder) {
  std::vector<float> ones(65536 + 16, 1), halves(160, 0.5F);
  for (const Table* table : runnable()) {
    EXPECT_EQ(table->sparse_conv<float>().sum_of(ones.data(), 65552), 65552);
    EXPECT_EQ(table->sparse_conv<float>().sum_of(halves.data(), 160), 80);
    EXPECT_EQ(table->sparse_conv<float>().sum_of(ones.data(), 0), 0);
  }
}

}  // namespace
}  // namespace espalier::kernels
