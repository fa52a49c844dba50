/*
 * step.c - one step: the scheduler's plan, one forward call, and what
 * serve/answer.c makes of that.
 *
 * Comes in: the jobs.  Goes out: rows of logits.  Must not know workers.
 */
#include <stdlib.h>
#include <string.h>

#include "serve/serve.h"

/* Prompts are cut so that they make a step longer by --step-ms at the most:
 * streams go on and cancels are heard.  Without streams there is less of a
 * hurry. */
#define STEP_IDLE_TIMES     4

/* Of that time it is expected to take so much: every second step takes longer
 * than expected. */
#define STEP_AIM            0.85


int
serve_step_begin(struct serve *s, struct err *e)
{
    size_t n_jobs = (size_t) s->o->max_seqs + s->o->max_queue;

    s->kv = kv_create(model_info(s->model->model)->n_pages,
                      s->o->prefix_cache);
    s->jobs = calloc(n_jobs, sizeof(*s->jobs));
    s->plan = calloc(n_jobs, sizeof(*s->plan));
    s->segments = calloc(s->o->max_seqs, sizeof(*s->segments));
    s->runs = calloc(s->o->max_seqs, sizeof(*s->runs));
    s->how = calloc(s->o->max_seqs, sizeof(*s->how));

    if (s->kv == NULL || s->jobs == NULL || s->plan == NULL
        || s->segments == NULL || s->runs == NULL || s->how == NULL
        || serve_answer_begin(s) != 0)
    {
        return err_set(e, "no memory for %zu jobs", n_jobs);
    }

    s->limits.page_tok = MODEL_PAGE_TOK;
    s->limits.n_pages = kv_pages(s->kv);
    s->limits.n_seqs = s->o->max_seqs;
    s->limits.n_batch_tok = s->o->max_batch_tok;

    return 0;
}


void
serve_step_end(struct serve *s)
{
    serve_answer_end(s);
    free(s->jobs);
    free(s->plan);
    free(s->segments);
    free(s->runs);
    free(s->how);

    if (s->kv != NULL) {
        kv_free(s->kv);
    }
}


static int
decoding(const struct serve *s)
{
    for (uint32_t i = 0; i < s->n_jobs; i++) {
        if (s->jobs[i]->state == JOB_RUNNING && s->jobs[i]->first_us != 0
            && !s->jobs[i]->sched.paused)
        {
            return 1;
        }
    }

    return 0;
}


/* Where the furthest prompt that is to be read may go on. */
static double
furthest(const struct serve *s)
{
    uint32_t most = 0;

    for (uint32_t i = 0; i < s->n_jobs; i++) {
        const struct sched_job *j = &s->jobs[i]->sched;
        const struct sched_seq *q = &j->seqs[sched_job_leader(j)];

        /* The cache may have all of a prompt that waits. */
        uint32_t at = j->running ? q->n_done : q->n_tok;

        most = !j->paused && q->n_tok - q->n_done > 1 && at > most ? at : most;
    }

    return most;
}


/* What is in the next step before any prompt: a token of each stream. */
static struct cost_step
decodes(const struct serve *s)
{
    struct cost_step c = { 0, 0, 0 };

    for (uint32_t i = 0; i < s->n_jobs; i++) {
        const struct sched_job *j = &s->jobs[i]->sched;

        for (uint32_t k = 0; k < j->n_seqs && j->running && !j->paused; k++) {
            const struct sched_seq *q = &j->seqs[k];

            if (q->state == SCHED_LIVE && q->n_tok - q->n_done == 1) {
                c.n_tok++;
                c.back += q->n_tok;
            }
        }
    }

    return c;
}


/* Tokens of prompts in the next step.  What a job says does not depend on it
 * (D6). */
static uint32_t
chunk(const struct serve *s)
{
    struct cost_step beside = decodes(s);
    double us = STEP_AIM * (double) s->o->step_us
                * (decoding(s) ? 1 : STEP_IDLE_TIMES);

    return cost_chunk(&s->cost, &beside, furthest(s), us, s->o->max_batch_tok);
}


static void
measure(struct serve *s, int n_segs, uint64_t us)
{
    struct cost_step c = { 0, 0, (double) us };
    int              has_prompt = 0;

    for (int i = 0; i < n_segs; i++) {
        const struct model_segment *g = &s->segments[i];

        has_prompt |= g->n_tok > 1;
        c.n_tok += g->n_tok;
        c.back += g->n_tok * (g->pos + g->n_tok * 0.5);
    }

    cost_learn(&s->cost, &c, has_prompt);
}


/* Plans the step and admits whom it lets in. */
static void
plan(struct serve *s)
{
    enum sched_answer answer;
    uint32_t          i;

    s->limits.n_chunk_tok = chunk(s);

    do {
        s->limits.n_free = kv_pages_free(s->kv);
        answer = sched_plan(&s->limits, s->plan, s->n_jobs, &i);

        if (answer == SCHED_ASK) {
            serve_pages_ask(s, s->jobs[i]);
        } else if (answer == SCHED_PREEMPT) {
            serve_pages_preempt(s, s->jobs[i]);
        }
    } while (answer != SCHED_PLANNED);

    serve_pages_follow(s);
    serve_job_count(s);

    for (i = 0; i < s->n_jobs;) {
        i += !s->plan[i]->running || s->jobs[i]->state == JOB_RUNNING
             || serve_job_admitted(s, s->jobs[i]) == 0;
    }
}


/* The batch; how many segments. */
static int
gather(struct serve *s)
{
    uint32_t n_score = SERVE_SCORE_ROWS;
    int      n = 0;

    for (uint32_t i = 0; i < s->n_jobs; i++) {
        struct job *j = s->jobs[i];

        for (uint32_t k = 0; k < j->sched.n_seqs; k++) {
            const struct sched_seq *q = &j->sched.seqs[k];

            uint32_t                n_run = q->n_run;
            uint32_t                n_rows = q->n_done + n_run == q->n_tok;

            if (serve_score_wanted(j)) {
                n_run = n_rows = n_run < n_score ? n_run : n_score;
                n_score -= n_run;
            }

            if (n_run == 0) {
                continue;
            }

            s->runs[n] = (struct run) { j, k, NULL, NULL };
            s->segments[n++] = (struct model_segment) {
                .tokens = j->choices[k].tokens + q->n_done,
                .pages = j->choices[k].pages,
                .n_tok = (int) n_run,
                .pos = (int) q->n_done,
                .n_rows = (int) n_rows
            };
        }
    }

    return n;
}


/* How the device is to choose the token of each segment that has a row: in
 * s->how.  0: it cannot, since somebody wants to see logits, or has penalties,
 * or several choices begin with one row. */
static int
plan_samples(struct serve *s, int n_segs)
{
    uint32_t n = 0;

    for (int i = 0; i < n_segs; i++) {
        const struct job    *j = s->runs[i].job;
        const struct choice *c = &j->choices[s->runs[i].i_choice];

        if (serve_score_wanted(j) || j->n_top > 0
            || (j->first_us == 0 && j->sched.n_seqs > 1)
            || s->segments[i].n_rows > 1)
        {
            return 0;
        }

        if (s->segments[i].n_rows == 1
            && sampler_plan(&c->sampler, c->n_output, &s->how[n++]) != 0)
        {
            return 0;
        }
    }

    return model_samples(s->model->model);
}


int
serve_step(struct serve *s)
{
    serve_job_deadlines(s);
    plan(s);

    int n = gather(s);

    if (n == 0) {
        return 0;
    }

    uint64_t        start = clock_us();
    float          *logits = NULL;
    const uint32_t *tokens = NULL;

    if (plan_samples(s, n)) {
        model_forward_sample(s->model->model, s->segments, n, s->how,
                             s->model->n_text, &tokens);
    } else {
        model_forward(s->model->model, s->segments, n, &logits);
    }

    s->counts.steps++;
    serve_answer(s, n, logits, tokens);
    measure(s, n, clock_us() - start);

    return 1;
}
