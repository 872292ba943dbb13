// torch.ops.espalier and torch.classes.espalier: sparse products on plain tensors, for Python and TorchScript
// (docs/how-to/python.md). Values, and their gradients, are in the order of torch's CSR.
#include <torch/custom_class.h>
#include <torch/library.h>
#include <torch/torch.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <optional>
#include <tuple>
#include <vector>

#include "espalier/core/error.h"
#include "espalier/ops/csr.h"
#include "espalier/ops/images.h"
#include "espalier/ops/sparse_conv.h"
#include "espalier/ops/sparse_linear.h"
#include "espalier/ops/tiles.h"

namespace espalier::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Sizes = std::vector<std::int64_t>;

constexpr const char* kName = "SparseWeight";

ConvShape::Pair pair_of(const Sizes& given, const char* what) {
  ESPALIER_CHECK(given.size() == 1 || given.size() == 2, ErrorKind::usage,
                 "{}: {} is one number or two, for height and width; found [{}]", kName, what, fmt::join(given, ", "));
  return {given.front(), given.back()};
}

/// Where a weight [out, in], or [out, in / groups, height, width] of a convolution, has entries. Never changes, so
/// threads may share it: another topology is another SparseWeight.
class SparseWeight : public torch::CustomClassHolder {
 public:
  SparseWeight(Sizes shape, const at::Tensor& crow_indices, const at::Tensor& col_indices, const Sizes& stride,
               const Sizes& padding, const Sizes& dilation, std::int64_t groups)
      : shape_(std::move(shape)) {
    ESPALIER_CHECK(shape_.size() == 2 || shape_.size() == 4, ErrorKind::usage,
                   "{}: takes a shape [out, in] or [out, in / groups, height, width]; found [{}]", kName,
                   fmt::join(shape_, ", "));
    constexpr std::int64_t kLargest = (std::int64_t{1} << 31) - 1;
    ESPALIER_CHECK(std::all_of(shape_.begin(), shape_.end(), [](auto n) { return n >= 1 && n <= kLargest; }),
                   ErrorKind::usage, "{}: sizes are from 1 to {}; found [{}]", kName, kLargest,
                   fmt::join(shape_, ", "));
    ConvShape conv;
    conv.stride = pair_of(stride, "stride");
    conv.padding = pair_of(padding, "padding");
    conv.dilation = pair_of(dilation, "dilation");
    conv.groups = groups;
    std::int64_t rows = shape_[0], columns = shape_[1];
    if (is_conv()) {
      ESPALIER_CHECK(groups >= 1 && groups <= kLargest, ErrorKind::usage, "{}: groups is from 1 to {}; found {}", kName,
                     kLargest, groups);
      conv.out = rows;
      conv.in = shape_[1] * groups;
      conv.kernel = {shape_[2], shape_[3]};
      check_conv(conv);
      columns = conv.columns();
    } else {
      ESPALIER_CHECK(conv.stride == ConvShape().stride && conv.padding == ConvShape().padding &&
                         conv.dilation == ConvShape().dilation && groups == 1,
                     ErrorKind::usage,
                     "{}: stride, padding, dilation and groups are of a convolution; found the shape [{}]", kName,
                     fmt::join(shape_, ", "));
    }
    conv_ = conv;
    const auto list = list_of({crow_indices, col_indices}, rows, columns, kName, ErrorKind::usage);
    const int threads = at::get_num_threads();
    matrix_ = std::make_shared<Compressed>(is_conv() ? kernels::compress(conv, list, place_, threads)
                                                     : kernels::compress(rows, columns, list, place_, threads));
  }

  const Sizes& shape() const { return shape_; }
  bool is_conv() const { return shape_.size() == 4; }
  const ConvShape& conv() const { return conv_; }
  std::int64_t nnz() const { return matrix_->nnz(); }
  const std::shared_ptr<const Compressed>& matrix() const { return matrix_; }
  const kernels::EntryIndices& place() const { return place_; }

  /// Flat row-major indices, int64 [nnz].
  at::Tensor positions() const {
    std::vector<std::int64_t> positions;
    kernels::EntryIndices place;
    kernels::row_major(*matrix_, positions, place, at::get_num_threads());
    return torch::tensor(positions, torch::kInt64);
  }
  Csr csr() const {
    kernels::RowMajorList list;
    kernels::row_major(*matrix_, &list, nullptr, at::get_num_threads());
    return csr_of(list);
  }

  /// The plan for these images; the last one is kept.
  std::shared_ptr<const ConvPlan> plan(const ImageLayout& in) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!plan_ || !plan_->serves(matrix_.get(), in)) plan_ = std::make_shared<ConvPlan>(matrix_, conv_, in);
    return plan_;
  }

 private:
  Sizes shape_;
  ConvShape conv_;  // of a linear layer: nothing but defaults
  std::shared_ptr<const Compressed> matrix_;
  kernels::EntryIndices place_;  // [nnz] canonical place of each entry, row-major
  mutable std::mutex mutex_;
  mutable std::shared_ptr<const ConvPlan> plan_;
};

using Weight = c10::intrusive_ptr<SparseWeight>;

/// Values from row-major to canonical order.
struct Canonical : torch::autograd::Function<Canonical> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& values, const Weight& weight) {
    ctx->saved_data["weight"] = c10::IValue::make_capsule(weight);
    return to_canonical(values, weight->place());
  }
  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto weight = ctx->saved_data["weight"].toCapsule();
    return {from_canonical(gradients[0], static_cast<const SparseWeight&>(*weight).place()), {}};
  }
};

void check_values(const SparseWeight& weight, const at::Tensor& values) {
  ESPALIER_CHECK(values.dim() == 1 && values.size(0) == weight.nnz() && values.device().is_cpu(), ErrorKind::usage,
                 "{}: has {} entries, so values is [{}] on the CPU; found [{}] on {}", kName, weight.nnz(),
                 weight.nnz(), fmt::join(values.sizes(), ", "), values.device().str());
}

/// What both products take.
struct Operands {
  Operands(const Weight& weight, const at::Tensor& given_values, const c10::optional<at::Tensor>& given_bias) {
    check_values(*weight, given_values);
    values = Canonical::apply(given_values, weight);
    forward = at::empty_like(values);
    refresh_forward(*weight->matrix(), values, forward);
    if (given_bias) bias = given_bias->contiguous();
  }
  at::Tensor values, forward, bias;
};

at::Tensor linear(const at::Tensor& x, const Weight& weight, const at::Tensor& values,
                  const c10::optional<at::Tensor>& bias) {
  ESPALIER_CHECK(!weight->is_conv(), ErrorKind::usage,
                 "sparse_linear: takes a weight [out, in]; that of a convolution, [{}], is for sparse_conv2d",
                 fmt::join(weight->shape(), ", "));
  const at::Tensor tiles = to_tiles(x);
  const Operands w(weight, values, bias);
  const at::Tensor y = ops::sparse_linear(tiles, {x.size(0), x.size(1)}, weight->matrix(), w.values, w.forward, w.bias);
  return from_tiles(y, {x.size(0), weight->matrix()->rows});
}

at::Tensor conv2d(const at::Tensor& x, const Weight& weight, const at::Tensor& values,
                  const c10::optional<at::Tensor>& bias) {
  ESPALIER_CHECK(weight->is_conv(), ErrorKind::usage,
                 "sparse_conv2d: takes a weight [out, in / groups, height, width]; [{}] is for sparse_linear",
                 fmt::join(weight->shape(), ", "));
  const ImageLayout in = image_layout(x, conv_halo(weight->conv()));
  const auto plan = weight->plan(in);
  const Operands w(weight, values, bias);
  const at::Tensor y = ops::sparse_conv2d(to_images(x, in.halo), in, plan, w.values, w.forward, w.bias);
  return from_images(y, plan->output(in.samples));
}

/// The weight with zeros where it has no entry. Differentiable in values, as often as one likes.
at::Tensor to_dense(const Weight& weight, const at::Tensor& values) {
  check_values(*weight, values);
  const std::int64_t numel = weight->matrix()->rows * weight->matrix()->columns;
  return torch::zeros({numel}, values.options()).index_put({weight->positions()}, values).view(weight->shape());
}

/// What pickle, copy.deepcopy and TorchScript's archives keep: shape; crow_indices and col_indices; stride, padding,
/// dilation and groups. (With more than three parts LibTorch 1.13's headers bring false warnings.)
using State = std::tuple<Sizes, std::vector<at::Tensor>, Sizes>;

State state_of(const SparseWeight& weight) {
  const Csr csr = weight.csr();
  const ConvShape& c = weight.conv();
  return {weight.shape(),
          {csr.crow_indices, csr.col_indices},
          {c.stride[0], c.stride[1], c.padding[0], c.padding[1], c.dilation[0], c.dilation[1], c.groups}};
}

Weight weight_from(const State& state) {
  const auto& [shape, csr, c] = state;
  ESPALIER_CHECK(csr.size() == 2 && c.size() == 7, ErrorKind::data, "{}: the saved state is not one of this version",
                 kName);
  return c10::make_intrusive<SparseWeight>(shape, csr[0], csr[1], Sizes{c[0], c[1]}, Sizes{c[2], c[3]},
                                           Sizes{c[4], c[5]}, c[6]);
}

TORCH_LIBRARY(espalier, m) {
  m.class_<SparseWeight>("SparseWeight")
      .def(torch::init<Sizes, at::Tensor, at::Tensor, Sizes, Sizes, Sizes, std::int64_t>(), "",
           {torch::arg("shape"), torch::arg("crow_indices"), torch::arg("col_indices"), torch::arg("stride") = Sizes{1},
            torch::arg("padding") = Sizes{0}, torch::arg("dilation") = Sizes{1}, torch::arg("groups") = 1})
      .def("shape", [](const Weight& weight) { return weight->shape(); })
      .def("nnz", [](const Weight& weight) { return weight->nnz(); })
      .def("crow_indices", [](const Weight& weight) { return weight->csr().crow_indices; })
      .def("col_indices", [](const Weight& weight) { return weight->csr().col_indices; })
      .def("to_dense", [](const Weight& weight, const at::Tensor& values) { return to_dense(weight, values); }, "",
           {torch::arg("values")})
      .def_pickle([](const Weight& weight) { return state_of(*weight); },
                  [](State state) { return weight_from(state); });
  m.def(
      "sparse_linear(Tensor x, __torch__.torch.classes.espalier.SparseWeight weight, Tensor values, "
      "Tensor? bias=None) -> Tensor",
      &linear);
  m.def(
      "sparse_conv2d(Tensor x, __torch__.torch.classes.espalier.SparseWeight weight, Tensor values, "
      "Tensor? bias=None) -> Tensor",
      &conv2d);
}

}  // namespace
}  // namespace espalier::ops
