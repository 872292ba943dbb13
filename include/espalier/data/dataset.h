/// Data sets by name: where their files are looked for, how they are split and normalised.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "espalier/core/options.h"
#include "espalier/data/images.h"
#include "espalier/data/loader.h"

namespace espalier::data {

struct DatasetInfo {
  std::string name;
  std::string description;  ///< one line
};

/// All built-in names, in the order `espalier list datasets` shows them.
const std::vector<DatasetInfo>& known_datasets();

/// Table [data] of a configuration.
struct DataOptions {
  std::string name = "glyphs";
  std::string root;
  double validation = 0;
  std::string augment = "none";
  std::string normalise = "standard";
  std::int64_t train_limit = 0;
  std::int64_t classes = 0;
  std::int64_t image_size = 0;
  std::int64_t train_size = 20000;
  std::int64_t test_size = 10000;
  void describe(Describe& d);
};

/// Reads (or draws) a data set. The seed matters to `glyphs` alone. Throws Error(usage) for options out of range,
/// Error(data) if files are missing (naming each, and every folder looked in) or damaged.
Dataset load_dataset(const DataOptions& options, std::uint64_t seed);

/// Positions in the training images; each list ascending, the two disjoint.
struct Split {
  std::vector<std::int64_t> train, validation;
};

/// Holds `validation` of n samples out at random: a share if under 1 (rounded to the nearest count), a count otherwise.
/// Then, if train_limit > 0, keeps a random train_limit of the others. Throws Error(usage) if the validation is not a
/// share or a count, rounds to nothing, or leaves no sample (or fewer than train_limit) to train on.
Split split_train(std::int64_t n, double validation, std::uint64_t seed, std::int64_t train_limit = 0);

/// options.normalise = "unit": pixels / 255. "standard": mean 0 and variance 1 per channel over the images at `indices`
/// (a constant channel keeps its scale). Exact sums: no rounding depends on order or threads. Of images that are read
/// when they are needed, over a thousand of them, evenly spaced. "imagenet": the numbers that everybody uses for
/// ImageNet.
Normalisation normalisation(const Images& images, const std::vector<std::int64_t>& indices, const DataOptions& options);

}  // namespace espalier::data
