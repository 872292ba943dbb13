/// model.storage = "auto": each layer is timed once in both storages, and the faster ones are taken.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "espalier/nn/models.h"
#include "espalier/train/run_config.h"

namespace espalier::train {

/// Of one batch, forward and backward; all 0: not measured.
struct LayerTimes {
  double dense_us = 0, compressed_us = 0;  ///< each on activations as it takes them
  double conversion_us = 0;                ///< of what goes into the layer, to batch tiles or back
  bool one_thread = false;                 ///< other programs kept the cores: processor time of one thread instead
};

struct LayerChoice {
  std::string layer;         ///< "fc1"
  std::string shape;         ///< "784x300"; "64x128x3x3 @ 16x16" for a convolution and its output, with a stride "/2"
  std::int64_t weights = 0;  ///< of the dense layer
  std::int64_t nnz = 0;      ///< what the distribution gives it; the share of all layers for "global"
  bool compressed = false;
  LayerTimes times;
};

/// The weight layers of the model, but for the dense_layers, in the order of computation. The choice is the one with
/// the least time in all, where a change from plain activations to batch tiles between two layers costs a conversion.
/// Only a method that is sparse from the start is measured: a network that is dense first would be slower compressed,
/// so it stays masked. Measurements are kept in $XDG_CACHE_HOME/espalier/storage.json (or ~/.cache), by CPU,
/// instruction set, threads, version, shape, entries and batch; where it cannot be read or written, they are made
/// again. Threads that wait for each other wait for other programs, too, at every parallel loop: a layer of tens of
/// microseconds takes milliseconds then. Where no thread of this process gets its core when it needs it, a layer is
/// timed on one thread; those times are kept, too, until they can be replaced.
std::vector<LayerChoice> choose_storage(const RunConfig& config, const nn::InputShape& input, std::int64_t classes);

/// The choice as make_model takes it.
nn::Compress compressed_layers(const std::vector<LayerChoice>& choices);

/// A table for the log, a layer a line.
std::string to_text(const std::vector<LayerChoice>& choices);

}  // namespace espalier::train
