#include "espalier/methods/select.h"

#include <ATen/Parallel.h>
#include <torch/torch.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <functional>
#include <iterator>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>

#include "espalier/core/bitmask.h"
#include "espalier/core/error.h"

namespace espalier {
namespace {

/// Scores that a thread takes at least.
constexpr std::int64_t kGrain = 32768;

/// Cuts 0 .. n-1 into parts, one for each thread that is worth waking: f(part, begin, end) for each, all at once.
struct Parts {
  explicit Parts(std::int64_t n)
      : size(n), count(std::clamp<std::int64_t>(n / kGrain, 1, std::max(1, at::get_num_threads()))) {}
  template <class F>
  void each(const F& f) const {
    at::parallel_for(0, count, 1, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t p = first; p < last; ++p) f(p, size * p / count, size * (p + 1) / count);
    });
  }
  std::int64_t size, count;
};

/// A number's bits as an unsigned whole number that orders as the numbers do.
template <class T>
auto ordered(T v) {
  using Key = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  constexpr Key kSign = Key{1} << (8 * sizeof(Key) - 1);
  v += T(0);  // -0 is 0
  Key bits = 0;
  std::memcpy(&bits, &v, sizeof bits);
  return (bits & kSign) != 0 ? static_cast<Key>(~bits) : static_cast<Key>(bits | kSign);
}

/// float32 as it is, everything else as float64.
at::Tensor scores(const at::Tensor& score) {
  const auto type = score.scalar_type() == at::kFloat ? at::kFloat : at::kDouble;
  return score.detach().to(type).contiguous().view({-1});
}

/// f(T{}) with T the C++ type of `scores`.
template <class F>
void with_type(const at::Tensor& scores, const F& f) {
  if (scores.scalar_type() == at::kFloat)
    f(float{});
  else
    f(double{});
}

template <class T>
void check_numbers(const at::Tensor& scores) {
  const T* v = scores.data_ptr<T>();
  const Parts parts(scores.numel());
  std::vector<std::int64_t> wrong(static_cast<std::size_t>(parts.count), -1);
  parts.each([&](std::int64_t p, std::int64_t begin, std::int64_t end) {
    const T* nan = std::find_if(v + begin, v + end, [](T s) { return s != s; });
    if (nan != v + end) wrong[static_cast<std::size_t>(p)] = nan - v;
  });
  for (const auto i : wrong) {
    ESPALIER_CHECK(i < 0, ErrorKind::diverged, "score {} of {} is not a number: cannot rank weights", i,
                   scores.numel());
  }
}

/// The k-th largest of all values (k >= 1), and how many of those equal to it belong to the k largest.
template <class T>
struct Cut {
  T value = std::numeric_limits<T>::infinity();
  std::int64_t ties = 0;  // value = inf and no ties: nothing is above
};

/// Finds the k-th largest digit by digit, the highest 16 bits first: each pass counts the digits of those values that
/// agree with it so far. No copy of the values.
template <class T>
Cut<T> cut_of(const std::vector<at::Tensor>& all, std::int64_t k) {
  using Key = decltype(ordered(T{}));
  constexpr int kDigit = 16, kBits = 8 * sizeof(Key);
  Key found = 0;  // the upper digits of the k-th largest
  for (int shift = kBits - kDigit; shift >= 0; shift -= kDigit) {
    std::vector<std::int64_t> counts(1 << kDigit, 0);
    for (const at::Tensor& values : all) {
      const T* v = values.data_ptr<T>();
      const Parts parts(values.numel());
      std::vector<std::vector<std::int64_t>> of_part(static_cast<std::size_t>(parts.count));
      parts.each([&](std::int64_t p, std::int64_t begin, std::int64_t end) {
        auto& mine = of_part[static_cast<std::size_t>(p)];
        mine.resize(counts.size(), 0);
        for (std::int64_t i = begin; i < end; ++i) {
          const Key key = ordered(v[i]);
          const Key upper = static_cast<Key>(key >> shift >> (kDigit - 1) >> 1);
          if (upper == found) ++mine[(key >> shift) & (counts.size() - 1)];
        }
      });
      for (const auto& mine : of_part)
        for (std::size_t d = 0; d < counts.size(); ++d) counts[d] += mine[d];
    }
    std::size_t digit = counts.size() - 1;
    while (counts[digit] < k) k -= counts[digit--];
    found = static_cast<Key>(found << (kDigit - 1) << 1 | static_cast<Key>(digit));
  }
  constexpr Key kSign = Key{1} << (kBits - 1);
  const Key bits = (found & kSign) != 0 ? static_cast<Key>(found ^ kSign) : static_cast<Key>(~found);
  Cut<T> cut{T(0), k};
  std::memcpy(&cut.value, &bits, sizeof bits);
  return cut;
}

/// Bit i: of(v[i]), for i < n <= 64. Comparisons become bytes, as vectors do them, and eight bytes a byte of bits.
template <class T, class Of>
std::uint64_t bits_of(const T* v, std::int64_t n, const Of& of) {
  std::array<unsigned char, 64> is{};
  if (n == 64) {
    for (std::size_t i = 0; i < 64; ++i) is[i] = of(v[i]) ? 1 : 0;
  } else {
    for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) is[i] = of(v[i]) ? 1 : 0;
  }
  std::uint64_t bits = 0;
  for (std::size_t i = 0; i < 64; i += 8) {
    std::uint64_t bytes = 0;  // the first one lowest
    for (std::size_t k = 0; k < 8; ++k) bytes |= static_cast<std::uint64_t>(is[i + k]) << (8 * k);
    bits |= (bytes * 0x0102040810204080u >> 56) << i;
  }
  return bits;
}

/// Splits the indices, or what `of` has at them, by the cut. What is null is not wanted.
template <class T>
void split(const at::Tensor& values, const Cut<T>& cut, const std::int64_t* of, std::int64_t* chosen,
           std::int64_t* rest) {
  const T* v = values.data_ptr<T>();
  const Parts parts(values.numel());
  // Above the cut and on it, of each part; then of all parts before.
  std::vector<std::array<std::int64_t, 2>> before(static_cast<std::size_t>(parts.count));
  parts.each([&](std::int64_t p, std::int64_t begin, std::int64_t end) {
    std::int64_t above = 0, ties = 0;
    for (std::int64_t i = begin; i < end; ++i) {
      above += v[i] > cut.value;
      ties += v[i] == cut.value;
    }
    before[static_cast<std::size_t>(p)] = {above, ties};
  });
  std::array<std::int64_t, 2> sum = {0, 0};
  for (auto& counts : before) {
    for (std::size_t k = 0; k < 2; ++k) sum[k] += std::exchange(counts[k], sum[k]);
  }
  parts.each([&](std::int64_t p, std::int64_t begin, std::int64_t end) {
    const auto [above, ties] = before[static_cast<std::size_t>(p)];
    std::int64_t left = std::max<std::int64_t>(0, cut.ties - ties), taken = above + std::min(cut.ties, ties);
    for (std::int64_t first = begin; first < end; first += 64) {  // by bits: which ones cannot be predicted
      const std::int64_t n = std::min<std::int64_t>(64, end - first);
      std::uint64_t take = bits_of(v + first, n, [&](T s) { return s > cut.value; });
      std::uint64_t tied = left > 0 ? bits_of(v + first, n, [&](T s) { return s == cut.value; }) : 0;
      for (; tied != 0 && left > 0; --left) {
        take |= tied & (0 - tied);
        tied &= tied - 1;
      }
      const std::uint64_t all = n == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1;
      const auto list = [&](std::uint64_t bits, std::int64_t* to) {
        if (of == nullptr) {
          for (; bits != 0; bits &= bits - 1) *to++ = first + __builtin_ctzll(bits);
        } else {
          for (; bits != 0; bits &= bits - 1) *to++ = of[first + __builtin_ctzll(bits)];
        }
      };
      if (chosen != nullptr) list(take, chosen + taken);
      if (rest != nullptr) list(~take & all, rest + first - taken);
      taken += count_ones(take);
    }
  });
}

/// select_top, each of its parts only where it is wanted. Returns the threshold.
double select(const at::Tensor& score, std::int64_t k, const at::Tensor& of, at::Tensor* chosen, at::Tensor* rest) {
  const std::int64_t n = score.numel();
  ESPALIER_CHECK(k >= 0 && k <= n, ErrorKind::usage, "cannot select {} of {}", k, n);
  const at::Tensor values = scores(score);
  double threshold = std::numeric_limits<double>::infinity();
  with_type(values, [&](auto zero) {
    using T = decltype(zero);
    check_numbers<T>(values);
    Cut<T> cut;
    if (k > 0) cut = cut_of<T>({values}, k);
    threshold = static_cast<double>(cut.value);
    if (chosen != nullptr) *chosen = torch::empty({k}, torch::kInt64);
    if (rest != nullptr) *rest = torch::empty({n - k}, torch::kInt64);
    split<T>(values, cut, of.defined() ? of.data_ptr<std::int64_t>() : nullptr,
             chosen != nullptr ? chosen->data_ptr<std::int64_t>() : nullptr,
             rest != nullptr ? rest->data_ptr<std::int64_t>() : nullptr);
  });
  return threshold;
}

}  // namespace

Selection select_top(const at::Tensor& score, std::int64_t k, const at::Tensor& of) {
  ESPALIER_ASSERT(!of.defined() || (of.numel() == score.numel() && of.is_contiguous()));
  Selection s;
  s.threshold = select(score, k, of, &s.chosen, &s.rest);
  return s;
}

Smallest smallest_weights(const SparseWeight& weight, std::int64_t count) {
  const auto [active, weights] = weight.entries();
  Smallest s;
  s.threshold = select(weights.abs_(), weight.nnz() - count, active, nullptr, &s.positions);
  return s;
}

std::vector<std::int64_t> select_top_counts(const std::vector<at::Tensor>& given, std::int64_t k) {
  std::vector<at::Tensor> all;
  std::int64_t n = 0;
  bool same_type = true;
  for (const auto& score : given) {
    all.push_back(scores(score));
    n += score.numel();
    same_type = same_type && all.back().scalar_type() == all.front().scalar_type();
  }
  ESPALIER_CHECK(k >= 0 && k <= n, ErrorKind::usage, "cannot select {} of {}", k, n);
  if (!same_type)
    for (auto& values : all) values = values.to(at::kDouble);
  std::vector<std::int64_t> counts(all.size(), 0);
  if (k == 0) return counts;
  with_type(all.front(), [&](auto zero) {
    using T = decltype(zero);
    for (const auto& values : all) check_numbers<T>(values);
    Cut<T> cut = cut_of<T>(all, k);
    for (std::size_t s = 0; s < all.size(); ++s) {
      const std::int64_t ties = std::min(cut.ties, all[s].eq(cut.value).sum().template item<std::int64_t>());
      counts[s] = all[s].gt(cut.value).sum().template item<std::int64_t>() + ties;
      cut.ties -= ties;
    }
  });
  return counts;
}

at::Tensor random_positions(std::int64_t n, std::int64_t count, const RandomStream& random) {
  auto numbers = std::make_shared<std::vector<std::int64_t>>(random_subset(n, count, random, at::get_num_threads()));
  return torch::from_blob(
      numbers->data(), {count}, [numbers](void*) mutable { numbers.reset(); }, torch::kInt64);
}

at::Tensor random_outside(std::int64_t n, const at::Tensor& occupied, std::int64_t count, const RandomStream& random) {
  at::Tensor chosen = random_positions(n - occupied.numel(), count, random);  // numbers among the free
  const auto* here = occupied.data_ptr<std::int64_t>();
  const std::int64_t nnz = occupied.numel();
  auto* const position = chosen.data_ptr<std::int64_t>();
  Parts(count).each([&](std::int64_t, std::int64_t begin, std::int64_t end) {
    if (begin == end) return;
    // Active positions before the first of this part: here[b] - b, which does not fall, is how many free ones come
    // before the active one of number b.
    std::int64_t before = 0;
    for (std::int64_t high = nnz; before < high;) {
      const std::int64_t middle = before + (high - before) / 2;
      if (here[middle] - middle <= position[begin])
        before = middle + 1;
      else
        high = middle;
    }
    for (std::int64_t i = begin; i < end; ++i) {
      // Counted eight at a time without a branch on each: how many lie before the next free one cannot be predicted.
      constexpr std::int64_t kTogether = 8;
      const std::int64_t free = position[i];
      bool all = true;
      while (all && before + kTogether <= nnz) {
        std::int64_t passed = 0;
        for (std::int64_t k = 0; k < kTogether; ++k) passed += here[before + k] - (before + k) <= free ? 1 : 0;
        before += passed;
        all = passed == kTogether;
      }
      while (all && before < nnz && here[before] - before <= free) ++before;
      position[i] = free + before;
    }
  });
  return chosen;
}

at::Tensor without(const at::Tensor& positions, const at::Tensor& others) {
  const auto* p = positions.data_ptr<std::int64_t>();
  const auto* o = others.data_ptr<std::int64_t>();
  std::vector<std::int64_t> left;
  std::set_difference(p, p + positions.numel(), o, o + others.numel(), std::back_inserter(left));
  return torch::tensor(left, torch::kInt64);
}

}  // namespace espalier
