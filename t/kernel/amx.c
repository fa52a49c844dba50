/*
 * amx.c - products by AMX, whose instructions amx.h does in C, since they may
 * not be there: against the reference, odd sizes, rows picked out of others,
 * and the same bits of a row in any company, begun at 0 or at y (D6).
 */
#include "kernel.h"

#include "engine/cpu/cpu.h"
#include "kernel/amx.h"

/* The very file, on other instructions and under another name. */
#define amx_linear      emulated_linear
void emulated_linear(const struct linear *a, uint32_t tile0, uint32_t tile1,
                     uint32_t row0, uint32_t row1);
#include "engine/cpu/bf16_amx.c"

#define ROWS_MAX    67          /* more than a panel */
#define IN_MAX      1030
#define OUT_MAX     50

static const uint32_t n_outs[] = { 1, 16, 17, OUT_MAX };
static const uint32_t n_ins[] = { 1, 31, 33, 512, 513, IN_MAX };
static const uint32_t n_rows[] = { 1, 15, 17, 33, ROWS_MAX };

static float w[OUT_MAX * IN_MAX], abs_w[OUT_MAX * IN_MAX];
static float x[ROWS_MAX * IN_MAX], abs_x[ROWS_MAX * IN_MAX];
static float want[ROWS_MAX * OUT_MAX], got[ROWS_MAX * OUT_MAX];
static float scale[ROWS_MAX * OUT_MAX], part[ROWS_MAX * OUT_MAX];
static uint32_t back[ROWS_MAX];     /* the last row first */

/* A matrix, and NaNs behind it, which none may read. */
static uint8_t packed[(OUT_MAX + 16) * (IN_MAX + 64) * 2];


static void
reference(struct backend *ref, float *y, float *rows, const float *matrix,
          uint32_t n_out, uint32_t n_in)
{
    struct weight m = weight_make(ref, DTYPE_BF16, 1, n_out, n_in, matrix);

    ref->ops->linear(ref, (struct tensor) { y, n_out },
                     (struct tensor) { rows, n_in }, &m, ROWS_MAX, 0);
    weight_drop(ref, &m);
}


static void
check_shape(struct backend *ref, uint32_t n_out, uint32_t n_in, enum kind kind)
{
    size_t n = (size_t) ROWS_MAX * n_out;

    fill(w, (size_t) n_out * n_in, KIND_PLAIN);
    fill(x, (size_t) ROWS_MAX * n_in, kind);

    for (size_t i = 0; i < (size_t) OUT_MAX * IN_MAX; i++) {
        abs_w[i] = fabsf(w[i]);
    }

    for (size_t i = 0; i < (size_t) ROWS_MAX * IN_MAX; i++) {
        abs_x[i] = fabsf(x[i]);
    }

    reference(ref, want, x, w, n_out, n_in);
    reference(ref, scale, abs_x, abs_w, n_out, n_in);

    struct weight m = weight_make(ref, DTYPE_BF16, 1, n_out, n_in, w);
    struct linear a = {
        .w = packed, .dtype = DTYPE_BF16, .n_out = n_out, .n_in = n_in,
        .x = x, .x_stride = n_in, .y = got, .y_stride = n_out
    };

    memset(packed, 0xff, sizeof(packed));
    memcpy(packed, m.data, ref->ops->weight_bytes(&m));
    emulated_linear(&a, 0, n_tiles(n_out), 0, ROWS_MAX);
    compare(kind_names[kind], got, want, scale, ROWS_MAX, n_out, 1e-5);

    a.y = part;

    for (size_t i = 0; i < BASE_COUNT(n_rows); i++) {
        for (uint32_t tile = 0; tile < n_tiles(n_out); tile++) {
            emulated_linear(&a, tile, tile + 1, ROWS_MAX - n_rows[i],
                            ROWS_MAX);
        }

        compare_bits("fewer rows, a tile at a time",
                     got + n - (size_t) n_rows[i] * n_out,
                     part + n - (size_t) n_rows[i] * n_out,
                     (size_t) n_rows[i] * n_out);
    }

    /* Tight weights are the same weights. */
    struct weight tight = weight_make(ref, DTYPE_TIGHT, 1, n_out, n_in, w);

    memset(packed, 0xff, sizeof(packed));
    memcpy(packed, tight.data, ref->ops->weight_bytes(&tight));
    a.dtype = DTYPE_TIGHT;
    emulated_linear(&a, 0, n_tiles(n_out), 0, ROWS_MAX);
    compare_bits("tight", got, part, n);
    weight_drop(ref, &tight);

    /* Rows in another order, added to 0. */
    memset(part, 0, sizeof(part));
    a.x_rows = back;
    a.add = 1;
    emulated_linear(&a, 0, n_tiles(n_out), 0, ROWS_MAX);

    for (uint32_t r = 0; r < ROWS_MAX; r++) {
        compare_bits("rows picked", got + (size_t) r * n_out,
                     part + (size_t) back[r] * n_out, n_out);
    }

    weight_drop(ref, &m);
}


static void
test_linear(void **state)
{
    struct backend *ref = open_backend("cpu:ref", 2);

    (void) state;

    for (uint32_t r = 0; r < ROWS_MAX; r++) {
        back[r] = ROWS_MAX - 1 - r;
    }

    for (size_t o = 0; o < BASE_COUNT(n_outs); o++) {
        for (size_t k = 0; k < BASE_COUNT(n_ins); k++) {
            check_shape(ref, n_outs[o], n_ins[k],
                        (enum kind) ((o + k) % KIND_N));
        }
    }

    close_backend(ref);
}


int
main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_linear) };

    cmocka_set_message_output(CM_OUTPUT_TAP);

    return cmocka_run_group_tests(tests, NULL, NULL);
}
