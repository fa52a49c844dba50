/*
 * answer_threads.c - serve/answer.c and the sampler as an engine runs them, by
 * several threads at once, without a model: rows of logits are made up.
 * t/tsan.t builds it with ThreadSanitizer, right and with a mistake.
 *
 *      answer_threads [STEPS]
 *
 * Exits with 1 where the tokens are not those of one thread.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "serve/serve.h"

#define N_VOCAB     400
#define N_JOBS      8
#define N_STEPS_MAX 1000

static int n_threads;


/* -- what answer.c calls --------------------------------------------------- */

struct each {
    void      (*fn)(void *ctx, uint32_t i, int thread);
    void       *ctx;
    uint32_t    n;
    int         thread;
};


static void *
each_main(void *arg)
{
    struct each *e = arg;

    for (uint32_t i = (uint32_t) e->thread; i < e->n; i += (uint32_t) n_threads)
    {
        e->fn(e->ctx, i, e->thread);
    }

    return NULL;
}


void
model_each(struct model *m, uint32_t n,
           void (*fn)(void *ctx, uint32_t i, int thread), void *ctx)
{
    pthread_t   ids[8];
    struct each parts[8];

    (void) m;

    for (int i = 0; i < n_threads; i++) {
        parts[i] = (struct each) { fn, ctx, n, i };

        if (pthread_create(&ids[i], NULL, each_main, &parts[i]) != 0) {
            abort();
        }
    }

    for (int i = 0; i < n_threads; i++) {
        pthread_join(ids[i], NULL);
    }
}


int
model_threads(const struct model *m)
{
    (void) m;

    return n_threads;
}


int
serve_output_token(struct serve_output *o, uint32_t token,
                   const struct sampler_logprob *logprobs, uint32_t n)
{
    o->n_reasoning += token + n + (n > 0 ? logprobs[n - 1].token : 0);

    return 0;
}


int
serve_score_wanted(const struct job *j)
{
    (void) j;

    return 0;
}


int
serve_score_tell(const struct serve *s, struct sampler *sampler,
                 struct job *j, uint32_t i_choice,
                 const struct model_segment *g, const float *logits)
{
    (void) s;
    (void) sampler;
    (void) j;
    (void) i_choice;
    (void) g;
    (void) logits;
    abort();
}


void
serve_pages_filled(struct serve *s, struct job *j, uint32_t k, uint32_t from,
                   uint32_t to)
{
    (void) s;
    (void) j;
    (void) k;
    (void) from;
    (void) to;
}


void
serve_pages_fork(struct serve *s, struct job *j)
{
    (void) s;
    (void) j;
    abort();
}


void
serve_job_flush(struct serve *s, struct job *j)
{
    (void) s;
    (void) j;
}


int
serve_job_choice_end(struct serve *s, struct job *j, uint32_t i_choice,
                     enum abi_reason reason, int stopped)
{
    (void) s;
    (void) j;
    (void) i_choice;
    (void) reason;
    (void) stopped;
    abort();
}


void
serve_job_error(struct serve *s, struct job *j,
                const struct serve_refusal *why)
{
    (void) s;
    (void) j;
    fprintf(stderr, "answer_threads: %s\n", why->err.text);
    abort();
}


struct err *
serve_refusal_set(struct serve_refusal *why, uint32_t code, const char *param)
{
    (void) code;
    (void) param;

    return &why->err;
}


/* -- steps ----------------------------------------------------------------- */

static float    rows[N_JOBS][N_VOCAB];
static uint32_t tokens[2][N_JOBS][N_STEPS_MAX + 2];


static void
fill_rows(uint32_t step)
{
    uint32_t x = step * 2654435761u + 1;

    for (uint32_t i = 0; i < N_JOBS; i++) {
        for (uint32_t k = 0; k < N_VOCAB; k++) {
            x = x * 1664525 + 1013904223;
            rows[i][k] = (float) (x >> 8) / (1 << 21);
        }
    }
}


/* One job of each kind: greedy, or drawn, with penalties or with logprobs. */
static void
job_begin(struct job *j, struct choice *c, uint32_t i, uint32_t *to)
{
    static uint32_t seen[N_JOBS][N_VOCAB];

    memset(j, 0, sizeof(*j));
    memset(c, 0, sizeof(*c));
    memset(seen[i], 0, sizeof(seen[i]));
    j->choices = c;
    j->state = JOB_RUNNING;
    j->ignore_eos = 1;
    j->n_new = N_STEPS_MAX + 1;
    j->n_top = i % 3;
    j->sched.n_seqs = j->sched.n_prompt = 1;
    j->sched.seqs[0] = (struct sched_seq) { .state = SCHED_LIVE, .n_tok = 1 };
    c->tokens = to;
    c->seen = i % 2 ? seen[i] : NULL;
    c->sampler = (struct sampler_params) {
        .temperature = i == 0 ? 0 : 1, .top_p = i < 4 ? 1 : 0.9f, .top_k = 50,
        .repetition = 1, .frequency = i % 2 ? 0.1f : 0, .seed = i
    };
}


static void
run(uint32_t n_steps, uint32_t (*to)[N_STEPS_MAX + 2])
{
    static struct job    jobs[N_JOBS];
    static struct choice choices[N_JOBS];
    struct model_segment segments[N_JOBS];
    struct run           runs[N_JOBS];
    struct serve_options o = { .max_seqs = N_JOBS };
    struct serve_model   m = { .n_text = N_VOCAB, .n_vocab = N_VOCAB };
    struct serve         s = { .o = &o, .model = &m };
    struct flight        f = {
        .segments = segments, .runs = runs, .n_segs = N_JOBS
    };
    struct model_result  got = { rows[0], NULL };

    if (serve_answer_begin(&s) != 0) {
        abort();
    }

    for (uint32_t i = 0; i < N_JOBS; i++) {
        job_begin(&jobs[i], &choices[i], i, to[i]);
    }

    for (uint32_t step = 0; step < n_steps; step++) {
        fill_rows(step);

        for (uint32_t i = 0; i < N_JOBS; i++) {
            runs[i] = (struct run) { .job = &jobs[i], .ends = 1 };
            segments[i] = (struct model_segment) { .n_tok = 1, .n_rows = 1 };
        }

        serve_answer(&s, &f, &got);
    }

    if (s.counts.output_tok != (uint64_t) n_steps * N_JOBS) {
        fprintf(stderr, "answer_threads: expected %u tokens, got %llu\n",
                n_steps * N_JOBS, (unsigned long long) s.counts.output_tok);
        exit(1);
    }

    serve_answer_end(&s);
}


int
main(int argc, char **argv)
{
    unsigned long n = argc > 1 ? strtoul(argv[1], NULL, 10) : 100;

    if (n == 0 || n > N_STEPS_MAX) {
        fprintf(stderr, "usage: answer_threads [STEPS 1..%d]\n", N_STEPS_MAX);
        return 2;
    }

    n_threads = 1;
    run((uint32_t) n, tokens[0]);
    n_threads = 4;
    run((uint32_t) n, tokens[1]);

    if (memcmp(tokens[0], tokens[1], sizeof(tokens[0])) != 0) {
        fprintf(stderr, "answer_threads: not the tokens of one thread\n");
        return 1;
    }

    return 0;
}
