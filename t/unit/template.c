/*
 * template.c - the interpreter against Jinja2's own output: every model's
 * template over every conversation, and small cases of every construct (made
 * by t/tools/make_template_goldens.py).  Beside them: what is refused, where
 * errors point, every prefix, limits, template_find().
 *
 * The file with the clock is included with a clock that stands still.
 */
#include <time.h>


static time_t
fixed_time(time_t *out)
{
    (void) out;

    return 1783141567;          /* 2026-07-04 05:06:07 UTC */
}

#define time fixed_time
#include "engine/template/func.c"
#undef time

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "json_util.h"

static const struct template_limits roomy = { 50 * 1000 * 1000, 1 << 24 };


static json_t *
load(const char *name)
{
    char       path[200];
    struct err e;

    snprintf(path, sizeof(path), "t/data/template/%s", name);

    json_t *v = json_file(path, 16 << 20, &e);

    if (v == NULL) {
        fail_msg("%s", e.text);
    }

    return v;
}


/* One golden case; 1 when the outcome is another. */
static int
differs(const char *label, const char *src, size_t n, const json_t *vars,
        const json_t *golden)
{
    struct err       e = { .text = "" };
    struct buf       out = { 0 };
    struct template *t = template_compile(src, n, &e);
    const json_t    *expect = json_object_get(golden, "expect");
    const char      *raised = json_string_value(json_object_get(golden,
                                                                "raised"));
    int              rc = t != NULL
                          ? template_render(t, vars, &roomy, &out, &e) : -1;
    int              bad;

    if (expect != NULL) {
        bad = rc != 0 || out.n != json_string_length(expect)
              || memcmp(out.p, json_string_value(expect), out.n) != 0;

    } else if (raised != NULL) {
        size_t k = 0;

        /* The message on one line, as much of it as there is room for. */
        while (raised[k] != '\0' && k < 390
               && e.text[10 + k] == (raised[k] == '\n' ? ' ' : raised[k]))
        {
            k++;
        }

        bad = rc == 0 || strncmp(e.text, "template: ", 10) != 0
              || (raised[k] != '\0' && k < 390);

    } else {
        bad = rc == 0 || e.text[0] == '\0';
    }

    if (bad) {
        print_message("# %s\n#   template: %.300s\n#   expected: %.600s\n"
                      "#   got:      %.600s\n", label, src,
                      expect != NULL ? json_string_value(expect)
                      : raised != NULL ? raised : "an error",
                      rc == 0 ? out.p : e.text);
    }

    buf_free(&out);
    template_free(t);

    return bad;
}


static void
test_units(void **state)
{
    (void) state;

    json_t *cases = load("units.json");
    size_t  i;
    json_t *one;
    int     n_bad = 0;

    json_array_foreach(cases, i, one) {
        json_t *src = json_object_get(one, "template");
        char    label[40];

        snprintf(label, sizeof(label), "unit %zu", i);
        n_bad += differs(label, json_string_value(src),
                         json_string_length(src),
                         json_object_get(one, "vars"), one);
    }

    json_decref(cases);
    assert_int_equal(n_bad, 0);
}


static void
test_models(void **state)
{
    (void) state;

    json_t *cases = load("models.json");
    json_t *talks = load("conversations.json");
    size_t  i;
    json_t *one;
    int     n_bad = 0;

    json_array_foreach(cases, i, one) {
        const char *file = json_string_value(json_object_get(one, "file"));
        const char *name = json_string_value(json_object_get(one, "name"));
        char        path[200];
        struct buf  src = { 0 };
        struct err  e;

        snprintf(path, sizeof(path), "t/data/template/models/%s", file);

        if (file_read(path, 1 << 20, &src, &e) != 0) {
            fail_msg("%s", e.text);
        }

        snprintf(path, sizeof(path), "%s over %s", file, name);
        n_bad += differs(path, src.p, src.n, json_object_get(talks, name),
                         one);
        buf_free(&src);
    }

    json_decref(cases);
    json_decref(talks);
    assert_int_equal(n_bad, 0);
}


/* Renders src over {}: 0 or -1, and the error's text in e. */
static int
run(const char *src, size_t n, const struct template_limits *limits,
    struct buf *out, struct err *e)
{
    struct template *t = template_compile(src, n, e);
    json_t          *vars = json_object();
    int              rc = t != NULL ? template_render(t, vars, limits, out, e)
                                    : -2;

    json_decref(vars);
    template_free(t);

    return rc;
}


/* What errors say, and where: -2 from the compiler, -1 from the renderer. */
static void
test_errors(void **state)
{
    (void) state;

    static const struct {
        const char *src;
        int         rc;
        const char *text;
    } cases[] = {
        { "a\n  {% include 'x' %}", -2,
          "line 2, column 6: tag \"include\" is unknown or does not belong "
          "here" },
        { "{% import 'x' as y %}", -2,
          "line 1, column 4: tag \"import\" is unknown or does not belong "
          "here" },
        { "{% do x %}", -2,
          "line 1, column 4: tag \"do\" is unknown or does not belong here" },
        { "{% for x in y recursive %}", -2,
          "line 1, column 15: recursive loops are not supported" },
        { "{{ x|nope }}", -2, "line 1, column 6: no filter named \"nope\"" },
        { "{{ x is nope }}", -2, "line 1, column 9: no test named \"nope\"" },
        { "{% if x %}a", -2,
          "line 1, column 12: expected \"endif\" before the end" },
        { "{{ (1 }}", -2,
          "line 1, column 7: closing bracket that opens nowhere" },
        { "{{ (1", -2, "line 1, column 1: tag without its end" },
        { "{{ 1 + }}", -2,
          "line 1, column 8: expected an expression, got \"}}\"" },
        { "\xc3\xa4\xc3\xa4{{ $ }}", -2,
          "line 1, column 6: unexpected character" },
        { "{{ 99999999999999999999 }}", -2,
          "line 1, column 4: integer does not fit in 64 bits" },
        { "\xff", -2, "template is not UTF-8" },
        { "{% break %}", -2,
          "line 1, column 4: break or continue outside of a loop" },
        { "a\n{{ 'b' + 1 }}", -1,
          "line 2, column 4: str + int is not supported" },
        { "{{ x.y.z }}", -1, "line 1, column 4: 'x' is undefined" },
        { "{% for i in 5 %}{% endfor %}", -1,
          "line 1, column 4: a int cannot be walked" },
        { "{% macro f(a) %}\n{{ a / 0 }}{% endmacro %}{{ f(1) }}", -1,
          "line 2, column 4: division by zero" },
        { "{{ raise_exception('not\nso') }}", -1, "template: not so" },
        { "{{ 9223372036854775807 + 1 }}", -1,
          "line 1, column 4: integer does not fit in 64 bits" },
        { "{{ -9223372036854775807 - 1 - 1 }}", -1,
          "line 1, column 5: integer does not fit in 64 bits" },
        { "{{ (-9223372036854775807 - 1) // -1 }}", -1,
          "line 1, column 6: integer does not fit in 64 bits" },
    };

    for (size_t i = 0; i < BASE_COUNT(cases); i++) {
        struct err e = { .text = "" };
        struct buf out = { 0 };

        assert_int_equal(run(cases[i].src, strlen(cases[i].src), &roomy, &out,
                             &e), cases[i].rc);
        assert_string_equal(e.text, cases[i].text);
        assert_int_equal(out.n, 0);
        buf_free(&out);

        /* Nobody has to want to know. */
        assert_int_equal(run(cases[i].src, strlen(cases[i].src), &roomy, &out,
                             NULL), cases[i].rc);
    }
}


/* What never ends or never stops growing is stopped by the limit it meets. */
static void
test_limits(void **state)
{
    (void) state;

    static const struct template_limits small = { 100000, 1000 };
    static const struct template_limits wide = { 100000, 1 << 30 };
    static const struct {
        const char *src, *text;
    } cases[] = {
        { "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}"
          "{% endfor %}", "fuel" },
        { "{% for i in range(999) %}aaaaaaaaaa{% endfor %}",
          "text of more than 1000 bytes" },
        { "{% set x = 'a' * 1001 %}", "text of more than 1000 bytes" },
        { "{% set n = namespace(s='a') %}{% for i in range(40) %}"
          "{% set n.s = n.s + n.s %}{% endfor %}",
          "text of more than 1000 bytes" },
        { "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
          "nested deeper" },
        { "{% set l = [] %}{% set _ = l.append(l) %}{{ l }}", "too deep" },
        { "{% set l = [] %}{% set _ = l.append(l) %}{{ l == [l] }}",
          "too deep" },
        { "{% set l = [] %}{% set _ = l.append(l) %}{{ l|tojson }}",
          "nested deeper" },
        { "{% set n = namespace(l=[1]) %}{% for i in range(40) %}"
          "{% set n.l = n.l + n.l %}{% endfor %}", "fuel" },
        { "{% set n = namespace(l=[1]) %}{% for i in range(99) %}"
          "{% set n.l = n.l.append(n.l) %}{% endfor %}", "" },
        { "{{ range(999999999)|list }}", "fuel" },
        { "{{ 'a' * 999999999999 }}", "text of more than 1000 bytes" },
        { "{{ '' * 999999999999 }}{{ [] * 999999999999 }}{{ 1 + none }}",
          "not supported" },
        { "{{ [1] * 999999999999 }}", "fuel" },
        { "{{ 'a'|indent(99999) }}", "indentation" },
    };

    for (size_t i = 0; i < BASE_COUNT(cases); i++) {
        struct err e = { .text = "" };
        struct buf out = { 0 };

        assert_int_equal(run(cases[i].src, strlen(cases[i].src), &small, &out,
                             &e), -1);

        if (strstr(e.text, cases[i].text) == NULL) {
            fail_msg("%s: %s", cases[i].src, e.text);
        }

        /* With room for text the fuel ends what does not end itself. */
        e.text[0] = '\0';
        assert_true(run(cases[i].src, strlen(cases[i].src), &wide, &out, &e)
                    == (e.text[0] != '\0' ? -1 : 0));
        buf_free(&out);
    }
}


/* Deep nesting of every kind: refused or rendered, never the stack's end. */
static void
test_nesting(void **state)
{
    (void) state;

    static const struct {
        const char *open, *middle, *close;
    } cases[] = {
        { "(", "1", ")" }, { "[", "1", "]" }, { "{1:", "1", "}" },
        { "-", "1", "" }, { "not ", "1", "" }, { "range(", "1", ")" },
        { "1 if ", "1", " else 1" }, { "1 + ", "1", "" }, { "1 ~ ", "1", "" },
        { "1 and ", "1", "" }, { "", "x", ".x" }, { "", "x", "|list" },
        { "", "x", "()" }, { "", "1", " < 1" }, { "x[", "1", "]" },
        { "1 is eq ", "1", "" }, { "", "1", " if 1" },
        { "(1 + ", "1", ")" }, { "", "'a'", " 'a'" },
    };
    static const size_t depths[] = { 50, 99, 100, 199, 201, 5000 };

    for (size_t i = 0; i < BASE_COUNT(cases); i++) {
        for (size_t k = 0; k < BASE_COUNT(depths); k++) {
            struct buf src = { 0 };
            struct buf out = { 0 };
            struct err e = { .text = "" };

            assert_int_equal(buf_adds(&src, "{{ "), 0);

            for (size_t n = 0; n < depths[k]; n++) {
                assert_int_equal(buf_adds(&src, cases[i].open), 0);
            }

            assert_int_equal(buf_adds(&src, cases[i].middle), 0);

            for (size_t n = 0; n < depths[k]; n++) {
                assert_int_equal(buf_adds(&src, cases[i].close), 0);
            }

            assert_int_equal(buf_adds(&src, " }}"), 0);

            int rc = run(src.p, src.n, &roomy, &out, &e);

            assert_true(rc == 0 || e.text[0] != '\0');
            buf_free(&src);
            buf_free(&out);
        }
    }

    /* 90 brackets, each before a chain of 190: deeper than is evaluated. */
    struct buf src = { 0 };
    struct buf out = { 0 };
    struct err e = { .text = "" };

    assert_int_equal(buf_adds(&src, "{{ "), 0);

    for (int n = 0; n < 90; n++) {
        assert_int_equal(buf_adds(&src, "("), 0);
    }

    assert_int_equal(buf_adds(&src, "1"), 0);

    for (int n = 0; n < 90; n++) {
        for (int k = 0; k < 190; k++) {
            assert_int_equal(buf_adds(&src, "+1"), 0);
        }

        assert_int_equal(buf_adds(&src, ")"), 0);
    }

    assert_int_equal(buf_adds(&src, " }}"), 0);
    assert_int_equal(run(src.p, src.n, &roomy, &out, &e), -1);
    assert_non_null(strstr(e.text, "nested deeper than 800"));
    buf_free(&src);
    buf_free(&out);
}


/* Every prefix of a template compiles or says why, and reads nothing past its
 * end (ASan sees that the copy has no more bytes). */
static void
test_prefixes(void **state)
{
    (void) state;

    static const char *const files[] = {
        "Qwen-Qwen3-0.6B", "Kimi-K2-Thinking", "own-deepseek-r1"
    };

    for (size_t k = 0; k < BASE_COUNT(files); k++) {
        char       path[200];
        struct buf src = { 0 };
        struct err e;

        snprintf(path, sizeof(path), "t/data/template/models/%s.jinja",
                 files[k]);
        assert_int_equal(file_read(path, 1 << 20, &src, &e), 0);

        for (size_t n = 0; n < src.n; n++) {
            char *copy = malloc(n + 1);

            e.text[0] = '\0';
            memcpy(copy + 1, src.p, n);

            struct template *t = template_compile(copy + 1, n, &e);

            assert_true((t == NULL) == (e.text[0] != '\0'));
            template_free(t);
            free(copy);
        }

        buf_free(&src);
    }
}


static void
put_file(const char *dir, const char *name, const char *text)
{
    char path[200];

    snprintf(path, sizeof(path), "%s/%s", dir, name);

    if (text == NULL) {
        assert_int_equal(unlink(path), 0);
        return;
    }

    FILE *f = fopen(path, "w");

    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, strlen(text), f), strlen(text));
    assert_int_equal(fclose(f), 0);
}


static void
test_find(void **state)
{
    (void) state;

    static const struct {
        const char *config;
        int         rc;
        const char *text;
    } cases[] = {
        { "{\"chat_template\": \"a\\n\"}", 0, "a\n" },
        { "{\"chat_template\": \"a\",}", 0, "a" },
        { "{\"chat_template\": [{\"name\": \"rag\", \"template\": \"r\"}, "
          "{\"name\": \"default\", \"template\": \"d\"}]}", 0, "d" },
        { "{\"chat_template\": [{\"name\": \"rag\", \"template\": \"r\"}, 5]}",
          1, "" },
        { "{\"chat_template\": null}", 1, "" },
        { "{}", 1, "" },
        { "{\"chat_template\": 5}", -1, "expected a string" },
        { "{\"chat_template\": [{\"name\": \"default\", \"template\": 5}]}",
          -1, "expected a string" },
        { "{", -1, "line 1" },
    };
    char       dir[] = "/tmp/moe-template-XXXXXX";
    struct buf src = { 0 };
    struct err e;

    assert_non_null(mkdtemp(dir));
    assert_int_equal(template_find(dir, &src, &e), 1);

    for (size_t i = 0; i < BASE_COUNT(cases); i++) {
        put_file(dir, "tokenizer_config.json", cases[i].config);
        buf_reset(&src);
        assert_int_equal(template_find(dir, &src, &e), cases[i].rc);

        if (cases[i].rc == 0) {
            assert_string_equal(src.p, cases[i].text);

        } else if (cases[i].rc < 0) {
            assert_non_null(strstr(e.text, "tokenizer_config.json"));
            assert_non_null(strstr(e.text, cases[i].text));
        }
    }

    put_file(dir, "chat_template.jinja", "from a file\n");
    buf_reset(&src);
    assert_int_equal(template_find(dir, &src, &e), 0);
    assert_string_equal(src.p, "from a file\n");

    put_file(dir, "chat_template.jinja", NULL);
    put_file(dir, "tokenizer_config.json", NULL);
    assert_int_equal(rmdir(dir), 0);
    buf_free(&src);
}


/* The vars are read only, and one template serves many renderings. */
static void
test_reuse(void **state)
{
    (void) state;

    static const char src[] = "{% set _ = l.append(1) %}{{ l }}{{ d.a }}";
    struct err        e;
    struct template  *t = template_compile(src, sizeof(src) - 1, &e);
    json_t           *vars = json_pack("{s:[i], s:{s:s}}", "l", 0, "d", "a",
                                       "x");
    json_t           *before = json_deep_copy(vars);
    struct buf        out = { 0 };

    assert_non_null(t);

    for (int i = 0; i < 3; i++) {
        assert_int_equal(template_render(t, vars, &roomy, &out, &e), 0);
    }

    assert_string_equal(out.p, "[0, 1]x[0, 1]x[0, 1]x");
    assert_true(json_equal(vars, before));

    /* out is left alone by a rendering that fails in its middle. */
    struct template_limits tight = { 1000, 3 };

    assert_int_equal(template_render(t, vars, &tight, &out, &e), -1);
    assert_string_equal(out.p, "[0, 1]x[0, 1]x[0, 1]x");

    json_decref(vars);
    json_decref(before);
    template_free(t);
    buf_free(&out);
}


int
main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_units),
        cmocka_unit_test(test_models),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_nesting),
        cmocka_unit_test(test_prefixes),
        cmocka_unit_test(test_find),
        cmocka_unit_test(test_reuse),
    };

    setenv("TZ", "UTC", 1);
    tzset();
    cmocka_set_message_output(CM_OUTPUT_TAP);

    return cmocka_run_group_tests(tests, NULL, NULL);
}
