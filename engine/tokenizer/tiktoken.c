/*
 * tiktoken.c - reads tiktoken's rank files: a line for each token,
 * its bytes in base64 and its rank, which is its id.
 *
 * Two tokens merge when what they spell together is a token; its rank is the
 * merge's.  So all merges follow from the tokens, and a piece that is a token
 * as a whole is that token.  What the file does not hold - pattern, normalizer
 * and special tokens - follows from its name:
 *
 *   qwen.tiktoken     Qwen, OpenSeek
 *   tiktoken.model    Kimi-K2, Moonlight
 */
#include "tokenizer/impl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_MAX        (32u << 20)     /* bytes; Kimi's has 3 MB */
#define TOKEN_MAX       1024            /* bytes; tried at each place */

#define SUFFIX  "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define TAIL    " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

/* Kimi's classes [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]] and
 * [\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]], by what they leave out. */
#define OTHERS  "\\p{N}\\p{P}\\p{S}\\p{Z}\\p{C}\\p{Han}"
#define UPPER   "[^\\p{Ll}" OTHERS "]"
#define LOWER   "[^\\p{Lu}\\p{Lt}" OTHERS "]"

/* What a file of this name goes with. */
struct kind {
    const char *name;
    const char *pattern;
    int         nfc;
    const char *special[3];     /* the first ids after the ranks */
    const char *reserved;       /* the format of the others' names */
    int         by_id;          /* it takes the id, not a count */
    uint32_t    n_special;
};

static const struct kind kinds[] = {
    {
        "qwen.tiktoken",
        SUFFIX "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|" TAIL,
        1, { "<|endoftext|>", "<|im_start|>", "<|im_end|>" },
        "<|extra_%u|>", 0, 208
    },
    {
        "tiktoken.model",
        "[\\p{Han}]+"
        "|[^\\r\\n\\p{L}\\p{N}]?" UPPER "*" LOWER "+" SUFFIX "?"
        "|[^\\r\\n\\p{L}\\p{N}]?" UPPER "+" LOWER "*" SUFFIX "?"
        "|\\p{N}{1,3}|" TAIL,
        0, { NULL, NULL, NULL },
        "<|reserved_token_%u|>", 1, 256
    }
};

struct ranks {
    struct table      tokens;
    struct arena      arena;
    struct bpe_merge *merges;
    size_t            n_merge, cap_merge;
};


static int
digit(unsigned char c)
{
    return c >= 'A' && c <= 'Z' ? c - 'A' : c >= 'a' && c <= 'z' ? c - 'a' + 26
           : c >= '0' && c <= '9' ? c - '0' + 52 : c == '+' ? 62
           : c == '/' ? 63 : -1;
}


/* Bytes written to out, or -1. */
static int
base64(const char *p, size_t n, char out[TOKEN_MAX])
{
    uint32_t bits = 0;
    unsigned n_bit = 0;
    int      k = 0;

    if (n == 0 || n % 4 != 0) {
        return -1;
    }

    size_t pad = p[n - 1] != '=' ? 0 : p[n - 2] != '=' ? 1 : 2;

    if ((n - pad) * 6 / 8 > TOKEN_MAX) {
        return -1;
    }

    for (size_t i = 0; i < n - pad; i++) {
        int d = digit((unsigned char) p[i]);

        if (d < 0) {
            return -1;
        }

        bits = bits << 6 | (uint32_t) d;
        n_bit += 6;

        if (n_bit >= 8) {
            n_bit -= 8;
            out[k++] = (char) (bits >> n_bit & 0xff);
        }
    }

    return k;
}


/* base64 SP rank */
static int
read_line(struct ranks *r, const char *p, size_t n, struct err *e)
{
    char          text[TOKEN_MAX];
    const char   *space = memchr(p, ' ', n);
    uint64_t      id = 0;
    int           len = space == NULL ? -1
                        : base64(p, (size_t) (space - p), text);

    if (len < 0 || space + 1 == p + n) {
        return err_set(e, "expected base64 of at most %d bytes, a space and a "
                       "rank", TOKEN_MAX);
    }

    for (const char *d = space + 1; d < p + n; d++) {
        id = id * 10 + (uint64_t) (*d - '0');

        if (*d < '0' || *d > '9' || id >= VOCAB_IDS_MAX) {
            return err_set(e, "the rank is not a number from 0 to %u",
                           VOCAB_IDS_MAX - 1);
        }
    }

    struct slice s = { arena_dup(&r->arena, text, (size_t) len),
                       (size_t) len };

    if (s.p == NULL) {
        return err_set(e, "no memory for the tokens");
    }

    return tokenizer_table_put(&r->tokens, (uint32_t) id, s, e);
}


static int
read_lines(struct ranks *r, const struct buf *file, struct err *e)
{
    const char *p = file->p, *end = file->p + file->n;

    for (size_t line = 1; p < end; line++) {
        const char *lf = memchr(p, '\n', (size_t) (end - p));
        size_t      n = (size_t) ((lf != NULL ? lf : end) - p);
        size_t      cr = n > 0 && p[n - 1] == '\r';

        if (n > cr && read_line(r, p, n - cr, e) != 0) {
            return err_prefix(e, "line %zu", line);
        }

        p += n + (lf != NULL);
    }

    return 0;
}


static int
merge_put(struct ranks *r, struct bpe_merge m, struct err *e)
{
    if (r->n_merge == r->cap_merge) {
        size_t            cap = r->cap_merge == 0 ? 4096 : r->cap_merge * 2;
        struct bpe_merge *p = realloc(r->merges, cap * sizeof(*p));

        if (p == NULL) {
            return err_set(e, "no memory for the merges");
        }

        r->merges = p;
        r->cap_merge = cap;
    }

    r->merges[r->n_merge++] = m;

    return 0;
}


static int
find_merges(struct ranks *r, struct tokenizer *t, struct err *e)
{
    for (uint32_t id = 0; id < r->tokens.n; id++) {
        struct slice s = r->tokens.by_id[id];

        for (size_t i = 1; i < s.n; i++) {
            struct bpe_merge m = { .rank = id, .id = id };

            m.left = vocab_find(&t->vocab, s.p, i);
            m.right = m.left == VOCAB_NONE ? VOCAB_NONE
                      : vocab_find(&t->vocab, s.p + i, s.n - i);

            if (m.right != VOCAB_NONE && merge_put(r, m, e) != 0) {
                return -1;
            }
        }
    }

    if (bpe_init(&t->bpe, r->n_merge, tokenizer_seed()) != 0) {
        return err_set(e, "no memory for %zu merges", r->n_merge);
    }

    for (size_t i = 0; i < r->n_merge; i++) {
        bpe_add(&t->bpe, r->merges[i]);
    }

    return 0;
}


/* What tokenizer_config.json leaves unnamed has a name of its own. */
static int
name_specials(struct ranks *r, struct tokenizer *t, const struct kind *kind,
              struct err *e)
{
    uint32_t n = r->tokens.n;

    for (uint32_t i = 0; i < t->n_added; i++) {
        const struct added *a = &t->added[i];

        if (tokenizer_table_put(&r->tokens, a->id, a->text, e) != 0) {
            return -1;
        }
    }

    for (uint32_t i = 0; i < kind->n_special; i++) {
        struct added a = { .id = n + i, .special = 1 };
        char         name[48];

        if (a.id < r->tokens.n && r->tokens.by_id[a.id].p != NULL) {
            continue;
        }

        if (i < BASE_COUNT(kind->special) && kind->special[i] != NULL) {
            snprintf(name, sizeof(name), "%s", kind->special[i]);
        } else {
            snprintf(name, sizeof(name), kind->reserved,
                     kind->by_id ? a.id : i - 3);
        }

        a.text = (struct slice) { name, strlen(name) };

        if (tokenizer_added_put(t, &a, e) != 0
            || tokenizer_table_put(&r->tokens, a.id,
                                   t->added[t->n_added - 1].text, e) != 0)
        {
            return -1;
        }
    }

    return 0;
}


static int
set_steps(struct tokenizer *t, const struct kind *kind, struct err *e)
{
    struct pretoken_step *s = &t->pretoken.steps[0];

    s->pattern = pattern_onig(kind->pattern, strlen(kind->pattern), e);

    if (s->pattern == NULL) {
        return -1;
    }

    t->pretoken.n = 1;
    t->normal.n = kind->nfc;            /* step 0 is NFC when zeroed */
    t->byte_level = 1;
    t->ignore_merges = 1;

    return 0;
}


static int
load(struct ranks *r, struct tokenizer *t, const struct kind *kind,
     const json_t *config, struct err *e)
{
    struct table ranks = r->tokens;     /* without the specials */

    if (ranks.n == 0) {
        return err_set(e, "no tokens");
    }

    if (set_steps(t, kind, e) != 0
        || tokenizer_config_added(t, config, e) != 0)
    {
        return -1;
    }

    /* the vocabulary first: merges are made of what can be found in it */
    if (vocab_init(&t->vocab, ranks.by_id, ranks.n, tokenizer_seed(), e) != 0
        || find_merges(r, t, e) != 0)
    {
        return -1;
    }

    for (int b = 0; b < 256; b++) {
        char c = (char) b;

        t->byte_id[b] = vocab_find(&t->vocab, &c, 1);

        if (t->byte_id[b] == VOCAB_NONE) {
            return err_set(e, "no token for byte 0x%02x", (unsigned) b);
        }
    }

    if (name_specials(r, t, kind, e) != 0) {
        return -1;
    }

    return tokenizer_added_init(t, e) != 0 ? -1
           : tokenizer_finish(t, &r->tokens, e);
}


int
tokenizer_tiktoken_load(struct tokenizer *t, const char *path,
                        const json_t *config, struct err *e)
{
    const char        *name = strrchr(path, '/');
    const struct kind *kind = &kinds[0];
    struct ranks       r = { 0 };
    struct buf         file = { 0 };

    if (name != NULL && strcmp(name + 1, kinds[1].name) == 0) {
        kind = &kinds[1];
    }

    int rc = file_read(path, FILE_MAX, &file, e);

    if (rc == 0) {
        rc = read_lines(&r, &file, e) != 0 ? -1 : load(&r, t, kind, config, e);

        if (rc != 0) {
            err_prefix(e, "%s", path);
        }
    }

    buf_free(&file);
    free(r.tokens.by_id);
    free(r.merges);
    arena_free(&r.arena);

    return rc;
}
