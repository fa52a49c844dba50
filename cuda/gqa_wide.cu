/*
 * gqa_wide.cu - grouped-query attention of a prompt's tokens by Hopper's
 * warpgroups, for heads of 64 and 128; gqa.cu says what is calculated, and has
 * the tokens that have no neighbour.
 *
 *   FLOPs: 4 head a key and row, a row being a query head of a token; an item
 *   is 128 rows that share a key head, for which a block goes over the keys.
 *   bytes: 4 head a key and item, from L2 but for the first: 128 FLOPs a byte,
 *   so that 5 TB/s, about what L2 gives, are 640 TFLOP/s.  wgmma bounds, with
 *   L2 close behind, and for heads of 64 exp2 as much: of a cycle and
 *   multiprocessor 4096 FLOPs and 16 exp2.
 *
 * A warp copies, two warpgroups of 64 rows multiply.  A tile is 128 keys, two
 * pages, of which a key head is one column block or two (common.cuh): in shared
 * memory they are put together as rows of 128 keys, as they lie; K is read as
 * it is and V turned.  STAGES tiles of K and of V, up to 192 KiB.
 *
 *   warpgroup, tile i          registers, for heads of 128
 *     O *= ..; P = S in bf16   64 of O, 32 of P
 *     S = Q K(i)^T             64 of S, 32 of Q
 *     O += P V(i - 1)
 *     S = exp2(S - max)        while the second product runs
 *
 * The warpgroups take turns in starting their products: one's run while the
 * other is at its exp2 (FlashAttention-3, Shah et al., 2024).  A block goes
 * from item to item, the longest first: keys of the next come while those of
 * the last are multiplied.
 *
 *   cycles of a tile, of wgmma: 2 * 16 * 64 = 2048; exp2: 2 * 64 * 128 / 16 =
 *   1024.  Keys that are masked are multiplied in the last tile, or two, which
 *   128 / n_group tokens share.
 *
 * Where there is less to do than for all multiprocessors, or a little more,
 * contexts are cut into parts, as gqa.cu's are.
 *
 * Not measured on a GPU yet.
 */
#include "gqa.cuh"
#include "wide.cuh"

#include <string.h>

#define GROUPS          2
#define GROUP_THREADS   (4 * HW_WARP)
#define WORKERS         (GROUPS * GROUP_THREADS)
#define THREADS         (WORKERS + GROUP_THREADS)
/* attend() takes 225; with 24 the warp that copies would spill. */
#define REGISTERS       232
#define REGISTERS_COPY  40
#define GROUP_ROWS      64
#define ROWS            (GROUPS * GROUP_ROWS)
#define KEYS            WIDE_ROWS           /* in a tile */
#define STAGES          3
/* 64 keys of 64 columns: a page's, of a column block. */
#define BLOCK_BYTES     (PAGE * CUDA_KV_COLS * 2)
#define TILE_BYTES(n)   ((n) / CUDA_KV_COLS * ATOMS_BYTES)
#define PARTS_MAX       32
/*
 * What parts cost, in the time of a tile, 1.2 us, by estimate: an item's Q,
 * first scores and last values, beside which nothing is multiplied; a kernel
 * that adds parts up; and so many bytes of them written and read, at 3.4 TB/s.
 */
#define ITEM_TILES      1
#define PARTS_TILES     1
#define PARTS_BYTES     ((size_t) 2 << 20)

enum { OF_KEYS, OF_VALUES };

/* Behind the tiles. */
struct room {
    uint64_t full[2][STAGES];
    uint64_t free[2][STAGES];
    uint64_t turn[GROUPS];
    uint64_t drawn[2];          /* the item is there */
    uint64_t read[2];
    uint32_t item[2];
};

#define ROOM_BYTES(n)   (2 * STAGES * TILE_BYTES(n)                           \
                         + (sizeof(struct room) + 1023) / 1024 * 1024)

/* An item is 128 rows and a part of their contexts.  Of its tokens those of one
 * table, and which of their keys are in the part. */
struct span {
    uint32_t g;                 /* key head */
    uint32_t part;
    uint32_t first;             /* row 0's token */
    uint32_t t0;
    uint32_t t1;
    uint32_t n_keys;            /* in all parts */
    uint32_t from;              /* tile */
    uint32_t n;                 /* tiles; 0: it ends before */
};


template <int HEAD>
static __device__ __forceinline__ unsigned char *
tile_of(uint32_t what, uint32_t j)
{
    return hw_shared() + (what * STAGES + j % STAGES) * TILE_BYTES(HEAD);
}

template <int HEAD>
static __device__ __forceinline__ struct room *
room_of(void)
{
    return (struct room *) (void *) (hw_shared()
                                     + 2 * STAGES * TILE_BYTES(HEAD));
}

static __device__ __forceinline__ uint32_t
phase_of(uint32_t j)
{
    return j / STAGES % 2;
}


static __device__ __forceinline__ uint32_t
count_items(const struct gqa_args &m)
{
    return cuda_div_up(m.n_tok, ROWS / m.n_group) * m.a.n_kv_heads
           * m.n_splits;
}


/* Item i, the longest first: ahead of its first span. */
static __device__ __forceinline__ struct span
find_item(const struct gqa_args &m, uint32_t i)
{
    uint32_t    n_kv = m.a.n_kv_heads, n_each = ROWS / m.n_group;
    uint32_t    n = cuda_div_up(m.n_tok, n_each), x = i % (n * n_kv);
    struct span p = {};

    p.g = x % n_kv;
    p.part = i / (n * n_kv);
    p.first = p.t1 = (n - 1 - x / n_kv) * n_each;

    return p;
}


/* The k'th item that is drawn, by a warp for all; n or more: there is none
 * left.  A block's first is that of its number, and each is followed by a draw:
 * there are n of them, as of items. */
template <int HEAD>
static __device__ __forceinline__ uint32_t
draw_item(const struct gqa_args &m, uint32_t k, uint32_t n)
{
    struct room *room = room_of<HEAD>();

    hw_barrier_wait(&room->read[k % 2], k / 2 % 2 ^ 1);

    if (hw_lane() == 0) {
        /* pairs with those of the other blocks; the last leaves 0 behind */
        uint32_t i = atomicAdd(m.counters, 1);

        if (i == n - 1) {
            *m.counters = 0;
        }

        room->item[k % 2] = gridDim.x + i;
        hw_barrier_arrive(&room->drawn[k % 2]);
    }

    __syncwarp();

    return room->item[k % 2];
}


/* The next of an item's tokens that are some of a run; false: there are no
 * more.  Tables of tokens ascend. */
static __device__ __forceinline__ bool
find_span(struct span &p, const struct gqa_args &m)
{
    const uint32_t *table = m.batch.table;
    uint32_t        end = min(p.first + ROWS / m.n_group, m.n_tok);

    p.t0 = p.t1;

    /* Most often all are of one run. */
    if (p.t0 + 1 >= end || table[p.t0] != table[end - 1]) {
        while (p.t0 < end && is_alone(m, p.t0)) {
            p.t0++;
        }
    }

    if (p.t0 >= end) {
        return false;
    }

    for (p.t1 = end; table[p.t1 - 1] != table[p.t0]; p.t1--) {
    }

    uint32_t per = m.per / (KEYS / PAGE), to;

    p.n_keys = m.batch.pos[p.t1 - 1] + 1;
    p.from = per * p.part;
    to = min(p.from + per, cuda_div_up(p.n_keys, KEYS));
    p.n = to > p.from ? to - p.from : 0;

    return true;
}


/* Tile i of keys, the j'th of the block; for all lanes of a warp.  What is
 * behind the last key may be NaN, and NaN times a probability of 0 is NaN: it
 * is left out, and values are zeros there. */
template <int HEAD>
static __device__ __forceinline__ void
load_tile(const struct gqa_args &m, const struct span &p, uint32_t what,
          uint32_t i, uint32_t j)
{
    const uint32_t       n_blocks = HEAD / CUDA_KV_COLS;
    struct room         *room = room_of<HEAD>();
    uint64_t            *full = &room->full[what][j % STAGES];
    unsigned char       *to = tile_of<HEAD>(what, j);
    uint32_t             n_keys = min(p.n_keys - i * KEYS, (uint32_t) KEYS);
    const uint32_t      *ids = m.batch.pages + m.batch.table[p.t0]
                               + i * (KEYS / PAGE);
    uint32_t             id[KEYS / PAGE];
    const unsigned char *from = (const unsigned char *) m.kv.data
                                + (size_t) (what * m.a.n_kv_heads + p.g)
                                  * n_blocks * BLOCK_BYTES;

    for (uint32_t k = 0; k < KEYS / PAGE; k++) {
        id[k] = k * PAGE < n_keys ? ids[k] : 0;
    }

    hw_barrier_wait(&room->free[what][j % STAGES], phase_of(j) ^ 1);

    if (what == OF_VALUES && n_keys < KEYS) {
#pragma unroll 1
        for (uint32_t k = hw_lane(); k < (KEYS - n_keys) * (HEAD / 8);
             k += HW_WARP)
        {
            *(uint4 *) (void *) (to + piece_at(n_keys + k / (HEAD / 8),
                                               k % (HEAD / 8),
                                               KEYS / ATOM_ROWS)) =
                make_uint4(0, 0, 0, 0);
        }

        hw_shared_fence();
        __syncwarp();
    }

    if (hw_lane() != 0) {
        return;
    }

    hw_barrier_expect(full, n_keys * HEAD * 2);

    for (uint32_t k = 0; k < KEYS / PAGE && k * PAGE < n_keys; k++) {
        size_t   page = ((size_t) id[k] * m.kv.n_layers + m.a.layer) * PAGE
                        * m.kv.row * 2;
        uint32_t n = min(n_keys - k * PAGE, (uint32_t) PAGE);

        for (uint32_t b = 0; b < n_blocks; b++) {
            hw_bulk_copy(to + b * ATOMS_BYTES + k * BLOCK_BYTES,
                         from + page + b * BLOCK_BYTES, n * CUDA_KV_COLS * 2,
                         full);
        }
    }
}


/* A warp that copies; keys of a tile are asked for before the values of the
 * tile ahead. */
template <int HEAD>
static __device__ __forceinline__ void
produce(const struct gqa_args &m)
{
    uint32_t n = count_items(m), item = blockIdx.x, j = 0;

    hw_bulk_fence();

    for (uint32_t drawn = 0; item < n; drawn++) {
        struct span p = find_item(m, item);

        for (; find_span(p, m); j += p.n) {
#pragma unroll 1
            for (uint32_t k = 0; k < 2 * p.n + 2; k++) {
                uint32_t what = k % 2, i = k / 2 - what;

                /* Not ahead of the first tile, nor behind the last. */
                if (i < p.n) {
                    load_tile<HEAD>(m, p, what, p.from + i, j + i);
                }
            }
        }

        item = draw_item<HEAD>(m, drawn, n);
    }
}


/* A lane's two rows, l / 4 and l / 4 + 8 of its warp's 16. */
struct running {
    float    max[2];            /* not times the scale */
    float    sum[2];            /* of this lane's keys alone */
    uint32_t last[2];           /* position, of the row's last key */
};

/* A lane's row: its token, or n_tok, and its head. */
static __device__ __forceinline__ uint32_t
find_row(const struct gqa_args &m, const struct span &p, int half,
         uint32_t *head)
{
    uint32_t u = threadIdx.x / HW_WARP * 16 + hw_lane() / 4
                 + (uint32_t) half * 8;
    uint32_t t = p.first + u / m.n_group;

    *head = p.g * m.n_group + u % m.n_group;

    return t >= p.t0 && t < p.t1 ? t : m.n_tok;
}


template <int HEAD>
static __device__ __forceinline__ void
load_q(uint4 (&q)[HEAD / 16], struct running *run, const struct gqa_args &m,
       const struct span &p)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t     head, t = find_row(m, p, half, &head);
        const float *x = m.a.q.data + m.a.q.stride * t + head * HEAD
                         + hw_lane() % 4 * 2;

        run->last[half] = t == m.n_tok ? p.n_keys - 1 : m.batch.pos[t];

#pragma unroll
        for (int k = 0; k < HEAD / 16; k++) {
            float2 lo = make_float2(0, 0), hi = lo;

            if (t != m.n_tok) {
                lo = *(const float2 *) (const void *) (x + k * 16);
                hi = *(const float2 *) (const void *) (x + k * 16 + 8);
            }

            (half == 0 ? q[k].x : q[k].y) = hw_bf16x2(lo.x, lo.y);
            (half == 0 ? q[k].z : q[k].w) = hw_bf16x2(hi.x, hi.y);
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


/* Warpgroup w's turn at tile j: the other one has started its products of tile
 * j - w. */
template <int HEAD>
static __device__ __forceinline__ void
take_turn(uint32_t j)
{
    uint32_t w = threadIdx.x / GROUP_THREADS;

    hw_barrier_wait(&room_of<HEAD>()->turn[w], (j ^ w ^ 1) & 1);
}

template <int HEAD>
static __device__ __forceinline__ void
give_turn(void)
{
    arrive(&room_of<HEAD>()->turn[threadIdx.x / GROUP_THREADS ^ 1]);
}


/* s = Q K^T of tile j, begun. */
template <int HEAD>
static __device__ __forceinline__ void
score(float (&s)[KEYS / 2], const uint4 (&q)[HEAD / 16], uint32_t j)
{
    hw_group_fence();

#pragma unroll
    for (int k = 0; k < HEAD / 16; k++) {
        hw_group_mma(s, q[k], descriptor(tile_of<HEAD>(OF_KEYS, j)
                                         + k / 4 * ATOMS_BYTES + k % 4 * 32),
                     k != 0);
    }

    hw_group_commit();
}


/* o += P V of tile j, begun. */
template <int HEAD>
static __device__ __forceinline__ void
add_values(float (&o)[HEAD / 2], const uint4 (&p)[KEYS / 16], uint32_t j)
{
    hw_group_fence();

#pragma unroll
    for (int k = 0; k < KEYS / 16; k++) {
        hw_group_mma_turned(o, p[k],
                            descriptor_turned(tile_of<HEAD>(OF_VALUES, j)
                                              + k * 2 * ATOM_BYTES,
                                              ATOMS_BYTES), true);
    }

    hw_group_commit();
}


/* Keys that a row does not have. */
static __device__ __forceinline__ void
mask(float (&s)[KEYS / 2], const struct running &run, uint32_t key0)
{
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) {
        uint32_t key = key0 + i / 4 * 8 + hw_lane() % 4 * 2 + i % 2;

        if (key > run.last[i / 2 % 2]) {
            s[i] = -INFINITY;
        }
    }
}


/* s = exp2(s - max); by: what sums so far are to be multiplied with.  A row
 * without a key in a part's first tile has none in the part: it becomes NaN,
 * and goes nowhere. */
static __device__ __forceinline__ void
soften(float (&s)[KEYS / 2], float (&by)[2], struct running *run, float scale)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float max = run->max[half], sum = 0;

#pragma unroll
        for (int i = 0; i < KEYS / 4; i++) {
            max = fmaxf(max, s[i / 2 * 4 + half * 2 + i % 2]);
        }

        max = fmaxf(max, hw_xor(max, 1));
        max = fmaxf(max, hw_xor(max, 2));

        float base = max * scale;

        by[half] = hw_exp2(run->max[half] * scale - base);
        run->max[half] = max;

#pragma unroll
        for (int i = 0; i < KEYS / 4; i++) {
            float &v = s[i / 2 * 4 + half * 2 + i % 2];

            v = hw_exp2(v * scale - base);
            sum += v;
        }

        run->sum[half] = run->sum[half] * by[half] + sum;
    }
}


static __device__ __forceinline__ void
round_p(uint4 (&p)[KEYS / 16], const float (&s)[KEYS / 2])
{
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++) {
        p[k] = sums_as_a(&s[8 * k]);
    }
}


template <int HEAD>
static __device__ __forceinline__ void
store(const float (&o)[HEAD / 2], const struct running &run,
      const struct gqa_args &m, const struct span &p)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t head, t = find_row(m, p, half, &head);
        uint32_t n_parts = t == m.n_tok ? 0 : parts_of(m, t);
        size_t   part = ((size_t) t * m.a.n_heads + head) * m.n_splits
                        + p.part;
        float    sum = run.sum[half];

        sum += hw_xor(sum, 1);
        sum += hw_xor(sum, 2);

        float  by = n_parts == 1 ? 1 / sum : 1;
        float *to = n_parts == 1
                    ? m.a.y.data + m.a.y.stride * t + head * HEAD
                    : m.parts + part * HEAD;

        if (p.part >= n_parts) {
            continue;
        }

        if (n_parts != 1 && hw_lane() % 4 == 0) {
            m.stats[part * 2] = run.max[half] * (m.a.scale * LOG2_E);
            m.stats[part * 2 + 1] = sum;
        }

#pragma unroll
        for (int i = 0; i < HEAD / 8; i++) {
            *(float2 *) (void *) (to + i * 8 + hw_lane() % 4 * 2) =
                make_float2(o[i * 4 + half * 2] * by,
                            o[i * 4 + half * 2 + 1] * by);
        }
    }
}


/* The last products of values are done, of tile j; P and the sums are made
 * ready for those of the next. */
template <int HEAD>
static __device__ __forceinline__ void
turn_over(float (&o)[HEAD / 2], uint4 (&a)[KEYS / 16],
          const float (&s)[KEYS / 2], const float (&by)[2], uint32_t j,
          bool is_first)
{
    hw_group_wait<0>();
    hw_group_keep(o);

    if (!is_first) {
        arrive(&room_of<HEAD>()->free[OF_VALUES][j % STAGES]);
    }

#pragma unroll
    for (int i = 0; i < HEAD / 2; i++) {
        o[i] *= by[i / 2 % 2];
    }

    round_p(a, s);
}


/* A span's rows, whose tiles are the block's from the j0'th on.  That values
 * are waited for behind the barriers is what keeps exp2 ahead of that: within
 * a block of instructions the compiler has it the other way round. */
template <int HEAD>
static __device__ __forceinline__ void
attend(const struct gqa_args &m, const struct span &p, uint32_t j0)
{
    struct room   *room = room_of<HEAD>();
    float          scale = m.a.scale * LOG2_E;
    uint32_t       least = m.batch.pos[p.t0], key0 = p.from * KEYS, j = j0;
    struct running run = { { -INFINITY, -INFINITY }, { 0, 0 }, { 0, 0 } };
    float          s[KEYS / 2], o[HEAD / 2], by[2];
    uint4          q[HEAD / 16], a[KEYS / 16];

    memset(o, 0, sizeof(o));
    load_q<HEAD>(q, &run, m, p);

    hw_barrier_wait(&room->full[OF_KEYS][j % STAGES], phase_of(j));
    take_turn<HEAD>(j);
    score<HEAD>(s, q, j);
    give_turn<HEAD>();
    hw_group_wait<0>();
    hw_group_keep(s);
    arrive(&room->free[OF_KEYS][j % STAGES]);

    if (key0 + KEYS - 1 > least) {
        mask(s, run, key0);
    }

    soften(s, by, &run, scale);

    for (j++; j < j0 + p.n; j++) {
        key0 += KEYS;
        hw_barrier_wait(&room->full[OF_KEYS][j % STAGES], phase_of(j));
        hw_barrier_wait(&room->full[OF_VALUES][(j - 1) % STAGES],
                        phase_of(j - 1));
        take_turn<HEAD>(j);
        turn_over<HEAD>(o, a, s, by, j - 2, j - j0 == 1);
        score<HEAD>(s, q, j);
        add_values<HEAD>(o, a, j - 1);
        give_turn<HEAD>();
        hw_group_wait<1>();
        hw_group_keep(s);
        arrive(&room->free[OF_KEYS][j % STAGES]);

        if (key0 + KEYS - 1 > least) {
            mask(s, run, key0);
        }

        soften(s, by, &run, scale);
    }

    hw_barrier_wait(&room->full[OF_VALUES][(j - 1) % STAGES],
                    phase_of(j - 1));
    turn_over<HEAD>(o, a, s, by, j - 2, j - j0 == 1);
    add_values<HEAD>(o, a, j - 1);
    hw_group_wait<0>();
    hw_group_keep(o);
    arrive(&room->free[OF_VALUES][(j - 1) % STAGES]);
    store<HEAD>(o, run, m, p);
}


template <int HEAD>
static __device__ __forceinline__ void
consume(const struct gqa_args &m)
{
    struct room *room = room_of<HEAD>();
    uint32_t     n = count_items(m), item = blockIdx.x, j = 0;

    for (uint32_t drawn = 0; item < n; drawn++) {
        struct span p = find_item(m, item);

        for (; find_span(p, m); j += p.n) {
            if (p.n != 0) {
                attend<HEAD>(m, p, j);
            }
        }

        hw_barrier_wait(&room->drawn[drawn % 2], drawn / 2 % 2);
        item = room->item[drawn % 2];
        arrive(&room->read[drawn % 2]);
    }
}


template <int HEAD>
static __global__ void __launch_bounds__(THREADS, 1)
gqa_wide_kernel(const struct gqa_args m)
{
    struct room *room = room_of<HEAD>();

    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < 2 * STAGES; i++) {
            hw_barrier_init(&room->full[i / STAGES][i % STAGES], 1);
            hw_barrier_init(&room->free[i / STAGES][i % STAGES], GROUPS * 4);
        }

        for (uint32_t w = 0; w < GROUPS; w++) {
            hw_barrier_init(&room->turn[w], 4);
        }

        for (uint32_t i = 0; i < 2; i++) {
            hw_barrier_init(&room->drawn[i], 1);
            hw_barrier_init(&room->read[i], GROUPS * 4);
        }
    }

    __syncthreads();
    hw_depend();
    hw_release();

    if (threadIdx.x >= WORKERS) {
        hw_group_registers_fewer<REGISTERS_COPY>();

        if (threadIdx.x / HW_WARP == WORKERS / HW_WARP) {
            produce<HEAD>(m);
        }

    } else {
        hw_group_registers_more<REGISTERS>();

        consume<HEAD>(m);
    }
}


static int
is_for(const struct cuda *c, const struct gqa_args *m)
{
    return c->warpgroups && m->kv.dtype == DTYPE_BF16
           && (m->a.head == 64 || m->a.head == 128) && m->n_group <= ROWS
           && (uintptr_t) m->a.q.data % 8 == 0 && m->a.q.stride % 2 == 0
           && (uintptr_t) m->a.y.data % 8 == 0 && m->a.y.stride % 2 == 0;
}


/* How contexts are cut, of n_items if they are not: such that the last of them
 * are done soonest. */
static void
choose_parts(const struct cuda *c, struct gqa_args *m, uint32_t n_items)
{
    uint32_t n_tiles = c->max_pos / KEYS + 1, least = UINT32_MAX;
    uint32_t n_sm = (uint32_t) c->n_sm;
    size_t   part = (size_t) c->n_tok * m->a.n_heads * (m->a.head + 2)
                    * sizeof(float);

    for (uint32_t n = 1; n <= PARTS_MAX; n++) {
        uint32_t per = cuda_div_up(n_tiles, n);
        uint32_t cost = cuda_div_up(n_items * n, n_sm) * (per + ITEM_TILES);

        if (n > 1) {
            cost += PARTS_TILES + (uint32_t) (n * part / PARTS_BYTES);
        }

        if (cost < least && (n == 1 || n * part <= CUDA_SCRATCH)) {
            least = cost;
            m->n_splits = cuda_div_up(n_tiles, per);
            m->per = per * (KEYS / PAGE);
        }
    }

    m->parts = c->scratch;
    m->stats = m->parts + (size_t) c->n_tok * m->a.n_heads * m->n_splits
                          * m->a.head;
}


int
cuda_gqa_wide(struct cuda *c, const struct gqa_args *m)
{
    uint32_t        n = cuda_div_up(c->n_tok, ROWS / m->n_group)
                        * m->a.n_kv_heads;
    struct gqa_args w = *m;

    if (!is_for(c, m)) {
        return -1;
    }

    choose_parts(c, &w, n);
    w.which = RUNS;
    w.counters = c->counters;
    n = min(n * w.n_splits, (uint32_t) c->n_sm);

    if (m->a.head == 64) {
        cuda_launch(c, n, THREADS, ROOM_BYTES(64), gqa_wide_kernel<64>, w);

    } else {
        cuda_launch(c, n, THREADS, ROOM_BYTES(128), gqa_wide_kernel<128>, w);
    }

    if (w.n_splits > 1) {
        cuda_gqa_combine(c, &w);
    }

    return 0;
}
