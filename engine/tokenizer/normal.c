/*
 * normal.c - see normal.h.  Steps write to one of two buffers in turn.
 */
#include "tokenizer/normal.h"
#include "unicode/unicode.h"

#include <stdlib.h>
#include <string.h>

/* A text may become so many times longer, and this much besides.  NFKD makes
 * 11 bytes of one, a space becomes three; but steps multiply, and a file could
 * make any amount of a letter. */
#define GROWTH          64
#define GROWTH_BYTES    65536


static int
replace_matches(const struct normal_step *s, struct pattern_iter *it,
                struct slice in, struct buf *out, struct err *e)
{
    size_t from, to, done = 0;
    int    rc;

    while ((rc = pattern_next(it, &from, &to, e)) == 1) {
        if (buf_add(out, in.p + done, from - done) != 0
            || buf_add(out, s->text, s->n) != 0)
        {
            return err_set(e, "no memory for %zu bytes of text", in.n);
        }

        done = to;
    }

    if (rc != 0) {
        return -1;
    }

    return buf_add(out, in.p + done, in.n - done) == 0
           ? 0 : err_set(e, "no memory for %zu bytes of text", in.n);
}


static int
replace(const struct normal_step *s, struct pattern_work *w, struct slice in,
        struct buf *out, struct err *e)
{
    struct pattern_iter it;

    int rc = pattern_start(&it, s->pattern, w, in.p, in.n) == 0
             ? replace_matches(s, &it, in, out, e)
             : err_set(e, "no memory for %zu bytes of text", in.n);

    pattern_stop(&it);

    return rc;
}


static struct slice
strip(const struct normal_step *s, struct slice in)
{
    uint32_t cp;

    while (s->left && in.n > 0) {
        int len = unicode_decode(in.p, in.n, &cp);

        if (len <= 0 || !unicode_is_space(cp)) {
            break;
        }

        in.p += len;
        in.n -= (size_t) len;
    }

    while (s->right && in.n > 0) {
        size_t i = in.n - 1;

        while (i > 0 && (in.p[i] & 0xc0) == 0x80) {
            i--;
        }

        if (unicode_decode(in.p + i, in.n - i, &cp) <= 0
            || !unicode_is_space(cp))
        {
            break;
        }

        in.n = i;
    }

    return in;
}


/* 0: the result is in out; 1: it is *in, perhaps shortened; -1: error. */
static int
step(const struct normal_step *s, struct pattern_work *w, struct slice *in,
     struct buf *out, struct err *e)
{
    int rc = -1;

    switch (s->kind) {

    case NORMAL_REPLACE:
        return replace(s, w, *in, out, e);

    case NORMAL_STRIP:
        *in = strip(s, *in);
        return 1;

    case NORMAL_PREPEND:
        rc = buf_add(out, s->text, s->n) | buf_add(out, in->p, in->n);
        break;

    case NORMAL_LOWERCASE:
        rc = unicode_lower(in->p, in->n, out);
        break;

    default:
        rc = unicode_form(in->p, in->n,
                          s->kind == NORMAL_NFC || s->kind == NORMAL_NFKC,
                          s->kind == NORMAL_NFKC || s->kind == NORMAL_NFKD,
                          out);
    }

    return rc == 0 ? 0 : err_set(e, "no memory for %zu bytes of text", in->n);
}


int
normal_run(const struct normal *t, struct pattern_work *w, struct buf two[2],
           struct slice in, struct slice *out, struct err *e)
{
    int    which = 0;
    size_t max;

    if (size_mul(in.n, GROWTH, &max) != 0
        || size_add(max, GROWTH_BYTES, &max) != 0)
    {
        return err_set(e, "normalizer: text of %zu bytes", in.n);
    }

    for (int i = 0; i < t->n && in.n > 0; i++) {
        struct buf *b = &two[which];

        buf_reset(b);
        b->cap_max = b->cap > max ? b->cap : max;

        int rc = step(&t->steps[i], w, &in, b, e);

        if (rc < 0) {
            return err_prefix(e, "normalizer, at most %zu bytes", max);
        }

        if (rc == 0) {
            in = (struct slice) { b->p, b->n };
            which = !which;
        }
    }

    *out = in;

    return 0;
}


void
normal_free(struct normal *t)
{
    for (int i = 0; i < t->n; i++) {
        pattern_free(t->steps[i].pattern);
        free(t->steps[i].text);
    }

    memset(t, 0, sizeof(*t));
}
