#include "espalier/train/weight_record.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace espalier::train {
namespace {

template <class Float>
void add_distribution(Json& row, const Float* w, std::int64_t n) {
  double sum = 0, sum_abs = 0;
  Float largest = 0;
  std::int64_t near_zero = 0, finite = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const Float size = std::abs(w[i]);
    if (!std::isfinite(size)) continue;
    ++finite;
    sum += static_cast<double>(w[i]);
    sum_abs += static_cast<double>(size);
    largest = std::max(largest, size);
    near_zero += static_cast<double>(size) < kNearZero ? 1 : 0;
  }
  const auto count = static_cast<double>(finite);
  row["mean"] = finite == 0 ? Json(nullptr) : Json(sum / count);
  row["mean_abs"] = finite == 0 ? Json(nullptr) : Json(sum_abs / count);
  row["near_zero"] = near_zero;
  if (finite < n) row["not_finite"] = n - finite;
  if (finite == 0) return;

  // frexp: sqrt(largest) = f 2^scale with f in [0.5, 1), so all of them are inside (-2^scale, 2^scale).
  int scale = 0;
  if (largest > 0) std::frexp(std::sqrt(static_cast<double>(largest)), &scale);
  const double bins_per_unit = std::ldexp(static_cast<double>(kHistogramBins) / 2, -scale);
  std::vector<std::int64_t> counts(kHistogramBins);
  for (std::int64_t i = 0; i < n; ++i) {
    const auto value = static_cast<double>(w[i]);
    if (!std::isfinite(value)) continue;
    // Its floor, without the call that std::floor is where SSE4.1 can't be taken for granted, and without a branch on a
    // sign that nobody can predict.
    const double place = std::copysign(std::sqrt(std::abs(value)), value) * bins_per_unit;
    const auto whole = static_cast<std::int64_t>(place);
    const std::int64_t bin = whole - static_cast<std::int64_t>(static_cast<double>(whole) > place);
    ++counts[static_cast<std::size_t>(bin + kHistogramBins / 2)];
  }
  const auto full = [](std::int64_t c) { return c != 0; };
  const auto first = std::find_if(counts.begin(), counts.end(), full);
  const auto last = std::find_if(counts.rbegin(), counts.rend(), full).base();
  row["scale"] = scale;
  row["first"] = first - counts.begin();
  row["counts"] = std::vector<std::int64_t>(first, last);
}

}  // namespace

Json weight_record(const Sparsifier& sparsifier) {
  Json layers = Json::array();
  for (const auto& weight : sparsifier.weights()) {
    Json row = {{"name", weight->name()}, {"shape", weight->shape()}, {"nnz", weight->nnz()}};
    const at::Tensor w = weight->weights().contiguous();
    AT_DISPATCH_FLOATING_TYPES(w.scalar_type(), "weight_record",
                               [&] { add_distribution(row, w.data_ptr<scalar_t>(), w.numel()); });
    layers.push_back(std::move(row));
  }
  return {{"layers", layers}};
}

bool weight_record_due(std::int64_t step, std::int64_t total_steps) {
  constexpr std::int64_t kRecords = 48, kApart = 200;
  const std::int64_t every = std::max(kApart, (total_steps + kRecords - 1) / kRecords);
  return step % every == 0 || step == total_steps;
}

}  // namespace espalier::train
