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
 *
 * Not measured on a GPU yet.
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
    const unsigned char *w[2];      /* row tiles of this warp */
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


/* Weights of TILE_K k tiles as they are in memory. */
template <enum dtype T>
static constexpr __device__ int
tile_pieces(void)
{
    return TILE_K * CUDA_TILE / (int) stream_cols<T>();
}


template <enum dtype T>
static __device__ __forceinline__ void
tile_load_w(struct stream_piece<T> (&a)[tile_pieces<T>()][2],
            const struct tile &t, uint32_t k0, uint32_t n_k)
{
#pragma unroll
    for (int u = 0; u < tile_pieces<T>(); u++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            uint32_t k = k0 * CUDA_TILE / stream_cols<T>() + u;

            if (k < n_k && t.w[i] != NULL) {
                a[u][i] = stream_get<T>(t.w[i], k);
            } else {
                memset(&a[u][i], 0, sizeof(a[u][i]));
            }
        }
    }
}


/* k tile u of them, as mma's A.  Here the scale of fp8 is rounded to bf16 and
 * multiplied with the weights: sums of their own would want more registers
 * than there are. */
template <enum dtype T>
static __device__ __forceinline__ uint4
tile_a(const struct stream_piece<T> (&a)[tile_pieces<T>()][2], int u, int i)
{
    if (T != DTYPE_FP8) {
        return a[T == DTYPE_FP8 ? 0 : u][i].a;
    }

    const struct stream_piece<T> &p = a[T == DTYPE_FP8 ? u / 2 : 0][i];
    uint4    one = u % 2 == 0 ? stream_fp8(p.a.x, p.a.y, STREAM_TWO_120)
                              : stream_fp8(p.a.z, p.a.w, STREAM_TWO_120);
    uint32_t s0 = hw_bf16x2(p.scale[0], p.scale[0]);
    uint32_t s1 = hw_bf16x2(p.scale[T == DTYPE_FP8 ? 1 : 0],
                            p.scale[T == DTYPE_FP8 ? 1 : 0]);

    return make_uint4(hw_bf16x2_mul(one.x, s0), hw_bf16x2_mul(one.y, s1),
                      hw_bf16x2_mul(one.z, s0), hw_bf16x2_mul(one.w, s1));
}


/* t.acc = w x for the rows in tile_rows(), which are there for all threads;
 * all have done with shared memory at its end. */
template <enum dtype T>
static __device__ __forceinline__ void
tile_product(struct tile &t, uint32_t n_in)
{
    uint32_t n_k = cuda_div_up(n_in, CUDA_TILE);
    uint32_t n_pieces = cuda_div_up(n_in, stream_cols<T>());
    uint32_t half = threadIdx.x / HW_WARP / 4, stage = 0;
    uint2   *room = (uint2 *) (void *) hw_shared();
    struct stream_piece<T> a[tile_pieces<T>()][2];
    float4   x[TILE_LOADS];

    memset(t.acc, 0, sizeof(t.acc));
    tile_load_w<T>(a, t, 0, n_pieces);
    tile_load_x(x, 0, n_in);

    for (uint32_t k0 = 0; k0 < n_k; k0 += TILE_K, stage ^= 1) {
        uint2                 *b = room + stage * TILE_K * TILE_STRIDE;
        struct stream_piece<T> now[tile_pieces<T>()][2];

        memcpy(now, a, sizeof(now));
        tile_store_x(x, b);

        if (k0 + TILE_K < n_k) {
            tile_load_w<T>(a, t, k0 + TILE_K, n_pieces);
            tile_load_x(x, k0 + TILE_K, n_in);
        }

        /* One barrier a round: the stage written next was read before it. */
        __syncthreads();

#pragma unroll
        for (int u = 0; u < TILE_K; u++) {
            uint4 a0 = tile_a<T>(now, u, 0), a1 = tile_a<T>(now, u, 1);

#pragma unroll
            for (int j = 0; j < 8; j++) {
                uint2 v = b[u * TILE_STRIDE + (half * 8 + j) * HW_WARP
                            + hw_lane()];

                hw_mma(t.acc[0][j], a0, v);
                hw_mma(t.acc[1][j], a1, v);
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
