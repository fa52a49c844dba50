/*
 * latent.cu - a layer's latents and absorbed queries in one kernel, for few
 * tokens: what rmsnorm, rope, kv_put, heads and rope do one after the other.
 * Of more than CUDA_FEW, heads is a kernel of its own, which holds a weight
 * for more rows at once.
 *
 *   key    [norm(kv[:n]) | rope(kv[n:])], to its place in the pages
 *   query  [W_UK(h) q(h)[:nope] | rope(q(h)[nope:])]
 *   bytes: 2 n_heads kv_lora nope of weights (2 MiB for DeepSeek-V2-Lite), a
 *   row of keys; bound by latency: all of a warp's weights are asked for before
 *   the kernels ahead have ended
 *
 *   blocks 0 .. n - 1    a warp a row tile of one head, all of its k tiles
 *   then one a token     latent, its rotation, the rotation of the queries
 */
#include "common.cuh"
#include "stream.cuh"

#define WARPS       (CUDA_THREADS / HW_WARP)
#define GROUP       8           /* k tiles that a lane asks for at once */

struct latent_args {
    struct cuda_latent   l;
    struct kv_store      kv;
    struct stream_matrix w;
    size_t               w_head;    /* bytes */
    uint32_t             n_heads;
    uint32_t             n_tiles;   /* of a head */
    uint32_t             n_blocks;  /* of products */
    uint32_t             n_tok;
    struct cuda_batch    batch;
};


static __device__ void
load_group(uint4 (&a)[GROUP], const unsigned char *w, uint32_t k0,
           uint32_t n_k)
{
#pragma unroll
    for (int u = 0; u < GROUP; u++) {
        a[u] = w != NULL && k0 + u < n_k
               ? stream_get<DTYPE_BF16>(w, k0 + u).a
               : make_uint4(0, 0, 0, 0);
    }
}


static __device__ void
absorb(const struct latent_args &a)
{
    const struct heads  *h = &a.l.q;
    struct stream_matrix m = a.w;
    uint32_t task = blockIdx.x * WARPS + threadIdx.x / HW_WARP;
    uint32_t head = task / a.n_tiles, tile = task % a.n_tiles;
    uint32_t n_k = cuda_div_up(m.n_in, CUDA_TILE), t = hw_lane() / 4;
    float    acc[4] = { 0, 0, 0, 0 };
    uint4    w[GROUP];

    m.w += a.w_head * head;

    const unsigned char *from = head < a.n_heads
                                ? stream_tile<DTYPE_BF16>(m, tile) : NULL;

    load_group(w, from, 0, n_k);
    hw_depend();
    hw_release();

    const float *x = head < a.n_heads && t < a.n_tok
                     ? h->x.data + h->x.stride * t + h->x_head * head : NULL;

    for (uint32_t k0 = 0; k0 < n_k; k0 += GROUP) {
        if (k0 != 0) {
            load_group(w, from, k0, n_k);
        }

#pragma unroll
        for (int u = 0; u < GROUP; u++) {
            if (k0 + u < n_k) {
                hw_mma(acc, w[u], stream_x(x, k0 + u, m.n_in));
            }
        }
    }

#pragma unroll
    for (int d = 0; d < 4; d++) {
        uint32_t o = tile * 16 + hw_lane() / 4 + d / 2 * 8;
        uint32_t col = hw_lane() % 4 * 2 + d % 2;

        if (head < a.n_heads && o < m.n_out && col < a.n_tok) {
            h->y.data[h->y.stride * col + h->y_head * head + o] = acc[d];
        }
    }
}


static __device__ void
keep_latent(const struct latent_args &a, uint32_t t)
{
    const struct cuda_norm *norm = &a.l.norm;
    const struct rope      *r = &a.l.k;
    const float *x = norm->x.data + norm->x.stride * t;
    const float *angle = r->angles.data + r->angles.stride * t;
    uint32_t     half = r->n / 2, pos = a.batch.pos[t];
    uint32_t     page = a.batch.pages[a.batch.table[t]
                                      + pos / BACKEND_PAGE_TOK];
    float        sum = 0;

    for (uint32_t i = threadIdx.x; i < norm->n; i += blockDim.x) {
        sum += x[i] * x[i];
    }

    float scale = 1 / sqrtf(cuda_block_sum(sum, (float *) (void *) hw_shared())
                            / (float) norm->n + norm->eps);

    for (uint32_t i = threadIdx.x; i < a.kv.row; i += blockDim.x) {
        float v = i < norm->n ? x[i] * scale * norm->w[i] : 0;

        if (i < norm->n || i >= a.l.n) {
            cuda_kv_set(a.kv, page, a.l.layer, pos % BACKEND_PAGE_TOK, i, v);
        }
    }

    for (uint32_t k = threadIdx.x; k < half; k += blockDim.x) {
        uint32_t i0 = r->interleaved ? 2 * k : k;
        uint32_t i1 = r->interleaved ? 2 * k + 1 : k + half;
        float    x0 = x[norm->n + i0], x1 = x[norm->n + i1];
        float    c = angle[k], s = angle[half + k];

        cuda_kv_set(a.kv, page, a.l.layer, pos % BACKEND_PAGE_TOK,
                    norm->n + i0, x0 * c - x1 * s);
        cuda_kv_set(a.kv, page, a.l.layer, pos % BACKEND_PAGE_TOK,
                    norm->n + i1, x1 * c + x0 * s);
    }
}


static __global__ void __launch_bounds__(CUDA_THREADS)
latent_kernel(const struct latent_args a)
{
    if (blockIdx.x < a.n_blocks) {
        absorb(a);
        return;
    }

    uint32_t t = blockIdx.x - a.n_blocks;
    uint32_t n = a.n_heads * (a.l.q_rope.n / 2);

    hw_depend();
    hw_release();
    keep_latent(a, t);

    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
        cuda_rope_pair(a.l.q_rope, t, i);
    }
}


void
cuda_latent(struct cuda *c, const struct cuda_latent *l)
{
    struct latent_args a;

    memset(&a, 0, sizeof(a));
    a.l = *l;
    a.kv = *l->kv;
    a.w = stream_matrix_of(l->q.w);
    a.w_head = cuda_weight_bytes(l->q.w);
    a.n_heads = l->q.w->n;
    a.n_tiles = cuda_div_up(l->q.w->n_out, CUDA_TILE);
    a.n_tok = c->n_tok;
    a.batch = c->batch;

    if (c->n_tok <= CUDA_FEW) {
        a.n_blocks = cuda_div_up(a.n_heads * a.n_tiles, WARPS);

    } else {
        cuda_heads(&c->b, &l->q);
    }

    cuda_launch(c, a.n_blocks + c->n_tok, CUDA_THREADS,
                WARPS * sizeof(float), latent_kernel, a);
}
