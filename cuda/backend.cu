/*
 * backend.cu - the CUDA backend: device memory, a step's tokens on their way
 * there, its logits on their way back.
 *
 * In: calls of the vtable.  Out: launches on one stream.  Must not know what
 * a model is.
 */
#include "common.cuh"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Kept free of weights and keys: for graphs, and the driver's own. */
#define RESERVE_BYTES   ((uint64_t) 1 << 30)
/* Words for a step's tokens and page tables before they have to grow. */
#define META_WORDS      ((size_t) 1 << 20)


void
cuda_fail(const char *file, int line, const char *call, cudaError_t e)
{
    log_line(LOG_LEVEL_ERROR, "%s:%d: %s: %s (%s)", file, line, call,
             cudaGetErrorName(e), cudaGetErrorString(e));
    _exit(1);
}


static void *
op_alloc(struct backend *b, size_t n_bytes)
{
    struct cuda *c = cuda_of(b);
    void        *p = NULL;

    if (cudaMalloc(&p, n_bytes) != cudaSuccess) {
        cudaGetLastError();             /* said by the caller */
        return NULL;
    }

    CUDA_CHECK(cudaMemsetAsync(p, 0, n_bytes, c->stream));
    CUDA_CHECK(cudaStreamSynchronize(c->stream));

    return p;
}


static void
op_free(struct backend *b, void *p, size_t n_bytes)
{
    (void) b;
    (void) n_bytes;
    CUDA_CHECK(cudaDeviceSynchronize());
    CUDA_CHECK(cudaFree(p));
}


static uint64_t
op_room(struct backend *b)
{
    size_t n_free, n_all;

    (void) b;
    CUDA_CHECK(cudaMemGetInfo(&n_free, &n_all));

    return n_free > RESERVE_BYTES ? n_free - RESERVE_BYTES : 0;
}


static void
op_put(struct backend *b, void *to, const void *from, size_t n)
{
    struct cuda *c = cuda_of(b);

    CUDA_CHECK(cudaMemcpyAsync(to, from, n, cudaMemcpyHostToDevice,
                               c->stream));
    CUDA_CHECK(cudaStreamSynchronize(c->stream));
}


static void
op_get(struct backend *b, void *to, const void *from, size_t n)
{
    struct cuda *c = cuda_of(b);

    CUDA_CHECK(cudaMemcpyAsync(to, from, n, cudaMemcpyDeviceToHost,
                               c->stream));
    CUDA_CHECK(cudaStreamSynchronize(c->stream));
}


static void
op_copy(struct backend *b, void *to, const void *from, size_t n)
{
    struct cuda *c = cuda_of(b);

    CUDA_CHECK(cudaMemcpyAsync(to, from, n, cudaMemcpyDeviceToDevice,
                               c->stream));
}


struct each_run {
    void   (*fn)(void *ctx, uint32_t i, int thread);
    void    *ctx;
    uint32_t n;
};


static void
run_each(void *ctx, int i, int n)
{
    struct each_run *r = (struct each_run *) ctx;

    for (uint32_t j = (uint32_t) i; j < r->n; j += (uint32_t) n) {
        r->fn(r->ctx, j, i);
    }
}


static void
op_each(struct backend *b, uint32_t n,
        void (*fn)(void *ctx, uint32_t i, int thread), void *ctx)
{
    struct each_run r = { fn, ctx, n };

    pool_run(cuda_of(b)->pool, run_each, &r);
}


/* Room for n words of tokens and tables. */
static void
reserve_meta(struct cuda *c, size_t n)
{
    if (n <= c->meta_words) {
        return;
    }

    CUDA_CHECK(cudaStreamSynchronize(c->stream));
    cuda_step_forget(c);
    CUDA_CHECK(cudaFree(c->meta));
    CUDA_CHECK(cudaFreeHost(c->meta_both));
    c->meta_words = n < META_WORDS ? META_WORDS : 2 * n;
    CUDA_CHECK(cudaMalloc((void **) &c->meta, c->meta_words * 4));
    CUDA_CHECK(cudaMallocHost((void **) &c->meta_both, c->meta_words * 8));
}


static uint32_t
n_pages(const struct batch *batch, uint32_t t)
{
    return batch->pos[t] / BACKEND_PAGE_TOK + 1;
}


/* The tokens of a sequence follow one another and share its table, which the
 * last of them needs most of. */
static int
shares_table(const struct batch *batch, uint32_t t)
{
    return t + 1 < batch->n_tok && batch->pages[t] == batch->pages[t + 1]
           && batch->pos[t] <= batch->pos[t + 1];
}


static enum cuda_mix
mix_of(const struct cuda *c, const struct batch *batch)
{
    uint32_t n = batch->n_tok, n_alone = 0;

    if (c->deterministic || n <= CUDA_FEW) {
        return c->deterministic ? CUDA_RUNS : CUDA_ALONE;
    }

    for (uint32_t t = 0; t < n; t++) {
        n_alone += !shares_table(batch, t)
                   && !(t > 0 && shares_table(batch, t - 1));
    }

    return n_alone == n ? CUDA_ALONE : n_alone == 0 ? CUDA_RUNS : CUDA_MIXED;
}


/*
 * The step's tokens: n_tok words each of ids, positions, where tables begin
 * and rows of logits, then the tables.  Host memory is free for it: the last
 * step but one has been waited for, by fetch() or chosen().
 */
static void
op_begin(struct backend *b, const struct batch *batch)
{
    struct cuda *c = cuda_of(b);
    uint32_t     n = batch->n_tok, at = 0;
    size_t       words = 4 * (size_t) n;

    for (uint32_t t = 0; t < n; t++) {
        words += shares_table(batch, t) ? 0 : n_pages(batch, t);
    }

    assert(c->n_sampled - c->n_chosen < 2);
    cuda_uploads_wait(c);
    reserve_meta(c, words);
    c->meta_host = c->meta_both + (c->n_steps++ % 2) * c->meta_words;

    uint32_t *to = c->meta_host, *pages = to + 4 * (size_t) n;

    memcpy(to, batch->ids, n * sizeof(uint32_t));
    memcpy(to + n, batch->pos, n * sizeof(uint32_t));
    c->max_pos = 0;

    for (uint32_t t = 0; t < n; t++) {
        to[2 * n + t] = at;
        c->max_pos = c->max_pos < batch->pos[t] ? batch->pos[t] : c->max_pos;

        if (!shares_table(batch, t)) {
            memcpy(pages + at, batch->pages[t],
                   n_pages(batch, t) * sizeof(uint32_t));
            at += n_pages(batch, t);
        }
    }

    CUDA_CHECK(cudaMemcpyAsync(c->meta, to, words * sizeof(uint32_t),
                               cudaMemcpyHostToDevice, c->stream));
    c->n_tok = n;
    c->mix = mix_of(c, batch);
    c->batch.ids = c->meta;
    c->batch.pos = c->meta + n;
    c->batch.table = c->meta + 2 * (size_t) n;
    c->rows = c->meta + 3 * (size_t) n;
    c->batch.pages = c->meta + 4 * (size_t) n;
    cuda_step_begin(c, batch->repeats);
}


static float *
op_fetch(struct backend *b, struct tensor x, uint32_t n_rows, uint32_t n)
{
    struct cuda *c = cuda_of(b);
    size_t       n_bytes = (size_t) n_rows * n * sizeof(float);

    assert(x.stride == n);

    if (n_bytes > c->out_bytes) {
        CUDA_CHECK(cudaFreeHost(c->out));
        CUDA_CHECK(cudaMallocHost((void **) &c->out, n_bytes));
        c->out_bytes = n_bytes;
    }

    if (n_bytes != 0) {
        CUDA_CHECK(cudaMemcpyAsync(c->out, x.data, n_bytes,
                                   cudaMemcpyDeviceToHost, c->stream));
    }

    CUDA_CHECK(cudaStreamSynchronize(c->stream));

    return c->out;
}


static void
op_close(struct backend *b)
{
    struct cuda *c = cuda_of(b);

    cuda_step_close(c);
    cuda_uploads_close(c);
    pool_free(c->pool);
    cuda_sample_close(c);
    CUDA_CHECK(cudaFree(c->meta));
    CUDA_CHECK(cudaFreeHost(c->meta_both));
    CUDA_CHECK(cudaFree(c->counters));
    CUDA_CHECK(cudaFree(c->scratch));
    CUDA_CHECK(cudaFree(c->rounded));
    CUDA_CHECK(cudaFreeHost(c->out));
    CUDA_CHECK(cudaStreamDestroy(c->stream));
    free(c);
}


/* The first device, if it is one that the kernels are made for. */
static int
open_device(struct cuda *c, struct err *e)
{
    struct cudaDeviceProp p;
    int                   n = 0;

    /* A kernel that is loaded when it is first launched would be so within a
     * capture. */
    setenv("CUDA_MODULE_LOADING", "EAGER", 0);

    cudaError_t rc = cudaGetDeviceCount(&n);

    if (rc != cudaSuccess || n == 0) {
        return err_set(e, "backend \"cuda\": no GPU: %s",
                       rc != cudaSuccess ? cudaGetErrorString(rc)
                                         : "the driver has none");
    }

    if ((rc = cudaSetDevice(0)) != cudaSuccess
        || (rc = cudaGetDeviceProperties(&p, 0)) != cudaSuccess
        || (rc = cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking))
           != cudaSuccess)
    {
        return err_set(e, "backend \"cuda\": %s", cudaGetErrorString(rc));
    }

    if (p.major < 8) {
        return err_set(e, "backend \"cuda\": expected a GPU of compute "
                       "capability 8.0 or newer, got %s with %d.%d", p.name,
                       p.major, p.minor);
    }

    c->n_sm = p.multiProcessorCount;
    c->major = p.major;
    c->shared_max = p.sharedMemPerBlockOptin;
    snprintf(c->b.kernels, sizeof(c->b.kernels), "%.40s, sm_%d%d", p.name,
             p.major, p.minor);

    return 0;
}


extern "C" struct backend *
cuda_open(const char *name, int n_threads, struct err *e)
{
    int deterministic = strcmp(name, "cuda:deterministic") == 0;
    int only_mma = strcmp(name, "cuda:mma") == 0;
    int unpaired = strcmp(name, "cuda:unpaired") == 0;

    if (strcmp(name, "cuda") != 0 && !deterministic && !only_mma && !unpaired) {
        err_set(e, "backend \"%s\": expected cuda, cuda:deterministic, "
                "cuda:mma or cuda:unpaired", name);
        return NULL;
    }

    struct cuda *c = (struct cuda *) calloc(1, sizeof(*c));

    if (c == NULL) {
        err_set(e, "no memory for the backend");
        return NULL;
    }

    /* The ops of a layer are step.cu's, the rest is here. */
    c->ops = cuda_step_ops;
    c->ops.close = op_close;
    c->ops.alloc = op_alloc;
    c->ops.free = op_free;
    c->ops.room = op_room;
    c->ops.put = op_put;
    c->ops.get = op_get;
    c->ops.copy = op_copy;
    c->ops.weight_bytes = cuda_weight_bytes;
    c->ops.weight_put = cuda_weight_put;
    c->ops.each = op_each;
    c->ops.begin = op_begin;
    c->ops.fetch = op_fetch;
    c->ops.sample = cuda_sample;
    c->ops.chosen = cuda_chosen;
    c->b.ops = &c->ops;
    c->b.name = "cuda";
    c->deterministic = deterministic;

    if (open_device(c, e) != 0 || cuda_step_open(c, e) != 0
        || (c->pool = pool_create(n_threads, 0, e)) == NULL)
    {
        free(c);
        return NULL;
    }

    c->b.n_threads = pool_place(c->pool)->n;
    c->warpgroups = c->major == 9 && !deterministic && !only_mma;

    if (c->warpgroups && !unpaired) {
        cuda_wide_open(c);
    }

    if (cuda_uploads_open(c, e) != 0) {
        pool_free(c->pool);
        free(c);
        return NULL;
    }

    reserve_meta(c, 1);
    CUDA_CHECK(cudaMalloc((void **) &c->scratch, CUDA_SCRATCH));
    CUDA_CHECK(cudaMalloc((void **) &c->rounded, CUDA_ROUNDED));
    CUDA_CHECK(cudaMalloc((void **) &c->counters,
                          CUDA_COUNTERS * sizeof(uint32_t)));
    CUDA_CHECK(cudaMemsetAsync(c->counters, 0,
                               CUDA_COUNTERS * sizeof(uint32_t), c->stream));

    return &c->b;
}
