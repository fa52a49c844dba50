/*
 * ngx_http_moe_headers.c - response headers that every answer of such a
 * location carries, whoever makes it: CORS, the request's id and its trace.
 *
 * In: the request's headers and moe_cors.  Out: headers; and the answer to a
 * browser's preflight, which comes without credentials and so is given before
 * anyone asks for them.  Must not know engines.
 */

#include "ngx_http_moe_module.h"


#define NGX_HTTP_MOE_ID_MAX  128


static ngx_int_t ngx_http_moe_preflight(ngx_http_request_t *r);
static ngx_int_t ngx_http_moe_traceresponse(ngx_http_request_t *r);
static ngx_int_t ngx_http_moe_cors_add(ngx_http_request_t *r,
    ngx_http_moe_loc_conf_t *mlcf);
static ngx_uint_t ngx_http_moe_cors_allows(ngx_http_moe_loc_conf_t *mlcf,
    ngx_str_t *origin);


static ngx_str_t  ngx_http_moe_any = ngx_string("*");


ngx_int_t
ngx_http_moe_header_add(ngx_http_request_t *r, const char *key,
    ngx_str_t *value)
{
    ngx_table_elt_t  *h;

    h = ngx_list_push(&r->headers_out.headers);
    if (h == NULL) {
        return NGX_ERROR;
    }

    h->hash = 1;
    h->key.data = (u_char *) key;
    h->key.len = ngx_strlen(key);
    h->value = *value;
#if (nginx_version >= 1023000)
    h->next = NULL;
#endif

    return NGX_OK;
}


ngx_int_t
ngx_http_moe_header_lit(ngx_http_request_t *r, const char *key,
    const char *value)
{
    ngx_str_t  s;

    s.data = (u_char *) value;
    s.len = ngx_strlen(value);

    return ngx_http_moe_header_add(r, key, &s);
}


/* NULL, or the nth header of the request, from 0, with that (lower case)
 * name. */

ngx_str_t *
ngx_http_moe_header_nth(ngx_http_request_t *r, const char *key, ngx_uint_t n)
{
    size_t            len;
    ngx_uint_t        i;
    ngx_list_part_t  *part;
    ngx_table_elt_t  *h;

    len = ngx_strlen(key);
    part = &r->headers_in.headers.part;
    h = part->elts;

    for (i = 0; /* void */ ; i++) {

        if (i >= part->nelts) {
            if (part->next == NULL) {
                return NULL;
            }

            part = part->next;
            h = part->elts;
            i = 0;
        }

        if (h[i].key.len == len
            && ngx_strncasecmp(h[i].key.data, (u_char *) key, len) == 0
            && n-- == 0)
        {
            return &h[i].value;
        }
    }
}


/* The client's own id for the request, if it can stand in a header. */

ngx_str_t *
ngx_http_moe_request_id(ngx_http_request_t *r)
{
    size_t      i;
    ngx_str_t  *id;

    id = ngx_http_moe_header_in(r, "x-request-id");

    if (id == NULL || id->len == 0 || id->len > NGX_HTTP_MOE_ID_MAX) {
        return NULL;
    }

    for (i = 0; i < id->len; i++) {
        if (id->data[i] <= ' ' || id->data[i] > '~') {
            return NULL;
        }
    }

    return id;
}


ngx_int_t
ngx_http_moe_headers(ngx_http_request_t *r)
{
    ngx_str_t                *id;
    ngx_http_moe_ctx_t       *ctx;
    ngx_http_moe_loc_conf_t  *mlcf;

    mlcf = ngx_http_get_module_loc_conf(r, ngx_http_moe_module);
    ctx = ngx_http_get_module_ctx(r, ngx_http_moe_module);

    id = ngx_http_moe_request_id(r);

    if (id == NULL && ctx && ctx->id.len) {
        id = &ctx->id;
    }

    if (id && ngx_http_moe_header_add(r, "X-Request-ID", id) != NGX_OK) {
        return NGX_ERROR;
    }

    if (ngx_http_moe_header_in(r, "traceparent")
        && ngx_http_moe_traceresponse(r) != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (ctx && ngx_http_moe_limit_headers(ctx) != NGX_OK) {
        return NGX_ERROR;
    }

    if (mlcf->cors == NULL) {
        return NGX_OK;
    }

    return ngx_http_moe_cors_add(r, mlcf);
}


/* To a client that traces: in which trace we are, with which span. */

static ngx_int_t
ngx_http_moe_traceresponse(ngx_http_request_t *r)
{
    ngx_str_t              value;
    ngx_http_moe_trace_t  *trace;

    trace = ngx_http_moe_trace(r);
    if (trace == NULL) {
        return NGX_ERROR;
    }

    value.data = trace->parent;
    value.len = NGX_HTTP_MOE_TRACEPARENT_LEN;

    return ngx_http_moe_header_add(r, "traceresponse", &value);
}


static ngx_int_t
ngx_http_moe_cors_add(ngx_http_request_t *r, ngx_http_moe_loc_conf_t *mlcf)
{
    ngx_str_t  *origin, *asked;

    origin = ngx_http_moe_header_in(r, "origin");

    if (mlcf->cors->nelts == 0) {
        origin = origin ? &ngx_http_moe_any : NULL;

    } else {

        /* A cache must not give one origin's answer to another. */

        if (ngx_http_moe_header_lit(r, "Vary", "Origin") != NGX_OK) {
            return NGX_ERROR;
        }

        if (origin && !ngx_http_moe_cors_allows(mlcf, origin)) {
            origin = NULL;
        }
    }

    if (origin == NULL) {
        return NGX_OK;
    }

    if (ngx_http_moe_header_add(r, "Access-Control-Allow-Origin", origin)
        != NGX_OK
        || (mlcf->cors->nelts
            && ngx_http_moe_header_lit(r, "Access-Control-Allow-Credentials",
                                       "true") != NGX_OK))
    {
        return NGX_ERROR;
    }

    if (r->method != NGX_HTTP_OPTIONS) {
        return ngx_http_moe_header_lit(r, "Access-Control-Expose-Headers",
                   "X-Request-ID, Retry-After, RateLimit, RateLimit-Policy, "
                   "X-RateLimit-Limit-Tokens, X-RateLimit-Remaining-Tokens, "
                   "X-RateLimit-Reset-Tokens, traceresponse");
    }

    /* Reflected: "*" would not cover Authorization. */

    asked = ngx_http_moe_header_in(r, "access-control-request-headers");

    if (asked && asked->len
        && ngx_http_moe_header_add(r, "Access-Control-Allow-Headers", asked)
           != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (ngx_http_moe_header_lit(r, "Access-Control-Allow-Methods",
                                "GET, POST, DELETE, OPTIONS") != NGX_OK)
    {
        return NGX_ERROR;
    }

    return ngx_http_moe_header_lit(r, "Access-Control-Max-Age", "86400");
}


static ngx_uint_t
ngx_http_moe_cors_allows(ngx_http_moe_loc_conf_t *mlcf, ngx_str_t *origin)
{
    ngx_str_t   *allowed;
    ngx_uint_t   i;

    allowed = mlcf->cors->elts;

    for (i = 0; i < mlcf->cors->nelts; i++) {
        if (allowed[i].len == origin->len
            && ngx_strncasecmp(allowed[i].data, origin->data, origin->len)
               == 0)
        {
            return 1;
        }
    }

    return 0;
}


static ngx_int_t
ngx_http_moe_preflight(ngx_http_request_t *r)
{
    ngx_int_t                 rc;
    ngx_http_moe_loc_conf_t  *mlcf;

    mlcf = ngx_http_get_module_loc_conf(r, ngx_http_moe_module);

    if (mlcf->engine == NULL || mlcf->cors == NULL
        || r->method != NGX_HTTP_OPTIONS
        || ngx_http_moe_header_in(r, "origin") == NULL
        || ngx_http_moe_header_in(r, "access-control-request-method") == NULL)
    {
        return NGX_DECLINED;
    }

    rc = ngx_http_discard_request_body(r);

    return (rc == NGX_OK) ? NGX_HTTP_NO_CONTENT : rc;
}


/* moe_cors on | off | origin ...; */

char *
ngx_http_moe_cors(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_moe_loc_conf_t *mlcf = conf;

    ngx_str_t   *value, *origin;
    ngx_uint_t   i;

    if (mlcf->cors != NGX_CONF_UNSET_PTR) {
        return "is duplicate";
    }

    value = cf->args->elts;

    if (cf->args->nelts == 2 && ngx_strcmp(value[1].data, "off") == 0) {
        mlcf->cors = NULL;
        return NGX_CONF_OK;
    }

    mlcf->cors = ngx_array_create(cf->pool, 2, sizeof(ngx_str_t));
    if (mlcf->cors == NULL) {
        return NGX_CONF_ERROR;
    }

    if (cf->args->nelts == 2 && ngx_strcmp(value[1].data, "on") == 0) {
        return NGX_CONF_OK;
    }

    for (i = 1; i < cf->args->nelts; i++) {

        if (ngx_strstr(value[i].data, "://") == NULL
            || value[i].data[value[i].len - 1] == '/')
        {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid origin \"%V\" in \"moe_cors\", "
                               "expected scheme://host[:port]", &value[i]);
            return NGX_CONF_ERROR;
        }

        origin = ngx_array_push(mlcf->cors);
        if (origin == NULL) {
            return NGX_CONF_ERROR;
        }

        *origin = value[i];
    }

    return NGX_CONF_OK;
}


ngx_int_t
ngx_http_moe_headers_init(ngx_conf_t *cf)
{
    ngx_http_handler_pt        *h;
    ngx_http_core_main_conf_t  *cmcf;

    cmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_core_module);

    h = ngx_array_push(&cmcf->phases[NGX_HTTP_PREACCESS_PHASE].handlers);
    if (h == NULL) {
        return NGX_ERROR;
    }

    *h = ngx_http_moe_preflight;

    return NGX_OK;
}
