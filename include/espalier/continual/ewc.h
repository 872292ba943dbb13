/// Elastic weight consolidation (Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS
/// 2017): what matters to earlier tasks is held near its value by a spring of strength lambda F.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "espalier/nn/network.h"
#include "espalier/train/experiment.h"
#include "espalier/train/safetensors.h"

namespace espalier::continual {

/// The diagonal of the Fisher information of the network's prediction: mean over images of (d log p(y) / d w)^2, y
/// drawn from p. One tensor for each of `parameters`, in evaluation mode. The images and labels depend on (seed, task)
/// alone.
train::NamedTensors fisher_information(nn::Network& network, const train::NamedTensors& parameters,
                                       const data::Loader& images, std::int64_t samples, std::uint64_t seed,
                                       std::int64_t task);

/// Adds a task: "<name>.fisher" += F, "<name>.pull" += F w. Penalties of several tasks add up to one of this form.
void anchor(train::NamedTensors& anchors, const train::NamedTensors& fisher, const train::NamedTensors& parameters);

/// lambda (sum F w - sum F w*), added to the gradient of each parameter that has one.
void pull_back(const train::NamedTensors& anchors, const train::NamedTensors& parameters, double lambda);

}  // namespace espalier::continual
