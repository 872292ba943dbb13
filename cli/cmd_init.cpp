// espalier init: prunes a network before it is trained, and writes its masks and weights.
#include <cstdio>
#include <filesystem>

#include "commands.h"
#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/methods/prune_at_init.h"
#include "espalier/train/environment.h"
#include "espalier/train/init_report.h"
#include "espalier/train/safetensors.h"

namespace espalier::cli {
namespace {

struct InitArguments {
  ConfigArguments config;
  std::string model, method, sparsity, distribution, data, input, out, weights;
  std::int64_t classes = 0;
  bool json = false;
};

/// "3x32x32"
nn::InputShape shape_of(const std::string& text) {
  nn::InputShape shape;
  char rest = 0;
  long long c = 0, h = 0, w = 0;
  const bool good = std::sscanf(text.c_str(), "%lldx%lldx%lld%c", &c, &h, &w, &rest) == 3 && c > 0 && h > 0 && w > 0;
  ESPALIER_CHECK(good, ErrorKind::usage, "--input {}: expected channels x height x width, e.g. 3x32x32", text);
  shape.channels = c;
  shape.height = h;
  shape.width = w;
  return shape;
}

train::RunConfig configuration(const InitArguments& a, const Context& context) {
  train::ConfigSources from = sources(a.config, context);
  const auto flag = [&](const char* name, const char* key, const std::string& value) {
    if (!value.empty()) from.flags.push_back({name, key, value});
  };
  flag("--model", "model.name", a.model);
  flag("--method", "method.name", a.method);
  flag("--sparsity", "sparsity.sparsity", a.sparsity);
  flag("--data", "data.name", a.data);
  if (!a.distribution.empty())
    flag("--distribution", "sparsity.distribution", a.distribution);
  else if (!a.config.given())
    flag("--distribution", "sparsity.distribution", "global");  // scores are compared across layers, as in the papers
  train::RunConfig config = train::load_config(from);
  ESPALIER_CHECK(
      config.method.make()->is_static(), ErrorKind::usage,
      "method \"{}\" goes on changing its masks in training; init is for methods that prune before it: random, "
      "magnitude-at-init, snip, grasp, synflow, phew, … (espalier list methods)",
      config.method.name());
  if (config.model.storage == "auto") config.model.storage = "masked";  // nothing is trained here
  return config;
}

std::string table_of(const train::InitReport& report) {
  std::vector<std::vector<std::string>> rows = {{"weight", "shape", "kept", "share", "width"}};
  if (report.walks) rows[0].push_back("walks through a unit");
  if (report.has_flow) rows[0].insert(rows[0].end(), {"flow", "trace"});
  for (const train::InitLayer& l : report.layers) {
    std::vector<std::string> row = {l.name, fmt::format("{}", fmt::join(l.shape, "x")), fmt::format("{}", l.nnz),
                                    fmt::format("{:.4f}", static_cast<double>(l.nnz) / static_cast<double>(l.weights)),
                                    l.width ? fmt::format("{}/{}", *l.width, l.units) : "-"};
    if (report.walks) {
      row.push_back(l.visits ? fmt::format("{:.1f} ({}-{})", l.visits->mean, l.visits->least, l.visits->most) : "-");
    }
    if (report.has_flow) {
      row.push_back(fmt::format("{:.4g}", l.flow));
      row.push_back(fmt::format("{:.4g}", l.trace));
    }
    rows.push_back(row);
  }
  std::string text = columns(rows);
  text += fmt::format("\n{} of {} weights kept, sparsity {:.6f}\n", report.nnz, report.weights,
                      1 - static_cast<double>(report.nnz) / static_cast<double>(report.weights));
  if (report.walks) text += fmt::format("{} walks\n", *report.walks);
  if (report.has_flow)
    text += fmt::format("SynFlow's R {:.6g}, trace of the path kernel {:.6g}\n", report.flow, report.trace);
  else
    text += fmt::format("flow and trace not measured: {}\n", report.no_flow);
  return text;
}

int run(const InitArguments& a, Context& context) {
  const train::RunConfig config = configuration(a, context);
  set_threads(static_cast<int>(config.run.threads));
  // Data are read where they are asked for; otherwise a shape is all that a network needs.
  std::optional<train::RunData> data;
  const auto method = config.method.make();
  const bool wants_data = dynamic_cast<const PruneWithData*>(method.get()) != nullptr;
  if (wants_data || (a.input.empty() && (!a.data.empty() || a.config.given()))) data.emplace(config);
  nn::InputShape input = data ? data->input_shape() : nn::meant_for(config.model.name);
  std::int64_t classes = data ? data->dataset().num_classes() : 10;
  if (!a.input.empty()) {
    ESPALIER_CHECK(!data || shape_of(a.input) == input, ErrorKind::usage,
                   "--input {}: the data set {} has images of {}; leave --input out", a.input, config.data.name,
                   input.text());
    input = shape_of(a.input);
  }
  if (a.classes > 0) {
    ESPALIER_CHECK(!data || a.classes == classes, ErrorKind::usage,
                   "--classes {}: the data set {} has {}; leave --classes out", a.classes, config.data.name, classes);
    classes = a.classes;
  }

  train::NamedTensors weights;
  train::ModelStart start;
  if (data) start.data = &*data;
  if (!a.weights.empty()) {
    ESPALIER_CHECK(std::filesystem::is_regular_file(a.weights), ErrorKind::usage, "--weights {}: no such file",
                   a.weights);
    weights = train::load_safetensors(a.weights).tensors;
    start.weights = &weights;
  }
  const train::SparseModel model = train::make_sparse_model(config, input, classes, {0, 1, 1}, {}, start);
  const train::InitReport report = train::init_report(config, model);
  for (const train::InitLayer& l : report.layers) {
    if (l.nnz == 0) log_warning(fmt::format("{} has no weight left: nothing passes through this layer", l.name));
  }
  if (!a.out.empty()) {
    auto metadata = train::state_metadata(model);
    metadata["tool"] = "espalier";
    metadata["model"] = config.model.name;
    metadata["method"] = config.method.name();
    metadata["sparsity"] = fmt::format("{}", config.sparsity.sparsity);
    metadata["seed"] = fmt::format("{}", config.run.seed);
    train::save_safetensors(a.out, train::state_dict(model), metadata);
    log_info(fmt::format("masks and weights written to {}", a.out));
  }
  if (a.json) {
    train::Json out = {{"schema", 1}, {"model", config.model.name}, {"method", config.method.name()}};
    out["seed"] = config.run.seed;
    out["input"] = {input.channels, input.height, input.width};
    out["classes"] = classes;
    out["out"] = a.out.empty() ? train::Json(nullptr) : train::Json(a.out);
    out.update(train::to_json(report));
    context.console.print(train::to_json_text(out));
  } else {
    context.console.print(table_of(report));
  }
  return 0;
}

}  // namespace

void add_init_command(CLI::App& app, Context& context) {
  auto a = std::make_shared<InitArguments>();
  CLI::App* command = app.add_subcommand("init", "Prune a network before it is trained; write its masks and weights");
  add_config_arguments(*command, a->config);
  command->add_option("--model", a->model, "the network (espalier list models)")->option_text("NAME");
  command->add_option("--method", a->method, "what chooses the weights, e.g. phew, synflow, snip")->option_text("NAME");
  command->add_option("--sparsity", a->sparsity, "share of zeros, e.g. 0.98")->option_text("SHARE");
  command
      ->add_option("--distribution", a->distribution,
                   "how layers share what is kept: uniform, er, erk; global ranks all weights together (the default "
                   "without a configuration)")
      ->option_text("NAME");
  command->add_option("--data", a->data, "data set, for methods that look at data and for the shape of images")
      ->option_text("NAME");
  command
      ->add_option("--input", a->input,
                   "channels x height x width of an image, where no data are read (default: what the model is meant "
                   "for)")
      ->option_text("CxHxW");
  command->add_option("--classes", a->classes, "outputs of the network, where no data are read (default 10)")
      ->check(CLI::Range(2, 1 << 30))
      ->option_text("N");
  command
      ->add_option("--weights", a->weights,
                   "begin with the weights of this safetensors file (names as in Python's state_dict)")
      ->option_text("FILE");
  command->add_option("--out", a->out, "write masks and weights to this safetensors file")->option_text("FILE");
  command->add_flag("--json", a->json, "one JSON document on standard output");
  command->footer(
      "Examples:\n"
      "  espalier init --model vgg16 --method phew --sparsity 0.98 --seed 1 --out masks.safetensors\n"
      "  espalier init --model lenet-300-100 --method snip --sparsity 0.95 --data mnist --data-root DIR\n"
      "  espalier train --preset mnist-lenet300 --structure-from masks.safetensors");
  on_run(*command, context, [a, &context] { return run(*a, context); });
}

}  // namespace espalier::cli
