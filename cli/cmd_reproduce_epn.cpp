// espalier reproduce epn: sequences of tasks by EfficientPackNet, with and without Powerpropagation, beside its rivals.
#include <filesystem>

#include "commands.h"
#include "espalier/continual/learner.h"
#include "espalier/core/log.h"
#include "reproduce.h"
#include "run_commands.h"

namespace espalier::cli {
namespace {

namespace fs = std::filesystem;
using train::Json;
using train::RunConfig;

constexpr const char* kReportPreset = "epn-permuted-mnist-3";

/// Where a preset decays phi, rate and decay are those of its alpha, and far too large for alpha = 1: arms without
/// Powerpropagation have what is best for them (docs/methods/efficient-packnet.md).
bool is_for_powerprop(const std::string& preset) {
  train::ConfigSources alone;
  alone.preset = preset;
  const RunConfig config = train::load_config(alone);
  return config.reparam.alpha > 1 && config.optim.decay_on == "phi";
}
const std::vector<std::string> kWithoutPowerprop = {
    "optim.name=sgd",   "optim.lr=0.1",      "optim.momentum=0.9",   "optim.weight_decay=0",
    "optim.decay_on=w", "train.clip_norm=5", "schedule.warmup=50it", "continual.retrain_lr=0.1"};

struct EpnArm {
  std::string name, description;
  std::vector<std::string> set;
};

EpnArm efficient(const std::string& alpha) {
  return {"epn-" + alpha,
          alpha == "1" ? "EfficientPackNet" : "EfficientPackNet, Powerpropagation with alpha " + alpha,
          {"continual.method=efficient-packnet", "reparam.name=powerprop", "reparam.alpha=" + alpha}};
}

std::vector<EpnArm> epn_arms() {
  const auto plain = [](const char* name, const char* description) {
    return EpnArm{
        name, description, {std::string("continual.method=") + name, "reparam.name=identity", "reparam.alpha=1"}};
  };
  return {efficient("1"),
          efficient("1.5"),
          efficient("2"),
          efficient("3"),
          plain("packnet", "PackNet, equal shares"),
          plain("fine-tuning", "one network, nothing held still"),
          plain("ewc", "elastic weight consolidation"),
          plain("separate", "a network for each task"),
          plain("joint", "all tasks at once")};
}

/// What the user has set for a method holds for the arms that have that method.
bool meant_for(const std::string& setting, const EpnArm& arm) {
  static const std::vector<std::string> kEpnOnly = {"continual.gamma", "continual.search", "continual.keep_rates",
                                                    "continual.fallback"};  // search_steps too
  const bool epn = arm.name.rfind("epn-", 0) == 0, packs = epn || arm.name == "packnet";
  const auto is = [&](const std::string& key) { return setting.rfind(key, 0) == 0; };
  if (std::any_of(kEpnOnly.begin(), kEpnOnly.end(), is)) return epn;
  if (is("continual.retrain") || is("continual.reinit")) return packs;
  if (is("continual.ewc") || is("continual.fisher")) return arm.name == "ewc";
  if (is("continual.share")) return arm.name == "packnet";
  return true;
}

RunConfig config_of(const ArmsArguments& a, const Context& context, const EpnArm& arm, std::int64_t seed) {
  train::ConfigSources all = sources(a.config, context);
  if (!a.config.given()) all.preset = kReportPreset;
  std::vector<std::string> set = arm.set;
  const bool plain = std::find(set.begin(), set.end(), "reparam.alpha=1") != set.end();
  if (plain && all.preset && is_for_powerprop(*all.preset)) {
    set.insert(set.end(), kWithoutPowerprop.begin(), kWithoutPowerprop.end());
  }
  train::ContinualOptions defaults;  // what a file says for one method is no mistake in the arms of others
  for (const Option& option : describe(defaults)) {
    const std::string setting = fmt::format("continual.{}={}", option.name, option.value_text());
    if (!meant_for(setting, arm)) set.push_back(setting);
  }
  for (const auto& s : all.set)
    if (meant_for(s, arm)) set.push_back(s);
  all.set = set;
  all.flags.push_back({"reproduce", "run.seed", std::to_string(seed)});
  return train::load_config(all);
}

train::TrainResult learn(const RunConfig& config, train::RunDirectory& directory, const std::atomic<bool>* stop) {
  continual::Hooks hooks;
  hooks.stop = stop;
  return continual::learn(config, directory, hooks);
}

int run_epn(const ArmsArguments& a, Context& context) {
  std::vector<std::string> wanted = a.arms, known;
  const bool report = a.config.file.empty() && (a.config.preset.empty() || a.config.preset == kReportPreset);
  if (wanted.empty() && report) wanted = {"epn-1", "epn-1.5"};
  if (wanted.empty()) wanted = {"epn-1", "epn-1.5", "epn-2", "epn-3", "packnet", "fine-tuning", "separate"};
  for (const EpnArm& arm : epn_arms()) known.push_back(arm.name);
  check_arms(a, known);
  const fs::path dir = a.dir;
  stop_on_signals();

  const std::vector<std::string> metrics = {"average_accuracy", "forgetting", "backward_transfer", "forward_transfer",
                                            "capacity_used"};
  std::map<std::string, std::map<std::string, std::vector<double>>> values;  // of an arm, of a metric
  for (std::int64_t seed = 1; seed <= a.seeds; ++seed) {
    for (const EpnArm& arm : epn_arms()) {
      if (std::find(wanted.begin(), wanted.end(), arm.name) == wanted.end()) continue;
      const RunConfig config = config_of(a, context, arm, seed);
      const fs::path path = dir / fmt::format("{}-{}", arm.name, seed);
      log_info(fmt::format("{}: {}, seed {}", path.string(), arm.description, seed));
      const auto summary = summary_of(config, path, learn);
      if (!summary) return stopped();
      for (const auto& m : metrics) {
        if (!summary->at(m).is_null()) values[arm.name][m].push_back(train::number_from_json(summary->at(m)));
      }
      log_info(fmt::format("{}: average accuracy {:.4f}", path.string(), values[arm.name]["average_accuracy"].back()));
    }
  }
  Json results = Json::object();
  std::vector<std::vector<std::string>> rows = {
      {"arm", "average accuracy, %", "forgetting", "forward transfer", "network used, %", ""}};
  std::string table =
      "| arm | | average accuracy, % | forgetting, points | forward transfer, points | network used, % | runs "
      "|\n|---|---|---|---|---|---|---|\n";
  for (const EpnArm& arm : epn_arms()) {
    if (values.count(arm.name) == 0) continue;
    auto& of_arm = values[arm.name];
    std::vector<std::string> row = {arm.name};
    for (const char* m : {"average_accuracy", "forgetting", "forward_transfer", "capacity_used"}) {
      row.push_back(mean_and_deviation(of_arm[m]));
    }
    row.push_back(arm.description);
    table += fmt::format("| `{}` | {} | {} | {} | {} | {} | {} |\n", arm.name, arm.description, row[1], row[2], row[3],
                         row[4], of_arm["average_accuracy"].size());
    rows.push_back(row);
    results[arm.name] = {{"description", arm.description}};
    for (const auto& m : metrics) results[arm.name][m] = of_arm[m];
  }
  write_results(dir, results, table, a.json, columns(rows), context);
  return 0;
}

}  // namespace

void add_reproduce_epn_command(CLI::App& reproduce, Context& context) {
  auto a = std::make_shared<ArmsArguments>();
  CLI::App* command = reproduce.add_subcommand(
      "epn",
      "Tasks packed into one network: EfficientPackNet with and without Powerpropagation, PackNet and baselines");
  add_arms_arguments(*command, *a, "runs/reproduce-epn",
                     "only this arm, may be repeated: epn-1, epn-1.5, epn-2, epn-3, packnet, fine-tuning, ewc, "
                     "separate, joint; otherwise the two of the report for its preset, else all but ewc and joint");
  command->footer(
      "A run that is there and finished is not repeated; one that was stopped goes on.\n"
      "A preset that decays phi has the optimiser of its alpha: arms without Powerpropagation have SGD at 0.1.\n"
      "Examples:\n"
      "  espalier reproduce epn --data-root DIR      # three tasks, keep rate 0.2, alpha 1 and 1.5\n"
      "  espalier reproduce epn --preset epn-permuted-mnist-10 --seeds 3 --dir runs/epn-10");
  on_run(*command, context, [a, &context] { return run_epn(*a, context); });
}

}  // namespace espalier::cli
