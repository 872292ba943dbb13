/// Batch norm in batch tiles of images and of vectors, alone or followed by a sum and by ReLU, equal to
/// torch::batch_norm on plain tensors. Padding lanes count for nothing and get zero gradients.
#pragma once

#include <ATen/core/Tensor.h>

#include "espalier/ops/images.h"
#include "espalier/ops/tiles.h"

namespace espalier::ops {

/// As the arguments of torch::batch_norm: tensors [C] of the activation's type, any of them undefined.
struct BatchNorm {
  at::Tensor weight, bias;               ///< 1 and 0 where undefined
  at::Tensor running_mean, running_var;  ///< updated in training, where defined
  bool training = true;                  ///< statistics of the batch, or the running ones
  double momentum = 0.1;                 ///< running = (1 - momentum) running + momentum batch
  double eps = 1e-5;
};

/// y = bn(x), or max(0, bn(x)). Differentiable in x, weight and bias; keeps x, not y, for the backward pass. A batch
/// without samples changes no statistics. Throws Error(usage) where channels or types do not fit, for statistics of one
/// value, and for evaluation without running statistics.
at::Tensor batch_norm(const at::Tensor& images, const ImageLayout& layout, const BatchNorm& norm, bool relu = false);
at::Tensor batch_norm(const at::Tensor& tiles, const TileLayout& layout, const BatchNorm& norm, bool relu = false);

/// The same, and x for its other use (ops/images.h).
Forked batch_norm_fork(const at::Tensor& images, const ImageLayout& layout, const BatchNorm& norm, bool relu = false);

/// y = bn(x) + summand, or max(0, bn(x) + summand), in one pass: the end of a residual block. Both are images of this
/// layout, halo included. Differentiable in the summand too; keeps x, and y for the ReLU.
at::Tensor batch_norm_add(const at::Tensor& images, const at::Tensor& summand, const ImageLayout& layout,
                          const BatchNorm& norm, bool relu = false);

}  // namespace espalier::ops
