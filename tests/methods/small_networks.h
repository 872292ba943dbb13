// Small networks for the tests of pruning at initialisation, and probes of them.
#pragma once

#include <torch/torch.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "espalier/core/error.h"
#include "espalier/methods/probe.h"

namespace espalier {

/// Linear and convolution layers one after the other with ReLU between, flattened before the first linear one.
struct Chain : torch::nn::Module {
  explicit Chain(const std::vector<torch::nn::AnyModule>& given) : layers(given) {
    for (std::size_t l = 0; l < layers.size(); ++l) {
      register_module("l" + std::to_string(l + 1), layers[l].ptr());
    }
  }
  at::Tensor forward(at::Tensor x) {
    for (std::size_t l = 0; l < layers.size(); ++l) {
      if (l > 0) x = torch::relu(x);
      const bool linear = layers[l].ptr()->as<torch::nn::Linear>() != nullptr;
      x = layers[l].forward(linear ? x.flatten(1) : x);
    }
    return x;
  }
  std::shared_ptr<Chain> copy() const {
    std::vector<torch::nn::AnyModule> copies;
    for (const auto& layer : layers) copies.push_back(layer.clone());
    return std::make_shared<Chain>(copies);
  }
  std::vector<torch::nn::AnyModule> layers;
};

inline torch::nn::AnyModule linear(std::int64_t in, std::int64_t out, bool bias = false) {
  return torch::nn::AnyModule(torch::nn::Linear(torch::nn::LinearOptions(in, out).bias(bias)));
}
inline torch::nn::AnyModule conv(std::int64_t in, std::int64_t out, std::int64_t kernel, bool bias = false,
                                 std::int64_t groups = 1) {
  return torch::nn::AnyModule(
      torch::nn::Conv2d(torch::nn::Conv2dOptions(in, out, kernel).padding(kernel / 2).bias(bias).groups(groups)));
}

/// The hand net of the tests: 2-2-1 without biases, W1 = [[1, 2], [3, 4]], W2 = [[5, 6]], in double precision.
inline std::shared_ptr<Chain> hand_net(bool biases = false) {
  auto net = std::make_shared<Chain>(std::vector<torch::nn::AnyModule>{linear(2, 2, biases), linear(2, 1, biases)});
  net->to(torch::kDouble);
  const torch::NoGradGuard no_grad;
  auto p = net->named_parameters();
  p["l1.weight"].copy_(torch::tensor({{1.0, 2.0}, {3.0, 4.0}}));
  p["l2.weight"].copy_(torch::tensor({{5.0, 6.0}}));
  if (biases) {
    p["l1.bias"].fill_(1);
    p["l2.bias"].fill_(2);
  }
  return net;
}

/// A probe that hands out copies of `net`; inputs of shape `input`.
inline Probe probe_of(const std::shared_ptr<Chain>& net, std::vector<std::int64_t> input) {
  Probe probe;
  probe.network = [net] {
    auto copy = net->copy();
    return ProbeNetwork{copy, [copy](const at::Tensor& x) { return copy->forward(x); }};
  };
  probe.wiring.channels = input.at(0);
  for (std::size_t l = 0; l < net->layers.size(); ++l) probe.wiring.line.push_back("l" + std::to_string(l + 1));
  probe.input = std::move(input);
  return probe;
}

template <class F>
std::string message_of(const F& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

}  // namespace espalier
