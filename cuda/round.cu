/*
 * round.cu - rows of x on their way to the warpgroups: rounded, laid out in
 * atoms (wide.cuh), and sorted by expert.  Bound by memory: 4 bytes of an
 * element are read, 2 or 1 written.
 *
 *   bf16   a thread 16 columns of a row
 *   fp8    a warp 128 columns of a row, which share a scale: the largest of
 *          them becomes 448; so a product's error is that of e4m3's mantissa,
 *          2.4 % of random numbers, whatever else there is in the row; with a
 *          second term, which is what the first one left, 0.06 %
 *
 * Columns up to a whole column block are zero.
 *
 * With a norm before it, a block a row: the sum of squares first, then what is
 * normed is stored, and rounded from there, out of L1.
 *
 * Not measured on a GPU yet.
 */
#include "common.cuh"
#include "wide.cuh"


/* Where slot s goes. */
static __device__ __forceinline__ uint32_t
row_of_slot(const struct round_args &a, uint32_t s)
{
    if (a.ids == NULL) {
        return s;
    }

    uint32_t e = a.ids[s];

    return first_block(a.start, e) * ATOM_ROWS + a.place[s] - a.start[e];
}


/* A thread's part of row x, which becomes row `row`: 16 columns from k on, the
 * t'th 16 there. */
static __device__ __forceinline__ void
round_bf16(const struct round_args &a, const float *x, uint32_t k,
           uint32_t row, uint32_t t)
{
    float4 v[4];

    for (int c = 0; c < 4; c++) {
        v[c] = stream_four(x, k + 4 * c, a.n_in);
    }

    put_pieces(a.y, row, t, v);
}


static __global__ void
round_bf16_kernel(const struct round_args a)
{
    uint32_t n_tiles = cuda_div_up(a.n_in, atom_cols(DTYPE_BF16))
                       * (atom_cols(DTYPE_BF16) / CUDA_TILE);
    size_t   i = (size_t) blockIdx.x * blockDim.x + threadIdx.x;
    uint32_t s = (uint32_t) (i / (n_tiles * a.n_heads));
    uint32_t t = (uint32_t) (i % (n_tiles * a.n_heads));

    hw_depend();
    hw_release();

    if (s >= a.n_rows) {
        return;
    }

    round_bf16(a, a.x.data + a.x.stride * (s / a.n_active)
                  + a.x_head * (t / n_tiles), t % n_tiles * CUDA_TILE,
               row_of_slot(a, s), t);
}


/* The number that the lowest byte is in e4m3, not NaN: its exponent counts from
 * 7, that of floats from 127. */
static __device__ __forceinline__ float
fp8_value(uint32_t byte)
{
    return __uint_as_float((byte & 0x80) << 24 | (byte & 0x7f) << 20)
           * 0x1p120f;
}


/* A warp's: 128 columns from k on, the t'th 128 there. */
static __device__ __forceinline__ void
round_fp8(const struct round_args &a, const float *x, uint32_t k, uint32_t row,
          uint32_t t)
{
    uint32_t l = hw_lane();
    float4   v = stream_four(x, k + 4 * l, a.n_in);
    float    most = fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)),
                          fmaxf(fabsf(v.z), fabsf(v.w)));

    for (int mask = HW_WARP / 2; mask > 0; mask /= 2) {
        most = fmaxf(most, hw_xor(most, mask));
    }

    most = most > FP8_LEAST ? most : FP8_MOST;

    float          times = FP8_MOST / most;
    uint32_t       block = a.two_terms ? 2 * t : t;
    unsigned char *to = a.y.data + piece_at(row, block * 8 + l / 4,
                                            a.y.n_blocks) + l % 4 * 4;

    v = make_float4(v.x * times, v.y * times, v.z * times, v.w * times);

    uint32_t first = hw_fp8x4(v.x, v.y, v.z, v.w);

    *(uint32_t *) (void *) to = first;

    if (a.two_terms) {
        *(uint32_t *) (void *) (to + (size_t) a.y.n_blocks * ATOM_BYTES) =
            hw_fp8x4(v.x - fp8_value(first), v.y - fp8_value(first >> 8),
                     v.z - fp8_value(first >> 16),
                     v.w - fp8_value(first >> 24));
    }

    if (l == 0) {
        a.y.scales[(size_t) block * a.y.n_blocks * ATOM_ROWS + row] =
            most / FP8_MOST;
    }
}


static __global__ void
round_fp8_kernel(const struct round_args a)
{
    uint32_t n_cols = cuda_div_up(a.n_in, CUDA_FP8_COLS);
    size_t   i = ((size_t) blockIdx.x * blockDim.x + threadIdx.x) / HW_WARP;
    uint32_t s = (uint32_t) (i / (n_cols * a.n_heads));
    uint32_t t = (uint32_t) (i % (n_cols * a.n_heads));

    hw_depend();
    hw_release();

    if (s < a.n_rows) {
        round_fp8(a, a.x.data + a.x.stride * (s / a.n_active)
                     + a.x_head * (t / n_cols), t % n_cols * CUDA_FP8_COLS,
                  row_of_slot(a, s), t);
    }
}


/* A block a row: h = norm(x), which may be in place, and then h as x above. */
template <enum dtype T>
static __global__ void __launch_bounds__(CUDA_THREADS)
norm_round_kernel(const struct round_args a)
{
    uint32_t     row = blockIdx.x, n = T == DTYPE_FP8 ? HW_WARP : 1;
    uint32_t     n_cols = T == DTYPE_FP8 ? CUDA_FP8_COLS : CUDA_TILE;
    uint32_t     n_in = cuda_div_up(a.n_in, atom_cols(T)) * atom_cols(T);
    const float *x = a.x.data + a.x.stride * row;
    float       *h = a.h.data + a.h.stride * row, sum = 0;

    hw_depend();
    hw_release();

    for (uint32_t i = threadIdx.x; i < a.n_in; i += CUDA_THREADS) {
        sum += x[i] * x[i];
    }

    float scale = 1 / sqrtf(cuda_block_sum(sum, (float *) (void *) hw_shared())
                            / (float) a.n_in + a.eps);

    for (uint32_t i = threadIdx.x; i < a.n_in; i += CUDA_THREADS) {
        h[i] = x[i] * scale * a.norm[i];
    }

    __syncthreads();

    for (uint32_t t = threadIdx.x / n; t * n_cols < n_in;
         t += CUDA_THREADS / n)
    {
        if (T == DTYPE_FP8) {
            round_fp8(a, h, t * n_cols, row, t);
        } else {
            round_bf16(a, h, t * n_cols, row, t);
        }
    }
}


void
cuda_round(struct cuda *c, const struct round_args *a, enum dtype dtype)
{
    size_t n = (size_t) a->n_rows * a->n_heads;

    if (a->norm != NULL) {
        cuda_launch(c, a->n_rows, CUDA_THREADS,
                    CUDA_THREADS / HW_WARP * sizeof(float),
                    dtype == DTYPE_FP8 ? norm_round_kernel<DTYPE_FP8>
                                       : norm_round_kernel<DTYPE_BF16>, *a);
        return;
    }

    if (dtype == DTYPE_FP8) {
        n *= cuda_div_up(a->n_in, CUDA_FP8_COLS) * HW_WARP;
    } else {
        n *= cuda_div_up(a->n_in, atom_cols(DTYPE_BF16))
             * (atom_cols(DTYPE_BF16) / CUDA_TILE);
    }

    cuda_launch(c, (uint32_t) ((n + CUDA_THREADS - 1) / CUDA_THREADS),
                CUDA_THREADS, 0, dtype == DTYPE_FP8 ? round_fp8_kernel
                                                    : round_bf16_kernel, *a);
}
