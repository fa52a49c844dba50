/*
 * emu.cc - fibres, their turns, and what they wait for; see emu.h.
 */
#include "emu.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <sanitizer/asan_interface.h>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

#define STACK_BYTES     (128 * 1024)
#define PAGE_BYTES      4096
#define SHARED_MAX      (227 * 1024)
#define GRID_MAX        65535           /* blocks, of dimensions y and z */
/* Rounds of turns in which nobody gets further: nobody will. */
#define ROUNDS_MAX      1000

enum fibre_state { READY, AT_BARRIER, AT_CLUSTER, IN_GROUP, DONE };

struct copy {
    void       *to;
    const void *from;
    size_t      n;
};

struct bulk_copy {
    copy      c;
    uint64_t *barrier;
};

/* What a barrier's 8 bytes are. */
struct barrier {
    uint16_t n;                 /* arrivals of a phase */
    uint16_t left;              /* of this phase */
    int32_t  bytes_phase;       /* 2 * bytes that are missing + its number */
};

struct fibre {
    uint3             thread;
    uint3             block;
    unsigned          rank;             /* its block's in the cluster */
    void             *sp;
    char             *stack;
    enum fibre_state  state;
    void             *arg;              /* IN_GROUP */
    unsigned          group;            /* threads in it */
    bool              depended;
    bool              bulk_fenced;      /* since then */
    std::vector<copy> open;             /* not committed */
    std::vector<std::vector<copy>> groups;
    std::vector<copy> puts;             /* from shared memory */
};

static struct {
    fibre    fibres[EMU_THREADS_MAX];
    unsigned turns[EMU_THREADS_MAX];    /* in which order */
    unsigned n;                         /* of all blocks of the cluster */
    unsigned n_in_block;
    unsigned n_blocks;                  /* of the cluster */
    unsigned n_done;
    unsigned n_at_cluster;
    unsigned n_done_of[EMU_CLUSTER_MAX];
    unsigned n_at_barrier[EMU_CLUSTER_MAX];
    /* Of warps, warpgroups and larger ones, by their first warp. */
    unsigned n_in_group[3][EMU_THREADS_MAX / EMU_WARP];
    bool     moved;                     /* somebody, in this round */
    fibre   *now;
    void    *scheduler;                 /* its stack pointer */
    const std::function<void()> *fn;
    unsigned char *shared_pages;        /* a block's, then a guard, .. */
    size_t   shared_bytes;
    enum emu_order order;
    unsigned seed;
    bool     started;
    bool     overlaps;
    std::vector<bulk_copy> bulk;        /* not made yet */
} g;

uint3         threadIdx;
uint3         blockIdx;
dim3          blockDim;
dim3          gridDim;
unsigned long emu_n_launches;
bool          emu_only_counts;


void
emu_fail(const char *fmt, ...)
{
    va_list ap;

    fflush(stdout);
    fprintf(stderr, "emulation: ");

    if (g.now != NULL) {
        fprintf(stderr, "block (%u, %u, %u) thread (%u, %u, %u): ",
                blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y,
                threadIdx.z);
    }

    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, "\n");
    abort();
}


/*
 * Saves the callee's registers on this stack and goes on with another.  A new
 * fibre's stack looks as if it had been left at fibre_enter().  (ucontext
 * would do, but asks the kernel at each switch: twenty times slower.)
 */
extern "C" void emu_switch(void **save, void *to);

__asm__(".text\n"
        ".globl emu_switch\n"
        "emu_switch:\n"
        "    push %rbp\n    push %rbx\n    push %r12\n"
        "    push %r13\n    push %r14\n    push %r15\n"
        "    mov %rsp, (%rdi)\n"
        "    mov %rsi, %rsp\n"
        "    pop %r15\n    pop %r14\n    pop %r13\n"
        "    pop %r12\n    pop %rbx\n    pop %rbp\n"
        "    ret\n");


/* A block's shared memory; it ends at the guard. */
static unsigned char *
shared_of(unsigned rank)
{
    return g.shared_pages + rank * EMU_SHARED_EACH + EMU_SHARED_EACH
           - PAGE_BYTES - (g.shared_bytes + 15) / 16 * 16;
}


/* The block whose shared memory this is has to be there still. */
static void
look_at_block(const void *p)
{
    size_t rank = (size_t) ((const unsigned char *) p - g.shared_pages)
                  / EMU_SHARED_EACH;

    if (rank >= g.n_blocks || g.n_done_of[rank] == g.n_in_block) {
        emu_fail("copies to %p or arrives there: of no block, or of one that "
                 "has ended", p);
    }
}


static void
end_block(unsigned rank)
{
    for (const bulk_copy &b : g.bulk) {
        auto *to = (const unsigned char *) b.c.to;

        if (to >= shared_of(rank) && to < shared_of(rank) + g.shared_bytes) {
            emu_fail("a block ended with copies that nobody waited for");
        }
    }
}


static void
fibre_enter()
{
    (*g.fn)();

    fibre *f = g.now;

    if (!f->open.empty() || !f->groups.empty() || !f->puts.empty()
        || !emu_group_is_idle())
    {
        emu_fail("ends with copies or products that were not waited for");
    }

    f->state = DONE;
    g.moved = true;
    g.n_done++;

    if (++g.n_done_of[f->rank] == g.n_in_block) {
        end_block(f->rank);
    }

    emu_switch(&f->sp, g.scheduler);
    abort();
}


static void
fibre_start(fibre *f)
{
    if (f->stack == NULL) {
        void *p = mmap(NULL, PAGE_BYTES + STACK_BYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

        if (p == MAP_FAILED || mprotect(p, PAGE_BYTES, PROT_NONE) != 0) {
            emu_fail("no memory for a stack");
        }

        f->stack = (char *) p + PAGE_BYTES;
    }

    /* Frames that a fibre never came back from. */
    ASAN_UNPOISON_MEMORY_REGION(f->stack + STACK_BYTES - PAGE_BYTES,
                                PAGE_BYTES);

    /* Six registers, where to return to, and what keeps the alignment that a
     * function finds at its entry. */
    void **sp = (void **) (void *) (f->stack + STACK_BYTES) - 8;

    memset(sp, 0, 8 * sizeof(*sp));
    sp[6] = (void *) fibre_enter;
    f->sp = sp;
    f->state = READY;
    f->depended = f->bulk_fenced = false;
}


/* This fibre goes on. */
static void
watch(const fibre *f)
{
    threadIdx = f->thread;
    blockIdx = f->block;
    emu_watch.thread = (unsigned) (f - g.fibres);
    emu_watch.is_early = g.overlaps && !f->depended;
}


static void
leave()
{
    fibre *f = g.now;

    emu_switch(&f->sp, g.scheduler);
}


void
emu_order_set(enum emu_order order, unsigned seed)
{
    g.order = order;
    g.seed = seed * 2 + 1;
    g.started = true;
}


unsigned
emu_draw(unsigned n)
{
    g.seed ^= g.seed << 13;
    g.seed ^= g.seed >> 17;
    g.seed ^= g.seed << 5;

    return g.seed % n;
}


/* 0 .. n - 1 in the order of turns. */
static void
make_turns(unsigned *turns, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        turns[i] = g.order == EMU_BACKWARDS ? n - 1 - i : i;
    }

    for (unsigned i = n; g.order == EMU_SHUFFLED && i > 1; i--) {
        unsigned k = emu_draw(i), t = turns[k];

        turns[k] = turns[i - 1];
        turns[i - 1] = t;
    }
}


static unsigned
index_of(const fibre *f)
{
    return (unsigned) (f - g.fibres);
}


static void
say_stuck()
{
    for (unsigned i = 0; i < g.n; i++) {
        static const char *const names[] = {
            "runs", "at the block's barrier", "at the cluster's barrier",
            "waits for its group", "done"
        };

        if (i == 0 || g.fibres[i].state != g.fibres[i - 1].state) {
            fprintf(stderr, "emulation: from thread %u on: %s\n", i,
                    names[g.fibres[i].state]);
        }
    }

    emu_fail("stuck: no thread gets further");
}


/* One turn of up to a warp from turn `first` on; false: none is ready. */
static bool
take_turns(unsigned first)
{
    bool any = false;

    for (unsigned i = first; i < first + EMU_WARP && i < g.n; i++) {
        fibre *f = &g.fibres[g.turns[i]];

        if (f->state != READY) {
            continue;
        }

        any = true;
        g.now = f;
        watch(f);
        emu_switch(&g.scheduler, f->sp);
    }

    return any;
}


/* Fibres of blocks b, b + 1 .. of the grid. */
static void
start_cluster(unsigned b)
{
    g.n_in_block = blockDim.x * blockDim.y * blockDim.z;
    g.n = g.n_blocks * g.n_in_block;
    g.n_done = g.n_at_cluster = 0;
    memset(g.n_done_of, 0, sizeof(g.n_done_of));
    memset(g.n_at_barrier, 0, sizeof(g.n_at_barrier));
    memset(g.n_in_group, 0, sizeof(g.n_in_group));
    emu_watch.shared = g.shared_pages;
    emu_watch.n_shared = g.n_blocks * EMU_SHARED_EACH;
    emu_shared_begin();
    emu_race_begin(g.n);

    for (unsigned rank = 0; rank < g.n_blocks; rank++) {
        memset(shared_of(rank), 0xff, (g.shared_bytes + 15) / 16 * 16);
    }

    for (unsigned i = 0; i < g.n; i++) {
        fibre   *f = &g.fibres[i];
        unsigned t = i % g.n_in_block;

        f->rank = i / g.n_in_block;
        f->block.x = (b + f->rank) % gridDim.x;
        f->block.y = b / gridDim.x % gridDim.y;
        f->block.z = b / gridDim.x / gridDim.y;
        f->thread.x = t % blockDim.x;
        f->thread.y = t / blockDim.x % blockDim.y;
        f->thread.z = t / blockDim.x / blockDim.y;
        fibre_start(f);
    }
}


static void
run_cluster(unsigned b)
{
    unsigned idle = 0;

    start_cluster(b);

    make_turns(g.turns, g.n);

    while (g.n_done < g.n) {
        bool any = false, moved = false;

        for (unsigned i = 0; i < g.n; i += EMU_WARP) {
            do {
                g.moved = false;
                any |= take_turns(i);
                moved |= g.moved;
            } while (g.moved && g.order == EMU_BACKWARDS);
        }

        idle = moved ? 0 : idle + 1;

        if (!any || idle > ROUNDS_MAX) {
            say_stuck();
        }
    }

    g.now = NULL;
    emu_watch.shared = NULL;
    emu_watch.is_early = false;
}


static void
start()
{
    const char *order = getenv("MOE_EMU_ORDER");
    const char *seed = getenv("MOE_EMU_SEED");
    void       *p = mmap(NULL, EMU_SHARED_MAX,
                         PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED) {
        emu_fail("no memory for shared memory");
    }

    g.shared_pages = (unsigned char *) p;

    for (unsigned i = 1; i <= EMU_CLUSTER_MAX; i++) {
        mprotect(g.shared_pages + i * EMU_SHARED_EACH - PAGE_BYTES, PAGE_BYTES,
                 PROT_NONE);
    }

    if (!g.started) {
        emu_order_set(order == NULL ? EMU_FORWARDS
                                    : (enum emu_order) (*order - '0'),
                      seed == NULL ? 1 : (unsigned) atoi(seed));
    }
}


enum emu_order
emu_order_get()
{
    if (!g.started) {
        start();
    }

    return g.order;
}


void
emu_run(dim3 n_blocks, dim3 n_threads, size_t shared_bytes, bool overlaps,
        const std::function<void()> &fn, unsigned n_cluster)
{
    unsigned  n = n_blocks.x * n_blocks.y * n_blocks.z;
    unsigned  n_in_block = n_threads.x * n_threads.y * n_threads.z;
    std::unique_ptr<unsigned[]> turns(new unsigned[n]);

    if (g.shared_pages == NULL) {
        start();
    }

    if (n == 0 || n_in_block == 0
        || n_cluster * n_in_block > EMU_THREADS_MAX
        || n_cluster == 0 || n_cluster > EMU_CLUSTER_MAX
        || n_blocks.x % n_cluster != 0
        || (n_cluster > 1 && n_in_block % EMU_WARP != 0)
        || n_blocks.y > GRID_MAX || n_blocks.z > GRID_MAX
        || shared_bytes > SHARED_MAX)
    {
        emu_fail("cannot launch (%u, %u, %u) blocks of %u threads with %zu "
                 "bytes in clusters of %u", n_blocks.x, n_blocks.y, n_blocks.z,
                 n_in_block, shared_bytes, n_cluster);
    }

    emu_n_launches++;

    if (emu_only_counts) {
        return;
    }

    blockDim = n_threads;
    gridDim = n_blocks;
    g.fn = &fn;
    g.shared_bytes = shared_bytes;
    g.n_blocks = n_cluster;
    g.overlaps = overlaps;
    emu_kernel_begin();
    make_turns(turns.get(), n / n_cluster);

    for (unsigned i = 0; i < n / n_cluster; i++) {
        unsigned b = turns[i] * n_cluster;

        run_cluster(b);

        for (unsigned k = 0; overlaps && k < g.n; k++) {
            if (!g.fibres[k].depended) {
                emu_fail("thread %u of block %u never waited for the kernels "
                         "before", k % g.n_in_block, b + k / g.n_in_block);
            }
        }
    }
}


unsigned char *
emu_shared(size_t *n)
{
    if (n != NULL) {
        *n = g.shared_bytes;
    }

    return shared_of(g.now->rank);
}


unsigned
emu_cluster_rank()
{
    return g.now->rank;
}


void *
emu_cluster_at(const void *p, unsigned rank)
{
    auto *at = (const unsigned char *) p;

    if (rank >= g.n_blocks || at < emu_shared(NULL)
        || at >= emu_shared(NULL) + g.shared_bytes)
    {
        emu_fail("%p in block %u of a cluster of %u", p, rank, g.n_blocks);
    }

    return shared_of(rank) + (at - emu_shared(NULL));
}


/* This one waits for all n from fibre `from` on. */
static void
sync_fibres(enum fibre_state state, unsigned *n_here, unsigned n_done,
            unsigned from, unsigned n)
{
    g.now->state = state;
    g.moved = true;

    if (n_done != 0) {
        emu_fail("waits at a barrier that %u threads have passed by", n_done);
    }

    if (++*n_here == n) {
        *n_here = 0;

        if (n == g.n) {
            emu_race_begin(n);
        } else {
            emu_race_meet(from, n);
        }

        for (unsigned i = from; i < from + n; i++) {
            g.fibres[i].state = READY;
        }
    }

    leave();
}


void
emu_sync_block()
{
    unsigned rank = g.now->rank;

    sync_fibres(AT_BARRIER, &g.n_at_barrier[rank], g.n_done_of[rank],
                rank * g.n_in_block, g.n_in_block);
}


void
emu_sync_cluster()
{
    sync_fibres(AT_CLUSTER, &g.n_at_cluster, g.n_done, 0, g.n);
}


void
emu_sync_group(unsigned n, void *arg, void (*fn)(void **args, unsigned n))
{
    fibre   *f = g.now;
    unsigned first = f->rank * g.n_in_block;
    unsigned from = first + (index_of(f) - first) / n * n;
    unsigned kind = n == EMU_WARP ? 0 : n == 4 * EMU_WARP ? 1 : 2;
    unsigned *n_here = &g.n_in_group[kind][from / EMU_WARP];

    g.moved = true;
    f->state = IN_GROUP;
    f->group = n;
    f->arg = arg;

    if (++*n_here == n) {
        void *args[EMU_THREADS_MAX];

        *n_here = 0;

        for (unsigned i = 0; i < n; i++) {
            fibre *other = &g.fibres[from + i];

            if (other->state != IN_GROUP || other->group != n) {
                emu_fail("groups of %u and %u meet", n, other->group);
            }

            args[i] = other->arg;
            other->state = READY;
        }

        if (fn != NULL) {
            fn(args, n);
        } else {
            emu_race_meet(from, n);
        }

        return;
    }

    leave();
}


void
emu_yield()
{
    leave();
}


/* A copy that is under way: what is there is lost. */
static void
poison(void *to, size_t n)
{
    memset(to, 0xff, n);
}


void
emu_copy_later(void *to, const void *from, size_t n)
{
    if (from != NULL) {
        emu_loads(from, n, false);
    }

    emu_race_store(to, n);
    poison(to, n);
    g.now->open.push_back({ to, from, n });
}


void
emu_copy_commit()
{
    g.now->groups.push_back(std::move(g.now->open));
    g.now->open.clear();
}


void
emu_copy_wait(unsigned n_left)
{
    auto &groups = g.now->groups;

    while (groups.size() > n_left) {
        for (const copy &c : groups.front()) {
            emu_race_store(c.to, c.n);

            if (c.from != NULL) {
                memcpy(c.to, c.from, c.n);
            } else {
                memset(c.to, 0, c.n);
            }
        }

        groups.erase(groups.begin());
    }
}


static struct barrier *
barrier_of(uint64_t *b)
{
    auto *p = (struct barrier *) (void *) b;

    if ((uintptr_t) b % 8 != 0 || p->n == 0 || p->n > EMU_THREADS_MAX
        || p->left > p->n)
    {
        emu_fail("a barrier that was not made");
    }

    return p;
}


static void
barrier_count(struct barrier *p, unsigned n_arrivals, int n_bytes)
{
    if (p->left < n_arrivals) {
        emu_fail("more arrivals at a barrier than it was made for");
    }

    p->bytes_phase += 2 * n_bytes;
    p->left = (uint16_t) (p->left - n_arrivals);

    if (p->left == 0 && p->bytes_phase >> 1 == 0) {
        p->left = p->n;
        p->bytes_phase ^= 1;
        g.moved = true;
    }
}


void
emu_barrier_init(uint64_t *b, unsigned n)
{
    struct barrier p = { (uint16_t) n, (uint16_t) n, 0 };

    memcpy(b, &p, sizeof(p));
}


void
emu_barrier_arrive(uint64_t *b, unsigned n_bytes)
{
    emu_race_arrive(b);
    barrier_count(barrier_of(b), 1, (int) n_bytes);
}


void
emu_cluster_arrive(uint64_t *b, unsigned rank)
{
    auto *there = (uint64_t *) emu_cluster_at(b, rank);

    look_at_block(there);
    emu_race_arrive(there);
    barrier_count(barrier_of(there), 1, 0);
}


static void
make_copy(const bulk_copy &b)
{
    look_at_block(b.c.to);
    memcpy(b.c.to, b.c.from, b.c.n);
    emu_shared_stores(b.c.to, b.c.n);
    barrier_count(barrier_of(b.barrier), 0, -(int) b.c.n);
}


void
emu_barrier_wait(uint64_t *b, unsigned phase)
{
    while ((unsigned) (barrier_of(b)->bytes_phase & 1) == phase) {
        bool any = false;

        for (size_t i = 0; i < g.bulk.size() && !any; i++) {
            if (g.bulk[i].barrier == b) {
                any = true;
                make_copy(g.bulk[i]);
                g.bulk.erase(g.bulk.begin() + (long) i);
            }
        }

        if (!any) {
            leave();
        }
    }

    emu_race_wait(b);
}


/* What may be made late or early. */
static bool
is_at_once()
{
    return g.order == EMU_BACKWARDS
           || (g.order == EMU_SHUFFLED && emu_draw(2) == 0);
}


void
emu_bulk_copy(void *to, const void *from, size_t n, uint64_t *b)
{
    if (((uintptr_t) to | (uintptr_t) from | n) % 16 != 0) {
        emu_fail("a bulk copy of %zu bytes from %p to %p", n, from, to);
    }

    emu_loads(from, n, true);
    emu_race_copy(to, n);

    if (is_at_once()) {
        make_copy({ { to, from, n }, b });
    } else {
        look_at_block(to);
        poison(to, n);
        g.bulk.push_back({ { to, from, n }, b });
    }
}


void
emu_bulk_copy_all(void *to, const void *from, size_t n, uint64_t *b,
                  unsigned mask)
{
    if (mask == 0 || mask >> g.n_blocks != 0) {
        emu_fail("a copy to blocks %#x of a cluster of %u", mask, g.n_blocks);
    }

    for (unsigned rank = 0; rank < g.n_blocks; rank++) {
        if (mask >> rank & 1) {
            emu_bulk_copy(emu_cluster_at(to, rank), from, n,
                          (uint64_t *) emu_cluster_at(b, rank));
        }
    }
}


static void
make_put(const copy &c)
{
    memcpy(c.to, c.from, c.n);
    emu_stores(c.to, c.n, true);
}


void
emu_bulk_put(void *to, const void *from, size_t n)
{
    if (emu_watch.is_early) {
        emu_fail("puts to %p, and has not waited for the kernels before", to);
    }

    emu_shared_loads(from, n);
    emu_race_load(from, n);

    if (is_at_once()) {
        make_put({ to, from, n });
    } else {
        g.now->puts.push_back({ to, from, n });
    }
}


void
emu_bulk_put_wait()
{
    for (const copy &c : g.now->puts) {
        make_put(c);
    }

    g.now->puts.clear();
}


void
emu_depend()
{
    g.now->depended = true;
    watch(g.now);
}


void
emu_bulk_fence()
{
    g.now->bulk_fenced = g.now->depended || !g.overlaps;
}


bool
emu_is_bulk_fenced()
{
    return g.now->bulk_fenced;
}
