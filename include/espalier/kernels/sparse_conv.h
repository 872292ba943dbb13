/// Convolutions of images with a compressed weight: y = w * x, dx = w^T * dy, dw = (dy * x) at the kept entries.
///
/// Images stand in groups of 16, innermost, in planes with a halo of zeros: pixel (h, w) of channel c of image s stands
/// at group[((c plane) + (h + halo) row + (w + halo)) 16 + s]. Vectors run over images, so a pixel is one or a few
/// vectors whatever the shape of the convolution, and a kept entry is one broadcast and a multiply-add for each pixel
/// of a small rectangle whose sums stay in registers. Where an entry reads is one offset, in pixels, the same for all
/// pixels: stride, padding, dilation and groups are all in it. Nothing is checked or allocated here.
#pragma once

#include <cstdint>
#include <vector>

#include "espalier/kernels/compressed.h"
#include "espalier/kernels/images.h"

namespace espalier::kernels {

/// Pixels from one row to the next, and from one channel to the next, halo included.
struct Planes {
  std::int64_t row = 0, plane = 0;
  bool operator==(const Planes& o) const { return row == o.row && plane == o.plane; }
};

/// Where entries read, in pixels, for images of one size.
struct ConvOffsets {
  std::vector<std::int32_t> forward;   ///< [nnz] in x, from the first input pixel of an output; order of that side
  std::vector<std::int32_t> backward;  ///< [nnz] in dy, from the output of an input pixel's number; canonical order
};
ConvOffsets conv_offsets(const Compressed& weight, const ConvShape& shape, const Planes& x, const Planes& y);

/// One image by itself, vectors along its rows: each channel is cut into the phases of the stride, each phase a plane
/// of `row` pixels to a row, so that an entry reads all outputs of a row, and of the rows after it, at one distance.
/// Sums run over whole rows of `row` pixels; what they give beyond the width of the output is nobody's business.
struct AlonePlanes {
  std::int64_t rows = 0, row = 0;      ///< of a phase, padding included
  std::int64_t height = 0, width = 0;  ///< of the output
  std::int64_t blocks = 0;             ///< of 16 pixels, from the first output to the last
  std::int64_t plane() const { return rows * row; }
};
AlonePlanes alone_planes(const ConvShape& shape, std::int64_t height, std::int64_t width);

/// [nnz] where entries read, in entries; order of the forward side. Channel c has shape.phases() planes.
std::vector<std::int32_t> alone_offsets(const Compressed& weight, const ConvShape& shape, const AlonePlanes& planes);

/// A part of a group of images.
struct ConvPart {
  Planes x, y;
  std::int64_t width = 0;           ///< pixels of a row that are computed
  std::int64_t begin = 0, end = 0;  ///< rows
  /// So many rows make a patch, over which a line goes before the next line's turn. 0, forward: one small rectangle of
  /// pixels after another, each with all lines.
  std::int64_t patch_rows = 1;
  /// Forward: channels of x, and its rows and columns that an output reads, to ask for them early.
  std::int64_t channels = 0;
  ConvShape::Pair window = {1, 1};
};

/// The share of a convolution's weights that `nnz` are.
double conv_density(const ConvShape& shape, std::int64_t nnz);

/// Whether the forward pass had better go over patches of rows line by line: planes are then read and written in long
/// pieces, which memory likes and hardware foresees. Else all lines go over a rectangle of 8 pixels, whose window of
/// 16 input channels stays in L1: for lines with many entries.
bool forward_in_patches(const ConvShape& shape, std::int64_t nnz);

/// Rows of a patch: what the lines of a block read of `channels` planes for them, `step` rows each and `beyond` more,
/// stays in L2. `pixel`: bytes of 16 images' pixel.
std::int64_t patch_rows(std::int64_t channels, std::int64_t row, std::int64_t step, std::int64_t beyond,
                        std::int64_t pixel);

template <class T>
struct SparseConvKernels {
  /// Rows [begin, end) of the output, of `width` pixels, all channels: y[o] = bias[o] + sum w[o,c,kh,kw] x[c]. bias may
  /// be null. values: [nnz], order of the forward side. x: where the outputs of pixel (0, 0) begin to read; y: pixel
  /// (0, 0). `stride`: of the convolution.
  void (*forward)(const CompressedSide& side, const std::int32_t* offsets, const T* values, const T* bias,
                  const ConvShape::Pair& stride, const ConvPart& part, const T* x, T* y);

  /// Blocks [begin, end) of 16 pixels of an image alone, all channels, `y_plane` entries apart. x has 16 readable
  /// entries behind its last plane.
  void (*forward_alone)(const CompressedSide& side, const std::int32_t* offsets, const T* values, const T* bias,
                        std::int64_t begin, std::int64_t end, std::int64_t y_plane, const T* x, T* y);

  /// Of one phase of the stride: input pixels (s i + phase), rows i of [begin, end), `width` of them in a row, all
  /// channels: dx[c] = sum w dy (added to what is there where `add`), unless dx is null; dvalues[k] += <dy, x> over
  /// these pixels. x, dx: pixel of i = (0, 0) of that phase; dy: pixel (0, 0). values, dvalues: [nnz], canonical order.
  void (*backward)(const CompressedSide& side, std::int64_t phase, const std::int32_t* offsets, const T* values,
                   const ConvShape::Pair& stride, const ConvPart& part, const T* x, const T* dy, T* dx, bool add,
                   T* dvalues);

  /// The sum of n entries, a multiple of 16, in a fixed order.
  double (*sum_of)(const T* x, std::int64_t n);
};

}  // namespace espalier::kernels
