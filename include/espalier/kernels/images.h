/// Between convolutions: kernels on planes of batch tiles. A plane is one channel of a group of 16 images, images
/// innermost, [height][width][16] entries with a halo of zeros around, which neighbours share: to the right of a row is
/// what stands to the left of the next one, and below a plane what stands above the next one, or, below the last plane
/// of all, halo_below() pixels of zeros. Every kernel that writes a plane writes what is its own of the halo too, but
/// not what is below. A plane is written by one call, in a fixed order: any split over threads gives the same bits.
/// Nothing is checked or allocated here.
#pragma once

#include <cstdint>
#include <type_traits>

namespace espalier::kernels {

constexpr int kImageLanes = 16;  ///< images of a group

struct ImagePlane {
  std::int64_t height = 0, width = 0, halo = 0;

  // In pixels, of 16 entries each.
  std::int64_t row() const { return width + halo; }          ///< from a row to the next
  std::int64_t first() const { return halo * (row() + 1); }  ///< from where the plane begins to where the image does
  std::int64_t halo_below() const { return first(); }
  /// From a plane to the next: whole rows and, but for the smallest images, zeros up to an odd multiple of 4: so the
  /// same pixel of 16 channels is in 16 different of the 64 sets of an L1, and its neighbours are between them.
  std::int64_t pixels() const {
    const std::int64_t of_rows = (height + halo) * row();
    return of_rows < 16 ? of_rows : of_rows + (12 - of_rows % 8) % 8;
  }
};

/// Rows or columns [begin, end) of an image, at least one.
struct PoolWindow {
  std::int64_t begin, end;
};

/// A pixel, row * width + column; as wide as the entries, so that vectors of both have the same lanes.
template <class T>
using Pixel = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;

template <class T>
struct ImageKernels {
  /// A channel of `images` images, each [height, width] without gaps and `stride` entries after the one before, into a
  /// plane; lanes from `images` on are set to zero. And back.
  void (*to_plane)(const T* channel, std::int64_t stride, int images, const ImagePlane& plane, T* to);
  void (*from_plane)(const T* from, const ImagePlane& plane, T* channel, std::int64_t stride, int images);

  /// The plane with another halo.
  void (*with_halo)(const T* from, const ImagePlane& plane, std::int64_t halo, T* to);
  /// Zeros for the halo alone.
  void (*clear_halo)(const ImagePlane& plane, T* at);

  /// y = a + b, or max(0, a + b). The halos may differ; y has that of `plane`, and may be a.
  void (*add)(const T* a, std::int64_t a_halo, const T* b, std::int64_t b_halo, const ImagePlane& plane, bool relu,
              T* y);

  // Pools. Window i x j of out.height x out.width is rows[i] x columns[j].

  /// The largest entry of each window, and where it stands, the first of equals (NaN is larger than all, the last
  /// counts): pixels[out.height * out.width][16] without a halo, unless null.
  void (*max_pool)(const T* x, const ImagePlane& plane, const PoolWindow* rows, const PoolWindow* columns,
                   const ImagePlane& out, T* y, Pixel<T>* pixels);
  void (*max_pool_gradient)(const T* dy, const Pixel<T>* pixels, const ImagePlane& out, const PoolWindow* rows,
                            const PoolWindow* columns, const ImagePlane& plane, T* dx);

  /// Sums of windows divided by `divisor`, or by the pixels of the window where that is 0.
  void (*average_pool)(const T* x, const ImagePlane& plane, const PoolWindow* rows, const PoolWindow* columns,
                       std::int64_t divisor, const ImagePlane& out, T* y);
  void (*average_pool_gradient)(const T* dy, const ImagePlane& out, const PoolWindow* rows, const PoolWindow* columns,
                                std::int64_t divisor, const ImagePlane& plane, T* dx);

  /// The largest entries y[16] of a plane; their gradient goes to all that equal them, in equal shares.
  void (*largest)(const T* x, const ImagePlane& plane, T* y);
  void (*largest_gradient)(const T* x, const ImagePlane& plane, const T* y, const T* dy, T* dx);

  /// Pixels, in order, to and from 16 lanes of the features of a vector tile with `lanes` lanes.
  void (*to_features)(const T* x, const ImagePlane& plane, T* tile, std::int64_t lanes);
  void (*from_features)(const T* tile, std::int64_t lanes, const ImagePlane& plane, T* x);
};

}  // namespace espalier::kernels
