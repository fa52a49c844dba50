/*
 * pattern.c - any bytes as a pattern of a tokenizer over a fixed text: matches
 * that lie in order within it, at the borders of characters, or an error of
 * one line.
 */
#include <stdlib.h>
#include <string.h>

#include "tokenizer/pattern.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static const char text[] =
    "The  cat's 1234\r\n\t\xc3\xa9t\xc3\xa9 \xe6\xbc\xa2\xe5\xad\x97!? "
    "\xf0\x9f\x98\x80 e\xcc\x81 ABC_x-9\xe2\x82\xac  \n";


int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct err           e = { .text = "" };
    struct pattern      *p = pattern_onig((const char *) data, n, &e);
    struct pattern_work *w = pattern_work_new();
    struct pattern_iter  it;
    size_t               from = 0, to = 0, last = 0;
    int                  rc = 0;

    if (p == NULL) {
        if (e.text[0] == '\0' || strchr(e.text, '\n') != NULL) {
            abort();
        }

        pattern_work_free(w);
        return 0;
    }

    if (w == NULL || pattern_start(&it, p, w, text, sizeof(text) - 1) != 0) {
        abort();
    }

    while ((rc = pattern_next(&it, &from, &to, &e)) == 1) {
        if (from < last || to < from || to > sizeof(text) - 1
            || ((uint8_t) text[from] & 0xc0) == 0x80
            || ((uint8_t) text[to] & 0xc0) == 0x80)
        {
            abort();
        }

        last = to;
    }

    if (rc < 0 && e.text[0] == '\0') {
        abort();
    }

    pattern_stop(&it);
    pattern_work_free(w);
    pattern_free(p);

    return 0;
}
