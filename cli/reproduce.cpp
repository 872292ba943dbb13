#include "reproduce.h"

#include "espalier/core/error.h"
#include "espalier/train/durable_file.h"
#include "espalier/train/environment.h"
#include "espalier/train/run_directory.h"
#include "espalier/train/trainer.h"
#include "run_commands.h"

namespace espalier::cli {

namespace fs = std::filesystem;

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
  hooks.stop = stop_on_signals();
  const train::TrainResult result = train::train(config, directory, hooks);
  if (result.outcome == train::Outcome::stopped) return std::nullopt;
  return result.summary;
}

}  // namespace espalier::cli
