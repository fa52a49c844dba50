/*
 * show.c - values as text: Python's str() and repr(), and json.dumps()
 * with the options that Hugging Face's tojson passes on.  Must not know where
 * the text goes.
 */
#include "template/impl.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>


/*
 * Python's repr() of a float: the fewest digits that read back the same, with
 * an exponent below 1e-4 and from 1e16 on, and always a point or an exponent.
 */
static void
float_repr(double f, const char *inf, const char *nan, char *to, size_t size)
{
    char e[40];
    char digits[24];
    int  n = 0;

    if (isnan(f) || isinf(f)) {
        snprintf(to, size, "%s%s", isinf(f) && f < 0 ? "-" : "",
                 isnan(f) ? nan : inf);
        return;
    }

    for (int p = 0; p <= 16; p++) {
        snprintf(e, sizeof(e), "%.*e", p, f);

        if (strtod(e, NULL) == f) {
            break;
        }
    }

    const char *s = e + (e[0] == '-');
    int         exp10 = (int) strtol(strchr(e, 'e') + 1, NULL, 10);

    for (; *s != 'e'; s++) {
        if (*s != '.') {
            digits[n++] = *s;
        }
    }

    digits[n] = '\0';

    const char *sign = e[0] == '-' ? "-" : "";

    if (exp10 < -4 || exp10 >= 16) {
        snprintf(to, size, "%s%c%s%se%c%02d", sign, digits[0],
                 n > 1 ? "." : "", digits + 1, exp10 < 0 ? '-' : '+',
                 abs(exp10));

    } else if (exp10 < 0) {
        snprintf(to, size, "%s0.%.*s%s", sign, -exp10 - 1, "000", digits);

    } else if (n <= exp10 + 1) {
        snprintf(to, size, "%s%s%.*s.0", sign, digits, exp10 + 1 - n,
                 "0000000000000000");

    } else {
        snprintf(to, size, "%s%.*s.%s", sign, exp10 + 1, digits,
                 digits + exp10 + 1);
    }
}


static int
put_scalar(struct render *r, const struct value *v, struct buf *b)
{
    char text[64];

    switch ((enum value_kind) v->kind) {
    case VALUE_BOOL:
        return template_puts(r, b, v->i ? "True" : "False");

    case VALUE_INT:
        snprintf(text, sizeof(text), "%" PRId64, v->i);
        return template_puts(r, b, text);

    case VALUE_FLOAT:
        float_repr(v->f, "inf", "nan", text, sizeof(text));
        return template_puts(r, b, text);

    case VALUE_UNDEF:
        return template_puts(r, b, "Undefined");

    case VALUE_NONE:
        return template_puts(r, b, "None");

    default:
        snprintf(text, sizeof(text), "<%s>", tvalue_type(v));
        return template_puts(r, b, text);
    }
}


/* What repr() shows as it is; the rest it escapes.  Unassigned code points
 * are taken for printable, which errs on the side of the text. */
static int
is_printable(uint32_t c)
{
    static const struct {
        uint32_t first, last;
    } not[] = {
        { 0x00, 0x1f }, { 0x7f, 0xa0 }, { 0xad, 0xad }, { 0x600, 0x605 },
        { 0x61c, 0x61c }, { 0x6dd, 0x6dd }, { 0x70f, 0x70f },
        { 0x890, 0x891 }, { 0x8e2, 0x8e2 }, { 0x1680, 0x1680 },
        { 0x180e, 0x180e }, { 0x2000, 0x200f }, { 0x2028, 0x202f },
        { 0x205f, 0x206f }, { 0x3000, 0x3000 }, { 0xd800, 0xf8ff },
        { 0xfeff, 0xfeff }, { 0xfff0, 0xfffb }, { 0xfffe, 0xffff },
        { 0x110bd, 0x110bd }, { 0x110cd, 0x110cd }, { 0x13430, 0x1343f },
        { 0x1bca0, 0x1bca3 }, { 0x1d173, 0x1d17a }, { 0xe0000, 0xe00ff },
        { 0xe01f0, 0x10ffff },
    };

    for (size_t i = 0; i < BASE_COUNT(not); i++) {
        if (c >= not[i].first && c <= not[i].last) {
            return 0;
        }
    }

    return 1;
}


/* One character of a repr() that is not simply itself; 0: it is. */
static size_t
repr_escape(uint32_t c, char quote, char *to, size_t size)
{
    int n = 0;

    switch (c) {
    case '\n': n = snprintf(to, size, "\\n"); break;
    case '\r': n = snprintf(to, size, "\\r"); break;
    case '\t': n = snprintf(to, size, "\\t"); break;
    case '\\': n = snprintf(to, size, "\\\\"); break;
    default:
        if (c == (uint32_t) quote) {
            n = snprintf(to, size, "\\%c", quote);

        } else if (!is_printable(c)) {
            n = c < 0x100 ? snprintf(to, size, "\\x%02x", c)
                : c < 0x10000 ? snprintf(to, size, "\\u%04x", c)
                : snprintf(to, size, "\\U%08x", c);
        }
    }

    return (size_t) n;
}


static int
repr_str(struct render *r, const struct value *v, struct buf *b)
{
    char   quote = '\'';
    char   text[16];
    size_t done = 0;

    if (v->n != 0 && memchr(v->s, '\'', v->n) != NULL
        && memchr(v->s, '"', v->n) == NULL)
    {
        quote = '"';
    }

    if (template_put(r, b, &quote, 1) != 0) {
        return -1;
    }

    for (size_t i = 0; i < v->n; ) {
        size_t step = ttext_step(v->s, v->n, i);
        size_t n = repr_escape((uint32_t) ttext_point(v->s, v->n, i), quote,
                               text, sizeof(text));

        if (n != 0) {
            if (template_put(r, b, v->s + done, i - done) != 0
                || template_put(r, b, text, n) != 0)
            {
                return -1;
            }

            done = i + step;
        }

        i += step;
    }

    if (template_put(r, b, v->s + done, v->n - done) != 0) {
        return -1;
    }

    return template_put(r, b, &quote, 1);
}


static int
repr_list(struct render *r, const struct value *v, struct buf *b)
{
    int tuple = v->kind == VALUE_TUPLE;

    if (template_puts(r, b, tuple ? "(" : "[") != 0) {
        return -1;
    }

    for (size_t i = 0; i < v->list->n; i++) {
        if ((i != 0 && template_puts(r, b, ", ") != 0)
            || tshow_repr(r, &v->list->v[i], b) != 0)
        {
            return -1;
        }
    }

    return template_puts(r, b, !tuple ? "]" : v->list->n == 1 ? ",)" : ")");
}


static int
repr_dict(struct render *r, const struct value *v, struct buf *b)
{
    if (template_puts(r, b, "{") != 0) {
        return -1;
    }

    for (size_t i = 0; i < v->dict->n; i++) {
        if ((i != 0 && template_puts(r, b, ", ") != 0)
            || tshow_repr(r, &v->dict->p[i].key, b) != 0
            || template_puts(r, b, ": ") != 0
            || tshow_repr(r, &v->dict->p[i].value, b) != 0)
        {
            return -1;
        }
    }

    return template_puts(r, b, "}");
}


int
tshow_repr(struct render *r, const struct value *v, struct buf *b)
{
    int rc;

    if (r->depth >= TEMPLATE_DEPTH_MAX) {
        return template_fail(r, "data nested too deep to be printed");
    }

    r->depth++;

    switch ((enum value_kind) v->kind) {
    case VALUE_STR:
        if (v->safe) {
            rc = template_puts(r, b, "Markup(");
            rc = rc != 0 ? rc : repr_str(r, v, b);
            rc = rc != 0 ? rc : template_puts(r, b, ")");

        } else {
            rc = repr_str(r, v, b);
        }

        break;

    case VALUE_LIST:
    case VALUE_TUPLE:
        rc = repr_list(r, v, b);
        break;

    case VALUE_DICT:
        rc = repr_dict(r, v, b);
        break;

    case VALUE_SPACE:
        rc = template_puts(r, b, "<Namespace ");
        rc = rc != 0 ? rc : repr_dict(r, v, b);
        rc = rc != 0 ? rc : template_puts(r, b, ">");
        break;

    default:
        rc = put_scalar(r, v, b);
    }

    r->depth--;

    return rc != 0 ? rc : template_burn(r, 1);
}


int
tshow_text(struct render *r, const struct value *v, struct buf *b)
{
    if (v->kind == VALUE_STR) {
        return template_put(r, b, v->s, v->n);
    }

    return v->kind == VALUE_UNDEF ? 0 : tshow_repr(r, v, b);
}


int
tshow_str(struct render *r, const struct value *v, struct value *out)
{
    struct buf b = { 0 };

    if (v->kind == VALUE_STR) {
        *out = *v;
        return 0;
    }

    return template_take(r, &b, tshow_text(r, v, &b), out);
}


/* One character of a JSON string that is not simply itself; 0: it is. */
static size_t
json_escape(uint32_t c, int ascii, char *to, size_t size)
{
    static const char from[] = "\"\\\n\r\t\f\b";
    static const char into[] = "\"\\nrtfb";
    const char       *k = c != 0 && c < 0x80 ? strchr(from, (int) c) : NULL;
    int               n = 0;

    if (k != NULL) {
        n = snprintf(to, size, "\\%c", into[k - from]);

    } else if (c < 0x20 || (ascii && c >= 0x7f && c < 0x10000)) {
        n = snprintf(to, size, "\\u%04x", c);

    } else if (ascii && c >= 0x10000) {
        n = snprintf(to, size, "\\u%04x\\u%04x", 0xd7c0 + (c >> 10),
                     0xdc00 + (c & 0x3ff));
    }

    return (size_t) n;
}


static int
json_str(struct render *r, const char *s, size_t len, int ascii,
         struct buf *b)
{
    char   text[16];
    size_t done = 0;

    if (template_puts(r, b, "\"") != 0) {
        return -1;
    }

    for (size_t i = 0; i < len; ) {
        size_t step = ttext_step(s, len, i);
        size_t n = json_escape((uint32_t) ttext_point(s, len, i), ascii, text,
                               sizeof(text));

        if (n != 0) {
            if (template_put(r, b, s + done, i - done) != 0
                || template_put(r, b, text, n) != 0)
            {
                return -1;
            }

            done = i + step;
        }

        i += step;
    }

    if (template_put(r, b, s + done, len - done) != 0) {
        return -1;
    }

    return template_puts(r, b, "\"");
}


static int
json_scalar(struct render *r, const struct value *v, struct buf *b)
{
    char text[64];

    switch ((enum value_kind) v->kind) {
    case VALUE_NONE:
        return template_puts(r, b, "null");

    case VALUE_BOOL:
        return template_puts(r, b, v->i ? "true" : "false");

    case VALUE_INT:
        return put_scalar(r, v, b);

    case VALUE_FLOAT:
        float_repr(v->f, "Infinity", "NaN", text, sizeof(text));
        return template_puts(r, b, text);

    case VALUE_UNDEF:
        return template_fail(r, "'%.*s' is undefined and has no JSON",
                             (int) (v->n < 60 ? v->n : 60), v->s);

    default:
        return template_fail(r, "a %s has no JSON", tvalue_type(v));
    }
}


/* A key as JSON wants it: a string, whatever scalar it was. */
static int
json_key(struct render *r, const struct value *v,
         const struct json_style *style, struct buf *b)
{
    if (v->kind == VALUE_STR) {
        return json_str(r, v->s, v->n, style->ensure_ascii, b);
    }

    if (template_puts(r, b, "\"") != 0 || json_scalar(r, v, b) != 0) {
        return -1;
    }

    return template_puts(r, b, "\"");
}


static int
json_break(struct render *r, const struct json_style *style, unsigned nest,
           struct buf *b)
{
    if (!style->pretty) {
        return 0;
    }

    int rc = template_puts(r, b, "\n");

    for (unsigned i = 0; rc == 0 && i < nest; i++) {
        rc = template_put(r, b, style->indent.p, style->indent.n);
    }

    return rc;
}


static int
cmp_keys(const void *a, const void *b)
{
    const struct value *x = &(*(struct pair *const *) a)->key;
    const struct value *y = &(*(struct pair *const *) b)->key;
    size_t              n = x->n < y->n ? x->n : y->n;
    int                 c = memcmp(x->s, y->s, n);

    return c != 0 ? c : (x->n > n) - (y->n > n);
}


/* The pairs of a dict, sorted if the style says so.  NULL for -1. */
static struct pair **
json_pairs(struct render *r, const struct dict *d, int sort)
{
    struct pair **p = template_alloc(r, (d->n + 1) * sizeof(*p));

    for (size_t i = 0; p != NULL && i < d->n; i++) {
        p[i] = &d->p[i];

        if (sort && p[i]->key.kind != VALUE_STR) {
            template_fail(r, "only keys that are strings can be sorted");
            return NULL;
        }
    }

    if (p != NULL && sort) {
        qsort(p, d->n, sizeof(*p), cmp_keys);
    }

    return p;
}


static int json_value(struct render *r, const struct value *v,
                      const struct json_style *style, unsigned nest,
                      struct buf *b);


static int
json_dict(struct render *r, const struct value *v,
          const struct json_style *style, unsigned nest, struct buf *b)
{
    struct pair **p = json_pairs(r, v->dict, style->sort_keys);

    if (p == NULL || template_puts(r, b, "{") != 0) {
        return -1;
    }

    for (size_t i = 0; i < v->dict->n; i++) {
        if ((i != 0
             && template_put(r, b, style->comma.p, style->comma.n) != 0)
            || json_break(r, style, nest + 1, b) != 0
            || json_key(r, &p[i]->key, style, b) != 0
            || template_put(r, b, style->colon.p, style->colon.n) != 0
            || json_value(r, &p[i]->value, style, nest + 1, b) != 0)
        {
            return -1;
        }
    }

    if (v->dict->n != 0 && json_break(r, style, nest, b) != 0) {
        return -1;
    }

    return template_puts(r, b, "}");
}


static int
json_list(struct render *r, const struct value *v,
          const struct json_style *style, unsigned nest, struct buf *b)
{
    if (template_puts(r, b, "[") != 0) {
        return -1;
    }

    for (size_t i = 0; i < v->list->n; i++) {
        if ((i != 0
             && template_put(r, b, style->comma.p, style->comma.n) != 0)
            || json_break(r, style, nest + 1, b) != 0
            || json_value(r, &v->list->v[i], style, nest + 1, b) != 0)
        {
            return -1;
        }
    }

    if (v->list->n != 0 && json_break(r, style, nest, b) != 0) {
        return -1;
    }

    return template_puts(r, b, "]");
}


static int
json_value(struct render *r, const struct value *v,
           const struct json_style *style, unsigned nest, struct buf *b)
{
    if (nest > TEMPLATE_NEST_MAX) {
        return template_fail(r, "data nested deeper than %d",
                             TEMPLATE_NEST_MAX);
    }

    if (template_burn(r, 1) != 0) {
        return -1;
    }

    switch ((enum value_kind) v->kind) {
    case VALUE_STR:
        return json_str(r, v->s, v->n, style->ensure_ascii, b);

    case VALUE_DICT:
        return json_dict(r, v, style, nest, b);

    case VALUE_LIST:
    case VALUE_TUPLE:
    case VALUE_GEN:
        return json_list(r, v, style, nest, b);

    default:
        return json_scalar(r, v, b);
    }
}


int
tshow_json(struct render *r, const struct value *v,
           const struct json_style *style, struct buf *b)
{
    return json_value(r, v, style, 0, b);
}
