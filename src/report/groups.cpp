#include "espalier/report/groups.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <regex>
#include <set>

namespace espalier::report {
namespace {

using Settings = std::map<std::string, std::string>;

bool starts_with(const std::string& text, const std::string& start) {
  return text.compare(0, start.size(), start) == 0;
}

/// "runs/dpr-3@0" as "dpr-*@0": a network to start from that is itself one of several seeds.
std::string without_seed(const std::string& run) {
  std::string name = run.substr(run.find_last_of('/') + 1);
  const std::size_t end = std::min(name.find('@'), name.size());
  std::size_t digits = end;
  while (digits > 0 && std::isdigit(static_cast<unsigned char>(name[digits - 1])) != 0) --digits;
  return digits < end ? name.replace(digits, end - digits, "*") : name;
}

void remove_signs(std::string& name) {
  while (!name.empty() && std::ispunct(static_cast<unsigned char>(name.back())) != 0) name.pop_back();
}

/// "resnet20-set" of "20261120T040507Z-resnet20-set-41df2da2", the name that a run has unless it is given one.
std::string without_stamp(const std::string& name) {
  static const std::regex stamped("\\d{8}T\\d{6}Z-(.+)-[0-9a-f]{8}");
  std::smatch parts;
  return std::regex_match(name, parts, stamped) ? parts[1].str() : name;
}

/// What the names of the runs of a group have in common: "rigl" of "rigl-1" and "rigl-2", "a" of "a-seed1" and
/// "a-seed2", or of "a,seed=1" and "a,seed=2".
std::string common_name(const std::vector<Run>& runs, const RunGroup& group) {
  if (group.runs.size() == 1) return runs[group.runs.front()].name;
  std::vector<std::string> names;
  for (const std::size_t r : group.runs) names.push_back(without_stamp(runs[r].name));
  std::string name = common_beginning(names);
  for (const char* ending : {"seed", "s"}) {
    const std::size_t at = name.size() - std::min(name.size(), std::string(ending).size());
    const bool is_word = at == 0 || std::ispunct(static_cast<unsigned char>(name[at - 1])) != 0;
    if (name.substr(at) == ending && is_word) name.resize(at);
  }
  remove_signs(name);
  return name.empty() ? runs[group.runs.front()].name : name;
}

Settings that_matter(const Run& run) {
  Settings out;
  for (const auto& [key, value] : run.config) {
    const bool no_matter = starts_with(key, "run.") || starts_with(key, "checkpoint.") || starts_with(key, "log.") ||
                           key == "data.root" || key == "schema_version";
    // structure_from and values_from are about the network, not about the run of the program.
    if (!no_matter) out[key] = value;
    if (key == "run.structure_from" || key == "run.values_from") out[key] = without_seed(value);
  }
  return out;
}

/// "method.name" is said by its value alone, "reparam.alpha" as "alpha 1.5".
std::string said(const std::string& key, const std::string& value) {
  const std::string last = key.substr(key.find('.') + 1);
  if (last == "name") return value.empty() ? "none" : value;
  return last + " " + (value.empty() ? "none" : value);
}

/// "name", or with more groups of one name "name 2", …
void make_unique(std::vector<RunGroup>& groups) {
  std::set<std::string> taken;
  for (RunGroup& g : groups) {
    std::string label = g.label;
    for (int n = 2; !taken.insert(label).second; ++n) label = fmt::format("{} ({})", g.label, n);
    g.label = label;
  }
}

}  // namespace

std::string common_beginning(const std::vector<std::string>& names) {
  std::string common = names.front();
  for (const std::string& name : names) {
    std::size_t same = 0;
    while (same < common.size() && same < name.size() && common[same] == name[same]) ++same;
    common.resize(same);
  }
  while (!common.empty() && static_cast<unsigned char>(common.back()) >= 0x80) common.pop_back();  // half a character
  remove_signs(common);
  return common;
}

std::vector<RunGroup> group_runs(const std::vector<Run>& runs, bool each) {
  std::vector<RunGroup> groups;
  std::vector<Settings> of_group;
  for (std::size_t r = 0; r < runs.size(); ++r) {
    const Settings settings = that_matter(runs[r]);
    const auto at = std::find(of_group.begin(), of_group.end(), settings);
    if (!each && !runs[r].config.empty() && at != of_group.end()) {
      groups[static_cast<std::size_t>(at - of_group.begin())].runs.push_back(r);
      continue;
    }
    groups.emplace_back();
    groups.back().label = runs[r].name;
    groups.back().runs = {r};
    of_group.push_back(settings);
  }

  // The keys in which they differ. One that is not in all of them belongs to a method, and the method's name says more.
  std::set<std::string> keys, differing, everywhere_differing;
  for (const Settings& s : of_group) {
    for (const auto& [key, value] : s) keys.insert(key);
  }
  bool configured = true;
  for (const Run& run : runs) configured = configured && !run.config.empty();
  for (const std::string& key : keys) {
    std::set<std::string> values;
    std::size_t have = 0;
    for (const Settings& s : of_group) {
      const auto at = s.find(key);
      if (at == s.end()) continue;
      ++have;
      values.insert(at->second);
    }
    const bool everywhere = have == of_group.size();
    if (everywhere ? values.size() < 2 : false) continue;
    differing.insert(key);
    if (everywhere) everywhere_differing.insert(key);
  }
  for (std::size_t g = 0; g < groups.size(); ++g) {
    for (const std::string& key : differing) {
      const auto at = of_group[g].find(key);
      if (at != of_group[g].end()) groups[g].settings[key] = at->second;
    }
  }
  for (RunGroup& g : groups) g.label = common_name(runs, g);
  if (!each && configured && groups.size() > 1) {
    const auto name_by = [&](const std::set<std::string>& by) {
      std::set<std::string> labels;
      for (std::size_t g = 0; g < groups.size(); ++g) {
        std::string label;
        // What is a name comes first: "dpr, sparsity 0.9".
        for (const bool name : {true, false}) {
          for (const std::string& key : by) {
            const auto at = of_group[g].find(key);
            const bool is_name = key.size() > 5 && key.compare(key.size() - 5, 5, ".name") == 0;
            if (at != of_group[g].end() && is_name == name)
              label += (label.empty() ? "" : ", ") + said(key, at->second);
          }
        }
        groups[g].label = label.empty() ? common_name(runs, groups[g]) : label;
        labels.insert(groups[g].label);
      }
      return labels.size() == groups.size();
    };
    const auto short_enough = [&] {
      return std::all_of(groups.begin(), groups.end(),
                         [](const RunGroup& g) { return g.label.size() <= kLongestLabel; });
    };
    if ((!name_by(everywhere_differing) && !name_by(differing)) || !short_enough()) {
      for (RunGroup& g : groups) g.label = common_name(runs, g);
    }
  }
  make_unique(groups);
  return groups;
}

}  // namespace espalier::report
