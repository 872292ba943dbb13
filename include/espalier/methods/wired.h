/// The weights of a network as a graph of units: channels of an image or features of a vector. What walks go along, and
/// what says which units a mask still connects.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "espalier/methods/method.h"
#include "espalier/nn/sparse_weight.h"

namespace espalier {

/// A weight [outputs, inputs / groups, …] between two sets of units.
struct WiredLayer {
  const SparseWeight* weight = nullptr;
  std::int64_t inputs = 0, outputs = 0;
  std::int64_t groups = 1;
  std::int64_t kernel = 1;  ///< entries that join one input to one output
  std::int64_t spread = 1;  ///< inputs for each unit of the layer before: places of a channel that was flattened
};

struct WiredBypass {
  std::size_t first = 0, last = 0;    ///< around line[first] … line[last]
  std::optional<WiredLayer> through;  ///< the projection; none: the identity
};

struct WiredNetwork {
  std::vector<WiredLayer> line;  ///< from the input to the output
  std::vector<WiredBypass> bypasses;
};

/// All weights of the context, `dense_weights` too, in the wiring of context.probe; without a probe, one after the
/// other in the order of the model. Throws Error(usage) if shapes do not follow each other, or if the wiring names
/// other layers than the model has.
WiredNetwork wire(const MethodContext& context);

/// What the masks leave.
struct Connections {
  /// For each weight of WiredNetwork::line: outputs with a kept weight that comes in and one that goes out (into the
  /// layers that read them; not asked of the last layer).
  std::vector<std::int64_t> widths;
  bool connected = false;             ///< some path of kept weights leads from an input to an output
  std::optional<std::size_t> cut_at;  ///< if not: the first of the line whose outputs nothing reaches
  std::int64_t unreached = 0;         ///< outputs of the last layer to which no path leads
};
/// Of channels: a kernel with any entry connects, wherever the entry stands.
Connections connections(const WiredNetwork& network);

/// Throws Error(usage), with the layer where it is cut, unless some path leads through the network. Warns of outputs
/// that no path leads to.
void refuse_if_cut(const MethodContext& context);

}  // namespace espalier
