/*
 * impl.h - what the files of the tokenizer share, and nobody else
 * includes.
 *
 *   text ── added tokens, as written ──▶ normal ── added tokens, normalised
 *        ──▶ pretoken ──▶ vocab: first symbols ──▶ bpe ──▶ ids
 *
 * A byte-level vocabulary is kept as the bytes that its letters stand for, so
 * that text need not be spelled in them.
 */
#ifndef MOE_TOKENIZER_IMPL_H
#define MOE_TOKENIZER_IMPL_H

#include <jansson.h>

#include "tokenizer/bpe.h"
#include "tokenizer/normal.h"
#include "tokenizer/pretoken.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/vocab.h"

#define TOKENIZER_FILE_MAX      (256u << 20)    /* bytes of a file */
#define TOKENIZER_ADDED_BYTES   1024            /* of one added token */

struct added {
    struct slice text;          /* in the arena */
    struct slice match;         /* what it looks like in the text; as above */
    uint32_t     id;
    uint8_t      special;       /* not part of what a reader sees */
    uint8_t      normalized;    /* looked for in the normalised text */
    uint8_t      lstrip, rstrip;    /* takes the white space there, too */
    uint8_t      single_word;
};

/* Sorted by match; found by narrowing the range byte by byte. */
struct added_set {
    const struct added **by_text;
    uint32_t             n;
    uint8_t              leads[256];    /* 1: some match begins so */
};

struct tokenizer {
    struct arena     arena;

    struct vocab     vocab;             /* the model's, without added */
    struct strings   out;               /* of all ids, as in the output */
    uint8_t         *kind;              /* by id, TOKEN_* */
    struct bpe       bpe;
    uint32_t         byte_id[256];      /* of the byte itself or of <0xNN> */
    uint32_t         unk_id;            /* VOCAB_NONE: drop what is unknown */
    uint8_t          byte_level;
    uint8_t          byte_fallback;
    uint8_t          ignore_merges;
    uint8_t          fuse_unk;

    struct normal    normal;
    struct pretoken  pretoken;

    struct added    *added;
    uint32_t         n_added;
    struct added_set raw, normalized;
    struct pattern  *word;              /* \w, for single_word */

    uint32_t        *prefix;            /* what TOKENIZER_BOS adds */
    uint32_t         n_prefix;
    struct slice     bos, eos, pad, unk;    /* in the arena */

    char             strip[5];          /* a decoder's Strip: the character */
    uint8_t          n_strip;           /* how many of it at the start */
    char             first_drop[5];     /* Metaspace: not in the first token */
    uint8_t          byte_fallback_out; /* a decoder's ByteFallback */
};

enum {
    TOKEN_KNOWN = 0x1,                  /* not a hole */
    TOKEN_ADDED = 0x2,
    TOKEN_SPECIAL = 0x4
};

/* The token as its file spells it; p = NULL: a hole. */
struct slice tokenizer_key(const struct tokenizer *t, uint32_t id);

/* One pass of tokenizer_encode(). */
struct encoding {
    const struct tokenizer *t;
    struct pattern_work    *pattern;
    struct bpe_work         bpe;
    struct buf              normal[2];
    struct tokens          *out;
    int                     find_added;
};

/* tokenizer/added.c: both sets from t->added; text cut at the tokens of a set
 * and handed to fn in order, id = VOCAB_NONE for what lies between. */
typedef int (*added_fn)(struct encoding *x, struct slice text, uint32_t id,
                        int at_start, struct err *e);

int tokenizer_added_init(struct tokenizer *t, struct err *e);
int tokenizer_added_cut(struct encoding *x, const struct added_set *set,
                        struct slice text, int at_start, added_fn fn,
                        struct err *e);

/*
 * The loaders.  A loader makes the vocabulary and the merges, gathers all
 * tokens by id as they are in the output, and calls tokenizer_finish().
 */
struct table {
    struct slice *by_id;
    uint32_t      n;                    /* highest id + 1 */
    uint32_t      cap;
};

int tokenizer_table_put(struct table *tab, uint32_t id, struct slice text,
                        struct err *e);
int tokenizer_added_put(struct tokenizer *t, const struct added *a,
                        struct err *e);
int tokenizer_added_object(const json_t *o, struct added *a, struct err *e);

/* How a token of the file becomes bytes of the output. */
struct decoder {
    struct normal replace;              /* Replace steps */
    int           byte_level;           /* letters stand for bytes */
    int           byte_fallback;        /* <0xNN> stands for a byte */
    int           fused;
};

int tokenizer_parts_read(struct tokenizer *t, const json_t *root,
                         struct decoder *d, struct err *e);

/* Makes out and kind; the tokens of t->added are in outs already. */
int tokenizer_finish(struct tokenizer *t, const struct table *outs,
                     struct err *e);

/* 64 bits that a file's author can not know. */
uint64_t tokenizer_seed(void);

/* config may be NULL. */
int tokenizer_json_load(struct tokenizer *t, const char *path,
                        const json_t *config, struct err *e);
int tokenizer_tiktoken_load(struct tokenizer *t, const char *path,
                            const json_t *config, struct err *e);

/* tokenizer_config.json's added_tokens_decoder, then its strings and flags;
 * the second after all tokens are known. */
int tokenizer_config_added(struct tokenizer *t, const json_t *config,
                           struct err *e);
int tokenizer_config_strings(struct tokenizer *t, const json_t *config,
                             struct err *e);

#endif /* MOE_TOKENIZER_IMPL_H */
