#include "espalier/train/checkpoint.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <system_error>

#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/train/durable_file.h"
#include "espalier/train/json.h"

namespace espalier::train {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFormat = "espalier-checkpoint";
constexpr int kFormatVersion = 1;
constexpr const char* kStateFile = "state.json";
constexpr const char* kStepPrefix = "step-";
constexpr const char* kTemporaryPrefix = ".tmp-";      // .tmp-<pid>-<n>: half-written or half-removed
constexpr const char* kReplacedPrefix = ".replaced-";  // .replaced-step-…: makes room for its successor

struct Part {
  const char* file;
  NamedTensors Checkpoint::*tensors;
};
constexpr std::array<Part, 3> kParts{{{"model.safetensors", &Checkpoint::model},
                                      {"optimizer.safetensors", &Checkpoint::optimizer},
                                      {"sparsity.safetensors", &Checkpoint::sparsity}}};

// ---- names ---------------------------------------------------------------------------------------

std::string step_name(std::int64_t step) { return fmt::format("{}{:08}", kStepPrefix, step); }

bool starts_with(const std::string& text, const std::string& prefix) { return text.rfind(prefix, 0) == 0; }

std::optional<std::int64_t> step_of(const std::string& name) {
  if (!starts_with(name, kStepPrefix)) return std::nullopt;
  std::int64_t step = 0;
  const char* digits = name.data() + std::string(kStepPrefix).size();
  const auto [end, error] = std::from_chars(digits, name.data() + name.size(), step);
  // Only the name that step_name gives: no "step-0001", "step-00000001.bak", "step--1".
  if (error != std::errc() || step < 0 || step_name(step) != name) return std::nullopt;
  return step;
}

std::vector<std::int64_t> steps_in(const fs::path& root) {
  std::vector<std::int64_t> steps;
  std::error_code error;
  for (fs::directory_iterator it(root, error), end; !error && it != end; it.increment(error)) {
    if (const auto step = step_of(it->path().filename().string())) steps.push_back(*step);
  }
  ESPALIER_CHECK(!error || error == std::errc::no_such_file_or_directory, ErrorKind::data, "{}: cannot list: {}",
                 root.string(), error.message());
  std::sort(steps.begin(), steps.end());
  return steps;
}

// Without the exception of the std one: what can't be looked at will not be read either, and that says why.
bool is_there(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error);
}

// ---- state.json ----------------------------------------------------------------------------------

std::string crc_text(std::uint32_t crc32) { return fmt::format("{:08x}", crc32); }

// The last member of state.json is the CRC-32 of all the bytes before this text.
std::string seal(const std::string& text) {
  return fmt::format(",\n  \"crc32\": \"{}\"\n}}\n", crc_text(digest_of(text).crc32));
}

std::string sealed(const Json& object) {
  std::string text = to_json_text(object);
  text.resize(text.size() - std::string("\n}\n").size());
  return text + seal(text);
}

Json read_state(const fs::path& directory) {
  const fs::path path = directory / kStateFile;
  ESPALIER_CHECK(is_there(path), ErrorKind::data, "{}: is not a checkpoint: it has no {}", directory.string(),
                 kStateFile);
  const std::string text = read_file(path);
  const std::size_t seal_bytes = seal("").size();
  const std::size_t body = text.size() < seal_bytes ? 0 : text.size() - seal_bytes;
  ESPALIER_CHECK(text.substr(body) == seal(text.substr(0, body)), ErrorKind::data,
                 "{}: is damaged: its checksum does not match its content", path.string());
  Json json = read_json(path);
  ESPALIER_CHECK(json.value("format", "") == kFormat, ErrorKind::data, "{}: format is {}, expected \"{}\"",
                 path.string(), to_json_line(json.value("format", Json())), kFormat);
  ESPALIER_CHECK(json.value("format_version", Json()) == kFormatVersion, ErrorKind::data,
                 "{}: format_version is {}, expected {}; was it written by a newer Espalier?", path.string(),
                 to_json_line(json.value("format_version", Json())), kFormatVersion);
  return json;
}

// ---- folders -------------------------------------------------------------------------------------

void rename_or_fail(const fs::path& from, const fs::path& to) {
  std::error_code error;
  fs::rename(from, to, error);
  ESPALIER_CHECK(!error, ErrorKind::failed, "{}: cannot rename to {}: {}", from.string(), to.filename().string(),
                 error.message());
}

fs::path temporary_path(const fs::path& root) {
  for (int n = 0;; ++n) {
    fs::path path = root / fmt::format("{}{}-{}", kTemporaryPrefix, ::getpid(), n);
    std::error_code error;
    if (fs::symlink_status(path, error).type() == fs::file_type::not_found) return path;
  }
}

// Out of sight first: a removal that is cut short must not leave a checkpoint with a file missing.
void remove_checkpoint(const fs::path& path) {
  std::error_code error;
  const fs::path hidden = temporary_path(path.parent_path());
  fs::rename(path, hidden, error);
  if (!error) fs::remove_all(hidden, error);
  if (error) log_warning(fmt::format("{}: cannot remove: {}", path.string(), error.message()));
}

// Links serve people and tools; the checkpoints don't need them, and some file systems have none.
void point_link(const fs::path& root, const char* name, std::int64_t step) {
  const fs::path link = root / name;
  std::error_code error;
  if (fs::read_symlink(link, error) == step_name(step)) return;
  const fs::path fresh = temporary_path(root);
  fs::create_symlink(step_name(step), fresh, error);
  if (!error) fs::rename(fresh, link, error);
  if (!error) return;
  log_warning(fmt::format("{}: cannot link it to {}: {}; the checkpoint itself is safe", link.string(), step_name(step),
                          error.message()));
  fs::remove(fresh, error);
}

// Whether the process that wrote `.tmp-<pid>-<n>` may still be at work. Our own are leftovers too: in a container every
// run has the same pid, and a store starts before it writes.
bool writer_is_alive(const std::string& name) {
  const long pid = std::strtol(name.c_str() + std::string(kTemporaryPrefix).size(), nullptr, 10);
  return pid > 0 && pid != ::getpid() && (::kill(static_cast<pid_t>(pid), 0) == 0 || errno == EPERM);
}

}  // namespace

Checkpoint load_checkpoint(const fs::path& directory) {
  const Json json = read_state(directory);
  Checkpoint checkpoint;
  try {
    checkpoint.step = json.at("step").get<std::int64_t>();
    checkpoint.state = json.at("state");
    if (!json.at("best_step").is_null()) checkpoint.best_step = json.at("best_step").get<std::int64_t>();
    for (const Part& part : kParts) {
      const fs::path path = directory / part.file;
      const Json& expected = json.at("files").at(part.file);
      SafetensorsContent content = load_safetensors(path);
      ESPALIER_CHECK(content.digest.bytes == expected.at("bytes").get<std::int64_t>(), ErrorKind::data,
                     "{}: is damaged: found {} bytes, expected {}", path.string(), content.digest.bytes,
                     expected.at("bytes").get<std::int64_t>());
      ESPALIER_CHECK(crc_text(content.digest.crc32) == expected.at("crc32").get<std::string>(), ErrorKind::data,
                     "{}: is damaged: its CRC-32 is {}, expected {}", path.string(), crc_text(content.digest.crc32),
                     expected.at("crc32").get<std::string>());
      checkpoint.*part.tensors = std::move(content.tensors);
      if (part.tensors == &Checkpoint::model) checkpoint.model_metadata = std::move(content.metadata);
    }
  } catch (const nlohmann::json::exception& e) {
    fail(ErrorKind::data, "{}: is not what this version of Espalier writes: {}", (directory / kStateFile).string(),
         e.what());
  }
  return checkpoint;
}

std::optional<Checkpoint> load_latest_checkpoint(const fs::path& run_directory) {
  const fs::path root = run_directory / "checkpoints";
  std::vector<std::int64_t> steps = steps_in(root);
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    const fs::path directory = root / step_name(*step);
    try {
      Checkpoint checkpoint = load_checkpoint(directory);
      ESPALIER_CHECK(checkpoint.step == *step, ErrorKind::data, "{}: holds step {}: was it renamed?",
                     directory.string(), checkpoint.step);
      return checkpoint;
    } catch (const Error& e) {
      log_warning(fmt::format("checkpoint {} is not usable, trying the one before it: {}", step_name(*step), e.what()));
    }
  }
  ESPALIER_CHECK(steps.empty(), ErrorKind::data,
                 "{}: all {} checkpoints are damaged; each is named in a warning above; start the run anew",
                 root.string(), steps.size());
  return std::nullopt;
}

CheckpointStore::CheckpointStore(const fs::path& run_directory, std::int64_t keep)
    : root_(run_directory / "checkpoints"), keep_(keep) {
  ESPALIER_CHECK(keep >= 1, ErrorKind::usage, "checkpoint.keep = {}, expected at least 1", keep);
  remove_leftovers();
  std::error_code error;
  best_step_ = step_of(fs::read_symlink(root_ / "best", error).string());
}

void CheckpointStore::save(const Checkpoint& checkpoint, bool best) {
  ESPALIER_ASSERT(checkpoint.step >= 0);
  std::error_code error;
  const bool created = fs::create_directories(root_, error);
  ESPALIER_CHECK(!error, ErrorKind::failed, "{}: cannot create: {}", root_.string(), error.message());
  if (created) sync_directory(root_.parent_path());

  const fs::path target = root_ / step_name(checkpoint.step);
  const fs::path replaced = root_ / (kReplacedPrefix + step_name(checkpoint.step));
  const fs::path fresh = temporary_path(root_);
  std::optional<std::int64_t> best_step = best ? checkpoint.step : best_step_;
  if (best_step && *best_step > checkpoint.step) best_step.reset();  // of a future that a rewound run has left
  try {
    fs::create_directory(fresh, error);
    ESPALIER_CHECK(!error, ErrorKind::failed, "{}: cannot create: {}", fresh.string(), error.message());
    Json files = Json::object();
    for (const Part& part : kParts) {
      std::map<std::string, std::string> metadata;
      if (part.tensors == &Checkpoint::model) metadata = checkpoint.model_metadata;
      metadata["format"] = "pt";
      const FileDigest digest = save_safetensors(fresh / part.file, checkpoint.*part.tensors, metadata);
      files[part.file] = {{"bytes", digest.bytes}, {"crc32", crc_text(digest.crc32)}};
    }
    const std::string state = sealed({{"format", kFormat},
                                      {"format_version", kFormatVersion},
                                      {"step", checkpoint.step},
                                      {"best_step", best_step ? Json(*best_step) : Json()},
                                      {"files", files},
                                      {"state", checkpoint.state}});
    OutputFile file(fresh / kStateFile);
    file.write(state.data(), state.size());
    file.finish();
    sync_directory(fresh);
    // A folder can't be renamed over another in one step. If the second does not happen, the next store puts the
    // old one back (remove_leftovers).
    if (is_there(target)) rename_or_fail(target, replaced);
    rename_or_fail(fresh, target);
    sync_directory(root_);
  } catch (...) {
    fs::remove_all(fresh, error);
    throw;
  }
  if (is_there(replaced)) remove_checkpoint(replaced);
  best_step_ = best_step;
  update_links(checkpoint.step);
  prune(checkpoint.step);
}

std::optional<Checkpoint> CheckpointStore::load_latest() {
  std::optional<Checkpoint> checkpoint = load_latest_checkpoint(root_.parent_path());
  if (checkpoint) {
    best_step_ = checkpoint->best_step;
    update_links(checkpoint->step);
  }
  return checkpoint;
}

std::vector<std::int64_t> CheckpointStore::steps() const { return steps_in(root_); }

void CheckpointStore::remove_leftovers() const {
  std::error_code error;
  std::vector<fs::path> leftovers;
  for (fs::directory_iterator it(root_, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (starts_with(name, kReplacedPrefix) || (starts_with(name, kTemporaryPrefix) && !writer_is_alive(name))) {
      leftovers.push_back(it->path());
    }
  }
  for (const fs::path& path : leftovers) {
    const std::string name = path.filename().string();
    const fs::path original = root_ / name.substr(std::min(name.size(), std::string(kReplacedPrefix).size()));
    if (starts_with(name, kReplacedPrefix) && !is_there(original)) {
      rename_or_fail(path, original);
      continue;
    }
    fs::remove_all(path, error);
    if (error) log_warning(fmt::format("{}: cannot remove: {}", path.string(), error.message()));
  }
}

void CheckpointStore::update_links(std::int64_t latest) const {
  point_link(root_, "latest", latest);
  if (best_step_) {
    point_link(root_, "best", *best_step_);
  } else {
    std::error_code error;
    fs::remove(root_ / "best", error);
  }
}

void CheckpointStore::prune(std::int64_t latest) const {
  std::int64_t kept = 0;
  const std::vector<std::int64_t> all = steps();
  for (auto step = all.rbegin(); step != all.rend(); ++step) {
    const bool rewound = *step > latest;
    if (!rewound && (kept++ < keep_ || *step == best_step_)) continue;
    if (rewound) {
      log_warning(fmt::format("checkpoint {} is removed: the run went back before it and is now at step {}",
                              step_name(*step), latest));
    }
    remove_checkpoint(root_ / step_name(*step));
  }
}

}  // namespace espalier::train
