/// What a network is trained by.
#pragma once

#include <cstdint>

#include "espalier/nn/activation.h"

namespace espalier::nn {

/// The mean cross-entropy of logits, as a tensor [N, classes] or as Network::logits() gives them (ops/cross_entropy.h).
at::Tensor cross_entropy(const Activation& logits, const at::Tensor& labels, double smoothing = 0,
                         std::int64_t* correct = nullptr);

}  // namespace espalier::nn
