#include "report/drawing.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <map>
#include <set>

namespace espalier::report {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kTall = 260, kSmall = 130;
/// Points of a figure, shared by its curves: a page must stay small, and no screen shows more.
constexpr std::size_t kPointsOfFigure = 4000, kPointsOfLayers = 3600, kPointsOfCurve = 1500;

/// A curve drawn as steps goes on to the end of its run.
void hold_to_end(const Run& run, Series& series) {
  if (series.empty() || series.step.back() >= run.last_step) return;
  series.step.push_back(run.last_step);
  series.value.push_back(series.value.back());
}

Json axis(const std::string& title, const std::string& format) {
  Json out = {{"title", title}};
  if (!format.empty()) out["format"] = format;
  return out;
}

/// An interval that leaves the range of what it is of says nothing there: shares end at 0 and 1, counts at 0.
Json bound(double value, const CurveFigure& what) {
  const bool share = what.y_format == "~%";
  if (std::isfinite(value) && (share || what.from_zero)) value = std::max(value, 0.0);
  if (std::isfinite(value) && share) value = std::min(value, 1.0);
  return number(value);
}

/// Where everything is zero, Vega's axis would be from 0 to 0.
void keep_axis(Panel& panel) {
  const auto y =
      static_cast<std::size_t>(std::find(panel.fields.begin(), panel.fields.end(), "y") - panel.fields.begin());
  const bool flat = std::all_of(panel.rows.begin(), panel.rows.end(), [&](const Json& row) { return row[y] == 0; });
  if (!flat) return;
  for (Json& layer : panel.spec["layer"]) layer["encoding"]["y"]["scale"] = {{"domain", {0, 1}}};
}

bool has_band(const Panel& panel) {
  const auto at = std::find(panel.fields.begin(), panel.fields.end(), "low") - panel.fields.begin();
  return std::any_of(panel.rows.begin(), panel.rows.end(),
                     [&](const Json& row) { return !row[static_cast<std::size_t>(at)].is_null(); });
}

}  // namespace

std::vector<std::string> Material::labels() const {
  std::vector<std::string> out;
  for (const RunGroup& g : groups) out.push_back(g.label);
  return out;
}

CurveOf by_key(const std::string& key) {
  return [key](const Run& run) -> std::optional<Series> {
    const Series* series = run.curve(key);
    return series ? std::optional<Series>(*series) : std::nullopt;
  };
}

Json number(double value) {
  if (!std::isfinite(value)) return nullptr;
  const std::string digits = fmt::format("{:.6g}", value);
  double rounded = value;
  std::from_chars(digits.data(), digits.data() + digits.size(), rounded);
  if (rounded == std::floor(rounded) && std::abs(rounded) < 1e15) return static_cast<std::int64_t>(rounded);
  return rounded;
}

std::string text(double value) {
  if (!std::isfinite(value)) return "-";
  // Counts are read digit by digit.
  if (value == std::floor(value) && std::abs(value) < 1e15) return fmt::format("{:.0f}", value);
  return fmt::format("{:.6g}", value);
}

std::vector<Point> mean_curve(const Material& material, const RunGroup& group, const CurveOf& curve, std::size_t most) {
  std::vector<std::pair<const Run*, Series>> curves;
  for (const std::size_t r : group.runs) {
    auto series = curve(material.runs[r]);
    if (series && !series->empty()) curves.emplace_back(&material.runs[r], std::move(*series));
  }
  std::vector<Point> points;
  if (curves.size() == 1) {
    const auto& [run, series] = curves.front();
    for (const std::size_t i : keep_extremes(series.value, std::max<std::size_t>(most, 4))) {
      points.push_back({material.time(*run, series.step[i]), series.value[i], kNan, kNan});
    }
    return points;
  }
  // Steps that all of them have; of a step that stands there twice, the last value.
  std::map<double, std::vector<double>> at;
  for (std::size_t c = 0; c < curves.size(); ++c) {
    const auto& [run, series] = curves[c];
    for (std::size_t i = 0; i < series.step.size(); ++i) {
      auto& values = at[material.time(*run, series.step[i])];
      if (values.size() == c + 1)
        values.back() = series.value[i];
      else if (values.size() == c)
        values.push_back(series.value[i]);
    }
  }
  std::vector<Point> all;
  std::vector<double> means;
  for (const auto& [x, values] : at) {
    if (values.size() < curves.size()) continue;
    const Interval mean = mean_interval(values);
    all.push_back({x, mean.mean, mean.low, mean.high});
    means.push_back(mean.mean);
  }
  for (const std::size_t i : keep_extremes(means, std::max<std::size_t>(most, 4))) points.push_back(all[i]);
  return points;
}

Json colour(const std::vector<std::string>& series) {
  return {{"field", "run"}, {"type", "nominal"}, {"title", nullptr}, {"scale", {{"domain", series}}}};
}

Json lines_spec(const Lines& lines, const std::vector<std::string>& series, double height) {
  const char* interpolate = lines.steps ? "step-after" : "linear";
  Json x = {{"field", "x"}, {"type", "quantitative"}, {"axis", axis(lines.x_title, "")}};
  // Where all values are one, Vega would write it as "1.000000".
  x["axis"]["labelExpr"] = R"(replace(datum.label, regexp('\\.0+$|(\\.\\d*?)0+$'), '$1'))";
  x["scale"] = lines.log_x ? Json{{"type", "log"}} : Json{{"zero", false}, {"nice", false}};
  Json y = {{"field", "y"}, {"type", "quantitative"}, {"axis", axis(lines.y_title, lines.y_format)}};
  y["scale"] = lines.log_y ? Json{{"type", "log"}} : Json{{"zero", lines.from_zero}};
  Json spec = {{"height", height}, {"encoding", {{"x", x}, {"color", colour(series)}}}, {"layer", Json::array()}};
  Json& layers = spec["layer"];
  if (lines.band) {
    Json low = y;
    low["field"] = "low";
    layers.push_back(
        {{"mark", {{"type", "area"}, {"interpolate", interpolate}, {"opacity", 0.22}, {"tooltip", nullptr}}},
         {"encoding", {{"y", low}, {"y2", {{"field", "high"}}}}}});
    if (!lines.dashes.empty()) layers.back()["encoding"]["detail"] = {{"field", "kind"}};
  }
  Json line = {{"mark", {{"type", "line"}, {"interpolate", interpolate}, {"strokeWidth", 1.8}}},
               {"encoding", {{"y", y}}}};
  if (lines.points) {
    line["mark"]["point"] = {{"size", 30}};
  } else {  // a line of one value would not be seen, nor its interval: the first epoch of a run
    Json of_line = Json::array({"run"});
    if (!lines.dashes.empty() || lines.faint) of_line.push_back("kind");
    const Json single = {
        {{"joinaggregate", Json::array({{{"op", "valid"}, {"field", "y"}, {"as", "values"}}})}, {"groupby", of_line}},
        {{"filter", "datum.values === 1"}}};
    if (lines.band) {
      Json interval = layers.back()["encoding"];
      layers.push_back({{"mark", {{"type", "rule"}, {"opacity", 0.5}}}, {"encoding", interval}, {"transform", single}});
    }
    layers.push_back({{"mark", {{"type", "point"}, {"filled", true}, {"size", 30}}},
                      {"encoding", {{"y", y}}},
                      {"transform", single}});
  }
  if (!lines.dashes.empty()) {
    Json dash = Json::array();
    for (std::size_t i = 0; i < lines.dashes.size(); ++i) {
      dash.push_back(i == 0 ? Json::array({1, 0}) : Json::array({i == 1 ? 5 : 2, 3}));
    }
    line["encoding"]["strokeDash"] = {{"field", "kind"},
                                      {"type", "nominal"},
                                      {"title", nullptr},
                                      {"scale", {{"domain", lines.dashes}, {"range", dash}}}};
  }
  if (lines.faint) {
    Json faint = line;
    faint["mark"]["strokeWidth"] = 0.8;
    faint["mark"]["opacity"] = 0.45;
    faint["encoding"].erase("strokeDash");
    faint["transform"] = Json::array({{{"filter", {{"field", "kind"}, {"equal", "faint"}}}}});
    line["transform"] = Json::array({{{"filter", "datum.kind !== 'faint'"}}});
    layers.push_back(std::move(faint));
  }
  layers.push_back(std::move(line));
  return spec;
}

std::optional<Figure> curve_figure(const Material& material, const CurveFigure& what, const CurveOf& curve) {
  Figure figure;
  figure.id = what.id;
  figure.title = what.title;
  figure.caption = what.caption;
  figure.series = material.labels();
  Panel panel;
  panel.fields = {"run", "x", "y", "low", "high"};
  const std::size_t most =
      std::min(kPointsOfCurve, std::max<std::size_t>(60, kPointsOfFigure / material.groups.size()));
  for (std::size_t g = 0; g < material.groups.size(); ++g) {
    const auto held = [&](const Run& run) {
      auto series = curve(run);
      if (series && what.steps) hold_to_end(run, *series);
      return series;
    };
    for (const Point& p : mean_curve(material, material.groups[g], held, most)) {
      panel.rows.push_back({g, number(p.x), number(p.y), bound(p.low, what), bound(p.high, what)});
    }
  }
  if (panel.rows.empty()) return std::nullopt;
  Lines lines;
  lines.x_title = material.time_title();
  lines.y_title = what.y_title;
  lines.y_format = what.y_format;
  lines.from_zero = what.from_zero;
  lines.steps = what.steps;
  lines.band = has_band(panel);
  panel.spec = lines_spec(lines, figure.series, kTall);
  keep_axis(panel);
  figure.panels.push_back(std::move(panel));
  figure.table = table_of(figure, {{"x", material.time_title()}, {"y", what.y_title}});
  return figure;
}

std::vector<std::string> layer_names(const Material& material) {
  std::vector<std::string> names;
  for (const Run& run : material.runs) {
    for (const Layer& layer : run.layers) {
      if (std::find(names.begin(), names.end(), layer.name) == names.end()) names.push_back(layer.name);
    }
  }
  return names;
}

std::optional<Figure> layer_figure(const Material& material, const CurveFigure& what, const LayerCurveOf& curve) {
  Figure figure;
  figure.id = what.id;
  figure.title = what.title;
  figure.caption = what.caption;
  figure.series = material.labels();
  figure.small = true;
  const auto names = layer_names(material);
  const std::size_t curves = std::max<std::size_t>(1, names.size() * material.groups.size());
  const std::size_t most = std::clamp<std::size_t>(kPointsOfLayers / curves, 24, 400);
  for (const std::string& name : names) {
    Panel panel;
    panel.title = name;
    panel.fields = {"run", "x", "y", "low", "high"};
    for (std::size_t g = 0; g < material.groups.size(); ++g) {
      const auto of_layer = [&](const Run& run) -> std::optional<Series> {
        const Layer* layer = run.layer(name);
        if (layer == nullptr) return std::nullopt;
        auto series = curve(run, *layer);
        if (series && what.steps) hold_to_end(run, *series);
        return series;
      };
      for (const Point& p : mean_curve(material, material.groups[g], of_layer, most)) {
        panel.rows.push_back({g, number(p.x), number(p.y), bound(p.low, what), bound(p.high, what)});
      }
    }
    if (panel.rows.empty()) continue;
    Lines lines;
    lines.x_title = material.time_title();
    lines.y_title = what.y_title;
    lines.y_format = what.y_format;
    lines.from_zero = what.from_zero;
    lines.steps = what.steps;
    lines.band = has_band(panel);
    panel.spec = lines_spec(lines, figure.series, kSmall);
    keep_axis(panel);
    figure.panels.push_back(std::move(panel));
  }
  if (figure.panels.empty()) return std::nullopt;
  figure.table = table_of(figure, {{"x", material.time_title()}, {"y", what.y_title}});
  return figure;
}

Table table_of(const Figure& figure, const std::vector<std::pair<std::string, std::string>>& titles) {
  constexpr std::size_t kRows = 100;
  Table table;
  const auto& fields = figure.panels.front().fields;
  const bool titled = figure.panels.size() > 1;
  if (titled) table.columns.push_back(figure.small ? "layer" : "panel");
  std::vector<std::size_t> shown;
  for (std::size_t f = 0; f < fields.size(); ++f) {
    // Bounds that no row has, and the name of the only run, say nothing.
    bool any = fields[f] != "run" || figure.series.size() > 1;
    if (fields[f] == "low" || fields[f] == "high") {
      any = std::any_of(figure.panels.begin(), figure.panels.end(), has_band);
    }
    if (!any) continue;
    shown.push_back(f);
    std::string title = fields[f] == "low" ? "95 % from" : fields[f] == "high" ? "to" : fields[f];
    for (const auto& [field, said] : titles) {
      if (field == fields[f]) title = said;
    }
    table.columns.push_back(title);
  }
  std::size_t all = 0;
  for (const Panel& panel : figure.panels) all += panel.rows.size();
  if (all > kRows) table.of = all;
  for (const Panel& panel : figure.panels) {
    const std::size_t n = panel.rows.size();
    const std::size_t of_panel =
        all <= kRows ? n : std::min(n, std::max<std::size_t>(2, (kRows * n + all - 1) / std::max<std::size_t>(all, 1)));
    std::set<std::size_t> chosen;
    for (std::size_t i = 0; i < of_panel; ++i) chosen.insert(of_panel == 1 ? 0 : i * (n - 1) / (of_panel - 1));
    for (const std::size_t i : chosen) {
      std::vector<std::string> row;
      if (titled) row.push_back(panel.title);
      for (const std::size_t f : shown) {
        const Json& value = panel.rows[i][f];
        if (fields[f] == "run" && value.is_number())
          row.push_back(figure.series[value.get<std::size_t>()]);
        else
          row.push_back(value.is_string() ? value.get<std::string>() : text(number_of(value)));
      }
      table.rows.push_back(std::move(row));
    }
  }
  if (table.rows.size() >= all) table.of = 0;
  return table;
}

}  // namespace espalier::report
