/*
 * D6, from requests to tokens: what a request is told, ids and logprobs bit for
 * bit, does not depend on who else runs, on how prompts are cut, on what the
 * prefix cache has, on threads, or on whether it had to give its pages back.
 * Tiny models with real weights, of latent and of grouped-query attention,
 * under the real scheduler, pages and sampler.
 */
#include <assert.h>
#include <string.h>

#include "serve/serve.h"

static int record_token(struct serve_output *o, uint32_t token,
                        const struct sampler_logprob *logprobs, uint32_t n);

#define serve_output_token record_token
#include "engine/serve/answer.c"
#undef serve_output_token

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "rng.h"
#include "unit/serve/letters.h"
#include "unit/serve/worker.h"

#define N_REQUESTS  64
#define N_PROMPT    260
#define N_NEW       90
#define N_CTX       400
#define N_TOP       3


/* -- what a request asks for, and what it is told -------------------------- */

struct said {
    uint32_t    n;
    uint32_t    tokens[N_NEW];
    struct sampler_logprob logprobs[N_NEW][1 + N_TOP];
};

static struct asked {
    uint32_t    prompt[N_PROMPT];
    uint32_t    n_prompt;
    uint32_t    n_new;
    uint32_t    n_choices;
    float       temperature;
    int         over;
    struct said alone[2];
    struct said said[2];
} asked[N_REQUESTS];


static int
record_token(struct serve_output *o, uint32_t token,
             const struct sampler_logprob *logprobs, uint32_t n)
{
    struct said *t = &asked[o->frame.slot].said[o->choice];

    assert_true(t->n < N_NEW && n == 1 + N_TOP);
    t->tokens[t->n] = token;
    memcpy(t->logprobs[t->n++], logprobs, n * sizeof(*logprobs));

    return serve_output_token(o, token, logprobs, n);
}


/* Prompts of all lengths around a page's, many with a beginning in common; in
 * some of these each page has the same tokens. */
static void
make_requests(void)
{
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        struct asked *q = &asked[i];
        uint32_t      n_common = rng(3) ? rng(N_PROMPT) : 0;
        uint32_t      period = rng(2) ? N_PROMPT : MODEL_PAGE_TOK;

        q->n_prompt = rng(3) ? 1 + rng(66) : 1 + rng(N_PROMPT);
        q->n_new = rng(3) ? N_NEW - rng(20) : 1 + rng(12);
        q->n_choices = 1 + (rng(4) == 0);
        q->temperature = rng(3) ? 1 : 0;

        for (uint32_t k = 0; k < q->n_prompt; k++) {
            q->prompt[k] = k < n_common ? k % period * 5 % 127 : rng(128);
        }
    }
}


/* -- an engine around a model that is kept --------------------------------- */

static const char         *dir;
static struct model       *models[3];   /* by threads */
static struct serve_model  served = {
    .n_ctx_tok = N_CTX, .n_text = 128, .n_vocab = 128, .piece_bytes = 16
};
static struct serve_options options = { .max_queue = 64 };


static struct model *
model_of(int n_threads)
{
    struct err           e;
    struct model_options o = {
        .dir = dir, .backend = "cpu", .n_threads = n_threads,
        .max_batch_tok = 512, .max_batch_rows = 64, .random_seed = -1,
        .max_seqs = 8           /* 512 pages */
    };

    if (models[n_threads] == NULL
        && (models[n_threads] = model_load(&o, &e)) == NULL)
    {
        fail_msg("%s", e.text);
    }

    return models[n_threads];
}


static void
world_begin(struct world *w, uint32_t n_pages)
{
    world_open(w, &options, &served, N_REQUESTS);

    /* Fewer pages than the model has: somebody has to give way. */
    kv_free(w->s.kv);
    w->s.kv = kv_create(n_pages, options.prefix_cache);
    w->s.limits.n_pages = n_pages;
}


static void
ask(struct world *w, uint16_t slot)
{
    struct asked      *q = &asked[slot];
    struct abi_request r = {
        .kind = ABI_COMPLETION_IDS, .n_choices = q->n_choices,
        .given = ABI_GIVEN_MAX_TOKENS | ABI_GIVEN_TEMPERATURE | ABI_GIVEN_SEED,
        .flags = ABI_FLAG_LOGPROBS | ABI_FLAG_IGNORE_EOS, .seed = slot,
        .max_tokens = q->n_new, .temperature = q->temperature,
        .n_top_logprobs = N_TOP, .n_body = q->n_prompt * 4,
        .priority = slot % 5 == 0 ? -1 : 0
    };
    static char bytes[sizeof(r) + N_PROMPT * 4 + 8];

    memcpy(bytes + sizeof(r), q->prompt, r.n_body);
    r.n_bytes = (uint32_t) sizeof(r) + ((r.n_body + 7) & ~7u);
    memcpy(bytes, &r, sizeof(r));
    memset(q->said, 0, sizeof(q->said));
    q->over = 0;

    (void) world_ask(w, slot, 1, bytes, r.n_bytes);
    prepare_all(w);
}


/* A step, and a worker that takes all events and gives all credit back. */
static void
step(struct world *w)
{
    char             payload[ABI_EVENT_MAX];
    struct abi_frame f;

    serve_step(&w->s);
    (void) ring_publish(&w->c->tx);

    while (ring_get(&w->rx, &f, payload) == RING_OK) {
        assert_true(f.type < ABI_ERROR);
        asked[f.slot].over |= f.type == ABI_DONE;
    }

    ring_release(&w->rx);

    for (uint16_t i = 0; i < N_REQUESTS; i++) {
        struct job *j = w->c->slots[i].job;

        if (j != NULL && j->state >= JOB_WAITING) {
            j->credits = ABI_WINDOW_MIN;
            serve_job_flush(&w->s, j);
        }
    }
}


static void
alone(void **state)
{
    static struct world w;

    dir = *state;
    model_free(models[1]);
    model_free(models[2]);
    models[1] = models[2] = NULL;

    served.model = model_of(1);
    options.prefix_cache = 0;
    options.max_seqs = 2;
    options.max_batch_tok = 512;
    options.step_us = 100000;
    options.max_queue_tok = N_REQUESTS * N_CTX;

    for (uint16_t i = 0; i < N_REQUESTS; i++) {
        world_begin(&w, 20);
        ask(&w, i);

        while (!asked[i].over) {
            step(&w);
        }

        memcpy(asked[i].alone, asked[i].said, sizeof(asked[i].said));
        assert_int_equal(asked[i].alone[0].n, asked[i].n_new);
        world_end(&w);
    }
}


/* All of them, in any order and at any time, in one of many engines. */
static void
in_company(void **state)
{
    static const struct {
        uint32_t n_seqs, n_batch_tok, n_pages;
        int      cache, n_threads;
    } engines[] = {
        { 64, 512, 300, 0, 1 }, { 64, 64, 300, 1, 2 }, { 64, 77, 20, 1, 2 },
        { 16, 16, 12, 1, 1 },   { 16, 131, 12, 0, 2 }, { 3, 3, 10, 1, 1 },
        { 8, 63, 10, 1, 2 },    { 5, 500, 300, 1, 1 }
    };
    uint64_t n_preempted = 0, n_hits = 0;

    (void) state;

    for (size_t i = 0; i < BASE_COUNT(engines); i++) {
        static struct world w;
        uint16_t     order[N_REQUESTS];
        uint32_t     n_asked = 0, n_over = 0;

        options.max_seqs = engines[i].n_seqs;
        options.max_batch_tok = engines[i].n_batch_tok;
        options.prefix_cache = engines[i].cache;
        served.model = model_of(engines[i].n_threads);
        world_begin(&w, engines[i].n_pages);

        for (uint16_t k = 0; k < N_REQUESTS; k++) {
            uint32_t at = rng(k + 1u);

            order[k] = order[at];
            order[at] = k;
            asked[k].over = 0;
        }

        while (n_over < N_REQUESTS) {
            while (n_asked < N_REQUESTS && rng(4) != 0) {
                ask(&w, order[n_asked++]);
            }

            step(&w);
            n_over = 0;

            for (uint32_t k = 0; k < N_REQUESTS; k++) {
                n_over += (uint32_t) asked[k].over;
            }
        }

        for (uint32_t k = 0; k < N_REQUESTS; k++) {
            if (memcmp(asked[k].said, asked[k].alone, sizeof(asked[k].said))
                != 0)
            {
                fail_msg("engine %zu: request %u differs", i, k);
            }
        }

        n_preempted += w.s.counts.preemptions;
        n_hits += w.s.counts.prefix_hits_tok;
        world_end(&w);
    }

    /* They have met what they are about. */
    assert_true(n_preempted > 5 && n_hits > 500);
}


int
main(void)
{
    const struct CMUnitTest tests[] = {
        { "alone, latent", alone, NULL, NULL, "t/data/model/v3" },
        { "in_company, latent", in_company, NULL, NULL, NULL },
        { "alone, grouped", alone, NULL, NULL, "t/data/model/qwen3" },
        { "in_company, grouped", in_company, NULL, NULL, NULL }
    };

    rng_state = 7;
    make_requests();
    log_max = LOG_LEVEL_ERROR;
    cmocka_set_message_output(CM_OUTPUT_TAP);

    int rc = cmocka_run_group_tests(tests, NULL, NULL);

    model_free(models[1]);
    model_free(models[2]);

    return rc;
}
