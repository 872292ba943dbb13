#include "espalier/methods/allocate.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "espalier/core/error.h"

namespace espalier {
namespace {

std::int64_t product(const std::vector<std::int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
}

}  // namespace

std::int64_t kept_count(std::int64_t n, double sparsity) {
  return std::llround((1 - sparsity) * static_cast<double>(n));
}

std::vector<std::int64_t> apportion(std::int64_t total, const std::vector<double>& shares,
                                    const std::vector<std::int64_t>& capacity) {
  const std::size_t n = shares.size();
  const std::int64_t room = std::accumulate(capacity.begin(), capacity.end(), std::int64_t{0});
  ESPALIER_CHECK(total >= 0 && total <= room, ErrorKind::usage, "cannot keep {} weights where there is room for {}",
                 total, room);

  // Entries that exceed their capacity are full; the rest is shared again among the others until nobody exceeds.
  std::vector<bool> full(n, false);
  std::vector<double> exact(n, 0);
  for (bool changed = true; changed;) {
    changed = false;
    auto left = static_cast<double>(total);
    double open_shares = 0;
    for (std::size_t i = 0; i < n; ++i) {
      if (full[i])
        left -= static_cast<double>(capacity[i]);
      else
        open_shares += shares[i];
    }
    for (std::size_t i = 0; i < n; ++i) {
      if (full[i]) continue;
      exact[i] = open_shares > 0 ? left * shares[i] / open_shares : 0;
      if (exact[i] > static_cast<double>(capacity[i])) {
        full[i] = true;
        changed = true;
      }
    }
  }

  std::vector<std::int64_t> kept(n);
  std::int64_t given = 0;
  for (std::size_t i = 0; i < n; ++i) {
    kept[i] = full[i] ? capacity[i] : std::min(capacity[i], static_cast<std::int64_t>(std::floor(exact[i])));
    given += kept[i];
  }
  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    const auto remainder = [&](std::size_t i) { return full[i] ? -1.0 : exact[i] - std::floor(exact[i]); };
    return remainder(a) > remainder(b);
  });
  // One each by largest remainder; more rounds only where rounding of `exact` or capacities left some over.
  while (given < total) {
    for (const std::size_t i : order) {
      if (given == total) break;
      if (kept[i] == capacity[i]) continue;
      ++kept[i];
      ++given;
    }
  }
  return kept;
}

double density_weight(const std::vector<std::int64_t>& shape, const std::string& distribution) {
  if (distribution == "uniform") return 1;
  const auto out = static_cast<double>(shape.at(0));
  const auto in = static_cast<double>(shape.at(1));
  if (distribution == "er") return (in + out) / (in * out);
  ESPALIER_CHECK(distribution == "erk", ErrorKind::usage,
                 "distribution \"{}\" does not allocate by shape; expected uniform, er or erk", distribution);
  double sum = in + out;
  for (std::size_t d = 2; d < shape.size(); ++d) sum += static_cast<double>(shape[d]);
  return sum / static_cast<double>(product(shape));
}

std::vector<std::int64_t> allocate(const std::vector<std::vector<std::int64_t>>& shapes,
                                   const std::vector<std::int64_t>& capacity, double sparsity,
                                   const std::string& distribution) {
  std::int64_t positions = 0;
  std::vector<double> shares;
  for (const auto& shape : shapes) {
    positions += product(shape);
    shares.push_back(density_weight(shape, distribution) * static_cast<double>(product(shape)));
  }
  return apportion(kept_count(positions, sparsity), shares, capacity);
}

}  // namespace espalier
