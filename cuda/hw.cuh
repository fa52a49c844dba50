/*
 * hw.cuh - the instructions that C does not have, one function each.  Kernels
 * reach the hardware through these alone, so that t/emu/hw.cuh, which has the
 * same functions as plain loops, can stand in for it.
 *
 * Fragments are those of PTX's mma.m16n8k16 (lane l, c = l % 4, r = l / 4):
 *   A (16, 16)   a.x: (r, 2c..)  a.y: (r + 8, 2c..)  a.z, a.w: columns + 8
 *   B (16, 8)    b.x: (2c.., r)  b.y: (2c + 8.., r)
 *   D (16, 8)    d[0], d[1]: (r, 2c..)  d[2], d[3]: (r + 8, 2c..)
 */
#ifndef MOE_CUDA_HW_CUH
#define MOE_CUDA_HW_CUH

#include <cuda_runtime.h>
#include <stdint.h>

#define HW_WARP     32
#define HW_ALL      0xffffffffu

/* The block's dynamic shared memory; kernels have no other. */
static __device__ __forceinline__ unsigned char *
hw_shared(void)
{
    extern __shared__ __align__(1024) unsigned char hw_shared_bytes[];

    return hw_shared_bytes;
}

static __device__ __forceinline__ uint32_t
hw_lane(void)
{
    return threadIdx.x % HW_WARP;
}

/* The same, and blocks of the grid, found anew: what follows from them is not
 * kept in registers. */
static __device__ __forceinline__ uint32_t
hw_lane_anew(void)
{
    uint32_t l;

    asm volatile("mov.u32 %0, %%laneid;" : "=r"(l));

    return l;
}

static __device__ __forceinline__ uint32_t
hw_n_blocks_anew(void)
{
    uint32_t n;

    asm volatile("mov.u32 %0, %%nctaid.x;" : "=r"(n));

    return n;
}

static __device__ __forceinline__ float
hw_xor(float v, int mask)
{
    return __shfl_xor_sync(HW_ALL, v, mask);
}

static __device__ __forceinline__ uint32_t
hw_xor(uint32_t v, int mask)
{
    return __shfl_xor_sync(HW_ALL, v, mask);
}

static __device__ __forceinline__ uint32_t
hw_ballot(int p)
{
    return __ballot_sync(HW_ALL, p);
}

/* Of a warp's. */
static __device__ __forceinline__ uint32_t
hw_max(uint32_t v)
{
    return __reduce_max_sync(HW_ALL, v);
}

static __device__ __forceinline__ uint32_t
hw_min(uint32_t v)
{
    return __reduce_min_sync(HW_ALL, v);
}

static __device__ __forceinline__ uint32_t
hw_popc(uint32_t v)
{
    return (uint32_t) __popc(v);
}

/* Two floats as bf16, rounded to nearest even; lo in the lower half. */
static __device__ __forceinline__ uint32_t
hw_bf16x2(float lo, float hi)
{
    uint32_t d;

    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));

    return d;
}

/* Halves multiplied one by one. */
static __device__ __forceinline__ uint32_t
hw_bf16x2_mul(uint32_t a, uint32_t b)
{
    uint32_t d, zero = 0x80008000u;         /* -0: adds nothing */

    asm("fma.rn.bf16x2 %0, %1, %2, %3;"
        : "=r"(d) : "r"(a), "r"(b), "r"(zero));

    return d;
}

/* Byte i of the result is that which nibble i of `which` names: 0 .. 3 of v, 4
 * is zero. */
static __device__ __forceinline__ uint32_t
hw_bytes(uint32_t v, uint32_t which)
{
    return __byte_perm(v, 0, which);
}

/* One operation, one rounding: not joined with its neighbours. */
static __device__ __forceinline__ float
hw_mul(float a, float b)
{
    return __fmul_rn(a, b);
}

static __device__ __forceinline__ float
hw_add(float a, float b)
{
    return __fadd_rn(a, b);
}

/* The upper half of the product. */
static __device__ __forceinline__ uint64_t
hw_mulhi(uint64_t a, uint64_t b)
{
    return __umul64hi(a, b);
}

/* 2^v, to about 2 of its last bits; 0 below 2^-126. */
static __device__ __forceinline__ float
hw_exp2(float v)
{
    float d;

    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(v));

    return d;
}

/* Weights: read once, so not kept in L1.  Not ld.global.nc, which ptxas takes
 * for free to move: it put the wait of hw_depend() before these loads. */
static __device__ __forceinline__ uint4
hw_load_once(const uint4 *p)
{
    uint4 v;

    asm volatile("ld.global.L1::no_allocate.L2::256B.v4.u32 "
                 "{%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));

    return v;
}

/* What another block of this kernel has written, or what this multiprocessor's
 * L1 may be wrong about. */
static __device__ __forceinline__ float
hw_load_fresh(const float *p)
{
    float v;

    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(v) : "l"(p) : "memory");

    return v;
}

static __device__ __forceinline__ float4
hw_load_fresh(const float4 *p)
{
    float4 v;

    asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "l"(p) : "memory");

    return v;
}

static __device__ __forceinline__ uint32_t
hw_load_fresh(const uint32_t *p)
{
    uint32_t v;

    asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");

    return v;
}

/* d += a b */
static __device__ __forceinline__ void
hw_mma(float (&d)[4], uint4 a, uint2 b)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x),
                   "r"(b.y));
}

static __device__ __forceinline__ uint32_t
hw_shared_address(const void *p)
{
    return (uint32_t) __cvta_generic_to_shared(p);
}

/* Four matrices of 8 rows of 16 bytes: lanes 8i .. 8i + 7 say where the rows
 * of matrix i are; part i of the result is this lane's of matrix i. */
static __device__ __forceinline__ uint4
hw_ldmatrix(const void *row)
{
    uint4 v;

    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 "
                 "{%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(hw_shared_address(row)) : "memory");

    return v;
}

/* The same, each matrix transposed. */
static __device__ __forceinline__ uint4
hw_ldmatrix_trans(const void *row)
{
    uint4 v;

    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 "
                 "{%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(hw_shared_address(row)) : "memory");

    return v;
}

/* 16 bytes to shared memory, some time until hw_copy_wait(); zeros, and
 * nothing is read, if not `there`. */
static __device__ __forceinline__ void
hw_copy16(void *to, const void *from, bool there)
{
    uint32_t n = there ? 16 : 0;

    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(hw_shared_address(to)), "l"(from), "r"(n)
                 : "memory");
}

static __device__ __forceinline__ void
hw_copy_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* All but the last N groups of this thread have arrived. */
template <int N>
static __device__ __forceinline__ void
hw_copy_wait(void)
{
    asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory");
}

/* Programmatic dependent launch: nothing that an earlier kernel writes may be
 * read before, and nothing that it reads be written. */
static __device__ __forceinline__ void
hw_depend(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* The next kernel may be started, as far as hw_depend(). */
static __device__ __forceinline__ void
hw_release(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/*
 * Of Hopper alone (compute capability 9.0; elsewhere they do nothing, and
 * nobody calls them): barriers in shared memory that count arrivals and bytes,
 * copies that report to them, and products of a warpgroup, which is four warps
 * from a multiple of four on.
 */
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HW_HOPPER   1
#else
#define HW_HOPPER   0
#endif

/* A phase of the barrier ends with n arrivals, and with all bytes that were
 * announced in it.  One thread, before a __syncthreads(). */
static __device__ __forceinline__ void
hw_barrier_init(uint64_t *b, uint32_t n)
{
#if HW_HOPPER
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n"
                 "fence.mbarrier_init.release.cluster;"
                 :: "r"(hw_shared_address(b)), "r"(n) : "memory");
#endif
}

static __device__ __forceinline__ void
hw_barrier_arrive(uint64_t *b)
{
#if HW_HOPPER
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];"
                 :: "r"(hw_shared_address(b)) : "memory");
#endif
}

/* Arrives, and announces n bytes of hw_bulk_copy(). */
static __device__ __forceinline__ void
hw_barrier_expect(uint64_t *b, uint32_t n)
{
#if HW_HOPPER
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                 :: "r"(hw_shared_address(b)), "r"(n) : "memory");
#endif
}

/* Waits for the end of a phase; they are numbered 0, 1, 0, .. */
static __device__ __forceinline__ void
hw_barrier_wait(uint64_t *b, uint32_t phase)
{
#if HW_HOPPER
    uint32_t done = 0;

    while (!done) {
        asm volatile("{\n"
                     ".reg .pred p;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, p;\n"
                     "}"
                     : "=r"(done)
                     : "r"(hw_shared_address(b)), "r"(phase) : "memory");
    }
#endif
}

/* n bytes to shared memory, a multiple of 16, as all addresses are. */
static __device__ __forceinline__ void
hw_bulk_copy(void *to, const void *from, uint32_t n, uint64_t *b)
{
#if HW_HOPPER
    asm volatile("cp.async.bulk.shared::cluster.global"
                 ".mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 :: "r"(hw_shared_address(to)), "l"(from), "r"(n),
                    "r"(hw_shared_address(b)) : "memory");
#endif
}

/*
 * Clusters: blocks beside each other in x that run at the same time, and reach
 * each other's shared memory.  Which one this is; and a barrier of all their
 * threads, behind which barriers are made and before which no block may end.
 */
static __device__ __forceinline__ uint32_t
hw_cluster_rank(void)
{
    uint32_t rank = 0;

#if HW_HOPPER
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif

    return rank;
}

static __device__ __forceinline__ void
hw_cluster_sync(void)
{
#if HW_HOPPER
    asm volatile("barrier.cluster.arrive.release;\n"
                 "barrier.cluster.wait.acquire;" ::: "memory");
#endif
}

/* hw_barrier_arrive() at what b is in block `rank`.  Not .release.cluster,
 * of which nvcc makes a fence for the whole device: it says that this warp has
 * read, no more, and who waits for it only copies. */
static __device__ __forceinline__ void
hw_cluster_arrive(uint64_t *b, uint32_t rank)
{
#if HW_HOPPER
    asm volatile("{\n"
                 ".reg .b32 there;\n"
                 "mapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
                 "}"
                 :: "r"(hw_shared_address(b)), "r"(rank) : "memory");
#endif
}

/* hw_bulk_copy() to the same place in the blocks whose bits are set, and to the
 * barrier of each. */
static __device__ __forceinline__ void
hw_bulk_copy_all(void *to, const void *from, uint32_t n, uint64_t *b,
                 uint16_t blocks)
{
#if HW_HOPPER
    asm volatile("cp.async.bulk.shared::cluster.global"
                 ".mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1], %2, [%3], %4;"
                 :: "r"(hw_shared_address(to)), "l"(from), "r"(n),
                    "r"(hw_shared_address(b)), "h"(blocks) : "memory");
#endif
}

/* What ordinary stores of kernels before have left in memory is for the bulk
 * copies that follow, too. */
static __device__ __forceinline__ void
hw_bulk_fence(void)
{
#if HW_HOPPER
    asm volatile("fence.proxy.async.global;" ::: "memory");
#endif
}

/* Before a warpgroup's first product, and after its registers changed. */
static __device__ __forceinline__ void
hw_group_fence(void)
{
#if HW_HOPPER
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

static __device__ __forceinline__ void
hw_group_commit(void)
{
#if HW_HOPPER
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

/* All but the last N groups of products are done: sums may be read, what was
 * multiplied be written. */
template <int N>
static __device__ __forceinline__ void
hw_group_wait(void)
{
#if HW_HOPPER
    asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(N) : "memory");
#endif
}

/* What this thread has stored in shared memory is for bulk copies and products
 * that follow, too; before the barrier that they are behind. */
static __device__ __forceinline__ void
hw_shared_fence(void)
{
#if HW_HOPPER
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

/* n bytes from shared memory, some time until hw_bulk_put_wait() of this
 * thread; a multiple of 16, as all addresses are. */
static __device__ __forceinline__ void
hw_bulk_put(void *to, const void *from, uint32_t n)
{
#if HW_HOPPER
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group "
                 "[%0], [%1], %2;"
                 :: "l"(to), "r"(hw_shared_address(from)), "r"(n)
                 : "memory");
#endif
}

static __device__ __forceinline__ void
hw_bulk_put_wait(void)
{
#if HW_HOPPER
    asm volatile("cp.async.bulk.commit_group;\n"
                 "cp.async.bulk.wait_group 0;" ::: "memory");
#endif
}

/* A barrier of the block's first N threads, whole warps. */
template <int N>
static __device__ __forceinline__ void
hw_sync_first(void)
{
    asm volatile("bar.sync 1, %0;" :: "n"(N) : "memory");
}

/* Registers of a thread from here on, more or fewer than the kernel began with;
 * of all warps of a warpgroup.  A multiple of 8. */
template <int N>
static __device__ __forceinline__ void
hw_group_registers_more(void)
{
#if HW_HOPPER
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(N));
#endif
}

template <int N>
static __device__ __forceinline__ void
hw_group_registers_fewer(void)
{
#if HW_HOPPER
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(N));
#endif
}

#define HW_8(d, i)                                                            \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]),               \
    "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define HW_32(d)                                                              \
    HW_8(d, 0), HW_8(d, 8), HW_8(d, 16), HW_8(d, 24)
#define HW_64(d)                                                              \
    HW_8(d, 0), HW_8(d, 8), HW_8(d, 16), HW_8(d, 24), HW_8(d, 32),            \
    HW_8(d, 40), HW_8(d, 48), HW_8(d, 56)
/* Sums are not looked at before: after hw_group_wait().  What was made of them
 * otherwise is in their registers: before hw_group_fence(). */
static __device__ __forceinline__ void
hw_group_keep(float (&d)[64])
{
#if HW_HOPPER
    asm volatile("" : HW_64(d) :: "memory");
#endif
}

static __device__ __forceinline__ void
hw_group_keep(float (&d)[32])
{
#if HW_HOPPER
    asm volatile("" : HW_32(d) :: "memory");
#endif
}

#define HW_32_NAMES                                                           \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, "       \
    "%15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, "       \
    "%28, %29, %30, %31"
#define HW_64_NAMES                                                           \
    HW_32_NAMES ", "                                                          \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, "                           \
    "%41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, "       \
    "%54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

/*
 * D = A B, or D += A B if add: A (64, 16) in bf16, of which warp w has rows
 * 16w .. as mma's A; B (16, 128) where the descriptor b says; D (64, 128):
 * warp w's rows, d[4j ..] its columns 8j .. 8j + 7, as mma's D.  Done when
 * waited for, and until then nobody may touch a, d or B.
 */
static __device__ __forceinline__ void
hw_group_mma(float (&d)[64], const uint4 &a, uint64_t b, bool add)
{
#if HW_HOPPER
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.b32 p, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
                 HW_64_NAMES "}, {%64, %65, %66, %67}, %68, p, 1, 1, 0;\n"
                 "}"
                 : HW_64(d)
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b),
                   "r"((uint32_t) add));
#endif
}

/* The same with B turned: its columns lie beside each other (the descriptor
 * says how far 64 of them are from the next, and 8 rows). */
static __device__ __forceinline__ void
hw_group_mma_turned(float (&d)[64], const uint4 &a, uint64_t b, bool add)
{
#if HW_HOPPER
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.b32 p, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
                 HW_64_NAMES "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n"
                 "}"
                 : HW_64(d)
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b),
                   "r"((uint32_t) add));
#endif
}

/* And of 64 columns. */
static __device__ __forceinline__ void
hw_group_mma_turned(float (&d)[32], const uint4 &a, uint64_t b, bool add)
{
#if HW_HOPPER
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.b32 p, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
                 HW_32_NAMES "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n"
                 "}"
                 : HW_32(d)
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b),
                   "r"((uint32_t) add));
#endif
}

/* Of 128, with A where a descriptor says. */
static __device__ __forceinline__ void
hw_group_mma_turned(float (&d)[64], uint64_t a, uint64_t b, bool add)
{
#if HW_HOPPER
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
                 HW_64_NAMES "}, %64, %65, p, 1, 1, 0, 1;\n"
                 "}"
                 : HW_64(d) : "l"(a), "l"(b), "r"((uint32_t) add));
#endif
}

/* D (64, 64), A (64, 16) and B (16, 64) where descriptors say. */
static __device__ __forceinline__ void
hw_group_mma_shared(float (&d)[32], uint64_t a, uint64_t b, bool add)
{
#if HW_HOPPER
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.b32 p, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
                 HW_32_NAMES "}, %32, %33, p, 1, 1, 0, 0;\n"
                 "}"
                 : HW_32(d) : "l"(a), "l"(b), "r"((uint32_t) add));
#endif
}

/* hw_group_mma() with A (64, 32) and B (32, 128) in e4m3: a.x has columns 4c ..
 * 4c + 3 of row r, a.y of row r + 8, a.z and a.w columns 16 further. */
static __device__ __forceinline__ void
hw_group_mma8(float (&d)[64], const uint4 &a, uint64_t b, bool add)
{
#if HW_HOPPER
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.b32 p, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {"
                 HW_64_NAMES "}, {%64, %65, %66, %67}, %68, p, 1, 1;\n"
                 "}"
                 : HW_64(d)
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b),
                   "r"((uint32_t) add));
#endif
}

/* Four floats as e4m3, rounded to nearest even, a in the lowest byte; what is
 * too large becomes 448. */
static __device__ __forceinline__ uint32_t
hw_fp8x4(float a, float b, float c, float d)
{
    uint32_t v = 0;

#if HW_HOPPER
    uint16_t lo, hi;

    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(lo) : "f"(b), "f"(a));
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(hi) : "f"(d), "f"(c));
    v = lo | (uint32_t) hi << 16;
#endif

    return v;
}

#endif /* MOE_CUDA_HW_CUH */
