/*
 * stream.cuh - the inner loop of linear.cu and moe.cu: weights from memory to
 * registers to mma, see linear.cu.
 */
#ifndef MOE_CUDA_STREAM_CUH
#define MOE_CUDA_STREAM_CUH

#include "common.cuh"

#define STREAM_WARPS    8
#define STREAM_THREADS  (STREAM_WARPS * HW_WARP)
/* k tiles that a lane asks for at once; twice that are under way. */
#define STREAM_GROUP    4

struct stream_matrix {
    const unsigned char *w;
    uint32_t             n_out;
    uint32_t             n_in;
};

static inline struct stream_matrix
stream_matrix_of(const struct weight *w)
{
    struct stream_matrix m = { (const unsigned char *) w->data, w->n_out,
                               w->n_in };

    return m;
}

static inline constexpr __device__ __host__ size_t
stream_room_bytes(int r, int n)
{
    return (size_t) STREAM_WARPS * r * 16 * n * 8 * sizeof(float);
}


/* Columns 4c .. 4c + 3 of k tile k of one row of x, as mma's B; zeros where
 * there is no row or no column. */
static __device__ __forceinline__ uint2
stream_x(const float *x, uint32_t k, uint32_t n_in)
{
    uint32_t i = k * CUDA_TILE + hw_lane() % 4 * 4;
    float4   v = make_float4(0, 0, 0, 0);

    if (x != NULL && i + 4 <= n_in && (uintptr_t) (x + i) % 16 == 0) {
        v = *(const float4 *) (const void *) (x + i);

    } else if (x != NULL) {
        v.x = i < n_in ? x[i] : 0;
        v.y = i + 1 < n_in ? x[i + 1] : 0;
        v.z = i + 2 < n_in ? x[i + 2] : 0;
        v.w = i + 3 < n_in ? x[i + 3] : 0;
    }

    return make_uint2(hw_bf16x2(v.x, v.y), hw_bf16x2(v.z, v.w));
}


/* A group of this warp's k tiles, of R row tiles from `tile` on. */
template <int R>
static __device__ __forceinline__ void
stream_load(uint4 (&a)[STREAM_GROUP][R], const struct stream_matrix &m,
            uint32_t tile, uint32_t k0)
{
    uint32_t n_k = cuda_div_up(m.n_in, CUDA_TILE);
    uint32_t n_tiles = cuda_div_up(m.n_out, CUDA_TILE);

#pragma unroll
    for (int u = 0; u < STREAM_GROUP; u++) {
        uint32_t k = k0 + u * STREAM_WARPS;

#pragma unroll
        for (int i = 0; i < R; i++) {
            a[u][i] = k < n_k && tile + i < n_tiles
                      ? hw_load_once((const uint4 *) (const void *) m.w
                                     + ((size_t) (tile + i) * n_k + k)
                                     * HW_WARP + hw_lane())
                      : make_uint4(0, 0, 0, 0);
        }
    }
}


/* acc = this warp's part of R row tiles times N column tiles; x[j] is the row
 * of x that is column lane / 4 of tile j, or NULL.  Waits for the kernels
 * before. */
template <int R, int N>
static __device__ __forceinline__ void
stream_tiles(float (&acc)[R][N][4], const struct stream_matrix &m,
             uint32_t tile, const float *const (&x)[N])
{
    const uint32_t step = STREAM_GROUP * STREAM_WARPS;
    uint32_t       n_k = cuda_div_up(m.n_in, CUDA_TILE);
    uint32_t       warp = threadIdx.x / HW_WARP;
    uint4          a[STREAM_GROUP][R], next[STREAM_GROUP][R];

    stream_load<R>(a, m, tile, warp);
    hw_depend();
    hw_release();
    memset(acc, 0, sizeof(acc));

    for (uint32_t k0 = warp; k0 < n_k; k0 += step) {
        stream_load<R>(next, m, tile, k0 + step);

#pragma unroll
        for (int u = 0; u < STREAM_GROUP; u++) {
            uint32_t k = k0 + u * STREAM_WARPS;

            if (k >= n_k) {
                break;
            }

#pragma unroll
            for (int j = 0; j < N; j++) {
                uint2 b = stream_x(x[j], k, m.n_in);

#pragma unroll
                for (int i = 0; i < R; i++) {
                    hw_mma(acc[i][j], a[u][i], b);
                }
            }
        }

#pragma unroll
        for (int u = 0; u < STREAM_GROUP; u++) {
#pragma unroll
            for (int i = 0; i < R; i++) {
                a[u][i] = next[u][i];
            }
        }
    }
}


/* Every warp's sums to shared memory, (warp, column, row), for stream_sum()
 * behind a barrier. */
template <int R, int N>
static __device__ __forceinline__ void
stream_put_sums(const float (&acc)[R][N][4], float *room)
{
    float   *to = room + threadIdx.x / HW_WARP * (R * 16 * N * 8);
    uint32_t r = hw_lane() / 4, col = hw_lane() % 4 * 2;

#pragma unroll
    for (int i = 0; i < R; i++) {
#pragma unroll
        for (int j = 0; j < N; j++) {
#pragma unroll
            for (int d = 0; d < 4; d++) {
                to[(j * 8 + col + d % 2) * (R * 16) + i * 16 + r
                   + d / 2 * 8] = acc[i][j][d];
            }
        }
    }
}


/* The sum over warps of one output. */
template <int R, int N>
static __device__ __forceinline__ float
stream_sum(const float *room, uint32_t row, uint32_t col)
{
    float sum = 0;

#pragma unroll
    for (int w = 0; w < STREAM_WARPS; w++) {
        sum += room[(w * N * 8 + col) * (R * 16) + row];
    }

    return sum;
}

#endif /* MOE_CUDA_STREAM_CUH */
