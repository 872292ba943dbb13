#include "espalier/data/cifar.h"

#include <cstring>

#include "data/byte_reader.h"
#include "data/labels.h"
#include "espalier/core/error.h"

namespace espalier::data {
namespace {

constexpr std::int64_t kPixels = 3 * 32 * 32;

// clang-format off
const std::vector<std::string> kCifar10 = {
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"};
const std::vector<std::string> kCifar100 = {
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle",
    "bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle",
    "chair", "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur",
    "dolphin", "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard",
    "lamp", "lawn_mower", "leopard", "lion", "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain",
    "mouse", "mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree",
    "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road", "rocket",
    "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider",
    "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone", "television", "tiger", "tractor",
    "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman", "worm"};
// clang-format on

}  // namespace

const std::vector<std::string>& cifar_classes(CifarForm form) {
  return form == CifarForm::cifar10 ? kCifar10 : kCifar100;
}

Images read_cifar(const std::vector<std::filesystem::path>& files, CifarForm form, std::int64_t records_per_file) {
  const std::int64_t label_bytes = form == CifarForm::cifar10 ? 1 : 2;
  const std::int64_t record = label_bytes + kPixels;
  const std::int64_t file_bytes = record * records_per_file;
  const std::string what = fmt::format("{} records of {}", records_per_file, record);
  std::vector<ByteReader> readers;
  for (const auto& path : files) {
    readers.emplace_back(path);
    readers.back().expect_size(file_bytes, what);
  }

  const std::int64_t n = records_per_file * static_cast<std::int64_t>(files.size());
  Images images{torch::empty({n, 3, 32, 32}, torch::kUInt8), torch::empty({n}, torch::kInt64)};
  std::uint8_t* pixels = images.pixels.data_ptr<std::uint8_t>();
  std::int64_t* labels = images.labels.data_ptr<std::int64_t>();
  std::vector<std::uint8_t> buffer(static_cast<std::size_t>(record));
  for (std::size_t f = 0; f < readers.size(); ++f) {
    ByteReader& file = readers[f];
    const std::int64_t first = static_cast<std::int64_t>(f) * records_per_file;
    for (std::int64_t i = first; i < first + records_per_file; ++i) {
      file.read(buffer.data(), record, file_bytes);
      labels[i] = buffer[static_cast<std::size_t>(label_bytes) - 1];
      std::memcpy(pixels + i * kPixels, buffer.data() + label_bytes, static_cast<std::size_t>(kPixels));
    }
    file.expect_end();
    check_labels(images.labels.slice(0, first, first + records_per_file),
                 static_cast<std::int64_t>(cifar_classes(form).size()), file.path());
  }
  return images;
}

}  // namespace espalier::data
