/*
 * ref_linear.c - the truth for products with weights: y = W x, in double.
 */
#include "cpu/ref.h"


void
ref_linear(const struct linear *a, uint32_t tile0, uint32_t tile1,
           uint32_t row0, uint32_t row1)
{
    uint32_t end = tile1 * TILE < a->n_out ? tile1 * TILE : a->n_out;

    for (uint32_t r = row0; r < row1; r++) {
        const float *x = a->x
                         + a->x_stride * (a->x_rows ? a->x_rows[r] : r);
        float       *y = a->y + a->y_stride * r;

        for (uint32_t o = tile0 * TILE; o < end; o++) {
            double sum = 0;

            for (uint32_t i = 0; i < a->n_in; i++) {
                sum += (double) tile_get(a->w, a->dtype, a->n_in, o, i)
                       * (double) x[i];
            }

            y[o] = a->add ? (float) ((double) y[o] + sum) : (float) sum;
        }
    }
}
