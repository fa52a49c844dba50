/*
 * parts.h - what families are made of: rows of their tables, and the parts of
 * a layer that they share.
 */
#ifndef MOE_FAMILIES_PARTS_H
#define MOE_FAMILIES_PARTS_H

#include "model/family.h"

#define DIM_MAX     (1 << 20)

#define INT(n, f, lo, hi)       { n, KEY_INT, KEY_AT(f), 1, KEY_TOP, lo, hi, \
                                  0, NULL }
#define INT_OR(n, f, lo, hi, d) { n, KEY_INT, KEY_AT(f), 0, KEY_TOP, lo, hi, \
                                  d, NULL }
#define NUM_OR(n, f, lo, hi, d) { n, KEY_NUM, KEY_AT(f), 0, KEY_TOP, lo, hi, \
                                  d, NULL }
#define BOOL_OR(n, f, d)        { n, KEY_BOOL, KEY_AT(f), 0, KEY_TOP, 0, 0, d, \
                                  NULL }
#define STR_OR(n, f, d)         { n, KEY_STR, KEY_AT(f), 0, KEY_TOP, 0, 0, 0, \
                                  d }
#define ROPE(n, f, lo, hi, d)   { n, KEY_NUM, KEY_AT(f), 0, KEY_ROPE, lo, hi, \
                                  d, NULL }

#define KEYS_OF_ALL                                                           \
    INT("vocab_size", vocab, 1, 1 << 22),                                     \
    INT("hidden_size", dim, 1, DIM_MAX),                                      \
    INT("num_hidden_layers", n_layers, 1, LAYERS_MAX),                        \
    INT("num_attention_heads", n_heads, 1, 4096),                             \
    INT("max_position_embeddings", max_pos, 1, 1 << 28),                      \
    BOOL_OR("tie_word_embeddings", tied, 0),                                  \
    BOOL_OR("attention_bias", attention_bias, 0),                             \
    BOOL_OR("mlp_bias", mlp_bias, 0),                                         \
    STR_OR("hidden_act", activation, "silu"),                                 \
    INT("n_routed_experts|num_local_experts|num_experts", n_experts, 1, 1024),\
    INT("num_experts_per_tok|experts_per_token", n_active, 1, 1024),          \
    { "rope_type|type", KEY_STR, KEY_AT(rope_type), 0, KEY_ROPE, 0, 0, 0,     \
      "default" },                                                            \
    ROPE("factor", factor, 1e-6, 1e6, 0),                                     \
    ROPE("beta_fast", beta_fast, 0, 1e6, 32),                                 \
    ROPE("beta_slow", beta_slow, 0, 1e6, 1),                                  \
    ROPE("mscale", mscale, 0, 1e6, 0),                                        \
    ROPE("mscale_all_dim", mscale_all, 0, 1e6, 0),                            \
    ROPE("attention_factor", cos_scale, 0, 1e6, 0),                           \
    { "original_max_position_embeddings", KEY_INT, KEY_AT(orig_pos), 0,       \
      KEY_ROPE, 1, 1 << 28, 0, NULL },                                        \
    { "truncate", KEY_BOOL, KEY_AT(truncate), 0, KEY_ROPE, 0, 0, 1, NULL }

/* What the families' configurations have as defaults differs. */
#define EPS_OR(d)       NUM_OR("rms_norm_eps", eps, 0, 1, d)
#define THETA_OR(d)     { "rope_theta", KEY_NUM, KEY_AT(theta), 0,            \
                          KEY_ROPE_OR_TOP, 1, 1e12, d, NULL }


#define LAYER(f)    TENSOR_LAYER, offsetof(struct layer, f)
#define GLOBAL(f)   TENSOR_GLOBAL, offsetof(struct globals, f)
#define L           "model.layers.%d."
#define ALONE       NULL, NULL, NULL

#define TENSORS_OF_ALL                                                        \
    { "model.embed_tokens.weight", "(vocab, dim)", TENSOR_EMBED,              \
      GLOBAL(embed), 0, ALONE },                                              \
    { "lm_head.weight", "(vocab, dim)", TENSOR_MATRIX,                        \
      GLOBAL(head), 0, ALONE },                                               \
    { "model.norm.weight", "(dim)", TENSOR_VECTOR,                            \
      GLOBAL(norm), 0, ALONE },                                               \
    { L "input_layernorm.weight", "(dim)", TENSOR_VECTOR,                     \
      LAYER(norm_in), 0, ALONE },                                             \
    { L "post_attention_layernorm.weight", "(dim)", TENSOR_VECTOR,            \
      LAYER(norm_mlp), 0, ALONE }

#define TENSORS_MLP(when)                                                     \
    { L "mlp.gate_proj.weight", "(width, dim)", TENSOR_MLP,                   \
      LAYER(gate), when, ALONE },                                             \
    { L "mlp.up_proj.weight", "(width, dim)", TENSOR_MLP,                     \
      LAYER(up), when, ALONE },                                               \
    { L "mlp.down_proj.weight", "(dim, width)", TENSOR_MLP,                   \
      LAYER(down), when, ALONE }

/* Fused in transformers v5: an expert's gate rows, then its up rows. */
#define TENSORS_EXPERTS(when)                                                 \
    { L "mlp.gate.weight", "(n_experts, dim)", TENSOR_MATRIX_F32,             \
      LAYER(router), when, ALONE },                                           \
    { L "mlp.experts.%e.gate_proj.weight", "(moe_width, dim)",                \
      TENSOR_EXPERTS, LAYER(e_gate), when,                                    \
      L "mlp.experts.gate_up_proj", "(n_experts, 2 * moe_width, dim)", "0" }, \
    { L "mlp.experts.%e.up_proj.weight", "(moe_width, dim)", TENSOR_EXPERTS,  \
      LAYER(e_up), when,                                                      \
      L "mlp.experts.gate_up_proj", "(n_experts, 2 * moe_width, dim)",        \
      "moe_width" },                                                          \
    { L "mlp.experts.%e.down_proj.weight", "(dim, moe_width)",                \
      TENSOR_EXPERTS, LAYER(e_down), when,                                    \
      L "mlp.experts.down_proj", "(n_experts, dim, moe_width)", "0" }


#define BUFFER(f)   offsetof(struct buffers, f)

#define BUFFERS_OF_ALL                                                        \
    { BUFFER(x), "1", "dim" },                                                \
    { BUFFER(h), "1", "dim" },                                                \
    { BUFFER(kv), "1", "kv_row" },                                            \
    { BUFFER(angles), "1", "rope" },                                          \
    { BUFFER(gate), "1", "mlp_width" },                                       \
    { BUFFER(up), "1", "mlp_width" },                                         \
    { BUFFER(scores), "1", "n_experts" },                                     \
    { BUFFER(e_gate), "n_active", "moe_width" },                              \
    { BUFFER(e_up), "n_active", "moe_width" },                                \
    { BUFFER(e_down), "n_active", "dim" }


/* Refuses what no family runs, and sets what YaRN leaves out. */
int parts_check(struct config *c, struct err *e);

/* x += down(silu(gate(h)) * up(h)), dense or shared. */
void parts_mlp(struct step *s, const struct layer *w);

/* x += the experts that a router chooses, as `how` says, but for its inputs
 * and outputs. */
void parts_experts(struct step *s, const struct layer *w, struct route how);

#endif /* MOE_FAMILIES_PARTS_H */
