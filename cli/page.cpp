#include "page.h"

#include <fmt/format.h>

#include "espalier/core/version.h"
#include "espalier/report/page.h"

namespace espalier::cli {

std::string report_page(const std::vector<std::filesystem::path>& paths) {
  std::vector<report::Run> runs;
  for (const auto& path : paths)
    for (const auto& found : report::find_runs(path)) runs.push_back(report::read_run(found));
  const auto groups = report::group_runs(runs, /*each=*/false);
  return report::make_page(runs, groups, report::make_figures(runs, groups), fmt::format("espalier {}", version()));
}

}  // namespace espalier::cli
