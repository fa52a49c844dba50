/*
 * mla_wide.cu - absorbed latent attention by Hopper's warpgroups, for latents
 * of 512 columns and 64 that are rotated; mla.cu says what is calculated, and
 * has what puts parts together.
 *
 *   bytes: 72 KiB a page, for 64 rows (heads of a token; with fewer heads, of
 *   some tokens of a sequence); FLOPs: 2 * 64 * 64 * (576 + 512) = 8.9 M, of
 *   which wgmma does 4096 a cycle.  So with 128 heads of two tokens four blocks
 *   read a page, from L2 but for the first, and wgmma bounds; with 16 heads and
 *   one token memory does, whatever the rows that are nobody's cost.
 *
 * A block has 64 rows of Q (72 KiB) and two pages (144 KiB) in shared memory;
 * a warp copies, two warpgroups multiply.  What comes out, 64 rows of 512
 * floats, fills both warpgroups' registers: each has 256 columns, and needs P
 * of all keys; so they take turns with pages, and each gives P of its page to
 * the other, in place of the page's rotated columns, which nobody reads again.
 *
 *   warpgroup w, page j, j % 2 == w:
 *     O *= ..; O += P(j - 1) V(j - 1)     P from shared memory
 *     S = Q K(j)^T                        wgmma m64n64k16, both from shared
 *     maximum, P(j) = exp2(S - maximum)   while the other's products run
 *     O *= ..; O += P(j) V(j)             P from registers
 *
 * V is the page as it lies, turned: its first 512 columns are read as keys and
 * as values, and come from memory once.  The left 4 column blocks of a page are
 * free when warpgroup 0 has them added up, the rest when both have.
 *
 *   cycles of a page, of wgmma: S 36 * 32, values 2 * 4 * 2 * 64: 2176; S reads
 *   its operands at the 128 bytes a cycle that shared memory has; from memory
 *   or L2 come 34 bytes a cycle and block.  While a maximum is looked for and P
 *   is made (about 32 exp2 a thread) the other warpgroup waits for P, after its
 *   own products: about 600 cycles in which little is multiplied.
 *
 * Not measured on a GPU yet.
 */
#include "mla.cuh"
#include "wide.cuh"

#include <string.h>

#define GROUPS          2
#define GROUP_THREADS   (4 * HW_WARP)
#define WORKERS         (GROUPS * GROUP_THREADS)
#define THREADS         (WORKERS + GROUP_THREADS)
#define REGISTERS       240
#define REGISTERS_COPY  24
#define ROWS            MLA_WIDE_ROWS
#define PAGE            MLA_PAGE
#define LATENT          512
#define ROW             576
/* 64 rows of 64 columns. */
#define BLOCK_BYTES     (PAGE * CUDA_KV_COLS * 2)
#define BLOCKS          (ROW / CUDA_KV_COLS)
#define PAGE_BYTES      (BLOCKS * BLOCK_BYTES)
/* Column blocks of values: all, and each warpgroup's. */
#define VALUE_BLOCKS    (LATENT / CUDA_KV_COLS)
#define GROUP_BLOCKS    (VALUE_BLOCKS / GROUPS)
#define PAGES           2
#define HALVES          2               /* of a warpgroup's columns: 128 */

/* What a block does. */
struct part {
    uint32_t t0;                /* first token */
    uint32_t n_tok;             /* of one table */
    uint32_t head0;
    uint32_t n_heads;
    uint32_t from;              /* page */
    uint32_t n;                 /* pages */
    uint32_t least, most;       /* positions of its tokens */
};

/* Behind Q and the pages. */
struct room {
    float    max[GROUPS][ROWS];         /* as of a warpgroup's last page */
    float    sum[GROUPS][ROWS];         /* of a warpgroup's keys, at the end */
    uint64_t full[PAGES][2];            /* left 4 column blocks, right 5 */
    uint64_t free[PAGES][2];
    uint64_t max_there[GROUPS];
    uint64_t p_there[GROUPS];
};

#define ROOM_BYTES      ((1 + PAGES) * PAGE_BYTES                             \
                         + (sizeof(struct room) + 1023) / 1024 * 1024)


static __device__ __forceinline__ unsigned char *
page_of(uint32_t j)
{
    return hw_shared() + (1 + j % PAGES) * PAGE_BYTES;
}

static __device__ __forceinline__ struct room *
room_of(void)
{
    return (struct room *) (void *) (hw_shared() + (1 + PAGES) * PAGE_BYTES);
}

/* Of the barriers of page j, and of the warpgroup that it is the turn of. */
static __device__ __forceinline__ uint32_t
phase_of(uint32_t j)
{
    return j / 2 % 2;
}


/* Of fewer than 64 heads, tokens of a table that stand in a group of so many
 * are the first one's; false: this block's token is another's. */
static __device__ bool
find_part(struct part &p, const struct mla_args &m)
{
    const uint32_t *table = m.batch.table;
    uint32_t        n_z = cuda_div_up(m.a.n_heads, ROWS);
    uint32_t        group = max(ROWS / m.a.n_heads, 1u), to;

    p.t0 = blockIdx.x / n_z;
    p.head0 = blockIdx.x % n_z * ROWS;
    p.n_heads = min(m.a.n_heads - p.head0, (uint32_t) ROWS);
    p.n_tok = 1;

    if (p.t0 % group != 0 && table[p.t0 - 1] == table[p.t0]) {
        return false;
    }

    while ((p.t0 + p.n_tok) % group != 0 && p.t0 + p.n_tok < m.n_tok
           && table[p.t0 + p.n_tok] == table[p.t0])
    {
        p.n_tok++;
    }

    p.least = m.batch.pos[p.t0];
    p.most = m.batch.pos[p.t0 + p.n_tok - 1];
    mla_part(m, p.t0 + p.n_tok - 1, &p.from, &to);
    p.n = to > p.from ? to - p.from : 0;

    return true;
}


/* Row r's token; false: the row is nobody's. */
static __device__ __forceinline__ bool
find_row(const struct part &p, uint32_t r, uint32_t *t, uint32_t *head)
{
    *t = p.t0 + r / p.n_heads;
    *head = p.head0 + r % p.n_heads;

    return r / p.n_heads < p.n_tok;
}


/* Q in bf16, as a page has its keys. */
static __device__ void
load_q(const struct mla_args &m, const struct part &p)
{
    for (uint32_t i = threadIdx.x; i < ROWS * (ROW / 8); i += WORKERS) {
        uint32_t r = i / (ROW / 8), piece = i % (ROW / 8), t, head;
        uint4    v = make_uint4(0, 0, 0, 0);

        if (find_row(p, r, &t, &head)) {
            const float4 *q = (const float4 *) (const void *)
                              (m.a.q.data + m.a.q.stride * t
                               + (size_t) head * ROW + piece * 8);
            float4        a = q[0], b = q[1];

            v = make_uint4(hw_bf16x2(a.x, a.y), hw_bf16x2(a.z, a.w),
                           hw_bf16x2(b.x, b.y), hw_bf16x2(b.z, b.w));
        }

        *(uint4 *) (void *) (hw_shared()
                             + piece_at(r, piece, ROWS / ATOM_ROWS)) = v;
    }
}


/* One thread copies, pages as they lie. */
static __device__ void
produce(const struct mla_args &m, const struct part &p)
{
    const uint32_t *pages = m.batch.pages + m.batch.table[p.t0] + p.from;
    struct room    *room = room_of();
    uint32_t        id = p.n != 0 ? pages[0] : 0;
    const uint32_t  left = GROUP_BLOCKS * BLOCK_BYTES;

    hw_bulk_fence();

    for (uint32_t j = 0; j < p.n; j++) {
        const unsigned char *from = (const unsigned char *) m.kv.data
            + ((size_t) id * m.kv.n_layers + m.a.layer) * PAGE_BYTES;
        uint64_t *full = room->full[j % PAGES], *free = room->free[j % PAGES];

        id = j + 1 < p.n ? pages[j + 1] : 0;
        hw_barrier_wait(&free[0], phase_of(j) ^ 1);
        hw_barrier_expect(&full[0], left);
        hw_bulk_copy(page_of(j), from, left, &full[0]);
        hw_barrier_wait(&free[1], phase_of(j) ^ 1);
        hw_barrier_expect(&full[1], PAGE_BYTES - left);
        hw_bulk_copy(page_of(j) + left, from + left, PAGE_BYTES - left,
                     &full[1]);
    }
}


/* A lane's two rows, l / 4 and l / 4 + 8 of its warp's 16. */
struct running {
    float max[2];               /* not times the scale */
    float sum[2];               /* of this lane's keys alone */
};

static __device__ __forceinline__ uint32_t
row_of(int half)
{
    return threadIdx.x / HW_WARP % 4 * 16 + hw_lane() / 4 + half * 8;
}


/* What all sums so far are of a maximum, they are of this one. */
static __device__ __forceinline__ void
rescale(float (&o)[HALVES][64], struct running *run, const float (&max)[2],
        float scale)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        /* -INFINITY: no key of this row yet, and all sums are 0. */
        float base = max[half] == -INFINITY ? 0 : max[half];
        float by = hw_exp2((run->max[half] - base) * scale);

        run->max[half] = max[half];
        run->sum[half] *= by;

#pragma unroll
        for (int i = 0; i < 64; i++) {
            o[i / 32][i % 32 / 2 * 4 + half * 2 + i % 2] *= by;
        }
    }
}


/* This warp has arrived. */
static __device__ __forceinline__ void
arrive(uint64_t *barrier)
{
    __syncwarp();

    if (hw_lane() == 0) {
        hw_barrier_arrive(barrier);
    }
}


/* Page j's values are in this warpgroup's sums. */
static __device__ __forceinline__ void
free_page(uint32_t j, uint32_t w)
{
    uint64_t *free = room_of()->free[j % PAGES];

    if (w == 0) {
        arrive(&free[0]);
    }

    arrive(&free[1]);
}


/* This warpgroup's columns of page j, 16 keys from 16 k on. */
static __device__ __forceinline__ uint64_t
values_of(uint32_t j, uint32_t w, int half, int k)
{
    return descriptor_turned(page_of(j) + (w * GROUP_BLOCKS + half * 2)
                                          * BLOCK_BYTES
                             + k * 2 * ATOM_BYTES, BLOCK_BYTES);
}


/* The other warpgroup's page j, begun. */
static __device__ __forceinline__ void
add_other(float (&o)[HALVES][64], struct running *run, uint32_t j, uint32_t w,
          float scale)
{
    struct room *room = room_of();
    float        max[2];

    hw_barrier_wait(&room->max_there[w ^ 1], phase_of(j));
    max[0] = room->max[w ^ 1][row_of(0)];
    max[1] = room->max[w ^ 1][row_of(1)];
    rescale(o, run, max, scale);
    hw_barrier_wait(&room->full[j % PAGES][0], phase_of(j));
    hw_barrier_wait(&room->full[j % PAGES][1], phase_of(j));
    hw_barrier_wait(&room->p_there[w ^ 1], phase_of(j));
    hw_group_keep(o[0]);
    hw_group_keep(o[1]);
    hw_group_fence();

#pragma unroll
    for (int k = 0; k < PAGE / 16; k++) {
        uint64_t p = descriptor(page_of(j) + VALUE_BLOCKS * BLOCK_BYTES
                                + k * 32);

        hw_group_mma_turned(o[0], p, values_of(j, w, 0, k), true);
        hw_group_mma_turned(o[1], p, values_of(j, w, 1, k), true);
    }

    hw_group_commit();
}


/* s = Q K^T of page j, begun; the left part of a page comes first. */
static __device__ __forceinline__ void
score(float (&s)[32], uint32_t j)
{
    uint64_t *full = room_of()->full[j % PAGES];

    hw_barrier_wait(&full[0], phase_of(j));
    hw_group_fence();

#pragma unroll
    for (int k = 0; k < ROW / 16; k++) {
        uint32_t at = k / 4 * BLOCK_BYTES + k % 4 * 32;

        if (k == GROUP_BLOCKS * 4) {
            hw_barrier_wait(&full[1], phase_of(j));
            hw_group_fence();
        }

        hw_group_mma_shared(s, descriptor(hw_shared() + at),
                            descriptor(page_of(j) + at), k != 0);
    }

    hw_group_commit();
}


/* Keys that a row does not have are -INFINITY; max: with this page's. */
static __device__ __forceinline__ void
find_max(float (&max)[2], float (&s)[32], const struct running *run,
         uint32_t key0, bool is_masked, const uint32_t (&last)[2])
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float m = run->max[half];

#pragma unroll
        for (int i = 0; i < 16; i++) {
            float   &v = s[i / 2 * 4 + half * 2 + i % 2];
            uint32_t key = key0 + i / 2 * 8 + hw_lane() % 4 * 2 + i % 2;

            if (is_masked && key > last[half]) {
                v = -INFINITY;
            }

            m = fmaxf(m, v);
        }

        m = fmaxf(m, hw_xor(m, 1));
        max[half] = fmaxf(m, hw_xor(m, 2));
    }
}


/* Keys of page j from the n'th on: what another sequence left there may be NaN,
 * and NaN times a probability of 0 is NaN. */
static __device__ __forceinline__ void
clear_values(uint32_t j, uint32_t n)
{
    const uint32_t n_pieces = LATENT / 8;

    for (uint32_t i = threadIdx.x % GROUP_THREADS; i < (PAGE - n) * n_pieces;
         i += GROUP_THREADS)
    {
        *(uint4 *) (void *) (page_of(j)
                             + piece_at(n + i / n_pieces, i % n_pieces,
                                        PAGE / ATOM_ROWS)) =
            make_uint4(0, 0, 0, 0);
    }
}


/* p = exp2(s - max), as A and, for the other warpgroup, in shared memory. */
static __device__ __forceinline__ void
soften(uint4 (&p)[PAGE / 16], float (&sum)[2], float (&s)[32],
       const float (&max)[2], uint32_t j, float scale)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float base = max[half] == -INFINITY ? 0 : max[half] * scale;

        sum[half] = 0;

#pragma unroll
        for (int i = 0; i < 16; i++) {
            float &v = s[i / 2 * 4 + half * 2 + i % 2];

            v = hw_exp2(v * scale - base);
            sum[half] += v;
        }
    }

#pragma unroll
    for (int k = 0; k < PAGE / 16; k++) {
        p[k] = sums_as_a(&s[8 * k]);

        unsigned char *to = page_of(j) + VALUE_BLOCKS * BLOCK_BYTES
                            + hw_lane() % 4 * 4;

        *(uint32_t *) (void *) (to + piece_at(row_of(0), 2 * k, 8)) = p[k].x;
        *(uint32_t *) (void *) (to + piece_at(row_of(1), 2 * k, 8)) = p[k].y;
        *(uint32_t *) (void *) (to + piece_at(row_of(0), 2 * k + 1, 8)) =
            p[k].z;
        *(uint32_t *) (void *) (to + piece_at(row_of(1), 2 * k + 1, 8)) =
            p[k].w;
    }
}


/* This warpgroup's page j, of which s is there. */
static __device__ __forceinline__ void
add_own(float (&o)[HALVES][64], float (&s)[32], struct running *run,
        const struct part &p, uint32_t j, uint32_t w, float scale,
        const uint32_t (&last)[2])
{
    struct room *room = room_of();
    uint32_t     key0 = (p.from + j) * PAGE;
    float        max[2], sum[2];
    uint4        a[PAGE / 16];

    find_max(max, s, run, key0, key0 + PAGE - 1 > p.least, last);

    if (hw_lane() % 4 == 0) {
        room->max[w][row_of(0)] = max[0];
        room->max[w][row_of(1)] = max[1];
    }

    /* All of its warps have multiplied with the columns that P takes. */
    arrive(&room->max_there[w]);
    hw_barrier_wait(&room->max_there[w], phase_of(j));

    if (key0 + PAGE - 1 > p.most) {
        clear_values(j, p.most + 1 - key0);
    }

    soften(a, sum, s, max, j, scale);
    hw_shared_fence();
    arrive(&room->p_there[w]);
    rescale(o, run, max, scale);
    run->sum[0] += sum[0];
    run->sum[1] += sum[1];
    hw_barrier_wait(&room->p_there[w], phase_of(j));
    hw_group_keep(o[0]);
    hw_group_keep(o[1]);
    hw_group_fence();

#pragma unroll
    for (int k = 0; k < PAGE / 16; k++) {
        hw_group_mma_turned(o[0], a[k], values_of(j, w, 0, k), true);
        hw_group_mma_turned(o[1], a[k], values_of(j, w, 1, k), true);
    }

    hw_group_commit();
    hw_group_wait<0>();
    hw_group_keep(o[0]);
    hw_group_keep(o[1]);
}


/* y itself where there is one part; else parts and stats. */
static __device__ __forceinline__ void
store(const float (&o)[HALVES][64], struct running *run,
      const struct mla_args &m, const struct part &p, uint32_t w)
{
    struct room *room = room_of();

    for (int half = 0; half < 2; half++) {
        float sum = run->sum[half];

        sum += hw_xor(sum, 1);
        sum += hw_xor(sum, 2);

        if (hw_lane() % 4 == 0) {
            room->sum[w][row_of(half)] = sum;
        }
    }

    hw_sync_first<WORKERS>();

#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t r = row_of(half), t, head;
        float    sum = room->sum[0][r] + room->sum[1][r];

        if (!find_row(p, r, &t, &head)) {
            continue;
        }

        size_t part = ((size_t) t * m.a.n_heads + head) * m.n_splits
                      + blockIdx.y;
        float  by = m.parts == NULL ? 1 / sum : 1;
        float *to = m.parts == NULL
                    ? m.a.y.data + m.a.y.stride * t + (size_t) head * ROW
                    : m.parts + part * LATENT;

#pragma unroll
        for (int i = 0; i < 32; i++) {
            int      at = i % 16 * 4 + half * 2;
            uint32_t col = w * (LATENT / GROUPS) + i * 8 + hw_lane() % 4 * 2;

            *(float2 *) (void *) (to + col) =
                make_float2(o[i / 16][at] * by, o[i / 16][at + 1] * by);
        }

        if (m.parts != NULL && w == 0 && hw_lane() % 4 == 0) {
            m.stats[part * 2] = run->max[half] * (m.a.scale * MLA_LOG2_E);
            m.stats[part * 2 + 1] = sum;
        }
    }
}


static __device__ __forceinline__ void
consume(const struct mla_args &m, const struct part &p)
{
    uint32_t       w = threadIdx.x / GROUP_THREADS, t, head, last[2];
    float          scale = m.a.scale * MLA_LOG2_E;
    struct running run = { { -INFINITY, -INFINITY }, { 0, 0 } };
    float          s[32], o[HALVES][64];

    memset(o, 0, sizeof(o));
    load_q(m, p);
    hw_shared_fence();
    hw_sync_first<WORKERS>();

    for (int half = 0; half < 2; half++) {
        last[half] = find_row(p, row_of(half), &t, &head) ? m.batch.pos[t]
                                                           : p.most;
    }

    uint32_t j = w == 0 ? 2 : 1;

    if (w == 0 && p.n != 0) {
        score(s, 0);
        hw_group_wait<0>();
        hw_group_keep(s);
        add_own(o, s, &run, p, 0, w, scale, last);
        free_page(0, w);

    } else if (w == 1 && p.n > 1) {
        /* Both first pages are there at once: no need to wait for P. */
        score(s, 1);
        add_other(o, &run, 0, w, scale);
        hw_group_wait<0>();
        hw_group_keep(s);
        hw_group_keep(o[0]);
        hw_group_keep(o[1]);
        free_page(0, w);
        add_own(o, s, &run, p, 1, w, scale, last);
        free_page(1, w);
        j = 3;
    }

    /* Page j - 1 is the other's, page j this warpgroup's. */
    for (; j <= p.n; j += 2) {
        add_other(o, &run, j - 1, w, scale);

        if (j < p.n) {
            score(s, j);
            hw_group_wait<1>();
            hw_group_keep(o[0]);
            hw_group_keep(o[1]);
            free_page(j - 1, w);
            hw_group_wait<0>();
            hw_group_keep(s);
            add_own(o, s, &run, p, j, w, scale, last);
            free_page(j, w);

        } else {
            hw_group_wait<0>();
            hw_group_keep(o[0]);
            hw_group_keep(o[1]);
        }
    }

    store(o, &run, m, p, w);

    if (m.counters != NULL) {
        struct mla_rows rows = { p.t0, p.head0, p.n_heads,
                                 p.n_tok * p.n_heads };

        mla_combine(m, rows, WORKERS, [] { hw_sync_first<WORKERS>(); });
    }
}


static __global__ void __launch_bounds__(THREADS, 1)
mla_wide_kernel(const struct mla_args m)
{
    struct room *room = room_of();
    struct part  p;

    hw_depend();
    hw_release();

    if (!find_part(p, m)) {
        return;
    }

    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < 2; i++) {
            hw_barrier_init(&room->full[i][0], 1);
            hw_barrier_init(&room->full[i][1], 1);
            hw_barrier_init(&room->free[i][0], 4);
            hw_barrier_init(&room->free[i][1], GROUPS * 4);
            hw_barrier_init(&room->max_there[i], 4);
            hw_barrier_init(&room->p_there[i], 4);
        }
    }

    __syncthreads();

    if (threadIdx.x >= WORKERS) {
        hw_group_registers_fewer<REGISTERS_COPY>();

        if (threadIdx.x == WORKERS) {
            produce(m, p);
        }

    } else {
        hw_group_registers_more<REGISTERS>();
        consume(m, p);
    }
}


int
cuda_mla_wide_can(const struct cuda *c, const struct mla *a)
{
    return c->warpgroups && a->kv->dtype == DTYPE_BF16 && a->kv->row == ROW
           && a->n_latent == LATENT && (uintptr_t) a->q.data % 16 == 0
           && a->q.stride % 4 == 0 && (uintptr_t) a->y.data % 8 == 0
           && a->y.stride % 2 == 0;
}


void
cuda_mla_wide(struct cuda *c, const struct mla_args *m)
{
    cuda_launch(c, dim3(m->n_tok * cuda_div_up(m->a.n_heads, ROWS),
                        m->n_splits),
                THREADS, ROOM_BYTES, mla_wide_kernel, *m);
}
