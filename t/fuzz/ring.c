/*
 * A hostile peer's memory: the input is what it has written, in the ring and
 * in its page.  In one half of the runs a second thread goes on writing while
 * this one takes frames and sleeps (TOCTOU).  Whatever happens: no access
 * outside the ring or the frame's buffer, an end, and only frames that hold
 * what the contract says of them.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "ring.h"

#define RING_BYTES  1024u
#define FRAME_MAX   256u
#define N_STEPS     64

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

/* What the mutating thread works with: it is started once. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t  changed;
    const uint8_t  *data;
    size_t          n;
    uint64_t       *ring, *tail;
    unsigned        n_runs;
    int             running, started;
    int             stop;               /* atomic */
} evil = { .lock = PTHREAD_MUTEX_INITIALIZER,
           .changed = PTHREAD_COND_INITIALIZER };


/* Each 8 bytes of input: which word, and what it becomes. */
static void
mutate(void)
{
    while (!__atomic_load_n(&evil.stop, __ATOMIC_RELAXED)) {
        for (size_t i = 0; i + 8 <= evil.n; i += 8) {
            uint64_t v;

            memcpy(&v, evil.data + i, 8);
            ring_word_set(&evil.ring[(v >> 7) % (RING_BYTES / 8)], v);
            if (i % 64 == 0) {
                ring_word_set(evil.tail, v % (4 * RING_BYTES) & ~63ull);
            }
        }
    }
}


static void *
evil_main(void *arg)
{
    (void) arg;
    pthread_mutex_lock(&evil.lock);
    for ( ;; ) {
        while (!evil.running) {
            pthread_cond_wait(&evil.changed, &evil.lock);
        }
        pthread_mutex_unlock(&evil.lock);
        mutate();
        pthread_mutex_lock(&evil.lock);
        evil.running = 0;
        pthread_cond_signal(&evil.changed);
    }
    return NULL;
}


static void
evil_start(const uint8_t *data, size_t n, uint8_t *ring, uint64_t *tail)
{
    pthread_t thread;

    pthread_mutex_lock(&evil.lock);
    evil.data = data;
    evil.n = n;
    evil.ring = (uint64_t *) (void *) ring;
    evil.tail = tail;
    evil.running = 1;
    __atomic_store_n(&evil.stop, 0, __ATOMIC_RELAXED);
    if (!evil.started) {
        evil.started = pthread_create(&thread, NULL, evil_main, NULL) == 0;
    }
    pthread_cond_signal(&evil.changed);
    pthread_mutex_unlock(&evil.lock);
}


static void
evil_stop(void)
{
    __atomic_store_n(&evil.stop, 1, __ATOMIC_RELAXED);
    pthread_mutex_lock(&evil.lock);
    while (evil.running) {
        pthread_cond_wait(&evil.changed, &evil.lock);
    }
    pthread_mutex_unlock(&evil.lock);
}


static void
demand(int ok)
{
    if (!ok) {
        abort();
    }
}


static void
take_frames(struct ring_rx *rx, struct ring_tx *tx)
{
    uint8_t *buf = malloc(FRAME_MAX);   /* one byte more is an error */
    struct abi_frame f = { .type = ABI_CANCEL, .gen = 1 };
    int rc = RING_OK;

    demand(buf != NULL);
    for (int i = 0; i < N_STEPS && rc != RING_FAULT; i++) {
        uint64_t head = rx->head;

        rc = ring_get(rx, &f, buf);
        if (rc == RING_OK) {
            demand(f.n_bytes + sizeof(f) <= FRAME_MAX);
            demand(f.type != ABI_PAD);
            demand(rx->head - head >= sizeof(f) + f.n_bytes);
            demand(rx->head - head < RING_BYTES + FRAME_MAX);
        } else if (rc == RING_AGAIN) {
            ring_release(rx);
            rc = ring_sleep(rx);
        } else {
            demand(rc == RING_FAULT);
        }
        demand(rx->tail - rx->head <= rx->n_bytes);
        demand(rx->head % ABI_CELL_BYTES == 0);
        if (i % 8 == 7) {
            ring_release(rx);
        }

        /* The other direction: the peer's head and wake_at are hostile. */
        f = (struct abi_frame) { .n_bytes = (uint32_t) i, .type = ABI_CANCEL,
                                 .gen = 1 };
        int put = ring_put(tx, &f, buf, f.n_bytes, NULL, 0, 0);

        demand(put == RING_OK || put == RING_AGAIN || put == RING_FAULT);
        demand(tx->tail - tx->head <= tx->n_bytes);
        ring_publish(tx);
    }
    free(buf);
}


int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n < 40) {
        return 0;
    }

    struct ring_memory own = { .n_bytes = ABI_PAGE_BYTES + RING_BYTES };
    struct ring_view peer = { .n_bytes = own.n_bytes };
    struct abi_page *page = aligned_alloc(64, own.n_bytes);
    uint64_t word[5];
    struct ring_tx tx;
    struct ring_rx rx;

    own.page = aligned_alloc(64, own.n_bytes);
    demand(own.page != NULL && page != NULL);
    memset(own.page, 0, own.n_bytes);
    memset(page, 0, own.n_bytes);
    peer.page = page;
    ring_tx_init(&tx, &own, &peer);
    ring_rx_init(&rx, &own, &peer, FRAME_MAX);

    /* Options, tail, head, wake_at, where we stand; then the ring. */
    memcpy(word, data, sizeof(word));
    data += sizeof(word);
    n -= sizeof(word);

    uint64_t at = word[0] & 2 ? word[4] & ~63ull : 0;

    rx.head = rx.tail = tx.head = tx.tail = tx.published = at;
    own.page->head = at;
    if ((word[0] & 4) == 0) {           /* a tail that can be */
        word[1] = word[1] % (RING_BYTES + 1) & ~63ull;
    }
    page->tail = at + word[1];
    page->head = at + word[2];
    page->wake_at = at + word[3];
    uint8_t *ring = (uint8_t *) page + ABI_PAGE_BYTES;

    memcpy(ring, data, n < RING_BYTES ? n : RING_BYTES);

    int concurrent = word[0] & 1;

    if (concurrent) {
        evil_start(data, n, ring, &page->tail);
    }
    take_frames(&rx, &tx);
    if (concurrent) {
        evil_stop();
    }
    free(own.page);
    free(page);
    return 0;
}
