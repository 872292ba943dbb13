#include "espalier/methods/select.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "espalier/core/error.h"

namespace espalier {
namespace {

/// The k-th largest of all values (k >= 1), and how many of those equal to it belong to the k largest.
struct Cut {
  double value;
  std::int64_t ties;
};

Cut cut_of(std::vector<double> values, std::int64_t k) {
  std::nth_element(values.begin(), values.begin() + (k - 1), values.end(), std::greater<>());
  const double value = values[static_cast<std::size_t>(k - 1)];
  const auto above = std::count_if(values.begin(), values.end(), [&](double v) { return v > value; });
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
  Cut cut = cut_of(std::move(pooled), k);
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

}  // namespace espalier
