#include <algorithm>

#include "report/drawing.h"

namespace espalier::report {
namespace {

/// Colours for paper; the page has its own for light and dark.
const std::vector<std::string> kColours{"#2a6fdb", "#d9480f", "#2b8a3e", "#ae3ec9",
                                        "#846200", "#0c8599", "#c2255c", "#5c636a"};

Json objects(const Figure& figure, const Panel& panel) {
  Json out = Json::array();
  for (const Json& row : panel.rows) {
    Json object = Json::object();
    for (std::size_t f = 0; f < panel.fields.size(); ++f) {
      const bool label = panel.fields[f] == "run" && row[f].is_number();
      object[panel.fields[f]] = label ? Json(figure.series[row[f].get<std::size_t>()]) : row[f];
    }
    out.push_back(std::move(object));
  }
  return out;
}

}  // namespace

std::vector<Figure> make_figures(const std::vector<Run>& runs, const std::vector<RunGroup>& groups,
                                 const FigureOptions& options) {
  const bool known =
      !runs.empty() && std::all_of(runs.begin(), runs.end(), [](const Run& r) { return r.steps_per_epoch > 0; });
  Material material{runs, groups, known && options.axis != FigureOptions::Axis::step};
  std::vector<Figure> figures;
  add_result_figures(material, figures);
  add_task_figures(material, figures);
  add_curve_figures(material, figures);
  add_topology_figures(material, figures);
  add_weight_figures(material, figures);
  return figures;
}

Json vega_lite(const Figure& figure) {
  Json document = {{"$schema", "https://vega.github.io/schema/vega-lite/v6.json"},
                   {"title", figure.title},
                   {"description", figure.caption}};
  document["background"] = "white";
  document["config"] = {
      {"range", {{"category", kColours}}}, {"view", {{"stroke", nullptr}}}, {"legend", {{"labelLimit", 300}}}};
  const auto of_panel = [&](const Panel& panel, int width) {
    Json spec = panel.spec;
    spec["width"] = width;
    spec["data"] = {{"values", objects(figure, panel)}};
    if (!panel.title.empty()) spec["title"] = {{"text", panel.title}, {"fontSize", 11}};
    return spec;
  };
  if (figure.panels.size() == 1) {
    Json spec = of_panel(figure.panels.front(), 560);
    spec.erase("title");
    document.update(spec);
    return document;
  }
  document["columns"] = 3;
  document["concat"] = Json::array();
  for (const Panel& panel : figure.panels) document["concat"].push_back(of_panel(panel, figure.small ? 220 : 480));
  return document;
}

}  // namespace espalier::report
