#include "espalier/train/metrics.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/train/durable_file.h"

namespace espalier::train {
namespace {

constexpr auto kFlushEvery = std::chrono::seconds(1);
constexpr std::size_t kBufferBytes = 64 * 1024;
const std::vector<std::string> kEvents{"step", "epoch",   "eval", "topology", "checkpoint",
                                       "task", "warning", "end",  "alpha",    "weights"};

[[noreturn]] void fail_to(const char* what, const std::filesystem::path& path) {
  const int reason = errno;
  fail(ErrorKind::failed, "{}: cannot {}: {}", path.string(), what, std::strerror(reason));
}

void check_resumable(const std::filesystem::path& path, std::int64_t resume_at) {
  InputFile file(path);
  ESPALIER_CHECK(file.size() >= resume_at, ErrorKind::data,
                 "{}: found {} bytes, expected at least the {} that the checkpoint knows; was it edited or replaced?",
                 path.string(), file.size(), resume_at);
  std::string content(static_cast<std::size_t>(resume_at), '\0');
  file.read(content.data(), content.size());
  ESPALIER_CHECK(content.back() == '\n', ErrorKind::data,
                 "{}: no line ends at byte {}, where the checkpoint was made; was it edited or replaced?",
                 path.string(), resume_at);
}

}  // namespace

MetricsWriter::MetricsWriter(std::filesystem::path path, std::int64_t resume_at)
    : path_(std::move(path)), fd_(-1), written_(resume_at), flushed_at_() {
  ESPALIER_ASSERT(resume_at >= 0);
  if (resume_at > 0) check_resumable(path_, resume_at);
  fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (fd_ < 0) fail_to("open", path_);
  if (::ftruncate(fd_, resume_at) != 0) {
    const int reason = errno;
    ::close(fd_);
    errno = reason;
    fail_to("cut", path_);
  }
  sync_directory(path_.parent_path());
}

MetricsWriter::~MetricsWriter() {
  try {
    flush();
  } catch (const Error& e) {
    log_warning(fmt::format("the last events are lost: {}", e.what()));
  }
  ::close(fd_);
}

void MetricsWriter::write(const std::string& event, std::int64_t step, const Json& fields) {
  const auto start = std::chrono::steady_clock::now();
  ESPALIER_CHECK(std::find(kEvents.begin(), kEvents.end(), event) != kEvents.end(), ErrorKind::failed,
                 "{}: unknown event \"{}\".{}", path_.string(), event, suggestion(event, kEvents));
  ESPALIER_ASSERT(fields.is_object() && !fields.contains("event") && !fields.contains("step"));
  // As one object, without a copy of the fields: this is done at every step.
  const std::string rest = to_json_line(fields);
  buffer_.append("{\"event\":\"").append(event).append("\",\"step\":").append(std::to_string(step));
  if (!fields.empty()) buffer_ += ',';
  buffer_.append(rest, 1, std::string::npos).append(1, '\n');
  // Rare events are seen at once, a burst is gathered.
  if (buffer_.size() >= kBufferBytes || start - flushed_at_ >= kFlushEvery) flush();
  if (reader_) reader_(event, step, fields);
  seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void MetricsWriter::flush() {
  std::size_t done = 0;
  while (done < buffer_.size()) {
    const ssize_t n = ::write(fd_, buffer_.data() + done, buffer_.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      buffer_.erase(0, done);  // what is written is written: a second try must not repeat it
      fail_to("write", path_);
    }
    done += static_cast<std::size_t>(n);
    written_ += n;
  }
  buffer_.clear();
  flushed_at_ = std::chrono::steady_clock::now();
}

std::int64_t MetricsWriter::position() {
  flush();
  if (::fsync(fd_) != 0) fail_to("write to disk (fsync)", path_);
  return written_;
}

std::vector<Json> read_metrics(const std::filesystem::path& path) {
  const std::string content = read_file(path);
  std::vector<Json> events;
  std::size_t begin = 0;
  for (std::int64_t line = 1; begin < content.size(); ++line) {
    const std::size_t end = std::min(content.find('\n', begin), content.size());
    Json event = Json::parse(content.begin() + static_cast<std::ptrdiff_t>(begin),
                             content.begin() + static_cast<std::ptrdiff_t>(end), nullptr, /*allow_exceptions=*/false);
    const bool whole = event.is_object() && event.contains("event") && event["event"].is_string() &&
                       event.contains("step") && event["step"].is_number_integer();
    if (!whole && end == content.size()) break;
    ESPALIER_CHECK(whole, ErrorKind::data,
                   "{}:{}: expected a JSON object with the keys event (a word) and step (an integer), found {}",
                   path.string(), line, content.substr(begin, std::min<std::size_t>(end - begin, 80)));
    events.push_back(std::move(event));
    begin = end + 1;
  }
  return events;
}

}  // namespace espalier::train
