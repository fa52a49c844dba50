/*
 * tokenizer.c - any bytes as tokenizer.json, as a rank file or as
 * tokenizer_config.json beside a small one: a tokenizer whose ids are within
 * its vocabulary and whose stream is whole characters, or an error of one line.
 */
#include <stdlib.h>
#include <string.h>

#include "fuzz/dir.h"
#include "tokenizer/tokenizer.h"
#include "unicode/unicode.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static const char *const names[] = {
    "tokenizer.json", "qwen.tiktoken", "tiktoken.model",
    "tokenizer_config.json"
};

static const char small[] =
    "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,"
    "\"<0x41>\":3},\"merges\":[\"a b\"],\"byte_fallback\":true},"
    "\"added_tokens\":[{\"id\":4,\"content\":\"<s>\",\"special\":true}]}";

static const char text[] =
    "ab  a\tb<s> b\xc3\xa9\xe6\xbc\xa2 A1234\r\n\xff'll\xf0\x9f\x98\x80<s>";


static void
use(const struct tokenizer *t, struct err *e)
{
    struct tokens ids = { 0 };
    struct buf    out = { 0 };
    struct detok  d = { 0 };

    e->text[0] = '\0';

    if (tokenizer_encode(t, text, sizeof(text) - 1,
                         TOKENIZER_ADDED | TOKENIZER_BOS, &ids, e) != 0
        && e->text[0] == '\0')
    {
        abort();
    }

    for (size_t i = 0; i < ids.n; i++) {
        if (ids.ids[i] >= tokenizer_n_vocab(t)
            || tokenizer_piece(t, ids.ids[i]).p == NULL
            || detok_step(&d, t, ids.ids[i], (int) i & 1, &out) != 0
            || unicode_valid(out.p, out.n) != out.n)
        {
            abort();
        }
    }

    for (uint32_t id = 0; id < tokenizer_n_vocab(t) && id < 300; id++) {
        if (detok_step(&d, t, id, 1, &out) != 0
            || unicode_valid(out.p, out.n) != out.n)
        {
            abort();
        }
    }

    if (detok_end(&d, &out) != 0 || unicode_valid(out.p, out.n) != out.n) {
        abort();
    }

    tokens_free(&ids);
    buf_free(&out);
}


/* data[0] says which file it is. */
int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct err e = { .text = "" };

    if (n < 1) {
        return 0;
    }

    size_t which = data[0] % BASE_COUNT(names);

    for (size_t i = 0; i < BASE_COUNT(names); i++) {
        dir_put(names[i], i == which ? data + 1 : NULL, n - 1, "", 0);
    }

    if (which == 3) {
        dir_put(names[0], small, sizeof(small) - 1, "", 0);
    }

    struct tokenizer *t = tokenizer_load(dir_name(), &e);

    if (t != NULL) {
        use(t, &e);

    } else if (e.text[0] == '\0' || strchr(e.text, '\n') != NULL) {
        abort();
    }

    tokenizer_free(t);

    return 0;
}
