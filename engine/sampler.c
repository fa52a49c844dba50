/*
 * sampler.c - see sampler.h.
 *
 * Comes in: a row of logits.  Goes out: an id.  Probabilities are kept as
 * integers, in units of 2^-42 of the likeliest token's: sums of integers do not
 * depend on their order, so selection may partition as it likes and the result
 * is still exactly that of sorting everything.  An id below 2^-42 of the
 * likeliest cannot be drawn.
 */
#include "sampler.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Sum of all weights: 2^42 * SAMPLER_VOCAB_MAX = 2^62 fits. */
#define WEIGHT_ONE      (1ULL << 42)

/* The first guess at what top_k and top_p will keep: above 2^-9 of the best. */
#define WEIGHT_LIKELY   (WEIGHT_ONE >> 9)


int
sampler_init(struct sampler *s, uint32_t n_vocab)
{
    assert(n_vocab > 0 && n_vocab <= SAMPLER_VOCAB_MAX);

    s->n_vocab = n_vocab;
    s->logits = calloc(n_vocab, sizeof(*s->logits));
    s->weights = calloc(n_vocab, sizeof(*s->weights));
    s->ids = calloc(n_vocab, sizeof(*s->ids));

    if (s->logits == NULL || s->weights == NULL || s->ids == NULL) {
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


/* Fills s->logits; the id of the largest, or -1: not all finite. */
static int64_t
adjust(struct sampler *s, const struct sampler_params *p,
       const uint32_t *seen, const float *row)
{
    for (uint32_t i = 0; i < s->n_vocab; i++) {
        if (!isfinite(row[i])) {
            return -1;
        }

        s->logits[i] = row[i];
    }

    if (seen != NULL && sampler_wants_seen(p)) {
        for (uint32_t i = 0; i < s->n_vocab; i++) {
            s->logits[i] = penalise(s->logits[i], seen[i], p);
        }
    }

    for (uint32_t i = 0; i < p->n_biases; i++) {
        uint32_t id = p->biases[i].token;

        assert(id < s->n_vocab);
        s->logits[id] = clamp(s->logits[id] + p->biases[i].bias);
    }

    uint32_t best = 0;

    for (uint32_t i = 1; i < s->n_vocab; i++) {
        if (s->logits[i] > s->logits[best]) {
            best = i;
        }
    }

    return best;
}


/* Fills s->weights, those below min_p with 0; their sum. */
static uint64_t
weigh(struct sampler *s, const struct sampler_params *p, float max)
{
    uint64_t least = (uint64_t) ((double) p->min_p * (double) WEIGHT_ONE);
    uint64_t total = 0;

    for (uint32_t i = 0; i < s->n_vocab; i++) {
        float    share = expf((s->logits[i] - max) / p->temperature);
        uint64_t w = (uint64_t) ((double) share * (double) WEIGHT_ONE);

        s->weights[i] = w >= least ? w : 0;
        total += s->weights[i];
    }

    return total;
}


/* The order of all selections: larger first, among equals the lower id. */
static int
before(const struct sampler *s, uint32_t a, uint32_t b)
{
    return s->logits[a] > s->logits[b]
           || (s->logits[a] == s->logits[b] && a < b);
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


/* ids[0 .. return) = those of at least this weight; *mass their sum. */
static uint32_t
gather(struct sampler *s, uint64_t least, uint64_t *mass)
{
    uint32_t n = 0;

    *mass = 0;

    for (uint32_t i = 0; i < s->n_vocab; i++) {
        if (s->weights[i] >= least) {
            s->ids[n++] = i;
            *mass += s->weights[i];
        }
    }

    return n;
}


/* The id that is last in order of those that top_k and top_p keep, and in
 * *total the weight of all that are kept. */
static uint32_t
cut(struct sampler *s, const struct sampler_params *p, uint64_t *total)
{
    uint32_t k = p->top_k > 0 ? (uint32_t) p->top_k : s->n_vocab;
    uint64_t mass;
    uint64_t need = (uint64_t) ((double) p->top_p * (double) *total);
    uint32_t n = gather(s, WEIGHT_LIKELY, &mass);

    /* Enough is in there when it holds the k best, or, without top_k, top_p of
     * everything. */
    if (k < s->n_vocab ? n < k : mass < need) {
        n = gather(s, 1, &mass);
    }

    if (k < n) {
        n = select_prefix(s, n, k, 0);
        mass = 0;

        for (uint32_t i = 0; i < n; i++) {
            mass += s->weights[s->ids[i]];
        }

        *total = mass;
    } else if (k == n) {
        *total = mass;
    }

    if (p->top_p < 1) {
        need = (uint64_t) ((double) p->top_p * (double) *total);
        n = select_prefix(s, n, need > 0 ? need : 1, 1);
    }

    uint32_t last = s->ids[0];

    *total = s->weights[last];

    for (uint32_t i = 1; i < n; i++) {
        *total += s->weights[s->ids[i]];

        if (before(s, last, s->ids[i])) {
            last = s->ids[i];
        }
    }

    return last;
}


int
sampler_next(struct sampler *s, const struct sampler_params *p,
             const uint32_t *seen, const float *row, uint64_t i_token,
             uint32_t *token)
{
    int64_t best = adjust(s, p, seen, row);

    if (best < 0) {
        return -1;
    }

    *token = (uint32_t) best;

    if (p->temperature <= 0) {
        return 0;
    }

    uint64_t total = weigh(s, p, s->logits[best]);
    int      all = p->top_k < 1 && p->top_p >= 1;
    uint32_t last = all ? 0 : cut(s, p, &total);
    uint64_t r = draw(p, i_token, total);

    for (uint32_t i = 0; i < s->n_vocab; i++) {
        if (s->weights[i] == 0 || (!all && before(s, last, i))) {
            continue;
        }

        if (r < s->weights[i]) {
            *token = i;
            return 0;
        }

        r -= s->weights[i];
    }

    assert(0);      /* r was below the sum of exactly these */

    return -1;
}


uint32_t
sampler_logprobs(const struct sampler *s, const float *row, uint32_t token,
                 uint32_t n_top, struct sampler_logprob *out)
{
    uint32_t n = 0;
    float    max = row[0];
    double   sum = 0;

    n_top = n_top < s->n_vocab ? n_top : s->n_vocab;

    for (uint32_t i = 0; i < s->n_vocab; i++) {
        max = row[i] > max ? row[i] : max;

        if (n_top == 0 || (n == n_top && row[i] <= out[n].logprob)) {
            continue;
        }

        /* Insertion keeps the best n_top in out[1 ..]; a later equal stays
         * behind an earlier one. */
        uint32_t at = n < n_top ? ++n : n;

        for (; at > 1 && row[i] > out[at - 1].logprob; at--) {
            out[at] = out[at - 1];
        }

        out[at].token = i;
        out[at].logprob = row[i];
    }

    for (uint32_t i = 0; i < s->n_vocab; i++) {
        sum += exp((double) row[i] - (double) max);
    }

    double norm = (double) max + log(sum);

    out[0].token = token;
    out[0].logprob = (float) ((double) row[token] - norm);

    for (uint32_t i = 1; i <= n; i++) {
        out[i].logprob = (float) ((double) out[i].logprob - norm);
    }

    return n + 1;
}
