/*
 * config.c - added tokens as both files describe them, and what
 * tokenizer_config.json says besides: bos, eos, pad and unk, a string or an
 * object with "content", and whether a raw prompt begins with bos.
 */
#include "tokenizer/impl.h"
#include "json_util.h"

#include <stdlib.h>
#include <string.h>


/* { "content": text, "special": bool, "lstrip": ..., ... } */
int
tokenizer_added_object(const json_t *o, struct added *a, struct err *e)
{
    struct {
        const char *key;
        uint8_t    *flag;
    } flags[] = {
        { "special", &a->special },
        { "normalized", &a->normalized },
        { "lstrip", &a->lstrip },
        { "rstrip", &a->rstrip },
        { "single_word", &a->single_word }
    };

    if (!json_is_object(o)) {
        return err_set(e, "an added token is not an object");
    }

    switch (json_get_str(o, "content", &a->text, e)) {

    case -1:
        return -1;

    case 0:
        return err_set(e, "an added token has no content");
    }

    for (size_t i = 0; i < BASE_COUNT(flags); i++) {
        int on = *flags[i].flag;

        if (json_get_bool(o, flags[i].key, &on, e) < 0) {
            return -1;
        }

        *flags[i].flag = (uint8_t) on;
    }

    return 0;
}


int
tokenizer_added_put(struct tokenizer *t, const struct added *a, struct err *e)
{
    int shown = (int) (a->text.n < 64 ? a->text.n : 64);

    if (a->text.n == 0) {
        return 0;               /* matches nothing */
    }

    if (a->text.n > TOKENIZER_ADDED_BYTES) {
        return err_set(e, "added token %u: %zu bytes, at most %d", a->id,
                       a->text.n, TOKENIZER_ADDED_BYTES);
    }

    if (a->id >= VOCAB_IDS_MAX) {
        return err_set(e, "added token \"%.*s\": id %u, at most %u", shown,
                       a->text.p, a->id, VOCAB_IDS_MAX - 1);
    }

    if ((t->n_added & (t->n_added - 1)) == 0) {
        uint32_t      cap = t->n_added == 0 ? 1 : t->n_added * 2;
        struct added *p = realloc(t->added, cap * sizeof(*p));

        if (p == NULL) {
            return err_set(e, "no memory for added tokens");
        }

        t->added = p;
    }

    struct added *to = &t->added[t->n_added];

    *to = *a;
    to->text.p = arena_dup(&t->arena, a->text.p, a->text.n);

    if (to->text.p == NULL) {
        return err_set(e, "no memory for added tokens");
    }

    t->n_added++;

    return 0;
}


/* "added_tokens_decoder": { "151643": { "content": ... }, ... } */
int
tokenizer_config_added(struct tokenizer *t, const json_t *config,
                       struct err *e)
{
    json_t *list = NULL, *o;
    const char *key;

    if (config == NULL
        || json_get_obj(config, "added_tokens_decoder", &list, e) == 0)
    {
        return 0;
    }

    if (list == NULL) {
        return -1;
    }

    json_object_foreach(list, key, o) {
        struct added  a = { 0 };
        char         *end;
        unsigned long id = strtoul(key, &end, 10);
        uint32_t      i = 0;

        if (*key < '0' || *key > '9' || *end != '\0' || id >= VOCAB_IDS_MAX) {
            return err_set(e, "added_tokens_decoder: \"%.32s\" is not an id",
                           key);
        }

        a.id = (uint32_t) id;

        if (tokenizer_added_object(o, &a, e) != 0) {
            return err_prefix(e, "added_tokens_decoder: %u", a.id);
        }

        while (i < t->n_added
               && (t->added[i].text.n != a.text.n
                   || memcmp(t->added[i].text.p, a.text.p, a.text.n) != 0))
        {
            i++;
        }

        if (i == t->n_added && tokenizer_added_put(t, &a, e) != 0) {
            return -1;
        }
    }

    return 0;
}


/* A string, or an object with "content"; null and false are none. */
static int
special_string(struct tokenizer *t, const json_t *config, const char *key,
               struct slice *out, struct err *e)
{
    const json_t *v = json_object_get(config, key);

    if (json_is_object(v)) {
        v = json_object_get(v, "content");
    }

    if (v == NULL || json_is_null(v) || json_is_false(v)) {
        return 0;
    }

    if (!json_is_string(v)) {
        return err_set(e, "%s: expected a string or an object with content",
                       key);
    }

    out->n = json_string_length(v);
    out->p = arena_dup(&t->arena, json_string_value(v), out->n);

    return out->p != NULL ? 0 : err_set(e, "no memory for %s", key);
}


int
tokenizer_config_strings(struct tokenizer *t, const json_t *config,
                         struct err *e)
{
    int add_bos = -1;

    if (config == NULL) {
        return 0;
    }

    if (special_string(t, config, "bos_token", &t->bos, e) != 0
        || special_string(t, config, "eos_token", &t->eos, e) != 0
        || special_string(t, config, "pad_token", &t->pad, e) != 0
        || special_string(t, config, "unk_token", &t->unk, e) != 0
        || json_get_bool(config, "add_bos_token", &add_bos, e) < 0)
    {
        return -1;
    }

    /* said aloud it counts for more than the post-processor */
    if (add_bos == 0) {
        t->n_prefix = 0;
    }

    if (add_bos == 1 && t->bos.p != NULL) {
        int64_t id = tokenizer_id(t, t->bos.p, t->bos.n);

        if (id < 0) {
            return err_set(e, "bos_token \"%.64s\" is no token", t->bos.p);
        }

        t->prefix = arena_alloc(&t->arena, sizeof(*t->prefix));

        if (t->prefix == NULL) {
            return err_set(e, "no memory for bos_token");
        }

        t->prefix[0] = (uint32_t) id;
        t->n_prefix = 1;
    }

    return 0;
}
