/*
 * tight.c - see tight.h: BF16 weights to tiles of 12 bits, and back.
 */
#include "cpu/tight.h"

#include "cpu/cpu.h"

#define UPPER           128             /* upper bytes without their sign */
#define NO_CODE         0xff


/* How often each upper byte is there.  Four counts side by side, since one
 * would wait for itself. */
static void
count_upper(uint32_t *count, const float *rows, uint32_t n_rows,
            uint32_t n_in)
{
    uint32_t some[4][UPPER] = { { 0 } };
    size_t   n = (size_t) n_rows * n_in;

    for (size_t i = 0; i < n; i++) {
        some[i % 4][bf16_from_f32(rows[i]) >> 8 & 0x7f]++;
    }

    for (int i = 0; i < UPPER; i++) {
        count[i] = some[0][i] + some[1][i] + some[2][i] + some[3][i];
    }

    count[0] += tight_steps(n_in) * TIGHT_COLS * TILE - (uint32_t) n;
}


/* The eight most frequent; of equal ones the least. */
static void
choose_codes(uint8_t *head, uint8_t *codes, uint32_t *count)
{
    memset(codes, NO_CODE, UPPER);

    for (uint8_t code = 0; code < 8; code++) {
        uint8_t most = 0;

        for (uint8_t i = 1; i < UPPER; i++) {
            most = count[i] > count[most] ? i : most;
        }

        /* Where fewer are in use the others stand for 0 again. */
        head[code] = most;
        head[code + 8] = most | 0x80;
        codes[most] = codes[most] == NO_CODE ? code : codes[most];
        count[most] = 0;
    }
}


/* Where an element of a step is: its byte of those of four columns. */
static uint32_t
place_of(uint32_t row, uint32_t col)
{
    return row / 4 * 16 + col / 2 % 2 * 8 + row % 4 * 2 + col % 2;
}


int
tight_put(uint8_t *tile, const float *rows, uint32_t n_rows, uint32_t n_in)
{
    uint32_t count[UPPER], most = (uint32_t) tight_head(n_in) / 4 - 5, n = 0;
    uint8_t  codes[UPPER];
    uint8_t *step = tile + tight_head(n_in);

    if (n_in > TIGHT_MOST) {
        return -1;
    }

    count_upper(count, rows, n_rows, n_in);
    choose_codes(tile, codes, count);
    memset(tile + 16, 0xff, tight_head(n_in) - 16);
    memset(step, 0, (size_t) tight_steps(n_in) * TIGHT_STEP);

    for (uint32_t col = 0; col < tight_steps(n_in) * TIGHT_COLS; col++) {
        uint32_t half = col / 4 % 2;

        for (uint32_t row = 0; row < TILE; row++) {
            uint16_t h = row < n_rows && col < n_in
                         ? bf16_from_f32(rows[(size_t) row * n_in + col]) : 0;
            uint8_t  code = codes[(h >> 8) & 0x7f];
            uint32_t at = place_of(row, col);

            if (code == NO_CODE) {
                uint32_t v = (col * TILE + row) << 8 | h >> 8;

                if (n == most) {
                    return -1;
                }

                memcpy(tile + 16 + (size_t) n++ * 4, &v, 4);
                code = 0;
            }

            step[half * 64 + at] = (uint8_t) h;
            step[128 + at] |= (uint8_t) ((code | (h >> 12 & 8)) << half * 4);
        }

        step += col % TIGHT_COLS == TIGHT_COLS - 1 ? TIGHT_STEP : 0;
    }

    return 0;
}


uint16_t
tight_get(const uint8_t *tile, uint32_t n_in, uint32_t row, uint32_t col)
{
    const uint8_t *step = tile + tight_head(n_in)
                          + (size_t) (col / TIGHT_COLS) * TIGHT_STEP;
    uint32_t       half = col / 4 % 2, at = place_of(row, col);
    uint32_t       here = col * TILE + row, i = 0, v;
    uint8_t        upper = tile[(step[128 + at] >> half * 4) & 15];

    while ((v = tight_exception(tile, i)) >> 8 < here) {
        i++;
    }

    if (v >> 8 == here) {
        upper = (uint8_t) v;
    }

    return (uint16_t) (upper << 8 | step[half * 64 + at]);
}
