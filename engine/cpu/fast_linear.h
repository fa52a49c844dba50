/*
 * fast_linear.h - y = W x, for one kind of vector (vec_*.h comes first).
 *
 * A block is R tiles of 16 outputs by T rows of x, held in registers: each
 * column of W is loaded once for T rows, each element of x is broadcast to R
 * tiles.  An output is one chain of fused multiply-adds over the columns in
 * order, begun at 0 or at y itself (add); where the chain pauses, so that the
 * columns of R tiles stay in L1 for all rows, it is kept in y, exactly: neither
 * blocks nor rows change a bit (D6).  Few rows are bound by memory: they pass
 * once, over R = 4 tiles, four streams and enough chains to hide the latency of
 * the additions.
 */
#include "cpu/expand.h"

#define VECS            (TILE / VEC_N)      /* vectors to a tile */
#define INLINE          static inline __attribute__((always_inline))

#define BLOCK_COLS      512         /* of many rows; even */
#define T_MOST          12

/* R_MANY x T_MANY sums, 2 R_MANY weights and a broadcast fit, and so do those
 * of four tiles and T_FEW rows.  T_STREAM rows may be the only ones, whose
 * weights come from memory, and are asked for early. */
#if VEC_REGS == 32
#define R_MANY          2
#define T_MANY          12
#define T_FEW           5
#define T_STREAM        5
#else
#define R_MANY          1
#define T_MANY          4
#define T_FEW           1
#define T_STREAM        4
#endif
#define AHEAD           1024        /* bytes */

/* A block of tight weights: 16 KiB. */
#define TIGHT_TILES     4
#define TIGHT_COLS_MOST 128

struct block {
    const uint8_t *w[4];        /* tiles, from the first column on */
    const float   *x[T_MOST];   /* rows, the same */
    uint32_t       n_cols;
    vec            sum[4][T_MOST][VECS];
};


/* A tile's weights at p, and those to come. */
INLINE const uint8_t *
stream(const uint8_t *p, int T)
{
    if (T <= T_STREAM) {
        _mm_prefetch((const char *) p + AHEAD, _MM_HINT_T0);
    }

    return p;
}


INLINE void
block_column(struct block *b, const vec (*w)[VECS], size_t i, int R, int T)
{
#pragma GCC unroll 12
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
block_bf16(struct block *b, int R, int T)
{
    vec even[4][VECS], odd[4][VECS];

    for (size_t i = 0; i < b->n_cols / 2; i++) {
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            const uint8_t *w = stream(b->w[r] + i * TILE * 4, T);

#pragma GCC unroll 2
            for (int v = 0; v < VECS; v++) {
                vec_load_pairs(w + v * VEC_N * 4, &even[r][v], &odd[r][v]);
            }
        }

        block_column(b, even, 2 * i, R, T);
        block_column(b, odd, 2 * i + 1, R, T);
    }

    if (b->n_cols % 2 == 0) {
        return;
    }

#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
#pragma GCC unroll 2
        for (int v = 0; v < VECS; v++) {
            vec_load_pairs(b->w[r] + (size_t) b->n_cols / 2 * TILE * 4
                           + v * VEC_N * 4, &even[r][v], &odd[r][v]);
        }
    }

    block_column(b, even, b->n_cols - 1, R, T);
}


INLINE void
block_f32(struct block *b, int R, int T)
{
    vec w[4][VECS];

    for (size_t i = 0; i < b->n_cols; i++) {
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            const void *p = stream(b->w[r] + i * TILE * 4, T);

#pragma GCC unroll 2
            for (int v = 0; v < VECS; v++) {
                w[r][v] = vec_load((const float *) p + v * VEC_N);
            }
        }

        block_column(b, w, i, R, T);
    }
}


/* A vector of outputs of row t: where it is, and how many of it there are. */
struct lanes {
    float   *y;
    unsigned n;
};

INLINE struct lanes
lanes_at(const struct linear *a, uint32_t tile, uint32_t row, int v)
{
    uint32_t at = tile * TILE + (uint32_t) v * VEC_N;
    uint32_t n = at < a->n_out ? a->n_out - at : 0;

    return (struct lanes) { a->y + a->y_stride * row + at,
                            n < VEC_N ? n : VEC_N };
}


INLINE vec
sum_begin(struct lanes p, int go_on)
{
    return !go_on || p.n == 0 ? vec_set(0)
           : p.n == VEC_N ? vec_load(p.y) : vec_load_n(p.y, p.n);
}


INLINE void
sum_end(struct lanes p, vec sum)
{
    if (p.n == VEC_N) {
        vec_store(p.y, sum);

    } else if (p.n != 0) {
        vec_store_n(p.y, sum, p.n);
    }
}


/* Columns [col, col + n_cols). */
INLINE void
block_run(const struct linear *a, uint32_t tile, uint32_t row, uint32_t col,
          uint32_t n_cols, int R, int T)
{
    struct block b;
    size_t       w_col = a->dtype == DTYPE_F32 ? TILE * 4 : TILE * 2;

    b.n_cols = n_cols;

#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
        b.w[r] = a->w + (tile + (uint32_t) r)
                        * tile_bytes(a->dtype, a->n_in) + w_col * col;
    }

#pragma GCC unroll 12
    for (int t = 0; t < T; t++) {
        uint32_t at = row + (uint32_t) t;

        b.x[t] = a->x + a->x_stride * (a->x_rows ? a->x_rows[at] : at) + col;

#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
#pragma GCC unroll 2
            for (int v = 0; v < VECS; v++) {
                b.sum[r][t][v] = sum_begin(
                    lanes_at(a, tile + (uint32_t) r, at, v),
                    a->add || col != 0);
            }
        }
    }

    if (a->dtype == DTYPE_BF16) {
        block_bf16(&b, R, T);

    } else {
        block_f32(&b, R, T);
    }

#pragma GCC unroll 12
    for (int t = 0; t < T; t++) {
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
#pragma GCC unroll 2
            for (int v = 0; v < VECS; v++) {
                sum_end(lanes_at(a, tile + (uint32_t) r, row + (uint32_t) t,
                                 v), b.sum[r][t][v]);
            }
        }
    }
}


/* All rows of R tiles. */
INLINE void
tiles_run(const struct linear *a, uint32_t tile, uint32_t row0, uint32_t row1,
          uint32_t col, uint32_t n_cols, int R)
{
    uint32_t row = row0;

    for ( ; row + T_MANY <= row1; row += T_MANY) {
        block_run(a, tile, row, col, n_cols, R, T_MANY);
    }

#if T_MANY > 4
    for ( ; row + 4 <= row1; row += 4) {
        block_run(a, tile, row, col, n_cols, R, 4);
    }
#endif

    for ( ; row + 2 <= row1; row += 2) {
        block_run(a, tile, row, col, n_cols, R, 2);
    }

    for ( ; row < row1; row++) {
        block_run(a, tile, row, col, n_cols, R, 1);
    }
}


static void
tiles_many(const struct linear *a, uint32_t tile, uint32_t row0, uint32_t row1,
           uint32_t col, uint32_t n_cols)
{
    tiles_run(a, tile, row0, row1, col, n_cols, R_MANY);
}


static void
tiles_one(const struct linear *a, uint32_t tile, uint32_t row0, uint32_t row1,
          uint32_t col, uint32_t n_cols)
{
    tiles_run(a, tile, row0, row1, col, n_cols, 1);
}


/* Four tiles, up to T_FEW rows. */
static void
tiles_few(const struct linear *a, uint32_t tile, uint32_t row0, uint32_t row1)
{
    switch (row1 - row0) {
#if T_FEW > 1
    case 2:  block_run(a, tile, row0, 0, a->n_in, 4, 2); break;
    case 3:  block_run(a, tile, row0, 0, a->n_in, 4, 3); break;
    case 4:  block_run(a, tile, row0, 0, a->n_in, 4, 4); break;
    case 5:  block_run(a, tile, row0, 0, a->n_in, 4, 5); break;
#endif
    default: block_run(a, tile, row0, 0, a->n_in, 4, 1); break;
    }
}


static void
fast_linear(const struct linear *a, uint32_t tile0, uint32_t tile1,
            uint32_t row0, uint32_t row1)
{
    uint32_t tile = tile0;

    if (row1 - row0 <= T_FEW) {
        for ( ; tile + 4 <= tile1; tile += 4) {
            tiles_few(a, tile, row0, row1);
        }
    }

    for ( ; tile < tile1; tile += tile + R_MANY <= tile1 ? R_MANY : 1) {
        for (uint32_t col = 0; col < a->n_in; col += BLOCK_COLS) {
            uint32_t n = a->n_in - col < BLOCK_COLS ? a->n_in - col
                                                    : BLOCK_COLS;

            (tile + R_MANY <= tile1 ? tiles_many : tiles_one)(a, tile, row0,
                                                              row1, col, n);
        }
    }
}


/* The same with tight weights, of which a block is made BF16 for all rows. */
static void
fast_tight(const struct linear *a, uint32_t tile0, uint32_t tile1,
           uint32_t row0, uint32_t row1)
{
    _Alignas(64) uint8_t w[TIGHT_TILES * TIGHT_COLS_MOST * TILE * 2];

    for (uint32_t tile = tile0; tile < tile1; tile += TIGHT_TILES) {
        uint32_t n = tile1 - tile < TIGHT_TILES ? tile1 - tile : TIGHT_TILES;

        for (uint32_t col = 0; col < a->n_in; col += TIGHT_COLS_MOST) {
            struct linear b = *a;

            b.dtype = DTYPE_BF16;
            b.w = w;
            b.n_in = a->n_in - col < TIGHT_COLS_MOST ? a->n_in - col
                                                     : TIGHT_COLS_MOST;
            b.n_out = a->n_out - tile * TILE;
            b.x = a->x + col;
            b.y = a->y + tile * TILE;
            b.add = a->add || col != 0;

            for (uint32_t r = 0; r < n; r++) {
                expand(w + tile_bytes(DTYPE_BF16, b.n_in) * r,
                       a->w + tight_bytes(a->n_in) * (tile + r), a->n_in,
                       col, b.n_in);
            }

            fast_linear(&b, 0, n, row0, row1);
        }
    }
}
