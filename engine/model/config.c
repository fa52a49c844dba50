/*
 * config.c - config.json through a family's table of keys into struct
 * config; the expressions of the tables; the frequencies of positions.
 */
#include "model/family.h"

#include <assert.h>
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define CONFIG_MAX      (4u << 20)      /* bytes of config.json */
#define NAME_MAX_BYTES  64


/* Names that shapes and buffers are made of. */
static const struct {
    const char *name;
    size_t      offset;
} config_dims[] = {
    { "vocab", offsetof(struct config, vocab) },
    { "dim", offsetof(struct config, dim) },
    { "width", offsetof(struct config, width) },
    { "n_heads", offsetof(struct config, n_heads) },
    { "n_kv_heads", offsetof(struct config, n_kv_heads) },
    { "head", offsetof(struct config, head) },
    { "q_lora", offsetof(struct config, q_lora) },
    { "kv_lora", offsetof(struct config, kv_lora) },
    { "nope", offsetof(struct config, nope) },
    { "rope", offsetof(struct config, rope) },
    { "v", offsetof(struct config, v) },
    { "n_experts", offsetof(struct config, n_experts) },
    { "n_active", offsetof(struct config, n_active) },
    { "moe_width", offsetof(struct config, moe_width) },
    { "qk", offsetof(struct config, qk) },
    { "kv_row", offsetof(struct config, kv_row) },
    { "shared_width", offsetof(struct config, shared_width) },
    { "mlp_width", offsetof(struct config, mlp_width) }
};


static uint64_t
dim_value(const struct config *c, const char *name, size_t n)
{
    for (size_t i = 0; i < BASE_COUNT(config_dims); i++) {
        if (strlen(config_dims[i].name) == n
            && memcmp(config_dims[i].name, name, n) == 0)
        {
            uint32_t v;

            memcpy(&v, (const char *) c + config_dims[i].offset, sizeof(v));
            return v;
        }
    }

    assert(!"a name of config_dims");

    return 0;
}


static int eval_sum(const struct config *c, const char **p, uint64_t *out);


static void
skip_space(const char **p)
{
    while (**p == ' ') {
        (*p)++;
    }
}


/* factor = number | name | "(" sum ")" */
static int
eval_factor(const struct config *c, const char **p, uint64_t *out)
{
    int rc = 0;

    skip_space(p);

    if (**p == '(') {
        (*p)++;
        rc = eval_sum(c, p, out);
        assert(**p == ')');
        (*p)++;

    } else if (isdigit((unsigned char) **p)) {
        for (*out = 0; isdigit((unsigned char) **p); (*p)++) {
            *out = *out * 10 + (uint64_t) (**p - '0');
        }

    } else {
        const char *from = *p;

        while (isalnum((unsigned char) **p) || **p == '_') {
            (*p)++;
        }

        *out = dim_value(c, from, (size_t) (*p - from));
    }

    skip_space(p);

    return rc;
}


/* product = factor { "*" factor } */
static int
eval_product(const struct config *c, const char **p, uint64_t *out)
{
    int rc = eval_factor(c, p, out);

    while (rc == 0 && **p == '*') {
        uint64_t v;

        (*p)++;
        rc = eval_factor(c, p, &v);

        if (rc == 0 && __builtin_mul_overflow(*out, v, out)) {
            rc = -1;
        }
    }

    return rc;
}


/* sum = product { "+" product } */
static int
eval_sum(const struct config *c, const char **p, uint64_t *out)
{
    int rc = eval_product(c, p, out);

    while (rc == 0 && **p == '+') {
        uint64_t v;

        (*p)++;
        rc = eval_product(c, p, &v);

        if (rc == 0 && __builtin_add_overflow(*out, v, out)) {
            rc = -1;
        }
    }

    return rc;
}


int
config_eval(const struct config *c, const char *expr, uint64_t *out)
{
    int rc = eval_sum(c, &expr, out);

    assert(rc != 0 || *expr == '\0');

    return rc;
}


/* The first of "a|b" that o has with a value; name gets it (or the first). */
static int
find_name(const json_t *o, const char *names, char *name)
{
    const char *from = names;

    for (;;) {
        size_t n = strcspn(from, "|");

        assert(n < NAME_MAX_BYTES);
        memcpy(name, from, n);
        name[n] = '\0';

        const json_t *v = json_object_get(o, name);

        if (v != NULL && !json_is_null(v)) {
            return 1;
        }

        if (from[n] == '\0') {
            n = strcspn(names, "|");
            memcpy(name, names, n);
            name[n] = '\0';
            return 0;
        }

        from += n + 1;
    }
}


static int
set_string(const struct key *k, const char *name, struct slice s, char *to,
           struct err *e)
{
    if (s.n >= k->size) {
        return err_set(e, "%s: expected at most %zu characters, got %zu",
                       name, k->size - 1, s.n);
    }

    memcpy(to, s.p, s.n);
    to[s.n] = '\0';

    return 0;
}


/* Sets the bits that the array `name` of o has the numbers of. */
static int
set_bits(const struct key *k, const json_t *o, const char *name, uint8_t *to,
         struct err *e)
{
    json_t    *set = NULL, *v;
    size_t     i;
    json_int_t most = (json_int_t) k->size * 8 - 1;

    if (json_get_arr(o, name, &set, e) < 0) {
        return -1;
    }

    json_array_foreach(set, i, v) {
        json_int_t n = json_integer_value(v);

        if (!json_is_integer(v) || n < 0 || n > most) {
            return err_set(e, "%s: expected integers of 0 .. %lld, got "
                           "another at %zu", name, (long long) most, i);
        }

        to[n / 8] |= (uint8_t) (1 << n % 8);
    }

    return 0;
}


/* The value of the member `name` of o, or the key's default where o is NULL. */
static int
set_key(const struct key *k, const json_t *o, const char *name,
        struct config *c, struct err *e)
{
    void        *to = (char *) c + k->offset;
    int64_t      i = (int64_t) k->number;
    double       num = k->number;
    int          b = (int) k->number;
    struct slice s = { k->string, k->string ? strlen(k->string) : 0 };
    int          rc = 0;

    switch (k->type) {
    case KEY_INT:
        rc = o == NULL ? 0 : json_get_int(o, name, (int64_t) k->min,
                                          (int64_t) k->max, &i, e);
        *(uint32_t *) to = (uint32_t) i;
        break;

    case KEY_NUM:
        rc = o == NULL ? 0 : json_get_num(o, name, &num, e);

        if (rc == 1 && !(num >= k->min && num <= k->max)) {
            return err_set(e, "%s: expected %g .. %g, got %g", name, k->min,
                           k->max, num);
        }

        *(double *) to = num;
        break;

    case KEY_BOOL:
        rc = o == NULL ? 0 : json_get_bool(o, name, &b, e);
        *(int *) to = b;
        break;

    case KEY_STR:
        rc = o == NULL ? 0 : json_get_str(o, name, &s, e);

        if (rc >= 0) {
            rc = set_string(k, name, s, to, e);
        }

        break;

    case KEY_SET:
        rc = o == NULL ? 0 : set_bits(k, o, name, to, e);
        break;
    }

    return rc < 0 ? -1 : 0;
}


static int
read_key(const struct key *k, const json_t *top, const json_t *rope,
         struct config *c, struct err *e)
{
    char name[NAME_MAX_BYTES];

    if (k->place != KEY_TOP && rope != NULL
        && find_name(rope, k->names, name))
    {
        return set_key(k, rope, name, c, e);
    }

    if (k->place != KEY_ROPE && find_name(top, k->names, name)) {
        return set_key(k, top, name, c, e);
    }

    if (k->required) {
        find_name(top, k->names, name);
        return err_set(e, "%s: expected a number, got nothing", name);
    }

    return set_key(k, NULL, name, c, e);
}


/* { "quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [o, i] } */
static int
read_quant(const json_t *top, struct config *c, struct err *e)
{
    static const struct key keys[] = {
        { "quant_method", KEY_STR, KEY_AT(quant_method), 0, KEY_TOP, 0, 0, 0,
          "" },
        { "fmt", KEY_STR, KEY_AT(quant_fmt), 0, KEY_TOP, 0, 0, 0, "e4m3" }
    };
    json_t *q = NULL, *block = NULL;
    int     rc = json_get_obj(top, "quantization_config", &q, e);

    c->block_out = c->block_in = 128;

    if (rc <= 0) {
        return rc;
    }

    for (size_t i = 0; i < BASE_COUNT(keys); i++) {
        if (read_key(&keys[i], q, NULL, c, e) != 0) {
            return err_prefix(e, "quantization_config");
        }
    }

    if (strcmp(c->quant_method, "fp8") != 0
        || strcmp(c->quant_fmt, "e4m3") != 0)
    {
        return err_set(e, "quantization_config: expected fp8 of e4m3, got "
                       "\"%s\" of \"%s\"", c->quant_method, c->quant_fmt);
    }

    rc = json_get_arr(q, "weight_block_size", &block, e);

    if (rc <= 0) {
        return rc;
    }

    json_int_t out = json_integer_value(json_array_get(block, 0));
    json_int_t in = json_integer_value(json_array_get(block, 1));

    if (json_array_size(block) != 2 || out < 1 || in < 1 || out > 1 << 20
        || in > 1 << 20)
    {
        return err_set(e, "weight_block_size: expected two integers of 1 .. "
                       "%d", 1 << 20);
    }

    c->block_out = (uint32_t) out;
    c->block_in = (uint32_t) in;

    return 0;
}


int
config_read(const json_t *o, struct config *c, const struct family **f,
            struct err *e)
{
    static const struct key type = {
        "model_type", KEY_STR, KEY_AT(family), 0, KEY_TOP, 0, 0, 0, ""
    };
    json_t *rope = NULL;

    memset(c, 0, sizeof(*c));

    if (!json_is_object(o)) {
        return err_set(e, "expected an object");
    }

    if (read_key(&type, o, NULL, c, e) != 0) {
        return -1;
    }

    *f = family_find(c->family, e);

    if (*f == NULL) {
        return -1;
    }

    int rc = json_get_obj(o, "rope_parameters", &rope, e);

    if (rc < 0 || (rc == 0 && json_get_obj(o, "rope_scaling", &rope, e) < 0)) {
        return -1;
    }

    for (size_t i = 0; i < (*f)->n_keys; i++) {
        if (read_key(&(*f)->keys[i], o, rope, c, e) != 0) {
            return -1;
        }
    }

    return read_quant(o, c, e) == 0 ? (*f)->check(c, e) : -1;
}


int
config_load(const char *dir, struct config *c, const struct family **f,
            struct err *e)
{
    char path[4096];

    if (snprintf(path, sizeof(path), "%s/config.json", dir)
        >= (int) sizeof(path))
    {
        return err_set(e, "%s: path too long", dir);
    }

    json_t *o = json_file(path, CONFIG_MAX, e);

    if (o == NULL) {
        return -1;
    }

    int rc = config_read(o, c, f, e);

    json_decref(o);

    return rc == 0 ? 0 : err_prefix(e, "%s", path);
}


static double
yarn_amplitude(double factor, double mscale)
{
    return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
}


/* The pair at which `turns` full turns are made in the original context. */
static double
yarn_pair(const struct config *c, double turns)
{
    return c->rope * log(c->orig_pos / (turns * 2 * M_PI))
           / (2 * log(c->theta));
}


/*
 * YaRN (arXiv 2309.00071): pairs that turn often keep their frequency, those
 * that hardly turn are slowed down by `factor`, with a ramp between.  Rounded
 * to FP32 where transformers does, since positions multiply the difference.
 */
static void
yarn_freqs(const struct config *c, float *freqs)
{
    double low = yarn_pair(c, c->beta_fast != 0 ? c->beta_fast : 32);
    double high = yarn_pair(c, c->beta_slow != 0 ? c->beta_slow : 1);

    if (c->truncate) {
        low = floor(low);
        high = ceil(high);
    }

    low = fmax(low, 0);
    high = fmin(high, c->rope - 1);

    if (low == high) {
        high += 0.001;
    }

    for (uint32_t i = 0; i < c->rope / 2; i++) {
        float power = (float) pow(c->theta, 2.0 * i / c->rope);
        float ramp = ((float) i - (float) low) / (float) (high - low);
        float keep = 1 - fminf(fmaxf(ramp, 0), 1);
        float slow = 1 / ((float) c->factor * power);

        freqs[i] = slow * (1 - keep) + 1 / power * keep;
    }
}


void
config_freqs(const struct config *c, float *freqs, float *scale)
{
    *scale = 1;

    if (strcmp(c->rope_type, "yarn") == 0) {
        yarn_freqs(c, freqs);

        *scale = (float)
                 (c->cos_scale > 0 ? c->cos_scale
                  : c->mscale > 0 && c->mscale_all > 0
                  ? yarn_amplitude(c->factor, c->mscale)
                    / yarn_amplitude(c->factor, c->mscale_all)
                  : yarn_amplitude(c->factor, 1));
        return;
    }

    for (uint32_t i = 0; i < c->rope / 2; i++) {
        freqs[i] = 1 / (float) pow(c->theta, 2.0 * i / c->rope);
    }
}
