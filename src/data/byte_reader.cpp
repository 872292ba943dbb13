#include "data/byte_reader.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <system_error>

#include "espalier/core/error.h"

namespace espalier::data {
namespace {

// Deflate cannot do better than 1032:1 (zlib's technical notes). Pictures reach 5:1 to 50:1; beyond 200:1 a large file
// is a bomb until somebody unpacks it by hand.
constexpr std::int64_t kMaxDeflateRatio = 1032;
constexpr std::int64_t kPlausibleRatio = 200;
constexpr std::int64_t kAlwaysPlausible = std::int64_t{64} << 20;

std::int64_t size_on_disk(const std::string& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  ESPALIER_CHECK(!error, ErrorKind::data, "{}: cannot be read: {}", path, error.message());
  ESPALIER_CHECK(std::filesystem::is_regular_file(status), ErrorKind::data, "{}: not a regular file", path);
  const auto size = std::filesystem::file_size(path, error);
  ESPALIER_CHECK(!error, ErrorKind::data, "{}: cannot be read: {}", path, error.message());
  return static_cast<std::int64_t>(size);
}

}  // namespace

ByteReader::ByteReader(std::filesystem::path path) : path_(path.string()), file_bytes_(size_on_disk(path_)) {
  errno = 0;
  file_.reset(gzopen(path_.c_str(), "rb"));
  ESPALIER_CHECK(file_, ErrorKind::data, "{}: cannot be opened: {}", path_,
                 errno != 0 ? std::strerror(errno) : "out of memory");
  gzbuffer(file_.get(), 1 << 18);
  gzipped_ = gzdirect(file_.get()) == 0;
}

void ByteReader::expect_size(std::int64_t bytes, const std::string& what) const {
  if (!gzipped_) {
    ESPALIER_CHECK(file_bytes_ == bytes, ErrorKind::data, "{}: {} bytes, expected {} ({}); the file is {}", path_,
                   file_bytes_, bytes, what, file_bytes_ < bytes ? "truncated" : "too long");
    return;
  }
  const std::int64_t possible = file_bytes_ * kMaxDeflateRatio;
  ESPALIER_CHECK(bytes <= possible, ErrorKind::data,
                 "{}: a gzip file of {} bytes cannot hold the {} expected ({}); it is truncated or its header is wrong",
                 path_, file_bytes_, bytes, what);
  ESPALIER_CHECK(bytes <= std::max(kAlwaysPlausible, file_bytes_ * kPlausibleRatio), ErrorKind::data,
                 "{}: {} bytes packed into a gzip file of {} look like a decompression bomb ({}); "
                 "if the file is right, unpack it with gunzip first",
                 path_, bytes, file_bytes_, what);
}

std::int64_t ByteReader::read_some(std::uint8_t* out, std::int64_t n) {
  constexpr std::int64_t kPiece = 1 << 24;
  std::int64_t done = 0;
  while (done < n) {
    const int got = gzread(file_.get(), out + done, static_cast<unsigned>(std::min(kPiece, n - done)));
    int code = Z_OK;
    const char* text = gzerror(file_.get(), &code);
    if (code == Z_ERRNO) text = std::strerror(errno);
    ESPALIER_CHECK(code == Z_OK || code == Z_STREAM_END || code == Z_BUF_ERROR, ErrorKind::data,
                   "{}: {}after {} bytes: {}", path_, gzipped_ ? "corrupt gzip data " : "read failed ",
                   position_ + done, text);
    // Z_BUF_ERROR is a gzip stream without its end: the bytes so far cannot be verified.
    ESPALIER_CHECK(code != Z_BUF_ERROR, ErrorKind::data, "{}: the gzip data end too early, after {} bytes: truncated",
                   path_, position_ + done + std::max(got, 0));
    if (got <= 0) break;
    crc_ = static_cast<std::uint32_t>(::crc32(crc_, out + done, static_cast<unsigned>(got)));
    done += got;
  }
  position_ += done;
  return done;
}

void ByteReader::read(std::uint8_t* out, std::int64_t n, std::int64_t expected_in_all) {
  const std::int64_t got = read_some(out, n);
  ESPALIER_CHECK(got == n, ErrorKind::data, "{}: {} bytes{}, expected {}; the file is truncated", path_, position_,
                 gzipped_ ? " after unpacking" : "", expected_in_all);
}

void ByteReader::expect_end() {
  std::uint8_t extra = 0;
  const std::int64_t expected = position_;
  ESPALIER_CHECK(read_some(&extra, 1) == 0, ErrorKind::data,
                 "{}: more than the {} bytes expected{}; the file is too long", path_, expected,
                 gzipped_ ? " after unpacking" : "");
}

std::vector<std::uint8_t> read_file(const std::filesystem::path& path, std::int64_t limit) {
  const std::string name = path.string();
  const std::int64_t size = size_on_disk(name);
  ESPALIER_CHECK(size <= limit, ErrorKind::data, "{}: {} bytes, expected at most {}", name, size, limit);
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(size));
  errno = 0;
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(name.c_str(), "rb"), &std::fclose);
  ESPALIER_CHECK(file, ErrorKind::data, "{}: cannot be opened: {}", name, std::strerror(errno));
  ESPALIER_CHECK(std::fread(bytes.data(), 1, bytes.size(), file.get()) == bytes.size(), ErrorKind::data,
                 "{}: read failed: {}", name, std::strerror(errno));
  return bytes;
}

}  // namespace espalier::data
