#include "espalier/report/run.h"

#include <cmath>

#include "report/run_folder.h"

namespace espalier::report {
namespace {

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

bool any_note(const report::Run& run, const std::string& part) {
  for (const std::string& note : run.notes) {
    if (contains(note, part)) return true;
  }
  return false;
}

using ReadRun = RunFolder;

TEST_F(ReadRun, EverythingOfAFinishedRun) {
  write_run("a", 3, 0.9, "[reparam]\nalpha = 1.5\n[data]\nwidths = [300, 100]\n");
  const report::Run run = read_run(at("a"));
  EXPECT_EQ(run.name, "a");
  EXPECT_EQ(run.status, "done");
  EXPECT_TRUE(run.notes.empty()) << run.notes.front();
  EXPECT_EQ(run.config.at("reparam.alpha"), "1.5");
  EXPECT_EQ(run.config.at("data.widths"), "300, 100");
  EXPECT_EQ(run.steps_per_epoch, 2);
  EXPECT_EQ(run.last_step, 4);
  EXPECT_EQ(run.curve("step.loss")->value, (std::vector<double>{2, 1, 0.666667, 0.5}));
  EXPECT_EQ(run.curve("eval.validation.accuracy")->step, (std::vector<double>{2, 4}));
  EXPECT_EQ(run.curve("nothing"), nullptr);
  EXPECT_EQ(run.number("test_accuracy"), 0.9);
  EXPECT_TRUE(std::isnan(run.number("no such key")));
  ASSERT_EQ(run.layers.size(), 1U);
  const Layer& layer = *run.layer("fc.weight");
  EXPECT_EQ(layer.weights(), 10);
  EXPECT_EQ(layer.curves.at("topology.nnz").value, (std::vector<double>{10, 4}));
  EXPECT_EQ(layer.curves.at("topology.threshold").step, (std::vector<double>{3})) << "null is no point";
  ASSERT_EQ(layer.histograms.size(), 2U);
  EXPECT_EQ(layer.histograms[0].counts, (std::vector<double>{1, 0, 0, 3}));
}

TEST_F(ReadRun, NumbersThatAreNotFiniteStay) {
  write("a/metrics.jsonl", R"({"event":"step","step":1,"loss":"nan"})"
                           "\n"
                           R"({"event":"step","step":2,"loss":"inf"})"
                           "\n"
                           R"({"event":"step","step":3,"loss":1.0,"note":"nothing"})"
                           "\n");
  const report::Run run = read_run(at("a"));
  const auto& loss = run.curve("step.loss")->value;
  ASSERT_EQ(loss.size(), 3U);
  EXPECT_TRUE(std::isnan(loss[0]));
  EXPECT_TRUE(std::isinf(loss[1]));
  EXPECT_EQ(run.curve("step.note"), nullptr);
}

TEST_F(ReadRun, DamagedLinesAreLeftOutAndNamed) {
  write("a/metrics.jsonl", R"({"event":"step","step":1,"loss":3.0})"
                           "\n"
                           "\xff\xfe rubbish\n"
                           R"({"event":"step","step":"two","loss":3.0})"
                           "\n"
                           R"(["event","step"])"
                           "\n"
                           R"({"event":"eval","step":3,"split":7,"accuracy":0.5})"
                           "\n"
                           "\n"
                           R"({"event":"step","step":5,"loss":2.0})"
                           "\n"
                           R"({"event":"step","st)");
  const report::Run run = read_run(at("a"));
  EXPECT_EQ(run.curve("step.loss")->value, (std::vector<double>{3, 2}));
  for (const char* line : {"metrics.jsonl:2:", "metrics.jsonl:3:", "metrics.jsonl:4:", "metrics.jsonl:5:"})
    EXPECT_TRUE(any_note(run, line)) << line;
  EXPECT_FALSE(any_note(run, "metrics.jsonl:6")) << "an empty line is no damage";
  EXPECT_FALSE(any_note(run, "metrics.jsonl:8")) << "somebody is writing the last line";
}

TEST_F(ReadRun, ManyDamagedLinesAreCounted) {
  std::string text;
  for (int i = 0; i < 500; ++i) text += "{\n";
  write("a/metrics.jsonl", text);
  const report::Run run = read_run(at("a"));
  EXPECT_LT(run.notes.size(), 10U);
  EXPECT_TRUE(any_note(run, "500 damaged lines"));
}

TEST_F(ReadRun, HistogramsOutOfRangeAreLeftOut) {
  for (const char* bad : {R"("scale":0,"first":250,"counts":[1,1,1,1,1,1,1])", R"("scale":0,"first":-1,"counts":[1])",
                          R"("scale":9999,"first":0,"counts":[1])", R"("scale":0,"first":0,"counts":3)"}) {
    write("a/weights.jsonl", std::string(R"({"event":"weights","step":0,"layers":[{"name":"w",)") + bad + "}]}\n");
    write("a/summary.json", "{}");
    const report::Run run = read_run(at("a"));
    ASSERT_EQ(run.layers.size(), 1U) << bad;
    EXPECT_TRUE(run.layers[0].histograms.empty()) << bad;
  }
}

TEST_F(ReadRun, UnfinishedStoppedAndNewerRunsSaySo) {
  write("a/metrics.jsonl", R"({"event":"step","step":7,"loss":1.0})"
                           "\n");
  EXPECT_EQ(read_run(at("a")).status, "unfinished");
  EXPECT_TRUE(any_note(read_run(at("a")), "last step 7"));
  write("a/summary.json", R"({"schema":1,"status":"stopped"})");
  EXPECT_TRUE(any_note(read_run(at("a")), "--resume"));
  write("a/summary.json", R"({"schema":2,"status":"done"})");
  EXPECT_TRUE(any_note(read_run(at("a")), "schema 2"));
  write("a/summary.json", R"({"status":"diverged","error":"step 3: the loss is nan"})");
  EXPECT_TRUE(any_note(read_run(at("a")), "the loss is nan"));
  write("a/summary.json", "[1");
  EXPECT_TRUE(any_note(read_run(at("a")), "summary.json is no JSON object"));
  write("a/config.toml", "= = =");
  EXPECT_TRUE(any_note(read_run(at("a")), "config.toml can't be read"));
}

TEST_F(ReadRun, WhatIsNoRunIsOneClearError) {
  std::filesystem::create_directories(at("empty"));
  EXPECT_TRUE(contains(message_of([&] { read_run(at("empty")); }), "no run here"));
  EXPECT_TRUE(contains(message_of([&] { read_run(at("nowhere")); }), "no such directory"));
  write("x.json", "{\"a\": 1}");
  EXPECT_TRUE(contains(message_of([&] { read_run(at("x.json")); }), "espalier init --json"));
}

TEST_F(ReadRun, PrintedStructureIsARunThatWasNeverTrained) {
  write("phew.json", R"({"schema":1,"model":"mlp","method":"phew","seed":4,"nnz":4,"weights":10,"sparsity":0.6,)"
                     R"("trace":12.5,"layers":[{"name":"fc.weight","shape":[5,2],"width":3,"trace":12.5}]})");
  const report::Run run = read_run(at("phew.json"));
  EXPECT_EQ(run.name, "phew");
  EXPECT_EQ(run.config.at("method.name"), "phew");
  EXPECT_EQ(run.layer("fc.weight")->weights(), 10);
}

TEST_F(ReadRun, AFolderOfFoldersOfRunsIsNone) {
  write_run("all/deep/a", 1, 0.5);
  const std::string text = message_of([&] { read_run(find_runs(at("all")).front()); });
  EXPECT_TRUE(contains(text, "(a folder in it holds some: " + at("all/deep").string() + ")")) << text;
}

TEST_F(ReadRun, AFolderOfRunsMeansThemAll) {
  write_run("all/b", 1, 0.5);
  write_run("all/a", 2, 0.5);
  write("all/notes.txt", "");
  EXPECT_EQ(find_runs(at("all")), (std::vector<std::filesystem::path>{at("all/a"), at("all/b")}));
  EXPECT_EQ(find_runs(at("all/a")), (std::vector<std::filesystem::path>{at("all/a")}));
  EXPECT_EQ(find_runs(at("nowhere")), (std::vector<std::filesystem::path>{at("nowhere")}));
}

}  // namespace
}  // namespace espalier::report
