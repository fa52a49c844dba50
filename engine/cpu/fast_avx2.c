/*
 * fast_avx2.c - the fast kernels for this kind of vector; cpu.c chooses it
 * only where the machine has it.
 */
#include "cpu/vec_avx2.h"

#include "cpu/avx2.h"
#include "cpu/fast_linear.h"
#include "cpu/fast_rows.h"
#include "cpu/fast_attend.h"


static void
linear(const struct linear *a, uint32_t tile0, uint32_t tile1, uint32_t row0,
       uint32_t row1)
{
    (dtype_is_quant(a->dtype) ? bytes_linear
     : a->dtype == DTYPE_TIGHT ? fast_tight : fast_linear)(a, tile0, tile1,
                                                           row0, row1);
}


const struct kernels VEC_KERNELS = {
    VEC_NAME, linear, fast_attend, fast_rmsnorm, fast_silu_mul, 0
};
