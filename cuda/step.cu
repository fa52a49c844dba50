/*
 * step.cu - the calls of a step, from the vtable to kernels.
 *
 * In: the ops of a layer, one by one.  Out: launches.  A step that repeats
 * itself (struct batch) is recorded when its number of tokens is seen for the
 * first time: the calls up to gather() are listed, those that belong together
 * are put together, the kernels are captured in a graph; the next time the
 * calls are let pass, and the graph is launched.  A step of more tokens, which
 * is a prompt's and does not come again, is listed and put together in its own
 * way, and launched as it is.  Calls of other steps go straight on.
 *
 * Sums have an order of their own in the kernels that do several calls in one,
 * in those for many rows, and with attention in parts; "cuda:deterministic"
 * leaves these out, so that a token's numbers are the same in any company (D6);
 * but for those that have one order for any number of rows: same[].
 *
 * What differs between steps is read from device memory: tokens, positions,
 * page tables.  How many parts attention is split into follows from the
 * largest position, which is rounded up, and its kernels from who has
 * neighbours: both are part of a graph's key.
 */
#include "common.cuh"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* In a graph; steps of more tokens take long. */
#define TOK_MAX         256
#define GRAPHS_MAX      256

enum op_kind {
    OP_EMBED, OP_RMSNORM, OP_LINEAR, OP_HEADS, OP_ANGLES, OP_ROPE, OP_KV_PUT,
    OP_MLA, OP_GQA, OP_ROUTE, OP_MOE, OP_SILU_MUL
};

struct op {
    enum op_kind kind;

    union {
        struct { struct tensor y; const struct weight *w; } embed;
        struct cuda_norm       norm;
        struct cuda_linear_op  linear;
        struct heads           heads;
        struct { struct tensor y; const float *freqs; uint32_t n;
                 float scale; } angles;
        struct rope            rope;
        struct { const struct kv_store *kv; uint32_t layer; struct tensor x;
                 uint32_t n; } kv_put;
        struct mla             mla;
        struct gqa             gqa;
        struct route           route;
        struct moe             moe;
        struct { struct tensor y, gate, up; uint32_t n_rows, n; } silu;
    };
};

enum mode { DIRECT, LIST, RECORD, REPLAY };

struct graph {
    int             repeats;    /* struct batch's */
    uint32_t        n_tok;
    uint32_t        max_pos;
    int             has_gqa;    /* which asks for: */
    enum cuda_mix   mix;
    cudaGraphExec_t exec;
};

struct cuda_step {
    enum mode     mode;
    struct op    *ops;          /* recorded */
    size_t        n_ops;
    size_t        max_ops;
    int           repeats;      /* of this step */
    struct graph  graphs[GRAPHS_MAX];
    uint32_t      n_graphs;
    struct graph *graph;        /* REPLAY */
};


/* Where this call is to be recorded; NULL: nowhere, it is replayed. */
static struct op *
op_add(struct cuda *c, enum op_kind kind)
{
    struct cuda_step *s = c->step;

    if (s->mode == REPLAY) {
        return NULL;
    }

    /* A model's first steps, not its later ones, come here. */
    if (s->n_ops == s->max_ops) {
        s->max_ops = s->max_ops != 0 ? 2 * s->max_ops : 1024;
        s->ops = (struct op *) realloc(s->ops, s->max_ops * sizeof(*s->ops));

        if (s->ops == NULL) {
            cuda_fail(__FILE__, __LINE__, "realloc",
                      cudaErrorMemoryAllocation);
        }
    }

    struct op *op = &s->ops[s->n_ops++];

    memset(op, 0, sizeof(*op));
    op->kind = kind;

    return op;
}


static int
is_direct(struct backend *b)
{
    cuda_uploads_wait(cuda_of(b));

    return cuda_of(b)->step->mode == DIRECT;
}


static void
op_embed(struct backend *b, struct tensor y, const struct weight *w)
{
    struct op *op;

    if (is_direct(b)) {
        cuda_embed(b, y, w);

    } else if ((op = op_add(cuda_of(b), OP_EMBED)) != NULL) {
        op->embed.y = y;
        op->embed.w = w;
    }
}


static void
op_rmsnorm(struct backend *b, struct tensor y, struct tensor x, const float *w,
           float eps, uint32_t n_rows, uint32_t n)
{
    struct op *op;

    if (is_direct(b)) {
        cuda_rmsnorm(b, y, x, w, eps, n_rows, n);

    } else if ((op = op_add(cuda_of(b), OP_RMSNORM)) != NULL) {
        struct cuda_norm norm = { y, x, w, eps, n_rows, n };

        op->norm = norm;
    }
}


static void
op_linear(struct backend *b, struct tensor y, struct tensor x,
          const struct weight *w, uint32_t n_rows, int add)
{
    struct op *op;

    if (is_direct(b)) {
        cuda_linear(b, y, x, w, n_rows, add);

    } else if ((op = op_add(cuda_of(b), OP_LINEAR)) != NULL) {
        struct cuda_linear_op linear = { y, x, w, n_rows, add };

        op->linear = linear;
    }
}


static void
op_heads(struct backend *b, const struct heads *a)
{
    struct op *op;

    if (is_direct(b)) {
        cuda_heads(b, a);

    } else if ((op = op_add(cuda_of(b), OP_HEADS)) != NULL) {
        op->heads = *a;
    }
}


static void
op_angles(struct backend *b, struct tensor angles, const float *freqs,
          uint32_t n_pairs, float scale)
{
    struct op *op;

    if (is_direct(b)) {
        cuda_angles(b, angles, freqs, n_pairs, scale);

    } else if ((op = op_add(cuda_of(b), OP_ANGLES)) != NULL) {
        op->angles.y = angles;
        op->angles.freqs = freqs;
        op->angles.n = n_pairs;
        op->angles.scale = scale;
    }
}


static void
op_rope(struct backend *b, const struct rope *a)
{
    struct op *op;

    if (is_direct(b)) {
        cuda_rope(b, a);

    } else if ((op = op_add(cuda_of(b), OP_ROPE)) != NULL) {
        op->rope = *a;
    }
}


static void
op_kv_put(struct backend *b, const struct kv_store *kv, uint32_t layer,
          struct tensor x, uint32_t n)
{
    struct op *op;

    if (is_direct(b)) {
        cuda_kv_put(b, kv, layer, x, n);

    } else if ((op = op_add(cuda_of(b), OP_KV_PUT)) != NULL) {
        op->kv_put.kv = kv;
        op->kv_put.layer = layer;
        op->kv_put.x = x;
        op->kv_put.n = n;
    }
}


static void
op_mla(struct backend *b, const struct mla *a)
{
    struct op *op;

    if (is_direct(b)) {
        cuda_mla(b, a);

    } else if ((op = op_add(cuda_of(b), OP_MLA)) != NULL) {
        op->mla = *a;
    }
}


static void
op_gqa(struct backend *b, const struct gqa *a)
{
    struct op *op;

    if (is_direct(b)) {
        cuda_gqa(b, a);

    } else if ((op = op_add(cuda_of(b), OP_GQA)) != NULL) {
        op->gqa = *a;
    }
}


static void
op_route(struct backend *b, const struct route *a)
{
    struct op *op;

    if (is_direct(b)) {
        cuda_route(b, a);

    } else if ((op = op_add(cuda_of(b), OP_ROUTE)) != NULL) {
        op->route = *a;
    }
}


static void
op_moe(struct backend *b, const struct moe *a)
{
    struct op *op;

    if (is_direct(b)) {
        cuda_moe(b, a);

    } else if ((op = op_add(cuda_of(b), OP_MOE)) != NULL) {
        op->moe = *a;
    }
}


static void
op_silu_mul(struct backend *b, struct tensor y, struct tensor gate,
            struct tensor up, uint32_t n_rows, uint32_t n)
{
    struct op *op;

    if (is_direct(b)) {
        cuda_silu_mul(b, y, gate, up, n_rows, n);

    } else if ((op = op_add(cuda_of(b), OP_SILU_MUL)) != NULL) {
        op->silu.y = y;
        op->silu.gate = gate;
        op->silu.up = up;
        op->silu.n_rows = n_rows;
        op->silu.n = n;
    }
}


static void
op_gather(struct backend *b, struct tensor y, struct tensor x,
          const uint32_t *rows, uint32_t n_rows, uint32_t n)
{
    cuda_step_end(cuda_of(b));
    cuda_gather(b, y, x, rows, n_rows, n);
}


const struct backend_ops cuda_step_ops = {
    NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
    op_embed, op_rmsnorm, op_linear, op_heads, op_angles, op_rope, op_kv_put,
    op_mla, op_gqa, op_route, op_moe, op_silu_mul, op_gather, NULL, NULL, NULL
};


static int
is_same(struct tensor a, struct tensor b)
{
    return a.data == b.data && a.stride == b.stride;
}


/* Products with the same x of weights of the same dtype, from op on; at most
 * CUDA_PARTS_MAX of them. */
static size_t
count_linears(const struct op *op, size_t n, struct tensor x)
{
    size_t i = 0;

    while (i < n && i < CUDA_PARTS_MAX && op[i].kind == OP_LINEAR
           && is_same(op[i].linear.x, x) && !op[i].linear.add
           && op[i].linear.w->dtype == op[0].linear.w->dtype
           && op[i].linear.w->dtype != DTYPE_F32
           && op[i].linear.w->n_in == op[0].linear.w->n_in)
    {
        i++;
    }

    return i;
}


static int
put_linears(struct cuda *c, const struct cuda_norm *norm, const struct op *op,
            size_t n)
{
    struct cuda_linear_op linears[CUDA_PARTS_MAX];

    for (size_t i = 0; i < n; i++) {
        linears[i] = op[i].linear;
    }

    return cuda_linears(c, norm, linears, (uint32_t) n);
}


/* h = norm(x), then products of h.  In place, blocks would read what another
 * has normed already. */
static size_t
put_norm_linears(struct cuda *c, const struct op *op, size_t n)
{
    size_t n_linears;

    if (op[0].kind != OP_RMSNORM || op[0].norm.y.data == op[0].norm.x.data) {
        return 0;
    }

    n_linears = count_linears(op + 1, n - 1, op[0].norm.y);

    if (n_linears == 0 || op[1].linear.w->n_in != op[0].norm.n) {
        return 0;
    }

    return put_linears(c, &op[0].norm, op + 1, n_linears) == 0
           ? 1 + n_linears : 0;
}


/* Two products of one x, and silu_mul of them. */
static int
is_gate_up(const struct op *op, size_t n)
{
    if (n < 3 || op[0].kind != OP_LINEAR || op[1].kind != OP_LINEAR
        || op[2].kind != OP_SILU_MUL)
    {
        return 0;
    }

    const struct cuda_linear_op *gate = &op[0].linear, *up = &op[1].linear;

    return is_same(gate->x, up->x) && !gate->add && !up->add
           && gate->w->dtype != DTYPE_F32 && gate->w->dtype == up->w->dtype
           && gate->w->n_in == up->w->n_in && gate->w->n_out == up->w->n_out
           && gate->n_rows == up->n_rows && gate->n_rows == op[2].silu.n_rows
           && is_same(op[2].silu.gate, gate->y)
           && is_same(op[2].silu.up, up->y)
           && op[2].silu.n == gate->w->n_out;
}


static size_t
put_gate_up(struct cuda *c, const struct op *op, size_t n)
{
    if (!is_gate_up(op, n)) {
        return 0;
    }

    cuda_gate_up(c, NULL, &op[0].linear, op[1].linear.w, op[2].silu.y);

    return 3;
}


/* In fp8 warpgroups take x as two terms then, whose products cost a prompt more
 * than its activation does. */
static size_t
put_bf16_gate_up(struct cuda *c, const struct op *op, size_t n)
{
    return is_gate_up(op, n) && op[0].linear.w->dtype == DTYPE_BF16
           ? put_gate_up(c, op, n) : 0;
}


static size_t
put_norm_gate_up(struct cuda *c, const struct op *op, size_t n)
{
    if (op[0].kind != OP_RMSNORM || op[0].norm.y.data == op[0].norm.x.data
        || !is_gate_up(op + 1, n - 1)
        || !is_same(op[0].norm.y, op[1].linear.x)
        || op[1].linear.w->n_in != op[0].norm.n)
    {
        return 0;
    }

    cuda_gate_up(c, &op[0].norm, &op[1].linear, op[2].linear.w,
                 op[3].silu.y);

    return 4;
}


static size_t
put_only_linears(struct cuda *c, const struct op *op, size_t n)
{
    size_t n_linears = op[0].kind == OP_LINEAR
                       ? count_linears(op, n, op[0].linear.x) : 0;

    if (n_linears < 2) {
        return 0;
    }

    return put_linears(c, NULL, op, n_linears) == 0 ? n_linears : 0;
}


/* h = norm(x), and the first product of h, or gate and up, for which h is
 * rounded; the others read it as it is. */
static size_t
put_norm_wide(struct cuda *c, const struct op *op, size_t n)
{
    if (n < 2 || op[0].kind != OP_RMSNORM || op[1].kind != OP_LINEAR
        || !is_same(op[0].norm.y, op[1].linear.x)
        || op[1].linear.w->n_in != op[0].norm.n)
    {
        return 0;
    }

    int is_both = is_gate_up(op + 1, n - 1);

    return cuda_norm_wide(c, &op[0].norm, &op[1].linear,
                          is_both ? op[2].linear.w : NULL,
                          is_both ? op[3].silu.y : op[1].linear.y) != 0 ? 0
           : is_both ? 4 : 2;
}


static size_t
put_latent(struct cuda *c, const struct op *op, size_t n)
{
    if (n < 5 || op[0].kind != OP_RMSNORM || op[1].kind != OP_ROPE
        || op[2].kind != OP_KV_PUT || op[3].kind != OP_HEADS
        || op[4].kind != OP_ROPE)
    {
        return 0;
    }

    const struct cuda_norm *norm = &op[0].norm;
    const struct rope      *k = &op[1].rope, *q = &op[4].rope;
    const struct heads     *h = &op[3].heads;

    if (!is_same(norm->x, norm->y) || !is_same(k->x, k->y)
        || !is_same(k->x, tensor_from(norm->x, norm->n)) || k->n_heads != 1
        || !is_same(op[2].kv_put.x, norm->x)
        || op[2].kv_put.n != norm->n + k->n || h->w->dtype != DTYPE_BF16
        || q->n_heads != h->w->n || q->n != k->n
        || q->interleaved != k->interleaved || q->x.data == q->y.data
        || (uintptr_t) h->x.data % 16 != 0 || h->x.stride % 4 != 0
        || h->x_head % 4 != 0 || h->w->n_in % 4 != 0)
    {
        return 0;
    }

    struct cuda_latent a;

    memset(&a, 0, sizeof(a));
    a.norm = *norm;
    a.k = *k;
    a.kv = op[2].kv_put.kv;
    a.layer = op[2].kv_put.layer;
    a.n = op[2].kv_put.n;
    a.q = *h;
    a.q_rope = *q;
    cuda_latent(c, &a);

    return 5;
}


/* In place, of each of the heads that are rotated then, or of all in one. */
static int
is_norm_of(const struct cuda_norm *norm, const struct rope *r, uint32_t n_tok,
           int whole)
{
    uint32_t n_norms = whole ? 1 : r->n_heads;

    return is_same(norm->x, norm->y) && norm->x.data == r->x.data
           && norm->x.stride * n_norms == r->x.stride
           && (whole || norm->x.stride == r->x_head) && r->x_head == r->n
           && norm->n * n_norms == r->n_heads * r->n
           && norm->n_rows == n_tok * n_norms;
}


/* Keys, and values behind them, in kv_put's place; and queries. */
static size_t
put_qkv(struct cuda *c, const struct op *op, size_t n)
{
    size_t i = n >= 5 && op[0].kind == OP_RMSNORM
               && op[1].kind == OP_RMSNORM ? 2 : 0;

    if (n < i + 3 || op[i].kind != OP_ROPE || op[i + 1].kind != OP_KV_PUT
        || op[i + 2].kind != OP_ROPE)
    {
        return 0;
    }

    const struct rope  *k = &op[i].rope, *q = &op[i + 2].rope;
    const struct tensor kv = op[i + 1].kv_put.x;
    int                 whole = i != 0 && op[0].norm.n != q->n;

    if (!is_same(q->x, q->y) || q->x_head != q->y_head || k->y_head != k->n
        || !is_same(k->y, kv) || op[i + 1].kv_put.n != 2 * k->n_heads * k->n
        || q->n != k->n || q->interleaved != k->interleaved
        || !is_same(q->angles, k->angles)
        || (i != 0 && (!is_norm_of(&op[0].norm, q, c->n_tok, whole)
                       || !is_norm_of(&op[1].norm, k, c->n_tok, whole))))
    {
        return 0;
    }

    struct cuda_qkv a;

    memset(&a, 0, sizeof(a));

    if (i != 0) {
        a.norm_q = op[0].norm.w;
        a.norm_k = op[1].norm.w;
        a.eps_q = op[0].norm.eps;
        a.eps_k = op[1].norm.eps;
        a.whole = whole;
    }

    a.q = *q;
    a.k = *k;
    a.v = tensor_from(kv, (size_t) k->n_heads * k->n);
    a.kv = op[i + 1].kv_put.kv;
    a.layer = op[i + 1].kv_put.layer;

    return cuda_qkv(c, &a) == 0 ? i + 3 : 0;
}


static size_t
put_mla(struct cuda *c, const struct op *op, size_t n)
{
    return n >= 2 && op[0].kind == OP_MLA && op[1].kind == OP_HEADS
           && is_same(op[0].mla.y, op[1].heads.x)
           && op[1].heads.w->dtype == DTYPE_BF16
           && op[1].heads.x_head == op[0].mla.kv->row
           && op[1].heads.w->n_in == op[0].mla.n_latent
           && op[1].heads.w->n == op[0].mla.n_heads
           && cuda_mla_heads(c, &op[0].mla, &op[1].heads) == 0 ? 2 : 0;
}


/* What the queries are absorbed into, and the values come out of, may be left
 * out for a prompt. */
static size_t
put_prompt(struct cuda *c, const struct op *op, size_t n)
{
    if (n < 4 || op[0].kind != OP_HEADS || op[1].kind != OP_ROPE
        || op[2].kind != OP_MLA || op[3].kind != OP_HEADS)
    {
        return 0;
    }

    const struct heads *uk = &op[0].heads, *uv = &op[3].heads;
    const struct rope  *q = &op[1].rope;
    const struct mla   *m = &op[2].mla;

    if (!is_same(uk->y, m->q) || !is_same(m->y, uv->x)
        || !is_same(q->y, tensor_from(uk->y, uk->w->n_out))
        || !is_same(q->x, tensor_from(uk->x, uk->w->n_in))
        || q->x_head != uk->x_head || uk->w->dtype != DTYPE_BF16
        || uv->w->dtype != DTYPE_BF16 || uk->w->n_out != m->n_latent
        || uv->w->n_in != m->n_latent || uk->w->n != m->n_heads
        || uv->w->n != m->n_heads || q->n_heads != m->n_heads)
    {
        return 0;
    }

    struct cuda_prompt a = { *uk, *q, *m, *uv };

    return cuda_prompt(c, &a) == 0 ? 4 : 0;
}


static size_t
put_route(struct cuda *c, const struct op *op, size_t n)
{
    if (n < 3 || op[0].kind != OP_RMSNORM || op[1].kind != OP_LINEAR
        || op[2].kind != OP_ROUTE || op[0].norm.x.data == op[0].norm.y.data
        || !is_same(op[0].norm.y, op[1].linear.x) || op[1].linear.add
        || op[1].linear.w->dtype != DTYPE_F32
        || op[1].linear.w->n_in != op[0].norm.n
        || !is_same(op[1].linear.y, op[2].route.logits))
    {
        return 0;
    }

    cuda_norm_route(c, &op[0].norm, &op[1].linear, &op[2].route);

    return 3;
}


/* moe, and gate, up, silu_mul, down of the same rows to the same y. */
static size_t
put_moe(struct cuda *c, const struct op *op, size_t n)
{
    if (op[0].kind != OP_MOE || op[0].moe.gate->dtype == DTYPE_F32) {
        return 0;
    }

    const struct moe *m = &op[0].moe;

    if (n >= 5 && is_gate_up(op + 1, n - 1) && op[4].kind == OP_LINEAR
        && is_same(op[1].linear.x, m->x)
        && is_same(op[3].silu.y, op[4].linear.x) && op[4].linear.add
        && is_same(op[4].linear.y, m->y)
        && op[1].linear.w->dtype == m->gate->dtype)
    {
        struct cuda_shared shared = {
            op[1].linear.w, op[2].linear.w, op[4].linear.w, op[3].silu.y
        };

        if (m->n_rows > CUDA_FEW) {
            return cuda_moe_shared(c, m, &shared) == 0 ? 5 : 0;
        }

        cuda_moe_few(c, m, &shared);

        return 5;
    }

    if (m->n_rows > CUDA_FEW) {
        return 0;
    }

    cuda_moe_few(c, m, NULL);

    return 1;
}


/* One call as it is. */
static void
put_one(struct cuda *c, const struct op *op)
{
    struct backend *b = &c->b;

    switch (op->kind) {
    case OP_EMBED:
        cuda_embed(b, op->embed.y, op->embed.w);
        break;
    case OP_RMSNORM:
        cuda_rmsnorm(b, op->norm.y, op->norm.x, op->norm.w, op->norm.eps,
                     op->norm.n_rows, op->norm.n);
        break;
    case OP_LINEAR:
        cuda_linear(b, op->linear.y, op->linear.x, op->linear.w,
                    op->linear.n_rows, op->linear.add);
        break;
    case OP_HEADS:
        cuda_heads(b, &op->heads);
        break;
    case OP_ANGLES:
        cuda_angles(b, op->angles.y, op->angles.freqs, op->angles.n,
                    op->angles.scale);
        break;
    case OP_ROPE:
        cuda_rope(b, &op->rope);
        break;
    case OP_KV_PUT:
        cuda_kv_put(b, op->kv_put.kv, op->kv_put.layer, op->kv_put.x,
                    op->kv_put.n);
        break;
    case OP_MLA:
        cuda_mla(b, &op->mla);
        break;
    case OP_GQA:
        cuda_gqa(b, &op->gqa);
        break;
    case OP_ROUTE:
        cuda_route(b, &op->route);
        break;
    case OP_MOE:
        cuda_moe(b, &op->moe);
        break;
    case OP_SILU_MUL:
        cuda_silu_mul(b, op->silu.y, op->silu.gate, op->silu.up,
                      op->silu.n_rows, op->silu.n);
        break;
    }
}


typedef size_t (*put_fn)(struct cuda *c, const struct op *op, size_t n);

/* For up to CUDA_FEW tokens; with sums in one order, for any number; with sums
 * in any, up to CUDA_STREAMED and up to TOK_MAX; for prompts. */
static const put_fn few[] = {
    put_latent, put_qkv, put_route, put_norm_gate_up, put_norm_linears,
    put_gate_up, put_only_linears, put_mla, put_moe
};
static const put_fn same[] = { put_qkv, put_gate_up, put_only_linears };
static const put_fn some[] = {
    put_route, put_gate_up, put_only_linears, put_latent, put_qkv, put_moe
};
static const put_fn many[] = {
    put_route, put_norm_wide, put_gate_up, put_only_linears, put_latent,
    put_qkv, put_moe
};
static const put_fn prompt[] = { put_prompt, put_qkv, put_bf16_gate_up };


static void
put_all(struct cuda *c)
{
    struct cuda_step *s = c->step;
    const put_fn     *fns = many;
    size_t            n_fns = BASE_COUNT(many);
    size_t            n_done;

    if (c->deterministic) {
        fns = same;
        n_fns = BASE_COUNT(same);

    } else if (s->mode == LIST) {
        fns = prompt;
        n_fns = BASE_COUNT(prompt);

    } else if (c->n_tok <= CUDA_FEW) {
        fns = few;
        n_fns = BASE_COUNT(few);

    } else if (c->n_tok <= CUDA_STREAMED) {
        fns = some;
        n_fns = BASE_COUNT(some);
    }

    for (size_t i = 0; i < s->n_ops; i += n_done) {
        n_done = 0;

        for (size_t k = 0; n_done == 0 && k < n_fns; k++) {
            n_done = fns[k](c, s->ops + i, s->n_ops - i);
        }

        if (n_done == 0) {
            put_one(c, s->ops + i);
            n_done = 1;
        }
    }
}


static void
drop_graphs(struct cuda_step *s)
{
    for (uint32_t i = 0; i < s->n_graphs; i++) {
        CUDA_CHECK(cudaGraphExecDestroy(s->graphs[i].exec));
    }

    s->n_graphs = 0;
}


void
cuda_step_forget(struct cuda *c)
{
    drop_graphs(c->step);
}


int
cuda_step_open(struct cuda *c, struct err *e)
{
    c->step = (struct cuda_step *) calloc(1, sizeof(*c->step));

    return c->step != NULL ? 0 : err_set(e, "no memory for the backend");
}


static int
is_for(const struct graph *g, const struct cuda *c, int repeats)
{
    return g->n_tok == c->n_tok && g->repeats == repeats
           && g->max_pos == c->max_pos && (!g->has_gqa || g->mix == c->mix);
}


void
cuda_step_begin(struct cuda *c, int repeats)
{
    struct cuda_step *s = c->step;
    uint32_t          pages = 1;

    s->mode = DIRECT;

    s->n_ops = 0;

    if (!repeats || c->n_tok == 0) {
        return;
    }

    if (c->n_tok > TOK_MAX) {
        s->mode = LIST;
        return;
    }

    while (pages <= c->max_pos / BACKEND_PAGE_TOK) {
        pages *= 2;
    }

    c->max_pos = pages * BACKEND_PAGE_TOK - 1;
    s->repeats = repeats;
    s->mode = RECORD;

    for (uint32_t i = 0; i < s->n_graphs; i++) {
        if (is_for(&s->graphs[i], c, repeats)) {
            s->graph = &s->graphs[i];
            s->mode = REPLAY;
        }
    }
}


void
cuda_step_end(struct cuda *c)
{
    struct cuda_step *s = c->step;
    cudaGraph_t       graph;

    if (s->mode == RECORD) {
        if (s->n_graphs == GRAPHS_MAX) {
            CUDA_CHECK(cudaStreamSynchronize(c->stream));
            drop_graphs(s);
        }

        s->graph = &s->graphs[s->n_graphs++];
        s->graph->repeats = s->repeats;
        s->graph->n_tok = c->n_tok;
        s->graph->max_pos = c->max_pos;
        s->graph->mix = c->mix;
        s->graph->has_gqa = 0;

        for (size_t i = 0; i < s->n_ops; i++) {
            s->graph->has_gqa |= s->ops[i].kind == OP_GQA;
        }

        CUDA_CHECK(cudaStreamBeginCapture(c->stream,
                                          cudaStreamCaptureModeThreadLocal));
        put_all(c);
        CUDA_CHECK(cudaStreamEndCapture(c->stream, &graph));
        CUDA_CHECK(cudaGraphInstantiate(&s->graph->exec, graph, 0));
        CUDA_CHECK(cudaGraphDestroy(graph));
    }

    if (s->mode == LIST) {
        put_all(c);

    } else if (s->mode != DIRECT) {
        CUDA_CHECK(cudaGraphLaunch(s->graph->exec, c->stream));
    }

    s->mode = DIRECT;
}


void
cuda_step_close(struct cuda *c)
{
    if (c->step != NULL) {
        drop_graphs(c->step);
        free(c->step->ops);
        free(c->step);
    }
}
