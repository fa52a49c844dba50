/*
 * ngx_http_moe_error.c - errors in OpenAI's form.
 *
 * In: a status, and what a client should know.  Out: a JSON body.
 *
 * Before the header an error is finalised as NGINX's own ones are, by status
 * alone, so that error_page works as usual.  Where no error_page takes it,
 * NGINX writes its HTML page; a filter puts the JSON in its place, and does the
 * same for what NGINX itself refuses in such a location: 413, limit_req's 429,
 * auth_request's 401.  Must not know channels.
 */

#include "ngx_http_moe_module.h"


static ngx_int_t ngx_http_moe_header_filter(ngx_http_request_t *r);
static ngx_int_t ngx_http_moe_body_filter(ngx_http_request_t *r,
    ngx_chain_t *in);
static ngx_int_t ngx_http_moe_error_headers(ngx_http_request_t *r,
    ngx_http_moe_error_t *e);
static const char *ngx_http_moe_error_type(ngx_uint_t status);
static const char *ngx_http_moe_error_text(ngx_uint_t status);


static ngx_http_output_header_filter_pt  ngx_http_next_header_filter;
static ngx_http_output_body_filter_pt    ngx_http_next_body_filter;


static struct {
    ngx_uint_t   status;
    const char  *type;
    const char  *text;
} ngx_http_moe_errors[] = {
    { 400, "invalid_request_error", "The request is malformed." },
    { 401, "authentication_error", "Credentials are missing or wrong." },
    { 403, "permission_error", "Access is denied." },
    { 404, "invalid_request_error", "There is no such endpoint." },
    { 405, "invalid_request_error", "The method is not allowed here." },
    { 408, "timeout_error", "The request was not received in time." },
    { 411, "invalid_request_error", "The request has no length." },
    { 413, "invalid_request_error", "The request's body is too large." },
    { 414, "invalid_request_error", "The request's URI is too long." },
    { 429, "rate_limit_error", "Too many requests." },
    { 503, "server_error", "The service is unavailable." },
    { 504, "timeout_error", "The engine did not answer in time." }
};


/* Remembers the error for the page, and returns the status. */

ngx_int_t
ngx_http_moe_error(ngx_http_moe_ctx_t *ctx, ngx_uint_t status,
    const char *code, const char *param, const char *fmt, ...)
{
    size_t                 n;
    va_list                args;
    ngx_pool_t            *pool;
    ngx_http_moe_error_t  *e;
    u_char                 text[NGX_MAX_ERROR_STR / 2];

    e = &ctx->error;
    pool = ctx->request->pool;

    ngx_memzero(e, sizeof(ngx_http_moe_error_t));

    va_start(args, fmt);
    n = (size_t) (ngx_vslprintf(text, text + sizeof(text), fmt, args) - text);
    va_end(args);

    e->status = status;
    e->code = code;

    e->message.data = ngx_pnalloc(pool, n);
    if (e->message.data == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ngx_memcpy(e->message.data, text, n);
    e->message.len = n;

    if (param) {
        n = ngx_min(ngx_strlen(param), 256);

        e->param.data = ngx_pnalloc(pool, n);
        if (e->param.data == NULL) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        ngx_memcpy(e->param.data, param, n);
        e->param.len = n;
    }

    return (ngx_int_t) status;
}


static const char *
ngx_http_moe_error_type(ngx_uint_t status)
{
    ngx_uint_t  i;

    for (i = 0; i < sizeof(ngx_http_moe_errors)
                    / sizeof(ngx_http_moe_errors[0]); i++)
    {
        if (ngx_http_moe_errors[i].status == status) {
            return ngx_http_moe_errors[i].type;
        }
    }

    return (status < 500) ? "invalid_request_error" : "server_error";
}


static const char *
ngx_http_moe_error_text(ngx_uint_t status)
{
    ngx_uint_t  i;

    for (i = 0; i < sizeof(ngx_http_moe_errors)
                    / sizeof(ngx_http_moe_errors[0]); i++)
    {
        if (ngx_http_moe_errors[i].status == status) {
            return ngx_http_moe_errors[i].text;
        }
    }

    return (status < 500) ? "The request was refused."
                          : "The server failed to answer.";
}


void
ngx_http_moe_error_json(ngx_http_moe_text_t *text,
    const ngx_http_moe_error_t *e)
{
    const char  *s;

    ngx_http_moe_text_lit(text, "{\"error\":{\"message\":\"");

    if (e->message.len) {
        ngx_http_moe_text_json(text, e->message.data, e->message.len);

    } else {
        s = ngx_http_moe_error_text(e->status);
        ngx_http_moe_text_add(text, s, ngx_strlen(s));
    }

    s = e->type ? e->type : ngx_http_moe_error_type(e->status);

    ngx_http_moe_text_lit(text, "\",\"type\":\"");
    ngx_http_moe_text_add(text, s, ngx_strlen(s));

    if (e->param.len) {
        ngx_http_moe_text_lit(text, "\",\"param\":\"");
        ngx_http_moe_text_json(text, e->param.data, e->param.len);
        ngx_http_moe_text_lit(text, "\",\"code\":");

    } else {
        ngx_http_moe_text_lit(text, "\",\"param\":null,\"code\":");
    }

    if (e->code) {
        ngx_http_moe_text_lit(text, "\"");
        ngx_http_moe_text_add(text, e->code, ngx_strlen(e->code));
        ngx_http_moe_text_lit(text, "\"}}");

    } else {
        ngx_http_moe_text_lit(text, "null}}");
    }
}


static ngx_int_t
ngx_http_moe_header_filter(ngx_http_request_t *r)
{
    ngx_http_moe_ctx_t       *ctx;
    ngx_http_moe_text_t       text;
    ngx_http_moe_loc_conf_t  *mlcf;

    mlcf = ngx_http_get_module_loc_conf(r, ngx_http_moe_module);

    if (mlcf->engine == NULL || mlcf->health || r != r->main) {
        return ngx_http_next_header_filter(r);
    }

    if (ngx_http_moe_headers(r) != NGX_OK) {
        return NGX_ERROR;
    }

    /* All that we write ourselves in such a location has a lower status. */

    if (r->headers_out.status < 400) {
        return ngx_http_next_header_filter(r);
    }

    ctx = ngx_http_get_module_ctx(r, ngx_http_moe_module);

    if (ctx == NULL) {
        ctx = ngx_http_moe_ctx_create(r);
        if (ctx == NULL) {
            return NGX_ERROR;
        }

    } else if (ctx->error.status) {
        r->keepalive = ctx->keepalive;
    }

    if (ctx->error.status != r->headers_out.status) {
        ngx_memzero(&ctx->error, sizeof(ngx_http_moe_error_t));
        ctx->error.status = r->headers_out.status;
    }

    if (ngx_http_moe_error_headers(r, &ctx->error) != NGX_OK) {
        return NGX_ERROR;
    }

    ngx_memzero(&text, sizeof(ngx_http_moe_text_t));
    text.pool = r->pool;

    ngx_http_moe_error_json(&text, &ctx->error);
    ngx_http_moe_text_lit(&text, "\n");

    if (text.failed) {
        return NGX_ERROR;
    }

    ctx->page.data = text.start;
    ctx->page.len = ngx_http_moe_text_len(&text);

    ngx_http_clear_content_length(r);
    ngx_http_clear_accept_ranges(r);
    r->headers_out.content_length_n = (off_t) ctx->page.len;
    ngx_str_set(&r->headers_out.content_type, "application/json");
    r->headers_out.content_type_len = r->headers_out.content_type.len;
    r->headers_out.content_type_lowcase = NULL;
    r->headers_out.charset.len = 0;

    return ngx_http_next_header_filter(r);
}


static ngx_int_t
ngx_http_moe_error_headers(ngx_http_request_t *r, ngx_http_moe_error_t *e)
{
    u_char     *p;
    ngx_str_t   value;

    if (e->allow && ngx_http_moe_header_lit(r, "Allow", e->allow) != NGX_OK) {
        return NGX_ERROR;
    }

    if (e->retry_after == 0) {
        return NGX_OK;
    }

    p = ngx_pnalloc(r->pool, NGX_INT_T_LEN);
    if (p == NULL) {
        return NGX_ERROR;
    }

    value.data = p;
    value.len = (size_t) (ngx_sprintf(p, "%ui", e->retry_after) - p);

    return ngx_http_moe_header_add(r, "Retry-After", &value);
}


static ngx_int_t
ngx_http_moe_body_filter(ngx_http_request_t *r, ngx_chain_t *in)
{
    ngx_buf_t           *b;
    ngx_chain_t          out, *cl;
    ngx_http_moe_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_moe_module);

    if (ctx == NULL || ctx->page.len == 0 || in == NULL || r != r->main) {
        return ngx_http_next_body_filter(r, in);
    }

    /* NGINX's page, which is static text, is taken for sent. */

    for (cl = in; cl; cl = cl->next) {
        cl->buf->pos = cl->buf->last;
    }

    if (ctx->page_sent) {
        return NGX_OK;
    }

    b = ngx_calloc_buf(r->pool);
    if (b == NULL) {
        return NGX_ERROR;
    }

    b->pos = ctx->page.data;
    b->last = ctx->page.data + ctx->page.len;
    b->memory = 1;
    b->last_buf = 1;
    b->last_in_chain = 1;

    out.buf = b;
    out.next = NULL;

    ctx->page_sent = 1;

    return ngx_http_next_body_filter(r, &out);
}


ngx_int_t
ngx_http_moe_error_init(ngx_conf_t *cf)
{
    ngx_http_next_header_filter = ngx_http_top_header_filter;
    ngx_http_top_header_filter = ngx_http_moe_header_filter;

    ngx_http_next_body_filter = ngx_http_top_body_filter;
    ngx_http_top_body_filter = ngx_http_moe_body_filter;

    return NGX_OK;
}
