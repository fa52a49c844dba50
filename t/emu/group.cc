/*
 * group.cc - products of warpgroups in the emulation: they read registers and
 * shared memory, and write sums, when they are waited for; descriptors are
 * taken apart as the hardware does it.
 */
#include "emu.h"

#include <cmath>
#include <cstring>
#include <vector>

#define GROUP       128         /* threads */
#define ROWS        64
#define COLS_MAX    128
#define K_MAX       32          /* of e4m3; 16 of bf16 */
#define SWIZZLE_128 1           /* of 16-byte pieces within 128 bytes */

struct product {
    float          *d;
    const uint32_t *a;          /* NULL: where a_desc says */
    uint64_t        a_desc;
    uint64_t        b;
    bool            add;
    bool            is_fp8;
    bool            is_turned;  /* B's columns lie beside each other */
    unsigned        n_cols;
};

struct thread_products {
    std::vector<product>              open;     /* not committed */
    std::vector<std::vector<product>> groups;
    bool                              fenced;
};

static thread_products all[EMU_THREADS_MAX];


static float
bf16(uint16_t half)
{
    uint32_t u = (uint32_t) half << 16;
    float    f;

    memcpy(&f, &u, sizeof(f));

    return f;
}


static float
e4m3(uint8_t b)
{
    int   e = b >> 3 & 15;
    float m = (float) (b & 7) / 8;
    float v = (b & 0x7f) == 0x7f ? NAN
              : e == 0 ? ldexpf(m, -6) : ldexpf(1 + m, e - 7);

    return b & 0x80 ? -v : v;
}


/* Element i of what is at p. */
static float
element(const void *p, size_t i, bool is_fp8)
{
    uint16_t half;

    if (is_fp8) {
        return e4m3(((const uint8_t *) p)[i]);
    }

    memcpy(&half, (const char *) p + i * 2, 2);

    return bf16(half);
}


/* Element (n, k) of B, or of A: rows of k, 8 of them to SBO bytes, 128 bytes
 * each; or, turned, rows of 64 n, 8 of them to SBO bytes, and the next 64 n LBO
 * bytes further. */
static float
element_at(uint64_t desc, unsigned n, unsigned k, const product &p,
           bool is_turned)
{
    size_t         n_bytes;
    unsigned char *room = emu_shared(&n_bytes);
    size_t         at = (size_t) (desc & 0x3fff) << 4;
    size_t         lbo = (size_t) (desc >> 16 & 0x3fff) << 4;
    size_t         sbo = (size_t) (desc >> 32 & 0x3fff) << 4;
    size_t         n_each = p.is_fp8 ? 1 : 2;

    if (desc >> 62 != SWIZZLE_128 || (desc >> 49 & 7) != 0
        || (uintptr_t) room % 1024 != 0 || sbo % 1024 != 0
        || (is_turned && lbo % 1024 != 0))
    {
        emu_fail("a descriptor %#llx that is not emulated",
                 (unsigned long long) desc);
    }

    at += is_turned ? n / 64 * lbo + k / 8 * sbo + k % 8 * 128 + n % 64 * n_each
                    : n / 8 * sbo + n % 8 * 128 + k * n_each;
    at ^= (at >> 7 & 7) << 4;

    if (at + n_each > n_bytes) {
        emu_fail("a product reads byte %zu of %zu of shared memory", at,
                 n_bytes);
    }

    return element(room + at, 0, p.is_fp8);
}


/* A thread's part of A, in registers. */
static void
get_registers(float (*a)[K_MAX], const product &p, unsigned t)
{
    unsigned l = t % EMU_WARP, n_k = p.is_fp8 ? K_MAX : K_MAX / 2;
    unsigned n_each = n_k / 8;

    /* Four words of n_each: rows r and r + 8, then both further on. */
    for (unsigned e = 0; e < n_k / 2; e++) {
        unsigned row = t / EMU_WARP * 16 + l / 4 + e / n_each % 2 * 8;

        a[row][l % 4 * n_each + e % n_each + e / n_each / 2 * n_k / 2] =
            element(p.a, e, p.is_fp8);
    }
}


/* One product of all 128 threads. */
static void
multiply(void **args, size_t group, size_t i)
{
    static float   a[ROWS][K_MAX], b[K_MAX][COLS_MAX];
    const product &first = ((const thread_products *) args[0])->groups[group]
                           [i];
    unsigned       n_k = first.is_fp8 ? K_MAX : K_MAX / 2;

    for (unsigned k = 0; k < n_k; k++) {
        for (unsigned n = 0; n < first.n_cols; n++) {
            b[k][n] = element_at(first.b, n, k, first, first.is_turned);
        }

        for (unsigned row = 0; row < ROWS && first.a == NULL; row++) {
            a[row][k] = element_at(first.a_desc, row, k, first, false);
        }
    }

    for (unsigned t = 0; t < GROUP; t++) {
        const product &p = ((const thread_products *) args[t])->groups[group]
                           [i];

        if (p.b != first.b || p.is_fp8 != first.is_fp8
            || p.n_cols != first.n_cols || p.is_turned != first.is_turned
            || (p.a == NULL) != (first.a == NULL) || p.a_desc != first.a_desc)
        {
            emu_fail("threads of a warpgroup differ in their product");
        }

        if (p.a != NULL) {
            get_registers(a, p, t);
        }
    }

    for (unsigned t = 0; t < GROUP; t++) {
        const product &p = ((const thread_products *) args[t])->groups[group]
                           [i];

        for (unsigned e = 0; e < p.n_cols / 2; e++) {
            unsigned l = t % EMU_WARP, col = e / 4 * 8 + l % 4 * 2 + e % 2;
            unsigned row = t / EMU_WARP * 16 + l / 4 + e / 2 % 2 * 8;
            float    sum = p.add ? p.d[e] : 0;

            for (unsigned k = 0; k < n_k; k++) {
                sum += a[row][k] * b[k][col];
            }

            p.d[e] = sum;
        }
    }
}


static void
multiply_oldest(void **args, unsigned)
{
    auto *first = (thread_products *) args[0];

    for (unsigned t = 0; t < GROUP; t++) {
        auto *p = (thread_products *) args[t];

        if (p->groups.size() != first->groups.size()
            || p->groups[0].size() != first->groups[0].size())
        {
            emu_fail("threads of a warpgroup have different products");
        }
    }

    for (size_t i = 0; i < first->groups[0].size(); i++) {
        multiply(args, 0, i);
    }

    for (unsigned t = 0; t < GROUP; t++) {
        auto *p = (thread_products *) args[t];

        p->groups.erase(p->groups.begin());
    }
}


void
emu_group_fence()
{
    all[threadIdx.x].fenced = true;
}


static void
add_product(const product &one)
{
    thread_products &p = all[threadIdx.x];

    if (!p.fenced) {
        emu_fail("a warpgroup's product without a fence");
    }

    p.open.push_back(one);
}


void
emu_group_mma(float *d, const uint32_t *a, uint64_t b, bool add)
{
    add_product({ d, a, 0, b, add, false, false, 128 });
}


void
emu_group_mma8(float *d, const uint32_t *a, uint64_t b, bool add)
{
    add_product({ d, a, 0, b, add, true, false, 128 });
}


void
emu_group_mma_turned(float *d, unsigned n_cols, const uint32_t *a,
                     uint64_t a_desc, uint64_t b, bool add)
{
    add_product({ d, a, a_desc, b, add, false, true, n_cols });
}


void
emu_group_mma_shared(float *d, uint64_t a_desc, uint64_t b, bool add)
{
    add_product({ d, NULL, a_desc, b, add, false, false, 64 });
}


void
emu_group_commit()
{
    thread_products &p = all[threadIdx.x];

    p.groups.push_back(std::move(p.open));
    p.open.clear();
}


void
emu_group_wait(unsigned n_left)
{
    thread_products &p = all[threadIdx.x];

    p.fenced = false;

    while (p.groups.size() > n_left) {
        size_t n = p.groups.size();

        emu_sync_group(GROUP, &p, multiply_oldest);

        if (p.groups.size() >= n) {
            emu_fail("products that were not made");
        }
    }
}


bool
emu_group_is_idle()
{
    const thread_products &p = all[threadIdx.x];

    return p.open.empty() && p.groups.empty();
}
