// espalier sweep, compare and watch as a user and a batch system meet them.
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "cli/program.h"
#include "espalier/core/random.h"

extern char** environ;

namespace espalier {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

const char* const kConfig = R"(
[data]
name = "glyphs"
train_size = 200
test_size = 50
validation = 40
[model]
name = "mlp"
widths = [8]
storage = "masked"
[run]
threads = 1
[train]
steps = 300
epochs = 0
batch_size = 16
[reparam]
name = "powerprop"
[method]
name = "gradual-magnitude"
every = "20it"
[sparsity]
sparsity = 0.5
[checkpoint]
every = "40it"
[log]
every = "20it"
)";

class Sweep : public Program {
 protected:
  /// Starts the program in the background; its output goes to child.txt.
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
  /// Whether it is there within a minute.
  template <class Condition>
  static bool soon(Condition&& condition) {
    for (int i = 0; i < 6000 && !condition(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    return condition();
  }
  /// Whether this cell of the sweep "d" has a checkpoint.
  bool trains(const std::string& cell) const {
    return fs::exists(folder / ("d/cells/" + cell + "/checkpoints/latest"));
  }
  std::size_t finished(const std::string& sweep) {
    const std::string csv = read(sweep + "/results.csv");
    std::size_t n = 0;
    for (std::size_t i = csv.find(",done,"); i != std::string::npos; i = csv.find(",done,", i + 1)) ++n;
    return n;
  }
};

TEST_F(Sweep, TwentyFourCellsKilledTwiceAtRandomEndInTheSameResults) {
  std::string text = kConfig;  // long enough to be killed in the middle of a training and not at its start only
  text.replace(text.find("steps = 300"), 11, "steps = 6000").replace(text.find("\"40it\""), 6, "\"300it\"");
  write("s.toml", text + "[sweep]\nseeds = 4\n[sweep.grid]\nreparam.alpha = [1, 1.5, 2]\noptim.lr = [0.05, 0.1]\n");
  const Result whole = run("sweep s.toml --dir whole --jobs 2");
  ASSERT_EQ(whole.status, 0) << whole.err;
  ASSERT_EQ(finished("whole"), 24U);

  const std::uint64_t seed = std::random_device()();
  SCOPED_TRACE(seed);
  RandomStream random(seed, Purpose::shuffle, 0);
  for (int kill_number = 0; kill_number < 2; ++kill_number) {
    const pid_t pid = start({"sweep", at("s.toml"), "--dir", at("killed"), "--jobs", "2"});
    // Somewhere in the next cells, and not at their beginning only.
    const std::size_t from = finished("killed") + 1 + random.below(7);
    const auto in_the_middle = [&] {
      std::error_code error;
      for (const auto& entry : fs::directory_iterator(folder / "killed/cells", error))
        if (fs::exists(entry.path() / "checkpoints/latest") && !fs::exists(entry.path() / "summary.json")) return true;
      return false;
    };
    ASSERT_TRUE(soon([&] { return finished("killed") >= from && in_the_middle(); })) << read("child.txt");
    std::this_thread::sleep_for(std::chrono::milliseconds(random.below(120)));
    kill(pid, SIGKILL);
    EXPECT_EQ(wait_for(pid), 128 + SIGKILL) << "it was to be killed before it ended";
  }
  const Result last = run("sweep s.toml --dir killed --jobs 2");
  ASSERT_EQ(last.status, 0) << last.err;
  EXPECT_NE(last.err.find("of 24 cells are finished already"), std::string::npos) << last.err;
  std::size_t resumed = 0;
  for (const auto& entry : fs::directory_iterator(folder / "killed/cells"))
    resumed += entry.path().extension() == ".log" &&
               read("killed/cells/" + entry.path().filename().string()).find("resuming at step") != std::string::npos;
  EXPECT_GE(resumed, 1U) << "no cell was interrupted in its training: this shows nothing about resuming";
  EXPECT_EQ(read("killed/results.csv"), read("whole/results.csv"));
  EXPECT_EQ(read("killed/results.json"), read("whole/results.json"));
  EXPECT_NE(read("killed/times.csv").find("train_seconds"), std::string::npos);

  const Result again = run("sweep s.toml --dir killed --jobs 1 --json");
  EXPECT_EQ(again.status, 0);
  EXPECT_NE(again.err.find("24 of 24 cells are finished already"), std::string::npos) << again.err;
  EXPECT_EQ(json::parse(again.out)["cells"].size(), 24U);

  const json table = json::parse(run("compare whole --json --sort test_accuracy --descending").out);
  ASSERT_EQ(table["groups"].size(), 6U) << "four seeds each";
  for (const auto& group : table["groups"]) EXPECT_EQ(group["values"]["test_accuracy"]["n"], 4);
  EXPECT_GE(table["groups"][0]["values"]["test_accuracy"]["mean"],
            table["groups"][5]["values"]["test_accuracy"]["mean"]);
}

TEST_F(Sweep, ASignalStopsTheCellsWithTheirCheckpoints) {
  write("s.toml", std::string(kConfig) + "[sweep.grid]\nreparam.alpha = [1, 2, 3]\n");
  const pid_t pid = start({"sweep", at("s.toml"), "--dir", at("d"), "--jobs", "2", "--set", "train.steps=10000000"});
  ASSERT_TRUE(soon([&] { return trains("alpha=1.0") && trains("alpha=2.0"); })) << read("child.txt");
  EXPECT_FALSE(fs::exists(folder / "d/cells/alpha=3.0")) << "two at a time";
  kill(pid, SIGTERM);
  EXPECT_EQ(wait_for(pid), 75) << read("child.txt");
  for (const char* cell : {"alpha=1.0", "alpha=2.0"})
    EXPECT_EQ(json::parse(read(std::string("d/cells/") + cell + "/summary.json"))["status"], "stopped");
  EXPECT_NE(read("child.txt").find("the same command goes on"), std::string::npos);
  const Result left_out = run("compare d");
  EXPECT_EQ(left_out.status, 3);
  EXPECT_NE(left_out.err.find("left out: stopped"), std::string::npos) << left_out.err;
}

TEST_F(Sweep, CellsOfAKilledSweepWriteTheirCheckpointsAndAreWaitedFor) {
  write("s.toml", std::string(kConfig) + "[sweep.grid]\nreparam.alpha = [1]\n");
  const std::vector<std::string> sweep = {"sweep", at("s.toml"), "--dir", at("d"), "--set", "train.steps=10000000"};
  const pid_t killed = start(sweep);
  ASSERT_TRUE(soon([&] { return trains("alpha=1.0"); })) << read("child.txt");
  kill(killed, SIGKILL);
  EXPECT_EQ(wait_for(killed), 128 + SIGKILL);
  const auto status = [&] { return json::parse(read("d/cells/alpha=1.0/summary.json"), nullptr, false); };
  ASSERT_TRUE(soon([&] { return status().is_object(); })) << "the system tells the cell that its sweep is gone";
  EXPECT_EQ(status()["status"], "stopped");

  // One that is still at it, as far as the next start can see.
  const pid_t holds = start({"train", at("d/cells/alpha=1.0.toml"), "--resume", at("d/cells/alpha=1.0")});
  ASSERT_TRUE(soon([&] { return read("child.txt").find("resuming at step") != std::string::npos; }));
  const pid_t next = start(sweep);
  EXPECT_TRUE(soon([&] { return read("child.txt").find("another process is still in it") != std::string::npos; }));
  kill(holds, SIGTERM);
  EXPECT_EQ(wait_for(holds), 75);
  const auto begun = [&] { return read("d/cells/alpha=1.0.log"); };
  EXPECT_TRUE(soon([&] { return begun().find("resuming at step") != std::string::npos; })) << begun();
  kill(next, SIGTERM);
  EXPECT_EQ(wait_for(next), 75) << read("child.txt");
}

TEST_F(Sweep, ACellThatFailedIsTriedAgain) {
  write("s.toml", std::string(kConfig) + "[sweep.grid]\nreparam.alpha = [1]\n");
  write("blocks", "x");
  fs::create_directories(folder / "d/cells");
  fs::rename(folder / "blocks", folder / "d/cells/alpha=1.0");
  const Result failed = run("sweep s.toml --dir d --set train.steps=20");
  EXPECT_NE(failed.status, 0);
  EXPECT_NE(read("d/results.csv").find(",failed\n"), std::string::npos) << read("d/results.csv");
  fs::remove(folder / "d/cells/alpha=1.0");
  const Result again = run("sweep s.toml --dir d --set train.steps=20");
  EXPECT_EQ(again.status, 0) << again.err;
  EXPECT_EQ(finished("d"), 1U) << read("d/results.csv");
}

TEST_F(Sweep, CellsThatFailAlikeGiveTheirStatus) {
  std::string text = kConfig;
  text.replace(text.find("glyphs"), 6, "mnist").replace(text.find("train_size = 200"), 16, "root = \"/nonexistent\"");
  text.erase(text.find("test_size = 50\n"), 15);
  write("s.toml", text + "[sweep.grid]\nreparam.alpha = [1, 2]\n");
  const Result result = run("sweep s.toml --dir d");
  EXPECT_EQ(result.status, 3) << result.err;
  EXPECT_NE(result.err.find("2 of 2 cells failed:"), std::string::npos) << result.err;
}

TEST_F(Sweep, ThatGoesOnKeepsTheThreadsOfItsCells) {
  std::string text = kConfig;
  text.erase(text.find("threads = 1\n"), 12);
  write("s.toml", text + "[sweep.grid]\nreparam.alpha = [1]\n");
  ASSERT_EQ(run("sweep s.toml --dir d --jobs 1024 --set train.steps=20").status, 0);
  const Result again = run("sweep s.toml --dir d --jobs 1 --set train.steps=20");
  EXPECT_EQ(again.status, 0) << again.err << "with two cores or more a cell would have had them";
  EXPECT_NE(again.err.find("1 of 1 cells are finished already"), std::string::npos) << again.err;
}

TEST_F(Sweep, AFailedCellDoesNotStopTheRest) {
  write("s.toml", std::string(kConfig) + R"([sweep]
[[sweep.list]]
label = "no-data"
data.name = "mnist"
data.root = "/nonexistent"
data.train_size = 20000
data.test_size = 10000
[[sweep.list]]
label = "diverges"
optim.lr = 1e30
[[sweep.list]]
label = "good"
)");
  const Result result = run("sweep s.toml --dir d");
  EXPECT_EQ(result.status, 1) << "3 and 5 do not agree";
  EXPECT_NE(result.err.find("2 of 3 cells failed:"), std::string::npos) << result.err;
  EXPECT_NE(result.err.find("no-data: exit status 3: "), std::string::npos) << result.err;
  EXPECT_NE(result.err.find("diverges: step "), std::string::npos) << result.err;
  const std::string csv = read("d/results.csv");
  EXPECT_NE(csv.find("\nno-data,no-data,"), std::string::npos) << csv;
  EXPECT_NE(csv.find(",failed,"), std::string::npos) << csv;
  EXPECT_NE(csv.find(",diverged,"), std::string::npos) << csv;
  EXPECT_EQ(finished("d"), 1U);
  // What was missing may be there now; what has diverged would diverge again.
  const Result again = run("sweep s.toml --dir d");
  EXPECT_NE(again.err.find("2 of 3 cells are finished already"), std::string::npos) << again.err;
  EXPECT_NE(again.err.find("2 of 3 cells failed:"), std::string::npos) << again.err;
}

TEST_F(Sweep, AChangedFileOverAnExistingDirectoryIsRefused) {
  const std::string grid = "[sweep.grid]\nreparam.alpha = [1]\n";
  write("s.toml", std::string(kConfig) + grid);
  ASSERT_EQ(run("sweep s.toml --dir d --set train.steps=20").status, 0);
  const Result changed = run("sweep s.toml --dir d --set train.steps=30");
  EXPECT_EQ(changed.status, 2);
  EXPECT_NE(changed.err.find("alpha=1.0: train.steps: 20 -> 30"), std::string::npos) << changed.err;
  const Result more = run("sweep s.toml --dir d --set train.steps=20 --seeds 2");
  EXPECT_EQ(more.status, 2);
  EXPECT_NE(more.err.find("was a cell, is none now"), std::string::npos) << more.err;
  write("s.toml", std::string(kConfig) + "[sweep.grid]\nreparam.alpha = [1, 2]\n");
  EXPECT_EQ(run("sweep s.toml --dir d --set train.steps=20 --extend").status, 0);
  EXPECT_EQ(finished("d"), 2U);
  fs::create_directories(folder / "mine");
  write("mine/thesis.tex", "x");
  const Result mine = run("sweep s.toml --dir mine");
  EXPECT_EQ(mine.status, 2);
  EXPECT_NE(mine.err.find("not a sweep of Espalier's"), std::string::npos) << mine.err;
}

TEST_F(Sweep, TheEnvironmentDoesNotOverrideWhatTheSweepVaries) {
  write("s.toml", std::string(kConfig) + "[sweep.grid]\nreparam.alpha = [1, 2]\n");
  ASSERT_EQ(run("sweep s.toml --dir d --set train.steps=20", "ESPALIER_REPARAM_ALPHA=4 ESPALIER_OPTIM_LR=0.01").status,
            0);
  const json results = json::parse(read("d/results.json"));
  EXPECT_EQ(results["cells"][0]["summary"]["alpha"], 1.0);
  EXPECT_EQ(results["cells"][1]["summary"]["alpha"], 2.0);
  EXPECT_NE(read("d/cells/alpha=1.0/config.toml").find("\nlr = 0.01\n"), std::string::npos);
}

TEST_F(Sweep, DryRunNamesTheCellsAndReproduceShowsItsFile) {
  const Result dry = run("sweep --preset glyphs-demo --sweep reparam.alpha=1.5,2 --seeds 2 --dry-run");
  EXPECT_EQ(dry.out, "alpha=1.5,seed=1\nalpha=1.5,seed=2\nalpha=2.0,seed=1\nalpha=2.0,seed=2\n") << dry.err;
  EXPECT_FALSE(fs::exists(folder / "runs"));
  const Result shown = run("reproduce report --show");
  EXPECT_EQ(shown.out.substr(0, 2), "# ");
  write("copy.toml", shown.out);
  EXPECT_EQ(run("sweep copy.toml --dry-run").out, run("reproduce report --dry-run").out);
  EXPECT_EQ(run("reproduce powerprop --dry-run --seeds 1 --only recommended").out, "recommended,seed=1\n");
}

TEST_F(Sweep, ReproduceEndsInAPageForEachNetwork) {
  const Result r =
      run("reproduce report --dir d --seeds 2 --no-prune --threads 1 --only ann-alpha1 --only ann-alpha4 --only "
          "mnist-cnn-plain --set data.name=glyphs --set data.train_size=300 --set data.test_size=50 --set "
          "data.validation=50 --set train.epochs=1");
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.err.find(" at a time, 1 thread each"), std::string::npos) << r.err;
  const std::string all = read("d/report.html"), one = read("d/report-glyphs-mlp.html"),
                    other = read("d/report-glyphs-mnist-cnn.html");
  for (const char* layer : {"fc1.weight", "conv1.weight"}) EXPECT_NE(all.find(layer), std::string::npos) << layer;
  EXPECT_EQ(one.find("conv1.weight"), std::string::npos) << "a page has one network";
  EXPECT_NE(one.find("alpha 4"), std::string::npos);
  EXPECT_NE(other.find("conv1.weight"), std::string::npos);
  EXPECT_EQ(run("reproduce report --dir e --seeds 1 --no-prune --threads 1 --only ann-alpha1 --set data.name=glyphs "
                "--set data.train_size=300 --set data.test_size=50 --set data.validation=50 --set train.epochs=1")
                .status,
            0);
  EXPECT_FALSE(fs::exists(folder / "e/report-glyphs-mlp.html")) << "which is report.html";
}

class Watch : public Sweep {};

TEST_F(Watch, ShowsAFinishedRunAndEnds) {
  write("c.toml", kConfig);
  ASSERT_EQ(run("train c.toml --run-dir r").status, 0);
  const Result text = run("watch r --once");
  EXPECT_NE(text.out.find("done"), std::string::npos) << text.out;
  EXPECT_NE(text.out.find("step 300/300"), std::string::npos) << text.out;
  EXPECT_NE(text.out.find("fc1.weight"), std::string::npos) << text.out;
  const json state = json::parse(run("watch r --json").out);
  EXPECT_EQ(state["status"], "done");
  EXPECT_EQ(state["total_steps"], 300);
  EXPECT_EQ(run("watch r").status, 0) << "a run that has ended is not waited for";
  EXPECT_EQ(run("watch nothing").status, 2);
}

/// What the server answers to `request`, headers and all.
std::string ask(int port, const std::string& request, std::uint32_t host = INADDR_LOOPBACK) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  address.sin_addr.s_addr = htonl(host);
  std::string answer;
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0 &&
      write(fd, request.data(), request.size()) == static_cast<ssize_t>(request.size())) {
    char buffer[4096];
    for (ssize_t n; (n = ::read(fd, buffer, sizeof buffer)) > 0;) answer.append(buffer, static_cast<std::size_t>(n));
  }
  close(fd);
  return answer;
}

TEST_F(Watch, ServesOnThisMachineReadOnly) {
  write("c.toml", kConfig);
  ASSERT_EQ(run("train c.toml --run-dir 'r<b>'").status, 0);
  const pid_t pid = start({"watch", at("r<b>"), "--serve", "--port", "0"});
  const std::string before = "http://127.0.0.1:";
  ASSERT_TRUE(soon([&] { return read("child.txt").find("(Ctrl-C ends)") != std::string::npos; })) << read("child.txt");
  const std::string said = read("child.txt");
  const int port = std::stoi(said.substr(said.find(before) + before.size()));
  const std::string host = "Host: 127.0.0.1:" + std::to_string(port) + "\r\n";
  const auto get = [&](const std::string& path) {
    return ask(port, "GET " + path + " HTTP/1.1\r\n" + host + "Connection: close\r\n\r\n");
  };
  const std::string page = get("/");
  EXPECT_EQ(page.substr(0, 15), "HTTP/1.1 200 OK") << page;
  EXPECT_NE(page.find("r&lt;b&gt;"), std::string::npos) << "names are text";
  EXPECT_NE(page.find("Content-Security-Policy"), std::string::npos);
  const std::string runs = get("/api/runs");
  EXPECT_EQ(json::parse(runs.substr(runs.find("\r\n\r\n")))[0]["status"], "done");
  const std::string metrics = get("/api/runs/0/metrics.jsonl");
  const std::string body = metrics.substr(metrics.find("\r\n\r\n") + 4);
  EXPECT_EQ(body, read("r<b>/metrics.jsonl"));
  const std::string rest = get("/api/runs/0/metrics.jsonl?from=100");
  EXPECT_EQ(rest.substr(rest.find("\r\n\r\n") + 4), body.substr(100));
  EXPECT_EQ(get("/api/runs/0/metrics.jsonl?from=99999999").substr(9, 3), "200");
  const std::string report = get("/report");
  EXPECT_EQ(report.substr(9, 3), "200");
  EXPECT_NE(report.find("r&lt;b&gt;"), std::string::npos);
  EXPECT_FALSE(fs::exists(folder / "r<b>/report.html")) << "nothing is written";
  EXPECT_EQ(get("/api/runs/1/metrics.jsonl").substr(9, 3), "404");
  EXPECT_EQ(get("/api/runs/0/model.safetensors").substr(9, 3), "404");
  EXPECT_EQ(get("/api/runs/0/../../etc/passwd").substr(9, 3), "404");
  ASSERT_TRUE(fs::exists(folder / "r<b>/log.txt"));
  EXPECT_EQ(get("/api/runs/0/log.txt").substr(9, 3), "404") << "only what the page needs";
  write("beside.json", "{}");
  for (const char* path : {"../beside.json", "..%2fbeside.json", "%2e%2e/beside.json", "..%2f..%2fetc%2fpasswd"})
    EXPECT_EQ(get(std::string("/api/runs/0/") + path).substr(9, 3), "404") << path;
  EXPECT_EQ(get("/api/runs/99999999999999999999/metrics.jsonl").substr(9, 3), "404");
  EXPECT_EQ(get("/api/runs/0/metrics.jsonl?from=-1").substr(9, 3), "400");
  EXPECT_EQ(get("/api/runs/0/metrics.jsonl?from=99999999999999999999").substr(9, 3), "400");
  for (const char* method : {"POST", "PUT", "DELETE", "HEAD", "OPTIONS"}) {
    const std::string answer =
        ask(port, std::string(method) + " / HTTP/1.1\r\n" + host + "Content-Length: 0\r\nConnection: close\r\n\r\n");
    EXPECT_EQ(answer.substr(9, 3), "405") << method << " " << answer;
  }
  const std::string elsewhere = ask(port, "GET /api/runs HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
  EXPECT_EQ(elsewhere.substr(9, 3), "403") << elsewhere;
  const std::string whole = "GET /api/runs HTTP/1.1\r\n" + host + "Connection: close\r\n\r\n";
  EXPECT_EQ(ask(port, whole).substr(9, 3), "200");
  EXPECT_EQ(ask(port, whole, INADDR_LOOPBACK + 1), "") << "it listens on 127.0.0.1 and nowhere else";
  const Result taken = run("watch 'r<b>' --serve --port " + std::to_string(port));
  EXPECT_EQ(taken.status, 2) << taken.err;
  EXPECT_NE(taken.err.find("--port 0"), std::string::npos) << taken.err;
  kill(pid, SIGINT);
  EXPECT_EQ(wait_for(pid), 0);
}

}  // namespace
}  // namespace espalier
