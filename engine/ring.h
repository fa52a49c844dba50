/*
 * ring.h - one single-producer single-consumer ring of frames in a memfd that
 * only its producer may write, and the handshake that sets a pair of them up.
 *
 * The mental model.  `struct ring_tx` and `struct ring_rx` are the two private
 * ends.  All geometry is in them, none in shared memory; the peer's words are
 * read once each, checked, and never believed: a peer that moves an index
 * backwards or too far, or writes a frame that cannot be, gives RING_FAULT and
 * is to be detached.  Frames are copied out before anything looks at them.
 *
 * Positions are free-running byte counts, multiples of ABI_CELL_BYTES, masked
 * only on access.  The consumer's `head` is the license to overwrite: bytes
 * before it are the producer's again, none after it.
 *
 *        head                 tail             (of the producer: private)
 *   ......|#######|#######|####|...............
 *         ^ consumer reads     ^ producer writes, publishes at most once a step
 *
 * Waking.  A consumer about to sleep stores the tail it has seen in `wake_at`
 * of its own page, fences, and looks again; a producer stores its tail, fences,
 * and rings if wake_at lies in what it has just published.  t/spin/wake.pml
 * proves that no wake-up is lost, and that each fence is needed.
 *
 * Order of use.  Consumer: ring_get() until AGAIN or a bound, ring_release(),
 * and ring_sleep() before it waits.  A side that does both releases what it
 * took before it publishes what it put: credits must not run ahead of room.
 *
 * Shared by the module and the engine; must not know either of them.
 */
#ifndef MOE_RING_H
#define MOE_RING_H

#include <stddef.h>
#include <stdint.h>

#include "abi.h"

#define RING_OK       0
#define RING_AGAIN    1         /* no room, or nothing there: not an error */
#define RING_FAULT  (-1)        /* the peer broke the contract, or errno */

#define RING_TEXT     160       /* bytes of a reason, NUL-terminated */
#define RING_FDS_MAX  4         /* descriptors in one message */


/* A memfd that this process has created and writes. */
struct ring_memory {
    struct abi_page *page;      /* mapped read-write, n_bytes */
    size_t           n_bytes;   /* header page and ring */
    int              fd;        /* sealed; closed by ring_memory_close() */
};

/* A peer's memfd, mapped read-only. */
struct ring_view {
    const struct abi_page *page;
    size_t                 n_bytes;
};

struct ring_tx {
    uint8_t               *data;
    uint64_t               n_bytes;     /* power of two */
    uint64_t               tail;        /* written, maybe not published */
    uint64_t               published;
    uint64_t               head;        /* peer's head as last read */
    struct abi_page       *own;         /* tail is stored here */
    const struct abi_page *peer;        /* head and wake_at are read here */
};

struct ring_rx {
    const uint8_t         *data;
    uint64_t               n_bytes;     /* power of two */
    uint64_t               head;        /* read; stored by ring_release() */
    uint64_t               tail;        /* peer's tail as last read */
    uint32_t               frame_max;   /* bytes with header: larger = fault */
    struct abi_page       *own;         /* head and wake_at are stored here */
    const struct abi_page *peer;        /* tail is read here */
};


/* Bytes of an event ring that n_slots windows of window_cells and as many
 * terminal frames cannot fill: the next power of two above them and one frame
 * of padding.  More than ABI_RING_MAX is refused by ring_memory_create(). */
uint64_t ring_event_bytes(uint32_t n_slots, uint32_t window_cells);

/* Cells that a frame with n_bytes of payload takes. */
static inline uint32_t
ring_cells(uint32_t n_bytes)
{
    return (uint32_t) ((sizeof(struct abi_frame) + (uint64_t) n_bytes
                        + ABI_CELL_BYTES - 1) / ABI_CELL_BYTES);
}


/*
 * Creates a memfd of a header page and ring_bytes (a power of two), reserves
 * and maps all of it, seals it (SHRINK, GROW, FUTURE_WRITE, SEAL) and fills the
 * page.  0, or RING_FAULT with the reason in text[RING_TEXT].
 */
int ring_memory_create(struct ring_memory *m, uint64_t ring_bytes,
                       uint64_t generation, char *text);
void ring_memory_close(struct ring_memory *m);

/*
 * Checks a received fd (regular file on tmpfs, exact size, all four seals, page
 * magic, version, size, generation, CRC) and maps it read-only.  The fd stays
 * the caller's.  0, or RING_FAULT with the reason in text.
 */
int ring_view_open(struct ring_view *v, int fd, uint64_t ring_bytes,
                   uint64_t generation, char *text);
void ring_view_close(struct ring_view *v);

/* The two ends, over the writer's memory and the other side's view of it. */
void ring_tx_init(struct ring_tx *tx, struct ring_memory *own,
                  const struct ring_view *peer);
void ring_rx_init(struct ring_rx *rx, struct ring_memory *own,
                  const struct ring_view *peer, uint32_t frame_max);


/*
 * Appends one frame of at most half the ring, whose payload is `a` followed
 * by `b` (either may be NULL with n = 0).  f->n_bytes must be n_a + n_b.
 * `keep_cells` cells are left free: requests keep room for CANCEL and CREDIT.
 * RING_OK; RING_AGAIN: no room, nothing written; RING_FAULT: the peer's head
 * is impossible.
 */
int ring_put(struct ring_tx *tx, const struct abi_frame *f,
             const void *a, size_t n_a, const void *b, size_t n_b,
             uint32_t keep_cells);

/* Publishes what was put.  1: the peer sleeps, ring its bell; 0: no need. */
int ring_publish(struct ring_tx *tx);

/*
 * Takes the next frame: header to *f, payload to buf (of at least
 * rx->frame_max bytes).  PAD frames are skipped.  RING_OK, RING_AGAIN (empty)
 * or RING_FAULT.  The bytes stay the consumer's until ring_release().
 */
int ring_get(struct ring_rx *rx, struct abi_frame *f, void *buf);

/* Gives everything taken back to the producer. */
void ring_release(struct ring_rx *rx);

/*
 * To be called before sleeping, with everything taken and released.  RING_OK:
 * sleep, the bell will ring; RING_AGAIN: a frame came meanwhile, go on;
 * RING_FAULT.
 */
int ring_sleep(struct ring_rx *rx);


/* Bell: never blocks, whatever the peer does to its end. */
int ring_bell_pair(int fd[2]);      /* own end, peer's end; -1 and errno */
/* Is a received fd one that cannot block?  0, or RING_FAULT and text. */
int ring_bell_check(int fd, char *text);
void ring_bell_ring(int fd);
/* Drains at most a bounded number of bells.  0, or -1: the peer is gone. */
int ring_bell_drain(int fd);

/* Each bell is an edge, heard or not: who waits for edges may leave as many
 * unread as he has gone to sleep, since a peer rings once a sleep at most.  A
 * socket's queue held 278 (ring_peer.c); t/spin/bell.pml says what has to be
 * minded. */
#define RING_BELLS_UNREAD  64


/*
 * Handshake messages over a SEQPACKET socket, never blocking.
 * ring_send: 0, RING_AGAIN, or RING_FAULT and errno.
 * ring_recv: receives one message of at most n bytes with exactly n_fds
 * descriptors (close-on-exec); surplus or missing ones are closed and are a
 * fault, a truncated message is a fault.  A REFUSE where descriptors were due
 * is a fault too, with the peer's reason.  Returns the bytes received (> 0), 0:
 * nothing yet (EAGAIN), RING_FAULT: EOF or broken, reason in text.
 */
int ring_send(int sock, const void *msg, size_t n, const int *fds, int n_fds);
int ring_recv(int sock, void *msg, size_t n, int *fds, int n_fds, char *text);

/* What each side demands of the other's message of n bytes, before it looks at
 * a descriptor.  0, or RING_FAULT and text. */
int ring_hello_check(const struct abi_hello *h, size_t n, char *text);
int ring_welcome_check(const struct abi_welcome *w, size_t n, char *text);


/* Single-word access to the pages.  Nothing else may touch shared words:
 * t/layout.t greps for it. */
static inline uint64_t
ring_word_get(const uint64_t *w)
{
    return __atomic_load_n(w, __ATOMIC_RELAXED);
}

static inline void
ring_word_set(uint64_t *w, uint64_t v)
{
    __atomic_store_n(w, v, __ATOMIC_RELAXED);
}

#endif /* MOE_RING_H */
