#pragma once

#include <cstdint>

#include "espalier/core/random.h"

namespace espalier::data {

constexpr int kGlyphPixels = 28;

/// Draws one specimen of character `glyph` (0 .. 9) into out[28 * 28], row by row; 0 = ground, 255 = full ink.
/// Only + - * / sqrt and comparisons: correctly rounded by IEEE 754, so the same stream gives the same bytes anywhere.
void draw_glyph(int glyph, RandomStream stream, std::uint8_t* out);

}  // namespace espalier::data
