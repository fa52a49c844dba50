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
#define PIECE       16          /* bytes that stay together */
#define HELD_MAX    8

struct product {
    float          *d;          /* where they are kept meanwhile */
    const uint32_t *a;          /* NULL: where a_desc says */
    uint64_t        a_desc;
    uint64_t        b;
    bool            add;
    bool            is_fp8;
    bool            is_turned;  /* B's columns lie beside each other */
    unsigned        n_cols;
};

/* Sums that products are under way to, or n is 0; NaN is in their place until
 * the last one is done. */
struct held {
    float   *d;
    unsigned n;
    float    sums[COLS_MAX / 2];
};

struct thread_products {
    std::vector<product>              open;     /* not committed */
    std::vector<std::vector<product>> groups;
    bool                              fenced;
    held                              helds[HELD_MAX];
};

static thread_products all[EMU_THREADS_MAX];
static const uint32_t  nobodys = 0xffffffff;    /* NaN: of a sum */


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


/* Where element (n, k) of B is, or of A: rows of k, 8 of them to SBO bytes, 128
 * bytes each; or, turned, rows of 64 n, 8 of them to SBO bytes, and the next 64
 * n LBO bytes further. */
static const unsigned char *
place_of(uint64_t desc, unsigned n, unsigned k, const product &p,
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

    return room + at;
}


static float
element_at(uint64_t desc, unsigned n, unsigned k, const product &p,
           bool is_turned)
{
    return element(place_of(desc, n, k, p, is_turned), 0, p.is_fp8);
}


static void
check_piece(const unsigned char *p)
{
    emu_shared_loads(p, PIECE);
    emu_race_load(p, PIECE);
}


/* What a product reads in shared memory is fenced for it. */
static void
check_fenced(const product &p)
{
    unsigned n_each = PIECE / (p.is_fp8 ? 1 : 2);
    unsigned n_k = p.is_fp8 ? K_MAX : K_MAX / 2;

    for (unsigned n = 0; n < p.n_cols; n += p.is_turned ? n_each : 1) {
        for (unsigned k = 0; k < n_k; k += p.is_turned ? 1 : n_each) {
            check_piece(place_of(p.b, n, k, p, p.is_turned));
        }
    }

    for (unsigned row = 0; row < ROWS && p.a == NULL; row++) {
        for (unsigned k = 0; k < n_k; k += n_each) {
            check_piece(place_of(p.a_desc, row, k, p, false));
        }
    }
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


/* Products to d are under way. */
static struct held *
hold(thread_products &p, float *d, unsigned n_cols)
{
    held *free = NULL;

    for (held &h : p.helds) {
        if (h.n != 0 && h.d == d) {
            h.n++;
            return &h;
        }

        free = h.n == 0 ? &h : free;
    }

    if (free == NULL) {
        emu_fail("products to more than %d sums", HELD_MAX);
    }

    free->d = d;
    free->n = 1;
    memcpy(free->sums, d, n_cols / 2 * sizeof(float));

    for (unsigned i = 0; i < n_cols / 2; i++) {
        memcpy(&d[i], &nobodys, sizeof(nobodys));
    }

    return free;
}


static void
let_go(thread_products &p, const product &one)
{
    for (held &h : p.helds) {
        if (h.sums != one.d || --h.n != 0) {
            continue;
        }

        for (unsigned i = 0; i < one.n_cols / 2; i++) {
            if (memcmp(&h.d[i], &nobodys, sizeof(nobodys)) != 0) {
                emu_fail("sum %u was written before its products were done",
                         i);
            }
        }

        memcpy(h.d, h.sums, one.n_cols / 2 * sizeof(float));
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

        for (const product &one : p->groups[0]) {
            let_go(*p, one);
        }

        p->groups.erase(p->groups.begin());
    }
}


void
emu_group_fence()
{
    all[emu_watch.thread].fenced = true;
}


static void
add_product(const product &one)
{
    thread_products &p = all[emu_watch.thread];

    if (!p.fenced) {
        emu_fail("a warpgroup's product without a fence");
    }

    if (threadIdx.x % GROUP == 0) {
        check_fenced(one);
    }

    p.open.push_back(one);
    p.open.back().d = hold(p, one.d, one.n_cols)->sums;
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
    thread_products &p = all[emu_watch.thread];

    p.groups.push_back(std::move(p.open));
    p.open.clear();
}


void
emu_group_wait(unsigned n_left)
{
    thread_products &p = all[emu_watch.thread];

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
    const thread_products &p = all[emu_watch.thread];

    return p.open.empty() && p.groups.empty();
}
