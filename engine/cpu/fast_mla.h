/*
 * fast_mla.h - latent attention, for one kind of vector.
 *
 * Up to MLA_HEADS heads of one token go through the pages together, since all
 * of them read the same keys; as many sums as there are registers for.  Per
 * page: scores (heads, 64), then the running maximum, sum and output are
 * brought up to date (online softmax).  Pages lie at fixed positions, so the
 * order of all sums follows from the token's position alone (D6).
 */
#include <math.h>

#define MLA_HEADS       5
#define MLA_AHEAD       8       /* keys from those in work to those called */

#if VEC_REGS == 32
#define MLA_KEYS        4       /* keys that share one reading of the query */
#define MLA_VECS        4       /* vectors of values that share one of p */
#else
#define MLA_KEYS        2
#define MLA_VECS        2
#endif

struct mla_state {
    const float *q[MLA_HEADS];
    float       *y[MLA_HEADS];
    float        max[MLA_HEADS];
    float        sum[MLA_HEADS];
    float        p[MLA_HEADS][BACKEND_PAGE_TOK];
};


INLINE vec
kv_load(const uint8_t *row, uint32_t i, enum dtype t)
{
    return t == DTYPE_F32
           ? vec_load((const float *) (const void *) row + i)
           : vec_load_bf16((const uint16_t *) (const void *) row + i);
}


/* Keys to come; a processor does not see through one key's end what the next
 * is wanted for. */
INLINE void
mla_ahead(const uint8_t *keys, size_t key_bytes, uint32_t i, enum dtype t,
          int J)
{
#pragma GCC unroll 4
    for (int k = 0; k < J; k++) {
        _mm_prefetch((const char *) keys + (size_t) k * key_bytes
                     + i * dtype_bytes(t), _MM_HINT_T0);
    }
}


/* p(h, j) = q(h) . kv(j) for H heads and J keys: MLA_KEYS, or 1. */
INLINE void
mla_dots(struct mla_state *s, const uint8_t *keys, size_t key_bytes,
         uint32_t row, uint32_t j, enum dtype t, int H, int J)
{
    vec sum[MLA_HEADS][MLA_KEYS];

#pragma GCC unroll 5
    for (int h = 0; h < H; h++) {
#pragma GCC unroll 4
        for (int k = 0; k < J; k++) {
            sum[h][k] = vec_set(0);
        }
    }

    for (uint32_t i = 0; i < row; i += VEC_N) {
        vec kv[MLA_KEYS];

        if (J != 1 && i % 32 == 0) {
            mla_ahead(keys + (j + MLA_AHEAD) * key_bytes, key_bytes, i, t, J);
        }

#pragma GCC unroll 4
        for (int k = 0; k < J; k++) {
            kv[k] = kv_load(keys + (j + (uint32_t) k) * key_bytes, i, t);
        }

#pragma GCC unroll 5
        for (int h = 0; h < H; h++) {
            vec q = vec_load(s->q[h] + i);

#pragma GCC unroll 4
            for (int k = 0; k < J; k++) {
                sum[h][k] = vec_fma(q, kv[k], sum[h][k]);
            }
        }
    }

#pragma GCC unroll 5
    for (int h = 0; h < H; h++) {
        if (J == 1) {
            s->p[h][j] = vec_sum(sum[h][0]);

        } else {
            float all[4];

            vec_sum4(all, sum[h][0], sum[h][1], sum[h][J - 2], sum[h][J - 1]);
            memcpy(&s->p[h][j], all, (size_t) J * sizeof(float));
        }
    }
}


/* p = exp(scale p - max); the state is rescaled where the maximum grew.
 * Returns what the head's output so far is to be multiplied by. */
static float
mla_softmax(struct mla_state *s, int h, uint32_t n, float scale)
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
mla_values(struct mla_state *s, const uint8_t *keys, size_t key_bytes,
           uint32_t n, uint32_t i, const float *keep, enum dtype t, int H,
           int V)
{
    vec sum[MLA_HEADS][4];

#pragma GCC unroll 5
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
        for (int v = 0; v < V; v++) {
            kv[v] = kv_load(keys + j * key_bytes, i + (uint32_t) v * VEC_N, t);
        }

#pragma GCC unroll 5
        for (int h = 0; h < H; h++) {
            vec p = vec_set(s->p[h][j]);

#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                sum[h][v] = vec_fma(p, kv[v], sum[h][v]);
            }
        }
    }

#pragma GCC unroll 5
    for (int h = 0; h < H; h++) {
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            vec_store(s->y[h] + i + v * VEC_N, sum[h][v]);
        }
    }
}


INLINE void
mla_page(const struct mla *a, struct mla_state *s, const uint8_t *keys,
         uint32_t n, enum dtype t, int H)
{
    size_t   key_bytes = a->kv->row * dtype_bytes(t);
    uint32_t j = 0, i = 0, width = backend_pad(a->n_latent);
    float    keep[MLA_HEADS];

    for ( ; j + MLA_KEYS <= n; j += MLA_KEYS) {
        mla_dots(s, keys, key_bytes, a->kv->row, j, t, H, MLA_KEYS);
    }

    for ( ; j < n; j++) {
        mla_dots(s, keys, key_bytes, a->kv->row, j, t, H, 1);
    }

    for (int h = 0; h < H; h++) {
        keep[h] = mla_softmax(s, h, n, a->scale);
    }

    for ( ; i + MLA_VECS * VEC_N <= width; i += MLA_VECS * VEC_N) {
        mla_values(s, keys, key_bytes, n, i, keep, t, H, MLA_VECS);
    }

    for ( ; i < width; i += VEC_N) {
        mla_values(s, keys, key_bytes, n, i, keep, t, H, 1);
    }
}


INLINE void
mla_heads(const struct mla *a, uint32_t tok, uint32_t pos,
          const uint32_t *pages, uint32_t head, enum dtype t, int H)
{
    struct mla_state s;

    for (int h = 0; h < H; h++) {
        size_t at = (size_t) (head + (uint32_t) h) * a->kv->row;

        s.q[h] = a->q.data + a->q.stride * tok + at;
        s.y[h] = a->y.data + a->y.stride * tok + at;
        s.max[h] = -INFINITY;
        s.sum[h] = 0;
        memset(s.y[h], 0, a->kv->row * sizeof(float));
    }

    for (uint32_t at = 0; at <= pos; at += BACKEND_PAGE_TOK) {
        uint32_t n = pos + 1 - at < BACKEND_PAGE_TOK ? pos + 1 - at
                                                     : BACKEND_PAGE_TOK;

        mla_page(a, &s, kv_row(a->kv, pages[at / BACKEND_PAGE_TOK], a->layer,
                               0), n, t, H);
    }

    for (int h = 0; h < H; h++) {
        vec f = vec_set(1 / s.sum[h]);

        for (uint32_t i = 0; i < a->kv->row; i += VEC_N) {
            vec_store(s.y[h] + i, vec_mul(vec_load(s.y[h] + i), f));
        }
    }
}


#define MLA_ONE(H)                                                           \
    static void                                                              \
    mla_bf16_##H(const struct mla *a, uint32_t tok, uint32_t pos,            \
                 const uint32_t *pages, uint32_t head)                       \
    { mla_heads(a, tok, pos, pages, head, DTYPE_BF16, H); }                  \
                                                                             \
    static void                                                              \
    mla_f32_##H(const struct mla *a, uint32_t tok, uint32_t pos,             \
                const uint32_t *pages, uint32_t head)                        \
    { mla_heads(a, tok, pos, pages, head, DTYPE_F32, H); }

MLA_ONE(1) MLA_ONE(2) MLA_ONE(3) MLA_ONE(4) MLA_ONE(5)

typedef void (*mla_fn)(const struct mla *a, uint32_t tok, uint32_t pos,
                       const uint32_t *pages, uint32_t head);

static const mla_fn mla_fns[2][MLA_HEADS] = {
    { mla_bf16_1, mla_bf16_2, mla_bf16_3, mla_bf16_4, mla_bf16_5 },
    { mla_f32_1, mla_f32_2, mla_f32_3, mla_f32_4, mla_f32_5 }
};


/* In as few groups as there can be, of nearly one size. */
static void
fast_mla(const struct mla *a, uint32_t tok, uint32_t pos,
         const uint32_t *pages, uint32_t head0, uint32_t head1)
{
    const mla_fn *run = mla_fns[a->kv->dtype == DTYPE_F32];
    uint32_t      n = head1 - head0, done = 0;
    uint32_t      n_groups = (n + MLA_HEADS - 1) / MLA_HEADS;

    for (uint32_t i = 1; i <= n_groups; i++) {
        uint32_t H = n * i / n_groups - done;

        run[H - 1](a, tok, pos, pages, head0 + done);
        done += H;
    }
}
