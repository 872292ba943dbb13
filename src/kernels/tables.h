// The tables of the instruction sets; private to kernels/.
#pragma once

#include "espalier/kernels/dispatch.h"

namespace espalier::kernels {

/// Whether this CPU takes operations on 64 bytes as two halves (Zen 4), so that multiply-adds are what kernels wait
/// for, and loads are to spare.
bool halves_long_vectors();

/// A core's L2 cache, in bytes: 256 KB to 2 MB, what has been measured; 1 MB where the system does not say.
std::int64_t l2_bytes();

extern const Table k_scalar_table;
#if ESPALIER_X86
extern const Table k_avx2_table;
extern const Table k_avx512_table;
#endif

}  // namespace espalier::kernels
