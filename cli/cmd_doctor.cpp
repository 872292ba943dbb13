// espalier doctor: what a run would compute on, how fast dense products are, and what to mend.
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "commands.h"
#include "espalier/core/error.h"
#include "espalier/train/environment.h"

namespace espalier::cli {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

// Asks by writing: permissions alone do not know read-only file systems and full disks.
bool writable(const fs::path& folder) {
  std::string name = (folder / ".espalier-doctor-XXXXXX").string();
  const int file = mkstemp(name.data());
  if (file == -1) return false;
  const bool written = ::write(file, "x", 1) == 1;
  ::close(file);
  ::unlink(name.c_str());
  return written;
}

// The folder itself, or the nearest parent that exists: where it would be made.
fs::path nearest_existing(fs::path folder) {
  std::error_code ignored;
  while (!fs::is_directory(folder, ignored) && folder.has_relative_path()) folder = folder.parent_path();
  return folder;
}

std::string variable(const Context& context, const std::string& name) {
  const auto found = context.environment.find(name);
  return found == context.environment.end() ? "" : found->second;
}

// $XDG_…, or its default under the home folder; "" if neither is known. The standard ignores relative paths.
fs::path xdg_folder(const Context& context, const std::string& name, const std::string& under_home) {
  const fs::path xdg = variable(context, name);
  if (xdg.is_absolute()) return xdg / "espalier";
  const fs::path home = variable(context, "HOME");
  return home.empty() ? fs::path() : home / under_home / "espalier";
}

struct Folder {
  std::string purpose;  ///< "runs", "cache", "data"
  std::string from;     ///< where the path comes from
  fs::path path;
  bool exists = false, writable = false;
};

std::vector<Folder> folders(const Context& context) {
  std::vector<Folder> list = {{"runs", "current folder", fs::path(".")},
                              {"cache", "$XDG_CACHE_HOME", xdg_folder(context, "XDG_CACHE_HOME", ".cache")},
                              {"data", "$ESPALIER_DATA", variable(context, "ESPALIER_DATA")}};
  const fs::path data = xdg_folder(context, "XDG_DATA_HOME", ".local/share");
  list.push_back({"data", "$XDG_DATA_HOME", data.empty() ? data : data / "datasets"});
  for (Folder& folder : list) {
    std::error_code ignored;
    if (folder.path.empty()) continue;
    folder.path = fs::absolute(folder.path, ignored).lexically_normal();
    folder.exists = fs::is_directory(folder.path, ignored);
    if (folder.purpose != "data") folder.writable = writable(nearest_existing(folder.path));
  }
  return list;
}

struct Report {
  Environment environment;
  double gflops_one = 0, gflops_all = 0;
  std::vector<Folder> folders;
  std::vector<Finding> findings;
  bool healthy() const {
    for (const Finding& f : findings) {
      if (f.must_mend) return false;
    }
    return true;
  }
};

Report examine(const Context& context) {
  set_threads(0);
  Report report;
  report.environment = environment();
  const Environment& e = report.environment;
  report.gflops_one = sgemm_gflops(1);
  report.gflops_all = e.threads > 1 ? sgemm_gflops(e.threads) : report.gflops_one;
  report.folders = folders(context);
  report.findings = findings(e);

  // A third of what OpenBLAS reaches on such a core at an ordinary clock: less has a reason.
  const double expected = e.cpu.avx512f ? 45 : e.cpu.avx2 && e.cpu.fma ? 20 : 0;
  if (report.healthy() && std::round(report.gflops_one) < expected) {  // rounded as it is said
    report.findings.push_back(
        {false,
         fmt::format("dense products reach {:.0f} GFLOP/s on one core; at least {:.0f} can be expected",
                     report.gflops_one, expected),
         "look for other programs that use this machine (top), a CPU quota, or power saving"});
  }
  bool data = false;
  for (const Folder& folder : report.folders) {
    data = data || (folder.purpose == "data" && folder.exists);
    if (folder.purpose == "runs" && !folder.writable) {
      report.findings.push_back(
          {false, "no rights to write here: " + folder.path.string(), "espalier train … --run-dir DIR"});
    }
  }
  if (!data) {
    report.findings.push_back({false, "no folder of data sets found; the built-in data set \"glyphs\" needs none",
                               "export ESPALIER_DATA=DIR, or --data-root DIR"});
  }
  return report;
}

ordered_json to_json(const Report& report) {
  ordered_json out = espalier::to_json(report.environment);
  out["sgemm_gflops"] = {{"one_thread", report.gflops_one}, {"all_threads", report.gflops_all}};
  for (const Folder& f : report.folders) {
    out["folders"].push_back({{"purpose", f.purpose},
                              {"from", f.from},
                              {"path", f.path.string()},
                              {"exists", f.exists},
                              {"writable", f.purpose == "data" ? ordered_json() : ordered_json(f.writable)}});
  }
  out["findings"] = ordered_json::array();
  for (const Finding& f : report.findings) {
    out["findings"].push_back({{"must_mend", f.must_mend}, {"what", f.what}, {"mend", f.mend}});
  }
  out["healthy"] = report.healthy();
  return out;
}

std::string gib(std::uint64_t bytes) { return fmt::format("{:.1f} GiB", static_cast<double>(bytes) / (1 << 30)); }

std::string to_text(const Report& report) {
  const Environment& e = report.environment;
  const ordered_json json = espalier::to_json(e);
  std::string flags;
  for (const auto& flag : json["cpu"]["flags"]) flags += (flags.empty() ? "" : " ") + flag.get<std::string>();
  const auto known = [](const std::string& text) { return text.empty() ? std::string("unknown") : text; };

  std::vector<std::vector<std::string>> rows = {
      {"espalier", fmt::format("{}{}, {}", e.version, e.commit.empty() ? "" : " (" + e.commit + ")", e.compiler)},
      {"system", e.system},
      {"CPU", known(e.cpu_model)},
      {"flags", known(flags)},
      {"kernels", e.kernel_isa},
      {"cores", fmt::format("{} usable of {}{}", e.usable, e.cores,
                            e.cpu_quota > 0 ? fmt::format(" (CPU quota {:.2f})", e.cpu_quota) : "")},
      {"threads", fmt::format("{} LibTorch, {} OpenMP; waits: {}", e.threads, e.openmp_threads, e.waits)},
      {"memory", gib(e.memory_bytes) + (e.memory_limit_bytes > 0 ? ", limited to " + gib(e.memory_limit_bytes) : "")},
      {"allocator", e.allocator},
      {"LibTorch", e.torch + (e.onednn ? ", with oneDNN" : ", without oneDNN")},
      {"BLAS", known(e.blas.provider) + (e.blas.library.empty() ? "" : ", " + e.blas.library)},
  };
  if (!e.blas.core.empty()) rows.push_back({"BLAS kernels", e.blas.core});
  if (!e.blas.config.empty()) rows.push_back({"BLAS build", e.blas.config});
  rows.push_back({"BLAS cure", e.blas.cure});
  rows.push_back({"products", fmt::format("{:.0f} GFLOP/s on 1 thread, {:.0f} on {} (float, 1024 x 1024 x 1024)",
                                          report.gflops_one, report.gflops_all, e.threads)});
  for (const Folder& f : report.folders) {
    if (f.path.empty()) continue;
    const std::string state = f.purpose == "data" ? (f.exists ? "found" : "not there")
                              : f.writable        ? "writable"
                                                  : "not writable";
    rows.push_back({f.purpose, fmt::format("{} ({}): {}", f.path.string(), f.from, state)});
  }
  std::string text = columns(rows) + "\n";
  if (report.findings.empty()) return text + "Nothing to mend.\n";
  for (const Finding& f : report.findings) {
    text += fmt::format("{}: {}\n", f.must_mend ? "mend" : "note", f.what);
    if (!f.mend.empty()) text += fmt::format("      {}\n", f.mend);
  }
  return text + (report.healthy() ? "Nothing that must be mended.\n" : "");
}

struct DoctorArguments {
  bool json = false, check = false;
};

}  // namespace

void add_doctor_command(CLI::App& app, Context& context) {
  auto arguments = std::make_shared<DoctorArguments>();
  CLI::App* command = app.add_subcommand("doctor", "Show what runs compute on, how fast it is, and what to mend");
  command->add_flag("--json", arguments->json, "print one JSON document");
  command->add_flag("--check", arguments->check, "exit status 4 if something must be mended");
  command->footer("Examples:\n  espalier doctor\n  espalier doctor --check && espalier train --preset mnist-ann");
  on_run(*command, context, [arguments, &context] {
    const Report report = examine(context);
    context.console.print(arguments->json ? to_json(report).dump(2) + "\n" : to_text(report));
    return arguments->check && !report.healthy() ? static_cast<int>(ErrorKind::check) : 0;
  });
}

}  // namespace espalier::cli
