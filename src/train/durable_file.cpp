#include "espalier/train/durable_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "espalier/core/error.h"

namespace espalier::train {
namespace {

[[noreturn]] void fail_to_write(const std::filesystem::path& path, const char* what) {
  const int reason = errno;
  fail(ErrorKind::failed, "{}: cannot {}: {}", path.string(), what, std::strerror(reason));
}

[[noreturn]] void fail_to_read(const std::filesystem::path& path, const char* what) {
  const int reason = errno;
  fail(ErrorKind::data, "{}: cannot {}: {}", path.string(), what, std::strerror(reason));
}

void extend(FileDigest& digest, const void* data, std::size_t bytes) {
  // zlib returns the starting value, not the running one, for a null pointer, which an empty buffer may be.
  if (bytes == 0) return;
  digest.crc32 = static_cast<std::uint32_t>(crc32_z(digest.crc32, static_cast<const Bytef*>(data), bytes));
  digest.bytes += static_cast<std::int64_t>(bytes);
}

// Linux moves at most 2 GiB - 4 KiB a call; smaller pieces keep the bytes in cache between the digest and the copy.
constexpr std::size_t kPiece = std::size_t{1} << 20;

}  // namespace

FileDigest digest_of(const std::string& bytes) {
  FileDigest digest;
  extend(digest, bytes.data(), bytes.size());
  return digest;
}

OutputFile::OutputFile(std::filesystem::path path)
    : path_(std::move(path)), fd_(::open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666)) {
  if (fd_ < 0) fail_to_write(path_, "create");
}

OutputFile::~OutputFile() {
  if (fd_ >= 0) ::close(fd_);
}

void OutputFile::write(const void* data, std::size_t bytes) {
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::write(fd_, next, std::min(bytes, kPiece));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_to_write(path_, "write");
    extend(digest_, next, static_cast<std::size_t>(n));
    next += n;
    bytes -= static_cast<std::size_t>(n);
  }
}

FileDigest OutputFile::finish() {
  if (::fsync(fd_) != 0) fail_to_write(path_, "write to disk (fsync)");
  if (::close(std::exchange(fd_, -1)) != 0) fail_to_write(path_, "close");
  return digest_;
}

InputFile::InputFile(std::filesystem::path path)
    // O_NONBLOCK: opening a pipe by mistake must not hang; it changes nothing for regular files.
    : path_(std::move(path)), fd_(::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
  if (fd_ < 0) fail_to_read(path_, "open");
  struct stat status {};
  const bool known = ::fstat(fd_, &status) == 0;
  if (known && S_ISREG(status.st_mode)) {
    size_ = status.st_size;
    return;
  }
  const int reason = errno;
  ::close(fd_);
  errno = reason;
  if (!known) fail_to_read(path_, "stat");
  fail(ErrorKind::data, "{}: found a directory or a device, expected a file", path_.string());
}

InputFile::~InputFile() { ::close(fd_); }

void InputFile::read(void* data, std::size_t bytes) {
  char* next = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::read(fd_, next, std::min(bytes, kPiece));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_to_read(path_, "read");
    ESPALIER_CHECK(n > 0, ErrorKind::data, "{}: ends after {} bytes, expected {} more", path_.string(), digest_.bytes,
                   bytes);
    extend(digest_, next, static_cast<std::size_t>(n));
    next += n;
    bytes -= static_cast<std::size_t>(n);
  }
}

std::string read_file(const std::filesystem::path& path) {
  InputFile file(path);
  std::string content(static_cast<std::size_t>(file.size()), '\0');
  file.read(content.data(), content.size());
  return content;
}

std::string temporary_name(const std::string& name) { return "." + name + ".tmp"; }

void write_file_atomically(const std::filesystem::path& path, const std::string& content) {
  const std::filesystem::path beside = path.parent_path() / temporary_name(path.filename().string());
  try {
    OutputFile file(beside);
    file.write(content.data(), content.size());
    file.finish();
    if (::rename(beside.c_str(), path.c_str()) != 0) fail_to_write(path, "replace");
  } catch (...) {
    ::unlink(beside.c_str());
    throw;
  }
  sync_directory(path.parent_path());
}

void sync_directory(const std::filesystem::path& path) {
  const std::filesystem::path directory = path.empty() ? "." : path;
  const int fd = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) fail_to_write(directory, "open");
  const int result = ::fsync(fd);
  const int reason = errno;
  ::close(fd);
  errno = reason;
  // Some network file systems have no fsync for directories and say EINVAL; there is nothing more to ask of them.
  if (result != 0 && reason != EINVAL) fail_to_write(directory, "write to disk (fsync)");
}

}  // namespace espalier::train
