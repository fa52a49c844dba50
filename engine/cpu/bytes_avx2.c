/*
 * bytes_avx2.c - y = W x with weights of 8, 6 or 4 bits where there is no
 * VPDPBUSD.  In: the same rectangle as every kernel's.  Out: the same outputs,
 * each run of 64 columns of x rounded by its own largest.
 *
 *   int8   a byte of w is a 16-bit number, and so is x: VPMADDWD takes columns
 *          0, 2 of each lane and then 1, 3.  64 * 255 * 32512 fits in an INT32.
 *   int4   x has 8 bits: VPMADDUBSW adds two products in 16 bits, of which a
 *          group's eight, 8 * 2 * 15 * 127, fit.
 *   int6   the same, but of 2 * 2 * 63 * 127 no more than two.
 *
 * Sums are those of unsigned q_w; see vnni_avx512.c for what they begin with,
 * for the order of sums (D6), and for panels and blocks, which differ only in
 * size.  Bytes of w by signed bytes of x would overflow VPMADDUBSW.
 */
#include <immintrin.h>

#include "cpu/avx2.h"
#include "cpu/quant.h"

#define INLINE          static inline __attribute__((always_inline))

#define PANEL_RUNS      1024            /* rows * runs: 144 KiB, of L2 */
#define PANEL_ROWS      40
#define T_MAX           4
#define V_MAX           8               /* vectors of 8 outputs: 4 tiles */
#define AHEAD           1024            /* bytes */

/* The largest of a run becomes this; what 8 bits hold, 16 bits hold too. */
#define STEPS_8         127
#define STEPS_16        (127 * 256)

/* A run of a row of x, in the order in which it is taken. */
struct run {
    union {
        int16_t wide[QUANT_RUN];        /* int8: columns 0, 2, 1, 3 of 4 */
        int8_t  q[QUANT_RUN];           /* int6, int4 */
    };
    float       scale;
    int32_t     begin[2];       /* -z * sum of q: of 64, or of 32 and 32 */
    int32_t     unused;
};

/* V vectors of outputs, two to a tile, by T rows. */
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


/* Where vector v's half of a run's words begins. */
INLINE const uint8_t *
half(const struct block *b, size_t run_bytes, size_t i, int v)
{
    return b->w + b->w_tile * (size_t) (v / 2) + i * run_bytes + v % 2 * 32;
}


INLINE __m256i
load(const uint8_t *p, int T)
{
    if (T == 1) {
        _mm_prefetch((const char *) p + AHEAD, _MM_HINT_T0);
    }

    return _mm256_loadu_si256((const __m256i *) (const void *) p);
}


/* Two or four columns of x in every lane. */
INLINE __m256i
columns(const void *x)
{
    int32_t c;

    memcpy(&c, x, 4);

    return _mm256_set1_epi32(c);
}


/* A group is done: to FP32, by both scales. */
INLINE void
add_group(__m256 (*sum)[T_MAX], __m256i (*part)[T_MAX], const __m256 *scale,
          const struct block *b, const struct run *x, int V, int T)
{
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
        __m256 s = _mm256_set1_ps(x[(size_t) t * b->n_runs].scale);

#pragma GCC unroll 8
        for (int v = 0; v < V; v++) {
            __m256 f = _mm256_mul_ps(_mm256_cvtepi32_ps(part[v][t]), s);

            sum[v][t] = _mm256_fmadd_ps(f, scale[v], sum[v][t]);
        }
    }
}


/* sum + w . x by pairs.  GCC 12 adds intrinsics up in an order of its own, for
 * which there are too few registers. */
INLINE __m256i
dot_wide(__m256i sum, __m256i w, __m256i x)
{
    __m256i pairs;

    __asm__ ("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0"
             : "+x" (sum), "=&x" (pairs) : "x" (w), "x" (x));

    return sum;
}


INLINE __m256i
dot_bytes(__m256i sum, __m256i w, __m256i x)
{
    __m256i pairs;

    __asm__ ("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0"
             : "+x" (sum), "=&x" (pairs) : "x" (w), "x" (x));

    return sum;
}


/* Two columns for V vectors and T rows. */
INLINE void
dots_wide(__m256i (*part)[T_MAX], const __m256i *w, const struct block *b,
          const struct run *x, size_t at, int V, int T)
{
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
        __m256i q = columns(x[(size_t) t * b->n_runs].wide + at);

#pragma GCC unroll 8
        for (int v = 0; v < V; v++) {
            part[v][t] = dot_wide(part[v][t], w[v], q);
        }
    }
}


/* Of a run that is one group: what its sums begin with, and its scales. */
INLINE void
begin(__m256i (*part)[T_MAX], const struct block *b, const struct run *x,
      int V, int T)
{
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) {
            part[v][t] = _mm256_set1_epi32(x[(size_t) t * b->n_runs]
                                           .begin[0]);
        }
    }
}


INLINE void
scales(__m256 *scale, const struct block *b, size_t run_bytes, size_t i, int V)
{
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) {
        scale[v] = _mm256_loadu_ps((const float *) (const void *)
                                   half(b, run_bytes, i, v));
    }
}


INLINE void
run_int8(__m256 (*sum)[T_MAX], const struct block *b, size_t i, int V, int T)
{
    const struct run *x = b->x + i;
    const __m256i     low = _mm256_set1_epi16(0xff);
    __m256i           part[V_MAX][T_MAX], even[V_MAX], odd[V_MAX];
    __m256            scale[V_MAX];

    begin(part, b, x, V, T);

    for (size_t k = 0; k < QUANT_RUN / 4; k++) {
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) {
            __m256i w = load(half(b, QUANT_INT8_BYTES, i, v) + 64 + k * 64,
                             T);

            even[v] = _mm256_and_si256(w, low);
            odd[v] = _mm256_srli_epi16(w, 8);
        }

        dots_wide(part, even, b, x, 4 * k, V, T);
        dots_wide(part, odd, b, x, 4 * k + 2, V, T);
    }

    scales(scale, b, QUANT_INT8_BYTES, i, V);
    add_group(sum, part, scale, b, x, V, T);
}


/* Four columns for V vectors and T rows, into 16 bits. */
INLINE void
dots_bytes(__m256i (*part)[T_MAX], const __m256i *w, const struct block *b,
           const struct run *x, size_t at, int V, int T)
{
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
        __m256i q = columns(x[(size_t) t * b->n_runs].q + at);

#pragma GCC unroll 8
        for (int v = 0; v < V; v++) {
            part[v][t] = dot_bytes(part[v][t], w[v], q);
        }
    }
}


/* To 32 bits, with what the group's sum begins with. */
INLINE void
widen(__m256i (*part)[T_MAX], const struct block *b, const struct run *x,
      int group, int V, int T)
{
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
        __m256i begin = _mm256_set1_epi32(x[(size_t) t * b->n_runs]
                                          .begin[group]);

#pragma GCC unroll 8
        for (int v = 0; v < V; v++) {
            part[v][t] = _mm256_add_epi32(
                             _mm256_madd_epi16(part[v][t],
                                               _mm256_set1_epi16(1)), begin);
        }
    }
}


INLINE __m256
scale_int4(const struct block *b, size_t i, int group, int v)
{
    const void *h = b->w + b->w_tile * (size_t) (v / 2) + i * QUANT_INT4_BYTES
                    + group * 32 + v % 2 * 16;

    return _mm256_castsi256_ps(_mm256_slli_epi32(
               _mm256_cvtepu16_epi32(_mm_loadu_si128(h)), 16));
}


INLINE void
run_int4(__m256 (*sum)[T_MAX], const struct block *b, size_t i, int V, int T)
{
    const struct run *x = b->x + i;
    const __m256i     low = _mm256_set1_epi8(15);

    for (int group = 0; group < 2; group++) {
        __m256i part[V_MAX][T_MAX], w[V_MAX], high[V_MAX];
        __m256  scale[V_MAX];

#pragma GCC unroll 4
        for (int t = 0; t < T; t++) {
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) {
                part[v][t] = _mm256_setzero_si256();
            }
        }

        for (size_t k = 0; k < 4; k++) {
            size_t col = (size_t) group * 32 + 8 * k;

#pragma GCC unroll 8
            for (int v = 0; v < V; v++) {
                __m256i both = load(half(b, QUANT_INT4_BYTES, i, v) + 64
                                    + group * 256 + k * 64, T);

                w[v] = _mm256_and_si256(both, low);
                high[v] = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
            }

            dots_bytes(part, w, b, x, col, V, T);
            dots_bytes(part, high, b, x, col + 4, V, T);
        }

        widen(part, b, x, group, V, T);

#pragma GCC unroll 8
        for (int v = 0; v < V; v++) {
            scale[v] = scale_int4(b, i, group, v);
        }

        add_group(sum, part, scale, b, x, V, T);
    }
}


/* q is those bits of `high` that the mask has, and `low`, which has others. */
INLINE __m256i
put_high(__m256i high, __m256i low)
{
    return _mm256_or_si256(_mm256_and_si256(high, _mm256_set1_epi8(0x30)),
                           low);
}


/* Eight columns for one vector and T rows. */
INLINE void
dots_six(__m256i *part, __m256i first, __m256i second, const struct block *b,
         const struct run *x, size_t at, int T)
{
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
        const int8_t *q = x[(size_t) t * b->n_runs].q + at;
        __m256i       sum = dot_bytes(_mm256_setzero_si256(), first,
                                      columns(q));

        sum = dot_bytes(sum, second, columns(q + 4));
        part[t] = _mm256_add_epi32(part[t], _mm256_madd_epi16(
                                       sum, _mm256_set1_epi16(1)));
    }
}


/* 16 columns of a vector. */
INLINE void
columns_int6(__m256i *part, const uint8_t *q, const struct block *b,
             const struct run *x, size_t k, int T)
{
    const __m256i low = _mm256_set1_epi8(15);
    __m256i       one = load(q + 2 * k * 64, T);
    __m256i       two = load(q + (2 * k + 1) * 64, T);
    __m256i       high = load(q + (QUANT_RUN / 8 + k) * 64, T);
    __m256i       w[4];

    w[0] = put_high(_mm256_slli_epi16(high, 4), _mm256_and_si256(one, low));
    w[1] = put_high(_mm256_slli_epi16(high, 2), _mm256_and_si256(
                        _mm256_srli_epi16(one, 4), low));
    w[2] = put_high(high, _mm256_and_si256(two, low));
    w[3] = put_high(_mm256_srli_epi16(high, 2), _mm256_and_si256(
                        _mm256_srli_epi16(two, 4), low));
    dots_six(part, w[0], w[1], b, x, 16 * k, T);
    dots_six(part, w[2], w[3], b, x, 16 * k + 8, T);
}


INLINE void
run_int6(__m256 (*sum)[T_MAX], const struct block *b, size_t i, int V, int T)
{
    const struct run *x = b->x + i;
    __m256i           part[V_MAX][T_MAX];
    __m256            scale[V_MAX];

    begin(part, b, x, V, T);

    for (size_t k = 0; k < QUANT_RUN / 16; k++) {
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) {
            columns_int6(part[v], half(b, QUANT_INT6_BYTES, i, v) + 64, b, x,
                         k, T);
        }
    }

    scales(scale, b, QUANT_INT6_BYTES, i, V);
    add_group(sum, part, scale, b, x, V, T);
}


/* Which of vector v's lanes are outputs. */
INLINE __m256i
lanes(const struct block *b, int v)
{
    int left = (int) b->n_out - v * 8;

    return _mm256_cmpgt_epi32(_mm256_set1_epi32(left),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}


INLINE void
block_run(const struct block *b, enum dtype dtype, int V, int T)
{
    __m256 sum[V_MAX][T_MAX];

#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) {
            const float *y = b->y + b->y_stride * (size_t) t + v * 8;

            sum[v][t] = b->go_on ? _mm256_maskload_ps(y, lanes(b, v))
                                 : _mm256_setzero_ps();
        }
    }

    for (size_t i = 0; i < b->n_runs; i++) {
        if (dtype == DTYPE_INT8) {
            run_int8(sum, b, i, V, T);

        } else if (dtype == DTYPE_INT6) {
            run_int6(sum, b, i, V, T);

        } else {
            run_int4(sum, b, i, V, T);
        }
    }

#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) {
            _mm256_maskstore_ps(b->y + b->y_stride * (size_t) t + v * 8,
                                lanes(b, v), sum[v][t]);
        }
    }
}


#define BLOCK(V, T)                                                          \
    static void int8_##V##_##T(const struct block *b)                        \
    { block_run(b, DTYPE_INT8, V, T); }                                      \
    static void int6_##V##_##T(const struct block *b)                        \
    { block_run(b, DTYPE_INT6, V, T); }                                      \
    static void int4_##V##_##T(const struct block *b)                        \
    { block_run(b, DTYPE_INT4, V, T); }

BLOCK(8, 1) BLOCK(2, 1) BLOCK(2, 2) BLOCK(2, 3) BLOCK(2, 4)

/* One row takes four tiles at a time, which are as many streams from memory;
 * more rows leave registers for one. */
typedef void (*block_fn)(const struct block *b);

static const block_fn blocks[3][T_MAX + 1] = {
    { int8_8_1, int8_2_1, int8_2_2, int8_2_3, int8_2_4 },
    { int6_8_1, int6_2_1, int6_2_2, int6_2_3, int6_2_4 },
    { int4_8_1, int4_2_1, int4_2_2, int4_2_3, int4_2_4 }
};


/* Rows of x, rounded. */
struct panel {
    uint32_t    row;
    uint32_t    n_rows;
    uint32_t    run;            /* first run */
    uint32_t    n_runs;
    struct run  x[PANEL_RUNS];  /* (n_rows, n_runs) */
};


INLINE int32_t
sum_lanes(__m256i v)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v),
                              _mm256_extracti128_si256(v, 1));

    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));

    return _mm_cvtsi128_si32(s);
}


/* 64 numbers in whole numbers of 32 bits, packed to 16 or 8 bits. */
INLINE void
run_pack(struct run *to, const __m256i *q, enum dtype dtype)
{
    const __m256i turn = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13,
                                          10, 11, 14, 15, 0, 1, 4, 5, 2, 3, 6,
                                          7, 8, 9, 12, 13, 10, 11, 14, 15);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);

#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m256i wide = _mm256_permute4x64_epi64(
                           _mm256_packs_epi32(q[2 * i], q[2 * i + 1]), 0xd8);

        if (dtype == DTYPE_INT8) {
            _mm256_storeu_si256((__m256i *) (void *) (to->wide + i * 16),
                                _mm256_shuffle_epi8(wide, turn));
        }
    }

#pragma GCC unroll 2
    for (int i = 0; i < 2 && dtype != DTYPE_INT8; i++) {
        const __m256i *four = q + 4 * i;
        __m256i        bytes = _mm256_packs_epi16(
                                   _mm256_packs_epi32(four[0], four[1]),
                                   _mm256_packs_epi32(four[2], four[3]));

        _mm256_storeu_si256((__m256i *) (void *) (to->q + i * 32),
                            _mm256_permutevar8x32_epi32(bytes, order));
    }
}


/* Up to 64 elements; beyond n they are 0. */
static void
run_round(struct run *to, const float *x, uint32_t n, enum dtype dtype)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256       v[8], most = _mm256_setzero_ps();
    __m256i      q[8];
    float        steps = dtype == DTYPE_INT8 ? STEPS_16 : STEPS_8;
    float        each[8], largest = 0;

#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        __m256i in = _mm256_cmpgt_epi32(
                         _mm256_set1_epi32((int) n - i * 8),
                         _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));

        v[i] = _mm256_maskload_ps(x + i * 8, in);
        most = _mm256_max_ps(most, _mm256_andnot_ps(sign, v[i]));
    }

    _mm256_storeu_ps(each, most);

    for (int i = 0; i < 8; i++) {
        largest = each[i] > largest ? each[i] : largest;
    }

    __m256 inverse = _mm256_set1_ps(largest > 1e-34f ? steps / largest : 0);

#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
    }

    int32_t first = sum_lanes(_mm256_add_epi32(_mm256_add_epi32(q[0], q[1]),
                                               _mm256_add_epi32(q[2], q[3])));
    int32_t second = sum_lanes(_mm256_add_epi32(_mm256_add_epi32(q[4], q[5]),
                                                _mm256_add_epi32(q[6], q[7])));

    run_pack(to, q, dtype);
    to->scale = largest / steps;
    to->begin[0] = -quant_zero(dtype)
                   * (dtype == DTYPE_INT4 ? first : first + second);
    to->begin[1] = -quant_zero(dtype) * second;
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
          int wide)
{
    const block_fn *run = blocks[a->dtype == DTYPE_INT8 ? 0
                                 : a->dtype == DTYPE_INT6 ? 1 : 2];
    struct block    b = {
        .w_tile = tile_bytes(a->dtype, a->n_in),
        .x = p->x,
        .n_runs = p->n_runs,
        .n_out = a->n_out - tile * TILE,
        .y = a->y + a->y_stride * p->row + tile * TILE,
        .y_stride = a->y_stride,
        .go_on = a->add || p->run != 0
    };
    uint32_t        n_parts = (p->n_rows + T_MAX - 1) / T_MAX, done = 0;

    b.w = a->w + b.w_tile * tile + p->run * quant_run_bytes(a->dtype);

    for (uint32_t i = 1; i <= n_parts; i++) {
        uint32_t T = p->n_rows * i / n_parts - done;

        run[wide ? 0 : T](&b);
        b.x += (size_t) p->n_runs * T;
        b.y += b.y_stride * T;
        done += T;
    }
}


void
bytes_linear(const struct linear *a, uint32_t tile0, uint32_t tile1,
             uint32_t row0, uint32_t row1)
{
    struct panel p;
    uint32_t     n_runs = quant_runs(a->n_in);

    for (p.row = row0; p.row < row1; p.row += p.n_rows) {
        p.n_rows = row1 - p.row < PANEL_ROWS ? row1 - p.row : PANEL_ROWS;

        uint32_t most = PANEL_RUNS / p.n_rows;

        for (p.run = 0; p.run < n_runs; p.run += p.n_runs) {
            uint32_t tile = tile0;

            p.n_runs = n_runs - p.run < most ? n_runs - p.run : most;
            panel_fill(&p, a);

            for ( ; p.n_rows == 1 && tile + 4 <= tile1; tile += 4) {
                panel_run(&p, a, tile, 1);
            }

            for ( ; tile < tile1; tile++) {
                panel_run(&p, a, tile, 0);
            }
        }
    }
}
