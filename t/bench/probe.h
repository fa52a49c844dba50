/*
 * probe.h - what the machine can do at most: bytes read from memory, and
 * multiply-adds in registers, on all threads of a pool.  In: a pool.  Out:
 * a rate; 0 where the machine has no such instruction.  Reads are the best of a
 * few runs, since a neighbour can only take away; multiply-adds, which are over
 * so soon that the clock's steps show, the median of many.
 *
 * The reads are four streams with prefetch into L1, which is what reaches the
 * upper end on Zen 4 and on Emerald Rapids.  Additions of integers stand for
 * the work on a line.
 */
#ifndef BENCH_PROBE_H
#define BENCH_PROBE_H

#include <immintrin.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "engine/cpu/threads.h"

#define PROBE_BYTES     (1u << 30)      /* there are caches of 260 MiB */
#define PROBE_LOOPS     131072          /* a third of a millisecond */
#define PROBE_RUNS      101             /* at most */

struct probe {
    struct pool *pool;
    uint8_t     *bytes;
    uint64_t     sums[256];             /* so that nothing is left out */
    void       (*compute)(void);
};


static void
probe_open(struct probe *p, struct pool *pool)
{
    p->pool = pool;
    p->bytes = mmap(NULL, PROBE_BYTES, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (p->bytes == MAP_FAILED) {
        fprintf(stderr, "bench: no memory for the probe\n");
        exit(1);
    }

    madvise(p->bytes, PROBE_BYTES, MADV_HUGEPAGE);
    memset(p->bytes, 1, PROBE_BYTES);
}


static void
probe_close(struct probe *p)
{
    munmap(p->bytes, PROBE_BYTES);
}


__attribute__((target("avx2")))
static uint64_t
probe_sum(const uint8_t *from, size_t n)
{
    __m256i sum[8] = { _mm256_setzero_si256() };
    size_t  quarter = n / 4;

    for (size_t i = 0; i < quarter; i += 64) {
        for (int s = 0; s < 4; s++) {
            const uint8_t *at = from + quarter * (size_t) s + i;

            _mm_prefetch((const char *) at + 1024, _MM_HINT_T0);
            sum[2 * s] = _mm256_add_epi64(sum[2 * s],
                             _mm256_load_si256((const __m256i *)
                                               (const void *) at));
            sum[2 * s + 1] = _mm256_add_epi64(sum[2 * s + 1],
                                 _mm256_load_si256((const __m256i *)
                                                   (const void *) (at + 32)));
        }
    }

    for (int s = 1; s < 8; s++) {
        sum[0] = _mm256_add_epi64(sum[0], sum[s]);
    }

    return (uint64_t) _mm256_extract_epi64(sum[0], 0);
}


static void
probe_read_part(void *ctx, int i, int n)
{
    struct probe *p = ctx;
    uint32_t      from, to;

    pool_part(PROBE_BYTES / 4096, i, n, &from, &to);
    p->sums[i % 256] += probe_sum(p->bytes + (size_t) from * 4096,
                                  (size_t) (to - from) * 4096);
}


static void
probe_compute_part(void *ctx, int i, int n)
{
    struct probe *p = ctx;

    (void) i;
    (void) n;
    p->compute();
}


static int
probe_order(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *) a, y = *(const uint64_t *) b;

    return (x > y) - (x < y);
}


/* Microseconds of n runs, the shortest first. */
static const uint64_t *
probe_time(struct probe *p, pool_fn fn, int n)
{
    static uint64_t us[PROBE_RUNS];

    for (int i = 0; i < n; i++) {
        uint64_t start = clock_us();

        pool_run(p->pool, fn, p);
        us[i] = clock_us() - start;
    }

    qsort(us, (size_t) n, sizeof(*us), probe_order);

    return us;
}


static double
probe_read(struct probe *p)
{
    return PROBE_BYTES * 1e6 / (double) probe_time(p, probe_read_part, 5)[0];
}


/* Twelve chains hide the latency of any of these instructions. */
#define PROBE_CHAINS    12

#define PROBE_ONE(ins, reg, i)                                               \
    ins " %%" reg "15, %%" reg "15, %%" reg i "\n"
#define PROBE_ALL(ins, reg)                                                  \
    PROBE_ONE(ins, reg, "0") PROBE_ONE(ins, reg, "1")                        \
    PROBE_ONE(ins, reg, "2") PROBE_ONE(ins, reg, "3")                        \
    PROBE_ONE(ins, reg, "4") PROBE_ONE(ins, reg, "5")                        \
    PROBE_ONE(ins, reg, "6") PROBE_ONE(ins, reg, "7")                        \
    PROBE_ONE(ins, reg, "8") PROBE_ONE(ins, reg, "9")                        \
    PROBE_ONE(ins, reg, "10") PROBE_ONE(ins, reg, "11")

/* What is in the registers does not matter to the time: all bits 0. */
#define PROBE_KERNEL(name, ins, reg)                                         \
    static void                                                              \
    name(void)                                                               \
    {                                                                        \
        uint64_t n = PROBE_LOOPS;                                            \
                                                                             \
        __asm__ volatile (                                                   \
            "vzeroall\n"                                                     \
            "1:\n" PROBE_ALL(ins, reg)                                       \
            "dec %0\n"                                                       \
            "jnz 1b\n"                                                       \
            : "+r" (n) :                                                    \
            : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6",        \
              "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13",    \
              "xmm14", "xmm15", "cc");                                       \
    }

PROBE_KERNEL(probe_f32_avx2, "vfmadd231ps", "ymm")
PROBE_KERNEL(probe_f32_avx512, "vfmadd231ps", "zmm")
PROBE_KERNEL(probe_bf16_avx512, "vdpbf16ps", "zmm")
PROBE_KERNEL(probe_int8_avx512, "vpdpbusd", "zmm")


/* `ops` operations an instruction, a multiply-add being two. */
static double
probe_peak(struct probe *p, int has, void (*compute)(void), int ops)
{
    double all = (double) PROBE_LOOPS * PROBE_CHAINS * ops
                 * pool_place(p->pool)->n;

    p->compute = compute;

    return has ? all * 1e6 / (double) probe_time(p, probe_compute_part,
                                                 PROBE_RUNS)[PROBE_RUNS / 2]
               : 0;
}


static double
probe_f32(struct probe *p)
{
    return __builtin_cpu_supports("avx512f")
           ? probe_peak(p, 1, probe_f32_avx512, 32)
           : probe_peak(p, __builtin_cpu_supports("avx2")
                           && __builtin_cpu_supports("fma"),
                        probe_f32_avx2, 16);
}


static double
probe_bf16(struct probe *p)
{
    return probe_peak(p, __builtin_cpu_supports("avx512bf16"),
                      probe_bf16_avx512, 64);
}


static double
probe_int8(struct probe *p)
{
    return probe_peak(p, __builtin_cpu_supports("avx512vnni"),
                      probe_int8_avx512, 128);
}

#endif /* BENCH_PROBE_H */
