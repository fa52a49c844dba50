/*
 * ngx_http_moe_output.c - from text to bytes that the client has read.
 *
 * In: what the events of one drain have left in ctx->out.  Out: the header,
 * server-sent events or one JSON object through NGINX's filters, credits for
 * what has left, and a client that does not read noticed.
 *
 * Must not know events or frames.
 */

#include "ngx_http_moe_module.h"

#include <netinet/tcp.h>


static ngx_uint_t ngx_http_moe_output_failed(ngx_http_moe_ctx_t *ctx);
static ngx_int_t ngx_http_moe_output_header(ngx_http_moe_ctx_t *ctx);
static void ngx_http_moe_output_user_timeout(ngx_connection_t *c,
    ngx_msec_t timeout);
static ngx_int_t ngx_http_moe_output_chain(ngx_http_moe_ctx_t *ctx,
    ngx_chain_t **out);
static void ngx_http_moe_output_text(ngx_http_moe_ctx_t *ctx);
static void ngx_http_moe_output_send(ngx_http_moe_ctx_t *ctx,
    ngx_chain_t *out);
static void ngx_http_moe_output_whole(ngx_http_moe_ctx_t *ctx);
static void ngx_http_moe_output_sent(ngx_http_moe_ctx_t *ctx);


/*
 * Sends what the events of one drain have left in ctx->out, and finalises the
 * request if it has ended.  The context may be gone when this returns.
 */

void
ngx_http_moe_output_flush(ngx_http_moe_ctx_t *ctx)
{
    ngx_int_t            rc;
    ngx_http_request_t  *r;

    if (ctx->closed) {
        return;
    }

    r = ctx->request;

    if (ngx_http_moe_output_failed(ctx)) {
        ngx_http_moe_stream_finalize(ctx, ctx->header_sent ? NGX_ERROR
                                          : NGX_HTTP_INTERNAL_SERVER_ERROR);
        return;
    }

    if (ctx->end == NGX_HTTP_MOE_ERROR && !ctx->header_sent) {
        ngx_http_moe_stream_finalize(ctx, (ngx_int_t) ctx->error.status);
        return;
    }

    if (!ctx->params.stream) {

        if (ctx->end == NGX_HTTP_MOE_DONE) {
            ngx_http_moe_output_whole(ctx);

        } else {
            ngx_http_moe_output_sent(ctx);
        }

        return;
    }

    if (!ctx->header_sent) {

        if (ngx_http_moe_output_hold(ctx)) {
            ngx_http_moe_output_sent(ctx);
            return;
        }

        rc = ngx_http_moe_output_header(ctx);

        if (rc != NGX_OK || r->header_only) {
            ngx_http_moe_stream_finalize(ctx, rc);
            return;
        }
    }

    if (ctx->journal
        && ngx_http_moe_journal_add(ctx->journal, &ctx->out) != NGX_OK)
    {
        ngx_http_moe_stream_finalize(ctx, NGX_ERROR);
        return;
    }

    if (ctx->unseen) {
        ngx_http_moe_leave_unseen(ctx);
        return;
    }

    ngx_http_moe_output_text(ctx);
}


/* Nothing is to be said yet, and until the header has gone error_page or
 * another engine may still take the request. */

ngx_uint_t
ngx_http_moe_output_hold(ngx_http_moe_ctx_t *ctx)
{
    return ctx->end == NGX_HTTP_MOE_NO_END
           && ngx_http_moe_text_len(&ctx->out) == 0
           && ngx_current_msec - ctx->submitted < ctx->header_delay;
}


static ngx_uint_t
ngx_http_moe_output_failed(ngx_http_moe_ctx_t *ctx)
{
    ngx_uint_t              i, failed;
    ngx_http_moe_choice_t  *choice;

    failed = ctx->out.failed | ctx->prompt.failed;

    for (i = 0; i < ctx->params.abi.n_choices; i++) {
        choice = &ctx->choices[i];
        failed |= choice->content.failed | choice->reasoning.failed
                  | choice->logprobs.failed | choice->values.failed
                  | choice->tops.failed | choice->offsets.failed
                  | choice->ids.failed;
    }

    return failed;
}


static ngx_int_t
ngx_http_moe_output_header(ngx_http_moe_ctx_t *ctx)
{
    ngx_int_t  rc;

    ctx->header_sent = 1;

    rc = ngx_http_moe_output_open(ctx->request);

    /* From now on there are pings. */

    if (rc == NGX_OK) {
        ngx_http_moe_timeout_arm(ctx);
    }

    return rc;
}


/* The header of a stream of events. */

ngx_int_t
ngx_http_moe_output_open(ngx_http_request_t *r)
{
    ngx_int_t                  rc;
    ngx_connection_t          *c;
    ngx_http_core_loc_conf_t  *clcf;

    c = r->connection;

    r->headers_out.status = NGX_HTTP_OK;
    ngx_str_set(&r->headers_out.content_type, "text/event-stream");
    r->headers_out.content_type_len = r->headers_out.content_type.len;
    r->headers_out.content_type_lowcase = NULL;
    ngx_http_clear_content_length(r);

    /* The last one is for proxies before us: NGINX is one that obeys it. */

    if (ngx_http_moe_header_lit(r, "Cache-Control", "no-cache, no-transform")
        != NGX_OK
        || ngx_http_moe_header_lit(r, "X-Accel-Buffering", "no") != NGX_OK)
    {
        return NGX_ERROR;
    }

    rc = ngx_http_send_header(r);

    if (rc == NGX_ERROR || rc > NGX_OK) {
        return rc;
    }

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

    /* On the first request of a connection nobody else does. */

    if (clcf->tcp_nodelay && ngx_tcp_nodelay(c) != NGX_OK) {
        return NGX_ERROR;
    }

    ngx_http_moe_output_user_timeout(c, clcf->send_timeout);

    return NGX_OK;
}


/*
 * A client that vanished without a word leaves its socket's buffer to fill,
 * which takes minutes at a few hundred bytes a token, and send_timeout begins
 * only then: the kernel is to notice that nothing is acknowledged.  Where it
 * cannot be set the stream is no worse off.
 */

static void
ngx_http_moe_output_user_timeout(ngx_connection_t *c, ngx_msec_t timeout)
{
    unsigned int  ms;

    if (c->sockaddr == NULL || c->sockaddr->sa_family == AF_UNIX
        || c->type != SOCK_STREAM)
    {
        return;
    }

    ms = (unsigned int) timeout;

    if (setsockopt(c->fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &ms, sizeof(ms))
        == -1)
    {
        ngx_log_error(NGX_LOG_INFO, c->log, ngx_socket_errno,
                      "setsockopt(TCP_USER_TIMEOUT) failed");
    }
}


/* A chain of one buffer: the text so far, or the bare wish to flush.  The
 * memory of a buffer that came back takes the text to come. */

static ngx_int_t
ngx_http_moe_output_chain(ngx_http_moe_ctx_t *ctx, ngx_chain_t **out)
{
    u_char               *start, *end;
    ngx_buf_t            *b;
    ngx_chain_t          *cl;
    ngx_http_request_t   *r;
    ngx_http_moe_text_t  *text;

    r = ctx->request;
    text = &ctx->out;

    cl = ngx_chain_get_free_buf(r->pool, &ctx->free);
    if (cl == NULL) {
        return NGX_ERROR;
    }

    b = cl->buf;
    start = b->start;
    end = b->end;

    ngx_memzero(b, sizeof(ngx_buf_t));

    b->tag = (ngx_buf_tag_t) &ngx_http_moe_module;
    b->flush = 1;

    if (text->last != text->start) {
        b->start = text->start;
        b->pos = text->start;
        b->last = text->last;
        b->end = text->end;
        b->temporary = 1;

        text->start = start;
        text->last = start;
        text->end = end;

    } else {
        b->start = start;
        b->pos = start;
        b->last = start;
        b->end = end;
    }

    if (ctx->end != NGX_HTTP_MOE_NO_END) {
        b->last_buf = (r == r->main) ? 1 : 0;
        b->last_in_chain = 1;
    }

    *out = cl;

    return NGX_OK;
}


/* Sends ctx->out. */

static void
ngx_http_moe_output_text(ngx_http_moe_ctx_t *ctx)
{
    ngx_chain_t  *out;

    if (ngx_http_moe_output_chain(ctx, &out) != NGX_OK) {
        ngx_http_moe_stream_finalize(ctx, NGX_ERROR);
        return;
    }

    ngx_http_moe_output_send(ctx, out);
}


static void
ngx_http_moe_output_send(ngx_http_moe_ctx_t *ctx, ngx_chain_t *out)
{
    ngx_int_t            rc;
    ngx_connection_t    *c;
    ngx_http_request_t  *r;

    r = ctx->request;
    c = r->connection;
    rc = NGX_OK;

    if (out || ctx->busy || r->buffered || c->buffered || r->postponed) {

        if (out) {
            ctx->last_byte = ngx_current_msec;
        }

        rc = ngx_http_output_filter(r, out);

        ngx_chain_update_chains(r->pool, &ctx->free, &ctx->busy, &out,
                                (ngx_buf_tag_t) &ngx_http_moe_module);
    }

    if (rc == NGX_ERROR || c->error) {
        if (ngx_http_moe_leave(ctx) != NGX_OK) {
            ngx_http_moe_stream_finalize(ctx, NGX_ERROR);
        }

        return;
    }

    if (ctx->busy == NULL && !(r->buffered || c->buffered || r->postponed)) {
        ngx_http_moe_output_sent(ctx);
    }

    if (ctx->end != NGX_HTTP_MOE_NO_END) {
        ngx_http_moe_stream_finalize(ctx, rc);
        return;
    }

    if (ngx_http_moe_output_wait(r) != NGX_OK) {
        ngx_http_moe_stream_finalize(ctx, NGX_ERROR);
    }
}


/* A client that does not read has send_timeout, from when it stopped and not
 * from our last try; and we are to hear when it goes on. */

ngx_int_t
ngx_http_moe_output_wait(ngx_http_request_t *r)
{
    ngx_event_t               *wev;
    ngx_connection_t          *c;
    ngx_http_core_loc_conf_t  *clcf;

    c = r->connection;
    wev = c->write;
    clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

    if (!c->buffered) {
        if (wev->timer_set && !wev->delayed) {
            ngx_del_timer(wev);
        }

    } else if (!wev->timer_set) {
        ngx_add_timer(wev, clcf->send_timeout);
    }

    return ngx_handle_write_event(wev, clcf->send_lowat);
}


/* All that was made of the events so far has left. */

static void
ngx_http_moe_output_sent(ngx_http_moe_ctx_t *ctx)
{
    uint32_t  n_cells;

    n_cells = ctx->n_cells;

    ctx->n_cells = 0;
    ctx->n_delivered += ctx->n_tok_unsent;
    ctx->n_tok_unsent = 0;

    if (ctx->journal) {
        ctx->journal->sent = ctx->journal->next - 1;
    }

    if (n_cells) {
        ngx_http_moe_slot_credit(ctx, n_cells);
    }
}


static void
ngx_http_moe_output_whole(ngx_http_moe_ctx_t *ctx)
{
    ngx_int_t            rc;
    ngx_http_request_t  *r;

    r = ctx->request;

    r->headers_out.status = NGX_HTTP_OK;
    ngx_str_set(&r->headers_out.content_type, "application/json");
    r->headers_out.content_type_len = r->headers_out.content_type.len;
    r->headers_out.content_type_lowcase = NULL;
    r->headers_out.content_length_n = (off_t) ngx_http_moe_text_len(&ctx->out);

    ctx->header_sent = 1;

    rc = ngx_http_send_header(r);

    if (rc == NGX_ERROR || rc > NGX_OK || r->header_only) {
        ngx_http_moe_stream_finalize(ctx, rc);
        return;
    }

    ngx_http_moe_output_text(ctx);
}


void
ngx_http_moe_output_write_handler(ngx_http_request_t *r)
{
    ngx_event_t         *wev;
    ngx_connection_t    *c;
    ngx_http_moe_ctx_t  *ctx;

    c = r->connection;
    wev = c->write;

    ctx = ngx_http_get_module_ctx(r, ngx_http_moe_module);

    if (wev->timedout) {
        ngx_log_error(NGX_LOG_INFO, c->log, NGX_ETIMEDOUT,
                      "client timed out");

        if (ngx_http_moe_leave(ctx) != NGX_OK) {
            c->timedout = 1;
            ngx_http_moe_stream_finalize(ctx, NGX_HTTP_REQUEST_TIME_OUT);
        }

        return;
    }

    if (!ctx->header_sent) {
        return;
    }

    if (wev->timer_set && !wev->delayed) {
        ngx_del_timer(wev);
    }

    ngx_http_moe_output_send(ctx, NULL);
}
