/// espalier compare, and the table at the end of a sweep.
#pragma once

#include <filesystem>
#include <string>

namespace espalier::cli {

/// The runs of a sweep, grouped over their seeds, as text. What is left out is logged as a warning.
std::string comparison_table(const std::filesystem::path& sweep);

}  // namespace espalier::cli
