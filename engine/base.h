/*
 * base.h - what every file of the engine may use: errors, growing buffers,
 * arenas, log lines, the clock.  Knows nothing above libc.
 */
#ifndef MOE_BASE_H
#define MOE_BASE_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#define BASE_PRINTF(f, a)   __attribute__((format(printf, f, a)))
#define BASE_COUNT(a)       (sizeof(a) / sizeof((a)[0]))


/* Why something could not be: what, where, expected and got, in one line.
 * Filled once by the layer that knows, logged once by the one that handles. */
struct err {
    char    text[512];          /* NUL-terminated, no newline */
};

/* Fills e (which may be NULL) and returns -1, so that callers can return it. */
int err_set(struct err *e, const char *fmt, ...) BASE_PRINTF(2, 3);

/* Puts "fmt: " before what e says: "model/x.json: line 3: ...".  Returns -1. */
int err_prefix(struct err *e, const char *fmt, ...) BASE_PRINTF(2, 3);


/* Bytes borrowed from somebody else. */
struct slice {
    const char *p;
    size_t      n;
};


/*
 * A buffer that grows.  Zero-initialised is empty.  p is NUL-terminated after
 * every successful call (the NUL is not counted in n).  Functions return 0, or
 * -1 when memory is out or cap_max would be passed: then nothing was added.
 */
struct buf {
    char   *p;
    size_t  n;
    size_t  cap;
    size_t  cap_max;            /* 0: no limit */
};

int buf_add(struct buf *b, const void *p, size_t n);
int buf_addc(struct buf *b, char c);
int buf_adds(struct buf *b, const char *s);
int buf_addf(struct buf *b, const char *fmt, ...) BASE_PRINTF(2, 3);
int buf_reserve(struct buf *b, size_t n);   /* room for n more bytes */
void buf_reset(struct buf *b);              /* n = 0, memory kept */
void buf_free(struct buf *b);


/*
 * An arena: allocations that die together.  Zero-initialised is empty.
 * arena_alloc returns zeroed memory aligned to 16, or NULL when memory is out
 * or the arena's limit would be passed.
 */
struct arena_block;

struct arena {
    struct arena_block *blocks;
    size_t              n_bytes;    /* handed out */
    size_t              limit;      /* 0: none */
};

void *arena_alloc(struct arena *a, size_t n);
void *arena_dup(struct arena *a, const void *p, size_t n);  /* NUL added */
void arena_reset(struct arena *a);      /* keeps one block */
void arena_free(struct arena *a);


enum log_level {
    LOG_LEVEL_ERROR,
    LOG_LEVEL_WARN,
    LOG_LEVEL_NOTICE,
    LOG_LEVEL_INFO,
    LOG_LEVEL_DEBUG
};

/* Lines above this level are dropped; NOTICE at start. */
extern enum log_level log_max;

/* "2026-11-23 12:34:56 [notice] 4242: text" in one write(2) to stderr. */
void log_line(enum log_level level, const char *fmt, ...) BASE_PRINTF(2, 3);


/* CLOCK_MONOTONIC in microseconds. */
uint64_t clock_us(void);


/* a * b and a + b, or -1 when they do not fit. */
int size_mul(size_t a, size_t b, size_t *r);
int size_add(size_t a, size_t b, size_t *r);

/* "10m", "2g", "4096": bytes; suffixes k m g t are powers of 1024. */
int size_parse(const char *s, uint64_t *r);

/* Reads a whole file of at most max bytes into a buf. */
int file_read(const char *path, size_t max, struct buf *out, struct err *e);

#endif /* MOE_BASE_H */
