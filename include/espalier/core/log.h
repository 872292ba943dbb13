/// Messages to people. The library never prints: it hands messages to the sink that the program has set (none by
/// default).
#pragma once

#include <functional>
#include <string>

namespace espalier {

enum class LogLevel { debug, info, warning };
using LogSink = std::function<void(LogLevel, const std::string&)>;

/// Sets the sink for the whole process; thread-safe. An empty function switches messages off.
void set_log_sink(LogSink sink);
void log(LogLevel level, const std::string& message);
inline void log_info(const std::string& message) { log(LogLevel::info, message); }
inline void log_warning(const std::string& message) { log(LogLevel::warning, message); }

}  // namespace espalier
