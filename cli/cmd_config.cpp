/// espalier config: prints, checks and explains configurations.
#include <memory>
#include <nlohmann/json.hpp>

#include "commands.h"
#include "espalier/core/error.h"
#include "espalier/core/log.h"

namespace espalier::cli {
namespace {

using Json = nlohmann::ordered_json;

struct ConfigCommandArguments {
  ConfigArguments config;
  bool resolved = false, schema = false, json = false;
};

std::string schema_text() {
  std::string out;
  const auto add = [&](const std::string& title, const OptionList& options) {
    std::vector<std::vector<std::string>> rows;
    for (const Option& option : options) {
      const std::string allowed = option.allowed_text();
      rows.push_back({option.name, option.type(), option.value_text(),
                      option.help + (allowed.empty() ? "" : " (" + allowed + ")")});
    }
    out += (out.empty() ? "" : "\n") + title + "\n" + columns(rows, "  ");
  };
  train::RunConfig defaults;
  for (const auto& table : defaults.tables()) {
    if (table.name != "method") {
      add(fmt::format("[{}]  {}", table.name, table.help), table.options);
      continue;
    }
    add(fmt::format("[{}]  {}", table.name, table.help), {table.options.front()});  // the name; the rest by method
    for (const auto& info : known_methods()) {
      const auto method = make_method(info.name);
      const OptionList options = describe(*method);
      if (!options.empty()) add(fmt::format("[method]  with name = \"{}\"", info.name), options);
    }
  }
  return out;
}

Json keys_json(const OptionList& options) {
  Json out = Json::array();
  for (const Option& option : options) {
    Json key = {{"name", option.name},
                {"type", option.type()},
                {"default", Json::parse(option.value_text())},
                {"allowed", option.allowed_text()},
                {"help", option.help}};
    if (!option.choices.empty()) key["choices"] = option.choices;
    out.push_back(std::move(key));
  }
  return out;
}

Json schema_json() {
  Json tables = Json::array(), methods = Json::array();
  train::RunConfig defaults;
  for (const auto& table : defaults.tables()) {
    const OptionList options = table.name == "method" ? OptionList{table.options.front()} : table.options;
    tables.push_back({{"name", table.name}, {"help", table.help}, {"keys", keys_json(options)}});
  }
  for (const auto& info : known_methods()) {
    const auto method = make_method(info.name);
    methods.push_back({{"name", info.name}, {"description", info.description}, {"keys", keys_json(describe(*method))}});
  }
  return {{"schema_version", 1}, {"tables", tables}, {"methods", methods}};
}

int run(const ConfigCommandArguments& arguments, const Context& context) {
  const ConfigArguments& from = arguments.config;
  Console& console = context.console;
  if (arguments.schema) {
    ESPALIER_CHECK(!from.given() && !from.overrides() && !arguments.resolved, ErrorKind::usage,
                   "--schema lists all keys; it takes no configuration");
    console.print(arguments.json ? schema_json().dump(2) + "\n" : schema_text());
    return 0;
  }
  const train::RunConfig config = train::load_config(sources(from, context));
  const bool as_written = !arguments.resolved && !arguments.json && !from.overrides();
  if (as_written && !from.file.empty()) {
    log_info(fmt::format("{}: no mistakes", from.file));
  } else if (as_written && !from.preset.empty()) {
    console.print(train::preset_text(from.preset));
  } else {
    console.print(arguments.json ? train::to_json(config) : train::to_toml(config));
  }
  return 0;
}

}  // namespace

void add_config_command(CLI::App& app, Context& context) {
  auto arguments = std::make_shared<ConfigCommandArguments>();
  CLI::App* command = app.add_subcommand("config", "Print, check and explain configurations");
  add_config_arguments(*command, arguments->config);
  command->add_flag("--resolved", arguments->resolved,
                    "print every key as a run would use it; the output is a configuration");
  command->add_flag("--schema", arguments->schema, "list every key: type, default, meaning, allowed values");
  command->add_flag("--json", arguments->json, "print JSON (of the resolved configuration, or of --schema)");
  command->footer(
      "With --preset NAME alone: prints the preset's file. With CONFIG alone: checks it, all mistakes at once.\n"
      "With --set and the like, or without anything: prints the resolved configuration.\n\n"
      "Examples:\n"
      "  espalier config --preset mnist-ann > my.toml     a file to change\n"
      "  espalier config my.toml                          exit status 2 and one line a mistake\n"
      "  espalier config my.toml --set optim.lr=0.05      what would run\n"
      "  espalier config --schema                         every key");
  on_run(*command, context, [arguments, &context] { return run(*arguments, context); });
}

}  // namespace espalier::cli
