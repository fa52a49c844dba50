/*
 * Tests of engine/serve/step.c, and of answer.c, job.c, pages.c and channel.c
 * under it: real rings, scheduler and pages around a model whose next token is
 * a hash of every token that it finds in the pages.  So a token in a wrong
 * page, or a page given to two, changes the answer.
 */
#define log_line count_line
#include "engine/serve/answer.c"
#include "engine/serve/step.c"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "unit/serve/letters.h"

#define N_VOCAB     1000
#define N_CTX       400
#define N_PAGES     16
#define N_SLOTS     16
#define N_SEQS      8
#define TOK_NAN     666         /* a prompt that ends so gives no number */


static uint32_t n_logged;


/* What step.c logs are errors of single requests, and expected. */
void
count_line(enum log_level level, const char *fmt, ...)
{
    (void) fmt;

    assert_int_equal(level, LOG_LEVEL_ERROR);
    n_logged++;
}


/* -- the model, which is its KV cache ------------------------------------- */

static struct model_info fake_info = {
    .n_vocab = N_VOCAB, .n_ctx_tok = N_CTX, .n_pages = N_PAGES,
    .temperature = -1, .top_p = -1, .min_p = -1, .repetition = -1, .top_k = -1
};
static uint32_t store[N_PAGES][MODEL_PAGE_TOK];
static float    rows[N_SEQS + SERVE_SCORE_ROWS][N_VOCAB];

const struct model_info *
model_info(const struct model *m)
{
    (void) m;

    return &fake_info;
}


static uint32_t
next_of(uint32_t hash)
{
    return hash % 600 + 1;      /* never 0, the end of turn, nor TOK_NAN */
}


static uint32_t
hash_of(uint32_t hash, uint32_t token)
{
    return (hash ^ token) * 16777619u + 7;
}


void
model_forward(struct model *m, const struct model_segment *segs, int n_segs,
              float **logits)
{
    int n_rows = 0;

    (void) m;

    for (int i = 0; i < n_segs; i++) {
        const struct model_segment *g = &segs[i];
        uint32_t                    hash = 1, last = 0;

        assert_true(g->n_tok >= 1 && g->pos + g->n_tok <= N_CTX);

        for (int k = 0; k < g->n_tok; k++) {
            int at = g->pos + k;

            assert_true(g->pages[at / MODEL_PAGE_TOK] < N_PAGES);
            store[g->pages[at / MODEL_PAGE_TOK]][at % MODEL_PAGE_TOK] =
                g->tokens[k];
        }

        for (int at = 0; at < g->pos + g->n_tok; at++) {
            last = store[g->pages[at / MODEL_PAGE_TOK]][at % MODEL_PAGE_TOK];
            hash = hash_of(hash, last);

            if (at >= g->pos + g->n_tok - g->n_rows) {
                memset(rows[n_rows], 0, sizeof(rows[0]));
                rows[n_rows++][next_of(hash)] = last == TOK_NAN ? NAN : 50;
            }
        }
    }

    *logits = rows[0];
}


/* Every other step chooses where the logits are: nobody can tell. */
static uint32_t n_asked, n_sampled;

int
model_samples(const struct model *m)
{
    (void) m;

    return ++n_asked % 2;
}


void
model_forward_sample(struct model *m, const struct model_segment *segs,
                     int n_segs, const struct sample *how, uint32_t n_vocab,
                     const uint32_t **tokens)
{
    static uint32_t chosen[N_SEQS];
    float          *logits;
    int             n_rows = 0;

    model_forward(m, segs, n_segs, &logits);
    n_sampled++;
    *tokens = chosen;

    for (int i = 0; i < n_segs; i++) {
        n_rows += segs[i].n_rows;
        assert_in_range(segs[i].n_rows, 0, 1);
    }

    for (int r = 0; r < n_rows; r++, logits += N_VOCAB) {
        chosen[r] = 0;

        /* The one of 50 is drawn with the rest of a share of e^-50. */
        for (uint32_t i = 0; i < n_vocab; i++) {
            chosen[r] = !(logits[i] <= 50) ? BACKEND_NO_TOKEN
                        : logits[i] == 50 ? i : chosen[r];
        }

        assert_true(how[r].top_p > 0);
    }
}


#define N_THREADS   3

int
model_threads(const struct model *m)
{
    (void) m;

    return N_THREADS;
}


/* Backwards, as none may count on an order. */
void
model_each(struct model *m, uint32_t n,
           void (*fn)(void *ctx, uint32_t i, int thread), void *ctx)
{
    (void) m;

    while (n-- > 0) {
        fn(ctx, n, (int) (n % N_THREADS));
    }
}


/* -- an engine and a worker in one process -------------------------------- */

static struct serve_model fake_model = {
    .n_ctx_tok = N_CTX, .n_text = N_VOCAB, .n_vocab = N_VOCAB,
    .piece_bytes = 1, .eos = { 0 }, .n_eos = 1
};
static struct serve_options fake_options = {
    .max_seqs = N_SEQS, .max_queue = 64, .max_batch_tok = 50, .step_us = 100000,
    .max_queue_tok = 64 * N_CTX, .prefix_cache = 1
};

struct world {
    struct serve    s;
    struct channel *c;
    struct ring_memory memory;  /* the worker's */
    struct ring_view   view;
    struct ring_rx     rx;
};

static uint64_t rng_state = 99;

static uint32_t
rng(uint32_t n)
{
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;

    return (uint32_t) ((rng_state >> 32) % n);
}


static void
world_begin(struct world *w)
{
    char     text[RING_TEXT];
    uint64_t n = ring_event_bytes(N_SLOTS, ABI_WINDOW_MIN);

    memset(w, 0, sizeof(*w));
    w->s.o = &fake_options;
    w->s.model = &fake_model;
    assert_int_equal(serve_step_begin(&w->s, NULL), 0);
    assert_int_equal(serve_prep_start(&w->s.prep, &fake_model, NULL), 0);

    w->c = calloc(1, sizeof(*w->c));
    w->c->sock = w->c->bell = -1;
    w->c->slots = calloc(N_SLOTS, sizeof(*w->c->slots));
    w->c->n_slots = N_SLOTS;
    w->c->window_cells = ABI_WINDOW_MIN;
    w->s.channels = w->c;
    w->s.n_channels = 1;

    assert_int_equal(ring_memory_create(&w->memory, 65536, 1, text), 0);
    assert_int_equal(ring_memory_create(&w->c->memory, n, 2, text), 0);
    assert_int_equal(ring_view_open(&w->view, w->c->memory.fd, n, 2, text), 0);
    assert_int_equal(ring_view_open(&w->c->view, w->memory.fd, 65536, 1, text),
                     0);
    ring_tx_init(&w->c->tx, &w->c->memory, &w->c->view);
    ring_rx_init(&w->c->rx, &w->c->memory, &w->c->view, ABI_FRAME_MAX);
    ring_rx_init(&w->rx, &w->memory, &w->view, ABI_EVENT_MAX);
}


static void
world_end(struct world *w)
{
    assert_int_equal(w->c->dead, 0);
    assert_int_equal(kv_pages_free(w->s.kv), N_PAGES);
    assert_int_equal(w->s.n_running + w->s.n_waiting + w->s.n_preparing, 0);
    assert_int_equal(w->c->n_in_bytes, 0);

    serve_prep_stop(&w->s.prep);
    close(w->s.prep.event);
    w->s.channels = NULL;
    serve_channel_free(&w->s, w->c);
    serve_step_end(&w->s);
    ring_view_close(&w->view);
    ring_memory_close(&w->memory);
}


/* -- what a worker sees of its slots -------------------------------------- */

struct seen {
    uint32_t    prompt[N_CTX];
    uint32_t    n_prompt;
    uint32_t    n_new;
    uint32_t    n_choices;
    uint32_t    out[ABI_CHOICES_MAX][N_CTX];
    uint32_t    n_out[ABI_CHOICES_MAX];
    uint32_t    n_text[ABI_CHOICES_MAX];
    uint32_t    reason[ABI_CHOICES_MAX];
    uint32_t    n_finished;
    uint64_t    gen;
    uint8_t     end;            /* type of the terminal event; 0: open */
    uint8_t     resumed;
    uint8_t     scored;         /* PROMPTs are wanted ... */
    uint32_t    n_told;         /* ... and so many came */
    uint32_t    hash;           /* of the tokens that they were of */
    uint32_t    code;           /* of an ERROR */
    uint32_t    n_cached;
    uint32_t    n_starts;
    char        salt;           /* 0: none */
    int32_t     priority;
    uint32_t    deadline_ms;
    int         stalled;        /* gives no credit */
    uint32_t    owed;           /* cells not given back */
};

static struct seen slots[N_SLOTS];


/* A request of ids, straight to serve_job; with what it was told before. */
static struct job *
ask(struct world *w, uint16_t slot, uint64_t gen)
{
    const struct seen *v = &slots[slot];
    uint32_t           n_resumes = v->resumed ? v->n_choices : 0;
    struct abi_request r = {
        .kind = ABI_COMPLETION_IDS, .n_choices = v->n_choices,
        .given = ABI_GIVEN_MAX_TOKENS | ABI_GIVEN_TEMPERATURE,
        .flags = v->scored ? ABI_FLAG_PROMPT_LOGPROBS : 0, .n_prompt_top = 2,
        .max_tokens = v->n_new, .n_body = v->n_prompt * 4,
        .n_resumes = n_resumes, .n_salt = v->salt != 0,
        .priority = v->priority, .deadline_ms = v->deadline_ms
    };
    static char bytes[sizeof(r) + (1 + ABI_CHOICES_MAX) * (N_CTX * 4 + 24)];

    memcpy(bytes + sizeof(r), v->prompt, r.n_body);
    r.n_bytes = (uint32_t) sizeof(r) + ((r.n_body + 7) & ~7u);

    if (v->salt != 0) {
        memset(bytes + r.n_bytes, v->salt, 4);
        r.n_bytes += 4;
    }

    for (uint32_t k = 0; k < n_resumes; k++) {
        struct abi_resume q = { v->n_out[k], v->n_text[k], v->reason[k], 0 };

        memcpy(bytes + r.n_bytes, &q, sizeof(q));
        memcpy(bytes + r.n_bytes + sizeof(q), v->out[k], q.n_tok * 4);
        r.n_bytes += (uint32_t) sizeof(q) + q.n_tok * 4;
    }

    memcpy(bytes, &r, sizeof(r));

    struct job *j = serve_job_begin(&w->s, w->c, slot, gen);

    w->c->slots[slot].gen = gen;
    w->c->slots[slot].job = j;
    serve_job_fragment(&w->s, j, bytes, r.n_bytes, 0);

    return j;
}


static void
prepare_all(struct world *w)
{
    while (w->s.n_preparing > 0) {
        struct serve_prep_item *item = serve_prep_take(&w->s.prep);

        if (item == NULL) {
            nanosleep(&(struct timespec) { 0, 100000 }, NULL);
            continue;
        }

        serve_job_prepared(&w->s, (struct job *) (void *) item);
    }
}


/* The next token of the prompt, and whether it was the likeliest. */
static void
see_prompt(struct seen *v, const struct abi_frame *f, const char *p)
{
    struct abi_logprob l;

    memcpy(&l, p, sizeof(l));
    assert_true(v->scored && v->n_told < v->n_prompt);
    assert_int_equal(v->n_out[0], v->resumed ? v->n_out[0] : 0);
    assert_int_equal(l.token, v->prompt[v->n_told]);
    assert_int_equal(l.n_top, v->n_told == 0 ? 0 : 2);
    assert_int_equal(f->n_bytes, (1u + l.n_top) * (sizeof(l) + 4));

    if (v->n_told == 0) {
        assert_true(isnan(l.logprob));
        v->hash = 1;
    } else {
        assert_int_equal(l.rank, l.token == next_of(v->hash) ? 1 : 2);
        assert_true((l.logprob > -1) == (l.rank == 1));
    }

    v->hash = hash_of(v->hash, l.token);
    v->n_told++;
}


static void
see(struct world *w, const struct abi_frame *f, const char *p)
{
    struct seen      *v = &slots[f->slot];
    struct abi_delta  d;
    struct abi_error  e;
    struct abi_finish finish;
    struct abi_start  start;
    struct job       *j = w->c->slots[f->slot].job;

    assert_int_equal(f->gen, v->gen);
    assert_int_equal(v->end, 0);

    switch (f->type) {
    case ABI_DELTA:
        memcpy(&d, p, sizeof(d));
        memcpy(v->out[d.choice] + v->n_out[d.choice], p + sizeof(d),
               d.n_tok * sizeof(uint32_t));
        v->n_out[d.choice] += d.n_tok;
        v->n_text[d.choice] += d.n_text;
        break;
    case ABI_PROMPT:
        see_prompt(v, f, p);
        break;
    case ABI_FINISH:
        memcpy(&finish, p, sizeof(finish));
        assert_true(v->reason[finish.choice] == 0
                    || (v->resumed
                        && v->reason[finish.choice] == finish.reason));
        v->n_finished += v->reason[finish.choice] == 0;
        v->reason[finish.choice] = finish.reason;
        break;
    case ABI_ERROR:
        memcpy(&e, p, sizeof(e));
        v->code = e.code;
        v->end = f->type;
        break;
    case ABI_DONE:
    case ABI_CANCELLED:
        v->end = f->type;
        break;
    default:
        assert_int_equal(f->type, ABI_START);
        memcpy(&start, p, sizeof(start));
        assert_int_equal(start.n_prompt_tok, v->n_prompt);
        assert_true(start.n_cached_tok < v->n_prompt);
        v->n_cached = start.n_cached_tok;
        assert_int_equal(v->n_starts++, 0);
    }

    v->owed += ring_cells(f->n_bytes);
    assert_true(v->owed <= ABI_WINDOW_MIN + ABI_TERMINAL_CELLS);

    if (!v->stalled && v->end == 0 && j != NULL && j->gen == f->gen) {
        uint32_t owed = v->owed;

        v->owed = 0;
        j->credits += owed;
        assert_true(j->credits <= ABI_WINDOW_MIN);
    }
}


static void
see_all(struct world *w)
{
    char             payload[ABI_EVENT_MAX];
    struct abi_frame f;
    int              rc;

    (void) ring_publish(&w->c->tx);

    while ((rc = ring_get(&w->rx, &f, payload)) == RING_OK) {
        see(w, &f, payload);
    }

    assert_int_equal(rc, RING_AGAIN);
    ring_release(&w->rx);

    /* Credit makes what waits for it move. */
    for (uint16_t i = 0; i < N_SLOTS; i++) {
        struct job *j = w->c->slots[i].job;

        if (j != NULL && j->state >= JOB_WAITING && !slots[i].stalled) {
            j->credits += slots[i].owed;
            slots[i].owed = 0;
            serve_job_flush(&w->s, j);
        }
    }
}


/* The answer to a prompt is known without an engine. */
static void
check_answer(const struct seen *v)
{
    uint32_t hash = 1;

    for (uint32_t i = 0; i < v->n_prompt; i++) {
        hash = hash_of(hash, v->prompt[i]);
    }

    for (uint32_t k = 0; k < v->n_choices; k++) {
        uint32_t h = hash;

        assert_true(v->n_out[k] <= v->n_new);
        assert_true(v->end != ABI_DONE || v->n_out[k] == v->n_new);
        assert_int_equal(v->n_text[k], v->n_out[k]);

        for (uint32_t i = 0; i < v->n_out[k]; i++) {
            assert_int_equal(v->out[k][i], next_of(h));
            h = hash_of(h, v->out[k][i]);
        }
    }

    assert_true(v->end != ABI_DONE || v->n_finished == v->n_choices);
    assert_true(v->end != ABI_DONE || !v->scored || v->n_told == v->n_prompt);
}


static void
ask_at_random(struct world *w, uint16_t slot, uint64_t gen, int nan)
{
    struct seen *v = &slots[slot];

    memset(v, 0, sizeof(*v));
    v->gen = gen;
    v->n_choices = rng(3) == 0 ? 1 + rng(N_SEQS) : 1;
    v->n_prompt = 1 + rng(rng(2) ? 200 : 20);
    v->n_new = 1 + rng(v->n_choices > 1 ? 60 : 150);
    v->stalled = rng(8) == 0;

    /* Some have a beginning in common, of one of two tenants. */
    uint32_t n_common = rng(4) ? v->n_prompt - rng(9) % v->n_prompt : 0;
    uint32_t base = rng(2);

    v->salt = (char) (rng(2) ? 'a' + rng(2) : 0);
    v->priority = rng(3) == 0 ? (int32_t) rng(2000) - 1000 : 0;

    v->scored = rng(4) == 0;

    /* Now and then what the model would have said itself. */
    for (uint32_t i = 0, hash = 1; i < v->n_prompt; i++) {
        v->prompt[i] = i < n_common ? 1 + (i * 7 + base) % 600
                       : rng(3) == 0 ? next_of(hash) : 1 + rng(600);
        hash = hash_of(hash, v->prompt[i]);
    }

    if (nan) {
        v->prompt[v->n_prompt - 1] = TOK_NAN;
    }

    ask(w, slot, gen);
}


/* The request goes on as if its engine had been lost. */
static void
ask_again(struct world *w, uint16_t slot, uint64_t gen)
{
    struct seen *v = &slots[slot];

    v->gen = gen;
    v->end = 0;
    v->owed = 0;
    v->stalled = 0;
    v->resumed = 1;
    v->n_starts = 0;
    v->n_told = 0;

    ask(w, slot, gen);
}


/*
 * 2000 requests in few pages: forks, stalls, cancels, those that go on after
 * one, and models that fail.  Each token is the one that its own history asks
 * for; all ends are right; at last all pages are free.
 */
static void
answers_are_those_of_each_alone(void **state)
{
    struct world w;
    int          nan[N_SLOTS] = { 0 };
    uint64_t     gen = 0;
    uint32_t     ends[3] = { 0 }, n_open = 0, n_nan = 0, n_again = 0;

    (void) state;

    world_begin(&w);
    memset(slots, 0, sizeof(slots));
    n_logged = 0;

    while (gen < 2000 || n_open > 0) {
        uint16_t     i = (uint16_t) rng(N_SLOTS);
        struct seen *v = &slots[i];

        if (v->gen == 0 && gen < 2000) {
            nan[i] = rng(10) == 0;
            ask_at_random(&w, i, ++gen, nan[i]);
            n_open++;
        } else if (v->gen != 0 && w.c->slots[i].job != NULL
                   && rng(30) == 0)
        {
            serve_job_cancel(&w.s, w.c->slots[i].job);
        }

        prepare_all(&w);
        serve_step(&w.s);
        see_all(&w);

        for (i = 0; i < N_SLOTS; i++) {
            v = &slots[i];

            if (v->gen != 0 && v->end != 0) {
                check_answer(v);
                assert_null(w.c->slots[i].job);

                if (v->end == ABI_ERROR) {
                    assert_true(v->code == ABI_E_CONTEXT
                                || (nan[i] && v->code == ABI_E_INTERNAL));
                    n_nan += v->code == ABI_E_INTERNAL;
                }

                ends[v->end - ABI_DONE]++;

                if (v->end == ABI_CANCELLED && rng(2) == 0) {
                    n_again += v->n_out[0] > 0;
                    ask_again(&w, i, ++gen);
                    continue;
                }

                n_open--;
                v->gen = 0;
            }
        }
    }

    /* All three ends have been seen, or this tests less than it says. */
    assert_true(ends[0] > 300 && ends[1] > 10 && ends[2] > 10);
    assert_true(n_again > 20);
    assert_true(w.s.counts.prefix_hits_tok > 8000);
    assert_true(w.s.counts.preemptions > 100);
    assert_int_equal(n_nan, n_logged);
    assert_int_equal(ends[0], w.s.counts.done);
    assert_int_equal(ends[1], w.s.counts.error);
    assert_int_equal(ends[2], w.s.counts.cancelled);
    world_end(&w);
}


/* A request whose logits are not finite ends; the one beside it does not. */
static void
nonsense_ends_its_request_alone(void **state)
{
    struct world w;

    (void) state;

    world_begin(&w);
    memset(slots, 0, sizeof(slots));

    for (uint16_t i = 0; i < 2; i++) {
        struct seen *v = &slots[i];

        v->gen = 1;
        v->n_choices = 2;
        v->n_prompt = 70;
        v->n_new = 20;

        for (uint32_t k = 0; k < v->n_prompt; k++) {
            v->prompt[k] = k + 1;
        }

        v->prompt[69] = i == 0 ? TOK_NAN : 5;
        ask(&w, i, 1);
    }

    prepare_all(&w);

    while (serve_step(&w.s)) {
        see_all(&w);
    }

    see_all(&w);
    assert_int_equal(slots[0].end, ABI_ERROR);
    assert_int_equal(slots[0].code, ABI_E_INTERNAL);
    assert_int_equal(slots[1].end, ABI_DONE);
    check_answer(&slots[1]);
    world_end(&w);
}


/* A prompt of its own kind, of n tokens. */
static struct seen *
one(uint16_t slot, uint32_t n, uint32_t n_new)
{
    struct seen *v = &slots[slot];

    memset(v, 0, sizeof(*v));
    v->gen = 1;
    v->n_choices = 1;
    v->n_prompt = n;
    v->n_new = n_new;

    for (uint32_t k = 0; k < n; k++) {
        v->prompt[k] = 1 + (slot * 31 + k) % 600;
    }

    return v;
}


static void
run_all(struct world *w)
{
    prepare_all(w);

    while (serve_step(&w->s)) {
        see_all(w);
    }

    see_all(w);
}


/* What the cache has for a second turn: the prompt, the first answer but for
 * its last token, and 30 tokens; said by this tenant. */
static uint32_t
second_turn(struct world *w, char salt)
{
    struct seen *v = one(0, 200, 100);

    v->salt = 'a';
    ask(w, 0, 1);
    run_all(w);
    assert_int_equal(v->end, ABI_DONE);

    struct seen *again = one(1, 330, 5);

    again->salt = salt;
    memcpy(again->prompt, v->prompt, 200 * sizeof(uint32_t));
    memcpy(again->prompt + 200, v->out[0], 100 * sizeof(uint32_t));
    ask(w, 1, 1);
    run_all(w);
    assert_int_equal(again->end, ABI_DONE);
    check_answer(again);

    return again->n_cached;
}


static void
a_turn_reads_what_is_new(void **state)
{
    struct world w;

    (void) state;

    world_begin(&w);
    assert_int_equal(second_turn(&w, 'a'), 299 / 64 * 64);
    assert_int_equal(w.s.counts.prefix_hits_tok, 256);
    world_end(&w);

    world_begin(&w);
    assert_int_equal(second_turn(&w, 'b'), 0);
    world_end(&w);

    world_begin(&w);
    assert_int_equal(second_turn(&w, 0), 0);
    world_end(&w);

    fake_options.prefix_cache = 0;
    world_begin(&w);
    assert_int_equal(second_turn(&w, 'a'), 0);
    world_end(&w);
    fake_options.prefix_cache = 1;
}


/* A prompt that is all there: its last token is computed all the same. */
static void
the_last_token_is_computed(void **state)
{
    struct world w;

    (void) state;

    world_begin(&w);

    for (uint64_t gen = 1; gen <= 2; gen++) {
        struct seen *v = one(0, 128, 3);

        v->gen = gen;
        ask(&w, 0, gen);
        run_all(&w);
        assert_int_equal(v->end, ABI_DONE);
        assert_int_equal(v->n_cached, gen == 1 ? 0 : 64);
        check_answer(v);
    }

    world_end(&w);
}


/* Who is late without a token ends so; who has begun may be slow. */
static void
deadlines(void **state)
{
    struct world w;

    (void) state;

    world_begin(&w);

    for (uint16_t i = 0; i < 2; i++) {
        one(i, 100, 200)->deadline_ms = 200;
    }

    ask(&w, 0, 1);
    prepare_all(&w);

    while (slots[0].n_out[0] == 0) {
        serve_step(&w.s);
        see_all(&w);
    }

    ask(&w, 1, 1);
    nanosleep(&(struct timespec) { 0, 250000000 }, NULL);
    run_all(&w);
    assert_int_equal(slots[0].end, ABI_DONE);
    assert_int_equal(slots[1].end, ABI_ERROR);
    assert_int_equal(slots[1].code, ABI_E_DEADLINE);
    assert_int_equal(slots[1].n_starts, 0);
    world_end(&w);
}


/* Among those that wait the lower number goes first, and may take pages from a
 * higher one that runs; that one ends as if nothing had been. */
static void
priorities(void **state)
{
    struct world w;

    (void) state;

    world_begin(&w);

    for (uint16_t i = 0; i < 5; i++) {
        one(i, 370, 30)->priority = 5 - i;
        ask(&w, i, 1);
        prepare_all(&w);

        if (i == 1) {
            serve_step(&w.s);       /* 0 and 1 run; 16 pages hold two */
            assert_int_equal(w.s.n_running, 2);
        }
    }

    serve_step(&w.s);
    assert_int_equal(w.s.n_running, 2);
    assert_int_equal(w.s.counts.preemptions, 2);
    assert_int_equal(w.c->slots[3].job->state, JOB_RUNNING);
    assert_int_equal(w.c->slots[4].job->state, JOB_RUNNING);
    run_all(&w);

    for (uint16_t i = 0; i < 5; i++) {
        assert_int_equal(slots[i].end, ABI_DONE);
        assert_int_equal(slots[i].n_starts, 1);
        check_answer(&slots[i]);
    }

    world_end(&w);
}


/* Clients that do not read hold all pages; who comes then is served. */
static void
stalled_ones_give_way(void **state)
{
    struct world w;

    (void) state;

    world_begin(&w);

    for (uint16_t i = 0; i < 3; i++) {
        one(i, 300, 80)->stalled = 1;
        slots[i].n_choices = 2;
        ask(&w, i, 1);
    }

    run_all(&w);
    one(3, 350, 50);
    ask(&w, 3, 1);
    run_all(&w);
    assert_int_equal(slots[3].end, ABI_DONE);
    check_answer(&slots[3]);
    assert_true(w.s.counts.preemptions > 0);

    for (uint16_t i = 0; i < 3; i++) {
        assert_int_equal(slots[i].end, 0);
        slots[i].stalled = 0;
    }

    see_all(&w);
    run_all(&w);

    for (uint16_t i = 0; i < 3; i++) {
        assert_int_equal(slots[i].end, ABI_DONE);
        check_answer(&slots[i]);
    }

    world_end(&w);
}


/* The queue is as long as its tokens allow; but one may always wait. */
static void
the_queue_counts_tokens(void **state)
{
    struct world w;
    uint32_t     n_busy = 0;

    (void) state;

    fake_options.max_queue_tok = 500;
    world_begin(&w);

    for (uint16_t i = 0; i < 5; i++) {
        one(i, i == 0 ? 350 : 200, 5);
        ask(&w, i, 1);
        prepare_all(&w);
    }

    see_all(&w);

    for (uint16_t i = 0; i < 5; i++) {
        n_busy += slots[i].end == ABI_ERROR && slots[i].code == ABI_E_BUSY;
    }

    assert_int_equal(n_busy, 4);
    assert_int_equal(w.s.n_waiting_tok, 350);
    run_all(&w);
    assert_int_equal(slots[0].end, ABI_DONE);
    world_end(&w);
    fake_options.max_queue_tok = 64 * N_CTX;
}


int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_are_those_of_each_alone),
        cmocka_unit_test(a_turn_reads_what_is_new),
        cmocka_unit_test(the_last_token_is_computed),
        cmocka_unit_test(deadlines),
        cmocka_unit_test(priorities),
        cmocka_unit_test(stalled_ones_give_way),
        cmocka_unit_test(the_queue_counts_tokens),
        cmocka_unit_test(nonsense_ends_its_request_alone),
    };

    log_max = LOG_LEVEL_ERROR;
    cmocka_set_message_output(CM_OUTPUT_TAP);

    int rc = cmocka_run_group_tests(tests, NULL, NULL);

    if (n_sampled == 0) {
        print_message("# no step was sampled\n");
        return 1;
    }

    return rc;
}
