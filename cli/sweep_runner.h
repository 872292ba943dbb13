/// Runs the cells of a sweep, each in a process of its own, so that one that fails does not stop the rest.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "commands.h"
#include "espalier/train/sweep.h"
#include "run_commands.h"

namespace espalier::cli {

/// --dir, --jobs, --seeds, --extend, --only, --json: what espalier sweep and espalier reproduce have in common.
struct SweepArguments {
  std::string dir, seeds;
  std::vector<std::string> only;
  int jobs = 1;
  bool extend = false, json = false, dry_run = false;
};
void add_sweep_arguments(CLI::App& command, SweepArguments& arguments, const std::string& default_dir);

/// A command for every cell that is done: its arguments ("{run}" is the cell's run directory, "{threads}" its threads),
/// and the file in the run directory that it writes: where that is, the command is not run again.
struct AfterCell {
  std::vector<std::string> arguments;
  std::string makes;
};

/// Plans the sweep, runs what is not finished, writes results.csv, results.json and times.csv, prints the comparison.
/// `input`: the sweep file as given, kept as sweep.toml. `planned` gets the cells. Returns the exit status: 0 if every
/// cell is done, 75 after a signal, otherwise that of the failed cells if they agree, or 1.
int run_sweep(const train::SweepSources& sources, const SweepArguments& arguments,
              const std::filesystem::path& directory, const std::string& input, Context& context,
              const std::vector<AfterCell>& after = {}, std::vector<train::Cell>* planned = nullptr);

}  // namespace espalier::cli
