#include "espalier/kernels/dispatch.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "espalier/core/error.h"
#include "kernels/tables.h"
#if ESPALIER_X86
#include <cpuid.h>
#endif

namespace espalier::kernels {

bool halves_long_vectors() {
#if ESPALIER_X86
  static const bool halves = [] {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (__get_cpuid(0, &eax, &ebx, &ecx, &edx) == 0 || ebx != signature_AMD_ebx || ecx != signature_AMD_ecx)
      return false;
    if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0) return false;
    const unsigned family = (eax >> 8 & 0xf) + (eax >> 20 & 0xff);
    return family == 0x19;  // Zen 3, which has no such vectors, and Zen 4
  }();
  return halves;
#else
  return false;
#endif
}

std::int64_t l2_bytes() {
  static const std::int64_t bytes = [] {
    const std::int64_t said = sysconf(_SC_LEVEL2_CACHE_SIZE);
    return said <= 0 ? std::int64_t{1} << 20 : std::clamp(said, std::int64_t{256} << 10, std::int64_t{2} << 20);
  }();
  return bytes;
}

const std::vector<const Table*>& compiled() {
  static const std::vector<const Table*> tables = {
#if ESPALIER_X86
    &k_avx512_table,
    &k_avx2_table,
#endif
    &k_scalar_table,
  };
  return tables;
}

const Table& table(const std::string& isa) {
  std::vector<std::string> known;
  for (const Table* t : compiled()) {
    known.emplace_back(t->isa);
    if (isa != t->isa) continue;
    ESPALIER_CHECK(
        t->runs_here(), ErrorKind::usage,
        "ESPALIER_ISA = \"{}\": this CPU does not have that instruction set; unset ESPALIER_ISA to use the best one",
        isa);
    return *t;
  }
  std::string list;
  for (const auto& name : known) list += (list.empty() ? "" : ", ") + name;
  fail(ErrorKind::usage, "ESPALIER_ISA = \"{}\": unknown instruction set. Known in this build: {}.{}", isa, list,
       suggestion(isa, known));
}

const Table& active() {
  static const Table& chosen = []() -> const Table& {
    const char* forced = std::getenv("ESPALIER_ISA");
    if (forced != nullptr && *forced != '\0') return table(forced);
    for (const Table* t : compiled()) {
      if (t->runs_here()) return *t;
    }
    return *compiled().back();
  }();
  return chosen;
}

}  // namespace espalier::kernels
