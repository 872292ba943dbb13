#include "commands.h"

#include <algorithm>

#include "espalier/core/error.h"
#include "espalier/core/text.h"

namespace espalier::cli {

// In the order of `espalier --help`.
void add_commands(CLI::App& app, Context& context) {
  add_train_command(app, context);
  add_continual_command(app, context);
  add_eval_command(app, context);
  add_init_command(app, context);
  add_sweep_command(app, context);
  add_compare_command(app, context);
  add_prune_command(app, context);
  CLI::App* reproduce = app.add_subcommand("reproduce", "Run the experiments of a paper and put them in one table");
  reproduce->require_subcommand(1);
  add_reproduce_phew_command(*reproduce, context);
  add_reproduce_dpr_command(*reproduce, context);
  add_reproduce_adaptive_alpha_command(*reproduce, context);
  add_reproduce_epn_command(*reproduce, context);
  add_reproduce_sweeps(*reproduce, context);
  add_watch_command(app, context);
  add_report_command(app, context);
  add_inspect_command(app, context);
  add_data_command(app, context);
  add_config_command(app, context);
  add_list_command(app, context);
  add_bench_command(app, context);
  add_doctor_command(app, context);
}

namespace {

CLI::Option* add_text(CLI::App& command, const char* name, std::string& target, const char* help) {
  return command.add_option(name, target, help)->option_text("")->group("Configuration");
}

}  // namespace

void add_override_arguments(CLI::App& command, ConfigArguments& arguments) {
  command.add_option("--set", arguments.set, "override one key, may be repeated: --set reparam.alpha=2")
      ->type_size(1)
      ->expected(1)
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->option_text("TABLE.KEY=VALUE ...")
      ->group("Configuration");
  add_text(command, "--data-root", arguments.data_root,
           "folder of the data sets; otherwise data.root, then $ESPALIER_DATA")
      ->option_text("DIR");
  add_text(command, "--threads", arguments.threads, "compute threads; 0: all that the process may use")
      ->option_text("N");
}

void add_config_arguments(CLI::App& command, ConfigArguments& arguments) {
  add_text(command, "CONFIG", arguments.file, "configuration file, TOML or JSON; - reads standard input");
  add_text(command, "--preset", arguments.preset,
           "a configuration that comes with the program (espalier list presets); CONFIG overrides it")
      ->option_text("NAME");
  add_override_arguments(command, arguments);
  add_text(command, "--seed", arguments.seed, "seed of every random stream")->option_text("N");
}

train::ConfigSources sources(const ConfigArguments& arguments, const Context& context) {
  train::ConfigSources out;
  if (!arguments.preset.empty()) out.preset = arguments.preset;
  if (!arguments.file.empty()) out.file = arguments.file;
  out.environment = context.environment;
  out.set = arguments.set;
  const auto flag = [&](const char* name, const char* key, const std::string& value) {
    if (!value.empty()) out.flags.push_back({name, key, value});
  };
  flag("--data-root", "data.root", arguments.data_root);
  flag("--threads", "run.threads", arguments.threads);
  flag("--seed", "run.seed", arguments.seed);
  return out;
}

train::RunConfig load(const ConfigArguments& arguments, const Context& context) {
  ESPALIER_CHECK(arguments.given(), ErrorKind::usage,
                 "no configuration given; expected a file or --preset NAME (espalier list presets)");
  return train::load_config(sources(arguments, context));
}

void on_run(CLI::App& command, Context& context, std::function<int()> action) {
  command.callback([&context, action = std::move(action)] { context.action = action; });
}

std::string columns(const std::vector<std::vector<std::string>>& rows, const std::string& indent) {
  std::vector<std::size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], width_of(row[i]));
  }
  std::string out;
  for (const auto& row : rows) {
    std::string line = indent;
    for (std::size_t i = 0; i < row.size(); ++i) {
      line += row[i];
      if (i + 1 < row.size()) line += std::string(widths[i] - width_of(row[i]) + 2, ' ');
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + "\n";
  }
  return out;
}

std::string clock_text(double seconds) {
  const auto s = static_cast<std::int64_t>(seconds);
  return s >= 3600 ? fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
                   : fmt::format("{}:{:02}", s / 60, s % 60);
}

}  // namespace espalier::cli
