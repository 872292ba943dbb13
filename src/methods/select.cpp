#include "espalier/methods/select.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <iterator>
#include <limits>

#include "espalier/core/error.h"

namespace espalier {
namespace {

/// The k-th largest of all values (k >= 1), and how many of those equal to it belong to the k largest.
struct Cut {
  double value;
  std::int64_t ties;
};

/// A number's bits as an unsigned whole number that orders as the numbers do.
std::uint64_t ordered(double v) {
  v += 0.0;  // -0 is 0
  std::uint64_t bits = 0;
  std::memcpy(&bits, &v, sizeof bits);
  return (bits >> 63) != 0 ? ~bits : bits | (std::uint64_t{1} << 63);
}

Cut cut_of(const std::vector<double>& values, std::int64_t k) {
  // The upper 16 bits find the few values among which the k-th is.
  constexpr int kShift = 48;
  std::vector<std::int64_t> counts(1 << 16, 0);
  for (const double v : values) ++counts[ordered(v) >> kShift];
  std::size_t bucket = counts.size() - 1;
  std::int64_t above = 0;
  while (above + counts[bucket] < k) above += counts[bucket--];
  std::vector<double> near;
  near.reserve(static_cast<std::size_t>(counts[bucket]));
  for (const double v : values)
    if (ordered(v) >> kShift == bucket) near.push_back(v);
  const auto at = near.begin() + (k - above - 1);
  std::nth_element(near.begin(), at, near.end(), std::greater<>());
  const double value = *at;
  for (const double v : near) above += v > value;
  return {value, k - above};
}

std::vector<double> as_doubles(const at::Tensor& score) {
  const at::Tensor flat = score.detach().to(torch::kDouble).contiguous();
  const double* p = flat.data_ptr<double>();
  std::vector<double> values(p, p + flat.numel());
  for (std::size_t i = 0; i < values.size(); ++i) {
    ESPALIER_CHECK(!std::isnan(values[i]), ErrorKind::diverged, "score {} of {} is not a number: cannot rank weights",
                   i, values.size());
  }
  return values;
}

}  // namespace

Selection select_top(const at::Tensor& score, std::int64_t k) {
  const std::int64_t n = score.numel();
  ESPALIER_CHECK(k >= 0 && k <= n, ErrorKind::usage, "cannot select {} of {}", k, n);
  const auto values = as_doubles(score);
  Selection s{torch::empty({k}, torch::kInt64), torch::empty({n - k}, torch::kInt64),
              std::numeric_limits<double>::infinity()};
  Cut cut{std::numeric_limits<double>::infinity(), 0};
  if (k > 0) {
    cut = cut_of(values, k);
    s.threshold = cut.value;
  }
  auto* chosen = s.chosen.data_ptr<std::int64_t>();
  auto* rest = s.rest.data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < n; ++i) {
    const double v = values[static_cast<std::size_t>(i)];
    const bool take = v > cut.value || (v == cut.value && cut.ties > 0);
    if (take && v == cut.value) --cut.ties;
    *(take ? chosen : rest)++ = i;
  }
  return s;
}

std::vector<std::int64_t> select_top_counts(const std::vector<at::Tensor>& scores, std::int64_t k) {
  std::vector<std::vector<double>> values;
  std::vector<double> pooled;
  for (const auto& score : scores) {
    values.push_back(as_doubles(score));
    pooled.insert(pooled.end(), values.back().begin(), values.back().end());
  }
  ESPALIER_CHECK(k >= 0 && k <= static_cast<std::int64_t>(pooled.size()), ErrorKind::usage, "cannot select {} of {}", k,
                 pooled.size());
  std::vector<std::int64_t> counts(scores.size(), 0);
  if (k == 0) return counts;
  Cut cut = cut_of(pooled, k);
  for (std::size_t s = 0; s < values.size(); ++s) {
    for (const double v : values[s]) {
      if (v > cut.value) {
        ++counts[s];
      } else if (v == cut.value && cut.ties > 0) {
        ++counts[s];
        --cut.ties;
      }
    }
  }
  return counts;
}

at::Tensor random_inactive(const SparseWeight& weight, std::int64_t count, const RandomStream& random) {
  return random_outside(weight.numel(), weight.active(), count, random);
}

at::Tensor random_outside(std::int64_t n, const at::Tensor& occupied, std::int64_t count, const RandomStream& random) {
  const auto* here = occupied.data_ptr<std::int64_t>();
  const std::int64_t taken = occupied.numel();
  std::vector<std::int64_t> chosen = random_subset(n - taken, count, random);  // numbers among the free
  std::int64_t before = 0;  // occupied positions before the chosen one
  for (auto& position : chosen) {
    while (before < taken && here[before] <= position + before) ++before;
    position += before;
  }
  return torch::tensor(chosen, torch::kInt64);
}

at::Tensor without(const at::Tensor& positions, const at::Tensor& others) {
  const auto* p = positions.data_ptr<std::int64_t>();
  const auto* o = others.data_ptr<std::int64_t>();
  std::vector<std::int64_t> left;
  std::set_difference(p, p + positions.numel(), o, o + others.numel(), std::back_inserter(left));
  return torch::tensor(left, torch::kInt64);
}

}  // namespace espalier
