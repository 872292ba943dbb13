/// Between convolutions: kernels on planes of batch tiles. A plane is one channel of a group of 16 images,
/// [height + 2 halo][width + 2 halo][16] entries, images innermost; its halo is zero, and every kernel that writes a
/// plane writes the halo too. A plane is written by one call, in a fixed order: any split over threads gives the same
/// bits. Nothing is checked or allocated here.
#pragma once

#include <cstdint>

namespace espalier::kernels {

constexpr int kImageLanes = 16;  ///< images of a group

struct ImagePlane {
  std::int64_t height = 0, width = 0, halo = 0;
};

template <class T>
struct ImageKernels {
  /// A channel of `images` images, each [height, width] without gaps and `stride` entries after the one before, into a
  /// plane; lanes from `images` on are set to zero. And back.
  void (*to_plane)(const T* channel, std::int64_t stride, int images, const ImagePlane& plane, T* to);
  void (*from_plane)(const T* from, const ImagePlane& plane, T* channel, std::int64_t stride, int images);

  /// Zeros for the halo alone.
  void (*clear_halo)(const ImagePlane& plane, T* to);

  /// The plane with another halo.
  void (*with_halo)(const T* from, const ImagePlane& plane, std::int64_t halo, T* to);
};

}  // namespace espalier::kernels
