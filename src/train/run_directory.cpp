#include "espalier/train/run_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>
#include <vector>

#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/train/durable_file.h"

namespace espalier::train {
namespace {

namespace fs = std::filesystem;

constexpr const char* kLock = ".espalier.lock";
constexpr const char* kConfig = "config.toml";
// What --overwrite may remove: ours and nothing else, whatever else people keep beside it.
constexpr std::array<const char*, 15> kOwned{kConfig,       "config.input.toml", "command.txt",  "env.json",
                                             "log.txt",     "metrics.jsonl",     "timing.jsonl", "summary.json",
                                             "report.html", "weights.jsonl",     "init.json",    "prune",
                                             "tb",          "pack.safetensors",  "checkpoints"};

std::vector<std::string> entries_of(const fs::path& path) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
    if (it->path().filename() != kLock) names.push_back(it->path().filename().string());
  }
  ESPALIER_CHECK(!error, ErrorKind::usage, "run directory {}: cannot list: {}", path.string(), error.message());
  std::sort(names.begin(), names.end());
  return names;
}

/// What a start leaves that was killed before config.toml was there.
bool is_of_a_start(const std::string& entry) {
  for (const char* name : {"config.input.toml", "command.txt", "env.json"})
    if (entry == name || entry == temporary_name(name)) return true;
  return entry == temporary_name(kConfig);
}

void check_may_start_in(const fs::path& path, bool overwrite) {
  const std::vector<std::string> entries = entries_of(path);
  if (entries.empty()) return;
  std::error_code error;
  const bool locked = fs::exists(path / kLock, error), configured = fs::exists(path / kConfig, error);
  if (locked && !configured && std::all_of(entries.begin(), entries.end(), is_of_a_start)) return;
  const bool is_run = configured || locked;
  ESPALIER_CHECK(is_run, ErrorKind::usage,
                 "run directory {}: is not empty (it holds {}) and not a run of Espalier's; choose another directory",
                 path.string(), entries.front());
  ESPALIER_CHECK(overwrite, ErrorKind::usage,
                 "run directory {}: holds a run already; continue it with --resume {} or replace it with --overwrite",
                 path.string(), path.string());
}

int take_lock(const fs::path& path) {
  const fs::path file = path / kLock;
  const int fd = ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  ESPALIER_CHECK(fd >= 0, ErrorKind::failed, "{}: cannot create: {}", file.string(), std::strerror(errno));
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
    const int reason = errno;
    ::close(fd);
    if (reason == EWOULDBLOCK) {
      std::string holder = read_file(file);
      holder.erase(std::remove(holder.begin(), holder.end(), '\n'), holder.end());
      fail(ErrorKind::usage,
           "run directory {}: {} is training into it; wait for it, stop it, or choose another directory", path.string(),
           holder.empty() ? "another process" : "process " + holder);
    }
    log_warning(fmt::format("{}: cannot lock: {}; see to it that no other process trains into this directory",
                            file.string(), std::strerror(reason)));
    return -1;
  }
  std::array<char, 256> host{};
  ::gethostname(host.data(), host.size() - 1);
  const std::string holder = fmt::format("{} on {}\n", ::getpid(), host.data());
  // For the message above only: the lock does not depend on it.
  if (::ftruncate(fd, 0) != 0 || ::pwrite(fd, holder.data(), holder.size(), 0) < 0) {
    log_warning(fmt::format("{}: cannot write: {}", file.string(), std::strerror(errno)));
  }
  return fd;
}

}  // namespace

DirectoryLock::DirectoryLock(const fs::path& directory) : fd_(take_lock(directory)) {}

DirectoryLock::DirectoryLock(DirectoryLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

DirectoryLock::~DirectoryLock() {
  // The file stays: removing it would let two processes lock two files of the same name.
  if (fd_ >= 0) ::close(fd_);
}

bool is_held(const fs::path& directory) {
  const int fd = ::open((directory / kLock).c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return false;
  const bool held = ::flock(fd, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  ::close(fd);
  return held;
}

RunDirectory RunDirectory::create(const fs::path& path, const RunRecord& record, bool overwrite) {
  std::error_code error;
  fs::create_directories(path, error);
  ESPALIER_CHECK(!error && fs::is_directory(path, error), ErrorKind::usage, "run directory {}: cannot create: {}",
                 path.string(), error ? error.message() : "it is not a directory");
  check_may_start_in(path, overwrite);  // before the lock file appears in somebody's home
  RunDirectory run(path, DirectoryLock(path));
  check_may_start_in(path, overwrite);  // again: another process may have started and ended in between
  for (const char* name : kOwned) {
    for (const std::string& file : {std::string(name), temporary_name(name)}) {
      fs::remove_all(path / file, error);
      ESPALIER_CHECK(!error, ErrorKind::failed, "{}: cannot remove: {}", (path / file).string(), error.message());
    }
  }
  write_file_atomically(path / "config.input.toml", record.config_input);
  write_file_atomically(path / "command.txt", record.command);
  write_file_atomically(path / "env.json", to_json_text(record.env));
  write_file_atomically(run.config(), record.config);  // last: a directory with a config.toml is a run
  return run;
}

RunDirectory RunDirectory::open(const fs::path& path) {
  std::error_code error;
  ESPALIER_CHECK(fs::is_directory(path, error), ErrorKind::usage, "run directory {}: there is no such directory",
                 path.string());
  ESPALIER_CHECK(fs::exists(path / kConfig, error), ErrorKind::usage,
                 "run directory {}: has no {}: is it the directory of a run?", path.string(), kConfig);
  return {path, DirectoryLock(path)};
}

void RunDirectory::write_summary(const Json& summary_json) const {
  write_file_atomically(summary(), to_json_text(summary_json));
}

fs::path default_run_path(const fs::path& parent, const std::string& name, const std::string& model,
                          const std::string& method, const std::string& config, std::time_t now) {
  if (!name.empty()) {
    ESPALIER_CHECK(name != "." && name != ".." && name.find('/') == std::string::npos, ErrorKind::usage,
                   "[run].name = \"{}\": expected the name of a folder, without \"/\"; a path goes to --run-dir", name);
    return parent / name;
  }
  std::tm utc{};
  ::gmtime_r(&now, &utc);
  std::array<char, 32> stamp{};
  std::strftime(stamp.data(), stamp.size(), "%Y%m%dT%H%M%SZ", &utc);
  std::string folder = fmt::format("{}-{}-{}-{:08x}", stamp.data(), model, method, digest_of(config).crc32);
  std::replace(folder.begin(), folder.end(), '/', '-');
  fs::path path = parent / folder;
  for (int n = 2; fs::exists(path); ++n) path = parent / fmt::format("{}-{}", folder, n);
  return path;
}

}  // namespace espalier::train
