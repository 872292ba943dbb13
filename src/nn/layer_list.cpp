#include "nn/layer_list.h"

#include <torch/torch.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <functional>
#include <map>
#include <optional>

#include "espalier/core/error.h"
#include "espalier/nn/activation.h"
#include "espalier/ops/relu.h"
#include "nn/layers.h"

namespace espalier::nn {
namespace {

using torch::Tensor;

// --- reading one element: name(value, key=value, …) -----------------------------------------------------------------

struct Parameter {
  enum Type { integer, pair, number, boolean, outputs };  // pair: "3" or "3x5" (height x width); outputs: or "classes"
  const char* name;
  Type type;
  const char* preset;  // "" = must be given
  double low = 0;      // inclusive, numbers too
  double high = 1 << 30;
};

struct Kind {
  const char* name;
  const char* short_name;             // in Naming::by_kind; "" = no module of its own
  std::vector<Parameter> parameters;  // in the order in which values without a key are taken
};

const std::vector<Kind>& kinds() {
  using P = Parameter;
  static const std::vector<Kind> kAll = {
      {"conv",
       "conv",
       {{"outputs", P::outputs, "", 1},
        {"kernel", P::pair, "", 1},
        {"stride", P::pair, "1", 1},
        {"padding", P::pair, "0", 0},
        {"dilation", P::pair, "1", 1},
        {"groups", P::integer, "1", 1},
        {"bias", P::boolean, "true"}}},
      {"linear", "fc", {{"outputs", P::outputs, "", 1}, {"bias", P::boolean, "true"}}},
      {"batchnorm", "bn", {{"eps", P::number, "1e-5", 1e-30, 1}, {"momentum", P::number, "0.1", 0, 1}}},
      {"relu", "", {}},
      {"leakyrelu", "", {{"slope", P::number, "0.01", 0, 1}}},
      {"tanh", "", {}},
      {"sigmoid", "", {}},
      {"gelu", "", {}},
      {"silu", "", {}},
      {"maxpool", "", {{"kernel", P::pair, "", 1}, {"stride", P::pair, "kernel", 1}, {"padding", P::pair, "0", 0}}},
      {"avgpool", "", {{"kernel", P::pair, "", 1}, {"stride", P::pair, "kernel", 1}, {"padding", P::pair, "0", 0}}},
      {"globalmaxpool", "", {}},
      {"globalavgpool", "", {}},
      {"flatten", "", {}},
      {"dropout", "dropout", {{"p", P::number, "0.5", 0, 1}}},
  };
  return kAll;
}

using Pair = std::array<std::int64_t, 2>;  // height, width
struct Value {
  Pair pair{};  // integers in both places
  double number = 0;
};

struct Element {
  std::size_t index = 0;
  std::string text;
  const Kind* kind = nullptr;
  std::map<std::string, Value> arguments;

  std::int64_t integer(const char* name) const { return arguments.at(name).pair[0]; }
  const Pair& pair(const char* name) const { return arguments.at(name).pair; }
  double number(const char* name) const { return arguments.at(name).number; }
  bool flag(const char* name) const { return integer(name) != 0; }
};

std::string trimmed(const std::string& s) {
  const auto first = s.find_first_not_of(" \t");
  if (first == std::string::npos) return "";
  return s.substr(first, s.find_last_not_of(" \t") - first + 1);
}

template <class T>
std::optional<T> number_of(const std::string& s) {
  T v{};
  const auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), v);
  if (error != std::errc() || end != s.data() + s.size()) return std::nullopt;
  return v;
}

/// Throws Error(usage) that says what `text` should have been.
Value read_value(const Parameter& p, const std::string& text, std::int64_t classes) {
  const auto bounded = [&](auto v) {
    const bool inside = static_cast<double>(v) >= p.low && static_cast<double>(v) <= p.high;  // false for nan
    ESPALIER_CHECK(inside, ErrorKind::usage, "{} = {}: expected {} to {}", p.name, text, p.low, p.high);
    return v;
  };
  Value value;
  switch (p.type) {
    case Parameter::boolean: {
      ESPALIER_CHECK(text == "true" || text == "false", ErrorKind::usage, "{} = {}: expected true or false", p.name,
                     text);
      value.pair[0] = text == "true";
      return value;
    }
    case Parameter::number: {
      const auto v = number_of<double>(text);
      ESPALIER_CHECK(v.has_value(), ErrorKind::usage, "{} = {}: expected a number", p.name, text);
      value.number = bounded(*v);
      return value;
    }
    case Parameter::pair: {
      const auto x = text.find('x');
      const auto height = number_of<std::int64_t>(text.substr(0, x));
      const auto width = x == std::string::npos ? height : number_of<std::int64_t>(text.substr(x + 1));
      ESPALIER_CHECK(height && width, ErrorKind::usage,
                     "{} = {}: expected a whole number, or two as in 3x5 (height x width)", p.name, text);
      value.pair = {bounded(*height), bounded(*width)};
      return value;
    }
    case Parameter::outputs:
      if (text == "classes") {
        value.pair = {classes, classes};
        return value;
      }
      break;
    case Parameter::integer: break;
  }
  const auto v = number_of<std::int64_t>(text);
  ESPALIER_CHECK(v.has_value(), ErrorKind::usage, "{} = {}: expected a whole number{}", p.name, text,
                 p.type == Parameter::outputs ? " or classes" : "");
  value.pair = {bounded(*v), *v};
  return value;
}

std::string signature(const Kind& kind) {
  std::string out;
  for (const Parameter& p : kind.parameters) {
    out += (out.empty() ? "" : ", ") + std::string(p.name) + (*p.preset != '\0' ? std::string("=") + p.preset : "");
  }
  return out.empty() ? kind.name : fmt::format("{}({})", kind.name, out);
}

/// Throws Error(usage) without saying where: the caller knows.
Element read_element(const std::string& text, std::int64_t classes) {
  Element element;
  element.text = text;
  const std::string call = trimmed(text);
  const auto open = call.find('(');
  const std::string name = trimmed(call.substr(0, open));
  for (const Kind& k : kinds())
    if (name == k.name) element.kind = &k;
  if (element.kind == nullptr) {
    std::vector<std::string> known;
    for (const Kind& k : kinds()) known.emplace_back(k.name);
    fail(ErrorKind::usage, "unknown layer \"{}\". Known: {}.{}", name, fmt::join(known, ", "), suggestion(name, known));
  }
  const Kind& kind = *element.kind;

  std::string inside;
  if (open != std::string::npos) {
    const auto close = call.find(')', open);
    ESPALIER_CHECK(close != std::string::npos, ErrorKind::usage, "the bracket is not closed");
    ESPALIER_CHECK(close + 1 == call.size(), ErrorKind::usage, "\"{}\" after the closing bracket",
                   call.substr(close + 1));
    inside = call.substr(open + 1, close - open - 1);
  }

  std::map<std::string, std::string> given;
  bool keys_begun = false;
  std::size_t place = 0;
  for (std::size_t begin = 0; !trimmed(inside).empty() && begin <= inside.size();) {
    const auto comma = std::min(inside.find(',', begin), inside.size());
    const std::string argument = trimmed(inside.substr(begin, comma - begin));
    begin = comma + 1;
    const auto equals = argument.find('=');
    std::string key, value;
    if (equals == std::string::npos) {
      ESPALIER_CHECK(!keys_begun, ErrorKind::usage, "\"{}\" without a key after an argument with one", argument);
      ESPALIER_CHECK(place < kind.parameters.size(), ErrorKind::usage, "more arguments than {} takes: {}", name,
                     signature(kind));
      key = kind.parameters[place++].name;
      value = argument;
    } else {
      keys_begun = true;
      key = trimmed(argument.substr(0, equals));
      value = trimmed(argument.substr(equals + 1));
      std::vector<std::string> known;
      for (const Parameter& p : kind.parameters) known.emplace_back(p.name);
      ESPALIER_CHECK(std::find(known.begin(), known.end(), key) != known.end(), ErrorKind::usage,
                     "unknown argument \"{}\". Known: {}.{}", key, signature(kind), suggestion(key, known));
    }
    ESPALIER_CHECK(!value.empty(), ErrorKind::usage, "argument \"{}\" has no value", key);
    ESPALIER_CHECK(given.emplace(key, value).second, ErrorKind::usage, "argument \"{}\" is given twice", key);
  }

  for (const Parameter& p : kind.parameters) {
    const auto found = given.find(p.name);
    std::string value = found != given.end() ? found->second : p.preset;
    ESPALIER_CHECK(!value.empty(), ErrorKind::usage, "\"{}\" is missing: {}", p.name, signature(kind));
    if (found == given.end() && value == "kernel") {  // a pool's stride
      element.arguments[p.name] = element.arguments.at("kernel");
    } else {
      element.arguments[p.name] = read_value(p, value, classes);
    }
  }
  return element;
}

std::vector<Element> read_elements(const std::vector<std::string>& layers, const std::string& where,
                                   std::int64_t classes) {
  std::vector<Element> elements;
  std::string errors;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    try {
      elements.push_back(read_element(layers[i], classes));
      elements.back().index = i;
    } catch (const Error& e) {
      errors += fmt::format("{}{}[{}] = \"{}\": {}", errors.empty() ? "" : "\n", where, i, layers[i], e.what());
    }
  }
  if (!errors.empty()) throw Error(ErrorKind::usage, errors);
  return elements;
}

/// The outputs of each weight layer but the last, which gives the logits.
void scale(std::vector<Element>& elements, const std::string& where,
           const std::function<std::int64_t(std::int64_t)>& scaled) {
  std::vector<Element*> weights;
  for (Element& e : elements)
    if (e.arguments.count("outputs") != 0) weights.push_back(&e);
  if (!weights.empty()) weights.pop_back();
  for (Element* e : weights) {
    Pair& outputs = e->arguments.at("outputs").pair;
    const std::int64_t now = scaled(outputs[0]);
    if (now == outputs[0]) continue;
    for (const Element& other : elements) {
      ESPALIER_CHECK(other.arguments.count("groups") == 0 || other.integer("groups") == 1, ErrorKind::usage,
                     "model.max_weights: {}[{}] = \"{}\" has groups, which must divide its channels, so a list with it "
                     "cannot shrink by any factor; write smaller widths",
                     where, other.index, other.text);
    }
    outputs = {now, now};
  }
}

// --- the network ----------------------------------------------------------------------------------------------------

/// What flows between two layers: an image, or a vector of `channels` features.
struct Features {
  bool is_image = true;
  std::int64_t channels = 0;
  Pair size = {1, 1};
  std::int64_t count() const { return channels * size[0] * size[1]; }
  std::string text() const {
    return is_image ? fmt::format("an image of {}x{}x{}", channels, size[0], size[1])
                    : fmt::format("a vector of {}", channels);
  }
};

class LayerList : public Network {
 public:
  LayerList(const std::vector<Element>& elements, Naming naming, const std::string& where, const InputShape& input,
            std::int64_t classes, Compress compressed)
      : Network(input, classes),
        naming_(naming),
        compressed_(std::move(compressed)),
        shape_{true, input.channels, {input.height, input.width}} {
    for (const Element& e : elements) {
      try {
        append(e);
      } catch (const Error& error) {
        fail(error.kind(), "{}[{}] = \"{}\": {}", where, e.index, e.text, error.what());
      }
    }
    fuse();
    ESPALIER_CHECK(
        !shape_.is_image && shape_.channels == classes, ErrorKind::usage,
        "{}: the last layer gives {}, expected a vector of {}, one logit a class: end with \"linear(classes)\"", where,
        shape_.text(), classes);
    ESPALIER_CHECK(!parameters().empty(), ErrorKind::usage, "{}: no layer has weights", where);
  }

 protected:
  Activation compute(const Tensor& images, const Trace& trace) override {
    Activation x = images;
    for (std::size_t i = 0; i < steps_.size(); ++i) {
      const Step& step = steps_[i];
      if (step.fused && !trace.observed()) {
        x = step.fused(x);
        if (step.with_next) ++i;
      } else {
        x = step.name.empty() ? step.apply(x) : trace(step.name, step.apply(x));
      }
    }
    return x;
  }

 private:
  using Function = std::function<Tensor(const Tensor&)>;
  using LayerFunction = std::function<Activation(const Activation&)>;
  struct Step {
    std::string name;  // "" = not observed
    LayerFunction apply;
    bool is_relu = false;
    LayerFunction with_relu;  // this step and a ReLU after it in one pass, where it can
    std::function<Activation(const Activation&, const ops::BesideRelu&)> beside_relu;  // likewise, and before it
    LayerFunction fused;     // what is computed instead of `apply` where nobody looks on, ...
    bool with_next = false;  // ... which the next step is part of
  };

  /// ReLUs into the steps beside them.
  void fuse() {
    const auto is_relu = [&](std::size_t i) { return i < steps_.size() && steps_[i].is_relu; };
    const auto knows_relu = [&](std::size_t i) { return i < steps_.size() && steps_[i].beside_relu != nullptr; };
    for (std::size_t i = 0; i < steps_.size(); ++i) {
      Step& step = steps_[i];
      step.with_next = is_relu(i + 1) && (step.with_relu || step.beside_relu);
      if (step.beside_relu) {
        ops::BesideRelu relu;
        relu.behind = step.with_next;
        relu.masked_behind = step.with_next && knows_relu(i + 2);
        relu.before = i >= 2 && is_relu(i - 1) && knows_relu(i - 2);
        step.fused = [f = step.beside_relu, relu](const Activation& x) { return f(x, relu); };
      } else if (step.with_next) {
        step.fused = step.with_relu;
      }
    }
  }

  void append(const Element& e) {
    const std::string kind = e.kind->name;
    std::string name;
    if (naming_ == Naming::by_index) {
      name = std::to_string(e.index);
    } else if (*e.kind->short_name != '\0') {
      name = fmt::format("{}{}", e.kind->short_name, ++count_[kind]);
    }
    steps_.emplace_back();
    steps_.back().name = name;
    steps_.back().is_relu = kind == "relu";
    // relu may write in place on a tensor that nobody else holds and that no backward pass needs.
    const bool may_overwrite = may_overwrite_;
    may_overwrite_ = kind == "conv" || kind == "linear" || kind == "batchnorm" || kind == "maxpool" ||
                     kind == "avgpool" || (kind == "flatten" && may_overwrite);

    if (kind == "conv") {
      append_conv(e);
    } else if (kind == "linear") {
      ESPALIER_CHECK(!shape_.is_image, ErrorKind::usage, "gets {}; put \"flatten\" or \"globalavgpool\" before it",
                     shape_.text());
      weights(torch::nn::LinearOptions(shape_.channels, e.integer("outputs")).bias(e.flag("bias")));
      shape_.channels = e.integer("outputs");
    } else if (kind == "batchnorm") {
      const auto options =
          torch::nn::BatchNormOptions(shape_.channels).eps(e.number("eps")).momentum(e.number("momentum"));
      if (shape_.is_image)
        batch_norm_module(torch::nn::BatchNorm2d(options));
      else
        batch_norm_module(torch::nn::BatchNorm1d(options));
    } else if (kind == "dropout") {
      module(torch::nn::Dropout(e.number("p")), Entries::each);
    } else if (kind == "maxpool" || kind == "avgpool") {
      append_pool(e, kind == "maxpool");
    } else if (kind == "globalmaxpool" || kind == "globalavgpool") {
      need_image();
      steps_.back().apply = kind == "globalmaxpool" ? &global_max : &global_average;
      shape_ = {false, shape_.channels};
    } else if (kind == "flatten") {
      steps_.back().apply = &flatten;
      shape_ = {false, shape_.count()};
    } else {
      function(activation(e, may_overwrite), Entries::each);
    }
  }

  void append_conv(const Element& e) {
    need_image();
    const std::int64_t outputs = e.integer("outputs"), groups = e.integer("groups");
    ESPALIER_CHECK(shape_.channels % groups == 0 && outputs % groups == 0, ErrorKind::usage,
                   "groups = {} must divide the channels that come in, {}, and those that go out, {}", groups,
                   shape_.channels, outputs);
    const Pair kernel = e.pair("kernel"), stride = e.pair("stride"), padding = e.pair("padding"),
               dilation = e.pair("dilation");
    const Pair size = windows(kernel, stride, padding, dilation);
    weights(torch::nn::Conv2dOptions(shape_.channels, outputs, list(kernel))
                .stride(list(stride))
                .padding(list(padding))
                .dilation(list(dilation))
                .groups(groups)
                .bias(e.flag("bias")));
    shape_ = {true, outputs, size};
  }

  void append_pool(const Element& e, bool max) {
    need_image();
    const Pair kernel = e.pair("kernel"), stride = e.pair("stride"), padding = e.pair("padding");
    ESPALIER_CHECK(2 * padding[0] <= kernel[0] && 2 * padding[1] <= kernel[1], ErrorKind::usage,
                   "padding {}x{} is more than half the kernel {}x{}", padding[0], padding[1], kernel[0], kernel[1]);
    const Pair size = windows(kernel, stride, padding, {1, 1});
    steps_.back().apply = [max, pool = ops::Pool{kernel, stride, padding}](const Activation& x) {
      return max ? max_pool(x, pool) : average_pool(x, pool);
    };
    shape_ = {true, shape_.channels, size};
  }

  static Function activation(const Element& e, bool in_place) {
    const std::string kind = e.kind->name;
    if (kind == "relu") {
      if (in_place) return [](const Tensor& x) { return ops::relu_over(x); };
      return [](const Tensor& x) { return ops::relu(x); };
    }
    if (kind == "leakyrelu")
      return [slope = e.number("slope")](const Tensor& x) { return torch::leaky_relu(x, slope); };
    if (kind == "tanh") return [](const Tensor& x) { return torch::tanh(x); };
    if (kind == "sigmoid") return [](const Tensor& x) { return torch::sigmoid(x); };
    if (kind == "gelu") return [](const Tensor& x) { return torch::gelu(x); };
    ESPALIER_ASSERT(kind == "silu");
    return [](const Tensor& x) { return torch::silu(x); };
  }

  /// Does a function look at entries one by one? Then it works on any layout.
  enum class Entries { together, each };

  template <class Holder>
  void module(Holder holder, Entries entries = Entries::together) {
    register_module(steps_.back().name, holder);
    function([impl = holder.get()](const Tensor& x) { return impl->forward(x); }, entries);  // the registry keeps it
  }
  template <class Options>
  void weights(const Options& options) {
    Step& step = steps_.back();
    const WeightLayer layer = weight_layer(options, compressed_(step.name));
    register_module(step.name, layer.module);
    step.apply = layer.apply;
    step.beside_relu = layer.beside_relu;
  }
  template <class Holder>
  void batch_norm_module(Holder holder) {
    register_module(steps_.back().name, holder);
    auto* const impl = holder.get();
    steps_.back().apply = [impl](const Activation& x) { return batch_norm(*impl, x); };
    steps_.back().with_relu = [impl](const Activation& x) { return batch_norm(*impl, x, /*relu=*/true); };
  }
  void function(Function f, Entries entries = Entries::together) {
    if (entries == Entries::each)
      steps_.back().apply = [f = std::move(f)](const Activation& x) { return x.map(f); };
    else
      steps_.back().apply = [f = std::move(f)](const Activation& x) { return Activation(f(x.plain())); };
  }

  void need_image() const {
    ESPALIER_CHECK(shape_.is_image, ErrorKind::usage, "needs an image and gets {}; it must come before \"flatten\"",
                   shape_.text());
  }

  /// How many places a window has, down and across.
  Pair windows(const Pair& kernel, const Pair& stride, const Pair& padding, const Pair& dilation) const {
    Pair size, window, padded;
    for (std::size_t i = 0; i < 2; ++i) {
      window[i] = dilation[i] * (kernel[i] - 1) + 1;
      padded[i] = shape_.size[i] + 2 * padding[i];
      size[i] = (padded[i] - window[i]) / stride[i] + 1;
    }
    ESPALIER_CHECK(window[0] <= padded[0] && window[1] <= padded[1], ErrorKind::usage,
                   "the kernel, {}x{}{}, is larger than the image, {}x{}{}", window[0], window[1],
                   window == kernel ? "" : " with its dilation", padded[0], padded[1],
                   padding == Pair{0, 0} ? "" : " with its padding");
    return size;
  }

  static torch::ExpandingArray<2> list(const Pair& p) { return torch::ExpandingArray<2>({p[0], p[1]}); }

  Naming naming_;
  Compress compressed_;
  Features shape_;              // of what the last step gives
  bool may_overwrite_ = false;  // not the images: they are the caller's
  std::map<std::string, int> count_;
  std::vector<Step> steps_;
};

}  // namespace

std::shared_ptr<Network> make_layer_list(const std::vector<std::string>& layers, Naming naming,
                                         const std::string& where, const InputShape& input, std::int64_t classes,
                                         const Compress& compressed,
                                         const std::function<std::int64_t(std::int64_t)>& scaled) {
  std::vector<Element> elements = read_elements(layers, where, classes);
  if (scaled) scale(elements, where, scaled);
  return std::make_shared<LayerList>(elements, naming, where, input, classes, compressed);
}

}  // namespace espalier::nn
