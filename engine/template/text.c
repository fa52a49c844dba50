/*
 * text.c - text as Python sees it: code points, its white space, its
 * case.  In: UTF-8 that was checked (the template's source when it was
 * compiled, JSON by jansson).  Must not know what the text is for.
 */
#include "template/impl.h"

#include <string.h>


size_t
ttext_count(const char *s, size_t n)
{
    size_t points = 0;

    for (size_t i = 0; i < n; i++) {
        points += ((unsigned char) s[i] & 0xc0) != 0x80;
    }

    return points;
}


size_t
ttext_step(const char *s, size_t n, size_t i)
{
    size_t k = i + 1;

    while (k < n && ((unsigned char) s[k] & 0xc0) == 0x80) {
        k++;
    }

    return k - i;
}


size_t
ttext_back(const char *s, size_t i)
{
    size_t k = i - 1;

    while (k > 0 && ((unsigned char) s[k] & 0xc0) == 0x80) {
        k--;
    }

    return i - k;
}


int32_t
ttext_point(const char *s, size_t n, size_t i)
{
    size_t   len = ttext_step(s, n, i);
    uint32_t c = (unsigned char) s[i];

    if (len == 1) {
        return (int32_t) c;
    }

    c &= 0x7fu >> len;

    for (size_t k = 1; k < len && k < 4; k++) {
        c = c << 6 | ((unsigned char) s[i + k] & 0x3f);
    }

    return (int32_t) c;
}


size_t
ttext_encode(uint32_t c, char *p)
{
    if (c < 0x80) {
        p[0] = (char) c;
        return 1;
    }

    size_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;

    for (size_t k = n; k-- > 1; c >>= 6) {
        p[k] = (char) (0x80 | (c & 0x3f));
    }

    p[0] = (char) ((0xf00u >> n & 0xf0) | c);

    return n;
}


int
ttext_valid(const char *s, size_t n)
{
    const unsigned char *p = (const unsigned char *) s;

    for (size_t i = 0; i < n; ) {
        size_t len = p[i] < 0x80 ? 1 : p[i] < 0xc2 ? 0 : p[i] < 0xe0 ? 2
                     : p[i] < 0xf0 ? 3 : p[i] < 0xf5 ? 4 : 0;

        if (len == 0 || len > n - i) {
            return 0;
        }

        for (size_t k = 1; k < len; k++) {
            if ((p[i + k] & 0xc0) != 0x80) {
                return 0;
            }
        }

        /* Overlong forms, surrogates, past U+10FFFF. */
        if ((p[i] == 0xe0 && p[i + 1] < 0xa0)
            || (p[i] == 0xed && p[i + 1] > 0x9f)
            || (p[i] == 0xf0 && p[i + 1] < 0x90)
            || (p[i] == 0xf4 && p[i + 1] > 0x8f))
        {
            return 0;
        }

        i += len;
    }

    return 1;
}


int
ttext_is_space(int32_t c)
{
    return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85
           || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a)
           || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f
           || c == 0x3000;
}


size_t
ttext_lead(const char *s, size_t n)
{
    size_t i = 0;

    while (i < n && ttext_is_space(ttext_point(s, n, i))) {
        i += ttext_step(s, n, i);
    }

    return i;
}


size_t
ttext_trail(const char *s, size_t n)
{
    size_t i = n;

    while (i > 0) {
        size_t len = ttext_back(s, i);

        if (!ttext_is_space(ttext_point(s, n, i - len))) {
            break;
        }

        i -= len;
    }

    return n - i;
}


size_t
ttext_find(struct slice s, struct slice sub, size_t i)
{
    if (i > s.n || sub.n > s.n - i) {
        return SIZE_MAX;
    }

    if (sub.n == 0) {
        return i;
    }

    const char *p = memmem(s.p + i, s.n - i, sub.p, sub.n);

    return p != NULL ? (size_t) (p - s.p) : SIZE_MAX;
}


/*
 * Simple case mapping where upper and lower case lie a fixed distance apart or
 * alternate: Latin, Greek, Cyrillic, Armenian, Georgian's and Cherokee's
 * exceptions left out, since roles and titles are what templates map.
 */
static const struct {
    uint16_t first, last;       /* the upper ones */
    uint16_t delta;             /* to lower; 1: alternating, upper first */
} cases[] = {
    { 0x0041, 0x005a, 32 }, { 0x00c0, 0x00d6, 32 }, { 0x00d8, 0x00de, 32 },
    { 0x0100, 0x012e, 1 }, { 0x0132, 0x0136, 1 }, { 0x0139, 0x0147, 1 },
    { 0x014a, 0x0176, 1 }, { 0x0179, 0x017d, 1 }, { 0x01cd, 0x01db, 1 },
    { 0x01de, 0x01ee, 1 }, { 0x01f8, 0x021e, 1 }, { 0x0222, 0x0232, 1 },
    { 0x0388, 0x038a, 37 }, { 0x0391, 0x03a1, 32 }, { 0x03a3, 0x03ab, 32 },
    { 0x0400, 0x040f, 80 }, { 0x0410, 0x042f, 32 }, { 0x0460, 0x0480, 1 },
    { 0x048a, 0x04be, 1 }, { 0x04c1, 0x04cd, 1 }, { 0x04d0, 0x052e, 1 },
    { 0x0531, 0x0556, 48 }, { 0x1e00, 0x1e94, 1 }, { 0x1ea0, 0x1efe, 1 },
    { 0xff21, 0xff3a, 32 },
};


static uint32_t
map_point(uint32_t c, int upper)
{
    for (size_t i = 0; i < BASE_COUNT(cases); i++) {
        uint32_t first = cases[i].first;
        uint32_t last = cases[i].last;
        uint32_t delta = cases[i].delta;
        uint32_t from = upper ? c - delta : c;

        if (from < first || from > last
            || (delta == 1 && (from - first) % 2 != 0))
        {
            continue;
        }

        return upper ? from : c + delta;
    }

    return c;
}


/* Python's str.title() and capitalize() know a letter by its having a case. */
static int
is_cased(uint32_t c)
{
    return map_point(c, 0) != c || map_point(c, 1) != c || c == 0xdf;
}


int
ttext_case(struct render *r, const struct value *s, enum text_case how,
           struct value *out)
{
    char *to;
    int   in_word = 0;

    /* No mapping here is longer than what it maps, except that of U+00DF. */
    if (s->n > TEMPLATE_HEAP_MAX
        || (to = template_alloc(r, 2 * s->n + 1)) == NULL)
    {
        return template_fail(r, "no room to change the case of a string");
    }

    size_t n = 0;

    for (size_t i = 0; i < s->n; i += ttext_step(s->s, s->n, i)) {
        uint32_t c = (uint32_t) ttext_point(s->s, s->n, i);
        int      upper = how == TEXT_UPPER
                         || (how == TEXT_CAPITAL && i == 0)
                         || (how == TEXT_TITLE && !in_word);

        in_word = is_cased(c);

        if (upper && c == 0xdf) {
            to[n++] = 'S';
            to[n++] = how == TEXT_UPPER ? 'S' : 's';
            continue;
        }

        n += ttext_encode(map_point(c, upper), to + n);
    }

    *out = tvalue_str(to, n);

    return 0;
}


int
ttext_replace(struct render *r, const struct value *s,
              const struct value *from, const struct value *to, int64_t max,
              struct value *out)
{
    struct slice in = { s->s, s->n };
    struct slice sub = { from->s, from->n };
    struct buf   b = { 0 };
    size_t       done = 0;
    size_t       at = 0;
    int          rc = 0;

    for (int64_t k = 0; rc == 0 && (max < 0 || k < max); k++) {
        size_t hit = ttext_find(in, sub, at);

        if (hit == SIZE_MAX) {
            break;
        }

        rc = template_put(r, &b, in.p + done, hit - done);
        rc = rc != 0 ? rc : template_put(r, &b, to->s, to->n);
        rc = rc != 0 ? rc : template_burn(r, 1);
        done = hit + sub.n;
        at = done;

        if (sub.n == 0) {
            /* "" is found before every character and at the end. */
            at += at < in.n ? ttext_step(in.p, in.n, at) : 1;
        }
    }

    if (rc == 0) {
        rc = template_put(r, &b, in.p + done, in.n - done);
    }

    return template_take(r, &b, rc, out);
}
