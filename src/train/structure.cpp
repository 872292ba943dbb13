#include "espalier/train/structure.h"

#include <torch/torch.h>

#include <algorithm>

#include "espalier/core/error.h"
#include "espalier/train/experiment.h"

namespace espalier::train {
namespace {

/// `name` without `ending`, or "".
std::string stem(const std::string& name, const std::string& ending) {
  const bool has = name.size() > ending.size() && name.compare(name.size() - ending.size(), ending.size(), ending) == 0;
  return has ? name.substr(0, name.size() - ending.size()) : "";
}

}  // namespace

Structure load_structure(const std::filesystem::path& file) {
  ESPALIER_CHECK(std::filesystem::is_regular_file(file), ErrorKind::usage,
                 "{}: no such file; expected masks in safetensors form (espalier init writes them)", file.string());
  Structure structure;
  structure.source = file.string();
  const NamedTensors tensors = load_safetensors(file).tensors;
  const std::map<std::string, at::Tensor> by_name(tensors.begin(), tensors.end());
  for (const auto& [name, tensor] : tensors) {
    if (const std::string weight = stem(name, ".mask"); !weight.empty()) {
      ESPALIER_CHECK(tensor.scalar_type() == at::kByte || tensor.scalar_type() == at::kBool, ErrorKind::data,
                     "{}: \"{}\" is {}; a mask is uint8", file.string(), name, c10::toString(tensor.scalar_type()));
      structure.kept[weight] = tensor.flatten().nonzero().flatten();
      continue;
    }
    structure.weights.emplace_back(name, tensor);
    const std::string weight = stem(name, ".crow_indices");
    if (weight.empty() || by_name.count(weight + ".col_indices") == 0) continue;
    structure.kept[weight] = at::Tensor();  // the layer reads it itself
  }
  ESPALIER_CHECK(!structure.kept.empty(), ErrorKind::data,
                 "{}: no mask in it (a tensor \"<weight>.mask\", uint8), and no compressed weight; found {} tensors",
                 file.string(), tensors.size());
  return structure;
}

at::Tensor kept_positions(const Structure& structure, const SparseWeight& weight) {
  const auto at = structure.kept.find(weight.name());
  ESPALIER_CHECK(at != structure.kept.end(), ErrorKind::data,
                 "{}: no mask for {}, which is to be sparse; name it in [sparsity].dense_layers if it is not",
                 structure.source, weight.name());
  if (!at->second.defined()) return weight.active();  // compressed there and here: loaded with its entries
  const bool fits = at->second.numel() == 0 || at->second.max().item<std::int64_t>() < weight.numel();
  ESPALIER_CHECK(fits, ErrorKind::data, "{}: the mask of {} is larger than the weight [{}]", structure.source,
                 weight.name(), fmt::join(weight.shape(), ", "));
  return at->second;
}

std::string structure_file(const RunConfig& config) {
  if (config.method.name() != "given") return "";
  MethodOptions options = config.method;
  for (const Option& option : espalier::describe(options)) {
    if (option.name == "structure") return *std::get<std::string*>(option.value);
  }
  return "";
}

void begin_with(nn::Network& network, const NamedTensors& weights, const std::string& source) {
  const std::map<std::string, at::Tensor> by_name(weights.begin(), weights.end());
  const auto parameters = network.named_parameters();
  for (const auto& weight : nn::compressed_weights(network)) {
    for (const auto& item : parameters) {  // "<layer>.values"
      if (item.value().unsafeGetTensorImpl() != weight->values_impl()) continue;
      weight->adopt(stem(item.key(), ".values") + ".weight", weight->layer(), Reparametrisation());
    }
    const auto dense = by_name.find(weight->name());
    if (dense == by_name.end()) continue;  // its entries: load_state_dict stores them
    ESPALIER_CHECK(dense->second.sizes() == at::IntArrayRef(weight->shape()), ErrorKind::data,
                   "{}: \"{}\" has shape [{}]; the model needs [{}]", source, weight->name(),
                   fmt::join(dense->second.sizes(), ", "), fmt::join(weight->shape(), ", "));
    const at::Tensor flat = dense->second.to(weight->stored_type()).flatten();
    weight->set_draw([flat](const at::Tensor& positions) { return flat.index_select(0, positions); },
                     flat.abs().max().item<double>());
  }
  load_state_dict(network, weights, source, /*undrawn=*/true);
}

}  // namespace espalier::train
