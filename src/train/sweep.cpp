#include "espalier/train/sweep.h"

#include <toml++/toml.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <sstream>

#include "config_settings.h"
#include "embedded_presets.h"
#include "espalier/core/csv.h"
#include "espalier/core/error.h"
#include "espalier/train/durable_file.h"

namespace espalier::train {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kFormatVersion = 1;
constexpr std::size_t kMaxCells = 100000;
constexpr std::size_t kMaxName = 120;        // of a folder; most file systems end at 255 bytes
constexpr std::size_t kMaxDifferences = 10;  // shown
constexpr const char* kTable = "sweep";
const std::vector<std::string> kKeys{"command", "preset", "seeds", "grid", "list"};
const std::vector<std::string> kCommands{"train", "continual"};

/// A key to vary, with where it was written: "reparam.alpha", {"1.0", "1.5"}.
struct Axis {
  std::string key, place;
  std::vector<std::string> values;
};
struct Assignment {
  std::string key, place, value;
};
struct Entry {
  std::string label, preset, command, place;
  std::vector<Assignment> settings;
};
struct Plan {
  std::string preset, command = "train";
  std::vector<std::string> seeds;
  std::string seeds_place;
  std::vector<Entry> list;
  std::vector<Axis> grid;
};

// ---- reading [sweep]
// ----------------------------------------------------------------------------------------------------------

class Reader {
 public:
  Reader(const std::string& source, Plan& plan) : source_(source), plan_(plan) {}

  void read(const std::string& text) {
    toml::table root;
    try {
      root = toml::parse(text);
    } catch (const toml::parse_error& error) {
      problem(error.source(), "not valid TOML: " + std::string(error.description()));
      return end();
    }
    const toml::node* node = root.get(kTable);
    if (node == nullptr) return;
    const toml::table* sweep = node->as_table();
    if (sweep == nullptr) {
      problem(node->source(), "sweep: expected a table [sweep]");
      return end();
    }
    for (const auto& [key, value] : *sweep) {
      const std::string name(key.str());
      if (name == "preset") {
        plan_.preset = word(value, "[sweep].preset");
      } else if (name == "command") {
        plan_.command = command(value, "[sweep].command");
      } else if (name == "seeds") {
        seeds(value);
      } else if (name == "grid") {
        grid(value);
      } else if (name == "list") {
        list(value);
      } else {
        problem(key.source(), fmt::format("[sweep].{}: unknown key. Known: {}.{}", name, fmt::join(kKeys, ", "),
                                          suggestion(name, kKeys)));
      }
    }
    end();
  }

 private:
  std::string place(const toml::source_region& region) const {
    return Place{source_, static_cast<int>(region.begin.line), static_cast<int>(region.begin.column)}.text();
  }
  void problem(const toml::source_region& region, const std::string& text) {
    problems_.push_back(place(region) + ": " + text);
  }
  void end() const {
    if (!problems_.empty()) throw Error(ErrorKind::usage, fmt::format("{}", fmt::join(problems_, "\n")));
  }

  std::string word(const toml::node& node, const std::string& what) {
    if (const auto* text = node.as_string()) return text->get();
    problem(node.source(), what + ": expected a string");
    return "";
  }
  std::string command(const toml::node& node, const std::string& what) {
    const std::string name = word(node, what);
    if (std::find(kCommands.begin(), kCommands.end(), name) == kCommands.end())
      problem(node.source(), fmt::format("{} = \"{}\": unknown. Known: {}.{}", what, name, fmt::join(kCommands, ", "),
                                         suggestion(name, kCommands)));
    return name;
  }

  static std::optional<ConfigValue> value_of(const toml::node& node) {
    if (const auto* v = node.as_boolean()) return ConfigValue{v->get()};
    if (const auto* v = node.as_integer()) return ConfigValue{v->get()};
    if (const auto* v = node.as_floating_point()) return ConfigValue{v->get()};
    if (const auto* v = node.as_string()) return ConfigValue{v->get()};
    const auto* array = node.as_array();
    if (array == nullptr) return std::nullopt;
    ConfigValue::List items;
    for (const auto& item : *array) {
      auto value = value_of(item);
      if (!value) return std::nullopt;
      items.push_back(std::move(*value));
    }
    return ConfigValue{std::move(items)};
  }
  /// In TOML's notation, which --set takes too.
  std::string text_of(const toml::node& node, const std::string& what) {
    if (const auto value = value_of(node)) return value->text();
    problem(node.source(), what + ": expected a value or a list of values");
    return "";
  }

  void seeds(const toml::node& node) {
    plan_.seeds_place = place(node.source());
    if (const auto* count = node.as_integer()) {
      if (count->get() < 1 || count->get() > static_cast<std::int64_t>(kMaxCells))
        return problem(node.source(), fmt::format("[sweep].seeds = {}: expected 1 to {}", count->get(), kMaxCells));
      for (std::int64_t seed = 1; seed <= count->get(); ++seed) plan_.seeds.push_back(std::to_string(seed));
    } else if (const auto* seeds = node.as_array(); seeds != nullptr && !seeds->empty()) {
      for (const auto& seed : *seeds) {
        if (const auto* number = seed.as_integer())
          plan_.seeds.push_back(std::to_string(number->get()));
        else
          problem(seed.source(), "[sweep].seeds: expected integers");
      }
    } else {
      problem(node.source(), "[sweep].seeds: expected how many (3), or which ([1, 5, 7])");
    }
  }

  /// Leaves of nested tables in the order in which they were written: `reparam.alpha = …` and `"reparam.alpha" = …`.
  void leaves(const toml::table& table, const std::string& prefix,
              std::vector<std::pair<std::string, const toml::node*>>& out) {
    for (const auto& [key, value] : table) {
      const std::string name = prefix + std::string(key.str());
      if (const auto* inner = value.as_table())
        leaves(*inner, name + ".", out);
      else
        out.emplace_back(name, &value);
    }
  }
  std::vector<std::pair<std::string, const toml::node*>> leaves(const toml::table& table) {
    std::vector<std::pair<std::string, const toml::node*>> out;
    leaves(table, "", out);
    std::stable_sort(out.begin(), out.end(), [](const auto& a, const auto& b) {
      const auto &p = a.second->source().begin, &q = b.second->source().begin;
      return std::make_pair(p.line, p.column) < std::make_pair(q.line, q.column);
    });
    return out;
  }

  void grid(const toml::node& node) {
    const auto* table = node.as_table();
    if (table == nullptr) return problem(node.source(), "[sweep].grid: expected a table, e.g. reparam.alpha = [1, 2]");
    for (const auto& [key, value] : leaves(*table)) {
      const auto* values = value->as_array();
      if (values == nullptr || values->empty()) {
        problem(value->source(), fmt::format("[sweep.grid].{}: expected a list of at least one value", key));
        continue;
      }
      Axis axis{key, place(value->source()), {}};
      for (const auto& v : *values) axis.values.push_back(text_of(v, "[sweep.grid]." + key));
      plan_.grid.push_back(std::move(axis));
    }
  }

  void list(const toml::node& node) {
    const auto* entries = node.as_array();
    if (entries == nullptr || entries->empty())
      return problem(node.source(), "[sweep].list: expected tables, each beginning with a line [[sweep.list]]");
    for (const auto& item : *entries) {
      const auto* table = item.as_table();
      if (table == nullptr) {
        problem(item.source(), "[sweep].list: expected tables, each beginning with a line [[sweep.list]]");
        continue;
      }
      Entry entry;
      entry.place = place(item.source());
      for (const auto& [key, value] : leaves(*table)) {
        if (key == "label")
          entry.label = word(*value, "[[sweep.list]].label");
        else if (key == "preset")
          entry.preset = word(*value, "[[sweep.list]].preset");
        else if (key == "command")
          entry.command = command(*value, "[[sweep.list]].command");
        else
          entry.settings.push_back({key, place(value->source()), text_of(*value, "[[sweep.list]]." + key)});
      }
      plan_.list.push_back(std::move(entry));
    }
  }

  std::string source_;
  Plan& plan_;
  std::vector<std::string> problems_;
};

/// "a,b(1,2),[3,4]" at the commas that are in no bracket and no quotes.
std::vector<std::string> split_values(const std::string& text) {
  std::vector<std::string> out(1);
  int open = 0;
  char quote = 0;
  for (const char c : text) {
    if (quote != 0) {
      if (c == quote) quote = 0;
    } else if (c == '"' || c == '\'') {
      quote = c;
    } else {
      open += (c == '(' || c == '[') - (c == ')' || c == ']');
    }
    if (c == ',' && open == 0 && quote == 0)
      out.emplace_back();
    else
      out.back() += c;
  }
  return out;
}

void read_grid_argument(const std::string& text, Plan& plan) {
  const auto equals = text.find('=');
  const std::string key = text.substr(0, equals);
  ESPALIER_CHECK(equals != std::string::npos && key.find('.') != std::string::npos, ErrorKind::usage,
                 "--sweep {}: expected table.key=value,value,…, e.g. --sweep reparam.alpha=1,1.5,2", text);
  Axis axis{key, "--sweep", split_values(text.substr(equals + 1))};
  for (const auto& value : axis.values)
    ESPALIER_CHECK(!value.empty(), ErrorKind::usage, "--sweep {}: an empty value between commas", text);
  plan.grid.push_back(std::move(axis));
}

std::vector<std::string> read_seeds_argument(const std::string& text) {
  const auto number = [&](const std::string& word) {
    const bool digits = !word.empty() && word.size() < 18 && word.find_first_not_of("0123456789") == std::string::npos;
    ESPALIER_CHECK(digits, ErrorKind::usage, "--seeds {}: expected how many (3), or which (1,5,7)", text);
    return std::stoll(word);
  };
  std::vector<std::string> out;
  if (text.find(',') == std::string::npos) {
    const auto count = number(text);
    ESPALIER_CHECK(count >= 1 && count <= static_cast<std::int64_t>(kMaxCells), ErrorKind::usage,
                   "--seeds {}: expected 1 to {}", text, kMaxCells);
    for (std::int64_t seed = 1; seed <= count; ++seed) out.push_back(std::to_string(seed));
    return out;
  }
  for (const auto& word : split_values(text)) out.push_back(std::to_string(number(word)));
  return out;
}

// ---- expanding it
// -------------------------------------------------------------------------------------------------------------

std::optional<std::string> value_in(const RunConfig& config, const std::string& key) {
  RunConfig copy = config;
  for (const auto& table : copy.tables()) {
    for (const auto& option : table.options)
      if (table.name + "." + option.name == key) return option.value_text();
  }
  return std::nullopt;
}

std::string without_quotes(const std::string& text) {
  return text.size() >= 2 && text.front() == '"' && text.back() == '"' ? text.substr(1, text.size() - 2) : text;
}

/// The key without its table where that is clear: "alpha"; "method" for method.name.
std::map<std::string, std::string> short_names(const std::set<std::string>& keys) {
  const auto short_of = [](const std::string& key) {
    const auto dot = key.find('.');
    const std::string last = key.substr(dot + 1);
    return last == "name" ? key.substr(0, dot) : last;
  };
  std::map<std::string, int> count;
  for (const auto& key : keys) ++count[short_of(key)];
  std::map<std::string, std::string> out;
  for (const auto& key : keys) out[key] = count[short_of(key)] == 1 ? short_of(key) : key;
  return out;
}

std::string folder_name(const std::string& text) {
  std::string out;
  for (const char c : text) {
    const bool plain =
        std::isalnum(static_cast<unsigned char>(c)) || std::string("._=,+-%@").find(c) != std::string::npos;
    if (plain)
      out += c;
    else if (c != ' ' && c != '"')
      out += '-';
  }
  if (!out.empty() && out[0] == '.') out[0] = '-';
  const std::string digest = fmt::format("-{:08x}", digest_of(text).crc32);
  if (out.size() > kMaxName) out = out.substr(0, kMaxName - digest.size()) + digest;
  return out;
}

void check_plan(const Plan& plan, const SweepSources& sources) {
  std::map<std::string, std::string> seen;  // key, place
  std::vector<std::string> problems;
  const auto meet = [&](const std::string& key, const std::string& place) {
    const auto [it, is_new] = seen.emplace(key, place);
    if (!is_new) problems.push_back(fmt::format("{}: {} is varied twice; also at {}", place, key, it->second));
  };
  if (!plan.seeds.empty()) meet("run.seed", plan.seeds_place);
  for (const auto& axis : plan.grid) meet(axis.key, axis.place);
  const auto across = seen;
  for (const auto& entry : plan.list) {
    std::set<std::string> here;
    for (const auto& s : entry.settings) {
      const auto it = across.find(s.key);
      if (it != across.end())
        problems.push_back(fmt::format("{}: {} is varied twice; also at {}", s.place, s.key, it->second));
      seen.emplace(s.key, s.place);
    }
  }
  const auto given = [&](const std::string& key, const std::string& flag) {
    const auto it = seen.find(key);
    if (it == seen.end()) return;
    problems.push_back(
        fmt::format("{}: {} is what the sweep varies ({}); leave one of them out", flag, key, it->second));
  };
  for (const auto& set : sources.config.set) given(set.substr(0, set.find('=')), "--set");
  for (const auto& flag : sources.config.flags) given(flag.key, flag.flag);
  if (!problems.empty()) throw Error(ErrorKind::usage, fmt::format("{}", fmt::join(problems, "\n")));
}

void keep_only(const std::vector<std::string>& labels, std::vector<Entry>& list) {
  if (labels.empty()) return;
  ESPALIER_CHECK(!list.empty(), ErrorKind::usage, "--only {}: the sweep has no [[sweep.list]] with labels", labels[0]);
  std::vector<std::string> known;
  for (const auto& entry : list) known.push_back(entry.label);
  for (const auto& label : labels) {
    ESPALIER_CHECK(std::find(known.begin(), known.end(), label) != known.end(), ErrorKind::usage,
                   "--only {}: unknown. Known: {}.{}", label, fmt::join(known, ", "), suggestion(label, known));
  }
  const auto unwanted = [&](const Entry& e) {
    return std::find(labels.begin(), labels.end(), e.label) == labels.end();
  };
  list.erase(std::remove_if(list.begin(), list.end(), unwanted), list.end());
}

// ---- tables
// -------------------------------------------------------------------------------------------------------------------

/// Of summary.json: what another machine, or the same on another day, would say otherwise.
const std::vector<std::string> kTimes{"train_seconds", "samples_per_second", "peak_rss_bytes", "threads", "isa"};

bool is_time(const std::string& field) { return std::find(kTimes.begin(), kTimes.end(), field) != kTimes.end(); }

std::string field_of(const Json& value) {
  if (value.is_null()) return "";
  return csv_field(value.is_string() ? value.get<std::string>() : to_json_line(value));
}

std::string csv_line(const std::vector<std::string>& fields) { return fmt::format("{}\n", fmt::join(fields, ",")); }

Json without_times(Json summary) {
  for (const auto& field : kTimes) summary.erase(field);
  if (summary.contains("storage")) {
    for (auto& layer : summary["storage"]) {
      layer.erase("dense_us");
      layer.erase("compressed_us");
    }
  }
  return summary;
}

}  // namespace

std::vector<Cell> plan_sweep(const SweepSources& sources, std::int64_t threads) {
  Plan plan;
  ConfigSources base = sources.config;
  if (!sources.text.empty()) Reader(sources.name, plan).read(sources.text);
  if (base.file) {
    ESPALIER_CHECK(*base.file != "-", ErrorKind::usage, "a sweep is read more than once: give a file, not -");
    base.other_table = kTable;
    std::error_code ignored;
    ESPALIER_CHECK(fs::is_regular_file(*base.file, ignored), ErrorKind::usage, "{}: {}", *base.file,
                   fs::exists(*base.file, ignored) ? "is not a file" : "there is no such file");
    const std::string text = read_file(*base.file);
    const auto first = text.find_first_not_of(" \t\r\n");
    const bool is_json = first != std::string::npos && text[first] == '{';
    if (!text.empty() && !is_json) {
      try {
        Reader(*base.file, plan).read(text);
      } catch (const Error& error) {
        // A file that is no TOML: the configuration's reader tells all its mistakes at once.
        if (std::string(error.what()).find("not valid TOML") != std::string::npos) load_config(base);
        throw;
      }
    }
  }
  for (const auto& argument : sources.grid) read_grid_argument(argument, plan);
  if (!sources.seeds.empty()) {
    plan.seeds = read_seeds_argument(sources.seeds);
    plan.seeds_place = "--seeds";
  }
  const bool varies = !plan.seeds.empty() || !plan.list.empty() || !plan.grid.empty();
  ESPALIER_CHECK(varies, ErrorKind::usage,
                 "nothing to vary: expected a table [sweep] with seeds, grid or list in the file, --sweep or --seeds");
  check_plan(plan, sources);
  keep_only(sources.only, plan.list);
  if (plan.list.empty()) plan.list.emplace_back();
  if (!plan.preset.empty() && !base.preset) base.preset = plan.preset;

  std::size_t count = plan.list.size() * std::max<std::size_t>(1, plan.seeds.size());
  for (const auto& axis : plan.grid) count *= std::min(axis.values.size(), kMaxCells);
  ESPALIER_CHECK(count <= kMaxCells, ErrorKind::usage, "the sweep has {} cells; expected at most {}", count, kMaxCells);
  std::vector<Axis> axes = plan.grid;
  if (!plan.seeds.empty()) axes.push_back({"run.seed", plan.seeds_place, plan.seeds});
  std::set<std::string> keys;
  for (const auto& axis : axes) keys.insert(axis.key);
  for (const auto& entry : plan.list)
    for (const auto& s : entry.settings) keys.insert(s.key);
  const auto short_name = short_names(keys);

  std::vector<Cell> cells;
  std::vector<std::string> mistakes;
  std::map<std::string, std::string> names;  // and what is behind each
  for (const auto& entry : plan.list) {
    std::vector<std::size_t> at(axes.size(), 0);
    for (bool more = true; more;) {
      std::vector<Assignment> settings = entry.settings;
      for (std::size_t i = 0; i < axes.size(); ++i)
        settings.push_back({axes[i].key, axes[i].place, axes[i].values[at[i]]});
      ConfigSources all = base;
      if (!entry.preset.empty()) all.preset = entry.preset;
      for (const auto& s : settings) all.flags.push_back({s.place, s.key, s.value});
      Cell cell;
      cell.label = entry.label;
      cell.command = entry.command.empty() ? plan.command : entry.command;
      bool good = true;
      try {
        cell.config = load_config(all);
      } catch (const Error& error) {
        if (error.kind() != ErrorKind::usage) throw;
        good = false;
        std::istringstream lines(error.what());
        for (std::string line; std::getline(lines, line);)
          if (std::find(mistakes.begin(), mistakes.end(), line) == mistakes.end()) mistakes.push_back(line);
      }
      if (good) {
        if (cell.config.run.threads == 0) cell.config.run.threads = threads;
        std::string name = entry.label;
        for (std::size_t i = 0; i < settings.size(); ++i) {
          const std::string& key = settings[i].key;
          cell.settings.emplace_back(key, *value_in(cell.config, key));
          if (!entry.label.empty() && i < entry.settings.size()) continue;  // the label says it
          name += (name.empty() ? "" : ",") + short_name.at(key) + "=" + without_quotes(cell.settings.back().second);
        }
        cell.name = folder_name(name);
        const std::string behind = name + to_toml(cell.config);
        if (names.count(cell.name) != 0 && names[cell.name] != behind) {  // names that differ in a letter we can't keep
          cell.name = folder_name(fmt::format("{},{:08x}", name.substr(0, kMaxName / 2), digest_of(behind).crc32));
        }
        ESPALIER_CHECK(names.count(cell.name) == 0, ErrorKind::usage, "two cells of the sweep are the same: {}",
                       cell.name);
        names[cell.name] = behind;
        cells.push_back(std::move(cell));
      }
      more = false;
      for (std::size_t i = axes.size(); i-- > 0 && !more;) {
        more = ++at[i] < axes[i].values.size();
        if (!more) at[i] = 0;
      }
    }
  }
  if (!mistakes.empty()) throw Error(ErrorKind::usage, fmt::format("{}", fmt::join(mistakes, "\n")));
  return cells;
}

std::vector<PresetInfo> known_sweeps() {
  std::vector<PresetInfo> out;
  for (const auto& [name, text] : embedded_sweeps()) out.push_back({name, first_line(text)});
  return out;
}

std::string sweep_text(const std::string& name) {
  std::vector<std::string> known;
  for (const auto& [other, text] : embedded_sweeps()) {
    if (other == name) return text;
    known.push_back(other);
  }
  fail(ErrorKind::usage, "{}: unknown sweep. Known: {}.{}", name, fmt::join(known, ", "), suggestion(name, known));
}

Json to_json(const std::vector<Cell>& cells, std::int64_t threads) {
  Json list = Json::array();
  for (const Cell& cell : cells) {
    Json settings = Json::object();
    for (const auto& [key, value] : cell.settings) settings[key] = Json::parse(value);  // TOML's notation is JSON's too
    list.push_back({{"cell", cell.name}, {"label", cell.label}, {"command", cell.command}, {"settings", settings}});
  }
  return {{"format", "espalier-sweep"}, {"format_version", kFormatVersion}, {"threads", threads}, {"cells", list}};
}

fs::path cell_run(const fs::path& sweep, const std::string& cell) { return sweep / "cells" / cell; }
fs::path cell_config(const fs::path& sweep, const std::string& cell) { return sweep / "cells" / (cell + ".toml"); }

fs::path cell_failure(const fs::path& sweep, const std::string& cell) { return sweep / "cells" / (cell + ".error"); }
fs::path cell_log(const fs::path& sweep, const std::string& cell) { return sweep / "cells" / (cell + ".log"); }

bool may_differ_on_resume(const std::string& key) {
  return key == "data.root" || key == "run.name" || key == "checkpoint.keep";
}

void check_same_sweep(const fs::path& directory, const std::vector<Cell>& cells, bool extend) {
  const fs::path file = directory / "sweep.json";
  const Json saved = read_json(file);
  const bool ours = saved.is_object() && saved.value("format", "") == "espalier-sweep" && saved.contains("cells") &&
                    saved["cells"].is_array();
  ESPALIER_CHECK(ours, ErrorKind::data, "{}: is not the plan of a sweep", file.string());
  const std::int64_t version = saved.value("format_version", std::int64_t{0});
  ESPALIER_CHECK(version == kFormatVersion, ErrorKind::data, "{}: format_version {}; this program reads {}",
                 file.string(), version, kFormatVersion);
  std::set<std::string> before, now;
  for (const auto& cell : saved["cells"]) before.insert(cell.at("cell").get<std::string>());
  std::vector<std::string> differences;
  for (const Cell& cell : cells) {
    now.insert(cell.name);
    if (before.count(cell.name) == 0) {
      if (!extend) differences.push_back(fmt::format("{}: a new cell (--extend adds it)", cell.name));
      continue;
    }
    ConfigSources sources;
    sources.file = cell_config(directory, cell.name).string();
    for (const auto& line : diff(load_config(sources), cell.config)) {
      if (!may_differ_on_resume(line.substr(0, line.find(':'))))
        differences.push_back(fmt::format("{}: {}", cell.name, line));
    }
  }
  for (const auto& name : before)
    if (now.count(name) == 0) differences.push_back(fmt::format("{}: was a cell, is none now", name));
  if (differences.empty()) return;
  const std::size_t hidden = differences.size() - std::min(differences.size(), kMaxDifferences);
  differences.resize(differences.size() - hidden);
  if (hidden > 0) differences.push_back(fmt::format("and {} differences more", hidden));
  fail(ErrorKind::usage,
       "{}: holds a sweep that was started with another plan; choose another --dir, or restore it:\n{}",
       directory.string(), fmt::join(differences, "\n"));
}

CellState state_of(const fs::path& sweep, const std::string& cell) {
  const fs::path run = cell_run(sweep, cell), failure = cell_failure(sweep, cell);
  CellState state;
  std::error_code error;
  if (fs::exists(failure, error)) return {"failed", nullptr, read_file(failure)};
  if (!fs::exists(run / "config.toml", error)) return {"missing", nullptr, ""};
  if (!fs::exists(run / "summary.json", error)) return {"unfinished", nullptr, ""};
  try {
    state.summary = read_json(run / "summary.json");
    ESPALIER_CHECK(state.summary.is_object() && state.summary.contains("status") && state.summary["status"].is_string(),
                   ErrorKind::data, "{}: has no status", (run / "summary.json").string());
    state.status = state.summary["status"].get<std::string>();
  } catch (const Error& e) {
    state = {"damaged", nullptr, e.what()};
  }
  return state;
}

SweepTables tabulate(const fs::path& directory, const std::vector<Cell>& cells) {
  std::vector<std::string> keys, fields;
  std::vector<CellState> states;
  bool labels = false;
  const auto add = [](std::vector<std::string>& list, const std::string& word) {
    if (std::find(list.begin(), list.end(), word) == list.end()) list.push_back(word);
  };
  for (const Cell& cell : cells) {
    labels = labels || !cell.label.empty();
    for (const auto& setting : cell.settings) add(keys, setting.first);
    states.push_back(state_of(directory, cell.name));
    if (!states.back().has_result()) continue;
    for (const auto& [field, value] : states.back().summary.items())
      if (!value.is_structured() && !is_time(field) && field != "status") add(fields, field);
  }
  SweepTables out;
  std::vector<std::string> head = {"cell"};
  if (labels) head.emplace_back("label");
  head.insert(head.end(), keys.begin(), keys.end());
  head.emplace_back("status");
  head.insert(head.end(), fields.begin(), fields.end());
  out.results = csv_line(head);
  head = {"cell"};
  head.insert(head.end(), kTimes.begin(), kTimes.end());
  out.times = csv_line(head);
  Json list = Json::array();
  for (std::size_t i = 0; i < cells.size(); ++i) {
    const Cell& cell = cells[i];
    const CellState& state = states[i];
    const bool result = state.has_result();
    std::vector<std::string> row = {csv_field(cell.name)}, times = row;
    if (labels) row.push_back(csv_field(cell.label));
    Json settings = Json::object();
    for (const auto& key : keys) {
      const auto value = value_in(cell.config, key);
      if (value) settings[key] = Json::parse(*value);
      row.push_back(field_of(value ? settings[key] : Json(nullptr)));
    }
    const std::string status = result || state.status == "failed" ? state.status : "unfinished";
    row.push_back(status);
    for (const auto& field : fields) row.push_back(result ? field_of(state.summary.value(field, Json())) : "");
    for (const auto& field : kTimes) times.push_back(result ? field_of(state.summary.value(field, Json())) : "");
    out.results += csv_line(row);
    out.times += csv_line(times);
    Json object = {{"cell", cell.name}, {"label", cell.label}, {"settings", settings}};
    object["status"] = status;
    if (status == "failed") object["error"] = state.problem;
    object["summary"] = result ? without_times(state.summary) : Json(nullptr);
    list.push_back(std::move(object));
  }
  out.json = {{"format", "espalier-sweep-results"}, {"format_version", kFormatVersion}, {"cells", list}};
  return out;
}

}  // namespace espalier::train
