/*
 * load.c - a load client for server-sent events: many streams, one epoll loop,
 * every event stamped as it leaves the socket.
 *
 *     load [OPTION ..] PORT PATH STREAMS REQUESTS BODY
 *
 * sends REQUESTS times the JSON text BODY by POST to 127.0.0.1:PORT/PATH over
 * HTTP/1.1, one connection each; with --keep one that was refused leaves its
 * connection to the next.
 *
 *     (none)       closed loop: STREAMS requests at any time
 *     --rate R     open loop: R requests a second arrive, as a Poisson process,
 *                  whatever became of those before; STREAMS at most are open,
 *                  and who finds no place counts as dropped
 *     --seconds S  nothing is sent after S seconds, and open requests count
 *                  as they are then
 *     --groups N   requests of one number modulo N share their {{shared M}}
 *     --turns N    a conversation is N requests of one stream, each with what
 *                  was said before in the place of {{history}}
 *     --json       prints all of it as one JSON object; --table: as a table
 *
 * In BODY {{ids M}} becomes M token ids that no other request has, {{shared M}}
 * M ids of its group, {{number}} the request's number.  Otherwise it prints
 *
 *     requests OK FAILED events N seconds S events_per_s N
 *     first_us P50 P99 gap_us P50 P99
 *
 * A request is ok when it was answered 200 and its stream ended in [DONE],
 * refused when it was answered 429 or 503 with Retry-After.  Exit status 1 when
 * any was neither.  Must not know JSON: events are counted by their "data: " at
 * the start of a line, tokens by "completion_tokens" in them, and the text that
 * a history quotes is quoted already.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base.h"

#define STREAMS_MAX 20000
#define SAMPLES_MAX (1u << 20)  /* of each kind; later ones are not kept */
#define READ_BYTES  65536
#define FIRST_ID    300         /* ids of prompts: FIRST_ID .. + N_IDS */
#define N_IDS       200

/* A word in the answer, matched byte by byte. */
enum {
    WORD_DONE, WORD_TOKENS, WORD_RETRY, WORD_TEXT, WORD_LENGTH, WORD_CLOSE,
    WORD_BODY, N_WORDS
};

static const char *const words[N_WORDS] = {
    "data: [DONE]", "\"completion_tokens\":", "\nRetry-After: ",
    "\"content\":\"", "\nContent-Length: ", "\nConnection: close",
    "\r\n\r\n"
};

struct stream {
    int         fd;             /* -1: none */
    uint8_t     idle;           /* it waits for the next request */
    uint32_t    number;         /* of the request */
    uint32_t    i_turn;
    uint64_t    sent_us;
    uint64_t    first_us;       /* byte of an answer; 0: none yet */
    uint64_t    last_us;        /* event; 0: none yet */
    uint32_t    match[N_WORDS]; /* bytes matched so far */
    uint32_t    n_tok;          /* as the usage says */
    uint32_t    n_body;         /* bytes to come, by Content-Length ... */
    uint8_t     in_length;      /* behind WORD_LENGTH */
    uint8_t     in_body;        /* ... and behind WORD_BODY */
    uint8_t     closes;         /* the server will, after this answer */
    uint32_t    n_events;
    int         status;
    uint8_t     n_status;       /* bytes of the status line seen */
    uint8_t     line_n;         /* bytes of this line, up to 6 */
    uint8_t     is_data;        /* so far the line is a start of "data: " */
    uint8_t     in_number;      /* behind WORD_TOKENS */
    uint8_t     in_text;        /* behind WORD_TEXT; 2: behind a backslash */
    uint8_t     retry_after;
    uint8_t     done;
    struct buf  head;           /* the request, until all of it is sent */
    size_t      n_head_sent;
    struct buf  history;        /* messages of the conversation */
    struct buf  said;           /* by the model in this turn, as quoted */
};

struct samples {
    const char *name;
    uint32_t   *us;
    uint32_t    n;
};

enum { FIRST, GAP, REFUSED, N_SAMPLES };

struct load {
    int                 ep;
    struct sockaddr_in  addr;
    const char         *path;
    const char         *body;
    double              rate;
    double              seconds;
    uint32_t            n_groups;
    uint32_t            n_turns;
    int                 keep;       /* connections that were refused */
    struct stream      *streams;
    uint32_t            n_streams;
    uint64_t            start_us;
    uint64_t            next_us;    /* arrival; open loop */
    uint64_t            random;
    struct samples      samples[N_SAMPLES];
    uint64_t            n_events;
    uint64_t            n_tok;      /* of requests that were ok */
    uint32_t            n_sent;
    uint32_t            n_left;     /* requests not yet sent */
    uint32_t            n_open;
    uint32_t            n_ok;
    uint32_t            n_refused;
    uint32_t            n_failed;
    uint32_t            n_dropped;
    uint32_t            n_cut;      /* open when the time was over */
};


static uint32_t
rng(uint64_t *state)
{
    *state += 0x9e3779b97f4a7c15ULL;

    uint64_t z = (*state ^ *state >> 30) * 0xbf58476d1ce4e5b9ULL;

    z = (z ^ z >> 27) * 0x94d049bb133111ebULL;

    return (uint32_t) (z >> 32);
}


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
sample_at(const struct samples *s, double share)
{
    return s->n == 0 ? 0 : s->us[(uint32_t) (share * (s->n - 1))];
}


/* -- requests -------------------------------------------------------------- */

static int
add_ids(struct buf *b, uint64_t seed, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        if (buf_addf(b, "%s%u", i == 0 ? "" : ",",
                     FIRST_ID + rng(&seed) % N_IDS) != 0)
        {
            return -1;
        }
    }

    return 0;
}


/* One {{word M}}; returns what is behind it, NULL: no such word. */
static const char *
add_word(const struct load *l, const struct stream *s, struct buf *b,
         const char *p)
{
    uint32_t group = s->number % l->n_groups;
    unsigned n;
    int      used = 0;

    if (sscanf(p, "{{ids %u}}%n", &n, &used) == 1 && used > 0) {
        return add_ids(b, (uint64_t) s->number << 20 | 1u << 19, n) != 0
               ? NULL : p + used;
    }

    if (sscanf(p, "{{shared %u}}%n", &n, &used) == 1 && used > 0) {
        return add_ids(b, group, n) != 0 ? NULL : p + used;
    }

    if (strncmp(p, "{{number}}", 10) == 0) {
        return buf_addf(b, "%u", s->number) != 0 ? NULL : p + 10;
    }

    if (strncmp(p, "{{history}}", 11) == 0) {
        return buf_add(b, s->history.p, s->history.n) != 0 ? NULL : p + 11;
    }

    return NULL;
}


static int
make_body(const struct load *l, const struct stream *s, struct buf *b)
{
    for (const char *p = l->body; *p != '\0';) {
        const char *word = strstr(p, "{{");
        size_t      n = word == NULL ? strlen(p) : (size_t) (word - p);

        if (buf_add(b, p, n) != 0) {
            return -1;
        }

        p = word == NULL ? p + n : add_word(l, s, b, word);

        if (p == NULL) {
            fprintf(stderr, "load: no memory, or not a word: %.20s\n", word);
            return -1;
        }
    }

    return 0;
}


/* What is left of the request.  0: it is sent; 1: the connection does not take
 * it yet; -1: and never will. */
static int
stream_write(struct stream *s)
{
    ssize_t n = send(s->fd, s->head.p + s->n_head_sent,
                     s->head.n - s->n_head_sent, MSG_NOSIGNAL);

    if (n < 0) {
        return errno == EAGAIN || errno == EINTR ? 1 : -1;
    }

    s->n_head_sent += (size_t) n;

    if (s->n_head_sent < s->head.n) {
        return 1;
    }

    buf_free(&s->head);

    return 0;
}


/* Sends and says what is waited for: op is how epoll gets to know that. */
static int
stream_begin(struct load *l, struct stream *s, int op)
{
    int                rc = stream_write(s);
    struct epoll_event ev = {
        .events = EPOLLIN | (rc > 0 ? EPOLLOUT : 0), .data.ptr = s
    };

    return rc < 0 ? -1 : epoll_ctl(l->ep, op, s->fd, &ev);
}


/* A connection of its own.  It does not wait for it: where the server's queue
 * is full that takes a second or three, and what arrives meanwhile would come
 * at once behind it, and fill the queue again. */
static int
stream_connect(struct load *l, struct stream *s)
{
    int one = 1;

    s->n_head_sent = 0;
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (s->fd < 0) {
        return -1;
    }

    if (setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) != 0
        || (connect(s->fd, (struct sockaddr *) &l->addr, sizeof(l->addr)) != 0
            && errno != EINPROGRESS)
        || stream_begin(l, s, EPOLL_CTL_ADD) != 0)
    {
        close(s->fd);
        s->fd = -1;
        return -1;
    }

    return 0;
}


/* Over the connection that is left, if it still is one, or over a new one. */
static int
stream_send(struct load *l, struct stream *s, const struct buf *body)
{
    int rc = buf_addf(&s->head, "POST %s HTTP/1.1\r\nHost: localhost\r\n"
                      "Content-Type: application/json\r\n"
                      "%sContent-Length: %zu\r\n\r\n", l->path,
                      l->keep ? "" : "Connection: close\r\n", body->n);

    rc = rc != 0 ? rc : buf_add(&s->head, body->p, body->n);

    if (s->fd >= 0 && (rc != 0 || stream_begin(l, s, EPOLL_CTL_MOD) != 0)) {
        close(s->fd);
        s->fd = -1;
    }

    if (rc == 0 && s->fd < 0) {
        rc = stream_connect(l, s);
    }

    if (rc != 0) {
        buf_free(&s->head);
    }

    return rc;
}


/* The next request on a free stream.  It counts from here. */
static void
stream_open(struct load *l, struct stream *s)
{
    struct buf body = { NULL, 0, 0, 0 };
    struct buf history = s->history, said = s->said;
    uint32_t   i_turn = s->i_turn;
    int        fd = s->fd;

    memset(s, 0, sizeof(*s));
    s->history = history;
    s->said = said;
    s->i_turn = i_turn;
    s->fd = fd;
    s->is_data = 1;
    s->number = l->n_sent++;
    s->sent_us = clock_us();
    l->n_left--;
    buf_reset(&s->said);

    if (make_body(l, s, &body) == 0 && stream_send(l, s, &body) == 0) {
        l->n_open++;
    } else {
        l->n_failed++;
    }

    buf_free(&body);
}


/* What was said goes into the history; or the conversation is over. */
static void
turn(struct load *l, struct stream *s)
{
    if (++s->i_turn >= l->n_turns) {
        s->i_turn = 0;
        buf_reset(&s->history);
        return;
    }

    if (buf_addf(&s->history, "{\"role\":\"user\",\"content\":\"turn %u\"},"
                 "{\"role\":\"assistant\",\"content\":\"", s->i_turn) != 0
        || buf_add(&s->history, s->said.p, s->said.n) != 0
        || buf_addf(&s->history, "\"},") != 0)
    {
        fprintf(stderr, "load: no memory\n");
        exit(2);
    }
}


static int
time_over(const struct load *l)
{
    return l->seconds > 0
           && (double) (clock_us() - l->start_us) > l->seconds * 1e6;
}


static int
is_refused(const struct stream *s)
{
    return (s->status == 429 || s->status == 503) && s->retry_after;
}


/* It was refused, and all of that has come. */
static int
may_keep(const struct load *l, const struct stream *s)
{
    return l->keep && is_refused(s) && !s->closes && s->in_body
           && s->n_body == 0;
}


static void
stream_close(struct load *l, struct stream *s)
{
    if (may_keep(l, s)) {
        s->idle = 1;
    } else {
        close(s->fd);
        s->fd = -1;
    }

    buf_free(&s->head);
    l->n_open--;

    if (s->done && s->status == 200) {
        l->n_ok++;
        l->n_tok += s->n_tok;
        turn(l, s);
    } else if (is_refused(s)) {
        l->n_refused++;
        sample_add(&l->samples[REFUSED], s->first_us - s->sent_us);
    } else {
        l->n_failed++;
    }
}


/* -- answers --------------------------------------------------------------- */

static void
stream_event(struct load *l, struct stream *s, uint64_t now)
{
    l->n_events++;
    s->n_events++;

    if (s->last_us == 0) {
        sample_add(&l->samples[FIRST], now - s->sent_us);
    } else {
        sample_add(&l->samples[GAP], now - s->last_us);
    }

    s->last_us = now;
}


/* One byte of one word; 1: it is complete. */
static int
word_byte(struct stream *s, int i, char c)
{
    const char *word = words[i];

    s->match[i] = c == word[s->match[i]] ? s->match[i] + 1 : c == word[0];

    if (word[s->match[i]] != '\0') {
        return 0;
    }

    s->match[i] = 0;

    return 1;
}


/* Text of the answer, up to the quote that ends it. */
static void
text_byte(struct stream *s, char c)
{
    if (s->in_text == 1 && c == '"') {
        s->in_text = 0;
        return;
    }

    s->in_text = s->in_text == 1 && c == '\\' ? 2 : 1;

    if (buf_addc(&s->said, c) != 0) {
        fprintf(stderr, "load: no memory\n");
        exit(2);
    }
}


static void
stream_byte(struct load *l, struct stream *s, char c, uint64_t now)
{
    /* HTTP/1.1 NNN */
    if (s->n_status < 12) {
        s->status = s->n_status < 9 ? 0 : s->status * 10 + (c - '0');
        s->n_status++;
    }

    if (s->in_text) {
        text_byte(s, c);
    } else if (l->n_turns > 1 && word_byte(s, WORD_TEXT, c)) {
        s->in_text = 1;
    }

    if (s->in_number && c >= '0' && c <= '9') {
        s->n_tok = s->n_tok * 10 + (uint32_t) (c - '0');
    } else {
        s->in_number = 0;
    }

    if (s->in_length && c >= '0' && c <= '9') {
        s->n_body = s->n_body * 10 + (uint32_t) (c - '0');
    } else {
        s->in_length = 0;
    }

    s->n_body -= s->in_body && s->n_body > 0;
    s->in_length |= !s->in_body && word_byte(s, WORD_LENGTH, c);
    s->closes |= (uint8_t) word_byte(s, WORD_CLOSE, c);
    s->in_body |= !s->in_body && word_byte(s, WORD_BODY, c);

    if (word_byte(s, WORD_TOKENS, c)) {
        s->in_number = 1;
        s->n_tok = 0;
    }

    s->done |= (uint8_t) word_byte(s, WORD_DONE, c);
    s->retry_after |= (uint8_t) word_byte(s, WORD_RETRY, c);

    if (c == '\n') {
        s->line_n = 0;
        s->is_data = 1;
    } else if (s->is_data && s->line_n < 6) {
        s->is_data = c == "data: "[s->line_n++];

        if (s->is_data && s->line_n == 6) {
            stream_event(l, s, now);
        }
    }
}


/* 1: the stream is over, and closed. */
static int
stream_read(struct load *l, struct stream *s)
{
    static char bytes[READ_BYTES];

    if (s->idle) {              /* the server does not wait any longer */
        close(s->fd);
        s->fd = -1;
        s->idle = 0;
        return 0;
    }

    if (s->head.n > 0) {
        if (stream_begin(l, s, EPOLL_CTL_MOD) != 0) {
            stream_close(l, s);
            return 1;
        }

        return 0;
    }

    for ( ;; ) {
        ssize_t n = recv(s->fd, bytes, sizeof(bytes), 0);

        if (n < 0 && errno == EINTR) {
            continue;
        }

        if (n < 0 && errno == EAGAIN) {
            return 0;
        }

        uint64_t now = clock_us();

        s->first_us = s->first_us == 0 ? now : s->first_us;

        for (ssize_t i = 0; i < n; i++) {
            stream_byte(l, s, bytes[i], now);
        }

        if (n <= 0 || s->done || may_keep(l, s)) {
            stream_close(l, s);
            return 1;
        }
    }
}


/* -- the loop -------------------------------------------------------------- */

static struct stream *
free_stream(struct load *l)
{
    for (uint32_t i = 0; i < l->n_streams; i++) {
        if (l->streams[i].fd < 0 || l->streams[i].idle) {
            return &l->streams[i];
        }
    }

    return NULL;
}


/* Open loop: sends what has arrived; milliseconds until the next does. */
static int
arrive(struct load *l)
{
    uint64_t now = clock_us();

    while (l->n_left > 0 && !time_over(l) && l->next_us <= now) {
        struct stream *s = free_stream(l);
        double         u = ((double) rng(&l->random) + 1) / 4294967297.0;

        l->next_us += (uint64_t) (-log(u) / l->rate * 1e6);

        if (s != NULL) {
            stream_open(l, s);
        } else {
            l->n_dropped++;
            l->n_left--;
        }
    }

    now = clock_us();

    return l->n_left == 0 || time_over(l) ? 1000
           : l->next_us <= now ? 0 : (int) ((l->next_us - now) / 1000) + 1;
}


/* Closed loop: one more on this stream, as long as that can be sent. */
static void
refill(struct load *l, struct stream *s)
{
    while (l->rate <= 0 && (s->fd < 0 || s->idle) && l->n_left > 0
           && !time_over(l))
    {
        stream_open(l, s);
    }
}


static int
load_run(struct load *l)
{
    struct epoll_event events[256];
    uint64_t           heard = clock_us();

    for (uint32_t i = 0; i < l->n_streams; i++) {
        l->streams[i].fd = -1;
        refill(l, &l->streams[i]);
    }

    while (!time_over(l) && (l->n_open != 0 || (l->rate > 0 && l->n_left > 0)))
    {
        int ms = l->rate > 0 ? arrive(l) : 1000;
        int n = epoll_wait(l->ep, events, (int) BASE_COUNT(events), ms);

        if (n > 0) {
            heard = clock_us();
        } else if (l->n_open > 0 && clock_us() - heard > 60000000) {
            fprintf(stderr, "load: nothing came for 60 s, %u streams open\n",
                    l->n_open);
            return -1;
        }

        for (int i = 0; i < n; i++) {
            if (stream_read(l, events[i].data.ptr)) {
                refill(l, events[i].data.ptr);
            }
        }
    }

    /* Time is over: what is open has had its tokens so far. */
    for (uint32_t i = 0; i < l->n_streams; i++) {
        struct stream *s = &l->streams[i];

        if (s->fd >= 0 && !s->idle) {
            l->n_cut++;
            l->n_tok += s->n_events;
        }

        if (s->fd >= 0) {
            close(s->fd);
        }

        buf_free(&s->head);
        buf_free(&s->history);
        buf_free(&s->said);
    }

    return 0;
}


/* -- the report ------------------------------------------------------------ */

static void
print_lines(const struct load *l, double seconds)
{
    const struct samples *first = &l->samples[FIRST], *gap = &l->samples[GAP];

    printf("requests %u %u events %llu seconds %.3f events_per_s %.0f\n",
           l->n_ok, l->n_failed, (unsigned long long) l->n_events, seconds,
           (double) l->n_events / seconds);
    printf("first_us %u %u gap_us %u %u\n",
           sample_at(first, .5), sample_at(first, .99),
           sample_at(gap, .5), sample_at(gap, .99));
}


static void
print_table(const struct load *l, double seconds)
{
    printf("%u ok, %u refused, %u failed, %u dropped, %u cut in %.2f s\n"
           "%llu events, goodput %.1f tokens/s\n"
           "%-12s %9s %9s %9s %9s %9s ms\n", l->n_ok, l->n_refused,
           l->n_failed, l->n_dropped, l->n_cut, seconds,
           (unsigned long long) l->n_events, (double) l->n_tok / seconds, "",
           "n", "p50", "p90", "p99", "max");

    for (int i = 0; i < N_SAMPLES; i++) {
        const struct samples *s = &l->samples[i];

        printf("%-12s %9u %9.2f %9.2f %9.2f %9.2f\n", s->name, s->n,
               sample_at(s, .5) / 1e3, sample_at(s, .9) / 1e3,
               sample_at(s, .99) / 1e3, sample_at(s, 1) / 1e3);
    }
}


/* CPU time of this process, in the kernel or not. */
static double
cpu_seconds(void)
{
    struct rusage u;

    getrusage(RUSAGE_SELF, &u);

    return (double) (u.ru_utime.tv_sec + u.ru_stime.tv_sec)
           + (double) (u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}


static void
print_json(const struct load *l, double seconds)
{
    printf("{\"ok\":%u,\"refused\":%u,\"failed\":%u,\"dropped\":%u,"
           "\"cut\":%u,\"seconds\":%.3f,\"cpu\":%.3f,\"events\":%llu,"
           "\"tokens\":%llu,\"goodput\":%.3f", l->n_ok, l->n_refused,
           l->n_failed, l->n_dropped, l->n_cut, seconds, cpu_seconds(),
           (unsigned long long) l->n_events, (unsigned long long) l->n_tok,
           (double) l->n_tok / seconds);

    for (int i = 0; i < N_SAMPLES; i++) {
        const struct samples *s = &l->samples[i];

        printf(",\"%s\":{\"n\":%u,\"p50\":%u,\"p90\":%u,\"p99\":%u,"
               "\"max\":%u}", s->name, s->n, sample_at(s, .5),
               sample_at(s, .9), sample_at(s, .99), sample_at(s, 1));
    }

    printf("}\n");
}


static int
usage(void)
{
    fprintf(stderr, "usage: load [--rate R] [--seconds S] [--groups N] "
            "[--turns N] [--keep]\n            [--json | --table] PORT PATH "
            "STREAMS REQUESTS BODY\nwith PORT 1..65535, STREAMS 1..%d and at "
            "least as many REQUESTS in a closed loop\n", STREAMS_MAX);

    return 2;
}


/* Index of the first argument behind the options; -1: usage. */
static int
options(struct load *l, int argc, char **argv, int *report)
{
    static const struct option longs[] = {
        { "rate", 1, NULL, 'r' }, { "seconds", 1, NULL, 's' },
        { "groups", 1, NULL, 'g' }, { "turns", 1, NULL, 't' },
        { "keep", 0, NULL, 'k' }, { "json", 0, NULL, 'j' },
        { "table", 0, NULL, 'T' },
        { NULL, 0, NULL, 0 }
    };

    for (int c; (c = getopt_long(argc, argv, "+", longs, NULL)) != -1;) {
        switch (c) {
        case 'r': l->rate = strtod(optarg, NULL); break;
        case 's': l->seconds = strtod(optarg, NULL); break;
        case 'g': l->n_groups = (uint32_t) strtoul(optarg, NULL, 10); break;
        case 't': l->n_turns = (uint32_t) strtoul(optarg, NULL, 10); break;
        case 'k': l->keep = 1; break;
        case 'j':
        case 'T': *report = c; break;
        default: return -1;
        }
    }

    return argc - optind == 5 && l->n_groups > 0 ? optind : -1;
}


static int
load_begin(struct load *l, char **argv)
{
    static const char *const names[N_SAMPLES] = {
        "first_us", "gap_us", "refused_us"
    };
    unsigned long port = strtoul(argv[0], NULL, 10);
    unsigned long n_streams = strtoul(argv[2], NULL, 10);
    unsigned long n_requests = strtoul(argv[3], NULL, 10);

    if (port == 0 || port > 65535 || n_streams == 0 || n_streams > STREAMS_MAX
        || (l->rate <= 0 && n_requests < n_streams) || n_requests > UINT32_MAX)
    {
        return usage();
    }

    l->addr.sin_family = AF_INET;
    l->addr.sin_port = htons((uint16_t) port);
    l->addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    l->path = argv[1];
    l->body = argv[4];
    l->n_streams = (uint32_t) n_streams;
    l->n_left = (uint32_t) n_requests;
    l->streams = calloc(n_streams, sizeof(struct stream));

    int bad = l->ep < 0 || l->streams == NULL;

    for (int i = 0; i < N_SAMPLES; i++) {
        l->samples[i].name = names[i];
        l->samples[i].us = malloc(SAMPLES_MAX * sizeof(uint32_t));
        bad |= l->samples[i].us == NULL;
    }

    if (bad) {
        fprintf(stderr, "load: no memory\n");
    }

    return bad ? 2 : 0;
}


int
main(int argc, char **argv)
{
    struct load l = {
        .ep = epoll_create1(EPOLL_CLOEXEC), .n_groups = 1, .n_turns = 1
    };
    int report = 0;
    int first = options(&l, argc, argv, &report);
    int rc = first < 0 ? usage() : load_begin(&l, argv + first);

    if (rc != 0) {
        return rc;
    }

    l.start_us = l.next_us = clock_us();
    rc = load_run(&l);

    double seconds = (double) (clock_us() - l.start_us) / 1e6;

    for (int i = 0; i < N_SAMPLES; i++) {
        qsort(l.samples[i].us, l.samples[i].n, sizeof(uint32_t), u32_compare);
    }

    (report == 'j' ? print_json : report == 'T' ? print_table : print_lines)
        (&l, seconds);

    for (int i = 0; i < N_SAMPLES; i++) {
        free(l.samples[i].us);
    }
    free(l.streams);

    return rc != 0 || l.n_failed != 0;
}
