/*
 * base.c - see base.h.
 */
#include "base.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>


/* What is quoted from a file may have line ends and other control bytes; and
 * its last character may not have had room. */
static void
make_line(struct err *e)
{
    char  *p = e->text;
    size_t n = strlen(p), lead = n;

    for (size_t i = 0; i < n; i++) {
        if ((unsigned char) p[i] < 0x20 || p[i] == 0x7f) {
            p[i] = ' ';
        }
    }

    if (n < sizeof(e->text) - 1) {
        return;
    }

    do {
        lead--;
    } while (n - lead < 4 && ((unsigned char) p[lead] & 0xc0) == 0x80);

    unsigned char c = (unsigned char) p[lead];

    if (n - lead < (c >= 0xf0 ? 4u : c >= 0xe0 ? 3u : c >= 0xc0 ? 2u : 1u)) {
        p[lead] = '\0';
    }
}


int
err_set(struct err *e, const char *fmt, ...)
{
    if (e != NULL) {
        va_list ap;

        va_start(ap, fmt);
        vsnprintf(e->text, sizeof(e->text), fmt, ap);
        va_end(ap);
        make_line(e);
    }

    return -1;
}


int
err_prefix(struct err *e, const char *fmt, ...)
{
    if (e != NULL) {
        struct err old = *e;
        va_list    ap;

        va_start(ap, fmt);
        int n = vsnprintf(e->text, sizeof(e->text), fmt, ap);
        va_end(ap);

        if (n >= 0 && (size_t) n < sizeof(e->text)) {
            snprintf(e->text + n, sizeof(e->text) - (size_t) n, ": %s",
                     old.text);
        }

        make_line(e);
    }

    return -1;
}


int
buf_reserve(struct buf *b, size_t n)
{
    size_t want;

    if (size_add(b->n, n, &want) != 0 || size_add(want, 1, &want) != 0) {
        return -1;
    }

    if (want <= b->cap) {
        return 0;
    }

    if (b->cap_max != 0 && want > b->cap_max) {
        return -1;
    }

    size_t cap = b->cap < 64 ? 64 : b->cap;

    while (cap < want) {
        if (cap > SIZE_MAX / 2) {
            return -1;
        }

        cap *= 2;
    }

    char *p = realloc(b->p, cap);
    if (p == NULL) {
        return -1;
    }

    b->p = p;
    b->cap = cap;
    b->p[b->n] = '\0';

    return 0;
}


int
buf_add(struct buf *b, const void *p, size_t n)
{
    if (buf_reserve(b, n) != 0) {
        return -1;
    }

    if (n != 0) {
        memcpy(b->p + b->n, p, n);
    }

    b->n += n;
    b->p[b->n] = '\0';

    return 0;
}


int
buf_addc(struct buf *b, char c)
{
    return buf_add(b, &c, 1);
}


int
buf_adds(struct buf *b, const char *s)
{
    return buf_add(b, s, strlen(s));
}


int
buf_addf(struct buf *b, const char *fmt, ...)
{
    va_list ap, again;

    va_start(ap, fmt);
    va_copy(again, ap);

    int n = vsnprintf(NULL, 0, fmt, ap);
    int rc = -1;

    if (n >= 0 && buf_reserve(b, (size_t) n) == 0) {
        vsnprintf(b->p + b->n, (size_t) n + 1, fmt, again);
        b->n += (size_t) n;
        rc = 0;
    }

    va_end(again);
    va_end(ap);

    return rc;
}


void
buf_reset(struct buf *b)
{
    b->n = 0;

    if (b->p != NULL) {
        b->p[0] = '\0';
    }
}


void
buf_free(struct buf *b)
{
    free(b->p);
    b->p = NULL;
    b->n = 0;
    b->cap = 0;
}


#define ARENA_BLOCK_BYTES   (16 * 1024)

struct arena_block {
    struct arena_block *next;
    size_t              n;      /* used */
    size_t              cap;
    size_t              pad;    /* keeps data[] aligned to 16 */
    char                data[];
};


void *
arena_alloc(struct arena *a, size_t n)
{
    size_t need;

    if (size_add(n, 15, &need) != 0) {
        return NULL;
    }

    need &= ~(size_t) 15;

    if (a->limit != 0 && (need > a->limit || a->n_bytes > a->limit - need)) {
        return NULL;
    }

    struct arena_block *b = a->blocks;

    if (b == NULL || b->cap - b->n < need) {
        size_t cap = need > ARENA_BLOCK_BYTES ? need : ARENA_BLOCK_BYTES;
        size_t total;

        if (size_add(cap, sizeof(*b), &total) != 0) {
            return NULL;
        }

        b = malloc(total);
        if (b == NULL) {
            return NULL;
        }

        b->n = 0;
        b->cap = cap;
        b->next = a->blocks;
        a->blocks = b;
    }

    void *p = b->data + b->n;

    memset(p, 0, need);
    b->n += need;
    a->n_bytes += need;

    return p;
}


void *
arena_dup(struct arena *a, const void *p, size_t n)
{
    char *copy = arena_alloc(a, n + 1);

    if (copy != NULL && n != 0) {
        memcpy(copy, p, n);
    }

    return copy;
}


void
arena_reset(struct arena *a)
{
    while (a->blocks != NULL && a->blocks->next != NULL) {
        struct arena_block *b = a->blocks;

        a->blocks = b->next;
        free(b);
    }

    if (a->blocks != NULL) {
        a->blocks->n = 0;
    }

    a->n_bytes = 0;
}


void
arena_free(struct arena *a)
{
    arena_reset(a);
    free(a->blocks);
    a->blocks = NULL;
}


enum log_level log_max = LOG_LEVEL_NOTICE;


void
log_line(enum log_level level, const char *fmt, ...)
{
    static const char *const names[] = {
        "error", "warn", "notice", "info", "debug"
    };

    if (level > log_max) {
        return;
    }

    char       line[1024];
    time_t     now = time(NULL);
    struct tm  tm;
    va_list    ap;

    localtime_r(&now, &tm);

    size_t n = strftime(line, sizeof(line), "%Y-%m-%d %H:%M:%S", &tm);

    n += (size_t) snprintf(line + n, sizeof(line) - n, " [%s] %d: ",
                           names[level], (int) getpid());

    va_start(ap, fmt);
    int m = vsnprintf(line + n, sizeof(line) - n - 1, fmt, ap);
    va_end(ap);

    if (m > 0) {
        n += (size_t) m < sizeof(line) - n - 1 ? (size_t) m
                                               : sizeof(line) - n - 2;
    }

    line[n++] = '\n';

    /* A log that cannot be written has nowhere to say so. */
    ssize_t ignored = write(STDERR_FILENO, line, n);
    (void) ignored;
}


uint64_t
clock_us(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);

    return (uint64_t) ts.tv_sec * 1000000 + (uint64_t) ts.tv_nsec / 1000;
}


int
size_mul(size_t a, size_t b, size_t *r)
{
    return __builtin_mul_overflow(a, b, r) ? -1 : 0;
}


int
size_add(size_t a, size_t b, size_t *r)
{
    return __builtin_add_overflow(a, b, r) ? -1 : 0;
}


int
size_parse(const char *s, uint64_t *r)
{
    uint64_t v = 0;
    unsigned shift = 0;

    if (*s < '0' || *s > '9') {
        return -1;
    }

    for (; *s >= '0' && *s <= '9'; s++) {
        if (__builtin_mul_overflow(v, 10u, &v)
            || __builtin_add_overflow(v, (uint64_t) (*s - '0'), &v))
        {
            return -1;
        }
    }

    switch (*s) {
    case 't': case 'T': shift = 40; s++; break;
    case 'g': case 'G': shift = 30; s++; break;
    case 'm': case 'M': shift = 20; s++; break;
    case 'k': case 'K': shift = 10; s++; break;
    }

    if (*s != '\0' || v > UINT64_MAX >> shift) {
        return -1;
    }

    *r = v << shift;

    return 0;
}


int
file_read(const char *path, size_t max, struct buf *out, struct err *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0) {
        return err_set(e, "%s: cannot open: %s", path, strerror(errno));
    }

    struct stat st;
    int         rc = -1;

    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        err_set(e, "%s: not a regular file", path);
        goto done;
    }

    if ((uint64_t) st.st_size > max) {
        err_set(e, "%s: too large: expected at most %zu bytes, got %llu",
                path, max, (unsigned long long) st.st_size);
        goto done;
    }

    size_t n = (size_t) st.st_size;

    if (buf_reserve(out, n) != 0) {
        err_set(e, "%s: no memory for %zu bytes", path, n);
        goto done;
    }

    while (n != 0) {
        ssize_t got = read(fd, out->p + out->n, n);

        if (got < 0 && errno == EINTR) {
            continue;
        }

        if (got <= 0) {
            err_set(e, "%s: cannot read: %s", path,
                    got == 0 ? "file shrank" : strerror(errno));
            goto done;
        }

        out->n += (size_t) got;
        n -= (size_t) got;
    }

    out->p[out->n] = '\0';
    rc = 0;

done:

    close(fd);

    return rc;
}
