#include "espalier/train/init_report.h"

#include <algorithm>

#include "espalier/core/error.h"
#include "espalier/methods/flow.h"
#include "espalier/methods/phew.h"
#include "espalier/methods/wired.h"

namespace espalier::train {
namespace {

/// Weights of a network of which no dense copy is made to measure its flow: 2 GiB in double precision.
constexpr std::int64_t kMostDense = std::int64_t{1} << 28;

InitLayer::Visits summary(const std::vector<std::int64_t>& visits) {
  InitLayer::Visits v;
  v.least = *std::min_element(visits.begin(), visits.end());
  v.most = *std::max_element(visits.begin(), visits.end());
  for (const auto n : visits) v.mean += static_cast<double>(n) / static_cast<double>(visits.size());
  return v;
}

}  // namespace

InitReport init_report(const RunConfig& config, const SparseModel& model) {
  const Sparsifier& sparsifier = *model.sparsifier;
  const Probe probe = make_probe(config, *model.network, {});
  MethodContext context;
  context.weights = sparsifier.sparsified();
  context.probe = &probe;
  std::vector<const SparseWeight*> all;
  std::int64_t dense = 0;
  for (const auto& w : sparsifier.weights()) {
    all.push_back(w.get());
    dense += w->numel();
    if (std::find(context.weights.begin(), context.weights.end(), w.get()) == context.weights.end()) {
      context.dense_weights.push_back(w.get());
    }
  }
  InitReport report;
  report.weights = sparsifier.positions();
  report.nnz = sparsifier.nnz();
  for (const SparseWeight* w : all) {
    InitLayer layer;
    layer.name = w->name();
    layer.shape = w->shape();
    layer.weights = w->numel();
    layer.nnz = w->nnz();
    layer.units = w->shape()[0];
    report.layers.push_back(layer);
  }
  const WiredNetwork wired = wire(context);
  const Connections connected = connections(wired);
  const auto* walker = dynamic_cast<const Phew*>(&sparsifier.method());
  if (walker != nullptr) report.walks = walker->walks().walks;
  for (std::size_t l = 0; l < wired.line.size(); ++l) {
    const auto at = std::find(all.begin(), all.end(), wired.line[l].weight) - all.begin();
    InitLayer& layer = report.layers[static_cast<std::size_t>(at)];
    layer.width = connected.widths[l];
    if (walker != nullptr && l < walker->walks().visits.size()) layer.visits = summary(walker->walks().visits[l]);
  }
  if (dense > kMostDense) {
    report.no_flow = fmt::format("a dense copy of {} weights is too large", dense);
    return report;
  }
  try {
    const NetworkFlow flow = network_flow(probe, all);
    report.has_flow = true;
    report.flow = flow.flow;
    report.trace = flow.trace;
    for (std::size_t l = 0; l < all.size(); ++l) {
      report.layers[l].flow = flow.layers[l].flow;
      report.layers[l].trace = flow.layers[l].trace;
    }
  } catch (const Error& e) {  // another kind of activation, or an overflow: the masks are none the worse
    report.no_flow = e.what();
  }
  return report;
}

Json to_json(const InitReport& report) {
  Json layers = Json::array();
  for (const InitLayer& l : report.layers) {
    Json row = {{"name", l.name}, {"shape", l.shape}, {"weights", l.weights}, {"nnz", l.nnz}, {"units", l.units}};
    row["width"] = l.width ? Json(*l.width) : Json(nullptr);
    if (l.visits) row["visits"] = {{"least", l.visits->least}, {"mean", l.visits->mean}, {"most", l.visits->most}};
    if (report.has_flow) {
      row["flow"] = l.flow;
      row["trace"] = l.trace;
    }
    layers.push_back(row);
  }
  Json out = {{"nnz", report.nnz}, {"weights", report.weights}};
  out["sparsity"] = 1 - static_cast<double>(report.nnz) / static_cast<double>(report.weights);
  if (report.walks) out["walks"] = *report.walks;
  out["flow"] = report.has_flow ? Json(report.flow) : Json(nullptr);
  out["trace"] = report.has_flow ? Json(report.trace) : Json(nullptr);
  out["layers"] = layers;
  return out;
}

}  // namespace espalier::train
