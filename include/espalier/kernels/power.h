/// Element-wise kernels of masked training: the power map psi(phi) = phi|phi|^(alpha-1), its derivative
/// alpha|phi|^(alpha-1), and masks held as bits. All work on positions [begin, end) of dense arrays; begin is a
/// multiple of 64 (a mask word). A null mask means that every bit is set. Kernels check nothing, allocate nothing, and
/// write each element once, so any split over threads gives the same bits.
#pragma once

#include <cstdint>

namespace espalier::kernels {

template <class T>
struct PowerKernels {
  /// w[i] = forward bit ? psi(phi[i]) : 0
  void (*push)(const T* phi, const std::uint64_t* forward, double alpha, T* w, std::int64_t begin, std::int64_t end);

  /// g[i] = backward bit ? (g[i] + decay * psi(phi[i])) * psi'(phi[i]) : 0, in place: the gradient of w becomes that of
  /// phi.
  void (*pull)(const T* phi, const std::uint64_t* backward, double alpha, double decay, T* g, std::int64_t begin,
               std::int64_t end);

  /// True where a power costs so much that push should leave it for the next pull: alpha is no multiple of 1/4 up to 5.
  static bool costly(double alpha) {
    return alpha > 5 || alpha * 4 != static_cast<double>(static_cast<int>(alpha * 4));
  }

  /// push that also leaves power[i] = |phi[i]|^(alpha-1), and the pull that uses it.
  void (*push_keeping_power)(const T* phi, const std::uint64_t* forward, double alpha, T* w, T* power,
                             std::int64_t begin, std::int64_t end);
  void (*pull_with_power)(const T* phi, const T* power, const std::uint64_t* backward, double alpha, double decay, T* g,
                          std::int64_t begin, std::int64_t end);

  /// The "virtual target" update: an optimiser has moved w from psi(phi).M_f to the target given in w; where the
  /// backward bit is set, phi[i] += (w[i] - psi(phi[i]).M_f) * psi'(phi[i]). Then w = psi(phi).M_f.
  void (*target)(T* phi, const std::uint64_t* forward, const std::uint64_t* backward, double alpha, T* w,
                 std::int64_t begin, std::int64_t end);

  /// x[i] = keep bit ? x[i] : (otherwise ? otherwise[i] : 0)
  void (*keep)(T* x, const std::uint64_t* keep, const T* otherwise, std::int64_t begin, std::int64_t end);
};

}  // namespace espalier::kernels
