/*
 * moe.cu - the routed experts, for few rows an expert: weights of the experts
 * that are chosen are read once and go through registers, as in linear.cu.
 *
 *   y(r) += sum over k, in order, of weights(r, k) *
 *           down(e) (silu(gate(e) x(r)) * (up(e) x(r))),  e = ids(r, k)
 *   bytes: 6 dim width an expert that is chosen; FLOPs: 6 dim width a slot;
 *   bound by memory up to about 200 rows an expert
 *
 *   sort      slots (row, k) by expert, rows in order: a warp an expert
 *   gate_up   a block a row tile of both and an expert; 8 N rows at once
 *   down      the same
 *   sum       a thread an output: its n_active terms in their order (D6)
 */
#include "common.cuh"
#include "stream.cuh"

/* In struct moe's tmp_order. */
struct moe_order {
    uint32_t *rows;             /* (n_slots) row of x, sorted by expert */
    uint32_t *place;            /* (n_slots) where (row, k) went */
    uint32_t *start;            /* (n_experts + 1) first slot of an expert */
};


/* Expert blockIdx.x finds its slots: 32 ids at a time. */
static __global__ void
sort_kernel(const uint32_t *ids, struct moe_order o, uint32_t n_slots,
            uint32_t n_active)
{
    uint32_t e = blockIdx.x, less = 0, mine = 0;
    uint32_t before = (1u << hw_lane()) - 1;

    hw_depend();
    hw_release();

    for (uint32_t s0 = 0; s0 < n_slots; s0 += HW_WARP) {
        uint32_t s = s0 + hw_lane();

        less += hw_popc(hw_ballot(s < n_slots && ids[s] < e));
    }

    for (uint32_t s0 = 0; s0 < n_slots; s0 += HW_WARP) {
        uint32_t s = s0 + hw_lane();
        int      is = s < n_slots && ids[s] == e;
        uint32_t found = hw_ballot(is);
        uint32_t at = less + mine + hw_popc(found & before);

        if (is) {
            o.rows[at] = s / n_active;
            o.place[s] = at;
        }

        mine += hw_popc(found);
    }

    if (hw_lane() == 0) {
        o.start[e] = less;

        if (e == gridDim.x - 1) {
            o.start[e + 1] = less + mine;
        }
    }
}


struct moe_args {
    struct stream_matrix m;
    const unsigned char *up;        /* the same shape as m */
    size_t               w_expert;  /* bytes */
    struct moe_order     o;
    struct tensor        y;         /* (n_slots, n_out) */
    struct tensor        x;         /* rows, or slots */
    enum dtype           dtype;
};


/* silu(gate x) * (up x) of 16 outputs of expert blockIdx.y. */
template <int N>
static __global__ void __launch_bounds__(STREAM_THREADS)
gate_up_kernel(const struct moe_args a)
{
    float               *room = (float *) (void *) hw_shared();
    float               *room_up = room + stream_room_bytes(1, N) / 4;
    struct stream_matrix gate = a.m, up = a.m;
    uint32_t             e = blockIdx.y;

    hw_depend();
    hw_release();

    uint32_t start = a.o.start[e], end = a.o.start[e + 1];

    gate.w += a.w_expert * e;
    up.w = a.up + a.w_expert * e;

    for (uint32_t s0 = start; s0 < end; s0 += N * 8) {
        const float *x[N];
        float        acc[1][N][4];

        for (int j = 0; j < N; j++) {
            uint32_t s = s0 + j * 8 + hw_lane() / 4;

            x[j] = s < end ? a.x.data + a.x.stride * a.o.rows[s] : NULL;
        }

        __syncthreads();
        stream_tiles<1, N>(acc, gate, blockIdx.x, x);
        stream_put_sums<1, N>(acc, room);
        stream_tiles<1, N>(acc, up, blockIdx.x, x);
        stream_put_sums<1, N>(acc, room_up);
        __syncthreads();

        for (uint32_t i = threadIdx.x; i < 16 * N * 8; i += STREAM_THREADS) {
            uint32_t o = blockIdx.x * 16 + i % 16, s = s0 + i / 16;

            if (o < gate.n_out && s < end) {
                a.y.data[a.y.stride * s + o] =
                    cuda_silu(stream_sum<1, N>(room, i % 16, i / 16))
                    * stream_sum<1, N>(room_up, i % 16, i / 16);
            }
        }
    }
}


template <int N>
static __global__ void __launch_bounds__(STREAM_THREADS)
down_kernel(const struct moe_args a)
{
    float               *room = (float *) (void *) hw_shared();
    struct stream_matrix m = a.m;
    uint32_t             e = blockIdx.y;

    hw_depend();
    hw_release();

    uint32_t start = a.o.start[e], end = a.o.start[e + 1];

    m.w += a.w_expert * e;

    for (uint32_t s0 = start; s0 < end; s0 += N * 8) {
        const float *x[N];
        float        acc[1][N][4];

        for (int j = 0; j < N; j++) {
            uint32_t s = s0 + j * 8 + hw_lane() / 4;

            x[j] = s < end ? a.x.data + a.x.stride * s : NULL;
        }

        __syncthreads();
        stream_tiles<1, N>(acc, m, blockIdx.x, x);
        stream_put_sums<1, N>(acc, room);
        __syncthreads();

        for (uint32_t i = threadIdx.x; i < 16 * N * 8; i += STREAM_THREADS) {
            uint32_t o = blockIdx.x * 16 + i % 16, s = s0 + i / 16;

            if (o < m.n_out && s < end) {
                a.y.data[a.y.stride * s + o] =
                    stream_sum<1, N>(room, i % 16, i / 16);
            }
        }
    }
}


/* FP32 weights, for --quant f32: a warp an output, for the slots of an expert
 * in turn; with `up`, the activation of both. */
static __global__ void
expert_f32_kernel(const struct moe_args a, int by_row)
{
    uint32_t o = (blockIdx.x * blockDim.x + threadIdx.x) / HW_WARP;
    uint32_t e = blockIdx.y, stride = cuda_div_up(a.m.n_in, 4) * 4;
    size_t   at = (size_t) o * stride;

    hw_depend();
    hw_release();

    if (o >= a.m.n_out) {
        return;
    }

    const float *w = (const float *) (const void *) (a.m.w + a.w_expert * e);
    const float *u = (const float *) (const void *) (a.up + a.w_expert * e);

    for (uint32_t s = a.o.start[e]; s < a.o.start[e + 1]; s++) {
        const float *x = a.x.data + a.x.stride * (by_row ? a.o.rows[s] : s);
        float        sum = 0, sum_up = 0;

        for (uint32_t i = hw_lane(); i < a.m.n_in; i += HW_WARP) {
            sum += w[at + i] * x[i];
            sum_up += by_row ? u[at + i] * x[i] : 0;
        }

        for (int mask = HW_WARP / 2; mask > 0; mask /= 2) {
            sum += hw_xor(sum, mask);
            sum_up += hw_xor(sum_up, mask);
        }

        if (hw_lane() == 0) {
            a.y.data[a.y.stride * s + o] = by_row ? cuda_silu(sum) * sum_up
                                                  : sum;
        }
    }
}


static __global__ void
sum_kernel(struct tensor y, struct tensor x, const float *weights,
           const uint32_t *place, uint32_t n_active, uint32_t n)
{
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x, r = blockIdx.y;

    hw_depend();
    hw_release();

    if (i >= n) {
        return;
    }

    float *to = y.data + y.stride * r + i, sum = *to;

    for (uint32_t k = 0; k < n_active; k++) {
        size_t s = (size_t) r * n_active + k;

        sum += weights[s] * x.data[x.stride * place[s] + i];
    }

    *to = sum;
}


static void
launch_experts(struct cuda *c, const struct moe_args *a, uint32_t n_experts,
               uint32_t n_slots, int is_down)
{
    dim3 n_blocks(cuda_div_up(a->m.n_out, CUDA_TILE), n_experts);

    if (a->dtype == DTYPE_F32) {
        n_blocks.x = cuda_div_up(a->m.n_out, CUDA_THREADS / HW_WARP);
        cuda_launch(c, n_blocks, CUDA_THREADS, 0, expert_f32_kernel, *a,
                    !is_down);

    } else if (n_slots <= 16 * n_experts) {
        cuda_launch(c, n_blocks, STREAM_THREADS,
                    stream_room_bytes(is_down ? 1 : 2, 1),
                    is_down ? down_kernel<1> : gate_up_kernel<1>, *a);

    } else {
        cuda_launch(c, n_blocks, STREAM_THREADS,
                    stream_room_bytes(is_down ? 1 : 2, 4),
                    is_down ? down_kernel<4> : gate_up_kernel<4>, *a);
    }
}


void
cuda_moe(struct backend *b, const struct moe *a)
{
    struct cuda     *c = cuda_of(b);
    uint32_t         n_slots = a->n_rows * a->n_active, n = a->down->n_out;
    struct moe_args  m;

    if (n_slots == 0) {
        return;
    }

    memset(&m, 0, sizeof(m));
    m.o.rows = a->tmp_order;
    m.o.place = a->tmp_order + n_slots;
    m.o.start = a->tmp_order + 2 * (size_t) n_slots;
    m.dtype = a->gate->dtype;
    cuda_launch(c, a->gate->n, HW_WARP, 0, sort_kernel, a->ids, m.o, n_slots,
                a->n_active);

    m.m = stream_matrix_of(a->gate);
    m.up = (const unsigned char *) a->up->data;
    m.w_expert = cuda_weight_bytes(a->gate);
    m.x = a->x;
    m.y = a->tmp_gate;
    launch_experts(c, &m, a->gate->n, n_slots, 0);

    m.m = stream_matrix_of(a->down);
    m.up = m.m.w;
    m.w_expert = cuda_weight_bytes(a->down);
    m.x = a->tmp_gate;
    m.y = a->tmp_down;
    launch_experts(c, &m, a->gate->n, n_slots, 1);

    cuda_launch(c, dim3(cuda_div_up(n, CUDA_THREADS), a->n_rows),
                CUDA_THREADS, 0, sum_kernel, a->y, a->tmp_down, a->weights,
                m.o.place, a->n_active, n);
}
