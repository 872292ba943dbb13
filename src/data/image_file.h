/// One PNG or JPEG image, 8 bits a channel, grey or RGB.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

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

}  // namespace espalier::data
