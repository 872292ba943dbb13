/// Which instruction set runs. Kernels are plain functions on pointers, compiled once for each instruction set;
/// `active()` is the best table that this CPU runs, or the one that $ESPALIER_ISA (scalar, avx2, avx512) names.
#pragma once

#include <string>
#include <vector>

#include "espalier/kernels/batch_norm.h"
#include "espalier/kernels/cross_entropy.h"
#include "espalier/kernels/images.h"
#include "espalier/kernels/power.h"
#include "espalier/kernels/sparse_conv.h"
#include "espalier/kernels/sparse_linear.h"
#include "espalier/kernels/update.h"

namespace espalier::kernels {

struct Table {
  const char* isa;
  bool (*runs_here)();
  BatchNormKernels<float> batch_norm_f32;
  BatchNormKernels<double> batch_norm_f64;
  ImageKernels<float> images_f32;
  ImageKernels<double> images_f64;
  PowerKernels<float> power_f32;
  PowerKernels<double> power_f64;
  SparseLinearKernels<float> sparse_linear_f32;
  SparseLinearKernels<double> sparse_linear_f64;
  SparseConvKernels<float> sparse_conv_f32;
  SparseConvKernels<double> sparse_conv_f64;
  UpdateKernels<float> update_f32;
  UpdateKernels<double> update_f64;
  CrossEntropyKernels<float> cross_entropy_f32;
  CrossEntropyKernels<double> cross_entropy_f64;
  /// Batch tiles that the backward product of a matrix takes at once: 1 or 2.
  int backward_tiles;
  /// Fused multiply-adds from registers alone, in float32: returns how many it did. For measuring this machine's peak.
  std::int64_t (*multiply_adds)(std::int64_t rounds);

  template <class T>
  const BatchNormKernels<T>& batch_norm() const {
    if constexpr (sizeof(T) == sizeof(float))
      return batch_norm_f32;
    else
      return batch_norm_f64;
  }
  template <class T>
  const ImageKernels<T>& images() const {
    if constexpr (sizeof(T) == sizeof(float))
      return images_f32;
    else
      return images_f64;
  }
  template <class T>
  const PowerKernels<T>& power() const {
    if constexpr (sizeof(T) == sizeof(float))
      return power_f32;
    else
      return power_f64;
  }
  template <class T>
  const SparseLinearKernels<T>& sparse_linear() const {
    if constexpr (sizeof(T) == sizeof(float))
      return sparse_linear_f32;
    else
      return sparse_linear_f64;
  }
  template <class T>
  const SparseConvKernels<T>& sparse_conv() const {
    if constexpr (sizeof(T) == sizeof(float))
      return sparse_conv_f32;
    else
      return sparse_conv_f64;
  }
  template <class T>
  const UpdateKernels<T>& update() const {
    if constexpr (sizeof(T) == sizeof(float))
      return update_f32;
    else
      return update_f64;
  }
  template <class T>
  const CrossEntropyKernels<T>& cross_entropy() const {
    if constexpr (sizeof(T) == sizeof(float))
      return cross_entropy_f32;
    else
      return cross_entropy_f64;
  }
};

/// Every table compiled in, best first; scalar is always the last.
const std::vector<const Table*>& compiled();

/// The table in use, chosen once. Throws Error(usage) if $ESPALIER_ISA names an unknown set or one that this CPU lacks.
const Table& active();

/// The table of that name. Throws as `active` does.
const Table& table(const std::string& isa);

}  // namespace espalier::kernels
