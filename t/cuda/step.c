/*
 * step.c - calls of a step that the CUDA backend puts together, against the
 * reference's single ones.  Each step runs twice: recorded, and replayed.
 */
#include "pair.h"

/* Calls that are recorded as one: never those of another case. */
static int n_repeats;


static void
begin_step(struct tokens *t, uint32_t n_tok, int repeats)
{
    begin(t, n_tok, 1);
    t->batch.repeats = repeats;
    EACH(b) {
        OP(b, begin, &t->batch);
    }
}


static void
end_step(int b)
{
    static const uint32_t none;
    struct tensor         nothing = { NULL, 0 };

    OP(b, gather, nothing, nothing, &none, 0, 0);
}


/* Behind all that was asked for; y is anything there. */
static unsigned long
launches_until(const struct rows *y)
{
    free(rows_get(y, CUDA));

    return count_launches();
}


/* At most so many since then; more only where a token's numbers are the same
 * in any company. */
static void
check_launches(unsigned long was, const struct rows *y, unsigned most)
{
    const char *name = getenv("MOE_TEST_BACKEND");

    if (name == NULL || strcmp(name, "cuda:deterministic") != 0) {
        assert_true(launches_until(y) - was <= most);
    }
}


/* rmsnorm, linear of float weights, route. */
struct routed {
    uint32_t      n_rows;
    uint32_t      n;
    struct route  how;
    float         eps;
    struct rows   x, norm, h, logits, bias, weights;
    struct both   ids;
    struct weight router[2];
};


static void
router_of_bits(struct weight w[2])
{
    uint32_t n = w[REF].n_in, n_out = w[REF].n_out, over = 1;
    float   *x = malloc((size_t) n_out * n * sizeof(float));

    assert_non_null(x);

    while (over * over < n) {
        over *= 2;
    }

    for (size_t i = 0; i < (size_t) n_out * n; i++) {
        x[i] = ((float) draw(9) - 4) / (float) over;
    }

    for (uint32_t r = 0; r < n_out; r += 16) {
        EACH(b) {
            OP(b, weight_put, &w[b], 0, r, n_out - r < 16 ? n_out - r : 16,
               x + (size_t) r * n);
        }
    }

    free(x);
}


/* Numbers of a few bits: every sum is the same in any order, and so the experts
 * are.  A row's mean square is a power of 4. */
static void
routed_of_bits(struct routed *r)
{
    static const float some[] = { 0.5f, 1, 2 };

    for (uint32_t i = 0; i < r->n_rows; i++) {
        for (uint32_t k = 0; k < r->n; k++) {
            r->x.host[i * r->x.stride + k] = draw(2) ? some[i % 3]
                                                     : -some[i % 3];
        }
    }

    for (uint32_t i = 0; i < r->n; i++) {
        r->norm.host[i] = some[draw(3)];
    }

    for (uint32_t i = 0; i < r->how.n_experts; i++) {
        r->bias.host[i] = ((float) draw(5) - 2) / 4;
    }

    r->eps = 0;
    both_put(&r->x.b, r->x.host);
    both_put(&r->norm.b, r->norm.host);
    both_put(&r->bias.b, r->bias.host);
    router_of_bits(r->router);
}


/* An odd number of rows does not lie at multiples of 16 bytes. */
static struct routed
routed_make(uint32_t n_rows, uint32_t n, struct route how)
{
    struct routed r = { .n_rows = n_rows, .n = n, .how = how, .eps = 0.1f };
    uint32_t      n_experts = how.n_experts;

    r.x = rows_make(n_rows, n, n + n_rows % 2);
    r.norm = rows_make(1, n, n);
    r.h = rows_make(n_rows, n, n + 1);
    r.logits = rows_make(n_rows, n_experts, n_experts + 3);
    r.bias = rows_make(1, n_experts, n_experts);
    r.weights = rows_make(n_rows, how.n_active, how.n_active);
    r.ids = both_make((size_t) n_rows * how.n_active * sizeof(uint32_t));
    weight_make(r.router, DTYPE_F32, 1, n_experts, n);

    return r;
}


static void
routed_free(struct routed *r)
{
    rows_free(&r->x);
    rows_free(&r->norm);
    rows_free(&r->h);
    rows_free(&r->logits);
    rows_free(&r->bias);
    rows_free(&r->weights);
    both_free(&r->ids);
    weight_free(r->router);
}


static void
poison(struct rows *r)
{
    for (size_t i = 0; i < (size_t) r->n_rows * r->stride; i++) {
        r->host[i] = NAN;
    }

    both_put(&r->b, r->host);
}


/* Into poisoned memory. */
static void
routed_run(struct routed *r, int repeats)
{
    uint32_t      n_ids = r->n_rows * r->how.n_active;
    uint32_t     *nobody = malloc(n_ids * sizeof(uint32_t));
    unsigned long was = 0;
    struct tokens t;

    assert_non_null(nobody);
    memset(nobody, 0xff, n_ids * sizeof(uint32_t));
    both_put(&r->ids, nobody);
    free(nobody);
    poison(&r->h);
    poison(&r->logits);
    poison(&r->weights);
    was = launches_until(&r->h);
    begin_step(&t, r->n_rows, repeats);
    EACH(b) {
        struct route a = r->how;

        a.ids = r->ids.at[b];
        a.weights = r->weights.b.at[b];
        a.logits = tensor_of(&r->logits, b);
        a.bias = a.bias != NULL ? r->bias.b.at[b] : NULL;
        a.n_rows = r->n_rows;
        OP(b, rmsnorm, tensor_of(&r->h, b), tensor_of(&r->x, b),
           r->norm.b.at[b], r->eps, r->n_rows, r->n);
        OP(b, linear, a.logits, tensor_of(&r->h, b), &r->router[b], r->n_rows,
           0);
        OP(b, route, &a);
        end_step(b);
    }
    check_launches(was, &r->h, 1);
}


static uint32_t *
routed_ids(const struct routed *r, int b)
{
    uint32_t *ids = malloc(r->ids.n_bytes);

    assert_non_null(ids);
    OP(b, get, ids, r->ids.at[b], r->ids.n_bytes);

    return ids;
}


static void
compare_ids(const struct routed *r)
{
    uint32_t *want = routed_ids(r, REF), *got = routed_ids(r, CUDA);

    for (uint32_t i = 0; i < r->n_rows * r->how.n_active; i++) {
        if (want[i] != got[i]) {
            fail_msg("%u rows of %u to %u experts: id %u: expected %u, got "
                     "%u", r->n_rows, r->n, r->how.n_experts, i, want[i],
                     got[i]);
        }
    }

    free(want);
    free(got);
}


static void
check_route(uint32_t n_rows, uint32_t n, struct route how)
{
    struct routed r = routed_make(n_rows, n, how);
    int           repeats;

    routed_run(&r, ++n_repeats);
    rows_compare(&r.h, OP_F32_MOST, "normed, %u rows of %u", n_rows, n);
    rows_compare(&r.logits, OP_F32_MOST, "logits of %u experts, %u rows of %u",
                 how.n_experts, n_rows, n);
    routed_of_bits(&r);
    repeats = ++n_repeats;              /* eps is in the record */

    for (int i = 0; i < 2; i++) {
        routed_run(&r, repeats);
        compare_ids(&r);
        rows_compare(&r.h, OP_F32_MOST, "normed, %u rows of %u", n_rows, n);
        rows_compare(&r.weights, OP_F32_MOST, "weights, %u rows of %u to %u "
                     "experts", n_rows, n, how.n_experts);
    }

    routed_free(&r);
}


static struct route
route_how(uint32_t n_experts, uint32_t n_active)
{
    return (struct route) {
        .score = ROUTE_SOFTMAX, .method = ROUTE_GREEDY,
        .n_experts = n_experts, .n_active = n_active, .n_groups = 1,
        .n_groups_keep = 1, .scale = 1
    };
}


static struct route
route_groups(uint32_t n_experts, uint32_t n_active, uint32_t n_groups,
             uint32_t n_groups_keep, enum route_method method)
{
    static const float yes;
    struct route       r = route_how(n_experts, n_active);

    r.method = method;
    r.n_groups = n_groups;
    r.n_groups_keep = n_groups_keep;
    r.scale = 2.5f;
    r.norm = 1;

    if (method == ROUTE_GROUP_TOP2) {
        r.score = ROUTE_SIGMOID;
        r.bias = &yes;              /* the case's own */
    }

    return r;
}


static void
test_route(void **state)
{
    (void) state;
    check_route(1, 300, route_how(12, 4));
    check_route(8, 37, route_how(60, 4));
    check_route(8, 64, route_groups(16, 3, 4, 2, ROUTE_GROUP_MAX));
    check_route(9, 1100, route_how(8, 2));
    check_route(9, 64, route_groups(256, 8, 8, 4, ROUTE_GROUP_TOP2));
    check_route(13, 37, route_groups(12, 3, 3, 2, ROUTE_GROUP_MAX));
    check_route(64, 300, route_how(64, 6));
    check_route(65, 1031, route_groups(60, 6, 5, 3, ROUTE_GROUP_TOP2));
    check_route(100, 128, route_how(12, 12));
    check_route(256, 40, route_groups(60, 4, 1, 1, ROUTE_GROUP_TOP2));

    if (!is_small()) {
        check_route(17, 2048, route_how(64, 6));
        check_route(256, 2048, route_how(128, 8));
        check_route(200, 7168, route_groups(256, 8, 8, 4, ROUTE_GROUP_TOP2));
    }
}


/* A row that is not a number goes to some experts, and changes nothing of the
 * others. */
static void
test_route_nan(void **state)
{
    struct routed r = routed_make(12, 70, route_how(20, 4));
    int           repeats = ++n_repeats;
    uint32_t     *want, *got;

    (void) state;
    routed_run(&r, repeats);
    want = routed_ids(&r, CUDA);
    r.x.host[2 * r.x.stride + 5] = NAN;
    r.x.host[11 * r.x.stride] = INFINITY;
    both_put(&r.x.b, r.x.host);
    routed_run(&r, repeats);
    got = routed_ids(&r, CUDA);

    for (uint32_t i = 0; i < 12 * 4; i++) {
        if (i / 4 != 2 && i / 4 != 11) {
            assert_int_equal(got[i], want[i]);
        }

        assert_true(got[i] < 20);

        for (uint32_t k = i / 4 * 4; k < i; k++) {
            assert_int_not_equal(got[i], got[k]);
        }
    }

    free(want);
    free(got);
    routed_free(&r);
}


/* rmsnorm; gate, up, silu_mul in place, down added to what there is. */
struct mlp {
    struct rows   x, norm, h, gate, up, y;
    struct weight w[3][2];          /* gate, up, down */
};


static struct mlp
mlp_make(enum dtype dtype, uint32_t n_rows, uint32_t n, uint32_t width)
{
    struct mlp m = {
        .x = rows_make(n_rows, n, n + n_rows % 2), .norm = rows_make(1, n, n),
        .h = rows_make(n_rows, n, n), .gate = rows_make(n_rows, width, width),
        .up = rows_make(n_rows, width, width), .y = rows_make(n_rows, n, n + 1)
    };

    for (size_t i = 0; i < (size_t) n_rows * m.y.stride; i++) {
        m.y.host[i] *= 0.1f;        /* what is added is the most of it */
    }

    both_put(&m.y.b, m.y.host);

    for (int i = 0; i < 3; i++) {
        weight_make(m.w[i], dtype, 1, i < 2 ? width : n, i < 2 ? n : width);
    }

    return m;
}


static void
mlp_run(struct mlp *m, int repeats, unsigned most)
{
    uint32_t      n_rows = m->x.n_rows;
    unsigned long was;
    struct tokens t;

    poison(&m->h);
    poison(&m->gate);
    poison(&m->up);
    was = launches_until(&m->y);
    begin_step(&t, n_rows, repeats);
    EACH(b) {
        struct tensor h = tensor_of(&m->h, b), gate = tensor_of(&m->gate, b);
        struct tensor up = tensor_of(&m->up, b);

        OP(b, rmsnorm, h, tensor_of(&m->x, b), m->norm.b.at[b], 1e-6f, n_rows,
           m->x.n);
        OP(b, linear, gate, h, &m->w[0][b], n_rows, 0);
        OP(b, linear, up, h, &m->w[1][b], n_rows, 0);
        OP(b, silu_mul, gate, gate, up, n_rows, m->gate.n);
        OP(b, linear, tensor_of(&m->y, b), gate, &m->w[2][b], n_rows, 1);
        end_step(b);
    }
    check_launches(was, &m->y, most);
}


static void
check_mlp(enum dtype dtype, uint32_t n_rows, uint32_t n, uint32_t width,
          unsigned most)
{
    struct mlp m = mlp_make(dtype, n_rows, n, width);
    double     far = dtype == DTYPE_FP8 && n_rows > 64 ? 3e-2
                     : most_of(dtype);
    int        repeats = ++n_repeats;

    for (int i = 0; i < 2; i++) {
        mlp_run(&m, repeats, most);
        rows_compare(&m.h, OP_F32_MOST, "normed, %u rows of %u", n_rows, n);
        rows_compare(&m.gate, far, "activation, %u rows, %u by %u", n_rows, n,
                     width);
        rows_compare(&m.y, far, "mlp, %u rows, %u by %u", n_rows, n, width);
    }

    rows_free(&m.x);
    rows_free(&m.norm);
    rows_free(&m.h);
    rows_free(&m.gate);
    rows_free(&m.up);
    rows_free(&m.y);

    for (int i = 0; i < 3; i++) {
        weight_free(m.w[i]);
    }
}


/* Warpgroups want their rows rounded first, of down in a kernel more. */
static void
test_mlp(void **state)
{
    static const enum dtype dtypes[] = { DTYPE_BF16, DTYPE_FP8 };

    (void) state;

    for (int i = 0; i < 2; i++) {
        check_mlp(dtypes[i], 1, 37, 45, 2);
        check_mlp(dtypes[i], 8, 300, 70, 2);
        check_mlp(dtypes[i], 9, 130, 33, 3);
        check_mlp(dtypes[i], 33, 64, 100, 3);
        check_mlp(dtypes[i], 64, 37, 16, 3);
        check_mlp(dtypes[i], 65, 48, 90, 3);
        check_mlp(dtypes[i], 150, 290, 328, 4);

        if (!is_small()) {
            check_mlp(dtypes[i], 8, 2048, 10944, 2);
            check_mlp(dtypes[i], 64, 2048, 10944, 3);
            check_mlp(dtypes[i], 256, 2048, 10944, 4);
        }
    }

    /* A prompt; and float weights, whose calls stay alone. */
    check_mlp(DTYPE_BF16, 261, 140, 290, 5);
    check_mlp(DTYPE_F32, 9, 37, 20, 5);
}


/* moe, and an expert that all rows go to: gate, up, silu_mul, down. */
struct mixed {
    struct rows   x, y, weights, tmp[3], gate, up;
    struct both   ids, order;
    struct weight w[3][2];          /* gate, up, down of all */
    struct weight shared[3][2];
    uint32_t      n_active;
};


static struct mixed
mixed_make(enum dtype dtype, uint32_t n_rows, uint32_t n_experts,
           uint32_t n_active, uint32_t n, uint32_t width)
{
    uint32_t     n_slots = n_rows * n_active;
    uint32_t    *ids = malloc(n_slots * sizeof(uint32_t));
    struct mixed m = {
        .x = rows_make(n_rows, n, n + n % 2), .y = rows_make(n_rows, n, n),
        .weights = rows_make(n_rows, n_active, n_active),
        .tmp = { rows_make(n_slots, width, width),
                 rows_make(n_slots, width, width), rows_make(n_slots, n, n) },
        .gate = rows_make(n_rows, 2 * width, 2 * width + n_rows % 2),
        .up = rows_make(n_rows, 2 * width, 2 * width),
        .ids = both_make(n_slots * sizeof(uint32_t)),
        .order = both_make((2 * n_slots + 2 * n_experts + 1)
                           * sizeof(uint32_t)),
        .n_active = n_active
    };

    assert_non_null(ids);

    for (uint32_t i = 0; i < 3; i++) {
        uint32_t n_out = i < 2 ? width : n, n_in = i < 2 ? n : width;

        weight_make(m.w[i], dtype, n_experts, n_out, n_in);
        weight_make(m.shared[i], dtype, 1, i < 2 ? 2 * n_out : n_out,
                    i < 2 ? n_in : 2 * n_in);
    }

    /* Distinct, not in order, and the last expert is nobody's. */
    for (uint32_t i = 0; i < n_slots; i++) {
        ids[i] = i % n_active == 0 ? draw(n_experts - 1)
                                   : (ids[i - 1] + 5) % (n_experts - 1);
    }

    both_put(&m.ids, ids);
    free(ids);

    return m;
}


static void
mixed_run(struct mixed *m, int repeats, unsigned most)
{
    uint32_t      n_rows = m->x.n_rows;
    unsigned long was;
    struct tokens t;

    for (int i = 0; i < 3; i++) {
        poison(&m->tmp[i]);
    }

    poison(&m->gate);
    poison(&m->up);
    was = launches_until(&m->y);
    begin_step(&t, n_rows, repeats);
    EACH(b) {
        struct tensor x = tensor_of(&m->x, b), y = tensor_of(&m->y, b);
        struct tensor gate = tensor_of(&m->gate, b);
        struct tensor up = tensor_of(&m->up, b);
        struct moe    a = {
            .y = y, .x = x, .ids = m->ids.at[b], .weights = m->weights.b.at[b],
            .gate = &m->w[0][b], .up = &m->w[1][b], .down = &m->w[2][b],
            .tmp_gate = tensor_of(&m->tmp[0], b),
            .tmp_up = tensor_of(&m->tmp[1], b),
            .tmp_down = tensor_of(&m->tmp[2], b), .tmp_order = m->order.at[b],
            .n_rows = n_rows, .n_active = m->n_active
        };

        OP(b, moe, &a);
        OP(b, linear, gate, x, &m->shared[0][b], n_rows, 0);
        OP(b, linear, up, x, &m->shared[1][b], n_rows, 0);
        OP(b, silu_mul, gate, gate, up, n_rows, m->gate.n);
        OP(b, linear, y, gate, &m->shared[2][b], n_rows, 1);
        end_step(b);
    }
    check_launches(was, &m->y, most);
}


static void
check_mixed(enum dtype dtype, uint32_t n_rows, uint32_t n_experts,
            uint32_t n_active, uint32_t n, uint32_t width)
{
    struct mixed m = mixed_make(dtype, n_rows, n_experts, n_active, n, width);
    int          repeats = ++n_repeats;

    for (int i = 0; i < 2; i++) {
        mixed_run(&m, repeats, 2);
        rows_compare(&m.y, most_of(dtype), "moe, %u rows to %u of %u, %u by %u",
                     n_rows, n_active, n_experts, n, width);
    }

    rows_free(&m.x);
    rows_free(&m.y);
    rows_free(&m.weights);
    rows_free(&m.gate);
    rows_free(&m.up);
    both_free(&m.ids);
    both_free(&m.order);

    for (int i = 0; i < 3; i++) {
        rows_free(&m.tmp[i]);
        weight_free(m.w[i]);
        weight_free(m.shared[i]);
    }
}


/* Rows that are a load every four columns, and not; fewer slots than experts,
 * and more. */
static void
test_moe(void **state)
{
    static const enum dtype dtypes[] = { DTYPE_BF16, DTYPE_FP8 };

    (void) state;

    for (int i = 0; i < 2; i++) {
        check_mixed(dtypes[i], 1, 8, 2, 300, 44);
        check_mixed(dtypes[i], 3, 9, 3, 37, 301);
        check_mixed(dtypes[i], 8, 20, 4, 64, 600);
        check_mixed(dtypes[i], 9, 20, 2, 37, 29);
        check_mixed(dtypes[i], 20, 9, 3, 300, 44);
        check_mixed(dtypes[i], 40, 8, 5, 45, 32);

        if (!is_small()) {
            check_mixed(dtypes[i], 1, 20, 6, 2048, 1408);
            check_mixed(dtypes[i], 8, 20, 6, 2048, 1408);
            check_mixed(dtypes[i], 64, 64, 6, 2048, 1408);
        }
    }
}


/* rmsnorm, and two products of what comes out: of n columns, to n_outs. */
struct products {
    enum dtype dtype;
    uint32_t   n_rows;
    uint32_t   n;
    int        in_place;
    uint32_t   n_outs[2];
    unsigned   n_launches;
};


static void
products_run(const struct products *k, struct rows *x, const struct rows *norm,
             struct rows *h, struct rows *y, struct weight w[2][2], int repeats)
{
    unsigned long was;
    struct tokens t;

    both_put(&x->b, x->host);
    poison(&y[0]);
    poison(&y[1]);
    was = launches_until(x);
    begin_step(&t, k->n_rows, repeats);
    EACH(b) {
        struct tensor to = tensor_of(h, b);

        OP(b, rmsnorm, to, tensor_of(x, b), norm->b.at[b], 1e-6f, k->n_rows,
           k->n);

        for (int i = 0; i < 2; i++) {
            OP(b, linear, tensor_of(&y[i], b), to, &w[i][b], k->n_rows, 0);
        }

        end_step(b);
    }
    check_launches(was, x, k->n_launches);
}


static void
check_products(const struct products *k)
{
    struct rows   x = rows_make(k->n_rows, k->n, k->n + k->n_rows % 2);
    struct rows   norm = rows_make(1, k->n, k->n);
    struct rows   other = rows_poisoned(k->n_rows, k->n, k->n + 1);
    struct rows  *h = k->in_place ? &x : &other, y[2];
    struct weight w[2][2];
    double        far = k->dtype == DTYPE_FP8 && k->n_rows > 64
                        ? 3e-2 : most_of(k->dtype);
    int           repeats = ++n_repeats;

    for (int i = 0; i < 2; i++) {
        y[i] = rows_poisoned(k->n_rows, k->n_outs[i], k->n_outs[i] + 3);
        weight_make(w[i], k->dtype, 1, k->n_outs[i], k->n);
    }

    for (int run = 0; run < 2; run++) {
        products_run(k, &x, &norm, h, y, w, repeats);
        rows_compare(h, OP_F32_MOST, "normed, %u rows of %u", k->n_rows, k->n);

        for (int i = 0; i < 2; i++) {
            rows_compare(&y[i], far, "product %d of %u rows, %u to %u", i,
                         k->n_rows, k->n, k->n_outs[i]);
        }
    }

    rows_free(&x);
    rows_free(&norm);
    rows_free(&other);

    for (int i = 0; i < 2; i++) {
        rows_free(&y[i]);
        weight_free(w[i]);
    }
}


/* In one kernel, but for the norm; where warpgroups do one, alone, for which
 * the norm also rounds. */
static void
test_products(void **state)
{
    static const enum dtype dtypes[] = { DTYPE_BF16, DTYPE_FP8 };
    struct products         cases[] = {
        { DTYPE_F32, 7, 70, 0, { 33, 140 }, 1 },
        { DTYPE_F32, 50, 140, 1, { 20, 40 }, 2 },
        { DTYPE_F32, 70, 140, 0, { 35, 150 }, 2 },
        { DTYPE_F32, 128, 37, 1, { 256, 129 }, 2 },
        { DTYPE_F32, 100, 70, 1, { 290, 30 }, 3 },
        { DTYPE_F32, 129, 200, 0, { 257, 140 }, 4 },
        { DTYPE_F32, 77, 328, 0, { 40, 300 }, 4 }
    };

    (void) state;

    for (size_t i = 0; i < 2 * BASE_COUNT(cases); i++) {
        cases[i / 2].dtype = dtypes[i % 2];
        check_products(&cases[i / 2]);
    }
}


int
main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_route),
        cmocka_unit_test(test_route_nan),
        cmocka_unit_test(test_mlp),
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_moe),
    };

    return pair_run(tests, BASE_COUNT(tests));
}
