/// One sparsifiable weight: trainable values phi, the reparametrisation psi, the masks, and a storage.
///
///     w       = psi(phi) . M_f              what the layer computes with
///     dL/dphi = (dL/dw . M_b) . psi'(phi)   what the optimiser sees
///     after the step, phi outside M_b is bit for bit what it was
///
/// Methods see sets of positions and the values on them, never the storage. A position is a flat row-major index into
/// the dense shape; sets of positions are int64 tensors, ascending, without repetition.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "espalier/kernels/compressed.h"
#include "espalier/nn/reparametrisation.h"

namespace espalier {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

/// One change of a topology. Positions that are dropped and grown at once keep their place with the birth value.
struct Rewiring {
  at::Tensor drop;          ///< positions to leave, all active; undefined = none
  at::Tensor grow;          ///< positions to enter, none active after the drop; undefined = none
  at::Tensor birth_values;  ///< phi at `grow`; undefined = zeros. With alpha > 1 a weight born at zero never moves.
  std::optional<double> threshold;  ///< the |w| below which weights were dropped, for the record
};

/// What one `keep` or `rewire` did: for optimiser state and for the record.
struct TopologyChange {
  static constexpr std::uint32_t kNewborn = ~std::uint32_t{0};
  at::Tensor dropped, grown;  ///< positions; undefined = none
  std::optional<double> threshold;
  /// Compressed storage: [nnz] the place that each entry had before, or kNewborn. Empty: all are newborn.
  kernels::EntryIndices carried;
  bool for_the_record = false;  ///< it has happened already, without an effect on phi, M_b or an optimiser's state
};

class SparseWeight {
 public:
  /// `layer`: number of the weight in the model, the key of its random streams.
  SparseWeight(std::string name, std::vector<std::int64_t> shape, std::int64_t layer);
  virtual ~SparseWeight() = default;
  SparseWeight(const SparseWeight&) = delete;
  SparseWeight& operator=(const SparseWeight&) = delete;

  const std::string& name() const { return name_; }                  ///< as in state_dict: "fc1.weight"
  const std::vector<std::int64_t>& shape() const { return shape_; }  ///< [out, in] or [out, in/groups, kh, kw]
  std::int64_t numel() const { return numel_; }
  std::int64_t layer() const { return layer_; }
  const Reparametrisation& reparametrisation() const { return reparametrisation_; }

  virtual const char* storage() const = 0;  ///< "masked" or "compressed"

  // --- what a method sees -------------------------------------------------------------------------------------------
  virtual std::int64_t nnz() const = 0;    ///< |M_f|
  virtual at::Tensor active() const = 0;   ///< positions in M_f  [nnz]
  virtual at::Tensor weights() const = 0;  ///< w at active()     [nnz]
  /// active() and weights() at once: fewer passes over compressed storage. Like theirs, the tensors are the caller's.
  virtual std::pair<at::Tensor, at::Tensor> entries() const { return {active(), weights()}; }
  virtual at::Tensor values() const = 0;  ///< phi at active()   [nnz]
  /// M_f and M_b become exactly these positions, all active now. What a method calls to draw the first mask: compressed
  /// storage then never holds the others.
  virtual void keep(const at::Tensor& positions) = 0;
  /// Changes M_f and M_b alike. Throws Error(usage) if the positions are not what Rewiring says.
  virtual void rewire(const Rewiring& change) = 0;
  /// M_b alone: only these positions learn from now on; the others keep their phi whatever the optimiser does.
  virtual void set_trainable(const at::Tensor& positions) = 0;
  virtual at::Tensor trainable() const = 0;  ///< positions in M_b
  /// M_f and M_b, each any set of positions: phi stays as it is, everywhere, and w is zero outside M_f. A change of M_b
  /// is what the follower is told. Compressed storage then stores M_f and M_b and lays phi down elsewhere, dense: 4
  /// bytes a position that no step touches; from then on its masks change by `set_masks` alone. Throws Error(usage) for
  /// Update::target.
  virtual void set_masks(const at::Tensor& forward, const at::Tensor& backward) = 0;
  /// phi at every position, in the weight's shape; zero where compressed storage has none.
  virtual at::Tensor all_values() const = 0;

  /// From now on w = sign(psi(phi)) max(0, |psi(phi)| - threshold), and M_f the positions where that is not zero, as of
  /// this call; the gradient of w reaches phi in M_f alone, while every phi stays with the optimiser (decay, momentum).
  /// Nobody is told: see `record`. Masked storage only. Throws Error(usage) for Update::target.
  virtual void set_soft_threshold(double threshold);
  /// dL/dthreshold = - sum sign(w) dL/dw of the gradient that the backward pass has left; 0 where it left none.
  virtual double soft_threshold_gradient() const;

  /// Weights before training that are nowhere stored: w at positions, drawn when looked at, none larger than `largest`.
  struct InitialDraw {
    std::function<at::Tensor(const at::Tensor& positions)> at;
    double largest;
  };
  /// Compressed storage until positions are kept; nothing otherwise: `weights` has them all.
  virtual std::optional<InitialDraw> initial_draw() const { return std::nullopt; }

  // --- what the Sparsifier does, in this order in each step
  // -----------------------------------------------------------
  /// The tensor that the optimiser updates: phi, or w for Update::target. Its TensorImpl never changes.
  virtual at::Tensor parameter() = 0;
  /// Turns the gradient of w into the gradient of `parameter()`, masked by M_b. Adds `decay` * w to the gradient of w
  /// first.
  virtual void pull(double decay) = 0;
  /// After the optimiser: phi outside M_b back to what it was, w = psi(phi) . M_f.
  virtual void settle() = 0;
  /// phi <- factor phi on M_b, w follows (decoupled weight decay in a space that the optimiser does not see).
  virtual void shrink(double factor) = 0;
  /// For an optimiser's step in one pass in place of pull, step and settle: what that pass reads and writes, or nothing
  /// where it cannot be done so (frozen entries, masks, Update::target, no gradient). All tensors are contiguous and of
  /// one size. `one_pass_done` must follow.
  struct OnePass {
    at::Tensor phi;       ///< the parameter
    at::Tensor w;         ///< to become psi(phi); the same tensor as phi with the identity
    at::Tensor gradient;  ///< of w
    at::Tensor power;     ///< |phi|^(alpha-1), to be kept up to date; undefined where it is not kept
  };
  virtual std::optional<OnePass> one_pass() { return std::nullopt; }
  virtual void one_pass_done() {}
  /// Called at the end of each `keep` and `rewire` from now on; empty = nobody. At once, so that what follows one
  /// layer's change (optimiser state) is done before the next layer's needs memory.
  using Follower = std::function<void(const TopologyChange&)>;
  void follow(Follower follower) { follower_ = std::move(follower); }
  /// Tells the follower of what has come about without `keep` and `rewire`.
  void record(TopologyChange change) const {
    change.for_the_record = true;
    tell(change);
  }
  /// An optimiser's element-wise state after `change`: zero at what was dropped or grown, unmoved elsewhere.
  virtual void reindex_state(at::Tensor& state, const TopologyChange& change) const = 0;

  /// Another exponent of Powerpropagation, between two steps. Every phi becomes the phi' that stands for the same
  /// weight, sign(phi) |phi|^(alpha / alpha'), zeros stay zeros, and w is as it was, bit for bit; the next `settle`
  /// forms it from phi', within (alpha' + 1) roundings and those of psi. Returns dphi / dphi', shaped like
  /// `parameter()`, where that is phi: by what a gradient with respect to phi becomes one with respect to phi' (0 where
  /// phi is 0); undefined where the optimiser steps in w. Throws Error(usage) for the identity and for alpha = 1, which
  /// are other storages of phi.
  virtual at::Tensor change_alpha(double alpha) = 0;

  // --- the gradient of w also where nothing is kept, for methods that grow by it
  // -----------------------------------------------------------
  /// Whether backward passes from now on leave what the functions below need. What they left before is forgotten.
  virtual void want_dense_gradient(bool wanted) = 0;
  /// The k positions with the largest |dL/dw| outside `except` (ascending), ties to the lower position; ascending.
  /// Compressed storage forms the gradient a few rows at a time and holds 2 k candidates. Throws Error(usage) if there
  /// are fewer, or the backward pass has left nothing.
  virtual at::Tensor top_gradients(std::int64_t k, const at::Tensor& except) const = 0;
  /// sum <- sum + dL/dw at every position; `sum` is contiguous and of the weight's shape and type. Throws Error(usage)
  /// if the backward pass has left nothing.
  virtual void add_dense_gradient(at::Tensor& sum) const = 0;
  /// Adds `values` to dL/dw at `positions` before it is pulled. Positions that are not stored are passed over.
  virtual void add_gradient(const at::Tensor& positions, const at::Tensor& values) = 0;
  /// Adds inside/2 |psi(phi)|^2 on M_f and outside/2 |psi(phi)|^2 on M_b without M_f to the loss, by its gradient with
  /// respect to psi(phi), before that is pulled.
  virtual void add_penalty(double inside, double outside) = 0;

  // --- saving
  // -----------------------------------------------------------------------------------------------------------
  /// What stands in the file of weights beside the model's own parameters: "<name>.mask" (uint8) where masked and
  /// sparse; "<name>.crow_indices", ".col_indices" (int64) and ".values" where compressed.
  virtual NamedTensors state() const = 0;
  /// phi and masks under "<name>.…"; `restore` takes the same back, bit for bit.
  virtual NamedTensors archive() const = 0;
  virtual void restore(const NamedTensors& tensors) = 0;

 protected:
  void rename(std::string name, std::int64_t layer);
  void tell(const TopologyChange& change) const {
    if (follower_) follower_(change);
  }

  Reparametrisation reparametrisation_;

 private:
  std::string name_;
  std::vector<std::int64_t> shape_;
  std::int64_t numel_;
  std::int64_t layer_;
  Follower follower_;
};

/// Masked storage: dense tensors and a bit for each entry. Takes any weight of any layer; the reference for every test.
/// `w` is the model's own parameter, float32 or float64 on the CPU. With the identity phi *is* w.
std::unique_ptr<SparseWeight> make_masked_weight(std::string name, at::Tensor w, const Reparametrisation& psi,
                                                 std::int64_t layer);

}  // namespace espalier
