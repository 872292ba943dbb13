// Damaged files: every truncation and bit flip either loads or throws espalier::Error; nothing else, in bounded time.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "data/files.h"
#include "data/image_file.h"
#include "espalier/core/random.h"
#include "espalier/data/cifar.h"
#include "espalier/data/idx.h"

namespace espalier::data {
namespace {

Bytes noise(std::size_t n, std::uint64_t name) {
  RandomStream stream(2, Purpose::test, name);
  Bytes bytes(n);
  for (auto& b : bytes) b = static_cast<std::uint8_t>(stream.below(64));
  return bytes;
}

Bytes damaged(Bytes bytes, RandomStream& stream) {
  if (stream.below(3) == 0) bytes.resize(stream.below(bytes.size()));
  // Half of the flips hit the first 64 bytes, where the headers are.
  for (std::uint64_t flips = stream.below(4); flips > 0 && !bytes.empty(); --flips) {
    const std::uint64_t reach = stream.below(2) == 0 ? std::min<std::uint64_t>(64, bytes.size()) : bytes.size();
    bytes[stream.below(reach)] ^= static_cast<std::uint8_t>(1u << stream.below(8));
  }
  return bytes;
}

/// Tries `rounds` damaged copies; both outcomes must occur, else the damage is none or total.
template <class Read>
void survive(const Bytes& whole, int rounds, std::uint64_t name, Read&& read) {
  RandomStream stream(3, Purpose::test, name);
  int loaded = 0, refused = 0;
  for (int i = 0; i < rounds; ++i) {
    try {
      read(damaged(whole, stream));
      ++loaded;
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::data);
      ++refused;
    }
  }
  EXPECT_GT(loaded, 0);
  EXPECT_GT(refused, 0);
}

TEST(Fuzz, Idx) {
  const Folder folder;
  const Bytes plain = idx_bytes(8, {5, 4, 4}, noise(80, 1));
  const auto read = [&](const Bytes& bytes) { read_idx(folder.write("file", bytes), 3); };
  survive(plain, 1500, 1, read);
  survive(gzipped(plain), 1500, 2, read);
}

TEST(Fuzz, Cifar) {
  const Folder folder;
  Bytes record = noise(3073, 4);
  record[0] = 3;
  const auto read = [&](const Bytes& bytes) { read_cifar({folder.write("file", bytes)}, CifarForm::cifar10, 1); };
  survive(record, 500, 5, read);
  survive(gzipped(record), 500, 6, read);
}

TEST(Fuzz, Images) {
  const ImageShape shape{3, 17, 19};
  const Bytes pixels = noise(3 * 17 * 19, 7);
  const auto read = [&](const Bytes& bytes) {
    const DecodedImage image = decode_image(bytes, "file", &shape);
    ASSERT_EQ(image.pixels.size(), pixels.size());
  };
  survive(png_bytes(19, 17, PNG_FORMAT_RGB, pixels), 3000, 8, read);
  survive(jpeg_bytes(19, 17, 3, pixels, 75), 3000, 9, read);
}

}  // namespace
}  // namespace espalier::data
