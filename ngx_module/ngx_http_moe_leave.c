/*
 * ngx_http_moe_leave.c - a client leaves its stream, and the stream goes on.
 *
 * In: the end of a client's connection, seen or guessed.  Out: a request that
 * stays, charged and counted as before, whose events go into the journal only
 * (unseen), until it ends, or nobody has come back in time.
 *
 * Its connection stays open on our side, for NGINX has no request without one;
 * nothing is read from it or written to it any more.
 *
 * Must not know frames or JSON.
 */

#include "ngx_http_moe_module.h"


static ngx_uint_t ngx_http_moe_leave_seen(ngx_http_request_t *r);


void
ngx_http_moe_leave_handler(ngx_http_request_t *r)
{
    ngx_http_moe_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_moe_module);

    if (ctx->journal && ngx_http_moe_leave_seen(r)
        && ngx_http_moe_leave(ctx) == NGX_OK)
    {
        return;
    }

    ngx_http_test_reading(r);
}


/* As ngx_http_test_reading() would see it. */

static ngx_uint_t
ngx_http_moe_leave_seen(ngx_http_request_t *r)
{
    u_char             byte;
    ssize_t            n;
    ngx_connection_t  *c;

    c = r->connection;

    if (c->error || c->read->pending_eof) {
        return 1;
    }

    if (r->stream || c->type != SOCK_STREAM) {
        return 0;
    }

    n = recv(c->fd, &byte, 1, MSG_PEEK|MSG_DONTWAIT);

    return n == 0 || (n == -1 && ngx_socket_errno != NGX_EAGAIN);
}


/* The client has left; NGX_OK: the stream goes on, for it may come back. */

ngx_int_t
ngx_http_moe_leave(ngx_http_moe_ctx_t *ctx)
{
    ngx_event_t         *wev;
    ngx_http_request_t  *r;

    if (ctx->journal == NULL || !ctx->header_sent || ctx->closed
        || ctx->end != NGX_HTTP_MOE_NO_END)
    {
        return NGX_DECLINED;
    }

    r = ctx->request;
    wev = r->connection->write;

    ngx_log_error(NGX_LOG_INFO, r->connection->log, 0,
                  "client left the stream %V, which goes on", &ctx->id);

    r->read_event_handler = ngx_http_block_reading;
    r->write_event_handler = ngx_http_request_empty_handler;

    if (wev->timer_set) {
        ngx_del_timer(wev);
    }

    ctx->unseen = 1;
    ctx->left_at = ngx_current_msec;

    ngx_http_moe_timeout_arm(ctx);
    ngx_http_moe_leave_unseen(ctx);

    return NGX_OK;
}


/* What a stream without its client does in place of sending. */

void
ngx_http_moe_leave_unseen(ngx_http_moe_ctx_t *ctx)
{
    ngx_http_moe_journal_t  *j;

    j = ctx->journal;

    ctx->out.last = ctx->out.start;

    j->n_tok += ctx->n_tok_unsent;
    ctx->n_tok_unsent = 0;

    if (ctx->end != NGX_HTTP_MOE_NO_END) {
        ngx_http_moe_stream_finalize(ctx, NGX_ERROR);
        return;
    }

    ngx_http_moe_share_send(j);
    ngx_http_moe_leave_room(ctx);
}


/* The engine may go on as long as the journal has room. */

void
ngx_http_moe_leave_room(ngx_http_moe_ctx_t *ctx)
{
    uint32_t  n_cells;

    n_cells = ctx->n_cells;

    if (n_cells && !ngx_http_moe_journal_full(ctx->journal)) {
        ctx->n_cells = 0;
        ngx_http_moe_slot_credit(ctx, n_cells);
    }
}


/* The client has come back over another connection. */

void
ngx_http_moe_leave_replaced(ngx_http_moe_ctx_t *ctx)
{
    ngx_connection_t    *c;
    ngx_http_request_t  *r;

    r = ctx->request;
    c = r->connection;

    if (ctx->unseen || ngx_http_moe_leave(ctx) != NGX_OK) {
        return;
    }

    if (r->http_version < NGX_HTTP_VERSION_20) {
        (void) ngx_shutdown_socket(c->fd, NGX_WRITE_SHUTDOWN);
    }
}
