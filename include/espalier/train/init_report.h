/// What a sparse network is like before it is trained: what espalier init prints.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "espalier/train/experiment.h"
#include "espalier/train/json.h"

namespace espalier::train {

struct InitLayer {
  std::string name;  ///< of the weight
  std::vector<std::int64_t> shape;
  std::int64_t weights = 0, nnz = 0;
  std::int64_t units = 0;             ///< outputs
  std::optional<std::int64_t> width;  ///< outputs with a kept weight in and out; none for a projection
  /// Walks through each unit, for methods that walk.
  struct Visits {
    std::int64_t least = 0, most = 0;
    double mean = 0;
  };
  std::optional<Visits> visits;
  double flow = 0, trace = 0;  ///< methods/flow.h
};

struct InitReport {
  std::int64_t weights = 0, nnz = 0;  ///< of the sparsified weights
  std::optional<std::int64_t> walks;
  bool has_flow = false;  ///< flow and trace are measured: a dense copy of the network fits, and is linear in the input
  std::string no_flow;    ///< why not
  double flow = 0, trace = 0;
  std::vector<InitLayer> layers;  ///< every weight layer, in the order of the model
};

/// The network as `model` holds it now.
InitReport init_report(const RunConfig& config, const SparseModel& model);

Json to_json(const InitReport& report);

}  // namespace espalier::train
