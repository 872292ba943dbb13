// Layers without weights, and batch norm, on whatever comes: plain tensors go through torch, batch tiles stay batch
// tiles. Private to nn/.
#pragma once

#include <torch/nn/modules/batchnorm.h>

#include "espalier/nn/activation.h"
#include "espalier/ops/pool.h"

namespace espalier::nn {

/// What `module` computes, its statistics updated as it does; in tiles max(0, .) of it in the same pass, where asked.
Activation batch_norm(torch::nn::BatchNorm1dImpl& module, const Activation& x, bool relu = false);
Activation batch_norm(torch::nn::BatchNorm2dImpl& module, const Activation& x, bool relu = false);

/// max(0, x), written over x: for a tensor that nobody else holds and that no backward pass needs.
Activation relu_over(const Activation& x);

/// y + x, and max(0, y + x), written over y, as above.
Activation add_over(const Activation& y, const Activation& x);
Activation add_relu_over(const Activation& y, const Activation& x);

Activation max_pool(const Activation& x, const ops::Pool& pool);
Activation average_pool(const Activation& x, const ops::Pool& pool);

/// The mean, and the largest, of each channel: vectors.
Activation global_average(const Activation& x);
Activation global_max(const Activation& x);

Activation flatten(const Activation& x);

}  // namespace espalier::nn
