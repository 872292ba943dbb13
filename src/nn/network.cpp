#include "espalier/nn/network.h"

#include <torch/torch.h>

#include <algorithm>
#include <utility>

#include "espalier/core/error.h"

namespace espalier::nn {
namespace {

/// Evaluation mode for a scope; afterwards every module has its own flag back (a user may have frozen some).
/// Without the network itself in the lists of modules: it may live on the stack.
class EvalScope {
 public:
  explicit EvalScope(torch::nn::Module& network) : network_(network), training_(network.is_training()) {
    for (auto& module : network.modules(/*include_self=*/false)) flags_.emplace_back(module, module->is_training());
    network.eval();
  }
  ~EvalScope() {
    // Parents come first, and train() descends: children then correct it.
    network_.train(training_);
    for (auto& [module, training] : flags_) module->train(training);
  }
  EvalScope(const EvalScope&) = delete;
  EvalScope& operator=(const EvalScope&) = delete;

 private:
  torch::nn::Module& network_;
  bool training_;
  std::vector<std::pair<std::shared_ptr<torch::nn::Module>, bool>> flags_;
};

void check_images(const torch::Tensor& images, const InputShape& s) {
  ESPALIER_CHECK(
      images.dim() == 4 && images.size(1) == s.channels && images.size(2) == s.height && images.size(3) == s.width,
      ErrorKind::usage, "network: images are [{}], expected [N, {}, {}, {}]", fmt::join(images.sizes(), ", "),
      s.channels, s.height, s.width);
}

}  // namespace

std::string InputShape::text() const { return fmt::format("{}x{}x{}", channels, height, width); }

torch::Tensor Network::forward(const torch::Tensor& images) {
  check_images(images, input_);
  return compute(images, Trace());
}

torch::Tensor Network::forward(const torch::Tensor& images, const Observer& observer) {
  check_images(images, input_);
  return compute(images, observer ? Trace(observer) : Trace());
}

std::vector<LayerCost> layer_costs(Network& network) {
  const auto modules = network.named_modules("", /*include_self=*/false);
  const EvalScope eval(network);
  const torch::NoGradGuard no_grad;
  const auto parameters = network.parameters();
  const auto options = parameters.empty() ? torch::TensorOptions() : parameters.front().options();
  const InputShape input = network.input_shape();

  std::vector<LayerCost> costs;
  const Network::Observer count = [&](const std::string& name, const torch::Tensor& output) {
    const auto* module = modules.find(name);
    if (module == nullptr) return;  // an activation or a pool
    LayerCost cost;
    const torch::Tensor* weight = nullptr;
    std::int64_t positions = 0;  // outputs that share one row of the weight
    if (const auto* linear = (*module)->as<torch::nn::LinearImpl>()) {
      cost.kind = "linear";
      weight = &linear->weight;
      positions = output.numel() / output.size(-1);
    } else if (const auto* conv = (*module)->as<torch::nn::Conv2dImpl>()) {
      cost.kind = "conv2d";
      weight = &conv->weight;
      positions = output.size(-1) * output.size(-2);
    } else {
      return;
    }
    cost.name = name;
    cost.weight_shape = weight->sizes().vec();
    cost.weights = weight->numel();
    cost.macs = cost.weights * positions;
    cost.output_shape.assign(output.sizes().begin() + 1, output.sizes().end());
    costs.push_back(std::move(cost));
  };
  network.forward(torch::zeros({1, input.channels, input.height, input.width}, options.requires_grad(false)), count);
  for (const auto& item : modules) {
    const bool has_weight = item.value()->as<torch::nn::LinearImpl>() || item.value()->as<torch::nn::Conv2dImpl>();
    const bool counted =
        std::any_of(costs.begin(), costs.end(), [&](const LayerCost& c) { return c.name == item.key(); });
    ESPALIER_CHECK(
        counted || !has_weight, ErrorKind::failed,
        "layer_costs: the network has a layer \"{}\" but does not hand its output to the trace under this name",
        item.key());
  }
  return costs;
}

}  // namespace espalier::nn
