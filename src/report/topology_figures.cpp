// What is kept, and how it changes: density, dropped and grown, thresholds, dead units, widths, the path kernel.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "report/drawing.h"

namespace espalier::report {
namespace {

std::optional<Series> curve_of(const Layer& layer, const std::string& key) {
  const auto at = layer.curves.find(key);
  return at == layer.curves.end() || at->second.empty() ? std::nullopt : std::optional<Series>(at->second);
}

/// The first masks are no change: they would leave a dense network, and dwarf all that moves later.
Series without_start(Series series) {
  if (!series.empty() && series.step.front() == 0) {
    series.step.erase(series.step.begin());
    series.value.erase(series.value.begin());
  }
  return series;
}

LayerCurveOf layer_key(const std::string& key) {
  return [key](const Run&, const Layer& layer) { return curve_of(layer, key); };
}

/// Events tell the counts after a change; before the first of them there were as many as it says has gone and come.
void begin_at_start(Series& nnz, const Series* dropped, const Series* grown) {
  if (nnz.step.front() == 0 || dropped == nullptr || grown == nullptr || dropped->empty() || grown->empty()) return;
  nnz.step.insert(nnz.step.begin(), 0);
  nnz.value.insert(nnz.value.begin(), nnz.value.front() + dropped->value.front() - grown->value.front());
}

/// Every change where a topology event tells it; otherwise what weights.jsonl has now and then.
std::optional<Series> nnz_of(const Layer& layer) {
  auto series = curve_of(layer, "topology.nnz");
  if (!series) return curve_of(layer, "weights.nnz");
  const auto dropped = curve_of(layer, "topology.dropped"), grown = curve_of(layer, "topology.grown");
  begin_at_start(*series, dropped ? &*dropped : nullptr, grown ? &*grown : nullptr);
  return series;
}

bool any_above_zero(const Figure& figure) {
  for (const Panel& panel : figure.panels) {
    const auto y =
        static_cast<std::size_t>(std::find(panel.fields.begin(), panel.fields.end(), "y") - panel.fields.begin());
    for (const Json& row : panel.rows) {
      if (row[y].is_number() && row[y].get<double>() > 0) return true;
    }
  }
  return false;
}

/// Units of a layer's output with a weight: at the end of the run, or before it where only that is known.
double width_of(const Run& run, const std::string& name) {
  const Layer* layer = run.layer(name);
  if (layer != nullptr && !layer->shape.empty()) {
    if (const auto dead = curve_of(*layer, "topology.dead_outputs")) {
      return static_cast<double>(layer->shape.front()) - dead->value.back();
    }
  }
  if (run.init.is_object() && run.init.contains("layers") && run.init["layers"].is_array()) {
    for (const Json& row : run.init["layers"]) {
      if (row.is_object() && row.value("name", Json()) == name) return number_of(row.value("width", Json()));
    }
  }
  return std::nan("");
}

double trace_of(const Run& run, const std::string& name) {
  if (!run.init.is_object()) return std::nan("");
  if (name.empty()) return number_of(run.init.value("trace", Json()));
  if (run.init.contains("layers") && run.init["layers"].is_array()) {
    for (const Json& row : run.init["layers"]) {
      if (row.is_object() && row.value("name", Json()) == name) return number_of(row.value("trace", Json()));
    }
  }
  return std::nan("");
}

Interval over_group(const Material& material, const RunGroup& group, const std::function<double(const Run&)>& value) {
  std::vector<double> values;
  for (const std::size_t r : group.runs) values.push_back(value(material.runs[r]));
  return mean_interval(values);
}

/// Bars, one row of them for each layer, a bar for each group.
std::optional<Figure> layer_bars(const Material& material, const std::string& id, const std::string& title,
                                 const std::string& caption, const std::string& x_title, bool logarithmic,
                                 const std::function<double(const Run&, const std::string&)>& value) {
  Figure figure;
  figure.id = id;
  figure.title = title;
  figure.caption = caption;
  figure.series = material.labels();
  Panel panel;
  panel.fields = {"run", "layer", "x", "low", "high"};
  std::vector<std::string> layers;
  for (const std::string& name : layer_names(material)) {
    bool any = false;
    for (std::size_t g = 0; g < material.groups.size(); ++g) {
      const Interval v = over_group(material, material.groups[g], [&](const Run& run) { return value(run, name); });
      if (v.count == 0 || (logarithmic && v.mean <= 0)) continue;
      panel.rows.push_back({g, name, number(v.mean), number(v.low), number(v.high)});
      any = true;
    }
    if (any) layers.push_back(name);
  }
  if (panel.rows.empty()) return std::nullopt;
  Json x = {{"field", "x"}, {"type", "quantitative"}, {"axis", {{"title", x_title}, {"format", "~s"}}}};
  if (logarithmic) x["scale"] = {{"type", "log"}, {"nice", false}, {"padding", 24}};
  Json y = {
      {"field", "layer"}, {"type", "nominal"}, {"sort", layers}, {"axis", {{"title", nullptr}, {"labelLimit", 150}}}};
  Json encoding = {{"y", y},
                   {"x", x},
                   {"color", colour(figure.series)},
                   {"yOffset", {{"field", "run"}, {"type", "nominal"}, {"scale", {{"domain", figure.series}}}}},
                   {"tooltip", Json::array({{{"field", "run"}, {"title", "run"}},
                                            {{"field", "layer"}, {"title", "layer"}},
                                            {{"field", "x"}, {"title", x_title}}})}};
  const bool points = logarithmic;  // a bar on a logarithmic axis would begin anywhere
  const double step =
      material.groups.size() == 1 ? 18 : std::max(6.0, 16.0 - static_cast<double>(material.groups.size()));
  Json bounds = encoding;
  bounds["x"]["field"] = "low";
  bounds["x2"] = {{"field", "high"}};
  bounds.erase("tooltip");
  panel.spec = {{"height", std::max(60.0, static_cast<double>(layers.size()) *
                                              (8 + step * static_cast<double>(material.groups.size())))},
                {"layer", Json::array()}};
  panel.spec["layer"].push_back(
      {{"mark", points ? Json{{"type", "point"}, {"filled", true}, {"size", 60}} : Json{{"type", "bar"}}},
       {"encoding", encoding}});
  if (std::any_of(panel.rows.begin(), panel.rows.end(), [](const Json& row) { return !row[3].is_null(); })) {
    bounds["color"] = {{"value", "currentColor"}};
    panel.spec["layer"].push_back(
        {{"mark", {{"type", "rule"}, {"strokeWidth", 1.5}}},
         {"transform", Json::array({{{"filter", logarithmic ? "datum.low > 0" : "isValid(datum.low)"}}})},
         {"encoding", bounds}});
  }
  figure.panels.push_back(std::move(panel));
  figure.table = table_of(figure, {{"x", x_title}});
  return figure;
}

/// Trace of the path kernel by group: a point each, with the interval over the seeds.
std::optional<Figure> traces(const Material& material) {
  Figure figure;
  figure.id = "path-kernel-trace";
  figure.title = "Trace of the path kernel";
  figure.caption =
      "At the start of training, before the first step. Networks with a larger trace are expected to converge faster "
      "(Gebhart, Saxena and Schrater 2021).";
  figure.series = material.labels();
  Panel panel;
  panel.fields = {"run", "x", "low", "high"};
  for (std::size_t g = 0; g < material.groups.size(); ++g) {
    const Interval v = over_group(material, material.groups[g], [](const Run& run) { return trace_of(run, ""); });
    if (v.count > 0 && v.mean > 0) panel.rows.push_back({g, number(v.mean), number(v.low), number(v.high)});
  }
  if (panel.rows.size() < 2) return std::nullopt;
  const Json y = {{"field", "run"},
                  {"type", "nominal"},
                  {"sort", figure.series},
                  {"axis", {{"title", nullptr}, {"labelLimit", 220}}}};
  const Json x = {{"field", "x"},
                  {"type", "quantitative"},
                  {"scale", {{"type", "log"}, {"nice", false}, {"padding", 24}}},
                  {"axis", {{"title", "trace of the path kernel"}, {"format", "~e"}}}};
  Json bounds = {{"y", y}, {"x", x}, {"x2", {{"field", "high"}}}, {"color", colour(figure.series)}};
  bounds["x"]["field"] = "low";
  panel.spec = {{"height", std::max<std::size_t>(70, 26 * panel.rows.size())},
                {"layer",
                 {{{"mark", {{"type", "rule"}, {"strokeWidth", 2}}},
                   {"transform", Json::array({{{"filter", "datum.low > 0"}}})},
                   {"encoding", bounds}},
                  {{"mark", {{"type", "point"}, {"filled", true}, {"size", 80}, {"tooltip", true}}},
                   {"encoding", {{"y", y}, {"x", x}, {"color", colour(figure.series)}}}}}}};
  figure.panels.push_back(std::move(panel));
  figure.table = table_of(figure, {{"x", "trace"}});
  return figure;
}

/// Dropped and grown positions of all layers, and the share that has ever been kept.
std::optional<Figure> changes(const Material& material) {
  Figure figure;
  figure.id = "changes";
  figure.title = "Changes of the masks";
  figure.caption =
      "Positions that left and entered at each change, in all layers; the share of all positions that has been "
      "kept at any time so far; multiply-accumulates of one sample through what is kept.";
  figure.series = material.labels();
  figure.small = true;
  struct Part {
    const char *key, *title, *y_title, *format;
    bool zero, steps;
  };
  for (const Part& part : {Part{"topology.dropped", "dropped", "positions", "~s", true, false},
                           Part{"topology.grown", "grown", "positions", "~s", true, false},
                           Part{"topology.ever_active", "ever kept", "share of positions", "~%", false, true},
                           Part{"topology.macs", "multiply-accumulates", "of one sample", "~s", true, true}}) {
    CurveFigure what = {"", "", "", part.y_title, part.format, part.zero, part.steps};
    auto one = curve_figure(material, what, [&](const Run& run) {
      auto series = by_key(part.key)(run);
      if (series && !part.steps) series = without_start(std::move(*series));
      return series && !series->empty() ? series : std::nullopt;
    });
    if (!one || !any_above_zero(*one)) continue;
    one->panels.front().title = part.title;
    one->panels.front().spec["height"] = 150;
    figure.panels.push_back(std::move(one->panels.front()));
  }
  bool moves = false;
  for (const Run& run : material.runs) {
    const Series* dropped = run.curve("topology.dropped");
    moves = moves || (dropped != nullptr && dropped->step.size() > 1);
  }
  if (figure.panels.empty() || !moves) return std::nullopt;
  figure.table = table_of(figure, {{"x", material.time_title()}, {"y", "value"}});
  if (!figure.table.columns.empty() && figure.table.columns.front() == "layer") figure.table.columns.front() = "what";
  return figure;
}

}  // namespace

void add_topology_figures(const Material& material, std::vector<Figure>& figures) {
  const auto add = [&](std::optional<Figure> figure) {
    if (figure && any_above_zero(*figure)) figures.push_back(std::move(*figure));
  };
  const auto sparse = [&] {
    for (const Run& run : material.runs) {
      for (const Layer& layer : run.layers) {
        const auto nnz = nnz_of(layer);
        if (nnz && layer.weights() > 0 && nnz->value.back() < static_cast<double>(layer.weights())) return true;
      }
    }
    return false;
  };
  if (sparse()) {
    CurveFigure kept = {"kept", "Weights kept", "In all sparsified layers.", "weights", "~s", true, true};
    bool changes = false;
    for (const Run& run : material.runs) {
      if (const Series* nnz = run.curve("topology.nnz")) {
        changes = changes ||
                  std::any_of(nnz->value.begin(), nnz->value.end(), [&](double v) { return v != nnz->value.front(); });
      }
    }
    if (changes) {
      add(curve_figure(material, kept, [](const Run& run) {
        auto nnz = by_key("topology.nnz")(run);
        if (nnz) begin_at_start(*nnz, run.curve("topology.dropped"), run.curve("topology.grown"));
        return nnz;
      }));
    }
    add(layer_figure(material,
                     {"density", "Density of each layer", "Share of the layer's positions that are kept.", "density",
                      "~%", true, true},
                     [](const Run&, const Layer& layer) -> std::optional<Series> {
                       auto nnz = nnz_of(layer);
                       if (!nnz || layer.weights() == 0) return std::nullopt;
                       for (double& v : nnz->value) v /= static_cast<double>(layer.weights());
                       return nnz;
                     }));
    add(layer_figure(material,
                     {"nnz", "Weights kept in each layer", "Counts; the axes differ.", "weights", "~s", true, true},
                     [](const Run&, const Layer& layer) { return nnz_of(layer); }));
  }
  add(changes(material));
  const auto moving = [](const std::string& key) -> LayerCurveOf {
    return [key](const Run&, const Layer& layer) -> std::optional<Series> {
      auto series = curve_of(layer, key);
      if (!series || series->step.size() < 2) return std::nullopt;
      return without_start(std::move(*series));
    };
  };
  add(layer_figure(material,
                   {"dropped", "Dropped in each layer", "Positions that left at each change.", "positions", "~s", true},
                   moving("topology.dropped")));
  add(layer_figure(material,
                   {"grown", "Grown in each layer", "Positions that entered at each change.", "positions", "~s", true},
                   moving("topology.grown")));
  add(layer_figure(material,
                   {"threshold", "Threshold of each layer",
                    "The size of weight that decided what was dropped, in the method's sense.", "threshold", "", true},
                   layer_key("topology.threshold")));
  add(layer_figure(material,
                   {"dead-units", "Dead units of each layer", "Units of the layer's output that no weight reaches.",
                    "units", "", true, true},
                   layer_key("topology.dead_outputs")));
  if (sparse()) {
    auto width = layer_bars(material, "width", "Width of each layer",
                            "Units of the layer's output that a weight reaches, at the end.", "units", false, width_of);
    if (width) figures.push_back(std::move(*width));
  }
  if (auto figure = traces(material)) figures.push_back(std::move(*figure));
  auto by_layer = layer_bars(material, "path-kernel-layers", "Trace of the path kernel by layer",
                             "What each layer adds to the trace, before the first step.", "trace", true, trace_of);
  if (by_layer) figures.push_back(std::move(*by_layer));
}

}  // namespace espalier::report
