#include "espalier/nn/models.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <sstream>

#include "espalier/core/error.h"
#include "espalier/core/random.h"
#include "espalier/nn/compressed_layer.h"
#include "espalier/nn/init.h"
#include "espalier/nn/loss.h"

namespace espalier::nn {
namespace {

const InputShape kMnist{1, 28, 28}, kCifar{3, 32, 32};

ModelOptions named(const std::string& name) {
  ModelOptions options;
  options.name = name;
  return options;
}

ModelOptions listed(std::vector<std::string> layers) {
  ModelOptions options;
  options.name = "layers";
  options.layers = std::move(layers);
  return options;
}

/// A model of each name, with something in `layers`.
ModelOptions example(const std::string& name) {
  return name == "layers" ? listed({"conv(8, 3, padding=1)", "batchnorm", "relu", "globalavgpool", "linear(classes)"})
                          : named(name);
}

std::string error_of(const ModelOptions& options, const InputShape& input = kMnist, std::int64_t classes = 10) {
  try {
    make_model(options, input, classes, 0);
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::usage) << e.what();
    return e.what();
  }
  return "no error";
}

std::int64_t parameter_count(const Network& network) {
  std::int64_t count = 0;
  for (const auto& p : network.parameters()) count += p.numel();
  return count;
}

std::set<std::string> names_of(const Network& network) {
  std::set<std::string> names;
  for (const auto& p : network.named_parameters()) names.insert(p.key());
  return names;
}

TEST(Models, GiveLogitsForAnyInputTheyFit) {
  for (const ModelInfo& info : known_models()) {
    for (const InputShape& input : {kMnist, kCifar}) {
      auto net = make_model(example(info.name), input, 7, 0);
      EXPECT_EQ(net->input_shape(), input);
      EXPECT_EQ(net->classes(), 7);
      EXPECT_TRUE(net->is_training());
      const auto logits = net->forward(torch::rand({3, input.channels, input.height, input.width}));
      EXPECT_EQ(logits.sizes(), (std::vector<std::int64_t>{3, 7})) << info.name;
      EXPECT_TRUE(logits.isfinite().all().item<bool>()) << info.name;
    }
  }
}

// By hand: in x out + out for linear, in x out x kh x kw + out for convolutions.
TEST(Models, HaveTheirParameterCounts) {
  EXPECT_EQ(parameter_count(*make_model(named("lenet-300-100"), kMnist, 10, 0)), 266200 + 410);
  EXPECT_EQ(parameter_count(*make_model(named("mlp"), kMnist, 10, 0)), 266200 + 410);
  ModelOptions linear = named("mlp");
  linear.widths = {};
  EXPECT_EQ(parameter_count(*make_model(linear, kMnist, 10, 0)), 7840 + 10);
  ModelOptions one = named("mlp");
  one.widths = {50};
  EXPECT_EQ(parameter_count(*make_model(one, kMnist, 10, 0)), 784 * 50 + 50 + 500 + 10);
  // Caffe's LeNet-5, the 431 K of the pruning papers: 28 -> 24 -> 12 -> 8 -> 4.
  EXPECT_EQ(parameter_count(*make_model(named("lenet-5"), kMnist, 10, 0)),
            (500 + 20) + (25000 + 50) + (400000 + 500) + (5000 + 10));
  EXPECT_EQ(parameter_count(*make_model(named("mnist-cnn"), kMnist, 10, 0)),
            (400 + 16) + (12800 + 32) + (32 * 49 * 10 + 10));
  // 32 -> 28 -> 14 -> 10 -> 5.
  EXPECT_EQ(parameter_count(*make_model(named("cifar10-cnn"), kCifar, 10, 0)),
            (450 + 6) + (2400 + 16) + (48000 + 120) + (10080 + 84) + (840 + 10));
}

// He et al.'s 0.27 M. Convolutions 3x3: 432 + 6 x 2,304 + (4,608 + 5 x 9,216) + (18,432 + 5 x 36,864) = 267,696; linear
// 640 + 10; batch norm 2 x (16 + 6 x 16 + 6 x 32 + 6 x 64) = 1,376: 269,722 with shortcuts that have no weights (option
// A); option B adds 16x32 + 32x64 = 2,560 and batch norm 2 x (32 + 64) = 192.
TEST(Models, ResNet20HasThePublishedParameters) {
  auto net = make_model(named("resnet20"), kCifar, 10, 0);
  EXPECT_EQ(parameter_count(*net), 267696 + 650 + 1376 + 2560 + 192);
  EXPECT_EQ(parameter_count(*net), 272474);
  const auto names = names_of(*net);
  EXPECT_EQ(names.size(), 3u + 9 * 6 + 2 * 3 + 2);
  for (const char* name :
       {"conv1.weight", "bn1.bias", "layer1.0.conv1.weight", "layer1.0.bn1.weight", "layer3.2.conv2.weight",
        "layer2.0.shortcut.0.weight", "layer3.0.shortcut.1.bias", "linear.weight", "linear.bias"})
    EXPECT_EQ(names.count(name), 1u) << name;
  EXPECT_EQ(names.count("layer1.0.shortcut.0.weight"), 0u);
  EXPECT_EQ(names.count("conv1.bias"), 0u);
  EXPECT_TRUE(net->named_buffers().contains("layer1.0.bn1.running_mean"));
}

// Zagoruyko and Komodakis' 1.47 M. In the blocks, 3x3: (512 + 7 x 1,024 + 2,048 + 7 x 4,096 + 8,192 + 7 x 16,384) x 9 =
// 1,451,520. Stem 432, shortcuts 512 + 2,048 + 8,192, linear 1,280 + 10: 12,474. Batch norm: stage 1 first block 16 +
// 32, the others 2 x 32; stages 2 and 3 the same with 32, 64 and 64, 128; the last 128: 1,808 x 2 = 3,616.
TEST(Models, Wrn282HasThePublishedParameters) {
  auto net = make_model(named("wrn-28-2"), kCifar, 10, 0);
  EXPECT_EQ(parameter_count(*net), 1451520 + 12474 + 3616);
  const auto names = names_of(*net);
  EXPECT_EQ(names.size(), 1u + 12 * 6 + 3 + 2 + 2);
  for (const char* name : {"conv1.weight", "block1.layer.0.bn1.weight", "block1.layer.0.convShortcut.weight",
                           "block3.layer.3.conv2.weight", "bn1.weight", "fc.bias"})
    EXPECT_EQ(names.count(name), 1u) << name;
}

// He et al.'s 25.6 M, by hand. A stage of B bottlenecks of width w after c channels: c w + 9 w^2 + 4 w^2 + 4 c w for
// the first, (4 w^2 + 9 w^2 + 4 w^2) for each other. Stages (64, 64, 3), (256, 128, 4), (512, 256, 6), (1024, 512, 3):
// 212,992 + 1,212,416 + 7,077,888 + 14,942,208; stem 9,408; linear 2,048,000: 25,502,912. Batch norm 2 x 26,560, bias
// 1,000. As torchvision's resnet50: 25,557,032 parameters.
TEST(Models, ResNet50HasThePublishedParameters) {
  const InputShape imagenet{3, 224, 224};
  auto net = make_model(named("resnet50"), imagenet, 1000, 0);
  EXPECT_EQ(parameter_count(*net), 212992 + 1212416 + 7077888 + 14942208 + 9408 + 2048000 + 2 * 26560 + 1000);
  EXPECT_EQ(parameter_count(*net), 25557032);
  const auto names = names_of(*net);
  EXPECT_EQ(names.size(), 3u + 16 * 9 + 4 * 3 + 2);
  for (const char* name :
       {"conv1.weight", "bn1.bias", "layer1.0.conv1.weight", "layer1.0.bn3.weight", "layer1.0.downsample.0.weight",
        "layer4.2.conv3.weight", "layer2.0.downsample.1.bias", "layer3.5.conv2.weight", "fc.weight", "fc.bias"})
    EXPECT_EQ(names.count(name), 1u) << name;
  EXPECT_EQ(names.count("layer1.1.downsample.0.weight"), 0u);
  // 224 -> 112 -> 56 (pool) -> 56, 28, 14, 7: the stride of a stage is in its first 3x3 convolution.
  std::map<std::string, std::vector<std::int64_t>> shapes;
  std::map<std::string, std::int64_t> macs;
  for (const LayerCost& c : layer_costs(*net)) {
    shapes[c.name] = c.output_shape;
    macs[c.name] = c.macs;
  }
  using Shape = std::vector<std::int64_t>;
  EXPECT_EQ(shapes["conv1"], (Shape{64, 112, 112}));
  EXPECT_EQ(shapes["layer1.2.conv3"], (Shape{256, 56, 56}));
  EXPECT_EQ(shapes["layer2.0.conv1"], (Shape{128, 56, 56}));
  EXPECT_EQ(shapes["layer2.0.conv2"], (Shape{128, 28, 28}));
  EXPECT_EQ(shapes["layer4.2.conv3"], (Shape{2048, 7, 7}));
  EXPECT_EQ(macs["conv1"], 9408 * 112 * 112);
  EXPECT_EQ(macs["layer3.0.downsample.0"], 512 * 1024 * 14 * 14);
}

// The block written out with torch's own functions.
TEST(Models, ABottleneckComputesWhatItsEquationSays) {
  auto net = make_model(named("resnet50"), {3, 64, 64}, 10, 3);
  net->eval();
  const auto p = net->named_parameters();
  const auto x = torch::rand({2, 3, 64, 64});
  std::map<std::string, at::Tensor> seen;
  net->forward(x, [&](const std::string& layer, const at::Tensor& output) { seen[layer] = output.clone(); });
  const auto conv = [&](const at::Tensor& in, const std::string& name, std::int64_t stride, std::int64_t padding) {
    return torch::conv2d(in, p[name + ".weight"], {}, stride, padding);
  };
  // Fresh statistics: mean 0, variance 1.
  const auto bn = [](const at::Tensor& in) { return in / std::sqrt(1 + 1e-5); };
  at::Tensor y = torch::max_pool2d(torch::relu(bn(conv(x, "conv1", 2, 3))), 3, 2, 1);
  for (const std::string block : {"layer1.0", "layer1.1", "layer1.2", "layer2.0"}) {
    const std::int64_t stride = block == "layer2.0" ? 2 : 1;
    at::Tensor z = torch::relu(bn(conv(y, block + ".conv1", 1, 0)));
    z = torch::relu(bn(conv(z, block + ".conv2", stride, 1)));
    z = bn(conv(z, block + ".conv3", 1, 0));
    const bool projected = block == "layer1.0" || block == "layer2.0";
    y = torch::relu(z + (projected ? bn(conv(y, block + ".downsample.0", stride, 0)) : y));
    EXPECT_TRUE(torch::allclose(seen.at(block), y, 1e-3, 1e-4)) << block;
  }
}

// A dense network with as many weights as a sparse one: hidden widths shrink evenly.
TEST(Models, MaxWeightsThinsTheHiddenLayers) {
  ModelOptions o = named("lenet-300-100");
  EXPECT_EQ(thinning(o, kMnist, 10).factor, 1);
  o.max_weights = 266200;
  EXPECT_EQ(thinning(o, kMnist, 10).factor, 1);
  EXPECT_EQ(thinning(o, kMnist, 10).weights, 266200);
  // 784 h + h k + 10 k with h = round(300 f), k = round(100 f): 33 and 11 are 26,345; with f past .1117 h is 34:
  // 27,140.
  o.max_weights = 26620;
  const Thinning t = thinning(o, kMnist, 10);
  EXPECT_EQ(t.weights, 784 * 33 + 33 * 11 + 110);
  auto net = make_model(o, kMnist, 10, 0);
  EXPECT_EQ(net->named_parameters()["fc1.weight"].sizes(), (std::vector<std::int64_t>{33, 784}));
  EXPECT_EQ(net->named_parameters()["fc3.weight"].sizes(), (std::vector<std::int64_t>{10, 11}));
  o.max_weights = 784 + 1 + 10;
  EXPECT_EQ(thinning(o, kMnist, 10).weights, 795);
  o.max_weights = 794;
  EXPECT_NE(error_of(o).find("still has 795 weights"), std::string::npos);
  ModelOptions list = listed({"flatten", "linear(classes)"});
  list.max_weights = 100;
  EXPECT_NE(error_of(list).find("still has 7840 weights"), std::string::npos);
  // The same network written as a list, batch norm between: the same widths.
  list = listed({"flatten", "linear(300)", "batchnorm", "relu", "linear(100)", "relu", "linear(classes)"});
  list.max_weights = 26620;
  EXPECT_EQ(thinning(list, kMnist, 10).weights, 784 * 33 + 33 * 11 + 110);
  net = make_model(list, kMnist, 10, 0);
  EXPECT_EQ(net->named_parameters()["1.weight"].sizes(), (std::vector<std::int64_t>{33, 784}));
  EXPECT_EQ(net->named_parameters()["2.weight"].sizes(), (std::vector<std::int64_t>{33}));
  EXPECT_EQ(net->named_parameters()["6.weight"].sizes(), (std::vector<std::int64_t>{10, 11}));
  list = listed({"conv(8, 3)", "conv(8, 3, groups=4)", "globalavgpool", "linear(classes)"});
  EXPECT_EQ(thinning(list, kMnist, 10).factor, 1);
  list.max_weights = 200;
  EXPECT_NE(error_of(list).find("model.layers[1] = \"conv(8, 3, groups=4)\" has groups"), std::string::npos);
  // Every other model: as many as there may be, less what one more unit would bring.
  for (const ModelInfo& info : known_models()) {
    if (info.name == "layers" || info.name == "mlp") continue;
    ModelOptions thin = named(info.name);
    const InputShape input = meant_for(info.name);
    thin.max_weights = 60000;
    const Thinning found = thinning(thin, input, 10);
    EXPECT_LE(found.weights, 60000) << info.name;
    EXPECT_GE(found.weights, info.name == "mnist-cnn" ? 28880 : 45000) << info.name;
    std::int64_t weights = 0;
    for (const auto& p : make_model(thin, input, 10, 0)->parameters()) weights += p.dim() > 1 ? p.numel() : 0;
    EXPECT_EQ(weights, found.weights) << info.name;
  }
}

TEST(Models, PlainNetworksAreNamedByKind) {
  EXPECT_EQ(names_of(*make_model(named("lenet-300-100"), kMnist, 10, 0)),
            (std::set<std::string>{"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias", "fc3.weight", "fc3.bias"}));
  EXPECT_EQ(
      names_of(*make_model(named("mnist-cnn"), kMnist, 10, 0)),
      (std::set<std::string>{"conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias", "fc1.weight", "fc1.bias"}));
}

// 3x3 convolutions without biases: 9 x (3 x 64 + 64 x 64 + 64 x 128 + 128 x 128 + 128 x 256 + 2 x 256 x 256 + 256 x 512
// + 5 x 512 x 512) = 14,710,464; batch norm 2 x (2 x 64 + 2 x 128 + 3 x 256 + 6 x 512) = 8,448; linear 5,120 + 10.
TEST(Models, Vgg16HasItsParameters) {
  auto net = make_model(named("vgg16"), kCifar, 10, 0);
  EXPECT_EQ(parameter_count(*net), 14710464 + 8448 + 5130);
  const auto names = names_of(*net);
  EXPECT_EQ(names.size(), 13u + 26 + 2);
  for (const char* name : {"conv1.weight", "bn1.weight", "conv13.weight", "fc1.bias"})
    EXPECT_EQ(names.count(name), 1u) << name;
}

// The formula of a block, spelt out with torch's functions.
TEST(Models, ResNetBlocksComputeTheirFormula) {
  auto net = make_model(named("resnet20"), kCifar, 10, 3);
  net->eval();
  const torch::NoGradGuard no_grad;
  std::map<std::string, torch::Tensor> out;
  net->forward(torch::rand({2, 3, 32, 32}),
               [&](const std::string& name, const torch::Tensor& y) { out[name] = y.clone(); });
  const auto p = net->named_parameters();
  const auto bn = 1 / std::sqrt(1 + 1e-5);  // fresh statistics
  const auto x = out["layer1.2"];
  const auto hidden = torch::relu(torch::conv2d(x, p["layer2.0.conv1.weight"], {}, 2, 1) * bn);
  const auto y = torch::conv2d(hidden, p["layer2.0.conv2.weight"], {}, 1, 1) * bn;
  const auto shortcut = torch::conv2d(x, p["layer2.0.shortcut.0.weight"], {}, 2) * bn;
  EXPECT_TRUE(out["layer2.0"].allclose(torch::relu(y + shortcut), 1e-4, 1e-5));
  const auto h1 = torch::relu(torch::conv2d(out["layer2.0"], p["layer2.1.conv1.weight"], {}, 1, 1) * bn);
  const auto y1 = torch::conv2d(h1, p["layer2.1.conv2.weight"], {}, 1, 1) * bn;
  EXPECT_TRUE(out["layer2.1"].allclose(torch::relu(y1 + out["layer2.0"]), 1e-4, 1e-5));
  EXPECT_TRUE(out["linear"].allclose(torch::linear(out["layer3.2"].mean({2, 3}), p["linear.weight"], p["linear.bias"]),
                                     1e-4, 1e-5));
}

TEST(Models, WideResNetBlocksComputeTheirFormula) {
  auto net = make_model(named("wrn-28-2"), kCifar, 10, 3);
  net->eval();
  const torch::NoGradGuard no_grad;
  std::map<std::string, torch::Tensor> out;
  net->forward(torch::rand({2, 3, 32, 32}),
               [&](const std::string& name, const torch::Tensor& y) { out[name] = y.clone(); });
  const auto p = net->named_parameters();
  const auto bn = 1 / std::sqrt(1 + 1e-5);
  const auto block = [&](const std::string& name, const torch::Tensor& x, bool changes, std::int64_t stride) {
    const auto active = torch::relu(x * bn);
    const auto hidden = torch::relu(torch::conv2d(active, p[name + ".conv1.weight"], {}, stride, 1) * bn);
    const auto y = torch::conv2d(hidden, p[name + ".conv2.weight"], {}, 1, 1);
    return y + (changes ? torch::conv2d(active, p[name + ".convShortcut.weight"], {}, stride) : x);
  };
  EXPECT_TRUE(out["block1.layer.0"].allclose(block("block1.layer.0", out["conv1"], true, 1), 1e-4, 1e-5));
  EXPECT_TRUE(out["block2.layer.0"].allclose(block("block2.layer.0", out["block1.layer.3"], true, 2), 1e-4, 1e-5));
  EXPECT_TRUE(out["block2.layer.1"].allclose(block("block2.layer.1", out["block2.layer.0"], false, 1), 1e-4, 1e-5));
  const auto features = torch::relu(out["block3.layer.3"] * bn).mean({2, 3});
  EXPECT_TRUE(out["fc"].allclose(torch::linear(features, p["fc.weight"], p["fc.bias"]), 1e-4, 1e-5));
}

TEST(Models, CnnsComputeConvolutionReluPool) {
  auto net = make_model(named("mnist-cnn"), kMnist, 10, 3);
  const auto p = net->named_parameters();
  const auto images = torch::rand({4, 1, 28, 28});
  auto x = torch::max_pool2d(torch::relu(torch::conv2d(images, p["conv1.weight"], p["conv1.bias"], 1, 2)), 2);
  x = torch::max_pool2d(torch::relu(torch::conv2d(x, p["conv2.weight"], p["conv2.bias"], 1, 2)), 2);
  const auto logits = torch::linear(x.flatten(1), p["fc1.weight"], p["fc1.bias"]);
  EXPECT_TRUE(net->forward(images).allclose(logits, 1e-5, 1e-6));
}

TEST(Models, TrainAFewSteps) {
  torch::manual_seed(1);
  for (const ModelInfo& info : known_models()) {
    auto net = make_model(example(info.name), kCifar, 10, 1);
    const auto images = torch::rand({16, 3, 32, 32});
    const auto kept = images.clone();
    const auto labels = torch::randint(10, {16}, torch::kLong);
    torch::optim::Adam adam(net->parameters(), torch::optim::AdamOptions(1e-3));
    double first = 0, last = 0;
    for (int step = 0; step < 12; ++step) {
      const auto loss = torch::cross_entropy_loss(net->forward(images), labels);
      (step == 0 ? first : last) = loss.item<double>();
      adam.zero_grad();
      loss.backward();
      for (const auto& p : net->named_parameters())
        ASSERT_TRUE(p.value().grad().defined()) << info.name << " " << p.key();
      adam.step();
    }
    // ln 10 = 2.30 is a guess; 16 samples are learnt by heart.
    EXPECT_LT(last, first - 0.02) << info.name;
    EXPECT_TRUE(images.equal(kept)) << info.name;
  }
}

// A loss of logits in tiles is the loss of logits, behind every model and in both storages. The two networks are the
// same one made twice; in double, sums in another order differ by some 1e-13.
TEST(Models, TheLossOfLogitsAsTheyLeaveTheLastLayer) {
  torch::manual_seed(1);
  for (const ModelInfo& info : known_models()) {
    for (const char* storage : {"masked", "compressed"}) {
      ModelOptions options = example(info.name);
      options.storage = storage;
      const auto images = torch::rand({5, 3, 32, 32});
      const auto labels = torch::randint(10, {5}, torch::kLong);
      std::vector<at::Tensor> gradients[2], losses;
      for (const bool plain : {true, false}) {
        auto net = make_model(options, kCifar, 10, 1);
        std::int64_t correct = -1;
        const Activation logits = net->logits(images);
        EXPECT_EQ(logits.is_tiled(), storage == std::string("compressed")) << info.name;
        losses.push_back(plain ? torch::cross_entropy_loss(net->forward(images), labels)
                               : cross_entropy(logits, labels, 0, &correct));
        losses.back().backward();
        for (const auto& p : net->parameters()) gradients[plain ? 0 : 1].push_back(p.grad());
        if (plain) continue;
        EXPECT_EQ(correct, logits.plain().argmax(1).eq(labels).sum().item<std::int64_t>()) << info.name;
      }
      EXPECT_NEAR(losses[0].item<double>(), losses[1].item<double>(), 1e-5) << info.name << ", " << storage;
      for (std::size_t i = 0; i < gradients[0].size(); ++i) {
        const double off = (gradients[0][i] - gradients[1][i]).norm().item<double>();
        EXPECT_LE(off, 1e-4 * gradients[0][i].norm().item<double>() + 1e-6) << info.name << ", " << storage;
      }
    }
  }
}

TEST(Models, SameSeedSameBitsOnAnyNumberOfThreads) {
  const int threads = at::get_num_threads();
  for (const ModelInfo& info : known_models()) {
    at::set_num_threads(1);
    auto one = make_model(example(info.name), kCifar, 10, 4);
    at::set_num_threads(2);
    auto two = make_model(example(info.name), kCifar, 10, 4);
    auto other = make_model(example(info.name), kCifar, 10, 5);
    bool differs = false;
    for (const auto& p : one->named_parameters()) {
      EXPECT_TRUE(p.value().equal(two->named_parameters()[p.key()])) << info.name << " " << p.key();
      differs = differs || !p.value().equal(other->named_parameters()[p.key()]);
    }
    EXPECT_TRUE(differs) << info.name;
  }
  at::set_num_threads(threads);
}

TEST(Models, LeaveTheDefaultGeneratorAsItIs) {
  torch::manual_seed(5);
  make_model(named("lenet-5"), kMnist, 10, 4);
  const auto draw = torch::rand({4});
  torch::manual_seed(5);
  EXPECT_TRUE(draw.equal(torch::rand({4})));
}

TEST(Models, StartFromTheirDocumentedInitializer) {
  // The largest |w| of the uniform ones is the bound; a normal one of 235,200 entries goes beyond 2 sigma.
  const auto largest = [](const ModelOptions& o, const char* weight, const InputShape& input) {
    return make_model(o, input, 10, 1)->named_parameters()[weight].abs().max().item<double>();
  };
  EXPECT_NEAR(largest(named("mlp"), "fc1.weight", kMnist), 2 * std::sqrt(1.0 / 784) / 0.87962566103423978, 1e-4);
  EXPECT_NEAR(largest(named("mnist-cnn"), "conv2.weight", kMnist), std::sqrt(1.0 / 400), 1e-4);
  EXPECT_GT(largest(named("resnet20"), "layer3.0.conv2.weight", kCifar), 3.5 * std::sqrt(2.0 / 576));
  ModelOptions xavier = named("mlp");
  xavier.init = "xavier-uniform";
  EXPECT_NEAR(largest(xavier, "fc1.weight", kMnist), std::sqrt(6.0 / 1084), 1e-4);
  for (const ModelInfo& info : known_models()) {
    const auto known = known_initializers();
    EXPECT_EQ(std::count(known.begin(), known.end(), info.init), 1) << info.name;
  }
}

TEST(Models, DropoutDropsInTrainingAndDrawsFromTheDefaultGenerator) {
  for (const char* name : {"mlp", "mnist-cnn", "cifar10-cnn", "lenet-5", "wrn-28-2"}) {
    ModelOptions o = named(name);
    o.dropout = 0.5;
    auto net = make_model(o, kCifar, 10, 1);
    const auto images = torch::rand({4, 3, 32, 32});
    torch::manual_seed(3);
    const auto first = net->forward(images);
    EXPECT_FALSE(first.equal(net->forward(images))) << name;
    torch::manual_seed(3);
    EXPECT_TRUE(first.equal(net->forward(images))) << name;
    net->eval();
    EXPECT_TRUE(net->forward(images).equal(net->forward(images))) << name;
  }
  ModelOptions o = named("mlp");
  o.dropout = 0.25;
  std::map<std::string, double> zeros;
  make_model(o, kMnist, 10, 1)
      ->forward(torch::rand({512, 1, 28, 28}), [&](const std::string& layer, const torch::Tensor& y) {
        if (layer == "fc1") zeros[layer] = y.le(0).to(torch::kDouble).mean().item<double>();  // dead after ReLU
        if (layer == "dropout1") zeros[layer] = y.eq(0).to(torch::kDouble).mean().item<double>();
      });
  // A live unit is dropped with p = 1/4: standard error of the share < sqrt(0.25 x 0.75 / 153,600) = 0.0011.
  EXPECT_NEAR(zeros["dropout1"], zeros["fc1"] + 0.25 * (1 - zeros["fc1"]), 0.0055);
}

TEST(Models, BecomeDoubleBeforeTheyHaveEntries) {
  ModelOptions o = named("lenet-300-100");
  const auto masked = make_model(o, kMnist, 10, 5, [](const std::string&) { return false; });
  o.storage = "compressed";
  const auto compressed = make_model(o, kMnist, 10, 5);
  compressed->to(torch::kDouble);
  const auto weights = compressed_weights(*compressed);
  weights[0]->keep(torch::arange(50, torch::kInt64));
  for (const auto& w : weights) EXPECT_EQ(w->stored_values().scalar_type(), torch::kDouble);
  const auto first = masked->named_parameters()["fc1.weight"].flatten().slice(0, 0, 50).to(torch::kDouble);
  EXPECT_TRUE(weights[0]->weights().equal(first));
  EXPECT_EQ(compressed->forward(torch::rand({2, 1, 28, 28}, torch::kDouble)).scalar_type(), torch::kDouble);
}

TEST(Models, TravelWithTorchsArchives) {
  for (const char* name : {"resnet20", "lenet-5"}) {
    ModelOptions o = named(name);
    o.storage = "compressed";
    const InputShape input = meant_for(name);
    const auto saved = make_model(o, input, 10, 5), loaded = make_model(o, input, 10, 6);
    for (const auto& w : compressed_weights(*saved)) {
      w->keep(torch::tensor(random_subset(w->numel(), w->numel() / 5, RandomStream(1, Purpose::test))));
    }
    const auto images = torch::rand({4, input.channels, input.height, input.width});
    saved->forward(images);  // batch norm's statistics
    std::stringstream file;
    torch::save(saved, file);
    torch::load(loaded, file);
    saved->eval();
    loaded->eval();
    EXPECT_TRUE(loaded->forward(images).equal(saved->forward(images))) << name;
  }
}

// The same network in both storages: outputs, statistics of batch norm and gradients, in training and in evaluation.
TEST(Models, AreTheSameInBothStorages) {
  for (const char* name : {"resnet20", "wrn-28-2", "resnet50", "lenet-5", "cifar10-cnn", "mlp"}) {
    SCOPED_TRACE(name);
    const InputShape input = name == std::string("lenet-5") ? kMnist : kCifar;
    ModelOptions o = named(name);
    if (o.name == "resnet50") o.max_weights = 200000;
    o.storage = "masked";
    const auto masked = make_model(o, input, 10, 5);
    o.storage = "compressed";
    const auto compressed = make_model(o, input, 10, 5);
    masked->to(torch::kDouble);
    const auto weights = compressed_weights(*compressed);
    auto parameters = masked->named_parameters();
    std::size_t dense_weights = 0;
    for (const auto& item : compressed->named_modules("", false)) {
      const auto* layer = item.value()->as<CompressedLayer>();
      if (layer == nullptr) continue;
      auto& weight = *layer->weight();
      const std::int64_t n = weight.numel();
      const auto kept = torch::tensor(random_subset(n, n / 5, RandomStream(1, Purpose::test, dense_weights++)));
      weight.keep(kept);
      const torch::NoGradGuard no_grad;
      torch::Tensor& w = parameters[item.key() + ".weight"];
      const torch::Tensor mask = torch::zeros({n}, torch::kDouble).index_fill(0, kept, 1).view(w.sizes());
      w.mul_(mask);
      EXPECT_TRUE(w.to(torch::kFloat).equal(weight.to_dense())) << item.key();
    }
    EXPECT_EQ(dense_weights, weights.size());
    EXPECT_EQ(plain_parameters(*compressed).size() + dense_weights, parameters.size());
    for (const auto& [key, p] : plain_parameters(*compressed)) EXPECT_TRUE(parameters.contains(key)) << key;

    torch::manual_seed(2);
    const auto images = torch::rand({5, input.channels, input.height, input.width});
    const auto target = torch::rand({5, 10});
    for (const bool training : {true, false}) {
      masked->train(training);
      compressed->train(training);
      const auto expected = masked->forward(images.to(torch::kDouble)), found = compressed->forward(images);
      const double size = expected.abs().max().item<double>();
      EXPECT_LE((found - expected).abs().max().item<double>(), 2e-4 * size) << training;
      if (!training) {
        const torch::NoGradGuard no_grad;  // few images, one by one
        EXPECT_LE((compressed->forward(images) - expected).abs().max().item<double>(), 2e-4 * size);
      }
      (expected * target).sum().backward();
      (found * target).sum().backward();
    }
    // Observers see the same, fused or not.
    std::vector<std::pair<std::string, torch::Tensor>> seen;
    masked->forward(images.to(torch::kDouble), [&](const std::string& layer, const torch::Tensor& y) {
      seen.emplace_back(layer, y.detach().clone());
    });
    std::size_t next = 0;
    compressed->forward(images, [&](const std::string& layer, const torch::Tensor& y) {
      ASSERT_LT(next, seen.size());
      EXPECT_EQ(layer, seen[next].first);
      ASSERT_EQ(y.sizes(), seen[next].second.sizes());
      const double size = seen[next].second.abs().max().item<double>();
      EXPECT_LE((y - seen[next].second).abs().max().item<double>(), 2e-4 * size) << layer;
      ++next;
    });
    EXPECT_EQ(next, seen.size());
    for (const auto& [key, p] : plain_parameters(*compressed)) {
      const torch::Tensor& expected = parameters[key].grad();
      const double size = expected.abs().max().item<double>();
      EXPECT_LE((p.grad() - expected).abs().max().item<double>(), 2e-3 * size + 1e-9) << key;
    }
    const auto buffers = masked->named_buffers();
    for (const auto& item : compressed->named_buffers()) {
      const auto expected = buffers[item.key()].to(torch::kDouble), found = item.value().to(torch::kDouble);
      const double size = expected.abs().max().item<double>();
      EXPECT_LE((found - expected).abs().max().item<double>(), 1e-4 * size + 1e-6) << item.key();
    }
  }
}

// Between compressed layers, batch norm and ReLU work in tiles, fused unless somebody looks. Three layers of at most 49
// products of order 1, and divisions by deviations above 0.1: 3 x 49 x 2^-24 x 10 < 1e-4.
TEST(Models, BatchNormInTilesIsThatOfPlainTensors) {
  ModelOptions o =
      listed({"flatten", "linear(24)", "batchnorm", "relu", "linear(16)", "batchnorm", "tanh", "linear(classes)"});
  const auto make = [&](const char* storage) {
    o.storage = storage;
    return make_model(o, {1, 7, 7}, 10, 3);
  };
  const auto masked = make("masked"), tiled = make("compressed"), observed = make("compressed");
  const auto x = torch::rand({37, 1, 7, 7});
  std::map<std::string, torch::Tensor> seen;
  const auto expected =
      masked->forward(x, [&](const std::string& name, const torch::Tensor& y) { seen[name] = y.clone(); });
  const auto found = tiled->forward(x);
  EXPECT_TRUE(found.allclose(expected, 0, 1e-4));
  int outputs = 0;
  observed->forward(x, [&](const std::string& name, const torch::Tensor& y) {
    EXPECT_TRUE(y.allclose(seen.at(name), 0, 1e-4)) << name;
    ++outputs;
  });
  EXPECT_EQ(outputs, 8);
  EXPECT_LT(seen.at("2").min().item<float>(), 0);  // what batch norm gives, not the ReLU after it

  expected.pow(2).sum().backward();
  found.pow(2).sum().backward();
  const auto plain = masked->named_parameters(), in_tiles = tiled->named_parameters();
  for (const char* name : {"2.weight", "2.bias", "5.weight", "5.bias"})
    EXPECT_TRUE(in_tiles[name].grad().allclose(plain[name].grad(), 1e-3, 1e-3)) << name;
  for (const char* name :
       {"2.running_mean", "2.running_var", "5.running_mean", "5.running_var", "2.num_batches_tracked"})
    EXPECT_TRUE(tiled->named_buffers()[name].allclose(masked->named_buffers()[name], 1e-4, 1e-5)) << name;
}

// What layers and ReLUs in one pass compute is what each computes alone, which is how they go while somebody looks on:
// the same bits, wherever the ReLUs stand. Batches of three and of one tile, ragged ones.
TEST(Models, ReluInTheLayersBesideItIsReluByItself) {
  const std::vector<std::vector<std::string>> lists = {
      {"flatten", "linear(24)", "relu", "linear(20)", "relu", "linear(12)", "relu", "linear(classes)"},
      {"flatten", "relu", "linear(24)", "relu", "relu", "linear(20)", "linear(12)", "relu", "linear(classes)", "relu"},
      {"flatten", "linear(24)", "relu", "dropout(0)", "linear(20)", "relu", "batchnorm", "linear(classes)"},
      {"flatten", "linear(24)", "batchnorm", "relu", "linear(20)", "relu", "linear(classes)"}};
  for (const auto& layers : lists) {
    ModelOptions o = listed(layers);
    o.storage = "compressed";
    const auto alone = make_model(o, {1, 7, 7}, 10, 3), fused = make_model(o, {1, 7, 7}, 10, 3);
    for (const std::int64_t samples : {150, 37}) {
      const auto x = torch::randn({samples, 1, 7, 7}), r = torch::randn({samples, 10});
      const auto expected = alone->forward(x, [](const std::string&, const torch::Tensor&) {}),
                 found = fused->forward(x);
      EXPECT_TRUE(found.equal(expected)) << fmt::format("{}", fmt::join(layers, ", "));
      (expected * r).sum().backward();
      (found * r).sum().backward();
      const auto theirs = alone->named_parameters();
      for (const auto& item : fused->named_parameters()) {
        EXPECT_GT(item.value().grad().abs().max().item<float>(), 0) << item.key();
        EXPECT_TRUE(item.value().grad().equal(theirs[item.key()].grad()))
            << item.key() << " of " << fmt::format("{}", fmt::join(layers, ", "));
      }
    }
  }
}

TEST(Models, RefuseOptionsThatDoNotFit) {
  EXPECT_EQ(error_of(named("resnet-20")).rfind("model.name = \"resnet-20\": unknown value.", 0), 0u);
  EXPECT_NE(error_of(named("resnet-20")).find("Did you mean \"resnet20\"?"), std::string::npos);
  ModelOptions o;
  o.storage = "compressed";
  EXPECT_EQ(error_of(o), "no error");
  o.storage = "masked";
  EXPECT_EQ(error_of(o), "no error");
  o.init = "kaiming";
  EXPECT_NE(error_of(o).find("model.init"), std::string::npos);
  o = named("mlp");
  o.widths = {300, 0};
  EXPECT_NE(error_of(o).find("model.widths"), std::string::npos);
  o = named("lenet-5");
  o.widths = {5};
  EXPECT_NE(error_of(o).find("only \"mlp\" has widths"), std::string::npos);
  o = named("mlp");
  o.layers = {"flatten"};
  EXPECT_NE(error_of(o).find("set model.name = \"layers\""), std::string::npos);
  o = named("mlp");
  o.dropout = 1;
  EXPECT_NE(error_of(o).find("model.dropout"), std::string::npos);
  o = named("resnet20");
  o.dropout = 0.1;
  EXPECT_NE(error_of(o, kCifar).find("has none"), std::string::npos);
  o = named("mlp");
  o.widths = {};
  o.dropout = 0.1;
  EXPECT_NE(error_of(o).find("no hidden layer"), std::string::npos);
  EXPECT_NE(error_of(named("layers")).find("model.layers: empty"), std::string::npos);
  EXPECT_NE(error_of(named("mlp"), {1, 0, 28}).find("1x0x28"), std::string::npos);
  EXPECT_NE(error_of(named("mlp"), kMnist, 1).find("expected at least 2"), std::string::npos);
  EXPECT_EQ(error_of(named("cifar10-cnn"), {3, 8, 8}),
            "cifar10-cnn[3] = \"conv(16, kernel=5, padding=0)\": the kernel, 5x5, is larger than the image, 2x2");
}

// --- lists of layers
// --------------------------------------------------------------------------------------------------

TEST(LayerList, TheExampleOfTheDocumentation) {
  auto net = make_model(listed({"conv(32, kernel=5, padding=2)", "batchnorm", "relu", "maxpool(2)", "flatten",
                                "dropout(0.5)", "linear(128)", "relu", "linear(classes)"}),
                        kMnist, 10, 0);
  EXPECT_EQ(names_of(*net), (std::set<std::string>{"0.weight", "0.bias", "1.weight", "1.bias", "6.weight", "6.bias",
                                                   "8.weight", "8.bias"}));
  EXPECT_EQ(parameter_count(*net), 832 + 64 + (32 * 14 * 14 * 128 + 128) + 1290);
  std::vector<std::string> seen;
  net->forward(torch::rand({2, 1, 28, 28}),
               [&](const std::string& name, const torch::Tensor&) { seen.push_back(name); });
  EXPECT_EQ(seen, (std::vector<std::string>{"0", "1", "2", "3", "4", "5", "6", "7", "8"}));
}

// Every kind once, against torch's functions.
TEST(LayerList, ComputesWhatItSays) {
  const std::vector<std::string> layers = {
      " conv ( 6 , 3x5 , stride = 2x1 , padding=1x2, dilation=2x1, groups=3, bias=false ) ",
      "tanh",
      "relu",
      "avgpool(2, stride=1, padding=1)",
      "leakyrelu(0.2)",
      "conv(4, 3)",
      "gelu",
      "maxpool(3x2, stride=2)",
      "silu",
      "flatten",
      "batchnorm",
      "linear(20, bias=false)",
      "sigmoid",
      "linear(classes)"};
  auto net = make_model(listed(layers), {3, 15, 12}, 5, 2);
  net->eval();
  const auto p = net->named_parameters();
  const auto images = torch::randn({4, 3, 15, 12});
  auto x = torch::conv2d(images, p["0.weight"], {}, {2, 1}, {1, 2}, {2, 1}, 3);
  EXPECT_FALSE(p.contains("0.bias"));
  EXPECT_FALSE(p.contains("11.bias"));
  x = torch::leaky_relu(torch::avg_pool2d(torch::relu(torch::tanh(x)), 2, 1, 1), 0.2);
  x = torch::silu(torch::max_pool2d(torch::gelu(torch::conv2d(x, p["5.weight"], p["5.bias"])), {3, 2}, 2));
  x = torch::sigmoid(torch::linear(x.flatten(1) / std::sqrt(1 + 1e-5), p["11.weight"]));
  x = torch::linear(x, p["13.weight"], p["13.bias"]);
  EXPECT_TRUE(net->forward(images).allclose(x, 1e-5, 1e-6));
}

TEST(LayerList, GlobalPoolsGiveAVector) {
  const auto images = torch::randn({2, 4, 5, 6});
  for (const bool max : {true, false}) {
    auto net = make_model(listed({max ? "globalmaxpool" : "globalavgpool", "linear(classes)"}), {4, 5, 6}, 3, 2);
    const auto p = net->named_parameters();
    const auto pooled = max ? images.flatten(2).amax(2) : images.flatten(2).mean(2);
    EXPECT_TRUE(net->forward(images).allclose(torch::linear(pooled, p["1.weight"], p["1.bias"]), 1e-5, 1e-6));
  }
}

// In place is allowed only where no backward pass needs what is overwritten, and never on the images.
TEST(LayerList, ReluAfterAnyLayerKeepsGradientsAndImages) {
  for (const char* before :
       {"relu", "flatten", "tanh", "sigmoid", "gelu", "silu", "leakyrelu", "batchnorm", "dropout(0.3)", "maxpool(2)",
        "avgpool(2)", "globalmaxpool", "globalavgpool", "conv(2, 3)"}) {
    const bool vector = std::string(before) == "flatten" || std::string(before).rfind("global", 0) == 0;
    std::vector<std::string> layers = {before, "relu", "linear(classes)"};
    if (!vector) layers.insert(layers.begin() + 2, "flatten");
    auto net = make_model(listed(layers), {2, 4, 4}, 3, 0);
    const auto images = torch::randn({5, 2, 4, 4}).set_requires_grad(true);
    const auto kept = images.detach().clone();
    for (const bool training : {true, false}) {
      net->train(training);
      EXPECT_NO_THROW(net->forward(images).sum().backward()) << before;
      EXPECT_TRUE(images.equal(kept)) << before;
    }
  }
}

TEST(LayerList, AllSpellingMistakesAtOnce) {
  EXPECT_EQ(
      error_of(listed({"conv(32, kernel=5)", "batchnrm", "relu(", "linear(ten)"})),
      "model.layers[1] = \"batchnrm\": unknown layer \"batchnrm\". Known: conv, linear, batchnorm, relu, leakyrelu, "
      "tanh, sigmoid, "
      "gelu, silu, maxpool, avgpool, globalmaxpool, globalavgpool, flatten, dropout. Did you mean \"batchnorm\"?\n"
      "model.layers[2] = \"relu(\": the bracket is not closed\n"
      "model.layers[3] = \"linear(ten)\": outputs = ten: expected a whole number or classes");
}

TEST(LayerList, EachMistakeIsNamed) {
  const std::pair<const char*, const char*> kCases[] = {
      {"", "unknown layer \"\""},
      {"Relu", "Did you mean \"relu\"?"},
      {"conv(8, 3) relu", "\" relu\" after the closing bracket"},
      {"conv(8, 3))", "\")\" after the closing bracket"},
      {"conv", "\"outputs\" is missing: conv(outputs, kernel, stride=1, padding=0, dilation=1, groups=1, bias=true)"},
      {"conv()", "\"outputs\" is missing"},
      {"conv(8)", "\"kernel\" is missing"},
      {"conv(8, kernl=3)", "unknown argument \"kernl\". Known: conv(outputs, kernel,"},
      {"conv(8, kernl=3)", "Did you mean \"kernel\"?"},
      {"conv(8, 3, kernel=3)", "argument \"kernel\" is given twice"},
      {"conv(8, kernel=3, 2)", "\"2\" without a key after an argument with one"},
      {"conv(8, kernel=)", "argument \"kernel\" has no value"},
      {"conv(8,, 3)", "argument \"kernel\" has no value"},
      {"conv(8, 3,)", "argument \"stride\" has no value"},
      {"conv(8, 0)", "kernel = 0: expected 1 to"},
      {"conv(8, 3x)", "kernel = 3x: expected a whole number, or two as in 3x5"},
      {"conv(8, 3x3x3)", "kernel = 3x3x3: expected a whole number"},
      {"conv(8, 2.5)", "kernel = 2.5: expected a whole number"},
      {"conv(8, 3, padding=-1)", "padding = -1: expected 0 to"},
      {"conv(8, 3, stride=0)", "stride = 0: expected 1 to"},
      {"conv(8, 3, bias=yes)", "bias = yes: expected true or false"},
      {"conv(99999999999, 3)", "outputs = 99999999999: expected 1 to"},
      {"conv(99999999999999999999, 3)", "expected a whole number or classes"},
      {"conv(8, 3, groups=classes)", "groups = classes: expected a whole number"},
      {"relu(1)", "more arguments than relu takes: relu"},
      {"dropout(1.5)", "p = 1.5: expected 0 to 1"},
      {"dropout(nan)", "p = nan: expected 0 to 1"},
      {"dropout(half)", "p = half: expected a number"},
      {"conv(8, 3, groups=3)", "groups = 3 must divide the channels that come in, 2, and those that go out, 8"},
      {"conv(9, 3, groups=2)", "groups = 2 must divide the channels that come in, 2, and those that go out, 9"},
      {"conv(8, 9)", "the kernel, 9x9, is larger than the image, 8x6"},
      {"conv(8, 3x5, padding=0x1, dilation=2)",
       "the kernel, 5x9 with its dilation, is larger than the image, 8x8 with its padding"},
      {"maxpool(7)", "the kernel, 7x7, is larger than the image, 8x6"},
      {"avgpool(2, padding=2)", "padding 2x2 is more than half the kernel 2x2"},
      {"linear(10)", "gets an image of 2x8x6; put \"flatten\" or \"globalavgpool\" before it"},
  };
  for (const auto& [text, message] : kCases) {
    const std::string found = error_of(listed({text, "globalavgpool", "linear(classes)"}), {2, 8, 6});
    EXPECT_EQ(found.rfind(std::string("model.layers[0] = \"") + text + "\": ", 0), 0u) << found;
    EXPECT_NE(found.find(message), std::string::npos) << found;
  }
}

TEST(LayerList, MistakesOfOrder) {
  for (const char* image_layer : {"conv(4, 1)", "maxpool(1)", "avgpool(1)", "globalavgpool", "globalmaxpool"}) {
    EXPECT_EQ(error_of(listed({"flatten", image_layer, "linear(classes)"}), {2, 8, 6}),
              std::string("model.layers[1] = \"") + image_layer +
                  "\": needs an image and gets a vector of 96; it must come before \"flatten\"");
  }
  EXPECT_EQ(error_of(listed({"flatten", "linear(11)"})),
            "model.layers: the last layer gives a vector of 11, expected a vector of 10, one logit a class: end with "
            "\"linear(classes)\"");
  EXPECT_NE(error_of(listed({"conv(10, 28)"})).find("the last layer gives an image of 10x1x1"), std::string::npos);
  EXPECT_EQ(error_of(listed({"flatten"}), {1, 2, 5}), "model.layers: no layer has weights");
}

}  // namespace
}  // namespace espalier::nn
