/*
 * detok.c - ids back to text, one at a time: detok_* of tokenizer.h.
 *
 * A token is bytes.  A character that it leaves unfinished is held back, at
 * most three bytes of it, until the tokens that follow finish it or show that
 * it can not be finished.
 */
#include "tokenizer/impl.h"
#include "unicode/unicode.h"

#include <string.h>


static int
add_bad(struct detok *d, size_t n_byte, struct buf *out)
{
    for (size_t i = 0; i < (d->per_byte ? n_byte : 1); i++) {
        if (buf_adds(out, UNICODE_BAD_S) != 0) {
            return -1;
        }
    }

    return 0;
}


static int
add_byte(struct detok *d, char c, struct buf *out)
{
    uint32_t cp;

    d->held[d->n_held++] = (uint8_t) c;

    while (d->n_held > 0) {
        const char *p = (const char *) d->held;
        int         len = unicode_decode(p, d->n_held, &cp);

        if (len == 0) {
            return 0;
        }

        size_t used = (size_t) (len > 0 ? len : -len);

        if ((len > 0 ? buf_add(out, p, used) : add_bad(d, used, out)) != 0) {
            return -1;
        }

        d->n_held = (uint8_t) (d->n_held - used);
        memmove(d->held, d->held + used, d->n_held);
    }

    return 0;
}


static int
add_text(struct detok *d, struct slice s, struct buf *out)
{
    for (size_t i = 0; i < s.n; ) {
        if (d->n_held == 0) {
            size_t ok = unicode_valid(s.p + i, s.n - i);

            if (buf_add(out, s.p + i, ok) != 0) {
                return -1;
            }

            i += ok;

            if (i == s.n) {
                break;
            }
        }

        if (add_byte(d, s.p[i++], out) != 0) {
            return -1;
        }
    }

    return 0;
}


/* The Metaspace decoder drops every U+2581 of the first token. */
static int
add_first(struct detok *d, const struct tokenizer *t, uint32_t id,
          struct buf *out)
{
    struct slice s = tokenizer_key(t, id);
    size_t       n = strlen(t->first_drop);

    for (size_t i = 0; i < s.n; ) {
        if (s.n - i >= n && memcmp(s.p + i, t->first_drop, n) == 0) {
            i += n;
            continue;
        }

        if (add_byte(d, s.p[i++], out) != 0) {
            return -1;
        }
    }

    return 0;
}


/* Takes the decoder's Strip off the first characters of all. */
static void
strip(struct detok *d, const struct tokenizer *t, struct buf *out, size_t from)
{
    size_t n = strlen(t->strip);

    while (out->n > from && !d->started) {
        if (d->n_stripped == t->n_strip || out->n - from < n
            || memcmp(out->p + from, t->strip, n) != 0)
        {
            d->started = 1;
            break;
        }

        memmove(out->p + from, out->p + from + n, out->n - from - n + 1);
        out->n -= n;
        d->n_stripped++;
    }
}


int
detok_step(struct detok *d, const struct tokenizer *t, uint32_t id,
           int keep_special, struct buf *out)
{
    if (id >= t->out.n || !(t->kind[id] & TOKEN_KNOWN)
        || ((t->kind[id] & TOKEN_SPECIAL) && !keep_special))
    {
        return 0;
    }

    size_t from = out->n;

    d->per_byte = t->byte_fallback_out;

    if (t->first_drop[0] != '\0' && !d->started) {
        d->started = 1;
        return add_first(d, t, id, out);
    }

    if (add_text(d, strings_get(&t->out, id), out) != 0) {
        return -1;
    }

    if (t->n_strip > 0 && !d->started) {
        strip(d, t, out, from);
    }

    return 0;
}


int
detok_end(struct detok *d, struct buf *out)
{
    int rc = d->n_held > 0 ? add_bad(d, d->n_held, out) : 0;

    d->n_held = 0;

    return rc;
}
