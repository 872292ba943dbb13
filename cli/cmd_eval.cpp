// espalier eval: the accuracy of a trained run, or of other weights in its model.
#include "commands.h"
#include "espalier/core/error.h"
#include "espalier/train/environment.h"
#include "espalier/train/experiment.h"
#include "espalier/train/json.h"

namespace espalier::cli {
namespace {

struct Arguments {
  std::string run, weights, split = "test", data_root;
  bool best = false, json = false;
  int threads = 0;
  double require_accuracy = -1;
};

int run(const Arguments& a, Context& context) {
  set_threads(a.threads);
  train::LoadedRun loaded = train::load_run(a.run, a.best);
  if (!a.data_root.empty()) loaded.config.data.root = a.data_root;
  const train::RunData data(loaded.config);
  ESPALIER_CHECK(a.split != "validation" || data.has_validation(), ErrorKind::usage,
                 "the run has no validation split ([data].validation = 0); use --split test");
  const Clock clock = train::planned_clock(loaded.config.train, data.train_batches().batches_per_epoch());
  train::SparseModel model = train::restore_model(loaded, data.input_shape(), data.dataset().num_classes(), clock);
  if (!a.weights.empty()) train::load_state_dict(*model.network, train::load_safetensors(a.weights).tensors, a.weights);
  const train::Evaluation e = train::evaluate(*model.network, a.split == "test"         ? data.test_batches()
                                                              : a.split == "validation" ? data.validation_batches()
                                                                                        : data.train_samples());
  if (a.json) {
    context.console.print(train::to_json_text(train::Json{{"run", loaded.directory.string()},
                                                          {"step", loaded.checkpoint.step},
                                                          {"split", a.split},
                                                          {"accuracy", e.accuracy()},
                                                          {"loss", e.loss()},
                                                          {"correct", e.correct},
                                                          {"samples", e.samples}}));
  } else {
    context.console.print(fmt::format("{} accuracy {:.4f} ({} of {}), loss {:.4f}\n", a.split, e.accuracy(), e.correct,
                                      e.samples, e.loss()));
  }
  ESPALIER_CHECK(a.require_accuracy < 0 || e.accuracy() >= a.require_accuracy, ErrorKind::check,
                 "{} accuracy {} is below the required {}", a.split, e.accuracy(), a.require_accuracy);
  return 0;
}

}  // namespace

void add_eval_command(CLI::App& app, Context& context) {
  auto a = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand("eval", "Measure the accuracy of a trained run");
  command->add_option("RUN", a->run, "run directory, or one of its checkpoints")->required()->option_text("");
  command->add_option("--split", a->split, "test, validation or train (as it is, without augmentation)")
      ->check(CLI::IsMember({"test", "validation", "train"}))
      ->option_text("NAME");
  command->add_flag("--best", a->best, "the best checkpoint by validation accuracy instead of the latest");
  command->add_option("--weights", a->weights, "weights from this safetensors file, in the run's model")
      ->option_text("FILE");
  command->add_option("--data-root", a->data_root, "folder of the data sets")->option_text("DIR");
  command->add_option("--threads", a->threads, "compute threads; 0: all that the process may use")->option_text("N");
  command->add_option("--require-accuracy", a->require_accuracy, "exit status 4 if the accuracy is below this share")
      ->check(CLI::Range(0.0, 1.0))
      ->option_text("SHARE");
  command->add_flag("--json", a->json, "one JSON document on standard output");
  command->footer(
      "Examples:\n  espalier eval runs/mine\n  espalier eval runs/mine --weights pruned.safetensors --json");
  on_run(*command, context, [a, &context] { return run(*a, context); });
}

}  // namespace espalier::cli
