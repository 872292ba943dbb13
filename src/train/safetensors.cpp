#include "espalier/train/safetensors.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <set>

#include "espalier/core/error.h"
#include "espalier/train/json.h"

namespace espalier::train {
namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "safetensors are little-endian and copied as they are");

constexpr std::int64_t kMaxHeaderBytes = 100'000'000;  // as the reference implementation
constexpr std::size_t kMaxDimensions = 64;             // the most that ATen's iterators take
constexpr const char* kMetadataKey = "__metadata__";

struct Dtype {
  const char* name;
  at::ScalarType type;
};
constexpr std::array<Dtype, 10> kDtypes{{{"F64", at::kDouble},
                                         {"I64", at::kLong},
                                         {"F32", at::kFloat},
                                         {"I32", at::kInt},
                                         {"F16", at::kHalf},
                                         {"BF16", at::kBFloat16},
                                         {"I16", at::kShort},
                                         {"I8", at::kChar},
                                         {"U8", at::kByte},
                                         {"BOOL", at::kBool}}};
constexpr const char* kDtypeNames = "F64, I64, F32, I32, F16, BF16, I16, I8, U8, BOOL";

// ---- writing -------------------------------------------------------------------------------------

const char* dtype_name(const std::filesystem::path& path, const std::string& name, const at::Tensor& tensor) {
  ESPALIER_CHECK(tensor.defined(), ErrorKind::usage, "{}: tensor \"{}\" is undefined", path.string(), name);
  ESPALIER_CHECK(
      tensor.layout() == at::kStrided, ErrorKind::usage,
      "{}: tensor \"{}\" is sparse; safetensors holds dense tensors: store its indices and values as tensors "
      "of their own",
      path.string(), name);
  for (const Dtype& dtype : kDtypes) {
    if (dtype.type == tensor.scalar_type()) return dtype.name;
  }
  fail(ErrorKind::usage, "{}: tensor \"{}\" is {}, which safetensors can't hold; expected one of {}", path.string(),
       name, c10::toString(tensor.scalar_type()), kDtypeNames);
}

std::string header_text(const std::filesystem::path& path, const NamedTensors& tensors,
                        const std::map<std::string, std::string>& metadata) {
  Json header = Json::object();
  if (!metadata.empty()) header[kMetadataKey] = metadata;
  std::set<std::string> names{kMetadataKey};
  std::int64_t offset = 0;
  for (const auto& [name, tensor] : tensors) {
    const char* dtype = dtype_name(path, name, tensor);
    ESPALIER_CHECK(names.insert(name).second, ErrorKind::usage,
                   "{}: tensor name \"{}\" is used twice or reserved; names must differ", path.string(), name);
    const std::int64_t end = offset + tensor.numel() * static_cast<std::int64_t>(tensor.element_size());
    // push_back, not [name]: an ordered_json searches all its keys each time.
    header.get_ref<Json::object_t&>().emplace_back(
        name, Json{{"dtype", dtype}, {"shape", tensor.sizes().vec()}, {"data_offsets", {offset, end}}});
    offset = end;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const nlohmann::json::exception& e) {
    fail(ErrorKind::usage, "{}: a tensor name or the metadata is not UTF-8: {}", path.string(), e.what());
  }
  text.append((8 - text.size() % 8) % 8, ' ');
  ESPALIER_CHECK(text.size() <= kMaxHeaderBytes, ErrorKind::usage,
                 "{}: names and metadata make a header of {} bytes; the format allows {}", path.string(), text.size(),
                 kMaxHeaderBytes);
  return text;
}

// ---- reading -------------------------------------------------------------------------------------

struct TensorEntry {
  std::string name;
  at::ScalarType type;
  std::vector<std::int64_t> shape;
  std::int64_t begin;  // bytes from the end of the header
  std::int64_t end;
};

// Not the ordered Json: it searches all its keys for each new one, and a header may hold millions. nlohmann keeps the
// last of two equal keys without a word; here they are an error, and so is deep nesting.
nlohmann::json parse_header(const std::filesystem::path& path, const std::string& text) {
  std::vector<std::set<std::string>> keys;
  const auto check = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& parsed) {
    // {"name": {"shape": [..]}} is as deep as it gets.
    ESPALIER_CHECK(depth <= 3, ErrorKind::data, "{}: the header is nested too deeply for safetensors", path.string());
    if (event == nlohmann::json::parse_event_t::object_start) {
      keys.emplace_back();
    } else if (event == nlohmann::json::parse_event_t::object_end) {
      keys.pop_back();
    } else if (event == nlohmann::json::parse_event_t::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      ESPALIER_CHECK(keys.back().insert(key).second, ErrorKind::data, "{}: \"{}\" appears twice in the header",
                     path.string(), key);
    }
    return true;
  };
  try {
    nlohmann::json header = nlohmann::json::parse(text, check);
    ESPALIER_CHECK(header.is_object(), ErrorKind::data, "{}: the header is {}, expected a JSON object", path.string(),
                   header.type_name());
    return header;
  } catch (const nlohmann::json::exception& e) {
    fail(ErrorKind::data, "{}: the header is not JSON ({}); is this a safetensors file?", path.string(), e.what());
  }
}

std::map<std::string, std::string> parse_metadata(const std::filesystem::path& path, const nlohmann::json& json) {
  std::map<std::string, std::string> metadata;
  ESPALIER_CHECK(json.is_object(), ErrorKind::data, "{}: {} is {}, expected an object of strings", path.string(),
                 kMetadataKey, json.type_name());
  for (const auto& [key, value] : json.items()) {
    ESPALIER_CHECK(value.is_string(), ErrorKind::data, "{}: {}.{} is {}, expected a string", path.string(),
                   kMetadataKey, key, value.type_name());
    metadata[key] = value.get<std::string>();
  }
  return metadata;
}

// A list of integers in [0, 2^63).
std::vector<std::int64_t> parse_integers(const std::filesystem::path& path, const std::string& name, const char* key,
                                         const nlohmann::json& json) {
  std::vector<std::int64_t> list;
  ESPALIER_CHECK(json.is_array(), ErrorKind::data, "{}: tensor \"{}\": {} is {}, expected a list of integers",
                 path.string(), name, key, json.type_name());
  for (const auto& item : json) {
    ESPALIER_CHECK(item.is_number_unsigned() &&
                       item.get<std::uint64_t>() <= std::uint64_t{std::numeric_limits<std::int64_t>::max()},
                   ErrorKind::data, "{}: tensor \"{}\": {} holds {}, expected integers from 0 to 2^63 - 1",
                   path.string(), name, key, to_json_line(item));
    list.push_back(item.get<std::int64_t>());
  }
  return list;
}

TensorEntry parse_entry(const std::filesystem::path& path, const std::string& name, const nlohmann::json& json) {
  const std::string where = fmt::format("{}: tensor \"{}\"", path.string(), name);
  ESPALIER_CHECK(json.is_object(), ErrorKind::data, "{} is {}, expected an object", where, json.type_name());
  for (const char* key : {"dtype", "shape", "data_offsets"}) {
    ESPALIER_CHECK(json.contains(key), ErrorKind::data, "{} has no {}", where, key);
  }
  ESPALIER_CHECK(json.size() == 3, ErrorKind::data, "{} has {} keys, expected dtype, shape and data_offsets only",
                 where, json.size());
  const auto dtype =
      std::find_if(kDtypes.begin(), kDtypes.end(), [&](const Dtype& d) { return json["dtype"] == d.name; });
  ESPALIER_CHECK(dtype != kDtypes.end(), ErrorKind::data, "{}: dtype {} is not supported; expected one of {}", where,
                 to_json_line(json["dtype"]), kDtypeNames);
  TensorEntry entry{name, dtype->type, parse_integers(path, name, "shape", json["shape"]), 0, 0};
  const auto offsets = parse_integers(path, name, "data_offsets", json["data_offsets"]);
  ESPALIER_CHECK(offsets.size() == 2 && offsets[0] <= offsets[1], ErrorKind::data,
                 "{}: data_offsets are {}, expected [begin, end]", where, to_json_line(json["data_offsets"]));
  entry.begin = offsets[0];
  entry.end = offsets[1];

  ESPALIER_CHECK(entry.shape.size() <= kMaxDimensions, ErrorKind::data, "{} has {} dimensions, expected at most {}",
                 where, entry.shape.size(), kMaxDimensions);
  // Two products: the bytes, and the largest stride that ATen will compute, where a 0 does not hide a huge neighbour.
  auto bytes = static_cast<std::int64_t>(c10::elementSize(entry.type));
  std::int64_t stride = bytes;
  bool overflow = false;
  for (const std::int64_t n : entry.shape) {
    overflow = overflow || __builtin_mul_overflow(bytes, n, &bytes) ||
               __builtin_mul_overflow(stride, std::max<std::int64_t>(n, 1), &stride);
  }
  ESPALIER_CHECK(!overflow, ErrorKind::data, "{}: shape {} is larger than any memory", where,
                 to_json_line(json["shape"]));
  ESPALIER_CHECK(bytes == entry.end - entry.begin, ErrorKind::data,
                 "{}: {} of shape {} takes {} bytes, but data_offsets {} span {}", where, dtype->name,
                 to_json_line(json["shape"]), bytes, to_json_line(json["data_offsets"]), entry.end - entry.begin);
  return entry;
}

// The tensors, one after the other, fill the data of the file: no overlap, no hole, nothing behind.
void check_extents(const std::filesystem::path& path, const std::vector<TensorEntry>& entries,
                   std::int64_t data_bytes) {
  std::int64_t expected = 0;
  for (const TensorEntry& entry : entries) {
    ESPALIER_CHECK(entry.begin == expected, ErrorKind::data,
                   "{}: tensor \"{}\" begins at byte {} of the data, expected {}: {}", path.string(), entry.name,
                   entry.begin, expected, entry.begin < expected ? "it overlaps another" : "there is a hole before it");
    ESPALIER_CHECK(entry.end <= data_bytes, ErrorKind::data,
                   "{}: the file is truncated: tensor \"{}\" ends at byte {} of the data, the file holds {}",
                   path.string(), entry.name, entry.end, data_bytes);
    expected = entry.end;
  }
  ESPALIER_CHECK(expected == data_bytes, ErrorKind::data, "{}: {} bytes follow the last tensor, expected none",
                 path.string(), data_bytes - expected);
}

void check_booleans(const std::filesystem::path& path, const std::string& name, const at::Tensor& tensor) {
  const auto* bytes = static_cast<const std::uint8_t*>(tensor.data_ptr());
  const auto* end = bytes + tensor.numel();
  const auto* bad = std::find_if(bytes, end, [](std::uint8_t b) { return b > 1; });
  ESPALIER_CHECK(bad == end, ErrorKind::data, "{}: tensor \"{}\": BOOL entry {} is {}, expected 0 or 1", path.string(),
                 name, bad - bytes, *bad);
}

}  // namespace

FileDigest save_safetensors(const std::filesystem::path& path, const NamedTensors& tensors,
                            const std::map<std::string, std::string>& metadata) {
  NamedTensors sorted = tensors;
  const auto element_size = [](const at::Tensor& t) { return t.defined() ? t.element_size() : 0; };
  std::stable_sort(sorted.begin(), sorted.end(),
                   [&](const auto& a, const auto& b) { return element_size(a.second) > element_size(b.second); });
  const std::string header = header_text(path, sorted, metadata);
  const auto header_bytes = static_cast<std::uint64_t>(header.size());
  OutputFile file(path);
  file.write(&header_bytes, sizeof header_bytes);
  file.write(header.data(), header.size());
  for (const auto& [name, tensor] : sorted) {
    const at::Tensor bytes = tensor.detach().cpu().contiguous();
    if (bytes.numel() > 0) file.write(bytes.data_ptr(), bytes.nbytes());
  }
  return file.finish();
}

SafetensorsContent load_safetensors(const std::filesystem::path& path) {
  InputFile file(path);
  std::uint64_t header_bytes = 0;
  ESPALIER_CHECK(file.size() >= 10, ErrorKind::data,
                 "{}: {} bytes are too few for a safetensors file, expected at least 10", path.string(), file.size());
  file.read(&header_bytes, sizeof header_bytes);
  ESPALIER_CHECK(header_bytes <= kMaxHeaderBytes, ErrorKind::data,
                 "{}: announces a header of {} bytes, expected at most {}; is this a safetensors file?", path.string(),
                 header_bytes, kMaxHeaderBytes);
  const std::int64_t data_bytes = file.size() - 8 - static_cast<std::int64_t>(header_bytes);
  ESPALIER_CHECK(data_bytes >= 0, ErrorKind::data, "{}: announces a header of {} bytes, but only {} follow: truncated",
                 path.string(), header_bytes, file.size() - 8);
  std::string text(header_bytes, '\0');
  file.read(text.data(), text.size());

  SafetensorsContent content;
  std::vector<TensorEntry> entries;
  const nlohmann::json header = parse_header(path, text);
  for (const auto& [name, value] : header.items()) {
    if (name == kMetadataKey) {
      content.metadata = parse_metadata(path, value);
    } else {
      entries.push_back(parse_entry(path, name, value));
    }
  }
  std::stable_sort(entries.begin(), entries.end(), [](const TensorEntry& a, const TensorEntry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  check_extents(path, entries, data_bytes);

  for (const TensorEntry& entry : entries) {
    at::Tensor tensor = at::empty(entry.shape, at::TensorOptions().dtype(entry.type));
    if (tensor.numel() > 0) file.read(tensor.data_ptr(), tensor.nbytes());
    if (entry.type == at::kBool) check_booleans(path, entry.name, tensor);
    content.tensors.emplace_back(entry.name, tensor);
  }
  content.digest = file.digest();
  return content;
}

}  // namespace espalier::train
