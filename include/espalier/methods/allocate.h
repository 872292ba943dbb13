/// How many weights each layer keeps. Budgets are whole numbers and add up to exactly what was asked for.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace espalier {

/// round((1 - sparsity) * n), halves away from zero: the number of weights that a sparsity leaves of n.
std::int64_t kept_count(std::int64_t n, double sparsity);

/// `total` shared out in proportion to `shares`, by largest remainder (ties to the lower index), no entry above its
/// capacity: what a full entry cannot take goes to the others in proportion. Throws Error(usage) if total exceeds the
/// sum of capacities.
std::vector<std::int64_t> apportion(std::int64_t total, const std::vector<double>& shares,
                                    const std::vector<std::int64_t>& capacity);

/// The share of its positions by which a distribution weighs a layer of that shape [out, in, (kh, kw)]:
///   uniform  1
///   er       (in + out) / (in out): Erdos-Renyi (Mocanu et al., Nature Communications 2018); kernels do not count
///   erk      (in + out + kh + kw) / (in out kh kw): with kernels (Evci et al., "Rigging the Lottery", ICML 2020)
double density_weight(const std::vector<std::int64_t>& shape, const std::string& distribution);

/// Kept weights of each layer: kept_count(sum of numel, sparsity) in all, densities in proportion to density_weight. A
/// layer that would exceed its capacity (its size, or what it has left) is full, and the rest goes to the others.
/// `distribution` is uniform, er or erk ("global" is no allocation: scores decide).
std::vector<std::int64_t> allocate(const std::vector<std::vector<std::int64_t>>& shapes,
                                   const std::vector<std::int64_t>& capacity, double sparsity,
                                   const std::string& distribution);

}  // namespace espalier
