/*
 * rng.h - random numbers that are the same in each run of a test: xorshift64
 * of Marsaglia (2003), whose state is never 0.  A test that wants others sets
 * rng_state.
 */
#ifndef MOE_T_RNG_H
#define MOE_T_RNG_H

#include <stdint.h>

static uint64_t rng_state = 88172645463325252ULL;


static inline uint64_t
rng_next(void)
{
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;

    return rng_state;
}


/* One of 0 .. n - 1; its upper half is the better one. */
static inline uint32_t
rng(uint32_t n)
{
    return (uint32_t) ((rng_next() >> 32) % n);
}

#endif /* MOE_T_RNG_H */
