/*
 * latent.cu - a layer's latents and absorbed queries in one kernel, for steps
 * that are replayed: what rmsnorm, rope, kv_put, heads and rope do one after
 * the other.
 *
 *   key    [norm(kv[:n]) | rope(kv[n:])], to its place in the pages
 *   query  [W_UK(h) q(h)[:nope] | rope(q(h)[nope:])]
 *   bytes: 2 n_heads kv_lora nope of weights (2 MiB for DeepSeek-V2-Lite), a
 *   row of keys, 4 n_heads kv_lora of queries a token; bound by latency while
 *   tokens are few: all of a warp's weights are asked for before the kernels
 *   ahead have ended; of many, by the memory that the queries go to
 *
 *   blocks 0 .. n - 1    a warp a row tile of one head, all of its k tiles, in
 *                        registers for all tokens: 8 N of them at once, whose
 *                        x the block rounds into shared memory
 *   then one a token     latent, its rotation, the rotation of the queries
 *
 * Not measured on a GPU yet.
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
    uint32_t             n_groups;  /* of WARPS row tiles, of a head */
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


/* k tiles k0 .. k0 + GROUP - 1 of 8 N tokens of a head, as mma's B: (k tile,
 * token / 8, lane).  All of a thread's loads are under way at once. */
template <int N>
static __device__ __forceinline__ void
put_x(const struct latent_args &a, uint32_t head, uint32_t t0, uint32_t k0)
{
    uint2       *room = (uint2 *) (void *) hw_shared();
    const float *x = a.l.q.x.data + a.l.q.x_head * head;
    float4       v[GROUP * N / WARPS];

#pragma unroll
    for (uint32_t i = 0; i < GROUP * N / WARPS; i++) {
        uint32_t at = i * WARPS + threadIdx.x / HW_WARP;
        uint32_t t = t0 + at % N * 8 + hw_lane() / 4;
        uint32_t col = (k0 + at / N) * CUDA_TILE + hw_lane() % 4 * 4;

        v[i] = make_float4(0, 0, 0, 0);

        if (t < a.n_tok && col < a.w.n_in) {
            v[i] = *(const float4 *) (const void *)
                   (x + a.l.q.x.stride * t + col);
        }
    }

    __syncthreads();

#pragma unroll
    for (uint32_t i = 0; i < GROUP * N / WARPS; i++) {
        room[i * CUDA_THREADS + threadIdx.x] =
            make_uint2(hw_bf16x2(v[i].x, v[i].y),
                       hw_bf16x2(v[i].z, v[i].w));
    }

    __syncthreads();
}


template <int N>
static __device__ __forceinline__ void
absorb(const struct latent_args &a)
{
    const struct heads  *h = &a.l.q;
    const uint2         *room = (const uint2 *) (const void *) hw_shared();
    struct stream_matrix m = a.w;
    uint32_t head = blockIdx.x / a.n_groups, l = hw_lane();
    uint32_t tile = blockIdx.x % a.n_groups * WARPS + threadIdx.x / HW_WARP;
    uint32_t n_k = cuda_div_up(m.n_in, CUDA_TILE), held = 0;
    uint4    w[GROUP];

    m.w += a.w_head * head;

    const unsigned char *from = stream_tile<DTYPE_BF16>(m, tile);

    load_group(w, from, 0, n_k);
    hw_depend();
    hw_release();

    for (uint32_t t0 = 0; t0 < a.n_tok; t0 += N * 8) {
        float acc[N][4] = {};

        for (uint32_t k0 = 0; k0 < n_k; k0 += GROUP) {
            if (k0 != held) {
                load_group(w, from, k0, n_k);
                held = k0;
            }

            put_x<N>(a, head, t0, k0);

#pragma unroll
            for (int i = 0; i < GROUP * N; i++) {
                hw_mma(acc[i % N], w[i / N], room[i * HW_WARP + l]);
            }
        }

#pragma unroll
        for (int i = 0; i < N * 4; i++) {
            uint32_t o = tile * CUDA_TILE + l / 4 + i % 4 / 2 * 8;
            uint32_t t = t0 + i / 4 * 8 + l % 4 * 2 + i % 2;

            if (o < m.n_out && t < a.n_tok) {
                h->y.data[h->y.stride * t + h->y_head * head + o] =
                    acc[i / 4][i % 4];
            }
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


/* Two blocks of a multiprocessor, so that one's loads are another's products.
 */
template <int N>
static __global__ void __launch_bounds__(CUDA_THREADS, 2)
latent_kernel(const struct latent_args a)
{
    if (blockIdx.x < a.n_blocks) {
        absorb<N>(a);
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


template <int N>
static void
launch(struct cuda *c, const struct latent_args *a)
{
    cuda_launch(c, a->n_blocks + a->n_tok, CUDA_THREADS,
                GROUP * N * HW_WARP * sizeof(uint2), latent_kernel<N>, *a);
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
    a.n_groups = cuda_div_up(cuda_div_up(l->q.w->n_out, CUDA_TILE), WARPS);
    a.n_blocks = a.n_heads * a.n_groups;
    a.n_tok = c->n_tok;
    a.batch = c->batch;

    if (c->n_tok <= 8) {
        launch<1>(c, &a);

    } else if (c->n_tok <= 32) {
        launch<4>(c, &a);

    } else {
        launch<8>(c, &a);
    }
}
