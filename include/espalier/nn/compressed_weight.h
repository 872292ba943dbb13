/// Compressed storage of a SparseWeight: only the kept positions exist, in memory and in time.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "espalier/core/bitmask.h"
#include "espalier/kernels/compressed.h"
#include "espalier/nn/sparse_weight.h"
#include "espalier/ops/csr.h"

namespace espalier {

class Positions;

/// One use of a weight in a backward pass, from which its gradient can be formed at any position.
class GradientSource {
 public:
  virtual ~GradientSource() = default;
  /// Adds rows [begin, end) of dL/dw, as a matrix [out, in x …], to `rows`: [end - begin, in x …], contiguous.
  virtual void add_rows(std::int64_t begin, std::int64_t end, at::Tensor& rows) const = 0;
};

/// values[nnz] in the canonical order of kernels/compressed.h are what a layer computes with and what its gradient is
/// for; the index is 16 bits an entry and side. A weight [out, in, …] is the matrix [out, in x …].
///
/// Until the first `keep`, `rewire` or use in a layer, every position is active and none is stored: values are drawn by
/// `draw` when they are looked at. So a network that is sparse from the start is never dense, not even to be built.
///
/// With the identity phi *is* values. Otherwise phi [nnz] is a second tensor. `values()` of the interface and its
/// positions are in row-major order, as everywhere.
///
/// After `set_masks` the entries are M_f and M_b together, w is 0 outside M_f, and phi elsewhere is laid down, dense.
class CompressedWeight : public SparseWeight {
 public:
  /// What stands at these positions (int64, ascending) at step 0: as large as `positions`, float32 or float64.
  using Draw = std::function<at::Tensor(const at::Tensor& positions)>;

  /// conv: of what convolution it is the weight, whose entries then stand in the order that such a layer reads.
  CompressedWeight(std::string name, std::vector<std::int64_t> shape, at::ScalarType type = at::kFloat,
                   std::optional<kernels::ConvShape> conv = std::nullopt);

  /// The distribution at step 0, zeros until it is set; no |w| exceeds `largest`. Throws Error(usage) once entries are
  /// stored.
  void set_draw(Draw draw, double largest = std::numeric_limits<double>::infinity());
  /// What SparseWeight's constructor cannot know yet: name and number in a model, and psi. Values keep w.
  void adopt(std::string name, std::int64_t layer, const Reparametrisation& psi);
  /// Entries and w of another weight of the same shape; where it stores none yet, its distribution. The structure is
  /// shared.
  void copy_from(const CompressedWeight& other);
  /// Entries and values from a dense weight: what is not zero is kept.
  void from_dense(const at::Tensor& dense);
  /// w from a file of weights, as `state` gives it (crow_indices, col_indices, values) or dense under name(). False
  /// where neither is there. Throws Error(data) for tensors that do not fit.
  bool load_state(const NamedTensors& tensors);
  at::Tensor to_dense() const;  ///< w, with zeros where nothing is kept

  const void* values_impl() const { return values_.unsafeGetTensorImpl(); }  ///< identity of the parameter `values`
  at::ScalarType stored_type() const { return values_.scalar_type(); }
  /// w in canonical order; its TensorImpl never changes. With psi another tensor is the parameter to optimise.
  const at::Tensor& stored_values();
  std::shared_ptr<const kernels::Compressed> matrix();  ///< the structure
  /// stored_values() in the order of the forward side; made when it is asked for, from any thread. Where gradients
  /// are left behind, by an optimiser and no Sparsifier, each use compares all values with those of the copy: 0.3 to
  /// 0.4 ns an entry. The module's `zero_grad(true)` before inference ends that.
  at::Tensor forward_values();
  /// The same the second time that it is asked for since the values changed, or may have. The first time undefined,
  /// unless it is there, and what it was before is let go: in training, where each use is the first one, 4 bytes an
  /// entry less.
  at::Tensor forward_values_if_reused();

  /// Whether a layer is to hand over, in its backward pass, what its gradient can be formed from.
  bool wants_dense_gradient() const { return wants_gradient_; }
  void add_gradient_source(std::shared_ptr<const GradientSource> source);

  const char* storage() const override { return "compressed"; }
  std::int64_t nnz() const override;
  at::Tensor active() const override;
  at::Tensor weights() const override;
  std::pair<at::Tensor, at::Tensor> entries() const override;
  at::Tensor values() const override;
  std::optional<InitialDraw> initial_draw() const override;
  void keep(const at::Tensor& positions) override;
  /// Throws Error(usage) after `set_masks`. A gradient that is there is let go, as by all that changes the entries.
  void rewire(const Rewiring& change) override;
  void set_trainable(const at::Tensor& positions) override;
  at::Tensor trainable() const override;
  void set_masks(const at::Tensor& forward, const at::Tensor& backward) override;
  at::Tensor all_values() const override;

  at::Tensor parameter() override;
  void pull(double decay) override;
  void settle() override;
  void shrink(double factor) override;
  std::optional<OnePass> one_pass() override;
  void one_pass_done() override;
  at::Tensor change_alpha(double alpha) override;
  void reindex_state(at::Tensor& state, const TopologyChange& change) const override;

  void want_dense_gradient(bool wanted) override;
  at::Tensor top_gradients(std::int64_t k, const at::Tensor& except) const override;
  void add_dense_gradient(at::Tensor& sum) const override;
  void add_gradient(const at::Tensor& positions, const at::Tensor& values) override;
  void add_penalty(double inside, double outside) override;

  NamedTensors state() const override;
  NamedTensors archive() const override;
  void restore(const NamedTensors& tensors) override;

 private:
  bool is_virgin() const { return matrix_ == nullptr; }
  std::int64_t stored() const { return matrix_->nnz(); }  ///< entries, of M_f or not
  at::Tensor stored_positions() const;
  at::Tensor positions_of(const kernels::RowMajorList& list) const;
  at::Tensor draw(const at::Tensor& positions) const;
  /// The compressed form of these entries, and the canonical place of each.
  std::shared_ptr<kernels::Compressed> compress(const kernels::RowMajorList& entries,
                                                kernels::EntryIndices& place) const;
  /// Takes over a structure and phi in its canonical order. Replaces tensors, not their TensorImpl; all learn.
  void store(std::shared_ptr<kernels::Compressed> matrix, const at::Tensor& phi);
  /// Stores exactly these entries with phi in their order.
  void set_entries(kernels::RowMajorList entries, const at::Tensor& phi);
  void check_count(std::int64_t nnz) const;
  kernels::RowMajorList list_of(const Positions& positions) const;
  /// The entries after a rewiring, and for each the canonical place it had, or TopologyChange::kNewborn.
  kernels::RowMajorList rewired(const Positions& drop, const Positions& grow, kernels::EntryIndices& from) const;
  kernels::RowMajorList saved_entries(const NamedTensors& tensors, const at::Tensor& values) const;
  at::Tensor& gradient();  ///< of values_, contiguous; zeros where there is none yet
  void materialise();
  void push();
  /// What tells the values of now from others: their version and, where it may not tell, a fingerprint of them.
  using Seen = std::pair<std::int64_t, std::optional<std::uint64_t>>;
  Seen seen() const;
  void refresh(const Seen& now);  // forward_values_
  void forward_is_stale();        // the values have been written to, maybe unknown to their version
  void forget_forward();          // and what they were is not kept either
  void gradient_is_used();        // and for now by nobody else: the optimiser's step is over
  void thaw();
  void freeze();
  /// Whether phi is a tensor of its own.
  bool parted() const { return !phi_.is_same(values_); }
  /// Whether the optimiser updates that one.
  bool in_phi() const {
    return parted() && (reparametrisation_.is_identity() || reparametrisation_.update() == Update::gradient);
  }
  at::Tensor row_major(const at::Tensor& canonical) const;
  at::Tensor row_major_of_forward(const at::Tensor& forward) const;
  /// Row-major numbers of the entries whose canonical place the mask has.
  at::Tensor ranks(const BitMask& mask) const;
  /// The canonical places of these positions, all stored, as a mask.
  BitMask mask_of(const Positions& positions) const;
  template <class F>
  void each_entry(const F& f) const;    // f(position, canonical place), ascending
  std::int64_t rows_of_grain() const;   // that a thread takes at least
  ops::Csr csr(bool of_forward) const;  ///< of the entries in M_f, or of all
  void lay_down();                      ///< what is stored, among all values

  std::int64_t rows_, columns_;
  std::optional<kernels::ConvShape> conv_;
  Draw draw_;
  double largest_ = 0;                           // |w| that draw_ may give
  std::shared_ptr<kernels::Compressed> matrix_;  // null: virgin
  at::Tensor values_;                            // w, canonical order
  at::Tensor phi_;                               // the same tensor with the identity
  at::Tensor forward_values_;
  at::Tensor power_;                // |phi|^(alpha-1) left by the last push, where a power is costly
  at::Tensor frozen_;               // phi where M_b is 0
  BitMask forward_;                 // [stored] M_f: all of them, unless set_masks has said otherwise
  BitMask backward_;                // [stored] M_b
  at::Tensor laid_down_;            // [numel] phi, out of date where stored; undefined until set_masks
  std::optional<Seen> forward_of_;  // the values that forward_values_ has; none: they are out of date
  std::optional<Seen> used_;        // those for which forward_values_if_reused gave nothing
  // Whether a backward pass has been here since: an optimiser may then write to the values through `data()`, as
  // LibTorch's SGD does, which their version does not count. Only the values themselves say so.
  std::shared_ptr<std::atomic<bool>> has_gradient_ = std::make_shared<std::atomic<bool>>(false);
  std::mutex forward_mutex_;  // of forward_values_, forward_of_ and used_
  bool wants_gradient_ = false;
  std::vector<std::shared_ptr<const GradientSource>> gradient_sources_;
};

}  // namespace espalier
