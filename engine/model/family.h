/*
 * family.h - what a family of models is (D8), and the inside of a model
 * that its layers work on.
 *
 * The mental model.  A family is four tables and a function: which keys of
 * config.json fill struct config, which tensors fill struct layer, which rows
 * of activations a step needs, and layer(), one block in backend ops.  Sizes
 * in the tables are expressions over the names in config_dims ("n_heads *
 * (nope + rope)"): they are what is checked against a file, and what is
 * printed when it differs.
 *
 * Only model*.c and families/ include this.
 */
#ifndef MOE_MODEL_FAMILY_H
#define MOE_MODEL_FAMILY_H

#include <stddef.h>

#include "backend.h"
#include "json_util.h"

#define LAYERS_MAX      1024

/* All that config.json says which a family may need; 0 where it does not. */
struct config {
    char        family[32];     /* model_type as it is in the file */
    uint32_t    vocab;
    uint32_t    dim;            /* of the residual stream */
    uint32_t    width;          /* of a dense MLP */
    uint32_t    n_layers;
    uint32_t    n_heads;
    uint32_t    max_pos;        /* tokens */
    double      eps;            /* of the norms on the residual stream */
    int         tied;           /* head = embedding, if there is no head */
    int         attention_bias;
    int         mlp_bias;
    char        activation[16];

    /* Grouped-query attention */
    uint32_t    n_kv_heads;
    uint32_t    head;           /* columns of a head */
    int         windowed;       /* attention is over a window ... */
    uint32_t    window;         /* ... of so many tokens; 0: of all */
    double      clip;           /* q, k, v are cut to -clip .. clip; 0: not */

    /* Latent attention */
    uint32_t    q_lora;         /* 0: queries come from x directly */
    uint32_t    kv_lora;
    uint32_t    nope;           /* of a head's query and key, not rotated */
    uint32_t    rope;           /* and rotated */
    uint32_t    v;              /* of a head's value */
    int         interleaved;    /* pairs are (2i, 2i + 1) */

    /* Experts */
    uint32_t    n_experts;
    uint32_t    n_active;
    uint32_t    n_shared;
    uint32_t    moe_width;
    uint32_t    first_dense;    /* layers before have a dense MLP */
    uint32_t    moe_every;      /* of the others, each such layer is a MoE */
    uint8_t     dense[LAYERS_MAX / 8];  /* bit i % 8 of i / 8: layer i has a
                                           dense MLP, whatever else is said */
    uint32_t    n_groups;
    uint32_t    n_groups_keep;
    char        score[24];
    char        method[24];
    int         norm_topk;
    double      route_scale;

    /* Positions */
    char        rope_type[16];
    double      theta;
    double      factor;
    double      beta_fast;
    double      beta_slow;
    double      mscale;
    double      mscale_all;
    double      cos_scale;      /* attention_factor; 0: by the formula */
    uint32_t    orig_pos;
    int         truncate;

    /* Weights in the file */
    char        quant_method[16];
    char        quant_fmt[16];
    uint32_t    block_out;      /* of FP8 scales */
    uint32_t    block_in;

    /* Derived */
    uint32_t    qk;             /* nope + rope */
    uint32_t    kv_row;         /* backend_pad(kv_lora + rope), or 2 *
                                   n_kv_heads * head */
    uint32_t    shared_width;
    uint32_t    mlp_width;      /* the larger of width and shared_width */
    float       attn_scale;
};


/* KEY_SET: an array of integers, as bits. */
enum key_type { KEY_INT, KEY_NUM, KEY_BOOL, KEY_STR, KEY_SET };
/* Where a key is looked for; ROPE is rope_parameters, or rope_scaling. */
enum key_place { KEY_TOP, KEY_ROPE, KEY_ROPE_OR_TOP };

/* One member of config.json; names in order of preference: "a|b". */
struct key {
    const char    *names;
    enum key_type  type;
    size_t         offset;      /* in struct config; KEY_STR: char array */
    size_t         size;        /* of the member there */
    int            required;
    enum key_place place;
    double         min, max;    /* KEY_INT, KEY_NUM */
    double         number;      /* default */
    const char    *string;      /* default of a KEY_STR */
};

#define KEY_AT(f)   offsetof(struct config, f), sizeof(((struct config *) 0)->f)


/* The weights of one layer; what a family or a layer does not have is 0. */
struct layer {
    float          *norm_in;    /* (dim) */
    float          *norm_mlp;   /* (dim) */

    struct weight   q;          /* (n_heads * qk or head, dim), or with
                                   q_lora: */
    struct weight   q_a;        /* (q_lora, dim) */
    struct weight   q_b;        /* (n_heads * qk, q_lora) */
    float          *norm_q;     /* (q_lora), or of one head or all */
    struct weight   kv_a;       /* (kv_lora + rope, dim) */
    float          *norm_kv;    /* (kv_lora) */
    struct weight   w_uk;       /* n_heads of (kv_lora, nope): keys absorbed */
    struct weight   w_uv;       /* n_heads of (v, kv_lora) */
    struct weight   k;          /* (n_kv_heads * head, dim) */
    struct weight   v;          /* (n_kv_heads * head, dim) */
    float          *norm_k;     /* of one head or all */
    struct weight   o;          /* (dim, n_heads * v or head) */

    struct weight   gate;       /* (width or shared_width, dim) */
    struct weight   up;
    struct weight   down;

    struct weight   router;     /* (n_experts, dim) FP32 */
    float          *bias;       /* (n_experts) of the choice */
    struct weight   e_gate;     /* n_experts of (moe_width, dim) */
    struct weight   e_up;
    struct weight   e_down;     /* n_experts of (dim, moe_width) */
};

/* What is not of a layer. */
struct globals {
    struct weight   embed;      /* (vocab, dim) */
    struct weight   head;       /* (vocab, dim) */
    float          *norm;       /* (dim) */
};

enum tensor_kind {
    TENSOR_MATRIX,              /* struct weight, in the asked-for dtype */
    TENSOR_MATRIX_F32,          /* struct weight, always FP32 */
    TENSOR_EMBED,               /* struct weight, of which rows are looked up */
    TENSOR_MLP,                 /* struct weight; stands the fewest bits */
    TENSOR_VECTOR,              /* float * */
    TENSOR_EXPERTS,             /* struct weight: "%e" in the name */
    TENSOR_KV_B                 /* w_uk and w_uv, cut out of one tensor */
};

enum tensor_place { TENSOR_GLOBAL, TENSOR_LAYER };

/* One tensor of the file, or one a layer and expert. */
struct tensor_spec {
    const char       *name;     /* "%d": the layer */
    const char       *shape;    /* "(a, b)" */
    enum tensor_kind  kind;
    enum tensor_place place;
    size_t            offset;   /* in struct layer or struct globals */
    unsigned          when;     /* the family's own bits, for has() */

    /* The same of all experts in one tensor, from row `first` of each. */
    const char       *fused;
    const char       *fused_shape;
    const char       *first;
};


/* Rows of activations of a step. */
struct buffers {
    struct tensor   x;          /* residual stream */
    struct tensor   h;          /* normed */
    struct tensor   q_a;
    struct tensor   q;
    struct tensor   k;          /* not rotated yet */
    struct tensor   kv;         /* latent, rotated key; or keys, values */
    struct tensor   q_latent;   /* absorbed queries: a KV row a head */
    struct tensor   o_latent;   /* attention's output before w_uv */
    struct tensor   o;
    struct tensor   angles;
    struct tensor   gate;
    struct tensor   up;
    struct tensor   scores;     /* router */
    struct tensor   e_gate;     /* n_active rows a token */
    struct tensor   e_up;
    struct tensor   e_down;
};

struct buffer_spec {
    size_t      offset;         /* in struct buffers */
    const char *rows;           /* a token: "1", "n_active" */
    const char *cols;
};


/* What layer() works on. */
struct step {
    struct backend        *b;
    const struct config   *c;
    const struct kv_store *kv;
    struct buffers         buf;
    uint32_t              *expert_ids;      /* (n_tok, n_active) */
    float                 *expert_weights;  /* the same */
    uint32_t              *expert_order;    /* struct moe's tmp_order */
    uint32_t               n_tok;
    uint32_t               i_layer;
};

struct family {
    const char                *name;
    const struct key          *keys;
    size_t                     n_keys;
    const struct tensor_spec  *tensors;
    size_t                     n_tensors;
    const struct buffer_spec  *buffers;
    size_t                     n_buffers;

    /* What the family does not run is refused here; derives the rest. */
    int  (*check)(struct config *c, struct err *e);
    /* Whether layer i has the tensors of these `when` bits. */
    int  (*has)(const struct config *c, uint32_t i, unsigned when);
    void (*layer)(struct step *s, const struct layer *w);
};

/* NULL: e names what is not supported, and why. */
const struct family *family_find(const char *model_type, struct err *e);

extern const struct family family_deepseek_v2;
extern const struct family family_deepseek_v3;
extern const struct family family_qwen3_moe;
extern const struct family family_olmoe;
extern const struct family family_mixtral;


/* model/config.c */

/* Reads dir/config.json; *f is its family. */
int config_load(const char *dir, struct config *c, const struct family **f,
                struct err *e);

/* The same of parsed JSON. */
int config_read(const json_t *o, struct config *c, const struct family **f,
                struct err *e);

/* The value of an expression of numbers, names of dims, +, * and ().  An
 * unknown name or a syntax error is our bug; -1: the value is too large. */
int config_eval(const struct config *c, const char *expr, uint64_t *out);

/* The inverse frequencies of c->rope / 2 pairs, and what multiplies their
 * cosines and sines. */
void config_freqs(const struct config *c, float *freqs, float *scale);


/* model/plan.c and model/weights.c */

struct weights {
    struct globals  globals;
    struct layer   *layers;     /* (n_layers) */
    void           *memory;     /* of the backend: everything above */
    size_t          n_bytes;
    struct {
        void   *memory;
        size_t  n_bytes;
    }              *apart;      /* but for weights that would not be tight */
    size_t          n_apart;
    size_t          n_active_bytes;     /* read for one token */
    uint64_t        n_products;         /* multiply-adds for one token */
    uint64_t        n_head_products;    /* and for a row of logits */
};

struct weights_source {
    const char     *dir;
    int64_t         random_seed;        /* >= 0: no files */
    enum dtype      dtype;
    const char     *quant;              /* its name */
    const char     *pack_dir;           /* of images, or NULL; see pack.h */
    void          (*progress)(void *ctx, uint64_t done, uint64_t all);
    void           *progress_ctx;
};

/* Opens the files, gives every weight its place, and says how much it is;
 * then fills them. */
struct weights_loader;
struct weights_loader *
weights_plan(struct weights *w, struct backend *b, const struct config *c,
             const struct family *f, const struct weights_source *src,
             struct err *e);
int weights_load(struct weights_loader *l, struct err *e);
void weights_loader_free(struct weights_loader *l);
size_t weights_bytes(const struct weights *w);
void weights_free(struct weights *w, struct backend *b);

#endif /* MOE_MODEL_FAMILY_H */
