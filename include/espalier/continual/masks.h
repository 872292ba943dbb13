/// Which weights a task keeps: the arithmetic of PackNet (Mallya and Lazebnik 2018) and of EfficientPackNet (Schwarz et
/// al. 2021, algorithm 1). docs/methods/packnet.md, docs/methods/efficient-packnet.md.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "espalier/core/bitmask.h"

namespace espalier::continual {

/// A mask for each packed weight of the network.
using Masks = std::vector<BitMask>;

// ---- PackNet -------------------------------------------------------------------------------------------------------

/// What a task keeps of the `free` weights of a layer: free - round((1 - share) free), halves to even, as the
/// repository rounds under Python 3.
std::int64_t packnet_kept(std::int64_t free, double share);

/// Equal shares: task `number` (from 1) of `tasks` gets floor(n number / tasks) - floor(n (number-1) / tasks) of a
/// layer of n: they add up to n exactly.
std::int64_t equal_share(std::int64_t n, std::int64_t number, std::int64_t tasks);

// ---- EfficientPackNet ----------------------------------------------------------------------------------------------

/// floor(share n); a product that is within rounding of a whole number is that number (0.29 x 100 is 29).
std::int64_t mask_size(double share, std::int64_t n);

/// The positions of the floor(share M) largest scores (|phi|, each a weight's) of all M: of the layers together for
/// distribution "global", or shared out among them as [sparsity].distribution says. Ties to the lower layer and
/// position.
Masks largest(const std::vector<at::Tensor>& scores, const std::vector<std::vector<std::int64_t>>& shapes, double share,
              const std::string& distribution);

/// One network that the search tried.
struct Trial {
  double keep_rate = 0;
  double accuracy = 0;
  bool passed = false;
};

/// What a search ends with.
struct Found {
  std::optional<double> keep_rate;  ///< the smallest rate that passed; empty if none did
  std::vector<Trial> trials;        ///< in the order of trying
};

/// From the largest rate down; the first that fails ends the search (algorithm 1, lines 7 to 12, with the last mask
/// that passed and not the one that failed). `accuracy(rate)` passes with at least `wanted`.
Found search_list(const std::vector<double>& rates, double wanted, const std::function<double(double)>& accuracy);

/// The bound `high` first; where it passes, `steps` halvings of the interval (low, high]. `low` itself is never tried.
Found search_binary(double low, double high, std::int64_t steps, double wanted,
                    const std::function<double(double)>& accuracy);

// ---- accounts ------------------------------------------------------------------------------------------------------

BitMask any_of(const std::vector<const BitMask*>& masks, std::int64_t size);
/// The positions of `a` that are not in `b`.
BitMask minus(const BitMask& a, const BitMask& b);
BitMask inverse(const BitMask& a);
std::int64_t overlap(const BitMask& a, const BitMask& b);

/// Positions as an index tensor [count] int64, and uint8 0/1 in a shape.
at::Tensor positions(const BitMask& mask);
at::Tensor bytes(const BitMask& mask, const std::vector<std::int64_t>& shape);

}  // namespace espalier::continual
