#include "espalier/core/large_pages.h"

#include <sys/mman.h>

#include <cstdint>
#include <fstream>
#include <mutex>
#include <string>
#include <unordered_set>

namespace espalier {
namespace {

constexpr std::uintptr_t kPage = std::uintptr_t{2} << 20;
constexpr int kCollapse = 25;  // MADV_COLLAPSE of Linux 6.1, which older headers lack

/// MADV_COLLAPSE would not ask.
bool allowed() {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string line;
  return std::getline(file, line) && line.find("[never]") == std::string::npos;
}

}  // namespace

void want_large_pages(const void* data, std::size_t bytes) {
  static const bool are_allowed = allowed();
  if (bytes < kPage || !are_allowed) return;
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  const std::uintptr_t first = (address + kPage / 2) / kPage, last = (address + bytes + kPage / 2) / kPage;
  const auto address_of = [](std::uintptr_t page) { return reinterpret_cast<void*>(page * kPage); };
  (void)madvise(address_of(first), (last - first) * kPage, MADV_HUGEPAGE);  // of use for what nobody has touched yet
  static std::mutex mutex;
  static std::unordered_set<std::uintptr_t> collapsed;
  const std::lock_guard<std::mutex> lock(mutex);
  for (std::uintptr_t page = first; page < last; ++page) {
    if (collapsed.insert(page).second) (void)madvise(address_of(page), kPage, kCollapse);
  }
}

}  // namespace espalier
