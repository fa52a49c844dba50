/*
 * exec.c - statements to output; scopes and macros.  As in Jinja2 a
 * loop's body, a macro and a captured block have scopes of their own (a set
 * inside is not seen outside), an if has not.  Must not know operators.
 */
#include "template/impl.h"

#include <string.h>

static int exec(struct render *r, const struct node *x);


static struct binding *
find_binding(struct scope *s, const struct name *name)
{
    for (struct binding *b = s->first; b != NULL; b = b->next) {
        if (b->name == name) {
            return b;
        }
    }

    return NULL;
}


static int
bind(struct render *r, struct scope *s, const struct name *name,
     const struct value *v)
{
    struct binding *b = find_binding(s, name);

    if (b == NULL) {
        if ((b = template_alloc(r, sizeof(*b))) == NULL) {
            return -1;
        }

        b->name = name;
        b->next = s->first;
        s->first = b;
    }

    b->value = *v;

    return 0;
}


/* Innermost scope first, then the vars, then what the environment brings.  A
 * var is converted when it is first used. */
int
texec_lookup(struct render *r, const struct name *name, struct value *out)
{
    for (struct scope *s = r->scope; s != NULL; s = s->up) {
        struct binding *b = find_binding(s, name);

        if (b != NULL) {
            *out = b->value;
            return 0;
        }
    }

    const json_t        *j = json_object_get(r->vars, name->text.p);
    const struct callee *f;

    if (j != NULL && strlen(name->text.p) == name->text.n) {
        if (tvalue_json(r, j, out) != 0) {
            return -1;
        }

    } else if ((f = tfunc_find(name->text)) != NULL) {
        *out = (struct value) { .kind = VALUE_FUNC, .func = f };

    } else {
        *out = tvalue_undef(name->text);
    }

    return bind(r, &r->globals, name, out);
}


static struct scope *
new_scope(struct render *r, struct scope *up)
{
    struct scope *s = template_alloc(r, sizeof(*s));

    if (s != NULL) {
        s->up = up;
    }

    return s;
}


/* Runs a body in scope s; what it writes becomes *text, or goes to the output
 * when text is NULL. */
static int
run_in(struct render *r, const struct node *body, struct scope *s,
       struct value *text)
{
    struct scope *scope = r->scope;
    struct buf   *out = r->out;
    struct buf    b = { 0 };

    if (s == NULL) {
        return -1;
    }

    r->scope = s;
    r->out = text != NULL ? &b : out;

    int rc = texec_run(r, body);

    r->scope = scope;
    r->out = out;

    /* A break that leaves a captured block loses what was captured. */
    if (text == NULL || rc != 0) {
        buf_free(&b);
        return rc;
    }

    return template_take(r, &b, rc, text);
}


/* target = value */
static int
assign(struct render *r, const struct node *target, const struct value *v)
{
    struct value space, key, items;

    if (target->kind == NODE_NAME) {
        return bind(r, r->scope, target->name, v);
    }

    if (target->kind == NODE_SPACE_ATTR) {
        if (teval_run(r, target->a, &space) != 0) {
            return -1;
        }

        if (space.kind != VALUE_SPACE) {
            return template_fail(r, "only a namespace() has attributes that "
                                 "can be set, this is a %s",
                                 tvalue_type(&space));
        }

        key = tvalue_str(target->name->text.p, target->name->text.n);

        return tvalue_put(r, &space, &key, v);
    }

    if (tvalue_items(r, v, &items) != 0) {
        return -1;
    }

    size_t i = 0;

    for (const struct node *k = target->kids; k != NULL; k = k->next, i++) {
        if (i == items.list->n) {
            return template_fail(r, "too few values to unpack: got %zu", i);
        }

        if (assign(r, k, &items.list->v[i]) != 0) {
            return -1;
        }
    }

    return i == items.list->n
           ? 0 : template_fail(r, "too many values to unpack: expected %zu",
                               i);
}


static int
is_kwarg(const struct kwarg *kw, const struct name *name)
{
    return kw->name.n == name->text.n
           && memcmp(kw->name.p, name->text.p, kw->name.n) == 0;
}


/* The keyword argument of that name, once; NULL: not given. */
static const struct value *
take_kwarg(const struct args *args, const struct name *name, uint8_t *taken)
{
    for (size_t i = 0; i < args->n_kw; i++) {
        if (!taken[i] && is_kwarg(&args->kw[i], name)) {
            taken[i] = 1;
            return &args->kw[i].value;
        }
    }

    return NULL;
}


/* What no parameter took: varargs and kwargs, if the body mentions them. */
static int
bind_rest(struct render *r, const struct node *def, const struct args *args,
          size_t n_used, const uint8_t *taken)
{
    struct value rest, kwargs, key;

    if (tvalue_list(r, VALUE_TUPLE, 0, &rest) != 0
        || tvalue_dict(r, VALUE_DICT, &kwargs) != 0)
    {
        return -1;
    }

    if (args->n > n_used && (def->op & USES_VARARGS) == 0) {
        return template_fail(r, "macro \"%s\": expected at most %zu "
                             "arguments, got %zu", def->name->text.p, n_used,
                             args->n);
    }

    for (size_t i = n_used; i < args->n; i++) {
        if (tvalue_push(r, &rest, &args->v[i]) != 0) {
            return -1;
        }
    }

    for (size_t i = 0; i < args->n_kw; i++) {
        const struct kwarg *kw = &args->kw[i];

        if (taken[i]) {
            continue;
        }

        if ((def->op & USES_KWARGS) == 0) {
            return template_fail(r, "macro \"%s\": unexpected argument "
                                 "\"%.*s\"", def->name->text.p,
                                 (int) kw->name.n, kw->name.p);
        }

        key = tvalue_str(kw->name.p, kw->name.n);

        if (tvalue_put(r, &kwargs, &key, &kw->value) != 0) {
            return -1;
        }
    }

    if ((def->op & USES_VARARGS) != 0
        && bind(r, r->scope, r->t->varargs, &rest) != 0)
    {
        return -1;
    }

    return (def->op & USES_KWARGS) == 0
           ? 0 : bind(r, r->scope, r->t->kwargs, &kwargs);
}


/* Defaults are evaluated at the call, and see the parameters before them. */
static int
bind_params(struct render *r, const struct node *def, const struct args *args)
{
    uint8_t      *taken = template_alloc(r, args->n_kw + 1);
    size_t        i = 0;
    struct value  v;

    if (taken == NULL) {
        return -1;
    }

    for (const struct node *p = def->params; p != NULL; p = p->next) {
        const struct value *given = i < args->n
                                    ? &args->v[i++]
                                    : take_kwarg(args, p->name, taken);

        if (given != NULL) {
            v = *given;

        } else if (p->a == NULL) {
            v = tvalue_undef(p->name->text);

        } else if (teval_run(r, p->a, &v) != 0) {
            return -1;
        }

        if (bind(r, r->scope, p->name, &v) != 0) {
            return -1;
        }
    }

    if ((def->op & USES_CALLER) != 0 && def->name != r->t->caller) {
        const struct value *given = take_kwarg(args, r->t->caller, taken);

        v = given != NULL ? *given : tvalue_undef(r->t->caller->text);

        if (bind(r, r->scope, r->t->caller, &v) != 0) {
            return -1;
        }
    }

    return bind_rest(r, def, args, i, taken);
}


int
texec_macro(struct render *r, const struct macro *m, const struct args *args,
            struct value *out)
{
    struct scope *old = r->scope;
    struct scope *s = new_scope(r, m->scope);

    if (s == NULL) {
        return -1;
    }

    r->scope = s;

    int rc = bind_params(r, m->def, args);

    r->scope = old;

    return rc != 0 ? rc : run_in(r, m->def->kids, s, out);
}


static int
new_macro(struct render *r, const struct node *def, struct value *out)
{
    struct macro *m = template_alloc(r, sizeof(*m));

    if (m == NULL) {
        return -1;
    }

    m->def = def;
    m->scope = r->scope;
    *out = (struct value) { .kind = VALUE_MACRO, .macro = m };

    return 0;
}


/* {% call %}: the macro gets the body as its "caller". */
static int
exec_call_block(struct render *r, const struct node *x)
{
    struct value f, caller, text;
    struct args  args;

    if (teval_run(r, x->a->a, &f) != 0
        || teval_args(r, x->a->kids, &args) != 0
        || new_macro(r, x->b, &caller) != 0)
    {
        return -1;
    }

    args.kw[args.n_kw++] = (struct kwarg) { r->t->caller->text, caller };

    return teval_apply(r, &f, &args, &text) != 0
           || tshow_text(r, &text, r->out) != 0 ? -1 : 0;
}


/* Keeps those items for which the loop's condition holds. */
static int
filter_items(struct render *r, const struct node *x, struct value *items)
{
    struct scope *old = r->scope;
    struct value  all = *items;
    struct value  yes;

    if (tvalue_list(r, VALUE_LIST, 0, items) != 0) {
        return -1;
    }

    for (size_t i = 0; i < all.list->n; i++) {
        struct scope *s = new_scope(r, old);

        if (s == NULL) {
            return -1;
        }

        r->scope = s;

        int rc = assign(r, x->a, &all.list->v[i]);

        rc = rc != 0 ? rc : teval_run(r, x->c, &yes);
        r->scope = old;

        if (rc != 0
            || (tvalue_true(&yes)
                && tvalue_push(r, items, &all.list->v[i]) != 0))
        {
            return -1;
        }
    }

    return 0;
}


/* One turn of a loop, in a scope of its own. */
static int
exec_turn(struct render *r, const struct node *x, struct loop *loop)
{
    struct scope *old = r->scope;
    struct scope *s = new_scope(r, old);
    struct value  v = { .kind = VALUE_LOOP, .loop = loop };

    if (s == NULL) {
        return -1;
    }

    r->scope = s;

    int rc = assign(r, x->a, &loop->v[loop->i]);

    rc = rc != 0 ? rc : bind(r, s, r->t->loop, &v);
    rc = rc != 0 ? rc : texec_run(r, x->kids);
    r->scope = old;

    return rc;
}


static int
exec_for(struct render *r, const struct node *x)
{
    struct value  v, items;
    struct loop  *loop = template_alloc(r, sizeof(*loop));
    int           finished = 0;

    if (loop == NULL || teval_run(r, x->b, &v) != 0
        || tvalue_items(r, &v, &items) != 0
        || (x->c != NULL && filter_items(r, x, &items) != 0))
    {
        return -1;
    }

    loop->v = items.list->v;
    loop->n = items.list->n;

    for (; loop->i < loop->n; loop->i++) {
        int rc = exec_turn(r, x, loop);

        if (rc < 0) {
            return rc;
        }

        if (rc == TEXEC_BREAK) {
            break;
        }

        finished |= rc == 0;
    }

    /* Jinja2's else runs unless a turn came to its end: also after a first
     * turn that a break or continue cut short. */
    if (finished || x->other == NULL) {
        return 0;
    }

    return run_in(r, x->other, new_scope(r, r->scope), NULL);
}


/* {% filter %} and {% set x %}...{% endset %} */
static int
exec_captured(struct render *r, const struct node *x)
{
    const struct node *chain = x->kind == NODE_SET_BLOCK ? x->b : x->a;
    struct value       text, v;
    int                rc = run_in(r, x->kids, new_scope(r, r->scope), &text);

    if (rc != 0) {
        return rc;
    }

    r->captured = text;

    if (teval_run(r, chain, &v) != 0) {
        return -1;
    }

    return x->kind == NODE_SET_BLOCK ? assign(r, x->a, &v)
                                     : tshow_text(r, &v, r->out);
}


static int
exec(struct render *r, const struct node *x)
{
    struct value v;

    switch ((enum node_kind) x->kind) {
    case NODE_DATA:
        return template_put(r, r->out, x->value.s, x->value.n);

    case NODE_OUTPUT:
        return teval_run(r, x->a, &v) != 0
               || tshow_text(r, &v, r->out) != 0 ? -1 : 0;

    case NODE_IF:
        if (teval_run(r, x->a, &v) != 0) {
            return -1;
        }

        return texec_run(r, tvalue_true(&v) ? x->kids : x->other);

    case NODE_FOR:
        return exec_for(r, x);

    case NODE_SET:
        return teval_run(r, x->b, &v) != 0 || assign(r, x->a, &v) != 0
               ? -1 : 0;

    case NODE_SET_BLOCK:
    case NODE_FILTER_BLOCK:
        return exec_captured(r, x);

    case NODE_MACRO:
        return new_macro(r, x, &v) != 0 || bind(r, r->scope, x->name, &v) != 0
               ? -1 : 0;

    case NODE_CALL_BLOCK:
        return exec_call_block(r, x);

    case NODE_SCOPE:
        return run_in(r, x->kids, new_scope(r, r->scope), NULL);

    case NODE_BREAK:
        return TEXEC_BREAK;

    case NODE_CONTINUE:
        return TEXEC_CONTINUE;

    default:
        return template_fail(r, "not a statement");
    }
}


int
texec_run(struct render *r, const struct node *list)
{
    int rc = 0;

    for (const struct node *x = list; rc == 0 && x != NULL; x = x->next) {
        if (r->depth >= TEMPLATE_DEPTH_MAX) {
            rc = template_fail(r, "nested deeper than %d",
                               TEMPLATE_DEPTH_MAX);

        } else if ((rc = template_burn(r, 1)) == 0) {
            r->depth++;
            rc = exec(r, x);
            r->depth--;
        }

        if (rc < 0 && !r->located) {
            r->located = 1;
            err_prefix(r->err, "line %u, column %u", x->line, x->column);
        }
    }

    return rc;
}
