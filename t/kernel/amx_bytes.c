/*
 * amx_bytes.c - products with weights of 8 and 6 bits by AMX, whose
 * instructions amx.h does in C: the bits of VPDPBUSD's on the same weights, odd
 * sizes, rows picked out of others, begun at 0 or at y.
 */
#include "kernel.h"

#include "engine/cpu/cpu.h"
#include "kernel/amx.h"

/* The very file, on other instructions and under another name. */
#define amx_bytes_linear    emulated_linear
void emulated_linear(const struct linear *a, uint32_t tile0, uint32_t tile1,
                     uint32_t row0, uint32_t row1);
#include "engine/cpu/bytes_amx.c"

#define ROWS_MAX    83          /* more than a panel */
#define IN_MAX      1030
#define OUT_MAX     50

static const uint32_t n_outs[] = { 1, 16, 17, OUT_MAX };
static const uint32_t n_ins[] = { 1, 63, 65, 512, 513, IN_MAX };

static float    w[OUT_MAX * IN_MAX], x[ROWS_MAX * IN_MAX];
static float    before[ROWS_MAX * OUT_MAX], want[ROWS_MAX * OUT_MAX];
static float    got[ROWS_MAX * OUT_MAX];
static uint32_t back[ROWS_MAX];     /* the last row first */


static void
check_shape(struct backend *b, enum dtype dtype, uint32_t n_out, uint32_t n_in,
            enum kind kind)
{
    size_t n = (size_t) ROWS_MAX * n_out;

    fill(w, (size_t) n_out * n_in, KIND_PLAIN);
    fill(x, (size_t) ROWS_MAX * n_in, kind);
    fill(before, n, KIND_PLAIN);

    struct weight m = weight_make(b, dtype, 1, n_out, n_in, w);
    struct linear a = {
        .w = m.data, .dtype = dtype, .n_out = n_out, .n_in = n_in,
        .x = x, .x_stride = n_in, .y = got, .y_stride = n_out
    };

    for (a.add = 0; a.add < 2; a.add++) {
        memcpy(want, before, n * sizeof(float));
        memcpy(got, before, n * sizeof(float));
        b->ops->linear(b, (struct tensor) { want, n_out },
                       (struct tensor) { x, n_in }, &m, ROWS_MAX, a.add);

        for (uint32_t tile = 0; tile < n_tiles(n_out); tile++) {
            emulated_linear(&a, tile, tile + 1, 0, 17);
            emulated_linear(&a, tile, tile + 1, 17, ROWS_MAX);
        }

        compare_bits(kind_names[kind], got, want, n);
    }

    a.add = 0;
    a.x_rows = back;
    emulated_linear(&a, 0, n_tiles(n_out), 0, ROWS_MAX);
    b->ops->linear(b, (struct tensor) { want, n_out },
                   (struct tensor) { x, n_in }, &m, ROWS_MAX, 0);

    for (uint32_t r = 0; r < ROWS_MAX; r++) {
        compare_bits("rows picked", got + (size_t) r * n_out,
                     want + (size_t) back[r] * n_out, n_out);
    }

    weight_drop(b, &m);
}


static void
check(enum dtype dtype)
{
    struct backend *b = open_backend("cpu:avx512vnni", 1);

    for (uint32_t r = 0; r < ROWS_MAX; r++) {
        back[r] = ROWS_MAX - 1 - r;
    }

    for (size_t o = 0; b != NULL && o < BASE_COUNT(n_outs); o++) {
        for (size_t k = 0; k < BASE_COUNT(n_ins); k++) {
            check_shape(b, dtype, n_outs[o], n_ins[k],
                        (enum kind) ((o + k) % KIND_N));
        }
    }

    if (b != NULL) {
        close_backend(b);
    }
}


static void
test_int8(void **state)
{
    (void) state;
    check(DTYPE_INT8);
}


static void
test_int6(void **state)
{
    (void) state;
    check(DTYPE_INT6);
}


int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_int8), cmocka_unit_test(test_int6)
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);

    return cmocka_run_group_tests(tests, NULL, NULL);
}
