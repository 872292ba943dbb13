/// The page of espalier report, for other commands.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace espalier::cli {

/// HTML of these runs (directories of runs, or of directories of runs), those that differ only by their seed as one.
std::string report_page(const std::vector<std::filesystem::path>& paths);

}  // namespace espalier::cli
