/*
 * fast_avx512.c - the fast kernels for this kind of vector; cpu.c chooses them
 * only where the machine has it.
 */
#include "cpu/vec_avx512.h"

#include "cpu/avx2.h"
#include "cpu/avx512.h"
#include "cpu/fast_linear.h"
#include "cpu/fast_rows.h"
#include "cpu/fast_attend.h"


void
expand_avx512(uint8_t *to, const uint8_t *tile, uint32_t n_in, uint32_t col,
              uint32_t n_cols)
{
    expand(to, tile, n_in, col, n_cols);
}


static void
linear(const struct linear *a, uint32_t tile0, uint32_t tile1, uint32_t row0,
       uint32_t row1)
{
    (dtype_is_quant(a->dtype) ? bytes_linear
     : a->dtype == DTYPE_TIGHT ? fast_tight : fast_linear)(a, tile0, tile1,
                                                           row0, row1);
}


static void
linear_vnni(const struct linear *a, uint32_t tile0, uint32_t tile1,
            uint32_t row0, uint32_t row1)
{
    (dtype_is_quant(a->dtype) ? vnni_linear : linear)(a, tile0, tile1, row0,
                                                      row1);
}


static void
linear_bf16(const struct linear *a, uint32_t tile0, uint32_t tile1,
            uint32_t row0, uint32_t row1)
{
    int bf16 = a->dtype == DTYPE_BF16 || a->dtype == DTYPE_TIGHT;

    (bf16 ? bf16_linear : linear_vnni)(a, tile0, tile1, row0, row1);
}


static void
linear_amx(const struct linear *a, uint32_t tile0, uint32_t tile1,
           uint32_t row0, uint32_t row1)
{
    int bf16 = a->dtype == DTYPE_BF16 || a->dtype == DTYPE_TIGHT;
    int many = row1 - row0 >= 16
               && (a->dtype == DTYPE_INT8 || a->dtype == DTYPE_INT6);

    (bf16 ? amx_linear
     : many ? amx_bytes_linear : linear_vnni)(a, tile0, tile1, row0, row1);
}


const struct kernels VEC_KERNELS = {
    VEC_NAME, linear, fast_attend, fast_rmsnorm, fast_silu_mul, 0
};

const struct kernels kernels_avx512vnni = {
    "avx512vnni", linear_vnni, fast_attend, fast_rmsnorm, fast_silu_mul, 0
};

const struct kernels kernels_avx512bf16 = {
    "avx512bf16", linear_bf16, fast_attend, fast_rmsnorm, fast_silu_mul, 1
};

const struct kernels kernels_amx = {
    "amx", linear_amx, fast_attend, fast_rmsnorm, fast_silu_mul, 0
};
