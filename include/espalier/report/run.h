/// A run as its directory tells it, read as far as it can be read: a run that is still going on, was killed, or is
/// damaged in places gives what there is, and says what is missing. docs/formats/run-directory.md has the files.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace espalier::report {

using Json = nlohmann::ordered_json;

/// A number over training. A value that was missing or not finite is NaN or infinite.
struct Series {
  std::vector<double> step, value;
  bool empty() const { return step.empty(); }
};

/// What weights.jsonl has of one layer at one step: docs/formats/weights.md.
struct Histogram {
  double step = 0;
  int scale = 0;
  std::int64_t first = 0;
  std::vector<double> counts;
};

struct Layer {
  std::string name;                 ///< "fc1.weight"
  std::vector<std::int64_t> shape;  ///< empty if no file has it
  /// By event and field of metrics.md and weights.md: "topology.nnz", "weights.mean", "alpha.alpha".
  std::map<std::string, Series> curves;
  std::vector<Histogram> histograms;

  std::int64_t weights() const;  ///< positions; 0 if the shape is not known
};

struct Run {
  std::filesystem::path path;
  std::string name;                           ///< of its folder
  std::map<std::string, std::string> config;  ///< config.toml: "reparam.alpha" to "1.5"
  Json summary, env, init;                    ///< summary.json, env.json, init.json; null where there is none
  /// By event and field: "step.loss", "epoch.train_accuracy", "eval.validation.accuracy", "topology.nnz",
  /// "timing.samples_per_second". Every number of such an event is here, also ones that this version doesn't know.
  std::map<std::string, Series> curves;
  std::vector<Layer> layers;   ///< in the order of the model
  std::vector<Json> prunings;  ///< what `espalier prune` has left in prune/
  std::vector<Json> tasks;     ///< task events
  double steps_per_epoch = 0;  ///< 0: not known
  double last_step = 0;
  std::int64_t model_bytes = 0;    ///< model.safetensors of the latest checkpoint; 0: none
  std::string status;              ///< of summary.json; "unfinished" without
  std::vector<std::string> notes;  ///< what a reader should know: warnings of the run, damaged lines, what is missing

  const Series* curve(const std::string& key) const;
  const Layer* layer(const std::string& layer_name) const;
  /// A number of summary.json; NaN where it is missing, null or no number.
  double number(const char* key) const;
};

/// A run directory; or the JSON that `espalier init --json` printed, which is a run that was never trained. Throws
/// Error(usage) if there is no such thing or nothing of a run in it.
Run read_run(const std::filesystem::path& path);

/// The run directories that a path means: itself, or if it is none, the run directories in it, or those of a sweep, by
/// name.
std::vector<std::filesystem::path> find_runs(const std::filesystem::path& path);

/// For a message about a folder without runs: " (a folder in it holds some: …)", or nothing.
std::string runs_below(const std::filesystem::path& path);

/// A JSON value as a number: also "nan", "inf" and "-inf" of our files; NaN for anything else.
double number_of(const Json& value);

}  // namespace espalier::report
