#include "espalier/continual/ewc.h"

#include <torch/torch.h>

#include <algorithm>

#include "espalier/core/error.h"
#include "espalier/core/random.h"

namespace espalier::continual {
namespace {

/// Undefined if there is none of this name.
at::Tensor find(const train::NamedTensors& tensors, const std::string& name) {
  for (const auto& [key, tensor] : tensors)
    if (key == name) return tensor;
  return {};
}

void add(train::NamedTensors& tensors, const std::string& name, const at::Tensor& value) {
  if (at::Tensor there = find(tensors, name); there.defined()) {
    there.add_(value);
  } else {
    tensors.emplace_back(name, value.clone());
  }
}

}  // namespace

train::NamedTensors fisher_information(nn::Network& network, const train::NamedTensors& parameters,
                                       const data::Loader& images, std::int64_t samples, std::uint64_t seed,
                                       std::int64_t task) {
  const bool training = network.is_training();
  network.eval();
  const std::int64_t n = std::min(samples, images.size());
  const auto chosen =
      random_subset(images.size(), n, RandomStream(seed, Purpose::task, static_cast<std::uint64_t>(task), 1));
  const RandomStream draw(seed, Purpose::task, static_cast<std::uint64_t>(task), 2);
  std::vector<at::Tensor> list, squares;
  for (const auto& [name, parameter] : parameters) {
    list.push_back(parameter);
    squares.push_back(torch::zeros_like(parameter, torch::TensorOptions().requires_grad(false)));
  }
  const std::int64_t batch_size = images.options().batch_size;
  data::Batch batch;
  std::int64_t loaded = -1;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t image = chosen[static_cast<std::size_t>(i)];
    if (image / batch_size != loaded) batch = images.batch(0, loaded = image / batch_size);
    const at::Tensor log_p = network.forward(batch.images.narrow(0, image % batch_size, 1)).log_softmax(1);
    const at::Tensor p = log_p.detach().exp().to(torch::kDouble).contiguous();
    double left = draw.uniform_at(static_cast<std::uint64_t>(i));
    std::int64_t label = 0;
    while (label + 1 < p.size(1) && left >= p.data_ptr<double>()[label]) left -= p.data_ptr<double>()[label++];
    const auto gradients = torch::autograd::grad({log_p.select(1, label).sum()}, list, {}, false, false, true);
    const torch::NoGradGuard no_grad;
    for (std::size_t k = 0; k < squares.size(); ++k) {
      if (gradients[k].defined()) squares[k].addcmul_(gradients[k], gradients[k], 1.0 / static_cast<double>(n));
    }
  }
  network.train(training);
  train::NamedTensors fisher;
  for (std::size_t k = 0; k < squares.size(); ++k) fisher.emplace_back(parameters[k].first, squares[k]);
  return fisher;
}

void anchor(train::NamedTensors& anchors, const train::NamedTensors& fisher, const train::NamedTensors& parameters) {
  const torch::NoGradGuard no_grad;
  ESPALIER_ASSERT(fisher.size() == parameters.size());
  for (std::size_t k = 0; k < fisher.size(); ++k) {
    add(anchors, fisher[k].first + ".fisher", fisher[k].second);
    add(anchors, fisher[k].first + ".pull", fisher[k].second * parameters[k].second.detach());
  }
}

void pull_back(const train::NamedTensors& anchors, const train::NamedTensors& parameters, double lambda) {
  const torch::NoGradGuard no_grad;
  for (const auto& [name, parameter] : parameters) {
    const at::Tensor fisher = find(anchors, name + ".fisher");
    if (!fisher.defined() || !parameter.grad().defined()) continue;
    at::Tensor gradient = parameter.grad();
    gradient.addcmul_(fisher, parameter.detach(), lambda).sub_(find(anchors, name + ".pull"), lambda);
  }
}

}  // namespace espalier::continual
