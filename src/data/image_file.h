/// One PNG or JPEG image, 8 bits a channel, grey or RGB.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "espalier/data/images.h"

namespace espalier::data {

struct ImageShape {
  std::int64_t channels = 0, height = 0, width = 0;
  bool operator==(const ImageShape& o) const {
    return channels == o.channels && height == o.height && width == o.width;
  }
};

struct DecodedImage {
  ImageShape shape;
  std::vector<std::uint8_t> pixels;  ///< [height][width][channels]
};

/// Decodes the bytes of an image file; PNG and JPEG are told apart by content. Palettes and grey of under 8 bits are
/// expanded. Error(data), starting with `name`, for anything else, for damaged or incomplete data, for sides above
/// kMaxImageSide and, if `expected` is given, for another shape; the last two before memory is taken for pixels.
DecodedImage decode_image(const std::vector<std::uint8_t>& file, const std::string& name,
                          const ImageShape* expected = nullptr);

/// RGB pixels of the region that `choose` names, whatever the file's colours and depth: grey is repeated, CMYK
/// converted without a profile, 16 bits become 8, transparency is left out. A JPEG of which far more than side x side
/// pixels are wanted is decoded at a half, a quarter or an eighth of its size, and the region with it. What libjpeg
/// warns of is passed over, but for a file that ends too early. Error(data), starting with `name`, for damaged data,
/// for more than 2^28 pixels, and for a region outside the image.
DecodedImage decode_region(const std::vector<std::uint8_t>& file, const std::string& name, std::int64_t side,
                           const ImageSource::Choose& choose);

/// An RGB image brought to side x side: float32 [3, side, side]. Linear interpolation, with a filter as wide as the
/// distance of two pixels of the result where that is the coarser one.
at::Tensor resized_region(const DecodedImage& image, std::int64_t side);

}  // namespace espalier::data
