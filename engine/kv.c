/*
 * kv.c - see kv.h.  The free pages are a stack: what was used last is taken
 * first, and is likely to be in a cache and certainly backed by memory.
 */
#include "kv.h"

#include <assert.h>
#include <stdlib.h>

struct kv {
    uint32_t    n_pages;
    uint32_t    n_free;
    uint32_t   *free;           /* (n_pages): page numbers, n_free of them */
    uint32_t    refs[];         /* (n_pages): 0 = free */
};


struct kv *
kv_create(uint32_t n_pages)
{
    size_t     n = sizeof(struct kv) + (size_t) n_pages * 2 * sizeof(uint32_t);
    struct kv *kv = calloc(1, n);

    if (kv == NULL) {
        return NULL;
    }

    kv->n_pages = kv->n_free = n_pages;
    kv->free = kv->refs + n_pages;

    for (uint32_t i = 0; i < n_pages; i++) {
        kv->free[i] = n_pages - 1 - i;
    }

    return kv;
}


void
kv_free(struct kv *kv)
{
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


int
kv_take(struct kv *kv, uint32_t n, uint32_t *pages)
{
    if (n > kv->n_free) {
        return 1;
    }

    for (uint32_t i = 0; i < n; i++) {
        pages[i] = kv->free[--kv->n_free];
        kv->refs[pages[i]] = 1;
    }

    return 0;
}


void
kv_share(struct kv *kv, uint32_t page)
{
    assert(page < kv->n_pages && kv->refs[page] != 0
           && kv->refs[page] != UINT32_MAX);

    kv->refs[page]++;
}


void
kv_drop(struct kv *kv, const uint32_t *pages, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        assert(pages[i] < kv->n_pages && kv->refs[pages[i]] != 0);

        if (--kv->refs[pages[i]] == 0) {
            kv->free[kv->n_free++] = pages[i];
        }
    }
}
