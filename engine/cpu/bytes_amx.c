/*
 * bytes_amx.c - y = W x with weights of 8 or 6 bits, by TDPBSUD: a register of
 * 16 by 16 INT32 adds the products of 16 rows of x and 16 outputs over a run of
 * 64 columns.  In: the same rectangle as every kernel's, of many rows.  Out:
 * the bits of vnni_avx512.c, which does fewer rows: x is rounded alike, a run's
 * sum is exact, and an output is the same chain over the runs.  It has run
 * under t/kernel/amx.h only, and never on a machine that has the instructions.
 */
#include "cpu/amx.h"
#include "cpu/avx512.h"

#include <math.h>

#define PANEL_ROWS      64
#define PANEL_RUNS      8
#define RUN_BYTES       (QUANT_RUN * TILE)

/* Rows of x, rounded: some runs. */
struct panel {
    uint32_t row;
    uint32_t n_rows;
    uint32_t run;               /* the first */
    uint32_t n_runs;
    float    scale[PANEL_ROWS][PANEL_RUNS];
    int32_t  begin[PANEL_ROWS][PANEL_RUNS];     /* -z * sum of q */
    _Alignas(64) int8_t q[PANEL_ROWS][PANEL_RUNS * QUANT_RUN];
};


/* Up to 64 elements; beyond n they are 0. */
static void
run_round(struct panel *p, uint32_t row, uint32_t run, const float *x,
          uint32_t n, int32_t zero)
{
    int8_t *q = &p->q[row][run * QUANT_RUN];
    float   most = 0;
    int32_t sum = 0;

    for (uint32_t i = 0; i < n; i++) {
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    }

    float inverse = most > 1e-36f ? 127 / most : 0;

    for (uint32_t i = 0; i < QUANT_RUN; i++) {
        q[i] = i < n ? (int8_t) rintf(x[i] * inverse) : 0;
        sum += q[i];
    }

    p->scale[row][run] = quant_x_scale(most);
    p->begin[row][run] = -zero * sum;
}


static void
panel_fill(struct panel *p, const struct linear *a)
{
    memset(p->q, 0, sizeof(p->q));

    for (uint32_t r = 0; r < p->n_rows; r++) {
        uint32_t     at = p->row + r;
        const float *x = a->x + a->x_stride * (a->x_rows ? a->x_rows[at] : at);

        for (uint32_t i = 0; i < p->n_runs; i++) {
            uint32_t col = (p->run + i) * QUANT_RUN, left = a->n_in - col;

            run_round(p, r, i, x + col, left < QUANT_RUN ? left : QUANT_RUN,
                      quant_zero(a->dtype));
        }
    }
}


/* Sums of a run for 16 rows, to FP32 by both scales. */
static void
add_run(float (*sum)[TILE], int32_t (*part)[TILE], const struct panel *p,
        uint32_t row, uint32_t run, const float *w_scale)
{
    for (uint32_t r = 0; r < 16; r++) {
        float   scale = p->scale[row + r][run];
        int32_t begin = p->begin[row + r][run];

        for (uint32_t i = 0; i < TILE; i++) {
            sum[r][i] = fmaf((float) (part[r][i] + begin) * scale, w_scale[i],
                             sum[r][i]);
        }
    }
}


/* A run of 6 bits as bytes. */
static void
widen(uint8_t *to, const uint8_t *run)
{
    const uint8_t *high = run + 64 + RUN_BYTES / 2;

    for (uint32_t i = 0; i < RUN_BYTES / 4; i++) {
        uint32_t at = i / 64 * 256 + i % 64, q = i / 64 * 128 + i % 64 + 64;

        to[at] = (uint8_t) ((run[q] & 15) | (high[i] << 4 & 0x30));
        to[at + 64] = (uint8_t) (run[q] >> 4 | (high[i] << 2 & 0x30));
        to[at + 128] = (uint8_t) ((run[q + 64] & 15) | (high[i] & 0x30));
        to[at + 192] = (uint8_t) (run[q + 64] >> 4 | (high[i] >> 2 & 0x30));
    }
}


/* A tile of outputs, whose runs of bytes are at q, by 16 rows. */
static void
block_run(const struct linear *a, const struct panel *p, uint32_t tile,
          uint32_t row, const uint8_t *q, size_t q_run)
{
    _Alignas(64) float   sum[16][TILE] = { { 0 } };
    _Alignas(64) int32_t part[16][TILE];
    size_t               w_run = quant_run_bytes(a->dtype);
    const uint8_t       *w = a->w + tile_bytes(a->dtype, a->n_in) * tile
                             + p->run * w_run;
    uint32_t             n = a->n_out - tile * TILE, n_rows = p->n_rows - row;
    float               *y = a->y + a->y_stride * (p->row + row) + tile * TILE;

    n = n < TILE ? n : TILE;
    n_rows = n_rows < 16 ? n_rows : 16;

    for (uint32_t r = 0; (a->add || p->run != 0) && r < n_rows; r++) {
        memcpy(sum[r], y + a->y_stride * r, n * sizeof(float));
    }

    for (uint32_t i = 0; i < p->n_runs; i++) {
        AMX_ZERO(0);
        AMX_LOAD(1, &p->q[row][i * QUANT_RUN], PANEL_RUNS * QUANT_RUN);
        AMX_LOAD(2, q + i * q_run, AMX_LINE);
        AMX_DOT_BYTES(0, 1, 2);
        AMX_STORE(0, part, AMX_LINE);
        add_run(sum, part, p, row, i, (const float *) (const void *) w);
        w += w_run;
    }

    for (uint32_t r = 0; r < n_rows; r++) {
        memcpy(y + a->y_stride * r, sum[r], n * sizeof(float));
    }
}


/* A tile of outputs by all rows. */
static void
tile_run(const struct linear *a, const struct panel *p, uint32_t tile)
{
    _Alignas(64) uint8_t wide[PANEL_RUNS][RUN_BYTES];
    size_t               q_run = quant_run_bytes(a->dtype);
    const uint8_t       *q = a->w + tile_bytes(a->dtype, a->n_in) * tile
                             + p->run * q_run;

    if (a->dtype == DTYPE_INT6) {
        for (uint32_t i = 0; i < p->n_runs; i++) {
            widen(wide[i], q + i * q_run);
        }

        q = wide[0];
        q_run = RUN_BYTES;

    } else {
        q += 64;
    }

    for (uint32_t row = 0; row < p->n_rows; row += 16) {
        block_run(a, p, tile, row, q, q_run);
    }
}


void
amx_bytes_linear(const struct linear *a, uint32_t tile0, uint32_t tile1,
                 uint32_t row0, uint32_t row1)
{
    struct panel p;
    uint32_t     n_runs = quant_runs(a->n_in);

    memset(p.scale, 0, sizeof(p.scale));
    memset(p.begin, 0, sizeof(p.begin));
    amx_open();

    for (p.row = row0; p.row < row1; p.row += PANEL_ROWS) {
        p.n_rows = row1 - p.row < PANEL_ROWS ? row1 - p.row : PANEL_ROWS;

        for (p.run = 0; p.run < n_runs; p.run += PANEL_RUNS) {
            p.n_runs = n_runs - p.run < PANEL_RUNS ? n_runs - p.run
                                                   : PANEL_RUNS;
            panel_fill(&p, a);

            for (uint32_t tile = tile0; tile < tile1; tile++) {
                tile_run(a, &p, tile);
            }
        }
    }

    AMX_RELEASE();
}
