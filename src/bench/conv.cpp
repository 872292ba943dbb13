#include <fmt/format.h>
#include <torch/torch.h>

#include <cmath>
#include <memory>

#include "bench/dnnl_conv.h"
#include "bench/rows.h"
#include "espalier/core/error.h"
#include "espalier/core/random.h"
#include "espalier/kernels/dispatch.h"
#include "espalier/nn/sparse_conv.h"
#include "espalier/ops/sparse_conv.h"

namespace espalier::bench {
namespace {

/// LibTorch's view of a case; `x` and `w` decide the memory format of the result.
struct TorchConv {
  explicit TorchConv(const kernels::ConvShape& s)
      : stride(s.stride.begin(), s.stride.end()),
        padding(s.padding.begin(), s.padding.end()),
        dilation(s.dilation.begin(), s.dilation.end()),
        groups(s.groups) {}

  at::Tensor forward(const at::Tensor& x, const at::Tensor& w) const {
    return at::conv2d(x, w, {}, stride, padding, dilation, groups);
  }
  /// dx and dw
  std::pair<at::Tensor, at::Tensor> backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& w) const {
    const auto both = at::convolution_backward(dy, x, w, c10::nullopt, stride, padding, dilation, /*transposed=*/false,
                                               /*output_padding=*/{0, 0}, groups, {true, true, false});
    return {std::get<0>(both), std::get<1>(both)};
  }

  std::vector<std::int64_t> stride, padding, dilation;
  std::int64_t groups;
};

/// Everything of one case: the same weight sparse and dense, images and gradients.
struct Conv {
  Conv(const ConvCase& given, std::uint64_t seed) : c(given), torch_conv(given.shape) {
    at::set_num_threads(c.threads);
    const kernels::ConvShape& s = c.shape;
    layer = std::make_shared<nn::SparseConv2dImpl>(options());
    const auto positions = s.out * s.columns();
    const auto kept = std::llround((1 - c.sparsity) * static_cast<double>(positions));
    const at::Tensor at =
        torch::tensor(random_subset(positions, kept, RandomStream(seed, Purpose::test)), torch::kInt64);
    torch::manual_seed(static_cast<std::int64_t>(seed));
    w = torch::zeros({s.out, s.in / s.groups, s.kernel[0], s.kernel[1]});
    w.view({-1}).index_put_({at}, torch::randn({kept}) / std::sqrt(static_cast<double>(s.columns())));
    layer->weight()->from_dense(w);  // a value drawn as exactly zero is not kept
    mask = torch::zeros({positions}).index_fill(0, layer->weight()->active(), 1).view(w.sizes());
    x = torch::randn({c.batch, s.in, c.height, c.width});
    dy = torch::randn({c.batch, s.out, s.output(0, c.height), s.output(1, c.width)});

    // Sums over kept entries for y and dx, over the pixels of the batch, and padding lanes, for dw.
    const double outputs = static_cast<double>(dy.numel() / s.out);
    const at::Tensor xd = x.to(torch::kDouble), wd = w.to(torch::kDouble), dyd = dy.to(torch::kDouble);
    y_reference = torch_conv.forward(xd, wd);
    y_bound = torch_conv.forward(xd.abs(), wd.abs()) * rounding(static_cast<double>(s.columns()) + 2);
    std::tie(dx_reference, dw_reference) = torch_conv.backward(dyd, xd, wd);
    std::tie(dx_bound, dw_bound) = torch_conv.backward(dyd.abs(), xd.abs(), wd.abs());
    dx_bound *= rounding(static_cast<double>(s.out / s.groups * s.taps()) + 2);
    dw_bound *= rounding(outputs + 64);
    // Where oneDNN is to be judged, all of dw; ours has the kept entries.
  }

  torch::nn::Conv2dOptions options() const {
    const kernels::ConvShape& s = c.shape;
    return torch::nn::Conv2dOptions(s.in, s.out, {s.kernel[0], s.kernel[1]})
        .stride({s.stride[0], s.stride[1]})
        .padding({s.padding[0], s.padding[1]})
        .dilation({s.dilation[0], s.dilation[1]})
        .groups(s.groups)
        .bias(false);
  }

  double error_of_y(const at::Tensor& y) const { return error_share(y, y_reference, y_bound); }
  double error_of_dx(const at::Tensor& dx) const { return error_share(dx, dx_reference, dx_bound); }
  /// At the kept entries, zeros elsewhere.
  double error_of_dw(const at::Tensor& dw) const { return error_share(dw, dw_reference * mask, dw_bound); }

  Row row(const char* level, const char* pass, double error) const {
    Row r;
    r.level = level;
    r.what = "conv2d";
    r.shape = to_text(c);
    r.pass = pass;
    r.isa = kernels::active().isa;
    r.batch = c.batch;
    r.sparsity = c.sparsity;
    r.threads = c.threads;
    verified(r, error);
    return r;
  }
  void timed(Row& r, const Timing& t, double products) const {
    const double pixels = products * static_cast<double>(c.batch * dy.size(2) * dy.size(3));
    add_sparse(r, t, pixels * static_cast<double>(layer->weight()->nnz()), pixels * static_cast<double>(w.numel()));
  }

  ConvCase c;
  TorchConv torch_conv;
  std::shared_ptr<nn::SparseConv2dImpl> layer;
  at::Tensor w, mask, x, dy;
  at::Tensor y_reference, y_bound, dx_reference, dx_bound, dw_reference, dw_bound;
};

/// oneDNN must do what we take it to do: the direct products within the bound, Winograd, whose transforms lose some
/// bits, within a thousandth.
void check_dnnl(const Conv& p, const DnnlConv& dnnl) {
  const double direct = std::max({p.error_of_y(dnnl.forward.result()), p.error_of_dx(dnnl.backward_data.result()),
                                  error_share(dnnl.backward_weights.result(), p.dw_reference, p.dw_bound)});
  double winograd = 0;
  if (dnnl.winograd) {
    const at::Tensor off = dnnl.winograd.result().to(torch::kDouble) - p.y_reference;
    winograd = (off.norm() / p.y_reference.norm()).item<double>();
  }
  ESPALIER_CHECK(direct <= 1 && winograd <= 1e-3, ErrorKind::check,
                 "bench: conv2d {} batch {}: oneDNN is off the reference, by {:.3g} times the rounding bound (direct), "
                 "{:.3g} (Winograd); nothing was timed",
                 to_text(p.c), p.c.batch, direct, winograd);
}

}  // namespace

std::vector<Row> bench_conv_kernels(const ConvCase& c, double seconds, std::uint64_t seed) {
  const torch::NoGradGuard no_grad;
  const Conv p(c, seed);
  const auto matrix = p.layer->weight()->matrix();
  const at::Tensor values = p.layer->weight()->stored_values().detach();
  const at::Tensor forward_values = p.layer->weight()->forward_values();
  const ops::ImageLayout in = ops::image_layout(p.x, ops::conv_halo(c.shape));
  const ops::ConvPlan plan(matrix, c.shape, in);
  const ops::ImageLayout out = plan.output(c.batch);
  const at::Tensor x = ops::to_images(p.x, in.halo), dy = ops::to_images(p.dy, out.halo);
  // Memory as layers have it, in large pages; it is written over.
  at::Tensor y = ops::to_images(p.dy, out.halo), dx = ops::to_images(p.x, in.halo);
  at::Tensor dvalues = torch::empty_like(values), no_bias;

  const auto forward = [&] { ops::conv_forward(plan, in, forward_values, {}, x, y); };
  const auto backward = [&] { ops::conv_backward(plan, in, values, x, dy, dx, false, dvalues, no_bias); };
  forward();
  backward();
  const double error_y = p.error_of_y(ops::from_images(y, out));
  const double error_backward =
      std::max(p.error_of_dx(ops::from_images(dx, in)), p.error_of_dw(scattered(*matrix, dvalues, p.w.sizes())));
  std::vector<Row> rows = {p.row("kernels", "forward", error_y), p.row("kernels", "backward", error_backward),
                           p.row("kernels", "step", std::max(error_y, error_backward))};

  DnnlConv dnnl(c.shape, p.x, p.w, p.dy);
  dnnl.forward.run();
  dnnl.backward_data.run();
  dnnl.backward_weights.run();
  if (dnnl.winograd) dnnl.winograd.run();
  check_dnnl(p, dnnl);

  const auto last = torch::MemoryFormat::ChannelsLast;
  const at::Tensor x_last = p.x.contiguous(last), w_last = p.w.contiguous(last), dy_last = p.dy.contiguous(last);
  std::vector<Candidate> candidates = {
      {"forward", forward},
      {"backward", backward},
      {"step",
       [&] {
         forward();
         backward();
       }},
      {"f", dnnl.forward.run},
      {"dx", dnnl.backward_data.run},
      {"dw", dnnl.backward_weights.run},
      {"f", [&] { p.torch_conv.forward(p.x, p.w); }},
      {"dx dw", [&] { p.torch_conv.backward(p.dy, p.x, p.w); }},
      {"f", [&] { p.torch_conv.forward(x_last, w_last); }},
      {"dx dw", [&] { p.torch_conv.backward(dy_last, x_last, w_last); }},
  };
  if (dnnl.winograd) candidates.push_back({"f", dnnl.winograd.run});
  const auto t = measure(candidates, seconds / static_cast<double>(candidates.size()));
  for (std::size_t i = 0; i < 3; ++i) p.timed(rows[i], t[i], static_cast<double>(i + 1));
  const std::vector<Named> f = {
      {"oneDNN direct", t[3].median}, {"LibTorch conv2d", t[6].median}, {"LibTorch conv2d channels_last", t[8].median}};
  const std::vector<Named> b = {
      {f[0].path, t[4].median + t[5].median}, {f[1].path, t[7].median}, {f[2].path, t[9].median}};
  add_dense(rows[0], f);
  add_dense(rows[1], b);
  std::vector<Named> step;
  for (std::size_t i = 0; i < f.size(); ++i) step.push_back({f[i].path, f[i].us + b[i].us});
  // The fastest dense step may take each pass on another path.
  step.push_back({"fastest of each pass", rows[0].dense_us + rows[1].dense_us});
  add_dense(rows[2], step);
  if (dnnl.winograd) add_beside(rows[0], {"oneDNN Winograd", t.back().median});
  return rows;
}

std::vector<Row> bench_conv_layer(const ConvCase& c, double seconds, std::uint64_t seed) {
  const Conv p(c, seed);
  const auto last = torch::MemoryFormat::ChannelsLast;
  at::Tensor x = p.x.clone().set_requires_grad(true);
  at::Tensor x_last = p.x.clone(last).set_requires_grad(true);
  torch::nn::Conv2d dense(p.options()), channels_last(p.options()), masked(p.options());
  {
    const torch::NoGradGuard no_grad;
    for (auto& module : {dense, channels_last, masked}) module->weight.copy_(p.w);
    channels_last->weight.set_data(p.w.clone(last));
  }
  const at::Tensor dy_last = p.dy.contiguous(last);

  at::Tensor values = p.layer->weight()->stored_values();
  const at::Tensor y = p.layer->forward(x);
  y.backward(p.dy);
  const double error_y = p.error_of_y(y);
  const double error_step =
      std::max({error_y, p.error_of_dx(x.grad()),
                p.error_of_dw(scattered(*p.layer->weight()->matrix(), values.grad(), p.w.sizes()))});
  std::vector<Row> rows = {p.row("layer", "forward", error_y), p.row("layer", "step", error_step)};

  const auto clear = [&] {
    for (at::Tensor parameter : {x, x_last, values, dense->weight, channels_last->weight, masked->weight})
      parameter.mutable_grad() = at::Tensor();
  };
  clear();
  const auto inference = [](const auto& f) {
    return [f] {
      const torch::NoGradGuard no_grad;
      f();
    };
  };
  const auto training = [&](const auto& f, const at::Tensor& gradient) {
    return [&clear, f, gradient] {
      f().backward(gradient);
      clear();
    };
  };
  const auto sparse_y = [&] { return p.layer->forward(x); };
  const auto dense_y = [&] { return dense->forward(x); };
  const auto last_y = [&] { return channels_last->forward(x_last); };
  const auto masked_y = [&] { return p.torch_conv.forward(x, masked->weight * p.mask); };
  const std::vector<Candidate> candidates = {
      {"", inference(sparse_y)},       {"", inference(dense_y)},       {"", inference(last_y)},
      {"", inference(masked_y)},       {"", training(sparse_y, p.dy)}, {"", training(dense_y, p.dy)},
      {"", training(last_y, dy_last)}, {"", training(masked_y, p.dy)},
  };
  const auto t = measure(candidates, seconds / static_cast<double>(candidates.size()));
  for (std::size_t i = 0; i < 2; ++i) {
    p.timed(rows[i], t[4 * i], i == 0 ? 1 : 3);
    add_dense(rows[i],
              {{"LibTorch Conv2d", t[4 * i + 1].median}, {"LibTorch Conv2d channels_last", t[4 * i + 2].median}});
    add_beside(rows[i], {"LibTorch masked", t[4 * i + 3].median});
  }
  return rows;
}

}  // namespace espalier::bench
