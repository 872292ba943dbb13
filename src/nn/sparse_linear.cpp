#include "espalier/nn/sparse_linear.h"

#include <fmt/format.h>
#include <torch/torch.h>

#include "espalier/core/error.h"
#include "espalier/nn/init.h"

namespace espalier::nn {
namespace {

/// dL/dw = dy^T x of one use of the layer.
class LinearGradient : public GradientSource {
 public:
  LinearGradient(const ops::TileLayout& layout, std::int64_t outputs, at::Tensor x, at::Tensor dy)
      : layout_(layout), outputs_(outputs), x_(std::move(x)), dy_(std::move(dy)) {}
  void add_rows(std::int64_t begin, std::int64_t end, at::Tensor& rows) const override {
    ops::linear_gradient_rows(layout_, outputs_, x_, dy_, begin, end, rows);
  }

 private:
  ops::TileLayout layout_;
  std::int64_t outputs_;
  at::Tensor x_, dy_;
};

}  // namespace

SparseLinearImpl::SparseLinearImpl(const torch::nn::LinearOptions& options, at::ScalarType type)
    : CompressedLayer("SparseLinear",
                      std::make_shared<CompressedWeight>(
                          "weight", std::vector<std::int64_t>{options.out_features(), options.in_features()}, type),
                      options.bias()) {}

std::shared_ptr<SparseLinearImpl> SparseLinearImpl::from_dense(const torch::nn::LinearImpl& dense) {
  const torch::NoGradGuard no_grad;
  const KeepDefaultGenerator untouched;
  const auto options = torch::nn::LinearOptions(dense.weight.size(1), dense.weight.size(0)).bias(dense.bias.defined());
  auto layer = std::make_shared<SparseLinearImpl>(options, dense.weight.scalar_type());
  layer->weight()->from_dense(dense.weight);
  if (dense.bias.defined()) layer->bias.copy_(dense.bias);
  return layer;
}

std::shared_ptr<CompressedLayer> SparseLinearImpl::another() const {
  return std::make_shared<SparseLinearImpl>(
      torch::nn::LinearOptions(in_features(), out_features()).bias(bias.defined()), weight()->stored_type());
}

std::string SparseLinearImpl::options_text() const {
  return fmt::format("in_features={}, out_features={}", in_features(), out_features());
}

at::Tensor SparseLinearImpl::forward(const at::Tensor& x) {
  if (x.dim() == 2 || x.dim() == 0 || x.size(-1) != in_features()) return compute(x).plain();
  std::vector<std::int64_t> shape = x.sizes().vec();
  shape.back() = out_features();
  const std::int64_t samples = x.numel() / in_features();
  return compute(x.reshape({samples, in_features()})).plain().view(shape);
}

Activation SparseLinearImpl::compute(const Activation& x, const ops::BesideRelu& relu) {
  const Activation in = x.tiled();
  // First the structure: values of a layer that nobody made sparse are only drawn now.
  const auto matrix = weight()->matrix();
  const ops::TileLayout& layout = in.tile_layout();
  ops::BackwardObserver observer;
  if (weight()->wants_dense_gradient()) {
    observer = [w = std::weak_ptr(weight()), layout, outputs = out_features()](const at::Tensor& input,
                                                                               const at::Tensor& dy) {
      if (const auto held = w.lock()) {
        held->add_gradient_source(std::make_shared<LinearGradient>(layout, outputs, input.detach(), dy.detach()));
      }
    };
  }
  // In training the values change before they are used again.
  const bool may_change = torch::GradMode::is_enabled() && weight()->stored_values().requires_grad();
  const at::Tensor forward_values = may_change && ops::takes_values(*matrix, layout)
                                        ? weight()->forward_values_if_reused()
                                        : weight()->forward_values();
  at::Tensor y = ops::sparse_linear(in.data(), layout, matrix, weight()->stored_values(), forward_values, bias, relu,
                                    std::move(observer));
  return {std::move(y), ops::TileLayout{layout.samples, out_features()}};
}

}  // namespace espalier::nn
