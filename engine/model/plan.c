/*
 * plan.c - the plan of the weights.  Every tensor of the family's table gets
 * its shape, its place in one block of the backend's memory, and its tensor in
 * the file, checked; tensors that nobody reads are refused, unless they are
 * known to be idle.  Must not read a weight.
 */
#include "model/loader.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_BYTES      160


/* "model.layers.%d.x.%e.y" with the layer and the expert. */
static void
format_name(char *to, const char *pattern, uint32_t i_layer, uint32_t expert)
{
    size_t n = 0;

    for (const char *p = pattern; *p != '\0'; p++) {
        assert(n + 12 < NAME_BYTES);

        if (p[0] == '%') {
            n += (size_t) snprintf(to + n, NAME_BYTES - n, "%u",
                                   p[1] == 'd' ? i_layer : expert);
            p++;

        } else {
            to[n++] = *p;
        }
    }

    to[n] = '\0';
}


/* shape = "(" expr { "," expr } ")"; returns how many. */
static uint32_t
eval_shape(const struct config *c, const char *shape, uint64_t *dims,
           int *overflow)
{
    char        expr[64];
    uint32_t    n = 0;
    int         depth = 0;
    const char *from = shape + 1;

    for (const char *p = from; ; p++) {
        if (*p == '(') {
            depth++;

        } else if ((*p == ',' && depth == 0) || (*p == ')' && depth-- == 0)) {
            size_t len = (size_t) (p - from);

            assert(len < sizeof(expr) && n < SAFETENSORS_DIMS_MAX);
            memcpy(expr, from, len);
            expr[len] = '\0';
            *overflow |= config_eval(c, expr, &dims[n++]) != 0;
            from = p + 1;

            if (*p == ')') {
                return n;
            }
        }
    }
}


static void
print_dims(char *to, size_t size, const uint64_t *dims, uint32_t n)
{
    size_t at = 0;

    to[0] = '\0';

    for (uint32_t i = 0; i < n && at < size; i++) {
        at += (size_t) snprintf(to + at, size - at, "%s%llu", i ? ", " : "",
                                (unsigned long long) dims[i]);
    }
}


static int
check_shape(const struct safetensors_tensor *t, const char *shape,
            const uint64_t *dims, uint32_t n, struct err *e)
{
    if (t->n_dims == n && memcmp(t->dims, dims, n * sizeof(*dims)) == 0) {
        return 0;
    }

    char want[96], got[96];

    print_dims(want, sizeof(want), dims, n);
    print_dims(got, sizeof(got), t->dims, t->n_dims);

    return err_set(e, "tensor \"%.160s\": expected shape %s = (%s), got (%s)",
                   t->name, shape, want, got);
}


static const struct safetensors_tensor *
use_tensor(struct weights_loader *l, const char *name)
{
    const struct safetensors_tensor *t = safetensors_find(l->files, name);

    if (t != NULL) {
        l->used[t - safetensors_at(l->files, 0)] = 1;
    }

    return t;
}


/* The scales of an FP8 tensor: its shape with the last two in blocks. */
static int
find_scale(struct weights_loader *l, const struct safetensors_tensor *t,
           const struct safetensors_tensor **scale, struct err *e)
{
    char     name[NAME_BYTES + 16];
    uint64_t dims[SAFETENSORS_DIMS_MAX];
    uint32_t n = t->n_dims;

    *scale = NULL;

    if (t->dtype != SAFETENSORS_F8_E4M3) {
        return 0;
    }

    snprintf(name, sizeof(name), "%s_scale_inv", t->name);

    const struct safetensors_tensor *s = use_tensor(l, name);

    if (s == NULL || n < 2) {
        return err_set(e, "tensor \"%s\": expected it, since \"%s\" is "
                       "F8_E4M3", name, t->name);
    }

    memcpy(dims, t->dims, sizeof(dims));
    dims[n - 2] = (dims[n - 2] + l->c->block_out - 1) / l->c->block_out;
    dims[n - 1] = (dims[n - 1] + l->c->block_in - 1) / l->c->block_in;

    if (check_shape(s, "of blocks", dims, n, e) != 0) {
        return -1;
    }

    float probe;

    if (s->n_bytes != 0 && safetensors_read(s, 0, 1, &probe) != 0) {
        return err_set(e, "tensor \"%s\": expected dtype F32, BF16, F8_E8M0 "
                       "or U8, got %s", name,
                       safetensors_dtype_name(s->dtype));
    }

    *scale = s;

    return 0;
}


static int
check_dtype(const struct safetensors_tensor *t, struct err *e)
{
    if (t->dtype == SAFETENSORS_F32 || t->dtype == SAFETENSORS_BF16
        || t->dtype == SAFETENSORS_F16 || t->dtype == SAFETENSORS_F8_E4M3)
    {
        return 0;
    }

    return err_set(e, "tensor \"%s\": expected dtype F32, BF16, F16 or "
                   "F8_E4M3, got %s", t->name,
                   safetensors_dtype_name(t->dtype));
}


/* One tensor of the file with its shape checked, and its scales.  *t = NULL:
 * there is none of that name. */
static int
find_tensor(struct weights_loader *l, const char *pattern, uint32_t i_layer,
            uint32_t expert, const char *shape,
            const struct safetensors_tensor **t,
            const struct safetensors_tensor **scale, struct err *e)
{
    char     name[NAME_BYTES];
    uint64_t dims[SAFETENSORS_DIMS_MAX] = { 0 };
    int      overflow = 0;
    uint32_t n = eval_shape(l->c, shape, dims, &overflow);

    format_name(name, pattern, i_layer, expert);
    *t = use_tensor(l, name);

    if (*t == NULL) {
        return err_set(e, "tensor \"%s\": expected it in the files, with "
                       "shape %s", name, shape);
    }

    return check_dtype(*t, e) == 0 && check_shape(*t, shape, dims, n, e) == 0
           ? find_scale(l, *t, scale, e) : -1;
}


/* Uniform numbers of variance 1 / n_cols: what goes through keeps its size. */
static void
random_sources(struct weights_loader *l, struct item *it)
{
    char     name[NAME_BYTES];
    uint64_t seed = loader_mix((uint64_t) l->src.random_seed);

    for (uint32_t i = 0; i < it->n; i++) {
        uint64_t h = seed;

        format_name(name, it->spec->name, it->i_layer, i);

        for (const char *p = name; *p != '\0'; p++) {
            h = loader_mix(h ^ (uint8_t) *p);
        }

        it->sources[i].seed = h;
        it->sources[i].range = sqrtf(3 / (float) it->n_cols);
    }
}


/* Each expert in a tensor of its own. */
static int
single_sources(struct weights_loader *l, struct item *it, struct err *e)
{
    for (uint32_t i = 0; i < it->n; i++) {
        struct source *s = &it->sources[i];

        if (find_tensor(l, it->spec->name, it->i_layer, i, it->spec->shape,
                        &s->tensor, &s->scale, e) != 0)
        {
            return -1;
        }
    }

    return 0;
}


/* All experts in one tensor of three dimensions. */
static int
fused_sources(struct weights_loader *l, struct item *it, struct err *e)
{
    const struct safetensors_tensor *t, *scale;
    uint64_t                         first;

    if (find_tensor(l, it->spec->fused, it->i_layer, 0,
                    it->spec->fused_shape, &t, &scale, e) != 0)
    {
        return -1;
    }

    if (config_eval(l->c, it->spec->first, &first) != 0) {
        return err_set(e, "tensor \"%s\": too large", t->name);
    }

    for (uint32_t i = 0; i < it->n; i++) {
        struct source *s = &it->sources[i];

        s->tensor = t;
        s->scale = scale;
        s->row = t->dims[1] * i + first;
        s->first = (uint32_t) first;
        s->scale_row = scale != NULL ? scale->dims[1] * i : 0;
    }

    return 0;
}


static int
find_sources(struct weights_loader *l, struct item *it, struct err *e)
{
    it->sources = arena_alloc(&l->arena, it->n * sizeof(*it->sources));

    if (it->sources == NULL) {
        return err_set(e, "no memory for the plan");
    }

    if (l->files == NULL) {
        random_sources(l, it);
        return 0;
    }

    if (it->spec->fused != NULL) {
        char name[NAME_BYTES];

        format_name(name, it->spec->fused, it->i_layer, 0);

        if (safetensors_find(l->files, name) != NULL) {
            return fused_sources(l, it, e);
        }
    }

    return single_sources(l, it, e);
}


/*
 * With few bits asked for, each kind of matrix gets what it stands.  Experts
 * and MLPs are most of the bytes and stand four bits; what all tokens share,
 * the projections of attention and the head, gets eight, or six where experts
 * have four; the parts of kv_b, which work on the latent itself and are small,
 * stay BF16, and so does an embedding of which a token reads one row.
 */
static enum dtype
choose_dtype(const struct weights_loader *l, const struct item *it)
{
    enum dtype asked = l->src.dtype;
    enum dtype shared = asked == DTYPE_INT4 ? DTYPE_INT6 : DTYPE_INT8;

    if (it->spec->kind == TENSOR_MATRIX_F32) {
        return DTYPE_F32;
    }

    if (!dtype_is_quant(asked)) {
        return asked;
    }

    /* As checkpoints have it: neither embedding nor head. */
    if (asked == DTYPE_FP8) {
        return it->spec->place == TENSOR_GLOBAL
               || it->spec->kind == TENSOR_KV_B ? DTYPE_BF16 : DTYPE_FP8;
    }

    switch (it->spec->kind) {
    case TENSOR_KV_B:
        return DTYPE_BF16;

    case TENSOR_EMBED:
        return l->head_is_embed ? shared : DTYPE_BF16;

    case TENSOR_EXPERTS:
    case TENSOR_MLP:
        return asked;

    default:
        return shared;
    }
}


/* Gives a struct weight its shape and bytes; adds them to the item's. */
static int
plan_weight(struct weights_loader *l, struct item *it, struct weight *w,
            uint32_t n, uint32_t n_out, uint32_t n_in, struct err *e)
{
    size_t all;

    *w = (struct weight) { NULL, choose_dtype(l, it), n, n_out, n_in };

    if (w->dtype == DTYPE_BF16 && l->b->tight) {
        w->dtype = DTYPE_TIGHT;
    }

    size_t one = l->b->ops->weight_bytes(w);

    if (one == 0) {
        return err_set(e, "%s: backend %s has no weights as --quant %s "
                       "wants them", it->spec->name, l->b->name,
                       l->src.quant);
    }

    if (size_mul(one, n, &all) != 0
        || size_add(it->n_bytes, loader_align(all), &it->n_bytes) != 0)
    {
        return err_set(e, "%s: too large", it->spec->name);
    }

    return 0;
}


static int
plan_memory(struct weights_loader *l, struct item *it, struct err *e)
{
    const struct config *c = l->c;

    switch (it->spec->kind) {
    case TENSOR_VECTOR:
        it->n_bytes = loader_align((size_t) it->n_cols * sizeof(float));
        return 0;

    case TENSOR_KV_B: {
        struct layer *to = &l->w->layers[it->i_layer];

        return plan_weight(l, it, &to->w_uk, c->n_heads, c->kv_lora, c->nope,
                           e) == 0
               ? plan_weight(l, it, &to->w_uv, c->n_heads, c->v, c->kv_lora,
                             e) : -1;
    }

    default:
        return plan_weight(l, it, it->target, it->n, it->n_rows, it->n_cols,
                           e);
    }
}


static int
plan_item(struct weights_loader *l, const struct tensor_spec *spec,
          uint32_t i_layer, struct err *e)
{
    struct item *it = &l->items[l->n_items++];
    uint64_t     dims[SAFETENSORS_DIMS_MAX] = { 1, 1 };
    int          overflow = 0;
    uint32_t     n = eval_shape(l->c, spec->shape, dims, &overflow);
    char        *base = spec->place == TENSOR_GLOBAL
                        ? (char *) &l->w->globals
                        : (char *) &l->w->layers[i_layer];

    if (overflow || dims[0] > UINT32_MAX || dims[1] > UINT32_MAX) {
        return err_set(e, "%s: shape %s is too large", spec->name,
                       spec->shape);
    }

    it->spec = spec;
    it->target = base + spec->offset;
    it->i_layer = i_layer;
    it->n = spec->kind == TENSOR_EXPERTS ? l->c->n_experts : 1;
    it->n_rows = n == 1 ? 1 : (uint32_t) dims[0];
    it->n_cols = (uint32_t) dims[n - 1];

    if (find_sources(l, it, e) != 0 || plan_memory(l, it, e) != 0) {
        return -1;
    }

    it->offset = l->w->n_bytes;

    return size_add(l->w->n_bytes, it->n_bytes, &l->w->n_bytes) == 0
           ? 0 : err_set(e, "%s: too large", spec->name);
}


/* lm_head.weight is absent where it is the embedding; where both are there,
 * transformers takes the file's word over the config's. */
static int
is_tied(struct weights_loader *l, const struct tensor_spec *spec)
{
    return spec->place == TENSOR_GLOBAL
           && spec->offset == offsetof(struct globals, head) && l->c->tied
           && (l->files == NULL
               || safetensors_find(l->files, spec->name) == NULL);
}


static int
plan_items(struct weights_loader *l, struct err *e)
{
    const struct config *c = l->c;

    for (size_t i = 0; i < l->f->n_tensors; i++) {
        l->head_is_embed |= is_tied(l, &l->f->tensors[i]);
    }

    for (size_t i = 0; i < l->f->n_tensors; i++) {
        const struct tensor_spec *spec = &l->f->tensors[i];

        if (spec->place == TENSOR_GLOBAL && !is_tied(l, spec)
            && plan_item(l, spec, 0, e) != 0)
        {
            return -1;
        }
    }

    for (uint32_t layer = 0; layer < c->n_layers; layer++) {
        for (size_t i = 0; i < l->f->n_tensors; i++) {
            const struct tensor_spec *spec = &l->f->tensors[i];

            if (spec->place == TENSOR_LAYER
                && l->f->has(c, layer, spec->when)
                && plan_item(l, spec, layer, e) != 0)
            {
                return -1;
            }
        }
    }

    return 0;
}


/* Tensors that do nothing here: of layers past the last (multi-token
 * prediction), and frequencies that old files carry. */
static int
is_idle(const struct config *c, const char *name)
{
    unsigned layer;
    int      n = 0;

    if (sscanf(name, "model.layers.%9u.%n", &layer, &n) == 1 && n != 0
        && layer >= c->n_layers)
    {
        return 1;
    }

    const char *tail = strstr(name, ".rotary_emb.inv_freq");

    return tail != NULL && strcmp(tail, ".rotary_emb.inv_freq") == 0;
}


static int
check_unused(const struct weights_loader *l, struct err *e)
{
    for (size_t i = 0; i < safetensors_n(l->files); i++) {
        const struct safetensors_tensor *t = safetensors_at(l->files, i);

        if (!l->used[i] && !is_idle(l->c, t->name)) {
            return err_set(e, "tensor \"%.160s\": unexpected; a %s model by "
                           "this config does not have it", t->name,
                           l->f->name);
        }
    }

    return 0;
}


size_t
loader_active_bytes(const struct weights_loader *l)
{
    size_t n = 0;

    for (size_t i = 0; i < l->n_items; i++) {
        const struct item *it = &l->items[i];

        if (it->spec->kind == TENSOR_EXPERTS) {
            n += it->n_bytes / l->c->n_experts * l->c->n_active;

        } else if (it->target != &l->w->globals.embed || l->head_is_embed) {
            n += it->n_bytes;
        }
    }

    return n;
}


/* Multiply-adds of one token: as many as there are weights, but of the
 * embedding none, and of the experts those that are chosen. */
static void
count_products(const struct weights_loader *l)
{
    const struct config *c = l->c;

    for (size_t i = 0; i < l->n_items; i++) {
        const struct item *it = &l->items[i];
        uint64_t           n = (uint64_t) it->n_rows * it->n_cols;

        if (it->target == &l->w->globals.head) {
            l->w->n_head_products = n;

        } else if (it->spec->kind == TENSOR_EXPERTS) {
            l->w->n_products += n * c->n_active;

        } else if (it->spec->kind != TENSOR_VECTOR
                   && it->target != &l->w->globals.embed)
        {
            l->w->n_products += n;
        }
    }

    if (l->head_is_embed) {
        l->w->n_head_products = (uint64_t) c->vocab * c->dim;
    }
}


struct weights_loader *
weights_plan(struct weights *w, struct backend *b, const struct config *c,
             const struct family *f, const struct weights_source *src,
             struct err *e)
{
    struct weights_loader *l = calloc(1, sizeof(*l));

    if (l == NULL) {
        err_set(e, "no memory for the plan");
        return NULL;
    }

    l->w = w;
    l->b = b;
    l->c = c;
    l->f = f;
    l->src = *src;

    memset(w, 0, sizeof(*w));
    w->layers = calloc(c->n_layers, sizeof(*w->layers));
    l->items = calloc(f->n_tensors * ((size_t) c->n_layers + 1),
                      sizeof(*l->items));

    if (w->layers == NULL || l->items == NULL) {
        err_set(e, "no memory for the plan");
        goto failed;
    }

    if (src->random_seed < 0) {
        l->files = safetensors_open(src->dir, e);

        if (l->files == NULL) {
            goto failed;
        }

        l->used = calloc(safetensors_n(l->files) + 1, 1);

        if (l->used == NULL) {
            err_set(e, "no memory for the plan");
            goto failed;
        }
    }

    if (plan_items(l, e) != 0
        || (l->files != NULL && check_unused(l, e) != 0))
    {
        if (l->files != NULL) {
            err_prefix(e, "%s", src->dir);
        }

        goto failed;
    }

    w->n_active_bytes = loader_active_bytes(l);
    count_products(l);

    return l;

failed:

    weights_loader_free(l);
    weights_free(w, b);

    return NULL;
}
