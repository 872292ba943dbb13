/// GraSP: the weights go whose removal least reduces the gradient's norm (Wang, Zhang, Grosse, ICLR 2020).
#pragma once

#include "espalier/methods/prune_at_init.h"

namespace espalier {

class Grasp : public PruneWithData {
 public:
  Grasp() : PruneWithData(1, 10) {}
  void describe(Describe& d) override;

 protected:
  std::vector<at::Tensor> survivors(const MethodContext& context) override;

 private:
  double temperature_ = 200;
  std::int64_t parts_ = 1;
};

}  // namespace espalier
