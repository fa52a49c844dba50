/* Tests of engine/serve/stop.c: against a search in the whole text, with the
 * text cut in every way. */
#include "engine/serve/stop.c"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "rng.h"


/* Where the text is cut: before the stop string that ends first, and of those
 * that end there the longest. */
static size_t
cut_at(const char *text, size_t n, const struct slice *stops, uint32_t n_stops)
{
    for (size_t end = 1; end <= n; end++) {
        size_t longest = 0;

        for (uint32_t i = 0; i < n_stops; i++) {
            if (stops[i].n <= end && stops[i].n > longest
                && memcmp(text + end - stops[i].n, stops[i].p, stops[i].n) == 0)
            {
                longest = stops[i].n;
            }
        }

        if (longest > 0) {
            return end - longest;
        }
    }

    return SIZE_MAX;
}


/* Is some suffix of the text a proper prefix of a stop string? */
static size_t
may_start(const char *text, size_t n, const struct slice *stops,
          uint32_t n_stops)
{
    size_t most = 0;

    for (uint32_t i = 0; i < n_stops; i++) {
        for (size_t k = 1; k < stops[i].n && k <= n; k++) {
            if (memcmp(text + n - k, stops[i].p, k) == 0 && k > most) {
                most = k;
            }
        }
    }

    return most;
}


static void
check(const char *text, size_t n, const struct slice *stops, uint32_t n_stops)
{
    struct arena               a = { NULL, 0, 0 };
    struct serve_stop_pattern *patterns;
    struct serve_stop          s;
    char                       shown[256];
    size_t                     n_shown = 0, at = 0;
    int                        rc = 0;

    assert_int_equal(serve_stop_compile(&a, stops, n_stops, &patterns), 0);
    assert_int_equal(serve_stop_begin(&s, &a, patterns, n_stops, 4), 0);

    while (at < n && rc == 0) {
        size_t       piece = 1 + rng((uint32_t) (n - at));
        struct slice out;

        rc = serve_stop_text(&s, text + at, piece, &out);
        memcpy(shown + n_shown, out.p, out.n);
        n_shown += out.n;
        at += piece;

        /* Nothing is held back without a reason. */
        if (rc == 0) {
            assert_int_equal(at - n_shown, may_start(text, at, stops, n_stops));
        }
    }

    size_t cut = cut_at(text, n, stops, n_stops);

    assert_int_equal(rc, cut != SIZE_MAX);

    if (rc == 0) {
        struct slice rest = serve_stop_end(&s);

        memcpy(shown + n_shown, rest.p, rest.n);
        n_shown += rest.n;
        cut = n;
    }

    assert_int_equal(n_shown, cut);
    assert_memory_equal(shown, text, cut);

    serve_stop_free(&s);
    arena_free(&a);
}


/* Few letters, so that stop strings overlap with themselves and each other. */
static void
random_texts(void **state)
{
    (void) state;

    for (int round = 0; round < 100000; round++) {
        char         text[64], stop[4][8];
        struct slice stops[4];
        uint32_t     n_stops = rng(5), n = 1 + rng(sizeof(text));

        for (uint32_t i = 0; i < n; i++) {
            text[i] = (char) ('a' + rng(2 + (uint32_t) round % 2));
        }

        for (uint32_t i = 0; i < n_stops; i++) {
            stops[i].p = stop[i];
            stops[i].n = 1 + rng(sizeof(stop[i]));

            for (size_t k = 0; k < stops[i].n; k++) {
                stop[i][k] = (char) ('a' + rng(2 + (uint32_t) round % 2));
            }
        }

        check(text, n, stops, n_stops);
    }
}


/* A start of a stop string that does not go on is shown after all. */
static void
false_start_is_shown(void **state)
{
    const struct slice stops[] = { { "\nUser:", 6 } };

    (void) state;

    for (int i = 0; i < 100; i++) {
        check("a\nUs er\nUser, \n", 15, stops, 1);
        check("a\nUser: b", 9, stops, 1);
    }
}


int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_texts),
        cmocka_unit_test(false_start_is_shown),
    };

    rng_state = 4242;
    cmocka_set_message_output(CM_OUTPUT_TAP);

    return cmocka_run_group_tests(tests, NULL, NULL);
}
