// espalier reproduce dpr, and runs that begin with what another one has left.
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "cli/program.h"

namespace espalier {
namespace {

using nlohmann::json;

const char* const kConfig = R"(
[data]
name = "glyphs"
train_size = 320
test_size = 100
[model]
name = "mlp"
widths = [20]
[train]
epochs = 2
batch_size = 16
[optim]
lr = 0.05
momentum = 0.9
[method]
name = "dpr"
every = "5it"
[sparsity]
sparsity = 0.9
[checkpoint]
every = "15it"
[run]
threads = 1
)";

class ReproduceDpr : public Program {
 protected:
  ReproduceDpr() { write("c.toml", kConfig); }
};

class StartFromARun : public ReproduceDpr {
 protected:
  /// The same without a method that moves connections.
  StartFromARun() {
    std::string text = kConfig;
    const std::string moves = "name = \"dpr\"\nevery = \"5it\"";
    write("static.toml", text.replace(text.find(moves), moves.size(), "name = \"static-random\""));
  }
};

TEST_F(ReproduceDpr, RunsItsArmsOverSeedsAndWritesATable) {
  const std::string command = "reproduce dpr c.toml --dir all --seeds 2";
  const Result r = run(command + " --json");
  ASSERT_EQ(r.status, 0) << r.err;
  const json results = json::parse(r.out);
  EXPECT_EQ(json::parse(read("all/results.json")), results);
  // 784 x 20 + 20 x 10 = 15,880 weights, of which 1,588 are kept. Thin: two units have 1,588 just so.
  for (const char* arm :
       {"dpr", "random", "structure", "structure-and-values", "stop-10%", "stop-25%", "stop-50%", "pruned", "thin"}) {
    ASSERT_TRUE(results.contains(arm)) << arm;
    EXPECT_EQ(results[arm]["nnz"], 1588) << arm;
    ASSERT_EQ(results[arm]["test_accuracy"].size(), 2u);
    const double a = results[arm]["test_accuracy"][0], b = results[arm]["test_accuracy"][1];
    EXPECT_NEAR(results[arm]["mean"].get<double>(), (a + b) / 2, 1e-12);
    EXPECT_NEAR(results[arm]["deviation"].get<double>(), std::abs(a - b) / std::sqrt(2), 1e-12);
  }
  EXPECT_EQ(results["dense"]["nnz"], 15880);
  EXPECT_EQ(results.size(), 10u);
  const std::string table = read("all/results.md");
  EXPECT_EQ(std::count(table.begin(), table.end(), '\n'), 12);
  EXPECT_NE(table.find("| `structure-and-values` | final structure of dpr, the values it started from |"),
            std::string::npos);
  // The structures are those of the run with the same seed.
  for (const char* arm : {"structure-1", "structure-and-values-1"}) {
    const json layers = json::parse(read(std::string("all/") + arm + "/summary.json")).at("storage");
    EXPECT_EQ(layers[0]["nnz"], json::parse(read("all/dpr-1/summary.json")).at("storage")[0]["nnz"]) << arm;
  }
  EXPECT_NE(read("all/thin-1/config.toml").find("max_weights = 1588"), std::string::npos);

  // Once more: nothing is trained again, and a run that was not finished goes on.
  const std::string finished = read("all/dpr-2/summary.json");
  std::filesystem::remove(folder / "all/random-2/summary.json");
  const Result again = run(command + " --json");
  ASSERT_EQ(again.status, 0) << again.err;
  EXPECT_EQ(read("all/dpr-2/summary.json"), finished);
  EXPECT_NE(again.err.find("resuming at step 40 of 40"), std::string::npos) << again.err;
  EXPECT_EQ(again.out, r.out);
}

TEST_F(ReproduceDpr, TheThinFormOfAListHasAsManyWeightsAsTheSparseOne) {
  const Result r =
      run("reproduce dpr c.toml --dir list --seeds 1 --json --set model.name=layers --set 'model.widths=[300,100]'"
          " --set 'model.layers=[\"flatten\",\"linear(20)\",\"batchnorm\",\"relu\",\"linear(classes)\"]'"
          " --arm dpr --arm thin");
  ASSERT_EQ(r.status, 0) << r.err;
  const json results = json::parse(r.out);
  const auto sparse = results["dpr"]["nnz"].get<std::int64_t>(), thin = results["thin"]["nnz"].get<std::int64_t>();
  EXPECT_LE(thin, sparse);
  EXPECT_GT(thin, sparse - 784 - 10) << "one unit more would fit";
}

TEST_F(ReproduceDpr, SaysWhatItCannotDo) {
  const auto refused = [&](const std::string& arguments, const std::string& message) {
    const Result r = run("reproduce dpr " + arguments);
    EXPECT_EQ(r.status, 2) << arguments;
    EXPECT_NE(r.err.find(message), std::string::npos) << arguments << ": " << r.err;
    EXPECT_EQ(r.out, "");
  };
  refused("c.toml --arm structure", "add --arm dpr");
  refused("c.toml --arm thin", "add --arm dpr");
  refused("c.toml --arm structur", "Did you mean \"structure\"?");
  refused("c.toml --seeds 0", "--seeds 0: expected at least 1");
  refused("c.toml --seed 4", "--seed");
  ASSERT_EQ(run("reproduce dpr c.toml --dir d --seeds 1 --arm random").status, 0);
  const std::string table = read("d/results.md");
  for (const char* sign : {"±", "+-"})
    EXPECT_EQ(table.find(sign), std::string::npos) << "one seed has no spread: " << table;
  refused("c.toml --dir d --seeds 1 --arm random --set optim.lr=0.1", "another configuration");
}

TEST_F(StartFromARun, ItsStructureAndItsValues) {
  ASSERT_EQ(run("train c.toml --run-dir first").status, 0);
  const auto kept = [&](const std::string& run) {
    json list = json::array();
    const json summary = json::parse(read(run + "/summary.json"));
    for (const auto& layer : summary.at("storage")) list.push_back(layer.at("nnz"));
    return list;
  };
  const std::string rest = " --set run.seed=9";
  for (const char* arguments : {"--structure-from first", "--structure-from first --values-from first@0",
                                "--structure-from first --values-from first"}) {
    const Result r = run("train static.toml --overwrite --run-dir next " + std::string(arguments) + rest);
    ASSERT_EQ(r.status, 0) << r.err;
    EXPECT_EQ(kept("next"), kept("first")) << arguments;
    // The resolved configuration says it, and is a run of its own.
    const std::string config = read("next/config.toml");
    EXPECT_NE(config.find("structure_from = \"first\""), std::string::npos) << config;
    const json summary = json::parse(read("next/summary.json"));
    ASSERT_EQ(run("train next/config.toml --overwrite --run-dir again").status, 0);
    EXPECT_EQ(json::parse(read("again/summary.json")).at("test_loss"), summary.at("test_loss")) << arguments;
  }
  // With its last values, and its seed, which draws the images, a run of no length to speak of is as good as the other
  // was.
  const Result r =
      run("train static.toml --run-dir still --structure-from first --values-from first"
          " --set train.epochs=0 --set train.steps=1 --set optim.lr=1e-9");
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_NEAR(json::parse(read("still/summary.json")).at("test_loss").get<double>(),
              json::parse(read("first/summary.json")).at("test_loss").get<double>(), 1e-4);
}

TEST_F(StartFromARun, SaysWhatDoesNotFit) {
  ASSERT_EQ(run("train c.toml --run-dir first").status, 0);
  const auto refused = [&](const std::string& arguments, const std::string& message) {
    const Result r = run("train static.toml --overwrite --run-dir next " + arguments);
    EXPECT_EQ(r.status, 2) << arguments << ": " << r.err;
    EXPECT_NE(r.err.find(message), std::string::npos) << arguments << ": " << r.err;
  };
  refused("--structure-from nowhere", "nowhere");
  refused("--values-from nowhere@0", "nowhere");
  refused("--structure-from first --set 'model.widths=[30]'", "is it of another model?");
  refused("--values-from first --set 'model.widths=[30]'", "is it of another model?");
  refused("--structure-from first --set method.name=gradual-magnitude", "structure");
}

}  // namespace
}  // namespace espalier
