/*
 * ring_peer.c - how two processes that do not trust each other come to share a
 * pair of rings: sealed memory, the bell, and the messages that exchange them.
 *
 * In: sizes to create, descriptors and messages of a peer that may be hostile.
 * Out: mapped memory that cannot shrink, hang or be written by the wrong side;
 * or a reason in one line, fit for a log.
 * Must not know: NGINX, the engine, frames.
 *
 * No call here can block on something that the peer also holds: each is
 * non-blocking by its own flags, and never by those of the descriptor.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "ring.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL     0x0008U     /* Linux 6.3 */
#endif
#ifndef F_SEAL_EXEC
#define F_SEAL_EXEC         0x0020      /* what MFD_NOEXEC_SEAL adds */
#endif
#define RING_TMPFS          0x01021994  /* TMPFS_MAGIC of linux/magic.h */

#define RING_SEALS  (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE \
                     | F_SEAL_SEAL)

/* A socket's queue held 278 unread bells, measured on Linux 6.18: one read
 * takes what an honest peer can have left, eight are the bound for others. */
#define RING_BELL_BYTES     512
#define RING_BELL_READS     8


static int ring_fault(char *text, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

static int
ring_fault(char *text, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, RING_TEXT, fmt, ap);
    va_end(ap);

    return RING_FAULT;
}


/* IEEE CRC-32, bit by bit: 32 bytes once per attach. */
static uint32_t
ring_crc(const void *p, size_t n)
{
    const uint8_t *byte = p;
    uint32_t crc = 0xffffffffU;

    for (size_t i = 0; i < n; i++) {
        crc ^= byte[i];
        for (int bit = 0; bit < 8; bit++) {
            crc = (crc >> 1) ^ (0xedb88320U & (0U - (crc & 1)));
        }
    }

    return ~crc;
}


static int
ring_bytes_ok(uint64_t n)
{
    return n >= 2 * ABI_CELL_BYTES && n <= ABI_RING_MAX && (n & (n - 1)) == 0;
}


/* Memory. */

/* A sealable memfd of n bytes, all of them reserved: want of memory shows here
 * as an error, not later as SIGBUS.  -1 and errno. */
static int
ring_memfd(size_t n)
{
    unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    int fd = memfd_create("moe-ring", flags | MFD_NOEXEC_SEAL);

    if (fd == -1 && errno == EINVAL) {
        fd = memfd_create("moe-ring", flags);
    }
    if (fd == -1) {
        return -1;
    }

    int rc;
    do {
        rc = fallocate(fd, 0, 0, (off_t) n);
    } while (rc == -1 && errno == EINTR);

    if (rc == -1) {
        int saved = errno;
        close(fd);
        errno = saved;
        return -1;
    }

    return fd;
}


int
ring_memory_create(struct ring_memory *m, uint64_t ring_bytes,
                   uint64_t generation, char *text)
{
    memset(m, 0, sizeof(*m));
    m->fd = -1;

    if (!ring_bytes_ok(ring_bytes)) {
        return ring_fault(text, "ring of %llu bytes: not a power of two in "
                          "%d .. %u", (unsigned long long) ring_bytes,
                          2 * ABI_CELL_BYTES, ABI_RING_MAX);
    }

    size_t n = ABI_PAGE_BYTES + (size_t) ring_bytes;
    int fd = ring_memfd(n);

    if (fd == -1) {
        return ring_fault(text, "memfd of %zu bytes: %s", n, strerror(errno));
    }

    /* The only writable mapping there will ever be: it precedes the seal, and
     * no child inherits it.  Prompts stay out of core files. */
    void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                   fd, 0);

    if (p == MAP_FAILED) {
        ring_fault(text, "mmap of %zu bytes: %s", n, strerror(errno));
        close(fd);
        return RING_FAULT;
    }

    m->page = p;
    m->n_bytes = n;
    m->fd = fd;

    if (madvise(p, n, MADV_DONTFORK) == -1
        || madvise(p, n, MADV_DONTDUMP) == -1
        || fcntl(fd, F_ADD_SEALS, RING_SEALS) == -1)
    {
        ring_fault(text, "memfd's seals: %s", strerror(errno));
        ring_memory_close(m);
        return RING_FAULT;
    }

    /* All else is zero, wake_at too: the first publication rings. */
    m->page->magic = ABI_MAGIC;
    m->page->major = ABI_MAJOR;
    m->page->minor = ABI_MINOR;
    m->page->n_bytes = n;
    m->page->generation = generation;
    m->page->crc = ring_crc(m->page, offsetof(struct abi_page, crc));

    return 0;
}


void
ring_memory_close(struct ring_memory *m)
{
    if (m->page != NULL) {
        munmap(m->page, m->n_bytes);
    }
    if (m->fd != -1) {
        close(m->fd);
    }

    memset(m, 0, sizeof(*m));
    m->fd = -1;
}


/* Everything that fstat and its kin tell of fd; nothing is mapped yet. */
static int
ring_view_check(int fd, uint64_t n_bytes, char *text)
{
    struct stat st;
    struct statfs fs;

    if (fstat(fd, &st) == -1 || fstatfs(fd, &fs) == -1) {
        return ring_fault(text, "peer's memory: fstat: %s", strerror(errno));
    }

    if (!S_ISREG(st.st_mode) || fs.f_type != RING_TMPFS) {
        return ring_fault(text, "peer's memory: not a memfd: mode %o, "
                          "file system %lx", (unsigned) st.st_mode,
                          (unsigned long) fs.f_type);
    }

    if ((uint64_t) st.st_size != n_bytes) {
        return ring_fault(text, "peer's memory: %lld bytes, expected %llu",
                          (long long) st.st_size,
                          (unsigned long long) n_bytes);
    }

    int seals = fcntl(fd, F_GET_SEALS);

    if (seals == -1 || (seals & ~F_SEAL_EXEC) != RING_SEALS) {
        return ring_fault(text, "peer's memory: seals %#x, expected %#x",
                          (unsigned) seals, (unsigned) RING_SEALS);
    }

    /* Sealed, so holes cannot come back; none may be there now. */
    if ((uint64_t) st.st_blocks * 512 < n_bytes) {
        return ring_fault(text, "peer's memory: %llu of %llu bytes reserved",
                          (unsigned long long) st.st_blocks * 512,
                          (unsigned long long) n_bytes);
    }

    return 0;
}


static int
ring_page_check(const struct abi_page *shared, uint64_t n_bytes,
                uint64_t generation, char *text)
{
    struct {
        uint64_t    magic;
        uint32_t    major;
        uint32_t    minor;
        uint64_t    n_bytes;
        uint64_t    generation;
        uint32_t    crc;
        uint32_t    pad;
    } page;
    uint64_t word[5];

    static_assert(sizeof(page) == sizeof(word)
                  && offsetof(struct abi_page, crc) == 32, "abi_page's head");
    for (int i = 0; i < 5; i++) {
        word[i] = ring_word_get((const uint64_t *) (const void *) shared + i);
    }
    memcpy(&page, word, sizeof(page));

    if (page.magic != ABI_MAGIC || page.major != ABI_MAJOR) {
        return ring_fault(text, "peer's page: magic %llx version %u, expected "
                          "%llx version %u", (unsigned long long) page.magic,
                          page.major, (unsigned long long) ABI_MAGIC,
                          ABI_MAJOR);
    }

    if (page.n_bytes != n_bytes || page.generation != generation) {
        return ring_fault(text, "peer's page: %llu bytes generation %llu, "
                          "expected %llu and %llu",
                          (unsigned long long) page.n_bytes,
                          (unsigned long long) page.generation,
                          (unsigned long long) n_bytes,
                          (unsigned long long) generation);
    }

    uint32_t crc = ring_crc(&page, offsetof(struct abi_page, crc));

    if (page.crc != crc) {
        return ring_fault(text, "peer's page: CRC %08x, expected %08x",
                          page.crc, crc);
    }

    return 0;
}


int
ring_view_open(struct ring_view *v, int fd, uint64_t ring_bytes,
               uint64_t generation, char *text)
{
    memset(v, 0, sizeof(*v));

    if (!ring_bytes_ok(ring_bytes)) {
        return ring_fault(text, "peer's ring of %llu bytes: not a power of "
                          "two in %d .. %u", (unsigned long long) ring_bytes,
                          2 * ABI_CELL_BYTES, ABI_RING_MAX);
    }

    size_t n = ABI_PAGE_BYTES + (size_t) ring_bytes;

    if (ring_view_check(fd, n, text) != 0) {
        return RING_FAULT;
    }

    void *p = mmap(NULL, n, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);

    if (p == MAP_FAILED) {
        return ring_fault(text, "peer's memory: mmap of %zu bytes: %s", n,
                          strerror(errno));
    }

    v->page = p;
    v->n_bytes = n;
    (void) madvise(p, n, MADV_DONTDUMP);

    if (ring_page_check(v->page, n, generation, text) != 0) {
        ring_view_close(v);
        return RING_FAULT;
    }

    return 0;
}


void
ring_view_close(struct ring_view *v)
{
    if (v->page != NULL) {
        munmap((void *) (uintptr_t) v->page, v->n_bytes);
    }

    memset(v, 0, sizeof(*v));
}


/* The bell. */

int
ring_bell_pair(int fd[2])
{
    return socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0,
                      fd);
}


int
ring_bell_check(int fd, char *text)
{
    struct stat st;
    int domain = 0, type = 0;
    socklen_t n_domain = sizeof(domain), n_type = sizeof(type);

    /* Type first: calls on a file of FUSE, say, may block. */
    if (fstat(fd, &st) == -1 || !S_ISSOCK(st.st_mode)
        || getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &n_domain) == -1
        || getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &n_type) == -1
        || domain != AF_UNIX || type != SOCK_STREAM)
    {
        return ring_fault(text, "peer's bell: not a unix stream socket");
    }

    return 0;
}


void
ring_bell_ring(int fd)
{
    /* EAGAIN: bells are queued that the peer has not heard.  EPIPE: it is
     * gone, and the handshake's socket says so.  Neither is ours to handle. */
    (void) send(fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}


int
ring_bell_drain(int fd)
{
    char bells[RING_BELL_BYTES];

    for (int i = 0; i < RING_BELL_READS; i++) {
        ssize_t n = recv(fd, bells, sizeof(bells), MSG_DONTWAIT);

        if (n == 0) {
            return -1;
        }
        if (n == -1) {
            return errno == EAGAIN || errno == EINTR ? 0 : -1;
        }
    }

    return 0;
}


/* The handshake. */

int
ring_send(int sock, const void *msg, size_t n, const int *fds, int n_fds)
{
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(RING_FDS_MAX * sizeof(int))];
    } control;
    struct iovec iov = { (void *) (uintptr_t) msg, n };
    struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };

    assert(n_fds >= 0 && n_fds <= RING_FDS_MAX);

    if (n_fds > 0) {
        size_t n_bytes = (size_t) n_fds * sizeof(int);

        memset(&control, 0, sizeof(control));
        mh.msg_control = &control;
        mh.msg_controllen = CMSG_SPACE(n_bytes);

        struct cmsghdr *c = CMSG_FIRSTHDR(&mh);

        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(n_bytes);
        memcpy(CMSG_DATA(c), fds, n_bytes);
    }

    ssize_t sent;
    do {
        sent = sendmsg(sock, &mh, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (sent == -1 && errno == EINTR);

    if (sent == -1) {
        return errno == EAGAIN ? RING_AGAIN : RING_FAULT;
    }

    return RING_OK;
}


/* Takes the descriptors out of a received message: the first max into fds, the
 * others closed.  Returns how many there were. */
static int
ring_take_fds(struct msghdr *mh, int *fds, int max)
{
    int n = 0;

    for (struct cmsghdr *c = CMSG_FIRSTHDR(mh); c != NULL;
         c = CMSG_NXTHDR(mh, c))
    {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) {
            continue;
        }

        for (size_t at = CMSG_LEN(0); at + sizeof(int) <= c->cmsg_len;
             at += sizeof(int))
        {
            int fd;

            memcpy(&fd, (const char *) c + at, sizeof(fd));
            if (n < max) {
                fds[n] = fd;
            } else {
                close(fd);
            }
            n++;
        }
    }

    return n;
}


/* A REFUSE's reason, made fit for a log: the peer may have put anything in. */
static int
ring_refusal(const void *msg, size_t n, char *text)
{
    struct abi_refuse refuse;

    if (n != sizeof(refuse)) {
        return 0;
    }

    memcpy(&refuse, msg, n);
    if (refuse.magic != ABI_MAGIC || refuse.message != ABI_REFUSE) {
        return 0;
    }

    refuse.text[sizeof(refuse.text) - 1] = '\0';
    for (char *p = refuse.text; *p != '\0'; p++) {
        if (*p < 0x20 || *p > 0x7e) {
            *p = '?';
        }
    }

    return ring_fault(text, "refused by the peer: %s", refuse.text);
}


int
ring_recv(int sock, void *msg, size_t n, int *fds, int n_fds, char *text)
{
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(RING_FDS_MAX * sizeof(int))];
    } control;
    struct iovec iov = { msg, n };
    struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };

    assert(n_fds >= 0 && n_fds <= RING_FDS_MAX);

    /* Exact room: what a peer sends beyond it the kernel closes (MSG_CTRUNC)
     * before it can take up our table of descriptors. */
    if (n_fds > 0) {
        mh.msg_control = &control;
        mh.msg_controllen = CMSG_LEN((size_t) n_fds * sizeof(int));
    }

    ssize_t got;
    do {
        got = recvmsg(sock, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    } while (got == -1 && errno == EINTR);

    if (got == -1 && errno == EAGAIN) {
        return 0;
    }
    if (got == -1) {
        return ring_fault(text, "handshake: recvmsg: %s", strerror(errno));
    }

    int n_got = ring_take_fds(&mh, fds, n_fds);
    int rc = (int) got;

    if (got == 0) {
        rc = ring_fault(text, "handshake: closed by the peer");
    } else if (mh.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) {
        rc = ring_fault(text, "handshake: message longer than %zu bytes, or "
                        "more than %d descriptors", n, n_fds);
    } else if (n_got == 0 && n_fds > 0
               && ring_refusal(msg, (size_t) got, text) == RING_FAULT)
    {
        rc = RING_FAULT;
    } else if (n_got != n_fds) {
        rc = ring_fault(text, "handshake: %d descriptors, expected %d", n_got,
                        n_fds);
    }

    if (rc == RING_FAULT) {
        for (int i = 0; i < n_got && i < n_fds; i++) {
            close(fds[i]);
        }
    }

    return rc;
}


/* The first three words of every message. */
static int
ring_message_check(const void *msg, size_t n, uint32_t message, size_t size,
                   const char *name, char *text)
{
    struct {
        uint64_t    magic;
        uint32_t    message;
        uint32_t    n_bytes;
        uint32_t    major;
        uint32_t    minor;
    } head;

    if (n < sizeof(head)) {
        return ring_fault(text, "%s of %zu bytes, expected %zu", name, n, size);
    }

    memcpy(&head, msg, sizeof(head));

    if (head.magic != ABI_MAGIC || head.message != message) {
        return ring_fault(text, "%s: magic %llx message %u, expected %llx and "
                          "%u", name, (unsigned long long) head.magic,
                          head.message, (unsigned long long) ABI_MAGIC,
                          message);
    }

    if (head.major != ABI_MAJOR) {
        return ring_fault(text, "%s: ABI version %u, expected %u", name,
                          head.major, ABI_MAJOR);
    }

    if (n != size || head.n_bytes != size) {
        return ring_fault(text, "%s of %zu bytes that says %u, expected %zu",
                          name, n, head.n_bytes, size);
    }

    return 0;
}


int
ring_hello_check(const struct abi_hello *h, size_t n, char *text)
{
    if (ring_message_check(h, n, ABI_HELLO, sizeof(*h), "HELLO", text) != 0) {
        return RING_FAULT;
    }

    if (h->n_slots < 1 || h->n_slots > ABI_SLOTS_MAX
        || h->window_cells < ABI_WINDOW_MIN
        || h->window_cells > ABI_WINDOW_MAX)
    {
        return ring_fault(text, "HELLO: %u slots of %u cells, expected 1 .. %u "
                          "and %u .. %u", h->n_slots, h->window_cells,
                          ABI_SLOTS_MAX, ABI_WINDOW_MIN, ABI_WINDOW_MAX);
    }

    if (!ring_bytes_ok(h->request_ring_bytes)
        || h->request_ring_bytes < 2 * ABI_FRAME_MAX)
    {
        return ring_fault(text, "HELLO: request ring of %llu bytes, expected a "
                          "power of two in %u .. %u",
                          (unsigned long long) h->request_ring_bytes,
                          2 * ABI_FRAME_MAX, ABI_RING_MAX);
    }

    uint64_t n_event = ring_event_bytes(h->n_slots, h->window_cells);

    if (h->event_ring_bytes != n_event || n_event > ABI_RING_MAX) {
        return ring_fault(text, "HELLO: event ring of %llu bytes, expected "
                          "%llu and at most %u",
                          (unsigned long long) h->event_ring_bytes,
                          (unsigned long long) n_event, ABI_RING_MAX);
    }

    return 0;
}


int
ring_welcome_check(const struct abi_welcome *w, size_t n, char *text)
{
    if (ring_message_check(w, n, ABI_WELCOME, sizeof(*w), "WELCOME", text) != 0)
    {
        return RING_FAULT;
    }

    if (w->generation == 0
        || memchr(w->model, '\0', sizeof(w->model)) == NULL
        || memchr(w->owner, '\0', sizeof(w->owner)) == NULL)
    {
        return ring_fault(text, "WELCOME: generation %llu, or a name without "
                          "end", (unsigned long long) w->generation);
    }

    return 0;
}
