// How fast this instruction set multiplies and adds when nothing else is in the way.

/// `rounds` times twelve independent fused multiply-adds on vectors; returns how many single ones that was.
template <class T>
std::int64_t multiply_adds(std::int64_t rounds) {
  constexpr int kChains = 12;
  Vec<T> sum[kChains];
  for (int i = 0; i < kChains; ++i) sum[i] = broadcast(static_cast<T>(i));
  const Vec<T> a = broadcast(static_cast<T>(0.999)), b = broadcast(static_cast<T>(1e-3));
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sum[i] = sum[i] * a + b;
  }
  for (int i = 1; i < kChains; ++i) sum[0] += sum[i];
  volatile T sink = sum[0][0];
  static_cast<void>(sink);
  return rounds * kChains * kLanes<T>;
}
