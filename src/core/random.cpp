#include "espalier/core/random.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "espalier/core/bitmask.h"
#include "espalier/core/error.h"

namespace espalier {
namespace {

/// splitmix64's finaliser: a bijection that spreads every input bit over all output bits.
std::uint64_t mix(std::uint64_t z) {
  z += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

constexpr double kTwoPi = 6.283185307179586476925286766559;
constexpr double kInverse53 = 1.0 / 9007199254740992.0;  // 2^-53

std::uint32_t low(std::uint64_t v) { return static_cast<std::uint32_t>(v); }
std::uint32_t high(std::uint64_t v) { return static_cast<std::uint32_t>(v >> 32); }
std::uint64_t join(std::uint32_t hi, std::uint32_t lo) { return (static_cast<std::uint64_t>(hi) << 32) | lo; }

/// Inline wherever it is used: draws by the million are half as long again with calls.
[[gnu::always_inline]] inline std::array<std::uint32_t, 4> ten_rounds(std::array<std::uint32_t, 4> c,
                                                                      std::array<std::uint32_t, 2> k) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = 0xD2511F53ull * c[0];
    const std::uint64_t p1 = 0xCD9E8D57ull * c[2];
    c = {high(p1) ^ c[1] ^ k[0], low(p1), high(p0) ^ c[3] ^ k[1], low(p0)};
    k[0] += 0x9E3779B9u;
    k[1] += 0xBB67AE85u;
  }
  return c;
}

}  // namespace

std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key) {
  return ten_rounds(counter, key);
}

RandomStream::RandomStream(std::uint64_t seed, Purpose purpose, std::uint64_t a, std::uint64_t b) {
  const std::uint64_t key = mix(seed) ^ mix(mix(static_cast<std::uint64_t>(purpose)));
  const std::uint64_t name = mix(mix(a) + 0x632be59bd9b4e019u * b);
  key_ = {low(key), high(key)};
  name_ = {low(name), high(name)};
}

std::uint64_t RandomStream::bits_at(std::uint64_t i) const {
  const auto r = ten_rounds({low(i), high(i), name_[0], name_[1]}, key_);
  return join(r[1], r[0]);
}

double RandomStream::uniform_at(std::uint64_t i) const { return static_cast<double>(bits_at(i) >> 11) * kInverse53; }

double RandomStream::normal_at(std::uint64_t i) const {
  const auto r = ten_rounds({low(i), high(i), name_[0], name_[1]}, key_);
  const double u = (static_cast<double>(join(r[1], r[0]) >> 11) + 1.0) * kInverse53;  // (0, 1]
  const double v = static_cast<double>(join(r[3], r[2]) >> 11) * kInverse53;
  return std::sqrt(-2.0 * std::log(u)) * std::cos(kTwoPi * v);
}

std::uint64_t RandomStream::below(std::uint64_t n) {
  ESPALIER_ASSERT(n > 0);
  const std::uint64_t reject_under = (0 - n) % n;  // 2^64 mod n
  for (;;) {
    const std::uint64_t r = bits();
    if (r >= reject_under) return r % n;
  }
}

std::uint64_t RandomStream::below_at(std::uint64_t i, std::uint64_t n) const {
  ESPALIER_ASSERT(n > 0);
  // Lemire, "Fast random integer generation in an interval", 2019: the upper half of r n, drawn again where the lower
  // half is under 2^64 mod n. The attempt stands in the upper bits of the index, where no other number's draws are.
  for (std::uint64_t attempt = 0;; ++attempt) {
    const auto product = static_cast<unsigned __int128>(bits_at(i + (attempt << 40))) * n;
    const auto lower = static_cast<std::uint64_t>(product);
    if (lower >= n || lower >= (0 - n) % n) return static_cast<std::uint64_t>(product >> 64);
  }
}

std::vector<std::int64_t> random_permutation(std::int64_t n, RandomStream stream) {
  std::vector<std::int64_t> order(static_cast<std::size_t>(n));
  std::iota(order.begin(), order.end(), std::int64_t{0});
  for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[stream.below(i)]);
  return order;
}

namespace {

/// The different ones of `count` numbers below n, those of the stream from `first` on; ascending.
std::vector<std::int64_t> draw_below(std::int64_t n, std::int64_t first, std::int64_t count, const RandomStream& random,
                                     int threads) {
  // Numbers are dealt by their upper bits to buckets of some ten, and sorted there. A thread deals a share.
  int shift = 0;
  while ((n >> shift) > 1 + count / 12) ++shift;
  const std::int64_t buckets = ((n - 1) >> shift) + 1;
  const std::int64_t shares = std::clamp<std::int64_t>(threads, 1, 1 + count / 4096);
  const auto at = [](std::int64_t i) { return static_cast<std::size_t>(i); };
  std::vector<std::int64_t> drawn(at(count)), dealt(at(count)), next(at(shares * buckets), 0), start(at(buckets + 1));
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (std::int64_t s = 0; s < shares; ++s) {
    for (std::int64_t i = count * s / shares; i < count * (s + 1) / shares; ++i) {
      const auto draw = random.below_at(static_cast<std::uint64_t>(first + i), static_cast<std::uint64_t>(n));
      drawn[at(i)] = static_cast<std::int64_t>(draw);
      ++next[at(s * buckets + (drawn[at(i)] >> shift))];
    }
  }
  std::int64_t sum = 0;
  for (std::int64_t b = 0; b < buckets; ++b) {
    start[at(b)] = sum;
    for (std::int64_t s = 0; s < shares; ++s) sum += std::exchange(next[at(s * buckets + b)], sum);
  }
  start.back() = sum;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (std::int64_t s = 0; s < shares; ++s) {
    for (std::int64_t i = count * s / shares; i < count * (s + 1) / shares; ++i) {
      dealt[at(next[at(s * buckets + (drawn[at(i)] >> shift))]++)] = drawn[at(i)];
    }
  }
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t b = 0; b < buckets; ++b) std::sort(dealt.begin() + start[at(b)], dealt.begin() + start[at(b + 1)]);
  dealt.erase(std::unique(dealt.begin(), dealt.end()), dealt.end());
  return dealt;
}

/// Merges `more` into `numbers`; both ascending.
void merge_into(std::vector<std::int64_t>& numbers, const std::vector<std::int64_t>& more) {
  std::size_t from = numbers.size(), left = more.size();
  numbers.resize(from + left);
  for (std::size_t to = numbers.size(); left > 0; --to) {  // from the end: what moves has room
    numbers[to - 1] = from > 0 && numbers[from - 1] > more[left - 1] ? numbers[--from] : more[--left];
  }
}

/// `wanted` different numbers below n, few of all: sorted as they come.
std::vector<std::int64_t> few_of(std::int64_t n, std::int64_t wanted, const RandomStream& random, int threads) {
  std::vector<std::int64_t> chosen, more;
  std::int64_t missing = wanted, drawn = 0;
  while (missing > 0) {
    std::vector<std::int64_t> fresh = draw_below(n, drawn, missing, random, threads);
    drawn += missing;
    const auto known = [&](std::int64_t v) {
      return std::binary_search(chosen.begin(), chosen.end(), v) || std::binary_search(more.begin(), more.end(), v);
    };
    fresh.erase(std::remove_if(fresh.begin(), fresh.end(), known), fresh.end());
    missing -= static_cast<std::int64_t>(fresh.size());
    if (chosen.empty())
      chosen.swap(fresh);
    else
      merge_into(more, fresh);
  }
  merge_into(chosen, more);
  return chosen;
}

/// The same numbers as a bit for each number below n.
std::vector<std::uint64_t> marks_of(std::int64_t n, std::int64_t wanted, const RandomStream& random, int threads) {
  const auto words = static_cast<std::size_t>((n + 63) / 64);
  // Each share has bits of its own: together not many more than a list of the numbers would take.
  const std::int64_t shares =
      std::clamp<std::int64_t>(threads, 1, 1 + std::min(wanted / 4096, 64 * wanted / std::max<std::int64_t>(1, n)));
  std::vector<std::vector<std::uint64_t>> of_share(static_cast<std::size_t>(shares));
  const auto draw = [&](std::int64_t i) {
    return random.below_at(static_cast<std::uint64_t>(i), static_cast<std::uint64_t>(n));
  };
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (std::int64_t s = 0; s < shares; ++s) {
    auto& marks = of_share[static_cast<std::size_t>(s)];
    marks.resize(words, 0);
    // Some are drawn, and their words asked for, before they are marked: a draw is so long that misses of the cache
    // would come one at a time.
    std::array<std::uint64_t, 64> numbers;
    const std::int64_t end = wanted * (s + 1) / shares;
    for (std::int64_t i = wanted * s / shares; i < end;) {
      std::size_t drawn = 0;
      for (; drawn < numbers.size() && i < end; ++drawn, ++i) {
        numbers[drawn] = draw(i);
        __builtin_prefetch(&marks[numbers[drawn] / 64], 1);
      }
      for (std::size_t k = 0; k < drawn; ++k) marks[numbers[k] / 64] |= std::uint64_t{1} << numbers[k] % 64;
    }
  }
  std::vector<std::uint64_t> marks = std::move(of_share[0]);
  std::int64_t missing = wanted;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(- : missing)
  for (std::size_t w = 0; w < words; ++w) {
    for (std::size_t s = 1; s < of_share.size(); ++s) marks[w] |= of_share[s][w];
    missing -= count_ones(marks[w]);
  }
  for (std::int64_t drawn = wanted; missing > 0;) {
    for (const std::int64_t end = drawn + missing; drawn < end; ++drawn) {
      const std::uint64_t number = draw(drawn), mark = std::uint64_t{1} << number % 64;
      missing -= (marks[number / 64] & mark) == 0;
      marks[number / 64] |= mark;
    }
  }
  return marks;
}

/// The numbers below n whose bit is `set`, ascending; `count` of them.
std::vector<std::int64_t> marked(const std::vector<std::uint64_t>& marks, std::int64_t n, bool set, std::int64_t count,
                                 int threads) {
  const auto word = [&](std::int64_t w) {
    std::uint64_t bits = set ? marks[static_cast<std::size_t>(w)] : ~marks[static_cast<std::size_t>(w)];
    if (w == n / 64) bits &= (std::uint64_t{1} << n % 64) - 1;  // the last one, where it is not full
    return bits;
  };
  const auto words = static_cast<std::int64_t>(marks.size());
  const std::int64_t parts = std::clamp<std::int64_t>(threads, 1, 1 + words / 4096);
  std::vector<std::int64_t> before(static_cast<std::size_t>(parts), 0), numbers(static_cast<std::size_t>(count));
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (std::int64_t p = 0; p < parts; ++p) {
    std::int64_t sum = 0;
    for (std::int64_t w = words * p / parts; w < words * (p + 1) / parts; ++w) sum += count_ones(word(w));
    before[static_cast<std::size_t>(p)] = sum;
  }
  std::int64_t sum = 0;
  for (auto& b : before) sum += std::exchange(b, sum);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (std::int64_t p = 0; p < parts; ++p) {
    auto to = static_cast<std::size_t>(before[static_cast<std::size_t>(p)]);
    for (std::int64_t w = words * p / parts; w < words * (p + 1) / parts; ++w) {
      for (std::uint64_t bits = word(w); bits != 0; bits &= bits - 1) numbers[to++] = 64 * w + __builtin_ctzll(bits);
    }
  }
  return numbers;
}

}  // namespace

std::vector<std::int64_t> random_subset(std::int64_t n, std::int64_t k, const RandomStream& random, int threads) {
  ESPALIER_CHECK(k >= 0 && k <= n, ErrorKind::usage, "random subset: {} of {} asked for", k, n);
  // Numbers are drawn until enough different ones have come, as many as are missing at a time: never too many. Above
  // one half those that are left out are drawn.
  const bool take_complement = k > n / 2;
  const std::int64_t wanted = take_complement ? n - k : k;
  const bool bits_are_faster = wanted >= n / 96;  // and not much larger than a list of 64-bit numbers
  if (!take_complement && !bits_are_faster) return few_of(n, wanted, random, threads);
  return marked(marks_of(n, wanted, random, threads), n, !take_complement, k, threads);
}

}  // namespace espalier
