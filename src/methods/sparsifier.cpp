#include "espalier/methods/sparsifier.h"

#include <algorithm>
#include <cmath>
#include <unordered_set>

#include "espalier/core/error.h"
#include "espalier/methods/fused_update.h"
#include "espalier/methods/wired.h"
#include "espalier/nn/compressed_layer.h"

namespace espalier {
namespace {

bool sparsifiable(const torch::nn::Module& module) {
  return module.as<torch::nn::Linear>() != nullptr || module.as<torch::nn::Conv2d>() != nullptr;
}

constexpr const char* kEverActive = ".ever_active";

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

bool matches_layer(const std::string& pattern, const std::string& layer) {
  return matches(pattern, layer) || matches(pattern, layer + ".weight");
}

bool matches_layer(const std::vector<std::string>& patterns, const std::string& layer) {
  return std::any_of(patterns.begin(), patterns.end(), [&](const auto& p) { return matches_layer(p, layer); });
}

Sparsifier::Sparsifier(torch::nn::Module& model, std::unique_ptr<Method> method, const Reparametrisation& psi,
                       const SparsifierOptions& options)
    : method_(std::move(method)), decay_(options.weight_decay()) {
  std::unordered_set<const void*> taken;
  std::vector<std::string> names;
  const auto take = [&](const torch::nn::Module& module, const std::string& name) {
    if (const auto* compressed = module.as<nn::CompressedLayer>()) {
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
  ESPALIER_CHECK(
      !weights_.empty(), ErrorKind::usage,
      "the model has no Linear, Conv2d, SparseLinear or SparseConv2d layer: there is nothing to make sparse");
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

  context_ = {{},
              {0, options.total_steps(), options.steps_per_epoch()},
              options.seed(),
              {options.sparsity(), options.distribution(), options.dense_layers()}};
  context_.structure = options.structure();
  for (std::size_t l = 0; l < weights_.size(); ++l) {
    if (dense[l])
      context_.dense_weights.push_back(weights_[l].get());
    else
      context_.weights.push_back(weights_[l].get());
  }
  ESPALIER_CHECK(!context_.weights.empty() || options.sparsity() == 0, ErrorKind::usage,
                 "[sparsity].dense_layers leaves no layer to make sparse");
  for (const SparseWeight* w : context_.weights) {
    ESPALIER_CHECK(method_->takes_compressed() || w->storage() == std::string("masked"), ErrorKind::usage,
                   "{}: the method moves something at every position of a weight in each step, which compressed "
                   "storage is there to avoid; set model.storage = \"masked\"",
                   w->name());
  }
  ESPALIER_CHECK(
      options.structure().empty() || method_->sparse_from_start(), ErrorKind::usage,
      "a structure to start from is given, but the method starts dense; use static-random, or one that drops "
      "and grows");
  ever_active_.resize(context_.weights.size());
  context_.probe = options.probe().get();
  if (!options.restored() || !method_->is_static()) {
    method_->check(context_);
    follow_changes(nullptr, [&] { method_->prepare(context_); });
    if (options.probe() && method_->is_static()) refuse_if_cut(context_);
  }
  context_.probe = nullptr;
  context_.structure.clear();
  announce_next_step();
  everything_ = model.parameters();
  if (options.adaptive_alpha()) {
    adaptive_.emplace(*options.adaptive_alpha(), psi.alpha(), weights_);
    adaptive_->due(context_.clock);  // throws where the clock lacks what the interval needs
    alpha_trace_ = adaptive_->start(weights_);
  }
  for (const auto& w : weights_) everything_.push_back(w->parameter());  // a method may have parted it from the model's
  for (const auto& learnt : method_->parameters()) {
    others_.push_back(learnt);
    everything_.push_back(learnt.second);
  }
}

Clock Sparsifier::next_step() const {
  Clock next = context_.clock;
  ++next.step;
  return next;
}

void Sparsifier::announce_next_step() {
  const bool wanted = method_->wants_dense_gradient(next_step());
  for (SparseWeight* w : context_.weights) w->want_dense_gradient(wanted);
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
  adapt_alpha(optimizer);
  context_.learning_rate = learning_rate(optimizer);
  if (method_->replaces_update(next_step())) {
    for (auto& w : weights_) w->pull(0);  // leaves the dense gradient
  } else {
    method_->before_update(context_);
    update(optimizer);
  }
  ++context_.clock.step;
  follow_changes(&optimizer, [&] { method_->after_step(context_); });
  announce_next_step();
  for (auto& p : everything_) p.mutable_grad() = at::Tensor();
}

void Sparsifier::update(torch::optim::Optimizer& optimizer) {
  const bool in_gradient = decay_.rate != 0 && !decay_.decoupled && decay_.space == DecaySpace::w;
  std::vector<SparseWeight*> rest;  // whose update is torch's
  for (auto& w : weights_) {
    if (!fused_update(optimizer, *w, in_gradient ? decay_.rate : 0)) rest.push_back(w.get());
  }
  if (rest.empty()) {  // else all of it is torch's: a plain network stays so to the bit
    for (const auto& other : others_) fused_update(optimizer, other.second);
  }
  for (SparseWeight* w : rest) w->pull(in_gradient ? decay_.rate : 0);
  optimizer.step();
  for (SparseWeight* w : rest) w->settle();
  if (decay_.rate != 0 && !in_gradient) {
    // In phi: directly. In w, where the optimiser holds phi: psi(c phi) = (1 - lr rate) psi(phi) for c = (1 - lr
    // rate)^(1/alpha).
    const double keep = 1 - learning_rate(optimizer) * decay_.rate;
    for (auto& w : weights_) {
      const double alpha = decay_.space == DecaySpace::w ? w->reparametrisation().alpha() : 1;
      w->shrink(std::pow(keep, 1 / alpha));
    }
  }
}

void Sparsifier::observe_loss(double loss) {
  if (adaptive_) adaptive_->observe_loss(loss);
}

void Sparsifier::adapt_alpha(torch::optim::Optimizer& optimizer) {
  if (!adaptive_ || !adaptive_->due(context_.clock)) return;
  alpha_trace_ = adaptive_->check(context_.clock, weights_);
  for (std::size_t l = 0; l < weights_.size(); ++l) {
    SparseWeight& w = *weights_[l];
    if (w.reparametrisation().alpha() == adaptive_->alpha(l)) continue;  // at a bound
    const at::Tensor factor = w.change_alpha(adaptive_->alpha(l));
    if (factor.defined()) scale_state(optimizer, w.parameter(), factor);
  }
}

void Sparsifier::follow_changes(torch::optim::Optimizer* optimizer, const std::function<void()>& act) {
  const auto& weights = context_.weights;
  std::vector<LayerTopology> record;
  for (const SparseWeight* w : weights)
    record.push_back({w->name(), 0, 0, 0, std::nullopt, std::nullopt, w->numel(), 0, 0});
  bool any = false;
  struct Unfollow {
    const std::vector<SparseWeight*>& weights;
    ~Unfollow() {
      for (SparseWeight* w : weights) w->follow({});
    }
  } unfollow{weights};
  for (std::size_t l = 0; l < weights.size(); ++l) {
    weights[l]->follow([&, l](const TopologyChange& change) {
      any = true;
      record[l].dropped += change.dropped.defined() ? change.dropped.numel() : 0;
      record[l].grown += change.grown.defined() ? change.grown.numel() : 0;
      record[l].threshold = change.threshold;
      if (optimizer == nullptr || change.for_the_record) return;
      for_each_state(*optimizer, weights[l]->parameter(),
                     [&](const std::string&, at::Tensor& state) { weights[l]->reindex_state(state, change); });
    });
  }
  act();
  topology_.clear();
  if (!any) return;
  for (std::size_t l = 0; l < weights.size(); ++l) {
    record[l].nnz = weights[l]->nnz();
    if (optimizer == nullptr) {  // the first masks: what they leave out was never there
      record[l].dropped = weights[l]->numel() - record[l].nnz;
      record[l].grown = 0;
    }
    account(*weights[l], ever_active_[l], record[l]);
  }
  topology_ = std::move(record);
}

void Sparsifier::account(const SparseWeight& weight, std::optional<EverActive>& ever, LayerTopology& record) const {
  const std::int64_t outputs = weight.shape()[0], inputs = weight.shape()[1];
  const std::int64_t columns = weight.numel() / outputs, kernel = columns / inputs;
  const bool was_dense = record.nnz + record.dropped - record.grown == weight.numel();
  std::vector<bool> reached(static_cast<std::size_t>(outputs)), left(static_cast<std::size_t>(inputs));
  const at::Tensor active = weight.active();
  const auto* position = active.data_ptr<std::int64_t>();
  if (ever) {
    ever->add(position, active.numel());
  } else if (context_.clock.step > 0 && was_dense) {
    ever = EverActive::all(weight.numel());
  } else if (context_.clock.step == 0 && EverActive::counts(weight.numel(), weight.nnz())) {
    ever.emplace(weight.numel(), position, active.numel());
  }
  if (ever) record.ever_active = ever->count();
  for (std::int64_t i = 0; i < active.numel(); ++i) {
    reached[static_cast<std::size_t>(position[i] / columns)] = true;
    left[static_cast<std::size_t>(position[i] % columns / kernel)] = true;
  }
  record.dead_outputs = std::count(reached.begin(), reached.end(), false);
  record.dead_inputs = std::count(left.begin(), left.end(), false);
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

std::optional<AlphaTrace> Sparsifier::take_alpha_trace() { return std::exchange(alpha_trace_, std::nullopt); }

NamedTensors Sparsifier::archive() const {
  NamedTensors all = {{"sparsifier.step", torch::tensor(context_.clock.step, torch::kInt64)}};
  for (const auto& w : weights_)
    for (auto& entry : w->archive()) all.push_back(std::move(entry));
  for (auto& entry : method_->archive()) all.push_back(std::move(entry));
  if (adaptive_)
    for (auto& entry : adaptive_->archive()) all.push_back(std::move(entry));
  for (std::size_t l = 0; l < ever_active_.size(); ++l) {
    if (ever_active_[l]) ever_active_[l]->archive(context_.weights[l]->name() + kEverActive, all);
  }
  return all;
}

void Sparsifier::restore(const NamedTensors& tensors) {
  const auto step =
      std::find_if(tensors.begin(), tensors.end(), [](const auto& t) { return t.first == "sparsifier.step"; });
  ESPALIER_CHECK(step != tensors.end() && step->second.numel() == 1, ErrorKind::data,
                 "the saved state has no \"sparsifier.step\"");
  if (adaptive_) {  // first: it says what the saved phi mean
    adaptive_->restore(tensors);
    for (std::size_t l = 0; l < weights_.size(); ++l) weights_[l]->change_alpha(adaptive_->alpha(l));
  }
  for (auto& w : weights_) w->restore(tensors);
  method_->restore(tensors);
  for (std::size_t l = 0; l < ever_active_.size(); ++l) {
    const SparseWeight& w = *context_.weights[l];
    ever_active_[l] = EverActive::restored(w.name() + kEverActive, w.numel(), tensors);
  }
  context_.clock.step = step->second.item<std::int64_t>();
  topology_.clear();
  alpha_trace_.reset();
  announce_next_step();
}

}  // namespace espalier
