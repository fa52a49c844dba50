/*
 * ngx_http_moe_json.c - writes JSON on the hot path, and counts its nesting.
 *
 * In: bytes of any kind.  Out: valid JSON text in a buffer that grows: control
 * characters, quotes and U+2028/9 are escaped, what is not UTF-8 becomes
 * U+FFFD.  Everything that is not hot is read and written by jansson.
 *
 * Must not know requests or engines.
 */

#include "ngx_http_moe_module.h"


#define NGX_HTTP_MOE_TEXT_MIN  2048


static ngx_uint_t ngx_http_moe_utf8_length(const u_char *p, size_t n);


/* 1: not to be copied as it is. */

static const u_char  ngx_http_moe_special[256] = {
    1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
    1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
    ['"'] = 1, ['\\'] = 1, [0x7f] = 1,
    [0x80 ... 0xff] = 1
};


u_char *
ngx_http_moe_text_reserve(ngx_http_moe_text_t *text, size_t n)
{
    size_t   len, size;
    u_char  *p;

    if (text->failed) {
        return NULL;
    }

    if ((size_t) (text->end - text->last) >= n) {
        return text->last;
    }

    len = ngx_http_moe_text_len(text);
    size = 2 * (size_t) (text->end - text->start);

    if (size < NGX_HTTP_MOE_TEXT_MIN) {
        size = NGX_HTTP_MOE_TEXT_MIN;
    }

    while (size < len + n) {
        size *= 2;
    }

    p = ngx_pnalloc(text->pool, size);
    if (p == NULL) {
        text->failed = 1;
        return NULL;
    }

    if (len) {
        ngx_memcpy(p, text->start, len);
    }

    if (text->start) {
        (void) ngx_pfree(text->pool, text->start);
    }

    text->start = p;
    text->last = p + len;
    text->end = p + size;

    return text->last;
}


void
ngx_http_moe_text_add(ngx_http_moe_text_t *text, const void *data, size_t n)
{
    u_char  *p;

    p = ngx_http_moe_text_reserve(text, n);

    if (p && n) {
        text->last = ngx_cpymem(p, data, n);
    }
}


/* The bytes of the character at p, of which n are there; 0: not UTF-8. */

static ngx_uint_t
ngx_http_moe_utf8_length(const u_char *p, size_t n)
{
    u_char      low, high;
    ngx_uint_t  i, len;

    low = 0x80;
    high = 0xbf;

    if (p[0] >= 0xc2 && p[0] <= 0xdf) {
        len = 2;

    } else if ((p[0] & 0xf0) == 0xe0) {
        len = 3;
        low = (p[0] == 0xe0) ? 0xa0 : 0x80;
        high = (p[0] == 0xed) ? 0x9f : 0xbf;

    } else if (p[0] >= 0xf0 && p[0] <= 0xf4) {
        len = 4;
        low = (p[0] == 0xf0) ? 0x90 : 0x80;
        high = (p[0] == 0xf4) ? 0x8f : 0xbf;

    } else {
        return (p[0] < 0x80) ? 1 : 0;
    }

    if (len > n || p[1] < low || p[1] > high) {
        return 0;
    }

    for (i = 2; i < len; i++) {
        if ((p[i] & 0xc0) != 0x80) {
            return 0;
        }
    }

    return len;
}


/* The inside of a JSON string. */

void
ngx_http_moe_text_json(ngx_http_moe_text_t *text, const u_char *data, size_t n)
{
    u_char        *d;
    ngx_uint_t     len;
    const u_char  *p, *end, *run;

    static const char  hex[] = "0123456789abcdef";

    p = data;
    end = data + n;

    while (p < end) {

        for (run = p; p < end && !ngx_http_moe_special[*p]; p++) { /* void */ }

        d = ngx_http_moe_text_reserve(text, (size_t) (p - run) + 6);
        if (d == NULL) {
            return;
        }

        d = ngx_cpymem(d, run, p - run);

        if (p == end) {
            text->last = d;
            return;
        }

        len = ngx_http_moe_utf8_length(p, (size_t) (end - p));

        if (len == 0) {
            d = ngx_cpymem(d, "\xef\xbf\xbd", 3);
            len = 1;

        } else if (len == 3 && p[0] == 0xe2 && p[1] == 0x80
                   && (p[2] == 0xa8 || p[2] == 0xa9))
        {
            d = ngx_cpymem(d, "\\u202", 5);
            *d++ = hex[p[2] & 0x0f];

        } else if (len > 1) {
            d = ngx_cpymem(d, p, len);

        } else {
            switch (*p) {

            case '"':
            case '\\':
                *d++ = '\\';
                *d++ = *p;
                break;

            case '\n':
                d = ngx_cpymem(d, "\\n", 2);
                break;

            case '\r':
                d = ngx_cpymem(d, "\\r", 2);
                break;

            case '\t':
                d = ngx_cpymem(d, "\\t", 2);
                break;

            default:
                d = ngx_cpymem(d, "\\u00", 4);
                *d++ = hex[*p >> 4];
                *d++ = hex[*p & 0x0f];
            }
        }

        text->last = d;
        p += len;
    }
}


void
ngx_http_moe_text_uint(ngx_http_moe_text_t *text, uint64_t n)
{
    u_char  *p;

    p = ngx_http_moe_text_reserve(text, NGX_INT64_LEN);

    if (p) {
        text->last = ngx_sprintf(p, "%uL", n);
    }
}


/* A log probability: what is not finite becomes OpenAI's -9999. */

void
ngx_http_moe_text_float(ngx_http_moe_text_t *text, float f)
{
    u_char  *p;

    if (!(f > -9999.0f)) {
        ngx_http_moe_text_lit(text, "-9999.0");
        return;
    }

    if (f > 9999.0f) {
        f = 9999.0f;
    }

    p = ngx_http_moe_text_reserve(text, NGX_INT64_LEN + 8);

    if (p) {
        text->last = ngx_sprintf(p, "%.6f", (double) f);
    }
}


/* n bytes from 2 n digits; NGX_ERROR: some are none. */

ngx_int_t
ngx_http_moe_hex(u_char *dst, u_char *src, size_t n)
{
    size_t     i;
    ngx_int_t  b;

    for (i = 0; i < n; i++) {
        b = ngx_hextoi(src + 2 * i, 2);

        if (b == NGX_ERROR) {
            return NGX_ERROR;
        }

        dst[i] = (u_char) b;
    }

    return NGX_OK;
}


/* How deep arrays and objects are nested, before a parser recurses. */

ngx_uint_t
ngx_http_moe_json_depth(const u_char *p, size_t n)
{
    ngx_uint_t     depth, max, quoted;
    const u_char  *end;

    depth = 0;
    max = 0;
    quoted = 0;

    for (end = p + n; p < end; p++) {

        switch (*p) {

        case '"':
            quoted = !quoted;
            break;

        case '\\':
            p += quoted;
            break;

        case '[':
        case '{':
            if (!quoted && ++depth > max) {
                max = depth;
            }
            break;

        case ']':
        case '}':
            if (!quoted && depth) {
                depth--;
            }
            break;
        }
    }

    return max;
}
