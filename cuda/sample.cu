/*
 * sample.cu - a row of logits to one token: engine/sampler.c's choice, bit by
 * bit, for rows without penalties and biases.
 *
 *   w(i) = 2^42 2^t(i), t(i) = (x(i) - max) scale;  0 below `least`
 *   kept: the first top_k by falling x, of equal ones the lower id; of these
 *   the shortest prefix with top_p of their weight; drawn: by the order of ids
 *   bytes: a row is read five times, from L2 (400 KiB with 100,000 ids): bound
 *   by what one SM reads, 4 us each time
 *
 * Weights are integers, whose sums have no order; 2^t is a polynomial of float
 * operations with one rounding each, as the host's.
 *
 *   a block a row:  the largest; weights, summed up in BUCKETS of a 32nd of a
 *   power of two; where top_k and top_p end, in one bucket alone, whose ids are
 *   ranked in shared memory, or halved where there are too many; the draw: a
 *   warp a 32nd of the ids
 *
 * Not measured on a GPU yet.
 */
#include "common.cuh"

#include <assert.h>
#include <float.h>
#include <string.h>
#include <time.h>

#define THREADS     1024
#define WARPS       (THREADS / HW_WARP)
#define BUCKETS     1408                /* more than 32 * 43 */
#define LANE_BUCKETS (BUCKETS / HW_WARP)
#define LISTED_MAX  1024                /* ids of a bucket in shared memory */
#define ID_BITS     20
#define ID_MAX      ((1u << ID_BITS) - 1)
#define KEY_BITS    (32 + ID_BITS)
#define ONE         4398046511104.0f    /* 2^42 */
#define ROOM_MIN    1024                /* rows */
/* A word is looked at for so long, then between sleeps.  One lasts about 70 us,
 * of which the kernel's slack of timers is 50, and costs perhaps 4 us of a core
 * with what is asked between: 6 % of it.  So a word is found 35 us late, on
 * average; the next step is under way then, and the one behind is not late if
 * a step takes longer than that.  Not measured on a GPU yet. */
#define SPIN_US     30
#define SLEEP_US    20

struct sample_args {
    struct tensor        x;
    const struct sample *rows;          /* of the host, */
    uint32_t             n_rows;
    uint32_t             n;
    uint32_t            *tokens;        /* as these: (n_rows), or one */
    uint32_t            *chosen;        /* (n_rows) the same */
};

/* A sum, in halves: additions of 32 bits are one instruction in shared
 * memory. */
struct sample_bucket {
    uint32_t n;                         /* of ids whose weight is not 0 */
    uint32_t lo;
    uint32_t hi;
};

struct sample_listed {
    uint64_t key;
    uint64_t w;
};

struct sample_room {
    struct sample_bucket buckets[BUCKETS];
    struct sample_listed listed[LISTED_MAX];
    uint64_t             sums[WARPS];
    uint64_t             lanes[HW_WARP];
    uint32_t             words[WARPS];
    uint32_t             n_listed;
    int                  bucket;        /* the one that top_k or top_p cuts */
    uint64_t             need;          /* of the measure: no more than all */
    uint64_t             before;        /* there is before it */
    uint64_t             weight;        /* and of weights */
    uint64_t             floor;         /* key of the last one that is kept */
    uint64_t             total;         /* weight of all that are kept */
};

/* A row, as all threads see it. */
struct sample_row {
    const float *x;
    uint32_t     n;
    float        max;
    float        scale;
    float        least;
};


static __device__ __forceinline__ struct sample_room *
room_of(void)
{
    return (struct sample_room *) (void *) hw_shared();
}


/* op of all threads' v, in all of them. */
template <class F>
static __device__ uint32_t
reduce(uint32_t v, F op)
{
    uint32_t *words = room_of()->words;

    for (int mask = HW_WARP / 2; mask > 0; mask /= 2) {
        v = op(v, hw_xor(v, mask));
    }

    __syncthreads();

    if (hw_lane() == 0) {
        words[threadIdx.x / HW_WARP] = v;
    }

    __syncthreads();
    v = words[0];

    for (int i = 1; i < WARPS; i++) {
        v = op(v, words[i]);
    }

    return v;
}


static __device__ uint64_t
warp_sum(uint64_t v)
{
    for (int mask = HW_WARP / 2; mask > 0; mask /= 2) {
        uint32_t lo = hw_xor((uint32_t) v, mask);
        uint32_t hi = hw_xor((uint32_t) (v >> 32), mask);

        v += (uint64_t) hi << 32 | lo;
    }

    return v;
}


static __device__ uint64_t
block_sum(uint64_t v)
{
    uint64_t *sums = room_of()->sums;

    v = warp_sum(v);
    __syncthreads();

    if (hw_lane() == 0) {
        sums[threadIdx.x / HW_WARP] = v;
    }

    __syncthreads();
    v = 0;

    for (int i = 0; i < WARPS; i++) {
        v += sums[i];
    }

    return v;
}


/* A float as a number that is the larger the larger it is; 0 has one. */
static __device__ __forceinline__ uint32_t
order_of(float x)
{
    uint32_t u = __float_as_uint(hw_add(x, 0.0f));

    return u >> 31 ? ~u : u | 0x80000000u;
}


/* The order of all selections: larger first, among equals the lower id. */
static __device__ __forceinline__ uint64_t
key_of(float x, uint32_t id)
{
    return (uint64_t) order_of(x) << ID_BITS | (ID_MAX - id);
}


/* 2^t for t in -43 .. 0; sampler.c's power(). */
static __device__ __forceinline__ float
power(float t)
{
    int   n = (int) hw_add(t, -0.5f);
    float f = hw_add(t, -(float) n);
    float y = hw_add(hw_mul(f, 1.5252734e-5f), 1.5403530e-4f);

    y = hw_add(hw_mul(y, f), 1.3333558e-3f);
    y = hw_add(hw_mul(y, f), 9.6181291e-3f);
    y = hw_add(hw_mul(y, f), 5.5504109e-2f);
    y = hw_add(hw_mul(y, f), 2.4022651e-1f);
    y = hw_add(hw_mul(y, f), 6.9314718e-1f);
    y = hw_add(hw_mul(y, f), 1.0f);

    return hw_mul(y, __uint_as_float((uint32_t) (n + 127) << 23));
}


static __device__ __forceinline__ float
depth(const struct sample_row &r, float x)
{
    float t = hw_mul(hw_add(x, -r.max), r.scale);

    return t > -43 ? t : -43;
}


static __device__ __forceinline__ uint64_t
weight(const struct sample_row &r, float t)
{
    return t >= r.least ? (uint64_t) (int64_t) hw_mul(power(t), ONE) : 0;
}


static __device__ __forceinline__ int
bucket_of(float t)
{
    return (int) hw_mul(t, -32.0f);
}


static __device__ __forceinline__ uint64_t
mass(const struct sample_bucket &b)
{
    return (uint64_t) b.hi << 32 | b.lo;
}


/* The largest of the row; false: not all are finite. */
static __device__ bool
largest(struct sample_row *r)
{
    float    best = -FLT_MAX;
    uint32_t bad = 0;

    for (uint32_t i = threadIdx.x; i < r->n; i += THREADS) {
        best = fmaxf(best, r->x[i]);
        bad |= !(fabsf(r->x[i]) <= FLT_MAX);
    }

    /* The order of floats is that of these numbers. */
    uint32_t most = reduce(order_of(best), [](uint32_t a, uint32_t b) {
        return max(a, b);
    });

    r->max = __uint_as_float(most >> 31 ? most & 0x7fffffff : ~most);

    return reduce(bad, [](uint32_t a, uint32_t b) { return a | b; }) == 0;
}


/* The lowest id of the largest. */
static __device__ uint32_t
greedy(const struct sample_row &r)
{
    uint32_t first = ID_MAX;

    for (uint32_t i = threadIdx.x; i < r.n; i += THREADS) {
        first = r.x[i] == r.max ? min(first, i) : first;
    }

    return reduce(first, [](uint32_t a, uint32_t b) { return min(a, b); });
}


static __device__ __forceinline__ void
bucket_add(struct sample_bucket *b, uint64_t w)
{
    uint32_t lo = (uint32_t) w, was = atomicAdd(&b->lo, lo);

    atomicAdd(&b->hi, (uint32_t) (w >> 32) + (was + lo < was));
    atomicAdd(&b->n, 1u);
}


/* The sum of all weights; fills the buckets, if they are wanted. */
static __device__ uint64_t
weigh(const struct sample_row &r, bool buckets)
{
    struct sample_room *room = room_of();
    uint64_t            sum = 0;

    for (uint32_t i = threadIdx.x; i < BUCKETS; i += THREADS) {
        memset(&room->buckets[i], 0, sizeof(room->buckets[i]));
    }

    __syncthreads();

    for (uint32_t i = threadIdx.x; i < r.n; i += THREADS) {
        float    t = depth(r, r.x[i]);
        uint64_t w = weight(r, t);

        sum += w;

        if (buckets && w != 0) {
            bucket_add(&room->buckets[bucket_of(t)], w);
        }
    }

    return block_sum(sum);
}


static __device__ __forceinline__ uint64_t
measure(const struct sample_bucket &b, bool by_weight)
{
    return by_weight ? mass(b) : b.n;
}


/* The bucket in which `need` of the measure is reached, which may be more than
 * there is, and what is before it: by the first warp, 44 buckets a lane and
 * then those of one lane. */
static __device__ void
find_bucket(uint64_t need, bool by_weight)
{
    struct sample_room *room = room_of();
    uint32_t            lane = 0, i = hw_lane() * LANE_BUCKETS;
    uint64_t            here = 0, heavy = 0, all = 0, done = 0, sum = 0;

    for (int k = 0; k < LANE_BUCKETS; k++) {
        here += measure(room->buckets[i + k], by_weight);
        heavy += mass(room->buckets[i + k]);
    }

    room->lanes[hw_lane()] = here;
    room->sums[hw_lane()] = heavy;
    __syncwarp();

    for (int k = 0; k < HW_WARP; k++) {
        all += room->lanes[k];
    }

    need = need < all ? need : all;

    for (; done + room->lanes[lane] < need; lane++) {
        done += room->lanes[lane];
        sum += room->sums[lane];
    }

    i = lane * LANE_BUCKETS;

    for (; done + measure(room->buckets[i], by_weight) < need; i++) {
        done += measure(room->buckets[i], by_weight);
        sum += mass(room->buckets[i]);
    }

    __syncwarp();

    if (hw_lane() == 0) {
        room->bucket = (int) i;
        room->need = need;
        room->before = done;
        room->weight = sum;
        room->n_listed = 0;
    }
}


/* The last one that is kept, among those of the bucket: each is ranked. */
static __device__ void
rank_listed(const struct sample_row &r, bool by_weight)
{
    struct sample_room *room = room_of();
    uint32_t            n = room->buckets[room->bucket].n;
    uint64_t            need = room->need - room->before;

    for (uint32_t i = threadIdx.x; i < r.n; i += THREADS) {
        float t = depth(r, r.x[i]);

        if (bucket_of(t) == room->bucket && weight(r, t) != 0) {
            struct sample_listed one = { key_of(r.x[i], i), weight(r, t) };

            room->listed[atomicAdd(&room->n_listed, 1u)] = one;
        }
    }

    __syncthreads();

    for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
        struct sample_listed one = room->listed[i];
        uint64_t             count = 0, heavy = 0;

        for (uint32_t k = 0; k < n; k++) {
            if (room->listed[k].key >= one.key) {
                count++;
                heavy += room->listed[k].w;
            }
        }

        uint64_t m = by_weight ? heavy : count;

        if (m >= need && m - (by_weight ? one.w : 1) < need) {
            room->floor = one.key;
            room->total = room->weight + heavy;
        }
    }
}


/* The same where there are too many, nearly all equal: the largest key that has
 * `need` of all at or above it, by halves. */
static __device__ void
halve_keys(const struct sample_row &r, bool by_weight)
{
    struct sample_room *room = room_of();
    uint64_t            floor = 0, need = room->need, total = 0;

    for (int bit = KEY_BITS; bit >= 0; bit--) {
        /* The last round is for the weight of what was found. */
        uint64_t least = bit > 0 ? floor | (uint64_t) 1 << (bit - 1) : floor;
        uint64_t count = 0, heavy = 0;

        for (uint32_t i = threadIdx.x; i < r.n; i += THREADS) {
            uint64_t w = weight(r, depth(r, r.x[i]));

            if (w != 0 && key_of(r.x[i], i) >= least) {
                count++;
                heavy += w;
            }
        }

        count = block_sum(count);
        total = block_sum(heavy);
        floor = (by_weight ? total : count) >= need ? least : floor;
    }

    __syncthreads();

    if (threadIdx.x == 0) {
        room->floor = floor;
        room->total = total;
    }
}


/* Keeps the shortest prefix, in order, that has `need` of the measure, or all;
 * returns its weight, room->floor is where it ends. */
static __device__ uint64_t
cut(const struct sample_row &r, uint64_t need, bool by_weight)
{
    struct sample_room *room = room_of();

    __syncthreads();

    if (threadIdx.x < HW_WARP) {
        find_bucket(need, by_weight);
    }

    __syncthreads();

    if (room->buckets[room->bucket].n <= LISTED_MAX) {
        rank_listed(r, by_weight);
    } else {
        halve_keys(r, by_weight);
    }

    __syncthreads();

    return room->total;
}


static __device__ __forceinline__ uint64_t
kept_weight(const struct sample_row &r, uint32_t i, uint32_t end,
            uint64_t floor)
{
    return i < end && key_of(r.x[i], i) >= floor
           ? weight(r, depth(r, r.x[i])) : 0;
}


/* The id on which `at` falls, the weights of all that are kept laid out in the
 * order of ids: first in which warp's ids, then in which 32, then which. */
static __device__ uint32_t
find(const struct sample_row &r, uint64_t at, uint64_t floor)
{
    struct sample_room *room = room_of();
    uint32_t part = cuda_div_up(cuda_div_up(r.n, WARPS), HW_WARP) * HW_WARP;
    uint32_t warp = threadIdx.x / HW_WARP, from = 0;
    uint64_t sum = 0;

    for (uint32_t i = 0; i < part; i += HW_WARP) {
        sum += kept_weight(r, part * warp + i + hw_lane(), r.n, floor);
    }

    sum = warp_sum(sum);
    __syncthreads();

    if (hw_lane() == 0) {
        room->sums[warp] = sum;
    }

    __syncthreads();

    for (; from + 1 < WARPS && at >= room->sums[from]; from++) {
        at -= room->sums[from];
    }

    if (warp != from) {
        return ID_MAX;
    }

    from *= part;

    for (;; from += HW_WARP) {
        uint64_t w = kept_weight(r, from + hw_lane(), r.n, floor);

        sum = warp_sum(w);

        if (at < sum || from + HW_WARP >= r.n) {
            room->lanes[hw_lane()] = w;
            break;
        }

        at -= sum;
    }

    __syncwarp();

    uint32_t lane = 0;

    for (; lane + 1 < HW_WARP && at >= room->lanes[lane]; lane++) {
        at -= room->lanes[lane];
    }

    return from + lane;
}


/* Philox4x32-10 (Salmon et al., SC'11): 64 bits that the place owns. */
static __device__ uint64_t
draw(const struct sample &s)
{
    uint32_t c0 = (uint32_t) s.i_token, c1 = (uint32_t) (s.i_token >> 32);
    uint32_t c2 = s.choice, c3 = 0;
    uint32_t k0 = (uint32_t) s.seed, k1 = (uint32_t) (s.seed >> 32);

    for (int i = 0; i < 10; i++) {
        uint64_t a = (uint64_t) c0 * 0xd2511f53u;
        uint64_t b = (uint64_t) c2 * 0xcd9e8d57u;

        c0 = (uint32_t) (b >> 32) ^ c1 ^ k0;
        c1 = (uint32_t) b;
        c2 = (uint32_t) (a >> 32) ^ c3 ^ k1;
        c3 = (uint32_t) a;

        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }

    return c0 | (uint64_t) c1 << 32;
}


/* For the step after this one, and then for the host. */
static __device__ __forceinline__ void
put(const struct sample_args &a, uint32_t id)
{
    a.chosen[blockIdx.x] = id;
    a.tokens[blockIdx.x] = id;
}


static __global__ void __launch_bounds__(THREADS)
sample_kernel(const struct sample_args a)
{
    hw_depend();
    hw_release();

    if (a.n_rows == 0) {
        if (threadIdx.x == 0) {
            a.tokens[0] = 0;
        }

        return;
    }

    struct sample     s = a.rows[blockIdx.x];
    struct sample_row r = { a.x.data + a.x.stride * blockIdx.x, a.n, 0,
                            s.scale, s.least };

    if (!largest(&r)) {
        if (threadIdx.x == 0) {
            put(a, BACKEND_NO_TOKEN);
        }

        return;
    }

    uint32_t id = ID_MAX;

    if (s.scale == 0) {
        id = greedy(r);
        id = threadIdx.x == 0 ? id : ID_MAX;

    } else {
        bool     all = s.top_k < 1 && s.top_p >= 1;
        uint64_t total = weigh(r, !all), floor = 0;

        if (s.top_k > 0) {
            total = cut(r, (uint32_t) s.top_k, false);
        }

        if (s.top_p < 1) {
            uint64_t need = (uint64_t) ((double) s.top_p * (double) total);

            total = cut(r, need > 0 ? need : 1, true);
        }

        floor = all ? 0 : room_of()->floor;
        id = find(r, hw_mulhi(draw(s), total), floor);
    }

    /* A warp has one that was drawn.  Only one thread stores it: the host goes
     * on when it sees it, and a second store could meet the word's next use. */
    if (id != ID_MAX && hw_lane() == 0) {
        put(a, id);
    }
}


/* Where the next steps find the tokens too. */
static void
reserve_chosen(struct cuda *c, uint32_t n_rows)
{
    if (n_rows > c->n_room) {
        CUDA_CHECK(cudaStreamSynchronize(c->stream));
        cuda_step_forget(c);
        CUDA_CHECK(cudaFree(c->chosen));
        c->n_room = n_rows < ROOM_MIN ? ROOM_MIN : 2 * n_rows;
        CUDA_CHECK(cudaMalloc((void **) &c->chosen,
                              c->n_room * sizeof(uint32_t)));
    }
}


/* A step without rows has one word too, which says that it is over. */
void
cuda_sample(struct backend *b, struct tensor x, const struct sample *rows,
            uint32_t n_rows, uint32_t n)
{
    struct cuda        *c = cuda_of(b);
    struct cuda_choice *to = &c->choices[c->n_sampled % 2];
    uint32_t            n_words = n_rows > 0 ? n_rows : 1;
    size_t              n_bytes = n_words * (sizeof(*rows) + sizeof(uint32_t));
    struct sample_args  a;

    assert(c->n_sampled - c->n_chosen < 2);
    reserve_chosen(c, n_words);

    if (n_bytes > to->n_bytes) {
        CUDA_CHECK(cudaFreeHost(to->memory));
        CUDA_CHECK(cudaMallocHost((void **) &to->memory, 2 * n_bytes));
        to->n_bytes = 2 * n_bytes;
    }

    to->tokens = (uint32_t *) (void *) (to->memory
                                        + n_words * sizeof(*rows));
    to->n_rows = n_rows;
    memset(&a, 0, sizeof(a));
    a.x = x;
    a.rows = (const struct sample *) (const void *) to->memory;
    a.n_rows = n_rows;
    a.n = n;
    a.tokens = to->tokens;
    a.chosen = c->chosen;

    if (n_rows != 0) {
        memcpy(to->memory, rows, n_rows * sizeof(*rows));
    }

    for (uint32_t r = 0; r < n_words; r++) {
        to->tokens[r] = CUDA_UNREAD;
    }

    cuda_launch(c, n_words, THREADS, sizeof(struct sample_room),
                sample_kernel, a);
    c->n_sampled++;
}


/* A device that fails writes nothing, and is asked now and then. */
void
cuda_await(struct cuda *c, const volatile uint32_t *word)
{
    const struct timespec nap = { 0, SLEEP_US * 1000 };
    uint64_t              until = clock_us() + SPIN_US;

    while (*word == CUDA_UNREAD) {
        if (clock_us() < until) {
            continue;
        }

        cudaError_t e = cudaStreamQuery(c->stream);

        if (e != cudaErrorNotReady) {
            CUDA_CHECK(e);
        }

        if (*word == CUDA_UNREAD) {
            nanosleep(&nap, NULL);
        }
    }
}


/* The words are written one by one. */
const uint32_t *
cuda_chosen(struct backend *b)
{
    struct cuda              *c = cuda_of(b);
    const struct cuda_choice *from = &c->choices[c->n_chosen % 2];
    const volatile uint32_t  *words = from->tokens;
    uint32_t                  n = from->n_rows > 0 ? from->n_rows : 1;

    assert(c->n_chosen != c->n_sampled);
    c->n_chosen++;

    for (uint32_t r = 0; r < n; r++) {
        cuda_await(c, &words[r]);
    }

    return from->tokens;
}


void
cuda_sample_close(struct cuda *c)
{
    CUDA_CHECK(cudaDeviceSynchronize());
    CUDA_CHECK(cudaFree(c->chosen));
    CUDA_CHECK(cudaFreeHost(c->choices[0].memory));
    CUDA_CHECK(cudaFreeHost(c->choices[1].memory));
}
