/*
 * sched.c - see sched.h.
 */
#include "sched.h"

#include <assert.h>
#include <string.h>


static uint32_t
pages(uint32_t n_tok, const struct sched_limits *l)
{
    return (n_tok + l->page_tok - 1) / l->page_tok;
}


/* Pages that an open sequence has at its longest, without the common ones. */
static uint32_t
pages_at_most(const struct sched_job *j, const struct sched_seq *s,
              const struct sched_limits *l)
{
    uint32_t n_common = s->state == SCHED_FORK ? j->n_prompt / l->page_tok
                                               : j->n_common;

    return pages(s->n_max, l) - n_common;
}


/* Pages that the job may still take. */
static uint32_t
need(const struct sched_job *j, const struct sched_limits *l)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < j->n_seqs; i++) {
        const struct sched_seq *s = &j->seqs[i];

        if (s->state != SCHED_OVER) {
            n += pages_at_most(j, s, l) - s->n_held;
        }
    }

    return n;
}


static uint32_t
held(const struct sched_job *j)
{
    uint32_t n = j->n_common;

    for (uint32_t i = 0; i < j->n_seqs; i++) {
        n += j->seqs[i].n_held;
    }

    return n;
}


uint64_t
sched_job_begin(struct sched_job *j, const struct sched_limits *l,
                uint32_t n_prompt, uint32_t n_new, uint32_t n_seqs)
{
    assert(n_prompt >= 1 && n_new >= 1);
    assert(n_seqs >= 1 && n_seqs <= SCHED_SEQS_MAX);

    memset(j, 0, sizeof(*j));
    j->n_seqs = n_seqs;
    j->n_prompt = n_prompt;

    uint64_t n = 0;

    for (uint32_t i = 0; i < n_seqs; i++) {
        struct sched_seq *s = &j->seqs[i];

        s->state = i == 0 ? SCHED_LIVE : SCHED_FORK;
        s->n_tok = n_prompt;
        s->n_max = n_prompt + n_new - 1;    /* the last token is only said */
        n += pages_at_most(j, s, l);
    }

    return n;
}


void
sched_job_fork(struct sched_job *j, const struct sched_limits *l)
{
    struct sched_seq *first = &j->seqs[0];

    assert(first->state == SCHED_LIVE && first->n_done == j->n_prompt);

    j->n_common = j->n_prompt / l->page_tok;
    first->n_held -= j->n_common;

    for (uint32_t i = 1; i < j->n_seqs; i++) {
        j->seqs[i].state = SCHED_LIVE;
        j->seqs[i].n_done = j->n_common * l->page_tok;
    }
}


void
sched_seq_end(struct sched_job *j, uint32_t i_seq)
{
    j->seqs[i_seq].state = SCHED_OVER;
    j->seqs[i_seq].n_held = 0;

    if (sched_job_open(j) == 0) {
        j->n_common = 0;
    }
}


uint32_t
sched_job_open(const struct sched_job *j)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < j->n_seqs; i++) {
        n += j->seqs[i].state != SCHED_OVER;
    }

    return n;
}


/* Could all n running jobs, oldest first, run to their longest? */
static int
safe(struct sched_job **jobs, uint32_t n, uint32_t n_free,
     const struct sched_limits *l)
{
    for (uint32_t i = 0; i < n; i++) {
        if (need(jobs[i], l) > n_free) {
            return 0;
        }

        n_free += held(jobs[i]);
    }

    return 1;
}


/* Gives a sequence the pages for n_tok tokens, if that is safe. */
static int
grant(struct sched_seq *s, uint32_t n_common, uint32_t n_tok,
      struct sched_limits *l, struct sched_job **jobs, uint32_t n)
{
    uint32_t has = n_common + s->n_held;
    uint32_t wants = pages(n_tok, l);

    if (wants <= has) {
        return 1;
    }

    uint32_t take = wants - has;

    if (take > l->n_free) {
        return 0;
    }

    s->n_held += take;

    if (!safe(jobs, n, l->n_free - take, l)) {
        s->n_held -= take;
        return 0;
    }

    s->n_take += take;
    l->n_free -= take;

    return 1;
}


/* The waiting jobs that may start now, in order; each gets the pages of its
 * whole prompt, so that a prompt once begun never waits for one. */
static uint32_t
admit(struct sched_limits *l, struct sched_job **jobs, uint32_t n_running,
      uint32_t n_waiting)
{
    uint32_t n_open = 0, n = n_running;

    for (uint32_t i = 0; i < n_running; i++) {
        n_open += sched_job_open(jobs[i]);
    }

    for (; n < n_running + n_waiting; n++) {
        struct sched_job *j = jobs[n];

        n_open += sched_job_open(j);

        if (n_open > l->n_seqs
            || !grant(&j->seqs[0], 0, j->n_prompt, l, jobs, n + 1))
        {
            break;
        }
    }

    return n - n_running;
}


/* One pass over the running jobs: those that miss one token, or the others. */
static uint32_t
fill(struct sched_limits *l, struct sched_job **jobs, uint32_t n, int decodes,
     uint32_t budget)
{
    for (uint32_t i = 0; i < n; i++) {
        struct sched_job *j = jobs[i];

        for (uint32_t k = 0; k < j->n_seqs && !j->paused; k++) {
            struct sched_seq *s = &j->seqs[k];
            uint32_t          missing = s->n_tok - s->n_done;

            if (s->state != SCHED_LIVE || missing == 0
                || (missing == 1) != decodes)
            {
                continue;
            }

            uint32_t n_run = missing < budget ? missing : budget;

            if (n_run > 0
                && grant(s, j->n_common, s->n_done + n_run, l, jobs, n))
            {
                s->n_run = n_run;
                budget -= n_run;
            }
        }
    }

    return budget;
}


uint32_t
sched_plan(const struct sched_limits *limits, struct sched_job **jobs,
           uint32_t n_running, uint32_t n_waiting)
{
    struct sched_limits l = *limits;

    assert(l.n_batch_tok >= l.n_seqs);

    for (uint32_t i = 0; i < n_running + n_waiting; i++) {
        for (uint32_t k = 0; k < jobs[i]->n_seqs; k++) {
            jobs[i]->seqs[k].n_run = 0;
            jobs[i]->seqs[k].n_take = 0;
        }
    }

    uint32_t n_new = admit(&l, jobs, n_running, n_waiting);
    uint32_t n = n_running + n_new;
    uint32_t budget = fill(&l, jobs, n, 1, l.n_batch_tok);

    fill(&l, jobs, n, 0, budget);

    return n_new;
}
