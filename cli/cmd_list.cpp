/// espalier list: the names that a configuration may use.
#include <memory>
#include <nlohmann/json.hpp>

#include "commands.h"
#include "espalier/core/error.h"

namespace espalier::cli {
namespace {

using Json = nlohmann::ordered_json;

struct Entry {
  std::string name, description;
};

template <class Infos>
std::vector<Entry> entries(const Infos& infos) {
  std::vector<Entry> out;
  for (const auto& info : infos) out.push_back({info.name, info.description});
  return out;
}

const std::vector<std::string> kKinds = {"methods", "models", "datasets", "presets"};

std::vector<Entry> entries_of(const std::string& kind) {
  if (kind == "methods") return entries(known_methods());
  if (kind == "models") return entries(nn::known_models());
  if (kind == "datasets") return entries(data::known_datasets());
  return entries(train::known_presets());
}

int run(const std::string& kind, bool json, const Context& context) {
  std::string known;
  for (const auto& k : kKinds) known += (known.empty() ? "" : ", ") + k;
  const bool is_known = kind.empty() || std::find(kKinds.begin(), kKinds.end(), kind) != kKinds.end();
  ESPALIER_CHECK(is_known, ErrorKind::usage, "espalier list: \"{}\": unknown. Known: {}.{}", kind, known,
                 suggestion(kind, kKinds));

  Json document = Json::object();
  std::string text;
  for (const auto& k : kKinds) {
    if (!kind.empty() && k != kind) continue;
    std::vector<std::vector<std::string>> rows;
    Json list = Json::array();
    for (const auto& entry : entries_of(k)) {
      rows.push_back({entry.name, entry.description});
      list.push_back({{"name", entry.name}, {"description", entry.description}});
    }
    if (kind.empty()) text += (text.empty() ? "" : "\n") + k + "\n";
    text += columns(rows, kind.empty() ? "  " : "");
    document[k] = std::move(list);
  }
  context.console.print(json ? (kind.empty() ? document : document[kind]).dump(2) + "\n" : text);
  return 0;
}

}  // namespace

void add_list_command(CLI::App& app, Context& context) {
  struct ListArguments {
    std::string kind;
    bool json = false;
  };
  auto arguments = std::make_shared<ListArguments>();
  CLI::App* command = app.add_subcommand("list", "List methods, models, datasets or presets");
  command->add_option("KIND", arguments->kind, "methods, models, datasets or presets; all if left out")
      ->option_text("");
  command->add_flag("--json", arguments->json, "print a JSON list of {name, description}");
  command->footer("Examples:\n  espalier list\n  espalier list presets --json");
  on_run(*command, context, [arguments, &context] { return run(arguments->kind, arguments->json, context); });
}

}  // namespace espalier::cli
