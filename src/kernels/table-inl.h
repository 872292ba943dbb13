// All kernels of an instruction set, and its table: included once by each file after vector-inl.h and its own
// square_root (and times_power_of_two, where it has one).
#include "kernels/batch_norm-inl.h"
#include "kernels/images-inl.h"
#include "kernels/peak-inl.h"
#include "kernels/pending_dots-inl.h"
#include "kernels/power-inl.h"
#include "kernels/sparse_conv-inl.h"
#include "kernels/sparse_linear-inl.h"
#include "kernels/update-inl.h"
// after update-inl.h, whose Entries it uses
#include "kernels/cross_entropy-inl.h"

constexpr Table make_table(const char* isa, bool (*runs_here)()) {
  return {isa,
          runs_here,
          batch_norm_kernels<float>(),
          batch_norm_kernels<double>(),
          image_kernels<float>(),
          image_kernels<double>(),
          power_kernels<float>(),
          power_kernels<double>(),
          sparse_linear_kernels<float>(),
          sparse_linear_kernels<double>(),
          sparse_conv_kernels<float>(),
          sparse_conv_kernels<double>(),
          update_kernels<float>(),
          update_kernels<double>(),
          cross_entropy_kernels<float>(),
          cross_entropy_kernels<double>(),
          kBackwardTiles,
          &multiply_adds<float>};
}
