/*
 * stop.h - stop strings in a stream of text: what of it may be shown.
 *
 * The mental model.  Every stop string is a Knuth-Morris-Pratt automaton that
 * sees each byte once.  Text that may still turn out to be the start of one is
 * held back; so a stop string never leaks, however tokens cut it.
 *
 * Must not know tokens or events.
 */
#ifndef MOE_SERVE_STOP_H
#define MOE_SERVE_STOP_H

#include "base.h"

/* One stop string, compiled; read-only, shared by the choices of a job. */
struct serve_stop_pattern {
    struct slice    text;
    uint16_t       *border;     /* (text.n) longest proper border up to here */
};

/* One stream. */
struct serve_stop {
    const struct serve_stop_pattern *patterns;
    uint32_t    n_patterns;
    uint16_t   *matched;        /* (n_patterns) bytes that match by now */
    struct buf  text;           /* held back from before, and the new text */
};

/* Compiles into the arena, which has to outlive it.  0, -1: no memory. */
int serve_stop_compile(struct arena *a, const struct slice *texts, uint32_t n,
                       struct serve_stop_pattern **patterns);

/* A stream; n_text is how many bytes come at most at a time. */
int serve_stop_begin(struct serve_stop *s, struct arena *a,
                     const struct serve_stop_pattern *patterns, uint32_t n,
                     size_t n_text);
void serve_stop_free(struct serve_stop *s);

/*
 * Feeds text; *shown is what may be shown now, borrowed until the next call.
 * 1: a stop string came, *shown ends before it and all is over; 0: go on;
 * -1: no memory.
 */
int serve_stop_text(struct serve_stop *s, const char *p, size_t n,
                    struct slice *shown);

/* The stream is over: what was held back was text after all. */
struct slice serve_stop_end(struct serve_stop *s);

#endif /* MOE_SERVE_STOP_H */
