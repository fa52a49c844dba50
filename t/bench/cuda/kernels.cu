/*
 * kernels.cu - each kernel of the CUDA backend in the shapes of published
 * models: time, and bytes or FLOPs a second beside what a copy of this device
 * reaches in the same run.  Calls go through the vtable in steps that repeat,
 * so that it is graphs that are timed; sets of weights take turns, so that
 * none is found in L2.
 *
 *   kernels [BACKEND [ROWS]]    cuda; no products of fewer rows than ROWS
 *   kernels copy                the copy alone
 *
 * Prints "bench NAME VALUE UNIT" lines and, with |, the share of the copy, and
 * of a large product if PRODUCT_TFLOP_S says what that reaches here (peer.py
 * does).  SECONDS bounds each row (0.2).
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_runtime.h>

extern "C" {
#include "backend.h"
}

#define CHECK(call)                                                           \
    do {                                                                      \
        cudaError_t check_e = (call);                                         \
                                                                              \
        if (check_e != cudaSuccess) {                                         \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call,     \
                    cudaGetErrorString(check_e));                             \
            exit(1);                                                          \
        }                                                                     \
    } while (0)

/* More than any L2 holds: what is cycled through between two uses. */
#define CYCLE_BYTES     ((size_t) 512 << 20)
#define SETS_MAX        64
#define ROWS_MAX        8192

static struct backend *b;
static double          seconds = 0.2;
static double          copy_rate;       /* bytes / s, read and written */
static double          product_rate;    /* FLOPs / s; 0: not known */
static const char     *suffix = "";     /* of names: the backend's */
static uint32_t        rows_min;
static float          *noise;           /* (NOISE) on the host */

#define NOISE           ((size_t) 16 * 16384)
#define OP(name, ...)   b->ops->name(b, __VA_ARGS__)


static void *
take(size_t n_bytes)
{
    void *p = b->ops->alloc(b, n_bytes);

    if (p == NULL) {
        fprintf(stderr, "no %zu bytes of device memory\n", n_bytes);
        exit(1);
    }

    return p;
}


static struct tensor
rows(uint32_t n_rows, uint32_t n)
{
    struct tensor t = { (float *) take((size_t) n_rows * n * 4), n };

    for (uint32_t r = 0; r < n_rows; r++) {
        OP(put, t.data + (size_t) r * n, noise + r % 16, (size_t) n * 4);
    }

    return t;
}


/* Packs the same 16 rows everywhere: values of random sign and size, which
 * costs the device the same as other ones. */
static void
fill(void *ctx, uint32_t i, int thread)
{
    const struct weight *w = (const struct weight *) ctx;
    uint32_t             tiles = (w->n_out + 15) / 16, row = i % tiles * 16;

    (void) thread;
    OP(weight_put, w, i / tiles, row, w->n_out - row < 16 ? w->n_out - row
       : 16, noise + i % 8);
}


static struct weight
weight(enum dtype dtype, uint32_t n, uint32_t n_out, uint32_t n_in)
{
    struct weight w = { NULL, dtype, n, n_out, n_in };

    w.data = take(b->ops->weight_bytes(&w) * n);
    OP(each, n * ((n_out + 15) / 16), fill, &w);

    return w;
}


static void
drop(struct weight *w)
{
    OP(free, w->data, b->ops->weight_bytes(w) * w->n);
}


/* What is timed: the calls of one step. */
typedef void (*calls)(void *ctx, uint32_t i_set);

static struct {
    uint32_t        ids[ROWS_MAX];
    uint32_t        pos[ROWS_MAX];
    const uint32_t *pages[ROWS_MAX];
} tok;


static int n_measured;          /* each has graphs of its own */

static void
step(uint32_t n_tok, uint32_t n_calls, uint32_t n_sets, calls fn, void *ctx)
{
    static const uint32_t no_rows[1] = { 0 };
    struct tensor         none = { NULL, 0 };
    struct batch          batch = { n_tok, tok.ids, tok.pos, tok.pages,
                                    n_measured };

    OP(begin, &batch);

    for (uint32_t i = 0; i < n_calls; i++) {
        fn(ctx, i % n_sets);
    }

    OP(gather, none, none, no_rows, 0, 0);
}


/* Seconds of one call: the median of rounds of many. */
static double
measure(uint32_t n_tok, uint32_t n_sets, calls fn, void *ctx)
{
    uint32_t    n_calls = n_sets < 8 ? 8 : n_sets;
    double      best[64];
    int         n = 0;

    n_measured++;

    for (double all = 0; n < 64 && (n < 5 || all < seconds); n++) {
        uint64_t start;

        step(n_tok, n_calls, n_sets, fn, ctx);
        CHECK(cudaDeviceSynchronize());
        start = clock_us();

        for (int k = 0; k < 4; k++) {
            step(n_tok, n_calls, n_sets, fn, ctx);
        }

        CHECK(cudaDeviceSynchronize());
        best[n] = (double) (clock_us() - start) / 1e6 / 4 / n_calls;
        all += best[n] * 4 * n_calls;
    }

    for (int i = 1; i < n; i++) {
        for (int k = i; k > 0 && best[k] < best[k - 1]; k--) {
            double t = best[k];

            best[k] = best[k - 1];
            best[k - 1] = t;
        }
    }

    return best[n / 2];
}


static void
say(const char *name, double s, double n_bytes, double flops)
{
    printf("bench %s%s.time %.4g us\n", name, suffix, s * 1e6);

    if (n_bytes > 0) {
        printf("bench %s%s.rate %.4g GB/s\n", name, suffix,
               n_bytes / s / 1e9);
    }

    printf("bench %s%s.flops %.4g TFLOP/s\n", name, suffix, flops / s / 1e12);
    printf("| %-30s%-4s %9.2f us %7.0f GB/s %5.1f %% of copy %7.1f TFLOP/s",
           name, suffix, s * 1e6, n_bytes / s / 1e9,
           n_bytes / s / copy_rate * 100, flops / s / 1e12);

    if (product_rate > 0) {
        printf(" %5.1f %% of product", flops / s / product_rate * 100);
    }

    printf("\n");
    fflush(stdout);
}


/* Copies 4 GiB: bytes read and written a second. */
static void
measure_copy(void)
{
    size_t      n = (size_t) 4 << 30;
    char       *from, *to;
    cudaEvent_t start, end;
    float       ms, least = 1e9f;

    CHECK(cudaMalloc((void **) &from, n));
    CHECK(cudaMalloc((void **) &to, n));
    CHECK(cudaMemset(from, 0x5a, n));
    CHECK(cudaEventCreate(&start));
    CHECK(cudaEventCreate(&end));

    for (int i = 0; i < 10; i++) {
        CHECK(cudaEventRecord(start));
        CHECK(cudaMemcpyAsync(to, from, n, cudaMemcpyDeviceToDevice));
        CHECK(cudaEventRecord(end));
        CHECK(cudaEventSynchronize(end));
        CHECK(cudaEventElapsedTime(&ms, start, end));
        least = i != 0 && ms < least ? ms : least;
    }

    copy_rate = 2.0 * (double) n / (least / 1e3);
    CHECK(cudaFree(from));
    CHECK(cudaFree(to));
    printf("bench cuda.copy %.4g GB/s\n", copy_rate / 1e9);
}


static const char *
dtype_name(enum dtype t)
{
    return t == DTYPE_FP8 ? "_fp8" : "";
}


struct linear_bench {
    struct weight w[SETS_MAX];
    struct tensor x;
    struct tensor y;
    uint32_t      n_rows;
};


static void
call_linear(void *ctx, uint32_t i)
{
    struct linear_bench *l = (struct linear_bench *) ctx;

    OP(linear, l->y, l->x, &l->w[i], l->n_rows, 0);
}


static void
bench_linear(enum dtype dtype, uint32_t n_out, uint32_t n_in)
{
    static const uint32_t n_rows[] = { 1, 2, 8, 64, 256, 2048, 8192 };
    struct linear_bench   l;
    struct weight         shape = { NULL, dtype, 1, n_out, n_in };
    double                n_bytes = (double) b->ops->weight_bytes(&shape);
    uint32_t              n_sets = (uint32_t) (CYCLE_BYTES / n_bytes) + 1;
    char                  name[64];

    n_sets = n_sets < SETS_MAX ? n_sets : SETS_MAX;
    l.x = rows(ROWS_MAX, n_in);
    l.y = rows(ROWS_MAX, n_out);

    for (uint32_t i = 0; i < n_sets; i++) {
        l.w[i] = weight(dtype, 1, n_out, n_in);
    }

    for (size_t i = 0; i < BASE_COUNT(n_rows); i++) {
        l.n_rows = n_rows[i];

        if (l.n_rows < rows_min || (double) n_out * l.n_rows > 3e8) {
            continue;
        }

        double s = measure(l.n_rows, n_sets, call_linear, &l);

        snprintf(name, sizeof(name), "cuda.linear%s_%ux%u.%u",
                 dtype_name(dtype), n_out, n_in, l.n_rows);
        say(name, s, n_bytes + 4.0 * l.n_rows * ((double) n_in + n_out),
            2.0 * l.n_rows * n_out * n_in);
    }

    for (uint32_t i = 0; i < n_sets; i++) {
        drop(&l.w[i]);
    }

    OP(free, l.x.data, 0);
    OP(free, l.y.data, 0);
}


/* Up to what a step's graph has. */
static const uint32_t step_rows[] = { 1, 8, 64, 256 };

struct route_bench {
    struct weight w[SETS_MAX];
    struct tensor x, h;
    float        *norm;
    uint32_t      n;
    struct route  how;
};


/* One kernel, which reads the router's weights once. */
static void
call_route(void *ctx, uint32_t i)
{
    struct route_bench *k = (struct route_bench *) ctx;

    OP(rmsnorm, k->h, k->x, k->norm, 1e-6f, k->how.n_rows, k->n);
    OP(linear, k->how.logits, k->h, &k->w[i], k->how.n_rows, 0);
    b->ops->route(b, &k->how);
}


static void
bench_route(const char *what, uint32_t n, uint32_t n_experts,
            uint32_t n_active, uint32_t n_groups)
{
    static struct route_bench k;
    uint32_t                  n_max = step_rows[BASE_COUNT(step_rows) - 1];
    char                      name[64];

    memset(&k, 0, sizeof(k));
    k.n = n;
    k.x = rows(n_max, n);
    k.h = rows(n_max, n);
    k.norm = rows(1, n).data;
    k.how.ids = (uint32_t *) take((size_t) n_max * n_active * 4);
    k.how.weights = rows(n_max, n_active).data;
    k.how.logits = rows(n_max, n_experts);
    k.how.score = n_groups > 1 ? ROUTE_SIGMOID : ROUTE_SOFTMAX;
    k.how.method = n_groups > 1 ? ROUTE_GROUP_TOP2 : ROUTE_GREEDY;
    k.how.n_experts = n_experts;
    k.how.n_active = n_active;
    k.how.n_groups = n_groups;
    k.how.n_groups_keep = (n_groups + 1) / 2;
    k.how.scale = 1;

    for (uint32_t i = 0; i < SETS_MAX; i++) {
        k.w[i] = weight(DTYPE_F32, 1, n_experts, n);
    }

    for (size_t i = 0; i < BASE_COUNT(step_rows); i++) {
        double r = k.how.n_rows = step_rows[i];
        double s = measure(k.how.n_rows, SETS_MAX, call_route, &k);

        snprintf(name, sizeof(name), "cuda.route_%s.%u", what, k.how.n_rows);
        say(name, s, 4.0 * n * (n_experts + 2 * r), 2 * r * n * n_experts);
    }

    for (uint32_t i = 0; i < SETS_MAX; i++) {
        drop(&k.w[i]);
    }

    OP(free, k.x.data, 0);
    OP(free, k.h.data, 0);
}


struct mlp_bench {
    struct weight gate[8], up[8], down[8];
    struct tensor x, h, y, tmp, tmp_up;
    float        *norm;
    uint32_t      n_rows;
};


/* A dense layer's norm and MLP: two kernels of up to 8 rows. */
static void
call_mlp(void *ctx, uint32_t i)
{
    struct mlp_bench *k = (struct mlp_bench *) ctx;
    uint32_t          n = k->n_rows;

    OP(rmsnorm, k->h, k->x, k->norm, 1e-6f, n, k->gate[i].n_in);
    OP(linear, k->tmp, k->h, &k->gate[i], n, 0);
    OP(linear, k->tmp_up, k->h, &k->up[i], n, 0);
    OP(silu_mul, k->tmp, k->tmp, k->tmp_up, n, k->gate[i].n_out);
    OP(linear, k->y, k->tmp, &k->down[i], n, 1);
}


static void
bench_mlp(enum dtype t, uint32_t dim, uint32_t width)
{
    static struct mlp_bench k;
    uint32_t                n_max = step_rows[BASE_COUNT(step_rows) - 1];
    double                  n_bytes = 0;
    char                    name[64];

    memset(&k, 0, sizeof(k));
    k.x = rows(n_max, dim);
    k.h = rows(n_max, dim);
    k.y = rows(n_max, dim);
    k.tmp = rows(n_max, width);
    k.tmp_up = rows(n_max, width);
    k.norm = rows(1, dim).data;

    for (uint32_t i = 0; i < BASE_COUNT(k.gate); i++) {
        k.gate[i] = weight(t, 1, width, dim);
        k.up[i] = weight(t, 1, width, dim);
        k.down[i] = weight(t, 1, dim, width);
    }

    n_bytes = 2.0 * (double) b->ops->weight_bytes(&k.gate[0])
              + (double) b->ops->weight_bytes(&k.down[0]);

    for (size_t i = 0; i < BASE_COUNT(step_rows); i++) {
        k.n_rows = step_rows[i];

        double s = measure(k.n_rows, BASE_COUNT(k.gate), call_mlp, &k);

        snprintf(name, sizeof(name), "cuda.mlp%s_%ux%u.%u", dtype_name(t),
                 dim, width, k.n_rows);
        say(name, s, n_bytes + 12.0 * k.n_rows * dim,
            6.0 * k.n_rows * dim * width);
    }

    for (uint32_t i = 0; i < BASE_COUNT(k.gate); i++) {
        drop(&k.gate[i]);
        drop(&k.up[i]);
        drop(&k.down[i]);
    }

    OP(free, k.tmp.data, 0);
    OP(free, k.tmp_up.data, 0);
}


struct moe_bench {
    struct weight gate[4], up[4], down[4], s_gate[4], s_up[4], s_down[4];
    struct moe    m;
    struct tensor s_tmp, s_up_tmp;
    int           is_shared;
};


static void
call_moe(void *ctx, uint32_t i)
{
    struct moe_bench *k = (struct moe_bench *) ctx;
    struct moe        m = k->m;

    m.gate = &k->gate[i];
    m.up = &k->up[i];
    m.down = &k->down[i];
    b->ops->moe(b, &m);

    if (k->is_shared) {
        OP(linear, k->s_tmp, m.x, &k->s_gate[i], m.n_rows, 0);
        OP(linear, k->s_up_tmp, m.x, &k->s_up[i], m.n_rows, 0);
        OP(silu_mul, k->s_tmp, k->s_tmp, k->s_up_tmp, m.n_rows,
           k->s_gate[i].n_out);
        OP(linear, m.y, k->s_tmp, &k->s_down[i], m.n_rows, 1);
    }
}


/* Each row to n_active experts, spread evenly: so many are touched. */
static uint32_t
deal(uint32_t *ids, uint32_t n_rows, uint32_t n_active, uint32_t n_experts)
{
    static uint8_t used[1024];
    uint32_t       n = 0, x = 12345;

    memset(used, 0, sizeof(used));

    for (uint32_t r = 0; r < n_rows; r++) {
        for (uint32_t k = 0; k < n_active; k++) {
            uint32_t e, again;

            do {
                x = x * 1664525 + 1013904223;
                e = (x >> 8) % n_experts;
                again = 0;

                for (uint32_t j = 0; j < k; j++) {
                    again |= ids[r * n_active + j] == e;
                }
            } while (again);

            ids[r * n_active + k] = e;
            n += !used[e];
            used[e] = 1;
        }
    }

    return n;
}


static void
bench_moe(const char *what, enum dtype t, uint32_t dim, uint32_t width,
          uint32_t n_experts, uint32_t n_active, uint32_t shared)
{
    static const uint32_t n_rows[] = { 1, 2, 4, 8, 64, 256, 2048, 8192 };
    static struct moe_bench k;
    uint32_t             *ids, n_sets = n_experts > 64 ? 2 : 3;
    uint32_t              n_slots = ROWS_MAX * n_active;
    char                  name[64];

    memset(&k, 0, sizeof(k));
    ids = (uint32_t *) malloc((size_t) n_slots * 4);
    k.is_shared = shared != 0;
    k.m.x = rows(ROWS_MAX, dim);
    k.m.y = rows(ROWS_MAX, dim);
    k.m.tmp_gate = rows(n_slots, width);
    k.m.tmp_up = k.m.tmp_gate;
    k.m.tmp_down = rows(n_slots, dim);
    k.m.tmp_order = (uint32_t *) take((2 * (size_t) n_slots + 2 * n_experts
                                       + 1) * 4);
    k.m.ids = (uint32_t *) take((size_t) n_slots * 4);
    k.m.weights = rows(ROWS_MAX, n_active).data;
    k.m.n_active = n_active;

    if (shared != 0) {
        k.s_tmp = rows(ROWS_MAX, shared);
        k.s_up_tmp = rows(ROWS_MAX, shared);
    }

    for (uint32_t i = 0; i < n_sets; i++) {
        k.gate[i] = weight(t, n_experts, width, dim);
        k.up[i] = weight(t, n_experts, width, dim);
        k.down[i] = weight(t, n_experts, dim, width);

        if (shared != 0) {
            k.s_gate[i] = weight(t, 1, shared, dim);
            k.s_up[i] = weight(t, 1, shared, dim);
            k.s_down[i] = weight(t, 1, dim, shared);
        }
    }

    for (size_t i = 0; i < BASE_COUNT(n_rows); i++) {
        uint32_t n = deal(ids, n_rows[i], n_active, n_experts);

        if (n_rows[i] < rows_min) {
            continue;
        }

        OP(put, (void *) k.m.ids, ids, (size_t) n_rows[i] * n_active * 4);
        k.m.n_rows = n_rows[i];

        double s = measure(n_rows[i], n_sets, call_moe, &k);
        double weights = (t == DTYPE_FP8 ? 3 * 2112 / 2048.0 : 6) * dim
                         * ((double) width * n + shared);

        snprintf(name, sizeof(name), "cuda.moe%s_%s.%u", dtype_name(t), what,
                 n_rows[i]);
        say(name, s, weights + 8.0 * n_rows[i] * dim,
            6.0 * n_rows[i] * dim * ((double) width * n_active + shared));
    }

    for (uint32_t i = 0; i < n_sets; i++) {
        drop(&k.gate[i]);
        drop(&k.up[i]);
        drop(&k.down[i]);
    }

    OP(free, k.m.tmp_gate.data, 0);
    OP(free, k.m.tmp_down.data, 0);
    free(ids);
}


struct attend_bench {
    struct mla      mla;
    struct gqa      gqa;        /* n_kv_heads 0: mla */
    struct kv_store kv;
};


/* Another layer's keys each time. */
static void
call_attend(void *ctx, uint32_t i)
{
    struct attend_bench *k = (struct attend_bench *) ctx;

    k->gqa.layer = k->mla.layer = i;

    if (k->gqa.n_kv_heads != 0) {
        b->ops->gqa(b, &k->gqa);

    } else {
        b->ops->mla(b, &k->mla);
    }
}


static void
fill_keys(struct kv_store *kv)
{
    size_t n = (size_t) kv->n_pages * kv->n_layers * BACKEND_PAGE_TOK
               * kv->row;
    uint16_t *host = (uint16_t *) malloc(1 << 20);

    for (size_t i = 0; i < 1 << 19; i++) {
        uint32_t u;

        memcpy(&u, &noise[i % NOISE], 4);
        host[i] = (uint16_t) (u >> 16);
    }

    for (size_t at = 0; at < n; at += 1 << 19) {
        OP(put, (uint16_t *) kv->data + at, host,
           (n - at < 1 << 19 ? n - at : 1 << 19) * 2);
    }

    free(host);
}


/* n_seqs sequences, the last n_query tokens of each: of latents with 16 heads,
 * and with 128 of one token, bound by memory; with 128 of two, by wgmma; or
 * with n_kv_heads of 128 columns.  The bytes are keys' and values' alone. */
static void
bench_attend(uint32_t n_heads, uint32_t n_kv_heads, const uint32_t (&what)[3])
{
    struct attend_bench k;
    uint32_t  n_seqs = what[0], n_query = what[1], n_ctx = what[2];
    uint32_t  row = n_kv_heads != 0 ? 2 * n_kv_heads * 128 : 576;
    uint32_t  per = (n_ctx + 63) / 64, n_tok = n_seqs * n_query;
    uint32_t  head = n_kv_heads != 0 ? 128 : row;
    double    n_bytes = 2.0 * row * n_seqs * n_ctx;
    double    cols = n_kv_heads != 0 ? 2 * head : row + 512;
    uint32_t  n_layers = (uint32_t) ((double) CYCLE_BYTES / n_bytes);
    uint32_t *pages = (uint32_t *) malloc((size_t) n_seqs * per * 4);
    char      name[64], kind[32];

    n_layers = n_layers < 1 ? 1 : n_layers > 32 ? 32 : n_layers;
    memset(&k, 0, sizeof(k));
    k.kv.dtype = DTYPE_BF16;
    k.kv.n_pages = n_seqs * per;
    k.kv.n_layers = n_layers;
    k.kv.row = row;
    k.kv.data = take((size_t) k.kv.n_pages * n_layers * 64 * row * 2);
    fill_keys(&k.kv);

    for (uint32_t i = 0; i < n_seqs * per; i++) {
        pages[i] = i % per * n_seqs + i / per;
    }

    for (uint32_t t = 0; t < n_tok; t++) {
        tok.pos[t] = n_ctx - n_query + t % n_query;
        tok.pages[t] = pages + (size_t) (t / n_query) * per;
    }

    k.gqa.y = k.mla.y = rows(n_tok, n_heads * head);
    k.gqa.q = k.mla.q = rows(n_tok, n_heads * head);
    k.gqa.kv = k.mla.kv = &k.kv;
    k.gqa.n_heads = k.mla.n_heads = n_heads;
    k.gqa.scale = k.mla.scale = 0.07f;
    k.gqa.n_kv_heads = n_kv_heads;
    k.gqa.head = head;
    k.mla.n_latent = 512;

    double s = measure(n_tok, n_layers, call_attend, &k);

    snprintf(kind, sizeof(kind), n_kv_heads != 0 ? "gqa_%u_%u" : "mla_%u",
             n_heads, n_kv_heads);
    snprintf(name, sizeof(name), "cuda.%s.%ux%ux%u", kind, n_seqs, n_query,
             n_ctx);
    say(name, s, n_bytes,
        2.0 * n_tok * (n_ctx - n_query / 2.0) * n_heads * cols);
    OP(free, k.kv.data, 0);
    OP(free, k.mla.y.data, 0);
    OP(free, k.mla.q.data, 0);
    free(pages);

    for (uint32_t t = 0; t < n_tok; t++) {
        tok.pos[t] = 0;
    }
}


/* What a layer has between its products and attention, in the shape of Qwen3's
 * 30B: rmsnorm, rmsnorm, rope, kv_put, rope. */
struct qkv_bench {
    struct kv_store kv;
    struct tensor   x;          /* keys before the norm */
    struct rope     q;
    struct rope     k;
    float          *norm;
    uint32_t        n_tok;
};


static void
call_qkv(void *ctx, uint32_t i)
{
    struct qkv_bench *k = (struct qkv_bench *) ctx;
    struct tensor     q = { k->q.x.data, k->q.n }, x = { k->x.data, k->q.n };

    OP(rmsnorm, q, q, k->norm, 1e-6f, k->n_tok * k->q.n_heads, k->q.n);
    OP(rmsnorm, x, x, k->norm, 1e-6f, k->n_tok * k->k.n_heads, k->k.n);
    b->ops->rope(b, &k->k);
    b->ops->kv_put(b, &k->kv, i, k->k.y, k->kv.row);
    b->ops->rope(b, &k->q);
}


static void
bench_qkv(uint32_t n_tok)
{
    static uint32_t  pages[ROWS_MAX / 64];
    const uint32_t   n = 128, n_q = 32, n_kv = 4, row = 2 * n_kv * n;
    struct qkv_bench k;
    char             name[64];

    for (uint32_t t = 0; t < n_tok; t++) {
        pages[t / 64] = t / 64;
        tok.pos[t] = t;
        tok.pages[t] = pages;
    }

    memset(&k, 0, sizeof(k));
    k.kv = { NULL, DTYPE_BF16, ROWS_MAX / 64, 8, row };
    k.kv.data = take((size_t) ROWS_MAX * 8 * row * 2);
    k.x = rows(n_tok, n_kv * n);
    k.norm = rows(1, n).data;
    k.n_tok = n_tok;
    k.q.x = k.q.y = rows(n_tok, n_q * n);
    k.q.angles = rows(n_tok, n);
    k.q.x_head = k.q.y_head = k.q.n = n;
    k.q.n_heads = n_q;
    k.k = k.q;
    k.k.x = k.x;
    k.k.y = rows(n_tok, row);
    k.k.n_heads = n_kv;

    double s = measure(n_tok, 8, call_qkv, &k);

    snprintf(name, sizeof(name), "cuda.qkv_32_4.%u", n_tok);
    say(name, s, (8.0 * n_q + 12.0 * n_kv + 4) * n * n_tok,
        10.0 * (n_q + n_kv) * n * n_tok);
    OP(free, k.kv.data, 0);
    OP(free, k.x.data, 0);
    OP(free, k.norm, 0);
    OP(free, k.q.x.data, 0);
    OP(free, k.q.angles.data, 0);
    OP(free, k.k.y.data, 0);

    for (uint32_t t = 0; t < n_tok; t++) {
        tok.pos[t] = 0;
    }
}


/* A prompt's attention, of V2-Lite's shape: heads, rope, mla, heads. */
struct prompt_bench {
    struct heads  uk;
    struct rope   rope;
    struct mla    mla;
    struct heads  uv;
};


static void
call_prompt(void *ctx, uint32_t i)
{
    struct prompt_bench *k = (struct prompt_bench *) ctx;

    (void) i;
    b->ops->heads(b, &k->uk);
    b->ops->rope(b, &k->rope);
    b->ops->mla(b, &k->mla);
    b->ops->heads(b, &k->uv);
}


static void
bench_prompt(uint32_t n_tok)
{
    static uint32_t     pages[ROWS_MAX / 64];
    const uint32_t      h = 16, row = 576, lora = 512, nope = 128, rope = 64;
    struct weight       uk = weight(DTYPE_BF16, h, lora, nope);
    struct weight       uv = weight(DTYPE_BF16, h, nope, lora);
    struct kv_store     kv = { NULL, DTYPE_BF16, ROWS_MAX / 64, 1, row };
    struct prompt_bench k;
    char                name[64];

    kv.data = take((size_t) ROWS_MAX * row * 2);
    fill_keys(&kv);

    for (uint32_t t = 0; t < n_tok; t++) {
        pages[t / 64] = t / 64;
        tok.pos[t] = t;
        tok.pages[t] = pages;
    }

    memset(&k, 0, sizeof(k));
    k.uk.x = rows(n_tok, h * (nope + rope));
    k.uk.y = rows(n_tok, h * row);
    k.uk.x_head = nope + rope;
    k.uk.y_head = row;
    k.uk.w = &uk;
    k.uk.n_rows = n_tok;
    k.rope.x = tensor_from(k.uk.x, nope);
    k.rope.y = tensor_from(k.uk.y, lora);
    k.rope.x_head = nope + rope;
    k.rope.y_head = row;
    k.rope.angles = rows(n_tok, rope);
    k.rope.n_heads = h;
    k.rope.n = rope;
    k.rope.interleaved = 1;
    k.mla.q = k.uk.y;
    k.mla.y = rows(n_tok, h * row);
    k.mla.kv = &kv;
    k.mla.n_heads = h;
    k.mla.n_latent = lora;
    k.mla.scale = 0.07f;
    k.uv.x = k.mla.y;
    k.uv.y = rows(n_tok, h * nope);
    k.uv.x_head = row;
    k.uv.y_head = nope;
    k.uv.w = &uv;
    k.uv.n_rows = n_tok;

    double s = measure(n_tok, 1, call_prompt, &k);

    /* What has to be computed: half of the keys, 192 and 128 columns of each;
     * and keys and values of the latents. */
    snprintf(name, sizeof(name), "cuda.prompt_16.%u", n_tok);
    say(name, s, 0, (double) n_tok * n_tok * h * (nope + rope + nope)
        + 4.0 * n_tok * h * lora * nope);
    OP(free, kv.data, 0);
    OP(free, k.uk.x.data, 0);
    OP(free, k.uk.y.data, 0);
    OP(free, k.rope.angles.data, 0);
    OP(free, k.mla.y.data, 0);
    OP(free, k.uv.y.data, 0);
    drop(&uk);
    drop(&uv);

    for (uint32_t t = 0; t < n_tok; t++) {
        tok.pos[t] = 0;
    }
}


/* Choosing tokens among V2-Lite's ids; with the host's waiting. */
static void
bench_sample(uint32_t n_rows, float top_p)
{
    static struct sample how[256];
    struct tensor        x = rows(n_rows, 102400);
    uint64_t             start = 0;
    int                  n = 0;

    for (uint32_t r = 0; r < n_rows; r++) {
        struct sample one = { top_p > 0 ? 30.0f : 0, -INFINITY, top_p, 0, r,
                              r, 0 };

        how[r] = one;
    }

    for (; n < 110; n++) {
        start = n == 10 ? clock_us() : start;
        OP(sample, x, how, n_rows, 102400);
        b->ops->chosen(b);
    }

    double s = (double) (clock_us() - start) / 1e6 / 100;

    printf("bench cuda.sample_%s.%u %.4g us\n", top_p > 0 ? "top_p"
           : "greedy", n_rows, s * 1e6);
    printf("| cuda.sample_%s.%-18u %9.2f us\n", top_p > 0 ? "top_p"
           : "greedy", n_rows, s * 1e6);
    OP(free, x.data, 0);
}


int
main(int argc, char **argv)
{
    static const uint32_t shapes[][2] = {
        { 3072, 2048 }, { 576, 2048 }, { 2048, 2048 }, { 10944, 2048 },
        { 2048, 10944 }, { 102400, 2048 }
    };
    static const uint32_t contexts[][3] = {
        { 1, 1, 1024 }, { 1, 1, 8192 }, { 1, 1, 32768 }, { 8, 1, 8192 },
        { 64, 1, 1024 }, { 64, 1, 8192 }, { 256, 1, 1024 }, { 64, 2, 8192 },
        { 132, 1, 4096 }, { 132, 2, 4096 }
    };
    static const uint32_t prompts[][3] = {
        { 1, 64, 8192 }, { 1, 256, 8192 }, { 1, 2048, 2048 }, { 1, 8192, 8192 }
    };
    static const uint32_t page0[ROWS_MAX / 64] = { 0 };
    struct err            e;

    if (getenv("SECONDS") != NULL) {
        seconds = strtod(getenv("SECONDS"), NULL);
    }

    if (getenv("PRODUCT_TFLOP_S") != NULL) {
        product_rate = strtod(getenv("PRODUCT_TFLOP_S"), NULL) * 1e12;
    }

    if (argc > 1 && strcmp(argv[1], "copy") == 0) {
        measure_copy();
        return 0;
    }

    suffix = argc > 1 ? strchr(argv[1], ':') : "";
    suffix = suffix != NULL ? suffix : "";
    rows_min = argc > 2 ? (uint32_t) strtoul(argv[2], NULL, 10) : 0;
    b = backend_open(argc > 1 ? argv[1] : "cuda", 0, 0, &e);

    if (b == NULL) {
        printf("SKIP: %s\n", e.text);
        return 0;
    }

    noise = (float *) malloc((NOISE + 64) * sizeof(float));

    for (uint32_t i = 0, x = 1; i < NOISE + 64; i++) {
        x = x * 1664525 + 1013904223;
        noise[i] = ((float) (x >> 8) / (1 << 23) - 1) * 0.05f;
    }

    for (uint32_t t = 0; t < ROWS_MAX; t++) {
        tok.pages[t] = page0;
    }

    printf("| %s\n", b->kernels);
    measure_copy();

    for (size_t i = 0; i < BASE_COUNT(shapes); i++) {
        bench_linear(DTYPE_BF16, shapes[i][0], shapes[i][1]);
    }

    for (size_t i = 0; i < BASE_COUNT(contexts); i++) {
        bench_attend(16, 0, contexts[i]);
        bench_attend(128, 0, contexts[i]);
        bench_attend(32, 4, contexts[i]);
    }

    for (size_t i = 0; i < BASE_COUNT(prompts); i++) {
        bench_attend(32, 4, prompts[i]);
    }

    bench_prompt(2048);
    bench_prompt(8192);

    for (uint32_t n = 1; n <= 64 && rows_min == 0; n *= 64) {
        bench_sample(n, 0);
        bench_sample(n, 0.9f);
    }

    for (uint32_t n = 1; n <= 4096 && rows_min == 0; n = n < 64 ? 64 : n * 4) {
        bench_qkv(n);
    }

    if (rows_min == 0) {
        bench_route("v2_lite", 2048, 64, 6, 1);
        bench_route("v3", 7168, 256, 8, 8);
        bench_mlp(DTYPE_BF16, 2048, 10944);
        bench_mlp(DTYPE_FP8, 2048, 10944);
    }

    bench_linear(DTYPE_FP8, 2048, 2048);
    bench_linear(DTYPE_FP8, 2048, 10944);
    bench_moe("v2_lite", DTYPE_FP8, 2048, 1408, 64, 6, 2816);
    bench_moe("v2_lite", DTYPE_BF16, 2048, 1408, 64, 6, 2816);
    bench_moe("v2_lite_routed", DTYPE_FP8, 2048, 1408, 64, 6, 0);
    bench_moe("v2_lite_routed", DTYPE_BF16, 2048, 1408, 64, 6, 0);
    bench_moe("qwen3_30b", DTYPE_BF16, 2048, 768, 128, 8, 0);

    return 0;
}
