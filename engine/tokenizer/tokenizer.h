/*
 * tokenizer.h - text to token ids and back.  A tokenizer is loaded once from a
 * model directory, is read-only afterwards, and may be used by many threads.
 *
 * Covers tokenizer.json (byte-level BPE, SentencePiece-style BPE with byte
 * fallback) and tiktoken rank files (qwen.tiktoken, tiktoken.model); the exact
 * subset is in the head of tokenizer.c.  What it does not cover is refused by
 * name at load.  Must not know models, templates or the ring.
 */
#ifndef MOE_TOKENIZER_H
#define MOE_TOKENIZER_H

#include "base.h"

struct tokenizer;

/* Ids in memory of the caller's; zero-initialised is empty. */
struct tokens {
    uint32_t   *ids;
    size_t      n;
    size_t      cap;
};

void tokens_free(struct tokens *t);
int tokens_add(struct tokens *t, uint32_t id);      /* 0, -1: no memory */

/* From tokenizer.json or *.tiktoken / tiktoken.model, with what
 * tokenizer_config.json adds.  NULL: e says which file and why. */
struct tokenizer *tokenizer_load(const char *dir, struct err *e);
void tokenizer_free(struct tokenizer *t);

/* Ids run from 0 to this, holes included. */
uint32_t tokenizer_n_vocab(const struct tokenizer *t);

/*
 * Appends the ids of n bytes of text.  Invalid UTF-8 is read as U+FFFD, as HF's
 * clients do.  Flags: */
#define TOKENIZER_ADDED     0x1     /* match added tokens ("<think>", ...) */
#define TOKENIZER_BOS       0x2     /* what a raw completion prompt gets: the
                                       BOS of add_bos_token or of a
                                       TemplateProcessing post-processor */
/* 0, or -1: no memory, or PCRE2's match limit (e says so). */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t n,
                     unsigned flags, struct tokens *out, struct err *e);

/* The id of one token by its exact content, added ones too; -1: none. */
int64_t tokenizer_id(const struct tokenizer *t, const char *text, size_t n);

/* The bytes of one token as they are in the output stream (special tokens: by
 * their content).  p = NULL: a hole, no such id.  Borrowed for ever. */
struct slice tokenizer_piece(const struct tokenizer *t, uint32_t id);

/* 1 where the id is an added token with special = true: not part of text. */
int tokenizer_special(const struct tokenizer *t, uint32_t id);

/* Strings of tokenizer_config.json for the template; p = NULL: not there. */
struct slice tokenizer_bos(const struct tokenizer *t);
struct slice tokenizer_eos(const struct tokenizer *t);
struct slice tokenizer_pad(const struct tokenizer *t);
struct slice tokenizer_unk(const struct tokenizer *t);

/*
 * Streaming detokenisation of one sequence.  Zero-initialised is the start.
 * detok_step appends the characters that became whole with this token to out
 * (perhaps none) and holds back a started one; a byte that can not be UTF-8
 * gives U+FFFD.  Special tokens give nothing unless keep_special.  detok_end
 * gives U+FFFD for what is still held back.  The concatenation of all outputs
 * equals HF's decode() of all ids, save clean_up_tokenization_spaces, and save
 * this: where byte-fallback tokens in a row are not valid UTF-8 together, HF
 * gives one U+FFFD for each of them, which nobody can know who streams; here
 * the characters that are whole come out.
 */
struct detok {
    uint8_t     held[4];
    uint8_t     n_held;
    uint8_t     started;        /* a leading space is stripped by some */
    uint8_t     n_stripped;
    uint8_t     per_byte;       /* each bad byte is a U+FFFD, not each run */
};

int detok_step(struct detok *d, const struct tokenizer *t, uint32_t id,
               int keep_special, struct buf *out);
int detok_end(struct detok *d, struct buf *out);

#endif /* MOE_TOKENIZER_H */
