/*
 * prompt.cu - attention of a prompt's tokens, not absorbed: keys and values of
 * each head are made of the latents, as a product, and then attended to.
 *
 *   k(h, j) = [W_UK(h)^T c(j) | k_r(j)];  v(h, j) = W_UV(h) c(j)
 *   y(h)    = sum over j of softmax(scale q(h) . k(h, j)) v(h, j)
 *   FLOPs: 2 (nope + rope + v) a token, key and head, where the absorbed form
 *   has 2 (2 kv_lora + rope): 640 to 2176 for DeepSeek's; and 4 kv_lora (nope +
 *   v) / 2 a key and head once.  More tokens than TOKENS_MIN make it worth it.
 *   bytes: 80 KiB of keys and values for 128 tokens: bound by wgmma and exp2
 *
 * What is calculated with is what heads, rope, mla, heads do; step.cu finds
 * these four.  Heads are taken in groups, as many as there is memory for.
 *
 *   turn       W_UK in the order of weights, the other way round
 *   latents    from pages to atoms (wide.cuh); rotated keys as they are
 *   wide.cu    keys and values of a group of heads, in atoms
 *   attend     a block 128 tokens of a head: a warp that copies, two warpgroups
 *              of 64 tokens; STAGES of 128 keys
 *
 *   warpgroup  S (64, 128) = Q K^T     Q in registers, for all keys
 *              P = exp2(S - max)       running maximum and sum a row
 *              O (64, 128) += P V      P from S's registers, as they are
 *
 * Not measured on a GPU yet.
 */
#include "common.cuh"
#include "wide.cuh"

#include <string.h>

#define GROUPS          2
#define GROUP_THREADS   (4 * HW_WARP)
#define THREADS         ((GROUPS + 1) * GROUP_THREADS)
#define REGISTERS       240
#define REGISTERS_COPY  24
#define ROWS            64          /* tokens of a warpgroup */
#define KEYS            WIDE_ROWS   /* in a tile */
#define NOPE            128         /* columns of a key, the rest 0 */
#define ROPE            64
#define VALUES          128
#define K_STEPS         ((NOPE + ROPE) / 16)
#define STAGES          2
/* Two column blocks of keys, one that is rotated, two of values. */
#define STAGE_BYTES     (5 * ATOMS_BYTES)
#define ROOM            (STAGES * STAGE_BYTES + 1024)
#define HEAD_BYTES      ((size_t) 2 * ATOMS_BYTES)  /* of a tile */
/* New tokens from which on expanding the keys before them is repaid. */
#define TOKENS_MIN      128
#define LOG2_E          1.44269504f

struct prompt_args {
    struct tensor        q;         /* of the first token and head */
    size_t               q_head;
    uint32_t             nope;
    uint32_t             rope;
    const unsigned char *keys;      /* (head, tile) HEAD_BYTES */
    const unsigned char *values;
    const unsigned char *ropes;     /* (tile) ATOMS_BYTES */
    uint32_t             n_tiles;
    uint32_t             n_tok;
    uint32_t             pos;       /* of the first token */
    float                scale;     /* times log2 e */
    struct tensor        y;
    size_t               y_head;
    uint32_t             n_values;
};

struct latents_args {
    struct kv_store   kv;
    struct cuda_batch batch;
    uint32_t          layer;
    uint32_t          token;        /* one that has the table */
    uint32_t          n_latent;
    uint32_t          n_rope;
    uint32_t          first;        /* key */
    uint32_t          n_keys;       /* from position 0 on; then zeros */
    struct atoms      latents;
    unsigned char    *ropes;        /* of tile 0 */
};


/* Of W (n_out, n_in) of each head its transpose, 8 elements a thread. */
static __global__ void
turn_kernel(const struct stream_matrix w, size_t w_head, unsigned char *to,
            size_t to_head, uint32_t n_heads)
{
    uint32_t n_r = cuda_div_up(w.n_in, CUDA_TILE);
    uint32_t n_k = cuda_div_up(w.n_out, CUDA_TILE);
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    uint32_t lane = i % HW_WARP, k = i / HW_WARP % n_k;
    uint32_t r = i / HW_WARP / n_k % n_r, h = i / HW_WARP / n_k / n_r;
    uint16_t v[8];

    hw_depend();
    hw_release();

    if (h >= n_heads) {
        return;
    }

    const uint16_t *from = (const uint16_t *) (const void *)
                           (w.w + w_head * h
                            + ((size_t) k * n_r + r) * 512);

    for (uint32_t e = 0; e < 8; e++) {
        /* Row and column of the result, column and row of what there is. */
        uint32_t row = lane / 4 + e / 2 % 2 * 8;
        uint32_t col = lane % 4 * 4 + e / 4 * 2 + e % 2;

        v[e] = from[(col % 8 * 4 + row / 4) * 8
                    + (row % 4 / 2 * 2 + col / 8) * 2 + row % 2];
    }

    memcpy(to + to_head * h + (((size_t) r * n_k + k) * HW_WARP + lane) * 16,
           v, sizeof(v));
}


/* 16 columns of a key a thread: of its latent, up to whole column blocks, then
 * of its rotated part. */
static __global__ void
latents_kernel(const struct latents_args a)
{
    uint32_t n_groups = cuda_div_up(a.n_latent, 64) * 4;
    uint32_t n_all = n_groups + ROPE / 16;
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    uint32_t row = i / n_all, group = i % n_all;
    bool     is_rope = group >= n_groups;
    uint32_t j = a.first + row, col = (is_rope ? group - n_groups : group) * 16;
    uint4    v[2] = {};

    hw_depend();
    hw_release();

    if (row >= a.latents.n_blocks * ATOM_ROWS) {
        return;
    }

    if (j < a.n_keys && col < (is_rope ? a.n_rope : a.n_latent)) {
        uint32_t page = a.batch.pages[a.batch.table[a.token]
                                      + j / BACKEND_PAGE_TOK];
        const uint16_t *from = (const uint16_t *) a.kv.data
                               + ((size_t) page * a.kv.n_layers + a.layer)
                                 * BACKEND_PAGE_TOK * a.kv.row;

        for (int p = 0; p < 2; p++) {
            v[p] = *(const uint4 *) (const void *)
                   (from + cuda_kv_at(j % BACKEND_PAGE_TOK,
                                      (is_rope ? a.n_latent : 0) + col + p * 8,
                                      a.kv.row));
        }
    }

    struct atoms to = a.latents;

    if (is_rope) {
        to.data = a.ropes + (size_t) (a.first / KEYS) * ATOMS_BYTES
                  + (size_t) (row / KEYS) * ATOMS_BYTES;
        to.n_blocks = KEYS / ATOM_ROWS;
        row %= KEYS;
    }

    /* Pairs of columns in the order of weights. */
    *(uint4 *) (void *) (to.data + piece_at(row, col / 8, to.n_blocks)) =
        make_uint4(v[0].x, v[0].z, v[1].x, v[1].z);
    *(uint4 *) (void *) (to.data + piece_at(row, col / 8 + 1, to.n_blocks)) =
        make_uint4(v[0].y, v[0].w, v[1].y, v[1].w);
}


static __device__ __forceinline__ unsigned char *
stage_of(uint32_t i)
{
    return hw_shared() + i % STAGES * STAGE_BYTES;
}

static __device__ __forceinline__ uint64_t *
full_of(uint32_t i)
{
    return (uint64_t *) (void *) (hw_shared() + STAGES * STAGE_BYTES)
           + i % STAGES;
}

static __device__ __forceinline__ uint64_t *
free_of(uint32_t i)
{
    return full_of(i) + STAGES;
}

static __device__ __forceinline__ uint32_t
phase_of(uint32_t i)
{
    return i / STAGES % 2;
}


/* The first token of this block: the longest ones go first. */
static __device__ __forceinline__ uint32_t
first_token(void)
{
    return (gridDim.x - 1 - blockIdx.x) * GROUPS * ROWS;
}


/* Tiles of keys that its tokens attend to. */
static __device__ __forceinline__ uint32_t
count_keys(const struct prompt_args &a)
{
    uint32_t last = min(first_token() + GROUPS * ROWS, a.n_tok) - 1;

    return (a.pos + last) / KEYS + 1;
}


/* One thread copies. */
static __device__ void
produce(const struct prompt_args &a)
{
    uint32_t n = count_keys(a);

    hw_bulk_fence();

    for (uint32_t i = 0; i < n; i++) {
        unsigned char *to = stage_of(i);
        size_t         at = ((size_t) a.n_tiles * blockIdx.y + i) * HEAD_BYTES;

        hw_barrier_wait(free_of(i), phase_of(i) ^ 1);
        hw_barrier_expect(full_of(i), STAGE_BYTES);
        hw_bulk_copy(to, a.keys + at, HEAD_BYTES, full_of(i));
        hw_bulk_copy(to + HEAD_BYTES, a.ropes + (size_t) i * ATOMS_BYTES,
                     ATOMS_BYTES, full_of(i));
        hw_bulk_copy(to + HEAD_BYTES + ATOMS_BYTES, a.values + at, HEAD_BYTES,
                     full_of(i));
    }
}


/* Four columns of a token's query from column 16 k + 4 c on. */
static __device__ __forceinline__ float4
load_four(const struct prompt_args &a, uint32_t t, uint32_t k)
{
    uint32_t     col = k * 16 + hw_lane() % 4 * 4;
    const float *q = a.q.data + a.q.stride * t + a.q_head * blockIdx.y;

    return t >= a.n_tok ? make_float4(0, 0, 0, 0)
           : col < NOPE ? stream_four(q, col, a.nope)
                        : stream_four(q + a.nope, col - NOPE, a.rope);
}


static __device__ __forceinline__ void
load_q(uint4 (&q)[K_STEPS], const struct prompt_args &a, uint32_t t)
{
#pragma unroll
    for (int k = 0; k < K_STEPS; k++) {
        float4 v = load_four(a, t, k), w = load_four(a, t + 8, k);

        q[k] = make_uint4(hw_bf16x2(v.x, v.y), hw_bf16x2(w.x, w.y),
                          hw_bf16x2(v.z, v.w), hw_bf16x2(w.z, w.w));
    }
}


/* d (+)= a b, for B of n column blocks of 64 from `at` on. */
template <int N>
static __device__ __forceinline__ void
multiply(float (&d)[64], const uint4 (&a)[N], const unsigned char *at,
         bool add)
{
    hw_group_fence();

#pragma unroll
    for (int k = 0; k < N; k++) {
        hw_group_mma(d, a[k], descriptor(at + k / 4 * ATOMS_BYTES
                                         + k % 4 * 32), add || k != 0);
    }

    hw_group_commit();
    hw_group_wait<0>();
    hw_group_keep(d);
}


/* A lane's two rows: tokens l / 4 and l / 4 + 8 of its warp's 16. */
struct running {
    float max[2];
    float sum[2];               /* of this lane's keys alone */
};


/* p = exp2(s - max), and o rescaled; keys beyond last[..] do not count. */
static __device__ __forceinline__ void
soften(uint4 (&p)[KEYS / 16], float (&o)[64], float (&s)[64],
       struct running *run, float scale, uint32_t key0, bool is_masked,
       uint32_t last)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float max = run->max[half];

#pragma unroll
        for (int i = 0; i < 32; i++) {
            float &v = s[i / 2 * 4 + half * 2 + i % 2];
            uint32_t key = key0 + i / 2 * 8 + hw_lane() % 4 * 2 + i % 2;

            if (is_masked && key > last + half * 8) {
                v = -INFINITY;
            }

            max = fmaxf(max, v);
        }

        max = fmaxf(max, hw_xor(max, 1));
        max = fmaxf(max, hw_xor(max, 2));

        float rescale = hw_exp2((run->max[half] - max) * scale);

        run->max[half] = max;
        run->sum[half] *= rescale;

#pragma unroll
        for (int i = 0; i < 32; i++) {
            int at = i / 2 * 4 + half * 2 + i % 2;

            s[at] = hw_exp2((s[at] - max) * scale);
            run->sum[half] += s[at];
            o[at] *= rescale;
        }
    }

#pragma unroll
    for (int k = 0; k < KEYS / 16; k++) {
        p[k] = sums_as_a(&s[8 * k]);
    }
}


static __device__ __forceinline__ void
store(const float (&o)[64], const struct running *run,
      const struct prompt_args &a, uint32_t t)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = run->sum[half];

        sum += hw_xor(sum, 1);
        sum += hw_xor(sum, 2);

        float *y = a.y.data + a.y.stride * (t + half * 8)
                   + a.y_head * blockIdx.y;

#pragma unroll
        for (int i = 0; i < 32; i++) {
            uint32_t col = i / 2 * 8 + hw_lane() % 4 * 2 + i % 2;

            if (t + half * 8 < a.n_tok && col < a.n_values) {
                y[col] = o[i / 2 * 4 + half * 2 + i % 2] / sum;
            }
        }
    }
}


static __device__ __forceinline__ void
consume(const struct prompt_args &a)
{
    uint32_t       n = count_keys(a);
    uint32_t       t0 = first_token() + threadIdx.x / GROUP_THREADS * ROWS;
    uint32_t       t = t0 + threadIdx.x / HW_WARP % 4 * 16 + hw_lane() / 4;
    struct running run = { { -INFINITY, -INFINITY }, { 0, 0 } };
    uint4          q[K_STEPS], p[KEYS / 16];
    float          s[64], o[64];

    memset(o, 0, sizeof(o));
    load_q(q, a, t);

    for (uint32_t i = 0; i < n; i++) {
        const unsigned char *stage = stage_of(i);

        hw_barrier_wait(full_of(i), phase_of(i));
        multiply(s, q, stage, false);
        soften(p, o, s, &run, a.scale, i * KEYS,
               i * KEYS + KEYS - 1 > a.pos + t0, a.pos + t);
        multiply(o, p, stage + HEAD_BYTES + ATOMS_BYTES, true);

        if (hw_lane() == 0) {
            hw_barrier_arrive(free_of(i));
        }
    }

    store(o, &run, a, t);
}


static __global__ void __launch_bounds__(THREADS, 1)
attend_kernel(const struct prompt_args a)
{
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < STAGES; i++) {
            hw_barrier_init(full_of(i), 1);
            hw_barrier_init(free_of(i), GROUPS * 4);
        }
    }

    __syncthreads();
    hw_depend();
    hw_release();

    if (threadIdx.x >= GROUPS * GROUP_THREADS) {
        hw_group_registers_fewer<REGISTERS_COPY>();

        if (threadIdx.x == GROUPS * GROUP_THREADS) {
            produce(a);
        }

    } else {
        hw_group_registers_more<REGISTERS>();
        consume(a);
    }
}


/* Where what a prompt needs lies: in `rounded` W_UK turned, rotated keys, and
 * latents, of chunk keys at a time; in `scratch` keys and values of n_heads. */
struct plan {
    unsigned char *turned;
    unsigned char *ropes;
    unsigned char *latents;
    size_t         turned_bytes;    /* of a head */
    uint32_t       n_tiles;
    uint32_t       chunk;           /* tiles */
    uint32_t       n_heads;
};


/* -1: there is not enough memory. */
static int
make_plan(struct plan *p, const struct cuda *c, const struct heads *uk,
          uint32_t n_keys)
{
    struct weight turned = *uk->w;
    size_t        tile = (size_t) cuda_div_up(uk->w->n_out, 64) * ATOMS_BYTES;

    turned.n_out = uk->w->n_in;
    turned.n_in = uk->w->n_out;
    p->turned_bytes = cuda_weight_bytes(&turned);
    p->n_tiles = cuda_div_up(n_keys, KEYS);

    size_t before = p->turned_bytes * uk->w->n
                    + (size_t) p->n_tiles * ATOMS_BYTES;

    if (before + tile > CUDA_ROUNDED
        || 2 * HEAD_BYTES * p->n_tiles > CUDA_SCRATCH)
    {
        return -1;
    }

    p->turned = c->rounded;
    p->ropes = p->turned + p->turned_bytes * uk->w->n;
    p->latents = p->ropes + (size_t) p->n_tiles * ATOMS_BYTES;
    p->chunk = (uint32_t) ((CUDA_ROUNDED - before) / tile);
    p->chunk = min(p->chunk, p->n_tiles);
    p->n_heads = (uint32_t) (CUDA_SCRATCH / (2 * HEAD_BYTES * p->n_tiles));
    p->n_heads = min(p->n_heads, uk->w->n);

    return 0;
}


/* Keys and values of n heads from h on, to scratch. */
static void
expand(struct cuda *c, const struct plan *p, const struct cuda_prompt *k,
       uint32_t token, uint32_t n_keys, uint32_t h, uint32_t n)
{
    for (uint32_t t0 = 0; t0 < p->n_tiles; t0 += p->chunk) {
        uint32_t           n_tiles = min(p->chunk, p->n_tiles - t0);
        uint32_t           n_cols = cuda_div_up(k->mla.n_latent, 64);
        struct latents_args l;
        struct wide_args   w;

        memset(&l, 0, sizeof(l));
        memset(&w, 0, sizeof(w));
        l.kv = *k->mla.kv;
        l.batch = c->batch;
        l.layer = k->mla.layer;
        l.token = token;
        l.n_latent = k->mla.n_latent;
        l.n_rope = k->rope.n;
        l.first = t0 * KEYS;
        l.n_keys = n_keys;
        l.ropes = p->ropes;
        atoms_place(&l.latents, p->latents, DTYPE_BF16,
                    n_tiles * KEYS / ATOM_ROWS, n_cols);
        cuda_launch(c, cuda_div_up(n_tiles * KEYS * (n_cols * 4 + ROPE / 16),
                                   CUDA_THREADS),
                    CUDA_THREADS, 0, latents_kernel, l);

        w.m = stream_matrix_of(k->uk.w);
        w.m.w = p->turned + p->turned_bytes * h;
        w.m.n_out = k->uk.w->n_in;
        w.m.n_in = k->uk.w->n_out;
        w.m_bytes = p->turned_bytes;
        w.up = stream_matrix_of(k->uv.w);
        w.up_bytes = cuda_weight_bytes(k->uv.w);
        w.up.w += w.up_bytes * h;
        w.n = n;
        w.x = l.latents;
        w.n_rows = n_tiles * KEYS;
        w.out = WIDE_KEYS;
        w.keys = (unsigned char *) (void *) c->scratch;
        w.values = w.keys + HEAD_BYTES * p->n_tiles * p->n_heads;
        w.n_tiles = p->n_tiles;
        w.tile0 = t0;
        cuda_wide(c, &w, DTYPE_BF16);
    }
}


/* Tokens first .. first + n - 1, which follow one another from pos on. */
static void
attend(struct cuda *c, const struct plan *p, const struct cuda_prompt *k,
       uint32_t first, uint32_t n, uint32_t pos)
{
    struct prompt_args a;
    uint32_t           n_heads = k->uk.w->n;

    cuda_launch(c, cuda_div_up((uint32_t) (p->turned_bytes / 16) * n_heads,
                               CUDA_THREADS),
                CUDA_THREADS, 0, turn_kernel, stream_matrix_of(k->uk.w),
                cuda_weight_bytes(k->uk.w), p->turned, p->turned_bytes,
                n_heads);
    memset(&a, 0, sizeof(a));
    a.q_head = k->uk.x_head;
    a.nope = k->uk.w->n_in;
    a.rope = k->rope.n;
    a.keys = (unsigned char *) (void *) c->scratch;
    a.values = a.keys + HEAD_BYTES * p->n_tiles * p->n_heads;
    a.ropes = p->ropes;
    a.n_tiles = p->n_tiles;
    a.n_tok = n;
    a.pos = pos;
    a.scale = k->mla.scale * LOG2_E;
    a.y_head = k->uv.y_head;
    a.n_values = k->uv.w->n_out;

    for (uint32_t h = 0; h < n_heads; h += p->n_heads) {
        uint32_t n_now = min(p->n_heads, n_heads - h);

        expand(c, p, k, first, pos + n, h, n_now);
        a.q = k->uk.x;
        a.q.data += a.q.stride * first + a.q_head * h;
        a.y = k->uv.y;
        a.y.data += a.y.stride * first + a.y_head * h;
        cuda_launch(c, dim3(cuda_div_up(n, GROUPS * ROWS), n_now), THREADS,
                    ROOM, attend_kernel, a);
    }
}


static struct tensor
rows_from(struct tensor t, uint32_t row)
{
    t.data += t.stride * row;

    return t;
}


/* The queries' rotation where they are, of tokens from the batch's first on. */
static void
rotate(struct cuda *c, const struct cuda_prompt *k, uint32_t first)
{
    struct rope r = k->rope;

    r.x = r.y = rows_from(r.x, first);
    r.y_head = r.x_head;
    r.angles = rows_from(r.angles, first);
    cuda_rope(&c->b, &r);
}


/* As it is, of n tokens from `first` on. */
static void
absorbed(struct cuda *c, const struct cuda_prompt *k, uint32_t first,
         uint32_t n)
{
    struct cuda_prompt a = *k;

    a.uk.x = rows_from(a.uk.x, first);
    a.uk.y = rows_from(a.uk.y, first);
    a.uk.n_rows = a.uv.n_rows = n;
    a.rope.x = rows_from(a.rope.x, first);
    a.rope.y = rows_from(a.rope.y, first);
    a.rope.angles = rows_from(a.rope.angles, first);
    a.mla.q = rows_from(a.mla.q, first);
    a.mla.y = rows_from(a.mla.y, first);
    a.uv.x = rows_from(a.uv.x, first);
    a.uv.y = rows_from(a.uv.y, first);
    cuda_heads(&c->b, &a.uk);
    cuda_rope(&c->b, &a.rope);
    cuda_mla(&c->b, &a.mla);
    cuda_heads(&c->b, &a.uv);
}


/* How many tokens from t on follow one another in one sequence. */
static uint32_t
run_of(const uint32_t *pos, const uint32_t *table, uint32_t t, uint32_t n_tok)
{
    uint32_t n = 1;

    while (t + n < n_tok && table[t + n] == table[t]
           && pos[t + n] == pos[t] + n)
    {
        n++;
    }

    return n;
}


/* What the kernels are made for. */
static int
is_for(const struct cuda *c, const struct cuda_prompt *k)
{
    return c->warpgroups && k->mla.kv->dtype == DTYPE_BF16
           && k->uk.w->n_in <= NOPE && k->rope.n <= ROPE
           && k->uv.w->n_out <= VALUES && k->mla.n_latent % 16 == 0
           && k->rope.n % 16 == 0;
}


int
cuda_prompt(struct cuda *c, const struct cuda_prompt *k)
{
    uint32_t          n_tok = c->n_tok, t = 0, rest = 0;
    const uint32_t   *pos = c->meta_host + n_tok, *table = pos + n_tok;
    struct cuda_batch batch = c->batch;

    if (!is_for(c, k)) {
        return -1;
    }

    /* Long runs on their own; what is between them, from `rest` on, as it is
     * otherwise. */
    while (t < n_tok || rest < t) {
        uint32_t    n = t < n_tok ? run_of(pos, table, t, n_tok) : 0;
        struct plan p;
        int         is_long = n >= TOKENS_MIN
                              && make_plan(&p, c, &k->uk, pos[t] + n) == 0;

        if (n != 0 && !is_long) {
            t += n;
            continue;
        }

        if (rest < t) {
            c->n_tok = t - rest;
            c->batch.pos = batch.pos + rest;
            c->batch.table = batch.table + rest;
            absorbed(c, k, rest, t - rest);
            c->batch = batch;
        }

        if (is_long) {
            c->n_tok = n;
            rotate(c, k, t);
            attend(c, &p, k, t, n, pos[t]);
        }

        c->n_tok = n_tok;
        rest = t += n;
    }

    return 0;
}
