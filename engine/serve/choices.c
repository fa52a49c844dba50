/*
 * choices.c - what the choices of a job begin with: how their tokens are drawn,
 * where they stop, and memory for all that they may say.
 *
 * Comes in: a prepared request.  Goes out: j->choices.  Must not know when, nor
 * whether, the job runs.
 */
#include <string.h>
#include <sys/random.h>

#include "serve/serve.h"


/* Given parameters, then the model's, then OpenAI's. */
static void
set_parameters(const struct serve *s, struct job *j, struct sampler_params *p)
{
    const struct model_info  *info = model_info(s->model->model);
    const struct abi_request *r = &j->prep.request.abi;
    double                    n;

    n = r->given & ABI_GIVEN_TEMPERATURE ? (double) r->temperature
        : info->temperature >= 0 ? info->temperature : 1;
    p->temperature = (float) n;
    n = r->given & ABI_GIVEN_TOP_P ? (double) r->top_p
        : info->top_p > 0 ? info->top_p : 1;
    p->top_p = (float) n;
    n = r->given & ABI_GIVEN_MIN_P ? (double) r->min_p
        : info->min_p >= 0 ? info->min_p : 0;
    p->min_p = (float) n;
    n = r->given & ABI_GIVEN_REPETITION ? (double) r->repetition
        : info->repetition > 0 ? info->repetition : 1;
    p->repetition = (float) n;
    p->top_k = r->given & ABI_GIVEN_TOP_K ? r->top_k
               : info->top_k > 0 ? info->top_k : 0;
    p->presence = r->presence;
    p->frequency = r->frequency;
    p->n_biases = r->n_biases;
    p->seed = r->seed;

    if (!(r->given & ABI_GIVEN_SEED)
        && getrandom(&p->seed, sizeof(p->seed), 0) != sizeof(p->seed))
    {
        p->seed = clock_us();
    }

    j->n_top = r->flags & ABI_FLAG_LOGPROBS ? r->n_top_logprobs + 1 : 0;
    j->n_prompt_top = r->flags & ABI_FLAG_PROMPT_LOGPROBS
                      ? r->n_prompt_top + 1 : 0;
    j->ignore_eos = (r->flags & ABI_FLAG_IGNORE_EOS) != 0;
}


static const struct abi_bias *
copy_biases(struct job *j)
{
    const struct serve_request *r = &j->prep.request;
    struct abi_bias *copy = arena_alloc(&j->arena,
                                        r->abi.n_biases * sizeof(*copy));

    for (uint32_t i = 0; copy != NULL && i < r->abi.n_biases; i++) {
        copy[i] = serve_request_bias(r, i);
    }

    return copy;
}


/* What all choices have in common. */
struct plan {
    struct sampler_params      sampler;
    struct serve_stop_pattern *stops;
    uint32_t                   n_stops;
    size_t                     n_out;       /* outbox bytes of one token */
};


static int
plan_begin(const struct serve *s, struct job *j, struct plan *p)
{
    const struct serve_request *r = &j->prep.request;
    size_t                      longest = 0;

    memset(p, 0, sizeof(*p));
    set_parameters(s, j, &p->sampler);
    p->sampler.biases = copy_biases(j);
    p->n_stops = r->abi.n_stops;

    for (uint32_t i = 0; i < r->abi.n_stops; i++) {
        longest = r->stops[i].n > longest ? r->stops[i].n : longest;
    }

    p->n_out = serve_output_bytes(s->model->piece_bytes, longest);

    return p->sampler.biases == NULL
           || serve_stop_compile(&j->arena, r->stops, p->n_stops, &p->stops)
              != 0
           ? -1 : 0;
}


/* Its tokens stand ready behind the prompt: see replay() in answer.c. */
static void
choice_resume(struct choice *c, size_t n_prompt, const struct serve_resume *r)
{
    c->n_resume = r->abi.n_tok;
    c->reason = r->abi.reason;
    c->output.n_skip_tok = r->abi.n_tok;
    c->output.n_skip_text = r->abi.n_text;

    if (r->abi.n_tok > 0) {
        memcpy(c->tokens + n_prompt, r->ids, r->abi.n_tok * sizeof(uint32_t));
    }
}


static int
choice_begin(const struct serve *s, struct job *j, uint32_t i,
             const struct plan *p)
{
    const struct abi_request *r = &j->prep.request.abi;
    const struct tokens      *prompt = &j->prep.prompt.ids;
    struct choice            *c = &j->choices[i];
    struct serve_output      *o = &c->output;
    size_t                    n_pages = (prompt->n + j->n_new)
                                        / MODEL_PAGE_TOK + 1;

    c->sampler = p->sampler;
    c->sampler.choice = i;
    c->tokens = arena_alloc(&j->arena, (prompt->n + j->n_new)
                                       * sizeof(*c->tokens));
    c->pages = arena_alloc(&j->arena, n_pages * sizeof(*c->pages));
    c->names = arena_alloc(&j->arena, n_pages * sizeof(*c->names));

    o->tokenizer = s->model->tokenizer;
    o->outbox = &j->outbox;
    o->frame = serve_job_frame(j);
    o->choice = (uint8_t) i;
    parse_begin(&o->parse, j->prep.prompt.text.p, j->prep.prompt.text.n,
                r->kind != ABI_CHAT || (r->flags & ABI_FLAG_RAW_REASONING));

    if (c->tokens == NULL || c->pages == NULL || c->names == NULL
        || buf_reserve(&o->text, s->model->piece_bytes + sizeof(o->detok)) != 0
        || serve_stop_begin(&o->stop, &j->arena, p->stops, p->n_stops,
                            s->model->piece_bytes + sizeof(o->detok)) != 0)
    {
        return -1;
    }

    memcpy(c->tokens, prompt->ids, prompt->n * sizeof(*c->tokens));
    choice_resume(c, prompt->n, &j->prep.request.resumes[i]);

    if (!sampler_wants_seen(&c->sampler)) {
        return 0;
    }

    c->seen = arena_alloc(&j->arena, s->model->n_text * sizeof(*c->seen));

    for (size_t k = 0; c->seen != NULL && k < prompt->n; k++) {
        if (prompt->ids[k] < s->model->n_text) {
            c->seen[prompt->ids[k]] = SAMPLER_SEEN_PROMPT;
        }
    }

    return c->seen == NULL ? -1 : 0;
}


int
serve_choices_begin(const struct serve *s, struct job *j)
{
    struct plan p;
    uint32_t    n = j->sched.n_seqs;

    if (plan_begin(s, j, &p) != 0) {
        return -1;
    }

    j->choices = arena_alloc(&j->arena, n * sizeof(*j->choices));

    /* A token of each; and a step that is under way when credit ends brings one
     * more. */
    if (j->choices == NULL
        || buf_reserve(&j->outbox, 2 * n * p.n_out + serve_score_bytes(j)) != 0)
    {
        return -1;
    }

    for (uint32_t i = 0; i < n; i++) {
        if (choice_begin(s, j, i, &p) != 0) {
            return -1;
        }
    }

    return 0;
}


int
serve_choices_echo(const struct serve *s, struct job *j)
{
    const struct serve_prompt *p = &j->prep.prompt;
    struct buf                 text = { NULL, 0, 0, 0 };
    struct detok               d = { .n_held = 0 };
    int                        rc = 0;

    if (j->prep.request.abi.kind == ABI_COMPLETION) {
        rc = buf_add(&text, p->text.p, p->text.n);
    } else {
        for (size_t i = 0; i < p->ids.n && rc == 0; i++) {
            rc = detok_step(&d, s->model->tokenizer, p->ids.ids[i], 1, &text);
        }

        rc = rc != 0 ? rc : detok_end(&d, &text);
    }

    for (uint32_t i = 0; i < j->sched.n_seqs && rc == 0; i++) {
        rc = serve_output_echo(&j->choices[i].output, text.p, text.n);
    }

    buf_free(&text);

    return rc;
}
