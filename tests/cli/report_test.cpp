#include <nlohmann/json.hpp>

#include "cli/program.h"

namespace espalier {
namespace {

const char* const kTrain =
    "train --preset glyphs-demo --quiet --threads 1 --set data.train_size=400 --set data.test_size=100 "
    "--set 'model.widths=[12]' --set train.epochs=2 --set train.batch_size=40 --set model.storage=masked --run-dir ";

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

class Report : public Program {
 protected:
  bool exists(const std::string& file) { return std::filesystem::exists(folder / file); }
};

TEST_F(Report, OfARunAndOfWhatPruningLeft) {
  ASSERT_EQ(run(std::string(kTrain) + "r").status, 0) << read("stderr.txt");
  EXPECT_TRUE(contains(read("r/weights.jsonl"), "\"event\":\"weights\",\"step\":0,"));
  const auto start = nlohmann::json::parse(read("r/init.json"));
  EXPECT_EQ(start["layers"].size(), 2U);
  EXPECT_GT(start["trace"].get<double>(), 0);
  const Result pruned = run("prune r --keep 0.2,1 --json --quiet");
  ASSERT_EQ(pruned.status, 0) << pruned.err;
  EXPECT_EQ(read("r/prune/test-uniform.json"), pruned.out);

  const Result page = run("report r");
  ASSERT_EQ(page.status, 0) << page.err;
  EXPECT_EQ(page.out, "r/report.html\n");
  for (const char* id : {"pruned", "loss", "weights", "path-kernel-layers"})
    EXPECT_TRUE(contains(read("r/report.html"), std::string("<section id=\"") + id)) << id;
  const Result list = run("report r --list");
  EXPECT_TRUE(contains(list.out, "weights-over-time"));

  const Result json = run("report r --format json --figure pruned -o p.json");
  ASSERT_EQ(json.status, 0) << json.err;
  EXPECT_EQ(nlohmann::json::parse(read("p.json"))["data"]["values"].size(), 2U);
  ASSERT_EQ(run("report r --format json --figure loss,pruned -o figures").out,
            "figures/loss.json\nfigures/pruned.json\n");

  // A run begun anew has nothing of the old one.
  ASSERT_EQ(run(std::string(kTrain) + "r --overwrite").status, 0);
  EXPECT_FALSE(exists("r/prune"));
  EXPECT_FALSE(exists("r/report.html"));
}

TEST_F(Report, MistakesAreOneClearLine) {
  std::filesystem::create_directories(folder / "empty");
  const Result empty = run("report empty");
  EXPECT_EQ(empty.status, 2);
  EXPECT_TRUE(contains(empty.err, "error: empty: no run here")) << empty.err;
  std::filesystem::create_directories(folder / "r");
  write("r/metrics.jsonl", "{\"event\":\"step\",\"step\":1,\"loss\":1.0}\nrubbish\n");
  const Result typing = run("report r --figure los");
  EXPECT_EQ(typing.status, 2);
  EXPECT_TRUE(contains(typing.err, "Did you mean \"loss\"?")) << typing.err;
  EXPECT_EQ(run("report r --x epoch").status, 2);
  EXPECT_EQ(run("report r --format gif").status, 2);
  EXPECT_EQ(run("report r --baseline r").status, 2);
  const Result no_node = run("report r --format svg", "PATH=/nowhere");
  EXPECT_EQ(no_node.status, 1);
  EXPECT_TRUE(contains(no_node.err, "nodejs") || contains(no_node.err, "without Vega")) << no_node.err;
  const Result damaged = run("report r -o page.html");
  EXPECT_EQ(damaged.status, 0) << damaged.err;
  EXPECT_TRUE(contains(read("page.html"), "metrics.jsonl:2: damaged line"));
  EXPECT_EQ(run("report r -o empty").out, "empty/report.html\n") << "a folder for the page";
  EXPECT_TRUE(exists("empty/report.html"));
}

}  // namespace
}  // namespace espalier
