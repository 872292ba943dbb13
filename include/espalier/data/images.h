/// Labelled images in memory: one split, and a data set of two.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <string>
#include <vector>

namespace espalier::data {

/// One split.
struct Images {
  torch::Tensor pixels;  ///< uint8 [N, C, H, W]
  torch::Tensor labels;  ///< int64 [N]
  /// int64 [H W]: place p of an image shows pixel order[p], in every channel; undefined: as they are. Loaders apply it.
  torch::Tensor order = {};
  std::int64_t size() const { return pixels.defined() ? pixels.size(0) : 0; }
};

struct Dataset {
  std::string name;
  Images train, test;
  std::vector<std::string> classes;  ///< label -> name
  std::string source;                ///< where the bytes came from: a folder, or "generated"
  std::int64_t num_classes() const { return static_cast<std::int64_t>(classes.size()); }
};

/// Readers refuse images wider or higher than this: the whole set is held in memory and fed to a network as it is.
constexpr std::int64_t kMaxImageSide = 4096;
/// Readers refuse a split of more pixel bytes than this.
constexpr std::int64_t kMaxSplitBytes = std::int64_t{16} << 30;

}  // namespace espalier::data
