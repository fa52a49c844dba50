/*
 * ngx_http_moe_share.c - a worker lends out the streams that it holds.
 *
 * In: who asks for which stream, over a unix socket; any worker may, this one
 * too, since the kernel chooses who gets a client's next connection.  Out: the
 * journal's bytes, as they come.
 *
 * The socket's name is abstract and ends in a random tag, which is a part of
 * the ids of this worker's streams: so they are found without a table, also
 * from the workers of another generation or of a new binary.  Whoever is not of
 * the workers' user is not listened to.
 *
 * Must not know HTTP.
 */

#include "ngx_http_moe_module.h"

#include <sys/random.h>


#define NGX_HTTP_MOE_SHARE_BACKLOG  511
#define NGX_HTTP_MOE_SHARE_PACKET   16384


static void ngx_http_moe_share_accept(ngx_event_t *ev);
static void ngx_http_moe_share_admit(ngx_socket_t s, ngx_log_t *log);
static void ngx_http_moe_share_read(ngx_event_t *ev);
static void ngx_http_moe_share_write(ngx_event_t *ev);
static void ngx_http_moe_share_answer(ngx_http_moe_view_t *view,
    const ngx_http_moe_ask_t *ask);
static ngx_uint_t ngx_http_moe_share_attach(ngx_http_moe_view_t *view,
    ngx_http_moe_journal_t *j, uint64_t last);
static void ngx_http_moe_share_cancel(ngx_http_moe_journal_t *j);
static void ngx_http_moe_share_leave(ngx_http_moe_view_t *view);


/* Of this process. */

static ngx_connection_t  *ngx_http_moe_share;
static u_char             ngx_http_moe_share_own[NGX_HTTP_MOE_TAG_LEN];


/* NULL: this worker lends nothing. */

const u_char *
ngx_http_moe_share_tag(void)
{
    return ngx_http_moe_share ? ngx_http_moe_share_own : NULL;
}


socklen_t
ngx_http_moe_share_name(struct sockaddr_un *sun, const u_char *tag)
{
    u_char  *p;

    ngx_memzero(sun, sizeof(struct sockaddr_un));

    sun->sun_family = AF_UNIX;

    p = (u_char *) sun->sun_path + 1;
    p = ngx_cpymem(p, "ngx_moe.", 8);
    p = ngx_hex_dump(p, (u_char *) tag, NGX_HTTP_MOE_TAG_LEN);

    return (socklen_t) (p - (u_char *) sun);
}


void
ngx_http_moe_share_init(ngx_log_t *log)
{
    socklen_t           len;
    ngx_socket_t        s;
    struct sockaddr_un  sun;

    s = (ngx_socket_t) -1;

    if (getrandom(ngx_http_moe_share_own, NGX_HTTP_MOE_TAG_LEN, GRND_NONBLOCK)
        == NGX_HTTP_MOE_TAG_LEN)
    {
        s = socket(AF_UNIX, SOCK_SEQPACKET|SOCK_NONBLOCK|SOCK_CLOEXEC, 0);
    }

    if (s == (ngx_socket_t) -1) {
        goto failed;
    }

    len = ngx_http_moe_share_name(&sun, ngx_http_moe_share_own);

    if (bind(s, (struct sockaddr *) &sun, len) == -1
        || listen(s, NGX_HTTP_MOE_SHARE_BACKLOG) == -1)
    {
        goto failed;
    }

    ngx_http_moe_share = ngx_http_moe_share_connection(s, log);

    if (ngx_http_moe_share) {
        ngx_http_moe_share->read->handler = ngx_http_moe_share_accept;
        return;
    }

    s = (ngx_socket_t) -1;

failed:

    ngx_log_error(NGX_LOG_ERR, log, ngx_socket_errno,
                  "moe_resume is off in this worker: no socket");

    if (s != (ngx_socket_t) -1) {
        ngx_close_socket(s);
    }
}


void
ngx_http_moe_share_exit(void)
{
    if (ngx_http_moe_share) {
        ngx_close_connection(ngx_http_moe_share);
        ngx_http_moe_share = NULL;
    }
}


/* A descriptor of ours among NGINX's connections, listened to; closed if that
 * fails. */

ngx_connection_t *
ngx_http_moe_share_connection(ngx_socket_t s, ngx_log_t *log)
{
    ngx_uint_t         flags;
    ngx_connection_t  *c;

    c = ngx_get_connection(s, log);

    if (c == NULL) {
        ngx_close_socket(s);
        return NULL;
    }

    c->log = log;
    c->read->log = log;
    c->write->log = log;
    c->read->channel = 1;
    c->write->channel = 1;

    flags = (ngx_event_flags & NGX_USE_CLEAR_EVENT) ? NGX_CLEAR_EVENT
                                                    : NGX_LEVEL_EVENT;

    if (ngx_add_event(c->read, NGX_READ_EVENT, flags) != NGX_OK) {
        ngx_close_connection(c);
        return NULL;
    }

    return c;
}


static void
ngx_http_moe_share_accept(ngx_event_t *ev)
{
    ngx_socket_t       s;
    ngx_connection_t  *lc;

    lc = ev->data;

    for ( ;; ) {
        s = accept4(lc->fd, NULL, NULL, SOCK_NONBLOCK|SOCK_CLOEXEC);

        if (s == (ngx_socket_t) -1) {

            if (ngx_socket_errno != NGX_EAGAIN) {
                ngx_log_error(NGX_LOG_ERR, ev->log, ngx_socket_errno,
                              "accept4() for a stream's client failed");
            }

            return;
        }

        ngx_http_moe_share_admit(s, lc->log);
    }
}


static void
ngx_http_moe_share_admit(ngx_socket_t s, ngx_log_t *log)
{
    ngx_connection_t     *c;
    ngx_http_moe_view_t  *view;

    if (!ngx_http_moe_share_trusted(s)) {
        ngx_close_socket(s);
        return;
    }

    view = ngx_calloc(sizeof(ngx_http_moe_view_t), log);

    if (view == NULL) {
        ngx_close_socket(s);
        return;
    }

    c = ngx_http_moe_share_connection(s, log);

    if (c == NULL) {
        ngx_free(view);
        return;
    }

    view->connection = c;
    c->data = view;
    c->read->handler = ngx_http_moe_share_read;
    c->write->handler = ngx_http_moe_share_write;

    /* What it asks for was sent with its connection. */

    ngx_post_event(c->read, &ngx_posted_events);
}


/* Whether the other side is of the workers' user: anybody may take the name of
 * a worker that is no more, as anybody may connect to one. */

ngx_uint_t
ngx_http_moe_share_trusted(ngx_socket_t s)
{
    socklen_t     len;
    struct ucred  cred;

    len = sizeof(struct ucred);

    return getsockopt(s, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0
           && cred.uid == geteuid();
}


static void
ngx_http_moe_share_read(ngx_event_t *ev)
{
    ssize_t               n;
    ngx_connection_t     *c;
    ngx_http_moe_ask_t    ask;
    ngx_http_moe_view_t  *view;

    c = ev->data;
    view = c->data;

    n = recv(c->fd, &ask, sizeof(ngx_http_moe_ask_t), MSG_DONTWAIT);

    if (n == -1 && ngx_socket_errno == NGX_EAGAIN) {

        if (ngx_handle_read_event(ev, 0) != NGX_OK) {
            ngx_http_moe_share_close(view);
        }

        return;
    }

    if (n != sizeof(ngx_http_moe_ask_t) || ask.magic != NGX_HTTP_MOE_ASK_MAGIC
        || view->asked)
    {
        ngx_http_moe_share_close(view);
        return;
    }

    view->asked = 1;

    ngx_http_moe_share_answer(view, &ask);
}


static void
ngx_http_moe_share_answer(ngx_http_moe_view_t *view,
    const ngx_http_moe_ask_t *ask)
{
    uint32_t                 status;
    ngx_http_moe_journal_t  *j;

    j = ngx_http_moe_journal_find(ask->secret, ask->owner);

    if (j == NULL || (j->ctx && !j->ctx->header_sent)) {
        status = NGX_HTTP_NOT_FOUND;

    } else if (ask->cancel) {
        ngx_http_moe_share_cancel(j);
        status = NGX_HTTP_NO_CONTENT;

    } else if (j->ended && ask->last + 1 == j->next) {
        status = NGX_HTTP_NO_CONTENT;

    } else if (ask->last >= j->next) {
        status = NGX_HTTP_BAD_REQUEST;

    } else {
        status = ngx_http_moe_share_attach(view, j, ask->last)
                 ? NGX_HTTP_OK : NGX_HTTP_MOE_GONE;
    }

    if (send(view->connection->fd, &status, sizeof(uint32_t),
             MSG_DONTWAIT|MSG_NOSIGNAL)
        != sizeof(uint32_t) || status != NGX_HTTP_OK)
    {
        ngx_http_moe_share_close(view);
        return;
    }

    ngx_http_moe_share_send(j);
}


/* The latest client has the stream; one that it had before is gone, whether
 * or not that was noticed. */

static ngx_uint_t
ngx_http_moe_share_attach(ngx_http_moe_view_t *view,
    ngx_http_moe_journal_t *j, uint64_t last)
{
    if (ngx_http_moe_journal_seek(j, last + 1, view) != NGX_OK) {
        return 0;
    }

    if (j->view) {
        ngx_http_moe_share_close(j->view);
    }

    if (j->ctx) {
        ngx_http_moe_leave_replaced(j->ctx);
    }

    j->sent = last;
    j->view = view;
    view->journal = j;

    /* What is left of the time is not to run out while it is read. */

    ngx_http_moe_journal_left(j);

    return 1;
}


static void
ngx_http_moe_share_cancel(ngx_http_moe_journal_t *j)
{
    ngx_connection_t  *c;

    if (j->ctx == NULL) {
        ngx_http_moe_journal_destroy(j);
        return;
    }

    c = j->ctx->request->connection;

    ngx_http_set_log_request(c->log, j->ctx->request);
    ngx_http_moe_stream_finalize(j->ctx, NGX_ERROR);
    ngx_http_run_posted_requests(c);
}


static void
ngx_http_moe_share_write(ngx_event_t *ev)
{
    ngx_connection_t     *c;
    ngx_http_moe_view_t  *view;

    c = ev->data;
    view = c->data;

    if (view->journal) {
        ngx_http_moe_share_send(view->journal);
    }
}


/* Gives the journal's reader, if it has one, as much as it takes; the end of a
 * stream that has ended is the end of the file. */

void
ngx_http_moe_share_send(ngx_http_moe_journal_t *j)
{
    size_t                size;
    ssize_t               n;
    ngx_connection_t     *c;
    ngx_http_moe_view_t  *view;

    view = j->view;

    if (view == NULL) {
        return;
    }

    c = view->connection;

    while ((size = ngx_http_moe_journal_read(j, view)) > 0) {

        n = send(c->fd, view->pos, ngx_min(size, NGX_HTTP_MOE_SHARE_PACKET),
                 MSG_DONTWAIT|MSG_NOSIGNAL);

        if (n == -1) {

            if (ngx_socket_errno != NGX_EAGAIN) {
                ngx_http_moe_share_close(view);
                return;
            }

            c->write->ready = 0;

            if (ngx_handle_write_event(c->write, 0) != NGX_OK) {
                ngx_http_moe_share_close(view);
                return;
            }

            break;
        }

        view->pos += n;

        if (j->ctx) {
            j->ctx->last_byte = ngx_current_msec;
        }
    }

    if (size == 0) {
        ngx_http_moe_journal_delivered(j);

        if (j->ended) {
            ngx_http_moe_share_close(view);
            return;
        }
    }

    if (j->ctx) {
        ngx_http_moe_leave_room(j->ctx);
    }
}


/* A comment, if the reader waits for the next event. */

void
ngx_http_moe_share_ping(ngx_http_moe_journal_t *j)
{
    if (j->view && ngx_http_moe_journal_read(j, j->view) == 0
        && send(j->view->connection->fd, ": ping\n\n", 8,
                MSG_DONTWAIT|MSG_NOSIGNAL) == 8)
    {
        j->ctx->last_byte = ngx_current_msec;
    }
}


void
ngx_http_moe_share_close(ngx_http_moe_view_t *view)
{
    ngx_http_moe_share_leave(view);
    ngx_close_connection(view->connection);
    ngx_free(view);
}


static void
ngx_http_moe_share_leave(ngx_http_moe_view_t *view)
{
    ngx_http_moe_journal_t  *j;

    j = view->journal;

    if (j) {
        j->view = NULL;
        ngx_http_moe_journal_left(j);
    }
}
