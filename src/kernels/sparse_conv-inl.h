// The text of the kernels of sparse_conv.h, included once by the file of each instruction set after vector-inl.h. What
// was measured stands in docs/kernels.md.

/// Pixels whose sums are in registers: forward one sum each, backward a sum and an input.
constexpr int kForwardPixels = kVectorBytes == 64 ? 8 : 6;
/// Vectors of a pixel that go together: whole lines of memory.
template <class T>
constexpr int kVectorsTogether = kVectorBytes == 32 && kLanes<T> < kImageLanes ? 2 : 1;
constexpr int kBackwardPixels = kVectorBytes == 64 ? 8 : 4;

/// f(integral_constant<width>) for a width of 1 to `most`.
template <int most, int width = most, class F>
inline void with_width(std::int64_t w, const F& f) {
  if constexpr (width <= 1) {
    f(std::integral_constant<int, 1>{});
  } else {
    if (w == width)
      f(std::integral_constant<int, width>{});
    else
      with_width<most, width - 1>(w, f);
  }
}

/// f(integral_constant<rows>, first row, count) for runs of at most `most_together` bands of 4, 2 or 1 rows, none
/// higher than `highest`.
template <int tallest, class F>
inline void each_band_of(std::int64_t begin, std::int64_t end, std::int64_t highest, std::int64_t most_together,
                         const F& f) {
  if (highest >= tallest) {
    for (std::int64_t bands = (end - begin) / tallest; bands > 0;) {
      const std::int64_t together = std::min(bands, most_together);
      f(std::integral_constant<int, tallest>{}, begin, together);
      begin += together * tallest;
      bands -= together;
    }
  }
  if constexpr (tallest > 1) each_band_of<tallest / 2>(begin, end, highest, most_together, f);
}

/// The same for bands of as many rows as rectangles of at most `most` pixels have, and `rows_together` in a run.
template <int most, class F>
inline void each_band(std::int64_t begin, std::int64_t end, std::int64_t width, std::int64_t rows_together,
                      const F& f) {
  const std::int64_t highest = width * 4 <= most ? 4 : width * 2 <= most ? 2 : 1;
  each_band_of<4>(begin, end, highest, std::max<std::int64_t>(1, rows_together / highest), f);
}

/// f(width as a constant, wide, narrow): a row is cut into `wide` strips of that width and, after them, `narrow` strips
/// of one pixel less, none wider than `most`.
template <int most, class F>
inline void with_strips_of(std::int64_t row, const F& f) {
  if (row == 0) return;
  const std::int64_t strips = (row + most - 1) / most, widest = (row + strips - 1) / strips;
  const std::int64_t narrow = strips * widest - row;
  with_width<most>(widest, [&](auto width) { f(width, strips - narrow, narrow); });
}

/// Rectangles that a line goes over before the next line's turn, so that planes are read and written in long pieces:
/// `bands` of them below one another, and side by side the strips of a row.
struct Patch {
  std::int64_t bands, wide, narrow;
};
struct OneRectangle {
  static constexpr std::int64_t bands = 1;
};

/// f(width as a constant, band, first pixel, whether it is the last of its band) for the rectangles of a patch, whose
/// wide strips have `width` pixels.
template <int width, class F>
inline void each_rectangle(const OneRectangle&, const F& f) {
  f(std::integral_constant<int, width>{}, 0, 0, true);
}
template <int width, class F>
inline void each_rectangle(const Patch& patch, const F& f) {
  for (std::int64_t band = 0; band < patch.bands; ++band) {
    std::int64_t w = 0;
    for (std::int64_t s = 0; s < patch.wide; ++s, w += width) {
      f(std::integral_constant<int, width>{}, band, w, s + 1 == patch.wide + patch.narrow);
    }
    if constexpr (width > 1) {
      for (std::int64_t s = 0; s < patch.narrow; ++s, w += width - 1) {
        f(std::integral_constant<int, width - 1>{}, band, w, s + 1 == patch.narrow);
      }
    }
  }
}

/// `lines` lines of one run at once over a rectangle of pixels. step: pixels of x from one output to the next (0: not
/// known when compiled). unit: what offsets count, in entries. The sums of the rectangle at `ahead` are asked for
/// early: where it is in another plane no hardware guesses it, and stores that wait for memory hold up the loads behind
/// them.
template <class T, int rows, int width, int step, int unit, int lines>
inline void conv_forward_lines(const std::uint16_t* line, const std::int32_t* offset, const T* value,
                               std::uint32_t entries, const T* ahead, const T* bias, const T* x, std::int64_t x_row,
                               std::int64_t x_step, T* y, std::int64_t y_row, std::int64_t y_plane, bool first_block) {
  constexpr int vectors = kVectorsTogether<T>, sums = rows * width * vectors;
  const auto of_y = [&](int p) __attribute__((always_inline)) {
    const int pixel = p / vectors;
    return pixel / width * y_row + pixel % width * kImageLanes + p % vectors * kLanes<T>;
  };
  Vec<T> sum[lines][sums];
#pragma GCC unroll 8
  for (int l = 0; l < lines; ++l) {
    const T start = first_block && bias != nullptr ? bias[line[l]] : T(0);
#pragma GCC unroll 16
    for (int p = 0; p < sums; ++p) {
      sum[l][p] = first_block ? broadcast(start) : load(y + line[l] * y_plane + of_y(p));
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < sums; p += vectors) {
    __builtin_prefetch(ahead + of_y(p), 1);
  }
  const auto add = [&](int l, std::int64_t at, Vec<T> w) __attribute__((always_inline)) {
    const T* const in = in_register(x + at * unit);
#pragma GCC unroll 16
    for (int p = 0; p < sums; ++p) {
      const int pixel = p / vectors;
      const std::int64_t across = step > 0 ? pixel % width * step * kImageLanes : pixel % width * x_step;
      sum[l][p] += w * load(in + pixel / width * x_row + across + p % vectors * kLanes<T>);
    }
  };
  std::uint32_t k = 0;
#ifdef ESPALIER_HAS_FOUR
  if constexpr (lines == 1) {
    for (; k + 4 <= entries; k += 4) {
      const Vec<T> w = four(value + k);
      std::int64_t at[2];
      __builtin_memcpy(at, offset + k, sizeof at);
      add(0, static_cast<std::int32_t>(at[0]), one_of_four<T, 0>(w, EveryLane<T>{}));
      add(0, at[0] >> 32, one_of_four<T, 1>(w, EveryLane<T>{}));
      add(0, static_cast<std::int32_t>(at[1]), one_of_four<T, 2>(w, EveryLane<T>{}));
      add(0, at[1] >> 32, one_of_four<T, 3>(w, EveryLane<T>{}));
    }
  }
#endif
  for (; k < entries; ++k) {
#pragma GCC unroll 8
    for (int l = 0; l < lines; ++l) add(l, offset[l * entries + k], broadcast(value[l * entries + k]));
  }
#pragma GCC unroll 8
  for (int l = 0; l < lines; ++l) {
#pragma GCC unroll 16
    for (int p = 0; p < sums; ++p) {
      store(y + line[l] * y_plane + of_y(p), sum[l][p]);
    }
  }
}

/// All lines of a block over a patch.
template <class T, int rows, int width, int step, int unit, class Rectangles>
inline void conv_forward_block(const CompressedSide& side, std::int64_t block, const std::int32_t* offsets,
                               const T* values, const T* bias, const Rectangles& patch, const T* x, std::int64_t x_row,
                               std::int64_t x_step, T* y, std::int64_t y_row, std::int64_t y_plane) {
  constexpr int together = std::clamp(8 / (rows * width * kVectorsTogether<T>), 1, 4);
  for (std::int64_t chunk = 0; chunk < side.chunks(); ++chunk) {
    const CompressedSide::Segment* segment = side.segment(block, chunk);
    const std::uint16_t* line = side.outer_index.data() + segment->line;
    const std::uint16_t* const last = side.outer_index.data() + segment[1].line - 1;
    const std::int32_t* offset = offsets + segment->entry;
    const T* value = values + segment->entry;
    const std::int64_t first = chunk * side.chunk;
    const T* const b = bias != nullptr ? bias + first : nullptr;
    T* const out = y + first * y_plane;
    for (std::uint32_t r = segment->run; r < segment[1].run; ++r) {
      const CompressedSide::Run run = side.runs[r];
      std::uint32_t i = 0;
      // Always inline: as a function called for each line it takes 5 to 15 % longer (one image at a time, 90 %).
      const auto next = [&](auto lines) __attribute__((always_inline)) {
        const auto over = [&](auto pixels, std::int64_t band, std::int64_t w, bool last_of_band)
            __attribute__((always_inline)) {
          const T* ahead = out + *line * y_plane + band * rows * y_row + (w + pixels) * kImageLanes;
          if (last_of_band) {
            ahead = band + 1 < patch.bands ? out + *line * y_plane + (band + 1) * rows * y_row
                                           : out + *std::min(line + lines, last) * y_plane;
          }
          conv_forward_lines<T, rows, pixels, step, unit, lines>(
              line, offset, value, run.entries, ahead, b, x + band * rows * x_row + w * x_step, x_row, x_step,
              out + band * rows * y_row + w * kImageLanes, y_row, y_plane, block == 0);
        };
        each_rectangle<width>(patch, over);
        line += lines;
        offset += lines * run.entries;
        value += lines * run.entries;
        i += lines;
      };
      while (i + together <= run.lines) next(std::integral_constant<int, together>{});
      while (i < run.lines) next(std::integral_constant<int, 1>{});
    }
  }
}

/// Asks for rows `begin` to `end` of all channels of x, counted from where outputs of row 0 begin to read. Always
/// inline: gcc takes a function that only prefetches for one without effects, and leaves out the call.
template <class T>
__attribute__((always_inline)) inline void ask_for_rows(const ConvPart& part, const ConvShape::Pair& stride,
                                                        std::int64_t begin, std::int64_t end, const T* x) {
  const std::int64_t entries = ((part.width - 1) * stride[1] + part.window[1]) * kImageLanes;
  for (std::int64_t c = 0; c < part.channels; ++c) {
    for (std::int64_t r = begin; r < end; ++r) {
      const T* const row = x + (c * part.x.plane + r * part.x.row) * kImageLanes;
      for (std::int64_t i = 0; i < entries; i += 64 / sizeof(T)) __builtin_prefetch(row + i, 0, 2);
    }
  }
}

template <class T, int step>
inline void conv_forward_lanes(const CompressedSide& side, const std::int32_t* offsets, const T* values, const T* bias,
                               const ConvShape::Pair& stride, const ConvPart& part, const T* x, T* y) {
  const std::int64_t x_row = part.x.row * kImageLanes, y_row = part.y.row * kImageLanes,
                     y_plane = part.y.plane * kImageLanes, x_step = stride[1] * kImageLanes;
  each_band<kForwardPixels>(
      part.begin, part.end, part.width, part.patch_rows, [&](auto rows, std::int64_t h, std::int64_t bands) {
        // Rectangles go from plane to plane; rows that no band before has read come sooner in one piece.
        if (part.patch_rows == 0) {
          ask_for_rows(part, stride, h == part.begin ? h * stride[0] : (h - 1) * stride[0] + part.window[0],
                       (h + rows - 1) * stride[0] + part.window[0], x);
        }
        with_strips_of<kForwardPixels / rows>(part.width, [&](auto width, std::int64_t wide, std::int64_t narrow) {
          for (std::int64_t block = 0; block < side.blocks(); ++block) {
            const auto over = [&](auto pixels, const auto& patch, std::int64_t band, std::int64_t w) {
              conv_forward_block<T, rows, pixels, step, kImageLanes>(
                  side, block, offsets, values, bias, patch, x + (h + band * rows) * stride[0] * x_row + w * x_step,
                  stride[0] * x_row, x_step, y + (h + band * rows) * y_row + w * kImageLanes, y_row, y_plane);
            };
            const Patch patch{bands, wide, narrow};
            if (part.patch_rows > 0) {
              over(width, patch, 0, 0);
            } else {
              each_rectangle<width>(patch, [&](auto pixels, std::int64_t band, std::int64_t w, bool) {
                over(pixels, OneRectangle{}, band, w);
              });
            }
          }
        });
      });
}

template <class T>
void conv_forward(const CompressedSide& side, const std::int32_t* offsets, const T* values, const T* bias,
                  const ConvShape::Pair& stride, const ConvPart& part, const T* x, T* y) {
  for (int lane = 0; lane < kImageLanes; lane += kVectorsTogether<T> * kLanes<T>) {
    switch (stride[1]) {
      case 1: conv_forward_lanes<T, 1>(side, offsets, values, bias, stride, part, x + lane, y + lane); break;
      case 2: conv_forward_lanes<T, 2>(side, offsets, values, bias, stride, part, x + lane, y + lane); break;
      default: conv_forward_lanes<T, 0>(side, offsets, values, bias, stride, part, x + lane, y + lane);
    }
  }
}

/// The sums of 16 pixels in a row of one image stand where those of one pixel of 16 images do.
template <class T>
void conv_forward_alone(const CompressedSide& side, const std::int32_t* offsets, const T* values, const T* bias,
                        std::int64_t begin, std::int64_t end, std::int64_t y_plane, const T* x, T* y) {
  for (int lane = 0; lane < kImageLanes; lane += kVectorsTogether<T> * kLanes<T>) {
    with_strips_of<kForwardPixels>(end - begin, [&](auto width, std::int64_t wide, std::int64_t narrow) {
      each_rectangle<width>(Patch{1, wide, narrow}, [&](auto pixels, std::int64_t, std::int64_t first, bool) {
        const std::int64_t at = (begin + first) * kImageLanes + lane;
        for (std::int64_t block = 0; block < side.blocks(); ++block) {
          conv_forward_block<T, 1, pixels, 1, 1>(side, block, offsets, values, bias, OneRectangle{}, x + at, 0,
                                                 kImageLanes, y + at, 0, y_plane);
        }
      });
    });
  }
}

/// All lines of a block and phase over a patch of input pixels.
template <class T, int rows, int width, bool input_gradient>
inline void conv_backward_block(const CompressedSide& side, std::int64_t block, std::int64_t phase,
                                const std::int32_t* offsets, const T* values, const Patch& patch, const T* x,
                                std::int64_t x_row, std::int64_t x_step, std::int64_t x_plane, const T* dy,
                                std::int64_t dy_row, T* dx, bool add, T* dvalues) {
  constexpr std::uint32_t kMost = 64;  // dot products, a vector of partial sums each, that stay in L1
  constexpr int vectors = kVectorsTogether<T>;
  const CompressedSide::Segment* segment = side.segment(block, phase);
  const std::uint16_t* line = side.outer_index.data() + segment->line;
  const std::uint16_t* const last = side.outer_index.data() + segment[1].line - 1;
  std::uint32_t k = segment->entry;
  Vec<T> dots[kMost];
  for (std::uint32_t r = segment->run; r < segment[1].run; ++r) {
    const CompressedSide::Run run = side.runs[r];
    for (std::uint32_t i = 0; i < run.lines; ++i) {
      const std::int64_t line_at = *line++ * x_plane, next_line = *std::min(line, last) * x_plane;
      const std::uint32_t line_end = k + run.entries;
      bool first = block == 0 && !add;
      if constexpr (input_gradient) {
        if (run.entries == 0 && first) {
          each_rectangle<width>(patch, [&](auto pixels, std::int64_t band, std::int64_t w, bool) {
            T* const to = dx + line_at + band * rows * x_row + w * x_step;
            for (int h = 0; h < rows; ++h) {
              for (int v = 0; v < pixels * vectors; ++v) {
                store(to + h * x_row + v / vectors * x_step + v % vectors * kLanes<T>, Vec<T>{});
              }
            }
          });
        }
      }
      while (k < line_end) {
        const std::uint32_t entries = std::min(line_end - k, kMost);
        for (std::uint32_t e = 0; e < entries || e % kLanes<T> != 0; ++e) dots[e] = Vec<T>{};
        each_rectangle<width>(
            patch, [&](auto pixels, std::int64_t band, std::int64_t w,
                       bool last_of_band) __attribute__((always_inline)) {
              constexpr int across = pixels, sums = rows * across * vectors;
              const auto of_x = [&](int p) __attribute__((always_inline)) {
                const int pixel = p / vectors;
                return pixel / across * x_row + pixel % across * x_step + p % vectors * kLanes<T>;
              };
              const auto of_dy = [&](int p) __attribute__((always_inline)) {
                const int pixel = p / vectors;
                return pixel / across * dy_row + pixel % across * kImageLanes + p % vectors * kLanes<T>;
              };
              const std::int64_t at = line_at + band * rows * x_row + w * x_step;
              std::int64_t ahead = at + across * x_step;
              if (last_of_band) ahead = band + 1 < patch.bands ? line_at + (band + 1) * rows * x_row : next_line;
              Vec<T> xs[sums];
              [[maybe_unused]] Vec<T> sum[sums];
#pragma GCC unroll 16
              for (int p = 0; p < sums; ++p) {
                xs[p] = load(x + at + of_x(p));
                if constexpr (input_gradient) sum[p] = first ? Vec<T>{} : load(dx + at + of_x(p));
              }
#pragma GCC unroll 16
              for (int p = 0; p < sums; p += vectors) {
                __builtin_prefetch(x + ahead + of_x(p));
                if constexpr (input_gradient) __builtin_prefetch(dx + ahead + of_x(p), 1);
              }
              const T* const dy_at = dy + band * rows * dy_row + w * kImageLanes;
              for (std::uint32_t e = 0; e < entries; ++e) {
                const T* const g = in_register(dy_at + static_cast<std::int64_t>(offsets[k + e]) * kImageLanes);
                [[maybe_unused]] Vec<T> weight;
                if constexpr (input_gradient) weight = broadcast(values[k + e]);
                // Two chains, as in matrices.
                constexpr int half = sums > 4 ? (sums + 1) / 2 : sums;
                Vec<T> product = dots[e], second{};
#pragma GCC unroll 16
                for (int p = 0; p < sums; ++p) {
                  const Vec<T> gradient = in_register<T>(load(g + of_dy(p)));
                  if constexpr (input_gradient) sum[p] += weight * gradient;
                  Vec<T>& chain = p < half ? product : second;
                  chain = p == half ? xs[p] * gradient : chain + xs[p] * gradient;
                }
                dots[e] = half < sums ? product + second : product;
              }
              if constexpr (input_gradient) {
#pragma GCC unroll 16
                for (int p = 0; p < sums; ++p) store(dx + at + of_x(p), sum[p]);
              }
            });
        for (std::uint32_t e = 0; e < entries; e += kLanes<T>) {
          const Vec<T> total = sums_of<T>(dots + e);
          T* const to = dvalues + k + e;
          if (e + kLanes<T> <= entries) {
            store(to, load(to) + total);
          } else {
            for (std::uint32_t j = 0; e + j < entries; ++j) to[j] += total[j];
          }
        }
        k += entries;
        first = false;
      }
    }
  }
}

template <class T>
void conv_backward(const CompressedSide& side, std::int64_t phase, const std::int32_t* offsets, const T* values,
                   const ConvShape::Pair& stride, const ConvPart& part, const T* x, const T* dy, T* dx, bool add,
                   T* dvalues) {
  const std::int64_t x_row = part.x.row * kImageLanes * stride[0], x_step = kImageLanes * stride[1],
                     x_plane = part.x.plane * kImageLanes, dy_row = part.y.row * kImageLanes;
  const auto lanes = [&](auto input_gradient, int lane) {
    each_band<kBackwardPixels>(
        part.begin, part.end, part.width, part.patch_rows, [&](auto rows, std::int64_t h, std::int64_t bands) {
          with_strips_of<kBackwardPixels / rows>(part.width, [&](auto width, std::int64_t wide, std::int64_t narrow) {
            const std::int64_t at = h * x_row + lane;
            for (std::int64_t block = 0; block < side.blocks(); ++block) {
              conv_backward_block<T, rows, width, input_gradient>(
                  side, block, phase, offsets, values, {bands, wide, narrow}, x + at, x_row, x_step, x_plane,
                  dy + h * dy_row + lane, dy_row, dx != nullptr ? dx + at : nullptr, add, dvalues);
            }
          });
        });
  };
  for (int lane = 0; lane < kImageLanes; lane += kVectorsTogether<T> * kLanes<T>) {
    if (dx != nullptr)
      lanes(std::true_type{}, lane);
    else
      lanes(std::false_type{}, lane);
  }
}

template <class T>
double sum_of(const T* x, std::int64_t n) {
  constexpr std::int64_t kTogether = 4096;  // entries whose sums are formed in T
  double total = 0;
  for (std::int64_t begin = 0; begin < n; begin += kTogether) {
    Vec<T> sum[4] = {};
    const std::int64_t end = std::min(n, begin + kTogether);
    std::int64_t i = begin;
    for (; i + 4 * kLanes<T> <= end; i += 4 * kLanes<T>) {
      for (int v = 0; v < 4; ++v) sum[v] += load(x + i + v * kLanes<T>);
    }
    for (; i < end; i += kLanes<T>) sum[0] += load(x + i);
    sum[0] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    for (int j = 0; j < kLanes<T>; ++j) total += static_cast<double>(sum[0][j]);
  }
  return total;
}

template <class T>
constexpr SparseConvKernels<T> sparse_conv_kernels() {
  return {&conv_forward<T>, &conv_forward_alone<T>, &conv_backward<T>, &sum_of<T>};
}
