#include "espalier/continual/pack.h"

#include <torch/torch.h>

#include <algorithm>
#include <set>

#include "espalier/core/error.h"
#include "espalier/methods/sparsifier.h"
#include "espalier/nn/models.h"
#include "espalier/ops/power.h"

namespace espalier::continual {
namespace {

std::string weight_of(const std::string& layer) { return layer + ".weight"; }

/// Float32, and contiguous as the kernels want it.
at::Tensor copy_of(const at::Tensor& tensor) { return tensor.detach().clone(at::MemoryFormat::Contiguous); }

/// Is a weight layer's weight shared out among the tasks?
bool is_packed(const train::RunConfig& config, bool own_heads, const std::string& head, const std::string& layer) {
  const Sharing sharing = sharing_of(config.continual.method);
  if (sharing == Sharing::separate || (own_heads && layer == head)) return false;
  return sharing == Sharing::whole || !matches_layer(config.sparsity.dense_layers, layer);
}

void copy_into(at::Tensor to, const at::Tensor& from, const std::string& name) {
  ESPALIER_CHECK(from.sizes() == to.sizes(), ErrorKind::data, "packed network: \"{}\" is [{}]; the model needs [{}]",
                 name, fmt::join(from.sizes(), ", "), fmt::join(to.sizes(), ", "));
  to.copy_(from);
}

const at::Tensor* find(const train::NamedTensors& tensors, const std::string& name) {
  for (const auto& [key, tensor] : tensors)
    if (key == name) return &tensor;
  return nullptr;
}

const PackedTask& task_at(const Pack& pack, std::int64_t number) {
  const auto count = static_cast<std::int64_t>(pack.tasks.size());
  ESPALIER_CHECK(number >= 1 && number <= count, ErrorKind::usage, "there is no task {}: the packed network has {}",
                 number,
                 count == 0   ? std::string("none yet")
                 : count == 1 ? std::string("task 1 alone")
                              : fmt::format("tasks 1 to {}", count));
  return pack.tasks[static_cast<std::size_t>(number - 1)];
}

}  // namespace

train::NamedTensors tensors_of(const nn::Network& network) {
  auto list = nn::plain_parameters(network);
  for (const auto& item : network.named_buffers()) list.emplace_back(item.key(), item.value());
  return list;
}

Sharing sharing_of(const std::string& method) {
  if (method == "packnet" || method == "efficient-packnet") return Sharing::masked;
  return method == "separate" ? Sharing::separate : Sharing::whole;
}

Reparametrisation Pack::reparametrisation() const {
  if (config.reparam.name == "identity") return {};
  return Reparametrisation(config.reparam.alpha, config.reparam.update == "target" ? Update::target : Update::gradient);
}

std::shared_ptr<nn::Network> fresh_network(const Pack& pack, std::int64_t classes) {
  auto network =
      nn::make_model(pack.config.model, pack.input, classes, static_cast<std::uint64_t>(pack.config.run.seed),
                     [](const std::string&) { return false; });
  network->eval();
  return network;
}

Pack new_pack(const train::RunConfig& config, const nn::InputShape& input, bool own_heads, std::int64_t classes) {
  Pack pack;
  pack.config = config;
  pack.input = input;
  pack.own_heads = own_heads;
  const auto network = fresh_network(pack, classes);
  std::vector<std::string> layers;
  for (const nn::LayerCost& cost : nn::layer_costs(*network)) layers.push_back(cost.name);
  ESPALIER_CHECK(!layers.empty(), ErrorKind::usage, "the model has no weight layer for tasks to share");
  pack.head = layers.back();

  std::int64_t layer = 0;
  std::set<std::string> weights;
  const Reparametrisation psi = pack.reparametrisation();
  for (const auto& item : network->named_modules("", /*include_self=*/false)) {
    const auto& module = *item.value();
    if (module.as<torch::nn::Linear>() == nullptr && module.as<torch::nn::Conv2d>() == nullptr) continue;
    const at::Tensor w = module.named_parameters(/*recurse=*/false)["weight"].detach();
    if (is_packed(config, own_heads, pack.head, item.key())) {
      pack.weights.push_back({weight_of(item.key()), w.sizes().vec(), layer, copy_of(psi.inverse(w))});
      weights.insert(weight_of(item.key()));
    }
    ++layer;
  }
  ESPALIER_CHECK(!pack.weights.empty() || pack.sharing() == Sharing::separate, ErrorKind::usage,
                 "[sparsity].dense_layers and [continual].head leave no weight for the tasks to share");
  if (pack.sharing() == Sharing::whole) {
    for (const auto& [name, tensor] : tensors_of(*network)) {
      if (weights.count(name) == 0 && !is_own(pack, name)) pack.shared.emplace_back(name, copy_of(tensor));
    }
  }
  return pack;
}

bool is_own(const Pack& pack, const std::string& name) {
  if (pack.own_heads && name.rfind(pack.head + ".", 0) == 0) return true;
  if (pack.sharing() == Sharing::whole) return false;
  return std::none_of(pack.weights.begin(), pack.weights.end(), [&](const auto& w) { return w.name == name; });
}

at::Tensor effective(const PackedWeight& weight, const BitMask* mask, const Reparametrisation& psi) {
  at::Tensor w = torch::empty_like(weight.phi), power;
  ops::power_push(weight.phi, mask != nullptr ? *mask : BitMask(weight.phi.numel(), true), psi.alpha(), w, power);
  return w;
}

std::shared_ptr<nn::Network> task_network(const Pack& pack, std::int64_t number) {
  const PackedTask& task = task_at(pack, number);
  const torch::NoGradGuard no_grad;
  auto network = fresh_network(pack, task.classes);
  const Reparametrisation psi = pack.reparametrisation();
  for (auto& [name, tensor] : tensors_of(*network)) {
    if (const at::Tensor* own = find(task.own, name)) {
      copy_into(tensor, *own, name);
      continue;
    }
    const auto weight =
        std::find_if(pack.weights.begin(), pack.weights.end(), [&n = name](const auto& w) { return w.name == n; });
    if (weight != pack.weights.end()) {
      const auto w = static_cast<std::size_t>(weight - pack.weights.begin());
      copy_into(tensor, effective(*weight, task.masks.empty() ? nullptr : &task.masks[w], psi), name);
      continue;
    }
    const at::Tensor* shared = find(pack.shared, name);
    ESPALIER_CHECK(shared != nullptr, ErrorKind::data, "packed network: task {} has no \"{}\", which the model needs",
                   number, name);
    copy_into(tensor, *shared, name);
  }
  return network;
}

std::shared_ptr<nn::Network> next_network(const Pack& pack, std::int64_t classes) {
  const torch::NoGradGuard no_grad;
  auto network = fresh_network(pack, classes);
  const Reparametrisation psi = pack.reparametrisation();
  for (auto& [name, tensor] : tensors_of(*network)) {
    for (const PackedWeight& weight : pack.weights)
      if (weight.name == name) copy_into(tensor, effective(weight, nullptr, psi), name);
    if (const at::Tensor* shared = find(pack.shared, name)) copy_into(tensor, *shared, name);
  }
  return network;
}

std::uint32_t task_digest(const Pack& pack, std::int64_t number) {
  const PackedTask& task = task_at(pack, number);
  std::map<std::string, at::Tensor> tensors(pack.shared.begin(), pack.shared.end());
  for (const auto& [name, own] : task.own) tensors[name] = own;
  for (std::size_t w = 0; w < pack.weights.size(); ++w) {
    tensors[pack.weights[w].name] =
        effective(pack.weights[w], task.masks.empty() ? nullptr : &task.masks[w], pack.reparametrisation());
  }
  std::string text;
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor plain = tensor.contiguous();
    const std::string bytes(static_cast<const char*>(plain.data_ptr()), plain.nbytes());
    text += fmt::format("{} {:08x}\n", name, train::digest_of(bytes).crc32);
  }
  return train::digest_of(text).crc32;
}

BitMask used(const Pack& pack, std::size_t w) {
  const std::int64_t n = pack.weights[w].phi.numel();
  std::vector<const BitMask*> masks;
  for (const PackedTask& task : pack.tasks) {
    if (task.masks.empty()) return BitMask(n, true);
    masks.push_back(&task.masks[w]);
  }
  return any_of(masks, n);
}

std::vector<LayerCapacity> capacity(const Pack& pack) {
  std::vector<LayerCapacity> layers;
  for (std::size_t w = 0; w < pack.weights.size(); ++w) {
    LayerCapacity layer;
    layer.name = pack.weights[w].name;
    layer.weights = pack.weights[w].phi.numel();
    BitMask seen(layer.weights), twice(layer.weights);
    for (const PackedTask& task : pack.tasks) {
      const BitMask mask = task.masks.empty() ? BitMask(layer.weights, true) : task.masks[w];
      TaskCapacity of_task;
      of_task.kept = mask.count();
      of_task.reused = overlap(mask, seen);
      of_task.fresh = of_task.kept - of_task.reused;
      layer.tasks.push_back(of_task);
      for (const auto i : mask.positions()) {
        if (seen.test(i)) twice.set(i, true);
        seen.set(i, true);
      }
    }
    layer.used = seen.count();
    layer.free = layer.weights - layer.used;
    layer.shared = twice.count();
    layers.push_back(std::move(layer));
  }
  return layers;
}

double capacity_used(const Pack& pack) {
  if (pack.sharing() == Sharing::separate) return static_cast<double>(pack.tasks.size());
  std::int64_t all = 0, taken = 0;
  for (std::size_t w = 0; w < pack.weights.size(); ++w) {
    all += pack.weights[w].phi.numel();
    taken += used(pack, w).count();
  }
  return all == 0 ? 0 : static_cast<double>(taken) / static_cast<double>(all);
}

train::Json capacity_json(const Pack& pack) {
  train::Json layers = train::Json::array();
  std::vector<TaskCapacity> tasks(pack.tasks.size());
  std::int64_t weights = 0, taken = 0, free = 0, shared = 0;
  const auto row = [](const TaskCapacity& t) {
    return train::Json{{"kept", t.kept}, {"new", t.fresh}, {"reused", t.reused}};
  };
  for (const LayerCapacity& l : capacity(pack)) {
    train::Json of_tasks = train::Json::array();
    for (std::size_t t = 0; t < l.tasks.size(); ++t) {
      of_tasks.push_back(row(l.tasks[t]));
      tasks[t].kept += l.tasks[t].kept;
      tasks[t].fresh += l.tasks[t].fresh;
      tasks[t].reused += l.tasks[t].reused;
    }
    layers.push_back({{"name", l.name},
                      {"weights", l.weights},
                      {"used", l.used},
                      {"free", l.free},
                      {"shared", l.shared},
                      {"tasks", of_tasks}});
    weights += l.weights;
    taken += l.used;
    free += l.free;
    shared += l.shared;
  }
  train::Json of_tasks = train::Json::array();
  for (const TaskCapacity& t : tasks) of_tasks.push_back(row(t));
  return {{"weights", weights}, {"used", taken},     {"free", free},
          {"shared", shared},   {"tasks", of_tasks}, {"layers", layers}};
}

}  // namespace espalier::continual
