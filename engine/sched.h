/*
 * sched.h - which jobs run in the next step, with how many tokens each, and who
 * gets pages of KV, or loses them.  A pure function: no clock, no I/O, no
 * memory of its own.
 *
 * The mental model.  A job is a prompt and 1..n sequences that continue it.  It
 * waits, is admitted, and runs until it is over.  A sequence knows n_tok
 * tokens, of which the pages hold n_done; a step computes some of the rest.
 * Nothing tells prompt, decode, the tail of a fork and what was lost apart but
 * how much is missing.
 *
 * Order.  The caller gives jobs in order of rank, waiting and running ones
 * mixed: when they came, moved by their priority.  Nobody's rank ever changes,
 * so that only so many jobs ever come before one.
 *
 * Tokens.  Sequences that miss one token (decodes) come first, then the others
 * in order, until the budget or their share of it is spent; so a long prompt is
 * cut into chunks and stalls nobody.  n_seqs sequences run at once, the first
 * in order.
 *
 * Pages.  A job takes the pages for the tokens that it knows at admission, less
 * those that the prefix cache has, and others as it grows.  Nothing is set
 * aside for what it may become.  Where a page is missing, the last job in order
 * loses all of its, and waits again: what it said is read again like a prompt,
 * from the cache where that still has it, and goes on as if nothing had been
 * (D6).  Jobs that nobody reads lose theirs before anybody else does.
 *
 * So the first job that is read can take everything, and each fits alone: it
 * runs in every step, and ends; then the next one is the first.  No deadlock,
 * and no starvation.  (A banker's rule, which never takes anything back, would
 * do that too; but it has to keep free what the longest answer may need, and
 * answers are far shorter than their limit.)  Against taking turns, a job is
 * admitted only where all before it can go on for a page's length.
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
    uint32_t    n_chunk_tok;    /* of them not decodes; >= 1 */
    uint32_t    n_seqs;         /* that run at once */
};

enum sched_state {
    SCHED_FORK = 0,             /* starts when the prompt is in the pages */
    SCHED_LIVE,
    SCHED_OVER
};

struct sched_seq {
    uint8_t     state;          /* enum sched_state */
    uint8_t     shares;         /* its last page is the leader's, to be copied
                                   before it goes on */
    uint32_t    n_tok;          /* tokens known */
    uint32_t    n_done;         /* of them in the pages */
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
    uint8_t     running;        /* has pages; else it waits */
    uint8_t     paused;         /* nobody reads: not to be run */

    /* Of a waiting job: what the cache has for its leader. */
    uint8_t     asked;          /* the next two are known */
    uint32_t    n_hit;          /* pages */
    uint32_t    n_hit_free;     /* of them nobody holds */

    /* The plan. */
    uint8_t     admitted;
};

/* Sets up a job whose n_seqs sequences may each add n_new (>= 1) tokens to the
 * prompt.  How many pages it holds when all of it is longest: more than there
 * are means that it can never run. */
uint64_t sched_job_begin(struct sched_job *j, const struct sched_limits *l,
                         uint32_t n_prompt, uint32_t n_new, uint32_t n_seqs);

/* The sequence that reads the prompt: the first that is not over. */
uint32_t sched_job_leader(const struct sched_job *j);

/* Pages that it may find in the cache: one token at least is to be computed. */
uint32_t sched_job_hits_max(const struct sched_job *j,
                            const struct sched_limits *l);

/* The prompt is in the leader's pages: are there others to start? */
int sched_job_forks(const struct sched_job *j);

/* They start.  All share the prompt's full pages (n_common of them); the last
 * one, if it is not full, the others hold until they have copied it.  Only the
 * leader, whose it is, writes there, behind the prompt. */
void sched_job_fork(struct sched_job *j, const struct sched_limits *l);

/* It has lost all pages, and waits. */
void sched_job_preempt(struct sched_job *j);

/* A sequence is over: what it alone held is free.  The common pages are when
 * no sequence is left. */
void sched_seq_end(struct sched_job *j, uint32_t i_seq);

/* Sequences that are not over. */
uint32_t sched_job_open(const struct sched_job *j);

enum sched_answer {
    SCHED_PLANNED,              /* n_run, n_take, admitted are filled */
    SCHED_ASK,                  /* look into the cache for this job */
    SCHED_PREEMPT               /* take this job's pages */
};

/*
 * Plans one step.  `jobs` are n in order of rank.  Where it lacks something it
 * says what in *i, has changed nothing, and is to be called again; a PREEMPT
 * makes what was known of the cache void.
 */
enum sched_answer sched_plan(const struct sched_limits *l,
                             struct sched_job **jobs, uint32_t n, uint32_t *i);

/* The plan was followed: books what the job has taken, and its admission.  Who
 * shares a page and takes some has its copy in the first of them. */
void sched_job_booked(struct sched_job *j, const struct sched_limits *l);

#endif /* MOE_SCHED_H */
