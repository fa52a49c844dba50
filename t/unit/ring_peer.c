/*
 * Memory that has one writer, and a handshake that takes nothing on trust.  The
 * peer is a child process where the kernel is what has to say no.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <fcntl.h>
#include <stdarg.h>
#include <sys/mman.h>

/* Each call that can fail does so once, in turn: see test_every_failure(). */
static int fail_in = -1;

static int
failing(void)
{
    return fail_in >= 0 && fail_in-- == 0;
}

#define memfd_create(n, f)  (failing() ? (errno = EMFILE, -1) \
                             : memfd_create(n, f))
#define fallocate(f, m, o, n) (failing() ? (errno = ENOSPC, -1) \
                             : fallocate(f, m, o, n))
#define mmap(a, n, p, f, d, o) (failing() ? (errno = ENOMEM, MAP_FAILED) \
                             : mmap(a, n, p, f, d, o))
#define madvise(a, n, m)    (failing() ? (errno = EINVAL, -1) \
                             : madvise(a, n, m))
#define fcntl(...)          (failing() ? (errno = EPERM, -1) \
                             : fcntl(__VA_ARGS__))

#include "engine/ring_peer.c"

#undef memfd_create
#undef fallocate
#undef mmap
#undef madvise
#undef fcntl

#include <dirent.h>
#include <setjmp.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/wait.h>

#include <cmocka.h>

#define RING    8192u

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


static int
count_maps(void)
{
    FILE *f = fopen("/proc/self/maps", "r");
    char line[512];
    int n = 0;

    assert_non_null(f);
    while (fgets(line, sizeof(line), f)) {
        n += strstr(line, "memfd:") != NULL;
    }
    fclose(f);
    return n;
}


static void
pair(int fd[2])
{
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fd),
                     0);
}


/* One-way memory: what a peer tries with the descriptor, each with the errno
 * that the kernel answers. */
static int
try_map(int fd, int prot, int flags)
{
    void *p = mmap(NULL, 4096, prot, flags, fd, 0);

    if (p == MAP_FAILED) {
        return errno;
    }
    munmap(p, 4096);
    return 0;
}


static int
try_protect(int fd)
{
    void *p = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
    int rc = 0;

    if (p == MAP_FAILED) {
        return -1;
    }
    if (mprotect(p, 4096, PROT_READ | PROT_WRITE) == -1) {
        rc = errno;
    }
    munmap(p, 4096);
    return rc;
}


static int
reopened(int fd)
{
    char name[64];

    snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
    return open(name, O_RDWR | O_CLOEXEC);
}


#define TRY(call)   ((call) == -1 ? errno : 0)

/* Runs in the peer; the exit status is the first line that was not refused. */
static int
attack_memory(int fd)
{
    int again = reopened(fd);
    const int shared = MAP_SHARED, rw = PROT_READ | PROT_WRITE;
    const int punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

    if (again == -1) {
        return 1;
    }
    if (try_map(fd, rw, shared) != EPERM) return 2;
    if (try_map(again, rw, shared) != EPERM) return 3;
    if (try_map(fd, PROT_WRITE, shared) != EPERM) return 4;
    if (try_protect(fd) != EACCES) return 5;
    if (TRY(write(fd, "x", 1)) != EPERM) return 6;
    if (TRY(write(again, "x", 1)) != EPERM) return 7;
    if (TRY(pwrite(fd, "x", 1, 4096)) != EPERM) return 8;
    if (TRY(fallocate(fd, punch, 0, 4096)) != EPERM) return 9;
    if (TRY(fallocate(again, punch, 0, 4096)) != EPERM) return 10;
    if (TRY(ftruncate(fd, 0)) != EPERM) return 11;
    if (TRY(ftruncate(fd, 1 << 20)) != EPERM) return 12;
    if (TRY(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE)) != EPERM) return 13;
    /* A private copy is harmless, and allowed. */
    if (try_map(fd, rw, MAP_PRIVATE) != 0) return 14;
    return 0;
}


static void
test_one_way(void **state)
{
    struct ring_memory m;
    int status;

    (void) state;
    assert_int_equal(ring_memory_create(&m, RING, 7, text), 0);

    pid_t child = fork();

    if (child == 0) {
        _exit(attack_memory(m.fd));
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);

    /* The creator is bound too, but for the mapping that it has. */
    assert_int_equal(attack_memory(m.fd), 0);
    assert_int_equal(TRY(madvise(m.page, 4096, MADV_REMOVE)), EPERM);
    m.page->heartbeat = 5;
    ring_memory_close(&m);
}


/* The mapping is not inherited: a fork cannot make a second writer. */
static void
test_fork(void **state)
{
    struct ring_memory m;
    int status;

    (void) state;
    assert_int_equal(ring_memory_create(&m, RING, 7, text), 0);

    pid_t child = fork();

    if (child == 0) {
        _exit(count_maps());
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_true(count_maps() > 0);
    ring_memory_close(&m);
    assert_int_equal(count_maps(), 0);
}


static void
test_memory(void **state)
{
    struct ring_memory m;
    struct ring_view v;
    int n_fds = count_fds();

    (void) state;
    assert_int_equal(ring_crc("123456789", 9), 0xcbf43926);

    assert_int_equal(ring_memory_create(&m, RING, 7, text), 0);
    assert_int_equal(m.n_bytes, RING + 4096);
    assert_int_equal(fcntl(m.fd, F_GET_SEALS) & ~F_SEAL_EXEC, RING_SEALS);
    assert_int_equal(fcntl(m.fd, F_GETFD), FD_CLOEXEC);
    assert_int_equal(ring_view_open(&v, m.fd, RING, 7, text), 0);
    m.page->heartbeat = 77;
    assert_int_equal(ring_word_get(&v.page->heartbeat), 77);
    ring_view_close(&v);
    ring_view_close(&v);
    ring_memory_close(&m);
    ring_memory_close(&m);

    static const uint64_t bad[] = {
        0, 1, 64, 127, 192, 4095, 4097, ABI_RING_MAX + 1, 2ull * ABI_RING_MAX,
        1ull << 63, UINT64_MAX
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(ring_memory_create(&m, bad[i], 7, text), RING_FAULT);
        assert_int_equal(ring_view_open(&v, 0, bad[i], 7, text), RING_FAULT);
    }
    assert_int_equal(count_fds(), n_fds);
}


static int
raw_memfd(size_t n, int seals, int reserve)
{
    int fd = memfd_create("raw", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    assert_int_not_equal(fd, -1);
    assert_int_equal(ftruncate(fd, (off_t) n), 0);
    if (reserve) {
        assert_int_equal(fallocate(fd, 0, 0, (off_t) n), 0);
    }
    if (seals) {
        assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
    }
    return fd;
}


static void
refuses(int fd, const char *why)
{
    struct ring_view v;

    text[0] = '\0';
    assert_int_equal(ring_view_open(&v, fd, RING, 7, text), RING_FAULT);
    assert_null(v.page);
    if (strstr(text, why) == NULL) {
        fail_msg("\"%s\" is not in \"%s\"", why, text);
    }
    if (fd != -1) {
        close(fd);
    }
}


/* Everything that is not the peer's sealed memfd, each for its own reason. */
static void
test_view_refuses(void **state)
{
    size_t n = RING + 4096;
    int p[2], n_fds = count_fds();

    (void) state;
    refuses(-1, "fstat");
    assert_int_equal(pipe2(p, O_CLOEXEC), 0);
    close(p[1]);
    refuses(p[0], "not a memfd");
    refuses(eventfd(0, EFD_CLOEXEC), "not a memfd");
    refuses(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), "not a memfd");
    refuses(open("/dev/zero", O_RDWR | O_CLOEXEC), "not a memfd");
    refuses(open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC), "not a memfd");
    refuses(open("/proc/self/maps", O_RDONLY | O_CLOEXEC), "not a memfd");

    refuses(raw_memfd(n - 64, RING_SEALS, 1), "bytes, expected");
    refuses(raw_memfd(n + 64, RING_SEALS, 1), "bytes, expected");
    for (int i = 0; i < 16; i++) {
        static const int all[] = { F_SEAL_SHRINK, F_SEAL_GROW,
                                   F_SEAL_FUTURE_WRITE, F_SEAL_SEAL };
        int seals = 0;
        for (int k = 0; k < 4; k++) {
            seals |= i & 1 << k ? all[k] : 0;
        }
        refuses(raw_memfd(n, seals, 1), i < 15 ? "seals" : "magic");
    }
    refuses(raw_memfd(n, RING_SEALS | F_SEAL_WRITE, 1), "seals");
    refuses(raw_memfd(n, RING_SEALS, 0), "reserved");

    /* A file on tmpfs takes no seals. */
    int fd = open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd != -1) {
        assert_int_equal(fallocate(fd, 0, 0, (off_t) n), 0);
        refuses(fd, "seals");
    }
    assert_int_equal(count_fds(), n_fds);
    assert_int_equal(count_maps(), 0);
}


/* Each bit of the page's head is checked, and so is what was agreed on. */
static void
test_page_refuses(void **state)
{
    struct ring_memory m;
    struct ring_view v;

    (void) state;
    assert_int_equal(ring_memory_create(&m, RING, 7, text), 0);
    for (unsigned bit = 0; bit < 36 * 8; bit++) {
        /* Another minor version is fine, if its CRC is right. */
        ((uint8_t *) m.page)[bit / 8] ^= (uint8_t) (1 << bit % 8);
        assert_int_equal(ring_view_open(&v, m.fd, RING, 7, text), RING_FAULT);
        ((uint8_t *) m.page)[bit / 8] ^= (uint8_t) (1 << bit % 8);
    }
    assert_int_equal(ring_view_open(&v, m.fd, RING, 8, text), RING_FAULT);
    assert_non_null(strstr(text, "generation 7"));
    assert_int_equal(ring_view_open(&v, m.fd, RING / 2, 7, text), RING_FAULT);

    m.page->minor = 99;
    m.page->crc = ring_crc(m.page, 32);
    assert_int_equal(ring_view_open(&v, m.fd, RING, 7, text), 0);
    ring_view_close(&v);
    m.page->major++;
    m.page->crc = ring_crc(m.page, 32);
    assert_int_equal(ring_view_open(&v, m.fd, RING, 7, text), RING_FAULT);
    ring_memory_close(&m);
}


/* The n-th fallible call fails: an error with a reason, and nothing left. */
static void
test_every_failure(void **state)
{
    struct ring_memory m, good;
    struct ring_view v;
    int n_fds, n = 0;

    (void) state;
    assert_int_equal(ring_memory_create(&good, RING, 7, text), 0);
    n_fds = count_fds();
    int n_maps = count_maps();

    for ( ;; n++) {
        fail_in = n;
        text[0] = '\0';
        int rc = ring_memory_create(&m, RING, 7, text);
        fail_in = -1;
        if (rc == 0) {
            break;
        }
        assert_true(text[0] != '\0' && m.page == NULL && m.fd == -1);
        assert_int_equal(count_fds(), n_fds);
        assert_int_equal(count_maps(), n_maps);
    }
    ring_memory_close(&m);
    assert_true(n >= 6);

    for (n = 0; ; n++) {
        fail_in = n;
        int rc = ring_view_open(&v, good.fd, RING, 7, text);
        fail_in = -1;
        if (rc == 0) {
            break;
        }
        assert_null(v.page);
        assert_int_equal(count_maps(), n_maps);
    }
    /* The third is madvise(DONTDUMP), a wish. */
    assert_int_equal(n, 2);
    ring_view_close(&v);
    ring_memory_close(&good);
}


/* Handshake messages: exact counts, and nothing leaks. */
static void
test_messages(void **state)
{
    int s[2], n_fds = count_fds();
    char buf[64];
    const char msg[40] = "hello";

    (void) state;
    pair(s);
    for (int sent = 0; sent <= RING_FDS_MAX; sent++) {
        for (int want = 0; want <= RING_FDS_MAX; want++) {
            int fds[RING_FDS_MAX], got[RING_FDS_MAX];

            for (int i = 0; i < sent; i++) {
                fds[i] = s[0];
            }
            for (int i = 0; i < want; i++) {
                got[i] = -1;
            }
            assert_int_equal(ring_send(s[0], msg, sizeof(msg), fds, sent),
                             RING_OK);
            text[0] = '\0';
            int rc = ring_recv(s[1], buf, sizeof(buf), got, want, text);

            if (sent == want) {
                assert_int_equal(rc, sizeof(msg));
                assert_string_equal(buf, "hello");
                for (int i = 0; i < want; i++) {
                    assert_int_equal(fcntl(got[i], F_GETFD), FD_CLOEXEC);
                    close(got[i]);
                }
            } else {
                assert_int_equal(rc, RING_FAULT);
                assert_non_null(strstr(text, "descriptors"));
            }
            assert_int_equal(count_fds(), n_fds + 2);
        }
    }

    assert_int_equal(ring_recv(s[1], buf, sizeof(buf), NULL, 0, text), 0);
    close(s[0]);
    assert_int_equal(ring_recv(s[1], buf, sizeof(buf), NULL, 0, text),
                     RING_FAULT);
    assert_int_equal(ring_send(s[1], msg, 1, NULL, 0), RING_FAULT);
    close(s[1]);
    assert_int_equal(count_fds(), n_fds);
}


/* As many descriptors as a message can hold, in one go and in pieces. */
static void
test_many_fds(void **state)
{
    int s[2], fds[253], got[2], n_fds = count_fds();
    char buf[64], space[CMSG_SPACE(sizeof(fds))];
    struct iovec iov = { buf, 8 };
    struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1,
                         .msg_control = space,
                         .msg_controllen = sizeof(space) };

    (void) state;
    pair(s);
    memset(space, 0, sizeof(space));
    struct cmsghdr *c = CMSG_FIRSTHDR(&mh);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(fds));
    for (int i = 0; i < 253; i++) {
        fds[i] = 0;
    }
    memcpy(CMSG_DATA(c), fds, sizeof(fds));

    for (int i = 0; i < 20; i++) {
        assert_int_equal(sendmsg(s[0], &mh, MSG_NOSIGNAL), 8);
        assert_int_equal(ring_recv(s[1], buf, sizeof(buf), got, i % 3, text),
                         RING_FAULT);
        assert_int_equal(count_fds(), n_fds + 2);
    }
    close(s[0]);
    close(s[1]);
}


static void
test_truncated(void **state)
{
    int s[2], fd, got;
    char buf[64] = "";

    (void) state;
    pair(s);
    fd = s[0];
    for (size_t n = 1; n <= 64; n++) {
        assert_int_equal(ring_send(s[0], buf, n, &fd, 1), RING_OK);
        int rc = ring_recv(s[1], buf, 32, &got, 1, text);
        assert_int_equal(rc, n <= 32 ? (int) n : RING_FAULT);
        if (rc > 0) {
            close(got);
        }
    }
    /* An empty message looks like EOF, and is no more welcome. */
    assert_int_equal(ring_send(s[0], buf, 0, &fd, 1), RING_OK);
    assert_int_equal(ring_recv(s[1], buf, 32, &got, 1, text), RING_FAULT);
    int n_fds = count_fds();

    /* A queue that is full is no error, and no wait. */
    int rc;
    for (int i = 0; (rc = ring_send(s[0], buf, 64, NULL, 0)) == RING_OK; i++) {
        assert_true(i < 100000);
    }
    assert_int_equal(rc, RING_AGAIN);
    assert_int_equal(count_fds(), n_fds);
    close(s[0]);
    close(s[1]);
}


static void
test_refusal(void **state)
{
    struct abi_refuse r = { .magic = ABI_MAGIC, .message = ABI_REFUSE,
                            .n_bytes = sizeof(r) };
    char buf[sizeof(struct abi_welcome)];
    int s[2], got;

    (void) state;
    pair(s);
    strcpy(r.text, "too many\nworkers\x1b[31m\xff");
    ring_send(s[0], &r, sizeof(r), NULL, 0);
    assert_int_equal(ring_recv(s[1], buf, sizeof(buf), &got, 1, text),
                     RING_FAULT);
    assert_string_equal(text, "refused by the peer: too many?workers?[31m?");

    memset(r.text, 'A', sizeof(r.text));
    ring_send(s[0], &r, sizeof(r), NULL, 0);
    assert_int_equal(ring_recv(s[1], buf, sizeof(buf), &got, 1, text),
                     RING_FAULT);
    assert_int_equal(strlen(text), RING_TEXT - 1);

    r.message = 9;
    ring_send(s[0], &r, sizeof(r), NULL, 0);
    assert_int_equal(ring_recv(s[1], buf, sizeof(buf), &got, 1, text),
                     RING_FAULT);
    assert_non_null(strstr(text, "0 descriptors, expected 1"));
    close(s[0]);
    close(s[1]);
}


/* The bell never blocks, full or empty, and a dead peer is seen. */
static void
test_bell(void **state)
{
    int b[2];

    (void) state;
    assert_int_equal(ring_bell_pair(b), 0);
    assert_int_equal(ring_bell_check(b[1], text), 0);
    assert_int_equal(ring_bell_drain(b[1]), 0);

    /* The peer makes its end, or even ours, blocking: no matter. */
    assert_int_equal(fcntl(b[0], F_SETFL, 0), 0);
    assert_int_equal(fcntl(b[1], F_SETFL, 0), 0);
    for (int i = 0; i < 100000; i++) {
        ring_bell_ring(b[0]);
    }
    assert_int_equal(ring_bell_drain(b[1]), 0);
    assert_int_equal(ring_bell_drain(b[1]), 0);
    char c;
    assert_int_equal(recv(b[1], &c, 1, MSG_DONTWAIT), -1);

    /* More than an honest peer can have rung: bounded, then the rest. */
    static char many[100000];
    ssize_t n = send(b[0], many, sizeof(many), MSG_DONTWAIT);
    assert_true(n > RING_BELL_BYTES * RING_BELL_READS);
    assert_int_equal(ring_bell_drain(b[1]), 0);
    ssize_t left = recv(b[1], many, sizeof(many), MSG_DONTWAIT);
    assert_int_equal(left, n - RING_BELL_BYTES * RING_BELL_READS);

    close(b[0]);
    ring_bell_ring(b[1]);               /* no SIGPIPE */
    assert_int_equal(ring_bell_drain(b[1]), -1);
    close(b[1]);
    assert_int_equal(ring_bell_drain(-1), -1);
    ring_bell_ring(-1);
}


/* Who waits for edges gets one for each bell, though none is read. */
static void
test_bell_edges(void **state)
{
    struct epoll_event e = { .events = EPOLLIN | EPOLLET }, got;
    int b[2], ep = epoll_create1(EPOLL_CLOEXEC);

    (void) state;
    assert_int_equal(ring_bell_pair(b), 0);
    assert_int_equal(epoll_ctl(ep, EPOLL_CTL_ADD, b[1], &e), 0);

    for (int round = 0; round < 3; round++) {
        /* As many more: what a timer's looks at the ring may add. */
        for (int i = 0; i < 2 * RING_BELLS_UNREAD; i++) {
            ring_bell_ring(b[0]);
            assert_int_equal(epoll_wait(ep, &got, 1, 0), 1);
            assert_int_equal(epoll_wait(ep, &got, 1, 0), 0);
        }
        assert_int_equal(ring_bell_drain(b[1]), 0);
    }
    close(b[0]);
    close(b[1]);
    close(ep);
}


static void
test_bell_check(void **state)
{
    int p[2];
    int bad[6];

    (void) state;
    assert_int_equal(pipe2(p, O_CLOEXEC), 0);
    bad[0] = p[0];
    bad[1] = p[1];
    bad[2] = eventfd(0, EFD_CLOEXEC);
    bad[3] = open("/dev/null", O_RDWR | O_CLOEXEC);
    bad[4] = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bad[5] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    for (int i = 0; i < 6; i++) {
        assert_int_equal(ring_bell_check(bad[i], text), RING_FAULT);
        close(bad[i]);
    }
    assert_int_equal(ring_bell_check(-1, text), RING_FAULT);
}


static struct abi_hello
good_hello(void)
{
    return (struct abi_hello) {
        .magic = ABI_MAGIC, .message = ABI_HELLO,
        .n_bytes = sizeof(struct abi_hello), .major = ABI_MAJOR,
        .n_slots = 64, .window_cells = 256, .request_ring_bytes = 1 << 20,
        .event_ring_bytes = ring_event_bytes(64, 256)
    };
}


#define REFUSES(field, value) do {                                            \
        struct abi_hello bad = good_hello();                                  \
        bad.field = (value);                                                  \
        assert_int_equal(ring_hello_check(&bad, sizeof(bad), text),           \
                         RING_FAULT);                                         \
    } while (0)

static void
test_hello(void **state)
{
    struct abi_hello h = good_hello();

    (void) state;
    for (size_t n = 0; n <= sizeof(h); n++) {
        uint8_t *copy = malloc(n ? n : 1);      /* a read past n is an error */
        memcpy(copy, &h, n);
        assert_int_equal(ring_hello_check((void *) copy, n, text),
                         n == sizeof(h) ? 0 : RING_FAULT);
        free(copy);
    }
    h.minor = 7;
    h.features = UINT64_MAX;
    assert_int_equal(ring_hello_check(&h, sizeof(h), text), 0);

    REFUSES(magic, 0);
    REFUSES(message, ABI_WELCOME);
    REFUSES(n_bytes, 63);
    REFUSES(n_bytes, 65);
    REFUSES(major, ABI_MAJOR + 1);
    REFUSES(major, 0);
    REFUSES(n_slots, 0);
    REFUSES(n_slots, ABI_SLOTS_MAX + 1);
    REFUSES(n_slots, UINT32_MAX);
    REFUSES(n_slots, 640);
    REFUSES(window_cells, ABI_WINDOW_MIN - 1);
    REFUSES(window_cells, ABI_WINDOW_MAX + 1);
    REFUSES(window_cells, 2560);
    REFUSES(request_ring_bytes, 0);
    REFUSES(request_ring_bytes, ABI_FRAME_MAX);
    REFUSES(request_ring_bytes, (1 << 20) + 64);
    REFUSES(request_ring_bytes, 2ull * ABI_RING_MAX);
    REFUSES(request_ring_bytes, UINT64_MAX);
    REFUSES(event_ring_bytes, h.event_ring_bytes * 2);
    REFUSES(event_ring_bytes, h.event_ring_bytes / 2);
    REFUSES(event_ring_bytes, 0);

    /* In range each, and too large together. */
    h.n_slots = ABI_SLOTS_MAX;
    h.window_cells = ABI_WINDOW_MAX;
    h.event_ring_bytes = ring_event_bytes(h.n_slots, h.window_cells);
    assert_int_equal(ring_hello_check(&h, sizeof(h), text), RING_FAULT);
}


static void
test_welcome(void **state)
{
    struct abi_welcome w = {
        .magic = ABI_MAGIC, .message = ABI_WELCOME, .n_bytes = sizeof(w),
        .major = ABI_MAJOR, .generation = 1
    };

    (void) state;
    assert_int_equal(ring_welcome_check(&w, sizeof(w), text), 0);
    for (size_t n = 0; n < sizeof(w); n++) {
        uint8_t *copy = malloc(n ? n : 1);
        memcpy(copy, &w, n);
        assert_int_equal(ring_welcome_check((void *) copy, n, text),
                         RING_FAULT);
        free(copy);
    }
    w.generation = 0;
    assert_int_equal(ring_welcome_check(&w, sizeof(w), text), RING_FAULT);
    w.generation = 1;
    memset(w.model, 'm', sizeof(w.model));
    assert_int_equal(ring_welcome_check(&w, sizeof(w), text), RING_FAULT);
    w.model[sizeof(w.model) - 1] = '\0';
    assert_int_equal(ring_welcome_check(&w, sizeof(w), text), 0);
    memset(w.owner, 'm', sizeof(w.owner));
    assert_int_equal(ring_welcome_check(&w, sizeof(w), text), RING_FAULT);
    w.owner[5] = '\0';
    w.message = ABI_HELLO;
    assert_int_equal(ring_welcome_check(&w, sizeof(w), text), RING_FAULT);
}


int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_way),
        cmocka_unit_test(test_fork),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_view_refuses),
        cmocka_unit_test(test_page_refuses),
        cmocka_unit_test(test_every_failure),
        cmocka_unit_test(test_messages),
        cmocka_unit_test(test_many_fds),
        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_refusal),
        cmocka_unit_test(test_bell),
        cmocka_unit_test(test_bell_edges),
        cmocka_unit_test(test_bell_check),
        cmocka_unit_test(test_hello),
        cmocka_unit_test(test_welcome),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
