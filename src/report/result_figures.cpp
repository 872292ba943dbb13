// What came out: accuracy of each group, accuracy against what was varied, accuracy after pruning.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <set>

#include "report/drawing.h"

namespace espalier::report {
namespace {

/// The accuracy of a run as it will be quoted: on the test split; of one that is not done, the last on validation.
double accuracy_of(const Run& run) {
  const double test = run.number("test_accuracy");
  if (std::isfinite(test)) return test;
  const Series* validation = run.curve("eval.validation.accuracy");
  return validation ? validation->value.back() : std::nan("");
}

/// The bound of an interval, which no accuracy is beyond.
Json share(double bound) { return std::isfinite(bound) ? number(std::clamp(bound, 0.0, 1.0)) : Json(nullptr); }

std::vector<double> accuracies(const Material& material, const RunGroup& group) {
  std::vector<double> out;
  for (const std::size_t r : group.runs) out.push_back(accuracy_of(material.runs[r]));
  return out;
}

std::optional<Figure> by_group(const Material& material) {
  Figure figure;
  figure.id = "results";
  figure.title = "Accuracy at the end";
  figure.caption = "Test accuracy after the last step: each seed, and their mean with its 95 % confidence interval.";
  figure.series = material.labels();
  Panel panel;
  panel.fields = {"run", "kind", "x", "low", "high"};
  figure.table.columns = {"run", "seeds", "mean accuracy", "95 % from", "to", "standard deviation"};
  Json band = nullptr;
  for (std::size_t g = 0; g < material.groups.size(); ++g) {
    const auto values = accuracies(material, material.groups[g]);
    const Interval mean = mean_interval(values);
    if (mean.count == 0) continue;
    for (const double v : values) {
      if (values.size() > 1 && std::isfinite(v)) panel.rows.push_back({g, "seed", number(v), nullptr, nullptr});
    }
    panel.rows.push_back({g, "mean", number(mean.mean), share(mean.low), share(mean.high)});
    figure.table.rows.push_back({material.groups[g].label, fmt::format("{}", mean.count),
                                 text(number_of(number(mean.mean))), text(number_of(number(mean.low))),
                                 text(number_of(number(mean.high))), text(number_of(number(mean.deviation)))});
    if (material.groups[g].baseline) {
      band = {{"mean", number(mean.mean)}, {"low", share(mean.low)}, {"high", share(mean.high)}};
    }
  }
  if (figure.table.rows.size() < 2 && panel.rows.size() < 3) return std::nullopt;
  const Json y = {{"field", "run"},
                  {"type", "nominal"},
                  {"sort", figure.series},
                  {"axis", {{"title", nullptr}, {"labelLimit", 220}}}};
  const Json x = {{"field", "x"},
                  {"type", "quantitative"},
                  {"scale", {{"zero", false}}},
                  {"axis", {{"title", "test accuracy"}, {"format", "~%"}}}};
  Json bounds = {{"y", y}, {"x", x}, {"x2", {{"field", "high"}}}, {"color", colour(figure.series)}};
  bounds["x"]["field"] = "low";
  const Json bounded = Json::array({{{"filter", "datum.kind === 'mean' && isValid(datum.low)"}}});
  const Json means = Json::array({{{"filter", "datum.kind === 'mean'"}}});
  panel.spec = {{"height", std::max<std::size_t>(60, 28 * figure.table.rows.size())}, {"layer", Json::array()}};
  Json& layers = panel.spec["layer"];
  if (!band.is_null()) {
    figure.caption += " The grey line is the baseline.";
    if (!band["low"].is_null()) {
      layers.push_back({{"mark", {{"type", "rect"}, {"color", "gray"}, {"opacity", 0.2}}},
                        {"encoding", {{"x", {{"datum", band["low"]}}}, {"x2", {{"datum", band["high"]}}}}}});
    }
    layers.push_back({{"mark", {{"type", "rule"}, {"color", "gray"}, {"strokeDash", {4, 3}}}},
                      {"encoding", {{"x", {{"datum", band["mean"]}, {"type", "quantitative"}}}}}});
  }
  layers.push_back({{"mark", {{"type", "rule"}, {"strokeWidth", 2.5}}}, {"transform", bounded}, {"encoding", bounds}});
  layers.push_back({{"mark", {{"type", "point"}, {"filled", true}, {"size", 90}, {"tooltip", true}}},
                    {"transform", means},
                    {"encoding", {{"y", y}, {"x", x}, {"color", colour(figure.series)}}}});
  layers.push_back({{"mark", {{"type", "tick"}, {"size", 12}, {"thickness", 1.5}, {"tooltip", true}}},
                    {"transform", Json::array({{{"filter", "datum.kind === 'seed'"}}})},
                    {"encoding", {{"y", y}, {"x", x}, {"color", colour(figure.series)}}}});
  figure.panels.push_back(std::move(panel));
  return figure;
}

/// "0.9", "20%", "30ep" as a number; NaN for other texts.
double leading_number(const std::string& value) {
  char* end = nullptr;
  const double x = std::strtod(value.c_str(), &end);
  const std::string rest = end;
  return end != value.c_str() && (rest.empty() || rest == "%" || rest == "ep" || rest == "it") ? x : std::nan("");
}

/// Accuracy against one number that was varied; colours are what else was.
std::optional<Figure> against(const Material& material, const std::string& key) {
  const bool sparsity = key == "sparsity.sparsity";
  std::map<std::string, std::vector<std::array<double, 4>>> curves;  // label of the rest: x, mean, low, high
  std::vector<std::string> labels;
  std::map<std::string, std::vector<std::string>> groups_of;  // label of the rest: those of the groups
  std::set<double> different;
  for (const RunGroup& g : material.groups) {
    const auto at = g.settings.find(key);
    const double value = at == g.settings.end() ? std::nan("") : leading_number(at->second);
    const Interval mean = mean_interval(accuracies(material, g));
    if (!std::isfinite(value) || mean.count == 0) continue;
    std::string label;
    for (const auto& [other, text_there] : g.settings) {
      // The name says more than the options that only it has.
      const bool name = other.size() > 5 && other.compare(other.size() - 5, 5, ".name") == 0;
      const bool everywhere = std::all_of(material.groups.begin(), material.groups.end(),
                                          [&, o = other](const RunGroup& x) { return x.settings.count(o) != 0; });
      if (other == key || (!everywhere && !name)) continue;
      label += (label.empty() ? "" : ", ") + (name ? text_there : other.substr(other.find('.') + 1) + " " + text_there);
    }
    if (label.empty()) label = "all runs";
    if (curves.count(label) == 0) labels.push_back(label);
    groups_of[label].push_back(g.label);
    curves[label].push_back({sparsity ? 1 - value : value, mean.mean, mean.low, mean.high});
    different.insert(value);
  }
  const bool a_curve = std::any_of(curves.begin(), curves.end(), [](const auto& c) { return c.second.size() > 1; });
  if (different.size() < 2 || !a_curve) return std::nullopt;
  const std::string short_key = key.substr(key.find('.') + 1);
  Figure figure;
  figure.id = sparsity ? "accuracy-against-density" : "accuracy-against-" + short_key;
  std::replace(figure.id.begin(), figure.id.end(), '_', '-');
  figure.title = sparsity ? "Accuracy against the share of weights kept" : "Accuracy against " + key;
  figure.caption = "Test accuracy after the last step; with several seeds, means and 95 % confidence intervals.";
  figure.series = labels;
  // Where too much differs to be said, curves are called as their groups are.
  if (std::any_of(labels.begin(), labels.end(), [](const std::string& l) { return l.size() > kLongestLabel; })) {
    std::set<std::string> names;
    for (std::string& label : figure.series) {
      const std::vector<std::string>& groups = groups_of.at(label);
      label = groups.size() == 1 ? groups.front() : common_beginning(groups);
      names.insert(label);
    }
    if (names.size() < labels.size() || names.count("") != 0) figure.series = labels;
  }
  Panel panel;
  panel.fields = {"run", "x", "y", "low", "high"};
  bool band = false, positive = true;
  double least = INFINITY, largest = 0;
  for (std::size_t s = 0; s < labels.size(); ++s) {
    auto& points = curves[labels[s]];
    std::sort(points.begin(), points.end());
    for (const auto& [x, mean, low, high] : points) {
      panel.rows.push_back({s, number(x), number(mean), share(low), share(high)});
      band = band || std::isfinite(low);
      positive = positive && x > 0;
      least = std::min(least, x);
      largest = std::max(largest, x);
    }
  }
  Lines lines;
  lines.x_title = sparsity ? "share of weights kept" : key;
  lines.y_title = "test accuracy";
  lines.y_format = "~%";
  lines.band = band;
  lines.points = true;
  lines.log_x = positive && largest / least >= 8;
  panel.spec = lines_spec(lines, figure.series, 260);
  figure.panels.push_back(std::move(panel));
  figure.table = table_of(figure, {{"x", lines.x_title}, {"y", "test accuracy"}});
  return figure;
}

std::optional<Figure> pruned(const Material& material) {
  Figure figure;
  figure.id = "pruned";
  figure.title = "Accuracy against weights kept after pruning";
  figure.series = material.labels();
  Panel panel;
  panel.fields = {"run", "kind", "x", "y", "low", "high"};
  std::vector<std::string> kinds;
  bool band = false;
  // By the kind of pruning and the share asked for: what the seeds have in common.
  for (std::size_t g = 0; g < material.groups.size(); ++g) {
    std::map<std::string, std::map<double, std::pair<std::vector<double>, std::vector<double>>>> curves;
    for (const std::size_t r : material.groups[g].runs) {
      for (const Json& pruning : material.runs[r].prunings) {
        const auto word = [&](const char* key) {
          const Json value = pruning.value(key, Json());
          return value.is_string() ? value.get<std::string>() : std::string();
        };
        const std::string retrain = word("retrain");
        std::string kind = word("distribution") + " on " + word("split");
        if (!retrain.empty() && leading_number(retrain) > 0) kind += ", retrained " + retrain;
        for (const Json& point : pruning["points"]) {
          if (!point.is_object()) continue;
          auto& at = curves[kind][number_of(point.value("keep", Json()))];
          at.first.push_back(1 - number_of(point.value("sparsity", Json())));
          at.second.push_back(number_of(point.value("accuracy", Json())));
        }
      }
    }
    for (const auto& [kind, points] : curves) {
      if (std::find(kinds.begin(), kinds.end(), kind) == kinds.end()) kinds.push_back(kind);
      for (const auto& [keep, values] : points) {
        const Interval y = mean_interval(values.second);
        const double x = mean_interval(values.first).mean;
        if (y.count == 0 || !(x > 0)) continue;
        panel.rows.push_back({g, kind, number(x), number(y.mean), share(y.low), share(y.high)});
        band = band || std::isfinite(y.low);
      }
    }
  }
  if (panel.rows.empty()) return std::nullopt;
  std::sort(kinds.begin(), kinds.end());
  figure.caption =
      "What espalier prune has measured: the largest weights of the trained network are kept (" + kinds.front();
  for (std::size_t i = 1; i < kinds.size(); ++i) figure.caption += "; " + kinds[i];
  figure.caption += ").";
  for (std::size_t i = 0; kinds.size() > 1 && i < kinds.size(); ++i) {
    figure.strokes.emplace_back(kinds[i], i == 0 ? "solid" : "dashed");
  }
  Lines lines;
  lines.x_title = "share of weights kept";
  lines.y_title = "accuracy";
  lines.y_format = "~%";
  lines.band = band;
  lines.points = true;
  lines.log_x = true;
  lines.dashes = kinds;
  panel.spec = lines_spec(lines, figure.series, 260);
  figure.panels.push_back(std::move(panel));
  figure.table = table_of(figure, {{"x", "kept"}, {"y", "accuracy"}, {"kind", "pruning"}});
  return figure;
}

}  // namespace

void add_result_figures(const Material& material, std::vector<Figure>& figures) {
  constexpr std::size_t kMostKeys = 6;
  if (auto figure = by_group(material)) figures.push_back(std::move(*figure));
  std::set<std::string> keys;
  for (const RunGroup& g : material.groups) {
    for (const auto& [key, value] : g.settings) keys.insert(key);
  }
  std::size_t drawn = 0;
  std::set<std::string> ids;
  for (const std::string& key : keys) {
    auto figure = drawn < kMostKeys ? against(material, key) : std::nullopt;
    if (!figure) continue;
    if (!ids.insert(figure->id).second) figure->id += fmt::format("-{}", key.substr(0, key.find('.')));
    ++drawn;
    figures.push_back(std::move(*figure));
  }
  if (auto figure = pruned(material)) figures.push_back(std::move(*figure));
}

}  // namespace espalier::report
