/*
 * linear.cu - products with weights, y = W x.  For few rows of x the weights
 * are read once, as fast as memory gives them, straight into the registers
 * that multiply them; for more than 64, see wide.cu and tile.cuh.
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
 * so an output is added up in one order, whatever the other rows are (D6), as
 * long as they are few.
 * x is rounded to bf16, sums are float.  Each lane has two groups of loads
 * under way, and the first two leave before the kernels ahead have ended.
 *
 * A dense layer's gate and up, with their activation, are one kernel that has a
 * row tile of each: sums in the same order, 2 products for one x and one launch
 * where there were three.
 *
 * Not measured on a GPU yet.
 */
#include "common.cuh"
#include "stream.cuh"
#include "tile.cuh"

/* Of float weights, those that a warp has at once. */
#define F32_ROWS    8
#define F32_OUTS    8
/* Elements of a row that a lane asks for at once, of those that are normed. */
#define NORM_GROUP  32

struct linear_part {
    struct stream_matrix m;
    struct tensor        y;
    uint32_t             block;     /* the first that is this part's */
};

/* Products of the same x, normed first where norm is not NULL. */
struct linear_args {
    struct linear_part part[CUDA_PARTS_MAX];
    uint32_t           n_parts;
    struct tensor      x;
    const float       *norm;        /* (n_in) */
    float              eps;
    struct tensor      h;           /* what is normed, for who else wants it */
    size_t             y_head;      /* of matrix blockIdx.z */
    size_t             x_head;
    size_t             w_head;      /* bytes */
    uint32_t           n_rows;
    int                add;
};


/* For a warp: the sum of squares of a row. */
static __device__ __forceinline__ float
square_sum(const float *x, uint32_t n)
{
    float sum = 0;

    for (uint32_t i = hw_lane(); i < n; i += HW_WARP * NORM_GROUP) {
        float v[NORM_GROUP];

#pragma unroll
        for (uint32_t u = 0; u < NORM_GROUP; u++) {
            uint32_t k = i + u * HW_WARP;

            v[u] = k < n ? x[k] : 0;
        }

#pragma unroll
        for (uint32_t u = 0; u < NORM_GROUP; u++) {
            sum += v[u] * v[u];
        }
    }

    for (int mask = HW_WARP / 2; mask > 0; mask /= 2) {
        sum += hw_xor(sum, mask);
    }

    return sum;
}


/* 1 / root mean square of up to 8 rows, a warp each; and a part of the normed
 * rows, stored. */
static __device__ __forceinline__ void
norm_rows(const struct linear_args &a, uint32_t n_in, float *scales)
{
    uint32_t r = threadIdx.x / HW_WARP;

    if (r < a.n_rows) {
        float sum = square_sum(a.x.data + a.x.stride * r, n_in);

        if (hw_lane() == 0) {
            scales[r] = 1 / sqrtf(sum / (float) n_in + a.eps);
        }
    }

    __syncthreads();

    for (uint32_t i = blockIdx.x * STREAM_THREADS + threadIdx.x; i < n_in;
         i += gridDim.x * STREAM_THREADS)
    {
        for (r = 0; r < a.n_rows; r++) {
            a.h.data[a.h.stride * r + i] = a.x.data[a.x.stride * r + i]
                                           * scales[r] * a.norm[i];
        }
    }
}


/* Row tiles w times rows of x from row0 on, normed first if they are to be:
 * sums for stream_sum(). */
template <enum dtype T, int R, int N>
static __device__ __forceinline__ void
multiply(const struct linear_args &a, const unsigned char *const (&w)[R],
         uint32_t n_in, uint32_t row0, float *room)
{
    struct stream_rows<N> x = {};
    float                 acc[R][N][4];

    for (int j = 0; j < N; j++) {
        uint32_t r = row0 + j * 8 + hw_lane() / 4;

        x.x[j] = r < a.n_rows ? a.x.data + a.x_head * blockIdx.z
                                + a.x.stride * r : NULL;
    }

    x.norm = N == 1 ? a.norm : NULL;
    x.n = n_in;
    stream_tiles<T, R, N>(acc, w, x, [&] {
        if (x.norm != NULL) {
            norm_rows(a, n_in, room);
            x.scale[0] = room[hw_lane() / 4];
            __syncthreads();
        }
    });
    stream_put_sums<R, N>(acc, room);
    __syncthreads();
}


/* Output o of row r, if there is one. */
static __device__ __forceinline__ void
put_out(const struct linear_args &a, const struct linear_part &p, uint32_t r,
        uint32_t o, float sum)
{
    if (o < p.m.n_out && r < a.n_rows) {
        float *y = p.y.data + a.y_head * blockIdx.z + p.y.stride * r + o;

        *y = a.add ? *y + sum : sum;
    }
}


/* The product that this block has outputs of. */
static __device__ __forceinline__ struct linear_part
part_of(const struct linear_args &a)
{
    uint32_t           i = 0;
    struct linear_part p = a.part[0];

    while (i + 1 < a.n_parts && blockIdx.x >= a.part[i + 1].block) {
        p = a.part[++i];
    }

    return p;
}


template <enum dtype T, int R, int N>
static __global__ void __launch_bounds__(STREAM_THREADS, N == 1 ? 2 : 1)
linear_kernel(const struct linear_args a)
{
    float              *room = (float *) (void *) hw_shared();
    uint32_t            row0 = blockIdx.y * N * 8;
    struct linear_part  p = part_of(a);
    uint32_t            tile = (blockIdx.x - p.block) * R;
    const unsigned char *w[R];

    p.m.w += a.w_head * blockIdx.z;

    for (int i = 0; i < R; i++) {
        w[i] = stream_tile<T>(p.m, tile + i);
    }

    multiply<T, R, N>(a, w, p.m.n_in, row0, room);

    for (uint32_t i = threadIdx.x; i < R * 16 * N * 8; i += STREAM_THREADS) {
        put_out(a, p, row0 + i / (R * 16), tile * 16 + i % (R * 16),
                stream_sum<R, N>(room, i % (R * 16), i / (R * 16)));
    }
}


/* silu(gate x) * (up x), gate part 0 and up part 1: a row tile of both. */
template <enum dtype T, int N>
static __global__ void __launch_bounds__(STREAM_THREADS, N == 1 ? 2 : 1)
gate_up_kernel(const struct linear_args a)
{
    float   *room = (float *) (void *) hw_shared();
    uint32_t row0 = blockIdx.y * N * 8, tile = blockIdx.x;
    const unsigned char *const w[2] = { stream_tile<T>(a.part[0].m, tile),
                                        stream_tile<T>(a.part[1].m, tile) };

    multiply<T, 2, N>(a, w, a.part[0].m.n_in, row0, room);

    for (uint32_t i = threadIdx.x; i < 16 * N * 8; i += STREAM_THREADS) {
        float gate = stream_sum<2, N>(room, i % 16, i / 16);
        float up = stream_sum<2, N>(room, 16 + i % 16, i / 16);

        put_out(a, a.part[0], row0 + i / 16, tile * 16 + i % 16,
                cuda_silu(gate) * up);
    }
}


/* Whether warpgroups do it, see wide.cu. */
static int
run_wide(struct cuda *c, const struct linear_args *a, const struct weight *w,
         const struct weight *up)
{
    struct heads h = { a->part[0].y, a->x, a->y_head, a->x_head, w,
                       a->n_rows };

    return cuda_wide_heads(c, &h, NULL, up, a->add) == 0;
}


/* Many rows: 128 outputs of 128 of them, see tile.cuh; or 64 of gate and of
 * up. */
template <enum dtype T>
static __global__ void __launch_bounds__(TILE_THREADS, 1)
linear_tile_kernel(const struct linear_args a, int is_gate_up)
{
    struct linear_part   p = part_of(a);
    struct stream_matrix m = p.m;
    uint32_t             row0 = blockIdx.y * TILE_ROWS;
    uint32_t             warp = threadIdx.x / HW_WARP % 4;
    uint32_t             block = blockIdx.x - p.block;
    uint32_t             tile = is_gate_up ? block * 4 + warp
                                           : block * 8 + warp * 2;
    struct tile          t;

    hw_depend();
    hw_release();
    m.w += a.w_head * blockIdx.z;
    t.w[0] = stream_tile<T>(m, tile);
    t.w[1] = is_gate_up ? stream_tile<T>(a.part[1].m, tile)
                        : stream_tile<T>(m, tile + 1);

    if (threadIdx.x < TILE_ROWS) {
        uint32_t r = row0 + threadIdx.x;

        tile_rows()[threadIdx.x] = r < a.n_rows
                                   ? a.x.data + a.x_head * blockIdx.z
                                     + a.x.stride * r : NULL;
    }

    __syncthreads();
    tile_product<T>(t, m.n_in);

#pragma unroll
    for (int i = 0; i < 8 * 4; i++) {
        uint32_t o = tile * CUDA_TILE + tile_out(i % 4);
        uint32_t r = row0 + tile_row(i / 4, i % 4);
        float    v = t.acc[0][i / 4][i % 4], w = t.acc[1][i / 4][i % 4];

        put_out(a, p, r, o, is_gate_up ? cuda_silu(v) * w : v);

        if (!is_gate_up) {
            put_out(a, p, r, o + CUDA_TILE, w);
        }
    }
}


/* FP32 weights, for routers and for --quant f32: a warp an output of a row. */
static __global__ void
linear_f32_kernel(const struct linear_args a)
{
    uint32_t     o = (blockIdx.x * blockDim.x + threadIdx.x) / HW_WARP;
    uint32_t     r = blockIdx.y;
    const struct linear_part *p = &a.part[0];
    uint32_t     stride = cuda_div_up(p->m.n_in, 4) * 4;
    const float *w = (const float *) (const void *)
                     (p->m.w + a.w_head * blockIdx.z) + (size_t) o * stride;
    const float *x = a.x.data + a.x_head * blockIdx.z + a.x.stride * r;
    float        sum = 0;

    hw_depend();
    hw_release();

    if (o >= p->m.n_out) {
        return;
    }

    for (uint32_t i = hw_lane(); i < p->m.n_in; i += HW_WARP) {
        sum += w[i] * x[i];
    }

    for (int mask = HW_WARP / 2; mask > 0; mask /= 2) {
        sum += hw_xor(sum, mask);
    }

    if (hw_lane() == 0) {
        float *y = p->y.data + a.y_head * blockIdx.z + p->y.stride * r + o;

        *y = a.add ? *y + sum : sum;
    }
}


/* The same for many rows: a warp 8 outputs of 8 of them, each added up in the
 * order that it has there. */
static __global__ void __launch_bounds__(CUDA_THREADS)
linear_f32_many_kernel(const struct linear_args a)
{
    const struct linear_part *p = &a.part[0];
    uint32_t o0 = (blockIdx.x * blockDim.x + threadIdx.x) / HW_WARP
                  * F32_OUTS;
    uint32_t r0 = blockIdx.y * F32_ROWS, n = p->m.n_in;
    uint32_t stride = cuda_div_up(n, 4) * 4;
    const float *w = (const float *) (const void *)
                     (p->m.w + a.w_head * blockIdx.z);
    const float *x = a.x.data + a.x_head * blockIdx.z;
    float        sum[F32_ROWS][F32_OUTS] = {};

    hw_depend();
    hw_release();

    for (uint32_t i = hw_lane(); o0 < p->m.n_out && i < n; i += HW_WARP) {
        float xs[F32_ROWS], ws[F32_OUTS];

#pragma unroll
        for (uint32_t k = 0; k < F32_ROWS; k++) {
            xs[k] = x[a.x.stride * min(r0 + k, a.n_rows - 1) + i];
            ws[k] = w[(size_t) stride * min(o0 + k, p->m.n_out - 1) + i];
        }

#pragma unroll
        for (uint32_t k = 0; k < F32_ROWS * F32_OUTS; k++) {
            sum[k / F32_OUTS][k % F32_OUTS] += ws[k % F32_OUTS]
                                               * xs[k / F32_OUTS];
        }
    }

#pragma unroll
    for (uint32_t k = 0; k < F32_ROWS * F32_OUTS; k++) {
        uint32_t r = r0 + k / F32_OUTS, o = o0 + k % F32_OUTS;
        float    v = sum[k / F32_OUTS][k % F32_OUTS];

        for (int mask = HW_WARP / 2; mask > 0; mask /= 2) {
            v += hw_xor(v, mask);
        }

        if (hw_lane() == 0 && r < a.n_rows && o < p->m.n_out) {
            float *y = p->y.data + a.y_head * blockIdx.z + p->y.stride * r
                       + o;

            *y = a.add ? *y + v : v;
        }
    }
}


static void
run_f32(struct cuda *c, const struct linear_args *a, const struct weight *w)
{
    uint32_t n_warps = CUDA_THREADS / HW_WARP;

    if (a->n_rows <= F32_ROWS) {
        cuda_launch(c, dim3(cuda_div_up(w->n_out, n_warps), a->n_rows, w->n),
                    CUDA_THREADS, 0, linear_f32_kernel, *a);

    } else {
        cuda_launch(c, dim3(cuda_div_up(w->n_out, n_warps * F32_OUTS),
                            cuda_div_up(a->n_rows, F32_ROWS), w->n),
                    CUDA_THREADS, 0, linear_f32_many_kernel, *a);
    }
}


/* Blocks of n_outs outputs, and which are whose. */
static uint32_t
place_parts(struct linear_args *a, uint32_t n_outs)
{
    uint32_t n_blocks = 0;

    for (uint32_t i = 0; i < a->n_parts; i++) {
        a->part[i].block = n_blocks;
        n_blocks += cuda_div_up(a->part[i].m.n_out, n_outs);
    }

    return n_blocks;
}


template <enum dtype T, int R, int N>
static void
launch_linear(struct cuda *c, struct linear_args *a, uint32_t n)
{
    cuda_launch(c, dim3(place_parts(a, R * 16),
                        cuda_div_up(a->n_rows, N * 8), n),
                STREAM_THREADS, stream_room_bytes(R, N), linear_kernel<T, R, N>,
                *a);
}


/* Whether blocks of two row tiles and half of more than 32 rows find a
 * multiprocessor each: with all rows to a block half would have nothing. */
static int
is_half_idle(const struct cuda *c, const struct linear_args *a, uint32_t n)
{
    uint32_t n_blocks = 0;

    for (uint32_t i = 0; i < a->n_parts; i++) {
        n_blocks += cuda_div_up(a->part[i].m.n_out, 2 * 16);
    }

    return 2 * n * n_blocks <= (uint32_t) c->n_sm;
}


/* Outputs of a block: of gate and up both. */
template <enum dtype T>
static void
launch_tiles(struct cuda *c, struct linear_args *a, uint32_t n, int is_gate_up)
{
    cuda_launch(c, dim3(place_parts(a, is_gate_up ? 64 : 128),
                        cuda_div_up(a->n_rows, TILE_ROWS), n),
                TILE_THREADS, TILE_ROOM, linear_tile_kernel<T>, *a,
                is_gate_up);
}


/* Whether the weights are streamed; sums of more rows have another order. */
static int
is_streamed(const struct cuda *c, uint32_t n_rows)
{
    return n_rows <= CUDA_STREAMED || c->deterministic;
}


/* n matrices, of rows that are few enough to stream the weights. */
template <enum dtype T>
static void
run_few(struct cuda *c, struct linear_args *a, uint32_t n)
{
    if (a->n_rows <= 8) {
        launch_linear<T, 1, 1>(c, a, n);

    } else if (a->n_rows <= 32 || is_half_idle(c, a, n)) {
        launch_linear<T, 2, 4>(c, a, n);

    } else {
        launch_linear<T, 2, 8>(c, a, n);
    }
}


template <enum dtype T>
static void
run_few_or_many(struct cuda *c, struct linear_args *a, const struct weight *w)
{
    if (is_streamed(c, a->n_rows)) {
        run_few<T>(c, a, w->n);

    } else if (a->n_parts > 1 || !run_wide(c, a, w, NULL)) {
        launch_tiles<T>(c, a, w->n, 0);
    }
}


static void
run(struct cuda *c, struct linear_args *a, const struct weight *w)
{
    if (a->n_rows == 0) {
        return;
    }

    if (w->dtype == DTYPE_F32) {
        run_f32(c, a, w);

    } else if (w->dtype == DTYPE_FP8) {
        run_few_or_many<DTYPE_FP8>(c, a, w);

    } else {
        run_few_or_many<DTYPE_BF16>(c, a, w);
    }
}


static struct linear_args
args_of(struct tensor y, struct tensor x, const struct weight *w,
        uint32_t n_rows)
{
    struct linear_args a;

    memset(&a, 0, sizeof(a));
    a.part[0].m = stream_matrix_of(w);
    a.part[0].y = y;
    a.n_parts = 1;
    a.x = x;
    a.n_rows = n_rows;

    return a;
}


static void
put_norm(struct linear_args *a, const struct cuda_norm *norm)
{
    if (norm != NULL) {
        a->norm = norm->w;
        a->eps = norm->eps;
        a->x = norm->x;
        a->h = norm->y;
    }
}


void
cuda_linear(struct backend *b, struct tensor y, struct tensor x,
            const struct weight *w, uint32_t n_rows, int add)
{
    struct linear_args a = args_of(y, x, w, n_rows);

    a.add = add;
    run(cuda_of(b), &a, w);
}


void
cuda_heads(struct backend *b, const struct heads *h)
{
    struct linear_args a = args_of(h->y, h->x, h->w, h->n_rows);

    a.y_head = h->y_head;
    a.x_head = h->x_head;
    a.w_head = cuda_weight_bytes(h->w);
    run(cuda_of(b), &a, h->w);
}


int
cuda_linears(struct cuda *c, const struct cuda_norm *norm,
             const struct cuda_linear_op *ops, uint32_t n)
{
    struct linear_args a = args_of(ops[0].y, ops[0].x, ops[0].w,
                                   ops[0].n_rows);

    for (uint32_t i = 0; i < n; i++) {
        a.part[i].m = stream_matrix_of(ops[i].w);
        a.part[i].y = ops[i].y;

        if (!is_streamed(c, a.n_rows)
            && cuda_wide_wants(c, ops[i].w, a.n_rows, 0))
        {
            return -1;
        }
    }

    a.n_parts = n;
    put_norm(&a, norm);
    run(c, &a, ops[0].w);

    return 0;
}


int
cuda_norm_wide(struct cuda *c, const struct cuda_norm *norm,
               const struct cuda_linear_op *op, const struct weight *up,
               struct tensor y)
{
    struct heads h = { y, op->x, 0, 0, op->w, op->n_rows };

    return is_streamed(c, op->n_rows)
           ? -1 : cuda_wide_heads(c, &h, norm, up, op->add);
}


template <enum dtype T, int N>
static void
launch_gate_up(struct cuda *c, const struct linear_args *a)
{
    cuda_launch(c, dim3(cuda_div_up(a->part[0].m.n_out, CUDA_TILE),
                        cuda_div_up(a->n_rows, N * 8)),
                STREAM_THREADS, stream_room_bytes(2, N), gate_up_kernel<T, N>,
                *a);
}


template <enum dtype T>
static void
run_gate_up(struct cuda *c, struct linear_args *a,
            const struct weight *gate, const struct weight *up)
{
    if (a->n_rows <= 8) {
        launch_gate_up<T, 1>(c, a);

    } else if (a->n_rows <= 32) {
        launch_gate_up<T, 4>(c, a);

    } else if (is_streamed(c, a->n_rows)) {
        launch_gate_up<T, 8>(c, a);

    } else if (!run_wide(c, a, gate, up)) {
        launch_tiles<T>(c, a, 1, 1);
    }
}


void
cuda_gate_up(struct cuda *c, const struct cuda_norm *norm,
             const struct cuda_linear_op *gate, const struct weight *up,
             struct tensor y)
{
    struct linear_args a = args_of(y, gate->x, gate->w, gate->n_rows);

    a.part[1].m = stream_matrix_of(up);

    put_norm(&a, norm);

    if (up->dtype == DTYPE_FP8) {
        run_gate_up<DTYPE_FP8>(c, &a, gate->w, up);
    } else {
        run_gate_up<DTYPE_BF16>(c, &a, gate->w, up);
    }
}
