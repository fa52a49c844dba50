/*
 * moe.cu - the routed experts.  For few rows an expert the weights of those
 * that are chosen are read once and go through registers, as in linear.cu; for
 * many, products are made in tiles, or by warpgroups (wide.cu).  For up to
 * CUDA_FEW rows, see moe_few.cu.
 *
 *   y(r) += sum over k, in order, of weights(r, k) *
 *           down(e) (silu(gate(e) x(r)) * (up(e) x(r))),  e = ids(r, k)
 *   bytes: 6 dim width an expert that is chosen; FLOPs: 6 dim width a slot;
 *   bound by memory up to about 200 rows an expert
 *
 *   gate_up   a block a row tile of both and an expert; 8 N slots at once
 *   down      a block two row tiles; the last block of those adds their outputs
 *             up, a thread four of a row: their n_active terms in order (D6)
 *
 * A block finds its expert's slots (row, k) among all of them.  Of more than
 * FOUND_MAX that would take longer than the products: then they are sorted by
 * expert first, rows in order, a block an expert, and added up last, in kernels
 * of their own.
 *
 * Not measured on a GPU yet.
 */
#include "common.cuh"
#include "stream.cuh"
#include "tile.cuh"

#define MANY            64      /* rows of an expert, on average */
#define SLOT_NONE       0xffffffffu
/* A warp of sort_kernel() to so many slots. */
#define SORT_SLOTS      256
#define SORT_WARPS_MAX  16
/* Slots that blocks find themselves: 8 to each of 256 rows. */
#define FOUND_MAX       2048
/* Slots of an expert, on average, from which on few experts have none, and
 * weights are asked for before it is known. */
#define EAGER           3
#define FOUND_BYTES     ((STREAM_WARPS + FOUND_MAX) * sizeof(uint32_t))

/* In struct moe's tmp_order. */
struct moe_order {
    uint32_t *slots;            /* (n_slots) sorted by expert */
    uint32_t *place;            /* (n_slots) where (row, k) went */
    uint32_t *start;            /* (n_experts + 1) first slot of an expert */
};


/* For a warp: how many of ids [from, to) are less than e, and how many e. */
static __device__ void
count_slots(const uint32_t *ids, uint32_t from, uint32_t to, uint32_t e,
            uint32_t *counts)
{
    uint32_t less = 0, mine = 0;

    for (uint32_t s0 = from; s0 < to; s0 += HW_WARP) {
        uint32_t s = s0 + hw_lane(), id = s < to ? ids[s] : SLOT_NONE;

        less += hw_popc(hw_ballot(id < e));
        mine += hw_popc(hw_ballot(id == e));
    }

    if (hw_lane() == 0) {
        counts[0] = less;
        counts[1] = mine;
    }
}


/* Expert blockIdx.x finds its slots: each warp counts in a part of them, and
 * then knows where those of its part go. */
static __global__ void
sort_kernel(const uint32_t *ids, struct moe_order o, uint32_t n_slots)
{
    uint32_t *counts = (uint32_t *) (void *) hw_shared();
    uint32_t  n_warps = blockDim.x / HW_WARP, warp = threadIdx.x / HW_WARP;
    uint32_t  part = cuda_div_up(cuda_div_up(n_slots, HW_WARP), n_warps)
                     * HW_WARP;
    uint32_t  from = min(part * warp, n_slots);
    uint32_t  to = min(from + part, n_slots);
    uint32_t  e = blockIdx.x, at = 0, mine = 0, start;

    hw_depend();
    hw_release();
    count_slots(ids, from, to, e, counts + 2 * warp);
    __syncthreads();

    for (uint32_t i = 0; i < n_warps; i++) {
        at += counts[2 * i] + (i < warp ? counts[2 * i + 1] : 0);
        mine += counts[2 * i + 1];
    }

    start = at;

    for (uint32_t s0 = from; s0 < to; s0 += HW_WARP) {
        uint32_t s = s0 + hw_lane();
        int      is = s < to && ids[s] == e;
        uint32_t found = hw_ballot(is);
        uint32_t before = (1u << hw_lane()) - 1;

        if (is) {
            uint32_t place = at + hw_popc(found & before);

            o.slots[place] = s;
            o.place[s] = place;
        }

        at += hw_popc(found);
    }

    if (threadIdx.x == 0) {
        o.start[e] = start;

        if (e == gridDim.x - 1) {
            o.start[e + 1] = start + mine;
        }
    }
}


struct moe_args {
    struct stream_matrix m;
    const unsigned char *up;        /* the same shape as m */
    size_t               w_expert;  /* bytes */
    int                  is_eager;
    const uint32_t      *ids;       /* (n_slots) where o.start is NULL */
    struct moe_order     o;
    struct tensor        y;         /* (n_slots, n_out) */
    struct tensor        x;         /* rows, or slots */
    uint32_t             n_slots;
    uint32_t             n_active;  /* slots that share a row of x */
    enum dtype           dtype;
    /* What y is added up to; NULL: not here. */
    uint32_t            *counters;  /* (blocks of outputs) */
    struct tensor        sum;
    const float         *weights;   /* (n_slots) */
    uint32_t             n_terms;   /* of a row */
    /* An expert that all rows go to: blockIdx.y less than n_shared, 0: none;
     * its part of sum is s_y. */
    struct stream_matrix s, s_up;
    struct tensor        s_x, s_y;
    uint32_t             n_shared;
};


/* Of an expert. */
struct moe_slots {
    const uint32_t *at;
    uint32_t        n;
};

/* Every warp finds those of a part of all, into shared memory. */
static __device__ struct moe_slots
find_slots(const struct moe_args &a, uint32_t e, uint32_t *room)
{
    if (a.o.start != NULL) {
        uint32_t start = a.o.start[e];

        return { a.o.slots + start, a.o.start[e + 1] - start };
    }

    uint32_t *list = room + STREAM_WARPS, warp = threadIdx.x / HW_WARP;
    uint32_t  part = cuda_div_up(a.n_slots, STREAM_THREADS) * HW_WARP;
    uint32_t  from = min(part * warp, a.n_slots);
    uint32_t  to = min(from + part, a.n_slots), n = 0, at = 0;

    for (uint32_t s0 = from; s0 < to; s0 += HW_WARP) {
        uint32_t s = s0 + hw_lane();

        n += hw_popc(hw_ballot(s < to && a.ids[s] == e));
    }

    if (hw_lane() == 0) {
        room[warp] = n;
    }

    __syncthreads();
    n = 0;

    for (uint32_t i = 0; i < STREAM_WARPS; i++) {
        at += i < warp ? room[i] : 0;
        n += room[i];
    }

    for (uint32_t s0 = from; s0 < to; s0 += HW_WARP) {
        uint32_t s = s0 + hw_lane();
        int      is = s < to && a.ids[s] == e;
        uint32_t found = hw_ballot(is);

        if (is) {
            list[at + hw_popc(found & ((1u << hw_lane()) - 1))] = s;
        }

        at += hw_popc(found);
    }

    __syncthreads();

    return { list, n };
}


/* Outputs of a block of down: of gate and up there are as many rows in it. */
#define DOWN_OUTS       (2 * CUDA_TILE)

/* Four outputs of row r, from o on: SUM_GROUP terms are asked for at once. */
#define SUM_GROUP       8

static __device__ __forceinline__ void
sum_four(const struct moe_args &a, uint32_t r, uint32_t o)
{
    float4      *to = (float4 *) (void *) (a.sum.data + a.sum.stride * r + o);
    float4       sum = *to, more = make_float4(0, 0, 0, 0);
    size_t       s0 = (size_t) r * a.n_terms;
    const float *y = a.y.data + a.y.stride * s0 + o;

    if (a.n_shared != 0) {
        more = hw_load_fresh((const float4 *) (const void *)
                             (a.s_y.data + a.s_y.stride * r + o));
    }

    for (uint32_t k0 = 0; k0 < a.n_terms; k0 += SUM_GROUP) {
        float4 v[SUM_GROUP];
        float  w[SUM_GROUP];

#pragma unroll
        for (uint32_t u = 0; u < SUM_GROUP; u++) {
            w[u] = 0;
            v[u] = make_float4(0, 0, 0, 0);

            if (k0 + u < a.n_terms) {
                w[u] = a.weights[s0 + k0 + u];
                v[u] = hw_load_fresh((const float4 *) (const void *)
                                     (y + a.y.stride * (k0 + u)));
            }
        }

#pragma unroll
        for (uint32_t u = 0; u < SUM_GROUP; u++) {
            sum = make_float4(sum.x + w[u] * v[u].x, sum.y + w[u] * v[u].y,
                              sum.z + w[u] * v[u].z, sum.w + w[u] * v[u].w);
        }
    }

    *to = make_float4(sum.x + more.x, sum.y + more.y, sum.z + more.z,
                      sum.w + more.w);
}


static __device__ __forceinline__ void
sum_one(const struct moe_args &a, uint32_t r, uint32_t o)
{
    float *to = a.sum.data + a.sum.stride * r + o, sum = *to;

    for (uint32_t k = 0; k < a.n_terms; k++) {
        size_t s = (size_t) r * a.n_terms + k;

        sum += a.weights[s] * hw_load_fresh(a.y.data + a.y.stride * s + o);
    }

    *to = a.n_shared == 0 ? sum
          : sum + hw_load_fresh(a.s_y.data + a.s_y.stride * r + o);
}


/* Whether every four elements of t's rows of n are one load. */
static __device__ __forceinline__ bool
is_plain(const struct tensor &t, uint32_t n)
{
    return t.stride % 4 == 0 && stream_is_plain(t.data, n);
}


/* Outputs of blocks blockIdx.x, added up by the last of them to be done. */
static __device__ void
sum_outs(const struct moe_args &a, uint32_t *room)
{
    uint32_t n_rows = a.n_slots / a.n_terms, n_out = a.m.n_out;
    uint32_t n = n_rows * (DOWN_OUTS / 4);

    if (!cuda_is_last(&a.counters[blockIdx.x], gridDim.y, room)) {
        return;
    }

    bool are_plain = is_plain(a.sum, n_out) && is_plain(a.y, n_out)
                     && (a.n_shared == 0 || is_plain(a.s_y, n_out));

    for (uint32_t i = threadIdx.x; i < n; i += STREAM_THREADS) {
        uint32_t r = i / (DOWN_OUTS / 4);
        uint32_t o = blockIdx.x * DOWN_OUTS + i % (DOWN_OUTS / 4) * 4;

        if (are_plain && o < n_out) {
            sum_four(a, r, o);
        }

        for (uint32_t c = o; !are_plain && c < min(o + 4, n_out); c++) {
            sum_one(a, r, c);
        }
    }
}


/* Slot i of an expert's n: at[i], or, where at is NULL, first + i. */
struct moe_rows {
    struct tensor   y;
    struct tensor   x;
    const uint32_t *at;
    uint32_t        first;
    uint32_t        n;
    uint32_t        n_active;
};

static __device__ __forceinline__ uint32_t
slot_of(const struct moe_rows &r, uint32_t i)
{
    return r.at != NULL ? r.at[i] : r.first + i;
}


/* Two row tiles: with UP 16 outputs, silu(m x) * (up x), of tile `at` of both;
 * without, 32, m x, of tiles 2 at and behind.  Of what rows_of() says when the
 * kernels before have ended. */
template <enum dtype T, bool UP, int N, class F>
static __device__ __forceinline__ void
multiply(const struct stream_matrix &m, const struct stream_matrix &up,
         uint32_t at, float *room, F rows_of)
{
    const uint32_t       OUTS = UP ? CUDA_TILE : DOWN_OUTS;
    const unsigned char *w[2];
    struct moe_rows      r = {};

    w[0] = stream_tile<T>(m, UP ? at : 2 * at);
    w[1] = UP ? stream_tile<T>(up, at) : stream_tile<T>(m, 2 * at + 1);

    for (uint32_t i0 = 0; i0 == 0 || i0 < r.n; i0 += N * 8) {
        struct stream_rows<N> x = {};
        float                 acc[2][N][4];

        x.n = m.n_in;
        stream_tiles<T, 2, N>(acc, w, x, [&] {
            if (i0 == 0) {
                r = rows_of();
            }

#pragma unroll
            for (int j = 0; j < N; j++) {
                uint32_t i = i0 + j * 8 + hw_lane() / 4;

                x.x[j] = i < r.n ? r.x.data + r.x.stride
                                   * (slot_of(r, i) / r.n_active) : NULL;
            }

            x.n = r.n != 0 ? x.n : 0;
        });
        __syncthreads();
        stream_put_sums<2, N>(acc, room);
        __syncthreads();

        for (uint32_t t = threadIdx.x; t < OUTS * N * 8; t += STREAM_THREADS) {
            uint32_t row = t % OUTS, col = t / OUTS;
            uint32_t o = at * OUTS + row, i = i0 + col;

            if (o < m.n_out && i < r.n) {
                float v = stream_sum<2, N>(room, row, col);

                r.y.data[r.y.stride * slot_of(r, i) + o] = !UP ? v
                    : cuda_silu(v) * stream_sum<2, N>(room, 16 + row, col);
            }
        }
    }
}


/* Column tiles of a block to the expert that all rows go to, in kernels of N:
 * of more there would be no registers for two blocks. */
static constexpr __device__ __host__ int
shared_tiles(int n)
{
    return n == 1 ? 2 : 4;
}


/* Rows to the shared expert: of gate and up, which are wider than an expert's,
 * blocks that follow one another take all rows of a tile. */
template <enum dtype T, bool UP, int N>
static __device__ __forceinline__ void
multiply_shared(const struct moe_args &a, float *room)
{
    const uint32_t ROWS = N * 8;
    uint32_t n_rows = a.n_slots / a.n_terms;
    uint32_t n = cuda_div_up(n_rows, ROWS);
    uint32_t i = blockIdx.y * gridDim.x + blockIdx.x;
    uint32_t at = UP ? i / n : blockIdx.x;
    uint32_t first = (UP ? i % n : blockIdx.y) * ROWS;

    struct moe_rows r = { a.s_y, a.s_x, NULL, first,
                          min(n_rows - first, ROWS), 1 };

    if (UP && at >= cuda_div_up(a.s.n_out, CUDA_TILE)) {
        hw_depend();
        hw_release();
        return;
    }

    multiply<T, UP, N>(a.s, a.s_up, at, room, [&] { return r; });
}


/* Blocks that a multiprocessor is to hold, for enough loads under way. */
template <int N>
static constexpr int
blocks_held(void)
{
    return N == 1 ? 2 : 1;
}


/* Outputs of an expert, for its slots; of gate and up, or of down. */
template <enum dtype T, bool UP, int N>
static __global__ void
__launch_bounds__(STREAM_THREADS, (blocks_held<N>()))
expert_kernel(const struct moe_args a)
{
    float               *room = (float *) (void *) hw_shared();
    uint32_t            *found = (uint32_t *) (void *)
                                 (room + stream_room_bytes(2, shared_tiles(N))
                                         / sizeof(float));
    struct stream_matrix m = a.m, up = a.m;

    if (blockIdx.y < a.n_shared) {
        multiply_shared<T, UP, shared_tiles(N)>(a, room);

    } else {
        uint32_t         e = blockIdx.y - a.n_shared;
        struct moe_slots slots = { NULL, 1 };

        m.w += a.w_expert * e;
        up.w = a.up + a.w_expert * e;

        if (!a.is_eager) {
            hw_depend();
            hw_release();
            slots = find_slots(a, e, found);
        }

        if (slots.n != 0) {
            multiply<T, UP, N>(m, up, blockIdx.x, room, [&] {
                if (a.is_eager) {
                    slots = find_slots(a, e, found);
                }

                return moe_rows { a.y, a.x, slots.at, 0, slots.n, a.n_active };
            });
        }
    }

    if (!UP && a.counters != NULL) {
        sum_outs(a, found);
    }
}


/* Prompts: 128 slots of an expert at a time, and 64 outputs of gate and up, or
 * 128 of down (see tile.cuh); blockIdx.z takes every gridDim.z'th 128. */
template <enum dtype T>
static __global__ void __launch_bounds__(TILE_THREADS, 1)
expert_tile_kernel(const struct moe_args a, int is_down)
{
    struct stream_matrix m = a.m, up = a.m;
    uint32_t             e = blockIdx.y, warp = threadIdx.x / HW_WARP % 4;
    uint32_t             tile = is_down ? blockIdx.x * 8 + warp * 2
                                        : blockIdx.x * 4 + warp;
    struct tile          t;

    hw_depend();
    hw_release();

    uint32_t end = a.o.start[e + 1];

    m.w += a.w_expert * e;
    up.w = a.up + a.w_expert * e;
    t.w[0] = stream_tile<T>(m, tile);
    t.w[1] = is_down ? stream_tile<T>(m, tile + 1)
                     : stream_tile<T>(up, tile);

    for (uint32_t s0 = a.o.start[e] + blockIdx.z * TILE_ROWS; s0 < end;
         s0 += gridDim.z * TILE_ROWS)
    {
        if (threadIdx.x < TILE_ROWS) {
            uint32_t s = s0 + threadIdx.x;

            tile_rows()[threadIdx.x] = s >= end ? NULL
                : a.x.data + a.x.stride * (a.o.slots[s] / a.n_active);
        }

        __syncthreads();
        tile_product<T>(t, m.n_in);

#pragma unroll
        for (int i = 0; i < 8 * 4; i++) {
            uint32_t o = tile * CUDA_TILE + tile_out(i % 4);
            uint32_t s = s0 + tile_row(i / 4, i % 4);
            float    v = t.acc[0][i / 4][i % 4], w = t.acc[1][i / 4][i % 4];

            if (s < end && o < m.n_out) {
                float *y = a.y.data + a.y.stride * a.o.slots[s] + o;

                *y = is_down ? v : cuda_silu(v) * w;

                if (is_down && o + CUDA_TILE < m.n_out) {
                    y[CUDA_TILE] = w;
                }
            }
        }
    }
}


/* FP32 weights, for --quant f32: a warp an output, for the slots of an expert
 * in turn; with `up`, the activation of both. */
static __global__ void
expert_f32_kernel(const struct moe_args a, int is_down)
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
        uint32_t     slot = a.o.slots[s];
        const float *x = a.x.data + a.x.stride * (slot / a.n_active);
        float        sum = 0, sum_up = 0;

        for (uint32_t i = hw_lane(); i < a.m.n_in; i += HW_WARP) {
            sum += w[at + i] * x[i];
            sum_up += is_down ? 0 : u[at + i] * x[i];
        }

        for (int mask = HW_WARP / 2; mask > 0; mask /= 2) {
            sum += hw_xor(sum, mask);
            sum_up += hw_xor(sum_up, mask);
        }

        if (hw_lane() == 0) {
            a.y.data[a.y.stride * slot + o] = is_down ? sum
                                              : cuda_silu(sum) * sum_up;
        }
    }
}


/* place: where slots are; NULL: in their order. */
static __global__ void
sum_kernel(struct tensor y, struct tensor x, const float *weights,
           const uint32_t *place, uint32_t n_active, uint32_t n)
{
    uint32_t i = blockIdx.y * blockDim.x + threadIdx.x, r = blockIdx.x;

    hw_depend();
    hw_release();

    if (i >= n) {
        return;
    }

    float *to = y.data + y.stride * r + i, sum = *to;

    for (uint32_t k = 0; k < n_active; k++) {
        size_t s = (size_t) r * n_active + k;

        sum += weights[s]
               * x.data[x.stride * (place != NULL ? place[s] : s) + i];
    }

    *to = sum;
}


/* Whether most experts have no more slots than a column tile, or two. */
static int
is_narrow(uint32_t n_slots, uint32_t n_experts)
{
    return n_slots <= 16 * n_experts;
}


template <enum dtype T, int N>
static void
launch_streamed(struct cuda *c, const struct moe_args *a, dim3 n_blocks,
                int is_down)
{
    cuda_launch(c, n_blocks, STREAM_THREADS,
                stream_room_bytes(2, shared_tiles(N)) + FOUND_BYTES,
                is_down ? expert_kernel<T, false, N>
                        : expert_kernel<T, true, N>,
                *a);
}


template <enum dtype T>
static void
launch_experts(struct cuda *c, const struct moe_args *a, uint32_t n_experts,
               int is_down)
{
    dim3 n_blocks(cuda_div_up(a->m.n_out, is_down ? DOWN_OUTS : CUDA_TILE),
                  a->n_shared + n_experts);

    if (is_narrow(a->n_slots, n_experts)) {
        launch_streamed<T, 1>(c, a, n_blocks, is_down);

    } else if (a->n_slots <= MANY * n_experts || c->deterministic) {
        launch_streamed<T, 4>(c, a, n_blocks, is_down);

    } else {
        n_blocks.x = cuda_div_up(a->m.n_out, is_down ? 128 : 64);
        n_blocks.z = cuda_div_up(a->n_slots, n_experts * TILE_ROWS) + 1;
        cuda_launch(c, n_blocks, TILE_THREADS, TILE_ROOM,
                    expert_tile_kernel<T>, *a, is_down);
    }
}


static void
run_experts(struct cuda *c, const struct moe_args *a, uint32_t n_experts,
            int is_down)
{
    if (a->dtype == DTYPE_F32) {
        dim3 n_blocks(cuda_div_up(a->m.n_out, CUDA_THREADS / HW_WARP),
                      n_experts);

        cuda_launch(c, n_blocks, CUDA_THREADS, 0, expert_f32_kernel, *a,
                    is_down);

    } else if (a->dtype == DTYPE_FP8) {
        launch_experts<DTYPE_FP8>(c, a, n_experts, is_down);

    } else {
        launch_experts<DTYPE_BF16>(c, a, n_experts, is_down);
    }
}


static void
run_both(struct cuda *c, const struct moe *a, struct moe_args *m,
         const struct cuda_shared *shared, uint32_t *counters)
{
    uint32_t n_tiles = shared_tiles(is_narrow(m->n_slots, a->gate->n) ? 1 : 4);
    uint32_t n = cuda_div_up(a->n_rows, n_tiles * 8);

    m->m = stream_matrix_of(a->gate);
    m->up = (const unsigned char *) a->up->data;
    m->w_expert = cuda_weight_bytes(a->gate);
    m->x = a->x;
    m->y = a->tmp_gate;
    m->n_active = a->n_active;

    if (shared != NULL) {
        m->s = stream_matrix_of(shared->gate);
        m->s_up = stream_matrix_of(shared->up);
        m->s_x = a->x;
        m->s_y = shared->tmp;
        m->n_shared = cuda_div_up(cuda_div_up(m->s.n_out, CUDA_TILE) * n,
                                  cuda_div_up(m->m.n_out, CUDA_TILE));
    }

    run_experts(c, m, a->gate->n, 0);

    m->m = stream_matrix_of(a->down);
    m->up = m->m.w;
    m->w_expert = cuda_weight_bytes(a->down);
    m->x = a->tmp_gate;
    m->y = a->tmp_down;
    m->n_active = 1;
    m->counters = counters;

    if (shared != NULL) {
        m->s = m->s_up = stream_matrix_of(shared->down);
        m->s_x = shared->tmp;
        m->s_y.data = c->scratch;
        m->s_y.stride = m->s.n_out;
        m->n_shared = n;
    }

    run_experts(c, m, a->gate->n, 1);
}


/* Whether blocks find their slots themselves. */
static int
is_found(const struct cuda *c, const struct moe *a)
{
    uint32_t n_slots = a->n_rows * a->n_active;

    return n_slots <= FOUND_MAX && a->gate->dtype != DTYPE_F32
           && (n_slots <= MANY * a->gate->n || c->deterministic)
           && cuda_div_up(a->down->n_out, DOWN_OUTS) <= CUDA_COUNTERS;
}


static void
sort(struct cuda *c, const struct moe *a, struct moe_order *o)
{
    uint32_t n_slots = a->n_rows * a->n_active;
    uint32_t n_warps = min(cuda_div_up(n_slots, SORT_SLOTS),
                           (uint32_t) SORT_WARPS_MAX);

    o->slots = a->tmp_order;
    o->place = a->tmp_order + n_slots;
    o->start = a->tmp_order + 2 * (size_t) n_slots;
    cuda_launch(c, a->gate->n, n_warps * HW_WARP,
                n_warps * 2 * sizeof(uint32_t), sort_kernel, a->ids, *o,
                n_slots);
}


static struct moe_args
args_of(const struct moe *a)
{
    struct moe_args m;

    memset(&m, 0, sizeof(m));
    m.ids = a->ids;
    m.n_slots = a->n_rows * a->n_active;
    m.dtype = a->gate->dtype;
    m.sum = a->y;
    m.weights = a->weights;
    m.n_terms = a->n_active;
    m.is_eager = m.n_slots >= EAGER * a->gate->n;

    return m;
}


void
cuda_moe(struct backend *b, const struct moe *a)
{
    struct cuda     *c = cuda_of(b);
    uint32_t         n = a->down->n_out;
    const uint32_t  *place = NULL;
    struct moe_args  m = args_of(a);

    if (m.n_slots == 0) {
        return;
    }

    if (is_found(c, a)) {
        run_both(c, a, &m, NULL, c->counters);
        return;
    }

    sort(c, a, &m.o);

    if (m.n_slots > MANY * a->gate->n
        && cuda_wide_moe(c, a, m.o.place, m.o.start) == 0)
    {
        place = m.o.place;

    } else {
        run_both(c, a, &m, NULL, NULL);
    }

    cuda_launch(c, dim3(a->n_rows, cuda_div_up(n, CUDA_THREADS)),
                CUDA_THREADS, 0, sum_kernel, a->y, a->tmp_down, a->weights,
                place, a->n_active, n);
}


int
cuda_moe_shared(struct cuda *c, const struct moe *a,
                const struct cuda_shared *shared)
{
    struct moe_args m = args_of(a);

    if (m.n_slots == 0 || !is_found(c, a)
        || (size_t) a->n_rows * a->down->n_out * sizeof(float) > CUDA_SCRATCH)
    {
        return -1;
    }

    run_both(c, a, &m, shared, c->counters);

    return 0;
}
