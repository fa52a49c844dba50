/*
 * answer.c - rows of logits to tokens, and tokens to events.
 *
 * What a row becomes is a job's own affair: so the jobs of a step are shared
 * among the model's threads, which have nothing else to do until the next step,
 * and what they have in common (counts, pages, the list of jobs, rings) is
 * settled in order afterwards.
 *
 * Comes in: what a forward call has computed.  Goes out: frames in outboxes,
 * and ends of choices.  Must not know workers.
 */
#include <stdlib.h>

#include "backend.h"
#include "serve/serve.h"


int
serve_answer_begin(struct serve *s)
{
    uint32_t n = (uint32_t) model_threads(s->model->model);

    s->samplers = calloc(n, sizeof(*s->samplers));
    s->firsts = calloc((size_t) s->o->max_seqs + 1, sizeof(*s->firsts));

    if (s->samplers == NULL || s->firsts == NULL) {
        return -1;
    }

    for (; s->n_samplers < n; s->n_samplers++) {
        if (sampler_init(&s->samplers[s->n_samplers], s->model->n_text) != 0) {
            return -1;
        }
    }

    return 0;
}


void
serve_answer_end(struct serve *s)
{
    for (uint32_t i = 0; i < s->n_samplers; i++) {
        sampler_free(&s->samplers[i]);
    }

    free(s->samplers);
    free(s->firsts);
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


/* -- by one of the threads: of a job alone --------------------------------- */

static int
fail(struct job *j, const char *why)
{
    j->failed = why;

    return -1;
}


static void
over(struct choice *c, enum abi_reason reason, int stopped)
{
    c->over = (uint8_t) reason;
    c->stopped = (uint8_t) stopped;
}


/* What the forward call gave for a token: its logits, or where the device has
 * chosen, NULL and the token. */
struct result {
    const float *row;
    uint32_t     token;
};


/* One more token of one choice. */
static int
say(const struct serve *s, struct sampler *sampler, struct job *j, uint32_t k,
    const struct result *r)
{
    struct choice         *c = &j->choices[k];
    struct sampler_logprob logprobs[1 + ABI_TOP_LOGPROBS_MAX];
    uint32_t               token = r->token, n = 0;

    if (j->n_new == 0) {        /* the prompt alone was to be read */
        over(c, ABI_LENGTH, 0);
        return 0;
    }

    if (r->row != NULL ? sampler_next(sampler, &c->sampler, c->seen, r->row,
                                      c->n_output, &token) != 0
                       : token == BACKEND_NO_TOKEN)
    {
        return fail(j, "the model's output is not finite");
    }

    c->tokens[j->sched.n_prompt + c->n_output++] = token;
    j->sched.seqs[k].n_tok = j->sched.n_prompt + c->n_output;
    j->n_output++;
    j->n_drawn++;

    if (c->seen != NULL) {
        c->seen[token]++;
    }

    if (!j->ignore_eos && is_eos(s->model, token)) {
        over(c, ABI_STOP, 0);
        return 0;
    }

    if (j->n_top > 0) {
        n = sampler_logprobs(sampler, r->row, token, j->n_top - 1,
                             logprobs);
    }

    int rc = serve_output_token(&c->output, token, logprobs, n);

    if (rc < 0) {
        return fail(j, "no memory for the answer");
    }

    if (rc == 1) {
        over(c, ABI_STOP, 1);
    } else if (c->n_output >= j->n_new) {
        over(c, ABI_LENGTH, 0);
    }

    return 0;
}


/* The tokens that another engine has said: said again, but not sent, since the
 * output leaves out what is known.  They are then missing in the pages, like
 * a prompt's. */
static int
replay(struct job *j, uint32_t k)
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
            return fail(j, "no memory for the answer");
        }

        if (rc == 1) {
            over(c, ABI_STOP, 1);
            return 0;
        }
    }

    if (c->reason != 0) {
        over(c, (enum abi_reason) c->reason, 0);
    } else if (c->n_output >= j->n_new) {
        over(c, ABI_LENGTH, 0);
    }

    return 0;
}


/* The result belongs to this choice; that of a whole prompt to all of them. */
static int
say_all(const struct serve *s, struct sampler *sampler, struct job *j,
        uint32_t k, const struct result *r)
{
    if (j->first_us != 0) {
        return say(s, sampler, j, k, r);
    }

    uint32_t n = j->sched.n_seqs;

    j->first_us = clock_us();

    for (uint32_t i = 0; i < n; i++) {
        int known = j->choices[i].n_resume > 0 || j->choices[i].reason != 0;

        if ((known ? replay(j, i) : say(s, sampler, j, i, r)) != 0) {
            return -1;
        }
    }

    return 0;
}


/* The rows of one segment, or its token. */
static int
answer_run(const struct serve *s, struct sampler *sampler,
           const struct model_segment *g, const struct run *run)
{
    struct job  *j = run->job;
    uint32_t     k = run->i_choice;
    const float *rows = run->rows;

    if (g->n_rows == 0) {
        return 0;
    }

    if (serve_score_wanted(j)
        && serve_score_tell(s, sampler, j, k, g, rows) != 0)
    {
        return fail(j, "the prompt's log-probabilities: no memory, or the "
                    "model's output is not finite");
    }

    struct result r = {
        rows == NULL ? NULL : rows + (size_t) (g->n_rows - 1)
                                     * s->model->n_vocab,
        rows != NULL ? 0 : run->tokens[g->n_rows - 1]
    };

    return run->ends ? say_all(s, sampler, j, k, &r) : 0;
}


struct answer {
    const struct serve  *s;
    const struct flight *f;
};


/* All segments of the i-th job of the step. */
static void
answer_job(void *ctx, uint32_t i, int thread)
{
    const struct answer *a = ctx;
    const struct serve  *s = a->s;

    for (int k = s->firsts[i]; k < s->firsts[i + 1]; k++) {
        if (answer_run(s, &s->samplers[thread], &a->f->segments[k],
                       &a->f->runs[k]) != 0)
        {
            return;
        }
    }
}


/* -- by the loop: what jobs share ------------------------------------------ */

/* Gives each run what is its own, and leaves out those that nobody waits for
 * any more: their choice has ended while the step was under way. */
static void
hand_out(const struct serve *s, struct flight *f,
         const struct model_result *got)
{
    const float    *logits = got->logits;
    const uint32_t *tokens = got->tokens;
    int             n = 0;

    for (int i = 0; i < f->n_segs; i++) {
        struct run  r = f->runs[i];
        size_t      n_rows = (size_t) f->segments[i].n_rows;

        r.rows = logits;
        r.tokens = tokens;
        logits += logits == NULL ? 0 : n_rows * s->model->n_vocab;
        tokens += tokens == NULL ? 0 : n_rows;

        if (r.job != NULL && r.job->sched.seqs[r.i_choice].state == SCHED_LIVE)
        {
            f->segments[n] = f->segments[i];
            f->runs[n++] = r;
        }
    }

    f->n_segs = n;
}


/* Tokens have come into the pages. */
static void
fill(struct serve *s, const struct flight *f)
{
    for (int i = 0; i < f->n_segs; i++) {
        const struct model_segment *g = &f->segments[i];
        struct job                 *j = f->runs[i].job;
        uint32_t                    k = f->runs[i].i_choice;

        j->choices[k].chosen = 0;
        serve_pages_filled(s, j, k, (uint32_t) g->pos,
                           (uint32_t) (g->pos + g->n_tok));

        if (sched_job_forks(&j->sched)) {
            serve_pages_fork(s, j);
        }
    }
}


/* Ends what is over, and sends what was said. */
static void
settle(struct serve *s, struct job *j)
{
    s->counts.output_tok += j->n_drawn;
    j->n_drawn = 0;

    if (j->failed != NULL) {
        struct serve_refusal why = { .code = 0 };

        err_set(serve_refusal_set(&why, ABI_E_INTERNAL, ""), "%s", j->failed);
        serve_job_error(s, j, &why);
        return;
    }

    for (uint32_t k = 0; k < j->sched.n_seqs && j->state == JOB_RUNNING; k++) {
        struct choice *c = &j->choices[k];

        if (j->sched.seqs[k].state != SCHED_OVER && c->over != 0
            && serve_job_choice_end(s, j, k, (enum abi_reason) c->over,
                                    c->stopped) != 0)
        {
            return;
        }
    }

    serve_job_flush(s, j);
}


void
serve_answer(struct serve *s, struct flight *f,
             const struct model_result *got)
{
    struct answer a = { s, f };
    uint32_t      n = 0;

    hand_out(s, f, got);
    fill(s, f);

    for (int i = 0; i < f->n_segs; i++) {
        if (i == 0 || f->runs[i].job != f->runs[i - 1].job) {
            s->firsts[n++] = i;
        }
    }

    s->firsts[n] = f->n_segs;

    /* One alone does not wake the others. */
    if (n == 1) {
        answer_job(&a, 0, 0);
    } else {
        model_each(s->model->model, n, answer_job, &a);
    }

    for (uint32_t i = 0; i < n; i++) {
        settle(s, f->runs[s->firsts[i]].job);
    }
}
