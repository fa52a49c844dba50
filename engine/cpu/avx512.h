/*
 * avx512.h - kernels for what only some machines with AVX-512 have; signatures
 * are those of struct kernels.
 */
#ifndef MOE_CPU_AVX512_H
#define MOE_CPU_AVX512_H

#include "cpu/cpu.h"

/* For BF16 weights: x is rounded to BF16. */
void bf16_linear(const struct linear *a, uint32_t tile0, uint32_t tile1,
                 uint32_t row0, uint32_t row1);

/* Columns of a tile of tight weights as BF16: expand.h. */
void expand_avx512(uint8_t *to, const uint8_t *tile, uint32_t n_in,
                   uint32_t col, uint32_t n_cols);

/* For weights of 8, 6 and 4 bits: x is rounded to 8 bits. */
void vnni_linear(const struct linear *a, uint32_t tile0, uint32_t tile1,
                 uint32_t row0, uint32_t row1);

/* For BF16 weights, with AMX: x is rounded to BF16. */
void amx_linear(const struct linear *a, uint32_t tile0, uint32_t tile1,
                uint32_t row0, uint32_t row1);

/* For weights of 8 and 6 bits, with AMX: the bits of vnni_linear(), for many
 * rows. */
void amx_bytes_linear(const struct linear *a, uint32_t tile0, uint32_t tile1,
                      uint32_t row0, uint32_t row1);

#endif /* MOE_CPU_AVX512_H */
