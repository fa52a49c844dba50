/*
 * output.c - see serve/output.h.
 */
#include "serve/output.h"

#include <string.h>

/* Of a token's own bytes in a logprob entry: 21 entries, 1 KiB of text and the
 * ids fit into ABI_EVENT_MAX.  The longest real tokens are 128 spaces. */
#define PIECE_MAX       120

static_assert(sizeof(struct abi_frame) + sizeof(struct abi_delta)
              + SERVE_IDS_MAX * sizeof(uint32_t) + SERVE_TEXT_MAX
              + (1 + ABI_TOP_LOGPROBS_MAX)
                * (sizeof(struct abi_logprob) + PIECE_MAX) <= ABI_EVENT_MAX,
              "a DELTA fits into a frame");
static_assert(PIECE_MAX % 4 == 0 && SERVE_TEXT_MAX % 4 == 0, "padding");


size_t
serve_output_bytes(size_t piece_bytes, size_t stop_bytes)
{
    /* All the text in pieces as short as a marker, each with its headers; and
     * one full frame's ids and logprobs. */
    size_t text = piece_bytes + stop_bytes + sizeof(((struct parse *) 0)->held)
                  + 3;

    return 6 * text + ABI_EVENT_MAX;
}


void
serve_output_free(struct serve_output *o)
{
    serve_stop_free(&o->stop);
    buf_free(&o->text);
    buf_free(&o->said);
}


int
serve_output_frame(struct buf *outbox, struct abi_frame f, uint8_t type,
                   const void *a, size_t n_a, const void *b, size_t n_b)
{
    size_t n;

    f.type = type;
    f.flags = 0;
    f.n_bytes = (uint32_t) (n_a + n_b);

    if (size_add(sizeof(f), n_a + n_b, &n) != 0
        || buf_reserve(outbox, n) != 0)
    {
        return -1;
    }

    buf_add(outbox, &f, sizeof(f));
    buf_add(outbox, a, n_a);
    buf_add(outbox, b, n_b);

    return 0;
}


/* Bytes, and zeros up to a multiple of 4. */
static void
add_padded(char **p, const void *bytes, size_t n)
{
    if (n > 0) {
        memcpy(*p, bytes, n);
    }

    memset(*p + n, 0, -n & 3);
    *p += n + (-n & 3);
}


static void
add_logprob(char **p, struct slice piece, const struct sampler_logprob *l,
            uint32_t n_top)
{
    size_t             n = piece.p == NULL ? 0 : piece.n;
    struct abi_logprob entry = {
        .token = l->token, .logprob = l->logprob, .rank = l->rank,
        .n_top = (uint16_t) n_top
    };

    n = n < PIECE_MAX ? n : PIECE_MAX;
    entry.n_text = (uint16_t) n;

    add_padded(p, &entry, sizeof(entry));
    add_padded(p, piece.p, n);
}


static void
drop_ids(struct serve_output *o, uint16_t n)
{
    o->n_ids = (uint16_t) (o->n_ids - n);
    memmove(o->ids, o->ids + n, o->n_ids * sizeof(o->ids[0]));
}


/* One DELTA of at most SERVE_TEXT_MAX bytes of text; it takes the first n_ids
 * ids along, and with the last one the logprobs.  What is known is left out. */
static int
delta(struct serve_output *o, enum parse_channel channel, const char *text,
      size_t n, uint16_t n_ids)
{
    uint16_t skip_ids = n_ids < o->n_skip_tok ? n_ids
                                              : (uint16_t) o->n_skip_tok;
    size_t   skip = n < o->n_skip_text ? n : o->n_skip_text;

    o->n_skip_tok -= skip_ids;
    o->n_skip_text -= skip;
    n_ids = (uint16_t) (n_ids - skip_ids);
    n -= skip;
    drop_ids(o, skip_ids);

    if (skip_ids + skip > 0 && n_ids == 0 && n == 0) {
        return 0;
    }

    uint32_t         n_logprobs = n_ids == o->n_ids ? o->n_logprobs : 0;
    char             payload[ABI_EVENT_MAX];
    char            *p = payload;
    struct abi_delta d = {
        .choice = o->choice,
        .channel = channel == PARSE_REASONING ? ABI_REASONING : ABI_CONTENT,
        .n_tok = n_ids,
        .n_text = (uint16_t) n,
        .n_logprobs = n_logprobs > 0
    };

    add_padded(&p, &d, sizeof(d));
    add_padded(&p, o->ids, n_ids * sizeof(o->ids[0]));
    add_padded(&p, text + skip, n);

    for (uint32_t i = 0; i < n_logprobs; i++) {
        const struct sampler_logprob *l = &o->logprobs[i];

        add_logprob(&p, tokenizer_piece(o->tokenizer, l->token), l,
                    i == 0 ? n_logprobs - 1 : 0);
    }

    drop_ids(o, n_ids);
    o->n_logprobs -= n_logprobs;

    return serve_output_frame(o->outbox, o->frame, ABI_DELTA, payload,
                              (size_t) (p - payload), NULL, 0);
}


/* What was gathered goes out, cut between characters where it is long, with
 * n_ids of the ids. */
static int
flush(struct serve_output *o, uint16_t n_ids)
{
    const char *text = o->said.p;
    size_t      n = o->said.n;

    while (n > 0) {
        size_t cut = n < SERVE_TEXT_MAX ? n : SERVE_TEXT_MAX;

        while (cut > 0 && cut < n && ((uint8_t) text[cut] & 0xc0) == 0x80) {
            cut--;
        }

        assert(cut > 0);    /* detok gives whole characters */

        if (delta(o, o->said_channel, text, cut, n_ids) != 0) {
            return -1;
        }

        n_ids = 0;
        text += cut;
        n -= cut;
    }

    buf_reset(&o->said);

    return 0;
}


/*
 * Text comes in pieces where a marker might have begun.  What was held back
 * from earlier tokens makes a DELTA of its own, so that there is one a token;
 * the rest is this token's, and one DELTA as long as it is of one channel.
 */
static int
gather(void *ctx, enum parse_channel channel, const char *text, size_t n)
{
    struct serve_output *o = ctx;

    if (o->said.n > 0 && channel != o->said_channel
        && flush(o, o->n_ids) != 0)
    {
        return -1;
    }

    o->said_channel = channel;

    /* What the parser held comes first or, if a marker swallowed it, never. */
    if (text != o->parse.held || channel != o->late_channel) {
        o->n_late = 0;
    }

    if (o->n_late > 0) {
        size_t late = n < o->n_late ? n : o->n_late;

        o->n_late = 0;

        if (buf_add(&o->said, text, late) != 0
            || flush(o, (uint16_t) (o->n_ids - 1)) != 0)
        {
            return -1;
        }

        text += late;
        n -= late;
    }

    return buf_add(&o->said, text, n);
}


static int
show(struct serve_output *o, struct slice text)
{
    o->n_late = o->n_ids > 0 ? o->parse.n_held : 0;
    o->late_channel = (enum parse_channel) o->parse.channel;

    if (text.n > 0 && parse_text(&o->parse, text.p, text.n, gather, o) != 0) {
        return -1;
    }

    return flush(o, o->n_ids);
}


size_t
serve_output_prompt_bytes(uint32_t n_logprobs)
{
    return sizeof(struct abi_frame)
           + n_logprobs * (sizeof(struct abi_logprob) + PIECE_MAX);
}


int
serve_output_prompt(const struct serve_output *o,
                    const struct sampler_logprob *logprobs, uint32_t n,
                    int hidden)
{
    char  payload[ABI_EVENT_MAX];
    char *p = payload;

    for (uint32_t i = 0; i < n; i++) {
        struct slice piece = { NULL, 0 };

        if (!hidden) {
            piece = tokenizer_piece(o->tokenizer, logprobs[i].token);
        }

        add_logprob(&p, piece, &logprobs[i], i == 0 ? n - 1 : 0);
    }

    return serve_output_frame(o->outbox, o->frame, ABI_PROMPT, payload,
                              (size_t) (p - payload), NULL, 0);
}


int
serve_output_echo(struct serve_output *o, const char *p, size_t n)
{
    return gather(o, PARSE_CONTENT, p, n) != 0 ? -1
                                                 : flush(o, o->n_ids);
}


int
serve_output_token(struct serve_output *o, uint32_t token,
                   const struct sampler_logprob *logprobs, uint32_t n_logprobs)
{
    struct slice shown = { NULL, 0 };
    int          stopped = 0;

    o->ids[o->n_ids++] = token;
    o->logprobs = logprobs;
    o->n_logprobs = n_logprobs;
    o->n_reasoning += o->parse.channel == PARSE_REASONING;

    buf_reset(&o->text);

    if (detok_step(&o->detok, o->tokenizer, token, o->keep_special, &o->text)
        != 0)
    {
        return -1;
    }

    if (o->text.n > 0) {
        stopped = serve_stop_text(&o->stop, o->text.p, o->text.n, &shown);
    }

    if (stopped < 0 || show(o, shown) != 0) {
        return -1;
    }

    /* Nothing was shown: the logprobs cannot wait, the ids not for ever. */
    if ((o->n_logprobs > 0 || o->n_ids == SERVE_IDS_MAX)
        && delta(o, (enum parse_channel) o->parse.channel, NULL, 0,
                 o->n_ids) != 0)
    {
        return -1;
    }

    return stopped;
}


int
serve_output_end(struct serve_output *o, int stopped)
{
    if (!stopped) {
        struct slice shown = { NULL, 0 };

        buf_reset(&o->text);

        if (detok_end(&o->detok, &o->text) != 0) {
            return -1;
        }

        stopped = serve_stop_text(&o->stop, o->text.p, o->text.n, &shown);

        if (stopped < 0 || show(o, shown) != 0) {
            return -1;
        }
    }

    if (!stopped && show(o, serve_stop_end(&o->stop)) != 0) {
        return -1;
    }

    o->n_late = 0;

    return parse_end(&o->parse, gather, o) != 0 ? -1 : flush(o, o->n_ids);
}
