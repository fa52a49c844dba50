/*
 * bpe.h - byte-pair encoding proper: a row of symbols (token ids) in, fewer
 * symbols out.  Of all neighbouring pairs that have a merge, the one of lowest
 * rank is merged, the leftmost of equals, until none is left.
 *
 * Knows ids only: what they spell is the vocabulary's matter.
 */
#ifndef MOE_BPE_H
#define MOE_BPE_H

#include "base.h"

#define BPE_NONE    UINT32_MAX

struct bpe_merge {
    uint32_t left, right;       /* ids; left = BPE_NONE: an empty slot */
    uint32_t rank;
    uint32_t id;                /* what the two become */
};

/* Open addressing with linear probing; at most 2/3 full. */
struct bpe {
    struct bpe_merge *slots;
    uint32_t          n_slot;
    uint32_t          n;
    uint64_t          seed;     /* a hostile file can not aim at a slot */
};

/* Room for n merges.  -1: no memory. */
int bpe_init(struct bpe *b, size_t n, uint64_t seed);
void bpe_free(struct bpe *b);

/* The last of two merges of the same pair wins.  No more than bpe_init's n. */
void bpe_add(struct bpe *b, struct bpe_merge m);

/* Memory of one caller, kept between calls; zero-initialised is empty. */
struct bpe_work {
    uint32_t   *id;             /* symbols: in, and out */
    uint32_t   *next;           /* index of the right neighbour; n: none */
    uint32_t   *prev;           /* of the left one; BPE_NONE: none */
    uint32_t   *rank;           /* of the pair (i, next[i]); BPE_NONE: none */
    uint32_t   *made;           /* what that pair becomes */
    uint64_t   *heap;           /* rank << 32 | i, least first */
    size_t      cap;            /* symbols */
    size_t      heap_cap, n_heap;
};

int bpe_work_reserve(struct bpe_work *w, size_t n);
void bpe_work_free(struct bpe_work *w);

/* Merges w->id[0..n) in place and puts what is left at its beginning: 0 and
 * *n_out, or -1: no memory. */
int bpe_run(const struct bpe *b, struct bpe_work *w, size_t n, size_t *n_out);

#endif /* MOE_BPE_H */
