/// The tables [reparam] and [sparsity] of a configuration.
#pragma once

#include <string>
#include <vector>

#include "espalier/core/options.h"
#include "espalier/methods/adaptive_alpha.h"

namespace espalier {

/// Table [reparam]: how the trainable phi becomes the weight w.
struct ReparamOptions {
  std::string name = "identity";
  double alpha = 1;
  std::string update = "gradient";
  AdaptiveAlphaOptions adaptive;
  void describe(Describe& d) {
    d("name", name,
      "w = psi(phi): identity; powerprop, w = phi|phi|^(alpha-1); adaptive-powerprop: alpha tunes itself meanwhile",
      {"identity", "powerprop", "adaptive-powerprop"});
    d("alpha", alpha, "exponent of powerprop; 1 is the plain network. adaptive: where alpha begins, above 1",
      {1, 16, false, false});
    d("update", update,
      "gradient: the optimiser sees dL/dphi. target: the optimiser steps in w, its step is multiplied by psi'(phi)",
      {"gradient", "target"});
    adaptive.describe(d);
  }
};

/// Table [sparsity]: how many weights are zero, and in which layers.
struct SparsityOptions {
  double sparsity = 0;
  std::string distribution = "uniform";
  std::vector<std::string> dense_layers;
  void describe(Describe& d) {
    d("sparsity", sparsity, "share of zeros among the sparsified weights", from_up_to(0, 1));
    d("distribution", distribution, "how the kept weights are shared among layers", {"uniform", "er", "erk", "global"});
    d("dense_layers", dense_layers,
      "layers left dense: names of weights, * and ? allowed, e.g. [\"conv1*\", \"fc3.weight\"]");
  }
};

}  // namespace espalier
