// espalier train as a user and a batch system meet it: kills, signals, resuming, refusals, streams.
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <unistd.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "cli/program.h"
#include "espalier/core/random.h"

extern char** environ;

namespace espalier {
namespace {

using nlohmann::json;

const char* const kConfig = R"(
[data]
name = "glyphs"
train_size = 640
test_size = 100
validation = 64
[model]
name = "mlp"
widths = [16]
[run]
threads = 1
[train]
steps = 12000
epochs = 0
batch_size = 16
[optim]
lr = 0.02
momentum = 0.9
[reparam]
name = "powerprop"
alpha = 1.5
[method]
name = "gradual-magnitude"
every = "50it"
[sparsity]
sparsity = 0.8
[checkpoint]
every = "250it"
[log]
every = "50it"
)";

class Train : public Program {
 protected:
  /// Starts `espalier train …` in `folder` and returns at once.
  pid_t start(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {ESPALIER_PROGRAM, "train"});
    std::vector<char*> argv;
    for (auto& a : arguments) argv.push_back(a.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    for (const int fd : {1, 2})
      posix_spawn_file_actions_addopen(&actions, fd, (folder / "child.txt").c_str(), O_WRONLY | O_CREAT | O_APPEND,
                                       0644);
    pid_t pid = -1;
    EXPECT_EQ(posix_spawn(&pid, ESPALIER_PROGRAM, &actions, nullptr, argv.data(), environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    return pid;
  }
  std::string at(const std::string& name) const { return (folder / name).string(); }
  static int wait_for(pid_t pid) {
    int status = 0;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
};

TEST_F(Train, KilledAtTwentyRandomMomentsItEndsInTheSameBytes) {
  write("c.toml", kConfig);
  ASSERT_EQ(wait_for(start({at("c.toml"), "--run-dir", at("whole")})), 0) << read("child.txt");
  RandomStream random(std::chrono::steady_clock::now().time_since_epoch().count(), Purpose::test);
  int kills = 0, attempts = 0;
  while (kills < 20) {
    ASSERT_LT(++attempts, 60);
    // The same command starts the run or goes on with it.
    const pid_t pid = start({at("c.toml"), "--resume", at("killed")});
    std::this_thread::sleep_for(std::chrono::milliseconds(150 + random.below(900)));
    kill(pid, SIGKILL);
    const int status = wait_for(pid);
    if (status == 128 + SIGKILL)
      ++kills;
    else {  // a fast machine: the run was over; begin another one
      ASSERT_EQ(status, 0) << read("child.txt");
      std::filesystem::remove_all(folder / "killed");
    }
  }
  ASSERT_EQ(wait_for(start({at("c.toml"), "--resume", at("killed")})), 0) << read("child.txt");
  for (const char* file : {"metrics.jsonl", "checkpoints/latest/model.safetensors",
                           "checkpoints/latest/optimizer.safetensors", "checkpoints/latest/sparsity.safetensors"}) {
    const std::string want = read(std::string("whole/") + file);
    ASSERT_GT(want.size(), 100u) << file;
    EXPECT_TRUE(want == read(std::string("killed/") + file)) << file << " differs";
  }
}

// Changes of topology every 7 steps, checkpoints every 50: most kills come between two changes, and between a change
// and the next checkpoint.
TEST_F(Train, KilledBetweenChangesOfTopologyEveryMethodEndsInTheSameBytes) {
  write("c.toml", kConfig);
  RandomStream random(std::chrono::steady_clock::now().time_since_epoch().count(), Purpose::test);
  for (const auto& [method, storage] : std::vector<std::pair<std::string, std::string>>{{"dpr", "compressed"},
                                                                                        {"set", "compressed"},
                                                                                        {"rigl", "compressed"},
                                                                                        {"deep-r", "compressed"},
                                                                                        {"snfs", "compressed"},
                                                                                        {"soft-deep-r", "masked"},
                                                                                        {"top-kast", "compressed"},
                                                                                        {"str", "masked"}}) {
    SCOPED_TRACE(method);
    std::vector<std::string> arguments = {at("c.toml"), "--set", "train.steps=1500", "--set", "checkpoint.every=50it"};
    for (const std::string& setting :
         {"method.name=" + method, std::string("method.every=7it"), "model.storage=" + storage,
          std::string("reparam.alpha=1"), std::string("sparsity.sparsity=") + (method == "str" ? "0" : "0.9")}) {
      arguments.insert(arguments.end(), {"--set", setting});
    }
    const auto with = [&](const std::string& flag, const std::string& run) {
      std::vector<std::string> all = arguments;
      all.insert(all.end(), {flag, at(run)});
      return all;
    };
    ASSERT_EQ(wait_for(start(with("--run-dir", method))), 0) << read("child.txt");
    int kills = 0;
    for (int attempt = 0; attempt < 12 && kills < 3; ++attempt) {
      const pid_t pid = start(with("--resume", method + "-killed"));
      std::this_thread::sleep_for(std::chrono::milliseconds(100 + random.below(500)));
      kill(pid, SIGKILL);
      const int status = wait_for(pid);
      ASSERT_TRUE(status == 0 || status == 128 + SIGKILL) << status << read("child.txt");
      kills += status == 0 ? 0 : 1;
      if (status == 0) std::filesystem::remove_all(folder / (method + "-killed"));  // a fast machine: once more
    }
    EXPECT_GT(kills, 0);
    ASSERT_EQ(wait_for(start(with("--resume", method + "-killed"))), 0) << read("child.txt");
    for (const char* file : {"metrics.jsonl", "checkpoints/latest/model.safetensors",
                             "checkpoints/latest/optimizer.safetensors", "checkpoints/latest/sparsity.safetensors"}) {
      const std::string want = read(method + "/" + file);
      ASSERT_GT(want.size(), 100u) << file;
      EXPECT_TRUE(want == read(method + "-killed/" + file)) << file << " differs";
    }
  }
}

TEST_F(Train, SigtermLeavesAGoodCheckpointAndStatus75) {
  write("c.toml", kConfig);
  for (const int signal : {SIGTERM, SIGINT, SIGUSR1}) {
    const std::string run_dir = "run" + std::to_string(signal);
    const pid_t pid = start({at("c.toml"), "--run-dir", at(run_dir), "--set", "train.steps=100000000"});
    for (int i = 0; i < 400 && !std::filesystem::exists(folder / run_dir / "checkpoints" / "latest"); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    kill(pid, signal);
    EXPECT_EQ(wait_for(pid), 75) << read("child.txt");
    const json summary = json::parse(read(run_dir + "/summary.json"));
    EXPECT_EQ(summary["status"], "stopped");
    const Result inspected = run("inspect " + run_dir + " --json");
    EXPECT_EQ(inspected.status, 0) << inspected.err;
    EXPECT_EQ(json::parse(inspected.out)["step"], summary["steps"]);
  }
}

TEST_F(Train, ResultsGoToStandardOutputAndMessagesToStandardError) {
  write("c.toml", kConfig);
  const Result r = run("train c.toml --set train.steps=40 --run-dir r --json");
  ASSERT_EQ(r.status, 0) << r.err;
  const json summary = json::parse(r.out);
  EXPECT_EQ(summary, json::parse(read("r/summary.json")));
  EXPECT_NE(r.err.find("done: test accuracy"), std::string::npos) << r.err;
  EXPECT_EQ(r.err.find('\r'), std::string::npos) << "no progress bar outside a terminal";
  for (const char* file : {"config.toml", "config.input.toml", "command.txt", "env.json", "log.txt", "metrics.jsonl"})
    EXPECT_TRUE(std::filesystem::exists(folder / "r" / file)) << file;
  // The resolved configuration is itself a configuration, of the same run.
  const Result again = run("train r/config.toml --run-dir again --json");
  ASSERT_EQ(again.status, 0) << again.err;
  EXPECT_TRUE(read("r/metrics.jsonl") == read("again/metrics.jsonl"));
  EXPECT_EQ(run("eval r --require-accuracy 0.999").status, 4);
  const Result eval = run("eval r --json");
  EXPECT_EQ(json::parse(eval.out)["accuracy"], summary["test_accuracy"]);
}

TEST_F(Train, RefusesWhatWouldLoseOrMixRuns) {
  write("c.toml", kConfig);
  ASSERT_EQ(run("train c.toml --set train.steps=40 --run-dir r").status, 0);
  const Result taken = run("train c.toml --run-dir r");
  EXPECT_EQ(taken.status, 2);
  EXPECT_NE(taken.err.find("--overwrite"), std::string::npos) << taken.err;
  const Result changed = run("train --resume r --set optim.lr=0.5");
  EXPECT_EQ(changed.status, 2);
  EXPECT_NE(changed.err.find("--allow-change optim.lr"), std::string::npos) << changed.err;
  const Result nothing = run("train --resume nowhere");
  EXPECT_EQ(nothing.status, 2);
  EXPECT_NE(nothing.err.find("no run to resume"), std::string::npos) << nothing.err;
  EXPECT_EQ(run("train --resume r").status, 0);  // finished already: says so, changes nothing
  const Result longer = run("train --resume r --set train.steps=60 --allow-change train.steps --json");
  ASSERT_EQ(longer.status, 0) << longer.err;
  EXPECT_EQ(json::parse(longer.out)["steps"], 60);
  EXPECT_EQ(run("eval nowhere").status, 2);
  EXPECT_EQ(run("inspect nowhere").status, 2);
  const Result missing = run("train --preset mnist-ann --run-dir m --data-root nowhere");
  EXPECT_EQ(missing.status, 3);
  EXPECT_NE(missing.err.find("train-images-idx3-ubyte"), std::string::npos) << missing.err;
  const Result diverged = run("train c.toml --set optim.lr=1e30 --run-dir d");
  EXPECT_EQ(diverged.status, 5);
  EXPECT_NE(diverged.err.find("first layer at fault is fc"), std::string::npos) << diverged.err;
}

TEST_F(Train, PruneReportsEveryShare) {
  ASSERT_EQ(run("train --preset glyphs-demo --set data.train_size=640 --set data.test_size=100 --set train.epochs=2 "
                "--set method.name=dense --set sparsity.sparsity=0 --run-dir r")
                .status,
            0)
      << read("stderr.txt");
  const Result r = run("prune r --sparsity 0,0.9,0.99 --distribution global --retrain 5it --json");
  ASSERT_EQ(r.status, 0) << r.err;
  const json points = json::parse(r.out)["points"];
  ASSERT_EQ(points.size(), 3u);
  EXPECT_EQ(points[0]["nnz"], points[0]["weights"]);
  EXPECT_NEAR(points[2]["sparsity"].get<double>(), 0.99, 1e-4);
  EXPECT_EQ(run("prune r --keep 0.5 --save p.safetensors").status, 0);
  const Result saved = run("inspect p.safetensors --json");  // nnz of a weight: what its mask keeps
  ASSERT_EQ(saved.status, 0) << saved.err;
  bool mask = false;
  const json document = json::parse(saved.out);
  for (const auto& t : document["tensors"]) mask = mask || t["name"] == "fc1.weight.mask";
  EXPECT_TRUE(mask);
  EXPECT_EQ(run("eval r --weights p.safetensors").status, 0);
  EXPECT_EQ(run("prune r --keep 2").status, 2);
}

}  // namespace
}  // namespace espalier
