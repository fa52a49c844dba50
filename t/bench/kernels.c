/*
 * kernels.c - what the machine can do at most (probe.h), and what the kernels
 * of the CPU backend do, as a rate and as a share of it: products with one row
 * (bound by memory) and with 512 (bound by arithmetic), of weights that no
 * cache holds; attention of one token to 4096.  Best of many runs.  THREADS
 * and BACKEND are the engine's.
 */
#include <stdio.h>

#include "engine/backend.h"
#include "bench/probe.h"

#define N_OUT       7168
#define N_IN        1280
#define N_MATRICES  64          /* 376 MiB of INT4 */
#define N_ROWS      512

#define HEADS       10
#define LATENT      512
#define ROW         576
#define KEYS        4096
#define LAYERS      8           /* 36 MiB of keys */

static struct probe probe;


static void
line(const char *name, double value, const char *unit)
{
    printf("bench %s %.5g %s\n", name, value, unit);
    fflush(stdout);
}


/* Where y = W x goes by, each time through another matrix. */
struct product {
    struct backend *b;
    struct weight   w;
    float          *x;
    float          *y;
};


static void
product_fill(void *ctx, uint32_t i, int thread)
{
    struct product *p = ctx;
    static float    rows[256][16 * N_IN];
    for (uint32_t k = 0; k < 16 * N_IN; k++) {
        rows[thread % 256][k] = (float) ((i * 31 + k * 7) % 255) / 255 - 0.5f;
    }

    p->b->ops->weight_put(p->b, &p->w, 0, i * 16, 16, rows[thread % 256]);
}


static void
product_open(struct product *p, struct backend *b, enum dtype dtype)
{
    p->b = b;
    p->w = (struct weight) { NULL, dtype, N_MATRICES, N_OUT, N_IN };
    p->w.data = b->ops->alloc(b, b->ops->weight_bytes(&p->w) * N_MATRICES);
    p->x = b->ops->alloc(b, sizeof(float) * N_ROWS * N_IN);
    p->y = b->ops->alloc(b, sizeof(float) * N_ROWS * N_OUT);

    if (p->w.data == NULL || p->x == NULL || p->y == NULL) {
        fprintf(stderr, "bench: no memory\n");
        exit(1);
    }

    for (uint32_t i = 0; i < N_ROWS * N_IN; i++) {
        p->x[i] = (float) (i % 251) / 251 - 0.5f;
    }

    b->ops->each(b, N_OUT / 16, product_fill, p);

    size_t n_bytes = b->ops->weight_bytes(&p->w);

    for (size_t m = 1; m < N_MATRICES; m++) {
        memcpy((uint8_t *) p->w.data + n_bytes * m, p->w.data, n_bytes);
    }
}


static void
product_close(struct product *p)
{
    struct backend *b = p->b;

    b->ops->free(b, p->w.data, b->ops->weight_bytes(&p->w) * N_MATRICES);
    b->ops->free(b, p->x, sizeof(float) * N_ROWS * N_IN);
    b->ops->free(b, p->y, sizeof(float) * N_ROWS * N_OUT);
}


/* Seconds for one matrix by n_rows rows, at best. */
static double
product_time(struct product *p, uint32_t n_rows, int n)
{
    struct weight  w = p->w;
    struct backend *b = p->b;
    size_t         n_bytes = b->ops->weight_bytes(&w);
    uint64_t       best = UINT64_MAX;

    for (int i = 0; i < n; i++) {
        uint64_t start = clock_us();

        for (size_t m = 0; m < N_MATRICES; m++) {
            w.data = (uint8_t *) p->w.data + n_bytes * m;
            b->ops->linear(b, (struct tensor) { p->y, N_OUT },
                           (struct tensor) { p->x, N_IN }, &w, n_rows, 0);
        }

        uint64_t us = clock_us() - start;

        best = us < best ? us : best;
    }

    return (double) best / 1e6 / N_MATRICES;
}


static void
bench_product(struct backend *b, enum dtype dtype, const char *name,
              double read, double peak)
{
    struct product p;
    char           title[64];

    product_open(&p, b, dtype);

    double bytes = (double) b->ops->weight_bytes(&p.w);
    double gbs = bytes / product_time(&p, 1, 8);

    snprintf(title, sizeof(title), "kernel.%s.row_1", name);
    line(title, gbs / 1e9, "GB/s");
    snprintf(title, sizeof(title), "kernel.%s.row_1.share", name);
    line(title, gbs / read, "of_read");
    snprintf(title, sizeof(title), "kernel.%s.rows_16", name);
    line(title, 2.0 * N_OUT * N_IN * 16 / product_time(&p, 16, 4) / 1e9,
         "GFLOP/s");

    double flops = 2.0 * N_OUT * N_IN * N_ROWS
                   / product_time(&p, N_ROWS, 1);

    snprintf(title, sizeof(title), "kernel.%s.rows_512", name);
    line(title, flops / 1e9, "GFLOP/s");

    if (peak > 0) {
        snprintf(title, sizeof(title), "kernel.%s.rows_512.share", name);
        line(title, flops / peak, "of_peak");
    }

    product_close(&p);
}


/* 0 key heads: of latents, else of keys and values of so many heads. */
struct attention {
    const char *name;
    uint32_t    n_heads;
    uint32_t    n_kv_heads;
    uint32_t    head;           /* columns */
    uint32_t    row;
    uint32_t    n_value;
};

static const struct attention attentions[] = {
    { "mla", HEADS, 0, ROW, ROW, LATENT },
    { "gqa", 32, 4, 128, 1024, 128 }    /* Qwen3-30B-A3B's */
};


/* Seconds for one layer's attention of one token, at best. */
static double
attention_time(struct backend *b, const struct attention *k,
               const struct kv_store *kv, float *q, float *y)
{
    static uint32_t pages[KEYS / BACKEND_PAGE_TOK];
    const uint32_t *table = pages;
    uint32_t        id = 0, pos = KEYS - 1;
    uint64_t        best = UINT64_MAX;
    size_t          n = (size_t) k->n_heads * k->head;
    struct mla      mla = {
        .y = { y, n }, .q = { q, n }, .kv = kv, .n_heads = k->n_heads,
        .n_latent = k->n_value, .scale = 0.05f
    };
    struct gqa      gqa = {
        .y = { y, n }, .q = { q, n }, .kv = kv, .n_heads = k->n_heads,
        .n_kv_heads = k->n_kv_heads, .head = k->head, .scale = 0.05f
    };

    for (uint32_t i = 0; i < BASE_COUNT(pages); i++) {
        pages[i] = i;
    }

    b->ops->begin(b, &(struct batch) { 1, &id, &pos, &table, 0 });

    for (int i = 0; i < 20; i++) {
        uint64_t start = clock_us();

        for (uint32_t l = 0; l < LAYERS; l++) {
            mla.layer = gqa.layer = l;

            if (k->n_kv_heads == 0) {
                b->ops->mla(b, &mla);

            } else {
                b->ops->gqa(b, &gqa);
            }
        }

        uint64_t us = clock_us() - start;

        best = us < best ? us : best;
    }

    return (double) best / 1e6 / LAYERS;
}


static void
bench_attention(struct backend *b, const struct attention *k, double peak)
{
    struct kv_store kv = { NULL, DTYPE_BF16, KEYS / BACKEND_PAGE_TOK, LAYERS,
                           k->row };
    size_t          n_keys = (size_t) KEYS * LAYERS * k->row;
    size_t          n = (size_t) k->n_heads * k->head;
    float          *q = b->ops->alloc(b, 2 * sizeof(float) * n);
    char            title[64];

    kv.data = b->ops->alloc(b, n_keys * sizeof(uint16_t));

    if (q == NULL || kv.data == NULL) {
        fprintf(stderr, "bench: no memory\n");
        exit(1);
    }

    for (size_t i = 0; i < n_keys; i++) {
        ((uint16_t *) kv.data)[i] = (uint16_t) (0x3f00 + i * 7 % 251);
    }

    for (size_t i = 0; i < n; i++) {
        q[i] = (float) (i % 251) / 251 - 0.5f;
    }

    double flops = 2.0 * KEYS * k->n_heads * (k->head + k->n_value)
                   / attention_time(b, k, &kv, q, q + n);

    snprintf(title, sizeof(title), "kernel.%s.at_4k", k->name);
    line(title, flops / 1e9, "GFLOP/s");
    snprintf(title, sizeof(title), "kernel.%s.at_4k.share", k->name);
    line(title, flops / peak, "of_f32_peak");
    b->ops->free(b, kv.data, n_keys * sizeof(uint16_t));
    b->ops->free(b, q, 2 * sizeof(float) * n);
}


int
main(void)
{
    struct err  e = { "" };
    const char *threads = getenv("THREADS"), *backend = getenv("BACKEND");
    int         n = threads != NULL ? (int) strtol(threads, NULL, 10) : 0;
    struct pool    *pool = pool_create(n, 0, &e);
    struct backend *b = backend_open(backend ? backend : "cpu", n, 1, &e);

    if (pool == NULL || b == NULL) {
        fprintf(stderr, "bench: %s\n", e.text);
        return 1;
    }

    probe_open(&probe, pool);

    double f32 = probe_f32(&probe), bf16 = probe_bf16(&probe);
    double int8 = probe_int8(&probe), read = probe_read(&probe);

    line("machine.read", read / 1e9, "GB/s");
    line("machine.f32", f32 / 1e9, "GFLOP/s");
    line("machine.bf16", bf16 / 1e9, "GFLOP/s");
    line("machine.int8", int8 / 1e9, "GOP/s");

    for (size_t i = 0; i < BASE_COUNT(attentions); i++) {
        bench_attention(b, &attentions[i], f32);
    }

    bench_product(b, DTYPE_F32, "f32", read, f32);
    bench_product(b, DTYPE_BF16, "bf16", read, bf16 > f32 ? bf16 : f32);
    bench_product(b, DTYPE_TIGHT, "tight", read, bf16 > f32 ? bf16 : f32);
    bench_product(b, DTYPE_INT8, "int8", read, int8 > f32 ? int8 : f32);
    bench_product(b, DTYPE_INT6, "int6", read, int8 > f32 ? int8 : f32);
    bench_product(b, DTYPE_INT4, "int4", read, int8 > f32 ? int8 : f32);

    probe_close(&probe);
    pool_free(pool);
    b->ops->close(b);

    return 0;
}
