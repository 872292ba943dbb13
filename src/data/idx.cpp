#include "espalier/data/idx.h"

#include <array>
#include <string>
#include <vector>

#include "data/byte_reader.h"
#include "data/labels.h"
#include "espalier/core/error.h"

namespace espalier::data {
namespace {

constexpr std::uint32_t kUnsignedByte = 0x08;

std::uint32_t big_endian(const std::uint8_t* b) {
  return (std::uint32_t{b[0]} << 24) | (std::uint32_t{b[1]} << 16) | (std::uint32_t{b[2]} << 8) | b[3];
}

void check_magic(const std::string& path, std::uint32_t found, int dimensions) {
  const std::uint32_t expected = (kUnsignedByte << 8) | static_cast<std::uint32_t>(dimensions);
  if (found == expected) return;
  std::string hint = "; is this an IDX file?";
  if (found == ((kUnsignedByte << 8) | 1u)) hint = "; is this the labels file?";
  if (found == ((kUnsignedByte << 8) | 3u)) hint = "; is this the images file?";
  const std::uint32_t type = (found >> 8) & 0xff;
  if (found >> 16 == 0 && type >= 0x09 && type <= 0x0e) hint = "; only unsigned bytes (type 8) are read";
  fail(ErrorKind::data, "{}: magic {} (0x{:08x}), expected {}{}", path, found, found, expected, hint);
}

}  // namespace

IdxArray read_idx(const std::filesystem::path& path, int dimensions) {
  ByteReader file(path);
  const std::int64_t header_bytes = 4 + 4 * dimensions;
  std::array<std::uint8_t, 4> word{};
  file.read(word.data(), 4, header_bytes);
  check_magic(file.path(), big_endian(word.data()), dimensions);

  std::vector<std::int64_t> shape;
  std::string shape_text;
  std::int64_t elements = 1;
  for (int d = 0; d < dimensions; ++d) {
    file.read(word.data(), 4, header_bytes);
    shape.push_back(big_endian(word.data()));
    shape_text += fmt::format("{}{}", d == 0 ? "" : " x ", shape.back());
    // The sides are bounded, so that the product of all sizes stays under 2^32 * 2^24 and cannot overflow.
    ESPALIER_CHECK(shape.back() > 0 && (d == 0 || shape.back() <= kMaxImageSide), ErrorKind::data,
                   "{}: size {} of dimension {}, expected 1 to {}", file.path(), shape.back(), d + 1,
                   d == 0 ? std::int64_t{0xffffffff} : kMaxImageSide);
    elements *= shape.back();
  }
  ESPALIER_CHECK(elements <= kMaxSplitBytes, ErrorKind::data,
                 "{}: the header says {}, {} bytes; more than {} are not read into memory", file.path(), shape_text,
                 elements, kMaxSplitBytes);
  file.expect_size(header_bytes + elements, "the header says " + shape_text);

  IdxArray array;
  array.values = torch::empty(shape, torch::kUInt8);
  file.read(array.values.data_ptr<std::uint8_t>(), elements, header_bytes + elements);
  file.expect_end();
  array.crc32 = file.crc32();
  return array;
}

IdxPair read_idx_pair(const std::filesystem::path& images, const std::filesystem::path& labels,
                      std::int64_t num_classes) {
  const IdxArray pixels = read_idx(images, 3);
  const IdxArray classes = read_idx(labels, 1);
  ESPALIER_CHECK(pixels.values.size(0) == classes.values.size(0), ErrorKind::data,
                 "{}: {} images, but {} has {} labels; the two files do not belong together", images.string(),
                 pixels.values.size(0), labels.string(), classes.values.size(0));
  IdxPair pair;
  pair.images.pixels = pixels.values.unsqueeze(1);
  pair.images.labels = classes.values.to(torch::kInt64);
  pair.images_crc32 = pixels.crc32;
  pair.labels_crc32 = classes.crc32;
  if (num_classes > 0) check_labels(pair.images.labels, num_classes, labels.string());
  return pair;
}

}  // namespace espalier::data
