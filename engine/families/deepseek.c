/*
 * deepseek.c - DeepSeek V2, V3 and what has their form: V2-Lite, R1, V3.1,
 * Moonlight, Kimi-K2, OpenSeek-Small.  Multi-head latent attention (MLA) in
 * absorbed form, and a mixture of experts with shared ones.
 *
 *   latent  c = norm(kv_a(x)[:kv_lora]),  k_r = rope(kv_a(x)[kv_lora:])
 *   query   q(h) = [q_n | rope(q_r)],  of x, or of norm(q_a(x))
 *   score   q_n . (W_UK(h) c) + q_r . k_r = (W_UK(h)^T q_n) . c + q_r . k_r
 *   value   sum of p W_UV(h) c = W_UV(h) (sum of p c)
 *
 * so that attention runs on [c | k_r] itself, the only thing that is kept.
 * Sources: the DeepSeek-V2 and -V3 reports (arXiv 2405.04434, 2412.19437) and
 * their configurations; numerically as transformers' DeepseekV2/V3ForCausalLM.
 */
#include "families/parts.h"

#include <math.h>
#include <string.h>

enum when {
    WHEN_Q_LORA = 1,
    WHEN_Q_DIRECT = 2,
    WHEN_DENSE = 4,
    WHEN_MOE = 8,
    WHEN_SHARED = 16,
    WHEN_BIAS = 32
};

#define KEYS                                                                  \
    KEYS_OF_ALL,                                                              \
    EPS_OR(1e-6),                                                             \
    THETA_OR(10000),                                                          \
    INT("intermediate_size", width, 1, DIM_MAX),                              \
    INT_OR("q_lora_rank", q_lora, 1, DIM_MAX, 0),                             \
    INT("kv_lora_rank", kv_lora, 1, DIM_MAX),                                 \
    INT("qk_nope_head_dim", nope, 1, 65536),                                  \
    INT("qk_rope_head_dim", rope, 2, 65536),                                  \
    INT("v_head_dim", v, 1, 65536),                                           \
    BOOL_OR("rope_interleave", interleaved, 1),                               \
    INT_OR("n_shared_experts", n_shared, 0, 1024, 0),                         \
    INT("moe_intermediate_size", moe_width, 1, DIM_MAX),                      \
    INT_OR("first_k_dense_replace", first_dense, 0, LAYERS_MAX, 0),           \
    INT_OR("moe_layer_freq", moe_every, 1, LAYERS_MAX, 1),                    \
    INT_OR("n_group", n_groups, 1, 1024, 1),                                  \
    INT_OR("topk_group", n_groups_keep, 1, 1024, 1),                          \
    NUM_OR("routed_scaling_factor", route_scale, -1e6, 1e6, 1)

static const struct key keys_v2[] = {
    KEYS,
    STR_OR("scoring_func", score, "softmax"),
    STR_OR("topk_method", method, "greedy"),
    BOOL_OR("norm_topk_prob", norm_topk, 0)
};

static const struct key keys_v3[] = {
    KEYS,
    STR_OR("scoring_func", score, "sigmoid"),
    STR_OR("topk_method", method, "noaux_tc"),
    BOOL_OR("norm_topk_prob", norm_topk, 1)
};

static const struct tensor_spec tensors[] = {
    TENSORS_OF_ALL,
    TENSORS_MLP(WHEN_DENSE),
    TENSORS_EXPERTS(WHEN_MOE),

    { L "self_attn.q_proj.weight", "(n_heads * qk, dim)", TENSOR_MATRIX,
      LAYER(q), WHEN_Q_DIRECT, ALONE },
    { L "self_attn.q_a_proj.weight", "(q_lora, dim)", TENSOR_MATRIX,
      LAYER(q_a), WHEN_Q_LORA, ALONE },
    { L "self_attn.q_a_layernorm.weight", "(q_lora)", TENSOR_VECTOR,
      LAYER(norm_q), WHEN_Q_LORA, ALONE },
    { L "self_attn.q_b_proj.weight", "(n_heads * qk, q_lora)", TENSOR_MATRIX,
      LAYER(q_b), WHEN_Q_LORA, ALONE },
    { L "self_attn.kv_a_proj_with_mqa.weight", "(kv_lora + rope, dim)",
      TENSOR_MATRIX, LAYER(kv_a), 0, ALONE },
    { L "self_attn.kv_a_layernorm.weight", "(kv_lora)", TENSOR_VECTOR,
      LAYER(norm_kv), 0, ALONE },
    { L "self_attn.kv_b_proj.weight", "(n_heads * (nope + v), kv_lora)",
      TENSOR_KV_B, LAYER(w_uk), 0, ALONE },
    { L "self_attn.o_proj.weight", "(dim, n_heads * v)", TENSOR_MATRIX,
      LAYER(o), 0, ALONE },
    { L "mlp.gate.e_score_correction_bias", "(n_experts)", TENSOR_VECTOR,
      LAYER(bias), WHEN_MOE | WHEN_BIAS, ALONE },
    { L "mlp.shared_experts.gate_proj.weight", "(shared_width, dim)",
      TENSOR_MLP, LAYER(gate), WHEN_MOE | WHEN_SHARED, ALONE },
    { L "mlp.shared_experts.up_proj.weight", "(shared_width, dim)",
      TENSOR_MLP, LAYER(up), WHEN_MOE | WHEN_SHARED, ALONE },
    { L "mlp.shared_experts.down_proj.weight", "(dim, shared_width)",
      TENSOR_MLP, LAYER(down), WHEN_MOE | WHEN_SHARED, ALONE }
};

static const struct buffer_spec buffers[] = {
    BUFFERS_OF_ALL,
    { BUFFER(q_a), "1", "q_lora" },
    { BUFFER(q), "1", "n_heads * qk" },
    { BUFFER(q_latent), "1", "n_heads * kv_row" },
    { BUFFER(o_latent), "1", "n_heads * kv_row" },
    { BUFFER(o), "1", "n_heads * v" }
};


static int
is_moe(const struct config *c, uint32_t i)
{
    return i >= c->first_dense && i % c->moe_every == 0;
}


static int
deepseek_has(const struct config *c, uint32_t i, unsigned when)
{
    return !(when & WHEN_Q_LORA && c->q_lora == 0)
           && !(when & WHEN_Q_DIRECT && c->q_lora != 0)
           && !(when & WHEN_DENSE && is_moe(c, i))
           && !(when & WHEN_MOE && !is_moe(c, i))
           && !(when & WHEN_SHARED && c->n_shared == 0)
           && !(when & WHEN_BIAS && strcmp(c->method, "noaux_tc") != 0);
}


static int
check_router(const struct config *c, struct err *e)
{
    uint32_t groups = strcmp(c->method, "greedy") == 0 ? 1 : c->n_groups;
    uint32_t keep = groups == 1 ? 1 : c->n_groups_keep;

    if (c->n_experts % groups != 0 || keep > groups) {
        return err_set(e, "n_group: expected a divisor of %u experts and "
                       "topk_group <= it, got %u and %u", c->n_experts,
                       groups, keep);
    }

    if (c->n_active > c->n_experts / groups * keep) {
        return err_set(e, "num_experts_per_tok: expected at most %u (%u "
                       "groups of %u), got %u", c->n_experts / groups * keep,
                       keep, c->n_experts / groups, c->n_active);
    }

    return 0;
}


static double
yarn_mscale(double factor, double mscale)
{
    return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
}


static int
derive(struct config *c, struct err *e)
{
    if (c->rope % 2 != 0) {
        return err_set(e, "qk_rope_head_dim: expected an even number, got %u",
                       c->rope);
    }

    c->qk = c->nope + c->rope;
    c->kv_row = backend_pad(c->kv_lora + c->rope);
    c->shared_width = c->n_shared * c->moe_width;
    c->mlp_width = c->width > c->shared_width ? c->width : c->shared_width;

    if (c->shared_width > DIM_MAX) {
        return err_set(e, "n_shared_experts: too large, got %u", c->n_shared);
    }

    double scale = 1 / sqrt(c->qk);

    if (strcmp(c->rope_type, "yarn") == 0 && c->mscale_all > 0) {
        double m = yarn_mscale(c->factor, c->mscale_all);

        scale *= m * m;
    }

    c->attn_scale = (float) scale;

    return 0;
}


static int
check_v2(struct config *c, struct err *e)
{
    if (strcmp(c->score, "softmax") != 0) {
        return err_set(e, "scoring_func: expected \"softmax\", got \"%s\"",
                       c->score);
    }

    if (strcmp(c->method, "greedy") != 0
        && strcmp(c->method, "group_limited_greedy") != 0)
    {
        return err_set(e, "topk_method: expected greedy or "
                       "group_limited_greedy, got \"%s\"", c->method);
    }

    /* DeepSeek's own code renormalises instead of scaling; transformers has
     * only the scaling.  No published model asks for it. */
    if (c->norm_topk) {
        return err_set(e, "norm_topk_prob: true is not supported for "
                       "deepseek_v2");
    }

    return check_router(c, e) == 0 && parts_check(c, e) == 0
           ? derive(c, e) : -1;
}


static int
check_v3(struct config *c, struct err *e)
{
    if (strcmp(c->score, "sigmoid") != 0) {
        return err_set(e, "scoring_func: expected \"sigmoid\", got \"%s\"",
                       c->score);
    }

    if (strcmp(c->method, "noaux_tc") != 0) {
        return err_set(e, "topk_method: expected \"noaux_tc\", got \"%s\"",
                       c->method);
    }

    return check_router(c, e) == 0 && parts_check(c, e) == 0
           ? derive(c, e) : -1;
}


/* transformers gives the norms of the latents their default, whatever
 * rms_norm_eps says (Moonlight says 1e-5). */
#define LATENT_EPS      1e-6f

static void
attention(struct step *s, const struct layer *w)
{
    struct backend           *b = s->b;
    const struct backend_ops *op = b->ops;
    const struct config      *c = s->c;
    const struct buffers     *t = &s->buf;
    uint32_t                  n = s->n_tok;

    /* Queries: (n_tok, n_heads, [nope | rope]); and the latent and the key that
     * all heads share, which are kept.  What multiplies x comes together, so
     * that a backend can read x once. */
    if (c->q_lora != 0) {
        op->linear(b, t->q_a, t->h, &w->q_a, n, 0);
        op->linear(b, t->kv, t->h, &w->kv_a, n, 0);
        op->rmsnorm(b, t->q_a, t->q_a, w->norm_q, LATENT_EPS, n, c->q_lora);
        op->linear(b, t->q, t->q_a, &w->q_b, n, 0);

    } else {
        op->linear(b, t->q, t->h, &w->q, n, 0);
        op->linear(b, t->kv, t->h, &w->kv_a, n, 0);
    }

    op->rmsnorm(b, t->kv, t->kv, w->norm_kv, LATENT_EPS, n, c->kv_lora);

    struct tensor k_rope = tensor_from(t->kv, c->kv_lora);

    op->rope(b, &(struct rope) {
        .y = k_rope, .x = k_rope, .angles = t->angles, .n_heads = 1,
        .n = c->rope, .interleaved = c->interleaved });
    op->kv_put(b, s->kv, s->i_layer, t->kv, c->kv_lora + c->rope);

    /* Absorbed queries: (n_tok, n_heads, [W_UK^T q_nope | rope(q_rope)]) */
    op->heads(b, &(struct heads) {
        .y = t->q_latent, .x = t->q, .y_head = c->kv_row, .x_head = c->qk,
        .w = &w->w_uk, .n_rows = n });
    op->rope(b, &(struct rope) {
        .y = tensor_from(t->q_latent, c->kv_lora),
        .x = tensor_from(t->q, c->nope),
        .y_head = c->kv_row, .x_head = c->qk, .angles = t->angles,
        .n_heads = c->n_heads, .n = c->rope, .interleaved = c->interleaved });
    op->mla(b, &(struct mla) {
        .y = t->o_latent, .q = t->q_latent, .kv = s->kv, .layer = s->i_layer,
        .n_heads = c->n_heads, .n_latent = c->kv_lora,
        .scale = c->attn_scale });
    op->heads(b, &(struct heads) {
        .y = t->o, .x = t->o_latent, .y_head = c->v, .x_head = c->kv_row,
        .w = &w->w_uv, .n_rows = n });

    op->linear(b, t->x, t->o, &w->o, n, 1);
}


static void
experts(struct step *s, const struct layer *w)
{
    const struct config *c = s->c;
    int                  v3 = strcmp(c->method, "noaux_tc") == 0;
    int                  greedy = strcmp(c->method, "greedy") == 0;

    parts_experts(s, w, (struct route) {
        .bias = w->bias, .score = v3 ? ROUTE_SIGMOID : ROUTE_SOFTMAX,
        .method = v3 ? ROUTE_GROUP_TOP2
                     : greedy ? ROUTE_GREEDY : ROUTE_GROUP_MAX,
        .n_groups = greedy ? 1 : c->n_groups,
        .n_groups_keep = c->n_groups_keep,
        .scale = (float) c->route_scale });
}


static void
layer(struct step *s, const struct layer *w)
{
    struct backend      *b = s->b;
    const struct config *c = s->c;

    b->ops->rmsnorm(b, s->buf.h, s->buf.x, w->norm_in, (float) c->eps,
                    s->n_tok, c->dim);
    attention(s, w);

    b->ops->rmsnorm(b, s->buf.h, s->buf.x, w->norm_mlp, (float) c->eps,
                    s->n_tok, c->dim);

    if (is_moe(c, s->i_layer)) {
        experts(s, w);
    }

    if (w->gate.data != NULL) {         /* dense, or shared experts */
        parts_mlp(s, w);
    }
}


const struct family family_deepseek_v2 = {
    "deepseek_v2", keys_v2, BASE_COUNT(keys_v2), tensors, BASE_COUNT(tensors),
    buffers, BASE_COUNT(buffers), check_v2, deepseek_has, layer
};

const struct family family_deepseek_v3 = {
    "deepseek_v3", keys_v3, BASE_COUNT(keys_v3), tensors, BASE_COUNT(tensors),
    buffers, BASE_COUNT(buffers), check_v3, deepseek_has, layer
};
