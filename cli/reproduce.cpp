#include "reproduce.h"

#include <algorithm>

#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/report/compare.h"
#include "espalier/train/durable_file.h"
#include "espalier/train/environment.h"
#include "espalier/train/sweep.h"
#include "run_commands.h"

namespace espalier::cli {
namespace {

namespace fs = std::filesystem;

/// The keys in which the run in this folder was begun otherwise.
std::vector<std::string> differences(const fs::path& saved, const train::RunConfig& config) {
  train::ConfigSources sources;
  sources.file = saved.string();
  std::vector<std::string> out;
  for (const auto& line : train::diff(train::load_config(sources), config))
    if (!train::may_differ_on_resume(line.substr(0, line.find(':')))) out.push_back(line);
  return out;
}

}  // namespace

bool ArmsArguments::wants(const std::string& arm) const {
  return arms.empty() || std::find(arms.begin(), arms.end(), arm) != arms.end();
}

void add_arms_arguments(CLI::App& command, ArmsArguments& arguments, const std::string& default_dir,
                        const std::string& arm_help) {
  arguments.dir = default_dir;
  add_config_arguments(command, arguments.config);
  command.add_option("--dir", arguments.dir, "where the runs are written; otherwise " + default_dir)
      ->option_text("DIR");
  command.add_option("--seeds", arguments.seeds, "runs of each arm, with the seeds 1, 2, … (default 3)")
      ->option_text("N");
  command.add_option("--arm", arguments.arms, arm_help)
      ->option_text("NAME")
      ->type_size(1)
      ->expected(1)
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command.add_flag("--json", arguments.json, "print results.json on standard output");
}

void check_arms(const ArmsArguments& arguments, const std::vector<std::string>& known) {
  ESPALIER_CHECK(arguments.seeds >= 1, ErrorKind::usage, "--seeds {}: expected at least 1", arguments.seeds);
  ESPALIER_CHECK(arguments.config.seed.empty(), ErrorKind::usage,
                 "--seed: the runs have the seeds 1, 2, … of --seeds; leave it out");
  for (const auto& name : arguments.arms) {
    ESPALIER_CHECK(std::find(known.begin(), known.end(), name) != known.end(), ErrorKind::usage,
                   "--arm {}: unknown. Known: {}.{}", name, fmt::join(known, ", "), suggestion(name, known));
  }
}

std::optional<train::Json> summary_of(const train::RunConfig& config, const fs::path& path, const Training& training) {
  set_threads(static_cast<int>(config.run.threads));
  const fs::path saved = path / "config.toml";
  const bool begun = fs::exists(saved);
  if (begun) {
    const auto different = differences(saved, config);
    ESPALIER_CHECK(different.empty(), ErrorKind::usage,
                   "{}: holds a run with another configuration ({}); give another folder, or remove it", path.string(),
                   fmt::join(different, "; "));
    if (finished(path)) return train::read_json(path / "summary.json");
  }
  train::Json env = to_json(environment());
  env["seed"] = config.run.seed;
  train::RunDirectory directory =
      begun ? train::RunDirectory::open(path)
            : train::RunDirectory::create(path, {train::to_toml(config), "", "espalier reproduce\n", env}, false);
  const std::atomic<bool>* stop = stop_on_signals();
  train::TrainHooks hooks;
  hooks.stop = stop;
  const train::TrainResult result =
      training ? training(config, directory, stop) : train::train(config, directory, hooks);
  if (result.outcome == train::Outcome::stopped) return std::nullopt;
  return result.summary;
}

int stopped() {
  log_info("stopped by a signal; the same command goes on");
  return kStoppedBySignal;
}

std::string mean_and_deviation(const std::vector<double>& shares, int digits) {
  const report::Statistics s = report::statistics(shares);
  if (s.n == 0) return "-";
  if (s.n < 2) return fmt::format("{:.{}f}", 100 * s.mean, digits);
  return fmt::format("{:.{}f} ± {:.{}f}", 100 * s.mean, digits, 100 * s.deviation, digits);
}

void write_results(const fs::path& dir, const train::Json& results, const std::string& table, bool json,
                   const std::string& text, Context& context) {
  train::write_file_atomically(dir / "results.json", train::to_json_text(results));
  train::write_file_atomically(dir / "results.md", table);
  context.console.print(json ? train::to_json_text(results) : text);
}

}  // namespace espalier::cli
