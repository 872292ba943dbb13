/// SNIP: the weights stay whose removal would change the loss most (Lee, Ajanthan, Torr, ICLR 2019).
#pragma once

#include "espalier/methods/prune_at_init.h"

namespace espalier {

class Snip : public PruneWithData {
 public:
  Snip() : PruneWithData(1, 0) {}

 protected:
  std::vector<at::Tensor> survivors(const MethodContext& context) override;
};

}  // namespace espalier
