#include "espalier/data/glyphs.h"

#include <ATen/Parallel.h>

#include "data/glyph_drawing.h"
#include "espalier/core/error.h"

namespace espalier::data {

static_assert(kGlyphSide == kGlyphPixels);

const std::vector<std::string>& glyph_classes() {
  static const std::vector<std::string> names = {"hook", "fork", "loop",   "wave",   "gate",
                                                 "bolt", "arch", "spiral", "anchor", "arrow"};
  return names;
}

Images draw_glyphs(std::int64_t n, GlyphSplit split, std::uint64_t seed) {
  ESPALIER_CHECK(n >= 1 && n <= kMaxSplitBytes / (kGlyphSide * kGlyphSide), ErrorKind::usage,
                 "glyphs: {} images, expected 1 to {}", n, kMaxSplitBytes / (kGlyphSide * kGlyphSide));
  const auto classes = static_cast<std::int64_t>(glyph_classes().size());
  Images images{torch::empty({n, 1, kGlyphSide, kGlyphSide}, torch::kUInt8), torch::arange(n).remainder(classes)};
  std::uint8_t* pixels = images.pixels.data_ptr<std::uint8_t>();
  at::parallel_for(0, n, 64, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const RandomStream stream(seed, Purpose::glyphs, static_cast<std::uint64_t>(split),
                                static_cast<std::uint64_t>(i));
      draw_glyph(static_cast<int>(i % classes), stream, pixels + i * kGlyphSide * kGlyphSide);
    }
  });
  return images;
}

}  // namespace espalier::data
