/*
 * race.cc - loads and stores of shared memory that nothing has put in order,
 * whichever came first in the emulation.
 *
 * Each thread has a clock, and knows how much of the others' is behind it: what
 * __syncwarp(), barriers of some threads, and arrivals at barriers that it has
 * waited for have told it.  Shuffles and products tell nothing.  Two bytes keep
 * who stored them last, and who loaded them last, and when.  (As in FastTrack,
 * Flanagan and Freund, PLDI'09.)  Behind a barrier of the whole block, or of a
 * whole cluster, all is in order: a new round begins.  Single bytes are stored
 * beside others' and not looked at.
 */
#include "emu.h"

#include <cstring>
#include <map>

#define UNIT        2           /* bytes */
#define THREAD_BITS 10
#define CLOCK_BITS  24

/* What a thread or a barrier knows. */
struct clocks {
    uint32_t round;             /* that this is of: else it knows nothing */
    uint32_t mine;              /* of a thread: its own */
    bool     is_told;           /* seen[] is of this round, too */
    uint32_t seen[EMU_THREADS_MAX];
};

/* Round, clock and thread of a load or a store. */
typedef uint64_t access;

static clocks   threads[EMU_THREADS_MAX];
static access   stores[EMU_SHARED_MAX / UNIT];
static access   loads[EMU_SHARED_MAX / UNIT];
static unsigned n_threads;
static uint32_t now;                    /* round; 0: of nobody */
static std::map<const void *, clocks> barriers;


static inline clocks &
clocks_of(unsigned thread)
{
    clocks &c = threads[thread];

    if (c.round != now) {
        c.round = now;
        c.mine = 1;
        c.is_told = false;
    }

    return c;
}


/* `to` knows what `from` knows; and the clock of a thread, or nobody's. */
static void
tell(clocks &to, const clocks &from, int thread)
{
    if (!to.is_told) {
        to.is_told = true;
        memset(to.seen, 0, n_threads * sizeof(*to.seen));
    }

    for (unsigned i = 0; from.is_told && i < n_threads; i++) {
        to.seen[i] = to.seen[i] < from.seen[i] ? from.seen[i] : to.seen[i];
    }

    if (thread >= 0) {
        to.seen[thread] = from.mine;
    }
}


void
emu_race_begin(unsigned n)
{
    n_threads = n;
    now++;
    barriers.clear();
}


void
emu_race_meet(unsigned from, unsigned n)
{
    static clocks all;

    all.is_told = false;

    for (unsigned i = from; i < from + n; i++) {
        tell(all, clocks_of(i), (int) i);
    }

    for (unsigned i = from; i < from + n; i++) {
        threads[i].is_told = true;
        threads[i].mine++;
        memcpy(threads[i].seen, all.seen, n_threads * sizeof(*all.seen));
    }
}


void
emu_race_arrive(const void *barrier)
{
    clocks &c = clocks_of(emu_watch.thread);

    tell(barriers[barrier], c, (int) emu_watch.thread);
    c.mine++;
}


void
emu_race_wait(const void *barrier)
{
    tell(clocks_of(emu_watch.thread), barriers[barrier], -1);
}


static inline access
access_of(const clocks &c, unsigned thread)
{
    return (access) c.round << (CLOCK_BITS + THREAD_BITS)
           | (access) c.mine << THREAD_BITS | thread;
}


static inline void
check(access a, const clocks &c, size_t i, const char *first,
      const char *second)
{
    unsigned thread = a % (1u << THREAD_BITS);
    uint32_t clock = a >> THREAD_BITS & ((1u << CLOCK_BITS) - 1);

    if (a >> (CLOCK_BITS + THREAD_BITS) == now && thread != emu_watch.thread
        && (!c.is_told || clock > c.seen[thread]))
    {
        emu_fail("%s byte %zu of shared memory, which thread %u %s: nothing "
                 "has put these in order", second, i * UNIT, thread, first);
    }
}


/* The units of n bytes from p on. */
static inline size_t
unit_of(const void *p)
{
    return (size_t) ((const unsigned char *) p - emu_watch.shared) / UNIT;
}


void
emu_race_load(const void *p, size_t n)
{
    const clocks &c = clocks_of(emu_watch.thread);
    access        a = access_of(c, emu_watch.thread);

    for (size_t i = unit_of(p), end = i + n / UNIT; i < end; i++) {
        check(stores[i], c, i, "stores", "loads");
        loads[i] = a;
    }
}


void
emu_race_store(const void *p, size_t n)
{
    const clocks &c = clocks_of(emu_watch.thread);
    access        a = access_of(c, emu_watch.thread);

    for (size_t i = unit_of(p), end = i + n / UNIT; i < end; i++) {
        check(stores[i], c, i, "stores", "stores");
        check(loads[i], c, i, "loads", "stores");
        stores[i] = a;
    }
}


/* Who waits for its barrier, has it. */
void
emu_race_copy(const void *p, size_t n)
{
    emu_race_store(p, n);
    memset(stores + unit_of(p), 0, n / UNIT * sizeof(*stores));
}
