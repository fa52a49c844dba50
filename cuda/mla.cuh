/*
 * mla.cuh - what both kinds of absorbed attention are given: mla.cu's, by mma,
 * and mla_wide.cu's, by Hopper's warpgroups; and how the last block to have
 * done a part of some rows adds their parts up.
 *
 *   bytes: n_splits * n_latent * 4 a row, which the other blocks have left in
 *   L2; one multiprocessor gets at most 64 bytes a cycle from there, and 8
 *   loads of 16 bytes by 256 threads are 32 KiB in a latency of some 700
 *   cycles.  So up to MLA_LAST_BYTES a block, 4 parts of 16 heads of 512
 *   columns, are 3000 cycles, about what another kernel would take to begin,
 *   wait for the last block and read the same by all multiprocessors; of more,
 *   combine_kernel() is faster.  (By arithmetic: not measured on a GPU yet.)
 */
#ifndef MOE_CUDA_MLA_CUH
#define MOE_CUDA_MLA_CUH

#include "common.cuh"

#define MLA_PAGE        BACKEND_PAGE_TOK
#define MLA_LOG2_E      1.44269504f
/* Of parts that a token's last block adds up. */
#define MLA_LAST_BYTES  (128 * 1024)
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
    /* (z, x of blocks) parts that are done; NULL: a kernel of its own adds them
     * up. */
    uint32_t         *counters;
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


/* Of a block, row r: head head0 + r % n_heads of token t0 + r / n_heads. */
struct mla_rows {
    uint32_t t0;
    uint32_t head0;
    uint32_t n_heads;
    uint32_t n;
};

/* What mla_combine() has of shared memory. */
static inline __device__ __host__ size_t
mla_combine_bytes(uint32_t n_rows, uint32_t n_splits)
{
    return ((size_t) n_rows * n_splits * 2 + 4) * sizeof(float);
}

/* Row r among those of all tokens and heads. */
static inline __device__ size_t
mla_row(const struct mla_args &m, const struct mla_rows &rows, uint32_t r)
{
    return (size_t) (rows.t0 + r / rows.n_heads) * m.a.n_heads + rows.head0
           + r % rows.n_heads;
}


/* What each part counts in its row's sum: weights (n rows, n_splits, 2), of
 * which the first. */
template <class F>
static __device__ __forceinline__ void
mla_weights(const struct mla_args &m, const struct mla_rows &rows,
            uint32_t n_threads, float *weights, F sync)
{
    uint32_t n = m.n_splits;

    for (uint32_t i = threadIdx.x; i < rows.n * n * 2; i += n_threads) {
        weights[i] = hw_load_fresh(m.stats + mla_row(m, rows, i / (2 * n))
                                             * 2 * n + i % (2 * n));
    }

    sync();

    for (uint32_t r = threadIdx.x; r < rows.n; r += n_threads) {
        float *of = weights + r * n * 2, max = -INFINITY, sum = 0;

        for (uint32_t k = 0; k < n; k++) {
            max = fmaxf(max, of[2 * k]);
        }

        for (uint32_t k = 0; k < n; k++) {
            of[2 * k] = exp2f(of[2 * k] - max);
            sum += of[2 * k] * of[2 * k + 1];
        }

        for (uint32_t k = 0; k < n; k++) {
            of[2 * k] /= sum;
        }
    }

    sync();
}


/* y of the block's rows, four columns a thread at a time, of which it has 8 on
 * their way. */
static __device__ __forceinline__ void
mla_sum(const struct mla_args &m, const struct mla_rows &rows,
        uint32_t n_threads, const float *weights)
{
    const uint32_t ahead = 8;
    uint32_t       n_cols = m.a.n_latent / 4, n = rows.n * n_cols;

    for (uint32_t i0 = threadIdx.x; i0 < n; i0 += ahead * n_threads) {
        const float *from[ahead];
        float4       v[ahead] = {}, x[ahead];

#pragma unroll
        for (uint32_t u = 0; u < ahead; u++) {
            uint32_t i = min(i0 + u * n_threads, n - 1);

            from[u] = m.parts + mla_row(m, rows, i / n_cols) * m.n_splits
                                * m.a.n_latent + i % n_cols * 4;
        }

        for (uint32_t k = 0; k < m.n_splits; k++) {
#pragma unroll
            for (uint32_t u = 0; u < ahead; u++) {
                x[u] = hw_load_fresh((const float4 *) (const void *)
                                     (from[u] + (size_t) k * m.a.n_latent));
            }

#pragma unroll
            for (uint32_t u = 0; u < ahead; u++) {
                uint32_t i = min(i0 + u * n_threads, n - 1);
                float    by = weights[(i / n_cols * m.n_splits + k) * 2];

                v[u].x += by * x[u].x;
                v[u].y += by * x[u].y;
                v[u].z += by * x[u].z;
                v[u].w += by * x[u].w;
            }
        }

#pragma unroll
        for (uint32_t u = 0; u < ahead; u++) {
            uint32_t i = i0 + u * n_threads, r = i / n_cols;

            if (i < n) {
                *(float4 *) (void *)
                    (m.a.y.data + m.a.y.stride * (rows.t0 + r / rows.n_heads)
                     + (size_t) (rows.head0 + r % rows.n_heads) * m.kv.row
                     + i % n_cols * 4) = v[u];
            }
        }
    }
}


/* A block has stored a part of its rows: adds them up if it is the last to have
 * done so; for its first n_threads threads, which sync() is a barrier of. */
template <class F>
static __device__ __forceinline__ void
mla_combine(const struct mla_args &m, const struct mla_rows &rows,
            uint32_t n_threads, F sync)
{
    uint32_t *room = (uint32_t *) (void *) hw_shared();
    float    *weights = (float *) (void *) (room + 4);

    if (cuda_is_last(m.counters + blockIdx.z * gridDim.x + blockIdx.x,
                     gridDim.y, room, sync))
    {
        mla_weights(m, rows, n_threads, weights, sync);
        mla_sum(m, rows, n_threads, weights);
    }
}


/* mla_wide.cu: whether it can; and all of m's parts. */
int cuda_mla_wide_can(const struct cuda *c, const struct mla *a);
void cuda_mla_wide(struct cuda *c, const struct mla_args *m);

#endif /* MOE_CUDA_MLA_CUH */
