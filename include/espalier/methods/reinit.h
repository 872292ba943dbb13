/// What the weights that the first masks keep begin training with.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "espalier/methods/method.h"

namespace espalier {

/// same      the values of the dense network, by which a pruning at initialisation chose them
/// fresh     a second draw from the same distribution, with nothing known of the first
/// xavier    normal, std = sqrt(2 / (fan_in + fan_out)) of the dense layer (Glorot, Bengio 2010)
/// layer     normal, std = sqrt(2 N_l / (fan_in n_l)), N_l of which n_l are kept: the mean variance of the dense layer
///           (Liu et al. 2019, as PHEW's ablation has it)
/// unit      normal, std = sqrt(2 / n) for an output unit with n kept weights (Evci et al. 2020)
std::vector<std::string> known_reinits();

/// Writes w at the active positions. `initializer` (nn/init.h) is needed by `fresh`. Values depend on (seed, layer,
/// position) alone. Throws Error(usage) for an unknown name or where the initializer is not known ("").
void reinitialise(SparseWeight& weight, const std::string& how, const std::string& initializer, std::uint64_t seed);

/// The option of every method that is sparse before step 0.
struct Reinit {
  std::string how = "same";
  void describe(Describe& d);
  void apply(SparseWeight& weight, const MethodContext& context) const;
};

}  // namespace espalier
