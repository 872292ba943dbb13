/// The convolution of images with a compressed weight, and its gradients, without a dense weight and without an im2col
/// copy.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

#include "espalier/kernels/sparse_conv.h"
#include "espalier/ops/images.h"
#include "espalier/ops/sparse_linear.h"

namespace espalier::ops {

using kernels::Compressed;
using kernels::ConvShape;

/// Throws Error(usage) unless the sizes are positive, groups divide the channels and there are at most 65,536 of them.
void check_conv(const ConvShape& shape);

/// Throws Error(usage) where images of this size have no output.
void check_size(const ConvShape& shape, std::int64_t height, std::int64_t width);

/// What a weight does to images of one size: where each of its entries reads.
class ConvPlan {
 public:
  /// Throws Error(usage) where the images have other channels than the weight, or are too small for it. `in`: its halo
  /// is at least conv_halo(shape); its number of samples does not matter.
  ConvPlan(std::shared_ptr<const Compressed> weight, const ConvShape& shape, const ImageLayout& in);

  bool serves(const Compressed* weight, const ImageLayout& in) const;
  const Compressed& weight() const { return *weight_; }
  const ConvShape& shape() const { return shape_; }
  const kernels::ConvOffsets& offsets() const { return offsets_; }
  /// The halo of the output is that of the input, or larger where gradients need it.
  ImageLayout output(std::int64_t samples) const;

 private:
  std::shared_ptr<const Compressed> weight_;
  ConvShape shape_;
  ImageLayout in_, out_;
  kernels::ConvOffsets offsets_;
};

/// The same for images of one size alone, without gradients.
class AlonePlan {
 public:
  /// Throws Error(usage) as ConvPlan does.
  AlonePlan(std::shared_ptr<const Compressed> weight, const ConvShape& shape, std::int64_t height, std::int64_t width);

  bool serves(const Compressed* weight, std::int64_t height, std::int64_t width) const {
    return weight == weight_.get() && height == height_ && width == width_;
  }
  const Compressed& weight() const { return *weight_; }
  const ConvShape& shape() const { return shape_; }
  const kernels::AlonePlanes& planes() const { return planes_; }
  const std::vector<std::int32_t>& offsets() const { return offsets_; }
  std::int64_t height() const { return height_; }  ///< of the input
  std::int64_t width() const { return width_; }

 private:
  std::shared_ptr<const Compressed> weight_;
  ConvShape shape_;
  std::int64_t height_, width_;
  kernels::AlonePlanes planes_;
  std::vector<std::int32_t> offsets_;
};

/// The halo that the images which go into a convolution need.
std::int64_t conv_halo(const ConvShape& shape);

/// y = w * x + b on images, into `y`, and its gradients into dx (added to what is there where `add`), dvalues and
/// dbias; an undefined one of these (or bias) is left out. All tensors contiguous, of one type, sized as
/// `sparse_conv2d` says. The same bits for any number of threads.
void conv_forward(const ConvPlan& plan, const ImageLayout& in, const at::Tensor& forward, const at::Tensor& bias,
                  const at::Tensor& x, at::Tensor& y);
void conv_backward(const ConvPlan& plan, const ImageLayout& in, const at::Tensor& values, const at::Tensor& x,
                   const at::Tensor& dy, at::Tensor& dx, bool add, at::Tensor& dvalues, at::Tensor& dbias);

/// y = w * x + b on images (ops/images.h). x: images of layout `in`, which the plan serves; values: [nnz] in canonical
/// order, what gradients are formed for; forward: the same values as `refresh_forward` leaves them; bias: [out] or
/// undefined. Result: images of plan->output(in.samples). Differentiable once in x, values and bias. float32 or float64
/// on the CPU; all of one type.
/// The observer sees x and dy in the backward pass.
at::Tensor sparse_conv2d(const at::Tensor& x, const ImageLayout& in, std::shared_ptr<const ConvPlan> plan,
                         const at::Tensor& values, const at::Tensor& forward, const at::Tensor& bias,
                         BackwardObserver observer = {});

/// The same, and x for its other use (ops/images.h).
Forked sparse_conv2d_fork(const at::Tensor& x, const ImageLayout& in, std::shared_ptr<const ConvPlan> plan,
                          const at::Tensor& values, const at::Tensor& forward, const at::Tensor& bias,
                          BackwardObserver observer = {});

/// y = w * x + b for a few images, each by itself: groups of 16 would be filled with padding. x: [N, in, H, W] of the
/// plan's size; forward, bias: as above. Result: [N, out, H', W']. Not differentiable.
at::Tensor sparse_conv2d_alone(const at::Tensor& x, const AlonePlan& plan, const at::Tensor& forward,
                               const at::Tensor& bias);

}  // namespace espalier::ops
