/*
 * method.c - the methods of strings, lists and dicts that templates
 * call, as Python's.  In: the object and its arguments, bound by name.  What
 * Python's objects have beside these is here only where its name would hide a
 * key of a dict.  Must not know nodes.
 */
#include "template/impl.h"

#include <string.h>


const struct callee *
tcallee_find(const struct callee *table, size_t n, struct slice name)
{
    for (size_t i = 0; i < n; i++) {
        if (strlen(table[i].name) == name.n
            && memcmp(table[i].name, name.p, name.n) == 0)
        {
            return &table[i];
        }
    }

    return NULL;
}


/* Argument i as a string; none and absent give 0, a string 1. */
static int
opt_str(struct render *r, const struct call *c, int i, struct slice *out)
{
    const struct value *v = &c->a[i];

    if (v->kind == VALUE_ABSENT || v->kind == VALUE_NONE) {
        return 0;
    }

    if (v->kind != VALUE_STR) {
        return template_fail(r, "%s: expected a str, got %s", c->callee->name,
                             tvalue_type(v));
    }

    *out = (struct slice) { v->s, v->n };

    return 1;
}


static int
need_str(struct render *r, const struct call *c, int i, struct slice *out)
{
    int rc = opt_str(r, c, i, out);

    return rc == 0 ? template_fail(r, "%s: expected a str, got %s",
                                   c->callee->name, tvalue_type(&c->a[i]))
                   : rc;
}


static int
opt_int(struct render *r, const struct call *c, int i, int64_t *out)
{
    const struct value *v = &c->a[i];

    if (v->kind == VALUE_ABSENT) {
        return 0;
    }

    if (v->kind != VALUE_INT && v->kind != VALUE_BOOL) {
        return template_fail(r, "%s: expected an int, got %s",
                             c->callee->name, tvalue_type(v));
    }

    *out = v->i;

    return 1;
}


static struct slice
self_of(const struct call *c)
{
    return (struct slice) { c->self.s, c->self.n };
}


static int
push_part(struct render *r, struct value *list, const char *s, size_t n)
{
    struct value v = tvalue_str(s, n);

    return template_burn(r, 1) != 0 || tvalue_push(r, list, &v) != 0 ? -1 : 0;
}


/* split() by white space: no empty parts, the rest stays whole after max. */
static int
split_blank(struct render *r, struct slice s, int64_t max, struct value *out)
{
    size_t i = ttext_lead(s.p, s.n);

    for (int64_t k = 0; i < s.n; k++) {
        size_t end = i;

        if (k == max) {
            return push_part(r, out, s.p + i, s.n - i);
        }

        while (end < s.n && !ttext_is_space(ttext_point(s.p, s.n, end))) {
            end += ttext_step(s.p, s.n, end);
        }

        if (push_part(r, out, s.p + i, end - i) != 0) {
            return -1;
        }

        i = end + ttext_lead(s.p + end, s.n - end);
    }

    return 0;
}


static int
str_split(struct render *r, struct call *c, struct value *out)
{
    struct slice s = self_of(c);
    struct slice sep = { NULL, 0 };
    int64_t      max = -1;
    size_t       i = 0;
    int          by = opt_str(r, c, 0, &sep);

    if (by < 0 || opt_int(r, c, 1, &max) < 0
        || tvalue_list(r, VALUE_LIST, 0, out) != 0
        || template_burn(r, s.n / 16) != 0)
    {
        return -1;
    }

    if (!by) {
        return split_blank(r, s, max, out);
    }

    if (sep.n == 0) {
        return template_fail(r, "split: empty separator");
    }

    for (int64_t k = 0; k != max; k++) {
        size_t hit = ttext_find(s, sep, i);

        if (hit == SIZE_MAX) {
            break;
        }

        if (push_part(r, out, s.p + i, hit - i) != 0) {
            return -1;
        }

        i = hit + sep.n;
    }

    return push_part(r, out, s.p + i, s.n - i);
}


/* The last sub in s[..end); SIZE_MAX. */
static size_t
find_last(struct slice s, struct slice sub, size_t end)
{
    for (size_t i = end; i + 1 > sub.n; i--) {
        if (memcmp(s.p + i - sub.n, sub.p, sub.n) == 0) {
            return i - sub.n;
        }
    }

    return SIZE_MAX;
}


/* With a separator; parts are found from the right, and stand from the left. */
static int
str_rsplit(struct render *r, struct call *c, struct value *out)
{
    struct slice s = self_of(c);
    struct slice sep = { NULL, 0 };
    int64_t      max = -1;
    size_t       end = s.n;
    int          by = opt_str(r, c, 0, &sep);

    if (by < 0 || opt_int(r, c, 1, &max) < 0
        || tvalue_list(r, VALUE_LIST, 0, out) != 0
        || template_burn(r, s.n) != 0)
    {
        return -1;
    }

    if (!by || sep.n == 0) {
        return template_fail(r, "rsplit: only with a separator");
    }

    for (int64_t k = 0; k != max; k++) {
        size_t hit = find_last(s, sep, end);

        if (hit == SIZE_MAX) {
            break;
        }

        if (push_part(r, out, s.p + hit + sep.n, end - hit - sep.n) != 0) {
            return -1;
        }

        end = hit;
    }

    if (push_part(r, out, s.p, end) != 0) {
        return -1;
    }

    for (size_t i = 0, k = out->list->n - 1; i < k; i++, k--) {
        struct value v = out->list->v[i];

        out->list->v[i] = out->list->v[k];
        out->list->v[k] = v;
    }

    return 0;
}


/* Bytes of a line's end at i, as Python's splitlines() sees it; 0. */
static size_t
line_end(struct slice s, size_t i)
{
    int32_t p = ttext_point(s.p, s.n, i);

    if (p == '\r' && i + 1 < s.n && s.p[i + 1] == '\n') {
        return 2;
    }

    if ((p >= '\n' && p <= '\r') || (p >= 0x1c && p <= 0x1e) || p == 0x85
        || p == 0x2028 || p == 0x2029)
    {
        return ttext_step(s.p, s.n, i);
    }

    return 0;
}


static int
str_splitlines(struct render *r, struct call *c, struct value *out)
{
    struct slice s = self_of(c);
    size_t       from = 0;
    int          keep = tvalue_true(&c->a[0]);

    if (tvalue_list(r, VALUE_LIST, 0, out) != 0
        || template_burn(r, s.n / 16) != 0)
    {
        return -1;
    }

    for (size_t i = 0; i < s.n; ) {
        size_t end = line_end(s, i);

        if (end == 0) {
            i += ttext_step(s.p, s.n, i);
            continue;
        }

        if (push_part(r, out, s.p + from, i - from + (keep ? end : 0)) != 0) {
            return -1;
        }

        i += end;
        from = i;
    }

    return from < s.n ? push_part(r, out, s.p + from, s.n - from) : 0;
}


/* Is the character of s at i one of chars?  NULL chars: white space. */
static int
is_among(struct slice s, size_t i, const struct slice *chars)
{
    if (chars == NULL) {
        return ttext_is_space(ttext_point(s.p, s.n, i));
    }

    struct slice one = { s.p + i, ttext_step(s.p, s.n, i) };

    return ttext_find(*chars, one, 0) != SIZE_MAX;
}


static int
strip(struct render *r, struct call *c, int left, int right,
      struct value *out)
{
    struct slice s = self_of(c);
    struct slice chars = { "", 0 };
    int          by = opt_str(r, c, 0, &chars);
    size_t       i = 0;
    size_t       end = s.n;

    if (by < 0) {
        return -1;
    }

    while (left && i < end && is_among(s, i, by ? &chars : NULL)) {
        i += ttext_step(s.p, s.n, i);
    }

    while (right && end > i) {
        size_t n = ttext_back(s.p, end);

        if (!is_among(s, end - n, by ? &chars : NULL)) {
            break;
        }

        end -= n;
    }

    *out = tvalue_str(s.p + i, end - i);
    out->safe = c->self.safe;

    /* Each character stripped was looked for in chars. */
    return template_burn(r, by ? (s.n - (end - i)) * (1 + chars.n / 16) : 0);
}


static int
str_strip(struct render *r, struct call *c, struct value *out)
{
    return strip(r, c, 1, 1, out);
}


static int
str_lstrip(struct render *r, struct call *c, struct value *out)
{
    return strip(r, c, 1, 0, out);
}


static int
str_rstrip(struct render *r, struct call *c, struct value *out)
{
    return strip(r, c, 0, 1, out);
}


static int
has_end(struct slice s, struct slice end, int at_start)
{
    return end.n <= s.n
           && memcmp(at_start ? s.p : s.p + s.n - end.n, end.p, end.n) == 0;
}


/* startswith and endswith: a string, or a tuple of strings. */
static int
test_end(struct render *r, struct call *c, int at_start, struct value *out)
{
    const struct value *v = &c->a[0];
    size_t              n = v->kind == VALUE_TUPLE ? v->list->n : 1;
    int                 yes = 0;

    for (size_t i = 0; i < n; i++) {
        const struct value *one = v->kind == VALUE_TUPLE ? &v->list->v[i] : v;

        if (one->kind != VALUE_STR) {
            return template_fail(r, "%s: expected a str, got %s",
                                 c->callee->name, tvalue_type(one));
        }

        yes |= has_end(self_of(c), (struct slice) { one->s, one->n },
                       at_start);
    }

    *out = tvalue_bool(yes);

    return template_burn(r, n);
}


static int
str_startswith(struct render *r, struct call *c, struct value *out)
{
    return test_end(r, c, 1, out);
}


static int
str_endswith(struct render *r, struct call *c, struct value *out)
{
    return test_end(r, c, 0, out);
}


static int
str_removeprefix(struct render *r, struct call *c, struct value *out)
{
    struct slice s = self_of(c);
    struct slice end = { "", 0 };

    if (need_str(r, c, 0, &end) < 0) {
        return -1;
    }

    size_t n = has_end(s, end, 1) ? end.n : 0;

    *out = tvalue_str(s.p + n, s.n - n);

    return 0;
}


static int
str_removesuffix(struct render *r, struct call *c, struct value *out)
{
    struct slice s = self_of(c);
    struct slice end = { "", 0 };

    if (need_str(r, c, 0, &end) < 0) {
        return -1;
    }

    *out = tvalue_str(s.p, s.n - (has_end(s, end, 0) ? end.n : 0));

    return 0;
}


static int
str_replace(struct render *r, struct call *c, struct value *out)
{
    struct slice from = { "", 0 };
    struct slice to = { "", 0 };
    int64_t      max = -1;

    if (need_str(r, c, 0, &from) < 0 || need_str(r, c, 1, &to) < 0
        || opt_int(r, c, 2, &max) < 0)
    {
        return -1;
    }

    return ttext_replace(r, &c->self, &c->a[0], &c->a[1], max, out);
}


static int
find(struct render *r, struct call *c, int last, struct value *out)
{
    struct slice s = self_of(c);
    struct slice sub = { "", 0 };

    if (need_str(r, c, 0, &sub) < 0 || template_burn(r, s.n) != 0) {
        return -1;
    }

    size_t hit = last ? find_last(s, sub, s.n) : ttext_find(s, sub, 0);

    *out = tvalue_int(hit == SIZE_MAX
                      ? -1 : (int64_t) ttext_count(s.p, hit));

    return 0;
}


static int
str_find(struct render *r, struct call *c, struct value *out)
{
    return find(r, c, 0, out);
}


static int
str_rfind(struct render *r, struct call *c, struct value *out)
{
    return find(r, c, 1, out);
}


static int
str_count(struct render *r, struct call *c, struct value *out)
{
    struct slice s = self_of(c);
    struct slice sub = { "", 0 };
    int64_t      n = 0;

    if (need_str(r, c, 0, &sub) < 0 || template_burn(r, s.n) != 0) {
        return -1;
    }

    for (size_t i = ttext_find(s, sub, 0); sub.n != 0 && i != SIZE_MAX;
         i = ttext_find(s, sub, i + sub.n))
    {
        n++;
    }

    *out = tvalue_int(sub.n != 0 ? n
                      : (int64_t) ttext_count(s.p, s.n) + 1);

    return 0;
}


static int
str_upper(struct render *r, struct call *c, struct value *out)
{
    return ttext_case(r, &c->self, TEXT_UPPER, out);
}


static int
str_lower(struct render *r, struct call *c, struct value *out)
{
    return ttext_case(r, &c->self, TEXT_LOWER, out);
}


static int
str_title(struct render *r, struct call *c, struct value *out)
{
    return ttext_case(r, &c->self, TEXT_TITLE, out);
}


static int
str_capitalize(struct render *r, struct call *c, struct value *out)
{
    return ttext_case(r, &c->self, TEXT_CAPITAL, out);
}


static int
str_isdigit(struct render *r, struct call *c, struct value *out)
{
    size_t i = 0;

    while (i < c->self.n && c->self.s[i] >= '0' && c->self.s[i] <= '9') {
        i++;
    }

    *out = tvalue_bool(c->self.n != 0 && i == c->self.n);

    return template_burn(r, i / 16);
}


static int
str_join(struct render *r, struct call *c, struct value *out)
{
    struct value items;
    struct buf   b = { 0 };
    int          rc = tvalue_items(r, &c->a[0], &items);

    for (size_t i = 0; rc == 0 && i < items.list->n; i++) {
        const struct value *v = &items.list->v[i];

        if (v->kind != VALUE_STR) {
            rc = template_fail(r, "join: expected a str, got %s",
                               tvalue_type(v));
            break;
        }

        rc = i == 0 ? 0 : template_put(r, &b, c->self.s, c->self.n);
        rc = rc != 0 ? rc : template_put(r, &b, v->s, v->n);
    }

    return template_take(r, &b, rc, out);
}


static int
list_append(struct render *r, struct call *c, struct value *out)
{
    *out = tvalue_none();

    return tvalue_push(r, &c->self, &c->a[0]);
}


static int
list_pop(struct render *r, struct call *c, struct value *out)
{
    struct list *l = c->self.list;
    int64_t      i = -1;

    if (opt_int(r, c, 0, &i) < 0) {
        return -1;
    }

    i += i < 0 ? (int64_t) l->n : 0;

    if (i < 0 || (uint64_t) i >= l->n) {
        return template_fail(r, "pop: no such item in a list of %zu", l->n);
    }

    *out = l->v[i];
    l->n--;
    memmove(&l->v[i], &l->v[i + 1], (l->n - (size_t) i) * sizeof(*l->v));

    return template_burn(r, (l->n - (size_t) i) / 4);
}


/* keys, values or items of a dict, as a list. */
static int
members(struct render *r, const struct call *c, int keys, int values,
        struct value *out)
{
    const struct dict *d = c->self.dict;

    if (tvalue_list(r, VALUE_LIST, d->n, out) != 0) {
        return -1;
    }

    for (size_t i = 0; i < d->n; i++) {
        struct value v = keys ? d->p[i].key : d->p[i].value;

        if (keys && values
            && (tvalue_list(r, VALUE_TUPLE, 2, &v) != 0
                || tvalue_push(r, &v, &d->p[i].key) != 0
                || tvalue_push(r, &v, &d->p[i].value) != 0))
        {
            return -1;
        }

        if (tvalue_push(r, out, &v) != 0) {
            return -1;
        }
    }

    return 0;
}


static int
dict_items(struct render *r, struct call *c, struct value *out)
{
    return members(r, c, 1, 1, out);
}


static int
dict_keys(struct render *r, struct call *c, struct value *out)
{
    return members(r, c, 1, 0, out);
}


static int
dict_values(struct render *r, struct call *c, struct value *out)
{
    return members(r, c, 0, 1, out);
}


static int
dict_get(struct render *r, struct call *c, struct value *out)
{
    struct value *v;

    if (tvalue_hashable(r, &c->a[0]) != 0
        || tvalue_get(r, &c->self, &c->a[0], &v) != 0)
    {
        return -1;
    }

    *out = v != NULL ? *v
           : c->a[1].kind != VALUE_ABSENT ? c->a[1] : tvalue_none();

    return 0;
}


static int
refused(struct render *r, struct call *c, struct value *out)
{
    (void) out;

    return template_fail(r, "%s: this method is not supported",
                         c->callee->name);
}


static const struct callee str_methods[] = {
    { "split", str_split, "sep,maxsplit", 0 },
    { "rsplit", str_rsplit, "sep,maxsplit", 0 },
    { "splitlines", str_splitlines, "keepends", 0 },
    { "strip", str_strip, "chars", 0 },
    { "lstrip", str_lstrip, "chars", 0 },
    { "rstrip", str_rstrip, "chars", 0 },
    { "startswith", str_startswith, "prefix", 1 },
    { "endswith", str_endswith, "suffix", 1 },
    { "removeprefix", str_removeprefix, "prefix", 1 },
    { "removesuffix", str_removesuffix, "suffix", 1 },
    { "replace", str_replace, "old,new,count", 2 },
    { "find", str_find, "sub", 1 },
    { "rfind", str_rfind, "sub", 1 },
    { "count", str_count, "sub", 1 },
    { "upper", str_upper, "", 0 },
    { "lower", str_lower, "", 0 },
    { "title", str_title, "", 0 },
    { "capitalize", str_capitalize, "", 0 },
    { "isdigit", str_isdigit, "", 0 },
    { "join", str_join, "iterable", 1 },
};

static const struct callee list_methods[] = {
    { "append", list_append, "object", 1 },
    { "pop", list_pop, "index", 0 },
};

/* The last seven are the rest of Python's: x.copy is never the key "copy". */
static const struct callee dict_methods[] = {
    { "items", dict_items, "", 0 },
    { "keys", dict_keys, "", 0 },
    { "values", dict_values, "", 0 },
    { "get", dict_get, "key,default", 1 },
    { "copy", refused, NULL, 0 },
    { "pop", refused, NULL, 0 },
    { "update", refused, NULL, 0 },
    { "clear", refused, NULL, 0 },
    { "popitem", refused, NULL, 0 },
    { "setdefault", refused, NULL, 0 },
    { "fromkeys", refused, NULL, 0 },
};


const struct callee *
tmethod_find(const struct value *v, struct slice name)
{
    switch ((enum value_kind) v->kind) {
    case VALUE_STR:
        return tcallee_find(str_methods, BASE_COUNT(str_methods), name);

    case VALUE_LIST:
        return tcallee_find(list_methods, BASE_COUNT(list_methods), name);

    case VALUE_DICT:
        return tcallee_find(dict_methods, BASE_COUNT(dict_methods), name);

    default:
        return NULL;
    }
}
