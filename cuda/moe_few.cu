/*
 * moe_few.cu - the routed experts, and the one that all rows go to, for at most
 * CUDA_FEW rows: each slot (row, k) by itself, no sorting; a weight that two
 * rows want is fetched again, from L2.  Formula and bounds as in moe.cu.
 *
 *   gate_up   the shared expert's row tiles first, whose weights are asked for
 *             while rows are routed; then a block a row tile of both and a slot
 *   down      a block a row tile: all rows' experts as one long product, of
 *             which row r has column r of mma's D
 *
 * Not measured on a GPU yet.
 */
#include "common.cuh"
#include "stream.cuh"

struct few_args {
    struct stream_matrix gate, up, down;    /* of expert 0 */
    size_t               w_gate, w_down;    /* bytes of an expert */
    struct stream_matrix s_gate, s_up, s_down;  /* shared; n_out 0: none */
    struct tensor        y;
    struct tensor        x;
    struct tensor        tmp;       /* (n_slots, width), times weights */
    struct tensor        s_tmp;     /* (n_rows, shared width) */
    const uint32_t      *ids;
    const float         *weights;
    uint32_t             n_rows;
    uint32_t             n_active;
};


/* 16 columns of s_tmp of all rows, or of tmp of a slot. */
template <enum dtype T>
static __global__ void __launch_bounds__(STREAM_THREADS, 2)
few_gate_up_kernel(const struct few_args a)
{
    float   *room = (float *) (void *) hw_shared();
    uint32_t n_tiles = cuda_div_up(a.gate.n_out, CUDA_TILE);
    uint32_t n_shared = cuda_div_up(a.s_gate.n_out, CUDA_TILE);
    uint32_t tile = blockIdx.x, slot = 0, col = hw_lane() / 4;
    bool     is_shared = tile < n_shared;
    struct stream_matrix gate = a.s_gate, up = a.s_up;
    float    acc[2][1][4];

    if (!is_shared) {
        slot = (blockIdx.x - n_shared) / n_tiles;
        tile = (blockIdx.x - n_shared) % n_tiles;
        hw_depend();
        gate = a.gate;
        up = a.up;
        gate.w += a.w_gate * a.ids[slot];
        up.w += a.w_gate * a.ids[slot];
    }

    uint32_t           row = is_shared ? col : slot / a.n_active;
    bool               is_there = is_shared ? col < a.n_rows : col == 0;
    const unsigned char *const w[2] = { stream_tile<T>(gate, tile),
                                        stream_tile<T>(up, tile) };
    const float *const x[1] = {
        is_there ? a.x.data + a.x.stride * row : NULL
    };

    stream_tiles<T, 2, 1>(acc, w, gate.n_in, x);
    stream_put_sums<2, 1>(acc, room);
    __syncthreads();

    uint32_t i = threadIdx.x % 16, r = threadIdx.x / 16, o = tile * 16 + i;

    if (o < gate.n_out && r < (is_shared ? a.n_rows : 1)) {
        float v = cuda_silu(stream_sum<2, 1>(room, i, r))
                  * stream_sum<2, 1>(room, 16 + i, r);

        if (is_shared) {
            a.s_tmp.data[a.s_tmp.stride * r + o] = v;

        } else {
            a.tmp.data[a.tmp.stride * slot + o] = v * a.weights[slot];
        }
    }
}


/* Warps of a block of down: there are fewer blocks than multiprocessors, and
 * each has to have enough of its weights under way. */
#define FEW_WARPS       16
#define FEW_THREADS     (FEW_WARPS * HW_WARP)

/* A row tile of an expert, for a row. */
struct few_part {
    const unsigned char *w;         /* its first piece; NULL: no more parts */
    size_t               x;         /* where in tmp, or in s_tmp */
    uint32_t             n_k;       /* pieces */
    uint32_t             row;
    bool                 is_shared;
};

/* A piece, of those of all parts one after the other. */
struct few_piece {
    const struct few_part *next;
    struct few_part        part;
    uint32_t               k;
};


/* Part i: of row i / n its active experts, and then the shared one; row tile
 * blockIdx.x.  The kernel before this one has waited for the one that chose the
 * experts, so ids are there before this one waits; L1 may not know. */
template <enum dtype T>
static __device__ __forceinline__ struct few_part
few_part_of(const struct few_args &a, uint32_t i, uint32_t n)
{
    struct few_part p;
    uint32_t        slot = i / n * a.n_active + i % n;
    struct stream_matrix m = a.down;

    p.row = i / n;
    p.is_shared = i % n == a.n_active;

    if (p.is_shared) {
        m = a.s_down;
    } else {
        m.w += a.w_down * hw_load_fresh(&a.ids[slot]);
    }

    p.w = stream_tile<T>(m, blockIdx.x) - hw_lane() * 16;
    p.x = p.is_shared ? a.s_tmp.stride * p.row : a.tmp.stride * slot;
    p.n_k = cuda_div_up(m.n_in, stream_cols<T>());

    return p;
}


/* `n` pieces further. */
static __device__ __forceinline__ void
few_step(struct few_piece *at, uint32_t n)
{
    at->k += n;

    while (at->part.w != NULL && at->k >= at->part.n_k) {
        at->k -= at->part.n_k;
        at->part = *at->next++;
    }
}


/* A group of a warp's pieces, from `at` on. */
template <enum dtype T>
static __device__ __forceinline__ void
few_load(struct stream_piece<T> (&w)[stream_group<T, 1>()],
         struct few_piece *at)
{
#pragma unroll
    for (int u = 0; u < stream_group<T, 1>(); u++) {
        if (at->part.w != NULL) {
            w[u] = stream_get<T>(at->part.w + hw_lane() * 16, at->k);
        } else {
            memset(&w[u], 0, sizeof(w[u]));
        }

        few_step(at, FEW_WARPS);
    }
}


/* acc += the same group times x, in the column of its row. */
template <enum dtype T, bool PLAIN>
static __device__ __forceinline__ void
few_multiply(float (&acc)[1][1][4],
             const struct stream_piece<T> (&w)[stream_group<T, 1>()],
             struct few_piece *at, const struct few_args &a)
{
    const int M = stream_parts<T>(), U = 4 / M;

#pragma unroll
    for (int u0 = 0; u0 < stream_group<T, 1>(); u0 += U) {
        float4 v[U][1][M];

#pragma unroll
        for (int u = 0; u < U; u++) {
            bool         is_mine = at->part.w != NULL
                                   && at->part.row == hw_lane() / 4;
            const float *x = at->part.is_shared ? a.s_tmp.data : a.tmp.data;

            stream_fours<PLAIN, 1, M>(v[u], is_mine ? x + at->part.x : NULL,
                                      at->part.is_shared ? a.s_down.n_in
                                                         : a.down.n_in,
                                      at->k * stream_cols<T>(), 0);
            few_step(at, FEW_WARPS);
        }

#pragma unroll
        for (int u = 0; u < U; u++) {
            uint2 b[M];

#pragma unroll
            for (int m = 0; m < M; m++) {
                b[m] = stream_pack(v[u][0][m]);
            }

            stream_mma<T>(acc[0][0], w[u0 + u], b);
        }
    }
}


/* y += 16 outputs of all rows. */
template <enum dtype T>
static __global__ void __launch_bounds__(FEW_THREADS, 1)
few_down_kernel(const struct few_args a)
{
    float   *room = (float *) (void *) hw_shared();
    struct few_part *parts = (struct few_part *) (void *)
                             (room + stream_room_bytes(1, 1, FEW_WARPS)
                                     / sizeof(float));
    uint32_t n_row = a.n_active + (a.s_down.n_out != 0);
    uint32_t n = n_row * a.n_rows;
    bool     is_plain = stream_is_plain(a.tmp.data, a.down.n_in)
                        && stream_is_plain(a.s_tmp.data, a.s_down.n_in)
                        && a.tmp.stride % 4 == 0 && a.s_tmp.stride % 4 == 0;
    float    acc[1][1][4] = {};
    struct stream_piece<T> w[2][stream_group<T, 1>()];

    for (uint32_t i = threadIdx.x; i <= n; i += FEW_THREADS) {
        parts[i] = i < n ? few_part_of<T>(a, i, n_row) : few_part();
    }

    __syncthreads();

    struct few_piece asked = { parts + 1, parts[0], 0 };

    few_step(&asked, threadIdx.x / HW_WARP);

    struct few_piece at = asked;

    few_load<T>(w[0], &asked);
    few_load<T>(w[1], &asked);
    hw_depend();
    hw_release();

    while (at.part.w != NULL) {
#pragma unroll
        for (int s = 0; s < 2; s++) {
            if (is_plain) {
                few_multiply<T, true>(acc, w[s], &at, a);
            } else {
                few_multiply<T, false>(acc, w[s], &at, a);
            }

            few_load<T>(w[s], &asked);
        }
    }

    stream_put_sums<1, 1>(acc, room);
    __syncthreads();

    uint32_t o = blockIdx.x * 16 + threadIdx.x % 16, r = threadIdx.x / 16;

    if (o < a.down.n_out && r < a.n_rows) {
        a.y.data[a.y.stride * r + o] +=
            stream_sum<1, 1, FEW_WARPS>(room, threadIdx.x % 16, r);
    }
}


void
cuda_moe_few(struct cuda *c, const struct moe *m,
             const struct cuda_shared *shared)
{
    struct few_args a;
    uint32_t        n_blocks;

    memset(&a, 0, sizeof(a));
    a.gate = stream_matrix_of(m->gate);
    a.up = stream_matrix_of(m->up);
    a.down = stream_matrix_of(m->down);
    a.w_gate = cuda_weight_bytes(m->gate);
    a.w_down = cuda_weight_bytes(m->down);
    a.y = m->y;
    a.x = m->x;
    a.tmp = m->tmp_gate;
    a.ids = m->ids;
    a.weights = m->weights;
    a.n_rows = m->n_rows;
    a.n_active = m->n_active;
    n_blocks = m->n_rows * m->n_active
               * cuda_div_up(m->gate->n_out, CUDA_TILE);

    if (shared != NULL) {
        a.s_gate = stream_matrix_of(shared->gate);
        a.s_up = stream_matrix_of(shared->up);
        a.s_down = stream_matrix_of(shared->down);
        a.s_tmp = shared->tmp;
        n_blocks += cuda_div_up(shared->gate->n_out, CUDA_TILE);
    }

    int is_fp8 = m->gate->dtype == DTYPE_FP8;

    cuda_launch(c, n_blocks, STREAM_THREADS, stream_room_bytes(2, 1),
                is_fp8 ? few_gate_up_kernel<DTYPE_FP8>
                       : few_gate_up_kernel<DTYPE_BF16>, a);
    cuda_launch(c, cuda_div_up(m->down->n_out, CUDA_TILE), FEW_THREADS,
                stream_room_bytes(1, 1, FEW_WARPS)
                + (m->n_rows * (m->n_active + 1) + 1)
                  * sizeof(struct few_part),
                is_fp8 ? few_down_kernel<DTYPE_FP8>
                       : few_down_kernel<DTYPE_BF16>, a);
}
