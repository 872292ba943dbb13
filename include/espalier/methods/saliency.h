/// What removing a weight would do to the loss, at initialisation: scores that need data.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "espalier/methods/probe.h"

namespace espalier {

/// SNIP (Lee, Ajanthan, Torr, ICLR 2019, eq. 5): |dL/dc| = |w . dL/dw| for the gates c = 1 of w . c, L summed over the
/// batches. For each of the named weights, flat, float64. Batch norm uses the statistics of each batch, dropout is off.
std::vector<at::Tensor> snip_scores(const Probe& probe, const std::vector<std::string>& weights,
                                    const std::vector<ProbeBatch>& batches);

/// GraSP (Wang, Zhang, Grosse, ICLR 2020, eq. 8): w . H g for the Hessian H and gradient g of the loss of
/// logits / temperature. That is minus the paper's score, so that the largest stay. g is summed over all batches, the
/// product formed batch by batch: parts of one batch that does not fit into memory do as well.
std::vector<at::Tensor> grasp_scores(const Probe& probe, const std::vector<std::string>& weights,
                                     const std::vector<ProbeBatch>& batches, double temperature);

/// The batch in `parts` of nearly the same size.
std::vector<ProbeBatch> split(const ProbeBatch& batch, std::int64_t parts);

}  // namespace espalier
