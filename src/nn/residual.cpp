#include "nn/residual.h"

#include <torch/torch.h>

#include <string>
#include <tuple>
#include <vector>

#include "nn/layers.h"

namespace espalier::nn {
namespace {

using torch::Tensor;
using Trace = Network::Trace;

/// A convolution without bias that keeps the size of the image, but for its stride.
WeightLayer conv(std::int64_t in, std::int64_t out, std::int64_t kernel, std::int64_t stride, bool compressed) {
  return weight_layer(torch::nn::Conv2dOptions(in, out, kernel).stride(stride).padding(kernel / 2).bias(false),
                      compressed);
}

// The ReLUs and sums below overwrite outputs of batch norm and convolution, which their backward passes do not need.

/// ReLU after batch norm: in one pass over batch tiles, unless somebody wants to see what is between.
Activation batch_norm_relu(torch::nn::BatchNorm2d& bn, const char* name, const Activation& x, const Trace& trace) {
  if (x.is_images() && !trace.observed()) return batch_norm(*bn, x, /*relu=*/true);
  return relu_over(trace(name, batch_norm(*bn, x)));
}

class ResidualBlock : public torch::nn::Module {
 public:
  virtual Activation forward(const Activation& x, const Trace& trace) = 0;
  /// The convolution around the block's others; "" where it is the identity.
  virtual std::string projection() const = 0;
  virtual const WeightLayer& first() const = 0;
  /// How many convolutions ("conv1", …) it goes around.
  virtual int depth() const { return 2; }
};

class BasicBlock : public ResidualBlock {
 public:
  BasicBlock(std::int64_t in, std::int64_t out, std::int64_t stride, const Compress& compressed) {
    conv1_ = conv(in, out, 3, stride, compressed("conv1"));
    register_module("conv1", conv1_.module);
    bn1_ = register_module("bn1", torch::nn::BatchNorm2d(out));
    conv2_ = conv(out, out, 3, 1, compressed("conv2"));
    register_module("conv2", conv2_.module);
    bn2_ = register_module("bn2", torch::nn::BatchNorm2d(out));
    if (in == out && stride == 1) return;
    shortcut_conv_ = conv(in, out, 1, stride, compressed("shortcut.0"));
    shortcut_bn_ = torch::nn::BatchNorm2d(out);
    const auto shortcut = register_module("shortcut", torch::nn::ModuleList());
    shortcut->push_back(shortcut_conv_.module);
    shortcut->push_back(shortcut_bn_.ptr());
  }

  Activation forward(const Activation& x, const Trace& trace) override {
    auto [y, shortcut] = conv1_.fork(x);
    y = trace("conv1", y);
    y = batch_norm_relu(bn1_, "bn1", y, trace);
    y = trace("conv2", conv2_(y));
    // In the order in which observers are told: bn2 comes before the shortcut.
    if (trace.observed()) y = trace("bn2", batch_norm(*bn2_, y));
    if (shortcut_conv_) {
      shortcut = trace("shortcut.0", shortcut_conv_(shortcut));
      shortcut = trace("shortcut.1", batch_norm(*shortcut_bn_, shortcut));
    }
    return trace.observed() ? add_relu_over(y, shortcut) : batch_norm_add_relu(*bn2_, y, shortcut);
  }
  std::string projection() const override { return shortcut_conv_ ? "shortcut.0" : ""; }
  const WeightLayer& first() const override { return conv1_; }

 private:
  WeightLayer conv1_, conv2_, shortcut_conv_;
  torch::nn::BatchNorm2d bn1_{nullptr}, bn2_{nullptr}, shortcut_bn_{nullptr};
};

/// Named as in torchvision.
class Bottleneck : public ResidualBlock {
 public:
  static constexpr std::int64_t kExpansion = 4;

  /// `width` channels inside, kExpansion times as many outside.
  Bottleneck(std::int64_t in, std::int64_t width, std::int64_t stride, const Compress& compressed) {
    const std::int64_t out = kExpansion * width;
    conv1_ = conv(in, width, 1, 1, compressed("conv1"));
    register_module("conv1", conv1_.module);
    bn1_ = register_module("bn1", torch::nn::BatchNorm2d(width));
    conv2_ = conv(width, width, 3, stride, compressed("conv2"));
    register_module("conv2", conv2_.module);
    bn2_ = register_module("bn2", torch::nn::BatchNorm2d(width));
    conv3_ = conv(width, out, 1, 1, compressed("conv3"));
    register_module("conv3", conv3_.module);
    bn3_ = register_module("bn3", torch::nn::BatchNorm2d(out));
    if (in == out && stride == 1) return;
    downsample_conv_ = conv(in, out, 1, stride, compressed("downsample.0"));
    downsample_bn_ = torch::nn::BatchNorm2d(out);
    const auto downsample = register_module("downsample", torch::nn::ModuleList());
    downsample->push_back(downsample_conv_.module);
    downsample->push_back(downsample_bn_.ptr());
  }

  Activation forward(const Activation& x, const Trace& trace) override {
    auto [y, shortcut] = conv1_.fork(x);
    y = trace("conv1", y);
    y = batch_norm_relu(bn1_, "bn1", y, trace);
    y = trace("conv2", conv2_(y));
    y = batch_norm_relu(bn2_, "bn2", y, trace);
    y = trace("conv3", conv3_(y));
    if (trace.observed()) y = trace("bn3", batch_norm(*bn3_, y));
    if (downsample_conv_) {
      shortcut = trace("downsample.0", downsample_conv_(shortcut));
      shortcut = trace("downsample.1", batch_norm(*downsample_bn_, shortcut));
    }
    return trace.observed() ? add_relu_over(y, shortcut) : batch_norm_add_relu(*bn3_, y, shortcut);
  }
  std::string projection() const override { return downsample_conv_ ? "downsample.0" : ""; }
  const WeightLayer& first() const override { return conv1_; }
  int depth() const override { return 3; }

 private:
  WeightLayer conv1_, conv2_, conv3_, downsample_conv_;
  torch::nn::BatchNorm2d bn1_{nullptr}, bn2_{nullptr}, bn3_{nullptr}, downsample_bn_{nullptr};
};

class PreActivationBlock : public ResidualBlock {
 public:
  PreActivationBlock(std::int64_t in, std::int64_t out, std::int64_t stride, double dropout,
                     const Compress& compressed) {
    bn1_ = register_module("bn1", torch::nn::BatchNorm2d(in));
    conv1_ = conv(in, out, 3, stride, compressed("conv1"));
    register_module("conv1", conv1_.module);
    bn2_ = register_module("bn2", torch::nn::BatchNorm2d(out));
    conv2_ = conv(out, out, 3, 1, compressed("conv2"));
    register_module("conv2", conv2_.module);
    if (dropout > 0) dropout_ = register_module("dropout", torch::nn::Dropout(dropout));
    if (in == out && stride == 1) return;
    shortcut_ = conv(in, out, 1, stride, compressed("convShortcut"));
    register_module("convShortcut", shortcut_.module);
  }

  Activation forward(const Activation& x, const Trace& trace) override {
    Activation active = x, skip = x;
    if (trace.observed() || shortcut_)
      active = batch_norm_relu(bn1_, "bn1", x, trace);
    else
      std::tie(active, skip) = batch_norm_fork(*bn1_, x, /*relu=*/true);
    auto [y, same] = conv1_.fork(active);
    y = trace("conv1", y);
    y = batch_norm_relu(bn2_, "bn2", y, trace);
    if (dropout_) y = trace("dropout", y.map([&](const Tensor& data) { return dropout_->forward(data); }));
    y = trace("conv2", conv2_(y));
    // Where the shape changes, the shortcut starts after the activation, as in the authors' code.
    return add_over(y, shortcut_ ? trace("convShortcut", shortcut_(same)) : skip);
  }
  std::string projection() const override { return shortcut_ ? "convShortcut" : ""; }
  const WeightLayer& first() const override { return conv1_; }

 private:
  WeightLayer conv1_, conv2_, shortcut_;
  torch::nn::BatchNorm2d bn1_{nullptr}, bn2_{nullptr};
  torch::nn::Dropout dropout_{nullptr};
};

/// For the layers of a block.
Compress inside(const std::string& block, const Compress& compressed) {
  return [&compressed, block](const std::string& layer) { return compressed(block + "." + layer); };
}

/// The blocks of a network and the names under which they report.
class Blocks {
 public:
  void add(std::string name, std::shared_ptr<ResidualBlock> block) {
    blocks_.push_back({std::move(name), std::move(block)});
  }
  const WeightLayer& first() const { return blocks_.front().second->first(); }
  Activation forward(Activation x, const Trace& trace) const {
    for (const auto& [name, block] : blocks_) x = trace(name, block->forward(x, trace.inside(name)));
    return x;
  }
  /// The wiring of conv1, these blocks and the classifier.
  Wiring wiring(std::int64_t channels, const std::string& classifier) const {
    Wiring wiring{channels, {"conv1"}, {}};
    for (const auto& [name, block] : blocks_) {
      const std::size_t first = wiring.line.size();
      const std::string projection = block->projection();
      for (int i = 1; i <= block->depth(); ++i) wiring.line.push_back(fmt::format("{}.conv{}", name, i));
      wiring.bypasses.push_back({first, wiring.line.size() - 1, projection.empty() ? "" : name + "." + projection});
    }
    wiring.line.push_back(classifier);
    return wiring;
  }

 private:
  std::vector<std::pair<std::string, std::shared_ptr<ResidualBlock>>> blocks_;
};

class ResNet20 : public Network {
 public:
  ResNet20(const InputShape& input, std::int64_t classes, const Widths& widths, const Compress& compressed)
      : Network(input, classes) {
    std::int64_t in = widths(16);
    conv1_ = conv(input.channels, in, 3, 1, compressed("conv1"));
    register_module("conv1", conv1_.module);
    bn1_ = register_module("bn1", torch::nn::BatchNorm2d(in));
    for (const int stage : {1, 2, 3}) {
      const std::int64_t out = widths(8 << stage);
      const auto layer = register_module(fmt::format("layer{}", stage), torch::nn::ModuleList());
      for (const int i : {0, 1, 2}) {
        const auto name = fmt::format("layer{}.{}", stage, i);
        const auto block = std::make_shared<BasicBlock>(in, out, i == 0 && stage > 1 ? 2 : 1, inside(name, compressed));
        layer->push_back(block);
        blocks_.add(name, block);
        in = out;
      }
    }
    linear_ = weight_layer(torch::nn::LinearOptions(in, classes), compressed("linear"));
    register_module("linear", linear_.module);
  }
  Wiring wiring() const override { return blocks_.wiring(input_shape().channels, "linear"); }

 protected:
  Activation compute(const Tensor& images, const Trace& trace) override {
    Activation x = ahead_of(blocks_.first(), trace("conv1", conv1_(images)));
    x = batch_norm_relu(bn1_, "bn1", x, trace);
    x = global_average(blocks_.forward(x, trace));
    return trace("linear", linear_(x));
  }

 private:
  WeightLayer conv1_, linear_;
  torch::nn::BatchNorm2d bn1_{nullptr};
  Blocks blocks_;
};

class ResNet50 : public Network {
 public:
  ResNet50(const InputShape& input, std::int64_t classes, const Widths& widths, const Compress& compressed)
      : Network(input, classes) {
    std::int64_t in = widths(64);
    conv1_ = weight_layer(torch::nn::Conv2dOptions(input.channels, in, 7).stride(2).padding(3).bias(false),
                          compressed("conv1"));
    register_module("conv1", conv1_.module);
    bn1_ = register_module("bn1", torch::nn::BatchNorm2d(in));
    int stage = 0;
    for (const int blocks : {3, 4, 6, 3}) {
      ++stage;
      const std::int64_t width = widths(32 << stage);
      const auto layer = register_module(fmt::format("layer{}", stage), torch::nn::ModuleList());
      for (int i = 0; i < blocks; ++i) {
        const auto name = fmt::format("layer{}.{}", stage, i);
        const auto block =
            std::make_shared<Bottleneck>(in, width, i == 0 && stage > 1 ? 2 : 1, inside(name, compressed));
        layer->push_back(block);
        blocks_.add(name, block);
        in = Bottleneck::kExpansion * width;
      }
    }
    fc_ = weight_layer(torch::nn::LinearOptions(in, classes), compressed("fc"));
    register_module("fc", fc_.module);
  }
  Wiring wiring() const override { return blocks_.wiring(input_shape().channels, "fc"); }

 protected:
  Activation compute(const Tensor& images, const Trace& trace) override {
    Activation x = ahead_of(blocks_.first(), trace("conv1", conv1_(images)));
    x = max_pool(batch_norm_relu(bn1_, "bn1", x, trace), {{3, 3}, {2, 2}, {1, 1}});
    x = global_average(blocks_.forward(x, trace));
    return trace("fc", fc_(x));
  }

 private:
  WeightLayer conv1_, fc_;
  torch::nn::BatchNorm2d bn1_{nullptr};
  Blocks blocks_;
};

class WideResNet : public Network {
 public:
  WideResNet(std::int64_t depth, std::int64_t widen, const InputShape& input, std::int64_t classes, double dropout,
             const Widths& widths, const Compress& compressed)
      : Network(input, classes) {
    const std::int64_t blocks_per_stage = (depth - 4) / 6;
    conv1_ = conv(input.channels, 16, 3, 1, compressed("conv1"));
    register_module("conv1", conv1_.module);
    std::int64_t in = 16;
    for (const int stage : {1, 2, 3}) {
      const std::int64_t out = widths((8 << stage) * widen);
      torch::nn::ModuleList layer;
      for (std::int64_t i = 0; i < blocks_per_stage; ++i) {
        const auto name = fmt::format("block{}.layer.{}", stage, i);
        const auto block = std::make_shared<PreActivationBlock>(in, out, i == 0 && stage > 1 ? 2 : 1, dropout,
                                                                inside(name, compressed));
        layer->push_back(block);
        blocks_.add(name, block);
        in = out;
      }
      const auto group = std::make_shared<torch::nn::Module>("group");
      group->register_module("layer", layer);
      register_module(fmt::format("block{}", stage), group);
    }
    bn1_ = register_module("bn1", torch::nn::BatchNorm2d(in));
    fc_ = weight_layer(torch::nn::LinearOptions(in, classes), compressed("fc"));
    register_module("fc", fc_.module);
  }
  Wiring wiring() const override { return blocks_.wiring(input_shape().channels, "fc"); }

 protected:
  Activation compute(const Tensor& images, const Trace& trace) override {
    Activation x = ahead_of(blocks_.first(), trace("conv1", conv1_(images)));
    x = blocks_.forward(x, trace);
    x = global_average(batch_norm_relu(bn1_, "bn1", x, trace));
    return trace("fc", fc_(x));
  }

 private:
  WeightLayer conv1_, fc_;
  Blocks blocks_;
  torch::nn::BatchNorm2d bn1_{nullptr};
};

}  // namespace

std::shared_ptr<Network> make_resnet20(const InputShape& input, std::int64_t classes, const Widths& widths,
                                       const Compress& compressed) {
  return std::make_shared<ResNet20>(input, classes, widths, compressed);
}

std::shared_ptr<Network> make_resnet50(const InputShape& input, std::int64_t classes, const Widths& widths,
                                       const Compress& compressed) {
  return std::make_shared<ResNet50>(input, classes, widths, compressed);
}

std::shared_ptr<Network> make_wrn_28_2(const InputShape& input, std::int64_t classes, double dropout,
                                       const Widths& widths, const Compress& compressed) {
  return std::make_shared<WideResNet>(28, 2, input, classes, dropout, widths, compressed);
}

}  // namespace espalier::nn
