/*
 * pretoken.c - see pretoken.h.  Steps nest: a step hands each piece on to the
 * next one as soon as it is whole, so no list of pieces is ever made.
 */
#include "tokenizer/pretoken.h"

#include <string.h>

struct run {
    const struct pretoken *t;
    struct pattern_work   *work;
    pretoken_fn            fn;
    void                  *ctx;
    struct err            *e;
};

/* A piece of text that a step works on; at_start as in pretoken_run(). */
struct piece {
    const char *p;
    size_t      n;
    int         at_start;
};

/* Pieces of one step on their way to the next: the last one is kept back until
 * it is known whether its neighbour joins it. */
struct joiner {
    struct run         *run;
    const struct piece *in;
    int                 step;       /* that the pieces come from */
    int                 is_open;
    int                 was_match;
    size_t              from, to;   /* the open one */
};

static int step_run(struct run *r, int i, const struct piece *in);


static int
flush(struct joiner *j)
{
    struct piece out = {
        .p = j->in->p + j->from,
        .n = j->to - j->from,
        .at_start = j->in->at_start && j->from == 0
    };

    return j->is_open && out.n > 0 ? step_run(j->run, j->step + 1, &out) : 0;
}


static int
joins(const struct joiner *j, enum pretoken_match kind, int is_match)
{
    if (!j->is_open) {
        return 0;
    }

    switch (kind) {

    case PRETOKEN_WITH_PREVIOUS:
        return is_match && !j->was_match;

    case PRETOKEN_WITH_NEXT:
        return !is_match && j->was_match;

    case PRETOKEN_CONTIGUOUS:
        return is_match == j->was_match;

    default:
        return 0;
    }
}


static int
cut(struct joiner *j, const struct pretoken_step *s, size_t from, size_t to,
    int is_match)
{
    is_match ^= s->invert;

    if (joins(j, s->match, is_match)) {
        j->to = to;
        j->was_match = is_match;
        return 0;
    }

    if (flush(j) != 0) {
        return -1;
    }

    j->is_open = s->match != PRETOKEN_REMOVED || !is_match;
    j->was_match = is_match;
    j->from = from;
    j->to = to;

    return 0;
}


static int
split_matches(struct joiner *j, const struct pretoken_step *s,
              struct pattern_iter *it)
{
    struct err *e = j->run->e;
    size_t      from, to, done = 0;
    int         rc;

    while ((rc = pattern_next(it, &from, &to, e)) == 1) {
        if (done != from && cut(j, s, done, from, 0) != 0) {
            return -1;
        }

        if (cut(j, s, from, to, 1) != 0) {
            return -1;
        }

        done = to;
    }

    if (rc != 0 || (done != it->n && cut(j, s, done, it->n, 0) != 0)) {
        return -1;
    }

    return flush(j);
}


static int
split(struct run *r, int i, const struct piece *in)
{
    const struct pretoken_step *s = &r->t->steps[i];
    struct pattern_iter         it;
    struct joiner               j = { .run = r, .in = in, .step = i };

    int rc = pattern_start(&it, s->pattern, r->work, in->p, in->n) == 0
             ? split_matches(&j, s, &it)
             : err_set(r->e, "no memory for %zu bytes of text", in->n);

    pattern_stop(&it);

    return rc;
}


/* in with the step's prefix, and its spaces replaced. */
static int
rewrite(const struct pretoken_step *s, const struct piece *in, struct buf *out)
{
    size_t n = strlen(s->prefix_text);
    int    has = in->n >= n && memcmp(in->p, s->prefix_text, n) == 0;

    if (s->spaces && in->n > 0 && in->p[0] == ' ') {
        has = 1;
    }

    if (!has && (s->prefix == PRETOKEN_ALWAYS
                 || (s->prefix == PRETOKEN_FIRST && in->at_start))
        && buf_add(out, s->prefix_text, n) != 0)
    {
        return -1;
    }

    if (!s->spaces) {
        return buf_add(out, in->p, in->n);
    }

    for (const char *p = in->p, *end = p + in->n; p < end; ) {
        const char *space = memchr(p, ' ', (size_t) (end - p));
        const char *stop = space != NULL ? space : end;

        if (buf_add(out, p, (size_t) (stop - p)) != 0
            || (space != NULL && buf_add(out, s->prefix_text, n) != 0))
        {
            return -1;
        }

        p = stop + (space != NULL);
    }

    return 0;
}


static int
step_run(struct run *r, int i, const struct piece *in)
{
    if (i == r->t->n) {
        return r->fn(r->ctx, in->p, in->n, r->e);
    }

    const struct pretoken_step *s = &r->t->steps[i];
    struct piece                piece = *in;
    struct buf                  text = { 0 };
    int                         rc = -1;

    if (s->prefix != PRETOKEN_NEVER || s->spaces) {
        if (rewrite(s, in, &text) != 0) {
            err_set(r->e, "no memory for %zu bytes of text", in->n);
            goto done;
        }

        piece.p = text.p;
        piece.n = text.n;
    }

    rc = s->pattern != NULL ? split(r, i, &piece) : step_run(r, i + 1, &piece);

done:

    buf_free(&text);

    return rc;
}


int
pretoken_run(const struct pretoken *t, struct pattern_work *w,
             const char *text, size_t n, int at_start, pretoken_fn fn,
             void *ctx, struct err *e)
{
    struct run   run = { t, w, fn, ctx, e };
    struct piece all = { text, n, at_start };

    return step_run(&run, 0, &all);
}


void
pretoken_free(struct pretoken *t)
{
    for (int i = 0; i < t->n; i++) {
        pattern_free(t->steps[i].pattern);
    }

    memset(t, 0, sizeof(*t));
}
