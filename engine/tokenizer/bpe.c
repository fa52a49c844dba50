/*
 * bpe.c - see bpe.h.  Short rows are scanned for the least rank at each step;
 * long ones use a heap of candidates, O(n log n) whatever the text.  A heap
 * entry is stale when the pair at its place has another rank by now: a pair
 * that grew at either end spells a longer text, so it has another rank.
 */
#include "tokenizer/bpe.h"

#include <stdlib.h>
#include <string.h>

#define SHORT   24              /* symbols; measured on English and code: 16 to
                                   32 are equal, a heap is slower below */


static inline uint32_t
slot_of(const struct bpe *b, uint32_t left, uint32_t right)
{
    uint64_t h = ((uint64_t) left << 32 | right) ^ b->seed;

    h *= 0x9e3779b97f4a7c15u;
    h ^= h >> 29;
    h *= 0xbf58476d1ce4e5b9u;

    return (uint32_t) ((h >> 32) * b->n_slot >> 32);
}


/* The slot of the pair, or the empty one where it would go. */
static inline struct bpe_merge *
find(const struct bpe *b, uint32_t left, uint32_t right)
{
    uint32_t i = slot_of(b, left, right);

    while (b->slots[i].left != BPE_NONE
           && (b->slots[i].left != left || b->slots[i].right != right))
    {
        i = i + 1 == b->n_slot ? 0 : i + 1;
    }

    return &b->slots[i];
}


int
bpe_init(struct bpe *b, size_t n, uint64_t seed)
{
    size_t n_slot = n + n / 2 + 1;
    size_t bytes;

    memset(b, 0, sizeof(*b));

    if (n > UINT32_MAX / 2 || size_mul(n_slot, sizeof(*b->slots), &bytes) != 0)
    {
        return -1;
    }

    b->slots = malloc(bytes);
    if (b->slots == NULL) {
        return -1;
    }

    b->n_slot = (uint32_t) n_slot;
    b->seed = seed;
    memset(b->slots, 0xff, bytes);

    return 0;
}


void
bpe_free(struct bpe *b)
{
    free(b->slots);
    memset(b, 0, sizeof(*b));
}


void
bpe_add(struct bpe *b, struct bpe_merge m)
{
    struct bpe_merge *s = find(b, m.left, m.right);

    b->n += s->left == BPE_NONE;
    *s = m;
}


int
bpe_work_reserve(struct bpe_work *w, size_t n)
{
    if (n <= w->cap) {
        return 0;
    }

    if (n >= BPE_NONE) {
        return -1;
    }

    size_t    cap = n < 1024 ? 1024 : n;
    size_t    bytes = cap * sizeof(uint32_t);
    uint32_t **rows[] = { &w->id, &w->next, &w->prev, &w->rank, &w->made };

    for (size_t i = 0; i < BASE_COUNT(rows); i++) {
        uint32_t *p = realloc(*rows[i], bytes);

        if (p == NULL) {
            return -1;
        }

        *rows[i] = p;
    }

    w->cap = cap;

    return 0;
}


void
bpe_work_free(struct bpe_work *w)
{
    free(w->id);
    free(w->next);
    free(w->prev);
    free(w->rank);
    free(w->made);
    free(w->heap);
    memset(w, 0, sizeof(*w));
}


static inline void
pair_set(const struct bpe *b, struct bpe_work *w, size_t i, size_t j)
{
    const struct bpe_merge *m = find(b, w->id[i], w->id[j]);

    /* an empty slot is all ones, its rank too: BPE_NONE */
    w->rank[i] = m->rank;
    w->made[i] = m->id;
}


/* Each step moves the tail, which for a short row is cheaper than links. */
static size_t
run_short(const struct bpe *b, struct bpe_work *w, size_t n)
{
    for (size_t i = 0; i + 1 < n; i++) {
        pair_set(b, w, i, i + 1);
    }

    while (n > 1) {
        size_t best = 0;

        for (size_t i = 1; i + 1 < n; i++) {
            if (w->rank[i] < w->rank[best]) {
                best = i;
            }
        }

        if (w->rank[best] == BPE_NONE) {
            break;
        }

        size_t tail = n - best - 2;

        w->id[best] = w->made[best];
        memmove(w->id + best + 1, w->id + best + 2, tail * sizeof(w->id[0]));
        memmove(w->rank + best + 1, w->rank + best + 2,
                tail * sizeof(w->rank[0]));
        memmove(w->made + best + 1, w->made + best + 2,
                tail * sizeof(w->made[0]));
        n--;

        if (best + 1 < n) {
            pair_set(b, w, best, best + 1);
        }

        if (best > 0) {
            pair_set(b, w, best - 1, best);
        }
    }

    return n;
}


static int
heap_push(struct bpe_work *w, uint64_t key)
{
    if (w->n_heap == w->heap_cap) {
        size_t    cap = w->heap_cap == 0 ? 1024 : w->heap_cap * 2;
        uint64_t *p = realloc(w->heap, cap * sizeof(*p));

        if (p == NULL) {
            return -1;
        }

        w->heap = p;
        w->heap_cap = cap;
    }

    size_t i = w->n_heap++;

    while (i > 0 && w->heap[(i - 1) / 2] > key) {
        w->heap[i] = w->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }

    w->heap[i] = key;

    return 0;
}


static uint64_t
heap_pop(struct bpe_work *w)
{
    uint64_t top = w->heap[0];
    uint64_t key = w->heap[--w->n_heap];
    size_t   i = 0;

    for ( ;; ) {
        size_t kid = 2 * i + 1;

        if (kid >= w->n_heap) {
            break;
        }

        if (kid + 1 < w->n_heap && w->heap[kid + 1] < w->heap[kid]) {
            kid++;
        }

        if (w->heap[kid] >= key) {
            break;
        }

        w->heap[i] = w->heap[kid];
        i = kid;
    }

    w->heap[i] = key;

    return top;
}


static int
pair_offer(const struct bpe *b, struct bpe_work *w, size_t i, size_t j)
{
    pair_set(b, w, i, j);

    return w->rank[i] == BPE_NONE ? 0
           : heap_push(w, (uint64_t) w->rank[i] << 32 | i);
}


/* Merges i with its right neighbour: unlinks that, offers both new pairs. */
static int
merge_at(const struct bpe *b, struct bpe_work *w, size_t i, size_t n)
{
    size_t gone = w->next[i];
    size_t right = w->next[gone];

    w->id[i] = w->made[i];
    w->id[gone] = BPE_NONE;
    w->rank[gone] = BPE_NONE;
    w->rank[i] = BPE_NONE;
    w->next[i] = (uint32_t) right;

    if (right < n) {
        w->prev[right] = (uint32_t) i;

        if (pair_offer(b, w, i, right) != 0) {
            return -1;
        }
    }

    return w->prev[i] == BPE_NONE ? 0 : pair_offer(b, w, w->prev[i], i);
}


int
bpe_run(const struct bpe *b, struct bpe_work *w, size_t n, size_t *n_out)
{
    if (n <= SHORT) {
        *n_out = run_short(b, w, n);
        return 0;
    }

    w->n_heap = 0;
    w->rank[n - 1] = BPE_NONE;

    for (size_t i = 0; i < n; i++) {
        w->next[i] = (uint32_t) i + 1;
        w->prev[i] = i == 0 ? BPE_NONE : (uint32_t) i - 1;

        if (i + 1 < n && pair_offer(b, w, i, i + 1) != 0) {
            return -1;
        }
    }

    while (w->n_heap > 0) {
        uint64_t top = heap_pop(w);
        size_t   i = (uint32_t) top;

        if (w->rank[i] == top >> 32 && merge_at(b, w, i, n) != 0) {
            return -1;
        }
    }

    size_t k = 0;

    for (size_t i = 0; i < n; i++) {
        if (w->id[i] != BPE_NONE) {
            w->id[k++] = w->id[i];
        }
    }

    *n_out = k;

    return 0;
}
