#include "espalier/report/compare.h"

#include <gtest/gtest.h>

#include <cmath>

#include "train/temporary_directory.h"

namespace espalier::report {
namespace {

namespace fs = std::filesystem;
using espalier::testing::contains;
using espalier::testing::error_of;
using espalier::testing::TemporaryDirectory;
using espalier::testing::write_bytes;

class Compare : public ::testing::Test {
 protected:
  fs::path run(const std::string& name, const std::string& config, const std::string& summary) {
    const fs::path path = folder / name;
    fs::create_directories(path);
    write_bytes(path / "config.toml", config);
    if (!summary.empty()) write_bytes(path / "summary.json", summary);
    return path;
  }
  static std::string config(double alpha, int seed, const std::string& method = "rigl") {
    return fmt::format(
        "schema_version = 1\n[run]\nseed = {}\nthreads = {}\n[reparam]\nalpha = {:.2f}\n[method]\nname = \"{}\"\n",
        seed, seed, alpha, method);
  }
  static std::string done(const std::string& accuracy, int nnz = 100) {
    return fmt::format(R"({{"schema":1,"status":"done","test_accuracy":{},"nnz":{},"storage":[]}})", accuracy, nnz);
  }
  std::vector<RunResult> all() { return read_runs({folder.path()}); }

  TemporaryDirectory folder;
};

TEST(CompareStatistics, OfThreeValues) {
  const Statistics s = statistics({1, 2, 6});
  EXPECT_EQ(s.n, 3U);
  EXPECT_DOUBLE_EQ(s.mean, 3);
  EXPECT_DOUBLE_EQ(s.deviation, std::sqrt(7));  // (4 + 1 + 9) / 2
  EXPECT_NEAR(s.ci95, 4.302653 * std::sqrt(7) / std::sqrt(3), 1e-5);
  EXPECT_EQ(s.min, 1);
  EXPECT_EQ(s.max, 6);
  EXPECT_TRUE(s.integers);
}

TEST(CompareStatistics, OfOneValueThereIsNoSpreadAndNonFiniteOnesDoNotCount) {
  const Statistics s = statistics({std::nan(""), 0.5, INFINITY});
  EXPECT_EQ(s.n, 1U);
  EXPECT_EQ(s.mean, 0.5);
  EXPECT_EQ(s.deviation, 0);
  EXPECT_EQ(s.ci95, 0);
  EXPECT_EQ(statistics({}).n, 0U);
}

TEST_F(Compare, RunsThatDifferOnlyByTheirSeedAreOneRow) {
  run("a", config(1, 1), done("0.50"));
  run("b", config(1, 2), done("0.70"));
  run("c", config(2, 1), done("0.90"));
  const Comparison c = compare(all(), {});
  EXPECT_EQ(c.keys, std::vector<std::string>{"reparam.alpha"}) << "threads and seeds set no runs apart";
  EXPECT_EQ(c.fields, (std::vector<std::string>{"test_accuracy", "nnz"}));
  ASSERT_EQ(c.groups.size(), 2U);
  EXPECT_EQ(c.groups[0].keys[0], 1.0);
  EXPECT_EQ(c.groups[0].seeds, (std::vector<std::int64_t>{1, 2}));
  EXPECT_DOUBLE_EQ(c.groups[0].values[0].mean, 0.6);
  EXPECT_NEAR(c.groups[0].values[0].deviation, 0.1 * std::sqrt(2), 1e-12);
  EXPECT_EQ(c.groups[1].values[0].n, 1U);
  EXPECT_EQ(to_text(c, Spread::deviation),
            "reparam.alpha  seeds  test_accuracy    nnz\n"
            "1              2      0.6000 ± 0.1414  100\n"
            "2              1      0.9000           100\n");
  EXPECT_EQ(to_markdown(c, Spread::range),
            "| reparam.alpha | seeds | test_accuracy | nnz |\n"
            "|---|---|---|---|\n"
            "| 1 | 2 | 0.6000 [0.5000, 0.7000] | 100 |\n"
            "| 2 | 1 | 0.9000 | 100 |\n");
}

TEST_F(Compare, CountsOfSeveralRunsAreNotRounded) {
  run("a", config(1, 1), done("0.5", 100));
  run("b", config(1, 2), done("0.5", 103));
  run("c", config(2, 1), done("0.5", 100));
  run("d", config(2, 2), done("0.5", 100));
  EXPECT_EQ(to_text(compare(all(), {}), Spread::deviation),
            "reparam.alpha  seeds  test_accuracy  nnz\n"
            "1              2      0.5000         101.50 ± 2.12\n"
            "2              2      0.5000         100\n");
  EXPECT_TRUE(contains(to_text(compare(all(), {}), Spread::ci95), "101.50 ± 19.06")) << "12.706 * 2.121 / sqrt(2)";
  run("e", "[reparam]\nalpha = 1.2999999999999998\n", done("0.5"));
  CompareOptions by_alpha;
  by_alpha.by = {"alpha"};
  EXPECT_TRUE(contains(to_text(compare(all(), by_alpha), Spread::deviation), "\n1.3            1      0.5000"));
  EXPECT_TRUE(contains(to_csv(compare(all(), by_alpha)), "\n1.2999999999999998,"));
}

TEST_F(Compare, WhatHasNoInfluenceSetsNoRunsApart) {
  const auto with = [](int seed, const std::string& run, const std::string& more) {
    return fmt::format("[run]\nseed = {}\n{}\n{}", seed, run, more);
  };
  run("a", with(1, "name = \"x\"", "[data]\nroot = \"/a\"\n"), done("0.5"));
  run("b", with(2, "name = \"y\"", "[data]\nroot = \"/b\"\n[checkpoint]\nevery = \"1ep\"\n"), done("0.6"));
  run("c", with(3, "name = \"z\"", "[log]\nevery = \"1it\"\n[checkpoint]\nevery = \"2ep\"\n"), done("0.7"));
  const Comparison c = compare(all(), {});
  ASSERT_EQ(c.groups.size(), 1U);
  EXPECT_EQ(c.groups[0].seeds, (std::vector<std::int64_t>{1, 2, 3}));
  CompareOptions each;
  each.each = true;
  EXPECT_EQ(compare(all(), each).keys, (std::vector<std::string>{"run", "run.seed"}));
}

TEST_F(Compare, ManyKeysAreCountedInTextAndShownElsewhere) {
  const auto many = [](int value) {
    std::string text = "[optim]\n";
    for (char key = 'a'; key < 'a' + 10; ++key) text += fmt::format("{} = {}\n", key, value);
    return text;
  };
  run("a", many(1), done("0.5"));
  run("b", many(2), done("0.6"));
  const Comparison c = compare(all(), {});
  const std::string text = to_text(c, Spread::deviation);
  EXPECT_TRUE(contains(text, "optim.h  seeds")) << text;
  EXPECT_TRUE(contains(text, "(keys that differ and are not shown: 2;")) << text;
  EXPECT_TRUE(contains(to_markdown(c, Spread::deviation), "| optim.j | seeds |"));
}

TEST_F(Compare, CsvAndJsonHaveEveryStatistic) {
  run("a", config(1, 1), done("0.5"));
  run("b", config(1, 2), done("0.75"));
  CompareOptions options;
  options.by = {"method"};
  options.fields = {"test_accuracy"};
  const Comparison c = compare(all(), options);
  EXPECT_EQ(to_csv(c).substr(0, to_csv(c).find('\n')),
            "method.name,runs,diverged,test_accuracy_n,test_accuracy_mean,test_accuracy_deviation,test_accuracy_ci95,"
            "test_accuracy_min,test_accuracy_max");
  EXPECT_TRUE(contains(to_csv(c), "\nrigl,2,0,2,0.625,0.17677669529663")) << to_csv(c);
  const Json json = to_json(c);
  EXPECT_EQ(json["groups"][0]["values"]["test_accuracy"]["mean"], 0.625);
  EXPECT_EQ(json["groups"][0]["seeds"], (Json{1, 2}));
  EXPECT_EQ(json["groups"][0]["keys"]["method.name"], "rigl");
}

TEST_F(Compare, FiltersBySizeAndByWord) {
  run("a", config(1, 1, "set"), done("0.5"));
  run("b", config(2, 1, "rigl"), done("0.6"));
  run("c", config(3, 1, "rigl"), done("0.7"));
  const auto left = [&](std::vector<std::string> filters) {
    CompareOptions options;
    options.filters = std::move(filters);
    options.each = true;
    std::string names;
    for (const Group& g : compare(all(), options).groups) names += g.runs[0].filename().string();
    return names;
  };
  EXPECT_EQ(left({"method=rigl"}), "bc");
  EXPECT_EQ(left({"method.name!=rigl"}), "a");
  EXPECT_EQ(left({"alpha>=2", "test_accuracy<0.7"}), "b");
  EXPECT_EQ(left({"alpha=2"}), "b");
  EXPECT_EQ(left({"alpha==2.0"}), "b");
  EXPECT_EQ(left({"alpha>3"}), "");
  EXPECT_EQ(left({"alpha<=2"}), "ab");
  EXPECT_EQ(left({"alpha<2"}), "a");
  EXPECT_EQ(left({"alpha!=2"}), "ac");
  write_bytes(folder / "a/config.toml", config(1, 1, "set") + "[log]\nevery = 1\n[checkpoint]\nevery = 1\n");
  EXPECT_TRUE(contains(error_of(ErrorKind::usage, [&] { left({"every=1"}); }),
                       "every may be any of checkpoint.every, log.every; write it in full"));
  EXPECT_TRUE(contains(error_of(ErrorKind::usage, [&] { left({"accuracy=1"}); }), "Known: nnz, schema, status, test_"));
  EXPECT_TRUE(contains(error_of(ErrorKind::usage, [&] { left({"alpa=2"}); }), "Did you mean"));
  EXPECT_TRUE(contains(error_of(ErrorKind::usage, [&] { left({"alpha>x"}); }), "needs a number"));
  EXPECT_TRUE(contains(error_of(ErrorKind::usage, [&] { left({"alpha"}); }), "expected FIELD=VALUE"));
}

TEST_F(Compare, SortsByResultsAndByKeys) {
  run("a", config(3, 1), done("0.5"));
  run("b", config(2, 1), done("0.9"));
  run("c", config(10, 1), done("0.7"));
  run("d", config(1, 1), R"({"status":"diverged"})");
  const auto order = [&](const std::string& field, bool descending) {
    CompareOptions options;
    options.sort = field;
    options.descending = descending;
    std::string names;
    for (const Group& g : compare(all(), options).groups) names += g.runs[0].filename().string();
    return names;
  };
  EXPECT_EQ(order("alpha", false), "dbac");
  EXPECT_EQ(order("alpha", true), "cabd");
  EXPECT_EQ(order("test_accuracy", true), "bcad") << "what has no result comes last";
  EXPECT_EQ(order("test_accuracy", false), "acbd");
}

TEST_F(Compare, UnfinishedAndDamagedRunsAreSaidAndLeftOut) {
  run("a", config(1, 1), done("0.5"));
  run("b", config(1, 2), "");
  run("c", config(1, 3), R"({"status":"stopped"})");
  run("d", config(1, 4), "{\"status\":\"do");
  run("e", "no [toml", done("0.5"));
  run("f", config(1, 6), R"({"status":"diverged","test_accuracy":0.1})");
  run("g", config(1, 7), done("\"nan\""));
  const Comparison c = compare(all(), {});
  ASSERT_EQ(c.groups.size(), 1U);
  EXPECT_EQ(c.groups[0].done, 2U);
  EXPECT_EQ(c.groups[0].diverged, 1U);
  EXPECT_EQ(c.groups[0].values[0].n, 1U) << "not a number is no accuracy, and a diverged run has none";
  std::string left_out;
  for (const auto& item : c.left_out) left_out += item.run.filename().string() + ": " + item.reason + "\n";
  EXPECT_TRUE(contains(left_out, "b: not finished\n")) << left_out;
  EXPECT_TRUE(contains(left_out, "c: stopped\n")) << left_out;
  EXPECT_TRUE(contains(left_out, "summary.json: is not the summary of a run")) << left_out;
  EXPECT_TRUE(contains(left_out, "config.toml: is not TOML (line 1)")) << left_out;
  EXPECT_TRUE(contains(to_text(c, Spread::deviation), "3 (1 diverged)")) << to_text(c, Spread::deviation);
  CompareOptions others;
  others.filters = {"method=set"};
  for (const auto& item : compare(all(), others).left_out)
    EXPECT_TRUE(contains("de", item.run.filename().string())) << "unfinished, but of another method: " << item.run;
}

TEST_F(Compare, ASweepIsReadInItsOrderWithItsLabels) {
  fs::create_directories(folder / "s" / fs::path("cells"));
  run("s/cells/two", config(2, 1), done("0.6"));
  run("s/cells/one", config(1, 1), done("0.5"));
  write_bytes(folder / "s" / fs::path("sweep.json"),
              R"({"cells":[{"cell":"two","label":"b"},{"cell":"one","label":"a"},{"cell":"not-begun","label":"c"}]})");
  const Comparison c = compare(read_runs({folder / "s/"}), {});
  EXPECT_EQ(c.keys, std::vector<std::string>{"label"}) << "the label says what the entries differ in";
  ASSERT_EQ(c.groups.size(), 2U);
  EXPECT_EQ(c.groups[0].keys[0], "b");
  ASSERT_EQ(c.left_out.size(), 1U);
  EXPECT_EQ(c.left_out[0].run.filename(), "not-begun");
}

TEST_F(Compare, PathsThatAreNoRunsAreNamed) {
  EXPECT_TRUE(contains(error_of(ErrorKind::usage, [&] { read_runs({folder / "no"}); }), "there is no such directory"));
  EXPECT_TRUE(contains(error_of(ErrorKind::usage, [&] { read_runs({folder.path()}); }), "holds no run"));
  run("deep/er", config(1, 1), done("0.5"));
  EXPECT_TRUE(
      contains(error_of(ErrorKind::usage, [&] { read_runs({folder.path()}); }), "(a folder in it holds some: "));
  const fs::path a = run("a", config(1, 1), done("0.5"));
  EXPECT_EQ(read_runs({a, folder.path(), a}).size(), 1U) << "a run given twice counts once";
}

TEST_F(Compare, NamesOfManyKeysAndOddTextsAreSafe) {
  run("a|b", config(1, 1, "x,\\\"|"), done("0.5"));
  run("c", config(1, 1, "y"), done("0.5"));
  const Comparison c = compare(all(), {});
  EXPECT_TRUE(contains(to_csv(c), "\"x,\"\"|\",1,0")) << to_csv(c);
  EXPECT_TRUE(contains(to_markdown(c, Spread::deviation), "| x,\"\\| |")) << to_markdown(c, Spread::deviation);
  run("d", config(1, 1, "z\\n\\u001b[2J\\\\|"), done("0.5"));
  const Comparison lines = compare(all(), {});
  EXPECT_TRUE(contains(to_csv(lines), "\n\"z\n\x1b[2J\\|\",1,0")) << to_csv(lines);
  EXPECT_TRUE(contains(to_text(lines, Spread::deviation), "\nz?\?[2J\\|  ")) << "nothing of it reaches the terminal";
  EXPECT_TRUE(contains(to_markdown(lines, Spread::deviation), "\n| z?\?[2J\\\\\\| |"));
}

}  // namespace
}  // namespace espalier::report
