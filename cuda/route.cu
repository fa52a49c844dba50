/*
 * route.cu - which experts a row goes to; see struct route in backend.h.
 *
 * A few hundred numbers a row: bound by latency alone.  A warp a row; lane l
 * has experts l, l + 32, .., in shared memory:
 *
 *   scores (n_experts) | what is compared, c (n_experts) | of groups (n_groups)
 */
#include "common.cuh"
#include "stream.cuh"

#include <assert.h>

#define EXPERTS_MAX     1024
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


/* The larger, of equal ones the first; a NaN is less than anything. */
static __device__ bool
is_better(float c, uint32_t i, float than, uint32_t than_i)
{
    if (i == NOBODY || than_i == NOBODY) {
        return i != NOBODY;
    }

    c = c == c ? c : -INFINITY;
    than = than == than ? than : -INFINITY;

    return c > than || (c == than && i < than_i);
}


/* The index of the largest of c (n) whose `taken` is 0, for the whole warp. */
static __device__ uint32_t
largest(const float *c, const float *taken, uint32_t n)
{
    uint32_t best = NOBODY;
    float    best_c = 0;

    for (uint32_t i = hw_lane(); i < n; i += HW_WARP) {
        if (taken[i] == 0 && is_better(c[i], i, best_c, best)) {
            best = i;
            best_c = c[i];
        }
    }

    for (int mask = HW_WARP / 2; mask > 0; mask /= 2) {
        float    other_c = hw_xor(best_c, mask);
        uint32_t other = hw_xor(best, mask);

        if (is_better(other_c, other, best_c, best)) {
            best = other;
            best_c = other_c;
        }
    }

    return best;
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


/* Row r with its logits x, by one warp. */
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


static size_t
room_bytes(const struct route *a)
{
    return (3 * (size_t) a->n_experts + 2 * (size_t) a->n_groups)
           * sizeof(float);
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
    uint32_t        *counters;      /* (n_rows) */
};


/*
 * Expert blockIdx.x's logit of row blockIdx.y: the sum of x norm w and that of
 * x^2 in one pass.  The block of the last expert to be done routes the row;
 * that of the first also stores the normed row.
 */
static __global__ void __launch_bounds__(CUDA_THREADS)
norm_route_kernel(const struct norm_route_args a)
{
    float       *room = (float *) (void *) hw_shared();
    uint32_t     e = blockIdx.x, r = blockIdx.y, n = a.norm.n;
    const float *x = a.norm.x.data + a.norm.x.stride * r;
    const float *w = a.w + a.stride * e;
    float        dot = 0, square = 0;

    hw_depend();
    hw_release();

    for (uint32_t i = threadIdx.x * 4; i < n; i += CUDA_THREADS * 4) {
        float4 v = stream_four(x, i, n), g = stream_four(a.norm.w, i, n);
        float4 m = stream_four(w, i, n);

        dot += v.x * g.x * m.x + v.y * g.y * m.y + v.z * g.z * m.z
               + v.w * g.w * m.w;
        square += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }

    dot = cuda_block_sum(dot, room);
    __syncthreads();
    square = cuda_block_sum(square, room);

    float scale = 1 / sqrtf(square / (float) n + a.norm.eps);

    for (uint32_t i = threadIdx.x; e == 0 && i < n; i += CUDA_THREADS) {
        a.norm.y.data[a.norm.y.stride * r + i] = x[i] * scale * a.norm.w[i];
    }

    __syncthreads();

    if (threadIdx.x >= HW_WARP) {
        return;
    }

    /* pairs with the atomicAdd() of the row's other blocks */
    if (hw_lane() == 0) {
        a.r.logits.data[a.r.logits.stride * r + e] = dot * scale;
        __threadfence();
        room[0] = atomicAdd(&a.counters[r], 1) == gridDim.x - 1;
        __threadfence();
    }

    __syncwarp();

    int is_last = room[0] != 0;

    __syncwarp();

    if (is_last) {
        float *logits = room + 3 * a.r.n_experts + 2 * a.r.n_groups;

        for (uint32_t i = hw_lane(); i < a.r.n_experts; i += HW_WARP) {
            logits[i] = hw_load_fresh(a.r.logits.data
                                      + a.r.logits.stride * r + i);
        }

        __syncwarp();
        route_row(a.r, logits, r, room);

        if (hw_lane() == 0) {
            a.counters[r] = 0;
        }
    }
}


void
cuda_route(struct backend *b, const struct route *a)
{
    assert(a->n_experts <= EXPERTS_MAX && a->n_active <= a->n_experts
           && a->n_experts % a->n_groups == 0);

    if (a->n_rows != 0) {
        cuda_launch(cuda_of(b), a->n_rows, HW_WARP, room_bytes(a),
                    route_kernel, *a);
    }
}


void
cuda_norm_route(struct cuda *c, const struct cuda_norm *norm,
                const struct cuda_linear_op *router, const struct route *r)
{
    struct norm_route_args a;

    memset(&a, 0, sizeof(a));
    a.r = *r;
    a.norm = *norm;
    a.w = (const float *) router->w->data;
    a.stride = cuda_div_up(router->w->n_in, 4) * 4;
    a.counters = c->counters;
    cuda_launch(c, dim3(r->n_experts, r->n_rows), CUDA_THREADS,
                room_bytes(r) + (r->n_experts + CUDA_THREADS / HW_WARP)
                                * sizeof(float),
                norm_route_kernel, a);
}
