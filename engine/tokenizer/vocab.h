/*
 * vocab.h - strings by id, and ids by string.  Strings are bytes and lie end
 * to end in one block; an empty one is a hole.
 */
#ifndef MOE_VOCAB_H
#define MOE_VOCAB_H

#include "base.h"

#define VOCAB_IDS_MAX   (1u << 22)  /* ids; the largest known has 2^18 */
#define VOCAB_NONE      UINT32_MAX

struct strings {
    char     *text;
    uint32_t *from;             /* (n + 1) */
    uint32_t  n;
};

/* Copies by_id[0..n); p = NULL or n = 0 is a hole. */
int strings_init(struct strings *s, const struct slice *by_id, uint32_t n,
                 struct err *e);
void strings_free(struct strings *s);

static inline struct slice
strings_get(const struct strings *s, uint32_t id)
{
    return (struct slice) { s->text + s->from[id],
                            s->from[id + 1] - s->from[id] };
}

struct vocab {
    struct strings  keys;
    uint32_t       *slots;      /* id, VOCAB_NONE: empty; at most half full */
    uint32_t        n_slot;
    uint32_t        n_key;
    size_t          longest;    /* bytes */
    uint64_t        seed;
};

/* -1: no memory, or one string has two ids. */
int vocab_init(struct vocab *v, const struct slice *by_id, uint32_t n,
               uint64_t seed, struct err *e);
void vocab_free(struct vocab *v);

/* VOCAB_NONE: there is none. */
uint32_t vocab_find(const struct vocab *v, const char *p, size_t n);

#endif /* MOE_VOCAB_H */
