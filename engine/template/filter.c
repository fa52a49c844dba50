/*
 * filter.c - the filters that take one value: x|trim, x|tojson.  In:
 * the piped value and the arguments, bound by name.  Must not know nodes.
 */
#include "template/impl.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "json_util.h"


static int
arg_int(struct render *r, const struct call *c, int i, int64_t *out)
{
    const struct value *v = &c->a[i];

    if (v->kind == VALUE_ABSENT || v->kind == VALUE_NONE) {
        return 0;
    }

    if (v->kind != VALUE_INT && v->kind != VALUE_BOOL) {
        return template_fail(r, "%s: expected an int, got %s",
                             c->callee->name, tvalue_type(v));
    }

    *out = v->i;

    return 1;
}


/* The n blanks of an indentation, in the arena. */
static int
blanks(struct render *r, int64_t n, struct slice *out)
{
    char *p;

    if (n > 1000) {
        return template_fail(r, "indentation of more than 1000");
    }

    n = n < 0 ? 0 : n;

    if ((p = template_alloc(r, (size_t) n + 1)) == NULL) {
        return -1;
    }

    memset(p, ' ', (size_t) n);
    *out = (struct slice) { p, (size_t) n };

    return 0;
}


/* separators=(", ", ": ") */
static int
separators(struct render *r, const struct value *v, struct json_style *style)
{
    struct value items;

    if (v->kind == VALUE_ABSENT || v->kind == VALUE_NONE) {
        return 0;
    }

    if (tvalue_items(r, v, &items) != 0) {
        return -1;
    }

    if (items.list->n != 2 || items.list->v[0].kind != VALUE_STR
        || items.list->v[1].kind != VALUE_STR)
    {
        return template_fail(r, "tojson: expected two strings as separators");
    }

    style->comma = (struct slice) { items.list->v[0].s, items.list->v[0].n };
    style->colon = (struct slice) { items.list->v[1].s, items.list->v[1].n };

    return 0;
}


/* Hugging Face's, not Jinja's own: json.dumps() and its defaults, except that
 * text stays UTF-8. */
static int
f_tojson(struct render *r, struct call *c, struct value *out)
{
    struct json_style style = {
        .ensure_ascii = tvalue_true(&c->a[0]),
        .sort_keys = tvalue_true(&c->a[3]),
        .comma = { ", ", 2 },
        .colon = { ": ", 2 },
    };
    struct buf b = { 0 };
    int64_t    n = 0;

    if (c->a[1].kind == VALUE_STR) {
        style.pretty = 1;
        style.indent = (struct slice) { c->a[1].s, c->a[1].n };

    } else {
        style.pretty = arg_int(r, c, 1, &n);

        if (style.pretty < 0 || blanks(r, n, &style.indent) != 0) {
            return -1;
        }
    }

    if (style.pretty) {
        style.comma.n = 1;
    }

    if (separators(r, &c->a[2], &style) != 0) {
        return -1;
    }

    return template_take(r, &b, tshow_json(r, &c->self, &style, &b), out);
}


static int
f_from_json(struct render *r, struct call *c, struct value *out)
{
    struct err e;

    if (c->self.kind != VALUE_STR) {
        return template_fail(r, "from_json: expected a str, got %s",
                             tvalue_type(&c->self));
    }

    if (template_burn(r, c->self.n) != 0) {
        return -1;
    }

    json_t *j = json_parse(c->self.s, c->self.n, &e);

    if (j == NULL) {
        return template_fail(r, "from_json: %s", e.text);
    }

    /* Its strings must live as long as the rendering. */
    if (json_array_append_new(r->kept, j) != 0) {
        return template_fail(r, "no memory");
    }

    return tvalue_json(r, j, out);
}


static int
f_length(struct render *r, struct call *c, struct value *out)
{
    const struct value *v = &c->self;
    size_t              n = 0;

    switch ((enum value_kind) v->kind) {
    case VALUE_UNDEF: break;
    case VALUE_STR: n = ttext_count(v->s, v->n); break;
    case VALUE_LIST: case VALUE_TUPLE: n = v->list->n; break;
    case VALUE_DICT: n = v->dict->n; break;
    case VALUE_LOOP: n = v->loop->n; break;
    default:
        return template_fail(r, "a %s has no length", tvalue_type(v));
    }

    *out = tvalue_int((int64_t) n);

    return template_burn(r, v->kind == VALUE_STR ? v->n / 16 : 0);
}


/* A method of str on str(self), with the same arguments. */
static int
by_method(struct render *r, struct call *c, const char *name,
          struct value *out)
{
    struct value  text;
    struct slice  s = { name, strlen(name) };

    if (tshow_str(r, &c->self, &text) != 0) {
        return -1;
    }

    struct call on = *c;

    on.callee = tmethod_find(&text, s);
    on.self = text;

    return on.callee->fn(r, &on, out);
}


static int
f_trim(struct render *r, struct call *c, struct value *out)
{
    return by_method(r, c, "strip", out);
}


static int
f_upper(struct render *r, struct call *c, struct value *out)
{
    return by_method(r, c, "upper", out);
}


static int
f_lower(struct render *r, struct call *c, struct value *out)
{
    return by_method(r, c, "lower", out);
}


static int
f_capitalize(struct render *r, struct call *c, struct value *out)
{
    return by_method(r, c, "capitalize", out);
}


static int
f_string(struct render *r, struct call *c, struct value *out)
{
    return tshow_str(r, &c->self, out);
}


static int
f_safe(struct render *r, struct call *c, struct value *out)
{
    if (tshow_str(r, &c->self, out) != 0) {
        return -1;
    }

    out->safe = 1;

    return 0;
}


/* Jinja's own title(): words begin after blanks, hyphens and brackets. */
static int
f_title(struct render *r, struct call *c, struct value *out)
{
    struct value text, part;
    struct buf   b = { 0 };
    size_t       from = 0;
    int          rc = tshow_str(r, &c->self, &text);

    for (size_t i = 0; rc == 0 && i <= text.n; ) {
        size_t len = i < text.n ? ttext_step(text.s, text.n, i) : 1;
        int    apart = i == text.n || strchr("-({[<", text.s[i]) != NULL
                       || ttext_is_space(ttext_point(text.s, text.n, i));

        if (apart && i > from) {
            struct value word = tvalue_str(text.s + from, i - from);

            rc = ttext_case(r, &word, TEXT_CAPITAL, &part);
            rc = rc != 0 ? rc : template_put(r, &b, part.s, part.n);
        }

        if (apart) {
            rc = rc != 0 || i == text.n
                 ? rc : template_put(r, &b, text.s + i, len);
            from = i + len;
        }

        i += len;
    }

    return template_take(r, &b, rc, out);
}


static int
f_replace(struct render *r, struct call *c, struct value *out)
{
    struct value s, from, to;
    int64_t      max = -1;

    if (tshow_str(r, &c->self, &s) != 0 || tshow_str(r, &c->a[0], &from) != 0
        || tshow_str(r, &c->a[1], &to) != 0 || arg_int(r, c, 2, &max) < 0)
    {
        return -1;
    }

    return ttext_replace(r, &s, &from, &to, max, out);
}


static int
f_default(struct render *r, struct call *c, struct value *out)
{
    int use = c->self.kind == VALUE_UNDEF
              || (tvalue_true(&c->a[1]) && !tvalue_true(&c->self));

    *out = !use ? c->self : c->a[0].kind != VALUE_ABSENT
           ? c->a[0] : tvalue_cstr("");

    return template_burn(r, 1);
}


static int
f_abs(struct render *r, struct call *c, struct value *out)
{
    const struct value *v = &c->self;

    if (v->kind == VALUE_FLOAT) {
        *out = tvalue_float(fabs(v->f));
        return 0;
    }

    if (!tvalue_is_number(v) || v->i == INT64_MIN) {
        return template_fail(r, "abs: expected a number, got %s",
                             tvalue_type(v));
    }

    *out = tvalue_int(v->i < 0 ? -v->i : v->i);

    return 0;
}


/* A string as Python's int() or float() reads it: blanks around, single
 * underscores between digits.  0, or -1: it is none. */
static int
read_number(const struct value *v, int base, int64_t *i, double *f)
{
    char   text[64];
    size_t lead = ttext_lead(v->s, v->n);
    size_t end = v->n - ttext_trail(v->s, v->n);
    size_t n = 0;
    char  *rest = text;

    size_t digits = lead + (lead < end && strchr("+-", v->s[lead]) != NULL);
    char   mark = base == 2 ? 'b' : base == 8 ? 'o' : '\0';

    for (size_t k = lead; k < end; k++) {
        /* "0b" and "0o" are Python's; "0x" strtoll() knows. */
        if (k == digits && mark != '\0' && k + 2 < end && v->s[k] == '0'
            && (v->s[k + 1] | 0x20) == mark)
        {
            k++;
            continue;
        }

        if (n == sizeof(text) - 1) {
            return -1;
        }

        if (v->s[k] == '_') {
            if (k == lead || v->s[k - 1] == '_' || k + 1 == end) {
                return -1;
            }

            continue;
        }

        text[n++] = v->s[k];
    }

    text[n] = '\0';

    /* No hexadecimal floats, no "nan(...)", no blanks inside. */
    if (n == 0 || strlen(text) != n || strpbrk(text, " \t\n\v\f\r()") != NULL
        || (f != NULL && strpbrk(text, "xXpP") != NULL))
    {
        return -1;
    }

    errno = 0;

    if (f != NULL) {
        *f = strtod(text, &rest);

    } else {
        *i = strtoll(text, &rest, base);
    }

    return *rest != '\0' || (f == NULL && errno == ERANGE) ? -1 : 0;
}


/* 0; 1: it is infinite or no number; -1: an integer beyond ours. */
static int
int_of_float(struct render *r, double f, int64_t *i)
{
    if (!isfinite(f)) {
        return 1;
    }

    if (f < -0x1p63 || f >= 0x1p63) {
        return template_fail(r, "integer does not fit in 64 bits");
    }

    *i = (int64_t) f;

    return 0;
}


/* A string as int(s, base), or else as int(float(s)); results as above. */
static int
int_of_str(struct render *r, const struct value *s, int64_t base, int64_t *i)
{
    double f;

    if (base < 2 || base > 36) {
        return template_fail(r, "int: expected a base from 2 to 36");
    }

    if (read_number(s, (int) base, i, NULL) == 0) {
        return 0;
    }

    return read_number(s, 10, NULL, &f) == 0 ? int_of_float(r, f, i) : 1;
}


static int
f_int(struct render *r, struct call *c, struct value *out)
{
    const struct value *v = &c->self;
    int64_t             base = 10;
    int64_t             i = 0;
    int                 rc = 1;

    if (v->kind == VALUE_UNDEF) {
        return template_fail(r, "'%.*s' is undefined", (int) v->n, v->s);
    }

    if (arg_int(r, c, 1, &base) < 0) {
        return -1;
    }

    if (v->kind == VALUE_STR) {
        rc = int_of_str(r, v, base, &i);

    } else if (v->kind == VALUE_FLOAT && isinf(v->f)) {
        rc = template_fail(r, "int: infinity is no integer");

    } else if (v->kind == VALUE_FLOAT) {
        rc = int_of_float(r, v->f, &i);

    } else if (tvalue_is_number(v)) {
        i = v->i;
        rc = 0;
    }

    if (rc < 0) {
        return -1;
    }

    *out = rc == 0 ? tvalue_int(i)
           : c->a[0].kind != VALUE_ABSENT ? c->a[0] : tvalue_int(0);

    return 0;
}


static int
f_float(struct render *r, struct call *c, struct value *out)
{
    const struct value *v = &c->self;
    double              f = 0;
    int                 rc = -1;

    if (v->kind == VALUE_UNDEF) {
        return template_fail(r, "'%.*s' is undefined", (int) v->n, v->s);
    }

    if (v->kind == VALUE_STR) {
        rc = read_number(v, 10, NULL, &f);

    } else if (tvalue_is_number(v)) {
        f = v->kind == VALUE_FLOAT ? v->f : (double) v->i;
        rc = 0;
    }

    *out = rc == 0 ? tvalue_float(f)
           : c->a[0].kind != VALUE_ABSENT ? c->a[0] : tvalue_float(0);

    return 0;
}


/* The lines after the first (or all) moved right; empty ones only if asked. */
static int
f_indent(struct render *r, struct call *c, struct value *out)
{
    struct value  text, lines;
    struct slice  by = { c->a[0].s, c->a[0].n };
    struct buf    b = { 0 };
    int64_t       width = 4;
    int           first = tvalue_true(&c->a[1]);
    int           blank = tvalue_true(&c->a[2]);
    struct call   split = { .callee = c->callee };
    struct slice  name = { "splitlines", 10 };

    if (c->a[0].kind != VALUE_STR
        && (arg_int(r, c, 0, &width) < 0 || blanks(r, width, &by) != 0))
    {
        return -1;
    }

    if (c->self.kind != VALUE_STR) {
        return template_fail(r, "indent: expected a str, got %s",
                             tvalue_type(&c->self));
    }

    text = c->self;

    /* Jinja appends a newline, so that one at the end is kept. */
    int rc = template_put(r, &b, text.s, text.n);

    rc = rc != 0 ? rc : template_puts(r, &b, "\n");

    if (template_take(r, &b, rc, &split.self) != 0
        || tmethod_find(&split.self, name)->fn(r, &split, &lines) != 0)
    {
        return -1;
    }

    rc = 0;
    b = (struct buf) { 0 };

    for (size_t i = 0; rc == 0 && i < lines.list->n; i++) {
        const struct value *line = &lines.list->v[i];

        rc = i == 0 ? 0 : template_puts(r, &b, "\n");

        if (rc == 0 && (i == 0 ? first : blank || line->n != 0)) {
            rc = template_put(r, &b, by.p, by.n);
        }

        rc = rc != 0 ? rc : template_put(r, &b, line->s, line->n);
    }

    return template_take(r, &b, rc, out);
}


static const struct callee filters[] = {
    { "tojson", f_tojson, "ensure_ascii,indent,separators,sort_keys", 0 },
    { "from_json", f_from_json, "", 0 },
    { "length", f_length, "", 0 },
    { "count", f_length, "", 0 },
    { "trim", f_trim, "chars", 0 },
    { "string", f_string, "", 0 },
    { "safe", f_safe, "", 0 },
    { "upper", f_upper, "", 0 },
    { "lower", f_lower, "", 0 },
    { "title", f_title, "", 0 },
    { "capitalize", f_capitalize, "", 0 },
    { "replace", f_replace, "old,new,count", 2 },
    { "default", f_default, "default_value,boolean", 0 },
    { "d", f_default, "default_value,boolean", 0 },
    { "abs", f_abs, "", 0 },
    { "int", f_int, "default,base", 0 },
    { "float", f_float, "default", 0 },
    { "indent", f_indent, "width,first,blank", 0 },
};


const struct callee *
tfilter_find(struct slice name)
{
    const struct callee *f = tcallee_find(filters, BASE_COUNT(filters), name);

    return f != NULL ? f : tseq_find(name);
}
