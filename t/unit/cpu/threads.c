/*
 * threads.c: each thread runs each function once and none runs ahead, at the
 * place that it was given; a pool that waits uses no CPU, and one that is gone
 * leaves its caller where it was.
 */
#include "engine/cpu/threads.c"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>
#include <cmocka.h>

#define N       4
#define ROUNDS  20000

static uint32_t counts[N];
static cpu_set_t seen[N];


static void
count(void *ctx, int i, int n)
{
    const uint32_t *round = ctx;

    assert_int_equal(n, N);

    /* Nobody begins a round before all have ended the one before. */
    for (int k = 0; k < N; k++) {
        assert_in_range(__atomic_load_n(&counts[k], __ATOMIC_RELAXED), *round,
                        *round + 1);
    }

    __atomic_add_fetch(&counts[i], 1, __ATOMIC_RELAXED);
}


static void
look(void *ctx, int i, int n)
{
    (void) ctx;
    (void) n;
    sched_getaffinity(0, sizeof(seen[i]), &seen[i]);
}


static void
test_rounds(void **state)
{
    struct err   e = { "" };
    struct pool *p = pool_create(N, 0, &e);

    (void) state;
    assert_non_null(p);

    for (uint32_t round = 0; round < ROUNDS; round++) {
        pool_run(p, count, &round);
    }

    for (int i = 0; i < N; i++) {
        assert_int_equal(counts[i], ROUNDS);
    }

    pool_free(p);
}


/* The first and the last CPU that we may use as two nodes of a machine. */
static void
test_places(void **state)
{
    struct err           e = { "" };
    struct place_machine m = { .n_cpus = 2 };
    struct place         place;
    cpu_set_t            before, after;

    (void) state;
    sched_getaffinity(0, sizeof(before), &before);

    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (CPU_ISSET((size_t) cpu, &before)) {
            if (m.cpus[0].node == 0) {
                m.cpus[0] = (struct place_cpu) { cpu, 1, cpu };
            }

            m.cpus[1] = (struct place_cpu) { cpu, 2, cpu };
        }
    }

    if (m.cpus[0].cpu == m.cpus[1].cpu) {
        print_message("# SKIP one CPU is no two places\n");
        return;
    }

    place_make(&place, &m, 0, 1);

    struct pool *p = pool_create_at(&place, &e);

    assert_non_null(p);
    assert_int_equal(pool_place(p)->n_nodes, 2);
    pool_run(p, look, NULL);

    for (int i = 0; i < 2; i++) {
        assert_int_equal(CPU_COUNT(&seen[i]), 1);
        assert_true(CPU_ISSET((size_t) m.cpus[i].cpu, &seen[i]));
    }

    pool_free(p);
    sched_getaffinity(0, sizeof(after), &after);
    assert_memory_equal(&before, &after, sizeof(after));
}


/* Of the process: all threads. */
static uint64_t
cpu_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);

    return (uint64_t) t.tv_sec * 1000000 + (uint64_t) t.tv_nsec / 1000;
}


/* Three workers that spun for it would take 3,000,000 us.  On a machine that is
 * busy one may find no core to park on in time: it has some seconds. */
static void
test_idle(void **state)
{
    struct err      e = { "" };
    struct pool    *p = pool_create(N, 0, &e);
    struct timespec while_parking = { 0, 200000000 }, second = { 1, 0 };

    (void) state;
    assert_non_null(p);
    pool_run(p, look, NULL);
    nanosleep(&while_parking, NULL);

    uint64_t least = UINT64_MAX;

    for (int i = 0; i < 5 && least > 500; i++) {
        uint64_t before = cpu_us();

        nanosleep(&second, NULL);

        uint64_t used = cpu_us() - before;

        least = used < least ? used : least;
    }

    assert_in_range(least, 0, 500);     /* 0.0 % */
    pool_free(p);
}


int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rounds), cmocka_unit_test(test_places),
        cmocka_unit_test(test_idle)
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);

    return cmocka_run_group_tests(tests, NULL, NULL);
}
