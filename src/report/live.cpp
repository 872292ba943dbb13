#include "espalier/report/live.h"

#include <signal.h>
#include <sys/stat.h>
#include <toml++/toml.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <ctime>
#include <fstream>
#include <sstream>

#include "espalier/core/error.h"
#include "espalier/core/text.h"

namespace espalier::report {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kRemembered = 256;  // bytes before the offset
constexpr std::size_t kPoints = 512;      // of the loss, at least half of them kept
constexpr std::size_t kMaxWarnings = 5;
constexpr std::size_t kMaxLayers = 24;  // shown
constexpr std::size_t kBar = 24;

std::optional<std::string> text_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return std::nullopt;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::optional<double> number_at(const Json& object, const char* key) {
  if (!object.is_object() || !object.contains(key)) return std::nullopt;
  const Json& value = object[key];
  if (value.is_number()) return value.get<double>();
  if (value == "nan") return std::nan("");
  if (value == "inf") return INFINITY;
  if (value == "-inf") return -INFINITY;
  return std::nullopt;
}

std::optional<std::int64_t> integer(const Json& object, const char* key) {
  if (!object.is_object() || !object.contains(key) || !object[key].is_number_integer()) return std::nullopt;
  return object[key].get<std::int64_t>();
}

std::string word(const Json& object, const char* table, const char* key) {
  if (!object.is_object() || !object.contains(table) || !object[table].contains(key)) return "";
  const Json& value = object[table][key];
  return value.is_string() ? value.get<std::string>() : value.dump();
}

Json read_config(const fs::path& path) {
  const auto text = text_of(path);
  if (!text) return nullptr;
  Json out = Json::object();
  try {
    const toml::table root = toml::parse(*text);
    for (const auto& [name, node] : root) {
      const auto* table = node.as_table();
      if (table == nullptr) continue;
      Json& to = out[std::string(name.str())] = Json::object();
      for (const auto& [key, value] : *table) {
        const std::string k(key.str());
        if (const auto* v = value.as_boolean()) to[k] = v->get();
        if (const auto* v = value.as_integer()) to[k] = v->get();
        if (const auto* v = value.as_floating_point()) to[k] = v->get();
        if (const auto* v = value.as_string()) to[k] = v->get();
      }
    }
  } catch (const toml::parse_error&) {
    return nullptr;
  }
  return out;
}

double changed_at(const fs::path& path) {
  struct stat s {};
  if (::stat(path.c_str(), &s) != 0) return 0;
  return static_cast<double>(s.st_mtim.tv_sec) + 1e-9 * static_cast<double>(s.st_mtim.tv_nsec);
}

/// The process that .espalier.lock names ("4711 on host"), if it lives; 0 otherwise. Trying the lock itself could
/// refuse it to a run that is just starting.
std::int64_t process_in(const fs::path& run) {
  const auto text = text_of(run / ".espalier.lock");
  if (!text) return 0;
  std::istringstream in(*text);
  std::int64_t pid = 0;
  std::string on, host;
  in >> pid >> on >> host;
  std::array<char, 256> here{};
  ::gethostname(here.data(), here.size() - 1);
  if (pid <= 0 || host != here.data()) return 0;
  return ::kill(static_cast<pid_t>(pid), 0) == 0 || errno == EPERM ? pid : 0;
}

std::string clock_text(double seconds) {
  const auto s = static_cast<std::int64_t>(std::min(std::max(seconds, 0.0), 1e9));
  return s >= 3600 ? fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
                   : fmt::format("{}:{:02}", s / 60, s % 60);
}

/// 1234567 -> "1,234,567"
std::string grouped(std::int64_t n) {
  std::string out = std::to_string(n);
  for (auto at = static_cast<std::int64_t>(out.size()) - 3; at > (n < 0 ? 1 : 0); at -= 3)
    out.insert(static_cast<std::size_t>(at), ",");
  return out;
}

std::string four(const std::optional<double>& x) { return x ? fmt::format("{:.4f}", *x) : "-"; }

/// Eight heights; of each stretch the mean.
std::string sparkline(const std::vector<double>& values, std::size_t width) {
  static const std::array<const char*, 8> kBlocks{"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  std::vector<double> finite;
  for (const double v : values)
    if (std::isfinite(v)) finite.push_back(v);
  if (finite.size() < 2) return "";
  const std::size_t columns = std::min(width, finite.size());
  std::vector<double> means;
  for (std::size_t i = 0; i < columns; ++i) {
    const std::size_t from = i * finite.size() / columns, to = (i + 1) * finite.size() / columns;
    double sum = 0;
    for (std::size_t j = from; j < to; ++j) sum += finite[j];
    means.push_back(sum / static_cast<double>(to - from));
  }
  const auto [low, high] = std::minmax_element(means.begin(), means.end());
  std::string out;
  for (const double m : means) {
    const double height = *high > *low ? (m - *low) / (*high - *low) : 0;
    out += kBlocks[static_cast<std::size_t>(std::min(7.0, height * 8))];
  }
  return fmt::format("{}  {:.4g} to {:.4g}", out, means.front(), means.back());
}

}  // namespace

LineReader::News LineReader::read() {
  News news;
  std::ifstream file(path_, std::ios::binary);
  if (!file) {
    news.restarted = offset_ > 0;
    offset_ = damaged_ = 0;
    last_.clear();
    return news;
  }
  file.seekg(0, std::ios::end);
  const auto size = static_cast<std::int64_t>(file.tellg());
  const auto known = static_cast<std::int64_t>(last_.size());
  std::string before(last_.size(), '\0');
  if (size >= offset_) {
    file.seekg(offset_ - known);
    file.read(before.data(), known);
  }
  if (size < offset_ || before != last_) {
    news.restarted = true;
    offset_ = damaged_ = 0;
    last_.clear();
  }
  std::string content(static_cast<std::size_t>(size - offset_), '\0');
  file.clear();
  file.seekg(offset_);
  file.read(content.data(), static_cast<std::streamsize>(content.size()));
  content.resize(static_cast<std::size_t>(std::max<std::streamsize>(0, file.gcount())));
  content.resize(content.rfind('\n') + 1);  // npos + 1 = 0: no whole line yet
  for (std::size_t begin = 0; begin < content.size();) {
    const std::size_t end = content.find('\n', begin);
    Json event = Json::parse(content.begin() + static_cast<std::ptrdiff_t>(begin),
                             content.begin() + static_cast<std::ptrdiff_t>(end), nullptr, /*allow_exceptions=*/false);
    const bool whole = event.is_object() && event.contains("event") && event["event"].is_string() &&
                       event.contains("step") && event["step"].is_number_integer();
    if (whole)
      news.events.push_back(std::move(event));
    else
      ++damaged_;
    begin = end + 1;
  }
  offset_ += static_cast<std::int64_t>(content.size());
  last_ += content;
  if (last_.size() > kRemembered) last_.erase(0, last_.size() - kRemembered);
  return news;
}

LiveRun::LiveRun(fs::path run)
    : path_(std::move(run)), metrics_(path_ / "metrics.jsonl"), timing_(path_ / "timing.jsonl") {}

void LiveRun::forget() {
  step_ = 0;
  task_ = {};
  loss_ = rate_ = accuracy_ = train_loss_ = validation_ = best_ = test_ = sparsity_ = {};
  best_step_ = {};
  layers_ = nullptr;
  nnz_ = -1;
  losses_.clear();
  thinned_ = 1;
  skipped_ = 0;
  warnings_.clear();
}

void LiveRun::update() {
  config_ = read_config(path_ / "config.toml");
  const auto news = metrics_.read();
  if (news.restarted) forget();
  for (const Json& event : news.events) take_metrics(event);
  const auto times = timing_.read();
  if (times.restarted) per_second_ = left_ = {};
  for (const Json& event : times.events) take_timing(event);
  read_status();
}

void LiveRun::take_metrics(const Json& event) {
  const std::string kind = event["event"];
  step_ = event["step"];
  if (const auto task = integer(event, "task")) task_ = task;
  if (const auto s = number_at(event, "sparsity")) sparsity_ = s;
  if (kind == "step") {
    loss_ = number_at(event, "loss");
    rate_ = number_at(event, "lr");
    if (loss_ && ++skipped_ >= thinned_) {
      skipped_ = 0;
      losses_.push_back(*loss_);
    }
    if (losses_.size() >= 2 * kPoints) {
      for (std::size_t i = 0; i < kPoints; ++i) losses_[i] = losses_[2 * i + 1];
      losses_.resize(kPoints);
      thinned_ *= 2;
    }
  } else if (kind == "epoch") {
    accuracy_ = number_at(event, "train_accuracy");
    train_loss_ = number_at(event, "train_loss");
    const auto epoch = number_at(event, "epoch");
    if (epoch && *epoch > 0 && !per_epoch_) per_epoch_ = std::llround(static_cast<double>(step_) / *epoch);
  } else if (kind == "eval") {
    const bool test = event.contains("split") && event["split"] == "test";
    (test ? test_ : validation_) = number_at(event, "accuracy");
    if (!test && validation_ && (!best_ || *validation_ > *best_)) {
      best_ = validation_;
      best_step_ = step_;
    }
  } else if (kind == "topology") {
    if (event.contains("layers") && event["layers"].is_array()) layers_ = event["layers"];
    nnz_ = integer(event, "nnz").value_or(nnz_);
  } else if (kind == "warning" && event.contains("text") && event["text"].is_string()) {
    warnings_.push_back(event["text"]);
    if (warnings_.size() > kMaxWarnings) warnings_.erase(warnings_.begin());
  }
}

void LiveRun::take_timing(const Json& event) {
  if (const auto v = number_at(event, "samples_per_second")) per_second_ = v;
  if (const auto v = integer(event, "total_steps")) total_ = v;
  if (const auto v = integer(event, "steps_per_epoch")) per_epoch_ = v;
  if (event["event"] != "step") return;
  const std::int64_t at = event["step"];
  if (at < step_) return;
  step_ = at;
  if (const auto v = number_at(event, "loss")) train_loss_ = v;
  if (const auto v = number_at(event, "accuracy")) accuracy_ = v;
  left_ = number_at(event, "seconds_left");
  left_at_ = at;
}

void LiveRun::read_status() {
  const auto text = text_of(path_ / "summary.json");
  summary_ = text ? Json::parse(*text, nullptr, /*allow_exceptions=*/false) : Json(nullptr);
  if (!summary_.is_object()) summary_ = nullptr;
  const std::string ended = summary_.is_object() && summary_.contains("status") && summary_["status"].is_string()
                                ? summary_["status"].get<std::string>()
                                : "";
  const double written = std::max(changed_at(path_ / "metrics.jsonl"), changed_at(path_ / "timing.jsonl"));
  std::timespec now{};
  std::timespec_get(&now, TIME_UTC);
  quiet_s_ = written > 0 ? std::max(0.0, static_cast<double>(now.tv_sec) - written) : 0;
  process_ = process_in(path_);
  // summary.json is the last file of a run that ended; older than the events, it is of the run before a resume.
  const bool current = !ended.empty() && (ended == "done" || changed_at(path_ / "summary.json") >= written);
  if (current) process_ = 0;
  status_ = current ? ended : process_ != 0 ? "training" : ended.empty() ? "not running" : ended;
}

std::optional<std::int64_t> LiveRun::total_steps() const {
  if (total_) return total_;
  if (task_) return std::nullopt;  // the lengths of [train] are of one task
  if (!config_.is_object() || !config_.contains("train")) return std::nullopt;
  if (const auto steps = integer(config_["train"], "steps"); steps && *steps > 0) return steps;
  const auto epochs = number_at(config_["train"], "epochs");
  if (!epochs || !per_epoch_) return std::nullopt;
  return std::llround(*epochs * static_cast<double>(*per_epoch_));
}

std::optional<double> LiveRun::seconds_left() const {
  const auto total = total_steps();
  if (!left_ || !total || *total <= left_at_) return std::nullopt;
  return *left_ * static_cast<double>(*total - step_) / static_cast<double>(*total - left_at_);
}

Json LiveRun::state() const {
  const auto json = [](const auto& value) { return value ? Json(*value) : Json(nullptr); };
  Json s = {{"run", path_.string()}, {"status", status_}};
  s["process"] = process_ == 0 ? Json(nullptr) : Json(process_);
  s["quiet_seconds"] = quiet_s_;
  for (const auto& [table, key] :
       {std::pair{"data", "name"}, {"model", "name"}, {"method", "name"}, {"reparam", "name"}})
    s[table] = word(config_, table, key);
  s["step"] = step_;
  s["total_steps"] = json(total_steps());
  s["steps_per_epoch"] = json(per_epoch_);
  s["task"] = json(task_);
  s["loss"] = json(loss_);
  s["lr"] = json(rate_);
  s["train_loss"] = json(train_loss_);
  s["train_accuracy"] = json(accuracy_);
  s["validation_accuracy"] = json(validation_);
  s["best_validation_accuracy"] = json(best_);
  s["best_step"] = json(best_step_);
  s["test_accuracy"] = json(test_);
  s["sparsity"] = json(sparsity_);
  s["nnz"] = nnz_ < 0 ? Json(nullptr) : Json(nnz_);
  s["samples_per_second"] = json(per_second_);
  s["seconds_left"] = status_ == "training" ? json(seconds_left()) : Json(nullptr);
  s["layers"] = layers_;
  s["warnings"] = warnings_;
  s["damaged_lines"] = metrics_.damaged() + timing_.damaged();
  return s;
}

std::string LiveRun::line() const {
  const auto total = total_steps();
  std::string out;
  if (task_) {
    const auto tasks =
        config_.is_object() && config_.contains("continual") ? integer(config_["continual"], "tasks") : std::nullopt;
    out += fmt::format("task {}{}  ", *task_, tasks && *tasks > 0 ? fmt::format("/{}", *tasks) : "");
  } else if (per_epoch_ && *per_epoch_ > 0) {
    out += fmt::format("epoch {:.2f}", static_cast<double>(step_) / static_cast<double>(*per_epoch_));
    if (total) out += fmt::format("/{:.4g}", static_cast<double>(*total) / static_cast<double>(*per_epoch_));
    out += "  ";
  }
  out += fmt::format("step {}{}", step_, total ? fmt::format("/{}", *total) : "");
  if (const auto loss = train_loss_ ? train_loss_ : loss_) out += fmt::format("  loss {:.4f}", *loss);
  if (accuracy_) out += fmt::format("  acc {:.4f}", *accuracy_);
  if (validation_) out += fmt::format("  val acc {:.4f}", *validation_);
  if (test_) out += fmt::format("  test acc {:.4f}", *test_);
  if (const auto average = number_at(summary_, "average_accuracy"); average && status_ == "done")
    out += fmt::format("  average acc {:.4f}", *average);
  if (sparsity_) out += fmt::format("  sparsity {:.4f}", *sparsity_);
  if (status_ == "training") {
    if (per_second_) out += fmt::format("  {:.0f}/s", *per_second_);
    if (const auto left = seconds_left()) out += fmt::format("  {} left", clock_text(*left));
  }
  return out;
}

std::string LiveRun::text(std::size_t width) const {
  std::vector<std::string> lines;
  std::string what = path_.string();
  for (const auto& [table, key] : {std::pair{"model", "name"}, {"data", "name"}, {"method", "name"}})
    if (const std::string w = word(config_, table, key); !w.empty()) what += "  " + w;
  if (const std::string r = word(config_, "reparam", "name"); !r.empty() && r != "identity") {
    what += "  " + r;
    if (const std::string alpha = word(config_, "reparam", "alpha"); !alpha.empty()) what += " alpha " + alpha;
  }
  if (const std::string seed = word(config_, "run", "seed"); !seed.empty()) what += "  seed " + seed;
  lines.push_back(what);

  std::string status = status_;
  if (process_ != 0) status += fmt::format(" (process {})", process_);
  if (status_ == "training" && quiet_s_ >= 10) status += fmt::format(", last event {} ago", clock_text(quiet_s_));
  if (const auto seconds = number_at(summary_, "train_seconds"); ended() && seconds)
    status += fmt::format(", {} of training", clock_text(*seconds));
  lines.push_back(status);

  const auto total = total_steps();
  if (total && *total > 0) {
    const double share = std::min(1.0, static_cast<double>(step_) / static_cast<double>(*total));
    const auto full = static_cast<std::size_t>(share * static_cast<double>(kBar));
    lines.push_back(fmt::format("[{}{}] {:3.0f} %  {}", std::string(full, '#'), std::string(kBar - full, '.'),
                                100 * share, line()));
  } else {
    lines.push_back(line());
  }
  std::string numbers = "loss " + four(loss_);
  if (rate_) numbers += fmt::format("  lr {:.4g}", *rate_);
  if (best_) numbers += fmt::format("  best val acc {} at step {}", four(best_), best_step_.value_or(0));
  if (nnz_ >= 0) numbers += "  nnz " + grouped(nnz_);
  lines.push_back(numbers);
  if (const std::string curve = sparkline(losses_, 48); !curve.empty()) lines.push_back("loss  " + curve);

  if (layers_.is_array() && !layers_.empty()) {
    std::size_t name = 5;
    for (const Json& l : layers_)
      if (l.is_object() && l.contains("name") && l["name"].is_string())
        name = std::max(name, l["name"].get_ref<const std::string&>().size());
    lines.push_back(
        fmt::format("{:<{}}  {:>12}  {:>10}  {:>10}  {:>10}", "layer", name, "nnz", "dropped", "grown", "threshold"));
    std::size_t shown = 0;
    for (const Json& l : layers_) {
      if (!l.is_object() || !l.contains("name") || !l["name"].is_string()) continue;
      if (++shown > kMaxLayers) continue;
      const auto threshold = number_at(l, "threshold");
      lines.push_back(fmt::format("{:<{}}  {:>12}  {:>10}  {:>10}  {:>10}", l["name"].get<std::string>(), name,
                                  grouped(integer(l, "nnz").value_or(0)), grouped(integer(l, "dropped").value_or(0)),
                                  grouped(integer(l, "grown").value_or(0)),
                                  threshold ? fmt::format("{:.4g}", *threshold) : "-"));
    }
    if (shown > kMaxLayers) lines.push_back(fmt::format("and {} layers more", shown - kMaxLayers));
  }
  for (const auto& w : warnings_) lines.push_back("warning: " + w);
  if (const auto damaged = metrics_.damaged() + timing_.damaged(); damaged > 0)
    lines.push_back(fmt::format("warning: {} lines of metrics.jsonl or timing.jsonl can't be read", damaged));
  std::string out;
  for (const auto& l : lines) out += printable(l, width) + "\n";
  return out;
}

}  // namespace espalier::report
