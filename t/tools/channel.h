/*
 * channel.h - a channel in its shortest form, for tests, tools and benchmarks
 * that stand in for NGINX or the engine.  In: a socket or its path.  Out: an
 * attached pair of rings, requests sent, events received.  Blocks as it likes.
 */
#ifndef TOOLS_CHANNEL_H
#define TOOLS_CHANNEL_H

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base.h"
#include "ring.h"

#define CHANNEL_RING_BYTES   (1u << 20)

struct channel {
    int                 sock, bell;
    struct ring_memory  own;
    struct ring_view    peer;
    struct ring_tx      tx;
    struct ring_rx      rx;
    struct abi_hello    hello;
    struct abi_welcome  welcome;
};


/* -1 and text.  Blocks until somebody listens or the path is wrong. */
static inline int
channel_dial(const char *path, char *text)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
    if (fd == -1 || connect(fd, (struct sockaddr *) &a, sizeof(a)) == -1) {
        snprintf(text, RING_TEXT, "connect: %s", path);
        close(fd);
        return -1;
    }
    return fd;
}


/* Waits until fd is readable: 1, or 0 when ms have passed. */
static inline int
channel_wait(int fd, int ms)
{
    struct pollfd p = { .fd = fd, .events = POLLIN };

    return poll(&p, 1, ms) > 0;
}


static inline void
channel_close(struct channel *w)
{
    if (w->sock != -1) {
        close(w->sock);
    }
    if (w->bell != -1) {
        close(w->bell);
    }
    ring_memory_close(&w->own);
    ring_view_close(&w->peer);
}


/* A HELLO that an engine accepts; attacks start from it. */
static inline struct abi_hello
channel_hello(uint32_t n_slots, uint32_t window)
{
    struct abi_hello h = {
        .magic = ABI_MAGIC, .message = ABI_HELLO, .n_bytes = sizeof(h),
        .major = ABI_MAJOR, .minor = ABI_MINOR, .features = ABI_FEATURES,
        .n_slots = n_slots, .window_cells = window,
        .request_ring_bytes = CHANNEL_RING_BYTES,
        .event_ring_bytes = ring_event_bytes(n_slots, window),
        .nonce = clock_us()
    };

    return h;
}


/* The worker's handshake over sock, which is taken.  0, or -1 and text. */
static inline int
channel_attach_sock(struct channel *w, int sock, const struct abi_hello *h,
                    char *text)
{
    int bell[2] = { -1, -1 }, fd = -1, rc = -1, n;

    memset(w, 0, sizeof(*w));
    w->bell = w->own.fd = -1;
    w->hello = *h;
    w->sock = sock;

    if (ring_bell_pair(bell) == 0
        && ring_memory_create(&w->own, h->request_ring_bytes, h->nonce, text)
           == 0)
    {
        int fds[2] = { w->own.fd, bell[1] };
        w->bell = bell[0];
        snprintf(text, RING_TEXT, "no WELCOME in 5 s");
        if (ring_send(w->sock, h, sizeof(*h), fds, 2) == RING_OK
            && channel_wait(w->sock, 5000)
            && (n = ring_recv(w->sock, &w->welcome, sizeof(w->welcome), &fd, 1,
                              text)) > 0
            && ring_welcome_check(&w->welcome, (size_t) n, text) == 0
            && ring_view_open(&w->peer, fd, h->event_ring_bytes,
                              w->welcome.generation, text) == 0)
        {
            ring_tx_init(&w->tx, &w->own, &w->peer);
            ring_rx_init(&w->rx, &w->own, &w->peer, ABI_EVENT_MAX);
            text[0] = '\0';
            rc = 0;
        }
    }
    if (fd != -1) {
        close(fd);
    }
    if (bell[1] != -1) {
        close(bell[1]);
    }
    if (rc != 0) {
        channel_close(w);
    }
    return rc;
}


static inline int
channel_attach(struct channel *w, const char *path, const struct abi_hello *h,
               char *text)
{
    int sock = channel_dial(path, text);

    return sock == -1 ? -1 : channel_attach_sock(w, sock, h, text);
}


/* The engine's handshake over sock, which is taken.  0, or -1 and text. */
static inline int
channel_accept_sock(struct channel *e, int sock, char *text)
{
    int fds[2] = { -1, -1 }, rc = -1, n;

    memset(e, 0, sizeof(*e));
    e->bell = e->own.fd = -1;
    e->sock = sock;
    e->welcome = (struct abi_welcome) {
        .magic = ABI_MAGIC, .message = ABI_WELCOME,
        .n_bytes = sizeof(e->welcome), .major = ABI_MAJOR,
        .generation = clock_us() + 1, .model = "test", .owner = "test"
    };
    snprintf(text, RING_TEXT, "no HELLO in 5 s");

    if (channel_wait(sock, 5000)
        && (n = ring_recv(sock, &e->hello, sizeof(e->hello), fds, 2, text)) > 0)
    {
        e->bell = fds[1];
        if (ring_hello_check(&e->hello, (size_t) n, text) == 0
            && ring_bell_check(fds[1], text) == 0
            && ring_view_open(&e->peer, fds[0], e->hello.request_ring_bytes,
                              e->hello.nonce, text) == 0
            && ring_memory_create(&e->own, e->hello.event_ring_bytes,
                                  e->welcome.generation, text) == 0
            && ring_send(sock, &e->welcome, sizeof(e->welcome), &e->own.fd, 1)
               == RING_OK)
        {
            ring_tx_init(&e->tx, &e->own, &e->peer);
            ring_rx_init(&e->rx, &e->own, &e->peer, ABI_FRAME_MAX);
            rc = 0;
        }
        close(fds[0]);
    }
    if (rc != 0) {
        channel_close(e);
    }
    return rc;
}


static inline void
channel_publish(struct channel *w)
{
    if (ring_publish(&w->tx)) {
        ring_bell_ring(w->bell);
    }
}


static inline int
channel_put(struct channel *w, uint8_t type, uint16_t slot, uint64_t gen,
           const void *p, size_t n)
{
    struct abi_frame f = { .n_bytes = (uint32_t) n, .type = type, .slot = slot,
                           .gen = gen };
    int rc = ring_put(&w->tx, &f, p, n, NULL, 0, 0);

    channel_publish(w);
    return rc;
}


static inline int
channel_credit(struct channel *w, uint16_t slot, uint64_t gen, uint32_t n_cells)
{
    struct abi_credit c = { .n_cells = n_cells };

    return channel_put(w, ABI_CREDIT, slot, gen, &c, sizeof(c));
}


/* Parameters as OpenAI's defaults have them. */
static inline struct abi_request
channel_defaults(uint32_t kind, uint32_t n_body, uint32_t max_tokens)
{
    struct abi_request r = {
        .kind = kind, .n_choices = 1, .max_tokens = max_tokens,
        .temperature = 1, .top_p = 1, .repetition = 1, .n_body = n_body
    };

    if (max_tokens) {
        r.given = ABI_GIVEN_MAX_TOKENS;
    } else {
        r.max_tokens = UINT32_MAX;
    }
    r.n_bytes = (uint32_t) sizeof(r) + ((n_body + 7) & ~7u);
    return r;
}


/* Sends n bytes as one REQUEST in as many fragments as needed.  RING_AGAIN
 * leaves a part sent: the rings of these tools are larger than that. */
static inline int
channel_request(struct channel *w, uint16_t slot, uint64_t gen, const void *p,
               size_t n)
{
    const size_t max = ABI_FRAME_MAX - sizeof(struct abi_frame);
    int rc = RING_OK;

    for (size_t at = 0; at < n && rc == RING_OK; ) {
        size_t k = n - at < max ? n - at : max;
        struct abi_frame f = { .n_bytes = (uint32_t) k, .type = ABI_REQUEST,
                               .flags = at + k < n ? ABI_MORE : 0,
                               .slot = slot, .gen = gen };

        rc = ring_put(&w->tx, &f, (const char *) p + at, k, NULL, 0, 0);
        at += k;
    }
    channel_publish(w);
    return rc;
}


/* A chat with one user message; text must need no escape in JSON. */
static inline int
channel_chat(struct channel *w, uint16_t slot, uint64_t gen, const char *text,
            uint32_t max_tokens)
{
    char body[1024] = "";
    char msg[sizeof(struct abi_request) + sizeof(body)];
    int n = snprintf(body, sizeof(body), "{\"messages\":[{\"role\":\"user\","
                     "\"content\":\"%s\"}]}", text);
    struct abi_request r = channel_defaults(ABI_CHAT, (uint32_t) n, max_tokens);

    memset(msg, 0, sizeof(msg));
    memcpy(msg, &r, sizeof(r));
    memcpy(msg + sizeof(r), body, (size_t) n);
    return channel_request(w, slot, gen, msg, r.n_bytes);
}


/* The next event, waiting at most ms for it.  RING_OK, RING_AGAIN (none came),
 * RING_FAULT (the engine left, or broke the contract). */
static inline int
channel_event(struct channel *w, struct abi_frame *f, void *payload, int ms)
{
    uint64_t end = clock_us() + (uint64_t) ms * 1000;

    for ( ;; ) {
        int rc = ring_get(&w->rx, f, payload);

        if (rc != RING_AGAIN) {
            return rc;
        }
        ring_release(&w->rx);
        rc = ring_sleep(&w->rx);
        if (rc == RING_AGAIN) {
            continue;
        }
        if (rc == RING_FAULT || clock_us() >= end) {
            return rc == RING_FAULT ? rc : RING_AGAIN;
        }

        struct pollfd p[2] = { { .fd = w->bell, .events = POLLIN },
                               { .fd = w->sock, .events = POLLIN } };

        poll(p, 2, (int) ((end - clock_us()) / 1000 + 1));
        if (p[1].revents) {
            return ring_get(&w->rx, f, payload) == RING_OK ? RING_OK
                                                           : RING_FAULT;
        }
        if (p[0].revents) {
            ring_bell_drain(w->bell);
        }
    }
}

#endif /* TOOLS_CHANNEL_H */
