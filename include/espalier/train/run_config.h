/// The whole configuration of a run: every table, every key, from built-in defaults, a preset, a file, the environment
/// and the command line, strictly checked. Its tables are those of docs/configuration.md.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "espalier/core/options.h"
#include "espalier/data/dataset.h"
#include "espalier/methods/options.h"
#include "espalier/methods/registry.h"
#include "espalier/nn/models.h"
#include "espalier/train/options.h"

namespace espalier::train {

/// Table [method]: a name, and the options of the method that has this name.
class MethodOptions {
 public:
  MethodOptions() : MethodOptions("dense") {}
  /// Throws Error(usage) for an unknown name.
  explicit MethodOptions(const std::string& name) : name_(name), method_(make_method(name)) {}
  MethodOptions(const MethodOptions& other);
  MethodOptions& operator=(const MethodOptions& other);
  MethodOptions(MethodOptions&&) noexcept = default;
  MethodOptions& operator=(MethodOptions&&) noexcept = default;

  const std::string& name() const { return name_; }
  /// A method of this name with these options, in its state before training.
  std::unique_ptr<Method> make() const;
  void describe(Describe& d);

 private:
  std::string name_;  // changed by assigning a new MethodOptions: another method has other options
  std::unique_ptr<Method> method_;
};

/// One table of a configuration; `options` point into the RunConfig that made it.
struct Table {
  std::string name;
  std::string help;
  OptionList options;
};

struct RunConfig {
  RunOptions run;
  data::DataOptions data;
  nn::ModelOptions model;
  TrainOptions train;
  OptimOptions optim;
  ScheduleOptions schedule;
  ReparamOptions reparam;
  MethodOptions method;
  SparsityOptions sparsity;
  ContinualOptions continual;
  CheckpointOptions checkpoint;
  LogOptions log;

  /// In the order in which a file has them.
  std::vector<Table> tables();

  /// Throws Error(usage) with one line for each value out of range and each pair of values that contradict each other.
  /// load_config has done this already.
  void validate() const;
};

/// Where a configuration comes from, the lowest layer first. Every layer overrides the ones before it.
struct ConfigSources {
  /// A value from a dedicated flag of the command line.
  struct Flag {
    std::string flag;  ///< as the user wrote it: "--seed"
    std::string key;   ///< "run.seed"
    std::string value;
  };
  std::optional<std::string> preset;               ///< a name of known_presets()
  std::optional<std::string> file;                 ///< TOML or JSON; "-" is the standard input
  std::optional<std::string> text;                 ///< what `file` would hold, where it is at hand already
  std::map<std::string, std::string> environment;  ///< ESPALIER_<TABLE>_<KEY>; other variables may be in it
  std::vector<std::string> set;                    ///< "table.key=value"
  std::vector<Flag> flags;
  std::string other_table;  ///< a table of the file that somebody else reads: "sweep"; "" for none
};

/// Throws Error(usage) with one line for every mistake of every layer, each with its place:
///   config.toml:14:16: [sparsity].distribution = "erdos": unknown value. Known: uniform, er, erk, global. Did you mean
///   "er"?
/// What a preset says about a choice that a higher layer has changed (the options of another method, say) is dropped;
/// in any other layer it is a mistake.
RunConfig load_config(const ConfigSources& sources);

/// The same from a text alone; `source` names it in messages.
RunConfig parse_config(const std::string& text, const std::string& source);

/// The resolved file: every key with its help; parse_config gives back the same configuration.
std::string to_toml(const RunConfig& config);
/// The same as a JSON document, accepted as a file too.
std::string to_json(const RunConfig& config);

/// "table.key: a -> b" for every key that differs, in the order of the tables; "(none)" where the other method lacks
/// the key.
std::vector<std::string> diff(const RunConfig& from, const RunConfig& to);

// ---- presets
// ----------------------------------------------------------------------------------------------------------

struct PresetInfo {
  std::string name;
  std::string description;  ///< the first line of the file, a comment
};

/// The text of the first line of a file, a comment: what the file is.
std::string first_line(const std::string& text);

/// The files of presets/, which are built into the library; by name.
std::vector<PresetInfo> known_presets();
/// The file as it was written. Throws Error(usage) for an unknown name.
std::string preset_text(const std::string& name);

}  // namespace espalier::train
