#include "espalier/methods/registry.h"

#include "espalier/core/error.h"
#include "espalier/methods/deep_rewiring.h"
#include "espalier/methods/dense.h"
#include "espalier/methods/dynamic_reallocation.h"
#include "espalier/methods/given.h"
#include "espalier/methods/grasp.h"
#include "espalier/methods/magnitude.h"
#include "espalier/methods/phew.h"
#include "espalier/methods/prune_at_init.h"
#include "espalier/methods/rigl.h"
#include "espalier/methods/snip.h"
#include "espalier/methods/soft_deep_rewiring.h"
#include "espalier/methods/soft_threshold.h"
#include "espalier/methods/sparse_evolutionary.h"
#include "espalier/methods/sparse_momentum.h"
#include "espalier/methods/static_random.h"
#include "espalier/methods/synflow.h"
#include "espalier/methods/top_kast.h"

namespace espalier {
namespace {
template <class M>
std::unique_ptr<Method> make() {
  return std::make_unique<M>();
}
}  // namespace

const std::vector<MethodInfo>& known_methods() {
  static const std::vector<MethodInfo> methods = {
      {"dense", "every weight is kept", &make<Dense>},
      {"static-random", "random masks before training, never changed", &make<StaticRandom>},
      {"magnitude", "the smallest weights pruned once during training, then retrained", &make<OneShotMagnitude>},
      {"gradual-magnitude", "the smallest weights pruned little by little along a cubic schedule",
       &make<GradualMagnitude>},
      {"iterative-magnitude", "the smallest weights pruned in rounds with retraining between",
       &make<IterativeMagnitude>},
      {"given", "masks from a file (espalier train --structure-from), never changed", &make<Given>},
      {"random", "static-random by the name that pruning at initialisation has for it", &make<StaticRandom>},
      {"magnitude-at-init", "before training, the largest weights stay", &make<MagnitudeAtInit>},
      {"snip", "before training, the weights stay whose removal would change the loss most", &make<Snip>},
      {"grasp", "before training, the weights stay without which the gradient would shrink", &make<Grasp>},
      {"synflow", "before training and without data, the weights stay through which most flows, in rounds",
       &make<SynFlow>},
      {"synflow-l2", "synflow with squared weights: the largest trace of the path kernel", &make<SynFlowL2>},
      {"phew", "before training and without data, random walks that prefer large weights", &make<Phew>},
      {"phew-inverse", "walks that prefer small weights", &make<PhewInverse>},
      {"phew-squared", "walks that prefer large weights by their squares", &make<PhewSquared>},
      {"uniform-walks", "walks that look at no weight", &make<UniformWalks>},
      {"set", "each layer drops its smallest weights and grows as many at random (sparse evolutionary training)",
       &make<SparseEvolutionary>},
      {"dpr", "weights under an adaptive threshold move to other places and layers (dynamic parameter reallocation)",
       &make<DynamicReallocation>},
      {"rigl", "each layer drops its smallest weights and grows where the gradient is largest", &make<RigL>},
      {"snfs", "removed weights come back in the layers and at the places of the largest momentum (sparse momentum)",
       &make<SparseMomentum>},
      {"deep-r", "connections that would change their sign leave, and others are tried at random (deep rewiring)",
       &make<DeepRewiring>},
      {"soft-deep-r",
       "deep rewiring whose number of connections is free: those that leave walk at random and come back",
       &make<SoftDeepRewiring>},
      {"top-kast", "the largest weights compute, some more learn, chosen anew every so often", &make<TopKast>},
      {"str", "weights under a threshold that each layer learns are zero (soft threshold reparametrisation)",
       &make<SoftThreshold>},
  };
  return methods;
}

std::unique_ptr<Method> make_method(const std::string& name) {
  std::vector<std::string> names;
  std::string list;
  for (const MethodInfo& m : known_methods()) {
    if (m.name == name) return m.make();
    names.push_back(m.name);
    list += (list.empty() ? "" : ", ") + m.name;
  }
  fail(ErrorKind::usage, "\"{}\": unknown method. Known: {}.{}", name, list, suggestion(name, names));
}

}  // namespace espalier
