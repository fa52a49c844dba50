/*
 * overload.c - too many clients: each asks, and asks again at once when it was
 * answered, and after a pause when it was refused.
 *
 *     overload PORT CLIENTS SECONDS
 *
 * Each client has one connection to 127.0.0.1:PORT and posts a completion of 20
 * tokens, 5 ms each, to the mock.  Prints, over those SECONDS,
 *
 *     answers=N refused=N failed=N refusal_p50_ms=X refusal_p99_ms=X
 *
 * where refused are answers of 429 with Retry-After, timed from the request's
 * last byte sent to the answer seen, and failed is everything else.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base.h"

#define PAUSE_US    180000
#define ANSWER_MAX  4096
#define SAMPLES_MAX 1000000

struct client {
    int         fd;
    uint64_t    sent_us;
    uint64_t    due_us;         /* asks then; 0: waits for an answer */
    size_t      n;
    char        answer[ANSWER_MAX];
};

static uint32_t *samples;
static unsigned n_samples, n_answers, n_failed;


static void
die(const char *what)
{
    perror(what);
    exit(1);
}


static void
client_open(struct client *c, int port)
{
    struct sockaddr_in addr = { .sin_family = AF_INET,
                                .sin_port = htons((uint16_t) port),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    int one = 1;

    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd == -1
        || connect(c->fd, (struct sockaddr *) &addr, sizeof(addr)) == -1)
    {
        die("connect");
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}


static void
client_ask(struct client *c)
{
    static const char request[] =
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
        "Content-Type: application/json\r\nContent-Length: 38\r\n\r\n"
        "{\"prompt\":\"mock tokens=20 delay_ms=5\"}";

    if (send(c->fd, request, sizeof(request) - 1, MSG_NOSIGNAL)
        != (ssize_t) sizeof(request) - 1)
    {
        die("send");
    }
    c->sent_us = clock_us();
    c->due_us = 0;
    c->n = 0;
}


/* Whether the answer is whole: its head, and as many bytes as that says. */
static int
client_whole(const struct client *c)
{
    const char *end = strstr(c->answer, "\r\n\r\n");
    const char *length = strcasestr(c->answer, "\r\nContent-Length: ");

    return end != NULL && length != NULL && length < end
           && c->n >= (size_t) (end + 4 - c->answer)
                      + strtoul(length + 18, NULL, 10);
}


static void
client_read(struct client *c)
{
    ssize_t n = recv(c->fd, c->answer + c->n, ANSWER_MAX - 1 - c->n, 0);
    uint64_t now = clock_us();

    if (n <= 0) {
        die("recv");
    }
    c->n += (size_t) n;
    c->answer[c->n] = '\0';
    if (!client_whole(c)) {
        return;
    }

    c->due_us = now;
    if (strncmp(c->answer + 9, "200", 3) == 0) {
        n_answers++;
    } else if (strncmp(c->answer + 9, "429", 3) == 0
               && strcasestr(c->answer, "\r\nRetry-After: ") != NULL)
    {
        c->due_us = now + PAUSE_US;
        if (n_samples < SAMPLES_MAX) {
            samples[n_samples++] = (uint32_t) (now - c->sent_us);
        }
    } else {
        n_failed++;
    }
}


static int
compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *) a, y = *(const uint32_t *) b;

    return (x > y) - (x < y);
}


static void
report(void)
{
    qsort(samples, n_samples, sizeof(*samples), compare);

    uint32_t p50 = n_samples ? samples[n_samples / 2] : 0;
    uint32_t p99 = n_samples ? samples[n_samples - 1 - n_samples / 100] : 0;

    printf("answers=%u refused=%u failed=%u refusal_p50_ms=%.3f "
           "refusal_p99_ms=%.3f\n", n_answers, n_samples, n_failed,
           p50 / 1e3, p99 / 1e3);
}


int
main(int argc, char **argv)
{
    if (argc != 4) {
        fprintf(stderr, "Usage: overload PORT CLIENTS SECONDS\n");
        return 2;
    }

    int n_clients = atoi(argv[2]), poller = epoll_create1(EPOLL_CLOEXEC);
    uint64_t start = clock_us(), end = start + strtoull(argv[3], NULL, 10)
                                               * 1000000;
    struct client *clients = calloc((size_t) n_clients, sizeof(*clients));

    samples = calloc(SAMPLES_MAX, sizeof(*samples));
    for (int i = 0; i < n_clients; i++) {
        struct epoll_event e = { .events = EPOLLIN, .data.ptr = &clients[i] };
        client_open(&clients[i], atoi(argv[1]));
        clients[i].due_us = start + (uint64_t) i * PAUSE_US
                                    / (uint64_t) n_clients;
        epoll_ctl(poller, EPOLL_CTL_ADD, clients[i].fd, &e);
    }
    for (uint64_t now = start; now < end; now = clock_us()) {
        struct epoll_event e[64];
        int n = epoll_wait(poller, e, 64, 1);
        for (int i = 0; i < n; i++) {
            client_read(e[i].data.ptr);
        }
        now = clock_us();
        for (int i = 0; i < n_clients; i++) {
            if (clients[i].due_us != 0 && clients[i].due_us <= now) {
                client_ask(&clients[i]);
            }
        }
    }
    report();

    for (int i = 0; i < n_clients; i++) {
        close(clients[i].fd);
    }

    close(poller);
    free(clients);
    free(samples);

    return 0;
}
