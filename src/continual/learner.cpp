#include "espalier/continual/learner.h"

#include <ATen/CPUGeneratorImpl.h>
#include <sys/resource.h>
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <mutex>
#include <numeric>
#include <optional>
#include <set>

#include "espalier/continual/evaluate.h"
#include "espalier/continual/ewc.h"
#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/core/random.h"
#include "espalier/kernels/dispatch.h"
#include "espalier/methods/select.h"
#include "espalier/nn/init.h"
#include "espalier/nn/loss.h"
#include "espalier/train/checkpoint.h"
#include "espalier/train/metrics.h"
#include "espalier/train/weight_record.h"

namespace espalier::continual {
namespace {

namespace fs = std::filesystem;
using train::Json;
using SteadyClock = std::chrono::steady_clock;

constexpr const char* kPending = "pending.";
constexpr const char* kLive = "live.";

/// torch's own, from which dropout draws.
void restore_generator(const at::Tensor& state) {
  auto generator = at::detail::getDefaultCPUGenerator();
  const std::lock_guard<std::mutex> lock(generator.mutex());
  generator.set_state(state);
}

std::uint64_t seed_of(const train::RunConfig& config) { return static_cast<std::uint64_t>(config.run.seed); }

/// Of the weights that a task leaves free: another draw for each task.
std::uint64_t reinit_seed(const train::RunConfig& config, std::int64_t number) {
  return RandomStream(seed_of(config), Purpose::task, static_cast<std::uint64_t>(number)).bits_at(0);
}

bool falls_on(std::int64_t step, const Duration& every, const Clock& clock) {
  const std::int64_t distance = every.in_steps(clock);
  return distance > 0 && step % distance == 0;
}

/// Sums over the batches of an epoch so far; part of every checkpoint.
struct Running {
  std::int64_t samples = 0, correct = 0;
  double loss_sum = 0;
  double loss() const { return samples == 0 ? 0 : loss_sum / static_cast<double>(samples); }
  double accuracy() const { return samples == 0 ? 0 : static_cast<double>(correct) / static_cast<double>(samples); }
};

/// What is being learnt: one task, or all of them for `joint`.
struct Live {
  std::vector<std::unique_ptr<train::RunData>> data;
  std::vector<std::unique_ptr<data::Loader>> batches;  ///< of each
  std::vector<std::int64_t> first_logit, logits;       ///< of each, in the last layer
  train::SparseModel model;
  Masks forward, backward;  ///< of the packed weights
  std::unique_ptr<torch::optim::Optimizer> optimizer;
  bool retraining = false;
  Clock clock;                   ///< of this training; clock.step = steps done
  std::int64_t first_epoch = 0;  ///< of the order of samples
  double lr = 0;
  Running running;
  Masks chosen;  ///< of the task, once it has been pruned
  Json record = Json::object();

  SparseWeight& weight(const std::string& name) const {
    for (const auto& w : model.sparsifier->weights())
      if (w->name() == name) return *w;
    ESPALIER_ASSERT(false && "a packed weight of the model");
    return *model.sparsifier->weights().front();
  }
};

class Learner {
 public:
  Learner(Pack pack, train::RunConfig config, TaskData& data, std::vector<TaskSource> sources, const Hooks& hooks,
          train::RunDirectory* directory)
      : pack_(std::move(pack)),
        config_(std::move(config)),
        data_(data),
        sources_(std::move(sources)),
        hooks_(hooks),
        directory_(directory) {
    tests_.resize(sources_.size());
  }

  Pack& pack() { return pack_; }
  bool joint() const { return config_.continual.method == "joint"; }

  /// A run: everything in a directory.
  train::TrainResult run() {
    torch::manual_seed(seed_of(config_));  // dropout's
    store_ = std::make_unique<train::CheckpointStore>(directory_->path(), config_.checkpoint.keep);
    const auto checkpoint = store_->load_latest();
    const std::int64_t position = checkpoint ? checkpoint->state.at("metrics_position").get<std::int64_t>() : 0;
    const std::int64_t timing = checkpoint ? checkpoint->state.at("timing_position").get<std::int64_t>() : 0;
    if (checkpoint) resume(*checkpoint);
    metrics_ = std::make_unique<train::MetricsWriter>(directory_->metrics(), position);
    timing_ = std::make_unique<train::MetricsWriter>(directory_->timing(), timing);
    weights_ = std::make_unique<train::MetricsWriter>(
        directory_->weights(), checkpoint ? checkpoint->state.at("weights_position").get<std::int64_t>() : 0);
    try {
      if (!checkpoint) measure();  // the network before the first task
      while (!complete()) {
        if (learn_next() == train::Outcome::stopped) {
          checkpoint_now();
          Json summary = summarise("stopped");
          directory_->write_summary(summary);
          return {train::Outcome::stopped, summary};
        }
        save_pack(pack_path(*directory_), pack_);
        checkpoint_now();
      }
    } catch (const Error& e) {
      Json summary = summarise(e.kind() == ErrorKind::diverged ? "diverged" : "failed");
      summary["error"] = e.what();
      directory_->write_summary(summary);
      throw;
    }
    save_pack(pack_path(*directory_), pack_);  // again where a kill came between the last checkpoint and the summary
    metrics_->write("end", total_steps_, {{"status", "done"}});
    metrics_->position();
    timing_->position();
    weights_->position();
    Json summary = summarise("done");
    directory_->write_summary(summary);
    return {train::Outcome::done, summary};
  }

  /// One more task, without a directory.
  void run_once() {
    measure_new_column();
    const train::Outcome outcome = learn_next();
    ESPALIER_CHECK(outcome == train::Outcome::done, ErrorKind::failed,
                   "stopped by a signal before the task was learnt; the packed file is as it was");
  }

  Json summarise(const std::string& status) const {
    Json s;
    s["schema"] = 1;
    s["status"] = status;
    s["model"] = config_.model.name;
    s["data"] = config_.continual.sequence == "datasets" ? fmt::format("{}", fmt::join(config_.continual.datasets, "+"))
                                                         : config_.data.name;
    s["method"] = config_.continual.method;
    s["reparam"] = config_.reparam.name;
    s["alpha"] = config_.reparam.alpha;
    s["seed"] = config_.run.seed;
    s["sequence"] = config_.continual.sequence;
    s["tasks"] = static_cast<std::int64_t>(sources_.size());
    s["epochs"] = config_.train.epochs;
    s["steps"] = total_steps_;
    const auto average = pack_.accuracies.average().value;
    s["test_accuracy"] = average ? Json(*average) : Json(nullptr);
    s["val_accuracy"] = nullptr;
    s["test_loss"] = nullptr;
    s.update(summary_of(pack_));
    s["train_seconds"] = seconds_before_ + seconds_;
    s["samples_per_second"] = seconds_ > 0 ? static_cast<double>(samples_) / seconds_ : 0;
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    s["peak_rss_bytes"] = static_cast<std::int64_t>(usage.ru_maxrss) * 1024;
    s["threads"] = at::get_num_threads();
    s["isa"] = kernels::active().isa;
    return s;
  }

 private:
  // ---- the sequence ------------------------------------------------------------------------------------------------

  bool complete() const { return pack_.tasks.size() == sources_.size(); }
  std::int64_t number() const { return static_cast<std::int64_t>(pack_.tasks.size()) + 1; }
  const TaskSource& source() const { return sources_[pack_.tasks.size()]; }

  train::Outcome learn_next() {
    if (!live_) begin();
    if (!live_->retraining) {
      if (train_on() == train::Outcome::stopped) return train::Outcome::stopped;
      if (pack_.sharing() == Sharing::masked) prune();
    }
    if (live_->retraining && train_on() == train::Outcome::stopped) return train::Outcome::stopped;
    commit();
    return train::Outcome::done;
  }

  void begin() {
    check_free();
    prepare_live();
    event("task", {{"task", number()},
                   {"phase", "begin"},
                   {"name", joint() ? fmt::format("all {} tasks", sources_.size()) : source().text()},
                   {"free", free_weights()}});
    log_info(joint() ? fmt::format("all {} tasks at once", sources_.size())
                     : fmt::format("task {} of {}: {}", number(), sources_.size(), source().text()));
  }

  std::int64_t free_weights() const {
    std::int64_t free = 0;
    if (pack_.sharing() != Sharing::masked) return free;
    for (std::size_t w = 0; w < pack_.weights.size(); ++w)
      free += pack_.weights[w].phi.numel() - used(pack_, w).count();
    return free;
  }

  void check_free() const {
    if (pack_.sharing() != Sharing::masked) return;
    std::string layers;
    std::vector<std::string> full;
    std::int64_t all = 0, free = 0;
    for (std::size_t w = 0; w < pack_.weights.size(); ++w) {
      const std::int64_t n = pack_.weights[w].phi.numel(), left = n - used(pack_, w).count();
      layers += fmt::format("{}{} {} of {}", layers.empty() ? "" : ", ", pack_.weights[w].name, left, n);
      all += n;
      free += left;
      if (left == 0) full.push_back(pack_.weights[w].name);
    }
    const bool packnet = config_.continual.method == "packnet";
    ESPALIER_CHECK(
        free > 0, ErrorKind::usage,
        "task {} ({}) cannot be learnt: {} of {} weights are free ({}). The {} tasks before it are as they were. To "
        "have room: {}, or a larger [model]",
        number(), source().text(), free, all, layers, pack_.tasks.size(),
        packnet && config_.continual.share == 0
            ? fmt::format("a [continual].tasks above {} from the start: equal shares leave nothing", pack_.tasks.size())
        : packnet ? std::string("a smaller [continual].share")
                  : std::string("smaller [continual].keep_rates, or a lower gamma"));
    for (const std::string& name : full) {
      log_warning(fmt::format("task {}: {} has no free weight left: it is used as it is", number(), name));
    }
  }

  // ---- one task ----------------------------------------------------------------------------------------------------

  void prepare_live() {
    live_ = std::make_unique<Live>();
    Live& live = *live_;
    const std::size_t first = pack_.tasks.size(), last = joint() ? sources_.size() : first + 1;
    std::int64_t classes = 0, per_epoch = 0;
    for (std::size_t t = first; t < last; ++t) {
      live.data.push_back(data_.of(sources_[t], config_, pack_.input));
      live.batches.emplace_back(new data::Loader(live.data.back()->train_batches()));
      const std::int64_t n = live.data.back()->dataset().num_classes();
      live.first_logit.push_back(joint() && pack_.own_heads ? classes : 0);
      live.logits.push_back(n);
      classes = joint() && pack_.own_heads ? classes + n : n;
      per_epoch += live.batches.back()->batches_per_epoch();
    }
    live.clock = train::planned_clock(config_.train, per_epoch);
    live.lr = config_.optim.lr;

    train::RunConfig plain = config_;
    plain.sparsity.sparsity = 0;
    live.model =
        train::make_sparse_model(plain, pack_.input, classes, live.clock, [](const std::string&) { return false; });
    const torch::NoGradGuard no_grad;
    for (auto& [name, tensor] : tensors_of(*live.model.network)) {
      for (const auto& [key, value] : pack_.shared)
        if (key == name) tensor.copy_(value);
    }
    Masks forward, backward;
    for (std::size_t w = 0; w < pack_.weights.size(); ++w) {
      forward.emplace_back(pack_.weights[w].phi.numel(), true);
      backward.push_back(pack_.sharing() == Sharing::masked ? inverse(used(pack_, w)) : forward.back());
    }
    set_masks(std::move(forward), std::move(backward));
  }

  /// Loads phi . M_f with these masks; a fresh optimiser: momentum must not carry over from one set to another.
  void set_masks(Masks forward, Masks backward) {
    Live& live = *live_;
    live.forward = std::move(forward);
    live.backward = std::move(backward);
    for (std::size_t w = 0; w < pack_.weights.size(); ++w) {
      const PackedWeight& packed = pack_.weights[w];
      const at::Tensor mask = bytes(live.forward[w], packed.shape);
      // Where M_f is 0 nothing looks at phi, but with the identity it is the weight itself.
      live.weight(packed.name)
          .restore({{packed.name + ".phi", packed.phi * mask},
                    {packed.name + ".mask", mask},
                    {packed.name + ".trainable", bytes(live.backward[w], packed.shape)}});
    }
    train::RunConfig config = config_;
    const double decay = config_.continual.retrain_decay;
    if (live.retraining && decay >= 0) config.optim.weight_decay = decay;
    live.model.sparsifier->set_weight_decay(train::sparsifier_decay(config));
    live.optimizer = train::make_optimizer(config, *live.model.sparsifier);
  }

  /// What has been learnt at M_b goes into the pack, and nothing else does.
  void absorb() {
    for (std::size_t w = 0; w < pack_.weights.size(); ++w) {
      const at::Tensor learnt = live_->weight(pack_.weights[w].name).all_values().reshape({-1});
      const at::Tensor at = positions(live_->backward[w]);
      pack_.weights[w].phi.view({-1}).index_copy_(0, at, learnt.index_select(0, at));
    }
  }

  train::Outcome train_on() {
    Live& live = *live_;
    while (live.clock.step < live.clock.total_steps) {
      if (hooks_.stop != nullptr && hooks_.stop->load()) return train::Outcome::stopped;
      one_step();
      if (live.clock.step < live.clock.total_steps && falls_on(live.clock.step, config_.checkpoint.every, live.clock)) {
        checkpoint_now();
      }
    }
    absorb();
    return train::Outcome::done;
  }

  /// The batch of a step, and which task it is of. Joint training takes the batches of all tasks in random order.
  std::pair<data::Batch, std::size_t> batch_of(std::int64_t step) {
    Live& live = *live_;
    const std::int64_t epoch = live.first_epoch + step / live.clock.steps_per_epoch;
    std::int64_t place = step % live.clock.steps_per_epoch;
    if (live.batches.size() > 1) {
      if (order_epoch_ != epoch) {
        order_ = random_permutation(live.clock.steps_per_epoch, RandomStream(seed_of(config_), Purpose::task, 0,
                                                                             static_cast<std::uint64_t>(epoch)));
        order_epoch_ = epoch;
      }
      place = order_[static_cast<std::size_t>(place)];
    }
    std::size_t task = 0;
    while (place >= live.batches[task]->batches_per_epoch()) place -= live.batches[task++]->batches_per_epoch();
    return {live.batches[task]->batch(epoch, place), task};
  }

  void one_step() {
    Live& live = *live_;
    const auto start = SteadyClock::now();
    live.model.network->train();
    const auto [batch, task] = batch_of(live.clock.step);
    const double rate = live.lr * train::schedule_factor(config_.schedule, live.clock.step, live.clock);
    for (auto& group : live.optimizer->param_groups()) group.options().set_lr(rate);
    nn::Activation logits = live.model.network->logits(batch.images);
    if (live.batches.size() > 1) {
      logits = logits.plain().slice(1, live.first_logit[task], live.first_logit[task] + live.logits[task]);
    }
    std::int64_t correct = 0;
    const at::Tensor loss = nn::cross_entropy(logits, batch.labels, config_.train.label_smoothing, &correct);
    const double loss_value = loss.item<double>();
    ESPALIER_CHECK(std::isfinite(loss_value), ErrorKind::diverged,
                   "task {}, step {} of its {}: the loss is {}. The learning rate was {:g}: lower [optim].lr, or set "
                   "[train].clip_norm or [schedule].warmup{}",
                   number(), live.clock.step + 1, live.retraining ? "retraining" : "training", loss_value, rate,
                   config_.continual.method == "ewc" ? ", or lower [continual].ewc_lambda" : "");
    loss.backward();
    if (!pack_.anchors.empty()) pull_back(pack_.anchors, shared_parameters(), config_.continual.ewc_lambda);
    if (config_.train.clip_norm > 0) {
      torch::nn::utils::clip_grad_norm_(live.model.network->parameters(), config_.train.clip_norm);
    }
    live.model.sparsifier->step(*live.optimizer);
    ++live.clock.step;
    ++total_steps_;
    samples_ += batch.size();
    seconds_ += std::chrono::duration<double>(SteadyClock::now() - start).count();

    live.running.samples += batch.size();
    live.running.loss_sum += loss_value * static_cast<double>(batch.size());
    live.running.correct += correct;
    const char* phase = live.retraining ? "retrain" : "train";
    if (falls_on(live.clock.step, config_.log.every, live.clock)) {
      event("step", {{"task", number()}, {"phase", phase}, {"loss", loss_value}, {"lr", rate}});
    }
    if (hooks_.progress) {
      hooks_.progress({number(), static_cast<std::int64_t>(sources_.size()), live.retraining, live.clock.step,
                       live.clock.total_steps, live.running.loss(), live.running.accuracy()});
    }
    if (live.clock.step % live.clock.steps_per_epoch == 0 || live.clock.step == live.clock.total_steps) {
      const double epoch = static_cast<double>(live.clock.step) / static_cast<double>(live.clock.steps_per_epoch);
      event("epoch", {{"task", number()},
                      {"phase", phase},
                      {"epoch", epoch},
                      {"train_loss", live.running.loss()},
                      {"train_accuracy", live.running.accuracy()}});
      if (timing_) timing_->write("epoch", total_steps_, {{"task", number()}, {"train_seconds", seconds()}});
      log_info(fmt::format("task {}, {}, epoch {:g}: train loss {:.4f}, accuracy {:.4f}", number(), phase, epoch,
                           live.running.loss(), live.running.accuracy()));
      live.running = {};
    }
  }

  /// The parameters that tasks share, those of the packed weights as the layers use them.
  train::NamedTensors shared_parameters() const {
    train::NamedTensors list;
    for (const auto& item : live_->model.network->named_parameters()) {
      if (!is_own(pack_, item.key())) list.emplace_back(item.key(), item.value());
    }
    return list;
  }

  // ---- pruning -----------------------------------------------------------------------------------------------------

  double validate() { return evaluate(*live_->model.network, live_->data.front()->validation_batches()).accuracy(); }

  /// Validation accuracy of the network as it stands with these masks; the network is left as it was.
  double accuracy_with(const Masks& masks) {
    const torch::NoGradGuard no_grad;
    std::vector<std::pair<at::Tensor, at::Tensor>> before;
    const Reparametrisation psi = pack_.reparametrisation();
    for (auto& [name, tensor] : tensors_of(*live_->model.network)) {
      for (std::size_t w = 0; w < pack_.weights.size(); ++w) {
        if (pack_.weights[w].name != name) continue;
        before.emplace_back(tensor, tensor.clone());
        tensor.copy_(effective(pack_.weights[w], &masks[w], psi));
      }
    }
    const double accuracy = validate();
    for (auto& [tensor, value] : before) tensor.copy_(value);
    return accuracy;
  }

  /// Algorithm 1, lines 5 to 14.
  void prune() {
    Live& live = *live_;
    live.chosen = config_.continual.method == "packnet" ? packnet_masks() : efficient_masks();
    Masks backward;
    std::int64_t kept = 0, fresh = 0;
    for (std::size_t w = 0; w < pack_.weights.size(); ++w) {
      backward.push_back(minus(live.chosen[w], used(pack_, w)));
      kept += live.chosen[w].count();
      fresh += backward.back().count();
    }
    live.record["kept"] = kept;
    live.record["new"] = fresh;
    reinitialise_free();
    log_info(fmt::format("task {}: computes with {} weights, {} of them new", number(), kept, fresh));

    const std::int64_t steps = config_.continual.retrain.in_steps(live.clock);
    const std::int64_t epochs_done = (live.clock.step + live.clock.steps_per_epoch - 1) / live.clock.steps_per_epoch;
    live.retraining = true;
    live.first_epoch = epochs_done;
    live.clock = {0, steps, live.clock.steps_per_epoch};
    live.lr = config_.continual.retrain_lr > 0 ? config_.continual.retrain_lr : config_.optim.lr / 10;
    live.running = {};
    set_masks(live.chosen, std::move(backward));
  }

  /// PackNet: of what is free in each layer, the largest; the task computes with these and all earlier ones.
  Masks packnet_masks() {
    const train::ContinualOptions& c = config_.continual;
    Masks masks;
    for (std::size_t w = 0; w < pack_.weights.size(); ++w) {
      const std::int64_t n = pack_.weights[w].phi.numel();
      BitMask mask = used(pack_, w);
      const at::Tensor free = positions(inverse(mask));
      const std::int64_t kept =
          c.share > 0 ? packnet_kept(free.numel(), c.share) : std::min(free.numel(), equal_share(n, number(), c.tasks));
      const at::Tensor score = pack_.weights[w].phi.view({-1}).index_select(0, free).abs();
      const at::Tensor chosen = free.index_select(0, select_top(score, kept).chosen);
      const auto* at = chosen.data_ptr<std::int64_t>();
      for (std::int64_t i = 0; i < chosen.numel(); ++i) mask.set(at[i], true);
      masks.push_back(std::move(mask));
    }
    if (live_->data.front()->has_validation()) {
      live_->record["dense_accuracy"] = validate();
      live_->record["pruned_accuracy"] = accuracy_with(masks);
    }
    return masks;
  }

  /// EfficientPackNet: the largest of all weights, those of earlier tasks included, as few as gamma allows.
  Masks efficient_masks() {
    const train::ContinualOptions& c = config_.continual;
    std::vector<at::Tensor> scores;
    std::vector<std::vector<std::int64_t>> shapes;
    for (const PackedWeight& w : pack_.weights) {
      scores.push_back(w.phi.abs());
      shapes.push_back(w.shape);
    }
    const auto masks_of = [&](double rate) { return largest(scores, shapes, rate, config_.sparsity.distribution); };
    const double dense = validate();
    const auto accuracy = [&](double rate) {
      const double reached = accuracy_with(masks_of(rate));
      log_info(fmt::format("task {}: {:g} of the weights: validation accuracy {:.4f}, {:.4f} before pruning", number(),
                           rate, reached, dense));
      return reached;
    };
    const Found found = c.search == "list" ? search_list(c.keep_rates, c.gamma * dense, accuracy)
                                           : search_binary(c.keep_rates.front(), c.keep_rates.back(), c.search_steps,
                                                           c.gamma * dense, accuracy);
    Json trials = Json::array();
    for (const Trial& t : found.trials) {
      trials.push_back({{"keep_rate", t.keep_rate}, {"accuracy", t.accuracy}, {"passed", t.passed}});
    }
    double rate = found.keep_rate.value_or(c.fallback == "largest" ? c.keep_rates.back() : 1);
    if (!found.keep_rate) {
      const std::string text = fmt::format(
          "task {}: even the keep rate {:g} leaves {:.4f} of validation accuracy, below {:g} x {:.4f}; [continual]."
          "fallback = \"{}\": the task takes {:g} of the weights",
          number(), c.keep_rates.back(), found.trials.front().accuracy, c.gamma, dense, c.fallback, rate);
      event("warning", {{"text", text}});
      log_warning(text);
    }
    live_->record.update(
        {{"dense_accuracy", dense}, {"keep_rate", rate}, {"passed", found.keep_rate.has_value()}, {"trials", trials}});
    for (const Trial& t : found.trials)
      if (t.keep_rate == rate) live_->record["pruned_accuracy"] = t.accuracy;
    return masks_of(rate);
  }

  /// Line 14: what neither this task nor an earlier one has.
  void reinitialise_free() {
    std::string how = config_.continual.reinit;
    const Reparametrisation psi = pack_.reparametrisation();
    if (how == "auto") how = config_.continual.method == "packnet" && psi.is_identity() ? "zero" : "fresh";
    if (how == "keep") return;
    for (std::size_t w = 0; w < pack_.weights.size(); ++w) {
      PackedWeight& packed = pack_.weights[w];
      BitMask taken = used(pack_, w);
      for (const auto i : live_->chosen[w].positions()) taken.set(i, true);
      const at::Tensor free = positions(inverse(taken));
      at::Tensor phi = packed.phi.view({-1});
      if (how == "zero") {
        phi.index_fill_(0, free, 0);
      } else {
        phi.index_copy_(
            0, free,
            psi.inverse(nn::draw_again(packed.shape, free, torch::kFloat, nn::initializer_of(config_.model),
                                       reinit_seed(config_, number()), static_cast<std::uint64_t>(packed.layer))));
      }
    }
  }

  // ---- the end of a task -------------------------------------------------------------------------------------------

  void commit() {
    Live& live = *live_;
    const torch::NoGradGuard no_grad;
    live.model.network->eval();
    if (pack_.sharing() == Sharing::masked && live.data.front()->has_validation()) {
      live.record["val_accuracy"] = validate();
    }
    if (config_.continual.method == "ewc") remember();
    if (weights_) weights_->write("weights", total_steps_, train::weight_record(*live.model.sparsifier));
    const std::int64_t first = number();
    for (std::size_t k = 0; k < live.data.size(); ++k) {
      PackedTask task;
      task.source = sources_[static_cast<std::size_t>(first - 1) + k];
      task.source.data.root.clear();
      task.classes = live.logits[k];
      task.masks = live.chosen;
      task.record = live.record;
      for (const auto& [name, tensor] : tensors_of(*live.model.network)) {
        if (!is_own(pack_, name)) continue;
        at::Tensor own = tensor.detach();
        if (live.data.size() > 1) own = own.slice(0, live.first_logit[k], live.first_logit[k] + live.logits[k]);
        task.own.emplace_back(name, own.clone(at::MemoryFormat::Contiguous));
      }
      pack_.tasks.push_back(std::move(task));
    }
    for (auto& [name, shared] : pack_.shared) {
      for (const auto& [key, tensor] : tensors_of(*live.model.network))
        if (key == name) shared.copy_(tensor);
    }
    live_.reset();
    for (std::int64_t t = first; t < number(); ++t) {
      pack_.tasks[static_cast<std::size_t>(t - 1)].digest = task_digest(pack_, t);
    }
    while (pack_.accuracies.learnt() + 1 < number() - 1) pack_.accuracies.add_row({});  // joint: they never were
    measure();
    const auto& row = pack_.accuracies.rows().back();
    Json accuracies = Json::array();
    for (const auto& r : row) accuracies.push_back(r ? Json(*r) : Json(nullptr));
    const PackedTask& last = pack_.tasks.back();
    Json fields = {{"task", number() - 1}, {"phase", "learnt"}};
    fields.update(last.record);
    fields["accuracies"] = accuracies;
    fields["capacity_used"] = capacity_used(pack_);
    event("task", fields);
    const auto own = pack_.accuracies.at(pack_.accuracies.learnt(), number() - 2);
    const auto average = pack_.accuracies.average().value;
    log_info(fmt::format(
        "task {} learnt: test accuracy {:.4f}, mean of the tasks so far {:.4f}, {:.1f} % of the network used",
        number() - 1, own.value_or(0), average.value_or(0), 100 * capacity_used(pack_)));
  }

  /// EWC: what matters to this task.
  void remember() {
    const torch::AutoGradMode with_gradients(true);
    const auto parameters = shared_parameters();
    const auto fisher = fisher_information(*live_->model.network, parameters, live_->data.front()->train_samples(),
                                           config_.continual.fisher_samples, seed_of(config_), number());
    anchor(pack_.anchors, fisher, parameters);
  }

  const data::Loader& test(std::size_t t) {
    if (!tests_[t]) tests_[t].reset(new data::Loader(data_.of(sources_[t], config_, pack_.input)->test_batches()));
    return *tests_[t];
  }

  std::int64_t classes_of(std::size_t t) {
    if (t < pack_.tasks.size()) return pack_.tasks[t].classes;
    const TaskSource& s = sources_[t];
    return s.sequence == "split" ? s.classes : data_.base(s).num_classes();
  }

  std::optional<double> accuracy_on(nn::Network& network, std::size_t t) {
    return evaluate(network, test(t)).accuracy();
  }

  /// Adds the row of the matrix that is due: after so many tasks, on every task.
  void measure() {
    const std::size_t learnt = pack_.tasks.size();
    const bool protects = pack_.sharing() != Sharing::whole;
    std::vector<std::optional<double>> row(sources_.size());
    for (std::size_t t = 0; t < sources_.size(); ++t) {
      const auto task = static_cast<std::int64_t>(t);
      if (t < learnt) {
        // The digest is that of everything the task computes with: as long as it stays, so do its logits.
        const bool same = protects && t + 1 < learnt;
        ESPALIER_ASSERT(!same || task_digest(pack_, task + 1) == pack_.tasks[t].digest);
        row[t] = same ? pack_.accuracies.at(task + 1, task) : std::nullopt;
        if (!row[t]) row[t] = accuracy_on(*task_network(pack_, task + 1), t);
        continue;
      }
      const bool wanted = learnt == 0 || config_.continual.evaluate == "all" || t == learnt;
      const bool exists = learnt == 0 || (pack_.sharing() != Sharing::separate && !pack_.own_heads);
      if (wanted && exists) row[t] = accuracy_on(*next_network(pack_, classes_of(t)), t);
    }
    pack_.accuracies.add_row(std::move(row));
  }

  /// A task that nobody knew of: the network at random, and before it was learnt.
  void measure_new_column() {
    const std::size_t t = pack_.tasks.size();
    const auto task = static_cast<std::int64_t>(t);
    const Pack start = new_pack(pack_.config, pack_.input, pack_.own_heads, classes_of(t));
    if (pack_.accuracies.rows().empty()) pack_.accuracies.add_row({});
    pack_.accuracies.set(0, task, accuracy_on(*next_network(start, classes_of(t)), t));
    if (t > 0 && pack_.sharing() != Sharing::separate && !pack_.own_heads) {
      pack_.accuracies.set(pack_.accuracies.learnt(), task, accuracy_on(*next_network(pack_, classes_of(t)), t));
    }
  }

  // ---- record ------------------------------------------------------------------------------------------------------

  void event(const std::string& name, const Json& fields) {
    if (metrics_) metrics_->write(name, total_steps_, fields);
  }

  double seconds() const { return seconds_before_ + seconds_; }

  void checkpoint_now() {
    if (!store_) return;
    train::Checkpoint c;
    c.step = total_steps_;
    c.model = pack_tensors(pack_);
    c.model_metadata = pack_metadata(pack_, c.model);
    c.state["live"] = live_ != nullptr;
    if (live_) {
      const Live& live = *live_;
      c.optimizer = train_state(*live.optimizer);
      c.sparsity = live.model.sparsifier->archive();
      for (const auto& [name, tensor] : tensors_of(*live.model.network))
        c.sparsity.emplace_back(kLive + name, tensor.detach());
      for (std::size_t w = 0; w < live.chosen.size(); ++w) {
        c.sparsity.emplace_back(kPending + pack_.weights[w].name, bytes(live.chosen[w], pack_.weights[w].shape));
      }
      c.state["retraining"] = live.retraining;
      c.state["done"] = live.clock.step;
      c.state["total"] = live.clock.total_steps;
      c.state["first_epoch"] = live.first_epoch;
      c.state["lr"] = live.lr;
      c.state["running"] = {
          {"samples", live.running.samples}, {"correct", live.running.correct}, {"loss_sum", live.running.loss_sum}};
      c.state["record"] = train::to_json_line(live.record);
    }
    c.sparsity.emplace_back("torch.generator", at::detail::getDefaultCPUGenerator().get_state());
    c.state["train_seconds"] = seconds();
    c.state["metrics_position"] = metrics_->position();
    c.state["timing_position"] = timing_->position();
    c.state["weights_position"] = weights_->position();
    store_->save(c, false);
  }

  train::NamedTensors train_state(torch::optim::Optimizer& optimizer) const {
    return save_optimizer(optimizer, live_->model.sparsifier->named_parameters());
  }

  void resume(const train::Checkpoint& c) {
    pack_ = pack_from(c.model, c.model_metadata, "checkpoint");
    pack_.config = config_;
    total_steps_ = c.step;
    seconds_before_ = train::number_from_json(c.state.at("train_seconds"));
    for (const auto& [name, tensor] : c.sparsity) {
      if (name != "torch.generator") continue;
      restore_generator(tensor);
    }
    log_info(
        fmt::format("resuming at step {}: {} of {} tasks learnt", total_steps_, pack_.tasks.size(), sources_.size()));
    if (!c.state.at("live").get<bool>()) return;
    const auto generator = at::detail::getDefaultCPUGenerator().get_state();
    prepare_live();
    Live& live = *live_;
    live.retraining = c.state.at("retraining").get<bool>();
    live.clock.step = c.state.at("done").get<std::int64_t>();
    live.clock.total_steps = c.state.at("total").get<std::int64_t>();
    live.first_epoch = c.state.at("first_epoch").get<std::int64_t>();
    live.lr = train::number_from_json(c.state.at("lr"));
    live.running.samples = c.state.at("running").at("samples").get<std::int64_t>();
    live.running.correct = c.state.at("running").at("correct").get<std::int64_t>();
    live.running.loss_sum = train::number_from_json(c.state.at("running").at("loss_sum"));
    live.record = Json::parse(c.state.at("record").get<std::string>());
    const std::map<std::string, at::Tensor> saved(c.sparsity.begin(), c.sparsity.end());
    if (live.retraining) {
      Masks backward;
      for (std::size_t w = 0; w < pack_.weights.size(); ++w) {
        const at::Tensor flat = saved.at(kPending + pack_.weights[w].name).reshape({-1});
        BitMask mask(flat.numel());
        for (std::int64_t i = 0; i < flat.numel(); ++i) mask.set(i, flat.data_ptr<std::uint8_t>()[i] != 0);
        backward.push_back(minus(mask, used(pack_, w)));
        live.chosen.push_back(std::move(mask));
      }
      set_masks(live.chosen, std::move(backward));
    }
    const torch::NoGradGuard no_grad;
    for (auto& [name, tensor] : tensors_of(*live.model.network)) tensor.copy_(saved.at(kLive + name));
    live.model.sparsifier->restore(c.sparsity);
    load_optimizer(*live.optimizer, live.model.sparsifier->named_parameters(), c.optimizer);
    restore_generator(generator);
  }

  Pack pack_;
  train::RunConfig config_;
  TaskData& data_;
  std::vector<TaskSource> sources_;
  const Hooks& hooks_;
  train::RunDirectory* directory_;
  std::unique_ptr<Live> live_;
  std::vector<std::unique_ptr<data::Loader>> tests_;
  std::unique_ptr<train::CheckpointStore> store_;
  std::unique_ptr<train::MetricsWriter> metrics_, timing_, weights_;
  std::vector<std::int64_t> order_;  // joint: of the batches of order_epoch_
  std::int64_t order_epoch_ = -1;
  std::int64_t total_steps_ = 0, samples_ = 0;
  double seconds_ = 0, seconds_before_ = 0;
};

std::int64_t classes_of(const TaskSource& source, TaskData& data) {
  return source.sequence == "split" ? source.classes : data.base(source).num_classes();
}

}  // namespace

std::string pack_path(const train::RunDirectory& directory) { return (directory.path() / "pack.safetensors").string(); }

train::TrainResult learn(const train::RunConfig& config, train::RunDirectory& directory, const Hooks& hooks) {
  TaskData data;
  const Sequence plan = plan_sequence(config, data);
  const std::int64_t classes = classes_of(plan.sources.front(), data);
  Learner learner(new_pack(config, plan.input, plan.own_heads, classes), config, data, plan.sources, hooks, &directory);
  return learner.run();
}

void check_may_add(const Pack& pack, const train::RunConfig& config) {
  ESPALIER_CHECK(config.continual.method != "joint", ErrorKind::usage,
                 "[continual].method = \"joint\" learns all tasks at once: no task can be added to it");
  const std::vector<std::string> fixed = {"model.",         "reparam.", "continual.method",
                                          "continual.head", "run.seed", "sparsity.dense_layers"};
  std::string refused;
  for (const std::string& line : train::diff(pack.config, config)) {
    const bool changes =
        std::any_of(fixed.begin(), fixed.end(), [&](const auto& key) { return line.rfind(key, 0) == 0; });
    if (changes)
      refused += (refused.empty() ? "" : "\n") +
                 fmt::format("{}: the tasks in the packed network depend on it; leave it as it is", line);
  }
  ESPALIER_CHECK(refused.empty(), ErrorKind::usage, "{}", refused);
  ESPALIER_CHECK(own_heads(config.continual) == pack.own_heads || config.continual.head == "auto", ErrorKind::usage,
                 "[continual].head = \"{}\": the packed network has {} heads", config.continual.head,
                 pack.own_heads ? "own" : "shared");
}

TaskSource next_source(const Pack& pack, const train::RunConfig& config, TaskData& data) {
  std::int64_t base_classes = 0;
  if (config.continual.sequence == "split") {
    TaskSource whole;
    whole.data = config.data;
    whole.seed = seed_of(config);
    base_classes = data.base(whole).num_classes();
  }
  return task_source(config, static_cast<std::int64_t>(pack.tasks.size()) + 1, base_classes);
}

Json add_task(Pack& pack, const train::RunConfig& config, const TaskSource& source, const Hooks& hooks) {
  check_may_add(pack, config);
  TaskData data;
  const std::int64_t classes = classes_of(source, data);
  if (!pack.own_heads && !pack.tasks.empty()) {
    ESPALIER_CHECK(classes == pack.tasks.front().classes, ErrorKind::usage,
                   "{}: {} classes, and the head that the tasks of this packed network share has {}", source.text(),
                   classes, pack.tasks.front().classes);
  }
  std::vector<TaskSource> sources;
  for (const PackedTask& task : pack.tasks) {
    sources.push_back(task.source);
    sources.back().data.root = config.data.root;
  }
  sources.push_back(source);
  torch::manual_seed(reinit_seed(config, static_cast<std::int64_t>(sources.size())));
  Learner learner(pack, config, data, std::move(sources), hooks, nullptr);
  // The tensors are changed in place: what is given back must be all new, or all as it was.
  for (PackedWeight& w : learner.pack().weights) w.phi = w.phi.clone();
  for (train::NamedTensors* list : {&learner.pack().shared, &learner.pack().anchors})
    for (auto& [name, tensor] : *list) tensor = tensor.clone();
  learner.run_once();
  Json summary = learner.summarise("done");
  pack = std::move(learner.pack());
  return summary;
}

Json summary_of(const Pack& pack) {
  Json s, undefined = Json::object();
  const auto metric = [&](const char* name, const Metric& m) {
    s[name] = m.value ? Json(*m.value) : Json(nullptr);
    if (!m.value) undefined[name] = m.undefined;
  };
  const bool joint = pack.config.continual.method == "joint";
  const auto none = [](const char* why) { return Metric{std::nullopt, why}; };
  constexpr const char* kAtOnce = "all tasks are learnt at once: there is no before and after";
  metric("average_accuracy", pack.accuracies.average());
  metric("backward_transfer", joint ? none(kAtOnce) : pack.accuracies.backward_transfer());
  metric("forward_transfer", joint ? none(kAtOnce)
                             : pack.sharing() == Sharing::separate
                                 ? none("each task has a network of its own: nothing is transferred")
                             : pack.own_heads ? none("a task's head does not exist before the task is learnt")
                                              : pack.accuracies.forward_transfer());
  metric("forgetting", joint ? none(kAtOnce) : pack.accuracies.forgetting());
  s["undefined"] = undefined;
  s["capacity_used"] = capacity_used(pack);
  const Json layers = capacity_json(pack);
  auto weights = layers.at("weights").get<std::int64_t>(), nnz = layers.at("used").get<std::int64_t>();
  if (pack.sharing() == Sharing::separate) {  // nothing is shared: each task's own, whole
    for (const PackedTask& task : pack.tasks)
      for (const auto& [name, tensor] : task.own)
        if (tensor.dim() > 1) nnz = weights += tensor.numel();
  }
  s["sparsity"] = weights == 0 ? Json(nullptr) : Json(1 - static_cast<double>(nnz) / static_cast<double>(weights));
  s["nnz"] = nnz;
  s["weights"] = weights;
  Json rows = Json::array(), tasks = Json::array();
  for (const auto& row : pack.accuracies.rows()) {
    Json list = Json::array();
    for (const auto& r : row) list.push_back(r ? Json(*r) : Json(nullptr));
    rows.push_back(list);
  }
  s["accuracy_matrix"] = rows;
  for (std::size_t t = 0; t < pack.tasks.size(); ++t) {
    const auto number = static_cast<std::int64_t>(t) + 1;
    const auto now = pack.accuracies.at(pack.accuracies.learnt(), number - 1);
    Json task = {{"task", number}, {"name", pack.tasks[t].source.text()}, {"classes", pack.tasks[t].classes}};
    task["test_accuracy"] = now ? Json(*now) : Json(nullptr);
    task.update(pack.tasks[t].record);
    tasks.push_back(task);
  }
  s["per_task"] = tasks;
  s["capacity"] = layers;
  return s;
}

}  // namespace espalier::continual
