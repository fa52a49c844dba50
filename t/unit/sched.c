/*
 * Tests of engine/sched.c.  A model of the engine, with real page numbers and a
 * real prefix cache, runs jobs to their end and checks every plan: the budget
 * holds, pages are there, nobody overtakes, the first job that is read runs;
 * and so everything ends.  Once over all small cases, once over 100,000 random
 * ones.
 */
#include "engine/sched.c"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "kv.h"
#include "rng.h"

#define JOBS_MAX    16
#define PAGES_MAX   64          /* of one sequence */

struct sim_job {
    struct sched_job    sched;      /* first: the plan sees this */
    uint32_t            id;
    uint32_t            rank;
    uint32_t            n_alike;    /* tokens that all prompts begin with */
    uint32_t            stop_at[SCHED_SEQS_MAX];    /* tokens really said */
    uint32_t            pages[SCHED_SEQS_MAX][PAGES_MAX];
    uint32_t            said;       /* has said a token */
};

struct sim {
    struct sched_limits limits;
    struct kv          *kv;
    struct sched_job   *jobs[JOBS_MAX];     /* by rank */
    uint32_t            n_jobs;
    uint32_t            n_hits;
    uint32_t            n_preempted;
};


/* A page is the same if all its tokens are what everybody's prompt begins with,
 * or if it is the prompt's of one job, or of one choice of it. */
static struct kv_name
name_of(const struct sim *s, const struct sim_job *j, uint32_t k, uint32_t i)
{
    uint32_t end = (i + 1) * s->limits.page_tok;
    uint32_t whose = end <= j->n_alike ? 0
                     : end <= j->sched.n_prompt ? j->id * 16 + 15
                     : j->id * 16 + k;

    return (struct kv_name) { { whose * 1009 + i, whose, i, 0 } };
}


static void
sim_ask(struct sim *s, struct sim_job *j)
{
    struct sched_job *q = &j->sched;
    uint32_t          k = sched_job_leader(q), page;

    q->asked = 1;
    q->n_hit = q->n_hit_free = 0;

    while (q->n_hit < sched_job_hits_max(q, &s->limits)) {
        struct kv_name name = name_of(s, j, k, q->n_hit);

        page = kv_find(s->kv, &name);

        if (page == KV_NONE) {
            break;
        }

        j->pages[k][q->n_hit++] = page;
        q->n_hit_free += (uint32_t) kv_is_free(s->kv, page);
    }
}


static void
sim_drop(struct sim *s, struct sim_job *j, uint32_t k)
{
    if (j->sched.running && j->sched.seqs[k].state == SCHED_LIVE) {
        kv_drop(s->kv, j->pages[k],
                j->sched.n_common + j->sched.seqs[k].n_held);
    }
}


static void
sim_preempt(struct sim *s, struct sim_job *j)
{
    assert_true(j->sched.running);

    for (uint32_t k = 0; k < j->sched.n_seqs; k++) {
        sim_drop(s, j, k);
    }

    sched_job_preempt(&j->sched);
    s->n_preempted++;

    for (uint32_t i = 0; i < s->n_jobs; i++) {
        s->jobs[i]->asked = 0;
    }
}


static void
sim_fork(struct sim *s, struct sim_job *j)
{
    uint32_t leader = sched_job_leader(&j->sched);

    sched_job_fork(&j->sched, &s->limits);

    for (uint32_t k = leader + 1; k < j->sched.n_seqs; k++) {
        uint32_t n = j->sched.n_common + j->sched.seqs[k].n_held;

        for (uint32_t i = 0; i < n && j->sched.seqs[k].state == SCHED_LIVE;
             i++)
        {
            j->pages[k][i] = j->pages[leader][i];
            kv_share(s->kv, j->pages[k][i]);
        }
    }
}


/* Asks and preempts until there is a plan; how often is bounded. */
static void
sim_plan(struct sim *s)
{
    enum sched_answer a;
    uint32_t          i = 0, n = 0;

    do {
        s->limits.n_free = kv_pages_free(s->kv);
        a = sched_plan(&s->limits, s->jobs, s->n_jobs, &i);

        if (a != SCHED_PLANNED) {
            assert_true(i < s->n_jobs);
        }

        if (a == SCHED_ASK) {
            sim_ask(s, (struct sim_job *) s->jobs[i]);
        } else if (a == SCHED_PREEMPT) {
            sim_preempt(s, (struct sim_job *) s->jobs[i]);
        }

        assert_true(++n <= (JOBS_MAX + 1) * (JOBS_MAX + 1));
    } while (a != SCHED_PLANNED);
}


static void
sim_check(const struct sim *s)
{
    uint32_t n_run = 0, n_open = 0;
    int      passed = 0, first = 1;

    for (uint32_t i = 0; i < s->n_jobs; i++) {
        const struct sched_job *j = s->jobs[i];
        uint32_t                n = 0;

        for (uint32_t k = 0; k < j->n_seqs; k++) {
            n += j->seqs[k].n_run;
            assert_true(j->seqs[k].state == SCHED_LIVE
                        || (j->seqs[k].n_run == 0 && j->seqs[k].n_take == 0));
        }

        assert_true(n == 0 || (!j->paused && (j->running || j->admitted)));
        assert_true(!(j->admitted && (passed || j->running)));
        passed |= !j->paused && !j->running && !j->admitted;
        n_run += n;
        n_open += n > 0 ? sched_job_open(j) : 0;

        /* No deadlock, no starvation. */
        assert_true(!first || j->paused || n > 0);
        first &= j->paused;
    }

    assert_true(n_run <= s->limits.n_batch_tok);
    assert_true(n_open <= s->limits.n_seqs);
}


/* Pages as planned: first those that were found are held, then others taken. */
static void
sim_book(struct sim *s)
{
    for (uint32_t i = 0; i < s->n_jobs; i++) {
        struct sim_job *j = (struct sim_job *) s->jobs[i];
        uint32_t        k = sched_job_leader(&j->sched);

        for (uint32_t p = 0; j->sched.admitted && p < j->sched.n_hit; p++) {
            kv_share(s->kv, j->pages[k][p]);
            s->n_hits++;
        }
    }

    for (uint32_t i = 0; i < s->n_jobs; i++) {
        struct sim_job *j = (struct sim_job *) s->jobs[i];

        for (uint32_t k = 0; k < j->sched.n_seqs; k++) {
            struct sched_seq *q = &j->sched.seqs[k];
            uint32_t          has = j->sched.n_common + q->n_held - q->shares
                                    + (j->sched.admitted ? j->sched.n_hit : 0);
            uint32_t          shared = j->pages[k][has];

            assert_int_equal(kv_take(s->kv, q->n_take, j->pages[k] + has), 0);

            if (q->shares && q->n_take > 0) {
                kv_drop(s->kv, &shared, 1);
            }
        }

        sched_job_booked(&j->sched, &s->limits);
    }

    for (uint32_t i = 0; i < s->n_jobs; i++) {
        if (s->jobs[i]->running && sched_job_forks(s->jobs[i])) {
            sim_fork(s, (struct sim_job *) s->jobs[i]);
        }
    }
}


static void
sim_end_seq(struct sim *s, struct sim_job *j, uint32_t k)
{
    sim_drop(s, j, k);
    sched_seq_end(&j->sched, k);
}


/* Nobody else has the pages from .. to, which the k-th sequence writes, but for
 * the leader's last one, which others hold until they have copied it. */
static void
check_writes(const struct sim_job *j, uint32_t k, uint32_t from, uint32_t to)
{
    for (uint32_t o = 0; o < j->sched.n_seqs; o++) {
        const struct sched_seq *q = &j->sched.seqs[o];
        uint32_t                n = j->sched.n_common + q->n_held;

        for (uint32_t i = from; o != k && q->state == SCHED_LIVE && i <= to
                                && i < n; i++)
        {
            assert_true(j->pages[o][i] != j->pages[k][i]
                        || (q->shares && !j->sched.seqs[k].shares
                            && i == n - 1));
        }
    }
}


/* Computes what was planned, and says a token wherever nothing is missing. */
static void
sim_compute(struct sim *s, struct sim_job *j)
{
    uint32_t ran[SCHED_SEQS_MAX] = { 0 };
    uint32_t page_tok = s->limits.page_tok;

    for (uint32_t k = 0; k < j->sched.n_seqs; k++) {
        struct sched_seq *q = &j->sched.seqs[k];
        uint32_t          before = q->n_done;

        ran[k] = q->n_run;
        assert_true(q->n_run == 0 || !q->shares);
        q->n_done += q->n_run;
        assert_true(q->n_done <= q->n_tok);
        assert_true(q->n_run == 0 || (j->sched.n_common + q->n_held) * page_tok
                                     >= q->n_done);

        if (q->n_run > 0) {
            check_writes(j, k, before / page_tok, (q->n_done - 1) / page_tok);
        }

        for (uint32_t i = before / page_tok; i < q->n_done / page_tok; i++) {
            struct kv_name name = name_of(s, j, k, i);

            j->pages[k][i] = kv_name(s->kv, j->pages[k][i], &name);
        }
    }

    if (j->sched.running && sched_job_forks(&j->sched)) {
        sim_fork(s, j);
    }

    uint32_t leader = sched_job_leader(&j->sched);
    int      all = !j->said && ran[leader] > 0
                   && j->sched.seqs[leader].n_done == j->sched.n_prompt;

    for (uint32_t k = 0; k < j->sched.n_seqs; k++) {
        struct sched_seq *q = &j->sched.seqs[k];

        if (q->state == SCHED_LIVE
            && (all || (j->said && ran[k] > 0 && q->n_done == q->n_tok))
            && ++q->n_tok - j->sched.n_prompt == j->stop_at[k])
        {
            sim_end_seq(s, j, k);
        }
    }

    j->said |= (uint32_t) all;
}


static void
sim_reap(struct sim *s)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < s->n_jobs; i++) {
        if (sched_job_open(s->jobs[i]) > 0) {
            s->jobs[n++] = s->jobs[i];
        }
    }

    s->n_jobs = n;
}


static void
sim_step(struct sim *s)
{
    sim_plan(s);
    sim_check(s);
    sim_book(s);

    for (uint32_t i = 0; i < s->n_jobs; i++) {
        sim_compute(s, (struct sim_job *) s->jobs[i]);
    }

    sim_reap(s);
}


static void
sim_add(struct sim *s, struct sim_job *j)
{
    uint32_t i = s->n_jobs++;

    assert_true(i < JOBS_MAX);
    j->said = 0;

    for (; i > 0 && ((struct sim_job *) s->jobs[i - 1])->rank > j->rank; i--) {
        s->jobs[i] = s->jobs[i - 1];
    }

    s->jobs[i] = &j->sched;
}


/* A kind of job: prompt and new 1..3 tokens, each true length, 1..2 choices. */
static int
small_job(struct sim_job *j, const struct sched_limits *l, uint32_t kind)
{
    static const uint8_t lengths[6][2] = {
        { 1, 1 }, { 2, 1 }, { 2, 2 }, { 3, 1 }, { 3, 2 }, { 3, 3 }
    };
    const uint8_t *len = lengths[kind % 6];
    uint32_t       n_prompt = 1 + kind / 6 % 3;
    uint32_t       n_seqs = 1 + kind / 18;

    j->n_alike = n_prompt;
    j->stop_at[0] = len[1];
    j->stop_at[1] = len[0];

    return sched_job_begin(&j->sched, l, n_prompt, len[0], n_seqs)
           <= l->n_pages;
}

#define SMALL_KINDS     36


/* The last `late` of the three come after two steps, and before the others in
 * order; one that runs then is paused for three. */
static void
small_run(const struct sched_limits *l, const uint32_t kinds[3], uint32_t late,
          int pause)
{
    struct sim     s = { .limits = *l, .kv = kv_create(l->n_pages, 1) };
    struct sim_job jobs[3];
    uint32_t       n_steps = 0, n_left = 3;

    while (n_left > 0 || s.n_jobs > 0) {
        if (n_left > 0 && (n_left > late || n_steps >= 2)) {
            struct sim_job *j = &jobs[3 - n_left];

            j->id = 3 - n_left;
            j->rank = n_left > late ? 4 - n_left : 0;

            if (small_job(j, l, kinds[j->id])) {
                sim_add(&s, j);
            }

            n_left--;
            continue;
        }

        if (s.n_jobs > 0) {
            s.jobs[s.n_jobs - 1]->paused = pause && n_steps == 2;
            sim_step(&s);
        }

        for (uint32_t i = 0; n_steps == 5 && i < s.n_jobs; i++) {
            s.jobs[i]->paused = 0;
        }

        assert_true(++n_steps < 100);
    }

    assert_int_equal(kv_pages_free(s.kv), l->n_pages);
    kv_free(s.kv);
}


/* Every set of three small jobs, in every small amount of pages, with pages of
 * one and two tokens. */
static void
all_small_cases(void **state)
{
    (void) state;

    for (uint32_t n_pages = 1; n_pages <= 6; n_pages++) {
        for (uint32_t c = 0; c < 4; c++) {
            struct sched_limits l = {
                .page_tok = 1 + c % 2, .n_pages = n_pages,
                .n_batch_tok = 2 + c / 2, .n_chunk_tok = 2 + c / 2,
                .n_seqs = 2 + c / 2
            };

            for (uint32_t i = 0; i < SMALL_KINDS * SMALL_KINDS * SMALL_KINDS;
                 i++)
            {
                uint32_t kinds[3] = {
                    i % SMALL_KINDS, i / SMALL_KINDS % SMALL_KINDS,
                    i / SMALL_KINDS / SMALL_KINDS
                };

                small_run(&l, kinds, i % 3, i % 2 != 0);
            }
        }
    }
}


static void
random_arrival(struct sim *s, struct sim_job *j, uint32_t now)
{
    uint32_t n_new, n_prompt, n_seqs;

    do {
        n_prompt = 1 + rng(rng(4) == 0 ? 60 : 12);
        n_seqs = rng(4) == 0 ? 1 + rng(SCHED_SEQS_MAX) : 1;
        n_new = 1 + rng(rng(3) == 0 ? 50 : 10);
    } while (n_seqs > s->limits.n_seqs
             || sched_job_begin(&j->sched, &s->limits, n_prompt, n_new, n_seqs)
                > s->limits.n_pages);

    for (uint32_t k = 0; k < SCHED_SEQS_MAX; k++) {
        j->stop_at[k] = rng(2) ? n_new : 1 + rng(n_new);
    }

    j->n_alike = rng(2) ? rng(n_prompt + 1) : 0;
    j->rank = now + (rng(4) == 0 ? rng(20) : 10);
    sim_add(s, j);
}


/* Something happens to somebody: it is read or not, or cancelled. */
static void
random_event(struct sim *s)
{
    struct sim_job *j = (struct sim_job *) s->jobs[rng(s->n_jobs)];

    j->sched.paused = rng(10) == 0;

    if (rng(100) == 0) {
        for (uint32_t k = 0; k < j->sched.n_seqs; k++) {
            if (j->sched.seqs[k].state != SCHED_OVER) {
                sim_end_seq(s, j, k);
            }
        }

        sim_reap(s);
    }
}


/* Jobs come, pause, go on and are cancelled; in the end all pages are back. */
static void
random_run(uint64_t seed, uint64_t *n_hits, uint64_t *n_preempted)
{
    static struct sim_job jobs[10];
    struct sim s = { .n_jobs = 0 };
    uint32_t   n_steps = 0, n_left = 1 + (uint32_t) (seed % 10);

    rng_state = seed * 0x9e3779b97f4a7c15ULL;
    s.limits.page_tok = 2 + rng(8);
    s.limits.n_pages = 2 + rng(rng(2) ? 60 : 12);
    s.limits.n_seqs = 1 + rng(12);
    s.limits.n_batch_tok = s.limits.n_seqs + rng(40);
    s.limits.n_chunk_tok = 1 + rng(s.limits.n_batch_tok);
    s.kv = kv_create(s.limits.n_pages, 1);

    while (n_left > 0 || s.n_jobs > 0) {
        while (n_left > 0 && rng(3) == 0) {
            n_left--;
            jobs[n_left].id = n_left + 1;
            random_arrival(&s, &jobs[n_left], n_steps);
        }

        if (s.n_jobs > 0) {
            random_event(&s);
            sim_step(&s);
        }

        assert_true(++n_steps < 20000);
    }

    assert_int_equal(kv_pages_free(s.kv), s.limits.n_pages);
    kv_free(s.kv);
    *n_hits += s.n_hits;
    *n_preempted += s.n_preempted;
}


static void
random_runs(void **state)
{
    uint64_t n_hits = 0, n_preempted = 0;

    (void) state;

    for (uint64_t seed = 1; seed <= 100000; seed++) {
        random_run(seed, &n_hits, &n_preempted);
    }

    /* They have met what they are about. */
    assert_true(n_hits > 50000 && n_preempted > 25000);
}


/* A decode is in every step, however long the prompt beside it. */
static void
prompts_do_not_stall_decodes(void **state)
{
    struct sched_limits l = {
        .page_tok = 64, .n_pages = 1000, .n_free = 1000, .n_batch_tok = 32,
        .n_chunk_tok = 32, .n_seqs = 8
    };
    struct sched_job  a, b;
    struct sched_job *jobs[] = { &a, &b };

    (void) state;

    sched_job_begin(&a, &l, 10, 100, 1);
    sched_job_begin(&b, &l, 5000, 100, 1);

    uint32_t i;

    assert_int_equal(sched_plan(&l, jobs, 2, &i), SCHED_ASK);
    assert_int_equal(i, 0);
    a.asked = b.asked = 1;
    assert_int_equal(sched_plan(&l, jobs, 2, &i), SCHED_PLANNED);
    assert_true(a.admitted && b.admitted);
    assert_int_equal(a.seqs[0].n_run, 10);
    assert_int_equal(a.seqs[0].n_take, 1);
    assert_int_equal(b.seqs[0].n_run, 22);
    assert_int_equal(b.seqs[0].n_take, 79);

    sched_job_booked(&a, &l);
    sched_job_booked(&b, &l);
    a.seqs[0].n_done = 10;
    a.seqs[0].n_tok = 11;
    b.seqs[0].n_done = 22;
    l.n_free -= 80;

    assert_int_equal(sched_plan(&l, jobs, 2, &i), SCHED_PLANNED);
    assert_int_equal(a.seqs[0].n_run, 1);
    assert_int_equal(a.seqs[0].n_take, 0);
    assert_int_equal(b.seqs[0].n_run, 31);

    l.n_chunk_tok = 7;
    assert_int_equal(sched_plan(&l, jobs, 2, &i), SCHED_PLANNED);
    assert_int_equal(a.seqs[0].n_run, 1);
    assert_int_equal(b.seqs[0].n_run, 7);
}


/* First in, first out: a small job does not pass a large one that waits. */
static void
nobody_overtakes(void **state)
{
    struct sched_limits l = {
        .page_tok = 64, .n_pages = 10, .n_free = 10, .n_batch_tok = 64,
        .n_chunk_tok = 64, .n_seqs = 8
    };
    struct sched_job  a, b, c;
    struct sched_job *jobs[] = { &a, &b, &c };

    (void) state;

    sched_job_begin(&a, &l, 64 * 4, 64, 1);
    sched_job_begin(&b, &l, 64 * 7, 64, 1);
    sched_job_begin(&c, &l, 1, 1, 1);

    uint32_t i;

    a.asked = b.asked = c.asked = 1;
    assert_int_equal(sched_plan(&l, jobs, 3, &i), SCHED_PLANNED);
    assert_true(a.admitted && !b.admitted && !c.admitted);
    assert_int_equal(c.seqs[0].n_take, 0);
}


static void
too_long_is_said(void **state)
{
    struct sched_limits l = {
        .page_tok = 64, .n_pages = 10, .n_free = 10, .n_batch_tok = 64,
        .n_chunk_tok = 64, .n_seqs = 8
    };
    struct sched_job a;

    (void) state;

    assert_int_equal(sched_job_begin(&a, &l, 64 * 9, 65, 1), 10);
    assert_int_equal(sched_job_begin(&a, &l, 64 * 9, 66, 1), 11);
    /* Eight of 2 pages each that share one: 1 + 8. */
    assert_int_equal(sched_job_begin(&a, &l, 70, 10, 8), 9);
}


int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_small_cases),
        cmocka_unit_test(random_runs),
        cmocka_unit_test(prompts_do_not_stall_decodes),
        cmocka_unit_test(nobody_overtakes),
        cmocka_unit_test(too_long_is_said),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);

    return cmocka_run_group_tests(tests, NULL, NULL);
}
