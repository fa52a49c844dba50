/*
 * unicode.c - see unicode.h.  The well-formed sequences are those of table
 * 3-7 of the Unicode standard: the second byte's range depends on the first.
 */
#include "unicode/unicode.h"

#include <string.h>


/* The range of the second byte after lead byte c; 0 if c leads nothing. */
static int
lead_length(unsigned char c, unsigned char *lo, unsigned char *hi)
{
    *lo = 0x80;
    *hi = 0xbf;

    if (c >= 0xc2 && c <= 0xdf) {
        return 2;
    }

    if (c >= 0xe0 && c <= 0xef) {
        *lo = c == 0xe0 ? 0xa0 : 0x80;
        *hi = c == 0xed ? 0x9f : 0xbf;
        return 3;
    }

    if (c >= 0xf0 && c <= 0xf4) {
        *lo = c == 0xf0 ? 0x90 : 0x80;
        *hi = c == 0xf4 ? 0x8f : 0xbf;
        return 4;
    }

    return 0;
}


int
unicode_decode(const char *text, size_t n, uint32_t *cp)
{
    const unsigned char *p = (const unsigned char *) text;
    unsigned char        lo, hi;

    if (p[0] < 0x80) {
        *cp = p[0];
        return 1;
    }

    int len = lead_length(p[0], &lo, &hi);

    *cp = UNICODE_BAD;

    if (len == 0) {
        return -1;
    }

    uint32_t c = p[0] & (0x7fu >> len);

    for (int i = 1; i < len; i++) {
        if ((size_t) i == n) {
            return 0;
        }

        if (p[i] < lo || p[i] > hi) {
            return -i;
        }

        c = c << 6 | (p[i] & 0x3f);
        lo = 0x80;
        hi = 0xbf;
    }

    *cp = c;

    return len;
}


size_t
unicode_encode(uint32_t cp, char out[4])
{
    if (cp < 0x80) {
        out[0] = (char) cp;
        return 1;
    }

    if (cp < 0x800) {
        out[0] = (char) (0xc0 | cp >> 6);
        out[1] = (char) (0x80 | (cp & 0x3f));
        return 2;
    }

    if (cp < 0x10000) {
        out[0] = (char) (0xe0 | cp >> 12);
        out[1] = (char) (0x80 | (cp >> 6 & 0x3f));
        out[2] = (char) (0x80 | (cp & 0x3f));
        return 3;
    }

    out[0] = (char) (0xf0 | cp >> 18);
    out[1] = (char) (0x80 | (cp >> 12 & 0x3f));
    out[2] = (char) (0x80 | (cp >> 6 & 0x3f));
    out[3] = (char) (0x80 | (cp & 0x3f));

    return 4;
}


size_t
unicode_valid(const char *p, size_t n)
{
    size_t   i = 0;
    uint32_t cp;

    while (i < n) {
        uint64_t word;

        while (n - i >= sizeof(word)) {
            memcpy(&word, p + i, sizeof(word));

            if (word & 0x8080808080808080u) {
                break;
            }

            i += sizeof(word);
        }

        if (i == n) {
            break;
        }

        int len = unicode_decode(p + i, n - i, &cp);

        if (len <= 0) {
            break;
        }

        i += (size_t) len;
    }

    return i;
}


int
unicode_lossy(const char *p, size_t n, struct buf *out)
{
    uint32_t cp;

    for ( ;; ) {
        size_t ok = unicode_valid(p, n);

        if (buf_add(out, p, ok) != 0) {
            return -1;
        }

        if (ok == n) {
            return 0;
        }

        p += ok;
        n -= ok;

        int len = unicode_decode(p, n, &cp);
        size_t bad = len == 0 ? n : (size_t) -len;

        if (buf_adds(out, UNICODE_BAD_S) != 0) {
            return -1;
        }

        p += bad;
        n -= bad;
    }
}


int
unicode_is_space(uint32_t cp)
{
    return (cp >= 0x09 && cp <= 0x0d) || cp == 0x20 || cp == 0x85
           || cp == 0xa0 || cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200a)
           || cp == 0x2028 || cp == 0x2029 || cp == 0x202f || cp == 0x205f
           || cp == 0x3000;
}
