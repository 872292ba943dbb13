/// Which runs are repetitions of one another, and what each group is called.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "espalier/report/run.h"

namespace espalier::report {

/// Runs of one configuration that differ in nothing but their seed.
struct RunGroup {
  std::string label;                            ///< unique among the groups
  std::vector<std::size_t> runs;                ///< places in the list of runs
  std::map<std::string, std::string> settings;  ///< the keys in which the groups differ, by their value here
  bool baseline = false;
};

/// A label with more characters says too much.
constexpr std::size_t kLongestLabel = 60;

/// What the names begin with alike, without signs at its end: "ann-alpha" of "ann-alpha1" and "ann-alpha1.5".
std::string common_beginning(const std::vector<std::string>& names);

/// Groups in the order of their first run. `each`: a group for every run, named after it. Keys that say where, how fast
/// and how loudly a run was done (seed, name, threads, data.root, checkpoint, log) make no difference. A group is named
/// by the values of the keys in which the groups differ; a single group, and where those are too long or tell too
/// little, by what the names of its folders have in common.
std::vector<RunGroup> group_runs(const std::vector<Run>& runs, bool each);

}  // namespace espalier::report
