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
#define PAGES       5
#define KEYS        (PAGES * BACKEND_PAGE_TOK)
#define TOKENS      7
#define LAYERS      2
#define SCALE       0.3f
#define ROW_MAX     272         /* columns of a KV row */
#define ALL_MAX     2048        /* columns of all heads of a token */

static const uint32_t positions[TOKENS] = { 0, 1, 15, 63, 64, 129, 319 };
static const uint32_t page_table[PAGES] = { 3, 0, 4, 1, 2 };

/* How heads lie in q and y, and keys and values in a KV row. */
struct shape {
    uint32_t    n_heads;
    uint32_t    n_kv_heads;
    uint32_t    head;           /* columns of q and y */
    uint32_t    n_key;          /* of these in use, of q */
    uint32_t    n_value;        /* and of y */
    uint32_t    value;          /* of a row before the first value */
    uint32_t    n_put;          /* of a row, from the first */
    uint32_t    row;
    int         latent;         /* mla, else gqa */
};

/* Groups of 10, of 9 and fewer heads; columns that are padding. */
static const struct shape mla_shape = { 19, 1, 80, 76, 70, 0, 76, 80, 1 };

/* As many key heads as heads, few, and one; heads of one vector of either
 * kind, of an odd number of them, and of columns not taken in pairs. */
#define GQA(n, k, h)    { n, k, h, h, h, k * h, 2 * k * h, 2 * k * h, 0 }

static const struct shape gqa_shapes[] = {
    GQA(8, 8, 16), GQA(12, 2, 48), GQA(23, 1, 80), GQA(16, 1, 128),
    GQA(33, 3, 32), GQA(4, 2, 64)
};


/* Keys by their position, put one batch of one token after the other. */
static struct kv_store
keys_make(struct backend *b, const struct shape *s, enum dtype dtype,
          float *keys)
{
    struct kv_store kv = { NULL, dtype, PAGES, LAYERS, s->row };

    kv.data = b->ops->alloc(b, (size_t) KEYS * LAYERS * s->row
                               * dtype_bytes(dtype));
    assert_non_null(kv.data);

    for (uint32_t pos = 0; pos < KEYS; pos++) {
        const uint32_t *pages = page_table;
        uint32_t        id = 0;
        struct batch    batch = { 1, &id, &pos, &pages, 0 };

        b->ops->begin(b, &batch);
        b->ops->kv_put(b, &kv, 1, (struct tensor) {
                           keys + (size_t) pos * s->n_put, s->n_put },
                       s->n_put);
    }

    return kv;
}


static void
run_attention(struct backend *b, const struct shape *s,
              const struct kv_store *kv, float *y, float *q, uint32_t first,
              uint32_t n)
{
    const uint32_t *pages[TOKENS];
    uint32_t        ids[TOKENS] = { 0 };
    struct batch    batch = { n, ids, positions + first, pages, 0 };
    size_t          all = s->n_heads * s->head;

    for (uint32_t i = 0; i < n; i++) {
        pages[i] = page_table;
    }

    b->ops->begin(b, &batch);

    if (s->latent) {
        b->ops->mla(b, &(struct mla) {
            .y = { y + first * all, all }, .q = { q + first * all, all },
            .kv = kv, .layer = 1, .n_heads = s->n_heads,
            .n_latent = s->n_value, .scale = SCALE });

    } else {
        b->ops->gqa(b, &(struct gqa) {
            .y = { y + first * all, all }, .q = { q + first * all, all },
            .kv = kv, .layer = 1, .n_heads = s->n_heads,
            .n_kv_heads = s->n_kv_heads, .head = s->head, .scale = SCALE });
    }
}


/* Only the first n_value columns are promised. */
static void
values(const struct shape *s, float *to, const float *y)
{
    for (size_t h = 0; h < TOKENS * s->n_heads; h++) {
        memcpy(to + h * s->n_value, y + h * s->head,
               s->n_value * sizeof(float));
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
 * makes e(j) for p(j), and changes y = sum of p(j) v(j), where p sums up to 1,
 * by the sum of p(j) e(j) (v(j) - y): by nothing where one key has all of the
 * weight.
 * Each key, and each page, rounds the sum of y up to there; SUM_DEPTH have the
 * sum of p, in each lane, over lanes and pages, and the division by it.
 */
#define DOT_DEPTH(n)    ((n) / 8 + 3 + 1)   /* of the narrower vectors */
#define EXP_DEPTH       4
#define SUM_DEPTH       (BACKEND_PAGE_TOK / 8 + 3 + 2 * PAGES + 2)

/* Attention of one head, whose keys and values these are of position 0, and
 * how far it may be off. */
static void
truth(const struct shape *s, float *want, float *bound, const float *keys,
      const float *vals, const float *q, uint32_t n)
{
    static double score[KEYS], e[KEYS], p[KEYS];
    double        max = -INFINITY, all = 0;

    for (uint32_t j = 0; j < n; j++) {
        double size = 0;

        score[j] = 0;

        for (uint32_t i = 0; i < s->n_key; i++) {
            double qk = (double) SCALE * (double) q[i]
                        * (double) keys[j * s->n_put + i];

            score[j] += qk;
            size += fabs(qk);
        }

        e[j] = DOT_DEPTH(s->head) * size;
        max = fmax(max, score[j]);
    }

    for (uint32_t j = 0; j < n; j++) {
        p[j] = exp(score[j] - max);
        e[j] += max - score[j]
                + EXP_DEPTH * ((n - 1) / BACKEND_PAGE_TOK
                               - j / BACKEND_PAGE_TOK + 1);
        all += p[j];
    }

    for (uint32_t i = 0; i < s->n_value; i++) {
        const float *v = vals + i;
        double       y = 0, off = 0;

        for (uint32_t j = 0; j < n; j++) {
            off += j % BACKEND_PAGE_TOK == 0 ? fabs(y) : 0;
            y += p[j] / all * (double) v[j * s->n_put];
            off += fabs(y);
        }

        off += SUM_DEPTH * fabs(y);

        for (uint32_t j = 0; j < n; j++) {
            off += p[j] / all * e[j]
                   * fabs((double) v[j * s->n_put] - y);
        }

        want[i] = (float) y;
        bound[i] = (float) off;
    }
}


/* Queries, with their padding, and what they make of the keys. */
static void
make_queries(const struct shape *s, const float *keys, float *q, float *want,
             float *bound)
{
    fill(q, (size_t) TOKENS * s->n_heads * s->head, KIND_PLAIN);

    for (uint32_t i = 0; i < TOKENS * s->n_heads; i++) {
        uint32_t group = i % s->n_heads / (s->n_heads / s->n_kv_heads);
        float   *to = q + (size_t) i * s->head;

        memset(to + s->n_key, 0, (s->head - s->n_key) * sizeof(float));
        truth(s, want + (size_t) i * s->n_value,
              bound + (size_t) i * s->n_value, keys + group * s->head,
              keys + s->value + group * s->head, to,
              positions[i / s->n_heads] + 1);
    }
}


static void
attention_case(struct backend *b, struct backend *b5, struct backend *ref,
               const struct shape *s, enum dtype dtype, enum kind kind)
{
    static float keys[KEYS * ROW_MAX];
    static float q[TOKENS * ALL_MAX], y[TOKENS * ALL_MAX];
    static float want[TOKENS * ALL_MAX], got[TOKENS * ALL_MAX];
    static float bound[TOKENS * ALL_MAX];
    size_t       n_rows = TOKENS * s->n_heads;

    assert_true(s->row <= ROW_MAX && s->n_heads * s->head <= ALL_MAX);
    fill(keys, (size_t) KEYS * s->n_put, kind);
    make_queries(s, keys, q, want, bound);

    struct kv_store kv = keys_make(ref, s, dtype, keys);

    run_attention(ref, s, &kv, y, q, 0, TOKENS);
    values(s, got, y);
    compare("the reference", got, want, bound, n_rows, s->n_value,
            ldexp(1, -24));
    run_attention(b, s, &kv, y, q, 0, TOKENS);
    values(s, got, y);
    compare(kind_names[kind], got, want, bound, n_rows, s->n_value,
            ldexp(1, -24));

    for (uint32_t t = 0; t < TOKENS; t++) {
        run_attention(b5, s, &kv, y, q, t, 1);
    }

    values(s, want, y);
    compare_bits("one by one, few heads at once", got, want,
                 n_rows * s->n_value);
    ref->ops->free(ref, kv.data, (size_t) KEYS * LAYERS * s->row
                                 * dtype_bytes(dtype));
}


static void
test_shapes(const char *name, const struct shape *shapes, size_t n)
{
    struct backend *ref = open_backend("cpu:ref", 1);
    struct backend *b = open_backend(name, 1);

    if (b == NULL) {
        close_backend(ref);
        return;
    }

    struct backend *b5 = open_backend(name, 5);

    for (size_t i = 0; i < n * KIND_N; i++) {
        attention_case(b, b5, ref, &shapes[i / KIND_N], DTYPE_F32,
                       (enum kind) (i % KIND_N));
        attention_case(b, b5, ref, &shapes[i / KIND_N], DTYPE_BF16,
                       (enum kind) (i % KIND_N));
    }

    close_backend(b5);
    close_backend(b);
    close_backend(ref);
}


static void
test_mla(void **state)
{
    test_shapes(*state, &mla_shape, 1);
}


static void
test_gqa(void **state)
{
    test_shapes(*state, gqa_shapes, BASE_COUNT(gqa_shapes));
}


int
main(void)
{
    static const struct {
        const char        *name;
        CMUnitTestFunction fn;
    } kinds[] = {
        { "rmsnorm", test_rmsnorm }, { "silu_mul", test_silu_mul },
        { "mla", test_mla }, { "gqa", test_gqa }
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
