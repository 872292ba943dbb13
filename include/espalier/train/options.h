/// The tables [run] [train] [optim] [schedule] [checkpoint] [log] [continual] of a configuration. Plain structs: what
/// each key means to a run is decided where it is read (src/train/), what it means to a user is written here once.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "espalier/core/options.h"

namespace espalier::train {

/// Table [run]: what the run is called and what it runs on.
struct RunOptions {
  std::string name;
  std::int64_t seed = 1;
  std::int64_t threads = 0;
  std::string device = "cpu";
  std::string structure_from;
  std::string values_from;
  void describe(Describe& d) {
    d("name", name, "name of the run directory under runs/; empty: made from the time, the model and the method");
    d("seed", seed, "seed of every random stream: weights, masks, order of samples, augmentation, split", at_least(0));
    d("threads", threads, "compute threads; 0: all the cores that the process may use", {0, 4096, false, false});
    d("device", device, "where the run computes", {"cpu"});
    d("structure_from", structure_from,
      "a run (or one of its checkpoints) whose masks this one starts from; empty: the method draws them");
    d("values_from", values_from,
      "RUN@0: this one starts from the values that RUN started from; RUN, or one of its checkpoints: from the values "
      "there, where a position is kept in both; empty: fresh ones");
  }
};

/// Table [train]: how long, on what batches. Exactly one of epochs and steps is above 0; setting one in a layer of the
/// configuration (file, --set, …) replaces the other of the layers below.
struct TrainOptions {
  double epochs = 10;
  std::int64_t steps = 0;
  std::int64_t batch_size = 128;
  double label_smoothing = 0;
  double clip_norm = 0;
  Duration eval_every = Duration::epochs(1);
  void describe(Describe& d) {
    d("epochs", epochs, "length of the run in passes over the training split, fractions allowed; 0: steps decides",
      at_least(0));
    d("steps", steps, "length of the run in optimiser steps; 0: epochs decides", at_least(0));
    d("batch_size", batch_size, "samples in a step; the last batch of an epoch may be smaller", at_least(1));
    d("label_smoothing", label_smoothing,
      "share of the target spread evenly over the classes (Szegedy et al. 2016); 0: none", from_up_to(0, 1));
    d("clip_norm", clip_norm, "the gradient is scaled down to this Euclidean norm over all parameters; 0: never",
      at_least(0));
    d("eval_every", eval_every, "distance between evaluations on the validation split; 0it: at the end only");
  }
};

/// Table [optim]: the optimiser. Defaults of beta1, beta2, eps: Kingma and Ba 2015.
struct OptimOptions {
  std::string name = "sgd";
  double lr = 0.1;
  double momentum = 0;
  bool nesterov = false;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  std::string decay_on = "w";
  void describe(Describe& d) {
    d("name", name, "optimiser; adamw is adam with decoupled weight decay (Loshchilov and Hutter 2019)",
      {"sgd", "adam", "adamw"});
    d("lr", lr, "learning rate; [schedule] multiplies it", above(0));
    d("momentum", momentum, "sgd: share of the last step that is kept", from_up_to(0, 1));
    d("nesterov", nesterov, "sgd: Nesterov's form of momentum");
    d("beta1", beta1, "adam, adamw: decay of the mean of the gradient", from_up_to(0, 1));
    d("beta2", beta2, "adam, adamw: decay of the mean of the squared gradient", from_up_to(0, 1));
    d("eps", eps, "adam, adamw: added to the root of the second moment", above(0));
    d("weight_decay", weight_decay, "sgd, adam: added to the gradient times this (L2); adamw: decoupled", at_least(0));
    d("decay_on", decay_on,
      "what decays: the weights w that the layers use, or the trainable phi behind them; the same with reparam.name = "
      "identity",
      {"w", "phi"});
  }
};

/// Table [schedule]: the factor on the learning rate.
struct ScheduleOptions {
  std::string name = "constant";
  Duration warmup = Duration::steps(0);
  Duration every = Duration::epochs(30);
  std::vector<std::string> milestones;
  double factor = 0.1;
  double final_factor = 0;
  void describe(Describe& d) {
    d("name", name,
      "constant; step: times factor every `every`; multi-step: times factor at each milestone; cosine: from 1 to "
      "final_factor along half a cosine (Loshchilov and Hutter 2017, one period)",
      {"constant", "step", "multi-step", "cosine"});
    d("warmup", warmup, "the rate rises linearly over this stretch, then the schedule takes over; 0it: none");
    d("every", every, "step: distance between cuts");
    d("milestones", milestones, "multi-step: durations in ascending order, e.g. [\"50%\", \"75%\"]");
    d("factor", factor, "step, multi-step: the rate is multiplied by this at each cut", {0, 1, true, false});
    d("final_factor", final_factor, "cosine: learning rate at the end as a share of optim.lr", between(0, 1));
  }
};

/// Table [checkpoint]: how often the run is saved. A checkpoint is also written at the end and on SIGTERM or SIGINT.
struct CheckpointOptions {
  Duration every = Duration::epochs(1);
  std::int64_t keep = 2;
  void describe(Describe& d) {
    d("every", every, "distance between checkpoints; 0it: at the end only");
    d("keep", keep, "newest checkpoints kept, beside the best one", at_least(1));
  }
};

/// Table [continual]: a sequence of tasks for one network, and how it is kept from forgetting (docs/continual.md).
struct ContinualOptions {
  std::string sequence = "none";
  std::int64_t tasks = 0;
  std::string method = "efficient-packnet";
  std::string head = "auto";
  double rotation = 15;
  std::int64_t classes_per_task = 2;
  std::vector<std::string> datasets;
  double gamma = 0.99;
  std::string search = "list";
  std::vector<double> keep_rates = {0.05, 0.1, 0.2, 0.5};
  std::int64_t search_steps = 6;
  std::string fallback = "largest";
  double share = 0;
  std::string reinit = "auto";
  Duration retrain = Duration::epochs(1);
  double retrain_lr = 0;
  double retrain_decay = -1;
  double ewc_lambda = 100;
  std::int64_t fisher_samples = 1000;
  std::string evaluate = "all";
  void describe(Describe& d) {
    d("sequence", sequence,
      "what the tasks are: permuted: the data with its pixels in another order; rotated: turned; split: a few classes "
      "each; datasets: the sets of `datasets`; none: one task, for espalier train",
      {"none", "permuted", "rotated", "split", "datasets"});
    d("tasks", tasks, "how many; 0: all that split or datasets have", at_least(0));
    d("method", method, "how the tasks share one network; joint: all tasks at once; separate: a network for each",
      {"efficient-packnet", "packnet", "fine-tuning", "ewc", "separate", "joint"});
    d("head", head,
      "the last layer: own: one for each task; shared: part of the network; auto: shared for permuted and rotated, own "
      "otherwise",
      {"auto", "shared", "own"});
    d("rotation", rotation, "rotated: degrees from one task to the next", {-360, 360, false, false});
    d("classes_per_task", classes_per_task, "split: classes of each task, in the order of the data set", at_least(2));
    d("datasets", datasets, "datasets: their names; the keys of [data] hold for each");
    d("gamma", gamma,
      "efficient-packnet: the pruned network passes with at least this share of the validation accuracy before pruning",
      between(0, 1));
    d("search", search,
      "efficient-packnet: list: keep_rates from the largest down until one fails; binary: between two keep_rates",
      {"list", "binary"});
    d("keep_rates", keep_rates,
      "efficient-packnet: shares of all weights that a task may compute with, ascending; binary: the two bounds",
      {0, 1, true, false});
    d("search_steps", search_steps, "binary: networks tried between the bounds", {1, 60, false, false});
    d("fallback", fallback, "efficient-packnet, when no keep rate passes: the largest of them, or every weight",
      {"largest", "dense"});
    d("share", share,
      "packnet: share of the free weights of each layer that a task keeps; 0: each of `tasks` tasks gets as many",
      between(0, 1));
    d("reinit", reinit,
      "weights that no task has, before the next one: fresh: drawn anew; zero; keep: as they are; auto: zero for "
      "packnet with alpha = 1, else fresh",
      {"auto", "fresh", "zero", "keep"});
    d("retrain", retrain, "packnet, efficient-packnet: training of a task's new weights after pruning; 0it: none");
    d("retrain_lr", retrain_lr, "learning rate of that; 0: a tenth of optim.lr", at_least(0));
    d("retrain_decay", retrain_decay, "weight decay of that; -1: optim.weight_decay", at_least(-1));
    d("ewc_lambda", ewc_lambda, "ewc: strength of the penalty lambda / 2 sum F (w - w*)^2", at_least(0));
    d("fisher_samples", fisher_samples, "ewc: training images that the Fisher information is averaged over",
      at_least(1));
    d("evaluate", evaluate,
      "after each task, measure all tasks, or only those learnt and the next one; the others are null then",
      {"all", "learnt"});
  }
};

/// Table [log]: how often a run says where it stands.
struct LogOptions {
  Duration every = Duration::steps(100);
  bool tensorboard = true;
  void describe(Describe& d) {
    d("every", every, "distance between `step` events in metrics.jsonl; 0it: none");
    d("tensorboard", tensorboard, "events for TensorBoard too, in the folder tb of the run");
  }
};

}  // namespace espalier::train
