/*
 * common.cuh - the inside of the CUDA backend: what its files share.
 *
 * The mental model.  One stream, on which the ops of a step are launched in
 * order; each kernel may be started before the one ahead of it ends, and waits
 * for it in hw_depend() before it touches what a kernel can have written
 * (weights nobody writes: they are fetched before).  What changes from step to
 * step (tokens, positions, page tables) is in device memory at addresses that
 * stay, so that a step can be captured once and replayed.
 *
 * How weights lie in memory:
 *   bf16   tiles of 16 x 16 in the order of mma's A fragment, so that a lane
 *          gets what it multiplies in one load of 16 bytes: tile (i, k) of row
 *          tile i at ((i * n_k + k) * 32 + lane) * 16, lane l holding of rows
 *          l / 4 and l / 4 + 8 columns 4c .. 4c + 3, c = l % 4.  (mma would
 *          have 2c, 2c + 1, 2c + 8, 2c + 9; any order will do, if x has it
 *          too: this one makes four of x one load.)
 *   fp8    tiles of 16 x 32, in the order of A of wgmma's m64n128k32: lane l
 *          holding of rows l / 4 and l / 4 + 8 columns 4c .. 4c + 3, and then
 *          of both columns 16 + 4c ..; four to a group of 128 columns, behind
 *          which the group's 16 scales lie: 2112 bytes, of row tile i at
 *          (i * n_groups + group) * 2112
 *   f32    rows, each padded to a multiple of 4
 * Rows and columns beyond the matrix are 0.
 *
 * A page of bf16 keys: column blocks of 64, one after the other, in each the
 * rows of 128 bytes, of row t the 16-byte piece p at p ^ t % 8: the 128-byte
 * swizzle, in which ldmatrix finds the rows of a page in different banks, and
 * a page is one copy to where wgmma multiplies it.  Columns beyond the last
 * whole block are rows as they are, and so are f32 keys.
 */
#ifndef MOE_CUDA_COMMON_CUH
#define MOE_CUDA_COMMON_CUH

#include <cuda_runtime.h>
#include <hw.cuh>

extern "C" {
#include "backend.h"
#include "cpu/threads.h"
}

#define CUDA_TILE       16
#define CUDA_FP8_COLS   128         /* that share a scale in a row */
#define CUDA_FP8_BYTES  (16 * 128 + 16 * 4)     /* a group of 16 rows */
/* Of a page of bf16 keys, in a column block. */
#define CUDA_KV_COLS    64
/* For the parts of attention: 32 of 64 tokens with 16 heads. */
#define CUDA_SCRATCH    ((size_t) 64 << 20)
#define CUDA_PARTS_MAX  4
/* For rows of x in bf16: 3072 of them with 16384 columns. */
#define CUDA_ROUNDED    ((size_t) 96 << 20)

/* Of blocks that are done, each for one part of a kernel's output; or of what
 * blocks have drawn. */
#define CUDA_COUNTERS   4096

/* Threads of a block of most kernels. */
#define CUDA_THREADS    256

struct upload;                  /* a loading thread's buffers */

/* What one sample() is told, and brings. */
struct cuda_choice {
    char     *memory;           /* pinned: struct sample, then tokens, a row */
    size_t    n_bytes;
    uint32_t *tokens;
    uint32_t  n_rows;
};

/* Which tokens of a step have a neighbour of their sequence: attention takes
 * those of a run together. */
enum cuda_mix { CUDA_ALONE, CUDA_RUNS, CUDA_MIXED };

/* struct batch, on the device. */
struct cuda_batch {
    uint32_t *ids;              /* (n_tok) */
    uint32_t *pos;              /* (n_tok) */
    uint32_t *table;            /* (n_tok) where in pages its table begins */
    uint32_t *pages;
};

struct cuda {
    struct backend    b;
    struct backend_ops ops;         /* b.ops */
    int               deterministic;    /* D6 holds: see step.cu */
    int               warpgroups;   /* wide.cu's kernels may be used */
    int               n_pairs;      /* clusters of two of its blocks that there
                                       is room for; 0: it shall have none */
    int               n_sm;
    int               major;        /* of the compute capability */
    size_t            shared_max;   /* bytes that a block may have */
    cudaStream_t      stream;

    struct pool      *pool;         /* loads weights */
    struct upload    *uploads;      /* (b.n_threads) */
    int               loading;      /* uploads may be under way */

    uint32_t          n_tok;        /* of the step */
    uint32_t          max_pos;      /* no position of the step is larger */
    enum cuda_mix     mix;          /* few are as if alone; with D6 all go the
                                       way of runs, alone or not */
    struct cuda_batch batch;
    uint32_t         *meta;         /* what batch points into */
    uint32_t         *meta_both;    /* pinned: for this step and the one before
                                       it, which may not have begun yet */
    uint32_t         *meta_host;    /* the half of this step */
    size_t            meta_words;
    uint32_t          n_steps;
    uint32_t         *rows;         /* gather()'s */

    struct cuda_step *step;         /* what is recorded and replayed */

    float            *scratch;      /* CUDA_SCRATCH bytes */
    unsigned char    *rounded;      /* CUDA_ROUNDED bytes: wide.cu's */
    uint32_t         *counters;     /* (CUDA_COUNTERS) 0 between kernels */
    float            *out;          /* pinned: fetch()'s */
    size_t            out_bytes;

    struct cuda_choice choices[2];  /* of sample() number n_sampled % 2 */
    uint32_t          n_sampled;
    uint32_t          n_chosen;     /* of them read */
    uint32_t         *chosen;       /* (n_room) of the last one */
    uint32_t          n_room;
};

static inline struct cuda *
cuda_of(struct backend *b)
{
    return (struct cuda *) (void *) b;      /* b is the first member */
}


/* A call that fails ends the process, whose parent starts another: after an
 * error the context is good for nothing. */
void cuda_fail(const char *file, int line, const char *call, cudaError_t e);

#define CUDA_CHECK(call)                                                      \
    do {                                                                      \
        cudaError_t cuda_check_e = (call);                                    \
                                                                              \
        if (cuda_check_e != cudaSuccess) {                                    \
            cuda_fail(__FILE__, __LINE__, #call, cuda_check_e);               \
        }                                                                     \
    } while (0)

/* Launches a kernel behind the others, overlapping with the last; n_cluster
 * blocks beside each other in x are a cluster. */
template <class... P, class... A>
static inline void
cuda_launch_clusters(struct cuda *c, unsigned n_cluster, dim3 n_blocks,
                     dim3 n_threads, size_t shared_bytes,
                     void (*kernel)(P...), A... args)
{
    cudaLaunchAttribute attrs[2] = {};
    cudaLaunchConfig_t  config = {};

    attrs[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attrs[0].val.programmaticStreamSerializationAllowed = 1;
    attrs[1].id = cudaLaunchAttributeClusterDimension;
    attrs[1].val.clusterDim.x = n_cluster;
    attrs[1].val.clusterDim.y = attrs[1].val.clusterDim.z = 1;

    config.gridDim = n_blocks;
    config.blockDim = n_threads;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = c->stream;
    config.attrs = attrs;
    config.numAttrs = c->major != 9 ? 0         /* as hw_depend() */
                      : n_cluster == 1 ? 1 : 2;

    /* All there is, so that a graph's kernels stay allowed theirs whatever
     * is launched later. */
    if (shared_bytes > 48 * 1024) {
        CUDA_CHECK(cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
            (int) c->shared_max));
    }

    CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, P(args)...));
}

template <class... P, class... A>
static inline void
cuda_launch(struct cuda *c, dim3 n_blocks, dim3 n_threads, size_t shared_bytes,
            void (*kernel)(P...), A... args)
{
    cuda_launch_clusters(c, 1, n_blocks, n_threads, shared_bytes, kernel,
                         args...);
}

/* Memory that graphs know has moved: they are made again. */
void cuda_step_forget(struct cuda *c);


static inline __device__ __host__ uint32_t
cuda_div_up(uint32_t a, uint32_t b)
{
    return (a + b - 1) / b;
}

static inline __device__ float
cuda_bf16(uint16_t h)
{
    return __uint_as_float((uint32_t) h << 16);
}

static inline __device__ float
cuda_silu(float x)
{
    return x / (1 + expf(-x));
}

/* Where element `col` of row `tok` of a page of bf16 keys is; n_row elements
 * a row. */
static inline __device__ uint32_t
cuda_kv_at(uint32_t tok, uint32_t col, uint32_t n_row)
{
    uint32_t first = col / CUDA_KV_COLS * CUDA_KV_COLS;
    uint32_t n = min(n_row - first, (uint32_t) CUDA_KV_COLS);
    uint32_t swizzle = n == CUDA_KV_COLS ? tok % 8 * 8 : 0;

    return first * BACKEND_PAGE_TOK + tok * n + ((col - first) ^ swizzle);
}

/* Element `col` of a token's row in a page. */
static inline __device__ void
cuda_kv_set(const struct kv_store &kv, uint32_t page, uint32_t layer,
            uint32_t tok, uint32_t col, float v)
{
    size_t at = ((size_t) page * kv.n_layers + layer) * BACKEND_PAGE_TOK
                * kv.row;

    if (kv.dtype == DTYPE_F32) {
        ((float *) kv.data)[at + (size_t) tok * kv.row + col] = v;

    } else {
        ((uint16_t *) kv.data)[at + cuda_kv_at(tok, col, kv.row)] =
            (uint16_t) hw_bf16x2(v, 0);
    }
}

/* Elements col and col + 1; col is even. */
static inline __device__ void
cuda_kv_set(const struct kv_store &kv, uint32_t page, uint32_t layer,
            uint32_t tok, uint32_t col, float2 v)
{
    size_t at = ((size_t) page * kv.n_layers + layer) * BACKEND_PAGE_TOK
                * kv.row;

    if (kv.dtype == DTYPE_F32) {
        *(float2 *) (void *) ((float *) kv.data + at + (size_t) tok * kv.row
                              + col) = v;

    } else {
        *(uint32_t *) (void *) ((uint16_t *) kv.data + at
                                + cuda_kv_at(tok, col, kv.row)) =
            hw_bf16x2(v.x, v.y);
    }
}

/* Pair i of all heads of token t. */
static inline __device__ void
cuda_rope_pair(const struct rope &a, uint32_t t, uint32_t i)
{
    uint32_t     half = a.n / 2, k = i % half, h = i / half;
    uint32_t     i0 = a.interleaved ? 2 * k : k;
    uint32_t     i1 = a.interleaved ? 2 * k + 1 : k + half;
    const float *x = a.x.data + a.x.stride * t + a.x_head * h;
    float       *y = a.y.data + a.y.stride * t + a.y_head * h;
    const float *angle = a.angles.data + a.angles.stride * t + k;
    float        x0 = x[i0], x1 = x[i1], c = angle[0], s = angle[half];

    y[i0] = x0 * c - x1 * s;
    y[i1] = x1 * c + x0 * s;
}

/* The sum over the threads of a block, in all of them; `room` holds a float a
 * warp and is free again at the next barrier. */
static inline __device__ float
cuda_block_sum(float v, float *room)
{
    for (int mask = HW_WARP / 2; mask > 0; mask /= 2) {
        v += hw_xor(v, mask);
    }

    if (hw_lane() == 0) {
        room[threadIdx.x / HW_WARP] = v;
    }

    __syncthreads();
    v = 0;

    for (uint32_t i = 0; i < blockDim.x / HW_WARP; i++) {
        v += room[i];
    }

    return v;
}


/* Whether this block is the last of `n` that come by a counter, which is 0
 * again then: what the others wrote before is there for hw_load_fresh().
 * `room` is free again at the next barrier; sync() is one of the threads that
 * call this, the block's first among them. */
template <class F>
static inline __device__ bool
cuda_is_last(uint32_t *counter, uint32_t n, uint32_t *room, F sync)
{
    sync();

    /* pairs with the atomicAdd() of the other blocks */
    if (threadIdx.x == 0) {
        __threadfence();
        *room = atomicAdd(counter, 1) == n - 1;
        __threadfence();

        if (*room) {
            *counter = 0;
        }
    }

    sync();

    return *room != 0;
}

static inline __device__ bool
cuda_is_last(uint32_t *counter, uint32_t n, uint32_t *room)
{
    return cuda_is_last(counter, n, room, [] { __syncthreads(); });
}


/* step.cu: the vtable's calls of a layer, which record, replay or go on to
 * the functions below; begin and end of a step that repeats itself. */
extern const struct backend_ops cuda_step_ops;
int cuda_step_open(struct cuda *c, struct err *e);
void cuda_step_begin(struct cuda *c, int repeats);
void cuda_step_end(struct cuda *c);
void cuda_step_close(struct cuda *c);

/* rows.cu */
void cuda_embed(struct backend *b, struct tensor y, const struct weight *w);
void cuda_rmsnorm(struct backend *b, struct tensor y, struct tensor x,
                  const float *w, float eps, uint32_t n_rows, uint32_t n);
void cuda_angles(struct backend *b, struct tensor angles, const float *freqs,
                 uint32_t n_pairs, float scale);
void cuda_rope(struct backend *b, const struct rope *a);
void cuda_kv_put(struct backend *b, const struct kv_store *kv, uint32_t layer,
                 struct tensor x, uint32_t n);
void cuda_silu_mul(struct backend *b, struct tensor y, struct tensor gate,
                   struct tensor up, uint32_t n_rows, uint32_t n);
void cuda_gather(struct backend *b, struct tensor y, struct tensor x,
                 const uint32_t *rows, uint32_t n_rows, uint32_t n);

/* weight.cu */
size_t cuda_weight_bytes(const struct weight *w);
int cuda_weight_put(struct backend *b, const struct weight *w, uint32_t i,
                    uint32_t row, uint32_t n_rows, const float *rows);
int cuda_uploads_open(struct cuda *c, struct err *e);
void cuda_uploads_wait(struct cuda *c);
void cuda_uploads_close(struct cuda *c);

/* linear.cu */
void cuda_linear(struct backend *b, struct tensor y, struct tensor x,
                 const struct weight *w, uint32_t n_rows, int add);
void cuda_heads(struct backend *b, const struct heads *a);

/* Operands of the vtable's calls, for those that are made together. */
struct cuda_norm {
    struct tensor y;
    struct tensor x;
    const float  *w;
    float         eps;
    uint32_t      n_rows;
    uint32_t      n;
};

struct cuda_linear_op {
    struct tensor        y;
    struct tensor        x;
    const struct weight *w;
    uint32_t             n_rows;
    int                  add;
};

/* Rows of x up to which weights are streamed for them; any number with D6. */
#define CUDA_STREAMED   64

/* Up to CUDA_PARTS_MAX products of one x, none of which adds; norm is what made
 * x, and is done as well, of at most 8 rows, or NULL.  -1: warpgroups do one of
 * them faster; call them one by one. */
int cuda_linears(struct cuda *c, const struct cuda_norm *norm,
                 const struct cuda_linear_op *ops, uint32_t n);

/* rmsnorm, which rounds for warpgroups as well, and a product of what comes out
 * to y; or of gate and up, not NULL, as below.  -1: they do not do it. */
int cuda_norm_wide(struct cuda *c, const struct cuda_norm *norm,
                   const struct cuda_linear_op *op, const struct weight *up,
                   struct tensor y);

/* y = silu(gate x) * (up x), of any number of rows; norm as above. */
void cuda_gate_up(struct cuda *c, const struct cuda_norm *norm,
                  const struct cuda_linear_op *gate, const struct weight *up,
                  struct tensor y);

/* wide.cu: how many clusters there may be. */
void cuda_wide_open(struct cuda *c);

/* wide_op.cu.  Whether warpgroups are for such a product, of gate and up or of
 * w alone; the product, -1: they are not.  With norm, not NULL, x is its
 * output, and made as well; with up, not NULL, of one matrix: silu(W x) *
 * (up x). */
int cuda_wide_wants(const struct cuda *c, const struct weight *w,
                    uint32_t n_rows, int is_gate_up);
int cuda_wide_heads(struct cuda *c, const struct heads *a,
                    const struct cuda_norm *norm, const struct weight *up,
                    int add);
/* -1: not for these, or not on this device. */
int cuda_wide_moe(struct cuda *c, const struct moe *a, const uint32_t *place,
                  const uint32_t *start);

/* mla.cu, gqa.cu, route.cu, moe.cu, moe_few.cu */
void cuda_mla(struct backend *b, const struct mla *a);
void cuda_gqa(struct backend *b, const struct gqa *a);
void cuda_route(struct backend *b, const struct route *a);
void cuda_moe(struct backend *b, const struct moe *a);

/* sample.cu */
void cuda_sample(struct backend *b, struct tensor x,
                 const struct sample *rows, uint32_t n_rows, uint32_t n);
const uint32_t *cuda_chosen(struct backend *b);

/* Waits until the device has written to the word, and lets others have the
 * core. */
#define CUDA_UNREAD 0xfffffffeu     /* neither an id nor BACKEND_NO_TOKEN */
void cuda_await(struct cuda *c, const volatile uint32_t *word);

void cuda_sample_close(struct cuda *c);

/* prompt.cu: heads and rope of the queries, mla, and heads of what it gives,
 * of many tokens.  -1: not for these; call them one by one. */
struct cuda_prompt {
    struct heads uk;
    struct rope  rope;
    struct mla   mla;
    struct heads uv;
};

int cuda_prompt(struct cuda *c, const struct cuda_prompt *a);


/*
 * Calls that follow one another in a layer, as one or two kernels; step.cu
 * finds them.  What they leave out is written nowhere: the latent and its
 * rotation stay in kv_put's place.  Some have kernels of their own for at most
 * CUDA_FEW rows.
 */
#define CUDA_FEW    8

/* rmsnorm, rope, kv_put of the latent; heads, rope of the queries; x of heads
 * in pieces of 16 bytes.  For any rows. */
struct cuda_latent {
    struct cuda_norm       norm;
    struct rope            k;
    const struct kv_store *kv;
    uint32_t               layer;
    uint32_t               n;       /* kv_put's */
    struct heads           q;
    struct rope            q_rope;
};

void cuda_latent(struct cuda *c, const struct cuda_latent *a);

/* rmsnorm of queries and of keys (or none), rope of the keys, kv_put, rope of
 * the queries, of any number of rows.  -1: not for these; call them one by one.
 */
struct cuda_qkv {
    const float           *norm_q;      /* NULL: neither is normed */
    const float           *norm_k;
    float                  eps_q;
    float                  eps_k;
    int                    whole;       /* all heads in one */
    struct rope            q;           /* in place */
    struct rope            k;           /* nothing is written to its y */
    struct tensor          v;           /* (n_tok, k.n_heads * k.n) */
    const struct kv_store *kv;
    uint32_t               layer;
};

int cuda_qkv(struct cuda *c, const struct cuda_qkv *a);

/* mla, heads of its output.  -1: not for these; call them one by one. */
int cuda_mla_heads(struct cuda *c, const struct mla *a,
                   const struct heads *h);

/* rmsnorm, linear of FP32 weights, route. */
void cuda_norm_route(struct cuda *c, const struct cuda_norm *norm,
                     const struct cuda_linear_op *router,
                     const struct route *a);

/* moe; and linear, linear, silu_mul, linear of an expert that all rows go to,
 * or NULL. */
struct cuda_shared {
    const struct weight *gate;
    const struct weight *up;
    const struct weight *down;
    struct tensor        tmp;       /* (n_rows, width) */
};

void cuda_moe_few(struct cuda *c, const struct moe *a,
                  const struct cuda_shared *shared);

/* The same with an expert for all, for more rows.  -1: not for these. */
int cuda_moe_shared(struct cuda *c, const struct moe *a,
                    const struct cuda_shared *shared);

#endif /* MOE_CUDA_COMMON_CUH */
