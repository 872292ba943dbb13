#include "espalier/report/live.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <chrono>

#include "train/temporary_directory.h"

namespace espalier::report {
namespace {

namespace fs = std::filesystem;
using espalier::testing::contains;
using espalier::testing::TemporaryDirectory;
using espalier::testing::write_bytes;

void append(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary | std::ios::app) << text;
}

std::string event(const std::string& kind, int step, const std::string& rest) {
  return fmt::format(R"({{"event":"{}","step":{}{}}})", kind, step, rest) + "\n";
}

TEST(LineReader, GivesWholeLinesOnceAndCountsDamagedOnes) {
  TemporaryDirectory folder;
  const fs::path file = folder / "m.jsonl";
  LineReader reader(file);
  EXPECT_TRUE(reader.read().events.empty()) << "no file yet";
  append(file, event("step", 1, "") + event("step", 2, "") + "{\"event\":\"st");
  EXPECT_EQ(reader.read().events.size(), 2U);
  EXPECT_EQ(reader.read().events.size(), 0U);
  append(file, "ep\",\"step\":3}\nnonsense\n[1]\n" + event("step", 4, ""));
  const auto news = reader.read();
  ASSERT_EQ(news.events.size(), 2U);
  EXPECT_EQ(news.events[0]["step"], 3);
  EXPECT_EQ(reader.damaged(), 2);
  EXPECT_FALSE(news.restarted);
}

TEST(LineReader, AFileThatWasCutIsReadAgainEvenIfItHasGrownSince) {
  TemporaryDirectory folder;
  const fs::path file = folder / "m.jsonl";
  append(file, event("step", 1, "") + event("step", 2, ""));
  LineReader reader(file);
  reader.read();
  fs::resize_file(file, event("step", 1, "").size());
  const auto cut = reader.read();
  EXPECT_TRUE(cut.restarted);
  EXPECT_EQ(cut.events.size(), 1U);
  // Cut and written on between two looks, longer than it was.
  write_bytes(file, event("step", 9, "") + event("step", 10, "") + event("step", 11, ""));
  const auto grown = reader.read();
  EXPECT_TRUE(grown.restarted);
  EXPECT_EQ(grown.events.size(), 3U);
}

class Live : public ::testing::Test {
 protected:
  Live() {
    write_bytes(folder / "config.toml",
                "[run]\nseed = 3\n[model]\nname = \"mlp\"\n[train]\nepochs = 2.0\nsteps = 0\n[reparam]\nname = "
                "\"powerprop\"\nalpha = 1.5\n");
    write_bytes(
        folder / "metrics.jsonl",
        event(
            "topology", 0,
            R"(,"nnz":1234567,"layers":[{"name":"fc1.weight","nnz":1234567,"dropped":1,"grown":2,"threshold":0.25}])") +
            event("step", 50, R"(,"loss":1.5,"lr":0.1,"sparsity":0.9)") +
            event("epoch", 100, R"(,"epoch":1.0,"train_accuracy":0.8,"train_loss":0.7)") +
            event("eval", 100, R"(,"split":"validation","accuracy":0.75)") +
            event("step", 150, R"(,"loss":0.5,"lr":0.05,"sparsity":0.9)"));
  }
  void hold(std::int64_t pid) {
    std::array<char, 256> host{};
    ::gethostname(host.data(), host.size() - 1);
    write_bytes(folder / ".espalier.lock", fmt::format("{} on {}\n", pid, host.data()));
  }
  TemporaryDirectory folder;
};

TEST_F(Live, TellsWhereARunStands) {
  hold(::getpid());
  write_bytes(folder / "timing.jsonl", event("step", 160,
                                             R"(,"total_steps":200,"steps_per_epoch":100,"loss":0.4,"accuracy":0.9,)"
                                             R"("samples_per_second":1000.0,"seconds_left":60.0)"));
  LiveRun run(folder.path());
  run.update();
  EXPECT_EQ(run.status(), "training");
  EXPECT_FALSE(run.ended());
  EXPECT_EQ(run.line(),
            "epoch 1.60/2  step 160/200  loss 0.4000  acc 0.9000  val acc 0.7500  sparsity 0.9000  1000/s  1:00 left");
  const Json s = run.state();
  EXPECT_EQ(s["process"], ::getpid());
  EXPECT_EQ(s["nnz"], 1234567);
  EXPECT_EQ(s["loss"], 0.5);
  EXPECT_EQ(s["best_step"], 100);
  const std::string text = run.text(200);
  EXPECT_TRUE(contains(text, "mlp  powerprop alpha 1.5  seed 3")) << text;
  EXPECT_TRUE(contains(text, "nnz 1,234,567")) << text;
  EXPECT_TRUE(contains(text, "0.25")) << text;
  append(folder / "metrics.jsonl", event("step", 180, R"(,"loss":0.25,"lr":0.01,"sparsity":0.9)"));
  run.update();
  EXPECT_EQ(run.state()["seconds_left"], 30.0) << "20 of the 40 steps that a minute was for";
}

TEST_F(Live, OfASequenceTheTaskIsSaidAndNoLength) {
  append(folder / "config.toml", "[continual]\ntasks = 3\n");
  write_bytes(
      folder / "metrics.jsonl",
      event("epoch", 100, R"(,"task":1,"phase":"train","epoch":1.0,"train_accuracy":0.8,"train_loss":0.7)") +
          event("task", 100, R"(,"task":2,"phase":"begin")") +
          event("epoch", 200, R"(,"task":2,"phase":"train","epoch":1.0,"train_accuracy":0.5,"train_loss":1.0)"));
  LiveRun run(folder.path());
  run.update();
  EXPECT_EQ(run.line(), "task 2/3  step 200  loss 1.0000  acc 0.5000");
  EXPECT_EQ(run.state()["total_steps"], nullptr) << "2 epochs are those of one task";
  EXPECT_EQ(run.state()["task"], 2);
  write_bytes(folder / "summary.json", R"({"status":"done","average_accuracy":0.75})");
  run.update();
  EXPECT_EQ(run.line(), "task 2/3  step 200  loss 1.0000  acc 0.5000  average acc 0.7500");
}

TEST_F(Live, WithoutTimesTheLengthComesFromTheConfiguration) {
  LiveRun run(folder.path());
  run.update();
  EXPECT_EQ(run.status(), "not running");
  EXPECT_EQ(run.state()["total_steps"], 200) << "2 epochs of 100 steps";
}

TEST_F(Live, EndsWithTheRunAndNotWithAStaleSummary) {
  const auto now = fs::file_time_type::clock::now();
  write_bytes(folder / "summary.json", R"({"status":"stopped"})");
  hold(::getpid());
  LiveRun run(folder.path());
  fs::last_write_time(folder / "summary.json", now - std::chrono::seconds(60));
  fs::last_write_time(folder / "metrics.jsonl", now);
  run.update();
  EXPECT_EQ(run.status(), "training") << "resumed after that summary";
  fs::last_write_time(folder / "summary.json", now + std::chrono::seconds(1));
  run.update();
  EXPECT_EQ(run.status(), "stopped");
  EXPECT_FALSE(run.ended());
  write_bytes(folder / "summary.json", R"({"status":"done"})");
  run.update();
  EXPECT_TRUE(run.ended());
}

TEST_F(Live, OddFilesDoNotCrashAndNothingOfThemReachesTheTerminal) {
  write_bytes(folder / "config.toml", "[run");
  write_bytes(folder / "summary.json", "{\"status\":7}");
  write_bytes(folder / ".espalier.lock", "-5 on nowhere");
  write_bytes(folder / "timing.jsonl",
              "\x80\xff\n" + event("step", 999, R"(,"seconds_left":"inf","samples_per_second":"nan")"));
  append(folder / "metrics.jsonl",
         "x\n" + event("warning", 160, R"(,"text":"\u001b[31mred")") +
             event("step", 170, R"(,"loss":"nan","lr":null)") +
             event("topology", 170, R"(,"nnz":"many","layers":[1,{"name":2},{"name":"<b>"}])"));
  LiveRun run(folder.path());
  run.update();
  EXPECT_EQ(run.text(200).find('\x1b'), std::string::npos);
  EXPECT_EQ(run.state()["damaged_lines"], 2);
  EXPECT_FALSE(run.line().empty());
  LiveRun nothing(folder / "no");
  nothing.update();
  EXPECT_EQ(nothing.status(), "not running");
  EXPECT_FALSE(nothing.text(10).empty());
}

}  // namespace
}  // namespace espalier::report
