/*
 * fast_attend.h - attention, for one kind of vector.
 *
 * Up to ATTEND_HEADS heads of one token go through the pages together, since
 * all of them read the same keys; as many sums as there are registers for.  Per
 * page: scores (heads, 64), then the running maximum, sum and output are
 * brought up to date (online softmax).  Pages lie at fixed positions, and an
 * element is summed up alike in any group of heads, so the order of all sums
 * follows from the token's position alone (D6).
 *
 * A vector of BF16 keys is widened by taking its even columns and its odd ones,
 * an instruction each.  Queries are put into that order first, and outputs stay
 * in it until they are done.
 */
#include <math.h>

#define ATTEND_AHEAD    8       /* keys from those in work to those called */
#define LINE            64      /* bytes */
#define ATTEND_PAIRED   1024    /* columns at most that are taken in pairs */

/* Of H heads, so many keys share one reading of the query, and so many vectors
 * of values one of p. */
#if VEC_REGS == 32
#define ATTEND_HEADS    10
#define ATTEND_SHARE(H) ((H) > 5 ? 2 : 4)
#else
#define ATTEND_HEADS    5
#define ATTEND_SHARE(H) 2
#endif

struct attend_state {
    uint32_t     n_paired;      /* columns, the first: a multiple of 2 VEC_N */
    vec          pairs[ATTEND_HEADS][ATTEND_PAIRED / VEC_N];  /* of q */
    const float *q[ATTEND_HEADS];
    float       *y[ATTEND_HEADS];
    float        max[ATTEND_HEADS];
    float        sum[ATTEND_HEADS];
    float        p[ATTEND_HEADS][BACKEND_PAGE_TOK];
};


INLINE vec
kv_load(const uint8_t *row, uint32_t i, enum dtype t)
{
    return t == DTYPE_F32
           ? vec_load((const float *) (const void *) row + i)
           : vec_load_bf16((const uint16_t *) (const void *) row + i);
}


/* 2 VEC_N columns of BF16. */
INLINE void
kv_load_pairs(const uint8_t *row, uint32_t i, vec *kv)
{
    vec_load_pairs(row + i * sizeof(uint16_t), &kv[0], &kv[1]);
}


/* Keys to come; a processor does not see through one key's end what the next
 * is wanted for. */
INLINE void
attend_ahead(const uint8_t *keys, size_t key_bytes, uint32_t i, enum dtype t,
             int J)
{
#pragma GCC unroll 4
    for (int k = 0; k < J; k++) {
        _mm_prefetch((const char *) keys + (size_t) k * key_bytes
                     + i * dtype_bytes(t), _MM_HINT_T0);
    }
}


/* sum(h, k) += q(h) . kv(k), of one vector each. */
INLINE void
attend_dot(vec (*sum)[4], const vec *q, const vec *kv, int H, int J)
{
#pragma GCC unroll 10
    for (int h = 0; h < H; h++) {
#pragma GCC unroll 4
        for (int k = 0; k < J; k++) {
            sum[h][k] = vec_fma(q[h], kv[k], sum[h][k]);
        }
    }
}


/* p(h, j) = q(h) . kv(j) for H heads and J keys. */
INLINE void
attend_dots(struct attend_state *s, const uint8_t *keys, size_t key_bytes,
            uint32_t row, uint32_t j, enum dtype t, int H, int J)
{
    vec      sum[ATTEND_HEADS][4], q[ATTEND_HEADS], kv[4], even[4], odd[4];
    uint32_t i = 0;

    keys += j * key_bytes;

#pragma GCC unroll 10
    for (int h = 0; h < H; h++) {
#pragma GCC unroll 4
        for (int k = 0; k < J; k++) {
            sum[h][k] = vec_set(0);
        }
    }

    for ( ; t == DTYPE_BF16 && i < s->n_paired; i += 2 * VEC_N) {
        if (J != 1) {
            attend_ahead(keys + ATTEND_AHEAD * key_bytes, key_bytes, i, t, J);
        }

#pragma GCC unroll 4
        for (int k = 0; k < J; k++) {
            kv_load_pairs(keys + (size_t) k * key_bytes, i, kv);
            even[k] = kv[0];
            odd[k] = kv[1];
        }

#pragma GCC unroll 10
        for (int h = 0; h < H; h++) {
            q[h] = s->pairs[h][i / VEC_N];
        }

        attend_dot(sum, q, even, H, J);

#pragma GCC unroll 10
        for (int h = 0; h < H; h++) {
            q[h] = s->pairs[h][i / VEC_N + 1];
        }

        attend_dot(sum, q, odd, H, J);
    }

    for ( ; i < row; i += VEC_N) {
#pragma GCC unroll 4
        for (int k = 0; k < J; k++) {
            kv[k] = kv_load(keys + (size_t) k * key_bytes, i, t);
        }

#pragma GCC unroll 10
        for (int h = 0; h < H; h++) {
            q[h] = vec_load(s->q[h] + i);
        }

        attend_dot(sum, q, kv, H, J);
    }

    /* In one order, however many there are. */
#pragma GCC unroll 10
    for (int h = 0; h < H; h++) {
        float all[4];

        vec_sum4(all, sum[h][0], sum[h][J > 1], sum[h][J > 2 ? 2 : 0],
                 sum[h][J - 1]);
        memcpy(&s->p[h][j], all, (size_t) J * sizeof(float));
    }
}


/* p = exp(scale p - max); the state is rescaled where the maximum grew.
 * Returns what the head's output so far is to be multiplied by. */
static float
attend_softmax(struct attend_state *s, int h, uint32_t n, float scale)
{
    float *p = s->p[h];
    vec    max = vec_set(s->max[h]), f = vec_set(scale);

    for (uint32_t j = n; j < BACKEND_PAGE_TOK; j++) {
        p[j] = -INFINITY;
    }

    for (uint32_t j = 0; j < BACKEND_PAGE_TOK; j += VEC_N) {
        vec v = vec_mul(vec_load(p + j), f);

        vec_store(p + j, v);
        max = vec_max(max, v);
    }

    float now = vec_largest(max);
    float keep = expf(s->max[h] - now);
    vec   all = vec_set(0);

    for (uint32_t j = 0; j < BACKEND_PAGE_TOK; j += VEC_N) {
        vec v = vec_exp(vec_sub(vec_load(p + j), vec_set(now)));

        vec_store(p + j, v);
    }

    for (uint32_t j = n; j < BACKEND_PAGE_TOK; j++) {
        p[j] = 0;
    }

    for (uint32_t j = 0; j < BACKEND_PAGE_TOK; j += VEC_N) {
        all = vec_add(all, vec_load(p + j));
    }

    s->sum[h] = s->sum[h] * keep + vec_sum(all);
    s->max[h] = now;

    return keep;
}


/* y(h) = y(h) * keep(h) + sum of p(h, j) kv(j), V vectors at column i. */
INLINE void
attend_values(struct attend_state *s, const uint8_t *keys, size_t key_bytes,
              uint32_t n, uint32_t i, const float *keep, enum dtype t, int H,
              int V, int paired)
{
    vec sum[ATTEND_HEADS][4];

#pragma GCC unroll 10
    for (int h = 0; h < H; h++) {
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            sum[h][v] = vec_mul(vec_load(s->y[h] + i + v * VEC_N),
                                vec_set(keep[h]));
        }
    }

    for (uint32_t j = 0; j < n; j++) {
        vec kv[4];

#pragma GCC unroll 4
        for (int v = 0; v < V; v += 1 + paired) {
            uint32_t at = i + (uint32_t) v * VEC_N;

            if (paired) {
                kv_load_pairs(keys + j * key_bytes, at, kv + v);

            } else {
                kv[v] = kv_load(keys + j * key_bytes, at, t);
            }
        }

#pragma GCC unroll 10
        for (int h = 0; h < H; h++) {
            vec p = vec_set(s->p[h][j]);

#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                sum[h][v] = vec_fma(p, kv[v], sum[h][v]);
            }
        }
    }

#pragma GCC unroll 10
    for (int h = 0; h < H; h++) {
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            vec_store(s->y[h] + i + v * VEC_N, sum[h][v]);
        }
    }
}


INLINE void
attend_page(const struct attend *a, struct attend_state *s,
            const uint8_t *row, uint32_t n, enum dtype t, int H)
{
    const int      S = ATTEND_SHARE(H);
    const uint8_t *keys = row + a->key * dtype_bytes(t);
    const uint8_t *values = row + a->value * dtype_bytes(t);
    size_t         row_bytes = a->kv->row * dtype_bytes(t);
    uint32_t       j = 0, i = 0, width = backend_pad(a->n_value);
    uint32_t       paired = s->n_paired < width ? s->n_paired : width;
    float          keep[ATTEND_HEADS];

    for ( ; j + (uint32_t) S <= n; j += (uint32_t) S) {
        /* Values of these keys, where they are not the keys themselves. */
        for (uint32_t k = 0; k < a->head && values != keys;
             k += LINE / (uint32_t) dtype_bytes(t))
        {
            attend_ahead(values + j * row_bytes, row_bytes, k, t, S);
        }

        attend_dots(s, keys, row_bytes, a->head, j, t, H, S);
    }

    for ( ; j < n; j++) {
        attend_dots(s, keys, row_bytes, a->head, j, t, H, 1);
    }

    for (int h = 0; h < H; h++) {
        keep[h] = attend_softmax(s, h, n, a->scale);
    }

    for ( ; t == DTYPE_BF16 && i + (uint32_t) S * VEC_N <= paired;
         i += (uint32_t) S * VEC_N)
    {
        attend_values(s, values, row_bytes, n, i, keep, t, H, S, 1);
    }

    for ( ; t == DTYPE_BF16 && i < paired; i += 2 * VEC_N) {
        attend_values(s, values, row_bytes, n, i, keep, t, H, 2, 1);
    }

    for ( ; i + (uint32_t) S * VEC_N <= width; i += (uint32_t) S * VEC_N) {
        attend_values(s, values, row_bytes, n, i, keep, t, H, S, 0);
    }

    for ( ; i < width; i += VEC_N) {
        attend_values(s, values, row_bytes, n, i, keep, t, H, 1, 0);
    }
}


static void
attend_begin(const struct attend *a, struct attend_state *s, uint32_t head,
             enum dtype t, int H)
{
    uint32_t most = t == DTYPE_BF16 ? ATTEND_PAIRED : 0;

    s->n_paired = (a->head < most ? a->head : most)
                  / (2 * VEC_N) * (2 * VEC_N);

    for (int h = 0; h < H; h++) {
        size_t at = (size_t) (head + (uint32_t) h) * a->head;

        s->q[h] = a->q + at;
        s->y[h] = a->y + at;
        s->max[h] = -INFINITY;
        s->sum[h] = 0;
        memset(s->y[h], 0, a->head * sizeof(float));

        for (uint32_t i = 0; i < s->n_paired; i += 2 * VEC_N) {
            vec *to = &s->pairs[h][i / VEC_N];

            vec_split(vec_load(s->q[h] + i), vec_load(s->q[h] + i + VEC_N),
                      &to[0], &to[1]);
        }
    }
}


static void
attend_end(const struct attend *a, const struct attend_state *s, int H)
{
    for (int h = 0; h < H; h++) {
        vec   f = vec_set(1 / s->sum[h]), v[2];
        float *y = s->y[h];

        for (uint32_t i = 0; i < a->head; i += VEC_N) {
            vec_store(y + i, vec_mul(vec_load(y + i), f));
        }

        for (uint32_t i = 0; i < s->n_paired; i += 2 * VEC_N) {
            vec_join(vec_load(y + i), vec_load(y + i + VEC_N), &v[0], &v[1]);
            vec_store(y + i, v[0]);
            vec_store(y + i + VEC_N, v[1]);
        }
    }
}


INLINE void
attend_heads(const struct attend *a, uint32_t head, enum dtype t, int H)
{
    struct attend_state s;

    attend_begin(a, &s, head, t, H);

    for (uint32_t at = 0; at <= a->pos; at += BACKEND_PAGE_TOK) {
        uint32_t n = a->pos + 1 - at < BACKEND_PAGE_TOK ? a->pos + 1 - at
                                                        : BACKEND_PAGE_TOK;

        attend_page(a, &s, kv_row(a->kv, a->pages[at / BACKEND_PAGE_TOK],
                                  a->layer, 0), n, t, H);
    }

    attend_end(a, &s, H);
}


#define ATTEND_ONE(H)                                                        \
    static void                                                              \
    attend_bf16_##H(const struct attend *a, uint32_t head)                   \
    { attend_heads(a, head, DTYPE_BF16, H); }                                \
                                                                             \
    static void                                                              \
    attend_f32_##H(const struct attend *a, uint32_t head)                    \
    { attend_heads(a, head, DTYPE_F32, H); }

#define ATTEND_FIVE(t)                                                       \
    attend_##t##_1, attend_##t##_2, attend_##t##_3, attend_##t##_4,          \
    attend_##t##_5
#define ATTEND_TEN(t)                                                        \
    ATTEND_FIVE(t), attend_##t##_6, attend_##t##_7, attend_##t##_8,          \
    attend_##t##_9, attend_##t##_10

ATTEND_ONE(1) ATTEND_ONE(2) ATTEND_ONE(3) ATTEND_ONE(4) ATTEND_ONE(5)

typedef void (*attend_fn)(const struct attend *a, uint32_t head);

#if ATTEND_HEADS == 10
ATTEND_ONE(6) ATTEND_ONE(7) ATTEND_ONE(8) ATTEND_ONE(9) ATTEND_ONE(10)

static const attend_fn attend_fns[2][ATTEND_HEADS] = {
    { ATTEND_TEN(bf16) }, { ATTEND_TEN(f32) }
};
#else
static const attend_fn attend_fns[2][ATTEND_HEADS] = {
    { ATTEND_FIVE(bf16) }, { ATTEND_FIVE(f32) }
};
#endif


/* In as few groups as there can be, of nearly one size. */
static void
fast_attend(const struct attend *a, uint32_t n_heads)
{
    const attend_fn *run = attend_fns[a->kv->dtype == DTYPE_F32];
    uint32_t         done = 0;
    uint32_t         n_groups = (n_heads + ATTEND_HEADS - 1) / ATTEND_HEADS;

    for (uint32_t i = 1; i <= n_groups; i++) {
        uint32_t H = n_heads * i / n_groups - done;

        run[H - 1](a, done);
        done += H;
    }
}
