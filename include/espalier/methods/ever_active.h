/// Which positions of a weight have been active at any time.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "espalier/core/bitmask.h"
#include "espalier/nn/sparse_weight.h"

namespace espalier {

/// A bit for each position of weights that have at most 2^20 (128 KB). Of larger ones a fixed sample, of 2^19 to 2^20
/// positions: what came after the first masks is estimated from it, with a standard error of at most 1/sqrt(k) of it,
/// where k of those positions are in the sample. The estimate never falls.
class EverActive {
 public:
  /// Of a weight with so many positions, whose first masks leave these n active.
  EverActive(std::int64_t positions, const std::int64_t* active, std::int64_t n);
  /// Of a weight that was dense.
  static EverActive all(std::int64_t positions);
  /// Whether it is counted: not where a sample would hold too few of n active positions (density below 1/128).
  static bool counts(std::int64_t positions, std::int64_t n);

  /// These are active now.
  void add(const std::int64_t* active, std::int64_t n);
  /// Positions that are, or have been.
  std::int64_t count() const;

  /// Under `name`, and `name` + "_beside" where there is a sample.
  void archive(const std::string& name, NamedTensors& to) const;
  /// Empty if there is nothing under `name`. Throws Error(data) if what is there cannot be of so many positions.
  static std::optional<EverActive> restored(const std::string& name, std::int64_t positions,
                                            const NamedTensors& tensors);

 private:
  explicit EverActive(std::int64_t positions);

  std::int64_t positions_;
  int log2_stride_;  // of 2^this positions, one has a bit
  std::uint64_t factor_, below_;
  BitMask bits_;
  std::int64_t beside_ = 0;  // what the first masks had, less what their sample says
};

}  // namespace espalier
