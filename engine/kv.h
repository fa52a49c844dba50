/*
 * kv.h - the page numbers of the KV store: who holds which page.  Bytes and
 * layouts are the backend's; this is bookkeeping alone, pure and testable.
 *
 * A page holds MODEL_PAGE_TOK tokens of one sequence (all layers), is counted,
 * and may be shared read-only by several sequences once it is full.
 */
#ifndef MOE_KV_H
#define MOE_KV_H

#include "base.h"

struct kv;

struct kv *kv_create(uint32_t n_pages);     /* NULL: no memory */
void kv_free(struct kv *kv);

uint32_t kv_pages(const struct kv *kv);
uint32_t kv_pages_free(const struct kv *kv);

/* Takes n pages, each with one reference.  0, or 1: not that many free, then
 * none was taken. */
int kv_take(struct kv *kv, uint32_t n, uint32_t *pages);

void kv_share(struct kv *kv, uint32_t page);        /* one more reference */
void kv_drop(struct kv *kv, const uint32_t *pages, uint32_t n);

#endif /* MOE_KV_H */
