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


/* Four elements of a row from column i on; zeros beyond n. */
static __device__ __forceinline__ float4
stream_four(const float *x, uint32_t i, uint32_t n)
{
    if (i + 4 <= n && (uintptr_t) (x + i) % 16 == 0) {
        return *(const float4 *) (const void *) (x + i);
    }

    return make_float4(i < n ? x[i] : 0, i + 1 < n ? x[i + 1] : 0,
                       i + 2 < n ? x[i + 2] : 0, i + 3 < n ? x[i + 3] : 0);
}


/* Columns 4c .. 4c + 3 of k tile k of one row of x, as mma's B; zeros where
 * there is no row or no column. */
static __device__ __forceinline__ uint2
stream_x(const float *x, uint32_t k, uint32_t n_in)
{
    float4 v = make_float4(0, 0, 0, 0);

    if (x != NULL) {
        v = stream_four(x, k * CUDA_TILE + hw_lane() % 4 * 4, n_in);
    }

    return make_uint2(hw_bf16x2(v.x, v.y), hw_bf16x2(v.z, v.w));
}


static __device__ __forceinline__ uint2
stream_x_normed(const float *x, const float *norm, float scale, uint32_t k,
                uint32_t n_in)
{
    uint32_t i = k * CUDA_TILE + hw_lane() % 4 * 4;

    if (x == NULL) {
        return make_uint2(0, 0);
    }

    float4 v = stream_four(x, i, n_in), w = stream_four(norm, i, n_in);

    return make_uint2(hw_bf16x2(v.x * scale * w.x, v.y * scale * w.y),
                      hw_bf16x2(v.z * scale * w.z, v.w * scale * w.w));
}


/* Where row tile `tile` of m begins, for this lane; NULL: there is none. */
static __device__ __forceinline__ const uint4 *
stream_tile(const struct stream_matrix &m, uint32_t tile)
{
    size_t n_k = cuda_div_up(m.n_in, CUDA_TILE);

    return tile < cuda_div_up(m.n_out, CUDA_TILE)
           ? (const uint4 *) (const void *) m.w + tile * n_k * HW_WARP
             + hw_lane() : NULL;
}


/* A group of this warp's k tiles of R row tiles. */
template <int R>
static __device__ __forceinline__ void
stream_load(uint4 (&a)[STREAM_GROUP][R], const uint4 *const (&w)[R],
            uint32_t k0, uint32_t n_k)
{
#pragma unroll
    for (int u = 0; u < STREAM_GROUP; u++) {
        uint32_t k = k0 + u * STREAM_WARPS;

#pragma unroll
        for (int i = 0; i < R; i++) {
            a[u][i] = k < n_k && w[i] != NULL
                      ? hw_load_once(w[i] + (size_t) k * HW_WARP)
                      : make_uint4(0, 0, 0, 0);
        }
    }
}


/* acc = this warp's part of the R row tiles w times N column tiles; x[j] is
 * the row of x that is column lane / 4 of tile j, or NULL; x is multiplied with
 * norm, element by element, and with scale[j], where norm is not NULL.  Waits
 * for the kernels before, and calls ready() then. */
template <int R, int N, class F>
static __device__ __forceinline__ void
stream_tiles(float (&acc)[R][N][4], const uint4 *const (&w)[R], uint32_t n_in,
             const float *const (&x)[N], const float *norm,
             float (&scale)[N], F ready)
{
    const uint32_t step = STREAM_GROUP * STREAM_WARPS;
    uint32_t       n_k = cuda_div_up(n_in, CUDA_TILE);
    uint32_t       warp = threadIdx.x / HW_WARP;
    uint4          a[STREAM_GROUP][R], next[STREAM_GROUP][R];

    stream_load<R>(a, w, warp, n_k);
    hw_depend();
    hw_release();
    ready();
    memset(acc, 0, sizeof(acc));

    for (uint32_t k0 = warp; k0 < n_k; k0 += step) {
        stream_load<R>(next, w, k0 + step, n_k);

#pragma unroll
        for (int u = 0; u < STREAM_GROUP; u++) {
            uint32_t k = k0 + u * STREAM_WARPS;

            if (k >= n_k) {
                break;
            }

#pragma unroll
            for (int j = 0; j < N; j++) {
                uint2 b = norm == NULL ? stream_x(x[j], k, n_in)
                          : stream_x_normed(x[j], norm, scale[j], k, n_in);

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


/* The same without a norm. */
template <int R, int N>
static __device__ __forceinline__ void
stream_tiles(float (&acc)[R][N][4], const uint4 *const (&w)[R], uint32_t n_in,
             const float *const (&x)[N])
{
    float scale[N] = {};

    stream_tiles<R, N>(acc, w, n_in, x, NULL, scale, [] {});
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
