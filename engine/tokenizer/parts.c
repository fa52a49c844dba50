/*
 * parts.c - reads the parts of tokenizer.json that stand before and
 * after the model: normalizer, pre_tokenizer, decoder.
 *
 * In: JSON objects with a "type".  Out: the steps of normal.h and pretoken.h,
 * and a struct decoder.  What is covered is listed in tokenizer/json.c.
 */
#include "tokenizer/impl.h"
#include "json_util.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* GPT-2's pattern, which ByteLevel uses. */
#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+|" \
             " ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

/* What a part is read into. */
struct loader {
    struct tokenizer *t;
    struct decoder   *decoder;
};


/* The required "type" of a part; what = the part's name for messages. */
static int
part_type(const json_t *o, const char *what, struct slice *type, struct err *e)
{
    if (!json_is_object(o)) {
        return err_set(e, "%s: expected an object", what);
    }

    int rc = json_get_str(o, "type", type, e);

    if (rc == 0) {
        err_set(e, "no type");
    }

    return rc == 1 ? 0 : err_prefix(e, "%s", what);
}


static int
is(struct slice s, const char *name)
{
    return s.n == strlen(name) && memcmp(s.p, name, s.n) == 0;
}


static int
unsupported(const char *what, struct slice type, struct err *e)
{
    return err_set(e, "%s: %.*s is not supported", what,
                   (int) (type.n < 64 ? type.n : 64), type.p);
}


/* { "String": text } | { "Regex": text } */
static struct pattern *
pattern_member(const json_t *o, const char *what, struct err *e)
{
    const json_t *v = json_object_get(o, "pattern");
    struct slice  s;
    int           rc = json_is_object(v) ? json_get_str(v, "String", &s, e) : 0;

    if (rc == 1 && s.n > 0) {
        return pattern_literal(s.p, s.n, e);
    }

    if (json_is_object(v) && rc == 0) {
        rc = json_get_str(v, "Regex", &s, e);

        if (rc == 1) {
            struct pattern *p = pattern_onig(s.p, s.n, e);

            if (p == NULL) {
                err_prefix(e, "%s", what);
            }

            return p;
        }
    }

    if (rc >= 0) {
        err_set(e, "%s: pattern is neither a String nor a Regex", what);
    }

    return NULL;
}


/* One character as a string of at most 4 bytes. */
static int
short_string(const json_t *o, const char *key, const char *what, char out[5],
             struct err *e)
{
    struct slice s = { out, strlen(out) };

    if (json_get_str(o, key, &s, e) < 0) {
        return err_prefix(e, "%s", what);
    }

    if (s.n == 0 || s.n > 4) {
        return err_set(e, "%s: %s has %zu bytes, expected one character", what,
                       key, s.n);
    }

    memmove(out, s.p, s.n);
    out[s.n] = '\0';

    return 0;
}


static int
bool_member(const json_t *o, const char *key, const char *what, int *out,
            struct err *e)
{
    return json_get_bool(o, key, out, e) < 0 ? err_prefix(e, "%s", what) : 0;
}


/* A Sequence's members, or the one object itself. */
typedef int (*part_fn)(struct loader *l, const json_t *o, struct err *e);

static int
each_part(struct loader *l, const json_t *o, const char *what,
          const char *members, int depth, part_fn fn, struct err *e)
{
    struct slice type;
    json_t      *list = NULL;

    if (o == NULL || json_is_null(o)) {
        return 0;
    }

    if (part_type(o, what, &type, e) != 0) {
        return -1;
    }

    if (!is(type, "Sequence")) {
        return fn(l, o, e);
    }

    if (depth == 8 || json_get_arr(o, members, &list, e) != 1) {
        return err_set(e, "%s: a Sequence needs an array %s, 8 deep at most",
                       what, members);
    }

    size_t  i;
    json_t *v;

    json_array_foreach(list, i, v) {
        if (each_part(l, v, what, members, depth + 1, fn, e) != 0) {
            return -1;
        }
    }

    return 0;
}


static int
text_member(const json_t *o, const char *key, const char *what,
            struct normal_step *s, struct err *e)
{
    struct slice text;

    if (json_get_str(o, key, &text, e) != 1) {
        return err_set(e, "%s: needs a string %s", what, key);
    }

    s->text = malloc(text.n + 1);
    s->n = text.n;

    if (s->text == NULL) {
        return err_set(e, "no memory for %s", what);
    }

    memcpy(s->text, text.p, text.n);

    return 0;
}


static int
normal_add(struct normal *to, const json_t *o, const char *what,
           struct err *e)
{
    static const struct {
        const char      *name;
        enum normal_kind kind;
    } kinds[] = {
        { "NFC", NORMAL_NFC }, { "NFD", NORMAL_NFD },
        { "NFKC", NORMAL_NFKC }, { "NFKD", NORMAL_NFKD },
        { "Lowercase", NORMAL_LOWERCASE }, { "Prepend", NORMAL_PREPEND },
        { "Replace", NORMAL_REPLACE }, { "Strip", NORMAL_STRIP }
    };

    struct slice        type = { "", 0 };
    struct normal_step *s = &to->steps[to->n];
    size_t              i = 0;

    if (part_type(o, what, &type, e) != 0) {
        return -1;
    }

    while (i < BASE_COUNT(kinds) && !is(type, kinds[i].name)) {
        i++;
    }

    if (i == BASE_COUNT(kinds)) {
        return unsupported(what, type, e);
    }

    if (to->n == NORMAL_STEPS) {
        return err_set(e, "%s: more than %d steps", what, NORMAL_STEPS);
    }

    to->n++;
    s->kind = kinds[i].kind;
    s->left = s->right = 1;

    switch (s->kind) {

    case NORMAL_PREPEND:
        return text_member(o, "prepend", what, s, e);

    case NORMAL_REPLACE:
        s->pattern = pattern_member(o, what, e);

        return s->pattern == NULL ? -1 : text_member(o, "content", what, s, e);

    case NORMAL_STRIP:
        return bool_member(o, "strip_left", what, &s->left, e) != 0 ? -1
               : bool_member(o, "strip_right", what, &s->right, e);

    default:
        return 0;
    }
}


static int
normalizer_part(struct loader *l, const json_t *o, struct err *e)
{
    return normal_add(&l->t->normal, o, "normalizer", e);
}


static int
split_behavior(const json_t *o, enum pretoken_match *out, struct err *e)
{
    static const char *const names[] = {
        "Isolated", "Removed", "MergedWithPrevious", "MergedWithNext",
        "Contiguous"
    };

    struct slice s;
    int          rc = json_get_str(o, "behavior", &s, e);

    if (rc <= 0) {
        return rc;
    }

    for (size_t i = 0; i < BASE_COUNT(names); i++) {
        if (is(s, names[i])) {
            *out = (enum pretoken_match) i;
            return 0;
        }
    }

    return unsupported("pre_tokenizer: behavior", s, e);
}


static int
set_pattern(struct pretoken_step *s, const char *text, struct err *e)
{
    s->pattern = pattern_onig(text, strlen(text), e);

    return s->pattern != NULL ? 0 : -1;
}


static int
split_step(struct loader *l, const json_t *o, struct pretoken_step *s,
           struct err *e)
{
    (void) l;

    s->pattern = pattern_member(o, "pre_tokenizer: Split", e);

    if (s->pattern == NULL || split_behavior(o, &s->match, e) != 0) {
        return -1;
    }

    return bool_member(o, "invert", "pre_tokenizer: Split", &s->invert, e);
}


static int
byte_level_step(struct loader *l, const json_t *o, struct pretoken_step *s,
                struct err *e)
{
    int prefix = 1, use_regex = 1;

    if (bool_member(o, "add_prefix_space", "ByteLevel", &prefix, e) != 0
        || bool_member(o, "use_regex", "ByteLevel", &use_regex, e) != 0)
    {
        return -1;
    }

    l->t->byte_level = 1;
    s->prefix = prefix ? PRETOKEN_ALWAYS : PRETOKEN_NEVER;
    memcpy(s->prefix_text, " ", 2);

    return use_regex ? set_pattern(s, GPT2, e) : 0;
}


static int
digits_step(struct loader *l, const json_t *o, struct pretoken_step *s,
            struct err *e)
{
    int individual = 0;

    (void) l;

    if (bool_member(o, "individual_digits", "Digits", &individual, e) != 0) {
        return -1;
    }

    return set_pattern(s, individual ? "\\p{N}" : "\\p{N}+", e);
}


static int
punctuation_step(struct loader *l, const json_t *o, struct pretoken_step *s,
                 struct err *e)
{
    (void) l;

    if (split_behavior(o, &s->match, e) != 0) {
        return -1;
    }

    return set_pattern(s, "[!-\\/:-@\\[-`\\{-~\\p{P}]", e);
}


static int
whitespace_step(struct loader *l, const json_t *o, struct pretoken_step *s,
                struct err *e)
{
    (void) l;
    (void) o;

    s->match = PRETOKEN_REMOVED;
    s->invert = 1;

    return set_pattern(s, "\\w+|[^\\w\\s]+", e);
}


static int
whitespace_split_step(struct loader *l, const json_t *o,
                      struct pretoken_step *s, struct err *e)
{
    (void) l;
    (void) o;

    s->match = PRETOKEN_REMOVED;

    return set_pattern(s, "\\s", e);
}


/* prepend_scheme, or add_prefix_space of older files. */
static int
metaspace_prefix(const json_t *o, enum pretoken_prefix *out, struct err *e)
{
    static const char *const names[] = { "never", "first", "always" };

    struct slice scheme = { "always", 6 };
    int          old = 1;

    if (json_get_str(o, "prepend_scheme", &scheme, e) < 0
        || json_get_bool(o, "add_prefix_space", &old, e) < 0)
    {
        return err_prefix(e, "Metaspace");
    }

    if (!old) {
        *out = PRETOKEN_NEVER;
        return 0;
    }

    for (size_t i = 0; i < BASE_COUNT(names); i++) {
        if (is(scheme, names[i])) {
            *out = (enum pretoken_prefix) i;
            return 0;
        }
    }

    return unsupported("Metaspace: prepend_scheme", scheme, e);
}


static int
metaspace_step(struct loader *l, const json_t *o, struct pretoken_step *s,
               struct err *e)
{
    int  split = 1;
    char mark[5] = "\xe2\x96\x81";

    (void) l;

    if (metaspace_prefix(o, &s->prefix, e) != 0
        || short_string(o, "replacement", "Metaspace", mark, e) != 0
        || bool_member(o, "split", "Metaspace", &split, e) != 0)
    {
        return -1;
    }

    memcpy(s->prefix_text, mark, sizeof(mark));
    s->spaces = 1;
    s->match = PRETOKEN_WITH_NEXT;

    if (split) {
        s->pattern = pattern_literal(mark, strlen(mark), e);
    }

    return split && s->pattern == NULL ? -1 : 0;
}


static int
pre_tokenizer_part(struct loader *l, const json_t *o, struct err *e)
{
    static const struct {
        const char *name;
        int       (*fn)(struct loader *l, const json_t *o,
                        struct pretoken_step *s, struct err *e);
    } kinds[] = {
        { "Split", split_step }, { "ByteLevel", byte_level_step },
        { "Digits", digits_step }, { "Punctuation", punctuation_step },
        { "Whitespace", whitespace_step },
        { "WhitespaceSplit", whitespace_split_step },
        { "Metaspace", metaspace_step }
    };

    struct pretoken *p = &l->t->pretoken;
    struct slice     type = { "", 0 };

    if (part_type(o, "pre_tokenizer", &type, e) != 0) {
        return -1;
    }

    if (l->t->byte_level) {
        return err_set(e, "pre_tokenizer: %.*s after ByteLevel is not "
                       "supported", (int) type.n, type.p);
    }

    for (size_t i = 0; i < BASE_COUNT(kinds); i++) {
        if (!is(type, kinds[i].name)) {
            continue;
        }

        if (p->n == PRETOKEN_STEPS) {
            return err_set(e, "pre_tokenizer: more than %d steps",
                           PRETOKEN_STEPS);
        }

        return kinds[i].fn(l, o, &p->steps[p->n++], e);
    }

    return unsupported("pre_tokenizer", type, e);
}


/* Text is decoded token by token, but for these: Fuse, which makes one text of
 * all, and Strip behind it, which then is about the beginning of that. */
static int
strip_part(struct loader *l, const json_t *o, struct err *e)
{
    int64_t start = 0, stop = 0;

    if (json_get_int(o, "start", 0, 254, &start, e) < 0
        || json_get_int(o, "stop", 0, 254, &stop, e) < 0
        || short_string(o, "content", "decoder: Strip", l->t->strip, e) != 0)
    {
        return err_prefix(e, "decoder: Strip");
    }

    if (!l->decoder->fused || stop != 0 || l->t->n_strip != 0) {
        return err_set(e, "decoder: Strip is supported once, after Fuse, with "
                       "stop = 0");
    }

    l->t->n_strip = (uint8_t) start;

    return 0;
}


static int
metaspace_part(struct loader *l, const json_t *o, struct err *e)
{
    enum pretoken_prefix prefix;
    struct normal       *to = &l->decoder->replace;
    char                 mark[5] = "\xe2\x96\x81";

    if (l->t->byte_level || to->n != 0) {
        return err_set(e, "decoder: Metaspace is supported first, and without "
                       "ByteLevel");
    }

    if (metaspace_prefix(o, &prefix, e) != 0
        || short_string(o, "replacement", "decoder: Metaspace", mark, e) != 0)
    {
        return -1;
    }

    if (prefix != PRETOKEN_NEVER) {
        memcpy(l->t->first_drop, mark, sizeof(mark));
    }

    struct normal_step *s = &to->steps[to->n++];

    s->kind = NORMAL_REPLACE;
    s->pattern = pattern_literal(mark, strlen(mark), e);
    s->text = strdup(" ");
    s->n = 1;

    return s->pattern != NULL && s->text != NULL
           ? 0 : err_set(e, "no memory for the decoder");
}


static int
decoder_part(struct loader *l, const json_t *o, struct err *e)
{
    struct decoder *d = l->decoder;
    struct slice    type = { "", 0 };

    if (part_type(o, "decoder", &type, e) != 0) {
        return -1;
    }

    int per_token = is(type, "Replace") || is(type, "Metaspace")
                    || is(type, "ByteFallback") || is(type, "ByteLevel");

    if (per_token && (d->fused || d->byte_fallback || d->byte_level)) {
        return err_set(e, "decoder: %.*s is not supported in this place",
                       (int) type.n, type.p);
    }

    if (is(type, "Replace")) {
        return normal_add(&d->replace, o, "decoder", e);
    }

    if (is(type, "Metaspace")) {
        return metaspace_part(l, o, e);
    }

    if (is(type, "Strip")) {
        return strip_part(l, o, e);
    }

    if (is(type, "ByteFallback")) {
        d->byte_fallback = 1;

    } else if (is(type, "ByteLevel")) {
        d->byte_level = 1;

    } else if (is(type, "Fuse")) {
        d->fused = 1;

    } else {
        return unsupported("decoder", type, e);
    }

    return 0;
}


int
tokenizer_parts_read(struct tokenizer *t, const json_t *root,
                     struct decoder *d, struct err *e)
{
    struct loader l = { t, d };
    const json_t *decoder = json_object_get(root, "decoder");

    if (each_part(&l, json_object_get(root, "normalizer"), "normalizer",
                  "normalizers", 0, normalizer_part, e) != 0
        || each_part(&l, json_object_get(root, "pre_tokenizer"),
                     "pre_tokenizer", "pretokenizers", 0, pre_tokenizer_part,
                     e) != 0)
    {
        return -1;
    }

    if (decoder == NULL || json_is_null(decoder)) {
        return err_set(e, "decoder: none; that is not supported");
    }

    return each_part(&l, decoder, "decoder", "decoders", 0, decoder_part, e);
}
