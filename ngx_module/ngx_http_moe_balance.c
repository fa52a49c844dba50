/*
 * ngx_http_moe_balance.c - which engine of a group takes a request.
 *
 * In: the channels of this worker, and what the engines' pages say of their
 * load, read without asking.  Out: a channel, or why there is none.
 *
 * The least busy one; or, where the group says so, the one that has the same
 * beginning of a prompt in its cache already, unless it is so much busier than
 * the others that reading the prompt anew is the smaller evil.  The choice by
 * prefix is the same in every worker and after every restart (rendezvous
 * hashing).  Must not know HTTP.
 */

#include "ngx_http_moe_module.h"


#define NGX_HTTP_MOE_PREFIX_BYTES  1024

/* An engine may have a quarter more than its share, and a few. */
#define ngx_http_moe_bound(total, n)  ((total) * 5 / ((n) * 4) + 4)


static ngx_int_t ngx_http_moe_balance_usable(ngx_http_moe_ctx_t *ctx,
    ngx_http_moe_peer_t *peer);
static ngx_uint_t ngx_http_moe_balance_full(ngx_http_moe_channel_t *ch);
static uint64_t ngx_http_moe_balance_load(ngx_http_moe_channel_t *ch);
static uint64_t ngx_http_moe_balance_sent(ngx_http_moe_channel_t *ch);
static uint32_t ngx_http_moe_balance_mix(uint32_t key, uint32_t i);
static uint32_t ngx_http_moe_balance_key(ngx_http_moe_ctx_t *ctx);


/* NGX_OK: *ch; NGX_AGAIN: an engine may be there in a moment; NGX_BUSY: those
 * that are have no room; NGX_DECLINED: there is none. */

ngx_int_t
ngx_http_moe_balance(ngx_http_moe_ctx_t *ctx, ngx_http_moe_channel_t **ch)
{
    uint32_t                 key, weight, best_weight;
    uint64_t                 load[NGX_HTTP_MOE_PEERS_MAX], total, best_load;
    ngx_int_t                rc, usable[NGX_HTTP_MOE_PEERS_MAX];
    ngx_uint_t               i, n, by_prefix;
    ngx_http_moe_peer_t     *peer;
    ngx_http_moe_engine_t   *engine;

    engine = ctx->engine;
    peer = engine->peers.elts;
    total = 0;
    n = 0;
    rc = NGX_DECLINED;

    for (i = 0; i < engine->peers.nelts; i++) {

        usable[i] = ngx_http_moe_balance_usable(ctx, &peer[i]);

        if (usable[i] == NGX_OK) {
            load[i] = ngx_http_moe_balance_load(peer[i].channel);
            total += load[i];
            n++;

        } else if (usable[i] == NGX_AGAIN
                   || (usable[i] == NGX_BUSY && rc == NGX_DECLINED))
        {
            rc = usable[i];
        }
    }

    if (n == 0) {
        return rc;
    }

    by_prefix = (engine->by_prefix && n > 1);
    key = by_prefix ? ngx_http_moe_balance_key(ctx) : 0;
    best_weight = 0;
    best_load = 0;
    *ch = NULL;

    for (i = 0; i < engine->peers.nelts; i++) {

        if (usable[i] != NGX_OK) {
            continue;
        }

        if (by_prefix) {
            weight = ngx_http_moe_balance_mix(key, (uint32_t) i);

            if (load[i] <= ngx_http_moe_bound(total, n)
                && (*ch == NULL || weight > best_weight))
            {
                *ch = peer[i].channel;
                best_weight = weight;
            }

        } else if (*ch == NULL || load[i] < best_load) {
            *ch = peer[i].channel;
            best_load = load[i];
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_moe_balance_usable(ngx_http_moe_ctx_t *ctx, ngx_http_moe_peer_t *peer)
{
    ngx_http_moe_channel_t  *ch;

    ch = peer->channel;

    if (ch == NULL || ch->state == NGX_HTTP_MOE_DOWN
        || (ctx->tried & ((uint64_t) 1 << peer->index)))
    {
        return NGX_DECLINED;
    }

    if (ch->state == NGX_HTTP_MOE_ATTACHING) {
        return NGX_AGAIN;
    }

    if (ring_word_get(&ch->peer.page->state) != ABI_STATE_READY) {

        /* It ends what it has; its successor may be at the same socket. */

        ngx_http_moe_channel_retire(ch);

        return NGX_AGAIN;
    }

    return ngx_http_moe_balance_full(ch) ? NGX_BUSY : NGX_OK;
}


/* Whether one more would wait behind more requests, or more tokens of prompts,
 * than may wait. */

static ngx_uint_t
ngx_http_moe_balance_full(ngx_http_moe_channel_t *ch)
{
    uint64_t                max, n;
    const struct abi_page  *page;
    ngx_http_moe_engine_t  *engine;

    engine = ch->engine;
    page = ch->peer.page;

    if (ch->free == engine->streams) {
        return 1;
    }

    /*
     * The engine tells it once a step, and would refuse at the end of the next
     * one: this worker's own are counted as they go.  All that are more than
     * the batch has places wait; those without START alone would be too many,
     * since some of them run already.
     */

    max = ring_word_get(&page->max_running);
    n = (ch->n_used > max) ? ch->n_used - max : 0;
    n = ngx_min(n, ch->n_queued);
    n = ngx_max(n, ring_word_get(&page->n_queued));

    max = ring_word_get(&page->max_queued);

    if (n >= engine->queue || (max && n >= max)) {
        return 1;
    }

    n = ring_word_get(&page->n_queued_tok);
    max = ring_word_get(&page->max_queued_tok);

    return (engine->queue_tokens && n >= engine->queue_tokens)
           || (max && n >= max);
}


/* What the engine says, and what this worker has sent since it said so. */

static uint64_t
ngx_http_moe_balance_load(ngx_http_moe_channel_t *ch)
{
    return ring_word_get(&ch->peer.page->n_running)
           + ring_word_get(&ch->peer.page->n_queued)
           + ngx_http_moe_balance_sent(ch);
}


static uint64_t
ngx_http_moe_balance_sent(ngx_http_moe_channel_t *ch)
{
    uint64_t  load;

    load = ring_word_get(&ch->peer.page->n_running)
           + ring_word_get(&ch->peer.page->n_queued);

    if (load != ch->load) {
        ch->load = load;
        ch->n_used_then = ch->n_used;
    }

    return (ch->n_used > ch->n_used_then) ? ch->n_used - ch->n_used_then : 0;
}


/* MurmurHash3's last steps, which spread a difference in one bit over all. */

static uint32_t
ngx_http_moe_balance_mix(uint32_t key, uint32_t i)
{
    uint32_t  h;

    h = key ^ (i * 0x9e3779b9);
    h = (h ^ (h >> 16)) * 0x85ebca6b;
    h = (h ^ (h >> 13)) * 0xc2b2ae35;

    return h ^ (h >> 16);
}


static uint32_t
ngx_http_moe_balance_key(ngx_http_moe_ctx_t *ctx)
{
    size_t  n;

    n = ngx_min(ctx->params.abi.n_body, NGX_HTTP_MOE_PREFIX_BYTES);

    return ngx_crc32_long(ctx->payload + sizeof(struct abi_request), n);
}


/* Some channel that is attached; NULL: none. */

ngx_http_moe_channel_t *
ngx_http_moe_balance_any(ngx_http_moe_engine_t *engine)
{
    ngx_uint_t            i;
    ngx_http_moe_peer_t  *peer;

    peer = engine->peers.elts;

    for (i = 0; i < engine->peers.nelts; i++) {
        if (peer[i].channel
            && peer[i].channel->state == NGX_HTTP_MOE_ATTACHED)
        {
            return peer[i].channel;
        }
    }

    return NULL;
}


/* How many are ready to take a request. */

ngx_uint_t
ngx_http_moe_balance_ready(ngx_http_moe_engine_t *engine)
{
    ngx_uint_t            i, n;
    ngx_http_moe_peer_t  *peer;

    peer = engine->peers.elts;
    n = 0;

    for (i = 0; i < engine->peers.nelts; i++) {
        n += ngx_http_moe_channel_ready(peer[i].channel);
    }

    return n;
}
