// espalier reproduce report|powerprop: a sweep that comes with the program, then every run pruned to many sparsities.
#include <filesystem>
#include <map>

#include "commands.h"
#include "espalier/core/csv.h"
#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/train/durable_file.h"
#include "page.h"
#include "reproduce.h"
#include "sweep_runner.h"

namespace espalier::cli {
namespace {

namespace fs = std::filesystem;
using train::Json;

struct ReproduceSweepsArguments {
  std::string name;
  ConfigArguments config;
  SweepArguments sweep;
  bool show = false, prune = true;
};

constexpr const char* kPruned = "prune/test-notebook.json";  // what espalier prune leaves in the run

fs::path pruned_file(const fs::path& dir, const std::string& cell) { return train::cell_run(dir, cell) / kPruned; }

/// Test accuracy at each share kept, of all runs with one label: a column a label, a row a share.
std::string pruning_table(const fs::path& dir, const std::vector<train::Cell>& cells, std::string& csv) {
  std::vector<std::string> labels;
  std::map<double, std::map<std::string, std::vector<double>>> accuracy;  // kept, label
  csv = "cell,label,seed,keep,sparsity,nnz,accuracy,loss\n";
  for (const auto& cell : cells) {
    if (!fs::exists(pruned_file(dir, cell.name))) continue;
    if (std::find(labels.begin(), labels.end(), cell.label) == labels.end()) labels.push_back(cell.label);
    const train::Json pruned = train::read_json(pruned_file(dir, cell.name));
    for (const auto& point : pruned.at("points")) {
      const auto value = [&](const char* key) { return train::to_json_line(point.at(key)); };
      csv += fmt::format("{},{},{},{},{},{},{},{}\n", csv_field(cell.name), csv_field(cell.label), cell.config.run.seed,
                         value("keep"), value("sparsity"), value("nnz"), value("accuracy"), value("loss"));
      accuracy[point.at("keep").get<double>()][cell.label].push_back(point.at("accuracy").get<double>());
    }
  }
  std::vector<std::vector<std::string>> rows = {{"kept, %"}};
  rows[0].insert(rows[0].end(), labels.begin(), labels.end());
  for (auto& [keep, of_label] : accuracy) {
    rows.push_back({fmt::format("{:.2f}", 100 * keep)});
    for (const auto& label : labels) rows.back().push_back(mean_and_deviation(of_label[label], 1));
  }
  return labels.empty() ? "" : columns(rows);
}

/// "mnist-mlp": what the layers of a panel have to have in common.
std::string network_of(const train::RunConfig& config) {
  const std::string &data = config.data.name, &model = config.model.name, &sequence = config.continual.sequence;
  return (model.rfind(data, 0) == 0 ? model : data + "-" + model) + (sequence == "none" ? "" : "-" + sequence);
}

/// The page of figures, of what there is; where there are several networks, one for each of them too.
int finish(const fs::path& dir, const std::vector<train::Cell>& cells, int status) {
  const auto write = [&](const std::string& name, const std::vector<fs::path>& runs) {
    train::write_file_atomically(dir / name, report_page(runs));
    log_info(fmt::format("report: {}", (dir / name).string()));
  };
  try {
    write("report.html", {dir / "cells"});
    std::map<std::string, std::vector<fs::path>> networks;
    for (const auto& cell : cells) {
      const fs::path run = train::cell_run(dir, cell.name);
      if (fs::exists(run / "config.toml")) networks[network_of(cell.config)].push_back(run);
    }
    if (networks.size() < 2) return status;
    for (const auto& [network, runs] : networks) write(fmt::format("report-{}.html", network), runs);
  } catch (const Error& error) {
    if (status == 0) throw;
    log_warning(fmt::format("no report.html: {}", error.what()));  // what failed has been said
  }
  return status;
}

int run(const ReproduceSweepsArguments& arguments, Context& context) {
  const std::string text = train::sweep_text(arguments.name);
  if (arguments.show) {
    context.console.print(text);
    return 0;
  }
  train::SweepSources all;
  all.config = sources(arguments.config, context);
  all.name = "sweep " + arguments.name;
  all.text = text;
  const fs::path dir =
      arguments.sweep.dir.empty() ? fs::path("runs") / ("reproduce-" + arguments.name) : fs::path(arguments.sweep.dir);
  std::vector<AfterCell> after;
  if (arguments.prune)
    after.push_back({{"prune", "{run}", "--threads", "{threads}", "--distribution", "notebook"}, kPruned});
  std::vector<train::Cell> cells;
  const int status = run_sweep(all, arguments.sweep, dir, text, context, after, &cells);
  if (arguments.sweep.dry_run || status == kStoppedBySignal) return status;
  if (!arguments.prune) return finish(dir, cells, status);
  std::string csv;
  const std::string table = pruning_table(dir, cells, csv);
  train::write_file_atomically(dir / "pruning.csv", csv);
  if (!arguments.sweep.json && !table.empty()) {
    context.console.print("\nTest accuracy, %, after pruning once without retraining:\n" + table);
    log_info(fmt::format("pruned: {}", (dir / "pruning.csv").string()));
  }
  return finish(dir, cells, status);
}

}  // namespace

void add_reproduce_sweeps(CLI::App& reproduce, Context& context) {
  for (const auto& info : train::known_sweeps()) {
    auto arguments = std::make_shared<ReproduceSweepsArguments>();
    arguments->name = info.name;
    CLI::App* command = reproduce.add_subcommand(info.name, info.description);
    add_override_arguments(*command, arguments->config);
    add_sweep_arguments(*command, arguments->sweep, "runs/reproduce-" + info.name);
    command->add_flag("--no-prune{false}", arguments->prune, "leave out the pruning of every run at the end");
    command->add_flag("--show", arguments->show, "print the sweep file: something to copy and change");
    command->footer(fmt::format(
        "Finished cells are not run again, interrupted ones go on from their checkpoint: repeat the same command.\n"
        "Examples:\n"
        "  espalier reproduce {0} --jobs 2 --data-root DIR\n"
        "  espalier reproduce {0} --show > my.toml\n"
        "  espalier compare runs/reproduce-{0} --spread ci95",
        info.name));
    on_run(*command, context, [arguments, &context] { return run(*arguments, context); });
  }
}

}  // namespace espalier::cli
