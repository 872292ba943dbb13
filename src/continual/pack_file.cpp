// The file of a pack: docs/formats/pack.md.
#include <torch/torch.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <set>

#include "espalier/continual/pack.h"
#include "espalier/core/error.h"
#include "espalier/train/durable_file.h"

namespace espalier::continual {
namespace {

namespace fs = std::filesystem;
using train::Json;
using train::NamedTensors;
using Metadata = std::map<std::string, std::string>;

constexpr const char* kKind = "pack";
constexpr const char* kVersion = "1";

std::string task_prefix(std::size_t index) { return fmt::format("task.{}.", index + 1); }

at::Tensor bits_of(const BitMask& mask) {
  at::Tensor bytes = torch::empty({(mask.size() + 7) / 8}, torch::kUInt8);
  if (bytes.numel() > 0) std::memcpy(bytes.data_ptr(), mask.words(), static_cast<std::size_t>(bytes.numel()));
  return bytes;
}

BitMask mask_of(const at::Tensor& bytes, std::int64_t size, const std::string& name, const std::string& source) {
  ESPALIER_CHECK(bytes.scalar_type() == torch::kUInt8 && bytes.numel() == (size + 7) / 8, ErrorKind::data,
                 "{}: \"{}\" is not a bit for each of {} positions", source, name, size);
  BitMask mask(size);
  const auto* byte = bytes.data_ptr<std::uint8_t>();
  for (std::int64_t i = 0; i < size; ++i) {
    if (((byte[i / 8] >> (i % 8)) & 1) != 0) mask.set(i, true);
  }
  return mask;
}

/// CRC-32 over names, types, shapes and bytes of the tensors, in the order of their names, and over the other metadata.
std::string checksum(const NamedTensors& tensors, const Metadata& metadata) {
  std::string text;
  for (const auto& [key, value] : metadata) {
    if (key != "checksum") text += fmt::format("{} {} {:08x}\n", key, value.size(), train::digest_of(value).crc32);
  }
  for (const auto& [name, tensor] : std::map<std::string, at::Tensor>(tensors.begin(), tensors.end())) {
    const at::Tensor plain = tensor.contiguous();
    const std::string bytes(static_cast<const char*>(plain.data_ptr()), plain.nbytes());
    text += fmt::format("{} {} [{}] {:08x}\n", name, c10::toString(tensor.scalar_type()),
                        fmt::join(tensor.sizes(), ","), train::digest_of(bytes).crc32);
  }
  return fmt::format("{:08x}", train::digest_of(text).crc32);
}

Json description(const Pack& pack) {
  Json weights = Json::array(), tasks = Json::array(), rows = Json::array();
  for (const PackedWeight& w : pack.weights) {
    weights.push_back({{"name", w.name}, {"shape", w.shape}, {"layer", w.layer}});
  }
  for (const PackedTask& t : pack.tasks) {
    tasks.push_back({{"source", t.source.to_json()},
                     {"classes", t.classes},
                     {"masked", !t.masks.empty()},
                     {"digest", t.digest},
                     {"record", t.record}});
  }
  for (const auto& row : pack.accuracies.rows()) {
    Json list = Json::array();
    for (const auto& r : row) list.push_back(r ? Json(*r) : Json(nullptr));
    rows.push_back(list);
  }
  return {{"input", {pack.input.channels, pack.input.height, pack.input.width}},
          {"own_heads", pack.own_heads},
          {"head", pack.head},
          {"weights", weights},
          {"tasks", tasks},
          {"accuracies", rows}};
}

const at::Tensor& wanted(const std::map<std::string, at::Tensor>& tensors, const std::string& name,
                         const std::string& source) {
  const auto at = tensors.find(name);
  ESPALIER_CHECK(at != tensors.end(), ErrorKind::data, "{}: no tensor \"{}\", which the packed network needs", source,
                 name);
  return at->second;
}

}  // namespace

NamedTensors pack_tensors(const Pack& pack) {
  NamedTensors all;
  for (const PackedWeight& w : pack.weights) all.emplace_back(w.name + ".phi", w.phi);
  for (const auto& [name, tensor] : pack.shared) all.emplace_back("shared." + name, tensor);
  for (const auto& [name, tensor] : pack.anchors) all.emplace_back("anchor." + name, tensor);
  for (std::size_t t = 0; t < pack.tasks.size(); ++t) {
    const PackedTask& task = pack.tasks[t];
    for (std::size_t w = 0; w < task.masks.size(); ++w) {
      all.emplace_back(task_prefix(t) + pack.weights[w].name + ".mask", bits_of(task.masks[w]));
    }
    for (const auto& [name, tensor] : task.own) all.emplace_back(task_prefix(t) + name, tensor);
  }
  // The same pack gives the same bytes, whichever file it has been read from.
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  return all;
}

Metadata pack_metadata(const Pack& pack, const NamedTensors& tensors) {
  Metadata metadata = {{"format", "pt"},
                       {"espalier", kKind},
                       {"version", kVersion},
                       {"config", train::to_toml(pack.config)},
                       {"pack", train::to_json_line(description(pack))}};
  metadata["checksum"] = checksum(tensors, metadata);
  return metadata;
}

Pack pack_from(const NamedTensors& tensors, const Metadata& metadata, const std::string& source) {
  const auto text = [&](const char* key) {
    const auto at = metadata.find(key);
    return at == metadata.end() ? std::string() : at->second;
  };
  ESPALIER_CHECK(
      text("espalier") == kKind, ErrorKind::data,
      "{}: is not a packed network (its metadata has no espalier = \"pack\"); espalier continual writes them", source);
  ESPALIER_CHECK(text("version") == kVersion, ErrorKind::data,
                 "{}: is a packed network of version \"{}\"; this program reads version {}", source, text("version"),
                 kVersion);
  ESPALIER_CHECK(text("checksum") == checksum(tensors, metadata), ErrorKind::data,
                 "{}: is damaged: its checksum does not match its content", source);
  const std::map<std::string, at::Tensor> by_name(tensors.begin(), tensors.end());
  Pack pack;
  try {
    pack.config = train::parse_config(text("config"), source + " (config)");
    const Json json = Json::parse(text("pack"));
    const Json& input = json.at("input");
    pack.input = {input.at(0).get<std::int64_t>(), input.at(1).get<std::int64_t>(), input.at(2).get<std::int64_t>()};
    pack.own_heads = json.at("own_heads").get<bool>();
    pack.head = json.at("head").get<std::string>();
    for (const Json& w : json.at("weights")) {
      PackedWeight weight;
      weight.name = w.at("name").get<std::string>();
      weight.shape = w.at("shape").get<std::vector<std::int64_t>>();
      weight.layer = w.at("layer").get<std::int64_t>();
      weight.phi = wanted(by_name, weight.name + ".phi", source);
      ESPALIER_CHECK(weight.phi.sizes() == at::IntArrayRef(weight.shape) && weight.phi.scalar_type() == torch::kFloat,
                     ErrorKind::data, "{}: \"{}.phi\" is not float32 [{}]", source, weight.name,
                     fmt::join(weight.shape, ", "));
      pack.weights.push_back(std::move(weight));
    }
    for (const Json& t : json.at("tasks")) {
      PackedTask task;
      task.source = TaskSource::from_json(t.at("source"));
      task.classes = t.at("classes").get<std::int64_t>();
      task.digest = t.at("digest").get<std::uint32_t>();
      task.record = t.at("record");
      const std::string prefix = task_prefix(pack.tasks.size());
      std::set<std::string> masks;
      for (const PackedWeight& w : pack.weights) {
        if (!t.at("masked").get<bool>()) break;
        const std::string name = prefix + w.name + ".mask";
        task.masks.push_back(mask_of(wanted(by_name, name, source), w.phi.numel(), name, source));
        masks.insert(name);
      }
      for (const auto& [name, tensor] : tensors) {
        if (name.rfind(prefix, 0) == 0 && masks.count(name) == 0) {
          task.own.emplace_back(name.substr(prefix.size()), tensor);
        }
      }
      pack.tasks.push_back(std::move(task));
    }
    for (const Json& row : json.at("accuracies")) {
      std::vector<std::optional<double>> list;
      for (const Json& r : row) list.push_back(r.is_null() ? std::nullopt : std::optional<double>(r.get<double>()));
      pack.accuracies.add_row(std::move(list));
    }
  } catch (const nlohmann::json::exception& e) {
    fail(ErrorKind::data, "{}: is not what this version of Espalier writes: {}", source, e.what());
  } catch (const Error& e) {  // of the configuration, too, it is the file that is at fault
    throw Error(ErrorKind::data, e.what());
  }
  for (const auto& [name, tensor] : tensors) {
    for (const char* part : {"shared.", "anchor."}) {
      const std::string prefix = part;
      if (name.rfind(prefix, 0) != 0) continue;
      (prefix == "shared." ? pack.shared : pack.anchors).emplace_back(name.substr(prefix.size()), tensor);
    }
  }
  return pack;
}

void save_pack(const fs::path& path, const Pack& pack) {
  const NamedTensors tensors = pack_tensors(pack);
  const fs::path beside = path.parent_path() / train::temporary_name(path.filename().string());
  std::error_code error;
  try {
    train::save_safetensors(beside, tensors, pack_metadata(pack, tensors));
    fs::rename(beside, path, error);
    ESPALIER_CHECK(!error, ErrorKind::failed, "{}: cannot replace: {}", path.string(), error.message());
  } catch (...) {
    fs::remove(beside, error);
    throw;
  }
  train::sync_directory(path.parent_path());
}

Pack load_pack(const fs::path& path) {
  std::error_code error;
  ESPALIER_CHECK(fs::is_regular_file(path, error), ErrorKind::usage,
                 "{}: no such file; expected a packed network (pack.safetensors of espalier continual)", path.string());
  const train::SafetensorsContent content = train::load_safetensors(path);
  return pack_from(content.tensors, content.metadata, path.string());
}

}  // namespace espalier::continual
