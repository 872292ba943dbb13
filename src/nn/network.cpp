#include "espalier/nn/network.h"

#include <torch/torch.h>

#include <algorithm>
#include <unordered_set>
#include <utility>

#include "espalier/core/error.h"
#include "espalier/nn/compressed_layer.h"

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

torch::Tensor Network::forward(const torch::Tensor& images) { return logits(images).plain(); }

torch::Tensor Network::forward(const torch::Tensor& images, const Observer& observer) {
  check_images(images, input_);
  return compute(images, observer ? Trace(observer) : Trace()).plain();
}

Activation Network::logits(const torch::Tensor& images) {
  check_images(images, input_);
  return compute(images, Trace());
}

Wiring Network::wiring() const {
  Wiring wiring{input_.channels, {}, {}};
  for (const auto& item : named_modules("", /*include_self=*/false)) {
    const auto own = item.value()->named_parameters(/*recurse=*/false);
    const at::Tensor* weight = own.find("weight");
    const bool compressed = own.find("values") != nullptr;  // of SparseLinear and its like
    if (compressed || (weight != nullptr && weight->dim() >= 2)) wiring.line.push_back(item.key());
  }
  return wiring;
}

std::vector<std::shared_ptr<CompressedWeight>> compressed_weights(const torch::nn::Module& network) {
  std::vector<std::shared_ptr<CompressedWeight>> list;
  for (const auto& module : network.modules(/*include_self=*/false)) {
    if (auto* sparse = module->as<CompressedLayer>()) list.push_back(sparse->weight());
  }
  return list;
}

std::vector<std::pair<std::string, torch::Tensor>> plain_parameters(const torch::nn::Module& network) {
  std::unordered_set<const void*> entries;
  for (const auto& weight : compressed_weights(network)) entries.insert(weight->values_impl());
  std::vector<std::pair<std::string, torch::Tensor>> list;
  for (const auto& item : network.named_parameters()) {
    if (entries.count(item.value().unsafeGetTensorImpl()) == 0) list.emplace_back(item.key(), item.value());
  }
  return list;
}

std::vector<LayerCost> layer_costs(Network& network) {
  const auto modules = network.named_modules("", /*include_self=*/false);
  const EvalScope eval(network);
  const torch::NoGradGuard no_grad;
  const auto parameters = network.parameters();
  const auto options = parameters.empty() ? torch::TensorOptions() : parameters.front().options();
  const InputShape input = network.input_shape();

  std::vector<LayerCost> costs;
  const auto positions_of = [](const torch::Tensor& images) { return images.size(-1) * images.size(-2); };
  const Network::Observer count = [&](const std::string& name, const torch::Tensor& output) {
    const auto* module = modules.find(name);
    if (module == nullptr) return;  // an activation or a pool
    LayerCost cost;
    at::IntArrayRef weight;
    std::int64_t positions = 0;  // outputs that share one row of the weight
    if (const auto* linear = (*module)->as<torch::nn::LinearImpl>()) {
      cost.kind = "linear";
      weight = linear->weight.sizes();
      positions = output.numel() / output.size(-1);
    } else if (const auto* conv = (*module)->as<torch::nn::Conv2dImpl>()) {
      cost.kind = "conv2d";
      weight = conv->weight.sizes();
      positions = positions_of(output);
    } else if (const auto* sparse = (*module)->as<CompressedLayer>()) {
      weight = sparse->weight()->shape();
      cost.kind = weight.size() == 4 ? "conv2d" : "linear";
      positions = weight.size() == 4 ? positions_of(output) : 1;
    } else {
      return;
    }
    cost.name = name;
    cost.weight_shape = weight.vec();
    cost.weights = c10::multiply_integers(weight);
    cost.macs = cost.weights * positions;
    cost.output_shape.assign(output.sizes().begin() + 1, output.sizes().end());
    costs.push_back(std::move(cost));
  };
  network.forward(torch::zeros({1, input.channels, input.height, input.width}, options.requires_grad(false)), count);
  for (const auto& item : modules) {
    const bool has_weight = item.value()->as<torch::nn::LinearImpl>() || item.value()->as<torch::nn::Conv2dImpl>() ||
                            item.value()->as<CompressedLayer>();
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
