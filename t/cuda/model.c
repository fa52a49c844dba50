/*
 * model.c - whole models on the CUDA backend (on a GPU, or emulated): logits
 * against transformers' (t/data/model) in float, and in bf16 against the CPU's
 * on the same weights.
 */
#include <jansson.h>
#include <stdbool.h>
#include <unistd.h>

#include "engine/model/model.h"
#include "pair.h"

#define MAX_TOK     2048
#define F32_MOST    2e-3        /* of the range of logits */
/* A row of logits in bf16, |ours - cpu's| / |cpu's|: of the rows in the
 * middle; rounding can make a token go to another expert, of tiny models with
 * random weights more often than of others. */
#define BF16_MOST   2e-2
#define FLIPS_MOST  0.4

static const char *const names[] = {
    "v2_lite", "v2_groups", "v3", "kimi", "fused_fp8", "odd",
    "qwen3", "qwen3_mixed", "olmoe", "mixtral"
};

struct golden {
    json_t     *json;
    uint32_t    tokens[MAX_TOK];
    int         n_tok;
};


static void
golden_open(struct golden *g, const char *name, int n_max)
{
    char path[256];

    snprintf(path, sizeof(path), "t/data/model/%s/golden.json", name);
    g->json = json_load_file(path, 0, NULL);
    assert_non_null(g->json);

    const json_t *tokens = json_object_get(g->json, "tokens");

    g->n_tok = (int) json_array_size(tokens);
    g->n_tok = g->n_tok < n_max ? g->n_tok : n_max;

    for (int i = 0; i < g->n_tok; i++) {
        g->tokens[i] = (uint32_t)
                       json_integer_value(json_array_get(tokens, (size_t) i));
    }
}


/* Tokens of a golden that are run; 70 go beyond a page. */
static int
n_tok_max(void)
{
    return is_small() ? 22 : is_emulated() ? 70 : MAX_TOK;
}


static struct model *
load(const char *name, const char *backend, const char *quant)
{
    char       path[256];
    struct err e = { "" };

    snprintf(path, sizeof(path), "t/data/model/%s", name);

    struct model_options o = {
        .dir = path, .backend = backend, .quant = quant, .n_threads = 2,
        .max_batch_tok = MAX_TOK, .max_batch_rows = MAX_TOK,
        .random_seed = -1, .max_seqs = 2
    };
    struct model *m = model_load(&o, &e);

    if (m == NULL) {
        fail_msg("%s: %s", name, e.text);
    }

    return m;
}


/* Logits of every token, (n_tok, n_vocab); in chunks, with another sequence
 * for company from the second chunk on. */
static float *
run(struct model *m, const struct golden *g, int chunk)
{
    static const uint32_t other[MAX_TOK];
    static uint32_t       pages[2][MAX_TOK / MODEL_PAGE_TOK];
    size_t                n_vocab = model_info(m)->n_vocab;
    float                *out = malloc((size_t) g->n_tok * n_vocab * 4);
    float                *logits;

    assert_non_null(out);

    for (uint32_t i = 0; i < MAX_TOK / MODEL_PAGE_TOK; i++) {
        pages[0][i] = i * 2 + 1;
        pages[1][i] = i * 2;
    }

    for (int pos = 0; pos < g->n_tok; pos += chunk) {
        int                  n = g->n_tok - pos < chunk ? g->n_tok - pos
                                                        : chunk;
        struct model_segment segs[2] = {
            { g->tokens + pos, pages[0], n, pos, n, 0 },
            { other, pages[1], 1, pos / chunk, 1, 0 }
        };

        model_forward(m, segs, pos == 0 ? 1 : 2, &logits);
        memcpy(out + (size_t) pos * n_vocab, logits, (size_t) n * n_vocab * 4);
    }

    return out;
}


static uint32_t
argmax(const float *row, size_t n)
{
    uint32_t best = 0;

    for (uint32_t i = 1; i < n; i++) {
        best = row[i] > row[best] ? i : best;
    }

    return best;
}


static void
test_f32(void **state)
{
    const char   *name = *state;
    struct golden g;

    golden_open(&g, name, n_tok_max());

    struct model *m = load(name, "cuda", "f32");
    size_t        n_vocab = model_info(m)->n_vocab;
    double        range = json_number_value(json_object_get(g.json, "range"));
    const json_t *at = json_object_get(g.json, "positions");
    const json_t *best = json_object_get(g.json, "argmax");

    for (int chunk = g.n_tok; chunk != 0; chunk = chunk > 3 ? 3 : 0) {
        float *got = run(m, &g, chunk);

        for (size_t i = 0; i < json_array_size(at); i++) {
            int           pos = (int) json_integer_value(json_array_get(at,
                                                                        i));
            const json_t *row = json_array_get(
                json_object_get(g.json, "logits"), i);

            for (size_t v = 0; pos < g.n_tok && v < n_vocab; v++) {
                double want = json_number_value(json_array_get(row, v));
                double x = (double) got[(size_t) pos * n_vocab + v];

                if (!(fabs(x - want) <= F32_MOST * range)) {
                    fail_msg("%s in chunks of %d: position %d, token %zu: "
                             "expected %g, got %g", name, chunk, pos, v, want,
                             x);
                }
            }
        }

        for (int i = 0; i < g.n_tok; i++) {
            assert_int_equal(argmax(got + (size_t) i * n_vocab, n_vocab),
                             json_integer_value(json_array_get(best,
                                                               (size_t) i)));
        }

        free(got);
    }

    model_free(m);
    json_decref(g.json);
}


/* |a - b| / |b| */
static double
apart(const float *a, const float *b, size_t n)
{
    double error = 0, all = 0;

    for (size_t i = 0; i < n; i++) {
        double d = (double) a[i] - (double) b[i];

        error += d * d;
        all += (double) b[i] * (double) b[i];
    }

    return sqrt(error / all);
}


static void
check_quant(const char *name, const char *quant)
{
    struct golden g;

    golden_open(&g, name, n_tok_max());

    struct model *cpu = load(name, "cpu", "bf16");
    struct model *m = load(name, "cuda", quant);
    size_t        n_vocab = model_info(m)->n_vocab;
    float        *want = run(cpu, &g, g.n_tok);

    for (int chunk = g.n_tok; chunk != 0; chunk = chunk > 3 ? 3 : 0) {
        float *got = run(m, &g, chunk);
        int    n_apart = 0;

        for (int t = 0; t < g.n_tok; t++) {
            n_apart += !(apart(got + (size_t) t * n_vocab,
                               want + (size_t) t * n_vocab, n_vocab)
                         <= BF16_MOST);
        }

        if (n_apart > FLIPS_MOST * g.n_tok) {
            fail_msg("%s, %s in chunks of %d: %d rows of %d are apart", name,
                     quant, chunk, n_apart, g.n_tok);
        }

        print_message("# %s, %s in chunks of %d: %d rows of %d apart\n", name,
                      quant, chunk, n_apart, g.n_tok);
        free(got);
    }

    free(want);
    model_free(cpu);
    model_free(m);
    json_decref(g.json);
}


static void
test_bf16(void **state)
{
    check_quant(*state, "bf16");
}


/* A checkpoint in fp8 stays as it is. */
static void
test_fp8(void **state)
{
    (void) state;
    check_quant("v3_fp8", "fp8");
}


/* Greedily n_new more tokens after n_prompt: where there are logits, the first
 * of the largest, else chosen where they are, and the next step given before
 * they are read. */
static void
say_greedily(struct model *m, uint32_t *tokens, int n_prompt, int n_new)
{
    static const uint32_t pages[] = { 3, 1, 2, 0 };
    struct model_segment  seg = { tokens, pages, n_prompt, 0, 1, 0 };
    struct sample         how = { .top_p = 1 };
    int                   ahead = model_samples(m);
    uint32_t              n_vocab = model_info(m)->n_vocab;

    model_launch(m, &seg, 1, ahead ? &how : NULL, n_vocab);

    for (int n = n_prompt; n < n_prompt + n_new; n++) {
        int is_last = n + 1 == n_prompt + n_new;

        seg = (struct model_segment) { tokens + n, pages, 1, n, 1,
                                       ahead ? 1 : 0 };

        if (ahead && !is_last) {
            model_launch(m, &seg, 1, &how, n_vocab);
        }

        struct model_result got = model_collect(m);

        tokens[n] = ahead ? got.tokens[0] : argmax(got.logits, n_vocab);

        if (!ahead && !is_last) {
            model_launch(m, &seg, 1, NULL, n_vocab);
        }
    }
}


/* The demo's model says what it says on the CPU. */
static void
test_demo(void **state)
{
    /* "What is 347 + 285?", as its template has it, and what it thinks. */
    static const uint32_t prompt[] = {
        0, 4092, 283, 270, 223, 21, 22, 25, 331, 223, 20, 26, 23, 33, 4093,
        4094, 201
    };
    uint32_t      want[128], got[128];
    int           n = BASE_COUNT(prompt), n_new = is_small() ? 5 : 100;
    struct model *cpu = load("../../../conf/demo/model", "cpu", "bf16");
    struct model *m = load("../../../conf/demo/model", "cuda", "bf16");

    (void) state;
    memcpy(want, prompt, sizeof(prompt));
    memcpy(got, prompt, sizeof(prompt));
    say_greedily(cpu, want, n, n_new);
    say_greedily(m, got, n, n_new);

    for (int i = n; i < n + n_new; i++) {
        assert_int_equal(got[i], want[i]);
    }

    model_free(cpu);
    model_free(m);
}


/* Sizes of more than one tile, so that every warp has something to do. */
static const struct larger {
    const char *name;           /* of whose config.json these are changed */
    struct {
        const char *key;
        int         value;
    } dims[16];
    /* At most, on 4 and on 132 multiprocessors, of the first layer, which may
     * be dense, and of another, with 1, 12, 48 and 100 tokens.  The aim is 12;
     * with more than 8 tokens not all are there yet. */
    unsigned    n_launches[2][2][4];
} larger[] = {
    { "v2_lite",
      { { "hidden_size", 288 }, { "kv_lora_rank", 176 },
        { "qk_rope_head_dim", 32 }, { "qk_nope_head_dim", 120 },
        { "v_head_dim", 72 }, { "num_attention_heads", 5 },
        { "moe_intermediate_size", 168 }, { "n_routed_experts", 12 },
        { "num_experts_per_tok", 4 }, { "n_shared_experts", 2 },
        { "num_hidden_layers", 2 }, { "head_dim", 32 },
        { "num_key_value_heads", 5 } },
      { { { 7, 9, 9, 12 }, { 8, 9, 9, 11 } },
        { { 7, 9, 9, 9 }, { 8, 9, 9, 9 } } } },
    { "v3",
      { { "hidden_size", 288 }, { "q_lora_rank", 160 },
        { "kv_lora_rank", 176 }, { "qk_rope_head_dim", 32 },
        { "qk_nope_head_dim", 120 }, { "v_head_dim", 72 },
        { "num_attention_heads", 5 }, { "num_key_value_heads", 5 },
        { "moe_intermediate_size", 168 }, { "num_hidden_layers", 2 },
        { "head_dim", 32 } },
      { { { 9, 11, 11, 13 }, { 10, 11, 11, 12 } },
        { { 9, 11, 11, 11 }, { 10, 11, 11, 11 } } } },
    { "qwen3",
      { { "hidden_size", 288 }, { "num_attention_heads", 6 },
        { "num_key_value_heads", 2 }, { "head_dim", 48 },
        { "moe_intermediate_size", 168 }, { "num_experts", 12 },
        { "num_experts_per_tok", 4 }, { "num_hidden_layers", 2 } },
      { { { 7, 8, 8, 12 }, { 7, 8, 8, 12 } },
        { { 7, 9, 9, 11 }, { 7, 9, 9, 11 } } } },
    /* Of these only launches are counted. */
    { "olmoe",
      { { "hidden_size", 288 }, { "num_attention_heads", 6 },
        { "num_key_value_heads", 3 }, { "intermediate_size", 168 },
        { "num_experts", 12 }, { "num_experts_per_tok", 4 } },
      { { { 7, 8, 8, 12 }, { 7, 8, 8, 12 } },
        { { 7, 9, 9, 11 }, { 7, 9, 9, 11 } } } },
    { "mixtral",
      { { "hidden_size", 288 }, { "num_attention_heads", 6 },
        { "num_key_value_heads", 2 }, { "head_dim", 48 },
        { "intermediate_size", 168 }, { "num_local_experts", 12 },
        { "num_experts_per_tok", 4 } },
      { { { 7, 8, 8, 12 }, { 7, 8, 8, 12 } },
        { { 7, 9, 9, 11 }, { 7, 9, 9, 11 } } } }
};

/* In the emulation: whether launches are only counted. */
extern bool emu_only_counts __attribute__((weak));

/* Kernels before the layers and behind them: embed, angles; gather, norm, head.
 */
#define LAUNCHES_AROUND 5


/* The configuration in a directory of its own, whose name dir becomes. */
static void
write_larger(const struct larger *l, char *dir, int n_layers)
{
    char    path[64];
    json_t *config;

    snprintf(path, sizeof(path), "t/data/model/%s/config.json", l->name);
    config = json_load_file(path, 0, NULL);
    assert_non_null(config);
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/config.json", dir);

    for (size_t i = 0; i < BASE_COUNT(l->dims) && l->dims[i].key != NULL; i++)
    {
        json_object_set_new(config, l->dims[i].key,
                            json_integer(l->dims[i].value));
    }

    json_object_set_new(config, "num_hidden_layers", json_integer(n_layers));
    assert_int_equal(json_dump_file(config, path, 0), 0);
    json_decref(config);
}


static void
remove_larger(const char *dir)
{
    char path[64];

    snprintf(path, sizeof(path), "%s/config.json", dir);
    unlink(path);
    rmdir(dir);
}


static struct model *
load_larger(const char *dir, const char *backend)
{
    struct err           e = { "" };
    struct model_options o = {
        .dir = dir, .backend = backend, .n_threads = 2, .max_batch_tok = 400,
        .max_batch_rows = 400, .random_seed = 7, .max_seqs = 2
    };
    struct model        *m = model_load(&o, &e);

    if (m == NULL) {
        fail_msg("%s", e.text);
    }

    return m;
}


/* Random weights in larger shapes: a prompt, whose keys are not absorbed where
 * there is time for a long one, then tokens one by one, which are few enough
 * for the kernels that do several calls in one; then again, when every step is
 * a replay. */
static void
test_larger(void **state)
{
    const struct larger *l = *state;
    char          dir[] = "/tmp/moe-cuda-XXXXXX";
    struct golden g = { NULL, { 0 }, is_small() ? 40 : 300 };

    write_larger(l, dir, 2);

    for (int i = 0; i < g.n_tok; i++) {
        g.tokens[i] = draw(128);
    }

    struct model *cpu = load_larger(dir, "cpu");
    struct model *m = load_larger(dir, "cuda");
    size_t        n_vocab = model_info(m)->n_vocab;
    float        *want = run(cpu, &g, g.n_tok);

    for (int i = 0; i < 4; i++) {
        const int chunks[] = { g.n_tok, 1, 5, 1 };
        float    *got = run(m, &g, chunks[i]);
        int       n_apart = 0;

        for (int t = 0; t < g.n_tok; t++) {
            n_apart += !(apart(got + (size_t) t * n_vocab,
                               want + (size_t) t * n_vocab, n_vocab)
                         <= BF16_MOST);
        }

        if (n_apart > g.n_tok / 6) {
            fail_msg("in chunks of %d: %d rows are apart, the first by %g",
                     chunks[i], n_apart, apart(got, want, n_vocab));
        }

        free(got);
    }

    struct model *same = load_larger(dir, "cuda:deterministic");
    float        *whole = run(same, &g, g.n_tok);

    for (int chunk = 1; chunk < 12; chunk += 4) {
        float *got = run(same, &g, chunk);

        assert_memory_equal(got, whole, (size_t) g.n_tok * n_vocab * 4);
        free(got);
    }

    free(whole);
    model_free(same);

    free(want);
    model_free(cpu);
    model_free(m);
    remove_larger(dir);
}


/* Launches of a step of n tokens from position pos on. */
static unsigned
step_launches(struct model *m, int n, int pos)
{
    static const uint32_t tokens[256];
    uint32_t              pages[MAX_TOK / MODEL_PAGE_TOK];
    struct model_segment  seg = { tokens, pages, n, pos, 1, 0 };
    unsigned long         was = count_launches();
    float                *logits;

    for (uint32_t i = 0; i < BASE_COUNT(pages); i++) {
        pages[i] = i;
    }

    model_forward(m, &seg, 1, &logits);

    return (unsigned) (count_launches() - was);
}


/* Launches of the first layer, and of another. */
static void
count_layers(const struct larger *l, const int (*steps)[2], size_t n_steps,
             unsigned (*n)[2])
{
    for (int n_layers = 1; n_layers <= 2; n_layers++) {
        char dir[] = "/tmp/moe-cuda-XXXXXX";

        write_larger(l, dir, n_layers);

        struct model *m = load_larger(dir, "cuda");

        for (size_t i = 0; i < n_steps; i++) {
            unsigned all = step_launches(m, steps[i][0], steps[i][1]);

            n[i][n_layers - 1] = all - LAUNCHES_AROUND
                                 - (n_layers == 2 ? n[i][0] : 0);
        }

        model_free(m);
        remove_larger(dir);
    }
}


/* A layer's launches, on few multiprocessors, for which a product is soon
 * large, and on as many as an H200 has, on which attention is split; kernels
 * are not run. */
static void
test_launches(void **state)
{
    static const int steps[][2] = {
        { 1, 700 }, { 12, 700 }, { 48, 700 }, { 100, 700 }
    };
    static const int devices[] = { 4, 132 };
    const struct larger *l = *state;

    if (!is_emulated()) {
        skip();
    }

    emu_only_counts = true;

    for (size_t d = 0; d < BASE_COUNT(devices); d++) {
        unsigned n[BASE_COUNT(steps)][2];

        emu_n_sm = devices[d];
        count_layers(l, steps, BASE_COUNT(steps), n);

        for (size_t i = 0; i < 2 * BASE_COUNT(steps); i++) {
            unsigned most = l->n_launches[d][i % 2][i / 2];
            unsigned got = n[i / 2][i % 2];

            if (got > most) {
                fail_msg("%d multiprocessors, %d tokens, layer %zu: %u "
                         "launches, allowed %u", devices[d], steps[i / 2][0],
                         i % 2, got, most);
            }
        }
    }

    emu_only_counts = false;
    emu_n_sm = 4;
}


int
main(void)
{
    struct CMUnitTest tests[2 * BASE_COUNT(names) + 10] = {
        { "larger, latent", test_larger, NULL, NULL,
          (void *) (uintptr_t) &larger[0] },
        { "larger, latent, and of queries", test_larger, NULL, NULL,
          (void *) (uintptr_t) &larger[1] },
        { "larger, grouped", test_larger, NULL, NULL,
          (void *) (uintptr_t) &larger[2] },
        { "launches, latent", test_launches, NULL, NULL,
          (void *) (uintptr_t) &larger[0] },
        { "launches, latent, and of queries", test_launches, NULL, NULL,
          (void *) (uintptr_t) &larger[1] },
        { "launches, grouped", test_launches, NULL, NULL,
          (void *) (uintptr_t) &larger[2] },
        { "launches, grouped, one norm", test_launches, NULL, NULL,
          (void *) (uintptr_t) &larger[3] },
        { "launches, grouped, no norm", test_launches, NULL, NULL,
          (void *) (uintptr_t) &larger[4] },
        cmocka_unit_test(test_fp8), cmocka_unit_test(test_demo)
    };
    char              titles[2 * BASE_COUNT(names)][64];

    for (size_t i = 0; i < 2 * BASE_COUNT(names); i++) {
        const char *name = names[i / 2];

        snprintf(titles[i], sizeof(titles[i]), "%s_%s", name,
                 i % 2 ? "bf16" : "f32");
        tests[10 + i] = (struct CMUnitTest) {
            titles[i], i % 2 ? test_bf16 : test_f32, NULL, NULL,
            (void *) (uintptr_t) name
        };
    }

    return pair_run(tests, BASE_COUNT(tests));
}
