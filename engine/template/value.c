/*
 * value.c - values: made, compared, walked.  They behave as Python's:
 * True is 1, lists and dicts are shared and grow, dicts keep their order.
 * Everything is allocated from the rendering's arena and paid with its fuel.
 * Must not know nodes.
 */
#include "template/impl.h"

#include <string.h>


struct value
tvalue_undef(struct slice name)
{
    return (struct value) { .kind = VALUE_UNDEF, .s = name.p, .n = name.n };
}


struct value
tvalue_none(void)
{
    return (struct value) { .kind = VALUE_NONE };
}


struct value
tvalue_bool(int b)
{
    return (struct value) { .kind = VALUE_BOOL, .i = b != 0 };
}


struct value
tvalue_int(int64_t i)
{
    return (struct value) { .kind = VALUE_INT, .i = i };
}


struct value
tvalue_float(double f)
{
    return (struct value) { .kind = VALUE_FLOAT, .f = f };
}


struct value
tvalue_str(const char *s, size_t n)
{
    return (struct value) { .kind = VALUE_STR, .s = s, .n = n };
}


struct value
tvalue_cstr(const char *s)
{
    return tvalue_str(s, strlen(s));
}


int
tvalue_list(struct render *r, enum value_kind kind, size_t cap,
            struct value *out)
{
    struct list *l = template_alloc(r, sizeof(*l));
    size_t       bytes;

    if (l == NULL || size_mul(cap, sizeof(*l->v), &bytes) != 0
        || (cap != 0 && (l->v = template_alloc(r, bytes)) == NULL))
    {
        return -1;
    }

    l->cap = cap;
    *out = (struct value) { .kind = (uint8_t) kind, .list = l };

    return 0;
}


/* Room for one more of n things of `each` bytes; the old ones are copied, and
 * left to the arena.  NULL for -1. */
static void *
grow(struct render *r, const void *old, size_t n, size_t *cap, size_t each)
{
    size_t want = *cap < 4 ? 4 : *cap * 2;
    size_t bytes;
    void  *p;

    if (size_mul(want, each, &bytes) != 0
        || (p = template_alloc(r, bytes)) == NULL)
    {
        return NULL;
    }

    if (n != 0) {
        memcpy(p, old, n * each);
    }

    *cap = want;

    return p;
}


int
tvalue_push(struct render *r, struct value *list, const struct value *v)
{
    struct list *l = list->list;

    if (l->n == l->cap) {
        struct value *p = grow(r, l->v, l->n, &l->cap, sizeof(*p));

        if (p == NULL) {
            return -1;
        }

        l->v = p;
    }

    l->v[l->n++] = *v;

    return 0;
}


int
tvalue_dict(struct render *r, enum value_kind kind, struct value *out)
{
    struct dict *d = template_alloc(r, sizeof(*d));

    if (d == NULL) {
        return -1;
    }

    *out = (struct value) { .kind = (uint8_t) kind, .dict = d };

    return 0;
}


static int
add_pair(struct render *r, struct dict *d, const struct value *key,
         const struct value *v)
{
    if (d->n == d->cap) {
        struct pair *p = grow(r, d->p, d->n, &d->cap, sizeof(*p));

        if (p == NULL) {
            return -1;
        }

        d->p = p;
    }

    d->p[d->n++] = (struct pair) { *key, *v };

    return 0;
}


int
tvalue_put(struct render *r, struct value *dict, const struct value *key,
           const struct value *v)
{
    struct value *old;

    if (tvalue_hashable(r, key) != 0 || tvalue_get(r, dict, key, &old) != 0) {
        return -1;
    }

    if (old != NULL) {
        *old = *v;
        return 0;
    }

    return add_pair(r, dict->dict, key, v);
}


/* Dicts of messages and schemas have a few members: looked through in order,
 * and paid for. */
int
tvalue_get(struct render *r, const struct value *dict,
           const struct value *key, struct value **out)
{
    struct dict *d = dict->dict;

    *out = NULL;

    for (size_t i = 0; i < d->n; i++) {
        const struct value *k = &d->p[i].key;
        int                 equal = 0;

        if (k->kind == VALUE_STR && key->kind == VALUE_STR) {
            equal = k->n == key->n && memcmp(k->s, key->s, k->n) == 0;

        } else if (tvalue_equal(r, k, key, &equal) != 0) {
            return -1;
        }

        if (equal) {
            *out = &d->p[i].value;
            return template_burn(r, i / 8);
        }
    }

    return template_burn(r, d->n / 8);
}


static int
from_json(struct render *r, const json_t *j, unsigned nest, struct value *out)
{
    struct value v;

    if (nest > TEMPLATE_NEST_MAX) {
        return template_fail(r, "data nested deeper than %d",
                             TEMPLATE_NEST_MAX);
    }

    switch (json_typeof(j)) {
    case JSON_STRING:
        *out = tvalue_str(json_string_value(j), json_string_length(j));
        return template_burn(r, 1);

    case JSON_INTEGER:
        *out = tvalue_int(json_integer_value(j));
        return template_burn(r, 1);

    case JSON_REAL:
        *out = tvalue_float(json_real_value(j));
        return template_burn(r, 1);

    case JSON_TRUE:
    case JSON_FALSE:
        *out = tvalue_bool(json_is_true(j));
        return template_burn(r, 1);

    case JSON_ARRAY:
        if (tvalue_list(r, VALUE_LIST, json_array_size(j), out) != 0) {
            return -1;
        }

        for (size_t i = 0; i < json_array_size(j); i++) {
            if (from_json(r, json_array_get(j, i), nest + 1, &v) != 0
                || tvalue_push(r, out, &v) != 0)
            {
                return -1;
            }
        }

        return 0;

    case JSON_OBJECT: {
        const char *key;
        json_t     *member;

        if (tvalue_dict(r, VALUE_DICT, out) != 0) {
            return -1;
        }

        /* jansson's macro wants an object that is not const; it reads. */
        json_object_foreach((json_t *) (uintptr_t) j, key, member) {
            struct value k = tvalue_cstr(key);

            if (from_json(r, member, nest + 1, &v) != 0
                || add_pair(r, out->dict, &k, &v) != 0)
            {
                return -1;
            }
        }

        return 0;
    }

    case JSON_NULL:
        break;
    }

    *out = tvalue_none();

    return template_burn(r, 1);
}


/* Strings stay where they are: j must outlive the value. */
int
tvalue_json(struct render *r, const json_t *j, struct value *out)
{
    return from_json(r, j, 0, out);
}


int
tvalue_is_str(const struct value *v, const char *s)
{
    return v->kind == VALUE_STR && v->n == strlen(s)
           && memcmp(v->s, s, v->n) == 0;
}


int
tvalue_is_number(const struct value *v)
{
    return v->kind == VALUE_BOOL || v->kind == VALUE_INT
           || v->kind == VALUE_FLOAT;
}


int
tvalue_is_listy(const struct value *v)
{
    return v->kind == VALUE_LIST || v->kind == VALUE_TUPLE;
}


int
tvalue_true(const struct value *v)
{
    switch ((enum value_kind) v->kind) {
    case VALUE_ABSENT:
    case VALUE_UNDEF:
    case VALUE_NONE:
        return 0;

    case VALUE_BOOL:
    case VALUE_INT:
        return v->i != 0;

    case VALUE_FLOAT:
        return v->f < 0 || v->f > 0 || v->f != v->f;

    case VALUE_STR:
        return v->n != 0;

    case VALUE_LIST:
    case VALUE_TUPLE:
        return v->list->n != 0;

    case VALUE_DICT:
        return v->dict->n != 0;

    case VALUE_LOOP:
        return v->loop->n != 0;

    case VALUE_GEN:
    case VALUE_SPACE:
    case VALUE_MACRO:
    case VALUE_METHOD:
    case VALUE_FUNC:
        break;
    }

    return 1;
}


/* x87's 64-bit mantissa holds an int64 and a double exactly. */
static long double
number(const struct value *v)
{
    return v->kind == VALUE_FLOAT ? (long double) v->f : (long double) v->i;
}


static int
equal_dicts(struct render *r, const struct value *a, const struct value *b,
            int *equal)
{
    *equal = a->dict->n == b->dict->n;

    for (size_t i = 0; i < a->dict->n && *equal; i++) {
        struct value *other;

        if (tvalue_get(r, b, &a->dict->p[i].key, &other) != 0) {
            return -1;
        }

        *equal = other != NULL;

        if (other != NULL
            && tvalue_equal(r, &a->dict->p[i].value, other, equal) != 0)
        {
            return -1;
        }
    }

    return 0;
}


static int
equal_lists(struct render *r, const struct value *a, const struct value *b,
            int *equal)
{
    *equal = a->list->n == b->list->n;

    for (size_t i = 0; i < a->list->n && *equal; i++) {
        if (tvalue_equal(r, &a->list->v[i], &b->list->v[i], equal) != 0) {
            return -1;
        }
    }

    return 0;
}


/* Of two values of one kind that is not a number's. */
static int
equal_same(struct render *r, const struct value *a, const struct value *b,
           int *equal)
{
    switch ((enum value_kind) a->kind) {
    case VALUE_STR:
        *equal = a->n == b->n && (a->n == 0 || memcmp(a->s, b->s, a->n) == 0);
        return template_burn(r, *equal ? a->n / 16 : 0);

    case VALUE_LIST:
    case VALUE_TUPLE:
        return equal_lists(r, a, b, equal);

    case VALUE_DICT:
        return equal_dicts(r, a, b, equal);

    case VALUE_ABSENT:
    case VALUE_UNDEF:
    case VALUE_NONE:
        *equal = 1;
        return 0;

    case VALUE_METHOD:
        *equal = a->method->callee == b->method->callee;
        return 0;

    default:
        *equal = a->list == b->list;    /* the same one: any pointer does */
        return 0;
    }
}


/* a == b.  The depth stops lists that were put into themselves. */
int
tvalue_equal(struct render *r, const struct value *a, const struct value *b,
             int *equal)
{
    if (tvalue_is_number(a) && tvalue_is_number(b)) {
        *equal = number(a) == number(b);
        return template_burn(r, 1);
    }

    if (a->kind != b->kind) {
        *equal = 0;
        return template_burn(r, 1);
    }

    if (r->depth >= TEMPLATE_DEPTH_MAX) {
        return template_fail(r, "comparison nested too deep");
    }

    r->depth++;

    int rc = equal_same(r, a, b, equal);

    r->depth--;

    return rc != 0 ? rc : template_burn(r, 1);
}


static int
order_lists(struct render *r, const struct value *a, const struct value *b,
            int *order)
{
    size_t n = a->list->n < b->list->n ? a->list->n : b->list->n;

    for (size_t i = 0; i < n; i++) {
        int equal;

        if (tvalue_equal(r, &a->list->v[i], &b->list->v[i], &equal) != 0) {
            return -1;
        }

        if (!equal) {
            return tvalue_order(r, &a->list->v[i], &b->list->v[i], order);
        }
    }

    *order = (a->list->n > n) - (b->list->n > n);

    return 0;
}


/* *order < 0, 0, > 0; 2 for a NaN, which is in no order. */
int
tvalue_order(struct render *r, const struct value *a, const struct value *b,
             int *order)
{
    if (tvalue_is_number(a) && tvalue_is_number(b)) {
        long double x = number(a);
        long double y = number(b);

        *order = x < y ? -1 : x > y ? 1 : x == y ? 0 : 2;

        return template_burn(r, 1);
    }

    if (a->kind == VALUE_STR && b->kind == VALUE_STR) {
        size_t n = a->n < b->n ? a->n : b->n;
        int    c = n != 0 ? memcmp(a->s, b->s, n) : 0;

        /* UTF-8 is in the order of its code points. */
        *order = c != 0 ? (c > 0) - (c < 0) : (a->n > n) - (b->n > n);

        return template_burn(r, 1 + n / 16);
    }

    if (a->kind == b->kind && tvalue_is_listy(a)) {
        if (r->depth >= TEMPLATE_DEPTH_MAX) {
            return template_fail(r, "comparison nested too deep");
        }

        r->depth++;

        int rc = order_lists(r, a, b, order);

        r->depth--;

        return rc;
    }

    return template_fail(r, "cannot order %s and %s", tvalue_type(a),
                         tvalue_type(b));
}


int
tvalue_hashable(struct render *r, const struct value *v)
{
    if (v->kind == VALUE_LIST || v->kind == VALUE_DICT) {
        return template_fail(r, "a %s cannot be a key", tvalue_type(v));
    }

    if (v->kind == VALUE_TUPLE) {
        for (size_t i = 0; i < v->list->n; i++) {
            if (tvalue_hashable(r, &v->list->v[i]) != 0) {
                return -1;
            }
        }
    }

    return 0;
}


const char *
tvalue_type(const struct value *v)
{
    static const char *const names[] = {
        "nothing", "undefined", "none", "bool", "int", "float", "str", "list",
        "tuple", "generator", "dict", "namespace", "loop", "macro", "method",
        "function"
    };

    return names[v->kind];
}


static int
items_of_str(struct render *r, const struct value *v, struct value *out)
{
    if (tvalue_list(r, VALUE_LIST, ttext_count(v->s, v->n), out) != 0) {
        return -1;
    }

    for (size_t i = 0; i < v->n; ) {
        size_t       n = ttext_step(v->s, v->n, i);
        struct value c = tvalue_str(v->s + i, n);

        c.safe = v->safe;

        if (tvalue_push(r, out, &c) != 0) {
            return -1;
        }

        i += n;
    }

    return 0;
}


int
tvalue_items(struct render *r, const struct value *v, struct value *out)
{
    const struct value *from = NULL;
    size_t              n = 0;

    switch ((enum value_kind) v->kind) {
    case VALUE_STR:
        return items_of_str(r, v, out);

    case VALUE_UNDEF:
        break;

    case VALUE_LIST:
    case VALUE_TUPLE:
    case VALUE_GEN:
        from = v->list->v;
        n = v->list->n;
        break;

    case VALUE_LOOP:
        from = v->loop->v;
        n = v->loop->n;
        break;

    case VALUE_DICT:
        if (tvalue_list(r, VALUE_LIST, v->dict->n, out) != 0) {
            return -1;
        }

        for (size_t i = 0; i < v->dict->n; i++) {
            if (tvalue_push(r, out, &v->dict->p[i].key) != 0) {
                return -1;
            }
        }

        return 0;

    default:
        return template_fail(r, "a %s cannot be walked", tvalue_type(v));
    }

    if (tvalue_list(r, VALUE_LIST, n, out) != 0) {
        return -1;
    }

    if (n != 0) {
        memcpy(out->list->v, from, n * sizeof(*from));
        out->list->n = n;
    }

    if (v->kind == VALUE_GEN) {
        v->list->n = 0;
    }

    return 0;
}
