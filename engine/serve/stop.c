/*
 * stop.c - see serve/stop.h.
 */
#include "serve/stop.h"

#include <assert.h>
#include <string.h>


int
serve_stop_compile(struct arena *a, const struct slice *texts, uint32_t n,
                   struct serve_stop_pattern **patterns)
{
    *patterns = arena_alloc(a, n * sizeof(**patterns));

    if (*patterns == NULL) {
        return -1;
    }

    for (uint32_t i = 0; i < n; i++) {
        struct serve_stop_pattern *t = &(*patterns)[i];
        size_t                     len = texts[i].n;

        assert(len >= 1 && len <= UINT16_MAX);

        t->text.p = arena_dup(a, texts[i].p, len);
        t->text.n = len;
        t->border = arena_alloc(a, len * sizeof(*t->border));

        if (t->text.p == NULL || t->border == NULL) {
            return -1;
        }

        for (size_t k = 1, b = 0; k < len; k++) {
            while (b > 0 && t->text.p[k] != t->text.p[b]) {
                b = t->border[b - 1];
            }

            b += t->text.p[k] == t->text.p[b];
            t->border[k] = (uint16_t) b;
        }
    }

    return 0;
}


int
serve_stop_begin(struct serve_stop *s, struct arena *a,
                 const struct serve_stop_pattern *patterns, uint32_t n,
                 size_t n_text)
{
    size_t longest = 0;

    memset(s, 0, sizeof(*s));
    s->patterns = patterns;
    s->n_patterns = n;
    s->matched = arena_alloc(a, n * sizeof(*s->matched));

    for (uint32_t i = 0; i < n; i++) {
        longest = patterns[i].text.n > longest ? patterns[i].text.n : longest;
    }

    return s->matched == NULL || buf_reserve(&s->text, longest + n_text) != 0
           ? -1 : 0;
}


void
serve_stop_free(struct serve_stop *s)
{
    buf_free(&s->text);
}


/* One byte into one automaton; 1: the whole string is there. */
static int
step(const struct serve_stop_pattern *t, uint16_t *matched, char c)
{
    size_t m = *matched;

    while (m > 0 && t->text.p[m] != c) {
        m = t->border[m - 1];
    }

    m += t->text.p[m] == c;
    *matched = (uint16_t) m;

    return m == t->text.n;
}


/* What was shown at the last call goes away, what was held stays. */
static void
drop_shown(struct serve_stop *s)
{
    size_t held = 0;

    for (uint32_t i = 0; i < s->n_patterns; i++) {
        held = s->matched[i] > held ? s->matched[i] : held;
    }

    if (held > 0) {
        memmove(s->text.p, s->text.p + s->text.n - held, held);
    }

    s->text.n = held;
}


int
serve_stop_text(struct serve_stop *s, const char *p, size_t n,
                struct slice *shown)
{
    drop_shown(s);

    size_t held = s->text.n;

    if (buf_add(&s->text, p, n) != 0) {
        return -1;
    }

    shown->p = s->text.p;
    shown->n = s->text.n;

    for (size_t at = held; at < s->text.n; at++) {
        size_t longest = 0;

        for (uint32_t i = 0; i < s->n_patterns; i++) {
            const struct serve_stop_pattern *t = &s->patterns[i];

            if (step(t, &s->matched[i], s->text.p[at]) && t->text.n > longest) {
                longest = t->text.n;
            }
        }

        if (longest > 0) {
            shown->n = at + 1 - longest;
            return 1;
        }
    }

    for (uint32_t i = 0; i < s->n_patterns; i++) {
        size_t rest = s->text.n - s->matched[i];

        shown->n = rest < shown->n ? rest : shown->n;
    }

    return 0;
}


struct slice
serve_stop_end(struct serve_stop *s)
{
    drop_shown(s);

    struct slice rest = { s->text.p, s->text.n };

    memset(s->matched, 0, s->n_patterns * sizeof(*s->matched));
    s->text.n = 0;

    return rest;
}
