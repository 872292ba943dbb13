/// What flows through a network along its paths from an input to an output. One forward and one backward pass give
/// SynFlow's scores and the trace of the path kernel.
///
///     R_p = 1' |w_L|^p … |w_1|^p 1 = sum over paths of |product of the weights|^p
///
/// R is linear in each |w_k|^p: |w_k|^p dR/d|w_k|^p is the part of it that goes through weight k (SynFlow's score for
/// p = 1: Tanaka, Kunin, Yamins, Ganguli, NeurIPS 2020, eq. 4), and for p = 2
///
///     Tr Pi = sum over paths, sum over k in the path of (product / w_k)^2 = sum over k of dR_2/dw_k^2
///
/// is the trace of the path kernel (Gebhart, Saxena, Schrater 2021; Patil, Dovrolis, ICML 2021).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "espalier/methods/probe.h"
#include "espalier/nn/sparse_weight.h"

namespace espalier {

struct PathFlow {
  double total = 0;                   ///< R
  std::vector<at::Tensor> gradients;  ///< dR/dm for each weight m = |w|^p, kept or not; float64, of its shape
  std::vector<at::Tensor> of_biases;  ///< b^p dR/db^p for each bias, where they were asked for
};

/// The network as a linear function of non-negative inputs: batch norm is the identity, dropout is off, biases are zero
/// (or |b|^p), all in double precision. ReLU and pools then pass what they get; max pools take the largest of their
/// flows, as SynFlow's code does.
class FlowNetwork {
 public:
  /// `weights`: names of the weights whose gradients are wanted ("fc1.weight").
  FlowNetwork(const Probe& probe, const std::vector<std::string>& weights, bool biases = false, int power = 1);

  /// magnitudes: |w|^p, 0 where masked, one for each weight. All other weights of the network must be set before, by
  /// `set`. Throws Error(diverged) if R is not finite, Error(usage) if the network is no such function (an activation
  /// that bends positive numbers: tanh, sigmoid, …).
  PathFlow operator()(const std::vector<at::Tensor>& magnitudes);
  void set(const std::string& weight, const at::Tensor& magnitude);

 private:
  ProbeNetwork network_;
  std::vector<std::int64_t> input_;
  std::vector<at::Tensor> weights_;
  std::vector<at::Tensor> biases_;
  bool checked_ = false;
};

/// |w|^power as the layer computes with it, float64, 0 where nothing is kept.
at::Tensor magnitude(const SparseWeight& weight, int power);

/// What flows through each layer of a network as it is now.
struct LayerFlow {
  std::string name;
  double flow = 0;   ///< sum over its weights of |w| dR_1/d|w|: R in each layer of a chain without biases
  double trace = 0;  ///< its part of the path kernel's trace
};
struct NetworkFlow {
  double flow = 0, trace = 0;     ///< R_1; Tr Pi
  std::vector<LayerFlow> layers;  ///< in the order of `weights`
};
NetworkFlow network_flow(const Probe& probe, const std::vector<const SparseWeight*>& weights);

/// Pi(p, q) = sum over k of d pi_p/d w_k . d pi_q/d w_k for every pair of paths of a linear chain W_1 [n_1, n_0], …,
/// W_L: the definition, for small networks. Paths are ordered by output unit of W_1, then input; then W_2's output, …
/// Paths through zero weights are left out. Throws Error(usage) beyond 4096 paths.
at::Tensor path_kernel(const std::vector<at::Tensor>& chain);

}  // namespace espalier
