// The tables of the instruction sets; private to kernels/.
#pragma once

#include "espalier/kernels/dispatch.h"

namespace espalier::kernels {

extern const Table k_scalar_table;
#if ESPALIER_X86
extern const Table k_avx2_table;
extern const Table k_avx512_table;
#endif

}  // namespace espalier::kernels
