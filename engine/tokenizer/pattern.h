/*
 * pattern.h - regular expressions as tokenizer.json has them: written for
 * Oniguruma (Ruby syntax), run by PCRE2.  Where the two differ the pattern is
 * translated, or refused by naming the construct; see pattern.c.
 *
 * Text must be valid UTF-8.  Must not know what matches are used for.
 */
#ifndef MOE_PATTERN_H
#define MOE_PATTERN_H

#include "base.h"

#define PATTERN_MAX     65536       /* bytes of a pattern */

struct pattern;                     /* read-only once made: many threads */

struct pattern *pattern_onig(const char *p, size_t n, struct err *e);
struct pattern *pattern_literal(const char *p, size_t n, struct err *e);
void pattern_free(struct pattern *p);

/* What one caller needs to match; made once, used for any pattern. */
struct pattern_work;

struct pattern_work *pattern_work_new(void);    /* NULL: no memory */
void pattern_work_free(struct pattern_work *w);

/* All matches from left to right, which do not overlap.  An empty match right
 * after a match is not one. */
struct pattern_iter {
    const struct pattern *pattern;
    struct pattern_work  *work;
    const char           *text;
    size_t                n;
    struct buf            other;    /* the text with stand-ins, if it has any */
    size_t                at;       /* search goes on here */
    size_t                last;     /* end of the match before; SIZE_MAX */
};

/* 0, or -1: no memory.  What it started must be stopped, if it failed too. */
int pattern_start(struct pattern_iter *it, const struct pattern *p,
                  struct pattern_work *w, const char *text, size_t n);
void pattern_stop(struct pattern_iter *it);

/* 1: [*from, *to) matched.  0: no more.  -1: a limit was hit, e says which. */
int pattern_next(struct pattern_iter *it, size_t *from, size_t *to,
                 struct err *e);

#endif /* MOE_PATTERN_H */
