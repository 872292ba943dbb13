// One weight in both storages, for tests that want the same answer from each.
#pragma once

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "espalier/nn/compressed_weight.h"
#include "espalier/nn/sparse_weight.h"

namespace espalier::test {

inline std::vector<std::int64_t> numbers(const at::Tensor& t) {
  return {t.data_ptr<std::int64_t>(), t.data_ptr<std::int64_t>() + t.numel()};
}

/// A weight [rows, columns] whose entries that are not zero are kept.
inline std::unique_ptr<SparseWeight> weight_of(bool compressed, const at::Tensor& w,
                                               const Reparametrisation& psi = Reparametrisation(),
                                               std::int64_t layer = 0) {
  const std::string name = "fc" + std::to_string(layer) + ".weight";
  if (compressed) {
    auto weight = std::make_unique<CompressedWeight>(name, w.sizes().vec(), w.scalar_type());
    weight->adopt(name, layer, psi);
    weight->from_dense(w);
    return weight;
  }
  auto weight = make_masked_weight(name, w.clone(), psi, layer);
  weight->keep(w.view({-1}).nonzero().view({-1}));
  weight->take_change();
  return weight;
}

/// Writes phi, given at active() in ascending order, in place of what is there.
inline void set_values(SparseWeight& weight, const at::Tensor& phi) {
  NamedTensors saved = weight.archive();
  for (auto& [name, tensor] : saved) {
    if (name != weight.name() + ".phi") continue;
    if (weight.storage() == std::string("compressed")) {
      tensor = phi.to(tensor.scalar_type());
    } else {
      tensor = torch::zeros_like(tensor);
      tensor.view({-1}).index_copy_(0, weight.active(), phi.to(tensor.scalar_type()));
    }
  }
  weight.restore(saved);
}

}  // namespace espalier::test
