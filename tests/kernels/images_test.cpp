// Kernels on planes of images and batch norm against plain loops, for every instruction set of this CPU. Entries are
// small whole numbers where results are compared exactly.
#include "espalier/kernels/images.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "espalier/core/random.h"
#include "espalier/kernels/batch_norm.h"
#include "kernels/runnable.h"

namespace espalier::kernels {
namespace {

const ImagePlane kPlanes[] = {{1, 1, 0}, {5, 3, 1}, {4, 4, 2}, {8, 16, 0}, {7, 17, 1}, {3, 1, 2}};

std::size_t entries(const ImagePlane& p) { return static_cast<std::size_t>(p.pixels() * kImageLanes); }
std::size_t place(const ImagePlane& p, std::int64_t y, std::int64_t x, std::int64_t image) {
  return static_cast<std::size_t>(((y + p.halo) * (p.width + p.halo) + x + p.halo) * kImageLanes + image);
}

template <class T>
T whole_number(const RandomStream& stream, std::size_t i) {
  return static_cast<T>(static_cast<int>(stream.bits_at(i) % 9) - 4);
}

/// A plane of whole numbers with its halo of zeros.
template <class T>
std::vector<T> drawn(const ImagePlane& p, std::uint64_t seed) {
  const RandomStream stream(seed, Purpose::test);
  std::vector<T> plane(entries(p));
  for (std::int64_t y = 0; y < p.height; ++y)
    for (std::int64_t x = 0; x < p.width; ++x)
      for (int i = 0; i < kImageLanes; ++i) plane[place(p, y, x, i)] = whole_number<T>(stream, place(p, y, x, i));
  return plane;
}

/// Something that a kernel must write over: not even equal to itself.
template <class T>
std::vector<T> unwritten(const ImagePlane& p) {
  return std::vector<T>(entries(p), std::numeric_limits<T>::quiet_NaN());
}

/// f(kernels, T{}) for every instruction set and both types.
template <class F>
void everywhere(const F& f) {
  for (const Table* t : runnable()) {
    SCOPED_TRACE(t->isa);
    f(*t, float{});
    f(*t, double{});
  }
}

TEST(ImagePlanes, ShareTheirHalosAndStandAnOddMultipleOfFourPixelsApart) {
  const auto pixels = [](std::int64_t height, std::int64_t width, std::int64_t halo) {
    return ImagePlane{height, width, halo}.pixels();
  };
  EXPECT_EQ(pixels(32, 32, 1), 1092);  // 33 rows of 33 pixels are 1089
  EXPECT_EQ(pixels(8, 8, 1), 84);      // 81
  EXPECT_EQ(pixels(32, 32, 0), 1028);  // 1024
  EXPECT_EQ(pixels(3, 5, 2), 36);      // 5 rows of 7 are 35
  EXPECT_EQ(pixels(6, 6, 0), 36);      // 36
  EXPECT_EQ(pixels(2, 2, 1), 9);       // the smallest as they are
  EXPECT_EQ(pixels(1, 1, 0), 1);
  // Row 0 begins behind a row of halo and a pixel of it; so much stands below the last plane as well.
  EXPECT_EQ((ImagePlane{8, 6, 2}.first()), 18);
  EXPECT_EQ((ImagePlane{8, 6, 2}.halo_below()), 18);
}

TEST(ImagePlanes, AreTransposedToAndFro) {
  everywhere([](const Table& t, auto zero) {
    using T = decltype(zero);
    for (const ImagePlane& p : kPlanes) {
      for (const int images : {1, 5, 16}) {
        const std::int64_t area = p.height * p.width, stride = area + 3;
        const RandomStream stream(3, Purpose::test);
        std::vector<T> batch(static_cast<std::size_t>(images * stride));
        for (std::size_t i = 0; i < batch.size(); ++i) batch[i] = whole_number<T>(stream, i);
        std::vector<T> expected(entries(p));
        for (int n = 0; n < images; ++n)
          for (std::int64_t i = 0; i < area; ++i)
            expected[place(p, i / p.width, i % p.width, n)] = batch[static_cast<std::size_t>(n * stride + i)];

        auto plane = unwritten<T>(p);
        t.images<T>().to_plane(batch.data(), stride, images, p, plane.data());
        EXPECT_EQ(plane, expected);
        auto back = batch;
        for (int n = 0; n < images; ++n)
          for (std::int64_t i = 0; i < area; ++i) back[static_cast<std::size_t>(n * stride + i)] = -77;
        t.images<T>().from_plane(plane.data(), p, back.data(), stride, images);
        EXPECT_EQ(back, batch);  // what lies between images as well
      }
    }
  });
}

TEST(ImagePlanes, TakeAHaloAndAdd) {
  everywhere([](const Table& t, auto zero) {
    using T = decltype(zero);
    for (const ImagePlane& p : kPlanes) {
      const auto a = drawn<T>(p, 1);
      for (const std::int64_t halo : {0, 1, 3}) {
        const ImagePlane other{p.height, p.width, halo};
        auto moved = unwritten<T>(other);
        t.images<T>().with_halo(a.data(), p, halo, moved.data());
        EXPECT_EQ(std::count_if(moved.begin(), moved.end(), [](T v) { return v != 0; }),
                  std::count_if(a.begin(), a.end(), [](T v) { return v != 0; }));  // so the halo is zero
        const auto b = drawn<T>(other, 2);
        for (const bool relu : {false, true}) {
          auto sum = unwritten<T>(p);
          t.images<T>().add(a.data(), p.halo, b.data(), halo, p, relu, sum.data());
          std::vector<T> expected(entries(p));
          for (std::int64_t y = 0; y < p.height; ++y) {
            for (std::int64_t x = 0; x < p.width; ++x) {
              for (int i = 0; i < kImageLanes; ++i) {
                ASSERT_EQ(moved[place(other, y, x, i)], a[place(p, y, x, i)]);
                const T s = a[place(p, y, x, i)] + b[place(other, y, x, i)];
                expected[place(p, y, x, i)] = relu ? std::max(s, T(0)) : s;
              }
            }
          }
          EXPECT_EQ(sum, expected);
        }
        auto cleared = unwritten<T>(other);
        t.images<T>().clear_halo(other, cleared.data());
        EXPECT_EQ(std::count(cleared.begin(), cleared.end(), T(0)),
                  static_cast<std::ptrdiff_t>(entries(other)) - p.height * p.width * kImageLanes);
      }
    }
  });
}

TEST(ImagePlanes, ArePooled) {
  everywhere([](const Table& t, auto zero) {
    using T = decltype(zero);
    const auto& k = t.images<T>();
    for (const ImagePlane& p : kPlanes) {
      // Windows of three rows, two apart; of four columns, one apart: they overlap, and the last are cut off.
      std::vector<PoolWindow> rows, columns;
      for (std::int64_t i = 0; i < p.height; i += 2) rows.push_back({i, std::min(p.height, i + 3)});
      for (std::int64_t i = 0; i < p.width; ++i) columns.push_back({i, std::min(p.width, i + 4)});
      const ImagePlane out{static_cast<std::int64_t>(rows.size()), static_cast<std::int64_t>(columns.size()), 1};
      const auto x = drawn<T>(p, 1), dy = drawn<T>(out, 2);
      std::vector<T> top(entries(out)), mean(entries(out)), dtop(entries(p)), dmean(entries(p));
      std::vector<Pixel<T>> pixels(static_cast<std::size_t>(out.height * out.width * kImageLanes), -1), first = pixels;
      for (std::int64_t r = 0; r < out.height; ++r) {
        for (std::int64_t c = 0; c < out.width; ++c) {
          for (int i = 0; i < kImageLanes; ++i) {
            const PoolWindow &wr = rows[static_cast<std::size_t>(r)], &wc = columns[static_cast<std::size_t>(c)];
            T best = -100, sum = 0;
            Pixel<T> at = 0;
            for (std::int64_t y = wr.begin; y < wr.end; ++y) {
              for (std::int64_t z = wc.begin; z < wc.end; ++z) {
                const T v = x[place(p, y, z, i)];
                if (v > best) {
                  best = v;
                  at = static_cast<Pixel<T>>(y * p.width + z);
                }
                sum += v;
                dmean[place(p, y, z, i)] += dy[place(out, r, c, i)] * T(0.125);
              }
            }
            top[place(out, r, c, i)] = best;
            mean[place(out, r, c, i)] = sum * T(0.125);
            first[static_cast<std::size_t>((r * out.width + c) * kImageLanes + i)] = at;
            dtop[place(p, at / p.width, at % p.width, i)] += dy[place(out, r, c, i)];
          }
        }
      }
      auto y = unwritten<T>(out), dx = unwritten<T>(p);
      k.max_pool(x.data(), p, rows.data(), columns.data(), out, y.data(), pixels.data());
      EXPECT_EQ(y, top);
      EXPECT_EQ(pixels, first);
      k.max_pool_gradient(dy.data(), pixels.data(), out, rows.data(), columns.data(), p, dx.data());
      EXPECT_EQ(dx, dtop);
      y = unwritten<T>(out);
      k.average_pool(x.data(), p, rows.data(), columns.data(), 8, out, y.data());
      EXPECT_EQ(y, mean);
      dx = unwritten<T>(p);
      k.average_pool_gradient(dy.data(), out, rows.data(), columns.data(), 8, p, dx.data());
      EXPECT_EQ(dx, dmean);
    }
  });
}

TEST(ImagePlanes, ShareTheGradientOfTheLargest) {
  everywhere([](const Table& t, auto zero) {
    using T = decltype(zero);
    for (const ImagePlane& p : kPlanes) {
      const auto x = drawn<T>(p, 5);
      std::vector<T> y(kImageLanes), dy(kImageLanes), expected(entries(p));
      for (int i = 0; i < kImageLanes; ++i) dy[static_cast<std::size_t>(i)] = T(i);
      t.images<T>().largest(x.data(), p, y.data());
      auto dx = unwritten<T>(p);
      t.images<T>().largest_gradient(x.data(), p, y.data(), dy.data(), dx.data());
      for (int i = 0; i < kImageLanes; ++i) {
        T top = -100;
        int equals = 0;
        for (std::int64_t r = 0; r < p.height; ++r) {
          for (std::int64_t c = 0; c < p.width; ++c) {
            const T v = x[place(p, r, c, i)];
            equals = v > top ? 1 : equals + (v == top);
            top = std::max(top, v);
          }
        }
        EXPECT_EQ(y[static_cast<std::size_t>(i)], top);
        for (std::int64_t r = 0; r < p.height; ++r)
          for (std::int64_t c = 0; c < p.width; ++c)
            if (x[place(p, r, c, i)] == top) expected[place(p, r, c, i)] = T(i) / static_cast<T>(equals);
      }
      EXPECT_EQ(dx, expected);
    }
  });
}

TEST(ImagePlanes, BecomeFeatures) {
  everywhere([](const Table& t, auto zero) {
    using T = decltype(zero);
    for (const ImagePlane& p : kPlanes) {
      const auto x = drawn<T>(p, 5);
      for (const std::int64_t lanes : {16, 48}) {
        std::vector<T> tile(static_cast<std::size_t>(p.height * p.width * lanes), T(-77));
        t.images<T>().to_features(x.data(), p, tile.data(), lanes);
        for (std::int64_t i = 0; i < p.height * p.width; ++i)
          for (std::int64_t n = 0; n < lanes; ++n)
            EXPECT_EQ(tile[static_cast<std::size_t>(i * lanes + n)],
                      n < kImageLanes ? x[place(p, i / p.width, i % p.width, n)] : T(-77));
        auto back = unwritten<T>(p);
        t.images<T>().from_features(tile.data(), lanes, p, back.data());
        EXPECT_EQ(back, x);
      }
    }
  });
}

// Two full groups and a ragged one of 5, in which padding holds large numbers.
TEST(BatchNormKernels, FollowTheirFormulas) {
  everywhere([](const Table& t, auto zero) {
    using T = decltype(zero);
    const auto& k = t.batch_norm<T>();
    const ImagePlane p{3, 7, 1};
    const auto plane = static_cast<std::int64_t>(entries(p));
    const std::int64_t row = (p.width + 1) * kImageLanes;
    std::vector<T> x, dy;
    std::vector<ChannelPiece> pieces;
    std::vector<std::size_t> valid;  // entries of channel 1 that count
    std::vector<bool> inside(static_cast<std::size_t>(6 * plane));
    for (int g = 0; g < 3; ++g) {
      pieces.push_back({2 * g * plane + row + kImageLanes, plane, p.height, row, p.width, g < 2 ? 16 : 5});
      for (int c = 0; c < 2; ++c) {
        auto px = drawn<T>(p, static_cast<std::uint64_t>(10 + g)),
             pdy = drawn<T>(p, static_cast<std::uint64_t>(20 + g));
        for (std::int64_t r = 0; r < p.height; ++r) {
          for (std::int64_t z = 0; z < p.width; ++z) {
            for (int i = 0; i < kImageLanes; ++i) {
              const std::size_t at = place(p, r, z, i), whole = static_cast<std::size_t>((2 * g + c) * plane) + at;
              if (g == 2 && i >= 5) {
                px[at] = 1e4;
                pdy[at] = 1e4;
              } else if (c == 1) {
                valid.push_back(whole);
              }
              inside[whole] = c == 1;
            }
          }
        }
        x.insert(x.end(), px.begin(), px.end());
        dy.insert(dy.end(), pdy.begin(), pdy.end());
      }
    }
    const Channel channel{pieces.data(), 3, 1};
    const auto n = static_cast<double>(valid.size());
    double sum = 0, squares = 0;
    for (const std::size_t i : valid) sum += static_cast<double>(x[i]);
    for (const std::size_t i : valid) squares += std::pow(static_cast<double>(x[i]) - sum / n, 2);
    double mean = 0, variance = 0;
    k.moments(x.data(), channel, &mean, &variance);
    // As derived in tests/ops/batch_norm_test.cpp; the sums of the second are of n terms in double precision.
    const double u = std::numeric_limits<T>::epsilon() / 2, deviation = std::sqrt(squares / n);
    EXPECT_NEAR(mean, sum / n, 46 * u * deviation);
    EXPECT_NEAR(variance, squares / n, (160 * u + 1e-16 * n) * squares / n);

    for (const bool relu : {false, true}) {
      const ChannelScale<T> by{T(0.5), T(2), T(-1), relu};  // y = 2 x - 2: exact
      std::vector<T> y(x.size(), T(-77)), dx = y;
      k.normalise(x.data(), channel, by, y.data());
      double g_sum = 0, g_product = 0, found_sum = 0, found_product = 0;
      k.input_gradient(x.data(), dy.data(), channel, by, T(0.25), T(0.5), false, dx.data());
      std::vector<T> more(x.size(), T(3));
      k.input_gradient(x.data(), dy.data(), channel, by, T(0.25), T(0.5), true, more.data());
      for (const std::size_t i : valid) {
        const T full = 2 * x[i] - 2, g = relu && full <= 0 ? T(0) : dy[i];
        ASSERT_EQ(y[i], relu ? std::max(full, T(0)) : full);
        ASSERT_EQ(dx[i], (g - T(0.25) - (x[i] - T(0.5)) * T(0.5)) * 2);
        ASSERT_EQ(more[i], dx[i] + 3);
        g_sum += static_cast<double>(g);
        g_product += static_cast<double>(g * (x[i] - T(0.5)));
      }
      k.gradient_sums(x.data(), dy.data(), channel, by, &found_sum, &found_product);
      EXPECT_EQ(found_sum, g_sum);
      EXPECT_EQ(found_product, g_product);

      // With a summand, here dy; behind the ReLU g comes from y.
      std::vector<T> with(x.size(), T(-77)), g(x.size(), T(-77));
      k.normalise_add(x.data(), channel, by, dy.data(), with.data());
      k.masked_gradient_sums(x.data(), with.data(), dy.data(), channel, T(0.5), g.data(), &found_sum, &found_product);
      double masked_sum = 0, masked_product = 0;
      for (const std::size_t i : valid) {
        const T full = 2 * x[i] - 2 + dy[i];
        ASSERT_EQ(with[i], relu ? std::max(full, T(0)) : full);
        ASSERT_EQ(g[i], full <= 0 ? T(0) : dy[i]);
        masked_sum += static_cast<double>(g[i]);
        masked_product += static_cast<double>(g[i] * (x[i] - T(0.5)));
      }
      EXPECT_EQ(found_sum, masked_sum);
      EXPECT_EQ(found_product, masked_product);
      for (std::size_t i = 0; i < x.size(); ++i) {
        if (!inside[i]) {  // the halo and the other channel
          for (const auto* written : {&y, &dx, &with, &g}) ASSERT_EQ((*written)[i], T(-77));
        } else if (!std::binary_search(valid.begin(), valid.end(), i)) {
          ASSERT_EQ(dx[i], T(0));
          ASSERT_EQ(more[i], T(0));
        }
      }
    }
  });
}

}  // namespace
}  // namespace espalier::kernels
