// espalier reproduce dpr: an experiment as runs with one table at the end.
#include <algorithm>
#include <filesystem>

#include "commands.h"
#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/report/compare.h"
#include "reproduce.h"
#include "run_commands.h"

namespace espalier::cli {
namespace {

namespace fs = std::filesystem;
using train::Json;
using train::RunConfig;

/// One bar of the figure. `structure` and `values`: the arm whose run of the same seed it starts from; `size`: the one
/// that has as many weights.
struct DprArm {
  std::string name, description;
  std::vector<std::string> set;
  std::string structure, values;
  std::int64_t seed_offset = 0;
  std::string size = "";
  bool needs_dpr() const { return !structure.empty() || !size.empty(); }
};

/// Mostafa and Wang, "Dynamic parameter reallocation improves trainability of deep convolutional networks", NIPS 2018
/// workshop, figure 1.
std::vector<DprArm> dpr_arms() {
  // Another seed than that of the run whose structure it has: other values.
  constexpr std::int64_t kFresh = 1000;
  return {
      {"dpr", "active reallocation", {}, "", "", 0},
      {"random", "random structure, random values", {"method.name=static-random"}, "", "", 0},
      {"structure", "final structure of dpr, fresh values", {"method.name=static-random"}, "dpr", "", kFresh},
      {"structure-and-values",
       "final structure of dpr, the values it started from",
       {"method.name=static-random"},
       "dpr",
       "dpr@0",
       kFresh},
      {"stop-10%", "reallocation stopped at 10 % of the run", {"method.stop_after=10%"}, "", "", 0},
      {"stop-25%", "reallocation stopped at 25 %", {"method.stop_after=25%"}, "", "", 0},
      {"stop-50%", "reallocation stopped at 50 %", {"method.stop_after=50%"}, "", "", 0},
      {"pruned", "trained dense, pruned gradually and retrained", {"method.name=gradual-magnitude"}, "", "", 0},
      {"thin",
       "dense, with as many weights: fewer units",
       {"method.name=dense", "sparsity.sparsity=0", "sparsity.dense_layers=[]"},
       "",
       "",
       0,
       "dpr"},
      {"dense", "every weight", {"method.name=dense", "sparsity.sparsity=0"}, "", "", 0},
  };
}

/// What the user has set for a method holds for the arms that have that method.
bool meant_for(const std::string& setting, const DprArm& arm) {
  if (setting.rfind("method.", 0) != 0 || setting.rfind("method.name", 0) == 0) return true;
  return arm.set.empty() || arm.set.front().rfind("method.name", 0) != 0;
}

RunConfig config_of(const ArmsArguments& arguments, const Context& context, const DprArm& arm, const fs::path& dir,
                    std::int64_t seed) {
  train::ConfigSources all = sources(arguments.config, context);
  std::vector<std::string> set;
  for (const auto& s : all.set)
    if (meant_for(s, arm)) set.push_back(s);
  all.set = set;
  if (!arm.set.empty() && arm.set.front().rfind("method.name", 0) == 0) all.other_table = "method";
  all.set.insert(all.set.end(), arm.set.begin(), arm.set.end());
  const auto run_of = [&](const std::string& name) { return (dir / fmt::format("{}-{}", name, seed)).string(); };
  if (!arm.structure.empty()) all.flags.push_back({"reproduce", "run.structure_from", run_of(arm.structure)});
  if (!arm.values.empty()) {
    const std::string name = arm.values.substr(0, arm.values.find('@'));
    all.flags.push_back({"reproduce", "run.values_from", run_of(name) + arm.values.substr(name.size())});
  }
  if (!arm.size.empty()) {
    // Those of layers that stay dense as well.
    std::int64_t weights = 0;
    const Json summary = train::read_json(fs::path(run_of(arm.size)) / "summary.json");
    for (const Json& layer : summary.at("storage")) {
      weights += layer.at("nnz").get<std::int64_t>();
    }
    all.flags.push_back({"reproduce", "model.max_weights", std::to_string(weights)});
  }
  all.flags.push_back({"reproduce", "run.seed", std::to_string(seed + arm.seed_offset)});
  return train::load_config(all);
}

int run_dpr(const ArmsArguments& arguments, Context& context) {
  std::vector<DprArm> arms;
  std::vector<std::string> known;
  for (const DprArm& arm : dpr_arms()) {
    known.push_back(arm.name);
    if (arguments.wants(arm.name)) arms.push_back(arm);
  }
  check_arms(arguments, known);
  ESPALIER_CHECK(std::any_of(arms.begin(), arms.end(), [](const DprArm& a) { return a.name == "dpr"; }) ||
                     std::none_of(arms.begin(), arms.end(), [](const DprArm& a) { return a.needs_dpr(); }),
                 ErrorKind::usage,
                 "--arm: \"structure\", \"structure-and-values\" and \"thin\" start from the runs of \"dpr\": add "
                 "--arm dpr");
  const fs::path dir = arguments.dir;
  stop_on_signals();

  std::map<std::string, std::vector<double>> accuracy;
  Json results = Json::object();
  std::vector<std::vector<std::string>> rows = {{"arm", "test accuracy", "kept", ""}};
  std::map<std::string, std::int64_t> nnz;
  for (std::int64_t seed = 1; seed <= arguments.seeds; ++seed) {
    for (const DprArm& arm : arms) {
      const RunConfig config = config_of(arguments, context, arm, dir, seed);
      const fs::path path = dir / fmt::format("{}-{}", arm.name, seed);
      log_info(fmt::format("{}: {}, seed {}", path.string(), arm.description, seed));
      const auto summary = summary_of(config, path);
      if (!summary) return stopped();
      accuracy[arm.name].push_back(summary->at("test_accuracy").get<double>());
      nnz[arm.name] = summary->at("nnz").get<std::int64_t>();
      log_info(fmt::format("{}: test accuracy {:.4f}", path.string(), accuracy[arm.name].back()));
    }
  }
  std::string table = "| arm | | test accuracy, % | runs | weights kept |\n|---|---|---|---|---|\n";
  for (const DprArm& arm : arms) {
    const report::Statistics s = report::statistics(accuracy[arm.name]);
    const std::string text = mean_and_deviation(accuracy[arm.name]);
    rows.push_back({arm.name, text, std::to_string(nnz[arm.name]), arm.description});
    table += fmt::format("| `{}` | {} | {} | {} | {} |\n", arm.name, arm.description, text, accuracy[arm.name].size(),
                         nnz[arm.name]);
    results[arm.name] = {{"description", arm.description},
                         {"test_accuracy", accuracy[arm.name]},
                         {"mean", s.mean},
                         {"deviation", s.deviation},
                         {"nnz", nnz[arm.name]}};
  }
  write_results(dir, results, table, arguments.json, columns(rows), context);
  return 0;
}

}  // namespace

void add_reproduce_dpr_command(CLI::App& reproduce, Context& context) {
  auto arguments = std::make_shared<ArmsArguments>();
  CLI::App* command = reproduce.add_subcommand(
      "dpr", "Dynamic parameter reallocation beside its rivals (Mostafa and Wang 2018, figure 1)");
  add_arms_arguments(*command, *arguments, "runs/reproduce-dpr");
  command->footer(
      "A run that is there and finished is not repeated; one that was stopped goes on.\n"
      "Examples:\n"
      "  espalier reproduce dpr --preset mnist-dpr --data-root DIR\n"
      "  espalier reproduce dpr --preset cifar10-resnet20-dpr --seeds 1 --arm dpr --arm structure");
  on_run(*command, context, [arguments, &context] { return run_dpr(*arguments, context); });
}

}  // namespace espalier::cli
