#include <algorithm>
#include <cmath>

#include "espalier/report/figure.h"
#include "report/drawing.h"
#include "report/run_folder.h"

namespace espalier::report {
namespace {

class Figures : public RunFolder {
 protected:
  std::vector<Figure> figures_of(const std::vector<std::string>& names, const FigureOptions& options = {}) {
    runs.clear();
    for (const std::string& name : names) runs.push_back(read_run(at(name)));
    groups = group_runs(runs, false);
    return make_figures(runs, groups, options);
  }
  static const Figure* find(const std::vector<Figure>& figures, const std::string& id) {
    const auto it = std::find_if(figures.begin(), figures.end(), [&](const Figure& f) { return f.id == id; });
    return it == figures.end() ? nullptr : &*it;
  }
  /// The rows of a panel in which a field has a value.
  static std::vector<Json> rows_with(const Panel& panel, const std::string& field, const Json& value) {
    const auto f = std::find(panel.fields.begin(), panel.fields.end(), field) - panel.fields.begin();
    std::vector<Json> out;
    for (const Json& row : panel.rows) {
      if (row[static_cast<std::size_t>(f)] == value) out.push_back(row);
    }
    return out;
  }

  std::vector<report::Run> runs;
  std::vector<RunGroup> groups;
};

TEST_F(Figures, AppearWhereThereIsData) {
  write_run("a", 1, 0.9);
  const auto figures = figures_of({"a"});
  for (const char* id : {"loss", "accuracy", "learning-rate", "kept", "density", "nnz", "threshold", "dead-units",
                         "width", "weights", "weights-over-time", "mean-weight", "mean-size", "near-zero"}) {
    const Figure* f = find(figures, id);
    ASSERT_NE(f, nullptr) << id;
    EXPECT_FALSE(f->table.rows.empty()) << id;
    for (const Panel& panel : f->panels) {
      EXPECT_FALSE(panel.rows.empty()) << id;
      for (const Json& row : panel.rows) EXPECT_EQ(row.size(), panel.fields.size()) << id;
    }
    for (const auto& row : f->table.rows) EXPECT_EQ(row.size(), f->table.columns.size()) << id;
  }
  for (const char* id : {"alpha", "pruned", "results", "task-accuracy", "path-kernel-trace", "grown", "speed"})
    EXPECT_EQ(find(figures, id), nullptr) << id;
}

TEST_F(Figures, TrainingIsSolidAndValidationDashedWhereverBothAre) {
  write_run("a", 1, 0.9);
  const auto figures = figures_of({"a"});
  for (const char* id : {"loss", "accuracy"}) {
    const auto& strokes = find(figures, id)->strokes;
    ASSERT_GE(strokes.size(), 2u) << id;
    EXPECT_EQ(strokes[0], std::make_pair(std::string("training"), std::string("solid"))) << id;
    EXPECT_EQ(strokes[1], std::make_pair(std::string("validation"), std::string("dashed"))) << id;
  }
}

TEST_F(Figures, TimeIsInEpochsIfAllRunsTellThem) {
  write_run("a", 1, 0.9);
  const Json row = find(figures_of({"a"}), "learning-rate")->panels[0].rows[3];
  EXPECT_EQ(row, Json({0, 2, 0.1, nullptr, nullptr})) << "step 4 of 2 an epoch";
  FigureOptions options;
  options.axis = FigureOptions::Axis::step;
  EXPECT_EQ(find(figures_of({"a"}, options), "learning-rate")->panels[0].rows[3][1], 4);
  write("b/metrics.jsonl", R"({"event":"step","step":3,"lr":0.2})"
                           "\n");
  EXPECT_EQ(find(figures_of({"a", "b"}), "learning-rate")->panels[0].rows[3][1], 4);
}

TEST_F(Figures, SeedsBecomeAMeanWithItsInterval) {
  write_run("a", 1, 0.9);
  write_run("b", 2, 0.89);
  const auto figures = figures_of({"a", "b"});
  const Figure& accuracy = *find(figures, "accuracy");
  EXPECT_EQ(accuracy.series.size(), 1U);
  const auto rows = rows_with(accuracy.panels[0], "kind", "validation");
  ASSERT_EQ(rows.size(), 2U);
  EXPECT_NEAR(rows[0][3].get<double>(), 0.885, 1e-6);
  // Two values 0.01 apart: t = 12.7062, deviation 0.01 / sqrt 2, half = t 0.005.
  EXPECT_NEAR(rows[0][5].get<double>() - rows[0][3].get<double>(), 12.7062 * 0.005, 1e-4);
  const Figure& results = *find(figures, "results");
  EXPECT_EQ(results.table.rows.size(), 1U);
  EXPECT_EQ(results.table.rows[0][1], "2");
  EXPECT_EQ(rows_with(results.panels[0], "kind", "seed").size(), 2U);
}

TEST_F(Figures, WhatWasVariedBecomesAnAxis) {
  write_run("a", 1, 0.9, "[sparsity]\nsparsity = 0.5\n[method]\nname = \"rigl\"\n");
  write_run("b", 1, 0.8, "[sparsity]\nsparsity = 0.9\n[method]\nname = \"rigl\"\n");
  write_run("c", 1, 0.7, "[sparsity]\nsparsity = 0.5\n[method]\nname = \"set\"\n");
  write_run("d", 1, 0.6, "[sparsity]\nsparsity = 0.9\n[method]\nname = \"set\"\n");
  const auto figures = figures_of({"a", "b", "c", "d"});
  const Figure* f = find(figures, "accuracy-against-density");
  ASSERT_NE(f, nullptr);
  EXPECT_EQ(f->series, (std::vector<std::string>{"rigl", "set"}));
  ASSERT_EQ(f->panels[0].rows.size(), 4U);
  EXPECT_EQ(f->panels[0].rows[0], Json({0, 0.1, 0.8, nullptr, nullptr}));
  EXPECT_EQ(f->panels[0].rows[3], Json({1, 0.5, 0.7, nullptr, nullptr}));
}

// Curves that differ in more than a legend can say are called as their runs are.
TEST_F(Figures, CurvesWithTooMuchToSayAreCalledAsTheirRuns) {
  for (const std::string kind : {"thin", "wide"}) {
    const std::string model =
        "[model]\nlayers = [\"" + std::string(kLongestLabel, 'x') + " " + kind + "\"]\n[sparsity]\nsparsity = ";
    write_run(kind + "-a", 1, 0.9, model + "0.5\n");
    write_run(kind + "-b", 1, 0.8, model + "0.9\n");
  }
  const auto figures = figures_of({"thin-a", "thin-b", "wide-a", "wide-b"});
  const Figure* f = find(figures, "accuracy-against-density");
  ASSERT_NE(f, nullptr);
  EXPECT_EQ(f->series, (std::vector<std::string>{"thin", "wide"}));
}

TEST_F(Figures, PrunedCurvesOfSeedsAreJoinedByTheShareAskedFor) {
  for (const char* name : {"a", "b"}) {
    write_run(name, name[0], 0.9);
    const std::string accuracy = name[0] == 'a' ? "0.6" : "0.8";
    write(
        std::string(name) + "/prune/test-global.json",
        R"({"split":"test","distribution":"global","retrain":"0it","points":[{"keep":0.1,"sparsity":0.9,"accuracy":)" +
            accuracy + R"(},{"keep":1.0,"sparsity":0.0,"accuracy":0.9}]})");
  }
  const auto figures = figures_of({"a", "b"});
  const Figure* f = find(figures, "pruned");
  ASSERT_NE(f, nullptr);
  ASSERT_EQ(f->panels[0].rows.size(), 2U);
  EXPECT_NEAR(f->panels[0].rows[0][2].get<double>(), 0.1, 1e-9);
  EXPECT_NEAR(f->panels[0].rows[0][3].get<double>(), 0.7, 1e-9);
}

TEST_F(Figures, HistogramsKeepTheirMass) {
  write_run("a", 1, 0.9);
  const auto figures = figures_of({"a"});
  const Figure* f = find(figures, "weights");
  ASSERT_NE(f, nullptr);
  double sum = 0;
  double left = 0;
  for (std::size_t i = 0; i + 1 < f->panels[0].rows.size(); ++i) {  // the last one closes the area
    sum += f->panels[0].rows[i][2].get<double>();
    if (f->panels[0].rows[i][1].get<double>() < -0.235) left += f->panels[0].rows[i][2].get<double>();
  }
  EXPECT_NEAR(sum, 1, 1e-4) << "all of the weights are inside";
  // Bin 64 is the roots [-1/2, -1/2 + 1/128): weights from -0.25 to -0.2422. A quarter of the weights is there.
  EXPECT_NEAR(left, 0.25, 0.03);
  EXPECT_EQ(f->table.rows[0][2], "4");
}

TEST_F(Figures, DensityHoldsToTheEndOfTheRun) {
  write_run("a", 1, 0.9);
  const auto figures = figures_of({"a"});
  const Panel& panel = find(figures, "density")->panels[0];
  ASSERT_EQ(panel.rows.size(), 3U);
  EXPECT_EQ(panel.rows[0], Json({0, 0, 1, nullptr, nullptr}));
  EXPECT_EQ(panel.rows[1], Json({0, 1.5, 0.4, nullptr, nullptr}));
  EXPECT_EQ(panel.rows[2], Json({0, 2, 0.4, nullptr, nullptr}));
}

TEST_F(Figures, TheFirstMasksAreNoChange) {
  write_run("a", 1, 0.9);
  std::string metrics;
  for (const auto& [step, dropped] : {std::pair{0, 1000}, {1, 3}, {2, 5}})
    metrics += fmt::format(R"({{"event":"topology","step":{0},"nnz":4,"dropped":{1},"grown":2,"layers":[{{"name":)"
                           R"("fc.weight","nnz":4,"dropped":{1},"grown":2,"dead_outputs":0}}]}})"
                           "\n",
                           step, dropped);
  write("a/metrics.jsonl", metrics);
  const auto figures = figures_of({"a"});
  for (const char* id : {"changes", "dropped"}) {
    const Panel& panel = find(figures, id)->panels[0];
    ASSERT_EQ(panel.rows.size(), 2U) << id;
    EXPECT_EQ(panel.rows[0][2], 3) << id;
    EXPECT_EQ(panel.rows[1][2], 5) << id;
  }
}

TEST_F(Figures, TasksHaveAMatrixAndACapacity) {
  write_run("a", 1, 0.9);
  write("a/summary.json",
        R"({"status":"done","accuracy_matrix":[[0.1,0.1],[0.9,null],[0.8,0.95]],)"
        R"("capacity":{"weights":10,"tasks":[{"kept":4,"new":4,"reused":0},{"kept":5,"new":2,"reused":3}]}})");
  const auto figures = figures_of({"a"});
  const Panel& matrix = find(figures, "task-accuracy")->panels[0];
  ASSERT_EQ(matrix.rows.size(), 5U) << "what was not measured has no cell";
  EXPECT_EQ(matrix.rows[0], Json({"before", "1", 0.1}));
  EXPECT_EQ(matrix.rows[4], Json({"2", "2", 0.95}));
  const Panel& capacity = find(figures, "task-capacity")->panels[0];
  EXPECT_EQ(capacity.rows[3], Json({1, "2", 0.3}));
}

TEST_F(Figures, TasksOfASequenceThatWasStoppedOrIsGoingOn) {
  write("stopped/summary.json", R"({"status":"stopped","accuracy_matrix":[[0.1],[0.9,0.2]]})");
  const auto stopped = figures_of({"stopped"});
  EXPECT_EQ(find(stopped, "task-accuracy")->panels[0].rows[2], Json({"1", "2", 0.2}));
  write("going/metrics.jsonl", R"({"event":"task","step":5,"task":1,"phase":"learnt","accuracies":[0.9,0.2]})"
                               "\n");
  const auto going = figures_of({"going"});
  const auto& rows = find(going, "task-accuracy")->panels[0].rows;
  ASSERT_EQ(rows.size(), 2U);
  EXPECT_EQ(rows[1], Json({"1", "2", 0.2}));
}

TEST_F(Figures, AlphaOfTheNetworkOrOfEachLayer) {
  write("a/metrics.jsonl", R"({"event":"alpha","step":0,"alpha":1.2,"near_zero":0.3,"signal":0.3})"
                           "\n"
                           R"({"event":"alpha","step":9,"alpha":1.3,"near_zero":0.4,"signal":0.4})"
                           "\n");
  const auto network = figures_of({"a"});
  ASSERT_NE(find(network, "alpha"), nullptr);
  EXPECT_EQ(find(network, "alpha")->panels.size(), 1U);
  write(
      "b/metrics.jsonl",
      R"({"event":"alpha","step":0,"layers":[{"name":"x","alpha":1.2,"signal":0.3},{"name":"y","alpha":1.4,"signal":0.1}]})"
      "\n"
      R"({"event":"alpha","step":9,"layers":[{"name":"x","alpha":1.3,"signal":0.3},{"name":"y","alpha":1.5,"signal":0.2}]})"
      "\n");
  EXPECT_EQ(find(figures_of({"b"}), "alpha")->panels.size(), 2U);
}

// How it is drawn: tests/report/in_browser.sh.
TEST_F(Figures, ALineOfOneValueIsDrawnAsAPoint) {
  write_run("a", 1, 0.9);
  for (const Figure& figure : figures_of({"a"})) {
    for (const Panel& panel : figure.panels) {
      const Json layers = panel.spec.value("layer", Json::array());
      const auto has = [&](const char* mark) {
        return std::any_of(layers.begin(), layers.end(),
                           [&](const Json& l) { return l["mark"]["type"] == mark || l["mark"].contains(mark); });
      };
      if (has("line")) {
        EXPECT_TRUE(has("point")) << figure.id;
      }
    }
  }
}

TEST_F(Figures, ALossThatIsNotFiniteIsAGap) {
  write("a/metrics.jsonl", R"({"event":"step","step":1,"loss":2.0})"
                           "\n"
                           R"({"event":"step","step":2,"loss":"nan"})"
                           "\n"
                           R"({"event":"step","step":3,"loss":"inf"})"
                           "\n");
  const auto figures = figures_of({"a"});
  const Panel& panel = find(figures, "loss")->panels[0];
  ASSERT_EQ(panel.rows.size(), 3U);
  EXPECT_TRUE(panel.rows[1][3].is_null());
  EXPECT_TRUE(panel.rows[2][3].is_null());
  EXPECT_EQ(vega_lite(*find(figures, "loss")).dump().find("nan"), std::string::npos);
}

TEST_F(Figures, AsOneVegaLiteDocument) {
  write_run("a", 1, 0.9, "[reparam]\nalpha = 1.0\n");
  write_run("b", 1, 0.9, "[reparam]\nalpha = 2.0\n");
  const auto figures = figures_of({"a", "b"});
  const Json one = vega_lite(*find(figures, "learning-rate"));
  EXPECT_EQ(one["data"]["values"].size(), 8U);
  EXPECT_EQ(one["data"]["values"][7]["run"], "alpha 2");
  EXPECT_EQ(one["title"], "Learning rate");
  write("a/weights.jsonl",
        R"({"event":"weights","step":0,"layers":[{"name":"u","nnz":1,"mean":1.0},{"name":"v","nnz":1,"mean":2.0}]})"
        "\n");
  const auto two = figures_of({"a"});
  EXPECT_EQ(vega_lite(*find(two, "mean-weight"))["concat"].size(), 2U);
}

// 100,000 steps with a topology event every 100: what is drawn stays small.
TEST_F(Figures, LongRunsStaySmallAndKeepTheirSpikes) {
  std::string metrics;
  for (int step = 1; step <= 100000; ++step) {
    const double loss = step == 61234 ? 77 : 1 + 0.1 * std::sin(step * 0.7);
    metrics += R"({"event":"step","step":)" + std::to_string(step) + R"(,"loss":)" + std::to_string(loss) +
               R"(,"lr":0.1})"
               "\n";
    if (step % 100 != 0) continue;
    metrics += R"({"event":"topology","step":)" + std::to_string(step) + R"(,"nnz":30,"dropped":)" +
               std::to_string(step / 100) + R"(,"grown":2,"layers":[)";
    for (int layer = 0; layer < 20; ++layer) {
      metrics += std::string(layer == 0 ? "" : ",") + R"({"name":"l)" + std::to_string(layer) + R"(","nnz":)" +
                 std::to_string(step % 700) + R"(,"dropped":3,"grown":3,"threshold":0.5,"dead_outputs":1})";
    }
    metrics += "]}\n";
  }
  write("a/metrics.jsonl", metrics);
  const auto figures = figures_of({"a"});
  std::size_t rows = 0;
  for (const Figure& f : figures) {
    for (const Panel& panel : f.panels) rows += panel.rows.size();
  }
  EXPECT_LT(rows, 40000U);
  const auto& loss = find(figures, "loss")->panels[0].rows;
  EXPECT_LE(loss.size(), 1500U);
  EXPECT_TRUE(std::any_of(loss.begin(), loss.end(), [](const Json& row) { return row[2] == 61234 && row[3] == 77; }));
}

}  // namespace
}  // namespace espalier::report
