// espalier reproduce adaptive-alpha: Powerpropagation that tunes itself, beside every fixed alpha.
#include <algorithm>
#include <filesystem>

#include "commands.h"
#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/methods/adaptive_alpha.h"
#include "espalier/train/experiment.h"
#include "espalier/train/metrics.h"
#include "espalier/train/prune.h"
#include "reproduce.h"
#include "run_commands.h"

namespace espalier::cli {
namespace {

namespace fs = std::filesystem;
using train::Json;
using train::RunConfig;

struct ReproduceAdaptiveAlphaArguments : ArmsArguments {
  std::vector<double> alphas = {1, 1.25, 1.5, 2, 3, 4};
};

struct Arm {
  std::string name, description;
  std::vector<std::string> set;
  bool adaptive = false;
};

/// Jain, Raj and Asgaonkar (2022), sections 3.1 and 5: the fixed exponents, their control loop, and others.
std::vector<Arm> all_arms(const std::vector<double>& alphas) {
  std::vector<Arm> arms;
  for (const double alpha : alphas) {
    arms.push_back({fmt::format("alpha-{:g}", alpha),
                    fmt::format("alpha = {:g}", alpha),
                    {"reparam.name=powerprop", fmt::format("reparam.alpha={}", alpha)}});
  }
  const auto adaptive = [&](const char* name, const char* description, std::vector<std::string> more) {
    std::vector<std::string> set = {"reparam.name=adaptive-powerprop", "reparam.alpha=1.2"};
    set.insert(set.end(), more.begin(), more.end());
    arms.push_back({name, description, std::move(set), true});
  };
  const std::string near_zero = "reparam.signal=near-zero", each_epoch = "reparam.interval=1ep";
  const std::vector<std::string> effective = {"reparam.signal=effective", "reparam.loss_tolerance=0.1"};
  adaptive("near-zero", "the report's loop", {near_zero});
  adaptive("near-zero-epoch", "the report's loop, each epoch", {near_zero, each_epoch});
  adaptive("near-zero-layer", "the report's loop, one for each layer", {near_zero, "reparam.per=layer"});
  adaptive("effective", "effective share of zeros, and the loss", effective);
  adaptive("effective-epoch", "effective share of zeros, and the loss, each epoch",
           {effective[0], effective[1], each_epoch});
  return arms;
}

/// What the user has set for the loop is nothing to a fixed exponent.
bool meant_for(const std::string& setting, const Arm& arm) {
  if (arm.adaptive || setting.rfind("reparam.", 0) != 0) return true;
  return setting.rfind("reparam.update", 0) == 0;
}

RunConfig config_of(const ReproduceAdaptiveAlphaArguments& arguments, const Context& context, const Arm& arm,
                    std::int64_t seed) {
  ConfigArguments given = arguments.config;
  if (!given.given()) given.preset = "mnist-ann";
  train::ConfigSources all = sources(given, context);
  std::vector<std::string> set = arm.set;  // the user's word on the loop is the last
  for (const auto& s : all.set)
    if (meant_for(s, arm)) set.push_back(s);
  all.set = set;
  all.flags.push_back({"reproduce", "run.seed", std::to_string(seed)});
  return train::load_config(all);
}

/// |w| < epsilon among the weights that are kept.
struct NearZero {
  std::int64_t below = 0, kept = 0;
  double share() const { return kept == 0 ? 0 : static_cast<double>(below) / static_cast<double>(kept); }
};

/// A finished run, as the tables need it.
struct Finished {
  double test_accuracy = 0;
  double near_zero = 0;        ///< share of |w| < epsilon
  double without_them = 0;     ///< test accuracy when those weights are zero
  Json alpha;                  ///< at the end; a list where layers have their own
  Json trace = Json::array();  ///< events "alpha" of metrics.jsonl, with the epoch
};

Finished what_it_did(const RunConfig& config, const fs::path& path, const Json& summary, double epsilon) {
  Finished f;
  f.test_accuracy = summary.at("test_accuracy").get<double>();
  f.alpha = summary.at("alpha");
  if (f.alpha.is_null()) {
    f.alpha = Json::array();
    for (const Json& layer : summary.at("storage")) f.alpha.push_back(layer.at("alpha"));
  }
  const train::RunData data(config);
  const train::LoadedRun run = train::load_run(path);
  const Clock clock = train::planned_clock(config.train, data.train_batches().batches_per_epoch());
  const auto model = train::restore_model(run, data.input_shape(), data.dataset().num_classes(), clock);
  NearZero all;
  for (const auto& weight : model.sparsifier->weights()) {
    const at::Tensor w = weight->weights();
    all.kept += w.numel();
    all.below += std::llround(share_near_zero(w, epsilon) * static_cast<double>(w.numel()));
  }
  f.near_zero = all.share();
  train::PruneOptions prune;
  prune.keep = {static_cast<double>(all.kept - all.below) / static_cast<double>(model.sparsifier->positions())};
  prune.distribution = "global";
  prune.split = "test";
  f.without_them = train::prune_curve(run, prune, {}).front().evaluation.accuracy();
  for (const Json& event : train::read_metrics(path / "metrics.jsonl")) {
    if (event.at("event") != "alpha") continue;
    f.trace.push_back(event);
    f.trace.back()["epoch"] = event.at("step").get<double>() / static_cast<double>(clock.steps_per_epoch);
  }
  return f;
}

std::string alpha_text(const Json& alpha) {
  if (!alpha.is_array()) return fmt::format("{:.3g}", alpha.get<double>());
  std::string text;
  for (const Json& a : alpha) text += (text.empty() ? "" : ", ") + fmt::format("{:.3g}", a.get<double>());
  return text;
}

/// Lines "epoch: alpha (near zero)" of one run.
std::vector<std::string> trace_cells(const Json& trace) {
  std::vector<std::string> cells;
  for (const Json& event : trace) {
    std::string alphas, shares;
    const Json layers = event.value("layers", Json::array({event}));
    for (const Json& l : layers) {
      alphas += (alphas.empty() ? "" : ", ") + fmt::format("{:.3g}", l.at("alpha").get<double>());
      shares += (shares.empty() ? "" : ", ") + fmt::format("{:.1f}", 100 * l.at("near_zero").get<double>());
    }
    cells.push_back(fmt::format("{:g}: {} ({} %)", event.at("epoch").get<double>(), alphas, shares));
  }
  return cells;
}

int run(const ReproduceAdaptiveAlphaArguments& arguments, Context& context) {
  std::vector<Arm> arms;
  std::vector<std::string> known;
  for (const Arm& arm : all_arms(arguments.alphas)) {
    known.push_back(arm.name);
    if (arguments.wants(arm.name)) arms.push_back(arm);
  }
  check_arms(arguments, known);
  // One epsilon for all arms: that of the loops.
  const double epsilon = config_of(arguments, context, all_arms({}).front(), 1).reparam.adaptive.epsilon;
  for (const Arm& arm : arms) config_of(arguments, context, arm, 1);  // mistakes before the first run, not after it
  stop_on_signals();

  const fs::path dir = arguments.dir;
  std::map<std::string, std::vector<Finished>> runs;
  std::map<std::string, std::int64_t> diverged;
  for (std::int64_t seed = 1; seed <= arguments.seeds; ++seed) {
    for (const Arm& arm : arms) {
      const RunConfig config = config_of(arguments, context, arm, seed);
      const fs::path path = dir / fmt::format("{}-{}", arm.name, seed);
      log_info(fmt::format("{}: {}, seed {}", path.string(), arm.description, seed));
      std::optional<Json> summary;
      try {
        summary = summary_of(config, path);
      } catch (const Error& e) {  // a result too: of alpha, and no reason to leave the other arms out
        if (e.kind() != ErrorKind::diverged) throw;
        log_warning(fmt::format("{}: {}", path.string(), e.what()));
        ++diverged[arm.name];
        continue;
      }
      if (!summary) return stopped();
      runs[arm.name].push_back(what_it_did(config, path, *summary, epsilon));
      const Finished& f = runs[arm.name].back();
      log_info(fmt::format("{}: test accuracy {:.4f}, near zero {:.4f}, without them {:.4f}", path.string(),
                           f.test_accuracy, f.near_zero, f.without_them));
    }
  }

  std::vector<std::vector<std::string>> rows = {{"arm", "test accuracy, %", fmt::format("|w| < {:g}, %", epsilon),
                                                 "accuracy without them, %", "alpha at the end", ""}};
  std::vector<std::vector<std::string>> traces;
  std::string table = fmt::format(
      "| arm | | test accuracy, % | abs(w) < {:g}, % | accuracy without them, % | alpha at the end |\n"
      "|---|---|---|---|---|---|\n",
      epsilon);
  std::string trace_text;
  Json results = {{"epsilon", epsilon}, {"arms", Json::object()}};
  for (const Arm& arm : arms) {
    std::vector<double> accuracy, near_zero, without;
    Json alpha = Json::array(), trace = Json::array();
    std::string ends;
    for (const Finished& f : runs[arm.name]) {
      accuracy.push_back(f.test_accuracy);
      near_zero.push_back(f.near_zero);
      without.push_back(f.without_them);
      alpha.push_back(f.alpha);
      if (arm.adaptive || ends.empty()) ends += (ends.empty() ? "" : "; ") + alpha_text(f.alpha);
      if (!arm.adaptive) continue;
      trace.push_back(f.trace);
      auto cells = trace_cells(f.trace);
      trace_text += fmt::format("* `{}`, seed {}: {}\n", arm.name, trace.size(), fmt::join(cells, " → "));
      cells.insert(cells.begin(), fmt::format("{}-{}", arm.name, trace.size()));
      traces.push_back(cells);
    }
    if (diverged[arm.name] > 0) {
      ends += fmt::format("{}{} of {} diverged", ends.empty() ? "" : "; ", diverged[arm.name], arguments.seeds);
    }
    rows.push_back({arm.name, mean_and_deviation(accuracy), mean_and_deviation(near_zero), mean_and_deviation(without),
                    ends, arm.description});
    table += fmt::format("| `{}` | {} | {} | {} | {} | {} |\n", arm.name, arm.description, rows.back()[1],
                         rows.back()[2], rows.back()[3], ends);
    results["arms"][arm.name] = {{"description", arm.description},
                                 {"test_accuracy", accuracy},
                                 {"near_zero", near_zero},
                                 {"test_accuracy_without", without},
                                 {"alpha", alpha},
                                 {"diverged", diverged[arm.name]}};
    if (arm.adaptive) results["arms"][arm.name]["trace"] = trace;
  }
  write_results(dir, results, table + "\n" + trace_text, arguments.json,
                columns(rows) + "\nepoch: alpha from then on (share near zero)\n" + columns(traces), context);
  return 0;
}

}  // namespace

void add_reproduce_adaptive_alpha_command(CLI::App& reproduce, Context& context) {
  auto arguments = std::make_shared<ReproduceAdaptiveAlphaArguments>();
  CLI::App* command = reproduce.add_subcommand(
      "adaptive-alpha", "Powerpropagation that tunes its alpha, beside fixed ones (Jain, Raj and Asgaonkar 2022)");
  add_arms_arguments(*command, *arguments, "runs/reproduce-adaptive-alpha");
  command->add_option("--alphas", arguments->alphas, "the fixed exponents (default 1,1.25,1.5,2,3,4)")
      ->delimiter(',')
      ->option_text("ALPHA,...");
  command->footer(
      "The run that is varied is the preset mnist-ann, unless another one or a CONFIG is given. A run that is there "
      "and\n"
      "finished is not repeated; one that was stopped goes on.\n"
      "Examples:\n"
      "  espalier reproduce adaptive-alpha --data-root DIR\n"
      "  espalier reproduce adaptive-alpha --data-root DIR --arm alpha-1.5 --arm effective-epoch \\\n"
      "    --set optim.weight_decay=1e-4 --set optim.decay_on=phi");
  on_run(*command, context, [arguments, &context] { return run(*arguments, context); });
}

}  // namespace espalier::cli
