/*
 * load.c - a load client for server-sent events: N streams at a time, one
 * epoll loop, every event stamped as it leaves the socket.
 *
 *     load PORT PATH STREAMS REQUESTS BODY
 *
 * sends REQUESTS times the JSON text BODY by POST to 127.0.0.1:PORT/PATH over
 * HTTP/1.1, STREAMS of them at any time, one connection each, and prints
 *
 *     requests ok failed events seconds events_per_s
 *     first_us p50 p99   gap_us p50 p99
 *
 * A request is ok when it was answered 200 and its stream ended in [DONE].
 * Exit status 1 when any was not.  Must not know JSON: events are counted by
 * their "data: " at the start of a line.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base.h"

#define STREAMS_MAX 20000
#define SAMPLES_MAX (1u << 20)  /* of each kind; later ones are not kept */
#define READ_BYTES  65536

struct stream {
    int         fd;             /* -1: not in use */
    uint64_t    sent_us;
    uint64_t    last_us;        /* 0: no event yet */
    uint32_t    match;          /* bytes of DONE matched so far */
    uint8_t     line_n;         /* bytes of this line, up to 6 */
    uint8_t     is_data;        /* so far the line is a start of "data: " */
    uint8_t     ok_status;
    uint8_t     n_status;       /* bytes of the status line seen, up to 12 */
    uint8_t     done;
};

struct samples {
    uint32_t   *us;
    uint32_t    n;
};

struct load {
    int                 ep;
    struct sockaddr_in  addr;
    struct buf          request;
    struct stream      *streams;
    struct samples      first;
    struct samples      gap;
    uint64_t            n_events;
    uint32_t            n_left;     /* requests not yet sent */
    uint32_t            n_open;
    uint32_t            n_ok;
    uint32_t            n_failed;
};

static const char DONE[] = "data: [DONE]";
static const char DATA[] = "data: ";
static const char STATUS[] = "HTTP/1.1 200";


static void
sample_add(struct samples *s, uint64_t us)
{
    if (s->n < SAMPLES_MAX) {
        s->us[s->n++] = us > UINT32_MAX ? UINT32_MAX : (uint32_t) us;
    }
}


static int
u32_compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *) a, y = *(const uint32_t *) b;

    return x < y ? -1 : x > y;
}


static uint32_t
sample_at(struct samples *s, double share)
{
    return s->n == 0 ? 0 : s->us[(uint32_t) (share * (s->n - 1))];
}


static int
stream_open(struct load *l, struct stream *s)
{
    struct epoll_event ev = { .events = EPOLLIN, .data.ptr = s };
    int                one = 1;

    memset(s, 0, sizeof(*s));
    s->is_data = 1;
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (s->fd < 0) {
        return -1;
    }

    /* Loopback: connect and the request's send do not block. */
    if (connect(s->fd, (struct sockaddr *) &l->addr, sizeof(l->addr)) != 0
        || setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) != 0
        || send(s->fd, l->request.p, l->request.n, MSG_NOSIGNAL)
           != (ssize_t) l->request.n
        || fcntl(s->fd, F_SETFL, O_NONBLOCK) != 0
        || epoll_ctl(l->ep, EPOLL_CTL_ADD, s->fd, &ev) != 0)
    {
        close(s->fd);
        s->fd = -1;
        return -1;
    }

    s->sent_us = clock_us();

    return 0;
}


static void
stream_close(struct load *l, struct stream *s)
{
    close(s->fd);
    s->fd = -1;
    l->n_open--;

    if (s->done && s->ok_status) {
        l->n_ok++;
    } else {
        l->n_failed++;
    }
}


/* One more request on a free stream, while there are any to send. */
static void
load_next(struct load *l, struct stream *s)
{
    while (l->n_left != 0) {
        l->n_left--;

        if (stream_open(l, s) == 0) {
            l->n_open++;
            return;
        }

        l->n_failed++;
    }
}


static void
stream_event(struct load *l, struct stream *s, uint64_t now)
{
    l->n_events++;

    if (s->last_us == 0) {
        sample_add(&l->first, now - s->sent_us);
    } else {
        sample_add(&l->gap, now - s->last_us);
    }

    s->last_us = now;
}


static void
stream_bytes(struct load *l, struct stream *s, const char *p, size_t n,
             uint64_t now)
{
    for (size_t i = 0; i < n; i++) {
        char c = p[i];

        if (s->n_status < sizeof(STATUS) - 1) {
            s->ok_status = (s->n_status == 0 || s->ok_status)
                           && c == STATUS[s->n_status];
            s->n_status++;
        }

        if (c == '\n') {
            s->line_n = 0;
            s->is_data = 1;
            s->match = 0;
            continue;
        }

        if (s->is_data && s->line_n < sizeof(DATA) - 1) {
            s->is_data = c == DATA[s->line_n];
            s->line_n++;

            if (s->is_data && s->line_n == sizeof(DATA) - 1) {
                stream_event(l, s, now);
            }
        }

        if (s->match < sizeof(DONE) - 1) {
            s->match = c == DONE[s->match] ? s->match + 1 : UINT32_MAX;
            s->done |= s->match == sizeof(DONE) - 1;
        }
    }
}


static void
stream_read(struct load *l, struct stream *s)
{
    static char bytes[READ_BYTES];

    for ( ;; ) {
        ssize_t n = recv(s->fd, bytes, sizeof(bytes), 0);

        if (n < 0 && errno == EINTR) {
            continue;
        }

        if (n < 0 && errno == EAGAIN) {
            return;
        }

        if (n > 0) {
            stream_bytes(l, s, bytes, (size_t) n, clock_us());

            if (!s->done) {
                continue;
            }
        }

        stream_close(l, s);
        load_next(l, s);
        return;
    }
}


static int
load_run(struct load *l, uint32_t n_streams)
{
    struct epoll_event events[256];

    for (uint32_t i = 0; i < n_streams; i++) {
        l->streams[i].fd = -1;
        load_next(l, &l->streams[i]);
    }

    while (l->n_open != 0) {
        int n = epoll_wait(l->ep, events, (int) BASE_COUNT(events), 60000);

        if (n == 0) {
            fprintf(stderr, "load: nothing came for 60 s, %u streams open\n",
                    l->n_open);
            return -1;
        }

        for (int i = 0; i < n; i++) {
            stream_read(l, events[i].data.ptr);
        }
    }

    return 0;
}


static void
load_print(struct load *l, uint64_t us)
{
    qsort(l->first.us, l->first.n, sizeof(uint32_t), u32_compare);
    qsort(l->gap.us, l->gap.n, sizeof(uint32_t), u32_compare);

    printf("requests %u %u events %llu seconds %.3f events_per_s %.0f\n",
           l->n_ok, l->n_failed, (unsigned long long) l->n_events,
           (double) us / 1e6, (double) l->n_events * 1e6 / (double) us);
    printf("first_us %u %u gap_us %u %u\n",
           sample_at(&l->first, .5), sample_at(&l->first, .99),
           sample_at(&l->gap, .5), sample_at(&l->gap, .99));
}


int
main(int argc, char **argv)
{
    if (argc != 6) {
        fprintf(stderr, "usage: load PORT PATH STREAMS REQUESTS BODY\n");
        return 2;
    }

    struct load l = { .ep = epoll_create1(EPOLL_CLOEXEC) };
    unsigned long port = strtoul(argv[1], NULL, 10);
    unsigned long n_streams = strtoul(argv[3], NULL, 10);
    unsigned long n_requests = strtoul(argv[4], NULL, 10);

    if (port == 0 || port > 65535 || n_streams == 0 || n_streams > STREAMS_MAX
        || n_requests < n_streams || n_requests > UINT32_MAX)
    {
        fprintf(stderr, "load: expected PORT 1..65535, STREAMS 1..%d and at "
                "least as many REQUESTS\n", STREAMS_MAX);
        return 2;
    }

    l.addr.sin_family = AF_INET;
    l.addr.sin_port = htons((uint16_t) port);
    l.addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    l.n_left = (uint32_t) n_requests;
    l.streams = calloc(n_streams, sizeof(struct stream));
    l.first.us = malloc(SAMPLES_MAX * sizeof(uint32_t));
    l.gap.us = malloc(SAMPLES_MAX * sizeof(uint32_t));

    if (l.ep < 0 || l.streams == NULL || l.first.us == NULL
        || l.gap.us == NULL
        || buf_addf(&l.request, "POST %s HTTP/1.1\r\nHost: localhost\r\n"
                    "Content-Type: application/json\r\nConnection: close\r\n"
                    "Content-Length: %zu\r\n\r\n%s", argv[2], strlen(argv[5]),
                    argv[5]) != 0)
    {
        fprintf(stderr, "load: no memory\n");
        return 2;
    }

    uint64_t start = clock_us();
    int      rc = load_run(&l, (uint32_t) n_streams);

    load_print(&l, clock_us() - start);

    return rc != 0 || l.n_failed != 0;
}
