/// Asks a question of many runs: what differs between them, and what came out of it, with how many seeds and how much
/// spread. Reads config.toml and summary.json, nothing else. docs/sweeps.md.
#pragma once

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace espalier::report {

using Json = nlohmann::ordered_json;

/// One run as its files tell it. Nothing here throws for what is in the files.
struct RunResult {
  std::filesystem::path path;
  std::string label;    ///< of its entry in the list of a sweep
  std::string status;   ///< done, diverged, stopped, unfinished (no summary.json yet), damaged
  std::string problem;  ///< of a damaged one
  Json config;          ///< "table.key": value
  Json summary;         ///< the plain values of summary.json; a number that is not finite is a string there
  bool finished() const { return status == "done" || status == "diverged"; }
};

/// The runs in `paths`: each a run directory, a sweep, or a directory of run directories. Throws Error(usage) naming a
/// path that is neither.
std::vector<RunResult> read_runs(const std::vector<std::filesystem::path>& paths);

struct CompareOptions {
  std::vector<std::string> filters;  ///< "field<value", with =, !=, <, <=, >, >=; a run must meet all of them
  std::vector<std::string> by;       ///< fields whose values make a group; empty: everything but the seed
  std::vector<std::string> fields;   ///< results to show; empty: the usual ones that are there
  std::string sort;                  ///< a field; empty: as found
  bool descending = false;
  bool each = false;  ///< one row a run
};

/// Of the finite values of one field in one group.
struct Statistics {
  std::size_t n = 0;
  double mean = 0, deviation = 0;  ///< deviation: of a sample (n - 1); 0 if n < 2
  double ci95 = 0;                 ///< half the 95 % confidence interval of the mean (Student's t); 0 if n < 2
  double min = 0, max = 0;
  bool integers = true;
};
Statistics statistics(const std::vector<double>& values);

struct Group {
  std::vector<Json> keys;  ///< as Comparison::keys; null where a run has no such field
  std::vector<std::filesystem::path> runs;
  std::size_t done = 0, diverged = 0;
  std::vector<std::int64_t> seeds;
  std::vector<Statistics> values;  ///< as Comparison::fields
};
struct LeftOut {
  std::filesystem::path run;
  std::string reason;
};
struct Comparison {
  std::vector<std::string> keys;    ///< "label", "reparam.alpha": what is not the same in all groups
  std::vector<std::string> fields;  ///< "test_accuracy"
  std::vector<Group> groups;
  std::vector<LeftOut> left_out;  ///< unfinished or damaged
};
/// A field is the name of a result (test_accuracy), a key of the configuration (reparam.alpha), or its last word
/// (alpha) where only one key ends so. Throws Error(usage) for one that no run has.
Comparison compare(const std::vector<RunResult>& runs, const CompareOptions& options);

enum class Spread { deviation, ci95, range };
std::string to_text(const Comparison& comparison, Spread spread);
std::string to_markdown(const Comparison& comparison, Spread spread);
std::string to_csv(const Comparison& comparison);
Json to_json(const Comparison& comparison);

}  // namespace espalier::report
