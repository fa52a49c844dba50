/*
 * ngx_http_moe_event.c - what an engine says about a request.
 *
 * In: frames of an engine that is not trusted, copied.  Out: events that are
 * checked to the last byte before anything acts on them, or what is wrong with
 * the frame: one that cannot be honest faults the channel.
 *
 * Must not know HTTP or JSON.
 */

#include "ngx_http_moe_module.h"


#define ngx_http_moe_pad4(n)  (((n) + (size_t) 3) & ~(size_t) 3)


static const char *ngx_http_moe_event_terminal(ngx_http_moe_channel_t *ch,
    ngx_http_moe_slot_t *slot, const struct abi_frame *f, const u_char *data);
static const char *ngx_http_moe_event_delta(ngx_http_moe_ctx_t *ctx,
    const u_char *data, size_t n);
static const char *ngx_http_moe_event_logprobs(const u_char *p,
    const u_char *end, ngx_uint_t n);
static void ngx_http_moe_event_failed(ngx_http_moe_ctx_t *ctx,
    const struct abi_error *e, const u_char *text);


/* NULL, or what is wrong with the frame. */

const char *
ngx_http_moe_event(ngx_http_moe_channel_t *ch, const struct abi_frame *f,
    const u_char *data)
{
    uint32_t              n_cells;
    const char           *reason;
    struct abi_start      start;
    struct abi_finish     finish;
    ngx_http_moe_ctx_t   *ctx;
    ngx_http_moe_slot_t  *slot;

    if (f->slot >= ch->engine->streams || f->gen == 0 || f->gen > ch->gen
        || f->flags != 0)
    {
        return "frame for a slot that was never used";
    }

    slot = &ch->slots[f->slot];

    if (slot->gen != f->gen || slot->state < NGX_HTTP_MOE_SLOT_SENDING) {
        ch->link->n_late++;
        ngx_http_moe_metrics_add(ch->engine, n_late, 1);
        return NULL;
    }

    if (f->type == ABI_DONE || f->type == ABI_ERROR
        || f->type == ABI_CANCELLED)
    {
        return ngx_http_moe_event_terminal(ch, slot, f, data);
    }

    n_cells = ring_cells(f->n_bytes);

    if (n_cells > slot->window) {
        return "more events than the window has room for";
    }

    slot->window -= n_cells;

    if (f->type == ABI_START) {
        ngx_http_moe_slot_started(ch, slot);
    }

    ctx = slot->ctx;

    if (ctx == NULL) {
        return NULL;
    }

    reason = NULL;

    switch (f->type) {

    case ABI_START:
        if (f->n_bytes != sizeof(struct abi_start)) {
            return "START of a wrong length";
        }

        ngx_memcpy(&start, data, sizeof(struct abi_start));
        ngx_http_moe_stream_start(ctx, &start);
        break;

    case ABI_DELTA:
        reason = ngx_http_moe_event_delta(ctx, data, f->n_bytes);
        break;

    case ABI_PROMPT:
        if (!(ctx->params.abi.flags & ABI_FLAG_PROMPT_LOGPROBS)) {
            return "PROMPT that was not asked for";
        }

        reason = ngx_http_moe_event_logprobs(data, data + f->n_bytes, 1);

        if (reason == NULL) {
            ngx_http_moe_stream_prompt(ctx, data);
        }

        break;

    case ABI_FINISH:
        if (f->n_bytes != sizeof(struct abi_finish)) {
            return "FINISH of a wrong length";
        }

        ngx_memcpy(&finish, data, sizeof(struct abi_finish));

        if (ctx->resumed && finish.choice < ctx->params.abi.n_choices
            && ctx->choices[finish.choice].reason == finish.reason)
        {
            /* The engine before has said so too. */
            break;
        }

        if (finish.choice >= ctx->params.abi.n_choices
            || ctx->choices[finish.choice].reason
            || (finish.reason != ABI_STOP && finish.reason != ABI_LENGTH))
        {
            return "FINISH of a wrong choice, or for a wrong reason";
        }

        ngx_http_moe_stream_finish(ctx, finish.choice, finish.reason);
        break;

    default:
        return "frame of an unknown type";
    }

    if (reason == NULL) {
        ctx->n_cells += n_cells;
        ngx_http_moe_slot_touch(ctx);
    }

    return reason;
}


static const char *
ngx_http_moe_event_terminal(ngx_http_moe_channel_t *ch,
    ngx_http_moe_slot_t *slot, const struct abi_frame *f, const u_char *data)
{
    size_t               n;
    ngx_uint_t           i;
    struct abi_error     e;
    struct abi_usage     usage;
    ngx_http_moe_ctx_t  *ctx;

    ctx = slot->ctx;
    ngx_memzero(&e, sizeof(struct abi_error));

    if (f->type == ABI_ERROR) {

        if (f->n_bytes < sizeof(struct abi_error)) {
            return "ERROR of a wrong length";
        }

        ngx_memcpy(&e, data, sizeof(struct abi_error));
        n = sizeof(struct abi_error) + (size_t) e.n_text + e.n_param;

        if (f->n_bytes < n || f->n_bytes > ngx_http_moe_pad4(n) + 4) {
            return "ERROR of a wrong length";
        }

        usage = e.usage;
        ch->link->n_error++;

    } else {

        if (f->n_bytes != sizeof(struct abi_usage)) {
            return "DONE or CANCELLED of a wrong length";
        }

        ngx_memcpy(&usage, data, sizeof(struct abi_usage));

        if (f->type == ABI_DONE) {

            for (i = 0; ctx && i < ctx->params.abi.n_choices; i++) {
                if (ctx->choices[i].reason == 0) {
                    return "DONE before all choices are finished";
                }
            }

            ch->link->n_done++;

        } else {
            ch->link->n_cancelled++;
        }
    }

    ch->link->n_open--;
    ngx_http_moe_slot_free(ch, slot);

    if (ctx == NULL) {
        return NULL;
    }

    ctx->slot = NULL;

    if (ctx->in_queue) {
        ctx->in_queue = 0;
        ngx_queue_remove(&ctx->queue);
    }

    if (f->type == ABI_DONE) {
        ngx_http_moe_stream_done(ctx, &usage);

    } else if (f->type == ABI_CANCELLED) {
        ngx_http_moe_resume_lost(ctx, "The engine cancelled the request.");
        return NULL;

    } else if (e.code == ABI_E_UNAVAILABLE && ctx->start
               && ctx->engine->resume_timeout)
    {
        ngx_http_moe_resume_lost(ctx, "The engine was shut down. Please "
                                      "retry shortly.");
        return NULL;

    } else if ((e.code == ABI_E_UNAVAILABLE || e.code == ABI_E_BUSY)
               && (ngx_http_moe_resume_elsewhere(ctx, ch) == NGX_OK
                   || ngx_http_moe_resume_successor(ctx, ch) == NGX_OK))
    {
        return NULL;

    } else {
        ngx_http_moe_event_failed(ctx, &e, data + sizeof(struct abi_error));
        ngx_http_moe_stream_error(ctx);
    }

    ngx_http_moe_slot_touch(ctx);

    return NULL;
}


static void
ngx_http_moe_event_failed(ngx_http_moe_ctx_t *ctx, const struct abi_error *e,
    const u_char *text)
{
    size_t       n;
    ngx_str_t    message;
    ngx_uint_t   status, retry;
    const char  *code;
    u_char       param[128];

    retry = e->retry_after_s;

    switch (e->code) {

    case ABI_E_INVALID:
        status = NGX_HTTP_BAD_REQUEST;
        code = "invalid_value";
        retry = 0;
        break;

    case ABI_E_CONTEXT:
        status = NGX_HTTP_BAD_REQUEST;
        code = "context_length_exceeded";
        retry = 0;
        break;

    case ABI_E_BUSY:
        status = NGX_HTTP_TOO_MANY_REQUESTS;
        code = "engine_overloaded";
        retry = retry ? retry : 1;
        break;

    case ABI_E_UNAVAILABLE:
        status = NGX_HTTP_SERVICE_UNAVAILABLE;
        code = "engine_unavailable";
        retry = retry ? retry : 2;
        break;

    case ABI_E_DEADLINE:
        status = NGX_HTTP_GATEWAY_TIME_OUT;
        code = "deadline_exceeded";
        retry = 0;
        break;

    default:
        status = NGX_HTTP_INTERNAL_SERVER_ERROR;
        code = "internal_error";
        retry = 0;
    }

    message.data = (u_char *) text;
    message.len = e->n_text;

    n = ngx_min(e->n_param, sizeof(param) - 1);
    ngx_memcpy(param, text + e->n_text, n);
    param[n] = '\0';

    (void) ngx_http_moe_error(ctx, status, code, n ? (char *) param : NULL,
                              "%V", &message);
    ctx->error.retry_after = ngx_min(retry, 3600);
}


/* DELTA: see abi.h; the lengths must add up to the payload's exactly. */

static const char *
ngx_http_moe_event_delta(ngx_http_moe_ctx_t *ctx, const u_char *data, size_t n)
{
    size_t                at;
    const char           *reason;
    struct abi_delta      d;
    ngx_http_moe_delta_t  delta;

    if (n < sizeof(struct abi_delta)) {
        return "DELTA of a wrong length";
    }

    ngx_memcpy(&d, data, sizeof(struct abi_delta));

    if (d.choice >= ctx->params.abi.n_choices
        || ctx->choices[d.choice].reason
        || d.channel > ABI_REASONING)
    {
        return "DELTA of a wrong choice or channel";
    }

    at = sizeof(struct abi_delta) + (size_t) d.n_tok * sizeof(uint32_t);

    if (at + ngx_http_moe_pad4(d.n_text) > n) {
        return "DELTA of a wrong length";
    }

    delta.choice = d.choice;
    delta.channel = d.channel;
    delta.n_tok = d.n_tok;
    delta.ids = data + sizeof(struct abi_delta);
    delta.text.data = (u_char *) data + at;
    delta.text.len = d.n_text;

    at += ngx_http_moe_pad4(d.n_text);

    delta.logprobs = data + at;
    delta.n_logprobs = d.n_logprobs;

    reason = ngx_http_moe_event_logprobs(data + at, data + n, d.n_logprobs);

    if (reason) {
        return reason;
    }

    ngx_http_moe_stream_delta(ctx, &delta);

    return NULL;
}


static const char *
ngx_http_moe_event_logprobs(const u_char *p, const u_char *end, ngx_uint_t n)
{
    size_t              len;
    ngx_uint_t          n_top;
    struct abi_logprob  lp;

    /* Tokens left at this level, and alternatives left of the current one. */

    n_top = 0;

    while (n || n_top) {

        if ((size_t) (end - p) < sizeof(struct abi_logprob)) {
            return "logprobs of a wrong length";
        }

        ngx_memcpy(&lp, p, sizeof(struct abi_logprob));
        len = sizeof(struct abi_logprob) + ngx_http_moe_pad4(lp.n_text);

        if ((size_t) (end - p) < len
            || lp.n_top > (n_top ? 0 : ABI_TOP_LOGPROBS_MAX))
        {
            return "logprobs of a wrong length";
        }

        p += len;

        if (n_top) {
            n_top--;

        } else {
            n--;
            n_top = lp.n_top;
        }
    }

    return (p == end) ? NULL : "DELTA of a wrong length";
}


/* Takes the next one; that it is there has been checked. */

void
ngx_http_moe_event_logprob(const u_char **p, ngx_http_moe_logprob_t *lp)
{
    struct abi_logprob  abi;

    ngx_memcpy(&abi, *p, sizeof(struct abi_logprob));

    lp->id = abi.token;
    lp->rank = abi.rank;
    lp->logprob = abi.logprob;
    lp->n_top = abi.n_top;
    lp->token.data = (u_char *) *p + sizeof(struct abi_logprob);
    lp->token.len = abi.n_text;

    *p += sizeof(struct abi_logprob) + ngx_http_moe_pad4(abi.n_text);
}
