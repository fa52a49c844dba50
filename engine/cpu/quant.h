/*
 * quant.h - weights of 8, 6 and 4 bits.  In: FP32 rows.  Out: tiles of 16 rows
 * in runs of QUANT_RUN columns, the last one filled up with zeros:
 *
 *   int8   16 FP32 scales, then (64 / 4, 16, 4) bytes q;  w = (q - 128) * scale
 *   int6   16 FP32 scales, then (64 / 8, 16, 4) bytes of the low four bits, as
 *          int4 has them, then (64 / 16, 16, 4) bytes of the high two: byte b
 *          has those of columns b, b + 4, b + 8 and b + 12, the lowest first;
 *          w = (q - 32) * scale
 *   int4   (2, 16) BF16 scales, then (2, 4, 16, 4) bytes: 2 groups of 32
 *          columns, of 8 columns each a vector; the low half of byte b is
 *          column b, the high half column b + 4;  w = (q - 8) * scale
 *
 * so that a vector has four columns of 16 outputs, which is what VPDPBUSD adds
 * up.  q has no sign, since the instruction wants one factor without.
 */
#ifndef MOE_CPU_QUANT_H
#define MOE_CPU_QUANT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "backend.h"

#define QUANT_RUN           64
#define QUANT_INT8_BYTES    (16 * 4 + 64 * 16)      /* of a run of a tile */
#define QUANT_INT6_BYTES    (16 * 4 + 48 * 16)
#define QUANT_INT4_BYTES    (16 * 4 + 32 * 16)

static inline uint32_t
quant_runs(uint32_t n_in)
{
    return (n_in + QUANT_RUN - 1) / QUANT_RUN;
}

static inline size_t
quant_run_bytes(enum dtype t)
{
    return t == DTYPE_INT8 ? QUANT_INT8_BYTES
           : t == DTYPE_INT6 ? QUANT_INT6_BYTES : QUANT_INT4_BYTES;
}

/* What q is for a weight of 0. */
static inline int
quant_zero(enum dtype t)
{
    return t == DTYPE_INT8 ? 128 : t == DTYPE_INT6 ? 32 : 8;
}

/* The scale of a run of x rounded to 8 bits, given its largest.  The mantissa
 * is of 22 bits, so that 3 * 2^22 times it is a number of FP32, too: up to a
 * largest of 3.4e33, beyond which products are NaN. */
static inline float
quant_x_scale(float largest)
{
    float    scale = largest / 127;
    uint32_t bits;

    memcpy(&bits, &scale, 4);
    bits &= ~3u;
    memcpy(&scale, &bits, 4);

    return scale;
}

/* One row into lane `lane` of a tile. */
void quant_put(uint8_t *tile, enum dtype t, uint32_t lane, const float *row,
               uint32_t n_in);

/* The value of an element of a tile. */
float quant_get(const uint8_t *tile, enum dtype t, uint32_t lane,
                uint32_t col);

#endif /* MOE_CPU_QUANT_H */
