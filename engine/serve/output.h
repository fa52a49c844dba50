/*
 * output.h - the tokens of one choice to event frames: whole characters,
 * no stop string and no marker in them, reasoning apart from content.
 *
 *   token -> detok -> serve_stop -> parse -> DELTA frames in an outbox
 *
 * A token whose text is held back rides with the next that shows some; with
 * log-probabilities every token has its own frame.  Frames lie in the outbox
 * one after the other, header and payload, unpadded.
 *
 * Must not know rings, credits or jobs.
 */
#ifndef MOE_SERVE_OUTPUT_H
#define MOE_SERVE_OUTPUT_H

#include "abi.h"
#include "parse.h"
#include "sampler.h"
#include "serve/stop.h"
#include "tokenizer/tokenizer.h"

#define SERVE_IDS_MAX   32      /* tokens that wait for text */
#define SERVE_TEXT_MAX  1024    /* bytes of text in one frame */

struct serve_output {
    const struct tokenizer *tokenizer;
    struct buf         *outbox;         /* the job's */
    struct abi_frame    frame;          /* slot and gen */
    uint8_t             choice;
    uint8_t             keep_special;

    struct detok        detok;
    struct serve_stop   stop;
    struct parse        parse;
    struct buf          text;           /* of one token */
    struct buf          said;           /* of it what is to be shown ... */
    enum parse_channel  said_channel;   /* ... there */
    size_t              n_late;         /* held bytes of earlier tokens ... */
    enum parse_channel  late_channel;   /* ... which are to come there */
    uint32_t            n_skip_tok;     /* known already: not to be sent */
    size_t              n_skip_text;    /* bytes of them */

    uint32_t            ids[SERVE_IDS_MAX];
    uint16_t            n_ids;
    uint32_t            n_reasoning;    /* tokens */
    const struct sampler_logprob *logprobs;     /* of this token, or NULL */
    uint32_t            n_logprobs;
};

/* Bytes that one token can add to the outbox at most, with these sizes. */
size_t serve_output_bytes(size_t piece_bytes, size_t stop_bytes);

void serve_output_free(struct serve_output *o);

/* 1: a stop string came, this token was the last; 0: go on; -1: no memory. */
int serve_output_token(struct serve_output *o, uint32_t token,
                       const struct sampler_logprob *logprobs,
                       uint32_t n_logprobs);

/* No more tokens: shows what was held back.  stopped: at a stop string. */
int serve_output_end(struct serve_output *o, int stopped);

/* Shows text that is not the model's own: an echoed prompt. */
int serve_output_echo(struct serve_output *o, const char *p, size_t n);

/* Tells what a token of the prompt was worth, and not its text if it is hidden;
 * the bytes of that, at most. */
int serve_output_prompt(const struct serve_output *o,
                        const struct sampler_logprob *logprobs, uint32_t n,
                        int hidden);
size_t serve_output_prompt_bytes(uint32_t n_logprobs);

/* Appends any frame; slot and gen are in f. */
int serve_output_frame(struct buf *outbox, struct abi_frame f, uint8_t type,
                       const void *a, size_t n_a, const void *b, size_t n_b);

#endif /* MOE_SERVE_OUTPUT_H */
