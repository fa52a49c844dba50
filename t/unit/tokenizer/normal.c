/* Tests of engine/tokenizer/normal.c: what a file may make of a text. */
#include "engine/tokenizer/normal.c"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>


static struct normal_step
replace_with(const char *from, const char *to)
{
    return (struct normal_step) {
        .kind = NORMAL_REPLACE, .pattern = pattern_literal(from, 1, NULL),
        .text = strdup(to), .n = strlen(to)
    };
}


static int
run(const struct normal *t, const char *text, struct buf *got, struct err *e)
{
    struct pattern_work *w = pattern_work_new();
    struct buf           two[2] = { { 0 }, { 0 } };
    struct slice         out = { NULL, 0 };
    int                  rc = normal_run(t, w, two,
                                         (struct slice) { text, strlen(text) },
                                         &out, e);

    if (rc == 0) {
        assert_int_equal(buf_add(got, out.p, out.n), 0);
    }

    pattern_work_free(w);
    buf_free(&two[0]);
    buf_free(&two[1]);

    return rc;
}


/* Sixteen steps that each make four of one made 4 GiB of a byte. */
static void
growth_is_bounded(void **state)
{
    struct normal t = { .n = 0 };
    struct buf    got = { 0 };
    struct err    e = { "" };

    (void) state;

    while (t.n < NORMAL_STEPS) {
        t.steps[t.n++] = replace_with("a", "aaaa");
    }

    assert_int_equal(run(&t, "a", &got, &e), -1);
    assert_non_null(strstr(e.text, "normalizer, at most 65600 bytes"));

    normal_free(&t);
    buf_free(&got);
}


/* What real files do stays within the bound. */
static void
real_growth_is_allowed(void **state)
{
    static const char ligature[] = "\xef\xb7\xba";      /* U+FDFA: 18 letters */
    struct normal     t = { .n = 0 };
    struct buf        text = { 0 }, got = { 0 };
    struct err        e = { "" };

    (void) state;
    t.steps[t.n++] = (struct normal_step) { .kind = NORMAL_NFKD };
    t.steps[t.n++] = replace_with(" ", "\xe2\x96\x81");

    for (int i = 0; i < 50000; i++) {
        buf_add(&text, ligature, 3);
    }

    assert_int_equal(run(&t, text.p, &got, &e), 0);
    assert_int_equal(got.n, 50000 * (2 * 15 + 3 * 3));

    normal_free(&t);
    buf_free(&text);
    buf_free(&got);
}


int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(growth_is_bounded),
        cmocka_unit_test(real_growth_is_allowed)
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);

    return cmocka_run_group_tests(tests, NULL, NULL);
}
