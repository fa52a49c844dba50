/*
 * lex.c - source to tokens.  All that Jinja does with white space is
 * here: trim_blocks (a newline after a block tag goes), lstrip_blocks (blanks
 * before a block tag that begins its line go), "-" and "+" in tags, and the
 * template's last newline.  Must not know what the tokens mean.
 *
 * The rules are those of the Jinja2 documentation, "Whitespace Control".
 */
#include "template/impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct lexer {
    struct compile *c;
    const char     *p;          /* source: \n only, no last newline */
    size_t          n;
    size_t          i;
    size_t          at;         /* the place that line and column are of */
    unsigned        line;
    unsigned        column;
    size_t          n_open;
    char            open[TEMPLATE_NEST_MAX];    /* the brackets we are in */
};

static const struct {
    char            text[3];
    enum token_kind kind;
} ops[] = {
    { "//", TOKEN_FLOORDIV }, { "**", TOKEN_POW }, { "==", TOKEN_EQ },
    { "!=", TOKEN_NE }, { "<=", TOKEN_LE }, { ">=", TOKEN_GE },
    { "+", TOKEN_ADD }, { "-", TOKEN_SUB }, { "*", TOKEN_MUL },
    { "/", TOKEN_DIV }, { "%", TOKEN_MOD }, { "~", TOKEN_TILDE },
    { "<", TOKEN_LT }, { ">", TOKEN_GT }, { "=", TOKEN_ASSIGN },
    { ".", TOKEN_DOT }, { ",", TOKEN_COMMA }, { ":", TOKEN_COLON },
    { "|", TOKEN_PIPE }, { ";", TOKEN_SEMICOLON },
    { "(", TOKEN_LPAREN }, { ")", TOKEN_RPAREN },
    { "[", TOKEN_LBRACKET }, { "]", TOKEN_RBRACKET },
    { "{", TOKEN_LBRACE }, { "}", TOKEN_RBRACE },
};


static int
is_digit(char c)
{
    return c >= '0' && c <= '9';
}


static int
is_word(char c)
{
    return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')
           || c == '_' || (unsigned char) c >= 0x80;
}


/* Is text at i? */
static int
at(const struct lexer *l, size_t i, const char *text)
{
    size_t n = strlen(text);

    return i <= l->n && n <= l->n - i && memcmp(l->p + i, text, n) == 0;
}


/* Sets line and column of position i; mostly the positions grow. */
static void
place(struct lexer *l, size_t i, struct token *t)
{
    if (i < l->at) {
        l->at = 0;
        l->line = 1;
        l->column = 1;
    }

    for (; l->at < i; l->at++) {
        if (l->p[l->at] == '\n') {
            l->line++;
            l->column = 1;

        } else if (((unsigned char) l->p[l->at] & 0xc0) != 0x80) {
            l->column++;
        }
    }

    t->line = l->line;
    t->column = l->column;
}


static int
refuse(struct lexer *l, size_t i, const char *what)
{
    struct token t;

    place(l, i, &t);

    return template_refuse(l->c, t.line, t.column, "%s", what);
}


static int
add(struct lexer *l, struct token *t, size_t i)
{
    place(l, i, t);

    if (buf_add(&l->c->tokens, t, sizeof(*t)) != 0) {
        return template_refuse(l->c, t->line, t->column, "no memory");
    }

    return 0;
}


static int
add_kind(struct lexer *l, enum token_kind kind, size_t i, size_t n)
{
    struct token t = { .kind = kind, .text = { l->p + i, n } };

    return add(l, &t, i);
}


/* Past "-}}" or "}}" at i, whichever stands there; 0 when neither does.  A
 * block tag's end eats the newline after it unless it is marked "+". */
static size_t
tag_end(const struct lexer *l, size_t i, const char *end, int is_block)
{
    char marked[4] = { '-', end[0], end[1], '\0' };

    if (at(l, i, marked)) {
        i += 3;

        return i + ttext_lead(l->p + i, l->n - i);
    }

    marked[0] = '+';

    if (is_block && at(l, i, marked)) {
        return i + 3;
    }

    if (at(l, i, end)) {
        return i + 2 + (is_block && at(l, i + 2, "\n"));
    }

    return 0;
}


/* The data before a tag at `tag`, from `from`; sign is the tag's mark. */
static int
add_data(struct lexer *l, size_t from, size_t tag, char sign, int is_var)
{
    size_t n = tag - from;

    if (sign == '-') {
        n -= ttext_trail(l->p + from, n);

    } else if (sign != '+' && !is_var) {
        const char *nl = n != 0 ? memrchr(l->p + from, '\n', n) : NULL;
        size_t      bol = nl != NULL ? (size_t) (nl - l->p) + 1 - from : 0;

        if ((bol > 0 || from == 0 || l->p[from - 1] == '\n')
            && ttext_lead(l->p + from + bol, n - bol) == n - bol)
        {
            n = bol;
        }
    }

    return n == 0 ? 0 : add_kind(l, TOKEN_DATA, from, n);
}


static char
sign_at(const struct lexer *l, size_t i)
{
    return i < l->n && (l->p[i] == '-' || l->p[i] == '+') ? l->p[i] : '\0';
}


/* {% raw %}, at i behind "{%" and its sign: the position after it, else 0. */
static size_t
raw_begin(const struct lexer *l, size_t i)
{
    i += ttext_lead(l->p + i, l->n - i);

    if (!at(l, i, "raw")) {
        return 0;
    }

    i += 3;
    i += ttext_lead(l->p + i, l->n - i);

    return tag_end(l, i, "%}", 0);
}


/* raw = text "{%" [sign] "endraw" "%}" */
static int
lex_raw(struct lexer *l)
{
    size_t from = l->i;

    for (size_t i = from; i < l->n; i++) {
        if (!at(l, i, "{%")) {
            continue;
        }

        char   sign = sign_at(l, i + 2);
        size_t k = i + 2 + (sign != '\0');

        k += ttext_lead(l->p + k, l->n - k);

        if (!at(l, k, "endraw")) {
            continue;
        }

        k += 6;
        k += ttext_lead(l->p + k, l->n - k);

        size_t end = tag_end(l, k, "%}", 1);

        if (end != 0) {
            l->i = end;
            return add_data(l, from, i, sign, 0);
        }
    }

    return refuse(l, from, "raw block without endraw");
}


/* comment = "{#" [sign] text "#}" */
static int
lex_comment(struct lexer *l, size_t from)
{
    for (size_t i = from; i < l->n; i++) {
        size_t end = tag_end(l, i, "#}", 1);

        if (end != 0) {
            l->i = end;
            return 0;
        }
    }

    return refuse(l, from - 2, "comment without its end");
}


/* Digits with single underscores between them: past them. */
static size_t
digits(const struct lexer *l, size_t i)
{
    while (i < l->n
           && (is_digit(l->p[i])
               || (l->p[i] == '_' && i + 1 < l->n && is_digit(l->p[i + 1]))))
    {
        i++;
    }

    return i;
}


/* float = digits ("." digits [exponent] | exponent), not right after a ".";
 * past it, or i where there is none */
static size_t
float_end(const struct lexer *l, size_t i)
{
    size_t end = i;
    size_t k = digits(l, i);

    if (i > 0 && l->p[i - 1] == '.') {
        return i;
    }

    if (k + 1 < l->n && l->p[k] == '.' && is_digit(l->p[k + 1])) {
        k = end = digits(l, k + 1);
    }

    if (k < l->n && (l->p[k] == 'e' || l->p[k] == 'E')) {
        k++;
        k += sign_at(l, k) != '\0';

        if (k < l->n && is_digit(l->p[k])) {
            end = digits(l, k);
        }
    }

    return end;
}


/* number = float | "0x" hex | "0o" octal | "0b" binary | decimal */
static int
lex_number(struct lexer *l)
{
    struct token t = { .kind = TOKEN_FLOAT };
    size_t       i = l->i;
    size_t       end = float_end(l, i);
    char         text[64];
    size_t       n = 0;
    int          base = 10;

    if (end == i) {
        t.kind = TOKEN_INT;
        end = digits(l, i);

        if (end == i + 1 && l->p[i] == '0' && end + 1 < l->n) {
            char mark = (char) (l->p[end] | 0x20);
            base = mark == 'x' ? 16 : mark == 'o' ? 8 : mark == 'b' ? 2 : 10;
        }

        if (base != 10) {
            i += 2;

            for (end = i; end < l->n && is_word(l->p[end]); end++) {
                /* strtoll judges */
            }

        } else if (l->p[i] == '0') {
            /* "007" is "0" and what follows, which no rule takes. */
            for (end = i + 1; end < l->n && l->p[end] == '0'; end++) {
                /* zeros may repeat */
            }
        }
    }

    t.text = (struct slice) { l->p + l->i, end - l->i };

    for (size_t k = i; k < end; k++) {
        if (n == sizeof(text) - 1) {
            return refuse(l, l->i, "number too long");
        }

        if (l->p[k] != '_') {
            text[n++] = l->p[k];
        }
    }

    char *rest = text;

    text[n] = '\0';
    errno = 0;

    if (t.kind == TOKEN_FLOAT) {
        t.f = strtod(text, &rest);

    } else {
        t.i = strtoll(text, &rest, base);

        if (errno == ERANGE) {
            return refuse(l, l->i, "integer does not fit in 64 bits");
        }
    }

    if (n == 0 || *rest != '\0') {
        return refuse(l, l->i, "malformed number");
    }

    size_t start = l->i;

    l->i = end;

    return add(l, &t, start);
}


/* count hex digits (or up to 3 octal ones) at i; -1 when they are not */
static int64_t
escape_point(const struct lexer *l, size_t i, size_t end, size_t count)
{
    int64_t c = 0;

    if (count > end - i) {
        return -1;
    }

    for (size_t k = i; k < i + count; k++) {
        char d = l->p[k];
        int  v = is_digit(d) ? d - '0'
                 : (d | 0x20) >= 'a' && (d | 0x20) <= 'f'
                     ? (d | 0x20) - 'a' + 10
                 : -1;

        if (v < 0) {
            return -1;
        }

        c = c * 16 + v;
    }

    return c > 0x10ffff || (c >= 0xd800 && c < 0xe000) ? -1 : c;
}


/*
 * One escape of Python's "unicode-escape" at i (behind the backslash); its
 * bytes go to *to, *n of them.  Past it, or 0: malformed.
 */
static size_t
escape(const struct lexer *l, size_t i, size_t end, char *to, size_t *n)
{
    static const char from[] = "\\'\"abfnrtv\n";
    static const char into[] = "\\'\"\a\b\f\n\r\t\v";
    const char       *k = l->p[i] != '\0' ? strchr(from, l->p[i]) : NULL;

    if (k != NULL) {
        *to = into[k - from];
        *n = *k != '\n';
        return i + 1;
    }

    if (l->p[i] >= '0' && l->p[i] <= '7') {
        uint32_t c = 0;
        size_t   last = i + 3 < end ? i + 3 : end;

        while (i < last && l->p[i] >= '0' && l->p[i] <= '7') {
            c = c * 8 + (uint32_t) (l->p[i++] - '0');
        }

        *n = ttext_encode(c, to);
        return i;
    }

    size_t count = l->p[i] == 'x' ? 2 : l->p[i] == 'u' ? 4
                   : l->p[i] == 'U' ? 8 : 0;

    if (count != 0) {
        int64_t c = escape_point(l, i + 1, end, count);

        if (c < 0) {
            return 0;
        }

        *n = ttext_encode((uint32_t) c, to);
        return i + 1 + count;
    }

    if (l->p[i] == 'N') {
        return 0;
    }

    *to = '\\';
    *n = 1;

    return i;
}


/* string = quote { char | "\" escape } quote */
static int
lex_string(struct lexer *l)
{
    size_t start = l->i;
    size_t end = start + 1;
    char   quote = l->p[start];

    while (end < l->n && l->p[end] != quote) {
        end += l->p[end] == '\\' ? 2 : 1;
    }

    if (end >= l->n) {
        return refuse(l, start, "string without its closing quote");
    }

    /* No escape is longer than what it is written as. */
    char *text = arena_alloc(&l->c->t->arena, end - start);
    size_t n = 0;

    if (text == NULL) {
        return refuse(l, start, "no memory");
    }

    for (size_t i = start + 1; i < end; ) {
        if (l->p[i] != '\\') {
            text[n++] = l->p[i++];
            continue;
        }

        size_t got = 0;
        size_t past = escape(l, i + 1, end, text + n, &got);

        if (past == 0) {
            return refuse(l, i, "malformed escape in a string");
        }

        n += got;
        i = past;
    }

    struct token t = { .kind = TOKEN_STR, .text = { text, n } };

    l->i = end + 1;

    return add(l, &t, start);
}


/* Keeps count of what is open: "}}" inside of {...} ends no tag. */
static int
lex_op(struct lexer *l)
{
    for (size_t k = 0; k < BASE_COUNT(ops); k++) {
        if (!at(l, l->i, ops[k].text)) {
            continue;
        }

        size_t      i = l->i;
        const char *pairs = "()[]{}";
        const char *b = strchr(pairs, ops[k].text[0]);

        l->i += strlen(ops[k].text);

        if (b != NULL && (b - pairs) % 2 == 0) {
            if (l->n_open == TEMPLATE_NEST_MAX) {
                return refuse(l, i, "nested deeper than 100");
            }

            l->open[l->n_open++] = b[1];

        } else if (b != NULL) {
            if (l->n_open == 0 || l->open[--l->n_open] != *b) {
                return refuse(l, i, "closing bracket that opens nowhere");
            }
        }

        return add_kind(l, ops[k].kind, i, l->i - i);
    }

    return refuse(l, l->i, "unexpected character");
}


/* tag = { name | number | string | operator } end */
static int
lex_tag(struct lexer *l, int is_block, size_t start)
{
    const char *end = is_block ? "%}" : "}}";

    l->n_open = 0;

    for ( ;; ) {
        size_t past = l->n_open == 0 ? tag_end(l, l->i, end, is_block) : 0;

        if (past != 0) {
            size_t i = l->i;

            l->i = past;
            return add_kind(l, is_block ? TOKEN_BLOCK_END : TOKEN_VAR_END, i,
                            2);
        }

        size_t blank = ttext_lead(l->p + l->i, l->n - l->i);

        l->i += blank;

        if (l->i >= l->n) {
            return refuse(l, start, "tag without its end");
        }

        if (blank != 0) {
            continue;
        }

        char c = l->p[l->i];
        int  rc;

        if (is_digit(c)) {
            rc = lex_number(l);

        } else if (is_word(c)) {
            size_t i = l->i;

            while (l->i < l->n && is_word(l->p[l->i])) {
                l->i++;
            }

            rc = add_kind(l, TOKEN_NAME, i, l->i - i);

        } else if (c == '"' || c == '\'') {
            rc = lex_string(l);

        } else {
            rc = lex_op(l);
        }

        if (rc != 0) {
            return -1;
        }
    }
}


/* What begins at the "{{", "{%" or "{#" at i, after the data before it. */
static int
lex_construct(struct lexer *l, size_t i)
{
    char   kind = l->p[i + 1];
    char   sign = sign_at(l, i + 2);
    size_t past = i + 2 + (sign != '\0');
    size_t raw = kind == '%' ? raw_begin(l, past) : 0;

    if (add_data(l, l->i, i, sign, kind == '{') != 0) {
        return -1;
    }

    if (raw != 0) {
        l->i = raw;
        return lex_raw(l);
    }

    if (kind == '#') {
        return lex_comment(l, past);
    }

    l->i = past;

    if (add_kind(l, kind == '%' ? TOKEN_BLOCK_BEGIN : TOKEN_VAR_BEGIN, i, 2)
        != 0)
    {
        return -1;
    }

    return lex_tag(l, kind == '%', i);
}


/* template = { data | raw | comment | tag } */
static int
lex_all(struct lexer *l)
{
    size_t i = l->i;

    while (i + 1 < l->n) {
        char k = l->p[i + 1];

        if (l->p[i] == '{' && (k == '{' || k == '%' || k == '#')) {
            if (lex_construct(l, i) != 0) {
                return -1;
            }

            i = l->i;

        } else {
            i++;
        }
    }

    if (l->i < l->n
        && add_kind(l, TOKEN_DATA, l->i, l->n - l->i) != 0)
    {
        return -1;
    }

    return add_kind(l, TOKEN_END, l->n, 0);
}


int
tlex_run(struct compile *c, const char *src, size_t n)
{
    struct lexer l = { .c = c, .line = 1, .column = 1 };
    char        *p = arena_alloc(&c->t->arena, n + 1);

    if (p == NULL) {
        return template_refuse(c, 1, 1, "no memory");
    }

    for (size_t i = 0; i < n; i++) {
        if (src[i] != '\r') {
            p[l.n++] = src[i];

        } else if (i + 1 == n || src[i + 1] != '\n') {
            p[l.n++] = '\n';
        }
    }

    l.n -= l.n > 0 && p[l.n - 1] == '\n';
    l.p = p;

    return lex_all(&l);
}
