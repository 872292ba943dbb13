/// Pruning after training: how accurate a trained network still is with only some of its weights, with or without
/// retraining.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "espalier/train/experiment.h"

namespace espalier::train {

struct PruneOptions {
  std::vector<double> keep;              ///< shares of the sparsifiable weights to keep, each in [0, 1]
  std::string distribution = "uniform";  ///< uniform, er, erk, global, notebook (see prune_curve)
  std::string split = "test";            ///< test, validation or train: where accuracy is measured
  Duration retrain;                      ///< 0it: none
  double retrain_lr = 0;                 ///< constant; 0: a tenth of [optim].lr
};

struct PrunePoint {
  double keep = 0;           ///< as asked
  std::int64_t nnz = 0;      ///< kept
  std::int64_t weights = 0;  ///< of so many
  std::vector<std::int64_t> layer_nnz;
  Evaluation evaluation;  ///< after retraining, if any
  Evaluation before_retraining;
};

/// Prunes the model of the checkpoint by magnitude |w| to each share, each time from the trained weights. `notebook` is
/// the protocol of the Powerpropagation notebook: each layer keeps int(p n) of its n weights, the last one int(min(1,
/// 2p) n). A share above what a sparse run still has leaves the run as it is. `done` is called after each point with
/// the pruned model.
std::vector<PrunePoint> prune_curve(const LoadedRun& run, const PruneOptions& options,
                                    const std::function<void(const PrunePoint&, const SparseModel&)>& done = {});

/// numpy.geomspace(first, last, count): each a constant factor after the one before, both ends exact.
std::vector<double> geometric_space(double first, double last, std::int64_t count);

}  // namespace espalier::train
