/*
 * backend.h - the whole device boundary (D7): memory, and the operations that
 * a model's layers are written in.
 *
 * The mental model.  A backend owns all memory that it computes on; the model
 * holds addresses there and never looks behind them.  Activations are FP32
 * rows (struct tensor); a matrix of weights (struct weight) is in a layout of
 * the backend's own, filled through weight_put() from FP32 rows.  The calls of
 * one step are made in order by one thread.  CPU and GPU have the same ops
 * under the same names, so that the two can be read side by side.
 *
 * D6: an element of an output is accumulated in one order, which depends on
 * its own row alone: not on n_rows, on the rows beside it or on threads.
 *
 * No output may overlap an input unless the op says so.  Must not know
 * families, files or sequences.
 */
#ifndef MOE_BACKEND_H
#define MOE_BACKEND_H

#include "base.h"

#define BACKEND_PAGE_TOK    64      /* tokens in a page of KV */
#define BACKEND_PAD         16      /* KV rows are padded to this many */

enum dtype {
    DTYPE_F32 = 0,
    DTYPE_BF16 = 1,
    /* Of weights alone: a scale and a few bits an element. */
    DTYPE_INT8 = 2,
    DTYPE_INT4 = 3,
    DTYPE_FP8 = 4,              /* e4m3, a scale to 128 columns of a row */
    DTYPE_INT6 = 5,
    /* Of weights alone: BF16 exactly, in fewer bits. */
    DTYPE_TIGHT = 6
};

static inline int
dtype_is_quant(enum dtype t)
{
    return t >= DTYPE_INT8 && t <= DTYPE_INT6;
}

static inline size_t
dtype_bytes(enum dtype t)
{
    return t == DTYPE_F32 ? 4 : 2;
}

/* Elements of a KV row, and of what is multiplied with one. */
static inline uint32_t
backend_pad(uint32_t n)
{
    return (n + BACKEND_PAD - 1) / BACKEND_PAD * BACKEND_PAD;
}


/* FP32 rows: element (r, c) is data[r * stride + c]. */
struct tensor {
    float      *data;
    size_t      stride;
};

/* The columns from `col` on. */
static inline struct tensor
tensor_from(struct tensor t, size_t col)
{
    return (struct tensor) { t.data + col, t.stride };
}


/* n matrices of (n_out, n_in): of an expert or a head each, or one. */
struct weight {
    void       *data;           /* n times weight_bytes(), the next aligned */
    enum dtype  dtype;
    uint32_t    n;
    uint32_t    n_out;
    uint32_t    n_in;
};

/* Keys of all layers in pages: ((page, layer), BACKEND_PAGE_TOK, row). */
struct kv_store {
    void       *data;
    enum dtype  dtype;
    uint32_t    n_pages;
    uint32_t    n_layers;
    uint32_t    row;            /* elements: a multiple of BACKEND_PAD */
};

/* The tokens of a step; borrowed until the next begin(). */
struct batch {
    uint32_t               n_tok;
    const uint32_t        *ids;     /* (n_tok); or BACKEND_CHOSEN + r: what row
                                       r of the last sample() has chosen */
    const uint32_t        *pos;     /* (n_tok) */
    const uint32_t *const *pages;   /* (n_tok) page tables, covering pos */
    /* Not 0: up to gather() the calls and their arguments are those of every
     * other step of as many tokens with this number: they may be recorded. */
    int                    repeats;
};


/* Projections of heads: y(r, i) = W_i x(r, i) for each matrix i of w. */
struct heads {
    struct tensor        y;         /* head i at column i * y_head */
    struct tensor        x;         /* head i at column i * x_head */
    size_t               y_head;
    size_t               x_head;
    const struct weight *w;
    uint32_t             n_rows;
};

/* Rotary embedding of n_heads slices of n columns each, y from x (may be the
 * same memory).  Pair i of the slice is (2i, 2i + 1), or (i, i + n/2) where
 * not interleaved; it stays where it is. */
struct rope {
    struct tensor   y;
    struct tensor   x;
    size_t          y_head;
    size_t          x_head;
    struct tensor   angles;         /* (n_tok, n): cos of each pair, then sin */
    uint32_t        n_heads;
    uint32_t        n;
    int             interleaved;
};

/*
 * Absorbed multi-head latent attention of each token of the batch over the
 * positions 0 .. pos of its page table:
 *   s(j) = scale * q(h) . kv(j)              all columns of a row
 *   y(h) = sum over j of softmax(s)(j) * kv(j)   the first n_latent columns
 */
struct mla {
    struct tensor          y;       /* (n_tok, n_heads * row), row padded */
    struct tensor          q;       /* (n_tok, n_heads * row), padding is 0 */
    const struct kv_store *kv;
    uint32_t               layer;
    uint32_t               n_heads;
    uint32_t               n_latent;
    float                  scale;
};

/*
 * Grouped-query attention of each token of the batch over the positions
 * 0 .. pos of its page table.  A row of KV is [key of each of n_kv_heads |
 * value of each], `head` columns one; and with g = h * n_kv_heads / n_heads
 *   s(j) = scale * q(h) . key(j, g)
 *   y(h) = sum over j of softmax(s)(j) * value(j, g)
 */
struct gqa {
    struct tensor          y;       /* (n_tok, n_heads * head) */
    struct tensor          q;       /* the same */
    const struct kv_store *kv;
    uint32_t               layer;
    uint32_t               n_heads;
    uint32_t               n_kv_heads;  /* divides n_heads */
    uint32_t               head;        /* a multiple of BACKEND_PAD */
    float                  scale;
};

enum route_score { ROUTE_SOFTMAX, ROUTE_SIGMOID };
enum route_method { ROUTE_GREEDY, ROUTE_GROUP_MAX, ROUTE_GROUP_TOP2 };

/*
 * Which experts a row goes to, and with what weights.
 *   s = softmax(logits) or sigmoid(logits);  c = s + bias (or s)
 *   GROUP_MAX, GROUP_TOP2: groups are ranked by their largest c, or by the sum
 *   of their two largest; those after the first n_group_keep are out of the
 *   choice: c = 0 there (MAX, with softmax), c = -inf (TOP2), as transformers
 *   and DeepSeek's newer code have it
 *   chosen: the n_active largest c; of equal ones the lower index
 *   weights: s of the chosen, / (their sum + 1e-20) if norm, * scale
 */
struct route {
    uint32_t         *ids;          /* (n_rows, n_active), by falling c */
    float            *weights;      /* (n_rows, n_active) */
    struct tensor     logits;       /* (n_rows, n_experts) */
    const float      *bias;         /* (n_experts) or NULL */
    enum route_score  score;
    enum route_method method;
    uint32_t          n_rows;
    uint32_t          n_experts;
    uint32_t          n_active;
    uint32_t          n_groups;     /* divides n_experts */
    uint32_t          n_groups_keep;
    float             scale;
    int               norm;
};

/*
 * The routed experts:
 *   y(r) += sum over k, in order, of weights(r, k) *
 *           down(e) (silu(gate(e) x(r)) * (up(e) x(r))),  e = ids(r, k)
 */
struct moe {
    struct tensor        y;         /* (n_rows, dim): added to */
    struct tensor        x;         /* (n_rows, dim) */
    const uint32_t      *ids;       /* (n_rows, n_active), distinct in a row */
    const float         *weights;   /* (n_rows, n_active) */
    const struct weight *gate;      /* n_experts of (width, dim) */
    const struct weight *up;        /* the same */
    const struct weight *down;      /* n_experts of (dim, width) */
    struct tensor        tmp_gate;  /* (n_rows * n_active, width) */
    struct tensor        tmp_up;    /* the same */
    struct tensor        tmp_down;  /* (n_rows * n_active, dim) */
    uint32_t            *tmp_order; /* 2 * n_rows * n_active + 2 * n_experts
                                       + 1 */
    uint32_t             n_rows;
    uint32_t             n_active;
};


/*
 * How the token of a row is chosen: sampler.h's way, without penalties and
 * biases, which are the host's.
 */
struct sample {
    float       scale;          /* of logits to powers of two; 0: the largest */
    float       least;          /* a smaller power of the likeliest's is 0 */
    float       top_p;
    int32_t     top_k;
    uint64_t    seed;
    uint64_t    i_token;
    uint32_t    choice;
};

#define BACKEND_NO_TOKEN    0xffffffffu     /* of a row that is not finite */
#define BACKEND_CHOSEN      0x80000000u


struct backend;

struct backend_ops {
    void     (*close)(struct backend *b);

    /* Zeroed memory, aligned to 64; NULL: there is none. */
    void    *(*alloc)(struct backend *b, size_t n_bytes);
    void     (*free)(struct backend *b, void *p, size_t n_bytes);
    /* Bytes that can be had, by what the system says now. */
    uint64_t (*room)(struct backend *b);

    /* Copies to the backend's memory, and from it. */
    void     (*put)(struct backend *b, void *to, const void *from, size_t n);
    void     (*get)(struct backend *b, void *to, const void *from, size_t n);
    /* Within the backend's memory, in order with what it computes. */
    void     (*copy)(struct backend *b, void *to, const void *from, size_t n);

    /* Bytes of one matrix of w, a multiple of 64; 0: this backend does not
     * have that dtype. */
    size_t   (*weight_bytes)(const struct weight *w);
    /* Rounds and stores rows [row, row + n_rows) of matrix i; row and n_rows
     * are multiples of 16 save at the matrix's end.  Of other rows other
     * threads may do the same.  -1: DTYPE_TIGHT cannot hold them, and the
     * weight is to be put as BF16; 64 bytes of 0 never begin one that can. */
    int      (*weight_put)(struct backend *b, const struct weight *w,
                           uint32_t i, uint32_t row, uint32_t n_rows,
                           const float *rows);
    /* Brings the memory of w to where it will be read, before anything is
     * written there; NULL: memory is as near as can be. */
    void     (*weight_place)(struct backend *b, const struct weight *w);
    /* fn(ctx, i, thread) for i = 0 .. n - 1, on all threads; no order. */
    void     (*each)(struct backend *b, uint32_t n,
                     void (*fn)(void *ctx, uint32_t i, int thread), void *ctx);

    /* What follows is about these tokens, until the next begin(). */
    void     (*begin)(struct backend *b, const struct batch *batch);

    /* y(r) = row ids[r] of w.  y: (n_tok, n_in). */
    void     (*embed)(struct backend *b, struct tensor y,
                      const struct weight *w);

    /* y(r) = x(r) * w / sqrt(mean(x(r)^2) + eps); y may be x.  w: (n). */
    void     (*rmsnorm)(struct backend *b, struct tensor y, struct tensor x,
                        const float *w, float eps, uint32_t n_rows,
                        uint32_t n);

    /* y(r) = W x(r), or y(r) += W x(r) if add. */
    void     (*linear)(struct backend *b, struct tensor y, struct tensor x,
                       const struct weight *w, uint32_t n_rows, int add);

    void     (*heads)(struct backend *b, const struct heads *a);

    /* angles(r) = cos and sin of pos[r] * freqs(i), times scale; all FP32, the
     * product rounded before the cosine, as transformers has it. */
    void     (*angles)(struct backend *b, struct tensor angles,
                       const float *freqs, uint32_t n_pairs, float scale);
    void     (*rope)(struct backend *b, const struct rope *a);

    /* Stores each token's row x (n columns, the padding 0) at its position. */
    void     (*kv_put)(struct backend *b, const struct kv_store *kv,
                       uint32_t layer, struct tensor x, uint32_t n);
    void     (*mla)(struct backend *b, const struct mla *a);
    void     (*gqa)(struct backend *b, const struct gqa *a);

    void     (*route)(struct backend *b, const struct route *a);
    void     (*moe)(struct backend *b, const struct moe *a);

    /* y = silu(gate) * up, element by element; y may be gate.  (n_rows, n) */
    void     (*silu_mul)(struct backend *b, struct tensor y,
                         struct tensor gate, struct tensor up,
                         uint32_t n_rows, uint32_t n);

    /* y(i) = x(rows[i]), n columns; rows is the caller's memory. */
    void     (*gather)(struct backend *b, struct tensor y, struct tensor x,
                       const uint32_t *rows, uint32_t n_rows, uint32_t n);

    /* The step is done: n_rows rows of n logits where the caller can read
     * them, until the next begin(). */
    float   *(*fetch)(struct backend *b, struct tensor x, uint32_t n_rows,
                      uint32_t n);

    /* Instead of fetch(): a token of each row, chosen among its first n as
     * rows[r] says, the same bits as sampler_next()'s.  It does not wait for
     * that, and the next step may begin, and even end, before chosen() is
     * asked; but not one more.  NULL: this backend leaves the choice to the
     * host, which has the logits anyway. */
    void     (*sample)(struct backend *b, struct tensor x,
                       const struct sample *rows, uint32_t n_rows,
                       uint32_t n);

    /* Waits for the tokens (n_rows) of the first sample() that this was not
     * asked for; they stay until that one's next but one. */
    const uint32_t *(*chosen)(struct backend *b);
};

struct backend {
    const struct backend_ops *ops;
    const char               *name;     /* "cpu" */
    char                      kernels[64];  /* "avx512, 2 threads" */
    int                       n_threads;    /* that each() runs on */
    int                       host_memory;  /* alloc() gives the host's */
    int                       tight;        /* DTYPE_TIGHT is the faster BF16 */
    uint64_t                  layout;   /* of weights in the memory of several
                                           nodes; 0: there is one */
};

/* "cpu" (the best that this machine runs), or by name "cpu:ref", "cpu:avx2",
 * "cpu:avx512", "cpu:avx512vnni", "cpu:avx512bf16", "cpu:amx"; "cuda", or with
 * D6 "cuda:deterministic", or without Hopper's warpgroups "cuda:mma", or
 * without its clusters "cuda:unpaired"; "auto": cuda where there is one, else
 * cpu.  n_threads 0 = one per core; pin: each stays on its core, as cpu/place.h
 * has it.  NULL: e. */
struct backend *backend_open(const char *name, int n_threads, int pin,
                             struct err *e);

/* What backend_open() chooses among: cpu/cpu.c, and cuda/backend.cu if it was
 * built. */
struct backend *cpu_open(const char *name, int n_threads, int pin,
                         struct err *e);
struct backend *cuda_open(const char *name, int n_threads, struct err *e);

#endif /* MOE_BACKEND_H */
