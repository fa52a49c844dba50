/*
 * wide.cu - products with weights for many rows of x on Hopper, by warpgroups
 * (wgmma): prompts' linears, their experts, and their keys and values.
 * Elsewhere, and for fewer rows, see tile.cuh and stream.cuh.
 *
 *   bytes: a tile of 256 outputs by 128 rows takes 48 KiB for 64 columns (fp8:
 *   128), of which it makes 4.2 (8.4) MFLOP, and in a cluster reads 32 of them:
 *   bound by wgmma's rate if L2 gives 8 TB/s (alone 12), by L2 below.  The
 *   weights' side is the longer one, since an expert's last tile of rows is
 *   empty in part, half a tile on average.
 *
 * x comes in atoms (wide.cuh), in the weights' type: with weights in fp8, x is
 * rounded to fp8 as well, with a scale to 128 columns of a row.
 *
 * One rounding to e4m3 costs 2.4 % (of random numbers: the steps are an eighth
 * of a power of two, the error of one is an eighth / sqrt 12 of it, and so that
 * of all is 0.036 / sqrt 2.3).  An expert rounds three times: x for gate, x for
 * up, whose errors have nothing to do with each other, and their activation:
 * 2.4 sqrt 3 = 4.1 %, and still 3.4 % without any one of them.  So that experts
 * stay within 3 %, gate and up take x as the sum of two e4m3, which leaves 0.06
 * of a percent, and the activation has one: 2.4 % in all.  (Any two of the
 * three would do; x for both is rounded once, and costs no pass of its own.)
 * That is 5 products where there were 3: at most 3 / 5 of fp8's rate, 1187 of
 * 1979 TFLOP/s, counting FLOPs as if there were one term.  Weights come to
 * registers once for both, and their scales are multiplied with once.
 *
 * wide_kernel() has a warp that copies and two warpgroups that multiply, with
 * stages of 128 bytes of columns between them:
 *
 *   warpgroup  outputs                              rows
 *       0      row tiles 0-3 of each of two halves  all 128
 *       1      row tiles 4-7                        all 128
 *
 * where the halves are 128 outputs and the next 128, or gate and up, or keys
 * and values.  Weights are A, from shared memory to registers in the order that
 * they have in memory; x is B.  In fp8 the sums of 128 columns are multiplied
 * with their scales and added up in floats, since wgmma's own sums of e4m3 keep
 * 14 bits: while one warpgroup does that, the other's products run.
 *
 * Blocks stay, and take every gridDim.x'th tile, so that the first columns of
 * the next tile are on their way while sums are stored.  What the next product
 * reads goes through shared memory, where it is put in atoms, and is copied
 * from there.
 *
 * With C = 2 blocks are in clusters of two, which have the same outputs of two
 * tiles of rows beside each other.  Each copies its own rows, and every other
 * row tile of weights to both; a stage is free again when the consumers of both
 * have read it.  Of an odd number of tiles the last one's neighbour is empty:
 * its block takes part in copying, and multiplies nothing.
 *
 * What bounds it on an H200 (132 multiprocessors, 1.83 GHz, in each 4096 FLOPs
 * of bf16 a cycle, 8192 of fp8), by arithmetic:
 *
 *   shared memory   128 bytes a cycle.  m64n128 takes 64 cycles, in which B's
 *                   4 KiB are read, and by load_a() 2 KiB of weights: 96 a
 *                   cycle.
 *   registers       a stage is 8 products of a warpgroup, 512 cycles (fp8: 256
 *                   a half, with two terms 512, and then about 160 of
 *                   promote()); what the wait at their end leaves, the other
 *                   warpgroup's fill, unless both wait at once.
 *   memory          200 KiB in flight of all stages are 3 to 4 thousand cycles
 *                   of products; it answers within about 1000.
 *   L2              of all together, in TB/s: what wgmma's full rate wants, and
 *                   the TFLOP/s (two terms counted as one) if it gives 5.5 and
 *                   7.5; published figures are 5.5 to 7.
 *
 *                              alone               in clusters, if L2 sends
 *                        wants   5.5   7.5       wants   5.5   7.5   once
 *     bf16                11.6   470   640         7.7   700   960
 *     fp8, down           12.0   910  1240         8.0  1360  1860
 *     gate and up          7.9   690   940         5.9   920   990
 *     the three                  750  1020              1030  1170
 *
 * So alone L2 has what 600 and 1000 TFLOP/s want if it is at its best, in
 * clusters with room to spare.  What they cost: a block waits for the slower
 * one of two; and an expert's last tiles are empty by 128 rows on average where
 * there were 64: r rows take (r + 128) / (r + 64) of the time, 1.08 at 768 (of
 * 8192 rows to 6 of 64 experts), 1.11 at 512, below which there are none.
 * Linears know their tiles, and may have one more to nine.  No multiprocessor
 * is lost if all can be had in pairs, as they are made; the runtime says how
 * many.
 *
 * A larger tile has no registers: 128 sums a thread, 32 of weights, fp8's 64 of
 * a part.
 *
 * cuBLASLt, which reads rows, would want a second copy of the weights, for
 * prompts alone: it is what t/bench/cuda measures beside (peer.py's ceiling).
 *
 * Not measured on a GPU yet.
 */
#include "common.cuh"
#include "wide.cuh"

#include <string.h>

#define GROUPS          2                       /* warpgroups */
#define GROUP_THREADS   (4 * HW_WARP)
#define WORKERS         (GROUPS * GROUP_THREADS)
#define THREADS         (WORKERS + GROUP_THREADS)
/* Of 65536 registers, 168 a thread are dealt out to begin with. */
#define REGISTERS       240                     /* of those that multiply */
#define REGISTERS_COPY  24
#define PIECES          4                       /* k of wgmma, in a stage */
#define HALF_TILES      (GROUPS * 4)            /* row tiles in a half */
#define SCALES_BYTES    (WIDE_ROWS * 4)
/* Where clusters of two pay: experts of so many rows on average; or not more
 * than one empty tile to so many others. */
#define PAIRED_ROWS     512
#define PAIRED_MORE     9

/* A tile, and how far the tiles are counted. */
struct wide_tile {
    uint32_t i;                     /* matrix */
    uint32_t first;                 /* number of its first tile */
    uint32_t n_outs;                /* tiles beside each other */
    uint32_t row0;                  /* of the matrix */
    uint32_t n_rows;                /* of it */
    uint32_t out0;                  /* row tile of the first half */
};

/* What a lane copies of every stage of a tile. */
struct wide_copy {
    const unsigned char *from;      /* for the next one */
    uint32_t             to;
    uint32_t             n;         /* bytes; 0: nothing */
    uint32_t             step;
};


/* As many as there is room for; x has N terms. */
template <int N>
static constexpr __device__ __host__ uint32_t
stages(void)
{
    return N == 1 ? 4 : 3;
}

/* Of a row tile in a stage. */
template <enum dtype T>
static constexpr __device__ __host__ uint32_t
w_room(void)
{
    return T == DTYPE_FP8 ? CUDA_FP8_BYTES : PIECES * 512;
}

/* Where x's second term is in a stage: behind atoms of its first, row tiles of
 * both halves, and x's scales. */
template <enum dtype T>
static constexpr __device__ __host__ uint32_t
second_at(void)
{
    return (ATOMS_BYTES + 2 * HALF_TILES * w_room<T>()
            + (T == DTYPE_FP8 ? SCALES_BYTES : 0) + 1023) / 1024 * 1024;
}

template <enum dtype T, int N>
static constexpr __device__ __host__ uint32_t
stage_bytes(void)
{
    return second_at<T>() + (N - 1) * ATOMS_BYTES;
}

/* What comes out: 128 outputs of 128 rows. */
template <enum dtype T>
static constexpr __device__ __host__ uint32_t
out_bytes(void)
{
    return T == DTYPE_FP8 ? ATOMS_BYTES : 2 * ATOMS_BYTES;
}

/* With fp8's largest outputs and scales, and with barriers: whole KiB. */
template <enum dtype T, int N>
static constexpr __host__ size_t
room_bytes(void)
{
    return stages<N>() * stage_bytes<T, N>() + out_bytes<T>()
           + (T == DTYPE_FP8 ? 6 : 1) * 1024;
}

template <enum dtype T, int N>
static __device__ __forceinline__ unsigned char *
stage_of(uint32_t i)
{
    return hw_shared() + i % stages<N>() * stage_bytes<T, N>();
}

template <enum dtype T, int N>
static __device__ __forceinline__ unsigned char *
out_room(void)
{
    return hw_shared() + stages<N>() * stage_bytes<T, N>();
}

/* Barriers come last: filled, and free again. */
template <enum dtype T, int N>
static __device__ __forceinline__ uint64_t *
full_of(uint32_t i)
{
    return (uint64_t *) (void *) (out_room<T, N>() + out_bytes<T>()
                                  + (T == DTYPE_FP8 ? (HALF_TILES + 1)
                                                      * SCALES_BYTES : 0))
           + i % stages<N>();
}

template <enum dtype T, int N>
static __device__ __forceinline__ uint64_t *
free_of(uint32_t i)
{
    return full_of<T, N>(i) + stages<N>();
}

template <int N>
static __device__ __forceinline__ uint32_t
phase_of(uint32_t i)
{
    return i / stages<N>() % 2;
}


/* Of the block in its cluster, which has C. */
template <int C>
static __device__ __forceinline__ uint32_t
rank_of(void)
{
    return C == 1 ? 0 : hw_cluster_rank();
}


/* This block's number `tile`; false: there are fewer.  t is the one before, or
 * zeros; numbers only rise.  Blocks of a cluster have the same number, and rows
 * beside each other, of which the last's may be none. */
template <int C>
static __device__ bool
find_tile(struct wide_tile &t, const struct wide_args &a, uint32_t tile)
{
    uint32_t width = HALF_TILES * (a.up.n_out != 0 ? 1 : 2);

    t.n_outs = cuda_div_up(cuda_div_up(max(a.m.n_out, a.up.n_out), CUDA_TILE),
                           width);

    for (;; t.i++) {
        if (t.i == a.n) {
            return false;
        }

        t.n_rows = a.start == NULL ? a.n_rows
                                   : a.start[t.i + 1] - a.start[t.i];

        uint32_t n = cuda_div_up(t.n_rows, C * WIDE_ROWS) * t.n_outs;

        if (tile < t.first + n) {
            break;
        }

        t.first += n;
    }

    t.row0 = ((tile - t.first) / t.n_outs * C + rank_of<C>()) * WIDE_ROWS;
    t.out0 = (tile - t.first) % t.n_outs * width;

    return true;
}


/* What a stage has of a row tile: 16 columns of it may be all that is left. */
template <enum dtype T>
static __device__ __forceinline__ uint32_t
w_bytes(const struct wide_args &a, uint32_t k)
{
    uint32_t n = cuda_div_up(a.m.n_in, CUDA_TILE) - k * PIECES;

    return T == DTYPE_FP8 ? CUDA_FP8_BYTES : min(n, (uint32_t) PIECES) * 512;
}


/* Row tiles from `tile` on that there are, up to n. */
static __device__ __forceinline__ uint32_t
count_tiles(uint32_t n_out, uint32_t tile, uint32_t n)
{
    uint32_t all = cuda_div_up(n_out, CUDA_TILE);

    return tile < all ? min(n, all - tile) : 0;
}


/* Row tiles of a stage, of both halves. */
static __device__ __forceinline__ uint32_t
tiles_of(const struct wide_args &a, const struct wide_tile &t)
{
    return a.up.n_out == 0
           ? count_tiles(a.m.n_out, t.out0, 2 * HALF_TILES)
           : count_tiles(a.m.n_out, t.out0, HALF_TILES)
             + count_tiles(a.up.n_out, t.out0, HALF_TILES);
}


/* Lane l < 16 copies row tile l of a stage, 8 of a half; of a cluster, every
 * C'th to all of its blocks. */
template <enum dtype T, int C>
static __device__ __forceinline__ void
find_weights(struct wide_copy &c, const struct wide_args &a,
             const struct wide_tile &t)
{
    uint32_t             l = hw_lane_anew();
    bool                 is_up = a.up.n_out != 0 && l >= HALF_TILES;
    uint32_t             tile = t.out0 + (is_up ? l - HALF_TILES : l);
    struct stream_matrix m = is_up ? a.up : a.m;

    if (l % C == rank_of<C>() && tile < cuda_div_up(m.n_out, CUDA_TILE)) {
        c.n = w_room<T>();
    }

    c.to = ATOMS_BYTES + l * w_room<T>();
    c.step = w_room<T>();
    c.from = m.w + (is_up ? a.up_bytes : a.m_bytes) * t.i
             + (size_t) tile
               * (T == DTYPE_FP8
                  ? cuda_div_up(m.n_in, CUDA_FP8_COLS) * CUDA_FP8_BYTES
                  : cuda_div_up(m.n_in, CUDA_TILE) * 512);
}


/* Lanes 16 and on copy what there is of x: n_blocks from `block` on; its
 * scales; its second term. */
template <enum dtype T, int N>
static __device__ __forceinline__ void
find_x(struct wide_copy &c, const struct wide_args &a,
       const struct wide_tile &t, uint32_t block, uint32_t n_blocks)
{
    size_t   at = (size_t) a.x_cols * t.i * a.x.n_blocks + block;
    uint32_t part = hw_lane_anew() - 2 * HALF_TILES;

    if (part == 0 || (N == 2 && part == 2)) {
        c.from = a.x.data + (at + (part == 2 ? a.x.n_blocks : 0)) * ATOM_BYTES;
        c.to = part == 2 ? second_at<T>() : 0;
        c.n = n_blocks * ATOM_BYTES;
        c.step = N * a.x.n_blocks * ATOM_BYTES;

    } else if (T == DTYPE_FP8 && part == 1) {
        c.from = (const unsigned char *) (a.x.scales + at * ATOM_ROWS);
        c.to = ATOMS_BYTES + 2 * HALF_TILES * w_room<T>();
        c.n = n_blocks * ATOM_ROWS * 4;
        c.step = N * a.x.n_blocks * ATOM_ROWS * 4;
    }
}


template <enum dtype T, int N, int C>
static __device__ __forceinline__ void
make_copy(struct wide_copy &c, const struct wide_args &a, uint32_t k,
          uint32_t i)
{
    bool is_x = hw_lane() >= 2 * HALF_TILES;

    if (c.n == 0) {
        return;
    }

    if (C == 1 || is_x) {
        hw_bulk_copy(stage_of<T, N>(i) + c.to, c.from,
                     is_x ? c.n : w_bytes<T>(a, k), full_of<T, N>(i));
    } else {
        hw_bulk_copy_all(stage_of<T, N>(i) + c.to, c.from, w_bytes<T>(a, k),
                         full_of<T, N>(i), (1 << C) - 1);
    }

    c.from += c.step;
}


/* The warp that copies: stage i is the i'th of this block, of whatever tile.  A
 * stage that is free in all blocks of the cluster may not be announced yet in
 * another: bytes that come before are counted in the same phase. */
template <enum dtype T, int N, int C>
static __device__ void
produce(const struct wide_args &a)
{
    uint32_t         n_k = cuda_div_up(a.m.n_in, atom_cols(T)), i = 0;
    struct wide_tile t = {};

    hw_bulk_fence();

    for (uint32_t tile = blockIdx.x; find_tile<C>(t, a, tile / C);
         tile += hw_n_blocks_anew())
    {
        uint32_t block = first_block(a.start, t.i) + t.row0 / ATOM_ROWS;
        uint32_t n_blocks = C > 1 && t.row0 >= t.n_rows ? 0
                            : min((uint32_t) (WIDE_ROWS / ATOM_ROWS),
                                  a.x.n_blocks - block);
        uint32_t n_w = tiles_of(a, t);
        uint32_t n_x = n_blocks * (N * ATOM_BYTES
                                   + (T == DTYPE_FP8 ? ATOM_ROWS * 4 : 0));
        struct wide_copy c = {};

        if (hw_lane() < 2 * HALF_TILES) {
            find_weights<T, C>(c, a, t);
        } else {
            find_x<T, N>(c, a, t, block, n_blocks);
        }

        for (uint32_t k = 0; k < n_k; k++, i++) {
            hw_barrier_wait(free_of<T, N>(i), phase_of<N>(i) ^ 1);

            if (hw_lane() == 0) {
                hw_barrier_expect(full_of<T, N>(i),
                                  n_x + n_w * w_bytes<T>(a, k));
            }

            __syncwarp();
            make_copy<T, N, C>(c, a, k, i);
        }
    }
}


/* This warp has read stage i. */
template <enum dtype T, int N, int C>
static __device__ __forceinline__ void
give_back(uint32_t i)
{
    if (C == 1) {
        if (hw_lane() == 0) {
            hw_barrier_arrive(free_of<T, N>(i));
        }

    } else if (hw_lane() < C) {
        hw_cluster_arrive(free_of<T, N>(i), hw_lane());
    }
}


/* Piece u of row tile `tile` of the stage, as wgmma's A; zeros beyond n_u. */
template <enum dtype T>
static __device__ __forceinline__ uint4
load_a(const unsigned char *stage, uint32_t tile, uint32_t u, uint32_t n_u)
{
    return u < n_u ? *(const uint4 *) (const void *)
                     (stage + ATOMS_BYTES + tile * w_room<T>() + u * 512
                      + hw_lane() * 16)
                   : make_uint4(0, 0, 0, 0);
}


/* acc = this warpgroup's 64 outputs of both halves, of a whole tile. */
template <int C>
static __device__ __forceinline__ void
multiply_bf16(float (&acc)[2][64], const struct wide_args &a, uint32_t *i)
{
    const enum dtype T = DTYPE_BF16;
    const int        N = 1;
    uint32_t         n_k = cuda_div_up(a.m.n_in, atom_cols(T));
    uint32_t         warp = threadIdx.x / HW_WARP;      /* 0 .. 7: row tile */

    for (uint32_t k = 0; k < n_k; k++, ++*i) {
        const unsigned char *stage = stage_of<T, N>(*i);
        uint32_t             n_u = w_bytes<T>(a, k) / 512;
        uint4                w[2][PIECES];

        hw_barrier_wait(full_of<T, N>(*i), phase_of<N>(*i));

#pragma unroll
        for (int u = 0; u < PIECES; u++) {
            w[0][u] = load_a<T>(stage, warp, u, n_u);
            w[1][u] = load_a<T>(stage, HALF_TILES + warp, u, n_u);
        }

        hw_group_fence();

#pragma unroll
        for (int u = 0; u < PIECES; u++) {
            hw_group_mma(acc[0], w[0][u], descriptor(stage + u * 32),
                         k + u != 0);
            hw_group_mma(acc[1], w[1][u], descriptor(stage + u * 32),
                         k + u != 0);
        }

        hw_group_commit();
        hw_group_wait<0>();
        hw_group_keep(acc[0]);
        hw_group_keep(acc[1]);
        __syncwarp();
        give_back<T, N, C>(*i);
    }
}


/* acc += the sums of 128 columns times the scales of outputs and of rows. */
static __device__ __forceinline__ void
promote(float (&acc)[64], const float (&part)[64], const unsigned char *stage,
        uint32_t tile)
{
    const uint32_t room = w_room<DTYPE_FP8>();
    const float   *w = (const float *) (const void *)
                       (stage + ATOMS_BYTES + tile * room
                        + CUDA_TILE * CUDA_FP8_COLS);
    const float   *x = (const float *) (const void *)
                       (stage + ATOMS_BYTES + 2 * HALF_TILES * room);
    float          w0 = w[hw_lane() / 4], w8 = w[hw_lane() / 4 + 8];

#pragma unroll
    for (int j = 0; j < 16; j++) {
        float2 s = *(const float2 *) (const void *)
                   (x + j * 8 + hw_lane() % 4 * 2);

        acc[4 * j] += part[4 * j] * (w0 * s.x);
        acc[4 * j + 1] += part[4 * j + 1] * (w0 * s.y);
        acc[4 * j + 2] += part[4 * j + 2] * (w8 * s.x);
        acc[4 * j + 3] += part[4 * j + 3] * (w8 * s.y);
    }
}


template <int N, int C>
static __device__ __forceinline__ void
multiply_fp8(float (&acc)[2][64], const struct wide_args &a, uint32_t *i)
{
    const enum dtype T = DTYPE_FP8;
    uint32_t         n_k = cuda_div_up(a.m.n_in, atom_cols(T));
    uint32_t         warp = threadIdx.x / HW_WARP;

    memset(acc, 0, sizeof(acc));

    for (uint32_t k = 0; k < n_k; k++, ++*i) {
        const unsigned char *stage = stage_of<T, N>(*i);

        hw_barrier_wait(full_of<T, N>(*i), phase_of<N>(*i));

#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t tile = half * HALF_TILES + warp;
            float    part[64];
            uint4    w[PIECES];

#pragma unroll
            for (int u = 0; u < PIECES; u++) {
                w[u] = load_a<T>(stage, tile, u, PIECES);
            }

            hw_group_fence();

#pragma unroll
            for (int u = 0; u < PIECES; u++) {
                hw_group_mma8(part, w[u], descriptor(stage + u * 32), u != 0);

                if (N == 2) {
                    hw_group_mma8(part, w[u], descriptor(stage + second_at<T>()
                                                         + u * 32), true);
                }
            }

            hw_group_commit();
            hw_group_wait<0>();
            hw_group_keep(part);
            promote(acc[half], part, stage, tile);
        }

        /* All lanes have their scales. */
        __syncwarp();
        give_back<T, N, C>(*i);
    }
}


/* A tile without rows: its stages are the other block's. */
template <enum dtype T, int N, int C>
static __device__ __forceinline__ void
skip(const struct wide_args &a, uint32_t *i)
{
    uint32_t n_k = cuda_div_up(a.m.n_in, atom_cols(T));

    for (uint32_t k = 0; k < n_k; k++, ++*i) {
        hw_barrier_wait(full_of<T, N>(*i), phase_of<N>(*i));
        give_back<T, N, C>(*i);
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


/* acc[0] = silu(gate) * up; 0 beyond the last output. */
static __device__ __forceinline__ void
activate(float (&acc)[2][64], const struct wide_args &a,
         const struct wide_tile &t)
{
    uint32_t tile = t.out0 + threadIdx.x / HW_WARP;

#pragma unroll
    for (int d = 0; d < 64; d++) {
        acc[0][d] = tile * CUDA_TILE + out_of(d) < a.m.n_out
                    ? cuda_silu(acc[0][d]) * acc[1][d] : 0;
    }
}


static __device__ __forceinline__ void
store(float (&acc)[2][64], const struct wide_args &a,
      const struct wide_tile &t)
{
    uint32_t tile = t.out0 + threadIdx.x / HW_WARP;
    uint32_t first = a.start == NULL ? 0 : a.start[t.i];

    if (a.up.n_out != 0) {
        activate(acc, a, t);
    }

#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (half == 1 && a.up.n_out != 0) {
            break;
        }

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


/* Atoms of a block of outputs, from shared memory to where they belong: behind
 * a barrier, by one thread. */
static __device__ __forceinline__ void
put_atoms(unsigned char *to, const unsigned char *from, uint32_t n)
{
    hw_bulk_put(to, from, n * ATOM_BYTES);
}


/* v as 128 columns of 128 rows in bf16, to shared memory. */
static __device__ __forceinline__ void
lay_out_bf16(const float (&v)[64])
{
    uint32_t o0 = threadIdx.x / HW_WARP * CUDA_TILE;

#pragma unroll
    for (int d = 0; d < 64; d++) {
        uint32_t o = o0 + out_of(d), k = order_of(o % CUDA_TILE);

        *(uint16_t *) (void *)
            (out_room<DTYPE_BF16, 1>()
             + piece_at(row_of(d), o / CUDA_TILE * 2 + k / 8,
                        WIDE_ROWS / ATOM_ROWS) + k % 8 * 2) =
            (uint16_t) hw_bf16x2(v[d], 0);
    }
}


/* The same the other way round: outputs are rows. */
static __device__ __forceinline__ void
lay_out_turned(const float (&v)[64])
{
    uint32_t o0 = threadIdx.x / HW_WARP * CUDA_TILE;

#pragma unroll
    for (int d = 0; d < 64; d += 2) {
        uint32_t r = row_of(d);

        *(uint32_t *) (void *)
            (out_room<DTYPE_BF16, 1>() + piece_at(o0 + out_of(d), r / 8,
                                               WIDE_ROWS / ATOM_ROWS)
             + r % 8 * 2) = hw_bf16x2(v[d], v[d + 1]);
    }
}


/* The same in fp8; the scale of each row to shared memory, too. */
template <int N>
static __device__ __forceinline__ void
lay_out_fp8(const float (&v)[64])
{
    unsigned char *room = out_room<DTYPE_FP8, N>();
    float   *most = (float *) (void *) (room + out_bytes<DTYPE_FP8>());
    float   *scales = most + HALF_TILES * WIDE_ROWS;
    uint32_t warp = threadIdx.x / HW_WARP, r = threadIdx.x % WIDE_ROWS;

#pragma unroll
    for (int d = 0; d < 64; d += d % 4 == 1 ? 3 : 1) {
        float m = fmaxf(fabsf(v[d]), fabsf(v[d + 2]));

        m = fmaxf(m, hw_xor(m, 4));
        m = fmaxf(m, hw_xor(m, 8));
        m = fmaxf(m, hw_xor(m, 16));

        if (hw_lane() < 4) {
            most[warp * WIDE_ROWS + row_of(d)] = m;
        }
    }

    hw_sync_first<WORKERS>();

    if (threadIdx.x < WIDE_ROWS) {
        float m = 0;

        for (uint32_t i = 0; i < HALF_TILES; i++) {
            m = fmaxf(m, most[i * WIDE_ROWS + r]);
        }

        /* The first warp's is read by this thread alone, and now is what the
         * row is multiplied with. */
        m = m > FP8_LEAST ? m : FP8_MOST;
        scales[r] = m / FP8_MOST;
        most[r] = FP8_MOST / m;
    }

    hw_sync_first<WORKERS>();

#pragma unroll
    for (int d = 0; d < 64; d++) {
        room[piece_at(row_of(d), warp, WIDE_ROWS / ATOM_ROWS) + out_of(d)] =
            (unsigned char) hw_fp8x4(v[d] * most[row_of(d)], 0, 0, 0);
    }
}


/* The activation of 128 outputs, as atoms of the product that comes next. */
template <enum dtype T, int N>
static __device__ __forceinline__ void
store_activation(float (&acc)[2][64], const struct wide_args &a,
                 const struct wide_tile &t)
{
    activate(acc, a, t);

    if (T == DTYPE_FP8) {
        lay_out_fp8<N>(acc[0]);
    } else {
        lay_out_bf16(acc[0]);
    }

    hw_shared_fence();
    hw_sync_first<WORKERS>();

    uint32_t block = first_block(a.start, t.i) + t.row0 / ATOM_ROWS;
    uint32_t n = min((uint32_t) WIDE_ROWS / ATOM_ROWS,
                     cuda_div_up(t.n_rows - t.row0, ATOM_ROWS));
    uint32_t col = t.out0 * CUDA_TILE / atom_cols(T), n_cols = 128
                   / atom_cols(T);

    for (uint32_t i = 0; threadIdx.x == 0 && i < n_cols; i++) {
        size_t at = (size_t) (col + i) * a.act.n_blocks + block;

        if ((col + i) * atom_cols(T) < a.m.n_out) {
            put_atoms(a.act.data + at * ATOM_BYTES,
                      out_room<T, N>() + i * ATOMS_BYTES, n);

            if (T == DTYPE_FP8) {
                hw_bulk_put(a.act.scales + at * ATOM_ROWS, out_room<T, N>()
                            + out_bytes<T>() + HALF_TILES * SCALES_BYTES,
                            n * ATOM_ROWS * 4);
            }
        }
    }

    if (threadIdx.x == 0) {
        hw_bulk_put_wait();
    }

    hw_sync_first<WORKERS>();
}


/* Keys by rows, values by outputs: what attention over prompts multiplies.  A
 * tile's keys are 128, those beyond the last one of zeros. */
static __device__ __forceinline__ void
store_keys(float (&acc)[2][64], const struct wide_args &a,
           const struct wide_tile &t)
{
    uint32_t o0 = threadIdx.x / HW_WARP * CUDA_TILE;
    size_t   at = ((size_t) a.n_tiles * t.i + a.tile0 + t.row0 / WIDE_ROWS)
                  * 2 * ATOMS_BYTES;

#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t n_out = half == 0 ? a.m.n_out : a.up.n_out;

#pragma unroll
        for (int d = 0; d < 64; d++) {
            acc[half][d] = o0 + out_of(d) < n_out ? acc[half][d] : 0;
        }

        if (half == 0) {
            lay_out_bf16(acc[half]);
        } else {
            lay_out_turned(acc[half]);
        }

        hw_shared_fence();
        hw_sync_first<WORKERS>();

        if (threadIdx.x == 0) {
            put_atoms((half == 0 ? a.keys : a.values) + at,
                      out_room<DTYPE_BF16, 1>(), 2 * WIDE_ROWS / ATOM_ROWS);
            hw_bulk_put_wait();
        }

        hw_sync_first<WORKERS>();
    }
}


template <enum dtype T, int N, int C>
static __device__ __forceinline__ void
consume(const struct wide_args &a)
{
    struct wide_tile t = {};
    uint32_t         i = 0;

    for (uint32_t tile = blockIdx.x; find_tile<C>(t, a, tile / C);
         tile += gridDim.x)
    {
        float acc[2][64];

        if (C > 1 && t.row0 >= t.n_rows) {
            skip<T, N, C>(a, &i);
            continue;
        }

        if (T == DTYPE_FP8) {
            multiply_fp8<N, C>(acc, a, &i);
        } else {
            multiply_bf16<C>(acc, a, &i);
        }

        if (a.out == WIDE_ACTIVATION) {
            store_activation<T, N>(acc, a, t);

        } else if (T == DTYPE_BF16 && a.out == WIDE_KEYS) {
            store_keys(acc, a, t);

        } else {
            store(acc, a, t);
        }
    }
}


template <int C>
static __device__ __forceinline__ void
sync_all(void)
{
    if (C == 1) {
        __syncthreads();
    } else {
        hw_cluster_sync();
    }
}


/* In clusters of C blocks. */
template <enum dtype T, int N, int C>
static __global__ void __launch_bounds__(THREADS, 1)
wide_kernel(const struct wide_args a)
{
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < stages<N>(); i++) {
            hw_barrier_init(full_of<T, N>(i), 1);
            hw_barrier_init(free_of<T, N>(i), C * GROUPS * 4);
        }
    }

    sync_all<C>();
    hw_depend();
    hw_release();

    if (threadIdx.x >= WORKERS) {
        hw_group_registers_fewer<REGISTERS_COPY>();

        if (threadIdx.x / HW_WARP == GROUPS * 4) {
            produce<T, N, C>(a);
        }

    } else {
        hw_group_registers_more<REGISTERS>();
        consume<T, N, C>(a);
    }

    /* Nobody arrives at a block that has ended. */
    if (C > 1) {
        hw_cluster_sync();
    }
}


/* Whether clusters pay, see above. */
static int
is_paired(const struct cuda *c, const struct wide_args *a)
{
    uint32_t n_tiles = cuda_div_up(a->n_rows, WIDE_ROWS);
    uint32_t n_pairs = cuda_div_up(a->n_rows, 2 * WIDE_ROWS);

    if (c->n_pairs == 0) {
        return 0;
    }

    return a->start != NULL ? a->n_rows >= PAIRED_ROWS * a->n
           : 2 * n_pairs * PAIRED_MORE <= n_tiles * (PAIRED_MORE + 1);
}


template <enum dtype T, int N>
static void
launch(struct cuda *c, const struct wide_args *a)
{
    if (is_paired(c, a)) {
        cuda_launch_clusters(c, 2, 2 * c->n_pairs, THREADS, room_bytes<T, N>(),
                             wide_kernel<T, N, 2>, *a);
    } else {
        cuda_launch(c, c->n_sm, THREADS, room_bytes<T, N>(),
                    wide_kernel<T, N, 1>, *a);
    }
}


void
cuda_wide(struct cuda *c, const struct wide_args *a, enum dtype dtype)
{
    if (dtype == DTYPE_BF16) {
        launch<DTYPE_BF16, 1>(c, a);

    } else if (a->two_terms) {
        launch<DTYPE_FP8, 2>(c, a);

    } else {
        launch<DTYPE_FP8, 1>(c, a);
    }
}


/* Clusters of two that fit on the device at once; the kernel with most shared
 * memory says it for all of them, a block to a multiprocessor. */
void
cuda_wide_open(struct cuda *c)
{
    cudaLaunchAttribute attr = {};
    cudaLaunchConfig_t  config = {};

    attr.id = cudaLaunchAttributeClusterDimension;
    attr.val.clusterDim.x = 2;
    attr.val.clusterDim.y = attr.val.clusterDim.z = 1;
    config.gridDim = (unsigned) c->n_sm / 2 * 2;
    config.blockDim = THREADS;
    config.dynamicSmemBytes = room_bytes<DTYPE_BF16, 1>();
    config.attrs = &attr;
    config.numAttrs = 1;
    CUDA_CHECK(cudaFuncSetAttribute(
        wide_kernel<DTYPE_BF16, 1, 2>,
        cudaFuncAttributeMaxDynamicSharedMemorySize, (int) c->shared_max));
    CUDA_CHECK(cudaOccupancyMaxActiveClusters(
        &c->n_pairs, wide_kernel<DTYPE_BF16, 1, 2>, &config));
}
