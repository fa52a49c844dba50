/*
 * parse.c - outputs and what they are made of; each fed whole, byte by byte,
 * and cut at every two places.
 */
#include "engine/parse.c"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

struct sink {
    struct buf  text[2];
    size_t      n_pieces;
    size_t      fail_at;        /* that piece returns 7; 0: none */
    int         switches;       /* a change of channel */
    int         last;
};


static int
collect(void *ctx, enum parse_channel channel, const char *text, size_t n)
{
    struct sink *s = ctx;

    assert_true(n > 0);
    s->switches += s->n_pieces > 0 && s->last != (int) channel;
    s->last = (int) channel;

    if (++s->n_pieces == s->fail_at) {
        return 7;
    }

    return buf_add(&s->text[channel], text, n);
}


/* Feeds text cut at a and b; compares what came out. */
static void
check_cut(const char *prompt, int raw, const char *text, size_t a, size_t b,
          const char *reasoning, const char *content)
{
    size_t       n = strlen(text);
    size_t       cuts[4] = { 0, a, b, n };
    struct parse p = { 0 };
    struct sink  s = { 0 };

    parse_begin(&p, prompt, strlen(prompt), raw);

    for (int k = 0; k < 3; k++) {
        assert_int_equal(parse_text(&p, text + cuts[k],
                                    cuts[k + 1] - cuts[k], collect, &s), 0);
    }

    assert_int_equal(parse_end(&p, collect, &s), 0);
    assert_int_equal(parse_end(&p, collect, &s), 0);
    assert_true(s.switches <= 1);

    for (int k = 0; k < 2; k++) {
        const char *got = s.text[k].n != 0 ? s.text[k].p : "";

        if (strcmp(got, k == PARSE_CONTENT ? content : reasoning) != 0) {
            fail_msg("\"%s\" cut at %zu, %zu: channel %d: \"%s\"", text, a, b,
                     k, got);
        }

        buf_free(&s.text[k]);
    }
}


static void
check_bytes(const char *prompt, int raw, const char *text,
            const char *reasoning, const char *content)
{
    struct parse p = { 0 };
    struct sink  s = { 0 };

    parse_begin(&p, prompt, strlen(prompt), raw);

    for (const char *c = text; *c != '\0'; c++) {
        assert_int_equal(parse_text(&p, c, 1, collect, &s), 0);
    }

    assert_int_equal(parse_end(&p, collect, &s), 0);
    assert_string_equal(s.text[0].n != 0 ? s.text[0].p : "", content);
    assert_string_equal(s.text[1].n != 0 ? s.text[1].p : "", reasoning);
    buf_free(&s.text[0]);
    buf_free(&s.text[1]);
}


#define BLANK8  "        "
#define BLANK32 BLANK8 BLANK8 BLANK8 BLANK8

static const struct {
    const char *prompt;
    int         raw;
    const char *text, *reasoning, *content;
} cases[] = {
    /* nothing of the kind */
    { "", 0, "", "", "" },
    { "", 0, "Hello.", "", "Hello." },
    { "", 0, "\n\n Hello.\n", "", "\n\n Hello.\n" },
    { "", 0, " \n", "", " \n" },
    { "<think>x</think>", 0, "a b", "", "a b" },
    { "", 0, "a <think> b </think> c", "", "a <think> b </think> c" },
    { "", 0, "</think>a", "", "</think>a" },
    { "", 0, "<thin", "", "<thin" },
    { "", 0, "\n<thin", "", "\n<thin" },
    { "", 0, "<thinking>x", "", "<thinking>x" },
    { "", 0, "<<think>x</think>y", "", "<<think>x</think>y" },
    { "", 0, "< think>", "", "< think>" },
    { "", 0, BLANK32 " <think>x", "", BLANK32 " <think>x" },

    /* the model opens it */
    { "", 0, "<think>", "", "" },
    { "", 0, "<think>a</think>b", "a", "b" },
    { "", 0, "\n <think>\n\na\n</think>\n\nb\n", "a", "b\n" },
    { "", 0, "<think>\n\n</think>\n\nb", "", "b" },
    { "", 0, "<think></think>", "", "" },
    { "", 0, "<think> a\n b </think> b", " a\n b", " b" },
    { "", 0, "<think>\n    x\n</think>\n    y", "    x", "    y" },
    { "", 0, "<think>a\r\n</think>\r\nb", "a", "b" },
    { "", 0, "<think>a<think>b</think>c", "a<think>b", "c" },
    { "", 0, "<think>a</think>b</think>c", "a", "b</think>c" },
    { "", 0, "<think>a</think><think>b", "a", "<think>b" },
    { "", 0, "<think>\xc3\xa4\xe2\x82\xac</think>\xf0\x9f\x99\x82",
      "\xc3\xa4\xe2\x82\xac", "\xf0\x9f\x99\x82" },

    /* almost markers inside */
    { "", 0, "<think>a < b <</think>c", "a < b <", "c" },
    { "", 0, "<think>a </ </t </thin</think>c", "a </ </t </thin", "c" },
    { "", 0, "<think>a </think </think>c", "a </think", "c" },
    { "", 0, "<think>\n<\n</think>c", "<", "c" },
    { "", 0, "<think>a" BLANK32 "</think>c", "a", "c" },
    { "", 0, "<think>a" BLANK32 " </think>c", "a" BLANK32, "c" },
    { "", 0, "<think>a" BLANK32 BLANK8 "b</think>c", "a" BLANK32 BLANK8 "b",
      "c" },

    /* never closed */
    { "", 0, "<think>a \n", "a \n", "" },
    { "", 0, "<think>a </thin", "a </thin", "" },
    { "", 0, "<think>\n\n", "", "" },

    /* the prompt opened it */
    { "x<think>", 0, "a</think>b", "a", "b" },
    { "x<think>\n", 0, "\na\n</think>\n\nb", "a", "b" },
    { "<think> \n\t\r\n", 0, "a", "a", "" },
    { "<think>\n", 0, "</think>\n\nb", "", "b" },
    { "<think>\n", 0, "<think>a</think>b", "<think>a", "b" },
    { "<think>\n\n</think>\n\n", 0, "b", "", "b" },
    { "<think>.", 0, "b", "", "b" },
    { "think>", 0, "b", "", "b" },

    /* raw */
    { "", 1, "<think>a</think>\n\nb", "", "<think>a</think>\n\nb" },
    { "<think>\n", 1, "\na</think> ", "", "\na</think> " },
};


static void
test_cuts(void **state)
{
    (void) state;

    for (size_t i = 0; i < BASE_COUNT(cases); i++) {
        size_t n = strlen(cases[i].text);

        check_bytes(cases[i].prompt, cases[i].raw, cases[i].text,
                    cases[i].reasoning, cases[i].content);

        for (size_t a = 0; a <= n; a++) {
            for (size_t b = a; b <= n; b++) {
                check_cut(cases[i].prompt, cases[i].raw, cases[i].text, a, b,
                          cases[i].reasoning, cases[i].content);
            }
        }
    }
}


/* Whatever the receiver answers comes back, and nothing comes after it. */
static void
test_receiver_fails(void **state)
{
    (void) state;

    static const char text[] = "<think>a < b </think>c";

    for (size_t fail_at = 1; fail_at <= 4; fail_at++) {
        struct parse p = { 0 };
        struct sink  s = { .fail_at = fail_at };
        int          rc = 0;

        parse_begin(&p, "", 0, 0);

        for (size_t i = 0; i < sizeof(text) - 1 && rc == 0; i++) {
            rc = parse_text(&p, text + i, 1, collect, &s);
        }

        assert_int_equal(rc, 7);
        assert_int_equal(s.n_pieces, fail_at);
        buf_free(&s.text[0]);
        buf_free(&s.text[1]);
    }
}


int
main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuts),
        cmocka_unit_test(test_receiver_fails),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);

    return cmocka_run_group_tests(tests, NULL, NULL);
}
