/// Where a run stands, from the files that it writes while it trains. Reads only; nothing here throws for what is in
/// the files. docs/reading-a-run.md.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace espalier::report {

using Json = nlohmann::ordered_json;

/// Follows a growing file of JSON objects, one a line. A run that is resumed cuts its files first: then all of it is
/// read again.
class LineReader {
 public:
  explicit LineReader(std::filesystem::path path) : path_(std::move(path)) {}
  struct News {
    bool restarted = false;  ///< forget what came before
    std::vector<Json> events;
  };
  /// The whole lines since the last call. A line that is no object with `event` and `step` is counted and left out.
  News read();
  std::int64_t damaged() const { return damaged_; }

 private:
  std::filesystem::path path_;
  std::int64_t offset_ = 0, damaged_ = 0;
  std::string last_;  // what precedes offset_, to know the file again
};

/// One run, followed.
class LiveRun {
 public:
  explicit LiveRun(std::filesystem::path run);

  /// Reads what is new.
  void update();

  /// training, done, diverged, stopped, or "not running" (killed, or not begun).
  const std::string& status() const { return status_; }
  bool ended() const { return status_ == "done" || status_ == "diverged"; }
  const std::filesystem::path& path() const { return path_; }

  /// All that is known, for programs.
  Json state() const;
  /// For a terminal: several lines, each at most `width` columns.
  std::string text(std::size_t width) const;
  /// In one line: epoch, step, loss, accuracy, sparsity, samples a second, time left.
  std::string line() const;

 private:
  void take_metrics(const Json& event);
  void take_timing(const Json& event);
  void forget();
  void read_status();
  std::optional<std::int64_t> total_steps() const;
  std::optional<double> seconds_left() const;

  std::filesystem::path path_;
  LineReader metrics_, timing_;
  Json config_, summary_;  // tables; null if there are none
  std::string status_;
  std::int64_t process_ = 0;  // 0: none
  double quiet_s_ = 0;        // since the last event

  std::int64_t step_ = 0;
  std::optional<std::int64_t> total_, per_epoch_, best_step_, task_;
  std::optional<double> loss_, rate_, accuracy_, train_loss_, validation_, best_, test_, sparsity_, per_second_, left_;
  std::int64_t left_at_ = 0;  // the step at which left_ was measured
  Json layers_;               // of the last topology event
  std::int64_t nnz_ = -1;
  std::vector<double> losses_;  // thinned: at most twice kPoints
  std::int64_t thinned_ = 1, skipped_ = 0;
  std::vector<std::string> warnings_;
};

}  // namespace espalier::report
