/// A task of a sequence: what it learns from, in so many words that it can be found again years later.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "espalier/data/dataset.h"
#include "espalier/nn/network.h"
#include "espalier/train/experiment.h"
#include "espalier/train/json.h"
#include "espalier/train/run_config.h"

namespace espalier::continual {

/// Everything that decides a task's images. [data].root is not part of it: files may move.
struct TaskSource {
  std::string sequence;                       ///< permuted, rotated, split, datasets
  std::int64_t number = 1;                    ///< in its sequence, from 1
  std::uint64_t seed = 1;                     ///< of permutations, drawn images, the validation split
  double degrees = 0;                         ///< rotated
  std::int64_t first_class = 0, classes = 0;  ///< split
  data::DataOptions data;

  std::string text() const;  ///< "mnist, permutation 3", "cifar10, classes 4 to 5"
  train::Json to_json() const;
  /// Throws Error(data) for what to_json did not write.
  static TaskSource from_json(const train::Json& json);
};

/// Task `number` (from 1) of the sequence of the configuration. Throws Error(usage), naming those that there are, for a
/// number it does not have. `base`: classes of the data set, for split.
TaskSource task_source(const train::RunConfig& config, std::int64_t number, std::int64_t base_classes);

/// A data set as it is, as a task of its own; the other keys of [data] hold for it.
TaskSource task_of_data(const train::RunConfig& config, const std::string& name);

/// Data sets, each read once; views of them are made on demand.
class TaskData {
 public:
  /// root: in place of each source's own, where given.
  explicit TaskData(std::string root = "") : root_(std::move(root)) {}

  /// The data set behind a source, as it is.
  const data::Dataset& base(const TaskSource& source);
  /// A task's splits and loaders as `config` (batch size, augmentation, …) has them, fitted to `input`.
  std::unique_ptr<train::RunData> of(const TaskSource& source, const train::RunConfig& config,
                                     const nn::InputShape& input);

 private:
  std::string root_;
  std::map<std::string, data::Dataset> sets_;
};

/// How many tasks the sequence of the configuration has, its own head decided ("auto" resolved), and the images that
/// all of them fit into.
struct Sequence {
  std::int64_t tasks = 0;
  bool own_heads = false;
  nn::InputShape input;
  std::vector<TaskSource> sources;
};
Sequence plan_sequence(const train::RunConfig& config, TaskData& data);

/// [continual].head with "auto" resolved.
bool own_heads(const train::ContinualOptions& options);

}  // namespace espalier::continual
