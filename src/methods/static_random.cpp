#include "espalier/methods/static_random.h"

#include <torch/torch.h>

#include <algorithm>

#include "espalier/core/error.h"
#include "espalier/core/random.h"
#include "espalier/methods/allocate.h"
#include "espalier/methods/select.h"

namespace espalier {

void StaticRandom::check(const MethodContext& context) const {
  ESPALIER_CHECK(
      context.sparsity.sparsity > 0, ErrorKind::usage,
      "method static-random needs [sparsity].sparsity above 0 (a network without zeros is method \"dense\")");
}

namespace {

void draw_masks(const MethodContext& context, bool none_empty) {
  if (!context.structure.empty()) {
    for (SparseWeight* w : context.weights) {
      const auto given = context.structure.find(w->name());
      ESPALIER_CHECK(given != context.structure.end(), ErrorKind::usage,
                     "{}: the structure to start from has no such weight; is it that of another model?", w->name());
      w->keep(given->second);
    }
    return;
  }
  std::int64_t positions = 0;
  std::vector<std::vector<std::int64_t>> shapes;
  std::vector<std::int64_t> sizes;
  for (const SparseWeight* w : context.weights) {
    positions += w->numel();
    shapes.push_back(w->shape());
    sizes.push_back(w->numel());
  }
  std::vector<std::int64_t> budgets(sizes.size(), 0);
  if (context.sparsity.distribution == "global") {
    const auto kept = kept_count(positions, context.sparsity.sparsity);
    std::size_t l = 0;
    std::int64_t end = sizes.empty() ? 0 : sizes[0];
    for (const auto i :
         random_subset(positions, kept, RandomStream(context.seed, Purpose::topology, ~std::uint64_t{0}))) {
      while (i >= end) end += sizes[++l];
      ++budgets[l];
    }
  } else {
    budgets = allocate(shapes, sizes, context.sparsity.sparsity, context.sparsity.distribution);
  }
  for (auto& budget : budgets) {
    if (!none_empty || budget > 0) continue;
    auto& most = *std::max_element(budgets.begin(), budgets.end());
    ESPALIER_CHECK(most > 1, ErrorKind::usage,
                   "[sparsity].sparsity = {} leaves fewer weights ({}) than there are layers ({}); lower it",
                   context.sparsity.sparsity, kept_count(positions, context.sparsity.sparsity), budgets.size());
    --most;
    ++budget;
  }
  for (std::size_t l = 0; l < budgets.size(); ++l) {
    SparseWeight& w = *context.weights[l];
    const RandomStream random(context.seed, Purpose::topology, static_cast<std::uint64_t>(w.layer()));
    w.keep(random_positions(w.numel(), budgets[l], random));
    ESPALIER_ASSERT(w.nnz() == budgets[l]);
  }
}

}  // namespace

void keep_random(const MethodContext& context, const Reinit& reinit, bool none_empty) {
  draw_masks(context, none_empty);
  for (SparseWeight* w : context.weights) reinit.apply(*w, context);
}

}  // namespace espalier
