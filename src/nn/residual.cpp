#include "nn/residual.h"

#include <torch/torch.h>

#include <string>
#include <vector>

#include "nn/layers.h"

namespace espalier::nn {
namespace {

using torch::Tensor;
using Trace = Network::Trace;

torch::nn::Conv2d conv(std::int64_t in, std::int64_t out, std::int64_t kernel, std::int64_t stride) {
  return torch::nn::Conv2d(torch::nn::Conv2dOptions(in, out, kernel).stride(stride).padding(kernel / 2).bias(false));
}

// The ReLUs and sums below overwrite outputs of batch norm and convolution, which their backward passes do not need.

/// A convolution of torch.
Activation convolve(torch::nn::Conv2d& conv, const Activation& x) { return conv->forward(x.plain()); }

/// ReLU after batch norm: in one pass over batch tiles, unless somebody wants to see what is between.
Activation batch_norm_relu(torch::nn::BatchNorm2d& bn, const char* name, const Activation& x, const Trace& trace) {
  if (x.is_images() && !trace.observed()) return batch_norm(*bn, x, /*relu=*/true);
  return relu_over(trace(name, batch_norm(*bn, x)));
}

class ResidualBlock : public torch::nn::Module {
 public:
  virtual Activation forward(const Activation& x, const Trace& trace) = 0;
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

  Activation forward(const Activation& x, const Trace& trace) override {
    Activation y = trace("conv1", convolve(conv1_, x));
    y = batch_norm_relu(bn1_, "bn1", y, trace);
    y = trace("conv2", convolve(conv2_, y));
    y = trace("bn2", batch_norm(*bn2_, y));
    if (!shortcut_conv_) return add_relu_over(y, x);
    const Activation shortcut = trace("shortcut.0", convolve(shortcut_conv_, x));
    return add_relu_over(y, trace("shortcut.1", batch_norm(*shortcut_bn_, shortcut)));
  }

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

  Activation forward(const Activation& x, const Trace& trace) override {
    const Activation active = batch_norm_relu(bn1_, "bn1", x, trace);
    Activation y = trace("conv1", convolve(conv1_, active));
    y = batch_norm_relu(bn2_, "bn2", y, trace);
    if (dropout_) y = trace("dropout", y.map([&](const Tensor& data) { return dropout_->forward(data); }));
    y = trace("conv2", convolve(conv2_, y));
    // Where the shape changes, the shortcut starts after the activation, as in the authors' code.
    return add_over(y, shortcut_ ? trace("convShortcut", convolve(shortcut_, active)) : x);
  }

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
  Activation forward(Activation x, const Trace& trace) const {
    for (const auto& [name, block] : blocks_) x = trace(name, block->forward(x, trace.inside(name)));
    return x;
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

 protected:
  Tensor compute(const Tensor& images, const Trace& trace) override {
    Activation x = trace("conv1", convolve(conv1_, images));
    x = batch_norm_relu(bn1_, "bn1", x, trace);
    x = global_average(blocks_.forward(x, trace));
    return trace("linear", linear_->forward(x.plain()));
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

 protected:
  Tensor compute(const Tensor& images, const Trace& trace) override {
    Activation x = trace("conv1", convolve(conv1_, images));
    x = blocks_.forward(x, trace);
    x = global_average(batch_norm_relu(bn1_, "bn1", x, trace));
    return trace("fc", fc_->forward(x.plain()));
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
