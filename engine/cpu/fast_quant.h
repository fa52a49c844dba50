/*
 * fast_quant.h - y = W x with weights of 8 or 4 bits where the machine has no
 * dot products of bytes: a run's weights become FP32, one vector of 4 columns
 * at a time.  The order of an output's sum is that of its columns, with the
 * scale applied once a group (D6).
 */
#include "cpu/quant.h"

#define QUANT_ROWS      4


/* Four columns of VEC_N outputs from byte `i` of each lane's word. */
INLINE vec
quant_vec(const uint8_t *words, int byte, enum dtype t, int high)
{
    return t == DTYPE_INT8
           ? vec_sub(vec_load_bits(words, 8 * byte, 0xff), vec_set(128))
           : vec_sub(vec_load_bits(words, 8 * byte + 4 * high, 0x0f),
                     vec_set(8));
}


/* A group of columns with one scale: `words` vectors of 16 lanes. */
INLINE void
quant_group(vec *sum, const uint8_t *q, vec scale, const float *const *x,
            uint32_t col, uint32_t n_in, enum dtype t, int T)
{
    int columns = t == DTYPE_INT8 ? QUANT_RUN : QUANT_RUN / 2;
    vec part[QUANT_ROWS];

#pragma GCC unroll 4
    for (int r = 0; r < T; r++) {
        part[r] = vec_set(0);
    }

    for (int i = 0; i < columns && col + (uint32_t) i < n_in; i++) {
        const uint8_t *words = t == DTYPE_INT8 ? q + i / 4 * 64
                                               : q + i / 8 * 64;
        vec            w = quant_vec(words, i % 4, t, i % 8 >= 4);

#pragma GCC unroll 4
        for (int r = 0; r < T; r++) {
            part[r] = vec_fma(w, vec_set(x[r][col + (uint32_t) i]), part[r]);
        }
    }

#pragma GCC unroll 4
    for (int r = 0; r < T; r++) {
        sum[r] = vec_fma(part[r], scale, sum[r]);
    }
}


/* Outputs [at, at + VEC_N) of a tile, T rows. */
INLINE void
quant_block(const struct linear *a, const uint8_t *tile, uint32_t lane,
            const float *const *x, vec *sum, enum dtype t, int T)
{
    const uint8_t *run = tile;

    for (uint32_t col = 0; col < a->n_in; col += QUANT_RUN) {
        if (t == DTYPE_INT8) {
            quant_group(sum, run + 64 + lane * 4,
                        vec_load((const float *) (const void *) run + lane),
                        x, col, a->n_in, t, T);

        } else {
            const uint16_t *scales = (const uint16_t *) (const void *) run;

            quant_group(sum, run + 64 + lane * 4, vec_load_bf16(scales + lane),
                        x, col, a->n_in, t, T);
            quant_group(sum, run + 64 + 256 + lane * 4,
                        vec_load_bf16(scales + 16 + lane), x,
                        col + QUANT_RUN / 2, a->n_in, t, T);
        }

        run += quant_run_bytes(t);
    }
}


INLINE void
quant_rows(const struct linear *a, uint32_t tile, uint32_t row, int T)
{
    const uint8_t *w = a->w + tile * tile_bytes(a->dtype, a->n_in);
    const float   *x[QUANT_ROWS];

    for (int r = 0; r < T; r++) {
        uint32_t at = row + (uint32_t) r;

        x[r] = a->x + a->x_stride * (a->x_rows ? a->x_rows[at] : at);
    }

    for (uint32_t lane = 0; lane < TILE; lane += VEC_N) {
        uint32_t out = tile * TILE + lane;
        uint32_t n = a->n_out - out < VEC_N ? a->n_out - out : VEC_N;
        vec      sum[QUANT_ROWS];

        if (out >= a->n_out) {
            return;
        }

        for (int r = 0; r < T; r++) {
            sum[r] = vec_set(0);
        }

        if (a->dtype == DTYPE_INT8) {
            quant_block(a, w, lane, x, sum, DTYPE_INT8, T);

        } else {
            quant_block(a, w, lane, x, sum, DTYPE_INT4, T);
        }

        for (int r = 0; r < T; r++) {
            float *y = a->y + a->y_stride * (row + (uint32_t) r) + out;

            if (n == VEC_N) {
                vec_store(y, a->add ? vec_add(vec_load(y), sum[r]) : sum[r]);

            } else {
                vec_store_n(y, a->add ? vec_add(vec_load_n(y, n), sum[r])
                                      : sum[r], n);
            }
        }
    }
}


static void
fast_quant(const struct linear *a, uint32_t tile0, uint32_t tile1,
           uint32_t row0, uint32_t row1)
{
    for (uint32_t tile = tile0; tile < tile1; tile++) {
        uint32_t row = row0;

        for ( ; row + QUANT_ROWS <= row1; row += QUANT_ROWS) {
            quant_rows(a, tile, row, QUANT_ROWS);
        }

        for ( ; row < row1; row++) {
            quant_rows(a, tile, row, 1);
        }
    }
}
