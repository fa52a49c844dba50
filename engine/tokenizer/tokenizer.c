/*
 * tokenizer.c - the interface of tokenizer.h, and encoding.
 *
 * In: text.  Out: ids.  The loaders fill struct tokenizer:
 *
 *   tokenizer/json.c      tokenizer.json: BPE over bytes or characters, with
 *                         the normalizers, pre-tokenizers and decoders that
 *                         are listed there
 *   tokenizer/tiktoken.c  rank files, whose pattern is not in the file
 *   tokenizer/config.c    tokenizer_config.json: special strings, more tokens
 */
#include "tokenizer/impl.h"
#include "json_util.h"
#include "unicode/unicode.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>


void
tokens_free(struct tokens *t)
{
    free(t->ids);
    memset(t, 0, sizeof(*t));
}


int
tokens_add(struct tokens *t, uint32_t id)
{
    if (t->n == t->cap) {
        size_t cap = t->cap == 0 ? 64 : t->cap * 2;
        size_t bytes;

        if (size_mul(cap, sizeof(*t->ids), &bytes) != 0) {
            return -1;
        }

        uint32_t *p = realloc(t->ids, bytes);
        if (p == NULL) {
            return -1;
        }

        t->ids = p;
        t->cap = cap;
    }

    t->ids[t->n++] = id;

    return 0;
}


static int
out_of_memory(size_t n, struct err *e)
{
    return err_set(e, "no memory to tokenize %zu bytes", n);
}


/* Symbols of one piece while they are laid out. */
struct row {
    uint32_t *id;
    size_t    n;
    int       unk;              /* an unknown one waits to be put down */
};


static void
row_unknown(const struct tokenizer *t, struct row *r)
{
    if (t->unk_id == VOCAB_NONE || (r->unk && t->fuse_unk)) {
        return;
    }

    if (r->unk) {
        r->id[r->n++] = t->unk_id;
    }

    r->unk = 1;
}


static void
row_known(const struct tokenizer *t, struct row *r, uint32_t id)
{
    if (r->unk) {
        r->id[r->n++] = t->unk_id;
        r->unk = 0;
    }

    r->id[r->n++] = id;
}


/* <0xNN> for each byte, if the vocabulary has all of them.  An unknown symbol
 * that waits stays where it is: so does Hugging Face's. */
static int
row_bytes(const struct tokenizer *t, struct row *r, const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (t->byte_id[(unsigned char) p[i]] == VOCAB_NONE) {
            return 0;
        }
    }

    for (size_t i = 0; i < n; i++) {
        r->id[r->n++] = t->byte_id[(unsigned char) p[i]];
    }

    return 1;
}


/* One symbol a byte, or one a character; never more than n. */
static size_t
row_fill(const struct tokenizer *t, uint32_t *ids, const char *p, size_t n)
{
    struct row r = { .id = ids };
    size_t     len;

    for (size_t i = 0; i < n; i += len) {
        uint32_t id;

        if (t->byte_level) {
            len = 1;
            id = t->byte_id[(unsigned char) p[i]];

        } else {
            uint32_t cp;

            len = (size_t) unicode_decode(p + i, n - i, &cp);
            id = vocab_find(&t->vocab, p + i, len);
        }

        if (id != VOCAB_NONE) {
            row_known(t, &r, id);

        } else if (!t->byte_fallback || !row_bytes(t, &r, p + i, len)) {
            row_unknown(t, &r);
        }
    }

    if (r.unk) {
        r.id[r.n++] = t->unk_id;
    }

    return r.n;
}


static int
encode_piece(void *ctx, const char *p, size_t n, struct err *e)
{
    struct encoding        *x = ctx;
    const struct tokenizer *t = x->t;

    if (t->ignore_merges) {
        uint32_t id = vocab_find(&t->vocab, p, n);

        if (id != VOCAB_NONE) {
            return tokens_add(x->out, id) == 0 ? 0 : out_of_memory(n, e);
        }
    }

    if (bpe_work_reserve(&x->bpe, n) != 0) {
        return out_of_memory(n, e);
    }

    size_t k = row_fill(t, x->bpe.id, p, n);

    if (bpe_run(&t->bpe, &x->bpe, k, &k) != 0) {
        return out_of_memory(n, e);
    }

    for (size_t i = 0; i < k; i++) {
        if (tokens_add(x->out, x->bpe.id[i]) != 0) {
            return out_of_memory(n, e);
        }
    }

    return 0;
}


static int
encode_normalized(struct encoding *x, struct slice text, uint32_t id,
                  int at_start, struct err *e)
{
    if (id != VOCAB_NONE) {
        return tokens_add(x->out, id) == 0 ? 0 : out_of_memory(1, e);
    }

    return pretoken_run(&x->t->pretoken, x->pattern, text.p, text.n, at_start,
                        encode_piece, x, e);
}


static int
encode_raw(struct encoding *x, struct slice text, uint32_t id, int at_start,
           struct err *e)
{
    static const struct added_set none;

    if (id != VOCAB_NONE) {
        return encode_normalized(x, text, id, at_start, e);
    }

    if (normal_run(&x->t->normal, x->pattern, x->normal, text, &text, e) != 0) {
        return -1;
    }

    return tokenizer_added_cut(x, x->find_added ? &x->t->normalized : &none,
                               text, at_start, encode_normalized, e);
}


int
tokenizer_encode(const struct tokenizer *t, const char *text, size_t n,
                 unsigned flags, struct tokens *out, struct err *e)
{
    struct encoding x = { .t = t, .out = out, .pattern = pattern_work_new(),
                          .find_added = (flags & TOKENIZER_ADDED) != 0 };
    struct slice    in = { text, n };
    struct buf      fixed = { 0 };
    int             rc = -1;

    if (x.pattern == NULL) {
        out_of_memory(n, e);
        goto done;
    }

    if (unicode_valid(text, n) != n) {
        if (unicode_lossy(text, n, &fixed) != 0) {
            out_of_memory(n, e);
            goto done;
        }

        in = (struct slice) { fixed.p, fixed.n };
    }

    for (uint32_t i = 0; (flags & TOKENIZER_BOS) && i < t->n_prefix; i++) {
        if (tokens_add(out, t->prefix[i]) != 0) {
            out_of_memory(n, e);
            goto done;
        }
    }

    rc = !x.find_added ? (in.n == 0 ? 0 : encode_raw(&x, in, VOCAB_NONE, 1, e))
         : tokenizer_added_cut(&x, &t->raw, in, 1, encode_raw, e);

done:

    pattern_work_free(x.pattern);
    bpe_work_free(&x.bpe);
    buf_free(&x.normal[0]);
    buf_free(&x.normal[1]);
    buf_free(&fixed);

    return rc;
}


uint32_t
tokenizer_n_vocab(const struct tokenizer *t)
{
    return t->out.n;
}


int64_t
tokenizer_id(const struct tokenizer *t, const char *text, size_t n)
{
    for (uint32_t i = 0; i < t->n_added; i++) {
        const struct slice *s = &t->added[i].text;

        if (s->n == n && memcmp(s->p, text, n) == 0) {
            return t->added[i].id;
        }
    }

    uint32_t id = vocab_find(&t->vocab, text, n);

    return id == VOCAB_NONE ? -1 : (int64_t) id;
}


struct slice
tokenizer_piece(const struct tokenizer *t, uint32_t id)
{
    if (id >= t->out.n || !(t->kind[id] & TOKEN_KNOWN)) {
        return (struct slice) { NULL, 0 };
    }

    return strings_get(&t->out, id);
}


struct slice
tokenizer_key(const struct tokenizer *t, uint32_t id)
{
    if (t->kind[id] & TOKEN_ADDED) {
        for (uint32_t i = 0; i < t->n_added; i++) {
            if (t->added[i].id == id) {
                return t->added[i].match;
            }
        }
    }

    if (id < t->vocab.keys.n) {
        return strings_get(&t->vocab.keys, id);
    }

    return (struct slice) { NULL, 0 };
}


int
tokenizer_special(const struct tokenizer *t, uint32_t id)
{
    return id < t->out.n && (t->kind[id] & TOKEN_SPECIAL) != 0;
}


struct slice
tokenizer_bos(const struct tokenizer *t)
{
    return t->bos;
}


struct slice
tokenizer_eos(const struct tokenizer *t)
{
    return t->eos;
}


struct slice
tokenizer_pad(const struct tokenizer *t)
{
    return t->pad;
}


struct slice
tokenizer_unk(const struct tokenizer *t)
{
    return t->unk;
}


int
tokenizer_table_put(struct table *tab, uint32_t id, struct slice text,
                    struct err *e)
{
    if (id >= VOCAB_IDS_MAX) {
        return err_set(e, "token \"%.*s\": id %u, at most %u",
                       (int) (text.n < 64 ? text.n : 64), text.p, id,
                       VOCAB_IDS_MAX - 1);
    }

    if (id >= tab->cap) {
        uint32_t      cap = tab->cap == 0 ? 1024 : tab->cap;

        while (cap <= id) {
            cap *= 2;
        }

        struct slice *p = realloc(tab->by_id, cap * sizeof(*p));
        if (p == NULL) {
            return err_set(e, "no memory for %u tokens", cap);
        }

        memset(p + tab->cap, 0, (cap - tab->cap) * sizeof(*p));
        tab->by_id = p;
        tab->cap = cap;
    }

    if (tab->by_id[id].p != NULL) {
        return err_set(e, "id %u has two tokens, \"%.*s\" and \"%.*s\"", id,
                       (int) (tab->by_id[id].n < 64 ? tab->by_id[id].n : 64),
                       tab->by_id[id].p, (int) (text.n < 64 ? text.n : 64),
                       text.p);
    }

    tab->by_id[id] = text;
    tab->n = id >= tab->n ? id + 1 : tab->n;

    return 0;
}


uint64_t
tokenizer_seed(void)
{
    uint64_t seed = 0;

    if (getrandom(&seed, sizeof(seed), GRND_NONBLOCK) != sizeof(seed)) {
        seed = clock_us();
    }

    return seed;
}


int
tokenizer_finish(struct tokenizer *t, const struct table *outs, struct err *e)
{
    if (strings_init(&t->out, outs->by_id, outs->n, e) != 0) {
        return -1;
    }

    t->kind = calloc(outs->n + 1u, 1);
    if (t->kind == NULL) {
        return err_set(e, "no memory for %u tokens", outs->n);
    }

    for (uint32_t id = 0; id < outs->n; id++) {
        t->kind[id] = outs->by_id[id].p != NULL ? TOKEN_KNOWN : 0;
    }

    for (uint32_t i = 0; i < t->n_added; i++) {
        t->kind[t->added[i].id] |= (uint8_t)
            (TOKEN_ADDED | (t->added[i].special ? TOKEN_SPECIAL : 0));
    }

    return 0;
}


/* tokenizer.json, or the rank file there is. */
static int
load_tokens(struct tokenizer *t, const char *dir, const json_t *config,
            struct err *e)
{
    static const char *const names[] = {
        "tokenizer.json", "qwen.tiktoken", "tiktoken.model"
    };

    char path[4096];

    for (size_t i = 0; i < BASE_COUNT(names); i++) {
        snprintf(path, sizeof(path), "%s/%s", dir, names[i]);

        if (access(path, F_OK) == 0) {
            return i == 0 ? tokenizer_json_load(t, path, config, e)
                   : tokenizer_tiktoken_load(t, path, config, e);
        }
    }

    return err_set(e, "%s: no tokenizer.json, qwen.tiktoken or "
                   "tiktoken.model", dir);
}


struct tokenizer *
tokenizer_load(const char *dir, struct err *e)
{
    struct tokenizer *t = calloc(1, sizeof(*t));
    json_t           *config = NULL;
    char              path[4096];
    int               rc = 0;

    if (t == NULL) {
        err_set(e, "no memory for a tokenizer");
        return NULL;
    }

    t->unk_id = VOCAB_NONE;
    snprintf(path, sizeof(path), "%s/tokenizer_config.json", dir);

    if (access(path, F_OK) == 0) {
        config = json_file(path, TOKENIZER_FILE_MAX, e);
        rc = config != NULL ? 0 : -1;
    }

    if (rc == 0) {
        rc = load_tokens(t, dir, config, e);
    }

    if (rc == 0 && tokenizer_config_strings(t, config, e) != 0) {
        rc = err_prefix(e, "%s", path);
    }

    json_decref(config);

    if (rc != 0) {
        tokenizer_free(t);
        t = NULL;
    }

    return t;
}


void
tokenizer_free(struct tokenizer *t)
{
    if (t == NULL) {
        return;
    }

    vocab_free(&t->vocab);
    strings_free(&t->out);
    bpe_free(&t->bpe);
    normal_free(&t->normal);
    pretoken_free(&t->pretoken);
    pattern_free(t->word);
    arena_free(&t->arena);
    free(t->kind);
    free(t->added);
    free(t);
}
