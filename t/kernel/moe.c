/*
 * moe.c - the routed experts against their formula in products of one expert
 * at a time: experts with no row, with one, with most; and the same bits of a
 * row in any company (D6).
 */
#include "kernel.h"

#define EXPERTS     13
#define ACTIVE      3
#define DIM         70
#define WIDTH       37
#define ROWS        29
#define SLOTS       (ROWS * ACTIVE)

static float    gates[EXPERTS * WIDTH * DIM], ups[EXPERTS * WIDTH * DIM];
static float    downs[EXPERTS * DIM * WIDTH], x[ROWS * DIM], before[ROWS * DIM];
static float    weights[SLOTS];
static uint32_t ids[SLOTS];

struct experts {
    struct weight gate;
    struct weight up;
    struct weight down;
};


static struct experts
experts_make(struct backend *b, enum dtype dtype)
{
    return (struct experts) {
        weight_make(b, dtype, EXPERTS, WIDTH, DIM, gates),
        weight_make(b, dtype, EXPERTS, WIDTH, DIM, ups),
        weight_make(b, dtype, EXPERTS, DIM, WIDTH, downs)
    };
}


static void
experts_drop(struct backend *b, struct experts *e)
{
    weight_drop(b, &e->gate);
    weight_drop(b, &e->up);
    weight_drop(b, &e->down);
}


/* Expert 0 has most rows, the last has none. */
static void
inputs_make(void)
{
    fill(gates, sizeof(gates) / sizeof(float), KIND_PLAIN);
    fill(ups, sizeof(ups) / sizeof(float), KIND_PLAIN);
    fill(downs, sizeof(downs) / sizeof(float), KIND_PLAIN);
    fill(x, sizeof(x) / sizeof(float), KIND_PLAIN);
    fill(before, sizeof(before) / sizeof(float), KIND_PLAIN);
    fill(weights, sizeof(weights) / sizeof(float), KIND_PLAIN);

    for (uint32_t s = 0; s < SLOTS; s++) {
        uint32_t r = s / ACTIVE, k = s % ACTIVE;

        ids[s] = k == 1 && r % 5 != 0 ? 0 : 1 + (r + k * 4) % (EXPERTS - 2);
    }
}


static void
run_moe(struct backend *b, const struct experts *e, float *y, uint32_t row,
        uint32_t n)
{
    static float    tmp_gate[SLOTS * WIDTH], tmp_up[SLOTS * WIDTH];
    static float    tmp_down[SLOTS * DIM];
    static uint32_t order[2 * SLOTS + 2 * EXPERTS + 1];

    memcpy(y + row * DIM, before + row * DIM, n * DIM * sizeof(float));
    b->ops->moe(b, &(struct moe) {
        .y = { y + row * DIM, DIM }, .x = { x + row * DIM, DIM },
        .ids = ids + row * ACTIVE, .weights = weights + row * ACTIVE,
        .gate = &e->gate, .up = &e->up, .down = &e->down,
        .tmp_gate = { tmp_gate, WIDTH }, .tmp_up = { tmp_up, WIDTH },
        .tmp_down = { tmp_down, DIM }, .tmp_order = order,
        .n_rows = n, .n_active = ACTIVE });
}


static struct weight
matrix(struct backend *b, const struct weight *w, uint32_t i)
{
    struct weight one = *w;

    one.data = (uint8_t *) w->data + b->ops->weight_bytes(w) * i;
    one.n = 1;

    return one;
}


/* The formula of struct moe, slot by slot. */
static void
formula(struct backend *b, const struct experts *e, float *y)
{
    memcpy(y, before, ROWS * DIM * sizeof(float));

    for (uint32_t s = 0; s < SLOTS; s++) {
        float         g[WIDTH], u[WIDTH], d[DIM];
        struct weight gate = matrix(b, &e->gate, ids[s]);
        struct weight up = matrix(b, &e->up, ids[s]);
        struct weight down = matrix(b, &e->down, ids[s]);
        struct tensor row = { x + s / ACTIVE * DIM, DIM };
        struct tensor tg = { g, WIDTH }, tu = { u, WIDTH };

        b->ops->linear(b, tg, row, &gate, 1, 0);
        b->ops->linear(b, tu, row, &up, 1, 0);
        b->ops->silu_mul(b, tg, tg, tu, 1, WIDTH);
        b->ops->linear(b, (struct tensor) { d, DIM }, tg, &down, 1, 0);

        for (uint32_t i = 0; i < DIM; i++) {
            y[s / ACTIVE * DIM + i] += weights[s] * d[i];
        }
    }
}


static void
check(const char *name, enum dtype dtype)
{
    static float    want[ROWS * DIM], got[ROWS * DIM], part[ROWS * DIM];
    struct backend *b = open_backend(name, 1);

    if (b == NULL) {
        return;
    }

    inputs_make();

    struct experts e = experts_make(b, dtype);

    formula(b, &e, want);
    run_moe(b, &e, got, 0, ROWS);
    compare_bits("by the formula", got, want, ROWS * DIM);

    for (uint32_t r = 0; r < ROWS; r += 4) {
        run_moe(b, &e, part, r, ROWS - r < 4 ? ROWS - r : 4);
    }

    compare_bits("four rows at a time", got, part, ROWS * DIM);

    struct backend *b3 = open_backend(name, 3);

    run_moe(b3, &e, part, 0, ROWS);
    compare_bits("three threads", got, part, ROWS * DIM);
    experts_drop(b, &e);
    close_backend(b3);
    close_backend(b);
}


static void
test_ref(void **state)
{
    (void) state;
    check("cpu:ref", DTYPE_F32);
}


static void
test_avx2(void **state)
{
    (void) state;
    check("cpu:avx2", DTYPE_BF16);
}


static void
test_avx512(void **state)
{
    (void) state;
    check("cpu:avx512", DTYPE_F32);
}


static void
test_best(void **state)
{
    (void) state;
    check("cpu", DTYPE_F32);
    check("cpu", DTYPE_BF16);
    check("cpu", DTYPE_INT8);
    check("cpu", DTYPE_INT4);
}


int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ref), cmocka_unit_test(test_avx2),
        cmocka_unit_test(test_avx512), cmocka_unit_test(test_best)
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);

    return cmocka_run_group_tests(tests, NULL, NULL);
}
