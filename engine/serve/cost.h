/*
 * cost.h - how long a step will take, from how long the last ones took.
 *
 * The mental model.  A step costs something for being a step (the weights are
 * read), something for each token (products) and something for each position
 * that a token looks back at (attention).  The three prices are fitted to the
 * last COST_STEPS steps that read a prompt.  A step grows less than in
 * proportion to its tokens, so that a line through the sizes that were measured
 * is above what a smaller one takes; a much larger one is not believed in, but
 * come near to by doubling.
 *
 * A prompt is cut by what it adds to a step: streams take the time that they
 * take, and however long that is, prompts go on beside them.
 *
 * Pure: the clock's figures come in.  Must not know jobs or models.
 */
#ifndef MOE_SERVE_COST_H
#define MOE_SERVE_COST_H

#include "base.h"

#define COST_STEPS      32
#define COST_FIRST_TOK  16      /* of a prompt, while nothing is known */

/* What is in a step: of one token more, at position p, `back` is p more. */
struct cost_step {
    double      n_tok;
    double      back;
    double      us;             /* that it took */
};

struct cost {
    struct cost_step last[COST_STEPS];
    uint32_t    n_learnt;       /* steps, ever */
    double      price[3];       /* us: of a step, a token, a position */
    double      row_us;         /* of a token of a step without a prompt, or 0:
                                   there was none yet */
};

/* A step with tokens of a prompt among its own, or with none. */
void cost_learn(struct cost *c, const struct cost_step *s, int has_prompt);

double cost_us(const struct cost *c, double n_tok, double back);

/* Microseconds of a token of a prompt by itself; 0: not known. */
double cost_tok_us(const struct cost *c);

/* How many tokens of a prompt that goes on at `pos` make a step longer by
 * us_max at most, beside what is in it already; 1 .. most.  Where there are
 * two, never one: a step that reads one teaches nothing about prompts. */
uint32_t cost_chunk(const struct cost *c, const struct cost_step *beside,
                    double pos, double us_max, uint32_t most);

#endif /* MOE_SERVE_COST_H */
