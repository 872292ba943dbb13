/// Means over seeds, and curves thinned without losing what stands out.
#pragma once

#include <cstddef>
#include <vector>

namespace espalier::report {

/// A mean and its confidence interval.
struct Interval {
  std::size_t count = 0;  ///< finite values
  double mean = 0;        ///< NaN for no value
  double deviation = 0;   ///< the sample's standard deviation, divided by count - 1; NaN below two values
  double low = 0, high = 0;
};

/// Student's t interval of the mean of the finite values; NaN bounds below two values: one seed says nothing about
/// spread.
Interval mean_interval(const std::vector<double>& values, double confidence = 0.95);

/// The t for which a share (1 + confidence) / 2 of Student's distribution with so many degrees of freedom lies below.
/// confidence in (0, 1); accurate to about 1e-10.
double student_t(double confidence, std::size_t degrees);

/// At most `most` (at least 4) indices of a curve, ascending: the first, the last, and of each of equal stretches the
/// smallest and the largest value; of a stretch with values that are not finite, the first of them too while there is
/// room. So no spike and no gap is lost, however many points there were.
std::vector<std::size_t> keep_extremes(const std::vector<double>& values, std::size_t most);

}  // namespace espalier::report
