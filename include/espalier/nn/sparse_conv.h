/// A convolution whose weights exist only where they are kept: W [out, in / groups, kh, kw] in compressed storage.
#pragma once

#include <torch/nn/modules/conv.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <memory>
#include <utility>

#include "espalier/nn/activation.h"
#include "espalier/nn/compressed_layer.h"
#include "espalier/ops/sparse_conv.h"

namespace espalier::nn {

/// As torch::nn::Conv2d with zeros as padding: stride, padding, dilation and groups.
class SparseConv2dImpl : public CompressedLayer {
 public:
  /// Throws Error(usage) for another padding mode, and for padding "same" with a stride or an even kernel.
  explicit SparseConv2dImpl(const torch::nn::Conv2dOptions& options, at::ScalarType type = at::kFloat);
  SparseConv2dImpl(std::int64_t in, std::int64_t out, torch::ExpandingArray<2> kernel)
      : SparseConv2dImpl(torch::nn::Conv2dOptions(in, out, kernel)) {}
  SparseConv2dImpl(const kernels::ConvShape& shape, bool with_bias, at::ScalarType type = at::kFloat);
  /// The entries of `dense` that are not zero, and its bias.
  static std::shared_ptr<SparseConv2dImpl> from_dense(const torch::nn::Conv2dImpl& dense);

  /// [N, in, H, W] -> [N, out, H', W'], or one image without N, for any LibTorch model, torch::nn::Sequential too.
  at::Tensor forward(const at::Tensor& x) {
    return x.dim() == 3 ? compute(x.unsqueeze(0)).plain().squeeze(0) : compute(x).plain();
  }
  /// Images stay images; [N, C, H, W] is converted, and the result handed on as images. But where no gradient is asked
  /// for, a few images in [N, C, H, W] stay what they are.
  Activation compute(const Activation& x);
  /// Whether images [N, C, H, W] stay what they are.
  static bool takes_alone(const Activation& x);

  /// The same, and x for its other use in a residual block, whose gradient is summed up with this one on the way.
  std::pair<Activation, Activation> fork(const Activation& x);

  const kernels::ConvShape& shape() const { return shape_; }

 protected:
  std::shared_ptr<CompressedLayer> another() const override;
  std::string options_text() const override;

 private:
  std::pair<Activation, Activation> convolved(const Activation& x, bool fork);

  kernels::ConvShape shape_;
  // Of the last images.
  std::shared_ptr<const ops::ConvPlan> plan_;
  std::shared_ptr<const ops::AlonePlan> alone_;
};
TORCH_MODULE(SparseConv2d);

}  // namespace espalier::nn
