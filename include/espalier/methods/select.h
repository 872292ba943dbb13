/// Which positions: exact top-k, ties to the lower index.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "espalier/core/random.h"
#include "espalier/nn/sparse_weight.h"

namespace espalier {

struct Selection {
  at::Tensor chosen;  ///< indices of the k largest scores, ascending  [k] int64
  at::Tensor rest;    ///< the other indices, ascending                [n-k] int64
  double threshold;   ///< the smallest chosen score; +inf if k = 0
};

/// score: [n], finite. O(n), and no copy of float32 or float64 scores. Throws Error(usage) unless 0 <= k <= n,
/// Error(diverged) if a score is not a number.
/// `of` [n] int64, ascending, where defined: what both lists have instead of indices.
Selection select_top(const at::Tensor& score, std::int64_t k, const at::Tensor& of = {});

struct Smallest {
  at::Tensor positions;  ///< ascending  [count] int64
  double threshold;      ///< the smallest |w| that is left; +inf if none is
};

/// The `count` active positions of smallest |w|, ties to the higher position: what a drop by magnitude is. Takes
/// less memory than select_top beside active(). Throws as select_top.
Smallest smallest_weights(const SparseWeight& weight, std::int64_t count);

/// The k largest over several score vectors together: how many fall to each, ties to the lower vector and index.
std::vector<std::int64_t> select_top_counts(const std::vector<at::Tensor>& scores, std::int64_t k);

/// `count` of n positions, ascending; every such set equally likely. Throws Error(usage) unless count <= n.
at::Tensor random_positions(std::int64_t n, std::int64_t count, const RandomStream& random);

/// `count` of the positions 0 .. n-1 that are not `occupied` (ascending); ascending, every such set equally likely.
/// Time and memory go with the two numbers. Any number of threads gives the same positions. Throws Error(usage) if
/// there are not so many.
at::Tensor random_outside(std::int64_t n, const at::Tensor& occupied, std::int64_t count, const RandomStream& random);

/// The positions (ascending) that are not among `others` (ascending).
at::Tensor without(const at::Tensor& positions, const at::Tensor& others);

}  // namespace espalier
