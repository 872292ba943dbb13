/// What the commands that train have in common: signals, what the user gave, going on with a run.
#pragma once

#include <atomic>
#include <filesystem>
#include <string>
#include <vector>

#include "commands.h"

namespace espalier::cli {

constexpr int kStoppedBySignal = 75;  ///< exit status after a good checkpoint: start me again

/// From now on SIGTERM, SIGINT and SIGUSR1 set this; a second one ends the process.
const std::atomic<bool>* stop_on_signals();

std::string read_text(const std::filesystem::path& path);
std::string command_line();

/// What the user gave: the file or the preset, and the overrides below it as comments.
std::string input_text(const ConfigArguments& arguments);

/// The configuration to go on with: that of the run, or the one given now if every difference is allowed.
train::RunConfig resumed_config(const ConfigArguments& arguments, const std::vector<std::string>& allow_change,
                                const Context& context, const std::filesystem::path& run);

/// Adds --allow-change TABLE.KEY.
void add_allow_change(CLI::App& command, std::vector<std::string>& keys);

bool finished(const std::filesystem::path& run);

}  // namespace espalier::cli
