/*
 * linear.cu - products with weights, y = W x, for few rows of x: the weights
 * are read once, as fast as memory gives them, straight into the registers
 * that multiply them.
 *
 *   y (n_rows, n_out) = or += x (n_rows, n_in) W^T
 *   bytes 2 n_out n_in, FLOPs 2 n_rows n_out n_in: bound by memory up to about
 *   200 rows of x on Hopper, by mma's rate in this kernel above about 32
 *
 * A block takes R row tiles (16 outputs each) for N column tiles (8 rows of x
 * each); its 8 warps take every 8th k tile, and are added in order:
 *
 *   W  | k0 w0 | k1 w1 | .. | k7 w7 | k8 w0 | ..     16 rows, 512 bytes a tile
 *
 * so an output is added up in one order, whatever the other rows are (D6).
 * x is rounded to bf16, sums are float.  Each lane has two groups of loads
 * under way, and the first leaves before the kernels ahead have ended.
 */
#include "common.cuh"
#include "stream.cuh"

/* One or more products of the same x. */
struct linear_args {
    struct stream_matrix m;
    struct tensor y;
    struct tensor x;
    size_t        y_head;       /* of matrix blockIdx.z */
    size_t        x_head;
    size_t        w_head;       /* bytes */
    uint32_t      n_rows;
    int           add;
};


template <int R, int N>
static __global__ void __launch_bounds__(STREAM_THREADS)
linear_kernel(const struct linear_args a)
{
    float               *room = (float *) (void *) hw_shared();
    struct stream_matrix m = a.m;
    uint32_t             row0 = blockIdx.y * N * 8;
    const float         *x[N];
    float                acc[R][N][4];

    m.w += a.w_head * blockIdx.z;

    for (int j = 0; j < N; j++) {
        uint32_t r = row0 + j * 8 + hw_lane() / 4;

        x[j] = r < a.n_rows ? a.x.data + a.x_head * blockIdx.z
                              + a.x.stride * r : NULL;
    }

    stream_tiles<R, N>(acc, m, blockIdx.x * R, x);
    stream_put_sums<R, N>(acc, room);
    __syncthreads();

    for (uint32_t i = threadIdx.x; i < R * 16 * N * 8; i += STREAM_THREADS) {
        uint32_t o = blockIdx.x * R * 16 + i % (R * 16);
        uint32_t r = row0 + i / (R * 16);

        if (o < m.n_out && r < a.n_rows) {
            float *y = a.y.data + a.y_head * blockIdx.z + a.y.stride * r + o;
            float  sum = stream_sum<R, N>(room, i % (R * 16), i / (R * 16));

            *y = a.add ? *y + sum : sum;
        }
    }
}


/* FP32 weights, for routers and for --quant f32: a warp an output, for all
 * rows of x in turn. */
static __global__ void
linear_f32_kernel(const struct linear_args a)
{
    uint32_t     o = (blockIdx.x * blockDim.x + threadIdx.x) / HW_WARP;
    uint32_t     stride = cuda_div_up(a.m.n_in, 4) * 4;
    const float *w = (const float *) (const void *)
                     (a.m.w + a.w_head * blockIdx.z) + (size_t) o * stride;

    hw_depend();
    hw_release();

    if (o >= a.m.n_out) {
        return;
    }

    for (uint32_t r = blockIdx.y; r < a.n_rows; r += gridDim.y) {
        const float *x = a.x.data + a.x_head * blockIdx.z + a.x.stride * r;
        float        sum = 0;

        for (uint32_t i = hw_lane(); i < a.m.n_in; i += HW_WARP) {
            sum += w[i] * x[i];
        }

        for (int mask = HW_WARP / 2; mask > 0; mask /= 2) {
            sum += hw_xor(sum, mask);
        }

        if (hw_lane() == 0) {
            float *y = a.y.data + a.y_head * blockIdx.z + a.y.stride * r + o;

            *y = a.add ? *y + sum : sum;
        }
    }
}


template <int R, int N>
static void
launch_linear(struct cuda *c, const struct linear_args *a, uint32_t n)
{
    dim3 n_blocks(cuda_div_up(a->m.n_out, R * 16),
                  cuda_div_up(a->n_rows, N * 8), n);

    cuda_launch(c, n_blocks, STREAM_THREADS, stream_room_bytes(R, N),
                linear_kernel<R, N>, *a);
}


static void
run(struct cuda *c, const struct linear_args *a, const struct weight *w)
{
    if (a->n_rows == 0) {
        return;
    }

    if (w->dtype == DTYPE_F32) {
        dim3 n_blocks(cuda_div_up(w->n_out, CUDA_THREADS / HW_WARP),
                      a->n_rows < 64 ? a->n_rows : 64, w->n);

        cuda_launch(c, n_blocks, CUDA_THREADS, 0, linear_f32_kernel, *a);

    } else if (a->n_rows <= 8) {
        launch_linear<1, 1>(c, a, w->n);

    } else if (a->n_rows <= 32) {
        launch_linear<2, 4>(c, a, w->n);

    } else {
        launch_linear<2, 8>(c, a, w->n);
    }
}


void
cuda_linear(struct backend *b, struct tensor y, struct tensor x,
            const struct weight *w, uint32_t n_rows, int add)
{
    struct linear_args a;

    memset(&a, 0, sizeof(a));
    a.m = stream_matrix_of(w);
    a.y = y;
    a.x = x;
    a.n_rows = n_rows;
    a.add = add;
    run(cuda_of(b), &a, w);
}


void
cuda_heads(struct backend *b, const struct heads *h)
{
    struct linear_args a;

    memset(&a, 0, sizeof(a));
    a.m = stream_matrix_of(h->w);
    a.y = h->y;
    a.x = h->x;
    a.y_head = h->y_head;
    a.x_head = h->x_head;
    a.w_head = cuda_weight_bytes(h->w);
    a.n_rows = h->n_rows;
    run(cuda_of(b), &a, h->w);
}
