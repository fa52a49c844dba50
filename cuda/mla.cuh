/*
 * mla.cuh - what both kinds of absorbed attention are given: mla.cu's, by mma,
 * and mla_wide.cu's, by Hopper's warpgroups.
 */
#ifndef MOE_CUDA_MLA_CUH
#define MOE_CUDA_MLA_CUH

#include "common.cuh"

#define MLA_PAGE        BACKEND_PAGE_TOK
#define MLA_LOG2_E      1.44269504f
/* Heads of tokens in a block of mla_wide.cu's. */
#define MLA_WIDE_ROWS   64

struct mla_args {
    struct mla        a;
    struct kv_store   kv;
    struct cuda_batch batch;
    /* NULL: there is one part, which goes to y. */
    float            *parts;    /* (n_tok, n_heads, n_splits, n_latent) */
    float            *stats;    /* (n_tok, n_heads, n_splits, 2): max, sum */
    uint32_t          n_splits;
    uint32_t          n_stages;     /* mla.cu's */
    uint32_t          n_tok;
};


/* Pages [from, to) are split blockIdx.y's of token t. */
static inline __device__ void
mla_part(const struct mla_args &m, uint32_t t, uint32_t *from, uint32_t *to)
{
    uint32_t n_pages = m.batch.pos[t] / MLA_PAGE + 1;
    uint32_t n = cuda_div_up(n_pages, m.n_splits);

    *from = n * blockIdx.y;
    *to = min(*from + n, n_pages);
}


/* mla_wide.cu: whether it can; and all of m's parts. */
int cuda_mla_wide_can(const struct cuda *c, const struct mla *a);
void cuda_mla_wide(struct cuda *c, const struct mla_args *m);

#endif /* MOE_CUDA_MLA_CUH */
