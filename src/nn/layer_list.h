/// A network written as a list of layers: ["conv(32, kernel=5)", "relu", "flatten", "linear(classes)"].
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "espalier/nn/models.h"
#include "espalier/nn/network.h"

namespace espalier::nn {

enum class Naming {
  by_index,  ///< "0", "3", …: the place in the list, as in Python's nn.Sequential; every element is observed
  by_kind,   ///< "conv1", "bn1", "fc1", …; activations, pools and flatten have no name and are not observed
};

/// `where` names the list in messages, e.g. "model.layers"; `scaled` makes the outputs of each weight layer but the
/// last what they are to be. Throws Error(usage): every element that cannot be read, or else the first that does not
/// fit the one before it.
std::shared_ptr<Network> make_layer_list(const std::vector<std::string>& layers, Naming naming,
                                         const std::string& where, const InputShape& input, std::int64_t classes,
                                         const Compress& compressed,
                                         const std::function<std::int64_t(std::int64_t)>& scaled = {});

}  // namespace espalier::nn
