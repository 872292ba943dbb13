/// What a configuration describes, built: data, model, sparsifier, optimiser. Training, evaluation and pruning start
/// from here.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "espalier/data/dataset.h"
#include "espalier/methods/sparsifier.h"
#include "espalier/nn/network.h"
#include "espalier/train/checkpoint.h"
#include "espalier/train/run_config.h"
#include "espalier/train/storage_choice.h"

namespace espalier::train {

/// The data of a run: both splits in memory, and loaders over them. The test split is to be read once, at the end of a
/// run.
class RunData {
 public:
  explicit RunData(const RunConfig& config);
  /// The same over a data set that is there already, split and normalised as [data] says.
  RunData(const RunConfig& config, data::Dataset dataset);

  const data::Dataset& dataset() const { return dataset_; }
  nn::InputShape input_shape() const;
  const data::Normalisation& normalisation() const { return normalisation_; }
  std::int64_t train_size() const { return static_cast<std::int64_t>(split_.train.size()); }
  bool has_validation() const { return !split_.validation.empty(); }

  data::Loader train_batches() const;  ///< shuffled, augmented
  data::Loader train_samples() const;  ///< the same images, in order and as they are: for evaluation
  data::Loader validation_batches() const;
  data::Loader test_batches() const;
  /// What Probe::batch gives: from the order of the first epoch of training, without augmentation.
  ProbeBatch probe_batch(std::int64_t per_class, std::int64_t index) const;

 private:
  data::Loader plain(const data::Images& images, const std::vector<std::int64_t>& indices) const;

  data::DataOptions options_;
  std::int64_t batch_size_;
  std::uint64_t seed_;
  data::Dataset dataset_;
  data::Split split_;
  data::Normalisation normalisation_;
};

/// Length of a run, from [train].
Clock planned_clock(const TrainOptions& train, std::int64_t batches_per_epoch);

/// The factor on the learning rate for the step after `done` steps.
double schedule_factor(const ScheduleOptions& schedule, std::int64_t done, const Clock& clock);

struct Evaluation {
  std::int64_t samples = 0, correct = 0;
  double loss_sum = 0;  ///< cross-entropy, nats, summed over samples
  double accuracy() const { return samples == 0 ? 0 : static_cast<double>(correct) / static_cast<double>(samples); }
  double loss() const { return samples == 0 ? 0 : loss_sum / static_cast<double>(samples); }
};

/// In evaluation mode, by sums over samples: a short last batch counts as what it is. Leaves the model's mode as it
/// was.
Evaluation evaluate(nn::Network& network, const data::Loader& batches);

/// The optimiser of [optim] over the parameters of the sparsifier; `weight_decay` is the part that the Sparsifier must
/// do itself.
std::unique_ptr<torch::optim::Optimizer> make_optimizer(const RunConfig& config, const Sparsifier& sparsifier);
WeightDecay sparsifier_decay(const RunConfig& config);

/// A model under a sparsifier.
struct SparseModel {
  std::shared_ptr<nn::Network> network;
  std::unique_ptr<Sparsifier> sparsifier;
  std::vector<LayerChoice> choices;  ///< what was measured for storage = "auto"
};
/// What a model begins with, beside its configuration.
struct ModelStart {
  const RunData* data = nullptr;          ///< for methods that look at it before training
  const NamedTensors* weights = nullptr;  ///< of step 0, in place of a draw or of [method].structure's
  bool restored = false;                  ///< a checkpoint's masks will follow: static methods need not draw theirs
};
/// `compressed`, where given, overrides model.storage: what a checkpoint holds.
SparseModel make_sparse_model(const RunConfig& config, const nn::InputShape& input, std::int64_t classes,
                              const Clock& clock, const nn::Compress& compressed = {}, const ModelStart& start = {});

/// The network of a configuration as a method sees it before training. Refers to `config` and what `start` points to.
Probe make_probe(const RunConfig& config, const nn::Network& network, const ModelStart& start);

/// The layers whose weights these tensors (Checkpoint::sparsity) hold compressed.
nn::Compress stored_compressed(const NamedTensors& sparsity);

/// Parameters and buffers by their names in Python's state_dict, and what SparseWeight::state adds: masks, and
/// compressed rows in place of compressed weights.
NamedTensors state_dict(const SparseModel& model);

/// Text to stand in the file of these tensors: "<name>.shape" of each compressed weight, e.g. "[300, 784]".
std::map<std::string, std::string> state_metadata(const SparseModel& model);

/// Copies tensors of those names into the network; every parameter and buffer must be there in its shape. Error(data)
/// names the first that is not; `source` stands in the message.
/// `undrawn`: compressed weights that are dense in `tensors` stay as they are (begin_with has told them where to look).
void load_state_dict(nn::Network& network, const NamedTensors& tensors, const std::string& source,
                     bool undrawn = false);

/// The trained model of a run directory or a checkpoint folder (latest checkpoint of a run, unless `best`).
struct LoadedRun {
  RunConfig config;
  std::filesystem::path directory;  ///< of the run
  Checkpoint checkpoint;
};
LoadedRun load_run(const std::filesystem::path& run_or_checkpoint, bool best = false);

/// Network and sparsifier with the weights and masks of the checkpoint.
SparseModel restore_model(const LoadedRun& run, const nn::InputShape& input, std::int64_t classes, const Clock& clock);

/// One row for each weight layer: what it costs dense, and what is kept.
struct LayerReport {
  std::string name;     ///< of the weight: "fc1.weight"
  std::string kind;     ///< linear, conv2d
  std::string storage;  ///< dense, masked, compressed
  std::vector<std::int64_t> shape;
  std::int64_t weights = 0, nnz = 0;
  std::int64_t macs_dense = 0;  ///< multiply-accumulates of one sample, dense
  std::int64_t macs = 0;        ///< those of the kept weights
  bool sparsified = false;      ///< false: one of the dense_layers
};
std::vector<LayerReport> layer_report(nn::Network& network, const Sparsifier& sparsifier);

}  // namespace espalier::train
