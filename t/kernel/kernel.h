/*
 * kernel.h - what the kernel tests share: backends of this machine, seeded
 * hard inputs, and a comparison that names the first element that is wrong.
 */
#ifndef KERNEL_H
#define KERNEL_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>

#include "engine/backend.h"

/* Not every test uses every one. */
#define HELPER      __attribute__((unused)) static

/* NULL: this machine does not have it, and the test says so and returns;
 * cmocka's skip() says "not ok" too, which prove counts as a failure. */
HELPER struct backend *
open_backend(const char *name, int n_threads)
{
    struct err      e = { "" };
    struct backend *b = backend_open(name, n_threads, 0, &e);

    if (b == NULL) {
        print_message("# SKIP %s\n", e.text);
    }

    return b;
}


HELPER void
close_backend(struct backend *b)
{
    b->ops->close(b);
}


static uint32_t random_state = 1;

HELPER float
uniform(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;

    return (float) (random_state >> 8) / (1 << 23) - 1;
}


enum kind { KIND_PLAIN, KIND_OUTLIERS, KIND_CANCEL, KIND_TINY, KIND_ZEROS,
            KIND_N };

static const char *const kind_names[KIND_N] = {
    "plain", "outliers", "cancel", "tiny", "zeros"
};

/* BF16 numbers, so that rounding the input is no part of the difference. */
HELPER float
to_bf16(float f)
{
    uint32_t u;

    memcpy(&u, &f, 4);
    u &= 0xffff0000;
    memcpy(&f, &u, 4);

    return f;
}


HELPER void
fill(float *x, size_t n, enum kind kind)
{
    for (size_t i = 0; i < n; i++) {
        float v = uniform();

        switch (kind) {
        case KIND_OUTLIERS: v *= i % 61 == 7 ? 1000 : 1; break;
        case KIND_CANCEL:   v = i % 2 ? -x[i - 1] : v + 100; break;
        case KIND_TINY:     v *= 1e-30f; break;
        case KIND_ZEROS:    v = i % 3 ? 0 : -0.0f * v; break;
        default:            break;
        }

        x[i] = to_bf16(v);
    }
}


/* n matrices of rows, FP32, into a new weight. */
HELPER struct weight
weight_make(struct backend *b, enum dtype dtype, uint32_t n, uint32_t n_out,
            uint32_t n_in, const float *rows)
{
    struct weight w = { NULL, dtype, n, n_out, n_in };

    w.data = b->ops->alloc(b, b->ops->weight_bytes(&w) * n);
    assert_non_null(w.data);

    for (uint32_t i = 0; i < n; i++) {
        b->ops->weight_put(b, &w, i, 0, n_out,
                           rows + (size_t) i * n_out * n_in);
    }

    return w;
}


HELPER void
weight_drop(struct backend *b, struct weight *w)
{
    b->ops->free(b, w->data, b->ops->weight_bytes(w) * w->n);
}


/* |got - want| <= tolerance * scale, element by element of (n_rows, n). */
HELPER void
compare(const char *what, const float *got, const float *want,
        const float *scale, size_t n_rows, size_t n, double tolerance)
{
    for (size_t i = 0; i < n_rows * n; i++) {
        double apart = fabs((double) got[i] - (double) want[i]);
        double most = tolerance * (double) scale[i] + 1e-37;

        if (!(apart <= most)) {
            fail_msg("%s: (%zu, %zu): expected %.9g, got %.9g, apart %.2e, "
                     "at most %.2e", what, i / n, i % n, (double) want[i],
                     (double) got[i], apart, most);
        }
    }
}


HELPER void
compare_bits(const char *what, const float *a, const float *b, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (memcmp(&a[i], &b[i], sizeof(float)) != 0) {
            fail_msg("%s: element %zu: %.9g and %.9g differ in bits", what, i,
                     (double) a[i], (double) b[i]);
        }
    }
}

#endif /* KERNEL_H */
