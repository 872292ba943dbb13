/// The two streams of the program: results on standard output, everything for people on standard error.
#pragma once

#include <memory>
#include <string>

#include "espalier/core/log.h"

namespace espalier::cli {

/// Nobody reads standard output any more (`espalier list presets | head -1`): the program ends, and it is no error.
struct OutputClosed {};

class Console {
 public:
  enum class Color { automatic, always, never };
  struct Options {
    bool quiet = false;    ///< warnings and errors only
    bool verbose = false;  ///< debug messages too
    bool json = false;     ///< messages as one JSON object a line
    Color color = Color::automatic;
  };

  /// Takes over the messages of the library (set_log_sink) until it is destroyed. One console lives at a time.
  Console();
  ~Console();
  Console(const Console&) = delete;
  Console& operator=(const Console&) = delete;
  void configure(const Options& options);

  /// A result. Throws OutputClosed, or Error(failed) if it can't be written.
  void print(const std::string& text);

  /// Messages go to this file too from now on (appended, with their time), whatever standard error shows.
  void log_to(const std::string& path);

  void message(LogLevel level, const std::string& text);
  void error(const std::string& text);

  /// Whether `progress` shows anything: standard error is a terminal that can rewrite a line, and people read it. If
  /// not, a long command sends a message (log_info) now and then.
  bool live() const { return live_; }
  /// Rewrites the last line of the terminal; messages appear above it. "" takes the line away.
  void progress(const std::string& line);

 private:
  struct Sink;
  std::unique_ptr<Sink> sink_;
  bool live_ = false;
};

}  // namespace espalier::cli
