/*
 * Tests of engine/serve/cost.c: a machine that is made up, whose steps cost
 * what real ones were seen to, reads prompts; no step takes longer than it may.
 */
#include "engine/serve/cost.c"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "rng.h"


struct machine {
    double      base;           /* us of the weights that every step reads */
    double      experts;        /* of those that many tokens need */
    double      few;            /* tokens that need most of them */
    double      tok;
    double      back;
};

/* Much as OpenSeek-Small's shape, the demo, and 30 times the first, on two
 * cores. */
static const struct machine machines[] = {
    { 25000, 45000, 12, 900, 0.25 },
    { 300, 100, 4, 95, 0.04 },
    { 750000, 1350000, 12, 27000, 7.5 }
};


static double
took(const struct machine *m, double n_tok, double back)
{
    return m->base + m->experts * n_tok / (n_tok + m->few) + m->tok * n_tok
           + m->back * back;
}


static double
noise(double most)
{
    return 1 + most * (double) (rng_next() >> 40) / (1 << 24);
}


/* Reads n tokens of a prompt beside n_streams; the longest step, as a share of
 * what it may take: us_max more than it takes them alone.  How many steps. */
static uint32_t
prompt(struct cost *c, const struct machine *m, uint32_t n, uint32_t n_streams,
       double us_max, double *worst)
{
    uint32_t n_steps = 0;

    for (uint32_t pos = 0; pos < n; n_steps++) {
        struct cost_step s = { n_streams, n_streams * 200.0, 0 };
        uint32_t k = cost_chunk(c, &s, pos, us_max, 512);

        assert_true(k >= 2 && k <= 512);
        k = k < n - pos ? k : n - pos;

        double alone = n_streams > 0 ? took(m, s.n_tok, s.back) : 0;

        s.n_tok += k;
        s.back += k * (pos + k * 0.5);
        s.us = took(m, s.n_tok, s.back);
        *worst = fmax(*worst, s.us / (us_max + alone));
        s.us *= noise(0.05);
        cost_learn(c, &s, k > 1);
        pos += k;
    }

    return n_steps;
}


static void
decode(struct cost *c, const struct machine *m, uint32_t n_streams)
{
    for (uint32_t i = 0; i < 100; i++) {
        struct cost_step s = { n_streams, n_streams * 200.0, 0 };

        s.us = took(m, s.n_tok, s.back);
        cost_learn(c, &s, 0);
    }
}


/* A long prompt beside streams, on an engine that has read none, or has read
 * many in long steps while nobody was there. */
static void
no_step_takes_too_long(void **state)
{
    (void) state;

    for (size_t i = 0; i < BASE_COUNT(machines); i++) {
        const struct machine *m = &machines[i];
        double   us_max = 100000 + 2 * m->base;
        struct cost c = { .n_learnt = 0 };
        double   worst = 0, idle = 0;

        decode(&c, m, 4);
        prompt(&c, m, 4000, 4, us_max, &worst);
        assert_true(worst < 1.1);

        uint32_t n = prompt(&c, m, 16000, 0, 4 * us_max, &idle);

        assert_true(idle < 1.1);
        prompt(&c, m, 4000, 16, us_max, &worst);
        assert_true(worst < 1.25);  /* STEP_AIM is for that */

        /* And it is not that there are only short ones. */
        assert_true(n * 4 * us_max < 1.6 * 16000 * m->tok
                    + 16000 * 8000 * 1.6 * m->back
                    + n * 1.6 * (m->base + m->experts)
                    || n < 16000 / 512 + 10);
    }
}


static void
prices_are_those_of_the_steps(void **state)
{
    struct cost c = { .n_learnt = 0 };

    (void) state;

    for (uint32_t i = 0; i < 100; i++) {
        struct cost_step s = { 16 + i * 37 % 200, 1000 * (i * 11 % 29), 0 };

        s.us = 5000 + 300 * s.n_tok + 0.5 * s.back;
        cost_learn(&c, &s, 1);
    }

    assert_true(fabs(cost_us(&c, 100, 20000) - 45000) < 1500);
    assert_true(fabs(cost_us(&c, 200, 0) - 65000) < 2500);
    assert_true(cost_tok_us(&c) > 300 && cost_tok_us(&c) < 600);
}


/* Streams alone take longer than a prompt may add to that: it is read, and not
 * two tokens at a time. */
static void
streams_do_not_starve_a_prompt(void **state)
{
    (void) state;

    for (size_t i = 0; i < BASE_COUNT(machines); i++) {
        const struct machine *m = &machines[i];
        struct cost c = { .n_learnt = 0 };
        double   us_max = took(m, 16, 3200) / 2, worst = 0;
        uint32_t n_fit = (uint32_t) (us_max / (m->tok + m->experts / 28));

        decode(&c, m, 16);
        assert_in_range(prompt(&c, m, 10 * n_fit, 16, us_max, &worst), 5, 40);
        assert_true(worst < 1.25);
    }
}


/* Once a neighbour takes the machine for a second, or the clock jumps. */
static void
a_disturbance_passes(void **state)
{
    const struct machine *m = &machines[0];
    struct cost           c = { .n_learnt = 0 };
    struct cost_step      late = { 100, 100000, 1e9 };
    struct cost_step      none = { 0, 0, 0 };
    double                worst = 0;

    (void) state;

    prompt(&c, m, 2000, 0, 200000, &worst);

    uint32_t before = cost_chunk(&c, &none, 1000, 200000, 512);
    double   tok_us = cost_tok_us(&c);

    cost_learn(&c, &late, 1);
    assert_true(cost_tok_us(&c) < 1.5 * tok_us);
    prompt(&c, m, 2000, 0, 200000, &worst);

    uint32_t after = cost_chunk(&c, &none, 1000, 200000, 512);

    assert_true(after > before / 2);
    cost_learn(&c, &(struct cost_step) { 1, 0, 0 }, 1);
    assert_true(cost_chunk(&c, &none, 0, 200000, 512) >= 1);
}


/* Prices of short steps say little of long ones: a step that is twice as long
 * as any before it, and no more, is believed in. */
static void
belief_goes_by_doubling(void **state)
{
    struct cost      c = { .n_learnt = 0 };
    struct cost_step none = { 0, 0, 0 }, four = { 4, 800, 0 };

    (void) state;

    for (uint32_t n = COST_FIRST_TOK; n <= 512; n *= 2) {
        assert_int_equal(cost_chunk(&c, &none, 0, 1e6, 1000), n);
        cost_learn(&c, &(struct cost_step) { n, n * n / 2, 10.0 * n }, 1);
        assert_int_equal(cost_chunk(&c, &four, 0, 1e6, 1000),
                         n < 500 ? 2 * n - 4 : 1000);
    }
}


/* Before anything is known: few tokens, fewer where steps are slow. */
static void
the_first_chunk(void **state)
{
    struct cost      c = { .n_learnt = 0 };
    struct cost_step none = { 0, 0, 0 };

    (void) state;

    assert_int_equal(cost_chunk(&c, &none, 0, 100000, 512), COST_FIRST_TOK);
    assert_int_equal(cost_chunk(&c, &none, 0, 100000, 8), 8);
    cost_learn(&c, &(struct cost_step) { 2, 100, 60000 }, 0);
    assert_int_equal(cost_chunk(&c, &none, 0, 100000, 512), 3);
    cost_learn(&c, &(struct cost_step) { 1, 100, 500000 }, 0);
    assert_int_equal(cost_chunk(&c, &none, 0, 100000, 512), 2);
    assert_int_equal(cost_chunk(&c, &none, 0, 100000, 1), 1);
}


int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_step_takes_too_long),
        cmocka_unit_test(streams_do_not_starve_a_prompt),
        cmocka_unit_test(prices_are_those_of_the_steps),
        cmocka_unit_test(a_disturbance_passes),
        cmocka_unit_test(belief_goes_by_doubling),
        cmocka_unit_test(the_first_chunk),
    };

    rng_state = 7;
    cmocka_set_message_output(CM_OUTPUT_TAP);

    return cmocka_run_group_tests(tests, NULL, NULL);
}
