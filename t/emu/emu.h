/*
 * emu.h - a small emulation of a GPU, so that the kernels of cuda/ run where
 * there is none: the same .cu files, compiled for the host.
 *
 * The mental model.  The threads of a block are fibres of one host thread, run
 * one at a time until they wait: at a barrier, for their warp, or for a copy.
 * Blocks run one after the other, but those of a cluster together.  Time does
 * not exist; order does: fibres and blocks take their turns forwards, backwards
 * (where a warp also goes as far as it can) or shuffled (emu_order), so that
 * what only one order of turns makes right is found wrong in another.
 *
 * Memory says when it is left: device and shared memory end at pages that
 * cannot be touched, and begin as NaN.  Copies to shared memory arrive as late
 * as they may, and until then NaN is there; so it is with sums of products.  A
 * kernel's loads and stores are looked at one by one (access.cc): what it
 * touches before it waited for the kernels ahead, what the copy engine and the
 * products read that was not fenced for them, and, in shared memory, what
 * nothing has put in order (race.cc).  Whatever would hang or be undefined on a
 * device ends the process with a line that says where.
 *
 * What it cannot show: speed, bank conflicts, memory order between blocks.
 */
#ifndef MOE_EMU_H
#define MOE_EMU_H

#include <cstddef>
#include <cstdint>
#include <functional>

#define EMU_WARP        32
#define EMU_THREADS_MAX 1024            /* of a cluster, too */
#define EMU_CLUSTER_MAX 2               /* blocks */
/* Bytes of a block's shared memory, and the page behind it, a guard; and of all
 * blocks of a cluster. */
#define EMU_SHARED_EACH ((size_t) (228 + 4) * 1024)
#define EMU_SHARED_MAX  (EMU_CLUSTER_MAX * EMU_SHARED_EACH)

/* Of a function: its loads and stores are not looked at. */
#define EMU_UNSEEN      __attribute__((no_sanitize("thread")))

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;

    constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1)
        : x(a), y(b), z(c) {}
};

/* Where the running fibre is, as kernels see it. */
extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3  blockDim;
extern dim3  gridDim;

enum emu_order { EMU_FORWARDS, EMU_BACKWARDS, EMU_SHUFFLED };

/* In which order fibres, blocks and streams take turns from now on; what it
 * begins with says the environment: MOE_EMU_ORDER=0|1|2 and MOE_EMU_SEED. */
void emu_order_set(enum emu_order order, unsigned seed);
enum emu_order emu_order_get();

/* A number less than n. */
unsigned emu_draw(unsigned n);

/* Kernels that were launched; whether they are only counted, not run; and how
 * many multiprocessors the device says that it has. */
extern unsigned long emu_n_launches;
extern bool          emu_only_counts;
extern int           emu_n_sm;

/* Runs a kernel: fn once a thread; n_cluster blocks beside each other in x are
 * a cluster. */
void emu_run(dim3 n_blocks, dim3 n_threads, size_t shared_bytes, bool overlaps,
             const std::function<void()> &fn, unsigned n_cluster = 1);

/* The block's shared memory; n: bytes of it, or NULL. */
unsigned char *emu_shared(size_t *n);

/* Waits until all threads of the block are here. */
void emu_sync_block();

/* The block's number in its cluster; what p, in its shared memory, is in
 * another's; and a barrier of all threads of the cluster. */
unsigned emu_cluster_rank();
void *emu_cluster_at(const void *p, unsigned rank);
void emu_sync_cluster();

/* Waits until the `n` threads (warp: 32, warpgroup: 128, or more of the
 * block's first) that this one belongs to are here with their arguments; then
 * fn runs once, over all of them in order of threads. */
void emu_sync_group(unsigned n, void *arg,
                    void (*fn)(void **args, unsigned n));

/* Lets others run; what waits for memory to change calls it in a loop. */
void emu_yield();

/* A copy of cp.async: it is made when waited for; NaN is there until then. */
void emu_copy_later(void *to, const void *from, size_t n);
void emu_copy_commit();
void emu_copy_wait(unsigned n_left);

/* Barriers that count arrivals and bytes (mbarrier), and copies that report to
 * them; such a copy is made when somebody waits at its barrier, and NaN is
 * there until then, or at once where turns are taken backwards: what is still
 * being read shows. */
void emu_barrier_init(uint64_t *b, unsigned n);
void emu_barrier_arrive(uint64_t *b, unsigned n_bytes);
void emu_barrier_wait(uint64_t *b, unsigned phase);
void emu_bulk_copy(void *to, const void *from, size_t n, uint64_t *b);

/* The same at a barrier of another block of the cluster, and to blocks of it,
 * a bit each of the mask: to and b are this one's.  A block that has ended has
 * neither memory nor barriers. */
void emu_cluster_arrive(uint64_t *b, unsigned rank);
void emu_bulk_copy_all(void *to, const void *from, size_t n, uint64_t *b,
                       unsigned mask);

/* Such copies from shared memory: made when this thread waits for them, or at
 * once where turns are taken backwards. */
void emu_bulk_put(void *to, const void *from, size_t n);
void emu_bulk_put_wait();

/* Products of a warpgroup (wgmma), in bf16 and in e4m3: group.cc. */
void emu_group_fence();
void emu_group_mma(float *d, const uint32_t *a, uint64_t b, bool add);
void emu_group_mma8(float *d, const uint32_t *a, uint64_t b, bool add);
/* In bf16, with B turned (a NULL: where a_desc says), and of 64 columns with
 * both in shared memory. */
void emu_group_mma_turned(float *d, unsigned n_cols, const uint32_t *a,
                          uint64_t a_desc, uint64_t b, bool add);
void emu_group_mma_shared(float *d, uint64_t a_desc, uint64_t b, bool add);
void emu_group_commit();
void emu_group_wait(unsigned n_left);
bool emu_group_is_idle();

/* The kernel waits for those before it (griddepcontrol.wait), and lets the next
 * one begin (griddepcontrol.launch_dependents). */
void emu_depend();
void emu_release();

/* Fences between what threads store and what bulk copies and products read: of
 * this thread's in shared memory, of the kernels before in device memory. */
void emu_shared_fence();
void emu_bulk_fence();
bool emu_is_bulk_fenced();

/* The thread whose accesses are looked at: emu.cc says which, access.cc
 * looks. */
struct emu_watch {
    unsigned char *shared;      /* of all blocks; NULL: no kernel runs */
    size_t         n_shared;
    unsigned       thread;
    bool           is_early;    /* has not waited for the kernels before */
};

extern struct emu_watch emu_watch;

/* Memory of the device, or pinned, between pages that cannot be touched; n is
 * of whole pages.  NULL: there is none. */
void *emu_pages_take(size_t n, bool is_pinned);
void emu_pages_give(void *p, size_t n);

/* What a copy loads, a kernel's own or by_bulk; and what one stores, the host's
 * or by_bulk. */
void emu_loads(const void *p, size_t n, bool by_bulk);
void emu_loads_fresh(const void *p, size_t n);
void emu_stores(const void *p, size_t n, bool by_bulk);

/* A kernel begins. */
void emu_kernel_begin();

/* A block begins; bulk copies and products load shared memory, which has to be
 * fenced for them; a bulk copy stores there. */
void emu_shared_begin();
void emu_shared_loads(const void *p, size_t n);
void emu_shared_stores(const void *p, size_t n);

/* An addition that nothing comes between. */
void emu_adds(const void *p);

/* The cluster has begun, or is at a barrier, with n threads; n of them from
 * `from` on are at one; this one has arrived at one, or waited for it; has
 * loaded shared memory, or stored, or asked for a bulk copy to it. */
void emu_race_begin(unsigned n);
void emu_race_meet(unsigned from, unsigned n);
void emu_race_arrive(const void *barrier);
void emu_race_wait(const void *barrier);
void emu_race_load(const void *p, size_t n);
void emu_race_store(const void *p, size_t n);
void emu_race_copy(const void *p, size_t n);

[[noreturn]] void emu_fail(const char *fmt, ...)
    __attribute__((format(printf, 1, 2)));

#endif /* MOE_EMU_H */
