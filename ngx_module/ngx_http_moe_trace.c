/*
 * ngx_http_moe_trace.c - the trace that a request belongs to, as W3C's Trace
 * Context has it (https://www.w3.org/TR/trace-context-2/).
 *
 * In: traceparent and tracestate as the client sent them, or none, or wrong
 * ones.  Out: one trace for the request and for all that becomes of it, with a
 * span of our own as the parent of whoever serves it: the engine, or who an
 * error_page asks.  What cannot be read starts a new trace.
 *
 * Any location may ask, also one that is not ours.  Must not know engines.
 */

#include "ngx_http_moe_module.h"

#include <sys/random.h>


#define NGX_HTTP_MOE_TRACE_MEMBERS  32
#define NGX_HTTP_MOE_TRACE_PART     256         /* bytes of a key, a value */

/* Sampled, and: the trace's id is random.  All that version 00 knows. */
#define NGX_HTTP_MOE_TRACE_FLAGS    0x03
#define NGX_HTTP_MOE_TRACE_RANDOM   0x02


static void ngx_http_moe_trace_mark(void *data);
static ngx_int_t ngx_http_moe_trace_parent(ngx_http_request_t *r,
    ngx_http_moe_trace_t *trace);
static ngx_int_t ngx_http_moe_trace_hex(u_char *dst, u_char *src, size_t n);
static ngx_int_t ngx_http_moe_trace_state(ngx_http_request_t *r,
    ngx_str_t *state);
static ngx_uint_t ngx_http_moe_trace_listed(ngx_str_t *state);
static ngx_uint_t ngx_http_moe_trace_member(u_char *p, u_char *end);


/* NULL: no memory, or no random bytes.  Is kept in the pool, by its cleanup,
 * since a named location forgets contexts. */

ngx_http_moe_trace_t *
ngx_http_moe_trace(ngx_http_request_t *r)
{
    u_char                *p;
    ngx_pool_cleanup_t    *cln;
    ngx_http_moe_trace_t  *trace;

    for (cln = r->pool->cleanup; cln; cln = cln->next) {
        if (cln->handler == ngx_http_moe_trace_mark) {
            return cln->data;
        }
    }

    cln = ngx_pool_cleanup_add(r->pool, sizeof(ngx_http_moe_trace_t));
    if (cln == NULL) {
        return NULL;
    }

    trace = cln->data;
    ngx_memzero(trace, sizeof(ngx_http_moe_trace_t));

    if (getrandom(trace->span, sizeof(trace->span), GRND_NONBLOCK)
        != sizeof(trace->span))
    {
        return NULL;
    }

    if (ngx_http_moe_trace_parent(r, trace) == NGX_OK) {

        if (ngx_http_moe_trace_state(r, &trace->state) != NGX_OK) {
            return NULL;
        }

    } else {

        if (getrandom(trace->id, sizeof(trace->id), GRND_NONBLOCK)
            != sizeof(trace->id))
        {
            return NULL;
        }

        trace->flags = NGX_HTTP_MOE_TRACE_RANDOM;
    }

    p = ngx_cpymem(trace->parent, "00-", 3);
    p = ngx_hex_dump(p, trace->id, sizeof(trace->id));
    *p++ = '-';
    p = ngx_hex_dump(p, trace->span, sizeof(trace->span));
    *p++ = '-';
    (void) ngx_hex_dump(p, &trace->flags, 1);

    cln->handler = ngx_http_moe_trace_mark;

    return trace;
}


static void
ngx_http_moe_trace_mark(void *data)
{
    /* It is only found by it. */
}


/*
 * traceparent = version "-" trace-id "-" parent-id "-" trace-flags
 *
 * 2, 32, 16 and 2 lower-case hexadecimal digits.  A version above 00 may have
 * more behind another "-".
 */

static ngx_int_t
ngx_http_moe_trace_parent(ngx_http_request_t *r, ngx_http_moe_trace_t *trace)
{
    u_char     *p, version, parent[NGX_HTTP_MOE_SPAN_LEN];
    ngx_str_t  *value;

    value = ngx_http_moe_header_in(r, "traceparent");

    if (value == NULL || value->len < NGX_HTTP_MOE_TRACEPARENT_LEN
        || ngx_http_moe_header_nth(r, "traceparent", 1))
    {
        return NGX_DECLINED;
    }

    p = value->data;

    if (ngx_http_moe_trace_hex(&version, p, 1) == NGX_ERROR
        || version == 0xff || p[2] != '-'
        || ngx_http_moe_trace_hex(trace->id, p + 3, sizeof(trace->id))
           != NGX_OK
        || p[35] != '-'
        || ngx_http_moe_trace_hex(parent, p + 36, sizeof(parent)) != NGX_OK
        || p[52] != '-'
        || ngx_http_moe_trace_hex(&trace->flags, p + 53, 1) == NGX_ERROR)
    {
        return NGX_DECLINED;
    }

    if (value->len > NGX_HTTP_MOE_TRACEPARENT_LEN
        && (version == 0 || p[NGX_HTTP_MOE_TRACEPARENT_LEN] != '-'))
    {
        return NGX_DECLINED;
    }

    trace->flags &= NGX_HTTP_MOE_TRACE_FLAGS;

    return NGX_OK;
}


/* Lower case only; NGX_DECLINED: n zeros, which are no id. */

static ngx_int_t
ngx_http_moe_trace_hex(u_char *dst, u_char *src, size_t n)
{
    size_t  i;

    for (i = 0; i < 2 * n; i++) {
        if (src[i] >= 'A' && src[i] <= 'F') {
            return NGX_ERROR;
        }
    }

    if (ngx_http_moe_hex(dst, src, n) != NGX_OK) {
        return NGX_ERROR;
    }

    for (i = 0; i < n; i++) {
        if (dst[i]) {
            return NGX_OK;
        }
    }

    return NGX_DECLINED;
}


/* All headers of that name are one list; empty: none, or one that is none. */

static ngx_int_t
ngx_http_moe_trace_state(ngx_http_request_t *r, ngx_str_t *state)
{
    u_char      *p;
    size_t       len;
    ngx_str_t   *value;
    ngx_uint_t   i;

    len = 0;

    for (i = 0; /* void */ ; i++) {
        value = ngx_http_moe_header_nth(r, "tracestate", i);
        if (value == NULL) {
            break;
        }

        len += value->len + 1;
    }

    if (i == 0) {
        return NGX_OK;
    }

    p = ngx_pnalloc(r->pool, len);
    if (p == NULL) {
        return NGX_ERROR;
    }

    state->data = p;
    state->len = len - 1;

    for (i = 0; /* void */ ; i++) {
        value = ngx_http_moe_header_nth(r, "tracestate", i);
        if (value == NULL) {
            break;
        }

        p = ngx_cpymem(p, value->data, value->len);
        *p++ = ',';
    }

    if (!ngx_http_moe_trace_listed(state)) {
        ngx_str_null(state);
    }

    return NGX_OK;
}


/* list = list-member 0*31( OWS "," OWS list-member ); members may be empty */

static ngx_uint_t
ngx_http_moe_trace_listed(ngx_str_t *state)
{
    u_char      *p, *last, *next, *end;
    ngx_uint_t   n;

    n = 0;
    end = state->data + state->len;

    for (p = state->data; p < end; p = next + 1) {

        next = ngx_strlchr(p, end, ',');
        next = next ? next : end;
        last = next;

        while (p < last && (*p == ' ' || *p == '\t')) {
            p++;
        }

        while (p < last && (last[-1] == ' ' || last[-1] == '\t')) {
            last--;
        }

        if (p < last
            && (++n > NGX_HTTP_MOE_TRACE_MEMBERS
                || !ngx_http_moe_trace_member(p, last)))
        {
            return 0;
        }
    }

    return n > 0;
}


/* list-member = key "=" value */

static ngx_uint_t
ngx_http_moe_trace_member(u_char *p, u_char *end)
{
    u_char  *eq;

    eq = ngx_strlchr(p, end, '=');

    if (eq == NULL || eq == p || eq - p > NGX_HTTP_MOE_TRACE_PART
        || end == eq + 1 || end - eq - 1 > NGX_HTTP_MOE_TRACE_PART
        || ngx_strchr("_-*/@", *p))
    {
        return 0;
    }

    for ( /* void */ ; p < eq; p++) {
        if (!(*p >= 'a' && *p <= 'z') && !(*p >= '0' && *p <= '9')
            && (*p == '\0' || ngx_strchr("_-*/@", *p) == NULL))
        {
            return 0;
        }
    }

    for (p = eq + 1; p < end; p++) {
        if (*p < ' ' || *p > '~' || *p == '=') {
            return 0;
        }
    }

    return 1;
}
