/// Files that must survive a crash: written whole or not at all, with the digest that tells damage later.
/// Failures to write are Error(failed), failures to read Error(data); both name the path and the system's reason.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>

namespace espalier::train {

/// Length and CRC-32 (zlib's polynomial; `zlib.crc32` in Python) of a file. A CRC-32 finds every burst of up to 32
/// flipped bits and misses other damage once in 2^32; it costs well under the disk's time (docs/formats/checkpoint.md).
struct FileDigest {
  std::int64_t bytes = 0;
  std::uint32_t crc32 = 0;
  bool operator==(const FileDigest& other) const { return bytes == other.bytes && crc32 == other.crc32; }
};

FileDigest digest_of(const std::string& bytes);

/// A file written from the start to the end; an existing one is emptied.
class OutputFile {
 public:
  explicit OutputFile(std::filesystem::path path);
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  ~OutputFile();

  void write(const void* data, std::size_t bytes);
  /// fsync and close; nothing may be written after it.
  FileDigest finish();

 private:
  std::filesystem::path path_;
  int fd_;
  FileDigest digest_;
};

/// A regular file read from the start to the end.
class InputFile {
 public:
  explicit InputFile(std::filesystem::path path);
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;
  ~InputFile();

  std::int64_t size() const { return size_; }  ///< bytes, when it was opened
  /// Exactly that many bytes, or Error(data).
  void read(void* data, std::size_t bytes);
  FileDigest digest() const { return digest_; }  ///< of what has been read so far

 private:
  std::filesystem::path path_;
  int fd_;
  std::int64_t size_;
  FileDigest digest_;
};

std::string read_file(const std::filesystem::path& path);

/// Readers see the old content or the new one, whole, whatever happens: written to `.<name>.tmp` beside it, fsynced,
/// renamed. One writer at a time.
void write_file_atomically(const std::filesystem::path& path, const std::string& content);
std::string temporary_name(const std::string& name);  ///< `.<name>.tmp`

/// fsync of a directory: makes the creation, renaming and removal of its entries durable.
void sync_directory(const std::filesystem::path& path);

}  // namespace espalier::train
