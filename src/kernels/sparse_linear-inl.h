// The text of the kernels of sparse_linear.h, included once by the file of each instruction set after vector-inl.h.
//
// What was measured (two cores with AVX-512, 1024x1024 and 4096x4096, batch 128) stands in docs/kernels.md. In short:
// register accumulation over the batch, input tiles that stay in L1, and rows ordered by their number of entries are
// what makes the forward product fast; one pass for dx and dw, whose dot products are kept as vectors and summed
// across lanes sixteen at a time, makes the backward one.

/// Vectors of one pass over a tile: sums held in registers.
constexpr int kForwardVectors = kVectorBytes == 64 ? 4 : 8;
/// With AVX2 eight sums leave no registers for the inputs, which come from L1: better than dot products in two halves.
constexpr int kBackwardVectors = kVectorBytes == 32 ? 8 : 4;
/// Tiles that the backward product takes at once: inputs and sums of both in registers.
constexpr int kBackwardTiles = kVectorBytes == 64 ? 2 : 1;
/// Bytes of a block's tiles from which on they are asked for early. With longer vectors smaller ones come in time, and
/// asking takes the place of a load; but where multiply-adds are the limit, as they are with dx on CPUs that halve such
/// vectors, it always pays (docs/kernels.md).
inline std::int64_t ask_early_from(bool input_gradient) {
  if (kVectorBytes != 64) return 40 << 10;
  if (!input_gradient) return 2 << 20;
  return halves_long_vectors() ? 0 : 1 << 20;
}
/// Sums in registers at once: with fewer vectors a pass (small batches), several lines of a run go together, so that
/// multiply-adds do not wait for one another.
constexpr int kForwardSums = kForwardVectors;
/// Two sums for each output where there are registers for them, from this number of entries of a line on: with fewer,
/// the sums of the next lines overlap.
constexpr int kForwardWays = kVectorBytes == 64 ? 2 : 1;
constexpr std::uint32_t kLongLine = 8;
/// Backward likewise, up to this number of sums of one entry: all that there are with AVX-512, so that a sample's
/// gradient has the same bits in every tile.
constexpr int kTwoWaysUpTo = kVectorBytes == 64 ? 8 : 2;

/// Asks for the lines of memory that hold `count` numbers some way ahead of p, past an end for what nobody will read.
template <class T>
inline void ask_ahead(const T* p, std::uint32_t count) {
  constexpr std::uint32_t kEntries = 128, kLine = 64 / sizeof(T);
  for (std::uint32_t i = 0; i < count; i += kLine) __builtin_prefetch(p + kEntries + i);
}

/// f(integral_constant<vectors>, first lane) for the strips of at most `most` vectors that cover `lanes` samples.
template <class T, int lanes, int most, int first = 0, class F>
inline void each_strip(const F& f) {
  constexpr int vectors = std::min(most, (lanes - first) / kLanes<T>);
  f(std::integral_constant<int, vectors>{}, first);
  if constexpr (first + vectors * kLanes<T> < lanes) each_strip<T, lanes, most, first + vectors * kLanes<T>>(f);
}

/// f(integral_constant<lanes>): the number of lanes as a constant.
template <class F>
inline void with_lanes(int lanes, const F& f) {
  switch (lanes) {
    case 16: return f(std::integral_constant<int, 16>{});
    case 32: return f(std::integral_constant<int, 32>{});
    case 48: return f(std::integral_constant<int, 48>{});
    default: return f(std::integral_constant<int, 64>{});
  }
}

/// `rows` rows of one run at once, every second entry into sums of its own where ways = 2: as many sums in registers as
/// hide the latency of a multiply-add.
template <class T, std::int64_t lanes, int vectors, int rows, int ways>
[[gnu::always_inline]] inline void forward_rows(const std::uint16_t* row, const std::uint16_t* column, const T* value,
                                                std::uint32_t entries, const T* x, const T* bias, T* y,
                                                bool first_block, bool relu) {
  Vec<T> sum[ways][rows][vectors];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
    const T start = first_block && bias != nullptr ? bias[row[r]] : T(0);
    if (!first_block) {  // the next line's sums are asked for: lines stand by their length, so y is read out of order
#pragma GCC unroll 8
      for (int v = 0; v < vectors * kVectorBytes; v += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(y + row[rows + r] * lanes) + v, 1);
    }
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
      sum[0][r][v] = first_block ? broadcast(start) : load(y + row[r] * lanes + v * kLanes<T>);
      if constexpr (ways == 2) sum[1][r][v] = Vec<T>{};
    }
  }
  if constexpr (vectors == kForwardVectors) {  // with fewer it takes more time than it spares
    ask_ahead(value, rows * entries);
    ask_ahead(column, rows * entries);
  }
  const auto add = [&](int r, std::int64_t c, Vec<T> w, int way) __attribute__((always_inline)) {
    const T* const in = in_register(x + c * lanes);
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) sum[way][r][v] += w * load(in + v * kLanes<T>);
  };
  constexpr int odd = ways - 1;
  std::uint32_t k = 0;
#ifdef ESPALIER_HAS_FOUR
  for (; k + 4 <= entries; k += 4) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const Vec<T> w = four(value + r * entries + k);
      std::uint64_t c = 0;
      __builtin_memcpy(&c, column + r * entries + k, sizeof c);
      add(r, c & 0xffff, one_of_four<T, 0>(w, EveryLane<T>{}), 0);
      add(r, c >> 16 & 0xffff, one_of_four<T, 1>(w, EveryLane<T>{}), odd);
      add(r, c >> 32 & 0xffff, one_of_four<T, 2>(w, EveryLane<T>{}), 0);
      add(r, c >> 48, one_of_four<T, 3>(w, EveryLane<T>{}), odd);
    }
  }
#endif
  const auto add_one = [&](std::uint32_t e, int way) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) add(r, column[r * entries + e], broadcast(value[r * entries + e]), way);
  };
  for (; k + 2 <= entries; k += 2) {
    add_one(k, 0);
    add_one(k + 1, odd);
  }
  if (k < entries) add_one(k, 0);
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
      if constexpr (ways == 2) sum[0][r][v] += sum[1][r][v];
      if (relu) sum[0][r][v] = sum[0][r][v] < T(0) ? Vec<T>{} : sum[0][r][v];  // NaN stays NaN
      store(y + row[r] * lanes + v * kLanes<T>, sum[0][r][v]);
    }
  }
}

template <class T, std::int64_t lanes, int vectors>
[[gnu::noinline]] void forward_strip(const CompressedSide& side, const SidePart& part, const T* values, const T* bias,
                                     const T* x, T* y, bool relu) {
  constexpr int together = std::max(1, kForwardSums / vectors);
  const std::uint32_t first_entry = side.segment(part.block_begin, part.chunk_begin)->entry;
  for (std::int64_t block = part.block_begin; block < part.block_end; ++block) {
    const T* const xb = x + block * side.block * lanes;
    const bool ends_in_relu = relu && block + 1 == side.blocks();
    for (std::int64_t chunk = part.chunk_begin; chunk < part.chunk_end; ++chunk) {
      const CompressedSide::Segment* segment = side.segment(block, chunk);
      const std::uint16_t* row = side.outer_index.data() + segment->line;
      const std::uint16_t* column = side.inner_index.data() + segment->entry;
      const T* value = values + (segment->entry - first_entry);
      const std::int64_t first = chunk * side.chunk;
      const T* const b = bias != nullptr ? bias + first : nullptr;
      for (std::uint32_t r = segment->run; r < segment[1].run; ++r) {
        const CompressedSide::Run run = side.runs[r];
        const auto go_through = [&](auto ways) {
          std::uint32_t i = 0;
          for (; i + together <= run.lines; i += together) {
            forward_rows<T, lanes, vectors, together, ways>(row, column, value, run.entries, xb, b, y + first * lanes,
                                                            block == 0, ends_in_relu);
            row += together;
            column += together * run.entries;
            value += together * run.entries;
          }
          for (; i < run.lines; ++i) {
            forward_rows<T, lanes, vectors, 1, ways>(row, column, value, run.entries, xb, b, y + first * lanes,
                                                     block == 0, ends_in_relu);
            ++row;
            column += run.entries;
            value += run.entries;
          }
        };
        run.entries >= kLongLine ? go_through(std::integral_constant<int, kForwardWays>{})
                                 : go_through(std::integral_constant<int, 1>{});
      }
    }
  }
}

template <class T>
void sparse_forward(const CompressedSide& side, const SidePart& part, const T* values, const T* bias, const T* x, T* y,
                    bool relu, int lanes) {
  with_lanes(lanes, [&](auto n) {
    each_strip<T, n, kForwardVectors>([&](auto vectors, int first) {
      forward_strip<T, n, vectors>(side, part, values, bias, x + first, y + first, relu);
    });
  });
}

/// Where there are two tiles, the address of each in a register of its own.
template <int tiles, class T>
inline const T* of_tile(const T* p) {
  return tiles > 1 ? in_register(p) : p;
}

/// Vector v of tile t is in register [t * vectors + v]. A function of its own: inlined beside others of its kind, it
/// gets too few registers where there are 16 (13 % on AVX2).
template <class T, std::int64_t lanes, int vectors, int tiles, bool input_gradient, bool ask_early>
[[gnu::noinline]] void backward_strip(const CompressedSide& side, const T* values, const T* x, const T* dy, T* dx,
                                      T* dvalues, bool accumulate, bool of_relu, std::int64_t chunk_begin,
                                      std::int64_t chunk_end) {
  constexpr int registers = tiles * vectors;
  constexpr int ways = registers <= kTwoWaysUpTo ? 2 : 1;
  const std::uint16_t* const row = side.inner_index.data();
  const std::int64_t x_tile = side.outer * lanes, dy_tile = side.inner * lanes;
  for (std::int64_t block = 0; block < side.blocks(); ++block) {
    const T* const dyb = dy + block * side.block * lanes;
    std::uint32_t k = side.segment(block, chunk_begin)->entry;
    PendingDots<T> dots(dvalues + k, k, accumulate);
    [[maybe_unused]] const bool masked = of_relu && block + 1 == side.blocks();
    for (std::int64_t chunk = chunk_begin; chunk < chunk_end; ++chunk) {
      const CompressedSide::Segment* segment = side.segment(block, chunk);
      const std::uint16_t* column = side.outer_index.data() + segment->line;
      for (std::uint32_t r = segment->run; r < segment[1].run; ++r) {
        const CompressedSide::Run run = side.runs[r];
        for (std::uint32_t i = 0; i < run.lines; ++i) {
          const std::int64_t at = (chunk * side.chunk + *column++) * lanes;
          const auto of_x = [&](int p) { return at + p / vectors * x_tile + p % vectors * kLanes<T>; };
          Vec<T> xs[registers];
          [[maybe_unused]] Vec<T> sum[ways][registers];
#pragma GCC unroll 8
          for (int p = 0; p < registers; ++p) {
            xs[p] = load(x + of_x(p));
            if constexpr (input_gradient) sum[0][p] = block > 0 ? load(dx + of_x(p)) : Vec<T>{};
            if constexpr (input_gradient && ways == 2) sum[1][p] = Vec<T>{};
          }
          for (const std::uint32_t line_end = k + run.entries; k < line_end;) {
            const std::uint32_t end = std::min(line_end, k + dots.kSegment);
            const auto entry = [&](std::uint32_t e, int way) __attribute__((always_inline)) {
              const T* const g = of_tile<tiles>(dyb + row[e] * lanes);
              const T* const g2 = of_tile<tiles>(g + dy_tile);  // of the second tile, where there are two
              if constexpr (ask_early) {                        // past the end of a block for what nobody will read
                const T* const ahead = of_tile<tiles>(dyb + row[e + kAhead] * lanes);
                const T* const ahead2 = of_tile<tiles>(ahead + dy_tile);
#pragma GCC unroll 2
                for (int t = 0; t < tiles; ++t) {
#pragma GCC unroll 8
                  for (int v = 0; v < vectors * kVectorBytes; v += 64) {
                    __builtin_prefetch(reinterpret_cast<const char*>(t == 0 ? ahead : ahead2) + v);
                  }
                }
              }
              [[maybe_unused]] Vec<T> w;
              if constexpr (input_gradient) w = broadcast(values[e]);
              // Two chains: eight multiply-adds that wait for one another fill the queue.
              constexpr int half = registers > 4 ? (registers + 1) / 2 : registers;
              Vec<T> product{}, second{};
#pragma GCC unroll 8
              for (int p = 0; p < registers; ++p) {
                Vec<T> gradient = load((p < vectors ? g : g2) + p % vectors * kLanes<T>);
                if constexpr (input_gradient) {
                  gradient = in_register<T>(gradient);
                  sum[way][p] += w * gradient;
                }
                Vec<T>& chain = p < half ? product : second;
                chain = p % half == 0 ? xs[p] * gradient : chain + xs[p] * gradient;
              }
              dots.of(e) = half < registers ? product + second : product;
            };
            if constexpr (ways == 2) {
              for (; k + 2 <= end; k += 2) {
                entry(k, 0);
                entry(k + 1, 1);
              }
            }
            for (; k < end; ++k) entry(k, 0);
            dots.flush_full(k);
          }
          if constexpr (input_gradient) {
#pragma GCC unroll 8
            for (int p = 0; p < registers; ++p) {
              if constexpr (ways == 2) sum[0][p] += sum[1][p];
              if (masked) sum[0][p] = xs[p] > T(0) ? sum[0][p] : Vec<T>{};
              store(dx + of_x(p), sum[0][p]);
            }
          }
        }
      }
    }
    dots.finish(k);
  }
}

template <class T>
void sparse_backward(const CompressedSide& side, const T* values, const T* x, const T* dy, T* dx, T* dvalues,
                     bool accumulate, bool of_relu, int tiles, int lanes, std::int64_t chunk_begin,
                     std::int64_t chunk_end) {
  const auto strips = [&](auto together, auto n, std::int64_t tile) {
    each_strip<T, n, kBackwardVectors>([&](auto vectors, int first) {
      const bool add = accumulate || first > 0 || tile > 0;
      const std::int64_t in = tile * side.outer * n + first, out = tile * side.inner * n + first;
      const auto run = [&](auto input_gradient, auto ask_early) {
        backward_strip<T, n, vectors, together, input_gradient, ask_early>(side, values, x + in, dy + out,
                                                                           dx != nullptr ? dx + in : nullptr, dvalues,
                                                                           add, of_relu, chunk_begin, chunk_end);
      };
      const auto with_dx = [&](auto ask_early) {
        dx != nullptr ? run(std::true_type{}, ask_early) : run(std::false_type{}, ask_early);
      };
      const std::int64_t bytes = side.block * n * together * static_cast<std::int64_t>(sizeof(T));
      bytes >= ask_early_from(dx != nullptr) ? with_dx(std::true_type{}) : with_dx(std::false_type{});
    });
  };
  std::int64_t tile = 0;
  if (lanes == kTileLanes && !side.tile_by_tile) {
    for (; tile + kBackwardTiles <= tiles; tile += kBackwardTiles)
      strips(std::integral_constant<int, kBackwardTiles>{}, std::integral_constant<int, kTileLanes>{}, tile);
  }
  for (; tile < tiles; ++tile) with_lanes(lanes, [&](auto n) { strips(std::integral_constant<int, 1>{}, n, tile); });
}

template <class T>
void row_sums(const T* dy, T* dbias, bool accumulate, int lanes, std::int64_t row_begin, std::int64_t row_end) {
  for (std::int64_t r = row_begin; r < row_end; r += kLanes<T>) {
    const int n = static_cast<int>(std::min<std::int64_t>(kLanes<T>, row_end - r));
    Vec<T> partial[kLanes<T>];
    for (int i = 0; i < kLanes<T>; ++i) {
      Vec<T> sum{};
      for (int v = 0; i < n && v < lanes; v += kLanes<T>) sum += load(dy + (r + i) * lanes + v);
      partial[i] = sum;
    }
    const Vec<T> sums = sums_of<T>(partial);
    for (int i = 0; i < n; ++i) dbias[r + i] = accumulate ? dbias[r + i] + sums[i] : sums[i];
  }
}

template <class T>
void relu_gradient(const T* y, const T* dy, T* dz, T* dbias, bool accumulate, int lanes, std::int64_t row_begin,
                   std::int64_t row_end) {
  constexpr std::int64_t kRows = 64;  // that stay in L1 until their sums are formed
  for (std::int64_t r = row_begin; r < row_end; r += kRows) {
    const std::int64_t end = std::min(row_end, r + kRows);
    for (std::int64_t i = r * lanes; i < end * lanes; i += kLanes<T>) {
      store(dz + i, load(y + i) > T(0) ? load(dy + i) : Vec<T>{});
    }
    if (dbias != nullptr) row_sums(dz, dbias, accumulate, lanes, r, end);
  }
}

// A block of kLanes<T> rows and as many features, transposed. Where `whole`, all its loops are unrolled and it stays in
// registers; else it has `samples` rows of `features`, and zeros where to_tile finds none.

template <class T, bool whole>
inline void block_to_tile(const T* rows, std::int64_t stride, int samples, int features, T* tile, int lanes) {
  Vec<T> block[kLanes<T>];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i) {
    if constexpr (whole) {
      block[i] = load(rows + i * stride);
    } else {
      block[i] = Vec<T>{};
      if (i < samples) __builtin_memcpy(&block[i], rows + i * stride, static_cast<std::size_t>(features) * sizeof(T));
    }
  }
  transpose<T>(block);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i)
    if (whole || i < features) store(tile + i * lanes, block[i]);
}

template <class T, bool whole>
inline void block_from_tile(const T* tile, int lanes, T* rows, std::int64_t stride, int samples, int features) {
  Vec<T> block[kLanes<T>];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i) block[i] = whole || i < features ? load(tile + i * lanes) : Vec<T>{};
  transpose<T>(block);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i) {
    if constexpr (whole)
      store(rows + i * stride, block[i]);
    else if (i < samples)
      __builtin_memcpy(rows + i * stride, &block[i], static_cast<std::size_t>(features) * sizeof(T));
  }
}

/// f(first feature, number of features, first sample) for each block of `samples` and [begin, end). Some features at a
/// time go through all samples: one vector at a time, rows come from as many pages as a tile has samples, half as fast.
template <class T, class F>
inline void each_block(int samples, std::int64_t begin, std::int64_t end, const F& f) {
  constexpr std::int64_t kFeatures = 64;
  for (std::int64_t part = begin; part < end; part += kFeatures) {
    for (int s = 0; s < samples; s += kLanes<T>) {
      for (std::int64_t i = part; i < std::min(end, part + kFeatures); i += kLanes<T>) {
        f(i, static_cast<int>(std::min<std::int64_t>(kLanes<T>, end - i)), s);
      }
    }
  }
}

template <class T>
void to_tile(const T* rows, std::int64_t stride, int samples, T* tile, int lanes, std::int64_t begin,
             std::int64_t end) {
  each_block<T>(lanes, begin, end, [&](std::int64_t f, int features, int s) {
    const T* const from = s < samples ? rows + s * stride + f : rows;
    T* const to = tile + f * lanes + s;
    if (features == kLanes<T> && s + kLanes<T> <= samples)
      block_to_tile<T, true>(from, stride, kLanes<T>, features, to, lanes);
    else
      block_to_tile<T, false>(from, stride, samples - s, features, to, lanes);
  });
}

template <class T>
void from_tile(const T* tile, int lanes, T* rows, std::int64_t stride, int samples, std::int64_t begin,
               std::int64_t end) {
  each_block<T>(samples, begin, end, [&](std::int64_t f, int features, int s) {
    const T* const from = tile + f * lanes + s;
    T* const to = rows + s * stride + f;
    if (features == kLanes<T> && s + kLanes<T> <= samples)
      block_from_tile<T, true>(from, lanes, to, stride, kLanes<T>, features);
    else
      block_from_tile<T, false>(from, lanes, to, stride, samples - s, features);
  });
}

template <class T>
constexpr SparseLinearKernels<T> sparse_linear_kernels() {
  return {&sparse_forward<T>, &sparse_backward<T>, &row_sums<T>, &relu_gradient<T>, &to_tile<T>, &from_tile<T>};
}
