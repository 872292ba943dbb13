#include "espalier/train/run_config.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>

#include "config_settings.h"
#include "embedded_presets.h"
#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/train/json.h"

namespace espalier::train {
namespace {

constexpr std::int64_t kSchemaVersion = 1;
constexpr std::size_t kMaxFileBytes = 1 << 20;  // a configuration has a few kB: more is another file, given by mistake

// Keys that only some names of their table use. With any other name they must keep their default: a key that does
// nothing is a mistake of the user, not a detail.
struct OnlyWith {
  const char* table;
  const char* key;
  std::vector<std::string> names;
  const char* by = "name";  // the key that has one of these names
};
const std::vector<OnlyWith>& only_with() {
  static const std::vector<OnlyWith> kList = {
      {"data", "train_size", {"glyphs"}},
      {"data", "test_size", {"glyphs"}},
      {"model", "widths", {"mlp"}},
      {"model", "layers", {"layers"}},
      {"optim", "momentum", {"sgd"}},
      {"optim", "nesterov", {"sgd"}},
      {"optim", "beta1", {"adam", "adamw"}},
      {"optim", "beta2", {"adam", "adamw"}},
      {"optim", "eps", {"adam", "adamw"}},
      {"schedule", "every", {"step"}},
      {"schedule", "milestones", {"multi-step"}},
      {"schedule", "factor", {"step", "multi-step"}},
      {"schedule", "final_factor", {"cosine"}},
      {"reparam", "alpha", {"powerprop", "adaptive-powerprop"}},
      {"reparam", "update", {"powerprop", "adaptive-powerprop"}},
      {"reparam", "interval", {"adaptive-powerprop"}},
      {"reparam", "signal", {"adaptive-powerprop"}},
      {"reparam", "epsilon", {"adaptive-powerprop"}},
      {"reparam", "cr", {"adaptive-powerprop"}},
      {"reparam", "cd", {"adaptive-powerprop"}},
      {"reparam", "loss_tolerance", {"adaptive-powerprop"}},
      {"reparam", "alpha_min", {"adaptive-powerprop"}},
      {"reparam", "alpha_max", {"adaptive-powerprop"}},
      {"reparam", "per", {"adaptive-powerprop"}},
      {"continual", "rotation", {"rotated"}, "sequence"},
      {"continual", "classes_per_task", {"split"}, "sequence"},
      {"continual", "datasets", {"datasets"}, "sequence"},
      {"continual", "gamma", {"efficient-packnet"}, "method"},
      {"continual", "search", {"efficient-packnet"}, "method"},
      {"continual", "keep_rates", {"efficient-packnet"}, "method"},
      {"continual", "search_steps", {"efficient-packnet"}, "method"},
      {"continual", "fallback", {"efficient-packnet"}, "method"},
      {"continual", "share", {"packnet"}, "method"},
      {"continual", "reinit", {"efficient-packnet", "packnet"}, "method"},
      {"continual", "retrain", {"efficient-packnet", "packnet"}, "method"},
      {"continual", "retrain_lr", {"efficient-packnet", "packnet"}, "method"},
      {"continual", "retrain_decay", {"efficient-packnet", "packnet"}, "method"},
      {"continual", "ewc_lambda", {"ewc"}, "method"},
      {"continual", "fisher_samples", {"ewc"}, "method"},
  };
  return kList;
}

template <class List>
std::vector<std::string> names_of(const List& list) {
  std::vector<std::string> names;
  for (const auto& item : list) names.push_back(item.name);
  return names;
}

std::string joined(const std::vector<std::string>& words, const std::string& between) {
  std::string out;
  for (const auto& word : words) out += (out.empty() ? "" : between) + word;
  return out;
}

std::string key_name(const std::string& table, const std::string& key) {
  return table.empty() ? key : "[" + table + "]." + key;
}

Table* find_table(std::vector<Table>& tables, const std::string& name) {
  const auto it = std::find_if(tables.begin(), tables.end(), [&](const Table& t) { return t.name == name; });
  return it == tables.end() ? nullptr : &*it;
}

const Option* find_option(const OptionList& options, const std::string& name) {
  const auto it = std::find_if(options.begin(), options.end(), [&](const Option& o) { return o.name == name; });
  return it == options.end() ? nullptr : &*it;
}

// Every field of `to` becomes that of `from`; both lists describe structs of one type.
void copy_values(const OptionList& from, const OptionList& to) {
  ESPALIER_ASSERT(from.size() == to.size());
  for (std::size_t i = 0; i < from.size(); ++i) {
    std::visit([&](auto* v) { *std::get<std::decay_t<decltype(v)>>(to[i].value) = *v; }, from[i].value);
  }
}

// ---- values that contradict each other
// --------------------------------------------------------------------------------

struct Conflict {
  std::vector<std::string> keys;  // "table.key"; the message is about the first
  std::string message;
};

std::vector<Conflict> milestone_conflicts(const ScheduleOptions& schedule) {
  if (schedule.name != "multi-step") return {};
  if (schedule.milestones.empty()) {
    return {
        {{"schedule.milestones", "schedule.name"}, "multi-step needs at least one milestone, e.g. [\"50%\", \"75%\"]"}};
  }
  std::vector<Duration> points;
  for (const auto& text : schedule.milestones) {
    try {
      points.push_back(Duration::parse(text));
    } catch (const Error& error) {
      return {{{"schedule.milestones"}, error.what()}};
    }
  }
  for (std::size_t i = 1; i < points.size(); ++i) {
    if (points[i].unit() == points[i - 1].unit() && points[i].count() <= points[i - 1].count()) {
      return {{{"schedule.milestones"},
               fmt::format("{} does not come after {}; milestones are in ascending order", points[i].text(),
                           points[i - 1].text())}};
    }
  }
  return {};
}

/// What a sequence of tasks asks of the other tables.
std::vector<Conflict> continual_conflicts(const RunConfig& config) {
  const ContinualOptions& c = config.continual;
  if (c.sequence == "none") return {};
  std::vector<Conflict> out;
  const bool endless = c.sequence == "permuted" || c.sequence == "rotated";
  const auto add = [&](const char* key, const std::string& message, const char* other = "continual.sequence") {
    out.push_back({{key, other, "continual.sequence"}, message});
  };
  if (endless && c.tasks == 0) {
    add("continual.tasks", fmt::format("a {} sequence has no end of its own; give a number of tasks", c.sequence));
  }
  if (c.sequence == "datasets") {
    std::vector<std::string> known = names_of(data::known_datasets());
    if (c.datasets.empty()) add("continual.datasets", "needs their names, e.g. [\"mnist\", \"fashion-mnist\"]");
    for (const auto& name : c.datasets) {
      if (std::find(known.begin(), known.end(), name) != known.end()) continue;
      add("continual.datasets",
          fmt::format("\"{}\" is no data set. Known: {}.{}", name, joined(known, ", "), suggestion(name, known)));
    }
    if (c.tasks > static_cast<std::int64_t>(c.datasets.size())) {
      add("continual.tasks", fmt::format("[continual].datasets names {}", c.datasets.size()), "continual.datasets");
    }
  }
  if (c.method == "efficient-packnet") {
    if (config.data.validation == 0) {
      add("data.validation", "efficient-packnet measures pruned networks on held-out images; hold some out, e.g. 5000",
          "continual.method");
    }
    if (c.keep_rates.empty()) add("continual.keep_rates", "needs at least one share, e.g. [0.1]");
    for (std::size_t i = 1; i < c.keep_rates.size(); ++i) {
      if (c.keep_rates[i] > c.keep_rates[i - 1]) continue;
      add("continual.keep_rates", fmt::format("{} does not come after {}; shares are in ascending order",
                                              c.keep_rates[i], c.keep_rates[i - 1]));
    }
    if (c.search == "binary" && c.keep_rates.size() != 2) {
      add("continual.keep_rates", "a binary search has two bounds, e.g. [0.01, 0.5]", "continual.search");
    }
  }
  if (config.reparam.name != "identity" && config.reparam.name != "powerprop") {
    add("reparam.name",
        "weights of earlier tasks would change with alpha; tasks are packed with a fixed one: powerprop");
  }
  const bool zeros_stay = c.reinit == "zero" && config.reparam.name == "powerprop" && config.reparam.alpha > 1;
  if (zeros_stay) {
    add("continual.reinit", fmt::format("a weight at zero never moves with alpha = {}; set it to fresh, keep or auto",
                                        config.reparam.alpha));
  }
  if (config.method.name() != "dense") {
    add("method.name",
        "a sequence of tasks chooses its masks by [continual].method; leave [method] and [sparsity] out");
  }
  if (config.model.storage == "compressed") {
    add("model.storage",
        "tasks learn in masked storage, where weights of other tasks can be held still; set it to masked or auto");
  }
  if (!config.run.structure_from.empty()) add("run.structure_from", "a sequence of tasks begins with a fresh network");
  if (!config.run.values_from.empty()) add("run.values_from", "a sequence of tasks begins with a fresh network");
  return out;
}

std::vector<Conflict> conflicts(RunConfig config) {
  std::vector<Conflict> out;
  RunConfig defaults;
  auto tables = config.tables();
  auto default_tables = defaults.tables();
  for (const auto& rule : only_with()) {
    const OptionList& options = find_table(tables, rule.table)->options;
    const std::string name = *std::get<std::string*>(find_option(options, rule.by)->value);
    if (std::find(rule.names.begin(), rule.names.end(), name) != rule.names.end()) continue;
    const Option& option = *find_option(options, rule.key);
    if (option.value_text() == find_option(find_table(default_tables, rule.table)->options, rule.key)->value_text())
      continue;
    out.push_back({{fmt::format("{}.{}", rule.table, rule.key), fmt::format("{}.{}", rule.table, rule.by)},
                   fmt::format("does nothing with [{0}].{4} = \"{1}\"; set [{0}].{4} to {2}, or leave {3} out",
                               rule.table, name, joined(rule.names, " or "), rule.key, rule.by)});
  }

  if (config.train.epochs > 0 && config.train.steps > 0) {
    out.push_back(
        {{"train.epochs", "train.steps"},
         fmt::format("[train].steps = {} is given too; a run has one length: leave one of them out, or set it to 0",
                     config.train.steps)});
  } else if (config.train.epochs == 0 && config.train.steps == 0) {
    out.push_back({{"train.epochs", "train.steps"}, "[train].steps is 0 too; one of them must be above 0"});
  }
  if (config.optim.nesterov && config.optim.name == "sgd" && config.optim.momentum == 0) {
    out.push_back({{"optim.nesterov", "optim.momentum"}, "needs [optim].momentum above 0, e.g. 0.9"});
  }
  const ReparamOptions& reparam = config.reparam;
  if (reparam.name == "adaptive-powerprop" && reparam.alpha == 1) {
    out.push_back({{"reparam.alpha", "reparam.name"},
                   "alpha - 1 is what the control loop multiplies, so 1 would stay 1; begin above it, e.g. 1.2"});
  } else if (reparam.name == "adaptive-powerprop" &&
             (reparam.alpha < reparam.adaptive.alpha_min || reparam.alpha > reparam.adaptive.alpha_max)) {
    out.push_back({{"reparam.alpha", "reparam.alpha_min", "reparam.alpha_max", "reparam.name"},
                   fmt::format("is not between [reparam].alpha_min = {} and alpha_max = {}; move alpha or the bounds",
                               reparam.adaptive.alpha_min, reparam.adaptive.alpha_max)});
  }
  if (config.model.name == "layers" && config.model.layers.empty()) {
    out.push_back(
        {{"model.layers", "model.name"},
         "the model \"layers\" needs its layers, e.g. [\"flatten\", \"linear(100)\", \"relu\", \"linear(classes)\"]"});
  }
  for (auto& conflict : milestone_conflicts(config.schedule)) out.push_back(std::move(conflict));
  for (auto& conflict : continual_conflicts(config)) out.push_back(std::move(conflict));
  if (config.method.name() == "dense" && config.sparsity.sparsity > 0) {
    out.push_back(
        {{"sparsity.sparsity", "method.name"},
         "the method is \"dense\", which keeps every weight; choose another [method].name (espalier list methods), "
         "or leave sparsity out"});
  }
  if (config.run.name.find('/') != std::string::npos || config.run.name == "." || config.run.name == "..") {
    out.push_back({{"run.name"}, "names one directory, without \"/\"; --run-dir takes a path"});
  }
  return out;
}

// ---- layers
// -----------------------------------------------------------------------------------------------------------

struct Layer {
  Settings settings;
  bool is_preset = false;
};

std::string read_file(const std::string& path) {
  std::string text;
  if (path == "-") {
    text.assign(std::istreambuf_iterator<char>(std::cin), {});
    return text;
  }
  std::error_code ignored;
  ESPALIER_CHECK(!std::filesystem::is_directory(path, ignored), ErrorKind::usage,
                 "{}: is a directory; expected a configuration file (of a run: {}/config.toml)", path, path);
  std::ifstream file(path, std::ios::binary);
  ESPALIER_CHECK(file, ErrorKind::usage, "{}: cannot be read: {}", path, std::strerror(errno));
  text.resize(kMaxFileBytes + 1);
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  ESPALIER_CHECK(!file.bad(), ErrorKind::usage, "{}: cannot be read: {}", path, std::strerror(errno));
  text.resize(static_cast<std::size_t>(file.gcount()));
  ESPALIER_CHECK(text.size() <= kMaxFileBytes, ErrorKind::usage, "{}: more than {} MiB; is this a configuration file?",
                 path, kMaxFileBytes >> 20);
  return text;
}

Settings read_settings(const std::string& text, const std::string& source) {
  const auto first = text.find_first_not_of(" \t\r\n");
  const bool is_json = first != std::string::npos && text[first] == '{';  // no TOML begins with a brace
  return is_json ? read_json_settings(text, source) : read_toml_settings(text, source);
}

void leave_out(const std::string& table, Settings& settings) {
  auto& list = settings.list;
  list.erase(std::remove_if(list.begin(), list.end(), [&](const Setting& s) { return s.table == table; }), list.end());
  auto& tables = settings.tables;
  tables.erase(std::remove_if(tables.begin(), tables.end(), [&](const auto& t) { return t.first == table; }),
               tables.end());
}

Setting raw_setting(const std::string& table, const std::string& key, const std::string& value,
                    const std::string& source) {
  return {table, key, {ConfigValue::Raw{value}}, {source}, {source}};
}

// "reparam.alpha=1.5"
void read_assignment(const std::string& text, const std::string& source, std::vector<Table>& tables, Settings& out) {
  const Place place{source, 0, 0};
  const auto equals = text.find('=');
  const std::string name = text.substr(0, equals);
  const auto dot = name.find('.');
  if (equals == std::string::npos || dot == std::string::npos || dot == 0 || dot + 1 == name.size()) {
    std::string hint;
    if (equals != std::string::npos && find_table(tables, name)) {
      const std::string key = find_option(find_table(tables, name)->options, name) ? name : "name";
      hint = fmt::format("; did you mean {}.{}?", name, key + text.substr(equals));
    } else if (equals != std::string::npos) {
      for (const auto& table : tables) {
        if (find_option(table.options, name)) {
          hint = fmt::format("; did you mean {}.{}?", table.name, text);
          break;
        }
      }
    }
    const std::string message = fmt::format("\"{}\" is not table.key=value{}", text, hint);
    out.problems.push_back({place, message});
    return;
  }
  out.list.push_back(raw_setting(name.substr(0, dot), name.substr(dot + 1), text.substr(equals + 1), source));
  out.tables.emplace_back(name.substr(0, dot), place);
}

// ESPALIER_<TABLE>_<KEY>. Other variables of ours (ESPALIER_DATA, ESPALIER_ISA) have no second part after a table's
// name.
Settings read_environment(const std::map<std::string, std::string>& environment, std::vector<Table>& tables) {
  const std::string prefix = "ESPALIER_";
  Settings out;
  for (const auto& [variable, value] : environment) {
    if (variable.compare(0, prefix.size(), prefix) != 0) continue;
    std::string rest = variable.substr(prefix.size());
    const auto underscore = rest.find('_');
    if (underscore == std::string::npos) continue;
    std::transform(rest.begin(), rest.end(), rest.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    const std::string table = rest.substr(0, underscore);
    if (find_table(tables, table)) {
      out.list.push_back(raw_setting(table, rest.substr(underscore + 1), value, variable));
      out.tables.emplace_back(table, Place{variable});
    } else if (const std::string near = nearest(table, names_of(tables)); !near.empty()) {
      log_warning(fmt::format("the environment variable {} is ignored: there is no table [{}]; did you mean [{}]?",
                              variable, table, near));
    }
  }
  return out;
}

// ---- putting the layers together
// --------------------------------------------------------------------------------------

class Resolver {
 public:
  explicit Resolver(std::vector<Layer> layers) : layers_(std::move(layers)), problems_(layers_.size()) {}

  RunConfig resolve() {
    method_ = chosen("method", layers_.size());
    if (!method_.empty()) config_.method = MethodOptions(method_);
    tables_ = config_.tables();
    for (std::size_t i = 0; i < layers_.size(); ++i) apply(i);
    for (const auto& conflict : conflicts(config_)) report(conflict);
    fail_if_wrong();
    return std::move(config_);
  }

 private:
  // The last setting of a key.
  struct Last {
    std::size_t layer = 0;
    Place place;
    bool wrong = false;
  };

  // What the first `count` layers choose as the name (or another such key) in a table; "" if the last choice is not a
  // known name.
  std::string chosen(const std::string& table, std::size_t count, const std::string& key = "name") {
    RunConfig defaults;
    auto tables = defaults.tables();
    const Option* option = find_option(find_table(tables, table)->options, key);
    std::string& name = *std::get<std::string*>(option->value);
    for (std::size_t i = 0; i < count; ++i) {
      for (const auto& setting : layers_[i].settings.list) {
        if (setting.table != table || setting.key != key) continue;
        if (!assign(*option, setting.value, "").empty()) name = "";  // unknown: reported where it is applied
      }
    }
    return name;
  }

  // A preset's word on a choice that a higher layer has changed.
  bool is_dropped(std::size_t layer, const Setting& setting) {
    if (!layers_[layer].is_preset) return false;
    const bool method_changed = chosen("method", layer + 1) != chosen("method", layers_.size());
    if (setting.table == "method") return method_changed && setting.key != "name";
    if (setting.table == "sparsity" && setting.key == "sparsity") {
      return method_changed && chosen("method", layers_.size()) == "dense";
    }
    for (const auto& rule : only_with()) {
      if (setting.table != rule.table || setting.key != rule.key) continue;
      const std::string name = chosen(rule.table, layers_.size(), rule.by);
      return name != chosen(rule.table, layer + 1, rule.by) &&
             std::find(rule.names.begin(), rule.names.end(), name) == rule.names.end();
    }
    return false;
  }

  void apply(std::size_t layer) {
    const Settings& settings = layers_[layer].settings;
    problems_[layer] = settings.problems;
    for (const auto& [name, place] : settings.tables) {
      if (!find_table(tables_, name)) problem(layer, place, unknown_table(name));
    }
    for (const auto& setting : settings.list) {
      const std::string message = is_dropped(layer, setting) ? "" : apply(layer, setting);
      if (message.empty()) continue;
      last_[setting.table + "." + setting.key].wrong = true;
      problem(layer, last_[setting.table + "." + setting.key].place, message);
    }
    one_length(settings);
  }

  // Returns what is wrong with a setting, or "".
  std::string apply(std::size_t layer, const Setting& setting) {
    Last& last = last_[setting.table + "." + setting.key];
    last = {layer, setting.key_at, false};
    if (setting.table.empty()) return apply_outside_tables(setting, last);
    Table* table = find_table(tables_, setting.table);
    if (!table) return "";  // the table itself has been reported
    const Option* option = find_option(table->options, setting.key);
    if (!option && setting.table == "method" && method_.empty()) return "";  // so has the method
    if (!option) return unknown_key(*table, setting.key);
    last.place = setting.value_at;
    return assign(*option, setting.value, key_name(setting.table, setting.key));
  }

  std::string apply_outside_tables(const Setting& setting, Last& last) {
    if (setting.key == "schema_version") {
      last.place = setting.value_at;
      std::int64_t version = 0;
      const std::string message = assign({setting.key, &version, "", {}, {}}, setting.value, setting.key);
      if (!message.empty() || version == kSchemaVersion) return message;
      return fmt::format("schema_version = {}: this program reads version {}; {}", version, kSchemaVersion,
                         version > kSchemaVersion ? "a newer Espalier wrote this file" : "there is no such version");
    }
    if (find_table(tables_, setting.key)) {
      return fmt::format("[{}] is a table, found {}; write [{}] on a line of its own, its keys below", setting.key,
                         setting.value.type(), setting.key);
    }
    const std::string owner = owner_of(setting.key, "");
    return fmt::format(
        "{}: unknown key outside the tables{}", setting.key,
        owner.empty() ? "; known: schema_version" : fmt::format("; \"{}\" belongs to [{}]", setting.key, owner));
  }

  std::string unknown_table(const std::string& name) {
    const auto known = names_of(tables_);
    return fmt::format("[{}]: unknown table. Known: {}.{}", name, joined(known, ", "), suggestion(name, known));
  }

  std::string owner_of(const std::string& key, const std::string& except) {
    for (const auto& table : tables_) {
      if (table.name != except && key != "name" && find_option(table.options, key)) return table.name;
    }
    return "";
  }

  std::string unknown_key(const Table& table, const std::string& key) {
    const std::string start = key_name(table.name, key) + ": unknown key";
    if (table.name == "method") {
      std::vector<std::string> owners;
      for (const auto& info : known_methods()) {
        if (find_option(describe(*make_method(info.name)), key)) owners.push_back('"' + info.name + '"');
      }
      if (!owners.empty()) {
        return fmt::format("{} for the method \"{}\"; it belongs to {}", start, method_, joined(owners, ", "));
      }
    }
    const std::string owner = owner_of(key, table.name);
    if (!owner.empty()) return fmt::format("{}; \"{}\" belongs to [{}]", start, key, owner);
    const auto known = names_of(table.options);
    return fmt::format("{}. Known: {}.{}", start, joined(known, ", "), suggestion(key, known));
  }

  // epochs and steps are two ways to say one thing: the later layer wins, whichever it uses.
  void one_length(const Settings& settings) {
    const auto gives = [&](const char* key) {
      return std::any_of(settings.list.begin(), settings.list.end(),
                         [&](const Setting& s) { return s.table == "train" && s.key == key; });
    };
    if (gives("steps") && !gives("epochs") && config_.train.steps > 0) config_.train.epochs = 0;
    if (gives("epochs") && !gives("steps") && config_.train.epochs > 0) config_.train.steps = 0;
  }

  void report(const Conflict& conflict) {
    const Last* at = nullptr;
    for (const auto& key : conflict.keys) {
      const auto it = last_.find(key);
      if (it == last_.end()) continue;
      if (it->second.wrong) return;  // a value that was refused says nothing about the others
      if (!at) at = &it->second;
    }
    ESPALIER_ASSERT(at);  // the defaults do not contradict each other
    const std::string& key = conflict.keys.front();
    const auto dot = key.find('.');
    const Option& option = *find_option(find_table(tables_, key.substr(0, dot))->options, key.substr(dot + 1));
    problem(
        at->layer, at->place,
        fmt::format("{} = {}: {}", key_name(key.substr(0, dot), option.name), option.value_text(), conflict.message));
  }

  void problem(std::size_t layer, const Place& place, const std::string& message) {
    problems_[layer].push_back({place, message});
  }

  void fail_if_wrong() {
    std::string text;
    for (auto& list : problems_) {
      std::stable_sort(list.begin(), list.end(), [](const Problem& a, const Problem& b) {
        return std::make_pair(a.place.line, a.place.column) < std::make_pair(b.place.line, b.place.column);
      });
      for (const auto& p : list) text += (text.empty() ? "" : "\n") + p.place.text() + ": " + p.message;
    }
    if (!text.empty()) throw Error(ErrorKind::usage, text);
  }

  std::vector<Layer> layers_;
  std::vector<std::vector<Problem>> problems_;  // one list a layer
  RunConfig config_;
  std::vector<Table> tables_;  // of config_
  std::string method_;         // chosen by all layers together
  std::map<std::string, Last> last_;
};

void add_tables(RunConfig& config, Json& out) {
  for (const auto& table : config.tables()) {
    Json& object = out[table.name] = Json::object();
    for (const auto& option : table.options) {
      object[option.name] = Json::parse(option.value_text());  // TOML's notation of these types is JSON's too
    }
  }
}

}  // namespace

MethodOptions::MethodOptions(const MethodOptions& other) : name_(other.name_), method_(other.make()) {}

MethodOptions& MethodOptions::operator=(const MethodOptions& other) { return *this = MethodOptions(other); }

std::unique_ptr<Method> MethodOptions::make() const {
  auto method = make_method(name_);
  copy_values(espalier::describe(*method_), espalier::describe(*method));
  return method;
}

void MethodOptions::describe(Describe& d) {
  d("name", name_, "what decides which weights exist; the other keys of this table belong to it",
    names_of(known_methods()));
  method_->describe(d);
}

std::vector<Table> RunConfig::tables() {
  return {
      {"run", "what the run is called and what it runs on", espalier::describe(run)},
      {"data", "what it learns from", espalier::describe(data)},
      {"model", "the network", espalier::describe(model)},
      {"train", "how long, on what batches: give epochs or steps", espalier::describe(train)},
      {"optim", "the optimiser", espalier::describe(optim)},
      {"schedule", "the factor on the learning rate", espalier::describe(schedule)},
      {"reparam", "how the trainable phi becomes the weight w", espalier::describe(reparam)},
      {"method", "which weights exist, and when that changes", espalier::describe(method)},
      {"sparsity", "how many weights are zero, and where", espalier::describe(sparsity)},
      {"continual", "tasks that one network learns one after the other (espalier continual)",
       espalier::describe(continual)},
      {"checkpoint", "how often the run is saved", espalier::describe(checkpoint)},
      {"log", "how often the run says where it stands", espalier::describe(log)},
  };
}

void RunConfig::validate() const {
  RunConfig copy = *this;
  std::vector<std::string> lines;
  auto list = copy.tables();
  for (const auto& table : list) {
    for (const auto& option : table.options) {
      try {
        option.validate(key_name(table.name, option.name) + " = ");
      } catch (const Error& error) {
        lines.emplace_back(error.what());
      }
    }
  }
  for (const auto& conflict : conflicts(copy)) {
    const std::string& key = conflict.keys.front();
    const auto dot = key.find('.');
    const Option& option = *find_option(find_table(list, key.substr(0, dot))->options, key.substr(dot + 1));
    lines.push_back(
        fmt::format("{} = {}: {}", key_name(key.substr(0, dot), option.name), option.value_text(), conflict.message));
  }
  if (!lines.empty()) throw Error(ErrorKind::usage, joined(lines, "\n"));
}

RunConfig load_config(const ConfigSources& sources) {
  RunConfig defaults;
  auto tables = defaults.tables();
  std::vector<Layer> layers;
  if (sources.preset) {
    layers.push_back({read_settings(preset_text(*sources.preset), "preset " + *sources.preset), true});
  }
  if (sources.text) {
    layers.push_back({read_settings(*sources.text, sources.file.value_or("configuration"))});
  } else if (sources.file) {
    layers.push_back({read_settings(read_file(*sources.file), *sources.file == "-" ? "<stdin>" : *sources.file)});
    if (!sources.other_table.empty()) leave_out(sources.other_table, layers.back().settings);
  }
  layers.push_back({read_environment(sources.environment, tables)});
  Settings set;
  for (const auto& text : sources.set) read_assignment(text, "--set", tables, set);
  layers.push_back({std::move(set)});
  Settings flags;
  for (const auto& flag : sources.flags) read_assignment(flag.key + "=" + flag.value, flag.flag, tables, flags);
  layers.push_back({std::move(flags)});
  return Resolver(std::move(layers)).resolve();
}

RunConfig parse_config(const std::string& text, const std::string& source) {
  return Resolver({{read_settings(text, source)}}).resolve();
}

std::string to_toml(const RunConfig& config) {
  RunConfig copy = config;
  std::string out = fmt::format("schema_version = {}\n", kSchemaVersion);
  for (const auto& table : copy.tables()) {
    out += fmt::format("\n# {}\n[{}]\n", table.help, table.name);
    for (const auto& option : table.options) {
      const std::string allowed = option.allowed_text();
      out += fmt::format("# {}{}\n{} = {}\n", option.help, allowed.empty() ? "" : " (" + allowed + ")", option.name,
                         option.value_text());
    }
  }
  return out;
}

std::string to_json(const RunConfig& config) {
  RunConfig copy = config;
  Json out = {{"schema_version", kSchemaVersion}};
  add_tables(copy, out);
  return to_json_text(out);
}

std::vector<std::string> diff(const RunConfig& from, const RunConfig& to) {
  RunConfig a = from, b = to;
  auto tables_a = a.tables();
  const auto tables_b = b.tables();
  std::vector<std::string> out;
  for (const auto& table_b : tables_b) {
    const OptionList& options_a = find_table(tables_a, table_b.name)->options;
    const auto line = [&](const std::string& key, const Option* before, const Option* after) {
      const std::string old_text = before ? before->value_text() : "(none)";
      const std::string new_text = after ? after->value_text() : "(none)";
      if (old_text != new_text) out.push_back(fmt::format("{}.{}: {} -> {}", table_b.name, key, old_text, new_text));
    };
    for (const auto& option : table_b.options) line(option.name, find_option(options_a, option.name), &option);
    for (const auto& option : options_a) {
      if (!find_option(table_b.options, option.name)) line(option.name, &option, nullptr);
    }
  }
  return out;
}

std::string first_line(const std::string& text) {
  const std::string line = text.substr(0, text.find('\n'));
  const auto begin = line.find_first_not_of("# ");
  return begin == std::string::npos ? "" : line.substr(begin);
}

std::vector<PresetInfo> known_presets() {
  std::vector<PresetInfo> out;
  for (const auto& [name, text] : embedded_presets()) out.push_back({name, first_line(text)});
  std::sort(out.begin(), out.end(), [](const PresetInfo& a, const PresetInfo& b) { return a.name < b.name; });
  return out;
}

std::string preset_text(const std::string& name) {
  for (const auto& [known, text] : embedded_presets()) {
    if (known == name) return text;
  }
  const auto known = names_of(known_presets());
  fail(ErrorKind::usage, "--preset {}: unknown preset. Known: {}.{}", name, joined(known, ", "),
       suggestion(name, known));
}

}  // namespace espalier::train
