/*
 * model_quant.c - what weights of 8 and 4 bits cost the demo model, on sums
 * that it has not been trained on and on small talk (t/data/quality.json):
 * KL divergence and agreement of the largest logit with BF16 weights, and the
 * share of sums whose whole working it would write without a slip.  What 4 bits
 * read for a token.  And D6: the same bits in chunks, and on any number of
 * threads.
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
#include <math.h>

#include "engine/model/model.h"

#define MAX_TOK     512
#define PAGES       (MAX_TOK / MODEL_PAGE_TOK)

static const uint32_t page_table[PAGES] = { 5, 2, 7, 0, 3, 6, 1, 4 };

struct text {
    uint32_t    tokens[MAX_TOK];
    int         n_tok;
    int         from;           /* the first that the model writes */
};

struct score {
    double      kl;
    double      same;           /* largest logits */
    double      n;              /* tokens */
    double      right;          /* texts without a slip */
    double      n_texts;
};


static struct model *
load(const char *quant, int n_threads)
{
    struct err           e = { "" };
    struct model_options o = {
        .dir = "conf/demo/model", .quant = quant, .n_threads = n_threads,
        .max_batch_tok = MAX_TOK, .max_batch_rows = MAX_TOK,
        .random_seed = -1, .max_seqs = 1
    };
    struct model        *m = model_load(&o, &e);

    if (m == NULL) {
        fail_msg("%s", e.text);
    }

    return m;
}


static void
text_read(struct text *t, const json_t *o)
{
    const json_t *tokens = json_object_get(o, "tokens");

    t->n_tok = (int) json_array_size(tokens);
    t->from = (int) json_integer_value(json_object_get(o, "from"));
    assert_true(t->n_tok <= MAX_TOK && t->from > 0 && t->from < t->n_tok);

    for (int i = 0; i < t->n_tok; i++) {
        t->tokens[i] = (uint32_t)
                       json_integer_value(json_array_get(tokens, (size_t) i));
    }
}


/* Logits of every token, (n_tok, n_vocab), in chunks. */
static void
run(struct model *m, const struct text *t, int chunk, float *out)
{
    size_t n_vocab = model_info(m)->n_vocab;

    for (int pos = 0; pos < t->n_tok; pos += chunk) {
        int                  n = t->n_tok - pos < chunk ? t->n_tok - pos
                                                        : chunk;
        struct model_segment seg = {
            t->tokens + pos, page_table, n, pos, n, 0
        };
        float               *logits;

        model_forward(m, &seg, 1, &logits);
        memcpy(out + (size_t) pos * n_vocab, logits,
               (size_t) n * n_vocab * sizeof(float));
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


/* The log of the sum of e^x. */
static double
log_sum(const float *row, size_t n)
{
    double most = (double) row[argmax(row, n)], sum = 0;

    for (size_t i = 0; i < n; i++) {
        sum += exp((double) row[i] - most);
    }

    return most + log(sum);
}


/* KL(p || q) of the distributions that two rows of logits stand for. */
static double
divergence(const float *p, const float *q, size_t n)
{
    double log_p = log_sum(p, n), log_q = log_sum(q, n), sum = 0;

    for (size_t i = 0; i < n; i++) {
        double lp = (double) p[i] - log_p, lq = (double) q[i] - log_q;

        sum += exp(lp) * (lp - lq);
    }

    return sum;
}


static void
score_add(struct score *s, const struct text *t, const float *want,
          const float *got, size_t n_vocab)
{
    int right = 1;

    for (int i = t->from - 1; i + 1 < t->n_tok; i++) {
        const float *p = want + (size_t) i * n_vocab;
        const float *q = got + (size_t) i * n_vocab;
        uint32_t     best = argmax(q, n_vocab);

        s->kl += divergence(p, q, n_vocab);
        s->same += argmax(p, n_vocab) == best;
        s->n++;
        right &= best == t->tokens[i + 1];
    }

    s->right += right;
    s->n_texts++;
}


static struct score
measure(const char *quant, const char *kind)
{
    json_t       *all = json_load_file("t/data/quality.json", 0, NULL);
    const json_t *texts = json_object_get(all, kind);
    struct model *bf16 = load("bf16", 1), *m = load(quant, 1);
    size_t        n_vocab = model_info(m)->n_vocab;
    float        *want = calloc(MAX_TOK * n_vocab, sizeof(float));
    float        *got = calloc(MAX_TOK * n_vocab, sizeof(float));
    struct score  s = { 0 };

    assert_non_null(want);
    assert_non_null(got);
    assert_true(json_array_size(texts) > 0);

    for (size_t i = 0; i < json_array_size(texts); i++) {
        struct text t;

        text_read(&t, json_array_get(texts, i));
        run(bf16, &t, MAX_TOK, want);
        run(m, &t, MAX_TOK, got);
        score_add(&s, &t, want, got, n_vocab);
    }

    s.kl /= s.n;
    s.same /= s.n;
    s.right /= s.n_texts;
    print_message("# %s, %s: %.0f tokens, KL %.5f, argmax %.2f %%, without "
                  "a slip %.1f %%\n", quant, kind, s.n, s.kl, s.same * 100,
                  s.right * 100);
    free(want);
    free(got);
    model_free(bf16);
    model_free(m);
    json_decref(all);

    return s;
}


static void
check(const char *quant, double kl, double same, double right)
{
    struct score sums = measure(quant, "sums");
    struct score talk = measure(quant, "talk");
    double       n = sums.n + talk.n;
    double       all_kl = (sums.kl * sums.n + talk.kl * talk.n) / n;
    double       all_same = (sums.same * sums.n + talk.same * talk.n) / n;

    if (!(all_kl <= kl && all_same >= same && sums.right >= right)) {
        fail_msg("%s: KL %.5f (at most %.5f), argmax %.4f (at least %.4f), "
                 "sums %.3f (at least %.3f)", quant, all_kl, kl, all_same,
                 same, sums.right, right);
    }
}


/* What the others are compared with can do sums. */
static void
test_bf16(void **state)
{
    (void) state;
    check("bf16", 0, 1, 0.95);
}


static void
test_int8(void **state)
{
    (void) state;
    check("int8", 0.005, 0.99, 0.95);
}


static void
test_int4(void **state)
{
    (void) state;
    check("int4", 0.03, 0.96, 0.9);
}


/* A run of a tile has 1088 bytes of 8 bits, 832 of 6 and 576 of 4.  A token
 * reads 288 runs of the first layer's MLP and, in each of five others, 36 of
 * each of five experts; 105 of each layer's attention, and 768 of the head. */
static void
test_int4_bytes(void **state)
{
    enum { EXPERTS = 288 + 5 * 5 * 36, SHARED = 6 * 105 + 768 };

    struct model *int8 = load("int8", 1), *int4 = load("int4", 1);

    (void) state;
    assert_int_equal(model_info(int8)->active_weight_bytes
                     - model_info(int4)->active_weight_bytes,
                     EXPERTS * (1088 - 576) + SHARED * (1088 - 832));
    model_free(int8);
    model_free(int4);
}


static void
test_same_bits(void **state)
{
    static const int chunks[] = { 1, 7, 64 };
    json_t          *all = json_load_file("t/data/quality.json", 0, NULL);
    struct model    *one = load(*state, 1), *three = load(*state, 3);
    size_t           n_vocab = model_info(one)->n_vocab;
    float           *want = calloc(MAX_TOK * n_vocab, sizeof(float));
    float           *got = calloc(MAX_TOK * n_vocab, sizeof(float));
    struct text      t;

    assert_non_null(want);
    assert_non_null(got);
    text_read(&t, json_array_get(json_object_get(all, "talk"), 0));
    run(one, &t, MAX_TOK, want);

    for (size_t i = 0; i < sizeof(chunks) / sizeof(chunks[0]); i++) {
        run(i % 2 ? one : three, &t, chunks[i], got);
        assert_memory_equal(want, got,
                            (size_t) t.n_tok * n_vocab * sizeof(float));
    }

    free(want);
    free(got);
    model_free(one);
    model_free(three);
    json_decref(all);
}


int
main(void)
{
    static char             int8[] = "int8", int4[] = "int4";
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_int8),
        cmocka_unit_test(test_int4), cmocka_unit_test(test_int4_bytes),
        { "same_bits_int8", test_same_bits, NULL, NULL, int8 },
        { "same_bits_int4", test_same_bits, NULL, NULL, int4 }
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);

    return cmocka_run_group_tests(tests, NULL, NULL);
}
