#include "espalier/train/tensorboard.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>

#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/train/durable_file.h"

namespace espalier::train {
namespace {

namespace fs = std::filesystem;

constexpr double kFlushEvery = 1;  // seconds
constexpr std::size_t kBufferBytes = 64 * 1024;
const std::string kPrefix = "events.out.tfevents.";

// ---- protocol buffers
// ---------------------------------------------------------------------------------------------------------

enum WireType { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

void put_varint(std::string& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}
std::size_t bytes_of_varint(std::uint64_t value) {
  std::size_t bytes = 1;
  for (; value >= 0x80; value >>= 7) ++bytes;
  return bytes;
}
void put_key(std::string& out, int field, WireType type) {
  put_varint(out, static_cast<std::uint64_t>(field) << 3 | type);
}

template <class Unsigned>
void put_little_endian(std::string& out, Unsigned value) {
  std::array<char, sizeof value> bytes;
  for (std::size_t i = 0; i < sizeof value; ++i) bytes[i] = static_cast<char>(value >> (8 * i) & 0xff);
  out.append(bytes.data(), bytes.size());
}
template <class Unsigned, class Float>
Unsigned bits_of(Float value) {
  static_assert(sizeof(Unsigned) == sizeof(Float));
  Unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

void put_int(std::string& out, int field, std::int64_t value) {
  put_key(out, field, kVarint);
  put_varint(out, static_cast<std::uint64_t>(value));
}
void put_double(std::string& out, int field, double value) {
  put_key(out, field, kFixed64);
  put_little_endian(out, bits_of<std::uint64_t>(value));
}
void put_float(std::string& out, int field, float value) {
  put_key(out, field, kFixed32);
  put_little_endian(out, bits_of<std::uint32_t>(value));
}
void put_bytes(std::string& out, int field, const std::string& value) {
  put_key(out, field, kBytes);
  put_varint(out, value.size());
  out += value;
}
void put_packed(std::string& out, int field, const std::vector<double>& values) {
  put_key(out, field, kBytes);
  put_varint(out, 8 * values.size());
  for (const double v : values) put_little_endian(out, bits_of<std::uint64_t>(v));
}

// Field numbers of tensorflow/core/util/event.proto, core/framework/summary.proto, tensor.proto.
std::string event_of(double wall_time, std::int64_t step) {
  std::string event;
  put_double(event, 1, wall_time);
  put_int(event, 2, step);
  return event;
}
std::string with_summary(double wall_time, std::int64_t step, const std::string& summary) {
  std::string event = event_of(wall_time, step);
  put_bytes(event, 5, summary);
  return event;
}

// ---- files
// ----------------------------------------------------------------------------------------------------------------------

[[noreturn]] void fail_to(const char* what, const fs::path& path) {
  const int reason = errno;
  fail(ErrorKind::failed, "{}: cannot {}: {}", path.string(), what, std::strerror(reason));
}

std::vector<std::string> event_files(const fs::path& directory) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    std::string name = it->path().filename().string();
    if (name.rfind(kPrefix, 0) == 0) names.push_back(std::move(name));
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string host() {
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  std::string out = name.data();
  for (char& c : out)
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '-' && c != '_') c = '-';
  return out.empty() ? "localhost" : out;
}

/// Ten digits of seconds, so that names sort by time; one more than those of the last file where clocks stand still.
std::string next_name(const fs::path& directory, double now) {
  auto seconds = static_cast<std::int64_t>(now);
  const auto files = event_files(directory);
  if (!files.empty() && files.back().size() >= kPrefix.size() + 10) {
    const std::string digits = files.back().substr(kPrefix.size(), 10);
    if (digits.find_first_not_of("0123456789") == std::string::npos)
      seconds = std::max(seconds, static_cast<std::int64_t>(std::stoll(digits)) + 1);
  }
  return fmt::format("{}{:010}.{}", kPrefix, seconds, host());
}

/// Cuts what a run has written after its checkpoint.
void cut(const fs::path& directory, const std::string& last, std::int64_t bytes) {
  std::error_code error;
  for (const auto& name : event_files(directory)) {
    const fs::path file = directory / name;
    if (name > last) fs::remove(file, error);
    if (name != last) continue;
    const auto size = static_cast<std::int64_t>(fs::file_size(file, error));
    if (!error && size > bytes && ::truncate(file.c_str(), bytes) != 0) fail_to("cut", file);
    if (!error && size < bytes)
      log_warning(fmt::format("{}: has {} bytes of the {} that the checkpoint knows: some events are lost",
                              file.string(), size, bytes));
  }
}

/// The histogram of a `weights` event: counts of 256 bins over [-2^scale, 2^scale), from bin `first` on.
HistogramValue histogram_of(const Json& layer) {
  constexpr double kBins = 256;
  const int scale = layer.at("scale");
  const double width = std::ldexp(2 / kBins, scale), low = -std::ldexp(1.0, scale);
  const auto first = layer.at("first").get<double>();
  HistogramValue h;
  h.min = low + first * width;
  h.limits.push_back(h.min);
  h.counts.push_back(0);
  for (const auto& item : layer.at("counts")) {
    const auto count = item.get<double>();
    const double left = h.limits.back(), middle = left + width / 2;
    h.limits.push_back(low + (first + static_cast<double>(h.limits.size())) * width);
    h.counts.push_back(count);
    h.num += count;
    h.sum_squares += count * middle * middle;
  }
  h.max = h.limits.back();
  const Json mean = layer.value("mean", Json());
  h.sum = mean.is_number() ? mean.get<double>() * h.num : 0;
  return h;
}

}  // namespace

std::uint32_t crc32c(const void* data, std::size_t bytes) {
  static const auto kTable = [] {
    std::array<std::uint32_t, 256> table{};
    for (std::uint32_t i = 0; i < 256; ++i) {
      std::uint32_t crc = i;
      for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0u);  // 0x1edc6f41, bits reversed
      table[i] = crc;
    }
    return table;
  }();
  const auto* next = static_cast<const unsigned char*>(data);
  std::uint32_t crc = ~0u;
  for (std::size_t i = 0; i < bytes; ++i) crc = crc >> 8 ^ kTable[(crc ^ next[i]) & 0xff];
  return ~crc;
}

std::uint32_t masked_crc32c(const void* data, std::size_t bytes) {
  const std::uint32_t crc = crc32c(data, bytes);
  return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

static void append_tf_record(std::string& out, const std::string& data) {
  const std::size_t begin = out.size();
  put_little_endian(out, static_cast<std::uint64_t>(data.size()));
  put_little_endian(out, masked_crc32c(out.data() + begin, 8));
  out += data;
  put_little_endian(out, masked_crc32c(data.data(), data.size()));
}

std::string tf_record(const std::string& data) {
  std::string out;
  append_tf_record(out, data);
  return out;
}

std::string version_event(double wall_time) {
  std::string event;
  put_double(event, 1, wall_time);
  put_bytes(event, 3, "brain.Event:2");
  return event;
}

std::string session_start_event(double wall_time, std::int64_t step) {
  std::string log, event = event_of(wall_time, step);
  put_int(log, 1, 1);  // SessionLog.START: events of this step and later ones that were read before are void
  put_bytes(event, 7, log);
  return event;
}

std::string scalars_event(double wall_time, std::int64_t step,
                          const std::vector<std::pair<std::string, double>>& values) {
  // Lengths first, and no message in a string of its own: this is done at every step.
  const auto value_bytes = [](const std::string& tag) { return 1 + bytes_of_varint(tag.size()) + tag.size() + 5; };
  std::size_t summary = 0;
  for (const auto& item : values) summary += 1 + bytes_of_varint(value_bytes(item.first)) + value_bytes(item.first);
  std::string event;
  event.reserve(32 + summary);
  put_double(event, 1, wall_time);
  put_int(event, 2, step);
  put_key(event, 5, kBytes);
  put_varint(event, summary);
  for (const auto& [tag, number] : values) {
    put_key(event, 1, kBytes);
    put_varint(event, value_bytes(tag));
    put_bytes(event, 1, tag);
    put_float(event, 2, static_cast<float>(number));
  }
  return event;
}

std::string histogram_event(double wall_time, std::int64_t step, const std::string& tag, const HistogramValue& h) {
  std::string histogram, value, summary;
  put_double(histogram, 1, h.min);
  put_double(histogram, 2, h.max);
  put_double(histogram, 3, h.num);
  put_double(histogram, 4, h.sum);
  put_double(histogram, 5, h.sum_squares);
  put_packed(histogram, 6, h.limits);
  put_packed(histogram, 7, h.counts);
  put_bytes(value, 1, tag);
  put_bytes(value, 5, histogram);
  put_bytes(summary, 1, value);
  return with_summary(wall_time, step, summary);
}

std::string text_event(double wall_time, std::int64_t step, const std::string& tag, const std::string& markdown) {
  constexpr int kString = 7;  // DT_STRING
  std::string tensor, plugin, metadata, value, summary;
  put_int(tensor, 1, kString);
  put_bytes(tensor, 2, "");  // the shape of a scalar
  put_bytes(tensor, 8, markdown);
  put_bytes(plugin, 1, "text");
  put_bytes(metadata, 1, plugin);
  put_bytes(value, 1, tag);
  put_bytes(value, 8, tensor);
  put_bytes(value, 9, metadata);
  put_bytes(summary, 1, value);
  return with_summary(wall_time, step, summary);
}

TensorBoard::TensorBoard(fs::path directory, const Json& state, std::int64_t step, Seconds now)
    : directory_(std::move(directory)), now_(std::move(now)) {
  if (!now_) {
    now_ = [] { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); };
  }
  std::error_code error;
  fs::create_directories(directory_, error);
  ESPALIER_CHECK(!error, ErrorKind::failed, "{}: cannot create: {}", directory_.string(), error.message());
  if (step == 0)
    cut(directory_, "", 0);
  else if (state.is_object())
    cut(directory_, state.at("file"), state.at("bytes"));
  name_ = next_name(directory_, now_());
  fd_ = ::open((directory_ / name_).c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0666);
  if (fd_ < 0) fail_to("create", directory_ / name_);
  add(version_event(now_()));
  if (step > 0) add(session_start_event(now_(), step + 1));
  flush();
  sync_directory(directory_);
}

TensorBoard::~TensorBoard() {
  try {
    flush();
  } catch (const Error& e) {
    log_warning(fmt::format("the last events are lost: {}", e.what()));
  }
  ::close(fd_);
}

void TensorBoard::add(const std::string& event) { append_tf_record(buffer_, event); }

void TensorBoard::text(const std::string& tag, std::int64_t step, const std::string& markdown) {
  add(text_event(now_(), step, tag, markdown));
}

void TensorBoard::record(const std::string& event, std::int64_t step, const Json& fields) {
  const double now = now_();
  const std::string group = event == "eval" ? fields.value("split", event) : event;
  std::vector<std::pair<std::string, double>> scalars;
  scalars.reserve(fields.size());
  for (const auto& [field, value] : fields.items()) {
    if (value.is_number()) {
      scalars.emplace_back(group + "/" + field, value.get<double>());
    } else if (value.is_string() && field == "text") {
      add(text_event(now, step, group, value.get<std::string>()));
    } else if (value.is_array()) {
      for (const auto& layer : value) {
        if (!layer.is_object() || !layer.contains("name") || !layer["name"].is_string()) continue;
        const std::string tag = group + "/" + layer["name"].get<std::string>();
        const bool histogram = layer.contains("counts") && layer.contains("first") && layer.contains("scale");
        if (histogram) add(histogram_event(now, step, tag, histogram_of(layer)));
        for (const auto& [key, number] : layer.items())
          if (number.is_number() && key != "first" && key != "scale")
            scalars.emplace_back(tag + "/" + key, number.get<double>());
      }
    }
  }
  if (!scalars.empty()) add(scalars_event(now, step, scalars));
  // Rare events are seen at once, a burst is gathered.
  if (buffer_.size() >= kBufferBytes || std::abs(now - flushed_at_) >= kFlushEvery) flush();
}

void TensorBoard::flush() {
  std::size_t done = 0;
  while (done < buffer_.size()) {
    const ssize_t n = ::write(fd_, buffer_.data() + done, buffer_.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      buffer_.erase(0, done);  // what is written is written: a second try must not repeat it
      fail_to("write", directory_ / name_);
    }
    done += static_cast<std::size_t>(n);
    written_ += n;
  }
  buffer_.clear();
  flushed_at_ = now_();
}

Json TensorBoard::position() {
  flush();
  if (::fsync(fd_) != 0) fail_to("write to disk (fsync)", directory_ / name_);
  return {{"file", name_}, {"bytes", written_}};
}

}  // namespace espalier::train
