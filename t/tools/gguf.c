/*
 * gguf.c - a model as a GGUF file, for engines that read those: the benchmark's
 * peer runs on the very weights that this engine has.
 *
 *     gguf DIR FILE f32|bf16|q8_0|q4_k [SEED]
 *
 * In: a model's directory; with SEED its config.json alone, and the numbers
 * that --random-weights SEED makes.  Out: a file of the architecture
 * "deepseek2", with kv_b cut into keys, transposed, and values.  Its
 * tokenizer, which no benchmark asks, has bytes for tokens, and "t1234" for all
 * else.
 *
 * q4_k is mixed as files of that name are: the embedding and the head have six
 * bits, a row that is not made of whole blocks has the next type that fits.
 */
#include <stdio.h>
#include <stdlib.h>

#include "engine/model/weights.c"

#include "tools/gguf_block.h"

#define ALIGN           32
#define ARCH            "deepseek2"
#define BYTE_TOKENS     259     /* <unk>, <s>, </s>, and each byte */

enum value { VALUE_U32 = 4, VALUE_I32 = 5, VALUE_F32 = 6, VALUE_BOOL = 7,
             VALUE_STRING = 8, VALUE_ARRAY = 9 };
enum token { TOKEN_NORMAL = 1, TOKEN_UNKNOWN = 2, TOKEN_CONTROL = 3,
             TOKEN_BYTE = 6 };
enum part { PART_ALL, PART_KEYS, PART_VALUES };

struct out {
    FILE    *f;
    uint64_t n_values;
};

/* One tensor of the file, of one item of the plan. */
struct target {
    const struct item       *it;
    enum part                part;      /* of kv_b */
    char                     name[64];
    uint64_t                 dims[3];   /* a row first */
    uint32_t                 n_dims;
    const struct gguf_block *block;
    uint64_t                 n_bytes;
};


static const struct {
    const char *from;           /* after "model.layers.%d." */
    const char *to;             /* after "blk.%d." */
    const char *values;         /* the second part of kv_b */
} names[] = {
    { "model.embed_tokens.weight", "token_embd.weight", NULL },
    { "lm_head.weight", "output.weight", NULL },
    { "model.norm.weight", "output_norm.weight", NULL },
    { "input_layernorm.weight", "attn_norm.weight", NULL },
    { "self_attn.q_proj.weight", "attn_q.weight", NULL },
    { "self_attn.q_a_proj.weight", "attn_q_a.weight", NULL },
    { "self_attn.q_a_layernorm.weight", "attn_q_a_norm.weight", NULL },
    { "self_attn.q_b_proj.weight", "attn_q_b.weight", NULL },
    { "self_attn.kv_a_proj_with_mqa.weight", "attn_kv_a_mqa.weight", NULL },
    { "self_attn.kv_a_layernorm.weight", "attn_kv_a_norm.weight", NULL },
    { "self_attn.kv_b_proj.weight", "attn_k_b.weight", "attn_v_b.weight" },
    { "self_attn.o_proj.weight", "attn_output.weight", NULL },
    { "post_attention_layernorm.weight", "ffn_norm.weight", NULL },
    { "mlp.gate_proj.weight", "ffn_gate.weight", NULL },
    { "mlp.up_proj.weight", "ffn_up.weight", NULL },
    { "mlp.down_proj.weight", "ffn_down.weight", NULL },
    { "mlp.gate.weight", "ffn_gate_inp.weight", NULL },
    { "mlp.gate.e_score_correction_bias", "exp_probs_b.bias", NULL },
    { "mlp.shared_experts.gate_proj.weight", "ffn_gate_shexp.weight", NULL },
    { "mlp.shared_experts.up_proj.weight", "ffn_up_shexp.weight", NULL },
    { "mlp.shared_experts.down_proj.weight", "ffn_down_shexp.weight", NULL },
    { "mlp.experts.%e.gate_proj.weight", "ffn_gate_exps.weight", NULL },
    { "mlp.experts.%e.up_proj.weight", "ffn_up_exps.weight", NULL },
    { "mlp.experts.%e.down_proj.weight", "ffn_down_exps.weight", NULL }
};


static void
die(const char *what, const char *why)
{
    fprintf(stderr, "gguf: %s: %s\n", what, why);
    exit(1);
}


static void
put(struct out *o, const void *p, size_t n)
{
    if (fwrite(p, 1, n, o->f) != n) {
        die("write", "failed");
    }
}


static void
put_u32(struct out *o, uint32_t v)
{
    put(o, &v, sizeof(v));
}


static void
put_u64(struct out *o, uint64_t v)
{
    put(o, &v, sizeof(v));
}


static void
put_string(struct out *o, const char *s)
{
    put_u64(o, strlen(s));
    put(o, s, strlen(s));
}


static void
key(struct out *o, const char *name, enum value type)
{
    o->n_values++;
    put_string(o, name);
    put_u32(o, type);
}


static void
key_u32(struct out *o, const char *name, uint32_t v)
{
    key(o, name, VALUE_U32);
    put_u32(o, v);
}


static void
key_f32(struct out *o, const char *name, double v)
{
    float f = (float) v;

    key(o, name, VALUE_F32);
    put(o, &f, sizeof(f));
}


static void
key_string(struct out *o, const char *name, const char *v)
{
    key(o, name, VALUE_STRING);
    put_string(o, v);
}


static void
key_array(struct out *o, const char *name, enum value type, uint64_t n)
{
    key(o, name, VALUE_ARRAY);
    put_u32(o, type);
    put_u64(o, n);
}


static enum token
token_kind(uint32_t id)
{
    return id == 0 ? TOKEN_UNKNOWN : id < 3 ? TOKEN_CONTROL
           : id < BYTE_TOKENS ? TOKEN_BYTE : TOKEN_NORMAL;
}


static void
put_token(struct out *o, uint32_t id)
{
    static const char *const first[] = { "<unk>", "<s>", "</s>" };
    char                     name[16];

    if (id < 3) {
        put_string(o, first[id]);
        return;
    }

    snprintf(name, sizeof(name), id < BYTE_TOKENS ? "<0x%02X>" : "t%u",
             id < BYTE_TOKENS ? id - 3 : id);
    put_string(o, name);
}


static void
write_vocab(struct out *o, uint32_t n)
{
    key_string(o, "tokenizer.ggml.model", "llama");

    key_array(o, "tokenizer.ggml.tokens", VALUE_STRING, n);

    for (uint32_t i = 0; i < n; i++) {
        put_token(o, i);
    }

    key_array(o, "tokenizer.ggml.scores", VALUE_F32, n);

    for (uint32_t i = 0; i < n; i++) {
        put_u32(o, 0);          /* 0.0 */
    }

    key_array(o, "tokenizer.ggml.token_type", VALUE_I32, n);

    for (uint32_t i = 0; i < n; i++) {
        put_u32(o, token_kind(i));
    }

    key_u32(o, "tokenizer.ggml.bos_token_id", 1);
    key_u32(o, "tokenizer.ggml.eos_token_id", 2);
}


/* The multiplier is stored times 0.1, which its reader takes back. */
static void
write_rope(struct out *o, const struct config *c)
{
    key_u32(o, ARCH ".rope.dimension_count", c->rope);
    key_f32(o, ARCH ".rope.freq_base", c->theta);

    if (strcmp(c->rope_type, "yarn") == 0) {
        key_string(o, ARCH ".rope.scaling.type", "yarn");
        key_f32(o, ARCH ".rope.scaling.factor", c->factor);
        key_u32(o, ARCH ".rope.scaling.original_context_length", c->orig_pos);
        key_f32(o, ARCH ".rope.scaling.yarn_log_multiplier",
                0.1 * c->mscale_all);
    }
}


static void
write_experts(struct out *o, const struct config *c)
{
    key_u32(o, ARCH ".leading_dense_block_count", c->first_dense);
    key_u32(o, ARCH ".expert_count", c->n_experts);
    key_u32(o, ARCH ".expert_used_count", c->n_active);
    key_u32(o, ARCH ".expert_shared_count", c->n_shared);
    key_u32(o, ARCH ".expert_feed_forward_length", c->moe_width);
    key_f32(o, ARCH ".expert_weights_scale", c->route_scale);
    key_u32(o, ARCH ".expert_gating_func",
            strcmp(c->score, "sigmoid") == 0 ? 2 : 1);
    key(o, ARCH ".expert_weights_norm", VALUE_BOOL);
    put(o, c->norm_topk ? "\1" : "\0", 1);
}


/* Attention is on latents: one key of kv_lora + rope for all heads. */
static void
write_values(struct out *o, const struct config *c, const char *name)
{
    key_string(o, "general.architecture", ARCH);
    key_string(o, "general.name", name);
    key_u32(o, "general.alignment", ALIGN);
    key_u32(o, "general.quantization_version", 2);
    key_u32(o, ARCH ".vocab_size", c->vocab);
    key_u32(o, ARCH ".context_length", c->max_pos);
    key_u32(o, ARCH ".embedding_length", c->dim);
    key_u32(o, ARCH ".block_count", c->n_layers);
    key_u32(o, ARCH ".feed_forward_length", c->width);
    key_u32(o, ARCH ".attention.head_count", c->n_heads);
    key_u32(o, ARCH ".attention.head_count_kv", 1);
    key_f32(o, ARCH ".attention.layer_norm_rms_epsilon", c->eps);
    key_u32(o, ARCH ".attention.q_lora_rank", c->q_lora);
    key_u32(o, ARCH ".attention.kv_lora_rank", c->kv_lora);
    key_u32(o, ARCH ".attention.key_length", c->kv_lora + c->rope);
    key_u32(o, ARCH ".attention.value_length", c->kv_lora);
    key_u32(o, ARCH ".attention.key_length_mla", c->qk);
    key_u32(o, ARCH ".attention.value_length_mla", c->v);
    write_experts(o, c);
    write_rope(o, c);
    write_vocab(o, c->vocab);
}


static enum gguf_type
choose_type(const struct item *it, uint64_t row, const char *quant)
{
    int many = it->target != NULL && it->spec->place == TENSOR_GLOBAL;

    if (it->spec->kind == TENSOR_VECTOR
        || it->spec->kind == TENSOR_MATRIX_F32 || strcmp(quant, "f32") == 0)
    {
        return GGUF_F32;
    }

    if (strcmp(quant, "bf16") == 0 || row % 32 != 0) {
        return GGUF_BF16;
    }

    if (strcmp(quant, "q8_0") == 0 || (many && row % 256 != 0)) {
        return GGUF_Q8_0;
    }

    return row % 256 != 0 ? GGUF_Q4_0 : many ? GGUF_Q6_K : GGUF_Q4_K;
}


static void
name_target(struct target *t)
{
    const char *from = t->it->spec->name;
    size_t      i = 0;

    if (t->it->spec->place == TENSOR_LAYER) {
        from += strlen("model.layers.%d.");
    }

    while (i < BASE_COUNT(names) && strcmp(names[i].from, from) != 0) {
        i++;
    }

    if (i == BASE_COUNT(names)) {
        die(from, "expected a tensor that " ARCH " has");
    }

    const char *to = t->part == PART_VALUES ? names[i].values : names[i].to;

    if (t->it->spec->place == TENSOR_LAYER) {
        snprintf(t->name, sizeof(t->name), "blk.%u.%s", t->it->i_layer, to);

    } else {
        snprintf(t->name, sizeof(t->name), "%s", to);
    }
}


static void
plan_target(struct target *t, const struct item *it, enum part part,
            const struct config *c, const char *quant)
{
    t->it = it;
    t->part = part;
    t->dims[0] = part == PART_KEYS ? c->nope : it->n_cols;
    t->dims[1] = part == PART_KEYS ? c->kv_lora
                 : part == PART_VALUES ? c->v : it->n_rows;
    t->dims[2] = part != PART_ALL ? c->n_heads : it->n;
    t->n_dims = it->spec->kind == TENSOR_VECTOR ? 1
                : part != PART_ALL || it->spec->kind == TENSOR_EXPERTS ? 3
                                                                       : 2;
    t->block = gguf_block(choose_type(it, t->dims[0], quant));
    t->n_bytes = t->dims[0] * t->dims[1] * t->dims[2] / t->block->n
                 * t->block->n_bytes;
    name_target(t);
}


static size_t
plan_targets(struct target *t, const struct weights_loader *l,
             const char *quant)
{
    size_t n = 0;

    for (size_t i = 0; i < l->n_items; i++) {
        const struct item *it = &l->items[i];

        if (it->spec->kind != TENSOR_KV_B) {
            plan_target(&t[n++], it, PART_ALL, l->c, quant);
            continue;
        }

        plan_target(&t[n++], it, PART_KEYS, l->c, quant);
        plan_target(&t[n++], it, PART_VALUES, l->c, quant);
    }

    return n;
}


/* Zeros up to where the next tensor may begin. */
static void
put_padding(struct out *o, uint64_t n_bytes)
{
    static const uint8_t zeros[ALIGN];

    put(o, zeros, (ALIGN - n_bytes % ALIGN) % ALIGN);
}


static void
write_targets(struct out *o, const struct target *t, size_t n)
{
    uint64_t at = 0;

    for (size_t i = 0; i < n; i++) {
        put_string(o, t[i].name);
        put_u32(o, t[i].n_dims);

        for (uint32_t d = 0; d < t[i].n_dims; d++) {
            put_u64(o, t[i].dims[d]);
        }

        put_u32(o, t[i].block->type);
        put_u64(o, at);
        at += (t[i].n_bytes + ALIGN - 1) / ALIGN * ALIGN;
    }
}


/* n rows from FP32, through l's second room. */
static void
put_rows(struct out *o, struct weights_loader *l, const struct target *t,
         const float *rows, uint64_t n)
{
    uint64_t n_blocks = t->dims[0] * n / t->block->n;
    uint8_t *to = (uint8_t *) l->rooms[1];

    for (uint64_t i = 0; i < n_blocks; i++) {
        t->block->put(to + i * t->block->n_bytes, rows + i * t->block->n);
    }

    put(o, to, n_blocks * t->block->n_bytes);
}


/* What load_kv_b() puts into the backend, of one head. */
static void
put_kv_b(struct out *o, struct weights_loader *l, const struct target *t,
         uint32_t head)
{
    const struct config *c = l->c;
    size_t               n_cols = c->kv_lora;
    float               *rows = l->rooms[0];
    float               *turned = rows + (size_t) (c->nope + c->v) * n_cols;

    read_rows(l, t->it->sources, c->kv_lora, head * (c->nope + c->v),
              c->nope + c->v, rows);

    if (t->part == PART_VALUES) {
        put_rows(o, l, t, rows + c->nope * n_cols, c->v);
        return;
    }

    for (size_t r = 0; r < c->nope; r++) {
        for (size_t col = 0; col < n_cols; col++) {
            turned[col * c->nope + r] = rows[r * n_cols + col];
        }
    }

    put_rows(o, l, t, turned, n_cols);
}


static void
put_target(struct out *o, struct weights_loader *l, const struct target *t)
{
    const struct item *it = t->it;

    if (it->spec->kind == TENSOR_VECTOR) {
        load_vector(l, it);
        put_rows(o, l, t, *(float **) it->target, 1);
        return;
    }

    for (uint32_t i = 0; i < t->dims[2]; i++) {
        if (t->part != PART_ALL) {
            put_kv_b(o, l, t, i);
            continue;
        }

        for (uint32_t row = 0; row < it->n_rows; row += ROWS) {
            uint32_t n = it->n_rows - row < ROWS ? it->n_rows - row : ROWS;

            read_rows(l, &it->sources[i], it->n_cols, row, n, l->rooms[0]);
            put_rows(o, l, t, l->rooms[0], n);
        }
    }
}


static void
write_file(struct out *o, struct weights_loader *l, const char *name,
           const char *quant)
{
    static const char header[] = "GGUF\3\0\0";  /* version 3 */
    struct target    *t = calloc(2 * l->n_items, sizeof(*t));

    if (t == NULL) {
        die("targets", "no memory");
    }

    size_t n = plan_targets(t, l, quant);

    put(o, header, 8);
    put_u64(o, n);
    put_u64(o, 0);              /* how many values: known below */
    write_values(o, l->c, name);
    write_targets(o, t, n);
    put_padding(o, (uint64_t) ftell(o->f));

    for (size_t i = 0; i < n; i++) {
        put_target(o, l, &t[i]);
        put_padding(o, t[i].n_bytes);
    }

    if (fseek(o->f, 16, SEEK_SET) != 0) {
        die("seek", "failed");
    }

    put_u64(o, o->n_values);
    free(t);
}


/* The plan is made for the CPU's memory, of which only vectors are used. */
static struct weights_loader *
plan(struct weights *w, struct config *c, const char *dir, int64_t seed)
{
    struct err            e = { "" };
    const struct family  *f;
    struct weights_source src = {
        .dir = dir, .random_seed = seed, .dtype = DTYPE_BF16, .quant = "bf16"
    };
    struct backend       *b = backend_open("cpu:ref", 2, 0, &e);

    if (b == NULL || config_load(dir, c, &f, &e) != 0) {
        die(dir, e.text);
    }

    if (c->kv_lora == 0) {
        die(dir, "expected a model with latent attention");
    }

    struct weights_loader *l = weights_plan(w, b, c, f, &src, &e);

    if (l == NULL || make_rooms(l, &e) != 0) {
        die(dir, e.text);
    }

    w->memory = b->ops->alloc(b, w->n_bytes);

    if (w->memory == NULL) {
        die(dir, "cannot get memory");
    }

    for (size_t i = 0; i < l->n_items; i++) {
        place_item(l, &l->items[i],
                   (char *) w->memory + l->items[i].offset);
    }

    return l;
}


int
main(int argc, char **argv)
{
    static const char *const quants[] = { "f32", "bf16", "q8_0", "q4_k" };
    size_t                   q = 0;

    while (argc > 3 && q < BASE_COUNT(quants)
           && strcmp(argv[3], quants[q]) != 0)
    {
        q++;
    }

    if (argc < 4 || argc > 5 || q == BASE_COUNT(quants)) {
        fprintf(stderr, "usage: gguf DIR FILE f32|bf16|q8_0|q4_k [SEED]\n");
        return 2;
    }

    struct config          c;
    struct weights         w;
    int64_t                seed = argc > 4 ? strtoll(argv[4], NULL, 10) : -1;
    struct weights_loader *l = plan(&w, &c, argv[1], seed);
    struct out             o = { fopen(argv[2], "wb"), 0 };

    if (o.f == NULL || c.vocab < BYTE_TOKENS) {
        die(argv[2], o.f == NULL ? "cannot be written"
                                 : "expected a vocabulary of 259 or more");
    }

    write_file(&o, l, argv[1], quants[q]);

    if (fclose(o.f) != 0) {
        die(argv[2], "cannot be written");
    }

    struct backend *b = l->b;

    weights_loader_free(l);
    weights_free(&w, b);
    b->ops->close(b);

    return 0;
}
