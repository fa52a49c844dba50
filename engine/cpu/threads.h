/*
 * threads.h - a pool of threads that do one thing together and then wait.
 */
#ifndef MOE_CPU_THREADS_H
#define MOE_CPU_THREADS_H

#include "cpu/place.h"

struct pool;

/* Threads at their places, the caller the first of them.  NULL: e. */
struct pool *pool_create_at(const struct place *place, struct err *e);
/* n threads of this machine as place_make() has it. */
struct pool *pool_create(int n, int pin, struct err *e);
void pool_free(struct pool *p);         /* the caller is where it was */
const struct place *pool_place(const struct pool *p);

/* Calls fn(ctx, i, n) on each of the n threads, and returns when all are done.
 * One caller at a time. */
typedef void (*pool_fn)(void *ctx, int i, int n);
void pool_run(struct pool *p, pool_fn fn, void *ctx);

/* Thread i's part of 0 .. n_all - 1: [*from, *to). */
static inline void
pool_part(uint32_t n_all, int i, int n, uint32_t *from, uint32_t *to)
{
    *from = (uint32_t) ((uint64_t) n_all * (uint32_t) i / (uint32_t) n);
    *to = (uint32_t) ((uint64_t) n_all * ((uint32_t) i + 1) / (uint32_t) n);
}

#endif /* MOE_CPU_THREADS_H */
