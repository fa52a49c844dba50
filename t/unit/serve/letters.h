/*
 * letters.h - a tokenizer whose tokens are one letter, instead of the real one:
 * for tests that send ids and look at what becomes of them.
 */
#ifndef MOE_T_LETTERS_H
#define MOE_T_LETTERS_H

#include "tokenizer/tokenizer.h"

struct slice
tokenizer_piece(const struct tokenizer *t, uint32_t id)
{
    (void) t;
    (void) id;

    return (struct slice) { "x", 1 };
}


int
detok_step(struct detok *d, const struct tokenizer *t, uint32_t id,
           int keep_special, struct buf *out)
{
    (void) d;
    (void) t;
    (void) keep_special;

    return buf_addc(out, (char) ('a' + id % 26));
}


int
detok_end(struct detok *d, struct buf *out)
{
    (void) d;
    (void) out;

    return 0;
}


void
tokens_free(struct tokens *t)
{
    free(t->ids);
    memset(t, 0, sizeof(*t));
}


int
tokens_add(struct tokens *t, uint32_t id)
{
    if (t->n == t->cap) {
        t->cap = t->cap * 2 + 16;
        t->ids = realloc(t->ids, t->cap * sizeof(id));
    }

    t->ids[t->n++] = id;

    return 0;
}


int
tokenizer_encode(const struct tokenizer *t, const char *text, size_t n,
                 unsigned flags, struct tokens *out, struct err *e)
{
    (void) t;
    (void) text;
    (void) n;
    (void) flags;
    (void) out;

    return err_set(e, "the test sends ids");
}

#define NO_STRING(name)                                                     \
struct slice                                                                \
name(const struct tokenizer *t)                                             \
{                                                                           \
    (void) t;                                                               \
                                                                            \
    return (struct slice) { NULL, 0 };                                      \
}

NO_STRING(tokenizer_bos)
NO_STRING(tokenizer_eos)
NO_STRING(tokenizer_pad)
NO_STRING(tokenizer_unk)

#endif /* MOE_T_LETTERS_H */
