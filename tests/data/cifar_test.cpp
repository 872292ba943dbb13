#include "espalier/data/cifar.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <set>

#include "data/files.h"

namespace espalier::data {
namespace {

/// Records whose pixel k of record r is (r * 31 + k) mod 251: each byte tells where it came from.
Bytes records(const std::vector<Bytes>& labels) {
  Bytes bytes;
  for (std::size_t r = 0; r < labels.size(); ++r) {
    bytes.insert(bytes.end(), labels[r].begin(), labels[r].end());
    for (std::size_t k = 0; k < 3072; ++k) bytes.push_back(static_cast<std::uint8_t>((r * 31 + k) % 251));
  }
  return bytes;
}

TEST(Cifar, JoinsBatchesInOrder) {
  const Folder folder;
  const auto a = folder.write("a.bin", records({{9}, {0}}));
  const auto b = folder.write("b.bin.gz", gzipped(records({{4}, {5}})));
  const Images images = read_cifar({a, b}, CifarForm::cifar10, 2);
  ASSERT_EQ(images.pixels.sizes(), torch::IntArrayRef({4, 3, 32, 32}));
  EXPECT_TRUE(images.labels.equal(torch::tensor({9, 0, 4, 5}, torch::kInt64)));
  // Channel 2, row 3, column 4 is byte 2 * 1024 + 3 * 32 + 4 = 2148 of a record.
  EXPECT_EQ(images.pixels[3][2][3][4].item<int>(), (31 + 2148) % 251);
  EXPECT_EQ(images.pixels[0][0][0][1].item<int>(), 1);
}

TEST(Cifar, Cifar100GivesTheFineLabel) {
  const Folder folder;
  const Images images = read_cifar({folder.write("a", records({{19, 99}, {0, 42}}))}, CifarForm::cifar100, 2);
  EXPECT_TRUE(images.labels.equal(torch::tensor({99, 42}, torch::kInt64)));
  EXPECT_EQ(images.pixels[1][0][0][0].item<int>(), 31);
}

TEST(Cifar, WrongSizesAndLabelsNameTheFile) {
  const Folder folder;
  Bytes bytes = records({{1}, {2}});
  bytes.pop_back();
  const auto shorter = folder.write("short", bytes);
  EXPECT_SAYS(data_error([&] { read_cifar({shorter}, CifarForm::cifar10, 2); }),
              shorter.string() + ": 6145 bytes, expected 6146 (2 records of 3073); the file is truncated");
  const auto one_less = folder.write("one", records({{1}}));  // whole records, but too few of them
  EXPECT_SAYS(data_error([&] { read_cifar({one_less}, CifarForm::cifar10, 2); }), "3073 bytes, expected 6146");
  const auto longer = folder.write("long.gz", gzipped(records({{1}, {2}, {3}})));
  EXPECT_SAYS(data_error([&] { read_cifar({longer}, CifarForm::cifar10, 2); }), "more than the 6146 bytes");
  const auto bad = folder.write("bad", records({{1}, {10}}));
  EXPECT_SAYS(data_error([&] { read_cifar({bad}, CifarForm::cifar10, 2); }),
              bad.string() + ": label 10 of sample 1, expected 0 to 9");
}

TEST(Cifar, ClassNamesAreAllThereAndInOrder) {
  EXPECT_EQ(cifar_classes(CifarForm::cifar10).size(), 10u);
  const auto& hundred = cifar_classes(CifarForm::cifar100);
  EXPECT_EQ(std::set<std::string>(hundred.begin(), hundred.end()).size(), 100u);
  EXPECT_TRUE(std::is_sorted(hundred.begin(), hundred.end()));
}

}  // namespace
}  // namespace espalier::data
