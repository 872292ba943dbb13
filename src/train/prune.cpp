#include "espalier/train/prune.h"

#include <algorithm>
#include <cmath>

#include "espalier/core/error.h"
#include "espalier/methods/magnitude.h"
#include "espalier/nn/loss.h"

namespace espalier::train {
namespace {

void prune(const Sparsifier& sparsifier, double keep, const std::string& distribution) {
  const auto& weights = sparsifier.sparsified();
  if (distribution == "notebook") {
    for (std::size_t l = 0; l < weights.size(); ++l) {
      const double share = l + 1 == weights.size() ? std::min(1.0, 2 * keep) : keep;
      const auto budget = static_cast<std::int64_t>(share * static_cast<double>(weights[l]->numel()));
      prune_by_magnitude(*weights[l], std::min(budget, weights[l]->nnz()));
    }
  } else if (static_cast<double>(sparsifier.nnz()) > keep * static_cast<double>(sparsifier.positions())) {
    prune_by_magnitude(weights, 1 - keep, distribution);
  }
}

/// Trains what the masks leave, at a constant rate; the order of samples is that of the epochs after the run's.
void retrain(const RunConfig& config, const RunData& data, SparseModel& model, std::int64_t first_step,
             std::int64_t steps) {
  const auto optimizer = make_optimizer(config, *model.sparsifier);
  const data::Loader batches = data.train_batches();
  const std::int64_t first_epoch = (first_step + batches.batches_per_epoch() - 1) / batches.batches_per_epoch();
  model.network->train();
  for (std::int64_t s = 0; s < steps; ++s) {
    const data::Batch batch =
        batches.batch(first_epoch + s / batches.batches_per_epoch(), s % batches.batches_per_epoch());
    const at::Tensor loss =
        nn::cross_entropy(model.network->logits(batch.images), batch.labels, config.train.label_smoothing);
    ESPALIER_CHECK(std::isfinite(loss.item<double>()), ErrorKind::diverged,
                   "retraining: the loss is {} at step {}; lower --retrain-lr ({:g})", loss.item<double>(), s + 1,
                   config.optim.lr);
    loss.backward();
    model.sparsifier->step(*optimizer);
  }
}

}  // namespace

std::vector<double> geometric_space(double first, double last, std::int64_t count) {
  std::vector<double> values;
  for (std::int64_t i = 0; i < count; ++i) {
    const double t = count > 1 ? static_cast<double>(i) / static_cast<double>(count - 1) : 0;
    values.push_back(i == 0 ? first : i + 1 == count ? last : first * std::pow(last / first, t));
  }
  return values;
}

std::vector<PrunePoint> prune_curve(const LoadedRun& run, const PruneOptions& options,
                                    const std::function<void(const PrunePoint&, const SparseModel&)>& done) {
  for (const double keep : options.keep) {
    ESPALIER_CHECK(keep >= 0 && keep <= 1, ErrorKind::usage,
                   "a share of {} to keep is out of range; expected in [0, 1]", keep);
  }
  LoadedRun pruned = run;  // the masks come from here now, not from the run's method
  pruned.config.method = MethodOptions("dense");
  pruned.config.sparsity.sparsity = 0;
  pruned.config.optim.lr = options.retrain_lr > 0 ? options.retrain_lr : run.config.optim.lr / 10;
  const RunData data(pruned.config);
  ESPALIER_CHECK(options.split != "validation" || data.has_validation(), ErrorKind::usage,
                 "the run has no validation split ([data].validation = 0); use the test split");
  const data::Loader split = options.split == "test"         ? data.test_batches()
                             : options.split == "validation" ? data.validation_batches()
                                                             : data.train_samples();
  const Clock clock = planned_clock(pruned.config.train, data.train_batches().batches_per_epoch());
  const std::int64_t steps = options.retrain.in_steps(clock);

  std::vector<PrunePoint> points;
  for (const double keep : options.keep) {
    SparseModel model = restore_model(pruned, data.input_shape(), data.dataset().num_classes(), clock);
    prune(*model.sparsifier, keep, options.distribution);
    PrunePoint point;
    point.keep = keep;
    point.nnz = model.sparsifier->nnz();
    point.weights = model.sparsifier->positions();
    for (const SparseWeight* w : model.sparsifier->sparsified()) point.layer_nnz.push_back(w->nnz());
    point.evaluation = point.before_retraining = evaluate(*model.network, split);
    if (steps > 0) {
      retrain(pruned.config, data, model, run.checkpoint.step, steps);
      point.evaluation = evaluate(*model.network, split);
    }
    points.push_back(point);
    if (done) done(point, model);
  }
  return points;
}

}  // namespace espalier::train
