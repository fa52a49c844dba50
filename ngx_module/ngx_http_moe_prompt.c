/*
 * ngx_http_moe_prompt.c - what the model thinks of a prompt's tokens.
 *
 * In: PROMPT events.  Out: vLLM's "prompt_logprobs", a list of objects, whose
 * keys are token ids; the first token has null.  What an API makes of the same
 * events (echo with logprobs) is its own affair.
 * Must not know channels.
 */

#include "ngx_http_moe_module.h"


static void ngx_http_moe_prompt_entry(ngx_http_moe_text_t *text,
    const ngx_http_moe_logprob_t *lp);


/* One token; an engine that goes on from another's answer tells all again. */

void
ngx_http_moe_prompt(ngx_http_moe_ctx_t *ctx, const u_char *logprobs)
{
    uint32_t                 id;
    ngx_uint_t               i, n;
    const u_char            *p;
    ngx_http_moe_text_t     *text;
    ngx_http_moe_logprob_t   lp;

    if (ctx->n_prompt_again) {
        ctx->n_prompt_again--;
        return;
    }

    ctx->n_prompt_told++;

    if (ctx->api->prompt) {
        ctx->api->prompt(ctx, logprobs);
    }

    if (ctx->params.prompt_logprobs == 0) {
        return;
    }

    text = &ctx->prompt;
    p = logprobs;

    ngx_http_moe_event_logprob(&p, &lp);

    if (text->last != text->start) {
        ngx_http_moe_text_lit(text, ",");
    }

    if (lp.logprob != lp.logprob) {
        ngx_http_moe_text_lit(text, "null");
        return;
    }

    id = lp.id;
    n = ngx_min(lp.n_top, ctx->params.prompt_logprobs - 1);

    ngx_http_moe_text_lit(text, "{");
    ngx_http_moe_prompt_entry(text, &lp);

    for (i = 0; i < n; i++) {
        ngx_http_moe_event_logprob(&p, &lp);

        if (lp.id != id) {
            ngx_http_moe_text_lit(text, ",");
            ngx_http_moe_prompt_entry(text, &lp);
        }
    }

    ngx_http_moe_text_lit(text, "}");
}


static void
ngx_http_moe_prompt_entry(ngx_http_moe_text_t *text,
    const ngx_http_moe_logprob_t *lp)
{
    ngx_http_moe_text_lit(text, "\"");
    ngx_http_moe_text_uint(text, lp->id);
    ngx_http_moe_text_lit(text, "\":{\"logprob\":");
    ngx_http_moe_text_float(text, lp->logprob);
    ngx_http_moe_text_lit(text, ",\"rank\":");
    ngx_http_moe_text_uint(text, lp->rank);
    ngx_http_moe_text_lit(text, ",\"decoded_token\":\"");
    ngx_http_moe_text_json(text, lp->token.data, lp->token.len);
    ngx_http_moe_text_lit(text, "\"}");
}


/* A member of an object, where it was asked for. */

void
ngx_http_moe_prompt_json(ngx_http_moe_ctx_t *ctx)
{
    if (ctx->params.prompt_logprobs == 0) {
        return;
    }

    ngx_http_moe_text_lit(&ctx->out, ",\"prompt_logprobs\":[");
    ngx_http_moe_text_add(&ctx->out, ctx->prompt.start,
                          ngx_http_moe_text_len(&ctx->prompt));
    ngx_http_moe_text_lit(&ctx->out, "]");
}
