/// Small sequences of tasks for tests: drawn images, few of them, networks of a few layers.
#pragma once

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <atomic>
#include <string>
#include <vector>

#include "espalier/continual/evaluate.h"
#include "espalier/continual/learner.h"
#include "train/temporary_directory.h"

namespace espalier::continual::testing {

using espalier::testing::contains;
using espalier::testing::error_of;
using espalier::testing::read_bytes;
using espalier::testing::TemporaryDirectory;
using espalier::testing::Warnings;
using espalier::testing::write_bytes;

inline const char* const kSmall = R"(
[run]
threads = 1
[data]
name = "glyphs"
train_size = 120
test_size = 40
validation = 40
[model]
name = "mlp"
widths = [24]
[train]
steps = 6
epochs = 0
batch_size = 16
[optim]
lr = 0.05
momentum = 0.9
weight_decay = 0.01
[reparam]
name = "powerprop"
alpha = 1.5
[checkpoint]
every = "3it"
[log]
every = "2it"
[continual]
sequence = "permuted"
tasks = 3
)";

/// kSmall with other values: "continual.method=packnet".
inline train::RunConfig small(const std::vector<std::string>& set = {}) {
  train::ConfigSources from;
  from.text = kSmall;
  from.file = "small";
  from.set = set;
  return train::load_config(from);
}

inline train::Json run(const std::filesystem::path& path, const train::RunConfig& config, const Hooks& hooks = {}) {
  const bool there = std::filesystem::exists(path / "config.toml");
  train::RunDirectory directory = there
                                      ? train::RunDirectory::open(path)
                                      : train::RunDirectory::create(path, {train::to_toml(config), "", "", {}}, false);
  return learn(config, directory, hooks).summary;
}

/// A pack without tasks for the sequence of the configuration.
inline Pack empty_pack(const train::RunConfig& config) {
  TaskData data;
  const Sequence plan = plan_sequence(config, data);
  Pack pack = new_pack(config, plan.input, plan.own_heads,
                       plan.sources.front().sequence == "split" ? plan.sources.front().classes
                                                                : data.base(plan.sources.front()).num_classes());
  pack.accuracies.add_row({});
  return pack;
}

inline at::Tensor logits(const Pack& pack, std::int64_t number) {
  TaskData data;
  const auto of_task = data.of(pack.tasks[static_cast<std::size_t>(number - 1)].source, pack.config, pack.input);
  return logits_of(*task_network(pack, number), of_task->test_batches());
}

}  // namespace espalier::continual::testing
