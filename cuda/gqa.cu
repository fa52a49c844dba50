/*
 * gqa.cu - grouped-query attention over pages of keys and values.
 *
 *   s(j) = scale q(h) . k(j, g);  y(h) = sum over j of softmax(s)(j) v(j, g)
 *   q, y (n_tok, n_heads, head); a KV row [n_kv_heads keys | values], head one
 *   bytes: 4 head a key and key head; FLOPs: 4 head a key and head: for a token
 *   with 8 heads to a key head 8 a byte, bound by memory; for a prompt by mma
 *
 * A row of a product is a query head of a token, of those that have a key head
 * in common: row u is head u % n_group of token u / n_group.  A warp has 16
 * rows, in registers from the scores to the output; the block's warps share a
 * page of keys and one of values, two of each, one being multiplied, one on
 * its way (64 KiB together for heads of 128).
 *
 *   scores   S (16, keys) = Q (16, head) K^T
 *   softmax  running maximum and sum a row
 *   values   O (16, head) += P (16, keys) V    P from S's registers
 *
 * alone   one token: SLICES warps have the same 16 rows and a slice each of
 *         the keys of a page, and are added up when all is done
 * run     of a prompt's tokens, TILES warps of 16 rows, all keys of a page; on
 *         Hopper most are gqa_wide.cu's
 *
 * Contexts are cut into parts of `per` pages.  Where these are tokens' alone,
 * the last block to be done adds a token's up, if they are at most LAST_BYTES;
 * else combine_kernel() does.  Scores are kept times log2 e, for exp2.
 *
 * Not measured on a GPU yet.
 */
#include "gqa.cuh"

#include <string.h>

#define HEAD_MAX        128
#define GROUPS          (HEAD_MAX / 16)     /* of columns */
#define SLICES          4
#define TILES           8
#define RUN_ROWS        (TILES * 16)
/* Elements between rows in shared memory: an odd number of 16 bytes, so that
 * the rows of a ldmatrix are in different banks. */
#define STRIDE(head)    ((head) + 8)
#define STAGE(head)     ((uint32_t) 2 * PAGE * STRIDE(head))
/* Pages in a part: fewer are not worth adding up, more make others wait. */
#define PER_MIN         4
#define PER_MAX         32

/*
 * Of parts, for the last block: from L2 it gets at most 64 bytes a clock, 128
 * KiB in 1.2 us and a latency or two, which is about what another kernel takes
 * to begin, and to read them by more blocks.  Of a run's 128 rows two parts are
 * as much already.
 */
#define LAST_BYTES      (128 * 1024)
/* Heads that a block of combine_kernel() has. */
#define COMBINED        4
/* Parts that a thread asks for at once. */
#define AHEAD           16

/* Where a block works: rows `base` .. of the tokens from `first` on, which are
 * [t0, t1) now; of key head g. */
struct where {
    uint32_t g;
    uint32_t first;
    uint32_t base;
    uint32_t t0;
    uint32_t t1;
};


/* The token of row u of the block, and whether it is one of these. */
static inline __device__ uint32_t
token_of(const struct gqa_args &m, const struct where &p, uint32_t u)
{
    uint32_t t = p.first + (p.base + u) / m.n_group;

    return t >= p.t0 && t < p.t1 ? t : m.n_tok;
}

static inline __device__ uint32_t
head_of(const struct gqa_args &m, const struct where &p, uint32_t u)
{
    return p.g * m.n_group + (p.base + u) % m.n_group;
}


/* Key head g of a page, and its values behind, to a stage.  Zeros from key
 * n_keys on: what another sequence left there may be NaN, and NaN times a
 * probability of 0 is NaN. */
static __device__ void
load_page(const struct gqa_args &m, const struct where &p, uint32_t page,
          uint32_t stage, uint32_t n_keys)
{
    uint32_t        head = m.a.head, pieces = head / 8, row = m.kv.row;
    uint32_t        col = threadIdx.x % pieces * 8;
    uint32_t        n = blockDim.x / pieces;    /* rows at once */
    uint32_t        id = m.batch.pages[m.batch.table[p.t0] + page];
    const uint16_t *from = (const uint16_t *) m.kv.data
                           + ((size_t) id * m.kv.n_layers + m.a.layer)
                             * PAGE * row;
    uint16_t       *to = (uint16_t *) (void *) hw_shared()
                         + stage * STAGE(head);

    /* Threads that are left over would have a part of a row. */
    if (threadIdx.x >= n * pieces) {
        return;
    }

    for (uint32_t is_value = 0; is_value < 2; is_value++) {
        uint32_t at = (is_value * m.a.n_kv_heads + p.g) * head + col;

        for (uint32_t j = threadIdx.x / pieces; j < PAGE; j += n) {
            hw_copy16(to + (is_value * PAGE + j) * STRIDE(head) + col,
                      from + cuda_kv_at(j, at, row), page * PAGE + j < n_keys);
        }
    }
}


/* Q as mma's A: a lane's rows are u and u + 8. */
static __device__ void
load_q(uint4 (&q)[GROUPS], const struct gqa_args &m, const struct where &p,
       uint32_t u)
{
    uint32_t    t[2] = { token_of(m, p, u), token_of(m, p, u + 8) };
    const float *x[2];

    for (int half = 0; half < 2; half++) {
        x[half] = t[half] == m.n_tok ? NULL
                  : m.a.q.data + m.a.q.stride * t[half]
                    + (size_t) head_of(m, p, u + half * 8) * m.a.head
                    + hw_lane() % 4 * 2;
    }

#pragma unroll
    for (int k = 0; k < GROUPS; k++) {
        uint32_t v[4] = {};

        for (int i = 0; i < 4 && k * 16 < (int) m.a.head; i++) {
            const float *from = x[i % 2];

            if (from != NULL) {
                from += k * 16 + i / 2 * 8;
                v[i] = hw_bf16x2(from[0], from[1]);
            }
        }

        q[k] = make_uint4(v[0], v[1], v[2], v[3]);
    }
}


/* Of a lane's two rows, l / 4 and l / 4 + 8 of its warp's. */
struct running {
    float max[2];
    float sum[2];               /* of this lane's keys alone */
};


/* s (16, KEYS): keys from j0 of a page on; of those there are n_keys[..] for
 * the lane's rows. */
template <int KEYS>
static __device__ __forceinline__ void
scores(float (&s)[KEYS / 8][4], const uint4 (&q)[GROUPS],
       const struct gqa_args &m, const uint16_t *keys, uint32_t j0,
       const uint32_t (&n_keys)[2])
{
    uint32_t l = hw_lane(), head = m.a.head;
    float    scale = m.a.scale * LOG2_E;

    memset(s, 0, sizeof(s));

#pragma unroll
    for (int k = 0; k < GROUPS; k++) {
        if (k * 16 >= (int) head) {
            break;
        }

#pragma unroll
        for (int i = 0; i < KEYS / 16; i++) {
            uint4 b = hw_ldmatrix(keys + (j0 + i * 16 + l / 16 * 8 + l % 8)
                                         * STRIDE(head)
                                  + k * 16 + l / 8 % 2 * 8);

            hw_mma(s[2 * i], q[k], make_uint2(b.x, b.y));
            hw_mma(s[2 * i + 1], q[k], make_uint2(b.z, b.w));
        }
    }

#pragma unroll
    for (int i = 0; i < KEYS / 8; i++) {
#pragma unroll
        for (int d = 0; d < 4; d++) {
            uint32_t j = j0 + i * 8 + l % 4 * 2 + d % 2;

            s[i][d] = j < n_keys[d / 2] ? s[i][d] * scale : -INFINITY;
        }
    }
}


/* s = exp2(s - max), and o rescaled.  A row without a key in a part's first
 * page has none in the part: it becomes NaN, and goes nowhere. */
template <int KEYS>
static __device__ __forceinline__ void
soften(float (&s)[KEYS / 8][4], float (&o)[2 * GROUPS][4],
       struct running *run)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float max = run->max[half];

#pragma unroll
        for (int i = 0; i < KEYS / 8; i++) {
            max = fmaxf(max, fmaxf(s[i][2 * half], s[i][2 * half + 1]));
        }

        max = fmaxf(max, hw_xor(max, 1));
        max = fmaxf(max, hw_xor(max, 2));

        float rescale = hw_exp2(run->max[half] - max);

        run->max[half] = max;
        run->sum[half] *= rescale;

#pragma unroll
        for (int i = 0; i < KEYS / 8; i++) {
#pragma unroll
            for (int d = 2 * half; d < 2 * half + 2; d++) {
                s[i][d] = hw_exp2(s[i][d] - max);
                run->sum[half] += s[i][d];
            }
        }

#pragma unroll
        for (int g = 0; g < 2 * GROUPS; g++) {
            o[g][2 * half] *= rescale;
            o[g][2 * half + 1] *= rescale;
        }
    }
}


/* o (16, head) += P V, of the same keys. */
template <int KEYS>
static __device__ __forceinline__ void
values(float (&o)[2 * GROUPS][4], const float (&s)[KEYS / 8][4],
       const struct gqa_args &m, const uint16_t *vals, uint32_t j0)
{
    uint32_t l = hw_lane(), head = m.a.head;

#pragma unroll
    for (int i = 0; i < KEYS / 16; i++) {
        const float (&lo)[4] = s[2 * i], (&hi)[4] = s[2 * i + 1];
        uint4 p = make_uint4(hw_bf16x2(lo[0], lo[1]), hw_bf16x2(lo[2], lo[3]),
                             hw_bf16x2(hi[0], hi[1]), hw_bf16x2(hi[2], hi[3]));

#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            if (g * 16 >= (int) head) {
                break;
            }

            uint4 b = hw_ldmatrix_trans(vals + (j0 + i * 16 + l % 16)
                                               * STRIDE(head)
                                        + g * 16 + l / 16 * 8);

            hw_mma(o[2 * g], p, make_uint2(b.x, b.y));
            hw_mma(o[2 * g + 1], p, make_uint2(b.z, b.w));
        }
    }
}


/* Where a row's output goes, and what it is multiplied by; its maximum and sum,
 * by the thread that `says` so.  NULL: nowhere, its token has no such part. */
static __device__ float *
output_of(const struct gqa_args &m, const struct where &p, uint32_t u,
          float max, float sum, bool says, float *scale)
{
    uint32_t t = token_of(m, p, u), h = head_of(m, p, u);
    size_t   part = ((size_t) t * m.a.n_heads + h) * m.n_splits + blockIdx.y;

    if (t == m.n_tok || blockIdx.y >= parts_of(m, t)) {
        return NULL;
    }

    if (parts_of(m, t) == 1) {
        *scale = 1 / sum;
        return m.a.y.data + m.a.y.stride * t + (size_t) h * m.a.head;
    }

    if (says) {
        m.stats[part * 2] = max;
        m.stats[part * 2 + 1] = sum;
    }

    *scale = 1;

    return m.parts + part * m.a.head;
}


/* A warp that has its rows for itself. */
static __device__ void
store(const float (&o)[2 * GROUPS][4], const struct running &run,
      const struct gqa_args &m, const struct where &p, uint32_t u)
{
    uint32_t c = hw_lane() % 4;

#pragma unroll
    for (int half = 0; half < 2; half++) {
        float  scale;
        float *to = output_of(m, p, u + half * 8, run.max[half],
                              run.sum[half], c == 0, &scale);

#pragma unroll
        for (int g = 0; g < 2 * GROUPS; g++) {
            if (to != NULL && g * 8 < (int) m.a.head) {
                to[g * 8 + c * 2] = o[g][2 * half] * scale;
                to[g * 8 + c * 2 + 1] = o[g][2 * half + 1] * scale;
            }
        }
    }
}


/* Warps that have slices of the same 16 rows: where pages were, the outputs
 * (SLICES, 16, head) of each, then maxima and sums (SLICES, 16, 2). */
static __device__ void
store_slices(const float (&o)[2 * GROUPS][4], const struct running &run,
             const struct gqa_args &m, const struct where &p)
{
    uint32_t warp = threadIdx.x / HW_WARP, l = hw_lane(), head = m.a.head;
    float   *all = (float *) (void *) hw_shared();
    float   *stats = all + SLICES * 16 * head;

#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t row = warp * 16 + l / 4 + half * 8;

#pragma unroll
        for (int g = 0; g < 2 * GROUPS; g++) {
            if (g * 8 < (int) head) {
                all[row * head + g * 8 + l % 4 * 2] = o[g][2 * half];
                all[row * head + g * 8 + l % 4 * 2 + 1] = o[g][2 * half + 1];
            }
        }

        if (l % 4 == 0) {
            stats[row * 2] = run.max[half];
            stats[row * 2 + 1] = run.sum[half];
        }
    }

    __syncthreads();

    for (uint32_t i = threadIdx.x; i < 16 * head; i += blockDim.x) {
        uint32_t u = i / head, col = i % head;
        float    max = -INFINITY, sum = 0, v = 0, scale;

        for (uint32_t w = 0; w < SLICES; w++) {
            max = fmaxf(max, stats[(w * 16 + u) * 2]);
        }

        for (uint32_t w = 0; w < SLICES; w++) {
            const float *of = stats + (w * 16 + u) * 2;
            float        f = hw_exp2(of[0] - max);

            sum += f * of[1];
            v += f * all[(w * 16 + u) * head + col];
        }

        float *to = output_of(m, p, u, max, sum, col == 0, &scale);

        if (to != NULL) {
            to[col] = v * scale;
        }
    }

    __syncthreads();
}


/* The place's rows over the part's pages, for all threads of the block. */
template <int N_SLICES>
static __device__ __forceinline__ void
attend(const struct gqa_args &m, const struct where &p)
{
    const int       KEYS = PAGE / N_SLICES;
    uint32_t        warp = threadIdx.x / HW_WARP;
    uint32_t        u = warp / N_SLICES * 16 + hw_lane() / 4;
    uint32_t        j0 = warp % N_SLICES * KEYS, head = m.a.head;
    uint32_t        n_all = m.batch.pos[p.t1 - 1] + 1, n_mine[2];
    uint32_t        from = m.per * blockIdx.y;
    uint32_t        to = min(from + m.per, cuda_div_up(n_all, PAGE));
    struct running  run = { { -INFINITY, -INFINITY }, { 0, 0 } };
    float           s[KEYS / 8][4], o[2 * GROUPS][4];
    uint4           q[GROUPS];

    if (from >= to) {
        return;
    }

    for (int half = 0; half < 2; half++) {
        uint32_t t = token_of(m, p, u + half * 8);

        n_mine[half] = t == m.n_tok ? 0 : m.batch.pos[t] + 1;
    }

    memset(o, 0, sizeof(o));
    load_page(m, p, from, 0, n_all);
    hw_copy_commit();
    load_q(q, m, p, u);

    for (uint32_t page = from; page < to; page++) {
        uint32_t stage = (page - from) % 2, before = page * PAGE;

        if (page + 1 < to) {
            load_page(m, p, page + 1, stage ^ 1, n_all);
            hw_copy_commit();
            hw_copy_wait<1>();

        } else {
            hw_copy_wait<0>();
        }

        __syncthreads();

        const uint16_t *keys = (const uint16_t *) (void *) hw_shared()
                               + stage * STAGE(head);
        uint32_t        n_keys[2] = {
            n_mine[0] > before ? n_mine[0] - before : 0,
            n_mine[1] > before ? n_mine[1] - before : 0
        };

        /* No row of the warp has a key here: nothing would change. */
        if (hw_ballot(n_keys[0] > j0 || n_keys[1] > j0) != 0) {
            scores<KEYS>(s, q, m, keys, j0, n_keys);
            soften<KEYS>(s, o, &run);
            values<KEYS>(o, s, m, keys + PAGE * STRIDE(head), j0);
        }

        __syncthreads();
    }

#pragma unroll
    for (int half = 0; half < 2; half++) {
        run.sum[half] += hw_xor(run.sum[half], 1);
        run.sum[half] += hw_xor(run.sum[half], 2);
    }

    if (N_SLICES == 1) {
        store(o, run, m, p, u);

    } else {
        store_slices(o, run, m, p);
    }
}


/* Heads h0 .. h0 + n_heads - 1 of a token, of its n parts.  In shared memory,
 * behind a word that is another's, maxima and sums (n_heads, n, 2). */
static __device__ void
combine(const struct gqa_args &m, uint32_t t, uint32_t h0, uint32_t n_heads,
        uint32_t n)
{
    uint32_t     head = m.a.head, cols = head / 4;
    size_t       part = ((size_t) t * m.a.n_heads + h0) * m.n_splits;
    const float *parts = m.parts + part * head, *stats = m.stats + part * 2;
    float       *y = m.a.y.data + m.a.y.stride * t + (size_t) h0 * head;
    float       *room = (float *) (void *) hw_shared() + 1;

    for (uint32_t i = threadIdx.x; i < n_heads * n * 2; i += blockDim.x) {
        room[i] = hw_load_fresh(stats + i / (n * 2) * (m.n_splits * 2)
                                + i % (n * 2));
    }

    __syncthreads();

    for (uint32_t i = threadIdx.x; i < n_heads * cols; i += blockDim.x) {
        uint32_t     h = i / cols, col = i % cols * 4;
        const float *of = room + h * n * 2;
        const float *from = parts + (size_t) h * m.n_splits * head + col;
        float        v[4] = {}, max = -INFINITY, sum = 0;

        for (uint32_t k = 0; k < n; k++) {
            max = fmaxf(max, of[k * 2]);
        }

        for (uint32_t k0 = 0; k0 < n; k0 += AHEAD) {
            float4 x[AHEAD];

#pragma unroll
            for (int k = 0; k < AHEAD; k++) {
                if (k0 + k < n) {
                    x[k] = hw_load_fresh((const float4 *) (const void *)
                                         (from + (size_t) (k0 + k) * head));
                }
            }

#pragma unroll
            for (int k = 0; k < AHEAD; k++) {
                if (k0 + k < n) {
                    float f = hw_exp2(of[(k0 + k) * 2] - max);

                    sum += f * of[(k0 + k) * 2 + 1];
                    v[0] += f * x[k].x;
                    v[1] += f * x[k].y;
                    v[2] += f * x[k].z;
                    v[3] += f * x[k].w;
                }
            }
        }

        for (int d = 0; d < 4; d++) {
            y[(size_t) h * head + col + d] = v[d] / sum;
        }
    }
}


/* Block (token, part, 16 rows of a key head). */
static __global__ void __launch_bounds__(SLICES * HW_WARP)
alone_kernel(const struct gqa_args m)
{
    uint32_t     n_tiles = cuda_div_up(m.n_group, 16), t = blockIdx.x;
    uint32_t    *room = (uint32_t *) (void *) hw_shared();
    struct where p = { blockIdx.z / n_tiles, t, blockIdx.z % n_tiles * 16, t,
                       t + 1 };

    hw_depend();
    hw_release();

    uint32_t n = parts_of(m, t);

    if (!is_mine(m, t) || blockIdx.y >= n) {
        return;
    }

    attend<SLICES>(m, p);

    if (n > 1 && m.counters != NULL
        && cuda_is_last(&m.counters[t * gridDim.z + blockIdx.z], n, room))
    {
        combine(m, t, head_of(m, p, 0), min(m.n_group - p.base, 16u), n);
    }
}


/* Block (RUN_ROWS / n_group tokens, part, key head). */
static __global__ void __launch_bounds__(TILES * HW_WARP, 1)
run_kernel(const struct gqa_args m)
{
    uint32_t     n = RUN_ROWS / m.n_group, first = blockIdx.x * n, t1;
    uint32_t     end = min(first + n, m.n_tok);
    struct where p = { blockIdx.z, first, 0, 0, 0 };

    hw_depend();
    hw_release();

    /* One table after the other, though most often there is one. */
    for (uint32_t t0 = first; t0 < end; t0 = t1) {
        for (t1 = t0 + 1; t1 < end && m.batch.table[t1] == m.batch.table[t0];
             t1++)
        {
        }

        if (is_mine(m, t0)) {
            p.t0 = t0;
            p.t1 = t1;
            attend<1>(m, p);
        }
    }
}


/* Block (token, COMBINED heads). */
static __global__ void __launch_bounds__(COMBINED * HEAD_MAX / 4)
combine_kernel(const struct gqa_args m)
{
    uint32_t t = blockIdx.x, h0 = blockIdx.y * COMBINED;

    hw_depend();
    hw_release();

    uint32_t n = parts_of(m, t);

    if (is_mine(m, t) && n > 1) {
        combine(m, t, h0, min(m.a.n_heads - h0, (uint32_t) COMBINED), n);
    }
}


/* FP32 keys, and heads that the other kernels have no registers for: a block a
 * token and head, a thread a key, then a thread a column. */
static __global__ void
plain_kernel(const struct gqa_args m)
{
    uint32_t     t = blockIdx.x, h = blockIdx.y, head = m.a.head;
    uint32_t     row = m.kv.row;
    uint32_t     key = h / m.n_group * head;
    uint32_t     value = key + m.a.n_kv_heads * head;
    const float *q = m.a.q.data + m.a.q.stride * t + (size_t) h * head;
    float       *y = m.a.y.data + m.a.y.stride * t + (size_t) h * head;
    float       *p = (float *) (void *) hw_shared();
    float        max = -INFINITY, sum = 0;

    hw_depend();
    hw_release();

    uint32_t n_keys = m.batch.pos[t] + 1;

    for (uint32_t k = threadIdx.x; k < head; k += PAGE) {
        y[k] = 0;
    }

    for (uint32_t j0 = 0; j0 < n_keys; j0 += PAGE) {
        uint32_t        id = m.batch.pages[m.batch.table[t] + j0 / PAGE];
        size_t          at = ((size_t) id * m.kv.n_layers + m.a.layer)
                             * PAGE * row;
        const float    *kv = (const float *) m.kv.data + at;
        const uint16_t *kv16 = (const uint16_t *) m.kv.data + at;
        int             is_f32 = m.kv.dtype == DTYPE_F32;
        uint32_t        n = min(n_keys - j0, (uint32_t) PAGE);
        float           s = 0, was = max;

        for (uint32_t k = 0; k < head && threadIdx.x < n; k++) {
            s += q[k] * (is_f32 ? kv[threadIdx.x * row + key + k]
                         : cuda_bf16(kv16[cuda_kv_at(threadIdx.x, key + k,
                                                     row)]));
        }

        __syncthreads();
        p[threadIdx.x] = threadIdx.x < n ? s * m.a.scale * LOG2_E : -INFINITY;
        __syncthreads();

        for (uint32_t j = 0; j < n; j++) {
            max = fmaxf(max, p[j]);
        }

        float rescale = exp2f(was - max);

        sum *= rescale;

        for (uint32_t j = 0; j < n; j++) {
            sum += exp2f(p[j] - max);
        }

        for (uint32_t k = threadIdx.x; k < head; k += PAGE) {
            float v = y[k] * rescale;

            for (uint32_t j = 0; j < n; j++) {
                v += exp2f(p[j] - max)
                     * (is_f32 ? kv[j * row + value + k]
                        : cuda_bf16(kv16[cuda_kv_at(j, value + k, row)]));
            }

            y[k] = v;
        }
    }

    for (uint32_t k = threadIdx.x; k < head; k += PAGE) {
        y[k] /= sum;
    }
}


/* How contexts are cut: into as many parts as give each SM two blocks, and none
 * so long that the others wait for it; what fits scratch memory. */
static void
choose_parts(const struct cuda *c, struct gqa_args *m)
{
    uint32_t n_pages = c->max_pos / PAGE + 1;
    uint64_t blocks = (uint64_t) c->n_tok * m->a.n_kv_heads
                      * cuda_div_up(m->n_group, 16);
    uint64_t per = (n_pages * blocks + 2 * (uint64_t) c->n_sm - 1)
                   / (2 * (uint64_t) c->n_sm);
    size_t   part = (size_t) c->n_tok * m->a.n_heads * (m->a.head + 2)
                    * sizeof(float);
    uint32_t most = (uint32_t) (CUDA_SCRATCH / part);

    per = per < PER_MIN ? PER_MIN : per > PER_MAX ? PER_MAX : per;
    most = most > 0 && !c->deterministic ? most : 1;
    m->n_splits = cuda_div_up(n_pages, (uint32_t) per);
    m->n_splits = m->n_splits < most ? m->n_splits : most;
    m->per = cuda_div_up(n_pages, m->n_splits);

    m->parts = c->scratch;
    m->stats = m->parts + (size_t) c->n_tok * m->a.n_heads * m->n_splits
                          * m->a.head;
}


/* Of n tiles of 16 rows a token, and in so many bytes of shared memory. */
static int
last_combines(const struct cuda *c, const struct gqa_args *m, uint32_t n_tiles,
              size_t room)
{
    size_t n = (size_t) (m->n_group < 16 ? m->n_group : 16) * m->n_splits;

    return n * m->a.head * sizeof(float) <= LAST_BYTES
           && (1 + 2 * n) * sizeof(float) <= room
           && (size_t) c->n_tok * n_tiles <= CUDA_COUNTERS;
}


void
cuda_gqa_combine(struct cuda *c, const struct gqa_args *m)
{
    cuda_launch(c, dim3(c->n_tok, cuda_div_up(m->a.n_heads, COMBINED)),
                COMBINED * HEAD_MAX / 4,
                (1 + 2 * COMBINED * m->n_splits) * sizeof(float),
                combine_kernel, *m);
}


static void
launch(struct cuda *c, struct gqa_args *m)
{
    size_t   room = 2 * STAGE(m->a.head) * sizeof(uint16_t);
    uint32_t n_tiles = m->a.n_kv_heads * cuda_div_up(m->n_group, 16);
    int      runs = c->mix != CUDA_ALONE && cuda_gqa_wide(c, m) != 0;

    if (!runs && last_combines(c, m, n_tiles, room)) {
        m->counters = c->counters;
    }

    if (c->mix != CUDA_RUNS) {
        m->which = c->mix == CUDA_ALONE ? EVERY : ALONE;
        cuda_launch(c, dim3(c->n_tok, m->n_splits, n_tiles), SLICES * HW_WARP,
                    room, alone_kernel, *m);
    }

    if (runs) {
        m->which = c->mix == CUDA_RUNS ? EVERY : RUNS;
        cuda_launch(c, dim3(cuda_div_up(c->n_tok, RUN_ROWS / m->n_group),
                            m->n_splits, m->a.n_kv_heads),
                    TILES * HW_WARP, room, run_kernel, *m);
    }

    if (m->n_splits > 1 && m->counters == NULL
        && (runs || c->mix != CUDA_RUNS))
    {
        m->which = runs ? EVERY : m->which;
        cuda_gqa_combine(c, m);
    }
}


void
cuda_gqa(struct backend *b, const struct gqa *a)
{
    struct cuda    *c = cuda_of(b);
    struct gqa_args m;

    memset(&m, 0, sizeof(m));
    m.a = *a;
    m.kv = *a->kv;
    m.batch = c->batch;
    m.n_tok = c->n_tok;
    m.n_group = a->n_heads / a->n_kv_heads;

    if (m.kv.dtype == DTYPE_F32 || a->head > HEAD_MAX
        || m.n_group > RUN_ROWS)
    {
        cuda_launch(c, dim3(c->n_tok, a->n_heads), PAGE, PAGE * sizeof(float),
                    plain_kernel, m);
        return;
    }

    choose_parts(c, &m);
    launch(c, &m);
}
