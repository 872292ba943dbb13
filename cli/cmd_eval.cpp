// espalier eval: the accuracy of a trained run, of other weights in its model, or of the tasks of a packed network.
#include <algorithm>
#include <filesystem>
#include <optional>

#include "commands.h"
#include "espalier/continual/evaluate.h"
#include "espalier/core/error.h"
#include "espalier/train/environment.h"
#include "espalier/train/experiment.h"
#include "espalier/train/json.h"

namespace espalier::cli {
namespace {

struct EvalArguments {
  std::string run, weights, split = "test", data_root;
  bool best = false, json = false, infer_task = false;
  int threads = 0;
  std::optional<std::int64_t> task;
  double require_accuracy = -1;
};

namespace fs = std::filesystem;

/// The packed file that is meant, or "" for a run of one task.
std::string pack_of(const EvalArguments& a) {
  if (fs::is_regular_file(a.run)) return a.run;
  const fs::path inside = fs::path(a.run) / "pack.safetensors";
  return fs::is_regular_file(inside) ? inside.string() : "";
}

/// Of one task, or of all.
int eval_pack(const EvalArguments& a, Context& context, const std::string& file) {
  ESPALIER_CHECK(a.weights.empty() && !a.best, ErrorKind::usage,
                 "{}: is a packed network: --weights and --best belong to runs of one task", file);
  const continual::Pack pack = continual::load_pack(file);
  const auto count = static_cast<std::int64_t>(pack.tasks.size());
  ESPALIER_CHECK(count > 0, ErrorKind::usage, "{}: no task has been learnt yet", file);
  if (a.task) continual::task_network(pack, *a.task);  // names those that there are
  ESPALIER_CHECK(a.split == "test" || !a.infer_task, ErrorKind::usage, "--infer-task looks at test splits");

  continual::TaskData data(a.data_root);
  std::vector<std::unique_ptr<data::Loader>> splits;
  std::vector<std::int64_t> numbers;
  for (std::int64_t t = 1; t <= count; ++t) {
    if (a.task && t != *a.task && !a.infer_task) continue;
    const continual::TaskSource& source = pack.tasks[static_cast<std::size_t>(t - 1)].source;
    const auto of_task = data.of(source, pack.config, pack.input);
    ESPALIER_CHECK(a.split != "validation" || of_task->has_validation(), ErrorKind::usage,
                   "task {} has no validation split ([data].validation = 0); use --split test", t);
    numbers.push_back(t);
    splits.emplace_back(new data::Loader(a.split == "test"         ? of_task->test_batches()
                                         : a.split == "validation" ? of_task->validation_batches()
                                                                   : of_task->train_samples()));
  }
  train::Json rows = train::Json::array();
  std::vector<std::vector<std::string>> table;
  double mean = 0;
  if (a.infer_task) {
    std::vector<const data::Loader*> tests;
    for (const auto& split : splits) tests.push_back(split.get());
    const data::DataOptions& first = pack.tasks.front().source.data;
    const bool same_labels = std::all_of(pack.tasks.begin(), pack.tasks.end(), [&](const auto& task) {
      return task.source.sequence != "split" && task.source.data.name == first.name;
    });
    const auto found = continual::infer_tasks(pack, tests, same_labels);
    table.push_back({"task", "told apart", "accuracy", ""});
    continual::Inference all;
    for (std::size_t i = 0; i < found.size(); ++i) {
      if (a.task && numbers[i] != *a.task) continue;
      const std::string name = pack.tasks[i].source.text();
      rows.push_back({{"task", numbers[i]},
                      {"name", name},
                      {"task_accuracy", found[i].task_accuracy()},
                      {"accuracy", found[i].accuracy()},
                      {"samples", found[i].samples}});
      table.push_back({fmt::format("{}", numbers[i]), fmt::format("{:.4f}", found[i].task_accuracy()),
                       fmt::format("{:.4f}", found[i].accuracy()), name});
      all.samples += found[i].samples;
      all.task_right += found[i].task_right;
      all.label_right += found[i].label_right;
    }
    mean = all.accuracy();
    table.push_back({"all", fmt::format("{:.4f}", all.task_accuracy()), fmt::format("{:.4f}", mean), ""});
    if (a.json) {
      context.console.print(train::to_json_text(train::Json{{"pack", file},
                                                            {"inferred_by", "lowest entropy"},
                                                            {"task_accuracy", all.task_accuracy()},
                                                            {"accuracy", mean},
                                                            {"tasks", rows}}));
    }
  } else {
    table.push_back({"task", a.split + " accuracy", "loss", ""});
    for (std::size_t i = 0; i < splits.size(); ++i) {
      const auto network = continual::task_network(pack, numbers[i]);
      const train::Evaluation e = continual::evaluate(*network, *splits[i]);
      const std::string name = pack.tasks[static_cast<std::size_t>(numbers[i] - 1)].source.text();
      mean += e.accuracy() / static_cast<double>(splits.size());
      rows.push_back({{"task", numbers[i]},
                      {"name", name},
                      {"split", a.split},
                      {"accuracy", e.accuracy()},
                      {"loss", e.loss()},
                      {"correct", e.correct},
                      {"samples", e.samples}});
      table.push_back(
          {fmt::format("{}", numbers[i]), fmt::format("{:.4f}", e.accuracy()), fmt::format("{:.4f}", e.loss()), name});
    }
    if (splits.size() > 1) table.push_back({"mean", fmt::format("{:.4f}", mean), "", ""});
    if (a.json) {
      context.console.print(
          train::to_json_text(train::Json{{"pack", file}, {"split", a.split}, {"accuracy", mean}, {"tasks", rows}}));
    }
  }
  if (!a.json) context.console.print(columns(table));
  ESPALIER_CHECK(a.require_accuracy < 0 || mean >= a.require_accuracy, ErrorKind::check,
                 "accuracy {} is below the required {}", mean, a.require_accuracy);
  return 0;
}

int run(const EvalArguments& a, Context& context) {
  set_threads(a.threads);
  if (const std::string file = pack_of(a); !file.empty()) return eval_pack(a, context, file);
  ESPALIER_CHECK(!a.task && !a.infer_task, ErrorKind::usage,
                 "{}: no packed network here (a .safetensors file of espalier continual, or a run directory with "
                 "pack.safetensors); --task and --infer-task need one",
                 a.run);
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
  auto a = std::make_shared<EvalArguments>();
  CLI::App* command = app.add_subcommand("eval", "Measure the accuracy of a trained run");
  command->add_option("RUN", a->run, "run directory, one of its checkpoints, or a packed network")
      ->required()
      ->option_text("");
  command->add_option("--split", a->split, "test, validation or train (as it is, without augmentation)")
      ->check(CLI::IsMember({"test", "validation", "train"}))
      ->option_text("NAME");
  command->add_flag("--best", a->best, "the best checkpoint by validation accuracy instead of the latest");
  command->add_option("--weights", a->weights, "weights from this safetensors file, in the run's model")
      ->option_text("FILE");
  command->add_option("--task", a->task, "of a packed network: this task alone, from 1; without it, every task")
      ->option_text("N");
  command->add_flag("--infer-task", a->infer_task,
                    "of a packed network: each input goes to the task whose prediction has the lowest entropy");
  command->add_option("--data-root", a->data_root, "folder of the data sets")->option_text("DIR");
  command->add_option("--threads", a->threads, "compute threads; 0: all that the process may use")->option_text("N");
  command->add_option("--require-accuracy", a->require_accuracy, "exit status 4 if the accuracy is below this share")
      ->check(CLI::Range(0.0, 1.0))
      ->option_text("SHARE");
  command->add_flag("--json", a->json, "one JSON document on standard output");
  command->footer(
      "Examples:\n  espalier eval runs/mine\n  espalier eval runs/mine --weights pruned.safetensors --json\n"
      "  espalier eval runs/epn/pack.safetensors --task 3\n  espalier eval runs/epn --infer-task");
  on_run(*command, context, [a, &context] { return run(*a, context); });
}

}  // namespace espalier::cli
