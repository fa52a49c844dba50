/*
 * ring.c - what crossing the ring costs: one thread, two processes in a flood,
 * and a sleeper that has to be woken.  Prints `bench NAME VALUE UNIT`.
 */
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

#include "tools/channel.h"

#define N_SAME      2000000
#define N_FLOOD     2000000
#define N_WAKES     5000
#define N_BELLS     200000
#define N_PAYLOAD   40          /* a DELTA of one token: 64 bytes in all */

static char text[RING_TEXT];
static uint8_t payload[N_PAYLOAD], buf[ABI_FRAME_MAX];


static uint64_t
now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t) t.tv_sec * 1000000000u + (uint64_t) t.tv_nsec;
}


static void
report(const char *name, double value, const char *unit)
{
    printf("bench ring.%s %.6g %s\n", name, value, unit);
    fflush(stdout);
}


static void
check(int ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "ring: %s: %s\n", what, text);
        exit(1);
    }
}


/* A step of 64 frames: put, published once, taken, released once. */
static void
bench_same_thread(void)
{
    struct ring_memory a, b;
    struct ring_view va, vb;
    struct ring_tx tx;
    struct ring_rx rx;
    struct abi_frame f = { .n_bytes = N_PAYLOAD, .type = ABI_DELTA, .gen = 1 };
    struct abi_frame got;

    check(ring_memory_create(&a, 1 << 20, 1, text) == 0, "memory");
    check(ring_memory_create(&b, 1 << 20, 1, text) == 0, "memory");
    check(ring_view_open(&va, a.fd, 1 << 20, 1, text) == 0, "view");
    check(ring_view_open(&vb, b.fd, 1 << 20, 1, text) == 0, "view");
    ring_tx_init(&tx, &a, &vb);
    ring_rx_init(&rx, &b, &va, ABI_EVENT_MAX);

    uint64_t put = 0, get = 0;

    for (int i = 0; i < N_SAME; i += 64) {
        uint64_t t0 = now_ns();
        for (int k = 0; k < 64; k++) {
            ring_put(&tx, &f, payload, N_PAYLOAD, NULL, 0, 0);
        }
        ring_publish(&tx);
        uint64_t t1 = now_ns();
        for (int k = 0; k < 64; k++) {
            check(ring_get(&rx, &got, buf) == RING_OK, "get");
        }
        ring_release(&rx);
        get += now_ns() - t1;
        put += t1 - t0;
    }
    report("put", (double) put / N_SAME, "ns/frame");
    report("get", (double) get / N_SAME, "ns/frame");
    ring_view_close(&va);
    ring_view_close(&vb);
    ring_memory_close(&a);
    ring_memory_close(&b);
}


/* The child is the engine, on another core if there is one. */
static pid_t
fork_engine(struct channel *w, void (*run)(struct channel *e))
{
    struct abi_hello h = channel_hello(64, 256);
    int s[2];

    check(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, s) == 0,
          "socketpair");
    pid_t pid = fork();

    if (pid == 0) {
        struct channel e;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(s[0]);
        check(channel_accept_sock(&e, s[1], text) == 0, "accept");
        run(&e);
        /* The worker leaves first. */
        channel_wait(e.sock, 10000);
        _exit(0);
    }
    close(s[1]);
    check(channel_attach_sock(w, s[0], &h, text) == 0, "attach");
    return pid;
}


static void
join(struct channel *w, pid_t pid)
{
    int status;

    channel_close(w);
    waitpid(pid, &status, 0);
    check(status == 0, "the engine's side");
}


static unsigned burst = 1;

static void
flood(struct channel *e)
{
    uint64_t n_rings = 0;
    struct abi_frame f = { .n_bytes = N_PAYLOAD, .type = ABI_DELTA, .gen = 1 };

    for (uint64_t i = 0; i < N_FLOOD; ) {
        for (unsigned k = 0; k < burst && i < N_FLOOD; k++) {
            int rc = ring_put(&e->tx, &f, payload, N_PAYLOAD, NULL, 0, 0);
            if (rc == RING_AGAIN) {
                break;
            }
            check(rc == RING_OK, "put");
            i++;
        }
        if (ring_publish(&e->tx)) {
            ring_bell_ring(e->bell);
            n_rings++;
        }
    }
    ring_word_set(&e->own.page->n_steps, n_rings);
    f.gen = 2;
    while (ring_put(&e->tx, &f, payload, N_PAYLOAD, NULL, 0, 0) != RING_OK) {
        usleep(100);
    }
    channel_publish(e);
}


static void
bench_flood(unsigned n, const char *rate, const char *bells)
{
    struct channel w;
    struct abi_frame f;

    burst = n;
    pid_t pid = fork_engine(&w, flood);
    uint64_t start = now_ns();

    do {
        check(channel_event(&w, &f, buf, 10000) == RING_OK, "event");
    } while (f.gen != 2);

    report(rate, (double) (now_ns() - start) / N_FLOOD, "ns/frame");
    report(bells, (double) ring_word_get(&w.peer.page->n_steps) / N_FLOOD,
           "bells/frame");
    join(&w, pid);
}


/* The engine stamps a frame every 200 us; the worker sleeps between them. */
static void
stamp(struct channel *e)
{
    struct abi_frame f = { .n_bytes = 8, .type = ABI_DELTA, .gen = 1 };

    for (int i = 0; i < N_WAKES; i++) {
        usleep(200);
        uint64_t t = now_ns();
        check(ring_put(&e->tx, &f, &t, 8, NULL, 0, 0) == RING_OK, "put");
        channel_publish(e);
    }
}


static int
compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *) a, y = *(const uint64_t *) b;

    return x < y ? -1 : x > y;
}


static void
bench_wake(void)
{
    static uint64_t took[N_WAKES];
    struct channel w;
    struct abi_frame f;
    uint64_t sent;
    pid_t pid = fork_engine(&w, stamp);

    for (int i = 0; i < N_WAKES; i++) {
        check(channel_event(&w, &f, buf, 10000) == RING_OK, "event");
        memcpy(&sent, buf, sizeof(sent));
        took[i] = now_ns() - sent;
    }
    qsort(took, N_WAKES, sizeof(*took), compare);
    report("wake.p50", (double) took[N_WAKES / 2] / 1e3, "us");
    report("wake.p99", (double) took[N_WAKES * 99 / 100] / 1e3, "us");
    join(&w, pid);
}


/* A bell that nobody hears: what the engine pays when a worker is slow. */
static void
bench_bell(void)
{
    int fd[2];

    check(ring_bell_pair(fd) == 0, "bell");
    uint64_t start = now_ns();

    for (int i = 0; i < N_BELLS; i++) {
        ring_bell_ring(fd[0]);
    }
    report("bell.full", (double) (now_ns() - start) / N_BELLS, "ns");

    uint64_t took = 0;

    for (int i = 0; i < N_BELLS; i++) {
        ring_bell_drain(fd[1]);
        start = now_ns();
        ring_bell_ring(fd[0]);
        took += now_ns() - start;
    }
    report("bell", (double) took / N_BELLS, "ns");
    close(fd[0]);
    close(fd[1]);
}


int
main(void)
{
    bench_same_thread();
    bench_flood(1, "flood", "flood.bells");
    bench_flood(64, "step64", "step64.bells");
    bench_wake();
    bench_bell();
    return 0;
}
