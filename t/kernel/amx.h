/*
 * amx.h - what the instructions of AMX do, in C and on any machine, under the
 * names that engine/cpu/?_amx.c call them by, once included: eight registers
 * of 16 rows of 64 bytes.  Sums are FP32, the product of a pair's first columns
 * before that of its second; numbers too small to be normal, which the
 * instruction takes for 0, are not looked for.
 */
#ifndef KERNEL_AMX_H
#define KERNEL_AMX_H

#include <stdint.h>
#include <string.h>

static _Thread_local struct {
    int     n_rows;             /* 0: not configured */
    uint8_t at[8][16][64];
} amx;


static void
amx_config(const uint8_t *c)
{
    uint16_t n_bytes;

    memcpy(&n_bytes, c + 16, 2);
    assert_int_equal(c[0], 1);
    assert_int_equal(n_bytes, 64);
    amx.n_rows = c[48];
    assert_int_equal(amx.n_rows, 16);
}


static void
amx_release(void)
{
    memset(&amx, 0, sizeof(amx));
}


static void
amx_load(int i, const uint8_t *from, size_t stride)
{
    for (int r = 0; r < amx.n_rows; r++) {
        memcpy(amx.at[i][r], from + stride * (size_t) r, 64);
    }
}


static void
amx_store(int i, uint8_t *to, size_t stride)
{
    for (int r = 0; r < amx.n_rows; r++) {
        memcpy(to + stride * (size_t) r, amx.at[i][r], 64);
    }
}


static inline float
amx_number(int i, int r, int k)
{
    uint16_t h;

    memcpy(&h, &amx.at[i][r][k * 2], 2);

    return bf16_to_f32(h);
}


/* sum(m, n) += x(m, 2k) w(k, 2n) + x(m, 2k + 1) w(k, 2n + 1) */
static inline void
amx_dot_bf16(int sum, int x, int w)
{
    for (int m = 0; m < amx.n_rows; m++) {
        for (int n = 0; n < 16; n++) {
            float s;

            memcpy(&s, &amx.at[sum][m][n * 4], 4);

            for (int k = 0; k < 16; k++) {
                s += amx_number(x, m, 2 * k) * amx_number(w, k, 2 * n);
                s += amx_number(x, m, 2 * k + 1)
                     * amx_number(w, k, 2 * n + 1);
            }

            memcpy(&amx.at[sum][m][n * 4], &s, 4);
        }
    }
}

/* sum(m, n) += x(m, 4k + b) w(k, 4n + b), where x has signs and w has none. */
static inline void
amx_dot_bytes(int sum, int x, int w)
{
    for (int m = 0; m < amx.n_rows; m++) {
        for (int n = 0; n < 16; n++) {
            int32_t s;

            memcpy(&s, &amx.at[sum][m][n * 4], 4);

            for (int k = 0; k < 64; k++) {
                s += (int8_t) amx.at[x][m][k]
                     * amx.at[w][k / 4][n * 4 + k % 4];
            }

            memcpy(&amx.at[sum][m][n * 4], &s, 4);
        }
    }
}

/* Columns of a tile of tight weights as pairs of BF16. */
static inline void
amx_expand(uint8_t *to, const uint8_t *tile, uint32_t n_in, uint32_t col,
           uint32_t n_cols)
{
    for (uint32_t c = 0; c < n_cols; c++) {
        for (uint32_t r = 0; r < 16; r++) {
            uint16_t h = tight_get(tile, n_in, r, col + c);

            memcpy(to + (c / 2 * 16 + r) * 4 + c % 2 * 2, &h, 2);
        }
    }
}

#define AMX_CONFIG(c)           amx_config((const uint8_t *) (c))
#define AMX_RELEASE()           amx_release()
#define AMX_LOAD(i, p, n)       amx_load(i, (const uint8_t *) (p), n)
#define AMX_STORE(i, p, n)      amx_store(i, (uint8_t *) (p), n)
#define AMX_ZERO(i)             memset(amx.at[i], 0, sizeof(amx.at[i]))
#define AMX_DOT_BF16(sum, x, w)     amx_dot_bf16(sum, x, w)
#define AMX_DOT_BYTES(sum, x, w)    amx_dot_bytes(sum, x, w)
#define AMX_EXPAND(to, tile, n_in, col, n)                                   \
    amx_expand((uint8_t *) (to), tile, n_in, col, n)

#endif /* KERNEL_AMX_H */
