#include "espalier/nn/sparse_weight.h"

#include "espalier/core/error.h"

namespace espalier {

SparseWeight::SparseWeight(std::string name, std::vector<std::int64_t> shape, std::int64_t layer)
    : name_(std::move(name)), shape_(std::move(shape)), numel_(1), layer_(layer) {
  for (const auto d : shape_) numel_ *= d;
}

void SparseWeight::set_soft_threshold(double) {
  fail(ErrorKind::usage, "{}: {} storage has no values under a threshold; set model.storage = \"masked\"", name_,
       storage());
}

double SparseWeight::soft_threshold_gradient() const { return 0; }

void SparseWeight::rename(std::string name, std::int64_t layer) {
  name_ = std::move(name);
  layer_ = layer;
}

}  // namespace espalier
