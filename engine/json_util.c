/*
 * json_util.c - see json_util.h.
 *
 * In: bytes or a file.  Out: jansson values, or one line that says what is
 * wrong and where.  jansson recurses as deep as its input nests, so one scan
 * over the bytes checks the depth before jansson sees them; the same scan
 * blanks the commas that the lenient mode forgives.  Must not know what the
 * JSON is about.
 */
#include "json_util.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>


/* JSON's white space, RFC 8259 section 2. */
static int
is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}


/* "line L, column C" of byte i, both from 1; columns count characters. */
static int
fail_at(struct err *e, const char *p, size_t i, const char *what)
{
    size_t line = 1;
    size_t column = 1;

    for (size_t k = 0; k < i; k++) {
        if (p[k] == '\n') {
            line++;
            column = 1;

        } else if (((unsigned char) p[k] & 0xc0) != 0x80) {
            column++;
        }
    }

    return err_set(e, "line %zu, column %zu: %s", line, column, what);
}


/* Past the string that opens at i; n when it does not close (jansson will say
 * so better). */
static size_t
skip_string(const char *p, size_t n, size_t i)
{
    for (i++; i < n && p[i] != '"'; i++) {
        if (p[i] == '\\') {
            i++;
        }
    }

    return i < n ? i + 1 : n;
}


/*
 * Checks the nesting of p[0..n).  When `blank` is not NULL it is a copy of the
 * same bytes in which commas before ] and } become spaces, if a value stands
 * before them ("[,]" stays wrong).
 */
static int
scan(const char *p, size_t n, char *blank, struct err *e)
{
    size_t depth = 0;
    size_t comma = 0;           /* where the last token stands, if a comma */
    char   last = '\0';         /* the token before this one */
    char   before = '\0';       /* the token before that */

    for (size_t i = 0; i < n; ) {
        char c = p[i];

        if (is_space(c)) {
            i++;
            continue;
        }

        /* jansson takes a NUL between tokens for the end. */
        if (c == '\0') {
            return fail_at(e, p, i, "unexpected NUL byte");
        }

        if (c == '[' || c == '{') {
            if (++depth > JSON_DEPTH_MAX) {
                return fail_at(e, p, i, "nested deeper than 64");
            }

        } else if (c == ']' || c == '}') {
            depth -= depth > 0;

            if (last == ',' && blank != NULL && before != '\0'
                && strchr("[{,:", before) == NULL)
            {
                blank[comma] = ' ';
            }

        } else if (c == ',') {
            comma = i;
        }

        before = last;
        last = c;
        i = c == '"' ? skip_string(p, n, i) : i + 1;
    }

    return 0;
}


static json_t *
parse(const char *p, size_t n, char *blank, struct err *e)
{
    json_error_t why;

    if (scan(p, n, blank, e) != 0) {
        return NULL;
    }

    json_t *v = json_loadb(blank != NULL ? blank : p, n,
                           JSON_DECODE_ANY | JSON_ALLOW_NUL, &why);

    /* Real files say "model_max_length": 1000000000000000019884624838656. */
    if (v == NULL && blank != NULL
        && json_error_code(&why) == json_error_numeric_overflow)
    {
        v = json_loadb(blank, n, JSON_DECODE_ANY | JSON_ALLOW_NUL
                       | JSON_DECODE_INT_AS_REAL, &why);
    }

    if (v == NULL) {
        /* jansson quotes its input: a line of ours has no control bytes. */
        for (char *s = why.text; *s != '\0'; s++) {
            if ((unsigned char) *s < 0x20 || *s == 0x7f) {
                *s = ' ';
            }
        }

        err_set(e, "line %d, column %d: %s", why.line, why.column, why.text);
    }

    return v;
}


json_t *
json_parse(const char *p, size_t n, struct err *e)
{
    return parse(n != 0 ? p : "", n, NULL, e);
}


json_t *
json_parse_lenient(const char *p, size_t n, struct err *e)
{
    char *blank = malloc(n + 1);

    if (blank == NULL) {
        err_set(e, "no memory for %zu bytes of JSON", n);
        return NULL;
    }

    if (n != 0) {
        memcpy(blank, p, n);
    }

    json_t *v = parse(blank, n, blank, e);

    free(blank);

    return v;
}


json_t *
json_file(const char *path, size_t max, struct err *e)
{
    struct buf b = { 0 };
    json_t    *v = NULL;

    if (file_read(path, max, &b, e) == 0) {
        v = json_parse_lenient(b.p, b.n, e);

        if (v == NULL) {
            err_prefix(e, "%s", path);
        }
    }

    buf_free(&b);

    return v;
}


/* 1 and *v, or 0 when the key is absent or null. */
static int
get(const json_t *o, const char *key, json_t **v)
{
    *v = json_object_get(o, key);

    return *v != NULL && !json_is_null(*v);
}


/* "key": expected WHAT, got the start of the value. */
static int
fail_type(struct err *e, const char *key, const char *what, const json_t *v)
{
    char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_ENSURE_ASCII
                               | JSON_COMPACT);

    err_set(e, "\"%s\": expected %s, got %.60s", key, what,
            text != NULL ? text : "something unprintable");
    free(text);

    return -1;
}


int
json_get_int(const json_t *o, const char *key, int64_t min, int64_t max,
             int64_t *out, struct err *e)
{
    json_t *v;
    char    what[80];
    int64_t i = 0;
    int     ok = 0;

    if (!get(o, key, &v)) {
        return 0;
    }

    if (json_is_integer(v)) {
        i = json_integer_value(v);
        ok = 1;

    } else if (json_is_real(v)) {
        double d = json_real_value(v);

        /* 2^63 is a double, 2^63 - 1 is not. */
        if (d >= -0x1p63 && d < 0x1p63 && d == floor(d)) {
            i = (int64_t) d;
            ok = 1;
        }
    }

    if (!ok || i < min || i > max) {
        snprintf(what, sizeof(what),
                 "an integer from %" PRId64 " to %" PRId64, min, max);

        return fail_type(e, key, what, v);
    }

    *out = i;

    return 1;
}


int
json_get_num(const json_t *o, const char *key, double *out, struct err *e)
{
    json_t *v;

    if (!get(o, key, &v)) {
        return 0;
    }

    if (!json_is_number(v)) {
        return fail_type(e, key, "a number", v);
    }

    *out = json_number_value(v);

    return 1;
}


int
json_get_bool(const json_t *o, const char *key, int *out, struct err *e)
{
    json_t *v;

    if (!get(o, key, &v)) {
        return 0;
    }

    if (!json_is_boolean(v)) {
        return fail_type(e, key, "true or false", v);
    }

    *out = json_is_true(v);

    return 1;
}


int
json_get_str(const json_t *o, const char *key, struct slice *out,
             struct err *e)
{
    json_t *v;

    if (!get(o, key, &v)) {
        return 0;
    }

    if (!json_is_string(v)) {
        return fail_type(e, key, "a string", v);
    }

    out->p = json_string_value(v);
    out->n = json_string_length(v);

    return 1;
}


int
json_get_obj(const json_t *o, const char *key, json_t **out, struct err *e)
{
    json_t *v;

    if (!get(o, key, &v)) {
        return 0;
    }

    if (!json_is_object(v)) {
        return fail_type(e, key, "an object", v);
    }

    *out = v;

    return 1;
}


int
json_get_arr(const json_t *o, const char *key, json_t **out, struct err *e)
{
    json_t *v;

    if (!get(o, key, &v)) {
        return 0;
    }

    if (!json_is_array(v)) {
        return fail_type(e, key, "an array", v);
    }

    *out = v;

    return 1;
}
