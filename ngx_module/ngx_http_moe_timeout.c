/*
 * ngx_http_moe_timeout.c - the one timer that a request has from its first
 * moment to its last.
 *
 * In: the limits of the engine, and when what has happened last.  Out: an
 * error when one has passed; pings while nothing is said.  And since a worker
 * that shuts down waits for timers, not for connections, this is what a stream
 * survives a reload by.
 *
 * Must not know frames or sockets.
 */

#include "ngx_http_moe_module.h"


static ngx_msec_int_t ngx_http_moe_timeout_left(ngx_http_moe_ctx_t *ctx,
    const char **what);
static ngx_uint_t ngx_http_moe_timeout_ping(ngx_http_moe_ctx_t *ctx);
static void ngx_http_moe_timeout_ping_unseen(ngx_http_moe_ctx_t *ctx);
static void ngx_http_moe_timeout_expired(ngx_http_moe_ctx_t *ctx,
    const char *what);


/* What is left of the tightest limit, and its name; <= 0: it has passed. */

static ngx_msec_int_t
ngx_http_moe_timeout_left(ngx_http_moe_ctx_t *ctx, const char **what)
{
    ngx_msec_t              now;
    ngx_msec_int_t          left, whole;
    ngx_http_moe_engine_t  *engine;

    now = ngx_current_msec;
    engine = ctx->engine;

    if (!ctx->start) {
        *what = "queue_timeout";
        left = (ngx_msec_int_t) (ctx->submitted + engine->queue_timeout - now);

    } else if (!ctx->token) {
        *what = "first_token_timeout";
        left = (ngx_msec_int_t) (ctx->started + engine->first_token_timeout
                                 - now);

    } else if (ctx->unseen ? ngx_http_moe_journal_full(ctx->journal)
                           : ctx->busy != NULL)
    {
        /* It is the client that is slow: send_timeout is its limit. */

        *what = "token_timeout";
        left = (ngx_msec_int_t) engine->token_timeout;

    } else {
        *what = "token_timeout";
        left = (ngx_msec_int_t) (ctx->last_event + engine->token_timeout
                                 - now);
    }

    if (ctx->lost) {

        if (ctx->start) {
            left = (ngx_msec_int_t) engine->resume_timeout;
        }

        whole = (ngx_msec_int_t) (ctx->lost_at + engine->resume_timeout
                                  - now);

        if (whole <= left) {
            *what = "resume_timeout";
            left = whole;
        }
    }

    if (ctx->unseen && ctx->journal->view == NULL) {
        whole = (ngx_msec_int_t) (ctx->left_at + ctx->journal->timeout - now);

        if (whole < left) {
            *what = "moe_resume";
            left = whole;
        }
    }

    if (engine->request_timeout) {
        whole = (ngx_msec_int_t) (ctx->submitted + engine->request_timeout
                                  - now);

        if (whole < left) {
            *what = "request_timeout";
            left = whole;
        }
    }

    return left;
}


/* Sets the timer for what is due first.  It is not moved by each token: limits
 * only recede, so a timer that fires early finds that out and is set again. */

void
ngx_http_moe_timeout_arm(ngx_http_moe_ctx_t *ctx)
{
    const char      *what;
    ngx_msec_t       ping;
    ngx_msec_int_t   left, quiet;

    left = ngx_http_moe_timeout_left(ctx, &what);
    ping = ctx->engine->ping;

    if (ctx->params.stream && !ctx->header_sent) {
        quiet = (ngx_msec_int_t) (ctx->submitted + ctx->header_delay
                                  - ngx_current_msec);
        left = ngx_min(left, quiet);

    } else if (ping && ctx->params.stream) {
        quiet = (ngx_msec_int_t) (ctx->last_byte + ping - ngx_current_msec);

        if (quiet <= 0) {
            quiet = (ngx_msec_int_t) ping;
        }

        left = ngx_min(left, quiet);
    }

    ngx_add_timer(&ctx->timer, (ngx_msec_t) ngx_max(left, 1));
}


void
ngx_http_moe_timeout_handler(ngx_event_t *ev)
{
    const char          *what;
    ngx_connection_t    *c;
    ngx_http_request_t  *r;
    ngx_http_moe_ctx_t  *ctx;

    ctx = ev->data;
    r = ctx->request;
    c = r->connection;

    ngx_http_set_log_request(c->log, r);

    if (ngx_http_moe_timeout_left(ctx, &what) <= 0) {
        ngx_http_moe_timeout_expired(ctx, what);
        ngx_http_run_posted_requests(c);
        return;
    }

    ngx_http_moe_timeout_arm(ctx);

    if (ngx_http_moe_timeout_ping(ctx)) {
        ngx_http_moe_text_lit(&ctx->out, ": ping\n\n");
        ngx_http_moe_output_flush(ctx);
        ngx_http_run_posted_requests(c);
    }
}


/* Whether the client has heard nothing for so long that it should be told that
 * somebody is there; the first time that commits the header. */

static ngx_uint_t
ngx_http_moe_timeout_ping(ngx_http_moe_ctx_t *ctx)
{
    ngx_msec_t  ping;

    if (!ctx->params.stream) {
        return 0;
    }

    if (ctx->unseen) {
        ngx_http_moe_timeout_ping_unseen(ctx);
        return 0;
    }

    if (!ctx->header_sent) {
        return !ngx_http_moe_output_hold(ctx);
    }

    ping = ctx->engine->ping;

    return ping && ctx->busy == NULL && !ctx->request->connection->buffered
           && (ngx_msec_int_t) (ngx_current_msec - ctx->last_byte - ping) >= 0;
}


/* Whoever reads the stream instead is pinged as well. */

static void
ngx_http_moe_timeout_ping_unseen(ngx_http_moe_ctx_t *ctx)
{
    ngx_msec_t  ping;

    ping = ctx->engine->ping;

    if (ping && (ngx_msec_int_t) (ngx_current_msec - ctx->last_byte - ping)
                >= 0)
    {
        ngx_http_moe_share_ping(ctx->journal);
    }
}


static void
ngx_http_moe_timeout_expired(ngx_http_moe_ctx_t *ctx, const char *what)
{
    ngx_uint_t  status;

    if (ngx_strcmp(what, "moe_resume") == 0) {
        ngx_log_error(NGX_LOG_INFO, ctx->request->connection->log, 0,
                      "nobody came back for the stream %V", &ctx->id);
        ngx_http_moe_stream_finalize(ctx, NGX_ERROR);
        return;
    }

    if (ngx_strcmp(what, "resume_timeout") == 0) {
        (void) ngx_http_moe_unavailable(ctx, "The engine was lost and did not "
                                             "come back in time.");
        ngx_http_moe_stream_error(ctx);
        ngx_http_moe_slot_leave(ctx);
        ngx_http_moe_output_flush(ctx);
        return;
    }

    status = ctx->start ? NGX_HTTP_GATEWAY_TIME_OUT
                        : NGX_HTTP_SERVICE_UNAVAILABLE;

    (void) ngx_http_moe_error(ctx, status, what, NULL,
                              "The engine did not answer in time (%s).", what);

    if (!ctx->start) {
        ctx->error.retry_after = 2;
    }

    ngx_http_moe_stream_error(ctx);
    ngx_http_moe_slot_leave(ctx);
    ngx_http_moe_output_flush(ctx);
}
