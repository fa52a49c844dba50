/*
 * ngx_http_moe_channel.c - the life of the channel of one worker to one engine:
 * connect, shake hands, map, wake, and all of it again when the engine is gone.
 *
 * In: the engine's socket.  Out: an attached channel for slot.c, or none.
 *
 *      DOWN -- connect() --> ATTACHING -- WELCOME --> ATTACHED
 *       ^--- retry, 10 ms to 1 s, with jitter ---- EOF, fault ---'
 *                                       the first time, at once
 *
 * Background timers are cancelable, so that they do not hold up a worker that
 * shuts down; both descriptors are marked as channels, as NGINX calls what is
 * its own and not a client's.  Must not know requests or HTTP.
 */

#include "ngx_http_moe_module.h"


#define NGX_HTTP_MOE_TICK_MSEC         1000
#define NGX_HTTP_MOE_LATE_MSEC         20
#define NGX_HTTP_MOE_BACKOFF_MIN       10
#define NGX_HTTP_MOE_BACKOFF_MAX       1000
#define NGX_HTTP_MOE_REQUEST_RING_MIN  (1024 * 1024)
#define NGX_HTTP_MOE_LAST_PASSES       1024


static ngx_http_moe_channel_t *ngx_http_moe_channel_create(
    ngx_http_moe_peer_t *peer, ngx_log_t *log);
static void ngx_http_moe_channel_destroy(ngx_http_moe_channel_t *ch);
static void ngx_http_moe_channel_replace(ngx_http_moe_channel_t *ch);
static void ngx_http_moe_channel_connect(ngx_http_moe_channel_t *ch);
static void ngx_http_moe_channel_window(ngx_http_moe_channel_t *ch);
static const char *ngx_http_moe_channel_hello(ngx_http_moe_channel_t *ch,
    ngx_socket_t s, char *text);
static ngx_connection_t *ngx_http_moe_channel_add(ngx_http_moe_channel_t *ch,
    ngx_socket_t s, ngx_event_handler_pt handler);
static void ngx_http_moe_channel_welcome(ngx_http_moe_channel_t *ch);
static void ngx_http_moe_channel_down(ngx_http_moe_channel_t *ch,
    const char *reason);
static void ngx_http_moe_channel_again(ngx_http_moe_channel_t *ch,
    ngx_uint_t was_attached);
static void ngx_http_moe_channel_close(ngx_http_moe_channel_t *ch);

static void ngx_http_moe_channel_sock_handler(ngx_event_t *ev);
static void ngx_http_moe_channel_bell_handler(ngx_event_t *ev);
static void ngx_http_moe_channel_retry_handler(ngx_event_t *ev);
static ngx_uint_t ngx_http_moe_channel_late(ngx_http_moe_channel_t *ch);
static void ngx_http_moe_channel_tick_handler(ngx_event_t *ev);
static void ngx_http_moe_channel_next_handler(ngx_event_t *ev);
static void ngx_http_moe_channel_fault_handler(ngx_event_t *ev);
static void ngx_http_moe_channel_event(ngx_http_moe_channel_t *ch,
    ngx_event_t *ev, ngx_event_handler_pt handler);


ngx_int_t
ngx_http_moe_channel_init(ngx_http_moe_engine_t *engine, ngx_cycle_t *cycle)
{
    ngx_uint_t            i;
    ngx_http_moe_peer_t  *peer;

    ngx_queue_init(&engine->pending);
    ngx_queue_init(&engine->touched);
    ngx_queue_init(&engine->retired);

    peer = engine->peers.elts;

    for (i = 0; i < engine->peers.nelts; i++) {

        peer[i].channel = ngx_http_moe_channel_create(&peer[i], cycle->log);
        if (peer[i].channel == NULL) {
            return NGX_ERROR;
        }

        ngx_http_moe_channel_connect(peer[i].channel);
    }

    return NGX_OK;
}


static ngx_http_moe_channel_t *
ngx_http_moe_channel_create(ngx_http_moe_peer_t *peer, ngx_log_t *log)
{
    ngx_http_moe_channel_t  *ch;

    ch = ngx_calloc(sizeof(ngx_http_moe_channel_t), log);
    if (ch == NULL) {
        return NULL;
    }

    ch->slots = ngx_calloc(peer->engine->streams
                           * sizeof(ngx_http_moe_slot_t), log);
    if (ch->slots == NULL) {
        ngx_free(ch);
        return NULL;
    }

    ch->engine = peer->engine;
    ch->link = peer;
    ch->log = log;
    ch->own.fd = -1;
    ch->backoff = NGX_HTTP_MOE_BACKOFF_MIN;

    ngx_queue_init(&ch->sending);

    ngx_http_moe_slot_reset(ch);

    ngx_http_moe_channel_event(ch, &ch->retry,
                               ngx_http_moe_channel_retry_handler);
    ngx_http_moe_channel_event(ch, &ch->tick,
                               ngx_http_moe_channel_tick_handler);
    ngx_http_moe_channel_event(ch, &ch->room, ngx_http_moe_slot_room);
    ngx_http_moe_channel_event(ch, &ch->next,
                               ngx_http_moe_channel_next_handler);
    ngx_http_moe_channel_event(ch, &ch->fault,
                               ngx_http_moe_channel_fault_handler);

    return ch;
}


static void
ngx_http_moe_channel_destroy(ngx_http_moe_channel_t *ch)
{
    ngx_http_moe_channel_close(ch);

    if (ch->retired) {
        ngx_queue_remove(&ch->queue);
    }

    ngx_free(ch->slots);
    ngx_free(ch);
}


static void
ngx_http_moe_channel_event(ngx_http_moe_channel_t *ch, ngx_event_t *ev,
    ngx_event_handler_pt handler)
{
    ev->handler = handler;
    ev->data = ch;
    ev->log = ch->log;
    ev->cancelable = 1;
}


void
ngx_http_moe_channel_exit(ngx_http_moe_engine_t *engine)
{
    ngx_uint_t               i;
    ngx_http_moe_peer_t     *peer;
    ngx_http_moe_channel_t  *ch;

    peer = engine->peers.elts;

    for (i = 0; i < engine->peers.nelts; i++) {
        if (peer[i].channel) {
            ngx_http_moe_channel_destroy(peer[i].channel);
            peer[i].channel = NULL;
        }
    }

    while (engine->retired.next && !ngx_queue_empty(&engine->retired)) {
        ch = ngx_queue_data(ngx_queue_head(&engine->retired),
                            ngx_http_moe_channel_t, queue);
        ngx_http_moe_channel_destroy(ch);
    }
}


ngx_uint_t
ngx_http_moe_channel_ready(ngx_http_moe_channel_t *ch)
{
    return ch && ch->state == NGX_HTTP_MOE_ATTACHED
           && ring_word_get(&ch->peer.page->state) == ABI_STATE_READY;
}


static void
ngx_http_moe_channel_connect(ngx_http_moe_channel_t *ch)
{
    char                    text[RING_TEXT];
    const char             *reason;
    ngx_socket_t            s;
    ngx_http_moe_peer_t    *peer;

    peer = ch->link;

    s = socket(AF_UNIX, SOCK_SEQPACKET|SOCK_NONBLOCK|SOCK_CLOEXEC, 0);

    if (s == (ngx_socket_t) -1) {
        ngx_http_moe_channel_down(ch, strerror(ngx_errno));
        return;
    }

    if (connect(s, (struct sockaddr *) &peer->sockaddr, peer->socklen)
        == -1)
    {
        ngx_http_moe_channel_down(ch, strerror(ngx_errno));
        ngx_close_socket(s);
        return;
    }

    ch->sock = ngx_http_moe_channel_add(ch, s,
                                        ngx_http_moe_channel_sock_handler);
    if (ch->sock == NULL) {
        ngx_http_moe_channel_down(ch, "no worker_connections left");
        return;
    }

    reason = ngx_http_moe_channel_hello(ch, s, text);

    if (reason) {
        ngx_http_moe_channel_down(ch, reason);
        return;
    }

    ch->state = NGX_HTTP_MOE_ATTACHING;

    ngx_add_timer(&ch->retry, ch->engine->connect_timeout);
}


/*
 * The smallest window makes a ring whose size is rounded up to a power of two;
 * windows take what that leaves: at 10,000 streams 6.5 KiB of ring for each.
 * Cells are handed back before those that an engine still has are fewer than
 * its longest frame wants.
 */

static void
ngx_http_moe_channel_window(ngx_http_moe_channel_t *ch)
{
    uint64_t  n, n_slots;

    n_slots = ch->engine->streams;
    n = ring_event_bytes((uint32_t) n_slots, ABI_WINDOW_MIN);
    n = (n - ABI_EVENT_MAX) / (n_slots * ABI_CELL_BYTES) - ABI_TERMINAL_CELLS;

    ch->window = (uint32_t) ngx_min(n, NGX_HTTP_MOE_WINDOW_MAX);
    ch->refill = ngx_min(ch->window / 2, ch->window - ABI_WINDOW_MIN + 1);
}


/* NULL, or why it was not said. */

static const char *
ngx_http_moe_channel_hello(ngx_http_moe_channel_t *ch, ngx_socket_t s,
    char *text)
{
    int                fds[2], bell[2], rc;
    uint64_t           n;
    struct abi_hello  *hello;

    ngx_http_moe_channel_window(ch);

    hello = &ch->hello;
    n = NGX_HTTP_MOE_REQUEST_RING_MIN;

    /* A quarter at most is kept for CANCEL and CREDIT. */

    while (n < (uint64_t) ch->engine->streams * 8 * ABI_CELL_BYTES) {
        n *= 2;
    }

    ngx_memzero(hello, sizeof(struct abi_hello));

    hello->magic = ABI_MAGIC;
    hello->message = ABI_HELLO;
    hello->n_bytes = sizeof(struct abi_hello);
    hello->major = ABI_MAJOR;
    hello->minor = ABI_MINOR;
    hello->features = ABI_FEATURES;
    hello->n_slots = (uint32_t) ch->engine->streams;
    hello->window_cells = ch->window;
    hello->request_ring_bytes = n;
    hello->event_ring_bytes = ring_event_bytes(hello->n_slots,
                                               hello->window_cells);
    hello->nonce = ((uint64_t) ngx_pid << 32) ^ (uint64_t) ngx_random();

    if (ring_memory_create(&ch->own, n, hello->nonce, text) != RING_OK) {
        return text;
    }

    if (ring_bell_pair(bell) == -1) {
        return strerror(ngx_errno);
    }

    ch->bell = ngx_http_moe_channel_add(ch, bell[0],
                                        ngx_http_moe_channel_bell_handler);
    if (ch->bell == NULL) {
        (void) close(bell[1]);
        return "no worker_connections left";
    }

    fds[0] = ch->own.fd;
    fds[1] = bell[1];

    rc = ring_send(s, hello, sizeof(struct abi_hello), fds, 2);

    (void) close(bell[1]);

    return (rc == RING_OK) ? NULL : "HELLO could not be sent";
}


/* A descriptor of ours among NGINX's connections; closed if that fails. */

static ngx_connection_t *
ngx_http_moe_channel_add(ngx_http_moe_channel_t *ch, ngx_socket_t s,
    ngx_event_handler_pt handler)
{
    ngx_connection_t  *c;

    c = ngx_get_connection(s, ch->log);

    if (c == NULL) {
        ngx_close_socket(s);
        return NULL;
    }

    c->data = ch;
    c->log = ch->log;
    c->read->log = ch->log;
    c->write->log = ch->log;
    c->read->handler = handler;
    c->read->channel = 1;
    c->write->channel = 1;

    if (ngx_add_event(c->read, NGX_READ_EVENT,
                      (ngx_event_flags & NGX_USE_CLEAR_EVENT)
                          ? NGX_CLEAR_EVENT : NGX_LEVEL_EVENT)
        != NGX_OK)
    {
        ngx_close_connection(c);
        return NULL;
    }

    return c;
}


/* WELCOME is there, or EOF. */

static void
ngx_http_moe_channel_welcome(ngx_http_moe_channel_t *ch)
{
    int                  fd, n;
    char                 text[RING_TEXT];

    union {
        struct abi_welcome  welcome;
        struct abi_refuse   refuse;
    } m;

    n = ring_recv(ch->sock->fd, &m, sizeof(m), &fd, 1, text);

    if (n == 0) {
        return;
    }

    if (n < 0) {
        ngx_http_moe_channel_down(ch, text);
        return;
    }

    if (ring_welcome_check(&m.welcome, (size_t) n, text) != RING_OK
        || ring_view_open(&ch->peer, fd, ch->hello.event_ring_bytes,
                          m.welcome.generation, text)
           != RING_OK)
    {
        (void) close(fd);
        ngx_http_moe_channel_down(ch, text);
        return;
    }

    (void) close(fd);

    if (ring_word_get(&ch->peer.page->state) == ABI_STATE_DRAINING) {
        ngx_http_moe_channel_down(ch, "the engine is shutting down");
        return;
    }

    ch->welcome = m.welcome;

    ring_tx_init(&ch->tx, &ch->own, &ch->peer);
    ring_rx_init(&ch->rx, &ch->own, &ch->peer, ABI_EVENT_MAX);

    ngx_del_timer(&ch->retry);

    ch->state = NGX_HTTP_MOE_ATTACHED;
    ch->backoff = NGX_HTTP_MOE_BACKOFF_MIN;
    ch->quiet = 0;
    ch->link->n_attached++;
    ngx_http_moe_metrics_add(ch->engine, n_attached, 1);
    ch->heartbeat = ring_word_get(&ch->peer.page->heartbeat);
    ch->heartbeat_seen = ngx_current_msec;

    ngx_add_timer(&ch->tick, NGX_HTTP_MOE_TICK_MSEC);

    ngx_log_error(NGX_LOG_NOTICE, ch->log, 0,
                  "engine \"%V\": attached, model \"%s\", "
                  "context of %uD tokens", &ch->engine->name,
                  ch->welcome.model, ch->welcome.n_ctx_tok);

    ngx_http_moe_resume_pending(ch->engine);

    /* Says where to be woken. */

    ngx_http_moe_slot_drain(ch);
}


/* One line for a change of state, none for another failure to connect. */

static void
ngx_http_moe_channel_down(ngx_http_moe_channel_t *ch, const char *reason)
{
    ngx_uint_t              level, was_attached;
    ngx_http_moe_engine_t  *engine;

    was_attached = (ch->state == NGX_HTTP_MOE_ATTACHED);
    level = was_attached ? NGX_LOG_WARN : NGX_LOG_NOTICE;

    if (!ch->quiet && !ngx_exiting) {
        ngx_log_error(level, ch->log, 0, "engine \"%V\" at \"%V\": %s",
                      &ch->engine->name, &ch->link->socket, reason);
    }

    ch->quiet = 1;

    engine = ch->engine;

    ngx_http_moe_channel_close(ch);
    ngx_http_moe_slot_lost(ch);

    if (ch->retired) {
        ngx_http_moe_channel_destroy(ch);

    } else {
        ngx_http_moe_channel_again(ch, was_attached);
    }

    ngx_http_moe_resume_pending(engine);
    ngx_http_moe_slot_flush(engine);
}


/*
 * Another engine may be at the socket already, or the parent of the one that
 * is gone: requests of this moment then wait for it, and are not refused.  An
 * engine that is lost again within a second has to wait.
 */

static void
ngx_http_moe_channel_again(ngx_http_moe_channel_t *ch, ngx_uint_t was_attached)
{
    ngx_uint_t  jitter;

    if (was_attached
        && ngx_current_msec - ch->hurried >= NGX_HTTP_MOE_BACKOFF_MAX)
    {
        ch->hurried = ngx_current_msec;
        ngx_http_moe_channel_connect(ch);
        return;
    }

    jitter = (ngx_uint_t) ngx_random() % (ch->backoff / 2 + 1);

    ngx_add_timer(&ch->retry, ch->backoff + jitter);

    ch->backoff = ngx_min(ch->backoff * 2, NGX_HTTP_MOE_BACKOFF_MAX);
}


/* Its engine takes nothing more: is left with what it has, but not in the
 * middle of a choice, and another one connects in its place. */

void
ngx_http_moe_channel_retire(ngx_http_moe_channel_t *ch)
{
    if (!ch->retire) {
        ch->retire = 1;
        ngx_post_event(&ch->fault, &ngx_posted_events);
    }
}


static void
ngx_http_moe_channel_replace(ngx_http_moe_channel_t *ch)
{
    ngx_http_moe_channel_t  *next;

    next = ngx_http_moe_channel_create(ch->link, ch->log);

    if (next == NULL) {
        ngx_http_moe_channel_fault(ch, "no memory for its successor");
        return;
    }

    ch->retired = 1;
    ngx_queue_insert_tail(&ch->engine->retired, &ch->queue);
    ch->link->channel = next;

    ngx_http_moe_channel_connect(next);
}


static void
ngx_http_moe_channel_close(ngx_http_moe_channel_t *ch)
{
    ngx_uint_t    i;
    ngx_event_t  *timers[3] = { &ch->retry, &ch->tick, &ch->room };

    ch->state = NGX_HTTP_MOE_DOWN;
    ch->reason = NULL;
    ch->retire = 0;
    ch->late = 0;

    for (i = 0; i < 3; i++) {
        if (timers[i]->timer_set) {
            ngx_del_timer(timers[i]);
        }
    }

    if (ch->next.posted) {
        ngx_delete_posted_event(&ch->next);
    }

    if (ch->fault.posted) {
        ngx_delete_posted_event(&ch->fault);
    }

    if (ch->sock) {
        ngx_close_connection(ch->sock);
        ch->sock = NULL;
    }

    if (ch->bell) {
        ngx_close_connection(ch->bell);
        ch->bell = NULL;
    }

    ring_memory_close(&ch->own);
    ring_view_close(&ch->peer);
}


/* The peer cannot be believed: detaches, but not in the middle of a pass. */

void
ngx_http_moe_channel_fault(ngx_http_moe_channel_t *ch, const char *reason)
{
    if (ch->reason == NULL) {
        ch->reason = reason;
        ngx_post_event(&ch->fault, &ngx_posted_events);
    }
}


static void
ngx_http_moe_channel_fault_handler(ngx_event_t *ev)
{
    ngx_http_moe_channel_t  *ch = ev->data;

    if (ch->state == NGX_HTTP_MOE_ATTACHED && ch->reason) {

        ngx_log_error(NGX_LOG_ERR, ch->log, 0,
                      "engine \"%V\" broke the contract: %s",
                      &ch->engine->name, ch->reason);

        ch->quiet = 1;
        ngx_http_moe_channel_down(ch, ch->reason);
        return;
    }

    if (ch->state == NGX_HTTP_MOE_ATTACHED && ch->retire && !ch->retired) {
        ngx_http_moe_channel_replace(ch);
    }
}


/* After the handshake the socket is silent: whatever comes is its end. */

static void
ngx_http_moe_channel_sock_handler(ngx_event_t *ev)
{
    u_char                   byte;
    ssize_t                  n;
    ngx_uint_t               i;
    ngx_connection_t        *c;
    ngx_http_moe_channel_t  *ch;

    c = ev->data;
    ch = c->data;

    if (ch->state == NGX_HTTP_MOE_ATTACHING) {
        ngx_http_moe_channel_welcome(ch);
        return;
    }

    n = recv(c->fd, &byte, 1, MSG_DONTWAIT);

    if (n == -1 && (ngx_errno == NGX_EAGAIN || ngx_errno == NGX_EINTR)) {
        return;
    }

    if (n > 0) {
        ngx_http_moe_channel_fault(ch, "message after the handshake");
        return;
    }

    /* What it said before it died still counts. */

    for (i = 0; i < NGX_HTTP_MOE_LAST_PASSES; i++) {
        ngx_http_moe_slot_drain(ch);

        if (!ch->next.posted) {
            break;
        }
    }

    ngx_http_moe_channel_down(ch, "the engine is gone");
}


static void
ngx_http_moe_channel_bell_handler(ngx_event_t *ev)
{
    ngx_connection_t        *c;
    ngx_http_moe_channel_t  *ch;

    c = ev->data;
    ch = c->data;

    /* An edge needs no read, until the queue could be full; before a look at
     * the ring then, never after it.  Its end is noticed on the socket. */

    if (ch->n_sleeps >= RING_BELLS_UNREAD
        || !(ngx_event_flags & NGX_USE_CLEAR_EVENT))
    {
        ch->n_sleeps = 0;
        (void) ring_bell_drain(c->fd);
    }

    ngx_http_moe_slot_drain(ch);
}


static void
ngx_http_moe_channel_retry_handler(ngx_event_t *ev)
{
    ngx_http_moe_channel_t  *ch = ev->data;

    if (ch->state == NGX_HTTP_MOE_ATTACHING) {
        ngx_http_moe_channel_down(ch, "no WELCOME in time");
        return;
    }

    ngx_http_moe_channel_connect(ch);
}


/* Whether something waits whose bell may yet be on its way: is to be looked at
 * again.  What then still waits has lost it. */

static ngx_uint_t
ngx_http_moe_channel_late(ngx_http_moe_channel_t *ch)
{
    ngx_uint_t  waits;

    waits = (ring_word_get(&ch->peer.page->tail) != ch->rx.head);

    if (ch->late) {
        ch->late = 0;

        if (waits && ch->rx.head == ch->late_head) {
            ch->link->n_missed++;
            ngx_http_moe_metrics_add(ch->engine, n_missed, 1);
        }

        return 0;
    }

    ch->late = waits;
    ch->late_head = ch->rx.head;

    return waits;
}


/* Life signs both ways, and a look at the ring in case a bell was lost. */

static void
ngx_http_moe_channel_tick_handler(ngx_event_t *ev)
{
    uint64_t                 n;
    ngx_http_moe_channel_t  *ch;

    ch = ev->data;

    if (ch->state != NGX_HTTP_MOE_ATTACHED) {
        return;
    }

    ngx_add_timer(&ch->tick, NGX_HTTP_MOE_TICK_MSEC);

    n = ring_word_get(&ch->own.page->heartbeat);
    ring_word_set(&ch->own.page->heartbeat, n + 1);

    n = ring_word_get(&ch->peer.page->heartbeat);

    if (n != ch->heartbeat) {
        ch->heartbeat = n;
        ch->heartbeat_seen = ngx_current_msec;

    } else if (ngx_current_msec - ch->heartbeat_seen
               > ch->engine->heartbeat)
    {
        ngx_http_moe_channel_fault(ch, "its heart has stopped");
        return;
    }

    if (ngx_http_moe_channel_late(ch)) {
        ngx_add_timer(&ch->tick, NGX_HTTP_MOE_LATE_MSEC);
        return;
    }

    ngx_http_moe_slot_drain(ch);

    ngx_http_moe_slot_stuck(ch);

    if (ring_word_get(&ch->peer.page->state) != ABI_STATE_READY) {
        ngx_http_moe_channel_retire(ch);
    }

    if (ch->retired && ch->n_used == 0) {
        ngx_http_moe_channel_destroy(ch);
        return;
    }

    /* Those who found no room. */

    ngx_http_moe_resume_pending(ch->engine);
}


static void
ngx_http_moe_channel_next_handler(ngx_event_t *ev)
{
    ngx_http_moe_channel_t  *ch = ev->data;

    ngx_http_moe_slot_drain(ch);
}
