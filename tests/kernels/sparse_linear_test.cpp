// Compressed products against plain loops in double precision, for every instruction set of this CPU.
#include "espalier/kernels/sparse_linear.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "espalier/core/random.h"
#include "espalier/kernels/dispatch.h"
#include "kernels/runnable.h"
#include "kernels/tables.h"

namespace espalier::kernels {
namespace {

struct Shape {
  std::int64_t rows, columns;
  double density;
};
// Odd sizes, several blocks and chunks on both sides, each kind of blocking; empty and full.
const Shape kShapes[] = {
    {1, 1, 1},       {3, 2, 0},        {1, 300, 0.5},    {300, 1, 0.5},    {17, 33, 1},
    {70, 129, 0.3},  {300, 784, 0.06}, {784, 300, 0.2},  {700, 600, 0.01}, {1030, 70, 0.09},
    {4200, 33, 0.3}, {2500, 70, 0.05}, {4500, 60, 0.012}};  // the last four: several blocks backward

std::vector<std::int64_t> draw_positions(const Shape& s) {
  const auto n = s.rows * s.columns;
  std::vector<std::int64_t> positions =
      random_subset(n, std::llround(s.density * static_cast<double>(n)), RandomStream(7, Purpose::test));
  // A row and a column that are empty, columns without entries in the last tenth of the rows, so in the last block, and
  // (in sparse ones) a row that is full: uneven on purpose.
  if (s.density < 1 && s.rows > 10 && s.columns > 10) {
    positions.erase(std::remove_if(positions.begin(), positions.end(),
                                   [&](std::int64_t p) {
                                     const std::int64_t row = p / s.columns, column = p % s.columns;
                                     return row == 5 || column == 3 ||
                                            (10 * row >= 9 * s.rows && 2 * column >= s.columns);
                                   }),
                    positions.end());
    for (std::int64_t c = 0; c < s.columns; ++c)
      if (c != 3) positions.push_back(7 * s.columns + c);
    std::sort(positions.begin(), positions.end());
    positions.erase(std::unique(positions.begin(), positions.end()), positions.end());
  }
  return positions;
}

TEST(Compress, FindsEveryPositionAgain) {
  for (const Shape& s : kShapes) {
    const auto positions = draw_positions(s);
    const auto nnz = static_cast<std::int64_t>(positions.size());
    kernels::EntryIndices place;
    const Compressed m = compress(s.rows, s.columns, positions.data(), nnz, place, 1);
    ASSERT_EQ(m.nnz(), nnz);
    auto sorted = place;
    std::sort(sorted.begin(), sorted.end());
    for (std::int64_t k = 0; k < nnz; ++k) ASSERT_EQ(sorted[static_cast<std::size_t>(k)], k);  // each place once
    std::vector<std::int64_t> positions2;
    kernels::EntryIndices place2;
    row_major(m, positions2, place2, 1);
    EXPECT_EQ(positions2, positions);
    EXPECT_EQ(place2, place);
    RowMajorList list;
    row_major(m, &list, nullptr, 3);
    kernels::EntryIndices place3;
    row_major(m, nullptr, &place3, 2);
    EXPECT_EQ(place3, place);
    const RowMajorList expected = list_of(s.rows, s.columns, positions.data(), nnz, 2);
    EXPECT_EQ(list.start, expected.start);
    EXPECT_EQ(list.column, expected.column);
    // The backward side holds the same entries, each where `place` says.
    std::vector<std::int64_t> by_place(positions.size(), -1);
    const CompressedSide& b = m.backward;
    for (std::int64_t block = 0; block < b.blocks(); ++block) {
      for (std::int64_t chunk = 0; chunk < b.chunks(); ++chunk) {
        const auto* seg = b.segment(block, chunk);
        std::uint32_t line = seg->line, entry = seg->entry;
        for (std::uint32_t r = seg->run; r < seg[1].run; ++r) {
          for (std::uint32_t i = 0; i < b.runs[r].lines; ++i, ++line) {
            for (std::uint32_t k = 0; k < b.runs[r].entries; ++k, ++entry) {
              by_place[entry] =
                  (block * b.block + b.inner_index[entry]) * s.columns + chunk * b.chunk + b.outer_index[line];
            }
          }
        }
        EXPECT_EQ(line, seg[1].line);
        EXPECT_EQ(entry, seg[1].entry);
      }
    }
    for (std::size_t i = 0; i < positions.size(); ++i) ASSERT_EQ(by_place[place[i]], positions[i]);
  }
}

TEST(Compress, TilesOfABlockLeaveRoomInL2WhereLinesAreLong) {
  const std::int64_t tile = kTileLanes * sizeof(float), tiles = active().backward_tiles * tile;
  const std::int64_t columns = l2_bytes() / 2 / tile, rows = l2_bytes() / 2 / tiles;  // whose tiles fill half of it
  constexpr std::int64_t kInner = 60000, kOuter = 16;
  const auto compressed = [](std::int64_t r, std::int64_t c, double density) {
    const auto positions =
        random_subset(r * c, std::llround(density * static_cast<double>(r * c)), RandomStream(7, Purpose::test));
    EntryIndices place;
    return compress(r, c, positions.data(), static_cast<std::int64_t>(positions.size()), place, 1);
  };
  const auto forward = [&](double entries) {  // of a line in half of L2
    return compressed(kOuter, kInner, entries / static_cast<double>(columns)).forward;
  };
  const auto backward = [&](double entries) {
    return compressed(kInner, kOuter, entries / static_cast<double>(rows)).backward;
  };
  EXPECT_LE(forward(20).block, columns);
  EXPECT_EQ(forward(2).blocks(), 1);
  EXPECT_LE(backward(20).block, rows);
  EXPECT_FALSE(backward(20).tile_by_tile);
  EXPECT_GT(backward(3).block, rows);  // with few entries a line up to all of L2, or half of it one tile at a time
  EXPECT_LE(backward(3).block * (backward(3).tile_by_tile ? tile : tiles), l2_bytes());
  EXPECT_EQ(backward(3).tile_by_tile, active().backward_tiles > 1);
  EXPECT_FALSE(compressed(rows, kOuter, 3.0 / static_cast<double>(rows)).backward.tile_by_tile);
  const std::int64_t many = 5 * columns;  // whole, as lines are so short, and too many for L2 even one tile at a time
  EXPECT_FALSE(compressed(many, kOuter, 10.0 / static_cast<double>(many)).backward.tile_by_tile);
  EXPECT_EQ(backward(1).blocks(), 1);
}

TEST(Compress, AnyNumberOfThreadsGivesTheSame) {
  for (const Shape& s : kShapes) {
    const auto positions = draw_positions(s);
    const auto nnz = static_cast<std::int64_t>(positions.size());
    kernels::EntryIndices place1, place3;
    const Compressed one = compress(s.rows, s.columns, positions.data(), nnz, place1, 1);
    const Compressed three = compress(s.rows, s.columns, positions.data(), nnz, place3, 3);
    EXPECT_EQ(place1, place3);
    EXPECT_EQ(one.canonical, three.canonical);
    EXPECT_EQ(one.forward.inner_index, three.forward.inner_index);
    EXPECT_EQ(one.forward.outer_index, three.forward.outer_index);
    EXPECT_EQ(one.backward.inner_index, three.backward.inner_index);
    EXPECT_EQ(one.backward.outer_index, three.backward.outer_index);
  }
}

template <class T>
void expect_forward_order(const Compressed& m) {
  const auto nnz = m.nnz();
  std::vector<T> values(static_cast<std::size_t>(nnz));
  for (std::size_t k = 0; k < values.size(); ++k) values[k] = static_cast<T>(k + 1);  // each its own number
  // All at once, and cut where segments, groups of 16 and 4 entries are not.
  for (const std::int64_t piece : {nnz, std::max<std::int64_t>(1, nnz / 3), std::int64_t{37}}) {
    std::vector<T> forward(values.size() + 1, -7);
    for (std::int64_t begin = 0; begin < nnz; begin += piece) {
      const std::int64_t end = std::min(nnz, begin + piece);
      in_forward_order(m, values.data(), forward.data(), begin, end);
      ASSERT_EQ(forward[static_cast<std::size_t>(end)], -7) << "written behind the end of " << begin << ", " << end;
    }
    each_entry(m, [&](std::int64_t, std::int64_t, std::uint32_t k) {
      ASSERT_EQ(forward[k], values[m.canonical[k]]) << k << " of " << nnz << ", pieces of " << piece;
    });
  }
}

/// Values of `together` chunks of a block at a time are those of forward order, whatever is asked for.
template <class T>
void expect_taken(const Compressed& m, std::int64_t together) {
  const CompressedSide& side = m.forward;
  std::vector<T> values(static_cast<std::size_t>(m.nnz()));
  for (std::size_t k = 0; k < values.size(); ++k) values[k] = static_cast<T>(k + 1);
  const std::int64_t last_segment = side.blocks() * side.chunks() - 1;
  for (std::int64_t b = 0; b < side.blocks(); ++b) {
    for (std::int64_t c = 0; c < side.chunks(); c += together) {
      const std::int64_t begin = side.segment(b, c)->entry,
                         last = b * side.chunks() + std::min(c + together, side.chunks()) - 1,
                         end = side.segments[static_cast<std::size_t>(last + 1)].entry;
      for (const bool first : {false, true}) {
        std::vector<T> taken(static_cast<std::size_t>(end - begin) + 1, -7);
        take_values(m, values.data(), taken.data(), begin, end, last < last_segment ? last + 1 : -1, first);
        for (std::int64_t j = begin; j < end; ++j) {
          ASSERT_EQ(taken[static_cast<std::size_t>(j - begin)], values[m.canonical[static_cast<std::size_t>(j)]])
              << j << " of block " << b << ", chunk " << c;
        }
        ASSERT_EQ(taken.back(), -7) << "written behind the end of block " << b << ", chunk " << c;
      }
    }
  }
}

/// place[i]: canonical, of entry i row by row.
template <class T>
void expect_row_order(const Compressed& m, const EntryIndices& place) {
  std::vector<T> forward(place.size()), expected(place.size());
  for (std::size_t k = 0; k < place.size(); ++k) {
    forward[k] = static_cast<T>(m.canonical[k] + 1);
    expected[k] = static_cast<T>(place[k] + 1);
  }
  for (const int threads : {1, 2, 3}) {
    std::vector<T> rows(place.size(), -7);
    in_row_order(m, forward.data(), rows.data(), threads);
    ASSERT_EQ(rows, expected) << threads;
  }
}

TEST(Compress, ValuesComeInForwardAndInRowOrder) {
  std::vector<Shape> shapes(std::begin(kShapes), std::end(kShapes));
  shapes.push_back({6000, 40, 0.04});  // chunks that span several blocks of the backward side, or lie within one
  shapes.push_back({2300, 2300, 0.02});
  for (const Shape& s : shapes) {
    const auto positions = draw_positions(s);
    EntryIndices place;
    const Compressed m =
        compress(s.rows, s.columns, positions.data(), static_cast<std::int64_t>(positions.size()), place, 2);
    expect_forward_order<float>(m);
    expect_forward_order<double>(m);
    for (const std::int64_t together : {1, 3}) {
      expect_taken<float>(m, together);
      expect_taken<double>(m, together);
    }
    expect_row_order<float>(m, place);
    expect_row_order<double>(m, place);
    if (HasFailure()) return;
  }
  const ConvShape shapes_of_images[] = {{40, 24, {3, 3}, {2, 2}, {1, 1}}, {48, 32, {1, 1}}, {48, 32, {1, 1}, {2, 2}}};
  for (const ConvShape& s : shapes_of_images) {
    const auto positions = draw_positions({s.out, s.columns(), 0.3});
    EntryIndices place;
    const Compressed m = compress(s, positions.data(), static_cast<std::int64_t>(positions.size()), place, 2);
    expect_forward_order<float>(m);
    expect_taken<float>(m, 1);
    expect_row_order<float>(m, place);
    if (HasFailure()) return;
  }
}

/// A weight with its positions, a batch of one tile and the gradient of its product.
template <class T>
struct Problem {
  Problem(const Shape& shape, int lane_count, bool integers) : s(shape), lanes(lane_count) {
    positions = draw_positions(s);
    matrix = compress(s.rows, s.columns, positions.data(), static_cast<std::int64_t>(positions.size()), place, 2);
    RandomStream random(11, Purpose::test);
    const auto fill = [&](std::vector<T>& v, std::size_t n) {
      v.resize(n);
      for (T& entry : v)
        entry = integers ? static_cast<T>(static_cast<int>(random.below(7)) - 3) : static_cast<T>(random.normal());
    };
    fill(values, positions.size());
    fill(bias, static_cast<std::size_t>(s.rows));
    fill(x, static_cast<std::size_t>(s.columns * lanes));
    fill(dy, static_cast<std::size_t>(s.rows * lanes));
    forward_values.resize(values.size());
    for (std::size_t k = 0; k < values.size(); ++k) forward_values[k] = values[matrix.canonical[k]];
    y.assign(static_cast<std::size_t>(s.rows * lanes), T(99));
    dx.assign(static_cast<std::size_t>(s.columns * lanes), T(99));
    dvalues.assign(values.size(), T(99));
  }

  SidePart whole() const { return {0, matrix.forward.blocks(), 0, matrix.forward.chunks()}; }

  void run(const Table& table) {
    const auto& k = table.sparse_linear<T>();
    k.forward(matrix.forward, whole(), forward_values.data(), bias.data(), x.data(), y.data(), false, lanes);
    k.backward(matrix.backward, values.data(), x.data(), dy.data(), dx.data(), dvalues.data(), false, false, 1, lanes,
               0, matrix.backward.chunks());
  }

  /// For each result: what it is in exact arithmetic (to double), and the bound on any order of summation in T:
  /// gamma_n sum |terms|, n operations (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1).
  template <class Check>
  void compare(const Check& check) const {
    const auto at = [&](const std::vector<T>& v, std::int64_t i, int lane) {
      return static_cast<double>(v[static_cast<std::size_t>(i * lanes + lane)]);
    };
    std::vector<double> sum_y(y.size()), abs_y(y.size()), sum_dx(dx.size()), abs_dx(dx.size());
    std::vector<int> terms_y(static_cast<std::size_t>(s.rows), 1), terms_dx(static_cast<std::size_t>(s.columns), 0);
    for (std::int64_t r = 0; r < s.rows; ++r) {
      for (int lane = 0; lane < lanes; ++lane) {
        const auto i = static_cast<std::size_t>(r * lanes + lane);
        sum_y[i] = static_cast<double>(bias[static_cast<std::size_t>(r)]);
        abs_y[i] = std::abs(sum_y[i]);
      }
    }
    for (std::size_t p = 0; p < positions.size(); ++p) {
      const std::int64_t r = positions[p] / s.columns, c = positions[p] % s.columns;
      const double w = static_cast<double>(values[place[p]]);
      ++terms_y[static_cast<std::size_t>(r)];
      ++terms_dx[static_cast<std::size_t>(c)];
      double dw = 0, abs_dw = 0;
      for (int lane = 0; lane < lanes; ++lane) {
        const auto iy = static_cast<std::size_t>(r * lanes + lane), ix = static_cast<std::size_t>(c * lanes + lane);
        sum_y[iy] += w * at(x, c, lane);
        abs_y[iy] += std::abs(w * at(x, c, lane));
        sum_dx[ix] += w * at(dy, r, lane);
        abs_dx[ix] += std::abs(w * at(dy, r, lane));
        dw += at(x, c, lane) * at(dy, r, lane);
        abs_dw += std::abs(at(x, c, lane) * at(dy, r, lane));
      }
      check("dw", static_cast<double>(dvalues[place[p]]), dw, abs_dw, lanes);
    }
    for (std::size_t i = 0; i < y.size(); ++i)
      check("y", static_cast<double>(y[i]), sum_y[i], abs_y[i], terms_y[i / static_cast<std::size_t>(lanes)]);
    for (std::size_t i = 0; i < dx.size(); ++i)
      check("dx", static_cast<double>(dx[i]), sum_dx[i], abs_dx[i], terms_dx[i / static_cast<std::size_t>(lanes)]);
  }

  Shape s;
  int lanes;
  std::vector<std::int64_t> positions;
  kernels::EntryIndices place;
  Compressed matrix;
  std::vector<T> values, forward_values, bias, x, dy, y, dx, dvalues;
};

template <class T>
class SparseLinear : public testing::Test {};
using Types = testing::Types<float, double>;
TYPED_TEST_SUITE(SparseLinear, Types);

TYPED_TEST(SparseLinear, SmallIntegersAreExact) {
  for (const Table* table : runnable()) {
    for (const Shape& s : kShapes) {
      for (const int lanes : {16, 32, 48, 64}) {
        Problem<TypeParam> p(s, lanes, true);
        p.run(*table);
        p.compare([&](const char* what, double found, double expected, double, int) {
          ASSERT_EQ(found, expected) << what << " " << table->isa << " " << s.rows << "x" << s.columns << " lanes "
                                     << lanes;
        });
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

TYPED_TEST(SparseLinear, StaysWithinTheBoundOfASum) {
  const double u = static_cast<double>(std::numeric_limits<TypeParam>::epsilon()) / 2;
  for (const Table* table : runnable()) {
    for (const Shape& s : kShapes) {
      Problem<TypeParam> p(s, 48, false);
      p.run(*table);
      double largest = 0;
      p.compare([&](const char* what, double found, double expected, double absolute, int n) {
        // the reference is rounded too: the same bound with double's u
        const double gamma = n * u / (1 - n * u) + n * 0x1p-53;
        largest = std::max(largest, std::abs(found));
        ASSERT_LE(std::abs(found - expected), gamma * absolute)
            << what << " " << table->isa << " " << s.rows << "x" << s.columns;
      });
      if (testing::Test::HasFatalFailure()) return;
      if (s.density > 0) {  // there was something to compare
        EXPECT_GT(largest, 0.01);
      }
    }
  }
}

TYPED_TEST(SparseLinear, AnySplitIntoChunksGivesTheSameBits) {
  for (const Table* table : runnable()) {
    const auto& k = table->sparse_linear<TypeParam>();
    for (const Shape& s : kShapes) {
      Problem<TypeParam> whole(s, 64, false), split(s, 64, false);
      whole.run(*table);
      const auto& f = split.matrix.forward;
      const auto& b = split.matrix.backward;
      for (std::int64_t c = f.chunks(); c-- > 0;) {
        k.forward(f, {0, f.blocks(), c, c + 1}, split.forward_values.data() + f.segment(0, c)->entry, split.bias.data(),
                  split.x.data(), split.y.data(), false, 64);
      }
      for (std::int64_t c = b.chunks(); c-- > 0;) {
        k.backward(b, split.values.data(), split.x.data(), split.dy.data(), split.dx.data(), split.dvalues.data(),
                   false, false, 1, 64, c, c + 1);
      }
      EXPECT_EQ(whole.y, split.y);
      EXPECT_EQ(whole.dx, split.dx);
      EXPECT_EQ(whole.dvalues, split.dvalues);
    }
  }
}

TYPED_TEST(SparseLinear, AddsToTheGradientOfEarlierTilesAndNeedsNoInputGradient) {
  for (const Table* table : runnable()) {
    const auto& k = table->sparse_linear<TypeParam>();
    Problem<TypeParam> p({70, 129, 0.3}, 32, true);
    p.run(*table);
    auto doubled = p.dvalues;
    k.backward(p.matrix.backward, nullptr, p.x.data(), p.dy.data(), nullptr, doubled.data(), true, false, 1, 32, 0,
               p.matrix.backward.chunks());
    for (std::size_t i = 0; i < doubled.size(); ++i) EXPECT_EQ(doubled[i], 2 * p.dvalues[i]);
  }
}

/// A kernel may take tiles together; the input gradient has the bits of one after the other, and that of the values is
/// the sum over all samples, within the bound of any order of summation.
TYPED_TEST(SparseLinear, TakesSeveralTilesAtOnce) {
  using T = TypeParam;
  const double u = std::is_same_v<T, float> ? 0x1p-24 : 0x1p-53;
  for (const Table* table : runnable()) {
    const auto& k = table->sparse_linear<T>();
    for (const int lanes : {48, 64}) {
      for (const int tiles : {2, 3, 4, 5}) {
        Problem<T> p({70, 129, 0.3}, lanes, false);
        const auto rows = static_cast<std::size_t>(tiles * 70 * lanes),
                   columns = static_cast<std::size_t>(tiles * 129 * lanes);
        std::vector<T> x(columns), dy(rows), dx(columns, T(99)), one_by_one(columns, T(99));
        for (std::size_t i = 0; i < columns; ++i) x[i] = static_cast<T>(std::sin(0.7 * static_cast<double>(i)));
        for (std::size_t i = 0; i < rows; ++i) dy[i] = static_cast<T>(std::cos(0.3 * static_cast<double>(i)));
        const auto& b = p.matrix.backward;
        const auto tile = [&](std::vector<T>& v, int t) {
          return v.data() + v.size() / static_cast<std::size_t>(tiles) * static_cast<std::size_t>(t);
        };
        std::vector<T> unused(p.dvalues.size());
        for (int t = 0; t < tiles; ++t)
          k.backward(b, p.values.data(), tile(x, t), tile(dy, t), tile(one_by_one, t), unused.data(), false, false, 1,
                     lanes, 0, b.chunks());
        k.backward(b, p.values.data(), x.data(), dy.data(), dx.data(), p.dvalues.data(), false, false, tiles, lanes, 0,
                   b.chunks());
        EXPECT_EQ(dx, one_by_one) << table->isa << " " << lanes << "x" << tiles;
        const double n = tiles * lanes, gamma = n * u / (1 - n * u) + n * 0x1p-53;
        each_entry(p.matrix, [&](std::int64_t row, std::int64_t column, std::uint32_t entry) {
          double sum = 0, absolute = 0;
          for (int t = 0; t < tiles; ++t) {
            for (int s = 0; s < lanes; ++s) {
              const double product = static_cast<double>(tile(dy, t)[row * lanes + s]) *
                                     static_cast<double>(tile(x, t)[column * lanes + s]);
              sum += product;
              absolute += std::abs(product);
            }
          }
          const double found = static_cast<double>(p.dvalues[p.matrix.canonical[entry]]);
          ASSERT_LE(std::abs(found - sum), gamma * absolute)
              << table->isa << " " << lanes << "x" << tiles << " at " << row << ", " << column;
        });
      }
    }
  }
}

TYPED_TEST(SparseLinear, ReluIsThatOfTheProductAndItsGradient) {
  using T = TypeParam;
  for (const Table* table : runnable()) {
    const auto& k = table->sparse_linear<T>();
    for (const Shape& s : kShapes) {
      for (const int lanes : {16, 48, 64}) {
        Problem<T> p(s, lanes, false);
        p.x[0] = std::numeric_limits<T>::quiet_NaN();
        p.run(*table);
        std::vector<T> y(p.y.size(), T(99));
        k.forward(p.matrix.forward, p.whole(), p.forward_values.data(), p.bias.data(), p.x.data(), y.data(), true,
                  lanes);
        for (std::size_t i = 0; i < y.size(); ++i) {
          if (std::isnan(p.y[i]))
            ASSERT_TRUE(std::isnan(y[i])) << table->isa;
          else
            ASSERT_EQ(y[i], std::max(p.y[i], T(0))) << table->isa << " " << s.rows << "x" << s.columns;
        }
        const std::int64_t cut = s.rows / 3;
        std::vector<T> expected = p.dy, sums(static_cast<std::size_t>(s.rows), T(1)), expected_sums = sums;
        for (std::size_t i = 0; i < y.size(); ++i)
          if (!(y[i] > T(0))) expected[i] = 0;
        k.row_sums(expected.data(), expected_sums.data(), true, lanes, 0, s.rows);
        std::vector<T> dz(p.dy.size(), T(99)), over = p.dy;
        k.relu_gradient(y.data(), p.dy.data(), dz.data(), nullptr, false, lanes, 0, s.rows);
        k.relu_gradient(y.data(), over.data(), over.data(), sums.data(), true, lanes, 0, cut);
        k.relu_gradient(y.data(), over.data(), over.data(), sums.data(), true, lanes, cut, s.rows);
        ASSERT_EQ(dz, expected);
        ASSERT_EQ(over, expected);
        ASSERT_EQ(sums, expected_sums);
      }
    }
  }
}

/// Where x is max(0, z), the gradient of z is that of x where x is positive; that of the values stays what it is.
TYPED_TEST(SparseLinear, FormsTheGradientBeforeARelu) {
  using T = TypeParam;
  for (const Table* table : runnable()) {
    const auto& k = table->sparse_linear<T>();
    for (const Shape& s : kShapes) {
      for (const int lanes : {32, 64}) {
        for (const int tiles : {1, 2, 3}) {
          Problem<T> p(s, lanes, false);
          const auto n = static_cast<std::size_t>(tiles);
          std::vector<T> x(p.x.size() * n), dy(p.dy.size() * n), dx(x.size(), T(99)), dz(x.size(), T(99));
          for (std::size_t i = 0; i < x.size(); ++i)
            x[i] = static_cast<T>(std::max(0.0, std::sin(0.7 * static_cast<double>(i))));
          for (std::size_t i = 0; i < dy.size(); ++i) dy[i] = static_cast<T>(std::cos(0.3 * static_cast<double>(i)));
          auto dvalues = p.dvalues;
          const auto& b = p.matrix.backward;
          k.backward(b, p.values.data(), x.data(), dy.data(), dx.data(), p.dvalues.data(), false, false, tiles, lanes,
                     0, b.chunks());
          k.backward(b, p.values.data(), x.data(), dy.data(), dz.data(), dvalues.data(), false, true, tiles, lanes, 0,
                     b.chunks());
          for (std::size_t i = 0; i < x.size(); ++i) {
            if (!(x[i] > T(0))) dx[i] = 0;
          }
          ASSERT_EQ(dz, dx) << table->isa << " " << s.rows << "x" << s.columns;
          ASSERT_EQ(dvalues, p.dvalues);
        }
      }
    }
  }
}

TYPED_TEST(SparseLinear, SumsRows) {
  for (const Table* table : runnable()) {
    Problem<TypeParam> p({70, 129, 0.3}, 48, true);
    std::vector<TypeParam> sums(70, 1);
    table->sparse_linear<TypeParam>().row_sums(p.dy.data(), sums.data(), false, 48, 0, 33);
    table->sparse_linear<TypeParam>().row_sums(p.dy.data(), sums.data(), true, 48, 33, 70);
    for (std::size_t r = 0; r < 70; ++r) {
      TypeParam expected = r < 33 ? 0 : 1;
      for (std::size_t l = 0; l < 48; ++l) expected += p.dy[r * 48 + l];
      EXPECT_EQ(sums[r], expected);
    }
  }
}

TYPED_TEST(SparseLinear, TilesThereAndBack) {
  for (const Table* table : runnable()) {
    const auto& k = table->sparse_linear<TypeParam>();
    for (const std::int64_t features : {1, 5, 16, 37, 64}) {
      for (const int samples : {1, 15, 16, 33, 64}) {
        const int lanes = (samples + 15) / 16 * 16;
        const std::int64_t stride = features + 3;
        std::vector<TypeParam> rows(static_cast<std::size_t>(stride * samples));
        std::iota(rows.begin(), rows.end(), TypeParam(1));
        std::vector<TypeParam> tile(static_cast<std::size_t>(features * lanes), 99);
        k.to_tile(rows.data(), stride, samples, tile.data(), lanes, 0, features / 2);
        k.to_tile(rows.data(), stride, samples, tile.data(), lanes, features / 2, features);
        for (std::int64_t f = 0; f < features; ++f) {
          for (int l = 0; l < lanes; ++l) {
            ASSERT_EQ(tile[static_cast<std::size_t>(f * lanes + l)],
                      l < samples ? rows[static_cast<std::size_t>(l * stride + f)] : 0)
                << table->isa;
          }
        }
        std::vector<TypeParam> back(rows.size(), -1);
        k.from_tile(tile.data(), lanes, back.data(), stride, samples, 0, features);
        for (int l = 0; l < samples; ++l) {
          for (std::int64_t f = 0; f < stride; ++f) {
            const auto i = static_cast<std::size_t>(l * stride + f);
            ASSERT_EQ(back[i], f < features ? rows[i] : -1) << table->isa;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace espalier::kernels
