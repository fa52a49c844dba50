/*
 * seq.c - the filters that walk a sequence: x|join, x|map, x|sort.
 * In: the piped value and the arguments.  Those that are generators in Jinja2
 * give a VALUE_GEN.  Must not know nodes.
 */
#include "template/impl.h"

#include <stdlib.h>
#include <string.h>


/*
 * The attribute of an item that attribute="a.b.0" names; absent: the item
 * itself.  A missing one is `fallback`, where there is one.
 */
static int
pick(struct render *r, const struct value *item, const struct value *path,
     const struct value *fallback, struct value *out)
{
    *out = *item;

    if (path->kind == VALUE_ABSENT || path->kind == VALUE_NONE) {
        return 0;
    }

    if (path->kind != VALUE_STR) {
        return tattr_item(r, item, path, out);
    }

    for (size_t i = 0; i <= path->n; ) {
        const char *dot = memchr(path->s + i, '.', path->n - i);
        size_t      end = dot != NULL ? (size_t) (dot - path->s) : path->n;
        struct value key = tvalue_str(path->s + i, end - i);
        struct value from = *out;
        size_t       k = i;

        while (k < end && path->s[k] >= '0' && path->s[k] <= '9') {
            k++;
        }

        if (k == end && end > i && end - i < 10) {
            key = tvalue_int((int) strtol(path->s + i, NULL, 10));
        }

        if (tattr_item(r, &from, &key, out) != 0) {
            return -1;
        }

        if (fallback != NULL && out->kind == VALUE_UNDEF) {
            *out = *fallback;
        }

        i = end + 1;
    }

    return 0;
}


/* What sort, unique and dictsort compare: strings without their case. */
static int
fold(struct render *r, struct value *v, int case_sensitive)
{
    struct value s = *v;

    return v->kind != VALUE_STR || case_sensitive
           ? 0 : ttext_case(r, &s, TEXT_LOWER, v);
}


static int
s_list(struct render *r, struct call *c, struct value *out)
{
    return tvalue_items(r, &c->self, out);
}


static int
end_of(struct render *r, struct call *c, int last, struct value *out)
{
    static const struct slice none = { "an item of nothing", 18 };
    struct value              items;

    if (last && c->self.kind == VALUE_GEN) {
        return template_fail(r, "a generator has no last item");
    }

    if (tvalue_items(r, &c->self, &items) != 0) {
        return -1;
    }

    size_t n = items.list->n;

    *out = n == 0 ? tvalue_undef(none) : items.list->v[last ? n - 1 : 0];

    return 0;
}


static int
s_first(struct render *r, struct call *c, struct value *out)
{
    return end_of(r, c, 0, out);
}


static int
s_last(struct render *r, struct call *c, struct value *out)
{
    return end_of(r, c, 1, out);
}


static int
s_items(struct render *r, struct call *c, struct value *out)
{
    static const struct slice name = { "items", 5 };

    if (c->self.kind == VALUE_UNDEF) {
        return tvalue_list(r, VALUE_GEN, 0, out);
    }

    if (c->self.kind != VALUE_DICT) {
        return template_fail(r, "items: expected a dict, got %s",
                             tvalue_type(&c->self));
    }

    if (tmethod_find(&c->self, name)->fn(r, c, out) != 0) {
        return -1;
    }

    out->kind = VALUE_GEN;

    return 0;
}


static int
s_join(struct render *r, struct call *c, struct value *out)
{
    struct value items, v;
    struct buf   b = { 0 };
    int          rc = tvalue_items(r, &c->self, &items);

    for (size_t i = 0; rc == 0 && i < items.list->n; i++) {
        if (i != 0 && c->a[0].kind != VALUE_ABSENT) {
            rc = tshow_text(r, &c->a[0], &b);
        }

        rc = rc != 0 ? rc : pick(r, &items.list->v[i], &c->a[1], NULL, &v);
        rc = rc != 0 ? rc : tshow_text(r, &v, &b);
    }

    return template_take(r, &b, rc, out);
}


static int
s_reverse(struct render *r, struct call *c, struct value *out)
{
    const struct value whole[3] = {
        tvalue_none(), tvalue_none(), tvalue_int(-1)
    };
    struct value items;

    if (c->self.kind == VALUE_STR) {
        return tattr_slice(r, &c->self, whole, out);
    }

    if (tvalue_items(r, &c->self, &items) != 0
        || tattr_slice(r, &items, whole, out) != 0)
    {
        return -1;
    }

    out->kind = VALUE_GEN;

    return 0;
}


/* Something to be sorted, with what it is sorted by. */
struct entry {
    struct value item;
    struct value key;           /* a list: one for each attribute */
};


/* a comes after b; *rc: they cannot be compared */
static int
is_after(struct render *r, const struct entry *a, const struct entry *b,
         int reverse, int *rc)
{
    int order = 0;

    *rc = tvalue_order(r, reverse ? &b->key : &a->key,
                       reverse ? &a->key : &b->key, &order);

    return *rc == 0 && order == 1;
}


/* Merge sort: stable, and an error ends it.  tmp has room for n. */
static int
sort_entries(struct render *r, struct entry *v, struct entry *tmp, size_t n,
             int reverse)
{
    for (size_t width = 1; width < n; width *= 2) {
        for (size_t from = 0; from < n; from += 2 * width) {
            size_t mid = from + width < n ? from + width : n;
            size_t end = from + 2 * width < n ? from + 2 * width : n;
            size_t i = from;
            size_t k = mid;

            for (size_t to = from; to < end; to++) {
                int rc = 0;
                int right = i == mid
                            || (k < end
                                && is_after(r, &v[i], &v[k], reverse, &rc));

                if (rc != 0) {
                    return -1;
                }

                tmp[to] = right ? v[k++] : v[i++];
            }
        }

        memcpy(v, tmp, n * sizeof(*v));
    }

    return 0;
}


/* The keys of one entry: "a,b" sorts by a, then by b. */
static int
sort_key(struct render *r, const struct value *item, const struct value *path,
         int case_sensitive, struct value *out)
{
    struct value v;
    size_t       i = 0;

    if (tvalue_list(r, VALUE_LIST, 1, out) != 0) {
        return -1;
    }

    do {
        struct value part = *path;

        if (path->kind == VALUE_STR) {
            const char *comma = memchr(path->s + i, ',', path->n - i);
            size_t      end = comma != NULL ? (size_t) (comma - path->s)
                                            : path->n;

            part = tvalue_str(path->s + i, end - i);
            i = end + 1;
        }

        if (pick(r, item, &part, NULL, &v) != 0
            || fold(r, &v, case_sensitive) != 0
            || tvalue_push(r, out, &v) != 0)
        {
            return -1;
        }

    } while (path->kind == VALUE_STR && i <= path->n);

    return 0;
}


/* items sorted by path, as a list. */
static int
sorted(struct render *r, const struct value *items, const struct value *path,
       int case_sensitive, int reverse, struct value *out)
{
    size_t        n = items->list->n;
    struct entry *v = template_alloc(r, (2 * n + 1) * sizeof(*v));

    if (v == NULL) {
        return -1;
    }

    for (size_t i = 0; i < n; i++) {
        v[i].item = items->list->v[i];

        if (sort_key(r, &v[i].item, path, case_sensitive, &v[i].key) != 0) {
            return -1;
        }
    }

    if (sort_entries(r, v, v + n, n, reverse) != 0
        || tvalue_list(r, VALUE_LIST, n, out) != 0)
    {
        return -1;
    }

    for (size_t i = 0; i < n; i++) {
        if (tvalue_push(r, out, &v[i].item) != 0) {
            return -1;
        }
    }

    return 0;
}


static int
s_sort(struct render *r, struct call *c, struct value *out)
{
    struct value items;

    return tvalue_items(r, &c->self, &items) != 0
           || sorted(r, &items, &c->a[2], tvalue_true(&c->a[1]),
                     tvalue_true(&c->a[0]), out) != 0 ? -1 : 0;
}


static int
s_dictsort(struct render *r, struct call *c, struct value *out)
{
    int          by_value = tvalue_is_str(&c->a[1], "value");
    struct value path = tvalue_int(by_value);
    struct call  pairs = *c;
    struct value items;

    if (!by_value && c->a[1].kind != VALUE_ABSENT
        && !tvalue_is_str(&c->a[1], "key"))
    {
        return template_fail(r, "dictsort: sorts by \"key\" or \"value\"");
    }

    if (c->self.kind != VALUE_DICT) {
        return template_fail(r, "dictsort: expected a dict, got %s",
                             tvalue_type(&c->self));
    }

    return s_items(r, &pairs, &items) != 0
           || sorted(r, &items, &path, tvalue_true(&c->a[0]),
                     tvalue_true(&c->a[2]), out) != 0 ? -1 : 0;
}


static int
s_unique(struct render *r, struct call *c, struct value *out)
{
    struct value  items, seen, key;
    struct value  none = tvalue_none();
    struct value *old;

    if (tvalue_items(r, &c->self, &items) != 0
        || tvalue_list(r, VALUE_GEN, 0, out) != 0
        || tvalue_dict(r, VALUE_DICT, &seen) != 0)
    {
        return -1;
    }

    for (size_t i = 0; i < items.list->n; i++) {
        const struct value *v = &items.list->v[i];

        if (pick(r, v, &c->a[1], NULL, &key) != 0
            || fold(r, &key, tvalue_true(&c->a[0])) != 0
            || tvalue_hashable(r, &key) != 0
            || tvalue_get(r, &seen, &key, &old) != 0)
        {
            return -1;
        }

        if (old == NULL
            && (tvalue_put(r, &seen, &key, &none) != 0
                || tvalue_push(r, out, v) != 0))
        {
            return -1;
        }
    }

    return 0;
}


/* The name in argument i of a filter that applies others. */
static int
named(struct render *r, const struct call *c, size_t i, int test,
      const struct callee **callee)
{
    const struct value *v = &c->args->v[i];
    struct slice        name = { v->s, v->n };

    if (v->kind != VALUE_STR
        || (*callee = test ? ttest_find(name) : tfilter_find(name)) == NULL)
    {
        return template_fail(r, "%s: no such %s", c->callee->name,
                             test ? "test" : "filter");
    }

    return 0;
}


/* The arguments after the first n. */
static struct args
args_after(const struct args *args, size_t n)
{
    struct args rest = *args;

    rest.v += n;
    rest.n -= n;

    return rest;
}


/* map(attribute="a", default=d), or map("filter", ...) */
static int
s_map(struct render *r, struct call *c, struct value *out)
{
    const struct callee *f = NULL;
    const struct value  *path = NULL;
    const struct value  *fallback = NULL;
    struct args          rest = { 0 };
    struct value         items, v;

    if (!tvalue_true(&c->self)) {
        return tvalue_list(r, VALUE_GEN, 0, out);
    }

    if (c->args->n > 0) {
        if (named(r, c, 0, 0, &f) != 0) {
            return -1;
        }

        rest = args_after(c->args, 1);
    }

    for (size_t i = 0; f == NULL && i < c->args->n_kw; i++) {
        const struct kwarg *kw = &c->args->kw[i];

        if (kw->name.n == 9 && memcmp(kw->name.p, "attribute", 9) == 0) {
            path = &kw->value;

        } else if (kw->name.n == 7 && memcmp(kw->name.p, "default", 7) == 0) {
            fallback = kw->value.kind == VALUE_NONE ? NULL : &kw->value;

        } else {
            return template_fail(r, "map: unexpected argument \"%.*s\"",
                                 (int) kw->name.n, kw->name.p);
        }
    }

    if (f == NULL && path == NULL) {
        return template_fail(r, "map: expected a filter or an attribute");
    }

    if (tvalue_items(r, &c->self, &items) != 0
        || tvalue_list(r, VALUE_GEN, items.list->n, out) != 0)
    {
        return -1;
    }

    for (size_t i = 0; i < items.list->n; i++) {
        int rc = f != NULL
                 ? teval_call(r, f, &items.list->v[i], &rest, &v)
                 : pick(r, &items.list->v[i], path, fallback, &v);

        if (rc != 0 || tvalue_push(r, out, &v) != 0) {
            return -1;
        }
    }

    return 0;
}


/* Keeps the items for which the test (by default their truth) says `keep`;
 * by_attr: the first argument names what of them is tested. */
static int
choose(struct render *r, struct call *c, int by_attr, int keep,
       struct value *out)
{
    size_t               n = (size_t) by_attr;
    const struct callee *test = NULL;
    struct args          rest = { 0 };
    struct value         path = { .kind = VALUE_ABSENT };
    struct value         items, v;

    if (!tvalue_true(&c->self)) {
        return tvalue_list(r, VALUE_GEN, 0, out);
    }

    if (c->args->n < n) {
        return template_fail(r, "%s: expected an attribute", c->callee->name);
    }

    if (by_attr) {
        path = c->args->v[0];
    }

    if (c->args->n > n) {
        if (named(r, c, n, 1, &test) != 0) {
            return -1;
        }

        rest = args_after(c->args, n + 1);
    }

    if (tvalue_items(r, &c->self, &items) != 0
        || tvalue_list(r, VALUE_GEN, 0, out) != 0)
    {
        return -1;
    }

    for (size_t i = 0; i < items.list->n; i++) {
        struct value *one = &items.list->v[i];
        struct value  picked;

        if (pick(r, one, &path, NULL, &picked) != 0) {
            return -1;
        }

        v = picked;

        if (test != NULL && teval_call(r, test, &picked, &rest, &v) != 0) {
            return -1;
        }

        if (tvalue_true(&v) == keep && tvalue_push(r, out, one) != 0) {
            return -1;
        }
    }

    return 0;
}


static int
s_select(struct render *r, struct call *c, struct value *out)
{
    return choose(r, c, 0, 1, out);
}


static int
s_reject(struct render *r, struct call *c, struct value *out)
{
    return choose(r, c, 0, 0, out);
}


static int
s_selectattr(struct render *r, struct call *c, struct value *out)
{
    return choose(r, c, 1, 1, out);
}


static int
s_rejectattr(struct render *r, struct call *c, struct value *out)
{
    return choose(r, c, 1, 0, out);
}


static const struct callee filters[] = {
    { "list", s_list, "", 0 },
    { "first", s_first, "", 0 },
    { "last", s_last, "", 0 },
    { "items", s_items, "", 0 },
    { "join", s_join, "d,attribute", 0 },
    { "reverse", s_reverse, "", 0 },
    { "sort", s_sort, "reverse,case_sensitive,attribute", 0 },
    { "dictsort", s_dictsort, "case_sensitive,by,reverse", 0 },
    { "unique", s_unique, "case_sensitive,attribute", 0 },
    { "map", s_map, NULL, 0 },
    { "select", s_select, NULL, 0 },
    { "reject", s_reject, NULL, 0 },
    { "selectattr", s_selectattr, NULL, 0 },
    { "rejectattr", s_rejectattr, NULL, 0 },
};


const struct callee *
tseq_find(struct slice name)
{
    return tcallee_find(filters, BASE_COUNT(filters), name);
}
