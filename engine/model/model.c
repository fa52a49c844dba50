/*
 * model.c - see model.h: the plan of memory, and the forward pass.  The pass
 * itself is a dozen lines; what a layer does is in families/, how, in the
 * backend.
 */
#include "model/model.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "model/family.h"

#define DEFAULT_SEQ_TOK     4096        /* that kv_bytes = 0 plans for */
#define JSON_MAX            (4u << 20)

_Static_assert(MODEL_PAGE_TOK == BACKEND_PAGE_TOK, "one size of a page");

struct model {
    struct model_info     info;
    struct config         c;
    const struct family  *f;
    struct backend       *b;
    struct weights        w;
    struct kv_store       kv;
    struct step           step;         /* its buffers, for max_batch_tok */
    struct tensor         rows;         /* (max_batch_rows, dim) */
    struct tensor         logits;       /* (max_batch_rows, vocab) */
    float                *freqs;        /* (rope / 2) */
    float                 freq_scale;
    int                   max_tok;
    int                   max_rows;
    void                 *memory;       /* of the backend: KV and buffers */
    size_t                n_bytes;      /* of it */
    size_t                kv_bytes;     /* that come first there */

    /* Of one call, on the host. */
    uint32_t             *ids;          /* (max_tok) */
    uint32_t             *pos;
    const uint32_t      **pages;
    uint32_t             *row_of;       /* (max_rows) token of a logits row */

    /* Launched and not collected. */
    int                   n_chosen;     /* steps of tokens ... */
    int                   has_logits;   /* ... and then one of logits */
    uint32_t              n_rows;       /* of the last launch */
};


/* Adds the ids of "eos_token_id": a number, or several. */
static void
add_eos(struct model_info *info, const json_t *o)
{
    const json_t *v = json_object_get(o, "eos_token_id");
    size_t        n = json_is_array(v) ? json_array_size(v) : 1;

    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_is_array(v) ? json_array_get(v, i) : v;
        json_int_t    x = json_integer_value(id);
        int           known = 0;

        for (uint32_t k = 0; k < info->n_eos; k++) {
            known |= info->eos[k] == (uint32_t) x;
        }

        if (json_is_integer(id) && x >= 0 && x < info->n_vocab && !known
            && info->n_eos < MODEL_EOS_MAX)
        {
            info->eos[info->n_eos++] = (uint32_t) x;
        }
    }
}


static int
read_generation(struct model_info *info, const char *dir, struct err *e)
{
    char        path[4096];
    struct stat st;

    snprintf(path, sizeof(path), "%s/generation_config.json", dir);

    if (stat(path, &st) != 0) {
        return 0;               /* it is optional */
    }

    json_t *o = json_file(path, JSON_MAX, e);

    if (o == NULL) {
        return -1;
    }

    int64_t top_k = -1;
    int     sample = 1;
    int     rc = json_get_num(o, "temperature", &info->temperature, e) < 0
                 || json_get_num(o, "top_p", &info->top_p, e) < 0
                 || json_get_num(o, "min_p", &info->min_p, e) < 0
                 || json_get_num(o, "repetition_penalty", &info->repetition,
                                 e) < 0
                 || json_get_int(o, "top_k", -1, INT32_MAX, &top_k, e) < 0
                 || json_get_bool(o, "do_sample", &sample, e) < 0
                 ? err_prefix(e, "%s", path) : 0;

    info->top_k = (int) top_k;

    if (!sample) {
        info->temperature = 0;
    }

    add_eos(info, o);
    json_decref(o);

    return rc;
}


/* What of the files is not for running but for the rest of the engine. */
static int
read_info(struct model *m, const char *dir, struct err *e)
{
    struct model_info *info = &m->info;
    char               path[4096];
    struct stat        st;

    snprintf(path, sizeof(path), "%s/config.json", dir);

    json_t *o = json_file(path, JSON_MAX, e);

    if (o == NULL) {
        return -1;
    }

    snprintf(info->family, sizeof(info->family), "%s", m->c.family);
    info->n_vocab = m->c.vocab;
    info->n_layers = m->c.n_layers;
    info->created = stat(path, &st) == 0 ? (int64_t) st.st_mtime : 0;
    info->temperature = info->top_p = info->min_p = info->repetition = -1;
    info->top_k = -1;
    info->bos = -1;

    json_t *bos = json_object_get(o, "bos_token_id");

    if (json_is_integer(bos) && json_integer_value(bos) >= 0
        && json_integer_value(bos) < m->c.vocab)
    {
        info->bos = json_integer_value(bos);
    }

    add_eos(info, o);
    json_decref(o);

    return read_generation(info, dir, e);
}


/* Plans rows * cols floats or ids; *p is their offset until there is memory. */
static int
place(struct model *m, float **p, uint64_t rows, uint64_t cols)
{
    size_t n;

    *p = (float *) (uintptr_t) m->n_bytes;

    return size_mul(rows, cols, &n) != 0 || size_mul(n, sizeof(float), &n) != 0
           || size_add(n, 63, &n) != 0
           || size_add(m->n_bytes, n & ~(size_t) 63, &m->n_bytes) != 0;
}


static struct tensor *
buffer_at(struct model *m, size_t i)
{
    return (struct tensor *) (void *)
           ((char *) &m->step.buf + m->f->buffers[i].offset);
}


static int
plan_buffers(struct model *m, struct err *e)
{
    const struct config *c = &m->c;
    uint64_t             n_tok = (uint64_t) m->max_tok;
    uint64_t             slots = n_tok * c->n_active;
    int                  bad = 0;

    for (size_t i = 0; i < m->f->n_buffers; i++) {
        struct tensor *t = buffer_at(m, i);
        uint64_t       rows = 0, cols = 0;

        bad |= config_eval(c, m->f->buffers[i].rows, &rows) != 0
               || config_eval(c, m->f->buffers[i].cols, &cols) != 0
               || size_mul(rows, n_tok, &rows) != 0
               || place(m, &t->data, rows, cols) != 0;
        t->stride = cols;
    }

    m->rows.stride = c->dim;
    m->logits.stride = c->vocab;

    bad |= place(m, &m->rows.data, (uint64_t) m->max_rows, c->dim)
           || place(m, &m->logits.data, (uint64_t) m->max_rows, c->vocab)
           || place(m, &m->freqs, 1, c->rope / 2)
           || place(m, &m->step.expert_weights, slots, 1)
           || place(m, (float **) (void *) &m->step.expert_ids, slots, 1)
           || place(m, (float **) (void *) &m->step.expert_order, 1,
                    2 * slots + 2 * (uint64_t) c->n_experts + 1);

    return bad ? err_set(e, "buffers for %d tokens: too large", m->max_tok)
               : 0;
}


static void
move(void *base, void *p)
{
    uintptr_t at;

    memcpy(&at, p, sizeof(at));
    at += (uintptr_t) base;
    memcpy(p, &at, sizeof(at));
}


/* From offsets to addresses, once there is memory. */
static void
place_buffers(struct model *m)
{
    for (size_t i = 0; i < m->f->n_buffers; i++) {
        move(m->memory, &buffer_at(m, i)->data);
    }

    move(m->memory, &m->rows.data);
    move(m->memory, &m->logits.data);
    move(m->memory, &m->freqs);
    move(m->memory, &m->step.expert_weights);
    move(m->memory, &m->step.expert_ids);
    move(m->memory, &m->step.expert_order);
    m->kv.data = m->memory;
}


static int
plan_kv(struct model *m, const struct model_options *o, struct err *e)
{
    struct kv_store *kv = &m->kv;
    size_t           page, n_pages;

    kv->n_layers = m->c.n_layers;
    kv->row = m->c.kv_row;

    if (size_mul((size_t) kv->row * BACKEND_PAGE_TOK * dtype_bytes(kv->dtype),
                 kv->n_layers, &page) != 0)
    {
        return err_set(e, "a page of keys: too large");
    }

    if (o->kv_bytes != 0) {
        n_pages = o->kv_bytes / page;

        if (n_pages == 0) {
            return err_set(e, "kv-bytes: expected at least one page of %zu "
                           "bytes, got %llu", page,
                           (unsigned long long) o->kv_bytes);
        }

    } else {
        size_t tok = m->c.max_pos < DEFAULT_SEQ_TOK ? m->c.max_pos
                                                    : DEFAULT_SEQ_TOK;

        n_pages = (tok + BACKEND_PAGE_TOK - 1) / BACKEND_PAGE_TOK
                  * (size_t) (o->max_seqs > 0 ? o->max_seqs : 1);
    }

    if (n_pages > UINT32_MAX / BACKEND_PAGE_TOK
        || size_mul(page, n_pages, &m->kv_bytes) != 0
        || size_add(m->n_bytes, m->kv_bytes, &m->n_bytes) != 0)
    {
        return err_set(e, "%zu pages of keys: too large", n_pages);
    }

    kv->n_pages = (uint32_t) n_pages;
    m->info.n_pages = kv->n_pages;
    m->info.page_bytes = page;
    m->info.n_ctx_tok = m->c.max_pos < kv->n_pages * BACKEND_PAGE_TOK
                        ? m->c.max_pos : kv->n_pages * BACKEND_PAGE_TOK;

    return 0;
}


static int
check_room(const struct model *m, struct err *e)
{
    uint64_t need, room = m->b->ops->room(m->b);

    if (size_add(m->w.n_bytes, m->n_bytes, &need) != 0 || need > room) {
        return err_set(e, "needs %.1f MiB of weights, %.1f MiB of keys and "
                       "%.1f MiB of buffers, but %.1f MiB of memory are free",
                       (double) m->w.n_bytes / 1048576,
                       (double) m->kv_bytes / 1048576,
                       (double) (m->n_bytes - m->kv_bytes) / 1048576,
                       (double) room / 1048576);
    }

    return 0;
}


static int
make_host(struct model *m, struct err *e)
{
    size_t n = (size_t) m->max_tok;

    m->ids = calloc(n, sizeof(*m->ids));
    m->pos = calloc(n, sizeof(*m->pos));
    m->pages = calloc(n, sizeof(*m->pages));
    m->row_of = calloc((size_t) m->max_rows, sizeof(*m->row_of));

    return m->ids && m->pos && m->pages && m->row_of
           ? 0 : err_set(e, "no memory");
}


static int
make_memory(struct model *m, struct err *e)
{
    float *freqs = malloc(m->c.rope / 2 * sizeof(float));

    if (freqs == NULL) {
        return err_set(e, "no memory");
    }

    m->memory = m->b->ops->alloc(m->b, m->n_bytes);

    if (m->memory == NULL) {
        free(freqs);
        return err_set(e, "cannot get %zu bytes for keys and buffers",
                       m->n_bytes);
    }

    place_buffers(m);
    config_freqs(&m->c, freqs, &m->freq_scale);
    m->b->ops->put(m->b, m->freqs, freqs, m->c.rope / 2 * sizeof(float));
    free(freqs);

    m->step.b = m->b;
    m->step.c = &m->c;
    m->step.kv = &m->kv;

    return make_host(m, e);
}


static void
write_plan(struct model *m, const char *quant)
{
    struct model_info *info = &m->info;

    info->on_cpu = strcmp(m->b->name, "cpu") == 0;
    info->weight_bytes = weights_bytes(&m->w);
    info->active_weight_bytes = m->w.n_active_bytes;
    info->n_products = m->w.n_products;
    info->n_head_products = m->w.n_head_products;

    snprintf(info->plan, sizeof(info->plan),
             "%s, %u layers, %s: %.1f MiB of weights (%.1f read for a token), "
             "%.1f MiB of keys (%u pages of %d tokens), %.1f MiB of buffers; "
             "%s %s", info->family, info->n_layers, quant,
             (double) info->weight_bytes / 1048576,
             (double) m->w.n_active_bytes / 1048576,
             (double) m->kv_bytes / 1048576, m->kv.n_pages, MODEL_PAGE_TOK,
             (double) (m->n_bytes - m->kv_bytes) / 1048576, m->b->name,
             m->b->kernels);
}


static const struct {
    const char *name;
    enum dtype  dtype;
} quants[] = {
    { "bf16", DTYPE_BF16 },
    { "f32", DTYPE_F32 },
    { "int8", DTYPE_INT8 },
    { "int4", DTYPE_INT4 },
    { "fp8", DTYPE_FP8 }
};


static int
parse_quant(const char *s, enum dtype *t, struct err *e)
{
    for (size_t i = 0; i < BASE_COUNT(quants); i++) {
        if (strcmp(s, quants[i].name) == 0) {
            *t = quants[i].dtype;
            return 0;
        }
    }

    return err_set(e, "quant: expected f32, bf16, int8, int4 or fp8, "
                   "got \"%.32s\"", s);
}


static int
load(struct model *m, const struct model_options *o, struct err *e)
{
    const char           *quant = o->quant ? o->quant : quants[0].name;
    struct weights_source src = {
        .dir = o->dir, .random_seed = o->random_seed, .quant = quant,
        .pack_dir = o->pack_dir, .progress = o->progress,
        .progress_ctx = o->progress_ctx
    };

    if (parse_quant(quant, &src.dtype, e) != 0
        || config_load(o->dir, &m->c, &m->f, e) != 0
        || read_info(m, o->dir, e) != 0)
    {
        return -1;
    }

    m->b = backend_open(o->backend ? o->backend : "cpu", o->n_threads,
                        o->pin, e);

    if (m->b == NULL) {
        return -1;
    }

    if (!m->b->host_memory) {
        src.pack_dir = NULL;    /* only the host's memory can be kept */
    }

    struct weights_loader *l = weights_plan(&m->w, m->b, &m->c, m->f, &src, e);

    if (l == NULL) {
        return -1;
    }

    m->kv.dtype = src.dtype == DTYPE_F32 ? DTYPE_F32 : DTYPE_BF16;

    int rc = plan_kv(m, o, e) == 0 && plan_buffers(m, e) == 0
             && check_room(m, e) == 0 && make_memory(m, e) == 0
             ? weights_load(l, e) : -1;

    weights_loader_free(l);
    write_plan(m, quant);

    return rc;
}


struct model *
model_load(const struct model_options *o, struct err *e)
{
    struct model *m = calloc(1, sizeof(*m));

    if (m == NULL) {
        err_set(e, "no memory for the model");
        return NULL;
    }

    m->max_tok = o->max_batch_tok > 0 ? o->max_batch_tok : 1;
    m->max_rows = o->max_batch_rows > 0 ? o->max_batch_rows : 1;

    if (load(m, o, e) != 0) {
        model_free(m);
        return NULL;
    }

    return m;
}


void
model_free(struct model *m)
{
    if (m == NULL) {
        return;
    }

    if (m->b != NULL) {
        weights_free(&m->w, m->b);
        m->b->ops->free(m->b, m->memory, m->n_bytes);
        m->b->ops->close(m->b);
    }

    free(m->ids);
    free(m->pos);
    free(m->pages);
    free(m->row_of);
    free(m);
}


const struct model_info *
model_info(const struct model *m)
{
    return &m->info;
}


/* Lays the segments out as tokens; returns how many rows of logits. */
static uint32_t
lay_out(struct model *m, const struct model_segment *segs, int n_segs)
{
    uint32_t n_tok = 0, n_rows = 0;

    for (int i = 0; i < n_segs; i++) {
        const struct model_segment *s = &segs[i];

        assert(s->n_tok >= 1 && s->pos >= 0 && s->n_rows >= 0
               && s->n_rows <= s->n_tok
               && (uint64_t) s->pos + (uint64_t) s->n_tok <= m->info.n_ctx_tok
               && n_tok + (uint32_t) s->n_tok <= (uint32_t) m->max_tok
               && n_rows + (uint32_t) s->n_rows <= (uint32_t) m->max_rows);

        for (int t = 0; t < s->n_tok; t++, n_tok++) {
            assert(s->chosen != 0 ? s->n_tok == 1
                                  : s->tokens[t] < m->c.vocab);
            m->ids[n_tok] = s->chosen != 0 ? BACKEND_CHOSEN + s->chosen - 1
                                           : s->tokens[t];
            m->pos[n_tok] = (uint32_t) (s->pos + t);
            m->pages[n_tok] = s->pages;

            if (t >= s->n_tok - s->n_rows) {
                m->row_of[n_rows++] = n_tok;
            }
        }
    }

    m->step.n_tok = n_tok;

    return n_rows;
}


/* Everything up to the logits; how many rows of them. */
static uint32_t
forward(struct model *m, const struct model_segment *segs, int n_segs)
{
    struct backend           *b = m->b;
    const struct backend_ops *op = b->ops;
    struct step              *s = &m->step;
    uint32_t                  n_rows = lay_out(m, segs, n_segs);
    struct batch              batch = { s->n_tok, m->ids, m->pos, m->pages, 1 };

    op->begin(b, &batch);
    op->embed(b, s->buf.x, &m->w.globals.embed);
    op->angles(b, s->buf.angles, m->freqs, m->c.rope / 2, m->freq_scale);

    for (s->i_layer = 0; s->i_layer < m->c.n_layers; s->i_layer++) {
        m->f->layer(s, &m->w.layers[s->i_layer]);
    }

    op->gather(b, m->rows, s->buf.x, m->row_of, n_rows, m->c.dim);
    op->rmsnorm(b, m->rows, m->rows, m->w.globals.norm, (float) m->c.eps,
                n_rows, m->c.dim);
    op->linear(b, m->logits, m->rows, &m->w.globals.head, n_rows, 0);

    return n_rows;
}


void
model_launch(struct model *m, const struct model_segment *segs, int n_segs,
             const struct sample *how, uint32_t n_vocab)
{
    /* One under way at most, whose tokens this one can have. */
    assert(m->n_chosen <= 1 && !m->has_logits);
    m->n_rows = forward(m, segs, n_segs);

    if (how == NULL) {
        m->has_logits = 1;
        return;
    }

    assert(n_vocab <= m->c.vocab);
    m->b->ops->sample(m->b, m->logits, how, m->n_rows, n_vocab);
    m->n_chosen++;
}


struct model_result
model_collect(struct model *m)
{
    struct model_result r = { NULL, NULL };

    if (m->n_chosen > 0) {
        r.tokens = m->b->ops->chosen(m->b);
        m->n_chosen--;
        return r;
    }

    assert(m->has_logits);
    m->has_logits = 0;
    r.logits = m->b->ops->fetch(m->b, m->logits, m->n_rows, m->c.vocab);

    return r;
}


void
model_forward(struct model *m, const struct model_segment *segs, int n_segs,
              float **logits)
{
    assert(m->n_chosen == 0);
    model_launch(m, segs, n_segs, NULL, 0);
    *logits = model_collect(m).logits;
}


int
model_samples(const struct model *m)
{
    return m->b->ops->sample != NULL;
}


void
model_copy_page(struct model *m, uint32_t to, uint32_t from)
{
    size_t n = (size_t) m->info.page_bytes;
    char  *pages = m->kv.data;

    m->b->ops->copy(m->b, pages + to * n, pages + from * n, n);
}


int
model_threads(const struct model *m)
{
    return m->b->n_threads;
}


void
model_each(struct model *m, uint32_t n,
           void (*fn)(void *ctx, uint32_t i, int thread), void *ctx)
{
    m->b->ops->each(m->b, n, fn, ctx);
}
