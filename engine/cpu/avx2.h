/*
 * avx2.h - kernels for what every machine with AVX2 has and no vector of
 * vec_*.h says; signatures are those of struct kernels.
 */
#ifndef MOE_CPU_AVX2_H
#define MOE_CPU_AVX2_H

#include "cpu/cpu.h"

/* For weights of 8 bits, whose x is rounded to 16 bits, and of 6 and 4: 8. */
void bytes_linear(const struct linear *a, uint32_t tile0, uint32_t tile1,
                  uint32_t row0, uint32_t row1);

#endif /* MOE_CPU_AVX2_H */
