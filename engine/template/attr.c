/*
 * attr.c - a.name, a[key] and a[from:to:step].  Jinja2 looks for an
 * attribute (a method) first with the dot and for an item first with the
 * brackets, each falls back to the other, and what is in neither is undefined.
 * So x.items is the method of a dict even where it has a key "items".
 */
#include "template/impl.h"

#include <string.h>


static int
is(struct slice name, const char *word)
{
    return name.n == strlen(word) && memcmp(name.p, word, name.n) == 0;
}


/* The members of a loop; 1: there is one of that name. */
static int
loop_member(const struct loop *l, struct slice name, struct value *out)
{
    const struct {
        const char *name;
        size_t      v;
    } counts[] = {
        { "index", l->i + 1 }, { "index0", l->i }, { "length", l->n },
        { "revindex", l->n - l->i }, { "revindex0", l->n - l->i - 1 },
        { "depth", 1 }, { "depth0", 0 },
    };

    for (size_t k = 0; k < BASE_COUNT(counts); k++) {
        if (is(name, counts[k].name)) {
            *out = tvalue_int((int64_t) counts[k].v);
            return 1;
        }
    }

    if (is(name, "first")) {
        *out = tvalue_bool(l->i == 0);

    } else if (is(name, "last")) {
        *out = tvalue_bool(l->i + 1 == l->n);

    } else if (is(name, "previtem")) {
        *out = l->i > 0 ? l->v[l->i - 1] : tvalue_undef(name);

    } else if (is(name, "nextitem")) {
        *out = l->i + 1 < l->n ? l->v[l->i + 1] : tvalue_undef(name);

    } else {
        return 0;
    }

    return 1;
}


/* 1: found; 0: there is no such attribute; -1. */
static int
attribute(struct render *r, const struct value *a, struct slice name,
          struct value *out)
{
    if (a->kind == VALUE_UNDEF) {
        return template_fail(r, "'%.*s' is undefined",
                             (int) (a->n < 80 ? a->n : 80), a->s);
    }

    if (a->kind == VALUE_LOOP) {
        return loop_member(a->loop, name, out);
    }

    if (a->kind == VALUE_SPACE) {
        struct value  key = tvalue_str(name.p, name.n);
        struct value *v;

        if (tvalue_get(r, a, &key, &v) != 0) {
            return -1;
        }

        if (v != NULL) {
            *out = *v;
        }

        return v != NULL;
    }

    const struct callee *callee = tmethod_find(a, name);

    if (callee == NULL) {
        return 0;
    }

    struct method *m = template_alloc(r, sizeof(*m));

    if (m == NULL) {
        return -1;
    }

    m->callee = callee;
    m->self = *a;
    *out = (struct value) { .kind = VALUE_METHOD, .method = m };

    return 1;
}


/* The place of index i in n things, from the end when negative; SIZE_MAX. */
static size_t
place(int64_t i, size_t n)
{
    if (i < 0) {
        i += (int64_t) n;
    }

    return i < 0 || (uint64_t) i >= n ? SIZE_MAX : (size_t) i;
}


static size_t
byte_of(const char *s, size_t n, size_t point)
{
    size_t i = 0;

    while (point-- > 0 && i < n) {
        i += ttext_step(s, n, i);
    }

    return i;
}


/* 1: found; 0: there is no such item; -1. */
static int
item(struct render *r, const struct value *a, const struct value *key,
     struct value *out)
{
    int by_index = key->kind == VALUE_INT || key->kind == VALUE_BOOL;

    if (a->kind == VALUE_DICT) {
        struct value *v;

        if (key->kind == VALUE_LIST || key->kind == VALUE_DICT) {
            return 0;
        }

        if (tvalue_get(r, a, key, &v) != 0) {
            return -1;
        }

        if (v != NULL) {
            *out = *v;
        }

        return v != NULL;
    }

    if (a->kind == VALUE_STR && by_index) {
        if (template_burn(r, a->n / 16) != 0) {
            return -1;
        }

        size_t k = place(key->i, ttext_count(a->s, a->n));

        if (k != SIZE_MAX) {
            size_t i = byte_of(a->s, a->n, k);

            *out = tvalue_str(a->s + i, ttext_step(a->s, a->n, i));
        }

        return k != SIZE_MAX;
    }

    if (tvalue_is_listy(a) && by_index) {
        size_t k = place(key->i, a->list->n);

        if (k != SIZE_MAX) {
            *out = a->list->v[k];
        }

        return k != SIZE_MAX;
    }

    return 0;
}


int
tattr_dot(struct render *r, const struct value *a, struct slice name,
          struct value *out)
{
    struct value key = tvalue_str(name.p, name.n);
    int          rc = attribute(r, a, name, out);

    rc = rc != 0 ? rc : item(r, a, &key, out);

    if (rc == 0) {
        *out = tvalue_undef(name);
    }

    return rc < 0 ? -1 : 0;
}


int
tattr_item(struct render *r, const struct value *a, const struct value *key,
           struct value *out)
{
    static const struct slice element = { "an element", 10 };
    struct slice              name = element;
    int                       rc = item(r, a, key, out);

    if (key->kind == VALUE_STR) {
        name = (struct slice) { key->s, key->n };
    }

    if (rc == 0 && (key->kind == VALUE_STR || a->kind == VALUE_UNDEF)) {
        rc = attribute(r, a, name, out);
    }

    if (rc == 0) {
        *out = tvalue_undef(name);
    }

    return rc < 0 ? -1 : 0;
}


/* One bound of a slice: none, or an integer. */
static int
bound(struct render *r, const struct value *v, int64_t absent, int64_t *out)
{
    if (v->kind == VALUE_NONE) {
        *out = absent;
        return 0;
    }

    if (v->kind != VALUE_INT && v->kind != VALUE_BOOL) {
        return template_fail(r, "a slice goes by integers, got %s",
                             tvalue_type(v));
    }

    *out = v->i;

    return 0;
}


/* Python's slice.indices(): [*from, *to) by step lies within 0..n. */
static int
indices(struct render *r, const struct value b[3], size_t n, int64_t *from,
        int64_t *to, int64_t *step)
{
    if (bound(r, &b[2], 1, step) != 0) {
        return -1;
    }

    if (*step == 0) {
        return template_fail(r, "a slice's step cannot be 0");
    }

    int64_t len = (int64_t) n;
    int64_t low = *step < 0 ? -1 : 0;
    int64_t high = *step < 0 ? len - 1 : len;
    int64_t *ends[2] = { from, to };

    for (int k = 0; k < 2; k++) {
        int64_t absent = (k == 0) == (*step > 0) ? low : high;

        if (bound(r, &b[k], absent, ends[k]) != 0) {
            return -1;
        }

        if (b[k].kind == VALUE_NONE) {
            continue;
        }

        if (*ends[k] < 0) {
            *ends[k] += len;
        }

        *ends[k] = *ends[k] < low ? low : *ends[k] > high ? high : *ends[k];
    }

    return 0;
}


/* How many from..to by step are. */
static int64_t
count(int64_t from, int64_t to, int64_t step)
{
    if (step > 0) {
        return from < to ? (to - from - 1) / step + 1 : 0;
    }

    /* -step could overflow; from > to >= -1 is small. */
    return from > to ? (from - to - 1) / (step == INT64_MIN ? INT64_MAX
                                                            : -step) + 1 : 0;
}


static int
slice_str(struct render *r, const struct value *a, int64_t from, int64_t step,
          int64_t n, struct value *out)
{
    struct buf b = { 0 };
    int        rc = 0;
    size_t     i = byte_of(a->s, a->n, (size_t) (n > 0 ? from : 0));

    if (step == 1) {
        size_t len = byte_of(a->s + i, a->n - i, (size_t) n);

        *out = tvalue_str(a->s + i, len);
        out->safe = a->safe;
        return 0;
    }

    for (int64_t k = 0; rc == 0 && k < n; k++) {
        size_t len = ttext_step(a->s, a->n, i);

        rc = template_put(r, &b, a->s + i, len);

        if (k + 1 == n) {
            break;
        }

        for (int64_t d = step; d > 0; d--) {
            i += ttext_step(a->s, a->n, i);
        }

        for (int64_t d = step; d < 0; d++) {
            i -= ttext_back(a->s, i);
        }
    }

    return template_take(r, &b, rc, out);
}


int
tattr_slice(struct render *r, const struct value *a,
            const struct value bounds[3], struct value *out)
{
    int64_t from = 0;
    int64_t to = 0;
    int64_t step = 1;
    size_t  n;

    if (a->kind == VALUE_STR) {
        n = ttext_count(a->s, a->n);

    } else if (tvalue_is_listy(a)) {
        n = a->list->n;

    } else {
        return template_fail(r, "a %s cannot be sliced", tvalue_type(a));
    }

    if (indices(r, bounds, n, &from, &to, &step) != 0
        || template_burn(r, a->kind == VALUE_STR ? a->n / 16 : 0) != 0)
    {
        return -1;
    }

    int64_t k = count(from, to, step);

    if (a->kind == VALUE_STR) {
        return slice_str(r, a, from, step, k, out);
    }

    if (tvalue_list(r, a->kind, (size_t) k, out) != 0) {
        return -1;
    }

    for (; k > 0; k--) {
        if (tvalue_push(r, out, &a->list->v[from]) != 0) {
            return -1;
        }

        from += k > 1 ? step : 0;
    }

    return 0;
}
