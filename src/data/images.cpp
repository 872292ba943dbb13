#include "espalier/data/images.h"

#include <utility>

namespace espalier::data {
namespace {

class Chosen : public ImageSource {
 public:
  Chosen(std::shared_ptr<const ImageSource> all, const torch::Tensor& indices) : all_(std::move(all)) {
    const torch::Tensor list = indices.contiguous();
    indices_.assign(list.data_ptr<std::int64_t>(), list.data_ptr<std::int64_t>() + list.numel());
  }
  std::int64_t size() const override { return static_cast<std::int64_t>(indices_.size()); }
  torch::Tensor read(std::int64_t index, std::int64_t side, const Choose& choose) const override {
    return all_->read(indices_.at(static_cast<std::size_t>(index)), side, choose);
  }

 private:
  std::shared_ptr<const ImageSource> all_;
  std::vector<std::int64_t> indices_;
};

}  // namespace

std::vector<std::int64_t> Images::shape() const {
  if (source) return {3, side, side};
  return pixels.sizes().slice(1).vec();
}

Images Images::at(const torch::Tensor& indices) const {
  Images some;
  some.labels = labels.index_select(0, indices);
  some.order = order;
  some.side = side;
  if (source) {
    some.source = std::make_shared<Chosen>(source, indices);
  } else {
    some.pixels = pixels.index_select(0, indices);
  }
  return some;
}

}  // namespace espalier::data
