/*
 * model.h - a loaded model: a directory of Hugging Face files becomes weights
 * in a backend, and one call runs it.
 *
 * The mental model.  A model is read-only after loading.  Everything that
 * changes is the KV store (kv.h), which the caller owns and passes by page
 * numbers.  One forward call takes a batch of segments, each 1..n new tokens of
 * one sequence at its position over its page table: decode, chunked prefill
 * and the checking of drafted tokens are the same call.  A caller never sees a
 * tensor, a dtype or a device; it gets rows of FP32 logits.
 *
 * D6: the logits of a segment do not depend on the other segments, on how a
 * prompt was cut into calls, or on the number of threads: same bits.
 *
 * Must not know text: tokens are numbers here.
 */
#ifndef MOE_MODEL_H
#define MOE_MODEL_H

#include "base.h"

#define MODEL_EOS_MAX   8
#define MODEL_PAGE_TOK  64      /* tokens in a page of KV */

struct model;

struct model_options {
    const char *dir;
    const char *backend;        /* "cpu"; NULL = that */
    const char *quant;          /* bf16 (NULL), f32, int8, int4 */
    const char *pack_dir;       /* where packed weights are kept; NULL */
    int         n_threads;      /* 0 = one per core */
    int         pin;            /* they stay there, as cpu/place.h has it */
    int         max_batch_tok;  /* tokens of one forward call, in all */
    int         max_batch_rows; /* rows of logits of one forward call */
    int64_t     random_seed;    /* >= 0: random weights, config.json alone */
    uint64_t    kv_bytes;       /* 0 = room for max_seqs of 4,096 tokens */
    int         max_seqs;       /* sequences the KV plan should hold */

    /* Called now and then while loading, from the loading thread; or NULL. */
    void      (*progress)(void *ctx, uint64_t done_bytes, uint64_t all_bytes);
    void       *progress_ctx;
};

/* What the rest of the engine may know of a model. */
struct model_info {
    char        family[32];     /* "deepseek_v3" */
    uint32_t    n_vocab;        /* rows of logits; >= the tokenizer's */
    uint32_t    n_ctx_tok;      /* longest sequence */
    uint32_t    n_layers;
    uint32_t    n_pages;        /* KV pages planned */
    uint64_t    page_bytes;
    uint64_t    weight_bytes;
    uint64_t    active_weight_bytes;    /* read for one token */
    uint64_t    n_products;     /* multiply-adds with weights for one token */
    uint64_t    n_head_products;    /* and for one row of logits */
    uint32_t    eos[MODEL_EOS_MAX];     /* config.json and generation_config */
    uint32_t    n_eos;
    int64_t     bos;            /* -1: none */
    int64_t     created;        /* mtime of config.json, seconds */

    /* generation_config.json; a negative number: not given there. */
    double      temperature;    /* do_sample false gives 0 */
    double      top_p;
    double      min_p;
    double      repetition;
    int         top_k;

    int         on_cpu;         /* the backend runs there */
    char        plan[256];      /* one line for the log: memory, kernels */
};

/* NULL: e says file, tensor or key, expected and got. */
struct model *model_load(const struct model_options *o, struct err *e);
void model_free(struct model *m);
const struct model_info *model_info(const struct model *m);


/* n_tok new tokens of one sequence; they attend to positions 0 .. of it. */
struct model_segment {
    const uint32_t *tokens;     /* (n_tok) */
    const uint32_t *pages;      /* page numbers covering pos + n_tok tokens */
    int             n_tok;      /* >= 1 */
    int             pos;        /* tokens already in the pages */
    int             n_rows;     /* logits wanted: of the last n_rows tokens */
    uint32_t        chosen;     /* 0; or n_tok is 1, and instead of tokens it
                                   is what row chosen - 1 of the launch before
                                   has brought, which nobody has read */
};

struct sample;

/* What a batch has brought, by row: one of the two, the other is NULL.  Until
 * the next launch but one. */
struct model_result {
    float          *logits;     /* (sum of n_rows, n_vocab) FP32, in order */
    const uint32_t *tokens;     /* (sum of n_rows) BACKEND_NO_TOKEN: its
                                   logits are not finite */
};

/*
 * Runs the batch and appends its keys to the pages.  The sums of n_tok and
 * n_rows are within the options' limits, page numbers below n_pages and
 * pos + n_tok within n_ctx_tok: else it is our bug (assert).
 *
 * With how, and only where model_samples(): a token of each row, among its
 * first n_vocab, is chosen as how[r] says where the logits are.  Then the call
 * does not wait, and one more launch may follow before it is collected: with
 * the tokens that it has chosen, and in the pages that it fills.
 */
void model_launch(struct model *m, const struct model_segment *segs,
                  int n_segs, const struct sample *how, uint32_t n_vocab);
/* Waits for the first launch that is not collected. */
struct model_result model_collect(struct model *m);

int model_samples(const struct model *m);

/* Both at once, for logits: borrowed until the next call. */
void model_forward(struct model *m, const struct model_segment *segs,
                   int n_segs, float **logits);

/* Makes a page the copy of another, in all layers. */
void model_copy_page(struct model *m, uint32_t to, uint32_t from);

/* Between two forward calls its threads can do something else: fn(ctx, i,
 * thread) for i = 0 .. n - 1, in no order, with thread < model_threads(). */
int model_threads(const struct model *m);
void model_each(struct model *m, uint32_t n,
                void (*fn)(void *ctx, uint32_t i, int thread), void *ctx);

#endif /* MOE_MODEL_H */
