/// The frame of the program. A command is one file, cmd_<name>.cpp, with one function
///
///   void add_<name>_command(CLI::App& app, Context& context);
///
/// declared below and listed in commands.cpp. It adds a subcommand to `app`, keeps its arguments in a shared struct,
/// and says what to run:
///
///   struct Arguments { ConfigArguments config; bool json = false; };
///   void add_train_command(CLI::App& app, Context& context) {
///     auto arguments = std::make_shared<Arguments>();
///     CLI::App* command = app.add_subcommand("train", "Train a network");
///     add_config_arguments(*command, arguments->config);
///     command->add_flag("--json", arguments->json, "print summary.json on standard output");
///     command->footer("Examples:\n  espalier train --preset mnist-ann --set reparam.alpha=1.5");
///     on_run(*command, context, [arguments, &context] {
///       const train::RunConfig config = load(arguments->config, context);
///       …
///       context.console.print(text);  // results only; log_info / log_warning for people
///       return 0;                     // the exit status
///     });
///   }
///
/// Errors: throw espalier::Error; its kind is the exit status, its text goes to standard error as "error: …".
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "console.h"
#include "espalier/train/run_config.h"

namespace espalier::cli {

struct Context {
  Console& console;
  std::map<std::string, std::string> environment;
  std::function<int()> action;  ///< what the command line asked for
};

/// The arguments that choose a configuration, the same for every command that needs one.
struct ConfigArguments {
  std::string file;
  std::string preset;
  std::vector<std::string> set;
  std::string data_root, threads, seed;  ///< texts: the configuration checks them like any other value
  bool given() const { return !file.empty() || !preset.empty(); }
  bool overrides() const { return !set.empty() || !data_root.empty() || !threads.empty() || !seed.empty(); }
};

/// Adds CONFIG, --preset, --set, --data-root, --threads, --seed.
void add_config_arguments(CLI::App& command, ConfigArguments& arguments);

/// Adds --set, --data-root and --threads alone, for commands that bring their configurations along.
void add_override_arguments(CLI::App& command, ConfigArguments& arguments);

/// Where the configuration comes from, for load_config; commands may add flags of their own.
train::ConfigSources sources(const ConfigArguments& arguments, const Context& context);

/// The configuration. Throws Error(usage) if neither a file nor a preset is given.
train::RunConfig load(const ConfigArguments& arguments, const Context& context);

/// `action` runs after the whole command line has been read, and returns the exit status.
void on_run(CLI::App& command, Context& context, std::function<int()> action);

/// Rows of cells as lines; columns are as wide as their widest cell, the last is left ragged.
std::string columns(const std::vector<std::vector<std::string>>& rows, const std::string& indent = "");

/// "3:07", "2:00:00"
std::string clock_text(double seconds);

void add_commands(CLI::App& app, Context& context);

void add_train_command(CLI::App& app, Context& context);
void add_continual_command(CLI::App& app, Context& context);
void add_eval_command(CLI::App& app, Context& context);
void add_init_command(CLI::App& app, Context& context);
void add_prune_command(CLI::App& app, Context& context);
void add_report_command(CLI::App& app, Context& context);
void add_inspect_command(CLI::App& app, Context& context);
void add_data_command(CLI::App& app, Context& context);
void add_config_command(CLI::App& app, Context& context);
void add_bench_command(CLI::App& app, Context& context);
void add_doctor_command(CLI::App& app, Context& context);
void add_reproduce_phew_command(CLI::App& reproduce, Context& context);
void add_reproduce_dpr_command(CLI::App& reproduce, Context& context);
void add_reproduce_adaptive_alpha_command(CLI::App& reproduce, Context& context);
void add_sweep_command(CLI::App& app, Context& context);
void add_compare_command(CLI::App& app, Context& context);
void add_watch_command(CLI::App& app, Context& context);
void add_reproduce_sweeps(CLI::App& reproduce, Context& context);
void add_reproduce_epn_command(CLI::App& reproduce, Context& context);
void add_list_command(CLI::App& app, Context& context);

}  // namespace espalier::cli
