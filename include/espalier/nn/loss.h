/// What a network is trained by.
#pragma once

#include "espalier/ops/cross_entropy.h"

namespace espalier::nn {

using ops::cross_entropy;

}  // namespace espalier::nn
