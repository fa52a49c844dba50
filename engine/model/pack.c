/*
 * pack.c - see pack.h.
 *
 * A file is a head (magic, key, sizes, a checksum a chunk) and from the next
 * huge page on the image.  It is written beside its place and renamed, so that
 * a name never stands for half a file while the machine runs; what a machine
 * that fails leaves of one is told by its checksums.  All threads check chunks,
 * of the mapped file or right after reading them: every byte, each time.
 *
 * A mapping is as fast as other memory where the file system keeps a file in
 * huge pages (ext4 since Linux 6.16, XFS), and costs no second copy.
 */
#include "model/pack.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* To be raised with every change of a layout in cpu.h, quant.h or tight.h. */
static const char magic[8] = "moepack4";

#define CHUNK           (4u << 20)
#define HUGE_PAGE       (2u << 20)
#define PAGE            4096

struct head {
    char        magic[8];
    uint64_t    key;
    uint64_t    n_bytes;
    uint64_t    sums[];         /* (n_chunks) */
};

struct io {
    const struct pack *p;
    struct head       *head;
    size_t             head_bytes;
    uint8_t           *memory;
    int                mapped;
    int                fd;
    int                bad;     /* any thread: a chunk was wrong */
};


uint64_t
pack_key(uint64_t key, const void *p, size_t n)
{
    const uint8_t *at = p;

    for (size_t i = 0; i < n; i++) {
        key = (key ^ at[i]) * 0x100000001b3u;
        key ^= key >> 29;
    }

    return key;
}


static size_t
n_chunks(const struct pack *p)
{
    return (p->n_bytes + CHUNK - 1) / CHUNK;
}


static size_t
head_bytes(const struct pack *p)
{
    size_t n = sizeof(struct head) + n_chunks(p) * sizeof(uint64_t);

    return (n + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
}


static size_t
chunk_bytes(const struct pack *p, size_t i)
{
    size_t left = p->n_bytes - i * CHUNK;

    return left < CHUNK ? left : CHUNK;
}


/* Four sums side by side, since one would wait for its multiplications.  The
 * block of weights is a multiple of 64 bytes. */
static uint64_t
checksum(const uint8_t *p, size_t n)
{
    uint64_t sum[4] = { 1, 2, 3, 4 };

    for (size_t i = 0; i + 32 <= n; i += 32) {
        for (size_t k = 0; k < 4; k++) {
            uint64_t word;

            memcpy(&word, p + i + 8 * k, 8);
            sum[k] = (sum[k] ^ word) * 0x9e3779b97f4a7c15u;
        }
    }

    return pack_key(n, sum, sizeof(sum));
}


/* The file's name without its directory; -1: e. */
static int
pack_path(const struct pack *p, char *to, size_t size, struct err *e)
{
    char        real[PATH_MAX];
    const char *name = realpath(p->model_dir, real) != NULL
                       ? strrchr(real, '/') : NULL;

    if (name == NULL || name[1] == '\0') {
        return err_set(e, "%s: has no name", p->model_dir);
    }

    return (size_t) snprintf(to, size, "%s/%s-%s.pack", p->dir, name + 1,
                             p->quant) < size
           ? 0 : err_set(e, "%s: path too long", p->dir);
}


static int
read_all(int fd, void *to, size_t n, off_t at)
{
    for (size_t done = 0; done < n; ) {
        ssize_t got = pread(fd, (uint8_t *) to + done, n - done,
                            at + (off_t) done);

        if (got <= 0) {
            if (got < 0 && errno == EINTR) {
                continue;
            }

            return -1;
        }

        done += (size_t) got;
    }

    return 0;
}


static int
write_all(int fd, const void *from, size_t n)
{
    for (size_t done = 0; done < n; ) {
        ssize_t put = write(fd, (const uint8_t *) from + done, n - done);

        if (put < 0) {
            if (errno == EINTR) {
                continue;
            }

            return -1;
        }

        done += (size_t) put;
    }

    return 0;
}


static void
check_chunk(void *ctx, uint32_t i, int thread)
{
    struct io *io = ctx;
    size_t     at = (size_t) i * CHUNK, n = chunk_bytes(io->p, i);

    (void) thread;

    if ((!io->mapped && read_all(io->fd, io->memory + at, n,
                                 (off_t) (io->head_bytes + at)) != 0)
        || checksum(io->memory + at, n) != io->head->sums[i])
    {
        __atomic_store_n(&io->bad, 1, __ATOMIC_RELAXED);
    }
}


static void
sum_chunk(void *ctx, uint32_t i, int thread)
{
    struct io *io = ctx;

    (void) thread;
    io->head->sums[i] = checksum(io->p->memory + (size_t) i * CHUNK,
                                 chunk_bytes(io->p, i));
}


/* The image where huge pages can be: among as much and one of addresses. */
static int
map_image(struct io *io, struct err *e)
{
    size_t   n = io->p->n_bytes;
    uint8_t *room = mmap(NULL, n + HUGE_PAGE, PROT_NONE, MAP_PRIVATE
                         | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (room == MAP_FAILED) {
        return err_set(e, "no addresses: %s", strerror(errno));
    }

    size_t   before = HUGE_PAGE - (uintptr_t) room % HUGE_PAGE;
    size_t   end = (before + n + PAGE - 1) / PAGE * PAGE;
    uint8_t *at = mmap(room + before, n, PROT_READ, MAP_PRIVATE | MAP_FIXED,
                       io->fd, (off_t) io->head_bytes);

    if (at == MAP_FAILED) {
        munmap(room, n + HUGE_PAGE);
        return err_set(e, "cannot map: %s", strerror(errno));
    }

    munmap(room, before);

    if (end < n + HUGE_PAGE) {
        munmap(room + end, n + HUGE_PAGE - end);
    }

    madvise(at, n, MADV_HUGEPAGE);
    io->memory = at;
    io->mapped = 1;

    return 0;
}


/* 1, or 0 with the reason in e. */
static int
load_from(struct io *io, struct err *e)
{
    const struct pack *p = io->p;
    struct stat        st;

    if (fstat(io->fd, &st) != 0 || !S_ISREG(st.st_mode)
        || (uint64_t) st.st_size != io->head_bytes + p->n_bytes)
    {
        err_set(e, "expected a file of %zu bytes, got %lld",
                io->head_bytes + p->n_bytes, (long long) st.st_size);
        return 0;
    }

    if (read_all(io->fd, io->head, io->head_bytes, 0) != 0
        || memcmp(io->head->magic, magic, sizeof(magic)) != 0
        || io->head->key != p->key || io->head->n_bytes != p->n_bytes)
    {
        err_set(e, "made from another model, or in another layout");
        return 0;
    }

    if (io->memory == NULL && map_image(io, e) != 0) {
        return 0;
    }

    p->b->ops->each(p->b, (uint32_t) n_chunks(p), check_chunk, io);

    if (io->bad) {
        if (io->mapped) {
            munmap(io->memory, p->n_bytes);
        }

        err_set(e, "damaged");
        return 0;
    }

    return 1;
}


int
pack_load(struct pack *p)
{
    struct err e = { "" };
    char       path[PATH_MAX];
    struct io  io = {
        .p = p, .head_bytes = head_bytes(p), .memory = p->memory, .fd = -1
    };
    int        rc = 0;

    if (pack_path(p, path, sizeof(path), &e) != 0) {
        return 0;               /* pack_save() will say so */
    }

    io.fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    io.head = calloc(1, io.head_bytes);

    if (io.fd >= 0 && io.head != NULL) {
        rc = load_from(&io, &e);

        if (rc == 1) {
            p->memory = io.memory;

        } else {
            log_line(LOG_LEVEL_NOTICE, "%s: %s; packing anew", path, e.text);
        }
    }

    if (io.fd >= 0) {
        close(io.fd);
    }

    free(io.head);

    return rc;
}


static int
save_to(struct io *io, struct err *e)
{
    const struct pack *p = io->p;

    memcpy(io->head->magic, magic, sizeof(magic));
    io->head->key = p->key;
    io->head->n_bytes = p->n_bytes;
    p->b->ops->each(p->b, (uint32_t) n_chunks(p), sum_chunk, io);

    return write_all(io->fd, io->head, io->head_bytes) == 0
           && write_all(io->fd, p->memory, p->n_bytes) == 0
           ? 0 : err_set(e, "%s", strerror(errno));
}


void
pack_save(const struct pack *p)
{
    struct err e = { "" };
    char       path[PATH_MAX], temp[PATH_MAX + 16];
    struct io  io = { .p = p, .head_bytes = head_bytes(p), .fd = -1 };

    if (pack_path(p, path, sizeof(path), &e) != 0) {
        log_line(LOG_LEVEL_WARN, "pack-cache: %s", e.text);
        return;
    }

    snprintf(temp, sizeof(temp), "%s.%ld", path, (long) getpid());
    io.fd = open(temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW,
                 0600);
    io.head = calloc(1, io.head_bytes);

    if (io.fd < 0) {
        log_line(LOG_LEVEL_WARN, "pack-cache: %s: %s", temp, strerror(errno));

    } else if (io.head == NULL || save_to(&io, &e) != 0
               || rename(temp, path) != 0)
    {
        log_line(LOG_LEVEL_WARN, "pack-cache: %s: cannot write: %s", temp,
                 e.text[0] != '\0' ? e.text : strerror(errno));
        unlink(temp);
    }

    if (io.fd >= 0) {
        close(io.fd);
    }

    free(io.head);
}
