// What the functions on batch tiles of images have in common; private to ops/.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/ivalue.h>

#include "espalier/core/error.h"
#include "espalier/kernels/dispatch.h"
#include "espalier/ops/images.h"
#include "ops/dispatch_type.h"

namespace espalier::ops {

/// Entries that a thread takes at least.
constexpr std::int64_t kImageGrain = 32768;

inline void check_images(const at::Tensor& images, const ImageLayout& layout) {
  ESPALIER_CHECK(images.dim() == 1 && images.numel() == layout.numel() && images.device().is_cpu(), ErrorKind::usage,
                 "batch tiles of {} images of {}x{}x{} with a halo of {} have {} entries; found [{}] on {}",
                 layout.samples, layout.channels, layout.height, layout.width, layout.halo, layout.numel(),
                 fmt::join(images.sizes(), ", "), images.device().str());
}

/// Entries to be written, as a tensor. Planes of a large batch are pages apart and are visited in turn, so the pages
/// had better be large ones: the convolutions of a residual network take 5 to 13 % less (docs/kernels.md).
at::Tensor new_entries(std::int64_t numel, const at::TensorOptions& options);

/// The same for images, the halo below the last plane already there.
at::Tensor new_images(const ImageLayout& layout, const at::TensorOptions& options);

/// f(group, channel) for every plane, in parallel.
template <class F>
void each_plane(const ImageLayout& layout, const F& f) {
  const std::int64_t grain = kImageGrain / std::max<std::int64_t>(1, layout.plane() * kImageLanes) + 1;
  at::parallel_for(0, layout.groups() * layout.channels, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t p = begin; p < end; ++p) f(p / layout.channels, p % layout.channels);
  });
}

// A layout among the saved data of a function of autograd.
inline c10::IValue saved(const ImageLayout& l) {
  return c10::IValue(std::vector<std::int64_t>{l.samples, l.channels, l.height, l.width, l.halo});
}
inline ImageLayout saved_layout(const c10::IValue& value) {
  const auto l = value.toIntVector();
  return {l[0], l[1], l[2], l[3], l[4]};
}

}  // namespace espalier::ops
