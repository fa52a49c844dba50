/*
 * parse.c - any output cut anywhere: the two channels get the same bytes as
 * when it comes in one piece, and no byte is invented.
 */
#include <stdlib.h>
#include <string.h>

#include "parse.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);


static int
collect(void *ctx, enum parse_channel channel, const char *text, size_t n)
{
    struct buf *b = ctx;

    if (n == 0 || buf_add(&b[channel], text, n) != 0) {
        abort();
    }

    return 0;
}


/* data[0]: the mode; data[1]: the seed of the cuts; the rest: the output. */
int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const char prompt[] = "<think>\n";
    struct buf        whole[2] = { { 0 } };
    struct buf        cut[2] = { { 0 } };
    struct parse      p = { 0 };

    if (n < 2) {
        return 0;
    }

    size_t      n_prompt = (data[0] & 1) != 0 ? sizeof(prompt) - 1 : 0;
    int         raw = (data[0] & 2) != 0;
    uint32_t    seed = data[1];
    const char *text = (const char *) data + 2;

    n -= 2;
    parse_begin(&p, prompt, n_prompt, raw);
    parse_text(&p, text, n, collect, whole);
    parse_end(&p, collect, whole);

    parse_begin(&p, prompt, n_prompt, raw);

    for (size_t i = 0; i < n; ) {
        seed = seed * 1664525 + 1013904223;

        size_t k = seed >> 29;

        k = k > n - i ? n - i : k;
        parse_text(&p, text + i, k, collect, cut);
        i += k;
    }

    parse_end(&p, collect, cut);

    if (whole[0].n + whole[1].n > n) {
        abort();
    }

    for (int c = 0; c < 2; c++) {
        if (whole[c].n != cut[c].n
            || (cut[c].n != 0
                && memcmp(whole[c].p, cut[c].p, cut[c].n) != 0))
        {
            abort();
        }

        buf_free(&whole[c]);
        buf_free(&cut[c]);
    }

    return 0;
}
