/// weights.jsonl: how the weights of each layer are distributed while they are trained. docs/formats/weights.md.
#pragma once

#include <cstdint>

#include "espalier/methods/sparsifier.h"
#include "espalier/train/json.h"

namespace espalier::train {

/// Bins of a histogram, of equal width in sign(w) sqrt|w| over [-2^scale, 2^scale): fine near zero, where weights
/// gather, and nothing falls outside. A power of two, so that histograms of other layers, times and runs can be brought
/// to one range exactly, two bins into one.
constexpr std::int64_t kHistogramBins = 256;
/// "Near zero" is |w| below this: the value of `espalier inspect`.
constexpr double kNearZero = 0.01;

/// For each weight: shape, nnz, mean, mean_abs, near_zero, and the histogram of what is kept. Each sum is formed in
/// order and in double precision, so any number of threads gives the same bytes. 5 ns a kept weight.
Json weight_record(const Sparsifier& sparsifier);

/// Whether a record is due after `step` steps: at the start, at the end, and at most 48 times in between, not nearer
/// than 200 steps: reading and writing every weight, its gradient and its momentum once takes half as long as a record,
/// so that is at most 1 % of the time of training, and less with every sample of a batch.
bool weight_record_due(std::int64_t step, std::int64_t total_steps);

}  // namespace espalier::train
