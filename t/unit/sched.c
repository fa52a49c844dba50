/*
 * Tests of engine/sched.c.  A model of the engine runs jobs to their end and
 * checks after every plan: the budget holds, every page is accounted for, the
 * oldest runs, order of arrival is kept, and so everything ends.  Once over all
 * small cases, once over seeded random large ones.
 */
#include "engine/sched.c"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#define JOBS_MAX    400

struct sim_job {
    struct sched_job    sched;      /* first: the plan sees this */
    uint32_t            n_new;
    uint32_t            stop_at[SCHED_SEQS_MAX];    /* tokens really said */
    uint32_t            arrives;                    /* step */
};

struct sim {
    struct sched_limits limits;
    struct sched_job   *jobs[JOBS_MAX];     /* running, then waiting */
    uint32_t            n_running;
    uint32_t            n_waiting;
};


static uint64_t rng_state;

static uint32_t
rng(uint32_t n)
{
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;

    return (uint32_t) ((rng_state >> 32) % n);
}


static void
sim_check(const struct sim *s, uint32_t n_admitted)
{
    uint32_t n = s->n_running + n_admitted;
    uint32_t n_run = 0, n_pages = s->limits.n_free, n_open = 0, n_take = 0;

    for (uint32_t i = 0; i < s->n_running + s->n_waiting; i++) {
        const struct sched_job *j = s->jobs[i];

        for (uint32_t k = 0; k < j->n_seqs; k++) {
            const struct sched_seq *q = &j->seqs[k];

            assert_true(i < n || (q->n_run == 0 && q->n_take == 0));
            assert_true(q->state == SCHED_LIVE || q->n_run == 0);
            assert_true(!j->paused || q->n_run == 0);
            assert_true(q->n_done + q->n_run <= q->n_tok);
            assert_true((q->n_held + j->n_common) * s->limits.page_tok
                        >= q->n_done + q->n_run || q->state != SCHED_LIVE);
            assert_true(q->n_held <= pages(q->n_max, &s->limits));
            n_run += q->n_run;
            n_take += q->n_take;
        }

        n_pages += held(j);
        n_open += i < n ? sched_job_open(j) : 0;
    }

    assert_true(n_run <= s->limits.n_batch_tok);
    assert_true(n_open <= s->limits.n_seqs);
    assert_true(n_take <= s->limits.n_free);
    assert_int_equal(n_pages, s->limits.n_pages + n_take);

    /* No deadlock, no starvation: the oldest job that may run does. */
    for (uint32_t i = 0; i < n; i++) {
        const struct sched_job *j = s->jobs[i];
        uint32_t                oldest = 0;

        if (j->paused) {
            break;
        }

        for (uint32_t k = 0; k < j->n_seqs; k++) {
            oldest += j->seqs[k].n_run;
        }

        assert_true(oldest > 0);
        break;
    }

    assert_true(n > 0 || s->n_waiting == 0);
}


static void
sim_end_seq(struct sim *s, struct sched_job *j, uint32_t k)
{
    uint32_t before = held(j);

    sched_seq_end(j, k);
    s->limits.n_free += before - held(j);
}


/* What the engine does with a plan: take pages, compute, say tokens. */
static void
sim_apply(struct sim *s, uint32_t n_admitted)
{
    s->n_running += n_admitted;
    s->n_waiting -= n_admitted;

    for (uint32_t i = 0; i < s->n_running; i++) {
        struct sched_job *j = s->jobs[i];
        struct sim_job   *sj = (struct sim_job *) j;
        int               fork = 0;

        for (uint32_t k = 0; k < j->n_seqs; k++) {
            struct sched_seq *q = &j->seqs[k];

            s->limits.n_free -= q->n_take;
            q->n_done += q->n_run;
            fork |= k == 0 && q->n_run > 0 && q->n_done == j->n_prompt;
        }

        if (fork) {
            sched_job_fork(j, &s->limits);
        }

        for (uint32_t k = 0; k < j->n_seqs; k++) {
            struct sched_seq *q = &j->seqs[k];
            int               says = fork || (q->n_run > 0
                                              && q->n_done == q->n_tok);

            if (q->state == SCHED_LIVE && says
                && ++q->n_tok - j->n_prompt == sj->stop_at[k])
            {
                sim_end_seq(s, j, k);
            }
        }
    }
}


/* Removes what is over. */
static void
sim_reap(struct sim *s)
{
    uint32_t n = 0, n_running = s->n_running, n_all = n_running + s->n_waiting;

    for (uint32_t i = 0; i < n_all; i++) {
        if (sched_job_open(s->jobs[i]) == 0) {
            s->n_running -= i < n_running;
            s->n_waiting -= i >= n_running;
            continue;
        }

        s->jobs[n++] = s->jobs[i];
    }
}


static void
sim_step(struct sim *s)
{
    uint32_t n = sched_plan(&s->limits, s->jobs, s->n_running, s->n_waiting);

    sim_check(s, n);
    sim_apply(s, n);
    sim_reap(s);
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

    j->n_new = len[0];
    j->stop_at[0] = len[1];
    j->stop_at[1] = len[0];

    return sched_job_begin(&j->sched, l, n_prompt, j->n_new, n_seqs)
           <= l->n_pages;
}

#define SMALL_KINDS     36


static void
small_run(const struct sched_limits *l, const uint32_t kinds[3],
          uint32_t late)
{
    struct sim     s = { .limits = *l };
    struct sim_job jobs[3];
    uint32_t       n_steps = 0, n_left = 3;

    while (n_left > 0 || s.n_running + s.n_waiting > 0) {
        if (n_left > 0 && (n_left > late || n_steps >= 2)) {
            struct sim_job *j = &jobs[3 - n_left];

            if (small_job(j, l, kinds[3 - n_left])) {
                s.jobs[s.n_running + s.n_waiting++] = &j->sched;
            }

            n_left--;
            continue;
        }

        if (s.n_running + s.n_waiting > 0) {
            sim_step(&s);
        }

        assert_true(++n_steps < 100);
    }

    assert_int_equal(s.limits.n_free, l->n_pages);
}


/* Every set of three small jobs, all at once or the last one later, in every
 * small amount of pages, with pages of one and two tokens. */
static void
all_small_cases(void **state)
{
    (void) state;

    for (uint32_t n_pages = 1; n_pages <= 6; n_pages++) {
        for (uint32_t c = 0; c < 4; c++) {
            struct sched_limits l = {
                .page_tok = 1 + c % 2, .n_pages = n_pages, .n_free = n_pages,
                .n_batch_tok = 2 + c / 2, .n_seqs = 2 + c / 2
            };

            for (uint32_t i = 0; i < SMALL_KINDS * SMALL_KINDS * SMALL_KINDS;
                 i++)
            {
                uint32_t kinds[3] = {
                    i % SMALL_KINDS, i / SMALL_KINDS % SMALL_KINDS,
                    i / SMALL_KINDS / SMALL_KINDS
                };

                small_run(&l, kinds, i % 3);
            }
        }
    }
}


static void
random_arrival(struct sim *s, struct sim_job *j)
{
    for (;;) {
        uint32_t n_prompt = 1 + rng(rng(4) == 0 ? 900 : 60);
        uint32_t n_seqs = rng(4) == 0 ? 1 + rng(SCHED_SEQS_MAX) : 1;

        j->n_new = 1 + rng(rng(3) == 0 ? 800 : 40);

        if (n_seqs <= s->limits.n_seqs
            && sched_job_begin(&j->sched, &s->limits, n_prompt, j->n_new,
                               n_seqs) <= s->limits.n_pages)
        {
            break;
        }
    }

    for (uint32_t k = 0; k < SCHED_SEQS_MAX; k++) {
        j->stop_at[k] = rng(2) ? j->n_new : 1 + rng(j->n_new);
    }

    s->jobs[s->n_running + s->n_waiting++] = &j->sched;
}


/* Jobs come, pause, go on and are cancelled; in the end all pages are back. */
static void
random_runs(void **state)
{
    static struct sim_job jobs[JOBS_MAX];

    (void) state;

    for (uint64_t seed = 1; seed <= 60; seed++) {
        struct sim s = { .n_running = 0 };

        rng_state = seed * 0x9e3779b97f4a7c15ULL;
        s.limits.page_tok = rng(2) ? 64 : 1 + rng(20);
        s.limits.n_pages = 40 + rng(800);
        s.limits.n_free = s.limits.n_pages;
        s.limits.n_seqs = 1 + rng(64);
        s.limits.n_batch_tok = s.limits.n_seqs + rng(256);

        uint32_t n_left = 120, n_steps = 0;

        while (n_left > 0 || s.n_running + s.n_waiting > 0) {
            while (n_left > 0 && rng(3) == 0) {
                random_arrival(&s, &jobs[--n_left]);
            }

            if (s.n_running + s.n_waiting == 0) {
                continue;
            }

            struct sched_job *j = s.jobs[rng(s.n_running + s.n_waiting)];

            j->paused = rng(10) == 0;

            if (rng(200) == 0) {
                for (uint32_t k = 0; k < j->n_seqs; k++) {
                    if (j->seqs[k].state != SCHED_OVER) {
                        sim_end_seq(&s, j, k);
                    }
                }

                sim_reap(&s);
                continue;
            }

            s.jobs[0]->paused = s.jobs[0]->paused && rng(50) != 0;
            sim_step(&s);
            assert_true(++n_steps < 1000000);
        }

        assert_int_equal(s.limits.n_free, s.limits.n_pages);
    }
}


/* A decode is in every step, however long the prompt beside it. */
static void
prompts_do_not_stall_decodes(void **state)
{
    struct sched_limits l = {
        .page_tok = 64, .n_pages = 1000, .n_free = 1000, .n_batch_tok = 32,
        .n_seqs = 8
    };
    struct sched_job  a, b;
    struct sched_job *jobs[] = { &a, &b };

    (void) state;

    sched_job_begin(&a, &l, 10, 100, 1);
    sched_job_begin(&b, &l, 5000, 100, 1);

    assert_int_equal(sched_plan(&l, jobs, 0, 2), 2);
    assert_int_equal(a.seqs[0].n_run, 10);
    assert_int_equal(a.seqs[0].n_take, 1);
    assert_int_equal(b.seqs[0].n_run, 22);
    assert_int_equal(b.seqs[0].n_take, 79);

    a.seqs[0].n_done = 10;
    a.seqs[0].n_tok = 11;
    b.seqs[0].n_done = 22;
    l.n_free -= 80;

    assert_int_equal(sched_plan(&l, jobs, 2, 0), 0);
    assert_int_equal(a.seqs[0].n_run, 1);
    assert_int_equal(a.seqs[0].n_take, 0);
    assert_int_equal(b.seqs[0].n_run, 31);
}


/* First in, first out: a small job does not pass a large one that waits. */
static void
nobody_overtakes(void **state)
{
    struct sched_limits l = {
        .page_tok = 64, .n_pages = 10, .n_free = 10, .n_batch_tok = 64,
        .n_seqs = 8
    };
    struct sched_job  a, b, c;
    struct sched_job *jobs[] = { &a, &b, &c };

    (void) state;

    sched_job_begin(&a, &l, 64 * 4, 64, 1);
    sched_job_begin(&b, &l, 64 * 7, 64, 1);
    sched_job_begin(&c, &l, 1, 1, 1);

    assert_int_equal(sched_plan(&l, jobs, 0, 3), 1);
    assert_int_equal(c.seqs[0].n_take, 0);
}


static void
too_long_is_said(void **state)
{
    struct sched_limits l = {
        .page_tok = 64, .n_pages = 10, .n_free = 10, .n_batch_tok = 64,
        .n_seqs = 8
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
