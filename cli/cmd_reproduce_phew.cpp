// espalier reproduce phew: networks pruned before training, side by side.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>

#include "commands.h"
#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/train/init_report.h"
#include "espalier/train/trainer.h"
#include "reproduce.h"

namespace espalier::cli {
namespace {

namespace fs = std::filesystem;

struct ReproducePhewArguments {
  std::string part = "structure", preset = "mnist-lenet300-phew", out = "runs/reproduce";
  std::vector<std::string> models = {"vgg16", "resnet20"};
  std::vector<std::string> methods;
  std::vector<double> sparsities;
  std::vector<std::int64_t> seeds = {1, 2, 3};
  std::vector<std::int64_t> classes = {2, 5, 10};
  ConfigArguments config;  // of the runs: --set, --data-root, --threads
  bool json = false;
};

std::vector<std::string> or_else(const std::vector<std::string>& given, std::vector<std::string> preset) {
  return given.empty() ? preset : given;
}
std::vector<double> or_else(const std::vector<double>& given, std::vector<double> preset) {
  return given.empty() ? preset : given;
}

train::ConfigSources from_preset(const ReproducePhewArguments& a, const Context& context, const std::string& method,
                                 double sparsity, std::int64_t seed) {
  train::ConfigSources from = sources(a.config, context);
  from.preset = a.preset;
  from.flags.push_back({"reproduce", "method.name", method});
  from.flags.push_back({"reproduce", "run.seed", fmt::format("{}", seed)});
  from.flags.push_back({"reproduce", "sparsity.sparsity", fmt::format("{}", method == "dense" ? 0 : sparsity)});
  return from;
}

// ---- widths and traces ---------------------------------------------------------------------------------------------

/// Per layer: kept weights and width by each method; trace and flow of each network. No data are needed.
int structure(const ReproducePhewArguments& a, Context& context) {
  const auto methods =
      or_else(a.methods, {"phew", "uniform-walks", "synflow", "synflow-l2", "random", "magnitude-at-init"});
  train::Json out = train::Json::array();
  for (const std::string& model_name : a.models) {
    for (const double sparsity : or_else(a.sparsities, {0.98})) {
      for (const std::int64_t seed : a.seeds) {
        std::vector<std::vector<std::string>> widths = {{"width", "unpruned"}},
                                              totals = {{"method", "kept", "trace", "R"}};
        for (const std::string& method : methods) {
          train::ConfigSources from = sources(a.config, context);
          const auto flag = [&](const char* key, const std::string& value) {
            from.flags.push_back({"reproduce", key, value});
          };
          flag("model.name", model_name);
          flag("model.storage", "masked");
          flag("method.name", method);
          flag("sparsity.sparsity", fmt::format("{}", sparsity));
          flag("sparsity.distribution", "global");
          flag("run.seed", fmt::format("{}", seed));
          const train::RunConfig config = train::load_config(from);
          widths[0].push_back(method);
          std::optional<train::InitReport> report;
          try {
            const auto model = train::make_sparse_model(config, nn::meant_for(model_name), 10, {0, 1, 1});
            report = train::init_report(config, model);
          } catch (const Error& e) {  // a network that is cut is a result here
            if (e.kind() != ErrorKind::usage) throw;
            log_warning(fmt::format("{}, sparsity {}, {}: {}", model_name, sparsity, method, e.what()));
            totals.push_back({method, "cut", "-", "-"});
            out.push_back(
                {{"model", model_name}, {"sparsity", sparsity}, {"seed", seed}, {"method", method}, {"cut", true}});
            continue;
          }
          if (widths.size() == 1) {
            for (const auto& l : report->layers) {
              if (l.width) widths.push_back({l.name, fmt::format("{}", l.units)});
            }
          }
          std::size_t row = 1;
          for (const auto& l : report->layers) {
            if (!l.width) continue;
            widths[row].resize(widths[0].size() - 1, "-");
            widths[row++].push_back(fmt::format("{}", *l.width));
          }
          totals.push_back({method, fmt::format("{}", report->nnz), fmt::format("{:.4g}", report->trace),
                            fmt::format("{:.4g}", report->flow)});
          train::Json entry = {{"model", model_name}, {"sparsity", sparsity}, {"seed", seed}, {"method", method}};
          entry.update(train::to_json(*report));
          out.push_back(entry);
        }
        if (!a.json) {
          context.console.print(fmt::format("{}, sparsity {}, seed {}\n\n{}\n{}\n", model_name, sparsity, seed,
                                            columns(widths), columns(totals)));
        }
      }
    }
  }
  if (a.json)
    context.console.print(train::to_json_text(train::Json{{"experiment", "phew structure"}, {"networks", out}}));
  return 0;
}

// ---- accuracies ----------------------------------------------------------------------------------------------------

struct Finished {
  double test_accuracy = 0;
  std::vector<double> validation;  ///< after each evaluation
};

/// A signal has come: the run has its checkpoint.
struct Stopped {};

/// The run in this folder: as it was left if it is done, gone on with or begun otherwise.
Finished finished_run(const train::RunConfig& config, const fs::path& path) {
  log_info(fmt::format("run {}", path.string()));
  const auto summary = summary_of(config, path);
  if (!summary) throw Stopped();
  Finished run;
  run.test_accuracy = summary->at("test_accuracy").get<double>();
  std::ifstream metrics(path / "metrics.jsonl");
  for (std::string line; std::getline(metrics, line);) {
    const train::Json event = train::Json::parse(line);
    if (event.at("event") == "eval" && event.value("split", "") == "validation") {
      run.validation.push_back(event.at("accuracy").get<double>());
    }
  }
  return run;
}

std::optional<std::vector<Finished>> runs_of(const ReproducePhewArguments& a, Context& context,
                                             const std::string& method, double sparsity, const std::string& prefix,
                                             const std::vector<std::string>& set = {}) {
  std::vector<Finished> runs;
  for (const std::int64_t seed : a.seeds) {
    train::ConfigSources from = from_preset(a, context, method, sparsity, seed);
    from.set.insert(from.set.end(), set.begin(), set.end());
    const train::RunConfig config = train::load_config(from);
    try {
      runs.push_back(finished_run(config, fs::path(a.out) / fmt::format("{}{}-{}-{}", prefix, method, sparsity, seed)));
    } catch (const Error& e) {
      if (e.kind() != ErrorKind::usage || std::string(e.what()).find("the network is cut") == std::string::npos) throw;
      log_warning(fmt::format("{} at sparsity {}, seed {}: {}", method, sparsity, seed, e.what()));
      return std::nullopt;
    }
  }
  return runs;
}

std::vector<double> test_accuracies(const std::vector<Finished>& runs) {
  std::vector<double> list;
  for (const Finished& r : runs) list.push_back(r.test_accuracy);
  return list;
}

const std::vector<std::string> kCompared = {"dense", "phew",  "synflow", "synflow-l2",
                                            "snip",  "grasp", "random",  "magnitude-at-init"};

/// Test accuracy of each method at each sparsity, in per cent over the seeds, and validation accuracy after each epoch.
int accuracy(const ReproducePhewArguments& a, Context& context) {
  const auto sparsities = or_else(a.sparsities, {0.9, 0.95, 0.98});
  std::vector<std::vector<std::string>> table = {{"method"}}, speed = {{"method", "sparsity", "validation accuracy"}};
  for (const double s : sparsities) table[0].push_back(fmt::format("{}", s));
  train::Json out = train::Json::array();
  for (const std::string& method : or_else(a.methods, kCompared)) {
    table.push_back({method});
    for (const double s : sparsities) {
      if (method == "dense" && s != sparsities.front()) continue;
      const auto runs = runs_of(a, context, method, method == "dense" ? 0 : s, "");
      table.back().push_back(runs ? mean_and_deviation(test_accuracies(*runs)) : "cut");
      train::Json entry = {{"method", method}, {"sparsity", method == "dense" ? 0 : s}};
      entry["test_accuracy"] = runs ? train::Json(test_accuracies(*runs)) : train::Json(nullptr);
      if (runs) {
        std::string line;
        train::Json curve = train::Json::array();
        for (std::size_t e = 0; e < runs->front().validation.size(); ++e) {
          double mean = 0;
          for (const Finished& r : *runs) mean += r.validation.at(e) / static_cast<double>(runs->size());
          line += fmt::format("{}{:.1f}", line.empty() ? "" : " ", 100 * mean);
          curve.push_back(mean);
        }
        entry["validation_accuracy"] = curve;
        speed.push_back({method, fmt::format("{}", method == "dense" ? 0 : s), line});
      }
      out.push_back(entry);
    }
  }
  if (a.json)
    context.console.print(train::to_json_text(train::Json{{"experiment", "phew accuracy"}, {"runs", out}}));
  else
    context.console.print(fmt::format("test accuracy in per cent, preset {}, {} seeds\n\n{}\n{}", a.preset,
                                      a.seeds.size(), columns(table), columns(speed)));
  return 0;
}

/// The gap of PHEW to other methods against the number of classes: subsets of the classes of one data set.
int classes(const ReproducePhewArguments& a, Context& context) {
  const double sparsity = or_else(a.sparsities, {0.98}).front();
  const auto methods = or_else(a.methods, {"phew", "synflow", "snip", "grasp"});
  std::vector<std::vector<std::string>> table = {{"classes"}};
  for (const std::string& m : methods) table[0].push_back(m);
  train::Json out = train::Json::array();
  for (const std::int64_t n : a.classes) {
    table.push_back({fmt::format("{}", n)});
    for (const std::string& method : methods) {
      const auto runs =
          runs_of(a, context, method, sparsity, fmt::format("classes{}-", n), {fmt::format("data.classes={}", n)});
      table.back().push_back(runs ? mean_and_deviation(test_accuracies(*runs)) : "cut");
      out.push_back({{"classes", n}, {"method", method}, {"sparsity", sparsity}});
      out.back()["test_accuracy"] = runs ? train::Json(test_accuracies(*runs)) : train::Json(nullptr);
    }
  }
  if (a.json)
    context.console.print(train::to_json_text(train::Json{{"experiment", "phew classes"}, {"runs", out}}));
  else
    context.console.print(fmt::format("test accuracy in per cent, preset {}, sparsity {}, {} seeds\n\n{}", a.preset,
                                      sparsity, a.seeds.size(), columns(table)));
  return 0;
}

int run(const ReproducePhewArguments& a, Context& context) {
  try {
    if (a.part == "accuracy") return accuracy(a, context);
    if (a.part == "classes") return classes(a, context);
  } catch (const Stopped&) {
    return stopped();
  }
  return structure(a, context);
}

}  // namespace

void add_reproduce_phew_command(CLI::App& reproduce, Context& context) {
  auto a = std::make_shared<ReproducePhewArguments>();
  CLI::App* command = reproduce.add_subcommand("phew", "Pruning before training (Patil and Dovrolis 2021)");
  command
      ->add_option(
          "--part", a->part,
          "structure: widths of layers and traces of the path kernel, without data (default). accuracy: test "
          "accuracy against sparsity, and how fast it is reached. classes: accuracy against the number of classes")
      ->check(CLI::IsMember({"structure", "accuracy", "classes"}))
      ->option_text("PART");
  command->add_option("--models", a->models, "structure: networks (default vgg16,resnet20)")
      ->delimiter(',')
      ->option_text("NAME,...");
  command->add_option("--preset", a->preset, "accuracy, classes: the run that is varied (default mnist-lenet300-phew)")
      ->option_text("NAME");
  command->add_option("--methods", a->methods, "methods to compare")->delimiter(',')->option_text("NAME,...");
  command->add_option("--sparsity", a->sparsities, "shares of zeros (structure, classes 0.98; accuracy 0.9,0.95,0.98)")
      ->delimiter(',')
      ->option_text("SHARE,...");
  command->add_option("--seeds", a->seeds, "one run each (default 1,2,3)")->delimiter(',')->option_text("N,...");
  command->add_option("--classes", a->classes, "classes: how many (default 2,5,10)")
      ->delimiter(',')
      ->option_text("N,...");
  command
      ->add_option("--out", a->out,
                   "where runs are kept; those that are done are not run again (default runs/reproduce)")
      ->option_text("DIR");
  command->add_option("--set", a->config.set, "override a key of the runs, may be repeated: --set train.epochs=20")
      ->type_size(1)
      ->expected(1)
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->option_text("TABLE.KEY=VALUE ...");
  command->add_option("--data-root", a->config.data_root, "folder of the data sets")->option_text("DIR");
  command->add_option("--threads", a->config.threads, "compute threads; 0: all that the process may use")
      ->option_text("N");
  command->add_flag("--json", a->json, "one JSON document on standard output");
  command->footer(
      "Examples:\n"
      "  espalier reproduce phew\n"
      "  espalier reproduce phew --part accuracy --data-root DIR --set train.epochs=10");
  on_run(*command, context, [a, &context] { return run(*a, context); });
}

}  // namespace espalier::cli
