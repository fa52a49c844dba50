/*
 * gguf_block.h - a row of FP32 to the blocks of a GGUF file: BF16, Q8_0, Q4_0,
 * Q4_K and Q6_K.  In: a row of whole blocks.  Out: its bytes.  Scales are
 * rounded before the numbers are, so that each number is the nearest that its
 * block can say; nothing is searched for.
 *
 *   Q8_0   32: half d, int8 q              w = d q
 *   Q4_0   32: half d, 16 bytes            w = d (q - 8); byte b is b, b + 16
 *   Q4_K  256: half d, half m, 8 pairs of 6 bits (s, t), 128 bytes
 *              w = d s q - m t, a pair a 32; bytes b of 32 are columns b and
 *              b + 32 of each 64
 *   Q6_K  256: 128 bytes of low halves, 64 of two high bits, 16 int8 s, half d
 *              w = d s (q - 32), an s a 16
 */
#ifndef TOOLS_GGUF_BLOCK_H
#define TOOLS_GGUF_BLOCK_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "engine/cpu/cpu.h"

enum gguf_type {
    GGUF_F32 = 0, GGUF_Q4_0 = 2, GGUF_Q8_0 = 8, GGUF_Q4_K = 12,
    GGUF_Q6_K = 14, GGUF_BF16 = 30
};


/* A number as a half, and what it then is. */
static inline float
gguf_half(uint8_t *to, float f)
{
    _Float16 h = (_Float16) f;

    memcpy(to, &h, 2);

    return (float) h;
}


/* The nearest whole number to w / step between lo and hi. */
static inline int
gguf_round(float w, float step, int lo, int hi)
{
    float q = step != 0 ? rintf(w / step) : 0;

    return q < (float) lo ? lo : q > (float) hi ? hi : (int) q;
}


/* The number furthest from 0, with its sign. */
static inline float
gguf_most(const float *w, int n)
{
    float most = 0;

    for (int i = 0; i < n; i++) {
        most = fabsf(w[i]) > fabsf(most) ? w[i] : most;
    }

    return most;
}


static void
gguf_q8_0(uint8_t *to, const float *w)
{
    float d = gguf_half(to, fabsf(gguf_most(w, 32)) / 127);

    for (int i = 0; i < 32; i++) {
        to[2 + i] = (uint8_t) gguf_round(w[i], d, -127, 127);
    }
}


/* The number furthest from 0 is -8, by the sign of d. */
static void
gguf_q4_0(uint8_t *to, const float *w)
{
    float d = gguf_half(to, gguf_most(w, 32) / -8);

    for (int i = 0; i < 16; i++) {
        to[2 + i] = (uint8_t) ((gguf_round(w[i], d, -8, 7) + 8)
                               | (gguf_round(w[i + 16], d, -8, 7) + 8) << 4);
    }
}


/* Pairs 0 .. 3 have a byte each for s and t, whose two high bits are those of
 * pairs 4 .. 7; the low halves of these share a byte. */
static void
gguf_q4_k_pairs(uint8_t *to, const uint8_t *s, const uint8_t *t)
{
    for (int i = 0; i < 4; i++) {
        to[i] = (uint8_t) (s[i] | s[i + 4] >> 4 << 6);
        to[i + 4] = (uint8_t) (t[i] | t[i + 4] >> 4 << 6);
        to[i + 8] = (uint8_t) ((s[i + 4] & 15) | (t[i + 4] & 15) << 4);
    }
}


static void
gguf_q4_k(uint8_t *to, const float *w)
{
    float   step[8], under[8], most[2] = { 0, 0 };
    uint8_t s[8], t[8], q[256];

    for (int g = 0; g < 8; g++) {
        float least = 0, largest = 0;

        for (int i = 0; i < 32; i++) {
            least = fminf(least, w[g * 32 + i]);
            largest = fmaxf(largest, w[g * 32 + i]);
        }

        step[g] = (largest - least) / 15;
        under[g] = -least;
        most[0] = fmaxf(most[0], step[g]);
        most[1] = fmaxf(most[1], under[g]);
    }

    float d = gguf_half(to, most[0] / 63), m = gguf_half(to + 2, most[1] / 63);

    for (int g = 0; g < 8; g++) {
        s[g] = (uint8_t) gguf_round(step[g], d, 0, 63);
        t[g] = (uint8_t) gguf_round(under[g], m, 0, 63);

        for (int i = 0; i < 32; i++) {
            q[g * 32 + i] = (uint8_t) gguf_round(w[g * 32 + i] + m * t[g],
                                                 d * s[g], 0, 15);
        }
    }

    gguf_q4_k_pairs(to + 4, s, t);

    for (int i = 0; i < 128; i++) {
        const uint8_t *at = q + i / 32 * 64 + i % 32;

        to[16 + i] = (uint8_t) (at[0] | at[32] << 4);
    }
}


static void
gguf_q6_k(uint8_t *to, const float *w)
{
    float   step[16];
    uint8_t q[256];

    for (int g = 0; g < 16; g++) {
        step[g] = gguf_most(w + g * 16, 16) / -32;
    }

    float d = gguf_half(to + 208, gguf_most(step, 16) / -128);

    for (int g = 0; g < 16; g++) {
        int s = gguf_round(step[g], d, -128, 127);

        to[192 + g] = (uint8_t) s;

        for (int i = 0; i < 16; i++) {
            q[g * 16 + i] = (uint8_t) (gguf_round(w[g * 16 + i],
                                                  d * (float) s, -32, 31)
                                       + 32);
        }
    }

    for (int i = 0; i < 128; i++) {
        const uint8_t *at = q + i / 64 * 128 + i % 64;

        to[i] = (uint8_t) ((at[0] & 15) | (at[64] & 15) << 4);
    }

    for (int i = 0; i < 64; i++) {
        const uint8_t *at = q + i / 32 * 128 + i % 32;

        to[128 + i] = (uint8_t) (at[0] >> 4 | at[32] >> 4 << 2
                                 | at[64] >> 4 << 4 | at[96] >> 4 << 6);
    }
}


static void
gguf_bf16(uint8_t *to, const float *w)
{
    uint16_t h = bf16_from_f32(*w);

    memcpy(to, &h, 2);
}


static void
gguf_f32(uint8_t *to, const float *w)
{
    memcpy(to, w, 4);
}


static const struct gguf_block {
    enum gguf_type type;
    uint32_t       n;           /* numbers */
    uint32_t       n_bytes;
    void         (*put)(uint8_t *to, const float *w);
} gguf_blocks[] = {
    { GGUF_F32, 1, 4, gguf_f32 },
    { GGUF_BF16, 1, 2, gguf_bf16 },
    { GGUF_Q8_0, 32, 34, gguf_q8_0 },
    { GGUF_Q4_0, 32, 18, gguf_q4_0 },
    { GGUF_Q4_K, 256, 144, gguf_q4_k },
    { GGUF_Q6_K, 256, 210, gguf_q6_k }
};

static inline const struct gguf_block *
gguf_block(enum gguf_type type)
{
    const struct gguf_block *b = gguf_blocks;

    while (b->type != type) {
        b++;
    }

    return b;
}

#endif /* TOOLS_GGUF_BLOCK_H */
