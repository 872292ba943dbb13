#include "espalier/report/run.h"

#include <fmt/format.h>
#include <toml++/toml.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
#include <limits>
#include <optional>
#include <sstream>

#include "espalier/core/error.h"

namespace espalier::report {
namespace {

namespace fs = std::filesystem;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr std::size_t kNotesOfAKind = 5;

std::optional<std::string> content_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return std::nullopt;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

/// Null where there is none; a damaged one is a note.
Json json_file(const fs::path& path, Run& run) {
  const auto text = content_of(path);
  if (!text) return nullptr;
  Json value = Json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (value.is_object()) return value;
  run.notes.push_back(fmt::format("{} is no JSON object: left out", path.filename().string()));
  return nullptr;
}

std::string text_of(const toml::node& node) {
  if (const auto* value = node.as_string()) return value->get();
  if (const auto* value = node.as_integer()) return fmt::format("{}", value->get());
  if (const auto* value = node.as_floating_point()) return fmt::format("{:g}", value->get());
  if (const auto* value = node.as_boolean()) return value->get() ? "true" : "false";
  std::string text;
  if (const auto* values = node.as_array()) {
    for (const auto& value : *values) text += (text.empty() ? "" : ", ") + text_of(value);
  }
  return text;
}

void flatten(const toml::table& table, const std::string& prefix, std::map<std::string, std::string>& out) {
  for (const auto& [key, node] : table) {
    const std::string name = prefix + std::string(key.str());
    if (const auto* inner = node.as_table())
      flatten(*inner, name + ".", out);
    else
      out[name] = text_of(node);
  }
}

void read_config(Run& run) {
  const auto text = content_of(run.path / "config.toml");
  if (!text) return;
  try {
    flatten(toml::parse(*text), "", run.config);
  } catch (const toml::parse_error& e) {
    run.notes.push_back(
        fmt::format("config.toml can't be read: {} (line {})", std::string(e.description()), e.source().begin.line));
  }
}

/// Each whole line of a file as an object with an event and a step; what is damaged becomes a note. Nothing but one
/// line is held at a time.
void for_each_event(const fs::path& path, Run& run,
                    const std::function<void(const std::string& event, double step, const Json& fields)>& use) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return;
  std::size_t damaged = 0;
  std::string text;
  for (std::size_t line = 1; std::getline(file, text); ++line) {
    const bool whole = !file.eof();  // the last line, without its end: somebody is writing it
    bool good = false;
    try {
      const Json event = Json::parse(text);
      use(event.at("event").get<std::string>(), event.at("step").get<double>(), event);
      good = true;
    } catch (const Json::exception&) {  // not JSON, or not what a key of that name holds
    }
    if (!good && whole && !text.empty() && ++damaged <= kNotesOfAKind) {
      run.notes.push_back(fmt::format("{}:{}: damaged line, left out", path.filename().string(), line));
    }
  }
  if (damaged > kNotesOfAKind) {
    run.notes.push_back(fmt::format("{}: {} damaged lines in all, left out", path.filename().string(), damaged));
  }
}

void add(std::map<std::string, Series>& curves, const std::string& key, double step, const Json& value) {
  // null is "does not apply", and leaves no point; "nan" and "inf" are values.
  const bool word = value.is_string() && (value == "nan" || value == "inf" || value == "-inf");
  if (!value.is_number() && !word) return;
  Series& series = curves[key];
  series.step.push_back(step);
  series.value.push_back(number_of(value));
}

Layer& layer_of(Run& run, const Json& row) {
  const auto named = row.find("name");
  const std::string name = named != row.end() && named->is_string() ? named->get<std::string>() : "";
  const auto at = std::find_if(run.layers.begin(), run.layers.end(), [&](const Layer& l) { return l.name == name; });
  if (at != run.layers.end()) return *at;
  run.layers.emplace_back();
  run.layers.back().name = name;
  return run.layers.back();
}

void take_shape(Layer& layer, const Json& row) {
  const auto shape = row.find("shape");
  if (!layer.shape.empty() || shape == row.end() || !shape->is_array()) return;
  for (const Json& size : *shape) {
    if (!size.is_number_integer() || size.get<std::int64_t>() <= 0) {
      layer.shape.clear();
      return;
    }
    layer.shape.push_back(size.get<std::int64_t>());
  }
}

void take_layers(Run& run, const std::string& event, double step, const Json& layers) {
  if (!layers.is_array()) return;
  for (const Json& row : layers) {
    if (!row.is_object()) continue;
    Layer& layer = layer_of(run, row);
    take_shape(layer, row);
    for (const auto& [key, value] : row.items()) {
      if (key != "scale" && key != "first") add(layer.curves, event + "." + key, step, value);
    }
    if (event != "weights" || !row.contains("counts") || !row["counts"].is_array()) continue;
    Histogram h;
    h.step = step;
    h.scale = static_cast<int>(number_of(row.value("scale", Json(0))));
    h.first = row.value("first", std::int64_t{0});
    for (const Json& count : row["counts"]) h.counts.push_back(std::max(0.0, number_of(count)));
    const auto bins = static_cast<std::int64_t>(h.counts.size());
    if (h.first >= 0 && h.first + bins <= 256 && std::abs(h.scale) < 600) layer.histograms.push_back(std::move(h));
  }
}

void take_event(Run& run, const std::string& event, double step, const Json& fields) {
  run.last_step = std::max(run.last_step, step);
  std::string prefix = event + ".";
  if (event == "eval") prefix += fields.value("split", std::string("validation")) + ".";
  if (event == "task") run.tasks.push_back(fields);
  for (const auto& [key, value] : fields.items()) {
    if (key != "step" && key != "event") add(run.curves, prefix + key, step, value);
  }
  if (event == "epoch" && number_of(fields.value("epoch", Json(0))) > 0) {
    // Epochs begin anew with each task of a sequence: no clock for the whole of it.
    run.steps_per_epoch = fields.contains("task") ? 0 : step / number_of(fields["epoch"]);
  }
  if (fields.contains("layers")) take_layers(run, event, step, fields["layers"]);
  if (event == "warning" && run.notes.size() < 20) {
    run.notes.push_back(fmt::format("step {:.0f}: {}", step, fields.value("text", std::string())));
  }
}

void read_prunings(Run& run) {
  std::error_code error;
  std::vector<fs::path> files;
  for (fs::directory_iterator it(run.path / "prune", error), end; !error && it != end; it.increment(error)) {
    if (it->path().extension() == ".json") files.push_back(it->path());
  }
  std::sort(files.begin(), files.end());
  const fs::path beside = run.path.string() + ".pruned.json";  // what espalier reproduce leaves
  if (files.empty() && fs::exists(beside, error)) files.push_back(beside);
  for (const fs::path& file : files) {
    Json pruning = json_file(file, run);
    if (pruning.is_object() && pruning.contains("points") && pruning["points"].is_array()) {
      run.prunings.push_back(std::move(pruning));
    }
  }
}

bool is_run(const fs::path& path) {
  std::error_code error;
  for (const char* file : {"config.toml", "metrics.jsonl", "summary.json"}) {
    if (fs::exists(path / file, error)) return true;
  }
  return false;
}

/// What `espalier init --json` printed.
Run read_init(const fs::path& path) {
  const auto text = content_of(path);
  ESPALIER_CHECK(text, ErrorKind::usage, "{}: can't be read", path.string());
  Run run;
  run.path = path;
  run.name = path.stem().string();
  run.status = "init";
  run.init = Json::parse(*text, nullptr, /*allow_exceptions=*/false);
  const bool good = run.init.is_object() && run.init.contains("layers") && run.init["layers"].is_array() &&
                    run.init.contains("method");
  ESPALIER_CHECK(good, ErrorKind::usage,
                 "{}: neither a run directory nor what espalier init --json prints (with layers and method)",
                 path.string());
  for (const Json& row : run.init["layers"]) {
    if (row.is_object()) take_shape(layer_of(run, row), row);
  }
  for (const auto& [key, config] : {std::pair("model", "model.name"), {"method", "method.name"}}) {
    const Json value = run.init.value(key, Json());
    if (value.is_string()) run.config[config] = value.get<std::string>();
  }
  const double sparsity = number_of(run.init.value("sparsity", Json()));
  if (std::isfinite(sparsity)) run.config["sparsity.sparsity"] = fmt::format("{:.4g}", sparsity);
  run.summary = Json::object();
  for (const char* key : {"seed", "sparsity", "nnz", "weights"}) run.summary[key] = run.init.value(key, Json());
  return run;
}

}  // namespace

double number_of(const Json& value) {
  if (value.is_number()) return value.get<double>();
  if (value == "inf") return std::numeric_limits<double>::infinity();
  if (value == "-inf") return -std::numeric_limits<double>::infinity();
  return kNan;
}

std::int64_t Layer::weights() const {
  if (shape.empty()) return 0;
  std::int64_t n = 1;
  for (const std::int64_t size : shape) n *= size;
  return n;
}

const Series* Run::curve(const std::string& key) const {
  const auto at = curves.find(key);
  return at == curves.end() || at->second.empty() ? nullptr : &at->second;
}

const Layer* Run::layer(const std::string& layer_name) const {
  const auto at = std::find_if(layers.begin(), layers.end(), [&](const Layer& l) { return l.name == layer_name; });
  return at == layers.end() ? nullptr : &*at;
}

double Run::number(const char* key) const {
  if (!summary.is_object()) return kNan;
  const auto at = summary.find(key);
  return at == summary.end() ? kNan : number_of(*at);
}

std::vector<fs::path> find_runs(const fs::path& path) {
  std::error_code error;
  if (!fs::is_directory(path, error) || is_run(path)) return {path};
  std::vector<fs::path> found;
  for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
    if (it->is_directory(error) && is_run(it->path())) found.push_back(it->path());
  }
  std::sort(found.begin(), found.end());
  if (found.empty() && fs::is_directory(path / "cells", error)) return find_runs(path / "cells");  // of a sweep
  return found.empty() ? std::vector<fs::path>{path} : found;
}

std::string runs_below(const fs::path& path) {
  std::error_code error;
  for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
    if (it->is_directory(error) && is_run(find_runs(it->path()).front()))
      return fmt::format(" (a folder in it holds some: {})", it->path().string());
  }
  return "";
}

Run read_run(const fs::path& path) {
  std::error_code error;
  if (fs::is_regular_file(path, error)) return read_init(path);
  ESPALIER_CHECK(fs::is_directory(path, error), ErrorKind::usage, "{}: no such directory; expected that of a run",
                 path.string());
  ESPALIER_CHECK(
      is_run(path), ErrorKind::usage,
      "{}: no run here: neither config.toml nor metrics.jsonl nor summary.json{}; expected what espalier train "
      "--run-dir has written",
      path.string(), runs_below(path));
  Run run;
  run.path = path;
  const fs::path whole = fs::weakly_canonical(path, error);
  run.name = (error ? path : whole).filename().string();
  read_config(run);
  run.summary = json_file(path / "summary.json", run);
  run.env = json_file(path / "env.json", run);
  run.init = json_file(path / "init.json", run);
  if (run.summary.is_object() && run.summary.contains("storage") && run.summary["storage"].is_array()) {
    for (const Json& row : run.summary["storage"]) {
      if (row.is_object()) take_shape(layer_of(run, row), row);
    }
  }
  // weights.jsonl first: it names every layer from the first step on, in the order of the model.
  for_each_event(path / "weights.jsonl", run, [&](const std::string& event, double step, const Json& fields) {
    if (event == "weights" && fields.contains("layers")) take_layers(run, event, step, fields["layers"]);
  });
  for_each_event(path / "metrics.jsonl", run, [&](const std::string& event, double step, const Json& fields) {
    take_event(run, event, step, fields);
  });
  for_each_event(path / "timing.jsonl", run, [&](const std::string& event, double step, const Json& fields) {
    if (event != "epoch") return;
    for (const auto& [key, value] : fields.items()) {
      if (key != "step") add(run.curves, "timing." + key, step, value);
    }
  });
  read_prunings(run);
  for (const char* checkpoint : {"latest", "best"}) {
    const auto bytes = fs::file_size(path / "checkpoints" / checkpoint / "model.safetensors", error);
    if (!error) {
      run.model_bytes = static_cast<std::int64_t>(bytes);
      break;
    }
  }
  run.status = "unfinished";
  if (run.summary.is_object()) {
    if (run.summary.contains("status") && run.summary["status"].is_string()) run.status = run.summary["status"];
    if (run.number("schema") > 1) {
      run.notes.push_back(fmt::format(
          "summary.json has schema {:g}, this program knows 1: what is new in it is left out", run.number("schema")));
    }
    if (run.summary.contains("error") && run.summary["error"].is_string()) run.notes.push_back(run.summary["error"]);
  }
  if (run.status == "unfinished") {
    run.notes.push_back(
        fmt::format("the run is not finished: there is no summary.json yet; last step {:.0f}", run.last_step));
  } else if (run.status == "stopped") {
    run.notes.push_back(
        fmt::format("the run was stopped at step {:.0f}: espalier train --resume goes on with it", run.last_step));
  }
  return run;
}

}  // namespace espalier::report
