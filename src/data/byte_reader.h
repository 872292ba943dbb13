/// The bytes of a file, plain or gzipped, in order, with bounded memory.
#pragma once

#include <zlib.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace espalier::data {

/// Whether a file is gzipped is told by its content, not by its name: a browser may have unpacked an .gz in passing.
/// Every failure is an Error(data) that starts with the path.
class ByteReader {
 public:
  explicit ByteReader(std::filesystem::path path);

  /// Throws unless the file may hold `bytes` in all: exactly that many if it is plain, a believable number if it is
  /// gzipped. Call it before allocating memory by what a header says. `what` says where the number comes from.
  void expect_size(std::int64_t bytes, const std::string& what) const;
  /// Exactly n bytes, or an error that says how many bytes there were and how many were expected in all.
  void read(std::uint8_t* out, std::int64_t n, std::int64_t expected_in_all);
  /// Throws if a byte is left. Also what verifies gzip's checksum: call it after the last read.
  void expect_end();

  const std::string& path() const { return path_; }
  std::uint32_t crc32() const { return crc_; }  ///< of the (uncompressed) bytes read so far

 private:
  struct Close {
    void operator()(gzFile file) const { gzclose(file); }
  };
  std::int64_t read_some(std::uint8_t* out, std::int64_t n);

  std::string path_;
  std::unique_ptr<gzFile_s, Close> file_;
  std::int64_t file_bytes_ = 0;  // on disk
  bool gzipped_ = false;
  std::int64_t position_ = 0;
  std::uint32_t crc_ = 0;
};

/// A small file as a whole; Error(data) if it holds more than `limit` bytes.
std::vector<std::uint8_t> read_file(const std::filesystem::path& path, std::int64_t limit);

}  // namespace espalier::data
