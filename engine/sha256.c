/*
 * sha256.c - see sha256.h.  The names of variables are those of the standard.
 */
#include "sha256.h"

#include <string.h>

static const uint32_t K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1,
    0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3,
    0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786,
    0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
    0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13,
    0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
    0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a,
    0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
    0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2
};


static uint32_t
rotr(uint32_t x, int n)
{
    return x >> n | x << (32 - n);
}


static void
schedule(uint32_t W[64], const uint8_t *block)
{
    for (int t = 0; t < 16; t++) {
        const uint8_t *p = block + t * 4;

        W[t] = (uint32_t) p[0] << 24 | (uint32_t) p[1] << 16
               | (uint32_t) p[2] << 8 | p[3];
    }

    for (int t = 16; t < 64; t++) {
        uint32_t s0 = rotr(W[t - 15], 7) ^ rotr(W[t - 15], 18)
                      ^ W[t - 15] >> 3;
        uint32_t s1 = rotr(W[t - 2], 17) ^ rotr(W[t - 2], 19) ^ W[t - 2] >> 10;

        W[t] = W[t - 16] + s0 + W[t - 7] + s1;
    }
}


static void
compress(uint32_t h[8], const uint8_t *block)
{
    uint32_t W[64], v[8];       /* v: a .. h */

    schedule(W, block);
    memcpy(v, h, sizeof(v));

    for (int t = 0; t < 64; t++) {
        uint32_t S1 = rotr(v[4], 6) ^ rotr(v[4], 11) ^ rotr(v[4], 25);
        uint32_t ch = (v[4] & v[5]) ^ (~v[4] & v[6]);
        uint32_t T1 = v[7] + S1 + ch + K[t] + W[t];
        uint32_t S0 = rotr(v[0], 2) ^ rotr(v[0], 13) ^ rotr(v[0], 22);
        uint32_t maj = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);

        memmove(v + 1, v, 7 * sizeof(v[0]));
        v[4] += T1;
        v[0] = T1 + S0 + maj;
    }

    for (int i = 0; i < 8; i++) {
        h[i] += v[i];
    }
}


void
sha256_begin(struct sha256 *s)
{
    static const uint32_t H0[8] = {
        0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19
    };

    memcpy(s->h, H0, sizeof(H0));
    s->n_bytes = 0;
}


void
sha256_add(struct sha256 *s, const void *bytes, size_t n)
{
    const uint8_t *p = bytes;

    while (n > 0) {
        size_t at = s->n_bytes % sizeof(s->block);
        size_t take = sizeof(s->block) - at < n ? sizeof(s->block) - at : n;

        memcpy(s->block + at, p, take);
        s->n_bytes += take;
        p += take;
        n -= take;

        if (at + take == sizeof(s->block)) {
            compress(s->h, s->block);
        }
    }
}


void
sha256_end(struct sha256 *s, uint8_t out[SHA256_BYTES])
{
    static const uint8_t pad[64] = { 0x80 };
    uint64_t             n_bits = s->n_bytes * 8;
    uint8_t              length[8];

    for (int i = 0; i < 8; i++) {
        length[i] = (uint8_t) (n_bits >> (56 - 8 * i));
    }

    /* One bit, zeros up to 8 bytes before the end of a block, the length. */
    sha256_add(s, pad, 1 + (64 + 55 - s->n_bytes % 64) % 64);
    sha256_add(s, length, sizeof(length));

    for (int i = 0; i < 32; i++) {
        out[i] = (uint8_t) (s->h[i / 4] >> (24 - 8 * (i % 4)));
    }
}
