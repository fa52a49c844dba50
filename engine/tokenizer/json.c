/*
 * json.c - reads tokenizer.json.
 *
 * What is covered, each with all of its parameters unless said otherwise:
 *
 *   added_tokens    all
 *   normalizer      NFC NFD NFKC NFKD Lowercase Prepend Replace Strip Sequence
 *   pre_tokenizer   Split ByteLevel (last) Digits Punctuation Whitespace
 *                   WhitespaceSplit Metaspace Sequence
 *   model           BPE without dropout, subword prefix and word suffix
 *   post_processor  ByteLevel (no effect) TemplateProcessing Sequence
 *   decoder         ByteLevel Fuse* | Replace* ByteFallback? Fuse* Strip? |
 *                   Metaspace Replace* ByteFallback? Fuse* Strip?
 *
 * Anything else is refused by its name.  truncation and padding are ignored.
 */
#include "tokenizer/impl.h"
#include "json_util.h"
#include "unicode/unicode.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A file while it is read. */
struct file {
    struct tokenizer    *t;
    struct decoder       decoder;
    struct table         keys;          /* as the model sees them */
    struct table         outs;          /* as the output has them */
    struct arena         arena;         /* of their text, where it is new */
    struct pattern_work *work;
    struct buf           two[2];
    struct buf           part[2];       /* of a merge */
    int16_t              letter[0x144]; /* the byte it stands for; -1: none */
    uint64_t             seed;
};


/* GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes in
 * their order are the letters from U+0100 on. */
static void
letters_init(int16_t letter[0x144])
{
    int next = 0x100;

    memset(letter, 0xff, 0x144 * sizeof(letter[0]));

    for (int b = 0; b < 256; b++) {
        int same = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac)
                   || b >= 0xae;

        letter[same ? b : next++] = (int16_t) b;
    }
}


/* The bytes that the letters of s stand for.  0: some letter stands for none;
 * 1: done; -1: no memory. */
static int
letters_read(const struct file *f, struct slice s, struct buf *out)
{
    uint32_t cp;

    buf_reset(out);

    for (size_t i = 0; i < s.n; ) {
        int len = unicode_decode(s.p + i, s.n - i, &cp);

        if (len <= 0 || cp >= 0x144 || f->letter[cp] < 0) {
            return 0;
        }

        if (buf_addc(out, (char) f->letter[cp]) != 0) {
            return -1;
        }

        i += (size_t) len;
    }

    return 1;
}


static int
no_memory(struct err *e)
{
    return err_set(e, "no memory for the tokens");
}


static int
keep(struct file *f, struct table *tab, uint32_t id, const struct buf *b,
     struct err *e)
{
    struct slice s = { arena_dup(&f->arena, b->p, b->n), b->n };

    return s.p == NULL ? no_memory(e) : tokenizer_table_put(tab, id, s, e);
}


/* <0xNN>: the byte; -1: another token. */
static int
byte_of(struct slice s)
{
    static const char hex[] = "0123456789ABCDEFabcdef";
    const char       *hi, *lo;

    if (s.n != 6 || memcmp(s.p, "<0x", 3) != 0 || s.p[5] != '>'
        || (hi = strchr(hex, s.p[3])) == NULL || *hi == '\0'
        || (lo = strchr(hex, s.p[4])) == NULL || *lo == '\0')
    {
        return -1;
    }

    int high = (int) (hi - hex), low = (int) (lo - hex);

    return (high > 15 ? high - 6 : high) << 4 | (low > 15 ? low - 6 : low);
}


/* What the token is in the output. */
static int
put_out(struct file *f, uint32_t id, struct slice s, struct err *e)
{
    const struct decoder *d = &f->decoder;

    if (d->byte_level) {
        int rc = letters_read(f, s, &f->two[0]);

        if (rc < 0) {
            return no_memory(e);
        }

        if (rc == 1) {
            return keep(f, &f->outs, id, &f->two[0], e);
        }
    }

    if (d->replace.n > 0
        && normal_run(&d->replace, f->work, f->two, s, &s, e) != 0)
    {
        return -1;
    }

    int byte = d->byte_fallback ? byte_of(s) : -1;

    if (byte >= 0) {
        char c = (char) byte;

        s.p = arena_dup(&f->arena, &c, 1);
        s.n = 1;

    } else {
        s.p = arena_dup(&f->arena, s.n > 0 ? s.p : "", s.n);
    }

    return s.p == NULL ? no_memory(e)
           : tokenizer_table_put(&f->outs, id, s, e);
}


static int
put_key(struct file *f, uint32_t id, struct slice s, struct err *e)
{
    if (!f->t->byte_level) {
        return tokenizer_table_put(&f->keys, id, s, e);
    }

    int rc = letters_read(f, s, &f->part[0]);

    return rc < 0 ? no_memory(e)
           : rc == 0 ? 0 : keep(f, &f->keys, id, &f->part[0], e);
}


/* { token: id, ... } */
static int
read_vocab(struct file *f, json_t *vocab, struct err *e)
{
    for (void *it = json_object_iter(vocab); it != NULL;
         it = json_object_iter_next(vocab, it))
    {
        const char   *key = json_object_iter_key(it);
        struct slice  s = { key, strlen(key) };
        const json_t *v = json_object_iter_value(it);
        json_int_t    id = json_integer_value(v);

        if (!json_is_integer(v) || id < 0 || id >= VOCAB_IDS_MAX) {
            return err_set(e, "vocab: the id of \"%.64s\" is not an integer "
                           "from 0 to %u", key, VOCAB_IDS_MAX - 1);
        }

        if (put_key(f, (uint32_t) id, s, e) != 0
            || put_out(f, (uint32_t) id, s, e) != 0)
        {
            return err_prefix(e, "vocab");
        }
    }

    return 0;
}


static struct slice
json_slice(const json_t *v)
{
    return (struct slice) { json_string_value(v), json_string_length(v) };
}


/* "left right" | [left, right] */
static int
merge_parts(const json_t *v, struct slice part[2])
{
    if (json_is_array(v) && json_array_size(v) == 2) {
        part[0] = json_slice(json_array_get(v, 0));
        part[1] = json_slice(json_array_get(v, 1));

        return part[0].p != NULL && part[1].p != NULL ? 0 : -1;
    }

    if (!json_is_string(v)) {
        return -1;
    }

    struct slice s = json_slice(v);
    const char  *space = memchr(s.p, ' ', s.n);

    if (space == NULL || memchr(space + 1, ' ',
                                s.n - (size_t) (space + 1 - s.p)) != NULL)
    {
        return -1;
    }

    part[0] = (struct slice) { s.p, (size_t) (space - s.p) };
    part[1] = (struct slice) { space + 1, s.n - part[0].n - 1 };

    return 0;
}


/* 1: done; 0: the model can never come to these symbols; -1: not tokens. */
static int
merge_ids(struct file *f, struct slice part[2], struct bpe_merge *m,
          struct err *e)
{
    const struct vocab *v = &f->t->vocab;

    for (int i = 0; i < 2 && f->t->byte_level; i++) {
        int rc = letters_read(f, part[i], &f->part[i]);

        if (rc <= 0) {
            return rc < 0 ? no_memory(e) : 0;
        }

        part[i] = (struct slice) { f->part[i].p, f->part[i].n };
    }

    m->left = vocab_find(v, part[0].p, part[0].n);
    m->right = vocab_find(v, part[1].p, part[1].n);
    buf_reset(&f->two[0]);

    if (buf_add(&f->two[0], part[0].p, part[0].n) != 0
        || buf_add(&f->two[0], part[1].p, part[1].n) != 0)
    {
        return no_memory(e);
    }

    m->id = vocab_find(v, f->two[0].p, f->two[0].n);

    if (m->left == VOCAB_NONE || m->right == VOCAB_NONE
        || m->id == VOCAB_NONE)
    {
        return err_set(e, "a part or the whole of it is not in vocab");
    }

    return 1;
}


static int
read_merges(struct file *f, const json_t *merges, struct err *e)
{
    size_t n = json_array_size(merges);

    if (bpe_init(&f->t->bpe, n, f->seed) != 0) {
        return no_memory(e);
    }

    for (size_t i = 0; i < n; i++) {
        struct slice     part[2];
        struct bpe_merge m = { .rank = (uint32_t) i };

        if (merge_parts(json_array_get(merges, i), part) != 0) {
            return err_set(e, "merges[%zu]: expected \"left right\" or "
                           "[left, right]", i);
        }

        int rc = merge_ids(f, part, &m, e);

        if (rc < 0) {
            return err_prefix(e, "merges[%zu]", i);
        }

        if (rc == 1) {
            bpe_add(&f->t->bpe, m);
        }
    }

    return 0;
}


static int
read_flag(const json_t *model, const char *key, uint8_t *out, struct err *e)
{
    int on = 0;

    if (json_get_bool(model, key, &on, e) < 0) {
        return err_prefix(e, "model");
    }

    *out = (uint8_t) on;

    return 0;
}


/* Parameters of BPE that are refused unless they do nothing. */
static int
refuse_others(const json_t *model, struct err *e)
{
    static const char *const affixes[] = {
        "continuing_subword_prefix", "end_of_word_suffix"
    };

    struct slice s = { "BPE", 3 };
    double       dropout = 0;

    if (json_get_str(model, "type", &s, e) < 0
        || json_get_num(model, "dropout", &dropout, e) < 0)
    {
        return err_prefix(e, "model");
    }

    if (s.n != 3 || memcmp(s.p, "BPE", 3) != 0) {
        return err_set(e, "model: %.*s is not supported",
                       (int) (s.n < 64 ? s.n : 64), s.p);
    }

    if (dropout != 0) {
        return err_set(e, "model: dropout is not supported");
    }

    for (size_t i = 0; i < BASE_COUNT(affixes); i++) {
        s.n = 0;

        if (json_get_str(model, affixes[i], &s, e) < 0 || s.n != 0) {
            return err_set(e, "model: %s is not supported", affixes[i]);
        }
    }

    return 0;
}


static int
read_unknown(struct file *f, const json_t *model, struct err *e)
{
    struct tokenizer *t = f->t;
    struct slice      unk;
    int               rc = json_get_str(model, "unk_token", &unk, e);

    if (rc < 0) {
        return err_prefix(e, "model");
    }

    if (rc == 1 && !t->byte_level) {
        t->unk_id = vocab_find(&t->vocab, unk.p, unk.n);

        if (t->unk_id == VOCAB_NONE) {
            return err_set(e, "model: unk_token \"%.64s\" is not in vocab",
                           unk.p);
        }
    }

    if (t->byte_level && t->byte_fallback) {
        return err_set(e, "model: byte_fallback with ByteLevel is not "
                       "supported");
    }

    for (int b = 0; b < 256; b++) {
        char c = (char) b, text[8];

        snprintf(text, sizeof(text), "<0x%02X>", (unsigned) b);
        t->byte_id[b] = t->byte_level ? vocab_find(&t->vocab, &c, 1)
                        : vocab_find(&t->vocab, text, 6);
    }

    return 0;
}


static int
read_added(struct file *f, const json_t *list, struct err *e)
{
    size_t  i;
    json_t *v;

    json_array_foreach(list, i, v) {
        struct added a = { 0 };
        int64_t      id = -1;

        if (tokenizer_added_object(v, &a, e) != 0
            || json_get_int(v, "id", 0, VOCAB_IDS_MAX - 1, &id, e) < 0)
        {
            return err_prefix(e, "added_tokens[%zu]", i);
        }

        if (id < 0) {
            return err_set(e, "added_tokens[%zu]: no id", i);
        }

        a.id = (uint32_t) id;

        if (tokenizer_added_put(f->t, &a, e) != 0) {
            return err_prefix(e, "added_tokens[%zu]", i);
        }
    }

    return 0;
}


/* An added token may stand in the vocabulary too, with the same id.  In the
 * output it is what it looks like in the text, as Hugging Face's has it. */
static int
added_outs(struct file *f, const json_t *vocab, struct err *e)
{
    for (uint32_t i = 0; i < f->t->n_added; i++) {
        const struct added *a = &f->t->added[i];
        const json_t       *v = json_object_getn(vocab, a->text.p, a->text.n);

        if (v != NULL && json_integer_value(v) != a->id) {
            return err_set(e, "added token \"%.*s\": id %u, but %lld in vocab",
                           (int) (a->text.n < 64 ? a->text.n : 64), a->text.p,
                           a->id, (long long) json_integer_value(v));
        }

        if (v != NULL) {
            f->outs.by_id[a->id] = (struct slice) { NULL, 0 };
        }

        if (put_out(f, a->id, a->match, e) != 0) {
            return err_prefix(e, "added_tokens");
        }
    }

    return 0;
}


/* "single": [ {"SpecialToken": {"id": name}} ..., {"Sequence": ...}, ... ]:
 * what stands before the sequence. */
static int
read_template(struct file *f, const json_t *o, struct err *e)
{
    const json_t *single = json_object_get(o, "single");
    const json_t *names = json_object_get(o, "special_tokens");
    uint32_t      ids[64];
    uint32_t      n = 0;
    size_t        i, k;
    json_t       *v, *id;

    json_array_foreach(single, i, v) {
        const json_t *special = json_object_get(v, "SpecialToken");
        const char   *name = json_string_value(json_object_get(special, "id"));

        if (special == NULL) {
            break;
        }

        const json_t *list = json_object_get(
                                 json_object_get(names, name ? name : ""),
                                 "ids");

        if (!json_is_array(list)) {
            return err_set(e, "post_processor: no ids for single[%zu]", i);
        }

        json_array_foreach(list, k, id) {
            json_int_t token = json_integer_value(id);

            if (!json_is_integer(id) || token < 0 || token >= f->outs.n
                || f->outs.by_id[token].p == NULL || n == BASE_COUNT(ids))
            {
                return err_set(e, "post_processor: single[%zu] is no token",
                               i);
            }

            ids[n++] = (uint32_t) token;
        }
    }

    /* of several, the later stands outside */
    uint32_t *all = arena_alloc(&f->t->arena,
                                (n + f->t->n_prefix + 1) * sizeof(*all));
    if (all == NULL) {
        return no_memory(e);
    }

    memcpy(all, ids, n * sizeof(*all));

    if (f->t->n_prefix > 0) {
        memcpy(all + n, f->t->prefix, f->t->n_prefix * sizeof(*all));
    }

    f->t->prefix = all;
    f->t->n_prefix += n;

    return 0;
}


static int
read_post(struct file *f, const json_t *o, int depth, struct err *e)
{
    struct slice type = { "", 0 };

    if (o == NULL || json_is_null(o)) {
        return 0;
    }

    if (!json_is_object(o) || json_get_str(o, "type", &type, e) != 1) {
        return err_set(e, "post_processor: expected an object with a type");
    }

    if (type.n == 9 && memcmp(type.p, "ByteLevel", 9) == 0) {
        return 0;
    }

    if (type.n == 18 && memcmp(type.p, "TemplateProcessing", 18) == 0) {
        return read_template(f, o, e);
    }

    if (type.n != 8 || memcmp(type.p, "Sequence", 8) != 0 || depth == 8) {
        return err_set(e, "post_processor: %.*s is not supported",
                       (int) (type.n < 64 ? type.n : 64), type.p);
    }

    size_t  i;
    json_t *v;

    json_array_foreach(json_object_get(o, "processors"), i, v) {
        if (read_post(f, v, depth + 1, e) != 0) {
            return -1;
        }
    }

    return 0;
}


static int
read_root(struct file *f, json_t *root, const json_t *config, struct err *e)
{
    struct tokenizer *t = f->t;
    json_t           *model = NULL, *vocab = NULL, *merges = NULL;
    json_t           *added = NULL;

    if (!json_is_object(root)
        || json_get_obj(root, "model", &model, e) != 1
        || refuse_others(model, e) != 0
        || json_get_obj(model, "vocab", &vocab, e) != 1
        || json_get_arr(model, "merges", &merges, e) != 1
        || json_get_arr(root, "added_tokens", &added, e) < 0)
    {
        return model != NULL && vocab != NULL && merges != NULL ? -1
               : err_set(e, "not a BPE tokenizer: needs model.vocab and "
                         "model.merges");
    }

    if (tokenizer_parts_read(t, root, &f->decoder, e) != 0
        || read_flag(model, "byte_fallback", &t->byte_fallback, e) != 0
        || read_flag(model, "ignore_merges", &t->ignore_merges, e) != 0
        || read_flag(model, "fuse_unk", &t->fuse_unk, e) != 0
        || read_vocab(f, vocab, e) != 0
        || (added != NULL && read_added(f, added, e) != 0)
        || tokenizer_config_added(t, config, e) != 0
        || tokenizer_added_init(t, e) != 0
        || added_outs(f, vocab, e) != 0
        || read_post(f, json_object_get(root, "post_processor"), 0, e) != 0)
    {
        return -1;
    }

    t->byte_fallback_out = (uint8_t) f->decoder.byte_fallback;

    if (vocab_init(&t->vocab, f->keys.by_id, f->keys.n, f->seed, e) != 0
        || tokenizer_finish(t, &f->outs, e) != 0
        || read_unknown(f, model, e) != 0
        || read_merges(f, merges, e) != 0)
    {
        return -1;
    }

    return 0;
}


int
tokenizer_json_load(struct tokenizer *t, const char *path,
                    const json_t *config, struct err *e)
{
    struct file f = { .t = t, .seed = tokenizer_seed() };
    int         rc = -1;
    json_t     *root = json_file(path, TOKENIZER_FILE_MAX, e);

    letters_init(f.letter);
    f.work = pattern_work_new();

    if (f.work == NULL) {
        no_memory(e);

    } else if (root != NULL) {
        rc = read_root(&f, root, config, e);

        if (rc != 0) {
            err_prefix(e, "%s", path);
        }
    }

    json_decref(root);
    normal_free(&f.decoder.replace);
    arena_free(&f.arena);
    pattern_work_free(f.work);
    free(f.keys.by_id);
    free(f.outs.by_id);

    for (int i = 0; i < 2; i++) {
        buf_free(&f.two[i]);
        buf_free(&f.part[i]);
    }

    return rc;
}
