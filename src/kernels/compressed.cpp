#include "espalier/kernels/compressed.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "espalier/kernels/dispatch.h"
#include "espalier/kernels/sparse_conv.h"
#include "espalier/kernels/sparse_linear.h"
#include "kernels/tables.h"

namespace espalier::kernels {
namespace {

/// Orders the lines of a chunk by falling number of entries (those of one number in their order), or leaves them.
class LineOrder {
 public:
  /// entries[i]: of line i. The result is valid until the next call.
  const std::vector<std::uint16_t>& of(const std::uint32_t* entries, std::size_t lines, bool by_length) {
    order_.resize(lines);
    if (!by_length) {
      for (std::size_t i = 0; i < lines; ++i) order_[i] = static_cast<std::uint16_t>(i);
      return order_;
    }
    const auto [low, high] = std::minmax_element(entries, entries + lines);
    const std::uint32_t least = *low;
    bucket_.assign(*high - least + 1, 0);
    for (std::size_t i = 0; i < lines; ++i) ++bucket_[entries[i] - least];
    std::uint32_t place = 0;
    for (std::size_t v = bucket_.size(); v-- > 0;) place += std::exchange(bucket_[v], place);
    for (std::size_t i = 0; i < lines; ++i) order_[bucket_[entries[i] - least]++] = static_cast<std::uint16_t>(i);
    return order_;
  }

 private:
  std::vector<std::uint16_t> order_;
  std::vector<std::uint32_t> bucket_;
};

/// Runs and lines of one (block, chunk), while a side is being built.
struct Part {
  std::vector<CompressedSide::Run> runs;
  std::vector<std::uint16_t> outer_index;

  /// Adds lines in this order; entries[i] becomes where the entries of line i begin, from `entry` on. Returns the end.
  std::uint32_t add(const std::vector<std::uint16_t>& order, std::uint32_t* entries, std::uint32_t entry,
                    bool every_line) {
    const std::size_t first_run = runs.size();
    for (const std::uint16_t line : order) {
      std::uint32_t& n = entries[line];
      if (n == 0 && !every_line) continue;
      if (runs.size() == first_run || runs.back().entries != n) runs.push_back({n, 0});
      ++runs.back().lines;
      outer_index.push_back(line);
      entry += std::exchange(n, entry);
    }
    return entry;
  }
};

/// Sums up what each chunk costs.
void set_work(CompressedSide& side) {
  const std::int64_t blocks = side.blocks(), chunks = side.chunks();
  side.work.assign(static_cast<std::size_t>(chunks + 1), 0);
  for (std::int64_t c = 0; c < chunks; ++c) {
    std::int64_t& sum = side.work[static_cast<std::size_t>(c + 1)] = side.work[static_cast<std::size_t>(c)];
    for (std::int64_t b = 0; b < blocks; ++b) {
      const CompressedSide::Segment* s = side.segment(b, c);
      sum += s[1].entry - s->entry + 2 * static_cast<std::int64_t>(s[1].line - s->line);  // sums loaded and stored
    }
  }
}

/// Lines of a chunk of a matrix: what threads share out.
std::int64_t lines_of_chunk(std::int64_t outer) {
  return std::clamp<std::int64_t>((outer / 16 + 31) / 32 * 32, 32, 512);
}

void set_sizes(CompressedSide& side, std::int64_t outer, std::int64_t chunk, std::int64_t inner, std::int64_t block) {
  side.outer = outer;
  side.inner = inner;
  side.block = std::clamp<std::int64_t>(block, 1, std::max<std::int64_t>(1, inner));
  side.chunk = chunk;
  side.segments.resize(static_cast<std::size_t>(side.blocks() * side.chunks() + 1));
}

/// Strings the parts together, block-major, and sets the segments' runs and lines.
void join(CompressedSide& side, std::vector<Part>& parts, std::uint32_t nnz) {
  std::size_t runs = 0, lines = 0;
  for (const Part& part : parts) {
    runs += part.runs.size();
    lines += part.outer_index.size();
  }
  side.runs.reserve(runs);
  side.outer_index.reserve(lines + kAhead);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    side.segments[i].run = static_cast<std::uint32_t>(side.runs.size());
    side.segments[i].line = static_cast<std::uint32_t>(side.outer_index.size());
    side.runs.insert(side.runs.end(), parts[i].runs.begin(), parts[i].runs.end());
    side.outer_index.insert(side.outer_index.end(), parts[i].outer_index.begin(), parts[i].outer_index.end());
  }
  side.outer_index.resize(lines + kAhead);
  side.segments.back() = {static_cast<std::uint32_t>(runs), static_cast<std::uint32_t>(lines), nnz};
  set_work(side);
}

/// Columns of a matrix are the lines of its backward side.
struct ColumnLines {
  std::int64_t columns;

  std::int64_t lines() const { return columns; }
  std::int64_t chunk() const { return lines_of_chunk(columns); }
  std::uint32_t of(std::int64_t /*row*/, std::uint32_t column) const { return column; }
  static constexpr bool kIndexed = true;
};

/// Phases and input channels of a convolution are the lines of its backward side.
class ChannelLines {
 public:
  explicit ChannelLines(const ConvShape& shape)
      : in_(shape.in),
        phases_(shape.phases()),
        rows_of_group_(shape.out / shape.groups),
        channels_of_group_(static_cast<std::uint32_t>(shape.in / shape.groups)) {
    for (std::int64_t c = 0; c < shape.in / shape.groups; ++c) {
      for (std::int64_t h = 0; h < shape.kernel[0]; ++h) {
        for (std::int64_t w = 0; w < shape.kernel[1]; ++w) {
          const std::int64_t phase = shape.phase_of(0, h) * shape.stride[1] + shape.phase_of(1, w);
          line_.push_back(static_cast<std::uint32_t>(phase * shape.in + c));
        }
      }
    }
  }

  std::int64_t lines() const { return phases_ * in_; }
  std::int64_t chunk() const { return in_; }
  std::uint32_t of(std::int64_t row, std::uint32_t column) const {
    return line_[column] + static_cast<std::uint32_t>(row / rows_of_group_) * channels_of_group_;
  }
  static constexpr bool kIndexed = false;

 private:
  std::int64_t in_, phases_, rows_of_group_;
  std::uint32_t channels_of_group_;
  std::vector<std::uint32_t> line_;  // of each column, in the first group
};

/// The entries of a block of rows stand together in the list: one counting sort a block. place[i]: where entry i of the
/// list goes.
template <class Lines>
CompressedSide backward_side(const RowMajorList& list, std::int64_t rows, const Lines& line, std::int64_t block,
                             bool by_length, EntryIndices& place, int threads) {
  CompressedSide side;
  set_sizes(side, line.lines(), line.chunk(), rows, block);
  if (Lines::kIndexed) {
    side.inner_index.resize(list.column.size() + kAhead);
    std::fill(side.inner_index.end() - kAhead, side.inner_index.end(), std::uint16_t{0});
  }
  const std::int64_t blocks = side.blocks(), chunks = side.chunks();
  std::vector<Part> parts(static_cast<std::size_t>(blocks * chunks));
#pragma omp parallel num_threads(threads)
  {
    std::vector<std::uint32_t> next(
        static_cast<std::size_t>(side.outer));  // entries of a line, then where its next goes
    // f(row, entry) for the block's entries
    const auto each_entry = [&](std::int64_t r0, std::int64_t r1, const auto& f) {
      for (std::int64_t r = r0; r < r1; ++r) {
        const std::uint32_t end = list.start[static_cast<std::size_t>(r + 1)];
        for (std::uint32_t i = list.start[static_cast<std::size_t>(r)]; i < end; ++i) f(r, i);
      }
    };
    LineOrder line_order;
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t b = 0; b < blocks; ++b) {
      const std::int64_t r0 = b * side.block, r1 = std::min(rows, r0 + side.block);
      std::fill(next.begin(), next.end(), 0);
      each_entry(r0, r1, [&](std::int64_t r, std::uint32_t i) { ++next[line.of(r, list.column[i])]; });
      std::uint32_t entry = list.start[static_cast<std::size_t>(r0)];
      for (std::int64_t c = 0; c < chunks; ++c) {
        const auto at = static_cast<std::size_t>(b * chunks + c);
        side.segments[at].entry = entry;
        std::uint32_t* const lines = next.data() + c * side.chunk;
        const auto n = static_cast<std::size_t>(std::min(side.chunk, side.outer - c * side.chunk));
        // The first block writes sums, and the last one of a matrix takes the gradient of a ReLU.
        const bool every_line = b == 0 || (Lines::kIndexed && b + 1 == blocks);
        entry = parts[at].add(line_order.of(lines, n, by_length), lines, entry, every_line);
      }
      each_entry(r0, r1, [&](std::int64_t r, std::uint32_t i) {
        const std::uint32_t to = next[line.of(r, list.column[i])]++;
        if (Lines::kIndexed) side.inner_index[to] = static_cast<std::uint16_t>(r - r0);
        place[i] = to;
      });
    }
  }
  join(side, parts, static_cast<std::uint32_t>(list.column.size()));
  return side;
}

/// Outer = rows. The entries of a row in a block stand together in the list, in order: they are copied as they are.
/// canonical[j] = place of the entry that comes to stand at j.
CompressedSide forward_side(const RowMajorList& list, std::int64_t rows, std::int64_t row_chunk, std::int64_t columns,
                            std::int64_t block, const EntryIndices& place, EntryIndices& canonical, int threads) {
  CompressedSide side;
  set_sizes(side, rows, row_chunk, columns, block);
  side.inner_index.resize(list.column.size());
  const std::int64_t blocks = side.blocks(), chunks = side.chunks();
  std::vector<Part> parts(static_cast<std::size_t>(blocks * chunks));
  std::vector<std::uint32_t> entries(static_cast<std::size_t>(blocks * chunks));
  // The first entries of the rows of chunk c, and one behind the last.
  const auto starts_of = [&](std::int64_t c) { return list.start.data() + c * side.chunk; };
  const auto rows_of = [&](std::int64_t c) {
    return static_cast<std::size_t>(std::min(side.chunk, rows - c * side.chunk));
  };
#pragma omp parallel num_threads(threads)
  {
    LineOrder line_order;
    std::vector<std::uint32_t> pieces(static_cast<std::size_t>(blocks * side.chunk));  // [block][row] entries
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t c = 0; c < chunks; ++c) {
      for (std::size_t r = 0; r < rows_of(c); ++r) {
        const std::uint32_t* column = list.column.data() + starts_of(c)[r];
        const std::uint32_t* const end = list.column.data() + starts_of(c)[r + 1];
        for (std::int64_t b = 0; b < blocks; ++b) {
          const std::uint32_t* const first = column;
          if (b + 1 == blocks) column = end;
          while (column < end && *column < (b + 1) * side.block) ++column;
          pieces[static_cast<std::size_t>(b * side.chunk) + r] = static_cast<std::uint32_t>(column - first);
        }
      }
      for (std::int64_t b = 0; b < blocks; ++b) {
        const auto at = static_cast<std::size_t>(b * chunks + c);
        std::uint32_t* const lines = pieces.data() + b * side.chunk;
        entries[at] = parts[at].add(line_order.of(lines, rows_of(c), true), lines, 0, b == 0 || b + 1 == blocks);
      }
    }
  }
  std::uint32_t sum = 0;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    side.segments[i].entry = sum;
    sum += entries[i];
  }
#pragma omp parallel num_threads(threads)
  {
    std::vector<std::uint32_t> from;  // the first entry of each row that has not been copied
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t c = 0; c < chunks; ++c) {
      from.assign(starts_of(c), starts_of(c) + rows_of(c));
      for (std::int64_t b = 0; b < blocks; ++b) {
        // In the order in which lines come to stand, by their length: written one behind the other, and loops' ends are
        // predicted.
        const auto at = static_cast<std::size_t>(b * chunks + c);
        const auto base = static_cast<std::uint32_t>(b * side.block);
        std::uint32_t to = side.segments[at].entry;
        const std::uint16_t* row = parts[at].outer_index.data();
        for (const CompressedSide::Run run : parts[at].runs) {
          for (std::uint32_t line = 0; line < run.lines; ++line, ++row) {
            const std::uint32_t i = std::exchange(from[*row], from[*row] + run.entries);
            for (std::uint32_t k = 0; k < run.entries; ++k, ++to) {
              side.inner_index[to] = static_cast<std::uint16_t>(list.column[i + k] - base);
              canonical[to] = place[i + k];
            }
          }
        }
      }
    }
  }
  join(side, parts, static_cast<std::uint32_t>(list.column.size()));
  return side;
}

/// Inner indices of a block, whether lines stand by their length, and whether tiles are taken one at a time.
struct Blocking {
  std::int64_t forward, backward;
  bool backward_by_length, tile_by_tile = false;
};

/// Measured on 1024x1024 to 8192x8192, batch 128, one core (docs/kernels.md). `fill`: indices whose tiles fill L2; a
/// block takes half of it, which leaves room for what goes by.
///
/// Forward, blocks whose tiles fill two thirds of L1 pay while a line has some ten entries in a block; with fewer,
/// loading its sums again costs more than tiles from L2. Lines stand by their length: loop ends are predicted.
///
/// Backward, a line has some 32 entries in a block (80 where tiles are taken one by one): with fewer rows x and dx are
/// loaded again too often, with more, fewer tiles come from L1. The tiles of a block stay in half of L2, or in all of
/// it down to 6 entries a line (10). Tiles are taken one by one where half of L2 does not hold all rows of two, lines
/// of two would have fewer than 16 entries, and one tile's block fits L2: 2 to 15 % of a step less from 98.5 to 99.9 %.
/// Natural order: each tile of x and dx is touched once a block, and taken out of order that is 3 to 20 % slower; but
/// where all tiles fit a megabyte, by length: the same time there, and 5 to 10 % less in batches of 32.
Blocking choose_blocking(std::int64_t rows, std::int64_t columns, std::int64_t nnz) {
  constexpr std::int64_t kWhole = 65536, kTileBytes = kTileLanes * sizeof(float);
  const double density = static_cast<double>(nnz) / (static_cast<double>(rows) * static_cast<double>(columns));
  const auto entries_of = [&](std::int64_t indices) { return density * static_cast<double>(indices); };  // a line
  const auto indices_of = [&](double entries) { return static_cast<std::int64_t>(entries / density); };
  Blocking blocking{kWhole, kWhole, 2 * columns + rows <= 2048};  // x, dx and dy
  const std::int64_t fill = l2_bytes() / kTileBytes;
  if (density >= 0.0125)
    blocking.forward = density >= 0.08 ? 128 : density >= 0.04 ? 256 : density >= 0.0175 ? 512 : 1024;
  else if (entries_of(fill / 2) >= 10)
    blocking.forward = fill / 2;
  const auto of_tiles = [&](int tiles) {
    if (!(entries_of(fill / tiles) >= 5)) return kWhole;  // as where there are no weights at all
    const auto [wanted, least, fewest] = tiles == 2 ? std::tuple{32, 6, 96} : std::tuple{80, 10, 1024};
    const std::int64_t most = std::clamp(indices_of(least), fill / tiles / 2, fill / tiles);
    return std::clamp<std::int64_t>(indices_of(wanted), std::min<std::int64_t>(fewest, most), most);
  };
  const int tiles = active().backward_tiles;
  const std::int64_t together = of_tiles(tiles), one = of_tiles(1);
  blocking.tile_by_tile =
      tiles > 1 && rows > fill / 2 / tiles && entries_of(std::min(rows, together)) < 16 && std::min(rows, one) <= fill;
  blocking.backward = blocking.tile_by_tile ? one : together;
  return blocking;
}

/// Blocks are of whole channels: of input channels forward, of output channels backward.
///
/// Measured on convolutions of 16 to 256 channels at 8x8 to 32x32 pixels, batch 64, one AVX-512 core: a block in which
/// a line has some 29 entries, backward of one phase of the stride, for the same reasons as in matrices; forward 16
/// channels, whose window of pixels fits L1, where that is how it goes over them. Lines in natural order backward: that
/// by length, which brings nothing here, would take the planes of x and dx out of order.
Blocking choose_blocking(const ConvShape& shape, std::int64_t nnz) {
  constexpr double kEntries = 29;
  constexpr std::int64_t kMost = 65536, kFewest = 16;
  const std::int64_t taps = shape.taps(), outputs = shape.out / shape.groups;
  const double of_channel = static_cast<double>(taps) * conv_density(shape, nnz);
  const auto channels = [&](double entries) {  // that have so many entries in a line
    return entries >= static_cast<double>(kMost) ? kMost : std::max(kFewest, static_cast<std::int64_t>(entries));
  };
  const std::int64_t forward = forward_in_patches(shape, nnz) ? channels(kEntries / of_channel) : kFewest,
                     backward = channels(kEntries * static_cast<double>(shape.phases()) / of_channel);
  // Where a block has all outputs of a group, it may as well have those of all groups.
  return {std::min(forward, kMost / taps) * taps, backward < outputs ? backward : shape.out, false};
}

template <class Lines>
Compressed compress_lines(std::int64_t rows, std::int64_t row_chunk, std::int64_t columns, const Lines& lines,
                          const Blocking& blocking, const RowMajorList& list, EntryIndices& place, int threads) {
  const auto nnz = static_cast<std::int64_t>(list.column.size());
  Compressed matrix;
  matrix.rows = rows;
  matrix.columns = columns;
  place.resize(static_cast<std::size_t>(nnz));
  matrix.canonical.resize(static_cast<std::size_t>(nnz));
  threads = std::max(threads, 1);
  matrix.backward = backward_side(list, rows, lines, blocking.backward, blocking.backward_by_length, place, threads);
  matrix.backward.tile_by_tile = blocking.tile_by_tile;
  matrix.forward = forward_side(list, rows, row_chunk, columns, blocking.forward, place, matrix.canonical, threads);
  return matrix;
}

/// Canonical places [begin, end) of a matrix.
struct Places {
  std::uint32_t begin, end;
};

/// Where the entries of column q begin in a block of the backward side, to within what columns of a chunk differ in.
std::uint32_t near_column(const CompressedSide& side, std::int64_t block, std::int64_t q) {
  const std::int64_t chunk = std::min(q / side.chunk, side.chunks() - 1), first = chunk * side.chunk;
  const CompressedSide::Segment* s = side.segment(block, chunk);
  const std::int64_t entries = s[1].entry - s->entry, lines = std::min(side.chunk, side.outer - first);
  return s->entry + static_cast<std::uint32_t>(entries * (q - first) / lines);
}

/// In how many pieces the values stand of which segment (b, c) of a matrix's forward side is the first to take some;
/// and about where they are.
class FirstTaken {
 public:
  /// first: nobody has taken of segment (b, c - 1).
  FirstTaken(const Compressed& matrix, std::int64_t b, std::int64_t c, bool first) : side_(matrix.backward) {
    const CompressedSide& forward = matrix.forward;
    const std::int64_t row = c * forward.chunk, last = std::min(forward.outer, row + forward.chunk) - 1;
    // Else it has taken of the block in which this one begins.
    first_ = (first ? row : row + side_.block - 1) / side_.block;
    pieces_ = std::max<std::int64_t>(0, last / side_.block + 1 - first_);
    column_ = b * forward.block;
    columns_ = std::min(forward.block, forward.inner - column_);
  }
  std::int64_t pieces() const { return pieces_; }
  Places piece(std::int64_t k) const {
    return {near_column(side_, first_ + k, column_), near_column(side_, first_ + k, column_ + columns_)};
  }

 private:
  const CompressedSide& side_;
  std::int64_t first_ = 0, pieces_ = 0, column_ = 0, columns_ = 0;
};

/// to[j] = values[place[j]] for j of [begin, end), while the values of `next` are asked for in even steps.
template <class T>
void copy_and_ask(const T* values, const std::uint32_t* place, T* to, std::int64_t begin, std::int64_t end,
                  Places next) {
  typedef T Few __attribute__((vector_size(16)));  // stored at once: single stores fill the queue of stores
  constexpr std::int64_t kFew = 16 / sizeof(T), kLine = 64 / sizeof(T);
  constexpr std::int64_t kPage = 4096 / sizeof(*place);  // places come in order, but the CPU asks ahead in a page only
  const std::int64_t lines = (next.end - next.begin + kLine - 1) / kLine, steps = (end - begin) / kLine,
                     each = steps > 0 ? (lines + steps - 1) / steps : 0;
  std::int64_t j = begin, ask = next.begin;
  for (; j + kLine <= end; j += kLine) {
    __builtin_prefetch(place + j + kPage, 0, 2);
    for (const std::int64_t until = std::min<std::int64_t>(next.end, ask + each * kLine); ask < until; ask += kLine) {
      __builtin_prefetch(values + ask, 0, 2);  // into L2: L1 has what is being copied
    }
    for (std::int64_t i = j; i < j + kLine; i += kFew) {
      Few few;
      if constexpr (kFew == 4)
        few = Few{values[place[i]], values[place[i + 1]], values[place[i + 2]], values[place[i + 3]]};
      else
        few = Few{values[place[i]], values[place[i + 1]]};
      __builtin_memcpy(to + i, &few, sizeof few);
    }
  }
  for (; j < end; ++j) to[j] = values[place[j]];
}

}  // namespace

/// A segment takes its values from all over a few pieces of the canonical order, of some 16 KB each. Read as they come,
/// each line of the cache is a miss of its own; the pieces of the next segment are asked for, in order, while this one
/// is copied: 0.6 to 0.7 times the time in 4096x4096 at 90 and 95 % (docs/kernels.md). Hardware gathers would take
/// another tenth or two less, but are slow on CPUs whose microcode keeps them from leaking.
template <class T>
void take_values(const Compressed& matrix, const T* values, T* taken, std::int64_t begin, std::int64_t end,
                 std::int64_t next, bool first) {
  const std::uint32_t* const place = matrix.canonical.data();
  T* const to = taken - begin;
  const bool lines_are_columns = matrix.backward.outer == matrix.columns;  // not so in most convolutions
  if (next < 0 || !lines_are_columns) return copy_and_ask(values, place, to, begin, end, {0, 0});
  const std::int64_t chunks = matrix.forward.chunks(), entries = end - begin;
  const FirstTaken asked(matrix, next / chunks, next % chunks, first);
  if (asked.pieces() == 0) return copy_and_ask(values, place, to, begin, end, {0, 0});
  for (std::int64_t k = 0; k < asked.pieces(); ++k) {
    copy_and_ask(values, place, to, begin + entries * k / asked.pieces(), begin + entries * (k + 1) / asked.pieces(),
                 asked.piece(k));
  }
}

template <class T>
void in_forward_order(const Compressed& matrix, const T* values, T* forward, std::int64_t begin, std::int64_t end) {
  const CompressedSide& side = matrix.forward;
  const auto after = std::upper_bound(side.segments.begin(), side.segments.end(), begin,
                                      [](std::int64_t at, const CompressedSide::Segment& s) { return at < s.entry; });
  std::int64_t segment = after - side.segments.begin() - 1;
  while (begin < end) {
    const std::int64_t next = segment + 1, last = std::min<std::int64_t>(end, side.segments[next].entry);
    take_values(matrix, values, forward + begin, begin, last, last < end ? next : -1, next % side.chunks() == 0);
    begin = last;
    segment = next;
  }
}
template void take_values(const Compressed&, const float*, float*, std::int64_t, std::int64_t, std::int64_t, bool);
template void take_values(const Compressed&, const double*, double*, std::int64_t, std::int64_t, std::int64_t, bool);
template void in_forward_order(const Compressed&, const float*, float*, std::int64_t, std::int64_t);
template void in_forward_order(const Compressed&, const double*, double*, std::int64_t, std::int64_t);

RowMajorList list_of(std::int64_t rows, std::int64_t columns, const std::int64_t* positions, std::int64_t nnz,
                     int threads) {
  RowMajorList list;
  list.start.resize(static_cast<std::size_t>(rows + 1));
  list.column.resize(static_cast<std::size_t>(nnz));
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t r = 0; r <= rows; ++r) {
    list.start[static_cast<std::size_t>(r)] =
        static_cast<std::uint32_t>(std::lower_bound(positions, positions + nnz, r * columns) - positions);
  }
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::uint32_t end = list.start[static_cast<std::size_t>(r + 1)];
    for (std::uint32_t i = list.start[static_cast<std::size_t>(r)]; i < end; ++i) {
      list.column[i] = static_cast<std::uint32_t>(positions[i] - r * columns);
    }
  }
  return list;
}

Compressed compress(std::int64_t rows, std::int64_t columns, const RowMajorList& list, EntryIndices& place,
                    int threads) {
  const auto nnz = static_cast<std::int64_t>(list.column.size());
  return compress_lines(rows, lines_of_chunk(rows), columns, ColumnLines{columns}, choose_blocking(rows, columns, nnz),
                        list, place, threads);
}

Compressed compress(const ConvShape& shape, const RowMajorList& list, EntryIndices& place, int threads) {
  const auto nnz = static_cast<std::int64_t>(list.column.size());
  return compress_lines(shape.out, shape.out, shape.columns(), ChannelLines(shape), choose_blocking(shape, nnz), list,
                        place, threads);
}

Compressed compress(std::int64_t rows, std::int64_t columns, const std::int64_t* positions, std::int64_t nnz,
                    EntryIndices& place, int threads) {
  return compress(rows, columns, list_of(rows, columns, positions, nnz, threads), place, threads);
}

Compressed compress(const ConvShape& shape, const std::int64_t* positions, std::int64_t nnz, EntryIndices& place,
                    int threads) {
  return compress(shape, list_of(shape.out, shape.columns(), positions, nnz, threads), place, threads);
}

namespace {

/// f(entry, n, to, first) for each line of the forward side: its n entries from `entry` on come to stand from `to` on,
/// row by row, and their columns are first + inner_index. Returns where each row begins.
template <class F>
std::vector<std::uint32_t> each_line_by_row(const Compressed& matrix, int threads, const F& f) {
  const CompressedSide& side = matrix.forward;
  const std::int64_t blocks = side.blocks(), chunks = side.chunks();
  // g(row, first entry, number of entries) for the lines of chunk c in block b
  const auto each_line = [&](std::int64_t b, std::int64_t c, const auto& g) {
    const CompressedSide::Segment* s = side.segment(b, c);
    std::uint32_t line = s->line, entry = s->entry;
    for (std::uint32_t r = s->run; r < s[1].run; ++r) {
      for (std::uint32_t i = 0; i < side.runs[r].lines; ++i, ++line, entry += side.runs[r].entries) {
        g(static_cast<std::size_t>(c * side.chunk + side.outer_index[line]), entry, side.runs[r].entries);
      }
    }
  };
  threads = std::max(threads, 1);
  std::vector<std::uint32_t> start(static_cast<std::size_t>(matrix.rows + 1), 0);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t c = 0; c < chunks; ++c) {
    for (std::int64_t b = 0; b < blocks; ++b) {
      each_line(b, c, [&](std::size_t row, std::uint32_t, std::uint32_t n) { start[row] += n; });
    }
  }
  std::uint32_t sum = 0;
  for (std::uint32_t& n : start) sum += std::exchange(n, sum);
  std::vector<std::uint32_t> next = start;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (std::int64_t c = 0; c < chunks; ++c) {
    for (std::int64_t b = 0; b < blocks; ++b) {
      const auto first = static_cast<std::uint32_t>(b * side.block);
      each_line(b, c, [&](std::size_t row, std::uint32_t entry, std::uint32_t n) {
        f(entry, n, next[row], first);
        next[row] += n;
      });
    }
  }
  return start;
}

}  // namespace

template <class T>
void in_row_order(const Compressed& matrix, const T* forward, T* values, int threads) {
  each_line_by_row(matrix, threads, [=](std::uint32_t entry, std::uint32_t n, std::uint32_t to, std::uint32_t) {
    std::copy_n(forward + entry, n, values + to);
  });
}
template void in_row_order(const Compressed&, const float*, float*, int);
template void in_row_order(const Compressed&, const double*, double*, int);

void row_major(const Compressed& matrix, RowMajorList* list, EntryIndices* place, int threads) {
  const auto nnz = static_cast<std::size_t>(matrix.nnz());
  if (list != nullptr) {
    list->column.resize(nnz);
    list->start = each_line_by_row(matrix, threads,
                                   [inner = matrix.forward.inner_index.data(), columns = list->column.data()](
                                       std::uint32_t entry, std::uint32_t n, std::uint32_t to, std::uint32_t first) {
                                     const std::uint16_t* const from = inner + entry;
                                     std::uint32_t* const column = columns + to;
                                     for (std::uint32_t k = 0; k < n; ++k) column[k] = first + from[k];
                                   });
  }
  if (place != nullptr) {
    place->resize(nnz);
    in_row_order(matrix, matrix.canonical.data(), place->data(), threads);
  }
}

void row_major(const Compressed& matrix, std::vector<std::int64_t>& positions, EntryIndices& place, int threads) {
  RowMajorList list;
  row_major(matrix, &list, &place, threads);
  positions.resize(list.column.size());
  for (std::int64_t r = 0; r < matrix.rows; ++r) {
    const std::uint32_t end = list.start[static_cast<std::size_t>(r + 1)];
    for (std::uint32_t i = list.start[static_cast<std::size_t>(r)]; i < end; ++i) {
      positions[i] = r * matrix.columns + list.column[i];
    }
  }
}

}  // namespace espalier::kernels
