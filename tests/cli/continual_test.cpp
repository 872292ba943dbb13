// espalier continual and espalier eval PACK as a user meets them: kills, one file, a new process, refusals.
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <unistd.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "cli/program.h"

extern char** environ;

namespace espalier {
namespace {

using nlohmann::json;

const char* const kConfig = R"(
[run]
threads = 1
[data]
name = "glyphs"
train_size = 640
test_size = 100
validation = 64
[model]
name = "mlp"
widths = [16]
[train]
steps = 400
epochs = 0
batch_size = 16
[optim]
lr = 0.05
momentum = 0.9
[reparam]
name = "powerprop"
alpha = 1.5
[checkpoint]
every = "20it"
[continual]
sequence = "permuted"
tasks = 3
keep_rates = [0.1, 0.2]
retrain = "40it"
)";

class Continual : public Program {
 protected:
  pid_t start(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), ESPALIER_PROGRAM);
    std::vector<char*> argv;
    for (auto& a : arguments) argv.push_back(a.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    for (const int fd : {1, 2})
      posix_spawn_file_actions_addopen(&actions, fd, at("child.txt").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
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
  json eval(const std::string& arguments) {
    const Result r = run("eval " + arguments + " --json");
    EXPECT_EQ(r.status, 0) << r.err;
    return json::parse(r.out);
  }
};

TEST_F(Continual, KilledAndResumedItEndsInTheSameBytes) {
  write("c.toml", kConfig);
  ASSERT_EQ(run("continual c.toml --run-dir whole").status, 0);
  int killed = 0;
  for (int i = 0;; ++i) {
    ASSERT_LT(i, 100);
    const pid_t pid = start({"continual", at("c.toml"), "--resume", at("killed")});
    std::this_thread::sleep_for(std::chrono::milliseconds(150 + 60 * i));
    kill(pid, SIGKILL);
    if (wait_for(pid) == 0) break;
    ++killed;
  }
  EXPECT_GT(killed, 0);
  for (const char* file : {"pack.safetensors", "metrics.jsonl", "weights.jsonl"}) {
    EXPECT_EQ(read(std::string("whole/") + file), read(std::string("killed/") + file)) << file;
  }
}

TEST_F(Continual, AStopBySignalIsStatus75AndGoesOn) {
  write("c.toml", kConfig);
  const pid_t pid = start({"continual", at("c.toml"), "--run-dir", at("run"), "--set", "train.steps=200000"});
  for (int i = 0; i < 600 && read("run/metrics.jsonl").empty(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  kill(pid, SIGTERM);
  EXPECT_EQ(wait_for(pid), 75);
  EXPECT_EQ(json::parse(read("run/summary.json"))["status"], "stopped");
  EXPECT_NE(read("child.txt").find("espalier continual --resume"), std::string::npos);
}

TEST_F(Continual, OneFileServesAndLearnsInNewProcesses) {
  write("c.toml", kConfig);
  const Result learnt = run("continual c.toml --run-dir run --json");
  ASSERT_EQ(learnt.status, 0) << learnt.err;
  const json summary = json::parse(learnt.out);
  EXPECT_EQ(summary["forgetting"], 0.0);
  EXPECT_EQ(summary["accuracy_matrix"].size(), 4u);
  for (const char* key : {"schema", "status", "model", "method", "reparam", "alpha", "seed", "steps", "test_accuracy",
                          "average_accuracy", "backward_transfer", "forward_transfer", "capacity_used", "threads",
                          "isa", "train_seconds", "peak_rss_bytes"}) {
    EXPECT_TRUE(summary.contains(key)) << key;
  }
  ASSERT_EQ(run("config run/config.toml").status, 0);

  const json before = eval("run/pack.safetensors");
  ASSERT_EQ(before["tasks"].size(), 3u);
  for (std::size_t t = 0; t < 3; ++t) {
    EXPECT_EQ(before["tasks"][t]["accuracy"], summary["accuracy_matrix"][3][t]);
    const json one = eval("run --task " + std::to_string(t + 1) + " --threads 2");
    EXPECT_EQ(one["tasks"][0]["loss"], before["tasks"][t]["loss"]);
  }
  const std::string bytes = read("run/pack.safetensors");
  const Result added = run("continual --add-task run/pack.safetensors --out more.safetensors --set train.steps=50");
  ASSERT_EQ(added.status, 0) << added.err;
  EXPECT_NE(added.out.find("permutation 4"), std::string::npos) << added.out;
  EXPECT_EQ(read("run/pack.safetensors"), bytes);
  const json after = eval("more.safetensors");
  ASSERT_EQ(after["tasks"].size(), 4u);
  for (std::size_t t = 0; t < 3; ++t) EXPECT_EQ(after["tasks"][t], before["tasks"][t]);
  ASSERT_EQ(run("continual --add-task more.safetensors --task-data glyphs --set train.steps=50").status, 0);
  EXPECT_EQ(eval("more.safetensors")["tasks"].size(), 5u);

  const json inferred = eval("more.safetensors --infer-task");
  EXPECT_EQ(inferred["tasks"].size(), 5u);
  EXPECT_GE(inferred["task_accuracy"].get<double>(), 0.0);

  for (const std::string task : {"6", "0", "-1"}) {
    const Result none = run("eval more.safetensors --task=" + task);
    EXPECT_EQ(none.status, 2);
    EXPECT_NE(none.err.find("there is no task " + task + ": the packed network has tasks 1 to 5"), std::string::npos)
        << none.err;
  }
  EXPECT_EQ(run("eval more.safetensors --require-accuracy 1").status, 4);

  std::string damaged = bytes;
  damaged[damaged.size() / 2] = static_cast<char>(damaged[damaged.size() / 2] ^ 1);
  write("damaged.safetensors", damaged);
  const Result refused = run("eval damaged.safetensors");
  EXPECT_EQ(refused.status, 3);
  EXPECT_NE(refused.err.find("is damaged"), std::string::npos) << refused.err;
  EXPECT_EQ(run("continual --add-task damaged.safetensors").status, 3);
}

TEST_F(Continual, OutOfRoomIsStatus2AndTheFileStays) {
  write("c.toml", kConfig);
  ASSERT_EQ(run("continual c.toml --run-dir run --set continual.method=packnet --set train.steps=5 --set "
                "continual.tasks=2 --set continual.keep_rates=[0.05,0.1,0.2,0.5] --set continual.retrain=2it")
                .status,
            0);
  const std::string bytes = read("run/pack.safetensors");
  const Result full = run("continual --add-task run/pack.safetensors");
  EXPECT_EQ(full.status, 2);
  EXPECT_NE(full.err.find("0 of 12704 weights are free"), std::string::npos) << full.err;
  EXPECT_EQ(read("run/pack.safetensors"), bytes);
}

TEST_F(Continual, MistakesAreSaid) {
  write("c.toml", kConfig);
  const auto error = [&](const std::string& arguments) {
    const Result r = run(arguments);
    EXPECT_EQ(r.status, 2) << arguments << "\n" << r.err;
    return r.err;
  };
  EXPECT_NE(error("train c.toml").find("run it with espalier continual"), std::string::npos);
  EXPECT_NE(error("continual --preset glyphs-demo").find("[continual].sequence"), std::string::npos);
  EXPECT_NE(error("continual c.toml --set data.validation=0").find("held-out"), std::string::npos);
  EXPECT_NE(error("continual c.toml --set continual.keep_rates=0.5,0.2").find("ascending"), std::string::npos);
  EXPECT_NE(error("continual c.toml --set continual.keep_rates=0.5,1.2").find("out of range"), std::string::npos);
  EXPECT_NE(error("continual c.toml --set model.storage=compressed").find("masked"), std::string::npos);
  EXPECT_NE(error("continual c.toml --set continual.reinit=zero").find("never moves"), std::string::npos);
  EXPECT_NE(error("continual c.toml --set continual.search=binary --set continual.keep_rates=0.1").find("two bounds"),
            std::string::npos);
  EXPECT_NE(error("continual c.toml --set continual.tasks=0").find("no end"), std::string::npos);
  EXPECT_NE(error("continual c.toml --set method.name=rigl --set sparsity.sparsity=0.5").find("[continual].method"),
            std::string::npos);
  EXPECT_NE(error("continual c.toml --out x").find("--add-task"), std::string::npos);
  EXPECT_NE(error("continual c.toml --set continual.metod=packnet").find("Did you mean \"method\""), std::string::npos);
  EXPECT_NE(error("eval c.toml --task one").find("--task"), std::string::npos);
  EXPECT_NE(error("continual c.toml --set continual.sequence=datasets --set continual.datasets=glyfs --set "
                  "continual.tasks=0")
                .find("Did you mean \"glyphs\""),
            std::string::npos);
}

TEST_F(Continual, ReproduceWritesOneTableAndDoesNotRepeat) {
  write("c.toml", kConfig);
  const std::string command =
      "reproduce epn c.toml --set train.steps=20 --set continual.retrain=5it --seeds 2 --arm epn-1 --arm packnet --arm "
      "fine-tuning --dir out";
  const Result first = run(command);
  ASSERT_EQ(first.status, 0) << first.err;
  const json results = json::parse(read("out/results.json"));
  EXPECT_EQ(results.size(), 3u);
  EXPECT_EQ(results["packnet"]["average_accuracy"].size(), 2u);
  EXPECT_NEAR(results["packnet"]["capacity_used"][0].get<double>(), 1.0, 1e-12);
  EXPECT_EQ(results["epn-1"]["forgetting"][0], 0.0);
  EXPECT_NE(read("out/results.md").find("| `packnet` |"), std::string::npos);
  const auto config = std::filesystem::last_write_time(folder / "out/epn-1-1/summary.json");
  EXPECT_EQ(run(command).status, 0);
  EXPECT_EQ(std::filesystem::last_write_time(folder / "out/epn-1-1/summary.json"), config);
}

TEST_F(Continual, ReproduceTrainsTheArmsWithoutPowerpropagationOfATunedPresetAsSuitsThem) {
  for (const std::string preset : {"epn-permuted-mnist-10", "epn-permuted-mnist-50"}) {
    const std::string dir = "out-" + preset;
    const Result r =
        run("reproduce epn --preset " + preset + " --dir " + dir +
            " --seeds 1 --arm epn-1 --arm epn-2 --arm packnet --set data.name=glyphs --set data.train_size=60 --set "
            "data.test_size=20 --set data.validation=20 --set model.name=mlp --set model.widths=[8] --set "
            "continual.tasks=1 --set train.epochs=0 --set train.steps=2 --set continual.retrain=1it");
    ASSERT_EQ(r.status, 0) << r.err;
    for (const char* arm : {"epn-1", "packnet"}) {
      const std::string config = read(dir + "/" + arm + "-1/config.toml");
      EXPECT_NE(config.find("\nlr = 0.1\n"), std::string::npos) << config;
      EXPECT_NE(config.find("\nweight_decay = 0.0\n"), std::string::npos) << config;
    }
    const std::string tuned = read(dir + "/epn-2-1/config.toml");
    EXPECT_NE(tuned.find("\nlr = 0.5\n"), std::string::npos) << tuned;
    EXPECT_EQ(tuned.find("\nweight_decay = 0.0\n"), std::string::npos) << tuned;
  }
  // That of the report has one optimiser for every alpha, and keeps it.
  const Result r = run(
      "reproduce epn --dir report --seeds 1 --arm epn-1 --set data.name=glyphs --set data.train_size=60 --set "
      "data.test_size=20 --set data.validation=20 --set continual.tasks=1 --set train.epochs=0 --set train.steps=2");
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_NE(read("report/epn-1-1/config.toml").find("name = \"adam\""), std::string::npos);
}

}  // namespace
}  // namespace espalier
