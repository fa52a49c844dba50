/*
 * vec_avx512.h - one vector of 16 FP32 lanes for the fast_*.h kernels.
 * The compilers' own names, under those that AVX2 has too.
 */
#ifndef MOE_CPU_VEC_H
#define MOE_CPU_VEC_H

#include <immintrin.h>

#include "cpu/cpu.h"

#define VEC_N           16
#define VEC_REGS        32      /* registers */
#define VEC_NAME        "avx512"
#define VEC_KERNELS     kernels_avx512

typedef __m512 vec;

static inline vec vec_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void vec_store(float *p, vec v) { _mm512_storeu_ps(p, v); }
static inline vec vec_set(float f) { return _mm512_set1_ps(f); }
static inline vec vec_add(vec a, vec b) { return _mm512_add_ps(a, b); }
static inline vec vec_sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
static inline vec vec_mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
static inline vec vec_div(vec a, vec b) { return _mm512_div_ps(a, b); }
static inline vec vec_max(vec a, vec b) { return _mm512_max_ps(a, b); }
static inline vec vec_min(vec a, vec b) { return _mm512_min_ps(a, b); }

/* a * b + c, rounded once */
static inline vec vec_fma(vec a, vec b, vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}

/* The first n lanes; the others are 0, or not stored. */
static inline vec vec_load_n(const float *p, unsigned n)
{
    return _mm512_maskz_loadu_ps((__mmask16) ((1u << n) - 1), p);
}

static inline void vec_store_n(float *p, vec v, unsigned n)
{
    _mm512_mask_storeu_ps(p, (__mmask16) ((1u << n) - 1), v);
}

static inline vec vec_load_bf16(const uint16_t *p)
{
    __m256i h = _mm256_loadu_si256((const __m256i *) (const void *) p);

    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h),
                                                 16));
}

/* VEC_N pairs of bf16: the first of each, the second of each. */
static inline void vec_load_pairs(const uint8_t *p, vec *even, vec *odd)
{
    __m512i h = _mm512_loadu_si512(p);

    *even = _mm512_castsi512_ps(_mm512_slli_epi32(h, 16));
    *odd = _mm512_castsi512_ps(
               _mm512_and_si512(h, _mm512_set1_epi32((int) 0xffff0000)));
}

/* The upper bytes that codes of tight weights stand for, by a tile's head. */
static inline __m512i vec_tight_table(const uint8_t *head)
{
    return _mm512_broadcast_i32x4(
               _mm_loadu_si128((const __m128i *) (const void *) head));
}

/* A step of tight weights (tight.h): four pairs of BF16 of 16 rows. */
static inline void vec_tight(__m512i *pairs, const uint8_t *step,
                             __m512i table)
{
    __m512i half = _mm512_set1_epi8(15);
    __m512i codes = _mm512_loadu_si512(step + 128);

    for (int i = 0; i < 2; i++) {
        __m512i lower = _mm512_loadu_si512(step + i * 64);
        __m512i upper = _mm512_shuffle_epi8(table,
                                            _mm512_and_si512(codes, half));

        pairs[2 * i] = _mm512_unpacklo_epi8(lower, upper);
        pairs[2 * i + 1] = _mm512_unpackhi_epi8(lower, upper);
        codes = _mm512_srli_epi16(codes, 4);
    }
}

static inline void vec_expand(uint8_t *to, const uint8_t *step,
                              const uint8_t *head)
{
    __m512i pairs[4];

    vec_tight(pairs, step, vec_tight_table(head));

    for (int i = 0; i < 4; i++) {
        _mm512_storeu_si512(to + i * 64, pairs[i]);
    }
}

/* The even numbers of a and b in a row, and the odd; and back. */
static inline void vec_split(vec a, vec b, vec *even, vec *odd)
{
    const __m512i i = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20,
                                        22, 24, 26, 28, 30);
    const __m512i one = _mm512_set1_epi32(1);

    *even = _mm512_permutex2var_ps(a, i, b);
    *odd = _mm512_permutex2var_ps(a, _mm512_add_epi32(i, one), b);
}

static inline void vec_join(vec even, vec odd, vec *a, vec *b)
{
    const __m512i i = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5,
                                        21, 6, 22, 7, 23);
    const __m512i eight = _mm512_set1_epi32(8);

    *a = _mm512_permutex2var_ps(even, i, odd);
    *b = _mm512_permutex2var_ps(even, _mm512_add_epi32(i, eight), odd);
}

/* Always in the same order: ((l0 + l8) + (l4 + l12)) ... */
static inline float vec_sum(vec v) { return _mm512_reduce_add_ps(v); }

/* The sums of the lanes of four vectors, to four floats. */
static inline void vec_sum4(float *to, vec a, vec b, vec c, vec d)
{
    __m256 x[4] = {
        _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1)),
        _mm256_add_ps(_mm512_castps512_ps256(b), _mm512_extractf32x8_ps(b, 1)),
        _mm256_add_ps(_mm512_castps512_ps256(c), _mm512_extractf32x8_ps(c, 1)),
        _mm256_add_ps(_mm512_castps512_ps256(d), _mm512_extractf32x8_ps(d, 1))
    };
    __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]),
                              _mm256_hadd_ps(x[2], x[3]));

    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(s),
                                 _mm256_extractf128_ps(s, 1)));
}

static inline float vec_largest(vec v) { return _mm512_reduce_max_ps(v); }

/* 2^n for a whole number n in -126 .. 127 */
static inline vec vec_pow2(vec n)
{
    __m512i i = _mm512_cvtps_epi32(n);

    return _mm512_castsi512_ps(
               _mm512_slli_epi32(_mm512_add_epi32(i, _mm512_set1_epi32(127)),
                                 23));
}

static inline vec vec_round(vec v)
{
    return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT
                                   | _MM_FROUND_NO_EXC);
}

#endif /* MOE_CPU_VEC_H */
