/*
 * mla.cu - absorbed latent attention over pages of keys, for few tokens.
 *
 *   s(j) = scale q(h) . kv(j);  y(h) = sum over j of softmax(s)(j) kv(j)
 *   q (n_tok, n_heads, row), kv row elements a key, y the first n_latent
 *   bytes: 2 row a key; FLOPs: 2 (row + n_latent) a key and head: with 16
 *   heads 30 a byte, bound by memory; with 128 heads bound by mma
 *
 * A block takes 16 heads of one token and a part of its pages; two pages are
 * in shared memory, one being multiplied, one on its way (72 KiB each for
 * DeepSeek's 576).  Four warps:
 *
 *   scores   S (16, 64) = Q (16, row) K^T      warp w has keys 16w .. 16w + 15
 *   softmax  running maximum and sum a head, in every warp
 *   values   O (16, n_latent) += P (16, 64) K  warp w has columns 16 (4i + w)
 *
 * Tokens of a prompt that follow one another share a table: of those a block
 * takes TOKENS, with four warps each, which read the same page.
 *
 * DeepSeek's shape is mla_wide.cu's on Hopper.
 *
 * A part is written unscaled, with maximum and sum; the last block of a token's
 * parts adds them up (mla.cuh), or, of many parts, combine_kernel() does.
 * Scores are kept times log2 e, for exp2.
 *
 * Not measured on a GPU yet.
 */
#include "mla.cuh"
#include "stream.cuh"

#define HEADS           16
#define WARPS           4
#define THREADS         (WARPS * HW_WARP)   /* of a token */
#define TOKENS          2                   /* of a prompt, in a block */
#define PAGE            MLA_PAGE
#define COLS_MAX        512             /* of values */
#define GROUPS          (COLS_MAX / 16 / WARPS)
/* Elements between rows of Q and P: 16 bytes more, so that the rows of a
 * ldmatrix are in different banks. */
#define Q_STRIDE(row)   ((row) + 8)
#define P_STRIDE        (PAGE + 8)
#define LOG2_E          MLA_LOG2_E
#define NOBODY          0xffffffffu

/* Shared memory of mla_kernel(). */
struct mla_room {
    uint16_t *q;                /* (16, Q_STRIDE) bf16, a token's own */
    uint16_t *p;                /* (16, P_STRIDE) bf16 */
    float    *max;              /* (WARPS, 16) */
    float    *sum;              /* (WARPS, 16) */
    uint16_t *kv;               /* (n_stages, PAGE, row) */
};


static inline __device__ __host__ size_t
token_bytes(uint32_t row)
{
    return (size_t) HEADS * (Q_STRIDE(row) + P_STRIDE) * 2
           + 2 * WARPS * HEADS * sizeof(float);
}


static inline __device__ __host__ size_t
room_bytes(uint32_t row, uint32_t n_stages, uint32_t n_tok)
{
    return token_bytes(row) * n_tok + (size_t) n_stages * PAGE * row * 2;
}


/* Of this thread's token; pages come first. */
static __device__ struct mla_room
room_of(uint32_t row, uint32_t n_stages)
{
    struct mla_room r;

    r.kv = (uint16_t *) (void *) hw_shared();
    r.q = (uint16_t *) (void *)
          (hw_shared() + (size_t) n_stages * PAGE * row * 2
           + threadIdx.x / THREADS * token_bytes(row));
    r.p = r.q + HEADS * Q_STRIDE(row);
    r.max = (float *) (void *) (r.p + HEADS * P_STRIDE);
    r.sum = r.max + WARPS * HEADS;

    return r;
}


static __device__ void
load_q(const struct mla_args &m, const struct mla_room &r, uint32_t t)
{
    uint32_t row = m.kv.row, pairs = row / 2;
    uint32_t head0 = blockIdx.z * HEADS;

    for (uint32_t i = threadIdx.x % THREADS; i < HEADS * pairs;
         i += THREADS)
    {
        uint32_t     h = i / pairs, k = i % pairs * 2;
        const float *q = m.a.q.data + m.a.q.stride * t
                         + (size_t) (head0 + h) * row + k;
        uint32_t     v = head0 + h < m.a.n_heads ? hw_bf16x2(q[0], q[1]) : 0;

        *(uint32_t *) (void *) (r.q + h * Q_STRIDE(row) + k) = v;
    }
}


/* A page stays in the order that it has.  Zeros from key n_keys on: what
 * another sequence left there may be NaN, and NaN times a probability of 0 is
 * NaN. */
static __device__ void
load_page(const struct mla_args &m, const struct mla_room &r, uint32_t t,
          uint32_t page, uint32_t stage, uint32_t n_keys)
{
    uint32_t       n = PAGE * m.kv.row;
    uint32_t       id = m.batch.pages[m.batch.table[t] + page];
    const uint16_t *from = (const uint16_t *) m.kv.data
                           + ((size_t) id * m.kv.n_layers + m.a.layer) * n;
    uint16_t      *to = r.kv + (size_t) stage * n;

    for (uint32_t col = 0; col < m.kv.row; col += CUDA_KV_COLS) {
        uint32_t n_cols = min(m.kv.row - col, (uint32_t) CUDA_KV_COLS);

        for (uint32_t i = threadIdx.x * 8; i < PAGE * n_cols;
             i += blockDim.x * 8)
        {
            uint32_t key = n_cols == CUDA_KV_COLS ? i / CUDA_KV_COLS
                                                  : i / n_cols;

            hw_copy16(to + col * PAGE + i, from + col * PAGE + i,
                      page * PAGE + key < n_keys);
        }
    }
}


/* s: keys 16w .. 16w + 15 of the page in two tiles of 8, times scale. */
static __device__ void
scores(float (&s)[2][4], const struct mla_args &m, const struct mla_room &r,
       const uint16_t *kv, uint32_t n_keys)
{
    uint32_t warp = threadIdx.x / HW_WARP % WARPS, l = hw_lane();
    uint32_t row = m.kv.row;
    uint32_t key = warp * 16 + l / 16 * 8 + l % 8;
    float    scale = m.a.scale * LOG2_E;

    memset(s, 0, sizeof(s));

    for (uint32_t k = 0; k < row; k += 16) {
        uint4 a = hw_ldmatrix(r.q + l % 16 * Q_STRIDE(row) + k + l / 16 * 8);
        uint4 b = hw_ldmatrix(kv + cuda_kv_at(key, k + l / 8 % 2 * 8, row));

        hw_mma(s[0], a, make_uint2(b.x, b.y));
        hw_mma(s[1], a, make_uint2(b.z, b.w));
    }

#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int d = 0; d < 4; d++) {
            uint32_t j = warp * 16 + i * 8 + l % 4 * 2 + d % 2;

            s[i][d] = j < n_keys ? s[i][d] * scale : -INFINITY;
        }
    }
}


/* Of a lane's two rows (heads), l / 4 and l / 4 + 8. */
struct running {
    float max[2];
    float sum[2];               /* of this lane's keys alone */
};


/* This warp's largest score of each head, to shared memory. */
static __device__ void
put_max(const float (&s)[2][4], const struct mla_room &r)
{
    uint32_t warp = threadIdx.x / HW_WARP % WARPS, l = hw_lane();

#pragma unroll
    for (int half = 0; half < 2; half++) {
        float max = fmaxf(fmaxf(s[0][2 * half], s[0][2 * half + 1]),
                          fmaxf(s[1][2 * half], s[1][2 * half + 1]));

        max = fmaxf(max, hw_xor(max, 1));
        max = fmaxf(max, hw_xor(max, 2));

        if (l % 4 == 0) {
            r.max[warp * HEADS + l / 4 + half * 8] = max;
        }
    }
}


/* P = exp2(s - max), to shared memory; `rescale` is what the sums so far have
 * to be multiplied with. */
static __device__ void
soften(float (&s)[2][4], struct running *run, float (&rescale)[2],
       const struct mla_room &r)
{
    uint32_t warp = threadIdx.x / HW_WARP % WARPS, l = hw_lane();

#pragma unroll
    for (int half = 0; half < 2; half++) {
        float    max = run->max[half];
        uint32_t h = l / 4 + half * 8;

        for (int w = 0; w < WARPS; w++) {
            max = fmaxf(max, r.max[w * HEADS + h]);
        }

        rescale[half] = exp2f(run->max[half] - max);
        run->max[half] = max;
        run->sum[half] *= rescale[half];

        for (int i = 0; i < 2; i++) {
            float p0 = exp2f(s[i][2 * half] - max);
            float p1 = exp2f(s[i][2 * half + 1] - max);

            run->sum[half] += p0 + p1;
            *(uint32_t *) (void *) (r.p + h * P_STRIDE + warp * 16 + i * 8
                                    + l % 4 * 2) = hw_bf16x2(p0, p1);
        }
    }
}


/* o += P K, for this warp's groups of 16 columns. */
static __device__ void
values(float (&o)[GROUPS][2][4], const float (&rescale)[2],
       const struct mla_args &m, const struct mla_room &r, const uint16_t *kv)
{
    uint32_t warp = threadIdx.x / HW_WARP % WARPS, l = hw_lane();

#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        for (int i = 0; i < 2; i++) {
            o[g][i][0] *= rescale[0];
            o[g][i][1] *= rescale[0];
            o[g][i][2] *= rescale[1];
            o[g][i][3] *= rescale[1];
        }
    }

    for (uint32_t k = 0; k < PAGE; k += 16) {
        uint4 a = hw_ldmatrix(r.p + l % 16 * P_STRIDE + k + l / 16 * 8);

#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            uint32_t col = (g * WARPS + warp) * 16;

            if (col < m.a.n_latent) {
                uint4 b = hw_ldmatrix_trans(
                    kv + cuda_kv_at(k + l % 16, col + l / 16 * 8, m.kv.row));

                hw_mma(o[g][0], a, make_uint2(b.x, b.y));
                hw_mma(o[g][1], a, make_uint2(b.z, b.w));
            }
        }
    }
}


/* This warp's sum of each head, to shared memory. */
static __device__ void
put_sums(const struct running *run, const struct mla_room &r)
{
    uint32_t warp = threadIdx.x / HW_WARP % WARPS, l = hw_lane();

    for (int half = 0; half < 2; half++) {
        float sum = run->sum[half];

        sum += hw_xor(sum, 1);
        sum += hw_xor(sum, 2);

        if (l % 4 == 0) {
            r.sum[warp * HEADS + l / 4 + half * 8] = sum;
        }
    }
}


/* The sum over all keys of each of this lane's two heads. */
static __device__ void
whole_sums(struct running *run, const struct mla_room &r)
{
    for (int half = 0; half < 2; half++) {
        run->sum[half] = 0;

        for (int w = 0; w < WARPS; w++) {
            run->sum[half] += r.sum[w * HEADS + hw_lane() / 4 + half * 8];
        }
    }
}


/* y itself where there is one part; else parts and stats. */
static __device__ void
store(const float (&o)[GROUPS][2][4], const struct running *run,
      const struct mla_args &m, uint32_t t)
{
    uint32_t warp = threadIdx.x / HW_WARP % WARPS, l = hw_lane();

    for (int half = 0; half < 2; half++) {
        uint32_t h = blockIdx.z * HEADS + l / 4 + half * 8;
        size_t   part = ((size_t) t * m.a.n_heads + h) * m.n_splits
                        + blockIdx.y;
        float   *to = m.parts == NULL
                      ? m.a.y.data + m.a.y.stride * t + (size_t) h * m.kv.row
                      : m.parts + part * m.a.n_latent;
        float    scale = m.parts == NULL ? 1 / run->sum[half] : 1;

        if (h >= m.a.n_heads) {
            continue;
        }

#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            for (int i = 0; i < 2; i++) {
                uint32_t col = (g * WARPS + warp) * 16 + i * 8 + l % 4 * 2;

                if (col < m.a.n_latent) {
                    to[col] = o[g][i][half * 2] * scale;
                }

                if (col + 1 < m.a.n_latent) {
                    to[col + 1] = o[g][i][half * 2 + 1] * scale;
                }
            }
        }

        if (m.parts != NULL && warp == 0 && l % 4 == 0) {
            m.stats[part * 2] = run->max[half];
            m.stats[part * 2 + 1] = run->sum[half];
        }
    }
}


/* Pages [from, to) of the table of tokens t0 .. last, for all threads of the
 * block; those of tokens that are not of it (t is NOBODY) keep the barriers
 * company. */
static __device__ void
attend(const struct mla_args &m, uint32_t t0, uint32_t last, uint32_t t,
       uint32_t from, uint32_t to)
{
    struct mla_room r = room_of(m.kv.row, m.n_stages);
    struct running  run = { { -INFINITY, -INFINITY }, { 0, 0 } };
    uint32_t        n_all = t == NOBODY ? 0 : m.batch.pos[t] + 1;
    uint32_t        n_keys = m.batch.pos[last] + 1;
    float           s[2][4], o[GROUPS][2][4], rescale[2];

    memset(o, 0, sizeof(o));

    if (from < to) {
        load_page(m, r, t0, from, 0, n_keys);
        hw_copy_commit();

        if (t != NOBODY) {
            load_q(m, r, t);
        }
    }

    for (uint32_t page = from; page < to; page++) {
        uint32_t stage = (page - from) % m.n_stages;

        if (m.n_stages == 2 && page + 1 < to) {
            load_page(m, r, t0, page + 1, stage ^ 1, n_keys);
            hw_copy_commit();
            hw_copy_wait<1>();

        } else {
            hw_copy_wait<0>();
        }

        __syncthreads();

        const uint16_t *kv = r.kv + (size_t) stage * PAGE * m.kv.row;
        int             has_keys = n_all > page * PAGE;

        if (has_keys) {
            scores(s, m, r, kv, n_all - page * PAGE);
            put_max(s, r);
        }

        __syncthreads();

        if (has_keys) {
            soften(s, &run, rescale, r);
        }

        __syncthreads();

        if (has_keys) {
            values(o, rescale, m, r, kv);
        }

        __syncthreads();

        if (m.n_stages == 1 && page + 1 < to) {
            load_page(m, r, t0, page + 1, 0, n_keys);
            hw_copy_commit();
        }
    }

    put_sums(&run, r);
    __syncthreads();

    if (t != NOBODY) {
        whole_sums(&run, r);
        store(o, &run, m, t);
    }

    __syncthreads();
}


static __global__ void __launch_bounds__(TOKENS * THREADS, 1)
mla_kernel(const struct mla_args m)
{
    uint32_t n = blockDim.x / THREADS, first = blockIdx.x * n, from, to;
    uint32_t end = min(first + n, m.n_tok), t = first + threadIdx.x / THREADS;

    hw_depend();
    hw_release();

    /* One table after the other, though most often there is one: tokens of a
     * sequence share it, and the last of them has most pages. */
    for (uint32_t t0 = first, t1; t0 < end; t0 = t1) {
        for (t1 = t0 + 1; t1 < end && m.batch.table[t1] == m.batch.table[t0];
             t1++)
        {
        }

        mla_part(m, t1 - 1, &from, &to);
        attend(m, t0, t1 - 1, t >= t0 && t < t1 ? t : NOBODY, from, to);
    }

    if (m.counters != NULL) {
        uint32_t        head0 = blockIdx.z * HEADS;
        uint32_t        n_heads = min(m.a.n_heads - head0, (uint32_t) HEADS);
        struct mla_rows rows = { first, head0, n_heads, n_heads };

        mla_combine(m, rows, THREADS, [] { __syncthreads(); });
    }
}


/* What the parts of token t and head h count in their sum. */
static __device__ void
part_weights(const struct mla_args &m, uint32_t t, uint32_t h, float *weights)
{
    const float *stats = m.stats + ((size_t) t * m.a.n_heads + h)
                                   * m.n_splits * 2;
    float        max = -INFINITY, sum = 0;

    for (uint32_t i = 0; i < m.n_splits; i++) {
        max = fmaxf(max, stats[i * 2]);
    }

    for (uint32_t i = 0; i < m.n_splits; i++) {
        sum += exp2f(stats[i * 2] - max) * stats[i * 2 + 1];
    }

    for (uint32_t i = threadIdx.x; i < m.n_splits; i += blockDim.x) {
        weights[i] = exp2f(stats[i * 2] - max) / sum;
    }
}


static __device__ float
combined(const struct mla_args &m, uint32_t t, uint32_t h, uint32_t col,
         const float *weights)
{
    const float *part = m.parts + ((size_t) t * m.a.n_heads + h) * m.n_splits
                                  * m.a.n_latent + col;
    float        v = 0;

    for (uint32_t i = 0; i < m.n_splits; i++) {
        v += weights[i] * part[(size_t) i * m.a.n_latent];
    }

    return v;
}


static __global__ void
combine_kernel(const struct mla_args m)
{
    float   *weights = (float *) (void *) hw_shared();
    uint32_t h = blockIdx.y, t = blockIdx.x;
    float   *y = m.a.y.data + m.a.y.stride * t + (size_t) h * m.kv.row;

    hw_depend();
    hw_release();
    part_weights(m, t, h, weights);
    __syncthreads();

    for (uint32_t k = threadIdx.x; k < m.a.n_latent; k += blockDim.x) {
        y[k] = combined(m, t, h, k, weights);
    }
}


/* The same, and W_UV: 32 outputs of head blockIdx.y for at most 8 tokens, whose
 * rows are combined in shared memory. */
struct combine_heads_args {
    struct mla_args      m;
    struct stream_matrix w;
    size_t               w_head;    /* bytes */
    struct tensor        y;
    size_t               y_head;
    uint32_t             n_tok;
};

static __global__ void __launch_bounds__(STREAM_THREADS)
combine_heads_kernel(const struct combine_heads_args a)
{
    float   *room = (float *) (void *) hw_shared();
    uint32_t n = a.m.a.n_latent, h = blockIdx.y, t = hw_lane() / 4;
    float   *rows = room + stream_room_bytes(2, 1) / sizeof(float);
    float   *weights = rows + (size_t) a.n_tok * n;
    struct stream_matrix m = a.w;
    struct stream_rows<1> x = {};
    float    acc[2][1][4];

    m.w += a.w_head * h;

    const unsigned char *const w[2] = {
        stream_tile<DTYPE_BF16>(m, blockIdx.x * 2),
        stream_tile<DTYPE_BF16>(m, blockIdx.x * 2 + 1)
    };

    x.x[0] = t < a.n_tok ? rows + (size_t) t * n : NULL;
    x.n = n;
    stream_tiles<DTYPE_BF16, 2, 1>(acc, w, x, [&] {
        for (uint32_t i = 0; i < a.n_tok; i++) {
            part_weights(a.m, i, h, weights + i * a.m.n_splits);
        }

        __syncthreads();

        for (uint32_t i = threadIdx.x; i < a.n_tok * n; i += blockDim.x) {
            rows[i] = combined(a.m, i / n, h, i % n,
                               weights + i / n * a.m.n_splits);
        }

        __syncthreads();
    });
    stream_put_sums<2, 1>(acc, room);
    __syncthreads();

    uint32_t o = blockIdx.x * 32 + threadIdx.x % 32, r = threadIdx.x / 32;

    if (o < m.n_out && r < a.n_tok) {
        a.y.data[a.y.stride * r + a.y_head * h + o] =
            stream_sum<2, 1>(room, threadIdx.x % 32, r);
    }
}


/* FP32 keys, and what has more columns than the other kernel: a block a token
 * and head, a thread a key, then a thread a column. */
static __global__ void
mla_plain_kernel(const struct mla_args m)
{
    uint32_t     t = blockIdx.x, h = blockIdx.y, row = m.kv.row;
    const float *q = m.a.q.data + m.a.q.stride * t + (size_t) h * row;
    float       *y = m.a.y.data + m.a.y.stride * t + (size_t) h * row;
    float       *p = (float *) (void *) hw_shared();
    float        max = -INFINITY, sum = 0;

    hw_depend();
    hw_release();

    uint32_t n_keys = m.batch.pos[t] + 1;

    for (uint32_t k = threadIdx.x; k < m.a.n_latent; k += PAGE) {
        y[k] = 0;
    }

    for (uint32_t j0 = 0; j0 < n_keys; j0 += PAGE) {
        uint32_t id = m.batch.pages[m.batch.table[t] + j0 / PAGE];
        size_t   at = ((size_t) id * m.kv.n_layers + m.a.layer) * PAGE * row;
        const float    *kv = (const float *) m.kv.data + at;
        const uint16_t *kv16 = (const uint16_t *) m.kv.data + at;
        int      is_f32 = m.kv.dtype == DTYPE_F32;
        float    s = 0;

        for (uint32_t k = 0; k < row; k++) {
            s += q[k] * (is_f32 ? kv[threadIdx.x * row + k]
                         : cuda_bf16(kv16[cuda_kv_at(threadIdx.x, k, row)]));
        }

        __syncthreads();
        p[threadIdx.x] = j0 + threadIdx.x < n_keys
                         ? s * m.a.scale * LOG2_E : -INFINITY;
        __syncthreads();

        float was = max;

        for (uint32_t j = 0; j < PAGE; j++) {
            max = fmaxf(max, p[j]);
        }

        float rescale = exp2f(was - max);

        sum *= rescale;

        for (uint32_t j = 0; j < PAGE; j++) {
            sum += exp2f(p[j] - max);
        }

        for (uint32_t k = threadIdx.x; k < m.a.n_latent; k += PAGE) {
            float v = y[k] * rescale;

            for (uint32_t j = 0; j < PAGE && j0 + j < n_keys; j++) {
                v += exp2f(p[j] - max)
                     * (is_f32 ? kv[j * row + k]
                               : cuda_bf16(kv16[cuda_kv_at(j, k, row)]));
            }

            y[k] = v;
        }
    }

    for (uint32_t k = threadIdx.x; k < m.a.n_latent; k += PAGE) {
        y[k] /= sum;
    }
}


/* Of scratch memory, for one part of all tokens and heads. */
static size_t
part_bytes(const struct cuda *c, const struct mla *a)
{
    return (size_t) c->n_tok * a->n_heads * (a->n_latent + 2) * sizeof(float);
}


/* Parts with which the device is done first: blocks go in waves, and each
 * costs, beyond its pages, the bytes of its queries, and of its sums twice, and
 * about a page of time to begin.  Not measured on a GPU yet. */
static uint32_t
choose_splits(const struct cuda *c, const struct mla *a)
{
    uint32_t n_pages = c->max_pos / PAGE + 1, best = 1;
    uint32_t most = cuda_mla_wide_can(c, a) ? MLA_WIDE_ROWS : HEADS;
    uint32_t blocks = c->n_tok * cuda_div_up(a->n_heads, most);
    double   rows = a->n_heads < most ? a->n_heads : most;
    double   extra = 1 + rows * (a->kv->row + 2 * a->n_latent) * 4
                         / (PAGE * a->kv->row * 2.0);
    double   least = INFINITY;
    size_t   n_max = CUDA_SCRATCH / part_bytes(c, a);

    if (c->deterministic) {
        return 1;
    }

    n_max = n_max < n_pages ? n_max : n_pages;
    n_max = n_max < (size_t) c->n_sm ? n_max : (size_t) c->n_sm;

    for (uint32_t n = 1; n <= n_max; n++) {
        double cost = cuda_div_up(blocks * n, (uint32_t) c->n_sm)
                      * (cuda_div_up(n_pages, n) + extra);

        if (cost < least) {
            least = cost;
            best = n;
        }
    }

    return best;
}


/* What the kernel with mma takes; it is for bf16 keys of up to COLS_MAX. */
static int
make_args(struct cuda *c, const struct mla *a, struct mla_args *m)
{
    memset(m, 0, sizeof(*m));
    m->a = *a;
    m->kv = *a->kv;
    m->batch = c->batch;
    m->n_splits = 1;

    if (m->kv.dtype == DTYPE_F32 || a->n_latent > COLS_MAX
        || room_bytes(m->kv.row, 1, 1) > c->shared_max)
    {
        return -1;
    }

    m->n_stages = room_bytes(m->kv.row, 2, 1) <= c->shared_max ? 2 : 1;
    m->n_tok = c->n_tok;
    m->n_splits = choose_splits(c, a);
    m->parts = c->scratch;
    m->stats = m->parts + (size_t) c->n_tok * a->n_heads * m->n_splits
                          * a->n_latent;

    return 0;
}


/* Whether the last block of a token's parts is to add them up; see mla.cuh. */
static int
last_combines(const struct cuda *c, const struct mla_args *m)
{
    int      is_wide = cuda_mla_wide_can(c, &m->a);
    uint32_t most = is_wide ? MLA_WIDE_ROWS : HEADS;
    uint32_t rows = min(m->a.n_heads, most);
    size_t   n_blocks = (size_t) c->n_tok * cuda_div_up(m->a.n_heads, most);

    return m->n_splits > 1 && n_blocks <= CUDA_COUNTERS
           && (size_t) rows * m->n_splits * m->a.n_latent * sizeof(float)
              <= MLA_LAST_BYTES
           && (is_wide || mla_combine_bytes(rows, m->n_splits)
                          <= room_bytes(m->kv.row, m->n_stages, 1))
           && m->a.n_latent % 4 == 0 && (uintptr_t) m->a.y.data % 16 == 0
           && m->a.y.stride % 4 == 0 && m->kv.row % 4 == 0;
}


/* Of many tokens most follow one another. */
static void
launch_mla(struct cuda *c, const struct mla_args *m)
{
    if (cuda_mla_wide_can(c, &m->a)) {
        cuda_mla_wide(c, m);
        return;
    }

    uint32_t n = m->n_splits == 1 && c->n_tok > 64
                 && room_bytes(m->kv.row, m->n_stages, TOKENS)
                    <= c->shared_max ? TOKENS : 1;

    cuda_launch(c, dim3(cuda_div_up(c->n_tok, n), m->n_splits,
                        cuda_div_up(m->a.n_heads, HEADS)),
                n * THREADS, room_bytes(m->kv.row, m->n_stages, n),
                mla_kernel, *m);
}


void
cuda_mla(struct backend *b, const struct mla *a)
{
    struct cuda    *c = cuda_of(b);
    struct mla_args m;

    if (make_args(c, a, &m) != 0) {
        cuda_launch(c, dim3(c->n_tok, a->n_heads), PAGE, PAGE * sizeof(float),
                    mla_plain_kernel, m);

    } else if (m.n_splits == 1) {
        m.parts = NULL;
        launch_mla(c, &m);

    } else if (last_combines(c, &m)) {
        m.counters = c->counters;
        launch_mla(c, &m);

    } else {
        launch_mla(c, &m);
        cuda_launch(c, dim3(c->n_tok, a->n_heads), THREADS,
                    m.n_splits * sizeof(float), combine_kernel, m);
    }
}


int
cuda_mla_heads(struct cuda *c, const struct mla *a, const struct heads *h)
{
    struct combine_heads_args k;

    memset(&k, 0, sizeof(k));

    if (make_args(c, a, &k.m) != 0 || part_bytes(c, a) > CUDA_SCRATCH) {
        return -1;
    }

    k.w = stream_matrix_of(h->w);
    k.w_head = cuda_weight_bytes(h->w);
    k.y = h->y;
    k.y_head = h->y_head;
    k.n_tok = c->n_tok;
    launch_mla(c, &k.m);
    cuda_launch(c, dim3(cuda_div_up(h->w->n_out, 32), a->n_heads),
                STREAM_THREADS, stream_room_bytes(2, 1)
                + (size_t) c->n_tok * (a->n_latent + k.m.n_splits)
                  * sizeof(float),
                combine_heads_kernel, k);

    return 0;
}
