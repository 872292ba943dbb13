/// Reader and writer of the safetensors format (huggingface/safetensors, format documented in its README): the length
/// of the header (u64, little-endian), a JSON header, the bytes of the tensors. docs/formats/safetensors.md.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "espalier/train/durable_file.h"

namespace espalier::train {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

struct SafetensorsContent {
  NamedTensors
      tensors;  ///< contiguous, on the CPU, each with memory of its own; in the order of their bytes in the file
  std::map<std::string, std::string> metadata;
  FileDigest digest;
};

/// Writes F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL tensors of any shape, stride and device; the data are fsynced. The
/// same tensors give the same bytes: larger elements first, which aligns every tensor, otherwise in the order given.
/// Throws Error(usage) for what the format can't hold (another dtype, a sparse or undefined tensor, a name twice)
/// before anything is written, Error(failed) if writing fails.
FileDigest save_safetensors(const std::filesystem::path& path, const NamedTensors& tensors,
                            const std::map<std::string, std::string>& metadata = {});

/// Trusts nothing in the file: every inconsistency, however small, is an Error(data) with the file's name, and memory
/// is only taken for bytes that are there.
SafetensorsContent load_safetensors(const std::filesystem::path& path);

}  // namespace espalier::train
