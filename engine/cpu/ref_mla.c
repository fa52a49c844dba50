/*
 * ref_mla.c - the truth for latent attention: softmax(scale q kv) kv over the
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
score(const struct mla *a, const float *q, const uint32_t *pages, uint32_t j)
{
    const uint8_t *row = kv_row(a->kv, pages[j / BACKEND_PAGE_TOK], a->layer,
                                j % BACKEND_PAGE_TOK);
    double         sum = 0;

    for (uint32_t i = 0; i < a->kv->row; i++) {
        sum += (double) q[i] * kv_get(a->kv, row, i);
    }

    return sum * (double) a->scale;
}


static void
mla_head(const struct mla *a, const float *q, const uint32_t *pages,
         uint32_t pos, float *y)
{
    double max = -INFINITY, all = 0;

    for (uint32_t j = 0; j <= pos; j++) {
        max = fmax(max, score(a, q, pages, j));
    }

    for (uint32_t j = 0; j <= pos; j++) {
        all += exp(score(a, q, pages, j) - max);
    }

    /* By columns in pieces, so that the double sums fit a small array. */
    for (uint32_t i0 = 0; i0 < a->n_latent; i0 += 64) {
        uint32_t n = a->n_latent - i0 < 64 ? a->n_latent - i0 : 64;
        double   sum[64] = { 0 };

        for (uint32_t j = 0; j <= pos; j++) {
            const uint8_t *row = kv_row(a->kv, pages[j / BACKEND_PAGE_TOK],
                                        a->layer, j % BACKEND_PAGE_TOK);
            double         p = exp(score(a, q, pages, j) - max) / all;

            for (uint32_t i = 0; i < n; i++) {
                sum[i] += p * kv_get(a->kv, row, i0 + i);
            }
        }

        for (uint32_t i = 0; i < n; i++) {
            y[i0 + i] = (float) sum[i];
        }
    }
}


void
ref_mla(const struct mla *a, uint32_t tok, uint32_t pos,
        const uint32_t *pages, uint32_t head0, uint32_t head1)
{
    for (uint32_t h = head0; h < head1; h++) {
        size_t at = (size_t) h * a->kv->row;

        mla_head(a, a->q.data + a->q.stride * tok + at, pages, pos,
                 a->y.data + a->y.stride * tok + at);
    }
}
