// espalier init, and training with what it writes.
#include <nlohmann/json.hpp>

#include "cli/program.h"

namespace espalier {
namespace {

using nlohmann::json;

class Init : public Program {};

TEST_F(Init, WritesMasksThatTrainUses) {
  const Result init = run(
      "init --model lenet-300-100 --method phew --sparsity 0.98 --seed 1 --out masks.safetensors --json --threads 1");
  ASSERT_EQ(init.status, 0) << init.err;
  const json report = json::parse(init.out);
  const auto nnz = report.at("nnz").get<std::int64_t>();
  EXPECT_GE(nnz, 5324);
  EXPECT_LE(nnz, 5326);
  ASSERT_EQ(report.at("layers").size(), 3u);
  std::int64_t sum = 0;
  for (const auto& layer : report.at("layers")) sum += layer.at("nnz").get<std::int64_t>();
  EXPECT_EQ(sum, nnz);
  EXPECT_EQ(report.at("layers")[0].at("name"), "fc1.weight");
  EXPECT_EQ(report.at("layers")[1].at("width"), 100);
  EXPECT_GT(report.at("trace").get<double>(), 0);
  const Result inspect = run("inspect masks.safetensors --json");
  ASSERT_EQ(inspect.status, 0) << inspect.err;

  write(
      "c.toml",
      "[data]\nname = \"glyphs\"\ntrain_size = 300\ntest_size = 50\n[model]\nname = \"lenet-300-100\"\n[train]\nepochs "
      "= 0\nsteps = 5\n");
  const Result train = run("train c.toml --structure-from masks.safetensors --run-dir r --json --threads 1");
  ASSERT_EQ(train.status, 0) << train.err;
  const json summary = json::parse(train.out);
  EXPECT_EQ(summary.at("nnz").get<std::int64_t>(), nnz);
  EXPECT_EQ(summary.at("method"), "given");
  // The same again from the run's own configuration.
  const Result again = run("train r/config.toml --run-dir r2 --json --threads 1");
  ASSERT_EQ(again.status, 0) << again.err;
  EXPECT_EQ(json::parse(again.out).at("test_accuracy"), summary.at("test_accuracy"));
}

TEST_F(Init, TakesWeightsFromAFile) {
  ASSERT_EQ(run("init --model lenet-300-100 --method random --sparsity 0.5 --seed 3 --out a.safetensors").status, 0);
  // Another seed and the weights of the first: half of them are zero, so exactly the other half is kept.
  const Result r =
      run("init --model lenet-300-100 --method magnitude-at-init --sparsity 0.5 --seed 9 --weights a.safetensors --out "
          "b.safetensors --json");
  ASSERT_EQ(r.status, 0) << r.err;
  const Result a = run("inspect a.safetensors --json"), b = run("inspect b.safetensors --json");
  const json left = json::parse(a.out).at("tensors"), right = json::parse(b.out).at("tensors");
  for (std::size_t t = 0; t < left.size(); ++t) {
    if (left[t].at("name") != "fc1.weight") continue;
    EXPECT_EQ(left[t].at("nnz"), right[t].at("nnz"));
  }
}

TEST_F(Init, PrintsATable) {
  const Result r = run("init --model mlp --set model.widths=[20] --method synflow --sparsity 0.9");
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.out.find("fc1.weight"), std::string::npos);
  EXPECT_NE(r.out.find("trace of the path kernel"), std::string::npos);
}

TEST_F(Init, WarnsOfALayerThatIsEmptied) {
  // One round of squared scores leaves nothing in the last stage's blocks; identities and projections lead around them.
  const Result r =
      run("init --model resnet20 --input 3x8x8 --method synflow-l2 --set method.rounds=1 --sparsity 0.98 --json");
  ASSERT_EQ(r.status, 0) << r.err;
  std::size_t emptied = 0;
  const json report = json::parse(r.out);
  for (const json& layer : report.at("layers")) {
    const bool warned =
        r.err.find(": " + layer.at("name").get<std::string>() + " has no weight left") != std::string::npos;
    EXPECT_EQ(warned, layer.at("nnz") == 0) << layer;
    emptied += warned;
  }
  EXPECT_GT(emptied, 0u);
}

TEST_F(Init, RefusesWhatIsWrong) {
  const auto refused = [&](const std::string& arguments, int status, const std::string& text) {
    const Result r = run("init " + arguments);
    EXPECT_EQ(r.status, status) << arguments;
    EXPECT_NE(r.err.find(text), std::string::npos) << r.err;
  };
  refused("--model mlp --method gradual-magnitude --sparsity 0.9", 2, "goes on changing its masks");
  refused("--model mlp --method phew", 2, "[sparsity].sparsity above 0");
  refused("--model mlp --method phewe --sparsity 0.9", 2, "Did you mean \"phew\"?");
  refused("--model mlp --method phew --sparsity 0.9 --input 3x3", 2, "--input 3x3");
  refused("--model mlp --method phew --sparsity 0.9 --weights no.safetensors", 2, "no such file");
  refused("--model mlp --method random --sparsity 0.99999", 2, "the network is cut");
  refused("--model lenet-300-100 --method snip --sparsity 0.9 --data mnist --data-root nowhere", 3, "mnist");
  write("c.toml", "[data]\nname = \"glyphs\"\n");
  const Result r = run("train c.toml --structure-from no.safetensors --run-dir r");
  EXPECT_EQ(r.status, 2);
  EXPECT_NE(r.err.find("no.safetensors"), std::string::npos);
}

}  // namespace
}  // namespace espalier
