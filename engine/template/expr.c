/*
 * expr.c - tokens to nodes: expressions.  The grammar and its
 * precedences are Jinja2's.  Names of filters and tests are resolved here, so
 * that an unknown one is refused when the model is loaded.  Must not know
 * values beyond constants.
 */
#include "template/impl.h"

#include <string.h>


struct node *
texpr_node(struct compile *c, enum node_kind kind)
{
    struct node *x = arena_alloc(&c->t->arena, sizeof(*x));

    if (x == NULL) {
        template_refuse(c, c->at->line, c->at->column, "no memory");
        return NULL;
    }

    x->kind = (uint8_t) kind;
    x->line = c->at->line;
    x->column = c->at->column;

    return x;
}


int
texpr_is_op(const struct compile *c, enum token_kind kind)
{
    return c->at->kind == kind;
}


static int
is_word_at(const struct token *t, const char *word)
{
    return t->kind == TOKEN_NAME && t->text.n == strlen(word)
           && memcmp(t->text.p, word, t->text.n) == 0;
}


int
texpr_is_word(const struct compile *c, const char *word)
{
    return is_word_at(c->at, word);
}


int
texpr_skip_op(struct compile *c, enum token_kind kind)
{
    int is = texpr_is_op(c, kind);

    c->at += is;

    return is;
}


int
texpr_skip_word(struct compile *c, const char *word)
{
    int is = texpr_is_word(c, word);

    c->at += is;

    return is;
}


int
texpr_expect(struct compile *c, enum token_kind kind, const char *what)
{
    if (texpr_skip_op(c, kind)) {
        return 0;
    }

    /* Data and tags' ends have text of their own, but long. */
    int n = c->at->kind == TOKEN_END ? 0
            : c->at->text.n > 40 ? 40 : (int) c->at->text.n;

    return template_refuse(c, c->at->line, c->at->column,
                           n != 0 ? "expected %s, got \"%.*s\""
                                  : "expected %s, got the end%.*s",
                           what, n, c->at->text.p);
}


int
texpr_enter(struct compile *c)
{
    if (c->nest >= TEMPLATE_NEST_MAX) {
        return template_refuse(c, c->at->line, c->at->column,
                               "nested deeper than %d", TEMPLATE_NEST_MAX);
    }

    c->nest++;

    return 0;
}


/* A node of one or two operands, placed where the first begins. */
static struct node *
node_on(struct compile *c, enum node_kind kind, int op, struct node *a,
        struct node *b)
{
    struct node *x = texpr_node(c, kind);

    if (x != NULL) {
        x->op = (uint8_t) op;
        x->a = a;
        x->b = b;
        x->line = a->line;
        x->column = a->column;
    }

    return x;
}


/* Appends kid to a list whose last link is *tail. */
static struct node **
append(struct node **tail, struct node *kid)
{
    *tail = kid;

    return &kid->next;
}


/* Left-deep chains ("a+a+a...", "x|f|f") nest the tree as brackets do. */
static int
chain_ok(struct compile *c, size_t *n)
{
    if (++*n <= TEMPLATE_NEST_MAX * 2) {
        return 1;
    }

    template_refuse(c, c->at->line, c->at->column,
                    "chain of more than %d operators", TEMPLATE_NEST_MAX * 2);

    return 0;
}


static struct node *
const_node(struct compile *c, struct value v)
{
    struct node *x = texpr_node(c, NODE_CONST);

    if (x != NULL) {
        x->value = v;
    }

    return x;
}


/* name = "true" | "false" | "none" | identifier */
static struct node *
parse_name(struct compile *c)
{
    static const struct {
        const char *word;
        int         of;         /* 0, 1, or 2 for none */
    } words[] = {
        { "true", 1 }, { "True", 1 }, { "false", 0 }, { "False", 0 },
        { "none", 2 }, { "None", 2 },
    };

    for (size_t i = 0; i < BASE_COUNT(words); i++) {
        if (texpr_is_word(c, words[i].word)) {
            struct node *k = const_node(c, words[i].of == 2
                                           ? tvalue_none()
                                           : tvalue_bool(words[i].of));
            c->at++;
            return k;
        }
    }

    struct node *x = texpr_node(c, NODE_NAME);

    if (x == NULL
        || (x->name = template_name(c, c->at->text)) == NULL)
    {
        return NULL;
    }

    c->uses |= texpr_is_word(c, "caller") ? USES_CALLER
               : texpr_is_word(c, "varargs") ? USES_VARARGS
               : texpr_is_word(c, "kwargs") ? USES_KWARGS : 0;
    c->at++;

    return x;
}


/* string = STR { STR } */
static struct node *
parse_string(struct compile *c)
{
    const struct token *first = c->at;
    size_t              n = 0;

    while (c->at->kind == TOKEN_STR) {
        n += c->at->text.n;
        c->at++;
    }

    if (c->at == first + 1) {
        c->at = first;

        struct node *x = const_node(c, tvalue_str(first->text.p, n));

        c->at = first + 1;

        return x;
    }

    char *text = arena_alloc(&c->t->arena, n + 1);

    if (text == NULL) {
        template_refuse(c, first->line, first->column, "no memory");
        return NULL;
    }

    n = 0;

    for (const struct token *t = first; t < c->at; t++) {
        memcpy(text + n, t->text.p, t->text.n);
        n += t->text.n;
    }

    return const_node(c, tvalue_str(text, n));
}


/* list = "[" [ expr { "," expr } [ "," ] ] "]" */
static struct node *
parse_list(struct compile *c)
{
    struct node  *x = texpr_node(c, NODE_LIST);
    struct node **tail = x != NULL ? &x->kids : NULL;

    c->at++;

    while (x != NULL && !texpr_is_op(c, TOKEN_RBRACKET)) {
        struct node *kid;

        if ((x->kids != NULL
             && texpr_expect(c, TOKEN_COMMA, "\",\" or \"]\"") != 0))
        {
            return NULL;
        }

        if (texpr_is_op(c, TOKEN_RBRACKET)) {
            break;
        }

        if ((kid = texpr_parse(c)) == NULL) {
            return NULL;
        }

        tail = append(tail, kid);
    }

    c->at++;

    return x;
}


/* dict = "{" [ expr ":" expr { "," expr ":" expr } [ "," ] ] "}" */
static struct node *
parse_dict(struct compile *c)
{
    struct node  *x = texpr_node(c, NODE_DICT);
    struct node **tail = x != NULL ? &x->kids : NULL;

    c->at++;

    while (x != NULL && !texpr_is_op(c, TOKEN_RBRACE)) {
        struct node *key, *value, *pair;

        if (x->kids != NULL
            && texpr_expect(c, TOKEN_COMMA, "\",\" or \"}\"") != 0)
        {
            return NULL;
        }

        if (texpr_is_op(c, TOKEN_RBRACE)) {
            break;
        }

        if ((key = texpr_parse(c)) == NULL
            || texpr_expect(c, TOKEN_COLON, "\":\"") != 0
            || (value = texpr_parse(c)) == NULL
            || (pair = node_on(c, NODE_PAIR, 0, key, value)) == NULL)
        {
            return NULL;
        }

        tail = append(tail, pair);
    }

    c->at++;

    return x;
}


/* primary = name | string | INT | FLOAT | "(" tuple ")" | list | dict */
struct node *
texpr_primary(struct compile *c)
{
    struct node *x;

    switch (c->at->kind) {
    case TOKEN_NAME:
        return parse_name(c);

    case TOKEN_STR:
        return parse_string(c);

    case TOKEN_INT:
        x = const_node(c, tvalue_int(c->at->i));
        c->at++;
        return x;

    case TOKEN_FLOAT:
        x = const_node(c, tvalue_float(c->at->f));
        c->at++;
        return x;

    case TOKEN_LPAREN:
        c->at++;
        x = texpr_tuple(c, 1, 1);
        return x == NULL || texpr_expect(c, TOKEN_RPAREN, "\")\"") != 0
               ? NULL : x;

    case TOKEN_LBRACKET:
        return parse_list(c);

    case TOKEN_LBRACE:
        return parse_dict(c);

    default:
        texpr_expect(c, TOKEN_NAME, "an expression");
        return NULL;
    }
}


/* subscript = expr | [ expr ] ":" [ expr ] [ ":" [ expr ] ] */
static struct node *
parse_subscript(struct compile *c, struct node *on)
{
    struct node *bounds[3] = { NULL, NULL, NULL };
    int          n = 0;

    for ( ;; ) {
        if (!texpr_is_op(c, TOKEN_COLON) && !texpr_is_op(c, TOKEN_RBRACKET)
            && (bounds[n] = texpr_parse(c)) == NULL)
        {
            return NULL;
        }

        if (n == 2 || !texpr_skip_op(c, TOKEN_COLON)) {
            break;
        }

        n++;
    }

    if (texpr_expect(c, TOKEN_RBRACKET, "\"]\"") != 0) {
        return NULL;
    }

    if (n == 0 && bounds[0] == NULL) {
        template_refuse(c, c->at->line, c->at->column, "empty subscript");
        return NULL;
    }

    struct node *x = node_on(c, n == 0 ? NODE_ITEM : NODE_SLICE, 0, on,
                             bounds[0]);

    if (x != NULL) {
        x->c = bounds[1];
        x->d = bounds[2];
    }

    return x;
}


/* args = "(" [ arg { "," arg } [ "," ] ] ")"
 * arg = expr | NAME "=" expr, the latter last */
static int
parse_args(struct compile *c, struct node **kids)
{
    struct node **tail = kids;
    int           named = 0;

    c->at++;

    while (!texpr_is_op(c, TOKEN_RPAREN)) {
        struct node *kid, *value;

        if (*kids != NULL
            && texpr_expect(c, TOKEN_COMMA, "\",\" or \")\"") != 0)
        {
            return -1;
        }

        if (texpr_is_op(c, TOKEN_RPAREN)) {
            break;
        }

        if (c->at[0].kind == TOKEN_NAME && c->at[1].kind == TOKEN_ASSIGN) {
            if ((kid = texpr_node(c, NODE_KWARG)) == NULL
                || (kid->name = template_name(c, c->at->text)) == NULL)
            {
                return -1;
            }

            c->at += 2;
            named = 1;

            if ((kid->a = texpr_parse(c)) == NULL) {
                return -1;
            }

        } else {
            if (named) {
                return template_refuse(c, c->at->line, c->at->column,
                                       "argument after a named one");
            }

            if ((value = texpr_parse(c)) == NULL) {
                return -1;
            }

            kid = value;
        }

        tail = append(tail, kid);
    }

    c->at++;

    return 0;
}


static struct node *
parse_call(struct compile *c, struct node *on)
{
    struct node *x = node_on(c, NODE_CALL, 0, on, NULL);

    return x == NULL || parse_args(c, &x->kids) != 0 ? NULL : x;
}


/* postfix = primary { "." ( NAME | INT ) | "[" subscript | args } */
static struct node *
parse_postfix(struct compile *c, struct node *x)
{
    size_t n = 0;

    while (x != NULL) {
        struct node *y;

        if (texpr_is_op(c, TOKEN_LPAREN)) {
            x = parse_call(c, x);

        } else if (texpr_skip_op(c, TOKEN_LBRACKET)) {
            x = parse_subscript(c, x);

        } else if (!texpr_skip_op(c, TOKEN_DOT)) {
            return x;

        } else if (c->at->kind == TOKEN_INT) {
            y = const_node(c, tvalue_int(c->at->i));
            x = y != NULL ? node_on(c, NODE_ITEM, 0, x, y) : NULL;
            c->at++;

        } else {
            x = node_on(c, NODE_ATTR, 0, x, NULL);

            if (x != NULL) {
                x->name = template_name(c, c->at->text);

                if (x->name == NULL
                    || texpr_expect(c, TOKEN_NAME, "a name") != 0)
                {
                    return NULL;
                }
            }
        }

        if (!chain_ok(c, &n)) {
            return NULL;
        }
    }

    return NULL;
}


/* The name of a filter or test; dots are part of it. */
static int
callee_name(struct compile *c, const char *what, struct slice *name)
{
    *name = c->at->text;

    return texpr_expect(c, TOKEN_NAME, what);
}


/* test = "is" [ "not" ] NAME [ args | primary-with-postfix ] */
static struct node *
parse_test(struct compile *c, struct node *on)
{
    int           negate = texpr_skip_word(c, "not");
    struct node  *x = node_on(c, NODE_TEST, negate, on, NULL);
    struct token  at = *c->at;
    struct slice  name;

    if (x == NULL || callee_name(c, "the name of a test", &name) != 0) {
        return NULL;
    }

    x->callee = ttest_find(name);

    if (x->callee == NULL) {
        template_refuse(c, at.line, at.column, "no test named \"%.*s\"",
                        (int) (name.n > 40 ? 40 : name.n), name.p);
        return NULL;
    }

    if (texpr_is_op(c, TOKEN_LPAREN)) {
        return parse_args(c, &x->kids) == 0 ? x : NULL;
    }

    switch (c->at->kind) {
    case TOKEN_NAME:
        if (texpr_is_word(c, "else") || texpr_is_word(c, "or")
            || texpr_is_word(c, "and"))
        {
            return x;
        }

        if (texpr_is_word(c, "is")) {
            template_refuse(c, c->at->line, c->at->column,
                            "tests cannot be chained");
            return NULL;
        }

        break;

    case TOKEN_STR: case TOKEN_INT: case TOKEN_FLOAT:
    case TOKEN_LPAREN: case TOKEN_LBRACKET: case TOKEN_LBRACE:
        break;

    default:
        return x;
    }

    x->kids = parse_postfix(c, texpr_primary(c));

    return x->kids != NULL ? x : NULL;
}


/* filters = { "|" filter }, filter = NAME [ args ]; inside: the first "|" was
 * read, or is left out as {% filter %} does. */
struct node *
texpr_filters(struct compile *c, struct node *x, int inside)
{
    size_t n = 0;

    while (x != NULL && (inside || texpr_skip_op(c, TOKEN_PIPE))) {
        struct token at = *c->at;
        struct slice name;

        inside = 0;
        x = node_on(c, NODE_FILTER, 0, x, NULL);

        if (x == NULL || !chain_ok(c, &n)
            || callee_name(c, "the name of a filter", &name) != 0)
        {
            return NULL;
        }

        x->callee = tfilter_find(name);

        if (x->callee == NULL) {
            template_refuse(c, at.line, at.column, "no filter named \"%.*s\"",
                            (int) (name.n > 40 ? 40 : name.n), name.p);
            return NULL;
        }

        if (texpr_is_op(c, TOKEN_LPAREN) && parse_args(c, &x->kids) != 0) {
            return NULL;
        }
    }

    return x;
}


/* filtered = postfix { "|" filter | "is" test | args } */
static struct node *
parse_filtered(struct compile *c, struct node *x)
{
    size_t n = 0;

    while (x != NULL) {
        if (texpr_skip_op(c, TOKEN_PIPE)) {
            x = texpr_filters(c, x, 1);

        } else if (texpr_skip_word(c, "is")) {
            x = parse_test(c, x);

        } else if (texpr_is_op(c, TOKEN_LPAREN)) {
            x = parse_call(c, x);

        } else {
            return x;
        }

        if (!chain_ok(c, &n)) {
            return NULL;
        }
    }

    return NULL;
}


/* unary = ( "-" | "+" ) unary | primary, then postfix; filters bind looser than
 * a sign's operand, so "-1|abs" is (-1)|abs */
static struct node *
parse_unary(struct compile *c, int with_filters)
{
    struct node *x;

    if (texpr_is_op(c, TOKEN_SUB) || texpr_is_op(c, TOKEN_ADD)) {
        enum node_kind kind = texpr_is_op(c, TOKEN_SUB) ? NODE_NEG : NODE_POS;

        if (texpr_enter(c) != 0) {
            return NULL;
        }

        c->at++;
        x = parse_unary(c, 0);
        c->nest--;
        x = x != NULL ? node_on(c, kind, 0, x, NULL) : NULL;

    } else {
        x = texpr_primary(c);
    }

    x = parse_postfix(c, x);

    return with_filters ? parse_filtered(c, x) : x;
}


/* One level of left-associative operators from `first` to `last`. */
static struct node *
parse_level(struct compile *c, enum token_kind first, enum token_kind last,
            struct node *(*parse)(struct compile *c))
{
    struct node *x = parse(c);
    size_t       n = 0;

    while (x != NULL && c->at->kind >= first && c->at->kind <= last) {
        int          op = c->at->kind;
        struct node *y;

        c->at++;

        if (!chain_ok(c, &n) || (y = parse(c)) == NULL) {
            return NULL;
        }

        x = node_on(c, NODE_MATH, op, x, y);
    }

    return x;
}


static struct node *
parse_factor(struct compile *c)
{
    return parse_unary(c, 1);
}


/* power = unary { "**" unary } */
static struct node *
parse_power(struct compile *c)
{
    return parse_level(c, TOKEN_POW, TOKEN_POW, parse_factor);
}


/* term = power { ( "*" | "/" | "//" | "%" ) power } */
static struct node *
parse_term(struct compile *c)
{
    return parse_level(c, TOKEN_MUL, TOKEN_MOD, parse_power);
}


/* concat = term { "~" term } */
static struct node *
parse_concat(struct compile *c)
{
    struct node *first = parse_term(c);

    if (first == NULL || !texpr_is_op(c, TOKEN_TILDE)) {
        return first;
    }

    struct node *x = node_on(c, NODE_CONCAT, 0, first, NULL);

    if (x == NULL) {
        return NULL;
    }

    x->a = NULL;

    struct node **tail = append(&x->kids, first);

    while (texpr_skip_op(c, TOKEN_TILDE)) {
        struct node *kid = parse_term(c);

        if (kid == NULL) {
            return NULL;
        }

        tail = append(tail, kid);
    }

    return x;
}


/* sum = concat { ( "+" | "-" ) concat } */
static struct node *
parse_sum(struct compile *c)
{
    return parse_level(c, TOKEN_ADD, TOKEN_SUB, parse_concat);
}


/* compare = sum { ( "==" | "!=" | "<" | "<=" | ">" | ">=" | "in" | "not" "in" )
 * sum } */
static struct node *
parse_compare(struct compile *c)
{
    struct node  *first = parse_sum(c);
    struct node  *x = NULL;
    struct node **tail = NULL;

    while (first != NULL) {
        int op = c->at->kind;

        if (op >= TOKEN_EQ && op <= TOKEN_GE) {
            c->at++;

        } else if (texpr_skip_word(c, "in")) {
            op = TOKEN_IN;

        } else if (texpr_is_word(c, "not") && is_word_at(c->at + 1, "in")) {
            c->at += 2;
            op = TOKEN_NOT_IN;

        } else {
            break;
        }

        struct node *y = parse_sum(c);
        struct node *operand = y != NULL
                               ? node_on(c, NODE_OPERAND, op, y, NULL) : NULL;

        if (operand == NULL) {
            return NULL;
        }

        if (x == NULL) {
            if ((x = node_on(c, NODE_COMPARE, 0, first, NULL)) == NULL) {
                return NULL;
            }

            tail = &x->kids;
        }

        tail = append(tail, operand);
    }

    return x != NULL ? x : first;
}


/* not = "not" not | compare */
static struct node *
parse_not(struct compile *c)
{
    if (!texpr_is_word(c, "not")) {
        return parse_compare(c);
    }

    if (texpr_enter(c) != 0) {
        return NULL;
    }

    c->at++;

    struct node *x = parse_not(c);

    c->nest--;

    return x != NULL ? node_on(c, NODE_NOT, 0, x, NULL) : NULL;
}


/* and = not { "and" not } */
static struct node *
parse_and(struct compile *c)
{
    struct node *x = parse_not(c);
    size_t       n = 0;

    while (x != NULL && texpr_skip_word(c, "and")) {
        struct node *y = chain_ok(c, &n) ? parse_not(c) : NULL;

        x = y != NULL ? node_on(c, NODE_AND, 0, x, y) : NULL;
    }

    return x;
}


/* or = and { "or" and } */
static struct node *
parse_or(struct compile *c)
{
    struct node *x = parse_and(c);
    size_t       n = 0;

    while (x != NULL && texpr_skip_word(c, "or")) {
        struct node *y = chain_ok(c, &n) ? parse_and(c) : NULL;

        x = y != NULL ? node_on(c, NODE_OR, 0, x, y) : NULL;
    }

    return x;
}


/* expr = or { "if" or [ "else" expr ] } */
static struct node *
parse_cond(struct compile *c)
{
    struct node *x = parse_or(c);
    size_t       n = 0;

    while (x != NULL && texpr_skip_word(c, "if")) {
        struct node *test = chain_ok(c, &n) ? parse_or(c) : NULL;
        struct node *other = NULL;

        if (test == NULL
            || (texpr_skip_word(c, "else")
                && (other = texpr_parse(c)) == NULL))
        {
            return NULL;
        }

        struct node *y = node_on(c, NODE_COND, 0, test, x);

        if (y == NULL) {
            return NULL;
        }

        y->c = other;
        x = y;
    }

    return x;
}


struct node *
texpr_parse(struct compile *c)
{
    if (texpr_enter(c) != 0) {
        return NULL;
    }

    struct node *x = parse_cond(c);

    c->nest--;

    return x;
}


static int
is_tuple_end(const struct compile *c)
{
    return c->at->kind == TOKEN_VAR_END || c->at->kind == TOKEN_BLOCK_END
           || c->at->kind == TOKEN_RPAREN || texpr_is_word(c, "recursive");
}


/* tuple = expr { "," expr } [ "," ]: a tuple where there is a comma, or where
 * explicit parentheses hold nothing */
struct node *
texpr_tuple(struct compile *c, int with_cond, int explicit)
{
    struct node  *x = texpr_node(c, NODE_TUPLE);
    struct node **tail = x != NULL ? &x->kids : NULL;
    int           commas = 0;

    if (x == NULL || texpr_enter(c) != 0) {
        return NULL;
    }

    for ( ;; ) {
        if (is_tuple_end(c) && (commas || explicit)) {
            break;
        }

        struct node *kid = with_cond ? parse_cond(c) : parse_or(c);

        if (kid == NULL) {
            return NULL;
        }

        tail = append(tail, kid);

        if (!texpr_skip_op(c, TOKEN_COMMA)) {
            break;
        }

        commas = 1;
    }

    c->nest--;

    return !commas && x->kids != NULL ? x->kids : x;
}
