/*
 * threads.c - the pool.  In: a function.  Out: it ran once on every thread.
 * Must not know what is computed.
 *
 * Two barriers a call: `round` moves on to start it, `n_left` falls to 0 to
 * end it.  Both sides spin for SPIN_US, since the next call of a step comes
 * after microseconds, and then sleep on a futex, since the next step may never
 * come: an idle engine uses no CPU.  A sleeper announces itself before it looks
 * for the last time, so the waker enters the kernel only if needed.
 */
#include "cpu/threads.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* To sleep and be woken takes 45 us (a virtual Emerald Rapids, 2026-11-28: a
 * call of nothing 0.4 us, and 45 after a pause that was slept through), so that
 * spinning twice as long costs at most twice what was best; longer than what a
 * step does on one thread between two calls, shorter than a scheduler's slice.
 * The clock is looked at every SPINS pauses, which take 1 to 4 us. */
#define SPIN_US         100
#define SPINS           64

struct pool {
    /* Written by the caller before `round` moves, read by workers after. */
    pool_fn          fn;
    void            *ctx;
    int              n;
    int              stop;

    struct place     place;
    cpu_set_t        before;    /* where the caller could run */

    _Alignas(64) _Atomic uint32_t round;
    _Alignas(64) _Atomic uint32_t n_asleep;     /* workers on `round` */
    _Alignas(64) _Atomic uint32_t n_left;       /* workers not done */
    _Atomic uint32_t caller_asleep;

    struct worker {
        struct pool *pool;
        pthread_t    thread;
        int          i;
    } workers[];                /* n - 1 */
};


static void
futex_wait(_Atomic uint32_t *w, uint32_t seen)
{
    syscall(SYS_futex, w, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}


static void
futex_wake(_Atomic uint32_t *w, int n)
{
    syscall(SYS_futex, w, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}


/* 1: *w is no longer `seen`; pairs with the stores in pool_run() and work(). */
static int
spin(_Atomic uint32_t *w, uint32_t seen)
{
    uint64_t until = clock_us() + SPIN_US;

    do {
        for (int i = 0; i < SPINS; i++) {
            if (atomic_load_explicit(w, memory_order_acquire) != seen) {
                return 1;
            }

            __builtin_ia32_pause();
        }
    } while (clock_us() < until);

    return 0;
}


/* Returns when *w is no longer `seen`; `asleep` counts who sleeps on it. */
static void
wait_change(_Atomic uint32_t *w, uint32_t seen, _Atomic uint32_t *asleep)
{
    if (spin(w, seen)) {
        return;
    }

    /* Sequentially consistent, as is the waker's store and look: either it
     * sees the sleeper, or the sleeper sees the change. */
    atomic_fetch_add(asleep, 1);

    while (atomic_load(w) == seen) {
        futex_wait(w, seen);
    }

    atomic_fetch_sub(asleep, 1);
}


/* The calling thread is thread i.  A system that does not allow it, or that has
 * taken the CPU away meanwhile, leaves it where it is. */
static void
go_to_place(const struct pool *p, int i)
{
    cpu_set_t cpus;

    if (place_cpus(&p->place, i, &cpus)) {
        sched_setaffinity(0, sizeof(cpus), &cpus);
    }
}


static void *
work(void *arg)
{
    struct worker *me = arg;
    struct pool   *p = me->pool;

    go_to_place(p, me->i);

    for (uint32_t seen = 0; ; seen++) {
        wait_change(&p->round, seen, &p->n_asleep);

        if (p->stop) {
            return NULL;
        }

        p->fn(p->ctx, me->i, p->n);

        /* Pairs with the caller's wait in pool_run(). */
        if (atomic_fetch_sub(&p->n_left, 1) == 1
            && atomic_load(&p->caller_asleep) != 0)
        {
            futex_wake(&p->n_left, 1);
        }
    }
}


static void
start_round(struct pool *p)
{
    atomic_fetch_add(&p->round, 1);     /* pairs with wait_change() */

    if (atomic_load(&p->n_asleep) != 0) {
        futex_wake(&p->round, p->n - 1);
    }
}


void
pool_run(struct pool *p, pool_fn fn, void *ctx)
{
    if (p->n == 1) {
        fn(ctx, 0, 1);
        return;
    }

    p->fn = fn;
    p->ctx = ctx;
    atomic_store(&p->n_left, (uint32_t) p->n - 1);
    start_round(p);

    fn(ctx, 0, p->n);

    for (;;) {
        uint32_t left = atomic_load(&p->n_left);

        if (left == 0) {
            return;
        }

        wait_change(&p->n_left, left, &p->caller_asleep);
    }
}


static void
stop_workers(struct pool *p, int n_started)
{
    p->stop = 1;
    start_round(p);

    for (int i = 0; i < n_started; i++) {
        pthread_join(p->workers[i].thread, NULL);
    }

    free(p);
}


struct pool *
pool_create_at(const struct place *place, struct err *e)
{
    int          n = place->n;
    size_t       n_bytes = sizeof(struct pool)
                           + (size_t) (n - 1) * sizeof(struct worker);
    struct pool *p = aligned_alloc(64, (n_bytes + 63) & ~(size_t) 63);

    if (p == NULL) {
        err_set(e, "no memory for %d threads", n);
        return NULL;
    }

    memset(p, 0, n_bytes);
    p->n = n;
    p->place = *place;
    sched_getaffinity(0, sizeof(p->before), &p->before);

    for (int i = 0; i < n - 1; i++) {
        struct worker *w = &p->workers[i];

        w->pool = p;
        w->i = i + 1;

        int rc = pthread_create(&w->thread, NULL, work, w);

        if (rc != 0) {
            err_set(e, "cannot start thread %d of %d: %s", i + 2, n,
                    strerror(rc));
            stop_workers(p, i);
            return NULL;
        }
    }

    go_to_place(p, 0);

    return p;
}


struct pool *
pool_create(int n, int pin, struct err *e)
{
    struct place_machine machine;
    struct place         place;
    cpu_set_t            may_use;

    CPU_ZERO(&may_use);
    sched_getaffinity(0, sizeof(may_use), &may_use);
    place_read(&machine, "/sys", &may_use);
    place_make(&place, &machine, n, pin);

    return pool_create_at(&place, e);
}


void
pool_free(struct pool *p)
{
    cpu_set_t cpus;

    if (p == NULL) {
        return;
    }

    if (place_cpus(&p->place, 0, &cpus)) {
        sched_setaffinity(0, sizeof(p->before), &p->before);
    }

    stop_workers(p, p->n - 1);
}


const struct place *
pool_place(const struct pool *p)
{
    return &p->place;
}
