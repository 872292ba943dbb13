#include "espalier/methods/wired.h"

#include <torch/torch.h>

#include <algorithm>
#include <map>
#include <set>

#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/methods/probe.h"

namespace espalier {
namespace {

std::string shape_text(const SparseWeight& w) { return fmt::format("{}", fmt::join(w.shape(), "x")); }

/// The layer whose inputs are `units` units of the layer before it (0: unknown, the first without a wiring).
WiredLayer layer_after(const SparseWeight& w, std::int64_t units, const std::string& before) {
  WiredLayer layer;
  layer.weight = &w;
  layer.outputs = w.shape().at(0);
  const std::int64_t fan = w.shape().at(1);
  layer.kernel = w.numel() / (layer.outputs * fan);
  const bool image = w.shape().size() > 2;
  layer.inputs = image && units > 0 ? units : fan;
  const bool fits =
      image ? layer.inputs % fan == 0 && layer.outputs % (layer.inputs / fan) == 0 : units == 0 || fan % units == 0;
  ESPALIER_CHECK(
      fits, ErrorKind::usage,
      "{} [{}] cannot read the {} units of {}: the weight layers do not follow each other as wired; give the "
      "network's own wiring (Probe::wiring)",
      w.name(), shape_text(w), units, before);
  if (image)
    layer.groups = layer.inputs / fan;
  else if (units > 0)
    layer.spread = fan / units;
  return layer;
}

/// Units from which, or to which, a kept weight leads, as flags.
using Units = std::vector<char>;

/// For each kept weight between an input unit and an output unit: f(input, output).
template <class F>
void for_each_connection(const WiredLayer& layer, const F& f) {
  const at::Tensor active = layer.weight->active();
  const auto* position = active.data_ptr<std::int64_t>();
  const std::int64_t fan = layer.inputs / layer.groups, outputs = layer.outputs / layer.groups;
  for (std::int64_t k = 0; k < active.numel(); ++k) {
    const std::int64_t pair = position[k] / layer.kernel;
    const std::int64_t output = pair / fan;
    f(output / outputs * fan + pair % fan, output);
  }
}

/// Outputs that kept weights reach from these units of the layer before.
Units reached(const WiredLayer& layer, const Units& before) {
  Units after(static_cast<std::size_t>(layer.outputs), 0);
  for_each_connection(layer, [&](std::int64_t in, std::int64_t out) {
    if (before[static_cast<std::size_t>(in / layer.spread)] != 0) after[static_cast<std::size_t>(out)] = 1;
  });
  return after;
}

void add(Units& to, const Units& from) {
  for (std::size_t i = 0; i < to.size(); ++i) to[i] = static_cast<char>(to[i] | from[i]);
}

}  // namespace

WiredNetwork wire(const MethodContext& context) {
  std::map<std::string, const SparseWeight*> by_name;
  std::vector<const SparseWeight*> all(context.dense_weights);
  all.insert(all.end(), context.weights.begin(), context.weights.end());
  std::sort(all.begin(), all.end(), [](const auto* a, const auto* b) { return a->layer() < b->layer(); });
  nn::Wiring wiring;
  for (const SparseWeight* w : all) {
    const std::string suffix = ".weight";
    const bool named = w->name().size() > suffix.size();
    const std::string layer = named ? w->name().substr(0, w->name().size() - suffix.size()) : w->name();
    by_name[layer] = w;
    wiring.line.push_back(layer);
  }
  if (context.probe != nullptr) wiring = context.probe->wiring;

  const auto weight_of = [&](const std::string& layer) -> const SparseWeight& {
    const auto at = by_name.find(layer);
    ESPALIER_CHECK(at != by_name.end(), ErrorKind::usage,
                   "the wiring names a layer \"{}\" whose weight the model does not have", layer);
    return *at->second;
  };
  WiredNetwork network;
  std::int64_t units = wiring.channels;
  std::string before = "the input";
  for (const std::string& name : wiring.line) {
    network.line.push_back(layer_after(weight_of(name), units, before));
    units = network.line.back().outputs;
    before = name;
  }
  for (const auto& bypass : wiring.bypasses) {
    ESPALIER_CHECK(bypass.first <= bypass.last && bypass.last < network.line.size() && bypass.first > 0,
                   ErrorKind::usage, "a bypass of the wiring goes around layers {} to {} of {}", bypass.first,
                   bypass.last, network.line.size());
    const std::int64_t from = network.line[bypass.first - 1].outputs, to = network.line[bypass.last].outputs;
    WiredBypass wired{bypass.first, bypass.last, std::nullopt};
    if (!bypass.layer.empty()) {
      wired.through = layer_after(weight_of(bypass.layer), from, wiring.line[bypass.first - 1]);
    }
    ESPALIER_CHECK((wired.through ? wired.through->outputs : from) == to, ErrorKind::usage,
                   "the bypass around {} gives {} units where {} are added to", wiring.line[bypass.last],
                   wired.through ? wired.through->outputs : from, to);
    network.bypasses.push_back(std::move(wired));
  }
  return network;
}

Connections connections(const WiredNetwork& network) {
  Connections result;
  const std::size_t layers = network.line.size();
  // Outputs of each layer that a kept weight comes into, and those that one goes out of.
  std::vector<Units> in(layers), out(layers);
  for (std::size_t l = 0; l < layers; ++l) {
    in[l].assign(static_cast<std::size_t>(network.line[l].outputs), 0);
    out[l].assign(in[l].size(), l + 1 == layers);
  }
  const auto count = [&](const WiredLayer& layer, std::size_t from, std::size_t to) {
    for_each_connection(layer, [&](std::int64_t i, std::int64_t o) {
      in[to][static_cast<std::size_t>(o)] = 1;
      if (from < layers) out[from][static_cast<std::size_t>(i / layer.spread)] = 1;
    });
  };
  for (std::size_t l = 0; l < layers; ++l) count(network.line[l], l == 0 ? layers : l - 1, l);
  for (const auto& bypass : network.bypasses) {
    if (bypass.through) count(*bypass.through, bypass.first - 1, bypass.last);
  }
  for (std::size_t l = 0; l < layers; ++l) {
    std::int64_t width = 0;
    for (std::size_t u = 0; u < in[l].size(); ++u) width += in[l][u] != 0 && out[l][u] != 0;
    result.widths.push_back(width);
  }

  std::vector<Units> alive(layers);
  result.cut_at = 0;
  Units units(layers == 0 ? 0 : static_cast<std::size_t>(network.line[0].inputs / network.line[0].spread), 1);
  for (std::size_t l = 0; l < layers; ++l) {
    units = reached(network.line[l], units);
    for (const auto& bypass : network.bypasses) {
      if (bypass.last != l) continue;
      const Units& from = alive[bypass.first - 1];
      add(units, bypass.through ? reached(*bypass.through, from) : from);
    }
    // Beyond a bypass units may live again: where the line is cut is after the last that anything reaches.
    if (std::any_of(units.begin(), units.end(), [](char u) { return u != 0; })) result.cut_at = l + 1;
    alive[l] = units;
  }
  result.unreached = std::count(units.begin(), units.end(), 0);
  result.connected = *result.cut_at == layers;
  if (result.connected) result.cut_at.reset();
  return result;
}

void refuse_if_cut(const MethodContext& context) {
  const WiredNetwork network = wire(context);
  const Connections c = connections(network);
  if (c.connected) {
    if (c.unreached > 0) {
      log_warning(
          fmt::format("no path of kept weights leads to {} of the {} outputs: the network cannot tell them apart",
                      c.unreached, network.line.back().outputs));
    }
    return;
  }
  const SparseWeight& w = *network.line[*c.cut_at].weight;
  fail(ErrorKind::usage,
       "the network is cut: no path of kept weights leads from the input through {} ({} of {} weights kept); lower "
       "[sparsity].sparsity, list the layer in [sparsity].dense_layers, or take a method that keeps paths (phew, "
       "synflow)",
       w.name(), w.nnz(), w.numel());
}

}  // namespace espalier
