/*
 * sampler.c - see sampler.h.
 *
 * Comes in: a row of logits.  Goes out: an id.  Probabilities are kept as
 * integers, in units of 2^-42 of the likeliest token's: sums of integers do not
 * depend on their order, so selection may partition as it likes and the result
 * is still exactly that of sorting everything.  An id below 2^-42 of the
 * likeliest cannot be drawn.
 *
 * A vocabulary is long (150,000 ids) and every stream draws once a step, so
 * what looks at all of it does so in lanes, and once: the largest; the weights,
 * with how many and how much there is in each 32nd of a power of two.  Where
 * top_k and top_p end is looked for in one of those alone.
 */
#include "sampler.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Sum of all weights: 2^42 * SAMPLER_VOCAB_MAX = 2^62 fits. */
#define WEIGHT_BITS     42
#define WEIGHT_ONE      (1ULL << WEIGHT_BITS)

/* Four floats, which every x86-64 has.  An element is computed alone, with one
 * rounding an operation: the same in any lane (D6). */
#define N_LANES         4

typedef float   lanes __attribute__((vector_size(4 * N_LANES)));
typedef int32_t ilanes __attribute__((vector_size(4 * N_LANES)));

static_assert(SAMPLER_BUCKETS > 32 * (WEIGHT_BITS + 1), "a 32nd each");


int
sampler_init(struct sampler *s, uint32_t n_vocab)
{
    assert(n_vocab > 0 && n_vocab <= SAMPLER_VOCAB_MAX);

    s->n_vocab = n_vocab;
    s->logits = calloc(n_vocab, sizeof(*s->logits));
    s->weights = calloc(n_vocab, sizeof(*s->weights));
    s->ids = calloc(n_vocab, sizeof(*s->ids));
    s->buckets = calloc(SAMPLER_BUCKETS, sizeof(*s->buckets));

    if (s->logits == NULL || s->weights == NULL || s->ids == NULL
        || s->buckets == NULL)
    {
        sampler_free(s);
        return -1;
    }

    return 0;
}


void
sampler_free(struct sampler *s)
{
    free(s->logits);
    free(s->weights);
    free(s->ids);
    free(s->buckets);
    memset(s, 0, sizeof(*s));
}


int
sampler_wants_seen(const struct sampler_params *p)
{
    return p->presence != 0 || p->frequency != 0 || p->repetition != 1;
}


void
sampler_philox(const uint32_t counter[4], const uint32_t key[2],
               uint32_t out[4])
{
    uint32_t c0 = counter[0], c1 = counter[1];
    uint32_t c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];

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

    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}


/* 0 .. total - 1, from the numbers that (seed, choice, place) own. */
static uint64_t
draw(const struct sampler_params *p, uint64_t i_token, uint64_t total)
{
    uint32_t counter[4] = {
        (uint32_t) i_token, (uint32_t) (i_token >> 32), p->choice, 0
    };
    uint32_t key[2] = { (uint32_t) p->seed, (uint32_t) (p->seed >> 32) };
    uint32_t out[4];

    sampler_philox(counter, key, out);

    uint64_t r = out[0] | (uint64_t) out[1] << 32;

    return (uint64_t) (((unsigned __int128) r * total) >> 64);
}


/* A tiny repetition penalty may pass the largest float. */
static float
clamp(float x)
{
    return x > FLT_MAX ? FLT_MAX : x < -FLT_MAX ? -FLT_MAX : x;
}


static float
penalise(float x, uint32_t seen, const struct sampler_params *p)
{
    if (seen != 0) {
        x = clamp(x > 0 ? x / p->repetition : x * p->repetition);
    }

    uint32_t n = seen & ~SAMPLER_SEEN_PROMPT;

    if (n != 0) {
        x = clamp(x - p->frequency * (float) n - p->presence);
    }

    return x;
}


static lanes
load(const float *p)
{
    lanes v;

    memcpy(&v, p, sizeof(v));

    return v;
}


/* The larger of two; a cast of lanes leaves their bits alone. */
static lanes
larger(lanes a, lanes b)
{
    ilanes first = a > b;

    return (lanes) (((ilanes) a & first) | ((ilanes) b & ~first));
}


/* The largest of n; -1: not all are finite. */
static int
largest(const float *x, uint32_t n, float *max)
{
    lanes    best = { x[0], x[0], x[0], x[0] };
    lanes    zeros = { 0 };
    uint32_t i = 0;
    float    rest = 0;

    /* 0 times what is finite is 0, times the rest NaN, which stays. */
    for (; i + N_LANES <= n; i += N_LANES) {
        lanes v = load(x + i);

        zeros += v * 0;
        best = larger(v, best);
    }

    *max = x[0];

    for (int k = 0; k < N_LANES; k++) {
        *max = best[k] > *max ? best[k] : *max;
        rest += zeros[k];
    }

    for (; i < n; i++) {
        *max = x[i] > *max ? x[i] : *max;
        rest += x[i] * 0;
    }

    return rest == 0 ? 0 : -1;
}


/* Points s->x to the row with penalties and biases.  0; -1: not finite. */
static int
adjust(struct sampler *s, const struct sampler_params *p,
       const uint32_t *seen, const float *row, float *max)
{
    int penalties = seen != NULL && sampler_wants_seen(p);

    s->x = row;

    if (largest(row, s->n_vocab, max) != 0) {
        return -1;
    }

    if (!penalties && p->n_biases == 0) {
        return 0;
    }

    s->x = s->logits;
    memcpy(s->logits, row, s->n_vocab * sizeof(*row));

    for (uint32_t i = 0; penalties && i < s->n_vocab; i++) {
        s->logits[i] = penalise(row[i], seen[i], p);
    }

    for (uint32_t i = 0; i < p->n_biases; i++) {
        uint32_t id = p->biases[i].token;

        assert(id < s->n_vocab);
        s->logits[id] = clamp(s->logits[id] + p->biases[i].bias);
    }

    return largest(s->logits, s->n_vocab, max);
}


/* 2^t for t in -43 .. 0: by halves around a whole power, where eight terms of
 * the series are good to a float's last bit; 2^0 is 1. */
static lanes
power(lanes t)
{
    ilanes n = __builtin_convertvector(t - 0.5f, ilanes);
    lanes  f = t - __builtin_convertvector(n, lanes);
    lanes  y = f * 1.5252734e-5f + 1.5403530e-4f;

    y = y * f + 1.3333558e-3f;
    y = y * f + 9.6181291e-3f;
    y = y * f + 5.5504109e-2f;
    y = y * f + 2.4022651e-1f;
    y = y * f + 6.9314718e-1f;
    y = y * f + 1.0f;

    return y * (lanes) ((n + 127) << 23);
}


/* How many powers of two below the likeliest.  Larger logits are never
 * further below, rounded as they are: this is the order of buckets. */
static float
scale_of(float temperature)
{
    float scale = 1.44269504f / temperature;

    return scale < FLT_MAX ? scale : FLT_MAX;
}


/* The power of the smallest share that counts. */
static float
least_of(float min_p)
{
    return min_p > 0 ? log2f(min_p) : -INFINITY;
}


static lanes
depth(const float *x, float max, float scale)
{
    lanes t = (load(x) - max) * scale;
    lanes least = { -43, -43, -43, -43 };

    return larger(t, least);
}


/* One weight, and where there are any, its bucket. */
static uint64_t
weigh_one(struct sampler *s, struct sampler_bucket *buckets, uint32_t i,
          float t, float share, float least)
{
    /* Signed: a conversion of one instruction. */
    uint64_t w = (uint64_t) (int64_t) (share * (float) WEIGHT_ONE);

    w = t >= least ? w : 0;
    s->weights[i] = w;

    if (buckets != NULL) {
        buckets += (int) (t * -32);
        buckets->mass += w;
        buckets->n += w != 0;
    }

    return w;
}


/* Fills weights, those below min_p with 0, and buckets, if not NULL; the sum of
 * all weights. */
static uint64_t
weigh(struct sampler *s, struct sampler_bucket *buckets, float max,
      float scale, float min_p)
{
    float    least = least_of(min_p);
    uint64_t total = 0;
    uint32_t i = 0;

    if (buckets != NULL) {
        memset(buckets, 0, SAMPLER_BUCKETS * sizeof(*buckets));
    }

    for (; i + N_LANES <= s->n_vocab; i += N_LANES) {
        lanes t = depth(s->x + i, max, scale);
        lanes share = power(t);

        /* By a third faster (150,000 ids, Zen 4): no lane through memory. */
#pragma GCC unroll 4
        for (uint32_t k = 0; k < N_LANES; k++) {
            total += weigh_one(s, buckets, i + k, t[k], share[k], least);
        }
    }

    for (; i < s->n_vocab; i++) {
        float rest[N_LANES] = { s->x[i], max, max, max };
        lanes t = depth(rest, max, scale);

        total += weigh_one(s, buckets, i, t[0], power(t)[0], least);
    }

    return total;
}


/* The order of all selections: larger first, among equals the lower id. */
static int
before(const struct sampler *s, uint32_t a, uint32_t b)
{
    return s->x[a] > s->x[b] || (s->x[a] == s->x[b] && a < b);
}


/* Puts what is before the pivot to the front; where the pivot came to lie. */
static uint32_t
partition(struct sampler *s, uint32_t lo, uint32_t hi)
{
    uint32_t *ids = s->ids;
    uint32_t  pivot = ids[lo + (hi - lo) / 2];
    uint32_t  at = lo;

    ids[lo + (hi - lo) / 2] = ids[hi - 1];

    for (uint32_t i = lo; i < hi - 1; i++) {
        if (before(s, ids[i], pivot)) {
            uint32_t id = ids[i];

            ids[i] = ids[at];
            ids[at++] = id;
        }
    }

    ids[hi - 1] = ids[at];
    ids[at] = pivot;

    return at;
}


/*
 * Moves the shortest prefix, in order, that has `need` of the measure (1 each,
 * or its weight) to the front of ids[0 .. n); how long it is.  As quickselect:
 * only the side that holds the end is looked at again.
 */
static uint32_t
select_prefix(struct sampler *s, uint32_t n, uint64_t need, int by_weight)
{
    uint32_t lo = 0, hi = n;

    while (hi - lo > 1) {
        uint32_t at = partition(s, lo, hi);
        uint64_t mass = at - lo;

        if (by_weight) {
            mass = 0;

            for (uint32_t i = lo; i < at; i++) {
                mass += s->weights[s->ids[i]];
            }
        }

        if (mass >= need) {
            hi = at;
            continue;
        }

        mass += by_weight ? s->weights[s->ids[at]] : 1;

        if (mass >= need) {
            return at + 1;
        }

        need -= mass;
        lo = at + 1;

        if (lo == n) {
            return n;
        }
    }

    return lo + 1;
}


/* ids[0 .. return) = those of the bucket. */
static uint32_t
gather(struct sampler *s, int bucket, float max, float scale)
{
    uint32_t n = 0;
    uint32_t i = 0;

    for (; i + N_LANES <= s->n_vocab; i += N_LANES) {
        ilanes b = __builtin_convertvector(depth(s->x + i, max, scale) * -32,
                                           ilanes);

        for (uint32_t k = 0; k < N_LANES; k++) {
            s->ids[n] = i + k;
            n += b[k] == bucket && s->weights[i + k] != 0;
        }
    }

    for (; i < s->n_vocab; i++) {
        float  rest[N_LANES] = { s->x[i], max, max, max };
        ilanes b = __builtin_convertvector(depth(rest, max, scale) * -32,
                                           ilanes);

        s->ids[n] = i;
        n += b[0] == bucket && s->weights[i] != 0;
    }

    return n;
}


/*
 * The id with which, in order, `need` of the measure is reached (1 each, or its
 * weight), or the last one there is; *total becomes the weight up to it.
 */
static uint32_t
edge(struct sampler *s, float max, float scale, uint64_t need, int by_weight,
     uint64_t *total)
{
    int      b = -1;
    uint64_t done = 0, sum = 0;

    for (int i = 0; i < SAMPLER_BUCKETS && done < need; i++) {
        const struct sampler_bucket *here = &s->buckets[i];

        if (here->n == 0) {
            continue;
        }

        if (b >= 0) {
            done += by_weight ? s->buckets[b].mass : s->buckets[b].n;
            sum += s->buckets[b].mass;
        }

        b = i;

        if (done + (by_weight ? here->mass : here->n) >= need) {
            break;
        }
    }

    uint32_t n = select_prefix(s, gather(s, b, max, scale), need - done,
                               by_weight);
    uint32_t last = s->ids[0];

    for (uint32_t i = 0; i < n; i++) {
        sum += s->weights[s->ids[i]];
        last = before(s, last, s->ids[i]) ? s->ids[i] : last;
    }

    *total = sum;

    return last;
}


/* The id that is last in order of those that top_k and top_p keep, and in
 * *total the weight of all that are kept. */
static uint32_t
cut(struct sampler *s, const struct sampler_params *p, float max, float scale,
    uint64_t *total)
{
    uint32_t last = 0;

    if (p->top_k > 0) {
        last = edge(s, max, scale, (uint32_t) p->top_k, 0, total);
    }

    if (p->top_p < 1) {
        uint64_t need = (uint64_t) ((double) p->top_p * (double) *total);

        last = edge(s, max, scale, need > 0 ? need : 1, 1, total);
    }

    return last;
}


/* The id on which r falls, the weights of all that are kept laid out in the
 * order of ids. */
static uint32_t
find(const struct sampler *s, uint64_t r, int all, uint32_t last)
{
    for (uint32_t i = 0; i < s->n_vocab; i++) {
        if (!all && (s->x[i] < s->x[last] || before(s, last, i))) {
            continue;
        }

        if (r < s->weights[i]) {
            return i;
        }

        r -= s->weights[i];
    }

    assert(0);      /* r was below the sum of exactly these */

    return 0;
}


int
sampler_next(struct sampler *s, const struct sampler_params *p,
             const uint32_t *seen, const float *row, uint64_t i_token,
             uint32_t *token)
{
    float max;

    if (adjust(s, p, seen, row, &max) != 0) {
        return -1;
    }

    if (p->temperature <= 0) {
        uint32_t i = 0;

        while (s->x[i] != max) {
            i++;
        }

        *token = i;
        return 0;
    }

    float    scale = scale_of(p->temperature);
    int      all = p->top_k < 1 && p->top_p >= 1;
    uint64_t total = weigh(s, all ? NULL : s->buckets, max, scale, p->min_p);
    uint32_t last = all ? 0 : cut(s, p, max, scale, &total);

    *token = find(s, draw(p, i_token, total), all, last);

    return 0;
}


int
sampler_plan(const struct sampler_params *p, uint64_t i_token,
             struct sample *s)
{
    if (sampler_wants_seen(p) || p->n_biases != 0) {
        return -1;
    }

    *s = (struct sample) {
        .scale = p->temperature > 0 ? scale_of(p->temperature) : 0,
        .least = least_of(p->min_p), .top_p = p->top_p, .top_k = p->top_k,
        .seed = p->seed, .i_token = i_token, .choice = p->choice
    };

    return 0;
}


/* out[1 ..] become the n likeliest; how many there are. */
static uint32_t
likeliest(const struct sampler *s, const float *row, uint32_t n_top,
          struct sampler_logprob *out)
{
    uint32_t n = 0;

    for (uint32_t i = 0; n_top > 0 && i < s->n_vocab; i++) {
        if (n == n_top && row[i] <= out[n].logprob) {
            continue;
        }

        /* A later equal stays behind an earlier one. */
        uint32_t at = n < n_top ? ++n : n;

        for (; at > 1 && row[i] > out[at - 1].logprob; at--) {
            out[at] = out[at - 1];
        }

        out[at].token = i;
        out[at].logprob = row[i];
    }

    return n;
}


/* How many are likelier than x. */
static uint32_t
likelier(const struct sampler *s, const float *row, float x)
{
    ilanes   less = { 0 };
    uint32_t i = 0, n = 0;

    /* True is -1 in lanes. */
    for (; i + N_LANES <= s->n_vocab; i += N_LANES) {
        less += load(row + i) > x;
    }

    for (; i < s->n_vocab; i++) {
        n += row[i] > x;
    }

    return n - (uint32_t) (less[0] + less[1] + less[2] + less[3]);
}


uint32_t
sampler_logprobs(struct sampler *s, const float *row, uint32_t token,
                 uint32_t n_top, struct sampler_logprob *out)
{
    float max;

    if (largest(row, s->n_vocab, &max) != 0) {
        return 0;
    }

    s->x = row;

    uint64_t sum = weigh(s, NULL, max, scale_of(1), 0);
    double   norm = (double) max + log((double) sum * 0x1p-42);
    uint32_t n = likeliest(s, row, n_top < s->n_vocab ? n_top : s->n_vocab,
                           out);

    out[0].token = token;
    out[0].logprob = (float) ((double) row[token] - norm);
    out[0].rank = 1 + likelier(s, row, row[token]);

    for (uint32_t i = 1; i <= n; i++) {
        out[i].rank = i;
        out[i].logprob = (float) ((double) out[i].logprob - norm);
    }

    return n + 1;
}
