#include "console.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/ansicolor_sink.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/spdlog.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <nlohmann/json.hpp>

#include "espalier/core/error.h"

namespace espalier::cli {
namespace {

// "warning: ", "error: "; information needs no label.
class Label : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& message, const std::tm&, spdlog::memory_buf_t& out) override {
    const std::string label = message.level == spdlog::level::info    ? ""
                              : message.level == spdlog::level::debug ? "debug: "
                              : message.level == spdlog::level::warn  ? "warning: "
                                                                      : "error: ";
    out.append(label.data(), label.data() + label.size());
  }
  std::unique_ptr<custom_flag_formatter> clone() const override { return std::make_unique<Label>(); }
};

// The message as a JSON string.
class Quoted : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& message, const std::tm&, spdlog::memory_buf_t& out) override {
    const std::string text(message.payload.data(), message.payload.size());
    const std::string json = nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    out.append(json.data(), json.data() + json.size());
  }
  std::unique_ptr<custom_flag_formatter> clone() const override { return std::make_unique<Quoted>(); }
};

bool set_and_not_empty(const char* variable) {
  const char* value = std::getenv(variable);
  return value && *value;
}

bool capable_terminal() {
  const char* term = std::getenv("TERM");
  return isatty(STDERR_FILENO) == 1 && term && *term && std::strcmp(term, "dumb") != 0;
}

void write_to_stderr(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stderr);  // nobody to tell if it fails
}

}  // namespace

struct Console::Sink {
  std::mutex mutex;  // the progress line and the messages share the terminal
  std::string progress;
  std::shared_ptr<spdlog::logger> logger;

  void log(spdlog::level::level_enum level, const std::string& text) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (!logger->should_log(level)) return;
    if (!progress.empty()) write_to_stderr("\r\x1b[K");
    logger->log(level, spdlog::string_view_t(text.data(), text.size()));
    if (!progress.empty()) write_to_stderr(progress);
  }
};

Console::Console() : sink_(std::make_unique<Sink>()) {
  configure({});
  set_log_sink([this](LogLevel level, const std::string& text) { message(level, text); });
}

Console::~Console() {
  set_log_sink({});
  progress("");
}

void Console::configure(const Options& options) {
  const bool color = options.color == Color::always ||
                     (options.color == Color::automatic && capable_terminal() && !set_and_not_empty("NO_COLOR"));
  auto target = std::make_shared<spdlog::sinks::ansicolor_stderr_sink_mt>(
      color && !options.json ? spdlog::color_mode::always : spdlog::color_mode::never);
  target->set_color(spdlog::level::info, target->reset);
  auto formatter = std::make_unique<spdlog::pattern_formatter>(spdlog::pattern_time_type::utc);
  if (options.json) {
    formatter->add_flag<Quoted>('*').set_pattern(R"({"t":"%Y-%m-%dT%H:%M:%S.%eZ","level":"%l","message":%*})");
  } else {
    formatter->add_flag<Label>('*').set_pattern("%^%*%$%v");
  }
  target->set_formatter(std::move(formatter));
  auto logger = std::make_shared<spdlog::logger>("espalier", std::move(target));
  logger->set_level(options.quiet ? spdlog::level::warn : options.verbose ? spdlog::level::debug : spdlog::level::info);
  logger->flush_on(spdlog::level::trace);
  const std::lock_guard<std::mutex> lock(sink_->mutex);
  sink_->logger = std::move(logger);
  live_ = capable_terminal() && !options.quiet && !options.json;
}

void Console::log_to(const std::string& path) {
  auto file = std::make_shared<spdlog::sinks::basic_file_sink_mt>(path, /*truncate=*/false);
  file->set_formatter(
      std::make_unique<spdlog::pattern_formatter>("%Y-%m-%dT%H:%M:%S.%eZ %l: %v", spdlog::pattern_time_type::utc));
  const std::lock_guard<std::mutex> lock(sink_->mutex);
  sink_->logger->sinks().push_back(std::move(file));
}

void Console::print(const std::string& text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0) return;
  if (errno == EPIPE) throw OutputClosed{};
  fail(ErrorKind::failed, "cannot write to standard output: {}", std::strerror(errno));
}

void Console::message(LogLevel level, const std::string& text) {
  sink_->log(level == LogLevel::debug  ? spdlog::level::debug
             : level == LogLevel::info ? spdlog::level::info
                                       : spdlog::level::warn,
             text);
}

void Console::error(const std::string& text) { sink_->log(spdlog::level::err, text); }

void Console::progress(const std::string& line) {
  if (!live_) return;
  const std::lock_guard<std::mutex> lock(sink_->mutex);
  if (line.empty() && sink_->progress.empty()) return;
  winsize size{};
  const std::size_t width = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1 ? size.ws_col - 1u : 79;
  sink_->progress = line.substr(0, width);  // a wrapped line can't be rewritten
  write_to_stderr("\r" + sink_->progress + "\x1b[K");
}

}  // namespace espalier::cli
