/*
 * quant.c - see quant.h: rounds rows to 8 or 4 bits, and gives values back.
 */
#include "cpu/quant.h"

#include <math.h>
#include <string.h>

#include "cpu/cpu.h"

#define INT4_GROUP      32
#define INT4_TRIES      9


static void
put_int8(uint8_t *run, uint32_t lane, const float *w, uint32_t n)
{
    float most = 0;

    for (uint32_t i = 0; i < n; i++) {
        most = fabsf(w[i]) > most ? fabsf(w[i]) : most;
    }

    float scale = most / 127, inverse = most > 1e-36f ? 127 / most : 0;

    memcpy(run + lane * 4, &scale, 4);
    run += 64;

    for (uint32_t i = 0; i < QUANT_RUN; i++) {
        float q = i < n ? rintf(w[i] * inverse) : 0;

        run[i / 4 * 64 + lane * 4 + i % 4] = (uint8_t) (q + 128);
    }
}


static float
int4_round(float w, float inverse)
{
    float q = rintf(w * inverse);

    return q < -8 ? -8 : q > 7 ? 7 : q;
}


/* What the scale costs; what is large counts more, since it is what sums are
 * made of. */
static float
int4_error(const float *w, uint32_t n, float scale)
{
    float sum = 0, inverse = 1 / scale;

    for (uint32_t i = 0; i < n; i++) {
        float d = w[i] - int4_round(w[i], inverse) * scale;

        sum += d * d * w[i] * w[i];
    }

    return sum;
}


/* -8 has no +8 beside it, so the largest number gets the -8, by the sign of
 * the scale; a smaller scale clips it but is finer for all others. */
static float
int4_scale(const float *w, uint32_t n)
{
    float most = 0, best = 0, least = INFINITY;

    for (uint32_t i = 0; i < n; i++) {
        most = fabsf(w[i]) > fabsf(most) ? w[i] : most;
    }

    if (!(fabsf(most) > 1e-36f)) {
        return 0;
    }

    for (int i = 0; i < INT4_TRIES; i++) {
        float scale = bf16_to_f32(bf16_from_f32(
                          most / (-7.2f - 0.15f * (float) i)));
        float error = int4_error(w, n, scale);

        if (error < least) {
            least = error;
            best = scale;
        }
    }

    return best;
}


static void
put_int4(uint8_t *run, uint32_t lane, uint32_t group, const float *w,
         uint32_t n)
{
    float    scale = int4_scale(w, n), inverse = scale != 0 ? 1 / scale : 0;
    uint16_t h = bf16_from_f32(scale);

    memcpy(run + (group * 16 + lane) * 2, &h, 2);
    run += 64 + group * 256;

    for (uint32_t i = 0; i < INT4_GROUP; i++) {
        float    q = i < n ? int4_round(w[i], inverse) : 0;
        uint8_t *to = run + i / 8 * 64 + lane * 4 + i % 4;
        unsigned v = (unsigned) (int) (q + 8);

        *to = (uint8_t) (i % 8 < 4 ? (*to & 0xf0) | v : (*to & 0x0f) | v << 4);
    }
}


void
quant_put(uint8_t *tile, enum dtype t, uint32_t lane, const float *row,
          uint32_t n_in)
{
    for (uint32_t i = 0; i < n_in; i += QUANT_RUN) {
        uint32_t n = n_in - i < QUANT_RUN ? n_in - i : QUANT_RUN;

        if (t == DTYPE_INT8) {
            put_int8(tile, lane, row + i, n);

        } else {
            uint32_t first = n < INT4_GROUP ? n : INT4_GROUP;

            put_int4(tile, lane, 0, row + i, first);
            put_int4(tile, lane, 1, row + i + first, n - first);
        }

        tile += quant_run_bytes(t);
    }
}


float
quant_get(const uint8_t *tile, enum dtype t, uint32_t lane, uint32_t col)
{
    const uint8_t *run = tile + col / QUANT_RUN * quant_run_bytes(t);
    uint32_t       i = col % QUANT_RUN;

    if (t == DTYPE_INT8) {
        float scale;

        memcpy(&scale, run + lane * 4, 4);

        return (float) (run[64 + i / 4 * 64 + lane * 4 + i % 4] - 128) * scale;
    }

    uint32_t group = i / INT4_GROUP, at = i % INT4_GROUP;
    uint16_t h;

    memcpy(&h, run + (group * 16 + lane) * 2, 2);

    int q = run[64 + group * 256 + at / 8 * 64 + lane * 4 + at % 4];

    q = at % 8 < 4 ? q & 15 : q >> 4;

    return (float) (q - 8) * bf16_to_f32(h);
}
