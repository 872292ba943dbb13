#include "espalier/methods/sparsifier.h"

#include <algorithm>
#include <cmath>
#include <unordered_set>

#include "espalier/core/error.h"
#include "espalier/methods/fused_update.h"
#include "espalier/nn/sparse_linear.h"

namespace espalier {
namespace {

bool sparsifiable(const torch::nn::Module& module) {
  return module.as<torch::nn::Linear>() != nullptr || module.as<torch::nn::Conv2d>() != nullptr;
}

double learning_rate(torch::optim::Optimizer& optimizer) { return optimizer.param_groups().at(0).options().get_lr(); }

}  // namespace

bool matches(const std::string& pattern, const std::string& name) {
  // Two pointers with one point to return to: the last star, which takes one character more each time.
  std::size_t p = 0, n = 0, star = std::string::npos, after_star = 0;
  while (n < name.size()) {
    if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == name[n]) && pattern[p] != '*') {
      ++p;
      ++n;
    } else if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      after_star = n;
    } else if (star != std::string::npos) {
      p = star + 1;
      n = ++after_star;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

Sparsifier::Sparsifier(torch::nn::Module& model, std::unique_ptr<Method> method, const Reparametrisation& psi,
                       const SparsifierOptions& options)
    : method_(std::move(method)), decay_(options.weight_decay()) {
  std::unordered_set<const void*> taken;
  std::vector<std::string> names;
  const auto take = [&](const torch::nn::Module& module, const std::string& name) {
    if (const auto* compressed = module.as<nn::SparseLinear>()) {
      const auto& weight = compressed->weight();
      if (!taken.insert(weight->values_impl()).second) return;
      weight->adopt(name, static_cast<std::int64_t>(weights_.size()), psi);
      names.push_back(name);
      weights_.push_back(weight);
      return;
    }
    if (!sparsifiable(module)) return;
    at::Tensor w = module.named_parameters(/*recurse=*/false)["weight"];
    if (!taken.insert(w.unsafeGetTensorImpl()).second) return;  // shared by two layers
    names.push_back(name);
    weights_.push_back(make_masked_weight(name, w, psi, static_cast<std::int64_t>(weights_.size())));
  };
  take(model, "weight");
  // Without the model itself: named_modules wants it in a shared_ptr then, and a model may well live on the stack.
  for (const auto& item : model.named_modules("", /*include_self=*/false)) take(*item.value(), item.key() + ".weight");
  ESPALIER_CHECK(!weights_.empty(), ErrorKind::usage,
                 "the model has no Linear, Conv2d or SparseLinear layer: there is nothing to make sparse");
  for (const auto& item : model.named_parameters()) {
    if (taken.count(item.value().unsafeGetTensorImpl()) == 0) others_.emplace_back(item.key(), item.value());
  }

  std::vector<bool> dense(weights_.size(), false);
  for (const std::string& pattern : options.dense_layers()) {
    bool used = false;
    for (std::size_t l = 0; l < names.size(); ++l) {
      if (!matches(pattern, names[l]) && !matches(pattern + ".weight", names[l])) continue;
      dense[l] = used = true;
    }
    std::string list;
    for (const auto& n : names) list += (list.empty() ? "" : ", ") + n;
    ESPALIER_CHECK(used, ErrorKind::usage, "[sparsity].dense_layers: \"{}\" matches no weight. Weights: {}.{}", pattern,
                   list, suggestion(pattern, names));
  }

  everything_ = model.parameters();
  for (const auto& w : weights_) everything_.push_back(w->parameter());

  context_ = {{},
              {0, options.total_steps(), options.steps_per_epoch()},
              options.seed(),
              {options.sparsity(), options.distribution(), options.dense_layers()}};
  for (std::size_t l = 0; l < weights_.size(); ++l) {
    if (!dense[l]) context_.weights.push_back(weights_[l].get());
  }
  ESPALIER_CHECK(!context_.weights.empty() || options.sparsity() == 0, ErrorKind::usage,
                 "[sparsity].dense_layers leaves no layer to make sparse");
  method_->check(context_);
  method_->prepare(context_);
  change_topology(nullptr);
}

std::vector<at::Tensor> Sparsifier::weight_parameters() const {
  std::vector<at::Tensor> list;
  for (const auto& w : weights_) list.push_back(w->parameter());
  return list;
}

std::vector<at::Tensor> Sparsifier::other_parameters() const {
  std::vector<at::Tensor> list;
  for (const auto& [name, p] : others_) list.push_back(p);
  return list;
}

std::vector<at::Tensor> Sparsifier::parameters() const {
  std::vector<at::Tensor> list = weight_parameters();
  for (const auto& p : other_parameters()) list.push_back(p);
  return list;
}

NamedParameters Sparsifier::named_parameters() const {
  NamedParameters list;
  for (const auto& w : weights_) list.emplace_back(w->name(), w->parameter());
  list.insert(list.end(), others_.begin(), others_.end());
  return list;
}

void Sparsifier::step(torch::optim::Optimizer& optimizer) {
  if (!optimizer_checked_) {
    std::unordered_set<const void*> held;
    for (const auto& group : optimizer.param_groups())
      for (const auto& p : group.params()) held.insert(p.unsafeGetTensorImpl());
    for (const auto& w : weights_) {
      ESPALIER_CHECK(held.count(w->parameter().unsafeGetTensorImpl()) != 0, ErrorKind::usage,
                     "the optimiser does not hold {}: build it over sparsifier.parameters(), not over the model's",
                     w->name());
    }
    optimizer_checked_ = true;
  }

  // One step, the only place where its order stands.
  const bool in_gradient = decay_.rate != 0 && !decay_.decoupled && decay_.space == DecaySpace::w;
  std::vector<SparseWeight*> rest;  // whose update is torch's
  for (auto& w : weights_) {
    if (!fused_update(optimizer, *w, in_gradient ? decay_.rate : 0)) rest.push_back(w.get());
  }
  for (SparseWeight* w : rest) w->pull(in_gradient ? decay_.rate : 0);
  optimizer.step();
  for (SparseWeight* w : rest) w->settle();
  if (decay_.rate != 0 && !in_gradient) {
    // In phi: directly. In w, where the optimiser holds phi: psi(c phi) = (1 - lr rate) psi(phi) for c = (1 - lr
    // rate)^(1/alpha).
    const double keep = 1 - learning_rate(optimizer) * decay_.rate;
    const double alpha = decay_.space == DecaySpace::w ? weights_[0]->reparametrisation().alpha() : 1;
    for (auto& w : weights_) w->shrink(std::pow(keep, 1 / alpha));
  }
  ++context_.clock.step;
  method_->after_step(context_);
  change_topology(&optimizer);
  for (auto& p : everything_) p.mutable_grad() = at::Tensor();
}

void Sparsifier::change_topology(torch::optim::Optimizer* optimizer) {
  topology_.clear();
  bool any = false;
  for (SparseWeight* w : context_.weights) {
    const auto change = w->take_change();
    topology_.push_back({w->name(), w->nnz(), change ? change->dropped.numel() : 0, change ? change->grown.numel() : 0,
                         change ? change->threshold : std::nullopt});
    if (!change) continue;
    any = true;
    if (optimizer == nullptr) {  // the first masks: what they leave out was never there
      topology_.back().dropped = w->numel() - w->nnz();
      continue;
    }
    for_each_state(*optimizer, w->parameter(),
                   [&](const std::string&, at::Tensor& state) { w->reindex_state(state, *change); });
  }
  if (!any) topology_.clear();
}

std::int64_t Sparsifier::nnz() const {
  std::int64_t sum = 0;
  for (const SparseWeight* w : context_.weights) sum += w->nnz();
  return sum;
}

std::int64_t Sparsifier::positions() const {
  std::int64_t sum = 0;
  for (const SparseWeight* w : context_.weights) sum += w->numel();
  return sum;
}

double Sparsifier::sparsity() const {
  return positions() == 0 ? 0 : 1 - static_cast<double>(nnz()) / static_cast<double>(positions());
}

std::vector<LayerTopology> Sparsifier::take_topology() { return std::exchange(topology_, {}); }

NamedTensors Sparsifier::archive() const {
  NamedTensors all = {{"sparsifier.step", torch::tensor(context_.clock.step, torch::kInt64)}};
  for (const auto& w : weights_)
    for (auto& entry : w->archive()) all.push_back(std::move(entry));
  for (auto& entry : method_->archive()) all.push_back(std::move(entry));
  return all;
}

void Sparsifier::restore(const NamedTensors& tensors) {
  const auto step =
      std::find_if(tensors.begin(), tensors.end(), [](const auto& t) { return t.first == "sparsifier.step"; });
  ESPALIER_CHECK(step != tensors.end() && step->second.numel() == 1, ErrorKind::data,
                 "the saved state has no \"sparsifier.step\"");
  for (auto& w : weights_) w->restore(tensors);
  method_->restore(tensors);
  context_.clock.step = step->second.item<std::int64_t>();
  topology_.clear();
}

}  // namespace espalier
