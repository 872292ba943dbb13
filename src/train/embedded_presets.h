/// The files of presets/ as presets/CMakeLists.txt compiles them in.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace espalier::train {

/// (name, text).
const std::vector<std::pair<std::string, std::string>>& embedded_presets();
const std::vector<std::pair<std::string, std::string>>& embedded_sweeps();

}  // namespace espalier::train
