#include "espalier/methods/schedule.h"

#include <algorithm>
#include <cmath>

namespace espalier {

double cubic_schedule(double initial, double final, double progress) {
  const double left = 1 - std::clamp(progress, 0.0, 1.0);
  return final + (initial - final) * left * left * left;
}

double linear_schedule(double initial, double final, double progress) {
  return initial + (final - initial) * std::clamp(progress, 0.0, 1.0);
}

double geometric_schedule(double final, std::int64_t round, std::int64_t rounds) {
  if (round >= rounds) return final;
  return 1 - std::pow(1 - final, static_cast<double>(round) / static_cast<double>(rounds));
}

}  // namespace espalier
