// Distributions of the weights: at the end, over time, their means, and how many are near zero.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "report/drawing.h"

namespace espalier::report {
namespace {

constexpr int kRecordedBins = 256;
/// The axis ends where so many of the weights are inside: single large ones would flatten the rest.
constexpr double kShown = 0.998;
/// Ridges of all panels together; more of them are too small to read.
constexpr std::size_t kMostPanels = 60, kRows = 6000;

/// Lower edge of a bin: bins have equal widths in sign(w) sqrt|w|.
double edge(int scale, double bin) {
  const double root = std::ldexp(bin / (kRecordedBins / 2.0) - 1, scale);
  return std::copysign(root * root, root);
}

double total(const Histogram& h) {
  double sum = 0;
  for (const double c : h.counts) sum += c;
  return sum;
}

/// The smallest half range that holds a share of the weights, to the width of a bin.
double half_range(const Histogram& h, double share) {
  std::vector<std::pair<double, double>> sizes;  // outer edge of a bin and its count
  for (std::size_t i = 0; i < h.counts.size(); ++i) {
    const double bin = static_cast<double>(h.first) + static_cast<double>(i);
    sizes.emplace_back(std::max(std::abs(edge(h.scale, bin)), std::abs(edge(h.scale, bin + 1))), h.counts[i]);
  }
  std::sort(sizes.begin(), sizes.end());
  double sum = 0;
  const double wanted = share * total(h);
  for (const auto& [size, count] : sizes) {
    sum += count;
    if (sum >= wanted) return size;
  }
  return sizes.empty() ? 0 : sizes.back().first;
}

/// Shares of the weights in equal bins over [-half, half]. A recorded bin that lies across an edge is split by length.
std::vector<double> shares(const Histogram& h, double half, int bins) {
  std::vector<double> out(static_cast<std::size_t>(bins));
  const double sum = total(h), width = 2 * half / bins;
  if (sum == 0 || width == 0) return out;
  for (std::size_t i = 0; i < h.counts.size(); ++i) {
    if (h.counts[i] == 0) continue;
    const double bin = static_cast<double>(h.first) + static_cast<double>(i);
    const double low = edge(h.scale, bin), high = edge(h.scale, bin + 1);
    const int from = std::max(0, static_cast<int>(std::floor((std::max(low, -half) + half) / width)));
    const int to = std::min(bins - 1, static_cast<int>(std::floor((std::min(high, half) + half) / width)));
    for (int b = from; b <= to; ++b) {
      const double left = -half + b * width;
      const double overlap = std::min(high, left + width) - std::max(low, left);
      if (overlap > 0) out[static_cast<std::size_t>(b)] += h.counts[i] / sum * overlap / (high - low);
    }
  }
  return out;
}

const Histogram* last_histogram(const Run& run, const std::string& name) {
  const Layer* layer = run.layer(name);
  return layer == nullptr || layer->histograms.empty() ? nullptr : &layer->histograms.back();
}

double last_of(const Run& run, const std::string& name, const std::string& key) {
  const Layer* layer = run.layer(name);
  if (layer == nullptr) return std::nan("");
  const auto at = layer->curves.find(key);
  return at == layer->curves.end() || at->second.empty() ? std::nan("") : at->second.value.back();
}

/// What a histogram says in numbers.
void add_numbers(const Material& material, Table& table, const std::string& name) {
  for (const RunGroup& g : material.groups) {
    const auto mean = [&](const std::function<double(const Run&)>& value) {
      std::vector<double> values;
      for (const std::size_t r : g.runs) values.push_back(value(material.runs[r]));
      return mean_interval(values).mean;
    };
    const auto of = [&](const char* key) {
      return mean([&, key](const Run& run) { return last_of(run, name, std::string("weights.") + key); });
    };
    const double near = mean(
        [&](const Run& run) { return last_of(run, name, "weights.near_zero") / last_of(run, name, "weights.nnz"); });
    table.rows.push_back({name, g.label, text(of("nnz")), text(number_of(number(of("mean")))),
                          text(number_of(number(of("mean_abs")))), text(number_of(number(near)))});
  }
}

std::optional<Figure> final_histograms(const Material& material) {
  constexpr int kBins = 81;  // odd: one of them has zero in its middle
  Figure figure;
  figure.id = "weights";
  figure.title = "Weights of each layer";
  figure.caption =
      "Share of the layer's kept weights in each of 81 equal bins, at the end of the run. The axis ends where 99.8 % "
      "of the weights are inside.";
  figure.series = material.labels();
  figure.small = true;
  figure.table.columns = {"layer", "run", "kept", "mean", "mean size", "share below 0.01"};
  for (const std::string& name : layer_names(material)) {
    double half = 0;
    for (const Run& run : material.runs) {
      if (const Histogram* h = last_histogram(run, name)) half = std::max(half, half_range(*h, kShown));
    }
    if (half == 0 || figure.panels.size() >= kMostPanels) continue;
    Panel panel;
    panel.title = name;
    panel.fields = {"run", "x", "y"};
    for (std::size_t g = 0; g < material.groups.size(); ++g) {
      std::vector<double> mean(kBins);
      double n = 0;
      for (const std::size_t r : material.groups[g].runs) {
        const Histogram* h = last_histogram(material.runs[r], name);
        if (h == nullptr) continue;
        ++n;
        const auto one = shares(*h, half, kBins);
        for (std::size_t b = 0; b < mean.size(); ++b) mean[b] += one[b];
      }
      if (n == 0) continue;
      for (int b = 0; b <= kBins; ++b) {
        const double y = mean[static_cast<std::size_t>(std::min(b, kBins - 1))] / n;
        panel.rows.push_back({g, number(-half + 2 * half * b / kBins), number(y)});
      }
    }
    Json x = {{"field", "x"},
              {"type", "quantitative"},
              {"axis", {{"title", "weight"}, {"tickCount", 5}}},
              {"scale", {{"nice", false}}}};
    Json y = {{"field", "y"},
              {"type", "quantitative"},
              {"stack", nullptr},
              {"axis", {{"title", "share of the weights"}, {"format", "~%"}, {"tickCount", 4}}}};
    panel.spec = {{"height", 150},
                  {"mark",
                   {{"type", "area"},
                    {"interpolate", "step-after"},
                    {"line", {{"strokeWidth", 1.2}}},
                    {"fillOpacity", material.groups.size() == 1 ? 0.45 : 0.22}}},
                  {"encoding", {{"x", x}, {"y", y}, {"color", colour(figure.series)}}}};
    figure.panels.push_back(std::move(panel));
    add_numbers(material, figure.table, name);
  }
  if (figure.panels.empty()) return std::nullopt;
  return figure;
}

std::optional<Figure> histograms_over_time(const Material& material) {
  constexpr int kBins = 49;
  Figure figure;
  figure.id = "weights-over-time";
  figure.title = "Weights over training";
  figure.series = material.labels();
  figure.small = true;
  figure.caption =
      fmt::format("One histogram of the kept weights for each {} on the left, from the start (below) to the end.",
                  material.time_title());
  if (material.runs.size() > material.groups.size()) figure.caption += " The first seed of each.";
  const auto names = layer_names(material);
  const std::size_t panels = std::min(kMostPanels, std::max<std::size_t>(1, names.size() * material.groups.size()));
  const std::size_t times = std::clamp<std::size_t>(kRows / (panels * kBins), 4, 9);
  figure.table.columns = {"layer", "run", material.time_title(), "kept", "mean", "mean size", "below 0.01"};
  for (const std::string& name : names) {
    double half = 0, highest = 0;
    for (const RunGroup& g : material.groups) {
      const Layer* layer = material.runs[g.runs.front()].layer(name);
      if (layer == nullptr) continue;
      for (const Histogram& h : layer->histograms) half = std::max(half, half_range(h, kShown));
    }
    if (half == 0) continue;
    for (std::size_t g = 0; g < material.groups.size(); ++g) {
      const Run& run = material.runs[material.groups[g].runs.front()];
      const Layer* layer = run.layer(name);
      if (layer == nullptr || layer->histograms.size() < 2 || figure.panels.size() >= kMostPanels) continue;
      const std::size_t n = layer->histograms.size(), shown = std::min(times, n);
      Panel panel;
      panel.title = material.groups.size() == 1 ? name : name + " · " + material.groups[g].label;
      panel.fields = {"run", "time", "x", "low", "y"};
      std::vector<std::vector<double>> of_time;
      std::string labels;
      highest = 0;
      for (std::size_t t = 0; t < shown; ++t) {
        const Histogram& h = layer->histograms[t * (n - 1) / (shown - 1)];
        of_time.push_back(shares(h, half, kBins));
        highest = std::max(highest, *std::max_element(of_time.back().begin(), of_time.back().end()));
        labels += fmt::format("{}'{}'", t == 0 ? "" : ",", text(std::round(material.time(run, h.step) * 10) / 10));
        const auto at = [&](const char* key) {
          const auto curve = layer->curves.find(std::string("weights.") + key);
          if (curve == layer->curves.end()) return std::nan("");
          const auto place = std::find(curve->second.step.begin(), curve->second.step.end(), h.step);
          return place == curve->second.step.end()
                     ? std::nan("")
                     : curve->second.value[static_cast<std::size_t>(place - curve->second.step.begin())];
        };
        figure.table.rows.push_back({name, material.groups[g].label,
                                     text(number_of(number(material.time(run, h.step)))), text(at("nnz")),
                                     text(at("mean")), text(at("mean_abs")), text(at("near_zero"))});
      }
      // The latest is drawn first, so that the ridge in front is the lower one.
      for (std::size_t t = shown; t-- > 0;) {
        for (int b = 0; b < kBins; ++b) {
          const double x = -half + 2 * half * (b + 0.5) / kBins;
          const double height = highest > 0 ? 2 * of_time[t][static_cast<std::size_t>(b)] / highest : 0;
          panel.rows.push_back({g, t, number(x), t, number(static_cast<double>(t) + height)});
        }
      }
      Json values = Json::array();
      for (std::size_t t = 0; t < shown; ++t) values.push_back(t);
      Json y = {{"field", "low"}, {"type", "quantitative"}, {"scale", {{"domain", {0, shown + 1}}, {"nice", false}}}};
      y["axis"] = {{"title", material.time_title()},
                   {"values", values},
                   {"labelExpr", fmt::format("[{}][datum.value]", labels)},
                   {"grid", false}};
      Json x = {{"field", "x"},
                {"type", "quantitative"},
                {"axis", {{"title", "weight"}, {"tickCount", 5}}},
                {"scale", {{"nice", false}}}};
      panel.spec = {
          {"height", static_cast<double>(40 + 20 * shown)},
          {"mark",
           {{"type", "area"}, {"line", {{"strokeWidth", 1}}}, {"fillOpacity", 0.35}, {"interpolate", "monotone"}}},
          {"encoding",
           {{"x", x},
            {"y", y},
            {"y2", {{"field", "y"}}},
            {"detail", {{"field", "time"}}},
            {"color", colour(figure.series)}}}};
      figure.panels.push_back(std::move(panel));
    }
  }
  if (figure.panels.empty()) return std::nullopt;
  return figure;
}

}  // namespace

void add_weight_figures(const Material& material, std::vector<Figure>& figures) {
  const auto add = [&](std::optional<Figure> figure) {
    if (figure) figures.push_back(std::move(*figure));
  };
  add(final_histograms(material));
  add(histograms_over_time(material));
  const auto key = [](const std::string& name) -> LayerCurveOf {
    return [name](const Run&, const Layer& layer) -> std::optional<Series> {
      const auto at = layer.curves.find(name);
      return at == layer.curves.end() ? std::nullopt : std::optional<Series>(at->second);
    };
  };
  add(layer_figure(material, {"mean-weight", "Mean of the weights", "Of the weights that are kept.", "mean weight", ""},
                   key("weights.mean")));
  add(layer_figure(
      material,
      {"mean-size", "Mean size of the weights", "Mean of |w| over the weights that are kept.", "mean |w|", "", true},
      key("weights.mean_abs")));
  add(layer_figure(
      material,
      {"near-zero", "Weights near zero", "Share of the kept weights with |w| below 0.01.", "share", "~%", true},
      [](const Run&, const Layer& layer) -> std::optional<Series> {
        const auto near = layer.curves.find("weights.near_zero"), nnz = layer.curves.find("weights.nnz");
        if (near == layer.curves.end() || nnz == layer.curves.end()) return std::nullopt;
        Series out = near->second;
        if (nnz->second.value.size() != out.value.size()) return std::nullopt;
        for (std::size_t i = 0; i < out.value.size(); ++i) out.value[i] /= nnz->second.value[i];
        return out;
      }));
}

}  // namespace espalier::report
