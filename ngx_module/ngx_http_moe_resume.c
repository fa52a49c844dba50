/*
 * ngx_http_moe_resume.c - a request outlives its engine.
 *
 * In: requests whose engine was lost or would not have them.  Out: the same
 * requests, with what each choice has been told already, at the next engine;
 * the client sees a pause.  Where that cannot be, an error.
 *
 * A request waits in the group's `pending` until an engine is there; its timer
 * bounds that.  One that loses engine after engine without a token in between
 * may be the reason, and is not given to another.
 *
 * Must not know frames or JSON.
 */

#include "ngx_http_moe_module.h"


#define NGX_HTTP_MOE_LOSSES_MAX  3


static ngx_uint_t ngx_http_moe_resume_can(ngx_http_moe_ctx_t *ctx);
static ngx_int_t ngx_http_moe_resume_payload(ngx_http_moe_ctx_t *ctx);


/* Its slot is gone: waits for another engine, or ends. */

void
ngx_http_moe_resume_lost(ngx_http_moe_ctx_t *ctx, const char *message)
{
    if (!ngx_http_moe_resume_can(ctx)) {
        (void) ngx_http_moe_unavailable(ctx, message);
        ngx_http_moe_stream_error(ctx);
        ngx_http_moe_slot_touch(ctx);
        return;
    }

    if (!ctx->lost) {
        ctx->lost = 1;
        ctx->lost_at = ngx_current_msec;
    }

    ctx->begun = 0;
    ctx->tried = 0;

    /* Their credit was the old engine's. */

    ctx->n_cells = 0;

    ctx->in_queue = 1;
    ngx_queue_insert_tail(&ctx->engine->pending, &ctx->queue);

    ngx_http_moe_timeout_arm(ctx);
}


static ngx_uint_t
ngx_http_moe_resume_can(ngx_http_moe_ctx_t *ctx)
{
    if (ctx->engine->resume_timeout == 0 || ctx->closed
        || ctx->end != NGX_HTTP_MOE_NO_END)
    {
        return 0;
    }

    if (ctx->begun && ++ctx->n_losses >= NGX_HTTP_MOE_LOSSES_MAX) {
        ngx_log_error(NGX_LOG_ERR, ctx->request->connection->log, 0,
                      "request %V has lost %ui engines without a token",
                      &ctx->id, ctx->n_losses);
        return 0;
    }

    return ngx_http_moe_resume_payload(ctx) == NGX_OK;
}


/* The request as it was, and behind it what its choices have: see abi.h. */

static ngx_int_t
ngx_http_moe_resume_payload(ngx_http_moe_ctx_t *ctx)
{
    size_t                  n;
    u_char                 *p, *payload;
    ngx_uint_t              i, some;
    struct abi_resume       resume;
    struct abi_request      rq;
    ngx_http_moe_choice_t  *choice;

    n = ctx->n_base;
    some = 0;

    ctx->n_prompt_again = ctx->n_prompt_told;

    for (i = 0; i < ctx->params.abi.n_choices; i++) {
        choice = &ctx->choices[i];
        n += sizeof(struct abi_resume) + ngx_http_moe_text_len(&choice->ids);
        some |= (choice->n_text || choice->reason
                 || ngx_http_moe_text_len(&choice->ids));
    }

    ctx->n_sent = 0;

    if (!some) {
        return NGX_OK;
    }

    if (n > ABI_REQUEST_MAX) {
        return NGX_ERROR;
    }

    payload = ngx_palloc(ctx->request->pool, n);
    if (payload == NULL) {
        return NGX_ERROR;
    }

    ngx_memcpy(&rq, ctx->payload, sizeof(struct abi_request));
    rq.n_bytes = (uint32_t) n;
    rq.n_resumes = rq.n_choices;

    p = ngx_cpymem(payload, ctx->payload, ctx->n_base);
    ngx_memcpy(payload, &rq, sizeof(struct abi_request));

    for (i = 0; i < ctx->params.abi.n_choices; i++) {
        choice = &ctx->choices[i];

        ngx_memzero(&resume, sizeof(struct abi_resume));
        resume.n_tok = (uint32_t) (ngx_http_moe_text_len(&choice->ids)
                                   / sizeof(uint32_t));
        resume.n_text = (uint32_t) choice->n_text;
        resume.reason = (uint32_t) choice->reason;

        p = ngx_cpymem(p, &resume, sizeof(struct abi_resume));
        p = ngx_cpymem(p, choice->ids.start,
                       ngx_http_moe_text_len(&choice->ids));
    }

    (void) ngx_pfree(ctx->request->pool, ctx->payload);

    ctx->payload = payload;
    ctx->n_payload = n;
    ctx->resumed = 1;

    return NGX_OK;
}


/* The engine has refused it before it began: another one may take it.  NGX_OK:
 * one has. */

ngx_int_t
ngx_http_moe_resume_elsewhere(ngx_http_moe_ctx_t *ctx,
    ngx_http_moe_channel_t *ch)
{
    ngx_http_moe_channel_t  *other;

    if (ctx->start || ctx->payload == NULL || ctx->closed) {
        return NGX_DECLINED;
    }

    ctx->tried |= (uint64_t) 1 << ch->link->index;
    ctx->n_sent = 0;

    if (ngx_http_moe_balance(ctx, &other) != NGX_OK) {
        return NGX_DECLINED;
    }

    return (ngx_http_moe_slot_submit(other, ctx) == NGX_OK) ? NGX_OK
                                                            : NGX_DECLINED;
}


/*
 * The engine has begun to drain while the request was on its way: it is as if
 * it had never been sent.  NGX_OK: it waits for who listens at that socket now,
 * which is found out at once.
 */

ngx_int_t
ngx_http_moe_resume_successor(ngx_http_moe_ctx_t *ctx,
    ngx_http_moe_channel_t *ch)
{
    if (ctx->start || ctx->payload == NULL || ctx->closed
        || ring_word_get(&ch->peer.page->state) == ABI_STATE_READY)
    {
        return NGX_DECLINED;
    }

    if (!ch->retired) {
        ngx_http_moe_channel_retire(ch);
    }

    ctx->tried &= ~((uint64_t) 1 << ch->link->index);
    ctx->n_sent = 0;
    ctx->in_queue = 1;
    ngx_queue_insert_tail(&ctx->engine->pending, &ctx->queue);

    return NGX_OK;
}


/* Something has changed: all that wait ask again. */

void
ngx_http_moe_resume_pending(ngx_http_moe_engine_t *engine)
{
    ngx_int_t            rc;
    ngx_queue_t          waiting, *q;
    ngx_http_moe_ctx_t  *ctx;

    if (ngx_queue_empty(&engine->pending)) {
        return;
    }

    ngx_queue_init(&waiting);
    ngx_queue_add(&waiting, &engine->pending);
    ngx_queue_init(&engine->pending);

    while (!ngx_queue_empty(&waiting)) {

        q = ngx_queue_head(&waiting);
        ngx_queue_remove(q);

        ctx = ngx_queue_data(q, ngx_http_moe_ctx_t, queue);
        ctx->in_queue = 0;

        rc = ngx_http_moe_admit(ctx);

        if (rc != NGX_OK) {
            ctx->error.status = (ngx_uint_t) rc;
            ngx_http_moe_stream_error(ctx);
            ngx_http_moe_slot_touch(ctx);
        }
    }

    ngx_http_moe_slot_flush(engine);
}
