// espalier data: is the data of a configuration there and whole, and what is in it?
#include <torch/torch.h>

#include <numeric>

#include "commands.h"
#include "espalier/core/error.h"
#include "espalier/data/dataset.h"
#include "espalier/train/environment.h"
#include "espalier/train/experiment.h"
#include "espalier/train/json.h"

namespace espalier::cli {
namespace {

using train::Json;

struct DataArguments {
  ConfigArguments config;
  std::string name;
  bool json = false;
};

/// A data set by name is the configuration of the defaults with that name.
train::RunConfig configuration(const DataArguments& a, const Context& context) {
  ESPALIER_CHECK(a.name.empty() || !a.config.given(), ErrorKind::usage,
                 "data: give --name or a configuration, not both");
  ESPALIER_CHECK(!a.name.empty() || a.config.given(), ErrorKind::usage,
                 "data: which data set? --name NAME (espalier list datasets), a configuration file or --preset NAME");
  train::ConfigSources from = sources(a.config, context);
  if (!a.name.empty()) from.flags.push_back({"--name", "data.name", a.name});
  return train::load_config(from);
}

Json split_json(const data::Images& images, const data::Dataset& dataset) {
  Json counts = Json::object();
  const at::Tensor bins = images.labels.bincount({}, dataset.num_classes());
  for (std::int64_t c = 0; c < dataset.num_classes(); ++c) {
    counts[dataset.classes[static_cast<std::size_t>(c)]] = bins[c].item<std::int64_t>();
  }
  // Of images that are read when they are needed, nothing is held.
  const std::int64_t bytes = images.source ? 0 : static_cast<std::int64_t>(images.pixels.nbytes());
  return {{"samples", images.size()}, {"bytes", bytes}, {"classes", counts}};
}

/// Reads every image of a source; throws, naming the file, if one is damaged.
void read_all(const data::Images& images) {
  if (!images.source) return;
  std::vector<std::int64_t> indices(static_cast<std::size_t>(images.size()));
  std::iota(indices.begin(), indices.end(), std::int64_t{0});
  const data::Loader loader(images, indices, {{0, 0, 0}, {1, 1, 1}}, {});
  for (std::int64_t b = 0; b < loader.batches_per_epoch(); ++b) loader.batch(0, b);
}

int run(const DataArguments& a, Context& context, bool check_only) {
  const train::RunConfig config = configuration(a, context);
  set_threads(static_cast<int>(config.run.threads));
  const train::RunData run_data(
      config);  // reads every byte: throws, naming the file, if anything is missing or damaged
  const data::Dataset& dataset = run_data.dataset();
  if (check_only) {
    read_all(dataset.train);
    read_all(dataset.test);
  }
  const auto shape = run_data.input_shape();
  Json out = {{"name", dataset.name},
              {"source", dataset.source},
              {"shape", {shape.channels, shape.height, shape.width}},
              {"classes", dataset.num_classes()},
              {"train_samples", run_data.train_size()},
              {"validation_samples", run_data.has_validation() ? run_data.validation_batches().size() : 0},
              {"test_samples", dataset.test.size()}};
  if (!check_only) {
    const auto norm = run_data.normalisation();
    out["mean"] = std::vector<double>(norm.mean.begin(), norm.mean.end());
    out["std"] = std::vector<double>(norm.std.begin(), norm.std.end());
    out["train"] = split_json(dataset.train, dataset);
    out["test"] = split_json(dataset.test, dataset);
  }
  if (a.json) {
    context.console.print(train::to_json_text(out));
    return 0;
  }
  std::string text =
      fmt::format("{} from {}: {} images, {} classes; {} to train, {} to validate, {} to test\n", dataset.name,
                  dataset.source, shape.text(), dataset.num_classes(), run_data.train_size(),
                  out.at("validation_samples").get<std::int64_t>(), dataset.test.size());
  if (!check_only) {
    text += fmt::format("normalised by mean {:.4f} and standard deviation {:.4f} of pixels / 255\n\n",
                        fmt::join(run_data.normalisation().mean, ", "), fmt::join(run_data.normalisation().std, ", "));
    std::vector<std::vector<std::string>> rows = {{"class", "train", "test"}};
    for (const auto& name : dataset.classes) {
      rows.push_back({name, out["train"]["classes"][name].dump(), out["test"]["classes"][name].dump()});
    }
    text += columns(rows);
  } else {
    text += "every file is there and whole\n";
  }
  context.console.print(text);
  return 0;
}

void add(CLI::App& parent, Context& context, const char* name, const char* help, bool check_only) {
  auto a = std::make_shared<DataArguments>();
  CLI::App* command = parent.add_subcommand(name, help);
  command->add_option("--name", a->name, "a data set with default options (espalier list datasets)")
      ->option_text("NAME");
  add_config_arguments(*command, a->config);
  command->add_flag("--json", a->json, "one JSON document on standard output");
  on_run(*command, context, [a, &context, check_only] { return run(*a, context, check_only); });
}

}  // namespace

void add_data_command(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("data", "Check and describe data sets");
  command->require_subcommand(1);
  add(*command, context, "check", "Read a data set whole; exit status 3 names what is missing or damaged", true);
  add(*command, context, "describe", "Sizes, classes and normalisation of a data set", false);
  command->footer(
      "Examples:\n  espalier data check --name mnist --data-root DIR\n  espalier data describe --preset cifar10-cnn");
}

}  // namespace espalier::cli
