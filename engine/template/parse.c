/*
 * parse.c - tokens to nodes: statements.  What is outside of the
 * subset (include, import, extends, block, do, with ...) is refused by name.
 * Must not know values.
 */
#include "template/impl.h"

#include <string.h>

static struct node *parse_body(struct compile *c, const char *const *ends);

static const char *const end_for[] = { "else", "endfor", NULL };
static const char *const end_for_else[] = { "endfor", NULL };
static const char *const end_if[] = { "elif", "else", "endif", NULL };
static const char *const end_if_else[] = { "endif", NULL };
static const char *const end_set[] = { "endset", NULL };
static const char *const end_macro[] = { "endmacro", NULL };
static const char *const end_call[] = { "endcall", NULL };
static const char *const end_filter[] = { "endfilter", NULL };
static const char *const end_generation[] = { "endgeneration", NULL };

/* An empty body is a node, so that NULL can mean failure. */
#define NOTHING(c)  texpr_node(c, NODE_DATA)


static int
end_tag(struct compile *c)
{
    return texpr_expect(c, TOKEN_BLOCK_END, "the end of the tag");
}


static int
is_reserved(const struct token *t)
{
    static const char *const words[] = {
        "true", "false", "none", "True", "False", "None"
    };

    for (size_t i = 0; i < BASE_COUNT(words); i++) {
        if (t->text.n == strlen(words[i])
            && memcmp(t->text.p, words[i], t->text.n) == 0)
        {
            return 1;
        }
    }

    return 0;
}


/* name-to-assign = NAME [ "." NAME ] */
static struct node *
parse_target_name(struct compile *c, int with_space)
{
    if (c->at->kind == TOKEN_NAME && is_reserved(c->at)) {
        template_refuse(c, c->at->line, c->at->column,
                        "cannot assign to \"%.*s\"", (int) c->at->text.n,
                        c->at->text.p);
        return NULL;
    }

    struct node *x = texpr_node(c, NODE_NAME);
    struct node *y;

    if (x == NULL || (x->name = template_name(c, c->at->text)) == NULL
        || texpr_expect(c, TOKEN_NAME, "a name to assign to") != 0)
    {
        return NULL;
    }

    if (!with_space || !texpr_skip_op(c, TOKEN_DOT)) {
        return x;
    }

    if ((y = texpr_node(c, NODE_SPACE_ATTR)) == NULL
        || (y->name = template_name(c, c->at->text)) == NULL
        || texpr_expect(c, TOKEN_NAME, "a name") != 0)
    {
        return NULL;
    }

    y->a = x;

    return y;
}


/* target = item { "," item } [ "," ], item = name-to-assign | "(" target ")" */
static struct node *
parse_target(struct compile *c, int with_space)
{
    struct node  *tuple = texpr_node(c, NODE_TUPLE);
    struct node **tail = tuple != NULL ? &tuple->kids : NULL;
    int           commas = 0;

    if (tuple == NULL || texpr_enter(c) != 0) {
        return NULL;
    }

    do {
        struct node *x;

        if (commas && c->at->kind != TOKEN_NAME
            && c->at->kind != TOKEN_LPAREN)
        {
            break;
        }

        if (commas && texpr_is_word(c, "in")) {
            break;
        }

        if (texpr_skip_op(c, TOKEN_LPAREN)) {
            x = parse_target(c, with_space);

            if (x != NULL && texpr_expect(c, TOKEN_RPAREN, "\")\"") != 0) {
                return NULL;
            }

        } else {
            x = parse_target_name(c, with_space);
        }

        if (x == NULL) {
            return NULL;
        }

        *tail = x;
        tail = &x->next;

    } while (texpr_skip_op(c, TOKEN_COMMA) && (commas = 1));

    c->nest--;

    return commas ? tuple : tuple->kids;
}


/* for = "for" target "in" tuple [ "if" expr ] body [ "else" body ] "endfor" */
static struct node *
parse_for(struct compile *c, struct node *x)
{
    x->kind = NODE_FOR;

    if ((x->a = parse_target(c, 0)) == NULL) {
        return NULL;
    }

    if (!texpr_skip_word(c, "in")) {
        texpr_expect(c, TOKEN_IN, "\"in\"");
        return NULL;
    }

    if ((x->b = texpr_tuple(c, 0, 0)) == NULL
        || (texpr_skip_word(c, "if") && (x->c = texpr_parse(c)) == NULL))
    {
        return NULL;
    }

    if (texpr_is_word(c, "recursive")) {
        template_refuse(c, c->at->line, c->at->column,
                        "recursive loops are not supported");
        return NULL;
    }

    c->n_loops++;
    x->kids = end_tag(c) == 0 ? parse_body(c, end_for) : NULL;
    c->n_loops--;

    if (x->kids == NULL) {
        return NULL;
    }

    if (texpr_skip_word(c, "else")) {
        if (end_tag(c) != 0
            || (x->other = parse_body(c, end_for_else)) == NULL)
        {
            return NULL;
        }
    }

    c->at++;

    return end_tag(c) == 0 ? x : NULL;
}


/* if = "if" tuple body { "elif" tuple body } [ "else" body ] "endif" */
static struct node *
parse_if(struct compile *c, struct node *x)
{
    struct node *first = x;

    for ( ;; ) {
        x->kind = NODE_IF;

        if ((x->a = texpr_tuple(c, 0, 0)) == NULL || end_tag(c) != 0
            || (x->kids = parse_body(c, end_if)) == NULL)
        {
            return NULL;
        }

        if (!texpr_is_word(c, "elif")) {
            break;
        }

        if ((x->other = texpr_node(c, NODE_IF)) == NULL) {
            return NULL;
        }

        c->at++;
        x = x->other;
    }

    if (texpr_skip_word(c, "else")) {
        if (end_tag(c) != 0 || (x->other = parse_body(c, end_if_else)) == NULL)
        {
            return NULL;
        }
    }

    c->at++;

    return end_tag(c) == 0 ? first : NULL;
}


/* set = "set" target ( "=" tuple | { "|" filter } body "endset" ) */
static struct node *
parse_set(struct compile *c, struct node *x)
{
    if ((x->a = parse_target(c, 1)) == NULL) {
        return NULL;
    }

    if (texpr_skip_op(c, TOKEN_ASSIGN)) {
        x->kind = NODE_SET;
        x->b = texpr_tuple(c, 1, 0);

        return x->b != NULL && end_tag(c) == 0 ? x : NULL;
    }

    x->kind = NODE_SET_BLOCK;

    struct node *captured = texpr_node(c, NODE_CAPTURED);

    if (captured == NULL || (x->b = texpr_filters(c, captured, 0)) == NULL
        || end_tag(c) != 0 || (x->kids = parse_body(c, end_set)) == NULL)
    {
        return NULL;
    }

    c->at++;

    return end_tag(c) == 0 ? x : NULL;
}


/* params = "(" [ NAME [ "=" expr ] { "," NAME [ "=" expr ] } [ "," ] ] ")" */
static int
parse_params(struct compile *c, struct node *x)
{
    struct node **tail = &x->params;
    int           defaults = 0;

    if (texpr_expect(c, TOKEN_LPAREN, "\"(\"") != 0) {
        return -1;
    }

    while (!texpr_is_op(c, TOKEN_RPAREN)) {
        if (x->params != NULL
            && texpr_expect(c, TOKEN_COMMA, "\",\" or \")\"") != 0)
        {
            return -1;
        }

        if (texpr_is_op(c, TOKEN_RPAREN)) {
            break;
        }

        struct node *name = parse_target_name(c, 0);

        if (name == NULL) {
            return -1;
        }

        name->kind = NODE_KWARG;

        if (texpr_skip_op(c, TOKEN_ASSIGN)) {
            if ((name->a = texpr_parse(c)) == NULL) {
                return -1;
            }

            defaults = 1;

        } else if (defaults) {
            return template_refuse(c, name->line, name->column,
                                   "parameter without a default after one "
                                   "that has it");
        }

        *tail = name;
        tail = &name->next;
    }

    c->at++;

    return 0;
}


/* The body of a macro, with what it mentions; loops outside end there. */
static int
parse_macro_body(struct compile *c, struct node *x, const char *const *ends)
{
    unsigned n_loops = c->n_loops;
    unsigned uses = c->uses;

    c->n_loops = 0;
    c->uses = 0;
    x->kids = end_tag(c) == 0 ? parse_body(c, ends) : NULL;
    x->op = (uint8_t) c->uses;
    c->n_loops = n_loops;
    c->uses = uses;

    if (x->kids == NULL) {
        return -1;
    }

    c->at++;

    return end_tag(c);
}


/* macro = "macro" NAME params body "endmacro" */
static struct node *
parse_macro(struct compile *c, struct node *x)
{
    struct node *name = parse_target_name(c, 0);

    if (name == NULL) {
        return NULL;
    }

    x->kind = NODE_MACRO;
    x->name = name->name;

    return parse_params(c, x) == 0 && parse_macro_body(c, x, end_macro) == 0
           ? x : NULL;
}


/* call = "call" [ params ] expr body "endcall", where expr is a call */
static struct node *
parse_call_block(struct compile *c, struct node *x)
{
    static const struct slice caller = { "caller", 6 };

    x->kind = NODE_CALL_BLOCK;

    if ((x->b = texpr_node(c, NODE_MACRO)) == NULL
        || (x->b->name = template_name(c, caller)) == NULL
        || (texpr_is_op(c, TOKEN_LPAREN) && parse_params(c, x->b) != 0)
        || (x->a = texpr_parse(c)) == NULL)
    {
        return NULL;
    }

    if (x->a->kind != NODE_CALL) {
        template_refuse(c, x->a->line, x->a->column, "expected a call");
        return NULL;
    }

    return parse_macro_body(c, x->b, end_call) == 0 ? x : NULL;
}


/* filter = "filter" filter { "|" filter } body "endfilter" */
static struct node *
parse_filter_block(struct compile *c, struct node *x)
{
    struct node *captured = texpr_node(c, NODE_CAPTURED);

    x->kind = NODE_FILTER_BLOCK;

    if (captured == NULL || (x->a = texpr_filters(c, captured, 1)) == NULL
        || end_tag(c) != 0 || (x->kids = parse_body(c, end_filter)) == NULL)
    {
        return NULL;
    }

    c->at++;

    return end_tag(c) == 0 ? x : NULL;
}


/* generation = "generation" body "endgeneration" */
static struct node *
parse_generation(struct compile *c, struct node *x)
{
    x->kind = NODE_SCOPE;

    return parse_macro_body(c, x, end_generation) == 0 ? x : NULL;
}


/* break = "break" | "continue" */
static struct node *
parse_leave(struct compile *c, struct node *x, enum node_kind kind)
{
    if (c->n_loops == 0) {
        template_refuse(c, x->line, x->column, "break or continue outside "
                        "of a loop");
        return NULL;
    }

    x->kind = (uint8_t) kind;

    return end_tag(c) == 0 ? x : NULL;
}


static struct node *
parse_break(struct compile *c, struct node *x)
{
    return parse_leave(c, x, NODE_BREAK);
}


static struct node *
parse_continue(struct compile *c, struct node *x)
{
    return parse_leave(c, x, NODE_CONTINUE);
}


static const struct {
    const char   *word;
    struct node *(*parse)(struct compile *c, struct node *x);
} statements[] = {
    { "if", parse_if },
    { "for", parse_for },
    { "set", parse_set },
    { "macro", parse_macro },
    { "call", parse_call_block },
    { "filter", parse_filter_block },
    { "generation", parse_generation },
    { "break", parse_break },
    { "continue", parse_continue },
};


/* statement = if | for | set | macro | call | filter | generation | break |
 * continue; the node that each fills stands where its word does */
static struct node *
parse_statement(struct compile *c)
{
    for (size_t i = 0; i < BASE_COUNT(statements); i++) {
        if (texpr_is_word(c, statements[i].word)) {
            struct node *x = texpr_node(c, NODE_DATA);

            c->at++;

            return x != NULL ? statements[i].parse(c, x) : NULL;
        }
    }

    if (c->at->kind == TOKEN_NAME) {
        template_refuse(c, c->at->line, c->at->column,
                        "tag \"%.*s\" is unknown or does not belong here",
                        (int) (c->at->text.n > 40 ? 40 : c->at->text.n),
                        c->at->text.p);

    } else {
        texpr_expect(c, TOKEN_NAME, "the name of a tag");
    }

    return NULL;
}


/* output = "{{" tuple "}}" */
static struct node *
parse_output(struct compile *c)
{
    struct node *x = texpr_node(c, NODE_OUTPUT);

    c->at++;

    if (x == NULL || (x->a = texpr_tuple(c, 1, 0)) == NULL
        || texpr_expect(c, TOKEN_VAR_END, "\"}}\"") != 0)
    {
        return NULL;
    }

    return x;
}


static int
is_end(const struct compile *c, const char *const *ends)
{
    for (; *ends != NULL; ends++) {
        if (texpr_is_word(c, *ends)) {
            return 1;
        }
    }

    return 0;
}


/* One piece of a body; sets *done, at the word, where one of ends stands. */
static struct node *
parse_piece(struct compile *c, const char *const *ends, int *done)
{
    struct node *x;

    switch (c->at->kind) {
    case TOKEN_DATA:
        if ((x = texpr_node(c, NODE_DATA)) != NULL) {
            x->value = tvalue_str(c->at->text.p, c->at->text.n);
            c->at++;
        }

        return x;

    case TOKEN_VAR_BEGIN:
        return parse_output(c);

    case TOKEN_BLOCK_BEGIN:
        c->at++;

        if (ends != NULL && is_end(c, ends)) {
            *done = 1;
            return NOTHING(c);
        }

        return parse_statement(c);

    default:
        break;
    }

    if (ends == NULL) {
        *done = 1;
        return NOTHING(c);
    }

    while (ends[1] != NULL) {
        ends++;
    }

    template_refuse(c, c->at->line, c->at->column,
                    "expected \"%s\" before the end", *ends);

    return NULL;
}


/* body = { DATA | output | statement }, up to a tag that begins with one of
 * ends, or to the end of the template */
static struct node *
parse_body(struct compile *c, const char *const *ends)
{
    struct node  *first = NULL;
    struct node **tail = &first;
    int           done = 0;

    if (texpr_enter(c) != 0) {
        return NULL;
    }

    while (!done) {
        struct node *x = parse_piece(c, ends, &done);

        if (x == NULL) {
            return NULL;
        }

        *tail = x;
        tail = &x->next;
    }

    c->nest--;

    return first;
}


int
tparse_run(struct compile *c)
{
    c->t->body = parse_body(c, NULL);

    return c->t->body != NULL ? 0 : -1;
}
