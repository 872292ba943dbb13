#include "espalier/methods/sparse_momentum.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "espalier/methods/allocate.h"

namespace espalier {
namespace {
const std::string kPrefix = "method.momentum.";
}

std::vector<std::int64_t> momentum_quotas(std::int64_t total, const std::vector<double>& shares,
                                          const std::vector<std::int64_t>& free) {
  std::vector<std::int64_t> capacity;
  for (const auto n : free) capacity.push_back(static_cast<std::int64_t>(0.99 * static_cast<double>(n)));
  const auto room = std::accumulate(capacity.begin(), capacity.end(), std::int64_t{0});
  return apportion(total, shares, total <= room ? capacity : free);
}

void SparseMomentum::describe(Describe& d) {
  d("fraction", fraction_, "share of its connections that each layer removes at a change, at the start",
    Range{0, 1, true, true});
  d("final_fraction", final_fraction_, "the same at `end`; between them it follows a cosine", from_up_to(0, 1));
  d("momentum", momentum_factor_, "M <- momentum M + dL/dw, at every position", from_up_to(0, 1));
  DropAndGrow::describe(d);
}

void SparseMomentum::after_step(const MethodContext& context) {
  if (!wants_dense_gradient(context.clock)) return;
  for (SparseWeight* w : context.weights) {
    at::Tensor& m = momentum_[w->name()];
    if (m.defined())
      m.mul_(momentum_factor_);
    else
      m = torch::zeros(w->shape(), w->parameter().scalar_type());
    w->add_dense_gradient(m);
  }
  DropAndGrow::after_step(context);
}

void SparseMomentum::change(const MethodContext& context) {
  const std::int64_t end = end_step(context.clock);
  const double fraction = final_fraction_ + cosine_fraction(fraction_ - final_fraction_, context.clock.step, end);

  // 1. Each layer's share of the growth: the mean |M| of its connections.
  std::vector<double> shares;
  std::vector<std::int64_t> removed, free;
  for (SparseWeight* w : context.weights) {
    const at::Tensor m = momentum_.at(w->name()).view({-1}).index_select(0, w->active());
    shares.push_back(m.abs().to(torch::kDouble).mean().item<double>());
    // 2. The smallest |w| go; every layer keeps one.
    const auto nnz = static_cast<double>(w->nnz());
    removed.push_back(std::min(w->nnz() - 1, static_cast<std::int64_t>(std::ceil(fraction * nnz))));
    free.push_back(w->numel() - w->nnz() + removed.back());
  }
  // 3. As many are grown where |M| is largest.
  const auto total = std::accumulate(removed.begin(), removed.end(), std::int64_t{0});
  const auto quotas = momentum_quotas(total, shares, free);
  for (std::size_t l = 0; l < context.weights.size(); ++l) {
    SparseWeight& w = *context.weights[l];
    const auto [active, weights] = w.entries();
    const auto [kept, dropped, threshold] = select_top(weights.abs_(), w.nnz() - removed[l], active);
    at::Tensor score = momentum_.at(w.name()).view({-1}).abs();
    score.index_fill_(0, kept, -1);  // kept: not to be grown
    const at::Tensor grown = select_top(score, quotas[l]).chosen;
    const at::Tensor leave = without(dropped, grown), enter = without(grown, dropped);
    if (leave.numel() == 0 && enter.numel() == 0) continue;
    w.rewire({leave, enter, birth_.draw(w, enter.numel(), context), threshold});
  }
}

NamedTensors SparseMomentum::archive() const {
  NamedTensors tensors;
  for (const auto& [name, m] : momentum_) tensors.emplace_back(kPrefix + name, m);
  return tensors;
}

void SparseMomentum::restore(const NamedTensors& tensors) {
  momentum_.clear();
  for (const auto& [name, tensor] : tensors) {
    if (name.compare(0, kPrefix.size(), kPrefix) == 0) momentum_[name.substr(kPrefix.size())] = tensor.clone();
  }
}

}  // namespace espalier
