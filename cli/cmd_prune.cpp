// espalier prune: the accuracy of a trained run against the share of its weights that is kept.
#include <filesystem>

#include "commands.h"
#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/train/durable_file.h"
#include "espalier/train/environment.h"
#include "espalier/train/json.h"
#include "espalier/train/prune.h"
#include "espalier/train/safetensors.h"

namespace espalier::cli {
namespace {

namespace fs = std::filesystem;

struct PruneArguments {
  std::string run, data_root, save, retrain = "0it";
  std::vector<double> keep, sparsity;
  bool best = false, json = false;
  int threads = 0;
  train::PruneOptions options;
};

/// Beside the run, for `espalier report`: prune/<split>-<distribution>[-retrained].json. Pruning is no less done where
/// the folder of the run can't be written.
void keep(const train::Json& result, const fs::path& run, const train::PruneOptions& options) {
  const fs::path file =
      run / "prune" /
      fmt::format("{}-{}{}.json", options.split, options.distribution, options.retrain.count() > 0 ? "-retrained" : "");
  try {
    fs::create_directories(file.parent_path());
    train::write_file_atomically(file, train::to_json_text(result));
  } catch (const std::exception& e) {
    log_warning(fmt::format("espalier report will not know this: {}", e.what()));
  }
}

int run(PruneArguments arguments, Context& context) {
  ESPALIER_CHECK(arguments.keep.empty() || arguments.sparsity.empty(), ErrorKind::usage,
                 "--keep and --sparsity are two ways to say the same; give one");
  train::PruneOptions& options = arguments.options;
  options.keep = arguments.keep;
  for (const double s : arguments.sparsity) {
    ESPALIER_CHECK(s >= 0 && s <= 1, ErrorKind::usage, "--sparsity {} is out of range; expected in [0, 1]", s);
    options.keep.push_back(1 - s);
  }
  if (options.keep.empty()) options.keep = train::geometric_space(0.01, 1, 20);
  options.retrain = Duration::parse(arguments.retrain);
  ESPALIER_CHECK(arguments.save.empty() || options.keep.size() == 1, ErrorKind::usage,
                 "--save writes one network; give one --keep or --sparsity, not {}", options.keep.size());

  set_threads(arguments.threads);
  train::LoadedRun loaded = train::load_run(arguments.run, arguments.best);
  if (!arguments.data_root.empty()) loaded.config.data.root = arguments.data_root;
  train::Json rows = train::Json::array();
  std::vector<std::vector<std::string>> table = {{"kept", "sparsity", "weights", "accuracy", "loss"}};
  if (options.retrain.count() > 0) table[0].insert(table[0].begin() + 3, "before retraining");
  train::prune_curve(loaded, options, [&](const train::PrunePoint& p, const train::SparseModel& model) {
    const double sparsity = 1 - static_cast<double>(p.nnz) / static_cast<double>(p.weights);
    rows.push_back({{"keep", p.keep},
                    {"sparsity", sparsity},
                    {"nnz", p.nnz},
                    {"weights", p.weights},
                    {"layer_nnz", p.layer_nnz},
                    {"accuracy", p.evaluation.accuracy()},
                    {"loss", p.evaluation.loss()},
                    {"accuracy_before_retraining", p.before_retraining.accuracy()},
                    {"samples", p.evaluation.samples}});
    std::vector<std::string> row = {fmt::format("{:.4g}", p.keep), fmt::format("{:.4f}", sparsity),
                                    fmt::format("{}", p.nnz), fmt::format("{:.4f}", p.evaluation.accuracy()),
                                    fmt::format("{:.4f}", p.evaluation.loss())};
    if (options.retrain.count() > 0) row.insert(row.begin() + 3, fmt::format("{:.4f}", p.before_retraining.accuracy()));
    table.push_back(row);
    context.console.progress(fmt::format("kept {:.4g}: accuracy {:.4f}", p.keep, p.evaluation.accuracy()));
    if (!arguments.save.empty()) {
      auto metadata = train::state_metadata(model);
      metadata["tool"] = "espalier";
      train::save_safetensors(arguments.save, train::state_dict(model), metadata);
    }
  });
  context.console.progress("");
  const train::Json result = {
      {"run", loaded.directory.string()},     {"step", loaded.checkpoint.step},    {"split", options.split},
      {"distribution", options.distribution}, {"retrain", options.retrain.text()}, {"points", rows}};
  keep(result, loaded.directory, options);
  if (arguments.json) {
    context.console.print(train::to_json_text(result));
  } else {
    context.console.print(columns(table));
  }
  return 0;
}

}  // namespace

void add_prune_command(CLI::App& app, Context& context) {
  auto a = std::make_shared<PruneArguments>();
  CLI::App* command = app.add_subcommand("prune", "Prune a trained run to several sparsities: accuracy at each");
  command->add_option("RUN", a->run, "run directory, or one of its checkpoints")->required()->option_text("");
  command
      ->add_option(
          "--keep", a->keep,
          "shares of the weights to keep, e.g. 0.01,0.1,1 (default: 20 from 0.01 to 1, a constant factor apart)")
      ->delimiter(',')
      ->option_text("SHARE,...");
  command->add_option("--sparsity", a->sparsity, "the same as shares of zeros, e.g. 0.9,0.95,0.99")
      ->delimiter(',')
      ->option_text("SHARE,...");
  command
      ->add_option("--distribution", a->options.distribution,
                   "how layers share what is kept: uniform, er, erk; global ranks all weights together; notebook keeps "
                   "int(p n) of "
                   "each layer and twice that of the last (Powerpropagation notebook)")
      ->check(CLI::IsMember({"uniform", "er", "erk", "global", "notebook"}))
      ->option_text("NAME");
  command->add_option("--retrain", a->retrain, "train the kept weights for so long before measuring, e.g. 1ep or 500it")
      ->option_text("DURATION");
  command
      ->add_option("--retrain-lr", a->options.retrain_lr,
                   "constant learning rate of retraining (default: a tenth of the run's)")
      ->check(CLI::PositiveNumber)
      ->option_text("LR");
  command->add_option("--split", a->options.split, "where accuracy is measured: test, validation, train")
      ->check(CLI::IsMember({"test", "validation", "train"}))
      ->option_text("NAME");
  command->add_flag("--best", a->best, "the best checkpoint by validation accuracy instead of the latest");
  command->add_option("--save", a->save, "write the pruned network (weights and masks) to this safetensors file")
      ->option_text("FILE");
  command->add_option("--data-root", a->data_root, "folder of the data sets")->option_text("DIR");
  command->add_option("--threads", a->threads, "compute threads; 0: all that the process may use")->option_text("N");
  command->add_flag("--json", a->json, "one JSON document on standard output");
  command->footer(
      "Examples:\n"
      "  espalier prune runs/mine\n"
      "  espalier prune runs/mine --sparsity 0.9,0.95,0.99 --distribution global --retrain 1ep\n"
      "  espalier prune runs/mine --keep 0.1 --save pruned.safetensors");
  on_run(*command, context, [a, &context] { return run(*a, context); });
}

}  // namespace espalier::cli
