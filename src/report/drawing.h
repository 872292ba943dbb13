/// What the figures share: curves as means over seeds, the axis of time, Vega-Lite in pieces.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "espalier/report/figure.h"
#include "espalier/report/statistics.h"

namespace espalier::report {

/// The runs of a page, and how time is drawn.
struct Material {
  const std::vector<Run>& runs;
  const std::vector<RunGroup>& groups;
  bool epochs = false;

  std::vector<std::string> labels() const;
  std::string time_title() const { return epochs ? "epoch" : "step"; }
  double time(const Run& run, double step) const { return epochs ? step / run.steps_per_epoch : step; }
};

/// One point of a curve over the runs of a group. low and high are NaN where there is one run.
struct Point {
  double x = 0, y = 0, low = 0, high = 0;
};

using CurveOf = std::function<std::optional<Series>(const Run&)>;

/// The curve of a group: of one run as it is; of several the means and 95 % intervals at the steps that all of them
/// have, thinned to `most` points with their extremes.
std::vector<Point> mean_curve(const Material& material, const RunGroup& group, const CurveOf& curve, std::size_t most);

/// A Run's curve by its key.
CurveOf by_key(const std::string& key);

/// Six digits, which is more than a screen shows; null for what is not finite.
Json number(double value);
std::string text(double value);  ///< the same for a table; "-" for what is not finite

/// Vega-Lite of lines over x: fields x, y, run, and with `band` low and high, with `dashes` kind.
struct Lines {
  std::string x_title, y_title;
  std::string y_format;  ///< of d3; "" leaves it to Vega
  bool band = false;     ///< areas between low and high
  bool steps = false;    ///< a value holds until the next one
  bool points = false;   ///< a mark at each value: few of them
  bool log_x = false, log_y = false;
  bool from_zero = false;
  bool faint = false;               ///< a field kind = "faint" draws thin and pale: single steps behind their means
  std::vector<std::string> dashes;  ///< values of the field kind, solid first
};
Json lines_spec(const Lines& lines, const std::vector<std::string>& series, double height);

/// Colour by the field run.
Json colour(const std::vector<std::string>& series);

/// A figure of one curve for each group, or nothing if no run has it.
struct CurveFigure {
  std::string id, title, caption, y_title, y_format;
  bool from_zero = false, steps = false;
};
std::optional<Figure> curve_figure(const Material& material, const CurveFigure& what, const CurveOf& curve);

/// A figure with a small panel for each layer in which some run has the curve.
using LayerCurveOf = std::function<std::optional<Series>(const Run&, const Layer&)>;
std::optional<Figure> layer_figure(const Material& material, const CurveFigure& what, const LayerCurveOf& curve);

/// Names of the layers of all runs, in the order of the models.
std::vector<std::string> layer_names(const Material& material);

/// The rows of the panels as a table of at most about a hundred rows, evenly chosen.
Table table_of(const Figure& figure, const std::vector<std::pair<std::string, std::string>>& titles);

// The kinds of figures; each adds what there is data for.
void add_curve_figures(const Material& material, std::vector<Figure>& figures);   // loss, accuracy, rate, alpha, speed
void add_result_figures(const Material& material, std::vector<Figure>& figures);  // by group, against a key, pruned
void add_weight_figures(const Material& material, std::vector<Figure>& figures);  // histograms, means
void add_topology_figures(const Material& material,
                          std::vector<Figure>& figures);                        // density, changes, dead units, width
void add_task_figures(const Material& material, std::vector<Figure>& figures);  // matrix of accuracies, capacity

}  // namespace espalier::report
