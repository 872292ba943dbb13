/// How sparse at which moment. `progress` runs from 0 to 1; before and after it is clamped.
#pragma once

#include <cstdint>
#include <string>

namespace espalier {

/// Zhu, Gupta, "To prune, or not to prune", 2017: s_f + (s_i - s_f)(1 - progress)^3.
double cubic_schedule(double initial, double final, double progress);

/// s_i + (s_f - s_i) progress.
double linear_schedule(double initial, double final, double progress);

/// Sparsity after round `round` of `rounds` when each round removes the same share of what is left:
/// 1 - (1 - s_f)^(round/rounds).
double geometric_schedule(double final, std::int64_t round, std::int64_t rounds);

}  // namespace espalier
