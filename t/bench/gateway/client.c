/*
 * client.c - reads many streams of stamped events, and says how late they were.
 *
 *     client PORT PATH STREAMS SECONDS SLEEP_US BODY [PID...]
 *
 * opens STREAMS connections to 127.0.0.1:PORT, each with one POST of BODY, says
 * "open" when each has had its first event, and waits for a line on its input.
 * Then it looks for SECONDS, says what it saw in one line of JSON, and goes on
 * reading until its input ends.
 *
 * An event is known by its text, "tDIGITS ": the time (us, monotonic) at which
 * it came to be.  Its way ends twice: when its bytes were in the socket, which
 * the kernel stamps, and when this process has read them.  For each PID the CPU
 * time of the same while is told, the kernel's work for it included.
 *
 * With SLEEP_US it looks at its sockets that often, and else is woken by each
 * event: by whom it is sent, who pays for it, and may then have to wait for it.
 * A client on another machine does neither.
 *
 * The server under test is not known here.
 */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/net_tstamp.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base.h"

#define STREAMS_MAX  20000
#define SAMPLES_MAX  (1u << 22)     /* of each kind; later ones are not kept */
#define READ_BYTES   65536
#define OPENING_MAX  128            /* that have not had an event: a backlog */
#define PIDS_MAX     8

#define MARK         "\"t0"         /* no clock has run for 30 years */
#define STAMP_DIGITS 16
#define EVENT_BYTES  (2 + STAMP_DIGITS)     /* from its quote to the last */

struct stream {
    int         fd;
    uint32_t    n_events;           /* while looking */
    uint64_t    last_us;            /* 0: no event yet */
    uint8_t     n_kept;             /* bytes of a stamp that is not whole */
    char        kept[EVENT_BYTES];
};

struct samples {
    uint32_t   *us;
    uint32_t    n;
};

struct client {
    int                 ep;
    struct sockaddr_in  addr;
    struct buf          request;
    struct stream      *streams;
    uint32_t            n_streams;
    uint32_t            n_opened;   /* connected */
    uint32_t            n_begun;    /* have had an event */
    uint32_t            n_ended;    /* too early */
    int                 looking;
    int                 input;      /* 1: a line came, -1: it ended */
    int                 more;       /* events than one call could tell */
    unsigned            sleep_us;   /* 0: is woken */
    int64_t             real_us;    /* real time less monotonic time */
    uint64_t            n_events;
    struct samples      socket;
    struct samples      read;
    struct samples      gap;
};

static const uint64_t INPUT = UINT64_MAX;


static int
die(const char *what)
{
    fprintf(stderr, "client: %s: %s\n", what, strerror(errno));
    exit(1);
}


static void
sample_add(struct samples *s, uint64_t us)
{
    if (s->n < SAMPLES_MAX) {
        s->us[s->n++] = us > INT32_MAX ? 0 : (uint32_t) us;
    }
}


static int
u32_compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *) a, y = *(const uint32_t *) b;

    return x < y ? -1 : x > y;
}


static void
sample_print(const char *name, struct samples *s)
{
    static const double shares[] = { .5, .99, 1 };
    static const char *const names[] = { "p50", "p99", "max" };

    qsort(s->us, s->n, sizeof(uint32_t), u32_compare);
    for (size_t i = 0; i < BASE_COUNT(shares); i++) {
        printf(",\"%s_%s\":%u", name, names[i],
               s->n ? s->us[(uint32_t) (shares[i] * (s->n - 1))] : 0);
    }
}


static uint64_t
timespec_us(const struct timespec *t)
{
    return (uint64_t) t->tv_sec * 1000000 + (uint64_t) t->tv_nsec / 1000;
}


static uint64_t
real_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);

    return timespec_us(&t);
}


/* CPU time (ns) of all threads of a process: the first word of schedstat. */
static uint64_t
cpu_ns(const char *pid)
{
    char path[512];
    uint64_t ns = 0;
    struct dirent *e;

    snprintf(path, sizeof(path), "/proc/%s/task", pid);

    DIR *dir = opendir(path);

    while (dir != NULL && (e = readdir(dir)) != NULL) {
        unsigned long long n;

        snprintf(path, sizeof(path), "/proc/%s/task/%s/schedstat", pid,
                 e->d_name);
        FILE *f = e->d_name[0] == '.' ? NULL : fopen(path, "re");
        if (f != NULL) {
            ns += fscanf(f, "%llu", &n) == 1 ? n : 0;
            fclose(f);
        }
    }
    if (dir == NULL) {
        die(path);
    }
    closedir(dir);

    return ns;
}


/* The next stream, while not too many have yet to begin. */
static void
stream_open(struct client *c)
{
    struct stream *s = &c->streams[c->n_opened];
    struct epoll_event ev = { .events = EPOLLIN, .data.u64 = c->n_opened };
    int one = 1;
    int stamps = SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE;

    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    /* Loopback: connect and the request's send do not block. */
    if (s->fd < 0
        || connect(s->fd, (struct sockaddr *) &c->addr, sizeof(c->addr)) != 0
        || setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) != 0
        || setsockopt(s->fd, SOL_SOCKET, SO_TIMESTAMPING, &stamps,
                      sizeof(stamps)) != 0
        || send(s->fd, c->request.p, c->request.n, MSG_NOSIGNAL)
           != (ssize_t) c->request.n
        || fcntl(s->fd, F_SETFL, O_NONBLOCK) != 0
        || epoll_ctl(c->ep, EPOLL_CTL_ADD, s->fd, &ev) != 0)
    {
        die("stream");
    }
    c->n_opened++;
}


/* An event of `born`, in the socket at `there` and read at `now`. */
static void
stream_event(struct client *c, struct stream *s, uint64_t born,
             uint64_t there, uint64_t now)
{
    if (s->last_us == 0) {
        c->n_begun++;
    }
    if (c->looking) {
        c->n_events++;
        s->n_events++;
        sample_add(&c->read, now - born);
        sample_add(&c->socket, there > born ? there - born : 0);
        sample_add(&c->gap, now - s->last_us);
    }
    s->last_us = now;
}


/* All events in n bytes at p; the beginning of another one is kept. */
static void
stream_bytes(struct client *c, struct stream *s, const char *p, size_t n,
             uint64_t there, uint64_t now)
{
    const char *end = p + n;

    s->n_kept = 0;

    for ( ;; ) {
        const char *q = memmem(p, (size_t) (end - p), MARK, sizeof(MARK) - 1);

        if (q == NULL || end - q < EVENT_BYTES) {
            q = q != NULL ? q : end - p < EVENT_BYTES ? p
                                                      : end - EVENT_BYTES + 1;
            s->n_kept = (uint8_t) (end - q);
            memcpy(s->kept, q, s->n_kept);
            return;
        }
        stream_event(c, s, strtoull(q + 2, NULL, 10), there, now);
        p = q + EVENT_BYTES;
    }
}


/* Real time (us) at which the last of a message's bytes came; 0: not told. */
static uint64_t
message_us(struct msghdr *m)
{
    for (struct cmsghdr *h = CMSG_FIRSTHDR(m); h; h = CMSG_NXTHDR(m, h)) {
        if (h->cmsg_level == SOL_SOCKET && h->cmsg_type == SO_TIMESTAMPING) {
            struct timespec t[3];
            memcpy(t, CMSG_DATA(h), sizeof(t));
            return timespec_us(&t[0]);
        }
    }

    return 0;
}


static void
stream_read(struct client *c, struct stream *s)
{
    static char bytes[EVENT_BYTES + READ_BYTES];
    char control[256];
    struct iovec v = { bytes + EVENT_BYTES, READ_BYTES };
    struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1,
                        .msg_control = control,
                        .msg_controllen = sizeof(control) };
    ssize_t n = recvmsg(s->fd, &m, 0);

    if (n <= 0) {
        if (n < 0 && (errno == EINTR || errno == EAGAIN)) {
            return;
        }
        c->n_ended++;
        close(s->fd);
        s->fd = -1;
        return;
    }

    uint64_t now = clock_us();
    uint64_t there = message_us(&m);
    char *p = bytes + EVENT_BYTES - s->n_kept;

    memcpy(p, s->kept, s->n_kept);
    stream_bytes(c, s, p, s->n_kept + (size_t) n,
                 there ? there - (uint64_t) c->real_us : now, now);
}


static int
client_wait(struct client *c, uint64_t until, struct epoll_event *events,
            int n_max)
{
    uint64_t left = (until - clock_us()) / 1000 + 1;

    if (c->sleep_us != 0) {
        left = 0;
        if (!c->more) {
            usleep(c->sleep_us);
        }
    }

    int n = epoll_wait(c->ep, events, n_max, left > 100 ? 100 : (int) left);

    c->more = n == n_max;

    return n;
}


/* Reads what is there until `until`, or until the input says something. */
static void
client_read(struct client *c, uint64_t until, int mind_input)
{
    struct epoll_event events[256];

    while (clock_us() < until) {
        int n = client_wait(c, until, events, (int) BASE_COUNT(events));

        for (int i = 0; i < n; i++) {
            if (events[i].data.u64 == INPUT) {
                char line[64];
                c->input = read(0, line, sizeof(line)) > 0 ? 1 : -1;
                if (mind_input) {
                    return;
                }
            } else {
                stream_read(c, &c->streams[events[i].data.u64]);
            }
        }
    }
}


static void
client_open(struct client *c)
{
    uint64_t end = clock_us() + 60000000;

    while (c->n_begun < c->n_streams) {
        while (c->n_opened < c->n_streams
               && c->n_opened - c->n_begun < OPENING_MAX)
        {
            stream_open(c);
        }
        client_read(c, clock_us() + 1000, 0);
        if (c->n_ended != 0 || clock_us() > end) {
            fprintf(stderr, "client: %u of %u streams began, %u ended\n",
                    c->n_begun, c->n_streams, c->n_ended);
            exit(1);
        }
    }
    printf("open\n");
    fflush(stdout);
}


static void
client_look(struct client *c, double seconds, char **pids, int n_pids)
{
    uint64_t cpu[PIDS_MAX], start = clock_us();

    for (int i = 0; i < n_pids; i++) {
        cpu[i] = cpu_ns(pids[i]);
    }
    c->real_us = (int64_t) (real_us() - clock_us());
    c->looking = 1;
    client_read(c, start + (uint64_t) (seconds * 1e6), 0);
    c->looking = 0;
    for (int i = 0; i < n_pids; i++) {
        cpu[i] = cpu_ns(pids[i]) - cpu[i];
    }

    uint64_t us = clock_us() - start;
    uint32_t least = UINT32_MAX;

    for (uint32_t i = 0; i < c->n_streams; i++) {
        struct stream *s = &c->streams[i];
        least = s->n_events < least ? s->n_events : least;
    }

    printf("{\"events\":%llu,\"seconds\":%.3f,\"least\":%u,\"ended\":%u",
           (unsigned long long) c->n_events, (double) us / 1e6, least,
           c->n_ended);
    sample_print("read", &c->read);
    sample_print("socket", &c->socket);
    sample_print("gap", &c->gap);
    printf(",\"cpu_us\":[");
    for (int i = 0; i < n_pids; i++) {
        printf("%s%.1f", i ? "," : "", (double) cpu[i] / 1e3);
    }
    printf("]}\n");
    fflush(stdout);
}


static void
client_init(struct client *c, const char *path, const char *body)
{
    struct epoll_event ev = { .events = EPOLLIN, .data.u64 = INPUT };

    c->ep = epoll_create1(EPOLL_CLOEXEC);
    c->streams = calloc(c->n_streams, sizeof(struct stream));
    c->socket.us = malloc(SAMPLES_MAX * sizeof(uint32_t));
    c->read.us = malloc(SAMPLES_MAX * sizeof(uint32_t));
    c->gap.us = malloc(SAMPLES_MAX * sizeof(uint32_t));

    if (c->ep < 0 || epoll_ctl(c->ep, EPOLL_CTL_ADD, 0, &ev) != 0
        || c->streams == NULL || c->socket.us == NULL || c->read.us == NULL
        || c->gap.us == NULL
        || buf_addf(&c->request, "POST %s HTTP/1.1\r\nHost: localhost\r\n"
                    "Content-Type: application/json\r\n"
                    "Content-Length: %zu\r\n\r\n%s", path, strlen(body), body)
           != 0)
    {
        die("start");
    }
}


int
main(int argc, char **argv)
{
    struct client c = { .addr.sin_family = AF_INET };
    unsigned long port = argc < 7 ? 0 : strtoul(argv[1], NULL, 10);
    unsigned long n = argc < 7 ? 0 : strtoul(argv[3], NULL, 10);
    double seconds = argc < 7 ? 0 : strtod(argv[4], NULL);

    if (port == 0 || port > 65535 || n == 0 || n > STREAMS_MAX || seconds <= 0
        || argc - 7 > PIDS_MAX)
    {
        fprintf(stderr, "usage: client PORT PATH STREAMS(1..%d) SECONDS "
                "SLEEP_US BODY [PID...]\n", STREAMS_MAX);
        return 2;
    }

    c.n_streams = (uint32_t) n;
    c.sleep_us = (unsigned) strtoul(argv[5], NULL, 10);
    c.addr.sin_port = htons((uint16_t) port);
    c.addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);

    client_init(&c, argv[2], argv[6]);
    client_open(&c);
    while (c.input == 0) {
        client_read(&c, UINT64_MAX, 1);
    }
    if (c.input > 0) {
        client_look(&c, seconds, argv + 7, argc - 7);
    }
    while (c.input >= 0) {
        client_read(&c, UINT64_MAX, 1);
    }

    return c.n_ended != 0;
}
