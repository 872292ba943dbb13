#include "espalier/continual/accuracies.h"

#include <algorithm>

#include "espalier/core/error.h"

namespace espalier::continual {
namespace {

constexpr const char* kNoTask = "no task has been learnt";
constexpr const char* kOneTask = "it compares tasks, and one has been learnt";

Metric missing(std::int64_t after, std::int64_t task) {
  return {std::nullopt, fmt::format("the accuracy on task {} after {} task{} was not measured, or means nothing here",
                                    task + 1, after, after == 1 ? "" : "s")};
}

}  // namespace

void Accuracies::set(std::int64_t after, std::int64_t task, std::optional<double> accuracy) {
  ESPALIER_ASSERT(after >= 0 && after < static_cast<std::int64_t>(rows_.size()) && task >= 0);
  auto& row = rows_[static_cast<std::size_t>(after)];
  if (static_cast<std::int64_t>(row.size()) <= task) row.resize(static_cast<std::size_t>(task + 1));
  row[static_cast<std::size_t>(task)] = accuracy;
}

std::optional<double> Accuracies::at(std::int64_t after, std::int64_t task) const {
  if (after < 0 || after >= static_cast<std::int64_t>(rows_.size())) return std::nullopt;
  const auto& row = rows_[static_cast<std::size_t>(after)];
  if (task < 0 || task >= static_cast<std::int64_t>(row.size())) return std::nullopt;
  return row[static_cast<std::size_t>(task)];
}

std::int64_t Accuracies::tasks() const {
  std::size_t columns = 0;
  for (const auto& row : rows_) columns = std::max(columns, row.size());
  return static_cast<std::int64_t>(columns);
}

Metric Accuracies::average() const {
  if (learnt() < 1) return {std::nullopt, kNoTask};
  double sum = 0;
  for (std::int64_t j = 0; j < learnt(); ++j) {
    const auto r = at(learnt(), j);
    if (!r) return missing(learnt(), j);
    sum += *r;
  }
  return {sum / static_cast<double>(learnt()), ""};
}

Metric Accuracies::backward_transfer() const {
  if (learnt() < 2) return {std::nullopt, learnt() < 1 ? kNoTask : kOneTask};
  double sum = 0;
  for (std::int64_t j = 0; j + 1 < learnt(); ++j) {
    const auto now = at(learnt(), j), then = at(j + 1, j);
    if (!now) return missing(learnt(), j);
    if (!then) return missing(j + 1, j);
    sum += *now - *then;
  }
  return {sum / static_cast<double>(learnt() - 1), ""};
}

Metric Accuracies::forward_transfer() const {
  if (learnt() < 2) return {std::nullopt, learnt() < 1 ? kNoTask : kOneTask};
  double sum = 0;
  for (std::int64_t j = 1; j < learnt(); ++j) {
    const auto before = at(j, j), random = at(0, j);
    if (!before) return missing(j, j);
    if (!random) return missing(0, j);
    sum += *before - *random;
  }
  return {sum / static_cast<double>(learnt() - 1), ""};
}

Metric Accuracies::forgetting() const {
  if (learnt() < 2) return {std::nullopt, learnt() < 1 ? kNoTask : kOneTask};
  double sum = 0;
  for (std::int64_t j = 0; j + 1 < learnt(); ++j) {
    const auto now = at(learnt(), j);
    if (!now) return missing(learnt(), j);
    std::optional<double> best;
    for (std::int64_t l = j + 1; l < learnt(); ++l) {
      if (const auto r = at(l, j); r && (!best || *r > *best)) best = r;
    }
    if (!best) return missing(j + 1, j);
    sum += *best - *now;
  }
  return {sum / static_cast<double>(learnt() - 1), ""};
}

}  // namespace espalier::continual
