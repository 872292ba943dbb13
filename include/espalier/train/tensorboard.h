/// tb/events.out.tfevents.*: what a run records, once more in the form that TensorBoard reads.
/// docs/formats/tensorboard.md.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "espalier/train/json.h"

namespace espalier::train {

/// CRC-32C (Castagnoli; RFC 3720, appendix B.4), and as TensorFlow's record files hold it: rotated and with a constant
/// added, so that a checksum of data that contain checksums stays one.
std::uint32_t crc32c(const void* data, std::size_t bytes);
std::uint32_t masked_crc32c(const void* data, std::size_t bytes);

/// One record: length (8 bytes), its masked CRC-32C, the data, their masked CRC-32C; all little-endian.
std::string tf_record(const std::string& data);

/// Counts between limits: bucket i holds counts[i] values in [limits[i - 1], limits[i]); limits[0] is the lower end of
/// what there is, and counts[0] is 0.
struct HistogramValue {
  double min = 0, max = 0, num = 0, sum = 0, sum_squares = 0;
  std::vector<double> limits, counts;
};

/// Messages of TensorFlow's event.proto, encoded: what tf_record frames.
std::string version_event(double wall_time);
std::string session_start_event(double wall_time, std::int64_t step);
std::string scalars_event(double wall_time, std::int64_t step,
                          const std::vector<std::pair<std::string, double>>& values);
std::string histogram_event(double wall_time, std::int64_t step, const std::string& tag, const HistogramValue& value);
std::string text_event(double wall_time, std::int64_t step, const std::string& tag, const std::string& markdown);

/// Writes the events of a run. Each process begins a file of its own, whose name sorts after the others'. On resume
/// what was written after the checkpoint is removed, and TensorBoard is told to forget what it has seen of it.
class TensorBoard {
 public:
  using Seconds = std::function<double()>;  ///< since 1970
  /// state: what position() gave to the checkpoint; null if it knows of none. step: where the run goes on; 0 = the run
  /// begins, and event files that are there go.
  TensorBoard(std::filesystem::path directory, const Json& state, std::int64_t step, Seconds now = {});
  TensorBoard(const TensorBoard&) = delete;
  TensorBoard& operator=(const TensorBoard&) = delete;
  ~TensorBoard();

  /// An event as MetricsWriter::write takes it. Numbers become scalars `<event>/<field>`, of an `eval` event
  /// `<split>/<field>`; those of a list of layers `<event>/<layer>/<field>`; the counts of a `weights` event a
  /// histogram `weights/<layer>`; the field `text` of a warning or the end a text.
  void record(const std::string& event, std::int64_t step, const Json& fields);
  void text(const std::string& tag, std::int64_t step, const std::string& markdown);

  /// Hands all events to the system. Throws Error(failed) naming the file, e.g. when the disk is full.
  void flush();
  /// Flushes and fsyncs; what a checkpoint keeps.
  Json position();

 private:
  void add(const std::string& event);

  std::filesystem::path directory_;
  std::string name_;
  Seconds now_;
  int fd_ = -1;
  std::int64_t written_ = 0;
  std::string buffer_;
  double flushed_at_ = 0;
};

}  // namespace espalier::train
