/*
 * added.c - finds added tokens ("<think>", "<|im_end|>") in text.
 *
 * At each place the longest token wins, places are taken from left to right,
 * and matches do not overlap; a match that single_word rejects still takes its
 * place, as it does in Hugging Face's.  A set is a sorted array: candidates
 * are the range that agrees with the text so far, narrowed byte by byte, which
 * costs nothing where no token begins with this byte.
 */
#include "tokenizer/impl.h"
#include "unicode/unicode.h"

#include <stdlib.h>
#include <string.h>


static int
by_match(const void *a, const void *b)
{
    const struct slice *x = &(*(const struct added *const *) a)->match;
    const struct slice *y = &(*(const struct added *const *) b)->match;
    int                 d = memcmp(x->p, y->p, x->n < y->n ? x->n : y->n);

    return d != 0 ? d : (x->n > y->n) - (x->n < y->n);
}


static int
set_init(struct tokenizer *t, struct added_set *set, int normalized,
         struct err *e)
{
    set->by_text = arena_alloc(&t->arena,
                               (t->n_added + 1u) * sizeof(*set->by_text));
    if (set->by_text == NULL) {
        return err_set(e, "no memory for added tokens");
    }

    for (uint32_t i = 0; i < t->n_added; i++) {
        if (t->added[i].normalized == normalized && t->added[i].match.n > 0) {
            set->by_text[set->n++] = &t->added[i];
            set->leads[(unsigned char) t->added[i].match.p[0]] = 1;
        }
    }

    qsort(set->by_text, set->n, sizeof(*set->by_text), by_match);

    return 0;
}


int
tokenizer_added_init(struct tokenizer *t, struct err *e)
{
    struct pattern_work *w = pattern_work_new();
    struct buf           two[2] = { { 0 }, { 0 } };
    int                  rc = -1;

    if (w == NULL) {
        err_set(e, "no memory for added tokens");
        goto done;
    }

    for (uint32_t i = 0; i < t->n_added; i++) {
        struct added *a = &t->added[i];
        struct slice  s;

        a->match = a->text;

        if (a->single_word && t->word == NULL) {
            t->word = pattern_onig("\\w", 2, e);

            if (t->word == NULL) {
                goto done;
            }
        }

        if (!a->normalized || t->normal.n == 0) {
            continue;
        }

        if (normal_run(&t->normal, w, two, a->text, &s, e) != 0) {
            goto done;
        }

        a->match.p = arena_dup(&t->arena, s.p, s.n);
        a->match.n = s.n;

        if (a->match.p == NULL) {
            err_set(e, "no memory for added tokens");
            goto done;
        }
    }

    rc = set_init(t, &t->raw, 0, e) != 0 ? -1
         : set_init(t, &t->normalized, 1, e);

done:

    pattern_work_free(w);
    buf_free(&two[0]);
    buf_free(&two[1]);

    return rc;
}


/* The longest token at the beginning of p[0..n); NULL: none. */
static const struct added *
longest(const struct added_set *set, const char *p, size_t n)
{
    const struct added *best = NULL;
    uint32_t            lo = 0, hi = set->n;

    for (size_t i = 0; i < n && lo < hi; i++) {
        unsigned char c = (unsigned char) p[i];
        uint32_t      a = lo, b = hi;

        /* all in [lo, hi) agree on i bytes; those that end here come first */
        while (a < b) {
            uint32_t            mid = a + (b - a) / 2;
            const struct slice *s = &set->by_text[mid]->match;

            if (s->n <= i || (unsigned char) s->p[i] < c) {
                a = mid + 1;
            } else {
                b = mid;
            }
        }

        lo = a;
        b = hi;

        while (a < b) {
            uint32_t mid = a + (b - a) / 2;

            if ((unsigned char) set->by_text[mid]->match.p[i] == c) {
                a = mid + 1;
            } else {
                b = mid;
            }
        }

        hi = a;

        if (lo < hi && set->by_text[lo]->match.n == i + 1) {
            best = set->by_text[lo];
        }
    }

    return best;
}


static int
is_word(struct encoding *x, const char *p, size_t n)
{
    struct pattern_iter it;
    size_t              from, to;

    int yes = pattern_start(&it, x->t->word, x->pattern, p, n) == 0
              && pattern_next(&it, &from, &to, NULL) == 1;

    pattern_stop(&it);

    return yes;
}


/* Where the character before text[i] begins; i > 0. */
static size_t
before(const char *text, size_t i)
{
    do {
        i--;
    } while (i > 0 && (text[i] & 0xc0) == 0x80);

    return i;
}


static int
stands_alone(struct encoding *x, struct slice text, size_t from, size_t to)
{
    uint32_t cp;

    if (from > 0) {
        size_t i = before(text.p, from);

        if (is_word(x, text.p + i, from - i)) {
            return 0;
        }
    }

    if (to < text.n) {
        int len = unicode_decode(text.p + to, text.n - to, &cp);

        if (len > 0 && is_word(x, text.p + to, (size_t) len)) {
            return 0;
        }
    }

    return 1;
}


static void
take_spaces(const struct added *a, struct slice text, size_t min, size_t *from,
            size_t *to)
{
    uint32_t cp;

    while (a->lstrip && *from > min) {
        size_t i = before(text.p, *from);

        if (unicode_decode(text.p + i, *from - i, &cp) <= 0
            || !unicode_is_space(cp))
        {
            break;
        }

        *from = i;
    }

    while (a->rstrip && *to < text.n) {
        int len = unicode_decode(text.p + *to, text.n - *to, &cp);

        if (len <= 0 || !unicode_is_space(cp)) {
            break;
        }

        *to += (size_t) len;
    }
}


int
tokenizer_added_cut(struct encoding *x, const struct added_set *set,
                    struct slice text, int at_start, added_fn fn,
                    struct err *e)
{
    size_t done = 0;

    for (size_t i = 0; set->n > 0 && i < text.n; ) {
        const struct added *a = NULL;

        if (set->leads[(unsigned char) text.p[i]]) {
            a = longest(set, text.p + i, text.n - i);
        }

        if (a == NULL) {
            i++;
            continue;
        }

        size_t from = i, to = i + a->match.n;

        i = to;

        if (a->single_word && !stands_alone(x, text, from, to)) {
            continue;
        }

        take_spaces(a, text, done, &from, &to);

        struct slice left = { text.p + done, from > done ? from - done : 0 };

        if ((left.n > 0
             && fn(x, left, VOCAB_NONE, at_start && done == 0, e) != 0)
            || fn(x, a->text, a->id, 0, e) != 0)
        {
            return -1;
        }

        done = to;
    }

    struct slice rest = { text.p + done, text.n > done ? text.n - done : 0 };

    return rest.n == 0 ? 0
           : fn(x, rest, VOCAB_NONE, at_start && done == 0, e);
}
