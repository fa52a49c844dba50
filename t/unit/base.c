/* Tests of engine/base.c: errors are one line. */
#include "engine/base.c"

#include <setjmp.h>
#include <cmocka.h>


/* A token or a tensor's name that is quoted may be anything: a line end made
 * two lines of an error, which the log took for two. */
static void
errors_are_one_line(void **state)
{
    struct err e;

    (void) state;

    assert_int_equal(err_set(&e, "id %d has \"%s\"", 1, "a\n\r\t\x7f\x1b"), -1);
    assert_string_equal(e.text, "id 1 has \"a     \"");
    assert_int_equal(err_prefix(&e, "dir/\n%s", "x"), -1);
    assert_string_equal(e.text, "dir/ x: id 1 has \"a     \"");
}


static void
errors_are_cut_between_characters(void **state)
{
    static const char *const characters[] = {
        "x", "\xc3\xa9", "\xe6\xbc\xa2", "\xf0\x9f\x98\x80"
    };

    (void) state;

    for (size_t i = 0; i < BASE_COUNT(characters); i++) {
        for (size_t at = 0; at < 8; at++) {
            struct err e;
            char       text[1024] = "1234567";
            size_t     n = strlen(characters[i]);

            text[at < 7 ? at : 7] = '\0';

            while (strlen(text) < 700) {
                strcat(text, characters[i]);
            }

            err_set(&e, "%s", text);
            assert_true(strlen(e.text) > sizeof(e.text) - 1 - n);
            assert_true((strlen(e.text) - at) % n == 0);
            assert_memory_equal(e.text, text, strlen(e.text));

            err_prefix(&e, "%s", "model");
            assert_true((strlen(e.text) - 7 - at) % n == 0);
        }
    }
}


int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(errors_are_one_line),
        cmocka_unit_test(errors_are_cut_between_characters)
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);

    return cmocka_run_group_tests(tests, NULL, NULL);
}
