/*
 * safetensors.c - see safetensors.h.
 *
 * A file is: u64 n; n bytes of JSON { name: { dtype, shape, data_offsets } };
 * the data, every byte of which belongs to exactly one tensor.
 */
#include "safetensors.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "json_util.h"

/* One file: its mapping, and the parsed header that owns the names. */
struct shard {
    const char                *name;
    const uint8_t             *map;
    size_t                     n_bytes;
    uint64_t                   changed;     /* times of content and entry */
    json_t                    *header;
    struct safetensors_tensor *tensors;     /* by offset, then by name */
    size_t                     n;
};

struct safetensors {
    json_t                    *index;       /* owns the shards' names */
    struct shard              *shards;
    size_t                     n_shards;
    struct safetensors_tensor *tensors;     /* of all shards, by name */
    size_t                     n;
};

static const struct {
    const char *name;
    uint64_t    n_bytes;
} dtypes[] = {
    [SAFETENSORS_BOOL]    = { "BOOL", 1 },
    [SAFETENSORS_U8]      = { "U8", 1 },
    [SAFETENSORS_I8]      = { "I8", 1 },
    [SAFETENSORS_F8_E4M3] = { "F8_E4M3", 1 },
    [SAFETENSORS_F8_E5M2] = { "F8_E5M2", 1 },
    [SAFETENSORS_F8_E8M0] = { "F8_E8M0", 1 },
    [SAFETENSORS_I16]     = { "I16", 2 },
    [SAFETENSORS_U16]     = { "U16", 2 },
    [SAFETENSORS_F16]     = { "F16", 2 },
    [SAFETENSORS_BF16]    = { "BF16", 2 },
    [SAFETENSORS_I32]     = { "I32", 4 },
    [SAFETENSORS_U32]     = { "U32", 4 },
    [SAFETENSORS_F32]     = { "F32", 4 },
    [SAFETENSORS_I64]     = { "I64", 8 },
    [SAFETENSORS_U64]     = { "U64", 8 },
    [SAFETENSORS_F64]     = { "F64", 8 }
};


uint64_t
safetensors_id(const struct safetensors *s)
{
    uint64_t id = s->n_shards;

    for (size_t i = 0; i < s->n_shards; i++) {
        id = (id ^ s->shards[i].n_bytes) * 0x9e3779b97f4a7c15u;
        id = (id ^ id >> 31 ^ s->shards[i].changed) * 0xbf58476d1ce4e5b9u;
    }

    return id ^ id >> 31;
}


const char *
safetensors_dtype_name(enum safetensors_dtype t)
{
    return dtypes[t].name;
}


static int
parse_dtype(const json_t *o, struct safetensors_tensor *t, struct err *e)
{
    struct slice s = { "nothing", 7 };

    if (json_get_str(o, "dtype", &s, e) < 0) {
        return -1;
    }

    for (size_t i = 0; i < BASE_COUNT(dtypes); i++) {
        if (strlen(dtypes[i].name) == s.n
            && memcmp(dtypes[i].name, s.p, s.n) == 0)
        {
            t->dtype = (enum safetensors_dtype) i;
            return 0;
        }
    }

    return err_set(e, "dtype: expected one of the format's, got \"%.*s\"",
                   (int) (s.n < 32 ? s.n : 32), s.p);
}


/* An array of exactly or at most n integers >= 0; returns how many, or -1. */
static int
parse_numbers(const json_t *o, const char *key, size_t n, uint64_t *out,
              struct err *e)
{
    const json_t *a = json_object_get(o, key);

    if (!json_is_array(a) || json_array_size(a) > n) {
        return err_set(e, "%s: expected an array of at most %zu numbers", key,
                       n);
    }

    for (size_t i = 0; i < json_array_size(a); i++) {
        const json_t *v = json_array_get(a, i);

        if (!json_is_integer(v) || json_integer_value(v) < 0) {
            return err_set(e, "%s[%zu]: expected an integer >= 0", key, i);
        }

        out[i] = (uint64_t) json_integer_value(v);
    }

    return (int) json_array_size(a);
}


/* tensor = { "dtype": D, "shape": [n...], "data_offsets": [begin, end] } */
static int
parse_tensor(const json_t *o, const uint8_t *data, uint64_t n_data,
             struct safetensors_tensor *t, struct err *e)
{
    uint64_t at[2] = { 0, 0 };

    if (!json_is_object(o)) {
        return err_set(e, "expected an object");
    }

    int n_dims = parse_numbers(o, "shape", SAFETENSORS_DIMS_MAX, t->dims, e);

    if (n_dims < 0 || parse_dtype(o, t, e) != 0) {
        return -1;
    }

    int n_at = parse_numbers(o, "data_offsets", 2, at, e);

    if (n_at != 2) {
        return n_at < 0 ? -1
               : err_set(e, "data_offsets: expected 2 numbers, got %d", n_at);
    }

    if (at[0] > at[1] || at[1] > n_data) {
        return err_set(e, "data_offsets: expected begin <= end <= %llu, got "
                       "%llu, %llu", (unsigned long long) n_data,
                       (unsigned long long) at[0],
                       (unsigned long long) at[1]);
    }

    uint64_t want = dtypes[t->dtype].n_bytes;

    for (int i = 0; i < n_dims; i++) {
        if (__builtin_mul_overflow(want, t->dims[i], &want)) {
            return err_set(e, "shape: too large");
        }
    }

    if (want != at[1] - at[0]) {
        return err_set(e, "expected %llu bytes by shape and dtype, got %llu",
                       (unsigned long long) want,
                       (unsigned long long) (at[1] - at[0]));
    }

    t->n_dims = (uint32_t) n_dims;
    t->data = data + at[0];
    t->n_bytes = at[1] - at[0];

    return 0;
}


static int
by_offset(const void *a, const void *b)
{
    const struct safetensors_tensor *x = a, *y = b;

    if (x->data != y->data) {
        return x->data < y->data ? -1 : 1;
    }

    return x->n_bytes < y->n_bytes ? -1 : x->n_bytes > y->n_bytes;
}


static int
by_name(const void *a, const void *b)
{
    const struct safetensors_tensor *x = a, *y = b;

    return strcmp(x->name, y->name);
}


/* Every byte of the data belongs to one tensor. */
static int
check_cover(const struct shard *s, const uint8_t *data, uint64_t n_data,
            struct err *e)
{
    const uint8_t *at = data;

    for (size_t i = 0; i < s->n; i++) {
        const struct safetensors_tensor *t = &s->tensors[i];

        if (t->data != at) {
            return err_set(e, "tensor \"%.200s\": %s before it", t->name,
                           t->data < at ? "overlaps the one"
                                        : "a gap in the data");
        }

        at += t->n_bytes;
    }

    if (at != data + n_data) {
        return err_set(e, "expected %llu bytes of data by the header, got "
                       "%llu", (unsigned long long) (at - data),
                       (unsigned long long) n_data);
    }

    return 0;
}


static int
parse_header(struct shard *s, const uint8_t *data, uint64_t n_data,
             struct err *e)
{
    const char *name;
    json_t     *o;
    size_t      n = json_object_size(s->header);

    if (!json_is_object(s->header) || n > SAFETENSORS_TENSORS_MAX) {
        return err_set(e, "header: expected an object of at most %d tensors",
                       SAFETENSORS_TENSORS_MAX);
    }

    s->tensors = calloc(n + 1, sizeof(*s->tensors));

    if (s->tensors == NULL) {
        return err_set(e, "no memory for %zu tensors", n);
    }

    json_object_foreach(s->header, name, o) {
        if (strcmp(name, "__metadata__") == 0) {
            continue;
        }

        struct safetensors_tensor *t = &s->tensors[s->n];

        t->name = name;

        if (parse_tensor(o, data, n_data, t, e) != 0) {
            return err_prefix(e, "tensor \"%.200s\"", name);
        }

        s->n++;
    }

    qsort(s->tensors, s->n, sizeof(*s->tensors), by_offset);

    return check_cover(s, data, n_data, e);
}


/* file = u64 n, header of n bytes, data */
static int
shard_parse(struct shard *s, struct err *e)
{
    uint64_t n;

    if (s->n_bytes < sizeof(n)) {
        return err_set(e, "expected at least 8 bytes, got %zu", s->n_bytes);
    }

    memcpy(&n, s->map, sizeof(n));

    if (n > SAFETENSORS_HEADER_MAX || n > s->n_bytes - sizeof(n)) {
        return err_set(e, "header: expected at most %zu bytes, got %llu",
                       s->n_bytes - sizeof(n) < SAFETENSORS_HEADER_MAX
                       ? s->n_bytes - sizeof(n)
                       : (size_t) SAFETENSORS_HEADER_MAX,
                       (unsigned long long) n);
    }

    s->header = json_parse((const char *) s->map + sizeof(n), (size_t) n, e);

    if (s->header == NULL) {
        return err_prefix(e, "header");
    }

    return parse_header(s, s->map + sizeof(n) + n,
                        s->n_bytes - sizeof(n) - n, e);
}


static uint64_t
ns(struct timespec t)
{
    return (uint64_t) t.tv_sec * 1000000000u + (uint64_t) t.tv_nsec;
}


static int
shard_open(struct shard *s, const char *dir, const char *name, struct err *e)
{
    char        path[4096];
    struct stat st;

    s->name = name;

    if (snprintf(path, sizeof(path), "%s/%s", dir, name)
        >= (int) sizeof(path))
    {
        return err_set(e, "%s/%s: path too long", dir, name);
    }

    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0) {
        return err_set(e, "%s: cannot open: %s", path, strerror(errno));
    }

    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size == 0) {
        close(fd);
        return err_set(e, "%s: expected a regular file that is not empty",
                       path);
    }

    void *map = mmap(NULL, (size_t) st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);

    close(fd);

    if (map == MAP_FAILED) {
        return err_set(e, "%s: cannot map: %s", path, strerror(errno));
    }

    s->map = map;
    s->n_bytes = (size_t) st.st_size;
    s->changed = ns(st.st_mtim) * 31 + ns(st.st_ctim);

    return shard_parse(s, e) == 0 ? 0 : err_prefix(e, "%s", path);
}


static void
shard_close(struct shard *s)
{
    free(s->tensors);
    json_decref(s->header);

    if (s->map != NULL) {
        munmap((void *) s->map, s->n_bytes);
    }
}


/* A shard is a plain file of the same directory. */
static int
check_shard_name(const char *name, struct err *e)
{
    size_t n = strlen(name);

    if (n < 13 || n > 255 || strcmp(name + n - 12, ".safetensors") != 0
        || name[0] == '.' || strchr(name, '/') != NULL)
    {
        return err_set(e, "shard: expected a file name *.safetensors, got "
                       "\"%.200s\"", name);
    }

    return 0;
}


/* The shard of that name, opened now or before. */
static struct shard *
shard_get(struct safetensors *s, const char *dir, const char *name,
          struct err *e)
{
    /* Neighbours in the index are mostly in one shard: the last is likely. */
    for (size_t i = s->n_shards; i-- > 0; ) {
        if (strcmp(s->shards[i].name, name) == 0) {
            return &s->shards[i];
        }
    }

    if (check_shard_name(name, e) != 0) {
        return NULL;
    }

    if (s->n_shards == SAFETENSORS_SHARDS_MAX) {
        err_set(e, "expected at most %d shards", SAFETENSORS_SHARDS_MAX);
        return NULL;
    }

    struct shard *shard = &s->shards[s->n_shards++];

    if (shard_open(shard, dir, name, e) != 0) {
        return NULL;
    }

    qsort(shard->tensors, shard->n, sizeof(*shard->tensors), by_name);

    return shard;
}


/* index = { "weight_map": { tensor: shard } } */
static int
read_index(struct safetensors *s, const char *dir, const char *path,
           struct err *e)
{
    json_t     *map = NULL, *file;
    const char *name;

    s->index = json_file(path, SAFETENSORS_HEADER_MAX, e);

    if (s->index == NULL) {
        return -1;
    }

    if (!json_is_object(s->index)
        || json_get_obj(s->index, "weight_map", &map, NULL) != 1)
    {
        return err_set(e, "%s: expected an object \"weight_map\"", path);
    }

    s->tensors = calloc(json_object_size(map) + 1, sizeof(*s->tensors));

    if (s->tensors == NULL) {
        return err_set(e, "%s: no memory", path);
    }

    json_object_foreach(map, name, file) {
        struct safetensors_tensor key = { .name = name }, *t;
        struct shard             *shard;

        if (!json_is_string(file)) {
            return err_set(e, "%s: \"%.200s\": expected a file name", path,
                           name);
        }

        shard = shard_get(s, dir, json_string_value(file), e);

        if (shard == NULL) {
            return -1;
        }

        t = bsearch(&key, shard->tensors, shard->n, sizeof(key), by_name);

        if (t == NULL) {
            return err_set(e, "%s: tensor \"%.200s\" is not in %s", path,
                           name, shard->name);
        }

        s->tensors[s->n++] = *t;
    }

    return 0;
}


static int
read_single(struct safetensors *s, const char *dir, struct err *e)
{
    struct shard *shard = shard_get(s, dir, "model.safetensors", e);

    if (shard == NULL) {
        return -1;
    }

    s->tensors = shard->tensors;
    s->n = shard->n;
    shard->tensors = NULL;

    return 0;
}


struct safetensors *
safetensors_open(const char *dir, struct err *e)
{
    char                path[4096];
    struct safetensors *s = calloc(1, sizeof(*s));

    if (s != NULL) {
        s->shards = calloc(SAFETENSORS_SHARDS_MAX, sizeof(*s->shards));
    }

    if (s == NULL || s->shards == NULL) {
        free(s);
        err_set(e, "%s: no memory", dir);
        return NULL;
    }

    snprintf(path, sizeof(path), "%s/model.safetensors.index.json", dir);

    int rc = access(path, F_OK) == 0 ? read_index(s, dir, path, e)
                                     : read_single(s, dir, e);

    if (rc != 0) {
        safetensors_close(s);
        return NULL;
    }

    qsort(s->tensors, s->n, sizeof(*s->tensors), by_name);

    return s;
}


void
safetensors_close(struct safetensors *s)
{
    if (s == NULL) {
        return;
    }

    for (size_t i = 0; i < s->n_shards; i++) {
        shard_close(&s->shards[i]);
    }

    free(s->tensors);
    free(s->shards);
    json_decref(s->index);
    free(s);
}


const struct safetensors_tensor *
safetensors_find(const struct safetensors *s, const char *name)
{
    struct safetensors_tensor key = { .name = name };

    return bsearch(&key, s->tensors, s->n, sizeof(key), by_name);
}


size_t
safetensors_n(const struct safetensors *s)
{
    return s->n;
}


const struct safetensors_tensor *
safetensors_at(const struct safetensors *s, size_t i)
{
    assert(i < s->n);

    return &s->tensors[i];
}


static float
from_bits(uint32_t u)
{
    float f;

    memcpy(&f, &u, sizeof(f));

    return f;
}


/* sign 1, exponent 5 (bias 15), fraction 10 */
static float
from_f16(uint16_t h)
{
    uint32_t sign = (uint32_t) (h & 0x8000) << 16;
    int      exponent = h >> 10 & 31;
    uint32_t fraction = h & 0x3ff;

    if (exponent == 0) {
        float f = ldexpf((float) fraction, -24);

        return sign ? -f : f;
    }

    if (exponent == 31) {
        return from_bits(sign | 0x7f800000 | fraction << 13);
    }

    return from_bits(sign | (uint32_t) (exponent + 112) << 23
                     | fraction << 13);
}


/* sign 1, exponent 4 (bias 7), fraction 3; no infinities, all ones is NaN */
static float
from_e4m3(uint8_t b)
{
    int   exponent = b >> 3 & 15, fraction = b & 7;
    float f;

    if ((b & 0x7f) == 0x7f) {
        return from_bits(0x7fc00000);
    }

    f = exponent == 0 ? ldexpf((float) fraction, -9)
                      : ldexpf((float) (8 + fraction), exponent - 10);

    return b & 0x80 ? -f : f;
}


/* exponent 8 (bias 127); all ones is NaN */
static float
from_e8m0(uint8_t b)
{
    return b == 255 ? from_bits(0x7fc00000) : ldexpf(1, b - 127);
}


/* The 256 values of a byte, once. */
static void
read_bytes(const uint8_t *p, size_t n, float (*value)(uint8_t b), float *out)
{
    float table[256];

    for (int i = 0; i < 256; i++) {
        table[i] = value((uint8_t) i);
    }

    for (size_t i = 0; i < n; i++) {
        out[i] = table[p[i]];
    }
}


int
safetensors_read(const struct safetensors_tensor *t, uint64_t at, size_t n,
                 float *out)
{
    uint64_t       size = dtypes[t->dtype].n_bytes;
    const uint8_t *p = t->data + at * size;

    assert(at <= t->n_bytes / size && n <= t->n_bytes / size - at);

    switch (t->dtype) {
    case SAFETENSORS_F32:
        memcpy(out, p, n * sizeof(float));
        return 0;

    case SAFETENSORS_BF16:
    case SAFETENSORS_F16:
        for (size_t i = 0; i < n; i++) {
            uint16_t h;

            memcpy(&h, p + 2 * i, 2);
            out[i] = t->dtype == SAFETENSORS_F16
                     ? from_f16(h) : from_bits((uint32_t) h << 16);
        }

        return 0;

    case SAFETENSORS_F8_E4M3:
        read_bytes(p, n, from_e4m3, out);
        return 0;

    case SAFETENSORS_F8_E8M0:
    case SAFETENSORS_U8:
        read_bytes(p, n, from_e8m0, out);
        return 0;

    default:
        return -1;
    }
}
