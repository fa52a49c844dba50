/*
 * pretoken.h - cuts text into the pieces that BPE works on, one after the
 * other, each a piece of the piece that the step before made.
 *
 * Steps are those of tokenizer.json's pre_tokenizer.  Must not know ids.
 */
#ifndef MOE_PRETOKEN_H
#define MOE_PRETOKEN_H

#include "base.h"
#include "tokenizer/pattern.h"

#define PRETOKEN_STEPS  16

/* What becomes of a match. */
enum pretoken_match {
    PRETOKEN_ISOLATED,
    PRETOKEN_REMOVED,
    PRETOKEN_WITH_PREVIOUS,
    PRETOKEN_WITH_NEXT,
    PRETOKEN_CONTIGUOUS         /* neighbouring matches become one */
};

enum pretoken_prefix {          /* put before a piece that has it not yet */
    PRETOKEN_NEVER,
    PRETOKEN_FIRST,             /* only at the beginning of the text */
    PRETOKEN_ALWAYS
};

struct pretoken_step {
    struct pattern      *pattern;       /* owned; NULL: cuts nothing */
    enum pretoken_match  match;
    int                  invert;        /* what lies between is the match */

    enum pretoken_prefix prefix;
    char                 prefix_text[8];
    int                  spaces;        /* ' ' becomes prefix_text */
};

struct pretoken {
    struct pretoken_step steps[PRETOKEN_STEPS];
    int                  n;
};

/* 0: go on; -1: stop, e is set.  The bytes are good until it returns. */
typedef int (*pretoken_fn)(void *ctx, const char *p, size_t n, struct err *e);

/* at_start: the text begins where the whole input does.  Returns what fn
 * returned, or -1: no memory, or a limit of the pattern. */
int pretoken_run(const struct pretoken *t, struct pattern_work *w,
                 const char *text, size_t n, int at_start, pretoken_fn fn,
                 void *ctx, struct err *e);

void pretoken_free(struct pretoken *t);

#endif /* MOE_PRETOKEN_H */
