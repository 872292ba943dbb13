/// Serves runs to a browser on this machine: read-only, GET only, 127.0.0.1 only.
#pragma once

#include <atomic>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace espalier::cli {

struct LiveServerOptions {
  std::vector<std::filesystem::path> runs;
  int port = 0;  ///< 0: any free one
  /// What a browser shows at / and at /report; called for each request, one at a time.
  std::function<std::string()> page, report;
  /// Told the address, once the port is open: "http://127.0.0.1:6007/".
  std::function<void(const std::string& url)> ready;
};

/// Serves until `stop` is set.
///   /                            where the runs stand, loading itself again
///   /report                      the page of espalier report, as of now
///   /api/runs                    where each run stands: what `espalier watch --json` prints
///   /api/runs/N/FILE             a file of run N: metrics.jsonl, timing.jsonl, weights.jsonl, summary.json,
///                                config.toml, env.json; ?from=BYTES begins there
/// Requests that name another host than 127.0.0.1 or localhost are refused: a page elsewhere, whose name was made to
/// point here, can't read runs. Throws Error(usage) if the port is taken.
void serve_runs(const LiveServerOptions& options, const std::atomic<bool>& stop);

}  // namespace espalier::cli
