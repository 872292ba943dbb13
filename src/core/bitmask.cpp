#include "espalier/core/bitmask.h"

namespace espalier {

BitMask::BitMask(std::int64_t size, bool value)
    : size_(size), count_(value ? size : 0), words_(word(size + 63), value ? ~std::uint64_t{0} : 0) {
  if (value && (size & 63) != 0) words_.back() = (std::uint64_t{1} << (size & 63)) - 1;  // bits past the end stay 0
}

void BitMask::set(std::int64_t i, bool value) {
  if (test(i) == value) return;
  words_[word(i)] ^= std::uint64_t{1} << (i & 63);
  count_ += value ? 1 : -1;
}

std::vector<std::int64_t> BitMask::positions() const {
  std::vector<std::int64_t> ones;
  ones.reserve(static_cast<std::size_t>(count_));
  for (std::size_t w = 0; w < words_.size(); ++w) {
    for (std::uint64_t bits = words_[w]; bits != 0; bits &= bits - 1) {
      ones.push_back(static_cast<std::int64_t>(w) * 64 + __builtin_ctzll(bits));
    }
  }
  return ones;
}

bool BitMask::contains(const BitMask& other) const {
  for (std::size_t w = 0; w < words_.size(); ++w) {
    if ((other.words_[w] & ~words_[w]) != 0) return false;
  }
  return true;
}

}  // namespace espalier
