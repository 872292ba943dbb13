#include "config_settings.h"

#include <toml++/toml.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <optional>
#include <regex>
#include <set>

#include "espalier/core/error.h"

namespace espalier::train {
namespace {

constexpr std::size_t kMaxSyntaxErrors = 20;  // each costs another reading of the file
constexpr std::size_t kMaxDepth = 64;         // of lists in JSON; toml++ has a limit of its own

std::string trimmed(const std::string& s) {
  const auto first = s.find_first_not_of(" \t\r\n");
  return first == std::string::npos ? "" : s.substr(first, s.find_last_not_of(" \t\r\n") - first + 1);
}

// ---- TOML
// ------------------------------------------------------------------------------------------------------------

ConfigValue value_of(const toml::node& node) {
  if (const auto* v = node.as_boolean()) return {v->get()};
  if (const auto* v = node.as_integer()) return {v->get()};
  if (const auto* v = node.as_floating_point()) return {v->get()};
  if (const auto* v = node.as_string()) return {v->get()};
  if (const auto* list = node.as_array()) {
    ConfigValue::List values;
    for (const auto& item : *list) values.push_back(value_of(item));
    return {std::move(values)};
  }
  return {ConfigValue::Other{node.is_table()  ? "a table"
                             : node.is_date() ? "a date"
                             : node.is_time() ? "a time"
                                              : "a date and time"}};
}

Place place_of(const toml::source_region& region, const std::string& source) {
  return {source, static_cast<int>(region.begin.line), static_cast<int>(region.begin.column)};
}

void collect(const toml::table& root, const std::string& source, Settings& out) {
  for (const auto& [name, node] : root) {
    const std::string table_name(name.str());
    const auto* table = node.as_table();
    if (!table) {
      out.list.push_back(
          {"", table_name, value_of(node), place_of(name.source(), source), place_of(node.source(), source)});
      continue;
    }
    out.tables.emplace_back(table_name, place_of(name.source(), source));
    for (const auto& [key, value] : *table) {
      out.list.push_back({table_name, std::string(key.str()), value_of(value), place_of(key.source(), source),
                          place_of(value.source(), source)});
    }
  }
}

// A line that is one whole `key = value`: without it the rest of the file still means what it meant.
bool is_statement(const std::string& line) {
  static const std::regex kStatement(R"(^\s*[\w.\-"']+\s*=.*)");
  const auto count = [&](char c) { return std::count(line.begin(), line.end(), c); };
  return std::regex_match(line, kStatement) && count('[') == count(']') && count('{') == count('}') &&
         line.find("\"\"\"") == std::string::npos && line.find("'''") == std::string::npos;
}

// toml++ says "could not determine value type"; the cause is nearly always a string without quotes.
std::string syntax_message(const std::string& description, const std::string& line) {
  static const std::regex kBareWord(R"(^\s*([\w.\-]+)\s*=\s*([A-Za-z_][\w.\-]*)\s*(#.*)?$)");
  std::smatch match;
  if (std::regex_match(line, match, kBareWord)) {
    return fmt::format("not valid TOML: a string needs quotes: {} = \"{}\"", match[1].str(), match[2].str());
  }
  return "not valid TOML: " + description;
}

// ---- JSON
// ------------------------------------------------------------------------------------------------------------

// nlohmann's parser tells its handler no positions, so the handler watches how far the text has been read.
struct WatchedIterator {
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;
  const char* at;
  const char** read_to;
  reference operator*() const { return *at; }
  WatchedIterator& operator++() {
    *read_to = ++at;
    return *this;
  }
  bool operator==(const WatchedIterator& other) const { return at == other.at; }
  bool operator!=(const WatchedIterator& other) const { return at != other.at; }
};

class JsonReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  JsonReader(const std::string& text, const std::string& source)
      : text_(text), source_(source), read_to_(text.data()) {}

  Settings read() {
    const char* end = text_.data() + text_.size();
    nlohmann::json::sax_parse(WatchedIterator{text_.data(), &read_to_}, WatchedIterator{end, &read_to_}, this);
    return std::move(out_);
  }

  bool null() override { return value({ConfigValue::Other{"null"}}); }
  bool boolean(bool v) override { return value({v}); }
  bool number_integer(std::int64_t v) override { return value({v}); }
  bool number_unsigned(std::uint64_t v) override {
    if (v <= static_cast<std::uint64_t>(INT64_MAX)) return value({static_cast<std::int64_t>(v)});
    return value({static_cast<double>(v)});
  }
  bool number_float(double v, const std::string&) override { return value({v}); }
  bool string(std::string& v) override { return value({v}); }
  bool binary(nlohmann::json::binary_t&) override { return value({ConfigValue::Other{"binary data"}}); }

  bool start_object(std::size_t) override {
    const bool is_table = depth_ < 2 && lists_.empty();
    if (!is_table && ignored_ == 0) value({ConfigValue::Other{"a table"}});
    if (!is_table) {
      ++ignored_;
    } else if (++depth_ == 2) {
      table_ = key_;
      out_.tables.emplace_back(table_, key_at_);
    }
    return true;
  }
  bool end_object() override {
    if (ignored_ > 0)
      --ignored_;
    else if (--depth_ == 1)
      table_.clear();
    return true;
  }
  bool start_array(std::size_t) override {
    if (ignored_ > 0) return true;
    lists_.emplace_back();
    if (lists_.size() <= kMaxDepth) return true;
    out_.problems.push_back({value_at_, "not valid here: lists in lists in lists"});
    return false;
  }
  bool end_array() override {
    if (ignored_ > 0) return true;
    ConfigValue::List list = std::move(lists_.back());
    lists_.pop_back();
    return value({std::move(list)});
  }
  bool key(std::string& name) override {
    if (ignored_ > 0) return true;
    key_ = name;
    // The parser has just read the closing quote: walk back to the opening one, and on over the colon to the value.
    std::size_t end = static_cast<std::size_t>(read_to_ - text_.data());
    std::size_t begin = end - 1;
    do {
      begin = text_.rfind('"', begin - 1);
    } while (escaped(begin));
    key_at_ = place(begin);
    value_at_ = place(text_.find_first_not_of(" \t\r\n:", end));
    if (!seen_.insert({table_, key_}).second) {
      out_.problems.push_back({key_at_, "given twice: " + (table_.empty() ? key_ : "[" + table_ + "]." + key_)});
    }
    return true;
  }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception& error) override {
    const std::string what = error.what();
    const auto colon = what.find(": ");
    out_.problems.push_back({place(position == 0 ? 0 : position - 1),
                             "not valid JSON: " + (colon == std::string::npos ? what : what.substr(colon + 2))});
    return false;
  }

 private:
  bool value(ConfigValue v) {
    if (ignored_ > 0) return true;
    if (!lists_.empty())
      lists_.back().push_back(std::move(v));
    else if (depth_ == 0)
      out_.problems.push_back({place(0), "expected an object of tables, found " + v.type()});
    else
      out_.list.push_back({table_, key_, std::move(v), key_at_, value_at_});
    return true;
  }
  bool escaped(std::size_t quote) const {
    std::size_t backslashes = 0;
    while (backslashes < quote && text_[quote - 1 - backslashes] == '\\') ++backslashes;
    return backslashes % 2 == 1;
  }
  // Offsets come nearly in order, so the lines are counted once.
  Place place(std::size_t offset) {
    offset = std::min(offset, text_.size());
    if (offset < counted_) counted_ = line_start_ = 0, line_ = 1;
    for (; counted_ < offset; ++counted_) {
      if (text_[counted_] == '\n') ++line_, line_start_ = counted_ + 1;
    }
    return {source_, line_, static_cast<int>(offset - line_start_) + 1};
  }

  const std::string& text_;
  const std::string source_;
  const char* read_to_;
  std::size_t counted_ = 0, line_start_ = 0;
  int line_ = 1;
  Settings out_;
  int depth_ = 0;    // objects open: 1 = the root, 2 = in a table
  int ignored_ = 0;  // objects open inside a value, which no option can hold
  std::vector<ConfigValue::List> lists_;
  std::string table_, key_;
  Place key_at_, value_at_;
  std::set<std::pair<std::string, std::string>> seen_;
};

// ---- values
// ----------------------------------------------------------------------------------------------------------

template <class T>
struct IsList : std::false_type {};
template <class T>
struct IsList<std::vector<T>> : std::true_type {};

std::optional<ConfigValue> toml_value(const std::string& text) {
  if (text.find_first_of("\n#") != std::string::npos) return std::nullopt;
  try {
    const toml::table table = toml::parse("x = " + text);
    if (table.size() == 1 && table.begin()->first.str() == "x") return value_of(table.begin()->second);
  } catch (const toml::parse_error&) {
  }
  return std::nullopt;
}

template <class T>
ConfigValue typed(const std::string& text);

// "300,100", "[300,100]", "[\"a\", \"b\"]", "a,b(1,2)": commas inside parentheses do not separate.
template <class T>
ConfigValue typed_list(const std::string& text) {
  const bool bracketed = text.size() >= 2 && text.front() == '[' && text.back() == ']';
  if (bracketed) {
    if (auto value = toml_value(text)) return *value;
  }
  const std::string inner = trimmed(bracketed ? text.substr(1, text.size() - 2) : text);
  ConfigValue::List list;
  std::string item;
  int open = 0;
  for (const char c : inner) {
    open += (c == '(') - (c == ')');
    if (c == ',' && open == 0) {
      list.push_back(typed<T>(trimmed(item)));
      item.clear();
    } else {
      item += c;
    }
  }
  if (!inner.empty()) list.push_back(typed<T>(trimmed(item)));
  return {std::move(list)};
}

// The text as a T would be written; what does not read as one stays a string, and `convert` says what was expected.
template <class T>
ConfigValue typed(const std::string& text) {
  if constexpr (IsList<T>::value) {
    return typed_list<typename T::value_type>(text);
  } else if constexpr (std::is_same_v<T, std::string> || std::is_same_v<T, Duration>) {
    const bool quoted =
        text.size() >= 2 && (text.front() == '"' || text.front() == '\'') && text.back() == text.front();
    if (quoted) {
      if (auto value = toml_value(text)) return *value;
    }
    return {text};
  } else {
    if (auto value = toml_value(text)) return *value;
    if constexpr (std::is_same_v<T, double>) {  // ".5" and "1." are no TOML, but clear
      double v = 0;
      const auto end = text.data() + text.size();
      const auto read = std::from_chars(text.data(), end, v);
      if (read.ec == std::errc() && read.ptr == end) return {v};
    }
    return {text};
  }
}

bool is_utf8(const std::string& s) {
  try {
    nlohmann::json(s).dump();
    return true;
  } catch (const nlohmann::json::exception&) {
    return false;
  }
}

// Returns "" or what was expected.
template <class T>
std::string convert(const ConfigValue& from, T& to) {
  if constexpr (IsList<T>::value) {
    const auto* list = std::get_if<ConfigValue::List>(&from.value);
    if (!list) return "a list";
    for (const auto& item : *list) {
      typename T::value_type element{};
      const std::string expected = convert(item, element);
      if (!expected.empty()) return "a list with " + expected + " in every place";
      to.push_back(element);
    }
  } else if constexpr (std::is_same_v<T, double>) {
    if (const auto* i = std::get_if<std::int64_t>(&from.value))
      to = static_cast<double>(*i);
    else if (const auto* d = std::get_if<double>(&from.value))
      to = *d;
    else
      return "a number";
  } else if constexpr (std::is_same_v<T, Duration>) {
    const auto* text = std::get_if<std::string>(&from.value);
    if (!text) return "a duration like \"500it\", \"1.5ep\" or \"25%\"";
    to = Duration::parse(*text);
  } else {
    const auto* v = std::get_if<T>(&from.value);
    if (!v)
      return std::is_same_v<T, bool> ? "true or false" : std::is_same_v<T, std::int64_t> ? "an integer" : "a string";
    if constexpr (std::is_same_v<T, std::string>) {
      ESPALIER_CHECK(is_utf8(*v), ErrorKind::usage, "not valid UTF-8");
    }
    to = *v;
  }
  return "";
}

}  // namespace

std::string Place::text() const { return line > 0 ? fmt::format("{}:{}:{}", source, line, column) : source; }

std::string ConfigValue::type() const {
  static const char* const kTypes[] = {"a boolean", "an integer", "a number", "a string", "a list", "", "a string"};
  if (const auto* other = std::get_if<Other>(&value)) return other->type;
  return kTypes[value.index()];
}

std::string ConfigValue::text() const {
  if (const auto* raw = std::get_if<Raw>(&value)) return raw->text;
  if (const auto* list = std::get_if<List>(&value)) {
    std::string out = "[";
    for (const auto& item : *list) out += (out.size() > 1 ? ", " : "") + item.text();
    return out + "]";
  }
  if (std::holds_alternative<Other>(value)) return "";
  ConfigValue copy = *this;  // Option holds pointers to what may be written
  return std::visit(
      [](auto& v) -> std::string {
        using T = std::decay_t<decltype(v)>;
        if constexpr (std::is_same_v<T, bool> || std::is_same_v<T, std::int64_t> || std::is_same_v<T, double> ||
                      std::is_same_v<T, std::string>) {
          return Option{"", &v, "", {}, {}}.value_text();
        }
        return "";
      },
      copy.value);
}

Settings read_toml_settings(const std::string& text, const std::string& source) {
  std::vector<std::string> lines(1);
  for (const char c : text) {
    if (c == '\n')
      lines.emplace_back();
    else
      lines.back() += c;
  }
  Settings out;
  for (;;) {
    std::string present;
    for (const auto& line : lines) present += line + '\n';
    try {
      collect(toml::parse(present), source, out);
      return out;
    } catch (const toml::parse_error& error) {
      Place place = place_of(error.source(), source);
      const std::size_t row = static_cast<std::size_t>(std::max(place.line, 1)) - 1;
      const std::string line = row < lines.size() ? lines[row] : "";
      const bool is_duplicate = error.description().find("redefine") != std::string_view::npos;
      if (is_duplicate)
        place.column = static_cast<int>(std::min(line.find_first_not_of(" \t"), line.size())) + 1;  // the key
      out.problems.push_back({place, is_duplicate ? "given twice: " + trimmed(line.substr(0, line.find('=')))
                                                  : syntax_message(std::string(error.description()), line)});
      if (!is_statement(line) || out.problems.size() >= kMaxSyntaxErrors)
        return out;  // what follows might mean something else now
      lines[row].clear();
    }
  }
}

Settings read_json_settings(const std::string& text, const std::string& source) {
  return JsonReader(text, source).read();
}

std::string assign(const Option& option, const ConfigValue& value, const std::string& name) {
  return std::visit(
      [&](auto* target) -> std::string {
        using T = std::decay_t<decltype(*target)>;
        const auto* raw = std::get_if<ConfigValue::Raw>(&value.value);
        const ConfigValue found = raw ? typed<T>(trimmed(raw->text)) : value;
        const std::string text = found.text();
        const std::string shown = name + (text.empty() ? "" : " = " + text);
        T converted{};
        try {
          const std::string expected = convert(found, converted);
          if (!expected.empty()) return fmt::format("{}: expected {}, found {}", shown, expected, found.type());
        } catch (const Error& error) {
          return fmt::format("{}: {}", name, error.what());
        }
        std::swap(*target, converted);
        try {
          option.validate(name + " = ");
        } catch (const Error& error) {
          std::swap(*target, converted);
          return error.what();
        }
        return "";
      },
      option.value);
}

}  // namespace espalier::train
