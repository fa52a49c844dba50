/*
 * model_logits.c - tiny models against transformers (t/data/model, made by
 * t/tools/make_model_goldens.py), and against ourselves: the bits of a row do
 * not depend on chunks, company or threads (D6).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "engine/model/model.h"

#define TOLERANCE   2e-3        /* of the reference's range */
#define MAX_TOK     2048

static const char *const names[] = {
    "v2_lite", "v2_groups", "v3", "moonlight", "kimi", "openseek", "v3_fp8",
    "v31_ue8m0", "fused_fp8", "f16", "f32_halves", "mtp", "ties", "odd",
    "qwen3", "qwen3_mixed", "olmoe", "mixtral"
};

struct golden {
    json_t     *json;
    const char *name;
    uint32_t    tokens[MAX_TOK];
    int         n_tok;
    double      range;
};

/* Logits of every token of a sequence, (n_tok, n_vocab). */
struct rows {
    float      *data;
    size_t      n_vocab;
};


static void
golden_open(struct golden *g, const char *name)
{
    char path[256];

    snprintf(path, sizeof(path), "t/data/model/%s/golden.json", name);
    g->name = name;
    g->json = json_load_file(path, 0, NULL);
    assert_non_null(g->json);

    const json_t *tokens = json_object_get(g->json, "tokens");

    g->n_tok = (int) json_array_size(tokens);
    g->range = json_number_value(json_object_get(g->json, "range"));
    assert_true(g->n_tok > 0 && g->n_tok <= MAX_TOK);

    for (int i = 0; i < g->n_tok; i++) {
        g->tokens[i] = (uint32_t)
                       json_integer_value(json_array_get(tokens, (size_t) i));
    }
}


static struct model *
load(const char *name, const char *backend, const char *quant, int n_threads)
{
    char       path[256];
    struct err e = { "" };

    snprintf(path, sizeof(path), "t/data/model/%s", name);

    struct model_options o = {
        .dir = path, .backend = backend, .quant = quant,
        .n_threads = n_threads, .max_batch_tok = MAX_TOK,
        .max_batch_rows = MAX_TOK, .random_seed = -1, .max_seqs = 2
    };
    struct model *m = model_load(&o, &e);

    if (m == NULL) {
        fail_msg("%s: %s", name, e.text);
    }

    return m;
}


/* Page tables of two sequences, shuffled into one another. */
static const uint32_t *
pages(int seq)
{
    static uint32_t tables[2][MAX_TOK / MODEL_PAGE_TOK];

    for (uint32_t i = 0; i < MAX_TOK / MODEL_PAGE_TOK; i++) {
        tables[seq][i] = (i * 2 + (uint32_t) seq) ^ 1;
    }

    return tables[seq];
}


static struct rows
rows_make(const struct model *m, int n_tok)
{
    struct rows r = { NULL, model_info(m)->n_vocab };

    r.data = calloc((size_t) n_tok * r.n_vocab, sizeof(float));
    assert_non_null(r.data);

    return r;
}


/* Tokens [pos, pos + n) of the golden, perhaps with another sequence: reversed
 * tokens, placed before or behind. */
static void
run(struct model *m, const struct golden *g, int pos, int n, struct rows *out,
    int company)
{
    static uint32_t      reversed[MAX_TOK];
    struct model_segment segs[2];
    float               *logits;
    int                  mine = company == 1, n_segs = 1 + (company != 0);

    segs[mine] = (struct model_segment) {
        g->tokens + pos, pages(0), n, pos, n, 0
    };

    if (company != 0) {
        for (int i = 0; i < n; i++) {
            reversed[i] = g->tokens[g->n_tok - 1 - pos - i];
        }

        segs[!mine] = (struct model_segment) {
            reversed, pages(1), n, pos, 1, 0
        };
    }

    model_forward(m, segs, n_segs, &logits);
    memcpy(out->data + (size_t) pos * out->n_vocab,
           logits + (mine ? out->n_vocab : 0),
           (size_t) n * out->n_vocab * sizeof(float));
}


static void
run_chunks(struct model *m, const struct golden *g, int n_all, int chunk,
           struct rows *out, int company)
{
    for (int pos = 0; pos < n_all; pos += chunk) {
        run(m, g, pos, n_all - pos < chunk ? n_all - pos : chunk, out,
            company);
    }
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
compare_golden(const struct golden *g, const struct rows *r, int n_tok,
               const char *what)
{
    const json_t *at = json_object_get(g->json, "positions");
    const json_t *logits = json_object_get(g->json, "logits");
    const json_t *best = json_object_get(g->json, "argmax");
    double        worst = 0;

    for (size_t i = 0; i < json_array_size(at); i++) {
        int           pos = (int) json_integer_value(json_array_get(at, i));
        const json_t *want = json_array_get(logits, i);

        if (pos >= n_tok) {
            continue;
        }

        assert_int_equal(json_array_size(want), r->n_vocab);

        for (size_t v = 0; v < r->n_vocab; v++) {
            double w = json_number_value(json_array_get(want, v));
            double got = (double) r->data[(size_t) pos * r->n_vocab + v];
            double d = (got > w ? got - w : w - got) / g->range;

            if (!(d <= TOLERANCE)) {
                fail_msg("%s, %s: position %d, token %zu: expected %g, got "
                         "%g, apart %g of the range", g->name, what, pos, v,
                         w, got, d);
            }

            worst = d > worst ? d : worst;
        }
    }

    for (int i = 0; i < n_tok; i++) {
        uint32_t got = argmax(r->data + (size_t) i * r->n_vocab, r->n_vocab);
        uint32_t want = (uint32_t)
                        json_integer_value(json_array_get(best, (size_t) i));

        if (got != want) {
            fail_msg("%s, %s: argmax at %d: expected %u, got %u", g->name,
                     what, i, want, got);
        }
    }

    print_message("# %s, %s: %d tokens, at most %.1e of the range apart\n",
                  g->name, what, n_tok, worst);
}


static void
compare_bits(const struct golden *g, const struct rows *a,
             const struct rows *b, int n_tok, const char *what)
{
    for (size_t i = 0; i < (size_t) n_tok * a->n_vocab; i++) {
        if (memcmp(&a->data[i], &b->data[i], sizeof(float)) != 0) {
            fail_msg("%s, %s: position %zu, token %zu: %.9g and %.9g",
                     g->name, what, i / a->n_vocab, i % a->n_vocab,
                     (double) a->data[i], (double) b->data[i]);
        }
    }
}


/* One model, one backend: against transformers, then every way of cutting. */
static void
check(const char *name, const char *backend, int n_max, int all_cuts)
{
    struct golden g;

    golden_open(&g, name);

    struct model *m = load(name, backend, "f32", 1);
    int           n = g.n_tok < n_max ? g.n_tok : n_max;
    struct rows   whole = rows_make(m, n), other = rows_make(m, n);

    run(m, &g, 0, n, &whole, 0);
    compare_golden(&g, &whole, n, backend);

    if (all_cuts) {
        static const int chunks[] = { 1, 7, 64, 100 };

        for (size_t i = 0; i < sizeof(chunks) / sizeof(chunks[0]); i++) {
            int few = chunks[i] == 1 && n > 200 ? 200 : n;

            run_chunks(m, &g, few, chunks[i], &other, 0);
            compare_bits(&g, &whole, &other, few, "in chunks");
        }

        run_chunks(m, &g, n, 33, &other, 1);
        compare_bits(&g, &whole, &other, n, "behind another");
        run_chunks(m, &g, n, 5, &other, 2);
        compare_bits(&g, &whole, &other, n, "before another");

        for (int t = 2; t <= 3; t++) {
            model_free(m);
            m = load(name, backend, "f32", t);
            run_chunks(m, &g, n, 50, &other, 0);
            compare_bits(&g, &whole, &other, n, "on several threads");
        }
    }

    free(whole.data);
    free(other.data);
    model_free(m);
    json_decref(g.json);
}


static void
test_fast(void **state)
{
    check(*state, "cpu", MAX_TOK, 1);
}


static void
test_reference(void **state)
{
    check(*state, "cpu:ref", 64, 0);
}


static void
test_avx2(void **state)
{
    struct err      e;
    struct model_options o = { .dir = "t/data/model/v3",
                               .backend = "cpu:avx2", .random_seed = -1 };
    struct model   *m = model_load(&o, &e);

    if (m == NULL) {
        print_message("# SKIP %s\n", e.text);
        return;
    }

    model_free(m);
    check(*state, "cpu:avx2", 300, 1);
}


/* BF16 weights are what most files hold: only keys and activations' rounding
 * of keys differ.  The same invariance. */
static void
test_bf16(void **state)
{
    struct golden g;

    golden_open(&g, *state);

    struct model *m = load(*state, "cpu", "bf16", 2);
    int           n = g.n_tok < 200 ? g.n_tok : 200;
    struct rows   whole = rows_make(m, n), other = rows_make(m, n);
    int           same = 0;

    run(m, &g, 0, n, &whole, 0);
    run_chunks(m, &g, n, 1, &other, 0);
    compare_bits(&g, &whole, &other, n, "bf16, one by one");
    run_chunks(m, &g, n, 33, &other, 1);
    compare_bits(&g, &whole, &other, n, "bf16, behind another");

    for (int i = 0; i < n; i++) {
        const json_t *best = json_object_get(g.json, "argmax");

        same += argmax(whole.data + (size_t) i * whole.n_vocab, whole.n_vocab)
                == (uint32_t) json_integer_value(json_array_get(best,
                                                                (size_t) i));
    }

    /* Rounding may turn a near tie; not many. */
    if (same < n * 9 / 10) {
        fail_msg("%s: %d of %d argmaxes are the reference's", g.name, same, n);
    }

    free(whole.data);
    free(other.data);
    model_free(m);
    json_decref(g.json);
}


int
main(void)
{
    struct CMUnitTest tests[4 * sizeof(names) / sizeof(names[0])];
    char              titles[4 * sizeof(names) / sizeof(names[0])][64];
    size_t            n = 0;
    static const struct {
        const char      *what;
        CMUnitTestFunction fn;
    } kinds[] = {
        { "fast", test_fast }, { "reference", test_reference },
        { "avx2", test_avx2 }, { "bf16", test_bf16 }
    };

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++, n++) {
            snprintf(titles[n], sizeof(titles[n]), "%s_%s", names[i],
                     kinds[k].what);
            tests[n] = (struct CMUnitTest) {
                titles[n], kinds[k].fn, NULL, NULL, (void *) names[i]
            };
        }
    }

    cmocka_set_message_output(CM_OUTPUT_TAP);

    return cmocka_run_group_tests(tests, NULL, NULL);
}
