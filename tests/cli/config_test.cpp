#include <nlohmann/json.hpp>

#include "program.h"

namespace espalier {
namespace {

using Json = nlohmann::json;
using Config = Program;

TEST_F(Config, PrintsAPresetAsItWasWritten) {
  const Result result = run("config --preset mnist-lenet300");
  EXPECT_EQ(result.status, 0);
  std::ifstream file(ESPALIER_SOURCE_DIR "/presets/mnist-lenet300.toml");
  EXPECT_EQ(result.out, std::string(std::istreambuf_iterator<char>(file), {}));
  EXPECT_EQ(result.err, "");
  const Result unknown = run("config --preset mnist-lenet");
  EXPECT_EQ(unknown.status, 2);
  EXPECT_EQ(unknown.err.rfind("error: --preset mnist-lenet: unknown preset. Known: ", 0), 0u) << unknown.err;
}

TEST_F(Config, ReportsAllMistakesOfAFile) {
  write("config.toml", "[reparam]\nname = \"powerprop\"\nalpa = 2\n[sparsity]\ndistribution = \"erdos\"\n");
  const Result result = run("config config.toml --set train.steps=x");
  EXPECT_EQ(result.status, 2);
  EXPECT_EQ(result.out, "");
  EXPECT_EQ(
      result.err,
      "error: config.toml:3:1: [reparam].alpa: unknown key. Known: name, alpha, update, interval, signal, epsilon, cr, "
      "cd, loss_tolerance, alpha_min, alpha_max, per. Did you mean \"alpha\"?\n"
      "config.toml:5:16: [sparsity].distribution = \"erdos\": unknown value. Known: uniform, er, erk, global. "
      "Did you mean "
      "\"er\"?\n"
      "--set: [train].steps = \"x\": expected an integer, found a string\n");
  EXPECT_EQ(run("config none.toml").err, "error: none.toml: cannot be read: No such file or directory\n");
}

TEST_F(Config, TheResolvedOutputIsAConfigurationAndAFixedPoint) {
  const Result first =
      run("config --preset glyphs-demo --set sparsity.sparsity=0.8 --seed 7 --threads 2 --data-root /data");
  ASSERT_EQ(first.status, 0) << first.err;
  EXPECT_NE(first.out.find("\nsparsity = 0.8\n"), std::string::npos);
  EXPECT_NE(first.out.find("\nseed = 7\n"), std::string::npos);
  EXPECT_NE(first.out.find("\nthreads = 2\n"), std::string::npos);
  EXPECT_NE(first.out.find("\nroot = \"/data\"\n"), std::string::npos);
  write("resolved.toml", first.out);
  EXPECT_EQ(run("config resolved.toml --resolved").out, first.out);
  write("resolved.json", run("config resolved.toml --json").out);
  EXPECT_EQ(Json::parse(read("resolved.json"))["sparsity"]["sparsity"], 0.8);
  EXPECT_EQ(run("config resolved.json --resolved").out, first.out);
  EXPECT_EQ(shell("cat resolved.toml | \"$ESPALIER\" config - --resolved").out, first.out);
}

TEST_F(Config, WithoutArgumentsPrintsTheDefaults) {
  const Result result = run("config");
  EXPECT_EQ(result.status, 0);
  EXPECT_NE(result.out.find("\nepochs = 10.0\n"), std::string::npos);
}

TEST_F(Config, LayersComeInTheirOrder) {
  write("c.toml", "[optim]\nlr = 0.2\n[run]\nseed = 2\n");
  const auto line = [](const std::string& text, const std::string& key) {
    const auto begin = text.find("\n" + key + " = ") + 1;
    return text.substr(begin, text.find('\n', begin) - begin);
  };
  const Result result =
      run("config c.toml --preset mnist-ann --set run.seed=4 --seed 5 --resolved", "ESPALIER_OPTIM_LR=0.3");
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(line(result.out, "lr"), "lr = 0.3");
  EXPECT_EQ(line(result.out, "seed"), "seed = 5");
  EXPECT_EQ(line(result.out, "widths"), "widths = [300]");
  // --set takes one value and leaves the next word alone.
  EXPECT_EQ(line(run("config --set model.widths=[9,8] c.toml --resolved").out, "widths"), "widths = [9, 8]");
  EXPECT_EQ(line(run("config --set model.widths=9,8 --set optim.lr=1 c.toml").out, "widths"), "widths = [9, 8]");
  const Result wrong = run("config c.toml --seed -1 --threads many");
  EXPECT_EQ(wrong.status, 2);
  EXPECT_EQ(wrong.err,
            "error: --threads: [run].threads = \"many\": expected an integer, found a string\n"
            "--seed: [run].seed = -1 is out of range; expected at least 0\n");
}

TEST_F(Config, SchemaListsEveryKey) {
  const Result text = run("config --schema");
  EXPECT_EQ(text.status, 0);
  EXPECT_NE(text.out.find("[reparam]"), std::string::npos);
  EXPECT_NE(text.out.find("[method]  with name = \"gradual-magnitude\""), std::string::npos);
  const Json schema = Json::parse(run("config --schema --json").out);
  Json resolved = Json::parse(run("config --json").out);
  EXPECT_EQ(schema["schema_version"], 1);
  for (const auto& table : schema["tables"]) {
    for (const auto& key : table["keys"]) {
      Json& value = resolved[table["name"].get<std::string>()];
      EXPECT_EQ(value[key["name"].get<std::string>()], key["default"]) << key;
      EXPECT_FALSE(key["help"].get<std::string>().empty());
      value.erase(key["name"].get<std::string>());
    }
    EXPECT_TRUE(resolved[table["name"].get<std::string>()].empty()) << resolved;
  }
  EXPECT_EQ(run("config --schema --preset mnist-ann").status, 2);
}

TEST_F(Config, ListNamesWhatConfigurationsUse) {
  for (const char* kind : {"methods", "models", "datasets", "presets"}) {
    const Json list = Json::parse(run(std::string("list --json ") + kind).out);
    ASSERT_FALSE(list.empty()) << kind;
    const std::string text = run(std::string("list ") + kind).out;
    for (const auto& item : list) {
      EXPECT_FALSE(item["description"].get<std::string>().empty());
      EXPECT_NE(text.find(item["name"].get<std::string>() + " "), std::string::npos);
    }
    EXPECT_EQ(Json::parse(run("list --json").out)[kind], list);
    if (std::string(kind) != "presets") continue;
    for (const auto& item : list)
      EXPECT_EQ(run("config --resolved --preset " + item["name"].get<std::string>()).status, 0);
  }
}

}  // namespace
}  // namespace espalier
