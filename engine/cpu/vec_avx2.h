/*
 * vec_avx2.h - one vector of 8 FP32 lanes for the fast_*.h kernels: AVX2, FMA.
 */
#ifndef MOE_CPU_VEC_H
#define MOE_CPU_VEC_H

#include <immintrin.h>

#include "cpu/cpu.h"

#define VEC_N           8
#define VEC_REGS        16
#define VEC_NAME        "avx2"
#define VEC_KERNELS     kernels_avx2

typedef __m256 vec;

static inline vec vec_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void vec_store(float *p, vec v) { _mm256_storeu_ps(p, v); }
static inline vec vec_set(float f) { return _mm256_set1_ps(f); }
static inline vec vec_add(vec a, vec b) { return _mm256_add_ps(a, b); }
static inline vec vec_sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
static inline vec vec_mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
static inline vec vec_div(vec a, vec b) { return _mm256_div_ps(a, b); }
static inline vec vec_max(vec a, vec b) { return _mm256_max_ps(a, b); }
static inline vec vec_min(vec a, vec b) { return _mm256_min_ps(a, b); }

/* a * b + c, rounded once */
static inline vec vec_fma(vec a, vec b, vec c)
{
    return _mm256_fmadd_ps(a, b, c);
}

static inline __m256i vec_mask(unsigned n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int) n),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* The first n lanes; the others are 0, or not stored. */
static inline vec vec_load_n(const float *p, unsigned n)
{
    return _mm256_maskload_ps(p, vec_mask(n));
}

static inline void vec_store_n(float *p, vec v, unsigned n)
{
    _mm256_maskstore_ps(p, vec_mask(n), v);
}

static inline vec vec_load_bf16(const uint16_t *p)
{
    __m128i h = _mm_loadu_si128((const __m128i *) (const void *) p);

    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h),
                                                 16));
}

/* VEC_N pairs of bf16: the first of each, the second of each. */
static inline void vec_load_pairs(const uint8_t *p, vec *even, vec *odd)
{
    __m256i h = _mm256_loadu_si256((const __m256i *) (const void *) p);

    *even = _mm256_castsi256_ps(_mm256_slli_epi32(h, 16));
    *odd = _mm256_castsi256_ps(
               _mm256_and_si256(h, _mm256_set1_epi32((int) 0xffff0000)));
}

static inline vec vec_cross(vec v)
{
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(v), 0xd8));
}

/* A step of tight weights (tight.h), given the tile's head, as BF16. */
static inline void vec_expand(uint8_t *to, const uint8_t *step,
                              const uint8_t *head)
{
    __m256i table = _mm256_broadcastsi128_si256(
                        _mm_loadu_si128((const __m128i *) (const void *)
                                        head));
    __m256i half = _mm256_set1_epi8(15);

    for (int v = 0; v < 64; v += 32) {
        __m256i codes = _mm256_loadu_si256((const __m256i *) (const void *)
                                           (step + 128 + v));

        for (int i = 0; i < 2; i++) {
            __m256i lower = _mm256_loadu_si256((const __m256i *)
                                (const void *) (step + i * 64 + v));
            __m256i upper = _mm256_shuffle_epi8(
                                table, _mm256_and_si256(codes, half));
            void   *at = to + i * 128 + v;

            _mm256_storeu_si256(at, _mm256_unpacklo_epi8(lower, upper));
            at = to + i * 128 + 64 + v;
            _mm256_storeu_si256(at, _mm256_unpackhi_epi8(lower, upper));
            codes = _mm256_srli_epi16(codes, 4);
        }
    }
}

/* The even numbers of a and b in a row, and the odd; and back. */
static inline void vec_split(vec a, vec b, vec *even, vec *odd)
{
    *even = vec_cross(_mm256_shuffle_ps(a, b, 0x88));
    *odd = vec_cross(_mm256_shuffle_ps(a, b, 0xdd));
}

static inline void vec_join(vec even, vec odd, vec *a, vec *b)
{
    vec low = _mm256_unpacklo_ps(even, odd);
    vec high = _mm256_unpackhi_ps(even, odd);

    *a = _mm256_permute2f128_ps(low, high, 0x20);
    *b = _mm256_permute2f128_ps(low, high, 0x31);
}

/* Always in the same order: halves are added until one lane is left. */
static inline float vec_sum(vec v)
{
    __m128 a = _mm_add_ps(_mm256_castps256_ps128(v),
                          _mm256_extractf128_ps(v, 1));

    a = _mm_add_ps(a, _mm_movehl_ps(a, a));

    return _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)));
}

/* The sums of the lanes of four vectors, to four floats. */
static inline void vec_sum4(float *to, vec a, vec b, vec c, vec d)
{
    __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));

    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(s),
                                 _mm256_extractf128_ps(s, 1)));
}

static inline float vec_largest(vec v)
{
    __m128 a = _mm_max_ps(_mm256_castps256_ps128(v),
                          _mm256_extractf128_ps(v, 1));

    a = _mm_max_ps(a, _mm_movehl_ps(a, a));

    return _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)));
}

/* 2^n for a whole number n in -126 .. 127 */
static inline vec vec_pow2(vec n)
{
    __m256i i = _mm256_cvtps_epi32(n);

    return _mm256_castsi256_ps(
               _mm256_slli_epi32(_mm256_add_epi32(i, _mm256_set1_epi32(127)),
                                 23));
}

static inline vec vec_round(vec v)
{
    return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

#endif /* MOE_CPU_VEC_H */
