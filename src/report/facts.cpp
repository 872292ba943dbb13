#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "espalier/report/page.h"
#include "espalier/report/statistics.h"

namespace espalier::report {
namespace {

enum class Unit { share, count, number, bytes, seconds, per_second };

struct Fact {
  const char* name;
  Unit unit;
  bool compare;  ///< as a ratio to the baseline
  std::function<double(const Run&)> value;
};

/// In the unit that suits `like`: a spread in that of its mean.
std::string with_prefix(double value, double like, const char* unit, double base,
                        const std::array<const char*, 5>& prefixes) {
  std::size_t p = 0;
  while (std::abs(like) >= base && p + 1 < prefixes.size()) {
    value /= base;
    like /= base;
    ++p;
  }
  return fmt::format("{:.3g} {}{}", value, prefixes[p], unit);
}

std::string duration(double seconds, double like) {
  if (like < 120) return fmt::format("{:.3g} s", seconds);
  if (like < 7200) return fmt::format("{:.1f} min", seconds / 60);
  return fmt::format("{:.1f} h", seconds / 3600);
}

std::string said(double value, double like, Unit unit) {
  if (!std::isfinite(value)) return "-";
  switch (unit) {
    case Unit::share: return fmt::format("{:.2f} %", 100 * value);
    case Unit::count: return fmt::format("{:.0f}", value);
    case Unit::number:
      return std::abs(like) >= 1000 && std::abs(like) < 1e9 ? fmt::format("{:.0f}", value)
                                                            : fmt::format("{:.4g}", value);
    case Unit::bytes: return with_prefix(value, like, "B", 1024, {"", "Ki", "Mi", "Gi", "Ti"});
    case Unit::seconds: return duration(value, like);
    case Unit::per_second: return with_prefix(value, like, "/s", 1000, {"", "k", "M", "G", "T"});
  }
  return "-";
}

const std::vector<Fact>& known_facts() {
  const auto of_summary = [](const char* key) { return [key](const Run& run) { return run.number(key); }; };
  const auto last = [](const char* curve) {
    return [curve](const Run& run) {
      const Series* series = run.curve(curve);
      return series == nullptr ? std::nan("") : series->value.back();
    };
  };
  static const std::vector<Fact> kFacts = {
      {"test accuracy", Unit::share, false, of_summary("test_accuracy")},
      {"validation accuracy", Unit::share, false,
       [last](const Run& run) {
         const double v = run.number("val_accuracy");
         return std::isfinite(v) ? v : last("eval.validation.accuracy")(run);
       }},
      {"test loss", Unit::number, false, of_summary("test_loss")},
      {"average accuracy of the tasks", Unit::share, false, of_summary("average_accuracy")},
      {"forgetting", Unit::share, false, of_summary("forgetting")},
      {"backward transfer", Unit::share, false, of_summary("backward_transfer")},
      {"forward transfer", Unit::share, false, of_summary("forward_transfer")},
      {"capacity used", Unit::share, false, of_summary("capacity_used")},
      {"sparsity", Unit::share, false,
       [last](const Run& run) {
         const double v = run.number("sparsity");
         return std::isfinite(v) ? v : last("epoch.sparsity")(run);
       }},
      {"weights kept", Unit::count, true,
       [last](const Run& run) {
         const double v = run.number("nnz");
         return std::isfinite(v) ? v : last("epoch.nnz")(run);
       }},
      {"weights", Unit::count, false, of_summary("weights")},
      {"parameters in all", Unit::count, false, of_summary("parameters")},
      {"file of the model", Unit::bytes, true,
       [](const Run& run) { return run.model_bytes > 0 ? static_cast<double>(run.model_bytes) : std::nan(""); }},
      {"FLOPs of one sample, forward", Unit::count, true, of_summary("flops_forward")},
      {"training time", Unit::seconds, true, of_summary("train_seconds")},
      {"samples", Unit::per_second, true, of_summary("samples_per_second")},
      {"peak memory", Unit::bytes, true, of_summary("peak_rss_bytes")},
      {"epochs", Unit::number, false, of_summary("epochs")},
      {"steps", Unit::count, false,
       [](const Run& run) { return std::isfinite(run.number("steps")) ? run.number("steps") : run.last_step; }},
      {"trace of the path kernel at the start", Unit::number, true,
       [](const Run& run) { return run.init.is_object() ? number_of(run.init.value("trace", Json())) : std::nan(""); }},
  };
  return kFacts;
}

}  // namespace

Table facts(const std::vector<Run>& runs, const std::vector<RunGroup>& groups) {
  Table table;
  table.columns = {""};
  bool seeds = false;
  const RunGroup* baseline = nullptr;
  for (const RunGroup& g : groups) {
    table.columns.push_back(groups.size() == 1 && g.runs.size() == 1 ? "this run" : g.label);
    seeds = seeds || g.runs.size() > 1;
    if (g.baseline) baseline = &g;
  }
  const auto over = [&](const RunGroup& g, const Fact& fact) {
    std::vector<double> values;
    for (const std::size_t r : g.runs) values.push_back(fact.value(runs[r]));
    return mean_interval(values);
  };
  for (const Fact& fact : known_facts()) {
    std::vector<std::string> row = {fact.name};
    bool any = false;
    for (const RunGroup& g : groups) {
      const Interval mean = over(g, fact);
      std::string cell = said(mean.mean, mean.mean, fact.unit);
      any = any || mean.count > 0;
      if (mean.count > 1 && mean.deviation > 0) cell += " ± " + said((mean.high - mean.low) / 2, mean.mean, fact.unit);
      if (fact.compare && baseline != nullptr && &g != baseline && mean.count > 0) {
        const double ratio = mean.mean / over(*baseline, fact).mean;
        if (std::isfinite(ratio)) cell += fmt::format("\n{:.3g} × baseline", ratio);
      }
      row.push_back(cell);
    }
    if (any) table.rows.push_back(std::move(row));
  }
  if (seeds) {
    std::vector<std::string> row = {"seeds"};
    for (const RunGroup& g : groups) row.push_back(fmt::format("{}", g.runs.size()));
    table.rows.insert(table.rows.begin(), row);
  }
  std::vector<std::string> status = {"status"};
  for (const RunGroup& g : groups) {
    std::string all;
    for (const std::size_t r : g.runs) {
      if (all.find(runs[r].status) == std::string::npos) all += (all.empty() ? "" : ", ") + runs[r].status;
    }
    status.push_back(all);
  }
  table.rows.push_back(status);
  return table;
}

}  // namespace espalier::report
