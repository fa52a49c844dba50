/*
 * pair.h - the CUDA backend (on a GPU, or emulated) beside the reference: the
 * same numbers put into both, and what comes out compared.
 */
#ifndef MOE_T_CUDA_PAIR_H
#define MOE_T_CUDA_PAIR_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/backend.h"

enum { REF, CUDA };

static struct backend *backends[2];
static uint64_t        pair_seed = 1;

/* Memory of both backends; data as floats on the host too. */
struct both {
    void   *at[2];
    size_t  n_bytes;
};

struct rows {
    struct both b;
    uint32_t    n_rows;
    uint32_t    n;
    uint32_t    stride;
    float      *host;           /* (n_rows, stride) */
};


/* In the emulation: kernels launched so far, and how many multiprocessors there
 * are. */
extern unsigned long emu_n_launches __attribute__((weak));
extern int           emu_n_sm __attribute__((weak));

static inline int
is_emulated(void)
{
    return strncmp(backends[CUDA]->kernels, "emulated", 8) == 0;
}


static inline unsigned long
count_launches(void)
{
    return is_emulated() ? emu_n_launches : 0;
}


/* What takes its time, in the emulation (without LONG=1) or under a
 * sanitizer, is left out. */
static inline int
is_small(void)
{
    const char *is_long = getenv("LONG");

    return (is_emulated() && (is_long == NULL || *is_long == '\0'))
           || getenv("MOE_TEST_SMALL") != NULL;
}


static inline uint32_t
draw(uint32_t n)
{
    pair_seed += 0x9e3779b97f4a7c15u;

    uint64_t x = pair_seed;

    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;

    return (uint32_t) ((x ^ x >> 31) >> 32) % n;
}


/* About normal, of variance 1. */
static inline float
draw_float(void)
{
    float sum = 0;

    for (int i = 0; i < 6; i++) {
        sum += (float) draw(1 << 20) / (1 << 20) - 0.5f;
    }

    return sum * 1.4142f;
}


static inline struct both
both_make(size_t n_bytes)
{
    struct both b = { .n_bytes = n_bytes };

    for (int i = 0; i < 2; i++) {
        b.at[i] = backends[i]->ops->alloc(backends[i], n_bytes);
        assert_non_null(b.at[i]);
    }

    return b;
}


static inline void
both_put(const struct both *b, const void *from)
{
    for (int i = 0; i < 2; i++) {
        backends[i]->ops->put(backends[i], b->at[i], from, b->n_bytes);
    }
}


static inline void
both_free(struct both *b)
{
    for (int i = 0; i < 2; i++) {
        backends[i]->ops->free(backends[i], b->at[i], b->n_bytes);
    }
}


static inline struct tensor
tensor_of(const struct rows *r, int i)
{
    return (struct tensor) { r->b.at[i], r->stride };
}


/* Random rows; what is between them is NaN. */
static inline struct rows
rows_make(uint32_t n_rows, uint32_t n, uint32_t stride)
{
    struct rows r = { .n_rows = n_rows, .n = n, .stride = stride };
    size_t      count = (size_t) n_rows * stride;

    r.b = both_make(count * sizeof(float));
    r.host = malloc(count * sizeof(float));
    assert_non_null(r.host);

    for (size_t i = 0; i < count; i++) {
        r.host[i] = i % stride < n ? draw_float() : NAN;
    }

    both_put(&r.b, r.host);

    return r;
}


/* Rows that an op is to write. */
static inline struct rows
rows_poisoned(uint32_t n_rows, uint32_t n, uint32_t stride)
{
    struct rows r = rows_make(n_rows, n, stride);

    for (size_t i = 0; i < (size_t) n_rows * stride; i++) {
        r.host[i] = NAN;
    }

    both_put(&r.b, r.host);

    return r;
}


static inline void
rows_free(struct rows *r)
{
    both_free(&r->b);
    free(r->host);
}


static inline struct weight
weight_shape(enum dtype dtype, uint32_t n, uint32_t n_out, uint32_t n_in)
{
    return (struct weight) { NULL, dtype, n, n_out, n_in };
}


/* A number that e4m3 has, about uniform. */
static inline float
draw_fp8(void)
{
    float m = (float) (8 + draw(8)) / 8;
    int   e = (int) draw(16);

    m = e == 15 ? (float) draw(8) / 8 * 0.015625f : ldexpf(m, e - 6);
    m = m > 448 ? 448 : m;

    return draw(2) ? m : -m;
}


/* Random matrices of variance 1 / n_in in w[REF] and w[CUDA].  The reference
 * has no fp8: it gets as floats what fp8 has exactly, 128 rows and columns to a
 * scale. */
static inline void
weight_make(struct weight w[2], enum dtype dtype, uint32_t n, uint32_t n_out,
            uint32_t n_in)
{
    float *x = malloc((size_t) n_out * n_in * sizeof(float));

    assert_non_null(x);

    for (int i = 0; i < 2; i++) {
        w[i] = weight_shape(i == REF && dtype == DTYPE_FP8 ? DTYPE_F32
                            : dtype, n, n_out, n_in);
        w[i].data = backends[i]->ops->alloc(
            backends[i], n * backends[i]->ops->weight_bytes(&w[i]));
        assert_non_null(w[i].data);
    }

    for (uint32_t m = 0; m < n; m++) {
        for (size_t i = 0; i < (size_t) n_out * n_in; i++) {
            size_t block = i / n_in / 128 * 7 + i % n_in / 128 + m;
            float  scale = 0.001f * (1 + (float) (block * 37 % 101) / 100);

            x[i] = dtype == DTYPE_FP8 ? draw_fp8() * scale
                   : draw_float() / sqrtf((float) n_in);
        }

        for (uint32_t r = 0; r < n_out; r += 16) {
            for (int i = 0; i < 2; i++) {
                backends[i]->ops->weight_put(backends[i], &w[i], m, r,
                                             n_out - r < 16 ? n_out - r : 16,
                                             x + (size_t) r * n_in);
            }
        }
    }

    free(x);
}


static inline void
weight_free(struct weight w[2])
{
    for (int i = 0; i < 2; i++) {
        backends[i]->ops->free(backends[i], w[i].data, w[i].n
                               * backends[i]->ops->weight_bytes(&w[i]));
    }
}


/* The rows of a backend as they are now. */
static inline float *
rows_get(const struct rows *r, int i)
{
    float *x = malloc(r->b.n_bytes);

    assert_non_null(x);
    backends[i]->ops->get(backends[i], x, r->b.at[i], r->b.n_bytes);

    return x;
}


/* |ours - reference| / |reference| is at most `most`, nothing is NaN, and
 * nothing was written between the rows. */
static inline void
rows_compare(const struct rows *r, double most, const char *fmt, ...)
{
    float  *want = rows_get(r, REF), *got = rows_get(r, CUDA);
    double  error = 0, all = 0, worst = -1;
    size_t  at = 0;
    int     bad = 0;
    char    what[256];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(what, sizeof(what), fmt, ap);
    va_end(ap);

    for (size_t i = 0; i < (size_t) r->n_rows * r->stride; i++) {
        double d = (double) got[i] - (double) want[i];

        if (i % r->stride >= r->n) {
            bad |= !isnan(got[i]) ? 2 : 0;
            continue;
        }

        if (isnan(d)) {
            bad |= 1;
            d = INFINITY;
        }

        if (fabs(d) > worst) {
            worst = fabs(d);
            at = i;
        }

        error += d * d;
        all += (double) want[i] * (double) want[i];
    }

    if (bad || !(sqrt(error) <= most * sqrt(all))) {
        fail_msg("%s: apart %.3g of the whole, allowed %.3g%s%s; most at row "
                 "%zu, column %zu: expected %.9g, got %.9g", what,
                 sqrt(error / all), most, bad & 1 ? "; NaN" : "",
                 bad & 2 ? "; wrote between rows" : "", at / r->stride,
                 at % r->stride, (double) want[at], (double) got[at]);
    }

    free(want);
    free(got);
}


#define OP_BF16_MOST    5e-3    /* what rounding x to bf16 may cost */
#define OP_F32_MOST     1e-5
#define OP_FP8_MOST     1e-2    /* where scales are rounded to bf16, too */

static inline double
most_of(enum dtype t)
{
    return t == DTYPE_F32 ? OP_F32_MOST : t == DTYPE_FP8 ? OP_FP8_MOST
           : OP_BF16_MOST;
}


/* What ops of the vtable are called with, once each. */
#define EACH(i)         for (int i = 0; i < 2; i++)
#define OP(i, name, ...)                                                      \
    backends[i]->ops->name(backends[i], __VA_ARGS__)


/* All n tests with both backends; what main() returns. */
static inline int
pair_run(const struct CMUnitTest *tests, size_t n)
{
    const char *name = getenv("MOE_TEST_BACKEND");
    struct err  e;

    cmocka_set_message_output(CM_OUTPUT_TAP);
    backends[REF] = backend_open("cpu:ref", 1, 0, &e);

    if (backends[REF] == NULL) {
        fprintf(stderr, "%s\n", e.text);
        return 1;
    }

    backends[CUDA] = backend_open(name != NULL ? name : "cuda", 2, 0, &e);

    if (backends[CUDA] == NULL) {
        printf("1..0 # SKIP %s\n", e.text);
        return 0;
    }

    int rc = _cmocka_run_group_tests("tests", tests, n, NULL, NULL);

    EACH(i) {
        backends[i]->ops->close(backends[i]);
    }

    return rc;
}


#define TOKENS      1000        /* of a step, at most */

/* A step of one token after the other of one sequence, in pages backwards. */
struct tokens {
    uint32_t        ids[TOKENS];
    uint32_t        pos[TOKENS];
    const uint32_t *pages[TOKENS];
    struct batch    batch;
};


static inline void
begin(struct tokens *t, uint32_t n_tok, uint32_t n_ids)
{
    static const uint32_t none[64];

    for (uint32_t i = 0; i < n_tok; i++) {
        t->ids[i] = draw(n_ids);
        t->pos[i] = i;
        t->pages[i] = none;
    }

    t->batch = (struct batch) { n_tok, t->ids, t->pos, t->pages, 0 };
    EACH(b) {
        OP(b, begin, &t->batch);
    }
}

#endif /* MOE_T_CUDA_PAIR_H */
