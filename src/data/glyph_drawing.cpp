// A specimen is drawn from its skeleton: deform the points (elastic, then affine), measure every pixel's distance to
// the strokes, turn distance into ink, add noise. Deforming points instead of pixels keeps strokes evenly wide, costs
// little, and needs no resampling. Compiled without contraction to fused multiply-adds (see CMakeLists.txt), which
// would change bits between machines.
#include "data/glyph_drawing.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

namespace espalier::data {
namespace {

struct Point {
  float x = 0, y = 0;  // skeletons: -1 .. 1, y downwards
};
using Line = std::vector<Point>;

/// Straight pieces through the points, cut into steps short enough to be bent.
Line corners(const Line& through) {
  constexpr float kStep = 0.25f;
  Line line = {through[0]};
  for (std::size_t i = 1; i < through.size(); ++i) {
    const Point a = through[i - 1], b = through[i];
    const float length = std::sqrt((b.x - a.x) * (b.x - a.x) + (b.y - a.y) * (b.y - a.y));
    const int steps = 1 + static_cast<int>(length / kStep);
    for (int s = 1; s <= steps; ++s) {
      const float t = static_cast<float>(s) / static_cast<float>(steps);
      line.push_back({a.x + t * (b.x - a.x), a.y + t * (b.y - a.y)});
    }
  }
  return line;
}

/// A smooth curve through the points (Catmull-Rom), five steps a span.
Line curve(const Line& through) {
  constexpr int kSteps = 5;
  const auto n = static_cast<int>(through.size());
  const auto at = [&](int i) { return through[static_cast<std::size_t>(std::clamp(i, 0, n - 1))]; };
  const auto spline = [](float a, float b, float c, float d, float t) {
    return 0.5f * (2 * b + t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * b - a - 3 * c + d))));
  };
  Line line = {through[0]};
  for (int i = 0; i + 1 < n; ++i) {
    const Point a = at(i - 1), b = at(i), c = at(i + 1), d = at(i + 2);
    for (int s = 1; s <= kSteps; ++s) {
      const float t = static_cast<float>(s) / static_cast<float>(kSteps);
      line.push_back({spline(a.x, b.x, c.x, d.x, t), spline(a.y, b.y, c.y, d.y, t)});
    }
  }
  return line;
}

/// In the order of glyph_classes(): hook, fork, loop, wave, gate, bolt, arch, spiral, anchor, arrow.
const std::array<std::vector<Line>, 10>& skeletons() {
  static const std::array<std::vector<Line>, 10> all = {{
      {curve({{-0.45f, -1}, {-0.45f, -0.3f}, {-0.42f, 0.4f}, {-0.1f, 0.9f}, {0.4f, 0.85f}, {0.62f, 0.35f}})},
      {corners({{-0.65f, -1}, {0, -0.1f}, {0.65f, -1}}), corners({{0, -0.1f}, {0, 1}})},
      {curve({{0, 0.15f},
              {-0.42f, -0.05f},
              {-0.58f, -0.45f},
              {-0.4f, -0.85f},
              {0, -1},
              {0.4f, -0.85f},
              {0.58f, -0.45f},
              {0.42f, -0.05f},
              {0, 0.15f}}),
       corners({{0, 0.15f}, {0, 1}})},
      {curve({{0.6f, -0.7f},
              {0.15f, -1},
              {-0.4f, -0.8f},
              {-0.4f, -0.3f},
              {0.05f, 0},
              {0.45f, 0.35f},
              {0.4f, 0.8f},
              {-0.15f, 1},
              {-0.6f, 0.7f}})},
      {corners({{-0.6f, -1}, {-0.6f, 1}}), corners({{0.6f, -1}, {0.6f, 1}}), corners({{-0.6f, 0}, {0.6f, 0}})},
      {corners({{0.45f, -1}, {-0.5f, 0.1f}, {0.5f, -0.1f}, {-0.45f, 1}})},
      {curve({{-0.7f, 1}, {-0.68f, 0}, {-0.5f, -0.7f}, {0, -1}, {0.5f, -0.7f}, {0.68f, 0}, {0.7f, 1}})},
      {curve({{0.05f, 0.1f},
              {-0.2f, -0.1f},
              {0.05f, -0.4f},
              {0.45f, -0.2f},
              {0.45f, 0.35f},
              {0, 0.65f},
              {-0.6f, 0.4f},
              {-0.75f, -0.25f},
              {-0.4f, -0.85f},
              {0.3f, -1}})},
      {corners({{0, -1}, {0, 0.95f}}), corners({{-0.5f, -0.5f}, {0.5f, -0.5f}}),
       curve({{-0.8f, 0.3f}, {-0.5f, 0.8f}, {0, 0.97f}, {0.5f, 0.8f}, {0.8f, 0.3f}})},
      {corners({{-0.62f, -0.2f}, {0, -0.95f}, {0.62f, -0.2f}}), corners({{0, -0.95f}, {0, 1}})},
  }};
  return all;
}

/// A smooth random displacement: a uniform cubic B-spline on 5x5 control vectors over [-1.3, 1.3]^2.
class Warp {
 public:
  Warp(RandomStream& stream, float amplitude) {
    for (Point& p : control_) {
      p.x = static_cast<float>(stream.uniform(-amplitude, amplitude));
      p.y = static_cast<float>(stream.uniform(-amplitude, amplitude));
    }
  }
  Point operator()(Point p) const {
    int column = 0, row = 0;
    const std::array<float, 4> wx = weights(p.x, column), wy = weights(p.y, row);
    Point moved = p;
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) {
        const Point& c = control_[static_cast<std::size_t>((row + i) * kSide + column + j)];
        const float w = wy[static_cast<std::size_t>(i)] * wx[static_cast<std::size_t>(j)];
        moved.x += w * c.x;
        moved.y += w * c.y;
      }
    }
    return moved;
  }

 private:
  static constexpr int kSide = 5, kCells = kSide - 3;
  static std::array<float, 4> weights(float coordinate, int& cell) {
    const float u = std::clamp((coordinate + 1.3f) / 2.6f, 0.0f, 0.999f) * static_cast<float>(kCells);
    cell = static_cast<int>(u);
    const float t = u - static_cast<float>(cell), s = 1 - t;
    return {s * s * s / 6, (3 * t * t * t - 6 * t * t + 4) / 6, (3 * s * s * s - 6 * s * s + 4) / 6, t * t * t / 6};
  }
  std::array<Point, kSide * kSide> control_;
};

struct Affine {
  float xx = 1, xy = 0, yx = 0, yy = 1, x0 = 0, y0 = 0;
  Point operator()(Point p) const { return {xx * p.x + xy * p.y + x0, yx * p.x + yy * p.y + y0}; }
};

/// Rotation by up to 25 degrees, unequal scales, shear, shift; from skeleton units to pixels.
Affine draw_affine(RandomStream& stream) {
  const auto in = [&](double low, double high) { return static_cast<float>(stream.uniform(low, high)); };
  const float half = in(-0.22, 0.22);  // tan(angle / 2): cosine and sine without libm
  const float cosine = (1 - half * half) / (1 + half * half), sine = 2 * half / (1 + half * half);
  const float size = in(6.5, 9.5), aspect = in(0.85, 1.2), shear = in(-0.3, 0.3);
  const float sx = size * aspect, sy = size / aspect;
  Affine a;
  a.xx = cosine * sx;
  a.xy = (cosine * shear - sine) * sy;
  a.yx = sine * sx;
  a.yy = (sine * shear + cosine) * sy;
  const float centre = (kGlyphPixels - 1) / 2.0f;
  a.x0 = centre + in(-2.5, 2.5);
  a.y0 = centre + in(-2.5, 2.5);
  return a;
}

/// nearest[28 * 28] = min(nearest, squared distance of the pixel to segment ab).
void measure(Point a, Point b, float reach, float* nearest) {
  const auto low = [&](float v) { return std::clamp(static_cast<int>(v - reach), 0, kGlyphPixels); };
  const auto high = [&](float v) { return std::clamp(static_cast<int>(v + reach) + 1, 0, kGlyphPixels); };
  const int x0 = low(std::min(a.x, b.x)), x1 = high(std::max(a.x, b.x));
  const int y0 = low(std::min(a.y, b.y)), y1 = high(std::max(a.y, b.y));
  const float abx = b.x - a.x, aby = b.y - a.y;
  const float inverse = 1 / std::max(abx * abx + aby * aby, 1e-12f);
  for (int y = y0; y < y1; ++y) {
    float* row = nearest + y * kGlyphPixels;
    const float py = static_cast<float>(y) - a.y;
    for (int x = x0; x < x1; ++x) {
      const float px = static_cast<float>(x) - a.x;
      float t = (px * abx + py * aby) * inverse;  // where on the segment: 0 = a, 1 = b
      t = t < 0 ? 0 : t;
      t = t > 1 ? 1 : t;
      const float dx = px - t * abx, dy = py - t * aby;
      const float d = dx * dx + dy * dy;
      row[x] = d < row[x] ? d : row[x];
    }
  }
}

}  // namespace

void draw_glyph(int glyph, RandomStream stream, std::uint8_t* out) {
  constexpr int kArea = kGlyphPixels * kGlyphPixels;
  const auto in = [&](double low, double high) { return static_cast<float>(stream.uniform(low, high)); };
  const Affine affine = draw_affine(stream);
  const float radius = in(0.5, 1.4);  // half the stroke's width, pixels
  const float blur = in(0.45, 1.0);   // half the width of its soft edge
  const float ink = in(140, 255), noise = in(4, 26);
  const Warp warp(stream, in(0.2, 0.75));

  std::array<float, kArea> nearest;
  const float reach = radius + blur + 1;
  nearest.fill(reach * reach);
  for (const Line& line : skeletons()[static_cast<std::size_t>(glyph)]) {
    Point previous = affine(warp(line[0]));
    for (std::size_t i = 1; i < line.size(); ++i) {
      const Point next = affine(warp(line[i]));
      measure(previous, next, reach, nearest.data());
      previous = next;
    }
  }

  // Noise: the sum of four uniform bytes is close to normal, with deviation sqrt(4 (256^2 - 1) / 12) = 147.8.
  const float noise_scale = noise / 147.8f;
  std::uint64_t bits = 0;
  for (int i = 0; i < kArea; ++i) {
    if (i % 2 == 0) bits = stream.bits();
    const auto sum = static_cast<int>((bits & 255) + ((bits >> 8) & 255) + ((bits >> 16) & 255) + ((bits >> 24) & 255));
    bits >>= 32;
    // Ink falls from 1 to 0 over the soft edge, by a smooth step.
    float t = (radius + blur - std::sqrt(nearest[static_cast<std::size_t>(i)])) / (2 * blur);
    t = std::clamp(t, 0.0f, 1.0f);
    const float value = ink * t * t * (3 - 2 * t) + noise_scale * static_cast<float>(sum - 510);
    out[i] = static_cast<std::uint8_t>(std::clamp(value, 0.0f, 255.0f) + 0.5f);
  }
}

}  // namespace espalier::data
