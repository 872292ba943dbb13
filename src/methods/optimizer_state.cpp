#include "espalier/methods/optimizer_state.h"

#include <map>
#include <memory>
#include <type_traits>

#include "espalier/core/error.h"

namespace espalier {
namespace {

using torch::optim::Optimizer;
using torch::optim::OptimizerParamState;

/// Lists the members of one kind of state: tensor(name, k, member reference), count(name, int64 reference); k: the
/// tensor is made of k-th powers of gradients.
template <class V>
void members(torch::optim::SGDParamState& s, V& v) {
  v.tensor("momentum_buffer", 1, [&]() -> at::Tensor& { return s.momentum_buffer(); });
}
template <class Adam, class V>
void adam_members(Adam& s, V& v) {
  v.tensor("exp_avg", 1, [&]() -> at::Tensor& { return s.exp_avg(); });
  v.tensor("exp_avg_sq", 2, [&]() -> at::Tensor& { return s.exp_avg_sq(); });
  v.tensor("max_exp_avg_sq", 2, [&]() -> at::Tensor& { return s.max_exp_avg_sq(); });
  v.count("step", s.step(), [&](std::int64_t n) { s.step(n); });
}
template <class V>
void members(torch::optim::AdamParamState& s, V& v) {
  adam_members(s, v);
}
template <class V>
void members(torch::optim::AdamWParamState& s, V& v) {
  adam_members(s, v);
}
template <class V>
void members(torch::optim::RMSpropParamState& s, V& v) {
  v.tensor("square_avg", 2, [&]() -> at::Tensor& { return s.square_avg(); });
  v.tensor("momentum_buffer", 0, [&]() -> at::Tensor& { return s.momentum_buffer(); });
  v.tensor("grad_avg", 1, [&]() -> at::Tensor& { return s.grad_avg(); });
  v.count("step", s.step(), [&](std::int64_t n) { s.step(n); });
}
template <class V>
void members(torch::optim::AdagradParamState& s, V& v) {
  v.tensor("sum", 2, [&]() -> at::Tensor& { return s.sum(); });
  v.count("step", s.step(), [&](std::int64_t n) { s.step(n); });
}

template <class V>
void dispatch(OptimizerParamState& state, V& v) {
  using namespace torch::optim;
  if (auto* sgd = dynamic_cast<SGDParamState*>(&state)) return members(*sgd, v);
  if (auto* adam = dynamic_cast<AdamParamState*>(&state)) return members(*adam, v);
  if (auto* adamw = dynamic_cast<AdamWParamState*>(&state)) return members(*adamw, v);
  if (auto* rmsprop = dynamic_cast<RMSpropParamState*>(&state)) return members(*rmsprop, v);
  if (auto* adagrad = dynamic_cast<AdagradParamState*>(&state)) return members(*adagrad, v);
  fail(ErrorKind::usage,
       "the optimiser keeps a kind of state that is not known here, so it cannot follow a change of topology or be "
       "saved; "
       "known are SGD, Adam, AdamW, RMSprop and Adagrad");
}

std::unique_ptr<OptimizerParamState> new_state(Optimizer& optimizer) {
  using namespace torch::optim;
  if (dynamic_cast<SGD*>(&optimizer)) return std::make_unique<SGDParamState>();
  if (dynamic_cast<Adam*>(&optimizer)) return std::make_unique<AdamParamState>();
  if (dynamic_cast<AdamW*>(&optimizer)) return std::make_unique<AdamWParamState>();
  if (dynamic_cast<RMSprop*>(&optimizer)) return std::make_unique<RMSpropParamState>();
  if (dynamic_cast<Adagrad*>(&optimizer)) return std::make_unique<AdagradParamState>();
  fail(ErrorKind::usage,
       "the state of this kind of optimiser cannot be restored; known are SGD, Adam, AdamW, RMSprop and Adagrad");
}

OptimizerParamState* find_state(Optimizer& optimizer, const at::Tensor& parameter) {
  auto& all = optimizer.state();
  const auto at = all.find(state_key(all, parameter));
  return at == all.end() ? nullptr : at->second.get();
}

struct Visitor {
  const std::function<void(const std::string&, at::Tensor&)>& visit;
  template <class Get>
  void tensor(const char* name, int, const Get& get) {
    if (at::Tensor& t = get(); t.defined()) visit(name, t);
  }
  template <class Set>
  void count(const char*, std::int64_t, const Set&) {}
};

struct Scaler {
  const at::Tensor& factor;
  template <class Get>
  void tensor(const char*, int power, const Get& get) {
    at::Tensor& t = get();
    for (int k = 0; t.defined() && k < power; ++k) t.mul_(factor);
  }
  template <class Set>
  void count(const char*, std::int64_t, const Set&) {}
};

struct Saver {
  const std::string& prefix;
  NamedTensors& out;
  template <class Get>
  void tensor(const char* name, int, const Get& get) {
    if (at::Tensor& t = get(); t.defined()) out.emplace_back(prefix + "." + name, t);
  }
  template <class Set>
  void count(const char* name, std::int64_t n, const Set&) {
    out.emplace_back(prefix + "." + name, torch::tensor(n, torch::kInt64));
  }
};

struct Loader {
  const std::string& prefix;
  const std::map<std::string, at::Tensor>& saved;
  const at::Tensor& parameter;
  template <class Get>
  void tensor(const char* name, int, const Get& get) {
    const auto at = saved.find(prefix + "." + name);
    if (at == saved.end()) return;
    ESPALIER_CHECK(at->second.sizes() == parameter.sizes() && at->second.scalar_type() == parameter.scalar_type(),
                   ErrorKind::data, "{}: saved optimiser state has another shape or type than the parameter",
                   at->first);
    get() = at->second.clone();
  }
  template <class Set>
  void count(const char* name, std::int64_t, const Set& set) {
    const auto at = saved.find(prefix + "." + name);
    if (at == saved.end()) return;
    ESPALIER_CHECK(at->second.numel() == 1 && at->second.scalar_type() == torch::kInt64, ErrorKind::data,
                   "{}: a saved step count must be one int64", at->first);
    set(at->second.item<std::int64_t>());
  }
};

}  // namespace

void for_each_state(Optimizer& optimizer, const at::Tensor& parameter,
                    const std::function<void(const std::string&, at::Tensor&)>& visit) {
  OptimizerParamState* state = find_state(optimizer, parameter);
  if (state == nullptr) return;
  Visitor v{visit};
  dispatch(*state, v);
}

void scale_state(Optimizer& optimizer, const at::Tensor& parameter, const at::Tensor& factor) {
  const torch::NoGradGuard no_grad;
  OptimizerParamState* state = find_state(optimizer, parameter);
  if (state == nullptr) return;
  Scaler v{factor};
  dispatch(*state, v);
}

NamedTensors save_optimizer(Optimizer& optimizer, const NamedParameters& parameters) {
  NamedTensors out;
  for (const auto& [name, parameter] : parameters) {
    OptimizerParamState* state = find_state(optimizer, parameter);
    if (state == nullptr) continue;
    Saver v{name, out};
    dispatch(*state, v);
  }
  return out;
}

void load_optimizer(Optimizer& optimizer, const NamedParameters& parameters, const NamedTensors& saved) {
  const std::map<std::string, at::Tensor> by_name(saved.begin(), saved.end());
  for (const auto& [name, parameter] : parameters) {
    const auto first = by_name.lower_bound(name + ".");
    if (first == by_name.end() || first->first.compare(0, name.size() + 1, name + ".") != 0) continue;
    auto state = new_state(optimizer);
    Loader v{name, by_name, parameter};
    dispatch(*state, v);
    auto& all = optimizer.state();
    all[state_key(all, parameter)] = std::move(state);
  }
}

}  // namespace espalier
