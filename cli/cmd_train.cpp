// espalier train: runs a configuration, or goes on with a run.
#include <chrono>
#include <ctime>
#include <filesystem>

#include "commands.h"
#include "espalier/core/error.h"
#include "espalier/train/durable_file.h"
#include "espalier/train/environment.h"
#include "espalier/train/run_directory.h"
#include "espalier/train/trainer.h"
#include "run_commands.h"

namespace espalier::cli {
namespace {

namespace fs = std::filesystem;
using train::RunConfig;

struct TrainArguments {
  ConfigArguments config;
  std::string run_dir, resume, structure_from, values_from;
  std::vector<std::string> allow_change;
  bool overwrite = false, json = false;
  double require_accuracy = -1;
};

/// The line of a terminal, redrawn ten times a second; elsewhere a message every half minute.
class ProgressLine {
 public:
  explicit ProgressLine(Console& console) : console_(console) {}
  ~ProgressLine() { console_.progress(""); }
  void operator()(const train::Progress& p) {
    const auto now = std::chrono::steady_clock::now();
    if (now - shown_ < std::chrono::milliseconds(console_.live() ? 100 : 30000)) return;
    shown_ = now;
    const std::string line =
        fmt::format("epoch {:.2f}/{:.4g}  step {}/{}  loss {:.4f}  acc {:.4f}  sparsity {:.4f}  {:.0f}/s  {} left",
                    static_cast<double>(p.step) / static_cast<double>(p.steps_per_epoch),
                    static_cast<double>(p.total_steps) / static_cast<double>(p.steps_per_epoch), p.step, p.total_steps,
                    p.loss, p.accuracy, p.sparsity, p.samples_per_second, clock_text(p.seconds_left));
    if (console_.live())
      console_.progress(line);
    else
      console_.message(LogLevel::info, line);
  }

 private:
  Console& console_;
  std::chrono::steady_clock::time_point shown_ = std::chrono::steady_clock::now();
};

/// The configuration of a new run. --structure-from FILE makes its method `given`; from a run, the method stays.
RunConfig started_config(const TrainArguments& arguments, const Context& context) {
  if (arguments.structure_from.empty() && arguments.values_from.empty()) return load(arguments.config, context);
  ESPALIER_CHECK(arguments.config.given(), ErrorKind::usage,
                 "--structure-from gives the masks, --values-from the weights, and a configuration the rest; give a "
                 "file or --preset NAME");
  train::ConfigSources from = sources(arguments.config, context);
  if (!arguments.structure_from.empty() && fs::is_directory(arguments.structure_from)) {
    from.flags.push_back({"--structure-from", "run.structure_from", arguments.structure_from});
  } else if (!arguments.structure_from.empty()) {
    from.flags.push_back({"--structure-from", "method.name", "given"});
    const std::string structure = fs::absolute(arguments.structure_from).lexically_normal().string();
    from.flags.push_back({"--structure-from", "method.structure", structure});
    from.flags.push_back({"--structure-from", "sparsity.sparsity", "0"});
  }
  if (!arguments.values_from.empty()) from.flags.push_back({"--values-from", "run.values_from", arguments.values_from});
  return train::load_config(from);
}

std::string verdict(const train::Json& s) {
  return fmt::format("done: test accuracy {:.4f}, sparsity {:.4f} ({} of {} weights kept), {:.1f} s of training",
                     s.at("test_accuracy").get<double>(), s.at("sparsity").get<double>(),
                     s.at("nnz").get<std::int64_t>(), s.at("weights").get<std::int64_t>(),
                     train::number_from_json(s.at("train_seconds")));
}

int show(const TrainArguments& arguments, Context& context, const train::Json& summary) {
  if (arguments.json) context.console.print(train::to_json_text(summary));
  if (arguments.require_accuracy < 0) return 0;
  const double accuracy = summary.at("test_accuracy").get<double>();
  ESPALIER_CHECK(accuracy >= arguments.require_accuracy, ErrorKind::check, "test accuracy {} is below the required {}",
                 accuracy, arguments.require_accuracy);
  return 0;
}

int run(const TrainArguments& arguments, Context& context) {
  ESPALIER_CHECK(arguments.resume.empty() || arguments.run_dir.empty() || arguments.resume == arguments.run_dir,
                 ErrorKind::usage,
                 "--run-dir {} and --resume {}: a run goes on in its own directory; give --resume alone",
                 arguments.run_dir, arguments.resume);
  ESPALIER_CHECK(!arguments.overwrite || arguments.resume.empty(), ErrorKind::usage,
                 "--overwrite and --resume exclude each other");
  const bool resume = !arguments.resume.empty() && fs::exists(fs::path(arguments.resume) / "config.toml");
  ESPALIER_CHECK(resume || arguments.resume.empty() || arguments.config.given(), ErrorKind::usage,
                 "{}: no run to resume (no config.toml there); with a configuration or --preset it would be started",
                 arguments.resume);

  ESPALIER_CHECK(!resume || (arguments.structure_from.empty() && arguments.values_from.empty()), ErrorKind::usage,
                 "--structure-from, --values-from and --resume: a run that goes on has both in its checkpoint");
  const RunConfig config = resume ? resumed_config(arguments.config, arguments.allow_change, context, arguments.resume)
                                  : started_config(arguments, context);
  ESPALIER_CHECK(
      config.continual.sequence == "none", ErrorKind::usage,
      "[continual].sequence is \"{}\": this configuration describes a sequence of tasks; run it with espalier "
      "continual",
      config.continual.sequence);
  set_threads(static_cast<int>(config.run.threads));
  const std::string text = train::to_toml(config);
  const auto directory_of = [&]() -> train::RunDirectory {
    if (resume) return train::RunDirectory::open(arguments.resume);
    const std::string named = arguments.run_dir.empty() ? arguments.resume : arguments.run_dir;
    const fs::path path = named.empty() ? train::default_run_path("runs", config.run.name, config.model.name,
                                                                  config.method.name(), text, std::time(nullptr))
                                        : fs::path(named);
    train::Json env = to_json(environment());
    env["seed"] = config.run.seed;
    return train::RunDirectory::create(path, {text, input_text(arguments.config), command_line(), env},
                                       arguments.overwrite);
  };
  train::RunDirectory directory = directory_of();
  context.console.log_to(directory.log());
  if (resume) {
    if (finished(directory.path()) && text == read_text(directory.config())) {
      log_info(fmt::format("{}: the run is finished already", directory.path().string()));
      return show(arguments, context, train::read_json(directory.summary()));
    }
    if (text != read_text(directory.config())) train::write_file_atomically(directory.config(), text);
  }
  log_info(fmt::format("run directory {}; {} threads", directory.path().string(), at::get_num_threads()));

  ProgressLine line(context.console);
  train::TrainHooks hooks;
  hooks.progress = [&](const train::Progress& p) { line(p); };
  hooks.stop = stop_on_signals();
  const train::TrainResult result = train::train(config, directory, hooks);
  context.console.progress("");
  if (result.outcome == train::Outcome::stopped) {
    log_info(fmt::format("stopped by a signal at step {}, checkpoint written; go on with: espalier train --resume {}",
                         result.summary.at("steps").get<std::int64_t>(), directory.path().string()));
    if (arguments.json) context.console.print(train::to_json_text(result.summary));
    return kStoppedBySignal;
  }
  log_info(verdict(result.summary));
  return show(arguments, context, result.summary);
}

}  // namespace

void add_train_command(CLI::App& app, Context& context) {
  auto arguments = std::make_shared<TrainArguments>();
  CLI::App* command = app.add_subcommand("train", "Train a network, or go on with a run");
  add_config_arguments(*command, arguments->config);
  command->add_option("--run-dir", arguments->run_dir, "where the run is written; otherwise a new folder under runs/")
      ->option_text("DIR");
  command
      ->add_option(
          "--resume", arguments->resume,
          "go on with the run in DIR from its latest checkpoint, to the same bits as if it had never stopped; with a "
          "configuration, start it there if there is none yet")
      ->option_text("DIR");
  command
      ->add_option(
          "--structure-from", arguments->structure_from,
          "DIR: start with the masks of that run (or checkpoint): run.structure_from. FILE: train with the masks "
          "(and from the weights, if it has them) of this safetensors file, as espalier init writes it; short "
          "for method.name = given")
      ->option_text("DIR|FILE");
  add_allow_change(*command, arguments->allow_change);
  command
      ->add_option("--values-from", arguments->values_from,
                   "start with the values of the run (or checkpoint) in DIR; DIR@0: with those that it started from: "
                   "run.values_from")
      ->option_text("DIR[@0]");
  command->add_flag("--overwrite", arguments->overwrite, "remove the run that is in the directory first");
  command->add_flag("--json", arguments->json, "print summary.json on standard output");
  command
      ->add_option("--require-accuracy", arguments->require_accuracy,
                   "exit status 4 if the test accuracy is below this share")
      ->option_text("SHARE")
      ->check(CLI::Range(0.0, 1.0));
  command->footer(
      "Examples:\n"
      "  espalier train --preset glyphs-demo\n"
      "  espalier train --preset mnist-ann --set reparam.alpha=1.5 --data-root DIR --json\n"
      "  espalier train my.toml --run-dir runs/mine\n"
      "  espalier train --resume runs/mine");
  on_run(*command, context, [arguments, &context] { return run(*arguments, context); });
}

}  // namespace espalier::cli
