/*
 * ops.c - every op of the CUDA backend against the reference, on sizes off
 * every tile and hard inputs; on a GPU also in a model's own shapes.
 */
#include "engine/sampler.h"
#include "pair.h"

#define OP_FP8_X_MOST   3e-2    /* where warpgroups take x in fp8 */

static const enum dtype dtypes[] = { DTYPE_F32, DTYPE_BF16, DTYPE_FP8 };


/* Of products of n_rows. */
static double
most_of_rows(enum dtype t, uint32_t n_rows)
{
    return t == DTYPE_FP8 && n_rows > 64 ? OP_FP8_X_MOST : most_of(t);
}


static void
test_embed(void **state)
{
    static const uint32_t widths[] = { 1, 16, 37, 64, 300 };
    struct tokens         t;

    (void) state;
    begin(&t, 19, 45);

    for (size_t i = 0; i < 2 * BASE_COUNT(widths); i++) {
        struct weight w[2];
        uint32_t      n = widths[i / 2];
        struct rows   y = rows_poisoned(19, n, n + 3);

        weight_make(w, dtypes[i % 2], 1, 45, n);
        EACH(b) {
            OP(b, embed, tensor_of(&y, b), &w[b]);
        }
        rows_compare(&y, 0, "embed %u", n);
        rows_free(&y);
        weight_free(w);
    }
}


/* A token of the step before, which the host has not seen; and the first id of
 * all where there was none. */
static void
test_embed_chosen(void **state)
{
    static const uint32_t best[] = { 31, 44, 9 };
    const uint32_t        ids[2][4] = {
        { 9, 7, 31, 0 },
        { BACKEND_CHOSEN + 2, 7, BACKEND_CHOSEN + 0, BACKEND_CHOSEN + 1 }
    };
    struct rows           x = rows_make(3, 45, 48);
    struct rows           y = rows_poisoned(4, 64, 64);
    struct sample         how[3] = { { .top_p = 1 }, { .top_p = 1 },
                                     { .top_p = 1 } };
    struct tokens         t;
    struct weight         w[2];

    (void) state;

    for (uint32_t r = 0; r < 3; r++) {
        x.host[r * 48 + best[r]] = r == 1 ? NAN : 100;
    }

    both_put(&x.b, x.host);
    weight_make(w, DTYPE_BF16, 1, 45, 64);
    begin(&t, 4, 45);
    backends[CUDA]->ops->sample(backends[CUDA], tensor_of(&x, CUDA), how, 3,
                                45);

    EACH(b) {
        t.batch.ids = ids[b == CUDA];
        backends[b]->ops->begin(backends[b], &t.batch);
        OP(b, embed, tensor_of(&y, b), &w[b]);
    }

    const uint32_t *got = backends[CUDA]->ops->chosen(backends[CUDA]);

    for (uint32_t r = 0; r < 3; r++) {
        assert_int_equal(got[r], r == 1 ? BACKEND_NO_TOKEN : best[r]);
    }

    rows_compare(&y, 0, "embed of chosen tokens");
    rows_free(&x);
    rows_free(&y);
    weight_free(w);
}


static void
test_rmsnorm(void **state)
{
    static const uint32_t widths[] = { 1, 37, 256, 1031 };

    (void) state;

    for (size_t i = 0; i < BASE_COUNT(widths); i++) {
        uint32_t    n = widths[i];
        struct rows x = rows_make(5, n, n), w = rows_make(1, n, n);
        struct rows y = rows_poisoned(5, n, n + 1);

        /* An outlier, a row of zeros, tiny numbers. */
        x.host[0] = 3e4f;

        for (uint32_t k = 0; k < n; k++) {
            x.host[n + k] = 0;
            x.host[2 * n + k] *= 1e-12f;
        }

        both_put(&x.b, x.host);
        EACH(b) {
            OP(b, rmsnorm, tensor_of(&y, b), tensor_of(&x, b), w.b.at[b],
               1e-6f, 5, n);
        }
        rows_compare(&y, OP_F32_MOST, "rmsnorm %u", n);
        EACH(b) {
            OP(b, rmsnorm, tensor_of(&x, b), tensor_of(&x, b), w.b.at[b],
               1e-6f, 5, n);
        }
        rows_compare(&x, OP_F32_MOST, "rmsnorm %u in place", n);
        rows_free(&x);
        rows_free(&w);
        rows_free(&y);
    }
}


static void
check_linear(enum dtype dtype, uint32_t n_rows, uint32_t n_out, uint32_t n_in,
             int add)
{
    struct weight w[2];
    struct rows   x = rows_make(n_rows, n_in, n_in + n_rows % 3);
    struct rows   y = add ? rows_make(n_rows, n_out, n_out)
                          : rows_poisoned(n_rows, n_out, n_out + 1);

    weight_make(w, dtype, 1, n_out, n_in);
    EACH(b) {
        OP(b, linear, tensor_of(&y, b), tensor_of(&x, b), &w[b], n_rows, add);
    }
    rows_compare(&y, most_of_rows(dtype, n_rows),
                 "linear %u rows (%u, %u) add %d", n_rows, n_out, n_in, add);
    rows_free(&x);
    rows_free(&y);
    weight_free(w);
}


static void
test_linear(void **state)
{
    static const uint32_t sizes[][3] = {
        { 1, 1, 1 }, { 1, 16, 16 }, { 3, 17, 15 }, { 8, 33, 37 },
        { 9, 31, 130 }, { 33, 48, 64 }, { 70, 35, 300 }, { 2, 20, 1100 },
        { 1, 64, 512 }, { 150, 130, 37 }, { 129, 35, 200 },
        { 4, 150, 290 }
    };

    (void) state;

    for (size_t i = 0; i < 3 * BASE_COUNT(sizes); i++) {
        const uint32_t *s = sizes[i / 3];

        check_linear(dtypes[i % 3], s[0], s[1], s[2], i / 3 % 2 == 1);
    }

    /* More blocks than a GPU has multiprocessors, each for all rows. */
    check_linear(DTYPE_BF16, 40, 4300, 20, 0);
    check_linear(DTYPE_FP8, 64, 4300, 37, 1);

    /* Tiles of warpgroups, none of them full. */
    for (int i = 1; i < 3; i++) {
        check_linear(dtypes[i], 150, 290, 328, 0);
        check_linear(dtypes[i], 261, 257, 70, 1);
    }

    /* Those of clusters: an even number of them, and nine. */
    for (int i = 1; i < 3; i++) {
        check_linear(dtypes[i], 500, 300, 330, 1);
        check_linear(dtypes[i], 1100, 40, 140, 0);
    }

    if (!is_small()) {
        check_linear(DTYPE_BF16, 1, 2048, 10944, 1);
        check_linear(DTYPE_BF16, 64, 3072, 2048, 0);
        check_linear(DTYPE_BF16, 129, 2048, 2816, 1);
    }
}


/* A row's bits are the same alone, among others and in another place (D6);
 * and in every run. */
static void
check_alone(enum dtype dtype)
{
    struct weight w[2];
    struct rows   x = rows_make(60, 300, 300);
    struct rows   y = rows_poisoned(60, 40, 40), z = rows_poisoned(1, 40, 40);
    int           n_runs = is_small() ? 2 : 100;

    weight_make(w, dtype, 1, 40, 300);

    struct tensor yt = tensor_of(&y, CUDA), xt = tensor_of(&x, CUDA);

    for (int run = 0; run < n_runs; run++) {
        OP(CUDA, linear, yt, xt, &w[CUDA], 60, 0);

        float *all = rows_get(&y, CUDA);

        for (uint32_t r = 0; r < 60; r += 23) {
            struct tensor one = { xt.data + 300 * (size_t) r, 300 };

            OP(CUDA, linear, tensor_of(&z, CUDA), one, &w[CUDA], 1, 0);

            float *alone = rows_get(&z, CUDA);

            assert_memory_equal(alone, all + 40 * (size_t) r,
                                40 * sizeof(float));
            free(alone);
        }

        free(all);
    }

    rows_free(&x);
    rows_free(&y);
    rows_free(&z);
    weight_free(w);
}


static void
test_linear_alone(void **state)
{
    (void) state;

    for (int i = 0; i < 3; i++) {
        check_alone(dtypes[i]);
    }
}


static void
test_heads(void **state)
{
    static const uint32_t rows[] = { 3, 11, 70, 140 };

    (void) state;

    for (int i = 0; i < 8; i++) {
        struct weight w[2];
        uint32_t      n_rows = rows[i / 2], n_out = 24, n_in = 16;
        struct rows   x = rows_make(n_rows, 5 * 20, 5 * 20);
        struct rows   y = rows_make(n_rows, 5 * 32, 5 * 32);

        weight_make(w, dtypes[i % 2], 5, n_out, n_in);
        EACH(b) {
            struct heads h = {
                tensor_of(&y, b), tensor_of(&x, b), 32, 20, &w[b], n_rows
            };

            backends[b]->ops->heads(backends[b], &h);
        }
        rows_compare(&y, most_of(dtypes[i % 2]), "heads %d", i);
        rows_free(&x);
        rows_free(&y);
        weight_free(w);
    }
}


static void
test_rope(void **state)
{
    struct tokens t;
    struct rows   freqs = rows_make(1, 5, 5), angles = rows_poisoned(19, 10,
                                                                     10);

    (void) state;
    begin(&t, 19, 1);

    for (int i = 0; i < 5; i++) {
        freqs.host[i] = powf(1e4f, -(float) i / 5);
    }

    both_put(&freqs.b, freqs.host);
    EACH(b) {
        OP(b, angles, tensor_of(&angles, b), freqs.b.at[b], 5, 1.25f);
    }
    rows_compare(&angles, 1e-7, "angles");

    for (int interleaved = 0; interleaved < 2; interleaved++) {
        struct rows x = rows_make(19, 3 * 14, 3 * 14);
        struct rows y = rows_make(19, 3 * 12, 3 * 12);

        EACH(b) {
            struct rope r = {
                .y = tensor_of(&y, b), .x = tensor_of(&x, b), .y_head = 12,
                .x_head = 14, .angles = tensor_of(&angles, b), .n_heads = 3,
                .n = 10, .interleaved = interleaved
            };

            backends[b]->ops->rope(backends[b], &r);
        }
        rows_compare(&y, 1e-6, "rope, interleaved %d", interleaved);
        EACH(b) {
            struct rope r = {
                .y = tensor_of(&x, b), .x = tensor_of(&x, b), .y_head = 14,
                .x_head = 14, .angles = tensor_of(&angles, b), .n_heads = 3,
                .n = 10, .interleaved = interleaved
            };

            backends[b]->ops->rope(backends[b], &r);
        }
        rows_compare(&x, 1e-6, "rope in place, interleaved %d", interleaved);
        rows_free(&x);
        rows_free(&y);
    }

    rows_free(&freqs);
    rows_free(&angles);
}


static void
compare_ids(const struct both *ids, uint32_t n, const char *what)
{
    uint32_t *want = malloc(n * 4), *got = malloc(n * 4);

    assert_non_null(want);
    assert_non_null(got);
    OP(REF, get, want, ids->at[REF], n * 4);
    OP(CUDA, get, got, ids->at[CUDA], n * 4);

    for (uint32_t i = 0; i < n; i++) {
        if (want[i] != got[i]) {
            fail_msg("%s: id %u: expected %u, got %u", what, i, want[i],
                     got[i]);
        }
    }

    free(want);
    free(got);
}


static void
check_route(uint32_t n, uint32_t n_active, uint32_t groups, uint32_t keep,
            enum route_score score, enum route_method method, int bias)
{
    char        what[128];
    uint32_t    n_rows = 7;
    struct rows logits = rows_make(n_rows, n, n), b = rows_make(1, n, n);
    struct rows weights = rows_poisoned(n_rows, n_active, n_active);
    struct both ids = both_make((size_t) n_rows * n_active * 4);

    snprintf(what, sizeof(what), "route %u of %u, score %d, method %d",
             n_active, n, (int) score, (int) method);

    /* Ties: all the same; pairs; and large numbers. */
    for (uint32_t i = 0; i < n; i++) {
        logits.host[i] = 1;
        logits.host[n + i] = (float) (i / 2 % 3);
        logits.host[2 * n + i] *= 30;
    }

    both_put(&logits.b, logits.host);
    EACH(i) {
        struct route a = {
            .ids = ids.at[i], .weights = weights.b.at[i],
            .logits = tensor_of(&logits, i),
            .bias = bias ? b.b.at[i] : NULL, .score = score,
            .method = method, .n_rows = n_rows, .n_experts = n,
            .n_active = n_active, .n_groups = groups,
            .n_groups_keep = keep, .scale = 2.5f, .norm = bias
        };

        backends[i]->ops->route(backends[i], &a);
    }
    compare_ids(&ids, n_rows * n_active, what);
    rows_compare(&weights, 1e-5, "%s", what);
    rows_free(&logits);
    rows_free(&b);
    rows_free(&weights);
    both_free(&ids);
}


static void
test_route(void **state)
{
    (void) state;
    check_route(8, 2, 1, 1, ROUTE_SOFTMAX, ROUTE_GREEDY, 0);
    check_route(64, 6, 1, 1, ROUTE_SOFTMAX, ROUTE_GREEDY, 0);
    check_route(7, 7, 1, 1, ROUTE_SOFTMAX, ROUTE_GREEDY, 0);
    check_route(160, 6, 8, 3, ROUTE_SOFTMAX, ROUTE_GROUP_MAX, 0);
    check_route(16, 3, 4, 2, ROUTE_SOFTMAX, ROUTE_GROUP_MAX, 0);
    check_route(256, 8, 8, 4, ROUTE_SIGMOID, ROUTE_GROUP_TOP2, 1);
    check_route(384, 8, 1, 1, ROUTE_SIGMOID, ROUTE_GROUP_TOP2, 1);
}


/* Whatever the logits are, ids are of experts and distinct. */
static void
test_route_nan(void **state)
{
    struct rows logits = rows_make(2, 40, 40);
    struct rows weights = rows_make(2, 6, 6);
    struct both ids = both_make(2 * 6 * 4);
    uint32_t    got[12];

    (void) state;

    for (uint32_t i = 0; i < 40; i++) {
        logits.host[i] = NAN;
        logits.host[40 + i] = i % 8 == 3 ? 1.0f : i % 2 == 0 ? NAN : -NAN;
    }

    both_put(&logits.b, logits.host);

    struct route a = {
        .ids = ids.at[CUDA], .weights = weights.b.at[CUDA],
        .logits = tensor_of(&logits, CUDA), .score = ROUTE_SIGMOID,
        .method = ROUTE_GREEDY, .n_rows = 2, .n_experts = 40, .n_active = 6,
        .n_groups = 1, .n_groups_keep = 1, .scale = 1
    };

    backends[CUDA]->ops->route(backends[CUDA], &a);
    OP(CUDA, get, got, ids.at[CUDA], sizeof(got));

    for (uint32_t i = 0; i < 12; i++) {
        assert_true(got[i] < 40);

        for (uint32_t k = i / 6 * 6; k < i; k++) {
            assert_int_not_equal(got[i], got[k]);
        }
    }

    for (uint32_t i = 0; i < 5; i++) {
        assert_int_equal(got[6 + i], 3 + 8 * i);
    }

    rows_free(&logits);
    rows_free(&weights);
    both_free(&ids);
}


static void
check_moe(enum dtype dtype, uint32_t n_rows, uint32_t n_experts,
          uint32_t n_active, uint32_t dim, uint32_t width)
{
    uint32_t      n_slots = n_rows * n_active;
    struct weight gate[2], up[2], down[2];
    struct rows   x = rows_make(n_rows, dim, dim);
    struct rows   y = rows_make(n_rows, dim, dim);
    struct rows   weights = rows_make(n_rows, n_active, n_active);
    struct both   ids = both_make(n_slots * 4);
    struct rows   tmp[3] = {
        rows_poisoned(n_slots, width, width),
        rows_poisoned(n_slots, width, width),
        rows_poisoned(n_slots, dim, dim)
    };
    struct both   order = both_make((2 * n_slots + 2 * n_experts + 1) * 4);
    uint32_t     *host = malloc(n_slots * 4);

    assert_non_null(host);
    weight_make(gate, dtype, n_experts, width, dim);
    weight_make(up, dtype, n_experts, width, dim);
    weight_make(down, dtype, n_experts, dim, width);

    for (uint32_t r = 0; r < n_rows; r++) {
        uint32_t first = draw(n_experts);

        /* Distinct, not in order, and the last expert is nobody's. */
        for (uint32_t k = 0; k < n_active; k++) {
            host[r * n_active + k] = (first + 5 * k) % (n_experts - 1);
        }
    }

    both_put(&ids, host);
    EACH(b) {
        struct moe a = {
            .y = tensor_of(&y, b), .x = tensor_of(&x, b), .ids = ids.at[b],
            .weights = weights.b.at[b], .gate = &gate[b], .up = &up[b],
            .down = &down[b], .tmp_gate = tensor_of(&tmp[0], b),
            .tmp_up = tensor_of(&tmp[1], b),
            .tmp_down = tensor_of(&tmp[2], b), .tmp_order = order.at[b],
            .n_rows = n_rows, .n_active = n_active
        };

        backends[b]->ops->moe(backends[b], &a);
    }
    rows_compare(&y, most_of_rows(dtype, n_rows),
                 "moe, %u rows to %u of %u, %u by %u",
                 n_rows, n_active, n_experts, dim, width);

    for (int i = 0; i < 3; i++) {
        rows_free(&tmp[i]);
    }

    weight_free(gate);
    weight_free(up);
    weight_free(down);
    rows_free(&x);
    rows_free(&y);
    rows_free(&weights);
    both_free(&ids);
    both_free(&order);
    free(host);
}


static void
test_moe(void **state)
{
    (void) state;

    for (int i = 0; i < 3; i++) {
        check_moe(dtypes[i], 1, 8, 2, 37, 9);
        check_moe(dtypes[i], 5, 9, 3, 32, 20);
        check_moe(dtypes[i], 40, 4, 2, 40, 36);
        check_moe(dtypes[i], 200, 4, 2, 140, 70);
    }

    check_moe(DTYPE_BF16, 220, 4, 2, 328, 160);
    check_moe(DTYPE_FP8, 220, 4, 2, 328, 160);

    /* About 853 rows to each of three: seven tiles. */
    check_moe(DTYPE_BF16, 1280, 4, 2, 140, 70);
    check_moe(DTYPE_FP8, 1280, 4, 2, 140, 70);

    if (!is_small()) {
        check_moe(DTYPE_BF16, 1, 20, 6, 2048, 1408);
        check_moe(DTYPE_BF16, 40, 20, 6, 2048, 1408);
        check_moe(DTYPE_FP8, 150, 4, 2, 2048, 1408);
    }
}


static void
test_silu_mul_gather(void **state)
{
    static const uint32_t pick[] = { 4, 0, 4, 2 };
    struct tokens         t;
    struct rows           gate = rows_make(5, 77, 80);
    struct rows           up = rows_make(5, 77, 77);
    struct rows           y = rows_poisoned(5, 77, 78);
    struct rows           z = rows_poisoned(4, 77, 79);

    (void) state;
    begin(&t, 5, 1);
    gate.host[0] = -100;
    gate.host[1] = 100;
    both_put(&gate.b, gate.host);
    EACH(b) {
        OP(b, silu_mul, tensor_of(&y, b), tensor_of(&gate, b),
           tensor_of(&up, b), 5, 77);
        OP(b, gather, tensor_of(&z, b), tensor_of(&y, b), pick, 4, 77);
    }
    rows_compare(&y, 1e-6, "silu_mul");
    rows_compare(&z, 1e-6, "gather");
    rows_free(&gate);
    rows_free(&up);
    rows_free(&y);
    rows_free(&z);
}


/* Logits of a kind: what models give, few different ones, all the same, a clear
 * one, and those of which most do not count. */
static void
draw_logits(float *x, uint32_t n, int kind)
{
    for (uint32_t i = 0; i < n; i++) {
        x[i] = kind == 0 ? draw_float() * 3
               : kind == 1 ? (draw(3) == 0 ? -0.0f : (float) (draw(3) / 2))
               : kind == 2 ? -7.5f
               : kind == 3 ? draw_float() + (i == n / 2 ? 20 : 0)
               : draw_float() * 200;
    }
}


/* A row of each kind. */
static void
check_sample(uint32_t n, const struct sampler_params *p)
{
    enum { ROWS = 5 };
    struct rows    x = rows_make(ROWS, n, n + 5);
    struct sampler s;
    struct sample  plans[ROWS];

    assert_int_equal(sampler_init(&s, n), 0);

    for (uint32_t r = 0; r < ROWS; r++) {
        draw_logits(x.host + (size_t) r * x.stride, n, (int) r);
        assert_int_equal(sampler_plan(p, r * 1000003ull, &plans[r]), 0);
    }

    both_put(&x.b, x.host);

    backends[CUDA]->ops->sample(backends[CUDA], tensor_of(&x, CUDA), plans,
                                ROWS, n);

    const uint32_t *got = backends[CUDA]->ops->chosen(backends[CUDA]);

    for (uint32_t r = 0; r < ROWS; r++) {
        uint32_t want;

        assert_int_equal(sampler_next(&s, p, NULL, x.host + (size_t) r
                                      * x.stride, r * 1000003ull, &want), 0);

        if (got[r] != want) {
            fail_msg("%u of kind %u, temperature %g, top_k %d, top_p %g, "
                     "min_p %g: expected %u, got %u", n, r,
                     (double) p->temperature, p->top_k, (double) p->top_p,
                     (double) p->min_p, want, got[r]);
        }
    }

    sampler_free(&s);
    rows_free(&x);
}


/* The same bits as the host's, whatever the logits are. */
static void
test_sample(void **state)
{
    static const struct sampler_params params[] = {
        { 0, 1, 0, 0, 0, 0, 1, 0, 1, NULL, 0 },
        { 1, 1, 0, 0, 0, 0, 1, 0, 2, NULL, 0 },
        { 1, 0.9f, 0, 0, 0, 0, 1, 3, 1ull << 40, NULL, 0 },
        { 0.7f, 1, 0, 20, 0, 0, 1, 0, 4, NULL, 0 },
        { 3, 0.5f, 0, 40, 0, 0, 1, 1, 5, NULL, 0 },
        { 1, 1, 0.1f, 0, 0, 0, 1, 0, 6, NULL, 0 },
        { 1.5f, 0.95f, 0.02f, 7, 0, 0, 1, 0, 7, NULL, 0 },
        { 1, 1e-9f, 0, 1 << 30, 0, 0, 1, 0, 8, NULL, 0 },
        { 1e-3f, 0.999f, 0, 1, 0, 0, 1, 0, 9, NULL, 0 },
        { 50, 0.6f, 0, 0, 0, 0, 1, 0, 10, NULL, 0 }
    };
    static const uint32_t sizes[] = { 3, 37, 1300 };

    (void) state;

    for (size_t i = 0; i < BASE_COUNT(params); i++) {
        for (size_t k = 0; k < BASE_COUNT(sizes); k++) {
            check_sample(sizes[k], &params[i]);
        }

        if (!is_small()) {
            check_sample(129280, &params[i]);
        }
    }
}


/* A row that is not finite has no token, the others have theirs. */
static void
test_sample_nan(void **state)
{
    static const float bad[] = { NAN, INFINITY, -INFINITY };
    struct rows        x = rows_make(4, 40, 40);
    struct sample      plans[4];

    (void) state;

    for (int i = 0; i < 4; i++) {
        plans[i] = (struct sample) { .scale = (float) (i % 2), .top_p = 1,
                                     .least = -INFINITY };
        x.host[i * 40 + 17] = i < 3 ? bad[i] : 100;
    }

    both_put(&x.b, x.host);

    backends[CUDA]->ops->sample(backends[CUDA], tensor_of(&x, CUDA), plans, 4,
                                40);

    const uint32_t *got = backends[CUDA]->ops->chosen(backends[CUDA]);

    for (int i = 0; i < 4; i++) {
        assert_int_equal(got[i], i < 3 ? BACKEND_NO_TOKEN : 17);
    }

    rows_free(&x);
}


int
main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_embed),
        cmocka_unit_test(test_embed_chosen),
        cmocka_unit_test(test_rmsnorm),
        cmocka_unit_test(test_linear),
        cmocka_unit_test(test_linear_alone),
        cmocka_unit_test(test_heads),
        cmocka_unit_test(test_rope),
        cmocka_unit_test(test_route),
        cmocka_unit_test(test_route_nan),
        cmocka_unit_test(test_moe),
        cmocka_unit_test(test_silu_mul_gather),
        cmocka_unit_test(test_sample),
        cmocka_unit_test(test_sample_nan),
    };

    return pair_run(tests, BASE_COUNT(tests));
}
