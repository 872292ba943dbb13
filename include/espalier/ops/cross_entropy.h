/// The loss of classification: what torch::cross_entropy_loss computes, in one pass that leaves the gradient. LibTorch
/// goes over [N, classes] five times and holds three more tensors of that size; with thousands of classes behind a
/// sparse network that was a quarter of a training step.
#pragma once

#include <ATen/core/Tensor.h>

namespace espalier::ops {

/// The mean over the batch of -sum_c q_c log softmax(logits)_c, q = (1 - smoothing) onehot(label) + smoothing /
/// classes. logits: [N, classes], float32 or float64, N > 0; labels: [N], int64, 0 to classes - 1. Differentiable once.
/// Throws Error(usage) for anything else.
at::Tensor cross_entropy(const at::Tensor& logits, const at::Tensor& labels, double smoothing = 0);

}  // namespace espalier::ops
