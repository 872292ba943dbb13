#include "espalier/continual/learner.h"

#include <cmath>

#include "continual/sequences.h"
#include "espalier/train/metrics.h"

namespace espalier::continual {
namespace {

namespace fs = std::filesystem;
using namespace testing;
using train::Json;

// ---- a task's outputs never change ---------------------------------------------------------------------------------

struct Case {
  const char* name;
  std::int64_t tasks;
  std::vector<std::string> set;
};

class Protected : public ::testing::TestWithParam<Case> {};

/// Every task's logits on the day it was learnt, and at the end; one task at a time, as --add-task learns them.
TEST_P(Protected, TheLogitsOfEveryTaskStayWhatTheyWereToTheBit) {
  const Case& c = GetParam();
  auto set = c.set;
  set.push_back(fmt::format("continual.tasks={}", c.tasks));
  const train::RunConfig config = small(set);
  const TemporaryDirectory folder;
  Pack pack = empty_pack(config);
  std::vector<at::Tensor> on_the_day;
  for (std::int64_t t = 1; t <= c.tasks; ++t) {
    TaskData data;
    add_task(pack, config, next_source(pack, config, data), {});
    on_the_day.push_back(logits(pack, t));
    if (t == c.tasks / 2) {
      save_pack(folder / "pack.safetensors", pack);
      pack = load_pack(folder / "pack.safetensors");
    }
  }
  save_pack(folder / "pack.safetensors", pack);
  const Pack loaded = load_pack(folder / "pack.safetensors");
  std::int64_t different = 0;
  for (std::int64_t t = 1; t <= c.tasks; ++t) {
    EXPECT_TRUE(logits(pack, t).equal(on_the_day[static_cast<std::size_t>(t - 1)])) << "task " << t;
    EXPECT_TRUE(logits(loaded, t).equal(on_the_day[static_cast<std::size_t>(t - 1)])) << "task " << t << ", loaded";
    if (t > 1)
      different += !on_the_day[static_cast<std::size_t>(t - 1)].equal(on_the_day[static_cast<std::size_t>(t - 2)]);
  }
  EXPECT_EQ(different, c.tasks - 1);  // each task did learn something of its own
  const int threads = at::get_num_threads();
  at::set_num_threads(threads == 1 ? 2 : 1);
  for (const std::int64_t t : {std::int64_t{1}, c.tasks}) {
    EXPECT_TRUE(logits(loaded, t).equal(on_the_day[static_cast<std::size_t>(t - 1)])) << "another number of threads";
  }
  at::set_num_threads(threads);
}

constexpr const char* kBatchNormCnn =
    "model.layers=[\"conv(4, kernel=3, stride=2)\", \"batchnorm\", \"relu\", \"conv(6, kernel=3, stride=2)\", "
    "\"batchnorm\", \"relu\", \"globalavgpool\", \"linear(classes)\"]";

INSTANTIATE_TEST_SUITE_P(
    Networks, Protected,
    ::testing::Values(
        Case{"MlpSgd", 50, {"continual.keep_rates=[0.02]", "train.steps=3", "continual.retrain=1it"}},
        Case{"MlpAdamNoReparam",
             50,
             {"continual.keep_rates=[0.02]", "train.steps=3", "continual.retrain=1it", "optim.name=adam",
              "optim.momentum=0", "optim.lr=0.003", "reparam.name=identity", "reparam.alpha=1"}},
        Case{"MlpTarget", 6, {"continual.keep_rates=[0.1]", "reparam.update=target"}},
        Case{"MlpAdamWOnPhi",
             6,
             {"continual.keep_rates=[0.1]", "optim.name=adamw", "optim.momentum=0", "optim.lr=0.003",
              "optim.decay_on=phi"}},
        Case{"PackNetMlp", 50, {"continual.method=packnet", "train.steps=3", "continual.retrain=1it"}},
        Case{"CnnBatchNorm",
             50,
             {"model.name=layers", "model.widths=[300,100]", kBatchNormCnn, "continual.keep_rates=[0.02]",
              "train.steps=2", "continual.retrain=1it", "data.normalise=unit"}},
        Case{"SplitOwnHeads", 5, {"continual.sequence=split", "continual.keep_rates=[0.1]", "data.train_size=400"}},
        Case{"Separate", 4, {"continual.method=separate"}},
        Case{"ResNet20Adam",
             50,
             {"model.name=resnet20", "model.widths=[300,100]", "data.train_size=40", "data.test_size=10",
              "data.validation=10", "train.batch_size=8", "train.steps=2", "continual.retrain=1it",
              "continual.keep_rates=[0.02]", "optim.name=adam", "optim.momentum=0", "optim.lr=0.003"}}),
    [](const auto& c) { return c.param.name; });

TEST(Learner, ProtectedWeightsKeepTheirBitsAndFreeOnesMove) {
  const train::RunConfig config = small({"continual.keep_rates=[0.2]"});
  Pack pack = empty_pack(config);
  TaskData data;
  add_task(pack, config, next_source(pack, config, data), {});
  const Pack before = pack;
  add_task(pack, config, next_source(pack, config, data), {});
  for (std::size_t w = 0; w < pack.weights.size(); ++w) {
    const at::Tensor owned = bytes(before.tasks[0].masks[w], pack.weights[w].shape).to(torch::kBool);
    const at::Tensor then = before.weights[w].phi, now = pack.weights[w].phi;
    EXPECT_TRUE(then.masked_select(owned).equal(now.masked_select(owned)));
    EXPECT_FALSE(then.equal(now));
  }
  EXPECT_FALSE(before.weights[0].phi.is_same(pack.weights[0].phi));
}

// ---- EfficientPackNet ----------------------------------------------------------------------------------------------

TEST(Learner, AMaskHasTheFloorOfTheKeepRateAndMayUseEarlierWeights) {
  const TemporaryDirectory folder;
  const Json s = run(folder / "run", small({"continual.keep_rates=[0.29]"}));
  const Pack pack = load_pack(folder / "run/pack.safetensors");
  std::int64_t all = 0;
  for (const PackedWeight& w : pack.weights) all += w.phi.numel();
  ASSERT_EQ(all, 784 * 24 + 24 * 10);
  std::int64_t new_weights = 0;
  for (const Json& task : s.at("capacity").at("tasks")) {
    EXPECT_EQ(task.at("kept").get<std::int64_t>(), mask_size(0.29, all));
    EXPECT_EQ(task.at("kept").get<std::int64_t>(),
              task.at("new").get<std::int64_t>() + task.at("reused").get<std::int64_t>());
    new_weights += task.at("new").get<std::int64_t>();
  }
  EXPECT_GT(s.at("capacity").at("tasks")[1].at("reused").get<std::int64_t>(), 0);
  EXPECT_EQ(s.at("capacity").at("used").get<std::int64_t>(), new_weights);
  EXPECT_EQ(s.at("capacity").at("free").get<std::int64_t>(), all - new_weights);
  EXPECT_DOUBLE_EQ(s.at("capacity_used").get<double>(), static_cast<double>(new_weights) / static_cast<double>(all));
  EXPECT_EQ(s.at("weights").get<std::int64_t>(), all);
  EXPECT_EQ(s.at("nnz").get<std::int64_t>(), new_weights);
  EXPECT_DOUBLE_EQ(s.at("sparsity").get<double>(), 1 - static_cast<double>(new_weights) / static_cast<double>(all));
  EXPECT_EQ(s.at("forgetting").get<double>(), 0);
  EXPECT_EQ(s.at("backward_transfer").get<double>(), 0);
  ASSERT_EQ(s.at("accuracy_matrix").size(), 4u);
  for (const Json& row : s.at("accuracy_matrix")) {
    ASSERT_EQ(row.size(), 3u);
    for (const Json& r : row) EXPECT_TRUE(r.is_number());  // a shared head: every entry means something
  }
  EXPECT_TRUE(s.at("undefined").empty()) << s.at("undefined");
}

TEST(Learner, WhenNoKeepRatePassesTheFallbackIsTakenAndSaid) {
  for (const char* fallback : {"largest", "dense"}) {
    const TemporaryDirectory folder;
    const Warnings warnings;
    // After training to near 100 % a network of a hundredth of the weights is far below gamma = 1.
    const Json s =
        run(folder / "run", small({"continual.tasks=1", "continual.keep_rates=[0.0005, 0.001]", "continual.gamma=1",
                                   "train.steps=60", std::string("continual.fallback=") + fallback}));
    const Json& task = s.at("per_task")[0];
    EXPECT_FALSE(task.at("passed").get<bool>());
    EXPECT_EQ(task.at("keep_rate").get<double>(), fallback == std::string("dense") ? 1 : 0.001);
    EXPECT_TRUE(warnings.mention(std::string("fallback = \"") + fallback + "\"")) << fallback;
    EXPECT_EQ(task.at("trials").size(), 1u);
    bool told = false;
    for (const Json& e : train::read_metrics(folder / "run/metrics.jsonl")) told = told || e.at("event") == "warning";
    EXPECT_TRUE(told);
  }
}

TEST(Learner, TheSearchEndsWithTheSmallestRateThatPassed) {
  const TemporaryDirectory folder;
  const Json s = run(folder / "run",
                     small({"continual.tasks=1", "continual.gamma=0.5", "train.steps=80", "continual.search=binary",
                            "continual.keep_rates=[0.001, 1]", "continual.search_steps=5"}));
  const Json& task = s.at("per_task")[0];
  EXPECT_TRUE(task.at("passed").get<bool>());
  EXPECT_EQ(task.at("trials").size(), 6u);
  double smallest = 2;
  for (const Json& t : task.at("trials"))
    if (t.at("passed").get<bool>()) smallest = std::min(smallest, t.at("keep_rate").get<double>());
  EXPECT_EQ(task.at("keep_rate").get<double>(), smallest);
  EXPECT_LT(smallest, 1);
}

TEST(Learner, UnprotectedWeightsAreDrawnAnewThroughTheRoot) {
  const train::RunConfig config = small({"continual.keep_rates=[0.2]", "reparam.alpha=2"});
  Pack pack = empty_pack(config);
  const at::Tensor start = pack.weights[0].phi.clone();
  TaskData data;
  add_task(pack, config, next_source(pack, config, data), {});
  const at::Tensor free = bytes(inverse(used(pack, 0)), pack.weights[0].shape).to(torch::kBool);
  const at::Tensor phi = pack.weights[0].phi.masked_select(free);
  EXPECT_EQ(phi.eq(0).sum().item<std::int64_t>(), 0);
  EXPECT_EQ(phi.eq(start.masked_select(free)).sum().item<std::int64_t>(), 0);  // another draw than at step 0
  // w = phi |phi| has the variance of the initializer: std = sqrt(1 / fan_in), by n draws within 5 sigma / sqrt(2 n).
  const at::Tensor w = phi * phi.abs();
  const double n = static_cast<double>(w.numel()), std = std::sqrt(1.0 / 784);
  EXPECT_NEAR(w.std().item<double>(), std, 5 * std / std::sqrt(2 * n));
}

TEST(Learner, WithoutRetrainingATaskComputesWithTheWeightsThatItsMaskWasChosenFor) {
  const train::RunConfig config =
      small({"continual.tasks=1", "continual.keep_rates=[0.3]", "continual.retrain=0it", "train.steps=60"});
  const TemporaryDirectory folder;
  const Json s = run(folder / "run", config);
  const Pack pack = load_pack(folder / "run/pack.safetensors");
  TaskData data;
  const auto of_task = data.of(pack.tasks[0].source, pack.config, pack.input);
  const double now = evaluate(*task_network(pack, 1), of_task->validation_batches()).accuracy();
  EXPECT_EQ(now, s.at("per_task")[0].at("pruned_accuracy").get<double>());
  EXPECT_GT(now, 0.2);  // twice chance: weights drawn anew would not do it
}

TEST(Learner, RetrainingBeginsWithAFreshOptimiser) {
  const auto learnt = [](const char* retrain) {
    const train::RunConfig config =
        small({"reparam.name=identity", "reparam.alpha=1", "optim.name=adam", "optim.momentum=0",
               "optim.weight_decay=0", "optim.lr=0.01", "train.steps=20", "continual.keep_rates=[0.3]",
               "continual.retrain_lr=0.001", std::string("continual.retrain=") + retrain});
    Pack pack = empty_pack(config);
    TaskData data;
    add_task(pack, config, next_source(pack, config, data), {});
    return pack;
  };
  const Pack before = learnt("0it"), after = learnt("1it");
  // Adam's first step is the learning rate wherever there is a gradient (above its eps); with the moments of 20 steps
  // before it, it would be anything from 0 to several times as much.
  std::int64_t moved = 0;
  for (std::size_t w = 0; w < before.weights.size(); ++w) {
    const at::Tensor kept = positions(before.tasks[0].masks[w]);
    const at::Tensor step = (after.weights[w].phi - before.weights[w].phi).abs().view({-1}).index_select(0, kept);
    const at::Tensor there = step.masked_select(step.gt(0));
    moved += there.numel();
    const auto n = static_cast<double>(there.numel());
    EXPECT_GE(there.sub(0.001).abs().lt(1e-5).sum().item<double>(), 0.99 * n) << there;  // a hundredth: near eps
  }
  EXPECT_GT(moved, 1000);
}

TEST(Learner, RetrainingHasADecayOfItsOwn) {
  for (const char* space : {"phi", "w"}) {  // the optimiser's own, and the Sparsifier's
    const auto learnt = [&](const char* retrain, const char* decay) {
      const train::RunConfig config =
          small({"optim.momentum=0", std::string("optim.decay_on=") + space, "continual.keep_rates=[0.3]",
                 "continual.retrain_lr=0.01", std::string("continual.retrain=") + retrain,
                 std::string("continual.retrain_decay=") + decay});
      Pack pack = empty_pack(config);
      TaskData data;
      add_task(pack, config, next_source(pack, config, data), {});
      return pack;
    };
    const Pack before = learnt("0it", "0"), without = learnt("1it", "0"), with = learnt("1it", "5");
    const Pack usual = learnt("1it", "-1"), same = learnt("1it", "0.01");  // kSmall's optim.weight_decay
    for (std::size_t w = 0; w < before.weights.size(); ++w) {
      const at::Tensor kept = positions(before.tasks[0].masks[w]);
      const auto phi = [&](const Pack& pack) { return pack.weights[w].phi.view({-1}).index_select(0, kept); };
      // Of 5 / 2 phi^2, or of 5 / 2 w^2 with w = phi |phi|^0.5; one step of SGD.
      const at::Tensor start = phi(before), slope = 5 * (space[0] == 'p' ? start : 1.5 * start * start.abs());
      EXPECT_TRUE(phi(with).sub(phi(without)).allclose(-0.01 * slope, 1e-4, 1e-6)) << space;
      EXPECT_TRUE(phi(usual).equal(phi(same))) << space;
      EXPECT_FALSE(phi(usual).equal(phi(without))) << space;
    }
  }
}

TEST(Learner, AMaskHoldsTheLargestWeightsOfBothSigns) {
  const train::RunConfig config =
      small({"continual.keep_rates=[0.3]", "continual.retrain=0it", "continual.reinit=keep"});
  Pack pack = empty_pack(config);
  TaskData data;
  add_task(pack, config, next_source(pack, config, data), {});
  for (std::size_t w = 0; w < pack.weights.size(); ++w) {
    const at::Tensor phi = pack.weights[w].phi;
    const at::Tensor kept = bytes(pack.tasks[0].masks[w], pack.weights[w].shape).to(torch::kBool);
    EXPECT_GE(phi.masked_select(kept).abs().min().item<float>(),
              phi.masked_select(kept.logical_not()).abs().max().item<float>());
    EXPECT_LT(phi.masked_select(kept).min().item<float>(), 0);
  }
}

TEST(Learner, PackNetLeavesFreeWeightsAtZeroUnlessPowerpropagationWouldKeepThemThere) {
  for (const bool powerprop : {false, true}) {
    const train::RunConfig config =
        small({"continual.method=packnet", powerprop ? "reparam.alpha=1.5" : "reparam.name=identity",
               powerprop ? "reparam.update=gradient" : "reparam.alpha=1"});
    Pack pack = empty_pack(config);
    TaskData data;
    add_task(pack, config, next_source(pack, config, data), {});
    std::int64_t zeros = 0, free = 0;
    for (std::size_t w = 0; w < pack.weights.size(); ++w) {
      const BitMask left = inverse(used(pack, w));
      const std::int64_t n = pack.weights[w].phi.numel();
      EXPECT_EQ(left.count(), n - equal_share(n, 1, 3));
      free += left.count();
      zeros += pack.weights[w].phi.view({-1}).index_select(0, positions(left)).eq(0).sum().item<std::int64_t>();
    }
    EXPECT_EQ(zeros, powerprop ? 0 : free);
  }
}

// ---- room ----------------------------------------------------------------------------------------------------------

TEST(Learner, ATaskWithoutAFreeWeightIsRefusedAndTheFileLeftAlone) {
  const TemporaryDirectory folder;
  const train::RunConfig config = small({"continual.method=packnet", "continual.tasks=2"});
  run(folder / "run", config);
  const fs::path file = folder / "run/pack.safetensors";
  const std::string before = read_bytes(file);
  Pack pack = load_pack(file);
  TaskData data;
  const Warnings warnings;
  const std::string text =
      error_of(ErrorKind::usage, [&] { add_task(pack, config, next_source(pack, config, data), {}); });
  EXPECT_TRUE(contains(text, "task 3")) << text;
  EXPECT_TRUE(contains(text, "0 of 19056 weights are free")) << text;
  EXPECT_TRUE(contains(text, "fc1.weight 0 of 18816")) << text;
  EXPECT_TRUE(contains(text, "[continual].tasks")) << text;
  EXPECT_FALSE(warnings.mention("it is used as it is"));  // nothing is used: the task is refused
  EXPECT_EQ(pack.tasks.size(), 2u);
  EXPECT_EQ(read_bytes(file), before);
  save_pack(folder / "again.safetensors", pack);
  EXPECT_EQ(read_bytes(folder / "again.safetensors"), before);
}

TEST(Learner, ARunThatIsOutOfRoomKeepsTheTasksItHas) {
  const TemporaryDirectory folder;
  const auto config = small({"continual.keep_rates=[1]", "continual.gamma=0"});
  const std::string text = error_of(ErrorKind::usage, [&] { run(folder / "run", config); });
  EXPECT_TRUE(contains(text, "task 2")) << text;
  EXPECT_TRUE(contains(text, "keep_rates")) << text;
  EXPECT_EQ(load_pack(folder / "run/pack.safetensors").tasks.size(), 1u);
  EXPECT_EQ(train::read_json(folder / "run/summary.json").at("status"), "failed");
}

TEST(Learner, KeysOnWhichTheTasksDependMayNotChange) {
  const train::RunConfig config = small();
  const Pack pack = empty_pack(config);
  EXPECT_NO_THROW(check_may_add(pack, small({"train.steps=9", "continual.keep_rates=[0.5]", "optim.lr=0.1"})));
  for (const char* set : {"reparam.alpha=2", "model.widths=[25]", "continual.method=packnet", "run.seed=2"}) {
    std::vector<std::string> all = {set};
    const std::string text = error_of(ErrorKind::usage, [&] { check_may_add(pack, small(all)); });
    EXPECT_TRUE(contains(text, "depend on it")) << text;
  }
}

// ---- resuming ------------------------------------------------------------------------------------------------------

class Resumed : public ::testing::TestWithParam<Case> {};

TEST_P(Resumed, ARunStoppedAtEveryStepEndsInTheSameBytes) {
  const train::RunConfig config = small(GetParam().set);
  const TemporaryDirectory folder;
  const Json whole = run(folder / "whole", config);
  std::atomic<bool> stop{false};
  Hooks hooks;
  hooks.stop = &stop;
  hooks.progress = [&](const Progress&) { stop = true; };  // after each step
  for (int i = 0; i < 100; ++i) {
    stop = false;
    if (run(folder / "stopped", config, hooks).at("status") == "done") break;
  }
  for (const char* file : {"pack.safetensors", "metrics.jsonl", "weights.jsonl"}) {
    EXPECT_EQ(read_bytes(folder / "whole" / file), read_bytes(folder / "stopped" / file)) << file;
  }
  const Json stopped = train::read_json(folder / "stopped/summary.json");
  EXPECT_EQ(stopped.at("status"), "done");
  EXPECT_EQ(stopped.at("accuracy_matrix"), whole.at("accuracy_matrix"));
}

INSTANTIATE_TEST_SUITE_P(
    Methods, Resumed,
    ::testing::Values(
        Case{"Epn", 0, {"continual.keep_rates=[0.1, 0.3]"}},
        Case{"EpnIdentityAdam",
             0,
             {"continual.keep_rates=[0.3]", "optim.name=adam", "optim.momentum=0", "reparam.name=identity",
              "reparam.alpha=1"}},
        Case{"PackNet", 0, {"continual.method=packnet"}}, Case{"FineTuning", 0, {"continual.method=fine-tuning"}},
        Case{"Ewc", 0, {"continual.method=ewc", "continual.fisher_samples=20", "continual.ewc_lambda=0.1"}},
        Case{"Separate", 0, {"continual.method=separate"}},
        Case{"JointOwnHeads", 0, {"continual.method=joint", "continual.head=own"}},
        Case{"BatchNormDropout",
             0,
             {"model.name=layers", "model.widths=[300,100]", "continual.keep_rates=[0.3]",
              "model.layers=[\"conv(4, kernel=3, stride=2)\", \"batchnorm\", \"relu\", \"flatten\", "
              "\"dropout(0.2)\", \"linear(classes)\"]"}}),
    [](const auto& c) { return c.param.name; });

// ---- the other methods ---------------------------------------------------------------------------------------------

TEST(Learner, FineTuningForgetsAndIsMeasuredAsItIs) {
  const TemporaryDirectory folder;
  const Json s = run(folder / "run", small({"continual.method=fine-tuning", "train.steps=60", "data.train_size=600"}));
  EXPECT_GT(s.at("forgetting").get<double>(), 0.1);
  EXPECT_EQ(s.at("capacity_used").get<double>(), 1);
}

TEST(Learner, JointTrainingHasNoBeforeAndAfter) {
  const TemporaryDirectory folder;
  const Json s = run(folder / "run", small({"continual.method=joint", "train.steps=60"}));
  EXPECT_TRUE(s.at("average_accuracy").is_number());
  for (const char* metric : {"forgetting", "backward_transfer", "forward_transfer"}) {
    EXPECT_TRUE(s.at(metric).is_null());
    EXPECT_TRUE(contains(s.at("undefined").at(metric).get<std::string>(), "at once"));
  }
  EXPECT_EQ(load_pack(folder / "run/pack.safetensors").tasks.size(), 3u);
}

TEST(Learner, WithOwnHeadsForwardTransferSaysWhyThereIsNone) {
  const TemporaryDirectory folder;
  const Json s = run(folder / "run", small({"continual.sequence=split", "continual.tasks=0", "data.train_size=400"}));
  EXPECT_EQ(s.at("tasks"), 5);
  EXPECT_TRUE(contains(s.at("undefined").at("forward_transfer").get<std::string>(), "head"));
  EXPECT_TRUE(s.at("accuracy_matrix")[1][1].is_null());
  EXPECT_TRUE(s.at("accuracy_matrix")[0][1].is_number());
  const Pack pack = load_pack(folder / "run/pack.safetensors");
  EXPECT_EQ(pack.weights.size(), 1u);  // the head is each task's own
  EXPECT_EQ(pack.tasks[0].classes, 2);
}

TEST(Learner, SeveralDataSetsShareANetworkThatFitsAll) {
  const train::RunConfig config =
      small({"continual.sequence=datasets", "continual.tasks=0", "continual.datasets=[\"glyphs\", \"glyphs\"]"});
  const TemporaryDirectory folder;
  const Json s = run(folder / "run", config);
  EXPECT_EQ(s.at("tasks"), 2);
  EXPECT_TRUE(load_pack(folder / "run/pack.safetensors").own_heads);
}

TEST(Learner, ATaskAddedLaterIsTheOneTheSequenceWouldHaveHad) {
  const TemporaryDirectory folder;
  run(folder / "three", small({"continual.keep_rates=[0.2]"}));
  run(folder / "two", small({"continual.keep_rates=[0.2]", "continual.tasks=2"}));
  Pack pack = load_pack(folder / "two/pack.safetensors");
  TaskData data;
  const Json s = add_task(pack, pack.config, next_source(pack, pack.config, data), {});
  const Pack three = load_pack(folder / "three/pack.safetensors");
  EXPECT_EQ(s.at("tasks"), 3);
  for (std::int64_t t = 1; t <= 3; ++t) EXPECT_TRUE(logits(pack, t).equal(logits(three, t))) << t;
  const Json& matrix = s.at("accuracy_matrix");
  EXPECT_TRUE(matrix[0][2].is_number());
  EXPECT_EQ(matrix[1].size(), 2u);  // nobody knew of it then
  EXPECT_TRUE(matrix[2][2].is_number());
  EXPECT_TRUE(s.at("forward_transfer").is_number());
}

TEST(Learner, WhatCompareReadsCountsTheNetworksOfSeparateTogetherAndAllOfOneThatIsShared) {
  const std::int64_t one = 784 * 24 + 24 * 10;
  for (const bool separate : {true, false}) {
    const TemporaryDirectory folder;
    const Json s =
        run(folder / "run", small({separate ? "continual.method=separate" : "continual.method=fine-tuning"}));
    EXPECT_EQ(s.at("weights").get<std::int64_t>(), separate ? 3 * one : one);
    EXPECT_EQ(s.at("nnz").get<std::int64_t>(), separate ? 3 * one : one);
    EXPECT_EQ(s.at("sparsity").get<double>(), 0);
  }
}

TEST(Inference, TheLowestEntropyTellsTasksApartThatLookDifferent) {
  const TemporaryDirectory folder;
  run(folder / "run", small({"continual.method=separate", "train.steps=150", "data.train_size=800",
                             "data.test_size=100", "continual.tasks=2"}));
  const Pack pack = load_pack(folder / "run/pack.safetensors");
  TaskData data;
  const auto first = data.of(pack.tasks[0].source, pack.config, pack.input);
  const auto second = data.of(pack.tasks[1].source, pack.config, pack.input);
  const data::Loader a = first->test_batches(), b = second->test_batches();
  const auto found = infer_tasks(pack, {&a, &b}, true);
  ASSERT_EQ(found.size(), 2u);
  for (const Inference& i : found) {
    EXPECT_EQ(i.samples, 100);
    EXPECT_GT(i.task_accuracy(), 0.7);
    EXPECT_GT(i.accuracy(), 0.3);  // three times chance
  }
}

TEST(Inference, IsRightByHandForOneTask) {
  const train::RunConfig config = small({"continual.tasks=1"});
  Pack pack = empty_pack(config);
  TaskData data;
  add_task(pack, config, next_source(pack, config, data), {});
  const auto task = data.of(pack.tasks[0].source, pack.config, pack.input);
  const data::Loader tests = task->test_batches();
  const auto found = infer_tasks(pack, {&tests}, false);
  EXPECT_EQ(found[0].task_accuracy(), 1);
  EXPECT_EQ(found[0].label_right, evaluate(*task_network(pack, 1), tests).correct);
}

}  // namespace
}  // namespace espalier::continual
