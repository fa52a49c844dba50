/*
 * ngx_http_moe_rejoin.c - a client comes back for the rest of its stream.
 *
 *      GET    /v1/streams/ID   with Last-Event-ID: what came after that event
 *      DELETE /v1/streams/ID   nobody wants the rest
 *
 * In: such a request, and from the worker that holds the stream (share.c,
 * found by the tag in the id; it may be this one) a status and then bytes.
 * Out: those bytes.  Must not know what they are, but for how a stream ends.
 */

#include "ngx_http_moe_module.h"


#define NGX_HTTP_MOE_REJOIN_SIZE   16384
#define NGX_HTTP_MOE_REJOIN_WAIT   5000
#define NGX_HTTP_MOE_REJOIN_TICK   60000

#define NGX_HTTP_MOE_REJOIN_END    "data: [DONE]\n\n"
#define NGX_HTTP_MOE_REJOIN_END_N  (sizeof(NGX_HTTP_MOE_REJOIN_END) - 1)


typedef struct {
    ngx_http_request_t    *request;
    ngx_http_moe_ctx_t    *ctx;             /* for errors */
    ngx_connection_t      *peer;            /* to the stream's worker */
    ngx_event_t            timer;           /* keeps the worker */
    ngx_chain_t           *free;
    ngx_chain_t           *busy;
    u_char                *buf;
    u_char                 tail[NGX_HTTP_MOE_REJOIN_END_N];
    unsigned               told:1;          /* the status */
} ngx_http_moe_rejoin_t;


static ngx_int_t ngx_http_moe_rejoin_id(ngx_str_t *id, u_char *bytes);
static ngx_int_t ngx_http_moe_rejoin_last(ngx_http_request_t *r,
    uint64_t *last);
static ngx_int_t ngx_http_moe_rejoin_missing(ngx_http_moe_ctx_t *ctx);
static ngx_int_t ngx_http_moe_rejoin_ask(ngx_http_request_t *r,
    ngx_http_moe_ctx_t *ctx, const u_char *tag, const ngx_http_moe_ask_t *ask);
static ngx_int_t ngx_http_moe_rejoin_connect(ngx_http_moe_rejoin_t *rj,
    const u_char *tag, const ngx_http_moe_ask_t *ask);
static void ngx_http_moe_rejoin_cleanup(void *data);
static void ngx_http_moe_rejoin_timer(ngx_event_t *ev);
static void ngx_http_moe_rejoin_peer(ngx_event_t *ev);
static void ngx_http_moe_rejoin_read(ngx_http_moe_rejoin_t *rj);
static ngx_int_t ngx_http_moe_rejoin_told(ngx_http_moe_rejoin_t *rj,
    ssize_t n);
static ngx_int_t ngx_http_moe_rejoin_send(ngx_http_moe_rejoin_t *rj,
    size_t n);
static ngx_int_t ngx_http_moe_rejoin_output(ngx_http_moe_rejoin_t *rj,
    ngx_chain_t *out);
static void ngx_http_moe_rejoin_end(ngx_http_moe_rejoin_t *rj);
static void ngx_http_moe_rejoin_finalize(ngx_http_moe_rejoin_t *rj,
    ngx_int_t rc);
static void ngx_http_moe_rejoin_write_handler(ngx_http_request_t *r);


ngx_int_t
ngx_http_moe_rejoin_handler(ngx_http_request_t *r, ngx_str_t *id)
{
    u_char               bytes[NGX_HTTP_MOE_SECRET_LEN + NGX_HTTP_MOE_TAG_LEN];
    ngx_int_t            rc;
    ngx_http_moe_ask_t   ask;
    ngx_http_moe_ctx_t  *ctx;

    ctx = ngx_http_moe_ctx_create(r);
    if (ctx == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    rc = ngx_http_discard_request_body(r);
    if (rc != NGX_OK) {
        return rc;
    }

    ctx->id = *id;
    ngx_memzero(&ask, sizeof(ngx_http_moe_ask_t));

    if (ngx_http_moe_rejoin_last(r, &ask.last) != NGX_OK) {
        return ngx_http_moe_error(ctx, NGX_HTTP_BAD_REQUEST, "invalid_value",
                                  "Last-Event-ID", "Last-Event-ID is not the "
                                  "id of an event.");
    }

    if (ngx_http_moe_rejoin_id(id, bytes) != NGX_OK) {
        return ngx_http_moe_rejoin_missing(ctx);
    }

    ask.magic = NGX_HTTP_MOE_ASK_MAGIC;
    ask.cancel = (r->method == NGX_HTTP_DELETE);
    ngx_memcpy(ask.secret, bytes, NGX_HTTP_MOE_SECRET_LEN);

    if (ngx_http_moe_journal_owner(r, ask.owner) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    return ngx_http_moe_rejoin_ask(r, ctx, bytes + NGX_HTTP_MOE_SECRET_LEN,
                                   &ask);
}


/* chatcmpl-HEX or cmpl-HEX, as the stream's events have it. */

static ngx_int_t
ngx_http_moe_rejoin_id(ngx_str_t *id, u_char *bytes)
{
    size_t   n;
    u_char  *p;

    n = NGX_HTTP_MOE_SECRET_LEN + NGX_HTTP_MOE_TAG_LEN;

    p = ngx_strlchr(id->data, id->data + id->len, '-');
    p = p ? p + 1 : id->data;

    if ((size_t) (id->data + id->len - p) != 2 * n
        || ngx_http_moe_hex(bytes, p, n) != NGX_OK)
    {
        return NGX_DECLINED;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_moe_rejoin_last(ngx_http_request_t *r, uint64_t *last)
{
    ngx_int_t   n;
    ngx_str_t  *value;

    *last = 0;

    value = ngx_http_moe_header_in(r, "last-event-id");

    if (value == NULL || value->len == 0) {
        return NGX_OK;
    }

    n = ngx_atoi(value->data, value->len);

    if (n == NGX_ERROR) {
        return NGX_DECLINED;
    }

    *last = (uint64_t) n;

    return NGX_OK;
}


/* The same for an id that never was, one that is over, and another's. */

static ngx_int_t
ngx_http_moe_rejoin_missing(ngx_http_moe_ctx_t *ctx)
{
    return ngx_http_moe_error(ctx, NGX_HTTP_NOT_FOUND, "stream_not_found",
                              NULL, "There is no such stream, or it is no "
                              "longer kept.");
}


static ngx_int_t
ngx_http_moe_rejoin_ask(ngx_http_request_t *r, ngx_http_moe_ctx_t *ctx,
    const u_char *tag, const ngx_http_moe_ask_t *ask)
{
    ngx_int_t               rc;
    ngx_http_cleanup_t     *cln;
    ngx_http_moe_rejoin_t  *rj;

    rj = ngx_pcalloc(r->pool, sizeof(ngx_http_moe_rejoin_t));
    cln = ngx_http_cleanup_add(r, 0);

    if (rj == NULL || cln == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    rj->buf = ngx_palloc(r->pool, NGX_HTTP_MOE_REJOIN_SIZE);
    if (rj->buf == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    rj->request = r;
    rj->ctx = ctx;
    ctx->rejoin = rj;

    cln->handler = ngx_http_moe_rejoin_cleanup;
    cln->data = rj;

    rc = ngx_http_moe_rejoin_connect(rj, tag, ask);

    if (rc == NGX_DECLINED) {
        return ngx_http_moe_rejoin_missing(ctx);
    }

    if (rc == NGX_ERROR) {
        return ngx_http_moe_unavailable(ctx, "The stream's worker cannot be "
                                        "reached.");
    }

    rj->peer->data = rj;
    rj->peer->read->handler = ngx_http_moe_rejoin_peer;

    rj->timer.handler = ngx_http_moe_rejoin_timer;
    rj->timer.data = rj;
    rj->timer.log = r->connection->log;
    ngx_add_timer(&rj->timer, NGX_HTTP_MOE_REJOIN_WAIT);

    r->write_event_handler = ngx_http_moe_rejoin_write_handler;

    if (ngx_http_moe_stream_watch(r, ngx_http_test_reading) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    r->main->count++;

    return NGX_DONE;
}


/* NGX_DECLINED: that worker is no more; NGX_ERROR: it may be another time. */

static ngx_int_t
ngx_http_moe_rejoin_connect(ngx_http_moe_rejoin_t *rj, const u_char *tag,
    const ngx_http_moe_ask_t *ask)
{
    ngx_int_t           rc;
    socklen_t           len;
    ngx_log_t          *log;
    ngx_socket_t        s;
    struct sockaddr_un  sun;

    log = rj->request->connection->log;

    s = socket(AF_UNIX, SOCK_SEQPACKET|SOCK_NONBLOCK|SOCK_CLOEXEC, 0);

    if (s == (ngx_socket_t) -1) {
        ngx_log_error(NGX_LOG_ERR, log, ngx_socket_errno,
                      "socket() for a stream's rest failed");
        return NGX_ERROR;
    }

    len = ngx_http_moe_share_name(&sun, tag);

    if (connect(s, (struct sockaddr *) &sun, len) == -1) {
        rc = (ngx_socket_errno == NGX_ECONNREFUSED) ? NGX_DECLINED : NGX_ERROR;

        if (rc == NGX_ERROR) {
            ngx_log_error(NGX_LOG_ERR, log, ngx_socket_errno,
                          "connect() to a stream's worker failed");
        }

        ngx_close_socket(s);
        return rc;
    }

    if (!ngx_http_moe_share_trusted(s)
        || send(s, ask, sizeof(ngx_http_moe_ask_t), MSG_DONTWAIT|MSG_NOSIGNAL)
           != sizeof(ngx_http_moe_ask_t))
    {
        ngx_close_socket(s);
        return NGX_DECLINED;
    }

    rj->peer = ngx_http_moe_share_connection(s, ngx_cycle->log);

    return rj->peer ? NGX_OK : NGX_ERROR;
}


static void
ngx_http_moe_rejoin_cleanup(void *data)
{
    ngx_http_moe_rejoin_t *rj = data;

    if (rj->timer.timer_set) {
        ngx_del_timer(&rj->timer);
    }

    if (rj->peer) {
        ngx_close_connection(rj->peer);
        rj->peer = NULL;
    }
}


static void
ngx_http_moe_rejoin_timer(ngx_event_t *ev)
{
    ngx_connection_t       *c;
    ngx_http_moe_rejoin_t  *rj;

    rj = ev->data;

    if (rj->told) {
        ngx_add_timer(ev, NGX_HTTP_MOE_REJOIN_TICK);
        return;
    }

    c = rj->request->connection;

    ngx_http_set_log_request(c->log, rj->request);
    ngx_http_moe_rejoin_finalize(rj, ngx_http_moe_unavailable(rj->ctx,
                                     "The stream's worker did not answer."));
    ngx_http_run_posted_requests(c);
}


static void
ngx_http_moe_rejoin_peer(ngx_event_t *ev)
{
    ngx_connection_t       *c;
    ngx_http_moe_rejoin_t  *rj;

    c = ev->data;
    rj = c->data;
    c = rj->request->connection;

    ngx_http_set_log_request(c->log, rj->request);
    ngx_http_moe_rejoin_read(rj);
    ngx_http_run_posted_requests(c);
}


/* As long as the client takes it. */

static void
ngx_http_moe_rejoin_read(ngx_http_moe_rejoin_t *rj)
{
    ssize_t     n;
    ngx_int_t   rc;

    while (rj->busy == NULL) {

        n = recv(rj->peer->fd, rj->buf, NGX_HTTP_MOE_REJOIN_SIZE,
                 MSG_DONTWAIT);

        if (n == -1 && ngx_socket_errno == NGX_EAGAIN) {

            if (ngx_handle_read_event(rj->peer->read, 0) != NGX_OK) {
                ngx_http_moe_rejoin_finalize(rj, NGX_ERROR);
            }

            return;
        }

        if (!rj->told) {
            rc = ngx_http_moe_rejoin_told(rj, n);

        } else if (n <= 0) {
            ngx_http_moe_rejoin_end(rj);
            return;

        } else {
            rc = ngx_http_moe_rejoin_send(rj, (size_t) n);
        }

        if (rc != NGX_OK) {
            ngx_http_moe_rejoin_finalize(rj, rc);
            return;
        }
    }
}


/* NGX_OK: bytes follow. */

static ngx_int_t
ngx_http_moe_rejoin_told(ngx_http_moe_rejoin_t *rj, ssize_t n)
{
    uint32_t             status;
    ngx_http_moe_ctx_t  *ctx;

    ctx = rj->ctx;

    if (n != sizeof(uint32_t)) {
        return ngx_http_moe_rejoin_missing(ctx);
    }

    ngx_memcpy(&status, rj->buf, sizeof(uint32_t));

    switch (status) {

    case NGX_HTTP_OK:
        break;

    case NGX_HTTP_NO_CONTENT:
        return NGX_HTTP_NO_CONTENT;

    case NGX_HTTP_BAD_REQUEST:
        return ngx_http_moe_error(ctx, NGX_HTTP_BAD_REQUEST, "invalid_value",
                                  "Last-Event-ID", "The stream has no event "
                                  "with that id yet.");

    case NGX_HTTP_MOE_GONE:
        return ngx_http_moe_error(ctx, NGX_HTTP_MOE_GONE, "events_gone",
                                  "Last-Event-ID", "The events that followed "
                                  "that one are no longer kept.");

    default:
        return ngx_http_moe_rejoin_missing(ctx);
    }

    rj->told = 1;
    ngx_add_timer(&rj->timer, NGX_HTTP_MOE_REJOIN_TICK);

    return ngx_http_moe_output_open(rj->request);
}


static ngx_int_t
ngx_http_moe_rejoin_send(ngx_http_moe_rejoin_t *rj, size_t n)
{
    size_t        keep;
    ngx_buf_t    *b;
    ngx_chain_t  *cl;

    cl = ngx_chain_get_free_buf(rj->request->pool, &rj->free);
    if (cl == NULL) {
        return NGX_ERROR;
    }

    b = cl->buf;
    ngx_memzero(b, sizeof(ngx_buf_t));

    b->tag = (ngx_buf_tag_t) &ngx_http_moe_rejoin_handler;
    b->start = rj->buf;
    b->pos = rj->buf;
    b->last = rj->buf + n;
    b->end = rj->buf + NGX_HTTP_MOE_REJOIN_SIZE;
    b->temporary = 1;
    b->flush = 1;

    /* The last bytes, over packets that may be shorter. */

    keep = (n < sizeof(rj->tail)) ? sizeof(rj->tail) - n : 0;
    ngx_memmove(rj->tail, rj->tail + sizeof(rj->tail) - keep, keep);
    ngx_memcpy(rj->tail + keep, b->last - (sizeof(rj->tail) - keep),
               sizeof(rj->tail) - keep);

    return ngx_http_moe_rejoin_output(rj, cl);
}


static ngx_int_t
ngx_http_moe_rejoin_output(ngx_http_moe_rejoin_t *rj, ngx_chain_t *out)
{
    ngx_int_t            rc;
    ngx_http_request_t  *r;

    r = rj->request;

    rc = ngx_http_output_filter(r, out);

    ngx_chain_update_chains(r->pool, &rj->free, &rj->busy, &out,
                            (ngx_buf_tag_t) &ngx_http_moe_rejoin_handler);

    if (rc == NGX_ERROR || r->connection->error) {
        return NGX_ERROR;
    }

    return ngx_http_moe_output_wait(r);
}


/* A stream that does not end as streams do was cut: so is this one. */

static void
ngx_http_moe_rejoin_end(ngx_http_moe_rejoin_t *rj)
{
    ngx_int_t  rc;

    rc = NGX_ERROR;

    if (ngx_memcmp(rj->tail, NGX_HTTP_MOE_REJOIN_END, sizeof(rj->tail)) == 0) {
        rc = ngx_http_send_special(rj->request, NGX_HTTP_LAST);
    }

    ngx_http_moe_rejoin_finalize(rj, rc);
}


static void
ngx_http_moe_rejoin_finalize(ngx_http_moe_rejoin_t *rj, ngx_int_t rc)
{
    ngx_http_request_t  *r;

    r = rj->request;

    ngx_http_moe_rejoin_cleanup(rj);

    r->read_event_handler = ngx_http_block_reading;
    r->write_event_handler = ngx_http_request_empty_handler;

    ngx_http_finalize_request(r, rc);
}


static void
ngx_http_moe_rejoin_write_handler(ngx_http_request_t *r)
{
    ngx_event_t            *wev;
    ngx_http_moe_ctx_t     *ctx;
    ngx_http_moe_rejoin_t  *rj;

    ctx = ngx_http_get_module_ctx(r, ngx_http_moe_module);
    rj = ctx->rejoin;
    wev = r->connection->write;

    if (wev->timedout) {
        ngx_log_error(NGX_LOG_INFO, r->connection->log, NGX_ETIMEDOUT,
                      "client timed out");
        r->connection->timedout = 1;
        ngx_http_moe_rejoin_finalize(rj, NGX_HTTP_REQUEST_TIME_OUT);
        return;
    }

    if (rj->busy == NULL) {
        return;
    }

    if (ngx_http_moe_rejoin_output(rj, NULL) != NGX_OK) {
        ngx_http_moe_rejoin_finalize(rj, NGX_ERROR);
        return;
    }

    ngx_http_moe_rejoin_read(rj);
}
