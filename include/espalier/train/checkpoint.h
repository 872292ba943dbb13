/// Checkpoints: whole or absent. A checkpoint is a folder `checkpoints/step-00012000` that appears under its name only
/// when all of it is on the disk; `latest` and `best` are links for people. docs/formats/checkpoint.md.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "espalier/train/safetensors.h"

namespace espalier::train {

/// All that a run needs to go on as if it had never stopped.
struct Checkpoint {
  std::int64_t step = 0;                              ///< optimiser steps done
  NamedTensors model;                                 ///< parameters and buffers, named as Python's state_dict would
  std::map<std::string, std::string> model_metadata;  ///< text beside the tensors of `model` in its file
  NamedTensors optimizer;                             ///< moments
  NamedTensors sparsity;                              ///< masks and what else the method keeps in tensors
  /// Everything that is not a tensor. Doubles come back exactly; non-finite ones as strings (number_from_json).
  nlohmann::json state = nlohmann::json::object();
  /// The step of the best checkpoint so far, itself included; set by load, ignored by save.
  std::optional<std::int64_t> best_step = std::nullopt;
};

/// Reads one checkpoint folder (a link such as checkpoints/best will do). Throws Error(data) naming the file that is
/// missing, damaged (length or CRC-32 is not what state.json says) or of a newer format.
Checkpoint load_checkpoint(const std::filesystem::path& directory);

/// The newest whole checkpoint of a run; a damaged one is named by log_warning and the one before it used. Nothing if
/// the run has none; Error(data) if it has some and all are damaged. Changes nothing on the disk.
std::optional<Checkpoint> load_latest_checkpoint(const std::filesystem::path& run_directory);

/// The checkpoints of a run that is training. One store a run directory at a time: RunDirectory's lock sees to that.
class CheckpointStore {
 public:
  /// Keeps the newest `keep` (>= 1) and the best. Removes what a killed process left half-written.
  CheckpointStore(const std::filesystem::path& run_directory, std::int64_t keep);

  /// When it returns, the checkpoint is on the disk. A checkpoint of the same step is replaced; those of later steps,
  /// which a rewound run is about to make anew, are removed. On failure (disk full, no right to write) throws
  /// Error(failed) with the path and the system's reason, and the checkpoints that were there are untouched.
  void save(const Checkpoint& checkpoint, bool best);

  /// As load_latest_checkpoint; also mends the links `latest` and `best` if the last save was cut short before them.
  std::optional<Checkpoint> load_latest();

  static Checkpoint load(const std::filesystem::path& directory) { return load_checkpoint(directory); }

  /// Of all checkpoint folders, ascending.
  std::vector<std::int64_t> steps() const;

 private:
  void remove_leftovers() const;
  void update_links(std::int64_t latest) const;
  void prune(std::int64_t latest) const;

  std::filesystem::path root_;  // <run>/checkpoints
  std::int64_t keep_;
  std::optional<std::int64_t> best_step_;
};

}  // namespace espalier::train
