/*
 * ring_threads.c - both ends of a pair of rings in two threads of one process,
 * which is what ThreadSanitizer can see into (it knows neither two processes
 * nor two mappings of one memory).  t/tsan.t builds it with TSan, right
 * and with weakened orders.
 *
 *      ring_threads [FRAMES]
 *
 * Each thread sends FRAMES and takes as many, sleeping on a bell as a worker
 * does.  Exits with 1 when a frame is wrong or a wake-up was lost.
 */
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ring.h"

#define RING_BYTES  4096
#define WORDS       24          /* of payload, at most */
#define HANG_MS     20000

struct side {
    struct ring_memory  own;
    struct ring_view    view;       /* the other's, the same mapping */
    struct ring_tx      tx;
    struct ring_rx      rx;
    int                 bell;
    uint64_t            n_frames, n_rings, n_sleeps;
    const char         *wrong;
};


static int
send_one(struct side *s, uint64_t i)
{
    uint64_t word[WORDS];
    size_t n = i % (WORDS + 1);
    struct abi_frame f = { .n_bytes = (uint32_t) (n * 8), .type = ABI_DELTA,
                           .gen = i };

    for (size_t k = 0; k < n; k++) {
        word[k] = i * 31 + k;
    }
    return ring_put(&s->tx, &f, word, n * 8, NULL, 0, 0);
}


static int
take_one(struct side *s, uint64_t i)
{
    uint64_t word[WORDS + 2];
    struct abi_frame f;
    int rc = ring_get(&s->rx, &f, word);

    if (rc != RING_OK) {
        return rc;
    }
    for (size_t k = 0; k < f.n_bytes / 8; k++) {
        if (word[k] != i * 31 + k) {
            return RING_FAULT;
        }
    }
    return f.gen == i && f.n_bytes == i % (WORDS + 1) * 8 ? RING_OK
                                                          : RING_FAULT;
}


static void *
converse(void *arg)
{
    struct side *s = arg;
    uint64_t n_sent = 0, n_got = 0;

    while (n_sent < s->n_frames || n_got < s->n_frames) {
        int busy = 0, rc = RING_OK;

        for (int i = 0; i < 4 && n_sent < s->n_frames && rc == RING_OK; i++) {
            rc = send_one(s, n_sent);
            n_sent += rc == RING_OK;
            busy |= rc == RING_OK;
        }
        if (ring_publish(&s->tx)) {
            ring_bell_ring(s->bell);
            s->n_rings++;
        }
        for (int i = 0; i < 8 && n_got < s->n_frames && rc != RING_FAULT; i++) {
            rc = take_one(s, n_got);
            if (rc == RING_AGAIN) {
                break;
            }
            n_got++;
            busy = 1;
        }
        if (rc == RING_FAULT) {
            s->wrong = "a frame or an index is wrong";
            return NULL;
        }
        ring_release(&s->rx);
        if (busy || n_got == s->n_frames || ring_sleep(&s->rx) != RING_OK) {
            continue;
        }

        struct pollfd p = { .fd = s->bell, .events = POLLIN };
        int waits = n_sent == s->n_frames;

        s->n_sleeps++;
        if (poll(&p, 1, waits ? HANG_MS : 1) == 0 && waits) {
            s->wrong = "a wake-up was lost";
            return NULL;
        }
        if (p.revents) {
            ring_bell_drain(s->bell);
        }
    }
    return NULL;
}


int
main(int argc, char **argv)
{
    struct side side[2];
    pthread_t thread[2];
    char text[RING_TEXT];
    int bell[2];

    memset(side, 0, sizeof(side));
    if (ring_bell_pair(bell) == -1) {
        return 2;
    }
    for (int i = 0; i < 2; i++) {
        struct side *s = &side[i];
        if (ring_memory_create(&s->own, RING_BYTES, 1, text) != 0) {
            fprintf(stderr, "%s\n", text);
            return 2;
        }
        s->bell = bell[i];
        s->n_frames = argc > 1 ? strtoull(argv[1], NULL, 10) : 1000000;
    }
    for (int i = 0; i < 2; i++) {
        struct side *s = &side[i];
        s->view.page = side[1 - i].own.page;
        s->view.n_bytes = side[1 - i].own.n_bytes;
        ring_tx_init(&s->tx, &s->own, &s->view);
        ring_rx_init(&s->rx, &s->own, &s->view, 512);
    }
    for (int i = 0; i < 2; i++) {
        pthread_create(&thread[i], NULL, converse, &side[i]);
    }
    for (int i = 0; i < 2; i++) {
        pthread_join(thread[i], NULL);
        printf("%llu frames, %llu bells, %llu sleeps: %s\n",
               (unsigned long long) side[i].n_frames,
               (unsigned long long) side[i].n_rings,
               (unsigned long long) side[i].n_sleeps,
               side[i].wrong ? side[i].wrong : "right");
    }
    return side[0].wrong || side[1].wrong;
}
