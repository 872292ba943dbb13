// Part of the text of the backward kernels, included once by the file of each instruction set after vector-inl.h.

/// Dot products as vectors of partial sums, waiting to be summed across lanes a vector's worth at a time: cheaper than
/// one by one, and no tails at the ends of columns. `segment` dots may be added between two calls of flush_full.
template <class T, int segment>
class PendingDots {
 public:
  PendingDots(T* to, bool accumulate) : to_(to), accumulate_(accumulate) {}

  static constexpr int kSegment = segment;

  Vec<T>* next() { return dots_ + count_; }
  void added(int n) { count_ += n; }

  /// Sums all full groups; what is left moves to the front.
  void flush_full() {
    if (count_ < kSegment) return;
    int i = 0;
    for (; i + kLanes<T> <= count_; i += kLanes<T>) {
      Vec<T> sums = sums_of<T>(dots_ + i);
      if (accumulate_) sums += load(to_);
      store(to_, sums);
      to_ += kLanes<T>;
    }
    for (int j = i; j < count_; ++j) dots_[j - i] = dots_[j];
    count_ -= i;
  }

  void finish() {
    flush_full();
    for (int i = 0; i < count_; i += kLanes<T>) {
      Vec<T> group[kLanes<T>];
      for (int j = 0; j < kLanes<T>; ++j) group[j] = i + j < count_ ? dots_[i + j] : Vec<T>{};
      const Vec<T> sums = sums_of<T>(group);
      for (int j = 0; j < kLanes<T> && i + j < count_; ++j) to_[j] = accumulate_ ? to_[j] + sums[j] : sums[j];
      to_ += kLanes<T>;
    }
    count_ = 0;
  }

 private:
  Vec<T> dots_[2 * kSegment];
  int count_ = 0;
  T* to_;
  bool accumulate_;
};
