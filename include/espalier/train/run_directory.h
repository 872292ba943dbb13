/// The folder of one run: its configuration, environment, metrics, checkpoints and result.
/// docs/formats/run-directory.md.
#pragma once

#include <ctime>
#include <filesystem>
#include <string>
#include <utility>

#include "espalier/train/json.h"

namespace espalier::train {

/// A directory held by this process (flock on `.espalier.lock`, which ends with the process, however it ends).
class DirectoryLock {
 public:
  /// Throws Error(usage) naming the holder if another process has it. On a file system without locks: a warning.
  explicit DirectoryLock(const std::filesystem::path& directory);
  DirectoryLock(DirectoryLock&& other) noexcept;
  DirectoryLock& operator=(DirectoryLock&&) = delete;
  ~DirectoryLock();

 private:
  int fd_;  // -1 where the file system has no locks
};

/// Whether a process holds the directory now. It tries the lock for a moment: not for watching a run that may be about
/// to start.
bool is_held(const std::filesystem::path& directory);

/// What is known when a run starts.
struct RunRecord {
  std::string config;        ///< resolved, TOML, itself runnable
  std::string config_input;  ///< as the user gave it
  std::string command;       ///< the command line
  Json env;                  ///< versions, CPU, instruction set, BLAS, threads, seed
};

/// A run directory held by this process: as long as the object lives no other process can train into it (flock on
/// `.espalier.lock`). Reading a run (eval, inspect, report) needs no RunDirectory, only the paths.
class RunDirectory {
 public:
  /// Starts a run. An existing directory must be empty, or with `overwrite` hold a run, whose files (and no others) are
  /// removed. Throws Error(usage) otherwise or if another process has it, Error(failed) if it can't be written.
  static RunDirectory create(const std::filesystem::path& path, const RunRecord& record, bool overwrite);
  /// A run to go on with. Throws Error(usage) if there is none or another process has it.
  static RunDirectory open(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path config() const { return path_ / "config.toml"; }
  std::filesystem::path metrics() const { return path_ / "metrics.jsonl"; }
  std::filesystem::path timing() const { return path_ / "timing.jsonl"; }
  std::filesystem::path weights() const { return path_ / "weights.jsonl"; }
  std::filesystem::path log() const { return path_ / "log.txt"; }
  std::filesystem::path summary() const { return path_ / "summary.json"; }

  /// Atomic: readers see the last summary or this one.
  void write_summary(const Json& summary) const;

 private:
  RunDirectory(std::filesystem::path path, DirectoryLock lock) : path_(std::move(path)), lock_(std::move(lock)) {}

  std::filesystem::path path_;
  DirectoryLock lock_;
};

/// Where a run goes that was given no directory: <parent>/<name>, or without a name
/// <parent>/<utc>-<model>-<method>-<CRC-32 of the resolved configuration>, with -2, -3, … if that exists.
/// Throws Error(usage) for a name that is not the name of a folder.
std::filesystem::path default_run_path(const std::filesystem::path& parent, const std::string& name,
                                       const std::string& model, const std::string& method, const std::string& config,
                                       std::time_t now);

}  // namespace espalier::train
