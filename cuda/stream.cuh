/*
 * stream.cuh - the inner loop of linear.cu and moe.cu: weights from memory to
 * registers to mma, see linear.cu.
 */
#ifndef MOE_CUDA_STREAM_CUH
#define MOE_CUDA_STREAM_CUH

#include "common.cuh"

#define STREAM_WARPS    8
#define STREAM_THREADS  (STREAM_WARPS * HW_WARP)

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

/* mma's k tiles in it. */
template <enum dtype T>
static inline constexpr __device__ int
stream_parts(void)
{
    return T == DTYPE_FP8 ? 2 : 1;
}

/* Pieces of each of R row tiles that a lane asks for at once; twice that are
 * under way, in half of the registers that a lane has where a multiprocessor
 * holds two blocks (fp8's scales in a third of them). */
template <enum dtype T, int R>
static inline constexpr __device__ int
stream_group(void)
{
    return (T == DTYPE_FP8 ? 4 : 8) / R;
}

static inline struct stream_matrix
stream_matrix_of(const struct weight *w)
{
    struct stream_matrix m = { (const unsigned char *) w->data, w->n_out,
                               w->n_in };

    return m;
}

/* Between columns of sums: so many that those that a warp has at once are in
 * different banks. */
static inline constexpr __device__ __host__ int
stream_stride(int r)
{
    return r * 16 + 4;
}

static inline constexpr __device__ __host__ size_t
stream_room_bytes(int r, int n, int warps = STREAM_WARPS)
{
    return (size_t) warps * stream_stride(r) * n * 8 * sizeof(float);
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


/* Where piece k of a row tile is. */
template <enum dtype T>
static __device__ __forceinline__ const unsigned char *
stream_at(const unsigned char *w, uint32_t k)
{
    return T == DTYPE_FP8 ? w + (size_t) (k / 4) * CUDA_FP8_BYTES + k % 4 * 512
                          : w + (size_t) k * 512;
}

/* From a piece of a warp to its next. */
template <enum dtype T>
static inline constexpr __device__ uint32_t
stream_next_bytes(void)
{
    return STREAM_WARPS / (T == DTYPE_FP8 ? 4 : 1)
           * (T == DTYPE_FP8 ? CUDA_FP8_BYTES : 512);
}


/* What is at stream_at() of a piece k. */
template <enum dtype T>
static __device__ __forceinline__ struct stream_piece<T>
stream_read(const unsigned char *at, uint32_t k)
{
    struct stream_piece<T> p;

    p.a = hw_load_once((const uint4 *) (const void *) at);

    if (T == DTYPE_FP8) {
        const float *scales = (const float *) (const void *)
                              (at - hw_lane() * 16 - k % 4 * 512
                               + 16 * CUDA_FP8_COLS);

        p.scale[0] = scales[hw_lane() / 4];
        p.scale[T == DTYPE_FP8 ? 1 : 0] = scales[hw_lane() / 4 + 8];
    }

    return p;
}

template <enum dtype T>
static __device__ __forceinline__ struct stream_piece<T>
stream_get(const unsigned char *w, uint32_t k)
{
    return stream_read<T>(stream_at<T>(w, k), k);
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
           const uint2 (&b)[stream_parts<T>()])
{
    if (T != DTYPE_FP8) {
        hw_mma(acc, p.a, b[0]);
        return;
    }

    float part[4] = { 0, 0, 0, 0 };

    hw_mma(part, stream_fp8(p.a.x, p.a.y, STREAM_TWO_120), b[0]);
    hw_mma(part, stream_fp8(p.a.z, p.a.w, STREAM_TWO_120),
           b[stream_parts<T>() - 1]);

#pragma unroll
    for (int d = 0; d < 4; d++) {
        acc[d] += part[d] * p.scale[T == DTYPE_FP8 ? d / 2 : 0];
    }
}


/* Four columns as mma's B. */
static __device__ __forceinline__ uint2
stream_pack(float4 v)
{
    return make_uint2(hw_bf16x2(v.x, v.y), hw_bf16x2(v.z, v.w));
}


/* What is multiplied: the rows of x, or NULL, that are column lane / 4 of N
 * tiles, of n elements; times norm, element by element, and times scale[j],
 * where norm is not NULL. */
template <int N>
struct stream_rows {
    const float *x[N];
    const float *norm;
    float        scale[N];
    uint32_t     n;
};


/* Whether every four elements of a row are one load. */
static __device__ __forceinline__ bool
stream_is_plain(const float *x, uint32_t n)
{
    return n % 4 == 0 && (uintptr_t) x % 16 == 0;
}

/* All rows of the warp: its lanes have to go the same way to mma. */
template <int N>
static __device__ __forceinline__ bool
stream_are_plain(const struct stream_rows<N> &r)
{
    bool are = stream_is_plain(r.norm, r.n);

#pragma unroll
    for (int j = 0; j < N; j++) {
        are = are && stream_is_plain(r.x[j], r.n);
    }

    return hw_ballot(!are) == 0;
}


/* Columns 4c .. 4c + 3 of M k tiles from column i on, and of those of U - 1
 * more pieces, `step` further each. */
template <bool PLAIN, int U, int M>
static __device__ __forceinline__ void
stream_fours(float4 (&v)[U][M], const float *x, uint32_t n, uint32_t i,
             uint32_t step)
{
#pragma unroll
    for (int u = 0; u < U * M; u++) {
        uint32_t k = i + u / M * step + u % M * CUDA_TILE + hw_lane() % 4 * 4;
        float4   f = make_float4(0, 0, 0, 0);

        if (x != NULL && k < n) {
            f = PLAIN ? *(const float4 *) (const void *) (x + k)
                      : make_float4(x[k], k + 1 < n ? x[k + 1] : 0,
                                    k + 2 < n ? x[k + 2] : 0,
                                    k + 3 < n ? x[k + 3] : 0);
        }

        v[u / M][u % M] = f;
    }
}


/* Columns for U of a warp's pieces from k0 on of J tiles from j0 on, as mma's
 * B; zeros where there is no row or no column.  All are asked for before one is
 * waited for. */
template <enum dtype T, bool PLAIN, int U, int J, int N>
static __device__ __forceinline__ void
stream_columns(uint2 (&b)[U][J][stream_parts<T>()],
               const struct stream_rows<N> &r, int j0, uint32_t k0)
{
    const int      M = stream_parts<T>();
    const uint32_t step = STREAM_WARPS * stream_cols<T>();
    uint32_t       i = k0 * stream_cols<T>();
    float4         v[J][U][M], g[U][M];

#pragma unroll
    for (int j = 0; j < J; j++) {
        stream_fours<PLAIN, U, M>(v[j], r.x[j0 + j], r.n, i, step);
    }

    stream_fours<PLAIN, U, M>(g, r.norm, r.n, i, step);

#pragma unroll
    for (int a = 0; a < U * J * M; a++) {
        int    m = a % M, u = a / M % U, j = a / M / U;
        float4 f = v[j][u][m], w = g[u][m];

        if (r.norm != NULL) {
            float s = r.scale[j0 + j];

            f = make_float4(f.x * s * w.x, f.y * s * w.y, f.z * s * w.z,
                            f.w * s * w.w);
        }

        b[u][j][m] = stream_pack(f);
    }
}


/* A group of this warp's pieces of R row tiles. */
template <enum dtype T, int R>
static __device__ __forceinline__ void
stream_load(struct stream_piece<T> (&a)[stream_group<T, R>()][R],
            const unsigned char *const (&w)[R], uint32_t k0, uint32_t n_k)
{
#pragma unroll
    for (int i = 0; i < R; i++) {
        const unsigned char *at = stream_at<T>(w[i], k0);

#pragma unroll
        for (int u = 0; u < stream_group<T, R>(); u++) {
            if (k0 + u * STREAM_WARPS < n_k && w[i] != NULL) {
                a[u][i] = stream_read<T>(at + u * stream_next_bytes<T>(), k0);
            } else {
                memset(&a[u][i], 0, sizeof(a[u][i]));
            }
        }
    }
}


/* acc += a group of pieces times x; pieces beyond the last are zeros. */
template <enum dtype T, int R, int N>
static __device__ __forceinline__ void
stream_multiply(float (&acc)[R][N][4],
                const struct stream_piece<T> (&a)[stream_group<T, R>()][R],
                const struct stream_rows<N> &r, bool are_plain, uint32_t k0)
{
    const int GROUP = stream_group<T, R>(), M = stream_parts<T>();
    const int U = N > 1 ? 1 : 4 / M, J = N * M > 8 ? 8 / M : N;

#pragma unroll
    for (int u0 = 0; u0 < GROUP; u0 += U) {
#pragma unroll
        for (int j0 = 0; j0 < N; j0 += J) {
            uint2    b[U][J][M];
            uint32_t k = k0 + u0 * STREAM_WARPS;

            if (are_plain) {
                stream_columns<T, true, U, J>(b, r, j0, k);
            } else {
                stream_columns<T, false, U, J>(b, r, j0, k);
            }

#pragma unroll
            for (int i = 0; i < U * J * R; i++) {
                int u = i / R / J, j = i / R % J;

                stream_mma<T>(acc[i % R][j0 + j], a[u0 + u][i % R], b[u][j]);
            }
        }
    }
}


/* acc = this warp's part of the R row tiles w times x.  Waits for the kernels
 * before, with two groups under way, and calls ready() then, which may still
 * say what x is, or that there is none: n = 0. */
template <enum dtype T, int R, int N, class F>
static __device__ __forceinline__ void
stream_tiles(float (&acc)[R][N][4], const unsigned char *const (&w)[R],
             struct stream_rows<N> &r, F ready)
{
    const uint32_t         step = stream_group<T, R>() * STREAM_WARPS;
    uint32_t               n_k = cuda_div_up(r.n, stream_cols<T>());
    uint32_t               warp = threadIdx.x / HW_WARP;
    struct stream_piece<T> a[2][stream_group<T, R>()][R];

    stream_load<T, R>(a[0], w, warp, n_k);
    stream_load<T, R>(a[1], w, warp + step, n_k);
    hw_depend();
    hw_release();
    ready();
    memset(acc, 0, sizeof(acc));

    bool are_plain = stream_are_plain(r);

    for (uint32_t k0 = warp; r.n != 0 && k0 < n_k; k0 += 2 * step) {
#pragma unroll
        for (int s = 0; s < 2; s++) {
            stream_multiply<T, R, N>(acc, a[s], r, are_plain, k0 + s * step);
            stream_load<T, R>(a[s], w, k0 + (2 + s) * step, n_k);
        }
    }
}


/* The same without a norm. */
template <enum dtype T, int R, int N>
static __device__ __forceinline__ void
stream_tiles(float (&acc)[R][N][4], const unsigned char *const (&w)[R],
             uint32_t n_in, const float *const (&x)[N])
{
    struct stream_rows<N> r = {};

    for (int j = 0; j < N; j++) {
        r.x[j] = x[j];
    }

    r.n = n_in;
    stream_tiles<T, R, N>(acc, w, r, [] {});
}


/* Every warp's sums to shared memory, (warp, column, row), for stream_sum()
 * behind a barrier. */
template <int R, int N>
static __device__ __forceinline__ void
stream_put_sums(const float (&acc)[R][N][4], float *room)
{
    float   *to = room + threadIdx.x / HW_WARP * (stream_stride(R) * N * 8);
    uint32_t r = hw_lane() / 4, col = hw_lane() % 4 * 2;

#pragma unroll
    for (int i = 0; i < R; i++) {
#pragma unroll
        for (int j = 0; j < N; j++) {
#pragma unroll
            for (int d = 0; d < 4; d++) {
                to[(j * 8 + col + d % 2) * stream_stride(R) + i * 16 + r
                   + d / 2 * 8] = acc[i][j][d];
            }
        }
    }
}


/* The sum over warps of one output. */
template <int R, int N, int WARPS = STREAM_WARPS>
static __device__ __forceinline__ float
stream_sum(const float *room, uint32_t row, uint32_t col)
{
    float sum = 0;

#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        sum += room[(w * N * 8 + col) * stream_stride(R) + row];
    }

    return sum;
}

#endif /* MOE_CUDA_STREAM_CUH */
