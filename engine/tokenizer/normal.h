/*
 * normal.h - the normalizer of tokenizer.json: text in, text out.
 */
#ifndef MOE_NORMAL_H
#define MOE_NORMAL_H

#include "base.h"
#include "tokenizer/pattern.h"

#define NORMAL_STEPS    16

enum normal_kind {
    NORMAL_NFC,
    NORMAL_NFD,
    NORMAL_NFKC,
    NORMAL_NFKD,
    NORMAL_LOWERCASE,
    NORMAL_PREPEND,             /* text, unless there is nothing */
    NORMAL_REPLACE,             /* each match of pattern by text */
    NORMAL_STRIP                /* white space at left, at right */
};

struct normal_step {
    enum normal_kind  kind;
    struct pattern   *pattern;  /* owned */
    char             *text;     /* owned */
    size_t            n;
    int               left, right;
};

struct normal {
    struct normal_step steps[NORMAL_STEPS];
    int                n;
};

/*
 * *out is in itself where no step changed it, else it lies in one of two
 * buffers of the caller's.  -1: no memory, or a limit of a pattern.
 */
int normal_run(const struct normal *t, struct pattern_work *w,
               struct buf two[2], struct slice in, struct slice *out,
               struct err *e);

void normal_free(struct normal *t);

#endif /* MOE_NORMAL_H */
