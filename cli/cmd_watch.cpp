// espalier watch: where runs stand, while they train; on the terminal or in a browser.
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <sstream>
#include <thread>

#include "commands.h"
#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/core/text.h"
#include "espalier/report/compare.h"
#include "espalier/report/live.h"
#include "espalier/train/json.h"
#include "live_server.h"
#include "page.h"
#include "run_commands.h"

namespace espalier::cli {
namespace {

namespace fs = std::filesystem;

struct WatchArguments {
  std::vector<std::string> runs;
  bool once = false, json = false, serve = false;
  double interval = 0;  // seconds; 0: a second on a terminal, half a minute elsewhere
  int port = 6007;
};

std::vector<report::LiveRun> open_runs(const std::vector<std::string>& paths) {
  std::vector<report::LiveRun> out;
  for (const auto& run : report::read_runs({paths.begin(), paths.end()})) out.emplace_back(run.path);
  return out;
}

/// One run in full; of several, a line each.
std::string summary(const std::vector<report::LiveRun>& runs, std::size_t width) {
  if (runs.size() == 1) return runs.front().text(width);
  std::vector<std::vector<std::string>> rows;
  for (const auto& run : runs) rows.push_back({run.path().filename().string(), run.status(), run.line()});
  std::string out;
  std::istringstream lines(columns(rows));
  for (std::string line; std::getline(lines, line);) out += printable(line, width) + "\n";
  return out;
}

std::string html_escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      default: out += c;
    }
  }
  return out;
}

/// The terminal's text as a page that loads itself again.
std::string text_page(std::vector<report::LiveRun>& runs) {
  std::string body;
  for (auto& run : runs) {
    run.update();
    body += "<pre>" + html_escaped(run.text(200)) + "</pre>\n";
  }
  return "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Espalier</title>"
         "<meta http-equiv=\"refresh\" content=\"2\"><meta name=\"viewport\" content=\"width=device-width\">"
         "<style>:root{color-scheme:light dark}body{margin:1.5rem}pre{font:14px/1.4 monospace;overflow-x:auto;"
         "padding-bottom:1rem;border-bottom:1px solid}</style></head><body>\n" +
         body + "<p><a href=\"report\">Report</a> <a href=\"api/runs\">JSON</a></p></body></html>\n";
}

int serve(const WatchArguments& arguments, std::vector<report::LiveRun>& runs) {
  LiveServerOptions options;
  for (const auto& run : runs) options.runs.push_back(run.path());
  options.port = arguments.port;
  options.page = [&] { return text_page(runs); };
  options.report = [&options] { return report_page(options.runs); };
  options.ready = [](const std::string& url) { log_info(fmt::format("{} (Ctrl-C ends)", url)); };
  serve_runs(options, *stop_on_signals());
  return 0;
}

/// Redraws in place until every run has ended.
void redraw(std::vector<report::LiveRun>& runs, double interval, Console& console) {
  std::size_t drawn = 0;
  for (;;) {
    winsize size{};
    const bool known = ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 && size.ws_row > 1;
    const std::size_t width = known ? size.ws_col - 1u : 79, height = known ? size.ws_row - 1u : 23;
    for (auto& run : runs) run.update();
    std::string text = summary(runs, width);
    std::size_t lines = 0, end = 0;
    while (lines < height && end < text.size()) {
      end = text.find('\n', end) + 1;
      ++lines;
    }
    console.print((drawn > 0 ? fmt::format("\x1b[{}A\r\x1b[J", drawn) : "") + text.substr(0, end));
    drawn = lines;
    if (std::all_of(runs.begin(), runs.end(), [](const auto& r) { return r.ended(); })) return;
    std::this_thread::sleep_for(std::chrono::duration<double>(interval));
  }
}

int run(const WatchArguments& arguments, Context& context) {
  ESPALIER_CHECK(!(arguments.serve && (arguments.once || arguments.json)), ErrorKind::usage,
                 "--serve goes with neither --once nor --json");
  auto runs = open_runs(arguments.runs);
  if (arguments.serve) return serve(arguments, runs);
  if (arguments.once || arguments.json) {
    for (auto& run : runs) run.update();
    train::Json list = train::Json::array();
    for (const auto& run : runs) list.push_back(run.state());
    context.console.print(arguments.json ? train::to_json_text(runs.size() == 1 ? list[0] : list) : summary(runs, 200));
    return 0;
  }
  const char* term = std::getenv("TERM");
  const bool terminal = isatty(STDOUT_FILENO) == 1 && term != nullptr && std::strcmp(term, "dumb") != 0;
  const double interval = arguments.interval > 0 ? arguments.interval : terminal ? 1 : 30;
  if (terminal) {
    redraw(runs, interval, context.console);
    return 0;
  }
  std::vector<std::string> said(runs.size());
  for (bool more = true; more;) {
    more = false;
    for (std::size_t i = 0; i < runs.size(); ++i) {
      runs[i].update();
      const std::string line = fmt::format("{}: {}  {}\n", runs[i].path().string(), runs[i].status(), runs[i].line());
      if (line != said[i]) context.console.print(line);
      said[i] = line;
      more = more || !runs[i].ended();
    }
    if (more) std::this_thread::sleep_for(std::chrono::duration<double>(interval));
  }
  return 0;
}

}  // namespace

void add_watch_command(CLI::App& app, Context& context) {
  auto a = std::make_shared<WatchArguments>();
  CLI::App* command = app.add_subcommand("watch", "Where runs stand while they train, on the terminal or in a browser");
  command->add_option("RUN", a->runs, "run directories, sweeps, or directories of runs")
      ->required()
      ->option_text("...");
  command->add_flag("--once", a->once, "print where they stand and end");
  command->add_flag("--json", a->json, "the same as one JSON document");
  command->add_option("--interval", a->interval, "seconds between looks (default: 1 on a terminal, 30 elsewhere)")
      ->check(CLI::Range(0.1, 86400.0))
      ->option_text("SECONDS");
  command->add_flag("--serve", a->serve, "serve them to a browser on this machine (127.0.0.1), read-only");
  command->add_option("--port", a->port, "with --serve: the port; 0 takes any free one")
      ->check(CLI::Range(0, 65535))
      ->option_text("N");
  command->footer(
      "Ends when every run has ended; the runs do not notice. A line a run where the output is no terminal.\n"
      "Examples:\n"
      "  espalier watch runs/mine\n"
      "  espalier watch runs/my-sweep\n"
      "  espalier watch runs/* --serve");
  on_run(*command, context, [a, &context] { return run(*a, context); });
}

}  // namespace espalier::cli
