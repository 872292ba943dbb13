/// The compressed form of a weight matrix: the kept entries and where they are, in the two orders in which the kernels
/// of sparse_linear.h read them. No dense copy, ever: memory and time go with the number of kept entries (nnz).
///
/// A side has an outer index, whose sums a kernel holds in registers, and an inner one, whose batch tiles it reads.
/// Forward: outer = rows (outputs), inner = columns (inputs). Backward: outer = columns, inner = rows.
/// The inner index is cut into blocks whose tiles fit the L1 cache, the outer one into chunks, which are what threads
/// share out. Within a (block, chunk), lines of the outer index may stand in order of their number of entries: a run
/// of lines of one length is a loop with a predictable end.
///
/// Values, gradients and optimiser state live in the order of the backward side, the canonical one.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>
#include <vector>

namespace espalier::kernels {

/// Entries or lines that products look ahead, to ask for their tiles early.
constexpr std::uint32_t kAhead = 8;

/// Leaves what a vector grows by undefined: its user writes all of it, in parallel.
template <class T>
struct Unfilled : std::allocator<T> {
  template <class U>
  struct rebind {
    using other = Unfilled<U>;
  };
  template <class U>
  void construct(U* at) noexcept {
    ::new (static_cast<void*>(at)) U;
  }
  template <class U, class... Arguments>
  void construct(U* at, Arguments&&... arguments) {
    ::new (static_cast<void*>(at)) U(std::forward<Arguments>(arguments)...);
  }
};

/// Numbers of entries or for them; resize(n) leaves new ones undefined.
using EntryIndices = std::vector<std::uint32_t, Unfilled<std::uint32_t>>;
using EntryOffsets = std::vector<std::uint16_t, Unfilled<std::uint16_t>>;

struct CompressedSide {
  /// `lines` lines in a row of the list, of `entries` entries each.
  struct Run {
    std::uint32_t entries, lines;
  };
  /// Where a (block, chunk) begins.
  struct Segment {
    std::uint32_t run, line, entry;
  };

  std::int64_t outer = 0, inner = 0;
  std::int64_t block = 1;                  ///< inner indices of a block, at most 65,536
  std::int64_t chunk = 1;                  ///< outer indices of a chunk, at most 65,536
  bool tile_by_tile = false;               ///< one tile at a time though the kernel could take several (backward)
  std::vector<Segment> segments;           ///< [blocks x chunks + 1], block-major
  std::vector<Run> runs;                   ///< of all segments
  std::vector<std::uint16_t> outer_index;  ///< of each line, within its chunk. The first block has every line, and the
                                           ///< last one, but on the backward side of a convolution. kAhead zeros follow
  EntryOffsets inner_index;                ///< of each entry, within its block; ascending in a line. On the backward
                                           ///< side of a matrix kAhead zeros follow; on that of a convolution, which
                                           ///< reads by offsets (ConvOffsets), it is empty
  std::vector<std::int64_t> work;          ///< [chunks + 1] cost of all chunks before, in entries: for sharing out

  std::int64_t blocks() const { return (inner + block - 1) / block; }
  std::int64_t chunks() const { return (outer + chunk - 1) / chunk; }
  const Segment* segment(std::int64_t b, std::int64_t c) const {
    return &segments[static_cast<std::size_t>(b * chunks() + c)];
  }
};

/// Some blocks and chunks of a side.
struct SidePart {
  std::int64_t block_begin, block_end, chunk_begin, chunk_end;
};

struct Compressed {
  std::int64_t rows = 0, columns = 0;
  CompressedSide backward, forward;
  EntryIndices canonical;  ///< [nnz] for each entry of the forward side, its place in the backward one
  std::int64_t nnz() const { return static_cast<std::int64_t>(canonical.size()); }
};

/// A convolution of images: weight [out, in / groups, kernel]. Pairs are height, width.
struct ConvShape {
  using Pair = std::array<std::int64_t, 2>;
  std::int64_t in = 0, out = 0;  ///< channels, at most 65,536
  Pair kernel = {1, 1}, stride = {1, 1}, padding = {0, 0}, dilation = {1, 1};
  std::int64_t groups = 1;

  std::int64_t taps() const { return kernel[0] * kernel[1]; }
  std::int64_t columns() const { return in / groups * taps(); }
  /// Output pixels along axis a of `size` input pixels; may be 0 or less.
  std::int64_t output(int a, std::int64_t size) const {
    const std::int64_t room = size + 2 * padding[a] - dilation[a] * (kernel[a] - 1) - 1;
    return room < 0 ? 0 : room / stride[a] + 1;
  }
  /// An input pixel s i + phase along axis a is read by tap k only where phase = phase_of(a, k), by output i + shift(a,
  /// k).
  std::int64_t phase_of(int a, std::int64_t k) const {
    const std::int64_t at = (k * dilation[a] - padding[a]) % stride[a];
    return at < 0 ? at + stride[a] : at;
  }
  std::int64_t shift(int a, std::int64_t k) const {
    return (phase_of(a, k) + padding[a] - k * dilation[a]) / stride[a];
  }
  std::int64_t phases() const { return stride[0] * stride[1]; }
};

/// Entries row by row, columns ascending.
struct RowMajorList {
  std::vector<std::uint32_t> start;  ///< [rows + 1]
  EntryIndices column;               ///< [nnz]
};

/// Places have 32 bits, and kernels look a little ahead.
constexpr std::int64_t kMostEntries = (std::int64_t{1} << 32) - 4096;

/// The compressed form of these entries, at most kMostEntries. `place[i]` becomes the canonical place of entry i of the
/// list. Any number of threads gives the same result.
Compressed compress(std::int64_t rows, std::int64_t columns, const RowMajorList& list, EntryIndices& place,
                    int threads);

/// The same for a convolution, rows = out, columns = in / groups x taps. A chunk of the backward side is a phase of the
/// stride (height-major), its lines are the input channels; blocks are of output channels. A block of the forward side
/// is of input channels of a group.
Compressed compress(const ConvShape& shape, const RowMajorList& list, EntryIndices& place, int threads);

/// The inverse: the entries, and the canonical place of each. What is null is not wanted.
void row_major(const Compressed& matrix, RowMajorList* list, EntryIndices* place, int threads);

// The same with flat row-major indices into rows x columns, ascending.

RowMajorList list_of(std::int64_t rows, std::int64_t columns, const std::int64_t* positions, std::int64_t nnz,
                     int threads);

Compressed compress(std::int64_t rows, std::int64_t columns, const std::int64_t* positions, std::int64_t nnz,
                    EntryIndices& place, int threads);
Compressed compress(const ConvShape& shape, const std::int64_t* positions, std::int64_t nnz, EntryIndices& place,
                    int threads);

void row_major(const Compressed& matrix, std::vector<std::int64_t>& positions, EntryIndices& place, int threads);

/// Entries [begin, end) of the forward side: forward[j] = values[canonical[j]]. Both [nnz].
template <class T>
void in_forward_order(const Compressed& matrix, const T* values, T* forward, std::int64_t begin, std::int64_t end);

/// The same for entries [begin, end) of segments in a row, into taken[0 .. end - begin). Meanwhile the values of
/// segment `next` (-1: of none) that none before it has taken are asked for; all of them where it is the `first` of its
/// block that the caller takes.
template <class T>
void take_values(const Compressed& matrix, const T* values, T* taken, std::int64_t begin, std::int64_t end,
                 std::int64_t next, bool first);

/// Values in forward order as they come row by row, columns ascending. Both [nnz].
template <class T>
void in_row_order(const Compressed& matrix, const T* forward, T* values, int threads);

/// f(row, column, k) for each entry k of the forward side.
template <class F>
void each_entry(const Compressed& matrix, const F& f) {
  const CompressedSide& side = matrix.forward;
  for (std::int64_t b = 0; b < side.blocks(); ++b) {
    for (std::int64_t c = 0; c < side.chunks(); ++c) {
      const CompressedSide::Segment* segment = side.segment(b, c);
      std::uint32_t line = segment->line, k = segment->entry;
      for (std::uint32_t r = segment->run; r < segment[1].run; ++r) {
        const CompressedSide::Run run = side.runs[r];
        for (std::uint32_t i = 0; i < run.lines; ++i, ++line) {
          for (const std::uint32_t end = k + run.entries; k < end; ++k) {
            f(c * side.chunk + side.outer_index[line], b * side.block + side.inner_index[k], k);
          }
        }
      }
    }
  }
}

}  // namespace espalier::kernels
