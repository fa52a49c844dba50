/*
 * linear.c - products with weights, of every dtype and kind of machine,
 * against the reference: odd sizes, hard inputs, and the same bits of a row
 * whatever rows come with it and however many threads there are (D6).
 */
#include "engine/cpu/quant.h"
#include "kernel.h"

#define ROWS_MAX    121         /* one more than a panel of the BF16 kernel */
#define IN_MAX      1410        /* more than the runs of a panel, too */
#define OUT_MAX     130

static const uint32_t n_outs[] = { 1, 15, 16, 17, 47, 64, OUT_MAX };
static const uint32_t n_ins[] = { 1, 2, 3, 31, 33, 64, 511, 513, IN_MAX };
static const uint32_t n_rows[] = { 1, 2, 3, 4, 5, 6, 7, 12, 13, 25, 120 };

static const struct {
    const char *backend;
    const char *title;
    enum dtype  dtype;
    double      tolerance;      /* of the sum of |w x| */
} cases[] = {
    { "cpu:avx2", "avx2_f32", DTYPE_F32, 1e-5 },
    { "cpu:avx2", "avx2_bf16", DTYPE_BF16, 1e-5 },
    { "cpu:avx512", "avx512_f32", DTYPE_F32, 1e-5 },
    { "cpu:avx512", "avx512_bf16", DTYPE_BF16, 1e-5 },
    { "cpu:avx2", "avx2_int8", DTYPE_INT8, 1e-5 },
    { "cpu:avx2", "avx2_int6", DTYPE_INT6, 1e-5 },
    { "cpu:avx2", "avx2_int4", DTYPE_INT4, 1e-5 },
    { "cpu:avx512", "avx512_int8", DTYPE_INT8, 1e-5 },
    { "cpu:avx512", "avx512_int6", DTYPE_INT6, 1e-5 },
    { "cpu:avx512", "avx512_int4", DTYPE_INT4, 1e-5 },
    { "cpu:avx512vnni", "avx512vnni_f32", DTYPE_F32, 1e-5 },
    { "cpu:avx512vnni", "avx512vnni_bf16", DTYPE_BF16, 1e-5 },
    { "cpu:avx512vnni", "avx512vnni_int8", DTYPE_INT8, 1e-5 },
    { "cpu:avx512vnni", "avx512vnni_int6", DTYPE_INT6, 1e-5 },
    { "cpu:avx512vnni", "avx512vnni_int4", DTYPE_INT4, 1e-5 },
    { "cpu:avx512bf16", "avx512bf16_int8", DTYPE_INT8, 1e-5 },
    { "cpu:avx512bf16", "avx512bf16_int6", DTYPE_INT6, 1e-5 },
    { "cpu:avx512bf16", "avx512bf16_int4", DTYPE_INT4, 1e-5 },
    { "cpu:avx512bf16", "avx512bf16_f32", DTYPE_F32, 1e-5 },
    { "cpu:avx512bf16", "avx512bf16_bf16", DTYPE_BF16, 1e-5 },
    { "cpu:avx2", "avx2_tight", DTYPE_TIGHT, 1e-5 },
    { "cpu:avx512", "avx512_tight", DTYPE_TIGHT, 1e-5 },
    { "cpu:avx512vnni", "avx512vnni_tight", DTYPE_TIGHT, 1e-5 },
    { "cpu:avx512bf16", "avx512bf16_tight", DTYPE_TIGHT, 1e-5 },
    { "cpu:amx", "amx_bf16", DTYPE_BF16, 1e-5 },
    { "cpu:amx", "amx_tight", DTYPE_TIGHT, 1e-5 },
    { "cpu:amx", "amx_int8", DTYPE_INT8, 1e-5 },
    { "cpu:amx", "amx_int6", DTYPE_INT6, 1e-5 }
};

/* One shape: inputs, and what the reference makes of them. */
struct shape {
    uint32_t n_out;
    uint32_t n_in;
    float    w[OUT_MAX * IN_MAX];
    float    x[ROWS_MAX * IN_MAX];
    float    y[ROWS_MAX * OUT_MAX];         /* what is there before */
    float    want[ROWS_MAX * OUT_MAX];      /* W x */
    float    scale[ROWS_MAX * OUT_MAX];     /* |W| |x| + |y| */
    float    got[ROWS_MAX * OUT_MAX];
    float    part[ROWS_MAX * OUT_MAX];
};

static struct shape shape;


static void
absolute(float *to, const float *from, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        to[i] = fabsf(from[i]);
    }
}


static void
run(struct backend *b, const struct weight *w, float *y, const float *x,
    uint32_t rows, int add)
{
    b->ops->linear(b, (struct tensor) { y, w->n_out },
                   (struct tensor) { (float *) (uintptr_t) x, w->n_in }, w,
                   rows, add);
}


/* What 8 bits a run of 64 hold exactly, as 16 bits hold what fill() makes:
 * whole numbers up to 127, of which one is 127, times a power of two. */
static void
fill_bytes(float *x, uint32_t n_in, enum kind kind)
{
    for (uint32_t i = 0; i < ROWS_MAX * n_in; i++) {
        uint32_t col = i % n_in, run = col / 64;
        float    v = col % 64 == 0 ? 127 : rintf(uniform() * 127);

        switch (kind) {
        case KIND_OUTLIERS: v *= run % 2 ? 1024 : 1; break;
        case KIND_CANCEL:   v *= col % 2 ? -1 : 1; break;
        case KIND_TINY:     v *= 0x1p-100f; break;
        case KIND_ZEROS:    v *= run % 2 ? 1 : 0; break;
        default:            break;
        }

        x[i] = v;
    }
}


static void
shape_make(struct shape *s, struct backend *ref, enum dtype dtype,
           enum kind kind, uint32_t n_out, uint32_t n_in)
{
    static float abs_w[OUT_MAX * IN_MAX], abs_x[ROWS_MAX * IN_MAX];
    size_t       n_w = (size_t) n_out * n_in, n_x = (size_t) ROWS_MAX * n_in;

    s->n_out = n_out;
    s->n_in = n_in;
    fill(s->w, n_w, KIND_PLAIN);

    if (dtype_is_quant(dtype)) {
        fill_bytes(s->x, n_in, kind);

    } else {
        fill(s->x, n_x, kind);
    }

    fill(s->y, (size_t) ROWS_MAX * n_out, KIND_PLAIN);
    absolute(abs_w, s->w, n_w);
    absolute(abs_x, s->x, n_x);
    absolute(s->scale, s->y, (size_t) ROWS_MAX * n_out);

    struct weight w = weight_make(ref, dtype, 1, n_out, n_in, s->w);
    struct weight a = weight_make(ref, dtype, 1, n_out, n_in, abs_w);

    run(ref, &w, s->want, s->x, ROWS_MAX, 0);
    run(ref, &a, s->scale, abs_x, ROWS_MAX, 1);
    weight_drop(ref, &w);
    weight_drop(ref, &a);
}


static void
check_shape(struct shape *s, struct backend *b, struct backend *b3,
            enum dtype dtype, double tolerance, const char *title)
{
    size_t        n = (size_t) ROWS_MAX * s->n_out;
    struct weight w = weight_make(b, dtype, 1, s->n_out, s->n_in, s->w);
    char          what[128];

    snprintf(what, sizeof(what), "%s, %u of %u", title, s->n_out, s->n_in);
    run(b, &w, s->got, s->x, ROWS_MAX, 0);
    compare(what, s->got, s->want, s->scale, ROWS_MAX, s->n_out, tolerance);

    run(b3, &w, s->part, s->x, ROWS_MAX, 0);
    compare_bits(what, s->got, s->part, n);

    for (size_t i = 0; i < BASE_COUNT(n_rows); i++) {
        uint32_t from = ROWS_MAX - n_rows[i];

        run(b, &w, s->part, s->x + (size_t) from * s->n_in, n_rows[i], 0);
        compare_bits(what, s->got + (size_t) from * s->n_out, s->part,
                     (size_t) n_rows[i] * s->n_out);
    }

    /* y += W x, alone and together. */
    memcpy(s->got, s->y, n * sizeof(float));
    memcpy(s->part, s->y, n * sizeof(float));
    run(b, &w, s->got, s->x, ROWS_MAX, 1);

    for (uint32_t r = 0; r < ROWS_MAX; r++) {
        run(b, &w, s->part + (size_t) r * s->n_out,
            s->x + (size_t) r * s->n_in, 1, 1);
    }

    compare_bits(what, s->got, s->part, n);

    for (size_t i = 0; i < n; i++) {
        s->part[i] = s->y[i] + s->want[i];
    }

    compare(what, s->got, s->part, s->scale, ROWS_MAX, s->n_out, tolerance);
    weight_drop(b, &w);
}


static void
test_linear(void **state)
{
    size_t          i = (size_t) (uintptr_t) *state;
    struct backend *ref = open_backend("cpu:ref", 2);
    struct backend *b = open_backend(cases[i].backend, 1);

    if (b == NULL) {
        close_backend(ref);
        return;
    }

    struct backend *b3 = open_backend(cases[i].backend, 3);

    for (size_t o = 0; o < BASE_COUNT(n_outs); o++) {
        for (size_t k = 0; k < BASE_COUNT(n_ins); k++) {
            enum kind kind = (enum kind) ((o + k) % KIND_N);
            char      title[64];

            snprintf(title, sizeof(title), "%s, %s", cases[i].title,
                     kind_names[kind]);
            shape_make(&shape, ref, cases[i].dtype, kind, n_outs[o],
                       n_ins[k]);
            check_shape(&shape, b, b3, cases[i].dtype, cases[i].tolerance,
                        title);
        }
    }

    close_backend(b);
    close_backend(b3);
    close_backend(ref);
}


/* A weight is kept to half a step of its run's largest. */
static void
test_steps(void **state)
{
    enum { IN = 131 };

    static const struct {
        enum dtype dtype;
        float      steps;
    } types[] = { { DTYPE_INT8, 127 }, { DTYPE_INT6, 31 } };
    uint8_t tile[3 * QUANT_INT8_BYTES];
    float   w[IN], most[3] = { 0 };

    (void) state;

    for (int i = 0; i < IN; i++) {
        w[i] = uniform();
        most[i / 64] = fmaxf(most[i / 64], fabsf(w[i]));
    }

    for (size_t t = 0; t < BASE_COUNT(types); t++) {
        memset(tile, 0xff, sizeof(tile));
        quant_put(tile, types[t].dtype, 5, w, IN);

        for (uint32_t i = 0; i < IN; i++) {
            float got = quant_get(tile, types[t].dtype, 5, i);
            float step = most[i / 64] / types[t].steps;

            if (!(fabsf(got - w[i]) <= 0.5001f * step)) {
                fail_msg("type %d, column %u: %.6f, expected %.6f",
                         types[t].dtype, i, (double) got, (double) w[i]);
            }
        }
    }
}


/* What is not a BF16 number costs one rounding of it, no more. */
static void
test_rounding(void **state)
{
    struct backend *ref = open_backend("cpu:ref", 1);
    struct backend *b = open_backend("cpu", 2);
    struct shape   *s = &shape;

    (void) state;
    shape_make(s, ref, DTYPE_BF16, KIND_PLAIN, 47, 513);

    struct weight w = weight_make(ref, DTYPE_BF16, 1, 47, 513, s->w);

    for (size_t i = 0; i < ROWS_MAX * 513; i++) {
        s->x[i] *= 1 + uniform() / 128;
    }

    run(ref, &w, s->want, s->x, ROWS_MAX, 0);
    weight_drop(ref, &w);
    w = weight_make(b, DTYPE_BF16, 1, 47, 513, s->w);
    run(b, &w, s->got, s->x, ROWS_MAX, 0);
    compare("rounding", s->got, s->want, s->scale, ROWS_MAX, 47, 1.0 / 256);
    weight_drop(b, &w);
    close_backend(b);
    close_backend(ref);
}


/* Each matrix of a weight works on columns of its own. */
static void
test_heads(void **state)
{
    enum { N = 5, OUT = 19, IN = 35, ROWS = 14 };

    static float    rows[N * OUT * IN], x[ROWS * N * IN];
    static float    want[ROWS * N * OUT], got[ROWS * N * OUT];
    struct backend *b = open_backend("cpu", 3);

    (void) state;
    fill(rows, N * OUT * IN, KIND_PLAIN);
    fill(x, ROWS * N * IN, KIND_OUTLIERS);

    struct weight w = weight_make(b, DTYPE_BF16, N, OUT, IN, rows);

    b->ops->heads(b, &(struct heads) {
        .y = { got, N * OUT }, .x = { x, N * IN }, .y_head = OUT,
        .x_head = IN, .w = &w, .n_rows = ROWS });

    for (uint32_t i = 0; i < N; i++) {
        struct weight one = weight_make(b, DTYPE_BF16, 1, OUT, IN,
                                        rows + i * OUT * IN);

        b->ops->linear(b, (struct tensor) { want + i * OUT, N * OUT },
                       (struct tensor) { x + i * IN, N * IN }, &one, ROWS, 0);
        weight_drop(b, &one);
    }

    compare_bits("heads", got, want, ROWS * N * OUT);
    weight_drop(b, &w);
    close_backend(b);
}


int
main(void)
{
    struct CMUnitTest tests[BASE_COUNT(cases) + 3];
    size_t            n = 0;

    for ( ; n < BASE_COUNT(cases); n++) {
        tests[n] = (struct CMUnitTest) {
            cases[n].title, test_linear, NULL, NULL, (void *) (uintptr_t) n
        };
    }

    tests[n++] = (struct CMUnitTest) { "rounding", test_rounding, NULL, NULL,
                                       NULL };
    tests[n++] = (struct CMUnitTest) { "steps", test_steps, NULL, NULL, NULL };
    tests[n++] = (struct CMUnitTest) { "heads", test_heads, NULL, NULL, NULL };
    cmocka_set_message_output(CM_OUTPUT_TAP);

    return cmocka_run_group_tests(tests, NULL, NULL);
}
