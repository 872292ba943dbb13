/// Counter-based random numbers (Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as
/// 1, 2, 3", SC 2011). A stream is named by (seed, purpose, a, b), usually (seed, purpose, layer, step); its i-th
/// number is a pure function of that name and of i, so results do not depend on threads or on the order of calls.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace espalier {

/// What a stream is for. The values are part of the file formats (same seed -> same run): never renumber.
enum class Purpose : std::uint64_t {
  init = 1,      ///< weights at step 0; a = layer
  topology = 2,  ///< masks; a = layer, b = step
  shuffle = 3,   ///< order of samples; a = epoch
  augment = 4,   ///< crops and flips; a = epoch, index = sample
  split = 5,     ///< train / validation
  glyphs = 6,    ///< built-in images; a = split, b = sample
  dropout = 7,   ///< a = layer, b = step
  birth = 8,     ///< values of new connections; a = layer, b = step
  noise = 9,     ///< added to gradients; a = layer, b = step
  task = 10,     ///< sequences of tasks; a = task, b = what for
  test = 1000,   ///< for tests
};

/// Ten rounds of Philox4x32 on one counter.
std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key);

class RandomStream {
 public:
  RandomStream(std::uint64_t seed, Purpose purpose, std::uint64_t a = 0, std::uint64_t b = 0);

  // --- random access: pure functions of i -------------------------------------------------------
  std::uint64_t bits_at(std::uint64_t i) const;  ///< 64 random bits
  double uniform_at(std::uint64_t i) const;      ///< [0, 1), 53 bits
  double normal_at(std::uint64_t i) const;       ///< mean 0, variance 1 (Box-Muller)
  /// [0, n), exact (no modulo bias); 1 <= n, i < 2^40
  std::uint64_t below_at(std::uint64_t i, std::uint64_t n) const;

  // --- sequential: the same numbers at a position that moves -------------------------------------
  std::uint64_t bits() { return bits_at(next_++); }
  double uniform() { return uniform_at(next_++); }
  double uniform(double low, double high) { return low + (high - low) * uniform(); }
  double normal() { return normal_at(next_++); }
  std::uint64_t below(std::uint64_t n);  ///< [0, n), exact (no modulo bias); n >= 1

 private:
  std::array<std::uint32_t, 2> key_;
  std::array<std::uint32_t, 2> name_;  // upper half of the counter
  std::uint64_t next_ = 0;
};

/// 0 .. n-1 in random order (Fisher-Yates).
std::vector<std::int64_t> random_permutation(std::int64_t n, RandomStream stream);

/// k different numbers of 0 .. n-1, ascending; every subset equally likely. Time and memory go with k (with n - k where
/// that is less, and then with n for writing them down). Any number of threads gives the same subset.
std::vector<std::int64_t> random_subset(std::int64_t n, std::int64_t k, const RandomStream& random, int threads = 1);

}  // namespace espalier
