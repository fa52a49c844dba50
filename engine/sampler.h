/*
 * sampler.h - one row of logits to one token id.
 *
 * The mental model.  A sampler is scratch memory for one row; it keeps nothing
 * between calls.  What a sequence needs to remember is its `seen` counts, which
 * belong to the caller.  The choice is a function of (logits, parameters, seen,
 * seed, choice, position): no state moves along with the batch, so the same
 * seed gives the same tokens for ever, whoever else is running (D6).
 *
 * Order: repetition penalty, frequency and presence penalty, bias; then
 * temperature, min_p, top_k, top_p, each over what the one before has left.
 *
 * Must not know text, jobs or models.
 */
#ifndef MOE_SAMPLER_H
#define MOE_SAMPLER_H

#include "abi.h"
#include "backend.h"
#include "base.h"

#define SAMPLER_VOCAB_MAX   (1u << 20)

struct sampler_params {
    float       temperature;    /* 0: greedy, the lowest id among equals */
    float       top_p;          /* (0 .. 1]; 1 = all */
    float       min_p;          /* [0 .. 1]; of the likeliest token's share */
    int32_t     top_k;          /* < 1: all */
    float       presence;       /* OpenAI's two, over the output alone */
    float       frequency;
    float       repetition;     /* > 0; over prompt and output; 1 = none */
    uint32_t    choice;         /* of n; draws its own numbers */
    uint64_t    seed;
    const struct abi_bias *biases;  /* (n_biases) ids below n_vocab */
    uint32_t    n_biases;
};

/* What is between two 32nds of a power of two below the likeliest. */
#define SAMPLER_BUCKETS     1408

struct sampler_bucket {
    uint64_t    mass;           /* of weights */
    uint64_t    n;              /* of ids whose weight is not 0 */
};

struct sampler {
    uint32_t    n_vocab;        /* ids that may come out; rows may be longer */
    const float *x;             /* (n_vocab) of this call: row, or logits */
    float      *logits;         /* (n_vocab) after penalties and bias */
    uint64_t   *weights;        /* (n_vocab) share of the likeliest, 2^42 = 1 */
    uint32_t   *ids;            /* (n_vocab) candidates */
    struct sampler_bucket *buckets;     /* (SAMPLER_BUCKETS) likeliest first */
};

struct sampler_logprob {
    uint32_t    token;
    float       logprob;
    uint32_t    rank;           /* 1: none is likelier */
};

int sampler_init(struct sampler *s, uint32_t n_vocab);  /* -1: no memory */
void sampler_free(struct sampler *s);

/* What a sequence has seen: one word per id, zeroed at its start.  The top bit:
 * the id is in the prompt; the rest: how often it is in the output. */
#define SAMPLER_SEEN_PROMPT     0x80000000u

/* Whether these parameters need seen counts at all. */
int sampler_wants_seen(const struct sampler_params *p);

/*
 * Chooses the token at place i_token of the output.  `row` has at least n_vocab
 * logits and is not changed; seen may be NULL.  0; -1: a logit is NaN or
 * infinite.
 */
int sampler_next(struct sampler *s, const struct sampler_params *p,
                 const uint32_t *seen, const float *row, uint64_t i_token,
                 uint32_t *token);

/*
 * Log-probabilities of the row as the model gave it (no temperature, bias or
 * penalty): out[0] is `token`, out[1 .. n_top] are the likeliest, best first,
 * the lower id first among equals.  Returns how many were filled; 0: a logit is
 * NaN or infinite.
 */
uint32_t sampler_logprobs(struct sampler *s, const float *row,
                          uint32_t token, uint32_t n_top,
                          struct sampler_logprob *out);

/*
 * The same as a device is told, for the token at place i_token.  0; -1: there
 * are penalties or biases, which only sampler_next() knows.
 */
int sampler_plan(const struct sampler_params *p, uint64_t i_token,
                 struct sample *s);

/* Philox4x32-10 (Salmon et al., SC'11): out = f(counter, key). */
void sampler_philox(const uint32_t counter[4], const uint32_t key[2],
                    uint32_t out[4]);

#endif /* MOE_SAMPLER_H */
