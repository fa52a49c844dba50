/*
 * score.c - what the model thinks of a prompt: the log-probability of each of
 * its tokens, given those before it (vLLM's prompt_logprobs, and OpenAI's echo
 * with logprobs).
 *
 * Comes in: rows of logits of the prompt's tokens.  Goes out: PROMPT events, in
 * order, each once however the prompt is cut, and read again after a job had to
 * give way.  Must not know workers.
 */
#include <math.h>

#include "serve/serve.h"


int
serve_score_wanted(const struct job *j)
{
    return j->n_prompt_top > 0 && j->n_told < j->sched.n_prompt;
}


size_t
serve_score_bytes(const struct job *j)
{
    return j->n_prompt_top == 0 ? 0
           : (SERVE_SCORE_ROWS + 1)
             * serve_output_prompt_bytes(j->n_prompt_top);
}


int
serve_score_tell(const struct serve *s, struct sampler *sampler,
                 struct job *j, uint32_t i_choice,
                 const struct model_segment *g, const float *logits)
{
    const struct choice   *c = &j->choices[i_choice];
    struct sampler_logprob l[1 + ABI_TOP_LOGPROBS_MAX];
    uint32_t               next = (uint32_t) (g->pos + g->n_tok - g->n_rows);

    /* Nothing stands before the first one. */
    if (j->n_told == 0) {
        l[0] = (struct sampler_logprob) { c->tokens[0], NAN, 0 };

        if (serve_output_prompt(&c->output, l, 1, j->prep.prompt.hidden)
            != 0) {
            return -1;
        }

        j->n_told = 1;
    }

    for (int i = 0; i < g->n_rows && ++next < j->sched.n_prompt; i++) {
        const float *row = logits + (size_t) i * s->model->n_vocab;

        if (next < j->n_told) {
            continue;
        }

        uint32_t n = sampler_logprobs(sampler, row, c->tokens[next],
                                      j->n_prompt_top - 1, l);

        if (n == 0 || serve_output_prompt(&c->output, l, n, 0) != 0) {
            return -1;
        }

        j->n_told++;
    }

    return 0;
}
