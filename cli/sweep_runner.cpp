#include "sweep_runner.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstring>
#include <fstream>
#include <map>
#include <thread>

#include "comparison.h"
#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/train/durable_file.h"
#include "espalier/train/environment.h"
#include "espalier/train/run_directory.h"
#include "run_commands.h"

extern char** environ;

namespace espalier::cli {
namespace {

namespace fs = std::filesystem;
using train::Cell;
using train::CellState;
using SteadyClock = std::chrono::steady_clock;

constexpr auto kPoll = std::chrono::milliseconds(20);

/// The environment of a cell: ESPALIER_<TABLE>_<KEY> has gone into its configuration already.
std::vector<std::string> cell_environment() {
  const std::string prefix = "ESPALIER_";
  std::vector<std::string> out;
  for (char** entry = environ; *entry; ++entry) {
    const std::string text = *entry, name = text.substr(0, text.find('='));
    const bool is_key =
        name.compare(0, prefix.size(), prefix) == 0 && name.find('_', prefix.size()) != std::string::npos;
    if (!is_key) out.push_back(text);
  }
  return out;
}

std::vector<char*> pointers(std::vector<std::string>& words) {
  std::vector<char*> out;
  for (auto& word : words) out.push_back(word.data());
  out.push_back(nullptr);
  return out;
}

/// Starts the program itself; what it says is appended to `log`.
pid_t start(std::vector<std::string> arguments, const std::string& log) {
  arguments.insert(arguments.begin(), "espalier");
  std::vector<std::string> variables = cell_environment();
  const auto argv = pointers(arguments), envp = pointers(variables);
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  ESPALIER_CHECK(pid >= 0, ErrorKind::failed, "cannot start a process: {}", std::strerror(errno));
  if (pid > 0) return pid;
  // Only calls that are safe between fork and exec.
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);  // a cell whose sweep was killed writes its checkpoint and ends
  if (::getppid() != parent) ::_exit(127);
  ::setpgid(0, 0);  // Ctrl-C is for the sweep, which passes it on once
  for (const int signal : {SIGTERM, SIGINT, SIGUSR1}) std::signal(signal, SIG_DFL);
  const int in = ::open("/dev/null", O_RDONLY), out = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0666);
  if (in < 0 || out < 0 || ::dup2(in, 0) < 0 || ::dup2(out, 1) < 0 || ::dup2(out, 2) < 0) ::_exit(127);
  for (const int fd : {in, out})
    if (fd > 2) ::close(fd);
  ::execve("/proc/self/exe", argv.data(), envp.data());
  ::_exit(127);
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  return text == from ? to : text;
}

std::string last_error(const fs::path& log) {
  std::ifstream file(log);
  std::string text;
  for (std::string line; std::getline(file, line);)
    if (line.rfind("error: ", 0) == 0) text = line.substr(7);
  return text;
}

std::string describe(int status, const fs::path& log) {
  const std::string said = last_error(log);
  if (WIFSIGNALED(status)) {
    const int signal = WTERMSIG(status);
    return fmt::format("ended by signal {} ({}){}", signal, ::strsignal(signal),
                       signal == SIGKILL ? "; out of memory?" : "");
  }
  return fmt::format("exit status {}{}", WEXITSTATUS(status), said.empty() ? "" : ": " + said);
}

std::string result_text(const CellState& state) {
  if (state.status == "diverged") return "diverged";
  const train::Json& s = state.summary;
  std::string text = "done";
  if (s.contains("test_accuracy") && s["test_accuracy"].is_number())
    text += fmt::format(", test accuracy {:.4f}", s["test_accuracy"].get<double>());
  if (s.contains("sparsity") && s["sparsity"].is_number())
    text += fmt::format(", sparsity {:.4f}", s["sparsity"].get<double>());
  return text;
}

/// A directory for this plan: new, or one that holds the same sweep.
void prepare(const fs::path& dir, const std::vector<Cell>& cells, std::int64_t threads, bool extend,
             const std::string& input) {
  const bool exists = fs::exists(dir / "sweep.json");
  if (exists) train::check_same_sweep(dir, cells, extend);
  for (const Cell& cell : cells) {
    // Only when there is something to change: a cell that runs may be reading it.
    const std::string text = train::to_toml(cell.config);
    const fs::path file = train::cell_config(dir, cell.name);
    if (!fs::exists(file) || train::read_file(file) != text) train::write_file_atomically(file, text);
  }
  train::write_file_atomically(dir / "sweep.toml", input);
  train::write_file_atomically(dir / "sweep.json", train::to_json_text(train::to_json(cells, threads)));
}

/// Nothing of somebody else's may be in the way, and no second sweep at work.
train::DirectoryLock take(const fs::path& dir) {
  std::error_code error;
  if (!fs::exists(dir / "sweep.json", error) && fs::exists(dir, error)) {
    for (const auto& entry : fs::directory_iterator(dir, error)) {
      const std::string name = entry.path().filename().string();
      const bool ours =
          name == "cells" || name == ".espalier.lock" || name == "sweep.toml" || name.rfind(".sweep.", 0) == 0;
      ESPALIER_CHECK(ours, ErrorKind::usage,
                     "{}: is not empty (it holds {}) and not a sweep of Espalier's; choose another --dir", dir.string(),
                     name);
    }
  }
  fs::create_directories(dir / "cells", error);
  ESPALIER_CHECK(!error, ErrorKind::usage, "{}: cannot create: {}", dir.string(), error.message());
  return train::DirectoryLock(dir);
}

class Runner {
 public:
  Runner(const fs::path& dir, const std::vector<Cell>& cells, int jobs, const std::vector<AfterCell>& after,
         Context& context)
      : dir_(dir), cells_(cells), after_(after), jobs_(static_cast<std::size_t>(jobs)), console_(context.console) {}

  /// Returns whether `signalled` has ended it.
  bool run(const std::atomic<bool>& signalled) {
    for (std::size_t i = 0; i < cells_.size(); ++i) {
      const CellState state = train::state_of(dir_, cells_[i].name);
      if (state.has_result()) {
        ++finished_;
        if (state.status == "diverged") add_divergence(i, state);
        add_after(i, state);
      } else {
        waiting_.push_back({i, nullptr});
      }
    }
    if (finished_ > 0) log_info(fmt::format("{} of {} cells are finished already", finished_, cells_.size()));
    write_tables();
    while (!running_.empty() || (!waiting_.empty() && !stopping_)) {
      if (signalled && !stopping_) stop();
      if (!stopping_) start_some();
      show();
      std::this_thread::sleep_for(kPoll);
      collect();
    }
    console_.progress("");
    write_tables();
    return interrupted_ || !waiting_.empty();
  }

  struct Failure {
    std::string cell, reason;
    int status;
  };
  const std::vector<Failure>& failures() const { return failures_; }

 private:
  /// Training a cell (after = nullptr), or what follows it.
  struct Task {
    std::size_t cell;
    const AfterCell* after;
  };
  struct Child {
    Task task;
    SteadyClock::time_point since;
  };

  bool is_made(const Task& task) const {
    return fs::exists(train::cell_run(dir_, cells_[task.cell].name) / task.after->makes);
  }

  void add_after(std::size_t cell, const CellState& state) {
    if (state.status != "done" || cells_[cell].command != "train") return;
    for (const AfterCell& after : after_)
      if (!is_made({cell, &after})) waiting_.push_back({cell, &after});
  }

  void add_divergence(std::size_t cell, const CellState& state) {
    const train::Json text = state.summary.value("error", train::Json());
    failures_.push_back({cells_[cell].name, text.is_string() ? text.get<std::string>() : "diverged",
                         static_cast<int>(ErrorKind::diverged)});
  }

  void start_some() {
    for (auto it = waiting_.begin(); it != waiting_.end() && running_.size() < jobs_;) {
      const Cell& cell = cells_[it->cell];
      const fs::path run = train::cell_run(dir_, cell.name);
      if (train::is_held(run)) {  // by a cell of a sweep that was killed: it is writing its checkpoint
        if (!said_held_) log_info(fmt::format("{}: another process is still in it; waiting", cell.name));
        said_held_ = true;
        ++it;
        continue;
      }
      // Starts the run, or goes on with it.
      std::vector<std::string> arguments = {cell.command, train::cell_config(dir_, cell.name).string(), "--resume",
                                            run.string()};
      if (it->after == nullptr) {
        std::error_code ignored;
        fs::remove(train::cell_failure(dir_, cell.name), ignored);
      } else {
        arguments.clear();
        for (const auto& word : it->after->arguments)
          arguments.push_back(
              replaced(replaced(word, "{run}", run.string()), "{threads}", std::to_string(cell.config.run.threads)));
      }
      const pid_t pid = start(arguments, train::cell_log(dir_, cell.name).string());
      console_.message(LogLevel::debug, fmt::format("{}: process {}", cell.name, pid));
      running_[pid] = {*it, SteadyClock::now()};
      it = waiting_.erase(it);
    }
  }

  void stop() {
    stopping_ = true;
    log_info(fmt::format("stopping: {} cell{} at work", running_.size(), running_.size() == 1 ? "" : "s"));
    for (const auto& child : running_) ::kill(child.first, SIGTERM);
  }

  void collect() {
    for (auto it = running_.begin(); it != running_.end();) {
      int status = 0;
      const pid_t ended = ::waitpid(it->first, &status, WNOHANG);
      if (ended == 0 || (ended < 0 && errno == EINTR)) {
        ++it;
        continue;
      }
      const Child child = it->second;
      it = running_.erase(it);
      child.task.after == nullptr ? end(child, status) : end_after(child.task, status);
    }
  }

  void end(const Child& child, int status) {
    const std::string& name = cells_[child.task.cell].name;
    const double seconds = std::chrono::duration<double>(SteadyClock::now() - child.since).count();
    const CellState state = train::state_of(dir_, name);
    if (state.has_result()) {
      ++finished_;
      ++ended_here_;
      seconds_ += seconds;
      log_info(fmt::format("[{}/{}] {}: {} ({:.0f} s)", finished_, cells_.size(), name, result_text(state), seconds));
      if (state.status == "diverged") add_divergence(child.task.cell, state);
      add_after(child.task.cell, state);
    } else if ((WIFEXITED(status) && WEXITSTATUS(status) == kStoppedBySignal) || stopping_) {
      interrupted_ = true;
    } else {
      fail(child.task, status, true);
    }
    // All cells are read for it: with thousands of them not after each.
    if (SteadyClock::now() - written_ > 20 * writing_takes_) write_tables();
  }

  void end_after(const Task& task, int status) {
    const bool good = WIFEXITED(status) && WEXITSTATUS(status) == 0 && is_made(task);
    if (good) return;
    if (stopping_)
      interrupted_ = true;
    else
      fail(task, status, false);
  }

  void fail(const Task& task, int status, bool keep) {
    const std::string& name = cells_[task.cell].name;
    const std::string reason = describe(status, train::cell_log(dir_, name));
    if (keep) train::write_file_atomically(train::cell_failure(dir_, name), reason + "\n");
    failures_.push_back({name, reason, WIFEXITED(status) ? WEXITSTATUS(status) : static_cast<int>(ErrorKind::failed)});
    log_warning(fmt::format("{}: {}", name, reason));
  }

  void write_tables() {
    const auto start = SteadyClock::now();
    const train::SweepTables tables = train::tabulate(dir_, cells_);
    train::write_file_atomically(dir_ / "results.csv", tables.results);
    train::write_file_atomically(dir_ / "results.json", train::to_json_text(tables.json));
    train::write_file_atomically(dir_ / "times.csv", tables.times);
    written_ = SteadyClock::now();
    writing_takes_ = written_ - start;
  }

  /// The line of a terminal, redrawn twice a second.
  void show() {
    if (!console_.live() || SteadyClock::now() - shown_ < std::chrono::milliseconds(500)) return;
    shown_ = SteadyClock::now();
    std::string line = fmt::format("{} of {} cells finished", finished_, cells_.size());
    if (!failures_.empty()) line += fmt::format(", {} failed", failures_.size());
    if (ended_here_ > 0 && finished_ < cells_.size()) {
      const double each = seconds_ / static_cast<double>(ended_here_) / static_cast<double>(jobs_);
      const std::size_t left = cells_.size() - std::min(cells_.size(), finished_ + failures_.size());
      line += fmt::format(", about {} left", clock_text(each * static_cast<double>(left)));
    }
    line += "; running";
    for (const auto& child : running_) line += " " + cells_[child.second.task.cell].name;
    console_.progress(line);
  }

  const fs::path& dir_;
  const std::vector<Cell>& cells_;
  const std::vector<AfterCell>& after_;
  const std::size_t jobs_;
  Console& console_;
  std::vector<Task> waiting_;
  std::map<pid_t, Child> running_;
  std::vector<Failure> failures_;
  std::size_t finished_ = 0, ended_here_ = 0;
  double seconds_ = 0;
  bool stopping_ = false, interrupted_ = false, said_held_ = false;
  SteadyClock::time_point shown_, written_;
  SteadyClock::duration writing_takes_{};
};

}  // namespace

void add_sweep_arguments(CLI::App& command, SweepArguments& arguments, const std::string& default_dir) {
  command.add_option("--dir", arguments.dir, "where the cells are written; otherwise " + default_dir)
      ->option_text("DIR")
      ->group("Sweep");
  command
      .add_option("--seeds", arguments.seeds,
                  "each cell so many times, with the seeds 1, 2, …; or with these seeds: 1,5,7")
      ->option_text("N|A,B,…")
      ->group("Sweep");
  command.add_option("--jobs", arguments.jobs, "cells that run at once; the cores are divided between them")
      ->option_text("N")
      ->check(CLI::Range(1, 1024))
      ->group("Sweep");
  command.add_option("--only", arguments.only, "only the entry of the list with this label; may be repeated")
      ->option_text("LABEL")
      ->type_size(1)
      ->expected(1)
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->group("Sweep");
  command.add_flag("--extend", arguments.extend, "the directory holds this sweep with fewer cells: add the new ones")
      ->group("Sweep");
  command.add_flag("--dry-run", arguments.dry_run, "print the names of the cells and run nothing")->group("Sweep");
  command.add_flag("--json", arguments.json, "print results.json on standard output in place of the table")
      ->group("Sweep");
}

int run_sweep(const train::SweepSources& sources, const SweepArguments& arguments, const fs::path& dir,
              const std::string& input, Context& context, const std::vector<AfterCell>& after,
              std::vector<Cell>* planned) {
  // The threads of a cell are part of its configuration: a sweep that goes on keeps those it began with.
  std::int64_t threads = std::max(1, usable_cores() / arguments.jobs);
  if (fs::exists(dir / "sweep.json")) threads = train::read_json(dir / "sweep.json").value("threads", threads);
  train::SweepSources all = sources;
  all.seeds = arguments.seeds;
  all.only = arguments.only;
  const std::vector<Cell> cells = train::plan_sweep(all, threads);
  if (planned != nullptr) *planned = cells;
  if (arguments.dry_run) {
    for (const Cell& cell : cells) context.console.print(cell.name + "\n");
    return 0;
  }
  const train::DirectoryLock lock = take(dir);
  prepare(dir, cells, threads, arguments.extend, input);
  context.console.log_to(dir / "log.txt");
  // run.threads may be set, or varied.
  const auto [least, most] = std::minmax_element(cells.begin(), cells.end(), [](const Cell& a, const Cell& b) {
    return a.config.run.threads < b.config.run.threads;
  });
  const std::int64_t fewest = least->config.run.threads, greatest = most->config.run.threads;
  log_info(fmt::format("{}: {} cells, {} at a time, {} thread{} each", dir.string(), cells.size(), arguments.jobs,
                       fewest == greatest ? fmt::to_string(fewest) : fmt::format("{} to {}", fewest, greatest),
                       greatest == 1 ? "" : "s"));
  // A second signal does not wait; the cells get SIGTERM when this process is gone.
  Runner runner(dir, cells, arguments.jobs, after, context);
  if (runner.run(*stop_on_signals())) {
    log_info("stopped by a signal; the same command goes on");
    return kStoppedBySignal;
  }
  context.console.print(arguments.json ? train::read_file(dir / "results.json") : comparison_table(dir));
  log_info(fmt::format("results: {}", (dir / "results.csv").string()));
  if (runner.failures().empty()) return 0;
  std::string text = fmt::format("{} of {} cells failed:", runner.failures().size(), cells.size());
  int status = runner.failures().front().status;
  for (const auto& failure : runner.failures()) {
    text += fmt::format("\n  {}: {}", failure.cell, failure.reason);
    if (failure.status != status) status = static_cast<int>(ErrorKind::failed);
  }
  context.console.error(text);
  return status;
}

}  // namespace espalier::cli
