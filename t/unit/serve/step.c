/*
 * Tests of engine/serve/step.c, and of answer.c, job.c, pages.c and channel.c
 * under it: real rings, scheduler and pages around the model of world.h.
 */
#define log_line count_line
#include "engine/serve/answer.c"
#include "engine/serve/job.c"
#include "engine/serve/step.c"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "unit/serve/world.h"


static void
ask_at_random(struct world *w, uint16_t slot, uint64_t gen, int nan)
{
    struct seen *v = &slots[slot];

    memset(v, 0, sizeof(*v));
    v->gen = gen;
    v->n_choices = rng(3) == 0 ? 1 + rng(N_SEQS) : 1;
    v->n_prompt = 1 + rng(rng(2) ? 200 : 20);
    v->n_new = 1 + rng(v->n_choices > 1 ? 60 : 150);
    v->stalled = rng(8) == 0;

    /* Some have a beginning in common, of one of two tenants. */
    uint32_t n_common = rng(4) ? v->n_prompt - rng(9) % v->n_prompt : 0;
    uint32_t base = rng(2);

    v->salt = (char) (rng(2) ? 'a' + rng(2) : 0);
    v->priority = rng(3) == 0 ? (int32_t) rng(2000) - 1000 : 0;

    v->scored = rng(4) == 0;

    /* Now and then what the model would have said itself. */
    for (uint32_t i = 0, hash = 1; i < v->n_prompt; i++) {
        v->prompt[i] = i < n_common ? 1 + (i * 7 + base) % 600
                       : rng(3) == 0 ? next_of(hash) : 1 + rng(600);
        hash = hash_of(hash, v->prompt[i]);
    }

    /* Ranks of two that are as likely are not looked at. */
    if (!v->scored && v->n_choices > 1 && rng(2)) {
        v->prompt[0] = TOK_FORK;
    }

    if (nan) {
        v->prompt[v->n_prompt - 1] = TOK_NAN;
    }

    ask(w, slot, gen);
}


/* The request goes on as if its engine had been lost. */
static void
ask_again(struct world *w, uint16_t slot, uint64_t gen)
{
    struct seen *v = &slots[slot];

    v->gen = gen;
    v->end = 0;
    v->owed = 0;
    v->stalled = 0;
    v->resumed = 1;
    v->n_starts = 0;
    v->n_told = 0;

    ask(w, slot, gen);
}


/*
 * 2000 requests in few pages: forks, stalls, cancels, those that go on after
 * one, ends that the model says, while the next step is under way or not, and
 * models that fail.  Each token is the one that its own history asks for; all
 * ends are right; at last all pages are free.
 */
static void
answers_are_those_of_each_alone(void **state)
{
    static struct world w;
    int          nan[N_SLOTS] = { 0 };
    uint64_t     gen = 0;
    uint32_t     ends[3] = { 0 }, n_open = 0, n_nan = 0, n_again = 0;
    uint32_t     n_stops = 0;

    (void) state;

    world_begin(&w);
    memset(slots, 0, sizeof(slots));
    n_logged = 0;
    n_ahead = 0;
    fake_model.eos[0] = 17;         /* what one token of 600 is */

    while (gen < 2000 || n_open > 0) {
        uint16_t     i = (uint16_t) rng(N_SLOTS);
        struct seen *v = &slots[i];

        if (v->gen == 0 && gen < 2000) {
            nan[i] = rng(10) == 0;
            ask_at_random(&w, i, ++gen, nan[i]);
            n_open++;
        } else if (v->gen != 0 && w.c->slots[i].job != NULL
                   && rng(30) == 0)
        {
            serve_job_cancel(&w.s, w.c->slots[i].job);
        }

        prepare_all(&w);
        serve_step(&w.s);
        see_all(&w);

        for (i = 0; i < N_SLOTS; i++) {
            v = &slots[i];

            if (v->gen != 0 && v->end != 0) {
                check_answer(v);
                assert_null(w.c->slots[i].job);

                if (v->end == ABI_ERROR) {
                    assert_true(v->code == ABI_E_CONTEXT
                                || (nan[i] && v->code == ABI_E_INTERNAL));
                    n_nan += v->code == ABI_E_INTERNAL;
                }

                ends[v->end - ABI_DONE]++;
                n_stops += v->end == ABI_DONE && v->reason[0] == ABI_STOP;

                if (v->end == ABI_CANCELLED && rng(2) == 0) {
                    n_again += v->n_out[0] > 0;
                    ask_again(&w, i, ++gen);
                    continue;
                }

                n_open--;
                v->gen = 0;
            }
        }
    }

    /* All three ends have been seen, or this tests less than it says. */
    assert_true(ends[0] > 300 && ends[1] > 10 && ends[2] > 10);
    assert_true(n_again > 20 && n_stops > 30 && n_ahead > 2000);
    fake_model.eos[0] = 0;
    /* Most are of those that come back; of a page of 64, 26 for each. */
    assert_true(w.s.counts.preemptions > 100);
    assert_true(w.s.counts.prefix_hits_tok > 20 * w.s.counts.preemptions);
    assert_int_equal(n_nan, n_logged);
    assert_int_equal(ends[0], w.s.counts.done);
    assert_int_equal(ends[1], w.s.counts.error);
    assert_int_equal(ends[2], w.s.counts.cancelled);
    world_end(&w);
}


/* A request whose logits are not finite ends; the one beside it does not. */
static void
nonsense_ends_its_request_alone(void **state)
{
    static struct world w;

    (void) state;

    world_begin(&w);
    memset(slots, 0, sizeof(slots));

    for (uint16_t i = 0; i < 2; i++) {
        struct seen *v = &slots[i];

        v->gen = 1;
        v->n_choices = 2;
        v->n_prompt = 70;
        v->n_new = 20;

        for (uint32_t k = 0; k < v->n_prompt; k++) {
            v->prompt[k] = k + 1;
        }

        v->prompt[69] = i == 0 ? TOK_NAN : 5;
        ask(&w, i, 1);
    }

    prepare_all(&w);

    while (serve_step(&w.s)) {
        see_all(&w);
    }

    see_all(&w);
    assert_int_equal(slots[0].end, ABI_ERROR);
    assert_int_equal(slots[0].code, ABI_E_INTERNAL);
    assert_int_equal(slots[1].end, ABI_DONE);
    check_answer(&slots[1]);
    world_end(&w);
}


/* A prompt of its own kind, of n tokens. */
static struct seen *
one(uint16_t slot, uint32_t n, uint32_t n_new)
{
    struct seen *v = &slots[slot];

    memset(v, 0, sizeof(*v));
    v->gen = 1;
    v->n_choices = 1;
    v->n_prompt = n;
    v->n_new = n_new;

    for (uint32_t k = 0; k < n; k++) {
        v->prompt[k] = 1 + (slot * 31 + k) % 600;
    }

    return v;
}


static void
run_all(struct world *w)
{
    prepare_all(w);

    while (serve_step(&w->s)) {
        see_all(w);
    }

    see_all(w);
}


/* What the cache has for a second turn: the prompt, the first answer but for
 * its last token, and 30 tokens; said by this tenant. */
static uint32_t
second_turn(struct world *w, char salt)
{
    struct seen *v = one(0, 200, 100);

    v->salt = 'a';
    ask(w, 0, 1);
    run_all(w);
    assert_int_equal(v->end, ABI_DONE);

    struct seen *again = one(1, 330, 5);

    again->salt = salt;
    memcpy(again->prompt, v->prompt, 200 * sizeof(uint32_t));
    memcpy(again->prompt + 200, v->out[0], 100 * sizeof(uint32_t));
    ask(w, 1, 1);
    run_all(w);
    assert_int_equal(again->end, ABI_DONE);
    check_answer(again);

    return again->n_cached;
}


static void
a_turn_reads_what_is_new(void **state)
{
    static struct world w;

    (void) state;

    world_begin(&w);
    assert_int_equal(second_turn(&w, 'a'), 299 / 64 * 64);
    assert_int_equal(w.s.counts.prefix_hits_tok, 256);
    world_end(&w);

    world_begin(&w);
    assert_int_equal(second_turn(&w, 'b'), 0);
    world_end(&w);

    world_begin(&w);
    assert_int_equal(second_turn(&w, 0), 0);
    world_end(&w);

    fake_options.prefix_cache = 0;
    world_begin(&w);
    assert_int_equal(second_turn(&w, 'a'), 0);
    world_end(&w);
    fake_options.prefix_cache = 1;
}


/* Choices share what of the prompt is in full pages, and copy the rest: each
 * token of it is computed once, and what one says is not in another's page. */
static void
choices_compute_a_prompt_once(void **state)
{
    static struct world w;

    (void) state;

    for (uint32_t n = 100; n <= 192; n += 46) {
        struct seen *v = one(0, n, 10);

        world_begin(&w);
        v->n_choices = 4;
        v->prompt[0] = TOK_FORK;
        n_copied = n_computed = 0;
        ask(&w, 0, 1);
        run_all(&w);
        assert_int_equal(v->end, ABI_DONE);
        check_answer(v);

        for (uint32_t k = 1; k < 4; k++) {
            assert_memory_not_equal(v->out[0], v->out[k], 40);
        }

        assert_int_equal(n_computed, n + 4 * 9);
        assert_int_equal(n_copied, n % MODEL_PAGE_TOK == 0 ? 0 : 3);
        world_end(&w);
    }
}


/* A prompt that is read to be scored, or for nothing: no token comes, in any of
 * its choices, and that is its length. */
static void
nothing_is_said(void **state)
{
    static struct world w;

    (void) state;

    world_begin(&w);

    for (uint32_t n = 1; n <= 128; n = n == 1 ? 64 : n + 32) {
        struct seen *v = one(0, n, 0);

        v->n_choices = 2;
        v->scored = n % 64 == 0;
        ask(&w, 0, 1);

        for (int i = 0; v->end == 0 && i < 9; i++) {
            run_all(&w);            /* the scores wait for credit */
        }

        assert_int_equal(v->end, ABI_DONE);
        check_answer(v);
        assert_int_equal(v->reason[0], ABI_LENGTH);
        assert_int_equal(v->reason[1], ABI_LENGTH);
        assert_int_equal(v->n_usage, 0);
    }

    assert_int_equal(w.s.counts.output_tok, 0);
    world_end(&w);
}


/* A prompt that is all there: its last token is computed all the same. */
static void
the_last_token_is_computed(void **state)
{
    static struct world w;

    (void) state;

    world_begin(&w);

    for (uint64_t gen = 1; gen <= 2; gen++) {
        struct seen *v = one(0, 128, 3);

        v->gen = gen;
        ask(&w, 0, gen);
        run_all(&w);
        assert_int_equal(v->end, ABI_DONE);
        assert_int_equal(v->n_cached, gen == 1 ? 0 : 64);
        check_answer(v);
    }

    world_end(&w);
}


/* Who is late without a token ends so; who has begun may be slow. */
static void
deadlines(void **state)
{
    static struct world w;

    (void) state;

    world_begin(&w);

    for (uint16_t i = 0; i < 2; i++) {
        one(i, 100, 200)->deadline_ms = 200;
    }

    ask(&w, 0, 1);
    prepare_all(&w);

    while (slots[0].n_out[0] == 0) {
        serve_step(&w.s);
        see_all(&w);
    }

    ask(&w, 1, 1);
    nanosleep(&(struct timespec) { 0, 250000000 }, NULL);
    run_all(&w);
    assert_int_equal(slots[0].end, ABI_DONE);
    assert_int_equal(slots[1].end, ABI_ERROR);
    assert_int_equal(slots[1].code, ABI_E_DEADLINE);
    assert_int_equal(slots[1].n_starts, 0);
    world_end(&w);
}


/* Among those that wait the lower number goes first, and may take pages from a
 * higher one that runs; that one ends as if nothing had been. */
static void
priorities(void **state)
{
    static struct world w;

    (void) state;

    world_begin(&w);

    for (uint16_t i = 0; i < 5; i++) {
        one(i, 370, 30)->priority = 5 - i;
        ask(&w, i, 1);
        prepare_all(&w);

        if (i == 1) {
            serve_step(&w.s);       /* 0 and 1 run; 16 pages hold two */
            assert_int_equal(w.s.n_running, 2);
        }
    }

    serve_step(&w.s);               /* takes what is under way ... */
    serve_step(&w.s);               /* ... and pages, if it was */
    assert_int_equal(w.s.n_running, 2);
    assert_int_equal(w.s.counts.preemptions, 2);
    assert_int_equal(w.c->slots[3].job->state, JOB_RUNNING);
    assert_int_equal(w.c->slots[4].job->state, JOB_RUNNING);
    run_all(&w);

    for (uint16_t i = 0; i < 5; i++) {
        assert_int_equal(slots[i].end, ABI_DONE);
        assert_int_equal(slots[i].n_starts, 1);
        check_answer(&slots[i]);
    }

    world_end(&w);
}


/* Clients that do not read hold all pages; who comes then is served. */
static void
stalled_ones_give_way(void **state)
{
    static struct world w;

    (void) state;

    world_begin(&w);

    for (uint16_t i = 0; i < 3; i++) {
        one(i, 300, 80)->stalled = 1;
        slots[i].n_choices = 2;
        ask(&w, i, 1);
    }

    run_all(&w);
    one(3, 350, 50);
    ask(&w, 3, 1);
    run_all(&w);
    assert_int_equal(slots[3].end, ABI_DONE);
    check_answer(&slots[3]);
    assert_true(w.s.counts.preemptions > 0);

    for (uint16_t i = 0; i < 3; i++) {
        assert_int_equal(slots[i].end, 0);
        slots[i].stalled = 0;
    }

    see_all(&w);
    run_all(&w);

    for (uint16_t i = 0; i < 3; i++) {
        assert_int_equal(slots[i].end, ABI_DONE);
        check_answer(&slots[i]);
    }

    world_end(&w);
}


/* The queue is as long as its tokens allow; but one may always wait. */
static void
the_queue_counts_tokens(void **state)
{
    static struct world w;
    uint32_t     n_busy = 0;

    (void) state;

    fake_options.max_queue_tok = 500;
    world_begin(&w);

    for (uint16_t i = 0; i < 5; i++) {
        one(i, i == 0 ? 350 : 200, 5);
        ask(&w, i, 1);
        prepare_all(&w);
    }

    see_all(&w);

    for (uint16_t i = 0; i < 5; i++) {
        n_busy += slots[i].end == ABI_ERROR && slots[i].code == ABI_E_BUSY;
    }

    assert_int_equal(n_busy, 4);
    assert_int_equal(w.s.n_waiting_tok, 350);
    run_all(&w);
    assert_int_equal(slots[0].end, ABI_DONE);
    world_end(&w);
    fake_options.max_queue_tok = 64 * N_CTX;
}


/* Where the device chooses, it has the next step before the last one's tokens
 * are read; of an end that only they tell, one step too many, which nobody
 * sees.  Else the next step waits for the logits of the last. */
static void
the_device_does_not_wait(void **state)
{
    static const struct {
        uint32_t    of_8;
        uint32_t    n_new;
        int         stops;          /* the model says so, after three */
        const char *calls;
    } cases[] = {
        { 8, 4, 0, "LLCLCLCC" }, { 8, 9, 1, "LLCLCLCLCC" },
        { 0, 4, 0, "LCLCLCLC" }, { 0, 9, 1, "LCLCLCLC" }, { 8, 1, 0, "LC" }
    };
    struct world w;

    (void) state;

    for (size_t i = 0; i < BASE_COUNT(cases); i++) {
        world_begin(&w);

        struct seen *v = one(0, 10, cases[i].n_new);
        uint32_t     h = 1;

        for (uint32_t k = 0; k < 10; k++) {
            h = hash_of(h, v->prompt[k]);
        }

        for (uint32_t k = 0; k < 3; k++) {
            h = hash_of(h, next_of(h));
        }

        n_of_8 = cases[i].of_8;
        fake_model.eos[0] = cases[i].stops ? next_of(h) : 0;
        ask(&w, 0, 1);
        run_all(&w);
        check_answer(v);
        assert_int_equal(v->end, ABI_DONE);
        assert_int_equal(v->n_out[0], cases[i].stops ? 3 : cases[i].n_new);
        assert_string_equal(calls, cases[i].calls);
        world_end(&w);
    }

    n_of_8 = 6;
    fake_model.eos[0] = 0;
}


/* Who has gone while a step is under way, is told nothing more, and leaves the
 * others theirs. */
static void
who_goes_is_left_out(void **state)
{
    struct world w;

    (void) state;

    n_of_8 = 8;
    world_begin(&w);

    for (uint16_t i = 0; i < 3; i++) {
        one(i, 60 + i, 40);
        ask(&w, i, 1);
    }

    prepare_all(&w);

    for (uint32_t k = 0; k < 12; k++) {
        serve_step(&w.s);
        see_all(&w);
        assert_int_equal(n_launched, n_collected + 1);

        if (k == 7) {
            serve_job_cancel(&w.s, w.c->slots[1].job);
        }
    }

    run_all(&w);
    assert_int_equal(slots[1].end, ABI_CANCELLED);
    assert_int_equal(slots[0].end, ABI_DONE);
    assert_int_equal(slots[2].end, ABI_DONE);

    for (uint16_t i = 0; i < 3; i++) {
        check_answer(&slots[i]);
    }

    world_end(&w);
    n_of_8 = 6;
}


int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_are_those_of_each_alone),
        cmocka_unit_test(a_turn_reads_what_is_new),
        cmocka_unit_test(choices_compute_a_prompt_once),
        cmocka_unit_test(the_last_token_is_computed),
        cmocka_unit_test(nothing_is_said),
        cmocka_unit_test(deadlines),
        cmocka_unit_test(priorities),
        cmocka_unit_test(stalled_ones_give_way),
        cmocka_unit_test(the_queue_counts_tokens),
        cmocka_unit_test(the_device_does_not_wait),
        cmocka_unit_test(who_goes_is_left_out),
        cmocka_unit_test(nonsense_ends_its_request_alone),
    };

    rng_state = 99;
    log_max = LOG_LEVEL_ERROR;
    cmocka_set_message_output(CM_OUTPUT_TAP);

    return cmocka_run_group_tests(tests, NULL, NULL);
}
