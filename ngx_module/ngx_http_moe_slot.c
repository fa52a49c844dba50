/*
 * ngx_http_moe_slot.c - requests and events over an attached channel.
 *
 * In: payloads to carry, cancellations and credits; frames of an engine, for
 * event.c to look into.  Out: REQUEST, CANCEL and CREDIT frames.
 *
 * Each use of a slot has a generation of its own, and a slot is free again
 * only when the engine has said its last word about that use.
 *
 * Must not know HTTP or JSON.
 */

#include "ngx_http_moe_module.h"


/* One pass handles at most that many frames, then others have their turn. */
#define NGX_HTTP_MOE_PASS_FRAMES  256
#define NGX_HTTP_MOE_PASS_NSEC    200000

/* Looks again this often (ms) while the request ring is full: 1 MiB each time
 * is far more than an engine can tokenise. */
#define NGX_HTTP_MOE_ROOM_MSEC    2

/* An engine that has not answered a CANCEL by then (ms) leaks slots. */
#define NGX_HTTP_MOE_STUCK_MSEC   120000


static ngx_int_t ngx_http_moe_slot_put(ngx_http_moe_channel_t *ch,
    ngx_http_moe_slot_t *slot, ngx_uint_t type, ngx_uint_t flags,
    const void *data, size_t n, uint32_t keep);
static ngx_int_t ngx_http_moe_slot_fragments(ngx_http_moe_channel_t *ch,
    ngx_http_moe_ctx_t *ctx);
static void ngx_http_moe_slot_notes(ngx_http_moe_channel_t *ch,
    ngx_http_moe_slot_t *slot);
static void ngx_http_moe_slot_publish(ngx_http_moe_channel_t *ch);
static ngx_uint_t ngx_http_moe_slot_late(const struct timespec *start);


void
ngx_http_moe_slot_reset(ngx_http_moe_channel_t *ch)
{
    uint32_t  i;

    for (i = 0; i < ch->engine->streams; i++) {
        ngx_memzero(&ch->slots[i], sizeof(ngx_http_moe_slot_t));
        ch->slots[i].next = i + 1;
    }

    ch->free = 0;
    ch->n_used = 0;
    ch->n_queued = 0;
}


void
ngx_http_moe_slot_free(ngx_http_moe_channel_t *ch, ngx_http_moe_slot_t *slot)
{
    slot->state = NGX_HTTP_MOE_SLOT_FREE;
    slot->ctx = NULL;
    slot->cancel = 0;
    slot->unsent = 0;
    slot->credit = 0;
    slot->next = ch->free;

    ngx_http_moe_slot_started(ch, slot);

    ch->n_used--;
    ch->free = (uint32_t) (slot - ch->slots);
}


/* It waits no more: the engine has admitted it, or will not. */

void
ngx_http_moe_slot_started(ngx_http_moe_channel_t *ch,
    ngx_http_moe_slot_t *slot)
{
    ch->n_queued -= slot->queued;
    slot->queued = 0;
}


/* NGX_OK: the request has a slot, and goes as soon as the ring has room. */

ngx_int_t
ngx_http_moe_slot_submit(ngx_http_moe_channel_t *ch, ngx_http_moe_ctx_t *ctx)
{
    ngx_http_moe_slot_t  *slot;

    if (ch->free == ch->engine->streams) {
        return NGX_BUSY;
    }

    slot = &ch->slots[ch->free];
    ch->free = slot->next;
    ch->n_used++;
    ch->n_queued++;

    slot->gen = ++ch->gen;
    slot->ctx = ctx;
    slot->window = ch->window;
    slot->state = NGX_HTTP_MOE_SLOT_WAITING;
    slot->queued = 1;

    ctx->slot = slot;
    ctx->channel = ch;
    ctx->in_queue = 1;

    ngx_queue_insert_tail(&ch->sending, &ctx->queue);

    ngx_http_moe_slot_push(ch);

    return NGX_OK;
}


/* The context goes; the engine is told if it knows of the request. */

void
ngx_http_moe_slot_leave(ngx_http_moe_ctx_t *ctx)
{
    ngx_http_moe_slot_t     *slot;
    ngx_http_moe_channel_t  *ch;

    if (ctx->in_queue) {
        ctx->in_queue = 0;
        ngx_queue_remove(&ctx->queue);
    }

    ch = ctx->channel;
    slot = ctx->slot;

    ctx->slot = NULL;

    if (slot == NULL) {
        return;
    }

    slot->ctx = NULL;

    if (slot->state == NGX_HTTP_MOE_SLOT_WAITING) {
        ngx_http_moe_slot_free(ch, slot);
        return;
    }

    slot->cancel = 1;
    slot->unsent = 1;
    slot->cancelled = ngx_current_msec;

    ngx_http_moe_slot_notes(ch, slot);
    ngx_http_moe_slot_publish(ch);
}


void
ngx_http_moe_slot_credit(ngx_http_moe_ctx_t *ctx, uint32_t n_cells)
{
    ngx_http_moe_slot_t  *slot;

    slot = ctx->slot;

    if (slot == NULL) {
        return;
    }

    slot->credit += n_cells;

    if (slot->credit >= ctx->channel->refill) {
        ngx_http_moe_slot_notes(ctx->channel, slot);
        ngx_http_moe_slot_publish(ctx->channel);
    }
}


/* CANCEL and CREDIT, where they are due; the ring keeps room for them. */

static void
ngx_http_moe_slot_notes(ngx_http_moe_channel_t *ch, ngx_http_moe_slot_t *slot)
{
    ngx_int_t          rc;
    struct abi_credit  credit;

    rc = RING_OK;

    if (slot->unsent) {
        rc = ngx_http_moe_slot_put(ch, slot, ABI_CANCEL, 0, NULL, 0, 0);

        if (rc == RING_OK) {
            slot->unsent = 0;
        }

    } else if (!slot->cancel && slot->credit >= ch->refill) {

        credit.n_cells = slot->credit;
        credit.zero = 0;

        rc = ngx_http_moe_slot_put(ch, slot, ABI_CREDIT, 0, &credit,
                                   sizeof(struct abi_credit), 0);

        if (rc == RING_OK) {
            slot->window += slot->credit;
            slot->credit = 0;
        }
    }

    if (rc == RING_AGAIN && !ch->room.timer_set) {
        ngx_add_timer(&ch->room, NGX_HTTP_MOE_ROOM_MSEC);
    }
}


static ngx_int_t
ngx_http_moe_slot_put(ngx_http_moe_channel_t *ch, ngx_http_moe_slot_t *slot,
    ngx_uint_t type, ngx_uint_t flags, const void *data, size_t n,
    uint32_t keep)
{
    int               rc;
    struct abi_frame  f;

    if (ch->state != NGX_HTTP_MOE_ATTACHED || ch->reason) {
        return RING_FAULT;
    }

    f.n_bytes = (uint32_t) n;
    f.type = (uint8_t) type;
    f.flags = (uint8_t) flags;
    f.slot = (uint16_t) (slot - ch->slots);
    f.gen = slot->gen;

    rc = ring_put(&ch->tx, &f, data, n, NULL, 0, keep);

    if (rc == RING_FAULT) {
        ngx_http_moe_channel_fault(ch, "impossible head of the request ring");
    }

    return rc;
}


/* Puts what waits into the ring, as far as it has room. */

void
ngx_http_moe_slot_push(ngx_http_moe_channel_t *ch)
{
    ngx_int_t            rc;
    ngx_queue_t         *q;
    ngx_http_moe_ctx_t  *ctx;

    while (!ngx_queue_empty(&ch->sending)) {

        q = ngx_queue_head(&ch->sending);
        ctx = ngx_queue_data(q, ngx_http_moe_ctx_t, queue);

        rc = ngx_http_moe_slot_fragments(ch, ctx);

        if (rc == RING_AGAIN && !ch->room.timer_set) {
            ngx_add_timer(&ch->room, NGX_HTTP_MOE_ROOM_MSEC);
        }

        if (rc != RING_OK) {
            break;
        }

        ngx_queue_remove(q);
        ctx->in_queue = 0;

        /* Kept where it may have to be sent again. */

        if (ctx->engine->resume_timeout == 0
            && ctx->engine->peers.nelts == 1)
        {
            (void) ngx_pfree(ctx->request->pool, ctx->payload);
            ctx->payload = NULL;
        }
    }

    ngx_http_moe_slot_publish(ch);
}


static ngx_int_t
ngx_http_moe_slot_fragments(ngx_http_moe_channel_t *ch,
    ngx_http_moe_ctx_t *ctx)
{
    size_t                n;
    uint32_t              keep;
    ngx_int_t             rc;
    ngx_uint_t            flags;
    ngx_http_moe_slot_t  *slot;

    slot = ctx->slot;
    keep = 2 * (uint32_t) ch->engine->streams;

    while (ctx->n_sent < ctx->n_payload) {

        n = ctx->n_payload - ctx->n_sent;
        flags = 0;

        if (n > ABI_FRAME_MAX - sizeof(struct abi_frame)) {
            n = ABI_FRAME_MAX - sizeof(struct abi_frame);
            flags = ABI_MORE;
        }

        rc = ngx_http_moe_slot_put(ch, slot, ABI_REQUEST, flags,
                                   ctx->payload + ctx->n_sent, n, keep);

        if (rc != RING_OK) {
            return rc;
        }

        ctx->n_sent += n;

        if (slot->state == NGX_HTTP_MOE_SLOT_WAITING) {
            slot->state = NGX_HTTP_MOE_SLOT_SENDING;
            ch->link->n_accepted++;
            ch->link->n_open++;
            ch->link->n_resumed += ctx->resumed;
            ngx_http_moe_metrics_add(ch->engine, n_resumed, ctx->resumed);
        }
    }

    slot->state = NGX_HTTP_MOE_SLOT_OPEN;

    return RING_OK;
}


static void
ngx_http_moe_slot_publish(ngx_http_moe_channel_t *ch)
{
    if (ch->state != NGX_HTTP_MOE_ATTACHED || ch->draining) {
        return;
    }

    if (ring_publish(&ch->tx)) {
        ring_bell_ring(ch->bell->fd);
    }
}


/* The ring was full: tries again. */

void
ngx_http_moe_slot_room(ngx_event_t *ev)
{
    uint32_t                 i;
    ngx_http_moe_slot_t     *slot;
    ngx_http_moe_channel_t  *ch;

    ch = ev->data;

    if (ch->state != NGX_HTTP_MOE_ATTACHED) {
        return;
    }

    for (i = 0; i < ch->engine->streams; i++) {
        slot = &ch->slots[i];

        if (slot->state >= NGX_HTTP_MOE_SLOT_SENDING) {
            ngx_http_moe_slot_notes(ch, slot);
        }
    }

    ngx_http_moe_slot_push(ch);
}


void
ngx_http_moe_slot_drain(ngx_http_moe_channel_t *ch)
{
    ngx_int_t          rc;
    ngx_uint_t         n;
    const char        *reason;
    struct timespec    start;
    struct abi_frame   f;

    /* Frames are copied here, and are looked at nowhere else. */

    static u_char  data[ABI_EVENT_MAX] __attribute__((aligned(8)));

    if (ch->state != NGX_HTTP_MOE_ATTACHED || ch->reason || ch->draining) {
        return;
    }

    ch->draining = 1;
    reason = NULL;
    n = 0;

    clock_gettime(CLOCK_MONOTONIC, &start);

    for ( ;; ) {
        rc = ring_get(&ch->rx, &f, data);

        if (rc == RING_FAULT) {
            reason = "impossible frame in the event ring";
        }

        if (rc != RING_OK) {
            break;
        }

        reason = ngx_http_moe_event(ch, &f, data);

        if (reason) {
            break;
        }

        if (++n == NGX_HTTP_MOE_PASS_FRAMES
            || (n % 32 == 0 && ngx_http_moe_slot_late(&start)))
        {
            break;
        }
    }

    if (reason) {
        ngx_http_moe_channel_fault(ch, reason);
    }

    ngx_http_moe_metrics_add(ch->engine, n_wakeups, 1);
    ngx_http_moe_metrics_add(ch->engine, n_frames, n);

    /* Room first, credits after: abi.h. */

    ring_release(&ch->rx);

    ngx_http_moe_slot_flush(ch->engine);

    ch->draining = 0;

    ngx_http_moe_slot_publish(ch);

    if (ch->reason) {
        return;
    }

    if (rc == RING_AGAIN) {
        ch->n_sleeps++;
        rc = ring_sleep(&ch->rx);

        if (rc == RING_OK) {
            return;
        }

        if (rc == RING_FAULT) {
            ngx_http_moe_channel_fault(ch, "impossible tail of the event "
                                           "ring");
            return;
        }
    }

    ngx_post_event(&ch->next, &ngx_posted_next_events);
}


static ngx_uint_t
ngx_http_moe_slot_late(const struct timespec *start)
{
    struct timespec  now;

    clock_gettime(CLOCK_MONOTONIC, &now);

    return (now.tv_sec - start->tv_sec) * 1000000000L
           + (now.tv_nsec - start->tv_nsec) > NGX_HTTP_MOE_PASS_NSEC;
}


void
ngx_http_moe_slot_touch(ngx_http_moe_ctx_t *ctx)
{
    if (!ctx->in_touched && !ctx->closed) {
        ctx->in_touched = 1;
        ngx_queue_insert_tail(&ctx->engine->touched, &ctx->touch);
    }
}


/* Finalising one request may free others: only the head is ever held. */

void
ngx_http_moe_slot_flush(ngx_http_moe_engine_t *engine)
{
    ngx_queue_t         *q;
    ngx_connection_t    *c;
    ngx_http_moe_ctx_t  *ctx;

    while (!ngx_queue_empty(&engine->touched)) {

        q = ngx_queue_head(&engine->touched);
        ngx_queue_remove(q);

        ctx = ngx_queue_data(q, ngx_http_moe_ctx_t, touch);
        ctx->in_touched = 0;

        c = ctx->request->connection;

        ngx_http_set_log_request(c->log, ctx->request);

        ngx_http_moe_output_flush(ctx);
        ngx_http_run_posted_requests(c);
    }
}


/* The channel is gone, and all that it carried. */

void
ngx_http_moe_slot_lost(ngx_http_moe_channel_t *ch)
{
    uint32_t              i;
    ngx_http_moe_ctx_t   *ctx;
    ngx_http_moe_slot_t  *slot;

    for (i = 0; i < ch->engine->streams; i++) {

        slot = &ch->slots[i];
        ctx = slot->ctx;

        if (slot->state >= NGX_HTTP_MOE_SLOT_SENDING) {
            ch->link->n_error++;
            ch->link->n_open--;
        }

        if (ctx == NULL) {
            continue;
        }

        ctx->slot = NULL;

        if (ctx->in_queue) {
            ctx->in_queue = 0;
            ngx_queue_remove(&ctx->queue);
        }

        ngx_http_moe_resume_lost(ctx, "The engine was lost. Please retry "
                                      "shortly.");
    }

    ngx_http_moe_slot_reset(ch);
}


void
ngx_http_moe_slot_stuck(ngx_http_moe_channel_t *ch)
{
    uint32_t              i;
    ngx_http_moe_slot_t  *slot;

    for (i = 0; i < ch->engine->streams; i++) {

        slot = &ch->slots[i];

        if (slot->state >= NGX_HTTP_MOE_SLOT_SENDING && slot->cancel
            && ngx_current_msec - slot->cancelled > NGX_HTTP_MOE_STUCK_MSEC)
        {
            ngx_http_moe_channel_fault(ch, "a CANCEL was not answered");
            return;
        }
    }
}
