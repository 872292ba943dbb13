/// Many tasks in one network: the weights that they share, a bit mask a task, and what a task owns. One file holds it
/// all (docs/formats/pack.md); a task is used, and another one learnt, from that file alone.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "espalier/continual/accuracies.h"
#include "espalier/continual/masks.h"
#include "espalier/continual/task.h"
#include "espalier/nn/network.h"
#include "espalier/nn/reparametrisation.h"
#include "espalier/train/run_config.h"
#include "espalier/train/safetensors.h"

namespace espalier::continual {

/// A weight whose entries tasks share out among them.
struct PackedWeight {
  std::string name;  ///< as in state_dict
  std::vector<std::int64_t> shape;
  std::int64_t layer = 0;  ///< key of its random streams
  at::Tensor phi;          ///< trainable values at every position, float32
};

struct PackedTask {
  TaskSource source;
  std::int64_t classes = 0;
  Masks masks;               ///< what it computes with, a mask a weight; empty: with everything
  train::NamedTensors own;   ///< its biases, normalisation, head: what no other task uses
  std::uint32_t digest = 0;  ///< CRC-32 of all that it computes with, on the day it was learnt
  train::Json record;        ///< how it was learnt: keep rate, trials, accuracies on held-out images
};

/// How a method of [continual].method shares the network.
enum class Sharing {
  masked,    ///< packnet, efficient-packnet: a task is a mask, and owns the rest
  whole,     ///< fine-tuning, ewc, joint: every task uses, and changes, all of it
  separate,  ///< a network for each: nothing is shared
};
Sharing sharing_of(const std::string& method);

struct Pack {
  train::RunConfig config;  ///< of the run that began it
  nn::InputShape input;
  bool own_heads = false;
  std::string head;                   ///< name of the last layer: "fc3"
  std::vector<PackedWeight> weights;  ///< none where nothing is shared
  train::NamedTensors shared;         ///< parameters and buffers beside the weights that tasks share (Sharing::whole)
  train::NamedTensors anchors;        ///< ewc: "<name>.fisher" = sum F, "<name>.pull" = sum F w*
  std::vector<PackedTask> tasks;
  Accuracies accuracies;

  Sharing sharing() const { return sharing_of(config.continual.method); }
  Reparametrisation reparametrisation() const;
};

/// A pack without tasks, every weight as drawn at step 0.
Pack new_pack(const train::RunConfig& config, const nn::InputShape& input, bool own_heads, std::int64_t classes);

/// Every parameter and buffer of a network by name; the tensors themselves.
train::NamedTensors tensors_of(const nn::Network& network);

/// Whether this parameter or buffer belongs to each task alone.
bool is_own(const Pack& pack, const std::string& name);

/// The network at step 0 with so many classes, in evaluation mode.
std::shared_ptr<nn::Network> fresh_network(const Pack& pack, std::int64_t classes);

/// The network of task `number` (from 1), in evaluation mode. Throws Error(usage) that names the tasks there are.
std::shared_ptr<nn::Network> task_network(const Pack& pack, std::int64_t number);

/// The network from which the next task, of so many classes, would start to learn: all weights, and its own tensors as
/// drawn.
std::shared_ptr<nn::Network> next_network(const Pack& pack, std::int64_t classes);

/// CRC-32 of every tensor with which the task computes.
std::uint32_t task_digest(const Pack& pack, std::int64_t number);

/// psi(phi) . mask, by the kernels of training: any number of threads gives the same bits.
at::Tensor effective(const PackedWeight& weight, const BitMask* mask, const Reparametrisation& psi);

/// Positions of weight `w` that any task has.
BitMask used(const Pack& pack, std::size_t w);

// ---- accounts ------------------------------------------------------------------------------------------------------

struct TaskCapacity {
  std::int64_t kept = 0;    ///< positions of its mask
  std::int64_t fresh = 0;   ///< of these, in no earlier task's
  std::int64_t reused = 0;  ///< kept - fresh
};
struct LayerCapacity {
  std::string name;
  std::int64_t weights = 0, used = 0, free = 0;
  std::int64_t shared = 0;  ///< in more than one task's mask
  std::vector<TaskCapacity> tasks;
};
/// One entry for each packed weight. Without masks every task has every weight; with a network for each there is none.
std::vector<LayerCapacity> capacity(const Pack& pack);
/// Used weights as a share of those of one network: above 1 where every task has a network of its own.
double capacity_used(const Pack& pack);
train::Json capacity_json(const Pack& pack);

// ---- file ----------------------------------------------------------------------------------------------------------

/// The content of the file; also part of a run's checkpoint.
train::NamedTensors pack_tensors(const Pack& pack);
std::map<std::string, std::string> pack_metadata(const Pack& pack, const train::NamedTensors& tensors);
/// `source` stands in messages. Throws Error(data) for anything that is not whole.
Pack pack_from(const train::NamedTensors& tensors, const std::map<std::string, std::string>& metadata,
               const std::string& source);

/// Whole or not at all: readers see the old file or this one.
void save_pack(const std::filesystem::path& path, const Pack& pack);
/// Throws Error(usage) if there is no such file, Error(data) if it is damaged or no pack.
Pack load_pack(const std::filesystem::path& path);

}  // namespace espalier::continual
