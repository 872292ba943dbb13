#include "espalier/train/trainer.h"

#include <sys/resource.h>
#include <torch/torch.h>

#include <chrono>
#include <cmath>
#include <map>

#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/kernels/dispatch.h"
#include "espalier/nn/loss.h"
#include "espalier/train/checkpoint.h"
#include "espalier/train/durable_file.h"
#include "espalier/train/environment.h"
#include "espalier/train/experiment.h"
#include "espalier/train/init_report.h"
#include "espalier/train/metrics.h"
#include "espalier/train/tensorboard.h"
#include "espalier/train/weight_record.h"

namespace espalier::train {
namespace {

using SteadyClock = std::chrono::steady_clock;

double seconds_since(SteadyClock::time_point start) {
  return std::chrono::duration<double>(SteadyClock::now() - start).count();
}

std::uint64_t peak_rss_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::uint64_t>(usage.ru_maxrss) * 1024;
}

/// Sums over training batches since the last evaluation, saved in checkpoints: an `epoch` event must not depend on a
/// restart.
struct Running {
  std::int64_t samples = 0, correct = 0;
  double loss_sum = 0;
  double loss() const { return samples == 0 ? 0 : loss_sum / static_cast<double>(samples); }
  double accuracy() const { return samples == 0 ? 0 : static_cast<double>(correct) / static_cast<double>(samples); }
};

bool falls_on(std::int64_t step, const Duration& every, const Clock& clock) {
  const std::int64_t distance = every.in_steps(clock);
  return distance > 0 && step % distance == 0;
}

class Run {
 public:
  Run(const RunConfig& config, RunDirectory& directory, const TrainHooks& hooks)
      : config_(config),
        directory_(directory),
        hooks_(hooks),
        data_(config),
        batches_(data_.train_batches()),
        clock_(planned_clock(config.train, batches_.batches_per_epoch())),
        store_(directory.path(), config.checkpoint.keep),
        start_(store_.load_latest()),
        model_(make_sparse_model(config, data_.input_shape(), data_.dataset().num_classes(), clock_,
                                 start_ ? stored_compressed(start_->sparsity) : nn::Compress(),
                                 {&data_, nullptr, start_.has_value()})),
        optimizer_(make_optimizer(config, *model_.sparsifier)) {
    // Dropout draws from LibTorch's own generator: seeded here, its state is part of every checkpoint.
    torch::manual_seed(static_cast<std::uint64_t>(config.run.seed));
  }

  TrainResult run() {
    resume_or_start();
    first_step_ = step_;
    began_ = SteadyClock::now();
    while (step_ < clock_.total_steps) {
      if (hooks_.stop != nullptr && hooks_.stop->load()) return stop();
      one_step();
    }
    return finish();
  }

 private:
  void resume_or_start() {
    const auto checkpoint = std::exchange(start_, std::nullopt);
    if (!checkpoint) {
      metrics_ = std::make_unique<MetricsWriter>(directory_.metrics());
      timing_ = std::make_unique<MetricsWriter>(directory_.timing());
      weights_ = std::make_unique<MetricsWriter>(directory_.weights());
      begin_tensorboard(nullptr);
      write_topology();
      write_alpha();
      write_structure();
      weights_->write("weights", 0, weight_record(*model_.sparsifier));
      return;
    }
    const auto& state = checkpoint->state;
    load_state_dict(*model_.network, checkpoint->model, "checkpoint");
    NamedTensors sparsity = checkpoint->sparsity;
    for (const auto& [name, tensor] : sparsity) {
      if (name != "torch.generator") continue;
      auto generator = at::detail::getDefaultCPUGenerator();
      const std::lock_guard<std::mutex> lock(generator.mutex());
      generator.set_state(tensor);
    }
    model_.sparsifier->restore(sparsity);
    load_optimizer(*optimizer_, model_.sparsifier->named_parameters(), checkpoint->optimizer);
    step_ = checkpoint->step;
    running_.samples = state.at("running").at("samples");
    running_.correct = state.at("running").at("correct");
    running_.loss_sum = number_from_json(state.at("running").at("loss_sum"));
    seconds_before_ = number_from_json(state.at("train_seconds"));
    samples_before_ = state.at("samples_trained");
    if (state.contains("best_accuracy")) best_accuracy_ = number_from_json(state.at("best_accuracy"));
    best_nnz_ = state.at("best_nnz");
    if (state.contains("last_validation")) last_validation_ = number_from_json(state.at("last_validation"));
    metrics_ = std::make_unique<MetricsWriter>(directory_.metrics(), state.at("metrics_position").get<std::int64_t>());
    timing_ = std::make_unique<MetricsWriter>(directory_.timing(), state.at("timing_position").get<std::int64_t>());
    // Checkpoints of before 0.2 know no weights.jsonl: it begins here then.
    weights_ = std::make_unique<MetricsWriter>(directory_.weights(), state.value("weights_position", std::int64_t{0}));
    begin_tensorboard(state.value("tensorboard", Json()));
    log_info(fmt::format("resuming at step {} of {}", step_, clock_.total_steps));
  }

  /// state: of the checkpoint, or null.
  void begin_tensorboard(const Json& state) {
    if (!config_.log.tensorboard) return;
    tensorboard_ = std::make_unique<TensorBoard>(directory_.path() / "tb", state, step_);
    if (step_ == 0) tensorboard_->text("config", 0, "```toml\n" + to_toml(config_) + "```\n");
    const auto record = [this](const std::string& event, std::int64_t step, const Json& fields) {
      tensorboard_->record(event, step, fields);
    };
    metrics_->also(record);
    weights_->also(record);
  }

  void one_step() {
    const auto start = SteadyClock::now();
    const std::int64_t per_epoch = clock_.steps_per_epoch;
    const data::Batch batch = batches_.batch(step_ / per_epoch, step_ % per_epoch);
    const double rate = config_.optim.lr * schedule_factor(config_.schedule, step_, clock_);
    for (auto& group : optimizer_->param_groups()) group.options().set_lr(rate);

    std::int64_t correct = 0;
    const at::Tensor loss =
        nn::cross_entropy(model_.network->logits(batch.images), batch.labels, config_.train.label_smoothing, &correct);
    const double loss_value = loss.item<double>();
    if (!std::isfinite(loss_value)) diverged(batch, loss_value, rate);
    loss.backward();
    if (config_.train.clip_norm > 0) {
      torch::nn::utils::clip_grad_norm_(model_.network->parameters(), config_.train.clip_norm);
    }
    model_.sparsifier->observe_loss(loss_value);
    model_.sparsifier->step(*optimizer_);
    write_alpha();
    ++step_;

    running_.samples += batch.size();
    running_.loss_sum += loss_value * static_cast<double>(batch.size());
    running_.correct += correct;
    samples_ += batch.size();
    seconds_ += seconds_since(start);
    write_topology();
    if (weight_record_due(step_, clock_.total_steps)) {
      weights_->write("weights", step_, weight_record(*model_.sparsifier));
    }
    if (falls_on(step_, config_.log.every, clock_)) {
      step_record_["loss"] = loss_value;
      step_record_["lr"] = rate;
      step_record_["sparsity"] = model_.sparsifier->sparsity();
      metrics_->write("step", step_, step_record_);
    }
    report_progress();
    report_speed();
    const bool last = step_ == clock_.total_steps;
    if (step_ % per_epoch == 0 || last) end_of_epoch();
    if (last || falls_on(step_, config_.train.eval_every, clock_)) validate();
    if (last || falls_on(step_, config_.checkpoint.every, clock_)) save(true);
  }

  void end_of_epoch() {
    const double epoch = static_cast<double>(step_) / static_cast<double>(clock_.steps_per_epoch);
    metrics_->write("epoch", step_,
                    {{"epoch", epoch},
                     {"train_loss", running_.loss()},
                     {"train_accuracy", running_.accuracy()},
                     {"nnz", model_.sparsifier->nnz()},
                     {"sparsity", model_.sparsifier->sparsity()}});
    timing_->write("epoch", step_,
                   {{"epoch", epoch},
                    {"train_seconds", seconds()},
                    {"samples_per_second", samples_per_second()},
                    {"recording_seconds", metrics_->seconds() + weights_->seconds()}});
    log_info(fmt::format("epoch {:g}: train loss {:.4f}, accuracy {:.4f}, sparsity {:.4f}, {:.0f} samples/s", epoch,
                         running_.loss(), running_.accuracy(), model_.sparsifier->sparsity(), samples_per_second()));
    running_ = {};
  }

  void validate() {
    if (!data_.has_validation()) return;
    const Evaluation e = evaluate(*model_.network, data_.validation_batches());
    last_validation_ = e.accuracy();
    metrics_->write("eval", step_,
                    {{"split", "validation"}, {"loss", e.loss()}, {"accuracy", e.accuracy()}, {"samples", e.samples}});
    log_info(fmt::format("step {}: validation accuracy {:.4f}, loss {:.4f}", step_, e.accuracy(), e.loss()));
  }

  void write_topology() {
    const auto layers = model_.sparsifier->take_topology();
    if (layers.empty()) return;
    Json list = Json::array();
    std::int64_t dropped = 0, grown = 0, ever = 0, positions = 0, dead = 0;
    bool counted = true;
    if (macs_of_.empty()) {
      for (const LayerReport& l : layer_report(*model_.network, *model_.sparsifier)) {
        macs_of_[l.name] = l.macs_dense / l.weights;  // each weight is used at as many places as any other
        if (!l.sparsified) macs_of_dense_layers_ += l.macs;
      }
    }
    std::int64_t macs = macs_of_dense_layers_;
    for (const LayerTopology& l : layers) {
      Json row = {{"name", l.name}, {"nnz", l.nnz}, {"dropped", l.dropped}, {"grown", l.grown}};
      row["threshold"] = l.threshold ? Json(*l.threshold) : Json(nullptr);
      row["ever_active"] =
          l.ever_active ? Json(static_cast<double>(*l.ever_active) / static_cast<double>(l.positions)) : Json(nullptr);
      row["macs"] = macs_of_.at(l.name) * l.nnz;
      row["dead_outputs"] = l.dead_outputs;
      row["dead_inputs"] = l.dead_inputs;
      macs += macs_of_.at(l.name) * l.nnz;
      counted = counted && l.ever_active;
      ever += l.ever_active.value_or(0);
      positions += l.positions;
      dead += l.dead_outputs;
      list.push_back(row);
      dropped += l.dropped;
      grown += l.grown;
      if (l.nnz == 0) {
        const std::string text = fmt::format("{} has no weight left: nothing passes through this layer", l.name);
        metrics_->write("warning", step_, {{"text", text}});
        log_warning(text);
      }
    }
    metrics_->write(
        "topology", step_,
        {{"nnz", model_.sparsifier->nnz()},
         {"sparsity", model_.sparsifier->sparsity()},
         {"dropped", dropped},
         {"grown", grown},
         {"ever_active", counted ? Json(static_cast<double>(ever) / static_cast<double>(positions)) : Json(nullptr)},
         {"macs", macs},
         {"dead_outputs", dead},
         {"layers", list}});
  }

  /// What alpha's control loop saw of the weights, `step` steps into the run, and did before the step after.
  void write_alpha() {
    const auto trace = model_.sparsifier->take_alpha_trace();
    if (!trace) return;
    const auto fields = [&](const AlphaRecord& r) {
      Json row = {{"alpha", r.alpha}, {"near_zero", r.near_zero}, {"signal", r.signal}};
      if (trace->start) return row;
      row["before"] = r.before;
      row["signal_before"] = r.signal_before ? Json(*r.signal_before) : Json(nullptr);
      row["verdict"] = r.verdict == AlphaControl::Verdict::increase ? "increase" : "decrease";
      row["slow_start"] = r.slow_start;
      return row;
    };
    Json event = Json::object();
    if (trace->loss) event["loss"] = *trace->loss;
    if (trace->records.size() == 1 && trace->records[0].weight.empty()) {
      event.update(fields(trace->records[0]));
    } else {
      event["layers"] = Json::array();
      for (const AlphaRecord& r : trace->records) {
        Json row = {{"name", r.weight}};
        row.update(fields(r));
        event["layers"].push_back(row);
      }
    }
    metrics_->write("alpha", trace->step, event);
    for (const AlphaRecord& r : trace->records) {
      log_info(fmt::format("step {}: {}{}alpha {:.4g}{}, near zero {:.4f}", trace->step, r.weight,
                           r.weight.empty() ? "" : ": ", r.before,
                           trace->start ? "" : fmt::format(" -> {:.4g}", r.alpha), r.near_zero));
    }
  }

  /// init.json: widths and the trace of the path kernel before the first step, as `espalier init --json` has them. The
  /// trace needs a dense copy in double precision: only where that is too small to be seen in peak_rss_bytes.
  void write_structure() {
    constexpr std::int64_t kMostWeights = std::int64_t{1} << 22;
    if (model_.sparsifier->positions() > kMostWeights) return;
    try {
      write_file_atomically(directory_.path() / "init.json", to_json_text(to_json(init_report(config_, model_))));
    } catch (const Error& e) {
      if (e.kind() == ErrorKind::failed) throw;  // the disk
      log(LogLevel::debug, fmt::format("no init.json: {}", e.what()));
    }
  }

  /// `planned`: part of the run, and so of metrics.jsonl; a checkpoint that a signal has asked for is not.
  void save(bool planned) {
    (planned ? metrics_ : timing_)->write("checkpoint", step_);
    // Best by the last validation among the checkpoints with the fewest weights: a dense network from before the
    // pruning is not what the run is for. Without a validation split, the latest.
    const std::int64_t nnz = model_.sparsifier->nnz();
    const bool best =
        planned && (!last_validation_ || !best_accuracy_ || nnz < best_nnz_ || *last_validation_ > *best_accuracy_);
    if (best && last_validation_) best_accuracy_ = last_validation_;
    if (best) best_nnz_ = nnz;
    Checkpoint c;
    c.step = step_;
    c.model = state_dict(model_);
    c.model_metadata = state_metadata(model_);
    c.optimizer = save_optimizer(*optimizer_, model_.sparsifier->named_parameters());
    c.sparsity = model_.sparsifier->archive();
    c.sparsity.emplace_back("torch.generator", at::detail::getDefaultCPUGenerator().get_state());
    c.state["running"] = {
        {"samples", running_.samples}, {"correct", running_.correct}, {"loss_sum", running_.loss_sum}};
    c.state["train_seconds"] = seconds();
    c.state["samples_trained"] = samples_before_ + samples_;
    if (best_accuracy_) c.state["best_accuracy"] = *best_accuracy_;
    c.state["best_nnz"] = best_nnz_;
    if (last_validation_) c.state["last_validation"] = *last_validation_;
    c.state["metrics_position"] = metrics_->position();
    c.state["timing_position"] = timing_->position();
    c.state["weights_position"] = weights_->position();
    if (tensorboard_) c.state["tensorboard"] = tensorboard_->position();
    store_.save(c, best);
  }

  TrainResult stop() {
    save(false);
    Json summary = summarise("stopped");
    directory_.write_summary(summary);
    return {Outcome::stopped, summary};
  }

  TrainResult finish() {
    Json summary = summarise("done");
    if (last_validation_) summary["val_accuracy"] = *last_validation_;
    const Evaluation test = evaluate(*model_.network, data_.test_batches());
    summary["test_accuracy"] = test.accuracy();
    summary["test_loss"] = test.loss();
    metrics_->write(
        "eval", step_,
        {{"split", "test"}, {"loss", test.loss()}, {"accuracy", test.accuracy()}, {"samples", test.samples}});
    metrics_->write("end", step_, {{"status", "done"}});
    for (auto* file : {metrics_.get(), timing_.get(), weights_.get()}) file->position();
    if (tensorboard_) tensorboard_->position();
    directory_.write_summary(summary);
    return {Outcome::done, summary};
  }

  Json summarise(const std::string& status) {
    const Sparsifier& sparsifier = *model_.sparsifier;
    std::int64_t macs = 0, macs_dense = 0, parameters = 0;
    Json layers = Json::array();
    for (const LayerReport& l : layer_report(*model_.network, sparsifier)) {
      macs += l.macs;
      macs_dense += l.macs_dense;
      layers.push_back({{"name", l.name}, {"path", l.storage}, {"shape", l.shape}, {"nnz", l.nnz}, {"macs", l.macs}});
      for (const LayerChoice& c : model_.choices) {
        if (c.layer + ".weight" != l.name || c.times.dense_us == 0) continue;
        layers.back()["dense_us"] = c.times.dense_us;
        layers.back()["compressed_us"] = c.times.compressed_us;
      }
    }
    for (const auto& p : model_.network->parameters()) parameters += p.numel();
    Json s;
    s["schema"] = 1;
    s["status"] = status;
    s["model"] = config_.model.name;
    s["data"] = config_.data.name;
    s["method"] = config_.method.name();
    s["reparam"] = config_.reparam.name;
    s["alpha"] = config_.reparam.alpha;
    if (sparsifier.adapts_alpha()) {  // as it is now; one for each layer stands in "storage"
      const double first = sparsifier.weights().front()->reparametrisation().alpha();
      s["alpha"] = config_.reparam.adaptive.per == "network" ? Json(first) : Json(nullptr);
      for (std::size_t l = 0; l < layers.size(); ++l)
        layers[l]["alpha"] = sparsifier.weights()[l]->reparametrisation().alpha();
    }
    s["seed"] = config_.run.seed;
    s["epochs"] = static_cast<double>(step_) / static_cast<double>(clock_.steps_per_epoch);
    s["steps"] = step_;
    s["test_accuracy"] = nullptr;
    s["val_accuracy"] = nullptr;
    s["test_loss"] = nullptr;
    s["sparsity"] = sparsifier.sparsity();
    s["nnz"] = sparsifier.nnz();
    s["weights"] = sparsifier.positions();
    s["parameters"] = parameters;
    s["flops_forward"] = 2 * macs;
    s["flops_forward_dense"] = 2 * macs_dense;
    s["train_seconds"] = seconds();
    s["samples_per_second"] = samples_per_second();
    s["peak_rss_bytes"] = peak_rss_bytes();
    s["storage"] = layers;
    s["threads"] = at::get_num_threads();
    s["isa"] = kernels::active().isa;
    return s;
  }

  /// Finds the first layer whose weight or output is not finite, and ends the run.
  [[noreturn]] void diverged(const data::Batch& batch, double loss, double rate) {
    std::string place = "the loss itself";
    const torch::NoGradGuard no_grad;
    bool found = false;
    const auto parameters = model_.network->named_parameters();
    model_.network->forward(batch.images, [&](const std::string& layer, const at::Tensor& output) {
      if (found) return;
      for (const char* kind : {".weight", ".values", ".bias"}) {
        const at::Tensor* p = parameters.find(layer + kind);
        if (p == nullptr || p->isfinite().all().item<bool>()) continue;
        place = fmt::format("{}{} ({} of {} values)", layer, kind,
                            p->numel() - p->isfinite().sum().item<std::int64_t>(), p->numel());
        found = true;
        return;
      }
      if (output.isfinite().all().item<bool>()) return;
      place = fmt::format("the output of {} ({} of {} values)", layer,
                          output.numel() - output.isfinite().sum().item<std::int64_t>(), output.numel());
      found = true;
    });
    const std::string text = fmt::format(
        "step {}: the loss is {}; the first layer at fault is {}. The learning rate was {:g}: lower [optim].lr, "
        "or set [train].clip_norm or [schedule].warmup",
        step_ + 1, loss, place, rate);
    metrics_->write("end", step_, {{"status", "diverged"}, {"text", text}});
    for (auto* file : {metrics_.get(), timing_.get(), weights_.get()}) file->position();
    Json summary = summarise("diverged");
    summary["error"] = text;
    directory_.write_summary(summary);
    throw Error(ErrorKind::diverged, text);
  }

  double seconds() const { return seconds_before_ + seconds_; }
  double samples_per_second() const {
    return seconds() > 0 ? static_cast<double>(samples_before_ + samples_) / seconds() : 0;
  }

  /// Now and then to timing.jsonl, for whoever watches from outside.
  void report_speed() {
    constexpr auto kEvery = std::chrono::seconds(5);
    const auto now = SteadyClock::now();
    if (now - speed_reported_ < kEvery) return;
    speed_reported_ = now;
    timing_->write("step", step_,
                   {{"total_steps", clock_.total_steps},
                    {"steps_per_epoch", clock_.steps_per_epoch},
                    {"loss", running_.loss()},
                    {"accuracy", running_.accuracy()},
                    {"train_seconds", seconds()},
                    {"samples_per_second", seconds_ > 0 ? static_cast<double>(samples_) / seconds_ : 0},
                    {"seconds_left", seconds_left()}});
  }

  /// By the time since this process began, evaluation and checkpoints included.
  double seconds_left() const {
    if (samples_ == 0) return 0;
    const auto steps = static_cast<double>(step_ - first_step_);
    return seconds_since(began_) / steps * static_cast<double>(clock_.total_steps - step_);
  }

  void report_progress() const {
    if (!hooks_.progress) return;
    Progress p;
    p.step = step_;
    p.total_steps = clock_.total_steps;
    p.steps_per_epoch = clock_.steps_per_epoch;
    p.loss = running_.loss();
    p.accuracy = running_.accuracy();
    p.sparsity = model_.sparsifier->sparsity();
    p.samples_per_second = seconds_ > 0 ? static_cast<double>(samples_) / seconds_ : 0;
    p.seconds_left = seconds_left();
    hooks_.progress(p);
  }

  const RunConfig& config_;
  RunDirectory& directory_;
  const TrainHooks& hooks_;
  RunData data_;
  data::Loader batches_;
  Clock clock_;
  CheckpointStore store_;
  std::optional<Checkpoint> start_;  // where the run goes on from
  SparseModel model_;
  std::unique_ptr<torch::optim::Optimizer> optimizer_;
  std::unique_ptr<TensorBoard> tensorboard_;  // metrics_ and weights_ write to it
  std::unique_ptr<MetricsWriter> metrics_, timing_, weights_;
  std::int64_t step_ = 0, first_step_ = 0;
  SteadyClock::time_point began_, speed_reported_;
  Running running_;
  Json step_record_;  // made once: its keys are those of every step
  std::optional<double> best_accuracy_, last_validation_;
  std::int64_t best_nnz_ = 0;
  std::map<std::string, std::int64_t> macs_of_;  // multiply-accumulates of one kept weight, by layer
  std::int64_t macs_of_dense_layers_ = 0;
  std::int64_t samples_ = 0, samples_before_ = 0;  // trained in this process, and before it
  double seconds_ = 0, seconds_before_ = 0;        // in training steps: data, forward, backward, update
};

}  // namespace

TrainResult train(const RunConfig& config, RunDirectory& directory, const TrainHooks& hooks) {
  return Run(config, directory, hooks).run();
}

}  // namespace espalier::train
