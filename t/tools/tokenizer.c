/*
 * tokenizer.c - the engine's tokenizer by hand, and against goldens.
 *
 *   tokenizer encode DIR           stdin is text; prints its ids
 *   tokenizer bench DIR FILE       how fast FILE is encoded and decoded
 *   tokenizer check DIR STRINGS GOLDEN
 *
 * STRINGS and GOLDEN are what make_tokenizer_goldens.py wrote, uncompressed.
 * All numbers are LEB128:
 *
 *   STRINGS   n, then n times: length, bytes
 *   GOLDEN    for the first strings: how many, then for each its number of
 *             ids, the ids, then 0 where decoding them gives the string with
 *             U+FFFD for what is not UTF-8, or 1 + length and the bytes that
 *             it gives; then ids to decode: how many rows, then for each its
 *             number of ids, the ids, the length and the bytes
 */
#include "base.h"
#include "tokenizer/tokenizer.h"
#include "unicode/unicode.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FILE_MAX    (256u << 20)


static uint64_t
number(struct slice *s)
{
    uint64_t v = 0;

    for (int shift = 0; s->n > 0 && shift < 63; shift += 7) {
        unsigned char c = (unsigned char) *s->p;

        s->p++;
        s->n--;
        v |= (uint64_t) (c & 0x7f) << shift;

        if (c < 0x80) {
            return v;
        }
    }

    fprintf(stderr, "golden data ends too early\n");
    exit(2);
}


static struct slice
bytes(struct slice *s, uint64_t n)
{
    struct slice r = { s->p, n };

    if (n > s->n) {
        fprintf(stderr, "golden data ends too early\n");
        exit(2);
    }

    s->p += n;
    s->n -= n;

    return r;
}


static void
need(int rc, const struct err *e)
{
    if (rc != 0) {
        fprintf(stderr, "tokenizer: %s\n", e->text);
        exit(2);
    }
}


/* Decodes as a stream does; each piece must be whole characters. */
static int
decode(const struct tokenizer *t, const uint32_t *ids, size_t n,
       struct buf *out)
{
    struct detok d = { 0 };
    size_t       done = 0;
    int          rc = 0;

    buf_reset(out);

    for (size_t i = 0; i < n; i++) {
        rc |= detok_step(&d, t, ids[i], 0, out);
        rc |= unicode_valid(out->p + done, out->n - done) != out->n - done;
        done = out->n;
    }

    return rc | detok_end(&d, out);
}


static void
show(const char *what, size_t i, struct slice text)
{
    printf("# string %zu: %s\n# \"", i, what);

    for (size_t k = 0; k < text.n && k < 200; k++) {
        unsigned char c = (unsigned char) text.p[k];

        printf(c >= 0x20 && c < 0x7f ? "%c" : "\\x%02x", c);
    }

    printf("\"\n");
}


static struct tokens
read_ids(struct slice *golden)
{
    struct tokens t = { 0 };

    for (uint64_t n = number(golden); n > 0; n--) {
        tokens_add(&t, (uint32_t) number(golden));
    }

    return t;
}


static int
check_encode(const struct tokenizer *t, size_t i, struct slice text,
             const struct tokens *want)
{
    struct tokens ids = { 0 };
    struct err    e = { "" };
    size_t        same = 0;

    need(tokenizer_encode(t, text.p, text.n, TOKENIZER_ADDED, &ids, &e), &e);

    while (same < want->n && same < ids.n && want->ids[same] == ids.ids[same])
    {
        same++;
    }

    int bad = same != want->n || same != ids.n;

    if (bad) {
        show("other ids", i, text);
        printf("# id %zu of %zu: expected %" PRId64 ", got %" PRId64 "\n",
               same, want->n, same < want->n ? (int64_t) want->ids[same] : -1,
               same < ids.n ? (int64_t) ids.ids[same] : -1);
    }

    tokens_free(&ids);

    return bad;
}


static int
check_decode(const struct tokenizer *t, size_t i, const struct tokens *ids,
             struct slice want)
{
    struct buf out = { 0 };
    int        bad = decode(t, ids->ids, ids->n, &out) != 0
                     || out.n != want.n
                     || (out.n > 0 && memcmp(out.p, want.p, out.n) != 0);

    if (bad) {
        show("expected this text", i, want);
        show("got this text", i, (struct slice) { out.p, out.n });
    }

    buf_free(&out);

    return bad;
}


static int
check_string(const struct tokenizer *t, size_t i, struct slice text,
             struct slice *golden)
{
    struct tokens want = read_ids(golden);
    uint64_t      other = number(golden);
    struct buf    fixed = { 0 };

    unicode_lossy(text.p, text.n, &fixed);

    struct slice out = { fixed.p, fixed.n };

    if (other != 0) {
        out = bytes(golden, other - 1);
    }

    int bad = check_encode(t, i, text, &want)
              | check_decode(t, i, &want, out);

    buf_free(&fixed);
    tokens_free(&want);

    return bad;
}


static int
check(const struct tokenizer *t, const char *strings, const char *golden)
{
    struct buf a = { 0 }, b = { 0 };
    struct err e;
    size_t     n_bad = 0;

    need(file_read(strings, FILE_MAX, &a, &e), &e);
    need(file_read(golden, FILE_MAX, &b, &e), &e);

    struct slice s = { a.p, a.n }, g = { b.p, b.n };

    number(&s);

    uint64_t n = number(&g);

    for (size_t i = 0; i < n; i++) {
        struct slice text = bytes(&s, number(&s));

        n_bad += (size_t) check_string(t, i, text, &g);
    }

    uint64_t n_row = number(&g);

    for (size_t i = 0; i < n_row; i++) {
        struct tokens ids = read_ids(&g);

        n_bad += (size_t) check_decode(t, n + i, &ids,
                                       bytes(&g, number(&g)));
        tokens_free(&ids);
    }

    printf("%" PRIu64 " strings, %" PRIu64 " rows of ids, %zu bad\n", n, n_row,
           n_bad);
    buf_free(&a);
    buf_free(&b);

    return n_bad != 0;
}


static int
bench(const struct tokenizer *t, const char *path)
{
    struct buf    text = { 0 }, out = { 0 };
    struct tokens ids = { 0 };
    struct err    e;
    uint64_t      best = UINT64_MAX, best_out = UINT64_MAX;

    need(file_read(path, FILE_MAX, &text, &e), &e);

    for (int i = 0; i < 5; i++) {
        uint64_t start = clock_us();

        ids.n = 0;
        need(tokenizer_encode(t, text.p, text.n, TOKENIZER_ADDED, &ids, &e),
             &e);

        uint64_t middle = clock_us();

        decode(t, ids.ids, ids.n, &out);

        uint64_t took = middle - start, took_out = clock_us() - middle;

        best = took < best ? took : best;
        best_out = took_out < best_out ? took_out : best_out;
    }

    printf("%zu bytes, %zu ids: encode %.2f MB/s, decode %.2f MB/s\n", text.n,
           ids.n, (double) text.n / (double) (best + 1),
           (double) text.n / (double) (best_out + 1));

    tokens_free(&ids);
    buf_free(&text);
    buf_free(&out);

    return 0;
}


static int
encode(const struct tokenizer *t)
{
    struct buf    text = { 0 };
    struct tokens ids = { 0 };
    struct err    e;
    char          part[65536];
    ssize_t       n;

    while ((n = read(0, part, sizeof(part))) > 0) {
        buf_add(&text, part, (size_t) n);
    }

    need(tokenizer_encode(t, text.n > 0 ? text.p : "", text.n, TOKENIZER_ADDED,
                          &ids, &e), &e);

    for (size_t i = 0; i < ids.n; i++) {
        printf("%" PRIu32 "%c", ids.ids[i], i + 1 < ids.n ? ' ' : '\n');
    }

    tokens_free(&ids);
    buf_free(&text);

    return 0;
}


int
main(int argc, char **argv)
{
    struct err e;
    int        rc = 2;

    if (argc < 3) {
        fprintf(stderr, "usage: tokenizer encode DIR | bench DIR FILE | "
                "check DIR STRINGS GOLDEN\n");
        return 2;
    }

    uint64_t          start = clock_us();
    struct tokenizer *t = tokenizer_load(argv[2], &e);

    need(t == NULL ? -1 : 0, &e);
    fprintf(stderr, "%s: %" PRIu32 " ids, loaded in %" PRIu64 " ms\n", argv[2],
            tokenizer_n_vocab(t), (clock_us() - start) / 1000);

    if (strcmp(argv[1], "encode") == 0) {
        rc = encode(t);

    } else if (strcmp(argv[1], "bench") == 0 && argc > 3) {
        rc = bench(t, argv[3]);

    } else if (strcmp(argv[1], "check") == 0 && argc > 4) {
        rc = check(t, argv[3], argv[4]);
    }

    tokenizer_free(t);

    return rc;
}
