/// `glyphs`: the built-in data set. Ten invented characters, 28x28 grey, drawn by the program: nothing to download.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "espalier/data/images.h"

namespace espalier::data {

enum class GlyphSplit : std::uint64_t { train = 0, test = 1 };  // part of the random streams' names: never renumber

constexpr std::int64_t kGlyphSide = 28;

/// n images [n, 1, 28, 28]; image i is of class i mod 10 and a pure function of (seed, split, i), so a longer set
/// begins with the shorter one and threads do not matter. Drawn in parallel.
Images draw_glyphs(std::int64_t n, GlyphSplit split, std::uint64_t seed);

const std::vector<std::string>& glyph_classes();

}  // namespace espalier::data
