/*
 * template.c - the interface: compile, render, find; names, limits, errors.
 *
 * The subset of Jinja2 3.1, with Hugging Face's environment:
 *
 *   statements  if elif else, for (unpacking, "if", else; break, continue),
 *               set (names, tuples, ns.attr, block), macro, call, filter, raw,
 *               generation
 *   in loops    index index0 first last length revindex revindex0 previtem
 *               nextitem depth depth0
 *   operators   + - * / // % ** ~ == != < <= > >= in, not in, and, or, not,
 *               x if y else z, a.b, a[b], a[b:c:d], calls with named arguments
 *   filters     abs capitalize count d default dictsort first float from_json
 *               indent int items join last length list lower map reject
 *               rejectattr replace reverse safe select selectattr sort string
 *               title tojson trim unique upper
 *   tests       boolean callable defined divisibleby eq even false float ge gt
 *               in integer iterable le lower lt mapping ne none number odd
 *               sequence string true undefined upper, and their other names
 *   methods     of str: capitalize count endswith find isdigit join lower
 *               lstrip removeprefix removesuffix replace rfind rsplit rstrip
 *               split splitlines startswith strip title upper; of dict: get
 *               items keys values; of list: append pop
 *   functions   dict namespace raise_exception range strftime_now
 *
 * Anything else is refused at compilation, except what only a value can tell.
 * Where it differs from Jinja2: integers have 64 bits; range() and dict views
 * are lists; tojson takes what map() gives; upper and lower case cover Latin,
 * Greek, Cyrillic and Armenian.
 *
 * A template is hostile: sizes and nesting are limited when it is compiled,
 * and fuel, memory, depth and output when it is rendered.
 */
#include "template/template.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "json_util.h"
#include "template/impl.h"

#define COMPILED_MAX    ((size_t) 128 << 20)    /* bytes of nodes and text */
#define CONFIG_MAX      ((size_t) 64 << 20)     /* of a tokenizer_config.json */


int
template_refuse(struct compile *c, unsigned line, unsigned column,
                const char *fmt, ...)
{
    va_list    ap;
    struct err e;

    va_start(ap, fmt);
    vsnprintf(e.text, sizeof(e.text), fmt, ap);
    va_end(ap);

    /* What is quoted of the source may hold newlines. */
    for (char *s = e.text; *s != '\0'; s++) {
        if ((unsigned char) *s < 0x20) {
            *s = ' ';
        }
    }

    return err_set(c->err, "line %u, column %u: %s", line, column, e.text);
}


/* One struct for each name, so that names can be compared by address. */
const struct name *
template_name(struct compile *c, struct slice text)
{
    uint32_t h = 2166136261u;

    for (size_t i = 0; i < text.n; i++) {
        h = (h ^ (unsigned char) text.p[i]) * 16777619u;
    }

    struct name **bucket = &c->t->names[h % TEMPLATE_BUCKETS];

    for (struct name *k = *bucket; k != NULL; k = k->next) {
        if (k->text.n == text.n && memcmp(k->text.p, text.p, text.n) == 0) {
            return k;
        }
    }

    struct name *k = arena_alloc(&c->t->arena, sizeof(*k));

    if (k == NULL
        || (k->text.p = arena_dup(&c->t->arena, text.p, text.n)) == NULL)
    {
        template_refuse(c, c->at != NULL ? c->at->line : 1,
                        c->at != NULL ? c->at->column : 1, "no memory");
        return NULL;
    }

    k->text.n = text.n;
    k->next = *bucket;
    *bucket = k;

    return k;
}


static const struct name *
special(struct compile *c, const char *word)
{
    return template_name(c, (struct slice) { word, strlen(word) });
}


static int
compile(struct compile *c, const char *src, size_t n)
{
    if (n > TEMPLATE_SRC_MAX) {
        return err_set(c->err, "template too large: expected at most %d "
                       "bytes, got %zu", TEMPLATE_SRC_MAX, n);
    }

    if (!ttext_valid(src, n)) {
        return err_set(c->err, "template is not UTF-8");
    }

    c->t->arena.limit = COMPILED_MAX;
    c->t->loop = special(c, "loop");
    c->t->caller = special(c, "caller");
    c->t->varargs = special(c, "varargs");
    c->t->kwargs = special(c, "kwargs");

    if (c->t->loop == NULL || c->t->caller == NULL || c->t->varargs == NULL
        || c->t->kwargs == NULL || tlex_run(c, src, n) != 0)
    {
        return -1;
    }

    c->at = (const struct token *) (const void *) c->tokens.p;

    return tparse_run(c);
}


struct template *
template_compile(const char *src, size_t n, struct err *e)
{
    struct template *t = calloc(1, sizeof(*t));
    struct compile   c = { .t = t, .err = e };

    if (t == NULL) {
        err_set(e, "no memory for a template");
        return NULL;
    }

    int rc = compile(&c, src, n);

    buf_free(&c.tokens);

    if (rc != 0) {
        template_free(t);
        return NULL;
    }

    return t;
}


void
template_free(struct template *t)
{
    if (t != NULL) {
        arena_free(&t->arena);
        free(t);
    }
}


int
template_fail(struct render *r, const char *fmt, ...)
{
    va_list ap;

    if (r->err != NULL) {
        va_start(ap, fmt);
        vsnprintf(r->err->text, sizeof(r->err->text), fmt, ap);
        va_end(ap);

        for (char *s = r->err->text; *s != '\0'; s++) {
            if ((unsigned char) *s < 0x20) {
                *s = ' ';
            }
        }
    }

    return -1;
}


int
template_burn(struct render *r, size_t n)
{
    if (r->fuel < n) {
        r->fuel = 0;
        return template_fail(r, "the template ran out of fuel");
    }

    r->fuel -= n;

    return 0;
}


void *
template_alloc(struct render *r, size_t n)
{
    if (template_burn(r, n / 8) != 0) {
        return NULL;
    }

    void *p = arena_alloc(&r->arena, n);

    if (p == NULL) {
        template_fail(r, "the template ran out of memory");
    }

    return p;
}


int
template_put(struct render *r, struct buf *b, const void *p, size_t n)
{
    if (n > r->max_bytes || b->n > r->max_bytes - n) {
        return template_fail(r, "text of more than %zu bytes", r->max_bytes);
    }

    if (template_burn(r, n) != 0) {
        return -1;
    }

    return buf_add(b, p, n) == 0 ? 0 : template_fail(r, "no memory");
}


int
template_puts(struct render *r, struct buf *b, const char *s)
{
    return template_put(r, b, s, strlen(s));
}


int
template_take(struct render *r, struct buf *b, int rc, struct value *out)
{
    char *copy = NULL;

    if (rc == 0) {
        copy = template_alloc(r, b->n + 1);
        rc = copy != NULL ? 0 : -1;
    }

    if (rc == 0) {
        if (b->n != 0) {
            memcpy(copy, b->p, b->n);
        }

        *out = tvalue_str(copy, b->n);
    }

    buf_free(b);

    return rc;
}


int
template_render(const struct template *t, const json_t *vars,
                const struct template_limits *limits, struct buf *out,
                struct err *e)
{
    struct buf    text = { 0 };
    struct render r = {
        .t = t,
        .vars = vars,
        .arena.limit = TEMPLATE_HEAP_MAX,
        .out = &text,
        .max_bytes = limits->max_bytes,
        .fuel = limits->fuel,
        .err = e,
        .kept = json_array(),
    };
    struct scope  root = { .up = &r.globals };
    int           rc;

    r.scope = &root;
    rc = r.kept != NULL ? texec_run(&r, t->body) : err_set(e, "no memory");

    if (rc == 0 && buf_add(out, text.p, text.n) != 0) {
        rc = err_set(e, "no room for a prompt of %zu bytes", text.n);
    }

    buf_free(&text);
    arena_free(&r.arena);
    json_decref(r.kept);

    return rc;
}


/* The template in a tokenizer_config.json: a string, or a list of named ones
 * of which "default" is ours.  0, 1, -1 as template_find(). */
static int
find_in_config(const json_t *config, struct buf *src, struct err *e)
{
    const json_t *v = json_object_get(config, "chat_template");

    if (json_is_array(v)) {
        const json_t *list = v;

        v = NULL;

        for (size_t i = 0; i < json_array_size(list); i++) {
            const json_t *one = json_array_get(list, i);
            const char   *name = json_string_value(json_object_get(one,
                                                                   "name"));

            if (name != NULL && strcmp(name, "default") == 0) {
                v = json_object_get(one, "template");
            }
        }
    }

    if (v == NULL || json_is_null(v)) {
        return 1;
    }

    if (!json_is_string(v)) {
        return err_set(e, "\"chat_template\": expected a string, or a list "
                       "of {\"name\", \"template\"}");
    }

    return buf_add(src, json_string_value(v), json_string_length(v)) == 0
           ? 0 : err_set(e, "no memory");
}


int
template_find(const char *dir, struct buf *src, struct err *e)
{
    char    path[4096];
    int     n = snprintf(path, sizeof(path), "%s/chat_template.jinja", dir);
    json_t *config;
    int     rc;

    if (n < 0 || (size_t) n >= sizeof(path) - 8) {
        return err_set(e, "%.100s...: path too long", dir);
    }

    if (access(path, F_OK) == 0) {
        return file_read(path, TEMPLATE_SRC_MAX, src, e);
    }

    snprintf(path, sizeof(path), "%s/tokenizer_config.json", dir);

    if (access(path, F_OK) != 0) {
        return 1;
    }

    if ((config = json_file(path, CONFIG_MAX, e)) == NULL) {
        return -1;
    }

    rc = find_in_config(config, src, e);
    json_decref(config);

    return rc < 0 ? err_prefix(e, "%s", path) : rc;
}
