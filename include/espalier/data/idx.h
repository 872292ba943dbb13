/// IDX files, the form of MNIST: a magic number 00 00 TT DD (TT = type of the elements, DD = number of dimensions), DD
/// sizes as big-endian uint32, then the elements in row-major order. Source: Y. LeCun, "The MNIST database", file
/// formats.
#pragma once

#include <cstdint>
#include <filesystem>

#include "espalier/data/images.h"

namespace espalier::data {

struct IdxArray {
  torch::Tensor values;     ///< uint8, the shape of the file
  std::uint32_t crc32 = 0;  ///< of the whole file, uncompressed
};

/// Reads unsigned bytes of the given number of dimensions (1 = labels, 3 = images), plain or gzipped. Error(data) if
/// magic, sizes and bytes do not agree. Memory: never more than the file is able to hold.
IdxArray read_idx(const std::filesystem::path& path, int dimensions);

/// A file of images and the file of their labels. Error(data) if the counts differ, or a label is not in
/// 0 .. num_classes - 1 (0: any label).
struct IdxPair {
  Images images;
  std::uint32_t images_crc32 = 0, labels_crc32 = 0;
};
IdxPair read_idx_pair(const std::filesystem::path& images, const std::filesystem::path& labels,
                      std::int64_t num_classes);

}  // namespace espalier::data
