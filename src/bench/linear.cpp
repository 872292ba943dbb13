#include <dnnl.h>
#include <fmt/format.h>
#include <torch/torch.h>

#include <cmath>
#include <memory>

#include "bench/rows.h"
#include "bench/sparse_peers.h"
#include "espalier/core/error.h"
#include "espalier/core/random.h"
#include "espalier/kernels/dispatch.h"
#include "espalier/nn/sparse_linear.h"
#include "espalier/ops/sparse_linear.h"

namespace espalier::bench {
namespace {

/// Everything of one case: the same weight sparse and dense, inputs and gradients in each layout.
struct Linear {
  Linear(const LinearCase& given, std::uint64_t seed) : c(given) {
    at::set_num_threads(c.threads);
    const auto kept = std::llround((1 - c.sparsity) * static_cast<double>(c.in * c.out));
    const auto positions = random_subset(c.in * c.out, kept, RandomStream(seed, Purpose::test));
    layer = std::make_shared<nn::SparseLinearImpl>(torch::nn::LinearOptions(c.in, c.out).bias(false));
    torch::manual_seed(static_cast<std::int64_t>(seed));
    dense = torch::zeros({c.out, c.in});
    const at::Tensor at = torch::tensor(positions, torch::kInt64);
    dense.view({-1}).index_put_({at}, torch::randn({kept}) / std::sqrt(static_cast<double>(c.in)));
    layer->weight()->from_dense(dense);  // a value drawn as exactly zero is not kept
    nnz = layer->weight()->nnz();
    mask = torch::zeros({c.out * c.in}).index_fill(0, layer->weight()->active(), 1).view({c.out, c.in});
    x = torch::randn({c.batch, c.in});
    dy = torch::randn({c.batch, c.out});
    xt = x.t().contiguous();
    dyt = dy.t().contiguous();
  }

  Row row(const char* level, const char* pass, double error) const {
    Row r;
    r.level = level;
    r.what = "linear";
    r.shape = fmt::format("{}x{}", c.in, c.out);
    r.pass = pass;
    r.isa = kernels::active().isa;
    r.batch = c.batch;
    r.sparsity = c.sparsity;
    r.threads = c.threads;
    verified(r, error);
    return r;
  }
  void timed(Row& r, const Timing& t, double products) const {
    const auto work = products * static_cast<double>(c.batch);
    add_sparse(r, t, work * static_cast<double>(nnz), work * static_cast<double>(c.in * c.out));
  }

  /// Of dW at the kept entries, zeros elsewhere: sums over the batch.
  double error_of_gradient(const at::Tensor& dw) const {
    const at::Tensor xd = x.to(torch::kDouble), gradient = dy.to(torch::kDouble).t();
    const double n = static_cast<double>(c.batch) + 64;  // and over padding lanes
    return error_share(dw, gradient.mm(xd) * mask, gradient.abs().mm(xd.abs()) * rounding(n));
  }

  LinearCase c;
  std::shared_ptr<nn::SparseLinearImpl> layer;
  std::int64_t nnz = 0;
  at::Tensor dense, mask, x, dy, xt, dyt;
};

/// Of `found` = a b, sums of n products.
double error_of_product(const at::Tensor& found, const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor ad = a.to(torch::kDouble), bd = b.to(torch::kDouble);
  return error_share(found, ad.mm(bd), ad.abs().mm(bd.abs()) * rounding(static_cast<double>(a.size(1)) + 2));
}

void sgemm(char ta, char tb, std::int64_t m, std::int64_t n, std::int64_t k, const at::Tensor& a, std::int64_t lda,
           const at::Tensor& b, std::int64_t ldb, at::Tensor& out, std::int64_t ldc) {
  dnnl_sgemm(ta, tb, m, n, k, 1.0f, a.data_ptr<float>(), lda, b.data_ptr<float>(), ldb, 0.0f, out.data_ptr<float>(),
             ldc);
}

}  // namespace

std::vector<Row> bench_linear_kernels(const LinearCase& c, double seconds, std::uint64_t seed) {
  const torch::NoGradGuard no_grad;
  Linear p(c, seed);
  const auto matrix = p.layer->weight()->matrix();
  const at::Tensor values = p.layer->weight()->stored_values().detach();
  const at::Tensor forward_values = p.layer->weight()->forward_values();
  const ops::TileLayout in{c.batch, c.in}, out{c.batch, c.out};
  const at::Tensor xt = ops::to_tiles(p.x), dyt = ops::to_tiles(p.dy);
  at::Tensor y = torch::empty({out.numel()}), dx = torch::empty({in.numel()}), dvalues = torch::empty_like(values),
             no_bias;

  const auto forward = [&] { ops::linear_forward(*matrix, in, {}, forward_values, {}, xt, y); };
  const auto backward = [&] { ops::linear_backward(*matrix, in, values, xt, dyt, dx, dvalues, no_bias); };
  forward();
  backward();
  const double error_y = error_of_product(ops::from_tiles(y, out), p.x, p.dense.t());
  const double error_dx = error_of_product(ops::from_tiles(dx, in), p.dy, p.dense);
  const double error_dw = p.error_of_gradient(scattered(*matrix, dvalues, p.dense.sizes()));
  const double error_backward = std::max(error_dx, error_dw);
  std::vector<Row> rows = {p.row("kernels", "forward", error_y), p.row("kernels", "backward", error_backward),
                           p.row("kernels", "step", std::max(error_y, error_backward))};

  at::Tensor dense_y = torch::empty({c.batch, c.out}), dense_dx = torch::empty({c.batch, c.in}),
             dw = torch::empty({c.out, c.in}), yt = torch::empty({c.out, c.batch}), dxt = torch::empty({c.in, c.batch});
  const at::Tensor weight_t = p.dense.t(), dy_t = p.dy.t();
  std::vector<Candidate> candidates = {
      {"forward", forward},
      {"backward", backward},
      {"step",
       [&] {
         forward();
         backward();
       }},
      // row-major batches
      {"f", [&] { sgemm('N', 'T', c.batch, c.out, c.in, p.x, c.in, p.dense, c.in, dense_y, c.out); }},
      {"dx", [&] { sgemm('N', 'N', c.batch, c.in, c.out, p.dy, c.out, p.dense, c.in, dense_dx, c.in); }},
      {"dw", [&] { sgemm('T', 'N', c.out, c.in, c.batch, p.dy, c.out, p.x, c.in, dw, c.in); }},
      // features first, as the tiles are
      {"f", [&] { sgemm('N', 'N', c.out, c.batch, c.in, p.dense, c.in, p.xt, c.batch, yt, c.batch); }},
      {"dx", [&] { sgemm('T', 'N', c.in, c.batch, c.out, p.dense, c.in, p.dyt, c.batch, dxt, c.batch); }},
      {"dw", [&] { sgemm('N', 'T', c.out, c.in, c.batch, p.dyt, c.batch, p.xt, c.batch, dw, c.in); }},
      {"f", [&] { at::mm_out(dense_y, p.x, weight_t); }},
      {"dx", [&] { at::mm_out(dense_dx, p.dy, p.dense); }},
      {"dw", [&] { at::mm_out(dw, dy_t, p.x); }},
  };
  const std::size_t peers_begin = candidates.size();
  std::vector<SparsePeer> peers = sparse_peers(p.dense, p.xt);
  for (const SparsePeer& peer : peers) {
    peer.run();
    const double error = error_of_product(peer.y.t(), p.x, p.dense.t());
    ESPALIER_CHECK(error <= 1, ErrorKind::check,
                   "bench: linear {} batch {}: {} is off the reference by {:.3g} times the rounding bound; nothing was "
                   "timed",
                   rows[0].shape, c.batch, peer.name, error);
    candidates.push_back({peer.name, peer.run});
  }
  const auto t = measure(candidates, seconds / static_cast<double>(candidates.size()));
  const char* const path[] = {"oneDNN sgemm, row-major", "oneDNN sgemm, feature-major", "LibTorch mm"};
  for (std::size_t i = 0; i < 3; ++i) p.timed(rows[i], t[i], static_cast<double>(i + 1));
  std::vector<Named> f, b, step;
  for (std::size_t i = 0; i < 3; ++i) {
    f.push_back({path[i], t[3 + 3 * i].median});
    b.push_back({path[i], t[4 + 3 * i].median + t[5 + 3 * i].median});
  }
  add_dense(rows[0], f);
  for (std::size_t i = 0; i < peers.size(); ++i) add_beside(rows[0], {peers[i].name, t[peers_begin + i].median});
  add_dense(rows[1], b);
  for (std::size_t i = 0; i < 3; ++i) step.push_back({path[i], f[i].us + b[i].us});
  // The fastest dense step may take each product on another path.
  double best = 0;
  for (std::size_t k = 0; k < 3; ++k) best += std::min({t[3 + k].median, t[6 + k].median, t[9 + k].median});
  step.push_back({"fastest of each product", best});
  add_dense(rows[2], step);
  return rows;
}

std::vector<Row> bench_linear_layer(const LinearCase& c, double seconds, std::uint64_t seed) {
  Linear p(c, seed);
  auto x = p.x.clone().set_requires_grad(true);
  torch::nn::Linear dense(torch::nn::LinearOptions(c.in, c.out).bias(false)),
      masked(torch::nn::LinearOptions(c.in, c.out).bias(false));
  {
    const torch::NoGradGuard no_grad;
    dense->weight.copy_(p.dense);
    masked->weight.copy_(p.dense);
  }
  const at::Tensor y = p.layer->forward(x);
  y.backward(p.dy);
  const double error_y = error_of_product(y, p.x, p.dense.t());
  const at::Tensor dvalues = p.layer->weight()->stored_values().grad();
  const double error_step =
      std::max({error_y, error_of_product(x.grad(), p.dy, p.dense),
                p.error_of_gradient(scattered(*p.layer->weight()->matrix(), dvalues, p.dense.sizes()))});
  std::vector<Row> rows = {p.row("layer", "forward", error_y), p.row("layer", "step", error_step)};
  at::Tensor csr;
  {
    // LibTorch calls its CSR tensors beta, on standard error, in every process.
    struct : c10::WarningHandler {
      void process(const c10::SourceLocation&, const std::string&, bool) override {}
    } quiet;
    const c10::Warning::WarningHandlerGuard guard(&quiet);
    const torch::NoGradGuard no_grad;
    csr = p.dense.to_sparse_csr();
  }
  const auto clear = [&] {
    x.mutable_grad() = at::Tensor();
    dense->weight.mutable_grad() = at::Tensor();
    masked->weight.mutable_grad() = at::Tensor();
    for (auto& q : p.layer->parameters()) q.mutable_grad() = at::Tensor();
  };
  clear();
  const auto inference = [](const auto& f) {
    return [f] {
      const torch::NoGradGuard no_grad;
      f();
    };
  };
  const auto training = [&](const auto& f) {
    return [&, f] {
      f().backward(p.dy);
      clear();
    };
  };
  const auto sparse_y = [&] { return p.layer->forward(x); };
  const auto dense_y = [&] { return dense->forward(x); };
  const auto masked_y = [&] { return torch::linear(x, masked->weight * p.mask); };
  const std::vector<Candidate> candidates = {
      {"", inference(sparse_y)}, {"", inference(dense_y)},
      {"", inference(masked_y)}, {"", inference([&] { return csr.mm(p.xt); })},
      {"", training(sparse_y)},  {"", training(dense_y)},
      {"", training(masked_y)},
  };
  const auto t = measure(candidates, seconds / static_cast<double>(candidates.size()));
  p.timed(rows[0], t[0], 1);
  p.timed(rows[1], t[4], 3);
  add_dense(rows[0], {{"LibTorch Linear", t[1].median}});
  add_beside(rows[0], {"LibTorch masked", t[2].median});
  add_beside(rows[0], {"LibTorch CSR", t[3].median});
  add_dense(rows[1], {{"LibTorch Linear", t[5].median}});
  add_beside(rows[1], {"LibTorch masked", t[6].median});
  return rows;
}

}  // namespace espalier::bench
