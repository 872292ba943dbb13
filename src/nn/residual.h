/// Residual networks.
#pragma once

#include <functional>
#include <memory>

#include "espalier/nn/models.h"

namespace espalier::nn {

/// What a number of channels becomes.
using Widths = std::function<std::int64_t(std::int64_t)>;

/// He et al. 2016 (CVPR), section 4.2, depth 20; where the width changes, a 1x1 convolution with batch norm (option B).
std::shared_ptr<Network> make_resnet20(const InputShape& input, std::int64_t classes, const Widths& widths,
                                       const Compress& compressed);

/// He et al. 2016 (CVPR), table 1, 50 layers, for ImageNet: bottlenecks of 1x1, 3x3 and 1x1 convolutions, the stride in
/// the 3x3 one ("v1.5"), projections by 1x1 convolutions (option B).
std::shared_ptr<Network> make_resnet50(const InputShape& input, std::int64_t classes, const Widths& widths,
                                       const Compress& compressed);

/// Zagoruyko and Komodakis 2016, depth 28, widening factor 2: batch norm and ReLU before each convolution, dropout
/// between the two of a block. The first convolution has 16 channels whatever `widths` says, as in every WRN-28-k.
std::shared_ptr<Network> make_wrn_28_2(const InputShape& input, std::int64_t classes, double dropout,
                                       const Widths& widths, const Compress& compressed);

}  // namespace espalier::nn
