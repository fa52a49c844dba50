/*
 * step.c - one step: the scheduler's plan, one forward call, and what
 * serve/answer.c makes of that.
 *
 * Where logits stay on the device, and it chooses the tokens, a step is given
 * to it before those of the last one are read.  Of these it is known where they
 * will be, and that they will be there: so the scheduler, and all else, takes
 * them for known, and only whoever needs the number waits.  A choice that turns
 * out to have ended is in that step for nothing; what it computes there is left
 * out (serve/answer.c), and in its pages, which others may have by then, the
 * device writes before they do.
 *
 * Where pages have to be taken away, choices begin, or the last step is one of
 * logits, the next one waits.
 *
 * Comes in: the jobs.  Goes out: rows of logits, or tokens.  Must not know
 * workers.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "serve/serve.h"

/* Prompts are cut so that they make a step longer by --step-ms at the most:
 * streams go on and cancels are heard.  Without streams there is less of a
 * hurry. */
#define STEP_IDLE_TIMES     4

/* Of that time it is expected to take so much: every second step takes longer
 * than expected, and some a quarter (t/unit/serve/cost.c). */
#define STEP_AIM            0.8


static int
flight_begin(const struct serve *s, struct flight *f)
{
    f->segments = calloc(s->o->max_seqs, sizeof(*f->segments));
    f->runs = calloc(s->o->max_seqs, sizeof(*f->runs));

    return f->segments == NULL || f->runs == NULL ? -1 : 0;
}


int
serve_step_begin(struct serve *s, struct err *e)
{
    size_t n_jobs = (size_t) s->o->max_seqs + s->o->max_queue;

    s->kv = kv_create(model_info(s->model->model)->n_pages,
                      s->o->prefix_cache);
    s->jobs = calloc(n_jobs, sizeof(*s->jobs));
    s->plan = calloc(n_jobs, sizeof(*s->plan));
    s->how = calloc(s->o->max_seqs, sizeof(*s->how));

    if (s->kv == NULL || s->jobs == NULL || s->plan == NULL
        || flight_begin(s, &s->flights[0]) != 0
        || flight_begin(s, &s->flights[1]) != 0 || s->how == NULL
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
    free(s->how);

    for (int i = 0; i < 2; i++) {
        free(s->flights[i].segments);
        free(s->flights[i].runs);
    }

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


/* What the step is, for what it will have taken to be learnt. */
static void
weigh(struct flight *f)
{
    f->cost = (struct cost_step) { 0, 0, 0 };
    f->has_prompt = 0;

    for (int i = 0; i < f->n_segs; i++) {
        const struct model_segment *g = &f->segments[i];

        f->has_prompt |= g->n_tok > 1;
        f->cost.n_tok += g->n_tok;
        f->cost.back += g->n_tok * (g->pos + g->n_tok * 0.5);
    }
}


/* Plans the step and admits whom it lets in.  0; -1: somebody would have to
 * give pages up, but a step is under way. */
static int
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
            if (s->n_launched != s->n_answered) {
                return -1;
            }

            serve_pages_preempt(s, s->jobs[i]);
        }
    } while (answer != SCHED_PLANNED);

    serve_pages_follow(s);
    serve_job_count(s);

    for (i = 0; i < s->n_jobs;) {
        i += !s->plan[i]->running || s->jobs[i]->state == JOB_RUNNING
             || serve_job_admitted(s, s->jobs[i]) == 0;
    }

    return 0;
}


/* The batch, which counts as computed from here on. */
static void
gather(struct serve *s, struct flight *f)
{
    uint32_t n_score = SERVE_SCORE_ROWS;
    int      n = 0;

    for (uint32_t i = 0; i < s->n_jobs; i++) {
        struct job *j = s->jobs[i];

        for (uint32_t k = 0; k < j->sched.n_seqs; k++) {
            struct sched_seq       *q = &j->sched.seqs[k];
            const struct choice    *c = &j->choices[k];
            uint32_t                n_run = q->n_run;
            uint32_t                n_rows = q->n_done + n_run == q->n_tok;

            if (serve_score_wanted(j)) {
                n_run = n_rows = n_run < n_score ? n_run : n_score;
                n_score -= n_run;
            }

            if (n_run == 0) {
                continue;
            }

            assert(c->chosen == 0 || q->n_done + 1 == q->n_tok);
            f->segments[n] = (struct model_segment) {
                .tokens = c->tokens + q->n_done,
                .pages = c->pages,
                .n_tok = (int) n_run,
                .pos = (int) q->n_done,
                .n_rows = (int) n_rows,
                .chosen = c->chosen
            };
            q->n_done += n_run;
            f->runs[n++] = (struct run) {
                .job = j, .i_choice = k, .ends = q->n_done == q->n_tok
            };
        }
    }

    f->n_segs = n;
}


/* How the device is to choose the token of each segment that has a row: in
 * s->how.  0: it cannot, since somebody wants to see logits, or has penalties,
 * or several choices begin with one row. */
static int
plan_samples(struct serve *s, const struct flight *f)
{
    uint32_t n = 0;

    for (int i = 0; i < f->n_segs; i++) {
        const struct job       *j = f->runs[i].job;
        uint32_t                k = f->runs[i].i_choice;
        const struct sched_seq *q = &j->sched.seqs[k];

        if (serve_score_wanted(j) || j->n_top > 0
            || (j->first_us == 0 && j->sched.n_seqs > 1)
            || f->segments[i].n_rows > 1)
        {
            return 0;
        }

        if (f->segments[i].n_rows == 1
            && sampler_plan(&j->choices[k].sampler,
                            q->n_tok - j->sched.n_prompt, &s->how[n++]) != 0)
        {
            return 0;
        }
    }

    return model_samples(s->model->model);
}


static void
launch(struct serve *s)
{
    struct flight *f = &s->flights[s->n_launched % 2];

    if (plan(s) != 0) {
        return;
    }

    gather(s, f);

    if (f->n_segs == 0) {
        return;
    }

    weigh(f);
    f->start_us = clock_us();
    f->samples = plan_samples(s, f);
    model_launch(s->model->model, f->segments, f->n_segs,
                 f->samples ? s->how : NULL, s->model->n_text);
    s->n_launched++;
    s->counts.steps++;
}


static void
answer(struct serve *s)
{
    struct flight      *f = &s->flights[s->n_answered % 2];
    struct model_result got = model_collect(s->model->model);
    uint64_t            since = f->start_us > s->answered_us ? f->start_us
                                                             : s->answered_us;

    s->n_answered++;
    serve_answer(s, f, &got);
    s->answered_us = clock_us();
    f->cost.us = (double) (s->answered_us - since);
    cost_learn(&s->cost, &f->cost, f->has_prompt);
}


/* Will the choice go on for sure, but for what it says? */
static int
goes_on(const struct job *j, uint32_t k)
{
    const struct choice *c = &j->choices[k];

    /* After the prompt comes what another engine has said. */
    int known = j->first_us == 0 && (c->n_resume > 0 || c->reason != 0);

    return !known && c->n_output + 1 < j->n_new;
}


/* Takes the tokens of the step under way for known.  0; -1: they are to be seen
 * first. */
static int
foresee(struct serve *s)
{
    const struct flight *f = &s->flights[s->n_answered % 2];
    uint32_t             n_rows = 0;

    for (int i = 0; i < f->n_segs; i++) {
        const struct job *j = f->runs[i].job;

        if (!f->samples || (j != NULL && sched_job_forks(&j->sched))) {
            return -1;
        }
    }

    for (int i = 0; i < f->n_segs; i++) {
        struct job *j = f->runs[i].job;
        uint32_t    k = f->runs[i].i_choice;

        n_rows += (uint32_t) f->segments[i].n_rows;

        if (j != NULL && f->runs[i].ends
            && j->sched.seqs[k].state == SCHED_LIVE && goes_on(j, k))
        {
            j->choices[k].chosen = n_rows;
            j->sched.seqs[k].n_tok++;
        }
    }

    return 0;
}


int
serve_step(struct serve *s)
{
    int under_way = s->n_launched != s->n_answered;

    serve_job_deadlines(s);

    if (!under_way || foresee(s) == 0) {
        launch(s);
    }

    /* What has been launched now may wait for the next turn, if it does not
     * keep us. */
    if (under_way || (s->n_launched != s->n_answered
                      && !s->flights[s->n_answered % 2].samples))
    {
        answer(s);
        return 1;
    }

    return s->n_launched != s->n_answered;
}


void
serve_step_without(struct serve *s, const struct job *j)
{
    for (int i = 0; i < 2; i++) {
        for (int k = 0; k < s->flights[i].n_segs; k++) {
            if (s->flights[i].runs[k].job == j) {
                s->flights[i].runs[k].job = NULL;
            }
        }
    }
}
