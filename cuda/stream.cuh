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

/* A lane's part of 16 rows and T's columns, T = DTYPE_BF16: 16, DTYPE_FP8: 32,
 * and the scales of its two rows. */
template <enum dtype T>
struct stream_piece {
    uint4 a;
    float scale[T == DTYPE_FP8 ? 2 : 1];
};

template <enum dtype T>
static inline constexpr __device__ uint32_t
stream_cols(void)
{
    return T == DTYPE_FP8 ? 32 : 16;
}

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
template <enum dtype T>
static __device__ __forceinline__ const unsigned char *
stream_tile(const struct stream_matrix &m, uint32_t tile)
{
    size_t n = T == DTYPE_FP8
               ? (size_t) cuda_div_up(m.n_in, CUDA_FP8_COLS) * CUDA_FP8_BYTES
               : (size_t) cuda_div_up(m.n_in, CUDA_TILE) * 512;

    return tile < cuda_div_up(m.n_out, CUDA_TILE)
           ? m.w + tile * n + hw_lane() * 16 : NULL;
}


/* Piece k of a row tile. */
template <enum dtype T>
static __device__ __forceinline__ struct stream_piece<T>
stream_get(const unsigned char *w, uint32_t k)
{
    struct stream_piece<T> p;

    if (T == DTYPE_FP8) {
        const unsigned char *group = w + (size_t) (k / 4) * CUDA_FP8_BYTES;
        const float         *scales = (const float *) (const void *)
                                      (group - hw_lane() * 16
                                       + 16 * CUDA_FP8_COLS);

        p.a = hw_load_once((const uint4 *) (const void *)
                           (group + k % 4 * 512));
        p.scale[0] = scales[hw_lane() / 4];
        p.scale[T == DTYPE_FP8 ? 1 : 0] = scales[hw_lane() / 4 + 8];

    } else {
        p.a = hw_load_once((const uint4 *) (const void *)
                           (w + (size_t) k * 512));
    }

    return p;
}


/* Two of e4m3, in bytes 1 and 3 of t, as bf16 times 2^-120; its 4 bits of
 * exponent are the lowest of bf16's, whose bias is 120 larger. */
static __device__ __forceinline__ uint32_t
stream_fp8_bits(uint32_t t)
{
    return (t & 0x80008000u) | (t & 0x7f007f00u) >> 4;
}


/* Half of a lane's piece of fp8 as mma's A, not scaled: four columns of row r,
 * and of row r + 8. */
static __device__ __forceinline__ uint4
stream_fp8(uint32_t r, uint32_t r8, uint32_t times)
{
    return make_uint4(
        hw_bf16x2_mul(stream_fp8_bits(hw_bytes(r, 0x1404)), times),
        hw_bf16x2_mul(stream_fp8_bits(hw_bytes(r8, 0x1404)), times),
        hw_bf16x2_mul(stream_fp8_bits(hw_bytes(r, 0x3424)), times),
        hw_bf16x2_mul(stream_fp8_bits(hw_bytes(r8, 0x3424)), times));
}

#define STREAM_TWO_120  0x7b807b80u     /* 2^120 twice, as bf16 */


/* acc += the piece times x's columns, b of mma. */
template <enum dtype T>
static __device__ __forceinline__ void
stream_mma(float (&acc)[4], const struct stream_piece<T> &p,
           const uint2 (&b)[2])
{
    if (T != DTYPE_FP8) {
        hw_mma(acc, p.a, b[0]);
        return;
    }

    float part[4] = { 0, 0, 0, 0 };

    hw_mma(part, stream_fp8(p.a.x, p.a.y, STREAM_TWO_120), b[0]);
    hw_mma(part, stream_fp8(p.a.z, p.a.w, STREAM_TWO_120), b[1]);

#pragma unroll
    for (int d = 0; d < 4; d++) {
        acc[d] += part[d] * p.scale[T == DTYPE_FP8 ? d / 2 : 0];
    }
}


/* x's columns for piece k. */
template <enum dtype T>
static __device__ __forceinline__ void
stream_columns(uint2 (&b)[2], const float *x, const float *norm, float scale,
               uint32_t k, uint32_t n_in)
{
#pragma unroll
    for (uint32_t i = 0; i < stream_cols<T>() / CUDA_TILE; i++) {
        uint32_t at = k * (stream_cols<T>() / CUDA_TILE) + i;

        b[i] = norm == NULL ? stream_x(x, at, n_in)
                            : stream_x_normed(x, norm, scale, at, n_in);
    }
}


/* A group of this warp's pieces of R row tiles. */
template <enum dtype T, int R>
static __device__ __forceinline__ void
stream_load(struct stream_piece<T> (&a)[STREAM_GROUP][R],
            const unsigned char *const (&w)[R], uint32_t k0, uint32_t n_k)
{
#pragma unroll
    for (int u = 0; u < STREAM_GROUP; u++) {
        uint32_t k = k0 + u * STREAM_WARPS;

#pragma unroll
        for (int i = 0; i < R; i++) {
            if (k < n_k && w[i] != NULL) {
                a[u][i] = stream_get<T>(w[i], k);
            } else {
                memset(&a[u][i], 0, sizeof(a[u][i]));
            }
        }
    }
}


/* acc = this warp's part of the R row tiles w times N column tiles; x[j] is
 * the row of x that is column lane / 4 of tile j, or NULL; x is multiplied with
 * norm, element by element, and with scale[j], where norm is not NULL.  Waits
 * for the kernels before, and calls ready() then. */
template <enum dtype T, int R, int N, class F>
static __device__ __forceinline__ void
stream_tiles(float (&acc)[R][N][4], const unsigned char *const (&w)[R],
             uint32_t n_in, const float *const (&x)[N], const float *norm,
             float (&scale)[N], F ready)
{
    const uint32_t         step = STREAM_GROUP * STREAM_WARPS;
    uint32_t               n_k = cuda_div_up(n_in, stream_cols<T>());
    uint32_t               warp = threadIdx.x / HW_WARP;
    struct stream_piece<T> a[STREAM_GROUP][R], next[STREAM_GROUP][R];

    stream_load<T, R>(a, w, warp, n_k);
    hw_depend();
    hw_release();
    ready();
    memset(acc, 0, sizeof(acc));

    for (uint32_t k0 = warp; k0 < n_k; k0 += step) {
        stream_load<T, R>(next, w, k0 + step, n_k);

#pragma unroll
        for (int u = 0; u < STREAM_GROUP; u++) {
            uint32_t k = k0 + u * STREAM_WARPS;

            if (k >= n_k) {
                break;
            }

#pragma unroll
            for (int j = 0; j < N; j++) {
                uint2 b[2];

                stream_columns<T>(b, x[j], norm, scale[j], k, n_in);

#pragma unroll
                for (int i = 0; i < R; i++) {
                    stream_mma<T>(acc[i][j], a[u][i], b);
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
template <enum dtype T, int R, int N>
static __device__ __forceinline__ void
stream_tiles(float (&acc)[R][N][4], const unsigned char *const (&w)[R],
             uint32_t n_in, const float *const (&x)[N])
{
    float scale[N] = {};

    stream_tiles<T, R, N>(acc, w, n_in, x, NULL, scale, [] {});
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
