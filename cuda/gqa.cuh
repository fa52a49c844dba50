/*
 * gqa.cuh - what both kinds of grouped-query attention are given: gqa.cu's, by
 * mma, and gqa_wide.cu's, by Hopper's warpgroups; and which tokens are whose.
 */
#ifndef MOE_CUDA_GQA_CUH
#define MOE_CUDA_GQA_CUH

#include "common.cuh"

#define PAGE            BACKEND_PAGE_TOK
#define LOG2_E          1.44269504f

/* Tokens that a kernel is for: with the table of a neighbour, or without. */
enum which { EVERY, ALONE, RUNS };

struct gqa_args {
    struct gqa        a;
    struct kv_store   kv;
    struct cuda_batch batch;
    uint32_t          n_tok;
    uint32_t          n_group;  /* heads to a key head */
    uint32_t          per;      /* pages in a part */
    uint32_t          n_splits;
    float            *parts;    /* (n_tok, n_heads, n_splits, head) */
    float            *stats;    /* (n_tok, n_heads, n_splits, 2): max, sum */
    /* (n_tok, groups of 16 rows): of parts done.  NULL: who does the last does
     * not add them up.  gqa_wide.cu's is one, of what blocks have drawn. */
    uint32_t         *counters;
    enum which        which;
};


static inline __device__ bool
is_alone(const struct gqa_args &m, uint32_t t)
{
    const uint32_t *table = m.batch.table;

    return !(t > 0 && table[t - 1] == table[t])
           && !(t + 1 < m.n_tok && table[t + 1] == table[t]);
}


static inline __device__ bool
is_mine(const struct gqa_args &m, uint32_t t)
{
    return m.which == EVERY || is_alone(m, t) == (m.which == ALONE);
}


/* Parts that a token's pages are in; one alone is no part, but goes to y. */
static inline __device__ uint32_t
parts_of(const struct gqa_args &m, uint32_t t)
{
    return m.batch.pos[t] / (m.per * PAGE) + 1;
}

/* gqa.cu: adds up the parts of m's tokens, of those that have some. */
void cuda_gqa_combine(struct cuda *c, const struct gqa_args *m);

/* gqa_wide.cu: m's tokens that have neighbours.  -1: not for these, or not on
 * this device. */
int cuda_gqa_wide(struct cuda *c, const struct gqa_args *m);

#endif /* MOE_CUDA_GQA_CUH */
