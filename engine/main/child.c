/*
 * child.c - see main/child.h.
 *
 * Comes in: options and a listening socket.  Goes out: a loaded model, put
 * together from its parts, and serve_run() over it.
 */
#include "main/child.h"

#include <glob.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "backend.h"
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


/* -- the sandbox ----------------------------------------------------------- */

#define TRIAL_N     4096        /* floats of a row */

/* What a step needs of the driver: memory, copies both ways, kernels, one graph
 * that is recorded, and is run again; and another one where calls are bounded,
 * since its memory is another.  ctx: a backend's name. */
static int
gpu_trial(void *ctx, int calls, struct err *e)
{
    static struct backend *b;
    static float           row[TRIAL_N], weight[TRIAL_N];
    static const uint32_t  zero;
    static const uint32_t *pages[1] = { &zero };
    struct batch           batch = { 1, &zero, &zero, pages, 1 + calls };
    float                 *at[4];

    if (b == NULL && (b = backend_open(ctx, 1, 0, e)) == NULL) {
        return -1;
    }

    for (size_t i = 0; i < BASE_COUNT(at); i++) {
        at[i] = b->ops->alloc(b, sizeof(row));

        if (at[i] == NULL) {
            return err_set(e, "no memory of the backend");
        }
    }

    for (size_t i = 0; i < TRIAL_N; i++) {
        row[i] = i % 2 ? 3 : -3;
        weight[i] = 5;
    }

    b->ops->put(b, at[0], row, sizeof(row));
    b->ops->put(b, at[1], weight, sizeof(weight));

    for (int run = 0; run < 2; run++) {
        b->ops->begin(b, &batch);
        b->ops->rmsnorm(b, (struct tensor) { at[2], TRIAL_N },
                        (struct tensor) { at[0], TRIAL_N }, at[1], 0, 1,
                        TRIAL_N);
        b->ops->gather(b, (struct tensor) { at[3], TRIAL_N },
                       (struct tensor) { at[2], TRIAL_N }, &zero, 1, TRIAL_N);

        const float *got = b->ops->fetch(b, (struct tensor) { at[3], TRIAL_N },
                                         1, TRIAL_N);

        for (size_t i = 0; i < TRIAL_N; i++) {
            float want = i % 2 ? 5 : -5;

            if (!(got[i] - want < 1e-3f && want - got[i] < 1e-3f)) {
                return err_set(e, "rmsnorm, calls %sbounded: at %zu expected "
                               "%g, got %g", calls ? "" : "not yet ", i,
                               (double) want, (double) got[i]);
            }
        }
    }

    return 0;
}


/* What is bounded while the model loads, into s: nothing where s->model_dir
 * stays NULL.  A GPU is tried first, in a process of its own. */
static int
plan_guard(const struct main_options *o, const char *devices,
           sandbox_run *trial, struct sandbox *s, struct err *e)
{
    char   cuda[] = "cuda";
    glob_t found;

    if (strcmp(o->sandbox, "off") == 0) {
        return 0;
    }

    if (strcmp(o->backend, "cpu") == 0) {
        *s = (struct sandbox) { o->pack_cache, NULL, o->model };
        return 0;
    }

    if (glob(devices, GLOB_NOSORT, NULL, &found) == 0) {
        globfree(&found);

    } else if (strcmp(o->backend, "auto") == 0) {
        return 0;           /* it will be the CPU */
    }

    /* Packed weights are the host's alone: nothing is written. */
    struct sandbox gpu = { NULL, devices, o->model };

    if (sandbox_probe(&gpu, trial, cuda, e) == 0) {
        *s = gpu;
        return 0;
    }

    if (strcmp(o->sandbox, "on") == 0) {
        return err_prefix(e, "--sandbox on: a trial of the GPU in it failed");
    }

    log_line(LOG_LEVEL_WARN, "sandbox: none with a GPU, a trial in it failed: "
             "%s", e->text);

    return 0;
}


/* Both steps of sandbox.h. */
static int
guard_files(const struct main_options *o, struct sandbox *s, struct err *e)
{
    if (plan_guard(o, "/dev/nvidia*", gpu_trial, s, e) != 0) {
        return -1;
    }

    int rc = s->model_dir != NULL ? sandbox_files(s, e) : 0;

    if (rc > 0) {
        log_line(LOG_LEVEL_WARN, "sandbox: this kernel has no Landlock, files "
                 "are not guarded while the model loads");
    }

    return rc < 0 ? -1 : 0;
}


static int
guard_calls(const struct main_options *o, const struct sandbox *s, int on_cpu,
            struct err *e)
{
    if (strcmp(o->sandbox, "off") == 0) {
        log_line(LOG_LEVEL_NOTICE, "sandbox: off");
        return 0;
    }

    if (!on_cpu && s->devices == NULL) {
        if (strcmp(o->sandbox, "on") == 0) {
            return err_set(e, "--sandbox on: expected a GPU of /dev/nvidia*, "
                           "got one that has no such device");
        }

        log_line(LOG_LEVEL_NOTICE, "sandbox: none with this GPU");
        return 0;
    }

    tzset();            /* reads a file */

    int rc = sandbox_calls(!on_cpu, e);

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
    struct sandbox     bounds = { NULL, NULL, NULL };
    struct err         e = { "" };
    char               name[ABI_NAME_MAX];
    int                status = MAIN_CHILD_REFUSED;

    /* jansson's hash seed, before there are threads. */
    json_object_seed(0);

    if (guard_files(o, &bounds, &e) != 0
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
    status = guard_calls(o, &bounds, model_info(m.model)->on_cpu,
                         &e) == 0
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
