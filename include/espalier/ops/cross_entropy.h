/// The loss of classification: what torch::cross_entropy_loss computes, in one pass that leaves the gradient. LibTorch
/// goes over [N, classes] five times and holds three more tensors of that size; with thousands of classes behind a
/// sparse network that was a quarter of a training step.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "espalier/ops/tiles.h"

namespace espalier::ops {

/// The mean over the batch of -sum_c q_c log softmax(logits)_c, q = (1 - smoothing) onehot(label) + smoothing /
/// classes. logits: [N, classes], float32 or float64, N > 0; labels: [N], int64, 0 to classes - 1. Differentiable once.
/// `correct`, unless null, becomes the number of samples whose label is argmax(logits). Throws Error(usage) for
/// anything else.
at::Tensor cross_entropy(const at::Tensor& logits, const at::Tensor& labels, double smoothing = 0,
                         std::int64_t* correct = nullptr);

/// The same of logits in batch tiles [numel]; so is their gradient.
at::Tensor cross_entropy(const at::Tensor& tiles, const TileLayout& layout, const at::Tensor& labels,
                         double smoothing = 0, std::int64_t* correct = nullptr);

}  // namespace espalier::ops
