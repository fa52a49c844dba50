/*
 * json.c - any bytes as JSON: strict implies lenient, errors are one line, and
 * the typed getters take whatever came out.
 */
#include <stdlib.h>
#include <string.h>

#include "json_util.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);


int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct err   e = { 0 };
    json_t      *strict = json_parse((const char *) data, n, NULL);
    json_t      *lenient = json_parse_lenient((const char *) data, n, &e);
    int64_t      i;
    struct slice s;

    if ((strict != NULL && lenient == NULL)
        || (lenient == NULL && (e.text[0] == '\0' || strchr(e.text, '\n'))))
    {
        abort();
    }

    (void) json_get_int(lenient, "a", -5, 5, &i, &e);
    (void) json_get_str(lenient, "a", &s, &e);

    json_decref(strict);
    json_decref(lenient);

    return 0;
}
