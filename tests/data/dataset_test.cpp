#include "espalier/data/dataset.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <optional>

#include "data/files.h"
#include "espalier/core/log.h"
#include "espalier/data/cifar.h"

namespace espalier::data {
namespace {

/// Sets an environment variable for the length of a test.
class Variable {
 public:
  Variable(const char* name, const std::string& value) : name_(name) {
    if (const char* old = std::getenv(name)) old_ = old;
    setenv(name, value.c_str(), 1);
  }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;
  ~Variable() {
    if (old_) {
      setenv(name_, old_->c_str(), 1);
    } else {
      unsetenv(name_);
    }
  }

 private:
  const char* name_;
  std::optional<std::string> old_;
};

DataOptions named(const std::string& name, const fs::path& root = {}) {
  DataOptions options;
  options.name = name;
  options.root = root.string();
  return options;
}

/// Four IDX files of 28x28 images, grey level `level`; labels 0, 1, 2, …
void write_mnist(const Folder& folder, const std::string& at, std::uint8_t level, bool gz = false, bool dots = false) {
  for (const auto& [split, n] : std::vector<std::pair<std::string, std::uint32_t>>{{"train", 3}, {"t10k", 2}}) {
    Bytes labels;
    for (std::uint32_t i = 0; i < n; ++i) labels.push_back(static_cast<std::uint8_t>(i));
    const Bytes images = idx_bytes(8, {n, 28, 28}, Bytes(n * 784, level)), classes = idx_bytes(8, {n}, labels);
    const std::string end = gz ? ".gz" : "", join = dots ? "." : "-";
    folder.write(at + "/" + split + "-images" + join + "idx3-ubyte" + end, gz ? gzipped(images) : images);
    folder.write(at + "/" + split + "-labels" + join + "idx1-ubyte" + end, gz ? gzipped(classes) : classes);
  }
}

int level_of(const Dataset& set) { return set.train.pixels[0][0][0][0].item<int>(); }

TEST(Dataset, EveryLayoutOfMnistIsFound) {
  int level = 10;
  for (const char* at : {"MNIST/raw", "mnist", "."}) {
    for (const bool gz : {false, true}) {
      for (const bool dots : {false, true}) {
        const Folder folder;
        write_mnist(folder, at, static_cast<std::uint8_t>(++level), gz, dots);
        const Dataset set = load_dataset(named("mnist", folder.path()), 1);
        EXPECT_EQ(level_of(set), level) << at;
        EXPECT_EQ(set.train.size(), 3);
        EXPECT_EQ(set.test.size(), 2);
        EXPECT_EQ(set.num_classes(), 10);
      }
    }
  }
  const Folder siblings;
  write_mnist(siblings, "FashionMNIST/raw", 1);
  write_mnist(siblings, "KMNIST/raw", 2);
  write_mnist(siblings, "mnist", 3);
  EXPECT_EQ(level_of(load_dataset(named("fashion-mnist", siblings.path()), 1)), 1);
  EXPECT_EQ(level_of(load_dataset(named("kmnist", siblings.path()), 1)), 2);
  EXPECT_EQ(level_of(load_dataset(named("mnist", siblings.path()), 1)), 3);
}

TEST(Dataset, RootBeforeEnvironmentBeforeHome) {
  const Folder root, own, xdg, home;
  write_mnist(root, "mnist", 1);
  write_mnist(own, "mnist", 2);
  write_mnist(xdg, "espalier/datasets/mnist", 3);
  write_mnist(home, ".local/share/espalier/datasets/mnist", 4);
  write_mnist(home, "data/mnist", 5);
  const Variable h("HOME", home.path().string());
  {
    const Variable x("XDG_DATA_HOME", xdg.path().string());
    {
      const Variable e("ESPALIER_DATA", own.path().string());
      EXPECT_EQ(level_of(load_dataset(named("mnist", root.path()), 1)), 1);
      EXPECT_EQ(level_of(load_dataset(named("mnist"), 1)), 2);
      EXPECT_EQ(level_of(load_dataset(named("mnist", "~/data"), 1)), 5);
      // A root that was named is not replaced by another place.
      EXPECT_SAYS(data_error([&] { load_dataset(named("mnist", home.path() / "none"), 1); }), "no such folder");
    }
    const Variable e("ESPALIER_DATA", "");
    EXPECT_EQ(level_of(load_dataset(named("mnist"), 1)), 3);
    const Variable elsewhere("ESPALIER_DATA", root.path().string() + "/mnist/none");
    EXPECT_EQ(level_of(load_dataset(named("mnist"), 1)), 3);
  }
  const Variable x("XDG_DATA_HOME", ""), e("ESPALIER_DATA", "");
  EXPECT_EQ(level_of(load_dataset(named("mnist"), 1)), 4);
}

TEST(Dataset, MissingFilesAreListedWithEveryPlace) {
  const Folder folder;
  write_mnist(folder, "mnist", 1);
  fs::remove(folder.path() / "mnist/t10k-labels-idx1-ubyte");
  const std::string message = data_error([&] { load_dataset(named("mnist", folder.path()), 1); });
  for (const char* file : {"train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"}) {
    EXPECT_SAYS(message, file);
  }
  EXPECT_SAYS(message, (folder.path() / "MNIST/raw").string() + ": no such folder");
  EXPECT_SAYS(message, (folder.path() / "mnist").string() + ": no t10k-labels-idx1-ubyte");
  EXPECT_SAYS(message, folder.path().string() + ": no train-images-idx3-ubyte, no train-labels-idx1-ubyte");
  EXPECT_SAYS(message, "https://");
  EXPECT_SAYS(message, "--data-root");
  EXPECT_SAYS(message, "$ESPALIER_DATA");
  EXPECT_SAYS(data_error([&] { load_dataset(named("cifar10", folder.path()), 1); }), "data_batch_1.bin");
  EXPECT_SAYS(data_error([&] { load_dataset(named("cifar100", folder.path()), 1); }), "train.bin");
  EXPECT_SAYS(data_error([&] { load_dataset(named("image-folder", folder.path()), 1); }), "no train/");
  EXPECT_SAYS(data_error([&] { load_dataset(named("idx", folder.path()), 1); }), "no train-images-idx3-ubyte");
  fs::create_directories(folder.path() / "cifar-10-batches-py");
  EXPECT_SAYS(data_error([&] { load_dataset(named("cifar10", folder.path()), 1); }), "the binary version is needed");
}

TEST(Dataset, WarnsOfMnistThatIsNotTheCanonicalOne) {
  const Folder folder;
  write_mnist(folder, "mnist", 1);
  std::vector<std::string> warnings;
  set_log_sink([&](LogLevel level, const std::string& text) {
    if (level == LogLevel::warning) warnings.push_back(text);
  });
  load_dataset(named("mnist", folder.path()), 1);
  set_log_sink({});
  ASSERT_EQ(warnings.size(), 4u);
  EXPECT_SAYS(warnings[0], "canonical MNIST file has e9f4d8b3");
}

TEST(Dataset, MnistSizedOtherwiseIsAnErrorIdxIsNot) {
  const Folder folder;
  folder.write("train-images-idx3-ubyte", idx_bytes(8, {2, 3, 4}, Bytes(24, 1)));
  folder.write("train-labels-idx1-ubyte", idx_bytes(8, {2}, {0, 5}));
  folder.write("test-images-idx3-ubyte", idx_bytes(8, {1, 3, 4}, Bytes(12, 1)));
  folder.write("test-labels-idx1-ubyte", idx_bytes(8, {1}, {4}));
  const Dataset set = load_dataset(named("idx", folder.path()), 1);
  EXPECT_EQ(set.num_classes(), 6);
  EXPECT_EQ(set.test.pixels.sizes(), torch::IntArrayRef({1, 1, 3, 4}));
  fs::rename(folder.path() / "test-images-idx3-ubyte", folder.path() / "t10k-images-idx3-ubyte");
  fs::rename(folder.path() / "test-labels-idx1-ubyte", folder.path() / "t10k-labels-idx1-ubyte");
  EXPECT_SAYS(data_error([&] { load_dataset(named("mnist", folder.path()), 1); }), "images of 4x3, expected 28x28");
  folder.write("t10k-labels-idx1-ubyte", idx_bytes(8, {1}, {6}));
  EXPECT_SAYS(data_error([&] { load_dataset(named("idx", folder.path()), 1); }),
              "label 6 of sample 0, expected 0 to 5");
  folder.write("t10k-labels-idx1-ubyte", idx_bytes(8, {1}, {0}));
  folder.write("t10k-images-idx3-ubyte", idx_bytes(8, {1, 4, 4}, Bytes(16, 1)));
  EXPECT_SAYS(data_error([&] { load_dataset(named("idx", folder.path()), 1); }), "images of 4x4");
  folder.write("emnist-letters-train-images-idx3-ubyte", {});
  EXPECT_SAYS(data_error([&] { load_dataset(named("idx", folder.path()), 1); }), "more than one set");
}

TEST(Dataset, IdxFilesMayCarryAPrefix) {
  const Folder folder;
  for (const char* split : {"emnist-digits-train", "emnist-digits-test"}) {
    folder.write(std::string(split) + "-images-idx3-ubyte.gz", gzipped(idx_bytes(8, {1, 1, 1}, {7})));
    folder.write(std::string(split) + "-labels-idx1-ubyte.gz", gzipped(idx_bytes(8, {1}, {0})));
  }
  EXPECT_EQ(level_of(load_dataset(named("idx", folder.path()), 1)), 7);
}

TEST(Dataset, Cifar100BinaryIsReadWhole) {
  const Folder folder;
  // All black, class 0: the size is what is checked. Holes in a file cost no disk.
  for (const auto& [name, records] :
       std::vector<std::pair<std::string, std::uintmax_t>>{{"train", 50000}, {"test", 10000}}) {
    fs::resize_file(folder.write("cifar-100-binary/" + name + ".bin", {}), records * 3074);
  }
  const Dataset set = load_dataset(named("cifar100", folder.path()), 1);
  EXPECT_EQ(set.train.size(), 50000);
  EXPECT_EQ(set.test.size(), 10000);
  EXPECT_EQ(set.num_classes(), 100);
  fs::resize_file(folder.path() / "cifar-100-binary/train.bin", 49999 * 3074);
  EXPECT_SAYS(data_error([&] { load_dataset(named("cifar100", folder.path()), 1); }), "50000 records of 3074");
}

TEST(Dataset, Cifar10TakesAnImageFolderOfItsClasses) {
  const Folder folder;
  std::uint8_t level = 0;
  for (const std::string& name : cifar_classes(CifarForm::cifar10)) {
    for (const char* split : {"train", "test"}) {
      folder.write(fmt::format("cifar10/{}/{}/1.png", split, name),
                   png_bytes(32, 32, PNG_FORMAT_RGB, Bytes(3072, ++level)));
    }
  }
  const Dataset set = load_dataset(named("cifar10", folder.path()), 1);
  EXPECT_EQ(set.train.size(), 10);
  EXPECT_EQ(set.classes[9], "truck");
  EXPECT_EQ(set.train.pixels[9][0][0][0].item<int>(), 19);
  fs::rename(folder.path() / "cifar10/train/truck", folder.path() / "cifar10/train/lorry");
  EXPECT_SAYS(data_error([&] { load_dataset(named("cifar10", folder.path()), 1); }), "not the ten of CIFAR-10");
}

TEST(Dataset, OptionsAreChecked) {
  const auto usage = [](const DataOptions& options) -> std::string {
    try {
      load_dataset(options, 1);
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::usage);
      return e.what();
    }
    return "no error";
  };
  EXPECT_SAYS(usage(named("mnits")), "Did you mean \"mnist\"?");
  DataOptions options;
  options.train_size = 3;
  EXPECT_SAYS(usage(options), "[data].train_size = 3 is out of range");
  EXPECT_EQ(known_datasets().front().name, "glyphs");
}

TEST(Split, DisjointAscendingCompleteAndSeeded) {
  for (const auto& [validation, count] :
       std::vector<std::pair<double, std::size_t>>{{0, 0}, {0.1, 100}, {0.0005, 1}, {250, 250}, {1, 1}, {999, 999}}) {
    const Split split = split_train(1000, validation, 7);
    EXPECT_EQ(split.validation.size(), count);
    std::vector<std::int64_t> all = split.train;
    EXPECT_TRUE(std::is_sorted(all.begin(), all.end()));
    EXPECT_TRUE(std::is_sorted(split.validation.begin(), split.validation.end()));
    all.insert(all.end(), split.validation.begin(), split.validation.end());
    std::sort(all.begin(), all.end());
    ASSERT_EQ(all.size(), 1000u);
    for (std::size_t i = 0; i < all.size(); ++i) ASSERT_EQ(all[i], static_cast<std::int64_t>(i));
  }
  EXPECT_EQ(split_train(1000, 0.3, 7).validation, split_train(1000, 0.3, 7).validation);
  EXPECT_NE(split_train(1000, 0.3, 7).validation, split_train(1000, 0.3, 8).validation);
}

TEST(Split, TrainLimitTakesARandomPartOfWhatIsLeft) {
  const Split whole = split_train(1000, 200, 7), part = split_train(1000, 200, 7, 50);
  EXPECT_EQ(part.validation, whole.validation);
  EXPECT_EQ(part.train.size(), 50u);
  EXPECT_TRUE(std::includes(whole.train.begin(), whole.train.end(), part.train.begin(), part.train.end()));
  EXPECT_GT(part.train.back(), 500);  // not the first fifty
}

TEST(Split, RefusesWhatLeavesNothing) {
  EXPECT_THROW(split_train(1000, 1000, 1), Error);
  EXPECT_THROW(split_train(1000, 0.0001, 1), Error);
  EXPECT_THROW(split_train(1000, 2.5, 1), Error);
  EXPECT_THROW(split_train(1000, -1, 1), Error);
  EXPECT_THROW(split_train(1000, std::nan(""), 1), Error);
  EXPECT_THROW(split_train(1, 0.9, 1), Error);
  EXPECT_THROW(split_train(1000, 900, 1, 101), Error);
  EXPECT_NO_THROW(split_train(1000, 900, 1, 100));
}

TEST(Normalise, StandardIsTheMeanAndDeviationOfTheTrainingPart) {
  torch::manual_seed(3);
  Images images{torch::randint(0, 200, {40, 3, 5, 4}, torch::kInt64).to(torch::kUInt8),
                torch::zeros({40}, torch::kInt64)};
  images.pixels.select(1, 2).fill_(51);       // a constant channel
  images.pixels.slice(0, 30, 40).fill_(255);  // held out: must not count
  std::vector<std::int64_t> indices;
  for (std::int64_t i = 0; i < 30; ++i) indices.push_back(i);
  const Normalisation n = normalisation(images, indices, DataOptions());
  const auto x = images.pixels.slice(0, 0, 30).to(torch::kFloat64) / 255;
  for (std::int64_t c = 0; c < 2; ++c) {
    const auto i = static_cast<std::size_t>(c);
    EXPECT_NEAR(n.mean[i], x.select(1, c).mean().item<double>(), 1e-7);
    EXPECT_NEAR(n.std[i], x.select(1, c).std(/*unbiased=*/false).item<double>(), 1e-7);
  }
  EXPECT_FLOAT_EQ(n.mean[2], 0.2f);
  EXPECT_EQ(n.std[2], 1.0f);
  DataOptions unit;
  unit.normalise = "unit";
  EXPECT_EQ(normalisation(images, indices, unit).mean, (std::vector<float>{0, 0, 0}));
  EXPECT_EQ(normalisation(images, indices, unit).std, (std::vector<float>{1, 1, 1}));
}

TEST(RealData, MnistIsTheCanonicalOne) {
  const char* root = std::getenv("ESPALIER_DATA");
  if (root == nullptr) GTEST_SKIP() << "set ESPALIER_DATA to a folder that holds mnist/";
  std::vector<std::string> warnings;
  set_log_sink([&](LogLevel, const std::string& text) { warnings.push_back(text); });
  const Dataset set = load_dataset(named("mnist", root), 1);
  set_log_sink({});
  EXPECT_TRUE(warnings.empty()) << warnings[0];
  EXPECT_EQ(set.train.pixels.sizes(), torch::IntArrayRef({60000, 1, 28, 28}));
  EXPECT_EQ(set.test.pixels.sizes(), torch::IntArrayRef({10000, 1, 28, 28}));
  // The published figures of the training images: mean 0.1307, deviation 0.3081.
  std::vector<std::int64_t> all;
  for (std::int64_t i = 0; i < 60000; ++i) all.push_back(i);
  const Normalisation n = normalisation(set.train, all, DataOptions());
  EXPECT_NEAR(n.mean[0], 0.1307, 5e-5);
  EXPECT_NEAR(n.std[0], 0.3081, 5e-5);
  // These files under another name are refused.
  EXPECT_SAYS(data_error([&] { load_dataset(named("fashion-mnist", fs::path(root) / "mnist"), 1); }),
              "digits of MNIST");
}

TEST(LoadDataset, KeepsTheFirstClasses) {
  DataOptions options = named("glyphs");
  options.train_size = 200;
  options.test_size = 100;
  const Dataset all = load_dataset(options, 1);
  options.classes = 3;
  const Dataset three = load_dataset(options, 1);
  EXPECT_EQ(three.num_classes(), 3);
  EXPECT_EQ(three.train.size(), all.train.labels.lt(3).sum().item<std::int64_t>());
  EXPECT_EQ(three.test.labels.max().item<std::int64_t>(), 2);
  EXPECT_TRUE(torch::equal(three.train.pixels, all.train.pixels.index({all.train.labels.lt(3)})));
  for (const std::int64_t wrong : {1, 11}) {
    options.classes = wrong;
    EXPECT_THROW(load_dataset(options, 1), Error);
  }
}

}  // namespace
}  // namespace espalier::data
