/*
 * json_util.c - strict and lenient parsing, where errors point, the depth
 * limit, every prefix of a document, and typed members.
 */
#include "engine/json_util.c"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <unistd.h>

#include <cmocka.h>


/* Both modes on one text; want is 's' for strict, 'l' for lenient only, '-'
 * for neither. */
static void
check(const char *text, size_t n, char want)
{
    struct err e = { .text = "untouched" };
    json_t    *strict = json_parse(text, n, &e);

    if ((strict != NULL) != (want == 's')) {
        fail_msg("strict: %.*s: %s", (int) n, text, e.text);
    }

    json_t *lenient = json_parse_lenient(text, n, &e);

    if ((lenient != NULL) != (want != '-')) {
        fail_msg("lenient: %.*s: %s", (int) n, text, e.text);
    }

    if (strict != NULL) {
        assert_true(json_equal(strict, lenient));
    }

    if (lenient == NULL) {
        assert_int_equal(strncmp(e.text, "line ", 5), 0);
        assert_null(strchr(e.text, '\n'));
    }

    json_decref(strict);
    json_decref(lenient);
}


static void
test_modes(void **state)
{
    (void) state;

    static const struct {
        const char *text;
        char        want;
    } cases[] = {
        { "1", 's' }, { "\"a\"", 's' }, { "null", 's' }, { " [] ", 's' },
        { "{\"a\":[1,2,{\"b\":null}]}", 's' },
        { "\"\\u0000\"", 's' }, { "\"\\ud83d\\ude00\"", 's' },
        { "[1,]", 'l' }, { "{\"a\":1,}", 'l' }, { "[1 , \n ]", 'l' },
        { "[[1,],]", 'l' }, { "{\"a\":{\"b\":\"c\",},}", 'l' },
        { "[\",]\",]", 'l' }, { "[\"\\\",]\"]", 's' },
        { "[,]", '-' }, { "[1,,]", '-' }, { "{,}", '-' },
        { "{\"a\":,}", '-' }, { "[,1]", '-' }, { "1,", '-' },
        { "", '-' }, { " ", '-' }, { "[", '-' }, { "]", '-' },
        { "\"", '-' }, { "\"\\", '-' }, { "[1] 2", '-' }, { "nul", '-' },
        { "01", '-' }, { "[1}", '-' }, { "'a'", '-' }, { "\"\n\"", '-' },
        { "\"\xff\"", '-' }, { "99999999999999999999", 'l' },
        { "1e999", '-' },
    };

    for (size_t i = 0; i < BASE_COUNT(cases); i++) {
        check(cases[i].text, strlen(cases[i].text), cases[i].want);
    }

    check(NULL, 0, '-');
    check("1\0", 2, '-');
}


/* A document cut anywhere is refused, and what follows it is not read. */
static void
test_prefixes(void **state)
{
    (void) state;

    static const char text[] =
        "{\"a\":[1,2.5,\"x\\u00e9\\n\",],\"b\":{\"c\":true,},\"d\":null,}";

    for (size_t n = 0; n < sizeof(text) - 1; n++) {
        char *copy = malloc(n + 1);

        memcpy(copy, text, n);
        copy[n] = ']';
        check(copy, n, '-');
        free(copy);
    }

    check(text, sizeof(text) - 1, 'l');
}


static void
test_where(void **state)
{
    (void) state;

    struct err e;

    assert_null(json_parse("{\n  \"a\": 1,\n  oops\n}", 19, &e));
    assert_int_equal(strncmp(e.text, "line 3, column ", 15), 0);

    char deep[200];

    memset(deep, '[', sizeof(deep));
    deep[0] = '\n';
    assert_null(json_parse(deep, sizeof(deep), &e));
    assert_string_equal(e.text, "line 2, column 65: nested deeper than 64");

    memset(deep, '[', 64);
    memset(deep + 64, ']', 64);
    check(deep, 128, 's');
}


static void
test_file(void **state)
{
    (void) state;

    char       path[] = "/tmp/moe-json-XXXXXX";
    int        fd = mkstemp(path);
    struct err e;

    assert_true(fd >= 0);
    assert_int_equal(write(fd, "[1,]", 4), 4);

    json_t *v = json_file(path, 4, &e);

    assert_non_null(v);
    json_decref(v);
    assert_null(json_file(path, 3, &e));
    assert_non_null(strstr(e.text, "at most 3 bytes, got 4"));
    assert_int_equal(write(fd, "x", 1), 1);
    assert_null(json_file(path, 10, &e));
    assert_int_equal(strncmp(e.text, path, strlen(path)), 0);
    close(fd);
    unlink(path);
    assert_null(json_file(path, 10, &e));
}


static void
test_int(void **state)
{
    (void) state;

    json_t *o = json_loads("{\"i\":7,\"f\":32.0,\"h\":1.5,\"s\":\"a\","
                           "\"n\":null,"
                           "\"big\":1e300,\"m\":-9223372036854775808,"
                           "\"e\":9.2233720368547758e18}", 0, NULL);
    struct err e;
    int64_t    i = 42;

    assert_int_equal(json_get_int(o, "none", 0, 9, &i, &e), 0);
    assert_int_equal(json_get_int(o, "n", 0, 9, &i, &e), 0);
    assert_int_equal(i, 42);
    assert_int_equal(json_get_int(o, "i", 7, 7, &i, &e), 1);
    assert_int_equal(i, 7);
    assert_int_equal(json_get_int(o, "f", 0, 99, &i, &e), 1);
    assert_int_equal(i, 32);
    assert_int_equal(json_get_int(o, "m", INT64_MIN, 0, &i, &e), 1);
    assert_true(i == INT64_MIN);
    i = 5;
    assert_int_equal(json_get_int(o, "i", 8, 9, &i, &e), -1);
    assert_string_equal(e.text, "\"i\": expected an integer from 8 to 9, "
                                "got 7");
    assert_int_equal(json_get_int(o, "h", 0, 9, &i, &e), -1);
    assert_int_equal(json_get_int(o, "s", 0, 9, &i, &e), -1);
    assert_int_equal(json_get_int(o, "big", INT64_MIN, INT64_MAX, &i, &e),
                     -1);
    assert_int_equal(json_get_int(o, "e", INT64_MIN, INT64_MAX, &i, &e), -1);
    assert_int_equal(i, 5);
    json_decref(o);
}


static void
test_others(void **state)
{
    (void) state;

    json_t *o = json_loads("{\"i\":7,\"h\":1.5,\"t\":true,\"s\":\"a\\u0000b\","
                           "\"o\":{},\"a\":[],\"n\":null}",
                           JSON_ALLOW_NUL, NULL);
    struct err   e;
    double       d = 9;
    int          b = 9;
    struct slice s = { "x", 1 };
    json_t      *v = NULL;

    assert_int_equal(json_get_num(o, "n", &d, &e), 0);
    assert_int_equal(json_get_num(o, "i", &d, &e), 1);
    assert_true(d == 7);
    assert_int_equal(json_get_num(o, "h", &d, &e), 1);
    assert_true(d == 1.5);
    assert_int_equal(json_get_num(o, "t", &d, &e), -1);

    assert_int_equal(json_get_bool(o, "n", &b, &e), 0);
    assert_int_equal(json_get_bool(o, "t", &b, &e), 1);
    assert_int_equal(b, 1);
    assert_int_equal(json_get_bool(o, "i", &b, &e), -1);
    assert_string_equal(e.text, "\"i\": expected true or false, got 7");

    assert_int_equal(json_get_str(o, "n", &s, &e), 0);
    assert_int_equal(json_get_str(o, "s", &s, &e), 1);
    assert_int_equal(s.n, 3);
    assert_memory_equal(s.p, "a\0b", 4);
    assert_int_equal(json_get_str(o, "o", &s, &e), -1);

    assert_int_equal(json_get_obj(o, "n", &v, &e), 0);
    assert_int_equal(json_get_obj(o, "a", &v, &e), -1);
    assert_null(v);
    assert_int_equal(json_get_obj(o, "o", &v, &e), 1);
    assert_ptr_equal(v, json_object_get(o, "o"));

    assert_int_equal(json_get_arr(o, "n", &v, &e), 0);
    assert_int_equal(json_get_arr(o, "o", &v, &e), -1);
    assert_int_equal(json_get_arr(o, "a", &v, &e), 1);
    assert_ptr_equal(v, json_object_get(o, "a"));
    json_decref(o);
}


int
main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_modes),
        cmocka_unit_test(test_prefixes),
        cmocka_unit_test(test_where),
        cmocka_unit_test(test_file),
        cmocka_unit_test(test_int),
        cmocka_unit_test(test_others),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);

    return cmocka_run_group_tests(tests, NULL, NULL);
}
