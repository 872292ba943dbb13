#include "espalier/core/large_pages.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <fstream>
#include <sstream>
#include <string>

namespace espalier {
namespace {

constexpr std::size_t kPage = std::size_t{2} << 20;

/// Anonymous memory of a mapping of its own, aligned to large pages, every small page of it written. It is never
/// unmapped: no address comes twice.
struct Mapping {
  explicit Mapping(std::size_t n) : bytes(n) {
    char* const all =
        static_cast<char*>(mmap(nullptr, n + 2 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    data = reinterpret_cast<char*>((reinterpret_cast<std::uintptr_t>(all) + kPage - 1) / kPage * kPage);
    madvise(all, n + 2 * kPage, MADV_NOHUGEPAGE);  // else a system that is set to always takes large ones by itself
    for (std::size_t i = 0; i < n; i += 512) data[i] = static_cast<char>(i / 512 % 127 + 1);
  }
  bool intact() const {
    for (std::size_t i = 0; i < bytes; ++i) {
      if (data[i] != (i % 512 == 0 ? static_cast<char>(i / 512 % 127 + 1) : 0)) return false;
    }
    return true;
  }
  std::size_t bytes;
  char* data;
};

/// Bytes of the mapping that holds `at` which are in large pages.
std::size_t in_large_pages(const char* at) {
  std::ifstream maps("/proc/self/smaps");
  bool here = false;
  for (std::string line; std::getline(maps, line);) {
    std::istringstream words(line);
    std::string word;
    words >> word;
    if (word.find('-') != std::string::npos) {
      const auto begin = std::stoull(word, nullptr, 16),
                 end = std::stoull(word.substr(word.find('-') + 1), nullptr, 16);
      here = begin <= reinterpret_cast<std::uintptr_t>(at) && reinterpret_cast<std::uintptr_t>(at) < end;
    } else if (here && word == "AnonHugePages:") {
      std::size_t kilobytes = 0;
      words >> kilobytes;
      return kilobytes << 10;
    }
  }
  return 0;
}

/// Does this system make large pages of small ones when it is told to?
bool collapses() {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string line;
  if (!std::getline(file, line) || line.find("[never]") != std::string::npos) return false;
  const Mapping m(kPage);
  return madvise(m.data, kPage, MADV_HUGEPAGE) == 0 && madvise(m.data, kPage, 25) == 0;
}

TEST(LargePages, KeepWhatMemoryHolds) {
  const Mapping m(3 * kPage);
  want_large_pages(m.data, m.bytes);
  want_large_pages(m.data, m.bytes);
  want_large_pages(m.data, 0);
  want_large_pages(nullptr, 0);
  EXPECT_TRUE(m.intact());
}

TEST(LargePages, StandBehindWhatIsHalfAPageOrMore) {
  if (!collapses()) GTEST_SKIP() << "this system has no large pages to give";
  const Mapping m(5 * kPage);
  EXPECT_EQ(in_large_pages(m.data), 0u);
  want_large_pages(m.data + kPage, kPage - 1);  // too little
  EXPECT_EQ(in_large_pages(m.data + kPage), 0u);
  want_large_pages(m.data + kPage / 4, 2 * kPage);  // three quarters, all, a quarter
  EXPECT_EQ(in_large_pages(m.data), 2 * kPage);
  EXPECT_EQ(in_large_pages(m.data + 2 * kPage), 0u);
  EXPECT_TRUE(m.intact());
}

}  // namespace
}  // namespace espalier
