/// Trains what a configuration describes, into a run directory, so that it can be killed at any moment and resumed to
/// the same bits.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

#include "espalier/train/json.h"
#include "espalier/train/run_config.h"
#include "espalier/train/run_directory.h"

namespace espalier::train {

/// Where a run stands, for a progress line.
struct Progress {
  std::int64_t step = 0, total_steps = 0, steps_per_epoch = 0;
  double loss = 0;      ///< mean since the last evaluation or start of the epoch
  double accuracy = 0;  ///< on the training batches, over the same stretch
  double sparsity = 0;
  double samples_per_second = 0;
  double seconds_left = 0;
};

struct TrainHooks {
  std::function<void(const Progress&)> progress;  ///< after each step; may be empty
  const std::atomic<bool>* stop = nullptr;        ///< set by a signal: checkpoint and return
};

enum class Outcome { done, stopped };

struct TrainResult {
  Outcome outcome = Outcome::done;
  Json summary;  ///< as written to summary.json; for a stopped run status is "stopped"
};

/// Trains from the latest checkpoint of the directory, or from the start if it has none. Throws Error(diverged), with
/// step and first layer at fault, when the loss is not finite; summary.json says so then.
TrainResult train(const RunConfig& config, RunDirectory& directory, const TrainHooks& hooks);

}  // namespace espalier::train
