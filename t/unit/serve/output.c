/*
 * Tests of engine/serve/output.c: tokens of a real tokenizer in, frames out.
 * What the frames say together is compared with the whole text, parsed at once.
 */
#include "engine/serve/output.c"
#include "unicode/unicode.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <cmocka.h>
#include <jansson.h>

#include "rng.h"

#define N_EVENTS    1024
#define HAN         "\xe6\xbc\xa2"

/* One byte each from 0 to 255, then these. */
static const char *const words[] = {
    "Hello", " world", "!", "think", "</", ">\xc3\xa9t", "ink>", "\n\n", " ",
    "xE", "Dy", "<think>", "</think>", "Na", HAN HAN, "\xf0\x9f\x98\x80!",
    "\n</think", ">\n\nab", "     ", "</think>\n" HAN, "<|end|>"
};

#define ID_LONG     (256 + BASE_COUNT(words))       /* 1200 Han characters */
#define N_IDS       (ID_LONG + 1)

struct event {
    uint32_t    ids[SERVE_IDS_MAX];
    uint16_t    n_ids;
    uint8_t     channel;
    size_t      from, n;            /* of the text of all, in order */
    uint16_t    n_logprobs;
    uint32_t    logprob_of;
    uint16_t    n_top;
};

struct stream {
    struct serve_output        o;
    struct buf                 outbox;
    struct arena               arena;
    struct serve_stop_pattern *patterns;
    uint32_t                   n_top;

    struct event    events[N_EVENTS];
    size_t          n_events;
    struct buf      text;           /* of all events */
    struct buf      channel[2];
    uint32_t        ids[N_EVENTS];
    size_t          n_ids;
};

static struct tokenizer *tokenizer;
static struct stream     one, two;


static int
load(void **state)
{
    char        dir[] = "/tmp/moe-output-XXXXXX", path[64];
    struct err  e = { "" };
    struct buf  han = { 0 };
    json_t     *vocab = json_object();

    (void) state;

    for (int b = 0; b < 256; b++) {
        snprintf(path, sizeof(path), "<0x%02X>", (unsigned) b);
        json_object_set_new(vocab, path, json_integer(b));
    }

    for (size_t i = 0; i < BASE_COUNT(words); i++) {
        json_object_set_new(vocab, words[i], json_integer((int) (256 + i)));
    }

    for (int i = 0; i < 1200; i++) {
        buf_adds(&han, HAN);
    }

    json_object_set_new(vocab, han.p, json_integer((int) ID_LONG));

    json_t *root = json_pack(
        "{s:{s:s,s:o,s:[],s:b},s:{s:s},s:[{s:i,s:s,s:b}]}",
        "model", "type", "BPE", "vocab", vocab, "merges", "byte_fallback", 1,
        "decoder", "type", "ByteFallback",
        "added_tokens", "id", (int) ID_LONG - 1, "content", "<|end|>",
        "special", 1);

    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/tokenizer.json", dir);
    assert_int_equal(json_dump_file(root, path, 0), 0);

    tokenizer = tokenizer_load(dir, &e);

    unlink(path);
    rmdir(dir);
    json_decref(root);
    buf_free(&han);

    if (tokenizer == NULL) {
        print_error("%s\n", e.text);
    }

    return tokenizer == NULL;
}


static int
unload(void **state)
{
    (void) state;
    tokenizer_free(tokenizer);

    return 0;
}


static uint32_t
id_of(const char *word)
{
    int64_t id = tokenizer_id(tokenizer, word, strlen(word));

    assert_true(id >= 0);

    return (uint32_t) id;
}


static void
begin(struct stream *s, const char *prompt, const char *stop, uint32_t n_top)
{
    struct slice text = { stop, stop != NULL ? strlen(stop) : 0 };

    memset(s, 0, sizeof(*s));
    s->n_top = n_top;
    s->o.tokenizer = tokenizer;
    s->o.outbox = &s->outbox;
    s->o.frame = (struct abi_frame) { .slot = 3, .gen = 77 };
    s->o.choice = 5;
    parse_begin(&s->o.parse, prompt, strlen(prompt), 0);
    assert_int_equal(serve_stop_compile(&s->arena, &text, stop != NULL,
                                        &s->patterns), 0);
    assert_int_equal(serve_stop_begin(&s->o.stop, &s->arena, s->patterns,
                                      stop != NULL, 4096), 0);
}


static void
end(struct stream *s)
{
    serve_output_free(&s->o);
    arena_free(&s->arena);
    buf_free(&s->outbox);
    buf_free(&s->text);
    buf_free(&s->channel[0]);
    buf_free(&s->channel[1]);
}


static const char *
take(const char **p, const char *stop, size_t n)
{
    const char *at = *p;

    assert_true(n <= (size_t) (stop - at));
    *p += n;

    while ((*p - at) % 4 != 0) {        /* zeros up to a multiple of 4 */
        assert_true(*p < stop && **p == 0);
        (*p)++;
    }

    return at;
}


static void
read_logprobs(const struct stream *s, struct event *v, const char **p,
              const char *stop)
{
    for (uint32_t i = 0; i < s->n_top * v->n_logprobs; i++) {
        struct abi_logprob l;

        memcpy(&l, take(p, stop, sizeof(l)), sizeof(l));

        struct slice piece = tokenizer_piece(tokenizer, l.token);
        size_t       n = piece.n < PIECE_MAX ? piece.n : PIECE_MAX;

        if (i == 0) {
            v->logprob_of = l.token;
            v->n_top = l.n_top;
        } else {
            assert_int_equal(l.n_top, 0);
        }

        assert_int_equal(l.n_text, n);
        assert_memory_equal(take(p, stop, n), piece.p, n);
        assert_true(l.logprob == -(float) l.token);
    }
}


/* All frames of the outbox; those of a token are what it may add. */
static void
read_frames(struct stream *s)
{
    const char *p = s->outbox.p, *end = p + s->outbox.n;

    while (p < end) {
        struct abi_frame f;
        struct abi_delta d;
        struct event    *v = &s->events[s->n_events++];

        assert_true(s->n_events < N_EVENTS);
        memcpy(&f, p, sizeof(f));
        p += sizeof(f);
        assert_true(f.type == ABI_DELTA && f.slot == 3 && f.gen == 77
                    && f.flags == 0 && f.n_bytes <= (size_t) (end - p)
                    && sizeof(f) + f.n_bytes <= ABI_EVENT_MAX);

        const char *stop = p + f.n_bytes;

        memcpy(&d, take(&p, stop, sizeof(d)), sizeof(d));
        assert_true(d.choice == 5 && d.n_tok <= SERVE_IDS_MAX
                    && d.n_text <= SERVE_TEXT_MAX && d.n_logprobs <= 1
                    && d.n_tok + d.n_text > 0);

        v->channel = d.channel;
        v->n_ids = d.n_tok;
        v->n_logprobs = d.n_logprobs;
        memcpy(v->ids, take(&p, stop, d.n_tok * 4u), d.n_tok * 4u);
        memcpy(s->ids + s->n_ids, v->ids, d.n_tok * 4u);
        s->n_ids += d.n_tok;

        const char *text = take(&p, stop, d.n_text);

        assert_int_equal(unicode_valid(text, d.n_text), d.n_text);
        v->from = s->text.n;
        v->n = d.n_text;
        buf_add(&s->text, text, d.n_text);
        buf_add(&s->channel[d.channel], text, d.n_text);
        read_logprobs(s, v, &p, stop);
        assert_ptr_equal(p, stop);
    }

    buf_reset(&s->outbox);
}


static int
feed(struct stream *s, uint32_t id)
{
    struct sampler_logprob l[3];
    size_t                 most = serve_output_bytes(4096, 64);

    for (uint32_t i = 0; i < s->n_top; i++) {
        l[i].token = i == 0 ? id : (id + 97 * i) % N_IDS;
        l[i].logprob = -(float) l[i].token;
    }

    int rc = serve_output_token(&s->o, id, s->n_top > 0 ? l : NULL, s->n_top);

    assert_true(rc == 0 || rc == 1);
    assert_true(s->outbox.n <= most);
    read_frames(s);

    return rc;
}


static int
word(struct stream *s, const char *text)
{
    return feed(s, id_of(text));
}


static void
finish(struct stream *s, int stopped)
{
    assert_int_equal(serve_output_end(&s->o, stopped), 0);
    read_frames(s);
}


/* The i-th event: so many ids, this text, there. */
static void
expect(const struct stream *s, size_t i, uint16_t n_ids, const char *text,
       uint8_t channel)
{
    assert_true(i < s->n_events);

    const struct event *v = &s->events[i];

    assert_int_equal(v->n, strlen(text));
    assert_memory_equal(s->text.p + v->from, text, v->n);
    assert_int_equal(v->n_ids, n_ids);
    assert_int_equal(v->channel, channel);
}


static void
one_delta_a_token(void **state)
{
    struct stream *s = &one;

    (void) state;
    begin(s, "", NULL, 0);

    word(s, "Hello");
    expect(s, 0, 1, "Hello", ABI_CONTENT);
    word(s, " world");
    expect(s, 1, 1, " world", ABI_CONTENT);
    word(s, "!");
    expect(s, 2, 1, "!", ABI_CONTENT);
    finish(s, 0);
    assert_int_equal(s->n_events, 3);

    end(s);
}


/* White space in front of what might be a marker is held; its token has its
 * own DELTA nevertheless. */
static void
held_white_space(void **state)
{
    struct stream *s = &one;

    (void) state;
    begin(s, "", NULL, 0);

    word(s, "\n\n");
    word(s, " ");
    assert_int_equal(s->n_events, 0);
    word(s, "Hello");
    expect(s, 0, 2, "\n\n ", ABI_CONTENT);
    expect(s, 1, 1, "Hello", ABI_CONTENT);
    assert_int_equal(s->events[1].ids[0], id_of("Hello"));
    finish(s, 0);
    assert_int_equal(s->n_events, 2);

    end(s);
}


static void
markers_in_pieces(void **state)
{
    struct stream *s = &one;

    (void) state;
    begin(s, "", NULL, 0);

    feed(s, '<');
    word(s, "think");
    feed(s, '>');
    word(s, "\n\n");
    word(s, "Hello");
    word(s, " ");
    word(s, "</");
    word(s, "think");
    feed(s, '>');
    word(s, "\n\n");
    word(s, "!");
    finish(s, 0);

    expect(s, 0, 5, "Hello", ABI_REASONING);
    expect(s, 1, 6, "!", ABI_CONTENT);
    assert_int_equal(s->n_events, 2);
    assert_int_equal(s->o.n_reasoning, 6);

    end(s);
}


/* The held bytes were counted as text of earlier tokens although a marker had
 * swallowed them: the text behind it was cut there, even within a character. */
static void
text_behind_a_marker(void **state)
{
    struct stream *s = &one;

    (void) state;
    begin(s, "<think>", NULL, 0);

    word(s, "Hello");
    word(s, "\n</think");
    word(s, ">\xc3\xa9t");
    word(s, "!");
    expect(s, 0, 1, "Hello", ABI_REASONING);
    expect(s, 1, 2, "\xc3\xa9t", ABI_CONTENT);
    expect(s, 2, 1, "!", ABI_CONTENT);
    end(s);

    begin(s, "<think>", NULL, 0);
    word(s, "Hello");
    word(s, " ");
    word(s, "</think>\n" HAN);
    word(s, "!");
    expect(s, 1, 2, HAN, ABI_CONTENT);
    expect(s, 2, 1, "!", ABI_CONTENT);
    end(s);
}


static void
stop_across_tokens(void **state)
{
    struct stream *s = &one;

    (void) state;
    begin(s, "", "END", 0);
    word(s, "xE");
    expect(s, 0, 1, "x", ABI_CONTENT);
    word(s, "Na");          /* no stop string after all */
    expect(s, 1, 1, "ENa", ABI_CONTENT);
    word(s, "xE");
    feed(s, 'N');
    assert_int_equal(s->n_events, 3);
    assert_int_equal(word(s, "Dy"), 1);
    finish(s, 1);
    assert_int_equal(s->text.n, 5);
    assert_memory_equal(s->text.p, "xENax", 5);
    end(s);

    begin(s, "", "END", 0);     /* held at the end: it was text */
    word(s, "xE");
    feed(s, 'N');
    finish(s, 0);
    expect(s, 1, 1, "EN", ABI_CONTENT);
    end(s);
}


static void
half_characters(void **state)
{
    struct stream *s = &one;

    (void) state;
    begin(s, "", NULL, 0);
    feed(s, 0xf0);
    feed(s, 0x9f);
    feed(s, 0x98);
    assert_int_equal(s->n_events, 0);
    feed(s, 0x80);
    expect(s, 0, 4, "\xf0\x9f\x98\x80", ABI_CONTENT);
    feed(s, 0xe6);
    finish(s, 0);
    expect(s, 1, 1, "\xef\xbf\xbd", ABI_CONTENT);
    end(s);

    begin(s, "", NULL, 0);      /* white space held before it */
    word(s, " ");
    feed(s, 0xe6);
    finish(s, 0);
    expect(s, 0, 1, " ", ABI_CONTENT);
    expect(s, 1, 1, "\xef\xbf\xbd", ABI_CONTENT);
    end(s);
}


/* Cut between characters; the ids are in the first frame. */
static void
long_piece(void **state)
{
    struct stream *s = &one;

    (void) state;

    for (uint32_t n_top = 0; n_top <= 3; n_top += 3) {
        begin(s, "", NULL, n_top);
        feed(s, 'a');
        feed(s, ID_LONG);
        feed(s, 'b');
        finish(s, 0);

        assert_int_equal(s->n_events, 6);
        assert_int_equal(s->events[1].n, 1023);
        assert_int_equal(s->events[1].n_ids, 1);
        assert_int_equal(s->events[2].n_ids, 0);
        assert_int_equal(s->events[1].n_logprobs, n_top > 0);
        assert_int_equal(s->events[2].n_logprobs, 0);
        assert_int_equal(s->text.n, 3602);
        end(s);
    }
}


/* Ids without text do not wait for ever. */
static void
tokens_without_text(void **state)
{
    struct stream *s = &one;

    (void) state;
    begin(s, "", NULL, 0);

    for (int i = 0; i < 40; i++) {
        word(s, "<|end|>");
    }

    expect(s, 0, SERVE_IDS_MAX, "", ABI_CONTENT);
    word(s, "!");
    expect(s, 1, 40 - SERVE_IDS_MAX + 1, "!", ABI_CONTENT);
    end(s);

    begin(s, "", NULL, 0);
    s->o.keep_special = 1;
    word(s, "<|end|>");
    expect(s, 0, 1, "<|end|>", ABI_CONTENT);
    end(s);
}


static void
echo_comes_first(void **state)
{
    struct stream *s = &one;
    struct buf     text = { 0 };

    (void) state;
    begin(s, "", NULL, 3);

    for (int i = 0; i < 1000; i++) {
        buf_adds(&text, HAN);
    }

    assert_int_equal(serve_output_echo(&s->o, text.p, text.n), 0);
    read_frames(s);
    assert_int_equal(s->n_events, 3);
    assert_int_equal(s->n_ids, 0);
    word(s, "Hello");
    expect(s, 3, 1, "Hello", ABI_CONTENT);
    assert_int_equal(s->events[3].n_logprobs, 1);

    buf_free(&text);
    end(s);
}


/* A token of any kind; bytes that make half characters, markers and their
 * beginnings, stop strings and theirs. */
static uint32_t
any_token(void)
{
    static const char bytes[] = "<>/thinkEND \n\xe6\xbc\xa2\xc3";

    switch (rng(4)) {

    case 0:
        return (uint8_t) bytes[rng(sizeof(bytes) - 1)];

    case 1:
        return rng(20) == 0 ? ID_LONG : rng(256);

    default:
        return 256 + rng(BASE_COUNT(words));
    }
}


static int
collect(void *ctx, enum parse_channel channel, const char *text, size_t n)
{
    return buf_add(&((struct buf *) ctx)[channel], text, n);
}


/* The same tokens as one text. */
static void
reference(const uint32_t *ids, size_t n, const char *prompt, const char *stop,
          struct buf channel[2])
{
    struct detok d = { 0 };
    struct parse p;
    struct buf   text = { 0 };

    for (size_t i = 0; i < n; i++) {
        detok_step(&d, tokenizer, ids[i], 0, &text);
    }

    detok_end(&d, &text);

    const char *cut = stop != NULL && text.n > 0
                      ? memmem(text.p, text.n, stop, strlen(stop)) : NULL;

    parse_begin(&p, prompt, strlen(prompt), 0);
    parse_text(&p, text.p, cut != NULL ? (size_t) (cut - text.p) : text.n,
               collect, channel);
    parse_end(&p, collect, channel);
    buf_free(&text);
}


static void
assert_same(const struct buf *a, const struct buf *b)
{
    assert_int_equal(a->n, b->n);

    if (a->n > 0) {
        assert_memory_equal(a->p, b->p, a->n);
    }
}


/* Ids in order, and each with its log-probability, in a frame of its own. */
static void
check_ids(const struct stream *s, const uint32_t *ids, size_t n)
{
    assert_true(s->n_ids <= n && n - s->n_ids < SERVE_IDS_MAX);
    assert_memory_equal(s->ids, ids, s->n_ids * sizeof(*ids));

    if (s->n_top == 0) {
        return;
    }

    assert_int_equal(s->n_ids, n);

    for (size_t i = 0; i < s->n_events; i++) {
        const struct event *v = &s->events[i];

        assert_int_equal(v->n_logprobs, v->n_ids);
        assert_true(v->n_ids == 0 || (v->logprob_of == v->ids[0]
                                      && v->n_top == s->n_top - 1));
    }
}


/* Goes on behind the i-th event of s: what comes is what s had behind it. */
static void
resume_behind(const struct stream *s, size_t i, const uint32_t *ids, size_t n,
              const char *prompt, const char *stop)
{
    struct stream *r = &two;
    size_t         n_known = 0;
    int            rc = 0;

    begin(r, prompt, stop, 0);

    for (size_t k = 0; k <= i; k++) {
        n_known += s->events[k].n_ids;
        r->o.n_skip_text += s->events[k].n;
    }

    r->o.n_skip_tok = (uint32_t) n_known;

    size_t n_text = r->o.n_skip_text;

    for (size_t k = 0; k < n && rc == 0; k++) {
        r->n_top = k < n_known ? 0 : s->n_top;
        rc = feed(r, ids[k]);
    }

    finish(r, rc);

    assert_int_equal(r->n_ids, s->n_ids - n_known);
    assert_memory_equal(r->ids, s->ids + n_known, r->n_ids * sizeof(*ids));
    assert_int_equal(r->text.n, s->text.n - n_text);

    if (r->text.n > 0) {
        assert_memory_equal(r->text.p, s->text.p + n_text, r->text.n);
    }

    end(r);
}


static void
any_tokens(void **state)
{
    static const char *const prompts[] = { "", "<think>\n" };
    static const char *const stops[] = { NULL, "END", HAN "!", " " };

    (void) state;

    for (int i = 0; i < 3000; i++) {
        struct stream *s = &one;
        struct buf     want[2] = { { 0 }, { 0 } };
        uint32_t       ids[40], n = 1 + rng(40), k = 0;
        const char    *prompt = prompts[rng(2)], *stop = stops[rng(4)];
        int            rc = 0;

        begin(s, prompt, stop, rng(2) * 3);

        while (k < n && rc == 0) {
            ids[k] = any_token();
            rc = feed(s, ids[k++]);
        }

        finish(s, rc);
        reference(ids, k, prompt, stop, want);
        assert_same(&s->channel[0], &want[0]);
        assert_same(&s->channel[1], &want[1]);
        check_ids(s, ids, k);

        if (s->n_events > 0) {
            resume_behind(s, rng((uint32_t) s->n_events), ids, k, prompt,
                          stop);
        }

        buf_free(&want[0]);
        buf_free(&want[1]);
        end(s);
    }
}


int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_delta_a_token),
        cmocka_unit_test(held_white_space),
        cmocka_unit_test(markers_in_pieces),
        cmocka_unit_test(text_behind_a_marker),
        cmocka_unit_test(stop_across_tokens),
        cmocka_unit_test(half_characters),
        cmocka_unit_test(long_piece),
        cmocka_unit_test(tokens_without_text),
        cmocka_unit_test(echo_comes_first),
        cmocka_unit_test(any_tokens)
    };

    rng_state = 20261124;
    cmocka_set_message_output(CM_OUTPUT_TAP);

    return cmocka_run_group_tests(tests, load, unload);
}
