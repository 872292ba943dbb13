#include "run_commands.h"

#include <algorithm>
#include <csignal>
#include <fstream>
#include <sstream>

#include "espalier/core/error.h"
#include "espalier/train/json.h"
#include "espalier/train/sweep.h"

namespace espalier::cli {
namespace {

namespace fs = std::filesystem;
using train::RunConfig;

std::atomic<bool> stop_requested{false};
static_assert(std::atomic<bool>::is_always_lock_free);

void request_stop(int signal) {
  stop_requested = true;
  std::signal(signal, SIG_DFL);  // a second one does not wait for the checkpoint
}

}  // namespace

const std::atomic<bool>* stop_on_signals() {
  for (const int signal : {SIGTERM, SIGINT, SIGUSR1}) std::signal(signal, request_stop);
  return &stop_requested;
}

std::string read_text(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

std::string command_line() {
  std::string text = read_text("/proc/self/cmdline");
  for (char& c : text) c = c == '\0' ? ' ' : c;
  return text + "\n";
}

std::string input_text(const ConfigArguments& arguments) {
  std::string text;
  if (!arguments.preset.empty()) text += "# preset " + arguments.preset + "\n" + train::preset_text(arguments.preset);
  if (!arguments.file.empty() && arguments.file != "-") text += read_text(arguments.file);
  for (const auto& set : arguments.set) text += "# --set " + set + "\n";
  return text;
}

RunConfig resumed_config(const ConfigArguments& arguments, const std::vector<std::string>& allow_change,
                         const Context& context, const fs::path& run) {
  train::ConfigSources from_run;
  from_run.file = (run / "config.toml").string();
  const RunConfig saved = train::load_config(from_run);
  if (!arguments.given() && !arguments.overrides()) return saved;
  train::ConfigSources now = sources(arguments, context);
  if (!arguments.given()) now.file = from_run.file;
  const RunConfig wanted = train::load_config(now);
  std::string refused;
  for (const std::string& line : train::diff(saved, wanted)) {
    const std::string key = line.substr(0, line.find(':'));
    if (train::may_differ_on_resume(key) ||
        std::find(allow_change.begin(), allow_change.end(), key) != allow_change.end())
      continue;
    refused +=
        (refused.empty() ? "" : "\n") +
        fmt::format("resume: {} (the run in {} began with another value); add --allow-change {} if that is meant", line,
                    run.string(), key);
  }
  ESPALIER_CHECK(refused.empty(), ErrorKind::usage, "{}", refused);
  return wanted;
}

void add_allow_change(CLI::App& command, std::vector<std::string>& keys) {
  command.add_option("--allow-change", keys, "with --resume: this key may differ from the run's; may be repeated")
      ->option_text("TABLE.KEY")
      ->type_size(1)
      ->expected(1)
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
}

bool finished(const fs::path& run) {
  return fs::exists(run / "summary.json") && train::read_json(run / "summary.json").value("status", "") == "done";
}

}  // namespace espalier::cli
