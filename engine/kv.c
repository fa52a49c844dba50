/*
 * kv.c - see kv.h.  Free pages lie in a list, blank ones in front, behind them
 * the named ones, the oldest first.  Names are found through a table of chains;
 * who wants long chains has to find SHA-256 values, and would have n_pages long
 * ones at most.
 */
#include "kv.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "sha256.h"

struct page {
    struct kv_name  name;
    uint32_t        refs;       /* 0: free, and in the list */
    uint32_t        prev;       /* in the list of free pages */
    uint32_t        next;
    uint32_t        chain;      /* next page in the same bucket */
    uint32_t        named;
};

struct kv {
    uint32_t        n_pages;
    uint32_t        n_free;
    uint32_t        n_buckets;  /* a power of two; 0: no cache */
    uint32_t       *buckets;    /* (n_buckets): page, or KV_NONE */
    struct page     pages[];    /* (n_pages), and the list's head */
};


static void
list_add(struct kv *kv, uint32_t page, uint32_t before)
{
    struct page *p = &kv->pages[page];

    p->next = before;
    p->prev = kv->pages[before].prev;
    kv->pages[p->prev].next = page;
    kv->pages[before].prev = page;
}


static void
list_remove(struct kv *kv, uint32_t page)
{
    struct page *p = &kv->pages[page];

    kv->pages[p->prev].next = p->next;
    kv->pages[p->next].prev = p->prev;
}


struct kv *
kv_create(uint32_t n_pages, int cache)
{
    struct kv *kv = calloc(1, sizeof(*kv) + ((size_t) n_pages + 1)
                                            * sizeof(kv->pages[0]));

    if (kv == NULL) {
        return NULL;
    }

    kv->n_pages = kv->n_free = n_pages;
    kv->pages[n_pages].prev = kv->pages[n_pages].next = n_pages;

    for (uint32_t i = 0; i < n_pages; i++) {
        list_add(kv, i, n_pages);
    }

    if (cache) {
        for (kv->n_buckets = 1; kv->n_buckets < n_pages; kv->n_buckets *= 2) {
        }

        kv->buckets = malloc(kv->n_buckets * sizeof(kv->buckets[0]));

        if (kv->buckets == NULL) {
            free(kv);
            return NULL;
        }

        memset(kv->buckets, 0xff, kv->n_buckets * sizeof(kv->buckets[0]));
    }

    return kv;
}


void
kv_free(struct kv *kv)
{
    free(kv->buckets);
    free(kv);
}


uint32_t
kv_pages(const struct kv *kv)
{
    return kv->n_pages;
}


uint32_t
kv_pages_free(const struct kv *kv)
{
    return kv->n_free;
}


/* What is hashed begins with what it is: no salt looks like a page. */
static struct kv_name
hash(char kind, const void *a, size_t n_a, const void *b, size_t n_b)
{
    struct kv_name name;
    struct sha256  s;
    uint8_t        out[SHA256_BYTES];

    static_assert(sizeof(name) == sizeof(out), "all of it");

    sha256_begin(&s);
    sha256_add(&s, &kind, 1);
    sha256_add(&s, a, n_a);
    sha256_add(&s, b, n_b);
    sha256_end(&s, out);
    memcpy(&name, out, sizeof(name));

    return name;
}


struct kv_name
kv_root(const void *salt, size_t n)
{
    return hash('R', salt, n, NULL, 0);
}


struct kv_name
kv_child(const struct kv_name *parent, const uint32_t *tokens, uint32_t n_tok)
{
    return hash('P', parent, sizeof(*parent), tokens,
                n_tok * sizeof(tokens[0]));
}


static uint32_t *
bucket(const struct kv *kv, const struct kv_name *name)
{
    return &kv->buckets[name->w[0] & (kv->n_buckets - 1)];
}


uint32_t
kv_find(const struct kv *kv, const struct kv_name *name)
{
    if (kv->n_buckets == 0) {
        return KV_NONE;
    }

    uint32_t page = *bucket(kv, name);

    while (page != KV_NONE
           && memcmp(&kv->pages[page].name, name, sizeof(*name)) != 0)
    {
        page = kv->pages[page].chain;
    }

    return page;
}


int
kv_is_free(const struct kv *kv, uint32_t page)
{
    return kv->pages[page].refs == 0;
}


static void
forget(struct kv *kv, uint32_t page)
{
    struct page *p = &kv->pages[page];
    uint32_t    *at = bucket(kv, &p->name);

    while (*at != page) {
        at = &kv->pages[*at].chain;
    }

    *at = p->chain;
    p->named = 0;
}


int
kv_take(struct kv *kv, uint32_t n, uint32_t *pages)
{
    if (n > kv->n_free) {
        return 1;
    }

    for (uint32_t i = 0; i < n; i++) {
        pages[i] = kv->pages[kv->n_pages].next;
        list_remove(kv, pages[i]);
        kv->pages[pages[i]].refs = 1;

        if (kv->pages[pages[i]].named) {
            forget(kv, pages[i]);
        }
    }

    kv->n_free -= n;

    return 0;
}


void
kv_share(struct kv *kv, uint32_t page)
{
    struct page *p = &kv->pages[page];

    assert(page < kv->n_pages && p->refs != UINT32_MAX
           && (p->refs != 0 || p->named));

    if (p->refs++ == 0) {
        list_remove(kv, page);
        kv->n_free--;
    }
}


uint32_t
kv_name(struct kv *kv, uint32_t page, const struct kv_name *name)
{
    struct page *p = &kv->pages[page];

    assert(page < kv->n_pages && p->refs != 0);

    if (kv->n_buckets == 0 || p->named) {
        return page;
    }

    uint32_t other = kv_find(kv, name);

    if (other != KV_NONE) {
        kv_share(kv, other);
        kv_drop(kv, &page, 1);
        return other;
    }

    uint32_t *at = bucket(kv, name);

    p->name = *name;
    p->named = 1;
    p->chain = *at;
    *at = page;

    return page;
}


void
kv_drop(struct kv *kv, const uint32_t *pages, uint32_t n)
{
    for (uint32_t i = n; i-- > 0;) {
        struct page *p = &kv->pages[pages[i]];

        assert(pages[i] < kv->n_pages && p->refs != 0);

        if (--p->refs == 0) {
            kv->n_free++;
            list_add(kv, pages[i], p->named ? kv->n_pages
                                            : kv->pages[kv->n_pages].next);
        }
    }
}
