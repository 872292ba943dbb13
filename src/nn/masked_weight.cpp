// Masked storage of a SparseWeight.
#include <torch/torch.h>

#include "espalier/core/bitmask.h"
#include "espalier/core/error.h"
#include "espalier/nn/sparse_weight.h"
#include "espalier/ops/power.h"
#include "nn/change_alpha.h"
#include "nn/positions.h"
#include "nn/running_top.h"

namespace espalier {
namespace {

/// f(T{}) with T the C++ type of `tensor`.
template <class F>
void with_type(const at::Tensor& tensor, const F& f) {
  if (tensor.scalar_type() == at::kFloat)
    f(float{});
  else
    f(double{});
}

constexpr const char* kSoftThreshold = ".soft_threshold";

class MaskedWeight : public SparseWeight {
 public:
  MaskedWeight(std::string name, at::Tensor w, const Reparametrisation& psi, std::int64_t layer)
      : SparseWeight(std::move(name), w.sizes().vec(), layer),
        w_(std::move(w)),
        forward_(numel(), true),
        backward_(numel(), true) {
    ESPALIER_CHECK(w_.device().is_cpu() && w_.is_contiguous() &&
                       (w_.scalar_type() == at::kFloat || w_.scalar_type() == at::kDouble),
                   ErrorKind::usage, "{}: masked storage takes contiguous float32 or float64 weights on the CPU",
                   this->name());
    reparametrisation_ = psi;
    const torch::NoGradGuard no_grad;
    if (psi.is_identity()) {
      phi_ = w_;
    } else {
      phi_ = psi.inverse(w_.detach()).contiguous().set_requires_grad(psi.update() == Update::gradient);
      push();
    }
  }

  const char* storage() const override { return "masked"; }

  std::int64_t nnz() const override { return forward_.count(); }
  at::Tensor active() const override { return to_tensor(forward_.positions()); }
  at::Tensor trainable() const override { return to_tensor(backward_.positions()); }
  at::Tensor weights() const override { return at_active(w_); }
  at::Tensor values() const override { return at_active(phi_); }

  void keep(const at::Tensor& positions) override {
    BitMask kept(numel());
    for (const auto i : Positions(positions, numel(), name(), "keep")) kept.set(i, true);
    std::vector<std::int64_t> drop;
    for (const auto i : forward_.positions())
      if (!kept.test(i)) drop.push_back(i);
    ESPALIER_CHECK(forward_.contains(kept), ErrorKind::usage, "{}: a position to keep is not active", name());
    rewire({to_tensor(drop), {}, {}, {}});
  }

  void rewire(const Rewiring& change) override {
    const torch::NoGradGuard no_grad;
    const Positions drop(change.drop, numel(), name(), "drop"), grow(change.grow, numel(), name(), "grow");
    at::Tensor births;
    if (change.birth_values.defined()) {
      births = change.birth_values.to(phi_.scalar_type()).contiguous();
      ESPALIER_CHECK(births.dim() == 1 && births.size(0) == grow.size(), ErrorKind::usage,
                     "{}: {} birth values for {} positions to grow", name(), births.numel(), grow.size());
    }
    // Everything is checked before anything is changed.
    for (const auto i : drop)
      ESPALIER_CHECK(forward_.test(i), ErrorKind::usage, "{}: position {} to drop is not active", name(), i);
    BitMask dropped(numel());
    for (const auto i : drop) dropped.set(i, true);
    for (const auto i : grow) {
      ESPALIER_CHECK(!forward_.test(i) || dropped.test(i), ErrorKind::usage,
                     "{}: position {} to grow is active already", name(), i);
    }
    for (const auto i : drop) {
      forward_.set(i, false);
      backward_.set(i, false);
    }
    for (const auto i : grow) {
      forward_.set(i, true);
      backward_.set(i, true);
    }
    with_type(phi_, [&](auto zero) {
      using T = decltype(zero);
      T* phi = phi_.data_ptr<T>();
      for (const auto i : drop) phi[i] = 0;
      const T* birth = births.defined() ? births.data_ptr<T>() : nullptr;
      for (std::int64_t k = 0; k < grow.size(); ++k) phi[grow[k]] = birth != nullptr ? birth[k] : T(0);
    });
    freeze();
    push();
    tell({change.drop, change.grow, change.threshold, {}});
  }

  void set_trainable(const at::Tensor& positions) override {
    const Positions list(positions, numel(), name(), "train");
    backward_ = BitMask(numel());
    for (const auto i : list) backward_.set(i, true);
    freeze();
  }

  void set_masks(const at::Tensor& forward, const at::Tensor& backward) override {
    const torch::NoGradGuard no_grad;
    ESPALIER_CHECK(reparametrisation_.update() == Update::gradient || reparametrisation_.is_identity(),
                   ErrorKind::usage,
                   "{}: with [reparam].update = \"target\" the optimiser steps in w, which is zero outside the forward "
                   "mask; use \"gradient\"",
                   name());
    const auto as_mask = [&](const at::Tensor& positions) {
      BitMask mask(numel());
      for (const auto i : Positions(positions, numel(), name(), "set")) mask.set(i, true);
      return mask;
    };
    const BitMask now = as_mask(forward), learns = as_mask(backward);
    if (phi_.is_same(w_)) phi_ = w_.detach().clone().set_requires_grad(true);  // w no longer holds all of phi
    hides_ = true;
    std::vector<std::int64_t> left, entered;
    for (const auto i : backward_.positions())
      if (!learns.test(i)) left.push_back(i);
    for (const auto i : learns.positions())
      if (!backward_.test(i)) entered.push_back(i);
    forward_ = now;
    backward_ = learns;
    freeze();
    push();
    tell({to_tensor(left), to_tensor(entered), std::nullopt, {}});
  }

  at::Tensor all_values() const override { return phi_.detach(); }

  void set_soft_threshold(double threshold) override {
    const torch::NoGradGuard no_grad;
    ESPALIER_CHECK(reparametrisation_.update() == Update::gradient || reparametrisation_.is_identity(),
                   ErrorKind::usage,
                   "{}: with [reparam].update = \"target\" the optimiser steps in w, which is zero under a threshold; "
                   "use \"gradient\"",
                   name());
    if (phi_.is_same(w_)) phi_ = w_.detach().clone().set_requires_grad(true);  // w no longer holds all of phi
    if (!soft_threshold_) backward_ = BitMask(numel(), true);
    soft_threshold_ = threshold;
    power_ = at::Tensor();
    push();
    forward_ = nonzero();
  }

  double soft_threshold_gradient() const override {
    const at::Tensor& gradient = w_.grad();
    if (!gradient.defined()) return 0;
    const at::Tensor g = gradient.contiguous();
    double sum = 0;
    with_type(w_, [&](auto zero) {
      using T = decltype(zero);
      const T *w = w_.data_ptr<T>(), *dw = g.data_ptr<T>();
      for (std::int64_t i = 0; i < numel(); ++i) {
        if (w[i] != T(0)) sum -= static_cast<double>(w[i] > T(0) ? dw[i] : -dw[i]);
      }
    });
    return sum;
  }

  at::Tensor parameter() override { return in_phi() ? phi_ : w_; }

  void pull(double decay) override {
    at::Tensor& gradient = w_.mutable_grad();
    if (!gradient.defined()) return;
    if (!gradient.is_contiguous()) gradient = gradient.contiguous();
    if (wants_gradient_) gradient_ = gradient.detach().clone();
    if (soft_threshold_) gradient.mul_(w_.detach().ne(0));
    if (in_phi()) {
      ops::power_pull(phi_, power_, backward_, reparametrisation_.alpha(), decay, gradient);
    } else if (decay != 0) {
      ops::power_pull(w_, {}, backward_, 1, decay, gradient);  // in the space of w: alpha = 1
    } else if (!backward_.all()) {
      ops::keep(gradient, backward_, {});
    }
    if (in_phi()) {
      phi_.mutable_grad() = gradient;
      gradient = at::Tensor();
    }
  }

  void settle() override {
    const torch::NoGradGuard no_grad;
    if (!reparametrisation_.is_identity() && reparametrisation_.update() == Update::target) {
      ops::power_target(phi_, forward_, backward_, reparametrisation_.alpha(), w_);
      return;
    }
    thaw();
    push();
  }

  /// Only where psi costs passes of its own: the plain network stays torch's to the bit.
  std::optional<OnePass> one_pass() override {
    if (soft_threshold_ || !in_phi() || !forward_.all() || !backward_.all() || !w_.grad().defined() || wants_gradient_)
      return std::nullopt;
    return OnePass{phi_, w_, w_.grad().contiguous(), power_};
  }
  void one_pass_done() override { w_.mutable_grad() = at::Tensor(); }

  void shrink(double factor) override {
    const torch::NoGradGuard no_grad;
    phi_.mul_(factor);
    thaw();
    push();
  }

  at::Tensor change_alpha(double alpha) override {
    const torch::NoGradGuard no_grad;
    at::Tensor factor = espalier::change_alpha(phi_, w_, alpha, reparametrisation_, name());
    freeze();
    keep_power();
    return in_phi() ? factor : at::Tensor();
  }

  void reindex_state(at::Tensor& state, const TopologyChange& change) const override {
    const torch::NoGradGuard no_grad;
    ESPALIER_ASSERT(state.numel() == numel());
    at::Tensor flat = state.view({-1});
    for (const at::Tensor& positions : {change.dropped, change.grown})
      if (positions.defined()) flat.index_fill_(0, positions, 0);
  }

  void want_dense_gradient(bool wanted) override {
    wants_gradient_ = wanted;
    gradient_ = at::Tensor();
  }

  at::Tensor top_gradients(std::int64_t k, const at::Tensor& except) const override {
    const at::Tensor& gradient = left_gradient();
    const Positions excepted(except, numel(), name(), "leave out");
    RunningTop top(k);
    std::int64_t next = 0;
    with_type(gradient, [&](auto zero) {
      add_magnitudes(gradient.data_ptr<decltype(zero)>(), 0, numel(), excepted.begin(), excepted.size(), next, top);
    });
    return to_tensor(enough(top.positions(), k, name()));
  }

  void add_dense_gradient(at::Tensor& sum) const override {
    const torch::NoGradGuard no_grad;
    sum.add_(left_gradient());
  }

  void add_gradient(const at::Tensor& positions, const at::Tensor& values) override {
    at::Tensor& sum = gradient();
    sum.view({-1}).index_add_(0, positions, values.to(sum.scalar_type()));
  }

  void add_penalty(double inside, double outside) override {
    const torch::NoGradGuard no_grad;
    gradient().add_(reparametrisation_.psi(phi_.detach()), outside).add_(w_.detach(), inside - outside);
  }

  NamedTensors state() const override {
    if (forward_.all()) return {};
    return {{name() + ".mask", mask_tensor(forward_)}};
  }

  NamedTensors archive() const override {
    NamedTensors tensors = {{name() + ".phi", phi_.detach()}};
    if (!forward_.all()) tensors.emplace_back(name() + ".mask", mask_tensor(forward_));
    if (!(backward_ == forward_)) tensors.emplace_back(name() + ".trainable", mask_tensor(backward_));
    if (soft_threshold_) tensors.emplace_back(name() + kSoftThreshold, torch::tensor(*soft_threshold_, torch::kDouble));
    return tensors;
  }

  void restore(const NamedTensors& tensors) override {
    const torch::NoGradGuard no_grad;
    const at::Tensor* phi = find(tensors, ".phi");
    ESPALIER_CHECK(phi != nullptr && phi->sizes() == w_.sizes() && phi->scalar_type() == w_.scalar_type(),
                   ErrorKind::data,
                   "{}.phi: missing from the saved state, or of another shape or type than the model's", name());
    const at::Tensor* mask = find(tensors, ".mask");
    const at::Tensor* trainable = find(tensors, ".trainable");
    BitMask forward = mask != nullptr ? mask_of(*mask) : BitMask(numel(), true);
    backward_ = trainable != nullptr ? mask_of(*trainable) : forward;
    forward_ = std::move(forward);
    phi_.copy_(*phi);
    const at::Tensor* threshold = find(tensors, kSoftThreshold);
    ESPALIER_CHECK(threshold != nullptr || !soft_threshold_, ErrorKind::data,
                   "{}{}: missing from the saved state; is it that of a run with another method?", name(),
                   kSoftThreshold);
    if (soft_threshold_) {
      soft_threshold_ = threshold->item<double>();
    } else if (threshold !=
               nullptr) {  // nobody learns a threshold any more: what the layer computed with is taken over
      const at::Tensor w = at::softshrink(reparametrisation_.psi(phi_.detach()), threshold->item<double>());
      phi_.copy_(reparametrisation_.inverse(w));
      backward_ = forward_;
    }
    if (!hides_ && !soft_threshold_ && !forward_.all()) {  // nobody here will look for phi outside M_f again
      const at::Tensor active = to_tensor(forward_.positions());
      at::Tensor kept = torch::zeros_like(phi_.detach());
      kept.view({-1}).index_copy_(0, active, phi_.detach().view({-1}).index_select(0, active));
      phi_.copy_(kept);
      for (const auto i : backward_.positions())
        if (!forward_.test(i)) backward_.set(i, false);
    }
    freeze();
    push();
  }

 private:
  at::Tensor at_active(const at::Tensor& dense) const {
    const at::Tensor flat = dense.detach().view({-1});
    return forward_.all() ? flat.clone() : flat.index_select(0, active());
  }

  /// Of w, contiguous; zeros where there is none yet.
  at::Tensor& gradient() {
    at::Tensor& gradient = w_.mutable_grad();
    if (!gradient.defined()) gradient = torch::zeros_like(w_.detach());
    if (!gradient.is_contiguous()) gradient = gradient.contiguous();
    return gradient;
  }

  const at::Tensor& left_gradient() const {
    ESPALIER_CHECK(gradient_.defined(), ErrorKind::usage, "{}: no backward pass has left a gradient", name());
    return gradient_;
  }

  /// Whether the optimiser updates phi, a tensor of its own.
  bool in_phi() const {
    return !phi_.is_same(w_) && (reparametrisation_.is_identity() || reparametrisation_.update() == Update::gradient);
  }

  /// w = psi(phi) . M_f; with the identity phi is w, and its entries outside M_f are zero or put back by settle().
  void push() {
    if (phi_.is_same(w_)) return;
    const torch::NoGradGuard no_grad;
    if (soft_threshold_) {
      at::softshrink_out(w_, reparametrisation_.psi(phi_.detach()), *soft_threshold_);
      return;
    }
    if (reparametrisation_.update() == Update::gradient && ops::power_is_costly(reparametrisation_.alpha()) &&
        !power_.defined()) {
      power_ = torch::empty_like(w_, torch::TensorOptions().requires_grad(false));
    }
    ops::power_push(phi_, forward_, reparametrisation_.alpha(), w_, power_);
  }

  /// |phi|^(alpha-1) as a push would leave it, for an alpha that w was not pushed with.
  void keep_power() {
    power_ = at::Tensor();
    if (reparametrisation_.update() != Update::gradient || !ops::power_is_costly(reparametrisation_.alpha())) return;
    power_ = torch::empty_like(w_, torch::TensorOptions().requires_grad(false));
    at::Tensor w = torch::empty_like(power_);
    ops::power_push(phi_, forward_, reparametrisation_.alpha(), w, power_);
  }

  /// Puts phi outside M_b back to what it was.
  void thaw() {
    if (!backward_.all()) ops::keep(phi_, backward_, frozen_);
  }

  /// Remembers phi outside M_b, unless it is all zero there.
  void freeze() {
    frozen_ = at::Tensor();
    if (backward_.all()) return;
    with_type(phi_, [&](auto zero) {
      using T = decltype(zero);
      const T* phi = phi_.data_ptr<T>();
      for (std::int64_t i = 0; i < numel(); ++i) {
        if (!backward_.test(i) && phi[i] != T(0)) {
          frozen_ = phi_.detach().clone();
          return;
        }
      }
    });
  }

  BitMask nonzero() const {
    BitMask mask(numel());
    with_type(w_, [&](auto zero) {
      using T = decltype(zero);
      const T* w = w_.data_ptr<T>();
      for (std::int64_t i = 0; i < numel(); ++i)
        if (w[i] != T(0)) mask.set(i, true);
    });
    return mask;
  }

  at::Tensor mask_tensor(const BitMask& mask) const {
    at::Tensor bytes = torch::zeros(shape(), torch::kUInt8);
    auto* out = bytes.data_ptr<std::uint8_t>();
    for (const auto i : mask.positions()) out[i] = 1;
    return bytes;
  }

  BitMask mask_of(const at::Tensor& bytes) const {
    ESPALIER_CHECK(bytes.sizes() == w_.sizes() && bytes.scalar_type() == at::kByte, ErrorKind::data,
                   "{}: a saved mask must be uint8 of the weight's shape", name());
    const at::Tensor flat = bytes.contiguous();
    BitMask mask(numel());
    for (std::int64_t i = 0; i < numel(); ++i) {
      if (flat.data_ptr<std::uint8_t>()[i] != 0) mask.set(i, true);
    }
    return mask;
  }

  const at::Tensor* find(const NamedTensors& tensors, const char* suffix) const {
    for (const auto& [key, tensor] : tensors) {
      if (key == name() + suffix) return &tensor;
    }
    return nullptr;
  }

  at::Tensor w_;        // the model's parameter
  bool hides_ = false;  // set_masks has been called: phi lives on outside M_f
  at::Tensor phi_;  // the same tensor where psi is the identity, unless set_masks or set_soft_threshold has parted them
  at::Tensor power_;   // |phi|^(alpha-1) left by the last push, where a power is costly
  at::Tensor frozen_;  // phi where M_b is 0; undefined = zeros
  BitMask forward_;    // M_f
  BitMask backward_;   // M_b
  std::optional<double> soft_threshold_;
  bool wants_gradient_ = false;
  at::Tensor gradient_;  // of w before it was masked, where it is wanted
};

}  // namespace

std::unique_ptr<SparseWeight> make_masked_weight(std::string name, at::Tensor w, const Reparametrisation& psi,
                                                 std::int64_t layer) {
  return std::make_unique<MaskedWeight>(std::move(name), std::move(w), psi, layer);
}

}  // namespace espalier
