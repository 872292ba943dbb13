#include "espalier/train/trainer.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "espalier/core/error.h"
#include "espalier/train/checkpoint.h"
#include "espalier/train/durable_file.h"
#include "espalier/train/experiment.h"
#include "espalier/train/metrics.h"
#include "espalier/train/prune.h"
#include "train/temporary_directory.h"

namespace espalier::train {
namespace {

namespace fs = std::filesystem;
using espalier::testing::TemporaryDirectory;

// A small run on the built-in data: 300 training images, 60 to validate, 22 steps an epoch with a short last batch
// of 6.
const char* const kSmall = R"(
[data]
name = "glyphs"
train_size = 360
test_size = 130
validation = 60
[model]
name = "mlp"
widths = [24]
[train]
epochs = 3
batch_size = 14
[optim]
lr = 0.05
momentum = 0.9
weight_decay = 1e-4
[reparam]
name = "powerprop"
alpha = 1.5
[method]
name = "gradual-magnitude"
every = "7it"
[sparsity]
sparsity = 0.8
[checkpoint]
every = "5it"
[log]
every = "4it"
)";

RunConfig small(const std::string& more = "") { return parse_config(kSmall + more, "test"); }

TrainResult run(const RunConfig& config, const fs::path& path, const TrainHooks& hooks = {}) {
  RunDirectory directory = fs::exists(path / "config.toml")
                               ? RunDirectory::open(path)
                               : RunDirectory::create(path, {to_toml(config), "", "", Json::object()}, false);
  return train(config, directory, hooks);
}

TEST(Trainer, LeavesTheRunDirectoryOfTheContract) {
  const TemporaryDirectory tmp;
  const auto result = run(small(), tmp.path() / "run");
  EXPECT_EQ(result.outcome, Outcome::done);
  const Json s = read_json(tmp.path() / "run" / "summary.json");
  for (const char* key : {"schema",         "status",
                          "model",          "method",
                          "reparam",        "alpha",
                          "seed",           "epochs",
                          "steps",          "test_accuracy",
                          "val_accuracy",   "test_loss",
                          "sparsity",       "nnz",
                          "weights",        "flops_forward",
                          "train_seconds",  "samples_per_second",
                          "peak_rss_bytes", "storage",
                          "threads",        "isa"})
    EXPECT_TRUE(s.contains(key)) << key;
  EXPECT_EQ(s["status"], "done");
  EXPECT_EQ(s["steps"], 66);  // 3 epochs of ceil(300 / 14)
  EXPECT_EQ(s["weights"], 784 * 24 + 24 * 10);
  EXPECT_EQ(s["nnz"], 3811);  // round(0.2 * 19056)
  EXPECT_EQ(s["flops_forward"], 2 * 3811);
  EXPECT_GT(s["test_accuracy"].get<double>(), 0.2);
  // The accuracy is a share of 130: counted, not averaged over batches.
  const double correct = s["test_accuracy"].get<double>() * 130;
  EXPECT_NEAR(correct, std::round(correct), 1e-9);
  int topology = 0, evals = 0, tests = 0;
  for (const Json& e : read_metrics(tmp.path() / "run" / "metrics.jsonl")) {
    if (e["event"] == "topology") {
      ++topology;
      std::int64_t sum = 0;
      for (const Json& l : e["layers"]) sum += l["nnz"].get<std::int64_t>();
      EXPECT_EQ(sum, e["nnz"]);
    }
    if (e["event"] == "eval") ++(e["split"] == "test" ? tests : evals);
  }
  EXPECT_GT(topology, 3);
  EXPECT_EQ(evals, 3);
  EXPECT_EQ(tests, 1) << "the test split is read once, at the end";
}

RunConfig small_in(const std::string& storage) {
  std::string text = kSmall;
  const std::string mlp = "name = \"mlp\"";
  text.insert(text.find(mlp) + mlp.size(), "\nstorage = \"" + storage + "\"");
  return parse_config(text, "test");
}

/// What the event files of a run say, without the wall times and without what begins each file.
std::string events_of(const fs::path& run) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(run / "tb")) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  std::string out;
  for (const fs::path& file : files) {
    const std::string bytes = read_file(file);
    for (std::size_t at = 0; at < bytes.size();) {
      std::uint64_t length = 0;
      std::memcpy(&length, bytes.data() + at, 8);
      const std::string event = bytes.substr(at + 12 + 9, length - 9);  // framing; tag and eight bytes of wall time
      at += 16 + length;
      std::size_t after_step = 1;
      while (static_cast<unsigned char>(event[after_step]) >= 0x80) ++after_step;
      const bool version = event[0] == 0x1a, start = event[after_step + 1] == 0x3a;
      if (!version && !start) out += event;
    }
  }
  return out;
}

class Storages : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Trainer, Storages, ::testing::Values("masked", "compressed"));

void ends_in_the_same_bytes(const RunConfig& config, const std::vector<int>& stops) {
  const TemporaryDirectory tmp;
  run(config, tmp.path() / "whole");
  const std::string metrics = read_file(tmp.path() / "whole" / "metrics.jsonl");
  const std::string weights = read_file(tmp.path() / "whole" / "weights.jsonl");
  ASSERT_EQ(read_metrics(tmp.path() / "whole" / "weights.jsonl").size(), 2U) << "steps 0 and 66";
  const std::string events = events_of(tmp.path() / "whole");
  for (const char* tag : {"step/loss", "validation/accuracy", "test/accuracy", "topology/fc1.weight/nnz", "config"})
    ASSERT_NE(events.find(tag), std::string::npos) << tag;
  const auto whole = load_latest_checkpoint(tmp.path() / "whole");
  for (const int stop_at : stops) {
    const fs::path path = tmp.path() / ("stopped-" + std::to_string(stop_at));
    std::atomic<bool> stop{false};
    TrainHooks hooks;
    hooks.stop = &stop;
    hooks.progress = [&](const Progress& p) { stop = p.step == stop_at; };
    ASSERT_EQ(run(config, path, hooks).outcome, Outcome::stopped);
    EXPECT_EQ(read_json(path / "summary.json")["status"], "stopped");
    torch::manual_seed(999);  // whatever the process did in between
    ASSERT_EQ(run(config, path).outcome, Outcome::done);
    EXPECT_EQ(read_file(path / "metrics.jsonl"), metrics) << stop_at;
    EXPECT_EQ(read_file(path / "weights.jsonl"), weights) << stop_at;
    EXPECT_EQ(events_of(path), events) << stop_at;
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

TEST_P(Storages, StoppedAndResumedAnywhereItEndsInTheSameBytes) {
  ends_in_the_same_bytes(small_in(GetParam()), {1, 5, 21, 22, 43, 65});
}

RunConfig adaptive_in(const std::string& storage, const std::string& more) {
  RunConfig config = small_in(storage);
  config.reparam.name = "adaptive-powerprop";
  config.reparam.alpha = 1.2;
  config.reparam.adaptive.interval = Duration::epochs(1);
  config.reparam.adaptive.per = more;
  config.reparam.adaptive.signal = more == "layer" ? "effective" : "near-zero";
  config.reparam.adaptive.loss_tolerance = more == "layer" ? 0.05 : 0;
  config.validate();
  return config;
}

// Within an interval, at a check (22, 44: decided in the step that follows), and just after it.
TEST_P(Storages, AlphaThatAdaptsResumesInTheSameBytes) {
  for (const char* per : {"network", "layer"})
    ends_in_the_same_bytes(adaptive_in(GetParam(), per), {5, 22, 23, 44, 65});
}

TEST_P(Storages, AlphaThatAdaptsLeavesItsTrace) {
  const TemporaryDirectory tmp;
  const Json summary = run(adaptive_in(GetParam(), "network"), tmp.path() / "run").summary;
  std::vector<Json> events;
  double before = 0;
  for (const Json& e : read_metrics(tmp.path() / "run" / "metrics.jsonl")) {
    EXPECT_GE(e["step"].get<double>(), before);  // in the order of time
    before = e["step"].get<double>();
    if (e["event"] == "alpha") events.push_back(e);
  }
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(events[0]["step"], 0);
  EXPECT_EQ(events[0]["alpha"], 1.2);
  EXPECT_FALSE(events[0].contains("verdict"));
  EXPECT_EQ(events[1]["step"], 22);
  EXPECT_EQ(events[1]["verdict"], "increase");
  EXPECT_EQ(events[1]["before"], 1.2);
  EXPECT_NEAR(events[1]["alpha"].get<double>(), 1.3, 1e-12);
  EXPECT_TRUE(events[1]["signal_before"].is_null());
  EXPECT_GT(events[1]["loss"].get<double>(), 0);
  EXPECT_EQ(events[2]["step"], 44);
  EXPECT_EQ(events[2]["signal_before"], events[1]["signal"]);
  const bool rises = events[2]["signal"].get<double>() >= events[1]["signal"].get<double>();
  EXPECT_EQ(events[2]["verdict"], rises ? "increase" : "decrease");
  EXPECT_NEAR(events[2]["alpha"].get<double>(), rises ? 1.45 : 1.2, 1e-12);
  EXPECT_EQ(summary["alpha"], events[2]["alpha"]);
  EXPECT_EQ(summary["storage"][0]["alpha"], events[2]["alpha"]);

  const Json layers = run(adaptive_in(GetParam(), "layer"), tmp.path() / "layers").summary;
  EXPECT_TRUE(layers["alpha"].is_null());
  EXPECT_GT(layers["storage"][1]["alpha"].get<double>(), 1);
  for (const Json& e : read_metrics(tmp.path() / "layers" / "metrics.jsonl")) {
    if (e["event"] != "alpha") continue;
    ASSERT_EQ(e["layers"].size(), 2u);
    EXPECT_EQ(e["layers"][0]["name"], "fc1.weight");
    EXPECT_NE(e["layers"][0]["signal"], e["layers"][0]["near_zero"]);
  }
}

// Convolutions, batch norm, pools and flattening: everything that works in batch tiles, stopped within an epoch.
TEST_P(Storages, ConvolutionsResumeInTheSameBytes) {
  const TemporaryDirectory tmp;
  const RunConfig config = parse_config(std::string(R"toml(
[data]
name = "glyphs"
[model]
name = "layers"
layers = ["conv(6, 3, stride=2, padding=1)", "batchnorm", "relu", "conv(8, 3, padding=1, groups=2)", "batchnorm", "relu",
          "maxpool(2)", "conv(8, 3)", "relu", "flatten", "linear(classes)"]
storage = ")toml") + GetParam() + R"toml("
[train]
steps = 9
batch_size = 20
[optim]
momentum = 0.9
[method]
name = "static-random"
[sparsity]
sparsity = 0.6
)toml",
                                        "test");
  run(config, tmp.path() / "whole");
  const auto whole = load_latest_checkpoint(tmp.path() / "whole");
  std::atomic<bool> stop{false};
  TrainHooks hooks;
  hooks.stop = &stop;
  hooks.progress = [&](const Progress& p) { stop = p.step == 4; };
  ASSERT_EQ(run(config, tmp.path() / "stopped", hooks).outcome, Outcome::stopped);
  ASSERT_EQ(run(config, tmp.path() / "stopped").outcome, Outcome::done);
  EXPECT_EQ(read_file(tmp.path() / "stopped" / "metrics.jsonl"), read_file(tmp.path() / "whole" / "metrics.jsonl"));
  const auto resumed = load_latest_checkpoint(tmp.path() / "stopped");
  ASSERT_EQ(resumed->model.size(), whole->model.size());
  for (std::size_t i = 0; i < whole->model.size(); ++i)
    EXPECT_TRUE(torch::equal(resumed->model[i].second, whole->model[i].second)) << whole->model[i].first;
  for (const auto& layer : read_json(tmp.path() / "whole" / "summary.json")["storage"])
    EXPECT_EQ(layer["path"], GetParam());
}

// The same run in both storages: the same weights kept, the same accuracy to what roundings do to 66 steps.
TEST(Trainer, CompressedRunsAreMaskedRuns) {
  const TemporaryDirectory tmp;
  const auto masked = run(small_in("masked"), tmp.path() / "masked");
  const auto compressed = run(small_in("compressed"), tmp.path() / "compressed");
  EXPECT_EQ(compressed.summary["storage"][0]["path"], "compressed");
  EXPECT_EQ(masked.summary["storage"][0]["path"], "masked");
  EXPECT_EQ(compressed.summary["nnz"], masked.summary["nnz"]);
  EXPECT_NEAR(compressed.summary["test_loss"].get<double>(), masked.summary["test_loss"].get<double>(), 1e-3);
  const auto checkpoint = load_latest_checkpoint(tmp.path() / "compressed");
  EXPECT_EQ(checkpoint->model_metadata.at("fc1.weight.shape"), "[24, 784]");
  // The weights of one, given to the model of the other.
  LoadedRun loaded = load_run(tmp.path() / "masked");
  const RunData data(loaded.config);
  const auto evaluation = [&](const char* model, const char* weights) {
    const LoadedRun r = load_run(tmp.path() / model);
    SparseModel m = restore_model(r, data.input_shape(), 10, planned_clock(r.config.train, 22));
    load_state_dict(*m.network, load_latest_checkpoint(tmp.path() / weights)->model, weights);
    return evaluate(*m.network, data.test_batches()).loss();
  };
  EXPECT_NEAR(evaluation("compressed", "masked"), evaluation("masked", "masked"), 1e-6);
  // What a dense model lacks is said.
  EXPECT_THROW(evaluation("masked", "compressed"), Error);
}

TEST(Trainer, ALossThatIsNotFiniteEndsTheRunWithStepAndLayer) {
  const TemporaryDirectory tmp;
  RunConfig config = small();
  config.optim.lr = 1e30;
  try {
    run(config, tmp.path() / "run");
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::diverged);
    const std::string text = e.what();
    EXPECT_NE(text.find("step "), std::string::npos) << text;
    EXPECT_NE(text.find("fc1"), std::string::npos) << text;
  }
  EXPECT_EQ(read_json(tmp.path() / "run" / "summary.json")["status"], "diverged");
  EXPECT_EQ(read_metrics(tmp.path() / "run" / "metrics.jsonl").back()["status"], "diverged");
}

// Reference values by hand.
TEST(Schedule, FactorsOverARun) {
  const Clock clock{0, 1000, 100};
  ScheduleOptions s;
  EXPECT_EQ(schedule_factor(s, 500, clock), 1);
  s.warmup = Duration::steps(10);
  EXPECT_DOUBLE_EQ(schedule_factor(s, 0, clock), 0.1);
  EXPECT_DOUBLE_EQ(schedule_factor(s, 9, clock), 1);
  s.warmup = {};
  s.name = "step";
  s.every = Duration::epochs(3);
  EXPECT_DOUBLE_EQ(schedule_factor(s, 299, clock), 1);
  EXPECT_DOUBLE_EQ(schedule_factor(s, 300, clock), 0.1);
  EXPECT_DOUBLE_EQ(schedule_factor(s, 999, clock), 1e-3);
  s.name = "multi-step";
  s.milestones = {"50%", "7.5ep"};
  EXPECT_DOUBLE_EQ(schedule_factor(s, 499, clock), 1);
  EXPECT_DOUBLE_EQ(schedule_factor(s, 500, clock), 0.1);
  EXPECT_DOUBLE_EQ(schedule_factor(s, 750, clock), 0.01);
  s.name = "cosine";
  s.final_factor = 0.2;
  EXPECT_DOUBLE_EQ(schedule_factor(s, 0, clock), 1);
  EXPECT_NEAR(schedule_factor(s, 500, clock), 0.6, 1e-12);
  EXPECT_NEAR(schedule_factor(s, 1000, clock), 0.2, 1e-12);
}

TEST(Prune, GeometricSpaceIsTheNotebooksList) {
  const auto keep = geometric_space(0.01, 1, 20);
  ASSERT_EQ(keep.size(), 20u);
  const double want[] = {.01,    .01274, .01624, .02069, .02637, .0336,  .04281, .05456, .06952, .08859,
                         .11288, .14384, .1833,  .23357, .29764, .37927, .48329, .61585, .78476, 1};
  for (std::size_t i = 0; i < 20; ++i) EXPECT_NEAR(keep[i], want[i], 5e-6);
}

TEST(Prune, NotebookProtocolKeepsTheKnownCountsOfLeNet300) {
  const TemporaryDirectory tmp;
  const RunConfig config = parse_config(
      "[data]\ntrain_size = 100\ntest_size = 50\n[model]\nname = \"lenet-300-100\"\n[train]\nsteps = 2\nbatch_size = "
      "20\nepochs = 0\n",
      "test");
  run(config, tmp.path() / "run");
  PruneOptions options;
  options.distribution = "notebook";
  options.keep = geometric_space(0.01, 1, 20);
  const auto points = prune_curve(load_run(tmp.path() / "run"), options);
  using Counts = std::vector<std::int64_t>;
  EXPECT_EQ(points[0].layer_nnz, (Counts{2352, 300, 20}));
  EXPECT_EQ(points[5].layer_nnz, (Counts{7902, 1007, 67}));
  EXPECT_EQ(points[17].layer_nnz, (Counts{144847, 18475, 1000}));
  EXPECT_EQ(points[19].layer_nnz, (Counts{235200, 30000, 1000}));
  EXPECT_EQ(points[19].evaluation.correct,
            evaluate(*restore_model(load_run(tmp.path() / "run"), {1, 28, 28}, 10, {0, 2, 5}).network,
                     RunData(config).test_batches())
                .correct);
}

TEST(Prune, RetrainingHelpsAndKeepsTheMask) {
  const TemporaryDirectory tmp;
  run(small("[run]\nseed = 3\n"), tmp.path() / "run");
  PruneOptions options;
  options.keep = {0.02};
  options.distribution = "global";
  options.retrain = Duration::epochs(3);
  options.retrain_lr = 0.05;
  const auto points = prune_curve(load_run(tmp.path() / "run"), options, [](const PrunePoint& p, const SparseModel& m) {
    EXPECT_EQ(p.nnz, 381);  // round(0.02 * 19056)
    EXPECT_EQ(m.sparsifier->nnz(), 381);
    for (const auto& w : m.sparsifier->weights()) EXPECT_LE(w->weights().numel(), w->nnz());
  });
  EXPECT_GT(points[0].evaluation.correct, points[0].before_retraining.correct);
}

}  // namespace
}  // namespace espalier::train
