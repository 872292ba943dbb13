#include "espalier/data/dataset.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <optional>
#include <system_error>

#include "data/first_error.h"
#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/core/random.h"
#include "espalier/data/cifar.h"
#include "espalier/data/glyphs.h"
#include "espalier/data/idx.h"
#include "espalier/data/image_folder.h"

namespace fs = std::filesystem;

namespace espalier::data {
namespace {

// --- where files are looked for
// ---------------------------------------------------------------------------------------

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

/// The root that was asked for, or else $ESPALIER_DATA and the user's data folder, in this order.
std::vector<fs::path> roots(const DataOptions& options) {
  const std::string home = environment("HOME");
  if (!options.root.empty()) {
    const bool in_home = options.root == "~" || options.root.rfind("~/", 0) == 0;
    return {in_home && !home.empty() ? home + options.root.substr(1) : options.root};
  }
  std::vector<fs::path> list;
  if (const std::string own = environment("ESPALIER_DATA"); !own.empty()) list.emplace_back(own);
  if (const std::string xdg = environment("XDG_DATA_HOME"); !xdg.empty()) {
    list.push_back(fs::path(xdg) / "espalier/datasets");
  } else if (!home.empty()) {
    list.push_back(fs::path(home) / ".local/share/espalier/datasets");
  }
  ESPALIER_CHECK(!list.empty(), ErrorKind::data,
                 "{}: no folder to look in: set data.root (--data-root DIR) or $ESPALIER_DATA", options.name);
  return list;
}

bool is_folder(const fs::path& path) {
  std::error_code error;
  return fs::is_directory(path, error);
}

bool is_there(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error);
}

/// folder / sub, where sub = "." is the folder itself.
fs::path below(const fs::path& folder, const std::string& sub) { return sub == "." ? folder : folder / sub; }

/// A file the set needs, under any of several names.
struct Wanted {
  std::string name;                 // as messages call it
  std::vector<std::string> others;  // accepted as well
};

/// Collects where a search has been, for the message if it fails.
class Search {
 public:
  Search(const DataOptions& options, std::string files, std::string how_to_get)
      : set_(options.name), files_(std::move(files)), how_to_get_(std::move(how_to_get)) {}

  /// The wanted files of a folder, in order, plain before gzipped; nothing if one is missing.
  std::optional<std::vector<fs::path>> find(const fs::path& folder, const std::vector<Wanted>& wanted) {
    if (!is_folder(folder)) {
      note(folder, "no such folder");
      return {};
    }
    std::vector<fs::path> found;
    std::string missing;
    for (const Wanted& file : wanted) {
      std::vector<std::string> names = {file.name};
      names.insert(names.end(), file.others.begin(), file.others.end());
      const std::size_t before = found.size();
      for (const char* suffix : {"", ".gz"}) {
        for (const std::string& name : names) {
          if (found.size() == before && is_there(folder / (name + suffix))) found.push_back(folder / (name + suffix));
        }
      }
      if (found.size() == before) missing += (missing.empty() ? "no " : ", no ") + file.name;
    }
    if (missing.empty()) return found;
    note(folder, missing);
    return {};
  }

  void note(const fs::path& folder, const std::string& finding) {
    places_ += fmt::format("\n  {}: {}", folder.string(), finding);
  }

  [[noreturn]] void failed() const {
    fail(ErrorKind::data, "{}: data not found. Looked for {} in{}\n{}", set_, files_, places_, how_to_get_);
  }

 private:
  std::string set_, files_, how_to_get_, places_;
};

constexpr const char* kElsewhere = "another place is named by --data-root DIR, by root in [data] or by $ESPALIER_DATA";

// --- MNIST and its siblings
// -------------------------------------------------------------------------------------------

struct IdxSet {
  std::vector<std::string> folders;  // below a root
  std::vector<std::string> classes;
  std::string url;
};

const std::vector<std::string> kDigits = {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"};

IdxSet idx_set(const std::string& name) {
  if (name == "fashion-mnist") {
    return {{"FashionMNIST/raw", "fashion-mnist", "."},
            {"t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot"},
            "https://github.com/zalandoresearch/fashion-mnist"};
  }
  if (name == "kmnist") {
    return {{"KMNIST/raw", "kmnist", "."},
            {"o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"},
            "http://codh.rois.ac.jp/kmnist"};
  }
  return {{"MNIST/raw", "mnist", "."}, kDigits, "https://ossci-datasets.s3.amazonaws.com/mnist"};
}

Wanted idx_file(const std::string& prefix, const std::string& kind) {
  return {prefix + "-" + kind, {prefix + "." + kind}};  // train-images.idx3-ubyte: what some unpackers make of it
}

/// CRC-32 of the four canonical MNIST files, uncompressed, in the order of the search below.
constexpr std::array<std::uint32_t, 4> kMnistCrc = {0xe9f4d8b3u, 0xe0cb4ad2u, 0x91373bdfu, 0x4ab9eff9u};

Dataset load_mnist_form(const DataOptions& options) {
  const IdxSet set = idx_set(options.name);
  const std::vector<Wanted> wanted = {idx_file("train-images", "idx3-ubyte"), idx_file("train-labels", "idx1-ubyte"),
                                      idx_file("t10k-images", "idx3-ubyte"), idx_file("t10k-labels", "idx1-ubyte")};
  Search search(options,
                "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte "
                "(plain or .gz)",
                fmt::format("Get them from {} and put them into {}; {}.", set.url,
                            (roots(options).front() / set.folders[1]).string(), kElsewhere));
  for (const fs::path& root : roots(options)) {
    for (const std::string& folder : set.folders) {
      const auto files = search.find(below(root, folder), wanted);
      if (!files) continue;
      const auto& f = *files;
      const IdxPair train = read_idx_pair(f[0], f[1], 10), test = read_idx_pair(f[2], f[3], 10);
      for (const Images& images : {train.images, test.images}) {
        ESPALIER_CHECK(images.pixels.size(2) == 28 && images.pixels.size(3) == 28, ErrorKind::data,
                       "{}: images of {}x{}, expected 28x28; read other IDX files with data.name = \"idx\"",
                       f[0].parent_path().string(), images.pixels.size(3), images.pixels.size(2));
      }
      const std::array<std::uint32_t, 4> crc = {train.images_crc32, train.labels_crc32, test.images_crc32,
                                                test.labels_crc32};
      if (options.name == "mnist") {
        for (std::size_t i = 0; i < crc.size(); ++i) {
          if (crc[i] == kMnistCrc[i]) continue;
          log_warning(
              fmt::format("{}: CRC-32 {:08x}, the canonical MNIST file has {:08x}; results will not compare "
                          "with published ones",
                          f[i].string(), crc[i], kMnistCrc[i]));
        }
      } else {
        ESPALIER_CHECK(crc[0] != kMnistCrc[0] && crc[2] != kMnistCrc[2], ErrorKind::data,
                       "{}: these are the digits of MNIST, not {}; name another folder (--data-root DIR)",
                       f[0].parent_path().string(), options.name);
      }
      return {options.name, train.images, test.images, set.classes, f[0].parent_path().string()};
    }
  }
  search.failed();
}

// --- any IDX files
// ----------------------------------------------------------------------------------------------------

/// The files of `folder` called [PREFIX-]SPLIT-images-idx3-ubyte and the like, for one PREFIX that is not written down.
std::vector<std::string> idx_prefixes(const fs::path& folder) {
  std::vector<std::string> prefixes;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    std::string name = it->path().filename().string();
    for (const char* suffix : {"train-images-idx3-ubyte", "train-images.idx3-ubyte", "train-images-idx3-ubyte.gz",
                               "train-images.idx3-ubyte.gz"}) {
      const std::size_t n = std::string(suffix).size();
      if (name.size() >= n && name.compare(name.size() - n, n, suffix) == 0)
        prefixes.push_back(name.substr(0, name.size() - n));
    }
  }
  std::sort(prefixes.begin(), prefixes.end());
  prefixes.erase(std::unique(prefixes.begin(), prefixes.end()), prefixes.end());
  return prefixes;
}

Dataset load_idx(const DataOptions& options) {
  Search search(options,
                "[PREFIX-]train-images-idx3-ubyte, train-labels-idx1-ubyte, and t10k- (or test-) images and labels "
                "(plain or .gz)",
                fmt::format("Name their folder; {}.", kElsewhere));
  for (const fs::path& root : roots(options)) {
    const std::vector<std::string> prefixes = idx_prefixes(root);
    ESPALIER_CHECK(
        prefixes.size() <= 1, ErrorKind::data,
        "{}: IDX files of more than one set (\"{}\", \"{}\", …); put the wanted four into a folder of their own",
        root.string(), prefixes[0] + "train-images", prefixes[1] + "train-images");
    const std::string prefix = prefixes.empty() ? "" : prefixes[0];
    Wanted test_images = idx_file(prefix + "t10k-images", "idx3-ubyte"),
           test_labels = idx_file(prefix + "t10k-labels", "idx1-ubyte");
    for (const char* dot : {"-", "."}) {
      test_images.others.push_back(prefix + "test-images" + dot + "idx3-ubyte");
      test_labels.others.push_back(prefix + "test-labels" + dot + "idx1-ubyte");
    }
    const auto files = search.find(root, {idx_file(prefix + "train-images", "idx3-ubyte"),
                                          idx_file(prefix + "train-labels", "idx1-ubyte"), test_images, test_labels});
    if (!files) continue;
    const auto& f = *files;
    Dataset set;
    set.name = options.name;
    set.source = root.string();
    set.train = read_idx_pair(f[0], f[1], 0).images;
    const std::int64_t classes = set.train.labels.max().item<std::int64_t>() + 1;
    set.test = read_idx_pair(f[2], f[3], classes).images;
    ESPALIER_CHECK(set.test.pixels.sizes().slice(1) == set.train.pixels.sizes().slice(1), ErrorKind::data,
                   "{}: images of {}x{}, but {} has {}x{}", f[2].string(), set.test.pixels.size(3),
                   set.test.pixels.size(2), f[0].string(), set.train.pixels.size(3), set.train.pixels.size(2));
    for (std::int64_t c = 0; c < classes; ++c) set.classes.push_back(std::to_string(c));
    return set;
  }
  search.failed();
}

// --- CIFAR
// ------------------------------------------------------------------------------------------------------------

Dataset load_cifar(const DataOptions& options) {
  const bool ten = options.name == "cifar10";
  const CifarForm form = ten ? CifarForm::cifar10 : CifarForm::cifar100;
  const std::string own = ten ? "cifar-10-batches-bin" : "cifar-100-binary";
  const std::string upper = ten ? "CIFAR10" : "CIFAR100";
  const std::vector<std::string> binary = {own, options.name + "/" + own, upper + "/" + own, options.name, "."};
  std::vector<Wanted> wanted;
  if (ten) {
    for (int b = 1; b <= 5; ++b) wanted.push_back({fmt::format("data_batch_{}.bin", b), {}});
    wanted.push_back({"test_batch.bin", {}});
  } else {
    wanted = {{"train.bin", {}}, {"test.bin", {}}};
  }
  Search search(
      options,
      ten ? "data_batch_1.bin to data_batch_5.bin and test_batch.bin (plain or .gz), or an image folder "
            "train/airplane/*.png|jpg … test/truck/*.png|jpg,"
          : "train.bin and test.bin (plain or .gz)",
      fmt::format("Get the binary version from https://www.cs.toronto.edu/~kriz/{}.tar.gz and unpack it in {}; {}.",
                  ten ? "cifar-10-binary" : "cifar-100-binary", roots(options).front().string(), kElsewhere));
  for (const fs::path& root : roots(options)) {
    for (const std::string& folder : binary) {
      const fs::path place = below(root, folder);
      auto files = search.find(place, wanted);
      if (!files) continue;
      Dataset set;
      set.name = options.name;
      set.source = place.string();
      set.classes = cifar_classes(form);
      const fs::path test = files->back();
      files->pop_back();
      set.train = read_cifar(*files, form, ten ? 10000 : 50000);
      set.test = read_cifar({test}, form, 10000);
      return set;
    }
    if (ten) {
      for (const std::string& folder : {options.name, upper, std::string(".")}) {
        const fs::path place = below(root, folder);
        const std::vector<std::string> classes = image_folder_classes(place);
        if (classes.empty()) continue;
        if (classes != cifar_classes(form)) {
          search.note(place, fmt::format("train/ has {} classes, not the ten of CIFAR-10", classes.size()));
          continue;
        }
        Dataset set = read_image_folder(place);
        set.name = options.name;
        ESPALIER_CHECK(
            set.train.pixels.size(1) == 3 && set.train.pixels.size(2) == 32 && set.train.pixels.size(3) == 32,
            ErrorKind::data, "{}: images {}x{} of {} channels, expected 32x32 RGB", place.string(),
            set.train.pixels.size(3), set.train.pixels.size(2), set.train.pixels.size(1));
        return set;
      }
    }
    if (const fs::path pickles = root / (ten ? "cifar-10-batches-py" : "cifar-100-python"); is_folder(pickles)) {
      search.note(pickles, "the Python version, which is not read; the binary version is needed");
    }
  }
  search.failed();
}

// --- the rest
// ---------------------------------------------------------------------------------------------------------

Dataset load_image_folder(const DataOptions& options) {
  Search search(options, "train/<class>/*.png|jpg|jpeg and test/ or val/ beside it,",
                fmt::format("Name the folder that holds train/; {}.", kElsewhere));
  for (const fs::path& root : roots(options)) {
    if (!is_folder(root)) {
      search.note(root, "no such folder");
    } else if (image_folder_classes(root).empty()) {
      search.note(root, "no train/ with class folders in it");
    } else {
      Dataset set = options.image_size > 0 ? open_image_folder(root, options.image_size) : read_image_folder(root);
      set.name = options.name;
      return set;
    }
  }
  search.failed();
}

struct Entry {
  DatasetInfo info;
  Dataset (*load)(const DataOptions&, std::uint64_t seed);
};

const std::vector<Entry>& registry() {
  static const std::vector<Entry> entries = {
      {{"glyphs", "ten invented characters, 28x28 grey, drawn by the program; any size, nothing to download"},
       [](const DataOptions& o, std::uint64_t seed) {
         return Dataset{o.name, draw_glyphs(o.train_size, GlyphSplit::train, seed),
                        draw_glyphs(o.test_size, GlyphSplit::test, seed), glyph_classes(), "generated"};
       }},
      {{"mnist", "handwritten digits, 28x28 grey, 60,000 + 10,000 (IDX files)"},
       [](const DataOptions& o, std::uint64_t) { return load_mnist_form(o); }},
      {{"fashion-mnist", "articles of clothing, 28x28 grey, 60,000 + 10,000 (IDX files)"},
       [](const DataOptions& o, std::uint64_t) { return load_mnist_form(o); }},
      {{"kmnist", "handwritten cursive kana, 28x28 grey, 60,000 + 10,000 (IDX files)"},
       [](const DataOptions& o, std::uint64_t) { return load_mnist_form(o); }},
      {{"cifar10", "photographs of ten classes, 32x32 RGB, 50,000 + 10,000 (binary batches or an image folder)"},
       [](const DataOptions& o, std::uint64_t) { return load_cifar(o); }},
      {{"cifar100", "photographs of a hundred classes, 32x32 RGB, 50,000 + 10,000 (binary batches)"},
       [](const DataOptions& o, std::uint64_t) { return load_cifar(o); }},
      {{"idx", "any images and labels in IDX files, directly in the data root"},
       [](const DataOptions& o, std::uint64_t) { return load_idx(o); }},
      {{"image-folder", "any train/<class>/*.png|jpg and test/ or val/, directly in the data root"},
       [](const DataOptions& o, std::uint64_t) { return load_image_folder(o); }},
  };
  return entries;
}

std::vector<std::string> names() {
  std::vector<std::string> list;
  for (const Entry& entry : registry()) list.push_back(entry.info.name);
  return list;
}

}  // namespace

const std::vector<DatasetInfo>& known_datasets() {
  static const std::vector<DatasetInfo> list = [] {
    std::vector<DatasetInfo> infos;
    for (const Entry& entry : registry()) infos.push_back(entry.info);
    return infos;
  }();
  return list;
}

void DataOptions::describe(Describe& d) {
  d("name", name, "the data set", names());
  d("root", root,
    "folder with the files; empty: $ESPALIER_DATA, then $XDG_DATA_HOME/espalier/datasets (~/.local/share/…)");
  d("validation", validation, "held out from the training images: a share if under 1, else a count", at_least(0));
  d("augment", augment,
    "crop: pad by 4 and cut at random; flip: left-right at random; imagenet: a random part, resized, and flip",
    {"none", "crop", "flip", "crop-flip", "imagenet"});
  d("normalise", normalise,
    "standard: mean 0, variance 1 per channel of the training images; unit: 0 to 1; imagenet: ImageNet's mean and "
    "deviation",
    {"standard", "unit", "imagenet"});
  d("train_limit", train_limit, "train on this many images only, chosen at random; 0: on all", at_least(0));
  d("classes", classes, "keep the images of the first so many classes alone; 0: of all", at_least(0));
  d("image_size", image_size,
    "image-folder: images of any size are read when they are needed and brought to this height and width; 0: all have "
    "one size and are held in memory",
    between(0, static_cast<double>(kMaxImageSide)));
  d("train_size", train_size, "glyphs: training images to draw", between(10, 1e7));
  d("test_size", test_size, "glyphs: test images to draw", between(10, 1e7));
}

namespace {

Images of_classes(const Images& images, std::int64_t classes) {
  return images.at(images.labels.lt(classes).nonzero().flatten());
}

/// The images of the first `classes` classes; all for 0.
Dataset with_classes(Dataset set, std::int64_t classes) {
  if (classes == 0) return set;
  ESPALIER_CHECK(classes >= 2 && classes <= set.num_classes(), ErrorKind::usage,
                 "[data].classes = {}: \"{}\" has {} classes; expected 2 to that many, or 0 for all", classes, set.name,
                 set.num_classes());
  set.train = of_classes(set.train, classes);
  set.test = of_classes(set.test, classes);
  set.classes.resize(static_cast<std::size_t>(classes));
  return set;
}

}  // namespace

Dataset load_dataset(const DataOptions& options, std::uint64_t seed) {
  DataOptions checked = options;
  for (const Option& option : describe(checked)) option.validate("[data]." + option.name + " = ");
  ESPALIER_CHECK(checked.image_size == 0 || checked.name == "image-folder", ErrorKind::usage,
                 "[data].image_size = {}: the images of \"{}\" are taken as they are; only \"image-folder\" resizes",
                 checked.image_size, checked.name);
  for (const Entry& entry : registry()) {
    if (entry.info.name == checked.name) return with_classes(entry.load(checked, seed), checked.classes);
  }
  ESPALIER_ASSERT(false && "validated name");
  return {};
}

Split split_train(std::int64_t n, double validation, std::uint64_t seed, std::int64_t train_limit) {
  ESPALIER_CHECK(n >= 1, ErrorKind::usage, "validation: {} training images to split", n);
  ESPALIER_CHECK(
      std::isfinite(validation) && validation >= 0 && (validation < 1 || validation == std::floor(validation)),
      ErrorKind::usage, "validation = {}: expected a share in [0, 1) or a whole number of images", validation);
  const double wanted = validation < 1 ? std::round(validation * static_cast<double>(n)) : validation;
  ESPALIER_CHECK(validation == 0 || wanted >= 1, ErrorKind::usage,
                 "validation = {}: of {} training images that holds none out; take a larger share or a count",
                 validation, n);
  ESPALIER_CHECK(wanted < static_cast<double>(n), ErrorKind::usage,
                 "validation = {}: of {} training images that leaves none to train on", validation, n);

  Split split;
  split.validation = random_subset(n, static_cast<std::int64_t>(wanted), RandomStream(seed, Purpose::split));
  std::size_t next = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    if (next < split.validation.size() && split.validation[next] == i) {
      ++next;
    } else {
      split.train.push_back(i);
    }
  }
  const auto left = static_cast<std::int64_t>(split.train.size());
  ESPALIER_CHECK(train_limit >= 0 && train_limit <= left, ErrorKind::usage,
                 "train_limit = {}: expected 0 (all) to {}, the training images left by validation = {}", train_limit,
                 left, validation);
  if (train_limit > 0) {
    // At random, not the first ones: files often come sorted by class.
    std::vector<std::int64_t> kept = random_subset(left, train_limit, RandomStream(seed, Purpose::split, 1));
    for (std::int64_t& i : kept) i = split.train[static_cast<std::size_t>(i)];
    split.train = std::move(kept);
  }
  return split;
}

namespace {

/// Mean and deviation of every channel over a thousand images, evenly spaced, as they are evaluated.
Normalisation of_some(const Images& images, const std::vector<std::int64_t>& indices) {
  constexpr std::int64_t kSome = 1000;
  const auto n = static_cast<std::int64_t>(indices.size()), count = std::min(n, kSome);
  torch::Tensor sums = torch::zeros({count, 2, 3}, torch::kDouble);
  FirstError first_error;
  at::parallel_for(0, count, 1, [&](std::int64_t from, std::int64_t to) {
    for (std::int64_t k = from; k < to && !first_error.before(k); ++k) {
      try {
        const torch::NoGradGuard no_grad;
        const torch::Tensor image =
            read_middle(images, indices[static_cast<std::size_t>(k * n / count)]).to(torch::kDouble) / 255;
        sums[k][0].copy_(image.mean({1, 2}));
        sums[k][1].copy_(image.square().mean({1, 2}));
      } catch (...) {
        first_error.add(k, std::current_exception());
      }
    }
  });
  first_error.rethrow();
  Normalisation result;
  for (std::int64_t c = 0; c < 3; ++c) {
    double mean = 0, square = 0;
    for (std::int64_t k = 0; k < count; ++k) {
      mean += sums[k][0][c].item<double>() / static_cast<double>(count);
      square += sums[k][1][c].item<double>() / static_cast<double>(count);
    }
    const double variance = square - mean * mean;
    result.mean.push_back(static_cast<float>(mean));
    result.std.push_back(variance > 1e-8 ? static_cast<float>(std::sqrt(variance)) : 1.0f);
  }
  return result;
}

}  // namespace

Normalisation normalisation(const Images& images, const std::vector<std::int64_t>& indices,
                            const DataOptions& options) {
  const auto shape = images.shape();
  const std::int64_t channels = shape[0], plane = shape[1] * shape[2];
  const auto c_size = static_cast<std::size_t>(channels);
  if (options.normalise == "imagenet") {
    ESPALIER_CHECK(channels == 3, ErrorKind::usage,
                   "normalise = \"imagenet\": these images have {} channel, expected 3 (red, green, blue)", channels);
    return {{0.485f, 0.456f, 0.406f}, {0.229f, 0.224f, 0.225f}};
  }
  if (options.normalise == "unit") return {std::vector<float>(c_size, 0.0f), std::vector<float>(c_size, 1.0f)};
  ESPALIER_CHECK(options.normalise == "standard", ErrorKind::usage,
                 "normalise = \"{}\": unknown value. Known: standard, unit, imagenet.", options.normalise);
  ESPALIER_CHECK(!indices.empty(), ErrorKind::usage, "normalise: no training images");
  if (images.source) return of_some(images, indices);
  const torch::Tensor pixels = images.pixels.contiguous();
  const std::uint8_t* in = pixels.data_ptr<std::uint8_t>();
  Normalisation result;
  for (std::int64_t c = 0; c < channels; ++c) {
    std::array<std::int64_t, 256> count{};  // how often each grey level occurs
    for (const std::int64_t i : indices) {
      const std::uint8_t* p = in + (i * channels + c) * plane;
      for (std::int64_t k = 0; k < plane; ++k) ++count[p[k]];
    }
    const double total = static_cast<double>(plane) * static_cast<double>(indices.size());
    double mean = 0, variance = 0;
    for (std::size_t v = 0; v < 256; ++v) mean += static_cast<double>(v) * static_cast<double>(count[v]) / total;
    for (std::size_t v = 0; v < 256; ++v) {
      const double d = static_cast<double>(v) - mean;
      variance += d * d * static_cast<double>(count[v]) / total;
    }
    const bool constant = *std::max_element(count.begin(), count.end()) == static_cast<std::int64_t>(total);
    result.mean.push_back(static_cast<float>(mean / 255));
    result.std.push_back(constant ? 1.0f : static_cast<float>(std::sqrt(variance) / 255));
  }
  return result;
}

}  // namespace espalier::data
