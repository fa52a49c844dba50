/*
 * cost.c - see serve/cost.h.
 */
#include "serve/cost.h"

#include <math.h>

/* A step that took this much longer than was expected was disturbed; so much
 * and no more of it counts. */
#define DISTURBED_TIMES 3

/* The weight of "free" among the measured steps, against prices that they do
 * not tell apart: the step itself is the last to be given a price. */
static const double doubt[3] = { 1e-2, 1e-4, 1e-4 };


static uint32_t
n_kept(const struct cost *c)
{
    return c->n_learnt < COST_STEPS ? c->n_learnt : COST_STEPS;
}


/* Solves the symmetric a x = b, positive definite for its diagonal. */
static void
solve(double a[3][3], double b[3])
{
    for (int i = 0; i < 3; i++) {
        for (int k = i + 1; k < 3; k++) {
            double f = a[k][i] / a[i][i];

            for (int m = i; m < 3; m++) {
                a[k][m] -= f * a[i][m];
            }

            b[k] -= f * b[i];
        }
    }

    for (int i = 2; i >= 0; i--) {
        for (int m = i + 1; m < 3; m++) {
            b[i] -= a[i][m] * b[m];
        }

        b[i] /= a[i][i];
    }
}


/* Least squares of relative errors: of "price . step / us = 1".  In units of
 * the mean step, so that doubt is without one. */
static void
fit(struct cost *c)
{
    uint32_t n = n_kept(c);
    double   a[3][3] = { { 0 } }, b[3] = { 0 };
    double   unit[3] = { 0 };

    for (uint32_t i = 0; i < n; i++) {
        unit[0] += 1 / c->last[i].us / n;
        unit[1] += c->last[i].n_tok / c->last[i].us / n;
        unit[2] += (c->last[i].back + 1) / c->last[i].us / n;
    }

    for (uint32_t i = 0; i < n; i++) {
        const struct cost_step *s = &c->last[i];
        double x[3] = {
            1 / s->us / unit[0], s->n_tok / s->us / unit[1],
            s->back / s->us / unit[2]
        };

        for (int k = 0; k < 3; k++) {
            b[k] += x[k];

            for (int m = 0; m < 3; m++) {
                a[k][m] += x[k] * x[m];
            }
        }
    }

    for (int k = 0; k < 3; k++) {
        a[k][k] += doubt[k] * n;
    }

    solve(a, b);

    for (int k = 0; k < 3; k++) {
        c->price[k] = fmax(b[k], 0) / unit[k];
    }
}


void
cost_learn(struct cost *c, const struct cost_step *s, int has_prompt)
{
    struct cost_step seen = *s;

    seen.us = fmax(seen.us, 1);

    if (!has_prompt) {
        c->row_us = seen.us / seen.n_tok;
        return;
    }

    if (c->n_learnt > 0) {
        double most = DISTURBED_TIMES * cost_us(c, s->n_tok, s->back);

        seen.us = seen.us < most ? seen.us : fmax(most, 1);
    }

    c->last[c->n_learnt++ % COST_STEPS] = seen;
    fit(c);
}


double
cost_us(const struct cost *c, double n_tok, double back)
{
    return c->price[0] + c->price[1] * n_tok + c->price[2] * back;
}


double
cost_tok_us(const struct cost *c)
{
    uint32_t n = n_kept(c);
    double   us = 0, n_tok = 0;

    for (uint32_t i = 0; i < n; i++) {
        us += c->last[i].us;
        n_tok += c->last[i].n_tok;
    }

    return n_tok > 0 ? us / n_tok : c->row_us;
}


/* How many tokens of a prompt may be added for the price to be believed. */
static double
believed(const struct cost *c, const struct cost_step *beside, double us_max)
{
    double most = 0;

    if (c->n_learnt == 0) {
        return fmin(c->row_us > 0 ? us_max / c->row_us : COST_FIRST_TOK,
                    COST_FIRST_TOK);
    }

    for (uint32_t i = 0; i < n_kept(c); i++) {
        most = fmax(most, c->last[i].n_tok);
    }

    return fmax(2 * most - beside->n_tok, COST_FIRST_TOK);
}


/* What a step takes without any prompt.  The prices know long steps, and say
 * rather too much of a short one: what such a one took the last time counts. */
static double
beside_us(const struct cost *c, const struct cost_step *beside)
{
    double us = cost_us(c, beside->n_tok, beside->back);

    if (beside->n_tok == 0) {
        return 0;
    }

    return c->row_us > 0 ? fmin(us, c->row_us * beside->n_tok) : us;
}


uint32_t
cost_chunk(const struct cost *c, const struct cost_step *beside, double pos,
           double us_max, uint32_t most)
{
    double   n_most = fmin(believed(c, beside, us_max), most);
    uint32_t lo = most < 2 ? most : 2;
    uint32_t hi = n_most > lo ? (uint32_t) n_most : lo;

    us_max += beside_us(c, beside);

    while (lo < hi) {
        uint32_t n = lo + (hi - lo + 1) / 2;

        if (cost_us(c, beside->n_tok + n, beside->back + n * (pos + n * 0.5))
            <= us_max)
        {
            lo = n;
        } else {
            hi = n - 1;
        }
    }

    return lo;
}
