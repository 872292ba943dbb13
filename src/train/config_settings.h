/// The values of a configuration as they are found, before anybody asks what they mean: key, value, position. Files
/// (TOML, JSON) and texts (--set, environment) become the same list of settings.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "espalier/core/options.h"

namespace espalier::train {

/// "config.toml:14:16", or a name alone ("--set") where line = 0.
struct Place {
  std::string source;
  int line = 0;
  int column = 0;
  std::string text() const;
};

struct Problem {
  Place place;
  std::string message;
};

struct ConfigValue {
  /// What no option can hold: "a table", "a date", "null".
  struct Other {
    std::string type;
  };
  /// A text without a type (--set, environment): the option that takes it decides.
  struct Raw {
    std::string text;
  };
  using List = std::vector<ConfigValue>;
  std::variant<bool, std::int64_t, double, std::string, List, Other, Raw> value;

  std::string type() const;  ///< "an integer", "a list", …
  std::string text() const;  ///< in TOML's notation; "" for what has none
};

struct Setting {
  std::string table;  ///< "" for a key outside the tables
  std::string key;
  ConfigValue value;
  Place key_at;
  Place value_at;
};

struct Settings {
  std::vector<Setting> list;
  std::vector<std::pair<std::string, Place>> tables;  ///< every table met, also the empty ones
  std::vector<Problem> problems;                      ///< syntax
};

/// `source` names the text in messages. After a bad line the rest of the text is still read where that is safe.
Settings read_toml_settings(const std::string& text, const std::string& source);
Settings read_json_settings(const std::string& text, const std::string& source);

/// Gives the option the value. Returns "" or what is wrong ("expected an integer, found a string"); the option then
/// keeps the value that it had. The range is checked too; `name` ("[optim].lr") starts the message.
std::string assign(const Option& option, const ConfigValue& value, const std::string& name);

}  // namespace espalier::train
