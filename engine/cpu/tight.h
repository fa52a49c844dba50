/*
 * tight.h - BF16 weights in 12 bits and a little, of which none is lost.
 *
 * The upper byte of a BF16 is its sign and seven bits of its exponent, of which
 * trained weights use few: a tile keeps the eight that are most frequent in it,
 * a weight three bits that say which, its sign, and its lower byte as it is.
 * What has another upper byte is an exception, whose upper byte is in the
 * tile's head; a tile with more exceptions than fit there cannot be kept.
 *
 *   tile   head, then a step to every 8 columns, the last filled up with zeros
 *   head   (16) upper bytes by code; exceptions, in rising order: their place
 *          (column * 16 + row) << 8 | upper byte, the last TIGHT_END
 *   step   (2, 64) lower bytes of four columns each, (64) codes: the low half
 *          of a byte is that of the first four columns, the high half of the
 *          others.  Byte b of lane j (of 16 bytes) is row 4 j + b % 8 / 2 of
 *          column b / 8 * 2 + b % 2
 *
 * so that codes become upper bytes by PSHUFB, and PUNPCKLBW and PUNPCKHBW of
 * lower and upper bytes give the pairs of a tile as cpu.h has them.
 */
#ifndef MOE_CPU_TIGHT_H
#define MOE_CPU_TIGHT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define TIGHT_COLS      8
#define TIGHT_STEP      192             /* bytes of 8 columns */
#define TIGHT_END       0xffffffffu
#define TIGHT_MOST      (1u << 19)      /* columns: places have 24 bits */

static inline uint32_t
tight_steps(uint32_t n_in)
{
    return (n_in + TIGHT_COLS - 1) / TIGHT_COLS;
}

/* Room for 11 exceptions, and 16 more with every 512 columns. */
static inline size_t
tight_head(uint32_t n_in)
{
    return 64 + (size_t) (tight_steps(n_in) / 64) * 64;
}

static inline size_t
tight_bytes(uint32_t n_in)
{
    return tight_head(n_in) + (size_t) tight_steps(n_in) * TIGHT_STEP;
}

/* The i-th exception of a tile. */
static inline uint32_t
tight_exception(const uint8_t *tile, uint32_t i)
{
    uint32_t v;

    memcpy(&v, tile + 16 + (size_t) i * 4, 4);

    return v;
}

/* Columns [col, col + n_cols) have been put to `to` in pairs by their codes:
 * puts right what is an exception. */
static inline void
tight_patch(uint8_t *to, const uint8_t *tile, uint32_t col, uint32_t n_cols)
{
    uint32_t i = 0, v;

    while (tight_exception(tile, i) >> 8 < col * 16) {
        i++;
    }

    while ((v = tight_exception(tile, i++)) >> 8 < (col + n_cols) * 16) {
        uint32_t at = (v >> 8) - col * 16;

        to[at / 32 * 64 + at % 16 * 4 + at / 16 % 2 * 2 + 1] = (uint8_t) v;
    }
}

/* Rounds up to 16 rows to BF16 and keeps them as a tile.  -1: they have too
 * many exceptions. */
int tight_put(uint8_t *tile, const float *rows, uint32_t n_rows,
              uint32_t n_in);

/* The BF16 of an element of a tile. */
uint16_t tight_get(const uint8_t *tile, uint32_t n_in, uint32_t row,
                   uint32_t col);

#endif /* MOE_CPU_TIGHT_H */
