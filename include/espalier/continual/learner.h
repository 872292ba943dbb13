/// Learns a sequence of tasks into one network: the order of things is that of EfficientPackNet's algorithm 1 (train,
/// measure, prune, protect, draw anew, retrain), with PackNet, fine-tuning, EWC and the two limits (a network for each,
/// all at once) as its variants. docs/continual.md.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>

#include "espalier/continual/pack.h"
#include "espalier/train/json.h"
#include "espalier/train/run_config.h"
#include "espalier/train/run_directory.h"
#include "espalier/train/trainer.h"

namespace espalier::continual {

/// Where a sequence stands, for a progress line.
struct Progress {
  std::int64_t task = 0, tasks = 0;
  bool retraining = false;
  std::int64_t step = 0, total_steps = 0;  ///< of this training
  double loss = 0, accuracy = 0;           ///< over the batches of this epoch
};

struct Hooks {
  std::function<void(const Progress&)> progress;  ///< after each step; may be empty
  const std::atomic<bool>* stop = nullptr;        ///< set by a signal: checkpoint and return
};

/// Learns the sequence of the configuration, from the latest checkpoint of the directory, or from the start if it has
/// none; the result is the same to the bit. The packed network stands in pack.safetensors after each task. Throws
/// Error(usage) when a task finds no free weight (the file then holds the tasks before it), Error(diverged) when a loss
/// is not finite.
train::TrainResult learn(const train::RunConfig& config, train::RunDirectory& directory, const Hooks& hooks);

/// Learns one more task into a pack, which is changed only if all goes well. `config` is the pack's, or one that
/// differs where that changes no earlier task (check_may_add). Returns what stands in a summary.
train::Json add_task(Pack& pack, const train::RunConfig& config, const TaskSource& source, const Hooks& hooks);

/// Throws Error(usage) for keys in which the configuration may not differ from that of the pack.
void check_may_add(const Pack& pack, const train::RunConfig& config);

/// The task that would come next in the pack's own sequence.
TaskSource next_source(const Pack& pack, const train::RunConfig& config, TaskData& data);

/// Accuracies, transfer, forgetting and capacity of a pack, as summary.json has them.
train::Json summary_of(const Pack& pack);

std::string pack_path(const train::RunDirectory& directory);

}  // namespace espalier::continual
