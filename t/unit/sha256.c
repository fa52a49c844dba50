/* Tests of engine/sha256.c: the examples of FIPS 180-4 and NIST's CAVP, and
 * that it does not matter how the bytes are cut. */
#include "engine/sha256.c"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <cmocka.h>


static void
is_hex(struct sha256 *s, const char *expected)
{
    uint8_t out[SHA256_BYTES];
    char    hex[2 * SHA256_BYTES + 1];

    sha256_end(s, out);

    for (int i = 0; i < SHA256_BYTES; i++) {
        snprintf(hex + 2 * i, 3, "%02x", out[i]);
    }

    assert_string_equal(hex, expected);
}


static void
known_answers(void **state)
{
    static const struct { const char *text, *hex; } cases[] = {
        { "", "e3b0c44298fc1c149afbf4c8996fb924"
              "27ae41e4649b934ca495991b7852b855" },
        { "abc", "ba7816bf8f01cfea414140de5dae2223"
                 "b00361a396177a9cb410ff61f20015ad" },
        { "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
          "248d6a61d20638b8e5c026930c3e6039"
          "a33ce45964ff2167f6ecedd419db06c1" },
    };
    struct sha256 s;

    (void) state;

    for (size_t i = 0; i < BASE_COUNT(cases); i++) {
        sha256_begin(&s);
        sha256_add(&s, cases[i].text, strlen(cases[i].text));
        is_hex(&s, cases[i].hex);
    }

    sha256_begin(&s);

    for (int i = 0; i < 1000000; i++) {
        sha256_add(&s, "a", 1);
    }

    is_hex(&s, "cdc76e5c9914fb9281a1c7e284d73e67"
               "f1809a48a497200e046d39ccc7112cd0");
}


static void
cuts_do_not_matter(void **state)
{
    uint8_t bytes[200], whole[SHA256_BYTES], cut[SHA256_BYTES];

    (void) state;

    for (size_t i = 0; i < sizeof(bytes); i++) {
        bytes[i] = (uint8_t) (i * 7);
    }

    for (size_t n = 0; n <= sizeof(bytes); n++) {
        struct sha256 s;

        sha256_begin(&s);
        sha256_add(&s, bytes, n);
        sha256_end(&s, whole);

        for (size_t at = 0; at <= n; at += 1 + n / 9) {
            sha256_begin(&s);
            sha256_add(&s, bytes, at);
            sha256_add(&s, bytes + at, n - at);
            sha256_end(&s, cut);
            assert_memory_equal(whole, cut, sizeof(cut));
        }
    }
}


int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_answers),
        cmocka_unit_test(cuts_do_not_matter),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);

    return cmocka_run_group_tests(tests, NULL, NULL);
}
