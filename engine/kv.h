/*
 * kv.h - the page numbers of the KV store: who holds which page, and what the
 * pages that nobody holds still have in them.  Bytes and layouts are the
 * backend's; this is bookkeeping alone, pure and testable.
 *
 * The mental model.  A page holds MODEL_PAGE_TOK tokens of one sequence (all
 * layers) and counts its holders.  Once it is full its content never changes,
 * and is a function of the tokens up to its end (D6): so it may be shared, and
 * gets a name, the SHA-256 of its tokens and of the name of the page before it.
 * The first page's parent is the tenant's root, and so no name is found but by
 * somebody with the same salt and the same tokens from the beginning.
 *
 *      kv_take -> held, blank -> kv_name -> held, named <-> kv_share
 *         ^                                     | kv_drop
 *         '----- the oldest goes first ---- free, named: a hit may revive it
 *
 * Free pages are those without a holder, named or not; all of them can be
 * taken.  Blank ones go first, then the ones that were let go longest ago.
 */
#ifndef MOE_KV_H
#define MOE_KV_H

#include "base.h"

#define KV_NONE     UINT32_MAX

struct kv;

struct kv_name {
    uint64_t    w[4];           /* SHA-256, all of it */
};

struct kv *kv_create(uint32_t n_pages, int cache);  /* NULL: no memory */
void kv_free(struct kv *kv);

uint32_t kv_pages(const struct kv *kv);
uint32_t kv_pages_free(const struct kv *kv);

/* Names.  The root of all pages of one tenant; of a page behind another. */
struct kv_name kv_root(const void *salt, size_t n);
struct kv_name kv_child(const struct kv_name *parent, const uint32_t *tokens,
                        uint32_t n_tok);

/* Takes n pages, each with one holder.  0, or 1: not that many free, then none
 * was taken. */
int kv_take(struct kv *kv, uint32_t n, uint32_t *pages);

/* The page of that name; KV_NONE: none has it.  Not held by that. */
uint32_t kv_find(const struct kv *kv, const struct kv_name *name);
int kv_is_free(const struct kv *kv, uint32_t page);

/* One more holder: of a page that is held, or that kv_find() has found. */
void kv_share(struct kv *kv, uint32_t page);

/* A held page is full and has this name.  Returns the page to go on with: it,
 * or another one that has the name already, then held instead of it. */
uint32_t kv_name(struct kv *kv, uint32_t page, const struct kv_name *name);

/* One holder less each; the last of the pages is then the oldest, since without
 * the first nobody finds it. */
void kv_drop(struct kv *kv, const uint32_t *pages, uint32_t n);

#endif /* MOE_KV_H */
