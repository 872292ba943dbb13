#include "espalier/methods/saliency.h"

#include <torch/torch.h>

#include <algorithm>

#include "espalier/core/error.h"

namespace espalier {
namespace {

/// The network in training mode but for dropout, and the weights that are asked for.
struct Scored {
  Scored(const Probe& probe, const std::vector<std::string>& names) : network(probe.network()), loss(probe.loss) {
    network.module->train();
    for (const auto& child : network.module->modules()) {
      if (child->as<torch::nn::DropoutImpl>() || child->as<torch::nn::Dropout2dImpl>()) child->eval();
    }
    const auto parameters = network.module->named_parameters();
    for (const std::string& name : names) {
      const at::Tensor* parameter = parameters.find(name);
      ESPALIER_CHECK(parameter != nullptr, ErrorKind::usage, "the probe's network has no weight \"{}\"", name);
      weights.push_back(*parameter);
    }
    if (!loss)
      loss = [](const at::Tensor& logits, const at::Tensor& labels) {
        return torch::cross_entropy_loss(logits, labels);
      };
  }

  /// dL/dw of one batch; with a graph for a second derivative where `again` says so.
  std::vector<at::Tensor> gradients(const ProbeBatch& batch, double temperature, bool again) const {
    const at::Tensor l = loss(network.forward(batch.inputs) / temperature, batch.labels);
    ESPALIER_CHECK(l.isfinite().item<bool>(), ErrorKind::diverged,
                   "the loss of a batch before training is {}: the weights of step 0 are unfit to score",
                   l.item<double>());
    auto g = torch::autograd::grad({l}, weights, {}, again, again, /*allow_unused=*/true);
    for (std::size_t i = 0; i < g.size(); ++i)
      if (!g[i].defined()) g[i] = torch::zeros_like(weights[i]);
    return g;
  }

  ProbeNetwork network;
  std::function<at::Tensor(const at::Tensor&, const at::Tensor&)> loss;
  std::vector<at::Tensor> weights;
};

void add_share(std::vector<at::Tensor>& sum, const std::vector<at::Tensor>& g, double share) {
  for (std::size_t i = 0; i < g.size(); ++i) {
    const at::Tensor part = g[i].detach() * share;
    if (sum.size() <= i)
      sum.push_back(part);
    else
      sum[i] += part;
  }
}

/// What each batch weighs in the mean over all samples.
std::vector<double> shares(const std::vector<ProbeBatch>& batches) {
  std::int64_t samples = 0;
  for (const auto& b : batches) samples += b.inputs.size(0);
  std::vector<double> list;
  for (const auto& b : batches) list.push_back(static_cast<double>(b.inputs.size(0)) / static_cast<double>(samples));
  return list;
}

at::Tensor flat(const at::Tensor& score) { return score.detach().to(torch::kDouble).flatten(); }

}  // namespace

std::vector<at::Tensor> snip_scores(const Probe& probe, const std::vector<std::string>& weights,
                                    const std::vector<ProbeBatch>& batches) {
  const Scored scored(probe, weights);
  const auto share = shares(batches);
  std::vector<at::Tensor> gradient;
  for (std::size_t b = 0; b < batches.size(); ++b) {
    add_share(gradient, scored.gradients(batches[b], 1, false), share[b]);
  }
  std::vector<at::Tensor> scores;
  for (std::size_t l = 0; l < gradient.size(); ++l) scores.push_back(flat(scored.weights[l] * gradient[l]).abs());
  return scores;
}

std::vector<at::Tensor> grasp_scores(const Probe& probe, const std::vector<std::string>& weights,
                                     const std::vector<ProbeBatch>& batches, double temperature) {
  const Scored scored(probe, weights);
  const auto share = shares(batches);
  std::vector<at::Tensor> gradient;
  for (std::size_t b = 0; b < batches.size(); ++b) {
    add_share(gradient, scored.gradients(batches[b], temperature, false), share[b]);
  }
  std::vector<at::Tensor> product;  // H g = d(stop(g) . g(w))/dw
  for (std::size_t b = 0; b < batches.size(); ++b) {
    const auto g = scored.gradients(batches[b], temperature, true);
    at::Tensor dot = torch::zeros({}, g[0].options().requires_grad(false));
    for (std::size_t l = 0; l < g.size(); ++l) dot = dot + (gradient[l] * g[l]).sum();
    ESPALIER_CHECK(dot.requires_grad(), ErrorKind::usage,
                   "grasp: the gradient of the loss does not depend on the weights: there is no curvature to score");
    auto second = torch::autograd::grad({dot}, scored.weights, {}, false, false, /*allow_unused=*/true);
    for (std::size_t l = 0; l < second.size(); ++l)
      if (!second[l].defined()) second[l] = torch::zeros_like(scored.weights[l]);
    add_share(product, second, share[b]);
  }
  std::vector<at::Tensor> scores;
  for (std::size_t l = 0; l < product.size(); ++l) scores.push_back(flat(scored.weights[l] * product[l]));
  return scores;
}

std::vector<ProbeBatch> split(const ProbeBatch& batch, std::int64_t parts) {
  parts = std::clamp<std::int64_t>(parts, 1, batch.inputs.size(0));
  const auto inputs = batch.inputs.tensor_split(parts), labels = batch.labels.tensor_split(parts);
  std::vector<ProbeBatch> list;
  for (std::size_t p = 0; p < inputs.size(); ++p) list.push_back({inputs[p], labels[p]});
  return list;
}

}  // namespace espalier
