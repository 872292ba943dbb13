#include "bench/dnnl_conv.h"

#include <torch/torch.h>

#include <dnnl.hpp>

namespace espalier::bench {
namespace {

using dnnl::algorithm;
using dnnl::convolution_backward_data;
using dnnl::convolution_backward_weights;
using dnnl::convolution_forward;
using dnnl::memory;
using dnnl::prop_kind;
using Tag = memory::format_tag;

/// One convolution's sizes as oneDNN writes them: groups are a dimension of the weight, dilation counts the gaps.
class Convolution {
 public:
  Convolution(const kernels::ConvShape& s, const at::Tensor& x, const at::Tensor& w, const at::Tensor& dy)
      : grouped_(s.groups > 1),
        x_(x.contiguous()),
        w_(w.contiguous()),
        dy_(dy.contiguous()),
        weight_dims_(w.sizes().vec()),
        strides_(s.stride.begin(), s.stride.end()),
        padding_(s.padding.begin(), s.padding.end()) {
    if (grouped_) {
      weight_dims_[0] /= s.groups;
      weight_dims_.insert(weight_dims_.begin(), s.groups);
    }
    for (const std::int64_t d : s.dilation) dilation_.push_back(d - 1);
  }

  DnnlProduct forward(algorithm how, prop_kind kind) const {
    const auto pd = forward_primitive(how, kind);
    return product(convolution_forward(pd),
                   {{DNNL_ARG_SRC, laid(x_, x_dims(), Tag::nchw, pd.src_desc())},
                    {DNNL_ARG_WEIGHTS, laid(w_, weight_dims_, weight_tag(), pd.weights_desc())}},
                   DNNL_ARG_DST, pd.dst_desc(), dy_, Tag::nchw);
  }
  DnnlProduct backward_data() const {
    const auto hint = forward_primitive(algorithm::convolution_direct, prop_kind::forward_training);
    const convolution_backward_data::primitive_desc pd(
        {algorithm::convolution_direct, any(x_dims()), any(weight_dims_), any(dy_.sizes().vec()), strides_, dilation_,
         padding_, padding_},
        engine_, hint);
    return product(convolution_backward_data(pd),
                   {{DNNL_ARG_DIFF_DST, laid(dy_, dy_.sizes().vec(), Tag::nchw, pd.diff_dst_desc())},
                    {DNNL_ARG_WEIGHTS, laid(w_, weight_dims_, weight_tag(), pd.weights_desc())}},
                   DNNL_ARG_DIFF_SRC, pd.diff_src_desc(), x_, Tag::nchw);
  }
  DnnlProduct backward_weights() const {
    const auto hint = forward_primitive(algorithm::convolution_direct, prop_kind::forward_training);
    const convolution_backward_weights::primitive_desc pd(
        {algorithm::convolution_direct, any(x_dims()), any(weight_dims_), any(dy_.sizes().vec()), strides_, dilation_,
         padding_, padding_},
        engine_, hint);
    return product(convolution_backward_weights(pd),
                   {{DNNL_ARG_SRC, laid(x_, x_dims(), Tag::nchw, pd.src_desc())},
                    {DNNL_ARG_DIFF_DST, laid(dy_, dy_.sizes().vec(), Tag::nchw, pd.diff_dst_desc())}},
                   DNNL_ARG_DIFF_WEIGHTS, pd.diff_weights_desc(), w_, weight_tag());
  }

 private:
  using Dims = memory::dims;

  Dims x_dims() const { return x_.sizes().vec(); }
  Tag weight_tag() const { return grouped_ ? Tag::goihw : Tag::oihw; }
  static memory::desc any(const Dims& dims) { return {dims, memory::data_type::f32, Tag::any}; }

  convolution_forward::primitive_desc forward_primitive(algorithm how, prop_kind kind) const {
    return {
        {kind, how, any(x_dims()), any(weight_dims_), any(dy_.sizes().vec()), strides_, dilation_, padding_, padding_},
        engine_};
  }

  /// `plain` in the layout that a primitive asks for.
  memory laid(const at::Tensor& plain, const Dims& dims, Tag tag, const memory::desc& wanted) const {
    memory from({dims, memory::data_type::f32, tag}, engine_, plain.data_ptr<float>());
    memory to(wanted, engine_);
    dnnl::stream stream(engine_);
    dnnl::reorder(from, to).execute(stream, from, to);
    stream.wait();
    return to;
  }

  template <class Primitive>
  DnnlProduct product(const Primitive& primitive, std::unordered_map<int, memory> arguments, int result,
                      const memory::desc& layout, const at::Tensor& like, Tag tag) const {
    const memory out(layout, engine_);
    arguments.emplace(result, out);
    dnnl::stream stream(engine_);
    const Dims dims = result == DNNL_ARG_DIFF_WEIGHTS ? weight_dims_ : like.sizes().vec();
    DnnlProduct p;
    p.run = [=]() mutable {
      primitive.execute(stream, arguments);
      stream.wait();
    };
    p.result = [=, engine = engine_]() mutable {
      at::Tensor plain = torch::empty_like(like);
      memory from = out, to({dims, memory::data_type::f32, tag}, engine, plain.data_ptr<float>());
      dnnl::reorder(from, to).execute(stream, from, to);
      stream.wait();
      return plain;
    };
    return p;
  }

  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  bool grouped_;
  at::Tensor x_, w_, dy_;
  Dims weight_dims_, strides_, dilation_, padding_;
};

}  // namespace

DnnlConv::DnnlConv(const kernels::ConvShape& shape, const at::Tensor& x, const at::Tensor& w, const at::Tensor& dy) {
  const Convolution c(shape, x, w, dy);
  forward = c.forward(algorithm::convolution_direct, prop_kind::forward_training);
  backward_data = c.backward_data();
  backward_weights = c.backward_weights();
  try {
    winograd = c.forward(algorithm::convolution_winograd, prop_kind::forward_inference);
  } catch (const dnnl::error& e) {
    if (e.status != dnnl_unimplemented && e.status != dnnl_invalid_arguments) throw;
  }
}

}  // namespace espalier::bench
