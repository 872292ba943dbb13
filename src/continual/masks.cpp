#include "espalier/continual/masks.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "espalier/core/bitmask.h"
#include "espalier/core/error.h"
#include "espalier/methods/allocate.h"
#include "espalier/methods/select.h"

namespace espalier::continual {

std::int64_t packnet_kept(std::int64_t free, double share) {
  ESPALIER_CHECK(share >= 0 && share <= 1, ErrorKind::usage, "a share of {} to keep; expected in [0, 1]", share);
  const double gone = (1 - share) * static_cast<double>(free), lower = std::floor(gone), rest = gone - lower;
  const bool up = rest > 0.5 || (rest == 0.5 && std::fmod(lower, 2) == 1);  // whatever the rounding mode is
  return free - (static_cast<std::int64_t>(lower) + (up ? 1 : 0));
}

std::int64_t equal_share(std::int64_t n, std::int64_t number, std::int64_t tasks) {
  ESPALIER_CHECK(number >= 1 && number <= tasks, ErrorKind::usage, "equal shares: task {} of {}", number, tasks);
  const auto until = [&](std::int64_t k) {  // n k may exceed 64 bits
    return static_cast<std::int64_t>(static_cast<__int128>(n) * k / tasks);
  };
  return until(number) - until(number - 1);
}

std::int64_t mask_size(double share, std::int64_t n) {
  ESPALIER_CHECK(share >= 0 && share <= 1, ErrorKind::usage, "a keep rate of {}; expected in [0, 1]", share);
  const double product = share * static_cast<double>(n), whole = std::round(product);
  const bool rounding = std::abs(product - whole) <= 2 * std::numeric_limits<double>::epsilon() * whole;
  return static_cast<std::int64_t>(rounding ? whole : std::floor(product));
}

Masks largest(const std::vector<at::Tensor>& scores, const std::vector<std::vector<std::int64_t>>& shapes, double share,
              const std::string& distribution) {
  ESPALIER_ASSERT(scores.size() == shapes.size());
  std::vector<std::int64_t> capacity;
  std::vector<double> shares;
  std::vector<at::Tensor> flat;
  for (std::size_t l = 0; l < scores.size(); ++l) {
    flat.push_back(scores[l].reshape({-1}));
    capacity.push_back(scores[l].numel());
    if (distribution == "global") continue;
    shares.push_back(density_weight(shapes[l], distribution) * static_cast<double>(scores[l].numel()));
  }
  const std::int64_t all = std::accumulate(capacity.begin(), capacity.end(), std::int64_t{0});
  const std::int64_t kept = mask_size(share, all);
  const auto budget = distribution == "global" ? select_top_counts(flat, kept) : apportion(kept, shares, capacity);
  Masks masks;
  for (std::size_t l = 0; l < flat.size(); ++l) {
    BitMask mask(capacity[l]);
    const at::Tensor chosen = select_top(flat[l], budget[l]).chosen;
    const auto* at = chosen.data_ptr<std::int64_t>();
    for (std::int64_t i = 0; i < chosen.numel(); ++i) mask.set(at[i], true);
    masks.push_back(std::move(mask));
  }
  return masks;
}

Found search_list(const std::vector<double>& rates, double wanted, const std::function<double(double)>& accuracy) {
  Found found;
  for (auto rate = rates.rbegin(); rate != rates.rend(); ++rate) {
    const double reached = accuracy(*rate);
    found.trials.push_back({*rate, reached, reached >= wanted});
    if (!found.trials.back().passed) break;
    found.keep_rate = *rate;
  }
  return found;
}

Found search_binary(double low, double high, std::int64_t steps, double wanted,
                    const std::function<double(double)>& accuracy) {
  Found found;
  const auto passes = [&](double rate) {
    const double reached = accuracy(rate);
    found.trials.push_back({rate, reached, reached >= wanted});
    if (found.trials.back().passed) found.keep_rate = rate;
    return found.trials.back().passed;
  };
  if (!passes(high)) return found;
  for (std::int64_t i = 0; i < steps; ++i) {
    const double middle = (low + high) / 2;
    (passes(middle) ? high : low) = middle;
  }
  return found;
}

BitMask any_of(const std::vector<const BitMask*>& masks, std::int64_t size) {
  BitMask all(size);
  for (const BitMask* mask : masks)
    for (const auto i : mask->positions()) all.set(i, true);
  return all;
}

BitMask minus(const BitMask& a, const BitMask& b) {
  BitMask left = a;
  for (const auto i : b.positions()) left.set(i, false);
  return left;
}

BitMask inverse(const BitMask& a) { return minus(BitMask(a.size(), true), a); }

std::int64_t overlap(const BitMask& a, const BitMask& b) {
  ESPALIER_ASSERT(a.size() == b.size());
  std::int64_t count = 0;
  for (std::int64_t w = 0; w < (a.size() + 63) / 64; ++w) count += count_ones(a.words()[w] & b.words()[w]);
  return count;
}

at::Tensor positions(const BitMask& mask) { return torch::tensor(mask.positions(), torch::kInt64); }

at::Tensor bytes(const BitMask& mask, const std::vector<std::int64_t>& shape) {
  at::Tensor out = torch::zeros({mask.size()}, torch::kUInt8);
  auto* byte = out.data_ptr<std::uint8_t>();
  for (const auto i : mask.positions()) byte[i] = 1;
  return out.view(shape);
}

}  // namespace espalier::continual
