/// A method decides how the masks change over time, and nothing else: it never touches layers, optimisers or data.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "espalier/core/duration.h"
#include "espalier/core/options.h"
#include "espalier/methods/options.h"
#include "espalier/nn/sparse_weight.h"

namespace espalier {

/// What a method is given. `weights` are those it may make sparse (the `dense_layers` are not among them).
struct MethodContext {
  std::vector<SparseWeight*> weights;
  Clock clock;
  std::uint64_t seed = 0;
  SparsityOptions sparsity;
};

class Method {
 public:
  virtual ~Method() = default;

  /// The method's own options, table [method].
  virtual void describe(Describe&) {}

  /// Throws Error(usage) if the method cannot do what is asked (a clock without a length, a sparsity it has no use
  /// for).
  virtual void check(const MethodContext&) const {}

  /// Whether `prepare` leaves the weights as sparse as they will be: then compressed storage pays from the first step.
  virtual bool sparse_from_start() const { return false; }

  /// Before step 0: the initial masks.
  virtual void prepare(const MethodContext&) {}

  /// After `clock.step` steps, when phi and w have settled.
  virtual void after_step(const MethodContext&) {}

  /// What the method remembers beside the masks, for checkpoints, as "method.<what>"; `restore` takes the same back.
  virtual NamedTensors archive() const { return {}; }
  /// Throws Error(data) if `tensors` lacks what `archive` would give.
  virtual void restore(const NamedTensors& tensors) { (void)tensors; }
};

}  // namespace espalier
