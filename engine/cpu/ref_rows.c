/*
 * ref_rows.c - the truth for what is done to a row at a time, in double.
 */
#include "cpu/ref.h"

#include <math.h>


void
ref_rmsnorm(float *y, const float *x, const float *w, float eps, uint32_t n)
{
    double sum = 0;

    for (uint32_t i = 0; i < n; i++) {
        sum += (double) x[i] * (double) x[i];
    }

    double scale = 1 / sqrt(sum / n + (double) eps);

    for (uint32_t i = 0; i < n; i++) {
        y[i] = (float) ((double) x[i] * scale * (double) w[i]);
    }
}


void
ref_silu_mul(float *y, const float *gate, const float *up, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        double g = (double) gate[i];

        y[i] = (float) (g / (1 + exp(-g)) * (double) up[i]);
    }
}


const struct kernels kernels_ref = {
    "ref", ref_linear, ref_attend, ref_rmsnorm, ref_silu_mul, 0
};
