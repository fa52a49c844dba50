/*
 * ngx_http_moe_limit.c - token budgets, of a key, in a zone that all workers
 * share and that a reload keeps.
 *
 * In: who asks, and tokens as they are read and generated.  Out: leave to go
 * on, or none; headers that say what is left.
 *
 * Nothing is reserved and so nothing can leak.  A prompt is charged when the
 * engine has counted it, before it is computed, and refused if the budget has
 * not that much; every token is charged as it passes, and when nothing is left
 * the answer ends there.  What is generated for a client that has left, until
 * the engine hears of it, was charged as well.  So a budget is exceeded by the
 * tokens of one step at most.
 *
 * A budget is a bucket (rate and burst), or a quota per hour, day or month
 * (UTC), or both.  All sums are in thousandths of a token.
 *
 * Must not know frames or JSON.
 */

#include "ngx_http_moe_module.h"


/* Nodes to be forgotten at once for a new one, which may need a whole page. */
#define NGX_HTTP_MOE_FORGET   256


/* What a key has left; INT64_MAX: there is no such budget. */

typedef struct {
    int64_t                    bucket;
    int64_t                    quota;
} ngx_http_moe_limit_left_t;


#define ngx_http_moe_limit_least(l)  ngx_min((l)->bucket, (l)->quota)


static ngx_int_t ngx_http_moe_limit_charge(ngx_http_moe_ctx_t *ctx,
    ngx_uint_t i, int64_t cost, ngx_uint_t strict,
    ngx_http_moe_limit_left_t *left);
static ngx_http_moe_limit_node_t *ngx_http_moe_limit_node(
    ngx_http_moe_limit_zone_t *lz, ngx_str_t *key, ngx_http_moe_limit_t *limit);
static void ngx_http_moe_limit_refresh(ngx_http_moe_limit_node_t *ln,
    ngx_http_moe_limit_t *limit);
static ngx_uint_t ngx_http_moe_limit_window(ngx_uint_t period, time_t *reset);
static ngx_int_t ngx_http_moe_limit_refuse(ngx_http_moe_ctx_t *ctx,
    ngx_uint_t i, const ngx_http_moe_limit_left_t *left, int64_t wanted);
static ngx_uint_t ngx_http_moe_limit_wait(ngx_http_moe_limit_t *limit,
    const ngx_http_moe_limit_left_t *left, int64_t wanted);
static void ngx_http_moe_limit_insert(ngx_rbtree_node_t *temp,
    ngx_rbtree_node_t *node, ngx_rbtree_node_t *sentinel);


/* Who is to be charged; NGX_OK: and has something left. */

ngx_int_t
ngx_http_moe_limit_begin(ngx_http_moe_ctx_t *ctx)
{
    ngx_str_t                  *key;
    ngx_uint_t                  i;
    ngx_http_request_t         *r;
    ngx_http_moe_limit_t       *limit;
    ngx_http_moe_loc_conf_t    *mlcf;
    ngx_http_moe_limit_left_t   left;
    ngx_http_moe_limit_zone_t  *lz;

    r = ctx->request;
    mlcf = ngx_http_get_module_loc_conf(r, ngx_http_moe_module);

    if (mlcf->limits == NULL || mlcf->limits->nelts == 0) {
        return NGX_OK;
    }

    limit = mlcf->limits->elts;

    key = ngx_pcalloc(r->pool, mlcf->limits->nelts * sizeof(ngx_str_t));
    if (key == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    for (i = 0; i < mlcf->limits->nelts; i++) {
        lz = limit[i].zone->data;

        if (ngx_http_complex_value(r, &lz->key, &key[i]) != NGX_OK) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        if (key[i].len > NGX_HTTP_MOE_KEY_MAX) {
            ngx_log_error(NGX_LOG_ERR, r->connection->log, 0,
                          "the value of the \"%V\" key is more than %d bytes",
                          &lz->key.value, NGX_HTTP_MOE_KEY_MAX);
            return ngx_http_moe_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, NULL,
                                      "The credentials are too long.");
        }
    }

    ctx->limits = mlcf->limits;
    ctx->keys = key;

    for (i = 0; i < ctx->limits->nelts; i++) {

        /* At least one token more. */

        if (ngx_http_moe_limit_charge(ctx, i, 0, 1, &left) != NGX_OK) {
            return ngx_http_moe_limit_refuse(ctx, i, &left, 1000);
        }
    }

    return NGX_OK;
}


static int64_t
ngx_http_moe_limit_cost(ngx_http_moe_ctx_t *ctx, ngx_http_moe_limit_t *limit)
{
    ngx_uint_t  n_cached;

    n_cached = ngx_min(ctx->n_cached, ctx->n_prompt);

    return (int64_t) (ctx->n_prompt - n_cached) * limit->prompt
           + (int64_t) n_cached * limit->cached;
}


/* NGX_OK: the prompt is charged; NGX_BUSY: and ctx->error. */

ngx_int_t
ngx_http_moe_limit_prompt(ngx_http_moe_ctx_t *ctx)
{
    int64_t                     cost;
    ngx_uint_t                  i;
    ngx_http_moe_limit_t       *limit;
    ngx_http_moe_limit_left_t   left;

    if (ctx->limits == NULL) {
        return NGX_OK;
    }

    limit = ctx->limits->elts;
    cost = 0;

    for (i = 0; i < ctx->limits->nelts; i++) {
        cost = ngx_http_moe_limit_cost(ctx, &limit[i]);

        if (ngx_http_moe_limit_charge(ctx, i, cost, 1, &left) != NGX_OK) {
            break;
        }
    }

    if (i < ctx->limits->nelts) {
        (void) ngx_http_moe_limit_refuse(ctx, i, &left, cost);

        /* Those before it have been charged for nothing. */

        while (i-- > 0) {
            cost = ngx_http_moe_limit_cost(ctx, &limit[i]);
            (void) ngx_http_moe_limit_charge(ctx, i, -cost, 0, &left);
        }

        return NGX_BUSY;
    }

    return NGX_OK;
}


/* NGX_OK: may go on; NGX_BUSY: these tokens were the last. */

ngx_int_t
ngx_http_moe_limit_tokens(ngx_http_moe_ctx_t *ctx, ngx_uint_t n)
{
    ngx_int_t                   rc;
    ngx_uint_t                  i;
    ngx_http_moe_limit_t       *limit;
    ngx_http_moe_limit_left_t   left;

    if (ctx->limits == NULL || n == 0) {
        return NGX_OK;
    }

    limit = ctx->limits->elts;
    rc = NGX_OK;

    for (i = 0; i < ctx->limits->nelts; i++) {
        if (ngx_http_moe_limit_charge(ctx, i, (int64_t) n * limit[i].completion,
                                      0, &left) != NGX_OK)
        {
            rc = NGX_BUSY;
        }
    }

    return rc;
}


/*
 * Charges `cost`.  strict: only if there is that much, and a token at least;
 * else in any case, and NGX_BUSY says that nothing is left.
 */

static ngx_int_t
ngx_http_moe_limit_charge(ngx_http_moe_ctx_t *ctx, ngx_uint_t i, int64_t cost,
    ngx_uint_t strict, ngx_http_moe_limit_left_t *left)
{
    int64_t                     least;
    ngx_int_t                   rc;
    ngx_http_moe_limit_t       *limit;
    ngx_http_moe_limit_node_t  *ln;
    ngx_http_moe_limit_zone_t  *lz;

    limit = (ngx_http_moe_limit_t *) ctx->limits->elts + i;
    lz = limit->zone->data;
    left->bucket = INT64_MAX;
    left->quota = INT64_MAX;

    if (ctx->keys[i].len == 0) {
        return NGX_OK;
    }

    rc = NGX_OK;

    ngx_shmtx_lock(&lz->shpool->mutex);

    ln = ngx_http_moe_limit_node(lz, &ctx->keys[i], limit);

    if (ln == NULL) {
        ngx_shmtx_unlock(&lz->shpool->mutex);

        ngx_log_error(NGX_LOG_ERR, ctx->request->connection->log, 0,
                      "no memory in zone \"%V\"", &limit->zone->shm.name);
        return NGX_OK;
    }

    if (limit->rate) {
        left->bucket = ln->left;
    }

    if (limit->quota) {
        left->quota = limit->quota - ln->used;
    }

    least = ngx_http_moe_limit_least(left);

    if (strict && (least < cost || least < 1000) && !limit->dry_run) {
        rc = NGX_BUSY;

    } else {
        if (limit->rate) {
            ln->left -= cost;
        }

        if (limit->quota) {
            ln->used += cost;
        }

        if (!strict && least - cost <= 0) {
            rc = NGX_BUSY;
        }
    }

    ngx_shmtx_unlock(&lz->shpool->mutex);

    if (limit->dry_run && (rc != NGX_OK || (strict && least < cost))) {
        ngx_log_error(NGX_LOG_NOTICE, ctx->request->connection->log, 0,
                      "token budget of zone \"%V\" is exceeded, dry run",
                      &limit->zone->shm.name);
        return NGX_OK;
    }

    return rc;
}


/* The key's node, brought up to date; under the lock. */

static ngx_http_moe_limit_node_t *
ngx_http_moe_limit_node(ngx_http_moe_limit_zone_t *lz, ngx_str_t *key,
    ngx_http_moe_limit_t *limit)
{
    size_t                      size;
    uint32_t                    hash;
    ngx_int_t                   rc;
    ngx_uint_t                  i;
    ngx_queue_t                *q;
    ngx_rbtree_node_t          *node, *sentinel;
    ngx_http_moe_limit_node_t  *ln;

    hash = ngx_crc32_short(key->data, key->len);

    node = lz->sh->rbtree.root;
    sentinel = lz->sh->rbtree.sentinel;

    while (node != sentinel) {

        if (hash != node->key) {
            node = (hash < node->key) ? node->left : node->right;
            continue;
        }

        ln = (ngx_http_moe_limit_node_t *) &node->color;

        rc = ngx_memn2cmp(key->data, ln->data, key->len, (size_t) ln->len);

        if (rc == 0) {
            ngx_queue_remove(&ln->queue);
            ngx_queue_insert_head(&lz->sh->queue, &ln->queue);
            ngx_http_moe_limit_refresh(ln, limit);
            return ln;
        }

        node = (rc < 0) ? node->left : node->right;
    }

    size = offsetof(ngx_rbtree_node_t, color)
           + offsetof(ngx_http_moe_limit_node_t, data) + key->len;

    node = ngx_slab_alloc_locked(lz->shpool, size);

    /* Makes room: who has not asked for the longest time is forgotten. */

    for (i = 0;
         node == NULL && i < NGX_HTTP_MOE_FORGET
         && !ngx_queue_empty(&lz->sh->queue);
         i++)
    {
        q = ngx_queue_last(&lz->sh->queue);
        ln = ngx_queue_data(q, ngx_http_moe_limit_node_t, queue);

        ngx_queue_remove(q);
        node = (ngx_rbtree_node_t *)
                   ((u_char *) ln - offsetof(ngx_rbtree_node_t, color));
        ngx_rbtree_delete(&lz->sh->rbtree, node);
        ngx_slab_free_locked(lz->shpool, node);

        node = ngx_slab_alloc_locked(lz->shpool, size);
    }

    if (node == NULL) {
        return NULL;
    }

    node->key = hash;

    ln = (ngx_http_moe_limit_node_t *) &node->color;

    ln->len = (u_short) key->len;
    ln->last = ngx_current_msec;
    ln->left = limit->rate ? limit->burst : INT64_MAX / 2;
    ln->used = 0;
    ln->window = limit->quota ? ngx_http_moe_limit_window(limit->period, NULL)
                              : 0;
    ngx_memcpy(ln->data, key->data, key->len);

    ngx_rbtree_insert(&lz->sh->rbtree, node);
    ngx_queue_insert_head(&lz->sh->queue, &ln->queue);

    return ln;
}


static void
ngx_http_moe_limit_refresh(ngx_http_moe_limit_node_t *ln,
    ngx_http_moe_limit_t *limit)
{
    double          more, rate;
    ngx_uint_t      window;
    ngx_msec_int_t  ms;

    ms = (ngx_msec_int_t) (ngx_current_msec - ln->last);

    /* Workers' clocks differ a little. */

    if (limit->rate && ms > 0) {
        rate = (double) limit->rate / (double) limit->per;
        more = (double) ms * rate;

        if ((double) ln->left + more >= (double) limit->burst) {
            ln->left = limit->burst;
            ln->last = ngx_current_msec;

        } else {

            /* What is not yet a thousandth is left to the next time. */

            ln->left += (int64_t) more;
            ln->last += (ngx_msec_t) ((double) (int64_t) more / rate);
        }
    }

    if (limit->rate && ln->left > limit->burst) {
        ln->left = limit->burst;
    }

    if (limit->quota) {
        window = ngx_http_moe_limit_window(limit->period, NULL);

        if (window != ln->window) {
            ln->window = window;
            ln->used = 0;
        }
    }
}


/* The number of the hour, day or month since 1970, and when the next begins. */

static ngx_uint_t
ngx_http_moe_limit_window(ngx_uint_t period, time_t *reset)
{
    time_t      now, left;
    ngx_tm_t    tm;
    ngx_uint_t  days;

    static ngx_uint_t  month_days[12] = {
        31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31
    };

    now = ngx_time();

    if (period != NGX_HTTP_MOE_MONTH) {
        left = (period == NGX_HTTP_MOE_HOUR) ? 3600 : 86400;

        if (reset) {
            *reset = left - now % left;
        }

        return (ngx_uint_t) (now / left);
    }

    ngx_gmtime(now, &tm);

    if (reset) {
        days = month_days[tm.ngx_tm_mon - 1];

        if (tm.ngx_tm_mon == 2 && tm.ngx_tm_year % 4 == 0
            && (tm.ngx_tm_year % 100 != 0 || tm.ngx_tm_year % 400 == 0))
        {
            days++;
        }

        *reset = (time_t) (days - (ngx_uint_t) tm.ngx_tm_mday) * 86400
                 + 86400 - now % 86400;
    }

    return (ngx_uint_t) tm.ngx_tm_year * 12 + (ngx_uint_t) tm.ngx_tm_mon;
}


/* Seconds until both have as much as that. */

static ngx_uint_t
ngx_http_moe_limit_wait(ngx_http_moe_limit_t *limit,
    const ngx_http_moe_limit_left_t *left, int64_t wanted)
{
    time_t      reset;
    ngx_uint_t  wait;

    reset = 0;

    if (left->quota < wanted) {
        (void) ngx_http_moe_limit_window(limit->period, &reset);
    }

    wanted = ngx_min(wanted, limit->burst);

    if (left->bucket >= wanted) {
        return (ngx_uint_t) reset;
    }

    wait = (ngx_uint_t) ((double) (wanted - left->bucket) * (double) limit->per
                         / (double) limit->rate / 1000.0) + 1;

    return ngx_max(wait, (ngx_uint_t) reset);
}


static ngx_int_t
ngx_http_moe_limit_refuse(ngx_http_moe_ctx_t *ctx, ngx_uint_t i,
    const ngx_http_moe_limit_left_t *left, int64_t wanted)
{
    int64_t                least;
    ngx_int_t              rc;
    ngx_uint_t             wait;
    ngx_http_moe_limit_t  *limit;

    limit = (ngx_http_moe_limit_t *) ctx->limits->elts + i;
    least = ngx_http_moe_limit_least(left);

    /* Less than one is not enough of anything. */

    wanted = ngx_max(wanted, 1000);

    ngx_log_error(NGX_LOG_WARN, ctx->request->connection->log, 0,
                  "limiting tokens, zone \"%V\", %L left",
                  &limit->zone->shm.name, least / 1000);

    wait = ngx_http_moe_limit_wait(limit, left, wanted);

    rc = ngx_http_moe_error(ctx, NGX_HTTP_TOO_MANY_REQUESTS,
                            left->quota < wanted ? "insufficient_quota"
                                                 : "rate_limit_exceeded",
                            NULL, "The token budget is used up: %L left. "
                            "Please retry in %ui s.",
                            ngx_max(least, 0) / 1000, ngx_max(wait, 1));

    ctx->error.retry_after = ngx_max(wait, 1);

    return rc;
}


/* What is left of the tightest budget, for the client. */

ngx_int_t
ngx_http_moe_limit_headers(ngx_http_moe_ctx_t *ctx)
{
    u_char                     *p;
    int64_t                     least, all;
    ngx_str_t                   s;
    ngx_uint_t                  i, wait;
    ngx_http_moe_limit_t       *limit;
    ngx_http_moe_limit_left_t   left;

    static const struct {
        const char  *name;
        const char  *fmt;
        ngx_uint_t   first;                     /* of all, left, wait */
    } headers[] = {
        { "RateLimit-Policy", "\"tokens\";q=%L", 0 },
        { "RateLimit", "\"tokens\";r=%L;t=%L", 1 },
        { "X-RateLimit-Limit-Tokens", "%L", 0 },
        { "X-RateLimit-Remaining-Tokens", "%L", 1 },
        { "X-RateLimit-Reset-Tokens", "%Ls", 2 }
    };

    if (ctx->limits == NULL) {
        return NGX_OK;
    }

    limit = ctx->limits->elts;
    least = INT64_MAX;
    all = 0;
    wait = 0;

    for (i = 0; i < ctx->limits->nelts; i++) {

        if (limit[i].dry_run || ctx->keys[i].len == 0) {
            continue;
        }

        (void) ngx_http_moe_limit_charge(ctx, i, 0, 0, &left);

        if (ngx_http_moe_limit_least(&left) >= least) {
            continue;
        }

        least = ngx_http_moe_limit_least(&left);

        /* Of the two the one that counts here. */

        if (left.quota <= left.bucket) {
            all = limit[i].quota;
            left.bucket = INT64_MAX;

        } else {
            all = limit[i].burst;
            left.quota = INT64_MAX;
        }

        wait = ngx_http_moe_limit_wait(&limit[i], &left, all);
    }

    if (least == INT64_MAX) {
        return NGX_OK;
    }

    least = ngx_max(least, 0);

    for (i = 0; i < sizeof(headers) / sizeof(headers[0]); i++) {

        p = ngx_pnalloc(ctx->request->pool, 64);
        if (p == NULL) {
            return NGX_ERROR;
        }

        s.data = p;

        switch (headers[i].first) {
        case 0:
            p = ngx_snprintf(p, 64, headers[i].fmt, all / 1000);
            break;

        case 1:
            p = ngx_snprintf(p, 64, headers[i].fmt, least / 1000,
                             (int64_t) wait);
            break;

        default:
            p = ngx_snprintf(p, 64, headers[i].fmt, (int64_t) wait);
        }

        s.len = (size_t) (p - s.data);

        if (ngx_http_moe_header_add(ctx->request, headers[i].name, &s)
            != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


static void
ngx_http_moe_limit_insert(ngx_rbtree_node_t *temp, ngx_rbtree_node_t *node,
    ngx_rbtree_node_t *sentinel)
{
    ngx_rbtree_node_t          **p;
    ngx_http_moe_limit_node_t   *ln, *lnt;

    for ( ;; ) {

        if (node->key != temp->key) {
            p = (node->key < temp->key) ? &temp->left : &temp->right;

        } else {
            ln = (ngx_http_moe_limit_node_t *) &node->color;
            lnt = (ngx_http_moe_limit_node_t *) &temp->color;

            p = (ngx_memn2cmp(ln->data, lnt->data, ln->len, lnt->len) < 0)
                ? &temp->left : &temp->right;
        }

        if (*p == sentinel) {
            break;
        }

        temp = *p;
    }

    *p = node;
    node->parent = temp;
    node->left = sentinel;
    node->right = sentinel;
    ngx_rbt_red(node);
}


ngx_int_t
ngx_http_moe_limit_init_zone(ngx_shm_zone_t *shm_zone, void *data)
{
    ngx_http_moe_limit_zone_t  *old = data;

    ngx_http_moe_limit_zone_t  *lz;

    lz = shm_zone->data;

    if (old) {
        if (lz->key.value.len != old->key.value.len
            || ngx_memcmp(lz->key.value.data, old->key.value.data,
                          lz->key.value.len) != 0)
        {
            ngx_log_error(NGX_LOG_EMERG, shm_zone->shm.log, 0,
                          "moe_token_zone \"%V\" uses the \"%V\" key while "
                          "previously it used the \"%V\" key",
                          &shm_zone->shm.name, &lz->key.value,
                          &old->key.value);
            return NGX_ERROR;
        }

        lz->sh = old->sh;
        lz->shpool = old->shpool;
        return NGX_OK;
    }

    lz->shpool = (ngx_slab_pool_t *) shm_zone->shm.addr;
    lz->shpool->log_nomem = 0;

    lz->sh = ngx_slab_alloc(lz->shpool, sizeof(ngx_http_moe_limit_sh_t));
    if (lz->sh == NULL) {
        return NGX_ERROR;
    }

    lz->shpool->data = lz->sh;

    ngx_rbtree_init(&lz->sh->rbtree, &lz->sh->sentinel,
                    ngx_http_moe_limit_insert);
    ngx_queue_init(&lz->sh->queue);

    if (lz->state.len) {
        ngx_http_moe_limit_state_load(shm_zone);
    }

    return NGX_OK;
}


/* A key's quota as it was; nobody else is there yet. */

ngx_int_t
ngx_http_moe_limit_restore(ngx_shm_zone_t *zone, ngx_str_t *key,
    ngx_uint_t window, int64_t used)
{
    ngx_http_moe_limit_t        none;
    ngx_http_moe_limit_node_t  *ln;

    ngx_memzero(&none, sizeof(ngx_http_moe_limit_t));

    ln = ngx_http_moe_limit_node(zone->data, key, &none);
    if (ln == NULL) {
        return NGX_ERROR;
    }

    ln->window = window;
    ln->used = used;

    return NGX_OK;
}
