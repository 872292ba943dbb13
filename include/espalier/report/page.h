/// The page of espalier report: one HTML file that needs nothing beside it.
#pragma once

#include <string>
#include <vector>

#include "espalier/report/figure.h"

namespace espalier::report {

/// HTML with facts, figures, tables, configuration and environment. What comes from runs is text in it, never markup,
/// and a policy in the page keeps it from asking for anything outside.
std::string make_page(const std::vector<Run>& runs, const std::vector<RunGroup>& groups,
                      const std::vector<Figure>& figures, const std::string& program);

/// Whether this program was built with what draws; without it pages have the tables alone.
bool can_draw();

/// Files that node needs to draw one figure: by path in a folder of its own, render.cjs first.
std::vector<std::pair<std::string, std::string>> renderer_files();

/// "<b>" as "&lt;b&gt;", for text and for attributes in double quotes; bytes that are not UTF-8 as U+FFFD.
std::string escape(const std::string& text);

/// The numbers of every group side by side: accuracy, sparsity, weights, bytes, operations, time, memory. Of several
/// seeds the mean and the half width of its 95 % interval; beside a baseline, the ratio to it.
Table facts(const std::vector<Run>& runs, const std::vector<RunGroup>& groups);

}  // namespace espalier::report
