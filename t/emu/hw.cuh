/*
 * hw.cuh - the functions of cuda/hw.cuh, in the emulation.
 */
#ifndef MOE_CUDA_HW_CUH
#define MOE_CUDA_HW_CUH

#include <cstdlib>
#include <cuda_runtime.h>

#define HW_WARP     EMU_WARP

static inline unsigned char *
hw_shared()
{
    return emu_shared(NULL);
}

static inline uint32_t
hw_lane()
{
    return threadIdx.x % HW_WARP;
}

static inline uint32_t
hw_lane_anew()
{
    return hw_lane();
}

static inline uint32_t
hw_n_blocks_anew()
{
    return gridDim.x;
}

/* What a lane gives to its warp, and what it gets. */
template <class T>
struct hw_exchange {
    T   in;
    T   out;
    int mask;
};

template <class T>
static inline T
hw_xor_any(T v, int mask)
{
    hw_exchange<T> e = { v, v, mask };

    emu_sync_group(HW_WARP, &e, [](void **args, unsigned n) {
        for (unsigned i = 0; i < n; i++) {
            auto *mine = (hw_exchange<T> *) args[i];

            mine->out = ((hw_exchange<T> *) args[i ^ (unsigned) mine->mask])
                        ->in;
        }
    });

    return e.out;
}

static inline float
hw_xor(float v, int mask)
{
    return hw_xor_any(v, mask);
}

static inline uint32_t
hw_xor(uint32_t v, int mask)
{
    return hw_xor_any(v, mask);
}

static inline uint32_t
hw_ballot(int p)
{
    hw_exchange<uint32_t> e = { p != 0, 0, 0 };

    emu_sync_group(HW_WARP, &e, [](void **args, unsigned n) {
        uint32_t all = 0;

        for (unsigned i = 0; i < n; i++) {
            all |= ((hw_exchange<uint32_t> *) args[i])->in << i;
        }

        for (unsigned i = 0; i < n; i++) {
            ((hw_exchange<uint32_t> *) args[i])->out = all;
        }
    });

    return e.out;
}

static inline uint32_t
hw_max(uint32_t v)
{
    for (int mask = HW_WARP / 2; mask > 0; mask /= 2) {
        uint32_t other = hw_xor(v, mask);

        v = v > other ? v : other;
    }

    return v;
}

static inline uint32_t
hw_min(uint32_t v)
{
    return ~hw_max(~v);
}

static inline uint32_t
hw_popc(uint32_t v)
{
    return (uint32_t) __builtin_popcount(v);
}

EMU_UNSEEN static inline float
hw_bf16_get(uint32_t two, unsigned i)
{
    return __uint_as_float(i == 0 ? two << 16 : two & 0xffff0000u);
}

static inline uint32_t
hw_bf16_round(float f)
{
    uint32_t u = __float_as_uint(f);

    if ((u & 0x7fffffff) > 0x7f800000) {
        return 0x7fff;
    }

    return (u + 0x7fff + (u >> 16 & 1)) >> 16;
}

static inline uint32_t
hw_bf16x2(float lo, float hi)
{
    return hw_bf16_round(lo) | hw_bf16_round(hi) << 16;
}

static inline uint32_t
hw_bf16x2_mul(uint32_t a, uint32_t b)
{
    return hw_bf16x2(hw_bf16_get(a, 0) * hw_bf16_get(b, 0),
                     hw_bf16_get(a, 1) * hw_bf16_get(b, 1));
}

static inline uint32_t
hw_bytes(uint32_t v, uint32_t which)
{
    uint32_t r = 0;

    for (unsigned i = 0; i < 4; i++) {
        unsigned from = which >> 4 * i & 15;

        r |= (from < 4 ? v >> 8 * from & 255 : 0) << 8 * i;
    }

    return r;
}

static inline float
hw_mul(float a, float b)
{
    return a * b;
}

static inline float
hw_add(float a, float b)
{
    return a + b;
}

static inline uint64_t
hw_mulhi(uint64_t a, uint64_t b)
{
    return (uint64_t) ((unsigned __int128) a * b >> 64);
}

static inline float
hw_exp2(float v)
{
    return v < -126 ? 0 : exp2f(v);
}

static inline uint4
hw_load_once(const uint4 *p)
{
    if ((uintptr_t) p % 16 != 0) {
        emu_fail("a load of 16 bytes from %p", (const void *) p);
    }

    return *p;
}

template <class T>
EMU_UNSEEN static inline T
hw_load_fresh(const T *p)
{
    if ((uintptr_t) p % sizeof(T) != 0) {
        emu_fail("a load of %zu bytes from %p", sizeof(T), (const void *) p);
    }

    emu_loads_fresh(p, sizeof(T));

    return *p;
}

struct hw_mma_args {
    float   *d;
    uint32_t a[4];
    uint32_t b[2];
};

EMU_UNSEEN static inline void
hw_mma_warp(void **args, unsigned)
{
    float a[16][16], b[16][8], d[16][8];

    for (unsigned l = 0; l < HW_WARP; l++) {
        const auto *m = (const hw_mma_args *) args[l];

        for (unsigned i = 0; i < 8; i++) {
            a[l / 4 + i / 2 % 2 * 8][l % 4 * 2 + i % 2 + i / 4 * 8] =
                hw_bf16_get(m->a[i / 2], i % 2);
        }

        for (unsigned i = 0; i < 4; i++) {
            b[l % 4 * 2 + i % 2 + i / 2 * 8][l / 4] =
                hw_bf16_get(m->b[i / 2], i % 2);
            d[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2] = m->d[i];
        }
    }

    for (unsigned r = 0; r < 16; r++) {
        for (unsigned k = 0; k < 16; k++) {
            for (unsigned col = 0; col < 8; col++) {
                d[r][col] += a[r][k] * b[k][col];
            }
        }
    }

    for (unsigned l = 0; l < HW_WARP; l++) {
        const auto *m = (const hw_mma_args *) args[l];

        for (unsigned i = 0; i < 4; i++) {
            m->d[i] = d[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2];
        }
    }
}


static inline void
hw_mma(float (&d)[4], uint4 a, uint2 b)
{
    hw_mma_args m = { d, { a.x, a.y, a.z, a.w }, { b.x, b.y } };

    emu_sync_group(HW_WARP, &m, hw_mma_warp);
}

struct hw_ldmatrix_args {
    const void *row;
    uint32_t    v[4];
    bool        turned;
};

EMU_UNSEEN static inline void
hw_ldmatrix_warp(void **args, unsigned)
{
    for (unsigned l = 0; l < HW_WARP; l++) {
        auto *mine = (hw_ldmatrix_args *) args[l];

        for (unsigned i = 0; i < 8; i++) {
            unsigned r = l / 4, c = l % 4 * 2 + i % 2;
            const auto *of = (const hw_ldmatrix_args *)
                             args[i / 2 * 8 + (mine->turned ? c : r)];
            uint16_t    half;

            if ((uintptr_t) of->row % 16 != 0) {
                emu_fail("ldmatrix of a row at %p", of->row);
            }

            memcpy(&half, (const char *) of->row + (mine->turned ? r : c) * 2,
                   2);
            mine->v[i / 2] = i % 2 == 0 ? half
                             : mine->v[i / 2] | (uint32_t) half << 16;
        }
    }
}

static inline uint4
hw_ldmatrix_any(const void *row, bool turned)
{
    hw_ldmatrix_args m = { row, { 0, 0, 0, 0 }, turned };

    emu_race_load(row, 16);
    emu_sync_group(HW_WARP, &m, hw_ldmatrix_warp);

    return make_uint4(m.v[0], m.v[1], m.v[2], m.v[3]);
}

static inline uint4
hw_ldmatrix(const void *row)
{
    return hw_ldmatrix_any(row, false);
}

static inline uint4
hw_ldmatrix_trans(const void *row)
{
    return hw_ldmatrix_any(row, true);
}

static inline void
hw_copy16(void *to, const void *from, bool there)
{
    if ((uintptr_t) to % 16 != 0 || (uintptr_t) from % 16 != 0) {
        emu_fail("a copy of 16 bytes from %p to %p", from, to);
    }

    emu_copy_later(to, there ? from : NULL, 16);
}

static inline void
hw_copy_commit()
{
    emu_copy_commit();
}

template <int N>
static inline void
hw_copy_wait()
{
    emu_copy_wait(N);
}

static inline void
hw_depend()
{
    emu_depend();
}

static inline void
hw_release()
{
    emu_release();
}

/* Offsets, as the descriptors of products have them. */
static inline uint32_t
hw_shared_address(const void *p)
{
    return (uint32_t) ((const unsigned char *) p - emu_shared(NULL));
}

static inline void
hw_barrier_init(uint64_t *b, uint32_t n)
{
    emu_barrier_init(b, n);
}

static inline void
hw_barrier_arrive(uint64_t *b)
{
    emu_barrier_arrive(b, 0);
}

static inline void
hw_barrier_expect(uint64_t *b, uint32_t n)
{
    emu_barrier_arrive(b, n);
}

static inline void
hw_barrier_wait(uint64_t *b, uint32_t phase)
{
    emu_barrier_wait(b, phase);
}

static inline void
hw_bulk_copy(void *to, const void *from, uint32_t n, uint64_t *b)
{
    emu_bulk_copy(to, from, n, b);
}

static inline uint32_t
hw_cluster_rank()
{
    return emu_cluster_rank();
}

static inline void
hw_cluster_sync()
{
    emu_sync_cluster();
}

static inline void
hw_cluster_arrive(uint64_t *b, uint32_t rank)
{
    emu_cluster_arrive(b, rank);
}

static inline void
hw_bulk_copy_all(void *to, const void *from, uint32_t n, uint64_t *b,
                 uint16_t blocks)
{
    emu_bulk_copy_all(to, from, n, b, blocks);
}

static inline void
hw_bulk_fence()
{
    emu_bulk_fence();
}

static inline void
hw_group_fence()
{
    emu_group_fence();
}

static inline void
hw_group_commit()
{
    emu_group_commit();
}

template <int N>
static inline void
hw_group_wait()
{
    emu_group_wait(N);
}

template <int N>
static inline void
hw_group_registers_more()
{
}

template <int N>
static inline void
hw_group_registers_fewer()
{
}

template <int N>
static inline void
hw_group_keep(float (&)[N])
{
}

static inline void
hw_group_mma(float (&d)[64], const uint4 &a, uint64_t b, bool add)
{
    emu_group_mma(d, &a.x, b, add);
}

static inline void
hw_group_mma_turned(float (&d)[64], const uint4 &a, uint64_t b, bool add)
{
    emu_group_mma_turned(d, 128, &a.x, 0, b, add);
}

static inline void
hw_group_mma_turned(float (&d)[32], const uint4 &a, uint64_t b, bool add)
{
    emu_group_mma_turned(d, 64, &a.x, 0, b, add);
}

static inline void
hw_group_mma_turned(float (&d)[64], uint64_t a, uint64_t b, bool add)
{
    emu_group_mma_turned(d, 128, NULL, a, b, add);
}

static inline void
hw_group_mma_shared(float (&d)[32], uint64_t a, uint64_t b, bool add)
{
    emu_group_mma_shared(d, a, b, add);
}

static inline void
hw_group_mma8(float (&d)[64], const uint4 &a, uint64_t b, bool add)
{
    emu_group_mma8(d, &a.x, b, add);
}

static inline uint32_t
hw_fp8_round(float f)
{
    uint32_t sign = __float_as_uint(f) >> 31 << 7;
    float    a = fabsf(f);
    int      e;

    if (a != a) {
        return 0x7f;
    }

    if (a >= 464) {
        return sign | 0x7e;
    }

    frexpf(a, &e);
    e = e < -5 ? -6 : e - 1;

    int n = (int) rintf(ldexpf(a, 3 - e));      /* eighths of 2^e */

    return sign | (uint32_t) (n < 8 ? n : n < 16 ? (e + 7) << 3 | (n - 8)
                              : (e + 8) << 3);
}

static inline uint32_t
hw_fp8x4(float a, float b, float c, float d)
{
    return hw_fp8_round(a) | hw_fp8_round(b) << 8 | hw_fp8_round(c) << 16
           | hw_fp8_round(d) << 24;
}

static inline void
hw_shared_fence()
{
    emu_shared_fence();
}

static inline void
hw_bulk_put(void *to, const void *from, uint32_t n)
{
    if (((uintptr_t) to | (uintptr_t) from | n) % 16 != 0) {
        emu_fail("a bulk copy of %u bytes from %p to %p", n, from, to);
    }

    emu_bulk_put(to, from, n);
}

static inline void
hw_bulk_put_wait()
{
    emu_bulk_put_wait();
}

template <int N>
static inline void
hw_sync_first()
{
    emu_sync_group(N, NULL, NULL);
}

#endif /* MOE_CUDA_HW_CUH */
