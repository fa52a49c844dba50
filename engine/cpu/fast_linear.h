/*
 * fast_linear.h - y = W x, for one kind of vector (vec_*.h comes first).
 *
 * A block is R tiles of 16 outputs by T rows of x, held in registers: each
 * column of W is loaded once for T rows, each element of x is broadcast to R
 * tiles.  An output is one chain of fused multiply-adds over the columns in
 * order, whatever R and T (D6).  T = 1 is bound by memory: R = 4 tiles are
 * four streams and enough chains to hide the latency of the additions.
 */
#define VECS            (TILE / VEC_N)      /* vectors to a tile */
#define INLINE          static inline __attribute__((always_inline))

struct block {
    const uint8_t *w[4];        /* tiles */
    const float   *x[8];        /* rows */
    vec            sum[4][8][VECS];
};


INLINE void
block_column(struct block *b, const vec (*w)[VECS], size_t i, int R, int T)
{
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
        vec x = vec_set(b->x[t][i]);

#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
#pragma GCC unroll 2
            for (int v = 0; v < VECS; v++) {
                b->sum[r][t][v] = vec_fma(w[r][v], x, b->sum[r][t][v]);
            }
        }
    }
}


INLINE void
block_bf16(struct block *b, uint32_t n_in, int R, int T)
{
    vec even[4][VECS], odd[4][VECS];

    for (size_t i = 0; i < n_in / 2; i++) {
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
#pragma GCC unroll 2
            for (int v = 0; v < VECS; v++) {
                vec_load_pairs(b->w[r] + i * TILE * 4 + v * VEC_N * 4,
                               &even[r][v], &odd[r][v]);
            }
        }

        block_column(b, even, 2 * i, R, T);
        block_column(b, odd, 2 * i + 1, R, T);
    }

    if (n_in % 2 == 0) {
        return;
    }

#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
#pragma GCC unroll 2
        for (int v = 0; v < VECS; v++) {
            vec_load_pairs(b->w[r] + (size_t) n_in / 2 * TILE * 4
                           + v * VEC_N * 4, &even[r][v], &odd[r][v]);
        }
    }

    block_column(b, even, n_in - 1, R, T);
}


INLINE void
block_f32(struct block *b, uint32_t n_in, int R, int T)
{
    vec w[4][VECS];

    for (size_t i = 0; i < n_in; i++) {
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
#pragma GCC unroll 2
            for (int v = 0; v < VECS; v++) {
                w[r][v] = vec_load((const float *) (const void *) b->w[r]
                                   + i * TILE + v * VEC_N);
            }
        }

        block_column(b, w, i, R, T);
    }
}


/* Writes, or adds, the sums; the last tile may have fewer rows than 16. */
INLINE void
block_store(const struct linear *a, const struct block *b, uint32_t tile,
            uint32_t row, int R, int T)
{
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
        float *y = a->y + a->y_stride * (row + (uint32_t) t);

#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
#pragma GCC unroll 2
            for (int v = 0; v < VECS; v++) {
                uint32_t at = (tile + (uint32_t) r) * TILE
                              + (uint32_t) v * VEC_N;
                vec      s = b->sum[r][t][v];

                if (at + VEC_N <= a->n_out) {
                    vec_store(y + at, a->add ? vec_add(vec_load(y + at), s)
                                             : s);

                } else if (at < a->n_out) {
                    unsigned n = a->n_out - at;

                    vec_store_n(y + at, a->add
                                ? vec_add(vec_load_n(y + at, n), s) : s, n);
                }
            }
        }
    }
}


INLINE void
block_run(const struct linear *a, uint32_t tile, uint32_t row, int R, int T)
{
    struct block b;

#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
        b.w[r] = a->w + (tile + (uint32_t) r)
                        * tile_bytes(a->dtype, a->n_in);
    }

#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
        uint32_t at = row + (uint32_t) t;

        b.x[t] = a->x + a->x_stride * (a->x_rows ? a->x_rows[at] : at);

#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
#pragma GCC unroll 2
            for (int v = 0; v < VECS; v++) {
                b.sum[r][t][v] = vec_set(0);
            }
        }
    }

    if (a->dtype == DTYPE_BF16) {
        block_bf16(&b, a->n_in, R, T);

    } else {
        block_f32(&b, a->n_in, R, T);
    }

    block_store(a, &b, tile, row, R, T);
}


/* R_MANY x T_MANY sums, T_MANY broadcasts and 2 R_MANY weights fit. */
#if VEC_REGS == 32
#define R_MANY          2
#define T_MANY          8
#else
#define R_MANY          1
#define T_MANY          4
#endif


/* All rows of R_MANY tiles: their weights stay in a cache. */
static void
tiles_many(const struct linear *a, uint32_t tile, uint32_t row0, uint32_t row1)
{
    uint32_t row = row0;

    for ( ; row + T_MANY <= row1; row += T_MANY) {
        block_run(a, tile, row, R_MANY, T_MANY);
    }

#if T_MANY > 4
    for ( ; row + 4 <= row1; row += 4) {
        block_run(a, tile, row, R_MANY, 4);
    }
#endif

    for ( ; row + 2 <= row1; row += 2) {
        block_run(a, tile, row, R_MANY, 2);
    }

    for ( ; row < row1; row++) {
        block_run(a, tile, row, R_MANY, 1);
    }
}


static void
tiles_one(const struct linear *a, uint32_t tile, uint32_t row0, uint32_t row1)
{
    uint32_t row = row0;

    for ( ; row + 4 <= row1; row += 4) {
        block_run(a, tile, row, 1, 4);
    }

    for ( ; row < row1; row++) {
        block_run(a, tile, row, 1, 1);
    }
}


static void
fast_linear(const struct linear *a, uint32_t tile0, uint32_t tile1,
            uint32_t row0, uint32_t row1)
{
    uint32_t tile = tile0;

    if (row1 - row0 == 1) {
        for ( ; tile + 4 <= tile1; tile += 4) {
            block_run(a, tile, row0, 4, 1);
        }
    }

    for ( ; tile + R_MANY <= tile1; tile += R_MANY) {
        tiles_many(a, tile, row0, row1);
    }

    for ( ; tile < tile1; tile++) {
        tiles_one(a, tile, row0, row1);
    }
}
