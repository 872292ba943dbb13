/// A set of positions 0 .. size-1, one bit each; bit i lives in word i / 64.
#pragma once

#include <cstdint>
#include <vector>

namespace espalier {

/// Ones of a word. Without the instruction for it, which not every x86-64 has, the compiler's own is a call.
inline int count_ones(std::uint64_t word) {
  word -= word >> 1 & 0x5555555555555555u;
  word = (word & 0x3333333333333333u) + (word >> 2 & 0x3333333333333333u);
  word = (word + (word >> 4)) & 0x0f0f0f0f0f0f0f0fu;
  return static_cast<int>(word * 0x0101010101010101u >> 56);
}

class BitMask {
 public:
  BitMask() = default;
  explicit BitMask(std::int64_t size, bool value = false);

  std::int64_t size() const { return size_; }
  std::int64_t count() const { return count_; }  ///< number of ones; O(1)
  bool all() const { return count_ == size_; }
  bool test(std::int64_t i) const { return (words_[word(i)] >> (i & 63)) & 1u; }
  void set(std::int64_t i, bool value);
  std::vector<std::int64_t> positions() const;  ///< the ones, ascending
  const std::uint64_t* words() const { return words_.data(); }
  /// Null where every bit is set: kernels take that as "no mask".
  const std::uint64_t* words_or_null() const { return all() ? nullptr : words_.data(); }
  bool contains(const BitMask& other) const;  ///< every one of `other` is a one here; equal sizes
  bool operator==(const BitMask& other) const { return size_ == other.size_ && words_ == other.words_; }

 private:
  static std::size_t word(std::int64_t i) { return static_cast<std::size_t>(i >> 6); }
  std::int64_t size_ = 0;
  std::int64_t count_ = 0;
  std::vector<std::uint64_t> words_;
};

}  // namespace espalier
