/*
 * access.cc - a kernel's loads and stores, one by one: cuda/ is compiled with a
 * call in front of each, those that ThreadSanitizer has a compiler make, and
 * here they are answered.  (With other sanitizers there are none, and nothing
 * of this file is found.)
 *
 *   device memory   a mark to a word says who stored it last.  What a kernel
 *                   stored may not be there yet, and what it loads still be
 *                   wanted, when the next one begins: that one touches neither
 *                   before it has waited.  But what the kernels before that
 *                   stored is there, for hw_load_fresh(), if it let the next
 *                   one begin behind its own wait.  What another block of the
 *                   same kernel stored is for hw_load_fresh() alone, too.
 *   pinned memory   the host goes on when it sees a word: of a block, only one
 *                   thread may store it.
 *   shared memory   a byte's last thread, and how many fences it had made
 *                   then: if it has made none since, bulk copies and products
 *                   do not see the byte.
 */
#include "emu.h"

#include <cstring>
#include <map>
#include <sys/mman.h>

#define ARENA_BYTES     ((size_t) 1 << 40)
#define PAGE_BYTES      4096
#define WORD            4               /* bytes to a mark */
#define FENCE           EMU_THREADS_MAX /* added to a thread's number */

/* And of which kernel, in units of KERNEL. */
enum mark : uint32_t { BY_HOST, BY_STORE, BY_BULK, PINNED, KERNEL };

struct emu_watch emu_watch;

static char          *arena;            /* reserved, and taken from its front */
static size_t         n_taken;
static uint32_t      *marks;            /* (ARENA_BYTES / WORD) */
static uint32_t      *storers;          /* the same: which block */
static uint32_t       n_run;            /* blocks that have begun */
static uint32_t       n_kernels;        /* that have begun */
static bool           is_hasty;         /* lets the next begin too early */
static bool           was_hasty;        /* the kernel ahead did */
/* Who stored a byte: the thread's number, and FENCE a fence. */
static uint32_t       owners[EMU_SHARED_MAX];
static uint32_t       fences[EMU_THREADS_MAX];
static std::map<size_t, unsigned> told;         /* pinned words: by whom */


static char *
reserve(size_t n, int prot)
{
    void *p = mmap(NULL, n, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);

    return p == MAP_FAILED ? NULL : (char *) p;
}


static void
mark(size_t at, size_t n, enum mark m)
{
    uint32_t value = m == BY_HOST || m == PINNED ? m : n_kernels * KERNEL + m;

    for (size_t i = at / WORD; i <= (at + n - 1) / WORD; i++) {
        if (marks[i] != value && marks[i] != PINNED) {
            marks[i] = value;
        }
    }
}


void *
emu_pages_take(size_t n, bool is_pinned)
{
    if (arena == NULL) {
        arena = reserve(ARENA_BYTES, PROT_NONE);
        marks = (uint32_t *) (void *) reserve(ARENA_BYTES / WORD
                                              * sizeof(*marks),
                                              PROT_READ | PROT_WRITE);
        storers = (uint32_t *) (void *) reserve(ARENA_BYTES / WORD
                                                * sizeof(*storers),
                                                PROT_READ | PROT_WRITE);
    }

    if (arena == NULL || marks == NULL || storers == NULL
        || n > ARENA_BYTES - n_taken - 2 * PAGE_BYTES)
    {
        return NULL;
    }

    char *p = arena + n_taken + PAGE_BYTES;

    if (mprotect(p, n, PROT_READ | PROT_WRITE) != 0) {
        return NULL;
    }

    n_taken += n + PAGE_BYTES;

    if (is_pinned) {
        mark((size_t) (p - arena), n, PINNED);
    }

    return p;
}


/* Nobody gets these again: who still uses them shows. */
void
emu_pages_give(void *p, size_t n)
{
    size_t at = (size_t) ((char *) p - arena);

    mmap(p, n, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
         | MAP_FIXED, -1, 0);
    madvise(marks + at / WORD, n / WORD * sizeof(*marks), MADV_DONTNEED);
}


/* Where p is in the arena; or beyond. */
static inline size_t
place_of(const void *p)
{
    return arena == NULL ? ARENA_BYTES : (size_t) ((const char *) p - arena);
}


/* The largest mark of n bytes. */
static inline uint32_t
mark_of(size_t at, size_t n)
{
    uint32_t most = BY_HOST;

    for (size_t i = at / WORD; i <= (at + n - 1) / WORD; i++) {
        most = most > marks[i] ? most : marks[i];
    }

    return most;
}


/* Whether another block of this kernel stored some of n bytes. */
static inline bool
is_anothers(size_t at, size_t n)
{
    for (size_t i = at / WORD; i <= (at + n - 1) / WORD; i++) {
        if (marks[i] == n_kernels * KERNEL + BY_STORE && storers[i] != n_run) {
            return true;
        }
    }

    return false;
}


/* The host is told something. */
static void
tell(const void *p, size_t at, size_t n)
{
    for (size_t i = at / WORD; i <= (at + n - 1) / WORD; i++) {
        auto one = told.insert({ i, emu_watch.thread });

        if (one.first->second != emu_watch.thread) {
            emu_fail("stores to %p, which is the host's since thread %u "
                     "stored it", p, one.first->second);
        }
    }
}


static inline void
load(const void *p, size_t n)
{
    size_t at = (size_t) ((const unsigned char *) p - emu_watch.shared);

    if (emu_watch.shared != NULL && at < emu_watch.n_shared) {
        emu_race_load(p, n);
        return;
    }

    at = place_of(p);

    if (emu_watch.is_early && at < ARENA_BYTES && mark_of(at, n) != BY_HOST) {
        emu_fail("loads from %p what a kernel before stores, and has not "
                 "waited for it", p);
    }

    if (emu_watch.shared != NULL && at < ARENA_BYTES && is_anothers(at, n)) {
        emu_fail("loads from %p what another block stores, and not afresh",
                 p);
    }
}


static inline void
store(const void *p, size_t n)
{
    size_t at = (size_t) ((const unsigned char *) p - emu_watch.shared);

    if (emu_watch.shared == NULL) {
        return;
    }

    if (at < emu_watch.n_shared) {
        emu_race_store(p, n);

        for (size_t i = at; i < at + n && i < EMU_SHARED_MAX; i++) {
            owners[i] = fences[emu_watch.thread];
        }

        return;
    }

    at = place_of(p);

    if (at < ARENA_BYTES) {
        if (emu_watch.is_early) {
            emu_fail("stores to %p, and has not waited for the kernels before",
                     p);
        }

        if (marks[at / WORD] == PINNED) {
            tell(p, at, n);
        }

        mark(at, n, BY_STORE);

        for (size_t i = at / WORD; i <= (at + n - 1) / WORD; i++) {
            storers[i] = n_run;
        }
    }
}


void
emu_loads_fresh(const void *p, size_t n)
{
    size_t at = place_of(p);

    if (emu_watch.is_early && at < ARENA_BYTES
        && (was_hasty || mark_of(at, n) / KERNEL + 1 >= n_kernels))
    {
        load(p, n);
    }
}


void
emu_adds(const void *p)
{
    if (place_of(p) < ARENA_BYTES) {
        store(p, sizeof(unsigned));
    }
}


void
emu_kernel_begin()
{
    n_kernels++;
    was_hasty = is_hasty;
    is_hasty = false;
}


void
emu_release()
{
    is_hasty |= emu_watch.is_early;
}


void
emu_loads(const void *p, size_t n, bool by_bulk)
{
    size_t at = place_of(p);

    load(p, n);

    if (by_bulk && at < ARENA_BYTES && !emu_is_bulk_fenced()
        && mark_of(at, n) % KERNEL == BY_STORE)
    {
        emu_fail("a bulk copy from %p, which a kernel before stored, without "
                 "a fence", p);
    }
}


void
emu_stores(const void *p, size_t n, bool by_bulk)
{
    size_t at = place_of(p);

    if (n != 0 && at < ARENA_BYTES) {
        mark(at, n, by_bulk ? BY_BULK : BY_HOST);
    }
}


void
emu_shared_loads(const void *p, size_t n)
{
    size_t at = (size_t) ((const unsigned char *) p - emu_watch.shared);

    for (size_t i = at; i < at + n && i < EMU_SHARED_MAX; i++) {
        unsigned thread = owners[i] % FENCE;

        if (owners[i] == fences[thread]) {
            emu_fail("byte %zu of shared memory is read by a product or a "
                     "bulk copy: thread %u stored it, and made no fence", i,
                     thread);
        }
    }
}


/* A bulk copy has stored it. */
void
emu_shared_stores(const void *p, size_t n)
{
    size_t at = (size_t) ((const unsigned char *) p - emu_watch.shared);

    if (at < EMU_SHARED_MAX) {
        memset(owners + at, 0, (n < EMU_SHARED_MAX - at ? n
                                         : EMU_SHARED_MAX - at)
                               * sizeof(*owners));
    }
}


void
emu_shared_fence()
{
    fences[emu_watch.thread] += FENCE;
}


/* Of the block before nothing counts. */
void
emu_shared_begin()
{
    n_run++;
    told.clear();

    for (unsigned i = 0; i < EMU_THREADS_MAX; i++) {
        fences[i] = (fences[i] / FENCE + 1) * FENCE + i;
    }
}


/* What the compiler calls; functions and virtual tables are nothing to us. */
extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void **, void *) {}
void __tsan_vptr_read(void **) {}

#define ACCESSES(n)                                                           \
    void __tsan_read##n(void *p) { load(p, n); }                              \
    void __tsan_write##n(void *p) { store(p, n); }                            \
    void __tsan_unaligned_read##n(void *p) { load(p, n); }                    \
    void __tsan_unaligned_write##n(void *p) { store(p, n); }

ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

void __tsan_read_range(void *p, size_t n) { load(p, n); }
void __tsan_write_range(void *p, size_t n) { store(p, n); }

/* The host's own. */
void
__tsan_atomic32_store(volatile int *p, int v, int)
{
    __atomic_store_n(p, v, __ATOMIC_SEQ_CST);
}

int
__tsan_atomic32_exchange(volatile int *p, int v, int)
{
    return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);
}

int
__tsan_atomic32_load(const volatile int *p, int)
{
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}

}
