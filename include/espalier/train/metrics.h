/// metrics.jsonl: what happened in a run, one JSON object a line, `event` first, then `step`. docs/formats/metrics.md.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "espalier/train/json.h"

namespace espalier::train {

/// Appends events to metrics.jsonl, weights.jsonl or timing.jsonl. The first two must be byte-identical between a run
/// and one that was killed and resumed, so nothing that depends on the clock or the machine may be written to them:
/// that goes to timing.jsonl. Lines go to the file at least once a second as long as events come.
class MetricsWriter {
 public:
  /// A new file; an existing one is emptied.
  explicit MetricsWriter(std::filesystem::path path) : MetricsWriter(std::move(path), 0) {}
  /// Goes on after the first `resume_at` bytes, a position() that the checkpoint kept; later lines, which the killed
  /// run wrote after that checkpoint, are cut off. Throws Error(data) if the file is shorter or no line ends there.
  MetricsWriter(std::filesystem::path path, std::int64_t resume_at);
  MetricsWriter(const MetricsWriter&) = delete;
  MetricsWriter& operator=(const MetricsWriter&) = delete;
  ~MetricsWriter();

  /// event: step, epoch, eval, topology, checkpoint, task, alpha, warning or end; weights in weights.jsonl. fields: an
  /// object without `event` and `step`; numbers as double or integer (a float would show its rounding: 0.1f is
  /// 0.10000000149011612).
  void write(const std::string& event, std::int64_t step, const Json& fields = Json::object());

  /// Every event goes to `reader` too, after it has been written.
  using Reader = std::function<void(const std::string& event, std::int64_t step, const Json& fields)>;
  void also(Reader reader) { reader_ = std::move(reader); }

  /// Hands all lines to the system. Throws Error(failed) naming the file, e.g. when the disk is full.
  void flush();

  /// Bytes so far, all of them on the disk (fsync): a checkpoint may rely on them.
  std::int64_t position();

  /// Time spent in write(), the reader's included.
  double seconds() const { return seconds_; }

 private:
  std::filesystem::path path_;
  int fd_;
  std::int64_t written_;  // bytes in the file
  std::string buffer_;
  std::chrono::steady_clock::time_point flushed_at_;
  Reader reader_;
  double seconds_ = 0;
};

/// All events of a file. A last line cut short by a crash is left out; any other line that is not an object with
/// `event` and `step` is an Error(data) naming file and line.
std::vector<Json> read_metrics(const std::filesystem::path& path);

}  // namespace espalier::train
