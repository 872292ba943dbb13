#include "nn/residual.h"

#include <torch/torch.h>

#include <string>
#include <vector>

namespace espalier::nn {
namespace {

using torch::Tensor;
using Trace = Network::Trace;

torch::nn::Conv2d conv(std::int64_t in, std::int64_t out, std::int64_t kernel, std::int64_t stride) {
  return torch::nn::Conv2d(torch::nn::Conv2dOptions(in, out, kernel).stride(stride).padding(kernel / 2).bias(false));
}

// The ReLUs and sums below overwrite outputs of batch norm and convolution, which their backward passes do not need.

class ResidualBlock : public torch::nn::Module {
 public:
  virtual Tensor forward(const Tensor& x, const Trace& trace) = 0;
  /// The convolution around the block's other two; "" where it is the identity.
  virtual std::string projection() const = 0;
};

class BasicBlock : public ResidualBlock {
 public:
  BasicBlock(std::int64_t in, std::int64_t out, std::int64_t stride) {
    conv1_ = register_module("conv1", conv(in, out, 3, stride));
    bn1_ = register_module("bn1", torch::nn::BatchNorm2d(out));
    conv2_ = register_module("conv2", conv(out, out, 3, 1));
    bn2_ = register_module("bn2", torch::nn::BatchNorm2d(out));
    if (in == out && stride == 1) return;
    shortcut_conv_ = conv(in, out, 1, stride);
    shortcut_bn_ = torch::nn::BatchNorm2d(out);
    register_module("shortcut", torch::nn::Sequential(shortcut_conv_, shortcut_bn_));
  }

  Tensor forward(const Tensor& x, const Trace& trace) override {
    Tensor y = trace("conv1", conv1_->forward(x));
    y = trace("bn1", bn1_->forward(y)).relu_();
    y = trace("conv2", conv2_->forward(y));
    y = trace("bn2", bn2_->forward(y));
    if (!shortcut_conv_) return y.add_(x).relu_();
    const Tensor shortcut = trace("shortcut.0", shortcut_conv_->forward(x));
    return y.add_(trace("shortcut.1", shortcut_bn_->forward(shortcut))).relu_();
  }
  std::string projection() const override { return shortcut_conv_ ? "shortcut.0" : ""; }

 private:
  torch::nn::Conv2d conv1_{nullptr}, conv2_{nullptr}, shortcut_conv_{nullptr};
  torch::nn::BatchNorm2d bn1_{nullptr}, bn2_{nullptr}, shortcut_bn_{nullptr};
};

class PreActivationBlock : public ResidualBlock {
 public:
  PreActivationBlock(std::int64_t in, std::int64_t out, std::int64_t stride, double dropout) {
    bn1_ = register_module("bn1", torch::nn::BatchNorm2d(in));
    conv1_ = register_module("conv1", conv(in, out, 3, stride));
    bn2_ = register_module("bn2", torch::nn::BatchNorm2d(out));
    conv2_ = register_module("conv2", conv(out, out, 3, 1));
    if (dropout > 0) dropout_ = register_module("dropout", torch::nn::Dropout(dropout));
    if (in != out || stride != 1) shortcut_ = register_module("convShortcut", conv(in, out, 1, stride));
  }

  Tensor forward(const Tensor& x, const Trace& trace) override {
    const Tensor active = trace("bn1", bn1_->forward(x)).relu_();
    Tensor y = trace("conv1", conv1_->forward(active));
    y = trace("bn2", bn2_->forward(y)).relu_();
    if (dropout_) y = trace("dropout", dropout_->forward(y));
    y = trace("conv2", conv2_->forward(y));
    // Where the shape changes, the shortcut starts after the activation, as in the authors' code.
    return y.add_(shortcut_ ? trace("convShortcut", shortcut_->forward(active)) : x);
  }
  std::string projection() const override { return shortcut_ ? "convShortcut" : ""; }

 private:
  torch::nn::Conv2d conv1_{nullptr}, conv2_{nullptr}, shortcut_{nullptr};
  torch::nn::BatchNorm2d bn1_{nullptr}, bn2_{nullptr};
  torch::nn::Dropout dropout_{nullptr};
};

/// The blocks of a network and the names under which they report.
class Blocks {
 public:
  void add(std::string name, std::shared_ptr<ResidualBlock> block) {
    blocks_.push_back({std::move(name), std::move(block)});
  }
  Tensor forward(Tensor x, const Trace& trace) const {
    for (const auto& [name, block] : blocks_) x = trace(name, block->forward(x, trace.inside(name)));
    return x;
  }
  /// The wiring of conv1, these blocks and the classifier.
  Wiring wiring(std::int64_t channels, const std::string& classifier) const {
    Wiring wiring{channels, {"conv1"}, {}};
    for (const auto& [name, block] : blocks_) {
      const std::size_t first = wiring.line.size();
      const std::string projection = block->projection();
      wiring.line.push_back(name + ".conv1");
      wiring.line.push_back(name + ".conv2");
      wiring.bypasses.push_back({first, first + 1, projection.empty() ? "" : name + "." + projection});
    }
    wiring.line.push_back(classifier);
    return wiring;
  }

 private:
  std::vector<std::pair<std::string, std::shared_ptr<ResidualBlock>>> blocks_;
};

class ResNet20 : public Network {
 public:
  ResNet20(const InputShape& input, std::int64_t classes) : Network(input, classes) {
    conv1_ = register_module("conv1", conv(input.channels, 16, 3, 1));
    bn1_ = register_module("bn1", torch::nn::BatchNorm2d(16));
    std::int64_t in = 16;
    for (const int stage : {1, 2, 3}) {
      const std::int64_t out = 8 << stage;
      const auto layer = register_module(fmt::format("layer{}", stage), torch::nn::ModuleList());
      for (const int i : {0, 1, 2}) {
        const auto block = std::make_shared<BasicBlock>(in, out, i == 0 && stage > 1 ? 2 : 1);
        layer->push_back(block);
        blocks_.add(fmt::format("layer{}.{}", stage, i), block);
        in = out;
      }
    }
    linear_ = register_module("linear", torch::nn::Linear(in, classes));
  }
  Wiring wiring() const override { return blocks_.wiring(input_shape().channels, "linear"); }

 protected:
  Tensor compute(const Tensor& images, const Trace& trace) override {
    Tensor x = trace("conv1", conv1_->forward(images));
    x = trace("bn1", bn1_->forward(x)).relu_();
    x = blocks_.forward(x, trace).mean({2, 3});
    return trace("linear", linear_->forward(x));
  }

 private:
  torch::nn::Conv2d conv1_{nullptr};
  torch::nn::BatchNorm2d bn1_{nullptr};
  Blocks blocks_;
  torch::nn::Linear linear_{nullptr};
};

class WideResNet : public Network {
 public:
  WideResNet(std::int64_t depth, std::int64_t widen, const InputShape& input, std::int64_t classes, double dropout)
      : Network(input, classes) {
    const std::int64_t blocks_per_stage = (depth - 4) / 6;
    conv1_ = register_module("conv1", conv(input.channels, 16, 3, 1));
    std::int64_t in = 16;
    for (const int stage : {1, 2, 3}) {
      const std::int64_t out = (8 << stage) * widen;
      torch::nn::ModuleList layer;
      for (std::int64_t i = 0; i < blocks_per_stage; ++i) {
        const auto block = std::make_shared<PreActivationBlock>(in, out, i == 0 && stage > 1 ? 2 : 1, dropout);
        layer->push_back(block);
        blocks_.add(fmt::format("block{}.layer.{}", stage, i), block);
        in = out;
      }
      const auto group = std::make_shared<torch::nn::Module>("group");
      group->register_module("layer", layer);
      register_module(fmt::format("block{}", stage), group);
    }
    bn1_ = register_module("bn1", torch::nn::BatchNorm2d(in));
    fc_ = register_module("fc", torch::nn::Linear(in, classes));
  }
  Wiring wiring() const override { return blocks_.wiring(input_shape().channels, "fc"); }

 protected:
  Tensor compute(const Tensor& images, const Trace& trace) override {
    Tensor x = trace("conv1", conv1_->forward(images));
    x = blocks_.forward(x, trace);
    x = trace("bn1", bn1_->forward(x)).relu_().mean({2, 3});
    return trace("fc", fc_->forward(x));
  }

 private:
  torch::nn::Conv2d conv1_{nullptr};
  Blocks blocks_;
  torch::nn::BatchNorm2d bn1_{nullptr};
  torch::nn::Linear fc_{nullptr};
};

}  // namespace

std::shared_ptr<Network> make_resnet20(const InputShape& input, std::int64_t classes) {
  return std::make_shared<ResNet20>(input, classes);
}

std::shared_ptr<Network> make_wrn_28_2(const InputShape& input, std::int64_t classes, double dropout) {
  return std::make_shared<WideResNet>(28, 2, input, classes, dropout);
}

}  // namespace espalier::nn
