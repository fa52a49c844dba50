/*
 * sse_server.c - the least that an HTTP server has to do to stream events: what
 * NGINX is put before in t/bench/gateway.pl.
 *
 *     sse_server PORT HEAD TAIL
 *
 * Each POST on 127.0.0.1:PORT is answered with a stream of events that are
 * HEAD, "tDIGITS " and TAIL, DIGITS being the time (us) of the step that made
 * it.  The request's body says how fast, in mock_engine's words: delay_ms,
 * step_ms, spread, tokens.  One process, one write an event, nothing allocated
 * for one; clocks are those of mock_engine: both sides are paced alike.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base.h"

#define FDS_MAX      65536
#define NEVER        UINT64_MAX
#define REQUEST_MAX  4096
#define EVENT_MAX    1024

struct stream {
    uint64_t    due_us;
    uint64_t    delay_us, step_us;
    uint32_t    spread, n_events;
    uint32_t    n_left;             /* events */
    uint32_t    i_open;             /* in open[] */
    uint16_t    n_request;          /* bytes so far */
    uint16_t    n_unsent;           /* of the last event, which did not fit */
    uint8_t     is_open, blocked;
    char       *bytes;              /* the request, then what is unsent */
};

static struct stream streams[FDS_MAX];
static int open_fds[FDS_MAX];
static uint32_t n_open;
static int poller, listener;
static const char *head, *tail;


static void
die(const char *what)
{
    fprintf(stderr, "sse_server: %s: %s\n", what, strerror(errno));
    exit(1);
}


static void
watch(int fd, uint32_t events)
{
    struct epoll_event e = { .events = events, .data.fd = fd };

    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e) == -1) {
        die("epoll_ctl");
    }
}


static void
stream_close(int fd)
{
    struct stream *s = &streams[fd];

    if (s->is_open) {
        int last = open_fds[--n_open];
        open_fds[s->i_open] = last;
        streams[last].i_open = s->i_open;
    }
    free(s->bytes);
    memset(s, 0, sizeof(*s));
    close(fd);
}


static uint64_t
word(const char *text, const char *name)
{
    const char *p = strstr(text, name);

    return p ? strtoull(p + strlen(name), NULL, 10) : 0;
}


/* The whole request is there: the answer's header goes, events are due. */
static void
stream_start(int fd, const char *body)
{
    static const char header[] =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n";
    struct stream *s = &streams[fd];

    s->delay_us = word(body, "delay_ms=") * 1000;
    s->step_us = word(body, "step_ms=") * 1000;
    s->spread = (uint32_t) word(body, "spread=");
    s->n_left = (uint32_t) word(body, "tokens=");
    s->due_us = clock_us();
    s->is_open = 1;
    s->i_open = n_open;
    open_fds[n_open++] = fd;
    if (send(fd, header, sizeof(header) - 1, MSG_NOSIGNAL) < 0) {
        stream_close(fd);
    }
}


static void
stream_read(int fd)
{
    struct stream *s = &streams[fd];
    char rest[256];
    char *p = s->is_open ? rest : s->bytes + s->n_request;
    size_t room = s->is_open ? sizeof(rest)
                             : (size_t) REQUEST_MAX - 1 - s->n_request;
    ssize_t n = recv(fd, p, room, 0);

    if (n == 0 || (n < 0 && errno != EAGAIN)) {
        stream_close(fd);
        return;
    }
    if (n < 0 || s->is_open) {
        return;
    }
    s->n_request = (uint16_t) (s->n_request + n);
    s->bytes[s->n_request] = '\0';

    char *body = strstr(s->bytes, "\r\n\r\n");
    char *length = strcasestr(s->bytes, "content-length:");

    if (body != NULL && length != NULL) {
        body += 4;
        if (s->bytes + s->n_request - body >= strtol(length + 15, NULL, 10)) {
            stream_start(fd, body);
        }
    }
}


static void
stream_send(int fd, const char *p, size_t n)
{
    struct stream *s = &streams[fd];
    ssize_t sent = send(fd, p, n, MSG_NOSIGNAL | MSG_DONTWAIT);

    if (sent < 0 && errno != EAGAIN) {
        stream_close(fd);
        return;
    }

    size_t n_sent = sent < 0 ? 0 : (size_t) sent;

    if (n_sent < n) {
        memmove(s->bytes, p + n_sent, n - n_sent);
        s->blocked = 1;
    }
    s->n_unsent = (uint16_t) (n - n_sent);
}


/* As mock_engine's job_due(). */
static uint64_t
stream_due(struct stream *s, uint64_t now)
{
    static uint32_t phase;

    if (s->spread) {
        if (s->n_events++ == 0) {
            phase += 2654435769u;
            return s->due_us + (s->delay_us * phase >> 32);
        }
        return s->due_us + s->delay_us > now ? s->due_us + s->delay_us : now;
    }

    return (s->step_us ? now / s->step_us * s->step_us : now) + s->delay_us;
}


static void
stream_event(int fd, uint64_t now)
{
    struct stream *s = &streams[fd];
    char line[EVENT_MAX], event[EVENT_MAX + 16];
    int n = snprintf(line, sizeof(line), "%st%016llu %s", head,
                     (unsigned long long) now, tail);

    n = snprintf(event, sizeof(event), "%x\r\n%s\r\n", (unsigned) n, line);
    s->due_us = --s->n_left == 0 ? NEVER : stream_due(s, now);
    stream_send(fd, event, (size_t) n);
}


/* One event of each stream that has one due; when the next one is. */
static uint64_t
pass(void)
{
    uint64_t now = clock_us(), due = NEVER;

    for (uint32_t i = n_open; i-- > 0; ) {
        int fd = open_fds[i];
        struct stream *s = &streams[fd];

        if (!s->blocked && s->due_us <= now) {
            stream_event(fd, now);
        }
        if (s->is_open && !s->blocked && s->due_us < due) {
            due = s->due_us;
        }
    }

    return due;
}


static void
stream_accept(void)
{
    int one = 1;
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (fd < 0) {
        return;
    }
    if (fd >= FDS_MAX
        || (streams[fd].bytes = malloc(REQUEST_MAX)) == NULL
        || setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) != 0)
    {
        die("accept");
    }
    watch(fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET);
}


static void
handle(const struct epoll_event *e)
{
    int fd = e->data.fd;
    struct stream *s = &streams[fd];

    if (fd == listener) {
        stream_accept();
        return;
    }
    if (e->events & (EPOLLIN | EPOLLRDHUP | EPOLLERR | EPOLLHUP)) {
        stream_read(fd);
    }
    if (s->is_open && s->blocked && (e->events & EPOLLOUT)) {
        s->blocked = 0;
        stream_send(fd, s->bytes, s->n_unsent);
    }
}


static int
listen_at(unsigned long port)
{
    struct sockaddr_in a = { .sin_family = AF_INET,
                             .sin_port = htons((uint16_t) port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    int one = 1;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd == -1
        || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) != 0
        || bind(fd, (struct sockaddr *) &a, sizeof(a)) != 0
        || listen(fd, 4096) != 0)
    {
        die("listen");
    }

    return fd;
}


int
main(int argc, char **argv)
{
    unsigned long port = argc == 4 ? strtoul(argv[1], NULL, 10) : 0;

    if (port == 0 || port > 65535
        || strlen(argv[2]) + strlen(argv[3]) > EVENT_MAX - 32)
    {
        fprintf(stderr, "usage: sse_server PORT HEAD TAIL\n");
        return 2;
    }

    head = argv[2];
    tail = argv[3];
    poller = epoll_create1(EPOLL_CLOEXEC);
    listener = listen_at(port);
    watch(listener, EPOLLIN);

    for ( ;; ) {
        struct epoll_event events[256];
        uint64_t due = pass(), now = clock_us();
        int n = epoll_wait(poller, events, (int) BASE_COUNT(events),
                           due == NEVER ? -1 : due <= now ? 0
                           : (int) ((due - now + 999) / 1000));

        for (int i = 0; i < n; i++) {
            handle(&events[i]);
        }
    }
}
