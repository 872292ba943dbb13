// Runs whose topology changes: resumed anywhere, accounted for, and started from one another.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <atomic>
#include <filesystem>

#include "espalier/core/error.h"
#include "espalier/methods/registry.h"
#include "espalier/train/durable_file.h"
#include "espalier/train/experiment.h"
#include "espalier/train/metrics.h"
#include "espalier/train/trainer.h"
#include "train/temporary_directory.h"

namespace espalier::train {
namespace {

namespace fs = std::filesystem;
using espalier::testing::TemporaryDirectory;

/// 300 training images, 22 steps an epoch with a short last batch, a change of topology every 6 steps.
RunConfig config_of(const std::string& method, const std::string& storage, const std::string& run = "") {
  return parse_config(
      "[run]\n" + run +
          "\n[data]\nname = \"glyphs\"\ntrain_size = 360\ntest_size = 130\nvalidation = 60\n"
          "[model]\nname = \"mlp\"\nwidths = [24]\nstorage = \"" +
          storage +
          "\"\n[train]\nepochs = 2\nbatch_size = 14\n[optim]\nlr = 0.05\nmomentum = 0.9\nweight_decay = 1e-4\n"
          "[method]\nname = \"" +
          method + "\"\n" + (method == "static-random" ? "" : "every = \"6it\"\n") +
          "[sparsity]\nsparsity = " + (method == "str" ? "0" : "0.9") + "\n[checkpoint]\nevery = \"9it\"\n",
      "test");
}

TrainResult run(const RunConfig& config, const fs::path& path, const TrainHooks& hooks = {}) {
  RunDirectory directory = fs::exists(path / "config.toml")
                               ? RunDirectory::open(path)
                               : RunDirectory::create(path, {to_toml(config), "", "", Json::object()}, false);
  return train(config, directory, hooks);
}

struct Case {
  std::string method, storage;
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.method << ", " << c.storage; }

class Dynamic : public ::testing::TestWithParam<Case> {};

// Stops on a change (6, 12), between two, and after a checkpoint that lies between two (9): the same bytes.
TEST_P(Dynamic, StoppedBetweenChangesAndResumedItEndsInTheSameBytes) {
  const TemporaryDirectory tmp;
  const RunConfig config = config_of(GetParam().method, GetParam().storage);
  run(config, tmp.path() / "whole");
  const std::string metrics = read_file(tmp.path() / "whole" / "metrics.jsonl");
  const auto whole = load_latest_checkpoint(tmp.path() / "whole");
  for (const int stop_at : {6, 9, 10, 12, 29}) {
    const fs::path path = tmp.path() / ("stopped-" + std::to_string(stop_at));
    std::atomic<bool> stop{false};
    TrainHooks hooks;
    hooks.stop = &stop;
    hooks.progress = [&](const Progress& p) { stop = p.step == stop_at; };
    ASSERT_EQ(run(config, path, hooks).outcome, Outcome::stopped);
    ASSERT_EQ(run(config, path).outcome, Outcome::done);
    EXPECT_EQ(read_file(path / "metrics.jsonl"), metrics) << stop_at;
    const auto resumed = load_latest_checkpoint(path);
    for (const auto part : {&Checkpoint::model, &Checkpoint::optimizer, &Checkpoint::sparsity}) {
      const auto& a = (*whole).*part;
      const auto& b = (*resumed).*part;
      ASSERT_EQ(a.size(), b.size());
      for (std::size_t i = 0; i < a.size(); ++i) {
        EXPECT_EQ(a[i].first, b[i].first);
        EXPECT_TRUE(torch::equal(a[i].second, b[i].second)) << a[i].first << " after a stop at " << stop_at;
      }
    }
  }
}

// 784 x 24 + 24 x 10 = 19,056 positions, 1,906 weights: one multiply-accumulate each.
TEST_P(Dynamic, EveryChangeIsAccountedFor) {
  const TemporaryDirectory tmp;
  if (GetParam().method == "str" || GetParam().method == "soft-deep-r") GTEST_SKIP() << "its number of weights is free";
  run(config_of(GetParam().method, GetParam().storage), tmp.path() / "run");
  double ever = 0;
  int changes = 0;
  for (const Json& e : read_metrics(tmp.path() / "run" / "metrics.jsonl")) {
    if (e["event"] != "topology") continue;
    ++changes;
    EXPECT_EQ(e["nnz"], 1906);
    EXPECT_EQ(e["macs"], 1906);
    std::int64_t nnz = 0;
    for (const Json& layer : e["layers"]) {
      nnz += layer["nnz"].get<std::int64_t>();
      EXPECT_GE(layer["nnz"], 1);
      EXPECT_EQ(layer["macs"], layer["nnz"]);
      // At least one weight each, so no more dead units than units without one of them.
      EXPECT_LE(layer["dead_outputs"], layer["name"] == "fc1.weight" ? 23 : 9);
      EXPECT_LE(layer["dead_inputs"], layer["name"] == "fc1.weight" ? 783 : 23);
    }
    EXPECT_EQ(nnz, 1906);
    EXPECT_GE(e["ever_active"].get<double>(), ever);  // only grows
    ever = e["ever_active"];
    EXPECT_GE(ever, 0.1);
    EXPECT_LE(ever, 1.0);
  }
  EXPECT_GE(changes, 4);  // 44 steps, every 6, deep-r only where a sign has changed
  EXPECT_GT(ever, 0.1 + 1e-4);
}

// Those whose number of weights is free: what each event says follows from the one before, to the summary.
TEST(FreeNumbersOfWeights, AreAccountedFor) {
  for (const char* method : {"str", "soft-deep-r"}) {
    SCOPED_TRACE(method);
    const TemporaryDirectory tmp;
    const TrainResult result = run(config_of(method, "masked"), tmp.path() / "run");
    std::map<std::string, std::int64_t> nnz;
    std::int64_t moved = 0, last = 0;
    for (const Json& e : read_metrics(tmp.path() / "run" / "metrics.jsonl")) {
      if (e["event"] != "topology") continue;
      last = 0;
      for (const Json& layer : e["layers"]) {
        const auto now = layer["nnz"].get<std::int64_t>(), dropped = layer["dropped"].get<std::int64_t>(),
                   grown = layer["grown"].get<std::int64_t>();
        const std::string name = layer["name"];
        if (nnz.count(name) != 0) {
          EXPECT_EQ(now, nnz[name] - dropped + grown) << "step " << e["step"];
          moved += dropped + grown;
        }
        nnz[name] = now;
        last += now;
      }
      EXPECT_EQ(e["nnz"], last);
    }
    EXPECT_GT(moved, 0);
    EXPECT_EQ(result.summary["nnz"], last);
    EXPECT_LT(last, 19056);
  }
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const char* method : {"set", "dpr", "rigl", "snfs", "deep-r", "soft-deep-r", "top-kast", "str"}) {
    for (const char* storage : {"masked", "compressed"}) {
      if (storage == std::string("compressed") && !make_method(method)->takes_compressed()) continue;
      all.push_back({method, storage});
    }
  }
  return all;
}
INSTANTIATE_TEST_SUITE_P(Methods, Dynamic, ::testing::ValuesIn(cases()), [](const auto& p) {
  std::string name = p.param.method + "_" + p.param.storage;
  for (char& ch : name) ch = std::isalnum(static_cast<unsigned char>(ch)) != 0 ? ch : '_';
  return name;
});

class FromAnotherRun : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Storages, FromAnotherRun, ::testing::Values("masked", "compressed"));

/// Positions and values at the start of a run, by weight.
std::map<std::string, std::pair<at::Tensor, at::Tensor>> start_of(const RunConfig& config) {
  const RunData data(config);
  const SparseModel model = make_sparse_model(config, data.input_shape(), 10, planned_clock(config.train, 22));
  std::map<std::string, std::pair<at::Tensor, at::Tensor>> start;
  for (const auto& w : model.sparsifier->weights()) start[w->name()] = {w->active(), w->values()};
  return start;
}

// The arms of the paper: final structure with fresh values, and with those that the run started from.
TEST_P(FromAnotherRun, StructureAndValues) {
  const TemporaryDirectory tmp;
  const std::string there = (tmp.path() / "dpr").string();
  const RunConfig dpr = config_of("dpr", GetParam(), "seed = 3");
  run(dpr, there);
  const LoadedRun loaded = load_run(there);
  const RunData data(dpr);
  const SparseModel last = restore_model(loaded, data.input_shape(), 10, planned_clock(dpr.train, 22));
  const std::string structure = "structure_from = \"" + there + "\"\n";

  const auto dense_start = start_of(config_of("static-random", GetParam(), "seed = 3"));
  const auto fresh = start_of(config_of("static-random", GetParam(), "seed = 4\n" + structure));
  const auto original =
      start_of(config_of("static-random", GetParam(), "seed = 4\n" + structure + "values_from = \"" + there + "@0\""));
  const auto final_state =
      start_of(config_of("static-random", GetParam(), "seed = 4\n" + structure + "values_from = \"" + there + "\""));
  for (const auto& w : last.sparsifier->weights()) {
    for (const auto& start : {fresh, original, final_state}) {
      EXPECT_TRUE(torch::equal(start.at(w->name()).first, w->active())) << w->name();
    }
    EXPECT_TRUE(torch::equal(final_state.at(w->name()).second, w->values()));
    EXPECT_FALSE(torch::equal(fresh.at(w->name()).second, original.at(w->name()).second));
    // Where the run began with a weight that it still has, the original value is the one it began with.
    const auto& [positions, values] = dense_start.at(w->name());
    const at::Tensor both = torch::isin(positions, w->active());
    EXPECT_GT(both.sum().item<std::int64_t>(), 0);
    EXPECT_TRUE(torch::equal(values.masked_select(both),
                             original.at(w->name()).second.masked_select(torch::isin(w->active(), positions))));
  }
  // And it trains.
  const auto result = run(config_of("static-random", GetParam(), structure), tmp.path() / "arm");
  EXPECT_EQ(result.summary["nnz"], 1906);
}

TEST(FromAnotherRun, SaysWhatDoesNotFit) {
  const TemporaryDirectory tmp;
  const std::string there = (tmp.path() / "run").string();
  run(config_of("static-random", "masked"), there);
  RunConfig other = config_of("static-random", "masked", "structure_from = \"" + there + "\"");
  other.model.widths = {30};
  EXPECT_THROW(start_of(other), Error);
  EXPECT_THROW(start_of(config_of("gradual-magnitude", "masked", "structure_from = \"" + there + "\"")), Error);
  EXPECT_THROW(start_of(config_of("static-random", "masked", "structure_from = \"nowhere\"")), Error);
  EXPECT_THROW(start_of(config_of("static-random", "masked", "values_from = \"nowhere@0\"")), Error);
}

}  // namespace
}  // namespace espalier::train
