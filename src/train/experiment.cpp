#include "espalier/train/experiment.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <unordered_set>

#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/core/random.h"
#include "espalier/train/structure.h"

namespace espalier::train {
namespace {

namespace fs = std::filesystem;

/// Samples evaluated at once: 500, or as many large images as take 16 MiB.
std::int64_t evaluation_batch(const nn::InputShape& shape) {
  const std::int64_t bytes = 4 * shape.channels * shape.height * shape.width;
  return std::clamp<std::int64_t>((std::int64_t{16} << 20) / bytes, 1, 500);
}
constexpr const char* kStartWeights = "the weights of step 0";
constexpr double kPi = 3.14159265358979323846;

std::vector<std::int64_t> all_indices(const data::Images& images) {
  std::vector<std::int64_t> indices(static_cast<std::size_t>(images.size()));
  std::iota(indices.begin(), indices.end(), std::int64_t{0});
  return indices;
}

bool identity(const RunConfig& config) { return config.reparam.name == "identity" || config.reparam.alpha == 1; }

/// True where the optimiser holds the tensor on which weights are to decay, and so does it itself.
bool optimizer_decays(const RunConfig& config) {
  return identity(config) || (config.optim.decay_on == "w") == (config.reparam.update == "target");
}

Reparametrisation reparametrisation(const RunConfig& config) {
  if (identity(config)) return {};
  return Reparametrisation(config.reparam.alpha, config.reparam.update == "target" ? Update::target : Update::gradient);
}

}  // namespace

RunData::RunData(const RunConfig& config)
    : RunData(config, data::load_dataset(config.data, static_cast<std::uint64_t>(config.run.seed))) {}

RunData::RunData(const RunConfig& config, data::Dataset dataset)
    : options_(config.data),
      batch_size_(config.train.batch_size),
      seed_(static_cast<std::uint64_t>(config.run.seed)),
      dataset_(std::move(dataset)),
      split_(data::split_train(dataset_.train.size(), config.data.validation, seed_, config.data.train_limit)),
      normalisation_(data::normalisation(dataset_.train, split_.train, config.data)) {}

nn::InputShape RunData::input_shape() const {
  const auto shape = dataset_.train.shape();
  return {shape[0], shape[1], shape[2]};
}

data::Loader RunData::plain(const data::Images& images, const std::vector<std::int64_t>& indices) const {
  data::LoaderOptions options;
  options.batch_size = evaluation_batch(input_shape());
  return {images, indices, normalisation_, options};
}

data::Loader RunData::train_batches() const {
  data::LoaderOptions options;
  options.batch_size = batch_size_;
  options.shuffle = true;
  options.augment = options_.augment;
  options.seed = seed_;
  return {dataset_.train, split_.train, normalisation_, options};
}

data::Loader RunData::train_samples() const { return plain(dataset_.train, split_.train); }
data::Loader RunData::validation_batches() const { return plain(dataset_.train, split_.validation); }
data::Loader RunData::test_batches() const { return plain(dataset_.test, all_indices(dataset_.test)); }

ProbeBatch RunData::probe_batch(std::int64_t per_class, std::int64_t index) const {
  data::LoaderOptions options;
  options.batch_size = batch_size_;
  options.shuffle = true;
  options.seed = seed_;
  const data::Loader batches(dataset_.train, split_.train, normalisation_, options);
  if (per_class == 0) {
    const data::Batch batch = batches.batch(0, index % batches.batches_per_epoch());
    return {batch.images, batch.labels};
  }
  // Sample number index * per_class + 0 … of each class in the order of that epoch, from the start again at its end.
  std::vector<std::vector<std::int64_t>> members(static_cast<std::size_t>(dataset_.num_classes()));
  const auto* labels = dataset_.train.labels.data_ptr<std::int64_t>();
  for (const auto place : random_permutation(train_size(), RandomStream(seed_, Purpose::shuffle, 0))) {
    const auto i = split_.train[static_cast<std::size_t>(place)];
    members[static_cast<std::size_t>(labels[i])].push_back(i);
  }
  std::vector<std::int64_t> chosen;
  for (std::int64_t k = 0; k < per_class; ++k) {
    for (const auto& of_class : members) {
      if (of_class.empty()) continue;
      chosen.push_back(of_class[static_cast<std::size_t>(index * per_class + k) % of_class.size()]);
    }
  }
  options.batch_size = static_cast<std::int64_t>(chosen.size());
  options.shuffle = false;
  const data::Batch batch = data::Loader(dataset_.train, chosen, normalisation_, options).batch(0, 0);
  return {batch.images, batch.labels};
}

Clock planned_clock(const TrainOptions& train, std::int64_t batches_per_epoch) {
  Clock clock;
  clock.steps_per_epoch = batches_per_epoch;
  clock.total_steps =
      train.steps > 0 ? train.steps
                      : std::max<std::int64_t>(1, std::llround(train.epochs * static_cast<double>(batches_per_epoch)));
  return clock;
}

double schedule_factor(const ScheduleOptions& schedule, std::int64_t done, const Clock& clock) {
  const std::int64_t warmup = schedule.warmup.in_steps(clock);
  if (done < warmup) return static_cast<double>(done + 1) / static_cast<double>(warmup);
  if (schedule.name == "step") {
    const std::int64_t every = std::max<std::int64_t>(1, schedule.every.in_steps(clock));
    return std::pow(schedule.factor, static_cast<double>(done / every));
  }
  if (schedule.name == "multi-step") {
    double factor = 1;
    for (const auto& milestone : schedule.milestones) {
      if (done >= Duration::parse(milestone).in_steps(clock)) factor *= schedule.factor;
    }
    return factor;
  }
  if (schedule.name == "cosine") {
    const auto length = static_cast<double>(std::max<std::int64_t>(1, clock.total_steps - warmup));
    const double progress = std::min(1.0, static_cast<double>(done - warmup) / length);
    return schedule.final_factor + (1 - schedule.final_factor) * 0.5 * (1 + std::cos(kPi * progress));
  }
  return 1;
}

Evaluation evaluate(nn::Network& network, const data::Loader& batches) {
  const torch::NoGradGuard no_grad;
  const bool training = network.is_training();
  network.eval();
  Evaluation sum;
  for (std::int64_t b = 0; b < batches.batches_per_epoch(); ++b) {
    const data::Batch batch = batches.batch(0, b);
    const at::Tensor logits = network.forward(batch.images);
    sum.samples += batch.size();
    sum.correct += logits.argmax(1).eq(batch.labels).sum().item<std::int64_t>();
    sum.loss_sum +=
        torch::nll_loss(logits.to(torch::kDouble).log_softmax(1), batch.labels, {}, at::Reduction::Sum).item<double>();
  }
  network.train(training);
  return sum;
}

WeightDecay sparsifier_decay(const RunConfig& config) {
  if (optimizer_decays(config)) return {};
  WeightDecay decay;
  decay.rate = config.optim.weight_decay;
  decay.space = config.optim.decay_on == "w" ? DecaySpace::w : DecaySpace::phi;
  // Where the optimiser steps in w, a term in the gradient of phi has no place: the decay of phi is decoupled there.
  decay.decoupled = config.optim.name == "adamw" || config.reparam.update == "target";
  return decay;
}

template <class Optimizer, class Options>
std::unique_ptr<torch::optim::Optimizer> two_groups(const RunConfig& config, const Sparsifier& sparsifier,
                                                    const Options& options) {
  auto weights = std::make_unique<Options>(options);
  weights->weight_decay(optimizer_decays(config) ? config.optim.weight_decay : 0);
  auto others = std::make_unique<Options>(options);
  others->weight_decay(config.optim.weight_decay);
  std::vector<torch::optim::OptimizerParamGroup> groups;
  groups.emplace_back(sparsifier.weight_parameters(), std::move(weights));
  groups.emplace_back(sparsifier.other_parameters(), std::move(others));
  return std::make_unique<Optimizer>(groups, options);
}

std::unique_ptr<torch::optim::Optimizer> make_optimizer(const RunConfig& config, const Sparsifier& sparsifier) {
  const OptimOptions& o = config.optim;
  if (o.name == "sgd") {
    return two_groups<torch::optim::SGD>(config, sparsifier,
                                         torch::optim::SGDOptions(o.lr).momentum(o.momentum).nesterov(o.nesterov));
  }
  if (o.name == "adam") {
    return two_groups<torch::optim::Adam>(config, sparsifier,
                                          torch::optim::AdamOptions(o.lr).betas({o.beta1, o.beta2}).eps(o.eps));
  }
  ESPALIER_ASSERT(o.name == "adamw");
  return two_groups<torch::optim::AdamW>(config, sparsifier,
                                         torch::optim::AdamWOptions(o.lr).betas({o.beta1, o.beta2}).eps(o.eps));
}

Probe make_probe(const RunConfig& config, const nn::Network& network, const ModelStart& start) {
  const nn::InputShape input = network.input_shape();
  const std::int64_t classes = network.classes();
  Probe probe;
  probe.network = [=, &config, weights = start.weights] {
    const auto dense = nn::make_model(config.model, input, classes, static_cast<std::uint64_t>(config.run.seed),
                                      [](const std::string&) { return false; });
    if (weights != nullptr) begin_with(*dense, *weights, kStartWeights);
    return ProbeNetwork{dense, [dense](const at::Tensor& images) { return dense->forward(images); }};
  };
  probe.input = {input.channels, input.height, input.width};
  probe.wiring = network.wiring();
  probe.initializer = nn::initializer_of(config.model);
  if (start.data != nullptr) {
    probe.batch = [data = start.data](std::int64_t per_class, std::int64_t index) {
      return data->probe_batch(per_class, index);
    };
  }
  return probe;
}

namespace {

const at::Tensor* find(const NamedTensors& tensors, const std::string& name) {
  for (const auto& [key, tensor] : tensors)
    if (key == name) return &tensor;
  return nullptr;
}

/// The kept positions of a saved weight of that name and number of columns; nothing where the file has no such weight.
std::optional<at::Tensor> saved_positions(const Checkpoint& checkpoint, const std::string& name, std::int64_t columns) {
  if (const at::Tensor* crow = find(checkpoint.sparsity, name + ".crow_indices")) {
    const at::Tensor col = *find(checkpoint.sparsity, name + ".col_indices");
    const at::Tensor row = torch::arange(crow->numel() - 1).repeat_interleave(crow->diff());
    return row * columns + col;
  }
  if (const at::Tensor* mask = find(checkpoint.sparsity, name + ".mask")) return mask->view({-1}).nonzero().view({-1});
  if (const at::Tensor* phi = find(checkpoint.sparsity, name + ".phi")) return torch::arange(phi->numel());
  return std::nullopt;
}

/// w at those positions.
at::Tensor saved_values(const Checkpoint& checkpoint, const std::string& name, const at::Tensor& positions) {
  if (const at::Tensor* values = find(checkpoint.model, name + ".values")) return *values;
  const at::Tensor* dense = find(checkpoint.model, name);
  ESPALIER_CHECK(dense != nullptr, ErrorKind::data, "[run].values_from: the checkpoint has no weight \"{}\"", name);
  return dense->reshape({-1}).index_select(0, positions);
}

constexpr const char* kStart = "@0";

bool from_start(const std::string& values_from) {
  const std::string end = kStart;
  return values_from.size() > end.size() && values_from.compare(values_from.size() - end.size(), end.size(), end) == 0;
}

void check_shape(const char* key, const std::string& name, const std::vector<std::int64_t>& shape,
                 const Checkpoint& checkpoint) {
  const at::Tensor* crow = find(checkpoint.sparsity, name + ".crow_indices");
  const at::Tensor* dense = find(checkpoint.sparsity, name + ".phi");
  const bool fits =
      crow != nullptr ? crow->numel() == shape[0] + 1 : dense != nullptr && dense->sizes() == at::IntArrayRef(shape);
  ESPALIER_CHECK(fits, ErrorKind::usage,
                 "[run].{}: the run there has no weight \"{}\" of [{}]; is it of another model?", key, name,
                 fmt::join(shape, ", "));
}

/// Positions of the masks in a run, by the names of the weights of `network`.
SparsifierOptions::Structure structure_of(const LoadedRun& run, nn::Network& network) {
  SparsifierOptions::Structure structure;
  for (const nn::LayerCost& layer : nn::layer_costs(network)) {
    const std::string name = layer.name + ".weight";
    const std::int64_t columns = layer.weights / layer.weight_shape[0];
    check_shape("structure_from", name, layer.weight_shape, run.checkpoint);
    if (auto positions = saved_positions(run.checkpoint, name, columns)) structure[name] = *positions;
  }
  return structure;
}

/// The weights, biases and buffers of a run, where a weight is kept in both.
void take_values(const LoadedRun& run, SparseModel& model) {
  const torch::NoGradGuard no_grad;
  for (const auto& weight : model.sparsifier->weights()) {
    check_shape("values_from", weight->name(), weight->shape(), run.checkpoint);
    const auto there = saved_positions(run.checkpoint, weight->name(), weight->numel() / weight->shape()[0]);
    const at::Tensor here = weight->active(), saved = saved_values(run.checkpoint, weight->name(), *there);
    const at::Tensor both = torch::isin(here, *there, /*assume_unique=*/true);
    at::Tensor values = weight->values();
    values.masked_scatter_(both, weight->reparametrisation().inverse(
                                     saved.masked_select(torch::isin(*there, here, /*assume_unique=*/true))));
    weight->rewire({here, here, values, std::nullopt});
  }
  const auto copy = [&](const std::string& name, at::Tensor to) {
    const at::Tensor* saved = find(run.checkpoint.model, name);
    ESPALIER_CHECK(saved != nullptr && saved->sizes() == to.sizes(), ErrorKind::usage,
                   "[run].values_from: the run there has no \"{}\" of [{}]; is it of another model?", name,
                   fmt::join(to.sizes(), ", "));
    to.copy_(*saved);
  };
  std::unordered_set<std::string> weights;
  for (const auto& weight : model.sparsifier->weights()) weights.insert(weight->name());
  for (const auto& [name, parameter] : nn::plain_parameters(*model.network))
    if (weights.count(name) == 0) copy(name, parameter);
  for (const auto& buffer : model.network->named_buffers()) copy(buffer.key(), buffer.value());
}

}  // namespace

SparseModel make_sparse_model(const RunConfig& config, const nn::InputShape& input, std::int64_t classes,
                              const Clock& clock, const nn::Compress& given, const ModelStart& from) {
  ModelStart start = from;
  Structure structure;
  if (const std::string file = structure_file(config); !file.empty() && !start.restored) {
    structure = load_structure(file);
    if (!structure.weights.empty() && start.weights == nullptr) start.weights = &structure.weights;
  }
  const auto seed = static_cast<std::uint64_t>(config.run.seed);
  SparseModel model;
  nn::Compress compressed = given;
  const bool has_entries = std::any_of(structure.kept.begin(), structure.kept.end(),
                                       [](const auto& weight) { return !weight.second.defined(); });
  if (!compressed && has_entries) compressed = stored_compressed(structure.weights);
  if (!compressed && config.model.storage == "auto") {
    model.choices = choose_storage(config, input, classes);
    if (!model.choices.empty()) log_info(to_text(model.choices));
    compressed = compressed_layers(model.choices);
  } else if (!compressed) {
    compressed = [&](const std::string& layer) {
      return config.model.storage == "compressed" && !matches_layer(config.sparsity.dense_layers, layer);
    };
  }
  // What comes from other runs is there at the start only: a checkpoint of this one holds all of it.
  const bool fresh = !given && !start.restored;
  const std::string& values_from = config.run.values_from;
  std::uint64_t values_seed = seed;
  if (fresh && from_start(values_from)) {
    const LoadedRun run = load_run(values_from.substr(0, values_from.size() - 2));
    ESPALIER_CHECK(run.config.model.init == config.model.init, ErrorKind::usage,
                   "[run].values_from: [model].init is \"{}\" there and \"{}\" here; values at the start are the same "
                   "only with one distribution",
                   run.config.model.init, config.model.init);
    values_seed = static_cast<std::uint64_t>(run.config.run.seed);
  }
  if (const nn::Thinning thin = nn::thinning(config.model, input, classes); thin.weights > 0) {
    log_info(fmt::format("model: hidden widths times {:.4g}: {} weights, of at most {}", thin.factor, thin.weights,
                         config.model.max_weights));
  }
  model.network = nn::make_model(config.model, input, classes, values_seed, compressed);
  if (start.weights != nullptr) begin_with(*model.network, *start.weights, kStartWeights);
  auto probe = std::make_shared<Probe>(make_probe(config, *model.network, start));
  if (!structure.kept.empty()) {
    probe->structure = [&structure](const SparseWeight& weight) { return kept_positions(structure, weight); };
  }
  SparsifierOptions options = SparsifierOptions()
                                  .sparsity(config.sparsity.sparsity)
                                  .distribution(config.sparsity.distribution)
                                  .dense_layers(config.sparsity.dense_layers)
                                  .seed(seed)
                                  .total_steps(clock.total_steps)
                                  .steps_per_epoch(clock.steps_per_epoch)
                                  .weight_decay(sparsifier_decay(config))
                                  .probe(probe)
                                  .restored(start.restored);
  if (config.reparam.name == "adaptive-powerprop") options.adaptive_alpha(config.reparam.adaptive);
  if (fresh && !config.run.structure_from.empty()) {
    options.structure(structure_of(load_run(config.run.structure_from), *model.network));
  }
  model.sparsifier =
      std::make_unique<Sparsifier>(*model.network, config.method.make(), reparametrisation(config), options);
  if (fresh && !values_from.empty() && !from_start(values_from)) take_values(load_run(values_from), model);
  return model;
}

nn::Compress stored_compressed(const NamedTensors& sparsity) {
  const std::string ending = ".weight.crow_indices";
  std::unordered_set<std::string> layers;
  for (const auto& [name, tensor] : sparsity) {
    if (name.size() > ending.size() && name.compare(name.size() - ending.size(), ending.size(), ending) == 0) {
      layers.insert(name.substr(0, name.size() - ending.size()));
    }
  }
  return [layers = std::move(layers)](const std::string& layer) { return layers.count(layer) != 0; };
}

NamedTensors state_dict(const SparseModel& model) {
  NamedTensors all;
  for (const auto& [name, parameter] : nn::plain_parameters(*model.network)) {
    all.emplace_back(name, parameter.detach());
  }
  for (const auto& item : model.network->named_buffers()) all.emplace_back(item.key(), item.value());
  for (const auto& w : model.sparsifier->weights())
    for (auto& entry : w->state()) all.push_back(std::move(entry));
  return all;
}

std::map<std::string, std::string> state_metadata(const SparseModel& model) {
  std::map<std::string, std::string> metadata = {{"format", "pt"}};
  for (const auto& w : model.sparsifier->weights()) {
    if (w->storage() == std::string("compressed")) {
      metadata[w->name() + ".shape"] = fmt::format("[{}]", fmt::join(w->shape(), ", "));
    }
  }
  return metadata;
}

void load_state_dict(nn::Network& network, const NamedTensors& tensors, const std::string& source, bool undrawn) {
  const torch::NoGradGuard no_grad;
  const std::map<std::string, at::Tensor> by_name(tensors.begin(), tensors.end());
  const auto load = [&](const std::string& name, at::Tensor to) {
    const auto at = by_name.find(name);
    ESPALIER_CHECK(at != by_name.end(), ErrorKind::data, "{}: no tensor \"{}\", which the model needs", source, name);
    ESPALIER_CHECK(at->second.sizes() == to.sizes(), ErrorKind::data, "{}: \"{}\" has shape {}; the model needs {}",
                   source, name, fmt::join(at->second.sizes(), "x"), fmt::join(to.sizes(), "x"));
    to.copy_(at->second);
  };
  for (auto& [name, parameter] : nn::plain_parameters(network)) load(name, parameter);
  for (const auto& weight : nn::compressed_weights(network)) {
    if (undrawn && by_name.count(weight->name()) != 0) continue;
    ESPALIER_CHECK(weight->load_state(tensors), ErrorKind::data,
                   "{}: neither \"{}\" nor its .crow_indices, .col_indices and .values, which the model needs", source,
                   weight->name());
  }
  for (auto& item : network.named_buffers()) load(item.key(), item.value());
}

LoadedRun load_run(const fs::path& path, bool best) {
  LoadedRun run;
  const bool is_checkpoint = fs::exists(path / "state.json");
  run.directory = is_checkpoint ? fs::weakly_canonical(path).parent_path().parent_path() : path;
  const fs::path config = run.directory / "config.toml";
  ESPALIER_CHECK(fs::exists(config), ErrorKind::usage,
                 "{}: no run here (no {}); expected a run directory or one of its checkpoints", path.string(),
                 config.string());
  ConfigSources sources;
  sources.file = config.string();
  run.config = load_config(sources);
  if (is_checkpoint || best) {
    run.checkpoint = load_checkpoint(is_checkpoint ? path : path / "checkpoints" / "best");
  } else {
    auto latest = load_latest_checkpoint(path);
    ESPALIER_CHECK(latest, ErrorKind::data, "{}: the run has no checkpoint yet", path.string());
    run.checkpoint = std::move(*latest);
  }
  return run;
}

SparseModel restore_model(const LoadedRun& run, const nn::InputShape& input, std::int64_t classes, const Clock& clock) {
  ModelStart start;
  start.restored = true;
  SparseModel model =
      make_sparse_model(run.config, input, classes, clock, stored_compressed(run.checkpoint.sparsity), start);
  load_state_dict(*model.network, run.checkpoint.model, (run.directory / "checkpoints").string());
  model.sparsifier->restore(run.checkpoint.sparsity);
  return model;
}

std::vector<LayerReport> layer_report(nn::Network& network, const Sparsifier& sparsifier) {
  std::map<std::string, nn::LayerCost> costs;
  for (auto& cost : nn::layer_costs(network)) costs[cost.name + ".weight"] = cost;
  std::vector<LayerReport> rows;
  for (const auto& w : sparsifier.weights()) {
    const auto at = costs.find(w->name());
    ESPALIER_ASSERT(at != costs.end());
    LayerReport row;
    row.name = w->name();
    row.kind = at->second.kind;
    row.storage = w->nnz() < w->numel() || w->storage() != std::string("masked") ? w->storage() : "dense";
    row.shape = w->shape();
    row.weights = w->numel();
    row.nnz = w->nnz();
    row.macs_dense = at->second.macs;
    row.macs = at->second.macs / w->numel() * w->nnz();  // each weight is used at as many places as any other
    const auto& sparsified = sparsifier.sparsified();
    row.sparsified = std::find(sparsified.begin(), sparsified.end(), w.get()) != sparsified.end();
    rows.push_back(row);
  }
  return rows;
}

}  // namespace espalier::train
