/// What the experiments of `espalier reproduce` have in common.
#pragma once

#include <atomic>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "commands.h"
#include "espalier/train/json.h"
#include "espalier/train/run_config.h"
#include "espalier/train/run_directory.h"
#include "espalier/train/trainer.h"

namespace espalier::cli {

/// Arms, each run with the seeds 1, 2, …: the experiments whose runs are made in this process.
struct ArmsArguments {
  ConfigArguments config;
  std::string dir;
  std::vector<std::string> arms;  ///< all if empty
  std::int64_t seeds = 3;
  bool json = false;

  bool wants(const std::string& arm) const;
};

/// The configuration's arguments, --dir, --seeds, --arm and --json.
void add_arms_arguments(CLI::App& command, ArmsArguments& arguments, const std::string& default_dir,
                        const std::string& arm_help = "only this arm, may be repeated; all if left out");

/// Throws Error(usage) for --seeds below 1, for --seed, and for an arm that is not known.
void check_arms(const ArmsArguments& arguments, const std::vector<std::string>& known);

/// How a run is trained, or gone on with where its directory holds a checkpoint.
using Training =
    std::function<train::TrainResult(const train::RunConfig&, train::RunDirectory&, const std::atomic<bool>* stop)>;

/// The summary of the run in this folder, which is begun, gone on with, or left alone where it is done; nothing where a
/// signal has stopped it. Sets the threads. Throws Error(usage) if the folder holds a run with another configuration.
/// `training`: espalier train if it is left out.
std::optional<train::Json> summary_of(const train::RunConfig& config, const std::filesystem::path& path,
                                      const Training& training = {});

/// Says that the same command goes on. Returns the exit status.
int stopped();

/// Shares in per cent: "97.31 ± 0.12", the sample's standard deviation; of one the value alone, of none "-".
std::string mean_and_deviation(const std::vector<double>& shares, int digits = 2);

/// results.json and results.md in the folder; on standard output the first, or `text`.
void write_results(const std::filesystem::path& dir, const train::Json& results, const std::string& table, bool json,
                   const std::string& text, Context& context);

}  // namespace espalier::cli
