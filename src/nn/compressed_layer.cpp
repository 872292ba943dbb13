#include "espalier/nn/compressed_layer.h"

#include <torch/torch.h>

namespace espalier::nn {

CompressedLayer::CompressedLayer(const char* kind, std::shared_ptr<CompressedWeight> weight, bool with_bias)
    : torch::nn::Module(kind), weight_(std::move(weight)) {
  // The parameter keeps its TensorImpl while entries come and go.
  register_parameter("values", weight_->parameter());
  if (with_bias) bias = register_parameter("bias", torch::zeros({weight_->shape()[0]}, weight_->stored_type()));
}

}  // namespace espalier::nn
