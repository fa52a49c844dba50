/*
 * qwen3.c - Qwen3's mixture of experts and what has its form: OLMoE, Mixtral.
 * Grouped-query attention, and experts chosen by a softmax, none shared.
 *
 *   q = rope(norm(q(x))),  k = rope(norm(k(x))),  v = v(x)
 *
 * with the halves of a head rotated against each other.  The norm is of each
 * head (Qwen3), of all of them in one (OLMoE), or there is none (Mixtral).
 * Sources: the Qwen3, OLMoE and Mixtral reports (arXiv 2505.09388, 2409.02060,
 * 2401.04088) and their configurations; numerically as transformers'
 * Qwen3Moe-, Olmoe- and MixtralForCausalLM.
 */
#include "families/parts.h"

#include <math.h>

enum when { WHEN_DENSE = 1, WHEN_MOE = 2 };

#define KEYS                                                                  \
    KEYS_OF_ALL,                                                              \
    INT_OR("num_key_value_heads", n_kv_heads, 1, 4096, 0),                    \
    INT_OR("head_dim", head, 1, 65536, 0)

static const struct key keys_qwen3[] = {
    KEYS,
    EPS_OR(1e-6),
    THETA_OR(10000),
    INT_OR("intermediate_size", width, 1, DIM_MAX, 0),
    INT("moe_intermediate_size", moe_width, 1, DIM_MAX),
    BOOL_OR("norm_topk_prob", norm_topk, 0),
    BOOL_OR("use_sliding_window", windowed, 0),
    INT_OR("decoder_sparse_step", moe_every, 1, LAYERS_MAX, 1),
    { "mlp_only_layers", KEY_SET, KEY_AT(dense), 0, KEY_TOP, 0, 0, 0, NULL }
};

static const struct key keys_olmoe[] = {
    KEYS,
    EPS_OR(1e-5),
    THETA_OR(10000),
    INT("intermediate_size", moe_width, 1, DIM_MAX),
    BOOL_OR("norm_topk_prob", norm_topk, 0),
    NUM_OR("clip_qkv", clip, 0, 1e9, 0)
};

static const struct key keys_mixtral[] = {
    KEYS,
    EPS_OR(1e-5),
    THETA_OR(1e6),
    INT("intermediate_size", moe_width, 1, DIM_MAX),
    INT_OR("sliding_window", window, 1, 1 << 28, 0)
};

#define TENSORS                                                               \
    TENSORS_OF_ALL,                                                           \
    { L "self_attn.q_proj.weight", "(n_heads * head, dim)", TENSOR_MATRIX,    \
      LAYER(q), 0, ALONE },                                                   \
    { L "self_attn.k_proj.weight", "(n_kv_heads * head, dim)", TENSOR_MATRIX, \
      LAYER(k), 0, ALONE },                                                   \
    { L "self_attn.v_proj.weight", "(n_kv_heads * head, dim)", TENSOR_MATRIX, \
      LAYER(v), 0, ALONE },                                                   \
    { L "self_attn.o_proj.weight", "(dim, n_heads * head)", TENSOR_MATRIX,    \
      LAYER(o), 0, ALONE }

#define NORMS(q, k)                                                           \
    { L "self_attn.q_norm.weight", q, TENSOR_VECTOR, LAYER(norm_q), 0,        \
      ALONE },                                                                \
    { L "self_attn.k_norm.weight", k, TENSOR_VECTOR, LAYER(norm_k), 0, ALONE }

static const struct tensor_spec tensors_qwen3[] = {
    TENSORS,
    NORMS("(head)", "(head)"),
    TENSORS_MLP(WHEN_DENSE),
    TENSORS_EXPERTS(WHEN_MOE)
};

static const struct tensor_spec tensors_olmoe[] = {
    TENSORS,
    NORMS("(n_heads * head)", "(n_kv_heads * head)"),
    TENSORS_EXPERTS(WHEN_MOE)
};

#define SPARSE      L "block_sparse_moe."

static const struct tensor_spec tensors_mixtral[] = {
    TENSORS,
    { SPARSE "gate.weight", "(n_experts, dim)", TENSOR_MATRIX_F32,
      LAYER(router), WHEN_MOE, ALONE },
    { SPARSE "experts.%e.w1.weight", "(moe_width, dim)", TENSOR_EXPERTS,
      LAYER(e_gate), WHEN_MOE, ALONE },
    { SPARSE "experts.%e.w3.weight", "(moe_width, dim)", TENSOR_EXPERTS,
      LAYER(e_up), WHEN_MOE, ALONE },
    { SPARSE "experts.%e.w2.weight", "(dim, moe_width)", TENSOR_EXPERTS,
      LAYER(e_down), WHEN_MOE, ALONE }
};

static const struct buffer_spec buffers[] = {
    BUFFERS_OF_ALL,
    { BUFFER(q), "1", "n_heads * head" },
    { BUFFER(k), "1", "n_kv_heads * head" },
    { BUFFER(o), "1", "n_heads * head" }
};


static int
is_moe(const struct config *c, uint32_t i)
{
    return (c->dense[i / 8] >> i % 8 & 1) == 0 && (i + 1) % c->moe_every == 0;
}


static int
has(const struct config *c, uint32_t i, unsigned when)
{
    return !(when & WHEN_DENSE && is_moe(c, i))
           && !(when & WHEN_MOE && !is_moe(c, i));
}


static int
check_supported(struct config *c, struct err *e)
{
    if (c->windowed || (c->window != 0 && c->window < c->max_pos)) {
        return err_set(e, "sliding_window: attention over a window is not "
                       "supported");
    }

    if (c->clip > 0) {
        return err_set(e, "clip_qkv: expected null, got %g", c->clip);
    }

    if (c->n_active > c->n_experts) {
        return err_set(e, "num_experts_per_tok: expected at most %u, got %u",
                       c->n_experts, c->n_active);
    }

    return parts_check(c, e);
}


static int
check(struct config *c, struct err *e)
{
    if (check_supported(c, e) != 0) {
        return -1;
    }

    c->n_kv_heads = c->n_kv_heads != 0 ? c->n_kv_heads : c->n_heads;
    c->head = c->head != 0 ? c->head : c->dim / c->n_heads;

    if (c->n_heads % c->n_kv_heads != 0) {
        return err_set(e, "num_key_value_heads: expected a divisor of %u "
                       "heads, got %u", c->n_heads, c->n_kv_heads);
    }

    if (c->head == 0 || c->head % BACKEND_PAD != 0) {
        return err_set(e, "head_dim: expected a multiple of %d, got %u",
                       BACKEND_PAD, c->head);
    }

    c->rope = c->head;
    c->kv_row = 2 * c->n_kv_heads * c->head;
    c->attn_scale = (float) (1 / sqrt(c->head));
    c->moe_every = c->moe_every != 0 ? c->moe_every : 1;

    for (uint32_t i = 0; i < c->n_layers; i++) {
        c->mlp_width = is_moe(c, i) ? c->mlp_width : c->width;
    }

    return 0;
}


static int
check_qwen3(struct config *c, struct err *e)
{
    if (check(c, e) != 0) {
        return -1;
    }

    for (uint32_t i = 0; i < c->n_layers; i++) {
        if (!is_moe(c, i) && c->width == 0) {
            return err_set(e, "intermediate_size: expected it, since layer "
                           "%u has no experts", i);
        }
    }

    return 0;
}


static int
check_mixtral(struct config *c, struct err *e)
{
    c->norm_topk = 1;

    return check(c, e);
}


/* Each head's norm, or one of all: what has n columns is what w is of. */
static void
norm(struct step *s, struct tensor x, const float *w, uint32_t n_heads,
     int each)
{
    const struct config *c = s->c;
    uint32_t             n_norms = each ? n_heads : 1;
    size_t               n = (size_t) n_heads * c->head / n_norms;

    s->b->ops->rmsnorm(s->b, (struct tensor) { x.data, n },
                       (struct tensor) { x.data, n }, w, (float) c->eps,
                       s->n_tok * n_norms, (uint32_t) n);
}


static void
attention(struct step *s, const struct layer *w, int norm_each)
{
    struct backend           *b = s->b;
    const struct backend_ops *op = b->ops;
    const struct config      *c = s->c;
    const struct buffers     *t = &s->buf;
    uint32_t                  n = s->n_tok;

    /* (n_tok, n_heads, head), and with n_kv_heads */
    op->linear(b, t->q, t->h, &w->q, n, 0);
    op->linear(b, t->k, t->h, &w->k, n, 0);
    op->linear(b, tensor_from(t->kv, (size_t) c->n_kv_heads * c->head), t->h,
               &w->v, n, 0);

    if (w->norm_q != NULL) {
        norm(s, t->q, w->norm_q, c->n_heads, norm_each);
        norm(s, t->k, w->norm_k, c->n_kv_heads, norm_each);
    }

    /* Keys go before their values, and both are what is kept. */
    op->rope(b, &(struct rope) {
        .y = t->kv, .x = t->k, .y_head = c->head, .x_head = c->head,
        .angles = t->angles, .n_heads = c->n_kv_heads, .n = c->head });
    op->kv_put(b, s->kv, s->i_layer, t->kv, c->kv_row);

    op->rope(b, &(struct rope) {
        .y = t->q, .x = t->q, .y_head = c->head, .x_head = c->head,
        .angles = t->angles, .n_heads = c->n_heads, .n = c->head });
    op->gqa(b, &(struct gqa) {
        .y = t->o, .q = t->q, .kv = s->kv, .layer = s->i_layer,
        .n_heads = c->n_heads, .n_kv_heads = c->n_kv_heads, .head = c->head,
        .scale = c->attn_scale });
    op->linear(b, t->x, t->o, &w->o, n, 1);
}


static void
block(struct step *s, const struct layer *w, int norm_each)
{
    struct backend      *b = s->b;
    const struct config *c = s->c;

    b->ops->rmsnorm(b, s->buf.h, s->buf.x, w->norm_in, (float) c->eps,
                    s->n_tok, c->dim);
    attention(s, w, norm_each);

    b->ops->rmsnorm(b, s->buf.h, s->buf.x, w->norm_mlp, (float) c->eps,
                    s->n_tok, c->dim);

    if (is_moe(c, s->i_layer)) {
        parts_experts(s, w, (struct route) {
            .score = ROUTE_SOFTMAX, .method = ROUTE_GREEDY, .n_groups = 1,
            .n_groups_keep = 1, .scale = 1 });

    } else {
        parts_mlp(s, w);
    }
}


static void
layer_qwen3(struct step *s, const struct layer *w)
{
    block(s, w, 1);
}


static void
layer(struct step *s, const struct layer *w)
{
    block(s, w, 0);
}


const struct family family_qwen3_moe = {
    "qwen3_moe", keys_qwen3, BASE_COUNT(keys_qwen3), tensors_qwen3,
    BASE_COUNT(tensors_qwen3), buffers, BASE_COUNT(buffers), check_qwen3, has,
    layer_qwen3
};

const struct family family_olmoe = {
    "olmoe", keys_olmoe, BASE_COUNT(keys_olmoe), tensors_olmoe,
    BASE_COUNT(tensors_olmoe), buffers, BASE_COUNT(buffers), check, has, layer
};

const struct family family_mixtral = {
    "mixtral", keys_mixtral, BASE_COUNT(keys_mixtral), tensors_mixtral,
    BASE_COUNT(tensors_mixtral), buffers, BASE_COUNT(buffers), check_mixtral,
    has, layer
};
