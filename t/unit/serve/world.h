/*
 * world.h - an engine and a worker in one process, around a model that is its
 * KV cache: its next token is a hash of every token that it finds in the pages.
 * So a token in a wrong page, or a page given to two, changes the answer.
 *
 * What is said is in slots[]; check_answer() knows what it should have been.
 */
#ifndef MOE_UNIT_WORLD_H
#define MOE_UNIT_WORLD_H

#include <math.h>
#include <stdio.h>

#include "rng.h"
#include "unit/serve/letters.h"
#include "unit/serve/worker.h"

#define N_VOCAB     1000
#define N_CTX       400
#define N_PAGES     16
#define N_SLOTS     16
#define N_SEQS      8
#define TOK_NAN     666         /* a prompt that ends so gives no number */
#define TOK_FORK    667         /* what begins so goes on in one of two ways */


static uint32_t n_logged;


/* What is logged are errors of single requests, and expected. */
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
static uint32_t n_copied;               /* pages */
static uint32_t n_computed;             /* tokens */
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
    /* Never 0, the end of turn, nor TOK_NAN; the lowest bits go in a circle. */
    return (hash >> 8) % 600 + 1;
}


static uint32_t
other_of(uint32_t hash)
{
    return next_of(hash * 5 + 11);
}


static uint32_t
hash_of(uint32_t hash, uint32_t token)
{
    return (hash ^ token) * 16777619u + 7;
}


/* What may come behind all that: one token, or one of two that are as likely,
 * so that the choices of a request part. */
static void
fill_row(float *row, uint32_t hash, int has_fork)
{
    memset(row, 0, N_VOCAB * sizeof(*row));
    row[next_of(hash)] = 50;

    if (has_fork) {
        row[other_of(hash)] = 50;
    }
}


/* What the device draws of such a row, but for a share of e^-50. */
static uint32_t
drawn(const struct sample *how, uint32_t hash, int has_fork)
{
    uint32_t a = next_of(hash), b = has_fork ? other_of(hash) : a;
    uint32_t way = hash_of(hash_of(how->choice + 1, (uint32_t) how->i_token), 9)
                   >> 12 & 1;

    return (a < b) == (way == 0) ? a : b;
}


/* Of eight steps, how many choose where the logits are: nobody can tell. */
static uint32_t n_of_8 = 6, n_asked, n_ahead;

int
model_samples(const struct model *m)
{
    (void) m;

    return n_asked++ % 8 < n_of_8;
}


/* Launches that are not collected.  What they compute is on the device at once,
 * as it is when the next one reads it; what they choose is there too, and comes
 * to the host when it is collected, and not before. */
static struct {
    uint32_t n_rows;
    int      samples;
    uint32_t chosen[N_SEQS];
} launched[2];
static uint32_t n_launched, n_collected;
static char     calls[64];              /* the first, of both, in order */


static void
note_call(char c)
{
    size_t n = strlen(calls);

    if (n < sizeof(calls) - 1) {
        calls[n] = c;
    }
}


static uint32_t
token_of(const struct model_segment *g, int k)
{
    if (g->chosen == 0) {
        assert_true(g->tokens[k] < N_VOCAB);
        return g->tokens[k];
    }

    assert_true(n_launched == n_collected + 1 && g->n_tok == 1);
    assert_true(launched[n_collected % 2].samples);
    assert_in_range(g->chosen, 1, launched[n_collected % 2].n_rows);
    n_ahead++;

    uint32_t token = launched[n_collected % 2].chosen[g->chosen - 1];

    return token == BACKEND_NO_TOKEN ? 0 : token;
}


void
model_launch(struct model *m, const struct model_segment *segs, int n_segs,
             const struct sample *how, uint32_t n_vocab)
{
    uint32_t n_rows = 0, i_launch = n_launched % 2;

    (void) m;
    note_call('L');
    assert_true(n_launched == n_collected
                || (n_launched == n_collected + 1
                    && launched[n_collected % 2].samples));

    for (int i = 0; i < n_segs; i++) {
        const struct model_segment *g = &segs[i];
        uint32_t                    hash = 1, last = 0;

        assert_true(g->n_tok >= 1 && g->pos + g->n_tok <= N_CTX);
        n_computed += (uint32_t) g->n_tok;

        for (int k = 0; k < g->n_tok; k++) {
            int at = g->pos + k;

            assert_true(g->pages[at / MODEL_PAGE_TOK] < N_PAGES);
            store[g->pages[at / MODEL_PAGE_TOK]][at % MODEL_PAGE_TOK] =
                token_of(g, k);
        }

        for (int at = 0; at < g->pos + g->n_tok; at++) {
            last = store[g->pages[at / MODEL_PAGE_TOK]][at % MODEL_PAGE_TOK];
            hash = hash_of(hash, last);

            if (at < g->pos + g->n_tok - g->n_rows) {
                continue;
            }

            int has_fork = store[g->pages[0]][0] == TOK_FORK;

            if (how != NULL) {
                assert_true(how[n_rows].top_p > 0 && n_vocab == N_VOCAB
                            && g->n_rows == 1);
                launched[i_launch].chosen[n_rows] =
                    last == TOK_NAN ? BACKEND_NO_TOKEN
                                    : drawn(&how[n_rows], hash, has_fork);
                n_rows++;
            } else {
                fill_row(rows[n_rows], hash, has_fork);
                rows[n_rows++][0] = last == TOK_NAN ? NAN : 0;
            }
        }
    }

    launched[i_launch].n_rows = n_rows;
    launched[i_launch].samples = how != NULL;
    n_launched++;
}


struct model_result
model_collect(struct model *m)
{
    static uint32_t tokens[N_SEQS];
    uint32_t        i = n_collected++ % 2;

    (void) m;
    note_call('C');
    assert_true(n_collected <= n_launched);
    memcpy(tokens, launched[i].chosen, sizeof(tokens));

    return launched[i].samples ? (struct model_result) { NULL, tokens }
                               : (struct model_result) { rows[0], NULL };
}


void
model_copy_page(struct model *m, uint32_t to, uint32_t from)
{
    (void) m;

    assert_true(to != from);
    memcpy(store[to], store[from], sizeof(store[0]));
    n_copied++;
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


static void
world_begin(struct world *w)
{
    n_launched = n_collected = 0;
    memset(calls, 0, sizeof(calls));
    world_open(w, &fake_options, &fake_model, N_SLOTS);
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
    uint32_t    n_usage;        /* tokens said, by DONE */
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
        .given = ABI_GIVEN_MAX_TOKENS | ABI_GIVEN_TEMPERATURE
                 | ABI_GIVEN_SEED,
        .flags = v->scored ? ABI_FLAG_PROMPT_LOGPROBS : 0, .n_prompt_top = 2,
        .temperature = v->prompt[0] == TOK_FORK, .seed = gen,
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

    return world_ask(w, slot, gen, bytes, r.n_bytes);
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
    struct abi_usage  usage;
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
        memcpy(&usage, p, sizeof(usage));
        v->n_usage = usage.n_output_tok;
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


/* The answer to a prompt is known without an engine, but for the way at each
 * fork. */
static void
check_answer(const struct seen *v)
{
    int has_fork = v->prompt[0] == TOK_FORK;
    uint32_t hash = 1;

    for (uint32_t i = 0; i < v->n_prompt; i++) {
        hash = hash_of(hash, v->prompt[i]);
    }

    for (uint32_t k = 0; k < v->n_choices; k++) {
        uint32_t h = hash;

        assert_true(v->n_out[k] <= v->n_new);
        assert_int_equal(v->n_text[k], v->n_out[k]);

        for (uint32_t i = 0; i < v->n_out[k]; i++) {
            if (!has_fork || v->out[k][i] != other_of(h)) {
                assert_int_equal(v->out[k][i], next_of(h));
            }

            h = hash_of(h, v->out[k][i]);
        }

        int has_stop = next_of(h) == fake_model.eos[0]
                       || (has_fork && other_of(h) == fake_model.eos[0]);

        assert_true(v->end != ABI_DONE
                    || (v->n_out[k] == v->n_new && v->reason[k] == ABI_LENGTH)
                    || (v->n_out[k] < v->n_new && v->reason[k] == ABI_STOP
                        && has_stop));
    }

    assert_true(v->end != ABI_DONE || v->n_finished == v->n_choices);
    assert_true(v->end != ABI_DONE || !v->scored || v->n_told == v->n_prompt);
}

#endif /* MOE_UNIT_WORLD_H */
