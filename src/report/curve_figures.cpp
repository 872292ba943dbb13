// Loss, accuracy, learning rate, alpha, speed: one number over training.
#include <algorithm>
#include <cmath>

#include "report/drawing.h"

namespace espalier::report {
namespace {

struct Kind {
  const char* name;  ///< in the legend
  const char* key;   ///< of Run::curves
};

/// Training and validation in one frame: solid and dashed, where there are both. Behind them the single steps, where
/// there is one group.
void add_pair(const Material& material, const std::string& id, const std::string& title, const std::string& y_format,
              const std::vector<Kind>& kinds, const char* faint, std::vector<Figure>& figures) {
  constexpr std::size_t kPoints = 4000;
  Figure figure;
  figure.id = id;
  figure.title = title;
  figure.series = material.labels();
  Panel panel;
  panel.fields = {"run", "kind", "x", "y", "low", "high"};
  bool band = false, has_faint = false;
  double least = INFINITY, most_y = 0;
  const std::size_t curves = material.groups.size() * kinds.size();
  const auto add = [&](std::size_t g, const char* kind, const char* key, std::size_t most) {
    const auto points = mean_curve(material, material.groups[g], by_key(key), most);
    for (const Point& p : points) {
      // A loss is not below 0, an accuracy not above 1 either: no more are their intervals drawn there.
      const double most_possible = y_format.empty() ? INFINITY : 1;
      panel.rows.push_back({g, kind, number(p.x), number(p.y),
                            number(std::isfinite(p.low) ? std::max(p.low, 0.0) : p.low),
                            number(std::isfinite(p.high) ? std::min(p.high, most_possible) : p.high)});
      band = band || std::isfinite(p.low);
      if (!std::isfinite(p.y)) continue;
      least = std::min(least, p.y);
      most_y = std::max(most_y, p.y);
    }
    return !points.empty();
  };
  std::vector<std::string> dashes;
  for (const Kind& kind : kinds) {
    bool any = false;
    for (std::size_t g = 0; g < material.groups.size(); ++g) {
      any =
          add(g, kind.name, kind.key, std::max<std::size_t>(60, std::min<std::size_t>(1000, kPoints / curves))) || any;
    }
    if (!any) continue;
    dashes.emplace_back(kind.name);
    figure.strokes.emplace_back(kind.name, dashes.size() == 1 ? "solid" : "dashed");
  }
  // The means of epochs are the curve; single steps are its noise, and too many colours hide both.
  if (faint != nullptr && (material.groups.size() == 1 || dashes.empty())) {
    for (std::size_t g = 0; g < material.groups.size(); ++g) {
      has_faint = add(g, "faint", faint, std::min<std::size_t>(1500, kPoints / material.groups.size())) || has_faint;
    }
  }
  if (panel.rows.empty()) return;
  if (has_faint) figure.strokes.emplace_back("single steps", "faint");
  if (figure.strokes.size() == 1 && !has_faint) figure.strokes.clear();
  Lines lines;
  lines.x_title = material.time_title();
  lines.y_title = id;
  lines.y_format = y_format;
  lines.band = band;
  lines.faint = has_faint;
  lines.dashes = dashes;
  lines.log_y = !band && y_format.empty() && least > 0 && most_y / least > 300;
  figure.caption = band ? "Mean over the seeds with its 95 % confidence interval." : "";
  if (has_faint && !dashes.empty()) figure.caption += " Training: mean of each epoch; pale behind it, single steps.";
  if (lines.log_y) figure.caption += " The axis is logarithmic.";
  panel.spec = lines_spec(lines, figure.series, 260);
  figure.panels.push_back(std::move(panel));
  figure.table = table_of(figure, {{"x", material.time_title()}, {"y", id}, {"kind", "measured on"}});
  for (auto& row : figure.table.rows)
    std::replace(row.begin(), row.end(), std::string("faint"), std::string("single step"));
  figures.push_back(std::move(figure));
}

}  // namespace

void add_curve_figures(const Material& material, std::vector<Figure>& figures) {
  add_pair(material, "loss", "Loss", "", {{"training", "epoch.train_loss"}, {"validation", "eval.validation.loss"}},
           "step.loss", figures);
  add_pair(material, "accuracy", "Accuracy", "~%",
           {{"training", "epoch.train_accuracy"}, {"validation", "eval.validation.accuracy"}}, nullptr, figures);
  const auto add = [&](std::optional<Figure> figure) {
    if (figure) figures.push_back(std::move(*figure));
  };
  add(curve_figure(material, {"learning-rate", "Learning rate", "", "learning rate", "", true}, by_key("step.lr")));

  CurveFigure alpha = {"alpha", "Alpha of Powerpropagation", "The exponent as its control loop has set it.", "alpha",
                       ""};
  alpha.steps = true;
  auto of_network = curve_figure(material, alpha, by_key("alpha.alpha"));
  if (of_network) {
    add(std::move(of_network));
  } else {
    alpha.caption += " One for each layer.";
    add(layer_figure(material, alpha, [](const Run&, const Layer& layer) -> std::optional<Series> {
      const auto at = layer.curves.find("alpha.alpha");
      return at == layer.curves.end() ? std::nullopt : std::optional<Series>(at->second);
    }));
  }
  add(curve_figure(
      material,
      {"alpha-signal", "What alpha answers to", "The measure of sparsity that the control loop reads.", "signal", "~%"},
      by_key("alpha.signal")));
  add(curve_figure(material,
                   {"speed", "Speed", "Training steps only, without evaluations and checkpoints; from timing.jsonl.",
                    "samples per second", "~s", true},
                   by_key("timing.samples_per_second")));
}

}  // namespace espalier::report
