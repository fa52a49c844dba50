/*
 * rows.c - what is done to single rows, and attention, against the reference:
 * odd sizes, hard inputs, page boundaries, any number of threads.
 */
#include "kernel.h"

static const char *const backends[] = {
    "cpu:avx2", "cpu:avx512", "cpu:avx512bf16"
};

#define N_MAX       1030
#define ROWS        9


/* The sum of squares has no cancellation: relative to each element itself. */
static void
test_rmsnorm(void **state)
{
    static const uint32_t sizes[] = { 1, 7, 8, 15, 16, 17, 63, 65, N_MAX };
    static float          x[ROWS * N_MAX], w[N_MAX], want[ROWS * N_MAX];
    static float          got[ROWS * N_MAX], scale[ROWS * N_MAX];
    struct backend       *ref = open_backend("cpu:ref", 1);
    struct backend       *b = open_backend(*state, 3);

    for (size_t i = 0; b != NULL && i < BASE_COUNT(sizes) * KIND_N; i++) {
        uint32_t n = sizes[i / KIND_N];

        fill(x, (size_t) ROWS * n, (enum kind) (i % KIND_N));
        fill(w, n, KIND_OUTLIERS);
        ref->ops->rmsnorm(ref, (struct tensor) { want, n },
                          (struct tensor) { x, n }, w, 1e-6f, ROWS, n);
        b->ops->rmsnorm(b, (struct tensor) { got, n },
                        (struct tensor) { x, n }, w, 1e-6f, ROWS, n);

        for (size_t k = 0; k < (size_t) ROWS * n; k++) {
            scale[k] = fabsf(want[k]);
        }

        compare(kind_names[i % KIND_N], got, want, scale, ROWS, n, 1e-6);
    }

    close_backend(ref);

    if (b == NULL) {
        return;
    }

    close_backend(b);
}


static void
test_silu_mul(void **state)
{
    static const uint32_t sizes[] = { 1, 7, 8, 15, 16, 17, 63, 65, N_MAX };
    static float          gate[ROWS * N_MAX], up[ROWS * N_MAX];
    static float          want[ROWS * N_MAX], got[ROWS * N_MAX];
    static float          scale[ROWS * N_MAX];
    struct backend       *ref = open_backend("cpu:ref", 1);
    struct backend       *b = open_backend(*state, 3);

    for (size_t i = 0; b != NULL && i < BASE_COUNT(sizes) * KIND_N; i++) {
        uint32_t n = sizes[i / KIND_N];

        fill(gate, (size_t) ROWS * n, (enum kind) (i % KIND_N));
        fill(up, (size_t) ROWS * n, KIND_PLAIN);
        ref->ops->silu_mul(ref, (struct tensor) { want, n },
                           (struct tensor) { gate, n },
                           (struct tensor) { up, n }, ROWS, n);
        b->ops->silu_mul(b, (struct tensor) { got, n },
                         (struct tensor) { gate, n },
                         (struct tensor) { up, n }, ROWS, n);

        for (size_t k = 0; k < (size_t) ROWS * n; k++) {
            scale[k] = fabsf(want[k]) + 1e-28f;     /* e^88 is most */
        }

        compare(kind_names[i % KIND_N], got, want, scale, ROWS, n, 1e-6);
    }

    close_backend(ref);

    if (b == NULL) {
        return;
    }

    close_backend(b);
}


/* Tokens on both sides of the ends of pages, in pages in no order. */
#define HEADS       19          /* groups of 10, of 9 and fewer */
#define LATENT      70
#define ROPE        6
#define ROW         80          /* backend_pad(LATENT + ROPE) */
#define PAGES       5
#define TOKENS      7
#define LAYERS      2
#define SCALE       0.3f

static const uint32_t positions[TOKENS] = { 0, 1, 15, 63, 64, 129, 319 };
static const uint32_t page_table[PAGES] = { 3, 0, 4, 1, 2 };


/* Keys by their position, put one batch of one token after the other. */
static struct kv_store
keys_make(struct backend *b, enum dtype dtype, float *keys)
{
    struct kv_store kv = { NULL, dtype, PAGES, LAYERS, ROW };

    kv.data = b->ops->alloc(b, (size_t) PAGES * LAYERS * BACKEND_PAGE_TOK * ROW
                               * dtype_bytes(dtype));
    assert_non_null(kv.data);

    for (uint32_t pos = 0; pos < PAGES * BACKEND_PAGE_TOK; pos++) {
        const uint32_t *pages = page_table;
        uint32_t        id = 0;
        struct batch    batch = { 1, &id, &pos, &pages, 0 };

        b->ops->begin(b, &batch);
        b->ops->kv_put(b, &kv, 1, (struct tensor) {
                           keys + (size_t) pos * (LATENT + ROPE),
                           LATENT + ROPE }, LATENT + ROPE);
    }

    return kv;
}


static void
run_mla(struct backend *b, const struct kv_store *kv, float *y, float *q,
        uint32_t first, uint32_t n)
{
    const uint32_t *pages[TOKENS];
    uint32_t        ids[TOKENS] = { 0 };
    struct batch    batch = { n, ids, positions + first, pages, 0 };

    for (uint32_t i = 0; i < n; i++) {
        pages[i] = page_table;
    }

    b->ops->begin(b, &batch);
    b->ops->mla(b, &(struct mla) {
        .y = { y + (size_t) first * HEADS * ROW, HEADS * ROW },
        .q = { q + (size_t) first * HEADS * ROW, HEADS * ROW },
        .kv = kv, .layer = 1, .n_heads = HEADS, .n_latent = LATENT,
        .scale = SCALE });
}


/* Only the first n_latent columns are promised. */
static void
latents(float *to, const float *y)
{
    for (size_t h = 0; h < TOKENS * HEADS; h++) {
        memcpy(to + h * LATENT, y + h * ROW, LATENT * sizeof(float));
    }
}


/*
 * How far attention in FP32 may be from the truth, in units of 2^-24, which is
 * the most that one rounding takes away of its result; to first order.
 *
 * A score s(j) = scale q . k(j) is a chain of fused multiply-adds in each lane,
 * a tree over the lanes, and the scale: DOT_DEPTH roundings of no more than the
 * sum of |scale q k|.  exp() takes s(j) - max, rounded, and has EXP_DEPTH of
 * its own; each later page rounds the product by its own power again.  That
 * makes e(j) for p(j), and changes y = sum of p(j) k(j), where p sums up to 1,
 * by the sum of p(j) e(j) (k(j) - y): by nothing where one key has all of the
 * weight.
 * Each key, and each page, rounds the sum of y up to there; SUM_DEPTH have the
 * sum of p, in each lane, over lanes and pages, and the division by it.
 */
#define DOT_DEPTH   (ROW / 8 + 3 + 1)   /* of the narrower vectors */
#define EXP_DEPTH   4
#define SUM_DEPTH   (BACKEND_PAGE_TOK / 8 + 3 + 2 * PAGES + 2)

static void
mla_bounds(float *to, const float *keys, const float *q, uint32_t n)
{
    static double s[PAGES * BACKEND_PAGE_TOK], e[PAGES * BACKEND_PAGE_TOK];
    static double p[PAGES * BACKEND_PAGE_TOK];
    double        max = -INFINITY, all = 0;

    for (uint32_t j = 0; j < n; j++) {
        double size = 0;

        s[j] = 0;

        for (uint32_t i = 0; i < LATENT + ROPE; i++) {
            double qk = (double) SCALE * (double) q[i]
                        * (double) keys[j * (LATENT + ROPE) + i];

            s[j] += qk;
            size += fabs(qk);
        }

        e[j] = DOT_DEPTH * size;
        max = fmax(max, s[j]);
    }

    for (uint32_t j = 0; j < n; j++) {
        p[j] = exp(s[j] - max);
        e[j] += max - s[j]
                + EXP_DEPTH * ((n - 1) / BACKEND_PAGE_TOK
                               - j / BACKEND_PAGE_TOK + 1);
        all += p[j];
    }

    for (uint32_t i = 0; i < LATENT; i++) {
        const float *k = keys + i;
        double       y = 0, off = 0;

        for (uint32_t j = 0; j < n; j++) {
            off += j % BACKEND_PAGE_TOK == 0 ? fabs(y) : 0;
            y += p[j] / all * (double) k[j * (LATENT + ROPE)];
            off += fabs(y);
        }

        off += SUM_DEPTH * fabs(y);

        for (uint32_t j = 0; j < n; j++) {
            off += p[j] / all * e[j]
                   * fabs((double) k[j * (LATENT + ROPE)] - y);
        }

        to[i] = (float) off;
    }
}


static void
mla_case(struct backend *b, struct backend *b5, struct backend *ref,
         enum dtype dtype, enum kind kind)
{
    static float keys[PAGES * BACKEND_PAGE_TOK * (LATENT + ROPE)];
    static float q[TOKENS * HEADS * ROW], y[TOKENS * HEADS * ROW];
    static float want[TOKENS * HEADS * LATENT], got[TOKENS * HEADS * LATENT];
    static float bound[TOKENS * HEADS * LATENT];

    fill(keys, sizeof(keys) / sizeof(float), kind);
    fill(q, sizeof(q) / sizeof(float), KIND_PLAIN);

    for (size_t i = 0; i < TOKENS * HEADS; i++) {
        memset(q + i * ROW + LATENT + ROPE, 0,
               (ROW - LATENT - ROPE) * sizeof(float));
        mla_bounds(bound + i * LATENT, keys, q + i * ROW,
                   positions[i / HEADS] + 1);
    }

    struct kv_store kv = keys_make(ref, dtype, keys);

    run_mla(ref, &kv, y, q, 0, TOKENS);
    latents(want, y);
    run_mla(b, &kv, y, q, 0, TOKENS);
    latents(got, y);
    compare(kind_names[kind], got, want, bound, TOKENS * HEADS, LATENT,
            ldexp(1, -24));

    for (uint32_t t = 0; t < TOKENS; t++) {
        run_mla(b5, &kv, y, q, t, 1);
    }

    latents(want, y);
    compare_bits("one by one, few heads at once", got, want,
                 sizeof(got) / sizeof(float));
    ref->ops->free(ref, kv.data, (size_t) PAGES * LAYERS * BACKEND_PAGE_TOK
                                 * ROW * dtype_bytes(dtype));
}


static void
test_mla(void **state)
{
    struct backend *ref = open_backend("cpu:ref", 1);
    struct backend *b = open_backend(*state, 1);

    if (b == NULL) {
        close_backend(ref);
        return;
    }

    struct backend *b5 = open_backend(*state, 5);

    for (int kind = 0; kind < KIND_N; kind++) {
        mla_case(b, b5, ref, DTYPE_F32, (enum kind) kind);
        mla_case(b, b5, ref, DTYPE_BF16, (enum kind) kind);
    }

    close_backend(b5);
    close_backend(b);
    close_backend(ref);
}


int
main(void)
{
    static const struct {
        const char        *name;
        CMUnitTestFunction fn;
    } kinds[] = {
        { "rmsnorm", test_rmsnorm }, { "silu_mul", test_silu_mul },
        { "mla", test_mla }
    };
    struct CMUnitTest tests[BASE_COUNT(kinds) * BASE_COUNT(backends)];
    char              titles[BASE_COUNT(tests)][64];
    size_t            n = 0;

    for (size_t i = 0; i < BASE_COUNT(kinds); i++) {
        for (size_t k = 0; k < BASE_COUNT(backends); k++, n++) {
            snprintf(titles[n], sizeof(titles[n]), "%s, %s", kinds[i].name,
                     backends[k]);
            tests[n] = (struct CMUnitTest) {
                titles[n], kinds[i].fn, NULL, NULL, (void *) backends[k]
            };
        }
    }

    cmocka_set_message_output(CM_OUTPUT_TAP);

    return cmocka_run_group_tests(tests, NULL, NULL);
}
