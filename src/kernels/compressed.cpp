#include "espalier/kernels/compressed.h"

#include <algorithm>
#include <utility>

namespace espalier::kernels {
namespace {

/// [0, n) cut into `parts` ranges of about equal length; the begin of range `part`.
std::int64_t cut(std::int64_t n, int part, int parts) {
  return n / parts * part + std::min<std::int64_t>(part, n % parts);
}

/// Entries line by line of the inner index, the outer ones ascending in each line.
struct InnerMajor {
  std::vector<std::uint32_t> start;  // [inner + 1]
  std::vector<std::uint32_t> outer;  // [nnz]
  std::vector<std::uint32_t> tag;    // [nnz] place in the list of positions; empty: the same
};

InnerMajor by_rows(std::int64_t rows, std::int64_t columns, const std::int64_t* positions, std::int64_t nnz,
                   int threads) {
  InnerMajor list;
  list.start.resize(static_cast<std::size_t>(rows + 1));
  list.outer.resize(static_cast<std::size_t>(nnz));
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t r = 0; r <= rows; ++r) {
    list.start[static_cast<std::size_t>(r)] =
        static_cast<std::uint32_t>(std::lower_bound(positions, positions + nnz, r * columns) - positions);
  }
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::uint32_t i = list.start[static_cast<std::size_t>(r)]; i < list.start[static_cast<std::size_t>(r + 1)];
         ++i) {
      list.outer[i] = static_cast<std::uint32_t>(positions[i] - r * columns);
    }
  }
  return list;
}

/// A counting sort by column, stable, in parallel: each thread has a range of rows and counts of its own.
InnerMajor by_columns(const InnerMajor& rows, std::int64_t columns, int threads) {
  const auto nnz = static_cast<std::int64_t>(rows.outer.size());
  const auto row_count = static_cast<std::int64_t>(rows.start.size()) - 1;
  // No more threads than make their counts worth while.
  const int parts = static_cast<int>(std::clamp<std::int64_t>(nnz / (columns + 4096), 1, threads));
  std::vector<std::uint32_t> next(static_cast<std::size_t>(parts * columns), 0);
  InnerMajor list;
  list.start.resize(static_cast<std::size_t>(columns + 1));
  list.outer.resize(static_cast<std::size_t>(nnz));
  list.tag.resize(static_cast<std::size_t>(nnz));
#pragma omp parallel for num_threads(parts) schedule(static, 1)
  for (int p = 0; p < parts; ++p) {
    std::uint32_t* count = next.data() + p * columns;
    const std::uint32_t end = rows.start[static_cast<std::size_t>(cut(row_count, p + 1, parts))];
    for (std::uint32_t i = rows.start[static_cast<std::size_t>(cut(row_count, p, parts))]; i < end; ++i)
      ++count[rows.outer[i]];
  }
  std::uint32_t sum = 0;
  for (std::int64_t c = 0; c < columns; ++c) {
    list.start[static_cast<std::size_t>(c)] = sum;
    for (int p = 0; p < parts; ++p) {
      std::uint32_t& count = next[static_cast<std::size_t>(p * columns + c)];
      sum += std::exchange(count, sum);
    }
  }
  list.start[static_cast<std::size_t>(columns)] = sum;
#pragma omp parallel for num_threads(parts) schedule(static, 1)
  for (int p = 0; p < parts; ++p) {
    std::uint32_t* to = next.data() + p * columns;
    for (std::int64_t r = cut(row_count, p, parts); r < cut(row_count, p + 1, parts); ++r) {
      for (std::uint32_t i = rows.start[static_cast<std::size_t>(r)]; i < rows.start[static_cast<std::size_t>(r + 1)];
           ++i) {
        const std::uint32_t place = to[rows.outer[i]]++;
        list.outer[place] = static_cast<std::uint32_t>(r);
        list.tag[place] = i;
      }
    }
  }
  return list;
}

/// The side of these entries. placed(tag, place) is called once for each.
template <class Placed>
CompressedSide make_side(const InnerMajor& list, std::int64_t outer, std::int64_t block, bool by_length, int threads,
                         const Placed& placed) {
  CompressedSide side;
  side.outer = outer;
  side.inner = static_cast<std::int64_t>(list.start.size()) - 1;
  side.block = std::clamp<std::int64_t>(block, 1, std::max<std::int64_t>(1, side.inner));
  side.chunk = std::clamp<std::int64_t>((outer / 16 + 31) / 32 * 32, 64, 512);
  side.inner_index.resize(list.outer.size());
  const std::int64_t blocks = side.blocks(), chunks = side.chunks();
  side.segments.resize(static_cast<std::size_t>(blocks * chunks + 1));

  struct Part {  // of one block
    std::vector<CompressedSide::Run> runs;
    std::vector<std::uint16_t> outer_index;
  };
  std::vector<Part> parts(static_cast<std::size_t>(blocks));
#pragma omp parallel num_threads(threads)
  {
    std::vector<std::uint32_t> next(static_cast<std::size_t>(outer));  // entries of a line, then where its next goes
    std::vector<std::uint16_t> order(static_cast<std::size_t>(side.chunk));
    std::vector<std::uint32_t> bucket;
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t b = 0; b < blocks; ++b) {
      Part& part = parts[static_cast<std::size_t>(b)];
      const std::int64_t i0 = b * side.block, i1 = std::min(side.inner, i0 + side.block);
      const std::uint32_t begin = list.start[static_cast<std::size_t>(i0)],
                          end = list.start[static_cast<std::size_t>(i1)];
      std::fill(next.begin(), next.end(), 0);
      for (std::uint32_t k = begin; k < end; ++k) ++next[list.outer[k]];
      std::uint32_t entry = begin;
      for (std::int64_t c = 0; c < chunks; ++c) {
        side.segments[static_cast<std::size_t>(b * chunks + c)] = {
            static_cast<std::uint32_t>(part.runs.size()), static_cast<std::uint32_t>(part.outer_index.size()), entry};
        const std::int64_t o0 = c * side.chunk, o1 = std::min(outer, o0 + side.chunk);
        std::uint32_t* const lines = next.data() + o0;
        const auto n = static_cast<std::size_t>(o1 - o0);
        // Lines by falling number of entries; those of one number in their order.
        const auto [low, high] = std::minmax_element(lines, lines + n);
        const std::uint32_t least = *low;
        bucket.assign(*high - least + 1, 0);
        for (std::size_t i = 0; i < n; ++i) ++bucket[lines[i] - least];
        std::uint32_t place = 0;
        for (std::size_t v = bucket.size(); v-- > 0;) place += std::exchange(bucket[v], place);
        for (std::size_t i = 0; i < n; ++i)
          order[by_length ? bucket[lines[i] - least]++ : i] = static_cast<std::uint16_t>(i);
        const std::size_t first_run = part.runs.size();
        for (std::size_t i = 0; i < n; ++i) {
          std::uint32_t& entries = lines[order[i]];
          if (entries == 0 && b > 0) continue;  // only the first block has lines without entries
          if (part.runs.size() == first_run || part.runs.back().entries != entries) part.runs.push_back({entries, 0});
          ++part.runs.back().lines;
          part.outer_index.push_back(order[i]);
          entry += std::exchange(entries, entry);
        }
      }
      for (std::int64_t i = i0; i < i1; ++i) {
        for (std::uint32_t k = list.start[static_cast<std::size_t>(i)]; k < list.start[static_cast<std::size_t>(i + 1)];
             ++k) {
          const std::uint32_t place = next[list.outer[k]]++;
          side.inner_index[place] = static_cast<std::uint16_t>(i - i0);
          placed(list.tag.empty() ? k : list.tag[k], place);
        }
      }
    }
  }

  std::size_t runs = 0, lines = 0;
  for (const Part& part : parts) {
    runs += part.runs.size();
    lines += part.outer_index.size();
  }
  side.runs.reserve(runs);
  side.outer_index.reserve(lines);
  for (std::int64_t b = 0; b < blocks; ++b) {
    Part& part = parts[static_cast<std::size_t>(b)];
    for (std::int64_t c = 0; c < chunks; ++c) {
      CompressedSide::Segment& segment = side.segments[static_cast<std::size_t>(b * chunks + c)];
      segment.run += static_cast<std::uint32_t>(side.runs.size());
      segment.line += static_cast<std::uint32_t>(side.outer_index.size());
    }
    side.runs.insert(side.runs.end(), part.runs.begin(), part.runs.end());
    side.outer_index.insert(side.outer_index.end(), part.outer_index.begin(), part.outer_index.end());
    part = {};
  }
  side.segments.back() = {static_cast<std::uint32_t>(runs), static_cast<std::uint32_t>(lines),
                          static_cast<std::uint32_t>(list.outer.size())};
  side.work.assign(static_cast<std::size_t>(chunks + 1), 0);
  for (std::int64_t c = 0; c < chunks; ++c) {
    std::int64_t& sum = side.work[static_cast<std::size_t>(c + 1)] = side.work[static_cast<std::size_t>(c)];
    for (std::int64_t b = 0; b < blocks; ++b) {
      const CompressedSide::Segment* s = side.segment(b, c);
      sum += s[1].entry - s->entry + 2 * static_cast<std::int64_t>(s[1].line - s->line);  // sums loaded and stored
    }
  }
  return side;
}

/// Inner indices of a block, and whether lines stand by their length.
///
/// Measured on 1024x1024 and 4096x4096, batch 128, one AVX-512 core (docs/kernels.md): blocks whose tiles fill two
/// thirds of L1 pay while a line has some ten entries in a block; with fewer, loading its sums again costs more than
/// tiles from L2. Standing by length saves mispredicted loop ends (10 to 15 % at 80 to 95 % sparsity, both sides), but
/// takes the tiles of the outer index out of order: for the backward pass without blocks, where each is touched once,
/// natural order is 10 to 20 % faster.
struct Blocking {
  std::int64_t forward, backward;
  bool backward_by_length;
};

Blocking choose_blocking(std::int64_t rows, std::int64_t columns, std::int64_t nnz) {
  constexpr std::int64_t kWhole = 65536;
  const double density = static_cast<double>(nnz) / (static_cast<double>(rows) * static_cast<double>(columns));
  if (density >= 0.08) return {128, 128, true};
  return {density >= 0.04 ? 256 : kWhole, kWhole, false};
}

}  // namespace

Compressed compress(std::int64_t rows, std::int64_t columns, const std::int64_t* positions, std::int64_t nnz,
                    std::vector<std::uint32_t>& place, int threads) {
  Compressed matrix;
  matrix.rows = rows;
  matrix.columns = columns;
  place.resize(static_cast<std::size_t>(nnz));
  matrix.canonical.resize(static_cast<std::size_t>(nnz));
  threads = std::max(threads, 1);
  const Blocking blocking = choose_blocking(rows, columns, nnz);
  const InnerMajor row_list = by_rows(rows, columns, positions, nnz, threads);
  matrix.backward = make_side(row_list, columns, blocking.backward, blocking.backward_by_length, threads,
                              [&](std::uint32_t tag, std::uint32_t at) { place[tag] = at; });
  const InnerMajor column_list = by_columns(row_list, columns, threads);
  matrix.forward = make_side(column_list, rows, blocking.forward, true, threads,
                             [&](std::uint32_t tag, std::uint32_t at) { matrix.canonical[at] = place[tag]; });
  return matrix;
}

void row_major(const Compressed& matrix, std::vector<std::int64_t>& positions, std::vector<std::uint32_t>& place,
               int threads) {
  const CompressedSide& side = matrix.forward;
  const std::int64_t blocks = side.blocks(), chunks = side.chunks();
  positions.resize(static_cast<std::size_t>(matrix.nnz()));
  place.resize(static_cast<std::size_t>(matrix.nnz()));
  std::vector<std::uint32_t> next(static_cast<std::size_t>(matrix.rows + 1), 0);  // of each row
  // f(row, first entry, number of entries) for the lines of chunk c in block b
  const auto each_line = [&](std::int64_t b, std::int64_t c, const auto& f) {
    const CompressedSide::Segment* s = side.segment(b, c);
    std::uint32_t line = s->line, entry = s->entry;
    for (std::uint32_t r = s->run; r < s[1].run; ++r) {
      for (std::uint32_t i = 0; i < side.runs[r].lines; ++i, ++line, entry += side.runs[r].entries) {
        f(c * side.chunk + side.outer_index[line], entry, side.runs[r].entries);
      }
    }
  };
  threads = std::max(threads, 1);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t c = 0; c < chunks; ++c) {
    for (std::int64_t b = 0; b < blocks; ++b) {
      each_line(b, c,
                [&](std::int64_t row, std::uint32_t, std::uint32_t n) { next[static_cast<std::size_t>(row)] += n; });
    }
  }
  std::uint32_t sum = 0;
  for (std::uint32_t& n : next) sum += std::exchange(n, sum);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (std::int64_t c = 0; c < chunks; ++c) {
    for (std::int64_t b = 0; b < blocks; ++b) {
      each_line(b, c, [&](std::int64_t row, std::uint32_t entry, std::uint32_t n) {
        std::uint32_t& to = next[static_cast<std::size_t>(row)];
        for (std::uint32_t k = entry; k < entry + n; ++k, ++to) {
          positions[to] = row * matrix.columns + b * side.block + side.inner_index[k];
          place[to] = matrix.canonical[k];
        }
      });
    }
  }
}

}  // namespace espalier::kernels
