/*
 * test.c - tests: x is defined, x is string.  In: the value and the
 * arguments; out: a bool.  Must not know nodes.
 */
#include "template/impl.h"

#include <string.h>


/* Tests that ask only what kind of value it is. */
static int
t_kind(struct render *r, struct call *c, struct value *out)
{
    const struct value *v = &c->self;
    const char         *name = c->callee->name;
    int                 yes;

    (void) r;

    switch (name[0]) {
    case 'd':
        yes = v->kind != VALUE_UNDEF;
        break;

    case 'u':
        yes = v->kind == VALUE_UNDEF;
        break;

    case 'n':
        yes = strcmp(name, "none") == 0 ? v->kind == VALUE_NONE
                                        : tvalue_is_number(v);
        break;

    case 's':
        yes = v->kind == VALUE_STR
              || (strcmp(name, "sequence") == 0
                  && (v->kind == VALUE_UNDEF || v->kind == VALUE_DICT
                      || tvalue_is_listy(v)));
        break;

    case 'm':
        yes = v->kind == VALUE_DICT;
        break;

    case 'b':
        yes = v->kind == VALUE_BOOL;
        break;

    case 'i':
        yes = strcmp(name, "integer") == 0
              ? v->kind == VALUE_INT
              : v->kind == VALUE_STR || v->kind == VALUE_UNDEF
                || v->kind == VALUE_DICT || v->kind == VALUE_GEN
                || v->kind == VALUE_LOOP || tvalue_is_listy(v);
        break;

    case 't':
        yes = v->kind == VALUE_BOOL && v->i;
        break;

    case 'f':
        yes = strcmp(name, "float") == 0 ? v->kind == VALUE_FLOAT
                                         : v->kind == VALUE_BOOL && !v->i;
        break;

    default:
        yes = v->kind == VALUE_MACRO || v->kind == VALUE_METHOD
              || v->kind == VALUE_FUNC || v->kind == VALUE_UNDEF;
    }

    *out = tvalue_bool(yes);

    return 0;
}


static int
t_divisible(struct render *r, struct call *c, struct value *out)
{
    struct value by = c->callee->n_required != 0 ? c->a[0] : tvalue_int(2);
    struct value zero = tvalue_int(0);
    struct value rest;
    int          even;

    if (teval_math(r, TOKEN_MOD, &c->self, &by, &rest) != 0
        || tvalue_equal(r, &rest, &zero, &even) != 0)
    {
        return -1;
    }

    *out = tvalue_bool(even ^ (c->callee->name[0] == 'o'));

    return 0;
}


/* Tests that are operators under other names. */
static int
t_compare(struct render *r, struct call *c, struct value *out)
{
    static const struct {
        const char     *name;
        enum token_kind op;
    } names[] = {
        { "eq", TOKEN_EQ }, { "equalto", TOKEN_EQ }, { "==", TOKEN_EQ },
        { "ne", TOKEN_NE }, { "!=", TOKEN_NE },
        { "lt", TOKEN_LT }, { "lessthan", TOKEN_LT }, { "<", TOKEN_LT },
        { "le", TOKEN_LE }, { "<=", TOKEN_LE },
        { "gt", TOKEN_GT }, { "greaterthan", TOKEN_GT }, { ">", TOKEN_GT },
        { "ge", TOKEN_GE }, { ">=", TOKEN_GE }, { "in", TOKEN_IN },
    };
    size_t i = 0;
    int    yes;

    while (strcmp(names[i].name, c->callee->name) != 0) {
        i++;
    }

    if (teval_compare(r, names[i].op, &c->self, &c->a[0], &yes) != 0) {
        return -1;
    }

    *out = tvalue_bool(yes);

    return 0;
}


/* str(x).islower(), .isupper(): has a letter, and none of the other case */
static int
t_case(struct render *r, struct call *c, struct value *out)
{
    int          lower = c->callee->name[0] == 'l';
    struct value text, same, other;
    int          is, has;

    if (tshow_str(r, &c->self, &text) != 0
        || ttext_case(r, &text, lower ? TEXT_LOWER : TEXT_UPPER, &same) != 0
        || ttext_case(r, &text, lower ? TEXT_UPPER : TEXT_LOWER, &other) != 0
        || tvalue_equal(r, &text, &same, &is) != 0
        || tvalue_equal(r, &text, &other, &has) != 0)
    {
        return -1;
    }

    *out = tvalue_bool(is && !has);

    return 0;
}


static const struct callee tests[] = {
    { "defined", t_kind, "", 0 }, { "undefined", t_kind, "", 0 },
    { "none", t_kind, "", 0 }, { "string", t_kind, "", 0 },
    { "mapping", t_kind, "", 0 }, { "iterable", t_kind, "", 0 },
    { "sequence", t_kind, "", 0 }, { "boolean", t_kind, "", 0 },
    { "true", t_kind, "", 0 }, { "false", t_kind, "", 0 },
    { "number", t_kind, "", 0 }, { "integer", t_kind, "", 0 },
    { "float", t_kind, "", 0 }, { "callable", t_kind, "", 0 },
    { "odd", t_divisible, "", 0 }, { "even", t_divisible, "", 0 },
    { "divisibleby", t_divisible, "num", 1 },
    { "eq", t_compare, "other", 1 }, { "equalto", t_compare, "other", 1 },
    { "==", t_compare, "other", 1 }, { "ne", t_compare, "other", 1 },
    { "!=", t_compare, "other", 1 }, { "lt", t_compare, "other", 1 },
    { "lessthan", t_compare, "other", 1 }, { "<", t_compare, "other", 1 },
    { "le", t_compare, "other", 1 }, { "<=", t_compare, "other", 1 },
    { "gt", t_compare, "other", 1 },
    { "greaterthan", t_compare, "other", 1 }, { ">", t_compare, "other", 1 },
    { "ge", t_compare, "other", 1 }, { ">=", t_compare, "other", 1 },
    { "in", t_compare, "seq", 1 },
    { "lower", t_case, "", 0 }, { "upper", t_case, "", 0 },
};


const struct callee *
ttest_find(struct slice name)
{
    return tcallee_find(tests, BASE_COUNT(tests), name);
}
