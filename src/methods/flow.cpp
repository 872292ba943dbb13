#include "espalier/methods/flow.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>

#include "espalier/core/error.h"

namespace espalier {
namespace {

/// Running mean 0 and variance 1 - eps, scale 1, shift 0: the normalisation divides by exactly sqrt(1).
template <class Norm>
void make_identity(Norm& norm) {
  ESPALIER_CHECK(norm.running_var.defined(), ErrorKind::usage,
                 "a batch norm without running statistics is not a linear function: no flow along paths");
  norm.running_mean.zero_();
  norm.running_var.fill_(1 - norm.options.eps());
  if (!norm.weight.defined()) return;
  norm.weight.fill_(1);
  norm.bias.zero_();
}

bool is_bias(const std::string& name) {
  return name == "bias" || (name.size() > 5 && name.compare(name.size() - 5, 5, ".bias") == 0);
}

}  // namespace

FlowNetwork::FlowNetwork(const Probe& probe, const std::vector<std::string>& weights, bool biases, int power)
    : network_(probe.network()), input_(probe.input) {
  const torch::NoGradGuard no_grad;
  torch::nn::Module& module = *network_.module;
  module.to(torch::kDouble);
  module.eval();
  for (auto& item : module.named_parameters()) {
    if (!is_bias(item.key())) continue;
    if (biases) {
      item.value().abs_().pow_(power);
      biases_.push_back(item.value());
    } else {
      item.value().zero_();
    }
  }
  for (const auto& child : module.modules()) {
    if (auto* norm2 = child->as<torch::nn::BatchNorm2dImpl>()) make_identity(*norm2);
    if (auto* norm1 = child->as<torch::nn::BatchNorm1dImpl>()) make_identity(*norm1);
  }
  const auto parameters = module.named_parameters();
  for (const std::string& name : weights) {
    const at::Tensor* parameter = parameters.find(name);
    ESPALIER_CHECK(parameter != nullptr, ErrorKind::usage, "the probe's network has no weight \"{}\"", name);
    weights_.push_back(*parameter);
  }
}

void FlowNetwork::set(const std::string& weight, const at::Tensor& magnitude) {
  const torch::NoGradGuard no_grad;
  network_.module->named_parameters()[weight].copy_(magnitude);
}

PathFlow FlowNetwork::operator()(const std::vector<at::Tensor>& magnitudes) {
  ESPALIER_ASSERT(magnitudes.size() == weights_.size());
  {
    const torch::NoGradGuard no_grad;
    for (std::size_t l = 0; l < weights_.size(); ++l) weights_[l].copy_(magnitudes[l]);
  }
  std::vector<std::int64_t> shape = input_;
  shape.insert(shape.begin(), 1);
  const at::Tensor ones = torch::ones(shape, torch::kDouble);
  const at::Tensor r = network_.forward(ones).sum();
  PathFlow flow;
  flow.total = r.item<double>();
  ESPALIER_CHECK(
      std::isfinite(flow.total), ErrorKind::diverged,
      "the flow through the network is {} even in double precision: weights are too large, or the network too "
      "deep, for scores along whole paths; begin with smaller weights ([model].init)",
      flow.total);
  std::vector<at::Tensor> wanted(weights_);
  wanted.insert(wanted.end(), biases_.begin(), biases_.end());
  auto gradients = torch::autograd::grad({r}, wanted, {}, false, false, /*allow_unused=*/true);
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    at::Tensor g = gradients[i].defined() ? gradients[i].detach() : torch::zeros_like(wanted[i]).detach();
    if (i < weights_.size())
      flow.gradients.push_back(g);
    else
      flow.of_biases.push_back(g * wanted[i].detach());
  }
  if (!checked_ && biases_.empty()) {
    // A linear function of the input doubles with it; tanh, sigmoid and their like do not.
    const torch::NoGradGuard no_grad;
    const double twice = network_.forward(2 * ones).sum().item<double>();
    ESPALIER_CHECK(
        std::abs(twice - 2 * flow.total) <= 1e-9 * std::abs(flow.total), ErrorKind::usage,
        "the network is no linear function of positive inputs (R({}) = {} where R(1) = {}): flow along paths "
        "is defined for ReLU, pools and linear layers, not for tanh, sigmoid, gelu or silu",
        2, twice, flow.total);
    checked_ = true;
  }
  return flow;
}

at::Tensor magnitude(const SparseWeight& weight, int power) {
  const torch::NoGradGuard no_grad;
  at::Tensor flat = torch::zeros({weight.numel()}, torch::kDouble);
  flat.index_copy_(0, weight.active(), weight.weights().to(torch::kDouble).abs().pow(power));
  return flat.view(weight.shape());
}

NetworkFlow network_flow(const Probe& probe, const std::vector<const SparseWeight*>& weights) {
  std::vector<std::string> names;
  for (const SparseWeight* w : weights) names.push_back(w->name());
  NetworkFlow result;
  for (const SparseWeight* w : weights) result.layers.push_back({w->name()});
  FlowNetwork network(probe, names);
  for (const int power : {1, 2}) {
    std::vector<at::Tensor> magnitudes;
    for (const SparseWeight* w : weights) magnitudes.push_back(magnitude(*w, power));
    const PathFlow flow = network(magnitudes);
    if (power == 1) result.flow = flow.total;
    for (std::size_t l = 0; l < weights.size(); ++l) {
      if (power == 1) {
        result.layers[l].flow = (magnitudes[l] * flow.gradients[l]).sum().item<double>();
      } else {
        // A weight that is not there is on no path, though R would change with it.
        const at::Tensor kept = flow.gradients[l].flatten().index_select(0, weights[l]->active());
        result.layers[l].trace = kept.sum().item<double>();
        result.trace += result.layers[l].trace;
      }
    }
  }
  return result;
}

at::Tensor path_kernel(const std::vector<at::Tensor>& chain) {
  constexpr std::size_t kMostPaths = 4096;
  struct Path {
    std::vector<std::int64_t> weights;  // numbers over all layers
    std::vector<double> values;
    std::int64_t end = 0;
  };
  std::vector<Path> paths;
  std::int64_t first = 0;  // number of a layer's first weight
  for (std::size_t l = 0; l < chain.size(); ++l) {
    const at::Tensor w = chain[l].detach().to(torch::kDouble).contiguous();
    const auto* values = w.data_ptr<double>();
    std::vector<Path> longer;
    for (std::int64_t out = 0; out < w.size(0); ++out) {
      for (std::int64_t in = 0; in < w.size(1); ++in) {
        const std::int64_t k = out * w.size(1) + in;
        if (values[k] == 0) continue;
        if (l == 0) {
          longer.push_back({{first + k}, {values[k]}, out});
        } else {
          for (const Path& path : paths) {
            if (path.end != in) continue;
            longer.push_back(path);
            longer.back().weights.push_back(first + k);
            longer.back().values.push_back(values[k]);
            longer.back().end = out;
          }
        }
        ESPALIER_CHECK(longer.size() <= kMostPaths, ErrorKind::usage,
                       "path_kernel: more than {} paths; network_flow gives the trace of any network", kMostPaths);
      }
    }
    paths = std::move(longer);
    first += w.numel();
  }
  const auto n = static_cast<std::int64_t>(paths.size());
  at::Tensor jacobian = torch::zeros({n, first}, torch::kDouble);  // d pi_p / d w_k
  for (std::int64_t p = 0; p < n; ++p) {
    const Path& path = paths[static_cast<std::size_t>(p)];
    for (std::size_t k = 0; k < path.weights.size(); ++k) {
      double others = 1;
      for (std::size_t o = 0; o < path.values.size(); ++o) others *= o == k ? 1 : path.values[o];
      jacobian[p][path.weights[k]] = others;
    }
  }
  return jacobian.matmul(jacobian.t());
}

}  // namespace espalier
