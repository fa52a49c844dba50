/*
 * vocab.c - see vocab.h.  Open addressing with linear probing; the hash is
 * seeded, so a file can not be made that fills one neighbourhood.
 */
#include "tokenizer/vocab.h"

#include <stdlib.h>
#include <string.h>


int
strings_init(struct strings *s, const struct slice *by_id, uint32_t n,
             struct err *e)
{
    size_t total = 0;

    memset(s, 0, sizeof(*s));

    for (uint32_t i = 0; i < n; i++) {
        if (size_add(total, by_id[i].n, &total) != 0 || total > UINT32_MAX) {
            return err_set(e, "vocabulary of more than 4 GiB");
        }
    }

    s->text = malloc(total + 1);
    s->from = malloc(((size_t) n + 1) * sizeof(*s->from));
    s->n = n;

    if (s->text == NULL || s->from == NULL) {
        strings_free(s);
        return err_set(e, "no memory for a vocabulary of %u", n);
    }

    size_t at = 0;

    for (uint32_t i = 0; i < n; i++) {
        s->from[i] = (uint32_t) at;

        if (by_id[i].n > 0) {
            memcpy(s->text + at, by_id[i].p, by_id[i].n);
            at += by_id[i].n;
        }
    }

    s->from[n] = (uint32_t) at;

    return 0;
}


void
strings_free(struct strings *s)
{
    free(s->text);
    free(s->from);
    memset(s, 0, sizeof(*s));
}


static uint64_t
hash(uint64_t seed, const char *p, size_t n)
{
    uint64_t h = seed ^ n * 0x9e3779b97f4a7c15u;
    uint64_t word;

    for ( ; n >= sizeof(word); p += sizeof(word), n -= sizeof(word)) {
        memcpy(&word, p, sizeof(word));
        h = (h ^ word) * 0xbf58476d1ce4e5b9u;
        h ^= h >> 31;
    }

    word = 0;

    if (n > 0) {
        memcpy(&word, p, n);
    }

    h = (h ^ word) * 0xbf58476d1ce4e5b9u;
    h ^= h >> 29;
    h *= 0x94d049bb133111ebu;

    return h ^ h >> 32;
}


/* The slot that holds the string, or the empty one where it would go. */
static uint32_t *
find(const struct vocab *v, const char *p, size_t n)
{
    uint32_t i = (uint32_t) ((hash(v->seed, p, n) & UINT32_MAX) * v->n_slot
                             >> 32);

    while (v->slots[i] != VOCAB_NONE) {
        struct slice s = strings_get(&v->keys, v->slots[i]);

        if (s.n == n && memcmp(s.p, p, n) == 0) {
            break;
        }

        i = i + 1 == v->n_slot ? 0 : i + 1;
    }

    return &v->slots[i];
}


int
vocab_init(struct vocab *v, const struct slice *by_id, uint32_t n,
           uint64_t seed, struct err *e)
{
    memset(v, 0, sizeof(*v));

    if (strings_init(&v->keys, by_id, n, e) != 0) {
        return -1;
    }

    v->seed = seed;
    v->n_slot = n * 2 + 1;      /* n is at most VOCAB_IDS_MAX */
    v->slots = malloc(v->n_slot * sizeof(*v->slots));

    if (v->slots == NULL) {
        vocab_free(v);
        return err_set(e, "no memory for a vocabulary of %u", n);
    }

    memset(v->slots, 0xff, v->n_slot * sizeof(*v->slots));

    for (uint32_t id = 0; id < n; id++) {
        struct slice s = strings_get(&v->keys, id);

        if (s.n == 0) {
            continue;
        }

        uint32_t *slot = find(v, s.p, s.n);

        if (*slot != VOCAB_NONE) {
            err_set(e, "token \"%.*s\" has two ids, %u and %u",
                    (int) (s.n < 64 ? s.n : 64), s.p, *slot, id);
            vocab_free(v);
            return -1;
        }

        *slot = id;
        v->n_key++;
        v->longest = s.n > v->longest ? s.n : v->longest;
    }

    return 0;
}


void
vocab_free(struct vocab *v)
{
    strings_free(&v->keys);
    free(v->slots);
    memset(v, 0, sizeof(*v));
}


uint32_t
vocab_find(const struct vocab *v, const char *p, size_t n)
{
    return n == 0 || n > v->longest ? VOCAB_NONE : *find(v, p, n);
}
