#include "espalier/core/random.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

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

}  // namespace

std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> c, std::array<std::uint32_t, 2> k) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = 0xD2511F53ull * c[0];
    const std::uint64_t p1 = 0xCD9E8D57ull * c[2];
    c = {high(p1) ^ c[1] ^ k[0], low(p1), high(p0) ^ c[3] ^ k[1], low(p0)};
    k[0] += 0x9E3779B9u;
    k[1] += 0xBB67AE85u;
  }
  return c;
}

RandomStream::RandomStream(std::uint64_t seed, Purpose purpose, std::uint64_t a, std::uint64_t b) {
  const std::uint64_t key = mix(seed) ^ mix(mix(static_cast<std::uint64_t>(purpose)));
  const std::uint64_t name = mix(mix(a) + 0x632be59bd9b4e019u * b);
  key_ = {low(key), high(key)};
  name_ = {low(name), high(name)};
}

std::uint64_t RandomStream::bits_at(std::uint64_t i) const {
  const auto r = philox({low(i), high(i), name_[0], name_[1]}, key_);
  return join(r[1], r[0]);
}

double RandomStream::uniform_at(std::uint64_t i) const { return static_cast<double>(bits_at(i) >> 11) * kInverse53; }

double RandomStream::normal_at(std::uint64_t i) const {
  const auto r = philox({low(i), high(i), name_[0], name_[1]}, key_);
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

std::vector<std::int64_t> random_permutation(std::int64_t n, RandomStream stream) {
  std::vector<std::int64_t> order(static_cast<std::size_t>(n));
  std::iota(order.begin(), order.end(), std::int64_t{0});
  for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[stream.below(i)]);
  return order;
}

namespace {

/// Ascending order of numbers in [0, n): digits of eleven bits, the lowest first.
void radix_sort(std::vector<std::int64_t>& numbers, std::int64_t n) {
  constexpr int kBits = 11;
  std::vector<std::int64_t> other(numbers.size());
  for (int shift = 0; n >> shift > 0; shift += kBits) {
    std::array<std::size_t, 1 << kBits> next{};
    const auto digit = [&](std::int64_t v) { return static_cast<std::size_t>(v >> shift) & (next.size() - 1); };
    for (const auto v : numbers) ++next[digit(v)];
    std::size_t sum = 0;
    for (auto& count : next) sum += std::exchange(count, sum);
    for (const auto v : numbers) other[next[digit(v)]++] = v;
    numbers.swap(other);
  }
}

}  // namespace

std::vector<std::int64_t> random_subset(std::int64_t n, std::int64_t k, RandomStream stream) {
  ESPALIER_CHECK(k >= 0 && k <= n, ErrorKind::usage, "random subset: {} of {} asked for", k, n);
  const bool take_complement = k > n / 2;  // fewer draws
  const auto draws = static_cast<std::size_t>(take_complement ? n - k : k);
  // Numbers are drawn until `draws` different ones have come. As many as are missing at a time: never too many.
  std::vector<std::int64_t> chosen, fresh, merged;
  while (chosen.size() < draws) {
    fresh.resize(draws - chosen.size());
    for (auto& v : fresh) v = static_cast<std::int64_t>(stream.below(static_cast<std::uint64_t>(n)));
    radix_sort(fresh, n);
    merged.resize(chosen.size() + fresh.size());
    std::merge(chosen.begin(), chosen.end(), fresh.begin(), fresh.end(), merged.begin());
    merged.erase(std::unique(merged.begin(), merged.end()), merged.end());
    chosen.swap(merged);
  }
  if (!take_complement) return chosen;
  std::vector<std::int64_t> subset;
  subset.reserve(static_cast<std::size_t>(k));
  auto next = chosen.begin();
  for (std::int64_t i = 0; i < n; ++i) {
    if (next != chosen.end() && *next == i)
      ++next;
    else
      subset.push_back(i);
  }
  return subset;
}

}  // namespace espalier
