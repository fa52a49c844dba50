/*
 * func.c - the functions that Hugging Face's environment brings:
 * namespace, dict, range, raise_exception, strftime_now.  The only clock of
 * the interpreter is here.  Must not know nodes.
 */
#include "template/impl.h"

#include <string.h>
#include <time.h>

#define RANGE_MAX   100000      /* as Jinja2's sandbox has it */


/* dict(mapping, k=v) */
static int
fill(struct render *r, struct call *c, enum value_kind kind,
     struct value *out)
{
    const struct args *args = c->args;

    if (tvalue_dict(r, kind, out) != 0) {
        return -1;
    }

    if (args->n > 1 || (args->n == 1 && args->v[0].kind != VALUE_DICT)) {
        return template_fail(r, "%s: expected a dict and named arguments",
                             c->callee->name);
    }

    for (size_t i = 0; args->n == 1 && i < args->v[0].dict->n; i++) {
        const struct pair *p = &args->v[0].dict->p[i];

        if (tvalue_put(r, out, &p->key, &p->value) != 0) {
            return -1;
        }
    }

    for (size_t i = 0; i < args->n_kw; i++) {
        struct value key = tvalue_str(args->kw[i].name.p,
                                      args->kw[i].name.n);

        if (tvalue_put(r, out, &key, &args->kw[i].value) != 0) {
            return -1;
        }
    }

    return 0;
}


static int
g_namespace(struct render *r, struct call *c, struct value *out)
{
    return fill(r, c, VALUE_SPACE, out);
}


static int
g_dict(struct render *r, struct call *c, struct value *out)
{
    return fill(r, c, VALUE_DICT, out);
}


/* range(to), range(from, to), range(from, to, step) */
static int
g_range(struct render *r, struct call *c, struct value *out)
{
    int64_t v[3] = { 0, 0, 1 };
    int     n = 0;

    for (; n < 3 && c->a[n].kind != VALUE_ABSENT; n++) {
        if (c->a[n].kind != VALUE_INT && c->a[n].kind != VALUE_BOOL) {
            return template_fail(r, "range: expected an int, got %s",
                                 tvalue_type(&c->a[n]));
        }

        v[n == 0 && c->a[1].kind == VALUE_ABSENT ? 1 : n] = c->a[n].i;
    }

    if (v[2] == 0) {
        return template_fail(r, "range: the step cannot be 0");
    }

    if (tvalue_list(r, VALUE_LIST, 0, out) != 0) {
        return -1;
    }

    for (int64_t i = v[0]; v[2] > 0 ? i < v[1] : i > v[1]; ) {
        struct value item = tvalue_int(i);

        if (out->list->n == RANGE_MAX) {
            return template_fail(r, "range: more than %d items", RANGE_MAX);
        }

        if (tvalue_push(r, out, &item) != 0) {
            return -1;
        }

        if (__builtin_add_overflow(i, v[2], &i)) {
            break;
        }
    }

    return 0;
}


/* The template refuses its input: its own words, without a line. */
static int
g_raise(struct render *r, struct call *c, struct value *out)
{
    if (tshow_str(r, &c->a[0], out) != 0) {
        return -1;
    }

    /* One line, and no half character where it does not fit. */
    size_t n = out->n;
    char   text[400];

    if (n >= sizeof(text)) {
        n = sizeof(text) - 1;

        while (n > 0 && ((unsigned char) out->s[n] & 0xc0) == 0x80) {
            n--;
        }
    }

    for (size_t i = 0; i < n; i++) {
        text[i] = (unsigned char) out->s[i] < 0x20 ? ' ' : out->s[i];
    }

    text[n] = '\0';
    r->located = 1;

    return err_set(r->err, "template: %s", text);
}


static int
g_strftime_now(struct render *r, struct call *c, struct value *out)
{
    char      format[128];
    char      text[1024];
    time_t    now = time(NULL);
    struct tm tm;

    if (c->a[0].kind != VALUE_STR || c->a[0].n >= sizeof(format)
        || (c->a[0].n != 0 && memchr(c->a[0].s, '\0', c->a[0].n) != NULL))
    {
        return template_fail(r, "strftime_now: expected a format of at most "
                             "%zu bytes", sizeof(format) - 1);
    }

    memcpy(format, c->a[0].s, c->a[0].n);
    format[c->a[0].n] = '\0';

    if (localtime_r(&now, &tm) == NULL) {
        return template_fail(r, "strftime_now: no local time");
    }

    size_t n = strftime(text, sizeof(text), format, &tm);
    char  *copy = template_alloc(r, n + 1);

    if (copy == NULL) {
        return -1;
    }

    memcpy(copy, text, n);
    *out = tvalue_str(copy, n);

    return 0;
}


static const struct callee functions[] = {
    { "namespace", g_namespace, NULL, 0 },
    { "dict", g_dict, NULL, 0 },
    { "range", g_range, "start,stop,step", 1 },
    { "raise_exception", g_raise, "message", 1 },
    { "strftime_now", g_strftime_now, "format", 1 },
};


const struct callee *
tfunc_find(struct slice name)
{
    return tcallee_find(functions, BASE_COUNT(functions), name);
}
