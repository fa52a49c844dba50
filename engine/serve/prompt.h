/*
 * prompt.h - a request to the tokens that the model is to continue: the
 * chat template, the tokenizer, and whether it fits.
 *
 * Reads only what never changes after start, so it may run beside the engine's
 * loop.  Must not know jobs or rings.
 */
#ifndef MOE_SERVE_PROMPT_H
#define MOE_SERVE_PROMPT_H

#include "model/model.h"
#include "serve/request.h"
#include "template/template.h"
#include "tokenizer/tokenizer.h"

/* What the engine serves; read-only after start. */
struct serve_model {
    struct model           *model;
    const struct tokenizer *tokenizer;
    const struct template  *template;   /* NULL: it has none, no chats */
    uint32_t    n_ctx_tok;      /* longest prompt + answer */
    uint32_t    n_text;         /* ids that have text: may be drawn */
    uint32_t    n_vocab;        /* ids that the model can read */
    size_t      piece_bytes;    /* longest text of a token */
    uint32_t    eos[MODEL_EOS_MAX + 1];
    uint32_t    n_eos;
};

struct serve_prompt {
    struct buf      text;       /* as rendered; empty for ids */
    struct tokens   ids;
    int             hidden;     /* the first of them is not in the text */
};

/* Fills the prompt, zero-initialised before; to be freed in any case.  0; -1:
 * why. */
int serve_prompt_make(const struct serve_model *m,
                      const struct serve_request *r, struct serve_prompt *p,
                      struct serve_refusal *why);
void serve_prompt_free(struct serve_prompt *p);

#endif /* MOE_SERVE_PROMPT_H */
