#include "espalier/core/log.h"

#include <mutex>

namespace espalier {
namespace {
std::mutex& guard() {
  static std::mutex m;
  return m;
}
LogSink& sink() {
  static LogSink s;
  return s;
}
}  // namespace

void set_log_sink(LogSink new_sink) {
  const std::lock_guard<std::mutex> lock(guard());
  sink() = std::move(new_sink);
}

void log(LogLevel level, const std::string& message) {
  const std::lock_guard<std::mutex> lock(guard());
  if (sink()) sink()(level, message);
}

}  // namespace espalier
