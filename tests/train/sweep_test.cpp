#include "espalier/train/sweep.h"

#include <gtest/gtest.h>

#include "espalier/train/durable_file.h"
#include "train/temporary_directory.h"

namespace espalier::train {
namespace {

namespace fs = std::filesystem;
using espalier::testing::contains;
using espalier::testing::error_of;
using espalier::testing::read_bytes;
using espalier::testing::TemporaryDirectory;
using espalier::testing::write_bytes;

class Sweep : public ::testing::Test {
 protected:
  std::vector<Cell> plan(const std::string& text, std::vector<std::string> grid = {}, const std::string& seeds = "") {
    write_bytes(folder / "s.toml", text);
    SweepSources sources;
    sources.config.file = (folder / "s.toml").string();
    sources.grid = std::move(grid);
    sources.seeds = seeds;
    return plan_sweep(sources, 2);
  }
  std::string refusal(const std::string& text, std::vector<std::string> grid = {}, const std::string& seeds = "") {
    return error_of(ErrorKind::usage, [&] { plan(text, std::move(grid), seeds); });
  }
  static std::vector<std::string> names(const std::vector<Cell>& cells) {
    std::vector<std::string> out;
    for (const Cell& cell : cells) out.push_back(cell.name);
    return out;
  }
  TemporaryDirectory folder;
};
using Names = std::vector<std::string>;

const char* const kBase = "[reparam]\nname = \"powerprop\"\n[data]\nname = \"glyphs\"\n";

TEST_F(Sweep, AGridIsEveryCombinationTheLastKeyFastest) {
  const auto cells = plan(std::string(kBase) + R"(
[sweep]
seeds = 2
[sweep.grid]
reparam.alpha = [2, 1.5]
"optim.lr" = [0.1]
)");
  EXPECT_EQ(names(cells), (Names{"alpha=2.0,lr=0.1,seed=1", "alpha=2.0,lr=0.1,seed=2", "alpha=1.5,lr=0.1,seed=1",
                                 "alpha=1.5,lr=0.1,seed=2"}));
  EXPECT_EQ(cells[3].config.reparam.alpha, 1.5);
  EXPECT_EQ(cells[3].config.run.seed, 2);
  EXPECT_EQ(cells[3].config.run.threads, 2) << "0 becomes the share of the cores";
  EXPECT_EQ(cells[3].config.data.name, "glyphs");
  EXPECT_EQ(cells[3].settings[0], (std::pair<std::string, std::string>{"reparam.alpha", "1.5"}));
}

TEST_F(Sweep, AListHasEntriesOfTheirOwnKeysAndPresets) {
  const auto cells = plan(R"(
[sweep]
seeds = [7, 9]
[[sweep.list]]
label = "dense one"
preset = "mnist-ann"
[[sweep.list]]
label = "rigl"
method.name = "rigl"
sparsity.sparsity = 0.9
model = { widths = [30, 10] }
)");
  EXPECT_EQ(names(cells), (Names{"denseone,seed=7", "denseone,seed=9", "rigl,seed=7", "rigl,seed=9"}));
  EXPECT_EQ(cells[0].config.data.name, "mnist");
  EXPECT_EQ(cells[0].label, "dense one");
  EXPECT_EQ(cells[2].config.data.name, "glyphs");
  EXPECT_EQ(cells[2].config.model.widths, (std::vector<std::int64_t>{30, 10}));
  EXPECT_EQ(cells[2].config.method.name(), "rigl");
}

TEST_F(Sweep, WhatTheFileSaysOfThreadsPresetsAndCommandsHolds) {
  EXPECT_EQ(plan(std::string(kBase) + "[run]\nthreads = 3\n", {}, "1")[0].config.run.threads, 3);
  const std::string text = "[sweep]\nseeds = 1\npreset = \"mnist-ann\"\n";
  EXPECT_EQ(plan(text)[0].config.data.name, "mnist");
  EXPECT_EQ(plan(text + "[data]\nname = \"glyphs\"\n")[0].config.data.name, "glyphs") << "the preset is below the file";
  write_bytes(folder / "s.toml", text);
  SweepSources sources;
  sources.config.file = (folder / "s.toml").string();
  sources.config.preset = "glyphs-demo";
  EXPECT_EQ(plan_sweep(sources, 2)[0].config.data.name, "glyphs") << "--preset is above that of the table";
  const auto cells = plan(
      "[sweep]\ncommand = \"continual\"\n[[sweep.list]]\nlabel = \"a\"\n[[sweep.list]]\nlabel = "
      "\"b\"\ncommand = \"train\"\n");
  EXPECT_EQ(cells[0].command, "continual");
  EXPECT_EQ(cells[1].command, "train");
}

TEST_F(Sweep, TheCommandLineAddsKeysAndSeeds) {
  EXPECT_EQ(names(plan(kBase, {"reparam.alpha=1,2", "model.widths=[30],[30,10]"})),
            (Names{"alpha=1.0,widths=-30-", "alpha=1.0,widths=-30,10-", "alpha=2.0,widths=-30-",
                   "alpha=2.0,widths=-30,10-"}));
  EXPECT_EQ(names(plan(kBase, {}, "3")), (Names{"seed=1", "seed=2", "seed=3"}));
  EXPECT_EQ(names(plan(kBase, {}, "5,7")), (Names{"seed=5", "seed=7"}));
  EXPECT_EQ(names(plan(std::string(kBase) + "[sweep]\nseeds = 9\n", {}, "1")), (Names{"seed=1"}));
  EXPECT_EQ(names(plan("", {"method.name=dense,set", "sparsity.sparsity=0"})),
            (Names{"method=dense,sparsity=0.0", "method=set,sparsity=0.0"}));
  const auto quoted = plan("", {"run.structure_from=\"a,b\",c"});
  ASSERT_EQ(quoted.size(), 2U) << "a comma in quotes is part of the value";
  EXPECT_EQ(quoted[0].config.run.structure_from, "a,b");
}

TEST_F(Sweep, MistakesOfAllCellsAreSaidOnceEachWithTheirPlace) {
  const std::string text = refusal(R"([sweep]
seeds = 5
[sweep.grid]
reparam.alpa = [1, 2]
optim.lr = [0.1, -1]
)");
  EXPECT_TRUE(contains(text, "s.toml:4:16: [reparam].alpa: unknown key")) << text;
  EXPECT_TRUE(contains(text, "Did you mean \"alpha\"?")) << text;
  EXPECT_TRUE(contains(text, "s.toml:5:12: [optim].lr = -1")) << text;
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1) << text;
}

TEST_F(Sweep, TheTableItselfIsReadStrictly) {
  EXPECT_TRUE(contains(refusal("[sweep]\nsedes = 3\n"),
                       "s.toml:2:1: [sweep].sedes: unknown key. Known: command, preset, seeds"));
  EXPECT_TRUE(contains(refusal("[sweep]\nseeds = 0\n"), "expected 1 to 100000"));
  EXPECT_TRUE(
      contains(refusal("[sweep.grid]\noptim.lr = [1, 2]\n", {}, "100000"), "has 200000 cells; expected at most"));
  EXPECT_TRUE(contains(refusal("[sweep]\nseeds = []\n"), "expected how many"));
  EXPECT_TRUE(contains(refusal("[sweep]\ncommand = \"trian\"\n"), "Did you mean \"train\"?"));
  EXPECT_TRUE(contains(refusal("[[sweep.list]]\nlabel = 3\n"), "[[sweep.list]].label: expected a string"));
  EXPECT_TRUE(contains(refusal("[sweep.grid]\noptim.lr = 0.1\n"), "expected a list of at least one value"));
  EXPECT_TRUE(contains(refusal("[sweep]\nlist = 3\n"), "[[sweep.list]]"));
  EXPECT_TRUE(contains(refusal("sweep = 3\n"), "expected a table [sweep]"));
  EXPECT_TRUE(contains(refusal("[sweep]\nseeds = = 3\n"), "s.toml:2:"));
  EXPECT_TRUE(contains(refusal("[swep]\nseeds = 3\n[sweep]\nseeds = 2\n"), "[swep]: unknown table"));
  EXPECT_TRUE(contains(refusal(kBase), "nothing to vary"));
  EXPECT_TRUE(contains(refusal(kBase, {"alpha=1,2"}), "expected table.key=value"));
  EXPECT_TRUE(contains(refusal(kBase, {"optim.lr=1,,2"}), "an empty value"));
  EXPECT_TRUE(contains(refusal(kBase, {}, "x"), "--seeds x"));
  EXPECT_TRUE(contains(refusal(kBase, {}, "0"), "--seeds 0: expected 1 to 100000"));
  EXPECT_TRUE(contains(refusal(kBase, {}, "100001"), "--seeds 100001: expected 1 to 100000"));
  SweepSources sources;
  sources.config.file = (folder / "no.toml").string();
  sources.seeds = "2";
  EXPECT_TRUE(contains(error_of(ErrorKind::usage, [&] { plan_sweep(sources, 1); }), "no.toml: there is no such file"));
  sources.config.file = folder.path().string();
  EXPECT_TRUE(contains(error_of(ErrorKind::usage, [&] { plan_sweep(sources, 1); }), "is not a file"));
  sources.config.file.reset();
  sources.only = {"x"};
  EXPECT_TRUE(contains(error_of(ErrorKind::usage, [&] { plan_sweep(sources, 1); }), "has no [[sweep.list]]"));
}

TEST_F(Sweep, AKeyIsVariedInOnePlace) {
  EXPECT_TRUE(contains(refusal("[sweep]\nseeds = 2\n[sweep.grid]\nrun.seed = [1]\n"), "run.seed is varied twice"));
  EXPECT_TRUE(contains(refusal("[sweep.grid]\noptim.lr = [1, 2]\n", {"optim.lr=3"}), "optim.lr is varied twice"));
  EXPECT_TRUE(contains(refusal("[sweep.grid]\noptim.lr = [1]\n[[sweep.list]]\noptim.lr = 2\n"), "varied twice"));
  EXPECT_TRUE(contains(refusal("[sweep.grid]\noptim.lr = [1, 1.0]\n"), "two cells of the sweep are the same: lr=1.0"));
  write_bytes(folder / "s.toml", "[sweep.grid]\noptim.lr = [1, 2]\n");
  SweepSources sources;
  sources.config.file = (folder / "s.toml").string();
  sources.config.set = {"optim.lr=3"};
  EXPECT_TRUE(contains(error_of(ErrorKind::usage, [&] { plan_sweep(sources, 1); }), "is what the sweep varies"));
}

TEST_F(Sweep, NamesAreFoldersWhateverTheValues) {
  const auto cells = plan("", {"run.structure_from=a b,../../etc,x/y,x-y," + std::string(300, 'q')});
  for (const Cell& cell : cells) {
    EXPECT_EQ(cell.name.find('/'), std::string::npos) << cell.name;
    EXPECT_LE(cell.name.size(), 140U) << cell.name;
    EXPECT_NE(cell.name[0], '.');
  }
  EXPECT_EQ(names(plan("[[sweep.list]]\nlabel = \"..\"\n[[sweep.list]]\nlabel = \".lock\"\n")), (Names{"-.", "-lock"}))
      << "no cell is the folder above, or hidden";
}

TEST_F(Sweep, AChangedPlanIsToldFromTheOneBefore) {
  const std::string text = std::string(kBase) + "[sweep.grid]\nreparam.alpha = [1, 2]\n";
  const auto save = [&](const std::vector<Cell>& cells) {
    fs::create_directories(folder / "sweep" / fs::path("cells"));
    for (const Cell& cell : cells) write_bytes(cell_config(folder / "sweep", cell.name), to_toml(cell.config));
    write_bytes(folder / "sweep" / fs::path("sweep.json"), to_json_text(to_json(cells, 2)));
  };
  const auto before = plan(text);
  save(before);
  const fs::path dir = folder / "sweep";
  EXPECT_NO_THROW(check_same_sweep(dir, before, false));
  EXPECT_NO_THROW(check_same_sweep(dir, plan(text + "[checkpoint]\nkeep = 7\n"), false)) << "changes no result";

  const auto other = plan(text + "[optim]\nlr = 0.5\n");
  const auto message = error_of(ErrorKind::usage, [&] { check_same_sweep(dir, other, false); });
  EXPECT_TRUE(contains(message, "alpha=1.0: optim.lr: 0.1 -> 0.5")) << message;
  EXPECT_TRUE(contains(message, "alpha=2.0: optim.lr")) << message;

  const auto more = plan(std::string(kBase) + "[sweep.grid]\nreparam.alpha = [1, 2, 3]\n");
  EXPECT_TRUE(
      contains(error_of(ErrorKind::usage, [&] { check_same_sweep(dir, more, false); }), "alpha=3.0: a new cell"));
  EXPECT_NO_THROW(check_same_sweep(dir, more, true));
  const auto fewer = plan(std::string(kBase) + "[sweep.grid]\nreparam.alpha = [1]\n");
  EXPECT_TRUE(
      contains(error_of(ErrorKind::usage, [&] { check_same_sweep(dir, fewer, true); }), "alpha=2.0: was a cell"));
  write_bytes(dir / "sweep.json", "{}");
  EXPECT_TRUE(contains(error_of(ErrorKind::data, [&] { check_same_sweep(dir, before, false); }), "not the plan"));
}

TEST_F(Sweep, TablesHoldResultsWithoutTimesAndSayWhatFailed) {
  const auto cells = plan(kBase, {"reparam.alpha=1,2,3,4"});
  const auto finish = [&](std::size_t i, const std::string& summary) {
    fs::create_directories(cell_run(folder.path(), cells[i].name));
    write_bytes(cell_run(folder.path(), cells[i].name) / "config.toml", "");
    if (!summary.empty()) write_bytes(cell_run(folder.path(), cells[i].name) / "summary.json", summary);
  };
  finish(
      0,
      R"({"schema":1,"status":"done","test_accuracy":0.5,"train_seconds":3.0,"isa":"avx2","storage":[{"dense_us":1}]})");
  finish(1, R"({"schema":1,"status":"stopped","test_accuracy":0.1,"train_seconds":4.0})");
  finish(2, R"({"status":"diverged","error":"the loss, \"nan\""})");
  write_bytes(cell_failure(folder.path(), cells[3].name), "exit status 3: no data\n");
  const SweepTables tables = tabulate(folder.path(), cells);
  EXPECT_EQ(tables.results,
            "cell,reparam.alpha,status,schema,test_accuracy,error\n"
            "alpha=1.0,1.0,done,1,0.5,\n"
            "alpha=2.0,2.0,unfinished,,,\n"
            "alpha=3.0,3.0,diverged,,,\"the loss, \"\"nan\"\"\"\n"
            "alpha=4.0,4.0,failed,,,\n");
  EXPECT_EQ(tables.times.substr(0, tables.times.find("\nalpha=2")),
            "cell,train_seconds,samples_per_second,peak_rss_bytes,threads,isa\nalpha=1.0,3.0,,,,avx2");
  EXPECT_EQ(tables.json["cells"][0]["summary"].dump(),
            R"({"schema":1,"status":"done","test_accuracy":0.5,"storage":[{}]})");
  EXPECT_EQ(tables.json["cells"][3]["error"], "exit status 3: no data\n");
  EXPECT_EQ(tables.json["cells"][1]["summary"], nullptr);
}

TEST_F(Sweep, ThoseOfTheProgramArePlannable) {
  ASSERT_EQ(known_sweeps().size(), 2U);
  for (const auto& info : known_sweeps()) {
    SweepSources sources;
    sources.name = info.name;
    sources.text = sweep_text(info.name);
    const auto cells = plan_sweep(sources, 1);
    EXPECT_GE(cells.size(), 18U) << info.name;
    EXPECT_FALSE(info.description.empty());
    sources.only = {cells[0].label};
    EXPECT_EQ(plan_sweep(sources, 1).size(), 3U) << info.name;
    sources.only = {"alhpa1"};
    EXPECT_TRUE(contains(error_of(ErrorKind::usage, [&] { plan_sweep(sources, 1); }), "--only alhpa1: unknown"));
  }
}

}  // namespace
}  // namespace espalier::train
