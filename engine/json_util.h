/*
 * json_util.h - jansson with limits: what the engine needs to read JSON that it
 * does not trust.  Model files may have trailing commas (real ones do); JSON
 * from the ring may not.
 */
#ifndef MOE_JSON_UTIL_H
#define MOE_JSON_UTIL_H

#include <jansson.h>

#include "base.h"

#define JSON_DEPTH_MAX  64      /* nesting of arrays and objects */

/* Parses n bytes; the caller owns the result.  NULL: *e says line and column.
 * Strict: RFC 8259, one value, no duplicate keys refused (the last wins).
 * Lenient: a comma before ] or } is accepted, and an integer beyond 64 bits,
 * but then all integers of the text are reals. */
json_t *json_parse(const char *p, size_t n, struct err *e);
json_t *json_parse_lenient(const char *p, size_t n, struct err *e);

/* json_parse_lenient() of a file of at most max bytes; e names the file. */
json_t *json_file(const char *path, size_t max, struct err *e);

/*
 * Members of an object.  Absent or null: 0 and *out untouched (so set the
 * default before).  Present: 1.  Of another type or out of range: -1, and e
 * says the key, what was expected and what is there.  Integers may be written
 * as 32.0 (real configs do).  Strings are borrowed from the object.
 */
int json_get_int(const json_t *o, const char *key, int64_t min, int64_t max,
                 int64_t *out, struct err *e);
int json_get_num(const json_t *o, const char *key, double *out, struct err *e);
int json_get_bool(const json_t *o, const char *key, int *out, struct err *e);
int json_get_str(const json_t *o, const char *key, struct slice *out,
                 struct err *e);
int json_get_obj(const json_t *o, const char *key, json_t **out,
                 struct err *e);
int json_get_arr(const json_t *o, const char *key, json_t **out,
                 struct err *e);

#endif /* MOE_JSON_UTIL_H */
