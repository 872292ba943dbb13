/// A sparse network's structure as a file: masks, and the weights that training starts from. docs/methods/given.md.
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "espalier/nn/network.h"
#include "espalier/nn/sparse_weight.h"
#include "espalier/train/run_config.h"
#include "espalier/train/safetensors.h"

namespace espalier::train {

struct Structure {
  std::string source;                      ///< the file, for messages
  NamedTensors weights;                    ///< parameters and buffers of step 0; empty if the file holds masks alone
  std::map<std::string, at::Tensor> kept;  ///< positions of each weight that has a mask or is stored compressed
};

/// Throws Error(usage) if the file is not there, Error(data) if it is damaged or holds no mask.
Structure load_structure(const std::filesystem::path& file);

/// The positions of one weight. Throws Error(data) if the structure has none for it, or of another shape.
at::Tensor kept_positions(const Structure& structure, const SparseWeight& weight);

/// [method].structure of the method `given`; "" for any other.
std::string structure_file(const RunConfig& config);

/// Makes the network begin with these weights: all parameters and buffers, by name. What a compressed layer does not
/// store yet is looked up when it is kept. Throws Error(data) as load_state_dict does.
void begin_with(nn::Network& network, const NamedTensors& weights, const std::string& source);

}  // namespace espalier::train
