/*
 * route.cu - which experts a row goes to; see struct route in backend.h.
 *
 * A few hundred numbers a row: bound by latency alone.  A warp a row; lane l
 * has experts l, l + 32, .., in shared memory:
 *
 *   scores (n_experts) | what is compared, c (n_experts) | of groups (n_groups)
 *
 * With the norm and the router's product before it, one kernel:
 *
 *   h(r) = x(r) norm / sqrt(mean(x(r)^2) + eps),  logits(r, e) = h(r) w(e)
 *
 * whose blocks make the logits of R rows and E experts, with x, norm and w read
 * once, and the last of a row tile routes it.  Up to 8 rows R = E = 1, for many
 * blocks (512 for 8 rows of DeepSeek-V2-Lite); above R = E = 8: a block reads
 * 64 dim bytes for 64 dim products, so all of them rows n_experts dim bytes
 * from L2 (64 rows of V2-Lite: 8 MiB by 64 blocks), the weights once from
 * memory.  By arithmetic bound by latency up to about 32 rows, then by L2.  All
 * of a thread's first weights are asked for before the kernels ahead have
 * ended.
 *
 * Not measured on a GPU yet.
 */
#include "common.cuh"
#include "stream.cuh"

#include <assert.h>

#define EXPERTS_MAX     1024
#define WARPS           (CUDA_THREADS / HW_WARP)
#define NOBODY          0xffffffffu


static __device__ float
warp_max(float v)
{
    for (int mask = HW_WARP / 2; mask > 0; mask /= 2) {
        v = fmaxf(v, hw_xor(v, mask));
    }

    return v;
}


static __device__ float
warp_sum(float v)
{
    for (int mask = HW_WARP / 2; mask > 0; mask /= 2) {
        v += hw_xor(v, mask);
    }

    return v;
}


/* Larger for a larger c, and never 0; a NaN is as little as can be.  No c is
 * -0, which would be less than 0. */
static __device__ uint32_t
order(float c)
{
    uint32_t bits = __float_as_uint(c == c ? c : -INFINITY);

    return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}


/* The index of the largest of c (n) whose `taken` is 0, of equal ones the
 * first, for the whole warp. */
static __device__ uint32_t
largest(const float *c, const float *taken, uint32_t n)
{
    uint32_t best = NOBODY, best_order = 0;

    for (uint32_t i = hw_lane(); i < n; i += HW_WARP) {
        if (taken[i] == 0 && order(c[i]) > best_order) {
            best = i;
            best_order = order(c[i]);
        }
    }

    return hw_min(best_order == hw_max(best_order) ? best : NOBODY);
}


static __device__ void
scores(const struct route &a, const float *x, float *s)
{
    float max = -INFINITY, sum = 0;

    if (a.score == ROUTE_SIGMOID) {
        for (uint32_t i = hw_lane(); i < a.n_experts; i += HW_WARP) {
            s[i] = 1 / (1 + expf(-x[i]));
        }

        return;
    }

    for (uint32_t i = hw_lane(); i < a.n_experts; i += HW_WARP) {
        max = fmaxf(max, x[i]);
    }

    max = warp_max(max);

    for (uint32_t i = hw_lane(); i < a.n_experts; i += HW_WARP) {
        s[i] = expf(x[i] - max);
        sum += s[i];
    }

    sum = warp_sum(sum);

    for (uint32_t i = hw_lane(); i < a.n_experts; i += HW_WARP) {
        s[i] /= sum;
    }
}


static __device__ float
group_score(const struct route &a, const float *c, uint32_t n)
{
    float first = -INFINITY, second = -INFINITY;

    for (uint32_t i = 0; i < n; i++) {
        if (c[i] > first) {
            second = first;
            first = c[i];

        } else if (c[i] > second) {
            second = c[i];
        }
    }

    return a.method == ROUTE_GROUP_MAX ? first : first + second;
}


/* Takes the experts of losing groups out of the choice. */
static __device__ void
mask_groups(const struct route &a, float *c, float *groups, float *kept)
{
    uint32_t n = a.n_experts / a.n_groups;

    for (uint32_t i = hw_lane(); i < a.n_groups; i += HW_WARP) {
        groups[i] = group_score(a, c + (size_t) i * n, n);
        kept[i] = 0;
    }

    __syncwarp();

    for (uint32_t k = 0; k < a.n_groups_keep; k++) {
        uint32_t best = largest(groups, kept, a.n_groups);

        __syncwarp();

        if (hw_lane() == 0) {
            kept[best] = 1;
        }

        __syncwarp();
    }

    for (uint32_t i = hw_lane(); i < a.n_experts; i += HW_WARP) {
        if (kept[i / n] == 0) {
            c[i] = a.method == ROUTE_GROUP_MAX ? 0 : -INFINITY;
        }
    }

    __syncwarp();
}


/* Row r with its logits x, by one warp; x may be where room begins. */
static __device__ void
route_row(const struct route &a, const float *x, uint32_t r, float *room)
{
    float    *s = room;
    float    *c = s + a.n_experts, *taken = c + a.n_experts;
    float    *groups = taken + a.n_experts, *kept = groups + a.n_groups;
    size_t    at = (size_t) r * a.n_active;
    float     sum = 0;

    scores(a, x, s);

    for (uint32_t i = hw_lane(); i < a.n_experts; i += HW_WARP) {
        c[i] = a.bias != NULL ? s[i] + a.bias[i] : s[i];
        taken[i] = 0;
    }

    __syncwarp();

    if (a.method != ROUTE_GREEDY && a.n_groups > 1) {
        mask_groups(a, c, groups, kept);
    }

    for (uint32_t k = 0; k < a.n_active; k++) {
        uint32_t best = largest(c, taken, a.n_experts);

        __syncwarp();

        if (hw_lane() == 0) {
            taken[best] = 1;
            a.ids[at + k] = best;
        }

        sum += a.method == ROUTE_GROUP_MAX ? c[best] : s[best];
        __syncwarp();
    }

    if (hw_lane() == 0) {
        for (uint32_t k = 0; k < a.n_active; k++) {
            uint32_t id = a.ids[at + k];
            float    w = a.method == ROUTE_GROUP_MAX ? c[id] : s[id];

            a.weights[at + k] = (a.norm ? w / (sum + 1e-20f) : w) * a.scale;
        }
    }
}


/* Of a row. */
static inline __device__ __host__ uint32_t
room_floats(const struct route *a)
{
    return 3 * a->n_experts + 2 * a->n_groups;
}


static __global__ void
route_kernel(const struct route a)
{
    hw_depend();
    hw_release();
    route_row(a, a.logits.data + a.logits.stride * blockIdx.x, blockIdx.x,
              (float *) (void *) hw_shared());
}


struct norm_route_args {
    struct route     r;
    struct cuda_norm norm;
    const float     *w;             /* (n_experts, stride) */
    size_t           stride;
    int              whole;         /* rows lie so that fours can be loaded */
    uint32_t        *counters;      /* (row tiles) */
};


template <bool WHOLE>
static __device__ __forceinline__ float4
four(const float *x, uint32_t i, uint32_t n)
{
    return !WHOLE ? stream_four(x, i, n)
           : i < n ? *(const float4 *) (const void *) (x + i)
                   : make_float4(0, 0, 0, 0);
}


/* dots[r * E + e] = this thread's part of x(r) norm w(e), squares[r] that of
 * x(r)^2; rows and experts beyond the last are the last. */
template <int R, int E, bool WHOLE>
static __device__ __forceinline__ void
multiply(const struct norm_route_args &a, float (&dots)[R * E],
         float (&squares)[R])
{
    uint32_t     n = a.norm.n, step = CUDA_THREADS * 4;
    const float *x[R], *w[E];
    float4       m[E];

#pragma unroll
    for (int e = 0; e < E; e++) {
        w[e] = a.w + a.stride * min(blockIdx.x * E + e, a.r.n_experts - 1);
        m[e] = four<WHOLE>(w[e], threadIdx.x * 4, n);
    }

#pragma unroll
    for (int r = 0; r < R; r++) {
        x[r] = a.norm.x.data
               + a.norm.x.stride * min(blockIdx.y * R + r, a.r.n_rows - 1);
    }

    hw_depend();
    hw_release();
    memset(dots, 0, sizeof(dots));
    memset(squares, 0, sizeof(squares));

    for (uint32_t i = threadIdx.x * 4; i < n; i += step) {
        float4 g = four<WHOLE>(a.norm.w, i, n), next[E];

#pragma unroll
        for (int e = 0; e < E; e++) {
            next[e] = four<WHOLE>(w[e], i + step, n);
        }

#pragma unroll
        for (int r = 0; r < R; r++) {
            float4 v = four<WHOLE>(x[r], i, n);

            squares[r] += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
            v = make_float4(v.x * g.x, v.y * g.y, v.z * g.z, v.w * g.w);

#pragma unroll
            for (int e = 0; e < E; e++) {
                dots[r * E + e] += v.x * m[e].x + v.y * m[e].y + v.z * m[e].z
                                   + v.w * m[e].w;
            }
        }

#pragma unroll
        for (int e = 0; e < E; e++) {
            m[e] = next[e];
        }
    }
}


/* One step of put_sums(): a lane gives half of its N numbers for the other
 * half of who is MASK further; where there is one, both have the sum. */
template <int N, int MASK>
static __device__ __forceinline__ void
halve(float *v)
{
    bool is_upper = (hw_lane() & MASK) != 0;

    if (N == 1) {
        v[0] += hw_xor(v[0], MASK);
    }

#pragma unroll
    for (int k = 0; k < N / 2; k++) {
        float give = is_upper ? v[k] : v[k + N / 2];

        v[k] = (is_upper ? v[k + N / 2] : v[k]) + hw_xor(give, MASK);
    }
}


/* The sums over a warp's lanes of N numbers, a power of two, to `to`. */
template <int N>
static __device__ __forceinline__ void
put_sums(float (&v)[N], float *to)
{
    const int each = N < HW_WARP ? 1 : N / HW_WARP;

    halve<N, 16>(v);
    halve<(N + 1) / 2, 8>(v);
    halve<(N + 3) / 4, 4>(v);
    halve<(N + 7) / 8, 2>(v);
    halve<(N + 15) / 16, 1>(v);

#pragma unroll
    for (int k = 0; k < each; k++) {
        if (N >= HW_WARP || hw_lane() % (HW_WARP / N) == 0) {
            to[hw_lane() * N / HW_WARP + k] = v[k];
        }
    }
}


/* R rows' normed columns, of which each block of the row tile stores some. */
template <int R>
static __device__ __forceinline__ void
store_normed(const struct norm_route_args &a, const float *scales)
{
    const struct cuda_norm &m = a.norm;

    for (uint32_t k = 0; k < R && blockIdx.y * R + k < a.r.n_rows; k++) {
        uint32_t     r = blockIdx.y * R + k;
        const float *x = m.x.data + m.x.stride * r;

        for (uint32_t i = blockIdx.x * CUDA_THREADS + threadIdx.x; i < m.n;
             i += gridDim.x * CUDA_THREADS)
        {
            m.y.data[m.y.stride * r + i] = x[i] * scales[k] * m.w[i];
        }
    }
}


/*
 * The logits of E experts for R rows, tile blockIdx.x of experts and
 * blockIdx.y of rows.  The last block of a row tile to be done routes its rows,
 * a warp a row.  Shared memory:
 *
 *   is last | scales (R) | sums (WARPS, R E + R), then room to route R rows
 */
template <int R, int E>
static __global__ void __launch_bounds__(CUDA_THREADS, 1)
norm_route_kernel(const struct norm_route_args a)
{
    uint32_t *room = (uint32_t *) (void *) hw_shared();
    float    *scales = (float *) (void *) (room + 1), *sums = scales + R;
    uint32_t  warp = threadIdx.x / HW_WARP, t = threadIdx.x;
    float    *mine = sums + warp * (R * E + R), dots[R * E], squares[R];

    if (a.whole) {
        multiply<R, E, true>(a, dots, squares);
    } else {
        multiply<R, E, false>(a, dots, squares);
    }

    put_sums<R * E>(dots, mine);
    put_sums<R>(squares, mine + R * E);
    __syncthreads();

    if (t < R * E) {
        uint32_t r = blockIdx.y * R + t / E, e = blockIdx.x * E + t % E;
        float    dot = 0, square = 0;

        for (uint32_t i = 0; i < WARPS; i++) {
            dot += sums[i * (R * E + R) + t];
            square += sums[i * (R * E + R) + R * E + t / E];
        }

        float scale = 1 / sqrtf(square / (float) a.norm.n + a.norm.eps);

        if (t % E == 0) {
            scales[t / E] = scale;
        }

        if (r < a.r.n_rows && e < a.r.n_experts) {
            a.r.logits.data[a.r.logits.stride * r + e] = dot * scale;
        }
    }

    bool     is_last = cuda_is_last(&a.counters[blockIdx.y], gridDim.x, room);
    uint32_t r = blockIdx.y * R + warp;

    store_normed<R>(a, scales);

    if (is_last && warp < R && r < a.r.n_rows) {
        float *x = sums + warp * room_floats(&a.r);

        for (uint32_t i = hw_lane(); i < a.r.n_experts; i += HW_WARP) {
            x[i] = hw_load_fresh(a.r.logits.data + a.r.logits.stride * r + i);
        }

        route_row(a.r, x, r, x);
    }
}


void
cuda_route(struct backend *b, const struct route *a)
{
    assert(a->n_experts <= EXPERTS_MAX && a->n_active <= a->n_experts
           && a->n_experts % a->n_groups == 0);

    if (a->n_rows != 0) {
        cuda_launch(cuda_of(b), a->n_rows, HW_WARP,
                    room_floats(a) * sizeof(float), route_kernel, *a);
    }
}


template <int R, int E>
static void
launch_norm_route(struct cuda *c, const struct norm_route_args *a)
{
    dim3   n_blocks(cuda_div_up(a->r.n_experts, E),
                    cuda_div_up(a->r.n_rows, R));
    size_t n_sums = WARPS * (R * E + R), n_room = R * room_floats(&a->r);

    assert(n_blocks.y <= CUDA_COUNTERS);
    cuda_launch(c, n_blocks, CUDA_THREADS,
                (1 + R + max(n_sums, n_room)) * sizeof(float),
                norm_route_kernel<R, E>, *a);
}


static int
is_whole(const float *x, size_t stride)
{
    return (uintptr_t) x % 16 == 0 && stride % 4 == 0;
}


void
cuda_norm_route(struct cuda *c, const struct cuda_norm *norm,
                const struct cuda_linear_op *router, const struct route *r)
{
    struct norm_route_args a;

    assert(r->n_experts <= EXPERTS_MAX && r->n_active <= r->n_experts
           && r->n_experts % r->n_groups == 0);
    memset(&a, 0, sizeof(a));
    a.r = *r;
    a.norm = *norm;
    a.w = (const float *) router->w->data;
    a.stride = cuda_div_up(router->w->n_in, 4) * 4;
    a.whole = norm->n % 4 == 0 && is_whole(norm->w, 0)
              && is_whole(norm->x.data, norm->x.stride);
    a.counters = c->counters;

    if (r->n_rows <= CUDA_FEW) {
        launch_norm_route<1, 1>(c, &a);
    } else {
        launch_norm_route<8, 8>(c, &a);
    }
}
