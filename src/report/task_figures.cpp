// Sequences of tasks: the matrix of accuracies, and what each task takes of the network.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "report/drawing.h"

namespace espalier::report {
namespace {

/// Row by row, the first before any task; of a sequence without a summary, what its events have so far.
Json matrix_of(const Run& run) {
  if (run.summary.is_object() && run.summary.contains("accuracy_matrix") && run.summary["accuracy_matrix"].is_array()) {
    return run.summary["accuracy_matrix"];
  }
  Json rows = Json::array({Json::array()});
  for (const Json& task : run.tasks) {
    if (task.contains("accuracies") && task["accuracies"].is_array()) rows.push_back(task["accuracies"]);
  }
  return rows.size() > 1 ? rows : Json::array();
}

std::optional<Figure> accuracy_matrix(const Material& material) {
  Figure figure;
  figure.id = "task-accuracy";
  figure.title = "Accuracy of every task after every task";
  figure.caption = "Test accuracy on the task of the column when the tasks up to that of the row have been learnt.";
  figure.small = true;
  figure.series = material.labels();
  figure.table.columns = {"run", "after", "task", "accuracy"};
  for (std::size_t g = 0; g < material.groups.size(); ++g) {
    // Means over the seeds, cell by cell.
    std::vector<std::vector<std::vector<double>>> cells;
    std::size_t tasks = 0;
    for (const std::size_t r : material.groups[g].runs) {
      std::size_t i = 0;
      for (const Json& row : matrix_of(material.runs[r])) {
        if (cells.size() <= i) cells.emplace_back();
        if (row.is_array()) {
          for (std::size_t j = 0; j < row.size(); ++j) {
            if (cells[i].size() <= j) cells[i].emplace_back();
            cells[i][j].push_back(number_of(row[j]));
            tasks = std::max(tasks, j + 1);
          }
        }
        ++i;
      }
    }
    if (tasks == 0) continue;
    Panel panel;
    panel.title = material.groups.size() == 1 ? "" : material.groups[g].label;
    panel.fields = {"after", "task", "y"};
    std::vector<std::string> afters;
    for (std::size_t i = 0; i < cells.size(); ++i) {
      const std::string after = i == 0 ? "before" : fmt::format("{}", i);
      if (!cells[i].empty()) afters.push_back(after);
      for (std::size_t j = 0; j < cells[i].size(); ++j) {
        const double mean = mean_interval(cells[i][j]).mean;
        if (!std::isfinite(mean)) continue;
        panel.rows.push_back({after, fmt::format("{}", j + 1), number(mean)});
        figure.table.rows.push_back(
            {material.groups[g].label, after, fmt::format("{}", j + 1), text(number_of(number(mean)))});
      }
    }
    if (panel.rows.empty()) continue;
    const Json x = {
        {"field", "task"}, {"type", "ordinal"}, {"sort", nullptr}, {"axis", {{"title", "task"}, {"labelAngle", 0}}}};
    const Json y = {{"field", "after"}, {"type", "ordinal"}, {"sort", afters}, {"axis", {{"title", "after task"}}}};
    panel.spec = {
        {"height", std::max<std::size_t>(60, 24 * afters.size())},
        {"encoding", {{"x", x}, {"y", y}}},
        {"layer",
         {{{"mark", {{"type", "rect"}, {"tooltip", true}}},
           {"encoding",
            {{"color",
              {{"field", "y"},
               {"type", "quantitative"},
               {"title", "accuracy"},
               {"scale", {{"domain", {0, 1}}, {"scheme", "blues"}}}}}}}},
          {{"mark", {{"type", "text"}, {"fontSize", 10}}},
           {"encoding",
            {{"text", {{"field", "y"}, {"type", "quantitative"}, {"format", ".1%"}}},
             {"color", {{"condition", {{"test", "datum.y > 0.55"}, {"value", "#ffffff"}}}, {"value", "#111111"}}}}}}}}};
    figure.panels.push_back(std::move(panel));
  }
  if (figure.panels.empty()) return std::nullopt;
  return figure;
}

std::optional<Figure> capacity(const Material& material) {
  Figure figure;
  figure.id = "task-capacity";
  figure.title = "Capacity of each task";
  figure.caption = "Weights that a task takes for itself, and weights of earlier tasks that it uses too.";
  figure.small = true;
  figure.series = {"new", "reused"};
  figure.table.columns = {"run", "task", "new", "reused"};
  for (const RunGroup& g : material.groups) {
    const Run& run = material.runs[g.runs.front()];
    if (!run.summary.is_object() || !run.summary.contains("capacity") || !run.summary["capacity"].is_object()) continue;
    const Json& of_run = run.summary["capacity"];
    const double weights = number_of(of_run.value("weights", Json()));
    if (!of_run.contains("tasks") || !of_run["tasks"].is_array() || !(weights > 0)) continue;
    Panel panel;
    panel.title = material.groups.size() == 1 ? "" : g.label;
    panel.fields = {"run", "task", "y"};
    std::size_t t = 0;
    for (const Json& task : of_run["tasks"]) {
      ++t;
      if (!task.is_object()) continue;
      std::vector<std::string> row = {g.label, fmt::format("{}", t)};
      for (const std::size_t kind : {0, 1}) {
        const double n = number_of(task.value(figure.series[kind], Json()));
        panel.rows.push_back({kind, fmt::format("{}", t), number(n / weights)});
        row.push_back(text(n));
      }
      figure.table.rows.push_back(row);
    }
    if (panel.rows.empty()) continue;
    panel.spec = {
        {"height", 150},
        {"mark", {{"type", "bar"}, {"tooltip", true}}},
        {"encoding",
         {{"x",
           {{"field", "task"},
            {"type", "ordinal"},
            {"sort", nullptr},
            {"axis", {{"title", "task"}, {"labelAngle", 0}}}}},
          {"y",
           {{"field", "y"}, {"type", "quantitative"}, {"axis", {{"title", "share of all weights"}, {"format", "~%"}}}}},
          {"color", colour(figure.series)}}}};
    figure.panels.push_back(std::move(panel));
  }
  if (figure.panels.empty()) return std::nullopt;
  return figure;
}

}  // namespace

void add_task_figures(const Material& material, std::vector<Figure>& figures) {
  if (auto figure = accuracy_matrix(material)) figures.push_back(std::move(*figure));
  if (auto figure = capacity(material)) figures.push_back(std::move(*figure));
}

}  // namespace espalier::report
