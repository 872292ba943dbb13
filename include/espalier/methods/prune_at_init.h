/// Pruning before training: weights are scored once or in rounds, the best stay, and nothing changes afterwards.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "espalier/methods/method.h"
#include "espalier/methods/probe.h"
#include "espalier/methods/reinit.h"

namespace espalier {

/// Indices of the scores that stay, ascending, one list for each weight: exactly kept_count(all positions, sparsity)
/// together, ties to the lower weight and index. scores[l]: of the positions of weights[l] that may stay.
/// `distribution` global ranks all together; uniform, er and erk keep each layer's allocation.
std::vector<at::Tensor> select_highest(const std::vector<SparseWeight*>& weights, const std::vector<at::Tensor>& scores,
                                       double sparsity, const std::string& distribution);

/// Names of the weights, as the probe's network has them.
std::vector<std::string> names_of(const std::vector<SparseWeight*>& weights);

/// What a pruning at initialisation has in common: the budget, the selection, what survivors begin with.
class PruneAtInit : public Method {
 public:
  void describe(Describe& d) override;
  void check(const MethodContext& context) const override;
  bool sparse_from_start() const override { return true; }
  bool is_static() const override { return true; }
  void prepare(const MethodContext& context) final;

 protected:
  /// The positions to keep of each weight.
  virtual std::vector<at::Tensor> survivors(const MethodContext& context) = 0;

 private:
  Reinit reinit_;
};

/// `magnitude-at-init`: the largest |w|.
class MagnitudeAtInit : public PruneAtInit {
 protected:
  std::vector<at::Tensor> survivors(const MethodContext& context) override;
};

/// A method that scores with data: which, and how much.
class PruneWithData : public PruneAtInit {
 public:
  void describe(Describe& d) override;
  void check(const MethodContext& context) const override;

 protected:
  PruneWithData(std::int64_t batches, std::int64_t samples_per_class)
      : batches_(batches), samples_per_class_(samples_per_class) {}
  std::vector<ProbeBatch> draw(const MethodContext& context) const;

 private:
  std::int64_t batches_;
  std::int64_t samples_per_class_;
};

}  // namespace espalier
