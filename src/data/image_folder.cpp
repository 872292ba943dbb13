#include "espalier/data/image_folder.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cctype>
#include <cstring>
#include <exception>
#include <memory>
#include <optional>
#include <system_error>

#include "data/byte_reader.h"
#include "data/first_error.h"
#include "data/image_file.h"
#include "espalier/core/error.h"
#include "espalier/core/log.h"

namespace fs = std::filesystem;

namespace espalier::data {
namespace {

// An 8-bit RGB image of the largest size, stored raw, is 48 MiB.
constexpr std::int64_t kMaxFileBytes = std::int64_t{64} << 20;

/// Names in a folder that do not begin with a dot, in byte order.
std::vector<std::string> entries(const fs::path& folder) {
  std::error_code error;
  std::vector<std::string> names;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name[0] != '.') names.push_back(name);
  }
  ESPALIER_CHECK(!error, ErrorKind::data, "{}: the folder cannot be read: {}", folder.string(), error.message());
  std::sort(names.begin(), names.end());
  return names;
}

bool is_folder(const fs::path& path) {
  std::error_code error;
  return fs::is_directory(path, error);
}

bool is_image_name(const std::string& name) {
  std::string extension = fs::path(name).extension().string();
  for (char& c : extension) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return extension == ".png" || extension == ".jpg" || extension == ".jpeg";
}

struct FileList {
  std::vector<fs::path> paths;
  std::vector<std::int64_t> labels;
};

FileList list_split(const fs::path& split, const std::vector<std::string>& classes) {
  for (const std::string& name : entries(split)) {
    ESPALIER_CHECK(!is_folder(split / name) || std::binary_search(classes.begin(), classes.end(), name),
                   ErrorKind::data, "{}: a class that train/ does not have", (split / name).string());
  }
  FileList list;
  std::int64_t passed_over = 0;
  for (std::size_t c = 0; c < classes.size(); ++c) {
    const fs::path folder = split / classes[c];
    if (!is_folder(folder)) continue;
    for (const std::string& name : entries(folder)) {
      if (is_image_name(name)) {
        list.paths.push_back(folder / name);
        list.labels.push_back(static_cast<std::int64_t>(c));
      } else {
        ++passed_over;
      }
    }
  }
  ESPALIER_CHECK(!list.paths.empty(), ErrorKind::data, "{}: no images, expected <class>/*.png, *.jpg or *.jpeg",
                 split.string());
  if (passed_over > 0) {
    log_warning(
        fmt::format("{}: {} files are not .png, .jpg or .jpeg and were passed over", split.string(), passed_over));
  }
  return list;
}

/// [H][W][C] -> [C][H][W]
void to_planes(const DecodedImage& image, std::uint8_t* out) {
  const std::int64_t plane = image.shape.height * image.shape.width;
  const std::int64_t channels = image.shape.channels;
  for (std::int64_t c = 0; c < channels; ++c) {
    for (std::int64_t i = 0; i < plane; ++i)
      out[c * plane + i] = image.pixels[static_cast<std::size_t>(i * channels + c)];
  }
}

Images read_split(const FileList& list, std::optional<ImageShape>& shape) {
  const auto n = static_cast<std::int64_t>(list.paths.size());
  const auto decode = [&](std::int64_t i) {
    const fs::path& path = list.paths[static_cast<std::size_t>(i)];
    return decode_image(read_file(path, kMaxFileBytes), path.string(), shape ? &*shape : nullptr);
  };
  if (!shape) shape = decode(0).shape;
  const std::int64_t image_bytes = shape->channels * shape->height * shape->width;
  ESPALIER_CHECK(n <= kMaxSplitBytes / image_bytes, ErrorKind::data,
                 "{}: {} images of {} bytes; more than {} bytes are not read into memory",
                 list.paths[0].parent_path().parent_path().string(), n, image_bytes, kMaxSplitBytes);

  Images images{torch::empty({n, shape->channels, shape->height, shape->width}, torch::kUInt8),
                torch::tensor(list.labels, torch::kInt64)};
  std::uint8_t* pixels = images.pixels.data_ptr<std::uint8_t>();
  FirstError first_error;
  at::parallel_for(0, n, 16, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end && !first_error.before(i); ++i) {
      try {
        to_planes(decode(i), pixels + i * image_bytes);
      } catch (...) {
        first_error.add(i, std::current_exception());
      }
    }
  });
  first_error.rethrow();
  return images;
}

class Files : public ImageSource {
 public:
  explicit Files(std::vector<fs::path> paths) : paths_(std::move(paths)) {}
  std::int64_t size() const override { return static_cast<std::int64_t>(paths_.size()); }
  torch::Tensor read(std::int64_t index, std::int64_t side, const Choose& choose) const override {
    const fs::path& path = paths_.at(static_cast<std::size_t>(index));
    return resized_region(decode_region(read_file(path, kMaxFileBytes), path.string(), side, choose), side);
  }

 private:
  std::vector<fs::path> paths_;
};

/// The folders of a data set, without their contents.
struct Splits {
  fs::path train, test;
  std::vector<std::string> classes;
};

Splits find_splits(const fs::path& root) {
  Splits splits;
  splits.train = root / "train";
  splits.classes = image_folder_classes(root);
  for (const char* name : {"test", "val", "valid"}) {
    if (splits.test.empty() && is_folder(root / name)) splits.test = root / name;
  }
  ESPALIER_CHECK(
      !splits.classes.empty() && !splits.test.empty(), ErrorKind::data,
      "{}: no {}, expected an image folder: train/<class>/*.png|jpg|jpeg and test/<class>/… (or val/<class>/…)",
      root.string(), splits.classes.empty() ? "train/ with class folders in it" : "test/, val/ or valid/");
  return splits;
}

}  // namespace

std::vector<std::string> image_folder_classes(const fs::path& root) {
  std::vector<std::string> classes;
  const fs::path train = root / "train";
  if (!is_folder(train)) return classes;
  for (std::string& name : entries(train)) {
    if (is_folder(train / name)) classes.push_back(std::move(name));
  }
  return classes;
}

Dataset read_image_folder(const fs::path& root) {
  const Splits splits = find_splits(root);
  Dataset set;
  set.source = root.string();
  set.classes = splits.classes;
  std::optional<ImageShape> shape;
  set.train = read_split(list_split(splits.train, set.classes), shape);
  set.test = read_split(list_split(splits.test, set.classes), shape);
  return set;
}

Dataset open_image_folder(const fs::path& root, std::int64_t side) {
  const Splits splits = find_splits(root);
  Dataset set;
  set.source = root.string();
  set.classes = splits.classes;
  const auto open = [&](const fs::path& split) {
    FileList list = list_split(split, set.classes);
    Images images;
    images.labels = torch::tensor(list.labels, torch::kInt64);
    images.source = std::make_shared<Files>(std::move(list.paths));
    images.side = side;
    return images;
  };
  set.train = open(splits.train);
  set.test = open(splits.test);
  return set;
}

}  // namespace espalier::data
