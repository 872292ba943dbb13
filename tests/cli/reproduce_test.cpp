// espalier reproduce: experiments of a few seconds.
#include <nlohmann/json.hpp>

#include "cli/program.h"

namespace espalier {
namespace {

using nlohmann::json;

class ReproduceAdaptiveAlpha : public Program {};

const char* const kTiny = R"(
[data]
name = "glyphs"
train_size = 320
test_size = 80
[model]
name = "mlp"
widths = [12]
[train]
epochs = 3
batch_size = 32
[optim]
lr = 0.1
)";

TEST_F(ReproduceAdaptiveAlpha, AnArmThatDivergesIsAResultAndTheOthersGoOn) {
  write("c.toml", kTiny);
  const Result r =
      run("reproduce adaptive-alpha c.toml --dir runs --seeds 1 --alphas 16,1 --threads 1 --json --arm alpha-16 --arm "
          "alpha-1 --set optim.momentum=0.9 --set optim.lr=1 --set model.init=xavier-normal");
  ASSERT_EQ(r.status, 0) << r.err;
  const json arms = json::parse(r.out).at("arms");
  EXPECT_EQ(arms.at("alpha-16").at("diverged"), 1);
  EXPECT_TRUE(arms.at("alpha-16").at("test_accuracy").empty());
  EXPECT_EQ(arms.at("alpha-1").at("diverged"), 0);
  EXPECT_EQ(arms.at("alpha-1").at("test_accuracy").size(), 1u);
  EXPECT_NE(r.err.find("alpha-16-1: step"), std::string::npos) << r.err;
  EXPECT_NE(read("runs/results.md").find("1 of 1 diverged"), std::string::npos);
}

class ReproducePhew : public Program {};

TEST_F(ReproducePhew, AFolderWithOtherRunsIsRefused) {
  const std::string command =
      "reproduce phew --part accuracy --methods random --sparsity 0.9 --seeds 1 --out o --threads 1 --json --set "
      "data.name=glyphs --set data.train_size=320 --set data.test_size=80 --set data.validation=80 --set "
      "train.steps=0 ";
  const Result first = run(command + "--set train.epochs=1");
  ASSERT_EQ(first.status, 0) << first.err;
  EXPECT_EQ(run(command + "--set train.epochs=1").out, first.out);
  const Result other = run(command + "--set train.epochs=2");
  EXPECT_EQ(other.status, 2) << "or the accuracies of one epoch would be shown as those of two: " << other.out;
  EXPECT_NE(other.err.find("another configuration (train.epochs: 1.0 -> 2.0)"), std::string::npos) << other.err;
}

TEST_F(ReproduceAdaptiveAlpha, BesideFixedOnes) {
  write("c.toml", kTiny);
  const std::string command =
      "reproduce adaptive-alpha c.toml --dir runs --seeds 2 --alphas 1,2 --threads 1 --json --arm alpha-1 --arm "
      "alpha-2 "
      "--arm near-zero --arm near-zero-layer --set reparam.interval=1ep --set reparam.epsilon=0.05";
  const Result first = run(command);
  ASSERT_EQ(first.status, 0) << first.err;
  const json results = json::parse(first.out);
  EXPECT_EQ(results.at("epsilon"), 0.05);
  ASSERT_EQ(results.at("arms").size(), 4u);
  for (const auto& [name, arm] : results.at("arms").items()) {
    ASSERT_EQ(arm.at("near_zero").size(), 2u) << name;
    for (const auto& share : arm.at("near_zero")) {
      EXPECT_GT(share, 0) << name;
      EXPECT_LT(share, 1) << name;
    }
    EXPECT_EQ(arm.contains("trace"), name != "alpha-1" && name != "alpha-2");
  }
  EXPECT_EQ(results.at("arms").at("alpha-2").at("alpha")[0], 2.0);
  const json& trace = results.at("arms").at("near-zero").at("trace").at(0);
  ASSERT_EQ(trace.size(), 3u);  // the start, and after the epochs 1 and 2
  EXPECT_EQ(trace[0].at("alpha"), 1.2);
  EXPECT_EQ(trace[2].at("epoch"), 2.0);
  EXPECT_EQ(results.at("arms").at("near-zero").at("alpha")[0], trace[2].at("alpha"));
  EXPECT_EQ(results.at("arms").at("near-zero-layer").at("alpha")[0].size(), 2u);
  // What the inspecting command counts in the finished run is what stands in the table.
  const Result inspect = run("inspect runs/alpha-2-1/checkpoints/latest/model.safetensors --epsilon 0.05 --json");
  ASSERT_EQ(inspect.status, 0) << inspect.err;
  double below = 0, all = 0;
  const json seen = json::parse(inspect.out);
  for (const json& t : seen.at("tensors")) {
    if (t.at("shape").size() != 2) continue;
    below += t.at("near_zero").get<double>() * t.at("elements").get<double>();
    all += t.at("elements").get<double>();
  }
  EXPECT_NEAR(results.at("arms").at("alpha-2").at("near_zero")[0].get<double>(), below / all, 1e-9);

  const Result again = run(command);
  ASSERT_EQ(again.status, 0) << again.err;
  EXPECT_EQ(again.out, first.out);
  EXPECT_EQ(again.err.find("epoch 1"), std::string::npos) << "a finished run was run again";
}

TEST_F(ReproduceAdaptiveAlpha, RefusesWhatIsWrongBeforeItRuns) {
  write("c.toml", kTiny);
  const auto refused = [&](const std::string& arguments, const std::string& text) {
    const Result r = run("reproduce adaptive-alpha c.toml --dir runs " + arguments);
    EXPECT_EQ(r.status, 2) << arguments;
    EXPECT_NE(r.err.find(text), std::string::npos) << r.err;
  };
  refused("--arm effektive", "--arm effektive: unknown. Known: alpha-1, alpha-1.25");
  refused("--seeds 0", "--seeds 0: expected at least 1");
  refused("--seed 3", "--seed: the runs have the seeds 1, 2, …");
  refused("--set reparam.alpha=40", "[reparam].alpha = 40 is out of range");
  refused("--alphas 0.5", "[reparam].alpha = 0.5 is out of range");
  EXPECT_FALSE(std::filesystem::exists(folder / "runs"));
}

}  // namespace
}  // namespace espalier
