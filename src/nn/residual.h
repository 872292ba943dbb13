/// Residual networks for CIFAR-sized images.
#pragma once

#include <memory>

#include "espalier/nn/models.h"

namespace espalier::nn {

/// He et al. 2016 (CVPR), section 4.2, depth 20; where the width changes, a 1x1 convolution with batch norm (option B).
std::shared_ptr<Network> make_resnet20(const InputShape& input, std::int64_t classes, const Compress& compressed);

/// Zagoruyko and Komodakis 2016, depth 28, widening factor 2: batch norm and ReLU before each convolution, dropout
/// between the two of a block.
std::shared_ptr<Network> make_wrn_28_2(const InputShape& input, std::int64_t classes, double dropout,
                                       const Compress& compressed);

}  // namespace espalier::nn
