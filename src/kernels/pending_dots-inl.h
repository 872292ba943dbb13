// Part of the text of the backward kernels, included once by the file of each instruction set after vector-inl.h.

/// Dot products as vectors of partial sums, waiting in a ring to be summed across lanes a vector's worth at a time:
/// cheaper than one by one, and no tails at the ends of lines. `kSegment` of them are summed at a time, or none: what
/// depends on how many are left over, be it a loop or a branch, is foreseen wrongly at every line.
template <class T>
class PendingDots {
 public:
  /// `to`: of entry `begin`.
  PendingDots(T* to, std::uint32_t begin, bool accumulate) : begin_(begin), to_(to), accumulate_(accumulate) {}

  static constexpr std::uint32_t kSegment = 16;

  /// Where the dot of an entry goes; entries come in order.
  Vec<T>& of(std::uint32_t entry) { return dots_[(entry - begin_) % kSlots]; }

  /// Entries up to `end` have come. To be called once in `kSegment` entries or more often.
  void flush_full(std::uint32_t end) {
    if (end - begin_ - summed_ < kSegment) return;
    for (std::uint32_t i = 0; i < kSegment; i += kLanes<T>) flush();
  }

  void finish(std::uint32_t end) {
    while (end - begin_ - summed_ >= kLanes<T>) flush();
    const std::uint32_t rest = end - begin_ - summed_;
    Vec<T> group[kLanes<T>] = {};
    for (std::uint32_t j = 0; j < rest; ++j) group[j] = dots_[(summed_ + j) % kSlots];
    const Vec<T> sums = sums_of<T>(group);
    for (std::uint32_t j = 0; j < rest; ++j) to_[j] = accumulate_ ? to_[j] + sums[j] : sums[j];
  }

 private:
  static constexpr std::uint32_t kSlots = 2 * kSegment;
  static_assert(kSegment % kLanes<T> == 0);

  void flush() {
    Vec<T> sums = sums_of<T>(dots_ + summed_ % kSlots);
    if (accumulate_) sums += load(to_);
    store(to_, sums);
    to_ += kLanes<T>;
    summed_ += kLanes<T>;
  }

  Vec<T> dots_[kSlots];
  std::uint32_t begin_, summed_ = 0;
  T* to_;
  bool accumulate_;
};
