/// Memory in the system's large pages.
#pragma once

#include <cstddef>

namespace espalier {

/// Asks for large pages (2 MB) behind [data, data + bytes), at once where small ones are there already: for memory that
/// is visited in turn at places that are small pages apart. Pages of which the range has less than half stay as they
/// are. Small ones are made one large page once in a process: that takes time, and an allocator hands out the same
/// memory again. What it holds stays. An advice: where the system refuses, or is set to never use large pages, nothing
/// changes. From any thread.
void want_large_pages(const void* data, std::size_t bytes);

}  // namespace espalier
