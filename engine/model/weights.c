/*
 * weights.c - from files (or a seed) to weights in the backend, as plan.c has
 * laid them out: 16 rows at a time on all threads, read as FP32, scaled (FP8),
 * rounded and packed; or all at once from an image of an earlier start.
 */
#include "model/loader.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "model/pack.h"

#define ROWS            16      /* of one read: what weight_put() takes */


/* Elements [at, at + n) of a matrix of random numbers; two a number mixed. */
static void
random_rows(const struct source *s, uint64_t at, size_t n, float *out)
{
    for (size_t i = 0; i < n; i++) {
        uint64_t two = loader_mix(s->seed + (at + i) / 2);
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


static void
store_rows(struct weights_loader *l, const struct weight *w, uint32_t i,
           uint32_t row, uint32_t n, const float *rows)
{
    if (l->b->ops->weight_put(l->b, w, i, row, n, rows) != 0) {
        __atomic_store_n(&l->misfit, 1, __ATOMIC_RELAXED);
    }
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
    store_rows(l, it->target, matrix, row, n, room);
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

    store_rows(l, &to->w_uk, i, 0, c->kv_lora, turned);
    store_rows(l, &to->w_uv, i, 0, c->v, rows + c->nope * n_cols);
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
place_item(struct weights_loader *l, const struct item *it, char *at)
{
    switch (it->spec->kind) {
    case TENSOR_VECTOR:
        *(float **) it->target = (float *) (void *) at;
        break;

    case TENSOR_KV_B: {
        struct layer *to = &l->w->layers[it->i_layer];

        to->w_uk.data = at;
        to->w_uv.data = at + loader_align(l->b->ops->weight_bytes(&to->w_uk)
                                   * to->w_uk.n);
        break;
    }

    default:
        ((struct weight *) it->target)->data = at;
    }
}


static void
settle_item(struct weights_loader *l, const struct item *it)
{
    struct layer *layer = &l->w->layers[it->i_layer];

    if (it->spec->kind == TENSOR_KV_B) {
        l->b->ops->weight_place(l->b, &layer->w_uk);
        l->b->ops->weight_place(l->b, &layer->w_uv);

    } else if (it->spec->kind != TENSOR_VECTOR) {
        l->b->ops->weight_place(l->b, it->target);
    }
}


/* -1: it does not fit the dtype that it was given. */
static int
load_item(struct weights_loader *l, const struct item *it)
{
    uint32_t tiles = (it->n_rows + ROWS - 1) / ROWS;

    l->item = it;
    l->misfit = 0;

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

    return l->misfit ? -1 : 0;
}


/* Of an item that is not a vector: its weights. */
static int
weights_of(const struct weights_loader *l, const struct item *it,
           struct weight **of)
{
    struct layer *layer = &l->w->layers[it->i_layer];

    if (it->spec->kind == TENSOR_KV_B) {
        of[0] = &layer->w_uk;
        of[1] = &layer->w_uv;
        return 2;
    }

    of[0] = it->target;

    return 1;
}


/* An image has no bytes for what was loaded apart. */
static const uint8_t nothing[64];

static int
is_apart(const struct weights_loader *l, const struct item *it)
{
    struct weight *of[2];

    if (it->spec->kind == TENSOR_VECTOR) {
        return 0;
    }

    weights_of(l, it, of);

    return of[0]->dtype == DTYPE_TIGHT
           && memcmp(of[0]->data, nothing, sizeof(nothing)) == 0;
}


/* An item that would not be tight: as BF16, in memory of its own. */
static int
load_apart(struct weights_loader *l, struct item *it, struct err *e)
{
    struct weights *w = l->w;
    struct weight  *of[2];
    void           *apart = realloc(w->apart, (w->n_apart + 1)
                                              * sizeof(*w->apart));
    int             n = weights_of(l, it, of);
    size_t          n_bytes = 0;

    for (int i = 0; i < n; i++) {
        of[i]->dtype = DTYPE_BF16;
        n_bytes += loader_align(l->b->ops->weight_bytes(of[i]) * of[i]->n);
    }

    log_line(LOG_LEVEL_NOTICE, "%s, layer %u: exponents too far apart to be "
             "kept tight: %.1f MiB instead of %.1f", it->spec->name,
             it->i_layer, (double) n_bytes / 1048576,
             (double) it->n_bytes / 1048576);

    w->apart = apart != NULL ? apart : w->apart;

    void *memory = apart != NULL && n_bytes <= l->b->ops->room(l->b)
                   ? l->b->ops->alloc(l->b, n_bytes) : NULL;

    if (memory == NULL) {
        return err_set(e, "%s: cannot get %zu bytes for it", it->spec->name,
                       n_bytes);
    }

    w->apart[w->n_apart].memory = memory;
    w->apart[w->n_apart++].n_bytes = n_bytes;
    it->n_bytes = n_bytes;
    w->n_active_bytes = loader_active_bytes(l);
    place_item(l, it, memory);

    if (l->b->layout != 0) {
        settle_item(l, it);
    }

    if (l->head_is_embed) {
        w->globals.head = w->globals.embed;
    }

    return load_item(l, it) == 0 ? 0 : err_set(e, "%s: does not fit BF16",
                                               it->spec->name);
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


/* What the packed block was made from: the files, or the seed, and where each
 * tensor went in what form. */
static uint64_t
weights_key(const struct weights_loader *l)
{
    uint64_t id = l->files != NULL ? safetensors_id(l->files)
                                   : (uint64_t) l->src.random_seed;
    uint64_t key = pack_key(l->files != NULL, &id, sizeof(id));

    key = pack_key(key, l->b->name, strlen(l->b->name));
    key = pack_key(key, &l->b->layout, sizeof(l->b->layout));
    key = pack_key(key, &l->b->tight, sizeof(l->b->tight));
    key = pack_key(key, l->src.quant, strlen(l->src.quant));

    for (size_t i = 0; i < l->n_items; i++) {
        const struct item *it = &l->items[i];
        uint64_t           at[] = {
            it->i_layer, it->n, it->n_rows, it->n_cols, it->offset, it->n_bytes
        };

        key = pack_key(key, it->spec->name, strlen(it->spec->name));
        key = pack_key(key, at, sizeof(at));
    }

    return key;
}


/* 1: with the weights of an earlier start; 0: without; -1: e. */
static int
get_memory(struct weights_loader *l, struct pack *pack, struct err *e)
{
    struct weights *w = l->w;
    int             kept = 0;

    if (pack->dir != NULL) {
        pack->key = weights_key(l);
    }

    /* A file's pages are where they are: not good enough for several nodes. */
    if (pack->dir != NULL && l->b->layout == 0) {
        kept = pack_load(pack);
    }

    w->memory = kept ? pack->memory : l->b->ops->alloc(l->b, w->n_bytes);
    pack->memory = w->memory;

    if (w->memory == NULL) {
        return err_set(e, "cannot get %zu bytes for the weights", w->n_bytes);
    }

    for (size_t i = 0; i < l->n_items; i++) {
        place_item(l, &l->items[i], (char *) w->memory + l->items[i].offset);
    }

    if (l->head_is_embed) {
        w->globals.head = w->globals.embed;
    }

    if (l->b->layout != 0) {
        for (size_t i = 0; i < l->n_items; i++) {
            settle_item(l, &l->items[i]);
        }

        kept = pack->dir != NULL && pack_load(pack);
    }

    return kept;
}


int
weights_load(struct weights_loader *l, struct err *e)
{
    struct weights *w = l->w;
    uint64_t        done = 0;
    struct pack     pack = {
        .dir = l->src.pack_dir, .model_dir = l->src.dir,
        .quant = l->src.quant, .b = l->b, .n_bytes = w->n_bytes
    };
    int             kept = get_memory(l, &pack, e);

    if (kept < 0 || make_rooms(l, e) != 0) {
        return -1;
    }

    for (size_t i = 0; i < l->n_items; i++) {
        struct item *it = &l->items[i];

        done += it->n_bytes;

        if (kept ? is_apart(l, it) : load_item(l, it) != 0) {
            if (!kept) {
                l->b->ops->put(l->b, (char *) w->memory + it->offset, nothing,
                               sizeof(nothing));
            }

            if (load_apart(l, it, e) != 0) {
                return -1;
            }
        }

        if (l->src.progress != NULL && !kept) {
            l->src.progress(l->src.progress_ctx, done, w->n_bytes);
        }
    }

    if (pack.dir != NULL && !kept) {
        pack_save(&pack);
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


size_t
weights_bytes(const struct weights *w)
{
    size_t n = w->n_bytes;

    for (size_t i = 0; i < w->n_apart; i++) {
        n += w->apart[i].n_bytes;
    }

    return n;
}


void
weights_free(struct weights *w, struct backend *b)
{
    for (size_t i = 0; i < w->n_apart; i++) {
        b->ops->free(b, w->apart[i].memory, w->apart[i].n_bytes);
    }

    free(w->apart);
    b->ops->free(b, w->memory, w->n_bytes);
    free(w->layers);
    memset(w, 0, sizeof(*w));
}
