/*
 * vnni_avx512.c - y = W x with weights of 8, 6 or 4 bits, by VPDPBUSD: a lane
 * adds four products of bytes to its INT32.  In: the same rectangle as every
 * kernel's.  Out: the same outputs, each run of 64 columns of x rounded to 8
 * bits by its own largest.
 *
 *   sum of (q_w - z) q_x = sum of q_w q_x - z * sum of q_x
 *
 * where the last term is known once x is rounded, and so is what a group's sum
 * begins with.  A group's sum is exact; an output is one chain of FP32 over the
 * groups in order, begun at 0 or at y (add) and kept in y where it pauses, so
 * neither blocks nor rows change a bit (D6).
 *
 * A group's sum becomes FP32 at the price of the multiplication by x's scale:
 * it begins at AS_FLOAT, so its bits are those of AS_FLOAT_ZERO + sum, and
 * (AS_FLOAT_ZERO + sum) * scale - AS_FLOAT_ZERO * scale is rounded once.
 *
 * Panels are those of bf16_avx512.c, with fewer rows in a block, since a sum
 * takes two registers.  Few rows take one tile after the other, so that a
 * matrix is one stream from memory, without a gap where tiles end.  With many
 * rows a block's weights stay in L1 while all rows pass, those of fewer bits
 * made bytes first, and meanwhile the rows' parts, one after the other, ask for
 * the next block's weights.
 */
#include <immintrin.h>

#include "cpu/avx512.h"
#include "cpu/quant.h"

#define INLINE          static inline __attribute__((always_inline))

#define PANEL_RUNS      2560            /* rows * runs: 200 KiB */
#define PANEL_ROWS      120
#define BLOCK_RUNS      8               /* of two tiles: 18 KiB */
#define T_MAX           6
#define R_MAX           2               /* tiles of many rows */
#define AHEAD           4096            /* bytes */
#define WIDE_BYTES      (2 * 64 + QUANT_RUN * TILE)

/* An integer n of fewer than 22 bits, added to this, is FP32's 3 * 2^22 + n. */
#define AS_FLOAT        0x4b400000
#define AS_FLOAT_ZERO   12582912.0f

/* A run of a row of x. */
struct run {
    int8_t      q[QUANT_RUN];
    float       scale;
    float       zero;           /* -AS_FLOAT_ZERO * scale, exactly */
    int32_t     begin[2];       /* -z * sum of q: of 64, or of 32 and 32 */
};

struct block {
    const uint8_t    *w;        /* first tile's first run */
    size_t            w_tile;   /* bytes from tile to tile */
    const uint8_t    *next;     /* what many rows ask for, as it is */
    size_t            next_tile;
    size_t            next_run; /* bytes of a run of them, of which these */
    uint32_t          next_from;
    uint32_t          next_to;
    const struct run *x;        /* (n_runs, x_run) */
    size_t            x_run;
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
dots(__m512i (*sum)[T_MAX], const __m512i *w, const struct run *x, size_t col,
     int R, int T)
{
#pragma GCC unroll 6
    for (int t = 0; t < T; t++) {
        int32_t four;

        memcpy(&four, x[t].q + col, 4);

        __m512i q = _mm512_set1_epi32(four);

#pragma GCC unroll 2
        for (int r = 0; r < R; r++) {
            sum[r][t] = dot(sum[r][t], w[r], q);
        }
    }
}


INLINE void
begin(__m512i (*sum)[T_MAX], const struct run *x, int group, int R, int T)
{
#pragma GCC unroll 6
    for (int t = 0; t < T; t++) {
#pragma GCC unroll 2
        for (int r = 0; r < R; r++) {
            sum[r][t] = _mm512_set1_epi32(x[t].begin[group]);
        }
    }
}


/* A group is done: to FP32, by both scales. */
INLINE void
add_group(__m512 (*sum)[T_MAX], __m512i (*part)[T_MAX], const __m512 *scale,
          const struct run *x, int R, int T)
{
#pragma GCC unroll 6
    for (int t = 0; t < T; t++) {
        __m512 s = _mm512_set1_ps(x[t].scale);
        __m512 zero = _mm512_set1_ps(x[t].zero);

#pragma GCC unroll 2
        for (int r = 0; r < R; r++) {
            __m512 v = _mm512_fmadd_ps(_mm512_castsi512_ps(part[r][t]), s,
                                       zero);

            sum[r][t] = _mm512_fmadd_ps(v, scale[r], sum[r][t]);
        }
    }
}


/* A line of weights; of one tile, which passes but once, a later one is asked
 * for. */
INLINE __m512i
load(const uint8_t *p, int R)
{
    if (R == 1) {
        _mm_prefetch((const char *) p + AHEAD, _MM_HINT_T0);
    }

    return _mm512_loadu_si512(p);
}


/* A run of bytes: of INT8's one group, or of two that were of 4 bits. */
INLINE void
run_bytes(__m512 (*sum)[T_MAX], const struct block *b, const struct run *x,
          size_t i, int n_groups, int R, int T)
{
    size_t         head = 64 * (size_t) n_groups;
    const uint8_t *run = b->w + i * (head + QUANT_RUN * TILE);

#pragma GCC unroll 2
    for (int group = 0; group < n_groups; group++) {
        __m512i part[R_MAX][T_MAX], w[R_MAX];
        __m512  scale[R_MAX];
        size_t  n = QUANT_RUN / 4 / (size_t) n_groups;
        size_t  k0 = n * (size_t) group;

        begin(part, x, group, R, T);

#pragma GCC unroll 4
        for (size_t k = k0; k < k0 + n; k++) {
#pragma GCC unroll 2
            for (int r = 0; r < R; r++) {
                w[r] = load(run + b->w_tile * (size_t) r + head + k * 64, R);
            }

            dots(part, w, x, 4 * k, R, T);
        }

#pragma GCC unroll 2
        for (int r = 0; r < R; r++) {
            scale[r] = _mm512_castsi512_ps(
                           load(run + b->w_tile * (size_t) r
                                + 64 * (size_t) group, R));
        }

        add_group(sum, part, scale, x, R, T);
    }
}


INLINE __m512
int4_scale(const uint8_t *run, size_t group)
{
    const void *h = run + group * TILE * 2;

    return _mm512_castsi512_ps(_mm512_slli_epi32(
               _mm512_cvtepu16_epi32(_mm256_loadu_si256(h)), 16));
}


INLINE void
run_int4(__m512 (*sum)[T_MAX], const struct block *b, const struct run *x,
         size_t i, int R, int T)
{
    const __m512i low = _mm512_set1_epi8(15);

    for (int group = 0; group < 2; group++) {
        __m512i part[R_MAX][T_MAX], w[R_MAX], both[R_MAX];
        __m512  scale[R_MAX];

        begin(part, x, group, R, T);

        for (size_t k = 0; k < 4; k++) {
            size_t at = i * QUANT_INT4_BYTES + 64 + (size_t) group * 256
                        + k * 64;
            size_t col = (size_t) group * 32 + 8 * k;

#pragma GCC unroll 2
            for (int r = 0; r < R; r++) {
                both[r] = load(b->w + b->w_tile * (size_t) r + at, R);
                w[r] = _mm512_and_si512(both[r], low);
            }

            dots(part, w, x, col, R, T);

#pragma GCC unroll 2
            for (int r = 0; r < R; r++) {
                w[r] = _mm512_and_si512(_mm512_srli_epi16(both[r], 4), low);
            }

            dots(part, w, x, col + 4, R, T);
        }

#pragma GCC unroll 2
        for (int r = 0; r < R; r++) {
            scale[r] = int4_scale(b->w + b->w_tile * (size_t) r
                                  + i * QUANT_INT4_BYTES, (size_t) group);
        }

        add_group(sum, part, scale, x, R, T);
    }
}


/* q is those bits of `high` that the mask has, and `low` where it has none. */
INLINE __m512i
put_high(__m512i high, __m512i low)
{
    return _mm512_ternarylogic_epi32(high, _mm512_set1_epi8(0x30), low, 0xea);
}


/* 16 columns of 6 bits as bytes: two vectors of low bits, one of high ones. */
INLINE void
six_bits(__m512i *w, __m512i first, __m512i second, __m512i high)
{
    const __m512i low = _mm512_set1_epi8(15);

    w[0] = put_high(_mm512_slli_epi16(high, 4), _mm512_and_si512(first, low));
    w[1] = put_high(_mm512_slli_epi16(high, 2), _mm512_and_si512(
                        _mm512_srli_epi16(first, 4), low));
    w[2] = put_high(high, _mm512_and_si512(second, low));
    w[3] = put_high(_mm512_srli_epi16(high, 2), _mm512_and_si512(
                        _mm512_srli_epi16(second, 4), low));
}


INLINE void
run_int6(__m512 (*sum)[T_MAX], const struct block *b, const struct run *x,
         size_t i, int R, int T)
{
    __m512i part[R_MAX][T_MAX];
    __m512  scale[R_MAX];

    begin(part, x, 0, R, T);

    for (size_t k = 0; k < QUANT_RUN / 16; k++) {
        __m512i w[R_MAX][4];

#pragma GCC unroll 2
        for (int r = 0; r < R; r++) {
            const uint8_t *q = b->w + b->w_tile * (size_t) r
                               + i * QUANT_INT6_BYTES + 64;

            __m512i first = load(q + 2 * k * 64, R);
            __m512i second = load(q + (2 * k + 1) * 64, R);

            six_bits(w[r], first, second,
                     load(q + (QUANT_RUN / 8 + k) * 64, R));
        }

#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) {
            __m512i four[R_MAX];

#pragma GCC unroll 2
            for (int r = 0; r < R; r++) {
                four[r] = w[r][c];
            }

            dots(part, four, x, 16 * k + 4 * (size_t) c, R, T);
        }
    }

#pragma GCC unroll 2
    for (int r = 0; r < R; r++) {
        scale[r] = _mm512_castsi512_ps(
                       load(b->w + b->w_tile * (size_t) r
                            + i * QUANT_INT6_BYTES, R));
    }

    add_group(sum, part, scale, x, R, T);
}


/* What weights a block has. */
enum kind { INT8, INT6, INT4, WIDE };

/* Asks for a part's share of run i of the next weights. */
INLINE void
ask_next(const struct block *b, size_t i, int R)
{
    const uint8_t *next = b->next + i * b->next_run;

    for (size_t at = b->next_from; at < b->next_to; at += 64) {
#pragma GCC unroll 2
        for (int r = 0; r < R; r++) {
            _mm_prefetch((const char *) next + b->next_tile * (size_t) r + at,
                         _MM_HINT_T0);
        }
    }
}


INLINE void
block_run(const struct block *b, enum kind kind, int R, int T)
{
    __m512    sum[R_MAX][T_MAX];
    __mmask16 mask[R_MAX];
    float    *y = b->y;
    size_t    y_stride = b->y_stride;

#pragma GCC unroll 2
    for (int r = 0; r < R; r++) {
        mask[r] = tile_mask(b, r);
    }

#pragma GCC unroll 6
    for (int t = 0; t < T; t++) {
#pragma GCC unroll 2
        for (int r = 0; r < R; r++) {
            sum[r][t] = _mm512_maskz_loadu_ps(b->go_on ? mask[r] : 0,
                                              y + y_stride * (size_t) t
                                              + r * TILE);
        }
    }

    for (size_t i = 0; i < b->n_runs; i++) {
        const struct run *x = b->x + i * b->x_run;

        ask_next(b, i, R);

        if (kind == INT4) {
            run_int4(sum, b, x, i, R, T);

        } else if (kind == INT6) {
            run_int6(sum, b, x, i, R, T);

        } else {
            run_bytes(sum, b, x, i, kind == WIDE ? 2 : 1, R, T);
        }
    }

#pragma GCC unroll 6
    for (int t = 0; t < T; t++) {
#pragma GCC unroll 2
        for (int r = 0; r < R; r++) {
            _mm512_mask_storeu_ps(y + y_stride * (size_t) t + r * TILE,
                                  mask[r], sum[r][t]);
        }
    }
}


#define BLOCK(kind, R, T)                                                    \
    static void kind##_##R##_##T(const struct block *b)                      \
    { block_run(b, kind, R, T); }

/* Of few rows, and of many, whose parts have no fewer than three. */
#define BLOCKS(kind)                                                         \
    BLOCK(kind, 1, 1) BLOCK(kind, 1, 2) BLOCK(kind, 1, 3) BLOCK(kind, 1, 4)  \
    BLOCK(kind, 1, 5) BLOCK(kind, 1, 6)

#define BLOCKS_MANY(kind)                                                    \
    BLOCK(kind, 2, 3) BLOCK(kind, 2, 4) BLOCK(kind, 2, 5) BLOCK(kind, 2, 6)

#define NAMES(kind)                                                          \
    { NULL, kind##_1_1, kind##_1_2, kind##_1_3, kind##_1_4, kind##_1_5,      \
      kind##_1_6 }

#define NAMES_MANY(kind)                                                     \
    { NULL, NULL, NULL, kind##_2_3, kind##_2_4, kind##_2_5, kind##_2_6 }

BLOCKS(INT8) BLOCKS_MANY(INT8)
BLOCKS(INT6)
BLOCKS(INT4)
BLOCKS(WIDE) BLOCKS_MANY(WIDE)

/* By R and T. */
typedef void (*block_fn)(const struct block *b);

static const block_fn blocks[4][R_MAX][T_MAX + 1] = {
    { NAMES(INT8), NAMES_MANY(INT8) },
    { NAMES(INT6) },
    { NAMES(INT4) },
    { NAMES(WIDE), NAMES_MANY(WIDE) }
};


/* Rows of x, rounded. */
struct panel {
    uint32_t    row;
    uint32_t    n_rows;
    uint32_t    run;            /* first run */
    uint32_t    n_runs;
    struct run  x[PANEL_RUNS];  /* (n_runs, n_rows) */
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

    to->scale = quant_x_scale(largest);
    to->zero = -AS_FLOAT_ZERO * to->scale;

    int32_t first = sums[0] + sums[1], second = sums[2] + sums[3];
    int32_t zero = quant_zero(dtype);

    to->begin[0] = AS_FLOAT - zero * (dtype == DTYPE_INT4 ? first
                                                          : first + second);
    to->begin[1] = AS_FLOAT - zero * second;
}


static void
panel_fill(struct panel *p, const struct linear *a)
{
    for (uint32_t r = 0; r < p->n_rows; r++) {
        uint32_t     at = p->row + r;
        const float *x = a->x + a->x_stride * (a->x_rows ? a->x_rows[at] : at);

        for (uint32_t i = 0; i < p->n_runs; i++) {
            uint32_t col = (p->run + i) * QUANT_RUN, left = a->n_in - col;

            run_round(&p->x[(size_t) i * p->n_rows + r], x + col,
                      left < QUANT_RUN ? left : QUANT_RUN, a->dtype);
        }
    }
}


/* A run of 4 bits: the scales of both groups, and bytes. */
static void
widen_int4(uint8_t *to, const uint8_t *run)
{
    const __m512i low = _mm512_set1_epi8(15);

    _mm512_storeu_ps(to, int4_scale(run, 0));
    _mm512_storeu_ps(to + 64, int4_scale(run, 1));
    to += 128;

    for (size_t k = 0; k < QUANT_RUN / 8; k++) {
        __m512i both = _mm512_loadu_si512(run + 64 + k * 64);

        _mm512_storeu_si512(to + 2 * k * 64, _mm512_and_si512(both, low));
        _mm512_storeu_si512(to + (2 * k + 1) * 64, _mm512_and_si512(
                                _mm512_srli_epi16(both, 4), low));
    }
}


/* A run of 6 bits, as one of INT8. */
static void
widen_int6(uint8_t *to, const uint8_t *run)
{
    memcpy(to, run, 64);
    to += 64;
    run += 64;

    for (size_t k = 0; k < QUANT_RUN / 16; k++) {
        __m512i w[4];

        six_bits(w, _mm512_loadu_si512(run + 2 * k * 64),
                 _mm512_loadu_si512(run + (2 * k + 1) * 64),
                 _mm512_loadu_si512(run + (QUANT_RUN / 8 + k) * 64));

        for (size_t c = 0; c < 4; c++) {
            _mm512_storeu_si512(to + (4 * k + c) * 64, w[c]);
        }
    }
}


/* Runs of R tiles. */
static void
widen(uint8_t (*to)[BLOCK_RUNS * WIDE_BYTES], const uint8_t *w, size_t w_tile,
      uint32_t n_runs, uint32_t R, enum dtype dtype)
{
    for (uint32_t r = 0; r < R; r++) {
        for (size_t i = 0; i < n_runs; i++) {
            const uint8_t *run = w + w_tile * r + i * quant_run_bytes(dtype);

            if (dtype == DTYPE_INT4) {
                widen_int4(to[r] + i * WIDE_BYTES, run);

            } else {
                widen_int6(to[r] + i * QUANT_INT8_BYTES, run);
            }
        }
    }
}


/* What the kernels of blocks get: few rows take weights as they are. */
static enum kind
kind_of(enum dtype dtype, int many)
{
    return dtype == DTYPE_INT4 ? (many ? WIDE : INT4)
           : dtype == DTYPE_INT6 && !many ? INT6 : INT8;
}


/* A block for all rows, in parts of nearly equal size, which ask for as many
 * lines of each run of the next weights. */
static void
run_rows(struct block b, uint32_t n, uint32_t lines, const block_fn *run)
{
    uint32_t n_parts = (n + T_MAX - 1) / T_MAX, done = 0;

    for (uint32_t i = 1; i <= n_parts; i++) {
        uint32_t T = n * i / n_parts - done;

        b.next_from = b.next_to;
        b.next_to = lines * i / n_parts * 64;
        run[T](&b);
        b.x += T;
        b.y += b.y_stride * T;
        done += T;
    }
}


/* R tiles. */
static void
panel_run(const struct panel *p, const struct linear *a, uint32_t tile,
          uint32_t R)
{
    _Alignas(64) uint8_t wide[R_MAX][BLOCK_RUNS * WIDE_BYTES];

    size_t       w_tile = tile_bytes(a->dtype, a->n_in);
    size_t       w_run = quant_run_bytes(a->dtype);
    int          many = p->n_rows > T_MAX;
    enum kind    kind = kind_of(a->dtype, many);
    uint32_t     most = many ? BLOCK_RUNS : p->n_runs;
    struct block b = {
        .w_tile = w_tile,
        .next_tile = w_tile,
        .next_run = w_run,
        .x_run = p->n_rows,
        .n_out = a->n_out - tile * TILE,
        .y = a->y + a->y_stride * p->row + tile * TILE,
        .y_stride = a->y_stride
    };

    for (uint32_t at = 0; at < p->n_runs; at += b.n_runs) {
        const uint8_t *w = a->w + w_tile * tile + (p->run + at) * w_run;

        b.n_runs = p->n_runs - at < most ? p->n_runs - at : most;
        b.w = w;
        b.x = p->x + (size_t) at * p->n_rows;
        b.go_on = a->add || p->run + at != 0;

        b.next = at + b.n_runs < p->n_runs
                 ? w + b.n_runs * w_run
                 : a->w + w_tile * (tile + R) + p->run * w_run;

        if (many && a->dtype != DTYPE_INT8) {
            widen(wide, w, w_tile, b.n_runs, R, a->dtype);
            b.w = wide[0];
            b.w_tile = sizeof(wide[0]);
        }

        run_rows(b, p->n_rows, many ? (uint32_t) w_run / 64 : 0,
                 blocks[kind][R - 1]);
    }
}


static void
panel_run_tiles(const struct panel *p, const struct linear *a, uint32_t tile0,
                uint32_t tile1)
{
    uint32_t tile = tile0;

    for ( ; p->n_rows > T_MAX && tile + R_MAX <= tile1; tile += R_MAX) {
        panel_run(p, a, tile, R_MAX);
    }

    for ( ; tile < tile1; tile++) {
        panel_run(p, a, tile, 1);
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
