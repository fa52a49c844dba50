/*
 * sched.h - which jobs run in the next step, with how many tokens each, and who
 * gets pages of KV.  A pure function: no clock, no I/O, no memory of its own.
 *
 * The mental model.  A job is a prompt and 1..n sequences that continue it.  It
 * waits in a queue (first in, first out), is admitted when it may start, and
 * runs until it is over; jobs are given in the order in which they came, the
 * running ones first.  A sequence knows n_tok tokens, of which the pages hold
 * n_done; the step computes some of the rest.  Nothing tells prompt, decode and
 * the tail of a fork apart but how much is missing.
 *
 * Tokens.  Sequences that miss one token (decodes) come first, then prompts,
 * oldest job first, fill the budget; so a long prompt is cut into chunks and
 * stalls nobody.
 *
 * Pages.  A job takes its prompt's pages at admission and the rest one by one
 * as it grows.  A page is granted only where afterwards every running job,
 * oldest first, could still run to its longest with what is free and what the
 * older ones give back: so the oldest job that runs can always end, nothing is
 * ever taken away, and nobody waits for ever.  (A banker's rule whose order is
 * fixed to the order of arrival.)
 */
#ifndef MOE_SCHED_H
#define MOE_SCHED_H

#include "base.h"

#define SCHED_SEQS_MAX  8       /* of one job */

struct sched_limits {
    uint32_t    page_tok;       /* tokens in a page */
    uint32_t    n_pages;        /* in all */
    uint32_t    n_free;         /* of them now */
    uint32_t    n_batch_tok;    /* of one step; >= n_seqs */
    uint32_t    n_seqs;         /* that run at once */
};

enum sched_state {
    SCHED_FORK = 0,             /* starts when the prompt is in the pages */
    SCHED_LIVE,
    SCHED_OVER
};

struct sched_seq {
    uint8_t     state;          /* enum sched_state */
    uint32_t    n_tok;          /* tokens known */
    uint32_t    n_done;         /* of them in the pages */
    uint32_t    n_max;          /* tokens in the pages when it is longest */
    uint32_t    n_held;         /* pages of its own, behind the common ones */

    /* The plan. */
    uint32_t    n_run;          /* tokens of this step */
    uint32_t    n_take;         /* pages to take before it */
};

struct sched_job {
    struct sched_seq seqs[SCHED_SEQS_MAX];
    uint32_t    n_seqs;
    uint32_t    n_prompt;
    uint32_t    n_common;       /* full pages of the prompt, once forked */
    uint8_t     paused;         /* nobody reads: not to be run */
};

/* Sets up a job whose n_seqs sequences may each add n_new (>= 1) tokens to the
 * prompt.  How many pages it holds when all of it is longest: more than there
 * are means that it can never run. */
uint64_t sched_job_begin(struct sched_job *j, const struct sched_limits *l,
                         uint32_t n_prompt, uint32_t n_new, uint32_t n_seqs);

/* The prompt is in the pages of seqs[0]: the others start.  All share its full
 * pages (n_common of them), the others compute the rest of it again. */
void sched_job_fork(struct sched_job *j, const struct sched_limits *l);

/* A sequence is over: what it alone held is free.  The common pages are when
 * no sequence is left. */
void sched_seq_end(struct sched_job *j, uint32_t i_seq);

/* Sequences that are not over. */
uint32_t sched_job_open(const struct sched_job *j);

/*
 * Plans one step.  `jobs` are n_running jobs and behind them n_waiting, each in
 * order of arrival.  Fills n_run and n_take of every sequence, and books n_take
 * in n_held.  Returns how many of the waiting were admitted: the first ones.
 */
uint32_t sched_plan(const struct sched_limits *l, struct sched_job **jobs,
                    uint32_t n_running, uint32_t n_waiting);

#endif /* MOE_SCHED_H */
