/*
 * moe_few.cu - the routed experts, and the one that all rows go to, for at most
 * CUDA_FEW rows: each slot (row, k) by itself, no sorting; a weight that two
 * rows want is fetched again, from L2.  Formula and bounds as in moe.cu.
 *
 *   gate_up   a block a row tile of both and a slot
 *   down      a block a row tile and a row: its experts as one long product
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


/* 16 columns of tmp of a slot, or of s_tmp of all rows. */
template <enum dtype T>
static __global__ void __launch_bounds__(STREAM_THREADS)
few_gate_up_kernel(const struct few_args a)
{
    float   *room = (float *) (void *) hw_shared();
    uint32_t n_tiles = cuda_div_up(a.gate.n_out, CUDA_TILE);
    uint32_t n_slots = a.n_rows * a.n_active, slot = blockIdx.x / n_tiles;
    uint32_t tile = blockIdx.x % n_tiles, col = hw_lane() / 4;
    bool     is_shared = slot >= n_slots;
    struct stream_matrix gate = a.gate, up = a.up;
    float    acc[2][1][4];

    if (is_shared) {
        gate = a.s_gate;
        up = a.s_up;
        tile = blockIdx.x - n_slots * n_tiles;

    } else {
        hw_depend();
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


/* Piece `i` of row `row`, of all its experts' and then the shared one's, which
 * lie one after the other: a row tile, and which piece of it with which x. */
template <enum dtype T>
static __device__ __forceinline__ void
few_find(const struct few_args &a, const uint32_t *ids, uint32_t row,
         uint32_t i, const unsigned char **w, const float **x, uint32_t *k)
{
    uint32_t n_k = cuda_div_up(a.down.n_in, stream_cols<T>());
    struct stream_matrix m = a.down;

    if (i < n_k * a.n_active) {
        *k = i % n_k;
        m.w += a.w_down * ids[i / n_k];
        *x = a.tmp.data + a.tmp.stride * (row * a.n_active + i / n_k);

    } else {
        m = a.s_down;
        *k = i - n_k * a.n_active;
        *x = a.s_tmp.data + a.s_tmp.stride * row;
    }

    *w = stream_tile<T>(m, blockIdx.x);
}


#define FEW_GROUP   8           /* pieces that a lane asks for at once */

/* y += 16 outputs of row blockIdx.y: one product as long as all experts'
 * together. */
template <enum dtype T>
static __global__ void __launch_bounds__(STREAM_THREADS)
few_down_kernel(const struct few_args a)
{
    float    *room = (float *) (void *) hw_shared();
    uint32_t *ids = (uint32_t *) (void *) room;
    uint32_t  row = blockIdx.y, warp = threadIdx.x / HW_WARP;
    uint32_t  n_routed = cuda_div_up(a.down.n_in, stream_cols<T>())
                         * a.n_active;
    uint32_t  n_k = n_routed + (a.s_down.n_out != 0
                    ? cuda_div_up(a.s_down.n_in, stream_cols<T>()) : 0);
    float     acc[1][1][4] = {};

    hw_depend();
    hw_release();

    for (uint32_t i = threadIdx.x; i < a.n_active; i += STREAM_THREADS) {
        ids[i] = a.ids[row * a.n_active + i];
    }

    __syncthreads();

    for (uint32_t i0 = warp; i0 < n_k; i0 += STREAM_WARPS * FEW_GROUP) {
        struct stream_piece<T> w[FEW_GROUP];
        const float           *x[FEW_GROUP];
        uint32_t               k[FEW_GROUP];

#pragma unroll
        for (int u = 0; u < FEW_GROUP; u++) {
            uint32_t             i = i0 + u * STREAM_WARPS;
            const unsigned char *from;

            memset(&w[u], 0, sizeof(w[u]));
            x[u] = NULL;
            k[u] = 0;

            if (i < n_k) {
                few_find<T>(a, ids, row, i, &from, &x[u], &k[u]);
                w[u] = stream_get<T>(from, k[u]);
            }
        }

#pragma unroll
        for (int u = 0; u < FEW_GROUP; u++) {
            uint32_t i = i0 + u * STREAM_WARPS;
            uint2    b[2];

            stream_columns<T>(b, hw_lane() < 4 ? x[u] : NULL, NULL, 0, k[u],
                              i < n_routed ? a.down.n_in : a.s_down.n_in);
            stream_mma<T>(acc[0][0], w[u], b);
        }
    }

    __syncthreads();
    stream_put_sums<1, 1>(acc, room);
    __syncthreads();

    uint32_t o = blockIdx.x * 16 + threadIdx.x;

    if (threadIdx.x < 16 && o < a.down.n_out) {
        a.y.data[a.y.stride * row + o] += stream_sum<1, 1>(room, threadIdx.x,
                                                           0);
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
    cuda_launch(c, dim3(cuda_div_up(m->down->n_out, CUDA_TILE), m->n_rows),
                STREAM_THREADS, stream_room_bytes(1, 1),
                is_fp8 ? few_down_kernel<DTYPE_FP8>
                       : few_down_kernel<DTYPE_BF16>, a);
}
