/*
 * ref.h - the reference kernels: simple loops, sums in double.  Signatures are
 * those of struct kernels.
 */
#ifndef MOE_CPU_REF_H
#define MOE_CPU_REF_H

#include "cpu/cpu.h"

void ref_linear(const struct linear *a, uint32_t tile0, uint32_t tile1,
                uint32_t row0, uint32_t row1);
void ref_attend(const struct attend *a, uint32_t n_heads);
void ref_rmsnorm(float *y, const float *x, const float *w, float eps,
                 uint32_t n);
void ref_silu_mul(float *y, const float *gate, const float *up, uint32_t n);

#endif /* MOE_CPU_REF_H */
