/*
 * qkv.cu - what grouped-query attention is given, in one kernel: rmsnorm of
 * queries and of keys, rope of the keys, kv_put, and rope of the queries.
 *
 *   query  rope(norm(q(h))), in place
 *   key    rope(norm(k(h))), and value v(h): to their places in the pages
 *   the norm is of each head, of all heads in one, or there is none
 *   bytes: 8 a column of a query, 6 of a key or a value that is kept in bf16
 *   (38 KiB a token of 32 heads to 4 of 128), FLOPs: 10; bound by latency at
 *   decode, by memory at prefill.  What no kernel has written (weights of the
 *   norms, page tables) is read before those ahead have ended.
 *
 *   block  a token: WARPS of its heads [queries | keys | values], a warp each;
 *          or, for a norm of all in one, its queries, keys, or values, ROUNDS
 *          to a warp
 *   lane   two pairs of a head: columns 2l, 2l + 1, and the same half a head
 *          on; or, where pairs are neighbours, columns 4l .. 4l + 3
 *
 * A row is added up in one order, whatever is beside it (D6).
 *
 * Not measured on a GPU yet.
 */
#include "common.cuh"

#include <string.h>

#define WARPS       (CUDA_THREADS / HW_WARP)
#define HEAD_MAX    (HW_WARP * 4)
/* Heads of a warp, where a norm is of all in one. */
#define ROUNDS      4

enum kind { QUERY, KEY, VALUE };

struct qkv_args {
    struct cuda_qkv   l;
    struct kv_store   kv;
    struct cuda_batch batch;
};

/* A lane's part of a head; x NULL: it has none. */
struct piece {
    enum kind    kind;
    uint32_t     h;
    const float *x;
};


/* Columns of a lane's first two elements, and of its last two. */
static __device__ __forceinline__ uint2
columns(const struct rope &r)
{
    uint32_t l = hw_lane();

    return r.interleaved ? make_uint2(4 * l, 4 * l + 2)
                         : make_uint2(2 * l, r.n / 2 + 2 * l);
}


/* Of head j of all. */
static __device__ __forceinline__ struct piece
piece_of(const struct qkv_args &a, uint32_t j, uint32_t end)
{
    uint32_t     n_q = a.l.q.n_heads, n_kv = a.l.k.n_heads, t = blockIdx.x;
    struct piece p = { QUERY, j, NULL };
    const float *x = a.l.q.x.data + a.l.q.x.stride * t + a.l.q.x_head * j;

    if (j >= n_q + n_kv) {
        p.kind = VALUE;
        p.h = j - n_q - n_kv;
        x = a.l.v.data + a.l.v.stride * t + (size_t) p.h * a.l.k.n;

    } else if (j >= n_q) {
        p.kind = KEY;
        p.h = j - n_q;
        x = a.l.k.x.data + a.l.k.x.stride * t + a.l.k.x_head * p.h;
    }

    p.x = j < end && hw_lane() < a.l.q.n / 4 ? x : NULL;

    return p;
}


static __device__ __forceinline__ float4
load(const float *x, uint2 cols)
{
    float2 lo = *(const float2 *) (const void *) (x + cols.x);
    float2 hi = *(const float2 *) (const void *) (x + cols.y);

    return make_float4(lo.x, lo.y, hi.x, hi.y);
}


static __device__ __forceinline__ float4
load_norm(const struct qkv_args &a, const struct piece &p, uint2 cols)
{
    const float *w = p.kind == QUERY ? a.l.norm_q : a.l.norm_k;

    if (p.x == NULL || p.kind == VALUE || w == NULL) {
        return make_float4(1, 1, 1, 1);
    }

    return load(w + (a.l.whole ? p.h * a.l.q.n : 0), cols);
}


/* c, s: the angles of a lane's two pairs. */
static __device__ __forceinline__ float4
rotated(const struct rope &r, float4 v, float2 c, float2 s)
{
    return r.interleaved
           ? make_float4(v.x * c.x - v.y * s.x, v.y * c.x + v.x * s.x,
                         v.z * c.y - v.w * s.y, v.w * c.y + v.z * s.y)
           : make_float4(v.x * c.x - v.z * s.x, v.y * c.y - v.w * s.y,
                         v.z * c.x + v.x * s.x, v.w * c.y + v.y * s.y);
}


/* Where the block's token is. */
struct kv_row {
    uint32_t page;
    uint32_t tok;
};


static __device__ __forceinline__ void
put(const struct qkv_args &a, const struct piece &p, const struct kv_row &at,
    uint2 cols, float4 v)
{
    uint32_t t = blockIdx.x;
    float2   lo = make_float2(v.x, v.y), hi = make_float2(v.z, v.w);

    if (p.kind == QUERY) {
        float *y = a.l.q.y.data + a.l.q.y.stride * t + a.l.q.y_head * p.h;

        *(float2 *) (void *) (y + cols.x) = lo;
        *(float2 *) (void *) (y + cols.y) = hi;

    } else {
        uint32_t h = p.kind == KEY ? p.h : a.l.k.n_heads + p.h;
        uint32_t col = h * a.l.k.n;

        cuda_kv_set(a.kv, at.page, a.l.layer, at.tok, col + cols.x, lo);
        cuda_kv_set(a.kv, at.page, a.l.layer, at.tok, col + cols.y, hi);
    }
}


/* 1 / root mean square of the warp's head, or of all that the block has; sum is
 * that of this thread's squares. */
template <int R>
static __device__ __forceinline__ float
norm_scale(const struct qkv_args &a, enum kind kind, float sum)
{
    uint32_t n_heads = kind == QUERY ? a.l.q.n_heads : a.l.k.n_heads;
    float    eps = kind == QUERY ? a.l.eps_q : a.l.eps_k;

    if (R > 1) {
        sum = cuda_block_sum(sum, (float *) (void *) hw_shared());

    } else {
        for (int mask = HW_WARP / 2; mask > 0; mask /= 2) {
            sum += hw_xor(sum, mask);
        }
    }

    return 1 / sqrtf(sum / (float) (a.l.q.n * (R > 1 ? n_heads : 1)) + eps);
}


template <int R>
static __global__ void __launch_bounds__(CUDA_THREADS)
qkv_kernel(const struct qkv_args a)
{
    uint32_t     n_q = a.l.q.n_heads, n_kv = a.l.k.n_heads, t = blockIdx.x;
    uint32_t     pos = a.batch.pos[t], half = a.l.q.n / 2;
    struct kv_row at = { a.batch.pages[a.batch.table[t]
                                      + pos / BACKEND_PAGE_TOK],
                        pos % BACKEND_PAGE_TOK };
    uint32_t     first = blockIdx.y * WARPS, end = n_q + 2 * n_kv;
    uint2        cols = columns(a.l.q);
    struct piece p[R];
    float4       x[R], w[R];
    float2       c = {}, s = {};
    float        sum = 0, scale = 1;

    if (R > 1) {
        first = blockIdx.y == 0 ? 0 : n_q + (blockIdx.y - 1) * n_kv;
        end = blockIdx.y == 0 ? n_q : first + n_kv;
    }

#pragma unroll
    for (int r = 0; r < R; r++) {
        p[r] = piece_of(a, first + threadIdx.x / HW_WARP + r * WARPS, end);
        w[r] = load_norm(a, p[r], cols);
    }

    hw_depend();
    hw_release();

    if (p[0].x != NULL) {
        const float *angle = a.l.q.angles.data + a.l.q.angles.stride * t
                             + 2 * hw_lane();

        c = *(const float2 *) (const void *) angle;
        s = *(const float2 *) (const void *) (angle + half);
    }

#pragma unroll
    for (int r = 0; r < R; r++) {
        x[r] = p[r].x != NULL ? load(p[r].x, cols) : make_float4(0, 0, 0, 0);
        sum += x[r].x * x[r].x + x[r].y * x[r].y + x[r].z * x[r].z
               + x[r].w * x[r].w;
    }

    if (a.l.norm_q != NULL) {
        scale = norm_scale<R>(a, p[0].kind, sum);
    }

#pragma unroll
    for (int r = 0; r < R; r++) {
        float  f = p[r].kind == VALUE ? 1 : scale;
        float4 v = make_float4(x[r].x * f * w[r].x, x[r].y * f * w[r].y,
                               x[r].z * f * w[r].z, x[r].w * f * w[r].w);

        if (p[r].x != NULL) {
            put(a, p[r], at, cols, p[r].kind == VALUE
                                   ? v : rotated(a.l.q, v, c, s));
        }
    }
}


/* Rows in which two columns can be loaded at once. */
static int
is_even(struct tensor x)
{
    return (uintptr_t) x.data % 8 == 0 && x.stride % 2 == 0;
}


int
cuda_qkv(struct cuda *c, const struct cuda_qkv *l)
{
    uint32_t        n_q = l->q.n_heads, n_kv = l->k.n_heads, n = l->q.n;
    uint32_t        n_most = n_q > n_kv ? n_q : n_kv;
    struct qkv_args a;

    if (n % 4 != 0 || n > HEAD_MAX || l->kv->row != 2 * n_kv * n
        || (l->whole && n_most > ROUNDS * WARPS) || !is_even(l->q.x)
        || !is_even(l->k.x) || !is_even(l->v) || !is_even(l->q.angles)
        || l->q.x_head % 2 != 0 || l->k.x_head % 2 != 0
        || (uintptr_t) l->norm_q % 8 != 0 || (uintptr_t) l->norm_k % 8 != 0)
    {
        return -1;
    }

    memset(&a, 0, sizeof(a));
    a.l = *l;
    a.kv = *l->kv;
    a.batch = c->batch;

    if (l->whole) {
        cuda_launch(c, dim3(c->n_tok, 3), CUDA_THREADS, WARPS * sizeof(float),
                    qkv_kernel<ROUNDS>, a);

    } else {
        cuda_launch(c, dim3(c->n_tok, cuda_div_up(n_q + 2 * n_kv, WARPS)),
                    CUDA_THREADS, 0, qkv_kernel<1>, a);
    }

    return 0;
}
