/* engine/unicode/unicode.c and form.c: UTF-8, and every character's forms. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "engine/unicode/unicode.c"
#include "engine/unicode/form.c"


/* Tables 3-8 to 3-11 of the standard, and the ends of each range. */
static const struct {
    const char *text;
    int         len;            /* of unicode_decode */
    uint32_t    cp;
    const char *lossy;
} sequences[] = {
    { "A", 1, 'A', "A" },
    { "\x7f", 1, 0x7f, "\x7f" },
    { "\xc2\x80", 2, 0x80, "\xc2\x80" },
    { "\xdf\xbf", 2, 0x7ff, "\xdf\xbf" },
    { "\xe0\xa0\x80", 3, 0x800, "\xe0\xa0\x80" },
    { "\xed\x9f\xbf", 3, 0xd7ff, "\xed\x9f\xbf" },
    { "\xee\x80\x80", 3, 0xe000, "\xee\x80\x80" },
    { "\xef\xbf\xbf", 3, 0xffff, "\xef\xbf\xbf" },
    { "\xf0\x90\x80\x80", 4, 0x10000, "\xf0\x90\x80\x80" },
    { "\xf4\x8f\xbf\xbf", 4, 0x10ffff, "\xf4\x8f\xbf\xbf" },
    { "\x80", -1, 0, UNICODE_BAD_S },
    { "\xc0\xaf", -1, 0, UNICODE_BAD_S UNICODE_BAD_S },
    { "\xc1\xbf", -1, 0, UNICODE_BAD_S UNICODE_BAD_S },
    { "\xe0\x80\xbf", -1, 0, UNICODE_BAD_S UNICODE_BAD_S UNICODE_BAD_S },
    { "\xed\xa0\x80", -1, 0, UNICODE_BAD_S UNICODE_BAD_S UNICODE_BAD_S },
    { "\xf0\x8f\xbf\xbf", -1, 0,
      UNICODE_BAD_S UNICODE_BAD_S UNICODE_BAD_S UNICODE_BAD_S },
    { "\xf4\x90\x80\x80", -1, 0,
      UNICODE_BAD_S UNICODE_BAD_S UNICODE_BAD_S UNICODE_BAD_S },
    { "\xf5", -1, 0, UNICODE_BAD_S },
    { "\xff", -1, 0, UNICODE_BAD_S },
    { "\xc2" "A", -1, 0, UNICODE_BAD_S "A" },
    { "\xe1\x80" "A", -2, 0, UNICODE_BAD_S "A" },
    { "\xf1\x80\x80" "A", -3, 0, UNICODE_BAD_S "A" },
    { "\xe1\x80\xe2\xf0\x91\x92\xf1\xbf" "A", -2, 0,
      UNICODE_BAD_S UNICODE_BAD_S UNICODE_BAD_S UNICODE_BAD_S "A" },
    { "\xc2", 0, 0, UNICODE_BAD_S },
    { "\xe1\x80", 0, 0, UNICODE_BAD_S },
    { "\xf1\x80\x80", 0, 0, UNICODE_BAD_S }
};


static void
test_decode(void **state)
{
    (void) state;

    for (size_t i = 0; i < BASE_COUNT(sequences); i++) {
        const char *text = sequences[i].text;
        uint32_t    cp = 0;
        struct buf  out = { 0 };
        int         len = unicode_decode(text, strlen(text), &cp);

        assert_int_equal(len, sequences[i].len);
        assert_int_equal(cp, len > 0 ? sequences[i].cp : UNICODE_BAD);
        assert_int_equal(unicode_valid(text, strlen(text)),
                         len > 0 ? (size_t) len : 0);
        assert_int_equal(unicode_lossy(text, strlen(text), &out), 0);
        assert_string_equal(out.p, sequences[i].lossy);
        buf_free(&out);
    }
}


/* Every character there and back, and every beginning of it. */
static void
test_round(void **state)
{
    (void) state;

    for (uint32_t c = 0; c < 0x110000; c++) {
        char     text[4];
        uint32_t cp;

        if (c >= 0xd800 && c < 0xe000) {
            continue;
        }

        size_t n = unicode_encode(c, text);

        assert_int_equal(unicode_decode(text, n, &cp), n);
        assert_int_equal(cp, c);

        for (size_t k = 1; k < n; k++) {
            assert_int_equal(unicode_decode(text, k, &cp), 0);
        }
    }
}


static uint64_t
fnv(uint64_t h, const struct buf *b)
{
    for (size_t i = 0; i < b->n; i++) {
        h = (h ^ (unsigned char) b->p[i]) * 0x100000001b3u;
    }

    return h;
}


/* The sums are Hugging Face's, by t/tools/make_unicode.py --sums: over every
 * character alone, and with marks before and behind. */
static void
test_forms(void **state)
{
    (void) state;

    static const struct {
        int      composes, compatible;
        uint64_t sum;
    } forms[] = {
        { 1, 0, 0x3aa1a4ef4c488550 },
        { 0, 0, 0xcce6159e5c26e699 },
        { 1, 1, 0x98ecec5a8b290f2f },
        { 0, 1, 0x1660155884a66250 }
    };

    const uint64_t lower_sum = 0x72d58125ce8d22fa;
    struct buf     in = { 0 }, out = { 0 };

    for (size_t i = 0; i <= BASE_COUNT(forms); i++) {
        uint64_t h = 0xcbf29ce484222325u;

        for (uint32_t c = 0; c < 0x110000; c++) {
            char text[4];

            if (c >= 0xd800 && c < 0xe000) {
                continue;
            }

            size_t n = unicode_encode(c, text);

            buf_reset(&in);
            buf_reset(&out);
            buf_add(&in, text, n);
            buf_adds(&in, "a\xcc\x81");
            buf_add(&in, text, n);
            buf_adds(&in, "\xcc\xa3\xcc\x87");
            buf_add(&in, text, n);
            buf_adds(&in, "\xe1\x85\xa1\xe1\x86\xa8");

            assert_int_equal(i == BASE_COUNT(forms)
                             ? unicode_lower(in.p, in.n, &out)
                             : unicode_form(in.p, in.n, forms[i].composes,
                                            forms[i].compatible, &out), 0);
            h = fnv(h, &out);
        }

        assert_int_equal(h, i == BASE_COUNT(forms) ? lower_sum
                            : forms[i].sum);
    }

    buf_free(&in);
    buf_free(&out);
}


/* A million marks in the worst order are one span. */
static void
test_long_span(void **state)
{
    (void) state;

    struct buf in = { 0 }, out = { 0 };

    buf_adds(&in, "a");

    for (int i = 0; i < 500000; i++) {
        buf_adds(&in, "\xcc\x81\xcc\xa3");      /* U+0301, U+0323 */
    }

    assert_int_equal(unicode_form(in.p, in.n, 0, 0, &out), 0);
    assert_int_equal(out.n, in.n);
    assert_memory_equal(out.p, "a\xcc\xa3\xcc\xa3", 5);
    assert_memory_equal(out.p + out.n - 4, "\xcc\x81\xcc\x81", 4);

    buf_reset(&out);
    assert_int_equal(unicode_form(in.p, in.n, 1, 0, &out), 0);
    assert_memory_equal(out.p, "\xe1\xba\xa1\xcc\xa3", 5);

    buf_free(&in);
    buf_free(&out);
}


int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decode),
        cmocka_unit_test(test_round),
        cmocka_unit_test(test_forms),
        cmocka_unit_test(test_long_span)
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);

    return cmocka_run_group_tests(tests, NULL, NULL);
}
