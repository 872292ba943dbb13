#include "espalier/report/statistics.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "espalier/core/error.h"

namespace espalier::report {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kPi = 3.14159265358979323846;

/// Share of Student's distribution within (-t, t): Abramowitz and Stegun 26.7.3 and 26.7.4, finite sums for whole
/// degrees of freedom.
double student_share(double t, std::size_t degrees) {
  const double theta = std::atan(t / std::sqrt(static_cast<double>(degrees)));
  const double sine = std::sin(theta), cosine = std::cos(theta);
  const bool odd = degrees % 2 == 1;
  double term = odd ? cosine : 1, sum = 0;
  for (std::size_t k = odd ? 1 : 0; k + 2 <= degrees; k += 2) {
    sum += term;
    term *= cosine * cosine * static_cast<double>(k + 1) / static_cast<double>(k + 2);
  }
  return odd ? 2 / kPi * (theta + sine * sum) : sine * sum;
}

}  // namespace

double student_t(double confidence, std::size_t degrees) {
  ESPALIER_ASSERT(confidence > 0 && confidence < 1 && degrees > 0);
  // The share changes too little with t from here on for more degrees to matter.
  degrees = std::min<std::size_t>(degrees, 100000);
  double low = 0, high = 1;
  while (student_share(high, degrees) < confidence) high *= 2;
  for (int i = 0; i < 200 && high - low > 1e-13 * high; ++i) {
    const double middle = (low + high) / 2;
    (student_share(middle, degrees) < confidence ? low : high) = middle;
  }
  return (low + high) / 2;
}

Interval mean_interval(const std::vector<double>& values, double confidence) {
  Interval out;
  double sum = 0, squares = 0, least = std::numeric_limits<double>::infinity(), largest = -least;
  for (const double v : values) {
    if (!std::isfinite(v)) continue;
    ++out.count;
    sum += v;
    least = std::min(least, v);
    largest = std::max(largest, v);
  }
  const auto n = static_cast<double>(out.count);
  // Equal values have no deviation, which a rounded mean would give them.
  out.mean = out.count == 0 ? kNan : least == largest ? least : sum / n;
  for (const double v : values) {
    if (std::isfinite(v)) squares += (v - out.mean) * (v - out.mean);
  }
  if (out.count < 2) {
    out.deviation = out.low = out.high = kNan;
    return out;
  }
  out.deviation = std::sqrt(squares / (n - 1));
  const double half = student_t(confidence, out.count - 1) * out.deviation / std::sqrt(n);
  out.low = out.mean - half;
  out.high = out.mean + half;
  return out;
}

std::vector<std::size_t> keep_extremes(const std::vector<double>& values, std::size_t most) {
  ESPALIER_ASSERT(most >= 4);
  const std::size_t n = values.size();
  std::vector<std::size_t> kept;
  if (n <= most) {
    kept.resize(n);
    for (std::size_t i = 0; i < n; ++i) kept[i] = i;
    return kept;
  }
  // Two for the ends; a stretch has at most two extremes, or three with a gap.
  const bool gaps = std::any_of(values.begin(), values.end(), [](double v) { return !std::isfinite(v); });
  const std::size_t stretches = std::max<std::size_t>(1, (most - 2) / (gaps ? 3 : 2));
  const bool room_for_gaps = gaps && stretches * 3 + 2 <= most;
  kept.push_back(0);
  for (std::size_t s = 0; s < stretches; ++s) {
    const std::size_t begin = 1 + (n - 2) * s / stretches, end = 1 + (n - 2) * (s + 1) / stretches;
    std::size_t least = end, largest = end, gap = end;
    for (std::size_t i = begin; i < end; ++i) {
      if (!std::isfinite(values[i])) {
        if (gap == end) gap = i;
        continue;
      }
      if (least == end || values[i] < values[least]) least = i;
      if (largest == end || values[i] > values[largest]) largest = i;
    }
    if (!room_for_gaps && least != end) gap = end;
    std::vector<std::size_t> of_stretch;
    for (const std::size_t i : {least, largest, gap}) {
      if (i != end) of_stretch.push_back(i);
    }
    std::sort(of_stretch.begin(), of_stretch.end());
    of_stretch.erase(std::unique(of_stretch.begin(), of_stretch.end()), of_stretch.end());
    kept.insert(kept.end(), of_stretch.begin(), of_stretch.end());
  }
  kept.push_back(n - 1);
  return kept;
}

}  // namespace espalier::report
