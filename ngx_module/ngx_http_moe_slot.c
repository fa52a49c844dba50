/*
 * ngx_http_moe_slot.c - requests and events over an attached channel.
 *
 * In: payloads to carry, cancellations and credits; frames of an engine that
 * is not trusted.  Out: REQUEST, CANCEL and CREDIT frames; events that are
 * checked to the last byte before anything acts on them.  A frame that cannot
 * be honest faults the channel.
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

#define ngx_http_moe_pad4(n)  (((n) + (size_t) 3) & ~(size_t) 3)


static void ngx_http_moe_slot_started(ngx_http_moe_channel_t *ch,
    ngx_http_moe_slot_t *slot);
static void ngx_http_moe_slot_free(ngx_http_moe_channel_t *ch,
    ngx_http_moe_slot_t *slot);
static ngx_int_t ngx_http_moe_slot_put(ngx_http_moe_channel_t *ch,
    ngx_http_moe_slot_t *slot, ngx_uint_t type, ngx_uint_t flags,
    const void *data, size_t n, uint32_t keep);
static ngx_int_t ngx_http_moe_slot_fragments(ngx_http_moe_channel_t *ch,
    ngx_http_moe_ctx_t *ctx);
static void ngx_http_moe_slot_notes(ngx_http_moe_channel_t *ch,
    ngx_http_moe_slot_t *slot);
static void ngx_http_moe_slot_publish(ngx_http_moe_channel_t *ch);
static const char *ngx_http_moe_slot_event(ngx_http_moe_channel_t *ch,
    const struct abi_frame *f, const u_char *data);
static const char *ngx_http_moe_slot_terminal(ngx_http_moe_channel_t *ch,
    ngx_http_moe_slot_t *slot, const struct abi_frame *f, const u_char *data);
static const char *ngx_http_moe_slot_delta(ngx_http_moe_ctx_t *ctx,
    const u_char *data, size_t n);
static const char *ngx_http_moe_slot_logprobs(const u_char *p,
    const u_char *end, ngx_uint_t n);
static void ngx_http_moe_slot_failed(ngx_http_moe_ctx_t *ctx,
    const struct abi_error *e, const u_char *text);
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


static void
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

static void
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

        reason = ngx_http_moe_slot_event(ch, &f, data);

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

        ngx_http_moe_stream_flush(ctx);
        ngx_http_run_posted_requests(c);
    }
}


/* NULL, or what is wrong with the frame. */

static const char *
ngx_http_moe_slot_event(ngx_http_moe_channel_t *ch, const struct abi_frame *f,
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
        return ngx_http_moe_slot_terminal(ch, slot, f, data);
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
        reason = ngx_http_moe_slot_delta(ctx, data, f->n_bytes);
        break;

    case ABI_PROMPT:
        if (!(ctx->params.abi.flags & ABI_FLAG_PROMPT_LOGPROBS)) {
            return "PROMPT that was not asked for";
        }

        reason = ngx_http_moe_slot_logprobs(data, data + f->n_bytes, 1);

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
ngx_http_moe_slot_terminal(ngx_http_moe_channel_t *ch,
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
        ngx_http_moe_slot_failed(ctx, &e, data + sizeof(struct abi_error));
        ngx_http_moe_stream_error(ctx);
    }

    ngx_http_moe_slot_touch(ctx);

    return NULL;
}


static void
ngx_http_moe_slot_failed(ngx_http_moe_ctx_t *ctx, const struct abi_error *e,
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
ngx_http_moe_slot_delta(ngx_http_moe_ctx_t *ctx, const u_char *data, size_t n)
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

    reason = ngx_http_moe_slot_logprobs(data + at, data + n, d.n_logprobs);

    if (reason) {
        return reason;
    }

    ngx_http_moe_stream_delta(ctx, &delta);

    return NULL;
}


static const char *
ngx_http_moe_slot_logprobs(const u_char *p, const u_char *end, ngx_uint_t n)
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
ngx_http_moe_slot_logprob(const u_char **p, ngx_http_moe_logprob_t *lp)
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
