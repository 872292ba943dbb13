/// `set`: sparse evolutionary training. Each layer drops a share of its connections and grows as many at random.
///
/// Mocanu, Mocanu, Stone, Nguyen, Gibescu, Liotta, "Scalable training of artificial neural networks with adaptive
/// sparse connectivity inspired by network science", Nature Communications 2018.
#pragma once

#include "espalier/methods/drop_and_grow.h"

namespace espalier {

/// The connections of `weight` that stay (`chosen`) and those that go (`rest`), as positions: the floor(fraction nnz)
/// smallest |w| go.
Selection drop_smallest(const SparseWeight& weight, double fraction);

/// As in the first paper: the floor(fraction n+) smallest of the n+ positive weights and the floor(fraction n-) largest
/// of the n- negative ones. A weight of exactly zero has no sign: all of those go. Threshold: the largest |w| that
/// went.
Selection drop_by_sign(const SparseWeight& weight, double fraction);

/// One change: `rest` leaves, as many others come, drawn at random among what is then free; one that has just left may
/// come back. Without birth values.
Rewiring random_exchange(const SparseWeight& weight, Selection&& connections, const RandomStream& random);

class SparseEvolutionary : public DropAndGrow {
 public:
  SparseEvolutionary() : DropAndGrow("set", Duration::epochs(1), Duration::percent(100)) {}
  void describe(Describe& d) override;

 protected:
  void change(const MethodContext& context) override;

 private:
  double fraction_ = 0.3;
  std::string schedule_ = "constant";
  std::string criterion_ = "magnitude";
};

}  // namespace espalier
