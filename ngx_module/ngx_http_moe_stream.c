/*
 * ngx_http_moe_stream.c - from typed events to text, and to the one end.
 *
 * In: events of one request, checked.  Out: in ctx->out the text that output.c
 * is to send, and exactly one finalisation.
 *
 * Must not know frames or sockets.
 */

#include "ngx_http_moe_module.h"


static void ngx_http_moe_stream_begin(ngx_http_moe_ctx_t *ctx);
static void ngx_http_moe_stream_head(ngx_http_moe_ctx_t *ctx,
    const char *object);
static ngx_uint_t ngx_http_moe_stream_large(ngx_http_moe_ctx_t *ctx,
    ngx_http_moe_choice_t *choice);
static void ngx_http_moe_stream_budget(ngx_http_moe_ctx_t *ctx);
static void ngx_http_moe_stream_event_id(ngx_http_moe_ctx_t *ctx);


ngx_int_t
ngx_http_moe_stream_init(ngx_http_moe_ctx_t *ctx)
{
    ngx_uint_t                i;
    ngx_pool_t               *pool;
    ngx_connection_t         *c;
    ngx_http_request_t       *r;
    ngx_http_moe_choice_t    *choice;
    ngx_http_moe_loc_conf_t  *mlcf;

    r = ctx->request;
    c = r->connection;
    pool = r->pool;

    ctx->prompt.pool = pool;

    ctx->choices = ngx_pcalloc(pool, ctx->params.abi.n_choices
                                     * sizeof(ngx_http_moe_choice_t));
    if (ctx->choices == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    for (i = 0; i < ctx->params.abi.n_choices; i++) {
        choice = &ctx->choices[i];
        choice->content.pool = pool;
        choice->reasoning.pool = pool;
        choice->logprobs.pool = pool;
        choice->values.pool = pool;
        choice->tops.pool = pool;
        choice->offsets.pool = pool;
        choice->ids.pool = pool;
    }

    mlcf = ngx_http_get_module_loc_conf(r, ngx_http_moe_module);

    ctx->submit = 1;
    ctx->header_delay = mlcf->header_delay;
    ctx->created = ngx_time();
    ctx->submitted = ngx_current_msec;
    ctx->last_event = ngx_current_msec;
    ctx->last_byte = ngx_current_msec;

    ctx->timer.handler = ngx_http_moe_timeout_handler;
    ctx->timer.data = ctx;
    ctx->timer.log = c->log;

    ngx_http_moe_timeout_arm(ctx);

    r->write_event_handler = ngx_http_moe_output_write_handler;

    if (r != r->main) {
        return NGX_OK;
    }

    return ngx_http_moe_stream_watch(r, ngx_http_moe_leave_handler);
}


/* To be told when the client leaves. */

ngx_int_t
ngx_http_moe_stream_watch(ngx_http_request_t *r,
    ngx_http_event_handler_pt handler)
{
    ngx_connection_t  *c;

    c = r->connection;

    r->read_event_handler = handler;

    if (r->stream) {
        return NGX_OK;
    }

    /* With a deferred accept the event may not be armed: look at once. */

    if (c->read->ready) {
        ngx_post_event(c->read, &ngx_posted_events);

    } else if (ngx_handle_read_event(c->read, 0) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    return NGX_OK;
}


/* START, or the first event at all. */

static void
ngx_http_moe_stream_begin(ngx_http_moe_ctx_t *ctx)
{
    size_t  len;

    if (ctx->start && !ctx->lost) {
        return;
    }

    ctx->begun = 1;
    ctx->started = ngx_current_msec;

    if (ctx->lost) {
        ctx->lost = 0;
        ctx->token = 0;
    }

    if (ctx->start) {
        ngx_http_moe_timeout_arm(ctx);
        return;
    }

    ctx->start = 1;

    ngx_http_moe_timeout_arm(ctx);

    if (!ctx->params.stream) {
        return;
    }

    /* What all chunks have in common is made once. */

    ngx_http_moe_text_lit(&ctx->out, "data: ");
    ngx_http_moe_stream_head(ctx, ctx->api->chunk);

    if (ctx->params.include_usage) {
        ngx_str_set(&ctx->suffix, "}],\"usage\":null}\n\n");

    } else {
        ngx_str_set(&ctx->suffix, "}]}\n\n");
    }

    len = ngx_http_moe_text_len(&ctx->out);

    ctx->prefix.data = ngx_pnalloc(ctx->request->pool, len);
    if (ctx->prefix.data == NULL) {
        ctx->out.failed = 1;
        return;
    }

    ngx_memcpy(ctx->prefix.data, ctx->out.start, len);
    ctx->prefix.len = len;
    ctx->out.last = ctx->out.start;
}


/* What an answer and each chunk of one begin with, up to the choices. */

static void
ngx_http_moe_stream_head(ngx_http_moe_ctx_t *ctx, const char *object)
{
    ngx_http_moe_text_t  *out;

    out = &ctx->out;

    ngx_http_moe_text_lit(out, "{\"id\":\"");
    ngx_http_moe_text_add(out, ctx->id.data, ctx->id.len);
    ngx_http_moe_text_lit(out, "\",\"object\":\"");
    ngx_http_moe_text_add(out, object, ngx_strlen(object));
    ngx_http_moe_text_lit(out, "\",\"created\":");
    ngx_http_moe_text_uint(out, (uint64_t) ctx->created);
    ngx_http_moe_text_lit(out, ",\"model\":\"");
    ngx_http_moe_text_json(out, ctx->model.data, ctx->model.len);
    ngx_http_moe_text_lit(out, "\",\"choices\":[");
}


void
ngx_http_moe_stream_start(ngx_http_moe_ctx_t *ctx,
    const struct abi_start *start)
{
    ngx_http_moe_stream_begin(ctx);

    ctx->last_event = ngx_current_msec;

    if (ctx->resumed) {
        return;
    }

    ctx->n_prompt = start->n_prompt_tok;
    ctx->n_cached = start->n_cached_tok;
    ctx->queue_us = start->queue_us;

    ngx_http_moe_metrics_add(ctx->engine, n_prompt, start->n_prompt_tok);
    ngx_http_moe_metrics_add(ctx->engine, n_cached, start->n_cached_tok);
    ngx_http_moe_metrics_observe(&ngx_http_moe_metrics_kind(ctx)->queued,
                                 start->queue_us / 1000);

    if (ngx_http_moe_limit_prompt(ctx) != NGX_OK) {
        ngx_http_moe_stream_error(ctx);
        ngx_http_moe_slot_leave(ctx);
    }
}


void
ngx_http_moe_stream_delta(ngx_http_moe_ctx_t *ctx,
    const ngx_http_moe_delta_t *delta)
{
    ngx_http_moe_choice_t  *choice;

    ngx_http_moe_stream_begin(ctx);

    if (delta->n_tok && ctx->token) {
        ngx_http_moe_metrics_observe(
            &ngx_http_moe_metrics_kind(ctx)->inter_token,
            ngx_current_msec - ctx->last_token);
    }

    if (delta->n_tok) {
        ctx->last_token = ngx_current_msec;
        ngx_http_moe_metrics_add(ctx->engine, n_output, delta->n_tok);
    }

    ctx->last_event = ngx_current_msec;

    if (delta->n_tok && !ctx->token) {
        ctx->token = 1;
        ctx->begun = 0;
        ctx->n_losses = 0;

        if (ctx->first_token == 0) {
            ctx->first_token = ngx_current_msec;
            ngx_http_moe_metrics_observe(
                &ngx_http_moe_metrics_kind(ctx)->first_token,
                ngx_current_msec - ctx->submitted);
        }

        ngx_http_moe_timeout_arm(ctx);
    }

    choice = &ctx->choices[delta->choice];

    if (ctx->engine->resume_timeout) {
        ngx_http_moe_text_add(&choice->ids, delta->ids,
                              delta->n_tok * sizeof(uint32_t));
        choice->n_text += delta->text.len;
    }

    ctx->n_output += delta->n_tok;
    ctx->n_tok_unsent += delta->n_tok;

    if (delta->channel == ABI_REASONING) {
        ctx->n_reasoning += delta->n_tok;
        ngx_http_moe_metrics_add(ctx->engine, n_reasoning, delta->n_tok);
    }

    ctx->api->delta(ctx, delta);

    if (ngx_http_moe_stream_large(ctx, choice)) {
        return;
    }

    if (ngx_http_moe_limit_tokens(ctx, delta->n_tok) != NGX_OK) {
        ngx_http_moe_stream_budget(ctx);
    }
}


/* More than a client can mean to get: the answer ends in an error. */

static ngx_uint_t
ngx_http_moe_stream_large(ngx_http_moe_ctx_t *ctx,
    ngx_http_moe_choice_t *choice)
{
    if (ngx_http_moe_text_len(&choice->content)
        + ngx_http_moe_text_len(&choice->reasoning)
        + ngx_http_moe_text_len(&choice->logprobs)
        + ngx_http_moe_text_len(&choice->tops)
        + ngx_http_moe_text_len(&ctx->prompt) <= NGX_HTTP_MOE_ANSWER_MAX)
    {
        return 0;
    }

    (void) ngx_http_moe_error(ctx, NGX_HTTP_INTERNAL_SERVER_ERROR,
                              "answer_too_large", NULL,
                              "The answer is too large.");
    ngx_http_moe_stream_error(ctx);
    ngx_http_moe_slot_leave(ctx);

    return 1;
}


/* PROMPT: the worth of one token of the prompt. */

void
ngx_http_moe_stream_prompt(ngx_http_moe_ctx_t *ctx, const u_char *logprobs)
{
    if (ctx->end != NGX_HTTP_MOE_NO_END) {
        return;
    }

    ngx_http_moe_prompt(ctx, logprobs);

    (void) ngx_http_moe_stream_large(ctx, &ctx->choices[0]);
}


/* The budget is used up: the answer ends here, as by max_tokens. */

static void
ngx_http_moe_stream_budget(ngx_http_moe_ctx_t *ctx)
{
    ngx_uint_t        i;
    struct abi_usage  usage;

    for (i = 0; i < ctx->params.abi.n_choices; i++) {
        if (ctx->choices[i].reason == 0) {
            ngx_http_moe_stream_finish(ctx, i, ABI_LENGTH);
        }
    }

    ngx_memzero(&usage, sizeof(struct abi_usage));
    usage.n_prompt_tok = (uint32_t) ctx->n_prompt;
    usage.n_cached_tok = (uint32_t) ctx->n_cached;
    usage.n_output_tok = (uint32_t) ctx->n_output;
    usage.n_reasoning_tok = (uint32_t) ctx->n_reasoning;
    usage.queue_us = ctx->queue_us;

    ctx->budget = 1;

    ngx_http_moe_stream_done(ctx, &usage);
    ngx_http_moe_slot_leave(ctx);
}


void
ngx_http_moe_stream_finish(ngx_http_moe_ctx_t *ctx, ngx_uint_t choice,
    ngx_uint_t reason)
{
    ngx_http_moe_stream_begin(ctx);

    ctx->last_event = ngx_current_msec;
    ctx->choices[choice].reason = reason;

    ctx->api->finish(ctx, choice);
}


void
ngx_http_moe_stream_done(ngx_http_moe_ctx_t *ctx,
    const struct abi_usage *usage)
{
    ngx_http_moe_stream_begin(ctx);

    ctx->n_prompt = usage->n_prompt_tok;
    ctx->n_cached = usage->n_cached_tok;
    ctx->n_output = usage->n_output_tok;
    ctx->n_reasoning = usage->n_reasoning_tok;
    ctx->queue_us = usage->queue_us;

    ctx->end = NGX_HTTP_MOE_DONE;

    if (!ctx->budget) {
        ngx_http_moe_metrics_phases(ctx, usage);
    }

    if (!ctx->params.stream) {
        ngx_http_moe_stream_head(ctx, ctx->api->object);
        ctx->api->whole(ctx);
        return;
    }

    if (ctx->params.include_usage) {
        ngx_http_moe_stream_event(ctx);
        ngx_http_moe_text_lit(&ctx->out, "],\"usage\":");
        ngx_http_moe_stream_usage(ctx);
        ngx_http_moe_text_lit(&ctx->out, "}\n\n");
    }

    ngx_http_moe_stream_event_id(ctx);
    ngx_http_moe_text_lit(&ctx->out, "data: [DONE]\n\n");
}


/* What every event of a dialect begins with. */

void
ngx_http_moe_stream_event(ngx_http_moe_ctx_t *ctx)
{
    ngx_http_moe_stream_event_id(ctx);
    ngx_http_moe_text_add(&ctx->out, ctx->prefix.data, ctx->prefix.len);
}


static void
ngx_http_moe_stream_event_id(ngx_http_moe_ctx_t *ctx)
{
    if (ctx->journal) {
        ngx_http_moe_text_lit(&ctx->out, "id: ");
        ngx_http_moe_text_uint(&ctx->out, ++ctx->n_events);
        ngx_http_moe_text_lit(&ctx->out, "\n");
    }
}


/* Ends the request with ctx->error: as an event if the header has gone. */

void
ngx_http_moe_stream_error(ngx_http_moe_ctx_t *ctx)
{
    if (ctx->end != NGX_HTTP_MOE_NO_END) {
        return;
    }

    ctx->end = NGX_HTTP_MOE_ERROR;

    if (ctx->header_sent) {
        ngx_http_moe_stream_event_id(ctx);
        ngx_http_moe_text_lit(&ctx->out, "data: ");
        ngx_http_moe_error_json(&ctx->out, &ctx->error);
        ngx_http_moe_text_lit(&ctx->out, "\n\n");
        ngx_http_moe_stream_event_id(ctx);
        ngx_http_moe_text_lit(&ctx->out, "data: [DONE]\n\n");
    }
}


void
ngx_http_moe_stream_usage(ngx_http_moe_ctx_t *ctx)
{
    ngx_http_moe_text_t  *out;

    out = &ctx->out;

    ngx_http_moe_text_lit(out, "{\"prompt_tokens\":");
    ngx_http_moe_text_uint(out, ctx->n_prompt);
    ngx_http_moe_text_lit(out, ",\"completion_tokens\":");
    ngx_http_moe_text_uint(out, ctx->n_output);
    ngx_http_moe_text_lit(out, ",\"total_tokens\":");
    ngx_http_moe_text_uint(out, ctx->n_prompt + ctx->n_output);
    ngx_http_moe_text_lit(out, ",\"prompt_tokens_details\":"
                               "{\"cached_tokens\":");
    ngx_http_moe_text_uint(out, ctx->n_cached);

    /* The same as DeepSeek's clients look for it. */

    ngx_http_moe_text_lit(out, "},\"prompt_cache_hit_tokens\":");
    ngx_http_moe_text_uint(out, ctx->n_cached);
    ngx_http_moe_text_lit(out, ",\"prompt_cache_miss_tokens\":");
    ngx_http_moe_text_uint(out, ctx->n_prompt
                                - ngx_min(ctx->n_cached, ctx->n_prompt));
    ngx_http_moe_text_lit(out, ",\"completion_tokens_details\":"
                               "{\"reasoning_tokens\":");
    ngx_http_moe_text_uint(out, ctx->n_reasoning);
    ngx_http_moe_text_lit(out, "}}");
}


void
ngx_http_moe_stream_finalize(ngx_http_moe_ctx_t *ctx, ngx_int_t rc)
{
    ngx_http_request_t  *r;

    r = ctx->request;

    ngx_http_moe_stream_close(ctx);

    r->read_event_handler = ngx_http_block_reading;
    r->write_event_handler = ngx_http_request_empty_handler;

    ngx_http_finalize_request(r, rc);
}


/* The end of the context's part, also when the client ends it; idempotent. */

void
ngx_http_moe_stream_close(ngx_http_moe_ctx_t *ctx)
{
    if (ctx->closed) {
        return;
    }

    ctx->closed = 1;

    if (ctx->submit) {
        ngx_http_moe_metrics_end(ctx);
    }

    if (ctx->timer.timer_set) {
        ngx_del_timer(&ctx->timer);
    }

    if (ctx->in_touched) {
        ctx->in_touched = 0;
        ngx_queue_remove(&ctx->touch);
    }

    ngx_http_moe_slot_leave(ctx);
    ngx_http_moe_journal_close(ctx);
}
