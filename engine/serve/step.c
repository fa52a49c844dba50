/*
 * step.c - one step: the scheduler's plan, one forward call, one token
 * for every sequence that has all of its tokens in the pages.
 *
 * Comes in: the jobs.  Goes out: their tokens, as events.  Must not know
 * workers.
 */
#include <stdlib.h>
#include <string.h>

#include "serve/serve.h"

/* Prompts are cut so that a step takes --step-ms, streams go on and cancels are
 * heard.  Without streams there is less of a hurry. */
#define STEP_IDLE_TIMES     4
#define STEP_TOK_MIN        16
#define STEP_TOK_MEASURED   16      /* smaller steps say little about prompts */


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
        || sampler_init(&s->sampler, s->model->n_text) != 0)
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
    sampler_free(&s->sampler);
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


/* Tokens of prompts in the next step.  A token costs at most in proportion to
 * its position, which is taken for true: where that is too much, the step that
 * follows has measured it.  What a job says does not depend on it (D6). */
static uint32_t
chunk(const struct serve *s)
{
    double us = (double) s->o->step_us * (decoding(s) ? 1 : STEP_IDLE_TIMES);
    double most = s->o->max_batch_tok;
    double n = s->us_per_tok <= 0 ? 0 : us / s->us_per_tok;

    n = n < most ? n : most;

    double later = n <= 0 ? 1 : (furthest(s) + n / 2) / s->measured_pos;

    if (later > 1) {
        double slow = us / (s->us_per_tok * later);

        n = n < slow ? n : slow;
    }

    return n > STEP_TOK_MIN ? (uint32_t) n
           : STEP_TOK_MIN < most ? STEP_TOK_MIN : (uint32_t) most;
}


/* A slower step counts at once, a faster one bit by bit. */
static void
measure(struct serve *s, int n_segs, uint32_t n_tok, uint64_t us)
{
    double sum = 0;

    if (n_tok < STEP_TOK_MEASURED) {
        return;
    }

    for (int i = 0; i < n_segs; i++) {
        const struct model_segment *g = &s->segments[i];

        sum += g->n_tok * (g->pos + g->n_tok * 0.5);
    }

    double now = (double) us / n_tok;
    double pos = sum / n_tok;
    double then = pos < s->measured_pos
                  ? s->us_per_tok * pos / s->measured_pos : s->us_per_tok;

    s->us_per_tok = now > then ? now : 0.75 * then + 0.25 * now;
    s->measured_pos = pos;
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


/* The batch; how many segments, and in *n_tok their tokens. */
static int
gather(struct serve *s, uint32_t *n_tok)
{
    uint32_t n_score = SERVE_SCORE_ROWS;
    int      n = 0;

    *n_tok = 0;

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

            s->runs[n] = (struct run) { j, k };
            s->segments[n++] = (struct model_segment) {
                .tokens = j->choices[k].tokens + q->n_done,
                .pages = j->choices[k].pages,
                .n_tok = (int) n_run,
                .pos = (int) q->n_done,
                .n_rows = (int) n_rows
            };
            *n_tok += n_run;
        }
    }

    return n;
}


static int
is_eos(const struct serve_model *m, uint32_t token)
{
    for (uint32_t i = 0; i < m->n_eos; i++) {
        if (m->eos[i] == token) {
            return 1;
        }
    }

    return 0;
}


static int
fail(struct serve *s, struct job *j, const char *text)
{
    struct serve_refusal why = { .code = 0 };

    err_set(serve_refusal_set(&why, ABI_E_INTERNAL, ""), "%s", text);
    log_line(LOG_LEVEL_ERROR, "a request ended: %s", text);
    serve_job_error(s, j, &why);

    return -1;
}


/* What the forward call gave for a token: its logits, or where the device has
 * chosen, NULL and the token. */
struct result {
    const float *row;
    uint32_t     token;
};


/* One more token of one choice.  0; -1: its job is gone, by an error. */
static int
say(struct serve *s, struct job *j, uint32_t k, const struct result *r)
{
    struct choice         *c = &j->choices[k];
    struct sampler_logprob logprobs[1 + ABI_TOP_LOGPROBS_MAX];
    uint32_t               token = r->token, n = 0;

    if (r->row != NULL ? sampler_next(&s->sampler, &c->sampler, c->seen,
                                      r->row, c->n_output, &token) != 0
                       : token == BACKEND_NO_TOKEN)
    {
        return fail(s, j, "the model's output is not finite");
    }

    c->tokens[j->sched.seqs[k].n_tok++] = token;
    c->n_output++;
    j->n_output++;
    s->counts.output_tok++;

    if (c->seen != NULL) {
        c->seen[token]++;
    }

    if (!j->ignore_eos && is_eos(s->model, token)) {
        return serve_job_choice_end(s, j, k, ABI_STOP, 0);
    }

    if (j->n_top > 0) {
        n = sampler_logprobs(&s->sampler, r->row, token, j->n_top - 1,
                             logprobs);
    }

    int rc = serve_output_token(&c->output, token, logprobs, n);

    if (rc < 0) {
        return fail(s, j, "no memory for the answer");
    }

    if (rc == 0 && c->n_output < j->n_new) {
        return 0;
    }

    return serve_job_choice_end(s, j, k, rc == 1 ? ABI_STOP : ABI_LENGTH, rc);
}


/* The tokens that another engine has said: said again, but not sent, since the
 * output leaves out what is known.  They are then missing in the pages, like
 * a prompt's.  0; -1: the job is gone. */
static int
replay(struct serve *s, struct job *j, uint32_t k)
{
    struct choice *c = &j->choices[k];

    while (c->n_output < c->n_resume) {
        uint32_t token = c->tokens[j->sched.seqs[k].n_tok++];

        c->n_output++;
        j->n_output++;

        if (c->seen != NULL) {
            c->seen[token]++;
        }

        int rc = serve_output_token(&c->output, token, NULL, 0);

        if (rc < 0) {
            return fail(s, j, "no memory for the answer");
        }

        if (rc == 1) {
            return serve_job_choice_end(s, j, k, ABI_STOP, 1);
        }
    }

    if (c->reason != 0) {
        return serve_job_choice_end(s, j, k, c->reason, 0);
    }

    return c->n_output < j->n_new ? 0
           : serve_job_choice_end(s, j, k, ABI_LENGTH, 0);
}


/* The result belongs to this choice; that of a whole prompt to all of them. */
static int
say_all(struct serve *s, struct job *j, uint32_t k, const struct result *r)
{
    if (j->first_us != 0) {
        return say(s, j, k, r);
    }

    uint32_t n = j->sched.n_seqs;

    j->first_us = clock_us();

    for (uint32_t i = 0; i < n; i++) {
        int known = j->choices[i].n_resume > 0 || j->choices[i].reason != 0;

        if ((known ? replay(s, j, i) : say(s, j, i, r)) != 0) {
            return -1;
        }
    }

    return 0;
}


/* The rows of one segment, or its token.  0; -1: its job is gone. */
static int
answer_one(struct serve *s, int i, const float *rows, const uint32_t *token)
{
    const struct model_segment *g = &s->segments[i];
    struct job                 *j = s->runs[i].job;
    uint32_t                    k = s->runs[i].i_choice;
    const struct sched_seq     *q = &j->sched.seqs[k];

    if (g->n_rows == 0) {
        return 0;
    }

    if (serve_score_wanted(j) && serve_score_tell(s, j, k, g, rows) != 0) {
        return fail(s, j, "the prompt's log-probabilities: no memory, or the "
                    "model's output is not finite");
    }

    struct result r = {
        rows == NULL ? NULL : rows + (size_t) (g->n_rows - 1)
                                     * s->model->n_vocab,
        token == NULL ? 0 : *token
    };

    return q->n_done < q->n_tok ? 0 : say_all(s, j, k, &r);
}


/* What the forward call has computed, logits or tokens, to events. */
static void
answer(struct serve *s, int n_segs, const float *logits,
       const uint32_t *tokens)
{
    for (int i = 0; i < n_segs; i++) {
        struct job       *j = s->runs[i].job;
        struct sched_seq *q = &j->sched.seqs[s->runs[i].i_choice];
        uint32_t          n_before = q->n_done;

        q->n_done += (uint32_t) s->segments[i].n_tok;
        serve_pages_filled(s, j, s->runs[i].i_choice, n_before);

        if (sched_job_forks(&j->sched)) {
            serve_pages_fork(s, j);
        }
    }

    for (int i = 0; i < n_segs; i++) {
        struct job *j = s->runs[i].job;
        int         last = i + 1 == n_segs || s->runs[i + 1].job != j;
        int         gone = 0;

        if (j != NULL) {
            gone = answer_one(s, i, logits, tokens) != 0;
        }

        if (tokens != NULL) {
            tokens += s->segments[i].n_rows;
        } else {
            logits += (size_t) s->segments[i].n_rows * s->model->n_vocab;
        }

        for (int k = i + 1; gone && k < n_segs && s->runs[k].job == j; k++) {
            s->runs[k].job = NULL;
        }

        if (j != NULL && last && !gone) {
            serve_job_flush(s, j);
        }
    }
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
    uint32_t n_tok;

    serve_job_deadlines(s);
    plan(s);

    int n = gather(s, &n_tok);

    if (n == 0) {
        return 0;
    }

    uint64_t start = clock_us();
    float          *logits = NULL;
    const uint32_t *tokens = NULL;

    if (plan_samples(s, n)) {
        model_forward_sample(s->model->model, s->segments, n, s->how,
                             s->model->n_text, &tokens);
    } else {
        model_forward(s->model->model, s->segments, n, &logits);
    }

    measure(s, n, n_tok, clock_us() - start);
    s->counts.steps++;
    answer(s, n, logits, tokens);

    return 1;
}
