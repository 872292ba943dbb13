/// A method decides how the masks change over time, and nothing else: it never touches layers, optimisers or data.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "espalier/core/duration.h"
#include "espalier/core/options.h"
#include "espalier/methods/options.h"
#include "espalier/nn/sparse_weight.h"

namespace espalier {

struct Probe;

/// What a method is given. `weights` are those it may make sparse (the `dense_layers` are not among them).
struct MethodContext {
  std::vector<SparseWeight*> weights;
  Clock clock;
  std::uint64_t seed = 0;
  SparsityOptions sparsity;
  std::vector<const SparseWeight*> dense_weights = {};  ///< the `dense_layers`, to look at
  /// The network, before training: set during `check` and `prepare`, null after them and where the user gave none.
  const Probe* probe = nullptr;
  /// Where given, the positions of the first masks by the names of weights; what a method would draw is left out then.
  std::map<std::string, at::Tensor> structure = {};
  double learning_rate = 0;  ///< of this step; known in before_step and after_step
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

  /// The sparsity of what compressed storage holds from step 0 on; 0: everything at first.
  virtual double stored_sparsity(double sparsity) const { return sparse_from_start() ? sparsity : 0; }

  /// Before step 0: the initial masks. context.probe is there to look at the network and the data.
  virtual void prepare(const MethodContext&) {}

  /// Whether nothing changes after `prepare`: a network that is restored need not be prepared again then, and one that
  /// `prepare` has cut in two is refused.
  virtual bool is_static() const { return false; }

  /// Whether the method works on compressed weights; one that moves something at every position in each step does not.
  virtual bool takes_compressed() const { return true; }

  /// Whether the step that `clock` counts as its last needs the gradient of w at every position; asked before its
  /// forward pass. Then `SparseWeight::top_gradients` and `add_dense_gradient` answer in after_step.
  virtual bool wants_dense_gradient(const Clock&) const { return false; }

  /// Whether that step changes the topology in place of the optimiser's update (RigL).
  virtual bool replaces_update(const Clock&) const { return false; }

  /// Between backward and the optimiser's update: what is added to the loss or to its gradient
  /// (SparseWeight::add_gradient).
  virtual void before_update(const MethodContext&) {}

  /// After `clock.step` steps, when phi and w have settled.
  virtual void after_step(const MethodContext&) {}

  /// What the method itself learns, by names that begin with "method.": it stands beside the weights in
  /// Sparsifier::parameters(), and `before_update` leaves its gradients. Asked for after `prepare`.
  virtual NamedTensors parameters() const { return {}; }

  /// What the method remembers beside the masks, for checkpoints, as "method.<what>"; `restore` takes the same back.
  virtual NamedTensors archive() const { return {}; }
  /// Throws Error(data) if `tensors` lacks what `archive` would give.
  virtual void restore(const NamedTensors& tensors) { (void)tensors; }
};

}  // namespace espalier
