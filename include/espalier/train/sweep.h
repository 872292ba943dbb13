/// Many runs that differ in some keys: the table [sweep] of a file, or --sweep, expanded into cells, each an ordinary
/// configuration. docs/formats/sweep.md.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "espalier/train/json.h"
#include "espalier/train/run_config.h"

namespace espalier::train {

struct SweepSources {
  ConfigSources config;           ///< what all cells share; config.file may have a table [sweep]
  std::string name, text;         ///< a sweep that comes with the program: a file of nothing but [sweep]; or ""
  std::vector<std::string> grid;  ///< --sweep "key=a,b,c"; after the grid of the file
  std::string seeds;              ///< --seeds "3" (1, 2, 3) or "1,5,7"; in place of the file's
  std::vector<std::string> only;  ///< labels of the entries of the list to run; empty: all
};

struct Cell {
  std::string name;                                           ///< of its folder: "alpha=1.5,seed=2"
  std::string label;                                          ///< of its entry in [[sweep.list]]; "" without one
  std::string command = "train";                              ///< of the program: train or continual
  std::vector<std::pair<std::string, std::string>> settings;  ///< "table.key" and its value, in TOML's notation
  RunConfig config;
};

/// All cells: the list, times the grid, times the seeds, the last varying fastest. run.threads = 0 becomes `threads`.
/// Throws Error(usage) with every mistake of every cell, each once.
std::vector<Cell> plan_sweep(const SweepSources& sources, std::int64_t threads);

/// The sweeps that come with the program (espalier reproduce); their text throws Error(usage) for an unknown name.
std::vector<PresetInfo> known_sweeps();
std::string sweep_text(const std::string& name);

/// What is saved as sweep.json, so that a later start is known to mean the same.
Json to_json(const std::vector<Cell>& cells, std::int64_t threads);

/// Where a cell's run is, its configuration, what its process said, and why it failed (only there if it did).
std::filesystem::path cell_run(const std::filesystem::path& sweep, const std::string& cell);
std::filesystem::path cell_config(const std::filesystem::path& sweep, const std::string& cell);
std::filesystem::path cell_log(const std::filesystem::path& sweep, const std::string& cell);
std::filesystem::path cell_failure(const std::filesystem::path& sweep, const std::string& cell);

/// Throws Error(usage), with the keys and cells that differ, unless `cells` are those that the sweep in `directory` was
/// started with. With `extend` there may be new ones. Where a run's data lie, what it is called and how many
/// checkpoints it keeps may differ (may_differ_on_resume).
void check_same_sweep(const std::filesystem::path& directory, const std::vector<Cell>& cells, bool extend);

/// data.root, run.name, checkpoint.keep: a run that goes on may have others; its result is the same.
bool may_differ_on_resume(const std::string& key);

/// How far a cell is, from the files of its run.
struct CellState {
  std::string status;   ///< done, diverged, stopped, unfinished (no summary yet), missing (no run yet), damaged, failed
  Json summary;         ///< null if there is none
  std::string problem;  ///< of one that is damaged or failed
  bool has_result() const { return status == "done" || status == "diverged"; }
};
CellState state_of(const std::filesystem::path& sweep, const std::string& cell);

/// The tables of a sweep. Nothing in `results` depends on the clock or the machine's speed; `times` is what does.
struct SweepTables {
  std::string results;  ///< CSV: cell, label, the keys that vary, status, the numbers of summary.json
  std::string times;    ///< CSV: cell, train_seconds, samples_per_second, peak_rss_bytes, threads, isa
  Json json;            ///< what is in `results`, with each cell's layers
};
SweepTables tabulate(const std::filesystem::path& directory, const std::vector<Cell>& cells);

}  // namespace espalier::train
