/*
 * config.c - any bytes as config.json: a shape that a family accepts, whose
 * expressions and frequencies can be evaluated, or an error of one line.
 */
#include <stdlib.h>
#include <string.h>

#include "json_util.h"
#include "model/family.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);


int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct err           e = { .text = "" };
    json_t              *o = json_parse_lenient((const char *) data, n, &e);
    struct config        c;
    const struct family *f = NULL;

    if (o == NULL) {
        return 0;
    }

    memset(&c, 0, sizeof(c));

    if (config_read(o, &c, &f, &e) != 0) {
        if (e.text[0] == '\0' || strchr(e.text, '\n') != NULL) {
            abort();
        }

    } else {
        float *freqs = calloc(c.rope / 2 + 1u, sizeof(*freqs));
        float  scale = 0;

        if (f == NULL || freqs == NULL) {
            abort();
        }

        config_freqs(&c, freqs, &scale);
        free(freqs);
    }

    json_decref(o);

    return 0;
}
