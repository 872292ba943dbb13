/// CIFAR-10 and CIFAR-100 in their binary form: records of one (CIFAR-100: two, coarse then fine) label bytes and 3 x
/// 32 x 32 pixels, channel by channel, without a header. Source: A. Krizhevsky, "The CIFAR-10 dataset", binary version.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "espalier/data/images.h"

namespace espalier::data {

enum class CifarForm { cifar10, cifar100 };

/// Joins the files, each of exactly `records_per_file` records, plain or gzipped. CIFAR-100 gives the fine labels.
/// Error(data) for another size or a label out of range.
Images read_cifar(const std::vector<std::filesystem::path>& files, CifarForm form, std::int64_t records_per_file);

const std::vector<std::string>& cifar_classes(CifarForm form);

}  // namespace espalier::data
