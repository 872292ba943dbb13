#include "reproduce.h"

#include <atomic>
#include <csignal>

#include "espalier/core/error.h"
#include "espalier/train/durable_file.h"
#include "espalier/train/environment.h"
#include "espalier/train/run_directory.h"
#include "espalier/train/trainer.h"

namespace espalier::cli {
namespace {

namespace fs = std::filesystem;

std::atomic<bool> stop_requested{false};
void request_stop(int signal) {
  stop_requested = true;
  std::signal(signal, SIG_DFL);
}

}  // namespace

void stop_on_signals() {
  for (const int signal : {SIGTERM, SIGINT, SIGUSR1}) std::signal(signal, request_stop);
}

std::optional<train::Json> summary_of(const train::RunConfig& config, const fs::path& path) {
  const std::string text = train::to_toml(config);
  const fs::path summary = path / "summary.json", saved = path / "config.toml";
  if (fs::exists(saved)) {
    ESPALIER_CHECK(train::read_file(saved) == text, ErrorKind::usage,
                   "{}: holds a run with another configuration; give another --dir, or remove it", path.string());
    if (fs::exists(summary)) {
      train::Json s = train::read_json(summary);
      if (s.value("status", "") == "done") return s;
    }
  }
  train::Json env = to_json(environment());
  env["seed"] = config.run.seed;
  train::RunDirectory directory =
      fs::exists(saved) ? train::RunDirectory::open(path)
                        : train::RunDirectory::create(path, {text, "", "espalier reproduce\n", env}, false);
  train::TrainHooks hooks;
  hooks.stop = &stop_requested;
  const train::TrainResult result = train::train(config, directory, hooks);
  if (result.outcome == train::Outcome::stopped) return std::nullopt;
  return result.summary;
}

}  // namespace espalier::cli
