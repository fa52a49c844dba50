/*
 * parse.h - a model's output text to typed deltas: what is reasoning and what
 * is the answer.  One small state machine a stream, fed with whole characters
 * as they come, however they are cut; markers never leak and are never lost.
 *
 * `<think>`...`</think>` in this version; must not know JSON, ids or the ring.
 */
#ifndef MOE_PARSE_H
#define MOE_PARSE_H

#include "base.h"

enum parse_channel {
    PARSE_CONTENT = 0,
    PARSE_REASONING = 1
};

#define PARSE_HELD_MAX  40

/* Zero-initialised, then parse_begin(). */
struct parse {
    uint8_t     channel;        /* enum parse_channel, now */
    uint8_t     watch;          /* for the marker that would end it */
    uint8_t     trim;           /* newlines after a marker are to be eaten */
    uint8_t     n_mark;         /* bytes of that marker seen */
    uint8_t     n_held;         /* white space, then those bytes */
    char        held[PARSE_HELD_MAX];
};

/*
 * Starts a stream.  prompt is the rendered prompt: where it ends in an open
 * "<think>" (white space may follow), the output starts inside reasoning.
 * raw: no parsing, everything is content.
 */
void parse_begin(struct parse *p, const char *prompt, size_t n, int raw);

/* A piece of output of one channel; text is borrowed until the next call. */
typedef int (*parse_emit)(void *ctx, enum parse_channel channel,
                          const char *text, size_t n);

/* Feeds n bytes of whole characters; emits 0 or more pieces, none empty.
 * 0, or what emit returned when it was not 0. */
int parse_text(struct parse *p, const char *text, size_t n, parse_emit emit,
               void *ctx);

/* The stream is over: what was held back was text after all. */
int parse_end(struct parse *p, parse_emit emit, void *ctx);

#endif /* MOE_PARSE_H */
