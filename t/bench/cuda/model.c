/*
 * model.c - whole models on a GPU, with random weights in published shapes:
 * decode by batch and context, prefill, and the share of what the bytes that a
 * step has to read would take at the rate of a copy (COPY_GB_S; kernels prints
 * it).
 *
 *   model [SHAPE ..]     directories of t/data/configs; SECONDS bounds a row
 *
 * Keys are those of true prompts of 1,024 tokens, in a pool of pages that the
 * sequences share out in different orders: longer contexts go through more of
 * it.  Prints "bench NAME VALUE UNIT" lines, and a table with |.
 */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/backend.h"
#include "engine/model/model.h"

#define SEQS_MAX    256
#define PROMPT_MAX  8192
#define FILL_SEQS   128         /* prompts that fill the pool: 150 MB a layer */
#define FILL_TOK    1024
#define PAGES_MAX   (32768 / MODEL_PAGE_TOK + 16)

static uint32_t tables[SEQS_MAX][PAGES_MAX];
static uint32_t tokens[PROMPT_MAX];
static double   seconds = 1;
static double   copy_rate;      /* bytes / s; 0: not known */

struct shape {
    const char *name;
    json_t     *config;
    double      active_bytes;   /* of one token, all weights */
    double      expert_bytes;   /* of one expert in one layer */
    double      n_moe_layers;
    double      n_experts;
    double      n_active;
    double      kv_bytes;       /* of one token, all layers */
};


static double
number(const struct shape *s, const char *key)
{
    return json_number_value(json_object_get(s->config, key));
}


/* What a step of n sequences has to read: experts as uniform routing touches
 * them, and their keys. */
static double
step_bytes(const struct shape *s, int n, int n_ctx)
{
    double touched = s->n_experts
                     * (1 - pow(1 - s->n_active / s->n_experts, n));

    return s->active_bytes
           + (touched - s->n_active) * s->expert_bytes * s->n_moe_layers
           + (double) n * n_ctx * s->kv_bytes;
}


static double
now(void)
{
    return (double) clock_us() / 1e6;
}


static void
line(const struct shape *s, const char *what, double tok_s, double share)
{
    printf("bench cuda.%s.%s %.5g tok/s\n", s->name, what, tok_s);

    if (copy_rate > 0 && share > 0) {
        printf("| %-22s %-20s %10.1f tok/s %6.1f %% of its roofline\n",
               s->name, what, tok_s, share * 100);
    } else {
        printf("| %-22s %-20s %10.1f tok/s\n", s->name, what, tok_s);
    }

    fflush(stdout);
}


/* As a server's streams: tokens are chosen on the device, by top_p, and a step
 * is given to it before those of the last are read. */
static void
decode(struct model *m, const struct shape *s, int n, int n_ctx)
{
    static struct model_segment segs[SEQS_MAX];
    static struct sample        how[SEQS_MAX];
    struct model_result         got = { NULL, NULL };
    uint32_t                    n_vocab = model_info(m)->n_vocab;
    char                        what[64];
    double                      start = 0, t = 0;
    int                         steps = -3;     /* to warm up */

    for (int i = 0; i < n; i++) {
        segs[i] = (struct model_segment) {
            &tokens[i * 31], tables[i], 1, n_ctx - 1, 1, 0
        };
        how[i] = (struct sample) {
            .scale = 1.44269504f, .least = -INFINITY, .top_p = 0.9f,
            .seed = (uint64_t) i
        };
    }

    model_launch(m, segs, n, how, n_vocab);

    for (; steps < 8 || t < seconds; steps++) {
        if (steps == 0) {
            start = now();
        }

        for (int i = 0; i < n; i++) {
            segs[i].chosen = (uint32_t) i + 1;
        }

        model_launch(m, segs, n, how, n_vocab);
        got = model_collect(m);
        t = steps >= 0 ? now() - start : 0;
    }

    double per_step = t / steps;

    got = model_collect(m);

    if (got.tokens[0] == BACKEND_NO_TOKEN) {
        printf("| NaN in the logits\n");
    }

    snprintf(what, sizeof(what), "decode_%d_ctx_%d", n, n_ctx);
    line(s, what, n / per_step,
         copy_rate > 0 ? step_bytes(s, n, n_ctx) / copy_rate / per_step : 0);
}


static void
prefill(struct model *m, const struct shape *s, int n_tok)
{
    struct model_segment seg = { tokens, tables[0], n_tok, 0, 1, 0 };
    float               *logits;
    char                 what[64];
    double               best = 1e9;

    for (int i = 0; i < 4; i++) {
        double start = now();

        model_forward(m, &seg, 1, &logits);
        best = i != 0 && now() - start < best ? now() - start : best;
    }

    snprintf(what, sizeof(what), "prefill_%d", n_tok);
    line(s, what, n_tok / best, 0);
}


static struct model *
load(const char *dir)
{
    struct err           e = { "" };
    struct model_options o = {
        .dir = dir, .backend = "cuda", .quant = getenv("QUANT"),
        .max_batch_tok = PROMPT_MAX, .max_batch_rows = SEQS_MAX,
        .random_seed = 1, .kv_bytes = (uint64_t) 8 << 30,
        .max_seqs = SEQS_MAX
    };
    struct model        *m = model_load(&o, &e);

    if (m == NULL) {
        printf("SKIP %s: %s\n", dir, e.text);
    }

    return m;
}


static void
bench_shape(const char *name)
{
    static const int cases[][2] = {
        { 1, 1024 }, { 1, 8192 }, { 1, 32768 }, { 8, 1024 }, { 8, 8192 },
        { 8, 32768 }, { 64, 1024 }, { 64, 8192 }, { 64, 32768 },
        { 256, 1024 }, { 256, 8192 }
    };
    const char      *quant = getenv("QUANT") != NULL ? getenv("QUANT")
                                                     : "bf16";
    char             dir[256], path[300], label[80];
    struct shape     s = { .name = label };
    float           *logits;

    snprintf(label, sizeof(label), "%.60s.%.8s", name, quant);
    snprintf(dir, sizeof(dir), "t/data/configs/%s", name);
    snprintf(path, sizeof(path), "%s/config.json", dir);
    s.config = json_load_file(path, 0, NULL);

    double        start = now();
    struct model *m = s.config != NULL ? load(dir) : NULL;

    if (m == NULL) {
        return;
    }

    const struct model_info *info = model_info(m);
    uint32_t                 n_pool = FILL_SEQS * FILL_TOK / MODEL_PAGE_TOK;

    n_pool = n_pool < info->n_pages ? n_pool : info->n_pages;
    s.active_bytes = (double) info->active_weight_bytes;
    s.n_experts = number(&s, "n_routed_experts")
                  + number(&s, "num_experts");      /* one of them */
    s.n_active = number(&s, "num_experts_per_tok");
    s.n_moe_layers = info->n_layers - number(&s, "first_k_dense_replace");
    s.expert_bytes = (strcmp(quant, "fp8") == 0 ? 3 * 2112 / 2048.0 : 6)
                     * number(&s, "hidden_size")
                     * number(&s, "moe_intermediate_size");
    s.kv_bytes = (double) info->page_bytes / MODEL_PAGE_TOK;
    printf("| %s: %s; loaded in %.1f s\n", name, info->plan, now() - start);

    for (uint32_t t = 0; t < PROMPT_MAX; t++) {
        tokens[t] = t * 2654435761u % info->n_vocab;
    }

    for (uint32_t i = 0; i < SEQS_MAX; i++) {
        for (uint32_t p = 0; p < PAGES_MAX; p++) {
            tables[i][p] = (i * (FILL_TOK / MODEL_PAGE_TOK) + p) % n_pool;
        }
    }

    for (int i = 0; i < FILL_SEQS; i++) {
        struct model_segment seg = {
            tokens + i * 53, tables[i], FILL_TOK, 0, 1, 0
        };

        model_forward(m, &seg, 1, &logits);
    }

    for (size_t i = 0; i < BASE_COUNT(cases); i++) {
        if ((uint32_t) cases[i][1] <= info->n_ctx_tok) {
            decode(m, &s, cases[i][0], cases[i][1]);
        }
    }

    prefill(m, &s, 2048);
    prefill(m, &s, 8192);
    model_free(m);
    json_decref(s.config);
}


int
main(int argc, char **argv)
{
    static const char *const shapes[] = {
        "deepseek-v2-lite", "moonlight", "qwen3-30b-a3b"
    };
    const char *rate = getenv("COPY_GB_S"), *s = getenv("SECONDS");

    copy_rate = rate != NULL ? strtod(rate, NULL) * 1e9 : 0;
    seconds = s != NULL ? strtod(s, NULL) : seconds;

    for (int i = 1; i < argc; i++) {
        bench_shape(argv[i]);
    }

    for (size_t i = 0; argc == 1 && i < BASE_COUNT(shapes); i++) {
        bench_shape(shapes[i]);
    }

    return 0;
}
