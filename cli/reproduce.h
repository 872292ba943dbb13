/// What the experiments of `espalier reproduce` have in common.
#pragma once

#include <filesystem>
#include <optional>

#include "espalier/train/json.h"
#include "espalier/train/run_config.h"

namespace espalier::cli {

/// The summary of the run in this folder, which is begun, gone on with, or left alone where it is done; nothing where a
/// signal has stopped it. Throws Error(usage) if the folder holds a run with another configuration.
std::optional<train::Json> summary_of(const train::RunConfig& config, const std::filesystem::path& path);

}  // namespace espalier::cli
