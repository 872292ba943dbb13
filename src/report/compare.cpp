#include "espalier/report/compare.h"

#include <toml++/toml.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <optional>
#include <set>
#include <sstream>

#include "espalier/core/csv.h"
#include "espalier/core/error.h"
#include "espalier/core/text.h"
#include "espalier/report/run.h"
#include "espalier/report/statistics.h"

namespace espalier::report {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxKeysInText = 8;

/// Keys that change how a run is carried out and not what comes out of it; the seed is what groups are made over.
bool sets_apart(const std::string& key) {
  static const std::set<std::string> kIgnored{"run.seed", "run.name", "run.threads", "data.root"};
  return kIgnored.count(key) == 0 && key.rfind("checkpoint.", 0) != 0 && key.rfind("log.", 0) != 0;
}

/// What is shown where it is there, in this order.
const std::vector<std::string> kUsual{"test_accuracy", "average_accuracy", "forgetting",
                                      "val_accuracy",  "test_loss",        "sparsity",
                                      "nnz",           "flops_forward",    "train_seconds"};

std::string text_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  ESPALIER_CHECK(file, ErrorKind::data, "{}: cannot be read", path.string());
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

Json value_of(const toml::node& node) {
  if (const auto* v = node.as_boolean()) return v->get();
  if (const auto* v = node.as_integer()) return v->get();
  if (const auto* v = node.as_floating_point()) return v->get();
  if (const auto* v = node.as_string()) return v->get();
  Json out = Json::array();
  if (const auto* list = node.as_array())
    for (const auto& item : *list) out.push_back(value_of(item));
  return out;
}

Json read_config(const fs::path& path) {
  Json flat = Json::object();
  try {
    const toml::table root = toml::parse(text_of(path));
    for (const auto& [name, node] : root) {
      const auto* table = node.as_table();
      if (table == nullptr) continue;
      for (const auto& [key, value] : *table)
        flat[std::string(name.str()) + "." + std::string(key.str())] = value_of(value);
    }
  } catch (const toml::parse_error& error) {
    fail(ErrorKind::data, "{}: is not TOML (line {}): {}", path.string(), error.source().begin.line,
         error.description());
  }
  return flat;
}

Json read_summary(const fs::path& path) {
  const Json all = Json::parse(text_of(path), nullptr, /*allow_exceptions=*/false);
  ESPALIER_CHECK(all.is_object() && all.contains("status") && all["status"].is_string(), ErrorKind::data,
                 "{}: is not the summary of a run", path.string());
  Json plain = Json::object();
  for (const auto& [field, value] : all.items())
    if (!value.is_structured()) plain[field] = value;
  return plain;
}

RunResult read_run(const fs::path& path, const std::string& label) {
  RunResult run;
  run.path = path;
  run.label = label;
  run.config = run.summary = Json::object();
  try {
    run.config = read_config(path / "config.toml");
    if (!fs::exists(path / "summary.json")) {
      run.status = "unfinished";
      return run;
    }
    run.summary = read_summary(path / "summary.json");
    run.status = run.summary["status"].get<std::string>();
  } catch (const std::exception& error) {
    run.status = "damaged";
    run.problem = error.what();
  }
  return run;
}

bool is_run(const fs::path& path) {
  std::error_code error;
  return fs::exists(path / "config.toml", error);
}

std::vector<fs::path> runs_in(const fs::path& path) {
  std::vector<fs::path> out;
  std::error_code error;
  for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error))
    if (it->is_directory(error) && is_run(it->path())) out.push_back(it->path());
  std::sort(out.begin(), out.end());
  return out;
}

/// Cells in the order of the plan, those that have not begun too; empty if sweep.json is not one.
std::vector<RunResult> read_sweep(const fs::path& path) {
  std::vector<RunResult> out;
  const Json plan = Json::parse(text_of(path / "sweep.json"), nullptr, false);
  if (!plan.is_object() || !plan.contains("cells") || !plan["cells"].is_array()) return out;
  for (const auto& cell : plan["cells"]) {
    if (!cell.is_object() || !cell.contains("cell") || !cell["cell"].is_string()) continue;
    const fs::path run = path / "cells" / cell["cell"].get<std::string>();
    const std::string label =
        cell.contains("label") && cell["label"].is_string() ? cell["label"].get<std::string>() : "";
    out.push_back(is_run(run) ? read_run(run, label)
                              : RunResult{run, label, "unfinished", "", Json::object(), Json::object()});
  }
  return out;
}

// ---- fields
// -------------------------------------------------------------------------------------------------------------------

Json value_in(const RunResult& run, const std::string& field) {
  if (field == "label") return run.label;
  if (field == "run") return run.path.string();
  if (run.config.contains(field)) return run.config[field];
  if (run.summary.contains(field)) return run.summary[field];
  return nullptr;
}

/// The full name of a field that the user has written.
std::string resolve(const std::string& name, const std::vector<RunResult>& runs, const std::string& where) {
  std::vector<std::string> all = {"label", "run"};
  std::set<std::string> ends_so;
  for (const auto& run : runs) {
    for (const Json* object : {&run.summary, &run.config}) {
      for (const auto& [field, value] : object->items()) {
        if (field == name) return name;
        all.push_back(field);
        const auto dot = field.find('.');
        if (dot == std::string::npos) continue;
        all.push_back(field.substr(dot + 1));
        if (field.substr(dot + 1) == name || (field.substr(0, dot) == name && field.substr(dot + 1) == "name"))
          ends_so.insert(field);
      }
    }
  }
  if (name == "label" || name == "run") return name;
  if (ends_so.size() == 1) return *ends_so.begin();
  ESPALIER_CHECK(ends_so.empty(), ErrorKind::usage, "{}: {} may be any of {}; write it in full", where, name,
                 fmt::join(ends_so, ", "));
  std::sort(all.begin(), all.end());
  all.erase(std::unique(all.begin(), all.end()), all.end());
  std::set<std::string> results;
  for (const auto& run : runs)
    for (const auto& item : run.summary.items()) results.insert(item.key());
  fail(ErrorKind::usage, "{}: no run has a field {}.{} Known: {}; and the keys of config.toml", where, name,
       suggestion(name, all), fmt::join(results, ", "));
}

std::string plain_text(const Json& value) {
  if (value.is_null()) return "";
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number_float()) return fmt::format("{}", value.get<double>());
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::optional<double> number_in(const std::string& text) {
  double value = 0;
  const auto end = text.data() + text.size();
  const auto read = std::from_chars(text.data(), end, value);
  if (read.ec != std::errc() || read.ptr != end) return std::nullopt;
  return value;
}

struct Filter {
  std::string field, comparison, value;
};

Filter read_filter(const std::string& text, const std::vector<RunResult>& runs) {
  const auto at = text.find_first_of("=!<>");
  ESPALIER_CHECK(at != std::string::npos && at > 0, ErrorKind::usage,
                 "--filter {}: expected FIELD=VALUE, or with !=, <, <=, >, >=", text);
  const std::size_t length = at + 1 < text.size() && text[at + 1] == '=' ? 2 : 1;
  Filter filter{resolve(text.substr(0, at), runs, "--filter " + text), text.substr(at, length),
                text.substr(at + length)};
  if (filter.comparison == "==") filter.comparison = "=";
  ESPALIER_CHECK(filter.comparison != "!", ErrorKind::usage, "--filter {}: expected !=", text);
  ESPALIER_CHECK(filter.comparison == "=" || filter.comparison == "!=" || number_in(filter.value), ErrorKind::usage,
                 "--filter {}: {} needs a number", text, filter.comparison);
  return filter;
}

bool meets(const RunResult& run, const Filter& filter) {
  const Json found = value_in(run, filter.field);
  const auto wanted = number_in(filter.value);
  const auto& c = filter.comparison;
  if (found.is_number() && wanted) {
    const double x = found.get<double>(), y = *wanted;
    return c == "=" ? x == y : c == "!=" ? x != y : c == "<" ? x < y : c == "<=" ? x <= y : c == ">" ? x > y : x >= y;
  }
  if (c != "=" && c != "!=") return false;
  return (plain_text(found) == filter.value) == (c == "=");
}

/// Before, after or neither: numbers by size and before words, what is missing last.
bool before(const Json& a, const Json& b) {
  const auto kind = [](const Json& v) { return v.is_number() ? 0 : v.is_null() ? 2 : 1; };
  if (kind(a) != kind(b)) return kind(a) < kind(b);
  if (a.is_number()) return a.get<double>() < b.get<double>();
  return plain_text(a) < plain_text(b);
}

// ---- text
// ---------------------------------------------------------------------------------------------------------------------

int decimals_of(double x) { return std::abs(x) < 10 ? 4 : std::abs(x) < 1000 ? 2 : 0; }

std::string number_text(double x, bool integer) {
  if (integer) return fmt::format("{}", static_cast<std::int64_t>(x));
  return fmt::format("{:.{}f}", x, decimals_of(x));
}

std::string with_spread(const Statistics& s, Spread spread) {
  if (s.n == 0) return "-";
  const std::string mean = number_text(s.mean, s.integers && s.min == s.max);
  if (s.n < 2 || s.min == s.max) return mean;
  if (spread == Spread::range)
    return fmt::format("{} [{}, {}]", mean, number_text(s.min, s.integers), number_text(s.max, s.integers));
  return fmt::format("{} ± {:.{}f}", mean, spread == Spread::ci95 ? s.ci95 : s.deviation, decimals_of(s.mean));
}

/// A key for readers: ten digits, so that 1.2999999999999998 is 1.3.
std::string shown_text(const Json& key) {
  return key.is_number_float() ? fmt::format("{:.10g}", key.get<double>()) : printable(plain_text(key));
}

std::string count_text(const Group& group) {
  if (group.diverged == 0) return std::to_string(group.done);
  return fmt::format("{} ({} diverged)", group.done + group.diverged, group.diverged);
}

std::vector<std::vector<std::string>> rows_of(const Comparison& c, Spread spread, std::size_t max_keys) {
  const std::size_t keys = std::min(max_keys, c.keys.size());
  std::vector<std::vector<std::string>> rows(1);
  for (std::size_t k = 0; k < keys; ++k) rows[0].push_back(c.keys[k]);
  rows[0].emplace_back("seeds");
  rows[0].insert(rows[0].end(), c.fields.begin(), c.fields.end());
  for (const Group& group : c.groups) {
    std::vector<std::string> row;
    for (std::size_t k = 0; k < keys; ++k) row.push_back(shown_text(group.keys[k]));
    row.push_back(count_text(group));
    for (const Statistics& s : group.values) row.push_back(with_spread(s, spread));
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace

std::vector<RunResult> read_runs(const std::vector<fs::path>& paths) {
  std::vector<RunResult> out;
  std::set<std::string> seen;
  const auto add = [&](RunResult run) {
    std::error_code error;
    const fs::path canonical = fs::weakly_canonical(run.path, error);
    if (seen.insert(error ? run.path.string() : canonical.string()).second) out.push_back(std::move(run));
  };
  for (const fs::path& given : paths) {
    const fs::path path = given.has_filename() ? given : given.parent_path();  // "runs/a/"
    std::error_code error;
    ESPALIER_CHECK(fs::is_directory(path, error), ErrorKind::usage, "{}: there is no such directory", given.string());
    if (is_run(path)) {
      add(read_run(path, ""));
      continue;
    }
    std::vector<RunResult> found;
    if (fs::exists(path / "sweep.json", error)) found = read_sweep(path);
    if (found.empty())
      for (const fs::path& run : runs_in(path)) found.push_back(read_run(run, ""));
    ESPALIER_CHECK(!found.empty(), ErrorKind::usage,
                   "{}: holds no run (config.toml), no sweep (sweep.json) and no directory of a run{}", given.string(),
                   runs_below(path));
    for (auto& run : found) add(std::move(run));
  }
  return out;
}

Statistics statistics(const std::vector<double>& values) {
  const Interval interval = mean_interval(values);
  Statistics s;
  s.n = interval.count;
  if (s.n == 0) return s;
  s.mean = interval.mean;
  if (s.n > 1) {
    s.deviation = interval.deviation;
    s.ci95 = (interval.high - interval.low) / 2;
  }
  s.min = INFINITY;
  s.max = -INFINITY;
  for (const double v : values) {
    if (!std::isfinite(v)) continue;
    s.min = std::min(s.min, v);
    s.max = std::max(s.max, v);
    s.integers = s.integers && v == std::floor(v) && std::abs(v) < 9e15;
  }
  return s;
}

Comparison compare(const std::vector<RunResult>& runs, const CompareOptions& options) {
  Comparison out;
  std::vector<Filter> filters;
  for (const auto& text : options.filters) filters.push_back(read_filter(text, runs));
  std::vector<const RunResult*> taken;
  bool labelled = true;
  for (const RunResult& run : runs) {
    // A filter on the configuration holds for unfinished runs too: they need not be mentioned then.
    const bool wanted = std::all_of(filters.begin(), filters.end(), [&](const Filter& f) { return meets(run, f); });
    if (run.status == "damaged")
      out.left_out.push_back({run.path, run.problem});
    else if (!run.finished() && (wanted || run.config.empty()))
      out.left_out.push_back({run.path, run.status == "unfinished" ? "not finished" : run.status});
    if (!run.finished() || !wanted) continue;
    taken.push_back(&run);
    labelled = labelled && !run.label.empty();
  }

  // What differs: between any two runs (that makes the groups), and what of it is worth a column.
  std::vector<std::string> all_keys;
  std::set<std::string> known;
  for (const auto* run : taken)
    for (const auto& item : run->config.items())
      if (sets_apart(item.key()) && known.insert(item.key()).second) all_keys.push_back(item.key());
  const auto varies = [&](const std::string& key, bool within_labels) {
    std::map<std::string, std::string> first;
    for (const auto* run : taken) {
      const std::string value = value_in(*run, key).dump(-1, ' ', false, Json::error_handler_t::replace);
      const auto it = first.emplace(within_labels ? run->label : "", value).first;
      if (it->second != value) return true;
    }
    return false;
  };
  std::vector<std::string> grouping;
  if (!options.by.empty()) {
    for (const auto& name : options.by) grouping.push_back(resolve(name, runs, "--by " + name));
    out.keys = grouping;
  } else {
    if (std::any_of(taken.begin(), taken.end(), [](const auto* r) { return !r->label.empty(); }))
      grouping.emplace_back("label");
    out.keys = grouping;
    for (const auto& key : all_keys) {
      if (!varies(key, false)) continue;
      grouping.push_back(key);
      // Entries of a sweep's list differ in whatever they are; their labels say it.
      if (!labelled || varies(key, true)) out.keys.push_back(key);
    }
  }
  if (options.each) {
    grouping.emplace_back("run");
    out.keys.insert(out.keys.begin(), "run");
    if (varies("run.seed", false)) out.keys.emplace_back("run.seed");
  }

  if (!options.fields.empty()) {
    for (const auto& name : options.fields) out.fields.push_back(resolve(name, runs, "--fields " + name));
  } else {
    for (const auto& field : kUsual) {
      if (std::any_of(taken.begin(), taken.end(),
                      [&](const auto* r) { return r->summary.contains(field) && r->summary[field].is_number(); }))
        out.fields.push_back(field);
    }
  }

  std::map<std::string, std::size_t> place;
  std::vector<std::vector<const RunResult*>> members;
  for (const auto* run : taken) {
    Json id = Json::array();
    for (const auto& key : grouping) id.push_back(value_in(*run, key));
    const auto [it, is_new] = place.emplace(id.dump(-1, ' ', false, Json::error_handler_t::replace), out.groups.size());
    if (is_new) {
      Group group;
      for (const auto& key : out.keys) group.keys.push_back(value_in(*run, key));
      out.groups.push_back(std::move(group));
      members.emplace_back();
    }
    Group& group = out.groups[it->second];
    group.runs.push_back(run->path);
    ++(run->status == "done" ? group.done : group.diverged);
    const Json seed = value_in(*run, "run.seed");
    if (seed.is_number_integer()) group.seeds.push_back(seed.get<std::int64_t>());
    members[it->second].push_back(run);
  }
  const auto statistics_of = [&](std::size_t g, const std::string& field) {
    std::vector<double> values;
    for (const auto* run : members[g]) {
      const Json value = value_in(*run, field);
      if (run->status == "done" && value.is_number()) values.push_back(value.get<double>());
    }
    return statistics(values);
  };
  for (std::size_t g = 0; g < out.groups.size(); ++g)
    for (const auto& field : out.fields) out.groups[g].values.push_back(statistics_of(g, field));

  if (!options.sort.empty()) {
    const std::string field = resolve(options.sort, runs, "--sort " + options.sort);
    std::vector<std::pair<Json, std::size_t>> order;
    for (std::size_t g = 0; g < out.groups.size(); ++g) {
      const Statistics s = statistics_of(g, field);
      const bool result = members[g].front()->summary.contains(field) && field != "label";
      order.emplace_back(result ? (s.n > 0 ? Json(s.mean) : Json()) : value_in(*members[g].front(), field), g);
    }
    std::stable_sort(order.begin(), order.end(), [&](const auto& a, const auto& b) {
      if (a.first.is_null() || b.first.is_null()) return b.first.is_null() && !a.first.is_null();
      return options.descending ? before(b.first, a.first) : before(a.first, b.first);
    });
    std::vector<Group> sorted;
    for (const auto& item : order) sorted.push_back(std::move(out.groups[item.second]));
    out.groups = std::move(sorted);
  }
  return out;
}

std::string to_text(const Comparison& c, Spread spread) {
  const auto rows = rows_of(c, spread, kMaxKeysInText);
  std::vector<std::size_t> widths(rows[0].size(), 0);
  for (const auto& row : rows)
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], width_of(row[i]));
  std::string out;
  for (const auto& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i)
      line += row[i] + (i + 1 < row.size() ? std::string(widths[i] - width_of(row[i]) + 2, ' ') : "");
    out += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  if (c.keys.size() > kMaxKeysInText)
    out += fmt::format("(keys that differ and are not shown: {}; --format csv or markdown shows them, --by chooses)\n",
                       c.keys.size() - kMaxKeysInText);
  return out;
}

std::string to_markdown(const Comparison& c, Spread spread) {
  const auto rows = rows_of(c, spread, c.keys.size());
  std::string out;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    out += "|";
    for (std::string cell : rows[r]) {
      for (std::size_t at = 0; (at = cell.find_first_of("|\\", at)) != std::string::npos; at += 2)
        cell.insert(at, "\\");
      out += " " + cell + " |";
    }
    out += "\n";
    if (r > 0) continue;
    out += "|";
    for (std::size_t i = 0; i < rows[0].size(); ++i) out += "---|";
    out += "\n";
  }
  return out;
}

std::string to_csv(const Comparison& c) {
  std::vector<std::string> head;
  for (const auto& key : c.keys) head.push_back(csv_field(key));
  head.insert(head.end(), {"runs", "diverged"});
  for (const auto& field : c.fields)
    for (const char* part : {"n", "mean", "deviation", "ci95", "min", "max"})
      head.push_back(csv_field(field + "_" + part));
  std::string out = fmt::format("{}\n", fmt::join(head, ","));
  for (const Group& group : c.groups) {
    std::vector<std::string> row;
    for (const Json& key : group.keys) row.push_back(csv_field(plain_text(key)));
    row.push_back(std::to_string(group.runs.size()));
    row.push_back(std::to_string(group.diverged));
    for (const Statistics& s : group.values) {
      row.push_back(std::to_string(s.n));
      for (const double v : {s.mean, s.deviation, s.ci95, s.min, s.max})
        row.push_back(s.n > 0 ? fmt::format("{}", v) : "");
    }
    out += fmt::format("{}\n", fmt::join(row, ","));
  }
  return out;
}

Json to_json(const Comparison& c) {
  Json groups = Json::array();
  for (const Group& group : c.groups) {
    Json keys = Json::object(), values = Json::object(), runs = Json::array();
    for (std::size_t k = 0; k < c.keys.size(); ++k) keys[c.keys[k]] = group.keys[k];
    for (std::size_t f = 0; f < c.fields.size(); ++f) {
      const Statistics& s = group.values[f];
      values[c.fields[f]] =
          s.n == 0 ? Json{{"n", 0}} : Json{{"n", s.n},       {"mean", s.mean}, {"deviation", s.deviation},
                                           {"ci95", s.ci95}, {"min", s.min},   {"max", s.max}};
    }
    for (const auto& run : group.runs) runs.push_back(run.string());
    groups.push_back({{"keys", keys},
                      {"runs", runs},
                      {"done", group.done},
                      {"diverged", group.diverged},
                      {"seeds", group.seeds},
                      {"values", values}});
  }
  Json left_out = Json::array();
  for (const auto& item : c.left_out) left_out.push_back({{"run", item.run.string()}, {"reason", item.reason}});
  return {{"keys", c.keys}, {"fields", c.fields}, {"groups", groups}, {"left_out", left_out}};
}

}  // namespace espalier::report
