/*
 * ring.c - frames through one-way shared memory.
 *
 * In: payloads to send; the words and frames of a peer that may be hostile.
 * Out: whole frames that were copied before they were checked, or RING_FAULT.
 * Must not know: NGINX, the engine, or what a frame means beyond PAD.
 *
 * Memory order.  There are three conversations, each over one word:
 *
 *   tail     ring_publish() store  ->  ring_get(), ring_sleep() load
 *   head     ring_release() store  ->  ring_put() load
 *   wake_at  ring_sleep() store    ->  ring_publish() load
 *
 * The first two are release and acquire: payload before tail, copies before
 * head.  Sleeping needs more, a store that is globally visible before the load
 * that follows it, on both sides; hence tail and wake_at are stored and loaded
 * seq_cst there.  One seq_cst store is the store and the full fence of
 * t/spin/wake.pml in one, and unlike a fence it is known to ThreadSanitizer.
 *
 * Ideas: private geometry and bounded indexes from Xen's libxenvchan, the event
 * index from virtio.
 */
#include <string.h>

#include "ring.h"


/* Copies n words that the peer may be writing.  Each is loaded once, whatever
 * the compiler thinks of it: what is checked is what will be used. */
static inline void
ring_snapshot(uint64_t *to, const void *from, size_t n)
{
    const uint64_t __attribute__((may_alias)) *word = from;

    for (size_t i = 0; i < n; i++) {
        to[i] = __atomic_load_n(&word[i], __ATOMIC_RELAXED);
    }
}


uint64_t
ring_event_bytes(uint32_t n_slots, uint32_t window_cells)
{
    /* At most one PAD lies between head and tail, since two of them are
     * n_bytes apart; it is shorter than the frame that did not fit. */
    uint64_t need = (uint64_t) n_slots
                    * ((uint64_t) window_cells + ABI_TERMINAL_CELLS)
                    * ABI_CELL_BYTES + ABI_EVENT_MAX;
    uint64_t n = 2 * ABI_EVENT_MAX;

    while (n < need) {
        n *= 2;
    }

    return n;
}


void
ring_tx_init(struct ring_tx *tx, struct ring_memory *own,
             const struct ring_view *peer)
{
    memset(tx, 0, sizeof(*tx));
    tx->data = (uint8_t *) own->page + ABI_PAGE_BYTES;
    tx->n_bytes = own->n_bytes - ABI_PAGE_BYTES;
    tx->own = own->page;
    tx->peer = peer->page;
}


void
ring_rx_init(struct ring_rx *rx, struct ring_memory *own,
             const struct ring_view *peer, uint32_t frame_max)
{
    memset(rx, 0, sizeof(*rx));
    rx->data = (const uint8_t *) peer->page + ABI_PAGE_BYTES;
    rx->n_bytes = peer->n_bytes - ABI_PAGE_BYTES;
    rx->frame_max = frame_max;
    rx->own = own->page;
    rx->peer = peer->page;
}


/* Reads how far the peer has consumed.  It can only go forward, and never past
 * what was published. */
static int
ring_read_head(struct ring_tx *tx)
{
    /* Acquire: pairs with ring_release().  Our stores into the cells that it
     * frees come after the peer's copies out of them. */
    uint64_t head = __atomic_load_n(&tx->peer->head, __ATOMIC_ACQUIRE);

    if (head - tx->head > tx->published - tx->head
        || head % ABI_CELL_BYTES != 0)
    {
        return RING_FAULT;
    }

    tx->head = head;

    return RING_OK;
}


int
ring_put(struct ring_tx *tx, const struct abi_frame *f,
         const void *a, size_t n_a, const void *b, size_t n_b,
         uint32_t keep_cells)
{
    uint64_t n = (uint64_t) ring_cells(f->n_bytes) * ABI_CELL_BYTES;
    uint64_t pos = tx->tail & (tx->n_bytes - 1);
    uint64_t pad = n > tx->n_bytes - pos ? tx->n_bytes - pos : 0;
    uint64_t need = pad + n + (uint64_t) keep_cells * ABI_CELL_BYTES;

    /* A longer frame could find no room even in an empty ring. */
    assert(f->n_bytes == n_a + n_b && n <= tx->n_bytes / 2);

    if (tx->n_bytes - (tx->tail - tx->head) < need) {
        if (ring_read_head(tx) != RING_OK) {
            return RING_FAULT;
        }
        if (tx->n_bytes - (tx->tail - tx->head) < need) {
            return RING_AGAIN;
        }
    }

    if (pad != 0) {
        struct abi_frame filler = { .type = ABI_PAD };

        filler.n_bytes = (uint32_t) (pad - sizeof(filler));
        memcpy(tx->data + pos, &filler, sizeof(filler));
        pos = 0;
    }

    uint8_t *p = tx->data + pos;

    memcpy(p, f, sizeof(*f));
    if (n_a != 0) {
        memcpy(p + sizeof(*f), a, n_a);
    }
    if (n_b != 0) {
        memcpy(p + sizeof(*f) + n_a, b, n_b);
    }

    tx->tail += pad + n;

    return RING_OK;
}


int
ring_publish(struct ring_tx *tx)
{
    uint64_t old = tx->published;

    if (tx->tail == old) {
        return 0;
    }

    /* Release: pairs with ring_read_tail(), frames before tail.  Seq_cst with
     * the load below: pairs with ring_sleep(), tail before the look. */
    __atomic_store_n(&tx->own->tail, tx->tail, __ATOMIC_SEQ_CST);
    tx->published = tx->tail;

    uint64_t wake_at = __atomic_load_n(&tx->peer->wake_at, __ATOMIC_SEQ_CST);

    /* old <= wake_at < tail, modulo 2^64.  Any value is safe: a wrong one
     * costs the peer its bell, or us one system call per publication. */
    return wake_at - old < tx->tail - old;
}


/* Reads how far the peer has produced, once everything seen is taken.  It can
 * only go forward, and not over bytes that were not given back. */
static int
ring_read_tail(struct ring_rx *rx)
{
    /* Acquire: pairs with ring_publish(), our copies after its stores.
     * Seq_cst for ring_sleep(), and no dearer on x86. */
    uint64_t tail = __atomic_load_n(&rx->peer->tail, __ATOMIC_SEQ_CST);
    uint64_t released = ring_word_get(&rx->own->head);

    if (tail - released > rx->n_bytes
        || tail - released < rx->tail - released
        || tail % ABI_CELL_BYTES != 0)
    {
        return RING_FAULT;
    }

    rx->tail = tail;

    return rx->head == tail ? RING_AGAIN : RING_OK;
}


int
ring_get(struct ring_rx *rx, struct abi_frame *f, void *buf)
{
    for ( ;; ) {
        if (rx->head == rx->tail) {
            int rc = ring_read_tail(rx);

            if (rc != RING_OK) {
                return rc;
            }
        }

        uint64_t pos = rx->head & (rx->n_bytes - 1);
        uint64_t to_end = rx->n_bytes - pos;
        uint64_t to_tail = rx->tail - rx->head;
        const uint8_t *p = rx->data + pos;

        uint64_t word[2];

        ring_snapshot(word, p, 2);
        memcpy(f, word, sizeof(*f));

        uint64_t n = (uint64_t) ring_cells(f->n_bytes) * ABI_CELL_BYTES;

        if ((uint64_t) f->n_bytes + sizeof(*f) > rx->frame_max
            || n > to_tail || n > to_end)
        {
            return RING_FAULT;
        }

        if (f->type != ABI_PAD) {
            memcpy(buf, p + sizeof(*f), f->n_bytes);
            rx->head += n;
            return RING_OK;
        }

        /* A PAD fills the ring to its end and has something before it, so
         * there are never two in a row and this loop ends. */
        if (n != to_end || pos == 0 || f->flags != 0 || f->slot != 0
            || f->gen != 0)
        {
            return RING_FAULT;
        }

        rx->head += n;
    }
}


void
ring_release(struct ring_rx *rx)
{
    if (ring_word_get(&rx->own->head) != rx->head) {
        /* Release: pairs with ring_read_head(). */
        __atomic_store_n(&rx->own->head, rx->head, __ATOMIC_RELEASE);
    }
}


int
ring_sleep(struct ring_rx *rx)
{
    if (rx->head != rx->tail) {
        return RING_AGAIN;
    }

    /* Seq_cst with the load in ring_read_tail(): pairs with ring_publish().
     * Either it sees this word and rings, or we see its tail and stay up. */
    __atomic_store_n(&rx->own->wake_at, rx->head, __ATOMIC_SEQ_CST);

    switch (ring_read_tail(rx)) {
    case RING_OK:
        return RING_AGAIN;
    case RING_AGAIN:
        return RING_OK;
    default:
        return RING_FAULT;
    }
}
