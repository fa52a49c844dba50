/*
 * pages.c - the pages of jobs: what the prefix cache has for one, what it
 * takes, shares among its choices and gives back.  The scheduler counts; here
 * are the numbers.
 *
 * Must not know tokens' meaning, workers or events.
 */
#include <assert.h>

#include "serve/serve.h"


/* The name of a choice's i-th page; its tokens are known. */
static const struct kv_name *
name_of(struct job *j, uint32_t k, uint32_t i)
{
    struct choice *c = &j->choices[k];

    for (; c->n_names <= i; c->n_names++) {
        uint32_t at = c->n_names;

        c->names[at] = kv_child(at == 0 ? &j->root : &c->names[at - 1],
                                c->tokens + (size_t) at * MODEL_PAGE_TOK,
                                MODEL_PAGE_TOK);
    }

    return &c->names[i];
}


void
serve_pages_ask(const struct serve *s, struct job *j)
{
    struct sched_job *q = &j->sched;
    uint32_t          k = sched_job_leader(q);
    uint32_t          max = s->o->prefix_cache && !serve_score_wanted(j)
                            ? sched_job_hits_max(q, &s->limits) : 0;

    q->asked = 1;
    q->n_hit = q->n_hit_free = 0;

    while (q->n_hit < max) {
        uint32_t page = kv_find(s->kv, name_of(j, k, q->n_hit));

        if (page == KV_NONE) {
            break;
        }

        j->choices[k].pages[q->n_hit++] = page;
        q->n_hit_free += (uint32_t) kv_is_free(s->kv, page);
    }
}


/* Holds what was found.  Before anybody takes: that might be these pages. */
static void
hold_hits(struct serve *s, struct job *j)
{
    uint32_t k = sched_job_leader(&j->sched);

    for (uint32_t i = 0; i < j->sched.n_hit; i++) {
        kv_share(s->kv, j->choices[k].pages[i]);
    }

    if (j->admitted_us == 0) {
        j->n_cached = j->sched.n_hit * MODEL_PAGE_TOK;
        s->counts.prefix_queries_tok += j->sched.n_prompt;
        s->counts.prefix_hits_tok += j->n_cached;
    }
}


static void
take(struct serve *s, struct job *j)
{
    uint32_t leader = sched_job_leader(&j->sched);

    for (uint32_t k = 0; k < j->sched.n_seqs; k++) {
        struct sched_seq *q = &j->sched.seqs[k];
        uint32_t          has = j->sched.n_common + q->n_held - q->shares;
        uint32_t         *pages = j->choices[k].pages;

        if (k == leader && j->sched.admitted) {
            has += j->sched.n_hit;
        }

        if (q->n_take == 0) {
            continue;
        }

        uint32_t shared = q->shares ? pages[has] : 0;

        if (kv_take(s->kv, q->n_take, pages + has) != 0) {
            assert(0);      /* the plan is within what is free */
        }

        if (q->shares) {
            model_copy_page(s->model->model, pages[has], shared);
            kv_drop(s->kv, &shared, 1);
        }
    }
}


/* What a choice had, beyond the prompt, before its job lost all. */
static void
find_again(struct serve *s, struct job *j, uint32_t k)
{
    struct sched_seq *q = &j->sched.seqs[k];
    uint32_t          max = (q->n_tok - 1) / MODEL_PAGE_TOK;

    for (uint32_t i = j->sched.n_common; i < max && s->o->prefix_cache; i++) {
        uint32_t page = kv_find(s->kv, name_of(j, k, i));

        if (page == KV_NONE) {
            break;
        }

        kv_share(s->kv, page);

        if (q->shares) {
            kv_drop(s->kv, &j->choices[k].pages[i], 1);
            q->shares = 0;
            q->n_held = 0;
            q->n_done = i * MODEL_PAGE_TOK;
        }

        j->choices[k].pages[i] = page;
        q->n_held++;
        q->n_done += MODEL_PAGE_TOK;
    }
}


void
serve_pages_fork(struct serve *s, struct job *j)
{
    uint32_t leader = sched_job_leader(&j->sched);

    sched_job_fork(&j->sched, &s->limits);

    for (uint32_t k = 0; k < j->sched.n_seqs; k++) {
        if (k == leader || j->sched.seqs[k].state != SCHED_LIVE) {
            continue;
        }

        uint32_t n = j->sched.n_common + j->sched.seqs[k].n_held;

        for (uint32_t i = 0; i < n; i++) {
            j->choices[k].pages[i] = j->choices[leader].pages[i];
            kv_share(s->kv, j->choices[k].pages[i]);
        }

        find_again(s, j, k);
    }
}


void
serve_pages_follow(struct serve *s)
{
    for (uint32_t i = 0; i < s->n_jobs; i++) {
        if (s->plan[i]->admitted) {
            hold_hits(s, s->jobs[i]);
        }
    }

    for (uint32_t i = 0; i < s->n_jobs; i++) {
        take(s, s->jobs[i]);
        sched_job_booked(s->plan[i], &s->limits);
    }

    /* A prompt that was found whole, of a job that had begun to speak. */
    for (uint32_t i = 0; i < s->n_jobs; i++) {
        if (s->plan[i]->running && sched_job_forks(s->plan[i])) {
            serve_pages_fork(s, s->jobs[i]);
        }
    }
}


void
serve_pages_filled(struct serve *s, struct job *j, uint32_t k,
                   uint32_t from, uint32_t to)
{
    struct choice *c = &j->choices[k];

    for (uint32_t i = from / MODEL_PAGE_TOK;
         i < to / MODEL_PAGE_TOK && s->o->prefix_cache; i++)
    {
        c->pages[i] = kv_name(s->kv, c->pages[i], name_of(j, k, i));
    }
}


void
serve_pages_drop(struct serve *s, struct job *j, uint32_t k)
{
    const struct sched_seq *q = &j->sched.seqs[k];

    if (j->sched.running && q->state == SCHED_LIVE) {
        kv_drop(s->kv, j->choices[k].pages, j->sched.n_common + q->n_held);
    }
}


void
serve_pages_preempt(struct serve *s, struct job *j)
{
    for (uint32_t k = 0; k < j->sched.n_seqs; k++) {
        serve_pages_drop(s, j, k);
    }

    sched_job_preempt(&j->sched);
    j->state = JOB_WAITING;
    s->counts.preemptions++;
    serve_job_count(s);

    for (uint32_t i = 0; i < s->n_jobs; i++) {
        s->plan[i]->asked = 0;
    }
}
