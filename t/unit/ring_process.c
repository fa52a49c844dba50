/*
 * Two processes: frames arrive whole and in order while either side sleeps and
 * wakes the other, and the death of one is seen by the other, at any point.
 */
#include "engine/ring.c"

#include <dirent.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

#include <cmocka.h>

#include "tools/channel.h"

#define N_FRAMES    1000000u
#define HANG_MS     20000       /* longer than any pause of a busy machine */

static char text[RING_TEXT];


static int
count_fds(void)
{
    DIR *dir = opendir("/proc/self/fd");
    int n = 0;

    assert_non_null(dir);
    while (readdir(dir)) {
        n++;
    }
    closedir(dir);
    return n;
}


/* Frame i of a stream: its length and bytes follow from i alone. */
static uint32_t
frame_length(uint64_t i)
{
    uint64_t x = (i + 1) * 0x9e3779b97f4a7c15ULL;

    return x >> 60 ? (uint32_t) (x >> 32) % 200
                   : (uint32_t) (x >> 32) % (ABI_EVENT_MAX - 16);
}


static uint64_t
frame_word(uint64_t i, size_t k)
{
    return (i ^ k) * 0xff51afd7ed558ccdULL;
}


/* RING_OK, RING_AGAIN, RING_FAULT, like ring_put(). */
static int
send_frame(struct ring_tx *tx, uint64_t i)
{
    static uint64_t word[ABI_EVENT_MAX / 8];
    uint32_t n = frame_length(i);
    struct abi_frame f = { .n_bytes = n, .type = ABI_DELTA, .gen = i,
                           .slot = (uint16_t) i };

    for (size_t k = 0; k * 8 < n; k++) {
        word[k] = frame_word(i, k);
    }
    return ring_put(tx, &f, word, n, NULL, 0, 0);
}


/* Is this frame i, whole? */
static int
check_frame(const struct abi_frame *f, const uint64_t *word, uint64_t i)
{
    if (f->gen != i || f->n_bytes != frame_length(i) || f->type != ABI_DELTA
        || f->slot != (uint16_t) i)
    {
        return -1;
    }
    for (size_t k = 0; (k + 1) * 8 <= f->n_bytes; k++) {
        if (word[k] != frame_word(i, k)) {
            return -1;
        }
    }
    return 0;
}


struct traffic {
    uint64_t    n_sent, n_got, n_rings, n_sleeps;
    uint64_t    n_send;             /* in all; UINT64_MAX: for ever */
    uint64_t    n_expect;
    unsigned    burst;              /* frames for one publication, at most */
    unsigned    gap_us;             /* now and then between two bursts */
};

/* What became of it. */
enum { OK, DIED, FAULT, WRONG, HUNG };


/* Sends and takes until both are complete or the peer is gone.  Sleeps only as
 * the contract allows, so a lost wake-up is a hang. */
static int
converse(struct channel *c, struct traffic *t)
{
    static uint64_t word[ABI_EVENT_MAX / 8];
    struct abi_frame f;

    for ( ;; ) {
        int busy = 0, rc = RING_OK;

        for (unsigned i = 0; i < t->burst && t->n_sent < t->n_send; i++) {
            rc = send_frame(&c->tx, t->n_sent);
            if (rc != RING_OK) {
                break;
            }
            t->n_sent++;
            busy = 1;
        }
        if (rc == RING_FAULT) {
            return FAULT;
        }
        if (ring_publish(&c->tx)) {
            ring_bell_ring(c->bell);
            t->n_rings++;
        }
        for (int i = 0; i < 64; i++) {
            rc = ring_get(&c->rx, &f, word);
            if (rc != RING_OK) {
                break;
            }
            if (check_frame(&f, word, t->n_got) != 0) {
                return WRONG;
            }
            t->n_got++;
            busy = 1;
        }
        if (rc == RING_FAULT) {
            return FAULT;
        }
        ring_release(&c->rx);

        if (t->n_sent == t->n_send && t->n_got == t->n_expect) {
            return OK;
        }
        if (t->gap_us && random() % 16 == 0) {
            usleep(t->gap_us);
        }
        if (busy || (t->n_sleeps++, ring_sleep(&c->rx) != RING_OK)) {
            continue;
        }

        struct pollfd p[2] = { { .fd = c->bell, .events = POLLIN },
                               { .fd = c->sock, .events = POLLIN } };

        /* A full ring has no bell: it is looked at again, as the worker's
         * timer does. */
        int waits = t->n_got < t->n_expect && t->n_sent == t->n_send;
        if (poll(p, 2, waits ? HANG_MS : 1) == 0 && waits) {
            return HUNG;
        }
        if (p[0].revents) {
            ring_bell_drain(c->bell);
        }
        /* EOF comes behind what was published: that is still to be taken. */
        if (p[1].revents && ring_read_tail(&c->rx) != RING_OK) {
            return DIED;
        }
    }
}


/* A child that is the engine or the worker of a channel with us. */
static pid_t
child_with(struct traffic *t, int is_engine, int *sock)
{
    int s[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, s),
                     0);
    pid_t pid = fork();

    if (pid == 0) {
        struct channel c;
        struct abi_hello h = channel_hello(8, 64);

        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(s[0]);
        int rc = is_engine ? channel_accept_sock(&c, s[1], text)
                           : channel_attach_sock(&c, s[1], &h, text);
        _exit(rc == 0 ? converse(&c, t) : 99);
    }
    close(s[1]);
    *sock = s[0];
    return pid;
}


static int
join(struct channel *c, int sock, int is_engine)
{
    struct abi_hello h = channel_hello(8, 64);

    return is_engine ? channel_accept_sock(c, sock, text)
                     : channel_attach_sock(c, sock, &h, text);
}


/* One channel, n frames each way.  The child's counts come back in memory that
 * both share. */
static void
stress(uint64_t n_ours, uint64_t n_theirs, unsigned burst, unsigned gap_us,
       const char *name)
{
    struct traffic ours = { .n_send = n_ours, .n_expect = n_theirs,
                            .burst = burst };
    struct traffic *theirs = mmap(NULL, sizeof(*theirs), PROT_READ | PROT_WRITE,
                                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct channel c;
    int sock, status;

    assert_true(theirs != MAP_FAILED);
    *theirs = (struct traffic) { .n_send = n_theirs, .n_expect = n_ours,
                                 .burst = burst, .gap_us = gap_us };
    pid_t pid = child_with(theirs, 1, &sock);

    assert_int_equal(join(&c, sock, 0), 0);
    assert_int_equal(converse(&c, &ours), OK);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    assert_int_equal(ours.n_got, n_theirs);
    assert_int_equal(theirs->n_got, n_ours);
    print_message("%s: %llu frames, %llu bells, %llu sleeps; back %llu, %llu, "
                  "%llu\n", name, (unsigned long long) ours.n_sent,
                  (unsigned long long) ours.n_rings,
                  (unsigned long long) theirs->n_sleeps,
                  (unsigned long long) theirs->n_sent,
                  (unsigned long long) theirs->n_rings,
                  (unsigned long long) ours.n_sleeps);

    /* Suppression: at most one bell for one sleep, and the first. */
    assert_true(ours.n_rings <= theirs->n_sleeps + 1);
    assert_true(theirs->n_rings <= ours.n_sleeps + 1);
    channel_close(&c);
    munmap(theirs, sizeof(*theirs));
}


static void
test_both_ways(void **state)
{
    (void) state;
    stress(N_FRAMES, N_FRAMES, 16, 0, "both ways");
}


static void
test_flood(void **state)
{
    (void) state;
    stress(N_FRAMES, 1, 1, 0, "flood");
}


/* The producer pauses, so the consumer sleeps and must be woken each time. */
static void
test_sleeper(void **state)
{
    (void) state;
    stress(0, 50000, 4, 50, "sleeper");
}


/* kill -9 of the peer, at a random moment of the handshake or the traffic. */
static void
kill_peer(int is_engine)
{
    int n_fds = count_fds(), n_attached = 0;

    for (int round = 0; round < 150; round++) {
        struct traffic ours = { .n_send = UINT64_MAX, .n_expect = UINT64_MAX,
                                .burst = 8 };
        struct traffic theirs = ours;
        struct channel c;
        int sock, status;
        pid_t pid = child_with(&theirs, is_engine, &sock);
        pid_t killer = fork();

        if (killer == 0) {
            usleep((useconds_t) (round * 40));
            kill(pid, SIGKILL);
            _exit(0);
        }
        if (join(&c, sock, !is_engine) == 0) {
            n_attached++;
            assert_int_equal(converse(&c, &ours), DIED);
            channel_close(&c);
        }
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        assert_int_equal(waitpid(killer, &status, 0), killer);
        assert_int_equal(count_fds(), n_fds);
    }
    print_message("%d of 150 died after the handshake\n", n_attached);
    assert_true(n_attached > 10);
}


static void
test_kill_engine(void **state)
{
    (void) state;
    kill_peer(1);
}


static void
test_kill_worker(void **state)
{
    (void) state;
    kill_peer(0);
}


int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_both_ways),
        cmocka_unit_test(test_flood),
        cmocka_unit_test(test_sleeper),
        cmocka_unit_test(test_kill_engine),
        cmocka_unit_test(test_kill_worker),
    };

    signal(SIGPIPE, SIG_IGN);
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
