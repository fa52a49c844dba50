/*
 * fast_avx512.c - the fast kernels for this kind of vector; cpu.c chooses it
 * only where the machine has it.
 */
#include "cpu/vec_avx512.h"

#include "cpu/fast_linear.h"
#include "cpu/fast_rows.h"
#include "cpu/fast_mla.h"


const struct kernels VEC_KERNELS = {
    VEC_NAME, fast_linear, fast_mla, fast_rmsnorm, fast_silu_mul
};
