/*
 * route.c - the choice of experts, see struct route.  One row at a time, by
 * the calling thread: it is a few hundred numbers, and must be the same
 * everywhere, so there is one version of it.
 */
#include "cpu/cpu.h"

#include <assert.h>
#include <math.h>

#define EXPERTS_MAX     1024


/* s = softmax(x) or sigmoid(x) */
static void
scores(const struct route *a, const float *x, float *s)
{
    if (a->score == ROUTE_SIGMOID) {
        for (uint32_t i = 0; i < a->n_experts; i++) {
            s[i] = 1 / (1 + expf(-x[i]));
        }

        return;
    }

    float max = x[0], sum = 0;

    for (uint32_t i = 1; i < a->n_experts; i++) {
        max = fmaxf(max, x[i]);
    }

    for (uint32_t i = 0; i < a->n_experts; i++) {
        s[i] = expf(x[i] - max);
        sum += s[i];
    }

    for (uint32_t i = 0; i < a->n_experts; i++) {
        s[i] /= sum;
    }
}


/* The index of the largest of c that is not taken yet; ties: the lower one. */
static uint32_t
largest(const float *c, const uint8_t *taken, uint32_t n)
{
    uint32_t best = UINT32_MAX;

    for (uint32_t i = 0; i < n; i++) {
        if (!taken[i] && (best == UINT32_MAX || c[i] > c[best])) {
            best = i;
        }
    }

    return best;
}


static float
group_score(const struct route *a, const float *c, uint32_t n)
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

    return a->method == ROUTE_GROUP_MAX ? first : first + second;
}


/* Takes the experts of losing groups out of the choice. */
static void
mask_groups(const struct route *a, float *c)
{
    uint32_t n = a->n_experts / a->n_groups;
    float    of_group[EXPERTS_MAX];
    uint8_t  kept[EXPERTS_MAX] = { 0 };

    for (uint32_t g = 0; g < a->n_groups; g++) {
        of_group[g] = group_score(a, c + (size_t) g * n, n);
    }

    for (uint32_t k = 0; k < a->n_groups_keep; k++) {
        kept[largest(of_group, kept, a->n_groups)] = 1;
    }

    for (uint32_t i = 0; i < a->n_experts; i++) {
        if (!kept[i / n]) {
            c[i] = a->method == ROUTE_GROUP_MAX ? 0 : -INFINITY;
        }
    }
}


static void
route_row(const struct route *a, const float *x, uint32_t *ids, float *weights)
{
    float   s[EXPERTS_MAX], c[EXPERTS_MAX], sum = 0;
    uint8_t taken[EXPERTS_MAX] = { 0 };

    scores(a, x, s);

    for (uint32_t i = 0; i < a->n_experts; i++) {
        c[i] = a->bias ? s[i] + a->bias[i] : s[i];
    }

    if (a->method != ROUTE_GREEDY && a->n_groups > 1) {
        mask_groups(a, c);
    }

    for (uint32_t k = 0; k < a->n_active; k++) {
        ids[k] = largest(c, taken, a->n_experts);
        taken[ids[k]] = 1;

        /* A masked softmax expert that is chosen all the same (its group lost,
         * but there was nothing better) weighs what it was masked with. */
        weights[k] = a->method == ROUTE_GROUP_MAX ? c[ids[k]] : s[ids[k]];
        sum += weights[k];
    }

    for (uint32_t k = 0; k < a->n_active; k++) {
        if (a->norm) {
            weights[k] /= sum + 1e-20f;
        }

        weights[k] *= a->scale;
    }
}


void
cpu_route(struct backend *b, const struct route *a)
{
    (void) b;
    assert(a->n_experts <= EXPERTS_MAX && a->n_active <= a->n_experts
           && a->n_experts % a->n_groups == 0);

    for (uint32_t r = 0; r < a->n_rows; r++) {
        route_row(a, a->logits.data + a->logits.stride * r,
                  a->ids + (size_t) r * a->n_active,
                  a->weights + (size_t) r * a->n_active);
    }
}
