/// A point in or a stretch of training, as users write it: "500it" (optimiser steps), "1.5ep" (epochs), "25%" (of the
/// run).
#pragma once

#include <cstdint>
#include <string>

namespace espalier {

/// Where a run stands; 0 = not known.
struct Clock {
  std::int64_t step = 0;         ///< optimiser steps done
  std::int64_t total_steps = 0;  ///< planned length of the run
  std::int64_t steps_per_epoch = 0;
};

class Duration {
 public:
  enum class Unit { steps, epochs, percent };
  constexpr Duration() = default;
  static constexpr Duration steps(double n) { return {n, Unit::steps}; }
  static constexpr Duration epochs(double n) { return {n, Unit::epochs}; }
  static constexpr Duration percent(double n) { return {n, Unit::percent}; }

  /// "100it", "2ep", "0.5ep", "25%". Throws Error(usage) for anything else, a negative or a non-finite number.
  static Duration parse(const std::string& text);
  std::string text() const;

  /// In optimiser steps, rounded to the nearest. Throws Error(usage) if the clock lacks what the unit needs.
  std::int64_t in_steps(const Clock& clock) const;

  bool operator==(const Duration& other) const { return count_ == other.count_ && unit_ == other.unit_; }
  double count() const { return count_; }
  Unit unit() const { return unit_; }

 private:
  constexpr Duration(double count, Unit unit) : count_(count), unit_(unit) {}
  double count_ = 0;
  Unit unit_ = Unit::steps;
};

}  // namespace espalier
