/*
 * ref_attend.c - the truth for attention: softmax(scale q key) value over the
 * pages of one token, in double.  Two passes, for the largest score and for
 * the sums, so that nothing has to be rescaled.
 */
#include "cpu/ref.h"

#include <math.h>


static double
kv_get(const struct kv_store *kv, const uint8_t *row, uint32_t i)
{
    if (kv->dtype == DTYPE_F32) {
        float f;

        memcpy(&f, row + (size_t) i * 4, 4);
        return (double) f;
    }

    uint16_t h;

    memcpy(&h, row + (size_t) i * 2, 2);

    return (double) bf16_to_f32(h);
}


static double
score(const struct attend *a, const float *q, uint32_t j)
{
    const uint8_t *row = kv_row(a->kv, a->pages[j / BACKEND_PAGE_TOK],
                                a->layer, j % BACKEND_PAGE_TOK);
    double         sum = 0;

    for (uint32_t i = 0; i < a->head; i++) {
        sum += (double) q[i] * kv_get(a->kv, row, a->key + i);
    }

    return sum * (double) a->scale;
}


static void
attend_head(const struct attend *a, const float *q, float *y)
{
    double max = -INFINITY, all = 0;

    for (uint32_t j = 0; j <= a->pos; j++) {
        max = fmax(max, score(a, q, j));
    }

    for (uint32_t j = 0; j <= a->pos; j++) {
        all += exp(score(a, q, j) - max);
    }

    /* By columns in pieces, so that the double sums fit a small array. */
    for (uint32_t i0 = 0; i0 < a->n_value; i0 += 64) {
        uint32_t n = a->n_value - i0 < 64 ? a->n_value - i0 : 64;
        double   sum[64] = { 0 };

        for (uint32_t j = 0; j <= a->pos; j++) {
            const uint8_t *row = kv_row(a->kv, a->pages[j / BACKEND_PAGE_TOK],
                                        a->layer, j % BACKEND_PAGE_TOK);
            double         p = exp(score(a, q, j) - max) / all;

            for (uint32_t i = 0; i < n; i++) {
                sum[i] += p * kv_get(a->kv, row, a->value + i0 + i);
            }
        }

        for (uint32_t i = 0; i < n; i++) {
            y[i0 + i] = (float) sum[i];
        }
    }
}


void
ref_attend(const struct attend *a, uint32_t n_heads)
{
    for (uint32_t h = 0; h < n_heads; h++) {
        attend_head(a, a->q + (size_t) h * a->head,
                    a->y + (size_t) h * a->head);
    }
}
