/// espalier: reads the command line, runs one command, turns errors into one line and an exit status.
#include <c10/util/Exception.h>
#include <fcntl.h>
#include <torch/version.h>
#include <unistd.h>

#include <csignal>
#include <new>
#include <nlohmann/json.hpp>

#include "commands.h"
#include "espalier/core/error.h"
#include "espalier/core/version.h"
#include "espalier/train/environment.h"

extern char** environ;

namespace espalier::cli {
namespace {

struct GlobalArguments {
  bool version = false, version_json = false;
  bool quiet = false, verbose = false, debug = false;
  std::string log_format = "text", color = "auto";
};

// With standard output closed, the next file that is opened would become it, and results would land in a checkpoint. A
// descriptor that can't be written makes the loss visible instead.
void occupy_standard_streams() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fcntl(fd, F_GETFD) == -1 && open("/dev/null", fd == STDERR_FILENO ? O_WRONLY : O_RDONLY) != fd) std::_Exit(1);
  }
}

std::map<std::string, std::string> environment_variables() {
  std::map<std::string, std::string> out;
  for (char** entry = environ; *entry; ++entry) {
    const std::string text = *entry;
    const auto equals = text.find('=');
    if (equals != std::string::npos) out[text.substr(0, equals)] = text.substr(equals + 1);
  }
  return out;
}

void add_global_arguments(CLI::App& app, GlobalArguments& arguments) {
  CLI::Option* version = app.add_flag("--version", arguments.version, "print the version");
  app.add_flag("--json", arguments.version_json, "with --version: as JSON")->needs(version);
  app.add_flag("-q,--quiet", arguments.quiet, "say only warnings and errors");
  app.add_flag("-v,--verbose", arguments.verbose, "say more");
  app.add_flag("--debug", arguments.debug, "after an error inside LibTorch, show its stack");
  app.add_option("--log-format", arguments.log_format, "messages as text, or as one JSON object a line")
      ->option_text("text|json")
      ->check(CLI::IsMember({"text", "json"}));
  app.add_option("--color", arguments.color, "colours on standard error; auto: on a terminal, unless NO_COLOR is set")
      ->option_text("auto|always|never")
      ->check(CLI::IsMember({"auto", "always", "never"}));
}

std::string version_text(bool json) {
  if (!json) return fmt::format("espalier {}{}\n", version(), *commit() ? fmt::format(" ({})", commit()) : "");
  const nlohmann::ordered_json out = {
      {"name", "espalier"}, {"version", version()}, {"commit", commit()}, {"torch", TORCH_VERSION}};
  return out.dump(2) + "\n";
}

std::vector<std::string> command_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(command->get_name());
  return names;
}

std::string joined(const std::vector<std::string>& words) {
  std::string out;
  for (const auto& word : words) out += (out.empty() ? "" : ", ") + word;
  return out;
}

// One line about the first word that nobody expected.
std::string unexpected(const CLI::App& app, const CLI::App& command) {
  const std::string word = app.remaining(true).front();
  const std::string name = &command == &app ? "espalier" : "espalier " + command.get_name();
  if (word.size() > 1 && word[0] == '-') {
    const auto flag = word.substr(0, word.find('='));
    std::vector<std::string> known;
    for (const CLI::App* owner : {&command, &app}) {
      for (const CLI::Option* option : owner->get_options()) {
        for (const auto& long_name : option->get_lnames()) known.push_back(long_name);
      }
    }
    const auto letters = flag.find_first_not_of('-');
    const std::string near = letters == std::string::npos ? "" : nearest(flag.substr(letters), known);
    return fmt::format("{}: unknown option \"{}\".{} ({} --help)", name, flag,
                       near.empty() ? "" : " Did you mean \"--" + near + "\"?", name);
  }
  if (&command == &app) {
    const auto known = command_names(app);
    return fmt::format("unknown command \"{}\". Known: {}.{}", word, joined(known), suggestion(word, known));
  }
  return fmt::format("{}: unexpected argument \"{}\" ({} --help)", name, word, name);
}

int run(int argc, char** argv, Console& console, bool& debug) {
  Context context{console, environment_variables(), {}};
  GlobalArguments global;
  CLI::App app("Espalier trains neural networks that are sparse from the first step to the last.", "espalier");
  app.get_formatter()->column_width(36);
  app.set_help_flag("-h,--help", "print this help");
  app.fallthrough();
  add_global_arguments(app, global);
  add_commands(app, context);
  app.footer(
      "Examples:\n"
      "  espalier list presets\n"
      "  espalier config --preset mnist-ann > my.toml\n"
      "Exit status: 0 done, 1 the run failed, 2 usage or configuration, 3 data, 4 a check failed, 5 diverged,\n"
      "75 stopped by a signal after a good checkpoint.");

  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    console.print(app.help());
    return 0;
  } catch (const CLI::ParseError& error) {
    const auto commands = app.get_subcommands();
    const CLI::App& command = commands.empty() ? app : *commands.front();
    // A word that nobody knows explains more than what CLI11 may have met first.
    if (app.remaining_size(true) > 0) throw Error(ErrorKind::usage, unexpected(app, command));
    const std::string name = commands.empty() ? "espalier" : "espalier " + command.get_name();
    fail(ErrorKind::usage, "{}: {} ({} --help)", name, error.what(), name);
  }

  Console::Options options;
  options.quiet = global.quiet;
  options.verbose = global.verbose;
  options.json = global.log_format == "json";
  options.color = global.color == "always"  ? Console::Color::always
                  : global.color == "never" ? Console::Color::never
                                            : Console::Color::automatic;
  console.configure(options);

  if (global.version) {
    console.print(version_text(global.version_json));
    return 0;
  }
  ESPALIER_CHECK(context.action, ErrorKind::usage, "no command given. Known: {}. (espalier --help)",
                 joined(command_names(app)));
  debug = global.debug;
  return context.action();
}

int failed(Console& console, const std::string& text, ErrorKind kind = ErrorKind::failed) {
  console.error(text);
  return static_cast<int>(kind);
}

}  // namespace
}  // namespace espalier::cli

int main(int argc, char** argv) {
  using namespace espalier::cli;
  std::signal(SIGPIPE, SIG_IGN);  // a reader that went away must not end a training run; print() notices it
  occupy_standard_streams();
  espalier::cure_blas();
  espalier::keep_freed_memory();
  Console console;
  bool debug = false;
  try {
    return run(argc, argv, console, debug);
  } catch (const OutputClosed&) {
    return 0;
  } catch (const espalier::Error& error) {
    return failed(console, error.what(), error.kind());
  } catch (const c10::Error& error) {
    const std::string text = debug ? error.what() : error.what_without_backtrace();
    return failed(console, debug ? text : text.substr(0, text.find('\n')));
  } catch (const std::bad_alloc&) {
    return failed(console, "out of memory");
  } catch (const std::exception& error) {
    return failed(console, error.what());
  }
}
