/*
 * ngx_http_moe_variables.c - what a request was, for access logs and maps.
 *
 * In: a context, of a request at any point, also one that failed or that an
 * error_page has sent elsewhere.  Out: the value, or "not found" where it is
 * not known, which a log writes as "-".
 */

#include "ngx_http_moe_module.h"


#define NGX_HTTP_MOE_VAR_INT  (2 * NGX_INT64_LEN)


static ngx_int_t ngx_http_moe_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_moe_variable_trace(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static void ngx_http_moe_variable_str(ngx_http_variable_value_t *v,
    u_char *data, size_t len);
static ngx_int_t ngx_http_moe_variable_number(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, const char *fmt, uint64_t a, uint64_t b);
static const char *ngx_http_moe_variable_reason(ngx_http_moe_ctx_t *ctx);


enum {
    NGX_HTTP_MOE_VAR_MODEL,
    NGX_HTTP_MOE_VAR_ENGINE,
    NGX_HTTP_MOE_VAR_ID,
    NGX_HTTP_MOE_VAR_PROMPT,
    NGX_HTTP_MOE_VAR_CACHED,
    NGX_HTTP_MOE_VAR_COMPLETION,
    NGX_HTTP_MOE_VAR_REASONING,
    NGX_HTTP_MOE_VAR_DELIVERED,
    NGX_HTTP_MOE_VAR_QUEUE_TIME,
    NGX_HTTP_MOE_VAR_FIRST_TOKEN_TIME,
    NGX_HTTP_MOE_VAR_REASON,
    NGX_HTTP_MOE_VAR_TRACEPARENT,
    NGX_HTTP_MOE_VAR_TRACESTATE,
    NGX_HTTP_MOE_VAR_TRACE_ID
};


static ngx_http_variable_t  ngx_http_moe_vars[] = {

    { ngx_string("moe_model"), NULL, ngx_http_moe_variable,
      NGX_HTTP_MOE_VAR_MODEL, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("moe_engine"), NULL, ngx_http_moe_variable,
      NGX_HTTP_MOE_VAR_ENGINE, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("moe_request_id"), NULL, ngx_http_moe_variable,
      NGX_HTTP_MOE_VAR_ID, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("moe_prompt_tokens"), NULL, ngx_http_moe_variable,
      NGX_HTTP_MOE_VAR_PROMPT, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("moe_cached_tokens"), NULL, ngx_http_moe_variable,
      NGX_HTTP_MOE_VAR_CACHED, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("moe_completion_tokens"), NULL, ngx_http_moe_variable,
      NGX_HTTP_MOE_VAR_COMPLETION, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("moe_reasoning_tokens"), NULL, ngx_http_moe_variable,
      NGX_HTTP_MOE_VAR_REASONING, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("moe_delivered_tokens"), NULL, ngx_http_moe_variable,
      NGX_HTTP_MOE_VAR_DELIVERED, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("moe_queue_time"), NULL, ngx_http_moe_variable,
      NGX_HTTP_MOE_VAR_QUEUE_TIME, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("moe_first_token_time"), NULL, ngx_http_moe_variable,
      NGX_HTTP_MOE_VAR_FIRST_TOKEN_TIME, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("moe_finish_reason"), NULL, ngx_http_moe_variable,
      NGX_HTTP_MOE_VAR_REASON, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("moe_traceparent"), NULL, ngx_http_moe_variable_trace,
      NGX_HTTP_MOE_VAR_TRACEPARENT, 0, 0 },

    { ngx_string("moe_tracestate"), NULL, ngx_http_moe_variable_trace,
      NGX_HTTP_MOE_VAR_TRACESTATE, 0, 0 },

    { ngx_string("moe_trace_id"), NULL, ngx_http_moe_variable_trace,
      NGX_HTTP_MOE_VAR_TRACE_ID, 0, 0 },

      ngx_http_null_variable
};


ngx_int_t
ngx_http_moe_variables_add(ngx_conf_t *cf)
{
    ngx_http_variable_t  *var, *v;

    for (v = ngx_http_moe_vars; v->name.len; v++) {

        var = ngx_http_add_variable(cf, &v->name, v->flags);
        if (var == NULL) {
            return NGX_ERROR;
        }

        var->get_handler = v->get_handler;
        var->data = v->data;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_moe_variable(ngx_http_request_t *r, ngx_http_variable_value_t *v,
    uintptr_t data)
{
    ngx_str_t            s;
    const char          *reason;
    ngx_http_moe_ctx_t  *ctx;

    v->not_found = 1;

    ctx = ngx_http_moe_ctx_find(r);

    if (ctx == NULL || ctx->engine == NULL) {
        return NGX_OK;
    }

    ngx_str_null(&s);

    switch (data) {

    case NGX_HTTP_MOE_VAR_MODEL:
        s = ctx->model.len ? ctx->model : ctx->params.model;
        break;

    case NGX_HTTP_MOE_VAR_ENGINE:
        s = ctx->engine->name;
        break;

    case NGX_HTTP_MOE_VAR_ID:
        s = ctx->id;
        break;

    case NGX_HTTP_MOE_VAR_REASON:
        reason = ngx_http_moe_variable_reason(ctx);

        if (reason) {
            s.data = (u_char *) reason;
            s.len = ngx_strlen(reason);
        }

        break;

    default:

        /* Numbers: known once the engine has begun. */

        if (!ctx->start) {
            return NGX_OK;
        }
    }

    if (s.len) {
        ngx_http_moe_variable_str(v, s.data, s.len);
        return NGX_OK;
    }

    switch (data) {

    case NGX_HTTP_MOE_VAR_PROMPT:
        return ngx_http_moe_variable_number(r, v, "%uL", ctx->n_prompt, 0);

    case NGX_HTTP_MOE_VAR_CACHED:
        return ngx_http_moe_variable_number(r, v, "%uL", ctx->n_cached, 0);

    case NGX_HTTP_MOE_VAR_COMPLETION:
        return ngx_http_moe_variable_number(r, v, "%uL", ctx->n_output, 0);

    case NGX_HTTP_MOE_VAR_REASONING:
        return ngx_http_moe_variable_number(r, v, "%uL", ctx->n_reasoning, 0);

    case NGX_HTTP_MOE_VAR_DELIVERED:
        return ngx_http_moe_variable_number(r, v, "%uL", ctx->n_delivered, 0);

    case NGX_HTTP_MOE_VAR_QUEUE_TIME:
        return ngx_http_moe_variable_number(r, v, "%uL.%06uL",
                                            ctx->queue_us / 1000000,
                                            ctx->queue_us % 1000000);

    case NGX_HTTP_MOE_VAR_FIRST_TOKEN_TIME:
        if (ctx->first_token == 0) {
            return NGX_OK;
        }

        return ngx_http_moe_variable_number(r, v, "%uL.%03uL",
                   (ctx->first_token - ctx->submitted) / 1000,
                   (ctx->first_token - ctx->submitted) % 1000);
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_moe_variable_number(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, const char *fmt, uint64_t a, uint64_t b)
{
    u_char  *p;

    p = ngx_pnalloc(r->pool, NGX_HTTP_MOE_VAR_INT);
    if (p == NULL) {
        return NGX_ERROR;
    }

    ngx_http_moe_variable_str(v, p,
        (size_t) (ngx_snprintf(p, NGX_HTTP_MOE_VAR_INT, fmt, a, b) - p));

    return NGX_OK;
}


static void
ngx_http_moe_variable_str(ngx_http_variable_value_t *v, u_char *data,
    size_t len)
{
    v->data = data;
    v->len = (unsigned) len;
    v->valid = 1;
    v->no_cacheable = 0;
    v->not_found = 0;
}


/* Of any request, also one that is not ours, e.g. for proxy_set_header. */

static ngx_int_t
ngx_http_moe_variable_trace(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_http_moe_trace_t  *trace;

    trace = ngx_http_moe_trace(r);
    if (trace == NULL) {
        return NGX_ERROR;
    }

    switch (data) {

    case NGX_HTTP_MOE_VAR_TRACEPARENT:
        ngx_http_moe_variable_str(v, trace->parent,
                                  NGX_HTTP_MOE_TRACEPARENT_LEN);
        break;

    case NGX_HTTP_MOE_VAR_TRACE_ID:
        ngx_http_moe_variable_str(v, trace->parent + 3,
                                  2 * sizeof(trace->id));
        break;

    default:
        if (trace->state.len == 0) {
            v->not_found = 1;
            break;
        }

        ngx_http_moe_variable_str(v, trace->state.data, trace->state.len);
    }

    return NGX_OK;
}


/* Of the first choice, as OpenAI names it; or how else the request ended. */

static const char *
ngx_http_moe_variable_reason(ngx_http_moe_ctx_t *ctx)
{
    if (!ctx->submit) {
        return NULL;
    }

    switch (ctx->end) {

    case NGX_HTTP_MOE_DONE:
        if (ctx->budget) {
            return "budget";
        }

        return (ctx->choices[0].reason == ABI_LENGTH) ? "length" : "stop";

    case NGX_HTTP_MOE_ERROR:
        return "error";

    default:
        if (ctx->error.status) {
            return "error";
        }

        return ctx->closed ? "cancelled" : NULL;
    }
}
