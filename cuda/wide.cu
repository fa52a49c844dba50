/*
 * wide.cu - products with weights for many rows of x on Hopper, by warpgroups
 * (wgmma): prompts' linears, and their experts.  Elsewhere, and for fewer rows,
 * see tile.cuh and stream.cuh.
 *
 *   bytes: a tile of 256 outputs by 128 rows reads 48 KiB for 64 columns, of
 *   which it makes 4.2 MFLOP; 96 FLOPs a byte of L2: bound by wgmma's rate if
 *   L2 gives 10 TB/s, by L2 below
 *
 * Two kernels.  round_kernel() rounds x to bf16 and lays it out as wgmma reads
 * it from shared memory, and sorts the rows by expert on the way:
 *
 *   atom     8 rows of 64 columns, 1 KiB: row r at 128 r, its piece p of 16
 *            bytes at p ^ r (the 128-byte swizzle); columns of each 16 in the
 *            order in which common.cuh's weights have them
 *   x16      (column block, row block) of atoms, so that any rows from a
 *            multiple of 8 on are one copy
 *
 * wide_kernel() has a warp that copies and two warpgroups that multiply, with
 * STAGES of 64 columns between them:
 *
 *   warpgroup  outputs                              rows
 *       0      row tiles 0-3 of each of two halves  all 128
 *       1      row tiles 4-7                        all 128
 *
 * where the halves are 128 outputs and the next 128, or gate and up.  Weights
 * are A, from shared memory to registers in the order that they have in memory;
 * x is B.  Blocks stay, and take every gridDim.x'th tile, so that the first
 * columns of the next tile are on their way while sums are stored.
 *
 * Not measured on a GPU yet.
 */
#include "common.cuh"
#include "stream.cuh"

#include <string.h>

#define GROUPS          2                       /* warpgroups */
#define GROUP_THREADS   (4 * HW_WARP)
#define THREADS         ((GROUPS + 1) * GROUP_THREADS)
/* Of 65536 registers, 168 a thread are dealt out to begin with. */
#define REGISTERS       240                     /* of those that multiply */
#define REGISTERS_COPY  24
#define STAGES          4
#define ROWS            128                     /* of x, in a tile */
#define COLS            64                      /* in a stage */
#define COL_TILES       (COLS / CUDA_TILE)
#define HALF_TILES      (GROUPS * 4)            /* row tiles in a half */
#define ATOM_ROWS       8
#define ATOM_BYTES      1024
#define X_BYTES         (ROWS / ATOM_ROWS * ATOM_BYTES)
/* Of a row tile in a stage; with fp8 its 16 scales come last. */
#define W_BYTES_MAX     (COL_TILES * 512)
#define FP8_BYTES       (COLS * CUDA_TILE)
#define SCALE_BYTES     (CUDA_TILE * 4)
#define STAGE_BYTES     (X_BYTES + 2 * HALF_TILES * W_BYTES_MAX)
#define ROOM            (STAGES * STAGE_BYTES + 1024)

struct wide_args {
    struct stream_matrix m;         /* of expert or head 0 */
    const unsigned char *up;        /* NULL: the halves are both of m */
    size_t               w_bytes;   /* of one matrix */
    uint32_t             n;         /* matrices */
    const unsigned char *x16;
    uint32_t             x_blocks;  /* row blocks in x16 */
    uint32_t             x_cols;    /* column blocks from matrix to matrix */
    uint32_t             n_rows;    /* where start is NULL */
    const uint32_t      *start;     /* (n + 1) an expert's first row of y */
    struct tensor        y;
    size_t               y_head;    /* columns from matrix to matrix */
    int                  add;
    unsigned char       *y16;       /* the activation, laid out as x16 is */
};

struct round_args {
    struct tensor   x;
    size_t          x_head;
    uint32_t        n_heads;
    uint32_t        n_in;
    uint32_t        n_rows;         /* or slots */
    uint32_t        n_active;       /* slots of a row */
    const uint32_t *ids;            /* NULL: rows stay in order */
    const uint32_t *place;
    const uint32_t *start;
    unsigned char  *x16;
    uint32_t        x_blocks;
};

/* A tile, and how far the tiles are counted. */
struct wide_tile {
    uint32_t i;                     /* matrix */
    uint32_t first;                 /* number of its first tile */
    uint32_t n_outs;                /* tiles beside each other */
    uint32_t row0;                  /* of the matrix */
    uint32_t n_rows;                /* of it */
    uint32_t out0;                  /* row tile of the first half */
};


/* Where in x16 expert e's rows begin: a multiple of 8.  Each expert has up to
 * 8 rows more than it fills, and so nobody has to add up. */
static __device__ __forceinline__ uint32_t
first_block(const uint32_t *start, uint32_t e)
{
    return start == NULL ? 0 : start[e] / ATOM_ROWS + e;
}

static inline __host__ uint32_t
blocks_of(uint32_t n_rows, uint32_t n_experts)
{
    return cuda_div_up(n_rows, ATOM_ROWS) + n_experts;
}


/* Byte of piece `piece` (8 columns) of a row in x16. */
static __device__ __forceinline__ size_t
piece_at(uint32_t row, uint32_t piece, uint32_t x_blocks)
{
    size_t atom = (size_t) (piece / 8) * x_blocks + row / ATOM_ROWS;

    return atom * ATOM_BYTES + row % ATOM_ROWS * 128
           + (piece % 8 ^ row % ATOM_ROWS) * 16;
}


/* Column k of 16 as its place in wgmma's order. */
static __device__ __forceinline__ uint32_t
order_of(uint32_t k)
{
    return k / 4 * 2 + k % 2 + k % 4 / 2 * 8;
}


/* A thread 16 columns of a row, zeros up to a whole number of atoms. */
static __global__ void
round_kernel(const struct round_args a)
{
    uint32_t n_tiles = cuda_div_up(a.n_in, COLS) * COL_TILES;
    size_t   i = (size_t) blockIdx.x * blockDim.x + threadIdx.x;
    uint32_t s = (uint32_t) (i / (n_tiles * a.n_heads));
    uint32_t t = (uint32_t) (i % (n_tiles * a.n_heads)), row = s;

    hw_depend();
    hw_release();

    if (s >= a.n_rows) {
        return;
    }

    if (a.ids != NULL) {
        uint32_t e = a.ids[s];

        row = first_block(a.start, e) * ATOM_ROWS + a.place[s] - a.start[e];
    }

    const float *x = a.x.data + a.x.stride * (s / a.n_active)
                     + a.x_head * (t / n_tiles);
    uint32_t     k = t % n_tiles * CUDA_TILE;
    float4       v[4];

    for (int c = 0; c < 4; c++) {
        v[c] = stream_four(x, k + 4 * c, a.n_in);
    }

    *(uint4 *) (void *) (a.x16 + piece_at(row, 2 * t, a.x_blocks)) =
        make_uint4(hw_bf16x2(v[0].x, v[0].y), hw_bf16x2(v[1].x, v[1].y),
                   hw_bf16x2(v[2].x, v[2].y), hw_bf16x2(v[3].x, v[3].y));
    *(uint4 *) (void *) (a.x16 + piece_at(row, 2 * t + 1, a.x_blocks)) =
        make_uint4(hw_bf16x2(v[0].z, v[0].w), hw_bf16x2(v[1].z, v[1].w),
                   hw_bf16x2(v[2].z, v[2].w), hw_bf16x2(v[3].z, v[3].w));
}


/* Tile number `tile`; false: there are fewer.  t is the one before, or zeros;
 * numbers only rise. */
static __device__ bool
find_tile(struct wide_tile &t, const struct wide_args &a, uint32_t tile)
{
    uint32_t width = HALF_TILES * (a.up != NULL ? 1 : 2);

    t.n_outs = cuda_div_up(cuda_div_up(a.m.n_out, CUDA_TILE), width);

    for (;; t.i++) {
        if (t.i == a.n) {
            return false;
        }

        t.n_rows = a.start == NULL ? a.n_rows
                                   : a.start[t.i + 1] - a.start[t.i];

        uint32_t n = cuda_div_up(t.n_rows, ROWS) * t.n_outs;

        if (tile < t.first + n) {
            break;
        }

        t.first += n;
    }

    t.row0 = (tile - t.first) / t.n_outs * ROWS;
    t.out0 = (tile - t.first) % t.n_outs * width;

    return true;
}


static __device__ __forceinline__ unsigned char *
stage_of(uint32_t i)
{
    return hw_shared() + i % STAGES * STAGE_BYTES;
}

/* Barriers behind the stages: filled, and free again. */
static __device__ __forceinline__ uint64_t *
full_of(uint32_t i)
{
    return (uint64_t *) (void *) (hw_shared() + STAGES * STAGE_BYTES)
           + i % STAGES;
}

static __device__ __forceinline__ uint64_t *
free_of(uint32_t i)
{
    return full_of(i) + STAGES;
}

static __device__ __forceinline__ uint32_t
phase_of(uint32_t i)
{
    return i / STAGES % 2;
}


/* What a stage has of a row tile: 16 columns of it may be all that is left. */
template <enum dtype T>
static __device__ __forceinline__ uint32_t
w_bytes(const struct wide_args &a, uint32_t k)
{
    uint32_t n = cuda_div_up(a.m.n_in, CUDA_TILE) - k * COL_TILES;

    return T == DTYPE_FP8 ? FP8_BYTES + SCALE_BYTES
                          : min(n, (uint32_t) COL_TILES) * 512;
}


/* Lane l < 16 copies row tile l of the stage, 8 of a half. */
template <enum dtype T>
static __device__ __forceinline__ void
copy_weights(const struct wide_args &a, const struct wide_tile &t, uint32_t k,
             uint32_t i)
{
    uint32_t             l = hw_lane(), n_tiles = cuda_div_up(a.m.n_out,
                                                              CUDA_TILE);
    uint32_t             tile = t.out0 + (a.up != NULL ? l % HALF_TILES : l);
    const unsigned char *m = a.up != NULL && l >= HALF_TILES ? a.up : a.m.w;
    unsigned char       *to = stage_of(i) + X_BYTES + l * W_BYTES_MAX;

    if (l >= 2 * HALF_TILES || tile >= n_tiles) {
        return;
    }

    m += a.w_bytes * t.i;

    if (T == DTYPE_FP8) {
        const unsigned char *from = m + ((size_t) tile
                                         * cuda_div_up(a.m.n_in, CUDA_FP8_COLS)
                                         + k / 2) * CUDA_FP8_BYTES;

        hw_bulk_copy(to, from + k % 2 * FP8_BYTES, FP8_BYTES, full_of(i));
        hw_bulk_copy(to + FP8_BYTES, from + 2 * FP8_BYTES, SCALE_BYTES,
                     full_of(i));

    } else {
        hw_bulk_copy(to, m + ((size_t) tile * cuda_div_up(a.m.n_in, CUDA_TILE)
                              + k * COL_TILES) * 512, w_bytes<T>(a, k),
                     full_of(i));
    }
}


/* The warp that copies: stage i is the i'th of this block, of whatever tile. */
template <enum dtype T>
static __device__ void
produce(const struct wide_args &a)
{
    uint32_t         n_k = cuda_div_up(a.m.n_in, COLS), i = 0;
    uint32_t         n_tiles = cuda_div_up(a.m.n_out, CUDA_TILE);
    struct wide_tile t = {};

    hw_bulk_fence();

    for (uint32_t tile = blockIdx.x; find_tile(t, a, tile);
         tile += gridDim.x)
    {
        uint32_t block = first_block(a.start, t.i) + t.row0 / ATOM_ROWS;
        uint32_t n_x = min((uint32_t) (ROWS / ATOM_ROWS), a.x_blocks - block)
                       * ATOM_BYTES;
        uint32_t n_w = a.up != NULL
                       ? 2 * min((uint32_t) HALF_TILES, n_tiles - t.out0)
                       : min(2u * HALF_TILES, n_tiles - t.out0);

        for (uint32_t k = 0; k < n_k; k++, i++) {
            hw_barrier_wait(free_of(i), phase_of(i) ^ 1);

            if (hw_lane() == 0) {
                hw_barrier_expect(full_of(i), n_x + n_w * w_bytes<T>(a, k));
            }

            __syncwarp();
            copy_weights<T>(a, t, k, i);

            if (hw_lane() == HW_WARP - 1) {
                hw_bulk_copy(stage_of(i), a.x16
                             + ((size_t) (a.x_cols * t.i + k) * a.x_blocks
                                + block) * ATOM_BYTES, n_x, full_of(i));
            }
        }
    }
}


/* Columns 16u of row tile `tile` of the stage, as mma's A; zeros beyond n_u.
 * Here the scale of fp8 is rounded to bf16, as in tile.cuh. */
template <enum dtype T>
static __device__ __forceinline__ uint4
load_a(const unsigned char *stage, uint32_t tile, uint32_t u, uint32_t n_u)
{
    const unsigned char *w = stage + X_BYTES + tile * W_BYTES_MAX;

    if (T != DTYPE_FP8) {
        return u < n_u ? *(const uint4 *) (const void *)
                         (w + u * 512 + hw_lane() * 16)
                       : make_uint4(0, 0, 0, 0);
    }

    const uint2  two = *(const uint2 *) (const void *)
                       (w + u / 2 * 512 + hw_lane() * 16 + u % 2 * 8);
    const float *scales = (const float *) (const void *) (w + FP8_BYTES);
    float        f0 = scales[hw_lane() / 4], f1 = scales[hw_lane() / 4 + 8];
    uint32_t     s0 = hw_bf16x2(f0, f0), s1 = hw_bf16x2(f1, f1);
    uint4        one = stream_fp8(two.x, two.y, STREAM_TWO_120);

    return make_uint4(hw_bf16x2_mul(one.x, s0), hw_bf16x2_mul(one.y, s1),
                      hw_bf16x2_mul(one.z, s0), hw_bf16x2_mul(one.w, s1));
}


/* B of 16 columns: where it is, in units of 16 bytes; 8 rows to 1024 bytes;
 * the 128-byte swizzle.  See PTX, "matrix descriptor". */
static __device__ __forceinline__ uint64_t
descriptor(const unsigned char *at)
{
    return (uint64_t) (hw_shared_address(at) >> 4 & 0x3fff)
           | (uint64_t) 1 << 16 | (uint64_t) (ATOM_BYTES >> 4) << 32
           | (uint64_t) 1 << 62;
}


/* acc = this warpgroup's 64 outputs of both halves, of a whole tile. */
template <enum dtype T>
static __device__ __forceinline__ void
multiply(float (&acc)[2][64], const struct wide_args &a, uint32_t *i)
{
    uint32_t n_k = cuda_div_up(a.m.n_in, COLS);
    uint32_t warp = threadIdx.x / HW_WARP;      /* 0 .. 7: its row tile */

    for (uint32_t k = 0; k < n_k; k++, ++*i) {
        const unsigned char *stage = stage_of(*i);
        uint32_t             n_u = w_bytes<T>(a, k) / 512;
        uint4                w[2][COL_TILES];

        hw_barrier_wait(full_of(*i), phase_of(*i));

#pragma unroll
        for (int u = 0; u < COL_TILES; u++) {
            w[0][u] = load_a<T>(stage, warp, u, n_u);
            w[1][u] = load_a<T>(stage, HALF_TILES + warp, u, n_u);
        }

        hw_group_fence();

#pragma unroll
        for (int u = 0; u < COL_TILES; u++) {
            hw_group_mma(acc[0], w[0][u], descriptor(stage + u * 32),
                         k + u != 0);
            hw_group_mma(acc[1], w[1][u], descriptor(stage + u * 32),
                         k + u != 0);
        }

        hw_group_commit();
        hw_group_wait<0>();
        hw_group_keep(acc[0]);
        hw_group_keep(acc[1]);

        if (hw_lane() == 0) {
            hw_barrier_arrive(free_of(*i));
        }
    }
}


/* Output and row of acc[..][d], within a warp's 16 and within the tile. */
static __device__ __forceinline__ uint32_t
out_of(int d)
{
    return hw_lane() / 4 + d / 2 % 2 * 8;
}

static __device__ __forceinline__ uint32_t
row_of(int d)
{
    return d / 4 * 8 + hw_lane() % 4 * 2 + d % 2;
}


static __device__ __forceinline__ void
store(const float (&acc)[2][64], const struct wide_args &a,
      const struct wide_tile &t)
{
    uint32_t tile = t.out0 + threadIdx.x / HW_WARP;
    uint32_t first = a.start == NULL ? 0 : a.start[t.i];

#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int d = 0; d < 64; d++) {
            uint32_t o = (tile + half * HALF_TILES) * CUDA_TILE + out_of(d);
            uint32_t r = t.row0 + row_of(d);

            if (o < a.m.n_out && r < t.n_rows) {
                float *y = a.y.data + a.y.stride * (first + r)
                           + a.y_head * t.i + o;

                *y = a.add ? *y + acc[half][d] : acc[half][d];
            }
        }
    }
}


/* silu(gate) * up, as the x16 of the product that comes next. */
static __device__ __forceinline__ void
store_activation(const float (&acc)[2][64], const struct wide_args &a,
                 const struct wide_tile &t)
{
    uint32_t tile = t.out0 + threadIdx.x / HW_WARP;
    uint32_t first = first_block(a.start, t.i) * ATOM_ROWS;

#pragma unroll
    for (int d = 0; d < 64; d++) {
        uint32_t o = tile * CUDA_TILE + out_of(d), r = t.row0 + row_of(d);
        uint32_t k = order_of(o % CUDA_TILE);
        float    v = o < a.m.n_out ? cuda_silu(acc[0][d]) * acc[1][d] : 0;

        if (o < cuda_div_up(a.m.n_out, COLS) * COLS && r < t.n_rows) {
            *(uint16_t *) (void *)
                (a.y16 + piece_at(first + r, tile * 2 + k / 8, a.x_blocks)
                 + k % 8 * 2) = (uint16_t) hw_bf16x2(v, 0);
        }
    }
}


template <enum dtype T>
static __device__ __forceinline__ void
consume(const struct wide_args &a)
{
    struct wide_tile t = {};
    uint32_t         i = 0;

    for (uint32_t tile = blockIdx.x; find_tile(t, a, tile);
         tile += gridDim.x)
    {
        float acc[2][64];

        multiply<T>(acc, a, &i);

        if (a.y16 != NULL) {
            store_activation(acc, a, t);
        } else {
            store(acc, a, t);
        }
    }
}


template <enum dtype T>
static __global__ void __launch_bounds__(THREADS, 1)
wide_kernel(const struct wide_args a)
{
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < STAGES; i++) {
            hw_barrier_init(full_of(i), 1);
            hw_barrier_init(free_of(i), GROUPS * 4);
        }
    }

    __syncthreads();
    hw_depend();
    hw_release();

    if (threadIdx.x >= GROUPS * GROUP_THREADS) {
        hw_group_registers_fewer<REGISTERS_COPY>();

        if (threadIdx.x / HW_WARP == GROUPS * 4) {
            produce<T>(a);
        }

    } else {
        hw_group_registers_more<REGISTERS>();
        consume<T>(a);
    }
}


static void
launch_round(struct cuda *c, const struct round_args *a)
{
    size_t n = (size_t) a->n_rows * a->n_heads
               * cuda_div_up(a->n_in, COLS) * COL_TILES;

    cuda_launch(c, (uint32_t) ((n + CUDA_THREADS - 1) / CUDA_THREADS),
                CUDA_THREADS, 0, round_kernel, *a);
}


static void
launch_wide(struct cuda *c, const struct wide_args *a, enum dtype dtype)
{
    if (dtype == DTYPE_FP8) {
        cuda_launch(c, c->n_sm, THREADS, ROOM, wide_kernel<DTYPE_FP8>, *a);
    } else {
        cuda_launch(c, c->n_sm, THREADS, ROOM, wide_kernel<DTYPE_BF16>, *a);
    }
}


static int
is_for(const struct cuda *c, const struct weight *w)
{
    return c->warpgroups && w->dtype != DTYPE_F32;
}


/* Few tiles leave most of the device idle: then weights stream faster. */
int
cuda_wide_heads(struct cuda *c, const struct heads *h, int add)
{
    const struct weight *w = h->w;
    uint32_t n_cols = cuda_div_up(w->n_in, COLS);
    uint32_t n_tiles = cuda_div_up(h->n_rows, ROWS)
                       * cuda_div_up(w->n_out, 256) * w->n;
    size_t   row_bytes = (size_t) n_cols * w->n * COLS * 2;
    uint32_t most = (uint32_t) (CUDA_ROUNDED / row_bytes) / ROWS * ROWS;

    if (!is_for(c, w) || n_tiles < (uint32_t) c->n_sm / 2 || most == 0) {
        return -1;
    }

    for (uint32_t r = 0; r < h->n_rows; r += most) {
        struct round_args x;
        struct wide_args  a;

        memset(&x, 0, sizeof(x));
        memset(&a, 0, sizeof(a));
        x.n_rows = min(most, h->n_rows - r);
        x.x = h->x;
        x.x.data += h->x.stride * r;
        x.x_head = h->x_head;
        x.n_heads = w->n;
        x.n_in = w->n_in;
        x.n_active = 1;
        x.x16 = c->rounded;
        x.x_blocks = blocks_of(x.n_rows, 0);
        launch_round(c, &x);

        a.m = stream_matrix_of(w);
        a.w_bytes = cuda_weight_bytes(w);
        a.n = w->n;
        a.x16 = x.x16;
        a.x_blocks = x.x_blocks;
        a.x_cols = n_cols;
        a.n_rows = x.n_rows;
        a.y = h->y;
        a.y.data += h->y.stride * r;
        a.y_head = h->y_head;
        a.add = add;
        launch_wide(c, &a, w->dtype);
    }

    return 0;
}


/* x, sorted, is where the output of down goes later. */
int
cuda_wide_moe(struct cuda *c, const struct moe *m, const uint32_t *place,
              const uint32_t *start)
{
    uint32_t n_slots = m->n_rows * m->n_active, n = m->gate->n;
    uint32_t n_blocks = blocks_of(n_slots, n + 1);
    size_t   dim = cuda_div_up(m->gate->n_in, COLS) * COLS;
    size_t   width = cuda_div_up(m->gate->n_out, COLS) * COLS;

    if (!is_for(c, m->gate) || (uintptr_t) m->tmp_down.data % 16 != 0
        || (uintptr_t) m->tmp_gate.data % 16 != 0
        || n_blocks * ATOM_ROWS * dim * 2
           > n_slots * m->tmp_down.stride * sizeof(float)
        || n_blocks * ATOM_ROWS * width * 2
           > n_slots * m->tmp_gate.stride * sizeof(float))
    {
        return -1;
    }

    struct round_args x;
    struct wide_args  a;

    memset(&x, 0, sizeof(x));
    memset(&a, 0, sizeof(a));
    x.x = m->x;
    x.n_heads = 1;
    x.n_in = m->gate->n_in;
    x.n_rows = n_slots;
    x.n_active = m->n_active;
    x.ids = m->ids;
    x.place = place;
    x.start = start;
    x.x16 = (unsigned char *) m->tmp_down.data;
    x.x_blocks = n_blocks;
    launch_round(c, &x);

    a.m = stream_matrix_of(m->gate);
    a.up = (const unsigned char *) m->up->data;
    a.w_bytes = cuda_weight_bytes(m->gate);
    a.n = n;
    a.x16 = x.x16;
    a.x_blocks = n_blocks;
    a.start = start;
    a.y16 = (unsigned char *) m->tmp_gate.data;
    launch_wide(c, &a, m->gate->dtype);

    a.m = stream_matrix_of(m->down);
    a.up = NULL;
    a.w_bytes = cuda_weight_bytes(m->down);
    a.x16 = a.y16;
    a.y16 = NULL;
    a.y = m->tmp_down;
    launch_wide(c, &a, m->down->dtype);

    return 0;
}
