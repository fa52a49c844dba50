/*
 * vnni_avx512.c - y = W x with weights of 8 or 4 bits, by VPDPBUSD: a lane adds
 * four products of bytes to its INT32.  In: the same rectangle as every
 * kernel's.  Out: the same outputs, each run of 64 columns of x rounded to 8
 * bits by its own largest.
 *
 *   sum of (q_w - z) q_x = sum of q_w q_x - z * sum of q_x
 *
 * where the last term is known once x is rounded, and so is what a group's sum
 * begins with.  A group's sum is exact; an output is one chain of FP32 over the
 * groups in order, begun at 0 or at y (add) and kept in y where it pauses, so
 * neither blocks nor rows change a bit (D6).  Panels and blocks are those of
 * bf16_avx512.c, with fewer rows, since a sum takes two registers.
 */
#include <immintrin.h>

#include "cpu/avx512.h"
#include "cpu/quant.h"

#define INLINE          static inline __attribute__((always_inline))

#define PANEL_RUNS      1024            /* rows * runs: 80 KiB */
#define PANEL_ROWS      120
#define T_MAX           6
#define T_STREAM        3
#define AHEAD           1024            /* bytes */

/* A run of a row of x. */
struct run {
    int8_t      q[QUANT_RUN];
    float       scale;
    int32_t     begin[2];       /* -z * sum of q: of 64, or of 32 and 32 */
    int32_t     unused;
};

struct block {
    const uint8_t    *w;        /* first tile's first run */
    size_t            w_tile;   /* bytes from tile to tile */
    const struct run *x;        /* (T, n_runs) */
    uint32_t          n_runs;
    uint32_t          n_out;    /* outputs from the first tile on */
    float            *y;
    size_t            y_stride;
    int               go_on;    /* the chain goes on from y */
};


INLINE __mmask16
tile_mask(const struct block *b, int r)
{
    uint32_t n = b->n_out - (uint32_t) r * TILE;

    return (__mmask16) ((1u << (n < 16 ? n : 16)) - 1);
}


/* GCC 12 copies the registers of the intrinsic back and forth. */
INLINE __m512i
dot(__m512i sum, __m512i w, __m512i x)
{
    __asm__ ("vpdpbusd %2, %1, %0" : "+v" (sum) : "v" (w), "v" (x));

    return sum;
}


/* Four columns for R tiles and T rows. */
INLINE void
dots(__m512i (*sum)[T_MAX], const __m512i *w, const struct block *b,
     const struct run *x, size_t col, int R, int T)
{
#pragma GCC unroll 6
    for (int t = 0; t < T; t++) {
        int32_t four;

        memcpy(&four, x[(size_t) t * b->n_runs].q + col, 4);

        __m512i q = _mm512_set1_epi32(four);

#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            sum[r][t] = dot(sum[r][t], w[r], q);
        }
    }
}


INLINE void
begin(__m512i (*sum)[T_MAX], const struct block *b, const struct run *x,
      int group, int R, int T)
{
#pragma GCC unroll 6
    for (int t = 0; t < T; t++) {
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            sum[r][t] = _mm512_set1_epi32(
                            x[(size_t) t * b->n_runs].begin[group]);
        }
    }
}


/* A group is done: to FP32, by both scales. */
INLINE void
add_group(__m512 (*sum)[T_MAX], __m512i (*part)[T_MAX], const __m512 *scale,
          const struct block *b, const struct run *x, int R, int T)
{
#pragma GCC unroll 6
    for (int t = 0; t < T; t++) {
        __m512 s = _mm512_set1_ps(x[(size_t) t * b->n_runs].scale);

#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            __m512 v = _mm512_mul_ps(_mm512_cvtepi32_ps(part[r][t]), s);

            sum[r][t] = _mm512_fmadd_ps(v, scale[r], sum[r][t]);
        }
    }
}


INLINE __m512i
load(const uint8_t *p, int T)
{
    if (T <= T_STREAM) {
        _mm_prefetch((const char *) p + AHEAD, _MM_HINT_T0);
    }

    return _mm512_loadu_si512(p);
}


INLINE void
run_int8(__m512 (*sum)[T_MAX], const struct block *b, size_t i, int R, int T)
{
    const struct run *x = b->x + i;
    __m512i           part[4][T_MAX], w[4];
    __m512            scale[4];

    begin(part, b, x, 0, R, T);

    for (size_t k = 0; k < QUANT_RUN / 4; k++) {
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            w[r] = load(b->w + b->w_tile * (size_t) r + i * QUANT_INT8_BYTES
                        + 64 + k * 64, T);
        }

        dots(part, w, b, x, 4 * k, R, T);
    }

#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
        scale[r] = _mm512_loadu_ps(b->w + b->w_tile * (size_t) r
                                   + i * QUANT_INT8_BYTES);
    }

    add_group(sum, part, scale, b, x, R, T);
}


INLINE void
run_int4(__m512 (*sum)[T_MAX], const struct block *b, size_t i, int R, int T)
{
    const struct run *x = b->x + i;
    const __m512i     low = _mm512_set1_epi8(15);

    for (int group = 0; group < 2; group++) {
        __m512i part[4][T_MAX], w[4], both[4];
        __m512  scale[4];

        begin(part, b, x, group, R, T);

        for (size_t k = 0; k < 4; k++) {
            size_t at = i * QUANT_INT4_BYTES + 64 + (size_t) group * 256
                        + k * 64;
            size_t col = (size_t) group * 32 + 8 * k;

#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                both[r] = load(b->w + b->w_tile * (size_t) r + at, T);
                w[r] = _mm512_and_si512(both[r], low);
            }

            dots(part, w, b, x, col, R, T);

#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                w[r] = _mm512_and_si512(_mm512_srli_epi16(both[r], 4), low);
            }

            dots(part, w, b, x, col + 4, R, T);
        }

#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            const void *h = b->w + b->w_tile * (size_t) r
                            + i * QUANT_INT4_BYTES + (size_t) group * 32;

            scale[r] = _mm512_castsi512_ps(_mm512_slli_epi32(
                           _mm512_cvtepu16_epi32(_mm256_loadu_si256(h)), 16));
        }

        add_group(sum, part, scale, b, x, R, T);
    }
}


INLINE void
block_run(const struct block *b, enum dtype dtype, int R, int T)
{
    __m512 sum[4][T_MAX];

#pragma GCC unroll 6
    for (int t = 0; t < T; t++) {
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            const float *y = b->y + b->y_stride * (size_t) t + r * TILE;

            sum[r][t] = b->go_on ? _mm512_maskz_loadu_ps(tile_mask(b, r), y)
                                 : _mm512_setzero_ps();
        }
    }

    for (size_t i = 0; i < b->n_runs; i++) {
        if (dtype == DTYPE_INT8) {
            run_int8(sum, b, i, R, T);

        } else {
            run_int4(sum, b, i, R, T);
        }
    }

#pragma GCC unroll 6
    for (int t = 0; t < T; t++) {
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            _mm512_mask_storeu_ps(b->y + b->y_stride * (size_t) t + r * TILE,
                                  tile_mask(b, r), sum[r][t]);
        }
    }
}


#define BLOCK(R, T)                                                          \
    static void int8_##R##_##T(const struct block *b)                        \
    { block_run(b, DTYPE_INT8, R, T); }                                      \
    static void int4_##R##_##T(const struct block *b)                        \
    { block_run(b, DTYPE_INT4, R, T); }

BLOCK(4, 1) BLOCK(4, 2) BLOCK(4, 3)
BLOCK(2, 3) BLOCK(2, 4) BLOCK(2, 5) BLOCK(2, 6)
BLOCK(1, 1) BLOCK(1, 2) BLOCK(1, 3) BLOCK(1, 4) BLOCK(1, 5) BLOCK(1, 6)

/* By T; rows that make several parts make none below 3. */
typedef void (*block_fn)(const struct block *b);

static const block_fn blocks[2][3][T_MAX + 1] = {
    { { NULL, int8_4_1, int8_4_2, int8_4_3 },
      { NULL, NULL, NULL, int8_2_3, int8_2_4, int8_2_5, int8_2_6 },
      { NULL, int8_1_1, int8_1_2, int8_1_3, int8_1_4, int8_1_5, int8_1_6 } },
    { { NULL, int4_4_1, int4_4_2, int4_4_3 },
      { NULL, NULL, NULL, int4_2_3, int4_2_4, int4_2_5, int4_2_6 },
      { NULL, int4_1_1, int4_1_2, int4_1_3, int4_1_4, int4_1_5, int4_1_6 } }
};


/* Rows of x, rounded. */
struct panel {
    uint32_t    row;
    uint32_t    n_rows;
    uint32_t    run;            /* first run */
    uint32_t    n_runs;
    struct run  x[PANEL_RUNS];  /* (n_rows, n_runs) */
};


/* Up to 64 elements; beyond n they are 0. */
static void
run_round(struct run *to, const float *x, uint32_t n, enum dtype dtype)
{
    __m512 v[4], most = _mm512_setzero_ps();

#pragma GCC unroll 4
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t left = n > i * 16 ? n - i * 16 : 0;

        v[i] = _mm512_maskz_loadu_ps(
                   (__mmask16) ((1u << (left < 16 ? left : 16)) - 1),
                   x + i * 16);
        most = _mm512_max_ps(most, _mm512_abs_ps(v[i]));
    }

    float   largest = _mm512_reduce_max_ps(most);
    __m512  inverse = _mm512_set1_ps(largest > 1e-36f ? 127 / largest : 0);
    int32_t sums[4];

#pragma GCC unroll 4
    for (uint32_t i = 0; i < 4; i++) {
        __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(v[i], inverse));

        sums[i] = _mm512_reduce_add_epi32(q);
        _mm_storeu_si128((__m128i *) (void *) (to->q + i * 16),
                         _mm512_cvtsepi32_epi8(q));
    }

    to->scale = largest / 127;

    if (dtype == DTYPE_INT8) {
        to->begin[0] = -128 * (sums[0] + sums[1] + sums[2] + sums[3]);

    } else {
        to->begin[0] = -8 * (sums[0] + sums[1]);
        to->begin[1] = -8 * (sums[2] + sums[3]);
    }
}


static void
panel_fill(struct panel *p, const struct linear *a)
{
    struct run *to = p->x;

    for (uint32_t r = p->row; r < p->row + p->n_rows; r++) {
        const float *x = a->x + a->x_stride * (a->x_rows ? a->x_rows[r] : r);

        for (uint32_t i = p->run; i < p->run + p->n_runs; i++) {
            uint32_t left = a->n_in - i * QUANT_RUN;

            run_round(to++, x + (size_t) i * QUANT_RUN,
                      left < QUANT_RUN ? left : QUANT_RUN, a->dtype);
        }
    }
}


static void
panel_run(const struct panel *p, const struct linear *a, uint32_t tile,
          const block_fn *run)
{
    struct block b = {
        .w_tile = tile_bytes(a->dtype, a->n_in),
        .x = p->x,
        .n_runs = p->n_runs,
        .n_out = a->n_out - tile * TILE,
        .y = a->y + a->y_stride * p->row + tile * TILE,
        .y_stride = a->y_stride,
        .go_on = a->add || p->run != 0
    };
    uint32_t n_parts = (p->n_rows + T_MAX - 1) / T_MAX, done = 0;

    b.w = a->w + b.w_tile * tile + p->run * quant_run_bytes(a->dtype);

    for (uint32_t i = 1; i <= n_parts; i++) {
        uint32_t T = p->n_rows * i / n_parts - done;

        run[T](&b);
        b.x += (size_t) p->n_runs * T;
        b.y += b.y_stride * T;
        done += T;
    }
}


static void
panel_run_tiles(const struct panel *p, const struct linear *a, uint32_t tile0,
                uint32_t tile1)
{
    int      few = p->n_rows <= 3;
    uint32_t R = few ? 4 : 2, tile = tile0;

    const block_fn (*of)[T_MAX + 1] = blocks[a->dtype == DTYPE_INT4];

    for ( ; tile + R <= tile1; tile += R) {
        panel_run(p, a, tile, of[few ? 0 : 1]);
    }

    for ( ; tile < tile1; tile++) {
        panel_run(p, a, tile, of[2]);
    }
}


void
vnni_linear(const struct linear *a, uint32_t tile0, uint32_t tile1,
            uint32_t row0, uint32_t row1)
{
    struct panel p;
    uint32_t     n_runs = quant_runs(a->n_in);

    for (p.row = row0; p.row < row1; p.row += p.n_rows) {
        p.n_rows = row1 - p.row < PANEL_ROWS ? row1 - p.row : PANEL_ROWS;

        uint32_t most = PANEL_RUNS / p.n_rows;

        for (p.run = 0; p.run < n_runs; p.run += p.n_runs) {
            p.n_runs = n_runs - p.run < most ? n_runs - p.run : most;
            panel_fill(&p, a);
            panel_run_tiles(&p, a, tile0, tile1);
        }
    }
}
