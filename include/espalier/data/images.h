/// Labelled images in memory: one split, and a data set of two.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace espalier::data {

/// A rectangle of an image, in pixels; the origin is the upper left corner of the upper left pixel.
struct Region {
  std::int64_t left = 0, top = 0, width = 0, height = 0;
};

/// Images of any size that are read when they are looked at. Thread-safe.
class ImageSource {
 public:
  virtual ~ImageSource() = default;
  virtual std::int64_t size() const = 0;
  /// The region that `choose` names once width and height are known, resized to side x side: float32 [3, side, side], 0
  /// to 255, RGB. Throws Error(data), naming the file, if the image cannot be read.
  using Choose = std::function<Region(std::int64_t width, std::int64_t height)>;
  virtual torch::Tensor read(std::int64_t index, std::int64_t side, const Choose& choose) const = 0;
};

/// One split: pixels in memory, or a source and the side that its images are brought to.
struct Images {
  torch::Tensor pixels;  ///< uint8 [N, C, H, W]; undefined where there is a source
  torch::Tensor labels;  ///< int64 [N]
  /// int64 [H W]: place p of an image shows pixel order[p], in every channel; undefined: as they are. Loaders apply it.
  torch::Tensor order = {};
  std::shared_ptr<const ImageSource> source = nullptr;
  std::int64_t side = 0;
  std::int64_t size() const { return labels.defined() ? labels.size(0) : 0; }
  std::vector<std::int64_t> shape() const;        ///< of one image: C, H, W
  Images at(const torch::Tensor& indices) const;  ///< these images, in this order
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
