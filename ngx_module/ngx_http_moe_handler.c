/*
 * ngx_http_moe_handler.c - from an HTTP request to a request in a slot.
 *
 * In: an HTTP request in a location of moe_pass.  Out: a parsed request that
 * is handed to a channel, or an error with the right status; the life of the
 * context, which ends, and cancels, when the client goes.
 *
 * Must not know frames, nor how answers are written.
 */

#include "ngx_http_moe_module.h"

#include <sys/random.h>


static ngx_int_t ngx_http_moe_route(ngx_http_request_t *r,
    const ngx_http_moe_api_t **api, ngx_str_t *id);
static ngx_uint_t ngx_http_moe_ends_with(ngx_str_t *uri, const char *tail);
static ngx_int_t ngx_http_moe_refuse(ngx_http_request_t *r, ngx_int_t status,
    const char *allow);
static void ngx_http_moe_body_handler(ngx_http_request_t *r);
static ngx_int_t ngx_http_moe_body_read(ngx_http_request_t *r, ngx_str_t *body);
static ngx_int_t ngx_http_moe_body_parse(ngx_http_moe_ctx_t *ctx,
    ngx_str_t *body);
static ngx_int_t ngx_http_moe_operator(ngx_http_moe_ctx_t *ctx);
static int32_t ngx_http_moe_priority(ngx_http_request_t *r,
    ngx_str_t *value);
static ngx_int_t ngx_http_moe_names(ngx_http_moe_ctx_t *ctx);
static ngx_int_t ngx_http_moe_id(ngx_http_moe_ctx_t *ctx);
static ngx_int_t ngx_http_moe_id_kept(ngx_http_moe_ctx_t *ctx, u_char *p,
    const u_char *random);
static ngx_uint_t ngx_http_moe_model_known(ngx_http_moe_ctx_t *ctx);
static ngx_int_t ngx_http_moe_model(ngx_http_moe_ctx_t *ctx,
    ngx_http_moe_channel_t *ch);
static void ngx_http_moe_cleanup(void *data);


enum {
    NGX_HTTP_MOE_ROUTE_NONE = 0,
    NGX_HTTP_MOE_ROUTE_MODELS,
    NGX_HTTP_MOE_ROUTE_STREAMS,
    NGX_HTTP_MOE_ROUTE_API
};


ngx_int_t
ngx_http_moe_handler(ngx_http_request_t *r)
{
    ngx_int_t                  rc;
    ngx_str_t                  id;
    ngx_uint_t                 route;
    ngx_http_moe_ctx_t        *ctx;
    const ngx_http_moe_api_t  *api;
    ngx_http_moe_loc_conf_t   *mlcf;

    mlcf = ngx_http_get_module_loc_conf(r, ngx_http_moe_module);

    api = NULL;
    route = ngx_http_moe_route(r, &api, &id);

    if (route == NGX_HTTP_MOE_ROUTE_NONE) {
        return ngx_http_moe_refuse(r, NGX_HTTP_NOT_FOUND, NULL);
    }

    if (route == NGX_HTTP_MOE_ROUTE_MODELS) {

        if (!(r->method & (NGX_HTTP_GET|NGX_HTTP_HEAD))) {
            return ngx_http_moe_refuse(r, NGX_HTTP_NOT_ALLOWED, "GET, HEAD");
        }

        return ngx_http_moe_models_handler(r, mlcf->engine, &id);
    }

    if (route == NGX_HTTP_MOE_ROUTE_STREAMS && mlcf->resume) {

        if (!(r->method & (NGX_HTTP_GET|NGX_HTTP_DELETE))) {
            return ngx_http_moe_refuse(r, NGX_HTTP_NOT_ALLOWED, "GET, DELETE");
        }

        return ngx_http_moe_rejoin_handler(r, &id);
    }

    if (route == NGX_HTTP_MOE_ROUTE_STREAMS) {
        return ngx_http_moe_refuse(r, NGX_HTTP_NOT_FOUND, NULL);
    }

    if (r->method != NGX_HTTP_POST) {
        return ngx_http_moe_refuse(r, NGX_HTTP_NOT_ALLOWED, "POST");
    }

    ctx = ngx_http_moe_ctx_create(r);
    if (ctx == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ctx->engine = mlcf->engine;
    ctx->api = api;

    r->request_body_in_single_buf = 1;

    rc = ngx_http_read_client_request_body(r, ngx_http_moe_body_handler);

    if (rc >= NGX_HTTP_SPECIAL_RESPONSE) {
        return rc;
    }

    return NGX_DONE;
}


/* By the end of the URI, so that any prefix, "/v1/" or another, will do. */

static ngx_int_t
ngx_http_moe_route(ngx_http_request_t *r, const ngx_http_moe_api_t **api,
    ngx_str_t *id)
{
    u_char  *p, *end;

    ngx_str_null(id);

    if (ngx_http_moe_ends_with(&r->uri, "/chat/completions")) {
        *api = &ngx_http_moe_api_chat;
        return NGX_HTTP_MOE_ROUTE_API;
    }

    if (ngx_http_moe_ends_with(&r->uri, "/completions")) {
        *api = &ngx_http_moe_api_completions;
        return NGX_HTTP_MOE_ROUTE_API;
    }

    if (ngx_http_moe_ends_with(&r->uri, "/models")) {
        return NGX_HTTP_MOE_ROUTE_MODELS;
    }

    end = r->uri.data + r->uri.len;

    p = memmem(r->uri.data, r->uri.len, "/streams/", 9);

    if (p) {
        id->data = p + 9;
        id->len = (size_t) (end - id->data);
        return NGX_HTTP_MOE_ROUTE_STREAMS;
    }

    /* A model's name may have slashes of its own. */

    p = memmem(r->uri.data, r->uri.len, "/models/", 8);

    if (p && end - p > 8) {
        id->data = p + 8;
        id->len = (size_t) (end - id->data);
        return NGX_HTTP_MOE_ROUTE_MODELS;
    }

    return NGX_HTTP_MOE_ROUTE_NONE;
}


static ngx_uint_t
ngx_http_moe_ends_with(ngx_str_t *uri, const char *tail)
{
    size_t  n;

    n = ngx_strlen(tail);

    return uri->len >= n
           && ngx_memcmp(uri->data + uri->len - n, tail, n) == 0;
}


static ngx_int_t
ngx_http_moe_refuse(ngx_http_request_t *r, ngx_int_t status,
    const char *allow)
{
    ngx_http_moe_ctx_t  *ctx;

    ctx = ngx_http_moe_ctx_create(r);
    if (ctx == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    (void) ngx_http_moe_error(ctx, status, NULL, NULL,
                              allow ? "Not allowed: %V %V."
                                    : "Unknown endpoint: %V %V.",
                              &r->method_name, &r->uri);
    ctx->error.allow = allow;

    return status;
}


/* The context, which is found again even when an error_page has forgotten it,
 * by its cleanup in the pool. */

ngx_http_moe_ctx_t *
ngx_http_moe_ctx_create(ngx_http_request_t *r)
{
    ngx_http_moe_ctx_t  *ctx;
    ngx_http_cleanup_t  *cln;
    ngx_pool_cleanup_t  *pcln;

    ctx = ngx_pcalloc(r->pool, sizeof(ngx_http_moe_ctx_t));
    if (ctx == NULL) {
        return NULL;
    }

    ctx->request = r;
    ctx->out.pool = r->pool;
    ctx->keepalive = r->keepalive;
    ctx->error.retry_after = 0;

    cln = ngx_http_cleanup_add(r, 0);
    if (cln == NULL) {
        return NULL;
    }

    cln->handler = ngx_http_moe_cleanup;
    cln->data = ctx;

    pcln = ngx_pool_cleanup_add(r->pool, 0);
    if (pcln == NULL) {
        return NULL;
    }

    pcln->handler = ngx_http_moe_cleanup;
    pcln->data = ctx;

    ngx_http_set_ctx(r, ctx, ngx_http_moe_module);

    return ctx;
}


ngx_http_moe_ctx_t *
ngx_http_moe_ctx_find(ngx_http_request_t *r)
{
    ngx_http_moe_ctx_t  *ctx;
    ngx_pool_cleanup_t  *pcln;

    ctx = ngx_http_get_module_ctx(r, ngx_http_moe_module);

    if (ctx == NULL && (r->internal || r->filter_finalize)) {

        for (pcln = r->pool->cleanup; pcln; pcln = pcln->next) {
            if (pcln->handler == ngx_http_moe_cleanup) {
                return pcln->data;
            }
        }
    }

    return ctx;
}


static void
ngx_http_moe_cleanup(void *data)
{
    ngx_http_moe_ctx_t  *ctx = data;

    ngx_http_moe_stream_close(ctx);
}


static void
ngx_http_moe_body_handler(ngx_http_request_t *r)
{
    ngx_int_t            rc;
    ngx_str_t            body;
    ngx_http_moe_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_moe_module);

    rc = ngx_http_moe_body_read(r, &body);

    if (rc == NGX_OK) {
        rc = ngx_http_moe_names(ctx);
    }

    if (rc == NGX_OK) {
        rc = ngx_http_moe_body_parse(ctx, &body);

        /* A copy goes at once, it may be large. */

        if (body.len && body.data != r->request_body->bufs->buf->pos) {
            (void) ngx_pfree(r->pool, body.data);
        }
    }

    if (rc == NGX_OK) {
        rc = ngx_http_moe_id(ctx);
    }

    if (rc == NGX_OK) {
        rc = ngx_http_moe_limit_begin(ctx);
    }

    if (rc == NGX_OK) {
        rc = ngx_http_moe_stream_init(ctx);
    }

    if (rc == NGX_OK) {
        rc = ngx_http_moe_admit(ctx);
    }

    if (rc != NGX_OK) {
        ngx_http_moe_stream_close(ctx);
        ngx_http_finalize_request(r, rc);
    }
}


/* The whole body, wherever NGINX has put it, in one piece. */

static ngx_int_t
ngx_http_moe_body_read(ngx_http_request_t *r, ngx_str_t *body)
{
    off_t         size;
    u_char       *p;
    ssize_t       n;
    ngx_buf_t    *b;
    ngx_chain_t  *cl;

    ngx_str_set(body, "");

    if (r->request_body == NULL || r->request_body->bufs == NULL) {
        return NGX_OK;
    }

    cl = r->request_body->bufs;

    if (cl->next == NULL && !cl->buf->in_file) {
        body->data = cl->buf->pos;
        body->len = (size_t) (cl->buf->last - cl->buf->pos);
        return NGX_OK;
    }

    for (size = 0; cl; cl = cl->next) {
        size += ngx_buf_size(cl->buf);
    }

    body->data = ngx_palloc(r->pool, (size_t) size);
    if (body->data == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    body->len = (size_t) size;
    p = body->data;

    for (cl = r->request_body->bufs; cl; cl = cl->next) {

        b = cl->buf;

        if (!b->in_file) {
            p = ngx_cpymem(p, b->pos, b->last - b->pos);
            continue;
        }

        size = b->file_last - b->file_pos;
        n = ngx_read_file(b->file, p, (size_t) size, b->file_pos);

        if (n != (ssize_t) size) {
            ngx_log_error(NGX_LOG_CRIT, r->connection->log, 0,
                          "request body's file \"%V\": read %z of %O bytes",
                          &b->file->name, n, size);
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        p += n;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_moe_body_parse(ngx_http_moe_ctx_t *ctx, ngx_str_t *body)
{
    json_t        *json;
    ngx_int_t      rc;
    json_error_t   e;

    if (ngx_http_moe_json_depth(body->data, body->len) > NGX_HTTP_MOE_DEPTH) {
        return ngx_http_moe_error(ctx, NGX_HTTP_BAD_REQUEST, "invalid_json",
                                  NULL, "The request body is nested deeper "
                                  "than %d levels.", NGX_HTTP_MOE_DEPTH);
    }

    json = json_loadb((char *) body->data, body->len, 0, &e);

    if (json == NULL) {
        return ngx_http_moe_error(ctx, NGX_HTTP_BAD_REQUEST, "invalid_json",
                                  NULL, "We could not parse the JSON body of "
                                  "your request: line %d, column %d: %s.",
                                  e.line, e.column, e.text);
    }

    if (json_is_object(json)) {
        rc = ngx_http_moe_operator(ctx);

        if (rc == NGX_OK) {
            rc = ctx->api->parse(ctx, json);
        }

    } else {
        rc = ngx_http_moe_error(ctx, NGX_HTTP_BAD_REQUEST, "invalid_type",
                                NULL, "The request body must be a JSON "
                                "object, not %s.",
                                ngx_http_moe_type_name(json));
    }

    json_decref(json);

    return rc;
}


/* What the operator says of a request, not the client. */

static ngx_int_t
ngx_http_moe_operator(ngx_http_moe_ctx_t *ctx)
{
    uint64_t                  deadline;
    ngx_str_t                 value, *salt;
    ngx_http_request_t       *r;
    ngx_http_moe_engine_t    *engine;
    ngx_http_moe_loc_conf_t  *mlcf;

    r = ctx->request;
    engine = ctx->engine;
    salt = &ctx->params.salt;
    mlcf = ngx_http_get_module_loc_conf(r, ngx_http_moe_module);

    if (mlcf->priority) {
        if (ngx_http_complex_value(r, mlcf->priority, &value) != NGX_OK) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        ctx->params.abi.priority = ngx_http_moe_priority(r, &value);
    }

    if (mlcf->cache_salt
        && ngx_http_complex_value(r, mlcf->cache_salt, salt) != NGX_OK)
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    if (salt->len > ABI_SALT_MAX) {
        return ngx_http_moe_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, NULL,
                                  "The credentials are too long.");
    }

    /* After it nobody here waits for the first token any more. */

    deadline = (uint64_t) engine->queue_timeout + engine->first_token_timeout;

    if (engine->request_timeout) {
        deadline = ngx_min(deadline, engine->request_timeout);
    }

    ctx->params.abi.deadline_ms = (uint32_t) ngx_min(deadline, UINT32_MAX);

    return NGX_OK;
}


/* Lower goes first; what is not a number is 0, as most are. */

static int32_t
ngx_http_moe_priority(ngx_http_request_t *r, ngx_str_t *value)
{
    size_t     minus;
    ngx_int_t  n;

    if (value->len == 0) {
        return 0;
    }

    minus = (value->data[0] == '-');
    n = ngx_atoi(value->data + minus, value->len - minus);

    if (n == NGX_ERROR || n > INT32_MAX) {
        ngx_log_error(NGX_LOG_INFO, r->connection->log, 0,
                      "\"moe_priority\" is \"%V\", not a number: 0 is taken",
                      value);
        return 0;
    }

    return (int32_t) (minus ? -n : n);
}


/* By which the engine's log speaks of it. */

static ngx_int_t
ngx_http_moe_names(ngx_http_moe_ctx_t *ctx)
{
    struct abi_request    *abi;
    ngx_http_moe_trace_t  *trace;

    abi = &ctx->params.abi;
    trace = ngx_http_moe_trace(ctx->request);

    if (trace == NULL
        || getrandom(abi->id, sizeof(abi->id), GRND_NONBLOCK)
           != sizeof(abi->id))
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ngx_memcpy(abi->trace_id, trace->id, sizeof(abi->trace_id));
    ngx_memcpy(abi->span_id, trace->span, sizeof(abi->span_id));
    abi->trace_flags = trace->flags;

    return NGX_OK;
}


static ngx_int_t
ngx_http_moe_id(ngx_http_moe_ctx_t *ctx)
{
    size_t        n;
    u_char       *p, *random;
    const char   *prefix;

    random = ctx->params.abi.id;
    prefix = (ctx->api == &ngx_http_moe_api_chat) ? "chatcmpl-" : "cmpl-";
    n = ngx_strlen(prefix);

    p = ngx_pnalloc(ctx->request->pool, n + 2 * NGX_HTTP_MOE_SECRET_LEN
                                        + 2 * NGX_HTTP_MOE_TAG_LEN);
    if (p == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ctx->id.data = p;
    p = ngx_cpymem(p, prefix, n);
    p = ngx_hex_dump(p, random, NGX_HTTP_MOE_SECRET_LEN);
    ctx->id.len = (size_t) (p - ctx->id.data);

    return ngx_http_moe_id_kept(ctx, p, random);
}


/* The id of a stream that is kept says also which worker has it. */

static ngx_int_t
ngx_http_moe_id_kept(ngx_http_moe_ctx_t *ctx, u_char *p, const u_char *random)
{
    const u_char             *tag;
    ngx_http_moe_loc_conf_t  *mlcf;

    mlcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_moe_module);
    tag = ngx_http_moe_share_tag();

    if (mlcf->resume == 0 || tag == NULL || !ctx->params.stream
        || ctx->request != ctx->request->main)
    {
        return NGX_OK;
    }

    p = ngx_hex_dump(p, (u_char *) tag, NGX_HTTP_MOE_TAG_LEN);
    ctx->id.len = (size_t) (p - ctx->id.data);

    return (ngx_http_moe_journal_create(ctx, random) == NGX_OK)
           ? NGX_OK : NGX_HTTP_INTERNAL_SERVER_ERROR;
}


static ngx_uint_t
ngx_http_moe_model_known(ngx_http_moe_ctx_t *ctx)
{
    ngx_str_t   *name, *alias;
    ngx_uint_t   i;

    name = &ctx->params.model;

    if (name->len == 0
        || (name->len == ctx->model.len
            && ngx_memcmp(name->data, ctx->model.data, name->len) == 0))
    {
        return 1;
    }

    alias = ctx->engine->aliases.elts;

    for (i = 0; i < ctx->engine->aliases.nelts; i++) {
        if (name->len == alias[i].len
            && ngx_memcmp(name->data, alias[i].data, name->len) == 0)
        {
            return 1;
        }
    }

    return 0;
}


ngx_int_t
ngx_http_moe_unavailable(ngx_http_moe_ctx_t *ctx, const char *message)
{
    ngx_int_t  rc;

    rc = ngx_http_moe_error(ctx, NGX_HTTP_SERVICE_UNAVAILABLE,
                            "engine_unavailable", NULL, "%s", message);
    ctx->error.retry_after = 2;

    return rc;
}


/*
 * NGX_OK: the request waits, or is in a slot, and will be finalised by
 * stream.c; else the status to finalise it with.  Is called again, for those
 * that waited, when something has changed.
 */

ngx_int_t
ngx_http_moe_admit(ngx_http_moe_ctx_t *ctx)
{
    ngx_int_t                rc;
    ngx_http_moe_channel_t  *ch;

    rc = ngx_http_moe_balance(ctx, &ch);

    if (rc == NGX_AGAIN || (rc != NGX_OK && ctx->lost)) {
        ctx->in_queue = 1;
        ngx_queue_insert_tail(&ctx->engine->pending, &ctx->queue);
        return NGX_OK;
    }

    if (rc == NGX_DECLINED) {
        return ngx_http_moe_unavailable(ctx, "The engine is not running. "
                                             "Please retry shortly.");
    }

    if (rc == NGX_OK) {
        rc = ngx_http_moe_model(ctx, ch);

        if (rc != NGX_OK) {
            return rc;
        }

        rc = ngx_http_moe_slot_submit(ch, ctx);
    }

    if (rc == NGX_BUSY) {
        rc = ngx_http_moe_error(ctx, NGX_HTTP_TOO_MANY_REQUESTS,
                                "engine_overloaded", NULL,
                                "The engine has too many requests waiting. "
                                "Please retry shortly.");
        ctx->error.retry_after = 1;
    }

    return rc;
}


/* That the engine has the model which was asked for; one that takes over from
 * another has to have the same. */

static ngx_int_t
ngx_http_moe_model(ngx_http_moe_ctx_t *ctx, ngx_http_moe_channel_t *ch)
{
    size_t  n;

    n = ngx_strlen(ch->welcome.model);

    if (ctx->model.len) {

        if (ctx->model.len != n
            || ngx_memcmp(ctx->model.data, ch->welcome.model, n) != 0
            || (ctx->resumed && !(ch->welcome.features & ABI_FEATURE_RESUME)))
        {
            return ngx_http_moe_unavailable(ctx, "The engine was replaced by "
                                                 "another model's.");
        }

        return NGX_OK;
    }

    ctx->model.data = ngx_pnalloc(ctx->request->pool, n);
    if (ctx->model.data == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ngx_memcpy(ctx->model.data, ch->welcome.model, n);
    ctx->model.len = n;

    if (!ngx_http_moe_model_known(ctx)) {
        return ngx_http_moe_error(ctx, NGX_HTTP_NOT_FOUND, "model_not_found",
                                  "model", "The model '%V' does not exist or "
                                  "you do not have access to it.",
                                  &ctx->params.model);
    }

    return NGX_OK;
}
