// espalier sweep: a grid or a list of configurations, each a run of its own.
#include <filesystem>

#include "commands.h"
#include "espalier/core/error.h"
#include "espalier/train/durable_file.h"
#include "sweep_runner.h"

namespace espalier::cli {
namespace {

namespace fs = std::filesystem;

struct SweepCommandArguments {
  ConfigArguments config;
  SweepArguments sweep;
  std::vector<std::string> grid;
};

/// runs/<stem of the file>, or runs/sweep-<preset>-<CRC-32 of what is varied>.
fs::path default_directory(const SweepCommandArguments& arguments) {
  if (!arguments.config.file.empty()) return fs::path("runs") / fs::path(arguments.config.file).stem();
  std::string varied = arguments.config.preset;
  for (const auto& text : arguments.grid) varied += "\n" + text;
  for (const auto& text : arguments.config.set) varied += "\n" + text;
  return fs::path("runs") / fmt::format("sweep-{}-{:08x}", arguments.config.preset, train::digest_of(varied).crc32);
}

int run(const SweepCommandArguments& arguments, Context& context) {
  ESPALIER_CHECK(arguments.config.given() || !arguments.grid.empty() || !arguments.sweep.seeds.empty(),
                 ErrorKind::usage, "nothing to run; expected SWEEP.toml, or --preset NAME and --sweep KEY=A,B");
  ESPALIER_CHECK(arguments.config.seed.empty(), ErrorKind::usage,
                 "--seed: a sweep has --seeds, e.g. --seeds 3, or --seeds 1,5,7");
  train::SweepSources all;
  all.config = sources(arguments.config, context);
  all.grid = arguments.grid;
  std::string input;
  if (!arguments.config.file.empty() && fs::is_regular_file(arguments.config.file))
    input = train::read_file(arguments.config.file);
  const auto note = [&](const char* flag, const std::string& value) {
    if (!value.empty()) input += fmt::format("# {} {}\n", flag, value);
  };
  note("--preset", arguments.config.preset);
  for (const auto& text : arguments.grid) note("--sweep", text);
  for (const auto& text : arguments.config.set) note("--set", text);
  note("--seeds", arguments.sweep.seeds);
  const fs::path dir = arguments.sweep.dir.empty() ? default_directory(arguments) : fs::path(arguments.sweep.dir);
  return run_sweep(all, arguments.sweep, dir, input, context);
}

}  // namespace

void add_sweep_command(CLI::App& app, Context& context) {
  auto arguments = std::make_shared<SweepCommandArguments>();
  CLI::App* command =
      app.add_subcommand("sweep", "Train a grid or a list of configurations, several at once, and compare them");
  add_config_arguments(*command, arguments->config);
  command
      ->add_option("--sweep", arguments->grid,
                   "a key and its values, may be repeated: every combination is run. Lists in brackets: "
                   "model.widths=[300],[300,100]")
      ->option_text("TABLE.KEY=A,B,...")
      ->type_size(1)
      ->expected(1)
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->group("Sweep");
  add_sweep_arguments(*command, arguments->sweep, "runs/<name of the file>");
  command->footer(
      "CONFIG may have a table [sweep] (docs/sweeps.md):\n"
      "  [sweep]\n"
      "  seeds = 3\n"
      "  [sweep.grid]\n"
      "  reparam.alpha = [1.0, 1.5, 2.0]\n"
      "Finished cells are not run again, interrupted ones go on from their checkpoint: repeat the same command.\n"
      "Exit status: 0 every cell is done; 75 stopped by a signal; otherwise that of the cells that failed, or 1.\n"
      "Examples:\n"
      "  espalier sweep my.toml --jobs 2\n"
      "  espalier sweep --preset mnist-ann --sweep reparam.alpha=1,1.25,1.5,4 --seeds 3 --data-root DIR\n"
      "  espalier compare runs/my --sort test_accuracy --descending");
  on_run(*command, context, [arguments, &context] { return run(*arguments, context); });
}

}  // namespace espalier::cli
