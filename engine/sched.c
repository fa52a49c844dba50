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
    uint32_t n_common = n_seqs > 1 ? n_prompt / l->page_tok : 0;

    assert(n_prompt >= 1 && n_new >= 1);
    assert(n_seqs >= 1 && n_seqs <= SCHED_SEQS_MAX);

    memset(j, 0, sizeof(*j));
    j->n_seqs = n_seqs;
    j->n_prompt = n_prompt;

    for (uint32_t i = 0; i < n_seqs; i++) {
        j->seqs[i].state = i == 0 ? SCHED_LIVE : SCHED_FORK;
        j->seqs[i].n_tok = n_prompt;
    }

    /* The last token is only said. */
    return n_common + (uint64_t) n_seqs
                      * (pages(n_prompt + n_new - 1, l) - n_common);
}


uint32_t
sched_job_leader(const struct sched_job *j)
{
    uint32_t i = 0;

    while (i + 1 < j->n_seqs && j->seqs[i].state == SCHED_OVER) {
        i++;
    }

    return i;
}


uint32_t
sched_job_hits_max(const struct sched_job *j, const struct sched_limits *l)
{
    return (j->seqs[sched_job_leader(j)].n_tok - 1) / l->page_tok;
}


int
sched_job_forks(const struct sched_job *j)
{
    if (j->seqs[sched_job_leader(j)].n_done < j->n_prompt) {
        return 0;
    }

    for (uint32_t i = 0; i < j->n_seqs; i++) {
        if (j->seqs[i].state == SCHED_FORK) {
            return 1;
        }
    }

    return 0;
}


void
sched_job_fork(struct sched_job *j, const struct sched_limits *l)
{
    assert(sched_job_forks(j) && j->n_common == 0);

    j->n_common = j->n_prompt / l->page_tok;
    j->seqs[sched_job_leader(j)].n_held -= j->n_common;

    for (uint32_t i = 0; i < j->n_seqs; i++) {
        if (j->seqs[i].state == SCHED_FORK) {
            j->seqs[i].state = SCHED_LIVE;
            j->seqs[i].n_done = j->n_prompt;
            j->seqs[i].shares = j->n_prompt % l->page_tok != 0;
            j->seqs[i].n_held = j->seqs[i].shares;
        }
    }
}


void
sched_job_preempt(struct sched_job *j)
{
    uint32_t leader = sched_job_leader(j);

    for (uint32_t i = 0; i < j->n_seqs; i++) {
        struct sched_seq *s = &j->seqs[i];

        if (s->state != SCHED_OVER) {
            s->state = i == leader ? SCHED_LIVE : SCHED_FORK;
            s->n_done = s->n_held = 0;
            s->shares = 0;
        }
    }

    j->n_common = 0;
    j->running = 0;
}


void
sched_seq_end(struct sched_job *j, uint32_t i_seq)
{
    j->seqs[i_seq].state = SCHED_OVER;
    j->seqs[i_seq].n_held = 0;
    j->seqs[i_seq].shares = 0;

    if (sched_job_open(j) == 0) {
        j->n_common = 0;
        j->running = 0;
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


void
sched_job_booked(struct sched_job *j, const struct sched_limits *l)
{
    for (uint32_t i = 0; i < j->n_seqs; i++) {
        struct sched_seq *s = &j->seqs[i];

        if (s->n_take > 0) {
            s->n_held += s->n_take - s->shares;
            s->n_take = s->shares = 0;
        }
    }

    if (j->admitted) {
        struct sched_seq *s = &j->seqs[sched_job_leader(j)];

        s->n_held += j->n_hit;
        s->n_done = j->n_hit * l->page_tok;
        j->running = 1;
        j->admitted = 0;
    }

    j->asked = 0;
}


/* What is left while a plan is made. */
struct plan {
    const struct sched_limits *l;
    struct sched_job **jobs;
    uint32_t    n_jobs;
    uint32_t    n_free;         /* pages */
    uint32_t    n_seats;        /* sequences that may run yet */
    uint32_t    n_growing;      /* of those that are sure to */
};


/* Could this one's pages be another's?  i_for is the other's place. */
static int
can_lose(const struct plan *p, uint32_t i, uint32_t i_for)
{
    const struct sched_job *j = p->jobs[i];

    return j->running && i != i_for && held(j) > 0
           && (j->paused || i > i_for);
}


/* Who loses its pages to the job at i_for; n_jobs: nobody. */
static uint32_t
victim(const struct plan *p, uint32_t i_for)
{
    uint32_t found = p->n_jobs;

    for (uint32_t i = p->n_jobs; i-- > 0;) {
        if (can_lose(p, i, i_for)) {
            if (p->jobs[i]->paused) {
                return i;
            }

            found = found == p->n_jobs ? i : found;
        }
    }

    return found;
}


/* Pages that there could be for the job at i_for, or more: some are shared. */
static uint64_t
reach(const struct plan *p, uint32_t i_for)
{
    uint64_t n = p->n_free;

    for (uint32_t i = 0; i < p->n_jobs; i++) {
        n += can_lose(p, i, i_for) ? held(p->jobs[i]) : 0;
    }

    return n;
}


/* A running job's pages for all that its sequences know.  1: the victim in
 * *i is to lose its own first. */
static int
grow(struct plan *p, uint32_t i_job, uint32_t *i)
{
    struct sched_job *j = p->jobs[i_job];

    for (uint32_t k = 0; k < j->n_seqs; k++) {
        struct sched_seq *s = &j->seqs[k];
        uint32_t          has = j->n_common + s->n_held - s->shares;
        uint32_t          wants = pages(s->n_tok, p->l);

        if (s->state != SCHED_LIVE || wants <= has) {
            continue;
        }

        if (wants - has <= p->n_free) {
            s->n_take = wants - has;
            p->n_free -= s->n_take;
        } else {
            *i = victim(p, i_job);

            if (*i < p->n_jobs) {
                return 1;
            }
        }
    }

    return 0;
}


/* A waiting job: enters if there are pages for all that it knows, and besides
 * one for everybody before it. */
static enum sched_answer
enter(struct plan *p, uint32_t i_job, uint32_t *i)
{
    struct sched_job *j = p->jobs[i_job];
    struct sched_seq *s = &j->seqs[sched_job_leader(j)];

    if (!j->asked) {
        *i = i_job;
        return SCHED_ASK;
    }

    assert(j->n_hit <= sched_job_hits_max(j, p->l));

    uint32_t n_take = pages(s->n_tok, p->l) - j->n_hit;
    uint32_t n = n_take + j->n_hit_free;

    if (n + p->n_growing <= p->n_free) {
        j->admitted = 1;
        s->n_take = n_take;
        p->n_free -= n;
        return SCHED_PLANNED;
    }

    if (n + p->n_growing <= reach(p, i_job)) {
        *i = victim(p, i_job);
        return SCHED_PREEMPT;
    }

    return SCHED_PLANNED;
}


/* Seats and pages, in order.  Behind a job that waits on nobody enters. */
static enum sched_answer
seat(struct plan *p, uint32_t *i)
{
    int blocked = 0;

    for (uint32_t k = 0; k < p->n_jobs; k++) {
        struct sched_job *j = p->jobs[k];
        uint32_t          n_open = sched_job_open(j);

        if (j->paused || (blocked && !j->running)) {
            continue;
        }

        if (n_open > p->n_seats) {
            blocked = 1;
            continue;
        }

        if (j->running) {
            if (grow(p, k, i)) {
                return SCHED_PREEMPT;
            }
        } else {
            enum sched_answer a = enter(p, k, i);

            if (a != SCHED_PLANNED) {
                return a;
            }

            blocked = !j->admitted;
        }

        if (j->running || j->admitted) {
            p->n_seats -= n_open;
            p->n_growing += n_open;

            for (uint32_t q = 0; q < j->n_seqs; q++) {
                j->seqs[q].n_run = j->seqs[q].state == SCHED_LIVE;
            }
        }
    }

    return SCHED_PLANNED;
}


/* One pass over those that have a seat (n_run is 1): the ones that miss one
 * token, or the others, as far as their pages and the budget go. */
static uint32_t
fill(const struct plan *p, int decodes, uint32_t budget)
{
    for (uint32_t i = 0; i < p->n_jobs; i++) {
        struct sched_job *j = p->jobs[i];

        for (uint32_t k = 0; k < j->n_seqs; k++) {
            struct sched_seq *s = &j->seqs[k];
            uint32_t          n_hit = j->admitted ? j->n_hit : 0;
            uint32_t          n_done = s->n_done + n_hit * p->l->page_tok;
            uint32_t          missing = s->n_tok - n_done;

            if (s->n_run == 0 || (missing == 1) != decodes) {
                continue;
            }

            if (s->shares && s->n_take == 0) {
                s->n_run = 0;           /* no page for its copy */
                continue;
            }

            uint32_t room = (j->n_common + s->n_held + n_hit + s->n_take
                             - s->shares) * p->l->page_tok - n_done;

            s->n_run = missing < room ? missing : room;
            s->n_run = s->n_run < budget ? s->n_run : budget;
            budget -= s->n_run;
        }
    }

    return budget;
}


static void
clear(struct sched_job **jobs, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        jobs[i]->admitted = 0;

        for (uint32_t k = 0; k < jobs[i]->n_seqs; k++) {
            jobs[i]->seqs[k].n_run = 0;
            jobs[i]->seqs[k].n_take = 0;
        }
    }
}


enum sched_answer
sched_plan(const struct sched_limits *l, struct sched_job **jobs, uint32_t n,
           uint32_t *i)
{
    struct plan p = {
        .l = l, .jobs = jobs, .n_jobs = n, .n_free = l->n_free,
        .n_seats = l->n_seqs
    };

    assert(l->n_batch_tok >= l->n_seqs && l->n_chunk_tok >= 1);
    clear(jobs, n);

    enum sched_answer a = seat(&p, i);

    if (a != SCHED_PLANNED) {
        clear(jobs, n);
        return a;
    }

    uint32_t n_left = fill(&p, 1, l->n_batch_tok);

    fill(&p, 0, n_left < l->n_chunk_tok ? n_left : l->n_chunk_tok);

    return SCHED_PLANNED;
}
