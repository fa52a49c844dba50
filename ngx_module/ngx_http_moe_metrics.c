/*
 * ngx_http_moe_metrics.c - counters that all workers share.
 *
 * In: what happens to requests, counted where it happens.  Out: numbers that
 * ngx_http_moe_prometheus.c writes down.
 *
 * They lie in a zone that a reload keeps; each is added to atomically, and no
 * lock is taken.
 */

#include "ngx_http_moe_module.h"


#define NGX_HTTP_MOE_ZONE_SIZE  (1024 * 1024)


typedef struct {
    ngx_queue_t                engines;         /* ngx_http_moe_stat_t */
} ngx_http_moe_metrics_zone_t;


static ngx_int_t ngx_http_moe_metrics_init_zone(ngx_shm_zone_t *zone,
    void *data);
static ngx_http_moe_stat_t *ngx_http_moe_metrics_stat(ngx_slab_pool_t *shpool,
    ngx_str_t *name);


const ngx_uint_t  ngx_http_moe_edges[NGX_HTTP_MOE_EDGES] = {
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000,
    100000, 200000, 500000
};

const ngx_uint_t  ngx_http_moe_powers[NGX_HTTP_MOE_POWERS] = {
    1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304,
    16777216, 67108864
};


static void
ngx_http_moe_metrics_count(ngx_http_moe_histogram_t *h,
    const ngx_uint_t *edges, ngx_uint_t n_edges, uint64_t n)
{
    ngx_uint_t  i;

    for (i = 0; i < n_edges; i++) {
        if (n <= edges[i]) {
            break;
        }
    }

    (void) ngx_atomic_fetch_add(&h->count[i], 1);
    (void) ngx_atomic_fetch_add(&h->sum, (ngx_atomic_int_t) n);
}


void
ngx_http_moe_metrics_observe(ngx_http_moe_histogram_t *h, uint64_t n)
{
    ngx_http_moe_metrics_count(h, ngx_http_moe_edges, NGX_HTTP_MOE_EDGES, n);
}


ngx_int_t
ngx_http_moe_metrics_init(ngx_conf_t *cf)
{
    ngx_shm_zone_t            *zone;
    ngx_http_moe_main_conf_t  *mmcf;

    static ngx_str_t  name = ngx_string("moe_metrics");

    mmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_moe_module);

    if (mmcf->engines.nelts == 0) {
        return NGX_OK;
    }

    zone = ngx_shared_memory_add(cf, &name, NGX_HTTP_MOE_ZONE_SIZE,
                                 &ngx_http_moe_module);
    if (zone == NULL) {
        return NGX_ERROR;
    }

    zone->init = ngx_http_moe_metrics_init_zone;
    zone->data = mmcf;

    return NGX_OK;
}


/* After a reload the counters go on: an engine finds its own by name.  That
 * may be the reload of a configuration which is then given up, and does no
 * harm. */

static ngx_int_t
ngx_http_moe_metrics_init_zone(ngx_shm_zone_t *zone, void *data)
{
    ngx_uint_t                     i;
    ngx_slab_pool_t               *shpool;
    ngx_http_moe_engine_t        **engine;
    ngx_http_moe_main_conf_t      *mmcf;
    ngx_http_moe_metrics_zone_t   *mz;

    mmcf = zone->data;
    shpool = (ngx_slab_pool_t *) zone->shm.addr;

    if (shpool->data == NULL) {

        mz = ngx_slab_alloc(shpool, sizeof(ngx_http_moe_metrics_zone_t));
        if (mz == NULL) {
            return NGX_ERROR;
        }

        ngx_queue_init(&mz->engines);
        shpool->data = mz;
    }

    engine = mmcf->engines.elts;

    for (i = 0; i < mmcf->engines.nelts; i++) {

        engine[i]->stat = ngx_http_moe_metrics_stat(shpool, &engine[i]->name);

        if (engine[i]->stat == NULL) {
            ngx_log_error(NGX_LOG_EMERG, zone->shm.log, 0,
                          "too many moe_engine blocks: no memory for the "
                          "counters of \"%V\"", &engine[i]->name);
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


static ngx_http_moe_stat_t *
ngx_http_moe_metrics_stat(ngx_slab_pool_t *shpool, ngx_str_t *name)
{
    ngx_queue_t                  *q;
    ngx_http_moe_stat_t          *stat;
    ngx_http_moe_metrics_zone_t  *mz;

    mz = shpool->data;

    for (q = ngx_queue_head(&mz->engines);
         q != ngx_queue_sentinel(&mz->engines);
         q = ngx_queue_next(q))
    {
        stat = ngx_queue_data(q, ngx_http_moe_stat_t, queue);

        if (stat->len == name->len
            && ngx_memcmp(stat->name, name->data, name->len) == 0)
        {
            return stat;
        }
    }

    stat = ngx_slab_calloc(shpool, sizeof(ngx_http_moe_stat_t) + name->len);
    if (stat == NULL) {
        return NULL;
    }

    stat->len = name->len;
    ngx_memcpy(stat->name, name->data, name->len);
    ngx_queue_insert_tail(&mz->engines, &stat->queue);

    return stat;
}


/* What the engine says of a request that is done. */

void
ngx_http_moe_metrics_phases(ngx_http_moe_ctx_t *ctx,
    const struct abi_usage *usage)
{
    ngx_http_moe_kind_t  *kind;

    kind = ngx_http_moe_metrics_kind(ctx);

    ngx_http_moe_metrics_observe(&kind->prefill, usage->prefill_us / 1000);
    ngx_http_moe_metrics_observe(&kind->decode, usage->decode_us / 1000);
    ngx_http_moe_metrics_observe(&kind->inference,
                                 usage->prefill_us / 1000
                                 + usage->decode_us / 1000);
}


/* The tokens of a request that has begun, however it has ended. */

static void
ngx_http_moe_metrics_tokens(ngx_http_moe_ctx_t *ctx)
{
    ngx_http_moe_kind_t  *kind;

    kind = ngx_http_moe_metrics_kind(ctx);

    ngx_http_moe_metrics_observe(&kind->prompt, ctx->n_prompt);
    ngx_http_moe_metrics_observe(&kind->output, ctx->n_output);
    ngx_http_moe_metrics_observe(&kind->choices, ctx->params.abi.n_choices);

    ngx_http_moe_metrics_count(&kind->input_usage, ngx_http_moe_powers,
                               NGX_HTTP_MOE_POWERS, ctx->n_prompt);
    ngx_http_moe_metrics_count(&kind->output_usage, ngx_http_moe_powers,
                               NGX_HTTP_MOE_POWERS, ctx->n_output);

    if (ctx->params.abi.given & ABI_GIVEN_MAX_TOKENS) {
        ngx_http_moe_metrics_observe(&kind->max_tokens,
                                     ctx->params.abi.max_tokens);
    }
}


/* The request's part is over; is called once for each that was accepted. */

void
ngx_http_moe_metrics_end(ngx_http_moe_ctx_t *ctx)
{
    ngx_uint_t            i, kind;
    ngx_http_moe_stat_t  *stat;

    stat = ctx->engine->stat;

    if (ctx->end == NGX_HTTP_MOE_DONE) {
        i = (ctx->choices[0].reason == ABI_LENGTH) ? NGX_HTTP_MOE_END_LENGTH
                                                   : NGX_HTTP_MOE_END_STOP;

    } else if (ctx->end == NGX_HTTP_MOE_ERROR || ctx->error.status) {
        i = NGX_HTTP_MOE_END_ERROR;

    } else {
        i = NGX_HTTP_MOE_END_CANCELLED;
    }

    (void) ngx_atomic_fetch_add(&stat->n_ends[i], 1);
    (void) ngx_atomic_fetch_add(&stat->n_delivered,
                                (ngx_atomic_int_t) ctx->n_delivered);

    kind = ctx->api->kind
           + (i == NGX_HTTP_MOE_END_ERROR ? NGX_HTTP_MOE_FAILED : 0);

    ngx_http_moe_metrics_observe(&stat->kinds[kind].duration,
                                 ngx_current_msec - ctx->submitted);

    if (ctx->start) {
        ngx_http_moe_metrics_tokens(ctx);
    }
}
