/*
 * child.c - see main/child.h.
 *
 * Comes in: options and a listening socket.  Goes out: a loaded model, put
 * together from its parts, and serve_run() over it.
 */
#include "main/child.h"

#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "main/sandbox.h"
#include "serve/serve.h"

#define TEMPLATE_MAX_BYTES  (1u << 20)


/* How far loading is. */
struct progress {
    uint64_t    shown_us;
    uint64_t    start_us;
    int         tty;
};


static void
show_progress(void *ctx, uint64_t done, uint64_t all)
{
    struct progress *p = ctx;
    uint64_t         now = clock_us();
    uint64_t         every = p->tty ? 100000 : 5000000;
    unsigned         percent = all == 0 ? 100
                               : (unsigned) ((double) done * 100
                                             / (double) all);

    if (now - p->shown_us < every && done != all) {
        return;
    }

    p->shown_us = now;

    if (!p->tty) {
        if (now - p->start_us >= every) {
            log_line(LOG_LEVEL_NOTICE, "loading: %u %% of %llu MiB", percent,
                     (unsigned long long) all >> 20);
        }

        return;
    }

    char bar[41];

    memset(bar, ' ', sizeof(bar));
    memset(bar, '#', percent * (sizeof(bar) - 1) / 100);
    bar[sizeof(bar) - 1] = '\0';
    fprintf(stderr, "\rloading [%s] %3u %% of %llu MiB%s", bar, percent,
            (unsigned long long) all >> 20, done == all ? "\n" : "");
    fflush(stderr);
}


static struct model *
load_model(const struct main_options *o, struct err *e)
{
    struct progress p = {
        .tty = isatty(STDERR_FILENO), .shown_us = clock_us(),
        .start_us = clock_us()
    };
    struct model_options mo = {
        .dir = o->model,
        .backend = !o->deterministic || strcmp(o->backend, "cpu") == 0
                   ? o->backend : strcmp(o->backend, "auto") == 0
                   ? "auto:deterministic" : "cuda:deterministic",
        .quant = o->quant,
        .pack_dir = o->pack_cache,
        .n_threads = (int) o->threads,
        .pin = strcmp(o->pin, "on") == 0,
        .max_batch_tok = (int) o->max_batch_tok,
        .max_batch_rows = (int) o->max_seqs + SERVE_SCORE_ROWS,
        .random_seed = o->random_seed,
        .kv_bytes = (uint64_t) o->kv_bytes,
        .max_seqs = (int) o->max_seqs,
        .progress = show_progress,
        .progress_ctx = &p
    };

    return model_load(&mo, e);
}


/* 0; -1: e.  A model without a template serves completions alone. */
static int
load_template(const char *dir, struct template **t, struct err *e)
{
    struct buf src = { .cap_max = TEMPLATE_MAX_BYTES };
    int        rc = template_find(dir, &src, e);

    if (rc == 0) {
        *t = template_compile(src.p, src.n, e);
        rc = *t == NULL ? -1 : 0;
    }

    buf_free(&src);

    return rc < 0 ? -1 : 0;
}


static void
add_eos(struct serve_model *m, int64_t id)
{
    for (uint32_t i = 0; i < m->n_eos; i++) {
        if (m->eos[i] == id) {
            return;
        }
    }

    if (id >= 0 && m->n_eos < BASE_COUNT(m->eos)) {
        m->eos[m->n_eos++] = (uint32_t) id;
    }
}


/* What follows from the parts together. */
static int
derive(struct serve_model *m, const struct main_options *o, struct err *e)
{
    const struct model_info *info = model_info(m->model);
    uint64_t n_kv_tok = (uint64_t) info->n_pages * MODEL_PAGE_TOK;
    uint32_t n_ctx = info->n_ctx_tok;
    uint32_t n_tokenizer = tokenizer_n_vocab(m->tokenizer);

    if (o->n_ctx_tok > n_ctx) {
        return err_set(e, "--ctx: expected at most the model's %u, got %lld",
                       n_ctx, (long long) o->n_ctx_tok);
    }

    if (o->n_ctx_tok > 0) {
        n_ctx = (uint32_t) o->n_ctx_tok;
    }

    m->n_ctx_tok = n_kv_tok < n_ctx ? (uint32_t) n_kv_tok : n_ctx;
    m->n_vocab = info->n_vocab;
    m->n_text = n_tokenizer < info->n_vocab ? n_tokenizer : info->n_vocab;

    if (m->n_ctx_tok < 2 || m->n_text < 1 || m->n_text > SAMPLER_VOCAB_MAX) {
        return err_set(e, "%s: expected a context of at least 2 tokens and a "
                       "vocabulary of 1 .. %u, got %u and %u", o->model,
                       SAMPLER_VOCAB_MAX, m->n_ctx_tok, m->n_text);
    }

    for (uint32_t i = 0; i < m->n_text; i++) {
        struct slice s = tokenizer_piece(m->tokenizer, i);

        m->piece_bytes = s.p != NULL && s.n > m->piece_bytes ? s.n
                                                             : m->piece_bytes;
    }

    struct slice eos = tokenizer_eos(m->tokenizer);

    for (uint32_t i = 0; i < info->n_eos; i++) {
        add_eos(m, info->eos[i]);
    }

    add_eos(m, eos.p == NULL ? -1 : tokenizer_id(m->tokenizer, eos.p, eos.n));

    return 0;
}


/* The served name: --name, or the last part of the directory's. */
static int
set_name(const struct main_options *o, char name[ABI_NAME_MAX], struct err *e)
{
    char       *path = o->name == NULL ? realpath(o->model, NULL) : NULL;
    const char *slash = path == NULL ? NULL : strrchr(path, '/');
    const char *s = slash != NULL && slash[1] != '\0' ? slash + 1
                    : o->name != NULL ? o->name : "model";
    int         n = snprintf(name, ABI_NAME_MAX, "%s", s);

    free(path);

    return n < ABI_NAME_MAX ? 0
           : err_set(e, "--name: expected at most %d bytes, got %d",
                     ABI_NAME_MAX - 1, n);
}


static void
say_plan(const struct serve_model *m, const struct main_options *o,
         const char *name)
{
    const struct model_info *info = model_info(m->model);

    log_line(LOG_LEVEL_NOTICE, "%s (%s): weights %.1f MiB, %u KV pages of "
             "%.1f KiB%s, context %u, %lld sequences, %lld wait; %s%s", name,
             info->family, (double) info->weight_bytes / 1048576,
             info->n_pages, (double) info->page_bytes / 1024,
             o->no_prefix_cache ? ", no prefix cache" : "", m->n_ctx_tok,
             (long long) o->max_seqs, (long long) o->max_queue, info->plan,
             m->template == NULL ? "; no chat template, completions only" : "");
}


/* Both steps of sandbox.h.  What CUDA opens and maps once it runs has not been
 * seen on a GPU yet: with one there is no sandbox, and a line that says so. */
static int
guard_files(const struct main_options *o, struct err *e)
{
    int on = strcmp(o->sandbox, "on") == 0 && strcmp(o->backend, "cpu") == 0;
    int rc = on ? sandbox_files(o->pack_cache, e) : 0;

    if (rc > 0) {
        log_line(LOG_LEVEL_WARN, "sandbox: this kernel has no Landlock, files "
                 "are not guarded while the model loads");
    }

    return rc < 0 ? -1 : 0;
}


static int
guard_calls(const struct main_options *o, const struct serve_model *m,
            struct err *e)
{
    int cpu = model_info(m->model)->on_cpu;

    if (strcmp(o->sandbox, "on") != 0 || !cpu) {
        log_line(LOG_LEVEL_NOTICE, "sandbox: %s",
                 cpu ? "off" : "none with a GPU");
        return 0;
    }

    tzset();            /* reads a file */

    int rc = sandbox_calls(e);

    if (rc > 0) {
        log_line(LOG_LEVEL_NOTICE, "sandbox: none in a sanitizer's build");
    }

    return rc < 0 ? -1 : 0;
}


static int
serve_model(const struct main_options *o, const struct serve_model *m,
            const char *name, int listen_fd, int ready_fd, struct err *e)
{
    struct serve_options so = {
        .listen_fd = listen_fd,
        .ready_fd = ready_fd,
        .name = name,
        .allow_uid = o->allow_uid,
        .max_seqs = (uint32_t) o->max_seqs,
        .max_queue = (uint32_t) o->max_queue,
        .max_queue_tok = (uint64_t) o->max_queue_tok,
        .max_batch_tok = (uint32_t) o->max_batch_tok,
        .step_us = (uint64_t) o->step_ms * 1000,
        .prefix_cache = !o->no_prefix_cache,
        .drain_us = (uint64_t) o->drain_s * 1000000
    };

    return serve_run(&so, m, e);
}


int
main_child_run(const struct main_options *o, int listen_fd, int ready_fd)
{
    struct serve_model m = { .n_eos = 0 };
    struct tokenizer  *tokenizer = NULL;
    struct template   *template = NULL;
    struct err         e = { "" };
    char               name[ABI_NAME_MAX];
    int                status = MAIN_CHILD_REFUSED;

    /* jansson's hash seed, before there are threads. */
    json_object_seed(0);

    if (guard_files(o, &e) != 0
        || set_name(o, name, &e) != 0
        || (tokenizer = tokenizer_load(o->model, &e)) == NULL
        || load_template(o->model, &template, &e) != 0
        || (m.model = load_model(o, &e)) == NULL)
    {
        goto done;
    }

    m.tokenizer = tokenizer;
    m.template = template;

    if (derive(&m, o, &e) != 0) {
        goto done;
    }

    say_plan(&m, o, name);
    status = guard_calls(o, &m, &e) == 0
             && serve_model(o, &m, name, listen_fd, ready_fd, &e) == 0
             ? MAIN_CHILD_OK : MAIN_CHILD_FAILED;

done:

    if (status != MAIN_CHILD_OK) {
        log_line(LOG_LEVEL_ERROR, "%s", e.text);
    }

    if (m.model != NULL) {
        model_free(m.model);
    }

    if (template != NULL) {
        template_free(template);
    }

    if (tokenizer != NULL) {
        tokenizer_free(tokenizer);
    }

    return status;
}
