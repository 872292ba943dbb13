/// Batches of a split: gathered, turned into floats, normalised and augmented in one pass over the bytes.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "espalier/data/images.h"

namespace espalier::data {

/// Per channel, on pixels / 255: a network sees (pixel / 255 - mean) / std.
struct Normalisation {
  std::vector<float> mean, std;
};

struct Batch {
  torch::Tensor images;  ///< float32 [B, C, H, W]
  torch::Tensor labels;  ///< int64 [B]
  std::int64_t size() const { return labels.size(0); }
};

struct LoaderOptions {
  std::int64_t batch_size = 128;
  bool shuffle = false;
  /// none, crop (pad by 4 black pixels, cut at random), flip (left-right), crop-flip; imagenet: images from a source, a
  /// random part of 8 to 100 % of each, its form between 3:4 and 4:3, resized, and flip. Without it a source gives the
  /// middle 7/8 of the shorter side, square.
  std::string augment = "none";
  bool drop_last = false;  ///< leave out a last batch of under batch_size samples
  std::uint64_t seed = 0;
};

/// Random access: a position in training is two numbers, (epoch, batch), so it can be saved and restored exactly.
/// The order of an epoch depends on (seed, epoch) alone, the crop and flip of a sample on (seed, epoch, sample) alone;
/// the bits are the same for any number of threads. Thread-safe. A batch owns its memory.
class Loader {
 public:
  /// indices: positions in `images`, in the order they are served without shuffling.
  Loader(Images images, std::vector<std::int64_t> indices, Normalisation normalisation, LoaderOptions options);

  std::int64_t size() const;  ///< samples in an epoch, before drop_last
  std::int64_t batches_per_epoch() const;
  Batch batch(std::int64_t epoch, std::int64_t index) const;
  const LoaderOptions& options() const { return options_; }

 private:
  using Order = std::shared_ptr<const std::vector<std::int64_t>>;
  Order order_of(std::int64_t epoch) const;
  void read_into(Batch& batch, const std::int64_t* samples, std::int64_t epoch) const;

  Images images_;
  std::vector<float> scale_, shift_;  // per channel: pixel * scale + shift
  LoaderOptions options_;
  bool crop_ = false, flip_ = false, part_ = false;
  Order indices_;
  mutable std::mutex mutex_;  // guards the shuffled order of one epoch
  mutable std::int64_t shuffled_epoch_ = -1;
  mutable Order shuffled_;
};

/// An image of a source as it is evaluated: float32 [3, side, side], 0 to 255.
torch::Tensor read_middle(const Images& images, std::int64_t index);

}  // namespace espalier::data
