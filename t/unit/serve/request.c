/* Tests of engine/serve/request.c: each field at and beyond each end of its
 * range, and every prefix of a good request. */
#include "engine/serve/request.c"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>

#define N_VOCAB     1000
#define AT          sizeof(struct abi_request)      /* of the body */


/* A request with a body of 11 bytes, two biases, two stops and a salt. */
static size_t
good(char *out)
{
    static const char  body[] = "{\"a\":\"bcd\"}";
    struct abi_request r = {
        .kind = ABI_CHAT, .n_choices = 1, .given = ABI_GIVEN_ALL,
        .max_tokens = 10, .temperature = 1, .top_p = 1, .repetition = 1,
        .n_body = 11, .n_biases = 2, .n_stops = 2, .n_salt = 5,
        .priority = -3, .deadline_ms = 250, .id = { 1, [15] = 2 },
        .trace_id = { 3, [15] = 4 }, .span_id = { 5, [7] = 6 },
        .trace_flags = 255
    };
    struct abi_bias    biases[] = { { 7, -100 }, { N_VOCAB - 1, 1.5f } };
    struct { uint32_t n; char s[4]; } stops[] = {
        { 3, "abc" }, { 4, { 'd', 'e', 'f', 'g' } }
    };
    char              *p = out + sizeof(r);

    memset(out, 0, 512);
    memcpy(p, body, 11);
    p += 16;
    memcpy(p, biases, sizeof(biases));
    p += sizeof(biases);
    memcpy(p, stops, sizeof(stops));
    p += sizeof(stops);
    memcpy(p, "alice", 5);
    p += 8;

    r.n_bytes = (uint32_t) (p - out);
    memcpy(out, &r, sizeof(r));

    return r.n_bytes;
}


/* Parses an exact copy, so that ASan sees every byte too many. */
static int
parse(const char *p, size_t n, struct serve_refusal *why)
{
    struct serve_request r;
    char                *copy = malloc(n > 0 ? n : 1);

    memcpy(copy, p, n);
    int rc = serve_request_parse(copy, n, N_VOCAB, &r, why);
    assert_int_equal(rc != 0, why->code != 0);
    free(copy);

    return rc;
}


static void
good_request(void **state)
{
    char                 bytes[512];
    struct serve_request r;
    struct serve_refusal why;
    size_t               n = good(bytes);

    (void) state;

    assert_int_equal(serve_request_parse(bytes, n, N_VOCAB, &r, &why), 0);
    assert_int_equal(r.body.n, 11);
    assert_memory_equal(r.body.p, "{\"a\":\"bcd\"}", 11);
    assert_int_equal(serve_request_bias(&r, 0).token, 7);
    assert_true(serve_request_bias(&r, 1).bias == 1.5f);
    assert_int_equal(r.stops[0].n, 3);
    assert_memory_equal(r.stops[0].p, "abc", 3);
    assert_int_equal(r.stops[1].n, 4);
    assert_memory_equal(r.stops[1].p, "defg", 4);
    assert_int_equal(r.salt.n, 5);
    assert_memory_equal(r.salt.p, "alice", 5);
    assert_int_equal(r.abi.priority, -3);
    assert_int_equal(r.abi.deadline_ms, 250);
    assert_int_equal(r.abi.id[15], 2);
    assert_int_equal(r.abi.trace_id[15], 4);
    assert_int_equal(r.abi.span_id[7], 6);
}


static void
every_prefix_is_refused(void **state)
{
    char                 bytes[512];
    struct serve_refusal why;
    size_t               n = good(bytes);

    (void) state;

    for (size_t k = 0; k < n; k++) {
        assert_int_equal(parse(bytes, k, &why), -1);

        /* And where the head says that this is all of it. */
        if (k >= sizeof(struct abi_request)) {
            uint32_t short_n = (uint32_t) k;
            char     cut[512];

            memcpy(cut, bytes, k);
            memcpy(cut, &short_n, sizeof(short_n));
            assert_int_equal(parse(cut, k, &why), -1);
        }
    }

    /* One byte more. */
    uint32_t more = (uint32_t) n + 1;

    memcpy(bytes, &more, sizeof(more));
    assert_int_equal(parse(bytes, n + 1, &why), -1);
}


struct field {
    const char *param;
    size_t      offset;
    int         is_float;
    double      v;
    int         ok;
};

static void
every_range(void **state)
{
    static const double nan_ = (double) NAN, inf = (double) INFINITY;
    const struct field  fields[] = {
        { "", OFF(kind), 0, 0, 0 },
        { "", OFF(kind), 0, 4, 0 },
        { "n", OFF(n_choices), 0, 0, 0 },
        { "n", OFF(n_choices), 0, 1, 1 },
        { "n", OFF(n_choices), 0, 8, 1 },
        { "n", OFF(n_choices), 0, 9, 0 },
        { "n", OFF(n_choices), 0, 4294967295.0, 0 },
        { "", OFF(given), 0, 0x80, 0 },
        { "", OFF(given), 0, 0, 1 },
        { "", OFF(flags), 0, 0x20, 0 },
        { "max_tokens", OFF(max_tokens), 0, 0, 1 },
        { "max_tokens", OFF(max_tokens), 0, 1, 1 },
        { "max_tokens", OFF(max_tokens), 0, 4294967295.0, 1 },
        { "temperature", OFF(temperature), 1, -0.001, 0 },
        { "temperature", OFF(temperature), 1, 0, 1 },
        { "temperature", OFF(temperature), 1, 2, 1 },
        { "temperature", OFF(temperature), 1, 2.001, 0 },
        { "temperature", OFF(temperature), 1, nan_, 0 },
        { "temperature", OFF(temperature), 1, inf, 0 },
        { "top_p", OFF(top_p), 1, 0, 0 },
        { "top_p", OFF(top_p), 1, 1e-30, 1 },
        { "top_p", OFF(top_p), 1, 1.001, 0 },
        { "top_p", OFF(top_p), 1, nan_, 0 },
        { "min_p", OFF(min_p), 1, -1e-9, 0 },
        { "min_p", OFF(min_p), 1, 1, 1 },
        { "min_p", OFF(min_p), 1, 1.1, 0 },
        { "min_p", OFF(min_p), 1, nan_, 0 },
        { "top_k", OFF(top_k), 0, 4294967295.0, 1 },        /* -1 */
        { "top_k", OFF(top_k), 0, 4294967294.0, 0 },        /* -2 */
        { "top_k", OFF(top_k), 0, 2147483648.0, 0 },
        { "top_k", OFF(top_k), 0, 2147483647.0, 1 },
        { "presence_penalty", OFF(presence), 1, -2.001, 0 },
        { "presence_penalty", OFF(presence), 1, 2, 1 },
        { "presence_penalty", OFF(presence), 1, nan_, 0 },
        { "frequency_penalty", OFF(frequency), 1, 2.001, 0 },
        { "frequency_penalty", OFF(frequency), 1, -inf, 0 },
        { "repetition_penalty", OFF(repetition), 1, 0, 0 },
        { "repetition_penalty", OFF(repetition), 1, -1, 0 },
        { "repetition_penalty", OFF(repetition), 1, nan_, 0 },
        { "repetition_penalty", OFF(repetition), 1, inf, 0 },
        { "top_logprobs", OFF(n_top_logprobs), 0, 20, 1 },
        { "top_logprobs", OFF(n_top_logprobs), 0, 21, 0 },
        { "logit_bias", OFF(n_biases), 0, 1025, 0 },
        { "", OFF(n_biases), 0, 1024, 0 },
        { "stop", OFF(n_stops), 0, 17, 0 },
        { "", OFF(n_stops), 0, 16, 0 },
        { "", OFF(n_body), 0, 4294967295.0, 0 },
        { "", OFF(n_body), 0, 4294967288.0, 0 },
        { "", OFF(n_salt), 0, 4, 0 },               /* 4 bytes are left */
        { "", OFF(n_salt), 0, 1024, 0 },
        { "cache_salt", OFF(n_salt), 0, 1025, 0 },
        { "cache_salt", OFF(n_salt), 0, 4294967295.0, 0 },
        { "n", OFF(priority), 0, 2147483648.0, 1 }, /* the least */
        { "n", OFF(priority), 0, 2147483647.0, 1 },
        { "n", OFF(deadline_ms), 0, 4294967295.0, 1 },
        { "prompt_logprobs", OFF(n_prompt_top), 0, 20, 1 },
        { "prompt_logprobs", OFF(n_prompt_top), 0, 21, 0 },
        { "n", OFF(trace_flags), 0, 255, 1 },
        { "", OFF(trace_flags), 0, 256, 0 },
        { "", OFF(zero), 0, 1, 0 },
        { "", OFF(n_resumes), 0, 1, 0 },
        { "", OFF(n_resumes), 0, 2, 0 },
    };

    (void) state;

    for (size_t i = 0; i < BASE_COUNT(fields); i++) {
        const struct field  *f = &fields[i];
        char                 bytes[512];
        struct serve_refusal why;
        size_t               n = good(bytes);
        float                v = (float) f->v;
        uint32_t             u = f->is_float ? 0 : (uint32_t) f->v;

        memcpy(bytes + f->offset, f->is_float ? (void *) &v : (void *) &u, 4);

        if (parse(bytes, n, &why) != (f->ok ? 0 : -1)) {
            fail_msg("%s = %g", f->param, f->v);
        }

        if (!f->ok) {
            assert_string_equal(why.param, f->param);
            assert_int_equal(why.code, ABI_E_INVALID);
        }
    }
}


/* A parameter that is not given is not looked at. */
static void
ungiven_is_ignored(void **state)
{
    char                 bytes[512];
    struct serve_refusal why;
    struct abi_request   r;
    size_t               n = good(bytes);

    (void) state;

    memcpy(&r, bytes, sizeof(r));
    r.given = 0;
    r.temperature = r.top_p = r.min_p = r.repetition = NAN;
    r.top_k = -77;
    r.max_tokens = 0;
    memcpy(bytes, &r, sizeof(r));
    assert_int_equal(parse(bytes, n, &why), 0);
}


static void
biases_and_stops(void **state)
{
    static const struct { size_t at; uint32_t v; const char *param; } bad[] = {
        { AT + 16, N_VOCAB, "logit_bias" },
        { AT + 16, UINT32_MAX, "logit_bias" },
        { AT + 20, 0x42ca0000, "logit_bias" },      /* 101 */
        { AT + 20, 0x7fc00000, "logit_bias" },      /* NaN */
        { AT + 32, 0, "stop" },
        { AT + 32, 1025, "" },
        { AT + 32, UINT32_MAX, "" },
        { AT + 36, 0x80, "stop" },      /* starts inside a character */
        { AT + 36, 0xc36161, "stop" },  /* ends inside one */
    };

    (void) state;

    for (size_t i = 0; i < BASE_COUNT(bad); i++) {
        char                 bytes[512];
        struct serve_refusal why;
        size_t               n = good(bytes);

        memcpy(bytes + bad[i].at, &bad[i].v, 4);
        assert_int_equal(parse(bytes, n, &why), -1);
        assert_string_equal(why.param, bad[i].param);
    }
}


static void
ids_are_in_the_vocabulary(void **state)
{
    char                 bytes[512];
    struct serve_refusal why;
    struct abi_request   r;
    uint32_t             ids[2] = { 0, N_VOCAB - 1 };

    (void) state;

    good(bytes);
    memcpy(&r, bytes, sizeof(r));
    r.kind = ABI_COMPLETION_IDS;
    r.n_biases = r.n_stops = r.n_salt = 0;
    r.n_body = 8;
    r.n_bytes = sizeof(r) + 8;
    memcpy(bytes, &r, sizeof(r));
    memcpy(bytes + sizeof(r), ids, sizeof(ids));
    assert_int_equal(parse(bytes, r.n_bytes, &why), 0);

    ids[1] = N_VOCAB;
    memcpy(bytes + sizeof(r), ids, sizeof(ids));
    assert_int_equal(parse(bytes, r.n_bytes, &why), -1);
    assert_string_equal(why.param, "prompt");

    r.n_body = 7;
    memcpy(bytes, &r, sizeof(r));
    assert_int_equal(parse(bytes, r.n_bytes, &why), -1);
}


/* A request that goes on: what each choice has said, and every way to say it
 * wrongly. */
static void
resumes(void **state)
{
    static const struct { size_t at; uint32_t v; const char *param; } bad[] = {
        { 0, 3, "" },               /* more ids than there are */
        { 0, UINT32_MAX, "" },
        { 8, ABI_LENGTH + 1, "" },
        { 12, 1, "" },
        { 20, N_VOCAB, "prompt" },
    };
    struct abi_resume    resume = { .n_tok = 2, .n_text = 5,
                                    .reason = ABI_STOP };
    uint32_t             ids[2] = { 3, N_VOCAB - 1 }, got;
    char                 bytes[512];
    struct abi_request   r;
    struct serve_request q;
    struct serve_refusal why;
    size_t               at = good(bytes);

    (void) state;

    memcpy(bytes + at, &resume, sizeof(resume));
    memcpy(bytes + at + sizeof(resume), ids, sizeof(ids));
    memcpy(&r, bytes, sizeof(r));
    r.n_resumes = 1;
    r.n_bytes = (uint32_t) (at + sizeof(resume) + sizeof(ids));
    memcpy(bytes, &r, sizeof(r));

    assert_int_equal(serve_request_parse(bytes, r.n_bytes, N_VOCAB, &q, &why),
                     0);
    assert_int_equal(q.resumes[0].abi.n_tok, 2);
    assert_int_equal(q.resumes[0].abi.n_text, 5);
    assert_int_equal(q.resumes[0].abi.reason, ABI_STOP);
    memcpy(&got, q.resumes[0].ids + 4, sizeof(got));
    assert_int_equal(got, N_VOCAB - 1);

    for (size_t i = 0; i < BASE_COUNT(bad); i++) {
        char copy[512];

        memcpy(copy, bytes, sizeof(copy));
        memcpy(copy + at + bad[i].at, &bad[i].v, 4);
        assert_int_equal(parse(copy, r.n_bytes, &why), -1);
        assert_string_equal(why.param, bad[i].param);
    }

    for (uint32_t n = (uint32_t) at; n < r.n_bytes; n++) {
        memcpy(bytes, &n, sizeof(n));
        assert_int_equal(parse(bytes, n, &why), -1);
    }
}


int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_request),
        cmocka_unit_test(every_prefix_is_refused),
        cmocka_unit_test(every_range),
        cmocka_unit_test(ungiven_is_ignored),
        cmocka_unit_test(biases_and_stops),
        cmocka_unit_test(ids_are_in_the_vocabulary),
        cmocka_unit_test(resumes),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);

    return cmocka_run_group_tests(tests, NULL, NULL);
}
