/*
 * form.c - normal forms and lower case, of unicode.h.
 *
 * unicode_init() unpacks the tables once: for each block of 256 characters
 * that has any, what they decompose to and their combining class.  Text is
 * worked on in spans: a starter that composes with nothing before it ends the
 * span, so a span is seldom longer than two characters, and ASCII is copied.
 */
#include "unicode/unicode.h"
#include "unicode/impl.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define CLASS_SECOND    255     /* a starter that composes with one before */

#define L_BASE  0x1100u         /* Hangul, chapter 3.12 of the standard */
#define V_BASE  0x1161u
#define T_BASE  0x11a7u
#define S_BASE  0xac00u
#define V_COUNT 21u
#define T_COUNT 28u
#define S_COUNT 11172u

struct entry {                  /* of one character */
    uint16_t canonical;         /* 1 + index in texts; 0: itself */
    uint16_t compatible;
};

struct pair {
    uint32_t first, second, whole;      /* whole = 0: an empty slot */
};

struct move {                   /* from, from + step, ... run times */
    uint32_t from, step, run;
    int32_t  by;
};

struct stand_in {               /* run characters from from on are like to */
    uint32_t from, run, to;
};

/* Filled once, before any text is read; read-only afterwards. */
static struct {
    struct entry *entry[0x1100];        /* by cp >> 8, 256 of them */
    uint8_t      *class[0x1100];
    uint32_t     *texts;                /* length, characters */
    uint32_t      n_text, cap_text;
    struct pair  *pairs;                /* at most half full */
    uint32_t      n_slot;
    struct move  *lower;
    uint32_t      n_lower;
    struct stand_in *stand_ins;
    uint32_t      n_stand_in;
    uint8_t       has_stand_in[0x1100]; /* by cp >> 8 */
    int           is_ready;
} tables;

static pthread_once_t tables_once = PTHREAD_ONCE_INIT;


/* A span of characters on its way. */
struct span {
    uint32_t   *cp;
    size_t      n, cap;
    uint32_t   *sorted;         /* (cap) */
    struct buf *out;
    int         composes;
    int         compatible;
};


static uint32_t
number(const char **p)
{
    uint32_t v = 0;

    for (unsigned shift = 0; ; shift += 5) {
        int      c = *(*p)++;
        uint32_t d = (uint32_t) (c <= '9' && c >= '0' ? c - '0'
                                 : c >= 'A' && c <= 'Z' ? c - 'A' + 10
                                 : c >= 'a' && c <= 'z' ? c - 'a' + 36
                                 : c == '-' ? 62 : 63);

        v |= (d & 31) << shift;

        if (d < 32) {
            return v;
        }
    }
}


static int32_t
signed_number(const char **p)
{
    uint32_t v = number(p);

    return v & 1 ? -(int32_t) (v >> 1) - 1 : (int32_t) (v >> 1);
}


static struct entry *
entry_at(uint32_t cp)
{
    struct entry **block = &tables.entry[cp >> 8];

    if (*block == NULL) {
        *block = calloc(256, sizeof(**block));
    }

    return *block != NULL ? &(*block)[cp & 255] : NULL;
}


static int
class_set(uint32_t cp, uint8_t class)
{
    uint8_t **block = &tables.class[cp >> 8];

    if (*block == NULL) {
        *block = calloc(256, 1);
    }

    if (*block == NULL) {
        return -1;
    }

    if ((*block)[cp & 255] == 0) {
        (*block)[cp & 255] = class;
    }

    return 0;
}


/* The index of a text, plus 1; 0: no memory. */
static uint16_t
text_add(const uint32_t *cp, uint32_t n)
{
    if (tables.n_text + n + 1 > tables.cap_text) {
        uint32_t  cap = tables.cap_text == 0 ? 8192 : tables.cap_text * 2;
        uint32_t *p = realloc(tables.texts, cap * sizeof(*p));

        if (p == NULL) {
            return 0;
        }

        tables.texts = p;
        tables.cap_text = cap;
    }

    uint32_t at = tables.n_text;

    tables.texts[at] = n;
    memcpy(tables.texts + at + 1, cp, n * sizeof(*cp));
    tables.n_text += n + 1;

    return (uint16_t) (at + 1);
}


static struct pair *
pair_find(uint32_t first, uint32_t second)
{
    uint32_t h = (first * 0x9e3779b1u) ^ (second * 0x85ebca6bu);
    uint32_t i = (h ^ h >> 15) & (tables.n_slot - 1);

    while (tables.pairs[i].whole != 0
           && (tables.pairs[i].first != first
               || tables.pairs[i].second != second))
    {
        i = (i + 1) & (tables.n_slot - 1);
    }

    return &tables.pairs[i];
}


static int
init_canonical(void)
{
    uint32_t cp = 0;

    for (const char *p = unicode_canonical; *p != '\0'; ) {
        cp += number(&p);

        uint32_t first = (uint32_t) ((int32_t) cp - signed_number(&p));
        uint32_t second = number(&p);
        uint32_t text[2] = { first, second >> 1 };
        struct entry *e = entry_at(cp);

        if (e == NULL) {
            return -1;
        }

        e->canonical = text_add(text, text[1] != 0 ? 2 : 1);

        if (e->canonical == 0) {
            return -1;
        }

        if (second & 1) {
            *pair_find(first, text[1]) = (struct pair) { first, text[1], cp };

            if (class_set(text[1], CLASS_SECOND) != 0) {
                return -1;
            }
        }
    }

    return 0;
}


static int
init_compatible(void)
{
    uint32_t cp = 0;

    for (const char *p = unicode_compatible; *p != '\0'; ) {
        uint32_t text[32];

        cp += number(&p);

        uint32_t n = number(&p) + 1;
        uint32_t run = n == 1 ? number(&p) : 1;

        if (n == 1) {
            text[0] = (uint32_t) ((int32_t) cp + signed_number(&p));
        }

        for (uint32_t i = 0; n > 1 && i < n; i++) {
            text[i] = number(&p);
        }

        for (uint32_t i = 0; i < run; i++, text[0]++) {
            struct entry *e = entry_at(cp + i);

            if (e == NULL || (e->compatible = text_add(text, n)) == 0) {
                return -1;
            }
        }
    }

    return 0;
}


static int
init_classes(void)
{
    uint32_t cp = 0;

    for (const char *p = unicode_classes; *p != '\0'; ) {
        cp += number(&p);

        uint32_t run = number(&p);
        uint32_t class = number(&p);

        for (uint32_t i = 0; i < run; i++) {
            if (class_set(cp + i, (uint8_t) class) != 0) {
                return -1;
            }
        }
    }

    return 0;
}


static int
init_lower(void)
{
    uint32_t cp = 0;

    tables.lower = calloc(strlen(unicode_lowercase) / 4,
                          sizeof(*tables.lower));
    if (tables.lower == NULL) {
        return -1;
    }

    for (const char *p = unicode_lowercase; *p != '\0'; tables.n_lower++) {
        struct move *m = &tables.lower[tables.n_lower];

        cp += number(&p);
        m->from = cp;
        m->step = number(&p);
        m->run = number(&p);
        m->by = signed_number(&p);
    }

    return 0;
}


static int
init_stand_ins(void)
{
    uint32_t cp = 0;

    tables.stand_ins = calloc(strlen(unicode_stand_ins) / 3,
                              sizeof(*tables.stand_ins));
    if (tables.stand_ins == NULL) {
        return -1;
    }

    for (const char *p = unicode_stand_ins; *p != '\0'; tables.n_stand_in++) {
        struct stand_in *s = &tables.stand_ins[tables.n_stand_in];

        cp += number(&p);
        s->from = cp;
        s->run = number(&p);
        s->to = (uint32_t) ((int32_t) cp + signed_number(&p));

        for (uint32_t i = cp >> 8; i <= (cp + s->run - 1) >> 8; i++) {
            tables.has_stand_in[i] = 1;
        }
    }

    return 0;
}


static void
init_tables(void)
{
    tables.n_slot = 4096;       /* of 960 pairs */
    tables.pairs = calloc(tables.n_slot, sizeof(*tables.pairs));

    /* classes first: a mark that composes keeps its own */
    tables.is_ready = tables.pairs != NULL && init_classes() == 0
                      && init_canonical() == 0 && init_compatible() == 0
                      && init_lower() == 0 && init_stand_ins() == 0;
}


int
unicode_init(void)
{
    return pthread_once(&tables_once, init_tables) == 0 && tables.is_ready
           ? 0 : -1;
}


static uint8_t
class_of(uint32_t cp)
{
    const uint8_t *block = tables.class[cp >> 8];

    if (cp >= V_BASE && cp < T_BASE + T_COUNT
        && (cp < V_BASE + V_COUNT || cp > T_BASE))
    {
        return CLASS_SECOND;
    }

    return block != NULL ? block[cp & 255] : 0;
}


/* Stable, by combining class, all of which are above 0.  A counting sort: a
 * hostile text may be one span. */
static void
sort_marks(struct span *s, size_t from, size_t to)
{
    size_t at[256] = { 0 }, sum = 0;

    if (to - from < 2) {
        return;
    }

    if (to - from == 2) {
        if (class_of(s->cp[from]) > class_of(s->cp[from + 1])) {
            uint32_t cp = s->cp[from];

            s->cp[from] = s->cp[from + 1];
            s->cp[from + 1] = cp;
        }

        return;
    }

    for (size_t i = from; i < to; i++) {
        at[class_of(s->cp[i])]++;
    }

    for (int c = 0; c < 256; c++) {
        size_t n = at[c];

        at[c] = sum;
        sum += n;
    }

    for (size_t i = from; i < to; i++) {
        s->sorted[at[class_of(s->cp[i])]++] = s->cp[i];
    }

    memcpy(s->cp + from, s->sorted, (to - from) * sizeof(*s->cp));
}


static void
sort_span(struct span *s)
{
    size_t from = 0;

    for (size_t i = 0; i <= s->n; i++) {
        uint8_t class = i < s->n ? class_of(s->cp[i]) : 0;

        if (class == 0 || class == CLASS_SECOND) {
            sort_marks(s, from, i);
            from = i + 1;
        }
    }
}


/* 0: they do not compose. */
static uint32_t
compose_pair(uint32_t a, uint32_t b)
{
    if (a - L_BASE < 19 && b - V_BASE < V_COUNT) {
        return S_BASE + ((a - L_BASE) * V_COUNT + b - V_BASE) * T_COUNT;
    }

    if (a - S_BASE < S_COUNT && (a - S_BASE) % T_COUNT == 0 && b > T_BASE
        && b < T_BASE + T_COUNT)
    {
        return a + b - T_BASE;
    }

    return pair_find(a, b)->whole;
}


/* A mark composes with the last starter unless one of its own class, or a
 * starter, stands between. */
static void
compose_span(struct span *s)
{
    size_t   starter = SIZE_MAX, n = 0;
    unsigned last = 0;          /* class of what stands before, 0: nothing */

    for (size_t i = 0; i < s->n; i++) {
        uint32_t cp = s->cp[i];
        unsigned class = class_of(cp);

        class = class == CLASS_SECOND ? 0 : class;

        if (starter != SIZE_MAX
            && (n == starter + 1 || (last != 0 && last < class)))
        {
            uint32_t whole = compose_pair(s->cp[starter], cp);

            if (whole != 0) {
                s->cp[starter] = whole;
                continue;
            }
        }

        if (class == 0) {
            starter = n;
        }

        last = class;
        s->cp[n++] = cp;
    }

    s->n = n;
}


static int
flush(struct span *s)
{
    char text[4];

    if (s->n > 1) {
        sort_span(s);

        if (s->composes) {
            compose_span(s);
        }
    }

    for (size_t i = 0; i < s->n; i++) {
        if (buf_add(s->out, text, unicode_encode(s->cp[i], text)) != 0) {
            return -1;
        }
    }

    s->n = 0;

    return 0;
}


static int
put(struct span *s, uint32_t cp)
{
    if (s->n > 0 && class_of(cp) == 0 && flush(s) != 0) {
        return -1;
    }

    if (s->n == s->cap) {
        size_t    cap = s->cap == 0 ? 64 : s->cap * 2;
        uint32_t *a = realloc(s->cp, cap * sizeof(*a));

        s->cp = a != NULL ? a : s->cp;

        uint32_t *b = realloc(s->sorted, cap * sizeof(*b));

        s->sorted = b != NULL ? b : s->sorted;

        if (a == NULL || b == NULL) {
            return -1;
        }

        s->cap = cap;
    }

    s->cp[s->n++] = cp;

    return 0;
}


/* Puts what cp decomposes to, which may decompose again. */
static int
put_decomposed(struct span *s, uint32_t cp)
{
    if (cp - S_BASE < S_COUNT) {
        uint32_t i = cp - S_BASE;

        return put(s, L_BASE + i / (V_COUNT * T_COUNT))
               | put(s, V_BASE + i / T_COUNT % V_COUNT)
               | (i % T_COUNT ? put(s, T_BASE + i % T_COUNT) : 0);
    }

    const struct entry *block = tables.entry[cp >> 8];

    if (block == NULL) {
        return put(s, cp);
    }

    const struct entry *e = &block[cp & 255];
    uint16_t            at = s->compatible && e->compatible != 0
                             ? e->compatible : e->canonical;

    if (at == 0) {
        return put(s, cp);
    }

    const uint32_t *text = tables.texts + at - 1;

    for (uint32_t i = 1; i <= text[0]; i++) {
        if (put_decomposed(s, text[i]) != 0) {
            return -1;
        }
    }

    return 0;
}


int
unicode_form(const char *p, size_t n, int composes, int compatible,
             struct buf *out)
{
    struct span s = { .out = out, .composes = composes,
                      .compatible = compatible };
    int         rc = unicode_init();

    for (size_t i = 0; rc == 0 && i < n; ) {
        size_t   ascii = i;
        uint32_t cp;

        while (ascii < n && (unsigned char) p[ascii] < 0x80) {
            ascii++;
        }

        /* all but the last, which a mark may follow */
        if (ascii - i > 1) {
            rc = flush(&s) | buf_add(out, p + i, ascii - i - 1);
            i = ascii - 1;
        }

        if (rc == 0) {
            int len = unicode_decode(p + i, n - i, &cp);

            rc = put_decomposed(&s, cp);
            i += (size_t) (len > 0 ? len : len < 0 ? -len : 1);
        }
    }

    rc = rc == 0 ? flush(&s) : -1;
    free(s.cp);
    free(s.sorted);

    return rc == 0 ? 0 : -1;
}


static uint32_t
lower(uint32_t cp)
{
    uint32_t lo = 0, hi = tables.n_lower;

    /* runs of step 2 may lie in one another: look at the two before */
    while (lo < hi) {
        uint32_t mid = (lo + hi) / 2;

        if (tables.lower[mid].from <= cp) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }

    for (uint32_t i = lo; i > 0 && i + 2 > lo; i--) {
        const struct move *m = &tables.lower[i - 1];

        if ((cp - m->from) % m->step == 0 && (cp - m->from) / m->step < m->run)
        {
            return (uint32_t) ((int32_t) cp + m->by);
        }
    }

    return cp;
}


int
unicode_lower(const char *p, size_t n, struct buf *out)
{
    uint32_t cp;
    char     text[4];
    int      rc = unicode_init();

    for (size_t i = 0; rc == 0 && i < n; ) {
        int len = unicode_decode(p + i, n - i, &cp);

        rc = cp == 0x130 ? buf_adds(out, "i\xcc\x87")
             : buf_add(out, text, unicode_encode(lower(cp), text));
        i += (size_t) (len > 0 ? len : len < 0 ? -len : 1);
    }

    return rc;
}


/* cp itself where there is none. */
static uint32_t
stand_in(uint32_t cp)
{
    uint32_t lo = 0, hi = tables.n_stand_in;

    while (tables.has_stand_in[cp >> 8] && lo < hi) {
        uint32_t               mid = (lo + hi) / 2;
        const struct stand_in *s = &tables.stand_ins[mid];

        if (cp < s->from) {
            hi = mid;

        } else if (cp - s->from >= s->run) {
            lo = mid + 1;

        } else {
            return s->to;
        }
    }

    return cp;
}


int
unicode_stand_in(const char *p, size_t n, struct buf *out)
{
    size_t   from = out->n;
    uint32_t cp;

    for (size_t i = 0; i < n; ) {
        /* the first is U+088F, of three bytes */
        if ((unsigned char) p[i] < 0xe0) {
            i++;
            continue;
        }

        int len = unicode_decode(p + i, n - i, &cp);

        if (len <= 0 || unicode_init() != 0) {
            return len <= 0 ? 0 : -1;
        }

        uint32_t other = stand_in(cp);

        if (other != cp) {
            if (out->n == from && buf_add(out, p, n) != 0) {
                return -1;
            }

            unicode_encode(other, out->p + from + i);
        }

        i += (size_t) len;
    }

    return out->n > from;
}
