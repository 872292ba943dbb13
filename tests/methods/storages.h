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

/// A weight [rows, columns] whose entries that are not zero are kept. `model` becomes the tensor that a layer with
/// masked storage would compute with.
inline std::unique_ptr<SparseWeight> weight_of(bool compressed, const at::Tensor& w,
                                               const Reparametrisation& psi = Reparametrisation(),
                                               std::int64_t layer = 0, at::Tensor* model = nullptr) {
  const std::string name = "fc" + std::to_string(layer) + ".weight";
  if (compressed) {
    auto weight = std::make_unique<CompressedWeight>(name, w.sizes().vec(), w.scalar_type());
    weight->adopt(name, layer, psi);
    weight->from_dense(w);
    return weight;
  }
  const at::Tensor own = w.clone();
  if (model != nullptr) *model = own;
  auto weight = make_masked_weight(name, own, psi, layer);
  weight->keep(w.view({-1}).nonzero().view({-1}));
  return weight;
}

/// The change of topology since the last look; at most one, as methods make them.
class Change {
 public:
  explicit Change(SparseWeight& weight) : weight_(weight) {
    weight.follow([this](const TopologyChange& change) {
      last_ = change;
      for (at::Tensor* positions : {&last_->dropped, &last_->grown})
        if (!positions->defined()) *positions = torch::empty({0}, torch::kInt64);
    });
  }
  ~Change() { weight_.follow({}); }
  Change(const Change&) = delete;
  Change& operator=(const Change&) = delete;
  std::optional<TopologyChange> take() { return std::exchange(last_, std::nullopt); }

 private:
  SparseWeight& weight_;
  std::optional<TopologyChange> last_;
};

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

/// A gradient that is simply there.
class GivenGradient : public GradientSource {
 public:
  explicit GivenGradient(at::Tensor g) : g_(std::move(g)) {}
  void add_rows(std::int64_t begin, std::int64_t end, at::Tensor& rows) const override {
    rows.add_(g_.slice(0, begin, end).reshape(rows.sizes()));
  }

 private:
  at::Tensor g_;
};

/// What a backward pass would leave: dL/dw, at every position. `model`: as weight_of has given it.
inline void give_gradient(SparseWeight& weight, at::Tensor model, const at::Tensor& gradient) {
  weight.want_dense_gradient(true);
  if (auto* compressed = dynamic_cast<CompressedWeight*>(&weight)) {
    compressed->add_gradient_source(std::make_shared<GivenGradient>(gradient));
    return;
  }
  model.mutable_grad() = gradient.clone();
  weight.pull(0);
  weight.parameter().mutable_grad() = at::Tensor();
}

}  // namespace espalier::test
