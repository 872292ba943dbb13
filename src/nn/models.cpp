#include "espalier/nn/models.h"

#include <ATen/CPUGeneratorImpl.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>

#include "espalier/core/error.h"
#include "espalier/nn/init.h"
#include "nn/layer_list.h"
#include "nn/residual.h"

namespace espalier::nn {
namespace {

using Layers = std::vector<std::string>;

/// The hidden widths of a model, all of them times one factor.
class Scaled {
 public:
  explicit Scaled(double factor) : factor_(factor) {}
  std::int64_t operator()(std::int64_t width) const {
    return std::max<std::int64_t>(1, std::llround(factor_ * static_cast<double>(width)));
  }

 private:
  double factor_;
};

std::string conv(std::int64_t channels, int kernel, int padding) {
  return fmt::format("conv({}, kernel={}, padding={})", channels, kernel, padding);
}

std::string linear(std::int64_t units) { return fmt::format("linear({})", units); }

Layers mlp_layers(const std::vector<std::int64_t>& widths, const Scaled& scaled) {
  Layers layers = {"flatten"};
  for (const std::int64_t width : widths) {
    layers.push_back(linear(scaled(width)));
    layers.push_back("relu");
  }
  layers.push_back("linear(classes)");
  return layers;
}

// ReLU after the pool: the same values and gradients as before it (both are monotone), on a quarter of the entries.
Layers mnist_cnn_layers(const Scaled& scaled) {
  return {conv(scaled(16), 5, 2), "maxpool(2)", "relu",    conv(scaled(32), 5, 2),
          "maxpool(2)",           "relu",       "flatten", "linear(classes)"};
}

Layers cifar10_cnn_layers(const Scaled& scaled) {
  return {conv(scaled(6), 5, 0),
          "maxpool(2)",
          "relu",
          conv(scaled(16), 5, 0),
          "maxpool(2)",
          "relu",
          "flatten",
          linear(scaled(120)),
          "relu",
          linear(scaled(84)),
          "relu",
          "linear(classes)"};
}

Layers lenet5_layers(const Scaled& scaled) {
  return {
      conv(scaled(20), 5, 0), "maxpool(2)", "relu",           conv(scaled(50), 5, 0), "maxpool(2)", "relu", "flatten",
      linear(scaled(500)),    "relu",       "linear(classes)"};
}

/// VGG-16 for CIFAR (Simonyan and Zisserman 2015, configuration D, with one linear layer): 3x3 convolutions of these
/// widths, each with batch norm and ReLU; 0 halves the image.
Layers vgg16_layers(const Scaled& scaled) {
  Layers layers;
  for (const int width : {64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512}) {
    if (width == 0) {
      layers.push_back("maxpool(2)");
      continue;
    }
    layers.push_back(fmt::format("conv({}, kernel=3, padding=1, bias=false)", scaled(width)));
    layers.push_back("batchnorm");
    layers.push_back("relu");
  }
  layers.push_back("globalavgpool");
  layers.push_back("linear(classes)");
  return layers;
}

/// Dropout before every fully connected layer that has a weight layer before it.
Layers with_dropout(const Layers& layers, double p, const std::string& model) {
  if (p == 0) return layers;
  Layers out;
  bool hidden = false, inserted = false;
  for (const std::string& layer : layers) {
    const bool linear = layer.rfind("linear", 0) == 0;
    if (linear && hidden) {
      out.push_back(fmt::format("dropout({})", p));
      inserted = true;
    }
    hidden = hidden || linear || layer.rfind("conv", 0) == 0;
    out.push_back(layer);
  }
  ESPALIER_CHECK(inserted, ErrorKind::usage, "model.dropout = {}: this \"{}\" has no hidden layer to drop from; set 0",
                 p, model);
  return out;
}

std::shared_ptr<Network> build(const ModelOptions& o, const InputShape& input, std::int64_t classes, double factor,
                               const Compress& compressed) {
  const Scaled scaled(factor);
  const auto list = [&](const Layers& layers) {
    return make_layer_list(with_dropout(layers, o.dropout, o.name), Naming::by_kind, o.name, input, classes,
                           compressed);
  };
  const auto refuse_dropout = [&](const char* remedy) {
    ESPALIER_CHECK(o.dropout == 0, ErrorKind::usage, "model.dropout = {}: \"{}\" has none; {}", o.dropout, o.name,
                   remedy);
  };
  if (o.name == "mlp") return list(mlp_layers(o.widths, scaled));
  if (o.name == "lenet-300-100") return list(mlp_layers({300, 100}, scaled));
  if (o.name == "lenet-5") return list(lenet5_layers(scaled));
  if (o.name == "mnist-cnn") return list(mnist_cnn_layers(scaled));
  if (o.name == "cifar10-cnn") return list(cifar10_cnn_layers(scaled));
  if (o.name == "vgg16") return list(vgg16_layers(scaled));
  if (o.name == "wrn-28-2") return make_wrn_28_2(input, classes, o.dropout, scaled, compressed);
  if (o.name == "resnet20") {
    refuse_dropout("set 0");
    return make_resnet20(input, classes, scaled, compressed);
  }
  if (o.name == "resnet50") {
    refuse_dropout("set 0");
    return make_resnet50(input, classes, scaled, compressed);
  }
  ESPALIER_ASSERT(o.name == "layers");
  refuse_dropout("write \"dropout(p)\" into model.layers where it belongs");
  ESPALIER_CHECK(
      !o.layers.empty(), ErrorKind::usage,
      "model.layers: empty; expected a list such as [\"flatten\", \"linear(100)\", \"relu\", \"linear(classes)\"]");
  return make_layer_list(o.layers, Naming::by_index, "model.layers", input, classes, compressed, scaled);
}

}  // namespace

std::vector<ModelInfo> known_models() {
  return {
      {"mlp", "fully connected network, ReLU, hidden layers as model.widths says (none: a linear classifier)",
       "truncated-normal"},
      {"lenet-300-100", "fully connected network with 300 and 100 hidden units", "truncated-normal"},
      {"lenet-5", "LeNet-5 as in Caffe and the pruning papers: conv 20, conv 50, fc 500", "torch-default"},
      {"mnist-cnn", "three weight layers: conv 16, conv 32 (5x5), linear", "torch-default"},
      {"cifar10-cnn", "five weight layers: conv 6, conv 16 (5x5), fc 120, fc 84, linear", "torch-default"},
      {"resnet20", "residual network of 20 layers for small images, 16-32-64 channels, 1x1 convolutions as shortcuts",
       "kaiming-normal"},
      {"vgg16",
       "VGG-16 for small images: thirteen 3x3 convolutions with batch norm, 64 to 512 channels, one linear layer",
       "kaiming-normal"},
      {"wrn-28-2", "wide residual network of 28 layers, 32-64-128 channels", "kaiming-normal"},
      {"resnet50", "residual network of 50 layers for ImageNet, bottlenecks with the stride in their 3x3 convolution",
       "kaiming-normal"},
      {"layers", "a network written as a list in model.layers", "torch-default"},
  };
}

void ModelOptions::describe(Describe& d) {
  std::vector<std::string> names;
  for (const ModelInfo& m : known_models()) names.push_back(m.name);
  std::vector<std::string> initializers = {"default"};
  for (const std::string& known : known_initializers()) initializers.push_back(known);
  d("name", name, "the network", names);
  d("widths", widths, "hidden units of each layer of \"mlp\"", between(1, 1 << 30));
  d("layers", layers, "the network of name = \"layers\", one layer an entry");
  d("init", init, "distribution of the weights at step 0; \"default\" is the model's own", initializers);
  d("dropout", dropout,
    "share of inputs dropped before each fully connected layer but the first, or in the blocks of a wide "
    "residual network",
    from_up_to(0, 1));
  d("max_weights", max_weights,
    "the hidden widths shrink evenly until the linear and convolutional weights are no more than this; 0: as they are",
    at_least(0));
  d("storage", storage, "how weights are held: a dense tensor and a mask, or the kept entries alone",
    std::vector<std::string>{"auto", "masked", "compressed"});
}

std::string initializer_of(const ModelOptions& options) {
  if (options.init != "default") return options.init;
  for (const ModelInfo& m : known_models())
    if (m.name == options.name) return m.init;
  return options.init;
}

InputShape meant_for(const std::string& model) {
  for (const char* mnist : {"mlp", "lenet-300-100", "lenet-5", "mnist-cnn"})
    if (model == mnist) return {1, 28, 28};
  if (model == "resnet50") return {3, 224, 224};
  return {3, 32, 32};
}

Thinning thinning(const ModelOptions& o, const InputShape& input, std::int64_t classes) {
  if (o.max_weights == 0) return {};
  const KeepDefaultGenerator keep;
  const auto weights_with = [&](double factor) {
    // Held compressed, no weight takes memory until it is drawn.
    const auto network = build(o, input, classes, factor, [](const std::string&) { return true; });
    std::int64_t sum = 0;
    for (const auto& weight : compressed_weights(*network)) sum += weight->numel();
    return sum;
  };
  double low = 0, high = 1;  // the widths of `low` fit, those of `high` do not
  if (const std::int64_t all = weights_with(high); all <= o.max_weights) return {1, all};
  const std::int64_t least = weights_with(low);
  ESPALIER_CHECK(
      least <= o.max_weights, ErrorKind::usage,
      "model.max_weights = {}: with hidden widths of 1, \"{}\" still has {} weights; give at least that many",
      o.max_weights, o.name, least);
  while (high - low > 1e-6) {
    const double middle = (low + high) / 2;
    (weights_with(middle) <= o.max_weights ? low : high) = middle;
  }
  return {low, weights_with(low)};
}

std::shared_ptr<Network> make_model(const ModelOptions& given, const InputShape& input, std::int64_t classes,
                                    std::uint64_t seed, const Compress& compressed) {
  ModelOptions o = given;
  for (const Option& option : describe(o)) option.validate("model." + option.name + " = ");
  ESPALIER_CHECK(o.name == "mlp" || o.widths == ModelOptions().widths, ErrorKind::usage,
                 "model.widths = [{}]: only \"mlp\" has widths to set, and model.name is \"{}\"",
                 fmt::join(o.widths, ", "), o.name);
  ESPALIER_CHECK(o.name == "layers" || o.layers.empty(), ErrorKind::usage,
                 "model.layers is given, but model.name is \"{}\"; set model.name = \"layers\"", o.name);
  ESPALIER_CHECK(input.channels > 0 && input.height > 0 && input.width > 0, ErrorKind::usage,
                 "model \"{}\": the input is {}, expected positive sizes", o.name, input.text());
  ESPALIER_CHECK(classes >= 2, ErrorKind::usage, "model \"{}\": {} classes, expected at least 2", o.name, classes);

  o.init = initializer_of(o);
  const KeepDefaultGenerator keep;
  try {
    const auto network = build(
        o, input, classes, thinning(o, input, classes).factor,
        compressed ? compressed : [&](const std::string&) { return o.storage == "compressed"; });
    initialize(*network, o.init, seed);
    return network;
  } catch (const c10::Error& e) {  // no memory for it
    fail(ErrorKind::failed, "model \"{}\" cannot be built: {}", o.name, e.what_without_backtrace());
  }
}

}  // namespace espalier::nn
