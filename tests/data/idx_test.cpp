#include "espalier/data/idx.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "data/files.h"

namespace espalier::data {
namespace {

const Bytes kPixels = {1, 2, 3, 4, 5, 6, 250, 251, 252, 253, 254, 255};
const Bytes kImages = idx_bytes(8, {2, 2, 3}, kPixels);
const Bytes kLabels = idx_bytes(8, {2}, {7, 3});

TEST(Idx, ReadsImagesAndLabelsPlainOrGzipped) {
  const Folder folder;
  // The name does not decide: a plain file called .gz and a gzipped one without are read as what they are.
  const auto images = {folder.write("a", kImages), folder.write("b.gz", gzipped(kImages)),
                       folder.write("c.gz", kImages), folder.write("d", gzipped(kImages))};
  const auto labels = folder.write("labels.gz", gzipped(kLabels));
  for (const auto& file : images) {
    const IdxPair pair = read_idx_pair(file, labels, 10);
    EXPECT_EQ(pair.images.pixels.sizes(), torch::IntArrayRef({2, 1, 2, 3}));
    EXPECT_TRUE(pair.images.pixels.flatten().equal(torch::tensor(kPixels, torch::kUInt8)));
    EXPECT_TRUE(pair.images.labels.equal(torch::tensor({7, 3}, torch::kInt64)));
  }
}

TEST(Idx, ChecksumIsTheOneOfTheUncompressedFile) {
  const Folder folder;
  // "123456789" has the CRC-32 cbf43926 (the check value of the standard); behind an IDX header it is of no use, so the
  // header is fed to zlib's crc32 beside it.
  const Bytes file = idx_bytes(8, {9}, {'1', '2', '3', '4', '5', '6', '7', '8', '9'});
  EXPECT_EQ(read_idx(folder.write("x.gz", gzipped(file)), 1).crc32,
            crc32_combine(crc32(0, file.data(), 8), 0xcbf43926u, 9));
}

TEST(Idx, WrongMagicSaysWhatTheFileMayBe) {
  const Folder folder;
  const auto labels = folder.write("labels", kLabels);
  std::string message = data_error([&] { read_idx(labels, 3); });
  EXPECT_SAYS(message, labels.string() + ": magic 2049");
  EXPECT_SAYS(message, "expected 2051");
  EXPECT_SAYS(message, "is this the labels file?");
  message = data_error([&] { read_idx(folder.write("images", kImages), 1); });
  EXPECT_SAYS(message, "is this the images file?");
  message = data_error([&] { read_idx(folder.write("floats", idx_bytes(0x0d, {1}, {0, 0, 0, 0})), 1); });
  EXPECT_SAYS(message, "only unsigned bytes");
  message = data_error([&] { read_idx(folder.write("text", {'h', 'e', 'l', 'l', 'o'}), 1); });
  EXPECT_SAYS(message, "is this an IDX file?");
}

TEST(Idx, TruncatedAndOversizedFilesNameBothSizes) {
  const Folder folder;
  Bytes shorter = kImages, longer = kImages;
  shorter.pop_back();
  longer.push_back(0);
  std::string message = data_error([&] { read_idx(folder.write("short", shorter), 3); });
  EXPECT_SAYS(message, "27 bytes, expected 28 (the header says 2 x 2 x 3); the file is truncated");
  message = data_error([&] { read_idx(folder.write("long", longer), 3); });
  EXPECT_SAYS(message, "29 bytes, expected 28 (the header says 2 x 2 x 3); the file is too long");
  message = data_error([&] { read_idx(folder.write("short.gz", gzipped(shorter)), 3); });
  EXPECT_SAYS(message, "27 bytes after unpacking, expected 28; the file is truncated");
  message = data_error([&] { read_idx(folder.write("long.gz", gzipped(longer)), 3); });
  EXPECT_SAYS(message, "more than the 28 bytes expected after unpacking");
  message = data_error([&] { read_idx(folder.write("stub", {0, 0, 8}), 3); });
  EXPECT_SAYS(message, "3 bytes, expected 16");
  message = data_error([&] { read_idx(folder.write("empty", {}), 3); });
  EXPECT_SAYS(message, "0 bytes, expected 16");
}

TEST(Idx, CorruptGzipIsFoundEvenWhereTheBytesAreComplete) {
  const Folder folder;
  const Bytes packed = gzipped(kImages);
  Bytes wrong_sum = packed;
  wrong_sum[packed.size() - 8] ^= 1;  // the trailer: CRC-32, then the length
  std::string message = data_error([&] { read_idx(folder.write("sum.gz", wrong_sum), 3); });
  EXPECT_SAYS(message, "corrupt gzip data");
  const Bytes no_trailer(packed.begin(), packed.end() - 8);
  message = data_error([&] { read_idx(folder.write("cut.gz", no_trailer), 3); });
  EXPECT_SAYS(message, "truncated");
}

TEST(Idx, CountsAndLabelsMustFit) {
  const Folder folder;
  const auto images = folder.write("images", kImages);
  const auto three = folder.write("three", idx_bytes(8, {3}, {0, 1, 2}));
  std::string message = data_error([&] { read_idx_pair(images, three, 10); });
  EXPECT_SAYS(message, "2 images");
  EXPECT_SAYS(message, "3 labels");
  const auto labels = folder.write("labels", kLabels);
  message = data_error([&] { read_idx_pair(images, labels, 7); });
  EXPECT_SAYS(message, labels.string() + ": label 7 of sample 0, expected 0 to 6");
  EXPECT_EQ(read_idx_pair(images, labels, 0).images.size(), 2);
}

TEST(Idx, UnreadablePathsSaySo) {
  const Folder folder;
  EXPECT_SAYS(data_error([&] { read_idx(folder.path() / "none", 1); }), "No such file");
  EXPECT_SAYS(data_error([&] { read_idx(folder.path(), 1); }), "not a regular file");
}

TEST(Idx, AbsurdHeadersAndBombsTakeNoMemory) {
  const Folder folder;
  const std::int64_t before = peak_rss_bytes();
  // 4 * 10^9 images promised by 16 bytes.
  std::string message = data_error([&] { read_idx(folder.write("huge", idx_bytes(8, {0xffffffffu, 1, 1}, {})), 3); });
  EXPECT_SAYS(message, "expected 4294967311");
  message = data_error([&] { read_idx(folder.write("wide", idx_bytes(8, {1, 0xffffffffu, 1}, {})), 3); });
  EXPECT_SAYS(message, "size 4294967295 of dimension 2");
  message = data_error([&] { read_idx(folder.write("none", idx_bytes(8, {0, 2, 2}, {})), 3); });
  EXPECT_SAYS(message, "size 0 of dimension 1");
  message = data_error([&] { read_idx(folder.write("more", idx_bytes(8, {0xffffffffu, 4096, 4096}, {})), 3); });
  EXPECT_SAYS(message, "not read into memory");
  message = data_error([&] { read_idx(folder.write("h.gz", gzipped(idx_bytes(8, {1u << 30, 1, 1}, {}))), 3); });
  EXPECT_SAYS(message, "cannot hold");

  // A bomb that lies: the header asks for 28 bytes, a gigabyte follows. And one that does not: 2^28 zeros in 261 kB.
  Bytes zeros(1 << 28);
  Bytes lying = gzipped(kImages);
  const Bytes packed = gzipped(zeros);
  std::vector<std::uint8_t>().swap(zeros);
  for (int i = 0; i < 4; ++i) lying.insert(lying.end(), packed.begin(), packed.end());  // gzip members may be joined
  Bytes honest = gzipped(idx_bytes(8, {1u << 28, 1, 1}, {}));
  honest.insert(honest.end(), packed.begin(), packed.end());
  const std::int64_t with_bombs = peak_rss_bytes();
  message = data_error([&] { read_idx(folder.write("lying.gz", lying), 3); });
  EXPECT_SAYS(message, "more than the 28 bytes");
  message = data_error([&] { read_idx(folder.write("honest.gz", honest), 3); });
  EXPECT_SAYS(message, "decompression bomb");
  EXPECT_LT(peak_rss_bytes() - with_bombs, 8 << 20);
  EXPECT_GT(with_bombs, before);  // the measure works: making the bomb took 256 MB
}

}  // namespace
}  // namespace espalier::data
