/*
 * weights.c - from files (or a seed) to weights in the backend.
 *
 * First a plan: every tensor of the family's table gets its shape, its place
 * in one block of the backend's memory, and its tensor in the file, checked;
 * tensors that nobody reads are refused, unless they are known to be idle.
 * Then the copy, 16 rows at a time on all threads: read as FP32, scale (FP8),
 * round, pack.
 */
#include "model/family.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "safetensors.h"

#define ROWS            16      /* of one read: what weight_put() takes */
#define NAME_BYTES      160
#define ALIGN           64

/* Rows of one matrix, wherever they are. */
struct source {
    const struct safetensors_tensor *tensor;    /* NULL: random */
    const struct safetensors_tensor *scale;     /* of FP8; or NULL */
    uint64_t                         row;       /* of the tensor's rows */
    uint64_t                         scale_row; /* of the scale's rows */
    uint32_t                         first;     /* row within its block grid */
    uint64_t                         seed;
    float                            range;     /* random: -range .. range */
};

/* One tensor of the table in one layer. */
struct item {
    const struct tensor_spec *spec;
    void                     *target;   /* struct weight, or float * */
    uint32_t                  i_layer;
    uint32_t                  n_cols;
    uint32_t                  n_rows;   /* of one matrix; of a vector: 1 */
    uint32_t                  n;        /* matrices */
    size_t                    offset;   /* in the block */
    size_t                    n_bytes;
    struct source            *sources;  /* (n) */
};

struct weights_loader {
    struct weights        *w;
    struct backend        *b;
    const struct config   *c;
    const struct family   *f;
    struct weights_source  src;
    struct safetensors    *files;       /* NULL: random */
    uint8_t               *used;        /* of the files' tensors */
    struct item           *items;
    size_t                 n_items;
    struct arena           arena;       /* of the sources */
    int                    head_is_embed;

    /* While loading: */
    const struct item     *item;
    float                **rooms;       /* (n_threads) rows as FP32 */
    size_t                 n_rooms;
};


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


static uint64_t
mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15ULL;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ x >> 27) * 0x94d049bb133111ebULL;

    return x ^ x >> 31;
}


/* Uniform numbers of variance 1 / n_cols: what goes through keeps its size. */
static void
random_sources(struct weights_loader *l, struct item *it)
{
    char     name[NAME_BYTES];
    uint64_t seed = mix((uint64_t) l->src.random_seed);

    for (uint32_t i = 0; i < it->n; i++) {
        uint64_t h = seed;

        format_name(name, it->spec->name, it->i_layer, i);

        for (const char *p = name; *p != '\0'; p++) {
            h = mix(h ^ (uint8_t) *p);
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


static size_t
align(size_t n)
{
    return (n + ALIGN - 1) & ~(size_t) (ALIGN - 1);
}


/*
 * With few bits asked for, each kind of matrix gets what it stands.  Experts
 * and MLPs are most of the bytes and stand four bits; what all tokens share,
 * the projections of attention and the head, gets eight; the parts of kv_b,
 * which work on the latent itself and are small, stay BF16, and so does an
 * embedding of which a token reads one row.
 */
static enum dtype
choose_dtype(const struct weights_loader *l, const struct item *it)
{
    enum dtype asked = l->src.dtype;

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
        return l->head_is_embed ? DTYPE_INT8 : DTYPE_BF16;

    case TENSOR_EXPERTS:
    case TENSOR_MLP:
        return asked;

    default:
        return DTYPE_INT8;
    }
}


/* Gives a struct weight its shape and bytes; adds them to the item's. */
static int
plan_weight(struct weights_loader *l, struct item *it, struct weight *w,
            uint32_t n, uint32_t n_out, uint32_t n_in, struct err *e)
{
    size_t all;

    w->dtype = choose_dtype(l, it);
    w->n = n;
    w->n_out = n_out;
    w->n_in = n_in;

    size_t one = l->b->ops->weight_bytes(w);

    if (one == 0) {
        return err_set(e, "%s: backend %s has no weights of %d bits",
                       it->spec->name, l->b->name,
                       w->dtype == DTYPE_INT4 ? 4 : 8);
    }

    if (size_mul(one, n, &all) != 0
        || size_add(it->n_bytes, align(all), &it->n_bytes) != 0)
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
        it->n_bytes = align((size_t) it->n_cols * sizeof(float));
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


/* What one token reads: everything, but of the embedding one row, and of the
 * experts those that are chosen. */
static size_t
active_bytes(const struct weights_loader *l)
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

    w->n_active_bytes = active_bytes(l);
    count_products(l);

    return l;

failed:

    weights_loader_free(l);
    weights_free(w, b);

    return NULL;
}


/* Elements [at, at + n) of a matrix of random numbers; two a number mixed. */
static void
random_rows(const struct source *s, uint64_t at, size_t n, float *out)
{
    for (size_t i = 0; i < n; i++) {
        uint64_t two = mix(s->seed + (at + i) / 2);
        uint32_t bits = (uint32_t) ((at + i) % 2 ? two >> 32 : two);

        out[i] = (float) (int32_t) bits * 0x1p-31f * s->range;
    }
}


/* Rows [row, row + n) of a matrix as FP32. */
static int
read_rows(const struct weights_loader *l, const struct source *s,
          uint32_t n_cols, uint32_t row, uint32_t n, float *out)
{
    if (s->tensor == NULL) {
        random_rows(s, (uint64_t) row * n_cols, (size_t) n * n_cols, out);
        return 0;
    }

    if (safetensors_read(s->tensor, (s->row + row) * n_cols,
                         (size_t) n * n_cols, out) != 0)
    {
        return -1;
    }

    if (s->scale == NULL) {
        return 0;
    }

    uint32_t block_in = l->c->block_in;
    uint64_t blocks = ((uint64_t) n_cols + block_in - 1) / block_in;

    for (uint32_t r = 0; r < n; r++) {
        uint64_t at = s->scale_row + (s->first + row + r) / l->c->block_out;
        float   *to = out + (size_t) r * n_cols;

        for (uint32_t col = 0; col < n_cols; col += block_in) {
            uint32_t end = n_cols - col < block_in ? n_cols : col + block_in;
            float    f;

            safetensors_read(s->scale, at * blocks + col / block_in, 1, &f);

            for (uint32_t i = col; i < end; i++) {
                to[i] *= f;
            }
        }
    }

    return 0;
}


/* 16 rows of matrix i / tiles. */
static void
load_rows(void *ctx, uint32_t i, int thread)
{
    struct weights_loader *l = ctx;
    const struct item     *it = l->item;
    uint32_t               tiles = (it->n_rows + ROWS - 1) / ROWS;
    uint32_t               matrix = i / tiles, row = i % tiles * ROWS;
    uint32_t               n = it->n_rows - row < ROWS ? it->n_rows - row
                                                       : ROWS;
    float                 *room = l->rooms[thread];

    /* The dtype was checked: this cannot fail. */
    int rc = read_rows(l, &it->sources[matrix], it->n_cols, row, n, room);

    assert(rc == 0);
    (void) rc;
    l->b->ops->weight_put(l->b, it->target, matrix, row, n, room);
}


/* Head i of kv_b: [W_UK; W_UV] (nope + v, kv_lora).  W_UK is transposed. */
static void
load_kv_b(void *ctx, uint32_t i, int thread)
{
    struct weights_loader *l = ctx;
    const struct config   *c = l->c;
    const struct item     *it = l->item;
    struct layer          *to = &l->w->layers[it->i_layer];
    size_t                 n_cols = c->kv_lora;
    float                 *rows = l->rooms[thread];
    float                 *turned = rows + (size_t) (c->nope + c->v) * n_cols;
    int                    rc = read_rows(l, it->sources, c->kv_lora,
                                          i * (c->nope + c->v),
                                          c->nope + c->v, rows);

    assert(rc == 0);
    (void) rc;

    for (size_t r = 0; r < c->nope; r++) {
        for (size_t col = 0; col < n_cols; col++) {
            turned[col * c->nope + r] = rows[r * n_cols + col];
        }
    }

    l->b->ops->weight_put(l->b, &to->w_uk, i, 0, c->kv_lora, turned);
    l->b->ops->weight_put(l->b, &to->w_uv, i, 0, c->v,
                          rows + c->nope * n_cols);
}


static void
load_vector(struct weights_loader *l, const struct item *it)
{
    float *room = l->rooms[0];

    if (it->sources->tensor != NULL) {
        int rc = read_rows(l, it->sources, it->n_cols, 0, 1, room);

        assert(rc == 0);
        (void) rc;

    } else {
        /* A norm's weight is 1; the bias of the choice is 0 without data. */
        float v = strstr(it->spec->name, "bias") == NULL ? 1 : 0;

        for (uint32_t i = 0; i < it->n_cols; i++) {
            room[i] = v;
        }
    }

    l->b->ops->put(l->b, *(float **) it->target, room,
                   it->n_cols * sizeof(float));
}


static void
place_item(struct weights_loader *l, const struct item *it)
{
    char *at = (char *) l->w->memory + it->offset;

    switch (it->spec->kind) {
    case TENSOR_VECTOR:
        *(float **) it->target = (float *) (void *) at;
        break;

    case TENSOR_KV_B: {
        struct layer *to = &l->w->layers[it->i_layer];

        to->w_uk.data = at;
        to->w_uv.data = at + align(l->b->ops->weight_bytes(&to->w_uk)
                                   * to->w_uk.n);
        break;
    }

    default:
        ((struct weight *) it->target)->data = at;
    }
}


static void
load_item(struct weights_loader *l, const struct item *it)
{
    uint32_t tiles = (it->n_rows + ROWS - 1) / ROWS;

    l->item = it;

    switch (it->spec->kind) {
    case TENSOR_VECTOR:
        load_vector(l, it);
        break;

    case TENSOR_KV_B:
        l->b->ops->each(l->b, l->c->n_heads, load_kv_b, l);
        break;

    default:
        l->b->ops->each(l->b, tiles * it->n, load_rows, l);
    }
}


/* FP32 rows for each thread: 16 of the widest, or a head of kv_b twice. */
static int
make_rooms(struct weights_loader *l, struct err *e)
{
    size_t head = ((size_t) 2 * l->c->nope + l->c->v) * l->c->kv_lora;
    size_t most = head;

    for (size_t i = 0; i < l->n_items; i++) {
        size_t n = (size_t) ROWS * l->items[i].n_cols;

        if (l->items[i].spec->kind != TENSOR_KV_B && n > most) {
            most = n;
        }
    }

    l->n_rooms = (size_t) l->b->n_threads;
    l->rooms = calloc(l->n_rooms, sizeof(*l->rooms));

    for (size_t i = 0; l->rooms != NULL && i < l->n_rooms; i++) {
        l->rooms[i] = malloc(most * sizeof(float));

        if (l->rooms[i] == NULL) {
            return err_set(e, "no memory for %zu bytes of rows",
                           most * sizeof(float));
        }
    }

    return l->rooms != NULL ? 0 : err_set(e, "no memory");
}


int
weights_load(struct weights_loader *l, struct err *e)
{
    struct weights *w = l->w;
    uint64_t        done = 0;

    w->memory = l->b->ops->alloc(l->b, w->n_bytes);

    if (w->memory == NULL) {
        return err_set(e, "cannot get %zu bytes for the weights", w->n_bytes);
    }

    if (make_rooms(l, e) != 0) {
        return -1;
    }

    for (size_t i = 0; i < l->n_items; i++) {
        place_item(l, &l->items[i]);
        load_item(l, &l->items[i]);
        done += l->items[i].n_bytes;

        if (l->src.progress != NULL) {
            l->src.progress(l->src.progress_ctx, done, w->n_bytes);
        }
    }

    if (l->head_is_embed) {
        w->globals.head = w->globals.embed;
    }

    return 0;
}


void
weights_loader_free(struct weights_loader *l)
{
    if (l == NULL) {
        return;
    }

    for (size_t i = 0; i < l->n_rooms && l->rooms != NULL; i++) {
        free(l->rooms[i]);
    }

    free(l->rooms);
    free(l->items);
    free(l->used);
    arena_free(&l->arena);
    safetensors_close(l->files);
    free(l);
}


void
weights_free(struct weights *w, struct backend *b)
{
    b->ops->free(b, w->memory, w->n_bytes);
    free(w->layers);
    memset(w, 0, sizeof(*w));
}
