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
#include "engine/template_func.c"
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


int
main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_units),
        cmocka_unit_test(test_models),
    };

    setenv("TZ", "UTC", 1);
    tzset();
    cmocka_set_message_output(CM_OUTPUT_TAP);

    return cmocka_run_group_tests(tests, NULL, NULL);
}
