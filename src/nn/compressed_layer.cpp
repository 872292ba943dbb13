#include "espalier/nn/compressed_layer.h"

#include <fmt/format.h>
#include <torch/torch.h>

#include <limits>

#include "espalier/core/error.h"
#include "espalier/nn/init.h"

namespace espalier::nn {

CompressedLayer::CompressedLayer(const char* kind, std::shared_ptr<CompressedWeight> weight, bool with_bias)
    : torch::nn::Module(kind), weight_(std::move(weight)) {
  // The parameter keeps its TensorImpl while entries come and go.
  register_parameter("values", weight_->parameter());
  if (with_bias) bias = register_parameter("bias", torch::zeros({weight_->shape()[0]}, weight_->stored_type()));
  const at::Tensor seed = torch::randint(std::numeric_limits<std::int64_t>::max(), {}, torch::kInt64);
  initialize(*this, "torch-default", static_cast<std::uint64_t>(seed.item<std::int64_t>()));
}

std::shared_ptr<torch::nn::Module> CompressedLayer::clone(const c10::optional<at::Device>& device) const {
  ESPALIER_CHECK(!device || device->is_cpu(), ErrorKind::usage, "{}: cannot be cloned to {}: it computes on the CPU",
                 name(), device->str());
  const torch::NoGradGuard no_grad;
  const KeepDefaultGenerator untouched;
  const auto copy = another();
  copy->weight_->copy_from(*weight_);
  const auto values_of = [](const CompressedLayer& layer) { return layer.named_parameters(false)["values"]; };
  values_of(*copy).set_requires_grad(values_of(*this).requires_grad());
  if (bias.defined()) {
    copy->bias.copy_(bias);
    copy->bias.set_requires_grad(bias.requires_grad());
  }
  copy->train(is_training());
  return copy;
}

void CompressedLayer::pretty_print(std::ostream& stream) const {
  stream << fmt::format("espalier::nn::{}({}, bias={}, {} of {} weights)", name(), options_text(), bias.defined(),
                        weight_->nnz(), weight_->numel());
}

void CompressedLayer::save(torch::serialize::OutputArchive& archive) const {
  const std::string prefix = weight_->name() + ".";
  for (const auto& [name, tensor] : weight_->state()) {
    const std::string key = name.substr(prefix.size());
    archive.write(key, tensor, /*is_buffer=*/key != "values");
  }
  if (bias.defined()) archive.write("bias", bias);
}

void CompressedLayer::load(torch::serialize::InputArchive& archive) {
  const torch::NoGradGuard no_grad;
  at::Tensor new_bias;
  if (bias.defined()) {
    ESPALIER_CHECK(archive.try_read("bias", new_bias) && new_bias.sizes() == bias.sizes(), ErrorKind::data,
                   "{}: the archive has {}; expected one of [{}]", weight_->name(),
                   new_bias.defined() ? fmt::format("a bias of [{}]", fmt::join(new_bias.sizes(), ", ")) : "no bias",
                   bias.size(0));
  }
  NamedTensors tensors;
  const auto take = [&](const char* key, bool is_buffer, const std::string& name) {
    at::Tensor tensor;
    if (archive.try_read(key, tensor, is_buffer)) tensors.emplace_back(name, tensor);
  };
  for (const char* key : {"crow_indices", "col_indices"}) take(key, /*is_buffer=*/true, weight_->name() + "." + key);
  take("values", /*is_buffer=*/false, weight_->name() + ".values");
  take("weight", /*is_buffer=*/false, weight_->name());
  ESPALIER_CHECK(weight_->load_state(tensors), ErrorKind::data,
                 "{}: the archive has neither values with crow_indices and col_indices nor a dense weight",
                 weight_->name());
  if (bias.defined()) bias.copy_(new_bias);
}

}  // namespace espalier::nn
