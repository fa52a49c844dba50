/*
 * quant.c - see quant.h: rounds rows to 8, 6 or 4 bits, and gives values back.
 * Rounding is in SSE2, which every x86-64 has: it is most of the time of a
 * start without a packed image.
 */
#include "cpu/quant.h"

#include <emmintrin.h>
#include <math.h>
#include <string.h>

#include "cpu/cpu.h"

#define INT4_GROUP      32
#define INT4_TRIES      9


/* The least and the largest of n numbers, n a multiple of 4, and of 0. */
static void
range(const float *w, int n, float *least, float *most)
{
    __m128 lo = _mm_setzero_ps(), hi = lo;
    float  los[4], his[4];

    for (int i = 0; i < n; i += 4) {
        lo = _mm_min_ps(lo, _mm_loadu_ps(w + i));
        hi = _mm_max_ps(hi, _mm_loadu_ps(w + i));
    }

    _mm_storeu_ps(los, lo);
    _mm_storeu_ps(his, hi);
    *least = fminf(fminf(los[0], los[1]), fminf(los[2], los[3]));
    *most = fmaxf(fmaxf(his[0], his[1]), fmaxf(his[2], his[3]));
}


/* Four numbers 0 .. 255 as bytes. */
static void
put_bytes(uint8_t *to, __m128i q)
{
    __m128i words = _mm_packs_epi32(q, q);
    int     bytes = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));

    memcpy(to, &bytes, 4);
}


/* The scale by which the largest of a run becomes `steps`, and its inverse. */
static __m128
put_scale(uint8_t *run, uint32_t lane, const float *w, float steps)
{
    float least, most;

    range(w, QUANT_RUN, &least, &most);
    most = -least > most ? -least : most;

    float scale = most / steps;

    memcpy(run + lane * 4, &scale, 4);

    return _mm_set1_ps(most > 1e-36f ? steps / most : 0);
}


static void
put_int8(uint8_t *run, uint32_t lane, const float *w)
{
    __m128 inverse = put_scale(run, lane, w, 127);

    run += 64 + lane * 4;

    for (uint32_t i = 0; i < QUANT_RUN; i += 4) {
        __m128i q = _mm_cvtps_epi32(_mm_mul_ps(_mm_loadu_ps(w + i), inverse));

        put_bytes(run + i / 4 * 64, _mm_add_epi32(q, _mm_set1_epi32(128)));
    }
}


static void
put_int6(uint8_t *run, uint32_t lane, const float *w)
{
    __m128  inverse = put_scale(run, lane, w, 31);
    __m128i zero = _mm_set1_epi32(quant_zero(DTYPE_INT6));
    __m128i low = _mm_set1_epi32(15), q[4];

    run += 64 + lane * 4;

    for (uint32_t i = 0; i < QUANT_RUN; i += 16) {
        __m128i high = _mm_setzero_si128();

        for (uint32_t k = 0; k < 4; k++) {
            q[k] = _mm_add_epi32(_mm_cvtps_epi32(_mm_mul_ps(
                       _mm_loadu_ps(w + i + 4 * k), inverse)), zero);
            high = _mm_or_si128(high, _mm_slli_epi32(
                                    _mm_srli_epi32(q[k], 4), 2 * (int) k));
            q[k] = _mm_and_si128(q[k], low);
        }

        for (uint32_t k = 0; k < 4; k += 2) {
            put_bytes(run + (i + 4 * k) / 8 * 64,
                      _mm_or_si128(q[k], _mm_slli_epi32(q[k + 1], 4)));
        }

        put_bytes(run + (QUANT_RUN / 8 + i / 16) * 64, high);
    }
}


/* The nearest of -8 .. 7. */
static __m128i
int4_round(__m128 w, __m128 inverse)
{
    __m128 q = _mm_mul_ps(w, inverse);

    return _mm_cvtps_epi32(_mm_min_ps(_mm_max_ps(q, _mm_set1_ps(-8)),
                                      _mm_set1_ps(7)));
}


/* What the scale costs; what is large counts more, since it is what sums are
 * made of. */
static float
int4_error(const float *w, float scale)
{
    __m128 scales = _mm_set1_ps(scale), inverse = _mm_set1_ps(1 / scale);
    __m128 sum = _mm_setzero_ps();
    float  sums[4];

    for (int i = 0; i < INT4_GROUP; i += 4) {
        __m128 x = _mm_loadu_ps(w + i);
        __m128 q = _mm_cvtepi32_ps(int4_round(x, inverse));
        __m128 d = _mm_mul_ps(_mm_sub_ps(x, _mm_mul_ps(q, scales)), x);

        sum = _mm_add_ps(sum, _mm_mul_ps(d, d));
    }

    _mm_storeu_ps(sums, sum);

    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}


/* -8 has no +8 beside it, so the largest number gets the -8, by the sign of
 * the scale; a smaller scale clips it but is finer for all others. */
static float
int4_scale(const float *w)
{
    float low, most, best = 0, least = INFINITY;

    range(w, INT4_GROUP, &low, &most);
    most = -low > most ? low : most;

    if (!(fabsf(most) > 1e-36f)) {
        return 0;
    }

    for (int i = 0; i < INT4_TRIES; i++) {
        float scale = bf16_to_f32(bf16_from_f32(
                          most / (-7.2f - 0.15f * (float) i)));
        float error = int4_error(w, scale);

        if (error < least) {
            least = error;
            best = scale;
        }
    }

    return best;
}


static void
put_int4(uint8_t *run, uint32_t lane, uint32_t group, const float *w)
{
    float    scale = int4_scale(w);
    uint16_t h = bf16_from_f32(scale);
    __m128   inverse = _mm_set1_ps(scale != 0 ? 1 / scale : 0);
    __m128i  eight = _mm_set1_epi32(8);

    memcpy(run + (group * 16 + lane) * 2, &h, 2);
    run += 64 + group * 256 + lane * 4;

    for (uint32_t i = 0; i < INT4_GROUP; i += 8) {
        __m128i low = int4_round(_mm_loadu_ps(w + i), inverse);
        __m128i high = int4_round(_mm_loadu_ps(w + i + 4), inverse);

        low = _mm_add_epi32(low, eight);
        high = _mm_slli_epi32(_mm_add_epi32(high, eight), 4);
        put_bytes(run + i / 8 * 64, _mm_or_si128(low, high));
    }
}


void
quant_put(uint8_t *tile, enum dtype t, uint32_t lane, const float *row,
          uint32_t n_in)
{
    for (uint32_t i = 0; i < n_in; i += QUANT_RUN) {
        float        last[QUANT_RUN] = { 0 };
        const float *w = row + i;

        if (n_in - i < QUANT_RUN) {
            memcpy(last, w, (n_in - i) * sizeof(float));
            w = last;
        }

        if (t == DTYPE_INT8) {
            put_int8(tile, lane, w);

        } else if (t == DTYPE_INT6) {
            put_int6(tile, lane, w);

        } else {
            put_int4(tile, lane, 0, w);
            put_int4(tile, lane, 1, w + INT4_GROUP);
        }

        tile += quant_run_bytes(t);
    }
}


float
quant_get(const uint8_t *tile, enum dtype t, uint32_t lane, uint32_t col)
{
    const uint8_t *run = tile + col / QUANT_RUN * quant_run_bytes(t);
    uint32_t       i = col % QUANT_RUN;

    if (t != DTYPE_INT4) {
        const uint8_t *in = run + 64 + lane * 4 + i % 4;
        float          scale;

        memcpy(&scale, run + lane * 4, 4);

        int q = t == DTYPE_INT8
                ? in[i / 4 * 64]
                : (in[i / 8 * 64] >> i % 8 / 4 * 4 & 15)
                  | (in[(QUANT_RUN / 8 + i / 16) * 64]
                     >> i % 16 / 4 * 2 & 3) << 4;

        return (float) (q - quant_zero(t)) * scale;
    }

    uint32_t group = i / INT4_GROUP, at = i % INT4_GROUP;
    uint16_t h;

    memcpy(&h, run + (group * 16 + lane) * 2, 2);

    int q = run[64 + group * 256 + at / 8 * 64 + lane * 4 + at % 4];

    q = at % 8 < 4 ? q & 15 : q >> 4;

    return (float) (q - 8) * bf16_to_f32(h);
}
