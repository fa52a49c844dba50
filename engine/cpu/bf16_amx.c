/*
 * bf16_amx.c - y = W x with BF16 weights, by TDPBF16PS: a register of 16 by
 * 16 FP32 adds the products of 16 rows of x and 16 outputs over 32 columns.
 * In: the same rectangle as every kernel's.  Out: the same outputs, x rounded
 * to BF16 first.  It has run under t/kernel/amx.h only, which does in C what
 * the instructions do, and never on a machine that has them.
 *
 * A tile of weights (cpu.h) lies in memory as the instruction wants it: 16
 * pairs of columns are 1 KiB.  Rows of x beyond the last, and columns, are 0.
 * An output is one chain over the columns in order, kept in y between blocks of
 * columns, so neither blocks nor rows change a bit (D6).
 */
#include "cpu/amx.h"
#include "cpu/avx512.h"

#define INLINE          static inline __attribute__((always_inline))

#define STEP_PAIRS      16          /* of an instruction */
#define BLOCK_PAIRS     256
#define PANEL_ROWS      64

/* Rows of x in BF16: a block of columns. */
struct panel {
    uint32_t row;
    uint32_t n_rows;
    uint32_t pair;              /* the first */
    uint32_t n_pairs;
    _Alignas(64) uint32_t x[PANEL_ROWS][BLOCK_PAIRS];
};

/* Sums of 2 tiles of outputs by 2 times 16 rows. */
struct sums {
    _Alignas(64) float at[2][2][16][TILE];
};


static void
panel_fill(struct panel *p, const struct linear *a)
{
    memset(p->x, 0, (p->n_rows + 15) / 16 * sizeof(p->x[0]) * 16);

    for (uint32_t r = 0; r < p->n_rows; r++) {
        uint32_t     at = p->row + r, left = a->n_in - 2 * p->pair;
        const float *x = a->x + a->x_stride * (a->x_rows ? a->x_rows[at] : at)
                         + 2 * p->pair;
        uint16_t    *to = (uint16_t *) (void *) p->x[r];

        left = left < 2 * BLOCK_PAIRS ? left : 2 * BLOCK_PAIRS;

        for (uint32_t i = 0; i < left; i++) {
            to[i] = bf16_from_f32(x[i]);
        }
    }
}


/* Outputs of one tile by the rows of the panel from `row` on: to or from y. */
static void
move(const struct linear *a, const struct panel *p, float (*sum)[TILE],
     uint32_t tile, uint32_t row, int to_y)
{
    uint32_t n = a->n_out - tile * TILE;

    n = n < TILE ? n : TILE;

    for (uint32_t r = row; r < p->n_rows && r < row + 16; r++) {
        float *y = a->y + a->y_stride * (p->row + r) + tile * TILE;

        memcpy(to_y ? y : sum[r - row], to_y ? sum[r - row] : y,
               n * sizeof(float));
    }
}


/* sum += W x over 16 pairs, of R tiles by M times 16 rows; x and w: by LINE
 * and by the panel's rows. */
INLINE void
step(const uint8_t *const *w, const uint32_t *x, int R, int M)
{
    AMX_LOAD(4, x, BLOCK_PAIRS * 4);

    if (M == 2) {
        AMX_LOAD(5, x + 16 * BLOCK_PAIRS, BLOCK_PAIRS * 4);
    }

    AMX_LOAD(6, w[0], AMX_LINE);
    AMX_DOT_BF16(0, 4, 6);

    if (M == 2) {
        AMX_DOT_BF16(1, 5, 6);
    }

    if (R == 2) {
        AMX_LOAD(7, w[1], AMX_LINE);
        AMX_DOT_BF16(2, 4, 7);

        if (M == 2) {
            AMX_DOT_BF16(3, 5, 7);
        }
    }
}


/* The last pairs of a tile, fewer than an instruction takes. */
static void
fill_up(uint8_t *to, const uint8_t *w, uint32_t n_pairs)
{
    memset(to, 0, STEP_PAIRS * AMX_LINE);
    memcpy(to, w, (size_t) n_pairs * AMX_LINE);
}


INLINE void
steps(const struct panel *p, struct sums *s, const uint8_t *const *from,
      uint32_t row, int R, int M)
{
    _Alignas(64) uint8_t last[2][STEP_PAIRS * AMX_LINE];
    const uint8_t       *w[2] = { from[0], from[1] };
    uint32_t             i = 0;

    AMX_LOAD(0, s->at[0][0], AMX_LINE);
    AMX_LOAD(1, s->at[0][1], AMX_LINE);
    AMX_LOAD(2, s->at[1][0], AMX_LINE);
    AMX_LOAD(3, s->at[1][1], AMX_LINE);

    for ( ; i + STEP_PAIRS <= p->n_pairs; i += STEP_PAIRS) {
        step(w, &p->x[row][i], R, M);

        for (int r = 0; r < R; r++) {
            w[r] += STEP_PAIRS * AMX_LINE;
        }
    }

    if (i < p->n_pairs) {
        for (int r = 0; r < R; r++) {
            fill_up(last[r], w[r], p->n_pairs - i);
            w[r] = last[r];
        }

        step(w, &p->x[row][i], R, M);
    }

    AMX_STORE(0, s->at[0][0], AMX_LINE);
    AMX_STORE(1, s->at[0][1], AMX_LINE);
    AMX_STORE(2, s->at[1][0], AMX_LINE);
    AMX_STORE(3, s->at[1][1], AMX_LINE);
}


/* R tiles, whose weights of this block are at w, by up to 32 rows. */
static void
block_run(const struct linear *a, const struct panel *p,
          const uint8_t *const *w, uint32_t tile, uint32_t row, uint32_t R)
{
    struct sums s = { 0 };
    int         go_on = a->add || p->pair != 0, two = row + 16 < p->n_rows;

    for (uint32_t r = 0; go_on && r < R; r++) {
        move(a, p, s.at[r][0], tile + r, row, 0);
        move(a, p, s.at[r][1], tile + r, row + 16, 0);
    }

    if (R == 2) {
        two ? steps(p, &s, w, row, 2, 2) : steps(p, &s, w, row, 2, 1);

    } else {
        two ? steps(p, &s, w, row, 1, 2) : steps(p, &s, w, row, 1, 1);
    }

    for (uint32_t r = 0; r < R; r++) {
        move(a, p, s.at[r][0], tile + r, row, 1);
        move(a, p, s.at[r][1], tile + r, row + 16, 1);
    }
}


/* R tiles by all rows of the panel.  Tight weights are made BF16 first. */
static void
tiles_run(const struct linear *a, const struct panel *p, uint32_t tile,
          uint32_t R)
{
    _Alignas(64) uint8_t room[2][BLOCK_PAIRS * AMX_LINE];
    size_t               n_bytes = tile_bytes(a->dtype, a->n_in);
    const uint8_t       *w[2] = { NULL };

    for (uint32_t r = 0; r < R; r++) {
        const uint8_t *from = a->w + n_bytes * (tile + r);

        if (a->dtype == DTYPE_TIGHT) {
            AMX_EXPAND(room[r], from, a->n_in, 2 * p->pair, 2 * p->n_pairs);
            w[r] = room[r];

        } else {
            w[r] = from + (size_t) p->pair * AMX_LINE;
        }
    }

    for (uint32_t row = 0; row < p->n_rows; row += 32) {
        block_run(a, p, w, tile, row, R);
    }
}


void
amx_linear(const struct linear *a, uint32_t tile0, uint32_t tile1,
           uint32_t row0, uint32_t row1)
{
    struct panel p;
    uint32_t     n_pairs = (a->n_in + 1) / 2;

    amx_open();

    for (p.row = row0; p.row < row1; p.row += PANEL_ROWS) {
        p.n_rows = row1 - p.row < PANEL_ROWS ? row1 - p.row : PANEL_ROWS;

        for (p.pair = 0; p.pair < n_pairs; p.pair += BLOCK_PAIRS) {
            p.n_pairs = n_pairs - p.pair < BLOCK_PAIRS ? n_pairs - p.pair
                                                       : BLOCK_PAIRS;
            panel_fill(&p, a);

            for (uint32_t tile = tile0; tile < tile1; tile += 2) {
                tiles_run(a, &p, tile, tile + 2 <= tile1 ? 2 : 1);
            }
        }
    }

    AMX_RELEASE();
}
