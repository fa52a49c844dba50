/*
 * pattern.c - see pattern.h.
 *
 * In: a pattern in Oniguruma's Ruby syntax, as Hugging Face's tokenizers run
 * it.  Out: the same language in PCRE2's syntax.  The translator reads the
 * pattern once; what means the same in both is copied, what does not is
 * rewritten:
 *
 *   \s \S       White_Space.  (PCRE2's \s has U+180E besides.)
 *   \w \W \b    Alphabetic, M, Nd, Pc.  (PCRE2's has no marks.)
 *   \d \h \v    Nd, a hexadecimal digit, the vertical tab
 *   \p{Han}     sc:Han; bare names are Script_Extensions in PCRE2
 *   {,n}        {0,n}
 *
 * and what can not be rewritten by a local rule is refused: nested classes and
 * &&, POSIX brackets, {n}+ (stacked, not possessive), back references, (?m),
 * (?i) in the middle, and case-blind text that folds to several characters.
 */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "tokenizer/pattern.h"
#include "unicode/unicode.h"

#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#define WORD    "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"
#define HEX     "0-9A-Fa-f"

/* Categories are those of Oniguruma's Unicode version: see unicode_stand_in().
 *
 * No search of the known families' patterns comes near: they have no nested
 * repeats.  It bounds what a hostile pattern may cost at one position. */
#define MATCH_LIMIT     20000000

struct pattern {
    pcre2_code *code;
    int         is_literal;
};

struct pattern_work {
    pcre2_match_data    *data;
    pcre2_match_context *context;
    pcre2_jit_stack     *stack;
};

struct reader {
    const char *p, *start, *end;
    int         depth;          /* of groups */
    int         blind;          /* (?i: depth of its group + 1; 0: none */
    char        last;           /* literal before, in lower case; 0: none */
    struct buf  out;
    struct err *e;
};


static int
refuse(const struct reader *r, const char *what)
{
    return err_set(r->e, "pattern, byte %zu: %s is not supported",
                   (size_t) (r->p - r->start), what);
}


static int
copy(struct reader *r, size_t n)
{
    int rc = buf_add(&r->out, r->p, n);

    r->p += n;

    return rc == 0 ? 0 : err_set(r->e, "no memory for a pattern");
}


static int
put(struct reader *r, size_t skip, const char *s)
{
    r->p += skip;

    return buf_adds(&r->out, s) == 0
           ? 0 : err_set(r->e, "no memory for a pattern");
}


static int
is_one_of(const char *const *names, const char *p, size_t n)
{
    for ( ; *names != NULL; names++) {
        if (strlen(*names) == n && memcmp(*names, p, n) == 0) {
            return 1;
        }
    }

    return 0;
}


/* \p{NAME} | \p{^NAME} | \P{NAME}: categories and binary properties are the
 * same in both; other names are scripts, or PCRE2 will not know them. */
static int
read_property(struct reader *r)
{
    static const char *const same[] = {
        "Any", "Alphabetic", "Alpha", "Uppercase", "Upper", "Lowercase",
        "Lower", "White_Space", "Space", "ASCII", "Emoji",
        "Extended_Pictographic", "Emoji_Presentation", "Emoji_Modifier", NULL
    };

    int         negated = r->p[1] == 'P';
    const char *name = r->p + 3;
    const char *end = memchr(r->p, '}', (size_t) (r->end - r->p));

    if (end == NULL || r->end - r->p < 5 || r->p[2] != '{') {
        return refuse(r, "\\p without {NAME}");
    }

    if (*name == '^') {
        name++;
        negated = !negated;
    }

    size_t n = (size_t) (end - name);

    if (n == 0 || n > 40) {
        return refuse(r, "a property of this name");
    }

    int is_same = n <= 2 || is_one_of(same, name, n);

    if (buf_addf(&r->out, "\\%c{%s%.*s}", negated ? 'P' : 'p',
                 is_same ? "" : "sc:", (int) n, name)
        != 0)
    {
        return err_set(r->e, "no memory for a pattern");
    }

    r->p = end + 1;

    return 0;
}


/* \uHHHH | \xHH | \x{H...} */
static int
read_code(struct reader *r)
{
    const char *hex = r->p + 2;
    size_t      n = r->p[1] == 'u' ? 4 : 2;
    size_t      tail = 0;

    if (r->p[1] == 'x' && hex < r->end && *hex == '{') {
        hex++;
        n = strspn(hex, "0123456789abcdefABCDEF");
        tail = 1;
    }

    char text[8] = "";

    if (n == 0 || n > 6 || (size_t) (r->end - hex) < n + tail
        || (tail && hex[n] != '}')
        || memcpy(text, hex, n) == NULL
        || strspn(text, "0123456789abcdefABCDEF") != n)
    {
        return refuse(r, "this form of \\x or \\u");
    }

    if (n == 2 && tail == 0 && strtoul(text, NULL, 16) > 0x7f) {
        return refuse(r, "\\x of a byte above 7F");
    }

    r->p = hex + n + tail;

    return buf_addf(&r->out, "\\x{%s}", text) == 0
           ? 0 : err_set(r->e, "no memory for a pattern");
}


/* What begins with a backslash, in a class or not. */
static int
read_escape(struct reader *r, int in_class)
{
    if (r->end - r->p < 2) {
        return refuse(r, "a backslash at the end");
    }

    char c = r->p[1];

    switch (c) {

    case 's':
        return put(r, 2, "\\p{White_Space}");

    case 'S':
        return put(r, 2, "\\P{White_Space}");

    case 'd':
        return put(r, 2, "\\p{Nd}");

    case 'D':
        return put(r, 2, "\\P{Nd}");

    case 'w':
        return put(r, 2, in_class ? WORD : "[" WORD "]");

    case 'h':
        return put(r, 2, in_class ? HEX : "[" HEX "]");

    case 'v':
        return put(r, 2, "\\x{0b}");

    case 'p':
    case 'P':
        return read_property(r);

    case 'u':
    case 'x':
        return read_code(r);

    case 'n': case 'r': case 't': case 'f': case 'a': case 'e':
        return copy(r, 2);

    case 'b':
        return put(r, 2, in_class ? "\\x{08}"
                   : "(?:(?<=[" WORD "])(?![" WORD "])"
                     "|(?<![" WORD "])(?=[" WORD "]))");
    }

    if (!in_class) {
        switch (c) {

        case 'W':
            return put(r, 2, "[^" WORD "]");

        case 'H':
            return put(r, 2, "[^" HEX "]");

        case 'A': case 'z': case 'Z':
            return copy(r, 2);
        }
    }

    if ((c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z')
        || (c >= 'a' && c <= 'z') || (unsigned char) c > 0x7f)
    {
        char name[] = "\\?";

        name[1] = (char) ((unsigned char) c > 0x7f ? '?' : c);

        return refuse(r, name);
    }

    return copy(r, 2);
}


/* Case-blind, Oniguruma folds ss to U+00DF, ff, fi, fl, st to ligatures; other
 * such foldings have a character outside ASCII. */
static int
read_literal(struct reader *r)
{
    char c = *r->p;
    char low = (char) (c >= 'A' && c <= 'Z' ? c + 32 : c);

    if (r->blind != 0) {
        char        pair[3] = { r->last, low, '\0' };
        const char *folds[] = { "ss", "ff", "fi", "fl", "st" };

        if ((unsigned char) c > 0x7f) {
            return refuse(r, "(?i) with text outside ASCII");
        }

        for (size_t i = 0; i < BASE_COUNT(folds); i++) {
            if (strcmp(pair, folds[i]) == 0) {
                return refuse(r, "(?i) with ss, ff, fi, fl or st");
            }
        }
    }

    r->last = low;

    return copy(r, 1);
}


/* [ ^? ( escape | character | - )+ ] */
static int
read_class(struct reader *r)
{
    if (copy(r, r->end - r->p > 1 && r->p[1] == '^' ? 2 : 1) != 0) {
        return -1;
    }

    if (r->p < r->end && *r->p == ']') {
        return refuse(r, "] as the first of a class");
    }

    while (r->p < r->end && *r->p != ']') {
        int rc;

        if (*r->p == '[') {
            return refuse(r, "a class in a class");
        }

        if (*r->p == '&' && r->end - r->p > 1 && r->p[1] == '&') {
            return refuse(r, "&&");
        }

        r->last = 0;
        rc = *r->p == '\\' ? read_escape(r, 1) : read_literal(r);
        if (rc != 0) {
            return -1;
        }
    }

    if (r->p == r->end) {
        return refuse(r, "a class without ]");
    }

    return copy(r, 1);
}


/* ( | (?: | (?= | (?! | (?> | (?<= | (?<! | (?i: | (?i) | (?-i: */
static int
read_group(struct reader *r)
{
    static const char *const same[] = {
        "(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!"
    };

    size_t left = (size_t) (r->end - r->p);

    r->depth++;

    if (left < 2 || r->p[1] != '?') {
        return left > 1 && r->p[1] == '*' ? refuse(r, "(*") : copy(r, 1);
    }

    for (size_t i = 0; i < BASE_COUNT(same); i++) {
        size_t n = strlen(same[i]);

        if (left >= n && memcmp(r->p, same[i], n) == 0) {
            return copy(r, n);
        }
    }

    if (left >= 4 && memcmp(r->p, "(?i:", 4) == 0) {
        r->blind = r->blind != 0 ? r->blind : r->depth;
        return copy(r, 4);
    }

    if (r->p == r->start && left >= 4 && memcmp(r->p, "(?i)", 4) == 0) {
        r->depth--;
        r->blind = -1;          /* to the end */
        return copy(r, 4);
    }

    return refuse(r, "this kind of (? group");
}


/* {n} | {n,} | {,m} | {n,m}; else { is itself. */
static int
read_interval(struct reader *r)
{
    const char *p = r->p + 1;
    const char *digits = "0123456789";
    size_t      n_from = strspn(p, digits);
    size_t      comma = p[n_from] == ',';
    size_t      n_to = comma ? strspn(p + n_from + 1, digits) : 0;
    size_t      n = n_from + comma + n_to;

    if (p[n] != '}' || n_from + n_to == 0) {
        return put(r, 1, "\\{");
    }

    char next = p[n + 1];

    if (next == '+' || next == '*' || next == '{' || (next == '?' && !comma)) {
        return refuse(r, "a repeat of a repeat");
    }

    if (n_from == 0) {
        return put(r, 1, "{0") != 0 ? -1 : copy(r, n + 1);
    }

    return copy(r, n + 2);
}


static int
read_all(struct reader *r)
{
    while (r->p < r->end) {
        int  rc;
        char last = r->last;

        r->last = 0;

        switch (*r->p) {

        case '\\':
            rc = read_escape(r, 0);
            break;

        case '[':
            rc = read_class(r);
            r->last = 0;
            break;

        case '(':
            rc = read_group(r);
            break;

        case ')':
            if (r->blind == r->depth) {
                r->blind = 0;
            }

            r->depth--;
            rc = copy(r, 1);
            break;

        case '{':
            rc = read_interval(r);
            break;

        case '\0':
            rc = refuse(r, "a NUL byte");
            break;

        case '|': case '*': case '+': case '?': case '^': case '$': case '.':
            rc = copy(r, 1);
            break;

        default:
            r->last = last;
            rc = read_literal(r);
        }

        if (rc != 0) {
            return -1;
        }
    }

    return 0;
}


static struct pattern *
compile(const char *text, size_t n, uint32_t options, struct err *e)
{
    int                    code;
    size_t                 at;
    pcre2_compile_context *ctx = pcre2_compile_context_create(NULL);
    struct pattern        *p = calloc(1, sizeof(*p));

    if (p == NULL || ctx == NULL) {
        err_set(e, "no memory for a pattern");
        goto done;
    }

    pcre2_set_newline(ctx, PCRE2_NEWLINE_LF);

    p->code = pcre2_compile((PCRE2_SPTR) text, n,
                            PCRE2_UTF | options, &code, &at, ctx);

    if (p->code == NULL) {
        char why[128] = "";

        pcre2_get_error_message(code, (PCRE2_UCHAR *) why, sizeof(why));
        err_set(e, "pattern, byte %zu of its translation: %s", at, why);
        goto done;
    }

    /* Without JIT it is slower, no less right. */
    (void) pcre2_jit_compile(p->code, PCRE2_JIT_COMPLETE);
    p->is_literal = (options & PCRE2_LITERAL) != 0;

done:

    pcre2_compile_context_free(ctx);

    if (p != NULL && p->code == NULL) {
        free(p);
        p = NULL;
    }

    return p;
}


struct pattern *
pattern_onig(const char *text, size_t n, struct err *e)
{
    struct pattern *p = NULL;
    struct buf      in = { 0 };
    struct reader   r = { .e = e };

    if (n > PATTERN_MAX) {
        err_set(e, "pattern of %zu bytes, at most %d", n, PATTERN_MAX);
        return NULL;
    }

    /* a copy with a NUL behind it, so that looking ahead is safe */
    if (buf_add(&in, text, n) != 0) {
        err_set(e, "no memory for a pattern");
        return NULL;
    }

    r.p = r.start = in.p;
    r.end = in.p + n;

    if (read_all(&r) == 0 && buf_reserve(&r.out, 0) == 0) {
        p = compile(r.out.p, r.out.n,
                    PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, e);
    }

    buf_free(&in);
    buf_free(&r.out);

    return p;
}


struct pattern *
pattern_literal(const char *text, size_t n, struct err *e)
{
    if (n > PATTERN_MAX) {
        err_set(e, "pattern of %zu bytes, at most %d", n, PATTERN_MAX);
        return NULL;
    }

    return compile(text, n, PCRE2_LITERAL, e);
}


void
pattern_free(struct pattern *p)
{
    if (p != NULL) {
        pcre2_code_free(p->code);
        free(p);
    }
}


struct pattern_work *
pattern_work_new(void)
{
    struct pattern_work *w = calloc(1, sizeof(*w));

    if (w == NULL) {
        return NULL;
    }

    w->data = pcre2_match_data_create(1, NULL);
    w->context = pcre2_match_context_create(NULL);
    w->stack = pcre2_jit_stack_create(32 * 1024, 4 * 1024 * 1024, NULL);

    if (w->data == NULL || w->context == NULL) {
        pattern_work_free(w);
        return NULL;
    }

    pcre2_set_match_limit(w->context, MATCH_LIMIT);

    /* no JIT on this machine: no stack for it, and none needed */
    if (w->stack != NULL) {
        pcre2_jit_stack_assign(w->context, NULL, w->stack);
    }

    return w;
}


void
pattern_work_free(struct pattern_work *w)
{
    if (w != NULL) {
        pcre2_match_data_free(w->data);
        pcre2_match_context_free(w->context);
        pcre2_jit_stack_free(w->stack);
        free(w);
    }
}


int
pattern_start(struct pattern_iter *it, const struct pattern *p,
              struct pattern_work *w, const char *text, size_t n)
{
    *it = (struct pattern_iter) {
        .pattern = p, .work = w, .text = text, .n = n, .last = SIZE_MAX
    };

    if (p->is_literal) {
        return 0;
    }

    int rc = unicode_stand_in(text, n, &it->other);

    if (rc == 1) {
        it->text = it->other.p;
    }

    return rc < 0 ? -1 : 0;
}


void
pattern_stop(struct pattern_iter *it)
{
    buf_free(&it->other);
}


int
pattern_next(struct pattern_iter *it, size_t *from, size_t *to, struct err *e)
{
    while (it->at <= it->n) {
        int rc = pcre2_match(it->pattern->code, (PCRE2_SPTR) it->text, it->n,
                             it->at, PCRE2_NO_UTF_CHECK, it->work->data,
                             it->work->context);

        if (rc == PCRE2_ERROR_NOMATCH) {
            it->at = it->n + 1;
            return 0;
        }

        if (rc < 0) {
            char why[128] = "";

            pcre2_get_error_message(rc, (PCRE2_UCHAR *) why, sizeof(why));
            return err_set(e, "pattern, text of %zu bytes at %zu: %s", it->n,
                           it->at, why);
        }

        const PCRE2_SIZE *v = pcre2_get_ovector_pointer(it->work->data);

        /* rc = 0 only says that groups did not fit */
        if (v[0] == v[1] && v[1] == it->last) {
            it->at++;

            while (it->at < it->n && (it->text[it->at] & 0xc0) == 0x80) {
                it->at++;
            }

            continue;
        }

        *from = v[0];
        *to = v[1];
        it->at = it->last = v[1];

        return 1;
    }

    return 0;
}
