// espalier inspect: what a run, a checkpoint or a safetensors file holds.
#include <torch/torch.h>

#include <filesystem>
#include <map>

#include "commands.h"
#include "espalier/core/error.h"
#include "espalier/train/checkpoint.h"
#include "espalier/train/json.h"
#include "espalier/train/safetensors.h"

namespace espalier::cli {
namespace {

namespace fs = std::filesystem;
using train::Json;

struct InspectArguments {
  std::string path;
  double epsilon = 0.01;
  std::int64_t bins = 0;
  bool best = false, json = false;
};

std::string shape_text(at::IntArrayRef shape) {
  return shape.empty() ? "scalar" : fmt::format("{}", fmt::join(shape, "x"));
}

/// The name of a compressed weight, if `name` is one of its tensors: <weight>.values, .crow_indices, .col_indices.
std::string compressed_weight(const std::string& name, const std::map<std::string, at::Tensor>& by_name) {
  for (const char* part : {".values", ".crow_indices", ".col_indices"}) {
    const std::string ending = part;
    if (name.size() <= ending.size() || name.compare(name.size() - ending.size(), ending.size(), ending) != 0) continue;
    const std::string weight = name.substr(0, name.size() - ending.size());
    if (by_name.count(weight + ".values") + by_name.count(weight + ".crow_indices") +
            by_name.count(weight + ".col_indices") ==
        3)
      return weight;
  }
  return "";
}

/// The shape that the metadata gives a compressed weight, else its rows and "unknown" as 0 columns.
std::vector<std::int64_t> compressed_shape(const std::string& weight, const at::Tensor& crow,
                                           const std::map<std::string, std::string>& metadata) {
  const auto text = metadata.find(weight + ".shape");
  if (text != metadata.end()) {
    const Json shape = Json::parse(text->second, nullptr, /*allow_exceptions=*/false);
    const bool good = shape.is_array() && !shape.empty() &&
                      std::all_of(shape.begin(), shape.end(), [](const Json& d) { return d.is_number_unsigned(); });
    if (good) return shape.get<std::vector<std::int64_t>>();
  }
  return {std::max<std::int64_t>(0, crow.numel() - 1), 0};
}

/// One row for each tensor, and for each compressed weight; for a weight that has a mask, nnz is what the mask keeps,
/// else what is not zero.
Json tensor_rows(const train::NamedTensors& tensors, const std::map<std::string, std::string>& metadata,
                 const InspectArguments& a) {
  const std::map<std::string, at::Tensor> by_name(tensors.begin(), tensors.end());
  Json rows = Json::array();
  for (const auto& [name, tensor] : tensors) {
    const std::string weight = compressed_weight(name, by_name);
    if (!weight.empty() && name != weight + ".values") continue;
    const at::Tensor values = tensor.detach().to(torch::kDouble).flatten();
    const auto mask = by_name.find(name + ".mask");
    Json row = {{"name", name},
                {"type", c10::toString(tensor.scalar_type())},
                {"shape", tensor.sizes().vec()},
                {"elements", tensor.numel()},
                {"nnz", (mask != by_name.end() ? mask->second : tensor).count_nonzero().item<std::int64_t>()},
                {"bytes", static_cast<std::int64_t>(tensor.nbytes())}};
    if (!weight.empty()) {
      const at::Tensor &crow = by_name.at(weight + ".crow_indices"), &col = by_name.at(weight + ".col_indices");
      const auto shape = compressed_shape(weight, crow, metadata);
      std::int64_t elements = 1;
      for (const auto d : shape) elements *= d;
      row["name"] = weight;
      row["storage"] = "compressed";
      row["shape"] = shape;
      row["elements"] = elements;
      row["nnz"] = tensor.numel();
      row["bytes"] = static_cast<std::int64_t>(tensor.nbytes() + crow.nbytes() + col.nbytes());
    }
    if (tensor.is_floating_point() && tensor.numel() > 0) {
      row["near_zero"] = (values.abs() < a.epsilon).to(torch::kDouble).mean().item<double>();
      row["mean"] = values.mean().item<double>();
      row["mean_abs"] = values.abs().mean().item<double>();
      row["max_abs"] = values.abs().max().item<double>();
      if (a.bins > 0) {
        const double limit = std::max(row["max_abs"].get<double>(), 1e-300);
        const at::Tensor counts = torch::histc(values, a.bins, -limit, limit).to(torch::kLong).contiguous();
        row["histogram"] = {{"low", -limit},
                            {"high", limit},
                            {"counts", std::vector<std::int64_t>(counts.data_ptr<std::int64_t>(),
                                                                 counts.data_ptr<std::int64_t>() + a.bins)}};
      }
    }
    rows.push_back(row);
  }
  return rows;
}

std::string table_of(const Json& rows) {
  std::vector<std::vector<std::string>> table = {
      {"tensor", "type", "shape", "nnz", "kept", "near zero", "mean |w|", "max |w|", "bytes"}};
  for (const Json& r : rows) {
    const auto elements = r.at("elements").get<std::int64_t>(), nnz = r.at("nnz").get<std::int64_t>();
    const auto number = [&](const char* key, const char* form) {
      return r.contains(key) ? fmt::format(fmt::runtime(form), r.at(key).get<double>()) : std::string("-");
    };
    table.push_back(
        {r.at("name"), r.at("type").get<std::string>() + (r.contains("storage") ? ", compressed" : ""),
         shape_text(r.at("shape").get<std::vector<std::int64_t>>()), fmt::format("{}", nnz),
         elements == 0 ? "-" : fmt::format("{:.4f}", static_cast<double>(nnz) / static_cast<double>(elements)),
         number("near_zero", "{:.4f}"), number("mean_abs", "{:.3g}"), number("max_abs", "{:.3g}"),
         fmt::format("{}", r.at("bytes").get<std::int64_t>())});
  }
  return columns(table);
}

int run(const InspectArguments& a, Context& context) {
  const fs::path path = a.path;
  ESPALIER_CHECK(fs::exists(path), ErrorKind::usage, "{}: no such file or directory", a.path);
  Json out = {{"path", a.path}};
  std::string text;
  train::NamedTensors tensors;
  std::map<std::string, std::string> metadata;
  if (fs::is_regular_file(path)) {
    auto content = train::load_safetensors(path);
    tensors = std::move(content.tensors);
    metadata = content.metadata;
    out["kind"] = "safetensors";
    out["bytes"] = fs::file_size(path);
    out["metadata"] = content.metadata;
    text += fmt::format("{}: safetensors, {} tensors, {} bytes\n", a.path, tensors.size(), fs::file_size(path));
    for (const auto& [key, value] : content.metadata) {
      const bool is_line = value.size() <= 200 && value.find('\n') == std::string::npos;
      text += fmt::format("  {} = {}\n", key, is_line ? value : fmt::format("({} bytes)", value.size()));
    }
  } else {
    const bool is_checkpoint = fs::exists(path / "state.json");
    ESPALIER_CHECK(is_checkpoint || fs::exists(path / "config.toml"), ErrorKind::usage,
                   "{}: neither a run directory (config.toml) nor a checkpoint (state.json) nor a safetensors file",
                   a.path);
    std::optional<train::Checkpoint> checkpoint;
    if (is_checkpoint)
      checkpoint = train::load_checkpoint(path);
    else if (a.best)
      checkpoint = train::load_checkpoint(path / "checkpoints" / "best");
    else
      checkpoint = train::load_latest_checkpoint(path);
    out["kind"] = is_checkpoint ? "checkpoint" : "run";
    if (!is_checkpoint && fs::exists(path / "summary.json")) {
      const Json summary = train::read_json(path / "summary.json");
      out["summary"] = summary;
      for (const char* key : {"status", "model", "data", "method", "reparam", "alpha", "seed", "steps", "test_accuracy",
                              "val_accuracy", "sparsity", "nnz", "weights", "flops_forward", "train_seconds"}) {
        if (summary.contains(key)) text += fmt::format("{:<16}{}\n", key, summary.at(key).dump());
      }
    }
    if (checkpoint) {
      tensors = checkpoint->model;
      metadata = checkpoint->model_metadata;
      out["step"] = checkpoint->step;
      text += fmt::format("{:<16}{}\n", "checkpoint", checkpoint->step);
    } else {
      text += "no checkpoint yet\n";
    }
  }
  out["epsilon"] = a.epsilon;
  out["tensors"] = tensor_rows(tensors, metadata, a);
  if (a.json)
    context.console.print(train::to_json_text(out));
  else
    context.console.print(text + (tensors.empty() ? "" : "\n" + table_of(out["tensors"])));
  return 0;
}

}  // namespace

void add_inspect_command(CLI::App& app, Context& context) {
  auto a = std::make_shared<InspectArguments>();
  CLI::App* command = app.add_subcommand("inspect", "Show what a run, a checkpoint or a safetensors file holds");
  command->add_option("PATH", a->path, "run directory, checkpoint or .safetensors file")->required()->option_text("");
  command
      ->add_option("--epsilon", a->epsilon, "\"near zero\" is the share of values with |w| below this (default 0.01)")
      ->check(CLI::PositiveNumber)
      ->option_text("E");
  command
      ->add_option("--bins", a->bins,
                   "with --json: a histogram of so many equal bins over [-max |w|, max |w|] for each tensor")
      ->check(CLI::Range(1, 10000))
      ->option_text("N");
  command->add_flag("--best", a->best, "the best checkpoint of a run by validation accuracy instead of the latest");
  command->add_flag("--json", a->json, "one JSON document on standard output");
  command->footer(
      "Examples:\n  espalier inspect runs/mine\n  espalier inspect runs/mine/checkpoints/best/model.safetensors --json "
      "--bins 100");
  on_run(*command, context, [a, &context] { return run(*a, context); });
}

}  // namespace espalier::cli
