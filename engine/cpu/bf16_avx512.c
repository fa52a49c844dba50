/*
 * bf16_avx512.c - y = W x with BF16 weights, by VDPBF16PS: a lane adds the
 * products of a pair of BF16 to its FP32.  In: the same rectangle as every
 * kernel's.  Out: the same outputs, x rounded to BF16 first.
 *
 * An output is one chain over the pairs of columns in order, begun at 0 or at
 * y itself (add); where the chain pauses it is kept in y, exactly, so neither
 * blocks nor rows change a bit (D6).
 *
 * Rows are rounded into a panel on the stack, which stays in L2.  A block is R
 * tiles by T rows in registers over BLOCK_PAIRS pairs: with T = 12 an element
 * of W is used 12 times for one load, with few rows the weights stream past
 * and the rows stay in L1.  Where rows make several parts, two tiles of a block
 * (16 KiB) stay in L1 too, and its first parts ask for the next block's.
 *
 * Tight weights (tight.h) become BF16 in registers where the first rows need
 * them, and stay so in L1 for the others; but a step with an exception, or one
 * that is not whole, does by way of L1.  The products are the same ones.
 */
#include "cpu/vec_avx512.h"

#include "cpu/avx512.h"
#include "cpu/expand.h"

#define INLINE          static inline __attribute__((always_inline))

#define BLOCK_PAIRS     128
#define PANEL_STRIDE    144     /* pairs: rows fall on different sets of L1 */
#define PANEL_BLOCKS    320     /* rows * blocks of columns: 180 KiB */
#define PANEL_ROWS      120
#define T_MAX           12

/* Up to so many rows pass four tiles once, whose weights are asked for here. */
#define T_STREAM        6
#define AHEAD_PAIRS     16

/* Of tight weights. */
#define AHEAD_TIGHT     32
#define STEP_PAIRS      (TIGHT_COLS / 2)
#define STEP_ROOM       (STEP_PAIRS * TILE * 4)     /* of one as BF16 */
#define BLOCK_ROOM      (BLOCK_PAIRS * TILE * 4)

struct block {
    const uint8_t  *w;          /* first tile's pairs of this block */
    size_t          w_tile;     /* bytes from tile to tile */
    const uint8_t  *head;       /* first tile's, of tight weights; or NULL */
    uint32_t        n_in;       /* the same */
    uint32_t        i_step;
    uint32_t        i_odd;      /* from there on one that has an exception */
    uint8_t        *room;       /* for them as BF16: of two tiles a block, of */
    size_t          room_tile;  /* four a step */
    const uint8_t  *ask[4];     /* weights to be asked for, of R tiles */
    size_t          step[4];    /* on to the next; 0: nothing is */
    const uint32_t *x;          /* (T, PANEL_STRIDE) pairs */
    uint32_t        n_pairs;
    uint32_t        n_out;      /* outputs from the first tile on */
    float          *y;
    size_t          y_stride;
    int             go_on;      /* the chain goes on from y */
};


/* The first n lanes, or all. */
INLINE __mmask16
lanes(uint32_t n)
{
    return (__mmask16) ((1u << (n < 16 ? n : 16)) - 1);
}


INLINE __mmask16
tile_mask(const struct block *b, int r)
{
    return lanes(b->n_out - (uint32_t) r * TILE);
}


INLINE void
sums_begin(const struct block *b, __m512 (*sum)[T_MAX], int R, int T)
{
#pragma GCC unroll 12
    for (int t = 0; t < T; t++) {
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            const float *y = b->y + b->y_stride * (size_t) t + r * TILE;

            sum[r][t] = b->go_on ? _mm512_maskz_loadu_ps(tile_mask(b, r), y)
                                 : _mm512_setzero_ps();
        }
    }
}


INLINE void
sums_end(const struct block *b, __m512 (*sum)[T_MAX], int R, int T)
{
#pragma GCC unroll 12
    for (int t = 0; t < T; t++) {
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            _mm512_mask_storeu_ps(b->y + b->y_stride * (size_t) t + r * TILE,
                                  tile_mask(b, r), sum[r][t]);
        }
    }
}


INLINE void
block_run(const struct block *b, int R, int T)
{
    __m512 sum[4][T_MAX];

    sums_begin(b, sum, R, T);

    for (size_t i = 0; i < b->n_pairs; i++) {
        __m512bh w[4];

#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            const uint8_t *p = b->w + b->w_tile * (size_t) r + i * TILE * 4;

            w[r] = (__m512bh) _mm512_loadu_si512(p);

            _mm_prefetch((const char *) b->ask[r] + i * b->step[r],
                         _MM_HINT_T0);
        }

#pragma GCC unroll 12
        for (int t = 0; t < T; t++) {
            __m512bh x = (__m512bh) _mm512_set1_epi32(
                             (int) b->x[(size_t) t * PANEL_STRIDE + i]);

#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                sum[r][t] = _mm512_dpbf16_ps(sum[r][t], w[r], x);
            }
        }
    }

    sums_end(b, sum, R, T);
}


/* sum + w x, a pair of x for all lanes.  Left to itself GCC keeps the pairs of
 * x in registers from tile to tile, and sums on the stack. */
INLINE __m512
dot(__m512 sum, __m512i w, const uint32_t *x)
{
    __asm__ ("vdpbf16ps %2%{1to16%}, %1, %0" : "+v" (sum) : "v" (w), "m" (*x));

    return sum;
}


/* The same from tight weights without exceptions, whose n_pairs are of whole
 * steps. */
INLINE void
tight_run(const struct block *b, int R, int T)
{
    __m512  sum[4][T_MAX];
    __m512i table[4], w[4];

    sums_begin(b, sum, R, T);

#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
        table[r] = vec_tight_table(b->head + b->w_tile * (size_t) r);
    }

    for (size_t i = 0, at = 0; i < b->n_pairs;
         i += STEP_PAIRS, at += TIGHT_STEP)
    {
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            const char *ask = (const char *) b->ask[r]
                              + (R == 4 ? at : i * b->step[r]);

            vec_tight(w, b->w + b->w_tile * (size_t) r + at, table[r]);
            _mm_prefetch(ask, _MM_HINT_T0);
            _mm_prefetch(ask + 64, _MM_HINT_T0);
            _mm_prefetch(ask + 128, _MM_HINT_T0);

#pragma GCC unroll 4
            for (int k = 0; k < STEP_PAIRS; k++) {
                if (R < 4) {
                    _mm512_store_si512(b->room + b->room_tile * (size_t) r
                                       + (i + (size_t) k) * TILE * 4, w[k]);
                }

#pragma GCC unroll 12
                for (int t = 0; t < T; t++) {
                    sum[r][t] = dot(sum[r][t], w[k], &b->x[(size_t) t
                                              * PANEL_STRIDE + i + (size_t) k]);
                }
            }
        }
    }

    sums_end(b, sum, R, T);
}


#define BLOCK(R, T)     static void block_##R##_##T(const struct block *b)    \
                        { block_run(b, R, T); }

BLOCK(4, 1) BLOCK(4, 2) BLOCK(4, 3) BLOCK(4, 4) BLOCK(4, 5) BLOCK(4, 6)
BLOCK(2, 6) BLOCK(2, 7) BLOCK(2, 8) BLOCK(2, 9) BLOCK(2, 10) BLOCK(2, 11)
BLOCK(2, 12)
BLOCK(1, 1) BLOCK(1, 2) BLOCK(1, 3) BLOCK(1, 4) BLOCK(1, 5) BLOCK(1, 6)
BLOCK(1, 7) BLOCK(1, 8) BLOCK(1, 9) BLOCK(1, 10) BLOCK(1, 11) BLOCK(1, 12)

#define TIGHT(R, T)     static void tight_##R##_##T(const struct block *b)    \
                        { tight_run(b, R, T); }

TIGHT(4, 1) TIGHT(4, 2) TIGHT(4, 3) TIGHT(4, 4) TIGHT(4, 5) TIGHT(4, 6)
TIGHT(2, 6) TIGHT(2, 7) TIGHT(2, 8) TIGHT(2, 9) TIGHT(2, 10) TIGHT(2, 11)
TIGHT(2, 12)

/* For R tiles, by T.  R * T sums, R weights and an element of x fit 32
 * registers; rows that make several parts make none below 6. */
typedef void (*block_fn)(const struct block *b);

struct block_fns {
    uint32_t    R;
    block_fn    bf16[T_MAX + 1];
    block_fn    tight[T_MAX + 1];   /* NULL: they are made BF16 before */
};

static const struct block_fns four = {
    4,
    { NULL, block_4_1, block_4_2, block_4_3, block_4_4, block_4_5,
      block_4_6 },
    { NULL, tight_4_1, tight_4_2, tight_4_3, tight_4_4, tight_4_5, tight_4_6 }
};

static const struct block_fns two = {
    2,
    { NULL, NULL, NULL, NULL, NULL, NULL, block_2_6, block_2_7, block_2_8,
      block_2_9, block_2_10, block_2_11, block_2_12 },
    { NULL, NULL, NULL, NULL, NULL, NULL, tight_2_6, tight_2_7, tight_2_8,
      tight_2_9, tight_2_10, tight_2_11, tight_2_12 }
};

static const struct block_fns one = {
    1,
    { NULL, block_1_1, block_1_2, block_1_3, block_1_4, block_1_5, block_1_6,
      block_1_7, block_1_8, block_1_9, block_1_10, block_1_11, block_1_12 },
    { NULL }
};


/* Rows of x, rounded. */
struct panel {
    uint32_t            row;
    uint32_t            n_rows;
    uint32_t            col;        /* first column, a block's */
    uint32_t            n_cols;
    _Alignas(64) uint32_t x[PANEL_BLOCKS * PANEL_STRIDE];
                                    /* (blocks, n_rows, PANEL_STRIDE) */
};


/* n elements to BF16, in pairs; an odd last one is paired with 0. */
static void
round_row(uint32_t *to, const float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += 32) {
        uint32_t left = n - i;
        __m512   a = _mm512_maskz_loadu_ps(lanes(left), x + i);
        __m512   b = _mm512_maskz_loadu_ps(lanes(left > 16 ? left - 16 : 0),
                                           x + i + 16);

        _mm512_storeu_si512(to + i / 2,
                            (__m512i) _mm512_cvtne2ps_pbh(b, a));
    }
}


static void
panel_fill(struct panel *p, const struct linear *a)
{
    uint32_t *to = p->x;

    for (uint32_t at = 0; at < p->n_cols; at += 2 * BLOCK_PAIRS) {
        uint32_t left = p->n_cols - at;

        for (uint32_t r = p->row; r < p->row + p->n_rows; r++) {
            size_t from = a->x_rows != NULL ? a->x_rows[r] : r;

            round_row(to, a->x + a->x_stride * from + p->col + at,
                      left < 2 * BLOCK_PAIRS ? left : 2 * BLOCK_PAIRS);
            to += PANEL_STRIDE;
        }
    }
}


static uint32_t
least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}


/* The first step from `step` on in which one of R tiles has an exception. */
static uint32_t
step_of_exception(const struct block *b, uint32_t R, uint32_t step)
{
    uint32_t first = UINT32_MAX;

    for (uint32_t r = 0; r < R; r++) {
        const uint8_t *tile = b->head + b->w_tile * r;
        uint32_t       at, i = 0;

        do {
            at = (tight_exception(tile, i++) >> 8) / (TIGHT_COLS * TILE);
        } while (at < step);

        first = least(first, at);
    }

    return first;
}


/* By way of the room. */
static void
run_widened(struct block b, uint32_t R, block_fn run)
{
    for (uint32_t r = 0; r < R; r++) {
        expand(b.room + b.room_tile * r, b.head + b.w_tile * r, b.n_in,
               b.i_step * TIGHT_COLS, 2 * b.n_pairs);
    }

    b.w = b.room;
    b.w_tile = b.room_tile;
    run(&b);
}


/* The first T rows by tight weights; b goes on to the block's end. */
static void
run_tight(struct block *b, uint32_t T, const struct block_fns *fns)
{
    if (fns->tight[T] == NULL) {
        run_widened(*b, fns->R, fns->bf16[T]);
        return;
    }

    for (uint32_t left = b->n_pairs; left != 0; left -= b->n_pairs) {
        if (b->i_odd < b->i_step) {
            b->i_odd = step_of_exception(b, fns->R, b->i_step);
        }

        b->n_pairs = least(b->i_odd - b->i_step, left / STEP_PAIRS)
                     * STEP_PAIRS;

        if (b->n_pairs != 0) {
            fns->tight[T](b);

        } else {
            b->n_pairs = least(left, STEP_PAIRS);
            run_widened(*b, fns->R, fns->bf16[T]);
        }

        for (uint32_t r = 0; r < fns->R; r++) {
            b->ask[r] += b->n_pairs * b->step[r];
        }

        b->i_step += b->n_pairs / STEP_PAIRS;
        b->w += b->n_pairs / STEP_PAIRS * TIGHT_STEP;
        b->room += fns->R < 4 ? b->n_pairs * TILE * 4 : 0;
        b->x += b->n_pairs;
        b->go_on = 1;
    }
}


/* One block of columns for all rows, in parts of nearly equal size.  One part
 * asks for the next weights of all tiles; of several the first does for those
 * of one tile, the second for the other's. */
static void
run_rows(struct block *b, uint32_t n, const uint8_t *next,
         const struct block_fns *fns)
{
    struct block all = *b;
    uint32_t     n_parts = (n + T_MAX - 1) / T_MAX, done = 0;
    size_t       step = b->head != NULL ? TIGHT_STEP / STEP_PAIRS : TILE * 4;

    for (uint32_t i = 1; i <= n_parts; i++) {
        uint32_t T = n * i / n_parts - done;

        for (uint32_t r = 0; r < 4; r++) {
            b->ask[r] = next + all.w_tile * r;
            b->step[r] = n_parts == 1 || i == r + 1 ? step : 0;
        }

        if (b->head != NULL && i == 1) {
            run_tight(b, T, fns);
            all.w = all.room;
            b->w_tile = all.room_tile;

        } else {
            fns->bf16[T](b);
        }

        done += T;
        b->w = all.w;
        b->n_pairs = all.n_pairs;
        b->x = all.x + (size_t) PANEL_STRIDE * done;
        b->y = all.y + all.y_stride * done;
        b->go_on = all.go_on;
    }

    b->w_tile = all.w_tile;
    b->room = all.room;
    b->y = all.y;
}


/* R tiles.  Where their columns end, the next R tiles begin. */
static void
panel_run(const struct panel *p, const struct linear *a, uint32_t tile,
          const struct block_fns *fns)
{
    _Alignas(64) uint8_t room[2 * BLOCK_ROOM];

    int            tight = a->dtype == DTYPE_TIGHT;
    struct block   b = {
        .w_tile = tile_bytes(a->dtype, a->n_in),
        .head = tight ? a->w + tight_bytes(a->n_in) * tile : NULL,
        .n_in = a->n_in,
        .room = room,
        .room_tile = fns->R < 4 ? BLOCK_ROOM : STEP_ROOM,
        .n_out = a->n_out - tile * TILE,
        .y = a->y + a->y_stride * p->row + tile * TILE,
        .y_stride = a->y_stride
    };
    size_t         pair = tight ? TIGHT_STEP / STEP_PAIRS : TILE * 4;
    uint32_t       ahead = p->n_rows > T_MAX ? BLOCK_PAIRS
                           : tight ? AHEAD_TIGHT : AHEAD_PAIRS;
    uint32_t       n_pairs = (p->n_cols + 1) / 2;
    const uint8_t *w = a->w + b.w_tile * tile + p->col / 2 * pair
                       + (tight ? tight_head(a->n_in) : 0);

    b.i_odd = tight ? step_of_exception(&b, fns->R, p->col / TIGHT_COLS) : 0;

    const uint8_t *next = (tight && p->col == 0 ? b.head : w)
                          + b.w_tile * fns->R;

    for (uint32_t at = 0; at < n_pairs; at += b.n_pairs) {
        uint32_t in_block = at % BLOCK_PAIRS, left = n_pairs - at;

        b.n_pairs = least(BLOCK_PAIRS - in_block, left);

        if (b.n_pairs == left && left >= ahead + STEP_PAIRS) {
            b.n_pairs = (left - ahead) / STEP_PAIRS * STEP_PAIRS;
        }

        b.w = w + at * pair;
        b.i_step = (p->col / 2 + at) / STEP_PAIRS;
        b.x = p->x + (size_t) (at / BLOCK_PAIRS) * p->n_rows * PANEL_STRIDE
              + in_block;
        b.go_on = a->add || p->col != 0 || at != 0;
        run_rows(&b, p->n_rows, left >= ahead + STEP_PAIRS
                               ? b.w + ahead * pair : next, fns);
    }
}


static void
panel_run_tiles(const struct panel *p, const struct linear *a, uint32_t tile0,
                uint32_t tile1)
{
    const struct block_fns *many = p->n_rows <= T_STREAM ? &four : &two;
    uint32_t                tile = tile0;

    for ( ; tile + many->R <= tile1; tile += many->R) {
        panel_run(p, a, tile, many);
    }

    for ( ; tile < tile1; tile++) {
        panel_run(p, a, tile, &one);
    }
}


void
bf16_linear(const struct linear *a, uint32_t tile0, uint32_t tile1,
            uint32_t row0, uint32_t row1)
{
    struct panel p;

    for (p.row = row0; p.row < row1; p.row += p.n_rows) {
        p.n_rows = row1 - p.row < PANEL_ROWS ? row1 - p.row : PANEL_ROWS;

        uint32_t most = PANEL_BLOCKS / p.n_rows * BLOCK_PAIRS * 2;

        for (p.col = 0; p.col < a->n_in; p.col += p.n_cols) {
            p.n_cols = a->n_in - p.col < most ? a->n_in - p.col : most;
            panel_fill(&p, a);
            panel_run_tiles(&p, a, tile0, tile1);
        }
    }
}
