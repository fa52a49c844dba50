/*
 * eval.c - nodes to values: names, operators, calls.  Python's
 * arithmetic on 64-bit integers (one that does not fit is an error, not a big
 * number).  Must not know statements.
 */
#include "template/impl.h"

#include <math.h>
#include <stdio.h>
#include <string.h>


/* s with the characters that HTML minds written out, as "safe" + s does. */
static int
escape_html(struct render *r, const struct value *s, struct buf *b)
{
    size_t done = 0;

    for (size_t i = 0; i < s->n; i++) {
        const char *to = s->s[i] == '&' ? "&amp;" : s->s[i] == '<' ? "&lt;"
                         : s->s[i] == '>' ? "&gt;" : s->s[i] == '"' ? "&#34;"
                         : s->s[i] == '\'' ? "&#39;" : NULL;

        if (to == NULL) {
            continue;
        }

        if (template_put(r, b, s->s + done, i - done) != 0
            || template_puts(r, b, to) != 0)
        {
            return -1;
        }

        done = i + 1;
    }

    return template_put(r, b, s->s + done, s->n - done);
}


static int
add_strs(struct render *r, const struct value *a, const struct value *b,
         struct value *out)
{
    struct buf buf = { 0 };
    int        safe = a->safe || b->safe;
    int        rc;

    rc = safe && !a->safe ? escape_html(r, a, &buf)
                          : template_put(r, &buf, a->s, a->n);

    if (rc == 0) {
        rc = safe && !b->safe ? escape_html(r, b, &buf)
                              : template_put(r, &buf, b->s, b->n);
    }

    rc = template_take(r, &buf, rc, out);
    out->safe = (uint8_t) safe;

    return rc;
}


static int
add_lists(struct render *r, const struct value *a, const struct value *b,
          struct value *out)
{
    const struct value *from[2] = { a, b };

    if (tvalue_list(r, a->kind, a->list->n + b->list->n, out) != 0) {
        return -1;
    }

    for (int k = 0; k < 2; k++) {
        for (size_t i = 0; i < from[k]->list->n; i++) {
            if (tvalue_push(r, out, &from[k]->list->v[i]) != 0) {
                return -1;
            }
        }
    }

    return 0;
}


/* s * n, for a string or a list. */
static int
repeat(struct render *r, const struct value *s, int64_t n, struct value *out)
{
    struct buf b = { 0 };
    int        rc = 0;

    n = n < 0 ? 0 : n;

    if (s->kind == VALUE_STR) {
        for (int64_t i = 0; rc == 0 && i < n && s->n != 0; i++) {
            rc = template_put(r, &b, s->s, s->n);
        }

        return template_take(r, &b, rc, out);
    }

    if (tvalue_list(r, s->kind, 0, out) != 0) {
        return -1;
    }

    for (int64_t i = 0; i < n && s->list->n != 0; i++) {
        for (size_t k = 0; k < s->list->n; k++) {
            if (tvalue_push(r, out, &s->list->v[k]) != 0) {
                return -1;
            }
        }
    }

    return 0;
}


/* a ** n by squaring; -1 when it does not fit. */
static int
int_power(int64_t a, int64_t n, int64_t *out)
{
    int64_t p = 1;

    while (n > 0) {
        if ((n & 1) != 0 && __builtin_mul_overflow(p, a, &p)) {
            return -1;
        }

        n >>= 1;

        if (n > 0 && __builtin_mul_overflow(a, a, &a)) {
            return -1;
        }
    }

    *out = p;

    return 0;
}


static int
math_ints(struct render *r, int op, int64_t a, int64_t b, struct value *out)
{
    int64_t v = 0;
    int     bad = 0;

    switch (op) {
    case TOKEN_ADD: bad = __builtin_add_overflow(a, b, &v); break;
    case TOKEN_SUB: bad = __builtin_sub_overflow(a, b, &v); break;
    case TOKEN_MUL: bad = __builtin_mul_overflow(a, b, &v); break;
    case TOKEN_POW: bad = int_power(a, b, &v) != 0; break;
    default:
        if (b == -1) {
            bad = op == TOKEN_FLOORDIV && __builtin_sub_overflow(0, a, &v);
            break;
        }

        /* C rounds to zero, Python down. */
        v = op == TOKEN_MOD ? a % b : a / b;

        if (a % b != 0 && (a % b < 0) != (b < 0)) {
            v += op == TOKEN_MOD ? b : -1;
        }
    }

    *out = tvalue_int(v);

    return bad ? template_fail(r, "integer does not fit in 64 bits") : 0;
}


static double
float_mod(double a, double b)
{
    double m = fmod(a, b);

    if (m == 0) {
        return copysign(0.0, b);
    }

    return (m < 0) != (b < 0) ? m + b : m;
}


static int
math_floats(struct render *r, int op, double a, double b, struct value *out)
{
    double v;

    switch (op) {
    case TOKEN_ADD: v = a + b; break;
    case TOKEN_SUB: v = a - b; break;
    case TOKEN_MUL: v = a * b; break;
    case TOKEN_DIV: v = a / b; break;
    case TOKEN_MOD: v = float_mod(a, b); break;
    case TOKEN_FLOORDIV: v = floor((a - float_mod(a, b)) / b + 0.5); break;
    default:
        v = pow(a, b);

        if ((isinf(v) && isfinite(a) && isfinite(b)) || (isnan(v) && a < 0)) {
            return template_fail(r, "power out of range");
        }
    }

    *out = tvalue_float(v);

    return 0;
}


static double
as_double(const struct value *v)
{
    return v->kind == VALUE_FLOAT ? v->f : (double) v->i;
}


static int
math_numbers(struct render *r, int op, const struct value *a,
             const struct value *b, struct value *out)
{
    int divides = op == TOKEN_DIV || op == TOKEN_FLOORDIV || op == TOKEN_MOD;

    if (divides && !tvalue_true(b)) {
        return template_fail(r, "division by zero");
    }

    if (op == TOKEN_POW && !tvalue_true(a) && as_double(b) < 0) {
        return template_fail(r, "zero to a negative power");
    }

    if (a->kind == VALUE_FLOAT || b->kind == VALUE_FLOAT || op == TOKEN_DIV
        || (op == TOKEN_POW && b->i < 0))
    {
        return math_floats(r, op, as_double(a), as_double(b), out);
    }

    return math_ints(r, op, a->i, b->i, out);
}


static int
fail_undefined(struct render *r, const struct value *v)
{
    return template_fail(r, "'%.*s' is undefined",
                         (int) (v->n < 80 ? v->n : 80), v->s);
}


static const char *
op_text(int op)
{
    switch (op) {
    case TOKEN_ADD: return "+";
    case TOKEN_SUB: return "-";
    case TOKEN_MUL: return "*";
    case TOKEN_DIV: return "/";
    case TOKEN_FLOORDIV: return "//";
    case TOKEN_MOD: return "%";
    default: return "**";
    }
}


int
teval_math(struct render *r, int op, const struct value *a,
           const struct value *b, struct value *out)
{
    if (a->kind == VALUE_UNDEF || b->kind == VALUE_UNDEF) {
        return fail_undefined(r, a->kind == VALUE_UNDEF ? a : b);
    }

    if (tvalue_is_number(a) && tvalue_is_number(b)) {
        return math_numbers(r, op, a, b, out);
    }

    if (op == TOKEN_ADD && a->kind == b->kind) {
        if (a->kind == VALUE_STR) {
            return add_strs(r, a, b, out);
        }

        if (tvalue_is_listy(a)) {
            return add_lists(r, a, b, out);
        }
    }

    if (op == TOKEN_MUL) {
        const struct value *n = b->kind == VALUE_INT || b->kind == VALUE_BOOL
                                ? b : a;
        const struct value *s = n == b ? a : b;

        if ((n->kind == VALUE_INT || n->kind == VALUE_BOOL)
            && (s->kind == VALUE_STR || tvalue_is_listy(s)))
        {
            return repeat(r, s, n->i, out);
        }
    }

    return template_fail(r, "%s %s %s is not supported", tvalue_type(a),
                         op_text(op), tvalue_type(b));
}


/* needle in hay */
static int
contains(struct render *r, const struct value *needle,
         const struct value *hay, int *yes)
{
    struct value  items;
    struct value *found;

    if (hay->kind == VALUE_STR) {
        if (needle->kind != VALUE_STR) {
            return template_fail(r, "only a str can be in a str, got %s",
                                 tvalue_type(needle));
        }

        *yes = ttext_find((struct slice) { hay->s, hay->n },
                          (struct slice) { needle->s, needle->n }, 0)
               != SIZE_MAX;

        return template_burn(r, hay->n / 16);
    }

    if (hay->kind == VALUE_DICT) {
        if (tvalue_hashable(r, needle) != 0
            || tvalue_get(r, hay, needle, &found) != 0)
        {
            return -1;
        }

        *yes = found != NULL;

        return 0;
    }

    *yes = 0;

    if (tvalue_items(r, hay, &items) != 0) {
        return -1;
    }

    for (size_t i = 0; i < items.list->n && !*yes; i++) {
        if (tvalue_equal(r, &items.list->v[i], needle, yes) != 0) {
            return -1;
        }
    }

    return 0;
}


int
teval_compare(struct render *r, int op, const struct value *a,
              const struct value *b, int *yes)
{
    int order = 0;

    switch (op) {
    case TOKEN_EQ:
    case TOKEN_NE:
        if (tvalue_equal(r, a, b, yes) != 0) {
            return -1;
        }

        *yes ^= op == TOKEN_NE;
        return 0;

    case TOKEN_IN:
    case TOKEN_NOT_IN:
        if (contains(r, a, b, yes) != 0) {
            return -1;
        }

        *yes ^= op == TOKEN_NOT_IN;
        return 0;

    default:
        break;
    }

    if (a->kind == VALUE_UNDEF || b->kind == VALUE_UNDEF) {
        return fail_undefined(r, a->kind == VALUE_UNDEF ? a : b);
    }

    if (tvalue_order(r, a, b, &order) != 0) {
        return -1;
    }

    *yes = op == TOKEN_LT ? order == -1
           : op == TOKEN_LE ? order == -1 || order == 0
           : op == TOKEN_GT ? order == 1 : order == 1 || order == 0;

    return 0;
}


/* a < b < c: each once, and no further than the first that is false */
static int
eval_compare(struct render *r, const struct node *x, struct value *out)
{
    struct value a, b;
    int          yes = 1;

    if (teval_run(r, x->a, &a) != 0) {
        return -1;
    }

    for (const struct node *k = x->kids; k != NULL && yes; k = k->next) {
        if (teval_run(r, k->a, &b) != 0
            || teval_compare(r, k->op, &a, &b, &yes) != 0)
        {
            return -1;
        }

        a = b;
    }

    *out = tvalue_bool(yes);

    return 0;
}


static int
eval_list(struct render *r, const struct node *x, struct value *out)
{
    struct value v;

    if (tvalue_list(r, x->kind == NODE_LIST ? VALUE_LIST : VALUE_TUPLE, 0,
                    out) != 0)
    {
        return -1;
    }

    for (const struct node *k = x->kids; k != NULL; k = k->next) {
        if (teval_run(r, k, &v) != 0 || tvalue_push(r, out, &v) != 0) {
            return -1;
        }
    }

    return 0;
}


static int
eval_dict(struct render *r, const struct node *x, struct value *out)
{
    struct value key, v;

    if (tvalue_dict(r, VALUE_DICT, out) != 0) {
        return -1;
    }

    for (const struct node *k = x->kids; k != NULL; k = k->next) {
        if (teval_run(r, k->a, &key) != 0 || teval_run(r, k->b, &v) != 0
            || tvalue_put(r, out, &key, &v) != 0)
        {
            return -1;
        }
    }

    return 0;
}


static int
eval_concat(struct render *r, const struct node *x, struct value *out)
{
    struct buf   b = { 0 };
    struct value v;
    int          rc = 0;

    for (const struct node *k = x->kids; rc == 0 && k != NULL; k = k->next) {
        rc = teval_run(r, k, &v);
        rc = rc != 0 ? rc : tshow_text(r, &v, &b);
    }

    return template_take(r, &b, rc, out);
}


static int
eval_slice(struct render *r, const struct node *x, struct value *out)
{
    const struct node *kids[3] = { x->b, x->c, x->d };
    struct value       bounds[3];
    struct value       a;

    if (teval_run(r, x->a, &a) != 0) {
        return -1;
    }

    for (int i = 0; i < 3; i++) {
        bounds[i] = tvalue_none();

        if (kids[i] != NULL && teval_run(r, kids[i], &bounds[i]) != 0) {
            return -1;
        }
    }

    return tattr_slice(r, &a, bounds, out);
}


static int
eval_sign(struct render *r, const struct node *x, struct value *out)
{
    struct value zero = tvalue_int(0);
    struct value v;

    if (teval_run(r, x->a, &v) != 0) {
        return -1;
    }

    if (v.kind == VALUE_FLOAT) {
        *out = tvalue_float(x->kind == NODE_NEG ? -v.f : v.f);
        return 0;
    }

    return teval_math(r, x->kind == NODE_NEG ? TOKEN_SUB : TOKEN_ADD, &zero,
                      &v, out);
}


int
teval_args(struct render *r, const struct node *kids, struct args *args)
{
    size_t n = 0;

    *args = (struct args) { 0 };

    for (const struct node *k = kids; k != NULL; k = k->next) {
        n++;
    }

    /* One more of each: a call block passes "caller". */
    if ((args->v = template_alloc(r, (n + 1) * sizeof(*args->v))) == NULL
        || (args->kw = template_alloc(r, (n + 1) * sizeof(*args->kw)))
           == NULL)
    {
        return -1;
    }

    for (const struct node *k = kids; k != NULL; k = k->next) {
        if (k->kind != NODE_KWARG) {
            if (teval_run(r, k, &args->v[args->n++]) != 0) {
                return -1;
            }

            continue;
        }

        struct kwarg *kw = &args->kw[args->n_kw++];

        kw->name = k->name->text;

        if (teval_run(r, k->a, &kw->value) != 0) {
            return -1;
        }
    }

    return 0;
}


/* Which of "a,b,c" name is; -1: none. */
static int
param_index(const char *params, struct slice name)
{
    for (int i = 0; *params != '\0'; i++) {
        size_t n = strcspn(params, ",");

        if (n == name.n && memcmp(params, name.p, n) == 0) {
            return i;
        }

        params += n + (params[n] == ',');
    }

    return -1;
}


static size_t
n_params(const char *params)
{
    size_t n = *params != '\0';

    for (; *params != '\0'; params++) {
        n += *params == ',';
    }

    return n;
}


int
teval_call(struct render *r, const struct callee *callee,
           const struct value *self, const struct args *args,
           struct value *out)
{
    struct call c = { .callee = callee, .self = *self, .args = args };

    if (callee->params == NULL) {
        return callee->fn(r, &c, out);
    }

    if (args->n > n_params(callee->params)) {
        return template_fail(r, "%s: expected at most %zu arguments, got %zu",
                             callee->name, n_params(callee->params), args->n);
    }

    for (size_t i = 0; i < args->n; i++) {
        c.a[i] = args->v[i];
    }

    for (size_t i = 0; i < args->n_kw; i++) {
        int k = param_index(callee->params, args->kw[i].name);

        if (k < 0 || c.a[k].kind != VALUE_ABSENT) {
            return template_fail(r, "%s: unexpected argument \"%.*s\"",
                                 callee->name, (int) args->kw[i].name.n,
                                 args->kw[i].name.p);
        }

        c.a[k] = args->kw[i].value;
    }

    for (unsigned i = 0; i < callee->n_required; i++) {
        if (c.a[i].kind == VALUE_ABSENT) {
            return template_fail(r, "%s: expected at least %u arguments",
                                 callee->name, callee->n_required);
        }
    }

    return callee->fn(r, &c, out);
}


int
teval_apply(struct render *r, const struct value *f, const struct args *args,
            struct value *out)
{
    struct value none = tvalue_none();

    switch ((enum value_kind) f->kind) {
    case VALUE_MACRO:
        return texec_macro(r, f->macro, args, out);

    case VALUE_METHOD:
        return teval_call(r, f->method->callee, &f->method->self, args, out);

    case VALUE_FUNC:
        return teval_call(r, f->func, &none, args, out);

    case VALUE_UNDEF:
        return fail_undefined(r, f);

    default:
        return template_fail(r, "a %s cannot be called", tvalue_type(f));
    }
}


static int
eval_call(struct render *r, const struct node *x, struct value *out)
{
    struct value f;
    struct args  args;

    return teval_run(r, x->a, &f) != 0 || teval_args(r, x->kids, &args) != 0
           || teval_apply(r, &f, &args, out) != 0 ? -1 : 0;
}


static int
eval_piped(struct render *r, const struct node *x, struct value *out)
{
    struct value self;
    struct args  args;

    if (teval_run(r, x->a, &self) != 0 || teval_args(r, x->kids, &args) != 0
        || teval_call(r, x->callee, &self, &args, out) != 0)
    {
        return -1;
    }

    if (x->kind == NODE_TEST && x->op) {
        *out = tvalue_bool(!tvalue_true(out));
    }

    return 0;
}


/* Those that evaluate only some of their operands. */
static int
eval_choice(struct render *r, const struct node *x, struct value *out)
{
    static const struct slice none = { "the inline if-expression", 24 };

    if (teval_run(r, x->a, out) != 0) {
        return -1;
    }

    int yes = tvalue_true(out);

    switch (x->kind) {
    case NODE_NOT:
        *out = tvalue_bool(!yes);
        return 0;

    case NODE_AND:
        return yes ? teval_run(r, x->b, out) : 0;

    case NODE_OR:
        return yes ? 0 : teval_run(r, x->b, out);

    default:
        if (!yes && x->c == NULL) {
            *out = tvalue_undef(none);
            return 0;
        }

        return teval_run(r, yes ? x->b : x->c, out);
    }
}


static int
eval(struct render *r, const struct node *x, struct value *out)
{
    struct value a, b;

    switch ((enum node_kind) x->kind) {
    case NODE_CONST:
        *out = x->value;
        return 0;

    case NODE_NAME:
        return texec_lookup(r, x->name, out);

    case NODE_LIST:
    case NODE_TUPLE:
        return eval_list(r, x, out);

    case NODE_DICT:
        return eval_dict(r, x, out);

    case NODE_ATTR:
        return teval_run(r, x->a, &a) != 0
               || tattr_dot(r, &a, x->name->text, out) != 0 ? -1 : 0;

    case NODE_ITEM:
        return teval_run(r, x->a, &a) != 0 || teval_run(r, x->b, &b) != 0
               || tattr_item(r, &a, &b, out) != 0 ? -1 : 0;

    case NODE_SLICE:
        return eval_slice(r, x, out);

    case NODE_CALL:
        return eval_call(r, x, out);

    case NODE_FILTER:
    case NODE_TEST:
        return eval_piped(r, x, out);

    case NODE_NOT:
    case NODE_AND:
    case NODE_OR:
    case NODE_COND:
        return eval_choice(r, x, out);

    case NODE_NEG:
    case NODE_POS:
        return eval_sign(r, x, out);

    case NODE_MATH:
        return teval_run(r, x->a, &a) != 0 || teval_run(r, x->b, &b) != 0
               || teval_math(r, x->op, &a, &b, out) != 0 ? -1 : 0;

    case NODE_CONCAT:
        return eval_concat(r, x, out);

    case NODE_COMPARE:
        return eval_compare(r, x, out);

    case NODE_CAPTURED:
        *out = r->captured;
        return 0;

    default:
        return template_fail(r, "not an expression");
    }
}


/* The innermost node that fails says where. */
int
teval_run(struct render *r, const struct node *x, struct value *out)
{
    int rc = -1;

    if (r->depth >= TEMPLATE_DEPTH_MAX) {
        template_fail(r, "nested deeper than %d", TEMPLATE_DEPTH_MAX);

    } else if (template_burn(r, 1) == 0) {
        r->depth++;
        rc = eval(r, x, out);
        r->depth--;
    }

    if (rc != 0 && !r->located) {
        r->located = 1;
        err_prefix(r->err, "line %u, column %u", x->line, x->column);
    }

    return rc;
}
