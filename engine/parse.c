/*
 * parse.c - see parse.h.
 *
 *     output    = [ { white } "<think>" reasoning ] answer
 *     reasoning = { newline } text { white } "</think>" { newline }
 *
 * "<think>" counts only where the output begins, "</think>" only in reasoning:
 * elsewhere they are text.  What might be a marker, and the white space that a
 * marker would swallow, is held until it is decided; as the decision looks at
 * bytes alone it does not depend on how the output was cut.  White space that
 * runs longer than is held is passed on.
 */
#include "parse.h"

#include <string.h>

static const char mark_open[] = "<think>";
static const char mark_close[] = "</think>";

#define MARK_MAX    (sizeof(mark_close) - 1)


static int
is_white(char c)
{
    return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}


void
parse_begin(struct parse *p, const char *prompt, size_t n, int raw)
{
    size_t len = sizeof(mark_open) - 1;

    while (n > 0 && is_white(prompt[n - 1])) {
        n--;
    }

    memset(p, 0, sizeof(*p));
    p->watch = !raw;

    if (!raw && n >= len && memcmp(prompt + n - len, mark_open, len) == 0) {
        p->channel = PARSE_REASONING;
        p->trim = 1;
    }
}


static int
emit_some(struct parse *p, const char *text, size_t n, parse_emit emit,
          void *ctx)
{
    return n != 0 ? emit(ctx, (enum parse_channel) p->channel, text, n) : 0;
}


/* What is held is text: out with it. */
static int
release(struct parse *p, parse_emit emit, void *ctx)
{
    size_t n = p->n_held;

    p->n_held = 0;
    p->n_mark = 0;

    return emit_some(p, p->held, n, emit, ctx);
}


static void
mark_done(struct parse *p)
{
    p->watch = p->channel == PARSE_CONTENT;
    p->channel = p->channel == PARSE_CONTENT ? PARSE_REASONING
                                             : PARSE_CONTENT;
    p->n_held = 0;
    p->n_mark = 0;
    p->trim = 1;
}


/* Takes c if it may belong to the marker that is watched for: 1. */
static int
hold(struct parse *p, char c)
{
    const char *mark = p->channel == PARSE_CONTENT ? mark_open : mark_close;

    if (c == mark[p->n_mark]) {
        p->held[p->n_held++] = c;

        if (mark[++p->n_mark] == '\0') {
            mark_done(p);
        }

        return 1;
    }

    if (p->n_mark == 0 && is_white(c) && p->n_held < PARSE_HELD_MAX - MARK_MAX)
    {
        p->held[p->n_held++] = c;
        return 1;
    }

    return 0;
}


int
parse_text(struct parse *p, const char *text, size_t n, parse_emit emit,
           void *ctx)
{
    size_t from = 0;            /* what is before i, neither held nor out */
    int    rc;

    for (size_t i = 0; i < n; i++) {
        if (p->trim && (text[i] == '\n' || text[i] == '\r')) {
            from = i + 1;
            continue;
        }

        p->trim = 0;

        if (!p->watch) {
            break;
        }

        if (p->n_held == 0) {
            uint8_t channel = p->channel;

            if (!hold(p, text[i])) {
                /* Content that begins otherwise has no reasoning. */
                p->watch = channel == PARSE_REASONING;
                continue;
            }

            if ((rc = emit_some(p, text + from, i - from, emit, ctx)) != 0) {
                return rc;
            }

            from = i + 1;
            continue;
        }

        if (hold(p, text[i])) {
            from = i + 1;
            continue;
        }

        if ((rc = release(p, emit, ctx)) != 0) {
            return rc;
        }

        if (p->channel == PARSE_CONTENT) {
            p->watch = 0;

        } else if (hold(p, text[i])) {
            from = i + 1;
        }
    }

    return emit_some(p, text + from, n - from, emit, ctx);
}


int
parse_end(struct parse *p, parse_emit emit, void *ctx)
{
    p->watch = 0;

    return release(p, emit, ctx);
}
