/*
 * impl.h - what the files of the template interpreter share: values,
 * nodes, tokens, the state of a compilation and of a rendering.
 *
 *     template/lex.c      source -> tokens, and all of the white-space rules
 *     template/expr.c     tokens -> nodes, expressions
 *     template/parse.c    tokens -> nodes, statements
 *     template/text.c     UTF-8, white space, upper and lower case
 *     template/value.c    values: made, compared, walked
 *     template/show.c     values: str(), repr(), JSON
 *     template/eval.c     nodes -> values
 *     template/exec.c     statements -> output, scopes, macros
 *     template/attr.c     a.b, a[b], a[b:c]
 *     template/method.c   'a b'.split() and the like
 *     template/filter.c   x|f, template/seq.c those that walk a sequence
 *     template/test.c     x is t
 *     template/func.c     namespace(), range(), strftime_now() ...
 *     template.c          the interface, limits, errors
 *
 * A file template_X.c exports tX_*, template.c template_*.  Nodes and tokens
 * live in the template's arena, values in the rendering's; strings are slices
 * of either, of the vars, and are never changed.
 */
#ifndef MOE_TEMPLATE_INT_H
#define MOE_TEMPLATE_INT_H

#include "template/template.h"

#define TEMPLATE_SRC_MAX    (1024 * 1024)           /* bytes of source */
#define TEMPLATE_HEAP_MAX   ((size_t) 256 << 20)    /* bytes of values */
#define TEMPLATE_NEST_MAX   100     /* of source constructs, and of data */
#define TEMPLATE_DEPTH_MAX  800     /* of nodes under evaluation; < 512 KiB
                                     * of stack, < 2 MiB under ASan */


/* --- values --- */

enum value_kind {
    VALUE_ABSENT,           /* an argument not given; never seen by a user */
    VALUE_UNDEF,            /* s, n: the name, for the error */
    VALUE_NONE,
    VALUE_BOOL,             /* i */
    VALUE_INT,              /* i */
    VALUE_FLOAT,            /* f */
    VALUE_STR,              /* s, n: UTF-8, NULs allowed, not terminated */
    VALUE_LIST,             /* list */
    VALUE_TUPLE,            /* list */
    VALUE_GEN,              /* list: walked once, true, has no length */
    VALUE_DICT,             /* dict, in order of insertion */
    VALUE_SPACE,            /* dict: a namespace() */
    VALUE_LOOP,             /* loop */
    VALUE_MACRO,            /* macro */
    VALUE_METHOD,           /* method: bound to its object */
    VALUE_FUNC              /* func */
};

struct value {
    uint8_t kind;           /* enum value_kind */
    uint8_t safe;           /* a VALUE_STR that |safe made: + escapes */
    size_t  n;
    union {
        int64_t              i;
        double               f;
        const char          *s;
        struct list         *list;
        struct dict         *dict;
        struct loop         *loop;
        struct macro        *macro;
        struct method       *method;
        const struct callee *func;
    };
};

struct list {
    struct value *v;
    size_t        n;
    size_t        cap;
};

struct pair {
    struct value key;
    struct value value;
};

struct dict {
    struct pair *p;
    size_t       n;
    size_t       cap;
};

struct loop {
    const struct value *v;  /* (n) the items, as they were at the start */
    size_t              n;
    size_t              i;
};

struct macro {
    const struct node *def;
    struct scope      *scope;   /* where it was defined */
};


/* --- calls: filters, tests, methods and functions alike --- */

struct kwarg {
    struct slice name;
    struct value value;
};

struct args {
    size_t        n;
    size_t        n_kw;
    struct value *v;
    struct kwarg *kw;
};

struct render;

struct call {
    const struct callee *callee;
    struct value         self;      /* the piped value, or the object */
    struct value         a[4];      /* by callee->params; VALUE_ABSENT */
    const struct args   *args;      /* as written */
};

struct callee {
    const char *name;
    int       (*fn)(struct render *r, struct call *c, struct value *out);
    const char *params;         /* "a,b": up to 4; NULL: fn reads c->args */
    unsigned    n_required;
};

struct method {
    const struct callee *callee;
    struct value         self;
};


/* --- nodes --- */

enum node_kind {
    /* expressions */
    NODE_CONST,         /* value */
    NODE_NAME,          /* name */
    NODE_LIST,          /* kids */
    NODE_TUPLE,         /* kids */
    NODE_DICT,          /* kids: NODE_PAIR */
    NODE_PAIR,          /* a: b */
    NODE_ATTR,          /* a.name */
    NODE_ITEM,          /* a[b] */
    NODE_SLICE,         /* a[b:c:d], each NULL when left out */
    NODE_CALL,          /* a(kids) */
    NODE_KWARG,         /* name=a, among the kids of a call */
    NODE_FILTER,        /* a|callee(kids) */
    NODE_TEST,          /* a is callee(kids); op: "is not" */
    NODE_NOT,           /* not a */
    NODE_AND,           /* a and b */
    NODE_OR,            /* a or b */
    NODE_NEG,           /* -a */
    NODE_POS,           /* +a */
    NODE_MATH,          /* a op b */
    NODE_CONCAT,        /* kids joined by ~ */
    NODE_COMPARE,       /* a, then kids: NODE_OPERAND */
    NODE_OPERAND,       /* op a */
    NODE_COND,          /* b if a else c; c may be NULL */
    NODE_CAPTURED,      /* the text of the block being filtered */

    /* targets, beside NODE_NAME and NODE_TUPLE */
    NODE_SPACE_ATTR,    /* a.name = */

    /* statements */
    NODE_DATA,          /* text */
    NODE_OUTPUT,        /* {{ a }} */
    NODE_IF,            /* a, kids, other */
    NODE_FOR,           /* a in b if c: kids, other */
    NODE_SET,           /* a = b */
    NODE_SET_BLOCK,     /* a = kids through b, a chain on NODE_CAPTURED */
    NODE_MACRO,         /* name(params): kids; op: enum macro_use */
    NODE_CALL_BLOCK,    /* a: the call; b: the NODE_MACRO "caller" */
    NODE_FILTER_BLOCK,  /* kids through a */
    NODE_SCOPE,         /* kids: {% generation %} */
    NODE_BREAK,
    NODE_CONTINUE
};

/* What a macro's body mentions: only then does it take them. */
enum macro_use {
    USES_CALLER = 1,
    USES_VARARGS = 2,
    USES_KWARGS = 4
};

struct name {
    struct name *next;          /* in its bucket */
    struct slice text;
};

struct node {
    uint8_t              kind;      /* enum node_kind */
    uint8_t              op;        /* enum token_kind, mostly */
    unsigned             line;
    unsigned             column;
    const struct name   *name;
    const struct callee *callee;
    struct node         *a, *b, *c, *d;
    struct node         *params;    /* NODE_KWARG; a: the default or NULL */
    struct node         *kids;
    struct node         *other;     /* else */
    struct node         *next;      /* in its list */
    struct value         value;
};


/* --- tokens --- */

enum token_kind {
    TOKEN_END,
    TOKEN_DATA,
    TOKEN_VAR_BEGIN, TOKEN_VAR_END,
    TOKEN_BLOCK_BEGIN, TOKEN_BLOCK_END,
    TOKEN_NAME, TOKEN_STR, TOKEN_INT, TOKEN_FLOAT,
    TOKEN_ADD, TOKEN_SUB, TOKEN_MUL, TOKEN_DIV, TOKEN_FLOORDIV, TOKEN_MOD,
    TOKEN_POW, TOKEN_TILDE,
    TOKEN_EQ, TOKEN_NE, TOKEN_LT, TOKEN_LE, TOKEN_GT, TOKEN_GE,
    TOKEN_IN, TOKEN_NOT_IN,         /* made by the parser: two words */
    TOKEN_ASSIGN, TOKEN_DOT, TOKEN_COMMA, TOKEN_COLON, TOKEN_PIPE,
    TOKEN_SEMICOLON,
    TOKEN_LPAREN, TOKEN_RPAREN, TOKEN_LBRACKET, TOKEN_RBRACKET,
    TOKEN_LBRACE, TOKEN_RBRACE
};

struct token {
    enum token_kind kind;
    unsigned        line;
    unsigned        column;
    struct slice    text;       /* of a TOKEN_STR: decoded */
    union {
        int64_t     i;
        double      f;
    };
};


/* --- a compilation --- */

#define TEMPLATE_BUCKETS    256

struct template {
    struct arena arena;
    struct node *body;
    struct name *names[TEMPLATE_BUCKETS];   /* only while compiling */

    /* Names that the interpreter binds itself. */
    const struct name *loop, *caller, *varargs, *kwargs;
};

struct compile {
    struct template    *t;
    struct err         *err;
    struct buf          tokens;     /* struct token[], TOKEN_END last */
    const struct token *at;
    unsigned            nest;
    unsigned            n_loops;    /* that a break here could leave */
    unsigned            uses;       /* enum macro_use, of the macro here */
};

/* "line L, column C: ..."; returns -1. */
int template_refuse(struct compile *c, unsigned line, unsigned column,
                    const char *fmt, ...) BASE_PRINTF(4, 5);
const struct name *template_name(struct compile *c, struct slice text);

int tlex_run(struct compile *c, const char *src, size_t n);

/* Expressions; NULL after template_refuse(). */
struct node *texpr_node(struct compile *c, enum node_kind kind);
struct node *texpr_parse(struct compile *c);
struct node *texpr_tuple(struct compile *c, int with_cond, int explicit);
struct node *texpr_primary(struct compile *c);
struct node *texpr_filters(struct compile *c, struct node *on, int inside);
int texpr_is_op(const struct compile *c, enum token_kind kind);
int texpr_is_word(const struct compile *c, const char *word);
int texpr_skip_op(struct compile *c, enum token_kind kind);
int texpr_skip_word(struct compile *c, const char *word);
int texpr_expect(struct compile *c, enum token_kind kind, const char *what);
int texpr_enter(struct compile *c);     /* checks the nesting, c->nest++ */

int tparse_run(struct compile *c);


/* --- a rendering --- */

struct binding {
    struct binding    *next;
    const struct name *name;
    struct value       value;
};

struct scope {
    struct scope   *up;
    struct binding *first;
};

struct render {
    const struct template *t;
    const json_t          *vars;
    struct arena           arena;
    struct buf            *out;
    size_t                 max_bytes;
    uint64_t               fuel;
    unsigned               depth;       /* of nodes */
    struct scope          *scope;
    struct scope           globals;     /* vars, once they were used */
    struct value           captured;    /* for NODE_CAPTURED */
    json_t                *kept;        /* array: what from_json parsed */
    struct err            *err;
    int                    located;     /* err says where already */
};

/* All return 0, or -1 with r->err filled, unless they say otherwise. */
int template_fail(struct render *r, const char *fmt, ...) BASE_PRINTF(2, 3);
int template_burn(struct render *r, size_t n);
void *template_alloc(struct render *r, size_t n);   /* NULL for -1 */
int template_put(struct render *r, struct buf *b, const void *p, size_t n);
int template_puts(struct render *r, struct buf *b, const char *s);

/* b's bytes as a string in *out when rc is 0; frees b; returns rc or -1. */
int template_take(struct render *r, struct buf *b, int rc, struct value *out);

struct value tvalue_undef(struct slice name);
struct value tvalue_none(void);
struct value tvalue_bool(int b);
struct value tvalue_int(int64_t i);
struct value tvalue_float(double f);
struct value tvalue_str(const char *s, size_t n);
struct value tvalue_cstr(const char *s);
int tvalue_list(struct render *r, enum value_kind kind, size_t cap,
                struct value *out);
int tvalue_push(struct render *r, struct value *list, const struct value *v);
int tvalue_dict(struct render *r, enum value_kind kind, struct value *out);
int tvalue_put(struct render *r, struct value *dict, const struct value *key,
               const struct value *v);
int tvalue_get(struct render *r, const struct value *dict,
               const struct value *key, struct value **out);    /* or NULL */
int tvalue_json(struct render *r, const json_t *j, struct value *out);

int tvalue_is_str(const struct value *v, const char *s);
int tvalue_is_number(const struct value *v);    /* bools are */
int tvalue_is_listy(const struct value *v);     /* list, tuple */
int tvalue_true(const struct value *v);
int tvalue_equal(struct render *r, const struct value *a,
                 const struct value *b, int *equal);
int tvalue_order(struct render *r, const struct value *a,
                 const struct value *b, int *order);
int tvalue_hashable(struct render *r, const struct value *v);
const char *tvalue_type(const struct value *v);

/* str(v), repr(v). */
int tshow_text(struct render *r, const struct value *v, struct buf *b);
int tshow_repr(struct render *r, const struct value *v, struct buf *b);
int tshow_str(struct render *r, const struct value *v, struct value *out);

/* The items of anything that can be walked, as a list of their own. */
int tvalue_items(struct render *r, const struct value *v, struct value *out);

struct json_style {
    int          ensure_ascii;
    int          sort_keys;
    int          pretty;
    struct slice indent;
    struct slice comma;
    struct slice colon;
};

int tshow_json(struct render *r, const struct value *v,
                const struct json_style *style, struct buf *b);

/* UTF-8 that is known to be valid. */
size_t ttext_count(const char *s, size_t n);            /* code points */
/* bytes of the one at i */
size_t ttext_step(const char *s, size_t n, size_t i);
/* of the one before i */
size_t ttext_back(const char *s, size_t i);
int32_t ttext_point(const char *s, size_t n, size_t i);
size_t ttext_encode(uint32_t point, char *p);           /* p: 4 bytes */
int ttext_valid(const char *s, size_t n);
int ttext_is_space(int32_t point);                      /* str.isspace() */
size_t ttext_lead(const char *s, size_t n);     /* white space at the start */
size_t ttext_trail(const char *s, size_t n);    /* and at the end */

/* Finds sub in s from i on; SIZE_MAX when it is not there. */
size_t ttext_find(struct slice s, struct slice sub, size_t i);

enum text_case { TEXT_UPPER, TEXT_LOWER, TEXT_TITLE, TEXT_CAPITAL };

int ttext_case(struct render *r, const struct value *s, enum text_case how,
               struct value *out);
int ttext_replace(struct render *r, const struct value *s,
                  const struct value *from, const struct value *to,
                  int64_t max, struct value *out);

int teval_run(struct render *r, const struct node *x, struct value *out);
int teval_args(struct render *r, const struct node *kids, struct args *args);
int teval_call(struct render *r, const struct callee *callee,
               const struct value *self, const struct args *args,
               struct value *out);
int teval_apply(struct render *r, const struct value *f,
                const struct args *args, struct value *out);
int teval_math(struct render *r, int op, const struct value *a,
               const struct value *b, struct value *out);
int teval_compare(struct render *r, int op, const struct value *a,
                  const struct value *b, int *yes);

/* 0, or -1; or how a loop's body was left. */
enum { TEXEC_BREAK = 1, TEXEC_CONTINUE = 2 };
int texec_run(struct render *r, const struct node *list);
int texec_macro(struct render *r, const struct macro *m,
                const struct args *args, struct value *out);
int texec_lookup(struct render *r, const struct name *name,
                 struct value *out);

/* a.name and a[key]: an undefined value where there is none. */
int tattr_dot(struct render *r, const struct value *a, struct slice name,
              struct value *out);
int tattr_item(struct render *r, const struct value *a,
               const struct value *key, struct value *out);
int tattr_slice(struct render *r, const struct value *a,
                const struct value bounds[3], struct value *out);

/* NULL: no such name. */
const struct callee *tmethod_find(const struct value *v, struct slice name);
const struct callee *tfilter_find(struct slice name);
const struct callee *ttest_find(struct slice name);
const struct callee *tfunc_find(struct slice name);
const struct callee *tseq_find(struct slice name);
const struct callee *tcallee_find(const struct callee *table, size_t n,
                                  struct slice name);

#endif /* MOE_TEMPLATE_INT_H */
