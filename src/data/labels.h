#pragma once

#include <string>

#include "espalier/core/error.h"
#include "espalier/data/images.h"

namespace espalier::data {

/// Error(data) unless every label is in 0 .. num_classes - 1. labels: int64 [N]; `where` starts the message.
inline void check_labels(const torch::Tensor& labels, std::int64_t num_classes, const std::string& where) {
  const std::int64_t* label = labels.data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < labels.size(0); ++i) {
    ESPALIER_CHECK(label[i] >= 0 && label[i] < num_classes, ErrorKind::data,
                   "{}: label {} of sample {}, expected 0 to {}", where, label[i], i, num_classes - 1);
  }
}

}  // namespace espalier::data
