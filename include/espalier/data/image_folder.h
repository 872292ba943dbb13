/// Image folders: train/<class>/*.png|jpg|jpeg and test/<class>/… (or val/<class>/…).
#pragma once

#include <filesystem>

#include "espalier/data/images.h"

namespace espalier::data {

/// Reads both splits, decoding in parallel. Classes are the folders of train/ in byte order of their names, files of a
/// class come in byte order of theirs; names that begin with a dot and files of other kinds are passed over. All images
/// are 8-bit and of one size, all grey or all RGB. Error(data) names the file or folder at fault; of several bad files,
/// the first in order.
Dataset read_image_folder(const std::filesystem::path& root);

/// The same folders with images of any size, 8 bits or more, with any colours, read when they are looked at and brought
/// to side x side RGB: what ImageNet comes as. Only names are read here.
Dataset open_image_folder(const std::filesystem::path& root, std::int64_t side);

/// The class names of train/, sorted; empty if there is no such folder.
std::vector<std::string> image_folder_classes(const std::filesystem::path& root);

}  // namespace espalier::data
