/*
 * tile.cuh - products with weights for many rows of x: 128 outputs of 128
 * rows, with mma; for prompts.
 *
 *   bytes: an output tile reads 128 k of weights and 512 k of x from L2, for
 *   32768 k FLOPs: bound by mma's rate
 *
 * Weights go from L2 to registers in the order that they have (common.cuh).
 * x is rounded to bf16 on its way to shared memory, 64 columns at a time, into
 * the order of mma's B:  (k tile, row / 8, lane) of 8 bytes.  Of both the next
 * 64 columns are on their way while these are multiplied.
 *
 *   warps     rows 0..63   rows 64..127
 *   outputs      0            4            two row tiles a warp: those of one
 *                1            5            matrix, or one each of two (gate,
 *                2            6            up), whose activation then needs no
 *                3            7            other warp
 */
#ifndef MOE_CUDA_TILE_CUH
#define MOE_CUDA_TILE_CUH

#include "stream.cuh"

#define TILE_THREADS    256
#define TILE_ROWS       128         /* of x */
#define TILE_K          4           /* k tiles at a time */
#define TILE_LOADS      (TILE_ROWS * TILE_K * 4 / TILE_THREADS)
/* Units of 8 bytes from k tile to k tile: 4 more, for other banks. */
#define TILE_STRIDE     (TILE_ROWS * 4 + 4)
#define TILE_ROOM       (2 * TILE_K * TILE_STRIDE * sizeof(uint2) \
                         + TILE_ROWS * sizeof(float *))

struct tile {
    const uint4 *w[2];              /* row tiles of this warp */
    float        acc[2][8][4];
};


/* The row of x that column i of the tile is; NULL: none. */
static __device__ __forceinline__ const float **
tile_rows(void)
{
    return (const float **) (void *) (hw_shared() + 2 * TILE_K * TILE_STRIDE
                                                    * sizeof(uint2));
}


static __device__ __forceinline__ void
tile_load_x(float4 (&x)[TILE_LOADS], uint32_t k0, uint32_t n_in)
{
#pragma unroll
    for (int u = 0; u < TILE_LOADS; u++) {
        uint32_t     i = threadIdx.x + u * TILE_THREADS;
        const float *row = tile_rows()[i / (TILE_K * 4)];

        x[u] = row != NULL
               ? stream_four(row, k0 * CUDA_TILE + i % (TILE_K * 4) * 4, n_in)
               : make_float4(0, 0, 0, 0);
    }
}


static __device__ __forceinline__ void
tile_store_x(const float4 (&x)[TILE_LOADS], uint2 *room)
{
#pragma unroll
    for (int u = 0; u < TILE_LOADS; u++) {
        uint32_t i = threadIdx.x + u * TILE_THREADS;
        uint32_t row = i / (TILE_K * 4), four = i % (TILE_K * 4);

        room[four / 4 * TILE_STRIDE + row * 4 + four % 4] =
            make_uint2(hw_bf16x2(x[u].x, x[u].y), hw_bf16x2(x[u].z, x[u].w));
    }
}


static __device__ __forceinline__ void
tile_load_w(uint4 (&a)[TILE_K][2], const struct tile &t, uint32_t k0,
            uint32_t n_k)
{
#pragma unroll
    for (int u = 0; u < TILE_K; u++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            a[u][i] = k0 + u < n_k && t.w[i] != NULL
                      ? t.w[i][(size_t) (k0 + u) * HW_WARP]
                      : make_uint4(0, 0, 0, 0);
        }
    }
}


/* t.acc = w x for the rows in tile_rows(), which are there for all threads;
 * all have done with shared memory at its end. */
static __device__ __forceinline__ void
tile_product(struct tile &t, uint32_t n_in)
{
    uint32_t n_k = cuda_div_up(n_in, CUDA_TILE);
    uint32_t half = threadIdx.x / HW_WARP / 4, stage = 0;
    uint2   *room = (uint2 *) (void *) hw_shared();
    uint4    a[TILE_K][2];
    float4   x[TILE_LOADS];

    memset(t.acc, 0, sizeof(t.acc));
    tile_load_w(a, t, 0, n_k);
    tile_load_x(x, 0, n_in);

    for (uint32_t k0 = 0; k0 < n_k; k0 += TILE_K, stage ^= 1) {
        uint2 *b = room + stage * TILE_K * TILE_STRIDE;
        uint4  now[TILE_K][2];

        memcpy(now, a, sizeof(now));
        tile_store_x(x, b);

        if (k0 + TILE_K < n_k) {
            tile_load_w(a, t, k0 + TILE_K, n_k);
            tile_load_x(x, k0 + TILE_K, n_in);
        }

        /* One barrier a round: the stage written next was read before it. */
        __syncthreads();

#pragma unroll
        for (int u = 0; u < TILE_K; u++) {
#pragma unroll
            for (int j = 0; j < 8; j++) {
                uint2 v = b[u * TILE_STRIDE + (half * 8 + j) * HW_WARP
                            + hw_lane()];

                hw_mma(t.acc[0][j], now[u][0], v);
                hw_mma(t.acc[1][j], now[u][1], v);
            }
        }
    }

    __syncthreads();
}


/* The output and the row of acc[..][j][d], within the tile. */
static __device__ __forceinline__ uint32_t
tile_out(int d)
{
    return hw_lane() / 4 + d / 2 * 8;
}

static __device__ __forceinline__ uint32_t
tile_row(int j, int d)
{
    return threadIdx.x / HW_WARP / 4 * 64 + j * 8 + hw_lane() % 4 * 2 + d % 2;
}

#endif /* MOE_CUDA_TILE_CUH */
